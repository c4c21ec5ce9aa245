"""Divides images into training, validation and test: by group, evenly, in folds, or as a file says."""

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from sklearn.model_selection import GroupKFold, StratifiedKFold

from raremask import BadInput, some, tables
from raremask.data.pairing import CHANNEL, composed, read_csv

SPLITS = ("train", "val", "test")
FIFTH = 5  # a fifth of all images tests, a fifth of the others validates: 64 / 16 / 20 %
STRATA = 4  # of the images with foreground, by how much of it they have
SHUFFLES = 200  # ways to put groups into folds, of which the most even is taken


class Split:
    """Gives each image its split: what the dataset fixes stays, the rest is drawn.

    Without folds a fifth of the images tests and a fifth of the others validates. With folds each image tests in one
    fold and validates in the one before; where the dataset has a test split of its own, that stays, and each other
    image validates in one fold. For repeated folds change the seeds too: `split.fold=0,1,2,3,4 seed=0,1,2
    'split.seed=${seed}'`.

    A group (sequence, patient) is never divided, and the splits are alike in the share of images without foreground
    and in the amount of foreground of the others.

    Args:
        by: `group`, or `image`: divides groups too, as older papers do, and warns.
        seed: Decides which image or group goes where; apart from the run's seed, so that runs compare.
        fold: Number of the fold, from 0, or None for no folds.
        folds: How many folds there are; None: 5, where `fold` is set.
        file: Takes the splits from a file instead: the `split.csv` of a run, or nnU-Net's `splits_final.json`, of which
            `fold` (None: 0) is taken. There, as nnU-Net chooses nothing on it, a fold's `val` tests and a fifth of its
            `train` validates, unless the dataset has a test split of its own.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        by: str = "group",
        seed: int = 0,
        fold: int | None = None,
        folds: int | None = None,
        file: str | None = None,
    ):
        asked, folds = folds is not None, 5 if folds is None else folds
        if not all(isinstance(number, int) for number in (seed, folds, fold or 0)):
            raise ValueError(f"split.seed, folds and fold must be whole numbers; got {seed}, {folds} and {fold}")
        if by not in ("group", "image"):
            raise ValueError(f"split.by must be group or image; got {by!r}")
        if folds < 2 or (fold is not None and fold < 0):
            raise ValueError(f"split.folds must be 2 or more, split.fold 0 or more; got {folds} and {fold}")
        if asked and fold is None and file is None:
            raise ValueError(f"split.folds={folds} needs split.fold, the one that tests: split.fold=0,1,... and -m")
        if file is not None and fold is not None and Path(file).suffix.lower() != ".json":
            raise ValueError("split.file holds one split; split.fold is of nnU-Net's splits_final.json, or of no file")
        if file is None and fold is not None and fold >= folds:
            raise ValueError(f"split.fold counts from 0: with {folds} folds the last is {folds - 1}; got {fold}")
        self.by, self.seed, self.fold, self.folds = by, seed, fold, folds
        self.file = None if file is None else Path(file)
        self.words = ""  # after a call: what was kept and what was drawn

    def __call__(
        self,
        names: Sequence[str],
        groups: Sequence[str] | np.ndarray,
        fixed: Sequence[str | None],
        foreground: Sequence[float] | np.ndarray,
    ) -> list[str]:
        """Return `train`, `val` or `test` for each image.

        Args:
            names: What the images are called; unique.
            groups: Images that must not be divided share it.
            fixed: The split that the dataset fixes for the image, or None.
            foreground: The image's share of foreground pixels, in [0, 1].

        Raises:
            BadInput: If there are too few groups, nothing to fold, or the file does not fit the images.
        """
        fixed, groups, foreground = list(fixed), np.asarray(groups), np.asarray(foreground, dtype=float)
        known = len(set(groups)) < len(groups)
        if self.by == "image":
            if known:
                warnings.warn(
                    "split.by=image puts images of one group (near-duplicate frames, one patient) into training and "
                    "test: scores will be too good. Use it only to compare with papers that did so.",
                    stacklevel=2,
                )
            groups = np.asarray(names)
        if self.file is not None and self.file.suffix.lower() != ".json":
            chosen = self._of_table(self.file, names, fixed)
        elif self.file is not None:
            chosen = self._carved(self._of_nnunet(self.file, names, fixed), groups, foreground)
        elif self.fold is not None:
            chosen = self._folded(self.fold, fixed, groups, foreground)
        else:
            chosen = self._carved(fixed, groups, foreground)
        _check(chosen, groups)
        self.words = self._said(fixed, chosen, known)
        return chosen

    def _said(self, fixed: Sequence[str | None], chosen: Sequence[str], known: bool) -> str:
        """Say which splits are as the dataset fixes them, and where the others come from."""
        moved = {its for pair in zip(fixed, chosen, strict=True) if pair[0] != pair[1] for its in pair}
        kept = [its for its in SPLITS if its in fixed and its not in moved]
        others = [its for its in SPLITS if its not in kept]
        by = self.by if known or self.by == "image" else "image, for no groups are known,"
        source = f"drawn by {by} with seed {self.seed}"
        if self.file is not None:
            source = f"of {self.file}" + (f", fold {self.fold or 0}" if self.file.suffix.lower() == ".json" else "")
        elif self.fold is not None:
            source = f"fold {self.fold} of {self.folds}, {source}"
        said = [f"{', '.join(kept)} as the dataset fixes it"] if kept else []
        return "; ".join(said + ([f"{', '.join(others)} {source}"] if others else []))

    def _carved(self, fixed: list[str | None], groups: np.ndarray, foreground: np.ndarray) -> list[str]:
        """Take test and validation, where they are not fixed, out of what is open; a missing one out of training."""
        chosen = list(fixed)
        missing = [split for split in ("test", "val") if split not in fixed]
        if None not in fixed and missing == ["val"]:
            chosen = [None if split == "train" else split for split in fixed]
        for position, split in enumerate(missing):
            still = np.array([index for index, taken in enumerate(chosen) if taken is None])
            if not still.size:
                break
            count, needed = len(set(groups[still])), len(missing) - position + 1
            if count < needed:
                shown = some(sorted(set(groups[still])), 3)
                raise BadInput(
                    f"{needed} splits need {needed} groups (images, where no groups are known) or more to draw from; "
                    f"there is only {shown}."
                )
            part = deal(groups[still], foreground[still], min(FIFTH, count), self.seed)
            filled = np.bincount(part[foreground[still] > 0], minlength=part.max() + 1)
            for index in still[part == _fair(filled)]:
                chosen[index] = split
        return [split or "train" for split in chosen]

    def _folded(self, fold: int, fixed: list[str | None], groups: np.ndarray, foreground: np.ndarray) -> list[str]:
        free = np.array([index for index, split in enumerate(fixed) if split != "test"], dtype=int)
        count, least = len(set(groups[free])), max(self.folds, 2 if "test" in fixed else 3)
        if self.folds < 3 and "test" not in fixed:
            raise BadInput("split.folds must be 3 or more: one fold tests, one validates, the others train.")
        if count < least:
            raise BadInput(f"split.folds={self.folds} needs as many groups; the dataset has {count}.")
        part = deal(groups[free], foreground[free], self.folds, self.seed)
        chosen = ["test" if split == "test" else "train" for split in fixed]
        for index in free[part == fold]:
            chosen[index] = "val" if "test" in fixed else "test"
        if "test" not in fixed:
            for index in free[part == (fold + 1) % self.folds]:
                chosen[index] = "val"
        return chosen

    def _of_table(self, file: Path, names: Sequence[str], fixed: Sequence[str | None]) -> list[str]:
        rows = read_csv(file, needed=("image", "split"))
        twice = [name for name, times in Counter(row["image"] for row in rows).items() if times > 1]
        unknown = sorted({row["split"] or "(empty)" for row in rows} - set(SPLITS))
        if unknown or twice:
            problem = f"{twice[0]} stands there twice" if twice else f"got {unknown[0]}"
            raise BadInput(f"split.file={file}: each image once, and {', '.join(SPLITS)}; {problem}.")
        listed = {composed(row["image"]): row["split"] for row in rows}
        names = [composed(name) for name in names]
        self._agree(set(listed), set(names))
        for name, its in zip(names, fixed, strict=True):
            if its == "test" and listed[name] != "test":
                raise BadInput(f"split.file={file}: {name} is of the dataset's test split, and is in {listed[name]}.")
        return [listed[name] for name in names]

    def _of_nnunet(self, file: Path, names: Sequence[str], fixed: list[str | None]) -> list[str | None]:
        fold = self.fold or 0
        try:
            folds = json.loads(file.read_text(encoding="utf-8"))
            lists = {split: {composed(str(name)) for name in folds[fold][split]} for split in ("train", "val")}
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise BadInput(
                f"split.file={file}: fold {fold} is no list of train and val ({type(error).__name__}: {error})"
            ) from error
        names = [composed(name).removesuffix(CHANNEL) for name in names]  # there a case has no channel
        self._agree(
            lists["train"] | lists["val"],
            {name for name, split in zip(names, fixed, strict=True) if split != "test"},
        )
        if both := sorted(lists["train"] & lists["val"]):
            raise BadInput(f"split.file={file}: {both[0]} is in train and in val of fold {fold}.")
        if "test" in fixed:
            return [
                split if split == "test" else "val" if name in lists["val"] else "train"
                for name, split in zip(names, fixed, strict=True)
            ]
        return ["test" if name in lists["val"] else None for name in names]

    def _agree(self, listed: set[str], names: set[str]) -> None:
        missing, foreign = sorted(names - listed), sorted(listed - names)
        if missing or foreign:
            raise BadInput(
                f"split.file={self.file} does not fit the dataset. Images without a split: "
                f"{some(missing, 3) or 'none'}; names without an image: {some(foreign, 3) or 'none'}."
                + " Are their files still there?"
                * bool(foreign)
            )


def _fair(filled: np.ndarray) -> int:
    """The part to take: the first with some of the foreground, not all; else one without; rather not the only one."""
    total = filled.sum()
    return max(range(len(filled)), key=lambda part: (0 < filled[part] < total, filled[part] < total, part == 0))


def deal(groups: np.ndarray, foreground: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Put images into folds of equal size that are alike in their foreground; a group is never divided.

    scikit-learn does it: `StratifiedKFold` where each image is a group of its own. For real groups its
    `StratifiedGroupKFold` hardly follows the seed (it sorts the groups by size), so repeated folds would be the same
    ones; instead the most even of many shuffles of `GroupKFold` is taken.

    Args:
        groups: `(n,)` the group of each image; as many different ones as folds, or more.
        foreground: `(n,)` each image's share of foreground pixels, in [0, 1].
        folds: How many.
        seed: Decides which group goes where.

    Returns:
        `(n,)` the number of the fold of each image.

    >>> deal(np.array(["a", "a", "b", "b"]), np.array([0.1, 0.2, 0.1, 0.2]), folds=2, seed=0).tolist()
    [1, 1, 0, 0]
    """
    layer = strata(foreground, folds)
    part = np.empty(len(groups), dtype=int)
    if len(set(groups)) == len(groups):
        with warnings.catch_warnings():  # of a stratum with fewer images than folds: it cannot be in all of them
            warnings.filterwarnings("ignore", message="The least populated class in y")
            for number, (_, chosen) in enumerate(
                StratifiedKFold(folds, shuffle=True, random_state=seed).split(layer, layer)
            ):
                part[chosen] = number
        return part

    each = np.bincount(layer)
    best = np.inf
    for shuffle in np.random.SeedSequence(seed).generate_state(SHUFFLES):
        candidate = np.empty(len(groups), dtype=int)
        for number, (_, chosen) in enumerate(
            GroupKFold(folds, shuffle=True, random_state=int(shuffle)).split(groups, groups=groups)
        ):
            candidate[chosen] = number
        counts = np.stack([np.bincount(layer[candidate == number], minlength=len(each)) for number in range(folds)])
        uneven = ((counts - each / folds) ** 2 / np.maximum(each / folds, 1)).sum()
        if uneven < best:
            part, best = candidate, uneven
    return part


