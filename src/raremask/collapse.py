"""Predictions that have collapsed (nothing, everything, or always the same) are recognised and named."""

from collections.abc import Sequence

import numpy as np

FEW = 5  # of fewer masks nothing can be said
WHITE = 0.99  # share of foreground from which a mask counts as white


def collapse(painted: Sequence[float], true: Sequence[float] | None = None) -> str:
    """Say if predictions have collapsed: all empty, more than half of them white, or all of one area.

    Args:
        painted: Share of foreground of each predicted mask.
        true: Share of foreground of each true mask; only images that have some, and are not white, are looked at.
            None takes all.

    Returns:
        What is wrong, the likely cause and what to try next; or nothing.

    >>> collapse([0.0] * 10).split(".")[0]
    '10 of 10 masks are empty'
    >>> collapse([0.0, 0.0, 0.0, 0.0, 0.2], true=[0.0, 0.0, 0.0, 0.0, 0.1])
    ''
    """
    painted = np.asarray(painted, dtype=float)
    of = "masks"
    if true is not None:
        true = np.asarray(true, dtype=float)
        painted, of = painted[(true > 0) & (true < WHITE)], "masks of images with foreground"
    if painted.size < FEW:
        return ""
    empty, white = int((painted == 0).sum()), int((painted > WHITE).sum())
    if empty == painted.size:
        asked = "If that cannot be, the network paints nothing" if true is None else "The network paints nothing"
        return (
            f"{empty} of {painted.size} {of} are empty. {asked}: look at the threshold, and whether val/dice ever rose "
            "above what all background scores; try loss=bce_dice, more epochs, or a lower learning rate."
        )
    if white > 0.5 * painted.size:
        return (
            f"{white} of {painted.size} {of} are white. The threshold may lie below every probability, or images are "
            "read otherwise than in training (gray or colour, 8 or 16 bits): look at the probabilities."
        )
    if np.ptp(painted) == 0:
        return f"all {painted.size} {of} have the same area. The network does not see the image: look at its inputs."
    return ""
