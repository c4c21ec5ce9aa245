"""The search for settings."""

import json
import re

import optuna
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conftest import ROOT, TINY
from raremask import BadInput, tuning

SPACE = {"optimizer.lr": {"low": 0.001, "high": 1.0}, "model.base": [4, 8]}
START = {"optimizer.lr": 0.01, "model.base": 4}


def peak(settings, tell):
    """Best at a learning rate of 0.1; bad settings are bad from the first epoch on."""
    score = 1 - abs(settings["optimizer.lr"] - 0.1)
    for epoch in range(8):
        tell(epoch, score * epoch / 8)
    return score


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_search_finds_the_peak_and_goes_on_where_it_stopped(tmp_path):
    study = tuning.search(tmp_path, peak, SPACE, START, trials=6, seed=0, config={})
    assert study.trials[0].params == START  # where the config stands
    first = [trial.params for trial in study.trials]
    study = tuning.search(tmp_path, peak, SPACE, START, trials=25, seed=0, config={})
    assert [trial.params for trial in study.trials][:6] == first
    assert len(study.trials) == 25
    assert study.best_params["optimizer.lr"] == pytest.approx(0.1, abs=0.05)
    assert any(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials)


def test_a_search_that_was_killed_begins_with_the_config_and_repeats_nothing(tmp_path):
    study = tuning.search(tmp_path, peak, SPACE, START, trials=1, seed=0, config={})
    (tmp_path / "study.db").unlink()

    def killed(settings, tell):
        raise SystemExit

    with pytest.raises(SystemExit):
        tuning.search(tmp_path, killed, SPACE, START, trials=1, seed=0, config={})
    study = tuning.search(tmp_path, peak, SPACE, START, trials=1, seed=0, config={})
    study.ask()  # a trial that SIGKILL has left running
    for trials in (3, 5, 7):
        study = tuning.search(tmp_path, peak, SPACE, START, trials=trials, seed=0, config={})
    whole = [trial for trial in study.trials if trial.state != optuna.trial.TrialState.FAIL]
    assert whole[0].params == START
    rates = [trial.params["optimizer.lr"] for trial in whole]
    assert len(rates) == len(set(rates)) == 7
    assert not study.get_trials(states=[optuna.trial.TrialState.RUNNING])


def test_another_space_is_another_search(tmp_path):
    tuning.search(tmp_path, peak, SPACE, START, trials=1, seed=0, config={})
    with pytest.raises(BadInput, match="holds a search of another epochs"):
        tuning.search(tmp_path, peak, SPACE, START, trials=1, seed=0, config={"epochs": 9})
    other = SPACE | {"optimizer.lr": {"low": 0.1, "high": 0.5}}
    with pytest.raises(BadInput, match="holds a search of another space"):
        tuning.search(tmp_path, peak, other, START, trials=1, seed=0, config={})


@pytest.mark.parametrize("values", [{"low": 1}, {"low": 2, "high": 1}, {"low": 0, "high": 1}, 3])
def test_a_range_that_is_none_is_refused(tmp_path, values):
    with pytest.raises(BadInput, match=r"space: optimizer.lr"):
        tuning.search(tmp_path, peak, {"optimizer.lr": values, "model.base": [4]}, {}, trials=1, seed=0, config={})


def test_of_a_whole_number_whole_ones_are_tried(tmp_path):
    def good(settings, tell):
        return -float(settings["model.base"])

    space, start = {"model.base": {"low": 4, "high": 16}}, {"model.base": 8}
    study = tuning.search(tmp_path, good, space, start, trials=6, seed=0, config={})
    assert {type(trial.params["model.base"]) for trial in study.trials} == {int}
    with pytest.raises(BadInput, match=r"model.base is a whole number, so low and high must be"):
        tuning.drawn(study.ask(), {"model.base": {"low": 0.5, "high": 16}}, start)


