import math

import numpy as np
import pytest

from raremask.data.fingerprint import fingerprint, measure
from raremask.data.samples import Picture


def picture(mask, image=None, name="a", group="g", box=None, size=None):
    mask = np.asarray(mask, np.uint8)
    image = np.zeros((*mask.shape, 1), np.uint8) if image is None else image
    return Picture(name, group, image, mask, size or mask.shape, box or (0, 0, *mask.shape), 0.0, None, None)


def test_a_picture_is_measured():
    mask = np.zeros((20, 30), np.uint8)
    mask[2:6, 3:13] = 1  # 4 x 10 pixels
    mask[15, 20] = 1  # one pixel
    mask[16, 21] = 1  # touches it at a corner: one object of two
    image = np.full((20, 30, 3), (10, 20, 30), np.uint8)
    one = measure("val", picture(mask, image, size=(40, 60)))
    assert (one.name, one.group, one.split, one.height, one.width) == ("a", "g", "val", 40, 60)
    assert (one.pixels, one.foreground, one.objects, one.side) == (600, 42, (40, 2), 10)
    assert one.boundary == 40 - 2 * 8 + 2  # without the inside of 2 x 8
    assert [int(channel.argmax()) for channel in one.histogram] == [10, 20, 30]
    assert one.histogram.sum() == 1800
    assert 1 < one.thickness < 4
    assert one.row()["foreground"] == 0.07


def test_padding_is_no_part_of_a_picture():
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 10:20] = 1
    one = measure("train", picture(mask, box=(0, 5, 20, 20)))
    assert (one.pixels, one.foreground) == (400, 100)


@pytest.mark.parametrize("value", [0, 1])
def test_a_mask_of_one_class_has_no_thickness(value):
    one = measure("train", picture(np.full((8, 8), value)))
    assert one.thickness is None
    assert one.row()["thickness"] == ""
    assert one.objects == ((64,) if value else ())


def test_a_fingerprint_sums_up_and_leaves_empty_masks_out():
    masks = [np.zeros((10, 10)), np.zeros((10, 10)), np.zeros((10, 10)), np.zeros((10, 10))]
    masks[1][:1, :4] = 1
    masks[2][:2, :4] = 1
    masks[2][9, 9] = 1
    image = np.repeat(np.arange(100, dtype=np.uint8).reshape(10, 10, 1), 1, axis=2)
    splits = ["train", "train", "val", "test"]
    measured = [
        measure(split, picture(mask, image, name=str(index), group=str(index // 2)))
        for index, (mask, split) in enumerate(zip(masks, splits, strict=True))
    ]
    found = fingerprint(measured)
    assert (found["images"], found["groups"], found["empty"]) == (4, 2, 0.5)
    assert found["splits"]["train"] == {"images": 2, "groups": 1, "empty": 0.5, "foreground": 0.02}
    assert found["foreground_pooled"] == pytest.approx(13 / 400)
    assert found["foreground"]["min"] == 0.04
    assert found["foreground"]["max"] == 0.09
    assert found["objects_per_image"]["mean"] == 1.5
    assert found["object_area"] == pytest.approx(
        {"min": 1, "p5": 1.3, "median": 4, "p95": 7.6, "max": 8, "mean": 13 / 3}  # of 1, 4, 8
    )
    assert found["sizes"] == [{"height": 10, "width": 10, "images": 4}]
    (channel,) = found["intensity"]
    assert channel["mean"] == pytest.approx(49.5)
    assert channel["std"] == pytest.approx(math.sqrt((100**2 - 1) / 12))
    assert (channel["p1"], channel["p99"]) == (0, 98)


def test_a_dataset_without_foreground_has_a_fingerprint_too():
    found = fingerprint([measure("train", picture(np.zeros((8, 8))))])
    assert found["empty"] == 1
    assert found["foreground"] is found["object_area"] is found["thickness"] is None
