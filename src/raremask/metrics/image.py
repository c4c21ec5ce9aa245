"""Every score of one image, by one name each."""

from typing import NamedTuple

import numpy as np

from raremask.metrics.calibration import average_precision, calibration_scores, histogram
from raremask.metrics.objects import centreline_dice, detection_scores
from raremask.metrics.overlap import EMPTY, more_scores, pixel_counts, score
from raremask.metrics.surface import boundary_iou, surface_scores


class Measured(NamedTuple):
    """What was measured of one image.

    Args:
        scores: Every score by its name.
        counts: `(4,)` int64: tp, fp, fn, tn.
        counted: `(2, BINS)` histogram of its probabilities, see :func:`raremask.metrics.calibration.histogram`.
    """

    scores: dict[str, float]
    counts: np.ndarray
    counted: np.ndarray


def measure(
    probability: np.ndarray,
    prediction: np.ndarray,
    mask: np.ndarray,
    valid: np.ndarray | None = None,
    empty: str = "one",
    tolerance: float = 2.0,
    whole: Measured | None = None,
) -> Measured:
    """Count and score one image in every way.

    Args:
        probability: `(H, W)` float in [0, 1], of the foreground.
        prediction: `(H, W)` boolean: what became of it, by a threshold and perhaps more.
        mask: `(H, W)` boolean, the truth.
        valid: `(H, W)` boolean; where it does not hold, nothing counts, and both masks are taken as background.
        empty: What an image is worth whose mask and prediction are both empty: `one` (and distance 0), `skip` (NaN) or
            `zero` (and the image's diagonal for distances).
        tolerance: Of the normalised surface Dice, in pixels.
        whole: The same image measured without `valid`. If both masks are empty outside of it, its shapes score the
            same, and are not measured twice.

    Returns:
        Counts, histogram, and the scores of :mod:`raremask.metrics.overlap`, :mod:`~raremask.metrics.surface`,
        :mod:`~raremask.metrics.objects` and :mod:`~raremask.metrics.calibration` by name. The policy holds for all but
        `specificity`, `brier` and `ece`, which an empty mask does not trouble, and `average_precision`, which is NaN
        for it.

    Raises:
        ValueError: If there is no such policy, or the shapes differ.
    """
    shapes = {part.shape for part in (probability, prediction, mask, valid) if part is not None}
    if len(shapes) > 1:
        raise ValueError(f"probability, prediction, mask and valid must have one shape; got {sorted(shapes)}")
    known = None if whole is None or valid is None or ((prediction | mask) & ~valid).any() else whole.scores
    if valid is not None:
        prediction, mask = prediction & valid, mask & valid
    counts = np.array(pixel_counts(prediction, mask, valid))
    by_pixels = {name: float(values[0]) for name, values in (score(counts, empty) | more_scores(counts, empty)).items()}
    by_shape = dict(known) if known else _shape_scores(prediction, mask, tolerance)
    if not counts[:3].any() and empty != "one":
        diagonal = float(np.hypot(*mask.shape))
        by_shape = {
            name: np.nan if empty == "skip" else diagonal if name in ("hd95", "asd") else EMPTY[empty]
            for name in by_shape
        }
    counted = histogram(probability, mask, valid)
    by_probability = {"average_precision": average_precision(counted)} | calibration_scores(counted)
    scores = by_pixels | by_shape | by_pixels | by_probability  # of what was measured before, only shapes are kept
    return Measured(scores, counts, counted)


def _shape_scores(prediction: np.ndarray, mask: np.ndarray, tolerance: float) -> dict[str, float]:
    return {
        **surface_scores(prediction, mask, tolerance),
        "boundary_iou": boundary_iou(prediction, mask),
        **detection_scores(prediction, mask),
        "centreline_dice": centreline_dice(prediction, mask),
    }
