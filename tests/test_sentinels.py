"""Numbers that go wrong end a training with their cause; a collapse is named, and health is not."""

import json
import random
import re
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from conftest import ROOT
from raremask import BadInput, training
from raremask.building import build_trainer
from raremask.collapse import diagnose
from raremask.losses.pixel import BCE
from raremask.runfolder import read_status
from raremask.sentinels import CollapseSentinel, FiniteNumbers
from raremask.sweeps import write_ledger
from raremask.tables import read_table
from record import plain

SECTION = "Numbers that go wrong"


def stopped(folder):
    return json.loads((folder / "stopped.json").read_text())


def trained(train, tmp_path, *settings):
    """Train until a number is none; return the message and what was written."""
    with pytest.raises(BadInput) as error:
        train(*settings)
    assert read_status(tmp_path / "run")["state"] == "failed"
    return plain(str(error.value), tmp_path), stopped(tmp_path / "run")


def test_steps_that_are_too_large_are_named_with_the_images_and_the_gradient(train, tmp_path, tried):
    message, facts = trained(train, tmp_path, "optimizer.lr=1e25", "trainer.gradient_clip_val=null")
    assert (facts["epoch"], facts["step"], facts["no_number"]) == (0, 2, "the network's output")
    assert len(facts["images"]) == 4  # one batch
    assert all(name in message for name in facts["images"])
    assert "a tenth of optimizer.lr" in message
    assert 0 < facts["gradient_norms_before"][0] < 10
    tried(SECTION, "a learning rate of 1e25", message)


def losing(monkeypatch, change, call=4):
    """Make the loss of one call something else: `change(loss, logits)`."""
    forward, calls = BCE.forward, []

    def changed(self, logits, mask):
        calls.append(1)
        loss = forward(self, logits, mask)
        return change(loss, logits) if len(calls) >= call else loss

    monkeypatch.setattr(BCE, "forward", changed)


def test_a_loss_that_is_no_number_is_told_from_a_network_that_gives_none(train, tmp_path, monkeypatch, tried):
    losing(monkeypatch, lambda loss, logits: loss * float("nan"))
    message, facts = trained(train, tmp_path, "loss=bce")
    assert (facts["step"], facts["no_number"]) == (3, "the loss")
    assert "the formula of BCE" in message
    tried(SECTION, "a loss that gives NaN once", message)


def test_a_gradient_that_is_no_number_is_told_from_a_loss_that_is_none(train, tmp_path, monkeypatch, tried):
    losing(monkeypatch, lambda loss, logits: loss + (logits * 0).sum().sqrt())  # the derivative of a root at 0
    message, facts = trained(train, tmp_path, "loss=bce")
    assert facts["no_number"] == "the gradient"
    assert "the derivative of BCE" in message
    tried(SECTION, "a loss with a root at 0: its gradient is NaN", message)


def test_a_validation_batch_is_watched_too(train, tmp_path, monkeypatch):
    losing(monkeypatch, lambda loss, logits: loss if loss.requires_grad else loss * float("inf"))
    _, facts = trained(train, tmp_path, "loss=bce", "trainer.num_sanity_val_steps=0")
    assert (facts["split"], facts["no_number"]) == ("val", "the loss")


@pytest.mark.parametrize("sizes", [(3,), (2, 3)])
def test_overflow_is_counted_in_steps_whatever_batches_they_sum(tmp_path, sizes):
    """A batch whose gradient is only added to the next one's has no norm: it neither held nor overflowed."""
    numbers = FiniteNumbers(str(tmp_path))
    scaled = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=1), world_size=1)
    for _ in range(7):
        for size in sizes:
            step = {"split": "train", "step": 0, "images": [], "names": ["logits", "loss", "gradient"][:size]}
            numbers.steps.append(step | {"values": torch.tensor([1.0, 1.0, torch.nan][:size])})
        numbers._look(scaled, None)
    assert numbers.overflows == 7


