"""Time every loss against BCE: `python scripts/bench_losses.py`; writes docs/bench_losses.md.

Forward and backward of 8 x 1 x 288 x 384, as a ratio to BCE's in the same run, medians over the rounds; on the CPU and,
where there is one, on the GPU. Beside them the plain forms that some of ours are measured against.
"""

import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy import ndimage
from segmentation_models_pytorch.losses import LovaszLoss
from torch import Tensor

from raremask.losses.topology import ClDice

ROOT = Path(__file__).parents[1]
ROUNDS = 9
#: The time beside BCE's that was to be reached on two CPU cores.
TARGETS = {
    "boundary_gaussian": 2.5,
    "boundary_dou": 4.0,
    "dynamit": 1.3,
    "dice": 1.6,
    "tversky": 1.6,
    "focal": 1.6,
    "lovasz": 10.0,
    "hausdorff_dt": 8.0,
}


def configured() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return every loss of conf/loss; `auto` becomes the 13.6 of CVC-ClinicDB's foreground of 6.8 %, or 3 erosions."""
    losses = {}
    for path in sorted((ROOT / "conf" / "loss").glob("*.yaml")):
        text = (
            path.read_text()
            .replace("pos_weight: auto", "pos_weight: 13.6")
            .replace("iterations: auto", "iterations: 3")
        )
        losses[path.stem] = instantiate(OmegaConf.create(text))
    return losses


def plain_cldice(logits: Tensor, mask: Tensor, iterations: int = 3) -> Tensor:
    """The centreline Dice with each erosion computed as often as algorithm 1 writes it."""

    def eroded(image: Tensor) -> Tensor:
        return torch.minimum(
            -F.max_pool2d(-image, (3, 1), 1, (1, 0)),
            -F.max_pool2d(-image, (1, 3), 1, (0, 1)),
        )

    def opened(image: Tensor) -> Tensor:
        return F.max_pool2d(eroded(image), 3, 1, 1)

    def skeleton(image: Tensor) -> Tensor:
        found = F.relu(image - opened(image))
        for _ in range(iterations):
            image = eroded(image)
            lost = F.relu(image - opened(image))
            found = found + F.relu(lost - found * lost)
        return found

    probability = torch.sigmoid(logits)
    of_probability, of_mask = skeleton(probability), skeleton(mask)
    precision = ((of_probability * mask).sum() + 1) / (of_probability.sum() + 1)
    recall = ((of_mask * probability).sum() + 1) / (of_mask.sum() + 1)
    return 1 - 2 * precision * recall / (precision + recall)


def plain_boundary_gaussian(logits: Tensor, mask: Tensor, sigma: float = 2.0) -> Tensor:
    """Boundary-Gaussian with SciPy's distance transform and clamped probabilities."""
    distance = np.stack([ndimage.distance_transform_edt(1 - image) for image in mask[:, 0].cpu().numpy()])
    near = torch.from_numpy(np.exp(-(distance**2) / (2 * sigma**2))).to(mask)[:, None]
    foreground = mask.sum()
    background = mask.numel() - foreground
    probability = torch.sigmoid(logits).clamp(1e-7, 1 - 1e-7)
    rare = (background / foreground).clamp(max=1) * mask * -probability.log()
    common = (foreground / background + near).clamp(max=1) * (1 - mask) * -(1 - probability).log()
    return (rare + common).mean()


def plain_hausdorff(logits: Tensor, mask: Tensor) -> Tensor:
    """Hausdorff-DT with SciPy's distance transform, as it is usually published."""
    probability = torch.sigmoid(logits)
    far = torch.zeros_like(mask)
    for of in (probability.detach(), mask):
        for image, out in zip((of[:, 0] > 0.5).cpu().numpy(), far[:, 0], strict=True):
            distance = ndimage.distance_transform_edt(image) + ndimage.distance_transform_edt(~image)
            out += torch.from_numpy(distance**2).to(mask)
    return ((probability - mask).square() * far).mean()


