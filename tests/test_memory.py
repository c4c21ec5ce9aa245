import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from raremask import BadInput
from raremask.data import memory
from raremask.data.memory import Shelf
from raremask.data.phantom import Phantom


def arrays(number=40):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, random.integers(1, 30, 3), dtype=np.uint8) for _ in range(number)]


@pytest.mark.parametrize("block", [1, 5000, 2**20])
def test_what_is_kept_past_the_limit_cannot_be_told_from_what_is_in_memory(monkeypatch, block):
    monkeypatch.setattr(memory, "BLOCK", block)
    shelf = Shelf(limit=20_000)
    with ThreadPoolExecutor(4) as pool:
        kept = list(pool.map(shelf.keep, arrays()))
    for before, after in zip(arrays(), kept, strict=True):
        assert type(after) is np.ndarray
        assert np.array_equal(before, after)
    assert shelf.in_memory <= 20_000 < shelf.in_memory + shelf.on_disk == sum(array.nbytes for array in kept)


def test_below_the_limit_nothing_is_copied():
    array = arrays(1)[0]
    assert Shelf(limit=array.nbytes).keep(array) is array


def batches(**changes):
    settings = {"size": (48, 40), "channels": 3, "batch_size": 4, "train": 8, "val": 2, "test": 2}
    data = Phantom(**settings | changes)
    data.setup()
    return list(data.train_dataloader()), data


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on a machine with one core
@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_on_disk_serves_the_same_batches(workers):
    (plain, _), (mapped, data) = batches(), batches(memory=0, workers=workers)
    assert data.shelf.in_memory == 0
    assert data.shelf.on_disk == 12 * 48 * 40 * 4  # three channels and a mask
    for before, after in zip(plain, mapped, strict=True):
        assert before["name"] == after["name"]
        assert before["image"].equal(after["image"])
        assert before["mask"].equal(after["mask"])


def test_a_full_disk_is_said_before_training(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)  # macOS has none
    with pytest.raises(BadInput, match=r"has no room for 256 MiB of decoded images .*No space left.*Set TMPDIR"):
        batches(memory=0)


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match="memory must be 0 GiB or more; got -1"):
        batches(memory=-1)
