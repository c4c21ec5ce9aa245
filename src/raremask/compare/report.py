"""What a comparison says, from the runs' tables to the pages."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from raremask import BadInput, some, tables
from raremask.compare import drawings, results
from raremask.compare.document import Grid, Notes, Paragraph, Plot, Section, write
from raremask.compare.objections import objections
from raremask.compare.results import Run, Table
from raremask.compare.statistics import Estimate, Pair, cliques, estimate, pairs, ranks, resample
from raremask.figures import Paint, Row, gallery
from raremask.metrics.overlap import COUNTS, baselines, mean
from raremask.runfolder import write_text
from raremask.runlengths import RunLengths
from raremask.scoretables import summaries
from raremask.tables import read_table

#: Columns of the table of scores, if the runs have them, and what they are called.
SHOWN = {
    "dice": "Dice",
    "dice_default": "Dice at 0.5",
    "iou": "IoU",
    "dice_fov": "Dice in view",
    "dice_filled": "Dice if not empty",
    "left_empty": "left empty",
    "false_alarms": "false alarms",
    "nsd": "surface Dice",
    "hd95": "HD95 (px)",
    "boundary_iou": "boundary IoU",
    "centreline_dice": "clDice",
    "object_f1": "object F1",
    "ece": "ECE",
}
LOWER = {"hd95", "asd", "brier", "ece", "left_empty", "false_alarms"}  # of which less is better
BASELINES = ("bce_dice", "bce", "dice")  # the first of these that is there is what others are measured by
PAINTED = 6  # losses, at most, beside each other in a picture
IMAGES = 4  # on which they differ most

#: Gives an image `(h, w, C)` and its mask `(h, w)` by name, or raises BadInput.
Look = Callable[[str], tuple[np.ndarray, np.ndarray]]


def compare(
    places: Sequence[Path],
    out: Path,
    look: Callable[[Run], Look],
    metric: str = "dice",
    baseline: str | None = None,
    margin: float = 0.01,
    draws: int = 2000,
    paint: Paint | None = None,
) -> str:
    """Compare runs and write the report: `index.html`, `report.md` with pictures, `results.csv`.

    Args:
        places: Folders at or below which the runs lie.
        out: Folder of the report; an older one is written over.
        look: Makes of a run what gives its test images.
        metric: The score of an image that decides; more is better.
        baseline: Label by which the others are measured; None takes the first of `BASELINES` that is there.
        margin: Differences below this do not matter.
        draws: Of the bootstrap.
        paint: How predictions are painted.

    Returns:
        What a terminal shows of it: the headline, the scores in short, and what a reviewer would object to.

    Raises:
        BadInput: If the runs cannot be compared, or a setting is unknown.
    """
    if metric.removesuffix("_fov") in LOWER:
        raise BadInput(f"metric={metric}: less of it is better; decide by a score of which more is better.")
    runs = results.labelled([results.read(folder) for folder in results.find(places)])
    table = results.table(runs, metric)
    means = {label: estimate([scores], [1], table.groups) for label, scores in table.scores.items()}
    means = dict(sorted(means.items(), key=lambda item: -np.nan_to_num(item[1].value, nan=-np.inf)))
    table = replace(table, scores={label: table.scores[label] for label in means})
    if baseline is not None and baseline not in means:
        raise BadInput(f"baseline={baseline} is not among the runs: {', '.join(means)}")
    baseline = baseline or next((name for name in BASELINES if name in means), None)
    found = pairs(table.scores, table.groups, margin)
    name = SHOWN.get(metric, metric)
    headline = words(means, found, baseline, margin, name)
    done = [run for run in runs if run.rows]
    fixed = len({(run.fold, run.split) for run in done}) == len({run.fold for run in done})
    method = METHOD.format(draws=draws, margin=margin) + TRAINED * fixed
    objected = objections(runs, table) or ["Nothing that was looked for."]
    scores = _scores(runs, table, metric)
    sections = [
        Section("", [Paragraph(headline, lead=True), Paragraph(_about(runs, table))]),
        Section("", [Notes(OBJECTIONS, objected)]),
        Section("Scores", [scores]),
        Section("Who is told apart", _told_apart(means, found, table, draws, margin, name)),
        Section("Where they differ", _where(done, table, metric, name, look, paint)),
        Section("How they learnt", _learnt(done, table, metric)),
        Section("How this was computed", [Paragraph(method)]),
    ]
    footer = f"Made by raremask from {len(runs)} runs below {', '.join(map(str, places))}."
    write(out, f"{runs[0].settings.get('dataset', 'runs')}: which loss, by how much, how sure", sections, footer)
    write_text(out / "results.csv", _tidy(done))
    noted = [f"{OBJECTIONS}:", *(f"- {line}" for line in objected)]
    return "\n".join([headline, "", *_in_short(scores, name), "", *noted])


OBJECTIONS = "What a reviewer would object to"
METHOD = """\
The score of a run is the mean over images; of a loss, the mean over its seeds. Intervals (95 %): the variance of a \
jackknife that leaves out a group at a time, plus the variance between seeds, with Student's t and the degrees of \
freedom of Welch and Satterthwaite; groups of unequal size count as fewer. Permutation: the signs of the groups' \
differences are changed, all ways up to 14 groups, 20,000 random ones and more beyond. Wilcoxon and effect count each \
group once. Folds: in how many of them the better one is better, too. Told apart: the larger of the permutation's p \
value and the interval's own, corrected for the number of pairs by Holm, is below 5 %. Equivalent: the interval lies \
within {margin:g} on both sides of 0; not corrected. Could have shown: the smallest true difference that Student's \
test of this error finds four times of five, corrected for the number of pairs (Bonferroni); of few groups the \
permutation test wants a larger one, and none if they are so few that no p value can be below 5 %. Ranking: groups \
and seeds are drawn again, {draws} times. The highest of several means was found on these same images, and so is a \
little too high."""
TRAINED = """ All seeds were trained on the same images (in folds: of each fold), and what is told apart are losses on \
these: another draw of them could change it."""


