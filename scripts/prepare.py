"""Unpack a downloaded dataset to where raremask looks for it, and say what is wrong with it.

    python scripts/prepare.py cvc --archive CVC-ClinicDB.rar
    python scripts/prepare.py isic2018 --archive ISIC2018_*.zip

Nothing is written if the archives are unsafe or a file cannot be used; what differs from the full dataset is listed.
"""

import argparse
import os
import shutil
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from raremask import BadInput
from raremask.archives import unpack
from raremask.data.base import ImageMaskData
from raremask.data.course import Course
from raremask.data.cvc import CVC
from raremask.data.drive import DRIVE
from raremask.data.isic2018 import ISIC2018
from raremask.data.nerve import Nerve
from raremask.data.readers import read_image


@dataclass(frozen=True)
class Download:
    """A dataset as its owners hand it out.

    Args:
        kind: Its class.
        folder: Where it goes below the folder of all datasets.
        markers: Folders by which its root is recognised in what was unpacked; the first that is found counts.
        size: Native height and width in pixels of every image, or None if they differ.
        channels: 1 (grayscale) or 3 (RGB).
        unmasked: Folder, suffix and number of the images that have no masks, or None.
        where: The page that hands it out.
        terms: Under which terms.
    """

    kind: type[ImageMaskData]
    folder: str
    markers: tuple[str, ...]
    size: tuple[int, int] | None
    channels: int
    unmasked: tuple[str, str, int] | None
    where: str
    terms: str


SIZE = (128, 128)  # at which masks are looked at; scores and training read them anew

DOWNLOADS = {
    "cvc": Download(
        CVC,
        "CVC-ClinicDB",
        ("PNG", "Original"),
        (288, 384),
        3,
        None,
        "https://polyp.grand-challenge.org/CVCClinicDB/",
        "for research and education, citing Bernal et al. 2015",
    ),
    "drive": Download(
        DRIVE,
        "DRIVE",
        ("training",),
        (584, 565),
        3,
        None,
        "https://drive.grand-challenge.org",
        "for research, after registration",
    ),
    "isic2018": Download(
        ISIC2018,
        "ISIC2018",
        ("ISIC2018_Task1-2_Training_Input",),
        None,
        3,
        None,
        "https://challenge.isic-archive.com/data/#2018",
        "CC BY-NC 4.0, citing Codella et al. 2019 and Tschandl et al. 2018",
    ),
    "nerve": Download(
        Nerve,
        "ultrasound-nerve-segmentation",
        ("train",),
        (420, 580),
        1,
        ("test", ".tif", 5508),
        "https://www.kaggle.com/competitions/ultrasound-nerve-segmentation/data",
        "the competition's rules, which you accept there",
    ),
    "course": Download(
        Course,
        "Dataset",
        ("Train",),
        None,
        3,
        ("Test/Image", ".jpg", 192),
        "its participants have it",
        "for the course",
    ),
}


def root_of(unpacked: Path, download: Download) -> Path:
    """Find the folder that holds a marker, however deep the archive has it.

    Raises:
        BadInput: If there is none.
    """
    for marker in download.markers:
        found = sorted(unpacked.rglob(marker), key=lambda path: len(path.parts))
        if found:
            return found[0].parent
    inside = sorted(path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*"))
    nested = [name for name in inside if name.lower().endswith((".zip", ".rar"))]
    hint = f" It holds archives ({', '.join(nested[:3])}): unpack it, and give those." if nested else ""
    raise BadInput(
        f"no folder {' or '.join(download.markers)} in the archive; it begins with {', '.join(inside[:5])}.{hint}"
    )


def check(root: Path, download: Download) -> tuple[str, list[str]]:
    """Read every image and mask of a dataset.

    Args:
        root: Its folder.
        download: What it should be.

    Returns:
        What is there, and what differs from the full dataset.

    Raises:
        BadInput: With all files that cannot be used.
    """
    data = download.kind(root=str(root), size=SIZE, channels=download.channels, batch_size=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", ".*lose all their foreground")  # at SIZE, which is no training's
        data.setup()
    differs = [str(warning.message).replace(f"{root}{os.sep}", "") for warning in caught]
    sizes = Counter(picture.size for _, picture in data.pictures())
    if download.size is not None and set(sizes) != {download.size}:
        found = ", ".join(f"{width}x{height} ({count})" for (height, width), count in sizes.most_common(3))
        differs.append(f"images have {found} pixels; all should have {download.size[1]}x{download.size[0]}")
    splits = ", ".join(f"{len(pictures)} {name}" for name, pictures in data.splits.items())
    said = f"{sum(sizes.values())} images with masks ({splits}), each read"
    if download.unmasked is not None:
        folder, suffix, expected = download.unmasked
        others = sorted((root / folder).glob(f"*{suffix}"))
        for image in others:
            read_image(image, download.channels)
        said += f", and {len(others)} images without, each read"
        if len(others) != expected:
            differs.append(f"{folder} has {len(others)} images; the full dataset has {expected} there.")
    return said, differs


def prepare(name: str, archives: list[Path], out: Path | None) -> str:
    """Unpack, check and move into place.

    Args:
        name: A key of :data:`DOWNLOADS`.
        archives: All that belong to the dataset.
        out: The dataset's folder; None takes its own below RAREMASK_DATA or `data`.

    Returns:
        What to tell the user.

    Raises:
        BadInput: If anything is wrong; then nothing is left behind.
    """
    download = DOWNLOADS[name]
    out = out or Path(os.environ.get("RAREMASK_DATA", "data")) / download.folder
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out} is not empty; nothing was written. Move it away, or choose --out.")
    scratch = out.with_name(f"{out.name}.unpacking")
    if scratch.exists():
        raise BadInput(f"{scratch} is left from a preparation that broke off, or one is running; delete it.")
    try:
        for archive in archives:
            unpack(archive, scratch)
        root = root_of(scratch, download)
        there, differs = check(root, download)
        if out.exists():
            out.rmdir()
        root.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    lines = [f"{out}: {there}.", *(f"Differs from the full dataset: {line}" for line in differs)]
    return "\n".join([*lines, f"Terms: {download.terms} ({download.where})."])


def main() -> None:
    """Judge the command line and prepare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=DOWNLOADS)
    parser.add_argument("--archive", required=True, nargs="+", type=Path, help="ZIP or RAR, as downloaded")
    parser.add_argument("--out", type=Path, help="the dataset's folder; default: its own below RAREMASK_DATA or data/")
    arguments = parser.parse_args()
    try:
        print(prepare(arguments.dataset, arguments.archive, arguments.out))
    except BadInput as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
