"""Measure how fast raremask is beside what it cannot be faster than, and beside what one would write first.

    python scripts/bench.py data=<folder that holds CVC-ClinicDB and DRIVE> [only=step,epoch]

writes docs/performance.md (step, epoch, network, loader, evaluation, prediction, start, memory, growth): every figure
is the ratio of two things that were measured in turn in one run, the median of several. Needs idle cores, and half an
hour.
"""

import copy
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import tifffile
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch import Callback
from omegaconf import DictConfig
from PIL import Image
from scipy.ndimage import distance_transform_edt
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from raremask.building import build, build_trainer
from raremask.data.base import ImageMaskData
from raremask.data.samples import as_floats
from raremask.module import Segmenter
from raremask.nets import EncoderDecoder, ExactOnCpu, InstanceNorm, UNet
from raremask.prediction import painter, predict_files
from raremask.receipt import device_name
from raremask.scoring import judge
from raremask.selection import Selection
from raremask.shipped import Shipped
from raremask.terminal import quieten

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
GPU = ("training", "gaps", "loss", "thesis", "sweep", "waits", "step")  # sections of bench_gpu.py
SECTIONS = ("step", "epoch", "network", "loader", "evaluation", "prediction", "start", "memory", "growth")
THESIS = ("dataset=cvc", "dataset.batch_size=2", "dataset.workers=0", "model.base=8", "augment=thesis")


@dataclass(frozen=True)
class Row:
    """A line of the page.

    Args:
        what: Was measured.
        against: What it was compared with.
        target: How large the ratio may be, or must be; None where two ways are compared and neither is to win.
        ratio: Median.
        least: Whether the target is a lower bound.
        note: Seconds and the like.
    """

    what: str
    against: str
    target: float | None
    ratio: float
    least: bool = False
    note: str = ""

    def line(self) -> str:
        """Return it as a row of a Markdown table."""
        bound = met = "-"
        if self.target is not None:
            bound = f"{'at least' if self.least else 'at most'} {self.target:g}"
            met = "yes" if (self.ratio >= self.target if self.least else self.ratio <= self.target) else "no"
        return f"| {self.what} | {self.against} | {bound} | {self.ratio:.2f} | {met} | {self.note} |"


# --- a run as train.py makes it ---------------------------------------------------------------------------------------


