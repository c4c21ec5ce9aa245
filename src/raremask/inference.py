"""From images to probabilities: whole or in tiles, from several sides, by several networks; and to native size."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Turn = Callable[[Tensor], Tensor]


def _turned(quarters: int, mirrored: bool) -> tuple[Turn, Turn]:
    def there(image: Tensor) -> Tensor:
        image = torch.rot90(image, quarters, (-2, -1))
        return image.flip(-1) if mirrored else image

    def back(image: Tensor) -> Tensor:
        image = image.flip(-1) if mirrored else image
        return torch.rot90(image, -quarters, (-2, -1))

    return there, back


#: Ways to look at an image, each with its way back.
VIEWS: dict[str, list[tuple[Turn, Turn]]] = {
    "none": [_turned(0, False)],
    "flips": [_turned(quarters, mirrored) for quarters in (0, 2) for mirrored in (False, True)],
    "turns": [_turned(quarters, mirrored) for quarters in range(4) for mirrored in (False, True)],
}
SCALES = {"none": (1.0,), "flips": (1.0,), "turns": (1.0,), "scales": (0.75, 1.0, 1.25)}
VIEWS["scales"] = VIEWS["flips"]


class Predictor(nn.Module):
    """Probability of the foreground, the mean over networks and views.

    Args:
        nets: Each gives logits `(B, 1, H, W)` for images `(B, C, H, W)`.
        views: `none`; `flips`: mirrored in both directions, four views; `turns`: also turned by quarters, eight;
            `scales`: the flips at 0.75, 1 and 1.25 times the size, twelve.
        tile: Height and width of the windows that larger images are cut into, or None to take them whole. Windows
            overlap by half, and count the less the further from their middle a pixel is.

    Raises:
        ValueError: If there is no network, no such views, or a tile is below 16 pixels.
    """

    def __init__(self, nets: Sequence[nn.Module], views: str = "none", tile: Sequence[int] | None = None):
        super().__init__()
        if not nets:
            raise ValueError("a prediction needs a network")
        if views not in VIEWS:
            raise ValueError(f"views must be one of {', '.join(VIEWS)}; got {views!r}")
        if tile is not None and (len(tile) != 2 or min(tile) < 16):
            raise ValueError(f"tile must be [height, width], 16 pixels or more, or null; got {tile}")
        self.nets, self.views, self.tile = nn.ModuleList(nets), views, None if tile is None else tuple(tile)
        self.training = nets[0].training  # the networks' own mode: `predict` gives it back to them

    def forward(self, images: Tensor) -> Tensor:
        """Return the probability `(B, 1, H, W)` float32 in [0, 1] for images `(B, C, H, W)`.

        In float32 whatever the training's precision: scores, pictures and masks are then of the same probabilities. (On
        a GPU convolutions round what they multiply to TF32, as PyTorch has it, so that another device may give other
        last digits.)
        """
        with torch.autocast(images.device.type, enabled=False):
            return self._viewed(images.float())

    def _viewed(self, images: Tensor) -> Tensor:
        total = torch.zeros((len(images), 1, *images.shape[-2:]), device=images.device)
        for scale in SCALES[self.views]:
            size = [max(1, round(side * scale)) for side in images.shape[-2:]]  # not a factor, which cuts sides off
            scaled = images if scale == 1 else F.interpolate(images, size=size, mode="bilinear")
            for there, back in VIEWS[self.views]:
                probability = back(self._tiled(there(scaled)))
                if scale != 1:
                    probability = F.interpolate(probability, size=images.shape[-2:], mode="bilinear")
                total += probability
        return total / (len(SCALES[self.views]) * len(VIEWS[self.views]))

    def _tiled(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.tile is None or (height <= self.tile[0] and width <= self.tile[1]):
            return self._mean(images)
        tall, wide = min(self.tile[0], height), min(self.tile[1], width)
        weight = _bump(tall, images.device)[:, None] * _bump(wide, images.device)[None]
        total = torch.zeros((len(images), 1, height, width), device=images.device)
        weights = torch.zeros((height, width), device=images.device)
        for top in _starts(height, tall):
            for left in _starts(width, wide):
                window = (..., slice(top, top + tall), slice(left, left + wide))
                total[window] += weight * self._mean(images[window])
                weights[window] += weight
        return total / weights

    def _mean(self, images: Tensor) -> Tensor:
        return torch.stack([torch.sigmoid(net(images).float()) for net in self.nets]).mean(dim=0)


def _starts(length: int, tile: int) -> Iterator[int]:
    """First pixels of windows that overlap by half or more and reach both ends.

    >>> list(_starts(100, 40))
    [0, 20, 40, 60]
    """
    steps = -(-2 * (length - tile) // tile)
    return (round(step * (length - tile) / max(1, steps)) for step in range(steps + 1))


def _bump(length: int, device: torch.device) -> Tensor:
    """A Gaussian over a window, `(length,)`: an eighth of it is one sigma, as in nnU-Net; never 0."""
    distance = torch.arange(length, device=device) - (length - 1) / 2
    return torch.exp(-0.5 * (distance / (length / 8)) ** 2).clamp_min(1e-3)


def to_native(probability: Tensor, size: tuple[int, int], box: tuple[int, int, int, int]) -> Tensor:
    """Resize probabilities to the image's own size; threshold them after this, never resize a mask.

    Args:
        probability: `(B, 1, H, W)` float in [0, 1].
        size: Height and width in pixels of the image's file.
        box: Top, left, height and width of the picture within `(H, W)`; what is outside is padding, and cut off.

    Returns:
        `(B, 1, height, width)`, bilinear between the pixels' centres; where it shrinks, a mean over the pixels around
        them, or thin structures would fall between.
    """
    top, left, height, width = box
    probability = probability[..., top : top + height, left : left + width]
    if probability.shape[-2:] == tuple(size):
        return probability
    # not to a side of 1 pixel: there PyTorch 2.15 takes the first pixels for all
    shrinks = min(size) > 1 and (size[0] < height or size[1] < width)
    return F.interpolate(probability, size=tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)


@contextmanager
def sharing_cores(images: int) -> Iterator[ThreadPoolExecutor]:
    """Give threads that take an image each, with an equal share of the cores that PyTorch computes with.

    Of networks on a GPU the threads read, finish and write images. On the CPU they also compute: a batch goes through a
    network one operation after the other, and at each the cores wait for the last of them. A folder of images took 1.22
    of the time of the network alone before, and takes .84 so, reading and writing included (docs/performance.md,
    prediction). The calling thread computes with one core meanwhile.

    Args:
        images: How many there are at once; there are no more threads than that, nor than cores.
    """
    cores = torch.get_num_threads()
    threads = max(1, min(images, cores))
    try:
        torch.set_num_threads(1)  # or OpenMP's threads of this one spin after each operation, on cores of the others
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(cores // threads,)) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # what has not begun; for the rest `with` waits
                raise
    finally:
        torch.set_num_threads(cores)  # for threads to come, which take the number that was set last


@torch.no_grad()
def predict(predictor: nn.Module, image: Tensor, size: tuple[int, int], box: tuple[int, int, int, int]) -> Tensor:
    """Probability of the foreground for one image.

    Args:
        predictor: Gives probabilities `(1, 1, H, W)` for an image `(1, C, H, W)`.
        image: `(C, H, W)` float in [0, 1].
        size: Height and width in pixels of the image's file.
        box: Top, left, height and width of the picture within the image.

    Returns:
        `(height, width)` float32 in [0, 1], on the CPU. The predictor is left in the mode in which it came.
    """
    was_training = predictor.training
    predictor.eval()
    device = next(predictor.parameters()).device
    probability = predictor(image[None].to(device))
    predictor.train(was_training)
    return to_native(probability, size, box)[0, 0].cpu()
