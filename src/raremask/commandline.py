"""Judges the command line before anything heavy is imported."""

import hashlib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from raremask import BadInput
from raremask.errors import ELSEWHERE, listed, meant
from raremask.metrics.overlap import EMPTY, SCORES
from raremask.runfolder import STATUS, read_status, slurm_job
from raremask.settings import FILES, GROUPS, PLACE, SWEPT, flat

HERE = Path(__file__).parent
#: Folder of all choices: beside `src` in a checkout, inside of the package where it is installed.
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parents[1] / "conf"
LEAKS = ("warn", "error", "ignore")
VIEWS = ("none", "flips", "turns", "scales")  # of raremask.inference, which imports torch; a test compares them
DEVICES = ("auto", "cpu", "cuda")
NEEDED = ("best", "history", "last")  # callbacks that a run cannot do without
PALETTES = ("classic", "colour_blind")  # of raremask.figures, likewise


def job_name(*choices: object) -> str:
    """Name a job of a sweep by its choices, without `=`, `,` or `/`; of a setting's path the last part is enough.

    Other choices are `setting=value`, joined with `&`; `trainer.devices` and the like, which change nothing that is
    computed, are no part of the name. A long name ends in a digest of all of it, so that two jobs never share one.

    >>> job_name("cvc", "unet", "dice", "seed0", "optimizer.lr=0.1&dataset.size=[64,64]&dataset.workers=0")
    'cvc_unet_dice_seed0_lr-0.1_size-64-64'
    """
    parts = [part for choice in choices for part in str(choice).split("&") if part]
    same = {*PLACE} - {*SWEPT}
    parts = [part for part in parts if part.partition("=")[0].lstrip("+") not in same]
    short = [re.sub(r"^[^=]*\.(?=[^=.]*=)", "", part) for part in parts]
    name = "_".join(re.sub(r"[^\w.+-]+", "-", part.translate({91: "", 93: ""})).strip("-") for part in short)
    return name if len(name) <= 120 else f"{name[:107]}_{hashlib.sha256('&'.join(parts).encode()).hexdigest()[:12]}"


def config_folder(run: str) -> str | None:
    """Say where Hydra keeps the config: in `.hydra`, or nowhere if the folder holds a run already.

    A folder's first config is that of its run; a resumed or repeated command must not write over it. A start that was
    killed before there was a status has left a config of no run.
    """
    return None if (Path(run) / STATUS).is_file() else ".hydra"


def run_folder(resume: str | None, new: str) -> str:
    """Say where a run writes: in the folder that it resumes, or in a new one.

    Raises:
        BadInput: If the folder to resume is not that of a run, or not all of it.
    """
    if resume is None:
        several = int(os.environ.get("SLURM_NTASKS", 1)) > 1  # each process would have a time of its own
        new = f"{Path(new).parent}/slurm-{slurm_job()}" if several and slurm_job() else new
        return str(queued_again(Path(new).parent) or new)
    resume = str(resume)  # a folder may be called 2026
    if not resume:  # of a variable of the shell that is not set
        raise BadInput("resume= names no folder. Leave it away, or name the folder of a run.")
    check_run(resume)  # here, because next Hydra writes into the folder
    if not (Path(resume) / STATUS).is_file():  # and would write over the run's config
        raise BadInput(f"{resume} has no {STATUS}: it is not the whole folder of a run, and cannot be gone on with.")
    return resume


def queued_again(runs: Path) -> Path | None:
    """Return the run that this job of SLURM had begun when it was queued again, or None.

    Args:
        runs: Holds the folders of runs.
    """
    if not int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        return None
    for file in sorted(runs.glob(f"*/{STATUS}")):
        facts = read_status(file.parent)
        mine = facts.get("slurm") == slurm_job() and facts.get("arguments") == sys.argv[1:]
        if mine and facts["state"] in ("running", "interrupted"):
            return file.parent
    return None


for resolver in (job_name, config_folder, run_folder):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def program(command: str) -> str:
    """Return how a command is called: `python src/train.py` in a checkout, `raremask-train` where it is installed."""
    return f"python src/{command}.py" if Path(sys.argv[0]).suffix == ".py" else f"raremask-{command}"


def at_home(argument: str) -> str:
    """Write out the `~` of a path, which shells do in a word of its own, but not in `dataset.images=~/polyps`.

    >>> at_home("dataset.images=~/polyps") == f"dataset.images={Path.home()}/polyps"
    True
    """
    return re.sub(r"(?<=[=,\[])~(?=/)", lambda _: str(Path.home()), argument)


