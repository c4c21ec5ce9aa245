"""What predict, describe and compare do; training, evaluation and tuning have rooms of their own."""

import os
from pathlib import Path

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from raremask import BadInput, description, shipped
from raremask.building import build_data, load_config, network
from raremask.commandline import folders_of, runs_of
from raremask.compare import report
from raremask.compare.results import Run
from raremask.figures import Paint
from raremask.prediction import painter, predict_files
from raremask.terminal import quieten


def describe(cfg: DictConfig) -> None:
    """Print what a dataset is like, and write it as Markdown, JSON, CSV and pictures.

    Args:
        cfg: The composed `conf/describe.yaml`.
    """
    name = HydraConfig.get().runtime.choices.dataset
    if place := cfg.dataset.get("pairs") or cfg.dataset.get("images") or cfg.dataset.get("root"):
        name = f"{name}: {place}"
    description.describe(build_data(cfg), name, Path(str(cfg.folder)), cfg.empty)


def predict(cfg: DictConfig) -> int:
    """Predict masks for images that need no truth, and write them at native size.

    Args:
        cfg: The composed `conf/predict.yaml`.

    Returns:
        How many images could not be read; the others are done.

    Raises:
        BadInput: If runs do not go together, there is no image, or a file would be written over; before anything is.
    """
    quieten()
    places = [shipped.find(Path(run)) for run in runs_of(cfg.run)]
    models = [shipped.read(place) for place in places]
    nets = [network(place, model) for place, model in zip(places, models, strict=True)]
    postprocess = instantiate(cfg.postprocess) if "postprocess" in cfg else None
    paint = painter(models, nets, cfg.device, cfg.threshold, cfg.views, postprocess)
    submission = instantiate(cfg.submission) if "submission" in cfg else None
    source, out = Path(str(cfg.images)), Path(str(cfg.out))
    return predict_files(paint, source, out, cfg.probabilities, cfg.overlays, submission, cfg.overwrite)


def compare(cfg: DictConfig) -> None:
    """Compare runs, and write a report.

    Args:
        cfg: The composed `conf/compare.yaml`.

    Raises:
        BadInput: If the runs cannot be compared.
    """
    places = [Path(place) for place in folders_of(cfg.runs)]
    out = Path(str(cfg.out)) if cfg.out is not None else places[0] / "report"
    paint = Paint(**cfg.figures)
    print(report.compare(places, out, _images_of, cfg.metric, cfg.baseline, cfg.margin, cfg.draws, paint))
    print(f"\nReport: {os.path.relpath(out)}/index.html (also report.md, results.csv)\n")


def _images_of(run: Run) -> report.Look:
    """What gives the images of a run: they are read one by one, not the whole dataset."""
    cfg = load_config(run.folder).dataset
    data = instantiate(cfg, augment=None)
    records = {record.name: record for record in data.records()}

    def look(name: str) -> tuple[np.ndarray, np.ndarray]:
        if name not in records:
            raise BadInput(f"{name} is not in the dataset any more")
        return data.arrays(records[name])[:2]

    return look
