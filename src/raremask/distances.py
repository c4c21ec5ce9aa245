"""Distances in binary masks: to the foreground, to the other class, and what follows from them.

Every function takes a mask of shape `(B, 1, H, W)` that holds 0 and 1, and nothing carries a gradient: a mask is data.

Distances are computed image by image by OpenCV on the CPU, on a GPU by :mod:`raremask.kernels`, and elsewhere by tensor
operations, so that a mask never leaves a GPU and no step waits for it. Tests compare the ways with each other.
"""

import math
import warnings
from functools import cache
from types import ModuleType

import cv2
import numpy as np
import torch
from torch import Tensor

TINIEST = 1e-37  # just above the smallest normal float32


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
    return _distance(mask)


@cache
def _kernels() -> ModuleType | None:
    """Return those for a GPU, tried once; None where they cannot be had, with a warning."""
    try:
        from raremask import kernels  # not before a mask lies on a GPU

        kernels.distance(torch.zeros(1, 1, 1, 1, device="cuda"))
    except Exception as error:  # no Triton, or no compiler of C and no headers of Python, which it needs
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"no kernels for distances on this GPU ({type(error).__name__}: {reason}): they are computed by tensor "
            "operations, and losses that need them take several times as long. Triton needs a C compiler.",
            stacklevel=2,
        )
        return None
    return kernels


@torch.library.custom_op("raremask::distance", mutates_args=())  # an operation of its own, or it could not be compiled
def _distance(mask: Tensor) -> Tensor:
    if mask.is_cuda and (kernels := _kernels()):
        return kernels.distance(mask)
    if mask.device.type != "cpu":
        return distance_by_minimum(mask)
    background = np.ascontiguousarray((mask == 0).numpy()).view(np.uint8)
    distance = np.empty(background.shape, np.float32)
    for image, out in zip(background[:, 0], distance[:, 0], strict=True):
        if image.all():  # without any zero the transform measures to a pixel that is not there
            out[...] = np.inf
        else:
            cv2.distanceTransform(image, cv2.DIST_L2, cv2.DIST_MASK_PRECISE, dst=out)
            np.sqrt(_squared(out), out=out)
    return torch.from_numpy(distance)


@torch.no_grad()
def distance_by_minimum(mask: Tensor) -> Tensor:
    """The same as :func:`distance_to_foreground`, on any device, by tensor operations.

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
    distance = torch.maximum(_distance(mask), _distance(mask == 0))
    return distance.masked_fill_(distance.isinf(), 0)


@torch.library.custom_op("raremask::distance_to_other_class", mutates_args=())
def _distance_to_other_class_on_cpu(mask: Tensor) -> Tensor:
    background = np.ascontiguousarray((mask == 0).numpy()).view(np.uint8)
    distance = np.zeros(background.shape, np.float32)
    for image, out in zip(background[:, 0], distance[:, 0], strict=True):
        if image.any() and not image.all():
            cv2.distanceTransform(image, cv2.DIST_L2, cv2.DIST_MASK_PRECISE, dst=out)
            out += cv2.distanceTransform(1 - image, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)  # where the other is 0
            np.sqrt(_squared(out), out=out)
    return torch.from_numpy(distance)


def _squared(distance: np.ndarray) -> np.ndarray:
    """Square distances between pixels in place, to whole numbers: OpenCV's last digit depends on where they lie."""
    return np.rint(np.multiply(distance, distance, out=distance), out=distance)


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

    Four times the mean distance of foreground pixels to the background: the width of a long bar (of odd width w it is
    w + 1/w), two thirds of the diameter of a disc.

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
    of the part around the foreground.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1.
        sigma: Width of the Gaussian in pixels, more than 0.

    Returns:
        `(B, 1, H, W)` float32 in [0, 1].
    """
    return _proximity(mask, sigma)


@torch.library.custom_op("raremask::proximity", mutates_args=())
def _proximity(mask: Tensor, sigma: float) -> Tensor:
    if mask.is_cuda and (kernels := _kernels()):
        return kernels.proximity(mask, sigma)
    if mask.device.type != "cpu":
        return proximity_by_filter(mask, sigma)
    background = np.ascontiguousarray((mask == 0).numpy()).view(np.uint8)
    near = np.zeros(background.shape, np.float32)
    reach = math.ceil(sigma * math.sqrt(-2 * math.log(TINIEST)))
    for image, out in zip(background[:, 0], near[:, 0], strict=True):
        x, y, width, height = cv2.boundingRect(1 - image)
        if width == 0:
            continue
        box = np.s_[max(0, y - reach) : y + height + reach, max(0, x - reach) : x + width + reach]
        exponent = cv2.distanceTransform(np.ascontiguousarray(image[box]), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        _squared(exponent)
        np.multiply(exponent, -1 / (2 * sigma**2), out=exponent)
        # what is hardly a number any more is 0: arithmetic with denormal numbers is far slower
        exponent[exponent < math.log(TINIEST)] = -np.inf
        out[box] = np.exp(exponent, out=exponent)
    return torch.from_numpy(near)


@torch.no_grad()
def proximity_by_filter(mask: Tensor, sigma: float) -> Tensor:
    """The same as :func:`proximity`, as a maximum over shifted masks, by tensor operations on any device.

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


def _like_mask(mask: Tensor, *_: float) -> Tensor:
    """What the compiler is told of the operations above: float32 of the mask's shape."""
    return torch.empty(mask.shape, dtype=torch.float32, device=mask.device)


for _operation in (_distance, _distance_to_other_class_on_cpu, _proximity):
    _operation.register_fake(_like_mask)
