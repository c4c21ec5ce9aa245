"""Comparisons of runs: what is read, what is said, and what is written."""

import csv
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image

from conftest import ROOT
from raremask import BadInput
from raremask.compare import drawings, results
from raremask.compare.document import Grid, Notes, Paragraph, Section, write
from raremask.compare.objections import objections
from raremask.compare.report import compare, span, verdict, words
from raremask.compare.statistics import Estimate, Pair, pairs
from raremask.runfolder import write_table
from raremask.scoretables import write_scores
from raremask.tables import read_table

QUALITY = {"dice": 0.55, "bce_dice": 0.6, "dynamit": 0.8}


@pytest.fixture
def sweep(tmp_path):
    """Return a function that writes folders as runs leave them: losses of known quality on made-up images."""

    def make(losses=QUALITY, seeds=(0, 1, 2), images=24, groups=8, folds=(None,)):
        for fold in folds:
            for loss, quality in losses.items():
                for seed in seeds:
                    folder = tmp_path / "s" / f"{loss}_{seed}_{fold}"
                    one_run(folder, loss, quality, seed, images, groups, fold)
        return tmp_path / "s"

    return make


def one_run(folder, loss, quality, seed, images=24, groups=8, fold=None, shift=0):
    random = np.random.default_rng([seed, len(loss), fold or 0])
    patients = np.random.default_rng(1).normal(0, 0.05, groups)
    names = [f"{(fold or 0) * images + image:03d}" for image in range(images)]
    group = [str((fold or 0) * groups + image % groups) for image in range(images)]
    share = np.clip(quality + patients[np.arange(images) % groups] + random.normal(0, 0.02, images), 0.01, 0.99)
    area = np.linspace(40, 400, images).round().astype(int) + shift
    tp = (share * area).round().astype(int)
    counts = np.stack([tp, area - tp, area - tp, 10_000 - 2 * area + tp], axis=1)
    more = [{"hd95": float(value), "objects": 2.0} for value in 20 * (1 - share)]
    (folder / ".hydra").mkdir(parents=True)
    write_scores(folder / "per_image_test.csv", names, group, {"": counts, "_default": counts}, "one", more)
    painted = zip(names, tp, strict=True)
    rows = [{"image": name, "height": 100, "width": 100, "runs": f"1 {area}"} for name, area in painted]
    write_table(folder / "masks_test.csv", rows)
    write_table(folder / "metrics.csv", [{"epoch": epoch, "val/dice": quality * epoch / 4} for epoch in range(5)])
    curve = (quality - np.abs(np.arange(1000) / 1000 - 0.4)).clip(0).tolist()
    selection = {"selection": {"threshold": 0.4}, "metric": "dice", "curve": curve, "unprocessed": quality}
    selection |= {"test_uses": 1}
    (folder / "selection.json").write_text(json.dumps(selection))
    status = {"state": "done", "dataset": "cvc", "model": "unet", "loss": loss, "seed": seed, "empty": "one"}
    (folder / "status.json").write_text(json.dumps(status | {"seconds": 60.0, "memory_gib": 1.5}))
    (folder / "split.csv").write_text(f"image,split\n{fold}\n")
    dataset = {"_target_": "raremask.data.cvc.CVC", "root": "nowhere", "size": [9, 9], "channels": 3, "batch_size": 1}
    config = {"trainer": {"max_epochs": 5}, "dataset": dataset, "model": {}, "split": {"fold": fold, "file": None}}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"loss={loss}", f"seed={seed}"]))


def look(run):
    def see(name):
        mask = np.zeros((100, 100), bool)
        mask[:10] = True
        return np.full((100, 100, 3), 99, np.uint8), mask

    return see


