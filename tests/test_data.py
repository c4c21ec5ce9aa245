import itertools
import json
import shutil
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from lightning.fabric.utilities import move_data_to_device
from omegaconf import OmegaConf
from torch.utils.data._utils.pin_memory import pin_memory

from conftest import ROOT, colour, saved, square
from raremask import BadInput, commandline  # noqa: F401  registers the resolvers
from raremask.data.augment import Augment
from raremask.data.course import Course
from raremask.data.cvc import CVC, LAST_FRAMES, sequence
from raremask.data.drive import DRIVE
from raremask.data.fitting import fit, fit_mask, letterbox
from raremask.data.folder import Folder
from raremask.data.isic2018 import ISIC2018
from raremask.data.nerve import Nerve
from raremask.data.phantom import KINDS, Phantom
from raremask.data.samples import Batch, Pictures, SeededSampler, ShareSampler
from raremask.data.splits import Split
from raremask.inference import to_native
from raremask.runlengths import RunLengths

SMALL = {"size": (32, 40), "channels": 3, "batch_size": 4}


@cache
def steps(name: str, size: tuple[int, int]) -> dict:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [f"augment={name}", f"dataset.size=[{size[0]},{size[1]}]"])
    return OmegaConf.to_container(config.augment.steps, resolve=True)


def augment(name: str, size: tuple[int, int] = SMALL["size"]) -> Augment:
    return Augment(steps(name, size))


def phantom(**changes) -> Phantom:
    data = Phantom(**{"train": 10, "val": 3, "test": 3} | SMALL | changes)
    data.setup()
    return data


# --- layouts ----------------------------------------------------------------------------------------------------------


def cvc_folder(root, suffix=".png", frames=LAST_FRAMES[:8]):
    folder = root / "PNG" if suffix == ".png" else root
    for frame in frames:
        saved(folder / "Original" / f"{frame}{suffix}", colour())
        saved(folder / "Ground Truth" / f"{frame}{suffix}", square())
    return root


def cvc(root, **changes):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = CVC(**{"root": str(root)} | SMALL | changes)
        data.setup()
    return data, [str(warning.message) for warning in caught]


def names(data):
    return {split: [picture.name for picture in pictures.pictures] for split, pictures in data.splits.items()}


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_cvc_is_read_in_both_official_layouts(tmp_path, suffix):
    data, messages = cvc(cvc_folder(tmp_path, suffix))
    assert sorted(itertools.chain(*names(data).values()), key=int) == [str(frame) for frame in LAST_FRAMES[:8]]
    assert "has 8 images; the full dataset has 612" in messages[0]
    sample = data.splits["test"][0]
    assert sample["native_mask"].sum() == 80  # the square of 8 x 10 pixels
    assert sample["size"] == (24, 30)


def test_the_29_sequences_cover_612_frames():
    lengths = np.diff([0, *LAST_FRAMES])
    assert (len(lengths), lengths.sum(), lengths.min(), lengths.max()) == (29, 612, 6, 26)
    assert [sequence(frame) for frame in (1, 25, 26, 591, 592, 612)] == [1, 1, 2, 28, 29, 29]


def test_the_sequences_equal_the_published_table(real_data):
    lines = (real_data("CVC-ClinicDB") / "sequences.csv").read_text().split()[1:]
    table = [tuple(map(int, line.split(","))) for line in lines]
    assert [(frame, sequence(frame)) for frame in range(1, 613)] == sorted(table)


def test_no_sequence_of_the_real_cvc_is_divided(real_data):
    data, messages = cvc(real_data("CVC-ClinicDB"))
    assert messages == []
    groups = [{picture.group for picture in pictures.pictures} for pictures in data.splits.values()]
    assert sum(len(pictures) for pictures in data.splits.values()) == 612
    assert sum(map(len, groups)) == len(set.union(*groups)) == 29


def test_the_random_split_has_nearly_the_sizes_of_the_thesis_and_warns(real_data):
    data, messages = cvc(real_data("CVC-ClinicDB"), split=Split(by="image"))
    assert [len(pictures) for pictures in data.splits.values()] == [391, 98, 123]  # the thesis: 392, 98, 122
    assert "near-duplicate frames" in messages[0]


def test_the_real_official_tiffs_can_be_read(real_data):
    data, _ = cvc(real_data("CVC-ClinicDB-tif-sample"), size=None)
    assert data.splits["train"][0]["image"].shape == (3, 288, 384)


def test_a_frame_with_a_foreign_name_is_refused(tmp_path):
    saved(cvc_folder(tmp_path) / "PNG" / "Original" / "polyp.png", colour())
    with pytest.raises(BadInput, match=r"frames are named 1 to 612; got polyp.png"):
        cvc(tmp_path)


def drive_folder(root):
    for part, numbers in (("training", range(21, 41)), ("test", range(1, 21))):
        for number in numbers:
            saved(root / part / "images" / f"{number:02d}_{part}.tif", colour())
            saved(root / part / "1st_manual" / f"{number:02d}_manual1.gif", square())
            saved(root / part / "mask" / f"{number:02d}_{part}_mask.gif", np.full((24, 30), 255, np.uint8))
    return root


def test_drive_divides_16_4_20_and_carries_the_field_of_view(tmp_path):
    data = DRIVE(root=str(drive_folder(tmp_path)), **SMALL)
    data.setup()
    assert [len(pictures) for pictures in data.splits.values()] == [16, 4, 20]
    assert names(data)["test"] == [f"{number:02d}_test" for number in range(1, 21)]
    sample = data.splits["test"][0]
    assert sample["native_valid"].shape == (1, 24, 30)


def test_the_real_drive_masks_the_camera_s_circle(real_data):
    data = DRIVE(root=str(real_data("DRIVE")), **SMALL | {"size": None})
    data.setup()
    sample = data.splits["test"][0]
    assert sample["size"] == (584, 565)
    assert sample["native_valid"].float().mean().item() == pytest.approx(0.69, abs=0.01)


