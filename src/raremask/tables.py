"""Tables as CSV: what stands in a cell comes back as it was, and no spreadsheet computes it."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raremask import BadInput

#: Columns that hold names, even if they look like numbers.
TEXT = ("image", "group", "split", "twin", "twin_group", "twin_split", "runs")
csv.field_size_limit(2**31 - 1)  # run lengths of a large mask are longer than the 131,072 characters of before

#: How a cell begins that a spreadsheet would compute, with any apostrophes of ours before it.
FORMULA = re.compile(r"'*[=+\-@\t\r]")


def text(rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()) -> str:
    r"""Return the CSV of rows; first these columns, then all other keys in the order of their appearance.

    >>> text([{"image": "=1+1", "dice": 0.5}, {"image": "b", "iou": -1}])
    "image,dice,iou\n'=1+1,0.5,\nb,,-1\n"
    """
    lines = _Lines()
    names = dict.fromkeys([*columns, *(key for row in rows for key in row)])
    writer = csv.DictWriter(lines, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: defused(cell) for key, cell in row.items()} for row in rows)
    return "".join(lines)


class _Lines(list):
    write = list.append


def read_table(path: Path) -> list[dict[str, Any]]:
    """Read a CSV of :func:`text`: numbers but for the columns of text; an empty cell is left out.

    Raises:
        BadInput: If it cannot be read, or is damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                {key: as_it_was(cell) if key in TEXT else _number(cell) for key, cell in row.items() if cell}
                for row in csv.DictReader(file, strict=True)
            ]
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise BadInput(f"{path} is missing or damaged ({type(error).__name__}: {error})") from error


def _number(cell: str) -> int | float:
    try:
        return int(cell)
    except ValueError:
        return float(cell)


def defused(cell: object) -> object:
    """Return a cell that no spreadsheet takes for a formula: a text that begins like one gets an apostrophe in front.

    >>> defused("=HYPERLINK(0)"), defused("12.png"), defused(-0.5)
    ("'=HYPERLINK(0)", '12.png', -0.5)
    """
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell


def as_it_was(cell: str) -> str:
    """Return what :func:`defused` made a cell of.

    >>> as_it_was("'=HYPERLINK(0)"), as_it_was("'tis.png")
    ('=HYPERLINK(0)', "'tis.png")
    """
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell[1:]) else cell
