import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import average_precision_score, brier_score_loss

from raremask.metrics.calibration import (
    BINS,
    EDGES,
    GROUPS,
    MIDDLES,
    average_precision,
    calibration_scores,
    counts_at,
    histogram,
    reliability,
)

levels = arrays.arrays(np.int64, (6, 7), elements=st.integers(0, BINS))
masks = arrays.arrays(bool, (6, 7))


@given(levels, masks)
def test_counts_at_every_threshold_equal_those_of_the_thresholded_image(level, mask):
    counts = counts_at(histogram(EDGES[level], mask))
    for threshold in (0, 1, 9, 250, 500, 777, BINS - 9, BINS - 1):
        painted = (level > threshold) if threshold else np.ones_like(mask)
        expected = [(painted & mask), (painted & ~mask), (~painted & mask), (~painted & ~mask)]
        assert counts[threshold].tolist() == [cells.sum() for cells in expected]


@given(levels, masks)
def test_average_precision_equals_scikit_learn(level, mask):
    probability = EDGES[np.maximum(level, 1)]  # 0 is in the first bin too
    found = average_precision(histogram(probability, mask))
    if mask.any():
        assert found == pytest.approx(average_precision_score(mask.ravel(), probability.ravel()))
    else:
        assert np.isnan(found)


@given(levels, masks)
def test_the_brier_score_equals_scikit_learn_up_to_half_a_bin(level, mask):
    probability = EDGES[level]
    expected = brier_score_loss(mask.ravel(), probability.ravel(), labels=[False, True])
    assert calibration_scores(histogram(probability, mask))["brier"] == pytest.approx(expected, abs=1e-3)


@given(levels, masks)
def test_the_calibration_error_equals_its_definition_group_by_group(level, mask):
    middle = MIDDLES[np.maximum(level, 1) - 1]
    expected = 0.0
    for group in range(GROUPS):
        inside = np.floor(middle * GROUPS) == group
        if inside.any():
            expected += inside.mean() * abs(middle[inside].mean() - mask[inside].mean())
    assert calibration_scores(histogram(EDGES[level], mask))["ece"] == pytest.approx(expected)


@given(levels, masks)
def test_reliability_is_the_mean_probability_and_the_share_of_foreground_of_each_group(level, mask):
    said, there = reliability(histogram(EDGES[level], mask))
    middle = MIDDLES[np.maximum(level, 1) - 1]
    for group in range(GROUPS):
        inside = np.floor(middle * GROUPS) == group
        if inside.any():
            assert said[group] == pytest.approx(middle[inside].mean())
            assert there[group] == pytest.approx(mask[inside].mean())
        else:
            assert np.isnan(said[group])
            assert np.isnan(there[group])


def test_what_says_the_truth_is_calibrated_and_what_is_too_sure_is_not():
    random = np.random.default_rng(0)
    probability = random.random((300, 300))
    honest = random.random((300, 300)) < probability
    assert calibration_scores(histogram(probability, honest))["ece"] < 0.01
    bold = np.where(probability > 0.5, 0.99, 0.01)
    # of those above one half three quarters are true: off by .99 - .75 there, and by as much below
    assert calibration_scores(histogram(bold, honest))["ece"] == pytest.approx(0.24, abs=0.01)


def test_pixels_outside_the_field_of_view_are_counted_apart_and_images_add_up():
    random = np.random.default_rng(0)
    probability, mask = random.random((8, 9)), random.random((8, 9)) > 0.5
    valid = np.zeros((8, 9), bool)
    valid[:, :5] = True
    inside, outside = (histogram(probability[:, part], mask[:, part]) for part in (slice(5), slice(5, None)))
    assert np.array_equal(histogram(probability, mask, valid), [outside, inside])
    assert np.array_equal(inside + outside, histogram(probability, mask))
    many = np.stack([inside, histogram(probability, mask)])
    assert np.array_equal(counts_at(many)[1], counts_at(many[1]))


def test_a_float_that_is_a_threshold_is_not_more_than_it():
    for bin_below, threshold in enumerate(EDGES[1:].astype(np.float32)):
        counted = histogram(np.array([[threshold]]), np.array([[True]]))
        assert counted[1, bin_below] == 1


def test_the_floats_next_to_a_threshold_fall_on_its_right_sides():
    thresholds = EDGES.astype(np.float32)
    beside = [np.nextafter(thresholds, np.float32(toward)) for toward in (0, 1)]
    probability = np.concatenate([thresholds, *beside, 2.0 ** -np.arange(126, dtype=np.float32)])[None]
    expected = np.searchsorted(thresholds, probability[0]).clip(1) - 1  # how many thresholds it is more than, less one
    counted = histogram(probability, np.ones(probability.shape, bool))
    assert counted[1].tolist() == np.bincount(expected, minlength=BINS).tolist()


def test_thresholds_are_even_in_the_middle_and_octaves_at_the_ends():
    assert (np.diff(EDGES.astype(np.float32)) > 0).all()
    assert np.isin(np.arange(1, 1000) / 1000, EDGES).all()
    assert EDGES[[1, -2]].tolist() == [2**-20, 1 - 2**-20]
    assert max(EDGES[1:12] / EDGES[2:13]) < 1


@pytest.mark.parametrize("probability", [0.0, 1e-6, 5e-4, 1e-3, 2e-3])
def test_where_a_thousandth_is_foreground_the_calibration_error_tells_honest_from_silent(probability):
    mask = np.zeros((100, 100), bool)
    mask[0, :10] = True
    found = calibration_scores(histogram(np.full(mask.shape, probability), mask))["ece"]
    assert found == pytest.approx(abs(probability - 1e-3), abs=5e-4)  # probabilities are known up to their bin
    assert (found < 1e-4) == (probability == 1e-3)


def test_what_is_no_probability_is_in_the_first_bin():
    for nothing in (-0.0, np.nan, -1e-9):
        assert histogram(np.array([[nothing]]), np.array([[True]]))[1, 0] == 1


def test_rare_foreground_of_small_probabilities_is_ranked():
    random = np.random.default_rng(0)
    mask = np.arange(10_000).reshape(100, 100) < 10
    probability = np.where(mask, random.uniform(3e-4, 9e-4, mask.shape), random.uniform(0, 2e-4, mask.shape))
    assert average_precision(histogram(probability, mask)) == 1
