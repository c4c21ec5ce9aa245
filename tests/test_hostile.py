"""What someone else has made: archives, images, checkpoints, configs, tables. Nothing in them is run."""

import json
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from conftest import ROOT, TINY, saved, square
from raremask import BadInput, checkpoints, shipped
from raremask.archives import unpack
from raremask.building import _is_known, check_targets, load_config, network
from raremask.data.readers import read_image
from raremask.runfolder import write_table
from raremask.runlengths import RunLengths
from raremask.submission import Submission
from raremask.tables import read_table
from record import plain
from test_archives import packed, rar
from test_compare import one_run

SECTION = "Hostile input"


def refused(call, *folders: Path) -> str:
    """The message with which a call is refused, as the page shows it."""
    with pytest.raises(BadInput) as error:
        call()
    return plain(str(error.value), *folders)


class Trap:
    """A pickle that makes itself noticed."""

    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


# --- archives and images: test_archives.py and test_readers.py have the details ---------------------------------------


@pytest.mark.parametrize("write", [packed, rar])
def test_an_archive_that_leaves_its_folder_writes_nothing(tmp_path, write, tried):
    archive = write(tmp_path / "archive", {"fine.txt": b"fine", "../evil": b"evil"})
    words = refused(lambda: unpack(archive, tmp_path / "out"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]
    tried(SECTION, f"an archive ({'ZIP' if write is packed else 'RAR'}) with ../evil", f"refused: {words}")


def test_a_bomb_writes_nothing(tmp_path, tried):
    zeros = bytes(2**20)
    archive = packed(tmp_path / "bomb.zip", {f"{number}.bin": zeros for number in range(200)})
    assert archive.stat().st_size < 2**19
    words = refused(lambda: unpack(archive, tmp_path / "out"), tmp_path)
    assert not (tmp_path / "out").exists()
    tried(SECTION, "an archive of 200 KiB that unpacks to 200 MiB of zeros", f"refused: {words}")


def test_a_header_of_ten_to_the_ninth_pixels_is_refused(tmp_path, tried):
    head = struct.pack(">IIBBBBB", 40_000, 25_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(head)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "huge.png").write_bytes(content + struct.pack(">I", 0) + b"IDAT")
    words = refused(lambda: read_image(tmp_path / "huge.png", 3), tmp_path)
    assert "1000000000 pixels" in words
    tried(SECTION, "a PNG of 37 bytes whose header claims 40,000 x 25,000 pixels", f"refused: {words}")


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_with_a_pickle_is_refused_wherever_one_is_read(tmp_path, monkeypatch, command, train, tried):
    folder = train("trainer.max_epochs=1")
    for name in ("best", "last"):
        file = folder / "checkpoints" / f"{name}.ckpt"
        torch.save(torch.load(file, weights_only=True) | {"state_dict": Trap()}, file)
    monkeypatch.chdir(tmp_path)
    words = refused(lambda: command("evaluate.py", f"run={folder}"), tmp_path)
    assert "is refused: it is no checkpoint of tensors and plain values" in words
    refused(lambda: command("train.py", f"resume={folder}", "trainer.max_epochs=3"))
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Trap()))
    refused(lambda: checkpoints.read(tmp_path / "plain.ckpt"))
    assert not Path("sprung").exists()
    pickle.loads(pickle.dumps(Trap()))
    assert Path("sprung").exists()  # the trap works
    tried(SECTION, "a checkpoint with a pickle, evaluated and resumed", f"refused, nothing was run: {words}")


# --- configs ----------------------------------------------------------------------------------------------------------

