import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from skimage.morphology import thin

from raremask import masks
from raremask.losses import overlap  # noqa: F401  registers an operation that is tested here with the others

sparse = arrays.arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 1))


def batch(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None]


@given(sparse)
def test_the_boundary_is_what_an_erosion_by_a_cross_takes_away(mask):
    cross = ndimage.generate_binary_structure(2, 1)
    expected = mask - ndimage.binary_erosion(mask, cross, border_value=0)
    assert np.array_equal(masks.boundary(batch(mask))[0, 0].numpy(), expected == 1)


@given(sparse)
def test_the_distance_is_the_smallest_over_all_foreground_pixels(mask):
    distance = masks.distance_to_foreground(batch(mask))[0, 0].numpy()
    foreground = np.argwhere(mask)
    if len(foreground) == 0:
        assert np.isinf(distance).all()
        return
    every_pixel = np.argwhere(np.ones_like(mask))
    expected = np.linalg.norm(every_pixel[:, None] - foreground[None], axis=2).min(axis=1)
    np.testing.assert_allclose(distance.ravel(), expected, atol=1e-5)


@given(arrays.arrays(np.uint8, (3, 1, 12, 17), elements=st.integers(0, 1)), st.integers(0, 2))
def test_the_distance_for_the_gpu_equals_that_of_the_cpu(mask, emptied):
    mask[:emptied] = 0
    mask = torch.from_numpy(mask)
    torch.testing.assert_close(masks.distance_by_minimum(mask), masks.distance_to_foreground(mask))


def test_the_distance_for_the_gpu_goes_chunk_by_chunk_through_a_large_image():
    mask = torch.zeros(1, 1, 700, 500)
    mask[0, 0, 650, 20] = mask[0, 0, 3, 480] = 1  # 700 * 700 * 500 is more than 2^26
    torch.testing.assert_close(masks.distance_by_minimum(mask), masks.distance_to_foreground(mask))


@given(sparse)
def test_the_signed_distance_is_scipys_outside_and_one_less_inside(mask):
    signed = masks.signed_distance(batch(mask))[0, 0].numpy()
    if mask.min() == mask.max():
        assert not signed.any()
        return
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(1 - mask)
    np.testing.assert_allclose(signed, np.where(mask, 1 - inside, outside), atol=1e-5)
    np.testing.assert_allclose(masks.distance_to_other_class(batch(mask))[0, 0], inside + outside, atol=1e-5)


@pytest.mark.parametrize("width", [2, 4, 10])
def test_the_thickness_of_a_long_bar_is_its_width(width):
    bar = torch.zeros(1, 1, 40, 400)
    bar[..., 10 : 10 + width, :] = 1
    assert masks.thickness(bar).item() == pytest.approx(width)


def test_the_thickness_of_a_disc_is_two_thirds_of_its_diameter():
    y, x = np.mgrid[:101, :101]
    disc = batch(((y - 50) ** 2 + (x - 50) ** 2 <= 40.5**2).astype(np.uint8))
    assert masks.thickness(disc).item() == pytest.approx(2 / 3 * 81, rel=0.02)


def test_an_image_of_one_class_has_no_thickness():
    assert masks.thickness(torch.stack([torch.zeros(1, 5, 5), torch.ones(1, 5, 5)])).isnan().all()


def shapes(seed: int, size: tuple[int, int] = (40, 50)) -> np.ndarray:
    """A few discs and lines, some of them across the frame."""
    random, canvas = np.random.default_rng(seed), np.zeros(size, np.uint8)
    for _ in range(4):
        ends = random.integers(-5, 50, (2, 2)).tolist()
        cv2.line(canvas, *ends, 1, int(random.integers(1, 7)))
        cv2.circle(canvas, ends[0], int(random.integers(1, 14)), 1, -1)
    return canvas


@pytest.mark.parametrize("operation", ["distance", "distance_to_other_class", "proximity", "skeleton", "worst_first"])
def test_what_the_compiler_is_told_of_an_operation_is_true(operation):
    mask = batch(shapes(0)).transpose(2, 3)  # not contiguous
    arguments = {"proximity": (mask, 2.0), "worst_first": (torch.rand(3, 50),)}.get(operation, (mask,))
    torch.library.opcheck(getattr(torch.ops.raremask, operation).default, arguments)


