import numpy as np
import pytest

from raremask import BadInput
from raremask.scoretables import beside_baselines, format_scores, largest_change, read_counts, write_scores
from raremask.tables import read_table


def test_the_table_of_a_split_holds_counts_and_scores_of_every_image(tmp_path):
    counts = np.array([[2, 0, 2, 12], [0, 0, 0, 16]])
    fov = np.array([[2, 0, 0, 6], [0, 0, 0, 8]])
    path = tmp_path / "per_image_test.csv"
    write_scores(path, ["a", "=b"], ["g", "h"], {"": counts, "_fov": fov}, empty="skip")
    first, second = read_table(path)
    assert first["foreground"] == 0.25
    assert first["dice"] == pytest.approx(2 * 2 / 6)
    assert first["dice_fov"] == 1
    assert "dice" not in second  # skipped: an empty cell
    assert second["image"] == "=b"
    back = read_counts(path)
    assert {suffix: cells.tolist() for suffix, cells in back.items()} == {"": counts.tolist(), "_fov": fov.tolist()}


def test_a_score_stands_beside_painting_nothing_and_everything():
    counts = {"": np.array([[2, 0, 2, 12]]), "_fov": np.array([[2, 0, 0, 6]])}
    table = beside_baselines(counts, empty="one")
    assert table["best checkpoint"]["dice"] == pytest.approx(2 * 2 / 6)
    assert table["best checkpoint"]["dice_fov"] == 1
    assert table["all background"]["dice"] == 0
    assert table["all foreground"]["dice"] == pytest.approx(2 * 4 / (16 + 4))
    lines = format_scores(table).split("\n")
    assert lines[0].split() == ["dice", "iou", "precision", "recall", "dice_pooled", "dice_fov"]
    assert lines[1].split()[-1] == "1.0000"


def test_where_masks_are_empty_what_a_mean_hides_is_shown():
    counts = np.array([[6, 2, 2, 90], [0, 0, 10, 90], [0, 0, 0, 100], [0, 5, 0, 95], [0, 0, 0, 100]])
    table = beside_baselines({"": counts}, empty="one")
    best = table["best checkpoint"]
    assert best["dice"] == pytest.approx((0.75 + 0 + 1 + 0 + 1) / 5)
    assert (best["dice_filled"], best["left_empty"], best["false_alarms"]) == pytest.approx((0.375, 0.5, 1 / 3))
    nothing = table["all background"]
    assert (nothing["dice"], nothing["dice_filled"], nothing["left_empty"]) == pytest.approx((0.6, 0, 1))
    assert format_scores(table).split("\n")[0].split()[-3:] == ["dice_filled", "left_empty", "false_alarms"]
    assert all("dice_filled" not in row for row in beside_baselines({"": counts[:2]}, empty="one").values())


def test_two_tables_are_compared_image_by_image(tmp_path):
    counts = np.array([[2, 0, 2, 12], [1, 1, 1, 13]])
    tables = {
        "first": (["a", "b"], counts),
        "turned": (["b", "a"], counts[::-1]),
        "changed": (["a", "b"], np.array([[2, 0, 2, 12], [1, 1, 0, 14]])),
        "other": (["a", "c"], counts),
    }
    for name, (images, cells) in tables.items():
        write_scores(tmp_path / name, images, ["g", "g"], {"": cells}, "one")
    changes = {name: largest_change(tmp_path / "first", tmp_path / name) for name in tables}
    assert changes == {"first": 0, "turned": 0, "changed": 1, "other": np.inf}  # fn and tn change by a pixel


def test_a_missing_table_asks_whether_the_run_has_ended(tmp_path):
    with pytest.raises(BadInput, match="has the run ended"):
        read_counts(tmp_path / "per_image_test.csv")
