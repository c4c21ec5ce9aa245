"""Finds images that are nearly the same, so that no test image has a twin in training.

A perceptual hash cannot: on real data (ImageHash 4.3, 256 bits) retinas of different people differ in as few bits (.07)
as one lesion photographed twice (.08). Here each image becomes its fine structure, with brightness, shading and what
all images share (the edge of a field of view) taken out, and two images are as alike as these correlate. Measured on
1587 dermoscopic images: the eight pairs that are one lesion have .68 to .998, all other pairs at most .65; different
retinas have at most .41, frames of different colonoscopies .44.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import cv2
import numpy as np

SIDE = 48  # pixels of a descriptor
FINE = 2.0  # pixels at that size: structure below this is compared
LIKENESS = 0.66  # from here two images count as the same
ROWS = 256  # compared with all others at a time, to bound memory


@dataclass(frozen=True)
class Twins:
    """Two images that are nearly the same.

    Args:
        first: Index of one image.
        second: Index of the other, which is larger.
        likeness: Correlation of their fine structure, at most 1; exactly 1 if every pixel is the same.
    """

    first: int
    second: int
    likeness: float


def twins(images: Sequence[np.ndarray], parts: Sequence[str] | None = None, likeness: float = LIKENESS) -> list[Twins]:
    """Find the pairs of images that are nearly the same; also mirrored and turned by quarters.

    Recompressed, resized, recoloured and slightly moved copies are found; crops and frames from another angle are not.

    Args:
        images: `(h, w, C)` uint8 each, any sizes.
        parts: The split of each image; then only pairs of different splits are looked for.
        likeness: From which correlation on two images count as the same, in (0, 1].

    Returns:
        The pairs, most alike first.
    """
    if len(images) < 2:
        return []
    parts = np.zeros(len(images), dtype=int) if parts is None else np.unique(parts, return_inverse=True)[1]
    apart = bool(parts.any())
    digests = [blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).digest() for image in images]
    exact = np.unique(digests, return_inverse=True)[1]
    described = _described(images)
    flat = described.reshape(len(images), -1)
    found = []
    for start in range(0, len(images), ROWS):
        rows = described[start : start + ROWS]
        alike = np.max([turned.reshape(len(rows), -1) @ flat[start:].T for turned in _turned(rows)], axis=0)
        alike = np.minimum(alike, np.nextafter(np.float32(1), np.float32(0)))  # 1 is said of equal pixels only
        alike[exact[start : start + ROWS, None] == exact[None, start:]] = 1
        if apart:
            alike[parts[start : start + ROWS, None] == parts[None, start:]] = -1
        alike[np.tril_indices(len(rows), 0, len(images) - start)] = -1
        found += [
            Twins(start + int(row), start + int(column), float(alike[row, column]))
            for row, column in zip(*np.nonzero(alike >= likeness), strict=True)
        ]
    return sorted(found, key=lambda pair: (-pair.likeness, pair.first, pair.second))


def table(found: Sequence[Twins], placed: Sequence[tuple[str, str, str]]) -> str:
    """Return the text of a CSV table of pairs: name, group and split of both images, and their likeness.

    Args:
        found: The pairs.
        placed: Name, group and split of each image.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "group", "split", "twin", "twin_group", "twin_split", "likeness"])
    writer.writerows([*placed[pair.first], *placed[pair.second], f"{pair.likeness:.4f}"] for pair in found)
    return text.getvalue()


def _described(images: Sequence[np.ndarray]) -> np.ndarray:
    """Fine structure of each image with the same contrast everywhere, `(n, SIDE, SIDE)` float32, of norm 1 or 0."""
    margin = SIDE // 8  # the edge, where frames and rulers are, fades out
    window = np.zeros((SIDE, SIDE), np.float32)
    window[margin:-margin, margin:-margin] = 1
    window = cv2.GaussianBlur(window, (0, 0), margin / 2)
    described = np.empty((len(images), SIDE, SIDE), np.float32)
    for fine, image in zip(described, images, strict=True):
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[2] == 3 else image[..., 0]
        gray = cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
        detail = gray - cv2.GaussianBlur(gray, (0, 0), FINE)
        contrast = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), 2 * FINE) + 25)  # noise of 5 gray values is none
        fine[:] = window * detail / contrast
    plain = np.linalg.norm(described, axis=(1, 2)) < 1  # nothing to go by
    if len(images) > 8:  # of a few images the mean is not what all share, but each of them
        described -= described.mean(axis=0)
    described[plain] = 0
    norms = np.linalg.norm(described, axis=(1, 2), keepdims=True)
    return np.divide(described, norms, out=np.zeros_like(described), where=norms > 0)


def _turned(described: np.ndarray) -> list[np.ndarray]:
    """The eight ways to mirror and turn by quarters."""
    quarters = [np.rot90(described, turns, axes=(1, 2)) for turns in range(4)]
    return quarters + [turned[:, :, ::-1] for turned in quarters]
