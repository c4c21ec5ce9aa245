"""Predictions that have collapsed (nothing, everything, or always the same) are recognised and named.

:func:`diagnose` looks at the epochs of a training that goes on, :func:`collapse` at masks.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

FEW = 5  # of fewer masks nothing can be said
WHITE = 0.99  # share of foreground from which a mask counts as white
MOST = 0.5  # share of the images from which it is a collapse
FOUND = 0.02  # pooled Dice from which foreground is found, however few images have any
BLIND = 1.1  # times higher probability inside the foreground than outside, below which it is not seen
FLAT = 1e-3  # standard deviation of the probabilities in an image below which the network sees nothing
LEAP = 20.0  # times the usual gradient: a step that large may have broken the network
RARE = 0.02  # share of foreground from which painting nothing is tempting
EPOCHS = 5  # in a row: two or three of this kind have been seen in trainings that then found the foreground


def extremes(painted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Share of the images with foreground that were left empty, and that were painted white.

    Args:
        painted: `(n,)` share of foreground of each prediction.
        true: `(n,)` share of foreground of each mask.

    Returns:
        `left_empty` and `all_white`, in [0, 1]; NaN if fewer than five masks have foreground (white ones are not looked
        at).

    >>> extremes(np.array([0.0, 1.0, 0.2, 0.0, 0.0, 0.0]), np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.0]))
    {'left_empty': 0.6, 'all_white': 0.2}
    """
    seen = painted[(true > 0) & (true < WHITE)]
    if seen.size < FEW:
        return {"left_empty": float("nan"), "all_white": float("nan")}
    return {"left_empty": float((seen == 0).mean()), "all_white": float((seen > WHITE).mean())}


def diagnose(epochs: Sequence[Mapping[str, float]], patience: int = EPOCHS) -> str:
    """Say if a training has collapsed, of which kind, the likely cause and what to try; or nothing.

    What it goes by, each for `patience` epochs in a row: less is painted than there is, nothing of it right, and the
    probability inside the foreground is no higher than outside; more than half of the images are painted white; or
    probabilities hardly vary in an image. A network that paints nothing yet, but gives the foreground higher
    probabilities than the background, is learning: with bce at 1 % foreground that phase lasts for ten epochs and more.

    Args:
        epochs: What was logged in each, as in `metrics.csv`: `epoch` (from 0), `val/left_empty`, `val/all_white`,
            `val/dice_pooled`, `val/foreground_predicted`, `val/foreground_true`, `val/contrast`,
            `val/probability_spread`, `train/foreground_true`, `optim/grad_norm`, and `optim/stage` where there are
            two. NaN counts as health: it means that there are too few images to say.
        patience: Epochs.

    >>> well = {"epoch": 0, "val/left_empty": 0.0, "val/all_white": 0.0, "val/dice_pooled": 0.4, "val/contrast": 3.0,
    ...     "val/probability_spread": 0.1, "val/foreground_true": 0.001, "val/foreground_predicted": 0.001,
    ...     "train/foreground_true": 0.001, "optim/grad_norm": 0.5}
    >>> diagnose([well] * 9)
    ''
    >>> blind = {"epoch": 1, "val/dice_pooled": 0.0, "val/contrast": 1.0, "val/foreground_predicted": 0.0}
    >>> diagnose([well] + [well | blind] * 5).split(":")[0]
    'collapsed to all background since epoch 2'
    """
    kinds = [_kind(row) for row in epochs]
    kind = kinds[-1] if kinds else ""
    if not kind or len(kinds) < patience or set(kinds[-patience:]) != {kind}:
        return ""
    onset = max((number for number, one in enumerate(kinds) if one != kind), default=-1) + 1
    row, before = epochs[onset], epochs[max(0, onset - patience) : onset]
    seen = {
        "all background": (
            f"{epochs[-1]['val/left_empty']:.0%} of the images with foreground are left empty, nothing is found in the "
            f"others, and probabilities inside the foreground are {epochs[-1]['val/contrast']:.2f} times those outside"
        ),
        "all foreground": f"{epochs[-1]['val/all_white']:.0%} of the images are painted white",
        "a constant": f"probabilities vary by {epochs[-1]['val/probability_spread']:.1g} in an image",
    }[kind]
    cause, remedy = _cause(kind, row, before)
    return f"collapsed to {kind} since epoch {row['epoch'] + 1:.0f}: {seen}. Likely cause: {cause}. Try {remedy}."


