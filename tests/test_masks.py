import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from raremask import masks

sparse = arrays.arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 1))


def batch(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None]


@given(sparse)
def test_the_boundary_is_what_an_erosion_by_a_cross_takes_away(mask):
    cross = ndimage.generate_binary_structure(2, 1)
    expected = mask - ndimage.binary_erosion(mask, cross, border_value=0)
    assert np.array_equal(masks.boundary(batch(mask))[0, 0].numpy(), expected)


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