def composed(folder: Path, *overrides: str) -> DictConfig:
    """Return the config of a run that writes into a folder."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", [*overrides, f"folder={folder}", "trainer=cpu", "leaks=ignore"])


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is taken away again."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


class Clock(Callback):
    """Measures the epochs of a training, and calls something in turn with them.

    Args:
        between: Called after each epoch.
    """

    def __init__(self, between: Callable[[], None]):
        self.between, self.epochs, self.training = between, [], []
        self.half = False  # whether it was trained in half precision

    def on_train_epoch_start(self, trainer: Any, *more: Any) -> None:
        """Start."""
        self.half = "16" in str(trainer.precision)
        self.began = time.perf_counter()

    def on_validation_start(self, trainer: Any, *more: Any) -> None:
        """Note how long the steps of training took."""
        if not trainer.sanity_checking:
            if torch.cuda.is_available():  # which may still be at work
                torch.cuda.synchronize()
            self.training.append(time.perf_counter() - self.began)

    def on_train_epoch_end(self, *more: Any) -> None:
        """Note the epoch, and do the other thing."""
        self.epochs.append(time.perf_counter() - self.began)
        self.between()


class BareSteps(Callback):
    """Takes, after each step of a training, a step of the loop that cannot be shorter, and times both.

    In turn, because what else the machine does changes within seconds. The first step of an epoch is left out. Without
    workers, or they would get on with the next batch while the bare step is timed.

    Args:
        optimizer: Makes the optimiser from the parameters.
        number: Of batches that lie in memory.
    """

    def __init__(self, optimizer: Callable[[Iterable[nn.Parameter]], Optimizer], number: int = 30):
        self.make, self.number = optimizer, number
        self.ours: list[float] = []
        self.bare: list[float] = []

    def on_train_start(self, trainer: Any, module: Segmenter) -> None:
        """Get ready."""
        self.net = copy.deepcopy(module.net).train()
        self.optimizer = self.make(self.net.parameters())
        self.batches = itertools.cycle(in_memory(trainer.datamodule, self.number))

    def on_train_epoch_start(self, *more: Any) -> None:
        """Start."""
        self.began = None

    def on_train_batch_end(self, trainer: Any, module: Segmenter, *more: Any) -> None:
        """Note the step, loader and hooks included, and take the bare one."""
        started = time.perf_counter()
        batch = next(self.batches)
        self.optimizer.zero_grad()
        module.loss(self.net(batch["image"]), batch["mask"]).backward()
        self.optimizer.step()
        ended = time.perf_counter()
        if self.began is not None:
            self.ours.append(started - self.began)
            self.bare.append(ended - started)
        self.began = ended


def trained(cfg: DictConfig, between: Callable[[Segmenter, ImageMaskData], None], *more: Callback) -> Clock:
    """Train as train.py does, with all its callbacks and loggers, and time it."""
    data, module = build(cfg, Path(cfg.folder))
    clock = Clock(lambda: between(module, data))
    callbacks = [*instantiate(cfg.callbacks).values(), clock, *more]
    trainer = build_trainer(cfg.trainer, callbacks=callbacks, logger=list(instantiate(cfg.logger).values()))
    trainer.fit(module, datamodule=data)
    return clock


def in_memory(data: ImageMaskData, number: int) -> list[dict[str, Any]]:
    """The first batches of training, as numbers."""
    batches = []
    for batch in data.train_dataloader():
        batches.append(as_floats(batch))
        if len(batches) == number:
            break
    return batches


# --- what is measured -------------------------------------------------------------------------------------------------


def step(data_dir: Path) -> list[Row]:
    """A step of train.py beside the same step fed from memory."""
    rows = []
    for name, epochs, steps, overrides in (
        ("phantom, defaults", 5, 20, ("dataset=phantom",)),
        ("CVC, defaults", 4, 8, ("dataset=cvc", "dataset.workers=0")),
        ("CVC, thesis U-Net base 8, batch 2, thesis augmentation", 8, 30, THESIS),
    ):
        with scratch() as folder:
            limits = (
                f"trainer.max_epochs={epochs}",
                f"+trainer.limit_train_batches={steps}",
                "+trainer.limit_val_batches=1",
            )
            cfg = composed(folder, *overrides, *limits, f"data_dir={data_dir}")
            steps_of = BareSteps(instantiate(cfg.optimizer), steps)
            trained(cfg, lambda module, data: None, steps_of)
        pairs = zip(steps_of.ours, steps_of.bare, strict=True)
        ratio = statistics.median(ours / bare for ours, bare in pairs)
        note = f"{1000 * statistics.median(steps_of.ours):.0f} ms"
        rows.append(Row(f"a training step: {name}", "the bare loop, batches in memory", 1.05, ratio, note=note))
    return rows


@contextmanager
def opencv_as_it_comes() -> Iterator[None]:
    """With as many threads as OpenCV takes by itself, for what is not ours."""
    ours = cv2.getNumThreads()
    cv2.setNumThreads(-1)
    try:
        yield
    finally:
        cv2.setNumThreads(ours)


class Plain(Dataset):
    """What one writes first: opens, standardises and augments an image and its mask whenever it is asked for them."""

    def __init__(self, files: Sequence[tuple[Path, Path]], size: Sequence[int], augment: A.Compose | None):
        self.files, self.size, self.augment = files, tuple(size), augment

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = (
            tifffile.imread(path) if path.suffix == ".tif" else np.asarray(Image.open(path))
            for path in self.files[index]
        )
        mask = (mask.max(axis=2) if mask.ndim == 3 else mask) > 127
        image = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA)
        mask = cv2.resize(mask.astype(np.uint8), self.size[::-1], interpolation=cv2.INTER_NEAREST)
        if self.augment is not None:
            out = self.augment(image=image, mask=mask)
            image, mask = out["image"], out["mask"]
        image = image.astype(np.float32)
        image = (image - image.mean()) / (image.std() + 1e-8)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), torch.from_numpy(mask)[None].float()


class PlainBoundaryGaussian(nn.Module):
    """Boundary-Gaussian as its formula reads: SciPy's distance transform, and a clamped probability.

    Args:
        sigma: Reach in pixels.
    """

    def __init__(self, sigma: float):
        super().__init__()
        self.sigma = sigma

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the loss."""
        foreground = mask.sum()
        background = mask.numel() - foreground
        near = []
        for truth in mask[:, 0].numpy():
            distance = distance_transform_edt(1 - truth) if truth.any() else np.full_like(truth, np.inf)
            near.append(np.exp(-(distance**2) / (2 * self.sigma**2)))
        lifted = torch.from_numpy(np.stack(near)).float()[:, None] + foreground / background
        weight_foreground, weight_background = (background / foreground).clamp(max=1), lifted.clamp(max=1)
        probability = torch.sigmoid(logits).clamp(1e-7, 1 - 1e-7)
        loss = mask * weight_foreground * -torch.log(probability)
        return (loss + (1 - mask) * weight_background * -torch.log(1 - probability)).mean()


