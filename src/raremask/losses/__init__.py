"""Losses for binary segmentation with rare foreground.

The contract, the same for every loss; ``print(check_loss(loss))`` tries it on any loss:

- ``loss(logits, mask)`` returns a scalar. ``logits`` is ``(B, 1, H, W)`` of any float type, before the sigmoid;
  ``mask`` is ``(B, 1, H, W)`` of 0 and 1.
- Inside it counts in float32 at least: a sum over 512 x 512 pixels overflows float16.
- Value and gradient are finite on empty and on full masks, and the docstring says what an empty mask is worth. A loss
  for which false positives on an empty mask cost nothing carries ``learns_from_empty = False``.
- Nothing is stored: the ``state_dict`` is empty, so a checkpoint fits whatever loss comes next.
- A parameter that the training split can decide (``auto`` in a config) is decided by the static method ``auto``.

A loss lives in the room of what it looks at: single pixels (``pixel``), the overlap of two regions (``overlap``), the
boundary (``boundary``), the share of each class (``adaptive``), what is connected (``topology``). A compound is a
config over ``compound.Sum``.
"""

from raremask.losses.contract import check_loss

__all__ = ["check_loss"]
