"""Distances on a GPU, as kernels of our own in Triton, which PyTorch brings along where it has CUDA (but on Windows).

As tensor operations the proximity took 13 to 16 times as long (sigma 2, H200): every shift of a mask was an operation
that reads and writes all of it. :mod:`raremask.distances` says what is computed, and warns and falls back on those
where Triton does not work.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512  # pixels that a program takes care of; it goes on until all of them have found what is nearest
STEPS = 4  # between two looks whether they have


@triton.jit
def _nearest(  # type: ignore[no-untyped-def]  # Triton takes annotations for types of its own
    source,
    out,
    pixels,
    length,
    stride,
    reach,
    factor,
    OF_MASK: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """For each pixel the least of what its line holds plus the square of the way there."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    position = (place // stride) % length
    inside = place < pixels
    least = tl.load(source + place, mask=inside, other=1 if OF_MASK else 0)
    if OF_MASK:
        least = tl.where(least != 0, 0.0, float("inf"))
    step = 1
    while (step <= reach) & (step * step < tl.max(least, 0)):
        for more in tl.static_range(STEPS):
            way = step + more
            back = inside & (position >= way)
            ahead = inside & (position + way < length)
            if OF_MASK:
                before = tl.load(source + place - way * stride, mask=back, other=0) != 0
                after = tl.load(source + place + way * stride, mask=ahead, other=0) != 0
                found = tl.where(before | after, 0.0, float("inf"))
            else:
                before = tl.load(source + place - way * stride, mask=back, other=float("inf"))
                after = tl.load(source + place + way * stride, mask=ahead, other=float("inf"))
                found = tl.minimum(before, after)
            least = tl.minimum(least, found + (way * way).to(tl.float32))
        step += STEPS
    if GAUSSIAN:
        least = tl.exp(least * factor)
    tl.store(out + place, least, mask=inside)


def distance(mask: Tensor) -> Tensor:
    """Return what :func:`raremask.distances.distance_to_foreground` does for `mask` `(B, 1, H, W)`."""
    return _along_both(mask, max(mask.shape[-2:]), 0.0).sqrt_()


def proximity(mask: Tensor, sigma: float) -> Tensor:
    """Return what :func:`raremask.distances.proximity` does for `mask` `(B, 1, H, W)`.

    Past 5.8 sigma the Gaussian is below 5e-8 and left out.
    """
    return _along_both(mask, math.ceil(5.8 * sigma), -1 / (2 * sigma**2))


def _along_both(mask: Tensor, reach: int, factor: float) -> Tensor:
    """The squared distance, or with a factor its exponential: along the rows, then along the columns."""
    source, (height, width) = mask.contiguous(), mask.shape[-2:]
    programs = (triton.cdiv(source.numel(), BLOCK),)
    with torch.cuda.device_of(mask):
        for first, length, stride in ((True, width, 1), (False, height, width)):
            out = torch.empty(mask.shape, dtype=torch.float32, device=mask.device)
            settings = {"OF_MASK": first, "GAUSSIAN": not first and factor != 0, "BLOCK": BLOCK, "STEPS": STEPS}
            _nearest[programs](source, out, out.numel(), length, stride, min(reach, length - 1), factor, **settings)
            source = out
    return source
