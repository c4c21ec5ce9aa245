"""What a run leaves behind: its state and its tables, each written whole or not at all."""

import csv
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from raremask import BadInput
from raremask.metrics.overlap import COUNTS, baselines, score, summary

STATUS = "status.json"
SIGN = 1800  # seconds within which a run on another machine must have shown that it goes on
BEST, PLAIN = "best checkpoint", "at threshold 0.5"  # rows of a summary
DEFAULT = "_default"  # of columns: at threshold 0.5, without mending
SUFFIXES = ("", "_fov", DEFAULT, f"_fov{DEFAULT}")
#: Columns that hold names, even if they look like numbers.
TEXT = ("image", "group", "split", "twin", "twin_group", "twin_split", "runs")

#: The scores of a table on the terminal.
SHOWN = ("dice", "iou", "precision", "recall", "dice_pooled", "dice_fov")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file through a temporary one, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(f".{path.name}", dir=path.parent)  # one for each that writes at the same time
    partial = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())  # mkstemp lets nobody else read
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, in the same way; line ends stay as they are."""
    write_bytes(path, text.encode())


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as CSV; the columns are the keys of all rows in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = _Lines()
    writer = csv.DictWriter(lines, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, "".join(lines))


class _Lines(list):
    write = list.append


def read_table(path: Path) -> list[dict[str, float | str]]:
    """Read a CSV of :func:`write_table`: numbers but for the columns of text; an empty cell is left out."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {key: cell if key in TEXT else _number(cell) for key, cell in row.items() if cell}
            for row in csv.DictReader(file)
        ]


def _number(cell: str) -> int | float:
    try:
        return int(cell)
    except ValueError:
        return float(cell)


@contextmanager
def status(folder: Path, earlier: float = 0.0, **facts: object) -> Iterator[dict[str, object]]:
    """Keep `status.json` while a run goes on: running, then done, interrupted, or failed with the reason.

    Args:
        folder: The run's folder.
        earlier: Seconds that earlier parts of this run took.
        **facts: Written along: which dataset, model, loss, seed.

    Yields:
        What is put into it is written along when the run is done.
    """
    started, clock = _now(), time.monotonic()
    _forget_peak()

    results: dict[str, object] = {}

    def write(state: str, **more: object) -> None:
        record = {"state": state, **facts, "started": started, **more}
        write_text(folder / STATUS, json.dumps(record, indent=2) + "\n")

    here = {
        "host": platform.node(),
        "process": os.getpid(),
        "process_began": _began(os.getpid()),
        "slurm": _slurm_job(),
    }
    write("running", **here)
    try:
        yield results
    except (KeyboardInterrupt, SystemExit):
        write("interrupted", ended=_now())
        raise
    except BaseException as error:
        write("failed", ended=_now(), reason=f"{type(error).__name__}: {error}")
        raise
    seconds = round(earlier + time.monotonic() - clock, 1)
    write("done", ended=_now(), seconds=seconds, memory_gib=_peak(), **results)


def read_status(folder: Path) -> dict[str, Any]:
    """Return what `status.json` says, or nothing if there is none."""
    try:
        return json.loads((folder / STATUS).read_text())
    except FileNotFoundError:
        return {}


def alive(folder: Path) -> bool:
    """Whether the process that wrote the status of a running run is still there.

    Of another machine it is believed if there was a sign of it within half an hour (an epoch had ended), unless this is
    the same job of SLURM, queued again.
    """
    facts = read_status(folder)
    if facts.get("host") != platform.node():
        if facts.get("slurm") is not None and facts["slurm"] == _slurm_job():
            return False
        signs = [path.stat().st_mtime for path in (folder / STATUS, folder / "metrics.csv") if path.is_file()]
        return time.time() - max(signs, default=0) < SIGN
    began = _began(facts["process"])
    if began is None:  # not Linux, or no such process
        return not Path("/proc/self").exists() and _exists(facts["process"])
    return began == facts.get("process_began")


def _slurm_job() -> str | None:
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID"))
    return job and f"{job}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"


def _began(process: int) -> int | None:
    """When a process began, in ticks since the machine did: numbers of processes are used again. None if unknown."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[19])
    except OSError:
        return None


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _forget_peak() -> None:
    """Let the peak of this process's memory start anew, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float | None:
    """The largest memory of this process since then, in GiB, or None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith("VmHWM:")]
    return round(int(found[0].split()[1]) / 2**20, 2) if found else None


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


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
    under names ending in `_default` (threshold 0.5, no mending) and, if there is a field of view, in `_fov`; then all
    further scores. A skipped score (NaN) is an empty cell.

    Args:
        path: The CSV.
        names: `n` names of images.
        groups: `n` groups.
        counts: `(n, 4)` pixel counts under the suffix of their columns, a combination of those in :data:`SUFFIXES`.
        empty: Policy for images whose mask and prediction are both empty.
        more: Further scores of each image by name.
    """
    rows = [{"image": name, "group": group} for name, group in zip(names, groups, strict=True)]
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

    Args:
        counts: `(n, 4)` pixel counts under `""`, and perhaps under `"_fov"`.
        empty: Policy for images whose mask and prediction are both empty.
    """
    return {
        f"{name}{suffix}": value for suffix, cells in counts.items() for name, value in summary(cells, empty).items()
    }


def largest_change(before: Path, after: Path) -> float:
    """Return the largest change of a number between two tables of images; infinity if the images are others."""
    one, other = ({row["image"]: row for row in read_table(path)} for path in (before, after))
    if one.keys() != other.keys():
        return math.inf
    return max(
        abs(one[image].get(column, math.inf) - value)
        for image, row in other.items()
        for column, value in row.items()
        if column not in TEXT
    )


def beside_baselines(counts: Mapping[str, np.ndarray], empty: str) -> dict[str, dict[str, float]]:
    """Summarise a split beside what painting nothing and painting everything would have scored on it.

    Args:
        counts: As :func:`read_counts` returns them.
        empty: Policy for images whose mask and prediction are both empty.

    Returns:
        Summaries under `best checkpoint`, `at threshold 0.5` where these are counted too, `all background` and `all
        foreground`.
    """
    chosen = {suffix: cells for suffix, cells in counts.items() if not suffix.endswith(DEFAULT)}
    plain = {suffix.removesuffix(DEFAULT): cells for suffix, cells in counts.items() if suffix.endswith(DEFAULT)}
    table = {BEST: summaries(chosen, empty)}
    if plain:
        table[PLAIN] = summaries(plain, empty)
    for name in ("all background", "all foreground"):
        table[name] = summaries({suffix: baselines(cells)[name] for suffix, cells in chosen.items()}, empty)
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


def flat(node: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return every value of a nested mapping by its path.

    >>> flat({"loss": {"smooth": 1.0}, "seed": 3})
    {'loss.smooth': 1.0, 'seed': 3}
    """
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{path}{key}.")
        else:
            found[f"{path}{key}"] = value
    return found