class PlainBoundaryDoU(nn.Module):
    """The thesis' Boundary-DoU: the above plus DoU of background and foreground, as its authors publish that.

    Args:
        sigma: Reach in pixels.
    """

    def __init__(self, sigma: float):
        super().__init__()
        self.gaussian = PlainBoundaryGaussian(sigma)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the loss."""
        probability = torch.sigmoid(logits)
        of_class = [self.dou(1 - probability, 1 - mask), self.dou(probability, mask)]
        return self.gaussian(logits, mask) + sum(of_class) / 2

    def dou(self, probability: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of one class, its boundary found by a convolution image by image."""
        kernel = torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]])[None, None]
        near = torch.stack([nn.functional.conv2d(truth[None], kernel, padding=1)[0] for truth in mask]) * mask
        edge = ((near > 0) & (near < 5)).sum()
        alpha = (2 * (1 - (edge + 1e-5) / (mask.sum() + 1e-5)) - 1).clamp(max=0.8)
        inter, squares, truths = (probability * mask).sum(), (probability**2).sum(), (mask**2).sum()
        return (squares + truths - 2 * inter + 1e-5) / (squares + truths - (1 + alpha) * inter + 1e-5)


@opencv_as_it_comes()
def plain_epoch(net: nn.Module, loss: nn.Module, training: DataLoader, validation: DataLoader) -> float:
    """Seconds of an epoch as one writes it first."""
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    started = time.perf_counter()
    net.train()
    for image, mask in training:
        optimizer.zero_grad()
        value = loss(net(image), mask)
        value.backward()
        optimizer.step()
        value.item()
    net.eval()
    with torch.no_grad():
        for image, mask in validation:
            logits = net(image)
            loss(logits, mask).item()
            for one, truth in zip((torch.sigmoid(logits) > 0.5).numpy(), mask.numpy() > 0, strict=True):
                for score in (f1_score, jaccard_score, precision_score, recall_score):
                    score(truth.ravel(), one.ravel(), zero_division=1)
    return time.perf_counter() - started


def epoch(data_dir: Path) -> list[Row]:
    """An epoch, training and validation, beside the plain way with the same weights, augmentation and images."""
    rows = []
    plain_losses = {"boundary_dou": PlainBoundaryDoU(2.0), "boundary_gaussian": PlainBoundaryGaussian(2.0)}
    for (loss, plain_loss), precision in itertools.product(plain_losses.items(), ("auto", "32-true")):
        with scratch() as folder:
            limits = ("trainer.max_epochs=4", "+trainer.limit_train_batches=48", "+trainer.limit_val_batches=16")
            settings = (f"loss={loss}", f"trainer.precision={precision}")
            cfg = composed(folder, *THESIS, *settings, *limits, f"data_dir={data_dir}")
            theirs: list[float] = []
            kept: dict[str, Any] = {}

            def between(
                module: Segmenter, data: ImageMaskData, theirs=theirs, kept=kept, plain_loss=plain_loss
            ) -> None:
                if not kept:
                    kept.update(_plain_parts(module, data))
                theirs.append(plain_epoch(kept["net"], plain_loss, kept["training"], kept["validation"]))

            clock = trained(cfg, between)
        _same_value(kept["net"], plain_loss, instantiate(cfg.loss), kept["validation"])
        pairs = list(zip(clock.epochs, theirs, strict=True))[1:]
        ratio = statistics.median(ours / other for ours, other in pairs)
        note = f"{statistics.median(clock.epochs[1:]):.1f} s for 96 and 32 images"
        what = f"an epoch on CVC 288x384, thesis U-Net base 8, batch 2, thesis augmentation, {loss}, "
        what += f"trainer.precision={precision}" + (" (bf16-mixed here)" if clock.half else "")
        against = "decode each time, z-score, albumentations, torch.nn.InstanceNorm2d, "
        against += "loss image by image (SciPy), scikit-learn"
        rows.append(Row(what, against, 0.6, ratio, note=note))
    return rows


