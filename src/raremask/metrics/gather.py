"""Gathers counted pixels over steps and processes."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def count(prediction: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
    """Count true and false positives and negatives of each image.

    Args:
        prediction: `(B, 1, H, W)` boolean.
        mask: `(B, 1, H, W)` boolean.
        valid: `(B, 1, H, W)` boolean; only pixels where it holds are counted. None counts all.

    Returns:
        `(B, 4)` int64: tp, fp, fn, tn.

    >>> truth = torch.tensor([True, True, False, False]).view(1, 1, 2, 2)
    >>> count(torch.tensor([True, False, True, False]).view(1, 1, 2, 2), truth)
    tensor([[1, 1, 1, 1]])
    """
    valid = torch.ones_like(mask) if valid is None else valid
    cells = (prediction & mask, prediction & ~mask, ~prediction & mask, ~prediction & ~mask)
    return torch.stack([(cell & valid).sum((1, 2, 3)) for cell in cells], dim=1)


class ImageCounts(Metric):
    """The pixel counts of every image of a split, in the order of the dataset.

    What is kept is five integers per image, never a mask: memory does not grow with the images' size.
    """

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, counts: Tensor) -> None:
        """Add images.

        Args:
            index: `(B,)` position of each image in its split.
            counts: `(B, 4)` as :func:`count` returns them.
        """
        self.rows.append(torch.cat([index[:, None].to(counts), counts], dim=1))

    def compute(self) -> Tensor:
        """Return `(n, 5)` int64 rows, sorted: index, tp, fp, fn, tn of each image; a row that came twice is one."""
        return torch.unique(dim_zero_cat(self.rows), dim=0)