def words(
    means: Mapping[str, Estimate],
    found: Mapping[tuple[str, str], Pair],
    baseline: str | None,
    margin: float,
    metric: str,
) -> str:
    """Say in a sentence or two which is best, by how much, and how sure that is.

    Args:
        means: By label, the best first.
        found: Every pair, the better one first.
        baseline: Label of the baseline, or None.
        margin: Differences below this do not matter.
        metric: What the score is called.
    """
    labels = list(means)
    best = labels[0]
    said = [f"{best} has the highest mean {metric}: {span(means[best])}."]
    if len(labels) == 1:
        return f"{said[0]} There is nothing to compare it with."
    others = [labels[1]]
    if baseline is not None and baseline not in others and baseline != best:
        others.append(baseline)
    for other, role in zip(others, ("the runner-up", "the baseline"), strict=False):
        pair = found[best, other]
        role = "the runner-up and the baseline" if other == labels[1] == baseline else role
        said.append(f"That is {span(pair.difference)} more than {other}, {role}: {verdict(pair, margin)}.")
    return " ".join(said)


def verdict(pair: Pair, margin: float) -> str:
    """Say what is known about a pair."""
    if pair.told_apart:
        small = f", but equivalent within {margin:g}" * pair.equivalent(margin)
        return f"told apart (p = {pair.holm:.2g} after correction){small}"
    if pair.seeds < 2:
        return "not told apart; one seed shows nothing about a loss"
    if pair.equivalent(margin):
        return f"equivalent within {margin:g}"
    if not np.isfinite(pair.detectable):
        return "not told apart; nothing can be by so few groups (patients, sequences)"
    return f"not told apart; these images and seeds could have shown {pair.detectable:.3f}"


