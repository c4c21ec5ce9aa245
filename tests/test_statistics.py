import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from raremask.compare.statistics import (
    Estimate,
    by_group,
    cliques,
    detectable,
    estimate,
    holm,
    means,
    pairs,
    permutation_test,
    ranks,
    resample,
    student_test,
)

differences = arrays(np.int64, st.integers(2, 8), elements=st.integers(-50, 50)).map(lambda whole: whole / 50)


def drawn(groups, times=4000):
    return resample(groups, times, np.random.default_rng(1))


def test_seeds_in_another_order_are_no_difference():
    one = np.tile([[0.1], [0.2], [0.3]], 20)
    found = pairs({"a": one, "b": one[::-1]}, np.arange(20))
    assert [(pair.permutation, pair.wilcoxon, pair.holm) for pair in found.values()] == [(1, 1, 1)]


def test_a_label_without_a_score_has_none():
    found = estimate([np.full((2, 3), np.nan)], [1], np.arange(3))
    assert np.isnan(found.value)


def test_groups_are_drawn_whole():
    weights = drawn(np.array(["a", "a", "a", "b", "c", "c"]), 500)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, [0, 3, 4]].sum(axis=1) == 3).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(6), abs=0.15)


def test_weighted_means_leave_out_what_is_left_out():
    scores = np.array([[1.0, np.nan, 3.0], [2.0, 2.0, np.nan]])
    found = means(scores, np.array([[1.0, 1.0, 1.0], [2.0, 5.0, 1.0], [0.0, 1.0, 0.0]]))
    np.testing.assert_allclose(found, [[2.0, 2.0], [5 / 3, 2.0], [np.nan, 2.0]])


