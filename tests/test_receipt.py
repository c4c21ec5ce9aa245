"""The same seed gives the same run, and a receipt says what it was made of, so that it can be recomputed."""

import json
import shutil
import subprocess
from importlib import metadata

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from conftest import ROOT, TINY
from raremask import BadInput, receipt
from raremask.building import build
from raremask.data.samples import Picture
from raremask.receipt import data_digest, read_receipt, versions
from raremask.tables import read_table
from raremask.terminal import seconds_of_a_step
from record import plain

SECTION = "The same again"


def weights(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def same(one, other):
    tables = [(folder / "per_image_test.csv").read_text() for folder in (one, other)]
    first, second = weights(one), weights(other)
    return tables[0] == tables[1] and all(torch.equal(first[name], second[name]) for name in first)


THESIS = ("augment=thesis", "model.dropout=0.3")


def test_the_same_command_gives_the_same_weights_with_workers_and_in_a_sweep(trainings, tried):
    for name, more in (("alone", ()), ("again", ()), ("workers", ("dataset.workers=2",)), ("other", ("seed=7",))):
        code, _ = trainings.train(name, *TINY, *THESIS, *more)
        assert code == 0, trainings.log(name)
    alone, again, workers, other = (trainings.folder / name for name in ("alone", "again", "workers", "other"))
    assert same(alone, again)
    assert same(alone, workers)
    assert not same(alone, other)
    code, _ = trainings.train(None, "-m", *TINY, *THESIS, "seed=7,42", "sweep=same")
    assert code == 0, trainings.log("default")
    jobs = sorted((trainings.folder / "outputs" / "sweeps" / "same").glob("phantom_*"))
    assert [same(job, folder) for job, folder in zip(jobs, (alone, other), strict=True)] == [True, True]
    for what in ("two runs", "0 and 2 workers", "alone and inside a sweep, after another job"):
        tried(SECTION, what, "the same weights and scores, bit for bit; another seed gives others")


# --- the receipt ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(trainings):
    """Return a finished run of the test's own."""
    folder = trainings.folder / "received"
    if not folder.is_dir():
        code, _ = trainings.train("received", *TINY)
        assert code == 0, trainings.log("received")
    copy = trainings.folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    return copy


def test_a_receipt_says_what_a_run_was_made_of(run):
    facts = read_receipt(run)
    (part,) = facts["parts"]
    assert facts["seed"] == 42
    assert {"python", "torch", "lightning", "raremask", "albumentations"} <= part["versions"].keys()
    assert part["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert part["device"].startswith("cpu (")
    assert (part["precision"], part["deterministic"]) == ("32-true", False)
    assert part["arguments"][: len(TINY)] == list(TINY)
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode == 0:
        assert part["git"]["commit"] == head.stdout.strip()
        assert isinstance(part["git"]["changed"], bool)
    else:
        assert part["git"] is None


def test_what_a_run_goes_on_with_is_added(run, command):
    command("train.py", f"resume={run}", "trainer.max_epochs=3")
    assert [part["arguments"][0] for part in read_receipt(run)["parts"]] == [TINY[0], f"resume={run}"]


def test_outside_of_git_there_is_no_commit(tmp_path):
    (tmp_path / "__init__.py").touch()
    assert receipt.git(tmp_path) is None


def test_a_digest_is_of_contents_whatever_their_order():
    def picture(name, digest):
        mask = np.zeros((2, 2), np.uint8)
        return Picture(name, "g", mask[..., None], mask, (2, 2), (0, 0, 2, 2), 0.0, None, None, digest)

    pictures = [picture("a", "1"), picture("b", "2")]
    assert data_digest(pictures) == data_digest(pictures[::-1])
    assert data_digest(pictures) != data_digest([picture("a", "2"), picture("b", "1")])


def test_verify_recomputes_the_scores(run, command, capsys, tried):
    command("evaluate.py", f"run={run}", "verify=true")
    assert "Verified:" in capsys.readouterr().out
    tried(
        SECTION,
        "evaluate.py verify=true on a run as it was left",
        "verified: data, split and every score of every image",
    )


def table_changed(run):
    file = run / "per_image_test.csv"
    rows = read_table(file)
    before = str(rows[0]["tp"])
    assert before in file.read_text()
    lines = file.read_text().splitlines()
    column = lines[0].split(",").index("dice")
    cells = lines[1].split(",")
    cells[column] = "0.9"
    file.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")


def weights_changed(run):
    file = run / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    for value in content["state_dict"].values():
        value.add_(0.01 if value.is_floating_point() else 0)
    torch.save(content, file)


def table_gone(run):
    (run / "per_image_test.csv").unlink()


def cell_that_is_none(run):
    file = run / "per_image_test.csv"
    lines = file.read_text().splitlines()
    cells = lines[1].split(",")
    cells[lines[0].split(",").index("dice")] = "nan"
    file.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")


def data_changed(run):
    file = run / ".hydra" / "config.yaml"
    file.write_text(file.read_text().replace("data_seed: 0", "data_seed: 1"))


def split_changed(run):
    file = run / "split.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")


@pytest.mark.filterwarnings("ignore:The scores differ from the run's own")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (table_changed, "scores of test differ by up to"),
        (weights_changed, "scores of test differ by up to"),
        (table_gone, "there was no table of test to compare with"),
        (cell_that_is_none, "scores of test differ by up to inf"),
        (data_changed, "the images or masks are others than the run was trained on"),
        (split_changed, "split.csv has been changed"),
        (lambda run: (run / "receipt.json").unlink(), "what the run was made of is not known"),
    ],
    ids=["a score", "its weights", "no table", "a score that is no number", "its data", "its split", "no receipt"],
)
def test_verify_notices_what_has_been_changed(run, command, change, words, request, tried):
    change(run)
    for _ in range(2):  # nothing is mended by asking
        with pytest.raises(BadInput, match=words) as error:
            command("evaluate.py", f"run={run}", "verify=true")
    reason = plain(str(error.value).splitlines()[-1], run).split(" (")[0]  # without the device
    tried(SECTION, f"evaluate.py verify=true after a change: {request.node.callspec.id}", f"exit code 2: {reason}")


def test_a_run_says_so_if_its_receipt_is_damaged(run):
    (run / "receipt.json").write_text(json.dumps({"seed": 1}))
    with pytest.raises(BadInput, match="missing or damaged"):
        read_receipt(run)


def test_a_checkout_that_is_not_installed_knows_its_packages_too(monkeypatch):
    installed, version = versions(), metadata.version

    def gone(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", gone)
    monkeypatch.setattr(metadata, "version", lambda name: gone(name) if name == "rarfile" else version(name))
    assert versions() == installed | {"rarfile": "not installed"}


def test_the_cost_of_determinism_is_measured_with_this_network(tmp_path):
    """On a GPU it is printed; here only that it can be measured, and leaves the network as it was."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        data, module = build(compose("train", list(TINY)))
    before = [value.clone() for value in module.net.parameters()]
    try:
        assert 0 < seconds_of_a_step(module, data, torch.device("cpu"), True, steps=2) < 60
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(before, module.net.parameters(), strict=True))
    assert all(value.grad is None for value in module.net.parameters())