def strata(foreground: np.ndarray, folds: int) -> np.ndarray:
    """Sort images into layers that each fold gets its share of: without foreground, and up to four with more and more.

    Args:
        foreground: `(n,)` each image's share of foreground pixels, in [0, 1].
        folds: How many folds there will be; with few images there are fewer layers.

    Returns:
        `(n,)` the number of the layer; 0 has no foreground.

    >>> strata(np.array([0, 0, 0.1, 0.2, 0.3, 0.4]), folds=2).tolist()
    [0, 0, 1, 1, 2, 2]
    """
    layer = np.zeros(len(foreground), dtype=int)
    filled = foreground > 0
    number = max(1, min(STRATA, int(filled.sum()) // folds))
    if filled.any():
        edges = np.quantile(foreground[filled], np.arange(1, number) / number)
        layer[filled] = 1 + np.searchsorted(edges, foreground[filled], side="left")
    return layer if np.bincount(layer).max() >= folds else np.zeros_like(layer)


def split_csv(placed: Iterable[tuple[str, str, str]]) -> str:
    """Return the text of a `split.csv`, of name, group and split of each image."""
    return tables.text([dict(zip(("image", "group", "split"), row, strict=True)) for row in placed])


def _check(chosen: list[str], groups: np.ndarray) -> None:
    for split in SPLITS:
        if split not in chosen:
            raise BadInput(
                f"the {split} split has no image. A table of pairs or split.file must name some, or no split at all."
            )
    owner: dict[str, str] = {}
    for group, split in zip(groups.tolist(), chosen, strict=True):
        if owner.setdefault(group, split) != split:
            raise BadInput(
                f"group {group} is in {owner[group]} and in {split}; a group is never divided (split.by=image does)."
            )
