"""Reads what runs have left behind, and lays their scores side by side."""

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from raremask import BadInput
from raremask.collapse import collapse
from raremask.metrics.overlap import COUNTS, beside_empty, shares
from raremask.runfolder import STATUS
from raremask.scoretables import DEFAULT
from raremask.settings import GROUPS, NO_OTHER_METHOD, flat
from raremask.tables import read_table

BUDGET = ("trainer.max_epochs", "dataset.size", "dataset.batch_size", "dataset.draws")  # what should be equal
NO_SCORES = ("image", "group", "foreground", "objects", *COUNTS)  # columns of the tables, also with a suffix
CHOICES = (*GROUPS, "second_loss", "experiment")  # in this order a run is called by them

#: What each run has of each image, by label and seed, and by the image's name.
Merged = dict[tuple[str, int], dict[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Run:
    """A run as its folder tells of it.

    Args:
        folder: Where it lies.
        settings: What was chosen for it: a choice from each group, and every value that was changed.
        label: What it is called beside others: the settings in which they differ.
        seed: Its seed.
        fold: Its fold, or None.
        state: done, failed, running, ...
        reason: Why it failed.
        rows: Its scores of each test image, by the image's name; empty if it is not done.
        history: What was logged in each epoch.
        selection: What was chosen on validation; empty if it is not done.
        facts: Its `status.json`.
        config: Every value of its config that makes a method, by its path.
        budget: What it was allowed, see `BUDGET`.
        split: Digest of its `split.csv`.
        leaks: Whether images of different splits are nearly the same.
    """

    folder: Path
    settings: Mapping[str, str]
    label: str
    seed: int
    fold: int | None
    state: str
    reason: str
    rows: Mapping[str, Mapping[str, Any]]
    history: Sequence[Mapping[str, float]]
    selection: Mapping[str, Any]
    facts: Mapping[str, Any]
    config: Mapping[str, str]
    budget: Mapping[str, str]
    split: str
    leaks: bool

    @property
    def collapsed(self) -> str:
        """How its predictions have collapsed, or nothing."""
        if not self.rows:
            return ""
        return collapse(*shares(np.array([[row[name] for name in COUNTS] for row in self.rows.values()])))

    def threshold_drop(self) -> float:
        """Return by how much the score on validation falls at worst if the threshold is off by 0.1; NaN if unknown.

        A threshold that is off cannot be below 0, at which everything is painted, or above 1.
        """
        if not self.selection:
            return math.nan
        curve, threshold, reached = self.thresholds()
        chosen, reach = round(threshold * len(curve)), len(curve) // 10
        return reached - min(curve[index] for index in (chosen - reach, chosen + reach) if 0 < index < len(curve))

    def thresholds(self) -> tuple[list[float], float, float]:
        """Return the score on validation at each threshold k / 1000, the chosen threshold, and what it reached."""
        return self.selection["curve"], self.selection["selection"]["threshold"], self.selection["unprocessed"]


@dataclass(frozen=True)
class Table:
    """Scores of the images that all runs have in common.

    Args:
        scores: `(S, N)` of each label, a row for each seed; NaN where an image is left out.
        images: `N` names.
        groups: `(N,)` group of each image.
        foreground: `(N,)` true share of foreground; in the field of view, if the score is one of it.
        object_size: `(N,)` mean area of an object in pixels, NaN where there is none.
        folds: `(N,)` the fold that tests each image, in all runs; None if there are no folds, or each seed has its own.
        lacking: How many images each run lacks that others have, by label and seed; only those that lack some.
        empties: How many images without foreground are left out: by the policy `skip`, or for want of a score.
        alarms: On which share of those each label has painted something.
    """

    scores: dict[str, np.ndarray]
    images: list[str]
    groups: np.ndarray
    foreground: np.ndarray
    object_size: np.ndarray
    folds: np.ndarray | None
    lacking: dict[str, int]
    empties: int
    alarms: dict[str, float]


def find(places: Iterable[Path]) -> list[Path]:
    """Return the folders of all runs at or below some places, sorted.

    Raises:
        BadInput: If a place is not there, or there is no run.
    """
    found: dict[Path, None] = {}
    for place in places:
        if not place.is_dir():
            raise BadInput(f"There is no folder {place}.")
        files = sorted(place.rglob(STATUS))
        if not files:
            raise BadInput(f"There is no run at or below {place}: a run leaves a {STATUS}.")
        found |= dict.fromkeys(file.parent for file in files)
    return list(found)


def read(folder: Path) -> Run:
    """Read one run; its label is given later, beside others.

    Raises:
        BadInput: If a file of it is missing or damaged.
    """
    try:
        return _read(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError, csv.Error) as error:
        raise BadInput(f"{folder}: a file is missing or damaged ({type(error).__name__}: {error})") from error


def _read(folder: Path) -> Run:
    facts = json.loads((folder / STATUS).read_text())
    done = facts["state"] == "done"
    config = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
    changed = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text()) or []
    settings = {key: str(facts[key]) for key in CHOICES if key in facts}
    settings |= {
        key: value for key, _, value in (text.lstrip("+").partition("=") for text in changed) if "@" not in key
    }
    values, split = flat(config), folder / "split.csv"
    selection = json.loads((folder / "selection.json").read_text()) if done else {}
    if done and "unprocessed" not in selection:
        raise ValueError("selection.json is of an older version; leave this run out")
    return Run(
        folder=folder,
        settings={key: value for key, value in settings.items() if _is_method(key)},
        config={key: str(value) for key, value in values.items() if _is_method(key)},
        label="",
        seed=int(facts["seed"]),
        fold=config["split"]["fold"],
        state=facts["state"],
        reason=facts.get("reason", ""),
        rows={row["image"]: row for row in _scored(folder / "per_image_test.csv")} if done else {},
        history=read_table(folder / "metrics.csv") if (folder / "metrics.csv").is_file() else [],
        selection=selection,
        facts=facts,
        budget={path: str(values.get(path)) for path in BUDGET},
        split=hashlib.sha256(split.read_bytes()).hexdigest()[:12] if split.is_file() else "",
        leaks=(folder / "leaks.csv").is_file(),
    )


def _scored(path: Path) -> list[dict[str, Any]]:
    """Rows of a table of scores, with what empty masks hide."""
    rows = read_table(path)
    for name, values in beside_empty(np.array([[row[key] for key in COUNTS] for row in rows])).items():
        for row, value in zip(rows, values.tolist(), strict=True):
            row[name] = value
    return rows


def _is_method(key: str) -> bool:
    return key != "trainer" and not any(key == name or key.startswith(f"{name}.") for name in NO_OTHER_METHOD)


def labelled(runs: Sequence[Run]) -> list[Run]:
    """Call runs by the settings in which they differ, recipe and loss first; what recipes chose goes without saying.

    Runs of dice and bce are called so; with two learning rates each, `dice lr=0.1` and so on; of two recipes by these,
    and by what was changed in them.

    Raises:
        BadInput: If they are of different datasets.
    """
    datasets = sorted({run.settings.get("dataset", "?") for run in runs})
    if len(datasets) > 1:
        raise BadInput(f"Runs of different datasets cannot be compared: {', '.join(datasets)}. Name those of one.")
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    differ = [key for key in keys if len({run.settings.get(key) for run in runs}) > 1 and key != "loss"]
    recipes = {run.settings.get("experiment") for run in runs}
    if len(recipes) > 1:  # and every one has always come with the same choice of a group
        together = {key: {(run.settings.get("experiment"), run.settings.get(key)) for run in runs} for key in differ}
        implied = {key for key in CHOICES if key != "experiment" and len(together.get(key, ())) == len(recipes)}
        differ = [key for key in differ if key not in implied]
    losses = {run.settings.get("loss") for run in runs}
    short = {key: _shortened({run.settings[key] for run in runs if key in run.settings}) for key in differ}
    last = [key.rpartition(".")[2] for key in differ]
    called = {
        key: name if last.count(name) == 1 and key[0] != "~" else key for key, name in zip(differ, last, strict=True)
    }
    prefix = "experiment=" if recipes & losses else ""
    named = []
    for run in runs:
        here = [key for key in differ if key in run.settings]
        parts = [f"{prefix}{run.settings['experiment']}"] if "experiment" in here else []
        parts += [run.settings["loss"]] if "loss" in run.settings and (len(losses) > 1 or not differ) else []
        parts += [f"{called[key]}={short[key][run.settings[key]]}" for key in here if key != "experiment"]
        named.append(replace(run, label=" ".join(parts) or run.settings.get("loss", "run")))
    if max(Counter((run.label, run.seed, run.fold) for run in named).values()) > 1:  # a longer training beside it?
        lengths = {run.budget["trainer.max_epochs"] for run in named}
        if len(lengths) > 1:
            return [replace(one, label=f"{one.label} max_epochs={one.budget['trainer.max_epochs']}") for one in named]
    return named


def _shortened(values: Collection[str]) -> dict[str, str]:
    """Name files without their folders, if that tells them apart."""
    names = {value: value.rpartition("/")[2] or value for value in values}
    return names if len(set(names.values())) == len(names) else {value: value for value in values}


def merged(runs: Sequence[Run]) -> Merged:
    """Put the tables of finished runs together; folds of one seed are one.

    Raises:
        BadInput: If no run is done, or a label has two runs of one seed and image.
    """
    found: Merged = {}
    for run in (run for run in runs if run.rows):
        rows = found.setdefault((run.label, run.seed), {})
        if doubled := rows.keys() & run.rows.keys():
            same = (one for one in runs if (one.label, one.seed) == (run.label, run.seed))
            other = next(one for one in same if one.rows.keys() & run.rows.keys())
            why = f"tested on {len(doubled)} of the same images. Leave one out: "
            if None not in (other.fold, run.fold) and other.fold != run.fold and other.rows.keys() == run.rows.keys():
                why = (
                    f"of folds {other.fold} and {run.fold}, whose test images are the same, as the dataset fixes "
                    "them. Compare the runs of one fold: "
                )
            raise BadInput(
                f"{other.folder} and {run.folder} are both runs of {run.label} with seed {run.seed}, {why}"
                "runs=[<folder>,<folder>] names those to compare."
            )
        rows.update(run.rows)
    if not found:
        raise BadInput("None of these runs is done.")
    return found


def column(tables: Merged, metric: str, images: Sequence[str]) -> dict[str, np.ndarray]:
    """Return a score of some images, `(S, N)` of each label, a row for each seed; NaN where there is none."""
    scores: dict[str, list[list[float]]] = {}
    for (label, _), rows in sorted(tables.items()):
        scores.setdefault(label, []).append([rows[image].get(metric, math.nan) for image in images])
    return {label: np.array(values, float) for label, values in scores.items()}


def table(runs: Sequence[Run], metric: str) -> Table:
    """Lay the scores of finished runs side by side, on the images that all of them have.

    Args:
        runs: With labels; those that are not done are left out.
        metric: A column of the tables.

    Raises:
        BadInput: As :func:`merged`; or if there is no such score, or no image is common to all.
    """
    tables = merged(runs)
    _check_metric(tables, metric)
    everywhere = Counter(image for rows in tables.values() for image in rows)
    common = _in_common(tables, everywhere)
    shared, alarms, suffix = common, {}, "_fov" if metric.removesuffix(DEFAULT).endswith("_fov") else ""
    skipped = any(run.facts.get("empty") == "skip" for run in runs if run.rows)
    if skipped or any(math.isnan(rows[image].get(metric, math.nan)) for rows in tables.values() for image in common):
        # an empty mask that is left empty has no score, one that is painted has: not the same images
        of_all = {image: [rows[image][f"foreground{suffix}"] for rows in tables.values()] for image in common}
        shared = [image for image, foreground in of_all.items() if all(share > 0 for share in foreground)]
        if not shared:
            raise BadInput(f"No image has foreground, and {metric} is not defined without.")
        left = sorted(set(common) - set(shared))
        painted = column(tables, f"fp{suffix}", left)
        alarms = {label: float((fp > 0).mean()) for label, fp in painted.items()} if left else {}
    first = next(iter(tables.values()))
    truth = np.array([first[image]["tp"] + first[image]["fn"] for image in shared], float)
    objects = np.array([first[image].get("objects", math.nan) for image in shared], float)
    return Table(
        scores=column(tables, metric, shared),
        images=shared,
        groups=np.array([str(first[image]["group"]) for image in shared]),
        foreground=np.array([first[image][f"foreground{suffix}"] for image in shared], float),
        object_size=np.divide(truth, objects, out=np.full(len(shared), np.nan), where=objects > 0),
        folds=_folds(runs, shared),
        lacking={
            f"{label} seed {seed}": len(everywhere) - len(rows)
            for (label, seed), rows in tables.items()
            if len(rows) < len(everywhere)
        },
        empties=len(common) - len(shared),
        alarms=alarms,
    )


def _folds(runs: Sequence[Run], images: Sequence[str]) -> np.ndarray | None:
    testing: dict[str, set[int | None]] = {}
    for run in runs:
        for image in run.rows:
            testing.setdefault(image, set()).add(run.fold)
    if any(len(testing[image]) > 1 for image in images):
        return None
    folds = np.array([next(iter(testing[image])) for image in images])
    return folds if len(set(folds.tolist())) > 1 else None


def _check_metric(tables: Merged, metric: str) -> None:
    lacking = [run for run, rows in tables.items() if not any(metric in row for row in rows.values())]
    if 0 < len(lacking) < len(tables):
        label, seed = lacking[0]
        raise BadInput(
            f"{label} seed {seed} has no {metric} in its per_image_test.csv. Move that file away and score the run "
            "again with evaluate.py, which writes it anew (and counts one more look at test)."
        )
    columns = dict.fromkeys(key for rows in tables.values() for row in rows.values() for key in row)
    known = [key for key in columns if key.split("_")[0] not in NO_SCORES]
    if metric not in known:
        raise BadInput(f"metric={metric} is no score in the tables; there are: {', '.join(known)}")


def _in_common(tables: Merged, everywhere: Counter[str]) -> list[str]:
    """The images that all have, of the same groups."""
    shared = [image for image, times in everywhere.items() if times == len(tables)]
    if not shared:
        raise BadInput("The runs have no test image in common: they are of different splits or datasets.")
    for image in shared:
        groups = {str(rows[image]["group"]) for rows in tables.values()}
        if len(groups) > 1:
            its = " and of ".join(sorted(groups))
            raise BadInput(f"The runs do not have the same groups (patients): {image} is of {its}.")
    return shared
