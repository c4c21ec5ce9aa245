"""Pictures: predictions beside the truth, and learning curves."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from raremask.data.leaks import Twins
from raremask.inference import Predictor, predict
from raremask.metrics.overlap import pixel_counts, score

#: What becomes of a pixel, and its colour in RGB, by the palette's name. The second one is of Okabe and Ito
#: (https://jfly.uni-koeln.de/color/): its colours differ for colour-blind eyes too.
PALETTES = {
    "classic": {"TP": (0, 200, 0), "FP": (230, 0, 0), "FN": (230, 0, 230)},
    "colour_blind": {"TP": (86, 180, 233), "FP": (213, 94, 0), "FN": (240, 228, 66)},
}
LETTERS = 30  # of a line over an image of a gallery: more would run into the next
NAMES = {"TP": "found (TP)", "FP": "too much (FP)", "FN": "missed (FN)"}


@dataclass(frozen=True)
class Paint:
    """How predictions are painted over images.

    Args:
        palette: `classic` (green, red, magenta) or `colour_blind` (sky blue, vermilion, yellow).
        contours: Whether outlines are painted instead of areas: for thin structures, which areas would cover.
        opacity: How much of the colour covers the image, in [0, 1]; outlines cover it wholly.

    Raises:
        ValueError: If there is no such palette.
    """

    palette: str = "classic"
    contours: bool = False
    opacity: float = 0.6

    def __post_init__(self) -> None:
        if self.palette not in PALETTES:
            raise ValueError(f"figures.palette must be one of {', '.join(PALETTES)}; got {self.palette!r}")

    def __call__(self, image: np.ndarray, mask: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        """Paint true positives, false positives and false negatives over a gray image.

        Of outlines, those of the mask that the prediction's do not cover are false negatives, and so on.

        Args:
            image: `(h, w, 1 or 3)` uint8; resized to the mask.
            mask: `(height, width)` boolean.
            prediction: `(height, width)` boolean.

        Returns:
            `(height, width, 3)` uint8.

        >>> one = np.array([[True]])
        >>> Paint(opacity=1)(np.zeros((1, 1, 1), np.uint8), one, one).tolist()
        [[[0, 200, 0]]]
        """
        gray = image.mean(axis=2).astype(np.uint8)
        gray = cv2.resize(gray, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
        painted = np.repeat(gray[..., None], 3, axis=2).astype(np.float32)
        opacity = self.opacity
        if self.contours:
            mask, prediction, opacity = _edge(mask), _edge(prediction), 1.0
        for kind, where in (("TP", mask & prediction), ("FP", ~mask & prediction), ("FN", mask & ~prediction)):
            colour = np.array(PALETTES[self.palette][kind], np.float32)
            painted[where] = (1 - opacity) * painted[where] + opacity * colour
        return painted.round().astype(np.uint8)


def _edge(mask: np.ndarray) -> np.ndarray:
    """Foreground pixels that touch background; the image's edge is none."""
    return mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1).astype(bool)


@dataclass(frozen=True)
class Row:
    """One image of a gallery.

    Args:
        image: `(h, w, 1 or 3)` uint8, any size.
        mask: `(height, width)` boolean.
        predictions: What stands over each prediction, and the prediction, `(height, width)` boolean.
    """

    image: np.ndarray
    mask: np.ndarray
    predictions: Sequence[tuple[str, np.ndarray]]


