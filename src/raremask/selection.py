"""What turns probabilities into masks, chosen on the validation split: threshold, views and post-processing.

Nothing here ever sees the test split. A choice is kept simple: another threshold, and each further step, must be better
by a margin and by more than one standard error over patients, or it is noise of a few that is being followed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from raremask.metrics.calibration import BINS, EDGES, EVEN, counts_at
from raremask.metrics.overlap import SCORES, mean, score
from raremask.postprocess import Chain, FillHoles, LargestComponent, MinArea, Step

MARGIN = 0.002  # of the mean score on validation: below this two choices are equally good


@dataclass(frozen=True)
class Selection:
    """What turns a probability into a mask.

    Args:
        threshold: Foreground is what is more probable, in [0, 1).
        views: Of :data:`raremask.inference.VIEWS`.
        min_area: Pieces with fewer pixels are dropped, at native size; 0 drops none.
        largest: Whether only the largest piece stays.
        holes: Whether holes are filled.

    Raises:
        ValueError: If the threshold is out of its range.
    """

    threshold: float = 0.5
    views: str = "none"
    min_area: int = 0
    largest: bool = False
    holes: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must be from 0 to below 1; got {self.threshold}")

    def postprocess(self) -> Chain:
        """Return the chain of steps after the threshold."""
        steps: dict[str, Step] = {}
        if self.min_area:
            steps["min_area"] = MinArea(self.min_area)
        if self.largest:
            steps["largest"] = LargestComponent()
        if self.holes:
            steps["holes"] = FillHoles()
        return Chain(steps)

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """Return the mask `(H, W)` boolean of a probability `(H, W)` at native size."""
        return self.postprocess()(probability > self.threshold)

    def words(self) -> str:
        """Say it in a few words.

        >>> Selection(0.4, "flips", min_area=50).words()
        'threshold 0.4, views flips, no piece below 50 pixels'
        """
        parts = [f"threshold {self.threshold:g}"]
        if self.views != "none":
            parts.append(f"views {self.views}")
        if self.min_area:
            parts.append(f"no piece below {self.min_area} pixels")
        if self.largest:
            parts.append("the largest piece")
        if self.holes:
            parts.append("holes filled")
        return ", ".join(parts)


def together(selections: Sequence[Selection]) -> Selection:
    """Return the selection of networks whose probabilities are averaged: their mean threshold, and what all agree on.

    Of a single one it is that one's.

    >>> together([Selection(0.2, "flips", 50, holes=True), Selection(0.4, "flips", 20)])
    Selection(threshold=0.3, views='flips', min_area=20, largest=False, holes=False)
    """
    if len(selections) == 1:
        return selections[0]
    views = {selection.views for selection in selections}
    return Selection(
        threshold=round(float(np.mean([selection.threshold for selection in selections])), 9),
        views=views.pop() if len(views) == 1 else "none",
        min_area=min(selection.min_area for selection in selections),
        largest=all(selection.largest for selection in selections),
        holes=all(selection.holes for selection in selections),
    )


@dataclass(frozen=True)
class Choice:
    """A selection and how it came about.

    Args:
        selection: What was chosen.
        metric: The mean over images that was looked at.
        value: What it reached on validation.
        unprocessed: What its threshold and views reach there without post-processing.
        default: What threshold 0.5 with the simplest of the views, without post-processing, reaches there.
        curve: The metric at each threshold k / 1000, with the chosen views and without post-processing. (Those tried
            lie closer below the first and above the last: :data:`raremask.metrics.calibration.EDGES`.)
        tried: Every step that was tried, in words, and what it reached.
        groups: How many patients or sequences the validation images are of.
    """

    selection: Selection
    metric: str
    value: float
    unprocessed: float
    default: float
    curve: list[float]
    tried: list[tuple[str, float]] = field(default_factory=list)
    groups: int = 0


def threshold_curve(counted: np.ndarray, metric: str, empty: str) -> np.ndarray:
    """Mean over images of a score at every threshold.

    Args:
        counted: `(n, 2, BINS)` histograms of the images, see :func:`raremask.metrics.calibration.histogram`.
        metric: A name in :data:`raremask.metrics.overlap.SCORES`.
        empty: Policy for images whose mask and prediction are both empty.

    Returns:
        `(BINS,)` for the thresholds of :data:`raremask.metrics.calibration.EDGES` but 1; NaN where all images are left
        out.

    Raises:
        ValueError: If there is no such score.
    """
    if metric not in SCORES:
        raise ValueError(f"selection.metric must be one of {', '.join(SCORES)}; got {metric!r}")
    total, used = np.zeros(BINS), np.zeros(BINS)
    for image in counted:
        values = score(counts_at(image), empty)[metric]
        total += np.nan_to_num(values)
        used += ~np.isnan(values)
    return np.divide(total, used, out=np.full(BINS, np.nan), where=used > 0)


def best_threshold(curve: np.ndarray) -> float:
    """The threshold nearest to 0.5 among those that are as good as the best, but for `MARGIN`.

    Args:
        curve: `(BINS,)` of :func:`threshold_curve`.

    >>> best_threshold(np.where(EDGES[:-1] <= 0.3, 1.0, 0.0))
    0.3
    """
    good = EDGES[:-1][np.nan_to_num(curve, nan=-1) >= np.nanmax(curve) - MARGIN]
    return float(good[np.argmin(np.abs(good - 0.5))])


def select(
    histograms: Mapping[str, np.ndarray],
    counts_of: Callable[[Selection], np.ndarray],
    groups: Sequence[str],
    metric: str = "dice",
    areas: Sequence[int] = (),
    largest: bool = False,
    holes: bool = False,
    empty: str = "one",
) -> Choice:
    """Choose threshold, views and post-processing, one after the other, each by its gain on validation.

    Args:
        histograms: `(n, 2, BINS)` of the validation images, for each kind of views that may be chosen, simplest first.
        counts_of: Gives the counts `(n, 4)` of the same images under a selection, processed.
        groups: Of the same images (patients, sequences): those of one are not taken as independent.
        metric: The mean over images to choose by; a name in :data:`raremask.metrics.overlap.SCORES`.
        areas: Smallest areas that may be asked of a piece, in pixels.
        largest: Whether keeping only the largest piece may be chosen.
        holes: Whether filling holes may be chosen.
        empty: Policy for images whose mask and prediction are both empty.

    Raises:
        ValueError: If there is no such score.
    """
    curves = {views: threshold_curve(counted, metric, empty) for views, counted in histograms.items()}

    def at(views: str, threshold: float) -> np.ndarray:
        counts = np.array([counts_at(image)[EDGES.searchsorted(threshold)] for image in histograms[views]])
        return score(counts, empty)[metric]

    chosen = Selection(views=next(iter(curves)))
    default = values = at(chosen.views, chosen.threshold)
    tried = [(chosen.words(), mean(default))]
    for views, curve in curves.items():
        candidate = Selection(best_threshold(curve), views)
        reached = at(views, candidate.threshold)
        tried.append((candidate.words(), mean(reached)))
        if convincing(reached, values, groups):
            chosen, values = candidate, reached
    unprocessed = mean(values)
    curve = curves[chosen.views][EDGES.searchsorted(np.arange(EVEN) / EVEN)]
    steps: list[dict[str, Any]] = [{"min_area": area} for area in sorted(areas)]
    steps += [{"largest": True}] * largest + [{"holes": True}] * holes
    for step in steps:
        candidate = replace(chosen, **step)
        reached = score(counts_of(candidate), empty)[metric]
        tried.append((candidate.words(), mean(reached)))
        if convincing(reached, values, groups):
            chosen, values = candidate, reached
    return Choice(chosen, metric, mean(values), unprocessed, mean(default), curve.tolist(), tried, len(set(groups)))


def convincing(values: np.ndarray, than: np.ndarray, groups: Sequence[str]) -> bool:
    """Say if scores are better than others of the same images by more than a margin and than one standard error.

    Args:
        values: `(n,)`, NaN for an image that is left out.
        than: `(n,)` likewise.
        groups: `n`, of the images; the error is that over groups. Of a single one it is that over its images, which
            says nothing of other patients.

    >>> convincing(np.array([0.5, 0.6, 0.7]), np.array([0.4, 0.5, 0.6]), "abc")
    True
    >>> convincing(np.array([0.9, 0.4, 0.5]), np.array([0.4, 0.5, 0.6]), "abc")  # one image against two
    False
    >>> convincing(np.array([0.6, 0.45, 0.55]), np.array([0.4, 0.5, 0.6]), "abb")  # a patient against another
    False
    >>> convincing(np.array([0.9]), np.array([0.4]), "a")
    False
    """
    there = np.isfinite(values - than)
    difference, (_, members) = (values - than)[there], np.unique(np.array(list(groups))[there], return_inverse=True)
    if not members.any():  # of one patient
        members = np.arange(len(difference))
    count = members.max(initial=-1) + 1
    if count < 2:
        return False
    off = np.bincount(members, difference - difference.mean())
    error = np.sqrt(count / (count - 1) * (off**2).sum()) / len(difference)
    return bool(difference.mean() > max(MARGIN, error))