def _same_value(net: nn.Module, plain: nn.Module, ours: nn.Module, batches: DataLoader) -> None:
    """Stop if the two losses are not the same: their times could not be compared."""
    image, mask = next(iter(batches))
    with torch.no_grad():
        logits = net(image)
        torch.testing.assert_close(plain(logits, mask), ours(logits, mask), rtol=1e-3, atol=1e-4)


def _plain_parts(module: Segmenter, data: ImageMaskData) -> dict[str, Any]:
    files = {record.name: (record.image, record.mask) for record in data.records()}
    augment = A.Compose(data.augment.chain.transforms)
    lists = {split: [files[picture.name] for picture in data.splits[split].pictures] for split in ("train", "val")}
    training = DataLoader(Plain(lists["train"][:96], data.size, augment), batch_size=2, shuffle=True)
    validation = DataLoader(Plain(lists["val"][:32], data.size, None), batch_size=2)
    net = with_pytorchs_norm(module.net)
    net.standardize = nn.Identity()  # its images are standardised when they are read
    return {"net": net, "training": training, "validation": validation}


def with_pytorchs_norm(net: UNet) -> UNet:
    """A copy of a U-Net as one writes it first, with PyTorch's own instance normalisation."""
    net = copy.deepcopy(net)
    for block in (*net.down, *net.merge):
        for index, layer in enumerate(block):
            if isinstance(layer, InstanceNorm):
                block[index] = nn.InstanceNorm2d(block[index - 1].out_channels)
    return net


def with_depthwise_in_bfloat16(net: nn.Module) -> nn.Module:
    """A copy of a network on an encoder with depthwise convolutions, all of them left to autocast."""
    net = copy.deepcopy(net)
    for layer in net.modules():
        if isinstance(layer, ExactOnCpu):
            _, _, layer.__class__, *_ = type(layer).__mro__
    return net


def network(data_dir: Path) -> list[Row]:
    """A step of our networks beside the same as one writes them first."""
    unets, against = {base: UNet(base=base) for base in (8, 16)}, "the same with torch.nn.InstanceNorm2d"
    cases = [
        (f"the U-Net, base {base}", (batch, 288, 384), half, against, unets[base], with_pytorchs_norm(unets[base]))
        for (base, batch), half in itertools.product(((8, 2), (16, 8)), (False, True))
    ]
    for encoder in ("mobilenet_v2", "tu-tf_efficientnet_lite0"):
        net = EncoderDecoder(encoder=encoder, encoder_weights=None)
        against = "the same with depthwise convolutions in bfloat16"
        cases.append((f"the U-Net on {encoder}", (8, 256, 256), True, against, net, with_depthwise_in_bfloat16(net)))
    rows = []
    for what, (batch, height, width), half, against, *nets in cases:
        image, mask = torch.rand(batch, 3, height, width), (torch.rand(batch, 1, height, width) < 0.1).float()
        times: list[list[float]] = []
        for _ in range(8):
            times.append([])
            for net in nets:
                started = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    logits = net(image)
                nn.functional.binary_cross_entropy_with_logits(logits.float(), mask).backward()
                times[-1].append(time.perf_counter() - started)
        ratio = statistics.median(one / other for one, other in times[1:])
        note = f"{1000 * statistics.median(one for one, _ in times[1:]):.0f} ms"
        what = f"a step of {what}, {batch} images {height}x{width}, {'bf16-mixed' if half else '32-true'}"
        rows.append(Row(what, against, 1.0, ratio, note=note))
    return rows


