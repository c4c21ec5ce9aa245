"""Measure images per second out of the loader, beside decoding and resizing each image each time.

    python scripts/bench_data.py <folder of CVC-ClinicDB> [height x width, such as 288x384]

writes docs/bench_data.md. The plain way is what one writes first: a Dataset that opens image and mask with Pillow,
resizes, augments, and makes tensors. Both ways use the same files, augmentation, batch size and number of workers, in
one process, in turn, and end with float32. The main process has one thread: a second one, idle, would spin and take
the core from a worker.
"""

import os
import statistics
import sys
import time
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from raremask.data.augment import Augment
from raremask.data.cvc import CVC
from raremask.data.samples import as_floats

ROOT = Path(__file__).parents[1]
BATCH, ROUNDS = 8, 3


class Plain(Dataset):
    """Opens, resizes and augments an image and its mask whenever it is asked for them."""

    def __init__(self, files: list[tuple[Path, Path]], size: tuple[int, int], augment: Augment):
        self.files, self.size, self.augment = files, size, augment

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = (np.asarray(Image.open(path)) for path in self.files[index])
        mask = mask.max(axis=2) if mask.ndim == 3 else mask
        image = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA)
        mask = cv2.resize(mask, self.size[::-1], interpolation=cv2.INTER_NEAREST)
        image, (mask,) = self.augment(image, [(mask > 127).astype(np.uint8)], index)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255)
        return pixels, torch.from_numpy(np.ascontiguousarray(mask))[None].float()


def seconds(loader: Iterable) -> float:
    """How long one epoch takes."""
    start = time.perf_counter()
    for batch in loader:
        if isinstance(batch, dict):  # ours travels as bytes; the network wants numbers
            as_floats(batch)
    return time.perf_counter() - start


def main(root: Path, size: tuple[int, int]) -> None:
    """Write a Markdown table of images per second and their ratio, medians of several epochs."""
    torch.set_num_threads(1)
    lines = [
        "# Images per second out of the loader",
        "",
        f"Written by `scripts/bench_data.py` on {date.today()}: CVC-ClinicDB's training split at {size[1]}x{size[0]}, "
        f"batches of {BATCH}, {os.cpu_count()} cores, PyTorch {torch.__version__}; medians of {ROUNDS} epochs. `plain` "
        "decodes and resizes each image whenever it is asked for; `raremask` did so once.",
        "",
        "| augmentation | workers | plain | raremask | ratio |",
        "|---|---|---|---|---|",
    ]
    for name in ("none", "flips", "thesis"):
        augment = Augment(OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "augment" / f"{name}.yaml").steps))
        for workers in (0, 2):
            data = CVC(str(root), size=size, channels=3, batch_size=BATCH, workers=workers, augment=augment)
            data.setup()
            names = [picture.name for picture in data.splits["train"].pictures]
            files = {record.name: (record.image, record.mask) for record in data.records()}
            plain = DataLoader(
                Plain([files[name] for name in names], size, augment),
                batch_size=BATCH,
                shuffle=True,
                num_workers=workers,
                persistent_workers=workers > 0,
            )
            ours = data.train_dataloader()
            seconds(plain), seconds(ours)  # workers start, files enter the cache of the system
            pairs = [(seconds(plain), seconds(ours)) for _ in range(ROUNDS)]
            one, other = (len(names) / statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(before / after for before, after in pairs)
            lines.append(f"| {name} | {workers} | {one:.0f} | {other:.0f} | {ratio:.1f} |")
            print(lines[-1], flush=True)
    (ROOT / "docs" / "bench_data.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    height, width = map(int, (sys.argv[2] if len(sys.argv) == 3 else "288x384").split("x"))
    main(Path(sys.argv[1]), (height, width))