def check(cfg: DictConfig) -> None:
    """Refuse, within a second, what would otherwise be found after minutes.

    The folder that Hydra made for the run is taken away again.

    Raises:
        BadInput: If the monitored score does not exist, a number is not one or too small, the policy for empty masks is
            unknown, or the dataset's folder is not there.
    """
    try:
        _check(cfg, "train")
    except BadInput:
        folder = Path(cfg.folder)
        if {path.name for path in folder.iterdir()} <= {".hydra", "train.log"}:
            shutil.rmtree(folder)
        raise


def check_settings(cfg: DictConfig, command: str) -> None:
    """Refuse settings that nobody reads, and `yes` and `no`, which Hydra reads as words: both would be taken as true.

    Hydra takes any setting that a recipe names, or that is typed with a `+`. A recipe may have variables of its own, if
    it uses them. What is inside a group is refused by the class that it is for.

    Raises:
        BadInput: If there is one; of settings that nobody reads, at the top of the config.
    """
    for path, value in flat(OmegaConf.to_container(cfg)).items():
        a_name = "." not in path or path in ("dataset.root", *FILES)  # a sweep or a folder may be called no
        if isinstance(value, str) and value.lower() in ("yes", "no", "on", "off") and not a_name:
            raise BadInput(f"{path}={value} is read as a word. Write true or false.")
    known = names(command)
    others = [str(key) for key in cfg if key not in known]
    used = set(re.findall(r"\$\{(\w+)", OmegaConf.to_yaml(cfg))) if others else set()
    if unknown := [key for key in others if key not in used]:
        near = meant(unknown[0], known)
        if ELSEWHERE.get(unknown[0], "").partition("=")[0] in known:
            near = f" Did you mean {ELSEWHERE[unknown[0]]}?"
        raise BadInput(
            f"{unknown[0]} is not a setting of {program(command)}.{near}\n"
            f"There are: {listed([key for key in known if key in cfg])}"
        )


def names(command: str) -> list[str]:
    """Return what stands at the top of a command's config: settings, and groups, also if nothing is chosen of one."""
    primary = OmegaConf.load(CONF / f"{command}.yaml")
    found = [str(key) for key in primary if key not in ("defaults", "hydra")]
    for entry in primary.defaults:
        if OmegaConf.is_dict(entry):
            found += [str(group) for group in entry if not str(group).startswith("override ")]
        elif entry != "_self_":  # all of another config, or a part of this one, as split@split
            found += [entry.partition("@")[2]] if "@" in entry else names(entry)
    return found


def _check(cfg: DictConfig, command: str) -> None:
    check_settings(cfg, command)
    scores = [f"val/{name}{suffix}" for suffix in ("", "_fov") for name in (*SCORES, "dice_pooled", "iou_pooled")]
    if cfg.monitor not in scores:
        why = " The values of two losses, or of two stages, cannot be compared." if "loss" in str(cfg.monitor) else ""
        raise BadInput(
            f"monitor={cfg.monitor} is not a score that is logged.{why}{meant(cfg.monitor, scores, 'monitor')}\n"
            f"Scores: {', '.join(scores)} (_fov: inside the field of view, where a dataset has one)"
        )
    for key, kind, least in (("seed", int, 0), ("trainer.max_epochs", int, 1), ("optimizer.lr", (int, float), 0)):
        value = OmegaConf.select(cfg, key)
        if not _is_number(value, kind, least):
            raise BadInput(f"{key}={value} must be a {'whole ' if kind is int else ''}number, {least} or more.")
    _check_flags(cfg, "retry")
    _check_selection(cfg.selection)
    _check_figures(cfg.figures)
    if missing := [name for name in (*GROUPS, "trainer") if cfg.get(name) is None]:
        raise BadInput(f"{missing[0]} cannot be left out: a run needs one. conf/{missing[0]} has the choices.")
    if missing := [name for name in NEEDED if cfg.callbacks.get(name) is None]:
        raise BadInput(f"callbacks.{missing[0]} cannot be left out: a run needs what it writes.")
    for name, callback in cfg.callbacks.items():
        if callback is not None and not (OmegaConf.is_dict(callback) and "_target_" in callback):
            raise BadInput(
                f"callbacks.{name}: no such callback is chosen. Choose what has it, such as callbacks=two_stage for "
                "callbacks.switch, or give it a _target_."
            )
    if cfg.leaks not in LEAKS:
        raise BadInput(
            f"leaks={cfg.leaks} is no answer to leaks.{meant(cfg.leaks, LEAKS, 'leaks')} Choices: {', '.join(LEAKS)}"
        )
    epoch, epochs = OmegaConf.select(cfg, "callbacks.switch.epoch"), cfg.trainer.max_epochs
    if _is_number(epoch, int, epochs):
        raise BadInput(
            f"callbacks.switch.epoch={epoch} is never reached with trainer.max_epochs={epochs}. Set the one lower, or "
            "the other higher."
        )
    check_dataset(cfg)


