"""Overlap scores from counted pixels: foreground only, image by image.

Counts are an array of shape `(n, 4)`, one row per image with the columns of :data:`COUNTS`.

Where a score is 0 / 0 it is 0, with one exception: an image whose mask and prediction are both empty is worth what the
policy for empty masks says. `one`: 1, as on Kaggle; `skip`: NaN, left out of means; `zero`: 0. A false positive on an
empty mask scores 0 under every policy. The background is never averaged in.
"""

import numpy as np

Ratio = tuple[np.ndarray, np.ndarray]  # numerators and denominators

COUNTS = ("tp", "fp", "fn", "tn")
EMPTY = {"one": 1.0, "skip": np.nan, "zero": 0.0}
BEGUN = 0.05  # of the way to a perfect score: what shows that a network has begun to see


def pixel_counts(prediction: np.ndarray, mask: np.ndarray, valid: np.ndarray | None = None) -> list[int]:
    """Count one image: tp, fp, fn, tn.

    Args:
        prediction: `(H, W)` boolean.
        mask: `(H, W)` boolean.
        valid: `(H, W)` boolean; only pixels where it holds are counted. None counts all.
    """
    pixels = mask.size
    if valid is not None:
        prediction, mask, pixels = prediction & valid, mask & valid, int(np.count_nonzero(valid))
    tp, painted, there = (int(np.count_nonzero(part)) for part in (prediction & mask, prediction, mask))
    return [tp, painted - tp, there - tp, pixels - painted - there + tp]


