"""How far the outlines of two masks are apart, in pixels.

The outline of a mask are its pixels with a background pixel, or the frame of the image, above, below, left or right of
them. Where neither mask has foreground there is nothing to measure: distances are 0 and shares 1. Where one has none,
all is missed or made up: distances are the diagonal of the image, shares are 0. A mean over images therefore never
improves because an image is left empty. One object of several may be missed without harm to `hd95` and `nsd`, or even
to their gain; look at the scores of objects, too.
"""

import math

import cv2
import numpy as np
from scipy.spatial import KDTree

FEW = 120  # an outline of less than one in so many pixels is few points
CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def outline(mask: np.ndarray) -> np.ndarray:
    """Return the outline of a mask, `(H, W)` boolean.

    Args:
        mask: `(H, W)` boolean.

    >>> outline(np.ones((3, 3), bool)).astype(int).tolist()
    [[1, 1, 1], [1, 0, 1], [1, 1, 1]]
    """
    mask = np.ascontiguousarray(mask).view(np.uint8)
    inside = cv2.erode(mask, CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return (mask ^ inside).view(bool)


def outline_distances(prediction: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each pixel of one outline to the nearest of the other.

    Args:
        prediction: `(H, W)` boolean, with foreground.
        mask: `(H, W)` boolean, with foreground.

    Returns:
        From the prediction's outline to the mask's `(n,)`, and from the mask's to the prediction's `(m,)`, float64.

    Raises:
        ValueError: If one of them has no foreground.
    """
    box = around(prediction | mask)
    one, other = outline(prediction[box]), outline(mask[box])
    if not (one.any() and other.any()):
        raise ValueError("both masks must have foreground")
    if FEW * (one.sum() + other.sum()) < one.size:  # a tree of few points is faster than a map of all pixels
        points = [np.argwhere(line) for line in (one, other)]
        trees = [KDTree(line) for line in points]
        there, back = trees[1].query(points[0])[0], trees[0].query(points[1])[0]
    else:
        there, back = _distance_to(other)[one], _distance_to(one)[other]
    return _exact(there), _exact(back)


def surface_scores(prediction: np.ndarray, mask: np.ndarray, tolerance: float = 2.0) -> dict[str, float]:
    """Scores of the outlines of one image.

    Args:
        prediction: `(H, W)` boolean.
        mask: `(H, W)` boolean.
        tolerance: Pixels that an outline may be off, 0 or more.

    Returns:
        `hd95`: the larger of both directed distances' 95th percentiles; `asd`: mean distance over both outlines; both
        in pixels. `nsd`: normalised surface Dice, the share of both outlines that lies within the tolerance.

    Raises:
        ValueError: If the masks' shapes differ or a number is out of its range.

    Source:
        Huttenlocher et al. (1993); Nikolov et al. (2021), https://arxiv.org/abs/1809.04430

    >>> one, other = np.zeros((2, 9, 9), bool)
    >>> one[2, 2] = other[2, 5] = True
    >>> surface_scores(one, other)
    {'hd95': 3.0, 'asd': 3.0, 'nsd': 0.0}
    """
    if prediction.shape != mask.shape:
        raise ValueError(f"prediction and mask must have one shape; got {prediction.shape} and {mask.shape}")
    if tolerance < 0:
        raise ValueError(f"tolerance must be 0 or more; got {tolerance}")
    found, there = bool(prediction.any()), bool(mask.any())
    if not (found and there):
        far = math.hypot(*mask.shape) if found or there else 0.0
        return {"hd95": far, "asd": far, "nsd": float(found == there)}
    forth, back = outline_distances(prediction, mask)
    both = np.concatenate([forth, back])
    return {
        "hd95": float(max(np.percentile(forth, 95), np.percentile(back, 95))),
        "asd": float(both.mean()),
        "nsd": float((both <= tolerance).mean()),
    }


def boundary_iou(prediction: np.ndarray, mask: np.ndarray, width: int | None = None) -> float:
    """Intersection over union of the bands along both outlines, inside the masks.

    Args:
        prediction: `(H, W)` boolean.
        mask: `(H, W)` boolean.
        width: Of the bands in pixels, 1 or more; None takes 2 % of the image's diagonal.

    Returns:
        In [0, 1]; 1 if neither mask has foreground.

    Raises:
        ValueError: If the width is below 1.

    Source:
        Cheng et al. (2021), https://arxiv.org/abs/2103.16562
    """
    width = max(1, round(0.02 * math.hypot(*mask.shape))) if width is None else width
    if width < 1:
        raise ValueError(f"width must be 1 or more pixels; got {width}")
    union = prediction | mask
    if not union.any():
        return 1.0
    box = around(union)
    one, other = (_band(half[box], width) for half in (prediction, mask))
    return float((one & other).sum() / (one | other).sum())


def _band(mask: np.ndarray, width: int) -> np.ndarray:
    """Foreground within `width` steps, also diagonal ones, of background or of the frame."""
    mask = np.ascontiguousarray(mask).view(np.uint8)
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    inside = cv2.erode(mask, square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return (mask ^ inside).view(bool)


def around(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the smallest window around the foreground of a mask `(H, W)`, a pixel wider where the image allows."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return np.s_[max(0, y - 1) : y + height + 1, max(0, x - 1) : x + width + 1]


def _exact(distance: np.ndarray) -> np.ndarray:
    """Distances between pixels without rounding: their squares are whole numbers, which OpenCV's last digit is not."""
    return np.sqrt(np.rint(np.square(distance, dtype=np.float64)))


def _distance_to(pixels: np.ndarray) -> np.ndarray:
    """Euclidean distance of every pixel to the nearest one that is set."""
    background = (~pixels).view(np.uint8)
    return cv2.distanceTransform(np.ascontiguousarray(background), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
