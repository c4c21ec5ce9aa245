"""How sure can one be that two losses differ: pure functions on scores of images.

Scores of one loss are an array `(S, N)`: a row for each seed, a column for each image, NaN where an image is left out.
Images belong to groups (patients, video sequences). Groups and seeds are what was drawn at random: the images of one
patient are never taken as independent, and one lucky seed is no evidence.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from raremask.metrics.overlap import mean

EXACT = 14  # groups up to which all 2 ** n changes of sign are tried
CONFIDENCE = 0.95
POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Args:
        value: The mean.
        low: Lower end of the interval.
        high: Upper end.
        error: Standard error.
        freedom: Degrees of freedom with which the error is known.
    """

    value: float
    low: float
    high: float
    error: float
    freedom: float


@dataclass(frozen=True)
class Pair:
    """Two losses on the same images.

    Args:
        difference: The first one's mean minus the second one's, with its interval.
        permutation: p value of the paired permutation test over groups.
        wilcoxon: p value of Wilcoxon's signed-rank test over groups.
        holm: The larger of the p values over groups (permutation) and over groups and seeds (Student's, of the
            interval), corrected for the number of pairs: permutation alone takes the trained networks as given.
        effect: Mean difference of the groups, each counted once, divided by its standard deviation (Cohen's d for
            pairs).
        wins: Images on which the first one is better by more than the margin.
        ties: Images on which they differ by the margin or less.
        losses: Images on which the second one is better by more than the margin.
        detectable: The smallest difference that Student's test of these images and seeds would have shown four times of
            five, corrected for the number of pairs; where groups are few the permutation test asks for more.
        seeds: Of the loss that has fewer.
    """

    difference: Estimate
    permutation: float
    wilcoxon: float
    holm: float
    effect: float
    wins: int
    ties: int
    losses: int
    detectable: float
    seeds: int

    @property
    def told_apart(self) -> bool:
        """Whether the corrected tests say so; never of one seed, which says nothing about a loss."""
        return self.seeds > 1 and self.holm < 1 - CONFIDENCE

    def equivalent(self, margin: float) -> bool:
        """Whether the interval lies within a margin on both sides of 0; never of one seed."""
        return self.seeds > 1 and -margin < self.difference.low and self.difference.high < margin


def resample(groups: np.ndarray, times: int, random: np.random.Generator) -> np.ndarray:
    """Draw groups with replacement, each with all of its images: what varies between images, groups show already.

    Args:
        groups: `(N,)` group of each image.
        times: How often.
        random: Source of randomness.

    Returns:
        `(times, N)` how often each image was drawn.

    Source:
        Davison & Hinkley (1997), Bootstrap Methods and their Application, 3.8: no second draw within groups.
    """
    names, members = np.unique(groups, return_inverse=True)
    return random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=times)[:, members]


