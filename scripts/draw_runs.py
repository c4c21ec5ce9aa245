"""Draw the same test images under every run of a sweep: `python scripts/draw_runs.py outputs/sweeps/<name> out.png`."""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from raremask.callbacks import figure_row
from raremask.figures import overlay
from raremask.inference import Predictor
from raremask.run import build, load_config
from raremask.scoring import load_choice


def main(sweep: Path, out: Path, images: int = 3) -> None:
    """Draw a row per image (the first of the test split) and a column per run, the Dice over each."""
    folders = [file.parent for file in sorted(sweep.glob("*/status.json"))]
    figure, axes = plt.subplots(images, 2 + len(folders), figsize=(2 * (2 + len(folders)), 2.15 * images))
    for column, folder in enumerate(folders, start=2):
        data, module = build(load_config(folder))
        weights = torch.load(folder / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)
        module.load_state_dict(weights["state_dict"])
        selection, tile = load_choice(folder)
        loss = json.loads((folder / "status.json").read_text())["loss"]
        for row in range(images):
            sample = data.splits["test"][row]
            shown = figure_row(Predictor([module.net], selection.views, tile), selection, sample, module.empty)
            axes[row][0].imshow(shown.image.squeeze(), cmap="gray")
            axes[row][1].imshow(shown.mask, cmap="gray", interpolation="nearest")
            axes[row][column].imshow(overlay(shown.image, shown.mask, shown.prediction), interpolation="nearest")
            dice = shown.title.removeprefix(sample["name"]).strip()
            axes[row][column].set_title(f"{loss}\n{dice}" if row == 0 else dice, fontsize=9)
    for axis, name in zip(axes[0], ("image", "truth"), strict=False):
        axis.set_title(name, fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
