"""Masks for files of images: reads them as training did, and writes what the network sees at their own size."""

import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from raremask import BadInput, figures
from raremask.collapse import collapse
from raremask.data.fitting import fit
from raremask.data.pairing import pictures_of, without_masks
from raremask.data.readers import read_image
from raremask.inference import Predictor, predict, sharing_cores
from raremask.postprocess import Step
from raremask.runfolder import write_bytes, write_text
from raremask.selection import together
from raremask.shipped import OnnxNet, Shipped
from raremask.submission import CocoResults, Submission


@dataclass(frozen=True)
class Painter:
    """What makes a mask of a file, just as in the run that trained it.

    Args:
        predictor: Gives probabilities; in evaluation mode, on its device.
        model: How images are prepared, and the threshold.
        postprocess: Applied to the mask after that.
        peaks: Gets the largest value of each 16-bit image.
        turn: Held while the networks compute. On a GPU they take one image at a time, while other threads read and
            write theirs; on the CPU each thread computes.
    """

    predictor: Predictor
    model: Shipped
    postprocess: Step
    peaks: list[int] = field(default_factory=list)
    turn: AbstractContextManager = field(default_factory=nullcontext)

    def __call__(self, file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return image `(h, w, C)` uint8, probability `(h, w)` float32 and mask `(h, w)` boolean, at native size.

        Raises:
            BadInput: If the image cannot be read.
        """
        image = read_image(file, self.model.channels, self.model.bits, self.peaks)
        native = image.shape[:2]
        fitted, box = fit(image, tuple(self.model.size or native), self.model.resize)
        pixels = torch.from_numpy(fitted.transpose(2, 0, 1).copy()).float().div(255)
        with self.turn:
            probability = predict(self.predictor, pixels, native, box).numpy()
        return image, probability, self.postprocess(probability > self.model.selection.threshold)


def painter(
    models: Sequence[Shipped],
    nets: Sequence[nn.Module],
    device: str = "auto",
    threshold: float | None = None,
    views: str | None = None,
    postprocess: Step | None = None,
) -> Painter:
    """Put models together whose probabilities are averaged.

    Args:
        models: What there is to know about each; of several, see :func:`~raremask.selection.together`.
        nets: Their networks, with their weights.
        device: `cpu`, `cuda` or `auto`.
        threshold: Instead of the chosen one.
        views: Instead of the chosen ones.
        postprocess: Instead of the chosen steps.

    Raises:
        BadInput: If the models prepare images differently.
    """
    first = models[0]
    if len({(str(one.size), one.resize, one.channels, one.bits, str(one.tile)) for one in models}) > 1:
        raise BadInput("runs that predict together must have the same dataset.size, resize, channels, bits and tile.")
    chosen = together([model.selection for model in models])
    threshold = chosen.threshold if threshold is None else threshold
    selection = replace(chosen, threshold=threshold, views=views or chosen.views)
    gpu = torch.cuda.is_available() and not any(isinstance(net, OnnxNet) for net in nets)
    if device == "auto":
        device = "cuda" if gpu else "cpu"
    if device == "cuda" and not gpu:
        why = "an ONNX file computes on the CPU" if torch.cuda.is_available() else "PyTorch sees no GPU"
        raise BadInput(f"device=cuda, and {why}. Use device=auto or device=cpu.")
    said = selection.words()
    if postprocess is not None:
        steps = getattr(postprocess, "steps", {"it": postprocess}).values()  # of a chain
        after = ", ".join(type(step).__name__ for step in steps) or "nothing"
        said = f"{replace(selection, min_area=0, largest=False, holes=False).words()}, then {after}"
    print(f"{_number(len(nets), 'network')}; {said}; {device}")
    predictor = Predictor(nets, selection.views, first.tile).to(device).eval()
    turn = Lock() if device == "cuda" else nullcontext()
    return Painter(predictor, replace(first, selection=selection), postprocess or selection.postprocess(), turn=turn)


def predict_files(
    paint: Painter,
    source: Path,
    out: Path,
    probabilities: str | None = None,
    overlays: bool = False,
    submission: Submission | CocoResults | None = None,
    overwrite: bool = False,
) -> int:
    """Write a mask for each image: PNG, 0 and 255, at native size.

    Args:
        paint: Makes the masks.
        source: Folder of images, or one image. Masks beside their images (`<name>_mask`) are left out.
        out: Folder for the masks, named like their image.
        probabilities: Also write these, as `png` (16 bits) or `npz` (float16).
        overlays: Also write the image with the outline of its mask.
        submission: Also write a competition's file.
        overwrite: Whether files may be written over.

    Returns:
        How many images could not be read; they are named, and the others are done.

    Raises:
        BadInput: If there is no image, two results would have one name, one is there already, or an image's name
            does not do for the submission; before anything is written.
    """
    files = [source] if source.is_file() else without_masks(pictures_of(source))
    endings = [".png"] + [f"_probability.{probabilities}"] * (probabilities is not None) + ["_overlay.png"] * overlays
    results = [out / f"{file.stem}{ending}" for file in files for ending in endings]
    results += [out / submission.file] if submission else []
    _check_places(files, results, source, out, overwrite)
    if submission is not None:
        submission.names(file.name for file in files)
    out.mkdir(parents=True, exist_ok=True)

    def predict_one(file: Path) -> tuple[float, Any] | str:
        """Write the files of an image; return its share of foreground and its runs, or why it cannot be read."""
        try:
            image, probability, mask = paint(file)
        except BadInput as error:
            for ending in endings:
                (out / f"{file.stem}{ending}").unlink(missing_ok=True)  # of an earlier prediction
            return str(error)
        _write_png(out / f"{file.stem}.png", mask.astype(np.uint8) * 255)
        if probabilities == "png":
            _write_png(out / f"{file.stem}_probability.png", (probability * 65535).round().astype(np.uint16))
        elif probabilities == "npz":
            content = io.BytesIO()
            np.savez_compressed(content, probability=probability.astype(np.float16))
            write_bytes(out / f"{file.stem}_probability.npz", content.getbuffer(), sync=False)
        if overlays:
            _write_png(out / f"{file.stem}_overlay.png", figures.outlined(image, mask))
        return float(mask.mean()), submission and submission.write(mask)

    broken: list[str] = []
    shares: list[float] = []
    written: dict[str, Any] = {}
    with sharing_cores(len(files)) as pool:
        done = tqdm(pool.map(predict_one, files), desc="Predicting", total=len(files), leave=False, disable=None)
        for file, result in zip(files, done, strict=True):
            if isinstance(result, str):
                broken.append(result)
            else:
                shares.append(result[0])
                written[file.name] = result[1]
    if submission is not None:
        write_text(out / submission.file, submission.of_runs(written))
    also = f", and {submission.file}" if submission else ""
    print(f"{_number(len(shares), 'mask')} in {os.path.relpath(out)}{also}")
    _warn(paint, shares)
    if broken:
        row = f" and no row in {submission.file}" if submission else ""
        said = f"{_number(len(broken), 'image')} could not be read, and got no mask{row}:"
        print(said, *broken, sep="\n  ", file=sys.stderr)
    return len(broken)


def _check_places(files: Sequence[Path], results: Sequence[Path], source: Path, out: Path, overwrite: bool) -> None:
    """Refuse results that would share a name, lie over the images, or lie over what is there already."""
    if len(set(results)) < len(results):
        raise BadInput(
            f"{source}: names of images must differ in more than their suffix, or two results would share one."
        )
    if {path.resolve() for path in results} & {file.resolve() for file in files}:
        raise BadInput(f"out={out}: the masks would be written over the images; choose another folder.")
    there = [path for path in results if path.exists()]
    if there and not overwrite:
        raise BadInput(f"{there[0]} and {len(there) - 1} more are there; choose another out=, or overwrite=true.")


def _warn(paint: Painter, shares: Sequence[float]) -> None:
    """Warn of images that were darker than those in training, and of masks that are all alike."""
    if paint.peaks and max(paint.peaks) < 2 ** (paint.model.bits - 1):
        warnings.warn(
            f"no 16-bit image has a value above {max(paint.peaks)}: read as {paint.model.bits} bits, as in training, "
            "they are dark.",
            stacklevel=3,
        )
    if warning := collapse(shares):
        warnings.warn(warning, stacklevel=3)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _write_png(path: Path, pixels: np.ndarray) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    write_bytes(path, content.getbuffer(), sync=False)
