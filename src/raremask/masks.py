"""Geometry of binary masks: boundary, distance to the foreground, proximity to it.

Every function takes a mask of shape `(B, 1, H, W)` that holds 0 and 1, and returns float32 of the same shape on the
same device. Nothing here carries a gradient: a mask is data.
"""

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def boundary(mask: Tensor) -> Tensor:
    """Foreground pixels with a background pixel above, below, left or right of them.

    Outside the image counts as background, so foreground that touches the frame has its boundary there.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1.

    Returns:
        `(B, 1, H, W)` float32, 1 on the boundary.

    >>> boundary(torch.ones(1, 1, 3, 3))[0, 0]
    tensor([[1., 1., 1.],
            [1., 0., 1.],
            [1., 1., 1.]])
    """
    mask = mask.float()
    framed = F.pad(mask, (1, 1, 1, 1))
    inside = framed[..., :-2, 1:-1] * framed[..., 2:, 1:-1] * framed[..., 1:-1, :-2] * framed[..., 1:-1, 2:]
    return mask * (1 - inside)


@torch.no_grad()
def distance_to_foreground(mask: Tensor) -> Tensor:
    """Euclidean distance in pixels from each pixel to the nearest foreground pixel of its image.

    OpenCV's exact transform, image by image on the CPU: faster than SciPy's.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1, on the CPU.

    Returns:
        `(B, 1, H, W)` float32: 0 on the foreground, infinity everywhere in an image without foreground.

    >>> distance_to_foreground(torch.tensor([[[[1, 0, 0]]]]))
    tensor([[[[0., 1., 2.]]]])
    """
    background = (mask == 0).to(torch.uint8).numpy()
    distance = np.empty(background.shape, np.float32)
    for image, out in zip(background[:, 0], distance[:, 0], strict=True):
        if image.all():  # without any zero the transform measures to a pixel that is not there
            out[...] = np.inf
        else:
            cv2.distanceTransform(np.ascontiguousarray(image), cv2.DIST_L2, cv2.DIST_MASK_PRECISE, dst=out)
    return torch.from_numpy(distance)


@torch.no_grad()
def proximity(mask: Tensor, sigma: float) -> Tensor:
    r"""Gaussian of the distance to the nearest foreground pixel of the same image.

    .. math:: g(x) = \exp\left(-\frac{d(x)^2}{2 \sigma^2}\right)

    1 on the foreground, 0 everywhere in an image without foreground. On the CPU it comes from the distance
    transform, on other devices from :func:`proximity_by_filter`, so that the mask never leaves the device.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1.
        sigma: Width of the Gaussian in pixels, more than 0.

    Returns:
        `(B, 1, H, W)` float32 in [0, 1].
    """
    if mask.device.type == "cpu":
        return distance_to_foreground(mask).square_().div_(-2 * sigma**2).exp_()
    return proximity_by_filter(mask, sigma)


@torch.no_grad()
def proximity_by_filter(mask: Tensor, sigma: float) -> Tensor:
    """The same as :func:`proximity`, as a maximum over shifted masks; runs on any device.

    The Gaussian of the smallest distance is the largest Gaussian of all distances, and that maximum is separable:
    along the rows, then along the columns. Past 5.8 sigma a weight is below float32's resolution beside 1.

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
                torch.maximum(here, source.narrow(dim, start, length - shift) * weight, out=here)
    return nearest
