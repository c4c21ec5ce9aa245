"""Tables of scores: a row for each image of a split, and what they come to."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raremask import BadInput
from raremask.metrics.overlap import COUNTS, baselines, beside_empty, mean, score, summary
from raremask.runfolder import write_table
from raremask.tables import TEXT, read_table

BEST, PLAIN = "best checkpoint", "at threshold 0.5"  # rows of a summary
DEFAULT = "_default"  # of columns: at threshold 0.5, without views or post-processing
SUFFIXES = ("", "_fov", DEFAULT, f"_fov{DEFAULT}")
#: The scores of a table on the terminal.
SHOWN = ("dice", "iou", "precision", "recall", "dice_pooled", "dice_fov", "dice_filled", "left_empty", "false_alarms")


def write_scores(
    path: Path,
    names: Sequence[str],
    groups: Sequence[str],
    counts: Mapping[str, np.ndarray],
    empty: str,
    more: Sequence[Mapping[str, float]] = (),
) -> None:
    """Write the tidy table of one split: a row per image, worth every score.

    Columns: image, group, foreground (true share of the pixels), tp, fp, fn, tn and the overlap scores; then the same
    under names ending in `_default` (threshold 0.5, no views or post-processing) and, if there is a field of view, in
    `_fov`; then all further scores. A skipped score (NaN) is an empty cell.

    Args:
        path: The CSV.
        names: `n` names of images.
        groups: `n` groups.
        counts: `(n, 4)` pixel counts under the suffix of their columns, a combination of those in :data:`SUFFIXES`.
        empty: Policy for images whose mask and prediction are both empty.
        more: Further scores of each image by name.
    """
    rows: list[dict[str, object]] = [{"image": name, "group": group} for name, group in zip(names, groups, strict=True)]
    for suffix, cells in counts.items():
        share = (cells[:, 0] + cells[:, 2]) / cells.sum(axis=1)
        columns = {"foreground": share} | dict(zip(COUNTS, cells.T, strict=True)) | score(cells, empty)
        for name, values in columns.items():
            for row, value in zip(rows, values.tolist(), strict=True):
                row[name + suffix] = "" if math.isnan(value) else value
    for row, scores in zip(rows, more, strict=False):
        row.update({name: "" if math.isnan(value) else value for name, value in scores.items()})
    write_table(path, rows)


def read_counts(path: Path) -> dict[str, np.ndarray]:
    """Return the pixel counts of a table written by :func:`write_scores`, as it took them.

    Raises:
        BadInput: If there is no such table.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such table; has the run ended?")
    rows = read_table(path)
    suffixes = [suffix for suffix in SUFFIXES if f"tp{suffix}" in rows[0]]
    return {suffix: np.array([[row[name + suffix] for name in COUNTS] for row in rows]) for suffix in suffixes}


def summaries(counts: Mapping[str, np.ndarray], empty: str) -> dict[str, float]:
    """Summarise a split, with the scores inside the field of view under names that end in `_fov`.

    Where some masks are empty, with what :func:`~raremask.metrics.overlap.beside_empty` has beside the means.

    Args:
        counts: `(n, 4)` pixel counts under `""`, and perhaps under `"_fov"`.
        empty: Policy for images whose mask and prediction are both empty.
    """
    found: dict[str, float] = {}
    for suffix, cells in counts.items():
        scores, more = summary(cells, empty), beside_empty(cells)
        if np.isfinite(more["false_alarms"]).any():
            scores |= {name: mean(values) for name, values in more.items()}
        found |= {f"{name}{suffix}": value for name, value in scores.items()}
    return found


def largest_change(before: Path, after: Path) -> float:
    """Return the largest change of a number between two tables of images; infinity if the images are others."""
    one, other = ({row["image"]: row for row in read_table(path)} for path in (before, after))
    if one.keys() != other.keys():
        return math.inf
    changes = [
        abs(one[image].get(column, math.nan) - row.get(column, math.nan))
        for image, row in other.items()
        for column in one[image].keys() | row.keys()
        if column not in TEXT
    ]
    return math.inf if any(map(math.isnan, changes)) else max(changes, default=0.0)  # a cell in one of them alone


def beside_baselines(counts: Mapping[str, np.ndarray], empty: str, name: str = BEST) -> dict[str, dict[str, float]]:
    """Summarise a split beside what painting nothing and painting everything would have scored on it.

    Args:
        counts: `(n, 4)` pixel counts by the suffix of their columns, as :func:`read_counts` returns them.
        empty: Policy for images whose mask and prediction are both empty.
        name: What the split's own row is called.

    Returns:
        Summaries under that name, `at threshold 0.5` where these are counted too, `all background` and `all
        foreground`.
    """
    chosen = {suffix: cells for suffix, cells in counts.items() if not suffix.endswith(DEFAULT)}
    plain = {suffix.removesuffix(DEFAULT): cells for suffix, cells in counts.items() if suffix.endswith(DEFAULT)}
    table = {name: summaries(chosen, empty)}
    if plain:
        table[PLAIN] = summaries(plain, empty)
    for blind in ("all background", "all foreground"):
        table[blind] = summaries({suffix: baselines(cells)[blind] for suffix, cells in chosen.items()}, empty)
    return table


def format_scores(table: Mapping[str, Mapping[str, float]]) -> str:
    """Format the summaries of several predictions for a terminal, a row each."""
    columns = [column for column in SHOWN if any(column in row for row in table.values())]
    width = max(len(name) for name in table) + 2
    lines = [" " * width + "".join(f"{column:>13}" for column in columns)]
    for name, row in table.items():
        cells = (f"{row[column]:>13.4f}" if column in row else f"{'':>13}" for column in columns)
        lines.append(f"{name:<{width}}" + "".join(cells))
    return "\n".join(lines)
