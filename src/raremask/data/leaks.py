"""Finds images that are nearly the same, so that no test image has a twin in training.

A perceptual hash cannot: on real data (ImageHash 4.3, 256 bits) retinas of different people differ in as few bits (.07)
as one lesion photographed twice (.08). Here each image becomes its fine structure, without brightness and shading, and
two images are as alike as these correlate: as they are, or with what all images share (the edge of a field of view)
taken out. Measured on 1587 dermoscopic images: the eight pairs that are one lesion have .68 to .998, all other pairs at
most .65; different retinas have at most .41 (.79 with the edge left in), frames of different colonoscopies .47. What it
does not find: the frames of a video in which the camera moves, and other photographs of the same patient. That nothing
is found does not prove that groups are complete.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import cv2
import numpy as np

from raremask import tables

SIDE = 48  # pixels of a descriptor
FINE = 2.0  # pixels at that size: structure below this is compared
LIKE_AS_THEY_ARE = 0.85  # correlation from which two images count as the same
LIKE_WITHOUT_SHARED = 0.66  # likewise, once what all images share is taken away
AGREE = 0.5  # Dice of two masks below which they contradict each other
MANY = 8  # of fewer images the mean is not what all share, but each of them
TURNS = 8  # ways to mirror and turn by quarters
ROWS = 256  # compared with all others at a time, to bound memory


@dataclass(frozen=True)
class Twins:
    """Two images that are nearly the same.

    Args:
        first: Index of one image.
        second: Index of the other, which is larger.
        likeness: Correlation of their fine structure, at most 1; exactly 1 if every pixel is the same.
        turn: How the first is to be turned to be like the second, for :func:`turned`.
    """

    first: int
    second: int
    likeness: float
    turn: int = 0


def twins(images: Sequence[np.ndarray], parts: Sequence[str] | None = None) -> list[Twins]:
    """Find the pairs of images that are nearly the same; also mirrored and turned by quarters.

    Recompressed, resized, recoloured and slightly moved copies are found; crops and frames from another angle are not.

    Args:
        images: `(h, w, C)` uint8 each, any sizes.
        parts: The split of each image; then only pairs of different splits are looked for.

    Returns:
        The pairs, most alike first.
    """
    if len(images) < 2:
        return []
    part = np.zeros(len(images), dtype=int) if parts is None else np.unique(parts, return_inverse=True)[1]
    apart = bool(part.any())
    digests = [blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).digest() for image in images]
    exact = np.unique(digests, return_inverse=True)[1]
    plain = _described(images)
    kinds = [(_unit(plain), LIKE_AS_THEY_ARE)]
    if len(images) > MANY:
        own = plain - plain.mean(axis=0)
        own[~plain.any(axis=(1, 2))] = 0  # a flat image has nothing of its own
        kinds.append((_unit(own), LIKE_WITHOUT_SHARED))
    found = []
    for start in range(0, len(images), ROWS):
        stop = min(start + ROWS, len(images))
        ways = np.full((TURNS, stop - start, len(images) - start), -1, np.float32)
        for described, least in kinds:
            flat = described[start:].reshape(len(images) - start, -1)
            for turn in range(TURNS):
                alike = turned(described[start:stop], turn).reshape(stop - start, -1) @ flat.T
                np.maximum(ways[turn], np.where(alike >= least, alike, -1), out=ways[turn])
        turn, alike = ways.argmax(axis=0), ways.max(axis=0)
        alike = np.minimum(alike, np.nextafter(np.float32(1), np.float32(0)))  # 1 is said of equal pixels only
        same = exact[start:stop, None] == exact[None, start:]
        alike[same], turn[same] = 1, 0
        if apart:
            alike[part[start:stop, None] == part[None, start:]] = -1
        alike[np.tril_indices(stop - start, 0, len(images) - start)] = -1
        found += [
            Twins(start + int(row), start + int(column), float(alike[row, column]), int(turn[row, column]))
            for row, column in zip(*np.nonzero(alike > 0), strict=True)
        ]
    return sorted(found, key=lambda pair: (-pair.likeness, pair.first, pair.second))


def turned(images: np.ndarray, turn: int) -> np.ndarray:
    """Turn by quarters and mirror.

    Args:
        images: `(n, h, w)`.
        turn: From 0 (as it is) to 7; from 4 on mirrored too.

    Returns:
        `(n, h, w)`, or `(n, w, h)` if `turn` is odd.

    >>> turned(np.array([[[1, 2], [3, 4]]]), 4).tolist()
    [[[2, 1], [4, 3]]]
    """
    quarters = np.rot90(images, turn % 4, axes=(1, 2))
    return quarters[:, :, ::-1] if turn >= 4 else quarters


def contradictions(found: Sequence[Twins], masks: Sequence[np.ndarray]) -> list[tuple[Twins, float]]:
    """Find the twins whose masks do not agree: what is foreground in one is not in the other.

    Args:
        found: The pairs.
        masks: `(h, w)` uint8 of 0 and 1, one for each image.

    Returns:
        The pairs whose masks have a Dice below `AGREE`, and that Dice; two empty ones agree.
    """
    contrary = []
    for pair in found:
        one, other = (
            cv2.resize(masks[index].astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            for index in (pair.first, pair.second)
        )
        one = turned(one[None], pair.turn)[0]
        both = float(one.sum() + other.sum())
        dice = 2 * float(np.minimum(one, other).sum()) / both if both else 1.0
        if dice < AGREE:
            contrary.append((pair, dice))
    return contrary


def twins_csv(found: Sequence[Twins], placed: Sequence[tuple[str, str, str]]) -> str:
    """Return the text of a CSV table of pairs: name, group and split of both images, and their likeness.

    Args:
        found: The pairs.
        placed: Name, group and split of each image.
    """
    columns = ("image", "group", "split", "twin", "twin_group", "twin_split", "likeness")
    rows = ((*placed[pair.first], *placed[pair.second], f"{pair.likeness:.4f}") for pair in found)
    return tables.text([dict(zip(columns, row, strict=True)) for row in rows], columns)


def _described(images: Sequence[np.ndarray]) -> np.ndarray:
    """Fine structure of each image with the same contrast everywhere, `(n, SIDE, SIDE)` float32; 0 for a flat one."""
    margin = SIDE // 8  # the edge, where frames and rulers are, fades out
    window: np.ndarray = np.zeros((SIDE, SIDE), np.float32)
    window[margin:-margin, margin:-margin] = 1
    window = cv2.GaussianBlur(window, (0, 0), margin / 2)
    described = np.empty((len(images), SIDE, SIDE), np.float32)
    for fine, image in zip(described, images, strict=True):
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[2] == 3 else image[..., 0]
        gray = cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
        detail = gray - cv2.GaussianBlur(gray, (0, 0), FINE)
        contrast = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), 2 * FINE) + 25)  # noise of 5 gray values is none
        fine[:] = window * detail / contrast
    described[np.linalg.norm(described, axis=(1, 2)) < 1] = 0  # nothing to go by
    return described


def _unit(described: np.ndarray) -> np.ndarray:
    """The same of norm 1, or 0."""
    norms = np.linalg.norm(described, axis=(1, 2), keepdims=True)
    return np.divide(described, norms, out=np.zeros_like(described), where=norms > 0)
