"""From a network to a split's scores: what is chosen on validation, then frozen, and every image scored with it."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import nn

from raremask import BadInput, checkpoints, figures
from raremask.data.base import ImageMaskData
from raremask.data.memory import Shelf
from raremask.data.samples import Picture, Pictures
from raremask.inference import Predictor, sharing_cores
from raremask.metrics.calibration import histogram, reliability
from raremask.metrics.image import score_image
from raremask.metrics.objects import count_objects
from raremask.metrics.overlap import SCORES, pixel_counts, score, shares
from raremask.module import Segmenter, Viewer
from raremask.runfolder import write_figure, write_table, write_text
from raremask.runlengths import RunLengths
from raremask.scoretables import DEFAULT, write_scores
from raremask.selection import Choice, Selection, select
from raremask.tables import read_table

SELECTION = "selection.json"  # in a run's folder: what was chosen on validation
EACH = 2  # of the worst, the median and the best images: so many are drawn
VALIDATION_BYTES = 2**30  # of probabilities that are kept in memory to choose by; more lie in a temporary file


def load_weights(module: Segmenter, checkpoint: Path) -> int:
    """Take the weights of a checkpoint alone (callbacks and loops have no part in scoring); return their epoch."""
    saved = checkpoints.read(checkpoint)
    module.load_state_dict(saved["state_dict"])
    return saved["epoch"]


@dataclass(frozen=True)
class Judged:
    """The images of a split, scored.

    Args:
        split: Holds the images.
        indices: Their positions in the split, `n`; fewer than the split has if the trainer was limited.
        counts: `(n, 4)` pixel counts under the suffix of their columns: `""` and `"_fov"` as selected, the same and
            `"_default"` at threshold 0.5 without any post-processing.
        more: Every further score of each image, by name; inside the field of view under names that end in `_fov`.
        counted: `(2, BINS)` histogram of all their probabilities.
        painted: The mask of each as it was painted, as run lengths (down the columns, from 1).
    """

    split: Pictures
    indices: list[int]
    counts: dict[str, np.ndarray]
    more: list[dict[str, float]]
    counted: np.ndarray
    painted: list[str]

    def pictures(self) -> list[Picture]:
        """Return the images that were scored."""
        return [self.split.pictures[index] for index in self.indices]

    def shares(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the share of foreground of each prediction and of each mask, `(n,)`."""
        return shares(self.counts[""])


def judge(
    trainer: pl.Trainer,
    data: ImageMaskData,
    module: Segmenter,
    split: str,
    selection: Selection,
    others: Sequence[nn.Module] = (),
    seen: Mapping[str, Mapping[int, np.ndarray]] | None = None,
) -> Judged:
    """Score every image of a split at native size, under a selection and at the default threshold.

    Args:
        trainer: Runs the loop.
        data: Holds the split.
        module: Holds the network.
        split: `val` or `test`.
        selection: What turns probabilities into masks.
        others: Networks whose probabilities are averaged with the module's.
        seen: Probabilities of the split's images that are known already, by views, as :func:`choose` returns them.
    """
    pictures, rows, plain = data.splits[split].pictures, {}, {}

    def receive(index: int, probability: np.ndarray, views: str) -> None:
        mask, valid = pictures[index].native_mask()[0].numpy(), pictures[index].native_valid()
        inside = None if valid is None else valid[0].numpy()
        if views == "none":
            prediction = probability > module.threshold
            plain[index] = {DEFAULT: pixel_counts(prediction, mask)}
            if inside is not None:
                plain[index][f"_fov{DEFAULT}"] = pixel_counts(prediction, mask, inside)
        if views != selection.views:
            return
        prediction = selection(probability)
        parts = score_image(probability, prediction, mask, inside, module.empty)
        counts = {suffix: part.counts for suffix, part in parts.items()}
        scores = {
            f"{name}{suffix}": value
            for suffix, part in parts.items()
            for name, value in part.scores.items()
            if name not in SCORES  # which are computed of the counts
        } | {"objects": float(count_objects(mask))}
        rows[index] = counts | plain[index], scores, parts[""].counted, RunLengths().write(prediction)

    for views in dict.fromkeys(["none", selection.views]):  # at the default threshold without any, and first
        hand = partial(receive, views=views)
        if seen is not None and views in seen:
            with sharing_cores(len(seen[views])) as pool:
                list(pool.map(hand, seen[views].keys(), seen[views].values()))
        else:
            _predict(trainer, data, [module.net, *others], module.tile, split, views, hand)
    merged = _gathered(rows)
    suffixes = next(iter(merged.values()))[0]
    counted, more, histograms, painted = zip(*merged.values(), strict=True)
    counts = {suffix: np.array([row[suffix] for row in counted]) for suffix in suffixes}
    return Judged(data.splits[split], list(merged), counts, list(more), sum(histograms), list(painted))