def test_isic_takes_its_official_folders_as_splits(tmp_path):
    for part, number in (("Training", 3), ("Validation", 1), ("Test", 2)):
        for index in range(number):
            saved(tmp_path / f"ISIC2018_Task1-2_{part}_Input" / f"ISIC_{part}{index}.jpg", colour())
            mask = f"ISIC2018_Task1_{part}_GroundTruth/ISIC_{part}{index}_segmentation.png"
            saved(tmp_path / mask, square())
    data = ISIC2018(root=str(tmp_path), **SMALL)
    with pytest.warns() as caught:
        data.setup()
    messages = [str(warning.message) for warning in caught]
    assert [message.split("_Input ")[1] for message in messages] == [
        "has 3 images; the full dataset has 2594 there.",
        "has 1 images; the full dataset has 100 there.",
        "has 2 images; the full dataset has 1000 there.",
    ]
    assert [len(pictures) for pictures in data.splits.values()] == [3, 1, 2]


def test_drive_without_labels_for_its_test_set_draws_all_splits_from_the_others(tmp_path):
    shutil.rmtree(drive_folder(tmp_path) / "test" / "1st_manual")
    data = DRIVE(root=str(tmp_path), **SMALL)
    with pytest.warns(UserWarning, match="keeps the test labels to itself. All splits are drawn from the 20 training"):
        data.setup()
    assert [len(pictures) for pictures in data.splits.values()] == [12, 4, 4]
    assert all(name.endswith("_training") for found in names(data).values() for name in found)


# --- sizes ------------------------------------------------------------------------------------------------------------

sides = st.integers(1, 70)


@given(sides, sides, sides, sides)
def test_a_padded_picture_keeps_its_proportions_and_touches_two_sides(height, width, native_height, native_width):
    top, left, tall, wide = letterbox((height, width), (native_height, native_width))
    assert tall == height or wide == width
    assert 0 <= top <= height - tall
    assert 0 <= left <= width - wide
    assert abs(height - tall - 2 * top) <= 1  # in the middle
    scale = min(height / native_height, width / native_width)
    assert abs(tall - native_height * scale) <= max(0.5, 1 - native_height * scale)
    assert abs(wide - native_width * scale) <= max(0.5, 1 - native_width * scale)


@given(sides, sides, sides, sides)
def test_what_is_padded_comes_back_to_native_size_and_no_padding_with_it(height, width, native_height, native_width):
    box = letterbox((height, width), (native_height, native_width))
    top, left, tall, wide = box
    probability = torch.zeros(1, 1, height, width)
    probability[..., top : top + tall, left : left + wide] = 1
    for inside in (probability, 1 - probability):  # all foreground, and all background beside painted padding
        native = to_native(inside, (native_height, native_width), box)
        assert native.shape[-2:] == (native_height, native_width)
        torch.testing.assert_close(native, torch.full_like(native, inside[0, 0, top, left].item()))


@given(st.integers(1, 4), arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.booleans())
def test_a_mask_enlarged_by_a_whole_factor_comes_back_exactly(factor, mask, padded):
    height, width = (factor * side for side in mask.shape)
    size = (height + 5, width) if padded else (height, width)
    box = letterbox(size, mask.shape)
    top, left, tall, wide = box
    assert (tall, wide) == (height, width)
    probability = torch.zeros(1, 1, *size)
    enlarged = np.kron(mask, np.ones((factor, factor)))
    probability[..., top : top + tall, left : left + wide] = torch.from_numpy(enlarged).float()
    assert np.array_equal(to_native(probability, mask.shape, box)[0, 0].numpy() > 0.5, mask)


def test_a_padded_dataset_serves_proportions_black_around_and_native_masks(tmp_path):
    data = own(own_folder(tmp_path), size=(32, 64), resize="pad")  # pictures of 24 x 30 become 32 x 40
    sample = data.splits["test"][0]
    assert sample["box"] == (0, 12, 32, 40)
    assert sample["image"].shape == (3, 32, 64)
    assert sample["image"][..., :12].sum() == sample["image"][..., 52:].sum() == 0
    assert sample["image"][..., 12:52].min(dim=0).values.max() > 0
    assert sample["native_mask"].shape == (1, 24, 30)
    native = to_native(sample["mask"][None].float(), (24, 30), sample["box"]) > 0.5
    assert (native[0] != sample["native_mask"]).float().mean() < 0.05


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_moved_and_pinned_as_a_plain_dictionary_is(monkeypatch, workers):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.to("meta"))  # pinning needs a GPU
    data = Phantom(size=(32, 40), channels=3, batch_size=3, workers=workers, train=3, val=3, test=3)
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        assert isinstance(batch, Batch)
        plain = dict(batch)
        for move in (pin_memory, lambda one: move_data_to_device(one, torch.device("meta"))):
            moved, expected = move(batch), move(plain)
            assert isinstance(moved, Batch)
            assert moved.keys() == expected.keys()
            for key, value in expected.items():
                alike = repr(moved[key]) == repr(value)  # a tensor on "meta" says its place, its type and its size
                assert alike, (key, moved[key], value)
            assert moved["image"].device.type == moved["mask"].device.type == moved["index"].device.type == "meta"
            assert batch["image"].device.type == "cpu"


# --- other layouts ----------------------------------------------------------------------------------------------------


def course_folder(root, number=10):
    for index in range(number):
        saved(root / "Train" / "Image" / f"ISIC_{index:07d}.jpg", colour())
        saved(root / "Train" / "Mask" / f"ISIC_{index:07d}.png", square())
    return root


def test_the_course_draws_all_splits_from_its_training_folder(tmp_path):
    data = Course(root=str(course_folder(tmp_path)), **SMALL)
    with pytest.warns(UserWarning, match="has 10 images; the full dataset has 1087"):
        data.setup()
    assert {split: len(pictures) for split, pictures in data.splits.items()} == {"train": 6, "val": 2, "test": 2}
    assert len({name for found in names(data).values() for name in found}) == 10


