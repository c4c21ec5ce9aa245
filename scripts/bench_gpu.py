"""Measure how fast raremask trains on a GPU beside the same step fed from the GPU's own memory.

    python scripts/bench_gpu.py [only=training,step]  # on a machine with a GPU; writes into docs/performance.md
    python scripts/bench_gpu.py try=cpu               # with small sizes on the CPU, printed only: does the script work?

Sections: training, gaps, loss, thesis, sweep, waits, step; the first took two minutes on an H200. Each row is written
when it is measured, also into the folder that $OUT names, and a section that fails leaves the others alone. Needs no
data and no network: phantoms, and smp's U-Net with ResNet-34 without pretrained weights. Every figure is the ratio of
two things measured in turn in one run, the median of several. Where the package is not installed, PYTHONPATH must be
absolute.
"""

import copy
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from bench import GPU, PAGE, ROOT, Row, composed, publish, scratch, trained
from hydra.utils import instantiate
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raremask.data.base import ImageMaskData
from raremask.module import Segmenter
from raremask.terminal import quieten

TRY = "try=cpu" in sys.argv
DEVICE = torch.device("cpu" if TRY else "cuda")
RESNET = ("model=unet_resnet34", "model.encoder_weights=null", *(["model.encoder=mobilenet_v2"] if TRY else []))
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


def training() -> Iterator[Row]:
    """Epochs of train.py beside the same number of steps fed from the GPU's memory."""
    cases = [(256, 64, 200, 8, "flips"), (512, 32, 100, 12, "photo")]
    if TRY:
        cases = [(32, 2, 4, 0, "flips"), (64, 2, 4, 2, "photo")]
    images, epochs = (8, 3) if TRY else (320, 5)
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
        yield Row(what, "the same step fed from the GPU", 0.95, ratio, True, note)


class Trace(Callback):
    """Notes what GPU and host do in some steps in the middle of the second epoch.

    Args:
        first: Number of the first of them.
        number: How many.
    """

    def __init__(self, first: int, number: int):
        self.first, self.last, self.events = first, first + number - 1, []
        self.profile = torch.profiler.profile()  # of all devices that there are

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        """Begin."""
        if trainer.current_epoch == 1 and index == self.first:
            self.profile.__enter__()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """End."""
        if trainer.current_epoch == 1 and index == self.last:
            wait()
            self.profile.__exit__(None, None, None)
            self.events = sorted(self.profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())


def gaps() -> Iterator[Row]:
    """How much of a training the GPU works, and what the host does in the longest pauses."""
    cases = [(32, 2, 2, "flips")] if TRY else [(256, 64, 8, "flips"), (512, 32, 12, "photo")]
    for size, batch, workers, augment in cases:
        first, number = (2, 2) if TRY else (40, 12)
        trace = Trace(first, number)
        with scratch() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in `training`
            data = (f"dataset.size=[{size},{size}]", f"dataset.batch_size={batch}", f"dataset.workers={workers}")
            data += ("dataset.train=320", f"dataset.draws={1 if TRY else batch // 4}", f"augment={augment}")
            limits = ("trainer.max_epochs=2", f"+trainer.limit_train_batches={4 if TRY else 60}")
            cfg = settings(folder, *RESNET, *data, *limits, "loss=bce_dice")
            trained(cfg, lambda module, data: None, trace)
        host = [event for event in trace.events if event.device_type() == torch.profiler.DeviceType.CPU]
        work = [event for event in trace.events if event.device_type() != torch.profiler.DeviceType.CPU]
        work = work or [event for event in host if "convolution" in event.name()]  # something to try the script with
        ends, pauses, busy = work[0].start_ns(), [], 0
        for event in work:
            start, end = event.start_ns(), event.start_ns() + event.duration_ns()
            if start > ends:
                pauses.append((start - ends, ends, start, event.name()))
            busy, ends = busy + max(0, end - max(start, ends)), max(ends, end)
        for length, since, until, name in sorted(pauses, reverse=True)[:5]:
            doing = [event for event in host if event.start_ns() < until and event.end_ns() > since]
            doing.sort(key=lambda event: min(event.end_ns(), until) - max(event.start_ns(), since), reverse=True)
            print(f"{length / 1e6:.2f} ms before {name[:40]}: {', '.join(event.name()[:40] for event in doing[:8])}")
        share = busy / (ends - work[0].start_ns())
        note = f"{sum(length for length, *_ in pauses if length > 20_000) / 1e6:.1f} ms of pauses in {number} steps"
        what = f"share of the time in which the GPU works, {batch} images {size}x{size}, augment={augment}"
        yield Row(f"{what}, traced", "all of it", 0.95, share, True, note)