def span(one: Estimate) -> str:
    """Write an estimate with its interval.

    >>> span(Estimate(0.5, 0.4, 0.6, 0.05, 10))
    '0.500 (0.400 to 0.600)'
    """
    if not np.isfinite(one.low):
        return f"{one.value:.3f} (no interval: a single group)"
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def _about(runs: Sequence[Run], table: Table) -> str:
    seeds = sorted({len(scores) for scores in table.scores.values()})
    span_of_seeds = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    groups = len(set(table.groups.tolist()))
    policy = ", ".join(sorted({run.facts.get("empty", "?") for run in runs}))
    left = f" {table.empties} test images with an empty mask are left out." if table.empties else ""
    if empty := int((table.foreground == 0).sum()):
        left = (
            f" {empty} masks are empty. Left empty: the share of the others on which nothing was painted; false "
            "alarms: the share of the empty ones on which something was."
        )
    return (
        f"{len(table.images)} test images of {groups} groups, {len(table.scores)} losses or settings, "
        f"{span_of_seeds} seed{'s' * (seeds != [1])} each. Threshold and post-processing of "
        f"each run were chosen on validation. An empty mask left empty counts as: {policy}.{left}"
    )


def _scores(runs: Sequence[Run], table: Table, metric: str) -> Grid:
    """A row for each label: means with intervals, spread over seeds, what went wrong, and what it cost.

    Below them what painting nothing and everything would score, where that says something.
    """
    name = SHOWN.get(metric, metric)
    names = {metric: name, f"{metric}_default": f"{name} at 0.5"} | SHOWN  # what decides stands first
    columns = [column for column in names if any(column in row for run in runs for row in run.rows.values())]
    merged = results.merged(runs)
    laid = {column: _of_the_same(results.column(merged, column, table.images)) for column in columns}
    if (table.foreground > 0).all():  # or there is nothing that they show; of those left out an objection tells
        hidden = ("dice_filled", "false_alarms") if table.empties else ("dice_filled", "left_empty", "false_alarms")
        columns = [column for column in columns if column not in hidden or column == metric]
    rows = []
    for label in table.scores:
        mine = [run for run in runs if run.label == label]
        cells = [label]
        for column in columns:
            one = estimate([laid[column][label]], [1], table.groups)
            low = one.low if "mcc" in column else max(one.low, 0.0)  # no other score is below 0; Student does not know
            high = one.high if column in ("hd95",) else min(one.high, 1.0)
            digits = 1 if column == "hd95" else 3
            ends = f"\n({low:.{digits}f}-{high:.{digits}f})" if np.isfinite(one.low) else ""
            cells.append(f"{one.value:.{digits}f}{ends}")
        seeds = np.nanmean(table.scores[label], axis=1)
        cells.append(f"{seeds.std(ddof=1):.3f}" if len(seeds) > 1 else "one seed")
        wrong = sum(bool(run.collapsed) or run.state == "failed" for run in mine)
        cells.append(f"{wrong} of {len(mine)}")
        cells.append(_mean([run.facts.get("seconds") for run in mine], "{:.0f} s"))
        cells.append(_mean([run.facts.get("memory_gib") for run in mine], "{:.1f} GiB"))
        cells.append(_mean([run.threshold_drop() for run in mine], "{:.3f}"))
        rows.append(cells)
    for name, scores in _floor(runs, table).items():
        rows.append([name, *(f"{scores[column]:.3f}" if column in scores else "-" for column in columns), *["-"] * 5])
    more = ["spread over seeds", "collapsed or failed", "time", "host memory", "lost at threshold ± 0.1"]
    return Grid(["", *(names[column] for column in columns), *more], rows)


