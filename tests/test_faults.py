"""Faults of the machine: each ends in a clear message and an exit code, and nothing that was finished is lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import ROOT, TINY, saved, square
from raremask import faults
from raremask.runfolder import alive, claimed, read_status
from record import plain

SECTION = "Faults of the machine"
STEP = "raremask.module:Segmenter.training_step"
LONGER = (*TINY, "trainer.max_epochs=6")


def last_words(log: str, *folders: Path) -> str:
    """The last paragraph that was printed, without what Hydra adds."""
    assert "Traceback" not in log, log
    return plain(log.strip().split("\n\n")[-1], *folders)


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that makes a file system of a size in kB, or changes its options."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> Path:
        if shutil.which("mount") is None or os.geteuid() != 0:
            pytest.skip("needs the right to mount a file system")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True)
        if done.returncode != 0:
            pytest.skip("needs the right to mount a file system")
        return disk

    yield mount
    subprocess.run(["umount", str(disk)], capture_output=True)


def test_a_full_disk_is_named_and_with_room_the_run_goes_on(trainings, small_disk, tried):
    disk = small_disk("size=500k")
    folder = [f"hydra.run.dir={disk / 'run'}"]
    code, calls = trainings.train(None, *LONGER, "model.base=6", *folder)
    log = trainings.log("default")
    assert code == 1, log
    assert 0 < calls[STEP] < 18  # it broke off in the middle
    assert "the disk is full" in last_words(log)
    assert read_status(disk / "run")["state"] in ("failed", "running")  # running, if there was no room for this either
    subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
    code, _ = trainings.train(None, *LONGER, "model.base=6", *folder, "retry=true")
    assert code == 0, trainings.log("default")
    code, _ = trainings.train("not_full", *LONGER, "model.base=6")
    assert code == 0
    tables = [run / "per_image_test.csv" for run in (disk / "run", trainings.folder / "not_full")]
    assert tables[0].read_text() == tables[1].read_text()
    words = last_words(log, disk)
    tried(
        SECTION, "the disk is full", f"exit code 1: {words} With room and retry=true the run goes on, and ends the same"
    )


def test_a_disk_that_can_only_be_read_is_named(trainings, small_disk, tried):
    disk = small_disk("ro")
    (trainings.folder / "default.log").unlink(missing_ok=True)
    code, _ = trainings.train(None, *TINY, f"hydra.run.dir={disk / 'run'}")
    assert code == 1
    words = last_words(trainings.log("default"), disk)
    assert "can only be read" in words
    tried(SECTION, "the output can only be read", f"exit code 1: {words}")


def test_a_gpu_without_memory_proposes_a_batch_size(trainings, tried):
    code, _ = trainings.train("oom", *TINY, function=STEP, call=2, action="out of memory")
    assert code == 1
    words = last_words(trainings.log("oom"), trainings.folder)
    assert "dataset.batch_size=4. Try dataset.batch_size=2" in words
    assert "Try dataset.batch_size=2" in read_status(trainings.folder / "oom")["reason"]
    tried(SECTION, "the GPU's memory is used up (PyTorch's error, raised by the test)", f"exit code 1: {words}")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("CUDA out of memory. Tried"), "with dataset.batch_size=1. Try a smaller dataset.size"),
        (MemoryError(), "The memory of this machine is used up"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "memory of this machine is used up",
        ),
        (OSError(12, "Cannot allocate memory"), "memory of this machine is used up"),
        (
            RuntimeError("unable to write to file </torch_1_2_0>: No space left on device (28)"),
            "shared memory of the workers is full",
        ),
        (PermissionError(13, "Permission denied", "/x"), "/x: writing or reading is not permitted"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. "), "docker run --shm-size=8g"),
        (torch.distributed.DistNetworkError("Broken pipe"), "Another process of this training has ended"),
    ],
)
def test_faults_of_the_machine_are_told_from_others(error, words):
    assert words in faults.named(error, batch_size=1)
    assert faults.named(RuntimeError("shapes do not match")) is None
    assert faults.named(FileNotFoundError(2, "No such file", "x")) is None


def test_a_worker_that_dies_is_named(trainings, tried):
    code, _ = trainings.train("worker", *TINY, "dataset.workers=1", function=STEP, call=2, action="kill worker")
    assert code == 1
    words = last_words(trainings.log("worker"), trainings.folder)
    assert "A worker of the loader has died (Killed)" in words
    tried(SECTION, "a worker of the loader is killed", f"exit code 1: {words}")


@pytest.fixture
def dataset(tmp_path):
    """Images and masks in folders, and the settings that name them."""
    for number in range(15):
        saved(tmp_path / "data" / "images" / f"{number}.png", square(value=100 + number))
        saved(tmp_path / "data" / "masks" / f"{number}.png", square())
    settings = [setting for setting in TINY if not setting.startswith(("dataset.train", "dataset.val", "dataset.test"))]
    data = tmp_path / "data"
    return data, [
        *settings,
        "dataset=folder",
        f"dataset.images={data}/images",
        f"dataset.masks={data}/masks",
        "leaks=ignore",
    ]


def test_a_dataset_that_vanishes_while_it_is_read_is_named(trainings, dataset, tried):
    data, settings = dataset
    kill = {"function": "raremask.data.base:ImageMaskData.arrays", "call": 8, "action": "vanish", "path": str(data)}
    code, _ = trainings.train("vanishing", *settings, **kill)
    assert code == 2
    assert "of 15 images cannot be used" in trainings.log("vanishing")
    assert re.search("no such file|cannot be read", trainings.log("vanishing"))
    tried(
        SECTION,
        "the dataset's folder vanishes while images are read",
        "exit code 2: n of 15 images cannot be used, each named",
    )


def test_a_dataset_may_vanish_once_it_is_read_and_is_missed_when_the_run_goes_on(trainings, dataset, tried):
    data, settings = dataset
    code, _ = trainings.train("vanished", *settings, function=STEP, call=2, action="vanish", path=str(data))
    assert code == 0, trainings.log("vanished")
    (trainings.folder / "vanished.log").unlink()
    facts = read_status(trainings.folder / "vanished") | {"state": "interrupted"}
    (trainings.folder / "vanished" / "status.json").write_text(json.dumps(facts))
    code, _ = trainings.train("vanished", *settings)
    assert code == 2
    words = last_words(trainings.log("vanished"), data.parent)
    assert "There is no folder" in words
    tried(
        SECTION,
        "the dataset's folder vanishes during training",
        "nothing: all images are in memory; the run ends as if it were there",
    )
    tried(SECTION, "the dataset's folder has vanished when a run is to go on", f"exit code 2: {words}")


def test_a_folder_that_another_process_trains_into_is_refused(trainings, tried):
    with claimed(trainings.folder / "claimed"):
        code, _ = trainings.train("claimed", *TINY)
    assert code == 2
    words = last_words(trainings.log("claimed"), trainings.folder)
    assert "Another process is training or searching in" in words
    assert read_status(trainings.folder / "claimed") == {}  # nothing was written over
    code, _ = trainings.train("claimed", *TINY)
    assert code == 0, trainings.log("claimed")
    tried(SECTION, "two runs aim at the same folder", f"one trains; the other exits with 2: {words}")


def test_of_two_commands_given_at_once_one_trains(tmp_path):
    command = [sys.executable, str(ROOT / "src" / "train.py"), *TINY, f"hydra.run.dir={tmp_path / 'run'}"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [one.communicate(timeout=240)[1] for one in both]
    assert sorted(one.returncode for one in both) == [0, 2], told
    assert read_status(tmp_path / "run")["state"] == "done"


def test_a_clock_that_goes_back_changes_nothing(trainings, tried, monkeypatch, tmp_path):
    for name, kill in (("clock", {"function": STEP, "call": 2, "action": "clock"}), ("no_clock", {})):
        code, _ = trainings.train(name, *TINY, **kill)
        assert code == 0, trainings.log(name)
    one, other = (trainings.folder / name for name in ("clock", "no_clock"))
    assert (one / "per_image_test.csv").read_text() == (other / "per_image_test.csv").read_text()
    assert 0 < read_status(one)["seconds"] < 60
    (tmp_path / "status.json").write_text(json.dumps({"state": "running", "host": "another", "process": 1}))
    later = time.time() + 3600
    os.utime(tmp_path / "status.json", (later, later))
    assert alive(tmp_path)  # a sign from the future is a sign
    tried(SECTION, "the clock goes back by an hour", "nothing: durations are taken from a clock that does not")


def test_a_damaged_status_does_not_lose_the_run(trainings, tried):
    code, _ = trainings.train("status", *LONGER, signal=signal.SIGKILL, function=STEP, call=8)
    assert code == -signal.SIGKILL
    (trainings.folder / "status" / "status.json").write_text('{"state": "runn')
    code, _ = trainings.train("status", *LONGER)
    assert code == 0, trainings.log("status")
    assert "goes on from its last checkpoint" in trainings.log("status")
    tried(SECTION, "status.json is damaged", "the run goes on from its last checkpoint")
