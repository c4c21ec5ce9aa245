"""Masks as run lengths, the way competitions write them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ORDERS = ("columns", "rows")


@dataclass(frozen=True)
class RunLengths:
    """How a competition writes masks: `start length start length ...`.

    Args:
        order: `columns` counts pixels down the columns, `rows` along the rows.
        start: Number of the first pixel, 0 or 1.
        relative: Whether a start is counted from the end of the run before, not from the first pixel.
        empty: What stands for an empty mask.

    Raises:
        ValueError: If `order` or `start` is another.

    >>> RunLengths().write(np.array([[0, 1], [1, 1]], bool))
    '2 3'
    >>> RunLengths(order="rows", start=0, relative=True).write(np.array([[0, 1, 0, 1]], bool))
    '1 1 1 1'
    """

    order: str = "columns"
    start: int = 1
    relative: bool = False
    empty: str = ""

    def __post_init__(self) -> None:
        # from a command line -1 comes as a number and nothing as None
        object.__setattr__(self, "empty", "" if self.empty is None else str(self.empty))
        if self.order not in ORDERS or self.start not in (0, 1):
            raise ValueError(
                f"order must be {' or '.join(ORDERS)}, start 0 or 1; got {self.order!r} and {self.start!r}"
            )

    def write(self, mask: np.ndarray) -> str:
        """Return the run lengths of a mask, `(H, W)` boolean."""
        pairs = runs(mask, self.order)
        if not len(pairs):
            return self.empty
        if self.relative:
            pairs[1:, 0] -= pairs[:-1].sum(axis=1)
            pairs[0, 0] += self.start
        else:
            pairs[:, 0] += self.start
        return " ".join(map(str, pairs.ravel().tolist()))

    def read(self, text: str, size: tuple[int, int]) -> np.ndarray:
        """Return the mask that is written as run lengths.

        Args:
            text: Starts and lengths, in any order if starts are not relative.
            size: Height and width of the mask in pixels.

        Returns:
            `(H, W)` boolean.

        Raises:
            ValueError: If a number is missing or not whole, or runs leave the image or overlap.
        """
        starts, ends = self.spans(text, size[0] * size[1])
        edges = np.stack([starts, ends], axis=1).ravel()
        return from_counts(np.diff(edges, prepend=0, append=size[0] * size[1]), size, self.order)

    def spans(self, text: str, pixels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return first pixels and ends of the runs, `(n,)` int64 each, counted from 0 and sorted.

        Args:
            text: As in :meth:`read`.
            pixels: How many there are in the mask; None does not look whether a run goes beyond.

        Raises:
            ValueError: As in :meth:`read`.
        """
        starts, lengths = self.pairs(text).T
        if self.relative and len(starts):
            starts = np.cumsum(starts) + np.concatenate([[0], np.cumsum(lengths[:-1])])
        starts = starts - self.start
        ends = starts + lengths
        if len(starts) and (
            starts.min() < 0 or lengths.min() < 1 or ends.max() > (ends.max() if pixels is None else pixels)
        ):
            last = "" if pixels is None else f" to {pixels - 1 + self.start}"
            raise ValueError(f"run lengths leave the image: pixels are counted from {self.start}{last}")
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], ends[order]
        if (ends[:-1] > starts[1:]).any():
            raise ValueError("run lengths overlap")
        return starts, ends

    def pairs(self, text: str) -> np.ndarray:
        """Return the numbers of run lengths as they stand there, `(n, 2)` int64: starts and lengths.

        Raises:
            ValueError: If a number is missing, not whole, or of more than 18 digits.
        """
        text = text.strip()
        if not text and self.empty:
            raise ValueError(f"an empty mask is written as {self.empty}, and here is nothing")
        numbers = [] if text == self.empty else text.split()
        if len(numbers) % 2 or not all(number.isdecimal() and number.isascii() for number in numbers):
            raise ValueError(f"run lengths are pairs of a start and a length, whole numbers; got {text[:40]!r}")
        if any(len(number) > 18 for number in numbers):
            raise ValueError(f"run lengths leave the image: {max(numbers, key=len)[:40]}")
        return np.array(numbers, np.int64).reshape(-1, 2)


def runs(mask: np.ndarray, order: str = "columns") -> np.ndarray:
    """Return the runs of foreground, `(n, 2)` int64: the first pixel, from 0, and how many follow one another.

    Args:
        mask: `(H, W)` boolean.
        order: `columns` counts pixels down the columns, `rows` along the rows.
    """
    flat = (mask.T if order == "columns" else mask).ravel()
    framed = np.concatenate([[False], flat, [False]])
    edges = np.flatnonzero(framed[1:] != framed[:-1]).reshape(-1, 2)
    return np.stack([edges[:, 0], edges[:, 1] - edges[:, 0]], axis=1)


def to_counts(mask: np.ndarray) -> list[int]:
    """Write a mask as COCO does, uncompressed: lengths of runs down the columns, background and foreground in turn.

    Args:
        mask: `(H, W)` boolean.

    >>> to_counts(np.array([[1, 0], [1, 1]], bool))
    [0, 2, 1, 1]
    """
    pairs = runs(mask)
    counts = np.diff(np.stack([pairs[:, 0], pairs.sum(axis=1)], axis=1).ravel(), prepend=0, append=mask.size).tolist()
    return counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts


def compress(counts: Sequence[int]) -> str:
    """Write lengths of runs as the text that COCO's tools read.

    From the fourth on, each is the difference to the last but one; five bits to a character, the sixth says that more
    follow, 48 is added.

    Args:
        counts: Of :func:`to_counts`.

    Source:
        `rleToString` in https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c

    >>> compress([6, 1, 40, 4, 5])
    '61X13mN'
    """
    text = []
    for index, count in enumerate(counts):
        number = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits, number = number & 31, number >> 5
            more = number != (-1 if bits & 16 else 0)
            text.append(chr((bits | 32 if more else bits) + 48))
    return "".join(text)


def from_counts(counts: np.ndarray | list[int], size: tuple[int, int], order: str = "columns") -> np.ndarray:
    """Read a mask from the lengths of its runs, background and foreground in turn.

    Args:
        counts: Lengths, the first of background; together as many as there are pixels.
        size: Height and width of the mask in pixels.
        order: `columns` counts pixels down the columns, `rows` along the rows.

    Returns:
        `(H, W)` boolean.

    Raises:
        ValueError: If a length is negative or they do not add up.
    """
    counts = np.asarray(counts, np.int64)
    if counts.min(initial=0) < 0 or counts.sum() != size[0] * size[1]:
        raise ValueError(f"lengths of runs must add up to {size[0] * size[1]} pixels; got {counts.sum()}")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(size[::-1]).T if order == "columns" else flat.reshape(size)
