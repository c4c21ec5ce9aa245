"""Brings pictures to the size at which the network works, in training and in prediction alike."""

import cv2
import numpy as np


def fit(image: np.ndarray, size: tuple[int, int], resize: str) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Bring an image to the network's size, in training and in prediction alike.

    Args:
        image: `(h, w, C)` uint8.
        size: The network's height and width in pixels.
        resize: `stretch` or `pad`.

    Returns:
        `(height, width, C)` uint8, and where the picture lies in it: top, left, height, width.
    """
    box = letterbox(size, image.shape[:2]) if resize == "pad" else (0, 0, *size)
    return pad(_smoothly(image, box[2:]), size, box), box


def fit_mask(mask: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """Bring a mask to the network's size: foreground is where, bilinearly, half or more of it is.

    At odd whole factors nearest neighbour does the same. At even ones a pixel's middle lies between two; it takes the
    lower right one, and the mask comes to lie half a pixel beside its image. Here a half is foreground: objects stay in
    their place and are up to half a pixel wider (at half the size a disc of 20 pixels has 5 % more area, a line of one
    pixel half as much again), but a lone pixel is lost, of which nearest neighbour keeps one in four. At other factors,
    too, it loses more of them (from 584 to 512 half, where nearest neighbour loses a quarter), but less than averaging
    over an area. What is two pixels thick or more comes out as near to the truth as by nearest neighbour, or nearer.
    Where all foreground of an image is lost, it is warned of.

    Args:
        mask: `(h, w)` boolean.
        size: The network's height and width in pixels.
        box: Where the picture lies in it, of :func:`fit`.

    Returns:
        `(height, width)` uint8 of 0 and 1.

    >>> fit_mask(np.array([[False, True, True, True, False, False]]), size=(1, 3), box=(0, 0, 1, 3))
    array([[1, 1, 0]], dtype=uint8)
    """
    share = resized(254 * mask.astype(np.uint8), box[2:], cv2.INTER_LINEAR)  # bytes: a quarter of float32's memory
    return pad((share >= 127).astype(np.uint8), size, box)


def letterbox(size: tuple[int, int], native: tuple[int, int]) -> tuple[int, int, int, int]:
    """Say where a picture lies that is made as large as fits, in proportion, and put into the middle.

    Args:
        size: Height and width that it must fit into.
        native: Its own height and width.

    Returns:
        Top, left, height and width in pixels.

    >>> letterbox(size=(100, 100), native=(50, 20))
    (0, 30, 100, 40)
    """
    scale = min(size[0] / native[0], size[1] / native[1])
    height, width = (min(max(1, round(side * scale)), most) for side, most in zip(native, size, strict=True))
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def pad(pixels: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """Put a picture into its box; zeros around it.

    Args:
        pixels: `(h, w)` or `(h, w, C)`.
        size: Height and width of what comes out.
        box: Top, left, height and width of the picture in that.
    """
    top, left, height, width = box
    if (height, width) == tuple(size):
        return pixels
    padded = np.zeros((*size, *pixels.shape[2:]), pixels.dtype)
    padded[top : top + height, left : left + width] = pixels
    return padded


def _smoothly(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """By area along a side that shrinks, or thin structures alias; bilinear along one that grows.

    One after the other: where a side grows, OpenCV takes no area along the other one either.
    """
    smaller = min(image.shape[0], size[0]), min(image.shape[1], size[1])
    return resized(resized(image, smaller, cv2.INTER_AREA), size, cv2.INTER_LINEAR)


def resized(pixels: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """Resize as OpenCV does it.

    Args:
        pixels: `(h, w)` or `(h, w, C)`.
        size: Height and width of what comes out.
        interpolation: A number of OpenCV's, such as `cv2.INTER_AREA`.
    """
    if pixels.shape[:2] == tuple(size):
        return pixels
    return cv2.resize(pixels, (size[1], size[0]), interpolation=interpolation).reshape(*size, *pixels.shape[2:])
