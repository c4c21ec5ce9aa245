"""DRIVE: 40 retinas with their vessels, and the camera's field of view."""

import warnings

from raremask.data.base import Archive, Record, files


class DRIVE(Archive):
    """DRIVE in its official layout: 20 images of `training`, of which 4 validate, 20 of `test`.

    Downloads of today have no labels for `test`; then all splits are drawn from `training`, with a warning.

    The field-of-view mask is carried along as the validity mask. Scores count every pixel of the image; those inside
    the field of view stand beside them under names that end in `_fov`.

    `root` is the folder with `training` and `test`.

    Source:
        Staal et al. (2004), https://drive.grand-challenge.org
    """

    def records(self) -> list[Record]:
        """Return the records of all images; `test` is fixed.

        Raises:
            BadInput: If a folder has no image.
        """
        development = self._records_of("training", None)
        if (self.root / "test" / "1st_manual").is_dir():
            return [*development, *self._records_of("test", "test")]
        warnings.warn(
            f"{self.root / 'test'} has no 1st_manual: the challenge keeps the test labels to itself. All splits are "
            "drawn from the 20 training images; scores do not compare with papers that tested on the other 20.",
            stacklevel=2,
        )
        return development

    def _records_of(self, part: str, split: str | None) -> list[Record]:
        folder = self.root / part
        images = files(folder / "images", ".tif", 20, "the official DRIVE archive (training and test)")
        records = []
        for image in images:
            number = image.stem.split("_")[0]
            mask = folder / "1st_manual" / f"{number}_manual1.gif"
            valid = folder / "mask" / f"{image.stem}_mask.gif"
            records.append(Record(image.stem, number, image, mask, valid, split))
        return records
