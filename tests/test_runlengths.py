import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from raremask.runlengths import RunLengths, from_counts, runs, to_counts

masks = arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))
styles = st.builds(
    RunLengths,
    order=st.sampled_from(["columns", "rows"]),
    start=st.sampled_from([0, 1]),
    relative=st.booleans(),
    empty=st.sampled_from(["", "-1", "-"]),
)


@given(masks, styles)
def test_run_lengths_come_back_as_they_were(mask, style):
    assert np.array_equal(style.read(style.write(mask), mask.shape), mask)


@given(masks)
def test_counts_equal_pycocotools_and_come_back(mask):
    counts = to_counts(mask)
    assert sum(counts) == mask.size
    assert np.array_equal(from_counts(counts, mask.shape), mask)
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert coco.frPyObjects({"size": list(mask.shape), "counts": counts}, *mask.shape) == theirs


@given(masks, styles)
def test_run_lengths_say_what_a_loop_over_pixels_says(mask, style):
    flat = mask.ravel(order="F" if style.order == "columns" else "C").tolist()
    expected, last, position = [], 0, 0
    while position < len(flat):
        if not flat[position]:
            position += 1
            continue
        end = position
        while end < len(flat) and flat[end]:
            end += 1
        first = position - last if style.relative else position
        expected += [first + (style.start if not style.relative or not expected else 0), end - position]
        last = position = end
    assert style.write(mask) == (" ".join(map(str, expected)) or style.empty)


def test_competitions_write_the_same_mask_differently():
    mask = np.zeros((3, 4), bool)
    mask[2, 0] = mask[0, 1] = mask[1, 3] = True  # down the columns pixels 3 and 4 run on; the last is number 11
    assert RunLengths().write(mask) == "3 2 11 1"  # ultrasound nerve
    assert RunLengths(order="rows").write(mask) == "2 1 8 2"
    assert RunLengths(start=0, relative=True, empty="-1").write(mask) == "2 2 6 1"  # SIIM: 2 before, 6 between
    assert RunLengths(start=0, relative=True, empty="-1").write(np.zeros((3, 4), bool)) == "-1"
    assert RunLengths(empty=-1).write(np.zeros((3, 4), bool)) == "-1"  # as a command line gives it
    assert RunLengths(empty=None).write(np.zeros((3, 4), bool)) == ""  # and nothing
    assert RunLengths(empty="-").read("-", (3, 4)).sum() == 0
    assert runs(mask).tolist() == [[2, 2], [10, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1", "pairs of a start and a length"),
        ("1 x", "pairs of a start and a length"),
        ("-1 2", "pairs of a start and a length"),
        ("1 ٣", "pairs of a start and a length"),
        ("0 1", "leave the image: pixels are counted from 1 to 12"),
        ("12 2", "leave the image"),
        ("5 0", "leave the image"),
        ("1 99999999999999999999999", "leave the image: 9999"),
        ("5 3 7 2", "overlap"),
    ],
)
def test_impossible_run_lengths_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        RunLengths().read(text, (3, 4))


def test_nothing_is_no_mask_where_something_stands_for_an_empty_one():
    with pytest.raises(ValueError, match="an empty mask is written as -1, and here is nothing"):
        RunLengths(empty="-1").read("", (3, 4))


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_nothing_is_an_empty_mask_where_nothing_stands_for_one(text):
    assert not RunLengths().read(text, (3, 4)).any()


def test_impossible_styles_and_counts_are_refused():
    with pytest.raises(ValueError, match="order must be columns or rows, start 0 or 1; got 'F' and 1"):
        RunLengths(order="F")
    with pytest.raises(ValueError, match="got 'columns' and 2"):
        RunLengths(start=2)
    for counts in ([3, 4], [-1, 13], []):
        with pytest.raises(ValueError, match="must add up to 12 pixels"):
            from_counts(counts, (3, 4))
