"""Finished runs, scored again: one beside its own record, or several side by side and averaged."""

import itertools
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from omegaconf import DictConfig, OmegaConf

from raremask import BadInput, figures, receipt
from raremask.building import SPLIT, build, build_trainer, choices_of, load_config
from raremask.callbacks import Progress
from raremask.collapse import collapse
from raremask.commandline import program, runs_of
from raremask.data.base import ImageMaskData
from raremask.inference import Predictor
from raremask.metrics.overlap import score
from raremask.module import Segmenter
from raremask.runfolder import read_status, standing, write_figure
from raremask.scoretables import beside_baselines, format_scores, largest_change, summaries
from raremask.scoring import (
    SELECTION,
    Judged,
    choose,
    judge,
    load_choice,
    load_weights,
    looks_at_test,
    use_test,
    write_split,
)
from raremask.selection import Selection, together
from raremask.settings import flat
from raremask.terminal import quieten

SAME = 1e-6  # scores that differ by less are the same
SHOWN = 4  # images of a gallery for which none were named
TOGETHER = "averaged"  # row of several runs whose probabilities are averaged


@dataclass(frozen=True)
class Finished:
    """A run with its weights.

    Args:
        folder: Where it lies.
        name: What tells it from the others.
        data: Its images, read and divided as then.
        module: Holds its network.
        selection: What it chose on validation.
    """

    folder: Path
    name: str
    data: ImageMaskData
    module: Segmenter
    selection: Selection

    def form(self) -> tuple:
        """Return what must be equal in runs whose probabilities are averaged."""
        return self.data.size, self.data.resize, self.data.channels, self.data.bits, self.module.tile


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
            f"{unfinished[0]} has {standing(unfinished[0])}: for its weights nothing was chosen on validation yet. "
            f"Let it end ({program('train')} resume={unfinished[0]}), leave it out by naming the others, "
            "or look at validation: split=val."
        )
    places = {"data_dir": cfg.data_dir} | {f"dataset.{key}": place for key, place in cfg.dataset.items()}
    runs = _finished(folders, cfg.checkpoint, {key: place for key, place in places.items() if place is not None})
    same_images(runs, cfg.split)
    shown = asked_for(runs[0], cfg.split, cfg.images)
    parts = cfg.trainer if "trainer" in cfg else load_config(runs[0].folder).trainer
    trainer = build_trainer(parts, callbacks=[Progress()], logger=False, enable_checkpointing=False)
    runs = [
        run
        if cfg.checkpoint == "best" and run.folder not in unfinished  # for it this was chosen when it ended
        else choose_again(trainer, run, cfg.checkpoint, OmegaConf.to_container(load_config(run.folder).selection))
        for run in runs
    ]
    write = not (cfg.verify or unfinished)
    scored = [score_again(trainer, run, cfg.split, cfg.checkpoint, write) for run in runs]
    judged = [images for images, _ in scored]
    if cfg.verify and trainer.is_global_zero:
        for run, (_, change) in zip(runs, scored, strict=True):
            verify(run, cfg.split, change)
    out = Path(str(cfg.out))
    if len(runs) > 1:
        side_by_side(trainer, runs, judged, cfg.split, out)
    if cfg.figure == "comparison" and trainer.is_global_zero:
        rows = comparison(runs, judged, cfg.split, shown)
        figure = figures.gallery(rows, "", figures.Paint(**cfg.figures), [run.name for run in runs])
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
    names = short_names(folders, choices)
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


