"""Losses that look at how far two regions overlap."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raremask.losses.pixel import Foreground, full_precision

EACH, ALL = (1, 2, 3), (0, 1, 2, 3)  # dimensions to sum over: of each image, or of the whole batch


def soft_counts(logits: Tensor, mask: Tensor, per_image: bool) -> tuple[Tensor, Tensor, Tensor]:
    r"""True positives, false positives and false negatives, each pixel counted by its probability.

    .. math:: TP = \sum p t \qquad FP = \sum p (1 - t) \qquad FN = \sum (1 - p) t

    Args:
        logits: `(B, 1, H, W)`, any float type.
        mask: `(B, 1, H, W)` of 0 and 1.
        per_image: Count each image on its own; else the whole batch (of this process).

    Returns:
        Three tensors of shape `(B,)`, or `()`; pixels, float32 at least.
    """
    logits, mask = full_precision(logits, mask)
    probability, over = torch.sigmoid(logits), EACH if per_image else ALL
    true_positive = (probability * mask).sum(over)
    return true_positive, probability.sum(over) - true_positive, mask.sum(over) - true_positive


class Overlap(nn.Module):
    """What the losses of this room share: a `smooth` that keeps empty masks defined, and what it is averaged over.

    Args:
        smooth: Pixels added above and below the line, more than 0.
        per_image: Whether each image is counted on its own; else the whole batch (of this process).

    Raises:
        ValueError: If `smooth` is not positive.
    """

    def __init__(self, smooth: float, per_image: bool):
        super().__init__()
        if not smooth > 0:
            raise ValueError(f"smooth must be more than 0, or an empty mask divides 0 by 0; got {smooth}")
        self.smooth, self.per_image = smooth, per_image

    @property
    def learns_from_empty(self) -> bool:
        """Whether a false positive on an empty mask costs: with a tiny `smooth` the loss is 1 whatever is painted.

        Where it becomes tiny is gradual; a tenth of a pixel is taken. It also depends on the rest of the image: small
        probabilities that add up to far more than `smooth` pixels have the same effect.
        """
        return self.smooth >= 0.1


class Dice(Overlap):
    r"""One minus the soft Dice coefficient, averaged over the images of the batch.

    .. math:: 1 - \frac{2 \, TP + s}{2 \, TP + FP + FN + s}

    With `squared` the denominator is sum p^2 + sum t^2 + s.

    Range 0 (perfect) to 1. On an empty mask it is 1 - s / (sum p + s): with s = 1 a single false positive pixel
    already costs 0.5 and the next ones hardly more; with s below 0.1 there is no gradient left, and an empty mask
    teaches nothing.

    When to use: what is reported is Dice. Steadier together with cross-entropy (`bce_dice`).

    Args:
        smooth: Pixels s added above and below the line, more than 0.
        per_image: Average the loss of the images; else take the sums over the whole batch (of this process).
        squared: Use squares in the denominator, as V-Net does.

    Raises:
        ValueError: If `smooth` is not positive.

    Source:
        Milletari, Navab & Ahmadi (2016), section 3, https://arxiv.org/abs/1606.04797 (with `squared`);
        Drozdzal et al. (2016), eq. 2, https://arxiv.org/abs/1608.04117 (without)

    >>> Dice(smooth=1.0)(torch.full((1, 1, 2, 2), 100.0), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]))  # 1 - 3 / 6
    tensor(0.5000)
    """

    def __init__(self, smooth: float = 1.0, per_image: bool = True, squared: bool = False):
        super().__init__(smooth, per_image)
        self.squared = squared

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        if self.squared:  # sum p^2 + sum t^2 - 2 TP is the sum of the squared differences
            logits, mask = full_precision(logits, mask)
            probability, over = torch.sigmoid(logits), EACH if self.per_image else ALL
            true_positive, wrong = (probability * mask).sum(over), (probability - mask).square().sum(over)
        else:
            true_positive, false_positive, false_negative = soft_counts(logits, mask, self.per_image)
            wrong = false_positive + false_negative
        return (wrong / (2 * true_positive + wrong + self.smooth)).mean()


class Jaccard(Overlap):
    r"""One minus the soft Jaccard index (intersection over union), averaged over the images of the batch.

    .. math:: 1 - \frac{TP + s}{TP + FP + FN + s}

    Range 0 (perfect) to 1. On an empty mask it is 1 - s / (sum p + s), as Dice, and with s below 0.1
    teaches nothing.

    When to use: as Dice; it punishes poor overlap harder. The two have their minimum at the same prediction.

    Args:
        smooth: Pixels s added above and below the line, more than 0.
        per_image: Average the loss of the images; else take the sums over the whole batch (of this process).

    Raises:
        ValueError: If `smooth` is not positive.

    Source:
        Rahman & Wang (2016), https://doi.org/10.1007/978-3-319-50835-1_22

    >>> Jaccard(smooth=1.0)(torch.full((1, 1, 2, 2), 100.0), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]))  # 1 - 2 / 5
    tensor(0.6000)
    """

    def __init__(self, smooth: float = 1.0, per_image: bool = True):
        super().__init__(smooth, per_image)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        true_positive, false_positive, false_negative = soft_counts(logits, mask, self.per_image)
        wrong = false_positive + false_negative
        return (wrong / (true_positive + wrong + self.smooth)).mean()


class GeneralizedDice(nn.Module):
    r"""Dice over both classes at once, each weighted by the inverse square of its size.

    .. math:: 1 - 2 \frac{\sum_c w_c TP_c}{\sum_c w_c (\sum p_c + \sum t_c)}, \quad w_c = \frac{1}{S_c^2}

    The classes are foreground and background; with one of them alone the weight would cancel.

    Range 0 (perfect) to 1. In an image of one class both weigh the same (the paper leaves 1 / 0 open): an empty mask is
    worth the mean probability, so every false positive costs alike.

    When to use: object sizes that differ much between images. Near Dice when the foreground is rare.

    Args:
        per_image: Average the loss of the images; else take the sums over the whole batch (of this process).

    Source:
        Sudre et al. (2017), eq. 2, https://arxiv.org/abs/1707.03237

    >>> mask = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])  # w = 1, 1/9: 1 - 2 (1/2 + 3/2 / 9) / (3 + 5 / 9)
    >>> GeneralizedDice()(torch.zeros_like(mask), mask)
    tensor(0.6250)
    """

    def __init__(self, per_image: bool = True):
        super().__init__()
        self.per_image = per_image

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        true_positive, false_positive, false_negative = soft_counts(logits, mask, self.per_image)
        wrong, foreground = false_positive + false_negative, true_positive + false_negative
        pixels = mask.numel() / foreground.numel()
        background, true_negative = pixels - foreground, pixels - true_positive - wrong
        # the weights times a common factor, so that they sum to one and none is 1 / 0
        squares = foreground.square() + background.square()
        of_one_class = (foreground < 0.5) | (background < 0.5)
        weight_foreground = (background.square() / squares).masked_fill(of_one_class, 0.5)
        weight_background = (foreground.square() / squares).masked_fill(of_one_class, 0.5)
        total = weight_foreground * (2 * true_positive + wrong) + weight_background * (2 * true_negative + wrong)
        return (wrong / total).mean()


class LogCoshDice(Dice):
    r"""Logarithm of the hyperbolic cosine of the Dice loss: its square at small values, flatter at large ones.

    .. math:: \log \cosh(\mathrm{Dice})

    Range 0 (perfect) to 0.434. On an empty mask a false positive costs, but less and less, as under
    Dice; with s below 0.1 it teaches nothing.

    When to use: Dice that jitters near the end; the slope fades as the prediction becomes right.

    Args:
        smooth: Pixels s of the Dice loss, more than 0.
        per_image: Average the Dice loss of the images; else take the sums over the whole batch (of this process).

    Raises:
        ValueError: If `smooth` is not positive.

    Source:
        Jadon (2020), https://arxiv.org/abs/2006.14822

    >>> mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    >>> LogCoshDice()(torch.full((1, 1, 2, 2), 100.0), mask)  # log cosh 0.5
    tensor(0.1201)
    """

    def __init__(self, smooth: float = 1.0, per_image: bool = True):
        super().__init__(smooth, per_image)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        return (super().forward(logits, mask) / 2).sinh().square().mul(2).log1p()  # cosh x = 1 + 2 sinh^2 (x / 2)


class Tversky(Overlap):
    r"""One minus the Tversky index, averaged over the images of the batch.

    .. math:: 1 - \frac{TP + s}{TP + \alpha \, FP + \beta \, FN + s}

    Range 0 (perfect) to 1. alpha = beta = 0.5 is the Dice loss with a smooth twice as large, alpha = beta = 1 Jaccard.
    On an empty mask the loss still grows with every false positive; with `smooth` below 0.1 pixel it teaches nothing.

    When to use: recall matters more than precision, or foreground is missed under Dice.

    Args:
        alpha: Price of a false positive, 0 or more. In a config `auto` is one minus the automatic beta.
        beta: Price of a false negative, 0 or more. Raise it when the foreground is rare. In a config `auto` stands for
            0.5 + 0.1 log10(background / foreground pixels of the training split), between 0.5 and 0.7: Dice at
            balance, the paper's 0.7 from 1 % foreground downwards.
        smooth: Pixels s added above and below the line, more than 0.
        per_image: Average the loss of the images; else take the sums over the whole batch (of this process).

    Raises:
        ValueError: If a price is negative, both are 0, or `smooth` is not positive.

    Source:
        Salehi, Erdogmus & Gholipour (2017), eq. 3, https://arxiv.org/abs/1706.05721

    >>> mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    >>> Tversky()(torch.full((1, 1, 2, 2), 100.0), mask)  # 1 - (1 + 1) / (1 + 0.3 * 3 + 1)
    tensor(0.3103)
    """

    def __init__(self, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0, per_image: bool = True):
        super().__init__(smooth, per_image)
        if not min(alpha, beta) >= 0 or alpha + beta == 0:
            raise ValueError(f"alpha and beta are prices, 0 or more, and not both 0; got {alpha} and {beta}")
        self.alpha, self.beta = alpha, beta

    @staticmethod
    def auto(foreground: Foreground) -> dict[str, float]:
        """Return `alpha` and `beta` for a training split's :class:`~raremask.data.base.Foreground`."""
        beta = min(max(0.5 + 0.1 * math.log10(foreground.imbalance), 0.5), 0.7)
        return {"alpha": 1 - beta, "beta": beta}

    def of_images(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return one minus the index of each image, `(B,)`, or of the batch, `()`."""
        true_positive, false_positive, false_negative = soft_counts(logits, mask, self.per_image)
        wrong = self.alpha * false_positive + self.beta * false_negative
        return wrong / (true_positive + wrong + self.smooth)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        return self.of_images(logits, mask).mean()


class FocalTversky(Tversky):
    r"""A power of the Tversky loss that makes nearly right images count less, averaged over the images of the batch.

    .. math:: \left( 1 - TI \right)^{1 / \gamma}, \quad TI = \frac{TP + s}{TP + \alpha \, FP + \beta \, FN + s}

    Range 0 (perfect) to 1. The exponent 3/4 (gamma = 4/3) is steep at 0: at a perfect prediction the power is cut at
    1e-7 so that the gradient stays finite. On an empty mask false positives cost; with `smooth` below 0.1 pixel it
    teaches nothing.

    When to use: small objects beside large ones, of which the small are missed.

    Args:
        alpha: Price of a false positive, 0 or more; `auto` as for the Tversky loss. (The paper calls it beta.)
        beta: Price of a false negative, 0 or more; `auto` as for the Tversky loss. (The paper calls it alpha.)
        gamma: Inverse of the exponent, more than 0; the paper recommends 1 to 3.
        smooth: Pixels s added above and below the line, more than 0.
        per_image: Average the loss of the images; else take the sums over the whole batch (of this process).

    Raises:
        ValueError: If a price is negative, both are 0, or `smooth` or `gamma` is not positive.

    Source:
        Abraham & Khan (2019), eq. 4, https://arxiv.org/abs/1810.07842

    >>> mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    >>> FocalTversky()(torch.full((1, 1, 2, 2), 100.0), mask)  # 0.3103 ** 0.75
    tensor(0.4158)
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 4 / 3,
        smooth: float = 1.0,
        per_image: bool = True,
    ):
        super().__init__(alpha, beta, smooth, per_image)
        if not gamma > 0:
            raise ValueError(f"gamma must be more than 0; got {gamma}")
        self.gamma = gamma

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        return _power(self.of_images(logits, mask), 1 / self.gamma).mean()


