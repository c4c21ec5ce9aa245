"""Ultrasound nerve segmentation (Kaggle 2016): grayscale images of necks, of which about 60 % show no nerve."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raremask import BadInput
from raremask.data.base import Archive, Record, files, visible
from raremask.data.pairing import read_csv
from raremask.data.readers import read_image
from raremask.runlengths import RunLengths


@dataclass(frozen=True)
class WrittenMask(Record):
    """A record whose mask is written as run lengths.

    Args:
        runs: Starts and lengths, as :class:`raremask.runlengths.RunLengths` writes them; empty for an empty mask.
    """

    runs: str = ""


class Nerve(Archive):
    """The competition's layout: `train/<subject>_<number>.tif`, 580 x 420 pixels, and masks in one of two ways.

    Masks are the files `train/<subject>_<number>_mask.tif` or, where there are none, the run lengths of
    `train_masks.csv` (columns `subject`, `img`, `pixels`; an empty cell is an empty mask). The group of an
    image is its subject. The competition's `test` has no masks and is not read.

    `root` is the folder with `train` and `train_masks.csv`.

    Source:
        https://www.kaggle.com/competitions/ultrasound-nerve-segmentation
    """

    def records(self) -> list[Record]:
        """Return the records of all training images.

        Raises:
            BadInput: If there is no image, a name is not `<subject>_<number>`, or masks are missing.
        """
        folder, listed = self.root / "train", self.root / "train_masks.csv"
        drawn = visible(folder, "_mask.tif")
        images = files(folder, ".tif", 5635, "the competition's archive", but="_mask.tif")
        foreign = [path.name for path in images if not re.fullmatch(r"\d+_\d+", path.stem)]
        if foreign:
            raise BadInput(f"{folder}: images are named <subject>_<number>.tif; got {', '.join(foreign[:5])}.")
        images.sort(key=lambda path: [int(part) for part in path.stem.split("_")])
        if drawn:
            return [Record(path.stem, _subject(path), path, folder / f"{path.stem}_mask.tif") for path in images]
        runs = _run_lengths(listed)
        missing = [path.name for path in images if path.stem not in runs]
        extra = sorted(set(runs) - {path.stem for path in images})
        if missing or extra:
            raise BadInput(
                f"{listed} and {folder} do not agree. Images without a row: {', '.join(missing[:5]) or 'none'}; "
                f"rows without an image: {', '.join(extra[:5]) or 'none'}."
            )
        return [WrittenMask(path.stem, _subject(path), path, listed, runs=runs[path.stem]) for path in images]

    def arrays(self, record: Record) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return one image and its mask, from its file or its run lengths.

        Raises:
            BadInput: If one of them cannot be read.
        """
        if not isinstance(record, WrittenMask):
            return super().arrays(record)
        image = read_image(record.image, self.channels, self.bits, self.peaks)
        try:
            return image, RunLengths().read(record.runs, image.shape[:2]), None
        except ValueError as error:
            raise BadInput(f"{record.mask}: {record.name}: {error}") from error


def _subject(path: Path) -> str:
    return path.stem.split("_")[0]


def _run_lengths(path: Path) -> dict[str, str]:
    """Run lengths by image name, `<subject>_<img>`."""
    if not path.is_file():
        raise BadInput(f"{path.parent} has neither train/*_mask.tif nor {path.name}: there are no masks.")
    table = read_csv(path, needed=("subject", "img", "pixels"), perhaps=())
    rows = [(f"{row['subject']}_{row['img']}", row["pixels"]) for row in table]
    runs = dict(rows)
    if len(runs) < len(rows):
        raise BadInput(f"{path}: {len(rows) - len(runs)} images stand there twice.")
    return runs
