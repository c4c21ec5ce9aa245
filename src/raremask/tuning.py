"""A search for better settings on the validation split: which are tried, and what came of it."""

import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import optuna
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from sqlalchemy.pool import NullPool

from raremask import BadInput
from raremask.building import build, build_data, build_trainer
from raremask.commandline import program
from raremask.runfolder import claimed, write_figure, write_text
from raremask.settings import GROUPS, NO_OTHER_RUN, SECOND_LOSS, flat
from raremask.terminal import quieten

STUDY = "study.db"
OF_A_RUN = ("resume", "retry", "sweep", "leaks", "selection", "figures", "logger")  # settings, not of a search
FACTOR = 4  # how far from a number in the config is looked, down and up
Objective = Callable[[Mapping[str, Any], Callable[[int, float], None]], float]


def tune(cfg: DictConfig) -> float:
    """Search for settings that score better on validation; the test split is not looked at.

    Args:
        cfg: The composed `conf/tune.yaml`.

    Returns:
        The best score.

    Raises:
        BadInput: If the space names no setting, the folder holds another search, several processes are asked for, or a
            setting is typed that only a run reads.
    """
    quieten()
    if OmegaConf.select(cfg, "trainer.strategy", default="auto") != "auto":
        raise BadInput("A search trains in one process, one trial after another: leave trainer=ddp away.")
    folder, chosen = Path(str(cfg.folder)), HydraConfig.get()
    if "callbacks" not in chosen.runtime.choices:
        raise BadInput(
            "callbacks=[...]: a search takes one choice. Put the list into a file, conf/callbacks/<name>.yaml with "
            "`defaults: [two_stage, ema]`, and choose that."
        )
    for typed in chosen.overrides.task:
        if re.split(r"[.=]", typed.lstrip("+~"), maxsplit=1)[0] in OF_A_RUN:
            raise BadInput(f"{typed}: a search does nothing with it. Train the recipe that it finds with it.")
    if cfg.space:
        space = OmegaConf.to_container(cfg.space)
    else:
        space = dict(space_around({"lr": float(cfg.optimizer.lr)}, "optimizer"))
        space |= space_around(OmegaConf.to_container(cfg.loss), "loss")
    plain = OmegaConf.to_container(cfg)
    config = flat({key: plain[key] for key in plain if key not in ("trials", "folder", "space", "data_dir")})
    same = {path: value for path, value in config.items() if path not in NO_OTHER_RUN}  # or it is another search
    if unknown := [path for path in space if path not in config]:
        raise BadInput(f"space: {unknown[0]} is not a setting of this run, of which a search could change the value.")
    chosen_from = chosen.runtime.choices
    choices = {group: chosen_from[group] for group in (*GROUPS, SECOND_LOSS) if group in chosen_from}
    changes = _changes(config, choices)
    values = {path: OmegaConf.select(cfg, path) for path in space}  # resolved, if they refer to others
    start = {path: list(value) if OmegaConf.is_list(value) else value for path, value in values.items()}
    with claimed(folder):  # another search would take this one's trial for one that was killed
        study = search(folder, _trial(cfg, space), space, start, cfg.trials, cfg.seed, same)
    write(folder, study, f"{program('tune')} {' '.join(chosen.overrides.task)}", choices, changes, cfg.monitor)
    print(f"\nBest {cfg.monitor}: {study.best_value:.4f}, with {words(study.best_params)}")
    print(f"In {os.path.relpath(folder)}: best.yaml (an experiment: put it into conf/experiment), study.png, study.db")
    return study.best_value


def _changes(config: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, Any]:
    """What a recipe or the command line has changed beyond the choices from each group.

    Raises:
        BadInput: If something was taken away, which a recipe that is found could not say.
    """
    untouched = flat(OmegaConf.to_container(compose("train", [f"{group}={one}" for group, one in choices.items()])))
    if lost := [path for path in untouched if path not in config and path.split(".")[0] in choices]:
        raise BadInput(
            f"{lost[0]} was left out, and the recipe of a search cannot say so. Set it to what does nothing."
        )
    return {path: value for path, value in config.items() if path not in untouched or untouched[path] != value}


