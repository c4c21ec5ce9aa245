"""Measure whether the statistics of a comparison keep what they promise: writes docs/statistics.md.

    python scripts/study_statistics.py

Scores are made up so that two losses do not differ in truth: each patient has a level of its own, several images
around it, and a liking for one of the losses; each seed shifts all scores of its run, and so may the images on which
the runs of a fold were trained. Then it is counted how often 95 % intervals hold the truth, and how often a difference
is claimed.
"""

import datetime
import sys
from pathlib import Path

import numpy as np

from raremask.compare.statistics import by_group, estimate, means, pairs, permutation_test, resample

PAGE = Path(__file__).parents[1] / "docs" / "statistics.md"
#: Groups, images of each (on average; or of each), seeds, spread of the seeds (or of each loss's), of a group's and an
#: image's liking for a loss, folds, and how much the images on which those of a fold were trained suit a loss.
CASES = (
    (6, 22, 3, 0.01, 0.02, 0.0, 1, 0.0),
    (7, 20, 3, 0.01, 0.02, 0.0, 1, 0.0),
    (7, 20, 3, 0.0, 0.02, 0.1, 1, 0.0),
    (7, 20, 3, 0.03, 0.0, 0.0, 1, 0.0),
    (10, 42, 3, 0.01, 0.0, 0.1, 1, 0.0),
    (10, (100, 80, 5, 5, 5, 5, 5, 5, 5, 5), 3, 0.01, 0.02, 0.05, 1, 0.0),
    (24, 22, 2, 0.01, 0.02, 0.05, 1, 0.0),
    (24, 22, 2, 0.02, 0.02, 0.05, 1, 0.0),
    (24, 22, 2, (0.05, 0.005, 0.005, 0.005, 0.005), 0.02, 0.05, 1, 0.0),
    (24, 22, 3, (0.05, 0.005, 0.005, 0.005, 0.005), 0.02, 0.05, 1, 0.0),
    (29, 20, 3, 0.01, 0.02, 0.0, 1, 0.0),
    (50, 4, 5, 0.01, 0.02, 0.1, 1, 0.0),
    (20, 1, 3, 0.01, 0.02, 0.0, 1, 0.0),
    (100, 1, 3, 0.02, 0.02, 0.0, 1, 0.0),
    (100, 1, 1, 0.02, 0.02, 0.0, 1, 0.0),
    (29, 20, 3, 0.02, 0.02, 0.0, 1, 0.02),
    (29, 20, 3, 0.02, 0.02, 0.0, 4, 0.02),
    (29, 20, 3, 0.02, 0.02, 0.0, 4, 0.01),
)
FAMILY = 5  # losses compared at once, in the last column
DRAWS = 400
GAP = 0.03  # between two losses, where it is counted how often they are told apart
COLUMNS = (
    "groups",
    "images each",
    "seeds",
    "spread of seeds",
    "patient x loss",
    "image x loss",
    "folds",
    "training x loss",
    "mean",
    "difference",
    "percentile bootstrap",
    "permutation alone",
    "told apart",
    "found",
    f"any of {FAMILY} losses told apart",
)
INTRODUCTION = """\
Written by `scripts/study_statistics.py` on {date}: {times} made-up comparisons a row, of two losses that do not
differ. Scores vary by patient (.1), by image (.1), by run and image (.05), and as the row says by seed and by
patient or image and loss together (`patient x loss`: how well a loss suits a patient; `training x loss`: how well it
suits the images on which all seeds were trained, in folds those of each fold). `mean`, `difference`,
`percentile bootstrap`: how often 95 % intervals hold the truth (wanted: .95). `permutation alone`, `told apart`: how
often a difference is claimed at 5 % (wanted: .05 or less); `found`: how often it is where the losses do differ, by
{gap:g}."""
EXPLANATION = """\
`mean` and `difference` are the intervals of the report; `percentile bootstrap` draws groups and seeds again and takes
percentiles, for which three seeds vary a third too little. `permutation alone` takes the trained networks as given,
so seeds that differ make it claim too much; `told apart` is what the report goes by: the larger p value of
permutation and interval, after Holm's correction, and never of one seed. The last column: how often anything is
claimed of several losses at once, of which none differs. With one seed no interval can know how much seeds matter:
those of the row with one are too narrow, and the report says so. Nor can it know how much the images matter on which
all seeds were trained: on a single split a loss that suits them by chance is told apart far too often, in four folds
less so (the last three rows)."""


