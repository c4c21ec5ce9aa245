"""Time every score of an image, and Hausdorff distance and surface Dice beside MONAI's: writes docs/bench_metrics.md.

    python scripts/bench_metrics.py

Pairs of 512 x 512 masks like those of the datasets, one core, medians; ratios of two things timed in turn in one run.
"""

import os
import statistics
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from raremask.data.phantom import Phantom
from raremask.metrics.calibration import average_precision, calibration_scores, histogram
from raremask.metrics.image import score_image
from raremask.metrics.objects import centreline_dice, detection_scores
from raremask.metrics.surface import boundary_iou, surface_scores

ROOT = Path(__file__).parents[1]
ROUNDS = 11


def median(call: Callable[[], object]) -> float:
    """Milliseconds of a call, median of several."""
    call()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def example(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability, prediction and truth of a phantom: the truth, moved by a few pixels and blurred."""
    data = Phantom(kind, empty=0.0, train=1, val=0, test=0, size=(512, 512), channels=1, batch_size=1)
    _, mask, _ = data.arrays(data.records()[0])
    probability = cv2.GaussianBlur(np.roll(mask, (4, -3), axis=(0, 1)).astype(np.float32), (0, 0), 3)
    return probability, probability > 0.4, mask


def theirs(prediction: np.ndarray, mask: np.ndarray) -> None:
    """MONAI's two calls."""
    pair = [torch.from_numpy(half)[None, None] for half in (prediction, mask)]
    compute_hausdorff_distance(*pair, include_background=True, percentile=95)
    compute_surface_dice(*pair, class_thresholds=[2.0], include_background=True)


def main() -> None:
    """Write the table and print it."""
    warnings.simplefilter("ignore")  # MONAI's own
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    lines = [
        "# What scores cost",
        "",
        f"Written by `scripts/bench_metrics.py` on {date.today()}, one of {os.cpu_count()} cores: milliseconds for a "
        f"pair of 512 x 512 masks, medians of {ROUNDS}. The last two columns: Hausdorff distance and surface Dice as "
        "MONAI computes them, and that time divided by ours.",
        "",
        "| phantom | all | surface | boundary IoU | objects | centreline | ranking, calibration | MONAI | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in ("polyp", "vessel", "speck", "lesion", "ultrasound"):
        probability, prediction, mask = example(kind)

        def ranked(probability: np.ndarray = probability, mask: np.ndarray = mask) -> None:
            counted = histogram(probability, mask)
            average_precision(counted), calibration_scores(counted)

        pair = (prediction, mask)
        cells = [
            median(lambda: score_image(probability, *pair)),  # noqa: B023  called at once
            median(lambda: surface_scores(*pair)),  # noqa: B023
            median(lambda: boundary_iou(*pair)),  # noqa: B023
            median(lambda: detection_scores(*pair)),  # noqa: B023
            median(lambda: centreline_dice(*pair)),  # noqa: B023
            median(ranked),
            median(lambda: theirs(*pair)),  # noqa: B023
        ]
        lines.append(f"| {kind} | {' | '.join(f'{cell:.1f}' for cell in cells)} | {cells[-1] / cells[1]:.1f} |")
        print(lines[-1], flush=True)
    (ROOT / "docs" / "bench_metrics.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
