"""Masks for new images, by one finished run and by several."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from conftest import ROOT, python, saved
from raremask import BadInput
from raremask.data.phantom import Phantom
from raremask.runlengths import RunLengths
from raremask.tables import read_table


def new_images(root: Path, number: int = 4) -> Path:
    """Images of several sizes and kinds, some of which cannot be read."""
    data = Phantom("polyp", train=number, val=0, test=0, size=(60, 52), channels=3, batch_size=1)
    for index, record in enumerate(data.records()):
        image = data.arrays(record)[0]
        saved(root / f"{index + 8}{('.png', '.tif', '.jpg', '.bmp')[index % 4]}", image[: 60 - 9 * index])
    return root


def test_masks_are_predicted_for_any_image_at_its_own_size(run, command, tmp_path, capsys):
    source, out = new_images(tmp_path / "new"), tmp_path / "out"
    command("predict.py", f"run={run[0]}", f"images={source}", f"out={out}", "probabilities=png", "overlays=true")
    said = capsys.readouterr().out
    assert said.startswith("1 network; threshold ")
    assert "4 masks in " in said
    selection = json.loads((run[0] / "selection.json").read_text())["selection"]
    for index, height in enumerate((60, 51, 42, 33)):
        mask = np.asarray(Image.open(out / f"{index + 8}.png"))
        probability = np.asarray(Image.open(out / f"{index + 8}_probability.png")) / 65535
        assert mask.shape == probability.shape == (height, 52)
        assert set(np.unique(mask)) <= {0, 255}
        if not selection["holes"]:
            assert (probability[mask > 0] > selection["threshold"] - 1e-4).all()
        assert np.asarray(Image.open(out / f"{index + 8}_overlay.png")).shape == (height, 52, 3)
    assert not list(out.glob(".*"))


def test_masks_beside_their_images_are_not_predicted(run, command, tmp_path):
    source, out = new_images(tmp_path / "new"), tmp_path / "out"
    for file in sorted(source.iterdir())[:2]:
        shutil.copy(file, source / f"{file.stem}_mask.png")
    shutil.copy(file, source / "lonely_mask.png")  # of no image: it may be one
    with pytest.warns(UserWarning, match=r"2 files in .*new are called like masks of others"):
        command("predict.py", f"run={run[0]}", f"images={source}", f"out={out}")
    assert sorted(path.stem for path in out.iterdir()) == ["10", "11", "8", "9", "lonely_mask"]


def painted(folder: Path) -> dict[str, int]:
    """The number of pixels painted on each test image."""
    return {row["image"]: row["tp"] + row["fp"] for row in read_table(folder / "per_image_test.csv")}


@pytest.mark.parametrize("tiled", [False, True])
def test_predictions_equal_those_of_evaluation(run, train, command, tmp_path, tiled):
    folder = train("augment=thesis", "selection.tile=[16,16]", folder="tiled") if tiled else run[0]
    assert not tiled or painted(folder) != painted(run[0])
    data = Phantom(train=12, val=5, test=4, size=(48, 40), channels=3, batch_size=1)
    tests = [record for record in data.records() if record.split == "test"]
    for record in tests:
        saved(tmp_path / "new" / f"{record.name}.png", data.arrays(record)[0])
    command("predict.py", f"run={folder}", f"images={tmp_path / 'new'}", f"out={tmp_path / 'out'}")
    masks = {path.stem: int((np.asarray(Image.open(path)) > 0).sum()) for path in (tmp_path / "out").iterdir()}
    assert masks == painted(folder)
    command("evaluate.py", f"run={folder}", "verify=true")


def test_another_threshold_and_other_steps_may_be_asked_for(run, command, tmp_path, capsys):
    source = new_images(tmp_path / "new", 1)
    plain = (f"run={run[0]}", f"images={source}", "views=none", "postprocess=none")
    command("predict.py", *plain, f"out={tmp_path / 'first'}", "probabilities=png", "threshold=0.5")
    probability = np.asarray(Image.open(tmp_path / "first" / "8_probability.png")) / 65535
    threshold = round(float(np.median(probability)), 3)
    command("predict.py", *plain, f"out={tmp_path / 'higher'}", f"threshold={threshold}")
    mask = np.asarray(Image.open(tmp_path / "higher" / "8.png")) > 0
    sure = np.abs(probability - threshold) > 1e-4
    assert np.array_equal(mask[sure], probability[sure] > threshold)
    more = (*plain, f"out={tmp_path / 'largest'}", f"threshold={threshold}", "postprocess=largest_component")
    assert "1 network; threshold 0.5, then nothing; cpu" in capsys.readouterr().out
    command("predict.py", *more)
    assert f"1 network; threshold {threshold:g}, then LargestComponent; cpu" in capsys.readouterr().out
    largest = np.asarray(Image.open(tmp_path / "largest" / "8.png")) > 0
    labels, number = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels[labels > 0])
    assert number > 0
    assert (int(largest.sum()), len(set(labels[largest]))) == (areas.max(), 1)
    command("predict.py", *plain, f"out={tmp_path / 'flips'}", "views=flips", "probabilities=png", "threshold=0.5")
    mirrored = np.asarray(Image.open(tmp_path / "flips" / "8_probability.png")) / 65535
    assert np.abs(mirrored - probability).max() > 1e-3


def test_a_broken_image_is_named_and_the_others_are_done(run, command, tmp_path, capsys):
    source = new_images(tmp_path / "new")
    (source / "1.png").write_text("no image")
    with pytest.raises(SystemExit) as stopped:
        command("predict.py", f"run={run[0]}", f"images={source}", f"out={tmp_path / 'out'}", "submission=nerve")
    assert stopped.value.code == 1
    assert "1 image could not be read, and got no mask and no row in submission.csv:\n  " in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    lines = (tmp_path / "out" / "submission.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["img", "8", "9", "10", "11"]
    first = RunLengths().read(lines[1].split(",")[1], (60, 52))
    assert np.array_equal(first, np.asarray(Image.open(tmp_path / "out" / "8.png")) > 0)


def test_images_of_fewer_bits_than_in_training_are_warned_of(run, command, tmp_path):
    saved(tmp_path / "new" / "1.tif", np.full((60, 52), 3000, np.uint16))
    with pytest.warns(UserWarning, match="no 16-bit image has a value above 3000: read as 16 bits, as in training"):
        command("predict.py", f"run={run[0]}", f"images={tmp_path / 'new'}", f"out={tmp_path / 'out'}")


def test_nothing_is_predicted_over_what_is_there(run, command, tmp_path):
    source, out = new_images(tmp_path / "new"), tmp_path / "out"
    saved(out / "9.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(BadInput, match=r"9.png and 0 more are there; choose another out=, or overwrite=true"):
        command("predict.py", f"run={run[0]}", f"images={source}", f"out={out}")
    assert [path.name for path in out.iterdir()] == ["9.png"]
    command("predict.py", f"run={run[0]}", f"images={source}", f"out={out}", "overwrite=true")
    assert len(list(out.iterdir())) == 4


def test_no_kind_of_result_is_written_over_or_shared(run, command, tmp_path):
    source, out = new_images(tmp_path / "new", 1), tmp_path / "out"
    saved(out / "8_overlay.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(BadInput, match=r"8_overlay.png and 0 more are there"):
        command("predict.py", f"run={run[0]}", f"images={source}", f"out={out}", "overlays=true")
    assert [path.name for path in out.iterdir()] == ["8_overlay.png"]
    shutil.copy(source / "8.png", source / "8_overlay.png")
    with pytest.raises(BadInput, match="or two results would share one"):
        command("predict.py", f"run={run[0]}", f"images={source}", f"out={tmp_path / 'other'}", "overlays=true")


def test_a_model_predicts_without_its_run_and_as_onnx(run, command, tmp_path):
    shutil.copytree(run[0] / "model", tmp_path / "shipped")
    model = tmp_path / "shipped"
    export = [str(ROOT / "scripts" / "export.py"), f"run={model}", "format=onnx"]
    done = python(*export, env=os.environ | {"PYTHONPATH": "src"}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "largest difference of a probability: " in done.stdout
    assert "is there already" in python(*export, env=os.environ | {"PYTHONPATH": "src"}, cwd=ROOT).stderr
    source = new_images(tmp_path / "new")
    masks = {}
    for name, place in (("run", run[0]), ("model", model), ("onnx", model / "model.onnx")):
        command("predict.py", f"run={place}", f"images={source}", f"out={tmp_path / name}", "probabilities=png")
        masks[name] = [np.asarray(Image.open(tmp_path / name / f"{index}_probability.png")) for index in range(8, 12)]
    for index in range(4):
        assert np.array_equal(masks["run"][index], masks["model"][index])
        assert np.abs(masks["run"][index].astype(int) - masks["onnx"][index]).max() <= 1


def test_images_are_never_written_over_and_old_masks_of_broken_ones_go(run, command, tmp_path):
    source, out = new_images(tmp_path / "new"), tmp_path / "out"
    with pytest.raises(BadInput, match="the masks would be written over the images"):
        command("predict.py", f"run={run[0]}", f"images={source}", f"out={source}", "overwrite=true")
    command("predict.py", f"run={run[0]}", f"images={source}", f"out={out}")
    (source / "8.png").write_text("broken since")
    with pytest.raises(SystemExit):
        command("predict.py", f"run={run[0]}", f"images={source}", f"out={out}", "overwrite=true")
    assert sorted(path.name for path in out.iterdir()) == ["10.png", "11.png", "9.png"]


def test_several_runs_are_averaged_and_must_go_together(run, train, command, tmp_path, capsys):
    other = train("seed=7", folder="other")
    source = new_images(tmp_path / "new", 1)
    for name, runs in (("one", run[0]), ("other", other), ("both", f"[{run[0]},{other}]")):
        settings = ("probabilities=npz", "views=none", "threshold=0.5", "postprocess=none")
        command("predict.py", f"run={runs}", f"images={source}", f"out={tmp_path / name}", *settings)
    one, two, both = (
        np.load(tmp_path / name / "8_probability.npz")["probability"].astype(float) for name in ("one", "other", "both")
    )
    assert np.abs((one + two) / 2 - both).max() < 2e-3
    padded = train("dataset.resize=pad", folder="padded")
    with pytest.raises(BadInput, match=r"runs that predict together must have the same dataset.size, resize"):
        command("predict.py", f"run=[{run[0]},{padded}]", f"images={source}", f"out={tmp_path / 'none'}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("images=nowhere", "out=x"), "images=nowhere: name a folder of images"),
        (("images=.",), "Where should the masks go"),
        (("images=.", "out=x", "probabilities=jpg"), "must be png, npz or null"),
        (("images=.", "out=x", "threshold=1.5"), "must be a number from 0 to below 1"),
        (("images=.", "out=x", "threshold=abc"), "must be a number from 0 to below 1"),
        (("images=.", "out=x", "views=flip"), "Did you mean flips"),
        (("images=.", "out=x", "overwrite=no"), "overwrite=no must be true or false"),
        (("images=.", "out=x", "overlays=2"), "overlays=2 must be true or false"),
        (("images=.", "out=x", "device=gpu"), "must be one of auto, cpu, cuda"),
        (("images=.", "out=x", "run=[]"), "Which run"),
        (("images=.", "out=x", "run=[a,a]"), "A run is named twice"),
        (("images=.", "out=x", "run=[{0},{0.parent}]"), "A run is named twice"),
        (("images=.", "out=x", "run=2018"), "2018 is not the folder of a run"),
        (("images=.", "out=x", "run=."), "neither the folder of a run, nor of a model"),
    ],
)
def test_a_prediction_that_cannot_be_made_is_refused(run, command, arguments, message):
    with pytest.raises(BadInput, match=message):
        command("predict.py", f"run={run[0]}", *(argument.format(run[0]) for argument in arguments))
