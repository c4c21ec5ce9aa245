"""CVC-ClinicDB: 612 colonoscopy frames with polyps, of 29 video sequences."""

import bisect
import warnings
from pathlib import Path

from raremask import BadInput
from raremask.data import splits
from raremask.data.base import ImageMaskData, Record, files

# The last frame of each of the 29 sequences, as published with the dataset.
LAST_FRAMES = (
    *(25, 50, 67, 78, 103, 126, 151, 177, 199, 205, 227, 252, 277, 297, 317),
    *(342, 363, 383, 408, 428, 447, 466, 478, 503, 528, 546, 571, 591, 612),
)
FRAMES = LAST_FRAMES[-1]
LAYOUTS = (("PNG", ".png"), ("TIF", ".tif"), ("", ".png"), ("", ".tif"))


def sequence(frame: int) -> int:
    """Return the number of the sequence, from 1, to which a frame from 1 to 612 belongs.

    >>> sequence(25), sequence(26), sequence(612)
    (1, 2, 29)
    """
    return bisect.bisect_left(LAST_FRAMES, frame) + 1


class CVC(ImageMaskData):
    """CVC-ClinicDB in its official layouts, `Original/<n>.tif` or `PNG/Original/<n>.png` beside `Ground Truth`.

    Neighbouring frames are near-duplicates. `split: sequence` never divides a sequence; `split: random` draws frames,
    392 / 98 / 122 as the thesis and many papers do, and warns: its scores are too good.

    Args:
        root: The archive's folder.
        split: `sequence` or `random`.
        split_seed: Decides which sequence or frame goes where; apart from the run's seed, so that runs compare.
        **shared: As in :class:`~raremask.data.base.ImageMaskData`.

    Raises:
        ValueError: If `split` is neither of the two.

    Source:
        Bernal et al. (2015), https://polyp.grand-challenge.org/CVCClinicDB/
    """

    def __init__(self, root: str, split: str = "sequence", split_seed: int = 0, **shared):
        super().__init__(**shared)
        if split not in ("sequence", "random"):
            raise ValueError(f"dataset.split must be sequence or random; got {split!r}")
        self.root, self.split, self.split_seed = Path(root), split, split_seed

    def records(self) -> dict[str, list[Record]]:
        """Return the records of the three splits.

        Raises:
            BadInput: If there are no frames, or a name is not a frame's number.
        """
        layouts = [(self.root / folder / "Original", suffix) for folder, suffix in LAYOUTS]
        here = next((layout for layout in layouts if any(layout[0].glob(f"*{layout[1]}"))), layouts[0])
        images = files(*here, FRAMES, "the official archive of CVC-ClinicDB")
        foreign = [path.name for path in images if not (path.stem.isdigit() and 1 <= int(path.stem) <= FRAMES)]
        if foreign:
            raise BadInput(f"{here[0]}: frames are named 1 to {FRAMES}; got {', '.join(foreign[:5])}.")
        images.sort(key=lambda path: int(path.stem))
        records = [
            Record(path.stem, str(sequence(int(path.stem))), path, path.parents[1] / "Ground Truth" / path.name)
            for path in images
        ]
        if self.split == "sequence":
            return splits.by_group(records, [record.group for record in records], self.split_seed)
        warnings.warn(
            "dataset.split=random puts near-duplicate frames of one video into training and test: scores will be too "
            "good. Use it only to compare with papers that did so.",
            stacklevel=2,
        )
        val, test = round(len(records) * 98 / FRAMES), round(len(records) * 122 / FRAMES)
        sizes = {"train": len(records) - val - test, "val": val, "test": test}
        return splits.at_random(records, sizes, self.split_seed)
