"""Each loss against a reference in NumPy float64, written from the formula, not from our own pieces."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from hypothesis import given
from hypothesis.extra import numpy as arrays
from omegaconf import OmegaConf
from scipy import ndimage
from skimage.morphology import thin

from raremask.data.base import Foreground
from raremask.losses import check_loss
from raremask.losses.adaptive import Dynamit
from raremask.losses.boundary import BoundaryGaussian, DoU, HausdorffDT, Structure, Surface
from raremask.losses.compound import Sum
from raremask.losses.overlap import (
    Dice,
    FocalTversky,
    GeneralizedDice,
    Jaccard,
    Lovasz,
    ModifiedFocalTversky,
    Tversky,
)
from raremask.losses.pixel import BCE, BalancedBCE, Focal, ModifiedFocal, Poly, WeightedBCE
from raremask.losses.topology import ClDice, SkeletonRecall

CONF = Path(__file__).parents[1] / "conf" / "loss"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


def configured(name: str) -> torch.nn.Module:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    for node in (config, *config.get("terms", {}).values()):
        if node.get("pos_weight") == "auto":
            node.pos_weight = 7.0
        if node.get("iterations") == "auto":
            node.iterations = 3
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


def ref_dou(z, t, s=1e-5, classes=2):
    both = []
    for p, y in ((sigmoid(z), t), (sigmoid(-z), 1 - t))[:classes]:
        neighbours = np.stack([[ndimage.convolve(image[0], CROSS, mode="constant")] for image in y])
        boundary = ((neighbours < 5) & (y == 1)).sum()
        alpha = min(2 * (1 - (boundary + s) / (y.sum() + s)) - 1, 0.8)
        inter, y2, p2 = (p * y).sum(), (y * y).sum(), (p * p).sum()
        both.append((p2 + y2 - 2 * inter + s) / (p2 + y2 - (1 + alpha) * inter + s))
    return np.mean(both)


CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])


def per_image(reference):
    """A formula for one image, as the mean over the images."""
    return lambda z, t: np.mean([reference(z[i, 0], t[i, 0]) for i in range(len(t))])


def counts(z, t):
    p = sigmoid(z)
    return (p * t).sum(), (p * (1 - t)).sum(), ((1 - p) * t).sum()


def one_jaccard(z, t):
    tp, fp, fn = counts(z, t)
    return 1 - (tp + 1) / (tp + fp + fn + 1)


def one_generalized_dice(z, t):
    p = np.stack([1 - sigmoid(z), sigmoid(z)])
    r = np.stack([1 - t, t])
    w = 1 / r.sum((1, 2)) ** 2
    return 1 - 2 * (w * (r * p).sum((1, 2))).sum() / (w * (r + p).sum((1, 2))).sum()


def ref_focal(z, t, alpha=0.25, gamma=2):
    p = sigmoid(z)
    p_t, alpha_t = np.where(t == 1, p, 1 - p), np.where(t == 1, alpha, 1 - alpha)
    return (-alpha_t * (1 - p_t) ** gamma * np.log(p_t)).mean()


def one_tversky_index(z, t, alpha=0.3, beta=0.7, s=1.0):
    tp, fp, fn = counts(z, t)
    return (tp + s) / (tp + alpha * fp + beta * fn + s)


def one_lovasz(z, t):
    errors, labels = (1 - z * (2 * t - 1)).ravel(), t.ravel()
    order = np.argsort(-errors, kind="stable")
    loss, before = 0.0, 0.0
    for k in range(1, len(order) + 1):  # Jaccard loss of the k worst pixels being wrong
        wrong = np.zeros(len(order), bool)
        wrong[order[:k]] = True
        predicted = np.where(wrong, 1 - labels, labels)
        jaccard = 1 - np.sum(predicted * labels) / np.sum(np.maximum(predicted, labels))
        loss += max(errors[order[k - 1]], 0) * (jaccard - before)
        before = jaccard
    return loss


def ref_combo(z, t, alpha=0.5, beta=0.5):
    p = sigmoid(z)
    weighted = -(beta * t * np.log(p) + (1 - beta) * (1 - t) * np.log(1 - p)).mean()
    return alpha * weighted + (1 - alpha) * ref_dice(z, t)


def ref_asymmetric_focal(z, t, delta=0.7, gamma=2.0):
    p = sigmoid(z)  # the background's probability is 1 - p
    background = (1 - delta) * (1 - (1 - p)) ** gamma * -(1 - t) * np.log(1 - p)
    return (background + delta * -t * np.log(p)).mean()


def ref_symmetric_focal(z, t, delta, gamma):
    p = sigmoid(z)
    background = (1 - delta) * p**gamma * -(1 - t) * np.log(1 - p)
    return (background + delta * (1 - p) ** gamma * -t * np.log(p)).mean()


def one_modified_tversky(z, t, delta, exponents):
    losses = []
    for y, q, exponent in ((t, sigmoid(z), exponents[0]), (1 - t, sigmoid(-z), exponents[1])):
        tp, fn, fp = (y * q).sum(), (y * (1 - q)).sum(), ((1 - y) * q).sum()
        losses.append((1 - tp / (tp + delta * fn + (1 - delta) * fp)) ** exponent)
    return np.mean(losses)


def ref_unified_focal(z, t):
    region = per_image(lambda z, t: one_modified_tversky(z, t, 0.6, (0.5, 0.5)))
    return 0.5 * region(z, t) + 0.5 * ref_symmetric_focal(z, t, 0.6, 0.5)


def ref_asymmetric_unified_focal(z, t):
    region = per_image(lambda z, t: one_modified_tversky(z, t, 0.6, (0.5, 1.0)))
    return 0.5 * region(z, t) + 0.5 * ref_asymmetric_focal(z, t, 0.6, 0.5)


def one_surface(z, t):
    inside, outside = ndimage.distance_transform_edt(t), ndimage.distance_transform_edt(1 - t)
    return (sigmoid(z) * (outside * (1 - t) - (inside - 1) * t)).mean()


def one_hausdorff(z, t, alpha=2.0):
    p = sigmoid(z)

    def field(y):
        return ndimage.distance_transform_edt(y) + ndimage.distance_transform_edt(1 - y) if 0 < y.mean() < 1 else 0 * y

    return ((p - t) ** 2 * (field((p > 0.5).astype(float)) ** alpha + field(t) ** alpha)).mean()


def one_cldice(z, t, iterations=3, s=1.0):
    def erosion(image):
        return ndimage.minimum_filter(image, footprint=CROSS, mode="constant", cval=np.inf)

    def opening(image):
        return ndimage.maximum_filter(erosion(image), size=3, mode="constant", cval=-np.inf)

    def soft_skeleton(image):
        skeleton = np.maximum(image - opening(image), 0)
        for _ in range(iterations):
            image = erosion(image)
            lost = np.maximum(image - opening(image), 0)
            skeleton = skeleton + np.maximum(lost - skeleton * lost, 0)
        return skeleton

    p = sigmoid(z)
    of_p, of_t = soft_skeleton(p), soft_skeleton(t)
    precision, sensitivity = ((of_p * t).sum() + s) / (of_p.sum() + s), ((of_t * p).sum() + s) / (of_t.sum() + s)
    return 1 - 2 * precision * sensitivity / (precision + sensitivity)


def one_skeleton_recall(z, t, s=1e-5):
    tube = ndimage.binary_dilation(thin(t == 1), CROSS, iterations=2) * t
    return -((sigmoid(z) * tube).sum() + s) / (tube.sum() + s)


def ref_poly(z, t, epsilon=1.0):
    p_t = np.where(t == 1, sigmoid(z), sigmoid(-z))
    return (-np.log(p_t) + epsilon * (1 - p_t)).mean()


def one_structure(z, t, size=31, boost=5):
    p = sigmoid(z)
    weight = 1 + boost * np.abs(ndimage.uniform_filter(t, size, mode="constant") - t)
    inter, union = (p * t * weight).sum(), ((p + t) * weight).sum()
    return (weight * ce(z, t)).sum() / weight.sum() + 1 - (inter + 1) / (union - inter + 1)


def smooth_dice(z, t, s=1e-5):
    return per_image(lambda z, t: 1 - (2 * (sigmoid(z) * t).sum() + s) / (sigmoid(z).sum() + t.sum() + s))(z, t)


REFERENCES = {
    "bce": ref_bce,
    "weighted_bce": ref_weighted_bce,
    "dice": ref_dice,
    "bce_dice": lambda z, t: 0.5 * ref_bce(z, t) + 0.5 * ref_dice(z, t),
    "ce_dice": lambda z, t: ref_bce(z, t) + smooth_dice(z, t),
    "weighted_bce_dice": lambda z, t: ref_weighted_bce(z, t) + ref_dice(z, t),
    "jaccard": per_image(one_jaccard),
    "generalized_dice": per_image(one_generalized_dice),
    "log_cosh_dice": lambda z, t: np.log(np.cosh(ref_dice(z, t))),
    "focal": ref_focal,
    "tversky": per_image(lambda z, t: 1 - one_tversky_index(z, t)),
    "focal_tversky": per_image(lambda z, t: (1 - one_tversky_index(z, t)) ** 0.75),
    "lovasz": per_image(one_lovasz),
    "combo": ref_combo,
    "asymmetric_focal": ref_asymmetric_focal,
    "unified_focal": ref_unified_focal,
    "asymmetric_unified_focal": ref_asymmetric_unified_focal,
    "surface": per_image(one_surface),
    "dice_surface": lambda z, t: per_image(one_generalized_dice)(z, t) + 0.01 * per_image(one_surface)(z, t),
    "hausdorff_dt": per_image(one_hausdorff),
    "cldice": lambda z, t: 0.5 * ref_dice(z, t) + 0.5 * per_image(one_cldice)(z, t),
    "skeleton_recall": lambda z, t: per_image(one_skeleton_recall)(z, t) + ref_bce(z, t) + smooth_dice(z, t),
    "poly": ref_poly,
    "structure": per_image(one_structure),
    "dynamit": ref_dynamit,
    "dynamit_image": ref_dynamit_image,
    "boundary_gaussian": ref_boundary_gaussian,
    "dou": ref_dou,
    "boundary_dou": lambda z, t: ref_boundary_gaussian(z, t) + ref_dou(z, t),
}


def pooled(z, t):
    """A batch as one image: its images side by side."""
    return np.concatenate(list(z), axis=-1)[None], np.concatenate(list(t), axis=-1)[None]


SETTINGS = {
    "Dice squared": (
        Dice(squared=True),
        per_image(lambda z, t: 1 - (2 * (sigmoid(z) * t).sum() + 1) / ((sigmoid(z) ** 2).sum() + t.sum() + 1)),
    ),
    "Dice of the batch": (Dice(per_image=False), lambda z, t: ref_dice(*pooled(z, t))),
    "Jaccard of the batch": (Jaccard(per_image=False), lambda z, t: per_image(one_jaccard)(*pooled(z, t))),
    "GeneralizedDice of the batch": (
        GeneralizedDice(per_image=False),
        lambda z, t: per_image(one_generalized_dice)(*pooled(z, t)),
    ),
    "Tversky of the batch": (
        Tversky(alpha=0.2, beta=0.9, smooth=0.5, per_image=False),
        lambda z, t: 1 - per_image(lambda z, t: one_tversky_index(z, t, 0.2, 0.9, 0.5))(*pooled(z, t)),
    ),
    "FocalTversky": (FocalTversky(gamma=2.0), per_image(lambda z, t: (1 - one_tversky_index(z, t)) ** 0.5)),
    "ModifiedFocal": (
        ModifiedFocal(delta=0.4, gamma=1.5, asymmetric=False),
        lambda z, t: ref_symmetric_focal(z, t, 0.4, 1.5),
    ),
    "ModifiedFocalTversky": (
        ModifiedFocalTversky(delta=0.7, gamma=0.25),
        per_image(lambda z, t: one_modified_tversky(z, t, 0.7, (0.75, 0.75))),
    ),
    "HausdorffDT": (HausdorffDT(alpha=1.0), per_image(lambda z, t: one_hausdorff(z, t, alpha=1.0))),
    "Structure": (Structure(size=5, boost=2.0), per_image(lambda z, t: one_structure(z, t, size=5, boost=2.0))),
    "ClDice": (ClDice(iterations=2, smooth=0.1), per_image(lambda z, t: one_cldice(z, t, 2, 0.1))),
    "BoundaryGaussian": (BoundaryGaussian(sigma=5.0), lambda z, t: ref_boundary_gaussian(z, t, sigma=5.0)),
    "DoU of the foreground": (DoU(background=False), lambda z, t: ref_dou(z, t, classes=1)),
    "DoU of each image": (
        DoU(per_image=True),
        lambda z, t: np.mean([ref_dou(z[i : i + 1], t[i : i + 1]) for i in range(len(t))]),
    ),
}


@pytest.mark.parametrize("mask", [MASKS["disc"], MASKS["frame"]], ids=["disc", "frame"])
@pytest.mark.parametrize(("loss", "reference"), SETTINGS.values(), ids=SETTINGS)
def test_a_loss_equals_its_formula_under_other_settings(loss, reference, mask):
    logits = 2 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert loss(logits, mask).item() == pytest.approx(reference(logits.numpy(), mask.double().numpy()), rel=1e-6)


def test_dou_caps_alpha_where_an_object_is_very_compact():
    square = torch.zeros(1, 1, 120, 120)
    square[..., 10:110, 10:110] = 1  # C / S = 396 / 10000, so 1 - 2 C / S = 0.92 is cut to 0.8
    logits = torch.randn(square.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = ref_dou(logits.numpy(), square.double().numpy())
    assert DoU()(logits, square).item() == pytest.approx(expected, rel=1e-6)


def test_every_loss_has_a_reference():
    assert set(NAMES) == set(REFERENCES)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_loss_equals_its_formula_in_value_and_gradient(name, mask):
    logits = 2 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits.requires_grad_()
    loss = configured(name)(logits, mask)
    loss.backward()
    z, t = logits.detach().numpy(), mask.double().numpy()
    reference = REFERENCES[name]
    assert loss.item() == pytest.approx(reference(z, t), rel=1e-6)
    assert configured(name)(logits.float(), mask).item() == pytest.approx(loss.item(), rel=1e-4)

    step = 1e-7  # the slope along a few random directions, by central differences; short, for there are kinks
    for seed in range(3):
        direction = np.random.default_rng(seed).standard_normal(z.shape)
        slope = (reference(z + step * direction, t) - reference(z - step * direction, t)) / (2 * step)
        assert (logits.grad.numpy() * direction).sum() == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_single_slope_is_right(name):
    mask = torch.zeros(2, 1, 6, 7)
    mask[0, 0, 1:4, 2:6] = 1
    mask[1, 0, 2] = 1
    logits = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: configured(name)(z, mask), logits.requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_a_mirrored_image_has_the_same_loss(name):
    logits, mask = torch.randn(2, 1, 20, 26, generator=torch.Generator().manual_seed(1)), disc()
    loss = configured(name)
    for dims in ((2,), (3,), (2, 3)):  # thinning begins at one corner, so skeletons may differ by single pixels
        tolerance = 1e-2 if name == "skeleton_recall" else 1e-5
        torch.testing.assert_close(loss(logits.flip(dims), mask.flip(dims)), loss(logits, mask), rtol=tolerance, atol=0)


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


COUNTED = {"dynamit": Dynamit(), "boundary_gaussian": BoundaryGaussian()}


def batch_of_four() -> tuple[torch.Tensor, torch.Tensor]:
    """Discs of four sizes; the last image is empty."""
    mask = disc(4)
    mask[3] = 0
    return torch.linspace(-3, 3, mask.numel()).view(mask.shape), mask


def _share_of_a_batch(rank, address, results):
    """What one of two processes computes: it holds two images of the four."""
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    logits, mask = (whole[2 * rank : 2 * rank + 2].clone() for whole in batch_of_four())
    for name, loss in COUNTED.items():
        logits = logits.detach().requires_grad_()
        value = loss(logits, mask)
        value.backward()
        results[rank, name] = (value.item(), logits.grad.numpy())
    if rank == 0:  # validation: the processes may have different numbers of batches, so this one must not wait
        with torch.no_grad():
            Dynamit()(logits, mask)


def test_two_processes_with_two_images_each_weigh_like_one_with_four(tmp_path):
    results = torch.multiprocessing.Manager().dict()
    torch.multiprocessing.spawn(_share_of_a_batch, (f"file://{tmp_path}/meet", results), nprocs=2)
    for name, loss in COUNTED.items():
        logits, mask = batch_of_four()
        logits.requires_grad_()
        value = loss(logits, mask)
        value.backward()
        assert np.mean([results[rank, name][0] for rank in (0, 1)]) == pytest.approx(value.item(), rel=1e-5)
        gradient = np.concatenate([results[rank, name][1] for rank in (0, 1)]) / 2  # processes average their gradients
        np.testing.assert_allclose(gradient, logits.grad.numpy(), rtol=1e-4, atol=1e-9)


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_keeps_the_contract_and_compiles_in_one_graph(name):
    report = check_loss(configured(name))
    assert report.broken == []
    assert [note for note in report.notes if "compile" in note] == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_keeps_the_contract_on_the_gpu_and_never_waits_for_the_host(name):
    assert check_loss(configured(name), device="cuda").broken == []


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_asks_no_other_device_than_the_cpu_for_a_number(name):
    # Tensors on the device "meta" have no values: who asks for one with .item(), .cpu() or an `if` gets an error.
    # Copies from the host, which wait too, pass here; `check_loss(device="cuda")` finds them where there is a GPU.
    logits = torch.zeros(2, 1, 20, 26, device="meta", requires_grad=True)
    value = configured(name).to("meta")(logits, disc().to("meta"))
    value.backward()
    assert value.shape == ()
    assert logits.grad.shape == logits.shape


def kinds() -> set[type]:
    return {type(module) for name in NAMES for module in configured(name).modules()} - {torch.nn.ModuleDict}


@pytest.mark.parametrize("kind", sorted(kinds(), key=lambda kind: kind.__name__))
def test_a_docstring_says_what_an_empty_mask_is_worth_and_when_to_use_the_loss(kind):
    text = " ".join(kind.__doc__.split())
    if kind is Sum:
        return  # its terms say it
    assert re.search("empty", text)
    assert "When to use:" in text
    assert "Range" in text
    if "learns_from_empty" in vars(kind) or any("learns_from_empty" in vars(base) for base in kind.__bases__):
        assert re.search(
            "(teach|teaches) nothing|has no gradient|no gradient left|cost, (unless|but)|unless `smooth`", text
        )


class Broken(torch.nn.Module):
    """Breaks nearly every clause."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.zeros(1))

    def forward(self, logits, mask):
        order = torch.arange(len(logits)).view(-1, 1, 1, 1)
        probability = torch.sigmoid(logits)
        print(end="")  # cannot be part of a graph
        return -(order * probability * mask).sum() / mask.sum()  # 0 / 0 on an empty mask


