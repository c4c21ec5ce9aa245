"""Checkpoints: written whole or not at all, the last one kept with the one before it, read as plain tensors."""

import io
import math
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from raremask import BadInput
from raremask.runfolder import LAST, PREVIOUS, write_bytes


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints as all results are written, and keeps the last but one as `previous.ckpt`.

    Lightning's own goes through the system's folder for temporary files. That may be another file system, and then the
    last step is a copy, which can break off in the middle.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; at every moment one of the last two is there and whole."""
        path, content = Path(path), io.BytesIO()
        torch.save(checkpoint, content)
        if path.name == LAST.name and path.is_file():
            path.replace(path.with_name(PREVIOUS.name))
        write_bytes(path, content.getbuffer())

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: Any = True) -> dict[str, Any]:
        """Read a checkpoint, see :func:`read`."""
        return read(Path(path), map_location)


def read(file: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint: tensors and plain values, whatever was asked for.

    Raises:
        BadInput: If it is damaged, or holds anything else, which loading would have to run.
    """
    if not file.is_file():
        raise BadInput(f"There is no {file}.")
    if wrong := damage(file):
        raise BadInput(f"{file} is damaged: {wrong}")
    try:
        return torch.load(file, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise BadInput(
            f"{file} is refused: it is no checkpoint of tensors and plain values, and loading anything else could run "
            "what someone put there."
        ) from error


def damage(file: Path) -> str:
    """Say what is wrong with a checkpoint's file, or nothing. Every byte is compared with its checksum."""
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"the checksum of {broken} is wrong" if broken else ""


def newest(folder: Path) -> Path:
    """Return the newest whole checkpoint of a run to go on from; a damaged one is set aside, with a warning.

    Args:
        folder: Of the run.

    Raises:
        BadInput: If there is none.
    """
    for name in (LAST, PREVIOUS):
        file = folder / name
        if not file.is_file():
            continue
        if not (wrong := damage(file)):
            return file
        aside = file.with_suffix(".damaged")
        file.replace(aside)
        warnings.warn(
            f"{file} is damaged ({wrong}); it is now {aside.name}, and the one before it is used.", stacklevel=2
        )
    raise BadInput(f"{folder} has no whole checkpoint to go on from. Delete the folder, and start the run anew.")


class RunCheckpoint(ModelCheckpoint):
    """Keeps one checkpoint under one name, replaced whenever there is a better or, without a score, a newer one.

    Lightning forgets the best score of a run whose folder has been moved, and would then write over the best
    checkpoint with the next one. This one remembers.

    The noise that an untrained network paints scores better than the nothing that it paints next, at a threshold of
    0.5, when it begins to learn rare foreground. So until a score shows that the network sees anything (see
    :func:`raremask.metrics.overlap.chance`), the latest checkpoint is kept.

    Args:
        dirpath: Folder of the checkpoints.
        filename: Name without `.ckpt`; `{optim/stage:.0f}` stands for the stage.
        monitor: The score that decides, such as `val/dice`, higher being better; None keeps the last epoch.
    """

    def __init__(self, dirpath: str, filename: str, monitor: str | None = None):
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            mode="max",
            auto_insert_metric_name=False,  # no `=` in a file's name: Hydra could not parse it
            enable_version_counter=False,
            save_on_train_epoch_end=True,  # never in the middle of an epoch: a run goes on from where one ended
        )

    def check_monitor_top_k(self, trainer: Trainer, current: torch.Tensor | None = None) -> bool:
        """Whether the checkpoint with this score takes the place of the best so far."""
        best, chance = self.best_model_score, getattr(trainer.lightning_module, "chance", -math.inf)
        untrained = best is not None and current is not None and best <= chance and not current.isnan()
        return bool(untrained) or super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best so far, wherever the run's folder lies now."""

        def here(path: str) -> str:
            return str(Path(self.dirpath) / Path(path).name) if path else path

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): value for path, value in state_dict["best_k_models"].items()}
        self.current_score = state_dict["current_score"]
        super().load_state_dict(state_dict | paths | {"best_k_models": best, "dirpath": self.dirpath})


class BestOfStage(RunCheckpoint):
    """Keeps the best checkpoint of each stage of a loss switch, which restarts it."""

    def restart(self) -> None:
        """Forget the best so far: its file stays, and the next epoch is the best of its stage."""
        self.best_k_models: dict[str, torch.Tensor] = {}
        self.best_model_score = self.current_score = None
        self.best_model_path = self.kth_best_model_path = ""
        self.kth_value = torch.tensor(-torch.inf)
