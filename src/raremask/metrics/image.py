"""Every score of one image, by one name each."""

from typing import NamedTuple

import numpy as np

from raremask.metrics.calibration import average_precision, calibration_scores, histogram
from raremask.metrics.objects import centreline_dice, detection_scores
from raremask.metrics.overlap import EMPTY, more_scores, pixel_counts, score
from raremask.metrics.surface import boundary_iou, surface_scores


class Measured(NamedTuple):
    """What was measured of one image, or of the part of it that is inside its field of view.

    Args:
        scores: Every score by its name.
        counts: `(4,)` int64: tp, fp, fn, tn.
        counted: `(2, BINS)` histogram of its probabilities, see :func:`raremask.metrics.calibration.histogram`.
    """

    scores: dict[str, float]
    counts: np.ndarray
    counted: np.ndarray


def score_image(
    probability: np.ndarray,
    prediction: np.ndarray,
    mask: np.ndarray,
    valid: np.ndarray | None = None,
    empty: str = "one",
    tolerance: float = 2.0,
) -> dict[str, Measured]:
    """Count and score one image in every way.

    Args:
        probability: `(H, W)` float in [0, 1], of the foreground.
        prediction: `(H, W)` boolean: what became of it, by a threshold and perhaps more.
        mask: `(H, W)` boolean, the truth.
        valid: `(H, W)` boolean, the field of view, or None.
        empty: What an image is worth whose mask and prediction are both empty: `one` (and distance 0), `skip` (NaN) or
            `zero` (and the image's diagonal for distances).
        tolerance: Of the normalised surface Dice, in pixels.

    Returns:
        Under `""` the whole image, and if there is a field of view, under `"_fov"` the same of its pixels: nothing
        outside of it counts, and both masks are taken as background there. Each with counts, histogram, and the scores
        of :mod:`raremask.metrics.overlap`, :mod:`~raremask.metrics.surface`, :mod:`~raremask.metrics.objects` and
        :mod:`~raremask.metrics.calibration` by name. The policy holds for all but `specificity`, `brier` and `ece`,
        which an empty mask does not trouble, and `average_precision`, which is NaN for it.

    Raises:
        ValueError: If there is no such policy, or the shapes differ.
    """
    shapes = {part.shape for part in (probability, prediction, mask, valid) if part is not None}
    if len(shapes) > 1:
        raise ValueError(f"probability, prediction, mask and valid must have one shape; got {sorted(shapes)}")
    by_shape = _shape_scores(prediction, mask, empty, tolerance)
    counted = histogram(probability, mask, valid)
    if valid is None:
        return {"": _measured(by_shape, prediction, mask, None, counted, empty)}
    whole = _measured(by_shape, prediction, mask, None, counted.sum(axis=0), empty)
    if ((prediction | mask) & ~valid).any():  # or else its shapes are those of the whole image
        prediction, mask = prediction & valid, mask & valid
        by_shape = _shape_scores(prediction, mask, empty, tolerance)
    return {"": whole, "_fov": _measured(by_shape, prediction, mask, valid, counted[1], empty)}


def _measured(
    by_shape: dict[str, float],
    prediction: np.ndarray,
    mask: np.ndarray,
    valid: np.ndarray | None,
    counted: np.ndarray,
    empty: str,
) -> Measured:
    """Put the scores by shape, by pixels and by probability together."""
    counts = np.array(pixel_counts(prediction, mask, valid))
    by_pixels = {name: float(values[0]) for name, values in (score(counts, empty) | more_scores(counts, empty)).items()}
    by_probability = {"average_precision": average_precision(counted)} | calibration_scores(counted)
    return Measured(by_pixels | by_shape | by_probability, counts, counted)


def _shape_scores(prediction: np.ndarray, mask: np.ndarray, empty: str, tolerance: float) -> dict[str, float]:
    scores = {
        **surface_scores(prediction, mask, tolerance),
        "boundary_iou": boundary_iou(prediction, mask),
        **detection_scores(prediction, mask),
        "centreline_dice": centreline_dice(prediction, mask),
    }
    if empty == "one" or prediction.any() or mask.any():
        return scores
    diagonal = float(np.hypot(*mask.shape))
    return {
        name: np.nan if empty == "skip" else diagonal if name in ("hd95", "asd") else EMPTY[empty] for name in scores
    }
