import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from raremask.postprocess import Chain, FillHoles, LargestComponent, MinArea

masks = arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))
EIGHT = np.ones((3, 3))


@given(masks)
def test_holes_are_filled_as_scipy_fills_them(mask):
    assert np.array_equal(FillHoles()(mask), ndimage.binary_fill_holes(mask))


@given(masks, st.integers(1, 6))
def test_only_holes_up_to_a_size_are_filled(mask, pixels):
    filled = FillHoles(pixels)(mask)
    labels, number = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
    for hole in range(1, number + 1):
        assert filled[labels == hole].all() == ((labels == hole).sum() <= pixels)
    assert not (filled & ~mask)[labels == 0].any()


@given(masks, st.integers(1, 6))
def test_small_pieces_are_dropped_and_others_stay_whole(mask, pixels):
    kept = MinArea(pixels)(mask)
    labels, number = ndimage.label(mask, EIGHT)
    for piece in range(1, number + 1):
        assert kept[labels == piece].all() == kept[labels == piece].any() == ((labels == piece).sum() >= pixels)
    assert not kept[~mask].any()


@given(masks)
def test_the_largest_piece_stays_alone(mask):
    kept = LargestComponent()(mask)
    labels, number = ndimage.label(mask, EIGHT)
    assert kept.sum() == (max(np.bincount(labels.ravel())[1:]) if number else 0)
    assert ndimage.label(kept, EIGHT)[1] == min(1, number)
    assert not (kept & ~mask).any()


@given(masks)
def test_postprocessing_twice_changes_nothing_and_the_given_mask_stays(mask):
    before = mask.copy()
    for step in (FillHoles(), FillHoles(2), MinArea(3), LargestComponent(), Chain({})):
        once = step(mask)
        assert once.dtype == bool
        assert np.array_equal(step(once), once)
        assert np.array_equal(mask, before)


def test_a_chain_goes_in_its_order():
    ring = np.zeros((9, 9), bool)
    ring[1:6, 1:6] = True
    ring[2:5, 2:5] = False  # 16 pixels around a hole of 9
    block = np.zeros((9, 9), bool)
    block[7:9, 0:9] = True  # 18 pixels
    holes, largest = FillHoles(), LargestComponent()
    assert np.array_equal(Chain({"a": largest, "b": holes})(ring | block), block)
    assert Chain({"a": holes, "b": largest})(ring | block)[1:6, 1:6].all()


def test_impossible_areas_are_refused():
    with pytest.raises(ValueError, match="pixels must be 1 or more; got 0"):
        MinArea(0)
    with pytest.raises(ValueError, match="or null for all holes; got 0"):
        FillHoles(0)
