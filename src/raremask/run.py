"""What the entry points do but for training: evaluate, describe, predict, compare, tune."""

import itertools
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor
from omegaconf import DictConfig, OmegaConf

from raremask import BadInput, description, evaluation, shipped
from raremask.building import SPLIT, build, build_data, build_trainer, choices_of, load_config, network
from raremask.callbacks import Progress
from raremask.commandline import folders_of, program, runs_of
from raremask.compare import report
from raremask.compare.results import Run
from raremask.data.base import ImageMaskData
from raremask.evaluation import Finished
from raremask.figures import Paint, gallery
from raremask.prediction import painter, predict_files
from raremask.runfolder import claimed, flat, read_status, write_figure
from raremask.scoretables import summaries
from raremask.scoring import SELECTION, load_choice, load_weights
from raremask.sweeps import NO_PART
from raremask.terminal import quieten

OF_A_RUN = ("resume", "retry", "sweep", "leaks", "selection", "figures", "logger")  # settings, not of a search


def evaluate(cfg: DictConfig) -> float:
    """Rebuild runs from their config and checkpoint, and score one split again.

    Args:
        cfg: The composed `conf/evaluate.yaml`.

    Returns:
        The mean Dice over the images of the split; of the first run, if there are several.

    Raises:
        BadInput: If a checkpoint is not there, several runs do not have the same images in the split, or a run has not
            chosen on validation and the split is test.
    """
    quieten()
    folders = [Path(run) for run in runs_of(cfg.run)]
    unfinished = [folder for folder in folders if not _has_ended(folder)]
    if unfinished and cfg.split == "test":
        raise BadInput(
            f"{unfinished[0]} has not ended: for its weights nothing was chosen on validation yet. Let it end "
            f"({program('train')} resume={unfinished[0]}), or look at validation: split=val."
        )
    places = {"data_dir": cfg.data_dir} | {f"dataset.{key}": place for key, place in cfg.dataset.items()}
    runs = _finished(folders, cfg.checkpoint, {key: place for key, place in places.items() if place is not None})
    evaluation.same_images(runs, cfg.split)
    shown = evaluation.asked_for(runs[0], cfg.split, cfg.images)
    parts = cfg.trainer if "trainer" in cfg else load_config(runs[0].folder).trainer
    trainer = build_trainer(parts, callbacks=[Progress()], logger=False, enable_checkpointing=False)
    runs = [
        run
        if cfg.checkpoint == "best" and run.folder not in unfinished  # for it this was chosen when it ended
        else evaluation.choose_again(
            trainer, run, cfg.checkpoint, OmegaConf.to_container(load_config(run.folder).selection)
        )
        for run in runs
    ]
    write = not (cfg.verify or unfinished)
    scored = [evaluation.score_again(trainer, run, cfg.split, cfg.checkpoint, write) for run in runs]
    judged = [images for images, _ in scored]
    if cfg.verify and trainer.is_global_zero:
        for run, (_, change) in zip(runs, scored, strict=True):
            evaluation.verify(run, cfg.split, change)
    out = Path(str(cfg.out))
    if len(runs) > 1:
        evaluation.side_by_side(trainer, runs, judged, cfg.split, out)
    if cfg.figure == "comparison" and trainer.is_global_zero:
        rows = evaluation.comparison(runs, judged, cfg.split, shown)
        figure = gallery(rows, "", Paint(**cfg.figures), [run.name for run in runs])
        write_figure(out / "comparison.png", figure, dpi=120)
        print(f"Picture: {os.path.relpath(out)}/comparison.png")
    return summaries(judged[0].counts, runs[0].module.empty)["dice"]


def _has_ended(folder: Path) -> bool:
    return (folder / SELECTION).is_file() and read_status(folder).get("state", "done") == "done"


def _finished(folders: Sequence[Path], checkpoint: str, places: Mapping[str, Any]) -> list[Finished]:
    """Open runs, with their data in its new places; what was read for one serves the next, if it has the same images.

    Raises:
        BadInput: If a run has no such checkpoint or no split, or its dataset has no such place.
    """
    saved = [load_config(folder) for folder in folders]
    for key, cfg in itertools.product(places, saved):
        if key not in flat(OmegaConf.to_container(cfg)):
            raise BadInput(f"{key}: the dataset of this run has no such place.")
        OmegaConf.update(cfg, key, places[key])
    choices = [choices_of(folder) | {"seed": cfg.seed} for folder, cfg in zip(folders, saved, strict=True)]
    names = evaluation.short_names(folders, choices)
    runs: list[Finished] = []
    read: dict[str, ImageMaskData] = {}
    for folder, name, cfg in zip(folders, names, saved, strict=True):
        file = folder / "checkpoints" / f"{checkpoint}.ckpt"
        if not file.is_file():
            present = ", ".join(sorted(path.stem for path in file.parent.glob("*.ckpt"))) or "none"
            raise BadInput(f"There is no {file}. Checkpoints in this run: {present}.")
        if not (folder / SPLIT).is_file():
            raise BadInput(f"{folder} has no {SPLIT}: which image was in which split is not known.")
        images = OmegaConf.to_yaml(cfg.dataset, resolve=True) + (folder / SPLIT).read_text()
        data, module = build(cfg, data=read.get(images))
        read[images] = data
        load_weights(module, file)
        runs.append(Finished(folder, name, data, module, load_choice(folder)))
    return runs