@pytest.mark.parametrize(
    ("loss", "findings"),
    [
        (
            Broken(),
            [
                "empty state_dict: it holds ['kept']; register buffers as not persistent",
                "batch order: the value is ",
                "all-empty mask, logits of 1: the value is nan",
                "empty masks teach: a false positive costs nothing, and the loss does not say so",
            ],
        ),
        (lambda z, t: z.sum() / t, ["scalar: the value has shape (2, 1, 17, 23)"]),
        (lambda z, t: z @ t, ["scalar: it raises RuntimeError"]),
        (lambda z, t: -F.binary_cross_entropy_with_logits(z, t.to(z.dtype)), ["scale: perfect -"]),
        (F.binary_cross_entropy_with_logits, ["boolean mask: it raises NotImplementedError"]),
        (lambda z, t: (torch.sigmoid(z) > 0.5).ne(t).float().mean() + 0 * z.sum(), ["slope: a small step"]),
        (lambda z, t: (torch.sigmoid(z) * (1 - t.to(z.dtype))).sum(dtype=z.dtype), ["float16: 512 x 512 logits"]),
        (lambda z, t: -(t * z.sigmoid().log()).mean(), ["ordinary mask, logits of 10000: the value is"]),
    ],
)
def test_the_contract_finds_what_is_wrong(loss, findings):
    class Wrapped(torch.nn.Module):
        def forward(self, logits, mask):
            return loss(logits, mask)

    broken = check_loss(loss if isinstance(loss, torch.nn.Module) else Wrapped()).broken
    for finding in findings:
        assert any(sentence.startswith(finding) for sentence in broken), broken