def _of_the_same(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leave an image out for all if a run has no score of it: an empty mask left empty has none, one painted has.

    A run that has none at all, for its table is an older one, takes nothing from the others.
    """
    known = [row for values in scores.values() for row in values if np.isfinite(row).any()]
    lacking = np.any(np.isnan(known), axis=0)
    return {label: np.where(lacking, np.nan, values) for label, values in scores.items()}


def _floor(runs: Sequence[Run], table: Table) -> dict[str, dict[str, float]]:
    """What painting nothing and painting everything would score on the images that all runs have."""
    rows = {image: row for run in runs for image, row in run.rows.items()}
    first, empty = rows[table.images[0]], next(run.facts.get("empty", "one") for run in runs if run.rows)
    found: dict[str, dict[str, float]] = {"all background": {}, "all foreground": {}}
    for suffix in (suffix for suffix in ("", "_fov") if f"{COUNTS[0]}{suffix}" in first):
        counts = np.array([[rows[image][f"{name}{suffix}"] for name in COUNTS] for image in table.images])
        for name, cells in baselines(counts).items():
            if name in found:
                found[name] |= summaries({suffix: cells}, empty)
    return found


def _in_short(scores: Grid, metric: str) -> list[str]:
    """The columns of a terminal's width: the score that decides, the same at 0.5, its spread, and the time."""
    kept = [column for column in (metric, f"{metric} at 0.5", "spread over seeds", "time") if column in scores.columns]
    shown = [scores.columns, *scores.rows]
    cells = [[row[0], *(row[scores.columns.index(one)].replace("\n", " ") for one in kept)] for row in shown]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells]


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return form.format(np.mean(known)) if known else "-"


def _told_apart(
    means: Mapping[str, Estimate],
    found: Mapping[tuple[str, str], Pair],
    table: Table,
    draws: int,
    margin: float,
    metric: str,
) -> list[Grid | Plot | Paragraph]:
    if len(means) < 2:
        return []
    labels = list(means)
    stretches = cliques(labels, lambda one, other: found[one, other].told_apart)
    tests = ["permutation", "Holm", "Wilcoxon", "effect", "win/tie/loss"]
    columns = ["better", "worse", "difference", "verdict", *["folds"] * (table.folds is not None), *tests]
    rows = [
        [
            first,
            second,
            span(pair.difference),
            verdict(pair, margin),
            *_in_folds(table, first, second),
            f"{pair.permutation:.2g}",
            f"{pair.holm:.2g}",
            f"{pair.wilcoxon:.2g}",
            f"{pair.effect:.2f}" if np.isfinite(pair.effect) else "-",
            f"{pair.wins}/{pair.ties}/{pair.losses}",
        ]
        for (first, second), pair in found.items()
    ]
    joined = {pair for first, last in stretches for pair in itertools.combinations(labels[first : last + 1], 2)}
    unjoined = [" and ".join(pair) for pair, one in found.items() if not one.told_apart and pair not in joined]
    caption = "Means, the best on top." + f" No bar, and yet not told apart: {some(unjoined)}." * bool(unjoined)
    blocks: list[Grid | Plot | Paragraph] = [
        Plot("critical_difference", drawings.critical_difference(means, stretches, metric), caption),
        Plot("differences", drawings.differences(found, margin), "Difference of every pair, the better one first."),
        Grid(columns, rows),
    ]
    if min(len(scores) for scores in table.scores.values()) < 2:
        return [*blocks, Paragraph("How sure the ranking is cannot be said of a single seed.")]
    order = ranks(table.scores, resample(table.groups, draws, np.random.default_rng(0)))
    figure = drawings.ranking({label: order[label] for label in labels})
    return [*blocks, Plot("ranking", figure, "How sure the ranking is; of few seeds or groups somewhat too sure.")]


def _in_folds(table: Table, first: str, second: str) -> list[str]:
    """In how many folds, each trained on other images, the better one is better, too."""
    if table.folds is None:
        return []
    difference = table.scores[first].mean(axis=0) - table.scores[second].mean(axis=0)
    leads = [mean(difference[table.folds == fold]) > 0 for fold in np.unique(table.folds)]
    return [f"{sum(leads)} of {len(leads)}"]


