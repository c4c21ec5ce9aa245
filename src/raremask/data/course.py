"""The course competition (A0 2025): dermoscopic images with lesion masks."""

from pathlib import Path
from typing import Any

from raremask.data.base import ImageMaskData, Record, files


class Course(ImageMaskData):
    """The competition's folders: `Train/Image/<name>.jpg` with `Train/Mask/<name>.png`, `Test/Image/<name>.jpg`.

    The competition keeps the masks of `Test` to itself, so all three splits are drawn from `Train`.

    Args:
        root: The folder `Dataset`.
        **shared: As in :class:`~raremask.data.base.ImageMaskData`.
    """

    def __init__(self, root: str, **shared: Any):
        super().__init__(**shared)
        self.root = Path(str(root))  # a folder may be called 2018

    def records(self) -> list[Record]:
        """Return the records of all training images.

        Raises:
            BadInput: If there is no image.
        """
        train = self.root / "Train"
        images = files(train / "Image", ".jpg", 1087, "the competition's archive")
        return [Record(path.stem, path.stem, path, train / "Mask" / f"{path.stem}.png") for path in images]