@pytest.fixture
def half_precision(monkeypatch):
    """Train in float16 with a scaler on the CPU, as on an older GPU; Lightning offers it on GPUs alone."""

    def trainer(cfg, **parts):
        made = build_trainer(cfg, **parts)
        made.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
        return made

    monkeypatch.setattr(training, "build_trainer", trainer)


def test_overflow_of_float16_is_warned_of_and_ends_when_it_never_ceases(
    train, tmp_path, monkeypatch, half_precision, tried
):
    losing(monkeypatch, lambda loss, logits: loss * 1e30, call=1)
    with pytest.warns(UserWarning, match="float16 could not hold the gradient of 8 steps in a row") as said:
        message, facts = trained(train, tmp_path, "loss=bce", "trainer.max_epochs=20")
    assert facts["no_number"] == "the gradient"
    assert facts["step"] == 24
    assert "try trainer.precision=32-true" in message
    words = next(str(one.message) for one in said if "float16" in str(one.message))
    tried(SECTION, "float16 overflows in every step", f"a warning: {words} After 24 steps: {message}")


def test_some_overflow_is_by_design(train, monkeypatch, half_precision):
    chance = random.Random(0)
    losing(monkeypatch, lambda loss, logits: loss * (1e30 if chance.random() < 0.3 else 1), call=1)
    folder = train("loss=bce", "trainer.max_epochs=4")
    assert read_status(folder)["state"] == "done"  # a warning would be an error here


# --- collapse ---------------------------------------------------------------------------------------------------------

WELL = {
    "val/left_empty": 0.0,
    "val/all_white": 0.0,
    "val/dice_pooled": 0.4,
    "val/probability_spread": 0.1,
    "val/contrast": 3.0,
    "val/foreground_true": 0.1,
    "val/foreground_predicted": 0.1,
    "train/foreground_true": 0.1,
    "optim/grad_norm": 0.5,
}
EMPTY = {"val/left_empty": 1.0, "val/dice_pooled": 0.0, "val/foreground_predicted": 0.0, "val/contrast": 1.02}
WHITE = {"val/all_white": 0.9}


def epochs(*changes):
    return [{"epoch": number} | WELL | change for number, change in enumerate(changes)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            [{}] * 3 + [EMPTY] * 5,
            "collapsed to all background since epoch 4: 100% of the images with foreground are left empty",
        ),
        ([WHITE] * 5, "collapsed to all foreground since epoch 1: 90% of the images are painted white"),
        ([{"val/probability_spread": 1e-5}] * 5, "collapsed to a constant since epoch 1: probabilities vary by 1e-05"),
        ([{}] * 3 + [EMPTY | {"train/foreground_true": 0.001}] * 5, "with 0.10% foreground painting nothing costs"),
        ([{}] * 3 + [EMPTY | {"optim/grad_norm": 50.0}] + [EMPTY] * 4, r"a step too large \(gradient 50, before 0.5\)"),
        ([{"optim/stage": 1.0}] * 3 + [EMPTY | {"optim/stage": 2.0}] * 5, "the switch to the second loss"),
    ],
)
def test_a_collapse_is_named_with_its_cause(changes, words):
    found = diagnose(epochs(*changes))
    assert re.search(words, found), found
    assert diagnose(epochs(*changes[:-1])) == ""  # one epoch before, it was too early


@pytest.mark.parametrize(
    "changes",
    [
        [{}] * 9,
        [EMPTY, {}] * 9,  # an epoch now and then
        [EMPTY] * 4 + [{}],
        [EMPTY | {"val/dice_pooled": 0.3}] * 9,  # many small ones are missed, but the large ones are found
        [EMPTY | {"val/contrast": 1.3}] * 9,  # nothing is painted yet, but the foreground is seen
        [{"val/contrast": float("nan"), "val/all_white": float("nan")}] * 9,  # no images to say by
    ],
)
def test_health_is_no_collapse(changes):
    assert all(diagnose(epochs(*changes[:number])) == "" for number in range(len(changes) + 1))


