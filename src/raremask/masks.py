"""Geometry of binary masks: boundary, distances, proximity, skeleton.

Every function takes a mask of shape `(B, 1, H, W)` that holds 0 and 1, and returns a tensor of the same shape on the
same device. Unless said otherwise nothing carries a gradient: a mask is data.

Distances and thinning are computed image by image by OpenCV on the CPU, and by tensor operations elsewhere, so that a
mask never leaves a GPU and no step waits for it. Tests compare the two ways with each other.
"""

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TINIEST = 1e-37  # just above the smallest normal float32


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
    mask = mask.bool()
    inside = mask[..., 1:-1, 1:-1] & mask[..., :-2, 1:-1]
    for neighbour in (mask[..., 2:, 1:-1], mask[..., 1:-1, :-2], mask[..., 1:-1, 2:]):
        inside &= neighbour
    edge = mask.clone()
    edge[..., 1:-1, 1:-1] ^= inside
    return edge


@torch.no_grad()
def distance_to_foreground(mask: Tensor) -> Tensor:
    """Euclidean distance in pixels from each pixel to the nearest foreground pixel of its image, exact.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1.

    Returns:
        `(B, 1, H, W)` float32: 0 on the foreground, infinity everywhere in an image without foreground.

    >>> distance_to_foreground(torch.tensor([[[[1, 0, 0]]]]))
    tensor([[[[0., 1., 2.]]]])
    """
    return _distance_on_cpu(mask) if mask.device.type == "cpu" else distance_by_minimum(mask)


@torch.library.custom_op("raremask::distance", mutates_args=())  # an operation of its own, or it could not be compiled
def _distance_on_cpu(mask: Tensor) -> Tensor:
    background = np.ascontiguousarray((mask == 0).numpy()).view(np.uint8)
    distance = np.empty(background.shape, np.float32)
    for image, out in zip(background[:, 0], distance[:, 0], strict=True):
        if image.all():  # without any zero the transform measures to a pixel that is not there
            out[...] = np.inf
        else:
            cv2.distanceTransform(image, cv2.DIST_L2, cv2.DIST_MASK_PRECISE, dst=out)
    return torch.from_numpy(distance)


@_distance_on_cpu.register_fake
def _(mask: Tensor) -> Tensor:
    return torch.empty(mask.shape, dtype=torch.float32, device=mask.device)


