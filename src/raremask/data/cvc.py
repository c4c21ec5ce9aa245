"""CVC-ClinicDB: 612 colonoscopy frames with polyps, of 29 video sequences."""

import bisect

from raremask import BadInput
from raremask.data.base import Archive, Record, files, visible

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


class CVC(Archive):
    """CVC-ClinicDB in its official layouts, `Original/<n>.tif` or `PNG/Original/<n>.png` beside `Ground Truth`.

    Neighbouring frames are near-duplicates: the group of a frame is its sequence. The thesis and many papers drew
    frames instead, 392 / 98 / 122 (`split.by=image`: 391 / 98 / 123). `root` is the archive's folder.

    Source:
        Bernal et al. (2015), https://polyp.grand-challenge.org/CVCClinicDB/
    """

    def records(self) -> list[Record]:
        """Return the records of all frames.

        Raises:
            BadInput: If there are no frames, or a name is not a frame's number.
        """
        layouts = [(self.root / folder / "Original", suffix) for folder, suffix in LAYOUTS]
        here = next((layout for layout in layouts if visible(*layout)), layouts[0])
        images = files(*here, FRAMES, "the official archive of CVC-ClinicDB")
        foreign = [path.name for path in images if not (path.stem.isdigit() and 1 <= int(path.stem) <= FRAMES)]
        if foreign:
            raise BadInput(f"{here[0]}: frames are named 1 to {FRAMES}; got {', '.join(foreign[:5])}.")
        images.sort(key=lambda path: int(path.stem))
        return [
            Record(path.stem, str(sequence(int(path.stem))), path, path.parents[1] / "Ground Truth" / path.name)
            for path in images
        ]
