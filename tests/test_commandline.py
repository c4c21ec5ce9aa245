import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conftest import ROOT
from raremask import BadInput, commandline, figures, inference
from raremask.commandline import config_folder, job_name, run_folder


def answer(tmp_path, *arguments, script="train.py"):
    """What a user reads on the terminal: exit code and standard error."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "src" / script), *arguments],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "RAREMASK_DATA": "nowhere"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss=dise"], "loss=dise is not there. Did you mean loss=dice"),
        (["-m", "loss=dice,dise"], "loss=dise is not there. Did you mean loss=dice"),
        (["loss.smoth=2"], "loss.smoth is not a setting. Did you mean loss.terms.dice.smooth?"),
        (["loss=dice", "loss.smoth=2"], "loss.smoth is not a setting. Did you mean loss.smooth?"),
        (["trainer.max_epoch=3"], "trainer.max_epoch is not a setting. Did you mean trainer.max_epochs?"),
        (["los=dice"], "los is not a setting. Did you mean loss?"),
        (["ckpt_path=last.ckpt"], "ckpt_path is not a setting. Did you mean resume?"),
        (["experiment=dem"], "experiment=dem is not there. Did you mean experiment=demo?"),
        (["monitor=val/dise"], "monitor=val/dise is not a score that is logged. Did you mean monitor=val/dice"),
        (["monitor=val/loss"], "The values of two losses, or of two stages, cannot be compared."),
        (["seed=abc"], "seed=abc must be a whole number, 0 or more."),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0 must be a whole number, 1 or more."),
        (["optimizer.lr=fast"], "optimizer.lr=fast must be a number, 0 or more."),
        (["empty=none"], "empty=none is no policy for empty masks. Choices: one, skip, zero"),
        (["dataset=cvc"], "There is no folder nowhere/CVC-ClinicDB. Put the dataset there"),
        (["dataset=cvc", "dataset.root=here"], "There is no folder here."),
        (["selection.views=[flip]"], "must be a list of none, flips, turns, scales"),
        (["selection.metric=dice_pooled"], "selection.metric=dice_pooled must be one of dice"),
        (["selection.tile=[8,8]"], "16 pixels or more, or null"),
        (["selection.areas=[-5]"], "must be a list of whole numbers"),
        (["selection.largest=null"], "selection.largest=None must be true or false"),
        (["selection.holes=2"], "selection.holes=2 must be true or false"),
        (["+selection.area=[5]"], "selection.area is not a setting. Did you mean selection.areas"),
        (["+monitr=val/iou"], "monitr is not a setting of python src/train.py. Did you mean monitor?"),
        (["+ckpt_path=last.ckpt"], "ckpt_path is not a setting of python src/train.py. Did you mean resume?"),
        (["-m", "--cfg", "job"], "Only one of --run, --multirun, --cfg"),
        (["+figures.contour=true"], "figures.contour is not a setting. Did you mean figures.contours?"),
        (["figures.contours=1"], "figures.contours=1 must be true or false"),
        (["loss=dice("], "loss=dice( cannot be read"),
        (["dataset=folder", "dataset.images=données"], "two kinds of quotes: 'dataset.images=\"données\"'"),
        (["dataset=folder", "dataset.images=~/nowhere"], f"There is no folder {Path.home()}/nowhere"),
        (["experiment=null"], "A group takes the name of a choice"),
        (["dataset=2018"], "A group takes the name of a choice"),
        (["dataset=/my/polyps"], "dataset=/my/polyps is not there. Data of your own: dataset=folder dataset.images="),
        (["/my/polyps"], "/my/polyps: a setting is written <setting>=<value>, such as loss=dice"),
        (["loss"], "loss: a setting is written <setting>=<value>, such as loss=dice"),
        (["retry=no", "sweep=no"], "retry=no must be true or false"),  # a sweep may be called so
        (["loss=BCE-Dice"], "loss=BCE-Dice is not there. Did you mean loss=bce_dice?"),
        (["~scheduler"], "scheduler cannot be left out: a run needs one"),
        (["~callbacks.best"], "callbacks.best cannot be left out"),
        (["~callbacks.history"], "callbacks.history cannot be left out"),
        (["dataset=folder", "dataset.images=/nowhere"], "There is no folder /nowhere"),
        (["dataset=folder", "dataset.pairs=/nowhere.csv"], "dataset.pairs=/nowhere.csv: there is no such file"),
        (["figures.palette=pastel"], "must be one of classic, colour_blind"),
        (["resume=here"], "here is not the folder of a run"),
        *(() if find_spec("ray") else ((["hydra/launcher=ray_cluster"], "pip install '.[ray]'"),)),
        (["resume=2018"], "2018 is not the folder of a run"),
        (["dataset=isic2018", "dataset.root=2018"], "There is no folder 2018"),
        (["leaks=false"], "leaks=False is no answer to leaks"),
        (["monitor=null"], "monitor=None is not a score that is logged"),
        (["selection.metric=null"], "selection.metric=None must be one of dice"),
        (["loss=dice", "loss.per_image=no"], "loss.per_image=no is read as a word. Write true or false."),
        (["selection.holes=Off"], "selection.holes=Off is read as a word"),
        (["resume="], "resume= names no folder"),
        (["++callbacks.swithc.epoch=1"], "callbacks.swithc: no such callback is chosen"),
        (["retry=2"], "retry=2 must be true or false"),
        (["seed=true"], "seed=True must be a whole number, 0 or more."),
        (["optimizer.lr=nan"], "optimizer.lr=nan must be a number, 0 or more."),
        (["selection.areas=[true]"], "must be a list of whole numbers"),
        (
            ["callbacks=two_stage", "trainer.max_epochs=20"],
            "switch.epoch=20 is never reached with trainer.max_epochs=20",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_slip_on_the_command_line_is_answered_with_what_was_meant(tmp_path, arguments, message):
    code, text = answer(tmp_path, *arguments)
    assert code == 2
    assert message in text
    assert "Traceback" not in text
    assert "raised while" not in text
    assert not list(tmp_path.glob("**/status.json"))
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "compare", "describe", "tune"])
def test_what_a_command_has_is_known_and_nothing_else(name):
    """Also what a recipe of one's own brings in, which Hydra takes without a word."""
    with initialize_config_dir(str(commandline.CONF), version_base="1.3"):
        cfg = compose(name, overrides=["hydra.output_subdir=null"])
    OmegaConf.set_struct(cfg, False)
    commandline.check_settings(cfg, name)
    groups = {"predict": ["postprocess", "submission"], "evaluate": ["trainer"], "train": ["logger"]}
    for group in groups.get(name, []):
        cfg[group] = {}
    commandline.check_settings(cfg, name)
    cfg.width, cfg.twice = 12, "${width}"
    cfg[next(key for key in cfg if key not in ("width", "twice"))] = "${twice}"  # variables that are used
    commandline.check_settings(cfg, name)
    cfg.sead = 7
    with pytest.raises(BadInput, match=r"sead is not a setting of .*\nThere are: "):
        commandline.check_settings(cfg, name)


