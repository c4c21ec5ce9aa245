"""Measure how fast raremask trains on a GPU beside the same step fed from the GPU's own memory.

    python scripts/bench_gpu.py          # on a machine with a GPU: writes docs/performance_gpu.md; ten minutes
    python scripts/bench_gpu.py try=cpu  # the same with small sizes on the CPU, printed only: does the script work?

Needs no data and no network: phantoms, and smp's U-Net with ResNet-34 without pretrained weights. Every figure is the
ratio of two things measured in turn in one run, the median of several.
"""

import copy
import itertools
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from bench import ROOT, Row, composed, scratch, trained
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raremask.data.base import ImageMaskData
from raremask.module import Segmenter
from raremask.receipt import device_name
from raremask.terminal import quieten

PAGE = ROOT / "docs" / "performance_gpu.md"
TRY = "try=cpu" in sys.argv
DEVICE = torch.device("cpu" if TRY else "cuda")
SIZES, BATCH, STEPS, EPOCHS = ((32,), 2, 4, 3) if TRY else ((256, 512), 16, 40, 5)
BASIC = ("loss=bce_dice", "dataset=phantom", "augment=flips")
NETWORKS = {
    "U-Net/ResNet-34": ("model=unet_resnet34", "model.encoder_weights=null"),
    "the thesis' U-Net": ("model=unet",),
    "the thesis' U-Net, norm=batch": ("model=unet", "model.norm=batch"),
}
FIRST = NETWORKS["U-Net/ResNet-34"]
LOSSES = ("dynamit", "boundary_gaussian", "boundary_dou")


def wait() -> None:
    """Wait for the GPU."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def timed(step: Callable[[], Any], times: int, warm: int = 5) -> float:
    """Median seconds of something on the GPU."""
    for _ in range(warm):
        step()
    seconds = []
    for _ in range(times):
        wait()
        started = time.perf_counter()
        step()
        wait()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def stepper(net: nn.Module, loss: nn.Module, image: Tensor, mask: Tensor) -> Callable[[], Tensor]:
    """A training step on a batch that lies on the GPU, in bf16 where the network computes."""
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=not TRY):
            logits = net(image)
        value = loss(logits.float(), mask)
        value.backward()
        optimizer.step()
        return value

    return step


def settings(size: int, workers: int, folder: Path, *more: str, network: Sequence[str] = FIRST) -> Any:
    """The config of a run of this size."""
    images = BATCH * STEPS
    data = (f"dataset.train={images}", "dataset.val=8", "dataset.test=8", f"dataset.size=[{size},{size}]")
    limits = (f"dataset.batch_size={BATCH}", f"dataset.workers={workers}", f"trainer.max_epochs={EPOCHS}")
    cfg = composed(folder, *BASIC, *network, *data, *limits, *more)
    cfg.trainer.accelerator, cfg.trainer.precision = ("cpu", "32-true") if TRY else ("gpu", "bf16-mixed")
    return cfg


def throughput() -> list[Row]:
    """Epochs of train.py beside the same number of steps fed from the GPU's memory."""
    rows = []
    for size in SIZES:
        for workers in (0, 2 if TRY else 8):
            with scratch() as folder:
                cfg, bare, kept = settings(size, workers, folder), [], {}

                def between(
                    module: Segmenter, data: ImageMaskData, bare: list = bare, kept: dict = kept, size=size
                ) -> None:
                    if not kept:
                        image = torch.rand(BATCH, 3, size, size, device=DEVICE)
                        mask = (torch.rand(BATCH, 1, size, size, device=DEVICE) < 0.05).float()
                        kept["step"] = stepper(copy.deepcopy(module.net).train(), module.loss, image, mask)
                        timed(kept["step"], 3)
                    wait()
                    started = time.perf_counter()
                    for _ in range(STEPS):
                        kept["step"]()
                    wait()
                    bare.append(time.perf_counter() - started)

                clock = trained(cfg, between)
            ratio = statistics.median(alone / ours for ours, alone in list(zip(clock.training, bare, strict=True))[1:])
            note = f"{BATCH * STEPS / statistics.median(clock.training[1:]):.0f} images/s"
            what = f"throughput of training, {size}x{size}, {workers} workers"
            rows.append(Row(what, "the same step fed from the GPU", 0.95, ratio, True, note))
    return rows


