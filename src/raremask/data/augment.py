"""Augmentation: the one room that knows albumentations.

albumentations 2.0.8 is its last release under the MIT licence; its successor is under the AGPL. Behind :class:`Augment`
it can be exchanged without touching a dataset.
"""

import difflib
import os
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or its import asks the network for a newer version
import albumentations as A
from albumentations.augmentations.crops.transforms import CropSizeError

#: What albumentations moves by `cv2.resize`, whose plain nearest neighbour puts a mask half a pixel beside its image.
RESIZING = (
    *("CropAndPad", "LongestMaxSize", "RandomResizedCrop", "RandomScale", "RandomSizedCrop", "Resize"),
    "SmallestMaxSize",
)


class Augment:
    """A chain of albumentations, applied to an image and its mask alike.

    The mask keeps its values 0 and 1: geometry moves it by nearest neighbour. The result depends on the seed alone,
    not on earlier calls or on the worker.

    Args:
        steps: The transforms in their order: `{any name: {transform: <class of albumentations>, <its arguments>}}`.

    Raises:
        ValueError: If albumentations has no such transform, or the transform no such argument.

    >>> flip = Augment({"always": {"transform": "HorizontalFlip", "p": 1.0}})
    >>> image = np.array([[[1], [2]]], dtype=np.uint8)
    >>> flip(image, image[..., 0], seed=0)[1]
    array([[2, 1]], dtype=uint8)
    """

    def __init__(self, steps: Mapping[str, Mapping[str, Any]]):
        self.chain = A.Compose([_build(name, dict(step)) for name, step in steps.items()])

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the augmented image and mask.

        Args:
            image: `(H, W, C)` uint8.
            mask: `(H, W)` uint8 of 0 and 1, by which crops go.
            seed: Decides every random choice.

        Raises:
            ValueError: If the image is smaller than a crop.
        """
        # One seed each: `Compose.set_random_seed` gives all the same, and then they all act or none does.
        for transform, own in zip(self.chain.transforms, self._seeds(seed), strict=True):
            transform.set_random_seed(own)
        try:
            result = self.chain(image=image, mask=mask)
        except CropSizeError as error:
            raise ValueError(str(error)) from error
        return result["image"], result["mask"]

    def _seeds(self, seed: int) -> list[int]:
        return np.random.SeedSequence(seed).generate_state(len(self.chain.transforms)).tolist()


def _build(name: str, step: dict[str, Any]) -> A.BasicTransform:
    kind = step.pop("transform")
    known = [key for key, value in vars(A).items() if isinstance(value, type) and issubclass(value, A.BasicTransform)]
    if kind not in known:
        close = difflib.get_close_matches(kind, known, n=3)
        raise ValueError(f"augment.steps.{name}: albumentations has no {kind}; did you mean {', '.join(close)}?")
    arguments: dict[str, Any] = {"mask_interpolation": cv2.INTER_NEAREST_EXACT} if kind in RESIZING else {}
    arguments |= {key: tuple(value) if isinstance(value, list) else value for key, value in step.items()}
    try:
        return getattr(A, kind)(**arguments, strict=True)  # strict, or a misspelled argument is only a warning
    except ValueError as error:
        sizeless = "size" in arguments and arguments["size"] is None
        why = "size is null, as dataset.size may be; it needs [height,width]" if sizeless else str(error)
        raise ValueError(f"augment.steps.{name} cannot be made: {why}") from None  # of chains only the end is shown
