"""Write phantoms to disk in the layout of a real dataset, so that every reader and recipe can be tried.

    python scripts/export_phantom.py layout=nerve out=data/ultrasound-nerve-segmentation

Layouts: cvc, drive, isic2018, nerve, course, folder. Settings: images=<number> size=[height,width] kind=<family>
foreground=<share> empty=<share> seed=<number>; what is left out is as in the real dataset, but for fewer images.
"""

import csv
import difflib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import tifffile
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from tqdm import tqdm

from raremask import BadInput
from raremask.data.cvc import FRAMES
from raremask.data.phantom import KINDS, Phantom
from raremask.runlengths import RunLengths

Pairs = Iterator[tuple[np.ndarray, np.ndarray]]
SETTINGS = {
    "layout": "???",
    "out": "???",
    "images": None,
    "size": None,
    "kind": None,
    "foreground": None,
    "empty": None,
    "seed": 0,
}
QUALITY = 95  # of JPEG


def cvc(root: Path, pairs: Pairs, images: int) -> None:
    """Frames spread over all sequences, as `Original/<n>.tif` and `Ground Truth/<n>.tif`."""
    for frame, (image, mask) in zip(np.linspace(1, FRAMES, images).round().astype(int), pairs, strict=True):
        write(root / "Original" / f"{frame}.tif", image)
        write(root / "Ground Truth" / f"{frame}.tif", white(mask))


