import io
import itertools

import numpy as np
import pytest

from raremask.figures import PALETTES, Paint, Row, curves, gallery, scores

MASK = np.array([[True, False, True, False]])
PREDICTION = np.array([[True, True, False, False]])


@pytest.mark.parametrize("palette", PALETTES)
def test_found_too_much_and_missed_have_their_colours(palette):
    painted = Paint(palette, opacity=1.0)(np.full((1, 4, 3), 90, np.uint8), MASK, PREDICTION)[0].tolist()
    colours = PALETTES[palette]
    assert painted == [list(colours["TP"]), list(colours["FP"]), list(colours["FN"]), [90, 90, 90]]
    assert PALETTES["classic"] == {"TP": (0, 200, 0), "FP": (230, 0, 0), "FN": (230, 0, 230)}


def test_contours_leave_the_inside_of_a_structure_to_be_seen():
    mask, prediction = np.zeros((2, 9, 9), bool)
    mask[1:6, 1:6], prediction[1:6, 1:8] = True, True
    painted = Paint(contours=True)(np.full((9, 9, 1), 90, np.uint8), mask, prediction)
    classic = {kind: list(colour) for kind, colour in PALETTES["classic"].items()}
    assert painted[3].tolist() == [
        [90, 90, 90],
        classic["TP"],  # both outlines run down the left side
        [90, 90, 90],
        [90, 90, 90],
        [90, 90, 90],
        classic["FN"],  # the mask ends here, unnoticed
        [90, 90, 90],
        classic["FP"],  # the prediction ends here
        [90, 90, 90],
    ]


def test_a_mask_that_fills_the_image_has_no_outline():
    full = np.ones((4, 5), bool)
    assert (Paint(contours=True)(np.full((4, 5, 1), 90, np.uint8), full, full) == 90).all()


def test_an_unknown_palette_is_refused():
    with pytest.raises(ValueError, match=r"figures.palette must be one of classic, colour_blind; got 'pastel'"):
        Paint("pastel")


def test_an_image_at_the_network_s_size_is_brought_to_the_mask_s():
    mask = np.zeros((20, 30), bool)
    assert Paint()(np.zeros((5, 6, 1), np.uint8), mask, mask).shape == (20, 30, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gallery_shows_image_truth_and_prediction_of_every_row(channels):
    mask = np.zeros((20, 30), bool)
    image = np.zeros((10, 15, channels), np.uint8)
    figure = gallery([Row(image, mask, [(f"image {i}  Dice 0.500", mask)]) for i in range(3)], "heading")
    assert len(figure.axes) == 9
    assert figure.axes[2].get_title() == "image 0  Dice 0.500"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["found (TP)", "too much (FP)", "missed (FN)"]


def test_a_gallery_shows_several_predictions_side_by_side_under_their_names():
    mask = np.zeros((20, 30), bool)
    rows = [Row(np.zeros((10, 15, 1), np.uint8), mask, [(f"{i}a", mask), (f"{i}b", mask)]) for i in range(2)]
    odd = Row(rows[0].image, mask, [("scan_$12_$0", mask)])  # no formula
    gallery([odd], "cost_$1_$2", columns=["a_$1_$2"]).savefig(io.BytesIO())
    figure = gallery(rows, columns=["dice", "dynamit"])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["image", "truth", "dice\n0a", "dynamit\n0b", "", "", "1a", "1b"]
    long = gallery(rows, columns=["experiment=nerve_best model.encoder_weights=mobilenet.pth", "other"])
    lines = [line for axis in long.axes for line in axis.get_title().splitlines()]
    assert "experiment=nerve_best" in lines[2]
    assert max(map(len, lines)) <= 30  # or it runs into the next


def test_scores_are_drawn_over_threshold_foreground_and_probability():
    curve = np.linspace(0, 1, 1000)
    groups = np.array([0.1, np.nan, 0.9]), np.array([0.2, np.nan, 0.7])
    figure = scores(curve, 0.3, "dice", np.array([0.01, 0.1, 0.0]), np.array([0.5, 0.7, 1.0]), groups)
    threshold, size, honest = figure.axes
    assert [line.get_xdata()[0] for line in threshold.lines[1:]] == [0.5, 0.3]
    assert np.array_equal(threshold.lines[0].get_xydata()[500], [0.5, curve[500]])
    with_foreground, empty = (points.get_offsets().tolist() for points in size.collections)
    assert with_foreground == [[0.01, 0.5], [0.1, 0.7]]
    assert empty[0][0] < 0.01  # left of all others: a logarithm has no place for 0
    assert honest.lines[1].get_xydata().tolist() == [[0.1, 0.2], [0.9, 0.7]]


@pytest.mark.parametrize("foreground", [[0.0, 0.0], [0.1, 0.2]])
def test_scores_are_drawn_whether_masks_are_empty_or_not(foreground):
    dice = np.array([np.nan, 0.5])
    figure = scores(np.zeros(1000), 0.5, "iou", np.array(foreground), dice, (np.full(15, np.nan),) * 2)
    figure.canvas.draw()  # nothing here may warn


@pytest.mark.parametrize("span", [1, 1.5, 4, 20, 50, 150, 500, 5000])
def test_the_labels_of_a_logarithmic_axis_do_not_touch_and_say_more_than_one_number(span):
    foreground, dice = np.array([0.15 / span, 0.15]), np.array([0.5, 0.6])
    figure = scores(np.zeros(1000), 0.5, "dice", foreground, dice, (np.full(15, np.nan),) * 2)
    figure.canvas.draw()
    axis = figure.axes[1]
    low, high = axis.get_xlim()
    shown = [label for label in axis.get_xticklabels() if low <= label.get_position()[0] <= high]
    boxes = [label.get_window_extent() for label in shown]
    assert len(shown) > 1 or span < 2
    assert all(one.x1 + 2 < other.x0 for one, other in itertools.pairwise(boxes)), [label.get_text() for label in shown]


def test_the_curves_leave_out_what_was_not_logged_and_mark_the_switch():
    history = [
        {"epoch": 0, "train/loss": 1.0, "val/dice": 0.1, "optim/stage": 1.0},
        {"epoch": 1, "train/loss": 0.5, "val/dice": float("nan"), "optim/stage": 1.0},
        {"epoch": 2, "train/loss": 0.4, "val/dice": 0.3, "optim/stage": 2.0},
    ]
    left, right = curves(history).axes
    assert left.lines[0].get_xydata().tolist() == [[1, 1], [2, 0.5], [3, 0.4]]
    assert right.lines[0].get_xydata().tolist() == [[1, 0.1], [3, 0.3]]
    assert list(left.lines[1].get_xdata()) == [3, 3]


def test_epochs_are_whole_numbers_even_of_a_single_one():
    for axis in curves([{"epoch": 0, "train/loss": 1.0, "val/dice": 0.1}]).axes:
        assert 1 in axis.get_xticks()
        assert all(float(tick).is_integer() for tick in axis.get_xticks())