def test_the_real_course_stand_in_has_1087_images(real_data):
    data = Course(root=str(real_data("a0-2025-standin") / "Dataset"), **SMALL)
    records = data.records()
    assert len(records) == 1087
    assert all(record.mask.is_file() for record in records)


def nerve_masks():
    """Two images of each of five subjects; the second of each is empty."""
    return {
        f"{subject}_{number}": square(42, 58) > 0 if number == 1 else np.zeros((42, 58), bool)
        for subject in range(1, 6)
        for number in (1, 2)
    }


def nerve_folder(root, as_files: bool):
    rows = ["subject,img,pixels"]
    for name, mask in nerve_masks().items():
        saved(root / "train" / f"{name}.tif", colour(42, 58)[..., 0])
        if as_files:
            saved(root / "train" / f"{name}_mask.tif", mask.astype(np.uint8) * 255)
        rows.append(f"{name.replace('_', ',')},{RunLengths().write(mask)}")
    (root / "train_masks.csv").write_text("\n".join(rows) + "\n")
    return root


def nerve(root) -> Nerve:
    data = Nerve(root=str(root), **{"size": None, "channels": 1, "batch_size": 2})
    with pytest.warns(UserWarning, match="has 10 images; the full dataset has 5635"):
        data.setup()
    return data


@pytest.mark.parametrize("as_files", [True, False])
def test_nerve_masks_are_read_from_files_or_from_run_lengths(tmp_path, as_files):
    data = nerve(nerve_folder(tmp_path, as_files))
    pictures = [picture for split in data.splits.values() for picture in split.pictures]
    assert {picture.name: picture.mask.tolist() for picture in pictures} == {
        name: mask.astype(int).tolist() for name, mask in nerve_masks().items()
    }
    assert pictures[0].image.shape == (42, 58, 1)


@pytest.mark.filterwarnings("ignore:.*the full dataset has")
@pytest.mark.parametrize("as_files", [True, False])
def test_dark_nerve_images_of_16_bits_are_warned_of(tmp_path, as_files):
    nerve_folder(tmp_path, as_files)
    saved(tmp_path / "train" / "1_1.tif", np.full((42, 58), 3000, np.uint16))
    with pytest.warns(UserWarning, match="no 16-bit image has a value above 3000"):
        Nerve(root=str(tmp_path), size=None, channels=1, batch_size=2).setup()


@pytest.mark.filterwarnings("ignore:.*the full dataset has")
@pytest.mark.parametrize("name", ["12.tif", "1_2_3.tif", "a_1.tif"])
def test_a_nerve_image_of_another_name_is_refused(tmp_path, name):
    saved(nerve_folder(tmp_path, True) / "train" / name, square(42, 58))
    with pytest.raises(BadInput, match=rf"images are named <subject>_<number>.tif; got {name}"):
        Nerve(root=str(tmp_path), **SMALL | {"channels": 1}).records()


def test_a_subject_of_nerve_is_never_divided(tmp_path):
    groups = [{p.group for p in split.pictures} for split in nerve(nerve_folder(tmp_path, True)).splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("subject,img", "subject;img"), "columns must be subject, img, pixels"),
        (lambda text: text.replace("3,1,", "9,1,"), "Images without a row: 3_1.tif; rows without an image: 9_1"),
        (lambda text: text + "1,1,\n", "1 images stand there twice"),
        (lambda text: text.replace("1,1,", "1,1,7 "), "1_1: run lengths are pairs"),
        (lambda text: text.replace("1,1,", "1,1,2400 90 "), "1_1: run lengths leave the image"),
        (lambda text: text.replace("1,1,", "1,1,1 900 "), "1_1: run lengths overlap"),
    ],
)
def test_what_is_wrong_with_run_lengths_is_said(tmp_path, change, message):
    file = nerve_folder(tmp_path, as_files=False) / "train_masks.csv"
    file.write_text(change(file.read_text()))
    data = Nerve(root=str(tmp_path), **SMALL | {"channels": 1})
    with pytest.raises(BadInput, match=message), pytest.warns(UserWarning, match="10 images"):
        data.setup()


def test_nerve_without_masks_says_what_it_needs(tmp_path):
    (nerve_folder(tmp_path, as_files=False) / "train_masks.csv").unlink()
    with (
        pytest.raises(BadInput, match=r"neither train/\*_mask.tif nor train_masks.csv"),
        pytest.warns(UserWarning, match="10 images"),
    ):
        Nerve(root=str(tmp_path), **SMALL).records()


def own_folder(root, ending="_mask", suffix=".png", number=6):
    for index in range(number):
        saved(root / "images" / f"scan {index}.jpg", colour())
        saved(root / "masks" / f"scan {index}{ending}{suffix}", square())
    return root


def own(root, **changes) -> Folder:
    paths = {"images": str(root / "images"), "masks": str(root / "masks")}
    data = Folder(**paths | SMALL | changes)
    data.setup()
    return data


def test_images_as_nnunet_names_them_are_paired_and_divided_as_it_does(tmp_path):
    for index in range(6):
        saved(tmp_path / "imagesTr" / f"case_{index}_0000.png", colour())
        saved(tmp_path / "labelsTr" / f"case_{index}.png", square())
    cases = [f"case_{index}" for index in range(6)]
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": cases[2:], "val": cases[:2]}]))
    paths = {"images": str(tmp_path / "imagesTr"), "masks": str(tmp_path / "labelsTr")}
    data = Folder(**paths | SMALL | {"split": Split(file=str(tmp_path / "splits_final.json"))})
    data.setup()
    assert names(data)["test"] == ["case_0_0000", "case_1_0000"]


def test_images_in_folders_within_the_folder_are_left_out_with_a_word(tmp_path):
    root = own_folder(tmp_path)
    saved(root / "images" / "more" / "scan 9.jpg", colour())
    (root / "images" / "old.tif").mkdir()
    saved(root / "images" / ".ipynb_checkpoints" / "scan 1.png", colour())
    with pytest.warns(UserWarning, match=r"1 images in folders in .*images, such as more/scan 9.jpg, are left out"):
        assert sum(map(len, names(own(root)).values())) == 6
    with pytest.raises(BadInput, match=r"holds no image; known are .*There are 12 in folders in it, such as images/"):
        Folder(images=str(root), masks=str(root / "masks"), **SMALL).setup()


