"""Masks for files of images: reads them as training did, and writes what the network sees at their own size."""

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from raremask import BadInput, figures
from raremask.data.base import fit
from raremask.data.pairing import pictures_of
from raremask.data.readers import read_image, write_image
from raremask.inference import Predictor, predict
from raremask.postprocess import Step
from raremask.runfolder import write_text
from raremask.submission import Submission, collapse

TABLE = "submission.csv"


@dataclass(frozen=True)
class Painter:
    """What makes a mask of a file, just as in the run that trained it.

    Args:
        predictor: Gives probabilities; in evaluation mode, on its device.
        threshold: Foreground is what is more probable.
        mend: Applied to the mask after that.
        size: The network's height and width in pixels; None takes each image as it is.
        resize: `stretch` or `pad`.
        channels: 1 or 3.
        bits: In use in 16-bit images.
    """

    predictor: Predictor
    threshold: float
    mend: Step
    size: Sequence[int] | None
    resize: str
    channels: int
    bits: int = 16

    def __call__(self, file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return image `(h, w, C)` uint8, probability `(h, w)` float32 and mask `(h, w)` boolean, at native size.

        Raises:
            BadInput: If the image cannot be read.
        """
        image = read_image(file, self.channels, self.bits)
        native = image.shape[:2]
        fitted, box = fit(image, tuple(self.size or native), self.resize)
        pixels = torch.from_numpy(fitted.transpose(2, 0, 1).copy()).float().div(255)
        probability = predict(self.predictor, pixels, native, box).numpy()
        return image, probability, self.mend(probability > self.threshold)


def predict_files(
    paint: Painter,
    source: Path,
    out: Path,
    probabilities: str | None = None,
    overlays: bool = False,
    submission: Submission | None = None,
    overwrite: bool = False,
) -> int:
    """Write a mask for each image: PNG, 0 and 255, at native size.

    Args:
        paint: Makes the masks.
        source: Folder of images, or one image.
        out: Folder for the masks, named like their image.
        probabilities: Also write these, as `png` (16 bits) or `npz` (float16).
        overlays: Also write the image with the outline of its mask.
        submission: Also write a competition's table.
        overwrite: Whether files may be written over.

    Returns:
        How many images could not be read; they are named, and the others are done.

    Raises:
        BadInput: If there is no image, two results would have one name, or one is there already; before anything is
            written.
    """
    files = [source] if source.is_file() else pictures_of(source)
    endings = [".png"] + [f"_probability.{probabilities}"] * (probabilities is not None) + ["_overlay.png"] * overlays
    results = [out / f"{file.stem}{ending}" for file in files for ending in endings]
    results += [out / TABLE] * (submission is not None)
    if len(set(results)) < len(results):
        raise BadInput(
            f"{source}: names of images must differ in more than their suffix, or two results would share one."
        )
    there = [path for path in results if path.exists()]
    if there and not overwrite:
        raise BadInput(f"{there[0]} and {len(there) - 1} more are there; choose another out=, or overwrite=true.")
    out.mkdir(parents=True, exist_ok=True)
    broken, shares, written = [], [], {}
    for file in tqdm(files, desc="Predicting", leave=False, disable=None):
        try:
            image, probability, mask = paint(file)
        except BadInput as error:
            broken.append(str(error))
            continue
        shares.append(float(mask.mean()))
        write_image(out / f"{file.stem}.png", mask.astype(np.uint8) * 255)
        if probabilities == "png":
            write_image(out / f"{file.stem}_probability.png", (probability * 65535).round().astype(np.uint16))
        elif probabilities == "npz":
            np.savez_compressed(out / f"{file.stem}_probability.npz", probability=probability.astype(np.float16))
        if overlays:
            write_image(out / f"{file.stem}_overlay.png", figures.outlined(image, mask))
        if submission is not None:
            written[file.name] = submission.style.write(mask)
    if submission is not None:
        write_text(out / TABLE, submission.of_runs(written))
    print(f"{len(shares)} masks in {os.path.relpath(out)}" + (f", and {TABLE}" if submission else ""))
    if warning := collapse(shares):
        warnings.warn(warning, stacklevel=2)
    if broken:
        print(f"{len(broken)} images could not be read, and have no mask:", *broken, sep="\n  ", file=sys.stderr)
    return len(broken)
