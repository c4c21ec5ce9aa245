import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raremask import scoring
from raremask.metrics.calibration import BINS, EDGES, histogram
from raremask.metrics.overlap import pixel_counts, score
from raremask.selection import MARGIN, Selection, best_threshold, convincing, select, threshold_curve, together


def images(number=12, threshold=0.3, seed=0):
    """Probabilities from which the truth comes out best at a threshold of 0.3: a square, and noise below it."""
    random = np.random.default_rng(seed)
    probabilities, masks = [], []
    for _ in range(number):
        mask = np.zeros((40, 50), bool)
        top, left = random.integers(2, 20, 2)
        mask[top : top + 15, left : left + 15] = True
        low, high = random.random((2, 40, 50))
        probabilities.append(np.where(mask, threshold + (1 - threshold) * high**3, threshold * low).astype(np.float32))
        masks.append(mask)
    return probabilities, masks


def chosen(probabilities, masks, **changes):
    counted = np.array([histogram(*pair) for pair in zip(probabilities, masks, strict=True)])
    return select({"none": counted}, counter(probabilities, masks), range(len(masks)), **changes)


def counter(probabilities, masks):
    """Count all images under a selection."""
    pairs = list(zip(probabilities, masks, strict=True))
    return lambda selection: np.array([pixel_counts(selection(probability), mask) for probability, mask in pairs])


def mean_dice(selection, probabilities, masks):
    return score(counter(probabilities, masks)(selection))["dice"].mean()


def test_the_threshold_is_found_on_validation_and_holds_elsewhere():
    choice = chosen(*images())
    assert choice.selection.threshold == pytest.approx(0.3, abs=0.02)
    assert choice.value > 0.99 > choice.default
    assert mean_dice(choice.selection, *images(seed=1)) > 0.98  # on images it has not seen


@pytest.mark.parametrize("threshold", [2e-4, 1 - 2e-4])
def test_a_threshold_close_to_0_or_1_is_found(threshold):
    probabilities, masks = images(threshold=threshold)
    choice = chosen(probabilities, masks)
    assert choice.value > 0.8 > choice.default
    assert choice.value == pytest.approx(mean_dice(choice.selection, probabilities, masks))
    assert len(choice.curve) == 1000


def test_the_values_that_are_reported_are_those_of_the_masks_it_makes():
    probabilities, masks = images()
    choice = chosen(probabilities, masks)
    assert choice.value == pytest.approx(mean_dice(choice.selection, probabilities, masks))
    assert choice.default == pytest.approx(mean_dice(Selection(), probabilities, masks))
    assert choice.curve[300] == pytest.approx(mean_dice(Selection(0.3), probabilities, masks))


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 30))
def test_the_threshold_is_as_good_as_the_best_but_for_a_margin(seed, peak):
    curve = np.random.default_rng(seed).random(BINS) ** (1 / peak)  # many good ones, or few
    threshold = best_threshold(curve)
    assert curve[EDGES[:-1] == threshold] >= curve.max() - MARGIN
    nearer = abs(EDGES[:-1] - 0.5) < abs(threshold - 0.5)
    assert (curve[nearer] < curve.max() - MARGIN).all()


def test_of_a_single_network_nothing_is_rounded():
    one = Selection(2**-18, "flips", 5)
    assert together([one]) == one
    assert together([one, one]).threshold == pytest.approx(2**-18, rel=1e-3)
    assert together([Selection(1 - 2**-20)] * 2).threshold == pytest.approx(1 - 2**-20, abs=1e-8)


def test_what_the_threshold_reaches_alone_is_kept():
    probabilities, masks = images()
    choice = chosen(probabilities, masks)
    assert choice.unprocessed == pytest.approx(choice.curve[round(choice.selection.threshold * 1000)])


def test_where_nothing_is_gained_nothing_is_changed():
    _, masks = images()
    sharp = [np.where(mask, 0.9, 0.1) for mask in masks]
    choice = chosen(sharp, masks, areas=(5, 10), largest=True, holes=True)
    assert choice.selection == Selection()
    assert choice.value == choice.default == 1
    assert choice.tried[0] == ("threshold 0.5", 1)
    assert len(choice.tried) == 2 + 2 + 2


def speckled(probabilities, random):
    dirty = [probability.copy() for probability in probabilities]
    for probability in dirty:
        rows, columns = random.integers(0, 40, 12), random.integers(0, 50, 12)
        probability[rows, columns] = 0.95
    return dirty


def test_specks_are_dropped_and_holes_filled_if_that_helps():
    _, masks = images()
    random = np.random.default_rng(0)
    sharp = [np.where(mask, 0.9, 0.1) for mask in masks]
    choice = chosen(speckled(sharp, random), masks, areas=(3, 8, 400))
    assert choice.selection.min_area in (3, 8)
    assert choice.value > choice.default + 0.01
    holed = [probability.copy() for probability in sharp]
    for probability, mask in zip(holed, masks, strict=True):
        rows, columns = np.nonzero(mask)
        probability[rows.mean().astype(int), columns.mean().astype(int)] = 0.1
        probability[rows.mean().astype(int) - 3, columns.mean().astype(int)] = 0.1
    assert chosen(holed, masks, holes=True).selection.holes
    assert not chosen(holed, masks, holes=False).selection.holes


