import numpy as np
import pytest

from raremask import BadInput
from raremask.runlengths import RunLengths
from raremask.submission import Submission, collapse

MASKS = {"10.tif": np.array([[0, 1], [1, 1]], bool), "9.tif": np.zeros((2, 2), bool), "100.tif": np.ones((2, 2), bool)}


def test_numbers_are_sorted_as_numbers_and_words_as_words():
    numbers = Submission(["img", "pixels"], "number", RunLengths()).text(MASKS)
    assert numbers == "img,pixels\n9,\n10,2 3\n100,1 4\n"
    stems = Submission(["id", "rle"], "stem", RunLengths(empty="-")).text(MASKS)
    assert stems == "id,rle\n10,2 3\n100,1 4\n9,-\n"
    files = Submission(["id", "rle"], "file", RunLengths(start=0, relative=True, empty="-1")).text(MASKS)
    assert files == "id,rle\n10.tif,1 3\n100.tif,0 4\n9.tif,-1\n"


def test_names_that_do_not_do_are_refused():
    table = Submission(["img", "pixels"], "number", RunLengths())
    with pytest.raises(BadInput, match=r"scan.tif: the submission numbers its images, and 'scan' is no number"):
        table.text({"scan.tif": MASKS["9.tif"]})
    with pytest.raises(BadInput, match="two images would be called 9"):
        table.text({"9.tif": MASKS["9.tif"], "09.tif": MASKS["9.tif"]})
    with pytest.raises(ValueError, match="header has two columns, name is stem, file, number"):
        Submission(["img"], "stem", RunLengths())
    with pytest.raises(ValueError, match=r"got .* and 'id'"):
        Submission(["img", "pixels"], "id", RunLengths())


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ([0, 0, 0, 0], "4 of 4 masks are empty"),
        ([1, 1, 1, 0.1], "3 of 4 masks are white"),
        ([0.2, 0.2, 0.2, 0.2], "all 4 masks have the same area"),
        ([0, 0, 0.1, 0.2], ""),
        ([0.0, 0.0], ""),
        ([], ""),
    ],
)
def test_a_collapse_is_named(shares, words):
    assert collapse(shares).startswith(words)
    assert bool(collapse(shares)) == bool(words)
