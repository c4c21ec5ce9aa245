"""What all datasets share: reading once, checking everything, serving batches.

A mask's way: a :class:`Record` says where it lies; :meth:`ImageMaskData.arrays` reads it; it is kept as a
:class:`~raremask.data.samples.Picture`, at the network's size for the loss and packed at native size for the scores,
and served by that room.
"""

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from raremask import BadInput
from raremask.data.fitting import fit, fit_mask
from raremask.data.memory import Shelf
from raremask.data.readers import read_image, read_mask
from raremask.data.samples import (
    Batch,
    Picture,
    Pictures,
    SeededSampler,
    ShareSampler,
    Transform,
    as_floats,
    collate,
    deaf_worker,
    process,
)
from raremask.data.splits import SPLITS, Split
from raremask.distances import distance_to_other_class, thickness

#: How workers are started. It is Python's own default, named because a job of joblib has another, which starts none.
STARTS = "fork" if sys.platform == "linux" else "spawn"


@dataclass(frozen=True)
class Record:
    """Where one image and its truth lie.

    Args:
        name: What the image is called in tables; unique in its dataset.
        group: Images that must not be divided between splits share it: a sequence, a patient.
        image: The image's file.
        mask: The mask's file.
        valid: File of the pixels that count (a field of view), if the dataset has one.
        split: `train`, `val` or `test` where the dataset fixes it; None where it is to be drawn.
    """

    name: str
    group: str
    image: Path
    mask: Path
    valid: Path | None = None
    split: str | None = None


class Foreground:
    """What masks say about their foreground, found when asked for: parameters `auto` of losses go by it.

    Args:
        drawn: Masks `(H, W)` uint8 of 0 and 1.
    """

    def __init__(self, drawn: list[np.ndarray]):
        self._drawn = drawn

    @cached_property
    def imbalance(self) -> float:
        """Background pixels per foreground pixel.

        Raises:
            BadInput: If there is no foreground at all, or no background.
        """
        pixels, filled = sum(mask.size for mask in self._drawn), sum(int(mask.sum()) for mask in self._drawn)
        if filled in (0, pixels):
            pixel = "foreground" if filled == 0 else "background"
            raise BadInput(f"no training mask has a {pixel} pixel, so `auto` has nothing to go by.")
        return (pixels - filled) / filled

    @cached_property
    def thickness(self) -> float:
        """Mean over the images of :func:`raremask.distances.thickness`, in pixels.

        Raises:
            BadInput: If no image has both foreground and background.
        """
        each = torch.cat([thickness(torch.from_numpy(mask)[None, None]) for mask in self._drawn])
        if each.isnan().all():
            raise BadInput("no training mask has both foreground and background, so `auto` has nothing to go by.")
        return float(each.nanmean())

    @cached_property
    def radius(self) -> float:
        """Largest distance in pixels of a foreground pixel to the background of its image; 0 without any."""
        each = (torch.from_numpy(mask)[None, None] for mask in self._drawn)
        return max(float((distance_to_other_class(mask) * mask).max()) for mask in each)