def test_the_report_is_a_table_that_can_be_read():
    lines = str(check_loss(Dynamit())).splitlines()
    assert lines[-1] == "Dynamit keeps the contract"
    assert "all-empty mask, surely right      ok" in lines
    assert "empty masks teach                 note    a false positive costs nothing" in "\n".join(lines)
    assert str(check_loss(Broken())).splitlines()[-1].startswith("Broken breaks ")


def test_whatever_a_foreign_loss_raises_is_a_finding():
    class Fussy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.file = (number for number in range(3))  # cannot be copied

        def forward(self, logits, mask):
            if not mask.any():
                raise ValueError("nothing to see here")
            return F.binary_cross_entropy_with_logits(logits, mask.to(logits.dtype))

    broken = check_loss(Fussy()).broken
    assert "empty masks teach: it raises ValueError: nothing to see here" in broken
    assert any(sentence.startswith("empty state_dict, deep copy: it raises TypeError") for sentence in broken)


def test_a_sum_learns_from_empty_masks_if_a_term_with_a_weight_does():
    terms = {"boundary_gaussian": BoundaryGaussian(), "dou": DoU()}
    assert Sum(terms, {"boundary_gaussian": 1.0, "dou": 1.0}).learns_from_empty
    assert not Sum(terms, {"boundary_gaussian": 1.0, "dou": 0.0}).learns_from_empty
    assert not DoU(background=False).learns_from_empty
    assert check_loss(DoU(background=False)).broken == []
    assert check_loss(Dice(smooth=1e-5)).broken == []


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_says_that_it_learns_nothing_from_empty_masks_if_it_has_no_gradient_there(name):
    torch.manual_seed(0)
    loss, logits = configured(name), torch.randn(2, 1, 128, 128, requires_grad=True)
    loss(logits, torch.zeros_like(logits)).backward()
    assert (logits.grad.norm() > 0) == getattr(loss, "learns_from_empty", True)


