"""Losses that look at the boundary of the foreground."""

import torch
from torch import Tensor, nn

from raremask import masks
from raremask.losses.adaptive import balance, class_counts
from raremask.losses.pixel import cross_entropy


class BoundaryGaussian(nn.Module):
    r"""Dynamit, with the background near the foreground lifted by a Gaussian of its distance.

    .. math:: \mathrm{mean}\left( w(x) \, \mathrm{BCE}(z, t) \right), \quad
              w_+ = \min(1, S_-/S_+), \; w_-(x) = \min(1, S_+/S_- + g(x)), \quad
              g(x) = \exp\left(-\frac{d(x)^2}{2 \sigma^2}\right)

    d(x) is the Euclidean distance in pixels of a background pixel to the nearest foreground pixel of its image;
    the counts are those of the whole batch, over all processes. One-sided: only background is lifted.

    Range 0 (perfect) upwards. An image without foreground has g = 0; a batch without foreground is worth 0 and has no
    gradient, as published.

    Args:
        sigma: Reach of the lift in pixels at the network's size, more than 0. The thesis uses 2, and 4 on CVC.

    Raises:
        ValueError: If `sigma` is not positive.

    Source:
        Patsias, "Tackling Class Imbalance in Medical Image Segmentation" (2025), Boundary-Gaussian. It clamps
        probabilities; here the same value is taken from logits, so that no gradient is cut off.

    >>> mask = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
    >>> BoundaryGaussian(sigma=0.1)(torch.zeros_like(mask), mask)  # so narrow that Dynamit is left
    tensor(0.3466)
    """

    def __init__(self, sigma: float = 2.0):
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"sigma is a width in pixels and must be more than 0; got {sigma}")
        self.sigma = sigma

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        weight_foreground, weight_background = balance(*class_counts(mask, per_image=False))
        lifted = (weight_background + masks.proximity(mask, self.sigma)).clamp(max=1)
        weight = torch.where(mask != 0, weight_foreground, lifted)
        return (weight * cross_entropy(logits, mask)).mean()


class DoU(nn.Module):
    r"""Boundary difference over union: the mismatch, over the union less a share of the intersection.

    .. math:: \frac{\sum p^2 + \sum t^2 - 2 \sum p t + s}{\sum p^2 + \sum t^2 - (1 + \alpha) \sum p t + s}, \quad
              \alpha = \min\left(1 - 2 \frac{C + s}{S + s}, 0.8\right)

    S is the area of the mask in pixels and C the number of its boundary pixels; the smaller the object beside its
    boundary, the more the boundary counts. alpha = 0 is the soft Jaccard loss, alpha = -1 (a line one pixel wide) the
    squared Dice loss. Foreground that touches the frame of the image has its boundary there, as in the authors' code.

    Range near 0 (perfect) to 1. A class that is absent makes its loss the constant 1, without gradient: an empty mask
    teaches nothing, or with `background` only through the other class.

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

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        logits, mask = logits.float(), mask.float()
        loss = self._of_class(torch.sigmoid(logits), mask)
        if self.background:
            loss = (loss + self._of_class(torch.sigmoid(-logits), 1 - mask)) / 2
        return loss.mean()

    def _of_class(self, probability: Tensor, mask: Tensor) -> Tensor:
        over = (1, 2, 3) if self.per_image else (0, 1, 2, 3)
        area = mask.sum(over)
        edge = masks.boundary(mask).sum(over)
        alpha = (1 - 2 * (edge + self.smooth) / (area + self.smooth)).clamp(max=0.8)
        shared = (probability * mask).sum(over)
        total = probability.square().sum(over) + area  # a mask is its own square
        return (total - 2 * shared + self.smooth) / (total - (1 + alpha) * shared + self.smooth)
