"""What happens around training: loss switch, growing weight, patience, moving average, history, bar, panels."""

import math
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, EMAWeightAveraging, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from raremask import BadInput, figures
from raremask.checkpoints import BestOfStage
from raremask.inference import Predictor
from raremask.runfolder import write_table
from raremask.selection import Selection
from raremask.tables import read_table


class LossSwitch(Callback):
    """Replaces the loss from an epoch on.

    The epoch alone decides, so a resumed run and an unbroken one agree. At the switch the patience of early stopping
    and of a plateau scheduler starts anew, and so does
    :class:`~raremask.checkpoints.BestOfStage`; before it, early stopping cannot end the
    training. `optim/stage` is logged: 1, then 2.

    Args:
        loss: The loss of the second stage.
        epoch: The first epoch, counted from 0, that uses it; at least 1.
        lr: Learning rate with which the second stage starts; None goes on with the present one.

    Raises:
        ValueError: If `epoch` is below 1.
    """

    def __init__(self, loss: nn.Module, epoch: int, lr: float | None = None):
        if epoch < 1:
            raise ValueError(f"callbacks.switch.epoch must be 1 or more, or there is no first stage; got {epoch}")
        self.loss, self.epoch, self.lr = loss, epoch, lr

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Keep early stopping from ending the training before the switch.

        Raises:
            BadInput: If the training ends before the switch.
        """
        if trainer.max_epochs <= self.epoch:
            raise BadInput(
                f"callbacks.switch.epoch={self.epoch} is never reached with trainer.max_epochs={trainer.max_epochs}."
            )
        trainer.fit_loop.min_epochs = max(trainer.min_epochs or 0, self.epoch + 1)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Put the loss in its place."""
        if trainer.current_epoch >= self.epoch:
            module.loss = self.loss.to(module.device)
        if trainer.current_epoch == self.epoch:
            self._restart(trainer)
            if trainer.is_global_zero:
                tqdm.write("second stage: the other loss; patience starts anew")

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Log the stage."""
        module.log("optim/stage", 2.0 if trainer.current_epoch >= self.epoch else 1.0)

    def _restart(self, trainer: Trainer) -> None:
        trainer.callback_metrics.clear()  # or the first loss' terms would stand in every row to come
        trainer.should_stop = False
        for callback in trainer.callbacks:
            if isinstance(callback, Patience):
                callback.wait_count = 0
                callback.best_score = torch.tensor(-torch.inf)
            elif isinstance(callback, BestOfStage):
                callback.restart()
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                config.scheduler._reset()
        if self.lr is not None:
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.lr


class GrowingWeight(Callback):
    """Gives one term of a :class:`~raremask.losses.compound.Sum` a weight that grows with every epoch.

    The epoch alone decides, so a resumed run and an unbroken one agree.

    Args:
        term: The term's name.
        start: Its weight in the first epoch; None takes what it has in the loss.
        step: What each further epoch adds.

    Source:
        Kervadec et al. (2019), https://arxiv.org/abs/1812.07032: 0.01, and 0.01 more each epoch
    """

    def __init__(self, term: str, start: float | None = None, step: float = 0.01):
        self.term, self.start, self.step = term, start, step

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Take the weight to start from.

        Raises:
            BadInput: If the loss has no such term.
        """
        weights = getattr(module.loss, "weights", {})
        if self.term not in weights:
            terms = ", ".join(weights) or "none"
            raise BadInput(f"callbacks.grow.term={self.term}: this loss has no such term; it has: {terms}.")
        if self.start is None:
            self.start = weights[self.term]

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Set the weight of this epoch; the loss of a second stage may have no such term."""
        weights = getattr(module.loss, "weights", {})
        if self.term in weights and self.start is not None:
            weights[self.term] = self.start + self.step * trainer.current_epoch


class Patience(EarlyStopping):
    """Early stopping that stays stopped: a run that had ended, and is resumed, trains no further epoch.

    Args:
        monitor: The score that decides, such as `val/dice`; higher is better.
        patience: Epochs without a better score after which the training ends.
    """

    def __init__(self, monitor: str = "val/dice", patience: int = 20):
        super().__init__(monitor=monitor, mode="max", patience=patience)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """End at once if the patience was used up before; Lightning would look only after another epoch."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class MovingAverage(EMAWeightAveraging):
    r"""Validates and keeps an exponential moving average of the weights, instead of the last step's.

    .. math:: \bar w_n = d_n \bar w_{n - 1} + (1 - d_n) w_n, \quad d_n = \min\left(d, \frac{1 + n}{10 + n}\right)

    at step n: the average begins short, or the first weights would stay in it for the whole of a short training.

    Lightning's own makes the average before the network has been moved to its GPU, so that every weight would be copied
    to the host after every step; and it asks the GPU twice in each step how often it was averaged, which waits.

    Args:
        decay: Share d of the average that stays at a step, in [0, 1): with 0.99 the last hundred steps or so count.

    Source:
        Tarvainen & Valpola (2017), https://arxiv.org/abs/1703.01780; the beginning as in TensorFlow's
        ExponentialMovingAverage
    """

    _latest_update_step: int  # of Lightning's class: kept in checkpoints

    def __init__(self, decay: float = 0.99):
        super().__init__(decay=decay)
        self.decay = decay

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Take the average to where the network is."""
        self._average_model.to(module.device)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *of_the_step: Any) -> None:
        """Take the weights of a step in; the first ones, and what is counted in whole numbers, as they are."""
        if trainer.global_step == self._latest_update_step:  # no step of the optimiser: gradients are being summed
            return
        averages, latest = (chain(one.parameters(), one.buffers()) for one in (self._average_model.module, module))
        moving = []
        for average, value in zip(averages, latest, strict=True):
            if self._latest_update_step and average.is_floating_point():
                moving.append((average, value))
            else:
                average.copy_(value)
        if moving:
            decay = min(self.decay, (1 + trainer.global_step) / (10 + trainer.global_step))
            get_ema_multi_avg_fn(decay)(*zip(*moving, strict=True), self._latest_update_step)
        self._latest_update_step = trainer.global_step


class History(Checkpoint):
    """Prints a line per epoch and keeps `metrics.csv`, one row per epoch with all that was logged.

    Lightning's own CSVLogger deletes the file when a run is resumed. Here a resumed run goes on below the epochs that
    its checkpoint has seen. A kind of checkpoint to Lightning, because only those are called after the module has
    logged the scores of its training epoch.

    Args:
        folder: Where `metrics.csv` is written.
        monitor: The score that is printed, such as `val/dice`.
    """

    def __init__(self, folder: str, monitor: str = "val/dice"):
        self.file, self.monitor = Path(folder) / "metrics.csv", monitor
        self.rows: list[dict[str, float]] = []
        self.started, self.rate = 0.0, float("nan")

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Take up the rows of an earlier part of this run."""
        earlier = read_table(self.file) if self.file.is_file() else []
        self.rows = [row for row in earlier if row["epoch"] < trainer.current_epoch]

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock, and note the learning rate of the epoch."""
        self.started, self.rate = time.monotonic(), trainer.optimizers[0].param_groups[0]["lr"]

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Print the line and write the table."""
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        seconds = round(time.monotonic() - self.started, 3)
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "seconds": seconds}
        self.rows.append(row | dict(sorted(logged.items())))
        write_table(self.file, self.rows)
        score = logged.get(self.monitor, math.nan)
        best = max((row[self.monitor] for row in self.rows if self.monitor in row), default=math.nan)
        so_far = "nothing seen yet" if best <= getattr(module, "chance", -math.inf) else f"best {best:.4f}"
        tqdm.write(  # tqdm's, so that the line stands above a progress bar
            f"epoch {trainer.current_epoch + 1:>3}/{trainer.max_epochs}  loss {logged['train/loss']:.4f}  "
            f"{self.monitor} {score:.4f} ({so_far})  lr {self.rate:.2g}  {seconds:.1f} s"
        )