def _trial(cfg: DictConfig, space: Collection[str]) -> Callable[..., float]:
    """What trains once under other settings, and returns the best score of its epochs."""
    of_the_data = any(path.split(".")[0] in ("dataset", "augment", "split") for path in space)
    data = None if of_the_data else build_data(cfg)  # or every trial reads the images as it was told to

    def train(settings: Mapping[str, Any], tell: Callable[[int, float], None]) -> float:
        one, scores = cfg.copy(), []
        for path, value in settings.items():
            OmegaConf.update(one, path, value)
        images, module = build(one, data=data)

        def told(epoch: int, score: float) -> None:
            scores.append(score)
            tell(epoch, score)

        # a trial has neither a folder to write into nor a logger
        parts = [
            instantiate(part) for part in one.callbacks.values() if part and not {"folder", "dirpath"} & part.keys()
        ]
        parts = [part for part in parts if not isinstance(part, LearningRateMonitor)]
        parts.append(Reporter(one.monitor, told))
        trainer = build_trainer(one.trainer, callbacks=parts, logger=False, enable_checkpointing=False)
        trainer.fit(module, datamodule=images)
        return max(scores)

    return train


class Reporter(Callback):
    """Reports a score after every validation to what may end the training.

    Args:
        monitor: The score, such as `val/dice`.
        tell: Called with the epoch and the score; may raise to end the training.
    """

    def __init__(self, monitor: str, tell: Callable[[int, float], None]):
        self.monitor, self.tell = monitor, tell

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Tell it."""
        if self.monitor in trainer.callback_metrics:
            self.tell(trainer.current_epoch, float(trainer.callback_metrics[self.monitor]))


def space_around(config: Mapping[str, Any], path: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Give every number of a config a range around it, on a logarithmic scale.

    Args:
        config: Plain values; numbers that are more than 0 and written with a point are taken. What is below 1 stays
            there: most such numbers are shares.
        path: Where they stand.

    >>> dict(space_around({"_target_": "Tversky", "alpha": 0.4, "terms": {"smooth": 1.0, "steps": 3}}, "loss"))
    {'loss.alpha': {'low': 0.1, 'high': 0.99}, 'loss.terms.smooth': {'low': 0.25, 'high': 4.0}}
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from space_around(value, f"{path}.{key}")
        elif isinstance(value, float) and value > 0:
            high = value * FACTOR if value >= 1 else min(value * FACTOR, max(0.99, value))
            yield f"{path}.{key}", {"low": value / FACTOR, "high": high}


def drawn(trial: optuna.Trial, space: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """Draw a setting of everything in a space.

    Args:
        trial: Draws.
        space: By the path of a setting: `low` and `high` (and `log`, true if it is left out), or a list of choices.
        start: What each is in the config; where that is a whole number, whole ones are drawn.

    Raises:
        BadInput: If a range is not one.
    """
    found: dict[str, Any] = {}
    for path, values in space.items():
        if isinstance(values, list):
            found[path] = trial.suggest_categorical(path, values)
            continue
        if not isinstance(values, Mapping) or not {"low", "high"} <= values.keys() <= {"low", "high", "log"}:
            raise BadInput(f"space: {path} must be a list of choices, or low and high (and log); got {values}")
        log = values.get("log", True)
        if not (0 < values["low"] < values["high"] or (not log and values["low"] < values["high"])):
            raise BadInput(f"space: {path}: low must be less than high, and above 0 if log; got {values}")
        whole = type(start[path]) is int
        if whole and not all(type(values[end]) is int for end in ("low", "high")):
            raise BadInput(f"space: {path} is a whole number, so low and high must be; got {values}")
        suggest = trial.suggest_int if whole else trial.suggest_float
        found[path] = suggest(path, values["low"], values["high"], log=log)
    return found


def search(
    folder: Path,
    objective: Objective,
    space: Mapping[str, Any],
    start: Mapping[str, Any],
    trials: int,
    seed: int,
    config: Mapping[str, Any],
) -> optuna.Study:
    """Search, or go on with a search; the first trial is what the config says.

    Args:
        folder: Holds the study, a file.
        objective: Trains under settings and returns the score, the more the better; tells it after each epoch.
        space: Of :func:`drawn`.
        start: The settings of the first trial, of everything in the space.
        trials: How many there are to be, all in all.
        seed: Of the sampler.
        config: All settings by their path: a search goes on only with the same.

    Raises:
        BadInput: If the file is a study of another space or config.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    # no pool: it would keep connections open, which Python 3.13 warns of
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / STUDY}", engine_kwargs={"poolclass": NullPool})
    study = optuna.create_study(
        storage=storage,
        study_name="raremask",
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3),
        load_if_exists=True,
    )
    asked = {"space": json.dumps(space)} | {key: str(value) for key, value in config.items()}
    there = study.user_attrs.get("asked", asked)
    if differ := [key for key in sorted(there.keys() | asked.keys()) if there.get(key) != asked.get(key)]:
        raise BadInput(
            f"{folder} holds a search of another {', '.join(differ[:5])}. Name another folder=, or delete it."
        )
    study.set_user_attr("asked", asked)
    state = optuna.trial.TrialState
    for trial in study.get_trials(states=[state.RUNNING]):
        study.tell(trial.number, state=state.FAIL)  # it was killed
    if not study.get_trials(states=[state.COMPLETE, state.PRUNED, state.WAITING]):
        study.enqueue_trial({path: value for path, value in start.items() if _holds(space[path], value)})

    def run(trial: optuna.Trial) -> float:
        def tell(epoch: int, value: float) -> None:
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        settings = drawn(trial, space, start)
        print(f"\ntrial {trial.number + 1}/{trials}: {words(settings)}")
        return objective(settings, tell)

    # seeded by what is there: or a search that goes on would draw again what it has drawn
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    while len(study.get_trials(deepcopy=False, states=[state.COMPLETE, state.PRUNED])) < trials:
        study.optimize(run, n_trials=1)
    return study