@pytest.mark.parametrize("name", ["dice", "tversky", "focal_tversky"])
def test_losses_of_overlap_learn_from_an_empty_mask_once_little_is_painted(name):
    def gradient(loss, probability):
        logits = torch.full((1, 1, 128, 128), float(torch.logit(torch.tensor(probability)))).requires_grad_()
        loss(logits, torch.zeros_like(logits)).backward()
        return logits.grad.norm()

    loss = configured(name)
    assert gradient(loss, 0.5) < gradient(BCE(), 0.5) / 50
    assert gradient(loss, 0.001) > gradient(BCE(), 0.001) * 10


def test_a_graph_break_is_noted():
    notes = check_loss(Broken()).notes
    assert any(note.startswith("torch.compile in one graph: ") for note in notes)


# --- identities and edges ---------------------------------------------------------------------------------------------


def test_dynamit_is_the_smaller_share_times_the_sum_of_both_class_means():
    mask, logits = disc(), torch.randn(2, 1, 20, 26)
    each = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    share = min(mask.sum(), (1 - mask).sum()) / mask.numel()
    expected = share * (each[mask == 1].mean() + each[mask == 0].mean())
    torch.testing.assert_close(Dynamit()(logits, mask), expected)


def test_dynamit_is_exact_where_all_but_one_pixel_is_foreground():
    mask = torch.ones(1, 1, 700, 900)
    mask[0, 0, 3, 3] = 0  # log 2 from that pixel, and log 2 / (N - 1) from each of the N - 1 others
    expected = 2 * math.log(2) / mask.numel()
    assert Dynamit()(torch.zeros_like(mask), mask).item() == pytest.approx(expected, rel=1e-5)


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


