import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage
from scipy.spatial.distance import cdist

from raremask.metrics import surface
from raremask.metrics.surface import boundary_iou, outline, outline_distances, surface_scores

sides = st.tuples(st.integers(1, 12), st.integers(1, 12))
masks = sides.flatmap(lambda shape: st.tuples(arrays.arrays(bool, shape), arrays.arrays(bool, shape)))


def by_force(prediction, mask, tolerance):
    """The definitions, point by point."""
    lines = [np.argwhere(half & ~ndimage.binary_erosion(half)) for half in (prediction, mask)]
    apart = cdist(*lines)
    there, back = apart.min(axis=1), apart.min(axis=0)
    both = np.concatenate([there, back])
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return {"hd95": hd95, "asd": both.mean(), "nsd": (both <= tolerance).mean()}


@given(masks, st.sampled_from([0.0, 1.0, 1.5, 3.0]), st.sampled_from([0, 10**6]))
def test_surface_scores_equal_the_definition_point_by_point(pair, tolerance, few):
    prediction, mask = pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surface, "FEW", few)  # by a tree of points, and by a map of distances
        if prediction.any() and mask.any():
            expected = by_force(prediction, mask, tolerance)
            assert surface_scores(prediction, mask, tolerance) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.filterwarnings("ignore:.*")  # MONAI's own
@pytest.mark.parametrize("seed", range(6))
def test_surface_scores_equal_monai_where_both_have_foreground(seed):
    random = np.random.default_rng(seed)
    prediction, mask = (ndimage.gaussian_filter(random.normal(size=(70, 90)), 4) > 0.03 for _ in range(2))
    ours = surface_scores(prediction, mask, tolerance=2)
    pair = [torch.from_numpy(half)[None, None] for half in (prediction, mask)]
    assert ours["hd95"] == pytest.approx(
        compute_hausdorff_distance(*pair, include_background=True, percentile=95).item()
    )
    assert ours["nsd"] == pytest.approx(compute_surface_dice(*pair, [2.0], include_background=True).item())
    theirs = compute_average_surface_distance(*pair, include_background=True, symmetric=True).item()
    assert ours["asd"] == pytest.approx(theirs)


@given(masks)
def test_surface_scores_do_not_care_which_is_the_truth_nor_where_the_image_is_cut(pair):
    prediction, mask = pair
    scores = surface_scores(prediction, mask)
    assert surface_scores(mask, prediction) == pytest.approx(scores)
    if prediction.any() and mask.any():
        room = [np.pad(half, 1) for half in pair]
        further = [np.pad(half, ((5, 0), (0, 7))) for half in room]
        assert surface_scores(*further) == pytest.approx(surface_scores(*room))


@given(masks)
def test_a_mask_has_no_distance_to_itself(pair):
    assert surface_scores(pair[0], pair[0]) == {"hd95": 0.0, "asd": 0.0, "nsd": 1.0}
    assert boundary_iou(pair[0], pair[0]) == 1.0


def test_a_missed_and_a_made_up_object_are_as_far_as_the_image_allows():
    nothing, something = np.zeros((2, 30, 40), bool)
    something[3, 3] = True
    for pair in ((nothing, something), (something, nothing)):
        assert surface_scores(*pair) == {"hd95": 50.0, "asd": 50.0, "nsd": 0.0}
        assert boundary_iou(*pair) == 0.0
    assert surface_scores(nothing, nothing) == {"hd95": 0.0, "asd": 0.0, "nsd": 1.0}
    assert boundary_iou(nothing, nothing) == 1.0
    with pytest.raises(ValueError, match="both masks must have foreground"):
        outline_distances(nothing, something)


def test_a_square_moved_by_three_pixels_worked_by_hand():
    one, other = np.zeros((2, 40, 40), bool)
    one[10:20, 10:20] = True
    other[10:20, 13:23] = True
    scores = surface_scores(one, other, tolerance=0)
    assert scores["hd95"] == 3
    # of 36 outline pixels each, the 7 shared columns of the upper and lower edge lie on the other outline: 14 of 36
    assert scores["nsd"] == pytest.approx(14 / 36)
    assert surface_scores(one, other, tolerance=3)["nsd"] == 1


@given(masks, st.integers(1, 4))
def test_boundary_iou_equals_bands_of_repeated_erosion(pair, width):
    prediction, mask = pair
    framed = [np.pad(half, width) for half in pair]
    square = np.ones((3, 3), bool)
    bands = [half & ~ndimage.binary_erosion(half, square, iterations=width) for half in framed]
    union = (bands[0] | bands[1]).sum()
    expected = (bands[0] & bands[1]).sum() / union if union else 1.0
    assert boundary_iou(prediction, mask, width) == pytest.approx(expected)


def test_boundary_iou_sees_what_iou_hardly_does():
    mask = np.zeros((200, 200), bool)
    mask[20:180, 20:180] = True
    smaller = np.zeros_like(mask)
    smaller[23:177, 23:177] = True
    iou = (mask & smaller).sum() / (mask | smaller).sum()
    assert iou > 0.92
    assert boundary_iou(smaller, mask) < 0.5  # 2 % of the diagonal: a band of 6 pixels, 3 of them lost


def test_the_outline_has_the_frame_of_the_image_in_it():
    assert outline(np.ones((4, 5), bool)).sum() == 4 * 5 - 2 * 3
    assert not outline(np.zeros((4, 5), bool)).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": np.zeros((2, 3), bool)}, r"one shape; got \(2, 2\) and \(2, 3\)"),
        ({"tolerance": -1}, "tolerance must be 0 or more"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        surface_scores(**{"prediction": np.zeros((2, 2), bool), "mask": np.zeros((2, 2), bool)} | arguments)
    with pytest.raises(ValueError, match="width must be 1 or more pixels; got 0"):
        boundary_iou(np.zeros((2, 2), bool), np.zeros((2, 2), bool), width=0)
