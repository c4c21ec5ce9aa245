"""Scores of whole objects: which were found, and whether thin ones hang together."""

import cv2
import numpy as np
from skimage.morphology import skeletonize

from raremask.metrics.surface import around


def count_objects(mask: np.ndarray) -> int:
    """Return how many connected pieces of foreground (8 neighbours) there are in a mask, `(H, W)` boolean."""
    return _labels(mask[around(mask)])[1] if mask.any() else 0


def detection_scores(prediction: np.ndarray, mask: np.ndarray, least: float = 0.1) -> dict[str, float]:
    """Count objects instead of pixels: small ones weigh as much as large ones.

    Objects are connected pieces of foreground (8 neighbours). A true and a predicted object match if their intersection
    over union is large enough; each matches one other at most, the best pairs first.

    Args:
        prediction: `(H, W)` boolean.
        mask: `(H, W)` boolean.
        least: Intersection over union from which two objects match, in (0, 1].

    Returns:
        `object_recall`: share of the true objects that are found; `object_precision`: share of the predicted ones that
        are true; `object_f1`: their harmonic mean. 1 where neither has an object, 0 where one has none.

    Raises:
        ValueError: If `least` is out of its range.
    """
    if not 0 < least <= 1:
        raise ValueError(f"least must be more than 0 and at most 1; got {least}")
    window = around(prediction | mask)
    predicted, made = _labels(prediction[window])
    true, there = _labels(mask[window])
    if not (made and there):
        worth = float(made == there)
        return {"object_recall": worth, "object_precision": worth, "object_f1": worth}
    areas_true, areas_predicted = np.bincount(true[mask[window]]), np.bincount(predicted[prediction[window]])
    both = (mask & prediction)[window]
    codes, shared = np.unique(true[both].astype(np.int64) * (made + 1) + predicted[both], return_counts=True)
    rows, columns = np.divmod(codes, made + 1)
    overlap = shared / (areas_true[rows] + areas_predicted[columns] - shared)
    free_true, free_predicted, hits = np.ones(there + 1, bool), np.ones(made + 1, bool), 0
    for pair in np.argsort(-overlap, kind="stable"):
        if overlap[pair] < least:
            break
        if free_true[rows[pair]] and free_predicted[columns[pair]]:
            free_true[rows[pair]] = free_predicted[columns[pair]] = False
            hits += 1
    return {"object_recall": hits / there, "object_precision": hits / made, "object_f1": 2 * hits / (there + made)}


def centreline_dice(prediction: np.ndarray, mask: np.ndarray) -> float:
    """Dice of the centrelines: whether vessels hang together, whatever their width.

    Args:
        prediction: `(H, W)` boolean.
        mask: `(H, W)` boolean.

    Returns:
        Harmonic mean of the share of the prediction's skeleton inside the mask and of the mask's skeleton inside the
        prediction, in [0, 1]; 1 where neither has foreground, 0 where one has none.

    Source:
        Shit et al. (2021), https://arxiv.org/abs/2003.07311
    """
    if not (prediction.any() and mask.any()):
        return float(prediction.any() == mask.any())
    window, other = around(prediction), around(mask)
    precision = _inside(skeletonize(prediction[window]), mask[window])
    sensitivity = _inside(skeletonize(mask[other]), prediction[other])
    return float(2 * precision * sensitivity / (precision + sensitivity)) if precision + sensitivity else 0.0


def _inside(line: np.ndarray, mask: np.ndarray) -> float:
    return float((line & mask).sum() / line.sum())


def _labels(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The number of its object for each pixel, 0 for background, and how many objects there are."""
    count, labels = cv2.connectedComponents(np.ascontiguousarray(mask).view(np.uint8), connectivity=8)
    return labels, count - 1