def test_accents_are_found_however_a_table_or_a_split_writes_them(tmp_path):
    apart, together = "e\u0301", "\u00e9"
    for index in range(6):
        saved(tmp_path / f"{apart}{index}.png", colour())
        saved(tmp_path / f"{apart}{index}_mask.png", square())
    rows = [f"{together}{index}.png,{together}{index}_mask.png" for index in range(6)]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,mask", *rows]))
    splits = [f"{apart}{index},{split}" for index, split in enumerate(["train"] * 4 + ["val", "test"])]
    (tmp_path / "split.csv").write_text("\n".join(["image,split", *splits]))
    settings = SMALL | {"split": Split(file=str(tmp_path / "split.csv"))}
    data = Folder(images=None, masks=None, pairs=str(tmp_path / "pairs.csv"), **settings)
    data.setup()
    assert [len(found) for found in names(data).values()] == [4, 1, 1]


@pytest.mark.parametrize("ending", ["", "_mask", "_segmentation"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".gif"])
def test_two_folders_are_paired_by_name(tmp_path, ending, suffix):
    data = own(own_folder(tmp_path, ending, suffix))
    assert sum(len(split) for split in data.splits.values()) == 6
    assert all(picture.mask.any() for picture in data.splits["train"].pictures)


def test_a_folder_of_masks_named_for_images_too_is_refused_in_one_line(tmp_path):
    saved(tmp_path / "1.png", square(255))
    with pytest.raises(
        BadInput, match=r"is named for images and for masks, .* ends in _mask or _segmentation. Name the"
    ):
        own(tmp_path, images=str(tmp_path), masks=str(tmp_path))


def test_images_and_masks_may_lie_in_one_folder(tmp_path):
    for index in range(4):
        saved(tmp_path / f"{index}.png", colour())
        saved(tmp_path / f"{index}_mask.png", square())
    data = own(tmp_path, images=str(tmp_path), masks=str(tmp_path))
    assert sum(len(split) for split in data.splits.values()) == 4


def test_what_does_not_pair_is_listed_in_one_message(tmp_path):
    root = own_folder(tmp_path)
    (root / "masks" / "scan 1_mask.png").unlink()
    saved(root / "masks" / "scan 2.png", square())
    saved(root / "images" / "SCAN 3.jpg", colour())
    (root / "images" / "notes.txt").write_text("passed over")
    with pytest.raises(BadInput) as error:
        own(root)
    message = str(error.value)
    assert "scan 1.jpg: one mask is needed" in message
    assert "got scan 2.png, scan 2_mask.png" in message
    assert "SCAN 3.jpg, scan 3.jpg: names must differ in more than case and kind" in message
    assert "notes" not in message


def pairs_table(root, text):
    own_folder(root)
    (root / "pairs.csv").write_text(text)
    return str(root / "pairs.csv")


def rows_of(*cells):
    return "".join(f"images/scan {i}.jpg,masks/scan {i}_mask.png{more}\n" for i, more in enumerate(cells))


def test_a_table_says_groups_and_splits(tmp_path):
    text = "image,mask,group,split\n" + rows_of(",a,train", ",a,train", ",b,val", ",c,test", ",,test")
    data = own(tmp_path, pairs=pairs_table(tmp_path, text))
    assert [[p.group for p in split.pictures] for split in data.splits.values()][:2] == [["a", "a"], ["b"]]
    assert len(data.splits["test"]) == 2


def test_a_table_names_the_pixels_that_count(tmp_path):
    text = "image,mask,valid,split\n" + rows_of(",view.png,train", ",view.png,val", ",view.png,test")
    view = square()
    saved(tmp_path / "view.png", view)
    data = own(tmp_path, pairs=pairs_table(tmp_path, text))
    native = data.splits["test"].pictures[0].native_valid()
    assert np.array_equal(native[0].numpy(), view > 0)
    saved(tmp_path / "dark.png", np.zeros_like(view))
    with pytest.raises(BadInput, match=r"dark.png: all black; a field of view must have pixels"):
        own(tmp_path, pairs=pairs_table(tmp_path, text.replace("view.png,val", "dark.png,val")))
    with pytest.raises(BadInput, match="line 3 has no valid"):
        own(tmp_path, pairs=pairs_table(tmp_path, text.replace("view.png,val", ",val")))


