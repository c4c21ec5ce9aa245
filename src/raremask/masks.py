"""Shapes in binary masks: boundary, neighbourhoods, skeletons.

Every function takes a mask of shape `(B, 1, H, W)` that holds 0 and 1, and returns a tensor of the same shape on the
same device. Unless said otherwise nothing carries a gradient: a mask is data.

Thinning is done image by image by OpenCV on the CPU, and by tensor operations elsewhere, so that a mask never leaves a
GPU and no step waits for it. Tests compare the two ways with each other.
"""

import math
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def edges(mask: Tensor) -> Tensor:
    """Pixels of either class with a pixel of the other class, or the frame of the image, above, below, left or right.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1.

    Returns:
        `(B, 1, H, W)` boolean.

    >>> edges(torch.tensor([[[[1, 1, 1], [1, 1, 1], [1, 1, 1]]]]))[0, 0].int()
    tensor([[1, 1, 1],
            [1, 0, 1],
            [1, 1, 1]], dtype=torch.int32)
    """
    mask = mask.bool()
    across, down = mask[..., 1:-1, 1:] == mask[..., 1:-1, :-1], mask[..., 1:, 1:-1] == mask[..., :-1, 1:-1]
    edge = torch.ones_like(mask)
    edge[..., 1:-1, 1:-1].logical_xor_(across[..., 1:] & across[..., :-1] & down[..., 1:, :] & down[..., :-1, :])
    return edge


@torch.no_grad()
def boundary(mask: Tensor) -> Tensor:
    """Foreground pixels with a background pixel above, below, left or right of them.

    Outside the image counts as background, so foreground that touches the frame has its boundary there.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1.

    Returns:
        `(B, 1, H, W)` boolean.

    >>> boundary(torch.ones(1, 1, 3, 3))[0, 0].int()
    tensor([[1, 1, 1],
            [1, 0, 1],
            [1, 1, 1]], dtype=torch.int32)
    """
    return edges(mask) & mask.bool()


@torch.no_grad()
def window_sum(mask: Tensor, size: int) -> Tensor:
    """Number of foreground pixels in a square window around each pixel; outside the image there are none.

    From running sums along both sides: exact, and its time does not grow with the window.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1, float32 or float64.
        size: Side of the window in pixels, odd.

    Returns:
        `(B, 1, H, W)` of the same type.

    >>> window_sum(torch.ones(1, 1, 1, 4), size=3)
    tensor([[[[2., 3., 3., 2.]]]])
    """
    reach, number = size // 2, mask.int()  # whole numbers, which a GPU adds up in the same way each time
    for dim in (-1, -2):
        sides = (reach + 1, reach) if dim == -1 else (0, 0, reach + 1, reach)
        running = F.pad(number, sides).cumsum(dim, dtype=torch.int32)
        length = mask.shape[dim]
        number = running.narrow(dim, size, length) - running.narrow(dim, 0, length)
    return number.to(mask.dtype)


CROSS = ((-1, 0), (0, -1), (0, 1), (1, 0))  # neighbours of a pixel: rows down, columns to the right
SQUARE = (*CROSS, (-1, -1), (-1, 1), (1, -1), (1, 1))


def dilate(soft: Tensor, neighbours: tuple[tuple[int, int], ...] = CROSS) -> Tensor:
    """Largest value of each pixel and its neighbours; a probability keeps its gradient.

    Args:
        soft: `(B, 1, H, W)`, any float type.
        neighbours: `CROSS` (four) or `SQUARE` (eight). Outside the image there is none.

    Returns:
        `(B, 1, H, W)`.
    """
    return _Largest.apply(soft, neighbours)


def erode(soft: Tensor, neighbours: tuple[tuple[int, int], ...] = CROSS) -> Tensor:
    """Smallest value of each pixel and its neighbours; a probability keeps its gradient.

    Args:
        soft: `(B, 1, H, W)`, any float type.
        neighbours: `CROSS` (four) or `SQUARE` (eight). Outside the image there is none.

    Returns:
        `(B, 1, H, W)`.
    """
    return -dilate(-soft, neighbours)


class _Largest(torch.autograd.Function):
    """The largest of several pixels, and its gradient to that one pixel; of equal ones to the first.

    The same as max-pooling, with neighbours compared as shifted images: on the CPU, forward and backward, a fifth of
    the time of two poolings for the cross, .7 of one pooling for the square (8 x 288 x 384, one thread).
    """

    @staticmethod
    def forward(ctx: Any, soft: Tensor, neighbours: tuple[tuple[int, int], ...]) -> Tensor:
        framed = F.pad(soft, (1, 1, 1, 1), value=-math.inf)
        largest, which = soft, torch.zeros_like(soft, dtype=torch.uint8)
        for number, offset in enumerate(neighbours, start=1):
            here = _shifted(framed, offset)
            if ctx.needs_input_grad[0]:
                which = torch.maximum(which, (here > largest).byte() * number)  # numbers rise: the last one stays
            largest = torch.maximum(largest, here)
        ctx.save_for_backward(which)
        ctx.neighbours = neighbours
        return largest

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (which,) = ctx.saved_tensors
        spread = F.pad(gradient * (which == 0), (1, 1, 1, 1))
        for number, offset in enumerate(ctx.neighbours, start=1):
            _shifted(spread, offset).addcmul_(gradient, (which == number).to(gradient.dtype))
        return spread[..., 1:-1, 1:-1], None


