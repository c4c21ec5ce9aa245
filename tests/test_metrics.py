import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from raremask.metrics.gather import ImageCounts, Means, count
from raremask.metrics.overlap import baselines, chance, score, summary

pairs = arrays.arrays(np.bool_, st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 9)))


def counts_of(prediction, mask):
    return count(torch.as_tensor(prediction)[None, None], torch.as_tensor(mask)[None, None]).numpy()


@given(pairs)
def test_scores_of_one_image_equal_scikit_learn(pair):
    prediction, mask = pair
    scores = score(counts_of(prediction, mask), empty="zero")
    references = {"dice": f1_score, "iou": jaccard_score, "precision": precision_score, "recall": recall_score}
    for name, reference in references.items():
        assert scores[name][0] == pytest.approx(reference(mask.ravel(), prediction.ravel(), zero_division=0))


@given(pairs)
def test_dice_and_iou_do_not_care_which_is_the_truth(pair):
    there, back = (score(counts_of(*order)) for order in (pair, pair[::-1]))
    assert there["dice"] == back["dice"]
    assert there["iou"] == back["iou"]
    assert there["precision"] == back["recall"]


@pytest.mark.parametrize(("empty", "worth"), [("one", 1.0), ("skip", np.nan), ("zero", 0.0)])
def test_an_empty_mask_left_empty_is_worth_what_the_policy_says(empty, worth):
    scores = score(np.array([[0, 0, 0, 9]]), empty)
    for values in scores.values():
        np.testing.assert_equal(values[0], worth)


@pytest.mark.parametrize("empty", ["one", "skip", "zero"])
@pytest.mark.parametrize("counts", [[0, 1, 0, 8], [0, 0, 3, 6]], ids=["false positive on empty", "missed"])
def test_a_false_positive_on_an_empty_mask_and_a_missed_object_score_zero_under_every_policy(empty, counts):
    assert all(values[0] == 0 for values in score(np.array([counts]), empty).values())


def test_the_mean_over_images_and_the_pooled_score_stand_under_their_own_names():
    # Dice: 1 and 0; pooled: 2 * 10 / (20 + 10)
    result = summary(np.array([[10, 0, 0, 90], [0, 0, 10, 90]]))
    assert result["dice"] == 0.5
    assert result["dice_pooled"] == pytest.approx(2 / 3)
    assert result["foreground_predicted"] == 0.05
    assert result["foreground_true"] == 0.1


@pytest.mark.parametrize(
    ("name", "empty", "expected"),
    [
        ("dice", "one", 0.5 + 0.05 * 0.5),  # nothing: 0 and 1; everything: .4 and 0
        ("dice", "skip", 0.2 + 0.05 * 0.8),  # nothing: 0, the other is left out
        ("iou", "zero", 0.125 + 0.05 * 0.875),
        ("contrast", "one", -np.inf),  # is no score of overlap
    ],
)
def test_a_score_must_pass_nothing_and_everything_to_show_anything(name, empty, expected):
    counts = np.array([[10, 5, 15, 70], [0, 5, 0, 95]])  # a quarter of the first image is foreground
    assert chance(counts, name, empty) == pytest.approx(expected)
    assert chance(counts[:1], "recall") == -np.inf  # everything is perfect


def test_skipped_images_are_left_out_of_the_mean():
    assert summary(np.array([[0, 0, 0, 9], [1, 0, 0, 8]]), "skip")["dice"] == 1
    assert np.isnan(summary(np.array([[0, 0, 0, 9]]), "skip")["dice"])


def test_painting_nothing_and_painting_everything_are_counted_from_the_same_images():
    counts = np.array([[3, 1, 2, 14]])  # 5 of 20 pixels are foreground
    nothing, everything, _ = baselines(counts).values()
    assert nothing.tolist() == [[0, 0, 5, 15]]
    assert everything.tolist() == [[5, 15, 0, 0]]
    assert summary(everything)["dice"] == pytest.approx(2 * 5 / (20 + 5))


def test_a_random_prediction_paints_as_much_as_there_is_without_regard_to_where():
    counts = np.array([[3000, 1000, 2000, 14000], [0, 0, 0, 20000]])  # an eighth of all pixels is foreground
    random = baselines(counts)["random"]
    assert (random.sum(axis=1) == [20000, 20000]).all()
    assert random[:, [0, 2]].sum(axis=1).tolist() == [5000, 0]  # tp + fn: what there is
    assert (random[:, 0] + random[:, 1]) / 20000 == pytest.approx(1 / 8, rel=0.05)
    assert random[0, 0] / 5000 == pytest.approx(1 / 8, rel=0.1)  # recall: as often as elsewhere
    assert (baselines(counts)["random"] == random).all()


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="one of one, skip, zero; got 'nan'"):
        score(np.zeros((1, 4)), "nan")


def test_pixels_outside_the_validity_mask_are_not_counted():
    prediction = torch.tensor([[True, True], [False, False]])[None, None]
    mask = torch.tensor([[True, False], [True, False]])[None, None]
    valid = torch.tensor([[True, False], [True, True]])[None, None]
    assert count(prediction, mask).tolist() == [[1, 1, 1, 1]]
    assert count(prediction, mask, valid).tolist() == [[1, 0, 1, 1]]


def test_gathered_counts_come_in_the_order_of_the_dataset_and_what_is_drawn_twice_counts_twice():
    metric = ImageCounts()
    metric.update(torch.tensor([2, 0]), torch.tensor([[1, 1, 1, 1], [2, 2, 2, 2]]))
    metric.update(torch.tensor([1, 0]), torch.tensor([[3, 3, 3, 3], [2, 2, 2, 2]]))  # 0 again: another crop, as empty
    assert metric.compute().tolist() == [[0, 2, 2, 2, 2], [0, 2, 2, 2, 2], [1, 3, 3, 3, 3], [2, 1, 1, 1, 1]]


def test_means_of_an_epoch_weigh_each_step_by_its_images():
    metric = Means()
    metric.update({"loss": torch.tensor(1.0), "spread": torch.tensor(0.0)}, 3)
    metric.update({"loss": torch.tensor(5.0), "spread": torch.tensor(1.0)}, torch.tensor(1))
    assert metric.compute() == {"loss": 2.0, "spread": 0.25}  # (3 * 1 + 5) / 4


def test_a_loss_that_is_no_number_shows_in_the_mean():
    metric = Means()
    metric.update({"loss": torch.tensor(torch.nan)}, 1)
    metric.update({"loss": torch.tensor(1.0)}, 1)
    assert metric.compute()["loss"].isnan()
