import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from raremask import runlengths


@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_come_back_as_they_were(mask):
    assert np.array_equal(runlengths.from_run_lengths(runlengths.to_run_lengths(mask), mask.shape), mask)


def test_run_lengths_go_down_the_columns_and_count_from_one():
    mask = np.zeros((3, 4), bool)
    mask[2, 0] = mask[0, 1] = mask[1, 3] = True  # pixels 3 and 4 run on across the column's end; the last is number 11
    assert runlengths.to_run_lengths(mask) == "3 2 11 1"


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("1", "pairs of a start and a length"),
        ("1 x", "pairs of a start and a length"),
        ("-1 2", "pairs of a start and a length"),
        ("0 1", "leave the image: pixels are counted from 1 to 12"),
        ("12 2", "leave the image"),
        ("5 0", "leave the image"),
        ("5 3 7 2", "overlap"),
    ],
)
def test_impossible_run_lengths_are_refused(runs, message):
    with pytest.raises(ValueError, match=message):
        runlengths.from_run_lengths(runs, (3, 4))
