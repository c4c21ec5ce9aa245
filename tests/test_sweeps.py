"""Sweeps: what a job does by what its folder holds, and whole sweeps that are killed and go on."""

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from conftest import ROOT, TINY
from raremask import BadInput, sweeps
from raremask.commandline import job_name
from raremask.runfolder import alive, read_status
from raremask.settings import PLACE, SWEPT
from raremask.sweeps import decide, differences, write_ledger
from raremask.tables import read_table

CONFIG = OmegaConf.create(
    {"retry": False, "sweep": "s", "folder": "f", "loss": {"smooth": 1.0}, "trainer": {"epochs": 3}}
)


@pytest.fixture
def job(tmp_path):
    """Return a function that makes the folder of a job, in a state."""

    def make(last: bool = False, **facts) -> Path:
        folder = tmp_path / "job"
        (folder / ".hydra").mkdir(parents=True)
        OmegaConf.save(CONFIG, folder / ".hydra" / "config.yaml")
        if facts:
            (folder / "status.json").write_text(json.dumps(facts))
        if last:
            (folder / "checkpoints").mkdir()
            (folder / "checkpoints" / "last.ckpt").touch()
        return folder

    return make


@pytest.mark.parametrize(
    ("facts", "last", "expected"),
    [
        ({}, False, ("start", "")),
        ({"state": "done"}, True, ("skip", "done already")),
        ({"state": "failed", "reason": "no"}, True, ("skip", "has failed before (no); retry=true tries again")),
        ({"state": "interrupted"}, True, ("resume", "goes on from its last checkpoint")),
        ({"state": "interrupted"}, False, ("anew", "starts anew: no epoch had ended")),
    ],
    ids=lambda value: str(value.get("state", "nothing")) if isinstance(value, dict) else "",
)
def test_a_job_does_what_is_left_to_do(job, facts, last, expected):
    assert decide(CONFIG, job(last, **facts)) == expected


def test_a_job_on_another_machine_is_left_alone_and_the_way_on_is_said(job):
    what, why = decide(CONFIG, job(True, state="running", host="other", process=1))
    assert what == "skip"
    assert why.startswith("is being trained by process 1 on other; if it was killed there, go on with ")
    assert "resume=" in why


def test_a_failed_job_is_tried_again_when_asked(job):
    folder = job(True, state="failed", reason="no")
    assert decide(OmegaConf.merge(CONFIG, {"retry": True}), folder)[0] == "resume"


def test_a_job_that_another_process_trains_is_left_alone(job, monkeypatch):
    folder = job(True, state="running", process=5, host="here")
    monkeypatch.setattr(sweeps, "alive", lambda folder: True)
    assert decide(CONFIG, folder)[0] == "skip"
    monkeypatch.setattr(sweeps, "alive", lambda folder: False)
    assert decide(CONFIG, folder)[0] == "resume"


def test_a_job_of_another_config_is_refused_with_the_difference(job):
    folder = job(state="done")
    other = OmegaConf.merge(CONFIG, {"loss": {"smooth": 0.1}})
    with pytest.raises(
        BadInput, match=r"another config:\n  loss.smooth: 1.0 there, 0.1 asked for\nName another folder"
    ):
        decide(other, folder)
    place = {"data_dir": "/new", "dataset": {"workers": 0, "memory": 1.0}, "trainer": {"devices": 2}}
    elsewhere = {"sweep": "t", "folder": "g", "retry": True, **place}
    assert differences(CONFIG, OmegaConf.merge(CONFIG, elsewhere)) == []
    assert differences(OmegaConf.create({"images": 2018}), OmegaConf.create({"images": "2018"})) == []
    assert differences(CONFIG, OmegaConf.merge(CONFIG, {"dataset": {"size": 9}})) == [
        "dataset.size: nothing there, 9 asked for"
    ]


def test_a_job_is_called_by_what_it_computes():
    assert job_name("cvc", "dataset.root=/a") != job_name("cvc", "dataset.root=/b")  # of a sweep over both
    assert job_name("cvc", "trainer.deterministic=true") != job_name("cvc", "trainer.deterministic=false")
    for key in {*PLACE} - {*SWEPT}:
        assert job_name("cvc", "dice", f"{key}=0&loss.smooth=2") == job_name("cvc", "dice", f"loss.smooth=2&+{key}=1")
        assert job_name("cvc", f"{key}=0") == "cvc"


