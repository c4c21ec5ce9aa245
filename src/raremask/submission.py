"""Files of run lengths as competitions take them, and what is wrong with one."""

import csv
import io
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raremask import BadInput, some
from raremask.data.pairing import read_csv
from raremask.runlengths import RunLengths, compress, to_counts
from raremask.tables import FORMULA

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
    >>> table.of_runs({"10.tif": table.write(np.array([[1]], bool)), "9.tif": ""})
    'img,pixels\n9,\n10,1 1\n'
    """

    file = "submission.csv"

    def __init__(self, header: Sequence[str], name: str, style: RunLengths):
        if len(header) != 2 or name not in NAMES:
            raise ValueError(f"header has two columns, name is {', '.join(NAMES)}; got {list(header)} and {name!r}")
        self.header, self.name, self.style = list(header), name, style

    def write(self, mask: np.ndarray) -> str:
        """Return the cell of a mask, `(H, W)` boolean at native size."""
        return self.style.write(mask)

    def of_runs(self, runs: Mapping[str, str]) -> str:
        """Return the table as CSV of masks that are written already."""
        named = self.names(runs)
        if formulas := [name for name in named.values() if isinstance(name, str) and FORMULA.match(name)]:
            warnings.warn(
                f"{formulas[0]} and {len(formulas) - 1} other names stand in {self.file} as the competition has them, "
                "and a spreadsheet would compute them: do not open it in a spreadsheet.",
                stacklevel=2,
            )
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows(sorted((named[file], cell) for file, cell in runs.items()))
        return text.getvalue()

    def names(self, files: Iterable[str]) -> dict[str, str | int]:
        """Return what stands for each image, by its file's name.

        Raises:
            BadInput: If a name should be a number and is none, or two images have one name.
        """
        return distinct({file: called(file, self.name) for file in files})


class CocoResults:
    r"""Results as COCO's tools load them: a list of objects, each with its mask as compressed run lengths.

    An image's whole foreground is one object; an empty mask is none. Images are numbered by their stem.

    Args:
        category: Number of the class.
        score: Of every object: a mask has been thresholded, and ranks nothing.

    Raises:
        ValueError: If one of them is no number.

    Source:
        https://cocodataset.org/#format-results

    >>> results = CocoResults()
    >>> results.of_runs({"7.png": results.write(np.array([[1, 0], [1, 1]], bool))})
    '[\n{"image_id": 7, "category_id": 1, "segmentation": {"size": [2, 2], "counts": "021O"}, "score": 1.0}\n]\n'
    """

    file = "submission.json"

    def __init__(self, category: int = 1, score: float = 1.0):
        if not isinstance(category, int) or not isinstance(score, (int, float)):
            raise ValueError(f"category must be a whole number, score a number; got {category!r} and {score!r}")
        self.category, self.score = category, score

    def write(self, mask: np.ndarray) -> dict[str, Any]:
        """Return the segmentation of a mask, `(H, W)` boolean at native size."""
        return {"size": list(mask.shape), "counts": compress(to_counts(mask))}

    def of_runs(self, runs: Mapping[str, dict[str, Any]]) -> str:
        """Return the list as JSON of masks that are written already."""
        named = self.names(runs)
        found = sorted((named[file], segmentation) for file, segmentation in runs.items() if _is_some(segmentation))
        rows = (
            {"image_id": name, "category_id": self.category, "segmentation": segmentation, "score": self.score}
            for name, segmentation in found
        )
        return "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"

    def names(self, files: Iterable[str]) -> dict[str, str | int]:
        """Return each image's number, by its file's name.

        Raises:
            BadInput: If a name is no number, or two images have one.
        """
        return distinct({file: called(file, "number") for file in files})


def _is_some(segmentation: Mapping[str, Any]) -> bool:
    height, width = segmentation["size"]
    return segmentation["counts"] != compress([height * width])


def called(file: str, name: str) -> str | int:
    """Return what stands for an image: its `stem`, its `file` name, or its stem as a `number`.

    Raises:
        BadInput: If it should be a number and is none.
    """
    stem = Path(file).stem
    if name == "number" and not (stem.isascii() and stem.isdecimal()):
        raise BadInput(f"{file}: the submission numbers its images, and {stem!r} is no number.")
    names: dict[str, str | int] = {"stem": stem, "file": file, "number": int(stem) if name == "number" else 0}
    return names[name]


def distinct(names: dict[str, str | int]) -> dict[str, str | int]:
    """Return the names, if each is there once.

    Raises:
        BadInput: If it is not.
    """
    doubled = [name for name, times in Counter(names.values()).items() if times > 1]
    if doubled:
        raise BadInput(f"two images would be called {doubled[0]} in the submission.")
    return names


def problems(
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
    heads = [path.read_bytes().split(b"\n")[0].strip().decode().replace('"', "") for path in (mine, sample)]
    if heads[0] != heads[1]:  # to the letter: a server may not take another case, semicolons or a mark before the text
        raise BadInput(f"{mine}: the first line must be {heads[1]!r}; got {heads[0]!r}.")
    key, cell = columns[1]
    names, wanted = ([row[key] for row in rows] for rows in tables)
    found = []
    for what, which in (
        ("missing", sorted(set(wanted) - set(names))),
        ("foreign", sorted(set(names) - set(wanted))),
        ("doubled", sorted(name for name, times in Counter(names).items() if times > 1)),
    ):
        if which:
            found.append(f"{len(which)} names are {what}: {some(which)}")
    shares, broken = [], []
    for row in tables[0]:
        try:
            if size is None:
                style.spans(row[cell])
            else:
                shares.append(float(style.read(row[cell], size).mean()))
        except ValueError as error:
            broken.append(f"{row[key]}: {error}")
    if broken:
        found += [f"{len(broken)} masks cannot be read:", *(f"  {line}" for line in broken[:10])]
    return found, shares
