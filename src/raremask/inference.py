"""From an image at the network's size to a probability at the size of its file."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def to_native(probability: Tensor, size: tuple[int, int], box: tuple[int, int, int, int]) -> Tensor:
    """Resize probabilities to the image's own size; threshold them after this, never resize a mask.

    Args:
        probability: `(B, 1, H, W)` float in [0, 1].
        size: Height and width in pixels of the image's file.
        box: Top, left, height and width of the picture within `(H, W)`; what is outside is padding, and cut off.

    Returns:
        `(B, 1, height, width)`, bilinear between the pixels' centres.
    """
    top, left, height, width = box
    probability = probability[..., top : top + height, left : left + width]
    if probability.shape[-2:] == tuple(size):
        return probability
    return F.interpolate(probability, size=tuple(size), mode="bilinear", align_corners=False)


@torch.no_grad()
def predict(net: nn.Module, image: Tensor, size: tuple[int, int], box: tuple[int, int, int, int]) -> Tensor:
    """Probability of the foreground for one image.

    Args:
        net: Gives logits `(1, 1, H, W)` for an image `(1, C, H, W)`.
        image: `(C, H, W)` float in [0, 1].
        size: Height and width in pixels of the image's file.
        box: Top, left, height and width of the picture within the image.

    Returns:
        `(height, width)` float32 in [0, 1], on the CPU. The network is left in the mode in which it came.
    """
    was_training = net.training
    net.eval()
    device = next(net.parameters()).device
    probability = torch.sigmoid(net(image[None].to(device)).float())
    net.train(was_training)
    return to_native(probability, size, box)[0, 0].cpu()