def step() -> Iterator[Row]:
    """What each setting gains for U-Net/ResNet-34, the peak of memory, and the share of the matrix rate it reaches."""
    for size, batch in [(32, 2)] if TRY else [(256, 64), (512, 32)]:
        yield from steps("U-Net/ResNet-34", RESNET, size, batch, ("contiguous", "float32", "compiled"))


def thesis() -> Iterator[Row]:
    """The thesis' U-Net in the layout of its tensors that train.py takes, and in the other."""
    for norm in ("instance", "batch"):
        network = ("model=unet", f"model.base={4 if TRY else 64}", f"model.norm={norm}")
        size, batch = (32, 2) if TRY else (256, 16)
        yield from steps(f"U-Net, base 64, norm={norm}", network, size, batch, ("channels_last",))


def steps(model: str, network: Sequence[str], size: int, batch: int, names: Sequence[str]) -> Iterator[Row]:
    """A step of a network as train.py does it, and with each of some settings changed.

    Args:
        model: What it is called.
        network: Its overrides.
        size: Height and width of an image.
        batch: Images.
        names: `channels_last`, `contiguous`, `float32`, `compiled`.
    """
    rate = matrix_rate()
    with scratch() as folder:
        cfg = settings(folder, *network, "loss=bce_dice")
        net, loss = instantiate(cfg.model), instantiate(cfg.loss).to(DEVICE)
    image, mask = batch_of(batch, size)
    with FlopCounterMode(display=False) as counter:
        loss(net(image[:1].cpu()), mask[:1].cpu()).backward()
    work = counter.get_total_flops() * batch
    layouts = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    usual = "channels_last" if network == RESNET else "contiguous"  # EncoderDecoder is channels_last itself
    base = 0.0
    for name in (FIRST, *names):
        layout = layouts.get(name, layouts[usual])
        mine = copy.deepcopy(net).to(DEVICE, memory_format=layout).train()
        picture = image.contiguous(memory_format=layout)
        if name == "compiled":
            torch._dynamo.reset()  # or the second size would be compiled for any
            mine.compile(backend="aot_eager" if TRY else "inductor", dynamic=False)
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        one = stepper(mine, loss, picture, mask, half=name != "float32")
        one()
        wait()
        begun = time.perf_counter() - started
        seconds = timed(one)
        base = base or seconds
        peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0
        note = f"{1000 * seconds:.1f} ms, {peak:.1f} GiB, {work / seconds / rate:.0%} of the measured bf16 rate"
        note += f", the first step {begun:.0f} s" if name == "compiled" else ""
        yield Row(f"a step of {model}, {batch} images {size}x{size}: {name}", FIRST, None, seconds / base, note=note)
        del mine, one


def matrix_rate() -> float:
    """Operations a second of a large product of matrices in bf16: what this device reaches at best."""
    side = 256 if TRY else 8192
    one = torch.rand(side, side, device=DEVICE, dtype=torch.float32 if TRY else torch.bfloat16)
    return 2 * side**3 / timed(lambda: one @ one)


