"""What is typed arrives where it works: data and module as train.py makes them of a config."""

from time import sleep

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn

from conftest import ROOT, TINY
from raremask import commandline  # noqa: F401  registers the resolvers
from raremask.building import build
from raremask.module import _contrast
from raremask.scoring import _predict
from raremask.terminal import quieten


@pytest.fixture
def made(tmp_path):
    """Return a function that makes the data and the module of a tiny run."""

    def make(*overrides: str):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return build(compose("train", [*TINY, *overrides, f"folder={tmp_path}"]))

    return make


def drawn(data):
    """The images of an epoch as the loader hands them out, in the order of the training split."""
    batches = list(data.train_dataloader())
    order = torch.cat([batch["index"] for batch in batches]).argsort()
    return torch.cat([batch["image"] for batch in batches])[order]


def test_images_are_augmented_and_the_seed_says_how(made):
    plain = drawn(made("augment=none")[0])
    flipped = drawn(made("augment=flips", "seed=3")[0])
    assert torch.equal(plain, drawn(made("augment=none", "seed=3")[0]))
    assert not torch.equal(plain, flipped)
    assert torch.equal(flipped, drawn(made("augment=flips", "seed=3")[0]))
    assert not torch.equal(flipped, drawn(made("augment=flips", "seed=4")[0]))


def test_the_share_of_draws_with_foreground_can_be_set(made):
    data, _ = made("dataset.empty=0.75", "dataset.train=40", "dataset.val=20", "dataset.foreground_share=0.5")
    filled = torch.cat([batch["mask"].flatten(1).any(1) for batch in data.train_dataloader()])
    assert (len(filled), int(filled.sum())) == (40, 20)


@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_a_gradient_is_clipped_to_a_norm_and_logged_as_it_was(made, limit):
    _, module = made()
    weights = list(module.parameters())
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    norm = sum(weight.numel() for weight in weights) ** 0.5
    module.configure_gradient_clipping(torch.optim.SGD(weights, lr=1.0), limit)
    clipped = sum(weight.grad.square().sum() for weight in weights) ** 0.5
    assert float(clipped) == pytest.approx(min(norm, limit), rel=1e-3)
    assert float(module.gradient_mean.compute()["optim/grad_norm"]) == pytest.approx(norm, rel=1e-5)


def test_gradients_are_clipped_unless_that_is_left_out():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose("train", ["folder=none"]).trainer.gradient_clip_val == 1.0


class Height(nn.Module):
    """Gives everywhere the height of what it sees."""

    def forward(self, image):
        return torch.full_like(image[:, :1], image.shape[-2] / 100)


@pytest.fixture
def scored(made):
    """Return a function that hands the test images to one that scores them, as it is done in threads."""
    quieten()

    def score(receive, *overrides: str, tile=None, callbacks=()):
        data, _ = made(*overrides)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(accelerator="cpu", callbacks=list(callbacks), **quiet)
        _predict(trainer, data, [Height()], tile, "test", "none", receive)

    return score


@pytest.mark.parametrize(("tile", "seen"), [(None, 48), ((16, 32), 16)])
def test_images_are_scored_in_tiles_if_a_run_has_some(scored, tile, seen):
    received = []
    scored(lambda _, probability: received.append(probability.mean()), tile=tile)
    expected = torch.sigmoid(torch.tensor(seen / 100)).item()
    assert received == pytest.approx([expected] * 4, abs=1e-3)


@pytest.mark.parametrize("error", [OSError("no room"), StopIteration("no room")])
@pytest.mark.parametrize("wrong", [0, 2, 3])
def test_what_goes_wrong_with_an_image_is_said(scored, wrong, error):
    def receive(index, probability):
        if index == wrong:
            raise error

    with pytest.raises(RuntimeError if isinstance(error, StopIteration) else OSError):
        scored(receive, "dataset.batch_size=1")


@pytest.fixture
def cores():
    """Return a function that sets how many cores PyTorch has, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_at_an_error_nothing_more_is_begun(scored, cores):
    cores(2)
    received = []

    def receive(index, probability):
        received.append(index)
        if index == 0:
            raise OSError("no room")
        sleep(0.5)

    with pytest.raises(OSError, match="no room"):
        scored(receive, "dataset.test=24", "dataset.batch_size=8")
    assert len(received) < 8


def test_images_share_the_cores_that_lightning_leaves_to_a_process(scored, cores):
    seen = set()
    divide = LambdaCallback(on_predict_start=lambda *_: cores(8))
    scored(lambda *_: seen.add(torch.get_num_threads()), callbacks=[divide])
    assert seen == {2}  # four images
    assert torch.get_num_threads() == 8


def test_contrast_is_that_of_foreground_and_background():
    probability = torch.tensor([[[[0.6, 0.2], [0.1, 0.3]]]]).repeat(3, 1, 1, 1)
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]], [[[1.0] * 2] * 2], [[[0.0] * 2] * 2]])
    assert _contrast(probability, mask).tolist() == pytest.approx([3.0, float("nan"), float("nan")], nan_ok=True)