def test_the_parts_of_a_sum_add_up():
    mask, logits = disc(), torch.randn(2, 1, 20, 26)
    loss = Sum({"a": BCE(), "b": Dice()}, {"a": 0.25, "b": 2.0})
    parts = loss.parts(logits, mask)
    assert list(parts) == ["a", "b"]
    torch.testing.assert_close(parts["a"], 0.25 * BCE()(logits, mask))
    torch.testing.assert_close(loss(logits, mask), parts["a"] + parts["b"])


# --- identities between losses ----------------------------------------------------------------------------------------

SOME = torch.randn(2, 1, 20, 26, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Tversky(alpha=0.5, beta=0.5, smooth=0.5), Dice(smooth=1.0)),
        (Tversky(alpha=1.0, beta=1.0), Jaccard()),
        (FocalTversky(gamma=1.0), Tversky()),
        (Poly(epsilon=0.0), BCE()),
        (WeightedBCE(pos_weight=1.0), BCE()),
        (Structure(boost=0.0), Sum({"bce": BCE(), "iou": Jaccard()}, {"bce": 1.0, "iou": 1.0})),
        (Sum({"a": BalancedBCE(beta=0.75)}, {"a": 4.0}), WeightedBCE(pos_weight=3.0)),
        (Sum({"a": Focal(alpha=0.5, gamma=0.0)}, {"a": 2.0}), BCE()),
        (ModifiedFocal(delta=0.25, gamma=2.0, asymmetric=False), Focal(alpha=0.25, gamma=2.0)),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_two_losses_that_are_one(one, other):
    torch.testing.assert_close(one(SOME, disc()), other(SOME, disc()))


