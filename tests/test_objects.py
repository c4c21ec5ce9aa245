import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from raremask.metrics.objects import centreline_dice, detection_scores

sides = st.tuples(st.integers(1, 12), st.integers(1, 12))
masks = sides.flatmap(lambda shape: st.tuples(arrays.arrays(bool, shape), arrays.arrays(bool, shape)))


def discs(*centres, radius=4):
    mask = np.zeros((60, 80), np.uint8)
    for centre in centres:
        cv2.circle(mask, centre, radius, 1, -1)
    return mask > 0


def test_objects_are_counted_worked_by_hand():
    mask = discs((10, 10), (30, 10), (50, 10), (70, 10))
    prediction = discs((11, 10), (30, 11), (20, 40))  # two of four found, one of three made up
    scores = detection_scores(prediction, mask)
    assert scores == pytest.approx({"object_recall": 2 / 4, "object_precision": 2 / 3, "object_f1": 4 / 7})


def test_small_objects_weigh_as_much_as_large_ones():
    mask = discs((30, 30), radius=20) | discs((70, 10), radius=1)
    assert detection_scores(discs((30, 30), radius=20), mask)["object_recall"] == 0.5


def test_painting_everything_finds_nothing():
    mask = discs((10, 10), (30, 10), (50, 10))
    assert detection_scores(np.ones_like(mask), mask)["object_f1"] == 0


def test_one_prediction_over_two_objects_finds_one_of_them():
    mask = discs((10, 10), (24, 10))
    bridge = mask.copy()
    bridge[9:12, 10:24] = True
    assert detection_scores(bridge, mask) == pytest.approx(
        {"object_recall": 0.5, "object_precision": 1, "object_f1": 2 / 3}
    )


def test_an_overlap_below_the_least_is_no_match():
    mask, prediction = discs((10, 10)), discs((17, 10))  # they share a sliver
    assert (mask & prediction).any()
    assert detection_scores(prediction, mask)["object_f1"] == 0
    assert detection_scores(prediction, mask, least=0.01)["object_f1"] == 1
    with pytest.raises(ValueError, match="least must be more than 0 and at most 1; got 0"):
        detection_scores(prediction, mask, least=0)


def test_of_two_partners_the_better_one_is_taken():
    mask, prediction = np.zeros((2, 10, 32), bool)
    mask[:, :10] = mask[:2, 12:] = True
    prediction[:2] = True  # overlaps the first object by .14, the second by .63
    prediction[3:, :10] = True  # overlaps the first by .7
    assert detection_scores(prediction, mask)["object_f1"] == 1  # in the order of their numbers it would be one half


def matched_by_force(prediction, mask, least):
    """The largest overlap first, again and again, over full masks of every pair."""
    eight = np.ones((3, 3))
    found, made = ndimage.label(prediction, eight)
    true, there = ndimage.label(mask, eight)
    overlap = {
        (a, b): ((true == a) & (found == b)).sum() / ((true == a) | (found == b)).sum()
        for a in range(1, there + 1)
        for b in range(1, made + 1)
    }
    partners, hits = [value for value in overlap.values() if value >= least], 0
    while overlap:
        best = max(overlap, key=overlap.get)
        if overlap[best] < least:
            break
        hits += 1
        overlap = {pair: value for pair, value in overlap.items() if pair[0] != best[0] and pair[1] != best[1]}
    return hits, made, there, len(set(partners)) == len(partners)


@given(masks, st.sampled_from([0.1, 0.3, 0.5]))
def test_matching_equals_the_definition_pair_by_pair(pair, least):
    hits, made, there, distinct = matched_by_force(*pair, least)
    if made and there:
        scores = detection_scores(*pair, least)
        # equal overlaps may be taken in another order, which can change the number of matches by chance; from one half
        # on no object has two partners
        if distinct or least == 0.5:
            assert scores["object_f1"] == pytest.approx(2 * hits / (made + there))
        assert 0 <= scores["object_recall"] <= 1
        assert scores["object_recall"] * there == pytest.approx(scores["object_precision"] * made)


def test_thousands_of_objects_on_either_side_need_no_table_of_all_their_pairs():
    dust, other = np.zeros((2, 400, 400), bool)
    dust[::2, ::2] = True
    other[::2, ::4] = True  # half of them
    tracemalloc.start()
    found = detection_scores(dust, other)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == {"object_recall": 1.0, "object_precision": 0.5, "object_f1": pytest.approx(2 / 3)}
    assert peak < 50 * dust.size  # a table would have 40,000 times 20,000 numbers


@given(masks)
def test_object_scores_know_perfect_and_nothing(pair):
    mask, _ = pair
    assert set(detection_scores(mask, mask).values()) == {1.0}
    nothing = np.zeros_like(mask)
    for scores in (detection_scores(nothing, mask), detection_scores(mask, nothing)):
        assert set(scores.values()) == {0.0 if mask.any() else 1.0}
    assert centreline_dice(nothing, mask) == centreline_dice(mask, nothing) == (0.0 if mask.any() else 1.0)
    assert centreline_dice(mask, mask) == 1


def line(*, gap=0, width=3):
    mask = np.zeros((40, 100), bool)
    mask[20 - width // 2 : 20 + width // 2 + 1, 10:90] = True
    mask[:, 50 : 50 + gap] = False
    return mask


def test_the_centreline_does_not_care_about_width_but_about_gaps():
    assert centreline_dice(line(width=7), line(width=3)) == pytest.approx(1, abs=0.03)
    # of the mask's line of about 80 pixels 20 are missed; what is painted is true: 2 * 1 * .75 / 1.75
    assert centreline_dice(line(gap=20), line()) == pytest.approx(6 / 7, abs=0.02)


@given(masks)
def test_the_centreline_dice_has_its_bounds_and_is_symmetric(pair):
    assert 0 <= centreline_dice(*pair) <= 1
    assert centreline_dice(*pair) == pytest.approx(centreline_dice(*pair[::-1]))
