import numpy as np
import pytest

from raremask.figures import COLOURS, Row, curves, gallery, overlay


def test_the_overlay_paints_found_green_too_much_red_and_missed_magenta():
    mask = np.array([[True, False, True, False]])
    prediction = np.array([[True, True, False, False]])
    painted = overlay(np.full((1, 4, 3), 90, np.uint8), mask, prediction, opacity=1.0)[0].tolist()
    assert painted == [list(COLOURS["TP"]), list(COLOURS["FP"]), list(COLOURS["FN"]), [90, 90, 90]]


def test_an_image_at_the_network_s_size_is_brought_to_the_mask_s():
    mask = np.zeros((20, 30), bool)
    assert overlay(np.zeros((5, 6, 1), np.uint8), mask, mask).shape == (20, 30, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gallery_shows_image_truth_and_prediction_of_every_row(channels):
    mask = np.zeros((20, 30), bool)
    rows = [Row(f"image {i}  Dice 0.500", np.zeros((10, 15, channels), np.uint8), mask, mask) for i in range(3)]
    figure = gallery(rows, "heading")
    assert len(figure.axes) == 9
    assert figure.axes[2].get_title() == "image 0  Dice 0.500"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["found (TP)", "too much (FP)", "missed (FN)"]


def test_the_curves_leave_out_what_was_not_logged_and_mark_the_switch():
    history = [
        {"epoch": 0, "train/loss": 1.0, "val/dice": 0.1, "optim/stage": 1.0},
        {"epoch": 1, "train/loss": 0.5, "val/dice": float("nan"), "optim/stage": 1.0},
        {"epoch": 2, "train/loss": 0.4, "val/dice": 0.3, "optim/stage": 2.0},
    ]
    left, right = curves(history).axes
    assert left.lines[0].get_xydata().tolist() == [[0, 1], [1, 0.5], [2, 0.4]]
    assert right.lines[0].get_xydata().tolist() == [[0, 0.1], [2, 0.3]]
    assert list(left.lines[1].get_xdata()) == [2, 2]
