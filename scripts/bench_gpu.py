"""Measure how fast raremask trains on a GPU beside the same step fed from the GPU's own memory.

    python scripts/bench_gpu.py [only=training,step]  # on a machine with a GPU; writes into docs/performance.md
    python scripts/bench_gpu.py try=cpu               # with small sizes on the CPU, printed only: does the script work?

Sections: training, step, loss, waits, sweep; on an H200 two minutes, over two and a half, half a minute, one, and over
one. Needs no data and no network: phantoms, and smp's U-Net with ResNet-34 without pretrained weights. Every figure is
the ratio of two things measured in turn in one run, the median of several.
"""

import copy
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bench import ROOT, Row, composed, publish, scratch, trained
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raremask.data.base import ImageMaskData
from raremask.module import Segmenter
from raremask.terminal import quieten

TRY = "try=cpu" in sys.argv
DEVICE = torch.device("cpu" if TRY else "cuda")
SECTIONS = ("training", "step", "loss", "waits", "sweep")
RESNET = ("model=unet_resnet34", "model.encoder_weights=null", *(["model.encoder=mobilenet_v2"] if TRY else []))
THESIS = ("model=unet", "model.base=64")
FIRST = "as train.py does it"
LOSSES = ("dynamit", "boundary_gaussian", "boundary_dou")


def wait() -> None:
    """Wait for the GPU."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def timed(step: Callable[[], Any], times: int = 7, each: int = 10) -> float:
    """Median seconds of something on the GPU, of which several go on one after the other as in training."""
    if TRY:
        times, each = 2, 1
    for _ in range(5 if not TRY else 1):
        step()
    seconds = []
    for _ in range(times):
        wait()
        started = time.perf_counter()
        for _ in range(each):
            step()
        wait()
        seconds.append((time.perf_counter() - started) / each)
    return statistics.median(seconds)


def stepper(
    net: nn.Module, loss: nn.Module, image: Tensor, mask: Tensor, half: bool = True, **settings: Any
) -> Callable[[], None]:
    """A training step on a batch that lies on the GPU.

    Args:
        net: The network.
        loss: What it learns by.
        image: `(B, 3, H, W)`.
        mask: `(B, 1, H, W)`.
        half: Whether it computes in bfloat16.
        **settings: Of the optimiser.
    """
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, **settings)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half and not TRY):
            logits = net(image)
        loss(logits.float(), mask).backward()
        optimizer.step()

    return step


def batch_of(images: int, size: int) -> tuple[Tensor, Tensor]:
    """Noise, and a mask with a square in it."""
    mask = torch.zeros(images, 1, size, size, device=DEVICE)
    mask[..., size // 4 : size // 2, size // 4 : size // 2] = 1
    return torch.rand(images, 3, size, size, device=DEVICE), mask


def settings(folder: Path, *more: str) -> Any:
    """The config of a run on this device."""
    cfg = composed(folder, "dataset=phantom", "dataset.val=8", "dataset.test=8", *more)
    cfg.trainer.accelerator = "cpu" if TRY else "gpu"
    cfg.trainer.precision = "32-true" if TRY else "auto"
    return cfg


def training() -> list[Row]:
    """Epochs of train.py beside the same number of steps fed from the GPU's memory."""
    cases = [(256, 64, 200, 8, "flips"), (512, 32, 100, 12, "photo")]
    if TRY:
        cases = [(32, 2, 4, 0, "flips"), (64, 2, 4, 2, "photo")]
    rows, images, epochs = [], 8 if TRY else 320, 3
    for size, batch, steps, workers, augment in cases:
        draws = batch * steps // images
        with scratch() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # images are drawn often and not cut
            data = (f"dataset.size=[{size},{size}]", f"dataset.train={images}", f"dataset.draws={draws}")
            data += (f"dataset.batch_size={batch}", f"dataset.workers={workers}", f"augment={augment}")
            cfg = settings(folder, *RESNET, *data, "loss=bce_dice", f"trainer.max_epochs={epochs}")
            alone: list[float] = []
            kept: dict[str, Callable[[], None]] = {}

            def between(
                module: Segmenter, data: ImageMaskData, alone=alone, kept=kept, shape=(batch, size), steps=steps
            ) -> None:
                if not kept:
                    net = copy.deepcopy(module.net).train()
                    kept["step"] = stepper(net, copy.deepcopy(module.loss), *batch_of(*shape))
                    timed(kept["step"])
                wait()
                started = time.perf_counter()
                for _ in range(steps):
                    kept["step"]()
                wait()
                alone.append(time.perf_counter() - started)

            clock = trained(cfg, between)
        pairs = list(zip(clock.training, alone, strict=True))[1:]
        ratio = statistics.median(bare / ours for ours, bare in pairs)
        ours = statistics.median(clock.training[1:])
        note = f"{steps * batch / ours:.0f} images/s, {1000 * ours / steps:.1f} ms a step"
        what = f"throughput of training, {batch} images {size}x{size}, augment={augment}, {workers} workers"
        rows.append(Row(what, "the same step fed from the GPU", 0.95, ratio, True, note))
        print(rows[-1].line(), flush=True)
    return rows