def test_other_views_are_taken_only_if_they_gain():
    probabilities, masks = images()
    worse = [np.clip(probability * 0 + 0.2, 0, 1) for probability in probabilities]
    counted = {
        "none": np.array([histogram(*pair) for pair in zip(worse, masks, strict=True)]),
        "flips": np.array([histogram(*pair) for pair in zip(probabilities, masks, strict=True)]),
    }
    asked = []

    def of(selection):
        asked.append(selection.views)
        return counter(probabilities, masks)(selection)

    choice = select(counted, of, range(len(masks)), holes=True)
    assert choice.selection.views == "flips"
    assert asked == ["flips"]  # masks are processed as seen in the views that were chosen
    same = {"none": counted["flips"], "flips": counted["flips"]}
    assert select(same, of, range(len(masks))).selection.views == "none"


def test_frames_of_one_patient_convince_as_one():
    gains, than = np.repeat([0.05, -0.01, 0.02, -0.03, 0.01], 20), np.full(100, 0.5)  # five patients, of 20 frames each
    assert convincing(than + gains, than, range(100))
    assert not convincing(than + gains, than, np.arange(5).repeat(20))
    assert convincing(than + gains, than, [0] * 100)  # of one patient alone nothing better is known
    assert not convincing(than + np.repeat([0.05, -0.05], 50), than, [0] * 100)
    assert convincing(than + 0.1, than, np.arange(5).repeat(20))


def test_a_choice_on_one_patient_is_made_and_said(monkeypatch):
    probability, mask = np.full((20, 20), 0.1, np.float32), np.zeros((20, 20), bool)
    mask[4:8, 4:8] = True
    probability[mask] = 0.3
    picture = {"native_mask": lambda: torch.from_numpy(mask[None]), "native_valid": lambda: None}
    settings = {"views": ["none"], "metric": "dice", "areas": [], "largest": False, "holes": False}
    module = SimpleNamespace(monitor="val/dice", empty="one", net=None, tile=None)

    def predict(trainer, data, nets, tile, split, views, receive):
        for index in range(6):
            receive(index, probability)

    def choose(*groups):
        pictures = [SimpleNamespace(group=group, **picture) for group in groups]
        return scoring.choose(
            None, SimpleNamespace(splits={"val": SimpleNamespace(pictures=pictures)}), module, settings
        )[0]

    monkeypatch.setattr(scoring, "_predict", predict)
    with pytest.warns(UserWarning, match=r"All 6 validation images are of one patient or sequence \(p1\)"):
        choice = choose(*["p1"] * 6)
    assert choice.selection.threshold < 0.3
    assert choice.groups == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(*"aabbcc").groups == 3


@pytest.mark.parametrize(("empty", "expected"), [("one", 0.5), ("zero", 0.0)])
def test_the_policy_for_empty_masks_counts_in_the_curve(empty, expected):
    masks = [np.zeros((4, 4), bool), np.ones((4, 4), bool)]
    counted = np.array([histogram(np.full((4, 4), 0.2), mask) for mask in masks])
    curve = threshold_curve(counted, "dice", empty)
    assert curve[500] == expected
    assert curve[100] == 0.5  # everything painted: the empty one is wrong, the full one right
    skipped = threshold_curve(counted[:1], "dice", "skip")
    assert np.isnan(skipped[500])
    assert skipped[100] == 0


def test_a_selection_says_what_it_does_and_refuses_what_cannot_be():
    full = Selection(0.35, "turns", min_area=20, largest=True, holes=True)
    assert full.words() == "threshold 0.35, views turns, no piece below 20 pixels, the largest piece, holes filled"
    assert list(full.postprocess().steps) == ["min_area", "largest", "holes"]
    with pytest.raises(ValueError, match="threshold must be from 0 to below 1; got 1"):
        Selection(1)
    with pytest.raises(ValueError, match=r"selection.metric must be one of dice, iou.*; got 'hd95'"):
        threshold_curve(np.zeros((1, 2, BINS)), "hd95", "one")


def test_pixels_are_counted_inside_the_field_of_view():
    prediction, mask, valid = np.array([[[1, 1, 0, 0, 1]], [[1, 0, 1, 0, 1]], [[1, 1, 1, 1, 0]]], bool)
    assert pixel_counts(prediction, mask) == [2, 1, 1, 1]
    assert pixel_counts(prediction, mask, valid) == [1, 1, 1, 1]


@pytest.mark.parametrize(("monitor", "value"), [("val/dice_fov", 1.0), ("val/dice", 2 * 16 / (2 * 16 + 160))])
def test_the_threshold_is_chosen_in_the_field_of_view_where_that_decides(monkeypatch, monitor, value):
    probability = np.full((20, 20), 0.1, np.float32)
    mask, valid = np.zeros((20, 20), bool), np.ones((20, 20), bool)
    mask[4:8, 4:8], valid[:, 12:] = True, False
    probability[mask], probability[~valid] = 0.3, 0.4  # all that is brighter than the object lies outside
    native = {
        "native_mask": lambda: torch.from_numpy(mask[None]),
        "native_valid": lambda: torch.from_numpy(valid[None]),
    }
    pictures = [SimpleNamespace(group=str(index), **native) for index in range(6)]

    def predict(trainer, data, nets, tile, split, views, receive):
        for index in range(6):
            receive(index, probability)

    monkeypatch.setattr(scoring, "_predict", predict)
    data = SimpleNamespace(splits={"val": SimpleNamespace(pictures=pictures)})
    module = SimpleNamespace(monitor=monitor, empty="one", net=None, tile=None)
    settings = {"views": ["none"], "tile": None, "metric": "dice", "areas": [], "largest": False, "holes": False}
    choice, seen = scoring.choose(None, data, module, settings)
    assert list(seen["none"]) == list(range(6))
    assert choice.value == pytest.approx(value)
    assert choice.selection.threshold < 0.3
