"""Whole runs on phantoms: they train for real, and what they leave behind is looked at."""

import csv
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import ROOT, TINY, checkpoint, python, saved
from raremask import BadInput
from raremask.building import build_trainer, load_config
from raremask.checkpoints import BestOfStage, RunCheckpoint
from raremask.commandline import NEEDED, run_folder
from raremask.data.phantom import Phantom
from raremask.metrics.overlap import baselines, summary
from raremask.runfolder import claimed
from raremask.scoretables import read_counts
from raremask.selection import Selection
from raremask.tables import read_table
from raremask.terminal import say_what_never_began

#: In float32: half precision rounds batches of another size otherwise.
DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
TRAINER = {"_target_": "builtins.dict", "use_distributed_sampler": False}
TWO_STAGE = (
    "callbacks=two_stage",
    "callbacks.switch.epoch=3",
    "loss=weighted_bce",
    "loss@callbacks.switch.loss=weighted_bce_dice",
)


def events(folder: Path) -> EventAccumulator:
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return board


def state(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


# --- one run and its folder -------------------------------------------------------------------------------------------


def test_a_run_leaves_behind_what_the_readme_promises(run):
    folder, _ = run
    expected = {
        ".hydra",
        "split.csv",
        "checkpoints",
        "figures",
        "masks_test.csv",
        "metrics.csv",
        "per_image_test.csv",
        "per_image_val.csv",
    }
    assert expected | {"model", "receipt.json", "selection.json", "status.json", "tensorboard", "train.log"} == {
        path.name for path in folder.iterdir()
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "curves.png",
        "gallery_test.png",
        "scores.png",
    }
    assert {path.name for path in (folder / "model").iterdir()} == {"model.json", "model.safetensors"}
    status = state(folder)
    assert status["state"] == "done"
    assert (status["dataset"], status["model"], status["loss"], status["seed"]) == ("phantom", "unet", "bce_dice", 42)


def test_a_run_says_what_it_does_and_nothing_else(run):
    _, done = run
    assert done.stderr == ""
    lines = done.stdout.split("\n")
    assert lines[1].startswith("phantom: 12 train, 5 val, 4 test; foreground")
    assert sum(line.startswith("epoch") for line in lines) == 2
    for name in ("best checkpoint", "all background", "all foreground", "Pictures:", "tensorboard --logdir"):
        assert name in done.stdout


def test_every_epoch_logs_what_a_user_wants_to_see(run):
    folder, _ = run
    rows = read_table(folder / "metrics.csv")
    assert [row["epoch"] for row in rows] == [0, 1]
    scores = ("dice", "iou", "precision", "recall", "dice_pooled", "foreground_predicted", "foreground_true")
    wanted = {f"{split}/{name}" for split in ("train", "val") for name in scores}
    wanted |= {f"{split}/loss{term}" for split in ("train", "val") for term in ("", "/bce", "/dice")}
    wanted |= {"optim/lr", "optim/grad_norm", "seconds", "step"}
    assert wanted <= set(rows[0])
    for row in rows:
        assert row["train/loss"] == pytest.approx(row["train/loss/bce"] + row["train/loss/dice"], rel=1e-5)
        assert 0 < row["optim/grad_norm"] < 100


def test_tensorboard_shows_curves_panels_and_the_final_scores_beside_the_settings(run):
    folder, _ = run
    board = events(folder)
    assert {"train/loss", "val/dice", "optim/lr", "optim/grad_norm", "test/dice"} <= set(board.Tags()["scalars"])
    assert "hp_metric" not in board.Tags()["scalars"]
    assert board.Tags()["images"] == ["val/images"]
    final = summary(read_counts(folder / "per_image_test.csv")[""])["dice"]
    assert board.Scalars("test/dice")[-1].value == pytest.approx(final)
    assert len(board.Scalars("val/dice")) == 2  # the two epochs: the final scores are no further point of the curve
    assert "_hparams_/session_start_info" in board.PluginTagToContent("hparams")


def test_the_validation_table_is_that_of_the_best_epoch(run):
    folder, _ = run
    best = max(row["val/dice"] for row in read_table(folder / "metrics.csv"))
    counts = read_counts(folder / "per_image_val.csv")
    assert summary(counts["_default"])["dice"] == pytest.approx(best, abs=1e-6)


def test_threshold_views_and_postprocessing_are_chosen_on_validation_and_written_with_their_curve(run):
    folder, done = run
    facts = json.loads((folder / "selection.json").read_text())
    counts = read_counts(folder / "per_image_val.csv")
    dice = [row["val/dice"] for row in read_table(folder / "metrics.csv")]
    assert facts["epoch"] == dice.index(max(dice))
    assert facts["value"] == pytest.approx(summary(counts[""])["dice"])
    assert facts["default"] == pytest.approx(summary(counts["_default"])["dice"])
    assert facts["value"] >= facts["default"]
    assert len(facts["curve"]) == 1000
    plain = Selection(facts["selection"]["threshold"], facts["selection"]["views"])
    reached = dict(facts["tried"])[plain.words()]
    assert facts["curve"][round(1000 * plain.threshold)] == pytest.approx(reached)
    assert facts["tried"][0] == ["threshold 0.5", facts["default"]]
    assert f"Chosen on validation: {Selection(**facts['selection']).words()}." in done.stdout
    assert "at threshold 0.5" in done.stdout


def test_every_look_at_the_test_split_is_counted(run, command, tmp_path, capsys):
    folder = tmp_path / "counted"
    shutil.copytree(run[0], folder)
    before = json.loads((folder / "selection.json").read_text())
    command("evaluate.py", f"run={folder}", "split=val")
    assert json.loads((folder / "selection.json").read_text()) == before
    command("evaluate.py", f"run={folder}")
    after = json.loads((folder / "selection.json").read_text())
    assert after == before | {"test_uses": before["test_uses"] + 1}
    assert f"has looked at the test split {after['test_uses']} times" in capsys.readouterr().out


def test_every_image_has_every_score(run):
    rows = read_table(run[0] / "per_image_test.csv")
    scores = (
        "dice",
        "dice_default",
        "hd95",
        "nsd",
        "boundary_iou",
        "object_f1",
        "centreline_dice",
        "brier",
        "ece",
        "mcc",
    )
    assert all(set(scores) <= row.keys() for row in rows)


def test_last_really_is_the_last_epoch(run):
    folder, _ = run
    assert checkpoint(folder, "last")["epoch"] == 1


@pytest.mark.filterwarnings("ignore:.*masks of images with foreground are empty")  # of the training
@pytest.mark.parametrize(("empty", "scored"), [("one", {1.0}), ("skip", {None}), ("zero", {0.0})])
def test_a_network_that_paints_nothing_is_named_and_an_empty_mask_scores_as_set(train, command, empty, scored):
    folder = train("dataset.test=12", "dataset.empty=0.5", f"empty={empty}", "trainer.max_epochs=1")
    weights = checkpoint(folder, "best")
    weights["state_dict"]["net.head.bias"][:] = -50
    torch.save(weights, folder / "checkpoints" / "best.ckpt")
    (folder / "per_image_test.csv").unlink()  # or evaluate would warn of the difference, too
    with pytest.warns(UserWarning, match=r"(\d) of \1 masks of images with foreground are empty"):
        command("evaluate.py", f"run={folder}")
    assert state(folder)["empty"] == empty
    rows = read_table(folder / "per_image_test.csv")
    assert {row.get("dice") for row in rows if row["tp"] + row["fn"] == 0} == scored
    assert {row["dice"] for row in rows if row["tp"] + row["fn"]} == {0.0}


def test_a_folder_that_holds_a_run_is_not_written_over(run, command):
    folder, _ = run
    before = (folder / ".hydra" / "config.yaml").read_text()
    with pytest.raises(BadInput, match=r"holds a run of another config:\n[^$]*seed: 42 there, 7 asked for"):
        command("train.py", *TINY, "augment=thesis", "seed=7", f"hydra.run.dir={folder}")
    with pytest.raises(BadInput, match="already holds a run: done already"):
        command("train.py", *TINY, "augment=thesis", f"hydra.run.dir={folder}")
    assert (folder / ".hydra" / "config.yaml").read_text() == before
    assert state(folder)["state"] == "done"


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_network_learns_phantoms_far_beyond_painting_nothing_or_everything(train):
    folder = train(
        "dataset.kind=polyp",
        "dataset.size=[64,64]",
        "dataset.train=128",
        "dataset.val=16",
        "dataset.test=16",
        "dataset.batch_size=8",
        "model.base=8",
        "optimizer.lr=0.01",
        "trainer.max_epochs=25",
    )
    counts = read_counts(folder / "per_image_test.csv")[""]
    everything = summary(baselines(counts)["all foreground"])["dice"]
    assert everything < 0.15
    assert summary(counts)["dice"] > 0.4  # of six seeds .55 to .69


def test_that_nothing_was_seen_is_said_of_the_best_of_the_run_not_of_a_stage(tmp_path, capsys):
    stage, best, last = (
        BestOfStage(str(tmp_path), "stage", "val/dice"),
        *(RunCheckpoint(str(tmp_path), name, monitor) for name, monitor in (("best", "val/dice"), ("last", None))),
    )
    stage.best_model_score, best.best_model_score = torch.tensor(0.01), torch.tensor(0.8)
    trainer = SimpleNamespace(checkpoint_callbacks=[stage, best, last])
    module = SimpleNamespace(chance=0.05, monitor="val/dice")
    say_what_never_began(module, trainer)
    assert capsys.readouterr().out == ""
    best.best_model_score = torch.tensor(0.01)
    say_what_never_began(module, trainer)
    assert "val/dice never rose above 0.050" in capsys.readouterr().out


def test_of_a_network_that_sees_nothing_yet_the_last_epoch_is_kept(train, capsys):
    """At first it paints noise, which is worth more than what comes next."""
    folder = train("optimizer.lr=0", "trainer.max_epochs=3")
    assert checkpoint(folder, "best")["epoch"] == 2
    said = capsys.readouterr().out
    assert said.count("(nothing seen yet)") == 3
    assert "val/dice never rose above" in said


def test_the_same_seed_gives_the_same_run_and_another_seed_another(train):
    first, again, other = (train(f"seed={seed}", folder=name) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    table = "per_image_test.csv"
    assert (first / table).read_text() == (again / table).read_text()
    assert (first / table).read_text() != (other / table).read_text()


def test_a_training_gives_the_losses_that_it_gave_before(train):
    """Augmented, clipped, decayed, stepped by plateau: what goes lost of that without a word moves these numbers.

    They are those of PyTorch 2.15 and the pinned versions on a CPU; after a change that is meant to move them take what
    the failure prints.
    """
    more = ("optimizer.weight_decay=0.1", "scheduler.patience=0", "scheduler.mode=min", "trainer.gradient_clip_val=0.5")
    folder = train("augment=thesis", "optimizer=sgd", "trainer.max_epochs=4", *more)
    losses = [row["train/loss"] for row in read_table(folder / "metrics.csv")]
    assert losses == pytest.approx([0.8336, 0.7582, 0.7010, 0.6929], rel=2e-3)


def test_a_failed_run_says_so_in_its_folder(train, tmp_path):
    with pytest.raises(BadInput, match="this loss has no such term"):
        train("callbacks=growing_term", "loss=bce_dice")
    assert state(tmp_path / "run")["state"] == "failed"
    assert "this loss has no such term" in state(tmp_path / "run")["reason"]


def test_early_stopping_ends_a_run_that_gets_no_better(train):
    folder = train("optimizer.lr=0", "callbacks.early_stopping.patience=2", "trainer.max_epochs=9")
    assert len(read_table(folder / "metrics.csv")) == 3


@pytest.mark.parametrize("dataset", ["cvc", "drive", "isic2018"])
def test_a_debug_run_works_on_the_real_dataset(real_data, tmp_path, dataset):
    folder = {"cvc": "CVC-ClinicDB", "drive": "DRIVE", "isic2018": "ISIC2018"}[dataset]
    settings = [setting for setting in TINY if not setting.startswith(("dataset", "trainer"))]
    script = ["-W", "ignore:.*the full dataset has", str(ROOT / "src" / "train.py")]  # ISIC may be there in part
    settings += [f"dataset={dataset}", "dataset.size=[64,64]", f"data_dir={real_data(folder).parent}"]
    done = python(*script, *settings, "trainer=debug", "loss=boundary_dou", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert state(tmp_path)["state"] == "done"
    columns = read_table(tmp_path / "per_image_test.csv")[0]
    assert ("dice_fov" in columns) == ("nsd_fov" in columns) == (dataset == "drive")


# --- splits and leaks -------------------------------------------------------------------------------------------------


def own_images(root: Path, number: int = 15) -> tuple[str, ...]:
    """Overrides for a folder of small images of one's own."""
    data = Phantom("polyp", train=number, val=0, test=0, size=(48, 40), channels=3, batch_size=1)
    for index, record in enumerate(data.records()):
        image, mask, _ = data.arrays(record)
        saved(root / "images" / f"{index:02d}.png", image)
        saved(root / "masks" / f"{index:02d}.png", mask.astype("uint8") * 255)
    where = (f"dataset.images={root / 'images'}", f"dataset.masks={root / 'masks'}")
    return ("dataset=folder", *where, "dataset.size=[48,40]", "dataset.workers=0", *TINY[4:])


def split_of(folder: Path) -> dict[str, str]:
    return {row["image"]: row["split"] for row in read_table(folder / "split.csv")}


def test_a_run_keeps_its_split_whatever_becomes_of_the_drawing(tmp_path, train_anything, command, capsys):
    images = own_images(tmp_path)
    folder = train_anything(*images, "split.fold=1", "split.seed=7")
    placed = split_of(folder)
    assert sorted(placed.values()) == ["test"] * 3 + ["train"] * 9 + ["val"] * 3
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    config.split.seed = 99  # as if the drawing had changed
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    command("evaluate.py", f"run={folder}")
    assert ": 0\n" in capsys.readouterr().out  # not a score has changed
    other = train_anything(*images, f"split.file={folder / 'split.csv'}", folder="other")
    assert split_of(other) == placed


def test_a_copy_of_a_training_image_in_another_split_is_found(tmp_path, train_anything):
    images = own_images(tmp_path)
    clean = train_anything(*images, "leaks=error", folder="clean")
    assert not (clean / "leaks.csv").exists()
    by_split = {its: name for name, its in split_of(clean).items()}
    source, copy = by_split["train"], by_split["test"]
    shutil.copy(tmp_path / "images" / f"{source}.png", tmp_path / "images" / f"{copy}.png")
    with pytest.raises(BadInput, match=f"train {source} is test {copy}") as error:
        train_anything(*images, "leaks=error", folder="refused")
    assert "1 of the 3 test images are in them" in str(error.value)
    assert state(tmp_path / "refused")["state"] == "failed"
    with pytest.warns(UserWarning, match="Scores will be too good"):
        warned = train_anything(*images, folder="warned")
    assert len(read_table(warned / "leaks.csv")) == 1
    assert (warned / "figures" / "leaks.png").is_file()
    ignored = train_anything(*images, "leaks=ignore", folder="ignored")
    assert not (ignored / "leaks.csv").exists()


def some_masks(tmp_path, empty=""):
    """A table of images with masks that have foreground, but for those of a split."""
    rows, random = ["image,mask,split"], np.random.default_rng(0)
    for index, split in enumerate(["train", "val", "test"] * 3):
        mask = np.zeros((32, 32), np.uint8)
        mask[8:20, 8:20] = 255 * (split != empty)
        for name, pixels in (("image", random.integers(0, 255, (32, 32, 3), np.uint8)), ("mask", mask)):
            Image.fromarray(pixels).save(tmp_path / f"{name}{index}.png")
        rows.append(f"image{index}.png,mask{index}.png,{split}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    settings = [setting for setting in TINY if not setting.startswith("dataset")]
    pairs = f"dataset.pairs={tmp_path / 'pairs.csv'}"
    return [*settings, "dataset=folder", pairs, "dataset.size=[32,32]", "dataset.workers=0"]


def test_validation_masks_that_are_all_empty_are_refused(train_anything, tmp_path):
    with pytest.raises(BadInput, match="no validation mask has a foreground pixel: nothing can be chosen on it"):
        train_anything(*some_masks(tmp_path, empty="val"))


def test_test_masks_that_are_all_empty_are_warned_of(train_anything, tmp_path):
    with pytest.warns(UserWarning, match="No test mask has a foreground pixel"):
        train_anything(*some_masks(tmp_path, empty="test"), "leaks=ignore")


def test_a_run_goes_on_with_the_images_that_it_began_with(train_anything, command, tmp_path):
    folder = train_anything(*some_masks(tmp_path), "leaks=ignore")
    moved = tmp_path / "2018"  # a number, too
    moved.mkdir()
    for file in [*tmp_path.glob("*.png"), tmp_path / "pairs.csv"]:
        file.rename(moved / file.name)
    command("train.py", f"resume={folder}", "trainer.max_epochs=3", f"+dataset.pairs={moved / 'pairs.csv'}")
    assert len(read_table(folder / "metrics.csv")) == 3

    moved = moved.rename(tmp_path / "again")
    with pytest.raises(BadInput, match="cannot be read"):
        command("evaluate.py", f"run={folder}", "split=val", "trainer=cpu")
    command("evaluate.py", f"run={folder}", "split=val", "trainer=cpu", f"dataset.pairs={moved / 'pairs.csv'}")
    with pytest.raises(BadInput, match=r"dataset.root: the dataset of this run has no such place"):
        command("evaluate.py", f"run={folder}", "split=val", "trainer=cpu", "dataset.root=.")
    moved = moved.rename(tmp_path / "2018")

    before = (folder / "receipt.json").read_text()
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(moved / "mask0.png")
    with pytest.raises(BadInput, match="was trained on other images or masks than are there now"):
        command("train.py", f"resume={folder}", "trainer.max_epochs=4")
    assert (folder / "receipt.json").read_text() == before


def test_a_logger_may_be_left_out(train):
    folder = train("~logger")
    assert state(folder)["state"] == "done"
    assert not (folder / "tensorboard").exists()


def test_another_logger_gets_the_final_scores_too(train):
    csv = "lightning.pytorch.loggers.CSVLogger"
    folder = train(f"+logger.csv._target_={csv}", "+logger.csv.save_dir=${folder}", "trainer.max_epochs=1")
    assert state(folder)["state"] == "done"
    (table,) = folder.glob("lightning_logs/*/metrics.csv")
    assert "test/dice" in table.read_text()


def test_masks_that_are_all_empty_are_refused(train):
    with pytest.raises(BadInput, match="no training mask has a foreground pixel: there is nothing to learn"):
        train("dataset.empty=0.999999")


@pytest.mark.filterwarnings("ignore:.*the full dataset has")
def test_exported_phantoms_are_trained_on(tmp_path, train_anything):
    """Two folders here; recipes train on every other layout, see test_experiments.py."""
    script = str(ROOT / "scripts" / "export_phantom.py")
    python(script, "layout=folder", f"out={tmp_path}", "images=30", "size=[48,40]", check=True)
    where = [f"dataset.{name}={tmp_path / name}" for name in ("images", "masks")]
    small = ("dataset.size=[48,40]", "dataset.workers=0", *TINY[4:-1], "trainer.max_epochs=1")
    folder = train_anything("dataset=folder", *where, *small)
    assert state(folder)["state"] == "done"
    assert len(split_of(folder)) == 30


def test_what_stood_for_auto_is_kept_in_the_run_folder_and_used_again(train, command, capsys):
    folder = train("loss=weighted_bce", "trainer.max_epochs=1")
    kept = json.loads((folder / "auto.json").read_text())
    assert list(kept) == ["loss.pos_weight"]
    assert f"loss weighted_bce; loss.pos_weight {kept['loss.pos_weight']:.4g}; seed 42" in capsys.readouterr().out
    (folder / "auto.json").write_text('{"loss.pos_weight": 3.5}')
    assert load_config(folder).loss.pos_weight == 3.5
    command("evaluate.py", f"run={folder}", f"hydra.run.dir={folder.parent / 'evaluated'}")
    (folder / "auto.json").write_text('{"[": 3.5}')  # which the long random tests have found
    with pytest.raises(BadInput, match=r"auto.json is damaged or missing \(IndexError"):
        load_config(folder)


def test_a_run_without_auto_writes_none(run):
    assert not (run[0] / "auto.json").exists()


def test_a_loss_that_learns_nothing_from_empty_masks_is_warned_of_where_many_are(train):
    many = ("dataset.empty=0.6", "trainer.max_epochs=1")
    with pytest.warns(UserWarning, match=r"% of the training masks are empty, .* teaches Dynamit nothing"):
        train("loss=dynamit", *many)
    train("loss=dynamit", "loss.empty=background", *many, folder="other")  # a warning would be an error


def test_a_growing_term_trains(train):
    folder = train("loss=dice_surface", "callbacks=growing_term", "callbacks.grow.step=1.0")
    rows = read_table(folder / "metrics.csv")
    parts = [abs(row["train/loss/surface"]) for row in rows]
    assert parts[1] > 20 * parts[0]  # weights 0.01 and 1.01


# --- two stages, and resuming -----------------------------------------------------------------------------------------


def test_two_stages_restart_patience_and_keep_the_best_of_each(train):
    folder = train(
        *TWO_STAGE,
        "trainer.max_epochs=6",
        "optimizer.lr=0",  # nothing ever gets better, so early stopping would end each stage at once
        "callbacks.early_stopping.patience=2",
    )
    rows = read_table(folder / "metrics.csv")
    # stage 1 is carried to the switch at epoch 3; from there the patience of 2 starts anew: 3 is best, 4 and 5 are not
    assert [row["optim/stage"] for row in rows] == [1, 1, 1, 2, 2, 2]
    # but none of them shows that the network sees anything, so the last one is kept
    assert [checkpoint(folder, f"best_stage{stage}")["epoch"] for stage in (1, 2)] == [2, 5]
    assert checkpoint(folder, "best")["epoch"] == 5
    assert "train/loss/dice" in rows[3]
    assert "train/loss/dice" not in rows[2]
    assert events(folder).Scalars("optim/stage")[-1].value == 2


def test_the_terms_of_the_first_loss_end_with_it(train):
    second = ("callbacks=two_stage", "callbacks.switch.epoch=1", "loss@callbacks.switch.loss=weighted_bce_dice")
    rows = read_table(train(*second) / "metrics.csv")
    for split in ("train", "val"):
        terms = [{key for key in row if key.startswith(f"{split}/loss/")} for row in rows]
        assert terms == [
            {f"{split}/loss/{term}" for term in both} for both in (("bce", "dice"), ("weighted_bce", "dice"))
        ]


def test_the_plateau_starts_anew_at_the_switch(train):
    folder = train(
        *TWO_STAGE,
        "trainer.max_epochs=7",
        "optimizer.lr=1e-7",  # too small to change a score, so every epoch but the first of a stage is a bad one
        "scheduler.patience=2",
    )
    # without the restart the third bad epoch would be epoch 3, and epoch 4 the first at a tenth of the rate;
    # with it epoch 3 is the best of its stage, 4 and 5 are within the patience and 6 still has the first rate
    rates = [row["optim/lr"] for row in read_table(folder / "metrics.csv")]
    assert rates == pytest.approx([1e-7] * 7)


def test_the_plateau_lowers_the_rate_after_its_patience(train):
    folder = train("trainer.max_epochs=6", "optimizer.lr=1e-7", "scheduler.patience=2")
    # epochs 1, 2 and 3 are bad, so the rate falls after epoch 3
    rates = [row["optim/lr"] for row in read_table(folder / "metrics.csv")]
    assert rates == pytest.approx([1e-7] * 4 + [1e-8] * 2)


def test_early_stopping_ends_the_second_stage(train):
    folder = train(*TWO_STAGE, "trainer.max_epochs=9", "optimizer.lr=0", "callbacks.early_stopping.patience=2")
    assert len(read_table(folder / "metrics.csv")) == 6


def test_the_switch_may_set_the_learning_rate(train):
    folder = train(*TWO_STAGE, "trainer.max_epochs=5", "callbacks.switch.lr=0.0005")
    assert [row["optim/lr"] for row in read_table(folder / "metrics.csv")] == pytest.approx([1e-3] * 3 + [5e-4] * 2)


def test_a_resumed_run_may_be_longer(run, command, tmp_path):
    folder = tmp_path / "longer"
    shutil.copytree(run[0], folder)
    command("train.py", f"resume={folder}", "trainer.max_epochs=3", "dataset.memory=0.5")
    assert [row["epoch"] for row in read_table(folder / "metrics.csv")] == [0, 1, 2]
    # kept, so that the longer run can be resumed in its turn
    kept = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert (kept.trainer.max_epochs, kept.dataset.memory) == (3, 0.5)
    before = (folder / "metrics.csv").read_text()
    command("train.py", f"resume={folder}")
    assert (folder / "metrics.csv").read_text() == before


def test_the_same_command_goes_on_where_the_data_lies_now_and_with_what_the_machine_has(run, command, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(run[0], folder)
    (folder / "status.json").write_text(json.dumps(state(folder) | {"state": "interrupted"}))
    begun = OmegaConf.load(folder / ".hydra" / "config.yaml")
    begun.trainer.sync_batchnorm = True  # as of trainer=ddp
    OmegaConf.save(begun, folder / ".hydra" / "config.yaml")
    other = ["data_dir=/elsewhere", "dataset.memory=0.5", "dataset.workers=1", "+trainer.detect_anomaly=false"]
    command("train.py", *TINY, "augment=thesis", f"hydra.run.dir={folder}", *other)
    assert state(folder)["state"] == "done"
    kept = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert (kept.data_dir, kept.dataset.memory, kept.dataset.workers) == ("/elsewhere", 0.5, 1)
    assert "sync_batchnorm" not in kept.trainer
    assert (folder / "metrics.csv").read_text() == (run[0] / "metrics.csv").read_text()
    assert (folder / "per_image_test.csv").read_text() == (run[0] / "per_image_test.csv").read_text()


def test_a_run_that_early_stopping_has_ended_trains_no_further_when_resumed(train, command):
    folder = train("optimizer.lr=0", "callbacks.early_stopping.patience=1", "trainer.max_epochs=9")
    before = (folder / "metrics.csv").read_text()
    for longer in ((), ("trainer.max_epochs=12",)):
        command("train.py", f"resume={folder}", *longer)
        assert (folder / "metrics.csv").read_text() == before
        assert json.loads((folder / "selection.json").read_text())["test_uses"] == 1


def test_what_has_been_looked_at_stays_looked_at_when_a_run_goes_on(run, command, tmp_path):
    folder = tmp_path / "longer"
    shutil.copytree(run[0], folder)
    before = json.loads((folder / "selection.json").read_text())["test_uses"]
    command("train.py", f"resume={folder}", "trainer.max_epochs=3")
    assert json.loads((folder / "selection.json").read_text())["test_uses"] == before + 1


def test_a_run_that_is_done_is_not_scored_again_by_going_on(run, command, tmp_path, capsys):
    folder = tmp_path / "done"
    shutil.copytree(run[0], folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    command("train.py", f"resume={folder}")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert f"{folder}: done after 2 epochs; trainer.max_epochs=<more> trains longer, " in capsys.readouterr().out


def test_a_cosine_is_not_made_longer(train, command):
    folder = train("scheduler=cosine", "trainer.max_epochs=1")
    with pytest.raises(BadInput, match="the cosine of this run ends at epoch 1"):
        command("train.py", f"resume={folder}", "trainer.max_epochs=3")


def test_a_setting_that_is_none_does_not_spoil_the_run_that_it_was_typed_for(run, command, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    before = (folder / ".hydra" / "config.yaml").read_text()
    with pytest.raises(BadInput, match=r"trainer.max_epoch=7: a resumed run keeps its config"):
        command("train.py", f"resume={folder}", "+trainer.max_epoch=7")
    with pytest.raises(BadInput, match=r"trainer.max_epochs=1: 2 epochs of this run are trained already"):
        command("train.py", f"resume={folder}", "trainer.max_epochs=1")
    assert state(folder)["state"] == "done"
    with pytest.raises(InstantiationException, match="devices"):
        command("train.py", f"resume={folder}", "trainer.max_epochs=7", "trainer.devices=none")
    assert (folder / ".hydra" / "config.yaml").read_text() == before
    with claimed(folder):
        done = python(str(ROOT / "src" / "train.py"), f"resume={folder}", "trainer.max_epochs=7")
    assert done.returncode != 0
    assert "Another process is training or searching in" in done.stderr
    assert (folder / ".hydra" / "config.yaml").read_text() == before


@pytest.mark.filterwarnings("ignore:.*is damaged.*The last epoch is scored in its place")
def test_a_damaged_best_checkpoint_does_not_lose_the_training(run, command, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"PK")
    (folder / "status.json").write_text(json.dumps(state(folder) | {"state": "interrupted"}))
    command("train.py", f"resume={folder}")
    assert state(folder)["scored"] == "the last epoch, for best.ckpt is damaged"
    assert state(folder)["state"] == "done"


def test_a_run_without_its_status_is_not_written_over(run, tmp_path):
    folder = tmp_path / "part"
    shutil.copytree(run[0] / ".hydra", folder / ".hydra")
    before = (folder / ".hydra" / "config.yaml").read_text()
    done = python(str(ROOT / "src" / "train.py"), f"resume={folder}", cwd=tmp_path)
    assert done.returncode == 2
    assert "has no status.json: it is not the whole folder of a run" in done.stderr
    assert (folder / ".hydra" / "config.yaml").read_text() == before


def test_a_resumed_run_is_not_another(run, command):
    folder, _ = run
    with pytest.raises(BadInput, match=r"only trainer.max_epochs may change, where it runs"):
        command("train.py", f"resume={folder}", "seed=3")


# --- devices ----------------------------------------------------------------------------------------------------------


def test_a_score_inside_a_field_of_view_needs_one(train):
    with pytest.raises(BadInput, match="needs a field of view, and this dataset has none"):
        train("monitor=val/dice_fov")


def test_several_processes_and_a_multirun_are_refused(tmp_path):
    settings = [*(setting for setting in TINY if not setting.startswith("trainer")), "trainer=ddp"]
    settings += ["trainer.accelerator=cpu", "trainer.devices=2", "loss=dice,bce"]
    done = python(str(ROOT / "src" / "train.py"), "-m", *settings, cwd=tmp_path)
    assert done.returncode == 1
    assert "A multirun trains with one process per job" in done.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("+trainer.fast_dev_run=true", "A quick try of everything is trainer=debug"),
        ("+trainer.max_steps=3", "Set trainer.max_epochs"),
        ("+trainer.limit_val_batches=0", "must be more than 0"),
    ],
)
def test_a_trainer_that_would_leave_nothing_to_score_is_refused_before_it_trains(train, setting, message):
    with pytest.raises(BadInput, match=message):
        train(setting)


@pytest.mark.parametrize("interval", [0.5, 3, 1])
def test_validation_within_an_epoch_is_refused(train, interval):
    """Its checkpoint would be one of the middle of an epoch."""
    with pytest.raises(BadInput, match="an epoch is validated when it ends"):
        train(f"+trainer.val_check_interval={interval}")


@pytest.mark.parametrize("precision", ["bf16-true", "64", "64-true"])
def test_weights_of_another_precision_are_refused(train, precision):
    with pytest.raises(BadInput, match=rf"trainer.precision={precision}: weights stay in float32"):
        train(f"trainer.precision={precision}")


def test_a_sampler_of_lightning_is_refused(train):
    """It would share out once more what ours have shared out."""
    with pytest.raises(BadInput, match="use_distributed_sampler must be false"):
        train("trainer.use_distributed_sampler=true")


def test_validation_less_often_than_every_epoch_is_refused(train):
    with pytest.raises(BadInput, match="check_val_every_n_epoch must be 1"):
        train("+trainer.check_val_every_n_epoch=2")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_two_stages_train_on_a_gpu_in_mixed_precision(train):
    folder = train(*TWO_STAGE, "trainer=gpu", "trainer.max_epochs=5")
    assert [row["optim/stage"] for row in read_table(folder / "metrics.csv")] == [1, 1, 1, 2, 2]


def test_a_gpu_that_is_not_there_is_refused_before_images_are_read(train, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match=r"PyTorch sees none. Use trainer=auto or trainer=cpu"):
        train("trainer=gpu")
    with pytest.raises(BadInput, match=r"takes all GPUs, and PyTorch sees none. Use trainer=auto; for two processes"):
        train("trainer=ddp", "retry=true")
    assert not (tmp_path / "run" / "split.csv").exists()


def test_a_run_does_without_the_callbacks_and_the_logger_that_may_be_left_out(train):
    optional = set(OmegaConf.load(ROOT / "conf" / "callbacks" / "default.yaml")) - set(NEEDED)
    assert len(optional) == 6
    folder = train(*(f"~callbacks.{name}" for name in sorted(optional)), folder="bare")
    assert (folder / "model" / "model.json").is_file()
    folder = train("~logger.tensorboard", folder="without_curves")
    assert state(folder)["state"] == "done"
    assert not (folder / "tensorboard").exists()


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_on_a_cpu_without_hardware_for_it_is_warned_of(monkeypatch, precision):
    config = OmegaConf.create(TRAINER | {"accelerator": "cpu", "precision": precision})
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    with pytest.warns(UserWarning, match="over 100 times as long"):
        build_trainer(config)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True, "amx_fp16": True}, raising=False)
    assert build_trainer(config)["precision"] == precision  # a warning would be an error here


def test_two_processes_score_every_image_once_like_one(tmp_path):
    """Evaluation is divided between processes; training sees the same number of steps in each."""
    tables = []
    for name, extra in (("one", []), ("two", DDP)):
        folder = tmp_path / name
        settings = [setting for setting in TINY if extra == [] or not setting.startswith("trainer=")]
        # batches of one: rank 0 has a validation batch more, so nothing in validation may wait for the other process
        settings += ["optimizer.lr=0", "loss=boundary_dou", "dataset.batch_size=1", "trainer.max_epochs=1"]
        script = [str(ROOT / "src" / "train.py"), *settings, *extra]
        done = python(*script, f"hydra.run.dir={folder}", timeout=240)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        with (folder / "per_image_test.csv").open() as file:
            tables.append(list(csv.reader(file)))
    assert tables[0] == tables[1]


def test_two_processes_learn_what_one_does_with_their_batches_together(tmp_path, tried):
    """Gradients are averaged: with losses that are means over images or pixels, and without batch normalisation.

    With plain steps: Adam's do not depend on a gradient's size, so a sum would pass for a mean, and what is nearly 0 is
    blown up with its rounding.
    """
    training = ("augment=thesis", "optimizer=sgd", "trainer.max_epochs=3")
    states, tables = [], []
    for name, extra in (
        ("one", ["dataset.batch_size=4"]),
        ("two", ["dataset.batch_size=2", *DDP]),
    ):
        settings = [setting for setting in TINY if name == "one" or not setting.startswith("trainer=")]
        script = [str(ROOT / "src" / "train.py"), *settings, *training, *extra]
        done = python(*script, f"hydra.run.dir={tmp_path / name}", timeout=240)
        assert done.returncode == 0, done.stderr
        states.append(checkpoint(tmp_path / name, "last")["state_dict"])
        tables.append(read_table(tmp_path / name / "per_image_test.csv"))
        metrics = read_table(tmp_path / name / "metrics.csv")
        assert [row["step"] for row in metrics] == [3, 6, 9]
    change = max(float((states[0][key] - states[1][key]).abs().max()) for key in states[0])
    assert change < 1e-4  # rounding; with twice the gradient it is .5
    assert [row["image"] for row in tables[0]] == [row["image"] for row in tables[1]]
    assert [row["dice"] for row in tables[0]] == pytest.approx([row["dice"] for row in tables[1]], abs=1e-3)
    words = "weights of all layers within 1e-4 of one process with the batches together; each image scored once"
    tried("The same again", "two processes (DDP on the CPU, gloo)", words)


BROKEN_LOSS = """
import os
from raremask.losses.pixel import BCE

class Broken(BCE):
    calls = 0

    def forward(self, logits, mask):
        Broken.calls += 1
        loss = super().forward(logits, mask)
        return loss * float("nan") if os.environ.get("LOCAL_RANK") == "1" and Broken.calls > 4 else loss
"""


def test_of_two_processes_that_is_named_in_which_a_number_went_wrong_first(tmp_path):
    """The second one is at fault; the first one only gets its gradient."""
    (tmp_path / "broken.py").write_text(BROKEN_LOSS)
    settings = [setting for setting in TINY if not setting.startswith("trainer=")]
    settings += [*DDP, "dataset.batch_size=1"]
    settings += ["loss=bce", "loss._target_=broken.Broken", f"hydra.run.dir={tmp_path / 'run'}"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = python(str(ROOT / "src" / "train.py"), *settings, env=environment, timeout=240)
    assert done.returncode == 2, done.stderr
    stopped = json.loads((tmp_path / "run" / "stopped.json").read_text())
    assert stopped["no_number"] == "the loss"
    assert stopped["step"] == 4  # a batch of validation came before
    assert "Traceback" not in done.stderr  # of the second process neither, which Lightning starts
    assert "the formula of Broken" in state(tmp_path / "run")["reason"]


def test_processes_that_slurm_starts_share_a_folder(tmp_path, monkeypatch):
    for name, value in {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    assert run_folder(None, "outputs/runs/cvc/dice/2026") == "outputs/runs/cvc/dice/slurm-12"
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert run_folder(None, "outputs/runs/cvc/dice/2026") == "outputs/runs/cvc/dice/2026"


# --- sweeps -----------------------------------------------------------------------------------------------------------


def test_a_sweep_trains_every_combination_in_a_folder_that_names_it(tmp_path):
    script = [str(ROOT / "src" / "train.py"), "-m", *TINY, "trainer.max_epochs=1"]
    done = python(*script, "loss=dice,dynamit", "seed=0,1", "sweep=study", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folders = sorted(path for path in (tmp_path / "outputs" / "sweeps" / "study").iterdir() if path.is_dir())
    assert len(folders) == 4
    assert [state(folder)["loss"] for folder in folders] == ["dice", "dice", "dynamit", "dynamit"]
    assert [state(folder)["seed"] for folder in folders] == [0, 1, 0, 1]
    assert all(folder.name.startswith("phantom_unet_") for folder in folders)
    assert not any(set("=,") & set(folder.name) for folder in folders)


def test_build_trainer_takes_the_fastest_safe_precision(monkeypatch):
    config = OmegaConf.create(TRAINER | {"accelerator": "auto", "precision": "auto"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert build_trainer(config)["precision"] == "bf16-mixed"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    assert build_trainer(config)["precision"] == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert build_trainer(config)["precision"] == "bf16-mixed"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert build_trainer(config)["precision"] == "16-mixed"
    config.accelerator = "cpu"
    assert build_trainer(config)["precision"] == "32-true"
