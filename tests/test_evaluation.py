"""Finished runs scored again, alone and side by side."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import checkpoint, saved
from raremask import BadInput, selection
from raremask.data.phantom import Phantom
from raremask.metrics.overlap import summary
from raremask.module import Viewer
from raremask.scoretables import read_counts
from raremask.tables import read_table


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluate_gives_the_same_numbers(run, command, capsys, split):
    folder, _ = run
    before = (folder / f"per_image_{split}.csv").read_text()
    command("evaluate.py", f"run={folder}", f"split={split}")
    assert (folder / f"per_image_{split}.csv").read_text() == before
    assert f"Largest change of a score against per_image_{split}.csv: 0\n" in capsys.readouterr().out
    assert not list(folder.glob("*_again.csv"))


def test_validation_images_are_seen_once_from_each_side_and_scored_so(train, command, monkeypatch, capsys):
    seen = []
    looking = Viewer.predict_step

    def noted(self, batch, batch_index):
        seen.append((self.predictor.views, len(batch["index"])))
        return looking(self, batch, batch_index)

    monkeypatch.setattr(Viewer, "predict_step", noted)
    monkeypatch.setattr(selection, "convincing", lambda *_: True)
    folder = train("selection.views=[none,flips]", "selection.areas=[]", "trainer.max_epochs=1")
    counted = {views: sum(number for kind, number in seen if kind == views) for views in ("none", "flips")}
    images = {split: len(read_table(folder / f"per_image_{split}.csv")) for split in ("val", "test")}
    assert counted == {"none": sum(images.values()), "flips": sum(images.values())}
    capsys.readouterr()
    command("evaluate.py", f"run={folder}", "split=val")
    assert "Largest change of a score against per_image_val.csv: 0\n" in capsys.readouterr().out


def test_evaluate_leaves_the_run_s_own_table_and_warns_if_it_finds_another(run, command, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(run[0], folder)
    table = folder / "per_image_test.csv"
    claimed = table.read_text().replace("test_0001", "test_1001")
    table.write_text(claimed)
    with pytest.warns(UserWarning, match="The scores differ from the run's own"):
        command("evaluate.py", f"run={folder}")
    assert table.read_text() == claimed
    assert (folder / "per_image_test_again.csv").read_text() == (run[0] / "per_image_test.csv").read_text()


def test_several_runs_are_scored_side_by_side_and_averaged(run, train, command, tmp_path, capsys):
    other = train("seed=7", folder="other")
    capsys.readouterr()
    first, out = tmp_path / "first", tmp_path / "out"
    shutil.copytree(run[0], first)
    uses = [json.loads((folder / "selection.json").read_text())["test_uses"] for folder in (first, other)]
    command("evaluate.py", f"run=[{first},{other}]", f"out={out}")
    said = capsys.readouterr().out
    table = said[said.index("Side by side on test") :].splitlines()
    assert [line.split("  ")[0] for line in table[2:7]] == [
        "bce_dice 42",
        "bce_dice 7",
        "averaged",
        "all background",
        "all foreground",
    ]
    counts = read_counts(out / "per_image_test.csv")[""]
    assert float(table[4].split()[1]) == pytest.approx(summary(counts)["dice"], abs=1e-4)
    for folder, before in zip((first, other), uses, strict=True):  # once by itself, once in the mean
        assert json.loads((folder / "selection.json").read_text())["test_uses"] == before + 1

    # what is averaged in evaluation is what predict.py would paint
    data = Phantom(train=12, val=5, test=4, size=(48, 40), channels=3, batch_size=1)
    for record in (record for record in data.records() if record.split == "test"):
        saved(tmp_path / "new" / f"{record.name}.png", data.arrays(record)[0])
    sweep = tmp_path / "sweep"  # its folder stands for its runs
    sweep.mkdir()
    first.rename(sweep / "first"), other.rename(sweep / "other")
    command("predict.py", f"run={sweep}", f"images={tmp_path / 'new'}", f"out={tmp_path / 'painted'}")
    painted = [int((np.asarray(Image.open(path)) > 0).sum()) for path in sorted((tmp_path / "painted").iterdir())]
    assert painted == counts[:, :2].sum(axis=1).tolist()


def test_the_same_images_are_drawn_under_several_runs(run, train, command, tmp_path, capsys):
    other = train("loss=dynamit", "dataset.resize=pad", folder="other")
    look = ("figure=comparison", "figures.palette=colour_blind", "figures.contours=true")
    command("evaluate.py", f"run=[{run[0]},{other}]", f"out={tmp_path / 'out'}", *look)
    said = capsys.readouterr().out
    assert "Not averaged: the runs differ in dataset.size" in said
    with Image.open(tmp_path / "out" / "comparison.png") as picture:
        assert picture.size[0] > 800
    with pytest.raises(BadInput, match=r"images: there is no first in test; it begins with test_0000"):
        command("evaluate.py", f"run={run[0]}", "figure=comparison", "images=[first]", f"out={tmp_path / 'out'}")


def test_runs_of_other_splits_are_neither_compared_nor_averaged(run, train, command):
    other = train("dataset.test=5", folder="other")
    with pytest.raises(BadInput, match=r"have only 4 of 5 test images"):
        command("evaluate.py", f"run=[{run[0]},{other}]")
    namesakes = train("dataset.data_seed=7", folder="namesakes")
    with pytest.raises(BadInput, match=r"have only 0 of 8 test images"):
        command("evaluate.py", f"run=[{run[0]},{namesakes}]")


def test_evaluate_names_the_checkpoints_that_there_are(run, command):
    folder, _ = run
    with pytest.raises(BadInput, match="Checkpoints in this run: best, last"):
        command("evaluate.py", f"run={folder}", "checkpoint=first")
    command("evaluate.py", f"run={folder}", "checkpoint=last", "split=val", "trainer=cpu")
    assert (folder / "per_image_val_last.csv").is_file()


def test_a_run_that_has_not_ended_is_looked_at_on_validation_alone(run, command, tmp_path, capsys):
    folder = tmp_path / "unfinished"
    shutil.copytree(run[0], folder)
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"state": "interrupted"}))  # a longer training of it
    refused = r"unfinished has not ended: for its weights nothing was chosen on validation yet.* split=val"
    with pytest.raises(BadInput, match=refused):
        command("evaluate.py", f"run={folder}")
    for file in [folder / "selection.json", *folder.glob("per_image_*")]:
        file.unlink()
    with pytest.raises(BadInput, match=refused):
        command("evaluate.py", f"run={folder}")
    command("evaluate.py", f"run={folder}", "split=val")
    said = capsys.readouterr().out
    assert f"Chosen on validation for best.ckpt of {folder}: threshold " in said
    assert "test split" not in said
    assert not list(folder.glob("per_image_*")) + list(folder.glob("selection.json"))


def test_for_another_checkpoint_threshold_and_postprocessing_are_chosen_anew(train, command, capsys):
    folder = train("trainer.max_epochs=1")
    weights = checkpoint(folder, "last")
    weights["state_dict"]["net.head.bias"][:] = 50  # everything, whatever the threshold, but for what is smaller
    torch.save(weights, folder / "checkpoints" / "last.ckpt")
    before = (folder / "selection.json").read_text()
    capsys.readouterr()
    with pytest.warns(UserWarning, match=r"masks of images with foreground are white"):
        command("evaluate.py", f"run={folder}", "checkpoint=last", "split=val")
    assert f"Chosen on validation for last.ckpt of {folder}: threshold 0.5" in capsys.readouterr().out
    assert (folder / "selection.json").read_text() == before
    assert (read_counts(folder / "per_image_val_last.csv")[""][:, 2:] == 0).all()  # nothing is left out
