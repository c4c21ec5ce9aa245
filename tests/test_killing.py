"""Trainings that are killed at any moment and go on with the same command end as if nothing had happened."""

import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch

from conftest import TINY
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


def train(trainings, name, *more, settings=SETTINGS, **kill):
    return trainings.train(name, *settings, *more, **kill)


KILLED = [function for function in FUNCTIONS if "arrays" not in function]  # phantoms are drawn, not read
STEP = "raremask.module:Segmenter.training_step"
VALID = "raremask.module:Segmenter.validation_step"


@pytest.fixture(scope="module")
def whole(trainings):
    """The unbroken run, and how often it called each function."""
    code, calls = train(trainings, "whole")
    assert code == 0, trainings.log("whole")
    epochs = read_table(trainings.folder / "whole" / "metrics.csv")
    assert 6 < len(epochs) < 12  # early stopping has decided, after the switch
    assert all(calls[function] for function in KILLED), calls
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
    function = random.choice([*KILLED, None])
    if function is None:
        return {"after": random.uniform(0, seconds)}
    return {"function": function, "call": random.randint(1, calls[function])}


def kill_and_go_on(trainings, whole: tuple[Path, dict[str, int]], number: int) -> str:
    """Kill a run at one to three random moments, go on with the same command, and compare; return where that was."""
    folder, calls = whole
    chance, name = random.Random(number), f"broken_{number}"
    seconds, where = read_status(folder)["seconds"], []
    for _ in range(chance.randint(1, 3)):
        kill = moment(chance, calls, seconds)
        code, _ = train(trainings, name, signal=signal.SIGKILL, **kill)
        assert code in (-signal.SIGKILL, 0), trainings.log(name)  # 0: it had not that many calls left
        time = f"after {kill.get('after', 0):.1f} s"
        where.append(f"{FUNCTIONS[kill['function']]} ({kill['call']})" if "function" in kill else time)
        if code == 0:
            break
    else:
        code, _ = train(trainings, name)
        assert code == 0, trainings.log(name)
    whole_outcome, broken = outcome(folder), outcome(trainings.folder / name)
    for part in whole_outcome:
        assert broken[part] == whole_outcome[part], (part, where)
    return "; ".join(where)


@pytest.mark.parametrize("number", [*range(1, 5), *(pytest.param(one, marks=pytest.mark.long) for one in range(5, 21))])
def test_a_run_that_is_killed_anywhere_and_goes_on_equals_the_unbroken_one(trainings, whole, number, tried):
    where = kill_and_go_on(trainings, whole, number)
    tried("Killed and gone on with", f"{number:02}", f"killed {where}; the same, bit for bit")


def test_a_cosine_and_workers_go_on_where_they_were(trainings, tried):
    settings = [setting for setting in SETTINGS if "scheduler" not in setting]
    for name, kill in (("cosine", {}), ("cosine_broken", {"signal": signal.SIGKILL, "function": STEP, "call": 13})):
        code, _ = train(trainings, name, "scheduler=cosine", "dataset.workers=1", settings=settings, **kill)
        assert code == (-signal.SIGKILL if kill else 0), trainings.log(name)
    code, _ = train(trainings, "cosine_broken", "scheduler=cosine", "dataset.workers=1", settings=settings)
    assert code == 0, trainings.log("cosine_broken")
    folders = [trainings.folder / name for name in ("cosine", "cosine_broken")]
    assert outcome(folders[0]) == outcome(folders[1])
    rates = {row["optim/lr"] for row in read_table(folders[0] / "metrics.csv")}
    assert len(rates) > 4  # the scheduler has acted, before and after the break
    tried("Killed and gone on with", "with a cosine and a worker, inside a step", "the same, bit for bit")


