"""What probabilities are worth: their ranking, and whether they mean what they say.

Everything comes from one histogram of an image's probabilities, foreground and background apart; so it costs one pass,
adds up over images, and holds the counts at every threshold too.
"""

import numpy as np

EVEN = 1000  # steps from 0 to 1, where thresholds lie
OCTAVES = np.exp2(np.arange(-20.0, -9.0))  # below the first step and above the last, where rare foreground needs them
EDGES = np.concatenate([[0], OCTAVES, np.arange(1, EVEN) / EVEN, 1 - OCTAVES[::-1], [1]])
BINS = len(EDGES) - 1  # of the histogram; bin k holds what is more than EDGES[k] and at most EDGES[k + 1]
MIDDLES = (EDGES[:-1] + EDGES[1:]) / 2
STEPS = (np.arange(EVEN + 1) / EVEN).astype(np.float32)
LEAST = 126 - 20  # of float32, the exponent as it is stored of what lies below the least octave
GROUPS = 15  # of the expected calibration error, as Guo et al. have it


def histogram(probability: np.ndarray, mask: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Count probabilities, foreground and background apart.

    Args:
        probability: `(H, W)` float in [0, 1], taken as float32.
        mask: `(H, W)` boolean.
        valid: `(H, W)` boolean, or None: then all pixels are taken as valid.

    Returns:
        `(2, BINS)` int64: how many background (row 0) and foreground pixels (row 1) have a probability between two
        :data:`EDGES`, the upper one included; 0 is in the first bin. With `valid` `(2, 2, BINS)`: the same of the
        pixels where it does not hold, and of those where it does; their sum is that of all.

    >>> histogram(np.array([[0.0, 0.5, 1.0]]), np.array([[False, True, True]])).sum(axis=1).tolist()
    [1, 2]
    """
    probability = np.fmax(np.asarray(probability, np.float32).ravel(), np.float32(0))  # NaN is in the first bin, too
    probability += np.float32(0)  # of -0
    scaled = probability * np.float32(EVEN)
    cell = np.fmin(np.fmax(np.ceil(scaled), 1), EVEN).astype(np.intp) - 1
    edge = np.rint(scaled)
    # rounding may have missed by one; at 0 and 1, where sure networks have most of their pixels, it cannot
    close = np.flatnonzero((np.abs(scaled - edge) < 3e-4) & (edge > 0) & (edge < EVEN))
    edge = edge[close].astype(np.intp)
    cell[close] = edge - (probability[close] <= STEPS[edge])
    # the first and the last step are divided by octaves, which are the exponents of floats
    first, last = cell == 0, np.flatnonzero(cell == EVEN - 1)
    octave = probability.view(np.int32) - 1  # the float before, for an edge belongs to what is below
    octave >>= 23
    octave -= LEAST
    cell += len(OCTAVES)
    np.copyto(cell, np.clip(octave, 0, len(OCTAVES), out=octave), where=first)
    octave = ((1 - probability[last]).view(np.int32) >> 23) - LEAST
    cell[last] = BINS - 1 - octave.clip(0, len(OCTAVES))
    cell += BINS * mask.ravel()
    if valid is None:
        return np.bincount(cell, minlength=2 * BINS).reshape(2, BINS)
    cell += 2 * BINS * valid.ravel()
    return np.bincount(cell, minlength=4 * BINS).reshape(2, 2, BINS)


def counts_at(counted: np.ndarray) -> np.ndarray:
    """Counts at every threshold of :data:`EDGES` but 1; foreground is what is more than it.

    Args:
        counted: `(..., 2, BINS)` of :func:`histogram`.

    Returns:
        `(..., BINS, 4)` int64: tp, fp, fn, tn; at threshold 0 everything is foreground, 0 too.
    """
    above = counted[..., ::-1].cumsum(axis=-1)[..., ::-1]
    total = counted.sum(axis=-1, keepdims=True)
    fp, tp = above[..., 0, :], above[..., 1, :]
    return np.stack([tp, fp, total[..., 1, :] - tp, total[..., 0, :] - fp], axis=-1)


def average_precision(counted: np.ndarray) -> float:
    """Area under the curve of precision over recall, as the sum of its steps; NaN without foreground.

    Args:
        counted: `(2, BINS)` of :func:`histogram`.
    """
    if not counted[1].sum():
        return float("nan")
    tp, fp = counted[1, ::-1].cumsum(), counted[0, ::-1].cumsum()
    precision = np.divide(tp, tp + fp, out=np.zeros(BINS), where=tp + fp > 0)
    return float((counted[1, ::-1] * precision).sum() / tp[-1])


def calibration_scores(counted: np.ndarray) -> dict[str, float]:
    """Brier score and expected calibration error of the foreground's probability, pixel by pixel.

    Args:
        counted: `(2, BINS)` of :func:`histogram`; probabilities are taken as the middle of their bin.

    Returns:
        `brier`: mean squared difference of probability and truth; `ece`: mean difference of the probability and the
        share of foreground, over groups of equally wide probability, weighed by their pixels. Both in [0, 1], 0 is
        perfect.

    Source:
        Brier (1950); Guo et al. (2017), https://arxiv.org/abs/1706.04599
    """
    brier = (counted[0] * MIDDLES**2 + counted[1] * (1 - MIDDLES) ** 2).sum() / counted.sum()
    all_of, expected, positive = _grouped(counted)
    return {"brier": float(brier), "ece": float(np.abs(expected - positive).sum() / all_of.sum())}


def reliability(counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare what probabilities say with what is there, in groups of like probability.

    Args:
        counted: `(2, BINS)` of :func:`histogram`.

    Returns:
        Mean probability and share of foreground of each group, `(GROUPS,)`; NaN where there is no pixel.
    """
    all_of, expected, positive = _grouped(counted)
    return tuple(
        np.divide(part, all_of, out=np.full(GROUPS, np.nan), where=all_of > 0) for part in (expected, positive)
    )


def _grouped(counted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, sum of their probabilities and foreground pixels in each group."""
    group = (MIDDLES * GROUPS).astype(int)
    pixels = counted.sum(axis=0)
    return np.bincount(group, pixels), np.bincount(group, pixels * MIDDLES), np.bincount(group, counted[1])