def predicted(
    predictor: Predictor, selection: Callable[[np.ndarray], np.ndarray], sample: dict[str, Any], empty: str
) -> Row:
    """Predict one sample of an evaluation split and prepare it for a gallery, its Dice in the title.

    Args:
        predictor: Gives its probability.
        selection: Makes a mask of that, both `(h, w)`.
        sample: With its native mask, see :class:`raremask.data.samples.Pictures`.
        empty: Policy for images whose mask and prediction are both empty.
    """
    mask = sample["native_mask"][0].numpy()
    probability = predict(predictor, sample["image"].float().div(255), sample["size"], sample["box"])
    prediction = selection(probability.numpy())
    dice = score(np.array([pixel_counts(prediction, mask)]), empty)["dice"][0]
    top, left, height, width = sample["box"]
    picture = sample["image"][:, top : top + height, left : left + width]
    title = f"{sample['name']}  Dice {dice:.3f}"
    return Row(picture.numpy().transpose(1, 2, 0), mask, [(title, prediction)])


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draw the outline of a mask over an image, green, a pixel or more wide.

    Args:
        image: `(H, W, 1 or 3)` uint8.
        mask: `(H, W)` boolean.

    Returns:
        `(H, W, 3)` uint8.
    """
    painted = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image.copy()
    edges, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(painted, edges, -1, (0, 224, 0), max(1, round(min(mask.shape) / 300)))
    return painted


def gallery(
    rows: Sequence[Row], heading: str = "", paint: Paint | None = None, columns: Sequence[str] = ("",)
) -> Figure:
    """Draw image, truth and predictions side by side, one image to a row.

    Args:
        rows: What is shown, from top to bottom; at least one, with as many predictions each as there are `columns`.
        heading: Stands over everything.
        paint: How predictions are painted.
        columns: Stands over the predictions of the first row: whose they are.

    Returns:
        A figure that belongs to no window; save it with `savefig`.
    """
    paint = paint or Paint()
    height, width = rows[0].mask.shape
    number = 2 + len(columns)
    names = [fill(name, LETTERS) for name in ("image", "truth", *columns)]
    above = 0.75 + 0.15 * max(name.count("\n") for name in names)
    figure = Figure(figsize=(2.2 * number, above + len(rows) * (2.2 * height / width + 0.25)), layout="constrained")
    axes = figure.subplots(len(rows), number, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        tall, wide = row.mask.shape  # in whose proportions the image is shown, whatever the network saw
        line[0].imshow(row.image.squeeze(), cmap="gray", vmin=0, vmax=255, extent=(0, wide, tall, 0))
        line[1].imshow(row.mask, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for axis, (title, prediction) in zip(line[2:], row.predictions, strict=True):
            axis.imshow(paint(row.image, row.mask, prediction), interpolation="nearest")
            axis.set_title(title, fontsize=9, parse_math=False)
        for axis in line:
            axis.set_axis_off()
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title("\n".join(part for part in (name, axis.get_title()) if part), fontsize=9, parse_math=False)
    palette = PALETTES[paint.palette]
    patches = [Patch(color=(r / 255, g / 255, b / 255), label=NAMES[kind]) for kind, (r, g, b) in palette.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    if heading:
        figure.suptitle(heading, fontsize=11, parse_math=False)
    return figure


def scores(
    curve: Sequence[float],
    chosen: float,
    metric: str,
    foreground: np.ndarray,
    dice: np.ndarray,
    reliability: tuple[np.ndarray, np.ndarray],
) -> Figure:
    """Draw what a threshold does to a score, how the Dice depends on the foreground, and what probabilities are worth.

    Args:
        curve: The score on validation at evenly spaced thresholds from 0 to below 1.
        chosen: The threshold that was chosen.
        metric: What the score is called.
        foreground: `(n,)` true share of foreground of each test image, in [0, 1].
        dice: `(n,)` Dice of each; NaN where it is left out.
        reliability: Mean probability and share of foreground of groups of test pixels, NaN where a group is empty.

    Returns:
        A figure that belongs to no window.
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    threshold, size, honest = figure.subplots(1, 3)
    threshold.plot(np.arange(len(curve)) / len(curve), curve, color="#4477aa")
    threshold.axvline(0.5, color="gray", linestyle=":", label="0.5")
    threshold.axvline(chosen, color="#cc3311", label=f"chosen: {chosen:g}")
    threshold.set(title="Validation", xlabel="threshold", ylabel=f"mean {metric}", xlim=(0, 1), ylim=(0, 1))
    some = foreground > 0
    if some.any():
        size.scatter(foreground[some], dice[some], s=14, color="#4477aa", alpha=0.7)
    if not some.all():
        least = foreground[some].min() if some.any() else 1.0
        size.scatter(
            np.full((~some).sum(), least / 3), dice[~some], s=14, color="#cc3311", alpha=0.5, label="empty mask"
        )
    if some.any():
        logarithmic(size, shares=True)
    size.set(title="Test images", xlabel="share of foreground", ylabel="Dice", ylim=(-0.02, 1.02))
    honest.plot([0, 1], [0, 1], color="gray", linestyle=":", label="as it should be")
    said, there = (values[np.isfinite(reliability[0])] for values in reliability)
    honest.plot(said, there, marker="o", markersize=4, color="#4477aa", label="test pixels")
    honest.set(title="Reliability", xlabel="probability", ylabel="share of foreground", xlim=(0, 1), ylim=(0, 1))
    for axis in (threshold, size, honest):
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    return figure