def drive(root: Path, pairs: Pairs, images: int) -> None:
    """Half of the images in `training`, half in `test`, black outside a round field of view."""
    for index, (image, mask) in enumerate(pairs):
        part, number = ("training", 21 + index) if index < images - images // 2 else ("test", index - images // 2 + 1)
        height, width = mask.shape
        view = np.zeros(mask.shape, np.uint8)
        cv2.circle(view, (width // 2, height // 2), round(0.48 * min(height, width)), 255, -1)
        write(root / part / "images" / f"{number:02d}_{part}.tif", image * (view > 0)[..., None])
        write(root / part / "1st_manual" / f"{number:02d}_manual1.gif", white(mask & (view > 0)))
        write(root / part / "mask" / f"{number:02d}_{part}_mask.gif", view)


def isic2018(root: Path, pairs: Pairs, images: int) -> None:
    """Eight of ten images in `Training`, one in `Validation`, one in `Test`."""
    for index, (image, mask) in enumerate(pairs):
        part = {8: "Validation", 9: "Test"}.get(index % 10, "Training")
        name = f"ISIC_{index:07d}"
        write(root / f"ISIC2018_Task1-2_{part}_Input" / f"{name}.jpg", image)
        write(root / f"ISIC2018_Task1_{part}_GroundTruth" / f"{name}_segmentation.png", white(mask))


def nerve(root: Path, pairs: Pairs, images: int) -> None:
    """Ten subjects with masks as files and as run lengths; one image of eight goes to `test`, without a mask."""
    rows, numbers = [], dict.fromkeys(range(1, 11), 0)
    for index, (image, mask) in enumerate(pairs):
        if index % 8 == 7:
            write(root / "test" / f"{index // 8 + 1}.tif", image[..., 0])
            continue
        subject = index % 10 + 1
        numbers[subject] += 1
        name = f"{subject}_{numbers[subject]}"
        write(root / "train" / f"{name}.tif", image[..., 0])
        write(root / "train" / f"{name}_mask.tif", white(mask))
        rows.append([subject, numbers[subject], RunLengths().write(mask)])
    with (root / "train_masks.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["subject", "img", "pixels"])
        writer.writerows(sorted(rows))


def course(root: Path, pairs: Pairs, images: int) -> None:
    """Images in `Train`, with masks; one of seven in `Test`, without."""
    for index, (image, mask) in enumerate(pairs):
        name = f"ISIC_{index:07d}"
        if index % 7 == 6:
            write(root / "Test" / "Image" / f"{name}.jpg", image)
        else:
            write(root / "Train" / "Image" / f"{name}.jpg", image)
            write(root / "Train" / "Mask" / f"{name}.png", white(mask))


def folder(root: Path, pairs: Pairs, images: int) -> None:
    """Two folders, `images` and `masks`, of PNG files with the same names."""
    for index, (image, mask) in enumerate(pairs):
        write(root / "images" / f"{index:04d}.png", image)
        write(root / "masks" / f"{index:04d}.png", white(mask))


#: How a layout is written, of what family, how many images, and height and width in pixels.
LAYOUTS: dict[str, tuple[Callable[[Path, Pairs, int], None], str, int, tuple[int, int]]] = {
    "cvc": (cvc, "polyp", 120, (288, 384)),
    "drive": (drive, "vessel", 40, (584, 565)),
    "isic2018": (isic2018, "lesion", 100, (384, 512)),
    "nerve": (nerve, "ultrasound", 160, (420, 580)),
    "course": (course, "lesion", 140, (384, 512)),
    "folder": (folder, "speck", 100, (256, 256)),
}


def white(mask: np.ndarray) -> np.ndarray:
    """A boolean mask as 0 and 255."""
    return mask.astype(np.uint8) * 255


def write(path: Path, pixels: np.ndarray) -> None:
    """Write an image as its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack")
    else:
        Image.fromarray(pixels.squeeze()).save(path, **({"quality": QUALITY} if path.suffix == ".jpg" else {}))


def export(arguments: list[str]) -> str:
    """Write what the command line asks for, and say where it is.

    Raises:
        BadInput: If a setting is unknown, missing or wrong, or the folder is not empty.
    """
    cfg = OmegaConf.create(SETTINGS)
    OmegaConf.set_struct(cfg, True)
    try:
        cfg = OmegaConf.merge(cfg, OmegaConf.from_cli(arguments))
        if cfg.layout not in LAYOUTS:
            raise BadInput(f"layout must be one of {', '.join(LAYOUTS)}; got {cfg.layout!r}")
        root = Path(cfg.out)
    except OmegaConfBaseException as error:
        close = difflib.get_close_matches(str(getattr(error, "key", "")), SETTINGS, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise BadInput(f"{str(error).splitlines()[0]}.{meant} Settings: {', '.join(SETTINGS)}.") from error
    layout, kind, images, size = LAYOUTS[cfg.layout]
    kind, images = cfg.kind or kind, images if cfg.images is None else cfg.images
    size = size if cfg.size is None else cfg.size
    least, most = 10 if cfg.layout == "isic2018" else 4, FRAMES if cfg.layout == "cvc" else 10**6
    if not isinstance(images, int) or not least <= images <= most:
        raise BadInput(f"images must be a whole number from {least} to {most}; got {images!r}")
    if isinstance(size, (str, int, float)) or len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise BadInput(f"size must be [height,width] in pixels; got {size!r}")
    size = tuple(size)
    if not isinstance(cfg.seed, int):
        raise BadInput(f"seed must be a whole number; got {cfg.seed!r}")
    if root.exists() and any(root.iterdir()):
        raise BadInput(f"{root} is not empty; nothing was written.")
    channels = 1 if cfg.layout == "nerve" else 3
    data = Phantom(
        kind, cfg.foreground, cfg.empty, images, 0, 0, cfg.seed, size=size, channels=channels, batch_size=1
    )  # one split: the layout has its own
    drawn = (data.arrays(record)[:2] for record in tqdm(data.records(), desc="Writing", leave=False, disable=None))
    root.mkdir(parents=True, exist_ok=True)
    layout(root, drawn, images)
    where = (
        f"dataset.images={root}/images dataset.masks={root}/masks" if cfg.layout == "folder" else f"dataset.root={root}"
    )
    return (
        f"{images} phantoms ({kind}, {size[1]}x{size[0]}) in {root}, laid out as {cfg.layout}\n"
        f"Try: python src/train.py dataset={cfg.layout} {where}"
    )


if __name__ == "__main__":
    if len(sys.argv) == 1 or sys.argv[1] in ("-h", "--help"):
        print(f"{__doc__}\nFamilies: {', '.join(KINDS)}, mixed")
        sys.exit(0)
    try:
        print(export(sys.argv[1:]))
    except (BadInput, ValueError) as error:
        sys.exit(f"{error}")