def test_generalised_dice_of_two_classes_of_one_size_is_the_share_of_wrong_pixels():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    wrong = (torch.sigmoid(SOME[:1, :, :8, :8]) - mask).abs().mean()
    torch.testing.assert_close(GeneralizedDice()(SOME[:1, :, :8, :8], mask), wrong)


def test_generalised_dice_of_an_empty_mask_is_the_mean_probability():
    torch.testing.assert_close(GeneralizedDice()(SOME, torch.zeros_like(SOME)), torch.sigmoid(SOME).mean())


@given(arrays.arrays(bool, (4, 5)), arrays.arrays(bool, (4, 5)))
def test_lovasz_of_a_hard_prediction_is_its_jaccard_loss(truth, painted):
    # a logit of 1 on the right side has no error, a logit of 0 has error 1: the corners of the extension
    mask = torch.from_numpy(truth).float()[None, None]
    wrong = torch.from_numpy(truth != painted)[None, None]
    logits = torch.where(wrong, 0.0, 2 * mask - 1)
    union = (truth | painted).sum()
    expected = 1 - (truth & painted).sum() / union if union else 0.0
    assert Lovasz()(logits, mask).item() == pytest.approx(expected, abs=1e-6)


def test_lovasz_over_the_batch_sees_the_images_side_by_side_as_one():
    beside = [torch.cat(list(tensor), dim=-1)[None] for tensor in (SOME, disc())]
    torch.testing.assert_close(Lovasz(per_image=False)(SOME, disc()), Lovasz()(*beside))


