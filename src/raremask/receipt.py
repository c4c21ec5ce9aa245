"""What a run was made of, so that its numbers can be recomputed: code, versions, machine, seed, data, split."""

import hashlib
import json
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from raremask import BadInput, __version__
from raremask.data.samples import Picture
from raremask.runfolder import write_text

RECEIPT = "receipt.json"  # in a run's folder


def write_receipt(folder: Path, seed: int, data: str, device: torch.device, **settings: object) -> None:
    """Write the receipt of a run, or add to it what a resumed one goes on with.

    Args:
        folder: Of the run.
        seed: Of the run.
        data: Of :func:`data_digest`.
        device: On which it is trained.
        **settings: Of the trainer: precision and the like.
    """
    file = folder / RECEIPT
    before = read_receipt(folder)["parts"] if file.is_file() else []
    part = {
        "began": datetime.now().astimezone().isoformat(timespec="seconds"),
        "arguments": sys.argv[1:],
        "git": git(Path(__file__).parent),
        "versions": versions(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        **settings,
    }
    facts = {"seed": seed, "data": data, "split": split_digest(folder), "parts": [*before, part]}
    write_text(file, json.dumps(facts, indent=2) + "\n")


def check_same_data(folder: Path, data: str) -> None:
    """Refuse to go on with a run whose images or masks have been changed: no receipt could say what it was made of.

    Args:
        folder: Of the run.
        data: Of :func:`data_digest`, now.

    Raises:
        BadInput: If its receipt has another, or there is none.
    """
    if read_receipt(folder)["data"] != data:
        raise BadInput(f"{folder} was trained on other images or masks than are there now. Start a new run.")


def read_receipt(folder: Path) -> dict[str, Any]:
    """Return the receipt of a run.

    Raises:
        BadInput: If there is none, or it is damaged.
    """
    file = folder / RECEIPT
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        return {key: facts[key] for key in ("seed", "data", "split", "parts")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file} is missing or damaged: what the run was made of is not known.") from error


def differences(folder: Path, data: str) -> list[str]:
    """Return what is no longer as the receipt of a run has it, a line each.

    Args:
        folder: Of the run.
        data: Of :func:`data_digest`, now.
    """
    facts = read_receipt(folder)
    changed = []
    if facts["data"] != data:
        changed.append("the images or masks are others than the run was trained on")
    if facts["split"] != split_digest(folder):
        changed.append("split.csv has been changed")
    return changed


def data_digest(pictures: Sequence[Picture]) -> str:
    """Return a digest of all names, images and masks as they were read, whatever their order."""
    lines = sorted(f"{picture.name}\0{picture.digest}" for picture in pictures)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def split_digest(folder: Path) -> str:
    """Return a digest of a run's `split.csv`."""
    return hashlib.blake2b((folder / "split.csv").read_bytes(), digest_size=16).hexdigest()


def git(place: Path) -> dict[str, Any] | None:
    """Return the commit from which this package comes and whether it has been changed since, or None if not from git.

    Args:
        place: A folder of the package.
    """

    def ask(*question: str) -> str:
        return subprocess.run(["git", "-C", str(place), *question], check=True, capture_output=True, text=True).stdout

    try:
        ask("ls-files", "--error-unmatch", "__init__.py")  # an environment inside of another project is not from git
        return {"commit": ask("rev-parse", "HEAD").strip(), "changed": bool(ask("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of all that it names as needed."""
    try:
        lines = metadata.requires("raremask") or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        lines = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["dependencies"]
    needed = [re.split(r"[^\w.-]", line)[0] for line in lines if "extra ==" not in line]
    return {"python": platform.python_version(), "raremask": __version__} | {
        name: _version(name) for name in sorted(needed)
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def device_name(device: torch.device) -> str:
    """Return what a device is called."""
    if device.type == "cuda":
        return (
            f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        )
    return f"{device.type} ({platform.machine()}, {_processor()})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()
