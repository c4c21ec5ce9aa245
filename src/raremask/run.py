"""From a config to objects, and from objects to a run: the only room that instantiates."""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class, instantiate
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn

from raremask import BadInput, description
from raremask.callbacks import LossSwitch, Progress
from raremask.commandline import runs_of
from raremask.data import splits
from raremask.data.base import ImageMaskData
from raremask.inference import Predictor
from raremask.module import Segmenter
from raremask.prediction import Painter, predict_files
from raremask.runfolder import (
    BEST,
    DEFAULT,
    beside_baselines,
    format_scores,
    read_counts,
    status,
    summaries,
    write_text,
)
from raremask.scoring import (
    choose,
    compare_with_record,
    draw,
    judge,
    load_choice,
    load_weights,
    looks_at_test,
    save_choice,
    use_test,
    write_split,
)
from raremask.selection import Selection

SPLIT = "split.csv"  # in a run's folder: the split of every image
AUTO = "auto.json"  # in a run's folder: the values that stood for `auto`
MANY_EMPTY = 0.2  # share of empty training masks from which a loss that learns nothing from them deserves a word


def train(cfg: DictConfig) -> float:
    """Train, score the best checkpoint on validation and test, and leave a run folder.

    Args:
        cfg: The composed `conf/train.yaml`.

    Returns:
        The best monitored score.

    Raises:
        BadInput: If the data, the device or the folder does not allow it; before training starts.
    """
    _quieten()
    if cfg.resume:
        cfg = _resumed(cfg)
    folder = Path(cfg.folder)
    last = folder / "checkpoints" / "last.ckpt"
    if cfg.resume and not last.is_file():
        raise BadInput(f"{folder} has no checkpoints/last.ckpt to go on from: no epoch had ended. Start it anew.")
    first_process = rank_zero_only.rank == 0  # trainer=ddp runs this whole script once per GPU
    if first_process and not cfg.resume and (folder / "status.json").is_file():
        raise BadInput(f"{folder} already holds a run. Choose another name (sweep=...), or go on with resume={folder}.")
    names = _choices(folder) | {"seed": cfg.seed, "empty": cfg.empty}

    with status(folder, **names) if first_process else nullcontext():
        data, module = build(cfg, folder)
        if not cfg.resume:
            description.look_for_leaks(data, cfg.leaks, folder)
        callbacks = list(instantiate(cfg.callbacks).values())
        loggers = list(instantiate(cfg.logger).values())
        trainer = build_trainer(cfg.trainer, callbacks=callbacks, logger=loggers)
        if trainer.world_size > 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise BadInput("A multirun trains with one process per job. With trainer=ddp, start its jobs one by one.")
        for loss in (module.loss, *(callback.loss for callback in callbacks if isinstance(callback, LossSwitch))):
            _warn_of_empty_masks(loss, data.empty_share())
        _say_what_starts(data, module, trainer, names, folder)
        trainer.fit(module, datamodule=data, ckpt_path=last if cfg.resume else None, weights_only=True)

        trainer.loggers = []  # the curves end here: the scores of the best checkpoint are no further epoch
        load_weights(module, folder / "checkpoints" / "best.ckpt")
        candidates = OmegaConf.to_container(cfg.selection)
        module.tile = candidates.pop("tile")
        choice = choose(trainer, data, module, **candidates)
        save_choice(folder, choice, module.tile)
        judged = {split: judge(trainer, data, module, split, choice.selection) for split in ("val", "test")}
        for split, images in judged.items():
            write_split(folder / f"per_image_{split}.csv", data, split, images, module.empty)
        use_test(folder)
        draw(data, module, folder, choice.selection, judged["test"])
        scores = {split: summaries(images.counts, module.empty) for split, images in judged.items()}
        monitored = scores["val"][f"{cfg.monitor.removeprefix('val/')}{DEFAULT}"]
        log_results(loggers, cfg, names, scores["test"], monitored, trainer.current_epoch)
        _say_what_came_out(folder, module.empty)
    return monitored