@given(sparse, st.sampled_from([1, 3, 31]))
def test_the_window_s_sum_is_scipys(mask, size):
    expected = ndimage.convolve(mask.astype(float), np.ones((size, size)), mode="constant")
    assert np.array_equal(masks.window_sum(batch(mask).float(), size)[0, 0].numpy(), expected)


@given(arrays.arrays(np.float32, (7, 9), elements=st.floats(0, 1, width=32)))
def test_dilation_is_scipys_with_and_without_a_gradient(soft):
    expected = ndimage.grey_dilation(soft, footprint=ndimage.generate_binary_structure(2, 1), mode="constant", cval=-1)
    for requires_grad in (False, True):
        tensor = torch.from_numpy(soft)[None, None].requires_grad_(requires_grad)
        assert np.array_equal(masks.dilate(tensor)[0, 0].detach().numpy(), expected)
        assert np.array_equal(-masks.erode(-tensor)[0, 0].detach().numpy(), expected)


@pytest.mark.parametrize("seed", range(30))
def test_the_skeleton_is_scikit_images_thinning(seed):
    mask = shapes(seed)
    expected = thin(mask)
    assert np.array_equal(masks.skeleton(batch(mask))[0, 0].numpy(), expected)
    assert np.array_equal(masks.skeleton_by_convolution(batch(mask))[0, 0].numpy(), expected)


@given(sparse)
def test_the_skeleton_lies_in_the_mask_and_is_connected_like_it(mask):
    skeleton = masks.skeleton(batch(mask))[0, 0].numpy()
    assert not (skeleton & (mask == 0)).any()
    touching = np.ones((3, 3))
    assert ndimage.label(skeleton, touching)[1] == ndimage.label(mask, touching)[1]


def test_the_skeleton_leaves_its_mask_as_it_is():
    mask = batch(shapes(0)).bool()
    before = mask.clone()
    masks.skeleton(mask)
    assert torch.equal(mask, before)


def test_the_soft_skeleton_of_a_bar_is_its_middle():
    bar = torch.zeros(1, 1, 9, 30)
    bar[..., 3:6, 4:26] = 1
    middle = torch.zeros_like(bar)
    middle[..., 4, 5:25] = 1  # without the ends, which an opening by a square keeps... but for the corners' ridges
    skeleton = masks.soft_skeleton(bar, iterations=2)
    assert torch.equal(skeleton * middle, middle)
    assert skeleton[..., 8:22].sum() == 14


@given(sparse, st.sampled_from([0.5, 2.0, 4.0]))
def test_the_filter_for_the_gpu_equals_the_distance_transform_of_the_cpu(mask, sigma):
    on_cpu = masks.proximity(batch(mask), sigma)
    by_filter = masks.proximity_by_filter(batch(mask), sigma)
    torch.testing.assert_close(by_filter, on_cpu, atol=2e-6, rtol=0)


def test_images_of_a_batch_do_not_see_each_other():
    mask = torch.zeros(3, 1, 9, 9)
    mask[1, 0, 4, 4] = 1
    for near in (masks.proximity(mask, 2.0), masks.proximity_by_filter(mask, 2.0)):
        assert near[0].sum() == 0
        assert near[2].sum() == 0
        assert near[1].max() == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_a_line_of_pixels_has_a_proximity_too(size):
    mask = torch.zeros(1, 1, *size)
    mask[0, 0, 0, 0] = 1
    torch.testing.assert_close(masks.proximity_by_filter(mask, 2.0), masks.proximity(mask, 2.0))


@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_come_back_as_they_were(mask):
    assert np.array_equal(masks.from_run_lengths(masks.to_run_lengths(mask), mask.shape), mask)


def test_run_lengths_go_down_the_columns_and_count_from_one():
    mask = np.zeros((3, 4), bool)
    mask[2, 0] = mask[0, 1] = mask[1, 3] = True  # pixels 3 and 4 run on across the column's end; the last is number 11
    assert masks.to_run_lengths(mask) == "3 2 11 1"


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
        masks.from_run_lengths(runs, (3, 4))
