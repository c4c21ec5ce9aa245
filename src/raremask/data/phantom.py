"""Phantoms: generated images with rare foreground, so that everything runs without a download."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from raremask.data.base import ImageMaskData, Record

NOWHERE = Path()  # a phantom has no file


@dataclass(frozen=True)
class Recipe(Record):
    """What makes one phantom.

    Args:
        kind: What is drawn: `blob`, `vessel` or `speck`.
        fraction: Share of the pixels that is foreground, nearly; 0 draws none.
        seed: Decides everything else.
    """

    kind: str = "blob"
    fraction: float = 0.0
    seed: tuple[int, ...] = (0,)


class Phantom(ImageMaskData):
    """Images made from a seed, no files: blobs with soft edges, branching vessels, specks.

    The background is textured, noisy and unevenly lit, and holds shapes that resemble the foreground without being it.

    Args:
        kind: `blob` (like polyps), `vessel`, `speck`, or `mixed`: each image one of the three, in turn.
        foreground: Mean share of the pixels that is foreground, in (0, 0.5); None takes each kind's own: blob 0.06,
            vessel 0.05, speck 0.004. Single images vary from half to one and a half times that.
        empty: Share of the images without any foreground, in [0, 1).
        train: Number of training images.
        val: Number of validation images.
        test: Number of test images.
        data_seed: Decides the images; apart from the run's seed, so that runs compare.
        **shared: As in :class:`~raremask.data.base.ImageMaskData`; `size` must be given.

    Raises:
        ValueError: If a number is out of its range or `kind` is unknown.
    """

    def __init__(
        self,
        kind: str = "mixed",
        foreground: float | None = None,
        empty: float = 0.0,
        train: int = 160,
        val: int = 48,
        test: int = 96,
        data_seed: int = 0,
        **shared,
    ):
        super().__init__(**shared)
        if kind not in (*KINDS, "mixed"):
            raise ValueError(f"dataset.kind must be one of {', '.join(KINDS)} or mixed; got {kind!r}")
        if foreground is not None and not 0 < foreground < 0.5:
            raise ValueError(
                f"dataset.foreground is a share of the pixels, more than 0 and below 0.5; got {foreground}"
            )
        if not 0 <= empty < 1:
            raise ValueError(f"dataset.empty is a share of the images, from 0 to below 1; got {empty}")
        if self.size is None or min(self.size) < 32:
            raise ValueError(f"dataset.size must be given, 32 pixels or more on each side; got {self.size}")
        self.kind, self.foreground, self.empty, self.data_seed = kind, foreground, empty, data_seed
        self.numbers = {"train": train, "val": val, "test": test}

    def records(self) -> dict[str, list[Record]]:
        """Return what makes the phantoms of the three splits."""
        return {
            split: [self._recipe(split, part, index) for index in range(number)]
            for part, (split, number) in enumerate(self.numbers.items())
        }

    def _recipe(self, split: str, part: int, index: int) -> Recipe:
        kind = self.kind if self.kind != "mixed" else list(KINDS)[index % len(KINDS)]
        seed = (self.data_seed, part, index)
        random = np.random.default_rng(seed)
        fraction = (self.foreground or KINDS[kind][1]) * random.uniform(0.5, 1.5) * (random.random() >= self.empty)
        name = f"{split}_{index:04d}_{kind}"
        return Recipe(name, name, NOWHERE, NOWHERE, kind=kind, fraction=fraction, seed=seed)

    def arrays(self, record: Recipe) -> tuple[np.ndarray, np.ndarray, None]:
        """Draw one phantom: its image `(h, w, C)` uint8 and its mask `(h, w)` boolean."""
        random = np.random.default_rng([*record.seed, 1])
        height, width = self.size
        drawn = np.zeros(self.size, np.uint8)
        if record.fraction > 0:
            KINDS[record.kind][0](random, drawn, max(1.0, record.fraction * height * width))
        mask = drawn > 0

        shade = 0.55 + 0.5 * _cloud(random, self.size, 2) + 0.25 * _cloud(random, self.size, 6)  # uneven light
        shade += 0.12 * _cloud(random, self.size, 24)  # texture
        shade += _lookalikes(random, self.size)
        softness = {"blob": 2.0, "vessel": 0.6, "speck": 0.5}[record.kind]
        contrast = random.uniform(0.15, 0.3) * (-1 if record.kind == "vessel" else 1)
        shade += contrast * cv2.GaussianBlur(mask.astype(np.float32), (0, 0), softness)
        tint = np.array([1.0, 0.62, 0.5]) + random.uniform(-0.1, 0.1, 3) if self.channels == 3 else np.ones(1)
        image = shade[..., None] * tint + random.normal(0, 0.05, (height, width, self.channels))
        return (image.clip(0, 1) * 255).astype(np.uint8), mask, None


def _cloud(random: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise in about [-0.5, 0.5], with structures of the size of the image / cells."""
    coarse = random.uniform(-0.5, 0.5, (cells + 1, cells + 1)).astype(np.float32)
    return cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)