def means(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means over images; those left out count nowhere.

    Args:
        scores: `(..., N)`.
        weights: `(times, N)`.

    Returns:
        `(times, ...)`.
    """
    there = np.isfinite(scores)
    total = weights @ np.moveaxis(np.where(there, scores, 0.0), -1, 0).reshape(scores.shape[-1], -1)
    used = weights @ np.moveaxis(there, -1, 0).reshape(scores.shape[-1], -1).astype(float)
    result = np.divide(total, used, out=np.full(total.shape, np.nan), where=used > 0)
    return result.reshape(len(weights), *scores.shape[:-1])


def estimate(parts: Sequence[np.ndarray], signs: Sequence[int], groups: np.ndarray) -> Estimate:
    """Mean over images of a loss, or of the difference of two, with its interval over groups, images and seeds.

    The variance has a part for groups and their images, of a jackknife that leaves out a group at a time, with the
    means over seeds; and a part for the seeds of each loss. The interval is Student's, with the degrees of freedom of
    Welch and Satterthwaite. Those of the groups are as many as groups of equal size would have that tell as much (Kish:
    of 10 groups with nearly all images in two of them, it is little more than 1). How often intervals hold the truth so
    stands in `docs/statistics.md`, also beside the percentiles of a bootstrap, which hold it too rarely.

    Args:
        parts: `(S, N)` scores of each loss.
        signs: What each counts: `[1]` for a mean, `[1, -1]` for a difference.
        groups: `(N,)`.

    Source:
        Efron & Stein (1981), https://doi.org/10.1214/aos/1176345462; Kish (1965), Survey Sampling.
    """
    combined = sum(sign * part.mean(axis=0) for sign, part in zip(signs, parts, strict=True))
    value = mean(combined)
    sums, sizes = by_group(combined, groups)
    count, images = len(sums), sizes.sum()
    if count < 2:
        return Estimate(value, -np.inf, np.inf, np.inf, 0.0)
    without = (sums.sum() - sums) / (images - sizes)
    degrees = max(0.5, images**2 / (sizes**2).sum() - 1)
    known = [((count - 1) / count * ((without - value) ** 2).sum(), degrees)]  # variance and its degrees of freedom
    for part in parts:
        runs = np.nanmean(part, axis=1)
        if len(runs) > 1:
            known.append((runs.var(ddof=1) / len(runs), len(runs) - 1))
    variance = sum(part for part, _ in known)
    if variance < 1e-24:  # none but that of rounding
        return Estimate(value, value, value, 0.0, float(degrees))
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in known)
    error = np.sqrt(variance)
    reach = stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) * error
    return Estimate(value, float(value - reach), float(value + reach), float(error), float(freedom))


def by_group(scores: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the scores of each group.

    Args:
        scores: `(N,)`, NaN where an image is left out.
        groups: `(N,)`.

    Returns:
        `(G,)` sums and numbers of images; groups of which every image is left out are not there.

    >>> [part.tolist() for part in by_group(np.array([1.0, 2.0, 5.0]), np.array(["a", "a", "b"]))]
    [[3.0, 5.0], [2, 1]]
    """
    there = np.isfinite(scores)
    _, members = np.unique(groups[there], return_inverse=True)
    return np.bincount(members, scores[there]), np.bincount(members)


def permutation_test(sums: np.ndarray, times: int, random: np.random.Generator) -> float:
    """Two-sided p value of a mean difference: how often it would be as large if each group's sign were a coin's.

    Args:
        sums: `(G,)` sum of the differences of the images of each group.
        times: How many changes of sign are drawn if there are too many groups to try all.
        random: Source of randomness.

    Source:
        Fisher's randomisation test for pairs; `(hits + 1) / (times + 1)` as in Phipson & Smyth (2010).

    >>> permutation_test(np.array([1.0, 2.0, 3.0]), 1, np.random.default_rng(0))  # 2 of 8 changes of sign
    0.25
    """
    count = len(sums)
    reached = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()  # sums in another order differ in the last digit
    if count <= EXACT:
        signs = np.array(list(itertools.product((-1, 1), repeat=count)))
        return float((np.abs(signs @ sums) >= reached).mean())
    hits = sum((np.abs(random.choice((-1.0, 1.0), (part, count)) @ sums) >= reached).sum() for part in _parts(times))
    return float((hits + 1) / (times + 1))


def _parts(times: int, most: int = 5000) -> Iterator[int]:
    for start in range(0, times, most):
        yield min(most, times - start)


def holm(values: Sequence[float]) -> list[float]:
    """Correct p values for their number.

    Source:
        Holm (1979), A simple sequentially rejective multiple test procedure.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(values, kind="stable")
    scaled = np.asarray(values, float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected.tolist()


def pairs(
    scores: Mapping[str, np.ndarray],
    groups: np.ndarray,
    margin: float = 0.01,
    times: int = 20_000,
) -> dict[tuple[str, str], Pair]:
    """Compare every loss with every other, the better one first.

    Args:
        scores: `(S, N)` of each loss, higher being better.
        groups: `(N,)`.
        margin: Differences up to this are none.
        times: Changes of sign that are drawn, where not all are tried; more for many pairs, whose p values must be
            small. They are the same whenever they are drawn.
    """
    random = np.random.default_rng(0)
    ranked = sorted(scores, key=lambda name: -np.nan_to_num(np.nanmean(scores[name].mean(axis=0)), nan=-np.inf))
    both = list(itertools.combinations(ranked, 2))
    measured, tested = {}, []
    for first, second in both:
        difference = scores[first].mean(axis=0) - scores[second].mean(axis=0)
        difference[np.abs(difference) < 1e-12] = 0  # equal but for the order in which seeds were added up
        sums, numbers = by_group(difference, groups)
        interval = estimate([scores[first], scores[second]], [1, -1], groups)
        permutation = permutation_test(sums, max(times, 100 * len(both)), random)
        tested.append(max(permutation, student_test(interval)))
        measured[first, second] = difference, sums / numbers, interval, permutation
    hopeless = smallest_p(len(np.unique(groups)), len(both)) >= 1 - CONFIDENCE
    found: dict[tuple[str, str], Pair] = {}
    for (first, second), corrected in zip(both, holm(tested), strict=True):
        difference, groupwise, interval, permutation = measured[first, second]
        spread = groupwise.std(ddof=1) if len(groupwise) > 1 else np.nan
        found[first, second] = Pair(
            difference=interval,
            permutation=permutation,
            wilcoxon=float(stats.wilcoxon(groupwise).pvalue) if groupwise.any() else 1.0,
            holm=corrected,
            effect=float(groupwise.mean() / spread) if spread > 1e-12 else float("nan"),  # as above
            wins=int((difference > margin).sum()),
            ties=int((np.abs(difference) <= margin).sum()),
            losses=int((difference < -margin).sum()),
            detectable=float("inf") if hopeless else detectable(interval, len(both)),
            seeds=min(len(scores[first]), len(scores[second])),
        )
    return found


def smallest_p(groups: int, pairs: int) -> float:
    """Return the smallest p value of :func:`permutation_test` that there can be, corrected for the number of pairs.

    >>> smallest_p(6, 28)  # all signs alike, one way or the other, of 64 ways
    0.875
    """
    return min(1.0, 2.0 ** (1 - groups) * pairs)


def student_test(difference: Estimate) -> float:
    """Two-sided p value of a difference by its error over groups, images and seeds."""
    if not np.isfinite(difference.error):
        return 1.0
    if difference.error == 0:
        return float(difference.value == 0)
    return float(2 * stats.t.sf(abs(difference.value) / difference.error, difference.freedom))


def detectable(difference: Estimate, pairs: int = 1) -> float:
    """Return the smallest true difference that Student's test of this error would have shown four times of five.

    Args:
        difference: Of two losses.
        pairs: For how many pairs the test is corrected: by Bonferroni, with which Holm's method begins.
    """
    if not np.isfinite(difference.error):
        return float("inf")
    if difference.error == 0:
        return 0.0
    claimed_from = stats.t.ppf(1 - (1 - CONFIDENCE) / 2 / pairs, difference.freedom)
    # the noncentral t, over how well the error is known: SciPy's own does not come back from a few degrees of freedom
    known = np.sqrt(stats.chi2.ppf(np.linspace(0.0005, 0.9995, 1000), difference.freedom) / difference.freedom)
    needed = optimize.brentq(
        lambda shift: stats.norm.cdf(shift - claimed_from * known).mean() - POWER, 0, claimed_from * known[-1] + 10
    )
    return float(needed * difference.error)


def ranks(scores: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """How often each loss comes first, second, ... when groups, images and seeds are drawn again.

    Args:
        scores: `(S, N)` of each loss, higher being better.
        weights: Of :func:`resample`.

    Returns:
        `(L,)` shares of the draws for each loss: first place, second place, ...

    Source:
        Wiesenfarth et al. (2021), https://doi.org/10.1038/s41598-021-82017-6: ranking with the bootstrap.
    """
    random = np.random.default_rng(0)
    drawn = []
    for part in scores.values():
        count = len(part)
        runs = means(part, weights)  # (times, S)
        middle = runs.mean(axis=1, keepdims=True)
        wider = middle + (runs - middle) * np.sqrt(count / max(1, count - 1))  # of few seeds drawn again, too near
        chosen = random.integers(count, size=(len(weights), count))
        drawn.append(np.take_along_axis(wider, chosen, axis=1).mean(axis=1))
    place = np.argsort(np.argsort(-np.nan_to_num(drawn, nan=-np.inf), axis=0, kind="stable"), axis=0, kind="stable")
    return {
        name: np.bincount(row, minlength=len(scores)) / len(weights) for name, row in zip(scores, place, strict=True)
    }


def cliques(ranked: Sequence[str], apart: Callable[[str, str], bool]) -> list[tuple[int, int]]:
    """Stretches of a ranking in which no two are told apart, as in a critical difference diagram.

    Args:
        ranked: Names, the best first.
        apart: Whether two of them are told apart.

    Returns:
        First and last place of each stretch of two or more that is not inside another.

    Source:
        Demsar (2006), Statistical comparisons of classifiers over multiple data sets, figure 1.

    >>> cliques("abcd", lambda one, other: {one, other} in ({"a", "d"}, {"a", "c"}))
    [(0, 1), (1, 3)]
    """
    found: list[tuple[int, int]] = []
    for start in range(len(ranked)):
        end = start
        while end + 1 < len(ranked) and not any(apart(name, ranked[end + 1]) for name in ranked[start : end + 1]):
            end += 1
        if end > start and not any(first <= start and end <= last for first, last in found):
            found.append((start, end))
    return found
