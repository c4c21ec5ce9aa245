"""Losses that look at each pixel alone."""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_POS_WEIGHT = 100.0  # `pos_weight: auto` goes no further: beyond it a few pixels would make every gradient


class Foreground(Protocol):
    """What parameters `auto` go by, as :class:`raremask.data.base.Foreground` finds it in the training masks."""

    @property
    def imbalance(self) -> float:
        """Background pixels per foreground pixel."""

    @property
    def thickness(self) -> float:
        """Mean thickness of the foreground in pixels, see :func:`raremask.distances.thickness`."""

    @property
    def radius(self) -> float:
        """Largest distance in pixels of a foreground pixel to the background of its image."""


def full_precision(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Bring both to the logits' own float type, but float32 at least: sums over an image overflow float16.

    Args:
        logits: `(B, 1, H, W)`, any float type.
        mask: `(B, 1, H, W)` of 0 and 1, any type.

    Returns:
        Both, float32 (float64 where the logits are).
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype), mask.to(dtype)


def cross_entropy(logits: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy from logits, each pixel with a weight of its own, averaged over all pixels.

    Args:
        logits: `(B, 1, H, W)`, any float type.
        mask: `(B, 1, H, W)` of 0 and 1.
        weight: Broadcasts to `(B, 1, H, W)`; None weighs all pixels alike. The mean is plain, not divided by the sum
            of the weights.

    Returns:
        A scalar in nats.
    """
    logits, mask = full_precision(logits, mask)
    return F.binary_cross_entropy_with_logits(logits, mask, weight=weight)


def faded_cross_entropy(
    logits: Tensor, mask: Tensor, weights: tuple[float, float], gammas: tuple[float, float]
) -> Tensor:
    r"""Cross-entropy of each pixel times a power of its wrong probability, averaged over all pixels.

    .. math:: \frac{1}{N} \sum_i w_t (1 - p_t)^{\gamma_t} (-\log p_t)

    With u = z (1 - 2t), the logit of being wrong, -log p_t = softplus(u) and log(1 - p_t) = u - softplus(u). Weight and
    power are put together as logarithms, which costs one pass less and has finite slopes however sure the network is;
    the power itself would have an infinite slope at 0.

    Args:
        logits: z, `(B, 1, H, W)`, any float type.
        mask: t, `(B, 1, H, W)` of 0 and 1.
        weights: w of background and of foreground, more than 0.
        gammas: gamma of background and of foreground, 0 or more.

    Returns:
        A scalar in nats.
    """
    logits, mask = full_precision(logits, mask)
    wrong = torch.addcmul(logits, logits, mask, value=-2)
    entropy = F.softplus(wrong)
    log_wrong = wrong - entropy
    log_weight = _by_class(mask, math.log(weights[0]), math.log(weights[1]))
    if gammas[0] == gammas[1]:
        factor = torch.add(log_weight, log_wrong, alpha=gammas[0]).exp()
    else:
        factor = torch.addcmul(log_weight, log_wrong, _by_class(mask, *gammas)).exp()
    return (factor * entropy).mean()


def _by_class(mask: Tensor, background: float, foreground: float) -> Tensor:
    """A number for the background and one for the foreground, where they are."""
    return (mask * (foreground - background)).add_(background)


class BCE(nn.Module):
    r"""Binary cross-entropy, averaged over all pixels of the batch.

    .. math:: -\frac{1}{N} \sum_i t_i \log p_i + (1 - t_i) \log(1 - p_i)

    Range 0 (perfect) upwards, in nats. On an empty mask it is the mean of -log(1 - p): false positives are punished.

    When to use: the baseline. With rare foreground the background outvotes it, and predicting nothing is a deep local
    minimum.

    >>> BCE()(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))  # log 2
    tensor(0.6931)
    """

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        return cross_entropy(logits, mask)


class WeightedBCE(nn.Module):
    r"""Binary cross-entropy in which a foreground pixel weighs as much as `pos_weight` background pixels.

    .. math:: -\frac{1}{N} \sum_i w \, t_i \log p_i + (1 - t_i) \log(1 - p_i)

    Range 0 (perfect) upwards. On an empty mask it equals BCE.

    When to use: to get a network off the ground that paints nothing under BCE. A large weight makes it paint too much:
    look at the precision, and finish with a loss of overlap.

    Args:
        pos_weight: Weight w of the foreground, more than 0. In a config, `auto` stands for background / foreground
            pixels of the training split, at most 100.

    Raises:
        ValueError: If the weight is not positive.

    Source:
        The plain class-weighted cross-entropy; as in Ronneberger et al. (2015), without their border map,
        https://arxiv.org/abs/1505.04597

    >>> loss = WeightedBCE(pos_weight=3.0)
    >>> loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))  # 3 log 2
    tensor(2.0794)
    """

    def __init__(self, pos_weight: float):
        super().__init__()
        if not pos_weight > 0:
            raise ValueError(f"pos_weight must be more than 0; got {pos_weight}")
        self.pos_weight = float(pos_weight)

    @staticmethod
    def auto(foreground: Foreground) -> dict[str, float]:
        """Return `pos_weight` for a training split's :class:`~raremask.data.base.Foreground`."""
        return {"pos_weight": min(foreground.imbalance, MAX_POS_WEIGHT)}

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        logits, mask = full_precision(logits, mask)
        return cross_entropy(logits, mask, weight=_by_class(mask, 1.0, self.pos_weight))