def test_a_refused_command_leaves_no_run_folder(tmp_path):
    answer(tmp_path, "monitor=val/dise")
    assert not list(tmp_path.glob("outputs/**/.hydra"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Which run? Name its folder"),
        (["run=[here,there]"], "here is not the folder of a run"),
        (["run=here"], "here is not the folder of a run"),
        (["rum=x"], "mean run?"),
    ],
)
def test_evaluate_asks_for_a_run(tmp_path, arguments, message):
    code, text = answer(tmp_path, *arguments, script="evaluate.py")
    assert code == 2
    assert message in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("predict.py", "sumbission=nerve", "sumbission is not a setting. Did you mean submission?"),
        ("predict.py", "submission.style.order=rows", "Choose first: submission=<choice>"),
        ("evaluate.py", "trainer.devices=1", "Choose first: trainer=<choice>"),
        ("tune.py", "experiment.x=1", "Choose first: experiment=<choice>"),
    ],
)
def test_a_group_of_which_nothing_is_chosen_is_known_too(tmp_path, script, arguments, message):
    code, text = answer(tmp_path, arguments, script=script)
    assert code == 2
    assert message in text


@pytest.mark.parametrize("arguments", [["dataset.kind=blobs"], ["loss.weights.bce=0.5", "loss.terms.dice.smooth=0"]])
def test_a_value_that_a_class_refuses_is_one_message_too(tmp_path, arguments):
    code, text = answer(tmp_path, *arguments)
    assert code == 2
    assert "Traceback" not in text
    assert "must be" in text


def test_judging_the_command_line_imports_nothing_heavy():
    # this, not a stopwatch, is what keeps the answer within a second
    heavy = "{'torch', 'lightning', 'torchmetrics', 'albumentations', 'segmentation_models_pytorch', 'cv2'}"
    code = f"import sys; import raremask.commands; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_judged_without_torch_is_what_there_is():
    assert set(commandline.VIEWS) == set(inference.VIEWS)
    assert set(commandline.PALETTES) == set(figures.PALETTES)


def test_a_job_s_name_holds_nothing_that_hydra_or_a_file_system_cannot_bear():
    name = job_name("cvc", "unet", "dice", "seed1", "dataset.root=/a/b,c=d&optimizer.lr=1e-05&augment=thesis")
    assert name == "cvc_unet_dice_seed1_root-a-b-c-d_lr-1e-05_augment-thesis"
    assert job_name("cvc", "unet", "dice", "seed1", "") == "cvc_unet_dice_seed1"


def test_a_job_s_name_fits_into_a_file_system_and_stays_its_own():
    long = [job_name("cvc", "unet", "dice", "seed1", "a" * 300 + end) for end in "bc"]
    assert [len(name) for name in long] == [120, 120]
    assert long[0] != long[1]


def test_the_first_config_of_a_folder_stays(tmp_path):
    assert config_folder(str(tmp_path)) == ".hydra"
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.create({"seed": 1}), tmp_path / ".hydra" / "config.yaml")
    assert config_folder(str(tmp_path)) == ".hydra"  # of a start that came to nothing
    (tmp_path / "status.json").touch()
    assert config_folder(str(tmp_path)) is None


def test_a_resumed_run_writes_where_it_began(tmp_path):
    assert run_folder(None, "new") == "new"
    with pytest.raises(BadInput, match="is not the folder of a run"):
        run_folder(str(tmp_path), "new")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").touch()
    with pytest.raises(BadInput, match=r"has no status.json: it is not the whole folder of a run"):
        run_folder(str(tmp_path), "new")
    (tmp_path / "status.json").touch()
    assert run_folder(str(tmp_path), "new") == str(tmp_path)


def test_a_command_is_called_as_it_was(monkeypatch):
    for typed, called in (("src/train.py", "python src/compare.py"), ("/usr/bin/raremask-train", "raremask-compare")):
        monkeypatch.setattr(sys, "argv", [typed])
        assert commandline.program("compare") == called
