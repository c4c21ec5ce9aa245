"""Files of run lengths as competitions take them, and what is wrong with one."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raremask import BadInput
from raremask.data.pairing import read_csv
from raremask.runlengths import RunLengths

FEW = 4  # of fewer masks nothing can be said
NAMES = ("stem", "file", "number")


class Submission:
    r"""A table with a row for each image: what it is called, and its mask as run lengths.

    Args:
        header: Names of the two columns.
        name: What stands for an image: its `stem`, its `file` name, or its stem as a `number`.
        style: How masks are written.

    Raises:
        ValueError: If there are not two columns, or `name` is unknown.

    >>> table = Submission(["img", "pixels"], "number", RunLengths())
    >>> table.text({"10.tif": np.array([[1]], bool), "9.tif": np.array([[0]], bool)})
    'img,pixels\n9,\n10,1 1\n'
    """

    def __init__(self, header: Sequence[str], name: str, style: RunLengths):
        if len(header) != 2 or name not in NAMES:
            raise ValueError(f"header has two columns, name is {', '.join(NAMES)}; got {list(header)} and {name!r}")
        self.header, self.name, self.style = list(header), name, style

    def text(self, masks: Mapping[str, np.ndarray]) -> str:
        """Return the table as CSV, sorted by name, numbers as numbers.

        Args:
            masks: `(H, W)` boolean at native size, by the file name of their image.

        Raises:
            BadInput: If a name should be a number and is none, or two images have one name.
        """
        return self.of_runs({file: self.style.write(mask) for file, mask in masks.items()})

    def of_runs(self, runs: Mapping[str, str]) -> str:
        """Return the table as CSV of masks that are written already."""
        rows = [(self.named(file), cell) for file, cell in runs.items()]
        doubled = [name for name, times in Counter(name for name, _ in rows).items() if times > 1]
        if doubled:
            raise BadInput(f"two images would be called {doubled[0]} in the submission.")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows(sorted(rows))
        return text.getvalue()

    def named(self, file: str) -> str | int:
        """Return what stands for an image."""
        stem = Path(file).stem
        if self.name == "number" and not (stem.isascii() and stem.isdecimal()):
            raise BadInput(f"{file}: the submission numbers its images, and {stem!r} is no number.")
        return {"stem": stem, "file": file, "number": int(stem) if self.name == "number" else 0}[self.name]


def faults(
    mine: Path, sample: Path, style: RunLengths, size: tuple[int, int] | None = None
) -> tuple[list[str], list[float]]:
    """Find what a competition would refuse, or score with 0, in a file of run lengths.

    Args:
        mine: The submission, CSV.
        sample: The competition's sample submission: which columns and which names there must be.
        style: How masks are written.
        size: Height and width of the masks in pixels; None checks no bounds, and gives no shares.

    Returns:
        What is wrong, a line each, and the share of foreground of each mask that can be read.

    Raises:
        BadInput: If a file cannot be read or is no table of two columns.
    """
    tables = [read_csv(path) for path in (mine, sample)]
    columns = [list(rows[0]) for rows in tables]
    if len(columns[1]) != 2:
        raise BadInput(f"{sample}: a sample submission has two columns; got {', '.join(columns[1])}.")
    if columns[0] != columns[1]:
        raise BadInput(f"{mine}: columns must be {', '.join(columns[1])}; got {', '.join(columns[0])}.")
    key, cell = columns[1]
    names, wanted = ([row[key] for row in rows] for rows in tables)
    found = []
    for what, which in (
        ("missing", sorted(set(wanted) - set(names))),
        ("foreign", sorted(set(names) - set(wanted))),
        ("doubled", sorted(name for name, times in Counter(names).items() if times > 1)),
    ):
        if which:
            found.append(f"{len(which)} names are {what}: {_some(which)}")
    if not found and names != wanted:
        found.append("names stand in another order than in the sample; some competitions ask for that one")
    shares, broken = [], []
    for row in tables[0]:
        try:
            if size is None:
                style.pairs(row[cell])
            else:
                shares.append(float(style.read(row[cell], size).mean()))
        except ValueError as error:
            broken.append(f"{row[key]}: {error}")
    if broken:
        found += [f"{len(broken)} masks cannot be read:", *(f"  {line}" for line in broken[:10])]
    return found, shares


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def collapse(shares: Sequence[float]) -> str:
    """Say if predictions have collapsed: nearly all empty, nearly all white, or nearly all the same.

    Args:
        shares: Share of foreground of each predicted mask.

    Returns:
        What is wrong and what to look at, or nothing.

    >>> collapse([0.0] * 10).split(".")[0]
    '10 of 10 masks are empty'
    """
    shares = np.asarray(shares, dtype=float)
    if shares.size < FEW:
        return ""
    empty, white = int((shares == 0).sum()), int((shares > 0.99).sum())
    if empty == shares.size:
        return (
            f"{empty} of {shares.size} masks are empty. The network paints nothing: look whether val/dice ever rose "
            "above what all background scores; try loss=bce_dice, more epochs, or a lower learning rate."
        )
    if white > 0.5 * shares.size:
        return (
            f"{white} of {shares.size} masks are white. The threshold may lie below every probability, or images are "
            "read otherwise than in training (gray or colour, 8 or 16 bits): look at the probabilities."
        )
    if shares.std() < 1e-6:
        return f"all {shares.size} masks have the same area. The network does not see the image: look at its inputs."
    return ""
