"""What can be typed: `python src/train.py` in a checkout, `raremask-train` where the package is installed.

Each command judges its config and hands it on; what takes seconds to import is imported only then.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import hydra
from omegaconf import DictConfig

from raremask import commandline, errors, sweeps


def command(name: str, around: Callable[[], AbstractContextManager] = nullcontext) -> Callable:
    """Make a command of a function of its config, which Hydra composes from `conf/<name>.yaml`.

    What the user can mend is said in one message, see :func:`raremask.errors.plain_errors`.

    Args:
        name: Of the config.
        around: Makes a context in which it runs.
    """

    def made(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        composed = hydra.main(version_base="1.3", config_path=str(commandline.CONF), config_name=name)(function)

        @wraps(function)
        def call() -> None:
            sys.argv[1:] = map(commandline.at_home, sys.argv[1:])
            with errors.plain_errors(commandline.names(name)), around():
                composed()

        return call

    return made


@command("train", sweeps.told)
def train(cfg: DictConfig) -> float:
    """Train; return the best monitored score, so that a sweeper can compare runs."""
    if sweeps.is_job():
        return sweeps.run(cfg, _train)
    commandline.check(cfg)
    return _train(cfg, not cfg.resume and sweeps.goes_on(cfg))


def _train(cfg: DictConfig, resume: bool = False) -> float:
    from raremask import training

    return training.train(cfg, resume)


@command("evaluate")
def evaluate(cfg: DictConfig) -> float:
    """Score finished runs again; return the mean Dice, so that a script can use it."""
    commandline.check_evaluate(cfg)
    from raremask import evaluation

    return evaluation.evaluate(cfg)


@command("predict")
def predict(cfg: DictConfig) -> None:
    """Write masks for new images; exit with 1 if an image could not be read."""
    commandline.check_predict(cfg)
    from raremask import run

    if run.predict(cfg):
        sys.exit(1)


@command("compare")
def compare(cfg: DictConfig) -> None:
    """Compare finished runs: write the report, and print the most of it."""
    commandline.check_compare(cfg)
    from raremask import run

    run.compare(cfg)


@command("describe")
def describe(cfg: DictConfig) -> None:
    """Look at a dataset before training: print the description and write it."""
    commandline.check_settings(cfg, "describe")
    commandline.check_dataset(cfg)
    from raremask import run

    run.describe(cfg)


@command("tune")
def tune(cfg: DictConfig) -> float:
    """Search for better settings on validation; return the best score."""
    commandline.check_tune(cfg)
    from raremask import tuning  # Optuna is an extra

    return tuning.tune(cfg)
