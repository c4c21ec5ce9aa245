"""What train.py does: a run from its config to its folder, and on from where it was interrupted."""

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from raremask import BadInput, __version__, description, faults
from raremask.building import AUTO, build, build_trainer, check_targets, check_trainer, choices_of, load_config
from raremask.callbacks import LossSwitch
from raremask.checkpoints import newest
from raremask.commandline import program
from raremask.data.base import ImageMaskData
from raremask.figures import Paint
from raremask.interruption import Interrupted, Interruption
from raremask.module import Segmenter
from raremask.receipt import check_same_data, data_digest, write_receipt
from raremask.runfolder import begun, claimed, read_status, status, write_text
from raremask.scoretables import DEFAULT, summaries
from raremask.scoring import (
    choose,
    draw,
    judge,
    load_weights,
    save_choice,
    use_test,
    write_masks,
    write_split,
)
from raremask.selection import Selection
from raremask.sentinels import STOPPED
from raremask.settings import FILES, PLACE
from raremask.shipped import Shipped
from raremask.sweeps import differences, is_job
from raremask.tables import read_table
from raremask.terminal import (
    quieten,
    say_what_came_out,
    say_what_determinism_costs,
    say_what_never_began,
    say_what_starts,
    warn_of_empty_masks,
)


def train(cfg: DictConfig, resume: bool = False) -> float:
    """Train, score the best checkpoint on validation and test, and leave a run folder.

    Args:
        cfg: The composed `conf/train.yaml`.
        resume: Whether to go on with the run that its folder holds, of the same config.

    Returns:
        The best monitored score.

    Raises:
        BadInput: If the data, the device or the folder does not allow it; before training starts.
    """
    quieten()
    if cfg.resume:
        before = _saved(str(cfg.resume))
        cfg, resume = _resumed(before), True
        if said := _nothing_left(before, cfg):
            print(said)
            return read_status(Path(cfg.folder))["best"]
    elif resume:
        cfg = _begun_before(cfg)
    folder = Path(cfg.folder)
    names = choices_of(folder) | {"seed": cfg.seed, "empty": cfg.empty}
    interruption = Interruption()
    with ExitStack() as ends:  # in this order, and back: what is written last is written when nobody else may
        ends.enter_context(interruption.hearing())
        results: dict[str, Any] = {}
        if rank_zero_only.rank == 0:  # trainer=ddp runs this whole script once per GPU
            ends.enter_context(claimed(folder))
            _check_claim(cfg, folder, resume)
            results = ends.enter_context(status(folder, _seconds(folder) if resume else 0.0, **names))
            (folder / STOPPED).unlink(missing_ok=True)
            ends.enter_context(_how_to_go_on(folder))
        ends.enter_context(interruption.converting())
        ends.enter_context(faults.explained(cfg.dataset.batch_size))
        return _train(cfg, names, newest(folder) if resume else None, interruption, results)


