"""How losses fare as the foreground gets rarer: `python scripts/imbalance_study.py`, under 45 minutes on two cores.

Trains every loss on phantoms with 10, 3, 1, .3 and .1 % foreground, and draws test Dice against the foreground:
docs/imbalance.png, with the numbers in docs/imbalance.md. It is a sweep (outputs/sweeps/imbalance_study): what is
trained already is not trained again, and what was interrupted goes on. `losses=dice,bce seeds=0` takes fewer.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from raremask.compare import results
from raremask.compare.drawings import looks

ROOT = Path(__file__).parents[1]
SWEEP = ROOT / "outputs" / "sweeps" / "imbalance_study"
FOREGROUND = (0.1, 0.03, 0.01, 0.003, 0.001)
LOSSES = ("bce", "weighted_bce", "dice", "bce_dice", "focal_tversky", "dynamit", "boundary_gaussian", "boundary_dou")
SEEDS = (0, 1)
SETTINGS = """
    dataset=phantom dataset.kind=polyp dataset.size=[96,96] dataset.train=64 dataset.val=24 dataset.test=48
    dataset.batch_size=4 model=unet model.base=8 model.levels=3 augment=flips optimizer=adamw optimizer.lr=0.003
    scheduler=cosine trainer=auto trainer.max_epochs=20
    """
COLUMNS = {"dice": "threshold, views and post-processing chosen on validation", "dice_default": "at threshold 0.5"}


def train(losses: Sequence[str], seeds: Sequence[int]) -> None:
    """Train what is not trained yet."""
    choices = {"dataset.foreground": FOREGROUND, "loss": losses, "seed": seeds}
    varied = [f"{key}={','.join(map(str, values))}" for key, values in choices.items()]
    command = [sys.executable, "src/train.py", "-m", *SETTINGS.split(), *varied, "sweep=imbalance_study", "retry=true"]
    subprocess.run(command, cwd=ROOT, check=True)


def collected(losses: Sequence[str], seeds: Sequence[int]) -> dict[str, dict[str, np.ndarray]]:
    """Mean test Dice of every run: for each column and loss an array `(foreground, seed)`, NaN where there is none."""
    found = {column: {loss: np.full((len(FOREGROUND), len(seeds)), np.nan) for loss in losses} for column in COLUMNS}
    for run in map(results.read, results.find([SWEEP])):
        loss, share = run.settings["loss"], float(run.settings["dataset.foreground"])
        if loss in losses and run.seed in seeds and run.rows:
            place = FOREGROUND.index(share), list(seeds).index(run.seed)
            for column in COLUMNS:
                found[column][loss][place] = np.mean([row[column] for row in run.rows.values()])
    return found


def draw(found: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Draw a panel for each column: a line for each loss through the means over seeds, each seed as a dot."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for axis, (column, title) in zip(figure.subplots(1, len(COLUMNS), sharey=True), COLUMNS.items(), strict=True):
        for loss, look in looks(list(found[column])).items():
            values = found[column][loss]
            axis.plot(FOREGROUND, np.nanmean(values, axis=1), label=loss, linewidth=2, **look)
            for seed in values.T:
                axis.plot(FOREGROUND, seed, ".", color=look["color"], markersize=5)
        axis.set(xscale="log", title=title, xlabel="foreground", ylim=(0, 1))
        axis.set_xticks(FOREGROUND)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean test Dice")
    figure.axes[0].legend(fontsize=8, ncols=2)
    return figure


def page(found: dict[str, dict[str, np.ndarray]]) -> str:
    """Return the numbers as Markdown: mean over seeds, and the seeds' range."""
    seeds = next(iter(found["dice"].values())).shape[1]
    lines = [
        "# Dice against the share of foreground",
        "",
        f"Written by `scripts/imbalance_study.py` on {date.today()}, {os.cpu_count()} cores ({platform.machine()}), "
        f"PyTorch {torch.__version__.split('+')[0]}: {seeds} seeds, 64 training and 48 test phantoms of 96 x 96 pixels "
        "with polyps that shrink, a U-Net of 8 channels, 20 epochs. Mean test Dice, and lowest to highest seed. It "
        "shows how losses react to rarity with a small network on made-up images, not which is best on yours.",
        "",
        "![Dice against foreground](imbalance.png)",
    ]
    for column, title in COLUMNS.items():
        shares = [f"{100 * share:g} %" for share in FOREGROUND]
        lines += ["", f"{title[0].upper()}{title[1:]}:", "", f"| loss | {' | '.join(shares)} |"]
        lines.append("|---|" + "---|" * len(FOREGROUND))
        for loss, values in found[column].items():
            cells = [f"{row.mean():.3f} ({row.min():.2f}-{row.max():.2f})" for row in values]
            lines.append(f"| {loss} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str]) -> None:
    """Train, draw and write."""
    asked = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if len(asked) < len(arguments) or not asked.keys() <= {"losses", "seeds"}:
        sys.exit(__doc__)
    losses = asked["losses"].split(",") if "losses" in asked else LOSSES
    seeds = [int(seed) for seed in asked["seeds"].split(",")] if "seeds" in asked else SEEDS
    train(losses, seeds)
    found = collected(losses, seeds)
    draw(found).savefig(ROOT / "docs" / "imbalance.png", dpi=110)
    (ROOT / "docs" / "imbalance.md").write_text(page(found))
    print("docs/imbalance.md, docs/imbalance.png")


if __name__ == "__main__":
    main(sys.argv[1:])
