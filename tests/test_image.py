import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import fbeta_score, matthews_corrcoef, recall_score

from raremask.metrics.image import score_image
from raremask.metrics.overlap import more_scores

pairs = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.tuples(arrays.arrays(bool, shape), arrays.arrays(bool, shape))
)


@pytest.mark.filterwarnings("ignore:A single label was found")  # of one class; the coefficient is right
@given(pairs)
def test_more_scores_equal_scikit_learn(pair):
    prediction, mask = pair
    scores = score_image(prediction.astype(float), prediction, mask, empty="zero")[""].scores
    flat = mask.ravel(), prediction.ravel()
    assert scores["f2"] == pytest.approx(fbeta_score(*flat, beta=2, zero_division=0))
    assert scores["mcc"] == pytest.approx(matthews_corrcoef(*flat))
    assert scores["specificity"] == pytest.approx(recall_score(*flat, pos_label=False, zero_division=1))


def test_the_challenge_of_isic_gives_nothing_below_65_percent():
    # IoU 13/20 = .65 counts, 12/20 = .6 does not
    counts = np.array([[13, 3, 4, 80], [12, 4, 4, 80], [0, 0, 0, 100]])
    assert more_scores(counts)["iou_65"].tolist() == pytest.approx([0.65, 0, 1])


def everything(mask, prediction, **changes):
    """Of the pixels inside, if there is a field of view."""
    *_, part = score_image(np.where(prediction, 0.9, 0.1), prediction, mask, **changes).values()
    return part.scores


FREE = {"specificity", "brier", "ece", "average_precision"}  # of any policy


@pytest.mark.parametrize(("empty", "worth", "far"), [("one", 1, 0), ("skip", np.nan, np.nan), ("zero", 0, 50)])
def test_an_empty_mask_left_empty_is_worth_what_the_policy_says(empty, worth, far):
    scores = everything(np.zeros((30, 40), bool), np.zeros((30, 40), bool), empty=empty)
    for name in scores.keys() - FREE:
        np.testing.assert_equal(scores[name], far if name in ("hd95", "asd") else worth)
    assert scores["specificity"] == 1
    assert scores["brier"] == pytest.approx(0.01, abs=1e-3)
    assert np.isnan(scores["average_precision"])


@pytest.mark.parametrize("empty", ["one", "skip", "zero"])
def test_no_policy_forgives_a_false_positive_or_a_miss(empty):
    nothing, something = np.zeros((2, 30, 40), bool)
    something[4:8, 4:8] = True
    for pair in ((nothing, something), (something, nothing)):
        scores = everything(*pair, empty=empty)
        assert scores["hd95"] == scores["asd"] == 50
        for name in scores.keys() - FREE - {"hd95", "asd"}:
            assert scores[name] == 0


def test_outside_the_field_of_view_nothing_counts():
    random = np.random.default_rng(0)
    mask, prediction = random.random((2, 30, 40)) > 0.7
    valid = np.zeros((30, 40), bool)
    valid[5:20, 5:25] = True
    scores = everything(mask, prediction, valid=valid)
    noise = everything(mask ^ ~valid, prediction | ~valid, valid=valid)
    assert noise.pop("brier") == pytest.approx(scores.pop("brier"))  # the probability outside is another
    assert noise == pytest.approx(scores)
    with pytest.raises(ValueError, match="must have one shape"):
        everything(mask, prediction, valid=valid[1:])


@pytest.mark.parametrize("beyond", [False, True], ids=["nothing outside", "something outside"])
@pytest.mark.parametrize("empty", ["one", "skip", "zero"])
def test_shapes_inside_the_field_of_view_score_as_if_nothing_were_outside(beyond, empty):
    random = np.random.default_rng(0)
    valid = np.zeros((30, 40), bool)
    valid[5:20, 5:25] = True
    for share in (0.3, 0.0):  # the second: both masks are empty inside
        mask, prediction = (random.random((2, 30, 40)) < share) & valid
        prediction[25, 30] = beyond
        alone = everything(mask, prediction & valid, empty=empty)
        inside = everything(mask, prediction, empty=empty, valid=valid)
        for name in ("hd95", "asd", "nsd", "boundary_iou", "object_recall", "object_f1", "centreline_dice"):
            np.testing.assert_equal(inside[name], alone[name])


def test_the_whole_image_scores_the_same_with_and_without_a_field_of_view():
    random = np.random.default_rng(0)
    probability, (mask, valid) = random.random((30, 40)), random.random((2, 30, 40)) > 0.7
    with_view = score_image(probability, probability > 0.6, mask, valid)[""]
    without = score_image(probability, probability > 0.6, mask)[""]
    assert with_view.scores == without.scores
    assert (with_view.counts == without.counts).all()
    assert (with_view.counted == without.counted).all()