def sweep(tmp_path, *arguments, wait=True, launcher="basic", stderr=subprocess.DEVNULL):
    """Run a sweep of tiny runs in a process of its own; one thread, so that every launcher computes alike."""
    command = [sys.executable, str(ROOT / "src" / "train.py"), "-m", *TINY, "sweep=s", *arguments]
    command += [f"hydra/launcher={launcher}"]
    more = {"cwd": tmp_path, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "text": True}
    if not wait:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, **more)
    return subprocess.run(command, capture_output=True, **more)


def folders(tmp_path):
    return sorted(file.parent for file in (tmp_path / "outputs" / "sweeps" / "s").glob("*/status.json"))


def written(tmp_path):
    """When the configs of a sweep's jobs were written."""
    return {file: file.stat().st_mtime_ns for folder in folders(tmp_path) for file in folder.glob(".hydra/**/*.yaml")}


def test_a_sweep_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    settings = ("loss=dice,dynamit", "trainer.max_epochs=12", "dataset.train=24")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    assert sweep(whole, *settings).returncode == 0
    process = sweep(broken, *settings, wait=False)
    second = None
    for _ in range(600):  # until the second job has ended an epoch or two
        time.sleep(0.1)
        found = folders(broken)
        second = found[1] if len(found) > 1 else None
        if second and (second / "metrics.csv").is_file() and len(read_table(second / "metrics.csv")) > 1:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert read_status(second)["state"] == "running"
    assert [row["state"] for row in write_ledger(second.parent)] == ["done", "interrupted"]

    first = written(broken)
    done = sweep(broken, *settings)
    assert done.returncode == 0, done.stderr
    assert written(broken) == first
    assert "done already" in done.stdout
    assert "goes on from its last checkpoint" in done.stdout
    for one, other in zip(folders(whole), folders(broken), strict=True):
        assert one.name == other.name
        assert (one / "per_image_test.csv").read_text() == (other / "per_image_test.csv").read_text()


def test_a_sweep_that_leaves_a_job_to_another_process_says_so_and_is_not_done(tmp_path):
    settings = ("seed=0,1", "trainer.max_epochs=1")
    assert sweep(tmp_path, *settings).returncode == 0
    first = folders(tmp_path)[0]
    status = read_status(first) | {"state": "running", "host": "a-pod-that-is-gone", "process": 1}
    (first / "status.json").write_text(json.dumps(status))
    done = sweep(tmp_path, *settings)
    assert done.returncode == 75
    assert "1 done, 1 running" in done.stdout
    assert "it shows within 30 minutes. The same command with sweep=s goes on" in done.stdout


