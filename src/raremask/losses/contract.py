"""The contract of a loss, as one check that anyone can run on a loss of their own."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


def check_loss(loss: nn.Module) -> list[str]:
    """Try the whole contract of :mod:`raremask.losses` on one loss.

    Args:
        loss: Called as ``loss(logits, mask)`` with two tensors of shape `(B, 1, H, W)`.

    Returns:
        One sentence for each clause that is broken; an empty list if the loss keeps the contract.

    >>> check_loss(nn.BCEWithLogitsLoss(reduction="none"))
    ['the value has shape (2, 1, 17, 23); it must be a scalar']
    """
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(2, 1, 17, 23)
    mask[:, :, 4:9, 5:15] = 1
    logits = torch.randn(mask.shape, generator=generator)
    try:
        value = loss(logits, mask)
    except Exception as error:  # whatever a foreign loss raises is the finding
        return [f"loss(logits, mask) raises {type(error).__name__}: {error}"]
    if value.shape != ():
        return [f"the value has shape {tuple(value.shape)}; it must be a scalar"]

    broken = []

    def expect(holds: bool, sentence: str) -> None:
        if not holds:
            broken.append(sentence)

    expect(not loss.state_dict(), f"the state_dict holds {list(loss.state_dict())}; register buffers as not persistent")
    expect(torch.equal(copy.deepcopy(loss)(logits, mask), value), "a deep copy gives another value")
    perfect = loss(40 * (mask - 0.5), mask)
    worst = loss(-40 * (mask - 0.5), mask)
    expect(
        bool(perfect < value < worst), f"perfect {perfect:.4g} < random {value:.4g} < worst {worst:.4g} does not hold"
    )
    swapped = loss(logits.flip(0), mask.flip(0))
    expect(torch.allclose(swapped, value), "the order of the images in the batch changes the value")
    strided = logits.transpose(2, 3).contiguous().transpose(2, 3)
    expect(torch.allclose(loss(strided, mask), value), "another memory layout changes the value")
    expect(torch.allclose(loss(logits, mask.bool()).float(), value), "a boolean mask changes the value")

    for name, case in _masks(mask).items():
        for scale in (1.0, 1e4):
            finite, reason = _finite(loss, logits * scale, case)
            expect(finite, f"{name} mask, logits of about {scale:g}: {reason}")
    for dtype in (torch.float16, torch.bfloat16):
        large = torch.zeros(1, 1, 512, 512)
        large[..., 100:400, 100:400] = 1
        low = (4 * large - 2).to(dtype)
        difference = abs(loss(low, large).float() - loss(low.float(), large)).item()
        expect(difference < 1e-3, f"{dtype} logits of 512 x 512 change the value by {difference:.3g}")
    return broken


def _masks(mask: Tensor) -> dict[str, Tensor]:
    """The masks on which losses break, by name."""

    def drawn(draw: Callable[[Tensor], None]) -> Tensor:
        case = torch.zeros_like(mask)
        draw(case)
        return case

    return {
        "ordinary": mask,
        "whole-batch empty": torch.zeros_like(mask),
        "full": torch.ones_like(mask),
        "one-pixel": drawn(lambda case: case[0, 0, 3, 3].fill_(1)),
        "one-line": drawn(lambda case: case[0, 0, :, 5].fill_(1)),
        "half-empty": drawn(lambda case: case[0].copy_(mask[0])),
    }


def _finite(loss: nn.Module, logits: Tensor, mask: Tensor) -> tuple[bool, str]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, mask)
    if not value.isfinite():
        return False, f"the value is {value.item()}"
    value.backward()
    if logits.grad is None or not logits.grad.isfinite().all():
        return False, "the gradient is not finite"
    return True, ""