def _holds(values: Any, value: Any) -> bool:
    """Whether a value lies in a range, or is one of the choices."""
    if isinstance(values, list):
        return value in values
    is_range = isinstance(values, Mapping) and {"low", "high"} <= values.keys()
    return is_range and isinstance(value, (int, float)) and values["low"] <= value <= values["high"]


def words(settings: Mapping[str, Any]) -> str:
    """Write settings in a line.

    >>> words({"optimizer.lr": 0.00123456, "model.base": 8})
    'optimizer.lr=0.00123, model.base=8'
    """
    return ", ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in settings.items()
    )


def recipe(
    study: optuna.Study, command: str, choices: Mapping[str, str], changes: Mapping[str, Any], monitor: str
) -> str:
    """Return the best settings as an experiment, a lab record in YAML.

    Args:
        study: With one complete trial or more.
        command: What was typed.
        choices: What was chosen from each group.
        changes: Values that were changed, by their path.
        monitor: The score.
    """
    complete = [trial for trial in study.trials if trial.value is not None]
    killed = optuna.trial.TrialState.FAIL
    began = next(trial for trial in study.trials if trial.state != killed)
    first = f"{began.value:.4f}" if began.value is not None else "cut off"
    nested: dict[str, Any] = {}
    for path, value in {**changes, **study.best_params}.items():
        node = nested
        *parents, last = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    overrides = "".join(f"  - override /{group}: {choice}\n" for group, choice in choices.items())
    return (
        "# @package _global_\n"
        f"# Found by: {command}, {date.today()}\n"
        f"# {monitor} {study.best_value:.4f}, the best of {len(complete)} whole trials ({len(study.trials)} begun); "
        f"where the search began: {first}.\n"
        "# The best of many is too good to be true: train it with several seeds before you believe it.\n"
        f"defaults:\n{overrides}\n" + OmegaConf.to_yaml(nested)
    )


def draw(study: optuna.Study, monitor: str) -> Figure:
    """Draw the score of each trial, and over each setting; hollow are those that were cut off."""
    trials = [trial for trial in study.trials if trial.intermediate_values or trial.value is not None]
    values = [max(trial.intermediate_values.values(), default=trial.value or math.nan) for trial in trials]
    whole = [trial.value is not None for trial in trials]
    panels: dict[str, list[Any]] = {"trial": [trial.number + 1 for trial in trials]}
    panels |= {path: [trial.params.get(path) for trial in trials] for path in study.best_params}
    figure = Figure(figsize=(3.4 * len(panels), 3.3), layout="constrained")
    for axis, (name, places) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        numbers = all(type(place) in (int, float) for place in places)
        for place, value, complete in zip(places if numbers else map(str, places), values, whole, strict=True):
            axis.plot(place, value, "o", color="#4477aa", markerfacecolor="#4477aa" if complete else "white")
        if name != "trial" and all(isinstance(place, float) for place in places):
            axis.set_xscale("log")
        axis.set(xlabel=name, ylabel=monitor)
        axis.grid(alpha=0.3)
    return figure


def write(
    folder: Path,
    study: optuna.Study,
    command: str,
    choices: Mapping[str, str],
    changes: Mapping[str, Any],
    monitor: str,
) -> None:
    """Write `best.yaml` and `study.png`.

    Args:
        folder: Where.
        study: With one complete trial or more.
        command: What was typed.
        choices: What was chosen from each group.
        changes: Values that were changed, by their path.
        monitor: The score.
    """
    write_text(folder / "best.yaml", recipe(study, command, choices, changes, monitor))
    write_figure(folder / "study.png", draw(study, monitor), dpi=120)