def evaluate(cfg: DictConfig) -> float:
    """Rebuild a run from its config and checkpoint, and score one split again.

    Args:
        cfg: The composed `conf/evaluate.yaml`.

    Returns:
        The mean Dice over the images of the split.
    """
    _quieten()
    folder = Path(cfg.run)
    saved = load_config(folder)
    if "trainer" in cfg:
        saved.trainer = cfg.trainer
    checkpoint = folder / "checkpoints" / f"{cfg.checkpoint}.ckpt"
    if not checkpoint.is_file():
        present = ", ".join(sorted(path.stem for path in checkpoint.parent.glob("*.ckpt"))) or "none"
        raise BadInput(f"There is no {checkpoint}. Checkpoints in this run: {present}.")
    data, module = build(saved)
    trainer = build_trainer(saved.trainer, callbacks=[Progress()], logger=False, enable_checkpointing=False)
    load_weights(module, checkpoint)
    selection, module.tile = load_choice(folder)
    images = judge(trainer, data, module, cfg.split, selection)
    if cfg.split == "test":
        use_test(folder)
    name = cfg.split if cfg.checkpoint == "best" else f"{cfg.split}_{cfg.checkpoint}"
    if trainer.is_global_zero:
        print(f"Mean over images at native size (an empty mask left empty counts as: {module.empty})")
        rows = beside_baselines(images.counts, module.empty)
        print(format_scores({f"{cfg.split}, {cfg.checkpoint}.ckpt": rows.pop(BEST), **rows}))
        print(looks_at_test(folder))
        compare_with_record(folder / f"per_image_{name}.csv", data, images, cfg.split, module.empty)
    return summaries(images.counts, module.empty)["dice"]


def describe(cfg: DictConfig) -> None:
    """Print what a dataset is like, and write it as Markdown, JSON, CSV and pictures.

    Args:
        cfg: The composed `conf/describe.yaml`.
    """
    name = HydraConfig.get().runtime.choices.dataset
    description.describe(build_data(cfg), name, Path(cfg.folder), cfg.empty)


def predict(cfg: DictConfig) -> int:
    """Predict masks for images that need no truth, and write them at native size.

    Args:
        cfg: The composed `conf/predict.yaml`.

    Returns:
        How many images could not be read; the others are done.

    Raises:
        BadInput: If runs do not go together, there is no image, or a file would be written over; before anything is.
    """
    _quieten()
    runs = [Path(run) for run in runs_of(cfg.run)]
    saved = [load_config(run) for run in runs]
    size, resize, channels = (saved[0].dataset[key] for key in ("size", "resize", "channels"))
    if any((one.dataset.size, one.dataset.resize, one.dataset.channels) != (size, resize, channels) for one in saved):
        raise BadInput("runs that predict together must have the same dataset.size, resize and channels.")
    selection, tile = _selected(cfg, runs)
    device = cfg.device if cfg.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    nets = [_network(one, run / "checkpoints" / f"{cfg.checkpoint}.ckpt") for one, run in zip(saved, runs, strict=True)]
    paint = Painter(
        predictor=Predictor(nets, selection.views, tile).to(device).eval(),
        threshold=selection.threshold,
        mend=instantiate(cfg.postprocess) if "postprocess" in cfg else selection.mend(),
        size=size,
        resize=resize,
        channels=channels,
        bits=saved[0].dataset.get("bits", 16),
    )
    submission = instantiate(cfg.submission) if "submission" in cfg else None
    words = selection.words() + ("; then other steps" if "postprocess" in cfg else "")
    print(f"{len(nets)} network{'s' * (len(nets) > 1)}; {words}; {device}")
    source, out = Path(cfg.images), Path(cfg.out)
    return predict_files(paint, source, out, cfg.probabilities, cfg.overlays, submission, cfg.overwrite)


