"""Losses that look at the boundary of the foreground."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raremask import distances, masks
from raremask.losses.adaptive import balance, class_counts
from raremask.losses.overlap import ALL, EACH
from raremask.losses.pixel import Foreground, cross_entropy, full_precision


class BoundaryGaussian(nn.Module):
    r"""Dynamit, with the background near the foreground lifted by a Gaussian of its distance.

    .. math:: \mathrm{mean}\left( w(x) \, \mathrm{BCE}(z, t) \right), \quad
              w_+ = \min(1, S_-/S_+), \; w_-(x) = \min(1, S_+/S_- + g(x)), \quad
              g(x) = \exp\left(-\frac{d(x)^2}{2 \sigma^2}\right)

    d(x) is the Euclidean distance in pixels of a background pixel to the nearest foreground pixel of its image;
    the counts are those of the whole batch, over all processes. One-sided: only background is lifted.

    Range 0 (perfect) upwards. On an empty mask g = 0; a batch without foreground is worth 0 and teaches nothing, as
    published; in a batch with foreground, an empty image has the weight of the other background.

    When to use: outlines that bleed, or are cut short, under Dynamit.

    Args:
        sigma: Reach of the lift in pixels at the network's size, more than 0. The thesis uses 2, and 4 on CVC. In a
            config `auto` stands for the fourth root of four times the thickness of the objects in the training split
            (see :func:`raremask.distances.thickness`): 2.0 on DRIVE at 512 x 512 and 3.9 on CVC at 288 x 384 pixels.

    Raises:
        ValueError: If `sigma` is not positive.

    Source:
        Patsias, "Tackling Class Imbalance in Medical Image Segmentation" (2025), Boundary-Gaussian. It clamps
        probabilities; here the same value is taken from logits, so that no gradient is cut off.

    >>> mask = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
    >>> BoundaryGaussian(sigma=0.1)(torch.zeros_like(mask), mask)  # so narrow that Dynamit is left
    tensor(0.3466)
    """

    learns_from_empty = False

    def __init__(self, sigma: float = 2.0):
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"sigma is a width in pixels and must be more than 0; got {sigma}")
        self.sigma = sigma

    @staticmethod
    def auto(foreground: Foreground) -> dict[str, float]:
        """Return `sigma` for a training split's :class:`~raremask.data.base.Foreground`."""
        return {"sigma": (4 * foreground.thickness) ** 0.25}

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        return cross_entropy(logits, mask, self.weights(mask))

    def weights(self, mask: Tensor) -> Tensor:
        """Return what each pixel weighs, `(B, 1, H, W)` float32 in [0, 1]."""
        weight_foreground, weight_background = balance(*class_counts(mask, per_image=False))
        lifted = distances.proximity(mask, self.sigma).add_(weight_background).clamp_(max=1)
        return torch.where(mask != 0, weight_foreground, lifted)


class DoU(nn.Module):
    r"""Boundary difference over union: the mismatch, over the union less a share of the intersection.

    .. math:: \frac{\sum p^2 + \sum t^2 - 2 \sum p t + s}{\sum p^2 + \sum t^2 - (1 + \alpha) \sum p t + s}, \quad
              \alpha = \min\left(1 - 2 \frac{C + s}{S + s}, 0.8\right)

    S is the area of the mask in pixels and C the number of its boundary pixels; the smaller the object beside its
    boundary, the more the boundary counts. alpha = 0 is the soft Jaccard loss, alpha = -1 (a line one pixel wide) the
    squared Dice loss. Foreground that touches the frame of the image has its boundary there, as in the authors' code.

    Range near 0 (perfect) to 1. A class that is absent makes its loss the constant 1, without gradient: an empty mask
    teaches nothing, or with `background` only through the other class.

    When to use: large objects whose outline matters. On thin vessels every pixel is boundary, and it is about Dice.

    Args:
        smooth: s, more than 0.
        background: Average over background and foreground, each as a class of its own (the thesis, and the authors'
            softmax over all classes); else foreground alone.
        per_image: Average over the images; else take the sums over the whole batch (of this process), as published.

    Raises:
        ValueError: If `smooth` is not positive.

    Source:
        Sun, Luo & Li (2023), eq. 3 and 4, https://arxiv.org/abs/2308.00220; the cap of 0.8 as in their code.

    >>> mask = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    >>> loss = DoU(background=False)  # C = S, so squared Dice: 1 - 2 * 1 / (1 + 2)
    >>> loss(torch.zeros_like(mask), mask)
    tensor(0.3333)
    """

    def __init__(self, smooth: float = 1e-5, background: bool = True, per_image: bool = False):
        super().__init__()
        if not smooth > 0:
            raise ValueError(f"smooth must be more than 0, or an empty mask divides 0 by 0; got {smooth}")
        self.smooth, self.background, self.per_image = smooth, background, per_image

    @property
    def learns_from_empty(self) -> bool:
        """Whether a false positive on an empty mask costs."""
        return self.background

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        logits, mask = full_precision(logits, mask)
        probability, over = torch.sigmoid(logits), EACH if self.per_image else ALL
        above = F.mse_loss(probability, mask, reduction="none").sum(over) + self.smooth  # the sum of (p - t)^2, and s
        shared, area, edges = (probability * mask).sum(over), mask.sum(over), masks.edges(mask)
        edge = (edges & mask.bool()).sum(over)
        if self.background:  # both classes at once, a row for each; what is above the line is the same for either
            behind = mask.numel() / area.numel() - area
            shared = torch.stack([shared, behind - probability.sum(over) + shared])  # sum (1 - p) (1 - t)
            area = torch.stack([area, behind])
            edge = torch.stack([edge, edges.sum(over) - edge])
        rest = (2 * (edge + self.smooth) / (area + self.smooth)).clamp(min=0.2)  # 1 - alpha
        return (above / torch.addcmul(above, rest, shared)).mean()


