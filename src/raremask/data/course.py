"""The course competition (A0 2025): dermoscopic images with lesion masks."""

from raremask.data.base import Archive, Record, files


class Course(Archive):
    """The competition's folders: `Train/Image/<name>.jpg` with `Train/Mask/<name>.png`, `Test/Image/<name>.jpg`.

    The competition keeps the masks of `Test` to itself, so all three splits are drawn from `Train`. `root` is
    the folder `Dataset`.
    """

    def records(self) -> list[Record]:
        """Return the records of all training images.

        Raises:
            BadInput: If there is no image.
        """
        train = self.root / "Train"
        images = files(train / "Image", ".jpg", 1087, "the competition's archive")
        return [Record(path.stem, path.stem, path, train / "Mask" / f"{path.stem}.png") for path in images]