def dice(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> Ratio:
    """2 TP / (2 TP + FP + FN), the F1 score of the foreground."""
    return 2 * tp, 2 * tp + fp + fn


def iou(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> Ratio:
    """TP / (TP + FP + FN), the Jaccard index of the foreground."""
    return tp, tp + fp + fn


def precision(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> Ratio:
    """TP / (TP + FP): how much of what is painted is foreground."""
    return tp, tp + fp


def recall(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> Ratio:
    """TP / (TP + FN): how much of the foreground is painted."""
    return tp, tp + fn


#: Every score by its name, each as (numerator, denominator) of tp, fp and fn.
SCORES = {"dice": dice, "iou": iou, "precision": precision, "recall": recall}


def score(counts: np.ndarray, empty: str = "one") -> dict[str, np.ndarray]:
    """Every score of every image.

    Args:
        counts: `(n, 4)` numbers of pixels, columns tp, fp, fn, tn.
        empty: What an image is worth whose mask and prediction are both empty: `one`, `skip` (NaN) or `zero`.

    Returns:
        An array of shape `(n,)` for each name in :data:`SCORES`, in [0, 1] or NaN.

    Raises:
        ValueError: If there is no such policy.

    >>> {name: float(values[0]) for name, values in score(np.array([[1, 1, 3, 5]])).items()}
    {'dice': 0.3333333333333333, 'iou': 0.2, 'precision': 0.5, 'recall': 0.25}
    """
    if empty not in EMPTY:
        raise ValueError(f"empty must be one of {', '.join(EMPTY)}; got {empty!r}")
    tp, fp, fn, _ = np.asarray(counts, dtype=np.float64).reshape(-1, 4).T
    scores = {}
    for name, ratio in SCORES.items():
        above, below = ratio(tp, fp, fn)
        values = np.divide(above, below, out=np.zeros_like(tp), where=below > 0)
        scores[name] = np.where(tp + fp + fn == 0, EMPTY[empty], values)
    return scores


def more_scores(counts: np.ndarray, empty: str = "one") -> dict[str, np.ndarray]:
    """Scores that are worth a look at the end, but not every epoch.

    Args:
        counts: `(n, 4)` numbers of pixels, columns tp, fp, fn, tn.
        empty: What an image is worth whose mask and prediction are both empty, see :func:`score`.

    Returns:
        Arrays of shape `(n,)`. `specificity`: TN / (TN + FP), 1 without background; an empty mask needs no policy
        there. `f2`: 5 TP / (5 TP + 4 FN + FP), recall weighs double. `mcc`: Matthews' correlation coefficient, in
        [-1, 1], 0 where it is 0 / 0. `iou_65`: IoU, but 0 below 0.65, as the ISIC challenge of 2018 ranked.

    Raises:
        ValueError: If there is no such policy.

    >>> {name: round(float(values[0]), 3) for name, values in more_scores(np.array([[6, 1, 2, 11]])).items()}
    {'specificity': 0.917, 'f2': 0.769, 'mcc': 0.685, 'iou_65': 0.667}
    """
    tp, fp, fn, tn = np.asarray(counts, dtype=np.float64).reshape(-1, 4).T
    overlap = score(counts, empty)["iou"]
    nothing = tp + fp + fn == 0
    spread = np.sqrt(tp + fp) * np.sqrt(tp + fn) * np.sqrt(tn + fp) * np.sqrt(tn + fn)
    f2 = np.divide(5 * tp, 5 * tp + 4 * fn + fp, out=np.zeros_like(tp), where=~nothing)
    mcc = np.divide(tp * tn - fp * fn, spread, out=np.zeros_like(tp), where=spread > 0)
    return {
        "specificity": np.divide(tn, tn + fp, out=np.ones_like(tp), where=tn + fp > 0),
        "f2": np.where(nothing, EMPTY[empty], f2),
        "mcc": np.where(nothing, EMPTY[empty], mcc),
        "iou_65": np.where(overlap < 0.65, 0.0, overlap),
    }


def summary(counts: np.ndarray, empty: str = "one") -> dict[str, float]:
    """The scores of a whole set of images.

    Args:
        counts: `(n, 4)` numbers of pixels, columns tp, fp, fn, tn; at least one row.
        empty: Policy for images whose mask and prediction are both empty, see :func:`score`.

    Returns:
        The mean over images of each score under its plain name; Dice and IoU of all pixels pooled as `dice_pooled` and
        `iou_pooled`; the share of foreground pixels as `foreground_predicted` and `foreground_true`. A mean over
        nothing (all images skipped) is NaN.

    >>> two = np.array([[10, 0, 0, 90], [0, 0, 10, 90]])  # one found, one missed
    >>> round(summary(two)["dice"], 3), round(summary(two)["dice_pooled"], 3)
    (0.5, 0.667)
    """
    counts = np.asarray(counts).reshape(-1, 4)
    means = {name: mean(values) for name, values in score(counts, empty).items()}
    pooled = score(counts.sum(axis=0), empty)
    tp, fp, fn, tn = counts.sum(axis=0)
    pixels = tp + fp + fn + tn
    return means | {
        "dice_pooled": float(pooled["dice"][0]),
        "iou_pooled": float(pooled["iou"][0]),
        "foreground_predicted": float((tp + fp) / pixels),
        "foreground_true": float((tp + fn) / pixels),
    }


def mean(values: np.ndarray) -> float:
    """The mean of what is not NaN, or NaN where nothing is."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")


def beside_empty(counts: np.ndarray) -> dict[str, np.ndarray]:
    """What a mean over all images hides where some masks are empty.

    Args:
        counts: `(n, 4)` numbers of pixels, columns tp, fp, fn, tn.

    Returns:
        Arrays of shape `(n,)`: `dice_filled`, and whether the image was `left_empty`, of images with foreground;
        whether something was painted, `false_alarms`, of the others. NaN for those that it does not concern.

    >>> {name: values.tolist() for name, values in beside_empty(np.array([[6, 2, 2, 90], [0, 5, 0, 95]])).items()}
    {'dice_filled': [0.75, nan], 'left_empty': [0.0, nan], 'false_alarms': [nan, 1.0]}
    """
    counts = np.asarray(counts).reshape(-1, 4)
    tp, fp, fn, _ = counts.T
    filled, painted = tp + fn > 0, tp + fp > 0
    return {
        "dice_filled": np.where(filled, score(counts)["dice"], np.nan),
        "left_empty": np.where(filled, ~painted, np.nan),
        "false_alarms": np.where(filled, np.nan, painted),
    }


def shares(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of foreground of each prediction and of each mask, `(n,)`, of counts `(n, 4)`.

    >>> [part.tolist() for part in shares(np.array([[1, 1, 0, 2]]))]
    [[0.5], [0.25]]
    """
    tp, fp, fn, tn = np.asarray(counts, float).reshape(-1, 4).T
    pixels = tp + fp + fn + tn
    return (tp + fp) / pixels, (tp + fn) / pixels


def chance(counts: np.ndarray, name: str, empty: str = "one") -> float:
    """Return what a score must be above to show that a network sees anything.

    That is a twentieth of the way from what painting nothing or everything is worth (the better of the two) to 1. A
    network that has not learnt yet paints noise, which is worth about as much as everything.

    Args:
        counts: `(n, 4)` numbers of pixels, columns tp, fp, fn, tn, of any prediction.
        name: Of the score, in :func:`summary`.
        empty: Policy for images whose mask and prediction are both empty, see :func:`score`.

    Returns:
        Minus infinity where one of the two is perfect (as for recall), or there is no such score.

    >>> round(chance(np.array([[0, 0, 10, 90]]), "dice"), 4)  # everything: 20 / 110
    0.2227
    """
    known = baselines(counts)
    worth = [summary(known[f"all {part}"], empty).get(name, np.nan) for part in ("background", "foreground")]
    return max(worth) + BEGUN * (1 - max(worth)) if all(value < 1 for value in worth) else -np.inf


def baselines(counts: np.ndarray) -> dict[str, np.ndarray]:
    """What predictions without any knowledge of the images would have counted on them.

    Args:
        counts: `(n, 4)` numbers of pixels, columns tp, fp, fn, tn, of any prediction.

    Returns:
        Counts of the same shape under `all background`, `all foreground`, and `random`: each pixel is foreground with
        the probability that a pixel of all images is; drawn, but the same whenever it is asked for.
    """
    tp, fp, fn, tn = np.asarray(counts).reshape(-1, 4).T
    foreground, background, nothing = tp + fn, fp + tn, np.zeros_like(tp)
    share, random = foreground.sum() / (foreground + background).sum(), np.random.default_rng(0)
    hit, wrong = random.binomial(foreground, share), random.binomial(background, share)
    return {
        "all background": np.stack([nothing, nothing, foreground, background], axis=1),
        "all foreground": np.stack([foreground, background, nothing, nothing], axis=1),
        "random": np.stack([hit, wrong, foreground - hit, background - wrong], axis=1),
    }
