"""The course competition (A0 2025): dermoscopic images with lesion masks."""

from pathlib import Path

from raremask.data import splits
from raremask.data.base import ImageMaskData, Record, files


class Course(ImageMaskData):
    """The competition's folders: `Train/Image/<name>.jpg` with `Train/Mask/<name>.png`, `Test/Image/<name>.jpg`.

    The competition keeps the masks of `Test` to itself, so all three splits are drawn from `Train`: 64 / 16 / 20 %.

    Args:
        root: The folder `Dataset`.
        split_seed: Decides which image goes where; apart from the run's seed, so that runs compare.
        **shared: As in :class:`~raremask.data.base.ImageMaskData`.
    """

    def __init__(self, root: str, split_seed: int = 0, **shared):
        super().__init__(**shared)
        self.root, self.split_seed = Path(root), split_seed

    def records(self) -> dict[str, list[Record]]:
        """Return the records of the three splits.

        Raises:
            BadInput: If there is no image.
        """
        train = self.root / "Train"
        images = files(train / "Image", ".jpg", 1087, "the competition's archive")
        records = [Record(path.stem, path.stem, path, train / "Mask" / f"{path.stem}.png") for path in images]
        return splits.by_group(records, [record.group for record in records], self.split_seed)