def test_a_failing_job_is_told_at_once_and_does_not_stop_the_others(tmp_path):
    done = sweep(tmp_path, "dataset.kind=blobs,polyp")
    assert done.returncode == 1
    assert "failed: " in done.stderr
    assert [read_status(folder)["state"] for folder in folders(tmp_path)] == ["failed", "done"]
    assert "1 done, 1 failed" in done.stdout
    with (tmp_path / "outputs" / "sweeps" / "s" / "ledger.csv").open(newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["failed", "done"]

    again = sweep(tmp_path, "dataset.kind=blobs,polyp")
    assert again.returncode == 1
    assert "retry=true tries again" in again.stdout
    assert "Traceback" not in again.stderr


def test_a_job_that_is_refused_stands_in_the_ledger_until_it_can_begin(tmp_path, monkeypatch):
    cfg = OmegaConf.merge(CONFIG, {"folder": str(tmp_path / "job")})
    monkeypatch.setattr(sweeps, "check", refuse)
    with pytest.raises(BadInput):
        sweeps.run(cfg, lambda *_: 0.5)
    assert write_ledger(tmp_path) == [{"job": "job", "state": "refused", "reason": "no such folder"}]
    monkeypatch.setattr(sweeps, "check", lambda cfg: None)
    assert sweeps.run(cfg, lambda *_: 0.5) == 0.5
    assert write_ledger(tmp_path) == []


def refuse(cfg):
    raise BadInput("no such folder\nand more that a table has no room for")


def test_a_sweep_counts_jobs_that_are_refused(tmp_path):
    settings = ("callbacks=default,two_stage", "trainer.max_epochs=2", "++callbacks.switch.epoch=1")
    done = sweep(tmp_path, *settings)  # without two_stage there is nothing to switch
    assert done.returncode == 1
    assert "1 done, 1 refused" in done.stdout
    assert "callbacks.switch: no such callback is chosen" in done.stdout
    assert len(folders(tmp_path)) == 1


def killed_or_told(tmp_path, whom, how):
    """Send a signal while jobs train in other processes; return the exit code, and what was said."""
    settings = ("seed=0,1", "trainer.max_epochs=400", "++callbacks.early_stopping.patience=400")
    process = sweep(tmp_path, *settings, wait=False, launcher="parallel", stderr=subprocess.PIPE)
    try:
        for _ in range(1800):
            time.sleep(0.1)
            if sum((folder / "metrics.csv").is_file() for folder in folders(tmp_path)) == 2:
                break
        else:
            pytest.fail("two jobs should have ended an epoch by now")
        job = read_status(folders(tmp_path)[0])["process"]
        os.kill(process.pid if whom == "sweep" else job, how)
        said = process.communicate(timeout=120)[1]
        return process.returncode, said
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("whom", "how", "code", "words"),
    [
        ("job", signal.SIGKILL, 1, "A job was killed from outside"),
        ("job", signal.SIGTERM, 75, "Interrupted."),
        ("sweep", signal.SIGTERM, 75, "Interrupted."),
    ],
)
def test_a_parallel_sweep_ends_in_words_when_a_process_is_killed_or_told_to_end(tmp_path, whom, how, code, words):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    returned, said = killed_or_told(tmp_path, whom, how)
    assert returned == code
    assert words in said
    assert "The same command with sweep=s goes on" in said
    assert "Traceback" not in said
    for _ in range(100):  # the others end with it
        if not any(alive(folder) for folder in folders(tmp_path)):
            break
        time.sleep(0.1)
    assert [row["state"] for row in write_ledger(folders(tmp_path)[0].parent)] == ["interrupted"] * 2


LAUNCHERS = {
    "parallel": "hydra_joblib_launcher",
    "slurm_local": "hydra_submitit_launcher",
    "ray_cluster": "hydra_ray_launcher",
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_gives_the_scores_of_the_serial_one(tmp_path, launcher):
    if importlib.util.find_spec(f"hydra_plugins.{LAUNCHERS[launcher]}") is None:
        pytest.skip(f"needs the package {LAUNCHERS[launcher]}")
    tables = []
    for name in ("basic", launcher):
        (tmp_path / name).mkdir()
        settings = ("loss=dice,dynamit", "seed=0,1", "trainer.max_epochs=1", "dataset.workers=1")
        done = sweep(tmp_path / name, *settings, launcher=name)
        assert done.returncode == 0, done.stderr
        assert "4 done" in done.stdout
        assert "Warning" not in done.stderr
        tables.append({folder.name: (folder / "per_image_test.csv").read_text() for folder in folders(tmp_path / name)})
    assert len(tables[0]) == 4
    assert tables[0] == tables[1]


def test_a_run_that_had_no_epoch_starts_anew(tmp_path):
    done = sweep(tmp_path, "seed=0", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    (folder,) = folders(tmp_path)
    table = (folder / "per_image_test.csv").read_text()
    shutil.rmtree(folder / "checkpoints")
    curves = len(list((folder / "tensorboard").glob("events*")))
    (folder / "tensorboard" / "note.txt").write_text("mine")
    (folder / "src").mkdir()  # hydra.run.dir=. in a checkout
    old = [folder / name for name in ("auto.json", "leaks.csv", "figures/leaks.png", "stopped.json")]
    for file in old:
        file.write_text("of the first start")
    (folder / "status.json").write_text(json.dumps(read_status(folder) | {"state": "interrupted"}))
    done = sweep(tmp_path, "seed=0", "trainer.max_epochs=1")
    assert "starts anew: no epoch had ended" in done.stdout
    assert (folder / "per_image_test.csv").read_text() == table
    assert not any(file.exists() for file in old)
    assert (folder / "src").is_dir()
    assert (folder / "tensorboard" / "note.txt").is_file()
    assert len(list((folder / "tensorboard").glob("events*"))) == curves
