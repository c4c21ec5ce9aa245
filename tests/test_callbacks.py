import signal
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from raremask import BadInput
from raremask.callbacks import GrowingWeight, LossSwitch, MovingAverage, Panels
from raremask.checkpoints import BestOfStage, RunCheckpoint
from raremask.interruption import Interrupted, Interruption
from raremask.losses.boundary import Surface
from raremask.losses.compound import Sum
from raremask.losses.overlap import Dice

#: A trainer with one process, whose network has shown nothing up to a Dice of .05.
ALONE = SimpleNamespace(
    strategy=SimpleNamespace(reduce_boolean_decision=bool),
    lightning_module=SimpleNamespace(chance=0.05),
)


def remembering(folder, score=0.8):
    """The state of a checkpoint callback that has saved `best.ckpt` with this score."""
    callback = RunCheckpoint(str(folder), "best", "val/dice")
    path = str(folder / "best.ckpt")
    callback.best_model_path = callback.kth_best_model_path = path
    callback.best_k_models = {path: torch.tensor(score)}
    callback.best_model_score = callback.kth_value = torch.tensor(score)
    return callback.state_dict()


def test_the_best_of_a_run_is_remembered_when_its_folder_has_been_moved(tmp_path):
    moved = RunCheckpoint(str(tmp_path / "new"), "best", "val/dice")
    moved.load_state_dict(remembering(tmp_path / "old"))
    assert moved.best_model_path == str(tmp_path / "new" / "best.ckpt")
    assert moved.best_k_models == {str(tmp_path / "new" / "best.ckpt"): torch.tensor(0.8)}
    assert moved.best_model_score == pytest.approx(0.8)
    assert not moved.check_monitor_top_k(ALONE, torch.tensor(0.7))
    assert moved.check_monitor_top_k(ALONE, torch.tensor(0.9))


@pytest.mark.parametrize(
    ("so_far", "score", "taken"),
    [(0.04, 0.0, True), (0.04, 0.03, True), (0.05, 0.0, True), (0.06, 0.05, False), (0.04, float("nan"), False)],
)
def test_until_a_network_sees_anything_its_latest_state_is_the_best(tmp_path, so_far, score, taken):
    callback = RunCheckpoint(str(tmp_path), "best", "val/dice")
    callback.load_state_dict(remembering(tmp_path, so_far))
    assert callback.check_monitor_top_k(ALONE, torch.tensor(score)) is taken


def test_a_restarted_stage_takes_any_score_and_leaves_the_file_of_the_first(tmp_path):
    callback = BestOfStage(str(tmp_path), "best_stage{optim/stage:.0f}", "val/dice")
    callback.load_state_dict(remembering(tmp_path))
    callback.restart()
    assert callback.best_k_models == {}  # what is not known is not deleted
    assert callback.check_monitor_top_k(ALONE, torch.tensor(0.1))
    assert callback.format_checkpoint_name({"optim/stage": torch.tensor(2.0)}).endswith("best_stage2.ckpt")


class Watched(TorchDispatchMode):
    """Counts how often a number of a tensor is asked for: on a GPU each of these waits for it."""

    asked = 0

    def __torch_dispatch__(self, function, types, arguments=(), more=None):
        self.asked += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(more or {}))


def test_the_moving_average_moves_as_it_says_and_asks_the_device_nothing():
    net = LightningModule()
    net.layer, net.norm = nn.Linear(2, 1), nn.BatchNorm1d(1)
    trainer, average = SimpleNamespace(global_step=0), MovingAverage(decay=0.3)
    average.setup(trainer, net, "fit")
    average.on_fit_start(trainer, net)
    for step, weight in enumerate((1.0, 2.0, 4.0), start=1):
        trainer.global_step = step
        with torch.no_grad():
            net.layer.weight.fill_(weight)
            net.norm.num_batches_tracked.fill_(step)
        with Watched() as watched:
            average.on_train_batch_end(trainer, net, None, None, step)
            average.on_train_batch_end(trainer, net, None, None, step)  # no step in between: gradients are summed
        assert watched.asked == 0
    kept = average._average_model.module
    # 1; then 3/12 * 1 + 9/12 * 2 = 1.75; then min(.3, 4/13) * 1.75 + .7 * 4 = 3.325
    torch.testing.assert_close(kept.layer.weight, torch.full((1, 2), 3.325))
    assert kept.norm.num_batches_tracked == 3


def test_a_second_signal_does_not_wait_for_the_step():
    before = signal.getsignal(signal.SIGTERM)
    interruption = Interruption()
    with interruption.hearing():
        interruption.waiting = True
        signal.raise_signal(signal.SIGTERM)
        assert interruption.asked == signal.SIGTERM  # and nothing has ended yet
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        interruption.waiting = False
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_weight_of_a_term_follows_from_the_epoch():
    loss = Sum({"dice": Dice(), "surface": Surface()}, {"dice": 1.0, "surface": 0.01})
    grow, module = GrowingWeight("surface", step=0.02), SimpleNamespace(loss=loss)
    grow.on_fit_start(None, module)
    for epoch, weight in ((0, 0.01), (1, 0.03), (10, 0.21)):
        grow.on_train_epoch_start(SimpleNamespace(current_epoch=epoch), module)
        assert loss.weights == {"dice": 1.0, "surface": pytest.approx(weight)}
    with pytest.raises(BadInput, match="term=focal: this loss has no such term; it has: dice, surface"):
        GrowingWeight("focal").on_fit_start(None, module)
    with pytest.raises(BadInput, match="it has: none"):
        GrowingWeight("focal").on_fit_start(None, SimpleNamespace(loss=Dice()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossSwitch(nn.Identity(), epoch=0), "must be 1 or more, or there is no first stage"),
        (lambda: Panels(every=0), "every and images must be 1 or more"),
    ],
)
def test_an_impossible_setting_is_refused_with_the_rule(make, message):
    with pytest.raises(ValueError, match=message):
        make()
