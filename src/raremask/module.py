"""The LightningModules: what happens to a batch, in training and once trained."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from raremask.collapse import extremes
from raremask.inference import Predictor, sharing_cores, to_native
from raremask.metrics.gather import ImageCounts, Means, count
from raremask.metrics.overlap import chance, shares, summary


class Segmenter(LightningModule):
    """Trains and scores a network; receives every part, and builds none.

    Logged per epoch: `train/loss` and its named terms, the scores of :func:`~raremask.metrics.overlap.summary` and of
    :func:`~raremask.collapse.extremes` under `train/` and `val/`, `val/probability_spread` (standard deviation of the
    probabilities within an image, mean over images), `val/contrast` (probability inside the foreground over that
    outside, mean over images that have both; NaN if none has), and `optim/grad_norm` (overflows of float16 left out).
    Training scores are taken at the network's size, all others at the native size of each image. Where a dataset has a
    validity mask (a field of view), scores over its pixels alone stand beside the others under names that end in
    `_fov`.

    Args:
        net: Gives logits `(B, 1, H, W)` for an image `(B, C, H, W)`.
        loss: Called as `loss(logits, mask)`; its named parts are logged if it has a method `parts`.
        optimizer: Makes the optimiser from the parameters.
        scheduler: Makes the learning rate's scheduler from the optimiser; stepped after every epoch.
        monitor: The logged score that a plateau scheduler watches, such as `val/dice`.
        empty: Policy for images whose mask and prediction are both empty, see :mod:`raremask.metrics.overlap`.
        seed: With the epoch, decides the random numbers of training (dropout), so that a resumed run draws the same.
        tile: Windows that images are cut into once it is trained, see :class:`~raremask.inference.Predictor`.
    """

    threshold = 0.5  # of what is logged in training; the one to predict with is chosen on validation afterwards

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler],
        monitor: str = "val/dice",
        empty: str = "one",
        seed: int = 0,
        tile: Sequence[int] | None = None,
    ):
        super().__init__()
        self.net, self.loss = net, loss
        self.optimizer, self.scheduler = optimizer, scheduler
        self.monitor, self.empty, self.seed, self.tile = monitor, empty, seed, tile
        self.chance = -math.inf  # of the monitored score: above it the network sees something; known once validated
        self.train_counts, self.val_counts, self.val_counts_fov = ImageCounts(), ImageCounts(), ImageCounts()
        self.train_means, self.gradient_mean, self.val_means, self.contrast_mean = Means(), Means(), Means(), Means()
        #: Of the last step, for callbacks that watch: logits, loss, and in training the norm of the gradient.
        self.computed: dict[str, Tensor] = {}

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `(B, 1, H, W)` of `image` `(B, C, H, W)` in [0, 1]."""
        return self.net(image)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Return the loss of a batch."""
        logits, mask = self(batch["image"]), batch["mask"]
        loss, terms = self._loss("train", logits, mask)
        self.train_means.update(terms, len(mask))
        self.computed = {"logits": logits.detach(), "loss": loss.detach()}
        with torch.no_grad():
            self.train_counts.update(batch["index"], count(self._paint(logits), mask.bool()))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Score a batch, and log its loss."""
        logits, mask = self(batch["image"]), batch["mask"]
        loss, terms = self._loss("val", logits, mask)
        self.computed = {"logits": logits, "loss": loss}
        probability = torch.sigmoid(logits.float())
        self._count(probability, batch)
        terms["val/probability_spread"] = probability.flatten(1).std(dim=1).mean()
        self.val_means.update(terms, len(mask))
        contrast = _contrast(probability, mask)
        self.contrast_mean.update({"val/contrast": contrast.nanmean().nan_to_num()}, (~contrast.isnan()).sum())

    def on_train_epoch_start(self) -> None:
        """Seed the random numbers of this epoch."""
        torch.manual_seed((self.seed * 1_000_003 + self.current_epoch) * 1_009 + self.global_rank)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradient, and note its norm from before; Lightning would compute that anew.

        With float16 an infinite norm is that of a step that is skipped, and is no part of the mean.
        """
        weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
        norm = nn.utils.get_total_norm([weight.grad for weight in weights])
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            nn.utils.clip_grads_with_norm_(weights, gradient_clip_val, norm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        self.computed["gradient"] = norm
        self.gradient_mean.update({"optim/grad_norm": norm.nan_to_num(0, 0)}, norm.isfinite())

    def on_train_epoch_end(self) -> None:
        """Log the training scores, and step a plateau scheduler.

        Lightning would step it after the last checkpoint is written, and a resumed run would miss that step.
        """
        self._log(self.train_means, self.gradient_mean)
        self._log_scores("train", {"": self.train_counts})
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau) and self.monitor in self.trainer.callback_metrics:
            scheduler.step(self.trainer.callback_metrics[self.monitor])

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Step a scheduler that watches no score."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()

    def on_validation_epoch_end(self) -> None:
        """Log the validation scores."""
        self._log(self.val_means, self.contrast_mean)
        self._log_scores("val", {"": self.val_counts, "_fov": self.val_counts_fov})

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimiser and its scheduler."""
        optimizer = self.optimizer(self.parameters())
        scheduler = {"scheduler": self.scheduler(optimizer), "monitor": self.monitor, "name": "optim/lr"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _paint(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits.float()) > self.threshold

    def _loss(self, split: str, logits: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and it and its named terms for the log."""
        named = getattr(self.loss, "parts", None)
        parts = named(logits, mask) if named else {}
        loss = sum(parts.values()) if parts else self.loss(logits, mask)
        return loss, {f"{split}/loss": loss} | {f"{split}/loss/{name}": part for name, part in parts.items()}

    def _log(self, *means: Means) -> None:
        """Log the means of an epoch's steps, and start anew."""
        for metric in means:
            if metric.rows:
                self.log_dict(metric.compute())
            metric.reset()

    def _count(self, probability: Tensor, batch: dict[str, Any]) -> None:
        """Count each image of validation at its native size."""
        valids = batch.get("native_valid", [None] * len(probability))
        samples = zip(probability, batch["index"], batch["box"], batch["native_mask"], valids, strict=True)
        for image, index, box, mask, valid in samples:
            painted = to_native(image[None], mask.shape[-2:], box) > self.threshold
            self.val_counts.update(index[None], count(painted, mask[None]))
            if valid is not None:
                self.val_counts_fov.update(index[None], count(painted, mask[None], valid[None]))

    def _log_scores(self, split: str, counted: Mapping[str, ImageCounts]) -> None:
        """Log the summary of all images of a split, by the suffix of its names, and start anew."""
        for suffix, metric in counted.items():
            if not metric.rows:
                continue
            rows = metric.compute().cpu()
            metric.reset()
            counts = rows[:, 1:].numpy()
            scores = summary(counts, self.empty) | extremes(*shares(counts))
            self.log_dict({f"{split}/{name}{suffix}": value for name, value in scores.items()})
            for name in scores:
                if self.monitor == f"{split}/{name}{suffix}":
                    self.chance = chance(counts, name, self.empty)


class Viewer(LightningModule):
    """Looks at images with networks that are trained, and hands on what it sees.

    Args:
        predictor: Gives probabilities.
        receive: Gets the index of each image and its probability `(height, width)` float32 at native size, in threads.
        opened: Closes the threads, see :func:`raremask.inference.sharing_cores`; until then they may be at work.
    """

    def __init__(self, predictor: Predictor, receive: Callable[[int, np.ndarray], None], opened: ExitStack):
        super().__init__()
        self.predictor, self.receive, self.opened = predictor, receive, opened
        self.pool: Executor | None = None
        self.before: Iterator[None] = iter(())  # waits for the images of the batch before

    def predict_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Send the images of a batch on their way, and wait for those of the batch before.

        Scoring an image keeps one core busy. On the CPU the network does so, too: then a thread takes an image all the
        way.
        """
        on_cpu = batch["image"].device.type == "cpu"

        def finish(image: Tensor, index: int, size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
            with torch.inference_mode():  # which a thread does not take over from the one that starts it
                probability = to_native(self.predictor(image) if on_cpu else image, size, box)
            self.receive(index, probability[0, 0].float().cpu().numpy())

        images = (batch["image"] if on_cpu else self.predictor(batch["image"])).split(1)
        if self.pool is None:  # not before: when Lightning starts processes it divides the cores among them
            batches = min(2, sum(self.trainer.num_predict_batches))
            self.pool = self.opened.enter_context(sharing_cores(batches * len(images)))
        before = self.before
        self.before = self.pool.map(finish, images, batch["index"].tolist(), batch["size"], batch["box"])
        list(before)  # waits, and raises what went wrong

    def on_predict_epoch_end(self) -> None:
        """Wait for the last batch."""
        list(self.before)


def _contrast(probability: Tensor, mask: Tensor) -> Tensor:
    """Probability inside the foreground over that outside, `(B,)`; NaN where an image has only one of the two."""
    inside = (probability * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
    outside = (probability * (1 - mask)).sum((1, 2, 3)) / (1 - mask).sum((1, 2, 3))
    return inside / outside.clamp(min=1e-12)