def test_focal_stays_finite_where_its_power_alone_would_not():
    logits = torch.full((1, 1, 4, 4), 200.0, requires_grad=True)  # p = 1 in float32
    ModifiedFocal(gamma=0.5, asymmetric=False)(logits, torch.ones(1, 1, 4, 4)).backward()
    assert logits.grad.abs().max() == 0


def test_the_surface_loss_of_an_image_of_one_class_is_zero():
    for mask in (torch.zeros(2, 1, 20, 26), torch.ones(2, 1, 20, 26)):
        assert Surface()(SOME, mask) == 0


def test_cldice_sees_a_gap_that_dice_hardly_sees():
    bar = torch.zeros(1, 1, 9, 40)
    bar[..., 3:6, 2:38] = 1
    gap, thin_bar = bar.clone(), bar.clone()
    gap[..., 19:22] = 0  # 9 pixels less, in two pieces
    thin_bar[..., 5, 10:19] = 0  # 9 pixels less, in one piece
    gap, thin_bar = (40 * (mask - 0.5) for mask in (gap, thin_bar))
    assert Dice()(gap, bar) == pytest.approx(Dice()(thin_bar, bar).item(), rel=1e-4)
    assert ClDice()(gap, bar) > 2 * ClDice()(thin_bar, bar)


