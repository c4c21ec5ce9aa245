import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from skimage.morphology import thin

from raremask import (
    distances,  # noqa: F401  registers operations that are tested here with the others
    masks,
)
from raremask.losses import overlap  # noqa: F401  likewise

sparse = arrays.arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 1))


def batch(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None]


@given(sparse)
def test_the_boundary_is_what_an_erosion_by_a_cross_takes_away(mask):
    cross = ndimage.generate_binary_structure(2, 1)
    outlines = [one - ndimage.binary_erosion(one, cross, border_value=0) for one in (mask, 1 - mask)]
    assert np.array_equal(masks.boundary(batch(mask))[0, 0].numpy(), outlines[0] == 1)
    assert np.array_equal(masks.edges(batch(mask))[0, 0].numpy(), sum(outlines) == 1)  # of both classes


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
