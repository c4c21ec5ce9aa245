"""Gathers counted pixels, and other numbers, over steps and processes."""

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
    pixels = torch.full_like(mask[:, 0, 0, 0], mask[0].numel(), dtype=torch.int64)
    if valid is not None:
        prediction, mask, pixels = prediction & valid, mask & valid, valid.sum((1, 2, 3))
    painted, true, tp = (one.sum((1, 2, 3)) for one in (prediction, mask, prediction & mask))
    return torch.stack([tp, painted - tp, true - tp, pixels - painted - true + tp], dim=1)


class ImageCounts(Metric):
    """The pixel counts of every image of a split, in the order of the dataset.

    What is kept is five integers per image, never a mask: memory does not grow with the images' size.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
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
        """Return `(n, 5)` int64 rows, sorted: index, tp, fp, fn, tn of each image; drawn twice, it has two rows."""
        rows, times = torch.unique(dim_zero_cat(self.rows), dim=0, return_counts=True)
        return rows.repeat_interleave(times, dim=0)


class Means(Metric):
    """The weighted means over an epoch of what every step computes.

    Numbers stay on the device until the epoch ends. (Lightning's own `log(on_epoch=True)` cost 2 % of a short step.)
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.names: tuple[str, ...] = ()
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, values: dict[str, Tensor], weight: Tensor | float) -> None:
        """Add a step.

        Args:
            values: Scalars by name, the same names in every step.
            weight: What the step counts for, such as its number of images; a scalar.
        """
        self.names = tuple(values)
        numbers = [value.detach().float() for value in values.values()]
        self.rows.append(torch.stack([*numbers, torch.full_like(numbers[0], 1.0) * weight])[None])

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each name over all steps and processes, on the host; NaN where nothing has a weight."""
        rows = dim_zero_cat(self.rows).cpu().double()  # on the host, for not every device has 64 bits
        means = (rows[:, :-1] * rows[:, -1:]).sum(dim=0) / rows[:, -1].sum()
        return dict(zip(self.names, means.float(), strict=True))
