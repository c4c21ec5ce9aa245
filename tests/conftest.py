"""What several test files share: a tiny run in this process, real datasets where there are any."""

import json
import os

# Before NumPy is imported: tests run side by side, and sums stay the same.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import runpy
import subprocess
import sys
from pathlib import Path

import hypothesis
import matplotlib as mpl
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from record import Record

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("RAREMASK_DATA", ROOT / "data"))

mpl.use("Agg")
# A busy machine is no failure, nor is luck.
hypothesis.settings.register_profile("calm", deadline=None, derandomize=True)
hypothesis.settings.load_profile("calm")

#: Small enough that a run takes a second or two.
TINY = (
    "dataset.train=12",
    "dataset.val=5",
    "dataset.test=4",
    "dataset.size=[48,40]",
    "dataset.batch_size=4",
    "model.base=4",
    "model.levels=2",
    "trainer=cpu",
    "trainer.max_epochs=2",
)


def saved(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    return path


def square(height=24, width=30, value=255):
    mask = np.zeros((height, width), np.uint8)
    mask[4:12, 5:15] = value
    return mask


def colour(height=24, width=30):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def checkpoint(folder: Path, name: str) -> dict:
    """The content of a checkpoint of a run."""
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def python(*arguments: str, **more) -> subprocess.CompletedProcess:
    """Run a command as a user would, in a process of its own."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **more)


class Trainings:
    """Commands that start in no time and may be killed, in a process of their own; see zygote.py.

    Args:
        folder: Where they run, and where what they print is kept.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        )

    def train(self, name: str | None, *arguments: str, environment=None, **kill) -> tuple[int, dict[str, int]]:
        """Run train.py in a folder, again if it is there; return its exit code, and how often functions were called.

        Without a name it is the folder that the command chooses.
        """
        folder = [f"hydra.run.dir={self.folder / name}"] if name else []
        order = {"arguments": [*arguments, *folder], "log": str(self.folder / f"{name or 'default'}.log")}
        order |= {"kill": kill or None, "environment": environment or {}}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def log(self, name: str) -> str:
        """Return what was printed, all commands of that name after each other."""
        return (self.folder / f"{name}.log").read_text()


@pytest.fixture(scope="session")
def trainings(tmp_path_factory):
    """Return what starts trainings in no time."""
    made = Trainings(tmp_path_factory.mktemp("trainings"))
    yield made
    made.process.communicate()


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Whatever ran before in this process."""
    torch.manual_seed(0)


RECORD = Record()


@pytest.fixture(scope="session")
def tried():
    """Return a function that notes in docs/reliability.md what was tried and what happened."""
    return RECORD


def pytest_sessionfinish():
    RECORD.write()


@pytest.fixture(scope="module")  # tests of evaluation leave tables in it
def run(tmp_path_factory):
    """One finished run that many tests look at: its folder, and what was printed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = python(str(ROOT / "src" / "train.py"), *TINY, "augment=thesis", f"hydra.run.dir={folder}", check=True)
    return folder, done


@pytest.fixture
def real_data():
    """Return a function that gives the folder of a real dataset, or skips the test."""

    def folder(name: str) -> Path:
        if not (DATA / name).is_dir():
            pytest.skip(f"needs the real {name} below RAREMASK_DATA, which may not be shipped")
        return DATA / name

    return folder


@pytest.fixture
def command(monkeypatch):
    """Return a function that runs an entry point of `src` in this process, with these overrides."""

    def run(script: str, *overrides: str) -> None:
        monkeypatch.setattr(sys, "argv", [script, *overrides])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # errors arrive here as they are
        runpy.run_path(str(ROOT / "src" / script), run_name="__main__")

    return run


@pytest.fixture
def train_anything(command, tmp_path):
    """Return a function that trains with these overrides alone in a folder of its own and returns the folder."""

    def run(*overrides: str, folder: str = "run") -> Path:
        command("train.py", *overrides, f"hydra.run.dir={tmp_path / folder}")
        return tmp_path / folder

    return run


@pytest.fixture
def train(command, tmp_path):
    """Return a function that trains a tiny run in a folder of its own and returns the folder."""

    def run(*overrides: str, folder: str = "run") -> Path:
        command("train.py", *TINY, *overrides, f"hydra.run.dir={tmp_path / folder}")
        return tmp_path / folder

    return run
