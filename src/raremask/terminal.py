"""What a run says on the terminal."""

import copy
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from raremask.collapse import collapse
from raremask.data.base import ImageMaskData
from raremask.data.samples import as_floats, collate
from raremask.errors import plain_warnings
from raremask.module import Segmenter
from raremask.scoretables import beside_baselines, format_scores
from raremask.scoring import Judged, looks_at_test
from raremask.selection import Selection

STEPS = 10  # timed with and without determinism; the median counts
MANY_EMPTY = 0.2  # share of empty training masks from which a loss that learns nothing from them deserves a word


def quieten() -> None:
    """Leave on the terminal what a user can act on."""
    plain_warnings()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # says which devices it sees; we say which one is used
    for message in (
        ".*does not have many workers.*",  # the number of workers is a setting, with its reason in the config
        ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run
        ".*smaller than the logging interval.*",  # nothing is logged per step
        ".*It is recommended to use .self.log.*sync_dist=True.*",  # scores are gathered before they are logged
        "predict returned None.*",  # each image is handed on as soon as it is seen; a whole split would not fit
        "Grad strides do not match bucket view strides.*",  # of a kernel of 1x1 any are right
        r"barrier\(\): using the device under current context.*",  # NCCL, of a wait that torchmetrics makes
        ".*isinstance.treespec, LeafSpec.* is deprecated.*",  # Lightning 2.6 calling PyTorch 2.15
    ):
        warnings.filterwarnings("ignore", message=message)


@rank_zero_only
def warn_of_empty_masks(loss: nn.Module, share: float) -> None:
    """Warn of a loss that learns nothing from empty masks, if many are.

    Args:
        loss: The loss.
        share: Of the training masks that are empty, in [0, 1].
    """
    if share > MANY_EMPTY and not getattr(loss, "learns_from_empty", True):
        terms, weights = getattr(loss, "terms", ()), getattr(loss, "weights", {})
        name = " + ".join(term for term in terms if weights[term]) or type(loss).__name__
        warnings.warn(
            f"{share:.0%} of the training masks are empty, and a batch without foreground (for losses per image, an "
            f"image) teaches {name} nothing: false positives cost nothing there. Compare with loss=bce_dice, which "
            "does learn from it.",
            stacklevel=3,
        )


@rank_zero_only
def say_what_starts(
    data: ImageMaskData,
    module: Segmenter,
    trainer: pl.Trainer,
    names: dict[str, Any],
    auto: dict[str, float],
    folder: Path,
) -> None:
    """Print what will be trained, on what, and where it goes.

    Args:
        data: The images.
        module: Holds the network.
        trainer: Knows the device.
        names: What was chosen from each group.
        auto: Values that stood for `auto`, by their path.
        folder: Of the run.
    """
    parameters = sum(parameter.numel() for parameter in module.net.parameters())
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    splits = ", ".join(f"{len(pictures)} {split}" for split, pictures in data.splits.items())
    masks = [picture.mask for split in data.splits.values() for picture in split.pictures]
    found = "".join(f"; {path} {value:.4g}" for path, value in auto.items())
    print(
        f"\n{names['dataset']}: {splits}; foreground {np.mean([mask.mean() for mask in masks]):.2%}, "
        f"{np.mean([not mask.any() for mask in masks]):.0%} of the masks empty\n"
        f"split: {data.split.words}\n"
        f"{names['model']}, {parameters / 1e6:.2f} M parameters; loss {names['loss']}{found}; seed {names['seed']}; "
        f"{name}, {trainer.precision}\n{os.path.relpath(folder)}\n"
    )


@rank_zero_only
def say_what_determinism_costs(module: Segmenter, trainer: pl.Trainer, data: ImageMaskData) -> None:
    """On a GPU, print how much longer a step takes with `trainer.deterministic=true`, measured with this network.

    Args:
        module: Holds the network, which stays as it is.
        trainer: Knows the device.
        data: Gives a batch.
    """
    device = trainer.strategy.root_device
    warned = torch.is_deterministic_algorithms_warn_only_enabled()  # trainer.deterministic=warn: nothing is enforced
    if device.type != "cuda" or warned or not torch.are_deterministic_algorithms_enabled():
        return
    half = trainer.precision_plugin.train_step_context  # in float32 a batch may not fit
    with_it, without = (seconds_of_a_step(module, data, device, one, STEPS, half) for one in (True, False))
    torch.use_deterministic_algorithms(True)
    print(f"trainer.deterministic=true: a step takes {with_it / without:.2f} times as long as without.")


def seconds_of_a_step(
    module: Segmenter,
    data: ImageMaskData,
    device: torch.device,
    deterministic: bool,
    steps: int,
    precision: Callable[[], AbstractContextManager] = nullcontext,
) -> float:
    """Return the median time of a forward and backward pass of a copy of the network.

    Args:
        module: Holds the network and the loss.
        data: Gives the batch: the first images of training.
        device: Where.
        deterministic: Whether only deterministic algorithms are used; stays so.
        steps: How many are timed, after three that are not.
        precision: What goes around a forward pass.
    """
    torch.use_deterministic_algorithms(deterministic)
    net, loss = copy.deepcopy(module.net).to(device), copy.deepcopy(module.loss).to(device)
    samples = [data.splits["train"][index] for index in range(min(data.batch_size, len(data.splits["train"])))]
    batch = {key: value.to(device) for key, value in as_floats(collate(samples)).items() if key in ("image", "mask")}
    times = []
    for _ in range(steps + 3):
        started = time.perf_counter()
        with precision():
            value = loss(net(batch["image"]), batch["mask"])
        value.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:])


@rank_zero_only
def say_what_never_began(module: Segmenter, trainer: pl.Trainer) -> None:
    """Say that the best checkpoint is the last, because no score showed that the network sees anything.

    Args:
        module: Knows what the monitored score must be above.
        trainer: Has trained.
    """
    kept = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint) and one.filename == "best"]
    best = kept[0].best_model_score if kept else None
    if best is not None and best <= module.chance:
        print(
            f"\n{module.monitor} never rose above {module.chance:.3f}, which is a little more than painting nothing or "
            "everything is worth (at threshold 0.5). The last epoch is taken for the best."
        )


@rank_zero_only
def say_what_came_out(folder: Path, empty: str, test: Judged, selection: Selection) -> None:
    """Print the scores of the best checkpoint, and warn if its predictions have collapsed.

    Args:
        folder: Of the run.
        empty: Policy for images whose mask and prediction are both empty.
        test: What was scored.
        selection: What was chosen on validation.
    """
    print(f"\nTest, mean over images at native size (an empty mask left empty counts as: {empty})")
    print(format_scores(beside_baselines(test.counts, empty)))
    print(f"\nChosen on validation: {selection.words()}. {looks_at_test(folder)}")
    near = os.path.relpath(folder)
    if collapsed := collapse(*test.shares()):
        warnings.warn(collapsed, stacklevel=2)
    curves = f"Curves:   tensorboard --logdir {near}\n" if (folder / "tensorboard").is_dir() else ""
    print(f"\nPictures: {near}/figures\nModel:    {near}/model\n{curves}")
