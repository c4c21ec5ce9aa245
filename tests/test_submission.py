import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco
from pycocotools.coco import COCO

from raremask import BadInput
from raremask.runlengths import RunLengths, compress, to_counts
from raremask.submission import CocoResults, Submission, problems

MASKS = {"10.tif": np.array([[0, 1], [1, 1]], bool), "9.tif": np.zeros((2, 2), bool), "100.tif": np.ones((2, 2), bool)}


def text(table, masks):
    return table.of_runs({file: table.write(mask) for file, mask in masks.items()})


def test_numbers_are_sorted_as_numbers_and_words_as_words():
    numbers = text(Submission(["img", "pixels"], "number", RunLengths()), MASKS)
    assert numbers == "img,pixels\n9,\n10,2 3\n100,1 4\n"
    stems = text(Submission(["id", "rle"], "stem", RunLengths(empty="-")), MASKS)
    assert stems == "id,rle\n10,2 3\n100,1 4\n9,-\n"
    files = text(Submission(["id", "rle"], "file", RunLengths(start=0, relative=True, empty="-1")), MASKS)
    assert files == "id,rle\n10.tif,1 3\n100.tif,0 4\n9.tif,-1\n"


def test_names_that_do_not_do_are_refused():
    table = Submission(["img", "pixels"], "number", RunLengths())
    with pytest.raises(BadInput, match=r"scan.tif: the submission numbers its images, and 'scan' is no number"):
        text(table, {"scan.tif": MASKS["9.tif"]})
    with pytest.raises(BadInput, match="two images would be called 9"):
        text(table, {"9.tif": MASKS["9.tif"], "09.tif": MASKS["9.tif"]})
    with pytest.raises(ValueError, match="header has two columns, name is stem, file, number"):
        Submission(["img"], "stem", RunLengths())
    with pytest.raises(ValueError, match=r"got .* and 'id'"):
        Submission(["img", "pixels"], "id", RunLengths())


@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_compressed_run_lengths_are_those_of_pycocotools(mask):
    reference = coco.encode(np.asfortranarray(mask, np.uint8))
    assert compress(to_counts(mask)) == reference["counts"].decode()
    assert CocoResults().write(mask) == {"size": reference["size"], "counts": reference["counts"].decode()}


def test_results_are_loaded_by_coco_s_own_tools(tmp_path, capsys):
    results = CocoResults(category=3)
    (tmp_path / "results.json").write_text(results.of_runs({file: results.write(m) for file, m in MASKS.items()}))
    truth = COCO()
    truth.dataset = {"images": [{"id": number} for number in (9, 10, 100)], "categories": [{"id": 3}]}
    truth.createIndex()
    loaded = truth.loadRes(str(tmp_path / "results.json"))
    found = {one["image_id"]: one for one in loaded.dataset["annotations"]}
    assert found.keys() == {10, 100}  # the empty mask is no object
    assert {image: (one["area"], list(one["bbox"])) for image, one in found.items()} == {
        10: (3, [0, 0, 2, 2]),
        100: (4, [0, 0, 2, 2]),
    }
    assert found[10]["category_id"] == 3
    assert json.loads(results.of_runs({})) == []


# --- checking ---------------------------------------------------------------------------------------------------------

GOOD = "img,pixels\n1,2 3\n2,\n3,1 1 5 2\n4,\n5,9 1\n"


def checked(tmp_path, mine, size=(3, 4)):
    (tmp_path / "mine.csv").write_text(mine)
    (tmp_path / "sample.csv").write_text("img,pixels\n1,1 1\n2,1 1\n3,1 1\n4,1 1\n5,1 1\n")
    return problems(tmp_path / "mine.csv", tmp_path / "sample.csv", RunLengths(), size)


def test_a_good_submission_has_no_faults(tmp_path):
    assert checked(tmp_path, GOOD) == ([], pytest.approx([3 / 12, 0, 3 / 12, 0, 1 / 12]))
    assert checked(tmp_path, GOOD, size=None) == ([], [])


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("2,\n", ""), ["1 names are missing: 2"]),
        (("2,\n", "7,\n"), ["1 names are missing: 2", "1 names are foreign: 7"]),
        (("2,\n", "2,\n2,\n"), ["1 names are doubled: 2"]),
        (("1,2 3\n2,\n", "2,\n1,2 3\n"), []),
        (("2 3", "2"), ["1 masks cannot be read:", "  1: run lengths are pairs"]),
        (("2 3", "2 30"), ["1 masks cannot be read:", "  1: run lengths leave the image"]),
        (("1 1 5 2", "1 5 5 2"), ["1 masks cannot be read:", "  3: run lengths overlap"]),
    ],
)
def test_every_fault_of_a_submission_is_named(tmp_path, change, found):
    lines, _ = checked(tmp_path, GOOD.replace(*change))
    assert len(lines) == len(found)
    assert all(line.startswith(words) for line, words in zip(lines, found, strict=True))


@pytest.mark.parametrize(
    ("cell", "words"), [("1 5 3 5", "overlap"), ("0 3", "leave the image: pixels are counted from 1")]
)
def test_faults_are_found_without_the_size_too(tmp_path, cell, words):
    lines, shares = checked(tmp_path, GOOD.replace("2 3", cell), size=None)
    assert words in lines[1]
    assert shares == []


def test_a_file_that_is_no_submission_is_refused(tmp_path):
    for head in ("IMG,pixels", "img;pixels", "\ufeffimg,pixels"):
        with pytest.raises(BadInput, match="the first line must be"):
            checked(tmp_path, GOOD.replace("img,pixels", head).replace(",", ";" if ";" in head else ","))
    with pytest.raises(BadInput, match="the first line must be 'img,pixels'; got 'id,rle'"):
        checked(tmp_path, "id,rle\n1,1 1\n")
