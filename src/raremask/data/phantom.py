"""Phantoms: generated images with rare foreground, so that everything runs without a download."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from raremask.data.base import ImageMaskData, Record

NOWHERE = Path()  # a phantom has no file
MIXED = ("polyp", "vessel", "speck")


@dataclass(frozen=True)
class Recipe(Record):
    """What makes one phantom.

    Args:
        kind: What is drawn; a key of :data:`KINDS`.
        fraction: Share of the pixels that is foreground, nearly; 0 draws none.
        seed: Decides everything else.
    """

    kind: str = "polyp"
    fraction: float = 0.0
    seed: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Kind:
    """A family of phantoms.

    Args:
        outline: Draws about `area` pixels of foreground into a mask of zeros: `outline(random, mask, area)`.
        paint: Makes the image `(h, w, channels)`, about 0 to 1, of a boolean mask: `paint(random, mask, channels)`.
        foreground: Mean share of the pixels that is foreground, in images that have some.
        empty: Share of the images without foreground.
    """

    outline: Callable[[np.random.Generator, np.ndarray, float], None]
    paint: Callable[[np.random.Generator, np.ndarray, int], np.ndarray]
    foreground: float
    empty: float = 0.0


class Phantom(ImageMaskData):
    """Images made from a seed, no files.

    `polyp`: round shapes with soft edges on uneven ground; `vessel`: dark branching trees; `speck`: bright dots, below
    1 %; all three between smears and lines that resemble them without being foreground. `lesion`: one dark patch with
    a ragged edge on skin, among freckles and hairs. `ultrasound`: speckle over layers of tissue, in 40 % of the images
    a nerve, in most a vessel that looks like one.

    Args:
        kind: One of these, or `mixed`: polyp, vessel and speck in turn.
        foreground: Mean share of the pixels that is foreground, in (0, 0.5), in images that have some; None takes each
            kind's own: polyp 0.06, vessel 0.05, speck 0.004, lesion 0.2, ultrasound 0.03. Single images vary from half
            to one and a half times that.
        empty: Share of the images without any foreground, in [0, 1); None takes each kind's own: ultrasound 0.6,
            others 0.
        train: Number of training images.
        val: Number of validation images.
        test: Number of test images.
        data_seed: Decides the images; apart from the run's seed, so that runs compare.
        **shared: As in :class:`~raremask.data.base.ImageMaskData`; `size` must be given.

    Raises:
        ValueError: If a number is out of its range or `kind` is unknown.
    """

    size: tuple[int, int]  # never None: it must be given

    def __init__(
        self,
        kind: str = "mixed",
        foreground: float | None = None,
        empty: float | None = None,
        train: int = 160,
        val: int = 48,
        test: int = 96,
        data_seed: int = 0,
        **shared: Any,
    ):
        super().__init__(**shared)
        if kind not in (*KINDS, "mixed"):
            raise ValueError(f"dataset.kind must be one of {', '.join(KINDS)} or mixed; got {kind!r}")
        if foreground is not None and not 0 < foreground < 0.5:
            raise ValueError(
                f"dataset.foreground is a share of the pixels, more than 0 and below 0.5; got {foreground}"
            )
        if empty is not None and not 0 <= empty < 1:
            raise ValueError(f"dataset.empty is a share of the images, from 0 to below 1; got {empty}")
        if self.size is None or min(self.size) < 32:
            raise ValueError(f"dataset.size must be given, 32 pixels or more on each side; got {self.size}")
        self.kind, self.foreground, self.empty, self.data_seed = kind, foreground, empty, data_seed
        self.numbers = {"train": train, "val": val, "test": test}

    def records(self) -> list[Record]:
        """Return what makes the phantoms of the three splits."""
        return [
            self._recipe(split, part, index)
            for part, (split, number) in enumerate(self.numbers.items())
            for index in range(number)
        ]

    def _recipe(self, split: str, part: int, index: int) -> Recipe:
        kind = self.kind if self.kind != "mixed" else MIXED[index % len(MIXED)]
        seed = (self.data_seed, part, index)
        random = np.random.default_rng(seed)
        empty = KINDS[kind].empty if self.empty is None else self.empty
        fraction = (self.foreground or KINDS[kind].foreground) * random.uniform(0.5, 1.5) * (random.random() >= empty)
        name = f"{split}_{index:04d}_{kind}"
        return Recipe(name, name, NOWHERE, NOWHERE, split=split, kind=kind, fraction=fraction, seed=seed)

    def arrays(self, record: Recipe) -> tuple[np.ndarray, np.ndarray, None]:  # type: ignore[override]  # its own
        """Draw one phantom: its image `(h, w, C)` uint8 and its mask `(h, w)` boolean."""
        random = np.random.default_rng([*record.seed, 1])
        height, width = self.size
        drawn = np.zeros(self.size, np.uint8)
        if record.fraction > 0:
            KINDS[record.kind].outline(random, drawn, max(1.0, record.fraction * height * width))
        mask = drawn > 0
        image = KINDS[record.kind].paint(random, mask, self.channels)
        return (image.clip(0, 1) * 255).astype(np.uint8), mask, None


def _tissue(softness: float, sign: int) -> Callable[[np.random.Generator, np.ndarray, int], np.ndarray]:
    """Uneven, textured, noisy tissue, on which the foreground is brighter (sign 1) or darker (-1), with soft edges."""

    def paint(random: np.random.Generator, mask: np.ndarray, channels: int) -> np.ndarray:
        shade = 0.55 + 0.5 * _cloud(random, mask.shape, 2) + 0.25 * _cloud(random, mask.shape, 6)  # uneven light
        shade += 0.12 * _cloud(random, mask.shape, 24)  # texture
        shade += _lookalikes(random, mask.shape)
        contrast = random.uniform(0.15, 0.3) * sign
        shade += contrast * cv2.GaussianBlur(mask.astype(np.float32), (0, 0), softness)
        tint = np.array([1.0, 0.62, 0.5]) + random.uniform(-0.1, 0.1, 3) if channels == 3 else np.ones(1)
        return shade[..., None] * tint + random.normal(0, 0.05, (*mask.shape, channels))

    return paint


def _skin(random: np.random.Generator, mask: np.ndarray, channels: int) -> np.ndarray:
    """Light skin with a dark patch of uneven pigment, freckles, hairs and a darker rim of the picture."""
    height, width = mask.shape
    unit = min(height, width) / 128
    pigment: np.ndarray = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), random.uniform(1, 5) * unit)
    pigment *= random.uniform(0.15, 0.6) * (1 + 1.5 * _cloud(random, mask.shape, 4) + _cloud(random, mask.shape, 16))
    pigment += random.uniform(0, 0.8) * _cloud(random, mask.shape, 4).clip(0, None)  # skin that has some of it too
    for _ in range(random.integers(2, 9)):  # freckles: small, and not foreground
        freckle = np.zeros(mask.shape, np.float32)
        center = (int(random.integers(width)), int(random.integers(height)))
        cv2.circle(freckle, center, max(1, round(random.uniform(1, 3.5) * unit)), 1.0, -1)
        pigment += random.uniform(0.2, 0.5) * cv2.GaussianBlur(freckle, (0, 0), unit)
    hairs = np.zeros(mask.shape, np.float32)
    for _ in range(random.integers(0, 7)):
        start, bend = random.uniform(0, 1, 2) * (width, height), random.uniform(-2, 2)
        along = np.linspace(0, random.uniform(30, 90) * unit, 12)
        turn = random.uniform(0, 6.3) + bend * np.linspace(0, 1, 12)
        points = start + np.cumsum(np.stack([np.cos(turn), np.sin(turn)], 1) * np.diff(along, prepend=0)[:, None], 0)
        cv2.polylines(hairs, [np.round(points).astype(np.int32)], False, 1.0, max(1, round(0.7 * unit)), cv2.LINE_AA)
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = 0.82 + 0.25 * _cloud(random, mask.shape, 2) - random.uniform(0, 0.25) * (rows**2 + columns**2) / 2
    skin = np.array([0.95, 0.76, 0.68]) + random.uniform(-0.06, 0.06, 3) if channels == 3 else np.full(1, 0.8)
    brown = np.array([0.55, 0.75, 0.8]) if channels == 3 else np.full(1, 0.7)  # how much of each colour pigment takes
    shade = light[..., None] * skin * (1 - brown * pigment.clip(0, 1)[..., None]) * (1 - 0.7 * hairs[..., None])
    return shade + random.normal(0, 0.05, (height, width, channels))


def _echo(random: np.random.Generator, mask: np.ndarray, channels: int) -> np.ndarray:
    """Layers of tissue that darken with depth, dark vessels with and without the nerve's bright rim, and speckle."""
    height, width = mask.shape
    unit = min(height, width) / 128
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    bent = rows + 0.25 * _cloud(random, mask.shape, 3)
    layers = 0.5 + 0.3 * np.sin(2 * np.pi * (random.uniform(2, 5) * bent + random.uniform()))
    echo = (layers + 0.5 * _cloud(random, mask.shape, 8)).clip(0.1, None) * np.exp(-random.uniform(0.3, 1.2) * rows)
    for _ in range(random.integers(0, 3)):  # vessels: darker than a nerve, without its rim and grain
        center, axes = random.uniform(0, 1, 2), random.uniform(0.04, 0.1, 2)
        inside = ((columns - center[0]) / axes[0]) ** 2 + ((rows - center[1]) / axes[1]) ** 2 < 1
        echo *= 1 - random.uniform(0.5, 0.9) * cv2.GaussianBlur((inside & ~mask).astype(np.float32), (0, 0), unit)
    nerve = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), unit)
    rim = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 2.5 * unit) - nerve
    grain = 1 + 1.5 * _cloud(random, mask.shape, round(min(height, width) / (3 * unit)))
    echo = (
        echo * (1 - nerve) + nerve * random.uniform(0.25, 0.45) * grain + random.uniform(0.3, 0.8) * rim.clip(0, None)
    )
    amplitude = np.hypot(*random.normal(0, 1, (2, height, width)))  # Rayleigh: what echoes of many scatterers sum up to
    speckle = cv2.GaussianBlur(amplitude, (0, 0), sigmaX=1.2 * unit, sigmaY=0.6 * unit) / 1.25
    return np.repeat((0.75 * echo.clip(0, None) * speckle)[..., None], channels, axis=2)


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
    start, end = ((int(random.integers(size[1])), int(random.integers(size[0]))) for _ in range(2))
    cv2.line(line, start, end, 1.0, 1)
    return 0.25 * smear - 0.06 * cv2.GaussianBlur(line, (0, 0), 2.5)


