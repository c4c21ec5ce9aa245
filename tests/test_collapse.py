import pytest

from raremask.collapse import collapse


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ([0, 0, 0, 0, 0], "5 of 5 masks are empty"),
        ([1, 1, 1, 0.1, 0.1], "3 of 5 masks are white"),
        ([0.2, 0.2, 0.2, 0.2, 0.2], "all 5 masks have the same area"),
        ([0, 0, 0, 0.1, 0.2], ""),
        ([0.0, 0.0, 0.0, 0.0], ""),
        ([], ""),
    ],
)
def test_a_collapse_is_named(shares, words):
    assert collapse(shares).startswith(words)
    assert bool(collapse(shares)) == bool(words)


def test_small_foreground_that_varies_is_no_collapse():
    assert collapse([3 / 9e6, 9 / 9e6, 5 / 9e6, 12 / 9e6, 4 / 9e6]) == ""


def test_images_without_foreground_may_be_left_empty():
    assert collapse([0.0] * 6, true=[0.0] * 6) == ""
    assert collapse([0.0] * 6, true=[0.0, 0.1, 0.1, 0.1, 0.1, 0.1]).startswith(
        "5 of 5 masks of images with foreground are empty"
    )
    assert collapse([1.0] * 6, true=[1.0] * 6) == ""
    assert collapse([1.0] * 6, true=[0.1] * 6).startswith("6 of 6 masks of images with foreground are white")
