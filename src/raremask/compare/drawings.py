"""Pictures of a comparison."""

from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from raremask.compare.statistics import Estimate, Pair
from raremask.figures import logarithmic

#: Six of Paul Tol's bright colours and four more: they differ for colour-blind eyes too, in this order.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#000000", "#004488", "#bbcc33")
STYLES = ("-", "--", ":")
PAIRS = 30  # more have no room
BINS = 6  # of foreground or size, over which means are drawn
WIDE = 44  # letters of a label in a line: more would leave no room for what is drawn


def looks(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour and line style of each label."""
    return {
        label: {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index // len(COLOURS) % len(STYLES)]}
        for index, label in enumerate(labels)
    }


def _rows(labels: Iterable[str], inches: float) -> tuple[list[str], float]:
    """Labels in lines, and the height in inches that rows of so many lines need."""
    texts = [fill(label, WIDE) for label in labels]
    return texts, len(texts) * max(inches, 0.17 * max(text.count("\n") + 1.2 for text in texts))


def critical_difference(means: Mapping[str, Estimate], stretches: Sequence[tuple[int, int]], metric: str) -> Figure:
    """Draw means with their intervals, the best on top, and a bar beside those that are not told apart.

    Args:
        means: By label, the best first.
        stretches: First and last place of each bar.
        metric: What is drawn.
    """
    texts, height = _rows(means, 0.34)
    figure = Figure(figsize=(8, 0.8 + height), layout="constrained")
    axis = figure.subplots()
    for place, (label, look) in enumerate(looks(list(means)).items()):
        one = means[label]
        if np.isfinite(one.low):
            axis.plot([one.low, one.high], [place, place], color=look["color"], linewidth=2)
        axis.plot(one.value, place, marker="o", color=look["color"])
    right = axis.get_xlim()[1]
    step = 0.025 * (right - axis.get_xlim()[0])
    for index, (first, last) in enumerate(stretches):
        axis.plot([right + (index + 1) * step] * 2, [first - 0.2, last + 0.2], color="black", linewidth=3)
    axis.set_yticks(range(len(means)), texts)
    axis.set_ylim(len(means) - 0.5, -0.5)  # the first on top
    axis.set_xlabel(f"mean {metric}, 95 % interval; a bar joins what is not told apart")
    axis.grid(axis="x", alpha=0.3)
    return figure


def ranking(shares: Mapping[str, np.ndarray]) -> Figure:
    """Draw how often each label came first, second, ... as bars of shares.

    Args:
        shares: Of :func:`raremask.compare.statistics.ranks`, the best label first.
    """
    texts, height = _rows(shares, 0.34)
    figure = Figure(figsize=(8, 0.9 + height), layout="constrained")
    axis = figure.subplots()
    places = len(shares)
    left = np.zeros(places)
    for place in range(places):
        width = np.array([row[place] for row in shares.values()])
        shade = 0.15 + 0.75 * place / max(1, places - 1)
        axis.barh(range(places), width, left=left, color=str(shade), edgecolor="white", label=f"{place + 1}.")
        left += width
    axis.set_yticks(range(places), texts)
    axis.set_ylim(places - 0.5, -0.5)  # the first on top
    axis.set(xlim=(0, 1), xlabel="share of the bootstrap draws in which it takes this place")
    if places <= 10:
        axis.legend(ncols=places, fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def differences(pairs: Mapping[tuple[str, str], Pair], margin: float) -> Figure:
    """Draw the difference of every pair (the first 30) with its interval, filled where the two are told apart.

    Args:
        pairs: By the labels of the two.
        margin: Differences up to this are too small to matter; shaded.
    """
    shown = list(pairs.items())[:PAIRS]
    texts, height = _rows((f"{first} \N{MINUS SIGN} {second}" for (first, second), _ in shown), 0.28)
    figure = Figure(figsize=(8, 0.9 + height), layout="constrained")
    axis = figure.subplots()
    axis.axvspan(-margin, margin, color="#dddddd", label=f"margin: {margin:g}")
    axis.axvline(0, color="black", linewidth=1)
    for place, (_, pair) in enumerate(shown):
        one, colour = pair.difference, "#4477aa"
        if np.isfinite(one.low):
            axis.plot([one.low, one.high], [place, place], color=colour, linewidth=2)
        axis.plot(one.value, place, marker="o", color=colour, markerfacecolor=colour if pair.told_apart else "white")
    axis.set_yticks(range(len(shown)), texts)
    axis.set_ylim(len(shown) - 0.5, -0.5)  # the first on top
    axis.set_xlabel("mean difference, 95 % interval; filled: told apart after correction")
    axis.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    axis.grid(axis="x", alpha=0.3)
    return figure


def against(scores: Mapping[str, np.ndarray], panels: Sequence[tuple[str, np.ndarray, bool]], metric: str) -> Figure:
    """Draw each image's score, and its mean over images alike, against measures of its mask.

    Args:
        scores: `(S, N)` by label.
        panels: Name of a measure, its values `(N,)`, and whether they are shares.
        metric: What is drawn.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axis, (name, values, shares) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        there = np.isfinite(values) & (values > 0)
        axis.set(xlabel=name, ylabel=metric)
        if not there.any():
            axis.text(0.5, 0.5, "no image has any foreground", ha="center", transform=axis.transAxes)
            continue
        edges = np.unique(np.quantile(values[there], np.linspace(0, 1, BINS + 1)))
        bins = np.clip(np.searchsorted(edges, values[there], side="right") - 1, 0, max(0, len(edges) - 2))
        for label, look in looks(list(scores)).items():
            mean = np.nanmean(scores[label][:, there], axis=0) if len(scores[label]) > 1 else scores[label][0, there]
            axis.scatter(values[there], mean, s=6, alpha=0.25, color=look["color"], linewidths=0, rasterized=True)
            used = [part for part in range(len(edges) - 1) if np.isfinite(mean[bins == part]).any()]
            middle = [np.median(values[there][bins == part]) for part in used]
            axis.plot(
                middle, [np.nanmean(mean[bins == part]) for part in used], label=fill(label, WIDE), linewidth=2, **look
            )
        logarithmic(axis, shares=shares)
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    return figure


def learning(histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], key: str) -> Figure:
    """Draw a logged score over the epochs, from 1: a thin line for each run, a thick one for the mean of a label.

    Args:
        histories: The histories of the runs of each label.
        key: What is drawn, such as `val/dice`.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    for label, look in looks(list(histories)).items():
        lines = [[(row["epoch"] + 1, row[key]) for row in rows if key in row] for rows in histories[label]]
        for line in filter(None, lines):
            axis.plot(*zip(*line, strict=True), linewidth=0.6, alpha=0.5, **look)
        longest = max((len(line) for line in lines), default=0)
        padded = np.full((max(1, len(lines)), longest), np.nan)
        for row, line in zip(padded, lines, strict=False):
            row[: len(line)] = [value for _, value in line]
        there = np.isfinite(padded).any(axis=0) if longest else np.zeros(0, bool)
        if there.any():
            axis.plot(
                np.flatnonzero(there) + 1,
                np.nanmean(padded[:, there], axis=0),
                label=fill(label, WIDE),
                linewidth=2,
                **look,
            )
    axis.set(xlabel="epoch", ylabel=key, ylim=(0, 1))
    axis.locator_params("x", integer=True, min_n_ticks=1)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def thresholds(curves: Mapping[str, Sequence[tuple[Sequence[float], float, float]]], metric: str) -> Figure:
    """Draw the score on validation over the threshold, and the chosen ones as points.

    Args:
        curves: The curve, the chosen threshold and what it reached, of each run of each label.
        metric: What is drawn.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    for label, look in looks(list(curves)).items():
        for index, (curve, chosen, reached) in enumerate(curves[label]):
            grid = np.arange(len(curve)) / len(curve)
            axis.plot(grid, curve, linewidth=1, label=fill(label, WIDE) if index == 0 else None, **look)
            axis.plot(chosen, reached, marker="o", color=look["color"])
    axis.set(xlabel="threshold", ylabel=f"mean {metric} on validation", xlim=(0, 1), ylim=(0, 1))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure
