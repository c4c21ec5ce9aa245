"""What the scripts write is read back, and what they refuse is tried."""

import importlib.util
import zipfile
from types import ModuleType

import numpy as np
import pytest

from conftest import ROOT, saved
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
    "isic2018": (ISIC2018, 24, "lesion", 10),
    "nerve": (Nerve, 21, "ultrasound", 0),  # three have no mask
    "course": (Course, 21, "lesion", 10),
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
    assert said.startswith(f"24 phantoms ({kind}, 64x48) in {tmp_path}, laid out as {layout}\nTry: python src/train.py")
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
        (["layout=cvc", "image=3"], r"Key 'image' is not in struct. Did you mean images\? Settings: layout, out"),
        (["layout=cvc"], "Missing mandatory value: out"),
        (["layout=cvc", "out=x", "images=700"], "from 4 to 612; got 700"),
        (["layout=isic2018", "out=x", "images=9"], "from 10 to 1000000; got 9"),
        (["layout=drive", "out=x", "images=0"], "whole number from 4 to 1000000; got 0"),
        (["layout=drive", "out=x", "images=abc"], "got 'abc'"),
        (["layout=drive", "out=x", "size=48"], r"size must be \[height,width\] in pixels; got 48"),
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


# --- prepare ----------------------------------------------------------------------------------------------------------