def _lookalikes(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Bright smears without an edge and dark lines without branches: what a network must learn to leave out."""
    canvas = np.zeros(size, np.float32)
    for _ in range(random.integers(1, 4)):
        center = (int(random.integers(size[1])), int(random.integers(size[0])))
        cv2.circle(canvas, center, int(random.integers(3, max(4, min(size) // 10))), 1.0, -1)
    smear = cv2.GaussianBlur(canvas, (0, 0), min(size) / 14)
    line = np.zeros(size, np.float32)
    ends = [(int(random.integers(size[1])), int(random.integers(size[0]))) for _ in range(2)]
    cv2.line(line, *ends, 1.0, 1)
    return 0.25 * smear - 0.06 * cv2.GaussianBlur(line, (0, 0), 2.5)


def _blob(random: np.random.Generator, mask: np.ndarray, area: float) -> None:
    """One to three round shapes with wavy outlines."""
    number = int(random.integers(1, 4))
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    for share in random.dirichlet(np.full(number, 4.0)):
        radius = np.sqrt(share * area / np.pi) - 0.5  # fillPoly paints the outline too
        wave = sum(random.normal(0, 0.25 / k) * np.cos(k * angle + random.uniform(0, 6.3)) for k in (2, 3, 4))
        center = random.uniform(0.15, 0.85, 2) * mask.shape[::-1]
        outline = center + (radius * (1 + wave).clip(0.4, None)).clip(0, None)[:, None] * np.stack(
            [np.cos(angle), np.sin(angle)], 1
        )
        cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)


def _vessel(random: np.random.Generator, mask: np.ndarray, area: float) -> None:
    """A tree that enters from the edge and branches, thinner and thinner."""
    height, width = mask.shape
    scale = max(1.0, min(height, width) / 128)
    thickest = np.sqrt(area) / 8  # pixels; a small tree has a thin trunk
    tips: list[tuple[np.ndarray, float, float]] = []
    for _ in range(10 * (height + width)):  # a bound; the area is reached long before
        if mask.sum() >= area:
            return
        if not tips:  # a new trunk, from one of the four sides towards the middle
            side = random.uniform(-1, 1, 2)
            side /= np.abs(side).max()
            start = (side + 1) / 2 * (width - 1, height - 1)
            tips.append((start, float(np.arctan2(-side[1], -side[0])), min(random.uniform(2, 4) * scale, thickest)))
        point, direction, thickness = tips.pop(int(random.integers(len(tips))))
        for _ in range(int(random.integers(3, 7))):
            direction += random.normal(0, 0.25)
            ahead = point + 6 * scale * np.array([np.cos(direction), np.sin(direction)])
            ends = [tuple(round(float(value)) for value in end) for end in (point, ahead)]
            cv2.line(mask, *ends, 1, max(1, round(thickness)))
            point = ahead
            if mask.sum() >= area:
                return
        if thickness > 0.5 and 0 <= point[0] < width and 0 <= point[1] < height:
            for turn in (random.uniform(0.2, 0.8), -random.uniform(0.2, 0.8)):
                tips.append((point, direction + turn, 0.75 * thickness))


def _speck(random: np.random.Generator, mask: np.ndarray, area: float) -> None:
    """Small discs of one to three pixels in radius, until the area is reached."""
    while mask.sum() < area:
        center = (int(random.integers(mask.shape[1])), int(random.integers(mask.shape[0])))
        cv2.circle(mask, center, min(int(random.integers(1, 4)), max(1, int(np.sqrt(area / 3)))), 1, -1)


#: What can be drawn, each with its own share of foreground.
KINDS = {"blob": (_blob, 0.06), "vessel": (_vessel, 0.05), "speck": (_speck, 0.004)}