class ModifiedFocalTversky(nn.Module):
    r"""Mean over foreground and background of a power of one minus the modified Tversky index, averaged over images.

    .. math:: \frac{1}{2} \left( (1 - mTI_+)^{1 - \gamma} + (1 - mTI_-)^{1 - \gamma} \right), \quad
              mTI = \frac{TP + s}{TP + \delta \, FN + (1 - \delta) FP + s}

    For the background, its own pixels are the positives. With `asymmetric` its exponent is 1, so that only the rare
    foreground is enhanced.

    Range 0 (perfect) to 1. On an empty mask the foreground's half is 1 whatever is painted, but for the tiny s; the
    background's half still falls with every false positive that is taken away.

    When to use: as the region's half of the Unified Focal loss.

    Args:
        delta: Price of a false negative, between 0 and 1; a false positive costs 1 - delta.
        gamma: How much poor overlap is enhanced, from 0 to below 1.
        asymmetric: Whether only the foreground is enhanced.
        smooth: s, more than 0; the code's epsilon.

    Raises:
        ValueError: If one of them is out of its range.

    Source:
        Yeung et al. (2022), https://arxiv.org/abs/2102.04525. Its equations sum over the classes, its code takes the
        mean; this is the code's.

    >>> mask = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])  # 1 - mTI: 0.9 / 1.4 and 1.1 / 2.6
    >>> ModifiedFocalTversky()(torch.zeros_like(mask), mask)  # the mean of their square roots
    tensor(0.7261)
    """

    def __init__(self, delta: float = 0.6, gamma: float = 0.5, asymmetric: bool = False, smooth: float = 1e-7):
        super().__init__()
        if not 0 < delta < 1 or not 0 <= gamma < 1 or not smooth > 0:
            raise ValueError(
                "delta is a share between 0 and 1, gamma at least 0 and below 1, smooth more than 0; "
                f"got {delta}, {gamma} and {smooth}"
            )
        self.delta, self.gamma, self.asymmetric, self.smooth = delta, gamma, asymmetric, smooth

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        true_positive, false_positive, false_negative = soft_counts(logits, mask, per_image=True)
        true_negative = mask[0].numel() - true_positive - false_positive - false_negative
        foreground = self._of_class(true_positive, false_positive, false_negative)
        background = self._of_class(true_negative, false_negative, false_positive)
        exponent = 1 - self.gamma
        foreground, background = (
            _power(foreground, exponent),
            background if self.asymmetric else _power(background, exponent),
        )
        return ((foreground + background) / 2).mean()

    def _of_class(self, true_positive: Tensor, false_positive: Tensor, false_negative: Tensor) -> Tensor:
        wrong = self.delta * false_negative + (1 - self.delta) * false_positive
        return wrong / (true_positive + wrong + self.smooth)


