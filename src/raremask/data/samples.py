"""From pictures in memory to batches.

:class:`Pictures` turns a :class:`Picture` into a sample, augmented in training; the samplers decide the order and hand
out the seeds; :func:`collate` makes batches of samples.
"""

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset, Sampler

# A worker has one core; and beside PyTorch's threads OpenCV's cost 1 to 2 % of a step (measured on two cores).
cv2.setNumThreads(1)

Transform = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Picture:
    """One image in memory.

    Args:
        name: As in its record.
        group: As in its record.
        image: `(H, W, C)` uint8 at the network's size.
        mask: `(H, W)` uint8 of 0 and 1 at the network's size.
        size: Native height and width in pixels.
        box: Where the picture lies at the network's size: top, left, height, width. What is outside is padding.
        foreground: Share of the native mask that is foreground.
        packed: The native mask, eight pixels a byte; None in training, which does not need it.
        packed_valid: The native validity mask, likewise; None too where the dataset has none.
        digest: Of image and masks as they were read, in hexadecimal digits.
    """

    name: str
    group: str
    image: np.ndarray
    mask: np.ndarray
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    foreground: float
    packed: np.ndarray | None
    packed_valid: np.ndarray | None
    digest: str = ""

    def inside(self) -> tuple[np.ndarray, np.ndarray]:
        """Return image `(h, w, C)` and mask `(h, w)` at the network's scale, without padding."""
        top, left, height, width = self.box
        window = np.s_[top : top + height, left : left + width]
        return self.image[window], self.mask[window]

    def native_mask(self) -> Tensor:
        """Return the mask as its file has it, `(1, height, width)` boolean."""
        assert self.packed is not None  # but in training, where nothing asks
        return _unpack(self.packed, self.size)

    def native_valid(self) -> Tensor | None:
        """Return the validity mask as its file has it, `(1, height, width)` boolean, or None."""
        return None if self.packed_valid is None else _unpack(self.packed_valid, self.size)


def _unpack(packed: np.ndarray, size: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed, count=size[0] * size[1]).reshape(1, *size)).bool()


class Pictures(Dataset):
    """The pictures of one split as samples.

    A sample holds `image` `(C, H, W)` uint8, `mask` `(1, H, W)` uint8 of 0 and 1, `index`, `name`, `size` (native
    height, width) and `box` (top, left, height, width of the picture within the image). With `native` it also holds
    `native_mask` and, where there is one, `native_valid`, `(1, height, width)` boolean. Bytes are a fourth of what
    workers and the device would have to move otherwise; :func:`as_floats` makes numbers of them on the device.

    Args:
        pictures: What is served.
        augment: Called as `augment(image, mask, seed)`, or None.
        native: Whether samples carry the native masks, which scores need and training does not.
    """

    def __init__(self, pictures: list[Picture], augment: Transform | None = None, native: bool = False):
        self.pictures, self.augment, self.native = pictures, augment, native

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Return a sample: of an index as it is, of (index, seed) augmented."""
        index, seed = key if isinstance(key, tuple) else (key, None)
        picture = self.pictures[index]
        image, mask = picture.image, picture.mask
        if self.augment is not None and seed is not None:
            image, mask = self.augment(image, mask, seed)
        sample = {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "mask": torch.from_numpy(np.ascontiguousarray(mask))[None],
            "index": index,
            "name": picture.name,
            "size": picture.size,
            "box": picture.box,
        }
        if self.native:
            sample["native_mask"] = picture.native_mask()
            if (valid := picture.native_valid()) is not None:
                sample["native_valid"] = valid
        return sample


class Batch(dict):
    """What :func:`collate` makes: tensors, and lists with an entry per image.

    It knows what in it can be moved. PyTorch's and Lightning's own way asks every name and every number of every size
    what it is: some 7 ms of a step of 64 images.
    """

    def pin_memory(self) -> "Batch":
        """Return the batch in memory that a GPU can fetch from by itself; the loader calls it."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device, without waiting for it to get there; Lightning calls it."""
        return self._each(lambda one: one.to(device, non_blocking=device.type == "cuda"))

    def _each(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        moved = Batch(self)
        for key, value in self.items():
            if isinstance(value, Tensor):
                moved[key] = move(value)
            elif isinstance(value[0], Tensor):
                moved[key] = [move(one) for one in value]
        return moved


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Stack what has one size (`image`, `mask`, `index`); keep the rest as lists."""
    batch = Batch({key: [sample[key] for sample in samples] for key in samples[0]})
    for key in ("image", "mask"):
        batch[key] = torch.stack(batch[key])
    batch["index"] = torch.tensor(batch["index"])
    return batch


def as_floats(batch: Batch) -> Batch:
    """Return the batch with `image` `(B, C, H, W)` in [0, 1] and `mask` `(B, 1, H, W)` of 0 and 1 as float32."""
    return Batch(batch, image=batch["image"].float().div_(255), mask=batch["mask"].float())


class SeededSampler(Sampler[tuple[int, int]]):
    """Shuffles, and hands each index out with the seed of its augmentation.

    Order and seeds follow from the seed and the epoch alone, in the main process: the same batches with any number of
    workers, and in a resumed run. In a distributed training each process takes its share; the last ones are filled up
    from the start, so that all processes make the same number of steps.

    Args:
        filled: For each sample, whether it has foreground.
        seed: The run's seed.
        draws: How often an epoch takes each sample; more than once makes sense with random crops.
        share: Which share of the draws has foreground, in [0, 1]; None takes samples as they come.
    """

    def __init__(self, filled: Sequence[bool] | np.ndarray, seed: int, draws: int = 1, share: float | None = None):
        filled = np.asarray(filled, dtype=bool)
        self.length, self.total, self.seed, self.epoch = len(filled), len(filled) * draws, seed, 0
        if share is None:
            self.parts = [(np.arange(len(filled)), self.total)]
        else:
            wanted = round(share * self.total)
            self.parts = [(np.flatnonzero(filled), wanted), (np.flatnonzero(~filled), self.total - wanted)]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch; Lightning calls it before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        _, world = process()
        return -(-self.total // world)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rank, world = process()
        random = np.random.default_rng([self.seed, self.epoch])
        drawn = np.concatenate([_rounds(random, part, number) for part, number in self.parts])
        order = drawn if len(self.parts) == 1 else random.permutation(drawn)
        seeds = random.integers(2**31, size=self.length)
        times: Counter[int] = Counter()
        for position in range(len(self) * world):
            index = int(order[position % self.total])
            if position % world == rank:
                yield index, int(seeds[index] + times[index])
            times[index] += 1


def _rounds(random: np.random.Generator, part: np.ndarray, number: int) -> np.ndarray:
    """Draw from a part in whole rounds, so that none of it comes twice more often than another."""
    rounds = [random.permutation(part) for _ in range(-(-number // max(1, len(part))))]
    return np.concatenate([part[:0], *rounds])[:number]


class ShareSampler(Sampler[int]):
    """In order, each process its share of the images, none twice: scores must count each image once."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return len(range(*self._range()))

    def __iter__(self) -> Iterator[int]:
        return iter(range(*self._range()))

    def _range(self) -> tuple[int, int, int]:
        rank, world = process()
        return rank, self.length, world


def deaf_worker(number: int) -> None:
    """Let a worker not hear signals: those to a whole job are for its main process, which ends its workers.

    Args:
        number: Of the worker; all do alike.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def process() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