def _train(
    cfg: DictConfig, names: dict[str, Any], last: Path | None, interruption: Interruption, results: dict[str, Any]
) -> float:
    """Train in a folder that nobody else writes to.

    Args:
        cfg: The run's config.
        names: What was chosen from each group, and the seed.
        last: The checkpoint to go on from.
        interruption: Ends it in order, if it is asked to.
        results: Gets what stands in the status.
    """
    folder = Path(cfg.folder)
    check_trainer(cfg.trainer)  # before images are read
    _warn_of_strangers(cfg, folder)
    data, module = build(cfg, folder)
    digest = data_digest([picture for _, picture in data.pictures()])
    if last is None:
        description.look_for_leaks(data, cfg.leaks, folder)
    else:
        check_same_data(folder, digest)
    loggers = list(instantiate(cfg.get("logger") or {}).values())
    callbacks = [*instantiate(cfg.callbacks).values(), interruption]
    if not loggers:  # without any it would refuse to train
        callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    trainer = build_trainer(cfg.trainer, callbacks=callbacks, logger=loggers)
    if trainer.is_global_zero:
        _keep_changes(cfg, folder)
    if trainer.world_size > 1 and is_job():
        raise BadInput("A multirun trains with one process per job. With trainer=ddp, start its jobs one by one.")
    for loss in (module.loss, *(callback.loss for callback in callbacks if isinstance(callback, LossSwitch))):
        warn_of_empty_masks(loss, data.empty_share())
    if trainer.is_global_zero:
        device, precise = trainer.strategy.root_device, bool(cfg.trainer.get("deterministic"))
        write_receipt(folder, cfg.seed, digest, device, precision=str(trainer.precision), deterministic=precise)
    auto = json.loads((folder / AUTO).read_text()) if (folder / AUTO).is_file() else {}
    say_what_starts(data, module, trainer, names, auto, folder)
    say_what_determinism_costs(module, trainer, data)
    trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    say_what_never_began(module, trainer)

    trainer.loggers = []  # the curves end here: the scores of the best checkpoint are no further epoch
    try:
        epoch = load_weights(module, folder / "checkpoints" / "best.ckpt")
    except BadInput as error:  # hours of training are not lost for that
        warnings.warn(f"{error}. The last epoch is scored in its place.", stacklevel=2)
        epoch = load_weights(module, newest(folder))
        results["scored"] = "the last epoch, for best.ckpt is damaged"
    choice, seen = choose(trainer, data, module, OmegaConf.to_container(cfg.selection))
    save_choice(folder, choice, epoch)
    judged = {"val": judge(trainer, data, module, "val", choice.selection, seen=seen)}
    seen.clear()
    judged["test"] = judge(trainer, data, module, "test", choice.selection)
    use_test(folder)  # not before: what is interrupted has shown nothing, and is scored again
    for split, images in judged.items():
        write_split(folder / f"per_image_{split}.csv", images, module.empty)
    write_masks(folder / "masks_test.csv", judged["test"])
    scores = {split: summaries(images.counts, module.empty) for split, images in judged.items()}
    monitored = scores["val"][f"{cfg.monitor.removeprefix('val/')}{DEFAULT}"]
    network = OmegaConf.to_container(cfg.model, resolve=True)
    _ship(folder, network, data, module, choice.selection, names, scores)
    draw(module, folder, choice, judged["test"], Paint(**cfg.figures))
    log_results(loggers, cfg, names, scores["test"], monitored, trainer.current_epoch)
    results |= {"best": monitored, "epochs": trainer.current_epoch}
    say_what_came_out(folder, module.empty, judged["test"], choice.selection)
    return monitored


@rank_zero_only
def _warn_of_strangers(cfg: DictConfig, folder: Path) -> None:
    """Say at once if the run asks for classes that would not be made again from its folder."""
    try:
        check_targets(OmegaConf.to_container(cfg), folder / ".hydra" / "config.yaml")
    except BadInput as error:
        warnings.warn(f"As it is, this run can neither be resumed nor scored again: {error}", stacklevel=2)


