"""ISIC 2018, task 1: dermoscopic images with lesion masks."""

from raremask.data.base import Archive, Record, files

FOLDERS = {"train": ("Training", 2594), "val": ("Validation", 100), "test": ("Test", 1000)}


class ISIC2018(Archive):
    """ISIC 2018 task 1 in its official folders, which are its splits.

    `ISIC2018_Task1-2_<Part>_Input/<name>.jpg` and `ISIC2018_Task1_<Part>_GroundTruth/<name>_segmentation.png`, Part
    being Training, Validation and Test.

    `root` is the folder that holds the six official folders.

    Source:
        Codella et al. (2019), https://arxiv.org/abs/1902.03368; https://challenge.isic-archive.com/data/#2018
    """

    def records(self) -> list[Record]:
        """Return the records of all images; the folders fix the splits.

        Raises:
            BadInput: If a folder has no image.
        """
        return [record for split, (part, expected) in FOLDERS.items() for record in self._of(split, part, expected)]

    def _of(self, split: str, part: str, expected: int) -> list[Record]:
        folder = self.root / f"ISIC2018_Task1-2_{part}_Input"
        masks = self.root / f"ISIC2018_Task1_{part}_GroundTruth"
        images = files(folder, ".jpg", expected, "the official archives of ISIC 2018 task 1")
        return [
            Record(path.stem, path.stem, path, masks / f"{path.stem}_segmentation.png", split=split) for path in images
        ]
