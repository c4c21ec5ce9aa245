"""Measure choices of the losses on phantoms: `python scripts/study_losses.py [auto] [empty]`.

`auto`: is what the training split suggests (`auto`) worse than a constant? Three foreground fractions.
`empty`: which `empty` should dynamit have where 60 % of the masks are empty?

Each trains its sweeps below outputs/sweeps/study_<name> and writes its table to docs/study_<name>.md. Runs that are
there already are not trained again: after changing a rule or a setting, take their folders away.
"""

import json
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import torch

from raremask.metrics.overlap import beside_empty, mean, score
from raremask.runfolder import read_status
from raremask.scoretables import read_counts

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
DATA = "dataset=phantom dataset.kind=mixed dataset.size=[96,96] dataset.train=64 dataset.val=24 dataset.test=96"
NETWORK = "dataset.batch_size=4 model=unet model.base=8 model.levels=3 augment=flips trainer=cpu"
COMMON = f"{DATA} {NETWORK} optimizer=adamw optimizer.lr=0.003 scheduler=cosine".split()
EPOCHS = {"auto": 25, "empty": 80}  # empty masks are learnt slowly: after 25 epochs `background` had found nothing
#: Loss: the constant (published, or the default), what replaces it, the foreground fractions, and what else the runs
#: are given. The width of boundary_gaussian is compared where objects are thick, for on thin ones `auto` is nearly the
#: constant.
AUTO = {
    "tversky": ("loss.alpha=0.3 loss.beta=0.7", "loss.alpha=auto loss.beta=auto", (0.005, 0.03, 0.15), ""),
    "focal_tversky": ("loss.alpha=0.3 loss.beta=0.7", "loss.alpha=auto loss.beta=auto", (0.005, 0.03, 0.15), ""),
    "boundary_gaussian": (
        *("loss.sigma=2", "loss.sigma=auto", (0.03, 0.1, 0.25)),
        "dataset.kind=polyp dataset.size=[160,160]",
    ),
    # the constant is S-/S+; `auto` ends at 100, so elsewhere the two are the same
    "weighted_bce": ("loss.pos_weight=199", "loss.pos_weight=auto", (0.005,), ""),
}


def common(sweep: str) -> list[str]:
    """What every run of a study is given."""
    study = sweep.removeprefix("study_").split("/")[0]
    return [*COMMON, f"trainer.max_epochs={EPOCHS[study]}"]


def run(sweep: str, *overrides: str) -> Path:
    """Train the seeds of one setting that are still to be trained; return the folder."""
    folder = ROOT / "outputs" / "sweeps" / sweep
    done = {status["seed"] for status in map(read_status, finished(folder))}
    if missing := [seed for seed in SEEDS if seed not in done]:
        seeds = "seed=" + ",".join(map(str, missing))
        command = [sys.executable, "src/train.py", "-m", *common(sweep), *overrides, seeds, f"sweep={sweep}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder


def finished(folder: Path) -> list[Path]:
    """Return the runs that are done, by seed."""
    done = [file.parent for file in folder.glob("*/status.json") if read_status(file.parent)["state"] == "done"]
    return sorted(done, key=lambda run: read_status(run)["seed"])


def tables(folder: Path) -> list[np.ndarray]:
    """Return the pixel counts of the test images, a table for each seed."""
    return [read_counts(run / "per_image_test.csv")[""] for run in finished(folder)]


def dice(folder: Path) -> np.ndarray:
    """Return the mean test Dice of each seed; an empty mask left empty counts as 1."""
    return np.array([score(table, "one")["dice"].mean() for table in tables(folder)])


def hidden(folder: Path, name: str) -> np.ndarray:
    """Return the mean of each seed of what empty masks hide, see `raremask.metrics.overlap.beside_empty`."""
    return np.array([mean(beside_empty(table)[name]) for table in tables(folder)])


def found_values(folder: Path) -> str:
    """Return what `auto` came to, of one seed: the data are the same for all."""
    file = finished(folder)[0] / "auto.json"
    return ", ".join(f"{key.split('.')[-1]} {value:.3g}" for key, value in json.loads(file.read_text()).items())


def spread(values: np.ndarray) -> str:
    """Mean and standard deviation, as text."""
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def study_auto() -> list[str]:
    """Compare `auto` with the constants."""
    lines = ["# Are automatic parameters worse than constants?", "", *setting("auto")]
    lines += [
        "Test Dice, mean ± standard deviation over the seeds; the difference is auto less constant, by seed.",
        "boundary_gaussian is trained on polyps of 160 x 160 pixels, where objects are thick.",
        "",
        "| loss | foreground | constant | Dice | auto | Dice | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for loss, (constant, automatic, fractions, more) in AUTO.items():
        differences = []
        for fraction in fractions:
            shared = (f"dataset.foreground={fraction}", f"loss={loss}", *more.split())
            first = run(f"study_auto/{loss}_constant_{fraction}", *shared, *constant.split())
            later = run(f"study_auto/{loss}_auto_{fraction}", *shared, *automatic.split())
            differences.append(dice(later) - dice(first))
            lines.append(
                f"| {loss} | {fraction:.1%} | {constant.replace('loss.', '')} | {spread(dice(first))} | "
                f"{found_values(later)} | {spread(dice(later))} | {spread(differences[-1])} |"
            )
        lines.append(f"| {loss} | mean | | | | | **{np.mean(differences):+.3f}** |")
    return lines


def study_empty() -> list[str]:
    """Compare `empty: zero` with `empty: background` under dynamit."""
    lines = ["# What should an empty mask teach under dynamit?", "", *setting("empty")]
    lines += [
        "60 % of the masks are drawn empty, foreground is 5 % on the others. Dice with an empty mask left empty",
        "counted as 1; Dice of the images with foreground; share of the empty masks on which something was painted.",
        "",
        "| loss | empty | Dice | Dice with foreground | false alarms |",
        "|---|---|---|---|---|",
    ]
    for loss in ("dynamit", "dynamit_image"):
        for empty in ("zero", "background"):
            overrides = ("dataset.empty=0.6", "dataset.foreground=0.05", f"loss={loss}", f"loss.empty={empty}")
            folder = run(f"study_empty/{loss}_{empty}", *overrides)
            scores = (dice(folder), hidden(folder, "dice_filled"), hidden(folder, "false_alarms"))
            lines.append(f"| {loss} | {empty} | {' | '.join(map(spread, scores))} |")
    share = np.isfinite(beside_empty(tables(folder)[0])["false_alarms"]).mean()
    lines.append(f"| all background | | {share:.3f} (the share of empty test masks) | 0 | 0 |")
    return lines


def setting(study: str) -> list[str]:
    """What was run, where and when."""
    return [
        f"Written by `scripts/study_losses.py` on {date.today()}, on {platform.processor() or platform.machine()} "
        f"with PyTorch {torch.__version__}; {len(SEEDS)} seeds. What all runs have in common (loss, share of",
        "foreground and seed come on top):",
        "",
        "    python src/train.py " + " ".join(f'"{one}"' if "[" in one else one for one in common(study)),
        "",
    ]


if __name__ == "__main__":
    studies = {"auto": study_auto, "empty": study_empty}
    for name in sys.argv[1:] or studies:
        if name not in studies:
            sys.exit(__doc__)
        text = "\n".join(studies[name]()) + "\n"
        (ROOT / "docs" / f"study_{name}.md").write_text(text)
        print(text)