def _polyp(random: np.random.Generator, mask: np.ndarray, area: float) -> None:
    """One to three round shapes with wavy outlines."""
    number = int(random.integers(1, 4))
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    for share in random.dirichlet(np.full(number, 4.0)):
        radius = np.sqrt(share * area / np.pi) - 0.5  # fillPoly paints the outline too
        waves = [random.normal(0, 0.25 / k) * np.cos(k * angle + random.uniform(0, 6.3)) for k in (2, 3, 4)]
        center = random.uniform(0.15, 0.85, 2) * mask.shape[::-1]
        outline = center + (radius * (1 + np.sum(waves, axis=0)).clip(0.4, None)).clip(0, None)[:, None] * np.stack(
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
            here, there = ((round(float(x)), round(float(y))) for x, y in (point, ahead))
            cv2.line(mask, here, there, 1, max(1, round(thickness)))
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


def _lesion(random: np.random.Generator, mask: np.ndarray, area: float) -> None:
    """One large shape near the middle with a ragged outline."""
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    waves = [random.normal(0, 0.3 / k) * np.cos(k * angle + random.uniform(0, 6.3)) for k in (2, 3, 5, 8, 13, 21)]
    squeeze = np.array([1.0, random.uniform(0.6, 1.0)])
    radius = np.sqrt(area / np.pi / squeeze[1]) * (1 + np.sum(waves, axis=0)).clip(0.4, None)
    radius *= np.sqrt(area / np.pi / squeeze[1]) / np.sqrt((radius**2).mean())  # as large as is asked for
    center = random.uniform(0.35, 0.65, 2) * mask.shape[::-1]
    outline = center + (radius - 0.5)[:, None] * squeeze * np.stack([np.cos(angle), np.sin(angle)], 1)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)


def _nerve(random: np.random.Generator, mask: np.ndarray, area: float) -> None:
    """One ellipse, wider than tall and tilted."""
    longer = random.uniform(1.2, 2.2)
    axes = np.sqrt(area / np.pi) * np.array([np.sqrt(longer), 1 / np.sqrt(longer)]) - 0.5
    center = random.uniform(0.25, 0.75, 2) * mask.shape[::-1]
    angle, tilt = np.linspace(0, 2 * np.pi, 64, endpoint=False), random.uniform(-0.5, 0.5)
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    outline = center + (axes.clip(0, None) * np.stack([np.cos(angle), np.sin(angle)], 1)) @ turn.T
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)


#: What can be drawn.
KINDS = {
    "polyp": Kind(_polyp, _tissue(softness=2.0, sign=1), foreground=0.06),
    "vessel": Kind(_vessel, _tissue(softness=0.6, sign=-1), foreground=0.05),
    "speck": Kind(_speck, _tissue(softness=0.5, sign=1), foreground=0.004),
    "lesion": Kind(_lesion, _skin, foreground=0.2),
    "ultrasound": Kind(_nerve, _echo, foreground=0.03, empty=0.6),
}