def made_up(
    groups: int,
    images: int | tuple[int, ...],
    seeds: int,
    shift: float | tuple[float, ...],
    liking: float,
    taste: float,
    folds: int,
    suits: float,
    random: np.random.Generator,
):
    """Draw scores `(S, N)` of losses that do not differ, and the group of each image `(N,)`."""
    if isinstance(images, tuple) or images == 1:
        sizes = np.broadcast_to(images, groups)
    else:
        sizes = random.integers(max(1, images // 2), images + images // 2 + 1, groups)
    group = np.repeat(np.arange(groups), sizes)
    shared = random.normal(0, 0.1, groups)[group] + random.normal(0, 0.1, len(group))
    losses = [
        shared
        + random.normal(0, liking, groups)[group]
        + random.normal(0, taste, len(group))
        + random.normal(0, suits, folds)[group % folds]
        + random.normal(0, spread, (seeds, 1))
        + random.normal(0, 0.05, (seeds, len(group)))
        for spread in np.broadcast_to(shift, FAMILY)
    ]
    return losses, group


def percentiles_hold(losses: list[np.ndarray], weights: np.ndarray, random: np.random.Generator) -> bool:
    """Whether the percentiles of a bootstrap over groups, images and seeds hold the true difference, 0."""
    drawn = []
    for part in losses:
        chosen = random.integers(len(part), size=(len(weights), len(part)))
        drawn.append(np.take_along_axis(means(part, weights), chosen, axis=1).mean(axis=1))
    low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
    return low <= 0 <= high


def measure(case: tuple, times: int, random: np.random.Generator) -> dict[str, float]:
    """Return how often intervals held and differences were claimed, as shares."""
    hits = dict.fromkeys(("mean", "difference", "percentiles", "permutation", "told apart", "found", "family"), 0)
    for _ in range(times):
        family, group = made_up(*case, random)
        losses = family[:2]
        weights = resample(group, DRAWS, random)
        one, two = estimate(losses[:1], [1], group), estimate(losses, [1, -1], group)
        hits["mean"] += one.low <= 0 <= one.high
        hits["difference"] += two.low <= 0 <= two.high
        hits["percentiles"] += percentiles_hold(losses, weights, random)
        sums, _ = by_group(losses[0].mean(axis=0) - losses[1].mean(axis=0), group)
        hits["permutation"] += permutation_test(sums, 500, random) < 0.05
        for name, gap in (("told apart", 0.0), ("found", GAP)):
            compared = pairs({"one": losses[0] + gap, "two": losses[1]}, group, times=500)
            hits[name] += next(iter(compared.values())).told_apart
        compared = pairs(dict(zip("abcde", family, strict=True)), group, times=500)
        hits["family"] += any(pair.told_apart for pair in compared.values())
    return {name: count / times for name, count in hits.items()}


def page(times: int = 1000) -> str:
    """Return the Markdown page."""
    random = np.random.default_rng(0)
    lines = [
        "# Whether the statistics keep what they promise",
        "",
        INTRODUCTION.format(date=datetime.date.today(), times=times, gap=GAP),
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for case in CASES:
        found = measure(case, times, random)
        said = [", ".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in case]
        lines.append("| " + " | ".join([*said, *(f"{value:.3f}" for value in found.values())]) + " |")
        print(lines[-1], file=sys.stderr)
    lines += ["", EXPLANATION, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