def test_a_collapse_that_is_over_is_taken_back(tmp_path, capsys):
    (tmp_path / "status.json").write_text('{"state": "running"}')
    sentinel = CollapseSentinel(str(tmp_path), patience=2)
    trainer = SimpleNamespace(current_epoch=0, callback_metrics=WELL | EMPTY, should_stop=False)
    sentinel.on_train_epoch_end(trainer, None)
    with pytest.warns(UserWarning, match="collapsed to all background since epoch 1"):
        sentinel.on_train_epoch_end(trainer, None)
    assert "all background" in read_status(tmp_path)["collapsed"]
    trainer.callback_metrics = WELL
    sentinel.on_train_epoch_end(trainer, None)
    assert read_status(tmp_path) == {"state": "running"}
    assert "The collapse is over" in capsys.readouterr().out
    assert not trainer.should_stop


RARE = (
    "dataset.foreground=0.001",
    "dataset.size=[96,96]",
    "dataset.val=16",
    "model.base=8",
    "model.levels=3",
    "optimizer.lr=0.003",
    "selection.views=[none]",
    "leaks=ignore",
)


POLYPS = ("dataset.kind=polyp", "dataset.train=96")  # six seeds collapse by epoch 10; of 48 images, four by 16


def test_bce_collapses_on_a_tenth_of_a_percent_and_is_named_and_stopped(train, tried):
    with pytest.warns(UserWarning, match="collapsed to all background") as said:
        folder = train(*RARE, *POLYPS, "loss=bce", "trainer.max_epochs=60", "callbacks.collapse.stop=true")
    status = read_status(folder)
    assert "painting nothing costs this loss little" in status["collapsed"]
    assert status["state"] == "done"  # its best checkpoint is scored, or a comparison would leave out what fails
    assert len(read_table(folder / "metrics.csv")) < 60
    assert write_ledger(folder.parent)[0]["collapsed"] == status["collapsed"]
    words = next(str(one.message) for one in said if "This training" in str(one.message))
    tried(SECTION, "loss=bce with 0.1 % foreground, callbacks.collapse.stop=true", f"ended and scored; {words}")


def test_two_stages_on_a_tenth_of_a_percent_do_not_collapse(train, tried):
    """Specks: so few pixels of a polyp can't be told from noise, by a network or by eye."""
    two_stages = ("loss=weighted_bce", "callbacks=two_stage", "callbacks.switch.epoch=8", "trainer.max_epochs=24")
    folder = train(*RARE, "dataset.kind=speck", "dataset.train=48", *two_stages)
    assert "collapsed" not in read_status(folder)  # a warning would be an error here
    best = max(row["val/dice"] for row in read_table(folder / "metrics.csv"))
    assert best > 0.1  # of four seeds .27 to .43; painting everything has .002
    tried(SECTION, "callbacks=two_stage loss=weighted_bce, specks of 0.1 %", f"no alarm; best Dice {best:.2f}")


HEALTHY = (
    "dataset.foreground=0.1",
    "dataset.size=[96,96]",
    "dataset.train=64",
    "dataset.val=16",
    "model.base=8",
    "model.levels=3",
    "optimizer.lr=0.003",
    "trainer.max_epochs=12",
    "selection.views=[none]",
    "leaks=ignore",
)
THIN = ("cldice", "skeleton_recall")  # losses for thin structures


@pytest.mark.long
def test_no_healthy_training_of_any_loss_is_called_collapsed(train, tried):
    """10 % foreground, a rate at which all of them learn; a warning would be an error here."""
    dice = {}
    for loss in sorted(path.stem for path in (ROOT / "conf" / "loss").glob("*.yaml")):
        folder = train(*HEALTHY, f"dataset.kind={'vessel' if loss in THIN else 'polyp'}", f"loss={loss}", folder=loss)
        assert "collapsed" not in read_status(folder), loss
        dice[loss] = max(row["val/dice"] for row in read_table(folder / "metrics.csv"))
    lowest = min(dice, key=dice.get)
    assert dice[lowest] > 0.25  # more than painting everything
    tried(
        SECTION,
        f"{len(dice)} losses, 10 % foreground, 12 epochs",
        f"no alarm; best Dice {dice[lowest]:.2f} ({lowest}) or more",
    )