def _check_figures(cfg: DictConfig) -> None:
    """Refuse what would be found only after training, when pictures are drawn."""
    _check_keys(cfg, "figures", ("palette", "contours"))
    if cfg.palette not in PALETTES:
        raise BadInput(f"figures.palette={cfg.palette} must be one of {', '.join(PALETTES)}.")
    _check_flags(cfg, "contours", part="figures.")


def _check_flags(cfg: DictConfig, *keys: str, part: str = "") -> None:
    for key in keys:
        if not isinstance(cfg[key], bool):
            raise BadInput(f"{part}{key}={cfg[key]} must be true or false.")


def _check_keys(cfg: DictConfig, part: str, known: Sequence[str]) -> None:
    if unknown := [str(key) for key in cfg if key not in known]:
        near = meant(unknown[0], known, part).replace("=", ".")
        raise BadInput(f"{part}.{unknown[0]} is not a setting.{near}\n{part} has: {listed(known)}")


def _check_selection(cfg: DictConfig) -> None:
    """Refuse what would be found only after training, when what it needs is chosen."""
    _check_keys(cfg, "selection", ("metric", "views", "tile", "areas", "largest", "holes"))
    _check_flags(cfg, "largest", "holes", part="selection.")
    if cfg.metric not in SCORES:
        raise BadInput(f"selection.metric={cfg.metric} must be one of {', '.join(SCORES)}.{meant(cfg.metric, SCORES)}")
    if not OmegaConf.is_list(cfg.views) or not cfg.views or not set(cfg.views) <= set(VIEWS):
        raise BadInput(f"selection.views={cfg.views} must be a list of {', '.join(VIEWS)}, the simplest first.")
    if cfg.tile is not None and not (OmegaConf.is_list(cfg.tile) and len(cfg.tile) == 2 and _whole(cfg.tile, 16)):
        raise BadInput(f"selection.tile={cfg.tile} must be [height,width], 16 pixels or more, or null.")
    if not OmegaConf.is_list(cfg.areas) or not _whole(cfg.areas, 1):
        raise BadInput(f"selection.areas={cfg.areas} must be a list of whole numbers of pixels, 1 or more.")


def _whole(numbers: Sequence[object], least: int) -> bool:
    return all(_is_number(number, int, least) for number in numbers)


def _is_number(value: Any, kind: Any, least: float) -> bool:
    """Whether a value is a number of a kind, neither true nor false, nor less than something, nor NaN."""
    return isinstance(value, kind) and not isinstance(value, bool) and value >= least


def check_dataset(cfg: DictConfig) -> None:
    """Refuse a dataset that is not where it should be.

    Raises:
        BadInput: If the dataset has a folder and it is not there, or the policy for empty masks is unknown.
    """
    if cfg.empty not in EMPTY:
        raise BadInput(f"empty={cfg.empty} is no policy for empty masks. Choices: {', '.join(EMPTY)}")
    table = cfg.dataset.get("pairs")
    if table is not None and not Path(str(table)).is_file():
        raise BadInput(f"dataset.pairs={table}: there is no such file.")
    for key in ("root", "images", "masks") if table is None else ():
        place = cfg.dataset.get(key)
        if place is not None and not Path(str(place)).is_dir():
            raise BadInput(
                f"There is no folder {place}. Put the dataset there, name its folder with dataset.{key}=<folder>, "
                "or name the folder of all datasets with the environment variable RAREMASK_DATA."
            )


def check_tune(cfg: DictConfig) -> None:
    """Refuse a search that cannot be made.

    Raises:
        BadInput: As :func:`check`; or if Optuna is not there, or the number of trials is below 1.
    """
    _check(cfg, "tune")
    if not _is_number(cfg.trials, int, 1):
        raise BadInput(f"trials={cfg.trials} must be a whole number, 1 or more.")
    if importlib.util.find_spec("optuna") is None:
        raise BadInput("A search needs Optuna: pip install '.[tune]' in the checkout")


