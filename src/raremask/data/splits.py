"""Divides images into training, validation and test."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from sklearn.model_selection import GroupShuffleSplit

from raremask import BadInput

Thing = TypeVar("Thing")

FRACTIONS = (0.64, 0.16, 0.20)  # four fifths for development, and four fifths of those for training


def by_group(things: Sequence[Thing], groups: Sequence[str], seed: int) -> dict[str, list[Thing]]:
    """Put 64 / 16 / 20 % of the groups into train / val / test; a group is never divided.

    Args:
        things: What is divided.
        groups: The group of each thing (sequence, patient); at least three different ones.
        seed: Decides which group goes where.

    Returns:
        The things of `train`, `val` and `test`, each in the given order.

    Raises:
        BadInput: If there are fewer than three groups.
    """
    if len(set(groups)) < 3:
        raise BadInput(f"three splits need three groups or more; got {sorted(set(groups))}.")
    groups = np.asarray(groups)
    _, val, test = FRACTIONS
    rest, testing = next(GroupShuffleSplit(1, test_size=test, random_state=seed).split(groups, groups=groups))
    inner = GroupShuffleSplit(1, test_size=val / (1 - test), random_state=seed)
    training, validation = next(inner.split(rest, groups=groups[rest]))
    chosen = {"train": rest[training], "val": rest[validation], "test": testing}
    return {split: [things[i] for i in sorted(indices)] for split, indices in chosen.items()}


def at_random(things: Sequence[Thing], sizes: dict[str, int], seed: int) -> dict[str, list[Thing]]:
    """Draw splits of the given sizes, without regard to groups.

    Args:
        things: What is divided.
        sizes: How many things go to each split; their sum is the number of things.
        seed: Decides which thing goes where.

    Returns:
        The things of each split, each in the given order.

    Raises:
        ValueError: If the sizes do not add up.

    >>> parts = at_random("abcde", {"train": 3, "val": 2}, seed=0)
    >>> len(parts["train"]), len(parts["val"]), sorted(parts["train"] + parts["val"])
    (3, 2, ['a', 'b', 'c', 'd', 'e'])
    """
    if sum(sizes.values()) != len(things):
        raise ValueError(f"the sizes {sizes} must add up to the number of things, {len(things)}")
    order = np.random.default_rng(seed).permutation(len(things))
    parts = np.split(order, np.cumsum(list(sizes.values()))[:-1])
    return {split: [things[i] for i in sorted(part)] for split, part in zip(sizes, parts, strict=True)}