class ImageMaskData(LightningDataModule):
    """A dataset of images with binary masks; subclasses say where the pictures lie.

    A subclass defines :meth:`records`; one whose pictures are not files also :meth:`arrays`.

    Attributes:
        bits: How many bits of a 16-bit image are in use.

    Args:
        size: Height and width in pixels at which the network works; None keeps the native size, which must then be
            the same for all images. Images are resized by area or bilinearly, masks bilinearly, to
            where half or more is foreground.
        draws: How often an epoch takes each training image; more than once makes sense with random crops.
        foreground_share: Which share of the training images that are drawn has foreground, in [0, 1]; None takes them
            as they come.
        memory: GiB of decoded images that are kept in memory; what is beyond lies in a temporary file.
        resize: `stretch` fills the size; `pad` keeps the proportions and fills up with black, which is background.
        channels: 1 (grayscale) or 3 (RGB).
        batch_size: Images per step and process.
        workers: Processes that augment; 0 does it in the main process. The batches are the same.
        augment: Applied to the training split, or None.
        split: Draws what the dataset does not fix; None draws 64 / 16 / 20 %.
        seed: Decides order and augmentation of training, never the split.

    Raises:
        ValueError: If one of them is not allowed.
    """

    bits = 16

    def __init__(
        self,
        size: tuple[int, int] | None,
        channels: int,
        batch_size: int,
        workers: int = 0,
        resize: str = "stretch",
        memory: float = 8.0,
        draws: int = 1,
        foreground_share: float | None = None,
        augment: Transform | None = None,
        split: Split | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grayscale) or 3 (RGB); got {channels}")
        if size is not None and (not hasattr(size, "__len__") or len(size) != 2 or min(size) < 1):
            raise ValueError(f"size must be [height, width] in pixels, or null for the native size; got {size}")
        if resize not in ("stretch", "pad"):
            raise ValueError(f"resize must be stretch or pad; got {resize!r}")
        if batch_size < 1 or workers < 0:
            raise ValueError(f"batch_size must be 1 or more, workers 0 or more; got {batch_size} and {workers}")
        if not isinstance(draws, int) or draws < 1 or not (foreground_share is None or 0 <= foreground_share <= 1):
            raise ValueError(
                f"draws must be a whole number from 1, foreground_share from 0 to 1; got {draws} and {foreground_share}"
            )
        self.draws, self.foreground_share = draws, foreground_share
        remedy = "Set TMPDIR to a larger disk, dataset.size to fewer pixels, or dataset.memory to more GiB."
        self.shelf = Shelf(int(memory * 2**30), "decoded images", remedy)
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.channels, self.batch_size, self.workers = channels, batch_size, workers
        self.resize, self.augment, self.split, self.seed = resize, augment, split or Split(), seed
        self.splits: dict[str, Pictures] = {}
        self.predicted = "val"  # what predict_dataloader gives
        self.remarks: list[str] = []  # on masks with soft edges
        self.peaks: list[int] = []  # largest values of 16-bit images
        self.vanished: list[str] = []  # names of masks whose foreground is lost at the network's size

    def records(self) -> list[Record]:
        """Return the record of every image with a mask.

        Raises:
            BadInput: If the files are not where they should be.
        """
        raise NotImplementedError

    def arrays(self, record: Record) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return one image `(h, w, C)` uint8, its mask and its validity mask or None, `(h, w)` boolean, as filed.

        Raises:
            BadInput: If one of them cannot be read.
        """
        valid = None if record.valid is None else read_mask(record.valid)
        image = read_image(record.image, self.channels, self.bits, self.peaks)
        return image, read_mask(record.mask, self.remarks), valid

    def setup(self, stage: str | None = None) -> None:
        """Read and check every picture, once, and divide them, whatever the stage.

        Raises:
            BadInput: With all that is wrong, one line each.
        """
        if self.splits:
            return
        records = self.records()
        pictures = self._read(records)
        share = float(np.mean([picture.foreground for picture in pictures]))
        if share > 0.5:
            warnings.warn(f"foreground covers {share:.0%} of the pixels. Are the masks inverted?", stacklevel=2)
        chosen = self.split(
            [record.name for record in records],
            [record.group for record in records],
            [record.split for record in records],
            [picture.foreground for picture in pictures],
        )
        for split in SPLITS:
            mine = [picture for picture, its in zip(pictures, chosen, strict=True) if its == split]
            if split == "train":  # nothing is scored there at native size
                mine = [replace(picture, packed=None, packed_valid=None) for picture in mine]
            self.splits[split] = Pictures(mine, self.augment if split == "train" else None, native=split != "train")
        self._try_training()

    def _try_training(self) -> None:
        """Find out now what would go wrong in a worker, in the middle of training."""
        training = self.splits["train"]
        try:
            tried = training[0, 0]["mask"]
        except ValueError as error:
            raise BadInput(
                f"augment: a training image of {_by(training.pictures[0].mask.shape)}: {error}. Cut smaller "
                "(augment.steps.<step>.height and width), or make dataset.size larger."
            ) from error
        if self.draws > 1 and tried.shape[-2:] == training.pictures[0].mask.shape:
            warnings.warn(
                f"dataset.draws={self.draws} takes each image as often in an epoch, but augment leaves it whole, "
                f"{_by(training.pictures[0].mask.shape)}: crops are cut at dataset.size; make it larger.",
                stacklevel=3,
            )
        empty = self.empty_share()
        if (self.foreground_share and empty == 1) or (self.foreground_share not in (None, 1) and empty == 0):
            raise BadInput(
                f"foreground_share={self.foreground_share}, but {empty:.0%} of the training masks are empty; it needs "
                "images with and without foreground."
            )

    def _read(self, records: list[Record]) -> list[Picture]:
        with ThreadPoolExecutor() as pool:  # decoders and OpenCV release the interpreter lock
            # disable=None: a bar on a terminal, nothing in a log
            read = list(
                tqdm(pool.map(self._try, records), total=len(records), desc="Reading images", leave=False, disable=None)
            )
        pictures = [one for one in read if isinstance(one, Picture)]
        problems = [one for one in read if not isinstance(one, Picture)]
        if not problems and self.size is None and len(sizes := {picture.size for picture in pictures}) > 1:
            shown = ", ".join(_by(size) for size in sorted(sizes)[:3])
            raise BadInput(f"images have {len(sizes)} sizes, such as {shown}; set dataset.size=[height,width]")
        if problems:
            shown = "\n".join(f"  {problem}" for problem in problems[:20])
            more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
            raise BadInput(f"{len(problems)} of {len(records)} images cannot be used:\n{shown}{more}")
        if self.peaks and max(self.peaks) < 2 ** (self.bits - 1):
            used = max(8, max(self.peaks).bit_length())
            warnings.warn(
                f"no 16-bit image has a value above {max(self.peaks)}: read as {self.bits} bits they are dark. If "
                f"{used} bits are in use, set dataset.bits={used} (dataset=folder).",
                stacklevel=3,
            )
        self.vanished.sort()  # threads find them in any order
        if self.vanished and self.size is not None:  # at the native size none does
            warnings.warn(
                f"{len(self.vanished)} of {len(records)} masks lose all their foreground at dataset.size="
                f"{list(self.size)}, such as {', '.join(self.vanished[:3])}: training takes them as empty. Use "
                "a larger size, or crops (augment=patches) at the native one.",
                stacklevel=3,
            )
        if self.remarks:
            shown = "".join(f"\n  {remark}" for remark in sorted(self.remarks)[:3])
            warnings.warn(
                f"{len(self.remarks)} of {len(records)} masks have soft edges; foreground is the brighter half:{shown}",
                stacklevel=3,
            )
        return pictures

    def _try(self, record: Record) -> Picture | str:
        """Read one picture, or say what is wrong with it."""
        try:
            record.name.encode()
        except UnicodeEncodeError:
            return f"{record.name!a}: the name is not UTF-8, so no table can hold it; rename the file"
        try:
            image, mask, valid = self.arrays(record)
        except BadInput as error:
            return str(error)
        for other, file in ((mask, record.mask), (valid, record.valid)):
            if other is not None and other.shape != image.shape[:2]:
                return f"{file}: {_by(other.shape)} pixels, but {record.image} has {_by(image.shape[:2])}"
        if valid is not None and not valid.any():
            return f"{record.valid}: all black; a field of view must have pixels"
        size, keep = self.size or image.shape[:2], self.shelf.keep
        fitted_image, box = fit(image, size, self.resize)
        small = fit_mask(mask, size, box)
        if mask.any() and not small.any():
            self.vanished.append(record.name)
        return Picture(
            name=record.name,
            group=record.group,
            image=keep(fitted_image),
            mask=keep(small),
            size=image.shape[:2],
            box=box,
            foreground=float(mask.mean()),
            packed=np.packbits(mask),
            packed_valid=None if valid is None else np.packbits(valid),
            digest=_digest(image, mask, valid),
        )

    def pictures(self) -> list[tuple[str, Picture]]:
        """Return every picture with the name of its split, split by split."""
        return [(split, picture) for split in SPLITS for picture in self.splits[split].pictures]

    def placed(self) -> list[tuple[str, str, str]]:
        """Return name, group and split of every picture, in the order of :meth:`pictures`."""
        return [(picture.name, picture.group, split) for split, picture in self.pictures()]

    def training_foreground(self) -> Foreground:
        """Return what the masks of the training split say, at the network's size, before augmentation."""
        return Foreground([picture.mask for picture in self.splits["train"].pictures])

    def empty_share(self) -> float:
        """Return the share of the training masks that have no foreground."""
        return float(np.mean([not picture.mask.any() for picture in self.splits["train"].pictures]))

    def train_dataloader(self) -> DataLoader:
        """Return shuffled, augmented batches; the sampler's epoch decides them."""
        dataset = self.splits["train"]
        filled = [bool(picture.mask.any()) for picture in dataset.pictures]
        sampler = SeededSampler(filled, self.seed, self.draws, self.foreground_share)
        if self.trainer is not None:  # in a resumed run Lightning takes the first batches before it sets the epoch
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> DataLoader:
        """Return the validation split in order, with native masks."""
        return self._in_order("val")

    def predict_dataloader(self) -> DataLoader:
        """Return the split that `predicted` names, `val` or `test`, in order, with native masks."""
        return self._in_order(self.predicted)

    def on_exception(self, exception: BaseException) -> None:
        """End the workers of training, too: Lightning ends those of the loop it is in, and they hear no signal."""
        self.trainer.fit_loop.teardown()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Make numbers of the bytes, on the device."""
        return as_floats(batch)

    def _in_order(self, split: str) -> DataLoader:
        dataset, (_, processes) = self.splits[split], process()
        if len(dataset) < processes:
            raise BadInput(
                f"{len(dataset)} {split} images cannot be shared by {processes} processes; use fewer devices."
            )
        return self._loader(dataset, ShareSampler(len(dataset)))

    def _loader(self, dataset: Pictures, sampler: Sampler) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate,
            worker_init_fn=deaf_worker,
            persistent_workers=self.workers > 0,
            multiprocessing_context=STARTS if self.workers else None,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            generator=torch.Generator(),  # its own, or making an iterator would move the global random state
        )


class Archive(ImageMaskData):
    """A dataset whose files lie below one folder, in the archive's own order.

    Args:
        root: The folder.
        **shared: As in :class:`ImageMaskData`.
    """

    def __init__(self, root: str, **shared: Any):
        super().__init__(**shared)
        self.root = Path(str(root))  # a folder may be called 2018


def visible(folder: Path, ending: str) -> list[Path]:
    """List the files of a folder whose names end so, sorted; hidden ones, such as a Mac leaves, are passed over."""
    return sorted(path for path in folder.glob(f"*{ending}") if path.name[0] != ".")


def files(folder: Path, suffix: str, expected: int, archive: str, but: str | None = None) -> list[Path]:
    """List the images of a folder, sorted by name; hidden files are passed over.

    Args:
        folder: Where they should lie.
        suffix: How their names end.
        expected: How many the full dataset has there; another number is allowed, with a warning.
        archive: What to unpack there, for the message.
        but: How the names of files end that are left out, or None.

    Raises:
        BadInput: If there is none.
    """
    found = [path for path in visible(folder, suffix) if but is None or not path.name.endswith(but)]
    if not found:
        raise BadInput(
            f"no {suffix} image in {folder}; expected {expected}. Unpack {archive} there, or set dataset.root."
        )
    if len(found) != expected:
        warnings.warn(f"{folder} has {len(found)} images; the full dataset has {expected} there.", stacklevel=3)
    return found


def _digest(*arrays: np.ndarray | None) -> str:
    """A digest of what was read, whatever format it was filed in."""
    digest = blake2b(digest_size=16)
    for array in arrays:
        if array is not None:
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
