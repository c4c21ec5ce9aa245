"""`describe.py` as a user runs it, and what it advises."""

import json
import re

import numpy as np
import pytest

from raremask.data.fingerprint import fingerprint, measure
from raremask.data.phantom import Phantom
from raremask.description import suggestions
from raremask.tables import read_table

SMALL = ("dataset.train=12", "dataset.val=5", "dataset.test=4", "dataset.size=[64,64]")


def advice(**changes):
    settings = {"size": (128, 128), "channels": 3, "batch_size": 4, "train": 40, "val": 4, "test": 4}
    data = Phantom(**settings | changes)
    data.setup()
    found = fingerprint([measure(split, picture) for split, picture in data.pictures()])
    return [one.setting for one in suggestions(found, data)], [one.reason for one in suggestions(found, data)]


def test_advice_follows_from_the_numbers():
    settings, reasons = advice(kind="speck")
    assert settings[0] == "loss=weighted_bce loss.pos_weight=100"  # 1 / .004 is over the cap
    assert settings[1] == "loss=tversky loss.alpha=0.3 loss.beta=0.7"
    assert settings[3].startswith("augment=patches augment.steps.foreground_crop.height=64")
    assert re.search(r"also model.norm=batch model.mean=\[(0\.\d\d,?){3}\] model.std=\[(0\.\d\d,?){3}\]", reasons[3])
    assert settings[4] == ""
    assert "any batch size" in reasons[4]


def test_large_objects_are_trained_whole_and_long_thin_ones_in_crops():
    settings, reasons = advice(kind="lesion", foreground=0.4)
    assert settings[3] == ""
    assert "train on whole images, not on crops" in reasons[3]
    settings, reasons = advice(kind="vessel", size=(384, 384), train=8)
    assert settings[3].startswith("augment=patches")
    assert "thick: a crop holds enough of it" in reasons[3]


def test_many_empty_masks_ask_for_larger_batches():
    settings, reasons = advice(kind="ultrasound", channels=1, train=100)
    # about 60 % empty: .6 ** 9 = .0101, .6 ** 10 = .006
    batch = int(settings[4].removeprefix("dataset.batch_size="))
    assert batch in (8, 9, 10, 11)
    assert "fewer than one in 100 has no foreground" in reasons[4]


def test_a_size_at_which_foreground_vanishes_is_named():
    class Gone(Phantom):
        def arrays(self, record):
            image, _, valid = super().arrays(record)
            large = np.zeros((128, 128), bool)
            large[0, 0] = True  # nearest neighbour passes over it
            return image.repeat(4, axis=0).repeat(4, axis=1), large, valid

    data = Gone(size=(32, 32), channels=3, batch_size=2, train=4, val=2, test=2)
    with pytest.warns(UserWarning, match=r"8 of 8 masks lose all their foreground at dataset.size=\[32, 32\], such as"):
        data.setup()
    found = fingerprint([measure(split, picture) for split, picture in data.pictures()])
    assert suggestions(found, data)[0].reason == "no image has foreground: there is nothing to learn"


@pytest.mark.parametrize("kind", ["polyp", "vessel", "speck", "lesion", "ultrasound"])
def test_every_family_is_described(command, capsys, tmp_path, kind):
    command("describe.py", *SMALL, f"dataset.kind={kind}", f"folder={tmp_path}")
    said = capsys.readouterr().out
    assert said.startswith("# phantom\n")
    for words in ("21 images, no groups known, 64x64", "all background", "random", "loss.pos_weight=", "0 pairs"):
        assert words in said
    assert {path.name for path in tmp_path.iterdir()} == {
        *("description.md", "fingerprint.json", "images.csv", "twins.csv"),
        *("fingerprint.png", "examples.png", "weights.png"),
    }
    numbers = json.loads((tmp_path / "fingerprint.json").read_text())
    assert numbers["splits"]["train"]["images"] == 12
    assert numbers["uninformed"]["all background"]["dice"] == pytest.approx(numbers["empty"])
    assert len(read_table(tmp_path / "images.csv")) == 21


def test_a_description_replaces_an_older_one(command, tmp_path):
    for kind in ("polyp", "speck"):
        command("describe.py", *SMALL, f"dataset.kind={kind}", f"folder={tmp_path}")
    assert "_speck" in (tmp_path / "images.csv").read_text()
    assert "_polyp" not in (tmp_path / "images.csv").read_text()


def test_a_dataset_that_is_not_there_is_refused(command, tmp_path):
    with pytest.raises(Exception, match="There is no folder"):
        command("describe.py", "dataset=cvc", f"dataset.root={tmp_path / 'nowhere'}")


def test_the_real_cvc_is_described(real_data, command, capsys, tmp_path):
    command("describe.py", "dataset=cvc", f"dataset.root={real_data('CVC-ClinicDB')}", f"folder={tmp_path}")
    said = capsys.readouterr().out
    assert "612 images of 29 groups, 384x288" in said
    assert "44 pairs, 0 of them in different splits" in said
    assert (tmp_path / "twins.png").is_file()