def batch(device: str) -> tuple[Tensor, Tensor]:
    """Random logits, and discs of 3 to 12 % of the image."""
    logits = torch.randn(8, 1, 288, 384, generator=torch.Generator().manual_seed(0))
    y, x = np.mgrid[:288, :384]
    discs = [(y - 140 - 5 * k) ** 2 + (x - 180 + 9 * k) ** 2 < (32 + 5 * k) ** 2 for k in range(8)]
    return logits.to(device), torch.from_numpy(np.stack(discs)[:, None]).float().to(device)


def seconds(loss: Callable, logits: Tensor, mask: Tensor) -> float:
    """Time one forward and backward."""
    logits = logits.clone().requires_grad_()
    if logits.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    loss(logits, mask).backward()
    if logits.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratios(losses: dict[str, Callable], device: str) -> tuple[float, dict[str, float]]:
    """Return the milliseconds of BCE, and every loss as a ratio to it."""
    logits, mask = batch(device)
    losses = {name: loss.to(device) if isinstance(loss, torch.nn.Module) else loss for name, loss in losses.items()}
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(ROUNDS):
        for name, loss in losses.items():
            seconds(loss, logits, mask)  # once to bring the allocator into its stride, which the last loss has left
            times[name].append(min(seconds(loss, logits, mask) for _ in range(2)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return 1e3 * medians["bce"], {name: value / medians["bce"] for name, value in medians.items()}


def device_name(device: str) -> str:
    """Say what was measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{torch.get_num_threads()} threads of {model}"


def main() -> None:
    """Measure and write the table."""
    ours = configured() | {"(cldice without Dice)": ClDice(iterations=3)}
    plain = {
        "(cldice without Dice)": plain_cldice,
        "boundary_gaussian": plain_boundary_gaussian,
        "hausdorff_dt": plain_hausdorff,
        "lovasz": LovaszLoss(mode="binary", from_logits=True),
    }
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    measured = {}
    for device in devices:
        measured[device] = ratios(ours | {f"plain {name}": loss for name, loss in plain.items()}, device)
    lines = [
        "# What the losses cost",
        "",
        f"Written by `scripts/bench_losses.py` on {date.today()} with PyTorch {torch.__version__}. Forward and",
        f"backward of 8 x 1 x 288 x 384, median of {ROUNDS} rounds in one run: as a ratio to BCE, in milliseconds, and",
        "as a share of the time of the plain form (SciPy's distance transforms, clDice as algorithm 1 writes it, the",
        "Lovász loss of segmentation-models-pytorch).",
        "",
        *(f"- {device}: {device_name(device)}; BCE takes {measured[device][0]:.2f} ms" for device in devices),
        *(
            ["- GPU: not in this run; six losses on an H200: [performance](performance.md#gpu-loss)"]
            * (len(devices) == 1)
        ),
        "",
        "BCE's own time moves: on one and the same machine PyTorch's log1p, and so BCE, has been seen to take 1 ms in",
        "some processes and 6 ms and more in others, and every ratio moves with it. The share of the plain form does",
        "not. The targets were set where boundary_gaussian with SciPy took 7.5 times BCE.",
        "",
        f"| loss | {' | '.join(f'{device}: x BCE | ms | of plain' for device in devices)} | target x BCE |",
        f"|---|{'---|---|---|' * len(devices)}---|",
    ]
    for name in ours:
        cells = []
        for bce, ratio in measured.values():
            share = f"{ratio[name] / ratio[f'plain {name}']:.2f}" if name in plain else ""
            cells += [f"{ratio[name]:.2f}", f"{bce * ratio[name]:.1f}", share]
        target = f"{TARGETS[name]:.1f}" if name in TARGETS else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {target} |")
    scipy = measured["cpu"][1]["plain boundary_gaussian"]
    lines += ["", f"boundary_gaussian with SciPy took {scipy:.1f} times BCE in this run."]
    text = "\n".join(lines) + "\n"
    (ROOT / "docs" / "bench_losses.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