class Page(HTMLParser):
    """What of a page loads something, and all of its text."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.tags, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for key, value in attributes if key in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def report(tmp_path, folder, **settings):
    headline = compare([folder], tmp_path / "out", look, **({"draws": 500} | settings))
    return headline, Page((tmp_path / "out" / "index.html").read_text()), (tmp_path / "out" / "report.md").read_text()


# --- reading ----------------------------------------------------------------------------------------------------------


def labelled(folder):
    return results.labelled([results.read(one) for one in results.find([folder])])


def test_runs_are_called_by_the_settings_in_which_they_differ(sweep):
    folder = sweep()
    assert {run.label for run in labelled(folder)} == set(QUALITY)
    for run in folder.iterdir():
        overrides = yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text())
        base = 8 if run.name.startswith("dice") else 16
        (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([*overrides, f"model.base={base}", "sweep=s"]))
    assert {run.label for run in labelled(folder)} == {
        "dice base=8",
        "bce_dice base=16",
        "dynamit base=16",
    }


def test_a_file_is_called_by_its_name_where_that_tells_it_from_others(sweep):
    folder = sweep()

    def weights(**files):
        for run in folder.iterdir():
            file = files[run.name.partition("_")[0]]
            (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"model.encoder_weights={file}"]))
        return {run.label.rpartition("=")[2] for run in labelled(folder)}

    assert weights(dice="/far/away/a.pth", bce="b.pth", dynamit="null") == {"a.pth", "b.pth", "null"}
    assert weights(dice="/far/a.pth", bce="/near/a.pth", dynamit="null") == {"/far/a.pth", "/near/a.pth", "null"}


def test_what_a_recipe_chooses_goes_without_saying(sweep):
    folder = sweep()

    def choose(loss, **choices):
        for run in folder.glob(f"{loss}_*"):
            status = json.loads((run / "status.json").read_text())
            (run / "status.json").write_text(json.dumps(status | choices))

    choose("dice", experiment="old", augment="thesis", optimizer="sgd", model="unet")
    choose("bce_dice", experiment="new", augment="photo", optimizer="adamw", model="unet")
    choose("dynamit", experiment="new", augment="photo", optimizer="adamw", model="unet_mobilenet")
    labels = {"old dice model=unet", "new bce_dice model=unet"}
    assert {run.label for run in labelled(folder)} == labels | {"new dynamit model=unet_mobilenet"}
    choose("dice", experiment="bce_dice")  # a recipe that is called like a loss
    assert "experiment=bce_dice dice model=unet" in {run.label for run in labelled(folder)}


def test_seeds_are_rows_and_folds_are_one(sweep):
    table = results.table(labelled(sweep(folds=(0, 1))), "dice")
    assert {label: scores.shape for label, scores in table.scores.items()} == dict.fromkeys(QUALITY, (3, 48))
    assert len(set(table.groups)) == 16
    assert np.allclose(table.object_size, table.foreground * 10_000 / 2)
    assert table.lacking == {}


def test_folds_that_test_the_same_images_are_refused_as_such(sweep):
    (run,) = labelled(sweep(losses={"dice": 0.5}, seeds=(0,), folds=(0,)))
    with pytest.raises(BadInput, match="of folds 0 and 1, whose test images are the same, as the dataset fixes them"):
        results.merged([run, replace(run, fold=1)])


def test_two_runs_of_one_seed_and_image_are_refused(sweep):
    folder = sweep(losses={"dice": 0.5}, seeds=(0,))
    (folder / "dice_0_None").rename(folder / "first")
    sweep(losses={"dice": 0.5}, seeds=(0,))
    with pytest.raises(
        BadInput, match=r"dice_0_None and .*first are both runs of dice with seed 0, tested on 24 of the"
    ):
        results.table(labelled(folder), "dice")


def test_what_cannot_be_compared_is_refused(sweep, tmp_path):
    with pytest.raises(BadInput, match="There is no folder"):
        results.find([tmp_path / "nowhere"])
    with pytest.raises(BadInput, match="There is no run at or below"):
        results.find([tmp_path])
    folder = sweep(seeds=(0,))
    for name in ("dise", "group", "foreground", "tp"):
        with pytest.raises(BadInput, match=rf"metric={name} is no score in the tables; there are: dice, "):
            results.table(labelled(folder), name)
    status = folder / "dice_0_None" / "status.json"
    status.write_text(status.read_text().replace("cvc", "drive"))
    with pytest.raises(BadInput, match="Runs of different datasets cannot be compared: cvc, drive"):
        labelled(folder)


def test_where_some_have_no_score_images_without_foreground_are_left_out_for_all(sweep):
    folder = sweep(seeds=(0,))
    for run in folder.iterdir():
        lines = (run / "per_image_test.csv").read_text().splitlines()
        columns = lines[0].split(",")
        rows = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
        rows[0] |= {"tp": 0, "fn": 0, "foreground": 0.0, "dice": "" if run.name.startswith("dynamit") else 0.0}
        write_table(run / "per_image_test.csv", rows)
    table = results.table(labelled(folder), "dice")
    assert (len(table.images), table.empties) == (23, 1)
    assert all(np.isfinite(scores).all() for scores in table.scores.values())
    assert table.alarms == {"bce_dice": 1, "dice": 1, "dynamit": 1}
    assert "1 images without foreground are left out, and with them what was painted there: on " in objected(folder)


def test_runs_that_lack_a_score_or_have_other_patients_are_refused(sweep):
    folder = sweep(seeds=(0,))
    table = folder / "dice_0_None" / "per_image_test.csv"
    whole = table.read_text()
    rows = read_table(table)
    write_table(table, [{key: value for key, value in row.items() if key != "hd95"} for row in rows])
    with pytest.raises(BadInput, match=r"dice seed 0 has no hd95 in its per_image_test.csv. Move that file"):
        results.table(labelled(folder), "hd95")
    table.write_text(whole)
    write_table(table, [row | {"group": "p"} for row in rows])
    with pytest.raises(BadInput, match=r"do not have the same groups \(patients\): 000 is of 0 and of p"):
        results.table(labelled(folder), "dice")


def test_a_missing_fold_is_named(sweep):
    folder = sweep(folds=(0, 1))
    shutil.rmtree(folder / "dice_1_0")
    assert "a fold is missing. Lacking: dice seed 1 (24)" in objected(folder)


def test_a_score_that_is_defined_elsewhere_stands_beside_the_one_that_decides(sweep, tmp_path):
    folder = sweep()
    for run in folder.iterdir():  # without foreground dice has no score, as with empty=skip, and ece has
        rows = read_table(run / "per_image_test.csv")
        for index, row in enumerate(rows):
            row |= {"ece": 0.1}
            if index < 3:
                row |= {"tp": 0, "fn": 0, "fp": 0, "foreground": 0.0, "dice": float("nan")}
        write_table(run / "per_image_test.csv", rows)
    _, _, text = report(tmp_path, folder)
    assert "21 test images" in text
    assert "3 test images with an empty mask are left out" in text
    assert "0.100 (0.100-0.100)" in text


def test_every_score_is_of_the_same_images_for_all(sweep, tmp_path):
    folder = sweep(losses={"dice": 0.5, "bce": 0.5})
    for run in folder.iterdir():  # as with empty=skip: an empty mask has a Dice of 0 if it is painted on, else none
        rows = read_table(run / "per_image_test.csv")
        for row in rows:
            row |= {"specificity": 0.9, "dice": 0.5}
        painted = run.name.startswith("dice")
        for row in rows[:12]:
            row |= {"tp": 0, "fn": 0, "fp": 7 * painted, "foreground": 0.0, "dice": 0.0 if painted else float("nan")}
        write_table(run / "per_image_test.csv", rows)
    _, _, text = report(tmp_path, folder, metric="specificity")
    lines = text.partition("## Scores")[2].partition("## Who")[0].splitlines()
    scores = {line.split("|")[1].strip(): line for line in lines if line.startswith(("| bce ", "| dice "))}
    assert all("0.500 (0.500-0.500)" in line for line in scores.values())
    head = next(line for line in lines if "false alarms" in line)
    alarms = head.split("|").index(" false alarms ")
    assert scores["dice"].split("|")[alarms].strip().startswith("1.000")
    assert scores["bce"].split("|")[alarms].strip().startswith("0.000")


def test_it_is_said_in_how_many_folds_the_better_one_is_better(sweep, tmp_path):
    folder = sweep(losses={"dice": 0.5, "bce": 0.6}, folds=(0, 1, 2))
    for seed in range(3):  # in one fold it is the other way round
        rows = [
            row | {"dice": row["dice"] - 0.2} for row in read_table(folder / f"bce_{seed}_1" / "per_image_test.csv")
        ]
        write_table(folder / f"bce_{seed}_1" / "per_image_test.csv", rows)
    _, _, text = report(tmp_path, folder)
    assert "All seeds were trained on the same images" in text
    line = next(line for line in text.splitlines() if line.startswith("| bce | dice |"))
    assert line.split("|")[5].strip() == "2 of 3"
    assert "| folds |" in text
    split = folder / "bce_0_1" / ".hydra" / "config.yaml"  # folds of its own
    split.write_text(split.read_text().replace("fold: 1", "fold: 2"))
    _, _, text = report(tmp_path, folder)
    assert "| folds |" not in text
    assert "All seeds were trained on the same images" not in text


def emptied(folder, number, empty="one", painted=lambda run: True):
    """Take the foreground of some images away: Dice is 0 where something is painted, else what the policy says."""
    for run in folder.iterdir():
        rows = read_table(run / "per_image_test.csv")
        for row in rows[:number]:
            left = {"one": 1.0, "skip": float("nan")}[empty]
            found = painted(run)
            row |= {"tp": 0, "fn": 0, "fp": 7 * found, "foreground": 0.0, "dice": 0.0 if found else left}
        write_table(run / "per_image_test.csv", rows)
        status = json.loads((run / "status.json").read_text())
        (run / "status.json").write_text(json.dumps(status | {"empty": empty}))


@pytest.mark.parametrize("one_leaves_it", [True, False])
def test_with_skip_empty_masks_are_left_out_whether_or_not_a_run_leaves_one_empty(sweep, one_leaves_it):
    folder = sweep()
    emptied(folder, 3, "skip", lambda run: not (one_leaves_it and run.name == "dice_0_None"))
    table = results.table(labelled(folder), "dice")
    assert (table.empties, len(table.images)) == (3, 21)
    assert table.alarms == {"bce_dice": 1, "dice": pytest.approx(2 / 3 if one_leaves_it else 1), "dynamit": 1}


def test_a_score_in_view_leaves_out_what_has_no_foreground_in_view(sweep):
    folder = sweep()
    for run in folder.iterdir():
        rows = read_table(run / "per_image_test.csv")
        for index, row in enumerate(rows):
            inside = index > 1  # the first two have foreground only outside of the field of view
            seen = {"tp_fov": row["tp"] * inside, "fn_fov": row["fn"] * inside, "fp_fov": row["fp"], "tn_fov": 99}
            row |= seen | {"foreground_fov": row["foreground"] * inside, "dice_fov": row["dice"] * inside}
        write_table(run / "per_image_test.csv", rows)
        status = json.loads((run / "status.json").read_text())
        (run / "status.json").write_text(json.dumps(status | {"empty": "skip"}))
    assert results.table(labelled(folder), "dice_fov").empties == 2
    assert results.table(labelled(folder), "dice").empties == 0


def test_what_decides_stays_in_the_table_of_scores(sweep, tmp_path):
    folder = sweep()
    emptied(folder, 4)
    said, _, text = report(tmp_path, folder, metric="dice_filled")
    assert "highest mean Dice if not empty" in said
    assert "| Dice if not empty |" in text
    assert "| left empty |" in text
    assert "4 images without foreground are left out, and with them what was painted there: on bce_dice 100%" in said


@pytest.mark.parametrize(
    ("threshold", "reached", "lost"),
    [(0.4, 0.8, 0.0), (0.03, 0.8, 0.0), (0.97, 0.8, 0.0), (1 - 2**-15, 0.9, 0.1), (2**-15, 0.9, 0.1)],
)
def test_a_threshold_is_not_off_by_more_than_there_is(sweep, tmp_path, threshold, reached, lost):
    folder = sweep(seeds=(0,))
    run = next(folder.iterdir())
    chosen = {"selection": {"threshold": threshold}, "curve": [0.02] + [0.8] * 999, "unprocessed": reached}
    selection = json.loads((run / "selection.json").read_text()) | chosen
    (run / "selection.json").write_text(json.dumps(selection))
    assert results.read(run).threshold_drop() == pytest.approx(lost)
    report(tmp_path, folder)  # and is drawn
    (run / "selection.json").write_text(json.dumps({k: v for k, v in selection.items() if k != "unprocessed"}))
    with pytest.raises(BadInput, match="of an older version; leave this run out"):
        results.read(run)


def test_a_longer_training_beside_a_shorter_one_has_its_length_in_its_name(sweep):
    folder = sweep(losses={"dice": 0.5}, seeds=(0,))
    (folder / "dice_0_None").rename(folder / "longer")
    config = folder / "longer" / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("max_epochs: 5", "max_epochs: 9"))
    sweep(losses={"dice": 0.5}, seeds=(0,))
    assert {run.label for run in labelled(folder)} == {"dice max_epochs=5", "dice max_epochs=9"}
    assert "Unequal budgets: trainer.max_epochs is 5 or 9" in objected(folder)


def test_what_makes_no_method_makes_no_label(sweep):
    folder = sweep()
    for run in folder.glob("*_2_*"):
        overrides = yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text())
        (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([*overrides, "retry=true", "leaks=ignore"]))
    assert {run.label for run in labelled(folder)} == set(QUALITY)


# --- what a reviewer would say ----------------------------------------------------------------------------------------


def objected(folder):
    runs = labelled(folder)
    return " ".join(objections(runs, results.table(runs, "dice")))


def test_a_sound_sweep_has_no_objections(sweep, tmp_path):
    assert objected(sweep()) == ""
    said, page, _ = report(tmp_path, tmp_path / "s")
    assert said.endswith("What a reviewer would object to:\n- Nothing that was looked for.")
    assert "What a reviewer would object toNothing that was looked for." in page.text


def test_folds_repeated_with_other_splits_are_fair_to_all_losses(sweep):
    folder = sweep(folds=(0, 1))
    for run in folder.iterdir():
        (run / "split.csv").write_text(f"of {'_'.join(run.name.split('_')[-2:])}")  # seed and fold
    assert objected(folder) == ""


def change(file, **facts):
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: change(run / "status.json", state="failed", reason="no"), "1 of 9 runs are not done and left out"),
        (
            lambda run: change(run / "selection.json", test_uses=4),
            "1 of the runs looked at test more than once, one 4 times",
        ),
        (
            lambda run: change(run / "selection.json", groups=1),
            "1 of the runs had a single patient or sequence to choose threshold and post-processing on",
        ),
        (lambda run: (run / "leaks.csv").touch(), "Images of different splits are nearly the same"),
        (lambda run: (run / "split.csv").write_text("other"), "were trained on different ones"),
        (
            lambda run: (run / ".hydra" / "config.yaml").write_text(
                (run / ".hydra" / "config.yaml").read_text().replace("max_epochs: 5", "max_epochs: 9")
            ),
            "Unequal budgets: trainer.max_epochs is 5 or 9",
        ),
        (
            lambda run: (run / ".hydra" / "config.yaml").write_text(
                (run / ".hydra" / "config.yaml").read_text().replace("model: {}", "model: {base: 8}")
            ),
            "The runs of dynamit are not of one config: they differ in model",
        ),
    ],
)
def test_what_a_reviewer_would_object_to_is_said(sweep, spoil, said):
    folder = sweep()
    spoil(folder / "dynamit_2_None")
    assert said in objected(folder)


def configured(run, **groups):
    config = run / ".hydra" / "config.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | groups))


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"optimizer": {"lr": 0.1}}, "more than their names say: optimizer.lr is 0.1 or nothing."),
        ({"trainer": {"max_epochs": 5, "gradient_clip_val": 1.0}}, "trainer.gradient_clip_val is 1.0 or nothing."),
        ({"trainer": {"max_epochs": 5, "accelerator": "gpu", "devices": 2}}, ""),
        ({"loss": {"smooth": 3.0}}, ""),  # of another loss
    ],
)
def test_what_differs_without_being_said_is_said(sweep, groups, said):
    folder = sweep()
    for seed in range(3):
        configured(folder / f"dynamit_{seed}_None", **groups)
    assert said in objected(folder)
    assert bool(said) == bool(objected(folder))


def test_a_setting_of_the_trainer_that_was_typed_makes_a_label(sweep):
    folder = sweep()
    for run in folder.iterdir():
        (run / ".hydra" / "overrides.yaml").write_text("[trainer=cpu, trainer.max_epochs=5]")
    for seed in range(3):
        (folder / f"dynamit_{seed}_None" / ".hydra" / "overrides.yaml").write_text("[trainer.gradient_clip_val=0.5]")
    labels = {run.label for run in results.labelled([results.read(path) for path in results.find([folder])])}
    assert labels == {"bce_dice", "dice", "dynamit gradient_clip_val=0.5"}


def test_few_seeds_few_groups_other_masks_and_collapse_are_said(sweep):
    folder = sweep(seeds=(0, 1), groups=3)
    one_run(folder / "bce", "bce", 0.02, seed=0, groups=3, shift=7)
    table = (folder / "bce" / "per_image_test.csv").read_text().splitlines()
    columns = table[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in table[1:]]
    for row in rows:
        row["fn"] = int(row["fn"]) + int(row["tp"])
        row["tn"] = int(row["tn"]) + int(row["fp"])
        row["tp"] = row["fp"] = 0
    write_table(folder / "bce" / "per_image_test.csv", rows)
    said = objected(folder)
    assert "Fewer than 3 seeds: bce (1), bce_dice (2), dice (2), dynamit (2)" in said
    # 2 of the 8 changes of sign of 3 groups are as far, and there are 6 pairs
    assert "With 3 groups (patients, sequences) in the test split and 6 pairs the smallest corrected p value" in said
    assert "1 of the runs collapsed: bce seed 0" in said
    assert "24 of 24 masks of images with foreground are empty" in said
    assert "The true masks of 24 images are not the same in all runs" in said


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_headline_says_which_by_how_much_and_how_sure(sweep, tmp_path):
    headline, page, text = report(tmp_path, sweep(groups=12))
    assert headline.startswith("dynamit has the highest mean Dice: 0.8")
    assert "more than bce_dice, the runner-up and the baseline: told apart" in headline
    assert headline.splitlines()[0] in page.text
    assert any(line.split() == ["all", "background", "0.000", "-", "-", "-"] for line in headline.splitlines())
    for said in ("24 test images of 12 groups", "lost at threshold", "60 s", "1.5 GiB", "0 of 3"):
        assert said in page.text
    assert text.startswith("# cvc: which loss, by how much, how sure")


def test_a_run_that_has_failed_is_counted_in_the_table(sweep, tmp_path):
    folder = sweep()
    failed = folder / "dynamit_3_None"
    one_run(failed, "dynamit", 0.8, seed=3)
    (failed / "per_image_test.csv").unlink()
    (failed / "status.json").write_text(
        json.dumps(json.loads((failed / "status.json").read_text()) | {"state": "failed"})
    )
    said, _, text = report(tmp_path, folder)
    assert "1 of 4" in next(line for line in text.splitlines() if line.startswith("| dynamit "))
    assert "1 of 10 runs are not done and left out: dynamit seed 3" in said


def test_what_decides_stands_first_with_what_it_is_at_one_half(sweep, tmp_path):
    said, _, text = report(tmp_path, sweep(), metric="iou")
    assert "| IoU | IoU at 0.5 | Dice | Dice at 0.5 |" in text
    assert [heading in said.splitlines()[2] for heading in ("IoU", "IoU at 0.5")] == [True, True]


def test_the_page_needs_nothing_but_itself(sweep, tmp_path):
    folder = sweep()
    _, page, text = report(tmp_path, folder)
    assert page.loads
    assert all(address.startswith("data:image/png;base64,") for address in page.loads)
    assert "script" not in page.tags
    named = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(named) == len(page.loads)
    for name in named:
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.size[0] > 300
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 * 24
    mine = [float(row["dice"]) for row in rows if (row["label"], row["seed"]) == ("dynamit", "1")]
    assert mine == [row["dice"] for row in read_table(folder / "dynamit_1_None" / "per_image_test.csv")]


def test_the_tables_hold_what_the_statistics_say(sweep, tmp_path):
    folder = sweep()
    _, _, text = report(tmp_path, folder)
    table = results.table(labelled(folder), "dice")
    pair = pairs(table.scores, table.groups, 0.01)["bce_dice", "dice"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    header = next(row for row in rows if row[0] == "better")
    shown = dict(zip(header, next(row for row in rows if row[:2] == ["bce_dice", "dice"]), strict=True))
    for heading in ("permutation", "Holm", "Wilcoxon", "effect"):
        assert float(shown[heading]) == pytest.approx(getattr(pair, heading.lower()), rel=0.1)
    assert shown["difference"] == span(pair.difference)
    assert shown["win/tie/loss"] == f"{pair.wins}/{pair.ties}/{pair.losses}"
    scores = next(row for row in rows if row[0] == "dynamit")
    assert scores[1].startswith(f"{table.scores['dynamit'].mean():.3f} (")
    assert scores[-1] == "0.100"  # what the curve of one_run falls 0.1 beside its peak


def test_folds_are_painted_from_the_masks_of_each(sweep, tmp_path):
    _, page, _ = report(tmp_path, sweep(folds=(0, 1)))
    assert "not drawn" not in page.text
    assert "48 test images of 16 groups" in page.text


def test_images_that_are_not_at_hand_are_named_instead_of_drawn(sweep, tmp_path):
    def gone(run):
        raise BadInput("There is no folder data/CVC")

    compare([sweep()], tmp_path / "out", gone, draws=200)
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert "not drawn: There is no folder data/CVC" in page.text


def test_drawn_are_the_images_on_which_the_drawn_seeds_differ_most(sweep, tmp_path):
    folder = sweep(seeds=(2, 10))  # folders sort 10 before 2
    for run in folder.iterdir():
        rows = read_table(run / "per_image_test.csv")
        for row in rows[:3]:  # empty masks, on which only dice paints: Dice 0 and 1
            row.update(tp=0, fn=0, fp=5 * run.name.startswith("dice"), foreground=0.0, objects=0.0)
        far = {"dice_2_None": (20, 21), "dice_10_None": (22, 23)}.get(run.name, ())
        for row in (rows[index] for index in far):
            row.update(tp=1, fn=row["tp"] + row["fn"] - 1)
        for row in rows:
            row["dice"] = 2 * row["tp"] / total if (total := 2 * row["tp"] + row["fp"] + row["fn"]) else 1.0
        write_table(run / "per_image_test.csv", rows)

    def gone(run):
        assert run.seed == 2
        raise BadInput("gone")

    compare([folder], tmp_path / "out", gone, draws=200)
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert "differ most are 020, 021, 000, 001; not drawn: gone" in page.text


def test_names_never_become_html(tmp_path):
    trap = "<script>alert(1)</script>|x"
    sections = [Section(trap, [Paragraph(trap), Notes(trap, [trap]), Grid([trap], [[trap]])])]
    write(tmp_path, trap, sections, trap)
    page = Page((tmp_path / "index.html").read_text())
    assert "script" not in page.tags
    assert page.text.count("<script>alert(1)</script>") == 9  # title twice, and each block
    assert "<script" not in (tmp_path / "report.md").read_text()


def pair(value, low, high, holm, detectable=0.05, seeds=3):
    error = Estimate(value, low, high, 0.01, 10)
    return Pair(error, holm, holm, holm, 1.0, 5, 0, 1, detectable, seeds)


def test_a_verdict_needs_the_corrected_tests_and_more_than_one_seed():
    assert verdict(pair(0.1, 0.05, 0.15, 0.01), 0.01).startswith("told apart")
    assert verdict(pair(0.1, 0.05, 0.15, 0.01, seeds=1), 0.01).endswith("one seed shows nothing about a loss")
    assert verdict(pair(0.1, -0.01, 0.21, 0.2), 0.01).endswith("these images and seeds could have shown 0.050")
    assert verdict(pair(0.0, -0.005, 0.005, 1.0), 0.01) == "equivalent within 0.01"
    few = "not told apart; nothing can be by so few groups (patients, sequences)"
    assert verdict(pair(0.1, -np.inf, np.inf, 1.0, np.inf), 0.01) == few
    assert span(Estimate(0.5, -np.inf, np.inf, np.inf, 0)) == "0.500 (no interval: a single group)"


def test_long_names_leave_room_for_what_is_drawn():
    long = ["bce_dice experiment=new model.encoder_weights=weights_of_an_encoder.pth dataset.foreground_share=0.5" + end
            for end in "ab"]  # fmt: skip
    found = Pair(Estimate(0.1, 0.05, 0.15, 0.02, 5), 0.01, 0.01, 0.01, 1.0, 10, 0, 0, 0.05, 3)
    drawn = [
        drawings.differences({tuple(long): found}, 0.01),
        drawings.critical_difference(dict.fromkeys(long, Estimate(0.7, 0.6, 0.8, 0.05, 5)), [], "Dice"),
        drawings.ranking(dict.fromkeys(long, np.array([0.5, 0.5]))),
    ]
    for figure in drawn:
        figure.savefig(io.BytesIO())  # Matplotlib warns, which is an error here, where a layout collapses
        assert figure.axes[0].get_position().width > 0.4


def test_learning_curves_count_epochs_from_one_and_average_those_that_runs_have():
    longer = [{"epoch": 0, "val/dice": 0.1}, {"epoch": 1, "val/dice": 0.3}]
    drawn = drawings.learning({"dice": [longer, [{"epoch": 0, "val/dice": 0.3}]]}, "val/dice").axes[0]
    lines = [line.get_xydata().tolist() for line in drawn.lines]
    assert lines == [[[1, 0.1], [2, 0.3]], [[1, 0.3]], [[1, pytest.approx(0.2)], [2, 0.3]]]


def test_a_single_loss_is_compared_with_nothing(sweep, tmp_path):
    headline, _, _ = report(tmp_path, sweep(losses={"dice": 0.5}))
    assert headline.splitlines()[0].endswith("There is nothing to compare it with.")


def test_another_baseline_or_score_can_be_asked_for(sweep, tmp_path):
    folder = sweep()
    assert "more than dice, the baseline" in report(tmp_path, folder, baseline="dice")[0]
    assert report(tmp_path, folder, metric="iou")[0].startswith("dynamit has the highest mean IoU")
    with pytest.raises(BadInput, match="baseline=bce is not among the runs: dynamit, bce_dice, dice"):
        report(tmp_path, folder, baseline="bce")
    with pytest.raises(BadInput, match="metric=hd95: less of it is better"):
        report(tmp_path, folder, metric="hd95")


def test_what_no_bar_joins_and_yet_is_not_told_apart_is_said(sweep, tmp_path):
    losses = {"dice": 0.80, "bce_dice": 0.795, "dynamit": 0.70}
    text = report(tmp_path, sweep(losses=losses))[2]
    assert "No bar, and yet" not in text
    assert "How sure the ranking is; of few seeds" in text
    for seed, quality in enumerate((0.95, 0.45, 0.8)):  # so unsure that it is told apart from neither
        shutil.rmtree(tmp_path / "s" / f"dynamit_{seed}_None")
        one_run(tmp_path / "s" / f"dynamit_{seed}_None", "dynamit", quality, seed)
    for seed in range(3):
        shutil.rmtree(tmp_path / "s" / f"bce_dice_{seed}_None")
        one_run(tmp_path / "s" / f"bce_dice_{seed}_None", "bce_dice", 0.74, seed)
    assert "No bar, and yet not told apart: dice and dynamit." in report(tmp_path, tmp_path / "s")[2]
    shutil.rmtree(tmp_path / "s")
    single = report(tmp_path, sweep(losses={"tversky": 0.8, "bce": 0.7}, seeds=(0,)))[2]
    assert "How sure the ranking is cannot be said of a single seed." in single


def test_the_runner_up_and_the_baseline_may_be_two(sweep):
    scores = {name: np.random.default_rng(0).normal(value, 0.02, (3, 30)) for name, value in QUALITY.items()}
    groups = np.arange(30)
    means = {name: Estimate(value, 0, 1, 0.1, 3) for name, value in sorted(QUALITY.items(), key=lambda item: -item[1])}
    said = words(means, pairs(scores, groups), "dice", 0.01, "Dice")
    assert "more than bce_dice, the runner-up:" in said
    assert "more than dice, the baseline:" in said


def test_the_command_writes_a_report(sweep, tmp_path):
    folder = sweep(seeds=(0,), images=6, groups=6)
    done = subprocess.run(
        [sys.executable, str(ROOT / "src" / "compare.py"), f"runs={folder}", "draws=200"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dynamit has the highest mean Dice")
    assert (folder / "report" / "index.html").is_file()
    for wrong, said in (("runs=nowhere", "name the folder of a sweep"), ("margin=-1", "must be a number, 0 or more")):
        done = subprocess.run(
            [sys.executable, str(ROOT / "src" / "compare.py"), f"runs={folder}", wrong],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 2
        assert said in done.stderr
