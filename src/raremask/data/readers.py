"""Reads image and mask files, and says what is wrong with one that cannot be read."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from raremask import BadInput

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it stumbles over is said in one line, with the file
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF")  # of Pillow; no other decoder sees a file
MAX_PIXELS = 80_000_000  # the largest image of ISIC has 30 million
SOFT = 1.25  # a mask whose foreground would grow by a quarter with another threshold deserves a word
# Flat areas of these values are labels. Between them and black, and below white, CVC-ClinicDB has flat areas of what
# compression left (9 to 23); where a file is a JPEG itself, small values are that too.
LABELS, GRAYS = range(1, 9), range(32, 224)
PHOTOGRAPH = 0.5  # share of the pixels from which gray, between a quarter and three quarters of white, is no soft edge
LINE = 0.01  # share of the foreground from which thin structures of a value are labels: less may be a slip of the pen
COLOURS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
ORIENTATION = 274  # number of the tag, in EXIF and TIFF
CLEAR, END = 256, 257  # codes of LZW
LONGEST = 5000  # more codes than LZW has between two clears
PLAIN = ("MINISWHITE", "MINISBLACK", "RGB", "PALETTE")  # what the numbers of a TIFF may stand for
ONE_CLASS = "foreground is one class here: make a mask for each class"


def read_image(path: Path, channels: int, bits: int = 16, peaks: list[int] | None = None) -> np.ndarray:
    """Read an image as 8 bits per channel.

    Grayscale is repeated to RGB or RGB weighed to grayscale, as `channels` asks; of 16 bits the upper 8 of those in use
    are kept; alpha is dropped; the orientation that a camera or scanner has noted (EXIF, TIFF) is applied.

    Args:
        path: PNG, JPEG, TIFF, BMP or GIF.
        channels: 1 (grayscale) or 3 (RGB).
        bits: How many bits of a 16-bit file are in use, 8 to 16; larger values become white.
        peaks: Gets the largest value of a 16-bit file, to see whether all bits are in use.

    Returns:
        `(H, W, channels)` uint8.

    Raises:
        BadInput: If the file is missing, empty, unreadable or of another kind.
    """
    pixels = _read(path, bits)
    if pixels.dtype == np.uint16:
        if peaks is not None:
            peaks.append(int(pixels.max()))
        pixels = np.minimum(pixels >> (bits - 8), 255).astype(np.uint8)
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], channels, axis=2)
    pixels = np.ascontiguousarray(pixels[..., :3])
    return pixels if channels == 3 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]


def read_mask(path: Path, remarks: list[str] | None = None) -> np.ndarray:
    """Read a mask: foreground is brighter than half of the range (over 127 of 255, over 32767 of 65535).

    A file whose brightest value is 1 holds labels, and foreground is 1. Of several channels the brightest counts.

    Args:
        path: PNG, JPEG, TIFF, BMP or GIF.
        remarks: Gets a line if the edges are so soft that the rule decides much of the foreground.

    Returns:
        `(H, W)` boolean.

    Raises:
        BadInput: If the file is missing, empty, unreadable or of another kind; if by this rule it has no foreground
            although it is not black; if it holds several classes: areas of several colours, labels or grays, or thin
            structures of several pure colours or labels; or if nothing but its alpha channel varies.
    """
    pixels = _read(path)
    half = np.iinfo(pixels.dtype).max // 2
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        colour, alpha = pixels[..., :3], pixels[..., 3]
        if alpha.min() < alpha.max() and (colour == colour[0, 0]).all():
            raise BadInput(f"{path}: only its alpha channel varies; save the mask without one, white on black")
    if pixels.ndim == 3:
        colours = ((pixels[..., :3] > half) * np.array([1, 2, 4])).sum(axis=2).astype(np.uint8)
        pure = not ((pixels[..., :3] > 0) & (pixels[..., :3] < 2 * half)).any()
        several = {*_areas(colours), *(_lines(colours, range(1, 8)) if pure else ())} - {0}
        if len(several) > 1:
            names = ", ".join(COLOURS[number] for number in several)
            raise BadInput(f"{path}: areas of several colours ({names}); {ONE_CLASS}")
        pixels = pixels[..., :3].max(axis=2)
    brightest = int(pixels.max())
    if 1 < brightest <= half:
        labelled = np.unique(pixels[pixels > 0])
        if len(labelled) > 1 and brightest <= max(LABELS):
            raise BadInput(f"{path}: labels {', '.join(map(str, labelled))}; {ONE_CLASS}")
        raise BadInput(f"{path}: the brightest value is {brightest}, but foreground must be 1 or more than {half}")
    if brightest > 1:
        step = np.iinfo(pixels.dtype).max // 255  # 1 of 8 bits, 257 of 16
        labels = () if _is_jpeg(path) else LABELS
        flat = [value for value in _areas(pixels) if value < brightest]
        if not ((pixels < brightest) & (pixels > brightest - max(LABELS) - 1)).any():  # compression leaves both ends
            flat += [value for value in _lines(pixels, labels) if value not in flat]
        if grays := [value for value in flat if value in labels or value // step in (*labels, *GRAYS)]:
            values = ", ".join(map(str, [*grays[:5], brightest]))
            raise BadInput(f"{path}: areas of several values ({values}); {ONE_CLASS}")
        low, high = int((pixels > half // 2).sum()), int((pixels > half + half // 2).sum())
        if low - high > PHOTOGRAPH * pixels.size and len(np.unique(pixels)) > max(GRAYS) // 2:
            raise BadInput(
                f"{path}: most of it is gray, as in a photograph. Are images and masks mixed up? "
                "Probabilities must be cut at a threshold first."
            )
        if remarks is not None and low > SOFT * high and len(np.unique(pixels)) > 2:
            remarks.append(f"{path}: {low} pixels above {half // 2}, {high} above {half + half // 2}")
    return pixels > (0 if brightest <= 1 else half)


def _areas(pixels: np.ndarray) -> list[int]:
    """Which values fill a square of 5 x 5 pixels somewhere: an edge, however soft, does not.

    3 x 3 is too little: a JPEG mask that was made smaller and saved as PNG has such squares of what compression left.
    """
    square = np.ones((5, 5), np.uint8)
    flat = cv2.erode(pixels, square, borderValue=0) == cv2.dilate(pixels, square, borderValue=0)
    return np.unique(pixels[flat]).tolist()


def _lines(pixels: np.ndarray, values: Sequence[int]) -> list[int]:
    """Which of some values fill structures of their own, however thin: most of their pixels touch no other value but 0.

    The values of a soft edge lie between others.
    """
    found = []
    for value in np.intersect1d(pixels[(pixels > 0) & (pixels <= max(values, default=0))], values).tolist():
        own, others = pixels == value, ((pixels != 0) & (pixels != value)).astype(np.uint8)
        beside = cv2.dilate(others, np.ones((3, 3), np.uint8))[own]
        if own.sum() >= LINE * np.count_nonzero(pixels) and beside.mean() < 0.5:
            found.append(value)
    return found


def _is_jpeg(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) == b"\xff\xd8"
    except OSError as error:  # it was there a moment ago
        raise BadInput(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def _read(path: Path, bits: int = 16) -> np.ndarray:
    """Pixels as `(H, W)`, `(H, W, 3)` or `(H, W, 4)`, uint8 or uint16."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        if path.stat().st_size == 0:
            raise BadInput(f"{path}: the file is empty (0 bytes)")
        with path.open("rb") as file:
            head = file.read(25)
        # tifffile, because Pillow refuses the photometric tag of CVC-ClinicDB's originals
        tiff = head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
        pixels = _read_with_tifffile(path, bits) if tiff else _read_with_pillow(path, deep=head[24:] == b"\x10")
    except BadInput:
        raise
    except Image.DecompressionBombError as error:
        raise BadInput(f"{path}: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise BadInput(f"{path}: is no {', '.join(FORMATS)} image, whatever its name says") from error
    except Exception as error:  # decoders raise whatever they stumble over; to the user it is one thing
        raise BadInput(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    if not pixels.size:
        raise BadInput(f"{path}: has no pixels")
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype not in (np.uint8, np.uint16) or not (
        pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    ):
        raise BadInput(f"{path}: {pixels.dtype} of shape {pixels.shape}; expected 8 or 16 bits, gray, RGB or RGBA")
    return pixels


def _read_with_tifffile(path: Path, bits: int) -> np.ndarray:
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        _refuse_if_huge(path, page.imagewidth, page.imagelength * len(file.pages))
        alike = sum(series.shape == file.series[0].shape for series in file.series)
        if alike > 1:
            raise BadInput(f"{path}: holds {alike} pictures; save each as a file of its own")
        meant = page.photometric.name if isinstance(page.photometric, tifffile.PHOTOMETRIC) else str(page.photometric)
        if meant not in PLAIN and not (meant == "YCBCR" and "JPEG" in str(page.compression)):
            raise BadInput(f"{path}: its colours are {meant}; save it as gray or RGB")
        for part in file.pages:
            if part.compression == tifffile.COMPRESSION.LZW:
                _refuse_unsound_lzw(path, file, part)
        pixels = file.asarray()
        if len(file.pages) > 1 and pixels.ndim > len(page.shape):
            raise BadInput(f"{path}: holds {len(file.pages)} pictures; save each as a file of its own")
        if meant == "PALETTE" and pixels.ndim == 2:
            pixels = (np.asarray(page.colormap)[:, pixels] >> 8).astype(np.uint8).transpose(1, 2, 0)
        elif page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
            pixels = pixels.transpose(1, 2, 0)
        # tifffile writes booleans under this tag as they are, so in its own files they mean what they say
        if meant == "MINISWHITE" and not (page.bitspersample == 1 and page.software.startswith("tifffile")):
            white = 2**bits - 1
            pixels = white - np.minimum(pixels, white) if pixels.dtype == np.uint16 else ~pixels
        tag = page.tags.get(ORIENTATION)
        return _upright(pixels, int(tag.value) if tag else 1)


def _refuse_unsound_lzw(path: Path, file: tifffile.TiffFile, page: Any) -> None:
    """Before it is decoded: where the code after a clear is no byte, imagecodecs 2026.3.6 crashes Python."""
    for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.filehandle.seek(offset)
        data = np.frombuffer(file.filehandle.read(length), np.uint8)
        if page.fillorder == tifffile.FILLORDER.LSB2MSB:
            data = np.packbits(np.unpackbits(data, bitorder="little"))
        if not lzw_is_sound(data):
            raise BadInput(f"{path}: cannot be read (its LZW compression is damaged)")


def lzw_is_sound(data: np.ndarray) -> bool:
    """Say whether LZW as in TIFF goes on with a byte after each code that clears its table.

    Where a code lies depends on nothing but how many there were since the last clear: they grow from 9 to 12 bits.

    Args:
        data: `(n,)` uint8, compressed.

    Source:
        TIFF 6.0 (1992), section 13; before it there was a form with the bits the other way round.

    >>> lzw_is_sound(np.array([128, 16, 96, 32], np.uint8))  # clear, "A", end
    True
    >>> lzw_is_sound(np.array([128, 75, 32, 32], np.uint8))  # clear, 300
    False
    """
    old = len(data) > 1 and data[0] == 0 and data[1] % 2 == 1
    first, second, third = (np.concatenate([data[more:], [0] * more]).astype(np.int32) for more in range(3))
    joined = first | second << 8 | third << 16 if old else first << 16 | second << 8 | third
    table = np.maximum(258, 257 + np.arange(LONGEST))  # its size when a code is read, the first one after a clear
    bits = 9 + (table[:, None] >= np.array([512, 1024, 2048]) - (not old)).sum(axis=1)
    ends, ones = np.cumsum(bits), (1 << bits) - 1
    place = 9  # it begins with a clear, or the decoder refuses it
    while True:
        whole = slice(np.searchsorted(ends, 8 * len(data) - place, side="right"))
        end = place + ends[whole]
        at = end - bits[whole]
        codes = joined[at >> 3] >> (at & 7 if old else 24 - (end - (at & ~7))) & ones[whole]
        if len(codes) and codes[0] > END:
            return False
        special = np.flatnonzero((codes == CLEAR) | (codes == END))
        if not len(special):
            return len(codes) < LONGEST
        if codes[special[0]] == END:
            return True
        place = end[special[0]]


def _read_with_pillow(path: Path, deep: bool) -> np.ndarray:
    """Read what is no TIFF; `deep` is whether a PNG, if it is one, has 16 bits, of which Pillow keeps 8 of colour."""
    with Image.open(path, formats=FORMATS) as image:
        _refuse_if_huge(path, *image.size)
        orientation = image.getexif().get(ORIENTATION, 1)
        if deep and image.format == "PNG" and image.mode in ("RGB", "RGBA", "LA"):
            pixels = imagecodecs.png_decode(path.read_bytes())
            return _upright(pixels if pixels.shape[2] > 2 else pixels[..., [0, 0, 0, 1]], orientation)
        plain = {"P": "RGB", "PA": "RGBA", "LA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB"}.get(image.mode)
        return _upright(np.asarray(image.convert(plain) if plain else image), orientation)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror an image as its tag says: 2 to 8, any other number leaves it."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _refuse_if_huge(path: Path, width: int, height: int) -> None:
    """Before anything is decoded: a header of a few bytes can claim more than the memory holds."""
    if width * height > MAX_PIXELS:
        raise BadInput(f"{path}: {width}x{height} pixels; at most {MAX_PIXELS / 1e6:.0f} million are read")