def logarithmic(axis: Axes, *, shares: bool) -> None:
    """Make the scale of x, on which everything is drawn already, logarithmic; its labels do not touch.

    Args:
        axis: 7 cm wide or more.
        shares: Whether numbers are shares, written in percent.
    """
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    steps = (1, 2, 5) if high < 30 * low else (1, 3) if high < 300 * low else (1,)
    axis.xaxis.set_major_locator(LogLocator(subs=steps))
    unit = (lambda value, _: f"{100 * value:g} %") if shares else (lambda value, _: f"{value:g}")
    axis.xaxis.set_major_formatter(FuncFormatter(unit))
    axis.xaxis.set_minor_formatter(NullFormatter())


def twins(found: Sequence[Twins], titles: Sequence[str], images: Sequence[np.ndarray], most: int = 8) -> Figure:
    """Draw pairs of images that are nearly the same, two pairs to a row.

    Args:
        found: The pairs; at least one.
        titles: Stands over each image; the pairs count in it.
        images: `(h, w, 1 or 3)` uint8 each.
        most: How many pairs are drawn.

    Returns:
        A figure that belongs to no window.
    """
    shown = found[:most]
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(9, 0.6 + 2.3 * rows), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    sides = [(index, pair.likeness) for pair in shown for index in (pair.first, pair.second)]
    for axis, (index, likeness) in zip(axes, sides, strict=False):
        axis.imshow(images[index].squeeze(), cmap="gray", vmin=0, vmax=255)
        axis.set_title(f"{titles[index]}\n{likeness:.2f}", fontsize=7, parse_math=False)
    figure.suptitle(
        f"Nearly the same: {len(shown)} of {len(found)} pairs, most alike first", fontsize=11, parse_math=False
    )
    return figure