class Progress(TQDMProgressBar):
    """Lightning's bar over the batches of an epoch, on a terminal; nothing in a log, where it would fill pages."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stderr.isatty() else 0, leave=False)


class Panels(Callback):
    """Shows validation images in TensorBoard: image, truth and prediction, TP green, FP red, FN magenta.

    Args:
        every: Epochs between two panels.
        images: How many images, taken evenly from the validation split.
        palette: Of :class:`raremask.figures.Paint`.
        contours: Whether outlines are painted instead of areas.

    Raises:
        ValueError: If a number is below 1, or there is no such palette.
    """

    def __init__(self, every: int = 5, images: int = 4, palette: str = "classic", contours: bool = False):
        if every < 1 or images < 1:
            raise ValueError(f"every and images must be 1 or more; got {every} and {images}")
        self.every, self.images, self.paint = every, images, figures.Paint(palette, contours)

    @rank_zero_only
    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Add a panel to TensorBoard."""
        due = trainer.current_epoch % self.every == 0 and trainer.state.fn == "fit" and not trainer.sanity_checking
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not (due and boards):
            return
        dataset = trainer.val_dataloaders.dataset
        evenly = np.linspace(0, len(dataset) - 1, min(self.images, len(dataset))).round().astype(int).tolist()
        predictor = Predictor([module.net])
        plain = Selection(module.threshold)
        rows = [figures.predicted(predictor, plain, dataset[index], module.empty) for index in evenly]
        for board in boards:
            figure = figures.gallery(rows, f"epoch {trainer.current_epoch + 1}", self.paint)
            board.experiment.add_figure("val/images", figure, trainer.global_step)