def choose(
    trainer: pl.Trainer, data: ImageMaskData, module: Segmenter, settings: Mapping[str, Any]
) -> tuple[Choice, dict[str, dict[int, np.ndarray]]]:
    """Choose threshold, views and post-processing on the validation split.

    In the field of view, if the monitored score is one of it (`val/dice_fov`); else over whole images.

    Args:
        trainer: Runs the loop.
        data: Holds the split.
        module: Holds the network.
        settings: `selection` of the config: the views that may be chosen, simplest first, and what else
            :func:`raremask.selection.select` takes.

    Returns:
        The choice, and what it was made on: the probability of each image (of this process' share), by views.
    """
    candidates = {key: value for key, value in settings.items() if key not in ("views", "tile")}  # that is the module's
    pictures = data.splits["val"].pictures
    inside = module.monitor.endswith("_fov")
    again = "Set TMPDIR to a larger disk, or make room there; of a training only the scoring is left, resume= does it."
    shelf = Shelf(VALIDATION_BYTES, "the probabilities of validation images", again)
    histograms, seen = {}, {}

    def masks(index: int) -> tuple[np.ndarray, np.ndarray | None]:
        valid = pictures[index].native_valid() if inside else None
        return pictures[index].native_mask()[0].numpy(), None if valid is None else valid[0].numpy()

    for kind in settings["views"]:
        counted: dict[int, np.ndarray] = {}
        kept: dict[int, np.ndarray] = {}

        def receive(index: int, probability: np.ndarray, counted: dict = counted, kept: dict = kept) -> None:
            found = histogram(probability, *masks(index))
            counted[index] = found if found.ndim == 2 else found[1]  # of two, the pixels in the field of view
            kept[index] = shelf.keep(probability)

        _predict(trainer, data, [module.net], module.tile, "val", kind, receive)
        histograms[kind], seen[kind] = np.array(list(_gathered(counted).values())), kept

    def counts_of(selection: Selection) -> np.ndarray:
        counted = {
            index: pixel_counts(selection(probability), *masks(index))
            for index, probability in seen[selection.views].items()
        }
        return np.array(list(_gathered(counted).values()))

    groups = list(_gathered({index: pictures[index].group for index in next(iter(seen.values()))}).values())
    if len(groups) == 1:
        rank_zero_warn(
            "There is a single validation image, on which nothing is chosen but the checkpoint.", stacklevel=3
        )
    elif len(set(groups)) == 1:
        rank_zero_warn(
            f"All {len(groups)} validation images are of one patient or sequence ({groups[0]}): threshold and "
            "post-processing are chosen on them, and may fit no other.",
            stacklevel=3,
        )
    return select(histograms, counts_of, groups, empty=module.empty, **candidates), seen


def _predict(
    trainer: pl.Trainer,
    data: ImageMaskData,
    nets: Sequence[nn.Module],
    tile: Sequence[int] | None,
    split: str,
    views: str,
    receive: Callable[[int, np.ndarray], None],
) -> None:
    data.predicted = split
    with ExitStack() as opened:
        viewer = Viewer(Predictor(nets, views, tile), receive, opened)
        trainer.predict(viewer, datamodule=data, return_predictions=False)