def layouts() -> list[Row]:
    """What channels_last and torch.compile gain, the peak of memory, and the share of the matrix rate.

    On a GPU the thesis' U-Net is left contiguous: here is asked what channels_last would gain, with both norms.
    """
    rows, rate = [], matrix_rate()
    for size, (model, network) in itertools.product(SIZES, NETWORKS.items()):
        image = torch.rand(BATCH, 3, size, size, device=DEVICE)
        mask = (torch.rand(BATCH, 1, size, size, device=DEVICE) < 0.05).float()
        with scratch() as folder:
            cfg = settings(size, 0, folder, network=network)
            net, loss = instantiate(cfg.model), instantiate(cfg.loss)
        with FlopCounterMode(display=False) as counter:
            loss(net(image.cpu()[:1]), mask.cpu()[:1]).backward()
        work = counter.get_total_flops() * BATCH
        base = None
        for name in ("contiguous", "channels_last", "channels_last and torch.compile"):
            layout = torch.channels_last if "channels_last" in name else torch.contiguous_format
            mine = copy.deepcopy(net).to(DEVICE, memory_format=layout).train()
            if "compile" in name:
                mine = torch.compile(mine)
            if DEVICE.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = timed(stepper(mine, loss.to(DEVICE), image, mask), 3 if TRY else 30)
            base = base or seconds
            peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0
            note = f"{1000 * seconds:.1f} ms, {peak:.1f} GiB, {work / seconds / rate:.0%} of the measured bf16 rate"
            what = f"a step of {model}, {BATCH} images {size}x{size}: {name}"
            rows.append(Row(what, "contiguous", 1.0, seconds / base, note=note))
    return rows


def matrix_rate() -> float:
    """Operations a second of a large product of matrices in bf16: what this device reaches at best."""
    side = 256 if TRY else 8192
    one = torch.rand(side, side, device=DEVICE, dtype=torch.float32 if TRY else torch.bfloat16)
    return 2 * side**3 / timed(lambda: one @ one, 20)


def losses() -> list[Row]:
    """The time of losses alone, forward and backward, beside BCE's."""
    rows, size = [], SIZES[-1]
    logits = torch.randn(BATCH, 1, size, size, device=DEVICE, requires_grad=True)
    mask = torch.zeros(BATCH, 1, size, size, device=DEVICE)
    mask[..., size // 4 : size // 2, size // 4 : size // 2] = 1
    seconds = {}
    with scratch() as folder:
        for name in ("bce", *LOSSES):
            loss = instantiate(settings(size, 0, folder, f"loss={name}").loss).to(DEVICE)
            seconds[name] = timed(lambda loss=loss: loss(logits, mask).backward(), 5 if TRY else 50)
    for name in LOSSES:
        note = f"{1000 * seconds[name]:.2f} ms"
        rows.append(Row(f"{name}, {BATCH} x {size}x{size}", "bce", 3.0, seconds[name] / seconds["bce"], note=note))
    return rows


def waits() -> list[Row]:
    """How often a step of train.py waits for the GPU without need: PyTorch says so itself."""
    if DEVICE.type != "cuda":
        return []
    rows = []
    for choice in ("callbacks=default", "callbacks=ema"):
        with scratch() as folder, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            cfg = settings(256, 0, folder, choice)
            cfg.trainer.max_epochs = 1
            torch.cuda.set_sync_debug_mode("warn")
            try:
                trained(cfg, lambda module, data: None)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found = [str(one.message) for one in said if "synchronizing" in str(one.message)]
        what = f"waits for the GPU per step, a whole run counted, {choice}"
        rows.append(Row(what, "none", 0.2, len(found) / STEPS, note=f"{len(found)}"))
    return rows


def several() -> list[Row]:
    """Four small runs at once beside one."""
    command = [
        sys.executable,
        "src/train.py",
        "dataset=phantom",
        "trainer.max_epochs=2" if TRY else "trainer.max_epochs=20",
    ]
    command += ["leaks=ignore", "dataset.train=16" if TRY else "dataset.train=160", "selection.views=[none]"]
    pairs = []
    for _ in range(1 if TRY else 3):
        times = []
        for number in (1, 4):
            with scratch() as folder:
                started = time.perf_counter()
                runs = [
                    subprocess.Popen(
                        [*command, f"seed={one}", f"hydra.run.dir={folder}/{one}"], cwd=ROOT, stdout=subprocess.DEVNULL
                    )
                    for one in range(number)
                ]
                if any(run.wait() for run in runs):
                    sys.exit("a run has failed")
                times.append(time.perf_counter() - started)
        pairs.append(times)
    ratio = statistics.median(four / one for one, four in pairs)
    return [Row("four small runs at once", "one", 1.6, ratio, note=f"{pairs[0][1]:.0f} s")]


def main() -> None:
    """Measure, print, and write the page."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU here. `try=cpu` tries the script without one.")
    quieten()
    lines = []
    for measure in (throughput, layouts, losses, waits, several):
        for row in measure():
            lines.append(row.line())
            print(lines[-1], flush=True)
    text = (
        f"# Performance on a GPU\n\nWritten by `scripts/bench_gpu.py` on {date.today()}: {device_name(DEVICE)}, "
        f"{os.cpu_count()} cores, PyTorch {torch.__version__}.\n\n| what | against | target | ratio | met | |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )
    if not TRY:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
