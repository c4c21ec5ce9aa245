"""Reads image and mask files, and says what is wrong with one that cannot be read."""

from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageOps

from raremask import BadInput


def read_image(path: Path, channels: int) -> np.ndarray:
    """Read an image as 8 bits per channel.

    Grayscale is repeated to RGB or RGB weighed to grayscale, as `channels` asks; 16 bits keep their upper 8; alpha is
    dropped; the camera's orientation (EXIF) is applied.

    Args:
        path: PNG, JPEG, TIFF, BMP or GIF.
        channels: 1 (grayscale) or 3 (RGB).

    Returns:
        `(H, W, channels)` uint8.

    Raises:
        BadInput: If the file is missing, empty, unreadable or of another kind.
    """
    pixels = _read(path)
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], channels, axis=2)
    pixels = np.ascontiguousarray(pixels[..., :3])
    return pixels if channels == 3 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]


def read_mask(path: Path) -> np.ndarray:
    """Read a mask: foreground is brighter than half of the range (over 127 of 255, over 32767 of 65535).

    A file whose brightest value is 1 holds labels, and foreground is 1. Of several channels the brightest counts.

    Args:
        path: PNG, JPEG, TIFF, BMP or GIF.

    Returns:
        `(H, W)` boolean.

    Raises:
        BadInput: If the file is missing, empty, unreadable or of another kind, or if by this rule it has no
            foreground although it is not black.
    """
    pixels = _read(path)
    if pixels.ndim == 3:
        pixels = pixels[..., :3].max(axis=2)
    brightest, half = int(pixels.max()), np.iinfo(pixels.dtype).max // 2
    if 1 < brightest <= half:
        raise BadInput(f"{path}: the brightest value is {brightest}, but foreground must be 1 or more than {half}")
    return pixels > (0 if brightest <= 1 else half)


def _read(path: Path) -> np.ndarray:
    """Pixels as `(H, W)`, `(H, W, 3)` or `(H, W, 4)`, uint8 or uint16."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise BadInput(f"{path}: the file is empty (0 bytes)")
    try:
        # tifffile, because Pillow refuses the photometric tag of CVC-ClinicDB's originals
        pixels = tifffile.imread(path) if path.suffix.lower() in (".tif", ".tiff") else _read_with_pillow(path)
    except Exception as error:  # decoders raise whatever they stumble over; to the user it is one thing
        raise BadInput(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype not in (np.uint8, np.uint16) or not (
        pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    ):
        raise BadInput(f"{path}: {pixels.dtype} of shape {pixels.shape}; expected 8 or 16 bits, gray, RGB or RGBA")
    return pixels


def _read_with_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode in ("P", "PA", "LA", "CMYK", "YCbCr"):
            image = image.convert("RGB")
        return np.asarray(image)