def short_names(folders: Sequence[Path], choices: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name runs by as few of their choices as tell them apart, or by their folders.

    >>> short_names([Path("a"), Path("b")], [{"loss": "dice", "seed": 0}, {"loss": "dice", "seed": 1}])
    ['dice 0', 'dice 1']
    """
    for keys in (("loss",), ("loss", "seed"), ("dataset", "model", "loss", "seed")):
        names = [" ".join(str(choice[key]) for key in keys if key in choice) for choice in choices]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def same_images(runs: Sequence[Finished], split: str) -> None:
    """Refuse runs that cannot be compared.

    Raises:
        BadInput: If they do not have the same images in the split: what one was tested on, another may have learnt.
    """

    def images(run: Finished) -> set[tuple]:
        """Names alone do not do: 1.png is in many datasets."""
        return {
            (picture.name, picture.size, picture.packed.tobytes())  # type: ignore[union-attr]  # None only in training
            for picture in run.data.splits[split].pictures
        }

    first = images(runs[0])
    for run in runs[1:]:
        names = images(run)
        if names != first:
            raise BadInput(
                f"{runs[0].folder} and {run.folder} have only {len(names & first)} of {len(names | first)} {split} "
                "images (and their masks) in common; an image that one is tested on, another may have learnt. Name "
                "runs of one split; folds are put together by compare.py."
            )


def choose_again(trainer: pl.Trainer, run: Finished, checkpoint: str, settings: Mapping[str, Any]) -> Finished:
    """Choose on validation for the network that a run now has, and return it so.

    Args:
        trainer: Runs the loop.
        run: With the weights of this checkpoint.
        checkpoint: Which it is.
        settings: `selection` of the run's config.
    """
    choice, _ = choose(trainer, run.data, run.module, settings)
    if trainer.is_global_zero:
        print(f"\nChosen on validation for {checkpoint}.ckpt of {run.folder}: {choice.selection.words()}")
    return replace(run, selection=choice.selection)


def score_again(
    trainer: pl.Trainer, run: Finished, split: str, checkpoint: str, write: bool = True
) -> tuple[Judged, float]:
    """Score a run on a split, print it, and compare it with the table that the run has left.

    Args:
        trainer: Runs the loop.
        run: What is scored.
        split: `val` or `test`.
        checkpoint: Which of its checkpoints its weights are.
        write: Whether the table is written if there is none.

    Returns:
        What was scored, and the largest change of a score of an image; NaN if there was no table.
    """
    images, empty = judge(trainer, run.data, run.module, split, run.selection), run.module.empty
    if split == "test":
        use_test(run.folder)
    change = math.nan
    if trainer.is_global_zero:
        print(f"\n{run.folder}\nMean over images at native size (an empty mask left empty counts as: {empty})")
        print(format_scores(beside_baselines(images.counts, empty, f"{split}, {checkpoint}.ckpt")))
        if (run.folder / SELECTION).is_file():  # or it has not ended, and not looked at test yet
            print(looks_at_test(run.folder))
        name = split if checkpoint == "best" else f"{split}_{checkpoint}"
        table = run.folder / f"per_image_{name}.csv"
        if write or table.is_file():
            change = compare_with_record(table, images, empty)
        if collapsed := collapse(*images.shares()):
            warnings.warn(collapsed, stacklevel=2)
    return images, change


def compare_with_record(table: Path, images: Judged, empty: str) -> float:
    """Write the table of a split, beside the one that the run has left if the two differ.

    Args:
        table: The one that the run has left; written if there is none.
        images: What was scored now.
        empty: Policy for images whose mask and prediction are both empty.

    Returns:
        The largest change of a score; NaN if there was no table.
    """
    if not table.is_file():
        write_split(table, images, empty)
        return math.nan
    again = table.with_stem(f"{table.stem}_again")
    write_split(again, images, empty)
    change = largest_change(table, again)
    print(f"Largest change of a score against {table.name}: {change:.2g}")
    if change > SAME:
        warnings.warn(
            f"The scores differ from the run's own; see {again}. Another device, other cores, or another dataset?",
            stacklevel=2,
        )
    else:
        again.unlink()
    return change


def verify(run: Finished, split: str, change: float) -> None:
    """Say that a run's scores can be recomputed from its checkpoint and its data.

    Args:
        run: Scored again.
        split: `val` or `test`.
        change: Of :func:`score_again`.

    Raises:
        BadInput: With all that is not as the run has left it.
    """
    wrong = receipt.differences(run.folder, receipt.data_digest([picture for _, picture in run.data.pictures()]))
    if math.isnan(change):
        wrong.append(f"there was no table of {split} to compare with")
    elif change > SAME:
        then = receipt.read_receipt(run.folder)["parts"][-1]["device"]
        wrong.append(f"scores of {split} differ by up to {change:.2g} (the run was trained on {then})")
    if wrong:
        raise BadInput(f"{run.folder} is not verified:\n  " + "\n  ".join(wrong))
    print(f"Verified: {run.folder} has the data, the split and the scores of {split} that it says it has.")


def side_by_side(
    trainer: pl.Trainer, runs: Sequence[Finished], judged: Sequence[Judged], split: str, out: Path
) -> None:
    """Print several runs in one table with what they reach averaged, and write the table of that.

    Args:
        trainer: Runs the loop.
        runs: Two or more, of the same images.
        judged: What each of them scored.
        split: `val` or `test`.
        out: Folder for `per_image_<split>.csv`; left empty if the runs prepare images differently.
    """
    first, empty = runs[0], runs[0].module.empty
    rows = {run.name: summaries(images.counts, empty) for run, images in zip(runs, judged, strict=True)}
    averaged = all(run.form() == first.form() for run in runs)
    if averaged:
        selection = together([run.selection for run in runs])
        images = judge(trainer, first.data, first.module, split, selection, [run.module.net for run in runs[1:]])
        rows[TOGETHER] = summaries(images.counts, empty)
    if not trainer.is_global_zero:
        return
    baselines = beside_baselines(judged[0].counts, empty)
    print(f"\nSide by side on {split}")
    print(format_scores(rows | {name: row for name, row in baselines.items() if name.startswith("all ")}))
    if averaged:
        write_split(out / f"per_image_{split}.csv", images, empty)
        table = f"{os.path.relpath(out)}/per_image_{split}.csv"
        how = f"{selection.words()} (of what each chose by itself; not chosen for the mean)"
        print(f"{TOGETHER}: the mean of their probabilities, {how}; {table}")
    else:
        print("Not averaged: the runs differ in dataset.size, resize, channels, bits or selection.tile.")


def asked_for(run: Finished, split: str, names: Any) -> list[str] | None:
    """Return the names of images that were asked for; None if none were.

    Args:
        run: Whose images they are.
        split: `val` or `test`.
        names: A name, or several; 12 is the image `12`, and 007 arrives here as 7.

    Raises:
        BadInput: If an image is not in the split.
    """
    if names is None:
        return None
    asked = [str(names)] if isinstance(names, (str, int)) else [str(name) for name in names]
    known = [picture.name for picture in run.data.splits[split].pictures]
    if missing := [name for name in asked if name not in known]:
        quoted = next((name for name in known if name.isdigit() and name.lstrip("0") == missing[0]), None)
        way = f" Quote a name that begins with 0: images=[\"'{quoted}'\"]" if quoted else ""
        raise BadInput(f"images: there is no {missing[0]} in {split}; it begins with {', '.join(known[:3])}.{way}")
    return asked


def comparison(
    runs: Sequence[Finished], judged: Sequence[Judged], split: str, names: Sequence[str] | None
) -> list[figures.Row]:
    """Predict the same images with several runs, for a gallery.

    Args:
        runs: One or more, of the same images.
        judged: What each of them scored.
        split: `val` or `test`.
        names: Which images, of :func:`asked_for`; None takes `SHOWN`, evenly from the worst to the best mean Dice.
    """
    pictures = {picture.name: index for index, picture in enumerate(runs[0].data.splits[split].pictures)}
    if names is None:
        dice = np.mean([score(images.counts[""], "one")["dice"] for images in judged], axis=0)
        order = np.array(judged[0].indices)[np.argsort(dice, kind="stable")]
        evenly = np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int)
        names = [list(pictures)[index] for index in order[evenly]]
    rows = []
    for name in names:
        shown = []
        for run in runs:
            index = [picture.name for picture in run.data.splits[split].pictures].index(name)
            predictor = Predictor([run.module.net], run.selection.views, run.module.tile)
            shown.append(figures.predicted(predictor, run.selection, run.data.splits[split][index], run.module.empty))
        rows.append(replace(shown[0], predictions=[one for row in shown for one in row.predictions]))
    return rows
