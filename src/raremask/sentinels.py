"""Callbacks that watch the numbers of a training: they must be numbers, and the predictions must not collapse."""

import json
import math
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only

from raremask import BadInput
from raremask.collapse import EPOCHS, LEAP, diagnose
from raremask.runfolder import note, write_text

STOPPED = "stopped.json"  # in a run's folder: what was computed when a number was NaN or infinite
OVERFLOWS = 8  # steps in a row that float16 could not hold, from which it deserves a word: each halves the scale
HOPELESS = 24  # by then the scale is far below 1, and float16 is not what is wrong
ORDER = ("logits", "loss", "gradient")  # in which a step computes them
WATCHED = (
    "val/left_empty",
    "val/all_white",
    "val/dice_pooled",
    "val/foreground_predicted",
    "val/foreground_true",
    "val/contrast",
    "val/probability_spread",
    "train/foreground_true",
    "optim/grad_norm",
    "optim/stage",
)


class FiniteNumbers(Callback):
    """Ends the training at the first loss, gradient or weight that is no number, and names the images and the cause.

    What is found stands in `stopped.json`. With float16 a step whose gradient overflows is skipped by design; many in a
    row are warned of. On a GPU steps are looked at in batches of `every`, so that none waits for the host;
    several processes look together, and name the images of the one that was first.

    Args:
        folder: Of the run.
        every: Steps between two looks on a GPU or of several processes; one process on the CPU looks at each.

    Raises:
        ValueError: If `every` is below 1.
    """

    def __init__(self, folder: str, every: int = 50):
        if every < 1:
            raise ValueError(f"callbacks.numbers.every must be 1 or more; got {every}")
        self.folder, self.every = Path(folder), every
        self.steps: list[dict[str, Any]] = []  # since the last look
        self.norms: deque[float] = deque(maxlen=10)
        self.overflows = 0  # in a row

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: dict[str, Any], batch_index: int
    ) -> None:
        """Look at the step, now or soon."""
        self._take("train", trainer, module, batch)

    def on_validation_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: dict[str, Any], *more: Any
    ) -> None:
        """Look at the step, now or soon."""
        self._take("val", trainer, module, batch)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Look at the steps that are left."""
        self._look(trainer, module)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Look at the steps that are left, and at the weights."""
        self._look(trainer, module)
        names, weights = zip(*module.net.named_parameters(), strict=True)
        whole = torch.stack([weight.isfinite().all() for weight in weights]).tolist()  # one wait for a GPU, not many
        if broken := [name for name, finite in zip(names, whole, strict=True) if not finite]:
            step = {"split": "train", "step": trainer.global_step, "images": [], "norms": list(self.norms)}
            cause = "the steps are too large: try a tenth of optimizer.lr"
            self._stop(trainer, step, "a weight", f"it is in {broken[0]}", cause)

    def _take(self, split: str, trainer: Trainer, module: LightningModule, batch: dict[str, Any]) -> None:
        numbers = {name: module.computed[name] for name in ORDER if name in module.computed}
        numbers["logits"] = numbers["logits"].abs().max()  # a NaN among many stays one, as in the gradient's norm
        taken = torch.stack([number.detach().float() for number in numbers.values()])
        step = {"split": split, "step": trainer.global_step, "images": batch["name"], "names": list(numbers)}
        self.steps.append(step | {"values": taken})
        if trainer.world_size > 1:  # all processes look at the same moment; validation may have more steps in one
            due = split == "train" and len(self.steps) >= self.every
        else:
            due = module.device.type == "cpu" or len(self.steps) >= self.every
        if due:
            self._look(trainer, module)

    def _look(self, trainer: Trainer, module: LightningModule) -> None:
        """Read what the steps since the last look have left on the device."""
        steps, self.steps = self.steps, []
        read = iter(torch.cat([step["values"] for step in steps]).tolist() if steps else ())  # likewise
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        wrong = None
        for step in steps:
            values = dict(zip(step["names"], read, strict=False))  # of this step; the next takes on from there
            step["first"] = next((name for name, value in values.items() if not math.isfinite(value)), None)
            held = step["first"] is None
            if scaler is not None and step["split"] == "train":
                if not held or "gradient" in values:  # batches whose gradients are only summed up have no norm
                    self._count_overflow(held)
                held = held or self.overflows < HOPELESS  # the scaler has skipped it
            if not held:
                wrong = step | {"values": values, "norms": list(self.norms)}
                break
            self.norms.extend(values[name] for name in values if name == "gradient" and math.isfinite(values[name]))
        if trainer.world_size > 1:
            gathered: list[dict[str, Any] | None] = [None] * trainer.world_size
            dist.all_gather_object(gathered, wrong)
            # the first step, and of several processes that whose number went wrong first: the others got it from there
            found = sorted((one for one in gathered if one), key=lambda one: (one["step"], ORDER.index(one["first"])))
            wrong = found[0] if found else None
        if wrong:
            self._stop(trainer, wrong, *self._why(wrong, module))

    def _count_overflow(self, held: bool) -> None:
        self.overflows = 0 if held else self.overflows + 1
        if self.overflows == OVERFLOWS:
            warnings.warn(
                f"float16 could not hold the gradient of {OVERFLOWS} steps in a row; such steps are skipped, and "
                "nothing is learnt from them. Use trainer.precision=bf16-mixed, or 32-true.",
                stacklevel=2,
            )

    def _why(self, step: dict[str, Any], module: LightningModule) -> tuple[str, str, str]:
        """Say what is no number, the first in the order of computation; what was seen of it; and the likely cause."""
        norms, loss = step["norms"], type(module.loss).__name__
        if step["first"] == "logits":
            grown = len(norms) > 2 and norms[-1] > LEAP * float(np.median(norms[:-1]))
            usual = f", {np.median(norms[:-1]):.3g} usually" if grown else ""
            before = f"the gradient before was {norms[-1]:.3g}{usual}" if norms else "it was the first step"
            return (
                "the network's output",
                before,
                "the steps are too large: try a tenth of optimizer.lr, or trainer.gradient_clip_val=0.5",
            )
        if step["first"] == "loss":
            return (
                "the loss",
                f"the network's output is a number, up to {step['values']['logits']:.3g}",
                f"the formula of {loss}: raremask.losses.check_loss looks for such faults",
            )
        return (
            "the gradient",
            "the loss is a number",
            f"the derivative of {loss}, such as a root at 0: raremask.losses.check_loss looks for such faults",
        )

    def _stop(self, trainer: Trainer, step: dict[str, Any], what: str, seen: str, cause: str) -> None:
        """Write what is known, and end the training.

        Raises:
            BadInput: Always.
        """
        if "16" in str(trainer.precision):
            cause += "; or half precision: try trainer.precision=32-true"
        facts = {
            "epoch": trainer.current_epoch,
            "step": step["step"],
            "split": step["split"],
            "images": step["images"],
            "no_number": what,
            "seen": seen,
            "likely_cause": cause,
            "gradient_norms_before": step["norms"],
            "lr": [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups],
            "precision": str(trainer.precision),
        }
        if trainer.is_global_zero:
            write_text(self.folder / STOPPED, json.dumps(facts, indent=2) + "\n")
        images = f"\nImages: {', '.join(step['images'][:8])}" if step["images"] else ""
        raise BadInput(
            f"Epoch {trainer.current_epoch + 1}, step {step['step']} ({step['split']}): {what} is no number, NaN or "
            f"infinite; {seen}.{images}\nLikely cause: {cause}.\nAll that is known: {self.folder / STOPPED}"
        )


