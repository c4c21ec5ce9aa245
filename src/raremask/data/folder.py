"""Any images and masks of yours: two folders, or a table."""

from pathlib import Path
from typing import Any

from raremask import BadInput
from raremask.data.base import ImageMaskData, Record
from raremask.data.pairing import pairs, read_pairs
from raremask.data.splits import SPLITS


class Folder(ImageMaskData):
    """Two folders of images and masks, paired by name, or a CSV table of pairs.

    Names pair as :func:`~raremask.data.pairing.pairs` says. A table has the columns `image` and `mask`, and perhaps
    `valid` (a mask of the pixels that count, such as a field of view: scores are also given inside of it), `group`
    (images of one patient or video, never divided) and `split` (train, val or test; without val a fifth of the training
    images validates). What has no split is drawn.

    Args:
        images: Folder of the images; not used with a table.
        masks: Folder of the masks; not used with a table.
        pairs: The table, or None.
        bits: How many bits of 16-bit images are in use, 8 to 16: 12 for many scanners and microscopes.
        **shared: As in :class:`~raremask.data.base.ImageMaskData`.

    Raises:
        ValueError: If folders are missing and there is no table, or `bits` is out of its range.
    """

    def __init__(self, images: str | None, masks: str | None, pairs: str | None = None, bits: int = 16, **shared: Any):
        super().__init__(**shared)
        if not 8 <= bits <= 16:
            raise ValueError(f"dataset.bits must be from 8 to 16; got {bits}")
        self.bits = bits
        if pairs is None and (images is None or masks is None):
            raise ValueError("dataset.images and dataset.masks must both be given, or dataset.pairs")
        self.images, self.masks = Path(str(images or "")), Path(str(masks or ""))  # a folder may be called 2018
        self.table = None if pairs is None else Path(str(pairs))

    def records(self) -> list[Record]:
        """Return the records of all pairs.

        Raises:
            BadInput: If images and masks do not pair, or a split of the table is unknown.
        """
        if self.table is None:
            found = pairs(self.images, self.masks)
            return [Record(image.stem, image.stem, image, mask) for image, mask in found]
        rows = read_pairs(self.table)
        given = {row.get("split") or "" for row in rows}
        if unknown := sorted(given - {*SPLITS, ""}):
            raise BadInput(f"{self.table}: split must be {', '.join(SPLITS)} or empty; got {', '.join(unknown)}.")
        stems = [Path(row["name"]).stem for row in rows]
        names = (
            stems if len(set(stems)) == len(stems) else [row["name"] for row in rows]
        )  # as two folders would name them
        return [
            Record(
                name=name,
                group=row.get("group") or name,  # an image without a group is a group of its own
                image=Path(row["image"]),
                mask=Path(row["mask"]),
                valid=Path(row["valid"]) if "valid" in row else None,
                split=row.get("split") or None,
            )
            for name, row in zip(names, rows, strict=True)
        ]
