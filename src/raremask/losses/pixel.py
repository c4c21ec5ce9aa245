"""Losses that look at each pixel alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy of each pixel, from logits, in float32.

    Args:
        logits: `(B, 1, H, W)`, any float type.
        mask: `(B, 1, H, W)` of 0 and 1.

    Returns:
        `(B, 1, H, W)` float32, in nats.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), mask.float(), reduction="none")


class BCE(nn.Module):
    r"""Binary cross-entropy, averaged over all pixels of the batch.

    .. math:: -\frac{1}{N} \sum_i t_i \log p_i + (1 - t_i) \log(1 - p_i)

    Range 0 (perfect) upwards, in nats. On an empty mask it is the mean of -log(1 - p): false positives are punished.
    With rare foreground the background outvotes it, and predicting nothing is a deep local minimum.

    >>> BCE()(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))  # log 2
    tensor(0.6931)
    """

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        return cross_entropy(logits, mask).mean()


class WeightedBCE(nn.Module):
    r"""Binary cross-entropy in which a foreground pixel weighs as much as `pos_weight` background pixels.

    .. math:: -\frac{1}{N} \sum_i w \, t_i \log p_i + (1 - t_i) \log(1 - p_i)

    Range 0 (perfect) upwards. On an empty mask it equals BCE. A large weight makes the network paint too much:
    look at the precision.

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
        self.register_buffer("pos_weight", torch.tensor(float(pos_weight)), persistent=False)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        return F.binary_cross_entropy_with_logits(logits.float(), mask.float(), pos_weight=self.pos_weight)