def _shifted(framed: Tensor, offset: tuple[int, int]) -> Tensor:
    """The part of an image with a frame of one pixel that lies at an offset from the image."""
    (down, right), (height, width) = offset, framed.shape[-2:]
    return framed[..., 1 + down : height - 1 + down, 1 + right : width - 1 + right]


def soft_skeleton(soft: Tensor, iterations: int) -> Tensor:
    """What openings take away while the foreground is eroded step by step; a probability keeps its gradient.

    The erosion of a step is the start of the next one's, so each is computed once, where the published code computes
    it twice, for the same numbers.

    Args:
        soft: `(B, 1, H, W)` in [0, 1], any float type.
        iterations: Erosions; at least the largest radius in pixels, or the middle of thick objects is missed.

    Returns:
        `(B, 1, H, W)` in [0, 1].

    Source:
        Shit et al. (2021), algorithm 1, https://arxiv.org/abs/2003.07311
    """
    skeleton = torch.zeros_like(soft)
    for _ in range(iterations + 1):
        eroded = erode(soft)
        lost = F.relu(soft - dilate(eroded, SQUARE))
        skeleton = skeleton + lost * (1 - skeleton)
        soft = eroded
    return skeleton


@torch.no_grad()
def skeleton(mask: Tensor) -> Tensor:
    """Lines of one pixel in the middle of the foreground, connected like it: parallel thinning.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1.

    Returns:
        `(B, 1, H, W)` boolean.

    Source:
        Guo & Hall (1989), algorithm A1, https://doi.org/10.1145/62065.62074

    >>> bar = torch.zeros(1, 1, 5, 7)
    >>> bar[..., 1:4, 1:6] = 1
    >>> skeleton(bar)[0, 0].int()
    tensor([[0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0],
            [0, 0, 1, 1, 1, 0, 0],
            [0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0]], dtype=torch.int32)
    """
    return _skeleton_on_cpu(mask) if mask.device.type == "cpu" else skeleton_by_convolution(mask)


@torch.library.custom_op("raremask::skeleton", mutates_args=())
def _skeleton_on_cpu(mask: Tensor) -> Tensor:
    left = np.ascontiguousarray((mask != 0).numpy()).view(np.uint8)
    weights, tables = (tensor.numpy() for tensor in _thinning("cpu"))
    for image in left[:, 0]:
        x, y, width, height = cv2.boundingRect(image)
        box = cv2.copyMakeBorder(image[y : y + height, x : x + width], 1, 1, 1, 1, cv2.BORDER_CONSTANT)
        before = None
        while before is None or cv2.countNonZero(box) < before:
            before = cv2.countNonZero(box)
            for table in tables:
                box &= cv2.LUT(cv2.filter2D(box, cv2.CV_8U, weights, borderType=cv2.BORDER_CONSTANT), table)
        image[y : y + height, x : x + width] = box[1:-1, 1:-1]
    return torch.from_numpy(left.view(bool))


@_skeleton_on_cpu.register_fake
def _(mask: Tensor) -> Tensor:
    return torch.empty(mask.shape, dtype=torch.bool, device=mask.device)


@torch.no_grad()
def skeleton_by_convolution(mask: Tensor) -> Tensor:
    """The same as :func:`skeleton`, on any device.

    A GPU is not asked whether anything is left to take away, which would wait for it. Each round takes a layer from
    every side, so half the image's smaller side is enough for objects; in noise full of holes a few pixels may stay.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1.

    Returns:
        `(B, 1, H, W)` boolean.
    """
    weights, tables = _thinning(mask.device)
    left = (mask != 0).float()
    for _ in range(min(mask.shape[-2:]) // 2 + 2):
        for table in tables:
            number = F.conv2d(left, weights[None, None], padding=1)  # whole but for rounding, even in bfloat16
            left = left * table[number.round().long()]
    return left != 0


def _thinning(device: torch.device | str) -> tuple[Tensor, Tensor]:
    """What thinning goes by, made on the device itself, which copies from the host would make wait.

    Returns:
        `(3, 3)` float32: the weights that code a pixel's eight neighbours, clockwise from the north, in a number; and
        `(2, 256)` uint8: whether a pixel of that number stays, in the first and in the second half of a round.
    """
    n, ne, e, se, s, sw, w, nw = (1 << torch.arange(8, device=device)).float()
    weights = torch.stack([nw, n, ne, w, torch.zeros_like(n), e, sw, s, se]).view(3, 3)
    number = torch.arange(256, device=device)
    n, ne, e, se, s, sw, w, nw = ring = [(number >> bit & 1).bool() for bit in range(8)]
    crossings = torch.stack([~ring[i] & (ring[i + 1] | ring[(i + 2) % 8]) for i in (0, 2, 4, 6)]).sum(dim=0)
    pairs = [torch.stack([ring[i] | ring[i + turn] for i in (0, 2, 4, 6)]).sum(dim=0) for turn in (1, -1)]
    neighbours = torch.minimum(*pairs)
    needed = ~((crossings == 1) & (neighbours >= 2) & (neighbours <= 3))
    return weights, torch.stack([needed | (n | ne | ~se) & e, needed | (s | sw | ~nw) & w]).byte()