def check_compare(cfg: DictConfig) -> None:
    """Refuse a comparison that cannot be made.

    Raises:
        BadInput: If no folder is named or one is not there, or a number is out of its range.
    """
    check_settings(cfg, "compare")
    for place in folders_of(cfg.runs):
        if not place or not Path(place).is_dir():
            raise BadInput(
                f"runs={place or None}: name the folder of a sweep, runs=outputs/sweeps/<name>, or of several runs."
            )
    _check_figures(cfg.figures)
    for key, kind, least in (("margin", (int, float), 0), ("draws", int, 100)):
        if not _is_number(cfg[key], kind, least):
            raise BadInput(f"{key}={cfg[key]} must be a number, {least} or more.")


def check_evaluate(cfg: DictConfig) -> None:
    """Refuse an evaluation that cannot be made.

    Raises:
        BadInput: If a run is not there, or there is no such setting, split, figure or palette.
    """
    check_settings(cfg, "evaluate")
    for run in runs_of(cfg.run):
        check_run(run)
    _check_keys(cfg.dataset, "dataset", ("root", "images", "masks", "pairs"))
    for key, place in {"data_dir": cfg.data_dir, **{f"dataset.{key}": cfg.dataset[key] for key in cfg.dataset}}.items():
        if place is not None and not Path(str(place)).exists():
            raise BadInput(f"{key}={place} is not there.")
    _check_figures(cfg.figures)
    for key, known in (("split", ("val", "test")), ("figure", (None, "comparison"))):
        value = OmegaConf.select(cfg, key)
        if value not in known:
            raise BadInput(f"{key}={value} must be {' or '.join(name or 'null' for name in known)}.")
    _check_flags(cfg, "verify")
    if cfg.images is not None and cfg.figure is None:
        raise BadInput("images= names those of a figure; add figure=comparison.")


def check_predict(cfg: DictConfig) -> None:
    """Refuse a prediction that cannot be made.

    Raises:
        BadInput: If a run or the images are not there, no folder is named for the masks, or a setting is unknown.
    """
    check_settings(cfg, "predict")
    for run in runs_of(cfg.run):
        if not run or not Path(run).exists():
            check_run(run)
    if cfg.images is None or not Path(str(cfg.images)).exists():
        raise BadInput(f"images={cfg.images}: name a folder of images, or one image.")
    if cfg.out is None or Path(str(cfg.out)).is_file():
        raise BadInput("Where should the masks go? Name a folder: out=<folder>")
    if cfg.threshold is not None and not (_is_number(cfg.threshold, (int, float), 0) and cfg.threshold < 1):
        raise BadInput(f"threshold={cfg.threshold} must be a number from 0 to below 1, or null.")
    if cfg.views not in (None, *VIEWS):
        raise BadInput(f"views={cfg.views} must be one of {', '.join(VIEWS)}, or null.{meant(str(cfg.views), VIEWS)}")
    if cfg.device not in DEVICES:
        raise BadInput(f"device={cfg.device} must be one of {', '.join(DEVICES)}.")
    _check_flags(cfg, "overlays", "overwrite")
    if cfg.probabilities not in (None, "png", "npz"):
        raise BadInput(f"probabilities={cfg.probabilities} must be png, npz or null.")


def folders_of(setting: Any) -> list[str]:
    """Return the folders of a setting that may name one or several; an empty name where it names none."""
    return ["" if one is None else str(one) for one in (setting if OmegaConf.is_list(setting) else [setting])] or [""]


def runs_of(setting: Any) -> list[str]:
    """Return the runs that a setting names; the folder of a sweep stands for all of its runs.

    Raises:
        BadInput: If one is named twice.
    """
    runs = []
    for folder in folders_of(setting):
        jobs = sorted(Path(folder).glob("*/.hydra/config.yaml")) if folder else []
        runs += [str(config.parents[1]) for config in jobs] or [folder]
    if len({run and Path(run).resolve() for run in runs}) < len(runs):
        raise BadInput(f"A run is named twice: {', '.join(runs)}.")
    return runs


def check_run(folder: str) -> None:
    """Refuse a folder that holds no run.

    Raises:
        BadInput: If no folder is given, or there is no `.hydra/config.yaml` in it.
    """
    if not folder:
        raise BadInput("Which run? Name its folder: run=outputs/runs/<dataset>/<loss>/<time>, or that of a sweep.")
    if not (Path(folder) / ".hydra" / "config.yaml").is_file():
        near = sorted(str(path.parent.parent) for path in Path("outputs").glob("**/.hydra/config.yaml"))
        known = f" Runs: {', '.join(near[-3:])}" if near else ""
        raise BadInput(f"{folder} is not the folder of a run: it has no .hydra/config.yaml.{known}")
