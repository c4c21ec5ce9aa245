"""What the scripts write is read back, and what they refuse is tried."""

import importlib.util
from types import ModuleType

import numpy as np
import pytest

from conftest import ROOT
from raremask import BadInput
from raremask.data.course import Course
from raremask.data.cvc import CVC
from raremask.data.drive import DRIVE
from raremask.data.folder import Folder
from raremask.data.isic2018 import ISIC2018
from raremask.data.nerve import Nerve
from raremask.data.phantom import Phantom

SMALL = {"size": (48, 64), "channels": 3, "batch_size": 4}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- export_phantom ---------------------------------------------------------------------------------------------------

READERS = {  # layout: the reader, how many of 24 images it finds, the family, and the loss of JPEG in gray values
    "cvc": (CVC, 24, "polyp", 0),
    "drive": (DRIVE, 24, "vessel", 0),
    "isic2018": (ISIC2018, 24, "lesion", 8),
    "nerve": (Nerve, 21, "ultrasound", 0),  # three have no mask
    "course": (Course, 21, "lesion", 8),
    "folder": (Folder, 24, "speck", 0),
}


def reader(layout, root, channels):
    kind = READERS[layout][0]
    where = (
        {"images": str(root / "images"), "masks": str(root / "masks")} if layout == "folder" else {"root": str(root)}
    )
    return kind(**where, **SMALL | {"channels": channels})


@pytest.mark.filterwarnings("ignore:.*the full dataset has")
@pytest.mark.parametrize("layout", READERS)
def test_an_exported_layout_is_read_back_as_it_was_drawn(tmp_path, layout):
    _, number, kind, loss = READERS[layout]
    channels = 1 if layout == "nerve" else 3
    export = script("export_phantom").export
    said = export([f"layout={layout}", f"out={tmp_path}", "images=24", "size=[48,64]", "seed=5"])
    assert said == f"24 phantoms ({kind}, 64x48) in {tmp_path}, laid out as {layout}"
    source = Phantom(kind, train=24, val=0, test=0, data_seed=5, **SMALL | {"channels": channels})
    drawn = [source.arrays(record) for record in source.records()]
    data = reader(layout, tmp_path, channels)
    found = set()
    for record in data.records():
        image, mask, valid = data.arrays(record)
        inside = np.ones(mask.shape, bool) if valid is None else valid
        apart = [np.abs(image[inside].astype(int) - original[inside]).mean() for original, _, _ in drawn]
        nearest = int(np.argmin(apart))
        assert apart[nearest] <= loss
        assert np.array_equal(mask, drawn[nearest][1] & inside)
        found.add(nearest)
    assert len(found) == number
    data.setup()
    assert sum(len(pictures) for pictures in data.splits.values()) == number


def test_the_run_lengths_of_an_exported_nerve_say_the_same_as_its_masks(tmp_path):
    script("export_phantom").export(["layout=nerve", f"out={tmp_path}", "images=24", "size=[48,64]"])
    data = reader("nerve", tmp_path, 1)
    with pytest.warns(UserWarning, match="5635"):
        of_files = {record.name: data.arrays(record)[1] for record in data.records()}
    for path in (tmp_path / "train").glob("*_mask.tif"):
        path.unlink()
    with pytest.warns(UserWarning, match="5635"):
        of_runs = {record.name: data.arrays(record)[1] for record in data.records()}
    assert of_files.keys() == of_runs.keys()
    assert all(np.array_equal(of_files[name], of_runs[name]) for name in of_files)
    assert 0 < sum(mask.any() for mask in of_runs.values()) < len(of_runs)  # some are empty


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layout=cvcc", "out=x"], "layout must be one of cvc, drive, .*; got 'cvcc'"),
        (["layout=cvc", "image=3"], "Key 'image' is not in struct. Settings: layout, out, images"),
        (["layout=cvc"], "Missing mandatory value: out"),
    ],
)
def test_a_wrong_export_is_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        script("export_phantom").export(arguments)


def test_an_export_writes_over_nothing(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="is not empty; nothing was written"):
        script("export_phantom").export(["layout=cvc", f"out={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
