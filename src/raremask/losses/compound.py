"""Losses made of losses."""

from collections.abc import Mapping
from functools import reduce
from operator import add

from torch import Tensor, nn


class Sum(nn.Module):
    r"""Weighted sum of named losses.

    .. math:: \sum_k w_k L_k

    On an empty mask it is worth what its terms are worth there.

    Args:
        terms: The losses, by the name under which each is logged.
        weights: One number for each name.

    Raises:
        ValueError: If there are no terms, or the two do not have the same names.

    >>> import torch
    >>> from raremask.losses.pixel import BCE
    >>> Sum({"a": BCE(), "b": BCE()}, {"a": 0.5, "b": 1.0})(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    tensor(1.0397)
    """

    def __init__(self, terms: Mapping[str, nn.Module], weights: Mapping[str, float]):
        super().__init__()
        if not terms:
            raise ValueError("terms is empty; name one loss or more")
        if set(terms) != set(weights):
            raise ValueError(f"terms {sorted(terms)} and weights {sorted(weights)} must have the same names")
        self.terms = nn.ModuleDict(terms)
        self.weights = dict(weights)

    @property
    def learns_from_empty(self) -> bool:
        """Whether a false positive on an empty mask costs in any of the terms."""
        return any(self.weights[name] and getattr(term, "learns_from_empty", True) for name, term in self.terms.items())

    def parts(self, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the weighted scalar of each term; their sum is the loss."""
        return {name: self.weights[name] * term(logits, mask) for name, term in self.terms.items()}

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of `logits` and `mask`, both `(B, 1, H, W)`."""
        return reduce(add, self.parts(logits, mask).values())
