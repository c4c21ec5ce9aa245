"""DRIVE: 40 retinas with their vessels, and the camera's field of view."""

from pathlib import Path

from raremask.data import splits
from raremask.data.base import ImageMaskData, Record, files


class DRIVE(ImageMaskData):
    """DRIVE in its official layout: 20 images of `training` (16 for training, 4 for validation), 20 of `test`.

    The field-of-view mask is carried along as the validity mask. Scores count every pixel of the image; those inside
    the field of view stand beside them under names that end in `_fov`.

    Args:
        root: The folder with `training` and `test`.
        split_seed: Decides which four training images validate; apart from the run's seed, so that runs compare.
        **shared: As in :class:`~raremask.data.base.ImageMaskData`.

    Source:
        Staal et al. (2004), https://drive.grand-challenge.org
    """

    def __init__(self, root: str, split_seed: int = 0, **shared):
        super().__init__(**shared)
        self.root, self.split_seed = Path(root), split_seed

    def records(self) -> dict[str, list[Record]]:
        """Return the records of the three splits.

        Raises:
            BadInput: If a folder has no image.
        """
        development = self._records_of("training")
        val = max(1, round(len(development) * 4 / 20))
        sizes = {"train": len(development) - val, "val": val}
        return splits.at_random(development, sizes, self.split_seed) | {"test": self._records_of("test")}

    def _records_of(self, part: str) -> list[Record]:
        folder = self.root / part
        images = files(folder / "images", ".tif", 20, "the official DRIVE archive (training and test)")
        records = []
        for image in images:
            number = image.stem.split("_")[0]
            mask = folder / "1st_manual" / f"{number}_manual1.gif"
            records.append(Record(image.stem, number, image, mask, folder / "mask" / f"{image.stem}_mask.gif"))
        return records