class BalancedBCE(nn.Module):
    r"""Binary cross-entropy with the weights beta for foreground and 1 - beta for background.

    .. math:: -\frac{1}{N} \sum_i \beta \, t_i \log p_i + (1 - \beta) (1 - t_i) \log(1 - p_i)

    Range 0 (perfect) upwards. On an empty mask it is (1 - beta) BCE. beta = 0.5 is half of BCE.

    When to use: in the Combo loss. It weighs like WeightedBCE with beta / (1 - beta), at another scale.

    Args:
        beta: Weight of the foreground, between 0 and 1.

    Raises:
        ValueError: If `beta` is not between 0 and 1.

    Source:
        Taghanaki et al. (2018), eq. 3, https://arxiv.org/abs/1805.02798

    >>> BalancedBCE(beta=0.75)(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))  # 0.75 log 2
    tensor(0.5199)
    """

    def __init__(self, beta: float = 0.5):
        super().__init__()
        if not 0 < beta < 1:
            raise ValueError(f"beta is a share between 0 and 1; got {beta}")
        self.beta = beta

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        logits, mask = full_precision(logits, mask)
        return cross_entropy(logits, mask, weight=_by_class(mask, 1 - self.beta, self.beta))


class Focal(nn.Module):
    r"""Cross-entropy in which a pixel counts less, the surer the network is of it and right.

    .. math:: -\frac{1}{N} \sum_i \alpha_t (1 - p_t)^\gamma \log p_t

    p_t is the probability of the true class, alpha_t is alpha on foreground and 1 - alpha on background. A plain mean
    over pixels (Lin et al. divide by the number of objects, which masks do not have).

    Range 0 (perfect) upwards. On an empty mask false positives are punished, the sure ones most.

    When to use: many easy background pixels and few hard ones. gamma = 0, alpha = 0.5 is half of BCE. alpha = 0.25
    belongs to gamma = 2 in detection; for rare foreground try 0.5 and more.

    Args:
        alpha: Weight of the foreground, between 0 and 1.
        gamma: How fast easy pixels fade, 0 or more.

    Raises:
        ValueError: If one of them is out of its range.

    Source:
        Lin et al. (2017), eq. 5, https://arxiv.org/abs/1708.02002

    >>> Focal()(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))  # 0.25 * 0.5^2 * log 2
    tensor(0.0433)
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0):
        super().__init__()
        if not 0 < alpha < 1 or not gamma >= 0:
            raise ValueError(f"alpha is a share between 0 and 1, gamma 0 or more; got {alpha} and {gamma}")
        self.alpha, self.gamma = alpha, gamma

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        weights = (1 - self.alpha, self.alpha)
        return faded_cross_entropy(logits, mask, weights, gammas=(self.gamma, self.gamma))


class ModifiedFocal(nn.Module):
    r"""Cross-entropy of both classes, in which easy pixels fade: all of them, or those of the background alone.

    .. math:: \frac{1}{N} \sum_i \delta \, t_i (1 - p_i)^{\gamma} (-\log p_i)
              + (1 - \delta) (1 - t_i) \, p_i^\gamma (-\log(1 - p_i))

    With `asymmetric` the foreground's factor (1 - p)^gamma is left out, so rare foreground never fades.

    Range 0 (perfect) upwards. On an empty mask false positives are punished, the sure ones most.

    When to use: `asymmetric` where Focal lets the foreground fade too; also the pixel's half of the Unified Focal loss.

    Args:
        delta: Weight of the foreground, between 0 and 1.
        gamma: How fast easy pixels fade, 0 or more. The equations of the paper write the symmetric exponent as
            1 - gamma, its code as gamma; this is the code's. At the published gamma = 0.5 they are the same.
        asymmetric: Whether only the background fades.

    Raises:
        ValueError: If one of them is out of its range.

    Source:
        Yeung et al. (2022), https://arxiv.org/abs/2102.04525, and their code

    >>> ModifiedFocal()(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))  # 0.7 log 2
    tensor(0.4852)
    """

    def __init__(self, delta: float = 0.7, gamma: float = 2.0, asymmetric: bool = True):
        super().__init__()
        if not 0 < delta < 1 or not gamma >= 0:
            raise ValueError(f"delta is a share between 0 and 1, gamma 0 or more; got {delta} and {gamma}")
        self.delta, self.gamma, self.asymmetric = delta, gamma, asymmetric

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        gammas = (self.gamma, 0.0 if self.asymmetric else self.gamma)
        return faded_cross_entropy(logits, mask, weights=(1 - self.delta, self.delta), gammas=gammas)


class Poly(nn.Module):
    r"""Cross-entropy plus epsilon times the probability of being wrong: Poly-1.

    .. math:: \frac{1}{N} \sum_i -\log p_t + \epsilon (1 - p_t)

    Range 0 (perfect) upwards. On an empty mask false positives are punished.

    When to use: as BCE, with one number to tune. epsilon > 0 strengthens the pixels that are nearly right.

    Args:
        epsilon: Added weight of the first polynomial term of the cross-entropy, -1 or more.

    Raises:
        ValueError: If `epsilon` is below -1, where being wrong would pay.

    Source:
        Leng et al. (2022), eq. 6, https://arxiv.org/abs/2204.12511

    >>> Poly()(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))  # log 2 + 0.5
    tensor(1.1931)
    """

    def __init__(self, epsilon: float = 1.0):
        super().__init__()
        if not epsilon >= -1:
            raise ValueError(f"epsilon must be -1 or more; got {epsilon}")
        self.epsilon = epsilon

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        logits, mask = full_precision(logits, mask)
        wrong = (torch.sigmoid(logits) - mask).abs()  # 1 - p_t
        return cross_entropy(logits, mask) + self.epsilon * wrong.mean()
