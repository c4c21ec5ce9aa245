"""Look for what a competition would refuse in a file of run lengths, before you hand it in.

    python scripts/check_submission.py mine.csv sample_submission.csv --submission nerve --size 420x580

Finds missing, foreign and doubled names, runs that are odd, overlap or leave the image, and masks that are nearly all
white, all empty or all the same. Exits with 1 if anything is wrong.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf

from raremask import BadInput
from raremask.submission import collapse, faults

PRESETS = Path(__file__).parents[1] / "conf" / "submission"


def report(mine: Path, sample: Path, preset: str, size: tuple[int, int] | None) -> tuple[str, bool]:
    """Return what was found, and whether anything is wrong.

    Raises:
        BadInput: If a file is no table.
    """
    style = instantiate(OmegaConf.load(PRESETS / f"{preset}.yaml")).style
    found, shares = faults(mine, sample, style, size)
    lines = [*found]
    if shares:
        empty, white = np.mean(np.equal(shares, 0)), np.mean(np.greater(shares, 0.99))
        lines.append(
            f"{len(shares)} masks read: {empty:.0%} empty, {white:.0%} white, mean {np.mean(shares):.2%} foreground"
        )
    else:
        lines.append("no --size was given: neither bounds nor shares were looked at")
    if collapsed := collapse(shares):
        lines.append(collapsed)
    wrong = bool(found or collapsed)
    return "\n".join(lines if wrong else [*lines, "nothing is wrong with it"]), wrong


def main() -> None:
    """Judge the command line and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mine", type=Path)
    parser.add_argument("sample", type=Path)
    presets = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    parser.add_argument("--submission", choices=presets, default="nerve", help="how masks are written; default: nerve")
    parser.add_argument("--size", help="height x width of all masks in pixels, such as 420x580")
    arguments = parser.parse_args()
    try:
        size = None if arguments.size is None else tuple(int(side) for side in arguments.size.split("x"))
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ValueError
    except ValueError:
        parser.error(f"--size is height x width, such as 420x580; got {arguments.size}")
    try:
        text, wrong = report(arguments.mine, arguments.sample, arguments.submission, size)
    except BadInput as error:
        sys.exit(str(error))
    print(text)
    sys.exit(int(wrong))


if __name__ == "__main__":
    main()