def _where(
    runs: Sequence[Run], table: Table, metric: str, name: str, look: Callable[[Run], Look], paint: Paint | None
) -> list[Paragraph | Plot]:
    panels = [
        ("share of foreground", table.foreground, True),
        ("mean area of an object (pixels)", table.object_size, False),
    ]
    blocks: list[Paragraph | Plot] = [
        Plot("where", drawings.against(table.scores, panels, name), f"{name} of each image, and means over bins.")
    ]
    if len(table.scores) < 2:
        return blocks
    labels = list(table.scores)[:PAINTED]
    shown = [min((run for run in runs if run.label == label), key=lambda run: run.seed) for label in labels]
    spread = np.nan_to_num(np.std([table.scores[label][0] for label in labels], axis=0))  # of the same seeds
    order = np.argsort(-spread, kind="stable")
    vacant = order[(table.foreground[order] == 0) & (spread[order] > 0)][: IMAGES // 2]  # not more, for 0 or 1 is far
    filled = order[table.foreground[order] > 0][: IMAGES - len(vacant)]
    names = [table.images[index] for index in (*filled, *vacant)]
    if not names:
        return blocks
    folds = [[one for one in runs if (one.label, one.seed) == (run.label, run.seed)] for run in shown]
    try:
        rows = _painted(folds, names, look, metric)
    except BadInput as error:
        return [*blocks, Paragraph(f"The images on which they differ most are {', '.join(names)}; not drawn: {error}")]
    figure = gallery(rows, "", paint, [run.label for run in shown])
    caption = f"Test images on which the first seeds of each differ most; {name} over each."
    if len(vacant) and all(np.isin(table.scores[label][0][vacant], (0, 1)).all() for label in labels):
        caption += " On an empty mask one painted pixel is enough for 0."
    return [*blocks, Plot("disagreement", figure, caption, dpi=90)]


def _painted(
    folds: Sequence[Sequence[Run]], names: Sequence[str], look: Callable[[Run], Look], metric: str
) -> list[Row]:
    """Rows of a gallery from the masks that the runs have left; a run may be of several folds.

    Raises:
        BadInput: If an image or a mask is not at hand.
    """
    painted, scored = [], []
    for runs in folds:
        files = [run.folder / "masks_test.csv" for run in runs]
        if missing := [file for file in files if not file.is_file()]:
            raise BadInput(f"there is no {missing[0]}")
        painted.append({row["image"]: row for file in files for row in read_table(file)})
        scored.append({name: row for run in runs for name, row in run.rows.items()})
    see, rows = look(folds[0][0]), []
    for name in names:
        image, mask = see(name)
        shown = []
        for masks, scores in zip(painted, scored, strict=True):
            if name not in masks:
                raise BadInput(f"there is no mask of {name}")
            row = masks[name]
            prediction = RunLengths().read(row.get("runs", ""), (row["height"], row["width"]))
            shown.append((f"{name}  {scores[name].get(metric, math.nan):.3f}", prediction))
        rows.append(Row(image, mask, shown))
    return rows


def _learnt(runs: Sequence[Run], table: Table, metric: str) -> list[Plot]:
    histories = {label: [run.history for run in runs if run.label == label] for label in table.scores}
    curves = {label: [run.thresholds() for run in runs if run.label == label] for label in table.scores}
    chosen_by = next(iter(runs)).selection["metric"]
    return [
        Plot("learning", drawings.learning(histories, "val/dice"), "Dice on validation; thick: means over runs."),
        Plot("thresholds", drawings.thresholds(curves, chosen_by), "Thresholds; points: what was chosen."),
    ]


def _tidy(runs: Sequence[Run]) -> str:
    """All scores of all runs as one CSV: a row for each run and image."""
    rows = [
        {"label": run.label, "seed": run.seed, "fold": run.fold, "run": run.folder.name} | dict(row)
        for run in runs
        for row in run.rows.values()
    ]
    return tables.text(rows)