def step() -> list[Row]:
    """What each setting gains, the peak of memory, and the share of the matrix rate that the network reaches."""
    rows, rate = [], matrix_rate()
    cases = [
        ("U-Net/ResNet-34", RESNET, 256, 64),
        ("U-Net/ResNet-34", RESNET, 512, 32),
        ("U-Net, base 64", THESIS, 256, 16),
        ("U-Net, base 64, norm=batch", (*THESIS, "model.norm=batch"), 256, 16),
    ]
    if TRY:
        cases = [("U-Net/ResNet-34", RESNET, 32, 2)]
    for model, network, size, batch in cases:
        with scratch() as folder:
            cfg = settings(folder, *network, "loss=bce_dice")
            net, loss = instantiate(cfg.model), instantiate(cfg.loss).to(DEVICE)
        image, mask = batch_of(batch, size)
        with FlopCounterMode(display=False) as counter:
            loss(net(image[:1].cpu()), mask[:1].cpu()).backward()
        work = counter.get_total_flops() * batch
        layouts = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
        usual, other = layouts if network == RESNET else reversed(layouts)  # EncoderDecoder is channels_last itself
        base = 0.0
        for name in (FIRST, other, "float32", "cudnn.benchmark", "fused AdamW", "compiled"):
            layout = layouts[other if name == other else usual]
            mine = copy.deepcopy(net).to(DEVICE, memory_format=layout).train()
            picture = image.contiguous(memory_format=layout)
            torch.backends.cudnn.benchmark = name == "cudnn.benchmark"
            if name == "compiled":
                mine.compile(backend="aot_eager" if TRY else "inductor")
            if DEVICE.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            more = {"fused": True} if name == "fused AdamW" else {}
            started = time.perf_counter()
            one = stepper(mine, loss, picture, mask, half=name != "float32", **more)
            one()
            wait()
            begun = time.perf_counter() - started
            seconds = timed(one)
            torch.backends.cudnn.benchmark = False
            base = base or seconds
            peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0
            note = f"{1000 * seconds:.1f} ms, {peak:.1f} GiB, {work / seconds / rate:.0%} of the measured bf16 rate"
            note += f", the first step {begun:.0f} s" if name == "compiled" else ""
            what = f"a step of {model}, {batch} images {size}x{size}: {name}"
            rows.append(Row(what, FIRST, 1.0, seconds / base, note=note))
            print(rows[-1].line(), flush=True)
            del mine, one
    return rows


def matrix_rate() -> float:
    """Operations a second of a large product of matrices in bf16: what this device reaches at best."""
    side = 256 if TRY else 8192
    one = torch.rand(side, side, device=DEVICE, dtype=torch.float32 if TRY else torch.bfloat16)
    return 2 * side**3 / timed(lambda: one @ one)


def loss() -> list[Row]:
    """The time of losses alone, forward and backward, beside BCE's."""
    rows = []
    for images, size in ((2, 32),) if TRY else ((64, 256), (32, 512)):
        logits = torch.randn(images, 1, size, size, device=DEVICE, requires_grad=True)
        _, mask = batch_of(images, size)
        seconds = {}
        with scratch() as folder:
            for name in ("bce", *LOSSES, "bce_dice", "dice_surface", "hausdorff_dt"):
                one = instantiate(settings(folder, f"loss={name}").loss).to(DEVICE)
                seconds[name] = timed(lambda one=one, logits=logits, mask=mask: one(logits, mask).backward())
        bce = seconds.pop("bce")
        for name, its in seconds.items():
            note = f"{1000 * its:.2f} ms"
            rows.append(Row(f"{name}, {images} images {size}x{size}", "bce", 3.0, its / bce, note=note))
            print(rows[-1].line(), flush=True)
    return rows


def waits() -> list[Row]:
    """How often a step of train.py waits for the GPU without need: PyTorch says so itself."""
    if DEVICE.type != "cuda":
        return []
    rows = []
    for choice in ("callbacks=default", "callbacks=ema"):
        counts = []
        for images in (320, 640):  # the difference is what steps add, beside what an epoch does once
            with scratch() as folder, warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                cfg = settings(folder, *RESNET, choice, f"dataset.train={images}", "trainer.max_epochs=1")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    trained(cfg, lambda module, data: None)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            found = [one for one in said if "synchronizing" in str(one.message)]
            counts.append(len(found))
        places = sorted({f"{Path(one.filename).name}:{one.lineno}" for one in found})
        added = (counts[1] - counts[0]) / 40  # steps of 8 images
        note = f"{counts[0]} and {counts[1]} in runs of 40 and 80 steps"
        print(choice, *places, flush=True)
        rows.append(Row(f"waits for the GPU that a step adds, {choice}", "none", 0.05, added, note=note))
        print(rows[-1].line(), flush=True)
    return rows


def sweep() -> list[Row]:
    """Four small runs at once beside one."""
    command = [sys.executable, "src/train.py", "dataset=phantom", "leaks=ignore", "selection.views=[none]"]
    command += ["dataset.train=16", "trainer.max_epochs=1", "trainer=cpu"] if TRY else ["trainer.max_epochs=10"]
    pairs: list[Sequence[float]] = []
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
                if sum(run.wait() for run in runs):  # all of them are waited for
                    sys.exit("a run has failed")
                times.append(time.perf_counter() - started)
        pairs.append(times)
        print(f"{times[0]:.1f} and {times[1]:.1f} s", flush=True)
    ratio = statistics.median(four / one for one, four in pairs)
    rows = [Row("four small runs at once, 10 epochs each", "one", 1.6, ratio, note=f"{pairs[-1][1]:.0f} s")]
    print(rows[0].line(), flush=True)
    return rows


def main(chosen: Sequence[str]) -> None:
    """Measure, print, and write the page."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU here. `try=cpu` tries the script without one.")
    quieten()
    for name in chosen:
        rows = globals()[name]()
        if not TRY:
            publish(f"GPU: {name}", rows, DEVICE)


if __name__ == "__main__":
    given = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    wanted = given.get("only", ",".join(SECTIONS)).split(",")
    if not given.keys() <= {"try", "only"} or not set(wanted) <= set(SECTIONS):
        sys.exit(__doc__)
    main(wanted)