class Surface(nn.Module):
    r"""Probability times the signed distance to the boundary, averaged over all pixels.

    .. math:: \frac{1}{N} \sum_i p_i \, \phi_i

    phi is the distance in pixels outside the mask, and minus the distance plus 1 inside: 0 on the boundary's inner
    edge.

    Range: below 0 at its best (minus the mean depth of the mask), above 0 at its worst; in pixels, without a bound. phi
    is 0 where a mask is empty or full: such an image is worth 0 and teaches nothing.

    When to use: never alone, where it may collapse. Add it to a loss of overlap with a small weight that grows over the
    epochs (the paper: 0.01, and 0.01 more each epoch): `loss=dice_surface callbacks=growing_term`.

    Source:
        Kervadec et al. (2019), eq. 5, https://arxiv.org/abs/1812.07032, and their code for the inside's + 1

    >>> mask = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])  # phi: -1, 0, 1, 2
    >>> Surface()(torch.zeros_like(mask), mask)  # 0.5 * (-1 + 0 + 1 + 2) / 4
    tensor(0.2500)
    """

    learns_from_empty = False

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        logits, _ = full_precision(logits, mask)
        return (torch.sigmoid(logits) * distances.signed_distance(mask)).mean()


class HausdorffDT(nn.Module):
    r"""Squared error times powers of the distances to the boundary of the truth and to that of the prediction.

    .. math:: \frac{1}{N} \sum_i (p_i - t_i)^2 \left( d_p^\alpha + d_t^\alpha \right)

    d is the distance in pixels to the nearest pixel of the other class, in the mask t and in the prediction p > 0.5;
    0 in an image of one class. It carries no gradient.

    Range 0 (perfect) upwards, in pixels to the power alpha, without a bound. On an empty mask it is the mean of
    p^2 d_p^alpha: false positives are punished once p passes 0.5, unless everything is painted, which is worth 0 there.

    When to use: together with a loss of overlap, against false positives far from the object. Its scale grows with the
    image; give it a small weight.

    Args:
        alpha: How much far errors count, more than 0.

    Raises:
        ValueError: If `alpha` is not positive.

    Source:
        Karimi & Salcudean (2019), eq. 8, https://arxiv.org/abs/1904.10030

    >>> mask = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])  # d_t^2: 1, 1, 4, 9; nothing is predicted, d_p = 0
    >>> HausdorffDT()(torch.zeros_like(mask), mask)  # 0.25 * 15 / 4
    tensor(0.9375)
    """

    def __init__(self, alpha: float = 2.0):
        super().__init__()
        if not alpha > 0:
            raise ValueError(f"alpha must be more than 0; got {alpha}")
        self.alpha = alpha

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        logits, mask = full_precision(logits, mask)
        with torch.no_grad():
            far = distances.distance_to_other_class(mask).pow_(self.alpha)
            far += distances.distance_to_other_class(logits > 0).pow_(self.alpha)
        return ((torch.sigmoid(logits) - mask).square() * far).mean()


class Structure(nn.Module):
    r"""Cross-entropy plus Jaccard loss, both weighted towards the boundary, averaged over the images of the batch.

    .. math:: \frac{\sum w \, \mathrm{BCE}}{\sum w} + 1 - \frac{\sum w p t + 1}{\sum w (p + t - p t) + 1}, \quad
              w = 1 + 5 \left| \mathrm{avgpool}_{31}(t) - t \right|

    Range 0 (perfect) upwards. On an empty mask w = 1: false positives cost both in cross-entropy and in overlap.

    When to use: polyps, for which it was made; hard pixels lie around outlines and in thin parts.

    Args:
        size: Side of the window in pixels, odd. The average counts what lies outside the image as background.
        boost: How much the boundary is lifted, 0 or more.

    Raises:
        ValueError: If `size` is even or `boost` negative.

    Source:
        Wei, Wang & Huang (2020), F3Net, eq. 4 to 6, https://arxiv.org/abs/1911.11445, as used by PraNet. The code that
        both publish averages the cross-entropy before it is weighted, so that w cancels there; this is the formula.

    >>> mask = torch.zeros(1, 1, 4, 4)  # log 2 + 1 - 1 / (8 + 1)
    >>> Structure()(mask, mask)
    tensor(1.5820)
    """

    def __init__(self, size: int = 31, boost: float = 5.0):
        super().__init__()
        if not size % 2 or not boost >= 0:
            raise ValueError(f"size must be odd and boost 0 or more; got {size} and {boost}")
        self.size, self.boost = size, boost

    def parts(self, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the scalars of both terms; their sum is the loss."""
        logits, mask = full_precision(logits, mask)
        with torch.no_grad():
            around = masks.window_sum(mask, self.size) / self.size**2
            weight = around.sub_(mask).abs_().mul_(self.boost).add_(1)
        entropy = F.binary_cross_entropy_with_logits(logits, mask, weight=weight, reduction="none")
        probability = torch.sigmoid(logits)
        shared = (weight * probability * mask).sum(EACH)
        wrong = (weight * (probability - mask).abs()).sum(EACH)  # union less intersection
        return {
            "bce": (entropy.sum(EACH) / weight.sum(EACH)).mean(),
            "iou": (wrong / (shared + wrong + 1)).mean(),
        }

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        parts = self.parts(logits, mask)
        return parts["bce"] + parts["iou"]