def test_a_moving_average_of_the_weights_goes_on_where_it_was(trainings, tried):
    settings = [setting for setting in TINY if not setting.startswith("trainer")]
    settings += ["callbacks=ema", "model.norm=batch", "trainer.max_epochs=4"]
    settings += ["trainer.accelerator=cpu"]  # in bfloat16 where the CPU computes in it
    for name, kill in (("average", {}), ("average_broken", {"signal": signal.SIGKILL, "function": STEP, "call": 8})):
        code, _ = train(trainings, name, settings=settings, **kill)
        assert code == (-signal.SIGKILL if kill else 0), trainings.log(name)
    code, _ = train(trainings, "average_broken", settings=settings)
    assert code == 0, trainings.log("average_broken")
    folders = [trainings.folder / name for name in ("average", "average_broken")]
    assert outcome(folders[0]) == outcome(folders[1])
    last = torch.load(folders[0] / "checkpoints" / "last.ckpt", weights_only=True)
    assert not torch.equal(*(last[key]["net.head.weight"] for key in ("state_dict", "current_model_state")))
    tried("Killed and gone on with", "with a moving average of the weights, inside a step", "the same, bit for bit")


# --- asked to end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "function", "code"),
    [
        (signal.SIGTERM, STEP, 75),
        (signal.SIGUSR1, VALID, 75),
        (signal.SIGINT, STEP, 130),
        (signal.SIGTERM, "raremask.module:Viewer.predict_step", 75),
        (signal.SIGTERM, "raremask.checkpoints:WholeFiles.save_checkpoint", 75),
    ],
)
def test_a_run_that_is_asked_to_end_ends_in_order_and_goes_on(trainings, whole, asked, function, code, tried):
    folder, calls = whole
    name = f"asked_{asked.name}_{function.split('.')[-1]}"
    ended, called = train(trainings, name, signal=asked, function=function, call=calls[function] // 2)
    assert ended == code, trainings.log(name)
    assert read_status(trainings.folder / name)["state"] == "interrupted"
    if function == STEP:
        assert called[STEP] == calls[STEP] // 2
    assert "Traceback" not in trainings.log(name)
    if function == STEP:
        assert called["torch.optim:AdamW.step"] == called[STEP]  # the step that went on has changed the weights
    ended, _ = train(trainings, name)
    assert ended == 0, trainings.log(name)
    assert outcome(trainings.folder / name) == outcome(folder)
    tried(
        "Asked to end",
        f"{asked.name} {FUNCTIONS[function]}",
        f"exit code {code}, status interrupted; the same command goes on and ends the same, bit for bit",
    )


@pytest.mark.parametrize(
    ("asked", "function", "code"),
    [(signal.SIGTERM, STEP, 75), (signal.SIGUSR1, STEP, 75), (signal.SIGINT, STEP, 130), (signal.SIGTERM, VALID, 75)],
)
def test_a_signal_to_all_processes_of_a_job_is_no_fault_of_its_workers(trainings, whole, asked, function, code, tried):
    """SLURM and a terminal send their signals to the workers of the loader, too; those of training sit by meanwhile."""
    name = f"group_{asked.name}_{function.split('.')[-1]}"
    kill = {"signal": asked, "function": function, "call": 7, "action": "kill all"}
    ended, called = train(trainings, name, "dataset.workers=1", **kill)
    assert ended == code, trainings.log(name)
    assert called[function] == 7
    assert read_status(trainings.folder / name)["state"] == "interrupted"
    assert f"Go on with: python src/train.py resume={name}" in trainings.log(name)
    ended, _ = train(trainings, name, "dataset.workers=1")
    assert ended == 0, trainings.log(name)
    assert outcome(trainings.folder / name) == outcome(whole[0])
    tried(
        "Asked to end",
        f"{asked.name} {FUNCTIONS[function]}, to the workers of the loader, too",
        f"exit code {code}, status interrupted; the same command goes on and ends the same, bit for bit",
    )


def test_a_collapse_that_ends_a_training_ends_it_when_it_goes_on(trainings):
    """False positives cost nothing here, so everything is painted white."""
    settings = (*TINY, "trainer.max_epochs=30", "optimizer.lr=0.03", "loss=tversky", "loss.alpha=0", "loss.beta=1")
    settings += ("callbacks.collapse.stop=true", "callbacks.collapse.patience=2")
    for name, kill in (("stops", {}), ("stops_killed", {"function": "raremask.training:write_split", "call": 1})):
        code, _ = trainings.train(name, *settings, signal=signal.SIGKILL, **kill)
        assert code == (-signal.SIGKILL if kill else 0), trainings.log(name)
    code, _ = trainings.train("stops_killed", *settings)
    assert code == 0
    epochs = [len(read_table(trainings.folder / name / "metrics.csv")) for name in ("stops", "stops_killed")]
    assert epochs[0] == epochs[1] < 30
    assert "all foreground" in read_status(trainings.folder / "stops_killed")["collapsed"]


def test_a_job_of_slurm_is_queued_again_and_finds_its_run(trainings, whole, tried):
    programs = trainings.folder / "programs"
    programs.mkdir()
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {programs}/asked\n')
    (programs / "scontrol").chmod(0o755)
    job = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "study"}
    job |= {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    function = "raremask.module:Segmenter.training_step"
    code, _ = train(trainings, None, environment=job, signal=signal.SIGUSR1, function=function, call=10)
    assert code == 75, trainings.log("default")
    assert (programs / "asked").read_text() == "requeue 12\n"
    assert "SLURM will run job 12 again" in trainings.log("default")
    code, _ = train(trainings, None, environment=job | {"SLURM_RESTART_COUNT": "1"})
    assert code == 0, trainings.log("default")
    (folder,) = (trainings.folder / "outputs" / "runs" / "phantom" / "weighted_bce").iterdir()
    assert outcome(folder) == outcome(whole[0])
    code, _ = train(trainings, None, environment=job, signal=signal.SIGTERM, function=function, call=10)
    assert code == 75
    assert (programs / "asked").read_text() == "requeue 12\n"  # cancelled or preempted: SLURM knows
    tried(
        "Asked to end",
        "SIGUSR1 in a job of SLURM (scontrol played by a script)",
        "exit code 75, `scontrol requeue`; the job that starts again finds its folder and ends the same, bit for bit",
    )


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut off", "a bit turned", "empty", "no checkpoint"])
def test_a_damaged_last_checkpoint_is_set_aside_and_the_one_before_it_used(trainings, whole, damage, tried):
    name = f"damaged_{damage.replace(' ', '_')}"
    code, _ = train(trainings, name, signal=signal.SIGKILL, function=STEP, call=whole[1][STEP] // 2)
    assert code == -signal.SIGKILL
    last = trainings.folder / name / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(
        {
            "cut off": content[: len(content) // 2],
            "a bit turned": bytes(content),
            "empty": b"",
            "no checkpoint": b"PK\x03\x04",
        }[damage]
    )
    code, _ = train(trainings, name)
    assert code == 0, trainings.log(name)
    assert "is damaged" in trainings.log(name)
    assert "the one before it is used" in trainings.log(name)
    last.with_suffix(".damaged").unlink()
    assert outcome(trainings.folder / name) == outcome(whole[0])
    tried(
        "Killed and gone on with",
        f"last.ckpt is {damage}",
        "said; set aside as last.damaged; previous.ckpt is used; the same, bit for bit",
    )


def test_a_run_without_a_whole_checkpoint_says_so(trainings, tried):
    code, _ = train(trainings, "lost", signal=signal.SIGKILL, function=STEP, call=7)
    assert code == -signal.SIGKILL
    for file in (trainings.folder / "lost" / "checkpoints").iterdir():
        file.write_bytes(b"")
    code, _ = train(trainings, "lost")
    assert code == 2
    assert "has no whole checkpoint to go on from" in trainings.log("lost")
    tried("Killed and gone on with", "all checkpoints are damaged", "exit code 2: no whole checkpoint to go on from")
