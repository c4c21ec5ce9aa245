import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raremask import BadInput
from raremask.data.splits import SPLITS, Split, deal, split_csv, strata


def names(number):
    return [f"image{index}" for index in range(number)]


def split(groups=None, fixed=None, foreground=None, number=None, **arguments):
    number = number or len(groups or fixed or foreground)
    given = names(number), groups or names(number), fixed or [None] * number, foreground or [0.1] * number
    return Split(**arguments)(*given)


def sizes(chosen):
    return [chosen.count(name) for name in SPLITS]


@settings(max_examples=20)  # scikit-learn shuffles much
@given(st.lists(st.sampled_from("abcdefgh"), min_size=8, max_size=60).filter(lambda groups: len(set(groups)) > 4))
def test_a_group_is_never_divided_and_nothing_is_lost(groups):
    chosen = split(groups)
    owners = [{group for group, its in zip(groups, chosen, strict=True) if its == name} for name in SPLITS]
    assert sum(map(len, owners)) == len(set(groups))
    assert all(owners)
    assert len(chosen) == len(groups)


def test_a_fifth_tests_and_a_fifth_of_the_others_validates():
    assert sizes(split(number=100)) == [64, 16, 20]
    assert split(number=100) == split(number=100)
    assert split(number=100) != split(number=100, seed=1)


def test_the_splits_are_alike_in_their_foreground():
    random = np.random.default_rng(0)
    foreground = np.where(np.arange(500) < 300, 0, random.gamma(1, 0.05, 500)).tolist()
    chosen = np.array(split(foreground=foreground))
    for name in SPLITS:
        mine = np.array(foreground)[chosen == name]
        assert (mine == 0).mean() == pytest.approx(0.6, abs=0.01)  # one in a hundred of chance alone
        assert mine[mine > 0].mean() == pytest.approx(0.05, rel=0.12)


@pytest.mark.parametrize("seed", range(3))
def test_foreground_that_is_too_rare_for_every_part_is_in_every_split_all_the_same(seed):
    foreground = [0.0] * 48 + [0.1] * 4 + [0.0] * 48  # scikit-learn leaves its first part, which tests, without any
    assert not np.array(foreground)[deal(np.array(names(100)), np.array(foreground), 5, seed) == 0].any()
    chosen = np.array(split(foreground=foreground, seed=seed))
    assert [bool(np.array(foreground)[chosen == name].any()) for name in SPLITS] == [True, True, True]
    assert sizes(chosen.tolist()) == [64, 16, 20]


def test_the_only_foreground_stays_in_training():
    chosen = split(foreground=[0.0] * 20 + [0.1] + [0.0] * 20)
    assert chosen[20] == "train"


def test_groups_too_are_dealt_evenly_and_every_seed_deals_anew():
    random = np.random.default_rng(0)
    groups = np.repeat([f"video{index}" for index in range(30)], random.integers(5, 30, 30))
    empty_rate = dict(zip(np.unique(groups), random.random(30), strict=True))
    foreground = np.array([0.1 * (random.random() > empty_rate[group]) for group in groups])
    parts = [deal(groups, foreground, 5, seed) for seed in range(3)]
    shares = [[(foreground[part == number] == 0).mean() for number in range(5)] for part in parts]
    assert np.ptp(shares) < 0.2  # of videos drawn blindly .3 and more
    assert all(np.bincount(part).min() > 0.6 * len(groups) / 5 for part in parts)
    assert not np.array_equal(parts[0], parts[1])
    assert not np.array_equal(parts[1], parts[2])


@pytest.mark.parametrize("groups", [None, [f"video{index // 3}" for index in range(60)]])
def test_over_all_folds_each_image_tests_once_and_validates_once(groups):
    all_folds = [split(groups, number=60, fold=fold, folds=5, seed=3) for fold in range(5)]
    for image in zip(*all_folds, strict=True):
        assert Counter(image) == {"train": 3, "val": 1, "test": 1}


def test_a_test_split_that_the_dataset_fixes_stays_and_the_rest_is_folded():
    fixed = ["train"] * 8 + ["val"] * 2 + ["test"] * 5
    all_folds = [split(fixed=fixed, fold=fold, folds=5) for fold in range(5)]
    for image, its in zip(zip(*all_folds, strict=True), fixed, strict=True):
        assert Counter(image) == ({"test": 5} if its == "test" else {"train": 4, "val": 1})