def loss() -> Iterator[Row]:
    """The time of losses alone, forward and backward, beside BCE's: as called, and on the GPU without the host."""
    for images, size in ((2, 32),) if TRY else ((64, 256), (32, 512)):
        logits = torch.randn(images, 1, size, size, device=DEVICE, requires_grad=True)
        _, mask = batch_of(images, size)
        calls = {}
        with scratch() as folder:
            for name in ("bce", *LOSSES, "bce_dice", "dice_surface", "hausdorff_dt"):
                one = instantiate(settings(folder, f"loss={name}").loss).to(DEVICE)
                calls[name] = lambda one=one, logits=logits, mask=mask: torch.autograd.grad(one(logits, mask), logits)
        for way, prepare in (("as called", lambda call: call), ("as a CUDA graph", graph)):
            bce = prepare(calls["bce"])
            for name in list(calls)[1:]:
                its = prepare(calls[name])
                pairs = [(timed(its, 1), timed(bce, 1)) for _ in range(5)]
                ratio = statistics.median(one / other for one, other in pairs)
                note = " and ".join(f"{1000 * statistics.median(times):.2f} ms" for times in zip(*pairs, strict=True))
                yield Row(f"{name}, {images} images {size}x{size}, {way}", "bce", 3.0, ratio, note=note)


def graph(call: Callable[[], Any]) -> Callable[[], Any]:
    """Record what a call does on the GPU, to be done again without the host; on the CPU the call itself."""
    if DEVICE.type != "cuda":
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        call()
    return recorded.replay


def waits() -> Iterator[Row]:
    """How often a step of train.py waits for the GPU without need: PyTorch says so itself."""
    if DEVICE.type != "cuda":
        return
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
            found = [one for one in said if "called a synchronizing" in str(one.message)]
            counts.append(len(found))
        places = sorted({f"{Path(one.filename).name}:{one.lineno}" for one in found})
        added = (counts[1] - counts[0]) / 40  # steps of 8 images
        note = f"{counts[0]} and {counts[1]} in runs of 40 and 80 steps"
        print(choice, *places, flush=True)
        yield Row(f"waits for the GPU that a step adds, {choice}", "none", 0.05, added, note=note)


def sweep() -> Iterator[Row]:
    """Four small runs at once beside one, after one that is not counted."""
    command = [sys.executable, "src/train.py", "dataset=phantom", "leaks=ignore", "selection.views=[none]"]
    command += ["dataset.train=16", "trainer.max_epochs=1", "trainer=cpu"] if TRY else ["trainer.max_epochs=20"]

    def seconds(number: int) -> float:
        with scratch() as folder:
            started = time.perf_counter()
            runs = [
                subprocess.Popen(
                    [*command, f"seed={one}", f"hydra.run.dir={folder}/{one}"],
                    cwd=ROOT,
                    env=os.environ | {"OMP_NUM_THREADS": "4"},
                    stdout=subprocess.DEVNULL,
                )
                for one in range(number)
            ]
            if sum(run.wait(timeout=200) for run in runs):  # all of them are waited for
                raise RuntimeError("a run has failed")
            return time.perf_counter() - started

    if not TRY:
        seconds(1)
    pairs = [(seconds(1), seconds(4)) for _ in range(1 if TRY else 2)]
    ratio = statistics.median(four / one for one, four in pairs)
    note = ", ".join(f"{four:.0f} and {one:.0f} s" for one, four in pairs)
    yield Row("four small runs at once, 20 epochs each", "one", 1.6, ratio, note=note)


def main(chosen: Sequence[str]) -> None:
    """Measure, print, and write the page."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU here. `try=cpu` tries the script without one.")
    quieten()
    for name in chosen:
        rows = []
        try:
            for row in globals()[name]():
                rows.append(row)
                print(row.line(), flush=True)
                if TRY:
                    continue
                publish(f"GPU: {name}", rows, DEVICE)
                if out := os.environ.get("OUT"):
                    shutil.copy(PAGE, out)
        except Exception:  # what was measured is written; the next section may work
            traceback.print_exc()


if __name__ == "__main__":
    given = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    wanted = given.get("only", ",".join(GPU)).split(",")
    if not given.keys() <= {"try", "only"} or not set(wanted) <= set(GPU):
        sys.exit(__doc__)
    main(wanted)
