"""Losses that look at what is connected with what: the skeletons of thin objects."""

import math
import warnings

import torch
from torch import Tensor, nn

from raremask import masks
from raremask.losses.overlap import EACH
from raremask.losses.pixel import Foreground, full_precision

THICK = 20  # erosions from which clDice deserves a word


class ClDice(nn.Module):
    r"""One minus the centreline Dice, averaged over the images of the batch.

    .. math:: 1 - 2 \frac{T_p \, T_s}{T_p + T_s}, \quad
              T_p = \frac{\sum \hat p \, t + s}{\sum \hat p + s}, \;
              T_s = \frac{\sum p \, \hat t + s}{\sum \hat t + s}

    A hat is the soft skeleton (:func:`raremask.masks.soft_skeleton`). T_p, the share of the predicted skeleton that
    lies on the mask, falls with false branches; T_s, the share of the true skeleton that is predicted, with gaps.

    Range 0 (perfect) to 1. On an empty mask T_s = 1 and T_p falls with every false positive, as in Dice.

    When to use: vessels, nerves, roads: gaps matter more than width. With Dice (`cldice`), which it does not replace.

    Args:
        iterations: Erosions of the skeletons: at least the largest radius in pixels (half the width) of an object, or
            its middle is missed, and all of the skeleton of a thick one. The time grows with it. In a config `auto`
            stands for the largest radius in the training split: 8 on DRIVE at 584 x 565, but 94 on CVC at 288 x 384.
        smooth: s in pixels, more than 0.

    Raises:
        ValueError: If `iterations` is below 1 or `smooth` is not positive.

    Source:
        Shit et al. (2021), eq. 1 and algorithms 1 and 2, https://arxiv.org/abs/2003.07311. The authors' code takes the
        sums over the whole batch, and that of several versions ignores the number of iterations it is given.

    >>> mask = torch.zeros(1, 1, 3, 8)
    >>> mask[..., 1, :] = 1  # a line; its first half is painted: T_p = 1, T_s = (4 + 1) / (8 + 1)
    >>> painted = torch.where(torch.arange(8) < 4, 100.0, -100.0) * mask - 100 * (1 - mask)
    >>> ClDice()(painted, mask)
    tensor(0.2857)
    """

    def __init__(self, iterations: int = 3, smooth: float = 1.0):
        super().__init__()
        if iterations < 1 or not smooth > 0:
            raise ValueError(f"iterations must be 1 or more, smooth more than 0; got {iterations} and {smooth}")
        self.iterations, self.smooth = iterations, smooth

    @staticmethod
    def auto(foreground: Foreground) -> dict[str, float]:
        """Return `iterations` for a training split's :class:`~raremask.data.base.Foreground`.

        Of thick objects they are many, and slow; a warning says so.
        """
        iterations = max(1, math.ceil(foreground.radius))
        if iterations > THICK:
            warnings.warn(
                f"The thickest object of the training masks is {2 * iterations} pixels thick, so clDice erodes "
                f"{iterations} times, which takes long. It is for thin objects: take another loss, or fewer iterations "
                "(with 3, what is thicker than 8 pixels has no skeleton).",
                stacklevel=2,
            )
        return {"iterations": iterations}

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        logits, mask = full_precision(logits, mask)
        probability = torch.sigmoid(logits)
        of_probability = masks.soft_skeleton(probability, self.iterations)
        with torch.no_grad():
            of_mask = masks.soft_skeleton(mask, self.iterations)
        precision = self._share(of_probability, mask)
        recall = self._share(of_mask, probability)
        return (1 - 2 * precision * recall / (precision + recall)).mean()

    def _share(self, skeleton: Tensor, region: Tensor) -> Tensor:
        return ((skeleton * region).sum(EACH) + self.smooth) / (skeleton.sum(EACH) + self.smooth)


class SkeletonRecall(nn.Module):
    r"""Minus the share of the mask's skeleton that is predicted, averaged over the images of the batch.

    .. math:: - \frac{\sum p K + s}{\sum K + s}

    K is the mask's skeleton (:func:`raremask.masks.skeleton`), dilated twice by a cross and cut to the mask.

    Range -1 (all of it) to 0. On an empty mask it is the constant -1 and teaches nothing: false positives never cost,
    so it must be added to other losses (`skeleton_recall` adds cross-entropy and Dice).

    When to use: thin objects, at a far smaller price than clDice. A replication (https://arxiv.org/abs/2508.11374)
    reports no gain over Dice and cross-entropy: compare before you trust it.

    Args:
        smooth: s in pixels, more than 0.

    Raises:
        ValueError: If `smooth` is not positive.

    Source:
        Kirchhoff et al. (2024), https://arxiv.org/abs/2404.03010. The paper leaves the thinning open and its code takes
        scikit-image's; here it is that of Guo & Hall (1989), which may differ by single pixels before the dilation.

    >>> mask = torch.zeros(1, 1, 5, 7)
    >>> mask[..., 1:4, 1:6] = 1  # 3 x 5 pixels: within reach of the skeleton, but for s everywhere 0.5
    >>> SkeletonRecall()(torch.zeros_like(mask), mask)
    tensor(-0.5000)
    """

    learns_from_empty = False

    def __init__(self, smooth: float = 1e-5):
        super().__init__()
        if not smooth > 0:
            raise ValueError(f"smooth must be more than 0, or an empty mask divides 0 by 0; got {smooth}")
        self.smooth = smooth

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        logits, mask = full_precision(logits, mask)
        tube = masks.dilate(masks.dilate(masks.skeleton(mask).to(mask.dtype))) * mask
        found = (torch.sigmoid(logits) * tube).sum(EACH)
        return -((found + self.smooth) / (tube.sum(EACH) + self.smooth)).mean()