def archive_of(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{prefix}{file.relative_to(folder).as_posix()}")
    return path


SIZES = {"cvc": (288, 384), "drive": (584, 565), "isic2018": (64, 48), "nerve": (420, 580), "course": (64, 48)}


@pytest.mark.parametrize("layout", SIZES)
def test_a_download_is_unpacked_checked_and_put_where_training_looks(tmp_path, monkeypatch, layout):
    height, width = SIZES[layout]
    export = script("export_phantom").export
    export([f"layout={layout}", f"out={tmp_path / 'made'}", "images=20", f"size=[{height},{width}]"])
    archive = archive_of(tmp_path / "made", tmp_path / "download.zip", prefix="Top Folder/Deeper/")
    monkeypatch.setenv("RAREMASK_DATA", str(tmp_path / "data"))
    prepare = script("prepare")
    said = prepare.prepare(layout, [archive], None)
    out = tmp_path / "data" / prepare.DOWNLOADS[layout].folder
    number = {"nerve": 18, "course": 18}.get(layout, 20)
    assert said.startswith(f"{out}: {number} images with masks (")
    assert "Differs from the full dataset: " in said  # there are only 20
    assert "Terms: " in said
    assert [path.name for path in (tmp_path / "data").iterdir()] == [out.name]  # no scratch is left
    files = {path.relative_to(tmp_path / "made") for path in (tmp_path / "made").rglob("*")}
    assert files == {path.relative_to(out) for path in out.rglob("*")}


def test_a_dataset_in_several_archives_is_put_together(tmp_path):
    script("export_phantom").export(["layout=isic2018", f"out={tmp_path / 'made'}", "images=20", "size=[64,48]"])
    archives = [
        archive_of(folder, tmp_path / f"{folder.name}.zip", prefix=f"{folder.name}/")
        for folder in sorted((tmp_path / "made").iterdir())
    ]
    assert len(archives) == 6
    said = script("prepare").prepare("isic2018", archives, tmp_path / "out")
    assert "20 images with masks (16 train, 2 val, 2 test)" in said


def test_what_differs_from_the_full_dataset_is_said(tmp_path):
    script("export_phantom").export(["layout=cvc", f"out={tmp_path / 'made'}", "images=20", "size=[64,48]"])
    said = script("prepare").prepare("cvc", [archive_of(tmp_path / "made", tmp_path / "a.zip")], tmp_path / "out")
    assert "has 20 images; the full dataset has 612 there" in said
    assert "images have 48x64 (20) pixels; all should have 384x288" in said


def test_a_download_that_cannot_be_used_leaves_nothing_behind(tmp_path):
    script("export_phantom").export(["layout=course", f"out={tmp_path / 'made'}", "images=20", "size=[64,48]"])
    masks = sorted((tmp_path / "made" / "Train" / "Mask").iterdir())
    masks[0].unlink()
    saved(masks[1], np.full((64, 48), 7, np.uint8))
    archive = archive_of(tmp_path / "made", tmp_path / "a.zip")
    prepare = script("prepare")
    with pytest.raises(BadInput) as error:
        prepare.prepare("course", [archive], tmp_path / "out")
    assert "2 of 18 images cannot be used" in str(error.value)
    assert f"{masks[0].name}: no such file" in str(error.value)
    assert f"{masks[1].name}: the brightest value is 7" in str(error.value)
    saved(masks[1], np.zeros((64, 48), np.uint8))
    masks[0].with_suffix(".png").write_bytes(masks[1].read_bytes())
    (tmp_path / "made" / "Test" / "Image" / "ISIC_0000006.jpg").write_text("no image")
    archive = archive_of(tmp_path / "made", tmp_path / "a.zip")
    with pytest.raises(BadInput, match=r"ISIC_0000006.jpg: is no PNG"):
        prepare.prepare("course", [archive], tmp_path / "out")
    with pytest.raises(BadInput, match="no folder PNG or Original in the archive; it begins with Test, Test/Image"):
        prepare.prepare("cvc", [archive], tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as outer:
        outer.write(archive, "inner.zip")
    with pytest.raises(BadInput, match=r"It holds archives \(inner.zip\): unpack it, and give those"):
        prepare.prepare("cvc", [tmp_path / "outer.zip"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "made", "outer.zip"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="is not empty; nothing was written"):
        prepare.prepare("cvc", [archive], tmp_path / "out")


def test_the_real_drive_passes_as_complete(real_data, tmp_path):
    archive = archive_of(real_data("DRIVE"), tmp_path / "DRIVE.zip", prefix="DRIVE/")
    said = script("prepare").prepare("drive", [archive], tmp_path / "out")
    assert said.startswith(f"{tmp_path / 'out'}: 40 images with masks (16 train, 4 val, 20 test), each read.\nTerms")


# --- check_submission -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "wrong", "words"),
    [
        ("1 4", True, "8 of 8 masks are white"),
        ("", True, "8 of 8 masks are empty"),
        ("1 3", True, "all 8 masks have the same area"),
    ],
)
def test_a_collapsed_submission_is_named(tmp_path, cell, wrong, words):
    for name in ("mine", "sample"):
        (tmp_path / f"{name}.csv").write_text("img,pixels\n" + "".join(f"{index},{cell}\n" for index in range(8)))
    report = script("check_submission").report
    text, found = report(tmp_path / "mine.csv", tmp_path / "sample.csv", "nerve", (2, 2))
    assert found == wrong
    assert words in text


def test_a_good_submission_passes_and_says_so(tmp_path):
    rows = "".join(f"{index},{'' if index % 2 else f'{index + 1} 2'}\n" for index in range(8))
    (tmp_path / "mine.csv").write_text("img,pixels\n" + rows.replace("0,1 2", "0,1 1"))
    (tmp_path / "sample.csv").write_text("img,pixels\n" + rows)
    report = script("check_submission").report
    text, wrong = report(tmp_path / "mine.csv", tmp_path / "sample.csv", "nerve", (4, 4))
    assert not wrong
    assert text.startswith("8 masks read: 50% empty, 0% white, mean 5.47% foreground")
    assert text.endswith("nothing is wrong with it")
    text, wrong = report(tmp_path / "mine.csv", tmp_path / "sample.csv", "nerve", (4, 4), ["start=0", "order=rows"])
    assert not wrong  # the last run then ends at the last pixel but one
    for change in ("start=7", "begin=0"):
        with pytest.raises(BadInput, match=f"--style {change}: "):
            report(tmp_path / "mine.csv", tmp_path / "sample.csv", "nerve", (4, 4), [change])
    text, _ = report(tmp_path / "mine.csv", tmp_path / "sample.csv", "nerve", None)
    assert "no --size was given: neither the last pixel nor shares were looked at" in text