def test_what_the_dataset_fixes_stays_and_a_missing_validation_comes_out_of_training():
    fixed = ["train"] * 10 + ["val"] * 2 + ["test"] * 3
    assert split(fixed=fixed) == fixed
    assert sizes(split(fixed=["train"] * 10 + ["test"] * 3)) == [8, 2, 3]
    assert sizes(split(fixed=[None] * 20 + ["test"] * 20)) == [16, 4, 20]  # DRIVE


def test_dividing_by_image_ignores_groups_and_warns():
    groups = [f"video{index // 20}" for index in range(100)]
    with pytest.warns(UserWarning, match="scores will be too good"):
        chosen = split(groups, by="image")
    assert sizes(chosen) == [64, 16, 20]
    assert len({group for group, its in zip(groups, chosen, strict=True) if its == "test"}) == 5


def test_a_written_split_is_read_back(tmp_path):
    groups = [f"video{index // 5}" for index in range(50)]
    chosen = split(groups, seed=4)
    file = tmp_path / "split.csv"
    file.write_text(split_csv(zip(names(50), groups, chosen, strict=True)))
    assert file.read_text().split("\n")[0] == "image,group,split"
    assert split(groups, seed=99, file=str(file)) == chosen
    shuffled = [f"{name},{its}" for name, its in zip(names(50), chosen, strict=True)][::-1]
    file.write_text("\n".join(["image,split", *shuffled]))  # another order, no groups, as written by hand
    assert split(groups, file=str(file)) == chosen


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,split\nimage0,train\nimage1,val\n", "Images without a split: image2; names without an image: none"),
        ("image,split\nimage0,train\nimage1,val\nimage2,test\nimage3,test\n", "names without an image: image3"),
        ("image,split\nimage0,train\nimage1,val\nimage2,tset\n", "train, val, test; got tset"),
        ("image,split\nimage0,train\nimage1,val\nimage2,test\nimage2,val\n", "image2 stands there twice"),
        ("name,part\nimage0,train\n", "columns must be image, split; got name, part"),
        ("image,split\nimage0,train\nimage1,train\nimage2,test\n", "the val split has no image"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, text, message):
    file = tmp_path / "split.csv"
    file.write_text(text)
    with pytest.raises(BadInput, match=message):
        split(number=3, file=str(file))


def test_a_file_may_not_divide_a_group_unless_that_is_asked_for(tmp_path):
    file = tmp_path / "split.csv"
    file.write_text("image,split\nimage0,train\nimage1,val\nimage2,test\n")
    with pytest.raises(BadInput, match="group a is in train and in test; a group is never divided"):
        split(["a", "b", "a"], file=str(file))
    with pytest.warns(UserWarning, match="too good"):
        assert split(["a", "b", "a"], file=str(file), by="image") == ["train", "val", "test"]


def nnunet(path, number, folds=5):
    lists = [names(number)[fold::folds] for fold in range(folds)]
    written = [
        {"train": [name for name in names(number) if name not in lists[fold]], "val": lists[fold]}
        for fold in range(folds)
    ]
    path.write_text(json.dumps(written))
    return lists


def test_the_folds_of_nnunet_test_what_they_call_val(tmp_path):
    lists = nnunet(tmp_path / "splits_final.json", 50)
    for fold in (None, 3):
        chosen = split(number=50, file=str(tmp_path / "splits_final.json"), fold=fold)
        tested = [name for name, its in zip(names(50), chosen, strict=True) if its == "test"]
        assert tested == lists[fold or 0]
        assert sizes(chosen) == [32, 8, 10]