def _gathered(rows: dict[int, Any]) -> dict[int, Any]:
    """The rows of all processes, by index."""
    if dist.is_available() and dist.is_initialized():
        parts: list = [None] * dist.get_world_size()
        dist.all_gather_object(parts, rows)
        rows = {index: row for part in parts for index, row in part.items()}
    return dict(sorted(rows.items()))


@rank_zero_only
def save_choice(folder: Path, choice: Choice, epoch: int) -> None:
    """Write what was chosen on validation, how it came about, and how often the test split was used so far.

    A longer run chooses anew, but what it has looked at it has looked at.

    Args:
        folder: Of the run.
        choice: What was chosen.
        epoch: Of the weights that are scored, from 0.
    """
    file = folder / SELECTION
    uses = json.loads(file.read_text())["test_uses"] if file.is_file() else 0
    write_text(folder / SELECTION, json.dumps(asdict(choice) | {"epoch": epoch, "test_uses": uses}, indent=2) + "\n")


def load_choice(folder: Path) -> Selection:
    """Return the selection of a run; that of threshold 0.5 if it ended before there was one.

    Raises:
        BadInput: If it is damaged.
    """
    if not (folder / SELECTION).is_file():
        return Selection()
    try:
        return Selection(**json.loads((folder / SELECTION).read_text())["selection"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / SELECTION} is damaged: {error}") from error


@rank_zero_only
def use_test(folder: Path) -> None:
    """Count that the test split was looked at, which nothing does before a choice was made."""
    facts = json.loads((folder / SELECTION).read_text())
    facts["test_uses"] += 1
    write_text(folder / SELECTION, json.dumps(facts, indent=2) + "\n")


def looks_at_test(folder: Path) -> str:
    """Say how often a run has looked at the test split."""
    uses = json.loads((folder / SELECTION).read_text())["test_uses"]
    return f"This run has looked at the test split {'once' if uses == 1 else f'{uses} times'}."


@rank_zero_only
def write_split(path: Path, images: Judged, empty: str) -> None:
    """Write the table of the images that were scored: all of the split, unless the trainer was limited.

    Args:
        path: Where.
        images: The scores.
        empty: Policy for images whose mask and prediction are both empty.
    """
    names, groups = zip(*((picture.name, picture.group) for picture in images.pictures()), strict=True)
    write_scores(path, names, groups, images.counts, empty, images.more)


@rank_zero_only
def write_masks(path: Path, images: Judged) -> None:
    """Write the masks that were painted, as run lengths: pictures can be drawn of them without the network."""
    rows = [
        {"image": picture.name, "height": picture.size[0], "width": picture.size[1], "runs": runs}
        for picture, runs in zip(images.pictures(), images.painted, strict=True)
    ]
    write_table(path, rows)


@rank_zero_only
def draw(module: Segmenter, folder: Path, choice: Choice, images: Judged, paint: figures.Paint) -> None:
    """Draw the learning curves, the scores, and the worst, median and best images of the test split.

    Args:
        module: Holds the network.
        folder: Of the run; the pictures go to `figures`.
        choice: What was chosen on validation.
        images: The scores of the test split.
        paint: How predictions are painted.
    """
    selection = choice.selection
    dice = score(images.counts[""], module.empty)["dice"]
    order = np.array(images.indices)[np.argsort(np.nan_to_num(dice, nan=1.0), kind="stable")].tolist()
    middle = max(0, len(order) // 2 - EACH // 2)
    chosen = dict.fromkeys(order[:EACH] + order[middle : middle + EACH] + order[-EACH:])
    predictor = Predictor([module.net], selection.views, module.tile)
    rows = [figures.predicted(predictor, selection, images.split[index], module.empty) for index in chosen]
    _, foreground = images.shares()
    drawn = {
        "curves": figures.curves(read_table(folder / "metrics.csv")),
        "scores": figures.scores(
            choice.curve, selection.threshold, choice.metric, foreground, dice, reliability(images.counted)
        ),
        "gallery_test": figures.gallery(rows, f"Test images: worst, median, best of {len(order)}", paint),
    }
    for name, figure in drawn.items():
        write_figure(folder / "figures" / f"{name}.png", figure, dpi=120)
