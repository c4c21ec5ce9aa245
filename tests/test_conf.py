"""Every choice in `conf/` is covered by being there: no list of names to keep."""

import inspect
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from conftest import ROOT
from raremask import BadInput, commandline  # noqa: F401  registers the resolvers
from raremask.building import fill_auto
from raremask.data.base import ImageMaskData
from raremask.data.splits import Split

CONF = ROOT / "conf"
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")  # launchers are Hydra's
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
GIVEN_BY_RUN = {
    "augment",
    "split",
    "seed",
    "self",
    "params",
    "optimizer",
    "args",
    "kwargs",
}  # what run.py and partials add


@pytest.fixture
def composed(tmp_path):
    def compose_train(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            if overrides and overrides[0].split("=")[0] in ("postprocess", "submission"):
                return compose("predict", list(overrides))
            return compose("train", [*overrides, f"folder={tmp_path}"])

    return compose_train


class SplitOf:
    """Stands for data whose training split says this."""

    def __init__(self, imbalance: float = 9.0, thickness: float = 16.0, radius: float = 4.0):
        self.said = SimpleNamespace(imbalance=imbalance, thickness=thickness, radius=radius)

    def training_foreground(self) -> SimpleNamespace:
        return self.said


def targets(node, path=""):
    """Every node below this one that names what it makes, with its path."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        for key in node:
            yield from targets(node[key], f"{path}.{key}")


def parameters(kind: type) -> dict[str, inspect.Parameter]:
    """The arguments of a class, with those of its base where it passes them on."""
    found = {} if kind.__init__ is torch.nn.Module.__init__ else dict(inspect.signature(kind.__init__).parameters)
    if found.pop("shared", None):
        found |= inspect.signature(ImageMaskData.__init__).parameters
    return found


def test_there_is_a_group_for_every_part_and_a_choice_in_each():
    expected = {"augment", "callbacks", "dataset", "experiment", "logger", "loss", "model", "optimizer", "scheduler"}
    assert expected | {"trainer", "postprocess", "submission"} == set(GROUPS)
    assert {group for group, _ in CHOICES} == set(GROUPS)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_a_choice_spells_every_argument_of_what_it_makes_and_can_be_made(composed, group, choice):
    config = composed(f"{group}={choice}")
    made = list(targets(config if group == "experiment" else config[group]))
    assert made, "an empty choice composes to nothing"
    for path, node in made:
        kind = get_class(node._target_)
        known, given = parameters(kind), {key for key in node if not key.startswith("_")}
        assert given <= set(known), f"{path}: {kind.__name__} has no {given - set(known)}"
        if kind.__module__.startswith("raremask") and not path.startswith(".trainer"):
            assert set(known) - GIVEN_BY_RUN <= given, f"{path} leaves out {set(known) - GIVEN_BY_RUN - given}"
    if group not in ("experiment", "dataset", "trainer"):
        can_be_made(group, config)


def can_be_made(group: str, config: DictConfig) -> None:
    fill_auto(config, SplitOf(imbalance=5.0, radius=4.0))
    if group == "model" and "encoder_weights" in config.model:
        config.model.encoder_weights = None  # tests download nothing
    if group in ("callbacks", "logger"):
        assert len(instantiate(config[group])) == len(config[group])
        return
    made = instantiate(config[group])
    if group == "optimizer":
        made([torch.nn.Parameter(torch.zeros(1))])
    elif group == "scheduler":
        made(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    elif group == "model":
        assert made.eval()(torch.rand(1, 3, 40, 50)).shape == (1, 1, 40, 50)


def test_an_installed_package_works_in_any_folder(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    build = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--target", str(tmp_path / "site"), str(source)], check=True, capture_output=True)
    code = "import raremask; from raremask.commands import train; print(raremask.__file__); train()"
    command = [sys.executable, "-c", code, "--cfg", "job", "dataset=folder", "experiment=demo"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True
    )
    assert done.stdout.startswith(str(tmp_path / "site")), done.stderr
    assert "_target_: raremask.data.folder.Folder" in done.stdout
    installed = tmp_path / "site" / "raremask" / "conf"
    assert {path.relative_to(installed) for path in installed.rglob("*.yaml")} == {
        path.relative_to(CONF) for path in CONF.rglob("*.yaml")
    }
    assert (tmp_path / "site" / "raremask" / "py.typed").is_file()
    assert (tmp_path / "site" / "bin" / "raremask-train").is_file()


def test_every_folder_of_the_package_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "src" / "raremask").rglob("*.py")}
    there = {".".join(folder.relative_to(ROOT / "src").parts) for folder in folders}
    assert set(listed) == there | {"raremask.conf"}


def test_the_settings_of_the_split_are_spelled_in_full(composed):
    assert set(composed().split) - {"_target_"} == set(parameters(Split)) - {"self"}


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_a_file_says_what_it_is_on_its_first_line(group, choice):
    assert (CONF / group / f"{choice}.yaml").read_text().startswith("# ")


def test_auto_becomes_what_the_training_split_says_wherever_it_stands(composed):
    overrides = ("callbacks=two_stage", "loss=weighted_bce", "loss@callbacks.switch.loss=weighted_bce_dice")
    config = composed(*overrides)
    found = fill_auto(config, SplitOf(imbalance=12.5))
    below = "callbacks.switch.loss.terms.weighted_bce.pos_weight"
    assert found == {"loss.pos_weight": 12.5, below: 12.5}
    assert config.loss.pos_weight == OmegaConf.select(config, below) == 12.5
    assert instantiate(config.loss).pos_weight == 12.5


def test_auto_goes_no_further_than_a_hundred(composed):
    config = composed("loss=weighted_bce")
    fill_auto(config, SplitOf(imbalance=1e5))
    assert config.loss.pos_weight == 100


def test_auto_fills_only_what_is_left_to_it(composed):
    config = composed("loss=focal_tversky", "loss.beta=auto", "loss.alpha=0.2")
    assert fill_auto(config, SplitOf(imbalance=99.0)) == {"loss.beta": pytest.approx(0.7, abs=1e-3)}
    assert config.loss.alpha == 0.2
    config = composed("loss=boundary_dou", "loss.terms.boundary_gaussian.sigma=auto")
    fill_auto(config, SplitOf(thickness=64.0))
    assert instantiate(config.loss).terms["boundary_gaussian"].sigma == 4.0
    config = composed("loss=cldice")
    assert fill_auto(config, SplitOf(radius=6.1)) == {"loss.terms.cldice.iterations": 7}
    assert instantiate(config.loss).terms["cldice"].iterations == 7


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("loss=dice", "loss.smooth=auto"), "loss.smooth=auto: Dice has no automatic smooth; it has none"),
        (("loss=tversky", "loss.smooth=auto"), "it has one for alpha, beta. Give a number"),
    ],
)
def test_auto_is_refused_where_there_is_no_rule(composed, overrides, message):
    with pytest.raises(BadInput, match=message):
        fill_auto(composed(*overrides), SplitOf())


def test_no_dataset_is_asked_when_nothing_is_auto(composed):
    fill_auto(composed("loss=dice"), data=None)


def test_the_data_folder_comes_from_the_environment(composed, monkeypatch):
    monkeypatch.delenv("RAREMASK_DATA", raising=False)
    assert composed("dataset=cvc").dataset.root == "data/CVC-ClinicDB"
    monkeypatch.setenv("RAREMASK_DATA", "/elsewhere")
    assert composed("dataset=drive").dataset.root == "/elsewhere/DRIVE"


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_is_a_lab_record(path: Path):
    text = path.read_text()
    for entry in ("Reproduces:", "Command:", "Hardware:", "Time:", "Scores:"):
        assert f"# {entry}" in text
    assert "to be measured" not in text


@pytest.mark.parametrize(
    ("recipe", "size", "batch", "augment", "by"),
    [
        ("thesis_cvc", [288, 384], 2, "thesis", "image"),
        ("thesis_drive", [512, 512], 2, "thesis", "group"),
        ("thesis_isic", [384, 384], 4, "none", "group"),
    ],
)
def test_the_thesis_recipes_are_as_it_states_them(composed, recipe, size, batch, augment, by):
    config = composed(f"experiment={recipe}")
    assert (config.dataset["size"], config.dataset.batch_size, config.split.by) == (size, batch, by)
    model = {"base": 64, "levels": 4, "norm": "instance", "init": "xavier"}
    assert model.items() <= config.model.items()
    optimizer = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4}
    assert optimizer.items() <= config.optimizer.items()
    assert (config.scheduler.factor, config.scheduler.patience) == (0.1, 10)
    assert (config.callbacks.early_stopping.patience, config.trainer.max_epochs, config.seed) == (20, 400, 42)
    assert config.trainer.gradient_clip_val is None
    assert config.augment == composed(f"augment={augment}").augment


def test_the_thesis_augmentation_is_as_it_states_it(composed):
    steps = composed("augment=thesis").augment.steps
    assert list(steps) == ["vertical_flip", "horizontal_flip", "scale_rotate", "elastic", "brightness"]
    assert {step.p for step in steps.values()} == {0.15}
    assert (steps.elastic.alpha, steps.elastic.sigma) == (900, 11)
    assert (steps.scale_rotate.scale, steps.scale_rotate.rotate) == ([0.85, 1.25], [-15, 15])
    assert steps.brightness.brightness_limit == [-0.5, 1.0]
