"""Any images and masks of yours: two folders, or a table."""

from pathlib import Path

from raremask import BadInput
from raremask.data import splits
from raremask.data.base import SPLITS, ImageMaskData, Record
from raremask.data.pairing import pairs, table


class Folder(ImageMaskData):
    """Two folders of images and masks, paired by name, or a CSV table of pairs.

    Names pair as :func:`~raremask.data.pairing.pairs` says. A table has the columns `image` and `mask`, and perhaps
    `group` (images of one patient or video, never divided) and `split` (train, val or test; then nothing is drawn).
    Otherwise 64 / 16 / 20 % go to training, validation and test: 80 : 20, and a fifth of the 80 validates.

    Args:
        images: Folder of the images; not used with a table.
        masks: Folder of the masks; not used with a table.
        pairs: The table, or None.
        split_seed: Decides which image or group goes where; apart from the run's seed, so that runs compare.
        **shared: As in :class:`~raremask.data.base.ImageMaskData`.
    """

    def __init__(self, images: str | None, masks: str | None, pairs: str | None = None, split_seed: int = 0, **shared):
        super().__init__(**shared)
        if pairs is None and (images is None or masks is None):
            raise ValueError("dataset.images and dataset.masks must both be given, or dataset.pairs")
        self.images, self.masks, self.table, self.split_seed = images, masks, pairs, split_seed

    def records(self) -> dict[str, list[Record]]:
        """Return the records of the three splits.

        Raises:
            BadInput: If images and masks do not pair, or a split of the table is unknown or missing.
        """
        if self.table is None:
            found = pairs(Path(self.images), Path(self.masks))
            records = [Record(image.stem, image.stem, image, mask) for image, mask in found]
            return splits.by_group(records, [record.group for record in records], self.split_seed)

        rows = table(Path(self.table))
        records = [
            Record(row["image"], row.get("group") or row["image"], Path(row["image"]), Path(row["mask"]))
            for row in rows
        ]
        if not any(row.get("split") for row in rows):
            return splits.by_group(records, [record.group for record in records], self.split_seed)
        unknown = sorted({row["split"] or "(empty)" for row in rows} - set(SPLITS))
        if unknown:
            raise BadInput(f"{self.table}: split must be {', '.join(SPLITS)}; got {', '.join(unknown)}.")
        chosen = {split: [r for r, row in zip(records, rows, strict=True) if row["split"] == split] for split in SPLITS}
        groups = {split: {record.group for record in chosen[split]} for split in SPLITS}
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            if shared := sorted(groups[one] & groups[other]):
                raise BadInput(f"{self.table}: group {shared[0]} is in {one} and in {other}; a group is never divided.")
        return chosen


def _record(row: dict[str, str]) -> Record:
    """A row of a table; an image without a group is a group of its own."""
    return Record(row["image"], row.get("group") or row["image"], Path(row["image"]), Path(row["mask"]))