def test_a_group_of_a_table_is_never_divided(tmp_path):
    text = "image,mask,group\n" + rows_of(",a", ",a", ",b", ",b", ",c", ",c")
    data = own(tmp_path, pairs=pairs_table(tmp_path, text))
    groups = [{p.group for p in split.pictures} for split in data.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,mask\n", "columns must be image, mask and perhaps valid, group, split; got picture, mask"),
        ("image,mask\n" + rows_of("") + "images/x.jpg,\n", "line 3 has no mask"),
        ("image,mask,mask\n" + rows_of(",a"), "a column stands there twice; got image, mask, mask"),
        ("image,mask\n" + rows_of(",a"), "line 2: cells 3, columns 2. A comma in a cell needs quotes"),
        ("image,mask\n" + rows_of("") * 2, "line 3: images/scan 0.jpg stands there twice"),
        ("image,mask,split\n" + rows_of(",train", ",valid"), "split must be train, val, test or empty; got valid"),
        ("image,mask,group,split\n" + rows_of(",a,train", ",b,val", ",a,test"), "group a is in train and in test"),
        ("image,mask,split\n" + rows_of(",train", ",val"), "the test split has no image"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, message):
    with pytest.raises(BadInput, match=message):
        own(tmp_path, pairs=pairs_table(tmp_path, text))


def test_folders_may_be_called_by_numbers(tmp_path, monkeypatch):
    own_folder(tmp_path)
    (tmp_path / "images").rename(tmp_path / "2018")
    (tmp_path / "masks").rename(tmp_path / "2019")
    monkeypatch.chdir(tmp_path)
    assert len(Folder(images=2018, masks=2019, **SMALL).records()) == len(list((tmp_path / "2018").iterdir()))


def test_a_table_may_come_from_windows(tmp_path):
    text = "image,mask,split\n" + rows_of(",train", ",val", ",test").replace("/", "\\")
    assert len(own(tmp_path, pairs=pairs_table(tmp_path, text)).pictures()) == 3


def test_a_table_in_another_encoding_is_refused(tmp_path):
    file = pairs_table(tmp_path, "")
    Path(file).write_bytes(b"image,mask\n\xe9.jpg,x.png\n")
    with pytest.raises(BadInput, match=r"cannot be read \(UnicodeDecodeError"):
        own(tmp_path, pairs=file)


def test_folders_that_are_not_there_or_hold_nothing_are_named(tmp_path):
    with pytest.raises(BadInput, match="images: no such folder"):
        own(tmp_path)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    with pytest.raises(BadInput, match=r"images holds no image; known are .png"):
        own(tmp_path)
    with pytest.raises(ValueError, match=r"dataset.images and dataset.masks must both be given, or dataset.pairs"):
        Folder(images=None, masks=None, **SMALL)


def test_the_split_does_not_depend_on_size_or_resize(tmp_path):
    random = np.random.default_rng(0)
    for index in range(30):
        mask = np.zeros((40, 70), np.uint8)
        mask[: random.integers(0, 12), : random.integers(0, 12)] = 255
        saved(tmp_path / "images" / f"{index}.png", colour(40, 70))
        saved(tmp_path / "masks" / f"{index}.png", mask)
    found = []
    for changes in ({}, {"size": (8, 8)}, {"size": (70, 40), "resize": "pad"}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # little masks vanish
            found.append(names(own(tmp_path, **changes)))
    assert found[0] == found[1] == found[2]


def test_a_table_cut_off_or_with_one_image_under_two_names_is_refused(tmp_path):
    root = own_folder(tmp_path)
    line = "images/scan 0.jpg,masks/scan 0_mask.png\n"
    for text, message in (
        ("image,mask\n" + line + "images/scan 1.jpg\n", "line 3: cells 1, columns 2; was the file cut off"),
        ("image,mask\n", "has no line below the names of its columns"),
        ("image,mask\n" + line + "./" + line, r"line 3: ./images/scan 0.jpg stands there twice"),
    ):
        (root / "pairs.csv").write_text(text)
        with pytest.raises(BadInput, match=message):
            Folder(images=None, masks=None, pairs=str(root / "pairs.csv"), **SMALL).setup()


def test_a_table_of_a_spreadsheet_is_read_and_may_fix_some_splits_only(tmp_path):
    root = own_folder(tmp_path)
    lines = [f"images/scan {index}.jpg;masks/scan {index}_mask.png;{'test' if index < 2 else ''}" for index in range(6)]
    (root / "pairs.csv").write_text("Image;Mask;Split\n" + "\n".join(lines) + "\n")
    data = Folder(images=None, masks=None, pairs=str(root / "pairs.csv"), **SMALL)
    data.setup()
    assert names(data)["test"] == ["scan 0", "scan 1"]  # called as two folders would call them
    assert [len(found) for found in names(data).values()] == [3, 1, 2]
    drawn = "drawn by image, for no groups are known, with seed 0"
    assert data.split.words == f"test as the dataset fixes it; train, val {drawn}"


def test_spaces_around_cells_are_no_part_of_them(tmp_path):
    """Or one patient would be three, and in training and test."""
    text = "image, mask, group\n" + rows_of(",a", ", a", ",a ", ",b", ",b ", ",c").replace(",masks", " , masks")
    data = own(tmp_path, pairs=pairs_table(tmp_path, text))
    assert {p.group for split in data.splits.values() for p in split.pictures} == {"a", "b", "c"}


def test_a_table_as_pandas_and_spreadsheets_leave_it_is_read(tmp_path):
    rows = rows_of(*[""] * 6).splitlines()
    indexed = ",image,mask\n" + "".join(f"{index},{row}\n" for index, row in enumerate(rows))
    padded = "image,mask,\n" + "".join(f"{row},\n" for row in rows) + ",,\n"
    for text in (indexed, padded):
        data = own(tmp_path, pairs=pairs_table(tmp_path, text))
        assert sum(len(split) for split in data.splits.values()) == 6


def test_an_accent_may_be_written_in_two_ways(tmp_path):
    for index in range(4):
        saved(tmp_path / "images" / f"e\N{COMBINING ACUTE ACCENT}{index}.png", colour())
        saved(tmp_path / "masks" / f"\N{LATIN SMALL LETTER E WITH ACUTE}{index}_mask.png", square())
    assert sum(len(split) for split in own(tmp_path).splits.values()) == 4


def test_what_a_mac_leaves_beside_files_is_passed_over(tmp_path):
    root = nerve_folder(tmp_path, as_files=False)
    for name in ("._1_1.tif", "._1_1_mask.tif"):
        (root / "train" / name).write_bytes(b"\0\5\26\7")
    assert sum(len(split) for split in nerve(root).splits.values()) == 10
    (root / "Original").mkdir(), (root / "PNG" / "Original").mkdir(parents=True)
    (root / "PNG" / "Original" / "._1.png").touch()
    saved(root / "Original" / "1.tif", colour())
    with pytest.warns(UserWarning, match="has 1 images"):
        assert [record.name for record in CVC(root=str(root), **SMALL).records()] == ["1"]


@pytest.mark.parametrize("size", [(512, 512), (256, 256), (300, 200), (40, 512)])
@pytest.mark.parametrize("turned", [False, True])
def test_lines_of_a_pixel_do_not_vanish_where_one_side_shrinks_and_the_other_grows(size, turned):
    image = np.zeros((40, 1000, 1), np.uint8)
    image[:, ::50] = 240
    if turned:
        image, size = image.swapaxes(0, 1), size[::-1]
    small, _ = fit(image, size, "stretch")
    profile = small[..., 0].astype(float).mean(axis=1 if turned else 0)
    scale = len(profile) / 1000
    for place in range(0, 1000, 50):
        near = profile[max(0, int(place * scale) - 2) : int(place * scale) + 3]
        assert near.sum() == pytest.approx(240 * scale, rel=0.1)


def test_a_table_with_everything_in_quotes_is_read(tmp_path):
    rows = ("image,mask\n" + rows_of(*[""] * 6)).splitlines()
    quoted = "".join(f'"{row.replace(",", chr(34) + "," + chr(34))}"\n' for row in rows)
    assert quoted.startswith('"image","mask"\n"images/scan 0.jpg","masks/')
    data = own(tmp_path, pairs=pairs_table(tmp_path, quoted))
    assert sum(len(split) for split in data.splits.values()) == 6


def test_files_that_are_left_out_are_named(tmp_path):
    root = own_folder(tmp_path)
    (root / "images" / "more.webp").write_text("")
    (root / "images" / ".hidden").write_text("")
    (root / "masks" / "notes.txt").write_text("")
    saved(root / "masks" / "nobody_mask.png", square())
    with pytest.warns(UserWarning, match="left out") as caught:
        own(root)
    messages = [str(warning.message) for warning in caught]
    assert any("1 masks in" in text and "belong to no image, such as nobody_mask.png" in text for text in messages)
    assert any("2 files are of no known kind, such as more.webp, notes.txt" in text for text in messages)


def test_inverted_masks_are_asked_about(tmp_path):
    root = own_folder(tmp_path)
    for path in (root / "masks").iterdir():
        saved(path, 255 - square())
    with pytest.warns(UserWarning, match="foreground covers 89% of the pixels. Are the masks inverted"):
        own(root)


def test_several_draws_of_whole_images_are_warned_of():
    with pytest.warns(UserWarning, match="dataset.draws=3 takes each image as often in an epoch, but augment leaves"):
        phantom(draws=3)
    with pytest.raises(ValueError, match="draws must be a whole number from 1"):
        phantom(draws=1.5)


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_everything_that_is_wrong_is_listed_in_one_error(tmp_path):
    folder = cvc_folder(tmp_path) / "PNG"
    first, second, third, fourth = LAST_FRAMES[:4]
    (folder / "Ground Truth" / f"{first}.png").unlink()
    saved(folder / "Ground Truth" / f"{second}.png", square(10, 10))
    (folder / "Original" / f"{third}.png").write_bytes(b"")
    (folder / "Original" / f"{fourth}.png").write_bytes((folder / "Original" / f"{second}.png").read_bytes()[:100])
    with pytest.raises(BadInput) as error:
        cvc(tmp_path)
    message = str(error.value)
    assert message.startswith("4 of 8 images cannot be used:")
    assert f"{first}.png: no such file" in message
    assert f"{second}.png: 10x10 pixels, but" in message
    assert "has 30x24" in message
    assert f"{third}.png: the file is empty (0 bytes)" in message
    assert f"{fourth}.png: cannot be read" in message


@pytest.mark.parametrize("dataset", [CVC, DRIVE, ISIC2018])
def test_a_folder_without_images_is_named_with_the_way_out(dataset, tmp_path):
    with pytest.raises(BadInput, match=r"no \.\w+ image in .*; expected \d+. Unpack .* there, or set dataset.root"):
        dataset(root=str(tmp_path), **SMALL).setup()


def test_images_of_several_sizes_need_a_size(tmp_path):
    folder = cvc_folder(tmp_path) / "PNG"
    saved(folder / "Original" / "25.png", colour(20, 20))
    saved(folder / "Ground Truth" / "25.png", square(20, 20))
    with pytest.raises(BadInput, match="images have 2 sizes"):
        cvc(tmp_path, size=None)


def test_a_training_split_without_foreground_has_no_auto_weight():
    data = phantom()
    data.splits["train"] = Pictures([p for p in phantom(empty=0.99).splits["train"].pictures if not p.mask.any()])
    with pytest.raises(BadInput, match="no training mask has a foreground pixel"):
        _ = data.training_foreground().imbalance
    with pytest.raises(BadInput, match="no training mask has both"):
        _ = data.training_foreground().thickness


def test_what_the_training_masks_say_about_their_foreground():
    data = phantom()
    bar, nothing = np.zeros((40, 50), np.uint8), np.zeros((40, 50), np.uint8)
    bar[10:14] = 1  # 4 of 40 rows
    data.splits["train"] = Pictures([replace(data.splits["val"].pictures[0], mask=mask) for mask in (bar, nothing)])
    assert data.training_foreground().imbalance == 19  # 1 row of 20 in both together
    assert data.training_foreground().thickness == pytest.approx(4)  # of the image that has one
    assert data.empty_share() == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "blobs"}, "one of polyp, vessel, speck, lesion, ultrasound or mixed"),
        ({"foreground": 0.7}, "more than 0 and below 0.5"),
        ({"empty": 1.0}, "from 0 to below 1"),
        ({"size": None}, "size must be given"),
        ({"size": (8, 8)}, "32 pixels or more"),
        ({"size": (32,)}, "size must be"),
        ({"size": 72}, "size must be"),
        ({"channels": 2}, "channels must be 1"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
    ],
)
def test_an_impossible_setting_is_refused_with_the_rule(changes, message):
    with pytest.raises(ValueError, match=message):
        phantom(**changes)


