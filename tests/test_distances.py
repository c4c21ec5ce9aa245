import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

import raremask
from raremask import distances

sparse = arrays.arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 1))


def batch(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None]


@given(sparse)
def test_the_distance_is_the_smallest_over_all_foreground_pixels(mask):
    distance = distances.distance_to_foreground(batch(mask))[0, 0].numpy()
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
    torch.testing.assert_close(distances.distance_by_minimum(mask), distances.distance_to_foreground(mask))


def test_the_distance_for_the_gpu_goes_chunk_by_chunk_through_a_large_image():
    mask = torch.zeros(1, 1, 700, 500)
    mask[0, 0, 650, 20] = mask[0, 0, 3, 480] = 1  # 700 * 700 * 500 is more than 2^26
    torch.testing.assert_close(distances.distance_by_minimum(mask), distances.distance_to_foreground(mask))


@given(sparse)
def test_the_signed_distance_is_scipys_outside_and_one_less_inside(mask):
    signed = distances.signed_distance(batch(mask))[0, 0].numpy()
    if mask.min() == mask.max():
        assert not signed.any()
        return
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(1 - mask)
    np.testing.assert_allclose(signed, np.where(mask, 1 - inside, outside), atol=1e-5)
    np.testing.assert_allclose(distances.distance_to_other_class(batch(mask))[0, 0], inside + outside, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 50), (64, 64), (96, 96), (100, 131), (130, 140)])
def test_the_last_digit_does_not_depend_on_where_the_result_lies_in_memory(shape):
    mask = (np.random.default_rng(0).random(shape) < 3 / np.prod(shape)).astype(np.uint8)
    mask[3, 5] = 1
    outside, inside = (ndimage.distance_transform_edt(one) for one in (1 - mask, mask))
    np.testing.assert_array_equal(distances.distance_to_foreground(batch(mask))[0, 0], outside.astype(np.float32))
    both = (outside + inside).astype(np.float32)  # one of them is 0
    np.testing.assert_array_equal(distances.distance_to_other_class(batch(mask))[0, 0], both)
    first = distances.proximity(batch(mask), sigma=3.0)
    held = []
    for size in range(1, 400, 7):  # every result lies elsewhere
        held += [np.empty(size, np.uint8), distances.proximity(batch(mask), sigma=3.0)]
        assert torch.equal(held[-1], first)


@pytest.mark.parametrize("width", [2, 4, 10])
def test_the_thickness_of_a_long_bar_is_its_width(width):
    bar = torch.zeros(1, 1, 40, 400)
    bar[..., 10 : 10 + width, :] = 1
    assert distances.thickness(bar).item() == pytest.approx(width)


def test_the_thickness_of_a_disc_is_two_thirds_of_its_diameter():
    y, x = np.mgrid[:101, :101]
    disc = batch(((y - 50) ** 2 + (x - 50) ** 2 <= 40.5**2).astype(np.uint8))
    assert distances.thickness(disc).item() == pytest.approx(2 / 3 * 81, rel=0.02)


def test_an_image_of_one_class_has_no_thickness():
    assert distances.thickness(torch.stack([torch.zeros(1, 5, 5), torch.ones(1, 5, 5)])).isnan().all()


@given(sparse, st.sampled_from([0.5, 2.0, 4.0]))
def test_the_filter_for_the_gpu_equals_the_distance_transform_of_the_cpu(mask, sigma):
    on_cpu = distances.proximity(batch(mask), sigma)
    by_filter = distances.proximity_by_filter(batch(mask), sigma)
    torch.testing.assert_close(by_filter, on_cpu, atol=2e-6, rtol=0)


def test_images_of_a_batch_do_not_see_each_other():
    mask = torch.zeros(3, 1, 9, 9)
    mask[1, 0, 4, 4] = 1
    for near in (distances.proximity(mask, 2.0), distances.proximity_by_filter(mask, 2.0)):
        assert near[0].sum() == 0
        assert near[2].sum() == 0
        assert near[1].max() == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_a_line_of_pixels_has_a_proximity_too(size):
    mask = torch.zeros(1, 1, *size)
    mask[0, 0, 0, 0] = 1
    torch.testing.assert_close(distances.proximity_by_filter(mask, 2.0), distances.proximity(mask, 2.0))


COMPARE = """
import numpy as np, torch
from raremask import distances, kernels

random = np.random.default_rng(0)
cases = (("float32", (1, 1)), ("float32", (1, 9)), ("uint8", (9, 1)), ("bool", (13, 17)), ("float32", (22, 30)))
for kind, size in cases:
    mask = torch.from_numpy(random.random((4, 1, *size)) < 0.05)
    mask[0], mask[1] = False, True
    there = mask.to(getattr(torch, kind)).to(DEVICE)
    far = kernels.distance(there).cpu()  # PyTorch's root is off in the last digit on some CPUs
    torch.testing.assert_close(far, distances.distance_to_foreground(mask), atol=0, rtol=2e-7)
    for sigma in (0.5, 3.0):
        near = kernels.proximity(there, sigma).cpu()
        torch.testing.assert_close(near, distances.proximity(mask, sigma), atol=2e-7, rtol=0)
print("equal")
"""


GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_the_kernels_on_the_gpu_give_what_the_cpu_does(device):
    pytest.importorskip("triton", reason="this PyTorch brings no Triton")
    # without a GPU Triton's interpreter computes them; it must be chosen before they are made
    way = {"TRITON_INTERPRET": "1"} if device == "cpu" else {}
    command = [sys.executable, "-c", f"DEVICE = {device!r}{COMPARE}"]
    done = subprocess.run(command, env=os.environ | way, capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr


def test_where_triton_is_missing_or_has_no_compiler_tensor_operations_are_taken_and_it_is_said(monkeypatch):
    def uncompiled(mask):
        raise RuntimeError("Failed to find C compiler.\nSet CC.")

    broken = SimpleNamespace(distance=uncompiled)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: size)  # on a GPU that may not be there
    for module, reason in ((None, "ModuleNotFoundError: .*"), (broken, "RuntimeError: Failed to find C compiler.")):
        monkeypatch.setitem(sys.modules, "raremask.kernels", module)
        monkeypatch.setattr(raremask, "kernels", module, raising=False)
        if module is None:
            monkeypatch.delattr(raremask, "kernels")
        with pytest.warns(UserWarning, match=rf"\({reason}\): they are computed by tensor operations"):
            assert distances._kernels.__wrapped__() is None
