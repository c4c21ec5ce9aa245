"""Losses that look at how far two regions overlap."""

import torch
from torch import Tensor, nn


class Dice(nn.Module):
    r"""One minus the soft Dice coefficient.

    .. math:: 1 - \frac{2 \sum p t + s}{\sum p + \sum t + s}

    Range 0 (perfect) to 1. On an empty mask it is 1 - s / (sum p + s): with s = 1 a single false positive pixel
    already costs 0.5 and the next ones hardly more, with s = 0 there is no gradient left.

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
        super().__init__()
        if not smooth > 0:
            raise ValueError(f"smooth must be more than 0, or an empty mask divides 0 by 0; got {smooth}")
        self.smooth, self.per_image, self.squared = smooth, per_image, squared

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        probability, mask = torch.sigmoid(logits.float()), mask.float()
        over = (1, 2, 3) if self.per_image else (0, 1, 2, 3)
        shared = (probability * mask).sum(over)
        if self.squared:
            probability, mask = probability.square(), mask.square()
        total = probability.sum(over) + mask.sum(over)
        return (1 - (2 * shared + self.smooth) / (total + self.smooth)).mean()