class CollapseSentinel(Checkpoint):
    """Watches every epoch for predictions of nothing, of everything or always the same, and says so.

    What :func:`raremask.collapse.diagnose` finds is printed as a warning once, and stands in `status.json` as
    `collapsed` for as long as it is so. A kind of checkpoint to Lightning, because only those are called after the
    module has logged the scores of its training epoch.

    Args:
        folder: Of the run.
        patience: Epochs in a row.
        stop: Whether a collapse ends the training; the best checkpoint is scored all the same.

    Raises:
        ValueError: If `patience` is below 1.
    """

    def __init__(self, folder: str, patience: int = EPOCHS, stop: bool = False):
        if patience < 1:
            raise ValueError(f"callbacks.collapse.patience must be 1 or more; got {patience}")
        self.folder, self.patience, self.stop = Path(folder), patience, stop
        self.epochs: list[dict[str, float]] = []
        self.said = ""

    def state_dict(self) -> dict[str, Any]:
        """Return what it has seen."""
        return {"epochs": self.epochs, "said": self.said}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what it had seen."""
        self.epochs, self.said = state_dict["epochs"], state_dict["said"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """End at once if it had asked for the end before; Lightning does not remember."""
        if self.stop and self.said:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Look at the epoch."""
        logged = {name: float(trainer.callback_metrics[name]) for name in WATCHED if name in trainer.callback_metrics}
        self.epochs.append({"epoch": trainer.current_epoch} | logged)
        found = diagnose(self.epochs, self.patience)
        if bool(found) != bool(self.said):
            self._say(found)
        self.said = self.said or found if found else ""
        if found and self.stop:
            trainer.should_stop = True

    @rank_zero_only
    def _say(self, found: str) -> None:
        note(self.folder, collapsed=found or None)
        if found:
            warnings.warn(f"This training has {found}", stacklevel=2)
        else:
            print("The collapse is over: the predictions vary again.", flush=True)