def test_too_few_iterations_miss_the_middle_of_a_thick_object():
    thick = torch.zeros(1, 1, 30, 30)
    thick[..., 5:25, 5:25] = 1  # radius 10
    logits = 40 * (thick - 0.5)
    logits[..., 14:16, 14:16] = -20  # a hole in the middle
    assert ClDice(iterations=10)(logits, thick) > 2 * ClDice(iterations=2)(logits, thick)


def test_false_positives_far_from_the_object_cost_hausdorff_more():
    mask = disc(1)
    near, far = (torch.full(mask.shape, -40.0) for _ in range(2))
    near[..., 9, 17], far[..., 9, 25] = 40, 40
    assert HausdorffDT()(far, mask) > 2 * HausdorffDT()(near, mask) > 0


@pytest.mark.parametrize(
    ("imbalance", "pos_weight", "beta"), [(0.5, 0.5, 0.5), (1.0, 1.0, 0.5), (10.0, 10.0, 0.6), (1e6, 100.0, 0.7)]
)
def test_what_auto_makes_of_the_imbalance(imbalance, pos_weight, beta):
    split = SimpleNamespace(imbalance=imbalance)
    assert WeightedBCE.auto(split) == {"pos_weight": pos_weight}
    assert Tversky.auto(split) == pytest.approx({"alpha": 1 - beta, "beta": beta})
    assert FocalTversky.auto(split) == Tversky.auto(split)


def test_with_enough_erosions_cldice_sees_a_gap_in_a_thick_bar():
    mask = torch.zeros(1, 1, 60, 100)
    mask[..., 20:40, 10:90] = 1  # 20 pixels thick
    painted = mask.clone()
    painted[..., 45:55] = 0
    found = ClDice.auto(Foreground([mask[0, 0].byte().numpy()]))
    assert found == {"iterations": 10}
    assert ClDice(iterations=3)(200 * painted - 100, mask) == 0  # no skeleton is left of it
    assert ClDice(**found)(200 * painted - 100, mask) > 0.02
    with pytest.warns(UserWarning, match="is 60 pixels thick, so clDice erodes 30 times"):
        assert ClDice.auto(Foreground([np.pad(np.ones((60, 200), np.uint8), 40)])) == {"iterations": 30}


def test_what_auto_makes_of_the_thickness():
    assert BoundaryGaussian.auto(SimpleNamespace(thickness=64.0)) == {"sigma": 4.0}  # (4 * 64) ** (1 / 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dice(smooth=0), "smooth must be more than 0"),
        (lambda: DoU(smooth=-1), "smooth must be more than 0"),
        (lambda: BoundaryGaussian(sigma=0), "sigma is a width in pixels"),
        (lambda: WeightedBCE(pos_weight=0), "pos_weight must be more than 0"),
        (lambda: Dynamit(empty="skip"), "empty must be one of zero, background"),
        (lambda: Sum({"a": BCE()}, {"b": 1.0}), "must have the same names"),
        (lambda: Sum({}, {}), "terms is empty"),
        (lambda: BalancedBCE(beta=1.0), "beta is a share between 0 and 1"),
        (lambda: Focal(alpha=0.0), "alpha is a share between 0 and 1"),
        (lambda: ModifiedFocal(gamma=-1.0), "gamma 0 or more"),
        (lambda: Poly(epsilon=-2.0), "epsilon must be -1 or more"),
        (lambda: Tversky(alpha=-0.1), "alpha and beta are prices"),
        (lambda: Tversky(alpha=0.0, beta=0.0), "not both 0"),
        (lambda: FocalTversky(gamma=0.0), "gamma must be more than 0"),
        (lambda: ModifiedFocalTversky(gamma=1.0), "gamma at least 0 and below 1"),
        (lambda: HausdorffDT(alpha=0.0), "alpha must be more than 0"),
        (lambda: Structure(size=30), "size must be odd"),
        (lambda: ClDice(iterations=0), "iterations must be 1 or more"),
        (lambda: SkeletonRecall(smooth=0.0), "smooth must be more than 0"),
    ],
)
def test_an_impossible_setting_is_refused_with_the_rule(make, message):
    with pytest.raises(ValueError, match=message):
        make()