def contours(shown: Sequence[tuple[str, np.ndarray, np.ndarray]], heading: str = "") -> Figure:
    """Draw images with the outline of their masks, five to a row.

    Args:
        shown: Title, image `(h, w, 1 or 3)` uint8 and mask `(h, w)` of each; at least one.
        heading: Stands over everything.

    Returns:
        A figure that belongs to no window.
    """
    rows = -(-len(shown) // 5)
    height, width = shown[0][2].shape
    figure = Figure(figsize=(12, 0.7 + rows * (0.35 + 2.3 * height / width)), layout="constrained")
    axes = figure.subplots(rows, 5, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, image, mask) in zip(axes, shown, strict=False):
        axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        if mask.any() and not mask.all():
            axis.contour(mask, levels=[0.5], colors="#00e000", linewidths=1)
        axis.set_title(title, fontsize=8, parse_math=False)
    if heading:
        figure.suptitle(heading, fontsize=11, parse_math=False)
    return figure


def weight_maps(image: np.ndarray, mask: np.ndarray, maps: Mapping[str, np.ndarray], heading: str = "") -> Figure:
    """Draw an image, its mask, and what each pixel weighs in a loss under several settings, on one scale.

    Args:
        image: `(h, w, 1 or 3)` uint8.
        mask: `(h, w)`.
        maps: Weights `(h, w)` in [0, 1] by the title of their setting.
        heading: Stands over everything.

    Returns:
        A figure that belongs to no window.
    """
    number, (height, width) = 2 + len(maps), mask.shape
    figure = Figure(figsize=(2.4 * number + 0.6, 0.9 + 2.4 * height / width), layout="constrained")
    axes = figure.subplots(1, number)
    axes[0].imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
    axes[1].imshow(mask, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for axis, weights in zip(axes[2:], maps.values(), strict=True):
        scale = axis.imshow(weights, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    for axis, title in zip(axes, ("image", "mask", *maps), strict=True):
        axis.set_title(title, fontsize=9, parse_math=False)
        axis.set_axis_off()
    figure.colorbar(scale, ax=axes[2:].tolist(), shrink=0.8, label="weight")
    if heading:
        figure.suptitle(heading, fontsize=11, parse_math=False)
    return figure


def histograms(panels: Sequence[tuple[str, str, Sequence[float], bool]], intensity: np.ndarray) -> Figure:
    """Draw how measures are distributed over images or objects, and how often each intensity occurs.

    Args:
        panels: Title, unit, values, and whether they are measured, more than 0 and perhaps of several orders of
            magnitude (then the scale is logarithmic), not counted.
        intensity: `(1 or 3, 256)` how often each value occurs in each channel.

    Returns:
        A figure that belongs to no window.
    """
    rows = -(-(len(panels) + 1) // 3)
    figure = Figure(figsize=(11, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    for axis, (title, unit, values, wide) in zip(axes, panels, strict=False):
        axis.set(title=title, xlabel=unit)
        if len(values) == 0:
            axis.text(0.5, 0.5, "none", ha="center", va="center", transform=axis.transAxes)
            continue
        low, high = min(values), max(values)
        if wide and high > 20 * low:
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(NullFormatter())  # or labels are written over each other
            bins = np.geomspace(low * 0.95, high * 1.05, 31)
        elif wide:
            bins = np.linspace(low, max(high, low + 1e-6), 31)
        else:
            bins = np.arange(low - 0.5, high + 1)
            axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.hist(values, bins=bins, color="#4477aa")
        median = float(np.median(values))
        axis.axvline(
            median, color="#cc3311", label=f"median {median:.0f}" if median >= 1000 else f"median {median:.3g}"
        )
        axis.legend(fontsize=8, frameon=False)
    colours = ("#cc3311", "#228833", "#4477aa") if len(intensity) == 3 else ("#555555",)
    for counts, colour in zip(intensity, colours, strict=True):
        axes[len(panels)].plot(counts / counts.sum(), color=colour, linewidth=1)
    axes[len(panels)].set(title="Intensity", xlabel="value", yscale="log")
    for axis in axes[len(panels) + 1 :]:
        axis.set_axis_off()
    return figure


def curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw the losses and the Dice scores over the epochs, from 1, with a line where `optim/stage` changes.

    Args:
        history: One mapping per epoch with `epoch` (from 0) and whatever was logged; missing values are left out.

    Returns:
        A figure that belongs to no window.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = {"Loss": ["train/loss", "val/loss"], "Dice": ["train/dice", "val/dice", "val/dice_pooled", "val/dice_fov"]}
    for axis, (title, keys) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for key in keys:
            points = [(row["epoch"] + 1, row[key]) for row in history if math.isfinite(row.get(key, math.nan))]
            if points:
                axis.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else None, label=key)
        for before, after in itertools.pairwise(history):
            if before.get("optim/stage") != after.get("optim/stage"):
                axis.axvline(after["epoch"] + 1, color="gray", linestyle="--", label="loss switch")
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.axes[1].set_ylim(0, 1)
    return figure
