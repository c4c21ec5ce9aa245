"""From a config to objects, and from objects to a run: the only room that instantiates."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class, instantiate
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn
from tqdm import tqdm

from raremask import BadInput, description, figures
from raremask.callbacks import LossSwitch, Progress, figure_row
from raremask.commandline import runs_of
from raremask.data import leaks, splits
from raremask.data.base import ImageMaskData, fit
from raremask.data.fingerprint import fingerprint, measure
from raremask.data.memory import Shelf
from raremask.data.pairing import pictures_of
from raremask.data.readers import read_image, write_image
from raremask.inference import Predictor
from raremask.inference import predict as see
from raremask.metrics.calibration import histogram
from raremask.metrics.image import image_scores
from raremask.metrics.overlap import SCORES, score
from raremask.module import Segmenter
from raremask.runfolder import (
    BEST,
    DEFAULT,
    beside_baselines,
    format_scores,
    largest_change,
    read_counts,
    read_table,
    status,
    summaries,
    write_scores,
    write_table,
    write_text,
)
from raremask.selection import Choice, Selection, pixel_counts, select
from raremask.submission import collapse

SPLIT = "split.csv"  # in a run's folder: the split of every image
AUTO = "auto.json"  # in a run's folder: the values that stood for `auto`
SELECTION = "selection.json"  # in a run's folder: what was chosen on validation
VALIDATION_BYTES = 2**30  # of probabilities that are kept in memory to choose by; more lie in a temporary file
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
            _look_for_leaks(data, cfg.leaks, folder)
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
        choice = choose(trainer, data, module, cfg.selection)
        save_choice(folder, choice, cfg.selection.tile)
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
        print(_test_uses(folder))
        _compare_with_record(folder / f"per_image_{name}.csv", data, images, cfg.split, module.empty)
    return summaries(images.counts, module.empty)["dice"]


def describe(cfg: DictConfig) -> None:
    """Print what a dataset is like, and write it as Markdown, JSON, CSV and pictures.

    Args:
        cfg: The composed `conf/describe.yaml`.
    """
    data = build_data(cfg)
    placed, folder = data.pictures(), Path(cfg.folder)
    with ThreadPoolExecutor() as pool:
        each = pool.map(lambda pair: measure(*pair), placed)
        measured = list(tqdm(each, total=len(placed), desc="Measuring", leave=False, disable=None))
    images, masks = zip(*(picture.inside() for _, picture in placed), strict=True)
    found = leaks.twins(images)
    contrary = leaks.contradictions(found, masks)
    across = [pair for pair in found if placed[pair.first][0] != placed[pair.second][0]]
    print_of, floor = fingerprint(measured), description.uninformed(measured, cfg.empty)
    advice = description.suggestions(print_of, data)
    titles = [f"{split} {picture.name}" for split, picture in placed]
    said = [
        f"{len(found)} pairs, {len(across)} of them in different splits (all in twins.csv)",
        *(f"{titles[p.first]} is {titles[p.second]} ({p.likeness:.2f})" for p in across[:5]),
        f"{len(contrary)} of the pairs contradict each other: their masks have a Dice below 0.5",
        *(f"{titles[p.first]} and {titles[p.second]}: Dice {dice:.2f}" for p, dice in contrary[:5]),
    ]
    drawn = description.draw(data, measured, found)
    name = HydraConfig.get().runtime.choices.dataset
    text = description.text(name, data, print_of, floor, advice, said, list(drawn), cfg.empty)
    folder.mkdir(parents=True, exist_ok=True)
    for file in description.FIGURES:
        (folder / f"{file}.png").unlink(missing_ok=True)  # of an older description
    for file, figure in drawn.items():
        figure.savefig(folder / f"{file}.png", dpi=110)
    numbers = print_of | {
        "dataset": name,
        "uninformed": floor,
        "suggestions": [vars(one) for one in advice],
        "twins": len(found),
        "twins_across_splits": len(across),
        "contradictions": len(contrary),
    }
    write_text(folder / "fingerprint.json", json.dumps(description.plain(numbers), indent=2, allow_nan=False) + "\n")
    write_text(folder / "twins.csv", leaks.table(found, _placed(data)))
    write_text(folder / "description.md", text)
    write_table(folder / "images.csv", [one.row() for one in measured])
    print(text[: text.index("\n![")] if drawn else text)
    files = ["description.md", "fingerprint.json", "images.csv", "twins.csv", *(f"{file}.png" for file in drawn)]
    print(f"\nWritten to {os.path.relpath(folder)}: {', '.join(files)}")


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
    device = (
        "cuda" if cfg.device == "auto" and torch.cuda.is_available() else "cpu" if cfg.device == "auto" else cfg.device
    )
    nets = [_network(one, run / "checkpoints" / f"{cfg.checkpoint}.ckpt") for one, run in zip(saved, runs, strict=True)]
    predictor = Predictor(nets, selection.views, tile).to(device).eval()
    mend = instantiate(cfg.postprocess) if "postprocess" in cfg else selection.mend()
    submission = instantiate(cfg.submission) if "submission" in cfg else None

    source, out = Path(cfg.images), Path(cfg.out)
    files = [source] if source.is_file() else pictures_of(source)
    targets = {file: out / f"{file.stem}.png" for file in files}
    if len(set(targets.values())) < len(files):
        raise BadInput(f"{source}: images must differ in more than their suffix, or their masks would have one name.")
    table = out / "submission.csv"
    there = [path for path in (*targets.values(), *([table] if submission else [])) if path.exists()]
    if there and not cfg.overwrite:
        raise BadInput(f"{there[0]} and {len(there) - 1} more are there; choose another out=, or overwrite=true.")
    print(f"{len(files)} images, {len(nets)} network{'s' * (len(nets) > 1)}; {selection.words()}; {device}")
    out.mkdir(parents=True, exist_ok=True)
    broken, shares, runs_written = [], [], {}
    for file, target in tqdm(targets.items(), desc="Predicting", leave=False, disable=None):
        try:
            image = read_image(file, channels, saved[0].dataset.get("bits", 16))
        except BadInput as error:
            broken.append(str(error))
            continue
        native = image.shape[:2]
        fitted, box = fit(image, tuple(size or native), resize)
        pixels = torch.from_numpy(fitted.transpose(2, 0, 1).copy()).float().div(255)
        probability = see(predictor, pixels, native, box).numpy()
        mask = mend(probability > selection.threshold)
        shares.append(float(mask.mean()))
        write_image(target, mask.astype(np.uint8) * 255)
        if cfg.probabilities == "png":
            write_image(out / f"{file.stem}_probability.png", (probability * 65535).round().astype(np.uint16))
        elif cfg.probabilities == "npz":
            np.savez_compressed(out / f"{file.stem}_probability.npz", probability=probability.astype(np.float16))
        if cfg.overlays:
            write_image(out / f"{file.stem}_overlay.png", figures.outlined(image, mask))
        if submission is not None:
            runs_written[file.name] = submission.style.write(mask)
    if submission is not None:
        write_text(table, submission.of_runs(runs_written))
    print(f"{len(shares)} masks in {os.path.relpath(out)}" + (f", and {table.name}" if submission else ""))
    if warning := collapse(shares):
        warnings.warn(warning, stacklevel=2)
    if broken:
        print(f"{len(broken)} images could not be read, and have no mask:", *broken, sep="\n  ", file=sys.stderr)
    return len(broken)


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


def _compare_with_record(table: Path, data: ImageMaskData, images: "Judged", split: str, empty: str) -> None:
    """Write the table of a split; beside the one that the run has left, if the two differ."""
    if not table.is_file():
        write_split(table, data, split, images, empty)
        return
    again = table.with_stem(f"{table.stem}_again")
    write_split(again, data, split, images, empty)
    change = largest_change(table, again)
    print(f"\nLargest change of a score against {table}: {change:.2g}")
    if change > 1e-6:
        warnings.warn(f"The scores differ from the run's own; see {again}. Another device or dataset?", stacklevel=2)
    else:
        again.unlink()


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
        write_text(folder / SPLIT, splits.table(*zip(*_placed(data), strict=True)))
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


def _placed(data: ImageMaskData) -> list[tuple[str, str, str]]:
    """Name, group and split of every picture."""
    return [(picture.name, picture.group, split) for split, picture in data.pictures()]


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


def load_weights(module: Segmenter, checkpoint: Path) -> None:
    """Take the weights of a checkpoint alone: callbacks and loops have no part in scoring."""
    module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])


@dataclass(frozen=True)
class Judged:
    """The images of a split, scored.

    Args:
        indices: Their positions in the split, `n`; fewer than the split has if the trainer was limited.
        counts: `(n, 4)` pixel counts under the suffix of their columns: `""` and `"_fov"` as selected, the same and
            `"_default"` at threshold 0.5 without any mending.
        more: Every further score of each image, by name.
    """

    indices: list[int]
    counts: dict[str, np.ndarray]
    more: list[dict[str, float]]


def judge(trainer: pl.Trainer, data: ImageMaskData, module: Segmenter, split: str, selection: Selection) -> Judged:
    """Score every image of a split at native size, under a selection and at the default threshold.

    Args:
        trainer: Runs the loop.
        data: Holds the split.
        module: Holds the network.
        split: `val` or `test`.
        selection: What turns probabilities into masks.
    """
    pictures, rows, plain = data.splits[split].pictures, {}, {}

    def counts_of(index: int, prediction: np.ndarray, suffix: str) -> dict[str, list[int]]:
        picture = pictures[index]
        mask = picture.native_mask()[0].numpy()
        counts = {suffix: pixel_counts(prediction, mask)}
        if picture.valid is not None:
            counts[f"_fov{suffix}"] = pixel_counts(prediction, mask, picture.native_valid()[0].numpy())
        return counts

    def receive_plain(index: int, probability: np.ndarray) -> None:
        plain[index] = counts_of(index, probability > module.threshold, DEFAULT)

    def receive(index: int, probability: np.ndarray) -> None:
        if selection.views == "none":
            receive_plain(index, probability)
        prediction, mask = selection(probability), pictures[index].native_mask()[0].numpy()
        scores = image_scores(probability, prediction, mask, empty=module.empty)
        rows[index] = counts_of(index, prediction, "") | plain[index], scores

    if selection.views != "none":
        _predict(trainer, data, module, split, "none", receive_plain)
    _predict(trainer, data, module, split, selection.views, receive)
    merged = _gathered(rows)
    suffixes = next(iter(merged.values()))[0]
    counts = {suffix: np.array([row[suffix] for row, _ in merged.values()]) for suffix in suffixes}
    more = [{name: value for name, value in scores.items() if name not in SCORES} for _, scores in merged.values()]
    return Judged(list(merged), counts, more)


def choose(trainer: pl.Trainer, data: ImageMaskData, module: Segmenter, cfg: DictConfig) -> Choice:
    """Choose threshold, views and mending on the validation split.

    Args:
        trainer: Runs the loop.
        data: Holds the split.
        module: Holds the network.
        cfg: The config's `selection`.
    """
    pictures = data.splits["val"].pictures
    module.tile = cfg.tile
    shelf = Shelf(VALIDATION_BYTES)
    histograms, seen = {}, {}
    for views in cfg.views:
        counted, kept = {}, {}

        def receive(index: int, probability: np.ndarray, counted: dict = counted, kept: dict = kept) -> None:
            counted[index] = histogram(probability, pictures[index].native_mask()[0].numpy())
            kept[index] = shelf.keep(probability)

        _predict(trainer, data, module, "val", views, receive)
        histograms[views], seen[views] = np.array(list(_gathered(counted).values())), kept

    def counts_of(selection: Selection) -> np.ndarray:
        counted = {
            index: pixel_counts(selection(probability), pictures[index].native_mask()[0].numpy())
            for index, probability in seen[selection.views].items()
        }
        return np.array(list(_gathered(counted).values()))

    return select(histograms, counts_of, cfg.metric, cfg.areas, cfg.largest, cfg.holes, module.empty)


def _predict(
    trainer: pl.Trainer,
    data: ImageMaskData,
    module: Segmenter,
    split: str,
    views: str,
    receive: Callable[[int, np.ndarray], None],
) -> None:
    data.predicted, module.views, module.receive = split, views, receive
    trainer.predict(module, datamodule=data, return_predictions=False)


def _gathered(rows: dict[int, Any]) -> dict[int, Any]:
    """The rows of all processes, by index."""
    if dist.is_available() and dist.is_initialized():
        parts: list = [None] * dist.get_world_size()
        dist.all_gather_object(parts, rows)
        rows = {index: row for part in parts for index, row in part.items()}
    return dict(sorted(rows.items()))


@rank_zero_only
def save_choice(folder: Path, choice: Choice, tile: Sequence[int] | None) -> None:
    """Write what was chosen on validation, how it came about, and that the test split has not been used yet."""
    facts = choice.facts() | {"tile": None if tile is None else list(tile), "test_uses": 0}
    write_text(folder / SELECTION, json.dumps(facts, indent=2) + "\n")


def load_choice(folder: Path) -> tuple[Selection, Sequence[int] | None]:
    """Return the selection of a run and its tile; that of threshold 0.5 if it ended before there was one."""
    if not (folder / SELECTION).is_file():
        return Selection(), None
    facts = json.loads((folder / SELECTION).read_text())
    return Selection(**facts["selection"]), facts["tile"]


@rank_zero_only
def use_test(folder: Path) -> None:
    """Count that the test split was looked at."""
    if (folder / SELECTION).is_file():
        facts = json.loads((folder / SELECTION).read_text())
        facts["test_uses"] += 1
        write_text(folder / SELECTION, json.dumps(facts, indent=2) + "\n")


def _test_uses(folder: Path) -> str:
    if not (folder / SELECTION).is_file():
        return ""
    uses = json.loads((folder / SELECTION).read_text())["test_uses"]
    return f"This run has looked at the test split {'once' if uses == 1 else f'{uses} times'}."


@rank_zero_only
def write_split(path: Path, data: ImageMaskData, split: str, images: Judged, empty: str) -> None:
    """Write the table of the images that were scored: all of the split, unless the trainer was limited."""
    pictures = [data.splits[split].pictures[index] for index in images.indices]
    names, groups = [picture.name for picture in pictures], [picture.group for picture in pictures]
    write_scores(path, names, groups, images.counts, empty, images.more)


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


@rank_zero_only
def draw(
    data: ImageMaskData, module: Segmenter, folder: Path, selection: Selection, images: Judged, each: int = 2
) -> None:
    """Draw the learning curves, and the worst, median and best images of the test split."""
    (folder / "figures").mkdir(exist_ok=True)
    figures.curves(read_table(folder / "metrics.csv")).savefig(folder / "figures" / "curves.png", dpi=120)
    dice = score(images.counts[""], module.empty)["dice"]
    order = np.array(images.indices)[np.argsort(np.nan_to_num(dice, nan=1.0), kind="stable")].tolist()
    middle = max(0, len(order) // 2 - each // 2)
    chosen = dict.fromkeys(order[:each] + order[middle : middle + each] + order[-each:])
    predictor = Predictor([module.net], selection.views, module.tile)
    rows = [figure_row(predictor, selection, data.splits["test"][index], module.empty) for index in chosen]
    figure = figures.gallery(rows, f"Test images: worst, median, best of {len(order)}")
    figure.savefig(folder / "figures" / "gallery_test.png", dpi=120)


def _look_for_leaks(data: ImageMaskData, leaks_are: str, folder: Path) -> None:
    """Look for images of different splits that are nearly the same; write and draw them; warn or refuse, as asked."""
    if leaks_are == "ignore" or rank_zero_only.rank != 0:
        return
    placed = data.pictures()
    images = [picture.inside()[0] for _, picture in placed]
    found = leaks.twins(images, [split for split, _ in placed])
    if not found:
        return
    titles = [f"{split} {picture.name}" for split, picture in placed]
    write_text(folder / "leaks.csv", leaks.table(found, _placed(data)))
    (folder / "figures").mkdir(exist_ok=True)
    figure = figures.twins(found, titles, images)
    figure.savefig(folder / "figures" / "leaks.png", dpi=120)
    tested = {index for pair in found for index in (pair.first, pair.second) if placed[index][0] == "test"}
    shown = "".join(f"\n  {titles[p.first]} is {titles[p.second]} ({p.likeness:.2f})" for p in found[:5])
    message = (
        f"{len(found)} pairs of images are nearly the same and in different splits; {len(tested)} of the "
        f"{len(data.splits['test'])} test images are in them:{shown}\n"
        "Scores will be too good, and moved frames of a video are mostly not found. See "
        f"{os.path.relpath(folder)}/leaks.csv and figures/leaks.png; give such images one "
        "group, or choose with leaks=warn|error|ignore."
    )
    if leaks_are == "error":
        raise BadInput(message)
    warnings.warn(message, stacklevel=2)


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
    print(f"\nChosen on validation: {selection.words()}. {_test_uses(folder)}")
    folder = os.path.relpath(folder)
    print(f"\nPictures: {folder}/figures\nCurves:   tensorboard --logdir {folder}\n")