def describe(cfg: DictConfig) -> None:
    """Print what a dataset is like, and write it as Markdown, JSON, CSV and pictures.

    Args:
        cfg: The composed `conf/describe.yaml`.
    """
    name = HydraConfig.get().runtime.choices.dataset
    if place := cfg.dataset.get("pairs") or cfg.dataset.get("images") or cfg.dataset.get("root"):
        name = f"{name}: {place}"
    description.describe(build_data(cfg), name, Path(str(cfg.folder)), cfg.empty)


def predict(cfg: DictConfig) -> int:
    """Predict masks for images that need no truth, and write them at native size.

    Args:
        cfg: The composed `conf/predict.yaml`.

    Returns:
        How many images could not be read; the others are done.

    Raises:
        BadInput: If runs do not go together, there is no image, or a file would be written over; before anything is.
    """
    quieten()
    places = [shipped.find(Path(run)) for run in runs_of(cfg.run)]
    models = [shipped.read(place) for place in places]
    nets = [network(place, model) for place, model in zip(places, models, strict=True)]
    postprocess = instantiate(cfg.postprocess) if "postprocess" in cfg else None
    paint = painter(models, nets, cfg.device, cfg.threshold, cfg.views, postprocess)
    submission = instantiate(cfg.submission) if "submission" in cfg else None
    source, out = Path(str(cfg.images)), Path(str(cfg.out))
    return predict_files(paint, source, out, cfg.probabilities, cfg.overlays, submission, cfg.overwrite)


def compare(cfg: DictConfig) -> None:
    """Compare runs, and write a report.

    Args:
        cfg: The composed `conf/compare.yaml`.

    Raises:
        BadInput: If the runs cannot be compared.
    """
    places = [Path(place) for place in folders_of(cfg.runs)]
    out = Path(str(cfg.out)) if cfg.out is not None else places[0] / "report"
    paint = Paint(**cfg.figures)
    print(report.compare(places, out, _images_of, cfg.metric, cfg.baseline, cfg.margin, cfg.draws, paint))
    print(f"\nReport: {os.path.relpath(out)}/index.html (also report.md, results.csv)\n")


def _images_of(run: Run) -> report.Look:
    """What gives the images of a run: they are read one by one, not the whole dataset."""
    cfg = load_config(run.folder).dataset
    data = instantiate(cfg, augment=None)
    records = {record.name: record for record in data.records()}

    def look(name: str) -> tuple[np.ndarray, np.ndarray]:
        if name not in records:
            raise BadInput(f"{name} is not in the dataset any more")
        return data.arrays(records[name])[:2]

    return look


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
    from raremask import tuning  # Optuna is an extra

    quieten()
    if OmegaConf.select(cfg, "trainer.strategy", default="auto") != "auto":
        raise BadInput("A search trains in one process, one trial after another: leave trainer=ddp away.")
    folder, chosen = Path(str(cfg.folder)), HydraConfig.get()
    for typed in chosen.overrides.task:
        if re.split(r"[.=]", typed.lstrip("+~"), maxsplit=1)[0] in OF_A_RUN:
            raise BadInput(f"{typed}: a search does nothing with it. Train the recipe that it finds with it.")
    if cfg.space:
        space = OmegaConf.to_container(cfg.space)
    else:
        space = dict(tuning.space_around({"lr": float(cfg.optimizer.lr)}, "optimizer"))
        space |= tuning.space_around(OmegaConf.to_container(cfg.loss), "loss")
    plain = OmegaConf.to_container(cfg)
    config = flat({key: plain[key] for key in plain if key not in ("trials", "folder", "space", "data_dir")})
    same = {path: value for path, value in config.items() if path not in NO_PART}  # or it is another search
    if unknown := [path for path in space if path not in config]:
        raise BadInput(f"space: {unknown[0]} is not a setting of this run, of which a search could change the value.")
    choices = {group: chosen.runtime.choices[group] for group in tuning.GROUPS if group in chosen.runtime.choices}
    changes = _changes(config, choices)
    values = {path: OmegaConf.select(cfg, path) for path in space}  # resolved, if they refer to others
    start = {path: list(value) if OmegaConf.is_list(value) else value for path, value in values.items()}
    with claimed(folder):  # another search would take this one's trial for one that was killed
        study = tuning.search(folder, _trial(cfg, space), space, start, cfg.trials, cfg.seed, same)
    tuning.write(folder, study, f"{program('tune')} {' '.join(chosen.overrides.task)}", choices, changes, cfg.monitor)
    print(f"\nBest {cfg.monitor}: {study.best_value:.4f}, with {tuning.words(study.best_params)}")
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
    from raremask import tuning

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
        parts.append(tuning.Reporter(one.monitor, told))
        trainer = build_trainer(one.trainer, callbacks=parts, logger=False, enable_checkpointing=False)
        trainer.fit(module, datamodule=images)
        return max(scores)

    return train
