"""Each loss against a reference in NumPy float64, written from the formula, not from our own pieces."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy import ndimage

from raremask.losses.adaptive import Dynamit
from raremask.losses.boundary import BoundaryGaussian, DoU
from raremask.losses.compound import Sum
from raremask.losses.contract import check_loss
from raremask.losses.overlap import Dice
from raremask.losses.pixel import BCE, WeightedBCE

CONF = Path(__file__).parents[1] / "conf" / "loss"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


def configured(name: str) -> torch.nn.Module:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    for node in (config, *config.get("terms", {}).values()):
        if node.get("pos_weight") == "auto":
            node.pos_weight = 7.0
    return instantiate(config)


def disc(batch: int = 2) -> torch.Tensor:
    """A disc in each image, another size each time."""
    y, x = np.mgrid[:20, :26]
    radii = [4 + 2 * k for k in range(batch)]
    return torch.from_numpy(np.stack([[(y - 9) ** 2 + (x - 11) ** 2 < r**2] for r in radii]).astype(np.float32))


def line() -> torch.Tensor:
    mask = torch.zeros(2, 1, 20, 26)
    mask[:, :, 7] = 1
    return mask


def speckle() -> torch.Tensor:
    return (torch.rand(2, 1, 20, 26, generator=torch.Generator().manual_seed(3)) > 0.9).float()


def frame() -> torch.Tensor:
    mask = torch.ones(2, 1, 20, 26)
    mask[:, :, 4:-4, 4:-4] = 0  # more foreground than background, touching the image's edge
    return mask


MASKS = {"disc": disc(), "line": line(), "speckle": speckle(), "frame": frame(), "one": disc(1)}


# --- references -------------------------------------------------------------------------------------------------------


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def ce(z, t):
    return np.logaddexp(0, z) - t * z  # -t log p - (1 - t) log(1 - p)


def ref_bce(z, t):
    return ce(z, t).mean()


def ref_weighted_bce(z, t):
    p = sigmoid(z)
    return -(7 * t * np.log(p) + (1 - t) * np.log(1 - p)).mean()


def ref_dice(z, t):
    p = sigmoid(z)
    each = [1 - (2 * (p[i] * t[i]).sum() + 1) / (p[i].sum() + t[i].sum() + 1) for i in range(len(t))]
    return np.mean(each)


def ref_dynamit(z, t):
    plus, minus = t.sum(), (1 - t).sum()
    weight = np.where(t == 1, min(1, minus / plus), min(1, plus / minus))
    return (weight * ce(z, t)).sum() / t.size


def ref_dynamit_image(z, t):
    return np.mean([ref_dynamit(z[i], t[i]) for i in range(len(t))])


def ref_boundary_gaussian(z, t, sigma=2.0):
    plus, minus = t.sum(), (1 - t).sum()
    distance = np.stack([[ndimage.distance_transform_edt(1 - image[0])] for image in t])
    background = np.minimum(1, plus / minus + np.exp(-(distance**2) / (2 * sigma**2)))
    return np.where(t == 1, min(1, minus / plus) * -np.log(sigmoid(z)), background * -np.log(sigmoid(-z))).mean()


def ref_dou(z, t, s=1e-5):
    both = []
    for p, y in ((sigmoid(z), t), (sigmoid(-z), 1 - t)):
        neighbours = np.stack([[ndimage.convolve(image[0], CROSS, mode="constant")] for image in y])
        boundary = ((neighbours < 5) & (y == 1)).sum()
        alpha = min(2 * (1 - (boundary + s) / (y.sum() + s)) - 1, 0.8)
        inter, y2, p2 = (p * y).sum(), (y * y).sum(), (p * p).sum()
        both.append((p2 + y2 - 2 * inter + s) / (p2 + y2 - (1 + alpha) * inter + s))
    return np.mean(both)


CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])

REFERENCES = {
    "bce": ref_bce,
    "weighted_bce": ref_weighted_bce,
    "dice": ref_dice,
    "bce_dice": lambda z, t: 0.5 * ref_bce(z, t) + 0.5 * ref_dice(z, t),
    "weighted_bce_dice": lambda z, t: ref_weighted_bce(z, t) + ref_dice(z, t),
    "dynamit": ref_dynamit,
    "dynamit_image": ref_dynamit_image,
    "boundary_gaussian": ref_boundary_gaussian,
    "dou": ref_dou,
    "boundary_dou": lambda z, t: ref_boundary_gaussian(z, t) + ref_dou(z, t),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_loss_equals_its_formula_in_value_and_gradient(name, mask):
    logits = 2 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(1))
    logits.requires_grad_()
    loss = configured(name)(logits, mask)
    loss.backward()
    z, t = logits.detach().double().numpy(), mask.double().numpy()
    reference = REFERENCES[name]
    assert loss.item() == pytest.approx(reference(z, t), rel=1e-5)

    step = 1e-5  # the slope along a few random directions, by central differences
    for seed in range(3):
        direction = np.random.default_rng(seed).standard_normal(z.shape)
        slope = (reference(z + step * direction, t) - reference(z - step * direction, t)) / (2 * step)
        assert (logits.grad.double().numpy() * direction).sum() == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_on_the_gpu_equals_the_one_on_the_cpu_in_value_and_gradient(name):
    results = []
    for device in ("cpu", "cuda"):
        logits = torch.randn(2, 1, 20, 26, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
        loss = configured(name).to(device)(logits, disc().to(device))
        loss.backward()
        results.append((loss.detach().cpu(), logits.grad.cpu()))
    torch.testing.assert_close(results[0], results[1])


def _share_of_a_batch(rank, address, results):
    """What one of two processes computes: it holds one image of the two."""
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    logits = torch.linspace(-3, 3, 2 * 20 * 26).view(2, 1, 20, 26)[rank : rank + 1].clone().requires_grad_()
    loss = BoundaryGaussian()(logits, disc()[rank : rank + 1])
    loss.backward()
    results[rank] = (loss.item(), logits.grad.numpy())


def test_two_processes_with_an_image_each_weigh_like_one_with_both(tmp_path):
    results = torch.multiprocessing.Manager().dict()
    torch.multiprocessing.spawn(_share_of_a_batch, (f"file://{tmp_path}/meet", results), nprocs=2)
    logits = torch.linspace(-3, 3, 2 * 20 * 26).view(2, 1, 20, 26).requires_grad_()
    loss = BoundaryGaussian()(logits, disc())
    loss.backward()
    assert np.mean([results[rank][0] for rank in (0, 1)]) == pytest.approx(loss.item(), rel=1e-5)
    gradient = np.concatenate([results[rank][1] for rank in (0, 1)]) / 2  # processes average their gradients
    np.testing.assert_allclose(gradient, logits.grad.numpy(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_keeps_the_contract(name):
    assert check_loss(configured(name)) == []


def test_the_contract_finds_what_is_wrong():
    class Wrong(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("kept", torch.zeros(1))

        def forward(self, logits, mask):
            p = torch.sigmoid(logits)
            return -(p * mask).sum() / mask.sum()  # 0 / 0 on an empty mask

    broken = " ".join(check_loss(Wrong()))
    assert "not persistent" in broken
    assert "whole-batch empty mask, logits of about 1: the value is nan" in broken


# --- identities and edges ---------------------------------------------------------------------------------------------


def test_dynamit_is_the_smaller_share_times_the_sum_of_both_class_means():
    mask, logits = disc(), torch.randn(2, 1, 20, 26)
    each = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    share = min(mask.sum(), (1 - mask).sum()) / mask.numel()
    expected = share * (each[mask == 1].mean() + each[mask == 0].mean())
    torch.testing.assert_close(Dynamit()(logits, mask), expected)


def test_dynamit_of_one_image_is_the_same_by_batch_and_by_image():
    mask, logits = disc(1), torch.randn(1, 1, 20, 26)
    torch.testing.assert_close(Dynamit(per_image=False)(logits, mask), Dynamit(per_image=True)(logits, mask))


@pytest.mark.parametrize("loss", [Dynamit(), Dynamit(per_image=True), BoundaryGaussian()])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_dynamit_family_learns_nothing_from_a_batch_of_one_class(loss, value):
    logits = torch.randn(2, 1, 8, 8, requires_grad=True)
    result = loss(logits, torch.full((2, 1, 8, 8), value))
    result.backward()
    assert result == 0
    assert logits.grad.abs().sum() == 0


def test_dynamit_learns_from_an_empty_image_if_asked():
    logits = torch.zeros(2, 1, 8, 8)
    mask = torch.zeros(2, 1, 8, 8)
    assert Dynamit(empty="background")(logits, mask).item() == pytest.approx(math.log(2))  # weight 1 everywhere
    mask[0, 0, 0, 0] = 1  # the first image: log 2 (1 + 63 / 63) / 64; the second: log 2
    assert Dynamit(per_image=True, empty="background")(logits, mask).item() == pytest.approx(
        math.log(2) * (2 / 64 + 1) / 2
    )


def test_an_empty_image_beside_a_full_one_is_not_lifted():
    # SciPy's transform of an image without foreground measures to a pixel that is not there: 65 pixels away
    mask = torch.zeros(2, 1, 9, 9)
    mask[0] = 1
    logits = torch.zeros(2, 1, 9, 9)
    assert BoundaryGaussian(sigma=50.0)(logits, mask).item() == pytest.approx(math.log(2))  # all weights are 1 here
    mask[0, 0, 1:] = 0  # 9 foreground, 153 background; image 2 keeps the weight 9 / 153
    lifted = BoundaryGaussian(sigma=1e-3)(logits, mask)
    assert lifted.item() == pytest.approx(math.log(2) * (9 + 153 * 9 / 153) / 162, rel=1e-5)


def test_dou_of_an_absent_class_is_constantly_one():
    logits = torch.randn(2, 1, 8, 8, requires_grad=True)
    loss = DoU(background=False)(logits, torch.zeros(2, 1, 8, 8))
    loss.backward()
    assert loss.item() == pytest.approx(1)
    assert logits.grad.abs().max() == 0


def test_dou_on_a_line_is_the_squared_dice():
    mask, logits = line(), torch.randn(2, 1, 20, 26)  # C = S, so alpha = -1
    dou = DoU(background=False, per_image=True, smooth=1e-5)(logits, mask)
    dice = Dice(squared=True, smooth=1e-5)(logits, mask)
    torch.testing.assert_close(dou, dice, atol=1e-5, rtol=0)


def test_foreground_on_the_frame_counts_as_boundary():
    touching, inside = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    touching[0, 0, :3, :] = 1  # all but the 6 inner pixels of the middle row are boundary: C = 18, S = 24
    inside[0, 0, 2:5, :] = 1
    logits = torch.zeros(1, 1, 8, 8)
    assert DoU(background=False)(logits, touching) == DoU(background=False)(logits, inside)


def test_one_false_positive_costs_dice_half_on_an_empty_mask():
    logits = torch.full((1, 1, 8, 8), -100.0)
    logits[0, 0, 0, 0] = 100  # 1 - 1 / (1 + 1)
    assert Dice(smooth=1.0)(logits, torch.zeros(1, 1, 8, 8)).item() == pytest.approx(0.5)


def test_dice_over_the_batch_pools_the_images():
    mask = torch.zeros(2, 1, 4, 4)
    mask[0] = 1
    logits = torch.full((2, 1, 4, 4), 100.0)  # everything painted: (2 * 16 + 1) / (32 + 16 + 1) left
    assert Dice(per_image=False)(logits, mask).item() == pytest.approx(1 - 33 / 49)


def test_a_weight_of_one_is_plain_cross_entropy():
    mask, logits = disc(), torch.randn(2, 1, 20, 26)
    torch.testing.assert_close(WeightedBCE(pos_weight=1.0)(logits, mask), BCE()(logits, mask))


def test_the_parts_of_a_sum_add_up():
    mask, logits = disc(), torch.randn(2, 1, 20, 26)
    loss = Sum({"a": BCE(), "b": Dice()}, {"a": 0.25, "b": 2.0})
    parts = loss.parts(logits, mask)
    assert list(parts) == ["a", "b"]
    torch.testing.assert_close(parts["a"], 0.25 * BCE()(logits, mask))
    torch.testing.assert_close(loss(logits, mask), parts["a"] + parts["b"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dice(smooth=0), "smooth must be more than 0"),
        (lambda: DoU(smooth=-1), "smooth must be more than 0"),
        (lambda: BoundaryGaussian(sigma=0), "sigma is a width in pixels"),
        (lambda: WeightedBCE(pos_weight=0), "pos_weight must be more than 0"),
        (lambda: Dynamit(empty="skip"), "empty must be one of zero, background"),
        (lambda: Sum({"a": BCE()}, {"b": 1.0}), "must have the same names"),
    ],
)
def test_an_impossible_setting_is_refused_with_the_rule(make, message):
    with pytest.raises(ValueError, match=message):
        make()