@torch.no_grad()
def distance_by_minimum(mask: Tensor) -> Tensor:
    """The same as :func:`distance_to_foreground`, on any device.

    First along each row, then the minimum over the rows of its square plus the square of the rows' distance.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1.

    Returns:
        `(B, 1, H, W)` float32.
    """
    batch, _, height, width = mask.shape
    background = mask[:, 0] == 0
    column = torch.arange(width, dtype=torch.float32, device=mask.device).expand(background.shape)
    before = column - column.masked_fill(background, -math.inf).cummax(-1).values
    after = column.masked_fill(background, math.inf).flip(-1).cummin(-1).values.flip(-1) - column
    in_row = torch.minimum(before, after).square()

    row = torch.arange(height, dtype=torch.float32, device=mask.device)
    between = (row[:, None] - row).square()
    squared = torch.empty_like(in_row)
    chunk = max(1, 2**26 // (batch * height * width))  # rows at once: at most 256 MiB
    for start in range(0, height, chunk):
        rows = slice(start, start + chunk)
        squared[:, rows] = (in_row[:, None] + between[rows, :, None]).amin(2)
    return squared.sqrt_()[:, None]


@torch.no_grad()
def distance_to_other_class(mask: Tensor) -> Tensor:
    """Distance in pixels from each foreground pixel to the nearest background pixel of its image, and vice versa.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1.

    Returns:
        `(B, 1, H, W)` float32, 1 or more; 0 everywhere in an image of one class, which has no boundary.

    >>> distance_to_other_class(torch.tensor([[[[1, 1, 0, 0]]]]))
    tensor([[[[2., 1., 1., 2.]]]])
    """
    if mask.device.type == "cpu":
        return _distance_to_other_class_on_cpu(mask)
    distance = torch.maximum(distance_by_minimum(mask), distance_by_minimum(mask == 0))
    return distance.masked_fill_(distance.isinf(), 0)


@torch.library.custom_op("raremask::distance_to_other_class", mutates_args=())
def _distance_to_other_class_on_cpu(mask: Tensor) -> Tensor:
    background = np.ascontiguousarray((mask == 0).numpy()).view(np.uint8)
    distance = np.zeros(background.shape, np.float32)
    for image, out in zip(background[:, 0], distance[:, 0], strict=True):
        if image.any() and not image.all():
            cv2.distanceTransform(image, cv2.DIST_L2, cv2.DIST_MASK_PRECISE, dst=out)
            out += cv2.distanceTransform(1 - image, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)  # where the other is 0
    return torch.from_numpy(distance)


@_distance_to_other_class_on_cpu.register_fake
def _(mask: Tensor) -> Tensor:
    return torch.empty(mask.shape, dtype=torch.float32, device=mask.device)


@torch.no_grad()
def signed_distance(mask: Tensor) -> Tensor:
    """Distance in pixels to the boundary's inner edge: positive outside, 0 on the edge, negative further inside.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1.

    Returns:
        `(B, 1, H, W)` float32; 0 everywhere in an image of one class.

    >>> signed_distance(torch.tensor([[[[1, 1, 0, 0]]]]))
    tensor([[[[-1.,  0.,  1.,  2.]]]])
    """
    distance = distance_to_other_class(mask)
    return torch.where(mask != 0, (1 - distance).clamp_(max=0), distance)


def thickness(mask: Tensor) -> Tensor:
    """How thick the foreground of each image is, in pixels.

    Four times the mean distance of foreground pixels to the background: the width of a long bar, two thirds of the
    diameter of a disc.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1.

    Returns:
        `(B,)` float32, not a number for an image of one class.

    >>> bar = torch.zeros(1, 1, 60, 60)
    >>> bar[..., 20:26, :] = 1
    >>> thickness(bar)
    tensor([6.])
    """
    depth = distance_to_other_class(mask) - 0.5  # from a pixel's middle to the other pixel's edge
    inside = (mask != 0) & (depth > 0)
    return 4 * (depth * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3))


@torch.no_grad()
def proximity(mask: Tensor, sigma: float) -> Tensor:
    r"""Gaussian of the distance to the nearest foreground pixel of the same image.

    .. math:: g(x) = \exp\left(-\frac{d(x)^2}{2 \sigma^2}\right)

    1 on the foreground, 0 everywhere in an image without foreground. On the CPU it comes from the distance transform
    of the part around the foreground, on other devices from :func:`proximity_by_filter`.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1.
        sigma: Width of the Gaussian in pixels, more than 0.

    Returns:
        `(B, 1, H, W)` float32 in [0, 1].
    """
    return _proximity_on_cpu(mask, sigma) if mask.device.type == "cpu" else proximity_by_filter(mask, sigma)


