import csv
import io

import cv2
import numpy as np
import pytest

from raremask.data.course import Course
from raremask.data.cvc import CVC
from raremask.data.isic2018 import ISIC2018
from raremask.data.leaks import contradictions, turned, twins, twins_csv
from raremask.data.phantom import Phantom
from raremask.data.readers import read_image
from raremask.data.splits import Split

SMALL = {"size": (288, 384), "channels": 3, "batch_size": 4}


@pytest.fixture(scope="module")
def images():
    data = Phantom(train=30, val=3, test=3, size=(96, 128), channels=3, batch_size=4)
    data.setup()
    return [picture.image for picture in data.splits["train"].pictures]


def found(images, **arguments):
    return [(pair.first, pair.second) for pair in twins(images, **arguments)]


def test_different_images_are_no_twins(images):
    assert found(images) == []


def test_equal_pixels_are_twins_of_likeness_one_even_if_flat(images):
    flat = np.zeros((20, 20, 3), np.uint8)
    pairs = twins([*images, images[3].copy(), flat, flat.copy(), flat[:10]])
    assert [(pair.first, pair.second, pair.likeness) for pair in pairs] == [(3, 30, 1.0), (31, 32, 1.0)]


def recompressed(image):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)


def moved(image):
    return cv2.warpAffine(image, np.float32([[1, 0, 1], [0, 1, 1]]), image.shape[1::-1], borderMode=cv2.BORDER_REFLECT)


@pytest.mark.parametrize(
    "change",
    [
        recompressed,
        moved,
        lambda image: cv2.resize(image, (75, 60), interpolation=cv2.INTER_AREA),
        lambda image: (image * np.array([0.9, 0.6, 0.7]) + 20).astype(np.uint8),
        lambda image: image.mean(axis=2, keepdims=True).astype(np.uint8),
        lambda image: image[:, ::-1],
        lambda image: np.rot90(image, 1),
        lambda image: np.rot90(image[::-1], 3),
    ],
    ids=["jpeg", "moved", "smaller", "darker", "gray", "mirrored", "turned", "both"],
)
def test_a_changed_copy_is_a_twin(images, change):
    copies = [np.ascontiguousarray(change(images[index])) for index in (2, 5, 13)]
    assert sorted(found([*images, *copies])) == [(2, 30), (5, 31), (13, 32)]


def noisy(image, seed):
    noise = np.random.default_rng(seed).normal(0, 3, image.shape)
    return recompressed((image + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("copies", [2, 9, 30])
def test_copies_are_found_even_if_there_is_nothing_else(images, copies):
    same = [noisy(images[2], seed) for seed in range(copies)]
    assert len(twins(same)) == copies * (copies - 1) // 2


def test_a_handful_of_images_with_one_frame_around_all_are_no_twins(real_data):
    paths = sorted((real_data("DRIVE") / "training" / "images").glob("*.tif"))
    retinas = [read_image(path, 3) for path in paths]
    for number in (2, 6, 8, 9, 20):
        assert found(retinas[:number]) == []


def test_only_pairs_of_different_splits_are_found_if_splits_are_given(images):
    pair = [*images, images[4].copy(), images[7].copy()]
    parts = ["train"] * 31 + ["test"]
    assert found(pair, parts=parts) == [(7, 31)]
    assert found(pair) == [(4, 30), (7, 31)]


def test_many_images_are_compared_in_pieces_like_few(images, monkeypatch):
    several = [*images, images[4].copy(), images[29].copy()]
    monkeypatch.setattr("raremask.data.leaks.ROWS", 7)
    assert found(several) == [(4, 30), (29, 31)]


def test_pairs_are_written_with_their_splits(images):
    placed = [("a", "g", "train"), ("=b", "g,h", "test")]
    rows = list(csv.DictReader(io.StringIO(twins_csv(twins([images[0]] * 2), placed))))
    assert rows == [
        {
            "image": "a",
            "group": "g",
            "split": "train",
            "twin": "'=b",  # or a spreadsheet would compute it
            "twin_group": "g,h",
            "twin_split": "test",
            "likeness": "1.0000",
        }
    ]


@pytest.mark.parametrize("turn", range(8))
def test_twins_say_how_one_is_turned_and_masks_are_compared_that_way(images, turn):
    image = cv2.resize(images[6], (96, 96))
    copy = np.stack([np.ascontiguousarray(turned(image[None, ..., channel], turn)[0]) for channel in range(3)], axis=-1)
    (pair,) = twins([*images[:6], *images[7:], image, copy])
    assert pair.turn == turn
    mask = np.zeros((96, 96), np.uint8)
    mask[10:40, 5:60] = 1  # nothing is the same about its quarters
    masks = [mask] * 29 + [mask, turned(mask[None], turn)[0]]
    assert contradictions([pair], masks) == []
    masks[-1] = 1 - masks[-1]
    ((found, dice),) = contradictions([pair], masks)
    assert found == pair
    assert dice == pytest.approx(0, abs=0.05)


def test_two_empty_masks_do_not_contradict_each_other_and_an_empty_and_a_filled_one_do(images):
    pairs = twins([images[0], images[0], images[0]])
    empty, filled = np.zeros((8, 8), np.uint8), np.ones((8, 8), np.uint8)
    assert [(pair.first, pair.second) for pair, _ in contradictions(pairs, [empty, empty, filled])] == [(0, 2), (1, 2)]


def across(data):
    data.setup()
    placed = data.pictures()
    pairs = twins([picture.image for _, picture in placed], [split for split, _ in placed])
    return [{placed[pair.first][1].name, placed[pair.second][1].name} for pair in pairs]


@pytest.mark.filterwarnings("ignore:split.by=image")
def test_the_random_split_of_the_real_cvc_is_caught_and_the_split_by_sequence_is_clean(real_data):
    root = str(real_data("CVC-ClinicDB"))
    assert across(CVC(root, **SMALL)) == []
    assert len(across(CVC(root, split=Split(by="image"), **SMALL))) > 10


def test_the_real_lesions_that_were_photographed_twice_are_found(real_data):
    data = Course(str(real_data("a0-2025-standin") / "Dataset"), **SMALL | {"size": (256, 256)})
    data.setup()
    placed = data.pictures()
    pairs = twins([picture.image for _, picture in placed])
    assert {frozenset({placed[pair.first][1].name[-5:], placed[pair.second][1].name[-5:]}) for pair in pairs} == {
        frozenset({"15986", "15987"}),
        frozenset({"00183", "15311"}),
    }
    isic = ISIC2018(str(real_data("ISIC2018")), **SMALL | {"size": (256, 256)})
    with pytest.warns(UserWarning, match="the full dataset"):
        assert across(isic) == []
