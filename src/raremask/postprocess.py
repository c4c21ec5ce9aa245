"""Post-processes predicted masks: each step takes a mask `(H, W)` boolean at native size and returns another.

Steps are settings of a run, chosen on the validation split; none of them can see the truth.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np

Step = Callable[[np.ndarray], np.ndarray]


class LargestComponent:
    """Keeps the largest connected piece of foreground (8 neighbours) and drops the others.

    >>> LargestComponent()(np.array([[1, 0, 1, 1]], bool)).astype(int).tolist()
    [[0, 0, 1, 1]]
    """

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """Return the processed mask, `(H, W)` boolean."""
        labels, areas = _pieces(mask, connectivity=8)
        return mask.copy() if not len(areas) else labels == 1 + int(np.argmax(areas))


class MinArea:
    """Drops connected pieces of foreground (8 neighbours) that are smaller than an area.

    Args:
        pixels: The smallest area that stays, at native size, 1 or more.

    Raises:
        ValueError: If `pixels` is below 1.

    >>> MinArea(pixels=2)(np.array([[1, 0, 1, 1]], bool)).astype(int).tolist()
    [[0, 0, 1, 1]]
    """

    def __init__(self, pixels: int):
        if pixels < 1:
            raise ValueError(f"pixels must be 1 or more; got {pixels}")
        self.pixels = pixels

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """Return the processed mask, `(H, W)` boolean."""
        labels, areas = _pieces(mask, connectivity=8)
        return np.concatenate([[False], areas >= self.pixels])[labels]


class FillHoles:
    """Fills background that is enclosed by foreground (and reaches the frame by no way over 4 neighbours).

    Args:
        pixels: The largest hole that is filled, at native size; None fills all.

    Raises:
        ValueError: If `pixels` is below 1.

    >>> FillHoles()(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)).all()
    np.True_
    """

    def __init__(self, pixels: int | None = None):
        if pixels is not None and pixels < 1:
            raise ValueError(f"pixels must be 1 or more, or null for all holes; got {pixels}")
        self.pixels = pixels

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """Return the processed mask, `(H, W)` boolean."""
        framed = np.pad(mask, 1)  # one ring of background: what is connected to it is outside
        labels, areas = _pieces(~framed, connectivity=4)
        fill = np.concatenate([[False], areas <= (self.pixels or areas.max())])
        fill[labels[0, 0]] = False
        return (framed | fill[labels])[1:-1, 1:-1]


class Chain:
    """Applies steps one after the other; without any, masks stay as they are.

    Args:
        steps: The steps by any names, in their order.

    >>> postprocess = Chain({"area": MinArea(pixels=2), "holes": FillHoles()})
    >>> postprocess(np.array([[1, 0, 1, 1]], bool)).astype(int).tolist()
    [[0, 0, 1, 1]]
    """

    def __init__(self, steps: Mapping[str, Step]):
        self.steps = dict(steps)

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """Return the processed mask, `(H, W)` boolean."""
        for step in self.steps.values():
            mask = step(mask)
        return mask


def _pieces(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, np.ndarray]:
    """The number of its piece for each pixel, 0 for none, and the area of each piece from 1 on."""
    binary = np.ascontiguousarray(mask).view(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=connectivity)
    return labels, stats[1:, cv2.CC_STAT_AREA]