# --- batches ----------------------------------------------------------------------------------------------------------


def batches(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def same(first, second):
    return all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in ("image", "mask"))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # on a machine with fewer cores
@pytest.mark.parametrize("name", ["thesis", "photo", "dermoscopy", "ultrasound"])
def test_zero_and_four_workers_give_the_same_batches(name):
    alone, helped = (phantom(augment=augment(name), workers=workers) for workers in (0, 4))
    assert same(batches(alone), batches(helped))
    assert same(batches(alone, epoch=3), batches(helped, epoch=3))


def test_epochs_and_seeds_change_order_and_augmentation():
    data = phantom(augment=augment("thesis"))
    first = batches(data)
    assert same(first, batches(data))
    assert not same(first, batches(data, epoch=1))
    assert not same(first, batches(phantom(augment=augment("thesis"), seed=1)))


@pytest.mark.parametrize("name", ["flips", "thesis", "turns", "photo", "patches"])
def test_augmentation_moves_the_mask_with_the_image_and_keeps_it_binary(name):
    # an image that is its own mask stays its own mask, but for brightness and the blur of interpolation at the edges
    mask = np.zeros((300, 300) if name == "patches" else (64, 64), np.uint8)  # which cuts 256 pixels out
    cv2.circle(mask, (24, 30), 12, 1, -1)
    image = (mask * 200)[..., None]
    chain, moved = augment(name, (64, 64)), 0
    for seed in range(60):
        new, where = chain(image, mask, seed)
        assert set(np.unique(where)) <= {0, 1}
        bright = new[..., 0] > new.max() / 2
        assert (bright != where.astype(bool)).mean() < 0.02
        moved += not np.array_equal(where, mask)
    assert moved > 10