def loader(data_dir: Path) -> list[Row]:
    """Images per second out of the loader beside decoding each time."""
    rows = []
    for name in ("none", "flips", "thesis"):
        with scratch() as folder:
            cfg = composed(folder, *THESIS, f"augment={name}", "dataset.batch_size=8", f"data_dir={data_dir}")
            data, _ = build(cfg)
        files = {record.name: (record.image, record.mask) for record in data.records()}
        paths = [files[picture.name] for picture in data.splits["train"].pictures]
        augment = A.Compose(data.augment.chain.transforms)
        plain, ours = DataLoader(Plain(paths, data.size, augment), batch_size=8, shuffle=True), data.train_dataloader()

        def seconds(batches: Iterable[Any]) -> float:
            started = time.perf_counter()
            for batch in batches:
                if isinstance(batch, dict):
                    as_floats(batch)
            return time.perf_counter() - started

        plain_seconds = opencv_as_it_comes()(seconds)
        plain_seconds(plain)
        pairs = [(plain_seconds(plain), seconds(ours)) for _ in range(3)]
        ratio = statistics.median(before / after for before, after in pairs)
        note = f"{len(paths) / statistics.median(after for _, after in pairs):.0f} images/s"
        rows.append(
            Row(f"images/s out of the loader, augment={name}", "decode and resize each time", 3, ratio, True, note)
        )
    return rows


def forward_alone(net: nn.Module, batches: list[Tensor]) -> float:
    """Seconds of the network on these batches."""
    net.eval()
    started = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            net(batch)
    return time.perf_counter() - started


def evaluation(data_dir: Path) -> list[Row]:
    """All scores of a split beside the network alone."""
    rows = []
    for name, overrides in (
        ("CVC, thesis U-Net base 8", THESIS),
        ("CVC, defaults (base 16)", ("dataset=cvc", "dataset.workers=0")),
        (
            "DRIVE at 584x565, thesis U-Net base 8, whole and in the field of view",
            ("dataset=drive", "dataset.workers=0", "model.base=8"),
        ),
    ):
        with scratch() as folder:
            cfg = composed(folder, *overrides, f"data_dir={data_dir}")
            data, module = build(cfg)
            _teach(module, data, cfg)
            trainer = build_trainer(
                cfg.trainer, callbacks=[], logger=False, enable_checkpointing=False, enable_progress_bar=False
            )
            data.predicted = "test"
            batches = [as_floats(batch)["image"] for batch in data.predict_dataloader()]
            pairs = []
            for _ in range(6):
                alone = forward_alone(module.net, batches)
                started = time.perf_counter()
                judge(trainer, data, module, "test", Selection())
                pairs.append((time.perf_counter() - started, alone))
        ratio = statistics.median(ours / alone for ours, alone in pairs[1:])
        images = len(data.splits["test"])
        note = f"{1000 * statistics.median(ours for ours, _ in pairs[1:]) / images:.0f} ms per image"
        rows.append(Row(f"evaluation with all scores: {name}", "the network alone", 1.3, ratio, note=note))
    return rows


def _teach(module: Segmenter, data: ImageMaskData, cfg: DictConfig) -> None:
    """A few steps, so that predictions have shapes as those of a network, and not of noise."""
    optimizer = instantiate(cfg.optimizer)(module.net.parameters(), lr=0.01)
    for batch in in_memory(data, 30):
        optimizer.zero_grad()
        module.loss(module.net(batch["image"]), batch["mask"]).backward()
        optimizer.step()