def test_the_command_searches_on_validation_and_leaves_an_experiment(command, tmp_path, capsys, monkeypatch):
    (tmp_path / "typed_here").mkdir()
    monkeypatch.chdir(tmp_path / "typed_here")
    settings = ["loss=tversky", "+trainer.detect_anomaly=true", "trainer.gradient_clip_val=null", "trials=2"]
    command("tune.py", *TINY, *settings, f"folder={tmp_path / 'search'}")
    said = capsys.readouterr().out
    assert "trial 2/2: optimizer.lr=" in said
    assert "loss.alpha=" in said
    assert {path.name for path in (tmp_path / "search").iterdir()} == {".hydra", "study.db", "study.png", "best.yaml"}
    assert not list((tmp_path / "typed_here").iterdir())
    best = (tmp_path / "search" / "best.yaml").read_text()
    assert "# val/dice 0." in best
    recipe = OmegaConf.create(best)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "found.yaml").write_text(best)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        again = compose("train", ["experiment=found", f"hydra.searchpath=[file://{tmp_path}]"])
    assert again.loss.alpha == recipe.loss.alpha
    assert again.dataset.size == [48, 40]  # what was typed belongs to the recipe
    assert again.trainer.max_epochs == 2
    assert again.trainer.gradient_clip_val is None
    assert again.trainer.detect_anomaly
    assert again.loss._target_.endswith("Tversky")
    assert not list(tmp_path.rglob("per_image_test.csv"))  # nobody looked at the test split

    command("tune.py", *TINY, *settings, f"folder={tmp_path / 'search'}", "dataset.memory=3.0")  # goes on elsewhere
    assert "trial" not in capsys.readouterr().out  # there was nothing left to do
    assert OmegaConf.create((tmp_path / "search" / "best.yaml").read_text()).loss.alpha == recipe.loss.alpha


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution should be a tuple")  # lists, said by Optuna
def test_a_recipe_of_two_stages_composes_and_lists_are_choices(command, tmp_path):
    stages = ["trainer.gradient_clip_val=null", "callbacks=two_stage", "callbacks.switch.epoch=1"]
    stages += ["loss@callbacks.switch.loss=dice"]
    space = "space={dataset.size:[[32,32],[48,40]],trainer.gradient_clip_val:[0.5]}"
    command("tune.py", *TINY, *stages, space, "trials=2", f"folder={tmp_path / 'search'}")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "search" / "best.yaml").rename(tmp_path / "experiment" / "found.yaml")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        again = compose("train", ["experiment=found", f"hydra.searchpath=[file://{tmp_path}]"])
    assert again.callbacks.switch.loss._target_.endswith("Dice")
    assert "terms" not in again.callbacks.switch.loss
    assert again.callbacks.switch.epoch == 1
    assert again.trainer.gradient_clip_val == 0.5  # null in the config: a setting all the same
    assert (tmp_path / "search" / "study.png").is_file()


def test_settings_of_the_data_are_searched_with_data_made_of_them(command, tmp_path, monkeypatch):
    build, seen = tuning.build, []

    def spied(cfg, **more):
        data, module = build(cfg, **more)
        seen.append((cfg.dataset.batch_size, data.batch_size))
        return data, module

    monkeypatch.setattr(tuning, "build", spied)
    command("tune.py", *TINY, "space={dataset.batch_size:[2,3]}", "trials=3", f"folder={tmp_path}")
    assert len(seen) == 3
    assert all(asked == used for asked, used in seen)


def test_a_list_of_callbacks_is_refused_with_the_way_to_have_them(command, tmp_path):
    with pytest.raises(BadInput, match=r"a search takes one choice.* conf/callbacks/<name>.yaml"):
        command("tune.py", *TINY, "callbacks=[two_stage,ema]", "trainer.max_epochs=30", f"folder={tmp_path}")


def test_a_setting_that_is_none_is_refused(command, tmp_path):
    space = json.dumps({"optimizer.rate": {"low": 1, "high": 2}}).replace('"', "")
    with pytest.raises(BadInput, match=r"space: optimizer.rate is not a setting of this run"):
        command("tune.py", *TINY, f"space={space}", f"folder={tmp_path}")
    with pytest.raises(BadInput, match=r"A search trains in one process, .*: leave trainer=ddp away"):
        command("tune.py", *TINY, "trainer=ddp", f"folder={tmp_path}")
    with pytest.raises(BadInput, match=r"space: loss is not a setting of this run, of which a search could change the"):
        command("tune.py", *TINY, "space={loss:[dice,bce]}", f"folder={tmp_path}")
    with pytest.raises(BadInput, match=r"augment.steps.horizontal_flip.* was left out, and the recipe of a search"):
        command("tune.py", *TINY, "augment=flips", "~augment.steps.horizontal_flip", f"folder={tmp_path}")
    for of_a_run in ("leaks=error", "selection.views=[none]", "resume=x", "~logger"):
        with pytest.raises(BadInput, match=rf"{re.escape(of_a_run)}: a search does nothing with it"):
            command("tune.py", *TINY, of_a_run, f"folder={tmp_path}")