def _kind(row: Mapping[str, float]) -> str:
    if row["val/probability_spread"] < FLAT:
        return "a constant"
    less = row["val/foreground_predicted"] < row["val/foreground_true"] and not math.isnan(row["val/left_empty"])
    if less and row["val/dice_pooled"] < FOUND and row["val/contrast"] < BLIND:
        return "all background"
    return "all foreground" if row["val/all_white"] > MOST else ""


def _cause(kind: str, row: Mapping[str, float], before: Sequence[Mapping[str, float]]) -> tuple[str, str]:
    """The likely cause of a collapse, and a remedy.

    Args:
        kind: Of :func:`_kind`.
        row: The epoch in which it began.
        before: Some epochs before it.
    """
    usual = [one["optim/grad_norm"] for one in before if math.isfinite(one["optim/grad_norm"])]
    if before and before[0].get("optim/stage", 1) < row.get("optim/stage", 1):
        return (
            "the switch to the second loss, with which it began",
            "a lower callbacks.switch.lr, a later callbacks.switch.epoch, or another second loss",
        )
    if usual and math.inf > row["optim/grad_norm"] > LEAP * float(np.median(usual)):
        return (
            f"a step too large (gradient {row['optim/grad_norm']:.2g}, before {np.median(usual):.2g})",
            "a lower optimizer.lr, or a lower trainer.gradient_clip_val",
        )
    if kind == "all background" and row["train/foreground_true"] < RARE:
        return (
            f"with {row['train/foreground_true']:.2%} foreground painting nothing costs this loss little",
            "loss=focal_tversky or loss=dynamit (docs/imbalance.md), or more foreground in training: augment=patches, "
            "dataset.foreground_share=0.5 if many masks are empty",
        )
    if kind == "all foreground":
        return (
            "the loss asks for less of false positives than of misses, or the steps are too large",
            "a lower weight of the foreground (pos_weight, beta), another loss, or a lower optimizer.lr",
        )
    return (
        "steps that are too large, or a loss that has no slope on this task",
        "a lower optimizer.lr or another loss",
    )


def collapse(painted: Sequence[float] | np.ndarray, true: Sequence[float] | np.ndarray | None = None) -> str:
    """Say if predictions have collapsed: all empty, more than half of them white, or all of one area.

    Args:
        painted: Share of foreground of each predicted mask.
        true: Share of foreground of each true mask; only images that have some, and are not white, are looked at.
            None takes all.

    Returns:
        What is wrong, the likely cause and what to try next; or nothing.

    >>> collapse([0.0] * 10).split(".")[0]
    '10 of 10 masks are empty'
    >>> collapse([0.0, 0.0, 0.0, 0.0, 0.2], true=[0.0, 0.0, 0.0, 0.0, 0.1])
    ''
    """
    painted = np.asarray(painted, dtype=float)
    of = "masks"
    if true is not None:
        true = np.asarray(true, dtype=float)
        painted, of = painted[(true > 0) & (true < WHITE)], "masks of images with foreground"
    if painted.size < FEW:
        return ""
    empty, white = int((painted == 0).sum()), int((painted > WHITE).sum())
    if empty == painted.size:
        asked = "If that cannot be, the network paints nothing" if true is None else "The network paints nothing"
        return (
            f"{empty} of {painted.size} {of} are empty. {asked}: look at the threshold, and whether val/dice ever rose "
            "above what all background scores; try loss=bce_dice, more epochs, or a lower learning rate."
        )
    if white > MOST * painted.size:
        return (
            f"{white} of {painted.size} {of} are white. The threshold may lie below every probability, or images are "
            "read otherwise than in training (gray or colour, 8 or 16 bits): look at the probabilities."
        )
    if np.ptp(painted) == 0:
        return f"all {painted.size} {of} have the same area. The network does not see the image: look at its inputs."
    return ""