def _selected(cfg: DictConfig, runs: Sequence[Path]) -> tuple[Selection, Sequence[int] | None]:
    """What the runs chose on validation: of several the mean threshold, and the first one's views and mending."""
    choices = [load_choice(run) for run in runs]
    selection, tile = choices[0]
    threshold = float(np.mean([choice.threshold for choice, _ in choices])) if cfg.threshold is None else cfg.threshold
    return replace(selection, threshold=threshold, views=cfg.views or selection.views), tile


def _network(cfg: DictConfig, checkpoint: Path) -> nn.Module:
    """The network of a run, with the weights of a checkpoint."""
    if not checkpoint.is_file():
        present = ", ".join(sorted(path.stem for path in checkpoint.parent.glob("*.ckpt"))) or "none"
        raise BadInput(f"There is no {checkpoint}. Checkpoints in this run: {present}.")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    net = instantiate(cfg.model)
    net.load_state_dict({key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.")})
    return net


def load_config(folder: Path) -> DictConfig:
    """Return the config with which a run was started, to go on with its checkpoints."""
    cfg = OmegaConf.load(folder / ".hydra" / "config.yaml")
    if (folder / AUTO).is_file():
        for key, value in json.loads((folder / AUTO).read_text()).items():
            OmegaConf.update(cfg, key, value)
    if "encoder_weights" in cfg.model:
        cfg.model.encoder_weights = None  # they are in every checkpoint; nothing is fetched again
    if (folder / SPLIT).is_file():
        cfg.split.fold, cfg.split.file = None, str(folder / SPLIT)  # whatever has become of the dataset or the drawing
    return cfg


def build(cfg: DictConfig, folder: Path | None = None) -> tuple[ImageMaskData, Segmenter]:
    """Make the data, read and checked, and the module that holds network, loss, optimiser and scheduler.

    Args:
        cfg: The run's config. Values `auto` in its losses are replaced by what the training split says.
        folder: Where to write the split and these values, if there are any; :func:`load_config` takes them from there.

    Raises:
        BadInput: If images cannot be used, or the monitored score needs a field of view and the dataset has none.
    """
    pl.seed_everything(cfg.seed, verbose=False)
    data = build_data(cfg)
    if cfg.monitor.endswith("_fov") and data.splits["val"].pictures[0].valid is None:
        raise BadInput(f"monitor={cfg.monitor} needs a field of view, and this dataset has none. Use monitor=val/dice.")
    if data.empty_share() == 1:
        raise BadInput("no training mask has a foreground pixel: there is nothing to learn.")
    found = fill_auto(cfg, data)
    if folder is not None and rank_zero_only.rank == 0:
        write_text(folder / SPLIT, splits.table(*zip(*data.placed(), strict=True)))
        if found:
            write_text(folder / AUTO, json.dumps(found, indent=2) + "\n")
    module = Segmenter(
        net=instantiate(cfg.model),
        loss=instantiate(cfg.loss),
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        monitor=cfg.monitor,
        empty=cfg.empty,
        seed=cfg.seed,
    )
    return data, module


def build_data(cfg: DictConfig) -> ImageMaskData:
    """Make the data, read, checked and divided.

    Raises:
        BadInput: If images cannot be used or divided.
    """
    augment = instantiate(cfg.augment) if "augment" in cfg else None
    data = instantiate(cfg.dataset, augment=augment, split=instantiate(cfg.split), seed=cfg.get("seed", 0))
    data.setup()
    return data


def fill_auto(cfg: DictConfig, data: ImageMaskData) -> dict[str, float]:
    """Replace every `auto` in a loss by what the loss's class makes of the training split.

    Args:
        cfg: The run's config; changed.
        data: Holds the training split.

    Returns:
        What was found, by its path: `{"loss.pos_weight": 12.5}`.

    Raises:
        BadInput: If a loss has no automatic value for that parameter.
    """
    found = {}
    for path, node in _losses(cfg):
        automatic = [key for key in node if not OmegaConf.is_missing(node, key) and node[key] == "auto"]
        if not automatic:
            continue
        kind = get_class(node._target_)
        values = kind.auto(data.training_foreground()) if hasattr(kind, "auto") else {}
        for key in automatic:
            if key not in values:
                offered = f"it has one for {', '.join(values)}" if values else "it has none"
                raise BadInput(f"{path}.{key}=auto: {kind.__name__} has no automatic {key}; {offered}. Give a number.")
            node[key] = found[f"{path}.{key}"] = values[key]
    return found


def _losses(node: DictConfig, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every node at or below a `loss` that names what it makes, with its path."""
    for key in node:
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        if isinstance(node[key], DictConfig):
            below = f"{path}.{key}".lstrip(".")
            if "loss" in below.split(".") and "_target_" in node[key]:
                yield below, node[key]
            yield from _losses(node[key], below)


def build_trainer(cfg: DictConfig, **parts: Any) -> pl.Trainer:
    """Make the Trainer; `precision: auto` becomes the fastest safe one of the device.

    Raises:
        BadInput: If a GPU is asked for and PyTorch sees none.
    """
    on_gpu = torch.cuda.is_available() and cfg.accelerator in ("auto", "gpu", "cuda")
    if cfg.accelerator in ("gpu", "cuda") and not on_gpu:
        raise BadInput("trainer=gpu asks for a GPU, and PyTorch sees none. Use trainer=auto or trainer=cpu.")
    if cfg.get("check_val_every_n_epoch", 1) != 1:
        raise BadInput(
            "trainer.check_val_every_n_epoch must be 1: the last checkpoint and the plateau follow every epoch."
        )
    precision = str(cfg.precision)  # 16 comes as a number
    if precision == "auto":
        bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16-mixed" if bf16 else "16-mixed" if on_gpu else "32-true"
    elif "16" in precision and not on_gpu and not _cpu_computes_in(precision):
        warnings.warn(
            f"trainer.precision={precision}, and this CPU has no instructions for it: a step has been seen to take "
            "over 100 times as long as in 32-true. Mixed precision is for the GPU; use trainer.precision=32-true.",
            stacklevel=2,
        )
    return instantiate(cfg, precision=precision, **parts)


def _cpu_computes_in(precision: str) -> bool:
    """Whether the CPU has instructions for half precision; False where PyTorch cannot tell."""
    names = ("avx512_bf16", "amx_bf16", "bf16") if "bf16" in precision else ("avx512_fp16", "amx_fp16", "fp16_arith")
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in names)


@rank_zero_only
def log_results(
    loggers: list[Logger],
    cfg: DictConfig,
    names: dict[str, Any],
    scores: dict[str, float],
    monitored: float,
    epochs: int,
) -> None:
    """Log the final scores with the settings that led to them: TensorBoard's hparams tab.

    The tab shows five settings at first, in alphabetical order; those that tell runs apart come first.
    """
    main = {key: names[key] for key in ("dataset", "loss", "model", "seed")} | {"lr": cfg.optimizer.lr}
    others = {key: value for key, value in names.items() if key not in main}
    others |= {"batch_size": cfg.dataset.batch_size, "size": str(cfg.dataset.size), "epochs": epochs}
    settings = main | {f"setting/{key}": value for key, value in others.items()}
    results = {f"test/{name}": value for name, value in scores.items()} | {f"best/{cfg.monitor}": monitored}
    for logger in loggers:
        logger.log_hyperparams(settings, results)
        logger.finalize("success")


def _resumed(cfg: DictConfig) -> DictConfig:
    """The config of the run to go on with, changed only by the plain values given now, which it keeps."""
    folder = Path(cfg.resume)
    file = folder / ".hydra" / "config.yaml"
    saved = OmegaConf.load(file)
    changes = [text.lstrip("+") for text in HydraConfig.get().overrides.task if not text.startswith("resume=")]
    for change in changes:
        if not change.startswith("trainer."):
            raise BadInput(f"{change}: a resumed run keeps its config; only trainer.<setting>=<value> may change.")
        if change.startswith("trainer.max_epochs=") and "T_max" in saved.scheduler:
            raise BadInput(
                f"{change}: the cosine of this run ends at epoch {saved.trainer.max_epochs}, and past it rises."
            )
    if changes:  # kept, or a longer run that is killed could not be resumed
        saved = OmegaConf.merge(saved, OmegaConf.from_dotlist(changes))
        write_text(file, OmegaConf.to_yaml(saved))
    saved = load_config(folder)
    saved.resume, saved.folder = cfg.resume, str(folder)
    return saved


def _choices(folder: Path) -> dict[str, str]:
    """What was chosen from each group, by name, as Hydra noted it when the run began."""
    hydra = OmegaConf.load(folder / ".hydra" / "hydra.yaml").hydra
    return {
        group.replace("loss@callbacks.switch.loss", "second_loss"): choice
        for group, choice in hydra.runtime.choices.items()
        if choice is not None and not group.startswith("hydra")
    }


def _quieten() -> None:
    """Leave on the terminal what a user can act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # says which devices it sees; we say which one is used
    for message in (
        ".*does not have many workers.*",  # the number of workers is a setting, with its reason in the config
        ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run
        ".*smaller than the logging interval.*",  # nothing is logged per step
        ".*It is recommended to use .self.log.*sync_dist=True.*",  # scores are gathered before they are logged
        "predict returned None.*",  # each image is handed on as soon as it is seen; a whole split would not fit
        ".*isinstance.treespec, LeafSpec.* is deprecated.*",  # Lightning 2.6 calling PyTorch 2.15
    ):
        warnings.filterwarnings("ignore", message=message)


@rank_zero_only
def _warn_of_empty_masks(loss: nn.Module, share: float) -> None:
    if share > MANY_EMPTY and not getattr(loss, "learns_from_empty", True):
        warnings.warn(
            f"{share:.0%} of the training masks are empty, and a batch without foreground (for losses per image, an "
            f"image) teaches {type(loss).__name__} nothing: false positives cost nothing there. Compare with "
            "loss=bce_dice, which does learn from it.",
            stacklevel=3,
        )


@rank_zero_only
def _say_what_starts(
    data: ImageMaskData, module: Segmenter, trainer: pl.Trainer, names: dict[str, Any], folder: Path
) -> None:
    parameters = sum(parameter.numel() for parameter in module.net.parameters())
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    splits = ", ".join(f"{len(pictures)} {split}" for split, pictures in data.splits.items())
    masks = [picture.mask for split in data.splits.values() for picture in split.pictures]
    auto = json.loads((folder / AUTO).read_text()) if (folder / AUTO).is_file() else {}
    found = "".join(f"; {path} {value:.4g}" for path, value in auto.items())
    print(
        f"\n{names['dataset']}: {splits}; foreground {np.mean([mask.mean() for mask in masks]):.2%}, "
        f"{np.mean([not mask.any() for mask in masks]):.0%} of the masks empty\n"
        f"split: {data.split.words}\n"
        f"{names['model']}, {parameters / 1e6:.2f} M parameters; loss {names['loss']}{found}; seed {names['seed']}; "
        f"{name}, {trainer.precision}\n{os.path.relpath(folder)}\n"
    )


@rank_zero_only
def _say_what_came_out(folder: Path, empty: str) -> None:
    counts = read_counts(folder / "per_image_test.csv")
    selection, _ = load_choice(folder)
    print(f"\nTest, mean over images at native size (an empty mask left empty counts as: {empty})")
    print(format_scores(beside_baselines(counts, empty)))
    print(f"\nChosen on validation: {selection.words()}. {looks_at_test(folder)}")
    folder = os.path.relpath(folder)
    print(f"\nPictures: {folder}/figures\nCurves:   tensorboard --logdir {folder}\n")