@torch.library.custom_op("raremask::proximity", mutates_args=())
def _proximity_on_cpu(mask: Tensor, sigma: float) -> Tensor:
    background = np.ascontiguousarray((mask == 0).numpy()).view(np.uint8)
    near = np.zeros(background.shape, np.float32)
    reach = math.ceil(sigma * math.sqrt(-2 * math.log(TINIEST)))
    for image, out in zip(background[:, 0], near[:, 0], strict=True):
        x, y, width, height = cv2.boundingRect(1 - image)
        if width == 0:
            continue
        box = np.s_[max(0, y - reach) : y + height + reach, max(0, x - reach) : x + width + reach]
        exponent = cv2.distanceTransform(np.ascontiguousarray(image[box]), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        np.multiply(exponent, exponent, out=exponent)
        exponent *= -1 / (2 * sigma**2)
        # what is hardly a number any more is 0: arithmetic with denormal numbers takes ten times as long
        exponent[exponent < math.log(TINIEST)] = -np.inf
        out[box] = np.exp(exponent, out=exponent)
    return torch.from_numpy(near)


@_proximity_on_cpu.register_fake
def _(mask: Tensor, sigma: float) -> Tensor:
    return torch.empty(mask.shape, dtype=torch.float32, device=mask.device)


@torch.no_grad()
def proximity_by_filter(mask: Tensor, sigma: float) -> Tensor:
    """The same as :func:`proximity`, as a maximum over shifted masks; runs on any device.

    The Gaussian of the smallest distance is the largest Gaussian of all distances, and that maximum is separable:
    along the rows, then along the columns. Past 5.8 sigma the Gaussian is below 5e-8 and left out.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1.
        sigma: Width of the Gaussian in pixels, more than 0.

    Returns:
        `(B, 1, H, W)` float32 in [0, 1].
    """
    nearest = mask.float()
    for dim in (-1, -2):
        source, nearest = nearest, nearest.clone()
        length = source.shape[dim]
        for shift in range(1, min(math.ceil(5.8 * sigma), length - 1) + 1):
            weight = math.exp(-(shift**2) / (2 * sigma**2))
            for start in (0, shift):  # every pixel looks `shift` pixels to one side, then to the other
                here = nearest.narrow(dim, shift - start, length - shift)
                here.copy_(torch.maximum(here, source.narrow(dim, start, length - shift) * weight))
    return nearest


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
    reach = size // 2
    for dim in (-1, -2):
        sides = (reach + 1, reach) if dim == -1 else (0, 0, reach + 1, reach)
        running = F.pad(mask, sides).cumsum(dim)
        length = mask.shape[dim]
        mask = running.narrow(dim, size, length) - running.narrow(dim, 0, length)
    return mask


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

    The same as a max-pooling, in a fifth of its time on the CPU: neighbours are compared as shifted images.
    """

    @staticmethod
    def forward(ctx, soft: Tensor, neighbours: tuple[tuple[int, int], ...]) -> Tensor:
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
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
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
            left = left * table[F.conv2d(left, weights[None, None], padding=1).long()]  # exact, even in bfloat16
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
    crossings = sum((~ring[i] & (ring[i + 1] | ring[(i + 2) % 8])).int() for i in (0, 2, 4, 6))
    pairs = [sum((ring[i] | ring[i + turn]).int() for i in (0, 2, 4, 6)) for turn in (1, -1)]
    neighbours = torch.minimum(*pairs)
    needed = ~((crossings == 1) & (neighbours >= 2) & (neighbours <= 3))
    return weights, torch.stack([needed | (n | ne | ~se) & e, needed | (s | sw | ~nw) & w]).byte()


def to_run_lengths(mask: np.ndarray) -> str:
    """Write a mask as run lengths: `start length start length ...`, down the columns, counted from 1.

    Args:
        mask: `(H, W)` boolean.

    Returns:
        The runs; empty for an empty mask.

    >>> to_run_lengths(np.array([[0, 1], [1, 1]], bool))
    '2 3'
    """
    framed = np.concatenate([[False], mask.T.ravel(), [False]])
    edges = np.flatnonzero(framed[1:] != framed[:-1])
    return " ".join(f"{start + 1} {end - start}" for start, end in edges.reshape(-1, 2))


def from_run_lengths(runs: str, size: tuple[int, int]) -> np.ndarray:
    """Read a mask from run lengths, as :func:`to_run_lengths` writes them.

    Args:
        runs: Starts and lengths, down the columns, counted from 1; in any order.
        size: Height and width of the mask in pixels.

    Returns:
        `(H, W)` boolean.

    Raises:
        ValueError: If a number is missing or not whole, or runs leave the image or overlap.

    >>> from_run_lengths("2 3", (2, 2)).astype(int)
    array([[0, 1],
           [1, 1]])
    """
    numbers = runs.split()
    if len(numbers) % 2 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"run lengths are pairs of a start and a length, whole numbers; got {runs[:40]!r}")
    starts, lengths = np.array(numbers, np.int64).reshape(-1, 2).T
    ends, pixels = starts - 1 + lengths, size[0] * size[1]
    if len(starts) and (starts.min() < 1 or lengths.min() < 1 or ends.max() > pixels):
        raise ValueError(f"run lengths leave the image: pixels are counted from 1 to {pixels}")
    order = np.argsort(starts)
    if (ends[order][:-1] > starts[order][1:] - 1).any():
        raise ValueError("run lengths overlap")
    flat = np.zeros(pixels, bool)
    for start, end in zip(starts - 1, ends, strict=True):
        flat[start:end] = True
    return flat.reshape(size[::-1]).T
