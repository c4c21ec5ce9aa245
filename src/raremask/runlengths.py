"""Masks as run lengths, the way competitions write them."""

import numpy as np


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