OUTSIDE = {
    "a function of the system": {"_target_": "os.system", "command": "touch sprung"},
    "a built-in": {"_target_": "builtins.exec", "_args_": ["open('sprung', 'w')"]},
    "a way out of our own modules": {"_target_": "raremask.building.torch.hub.load", "repo_or_dir": "x", "model": "y"},
    "a class of torch that starts programs": {
        "_target_": "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
        "entrypoint": "touch",
        "args": ["sprung"],
    },
    "a way out through torch.nn": {"_target_": "torch.nn.modules.module.torch.hub.load", "repo_or_dir": "x"},
    "a function of ours": {"_target_": "raremask.runfolder.write_text", "path": "sprung", "text": ""},
    "a name that is put together": {"_target_": "${oc.env:NAME,os.system}", "command": "touch sprung"},
    "something that is no name": {"_target_": 7},
    "what a value becomes when it is resolved": "${oc.create:{_target_:os.system,command:touch}}",
    "what a text becomes when it is decoded": "${oc.decode:'{_target_: os.system, command: touch}'}",
    "a value that is escaped once": "\\${oc.create:{_target_:os.system,command:touch}}",
    "a reference within a reference": "${oc.env:X,${oc.create:{_target_:os.system,command:touch}}}",
}


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """The folder of a finished run, as someone may send it."""
    folder = tmp_path_factory.mktemp("sent") / "run"
    command = [sys.executable, str(ROOT / "src" / "train.py"), *TINY, "trainer.max_epochs=1", f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def changed(sent: Path, tmp_path: Path, place: str, value: object) -> Path:
    """A copy of a run whose config asks for something else."""
    folder = tmp_path / "run"
    shutil.copytree(sent, folder)
    file = folder / ".hydra" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    *path, last = place.split(".")
    node = config
    for key in path:
        node = node[key]
    node[last] = value
    file.write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.parametrize("what", OUTSIDE)
@pytest.mark.parametrize("place", ["loss", "dataset", "trainer.plugins", "callbacks.best"])
def test_a_config_from_elsewhere_makes_nothing_but_parts_of_a_run(
    sent, tmp_path, monkeypatch, command, what, place, tried
):
    folder = changed(sent, tmp_path, place, [OUTSIDE[what]] if place == "trainer.plugins" else OUTSIDE[what])
    monkeypatch.chdir(tmp_path)
    words = refused(lambda: load_config(folder), tmp_path)
    assert re.search("From the folder of a run only (classes of raremask, torch.nn|plain references)", words), words
    if place == "loss":  # both commands read it so
        assert refused(lambda: command("evaluate.py", f"run={folder}"), tmp_path) == words
        refused(lambda: command("train.py", f"resume={folder}", "trainer.max_epochs=2"))
    assert not Path("sprung").exists()
    if place == "loss":
        tried(SECTION, f"a run's config that asks for {what}", f"refused: {words}")


def test_values_for_auto_bring_nothing_in(sent, tmp_path, command, tried):
    folder = tmp_path / "run"
    shutil.copytree(sent, folder)
    for value in ({"loss._target_": "os.system"}, {"loss.terms": "${oc.create:{_target_:os.system,command:touch}}"}):
        (folder / "auto.json").write_text(json.dumps(value))
        words = refused(lambda: command("evaluate.py", f"run={folder}"))
        assert "From the folder of a run only" in words
    tried(SECTION, "auto.json that replaces a class", "refused, as above")


def test_what_runs_are_made_of_is_known(sent):
    load_config(sent)
    for file in (ROOT / "conf").rglob("*.yaml"):
        for line in file.read_text().splitlines():
            target = line.partition("_target_:")[2].split(",")[0].split("}")[0].split("#")[0].strip()
            if target and not target.startswith("hydra_plugins"):
                assert _is_known(target), target


def test_classes_of_one_s_own_are_made_where_the_environment_names_their_module(train, tmp_path, monkeypatch):
    module = "from torch import nn\nclass Plain(nn.BCEWithLogitsLoss): pass\nclass Net(nn.Conv2d): pass\n"
    (tmp_path / "minedays.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match=r"neither be resumed nor scored again: .*RAREMASK_TRUST=<module>"):
        folder = train("loss=bce", "loss._target_=minedays.Plain", "trainer.max_epochs=1")
    arguments = {"in_channels": 3, "out_channels": 1, "kernel_size": 1}
    model = replace(shipped.read(folder / "model"), network={"_target_": "minedays.Net"} | arguments)
    for look in (lambda: load_config(folder), lambda: network(folder / "model", model)):
        assert "RAREMASK_TRUST=<module>" in refused(look)
    monkeypatch.setenv("RAREMASK_TRUST", "mine")  # the beginning of a name is not the name
    refused(lambda: load_config(folder))
    monkeypatch.setenv("RAREMASK_TRUST", "other, minedays")
    assert load_config(folder).loss._target_ == "minedays.Plain"
    with pytest.raises(BadInput, match="Does it belong"):  # the weights are another's, but it was made
        network(folder / "model", model)
    monkeypatch.setenv("RAREMASK_TRUST", "gone")
    model = replace(model, network={"_target_": "gone.Net"})
    assert "is its folder on PYTHONPATH?" in refused(lambda: check_targets(model.network, folder))


@pytest.mark.parametrize(
    "content", ["", "7", "[1, 2]", "a: [", "loss: ${", "!!python/object/apply:os.system [touch x]"]
)
def test_a_config_that_is_none_is_refused(sent, tmp_path, content):
    folder = tmp_path / "run"
    shutil.copytree(sent, folder)
    (folder / ".hydra" / "config.yaml").write_text(content)
    refused(lambda: load_config(folder))


# --- names ------------------------------------------------------------------------------------------------------------

MARKUP = "<img src=x onerror=alert(1)>"


def test_markup_in_names_does_not_reach_the_report(tmp_path, command, tried):
    for loss in ("dice", "bce"):
        folder = tmp_path / "s" / f"{loss}{MARKUP}"
        one_run(folder, loss, 0.6, 0)
        for name in ("per_image_test.csv", "masks_test.csv"):
            rows = [row | {"image": f"{MARKUP}{row['image']}"} for row in read_table(folder / name)]
            write_table(
                folder / name, [row | ({"group": MARKUP + row["group"]} if "group" in row else {}) for row in rows]
            )
        facts = json.loads((folder / "status.json").read_text()) | {"model": MARKUP}
        (folder / "status.json").write_text(json.dumps(facts))
    (tmp_path / "s" / "failed").mkdir()
    shutil.copytree(folder, tmp_path / "s" / "failed", dirs_exist_ok=True)
    (tmp_path / "s" / "failed" / "status.json").write_text(json.dumps(facts | {"state": "failed", "reason": MARKUP}))
    command("compare.py", f"runs={tmp_path / 's'}", f"out={tmp_path / 'out'}", "draws=100")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "onerror" in page  # the names are there
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror" in page
    tried(SECTION, "HTML in names of images, patients, models and reasons", "the report shows it as text")


def test_formulas_in_names_are_not_computed_and_come_back(tmp_path, tried):
    names = ["=1+1", "+1", "-1", "@x", "'=1", "\t=1", "plain", "it's"]
    write_table(tmp_path / "table.csv", [{"image": name, "dice": -0.5} for name in names])
    raw = (tmp_path / "table.csv").read_text().splitlines()[1:]
    assert not any(line.startswith(("=", "+", "-", "@", "\t")) for line in raw)
    assert "-0.5" in raw[0]  # numbers stay numbers
    assert [row["image"] for row in read_table(tmp_path / "table.csv")] == names
    tried(
        SECTION,
        "names that begin with =, +, -, @ in tables",
        "an apostrophe stands before them, and is taken off when read",
    )


def test_a_run_on_images_with_such_names_goes_through(tmp_path, train_anything, command):
    for number in range(15):
        saved(tmp_path / "images" / f"={number}.png", square(value=100 + number))
        saved(tmp_path / "masks" / f"={number}.png", square())
    small = [setting for setting in TINY if not setting.startswith(("dataset.train", "dataset.val", "dataset.test"))]
    data = [f"dataset.images={tmp_path / 'images'}", f"dataset.masks={tmp_path / 'masks'}", "leaks=ignore"]
    folder = train_anything(*small, "dataset=folder", *data, "trainer.max_epochs=1")
    for name in ("split.csv", "per_image_test.csv", "masks_test.csv"):
        lines = (folder / name).read_text().splitlines()[1:]
        assert all(line.startswith("'=") for line in lines), name
    command("evaluate.py", f"run={folder}", "verify=true")  # finds its images by what it has written


def test_a_submission_keeps_names_as_the_competition_has_them_and_says_so(tried):
    table = Submission(["img", "pixels"], "stem", RunLengths())
    with pytest.warns(UserWarning, match="do not open it in a spreadsheet"):
        assert table.of_runs({"=1+1.png": "1 1"}) == "img,pixels\n=1+1,1 1\n"
    tried(SECTION, "names that begin with = in a submission, as a competition prescribes them", "kept, with a warning")