def prediction(data_dir: Path) -> list[Row]:
    """A folder of images, read, predicted and written, beside the network alone."""
    with scratch() as folder:
        cfg = composed(folder, *THESIS, f"data_dir={data_dir}")
        data, module = build(cfg)
        _teach(module, data, cfg)
        source = folder / "images"
        source.mkdir()
        for record in data.records()[:64]:
            (source / record.image.name).symlink_to(record.image.resolve())
        images = [
            torch.from_numpy(picture.image.transpose(2, 0, 1).copy())[None].float() / 255
            for _, picture in data.pictures()[:64]
        ]
        model = Shipped(
            network=dict(cfg.model), size=list(cfg.dataset.size), resize="stretch", channels=3, bits=16,
            selection=Selection(), tile=None, provenance={},
        )  # fmt: skip
        paint = painter([model], [module.net], "cpu", None, None, None)
        pairs = []
        for turn in range(4):
            alone = forward_alone(module.net, images)
            started = time.perf_counter()
            predict_files(paint, source, folder / f"out_{turn}", None, False, None, False)
            pairs.append((time.perf_counter() - started, alone))
    ratio = statistics.median(ours / alone for ours, alone in pairs[1:])
    note = f"{1000 * statistics.median(ours for ours, _ in pairs[1:]) / len(images):.0f} ms per image"
    return [Row("prediction of a folder: CVC, thesis U-Net base 8", "the network alone", 1.25, ratio, note=note)]


def command_seconds(*arguments: str) -> float:
    """Wall seconds of a process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False)
    return time.perf_counter() - started


FIRST_STEP = """
import os, runpy, sys
from raremask.module import Segmenter
step = Segmenter.training_step
def first(self, batch, index):
    if index == 1:
        os._exit(0)
    return step(self, batch, index)
