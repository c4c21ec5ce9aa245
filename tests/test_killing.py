"""Trainings that are killed at any moment and go on with the same command end as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT, TINY
from raremask.runfolder import read_status
from raremask.tables import read_table
from zygote import FUNCTIONS

SETTINGS = (
    *TINY,
    "callbacks=two_stage",
    "callbacks.switch.epoch=3",
    "callbacks.early_stopping.patience=2",
    "loss=weighted_bce",
    "trainer.max_epochs=12",
    "scheduler.patience=0",  # the rate falls almost every epoch
    "+scheduler.threshold=0.5",
    "model.dropout=0.3",
    "augment=thesis",
)


class Trainings:
    """Commands that start in no time; see zygote.py."""

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

    def train(self, name: str, *more: str, **kill) -> tuple[int, dict[str, int]]:
        """Run train.py in a folder, again if it is there; return its exit code, and how often functions were called."""
        arguments = [*SETTINGS, *more, f"hydra.run.dir={self.folder / name}"]
        order = {"arguments": arguments, "log": str(self.folder / f"{name}.log"), "kill": kill or None}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    made = Trainings(tmp_path_factory.mktemp("killing"))
    yield made
    made.process.communicate()


@pytest.fixture(scope="module")
def whole(trainings):
    """The unbroken run, and how often it called each function."""
    code, calls = trainings.train("whole")
    assert code == 0, trainings.log("whole")
    epochs = read_table(trainings.folder / "whole" / "metrics.csv")
    assert 6 < len(epochs) < 12  # early stopping has decided, after the switch
    assert all(calls.values()), calls
    return trainings.folder / "whole", calls


def plain(value):
    """A value of a checkpoint as what can be compared, without the names of folders.

    Lightning counts the steps of schedulers after the last checkpoint is written; nothing goes by that count.
    """
    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {
            Path(key).name if "/checkpoints/" in str(key) else key: plain(one)
            for key, one in value.items()
            if key != "epoch_loop.scheduler_progress"
        }
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return Path(value).name if isinstance(value, str) else value


def outcome(folder: Path) -> dict:
    """All that a run has decided and computed: weights, optimiser, schedulers, counters, scores, choices."""
    found = {}
    for file in sorted((folder / "checkpoints").glob("*.ckpt")):
        found[file.name] = plain(torch.load(file, weights_only=True))
    for name in ("per_image_val.csv", "per_image_test.csv", "masks_test.csv", "split.csv"):
        found[name] = (folder / name).read_text()
    found["metrics"] = [
        {key: value for key, value in row.items() if key != "seconds"} for row in read_table(folder / "metrics.csv")
    ]
    found["selection"] = json.loads((folder / "selection.json").read_text())
    del found["selection"]["test_uses"]  # one that was killed while it looked has looked
    found["model"] = (folder / "model" / "model.safetensors").read_bytes()
    found["status"] = {key: read_status(folder)[key] for key in ("state", "best", "epochs")}
    return found


def moment(random: random.Random, calls: dict[str, int], seconds: float) -> dict:
    """A random moment: a call of a random function, or after a random time."""
    function = random.choice([*FUNCTIONS, None])
    if function is None:
        return {"after": random.uniform(0, seconds)}
    return {"function": function, "call": random.randint(1, calls[function])}


def kill_and_go_on(trainings: Trainings, whole: tuple[Path, dict[str, int]], number: int) -> str:
    """Kill a run at one to three random moments, go on with the same command, and compare; return where that was."""
    folder, calls = whole
    chance, name = random.Random(number), f"broken_{number}"
    seconds, where = read_status(folder)["seconds"], []
    for _ in range(chance.randint(1, 3)):
        kill = moment(chance, calls, seconds)
        code, _ = trainings.train(name, signal=signal.SIGKILL, **kill)
        assert code in (-signal.SIGKILL, 0), trainings.log(name)  # 0: it had not that many calls left
        time = f"after {kill.get('after', 0):.1f} s"
        where.append(f"{FUNCTIONS[kill['function']]} ({kill['call']})" if "function" in kill else time)
        if code == 0:
            break
    else:
        code, _ = trainings.train(name)
        assert code == 0, trainings.log(name)
    whole_outcome, broken = outcome(folder), outcome(trainings.folder / name)
    for part in whole_outcome:
        assert broken[part] == whole_outcome[part], (part, where)
    return "; ".join(where)


@pytest.mark.parametrize("number", range(4))
def test_a_run_that_is_killed_anywhere_and_goes_on_equals_the_unbroken_one(trainings, whole, number):
    kill_and_go_on(trainings, whole, number)


@pytest.mark.long
def test_twenty_runs_that_are_killed_anywhere_and_go_on_equal_the_unbroken_one(trainings, whole):
    for number in range(100, 120):
        print(kill_and_go_on(trainings, whole, number))
