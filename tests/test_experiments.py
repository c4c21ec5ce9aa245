"""Every recipe of conf/experiment/ trains, on phantoms in the layout of its dataset."""

import runpy

import pytest
import torch
from hydra import compose, initialize_config_dir

from conftest import ROOT, TINY
from raremask.runfolder import read_status
from raremask.tables import read_table

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
LAYOUTS = {  # of a dataset: its layout, and its folder below data_dir
    "course": ("course", "Dataset"),
    "cvc": ("cvc", "CVC-ClinicDB"),
    "drive": ("drive", "DRIVE"),
    "isic2018": ("isic2018", "ISIC2018"),
    "nerve": ("nerve", "ultrasound-nerve-segmentation"),
    "sparse": ("folder", "sparse"),
}
SMALL = (
    "dataset.size=[64,48]",
    "dataset.batch_size=2",
    "dataset.draws=1",
    "dataset.workers=0",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "+trainer.limit_train_batches=2",
    "selection.views=[none]",
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder with phantoms in every layout."""
    root = tmp_path_factory.mktemp("data")
    export = runpy.run_path(str(ROOT / "scripts" / "export_phantom.py"))["export"]
    for layout, folder in LAYOUTS.values():
        export([f"layout={layout}", f"out={root / folder}", "images=20", "size=[64,48]"])
    return root


@pytest.mark.filterwarnings("ignore:.*the full dataset has", "ignore:split.by=image puts")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_recipe_trains_and_is_scored(train_anything, data_dir, name):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [f"experiment={name}", "folder=none"])
    small = list(SMALL)
    if "phantom" in cfg.dataset._target_:
        small = [*TINY[:3], *small]
    small += ["model.encoder_weights=null"] if "encoder_weights" in cfg.model else ["model.base=4", "model.levels=2"]
    if cfg.split.fold is not None:
        small.append("split.folds=5")
    if "switch" in cfg.callbacks:
        small.append("callbacks.switch.epoch=1")
    if "foreground_crop" in cfg.augment.steps:
        small += [f"augment.steps.foreground_crop.{side}=32" for side in ("height", "width")]

    folder = train_anything(f"experiment={name}", f"data_dir={data_dir}", "leaks=ignore", *small)

    assert read_status(folder)["state"] == "done"
    rows = read_table(folder / "metrics.csv")
    assert [row["epoch"] for row in rows] == [0, 1]
    assert [row.get("optim/stage") for row in rows] == ([1, 2] if "switch" in cfg.callbacks else [None, None])
    assert ("dice_fov" in read_table(folder / "per_image_test.csv")[0]) == (".drive." in cfg.dataset._target_)
    watching = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["callbacks"]
    assert any(cfg.monitor in name for name in watching if name.startswith("RunCheckpoint"))