class Lovasz(nn.Module):
    r"""Lovász hinge: the convex surrogate of one minus the Jaccard index, averaged over the images of the batch.

    .. math:: \overline{\Delta_J}(m), \quad m_i = \max(0, 1 - z_i (2 t_i - 1))

    The errors m are sorted, the largest first, and each is weighted by how much the Jaccard loss rises when its pixel
    becomes wrong too.

    Range 0 (every logit right by 1 or more) upwards, without a bound. On an empty mask it is the largest error alone:
    false positives are punished one pixel at a time.

    When to use: to finish a network trained with cross-entropy; alone, and with a large learning rate, all logits may
    run to the same value. Set the threshold on validation: the logits are no calibrated probabilities.

    Args:
        per_image: Average the loss of the images; else sort all pixels of the batch (of this process) together.

    Source:
        Berman, Triki & Blaschko (2018), eq. 9 and algorithm 1, https://arxiv.org/abs/1705.08790

    >>> mask = torch.tensor([[[[1.0, 0.0]]]])  # errors 3 and 0.5; J rises by 1, then by 0
    >>> Lovasz()(torch.tensor([[[[-2.0, -0.5]]]]), mask)
    tensor(3.)
    """

    def __init__(self, per_image: bool = True):
        super().__init__()
        self.per_image = per_image

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        logits, mask = full_precision(logits, mask)
        rows = len(logits) if self.per_image else 1
        logits, mask = logits.reshape(rows, -1), mask.reshape(rows, -1)
        errors = 1 - logits * (2 * mask - 1)
        with torch.no_grad():  # the weights depend on the order alone, which has no slope
            order = _worst_first(errors)
            weights = torch.zeros_like(errors).scatter_(1, order, self._rises(mask.gather(1, order)))
        return (F.relu(errors) * weights).sum(1).mean()

    @staticmethod
    def _rises(mask: Tensor) -> Tensor:
        """By how much the Jaccard loss rises with each further wrong pixel, `(rows, pixels)`, the worst first.

        Written out instead of as a difference of two nearly equal losses, which would lose float32's digits.
        """
        area = mask.sum(1, keepdim=True, dtype=torch.int32)
        found = (area - mask.cumsum(1, dtype=torch.int32)).to(mask.dtype)  # intersection that is left
        union = found + torch.arange(1, mask.shape[1] + 1, dtype=mask.dtype, device=mask.device)
        rises = torch.where(mask != 0, 1 / union, found / (union * (union - 1).clamp(min=1)))
        rises[:, :1] = rises[:, :1].masked_fill(area == 0, 1)
        return rises


def _worst_first(errors: Tensor) -> Tensor:
    """Order of the pixels of each row by their error, `(rows, pixels)`, the largest first."""
    if errors.device.type == "cpu":
        return _worst_first_on_cpu(errors.detach())
    return errors.argsort(dim=1, descending=True)


@torch.library.custom_op("raremask::worst_first", mutates_args=())  # NumPy sorts with vector instructions, PyTorch not
def _worst_first_on_cpu(errors: Tensor) -> Tensor:
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return torch.from_numpy(np.stack(list(pool.map(np.argsort, -errors.numpy()))))


@_worst_first_on_cpu.register_fake
def _(errors: Tensor) -> Tensor:
    return torch.empty(errors.shape, dtype=torch.int64, device=errors.device)


def _power(loss: Tensor, exponent: float) -> Tensor:
    """A power whose slope stays finite at 0, and which is defined where rounding has gone below it."""
    return loss.clamp(min=1e-7).pow(exponent)
