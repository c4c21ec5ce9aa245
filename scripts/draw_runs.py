"""Draw the same test images under every run of a sweep: `python scripts/draw_runs.py outputs/sweeps/<name> out.png`."""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from raremask.figures import overlay
from raremask.inference import predict
from raremask.metrics.gather import count
from raremask.metrics.overlap import score
from raremask.run import build, load_config


def main(sweep: Path, out: Path, images: int = 3) -> None:
    """Draw a row per image (the first of the test split) and a column per run, the Dice over each."""
    folders = [file.parent for file in sorted(sweep.glob("*/status.json"))]
    figure, axes = plt.subplots(images, 2 + len(folders), figsize=(2 * (2 + len(folders)), 2.15 * images))
    for column, folder in enumerate(folders, start=2):
        data, module = build(load_config(folder))
        weights = torch.load(folder / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)
        module.load_state_dict(weights["state_dict"])
        loss = json.loads((folder / "status.json").read_text())["loss"]
        for row in range(images):
            sample = data.splits["test"][row]
            image, mask = (sample["image"].numpy().transpose(1, 2, 0) * 255).astype("uint8"), sample["native_mask"]
            painted = predict(module, sample["image"], sample["size"]) > module.threshold
            dice = score(count(painted[None, None], mask[None]).numpy())["dice"][0]
            axes[row][0].imshow(image.squeeze(), cmap="gray")
            axes[row][1].imshow(mask[0], cmap="gray", interpolation="nearest")
            axes[row][column].imshow(overlay(image, mask[0].numpy(), painted.numpy()), interpolation="nearest")
            axes[row][column].set_title(f"{loss}\nDice {dice:.2f}" if row == 0 else f"Dice {dice:.2f}", fontsize=9)
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