def test_the_folds_of_nnunet_leave_a_test_split_of_the_dataset_alone(tmp_path):
    lists = nnunet(tmp_path / "splits_final.json", 50)
    fixed = ["train"] * 50 + ["test"] * 4
    chosen = split(fixed=fixed, file=str(tmp_path / "splits_final.json"), fold=2)
    assert [name for name, its in zip(names(54), chosen, strict=True) if its == "val"] == lists[2]
    assert sizes(chosen) == [40, 10, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"train": ["image0", "image1"], "val": ["image2"]}]', "fold 4 is no list"),
        ("{}", "fold 4 is no list"),
        ("[", "fold 4 is no list"),
    ],
)
def test_a_file_of_nnunet_that_does_not_fit_is_refused(tmp_path, text, message):
    file = tmp_path / "splits_final.json"
    file.write_text(text)
    with pytest.raises(BadInput, match=message):
        split(number=3, file=str(file), fold=4)
    file.write_text('[{"train": ["image0", "image1", "image2"], "val": ["image2"]}]')
    with pytest.raises(BadInput, match="image2 is in train and in val"):
        split(number=3, file=str(file))
    with pytest.raises(BadInput, match="Images without a split: image3"):
        split(number=4, file=str(file))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"number": 2}, "more to draw from; there is only image0, image1"),
        ({"fixed": ["train"] * 5 + ["val"]}, "the test split has no image"),
        ({"number": 6, "fold": 0, "folds": 7}, "split.folds=7 needs as many groups; the dataset has 6"),
        ({"number": 6, "fold": 0, "folds": 2}, "one fold tests, one validates, the others train"),
        ({"fixed": ["test"] * 9, "fold": 0}, "needs as many groups; the dataset has 0"),
        ({"groups": ["a", "b", "a"], "fixed": ["train", "val", "test"]}, "is never divided"),
    ],
)
def test_what_cannot_be_divided_is_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        split(**arguments)


def test_a_file_may_not_train_on_what_the_dataset_tests_with(tmp_path):
    file = tmp_path / "split.csv"
    file.write_text("image,split\nimage0,train\nimage1,val\nimage2,test\n")
    with pytest.raises(BadInput, match="image0 is of the dataset's test split, and is in train"):
        split(fixed=["test", None, None], file=str(file))
    with pytest.raises(ValueError, match=r"split.file holds one split; split.fold is of nnU-Net"):
        split(number=3, file=str(file), fold=1)


def test_a_split_says_what_it_kept_and_what_it_drew(tmp_path):
    def said(fixed, **arguments):
        drawing = Split(**arguments)
        drawing(names(len(fixed)), names(len(fixed)), fixed, [0.1] * len(fixed))
        return drawing.words

    fixed = ["train"] * 8 + ["val"] * 2 + ["test"] * 5
    assert said([None] * 10) == "train, val, test drawn by image, for no groups are known, with seed 0"
    assert said(fixed) == "train, val, test as the dataset fixes it"
    assert said([None] * 10 + ["test"]) == (
        "test as the dataset fixes it; train, val drawn by image, for no groups are known, with seed 0"
    )
    folded = said(fixed, fold=1, seed=3)
    assert folded == (
        "test as the dataset fixes it; train, val fold 1 of 5, drawn by image, for no groups are known, with seed 3"
    )
    grouped = Split()
    grouped(names(10), ["a", "a", *names(8)], [None] * 10, [0.1] * 10)
    assert grouped.words == "train, val, test drawn by group with seed 0"
    nnunet(tmp_path / "splits_final.json", 50)
    words = said([None] * 50, file=str(tmp_path / "splits_final.json"))
    assert words == f"train, val, test of {tmp_path / 'splits_final.json'}, fold 0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fold": "a"}, "must be whole numbers; got 0, 5 and a"),
        ({"folds": 5.5}, "must be whole numbers; got 0, 5.5 and None"),
        ({"by": "patient"}, "split.by must be group or image; got 'patient'"),
        ({"fold": 5}, "with 5 folds the last is 4; got 5"),
        ({"folds": 1}, "split.folds must be 2 or more"),
        ({"folds": 4}, "split.folds=4 needs split.fold"),
        ({"fold": -1}, "split.fold 0 or more"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Split(**arguments)


@given(st.lists(st.floats(0, 1), min_size=4, max_size=40), st.integers(2, 5))
def test_layers_hold_images_without_foreground_apart_unless_there_are_too_few(foreground, folds):
    layer = strata(np.array(foreground), folds)
    if layer.any():
        assert ((layer == 0) == (np.array(foreground) == 0)).all()
        assert np.bincount(layer).max() >= folds