def test_the_steps_of_a_chain_act_independently():
    # two flips, each half of the time: together they change the picture half of the time, not never
    twice = Augment({name: {"transform": "HorizontalFlip", "p": 0.5} for name in "ab"})
    mask = square(value=1)
    changed = [not np.array_equal(twice(colour(), mask, seed)[1], mask) for seed in range(200)]
    assert np.mean(changed) == pytest.approx(0.5, abs=0.12)


def test_no_augmentation_leaves_the_picture_alone():
    image, mask = colour(), square(value=1)
    new, where = augment("none")(image, mask, 0)
    assert np.array_equal(new, image)
    assert np.array_equal(where, mask)


MOVES = [
    (file.stem, name)
    for file in sorted((ROOT / "conf" / "augment").glob("*.yaml"))
    for name, step in OmegaConf.load(file).steps.items()
    if step.transform in ("Affine", "ElasticTransform", "RandomResizedCrop")
]


@pytest.mark.parametrize(("choice", "step"), MOVES)
def test_a_mask_moves_with_its_image(choice, step):
    moves = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "augment" / f"{choice}.yaml").steps[step])
    moves |= {"p": 1.0} | ({"size": [90, 110]} if "size" in moves else {})
    move = Augment({"it": moves})
    mask = cv2.circle(np.zeros((90, 110), np.uint8), (50, 44), 17, 1, -1)
    beside = []
    for seed in range(150):
        image, moved = move(255 * mask[..., None], mask, seed)
        beside.append(middle(image[..., 0]) - middle(moved))
    assert np.abs(np.mean(beside, axis=0)).max() < 0.05  # pixels


def middle(weights):
    places = np.indices(weights.shape)
    return (places * weights).sum((1, 2)) / weights.sum()


@pytest.mark.parametrize("factor", [2, 3, 4, 1.5, 0.5])
def test_a_mask_stays_in_its_place_when_it_is_fitted(factor):
    rng, beside, grown, size = np.random.default_rng(0), [], [], (int(120 / factor), int(96 / factor))
    for _ in range(60):
        mask = cv2.circle(
            np.zeros((120, 96), np.uint8), rng.integers(30, 66, 2).tolist(), int(rng.integers(9, 26)), 1, -1
        )
        image, box = fit(255 * mask[..., None], size, "stretch")
        small = fit_mask(mask > 0, size, box)
        beside.append(middle(image[..., 0]) - middle(small))
        grown.append(small.sum() * factor**2 / mask.sum())
    assert np.abs(np.mean(beside, axis=0)).max() < 0.05  # pixels; nearest neighbour: 0.25 at factors 2 and 4
    assert 0.99 < np.mean(grown) < (1.06 if factor in (2, 4) else 1.01)  # where a half is foreground


def test_a_line_of_one_pixel_stays_whole_at_half_the_size():
    mask = np.eye(40, dtype=bool) | (np.arange(40) == 7)
    small = fit_mask(mask, (20, 20), (0, 0, 20, 20))
    assert small.diagonal().all()
    assert small[:, 3].all()


def test_a_misspelled_transform_or_argument_is_refused():
    with pytest.raises(ValueError, match="did you mean HorizontalFlip"):
        Augment({"a": {"transform": "HorizontalFlipp"}})
    with pytest.raises(
        ValueError, match=r"a cannot be made: size is null, as dataset.size may be; it needs \[height,width"
    ):
        Augment({"a": {"transform": "RandomResizedCrop", "size": None}})
    with pytest.raises(ValueError, match=r"augment.steps.a cannot be made: .*probability"):
        Augment({"a": {"transform": "HorizontalFlip", "probability": None}})


def test_memory_is_pinned_for_a_training_on_a_gpu_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # that it is there is not enough
    data, pinned = phantom(), []
    for device in ("cpu", "cuda"):
        data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
        pinned.append(data.val_dataloader().pin_memory)
    assert pinned == [False, True]


def test_evaluation_is_neither_shuffled_nor_augmented():
    data = phantom(augment=augment("flips"))
    order = [index for batch in data.val_dataloader() for index in batch["index"].tolist()]
    assert order == [0, 1, 2]
    assert torch.equal(data.splits["val"][0]["mask"][0].byte(), torch.from_numpy(data.splits["val"].pictures[0].mask))


def test_the_native_mask_survives_packing_whatever_its_size(tmp_path):
    mask = (np.random.default_rng(0).random((13, 7)) > 0.5).astype(np.uint8) * 255
    cvc_folder(tmp_path)
    for frame in LAST_FRAMES[:8]:
        saved(tmp_path / "PNG" / "Original" / f"{frame}.png", colour(13, 7))
        saved(tmp_path / "PNG" / "Ground Truth" / f"{frame}.png", mask)
    data, _ = cvc(tmp_path)
    assert np.array_equal(data.splits["val"][0]["native_mask"][0].numpy(), mask > 0)
    assert data.splits["val"][0]["mask"].shape == (1, 32, 40)


