"""Look for what a competition would refuse in a file of run lengths, before you hand it in.

    python scripts/check_submission.py mine.csv sample_submission.csv --submission nerve --size 420x580
    python scripts/check_submission.py mine.csv sample_submission.csv --style order=rows start=0 empty=-1

Finds missing, foreign and doubled names, runs that are odd, overlap or leave the image, and masks that are nearly all
white, all empty or all the same. Exits with 1 if anything is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from raremask import BadInput
from raremask.collapse import collapse
from raremask.data.pairing import read_csv
from raremask.submission import problems

FOLDER = Path(__file__).parents[1] / "conf" / "submission"
PRESETS = {path.stem: OmegaConf.load(path) for path in sorted(FOLDER.glob("*.yaml"))}
PRESETS = {name: preset.style for name, preset in PRESETS.items() if "style" in preset}  # COCO's is no table


def report(
    mine: Path, sample: Path, preset: str, size: tuple[int, int] | None, changes: Sequence[str] = ()
) -> tuple[str, bool]:
    """Return what was found, and whether anything is wrong.

    Args:
        mine: The submission.
        sample: The competition's sample.
        preset: How masks are written.
        size: Height and width of all masks in pixels, or None.
        changes: To the preset's style, `key=value`.

    Raises:
        BadInput: If a file is no table, or a change is to nothing.
    """
    style = OmegaConf.create(PRESETS[preset])
    OmegaConf.set_struct(style, True)
    try:
        style = instantiate(OmegaConf.merge(style, OmegaConf.from_dotlist(list(changes))))
    except (OmegaConfBaseException, HydraException) as error:
        known = ", ".join(key for key in PRESETS[preset] if key != "_target_")
        raise BadInput(f"--style {' '.join(changes)}: {str(error).splitlines()[0]}; there are {known}.") from error
    found, shares = problems(mine, sample, style, size)
    lines = [*found]
    order = [[next(iter(row.values())) for row in read_csv(path)] for path in (mine, sample)]
    if not found and order[0] != order[1]:
        lines.append("note: names stand in another order than in the sample, which most competitions do not mind")
    if shares:
        empty, white = np.mean(np.equal(shares, 0)), np.mean(np.greater(shares, 0.99))
        lines.append(
            f"{len(shares)} masks read: {empty:.0%} empty, {white:.0%} white, mean {np.mean(shares):.2%} foreground"
        )
    elif size is None:
        lines.append("no --size was given: neither the last pixel nor shares were looked at")
    if collapsed := collapse(shares):
        lines.append(collapsed)
    wrong = bool(found or collapsed)
    return "\n".join(lines if wrong else [*lines, "nothing is wrong with it"]), wrong


def main() -> None:
    """Judge the command line and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mine", type=Path)
    parser.add_argument("sample", type=Path)
    parser.add_argument("--submission", choices=PRESETS, default="nerve", help="how masks are written; default: nerve")
    parser.add_argument("--style", nargs="+", default=[], metavar="key=value", help="what is otherwise in your file")
    parser.add_argument("--size", help="height x width of all masks in pixels, such as 420x580")
    arguments = parser.parse_args()
    try:
        size = None if arguments.size is None else tuple(int(side) for side in arguments.size.split("x"))
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ValueError
    except ValueError:
        parser.error(f"--size is height x width, such as 420x580; got {arguments.size}")
    try:
        text, wrong = report(arguments.mine, arguments.sample, arguments.submission, size, arguments.style)
    except BadInput as error:
        sys.exit(str(error))
    print(text)
    sys.exit(int(wrong))


if __name__ == "__main__":
    main()