def test_with_one_image_a_group_and_one_seed_the_interval_is_student_s():
    random = np.random.default_rng(0)
    scores = random.normal(0.7, 0.1, (1, 40))
    groups = np.arange(40)
    found = estimate([scores], [1], groups)
    expected = stats.ttest_1samp(scores[0], 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.value == pytest.approx(scores.mean())


def test_the_difference_of_two_losses_is_student_s_for_pairs():
    random = np.random.default_rng(0)
    one, other = random.normal(0.7, 0.1, (2, 1, 40))
    groups = np.arange(40)
    found = estimate([one, other], [1, -1], groups)
    expected = stats.ttest_rel(one[0], other[0]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_seeds_that_differ_widen_the_interval_as_welch_has_it():
    # every image scores the same within a run, so all that varies are the seeds
    one, other = np.array([0.6, 0.7, 0.8]), np.array([0.5, 0.52, 0.54, 0.56])
    groups = np.arange(30)
    found = estimate([np.repeat(part[:, None], 30, axis=1) for part in (one, other)], [1, -1], groups)
    expected = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_images_of_one_patient_are_not_independent():
    random = np.random.default_rng(0)
    level = np.repeat(random.normal(0.5, 0.1, 8), 25)
    scores = (level + random.normal(0, 0.01, 200))[None]
    patients, alone = np.repeat(np.arange(8), 25), np.arange(200)
    by_patient, by_image = (estimate([scores], [1], groups) for groups in (patients, alone))
    assert by_patient.error > 3 * by_image.error


def test_what_varies_within_patients_is_counted_once():
    # patients of equal size that differ by their images alone: Student's test over their means
    scores = np.random.default_rng(0).normal(0.7, 0.1, (1, 200))
    groups = np.repeat(np.arange(10), 20)
    expected = stats.ttest_1samp(scores.reshape(10, 20).mean(axis=1), 0).confidence_interval(0.95)
    found = estimate([scores], [1], groups)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_patients_with_nearly_all_images_are_nearly_all_there_are():
    sizes = np.array([100, 80, 5, 5, 5, 5])
    groups = np.repeat(np.arange(6), sizes)
    scores = np.random.default_rng(0).normal(0.7, 0.1, (1, 200))
    assert estimate([scores], [1], groups).freedom == pytest.approx(200**2 / (sizes**2).sum() - 1)  # 1.4, not 5


def test_a_single_group_shows_nothing():
    random = np.random.default_rng(0)
    scores, groups = random.random((2, 10)), np.zeros(10, int)
    found = estimate([scores], [1], groups)
    assert (found.low, found.high) == (-np.inf, np.inf)
    assert detectable(found) == np.inf


@given(differences)
def test_the_permutation_test_equals_scipy_s(sums):
    expected = stats.permutation_test(
        (sums,), lambda x, axis: x.sum(axis=axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
    ).pvalue
    assert permutation_test(sums, 1, np.random.default_rng(0)) == pytest.approx(expected)


def test_with_many_groups_signs_are_drawn():
    sums = np.random.default_rng(2).normal(0.15, 1, 40)
    drawn_p = permutation_test(sums, 50_000, np.random.default_rng(0))
    assert drawn_p == pytest.approx(stats.ttest_1samp(sums, 0).pvalue, abs=0.02)
    assert permutation_test(np.ones(40), 99, np.random.default_rng(0)) == 0.01  # (0 + 1) / (99 + 1): never 0


def test_holm_corrects_as_r_does():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # p.adjust(..., "holm")
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_a_corrected_p_value_is_never_smaller_and_keeps_the_order(values):
    corrected = holm(values)
    assert all(after >= before for before, after in zip(values, corrected, strict=True))
    assert [corrected[i] for i in np.argsort(values, kind="stable")] == sorted(corrected)


def two_losses(gap, groups=20, seeds=3, seed=0):
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), 4)
    base = random.normal(0.6, 0.1, groups)[group]
    return {
        name: base + value + random.normal(0, 0.02, (seeds, len(group))) for name, value in (("a", gap), ("b", 0.0))
    }, group


def test_a_difference_that_is_the_same_in_every_group_has_no_effect_size():
    scores, groups = two_losses(0.0)
    scores["a"] = scores["b"] + 0.1  # up to rounding
    assert np.isnan(pairs(scores, groups)["a", "b"].effect)


def test_a_real_difference_is_told_apart_and_counted_image_by_image():
    scores, groups = two_losses(0.05)
    ((names, pair),) = pairs(scores, groups).items()
    assert names == ("a", "b")
    assert pair.told_apart
    assert not pair.equivalent(0.01)
    assert pair.difference.value == pytest.approx(0.05, abs=0.01)
    assert pair.effect > 1
    assert pair.wins + pair.ties + pair.losses == 80
    assert pair.wins > 70
    assert pair.wilcoxon == pytest.approx(
        stats.wilcoxon(by_group(scores["a"].mean(0) - scores["b"].mean(0), groups)[0]).pvalue
    )


def test_no_difference_within_a_margin_is_equivalence_and_not_merely_no_proof():
    scores, groups = two_losses(0.0)
    (pair,) = pairs(scores, groups).values()
    assert not pair.told_apart
    assert pair.equivalent(0.02)
    assert not pair.equivalent(0.0001)


def test_what_so_few_groups_can_never_show_could_not_have_been_shown():
    random, groups = np.random.default_rng(0), np.arange(6).repeat(5)
    scores = {name: random.normal(0.5 + 0.3 * (name == "a"), 0.01, (3, 30)) for name in "abcdefgh"}
    pair = pairs(scores, groups)["a", "b"]
    assert pair.difference.low > 0.25
    assert not pair.told_apart
    assert pair.detectable == np.inf
    assert pairs({name: scores[name] for name in "ab"}, groups)["a", "b"].told_apart


@pytest.mark.parametrize("number", [1, 28])
def test_what_could_have_been_shown_is_shown_four_times_of_five(number):
    _, groups = two_losses(0.0)
    gap = detectable(estimate(list(two_losses(0.0)[0].values()), [1, -1], groups), number)
    found = 0
    for seed in range(100):
        scores, _ = two_losses(gap, seed=seed)
        interval = estimate(list(scores.values()), [1, -1], groups)
        found += number * student_test(interval) < 0.05
    assert 65 <= found <= 95


def test_a_ranking_says_how_sure_it_is():
    groups = np.arange(30)
    random = np.random.default_rng(0)
    scores = {
        "best": random.normal(0.8, 0.05, (3, 30)),
        "one": random.normal(0.5, 0.05, (3, 30)),
        "other": random.normal(0.5, 0.05, (3, 30)),
    }
    places = ranks(scores, drawn(groups))
    assert places["best"].tolist() == [1, 0, 0]
    assert 0.02 < places["one"][1] < 0.98
    assert sum(places.values()) == pytest.approx(np.ones(3))


@pytest.mark.parametrize(
    ("apart", "expected"),
    [
        (set(), [(0, 3)]),
        ({"ab", "ac", "ad", "bc", "bd", "cd"}, []),
        ({"ad"}, [(0, 2), (1, 3)]),
        ({"ab", "ac", "ad"}, [(1, 3)]),
    ],
)
def test_bars_join_what_is_not_told_apart(apart, expected):
    assert cliques("abcd", lambda one, other: one + other in apart) == expected


def test_intervals_cover_and_false_positives_are_rare():
    """A short form of scripts/study_statistics.py, whose page says what a thousand comparisons gave."""
    random = np.random.default_rng(0)
    held = claimed = 0
    for _ in range(200):
        group = np.repeat(np.arange(10), 8)
        shared = random.normal(0, 0.1, 10)[group] + random.normal(0, 0.1, 80)
        shift = random.normal(0, 0.01, (2, 3, 1))
        one, other = (
            shared + random.normal(0, 0.02, (2, 1, 10))[..., group] + shift + random.normal(0, 0.05, (2, 3, 80))
        )
        (pair,) = pairs({"a": one, "b": other}, group).values()
        held += pair.difference.low <= 0 <= pair.difference.high
        claimed += pair.told_apart
    assert 184 <= held <= 200  # 95 %, but for chance
    assert claimed <= 18  # 5 %, but for chance


def test_an_estimate_without_spread_is_sure():
    scores, groups = np.full((3, 12), 0.5), np.arange(12)
    assert estimate([scores], [1], groups) == Estimate(0.5, 0.5, 0.5, 0.0, 11.0)