@contextmanager
def _how_to_go_on(folder: Path) -> Iterator[None]:
    """Say what to type when a training was interrupted."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        what = (
            f"Go on with: {program('train')} resume={os.path.relpath(folder)}"
            if begun(folder)
            else "No epoch had ended."
        )
        print(f"\nInterrupted. {what}", file=sys.stderr, flush=True)
        raise


def _seconds(folder: Path) -> float:
    """What the epochs of a run took so far."""
    file = folder / "metrics.csv"
    return sum(row["seconds"] for row in read_table(file)) if file.is_file() else 0.0


def _check_claim(cfg: DictConfig, folder: Path, resume: bool) -> None:
    """Refuse a folder that another command took between the judging of this one and now."""
    if resume:
        if not begun(folder):
            raise BadInput(f"{folder} has no checkpoint to go on from: no epoch had ended. Start it anew.")
        return
    if read_status(folder):
        raise BadInput(f"{folder} already holds a run. Choose another name (sweep=...), or go on with resume={folder}.")
    if differences(OmegaConf.load(folder / ".hydra" / "config.yaml"), cfg):
        raise BadInput(f"Another command has just started in {folder}. Give this one a folder of its own.")


@rank_zero_only
def _ship(
    folder: Path,
    network: dict[str, Any],
    data: ImageMaskData,
    module: Segmenter,
    selection: Selection,
    names: dict[str, Any],
    scores: dict[str, dict[str, float]],
) -> None:
    """Write the model as it is handed on."""
    if "encoder_weights" in network:
        network["encoder_weights"] = None  # they are among the weights; nothing is fetched again
    versions = {"raremask": __version__, "torch": torch.__version__}
    reached = {
        split: {name: value for name, value in row.items() if np.isfinite(value)} for split, row in scores.items()
    }
    Shipped(
        network=network,
        size=None if data.size is None else list(data.size),
        resize=data.resize,
        channels=data.channels,
        bits=data.bits,
        selection=selection,
        tile=None if module.tile is None else list(module.tile),
        provenance={"run": folder.name, **names, "versions": versions, "scores": reached},
    ).write(folder / "model", module.net)


@rank_zero_only
def log_results(
    loggers: list[Logger],
    cfg: DictConfig,
    names: dict[str, Any],
    scores: dict[str, float],
    monitored: float,
    epochs: int,
) -> None:
    """Log the final scores with the settings that led to them: in TensorBoard its hparams tab.

    That tab shows five settings at first, in alphabetical order; those that tell runs apart come first.

    Args:
        loggers: Of the run.
        cfg: Its config.
        names: What was chosen from each group.
        scores: Of the test split, by name.
        monitored: The monitored score of the best checkpoint.
        epochs: How many were trained.
    """
    main = {key: names[key] for key in ("dataset", "loss", "model", "seed")} | {"lr": cfg.optimizer.lr}
    others = {key: value for key, value in names.items() if key not in main}
    others |= {"batch_size": cfg.dataset.batch_size, "size": str(cfg.dataset.size), "epochs": epochs}
    settings = main | {f"setting/{key}": value for key, value in others.items()}
    results = {f"test/{name}": value for name, value in scores.items()} | {f"best/{cfg.monitor}": monitored}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(settings, results)
        else:  # others take no scores with the settings
            logger.log_hyperparams(settings)
            logger.log_metrics(results)
        logger.finalize("success")


def _resumed(saved: DictConfig) -> DictConfig:
    """The config of the run to go on with; how long it trains, and where, may change, and the run keeps it."""
    changes = [text.lstrip("+") for text in HydraConfig.get().overrides.task if not text.startswith("resume=")]
    for change in changes:
        if change.partition("=")[0] not in ("trainer.max_epochs", *PLACE, *FILES):
            raise BadInput(
                f"{change}: a resumed run keeps its config; only trainer.max_epochs may change, where it runs "
                "(trainer.accelerator, trainer.devices, +trainer.strategy; dataset.workers, dataset.memory) and where "
                "its data lies (data_dir, +dataset.root, +dataset.images, +dataset.masks, +dataset.pairs)."
            )
        if change.startswith("trainer.max_epochs="):
            if "T_max" in saved.scheduler:
                raise BadInput(
                    f"{change}: the cosine of this run ends at epoch {saved.trainer.max_epochs}, and past it rises."
                )
            history = Path(saved.folder) / "metrics.csv"
            trained = len(read_table(history)) if history.is_file() else 0
            if int(change.partition("=")[2]) < trained:
                raise BadInput(f"{change}: {trained} epochs of this run are trained already.")
    return OmegaConf.merge(saved, OmegaConf.from_dotlist(changes))


def _nothing_left(before: DictConfig, now: DictConfig) -> str:
    """Say that a run is done, and is not asked for epochs that it could train; of any other run nothing."""
    facts, limit = read_status(Path(now.folder)), before.trainer.max_epochs
    if facts["state"] != "done":
        return ""
    stopped = facts["epochs"] < limit
    if not stopped and now.trainer.max_epochs > limit:
        return ""
    of_how_many = f" of {limit}, for a callback has ended it" if stopped else ""
    more = "" if stopped or "T_max" in before.scheduler else "trainer.max_epochs=<more> trains longer, "
    said = f"{now.folder}: done after {facts['epochs']} epochs{of_how_many}"
    return f"{said}; {more}{program('evaluate')} run={now.folder} scores it again."


def _begun_before(cfg: DictConfig) -> DictConfig:
    """The config of the run that a job goes on with, in the place where it goes on."""
    return OmegaConf.create(_placed(_saved(cfg.folder), cfg))


def _keep_changes(cfg: DictConfig, folder: Path) -> None:
    """Keep what a resumed run changes, or a longer run that is killed could not be resumed."""
    file = folder / ".hydra" / "config.yaml"
    saved = OmegaConf.load(file)
    kept = _placed(saved, cfg)
    if kept != OmegaConf.to_container(saved):
        write_text(file, OmegaConf.to_yaml(OmegaConf.create(kept)))


def _placed(saved: DictConfig, cfg: DictConfig) -> dict[str, Any]:
    """What was saved, where `cfg` runs: they differ in nothing else, which was looked at before, but in its length."""
    now = OmegaConf.to_container(cfg)
    return OmegaConf.to_container(saved) | {part: now[part] for part in ("data_dir", "dataset", "trainer")}


def _saved(folder: str) -> DictConfig:
    """The config of the run that a folder holds, to go on with it there."""
    saved = load_config(Path(folder))
    saved.folder = folder
    return saved