@given(st.integers(1, 40), st.integers(1, 5))
def test_processes_share_the_images_without_doubling_or_losing_one(length, world):
    seen, trained = [], []
    for rank in range(world):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("raremask.data.samples.process", lambda rank=rank: (rank, world))
            evaluation, training = ShareSampler(length), SeededSampler([True] * length, seed=0)
            assert len(list(evaluation)) == len(evaluation)
            assert len(list(training)) == len(training) == -(-length // world)
            seen += list(evaluation)
            trained += [index for index, _ in training]
    assert sorted(seen) == list(range(length))
    assert set(trained) == set(range(length))  # some twice, to fill up the last steps


# --- which images training draws, and crops ---------------------------------------------------------------------------


def drawn(filled, epoch=0, **arguments):
    sampler = SeededSampler(filled, seed=0, **arguments)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


def test_an_epoch_may_draw_each_image_several_times_each_time_with_another_seed():
    found = drawn([True] * 10, draws=4)
    assert sorted(index for index, _ in found) == sorted(list(range(10)) * 4)
    assert len(set(found)) == 40
    assert drawn([True] * 10, draws=4) == found != drawn([True] * 10, epoch=1, draws=4)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.5, 50), (0.9, 90), (1.0, 100)])
def test_the_share_of_draws_with_foreground_is_as_asked(share, expected):
    filled = np.arange(100) < 20
    found = [index for index, _ in drawn(filled, share=share)]
    assert sum(filled[index] for index in found) == expected
    times = np.bincount(found, minlength=100)
    for part in (times[filled], times[~filled]):
        assert part.max() - part.min() <= 1  # none is favoured
    assert len(set(drawn(filled, share=share))) == 100  # whatever comes twice, comes in another way
    if expected == 50:
        assert 15 < filled[found[:50]].sum() < 35  # mixed, not one part after the other


def test_a_share_that_cannot_be_had_is_refused():
    with pytest.raises(BadInput, match=r"foreground_share=0.5, but 0% of the training masks are empty"):
        phantom(foreground_share=0.5)
    phantom(foreground_share=1)
    with pytest.raises(ValueError, match="foreground_share from 0 to 1; got 1 and 2"):
        phantom(foreground_share=2)


def crop(side, share):
    return Augment(
        {
            "foreground_crop": {"transform": "CropNonEmptyMaskIfExists", "height": side, "width": side, "p": share},
            "crop": {"transform": "RandomCrop", "height": side, "width": side, "p": 1.0},
        }
    )


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.02), (0.33, 0.35), (1.0, 1.0)])
def test_crops_hold_foreground_at_the_rate_that_is_asked_for(share, expected):
    mask = np.zeros((200, 200), np.uint8)
    mask[90:93, 60:63] = 1  # by chance a crop of 32 pixels holds some of it about once in 25 times
    image = (mask * 200)[..., None]
    held = []
    for seed in range(300):
        new, foreground = crop(32, share)(image, mask, seed)
        assert new.shape == (32, 32, 1)
        assert np.array_equal(new[..., 0] > 0, foreground > 0)
        held.append(foreground.any())
    assert np.mean(held) == pytest.approx(expected, abs=0.08)


def test_training_takes_crops_and_validation_whole_images():
    data = phantom(augment=crop(16, 0.33), draws=3)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 16, 16)
    assert len(data.train_dataloader()) == 8  # 10 images three times, in batches of 4
    assert data.splits["val"][0]["image"].shape == (3, 32, 40)


def test_a_crop_larger_than_the_image_is_refused_before_training():
    with pytest.raises(BadInput, match=r"augment: a training image of 40x32: Crop size .* is larger than image"):
        phantom(augment=crop(64, 1.0))
    with pytest.raises(BadInput, match=r"augment: a training image of 40x32: .*64"):
        phantom(augment=crop(64, 0.0))


# --- phantoms ---------------------------------------------------------------------------------------------------------


def test_phantoms_follow_from_their_seed():
    first, again, other = phantom(), phantom(), phantom(data_seed=1)
    for split in ("train", "val", "test"):
        for a, b in zip(first.splits[split].pictures, again.splits[split].pictures, strict=True):
            assert np.array_equal(a.image, b.image)
            assert np.array_equal(a.mask, b.mask)
    assert not np.array_equal(first.splits["train"].pictures[0].image, other.splits["train"].pictures[0].image)
    train, test = (first.splits[split].pictures[0].image for split in ("train", "test"))
    assert not np.array_equal(train, test)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fraction", [0.002, 0.01, 0.1])
def test_the_foreground_has_the_fraction_that_is_asked_for(kind, fraction):
    data = phantom(kind=kind, foreground=fraction, empty=0.0, train=40, size=(128, 128))
    mean = np.mean([picture.mask.mean() for picture in data.splits["train"].pictures])
    assert mean == pytest.approx(fraction, rel=0.35)


def test_specks_are_below_one_percent_and_empty_phantoms_are_as_many_as_asked():
    masks = [picture.mask for picture in phantom(kind="speck", train=30, size=(128, 128)).splits["train"].pictures]
    assert all(0 < mask.mean() < 0.01 for mask in masks)
    empty = [not picture.mask.any() for picture in phantom(empty=0.6, train=200).splits["train"].pictures]
    assert np.mean(empty) == pytest.approx(0.6, abs=0.1)
    empty = [not picture.mask.any() for picture in phantom(kind="ultrasound", train=200).splits["train"].pictures]
    assert np.mean(empty) == pytest.approx(0.6, abs=0.1)  # of itself


@pytest.mark.parametrize("channels", [1, 3])
def test_a_phantom_has_the_channels_that_are_asked_for(channels):
    assert phantom(channels=channels).splits["train"][0]["image"].shape == (channels, 32, 40)
