"""Losses whose weights follow the share of each class in the batch."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raremask.losses.pixel import cross_entropy

EMPTY = ("zero", "background")


def class_counts(mask: Tensor, per_image: bool) -> tuple[Tensor, Tensor]:
    """Number of foreground and of background pixels.

    Counts of the whole batch are summed over all processes of a distributed training, so that two processes with two
    images weigh like one with four. Only while gradients are on: in validation the processes may have different
    numbers of batches, and one would wait for the others for ever.

    Args:
        mask: `(B, 1, H, W)` of 0 and 1.
        per_image: Count each image on its own.

    Returns:
        Two float32 tensors of shape `(B, 1, 1, 1)` if `per_image`, else `(1, 1, 1, 1)`.
    """
    # rows in float32, where they are exact and fast; together in float64, exact far beyond any batch
    foreground = mask.float().sum(-1).sum((1, 2) if per_image else (0, 1, 2), dtype=torch.float64)
    counts = torch.stack([foreground, mask.numel() / foreground.numel() - foreground])
    if not per_image and torch.is_grad_enabled() and dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    foreground, background = counts.float().view(2, -1, 1, 1, 1)
    return foreground, background


def balance(foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    r"""Weights that shrink the larger class to the mass of the smaller one.

    .. math:: w_+ = \min(1, S_- / S_+) \qquad w_- = \min(1, S_+ / S_-)

    Args:
        foreground: Number of foreground pixels S+, any shape.
        background: Number of background pixels S-, the same shape.

    Returns:
        Weight of foreground and of background pixels. Where one class is absent, both are 0 in effect: the absent
        class has no pixels, and the other one gets weight 0.
    """
    weight_foreground = (background / foreground.clamp(min=1)).clamp(max=1)
    weight_background = (foreground / background.clamp(min=1)).clamp(max=1)
    return weight_foreground, weight_background


class Dynamit(nn.Module):
    r"""Cross-entropy in which the larger class is weighted down to the mass of the smaller one.

    .. math:: \frac{1}{N} \sum_i w(t_i) \, \mathrm{BCE}(z_i, t_i), \quad
              w_+ = \min(1, S_-/S_+), \; w_- = \min(1, S_+/S_-)

    A plain mean, not divided by the sum of the weights. It equals min(S+, S-) / N times (mean BCE over the foreground
    plus mean BCE over the background), so value and gradient shrink with the foreground fraction: at 1 % foreground
    it needs a learning rate far above that of BCE, or an optimiser that rescales, such as Adam.

    Range 0 (perfect) upwards. With `empty: zero`, as published, a batch without foreground (with `per_image`, an empty
    image) is worth 0 and teaches nothing; in a batch with foreground, an empty image has the weight of the other
    background. `empty: background` gives the background the weight 1 where there is no foreground.

    When to use: the thesis' baseline; a balanced cross-entropy without a weight to choose.

    Note:
        On phantoms of which 60 % are empty (docs/study_empty.md; batches of 4, three seeds), `zero` reached a Dice of
        0.52 on the images with foreground (0.61 with `per_image`), but painted something on 85 % (100 %) of the empty
        ones. With `background` empty images outweigh the others by S-/S+: it painted on 1 % of them, and found hardly
        any foreground (0.01 and 0.00). Hence `zero` is the default. Where empty masks matter, take `bce_dice`.

    Args:
        per_image: Count the classes in each image; else in the whole batch, over all processes.
        empty: What counts without any foreground teach: `zero` (nothing, as published) or `background`.

    Raises:
        ValueError: If `empty` is neither of the two.

    Source:
        Patsias, "Tackling Class Imbalance in Medical Image Segmentation" (2025), the Dynamit loss;
        `empty: background` as in a sibling project of the University of Zurich.

    >>> mask = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
    >>> Dynamit()(torch.zeros_like(mask), mask)  # log 2 (1 + 3 * 1/3) / 4
    tensor(0.3466)
    """

    def __init__(self, per_image: bool = False, empty: str = "zero"):
        super().__init__()
        if empty not in EMPTY:
            raise ValueError(f"empty must be one of {', '.join(EMPTY)}; got {empty!r}")
        self.per_image, self.empty = per_image, empty

    @property
    def learns_from_empty(self) -> bool:
        """Whether a false positive on an empty mask costs."""
        return self.empty == "background"

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        foreground, background = class_counts(mask, self.per_image)
        weight_foreground, weight_background = balance(foreground, background)
        if self.empty == "background":
            weight_background = weight_background.masked_fill(foreground == 0, 1)
        # exact for 0 and 1, which the one plus the difference is not where they are far apart
        return cross_entropy(logits, mask, torch.lerp(weight_background, weight_foreground, mask.float()))