Segmenter.training_step = first
runpy.run_path("src/train.py", run_name="__main__")
"""


def start(data_dir: Path) -> list[Row]:
    """Answers of the command line beside the imports that it would need."""
    imports = ("-c", "import torch, lightning.pytorch, segmentation_models_pytorch, albumentations")
    with scratch() as folder:
        asked = {
            ("a misspelled override is answered", 0.15): ("src/train.py", "loss.smoth=2"),
            ("--help", 0.15): ("src/train.py", "--help"),
            ("the first training step of the debug run", 1.6): (
                "-c",
                FIRST_STEP,
                "trainer=debug",
                f"hydra.run.dir={folder}/run",
            ),
        }
        os.environ["PYTHONPATH"] = str(ROOT / "src")
        rows = []
        for (what, target), arguments in asked.items():
            pairs = []
            for turn in range(6):
                fresh = [
                    one.replace("/run", f"/run{turn}") if one.startswith("hydra.run.dir") else one for one in arguments
                ]
                pairs.append((command_seconds(*fresh), command_seconds(*imports)))
            ratio = statistics.median(ours / other for ours, other in pairs[1:])
            note = f"{statistics.median(ours for ours, _ in pairs[1:]):.2f} s"
            against = "import of torch, lightning, smp and albumentations"
            rows.append(Row(what, against, target, ratio, note=note))
    return rows


def run_facts(folder: Path, *overrides: str) -> dict[str, Any]:
    """Train in a process of its own, and return what its status says."""
    command = [sys.executable, "src/train.py", *overrides, "trainer=cpu", "leaks=ignore", "selection.views=[none]"]
    subprocess.run([*command, f"hydra.run.dir={folder}"], cwd=ROOT, check=True, capture_output=True)
    return json.loads((folder / "status.json").read_text())


def memory(data_dir: Path) -> list[Row]:
    """What a run needs more for more images, beside what these and their masks have as bytes."""
    few, many, side = 600, 6000, 96
    peaks = []
    for number in (few, many):
        with scratch() as folder:
            small = (f"dataset.train={number}", "dataset.val=8", "dataset.test=8", f"dataset.size=[{side},{side}]")
            limits = ("trainer.max_epochs=1", "+trainer.limit_train_batches=2", "model.base=4", "model.levels=2")
            peaks.append(run_facts(folder / "run", *small, *limits)["memory_gib"])
    more = (many - few) * side * side * 4 / 2**30
    what = f"memory of a run, {few} to {many} images of {side}x{side}"
    note = f"{peaks[0]:.2f} to {peaks[1]:.2f} GiB; past dataset.memory they lie in a mapped file"
    against = f"bytes of images and masks ({more:.2f} GiB)"
    return [Row(what, against, 1.2, (peaks[1] - peaks[0]) / more, note=note)]


def growth(data_dir: Path) -> list[Row]:
    """Seconds of twice the work beside once."""
    base = {"dataset.train": "96", "dataset.val": "24", "dataset.test": "24", "dataset.size": "[96,96]"}
    base |= {"trainer.max_epochs": "4", "model.base": "8"}
    twice = {
        "images": {"dataset.train": "192", "dataset.val": "48", "dataset.test": "48"},
        "pixels": {"dataset.size": "[96,192]"},
        "epochs": {"trainer.max_epochs": "8"},
    }
    rows = []
    for what, change in twice.items():
        pairs = []
        for _ in range(3):
            with scratch() as folder:
                times = [
                    run_facts(folder / name, *(f"{key}={value}" for key, value in (base | more).items()))["seconds"]
                    for name, more in (("once", {}), ("twice", change))
                ]
                pairs.append(times)
        ratio = statistics.median(more / once for once, more in pairs)
        rows.append(
            Row(f"twice the {what}", "once", 2.1, ratio, note=f"{statistics.median(p[1] for p in pairs):.1f} s")
        )
    pairs = []
    for _ in range(3):
        with scratch() as folder:
            settings = [f"{key}={value}" for key, value in base.items()]
            common = ("src/train.py", "-m", *settings, "trainer=cpu", "leaks=ignore", "selection.views=[none]")
            once = command_seconds(*common, "loss=dice", f"hydra.sweep.dir={folder}/one")
            pairs.append((once, command_seconds(*common, "loss=dice,tversky", f"hydra.sweep.dir={folder}/two")))
    ratio = statistics.median(more / once for once, more in pairs)
    rows.append(
        Row("twice the losses in a sweep", "once", 2.1, ratio, note=f"{statistics.median(p[1] for p in pairs):.1f} s")
    )
    return rows


def publish(name: str, rows: Sequence[Row], device: torch.device) -> None:
    """Write a section of the page; the others stay as they are.

    Args:
        name: Of the section.
        rows: Its lines.
        device: Where they were measured.
    """
    head = (
        "# Performance\n\nWritten by `scripts/bench.py` and, on a GPU, by `scripts/bench_gpu.py`: every figure is the "
        "ratio of two things measured in turn in one run, the median of several. Each section says where and when.\n"
    )
    before = PAGE.read_text() if PAGE.is_file() else ""
    parts = {}
    for part in before.split("\n## ")[1:]:
        parts[part.split("\n")[0]] = part.partition("\n")[2].strip()
    where = f"{os.cpu_count()} cores, {device_name(device)}, Python {platform.python_version()}, "
    where += f"PyTorch {torch.__version__}, {date.today()}"
    table = "\n".join(row.line() for row in rows)
    parts[name] = f"{where}\n\n| what | against | target | ratio | met | |\n|---|---|---|---|---|---|\n{table}"
    if missing := [f"GPU: {one}" for one in GPU if f"GPU: {one}" not in parts]:
        head += f"\nNot measured yet: {', '.join(missing)}.\n"
    order = [one for one in SECTIONS if one in parts] + [one for one in parts if one not in SECTIONS]
    PAGE.write_text(head + "".join(f"\n## {one}\n\n{parts[one]}\n" for one in order))


def main(data_dir: Path, chosen: Sequence[str]) -> None:
    """Measure, print and write the page; sections that were not asked for stay as they are."""
    quieten()
    for name in chosen:
        rows = globals()[name](data_dir)
        for row in rows:
            print(row.line(), flush=True)
        publish(name, rows, torch.device("cpu"))


if __name__ == "__main__":
    settings = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    if not settings.keys() <= {"data", "only"} or "data" not in settings:
        sys.exit(__doc__)
    wanted = settings.get("only", ",".join(SECTIONS)).split(",")
    if unknown := set(wanted) - set(SECTIONS):
        sys.exit(f"only={unknown.pop()}: choose from {', '.join(SECTIONS)}")
    main(Path(settings["data"]).resolve(), wanted)
