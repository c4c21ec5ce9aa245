import struct
import warnings
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from conftest import colour, saved, square
from raremask import BadInput
from raremask.data.folder import Folder
from raremask.data.readers import lzw_is_sound, read_image, read_mask


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".gif"])
def test_an_image_is_read_as_it_was_written(tmp_path, suffix):
    pixels = np.repeat(square()[..., None], 3, axis=2) if suffix == ".gif" else colour()
    path = saved(tmp_path / f"image{suffix}", pixels)
    assert np.array_equal(read_image(path, 3), pixels)


def test_gray_becomes_rgb_and_rgb_becomes_gray_by_brightness(tmp_path):
    gray = saved(tmp_path / "gray.png", square())
    assert np.array_equal(read_image(gray, 3), np.repeat(square()[..., None], 3, axis=2))
    green = np.zeros((2, 2, 3), np.uint8)
    green[..., 1] = 100
    assert read_image(saved(tmp_path / "green.png", green), 1).tolist() == [[[59], [59]], [[59], [59]]]  # .587 * 100


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    path = saved(tmp_path / "deep.tif", np.array([[0, 256, 65535]], np.uint16))
    assert read_image(path, 1)[..., 0].tolist() == [[0, 1, 255]]


def test_alpha_is_dropped(tmp_path):
    path = saved(tmp_path / "alpha.png", np.dstack([colour(), np.zeros((24, 30), np.uint8)]))
    assert np.array_equal(read_image(path, 3), colour())
    opaque = saved(
        tmp_path / "mask.png", np.dstack([np.zeros((24, 30, 3), np.uint8), np.full((24, 30), 255, np.uint8)])
    )
    assert not read_mask(opaque).any()


@pytest.mark.parametrize(("values", "expected"), [([0, 127, 128, 255], [0, 0, 1, 1]), ([0, 1, 1, 0], [0, 1, 1, 0])])
def test_foreground_is_over_127_or_the_label_1(tmp_path, values, expected):
    path = saved(tmp_path / "mask.png", np.array([values], np.uint8))
    assert read_mask(path)[0].tolist() == [bool(value) for value in expected]


def test_labels_of_sixteen_bits_are_labels_too(tmp_path):
    path = saved(tmp_path / "mask.tif", np.array([[0, 1, 1]], np.uint16))
    assert read_mask(path).tolist() == [[False, True, True]]
    path = saved(tmp_path / "deep.tif", np.array([[0, 32767, 65535]], np.uint16))
    assert read_mask(path).tolist() == [[False, False, True]]


def test_a_mask_that_would_silently_be_empty_is_refused(tmp_path):
    path = saved(tmp_path / "mask.png", np.array([[0, 2, 100]], np.uint8))
    with pytest.raises(BadInput, match="the brightest value is 100, but foreground must be 1 or more than 127"):
        read_mask(path)


# --- what a name or a header claims -----------------------------------------------------------------------------------


def test_the_content_counts_not_the_suffix(tmp_path):
    saved(tmp_path / "a.tif", colour()).rename(tmp_path / "a.png")
    saved(tmp_path / "b.png", colour()).rename(tmp_path / "b.tif")
    for name in ("a.png", "b.tif"):
        assert np.array_equal(read_image(tmp_path / name, 3), colour())


def test_what_is_no_image_is_refused_whatever_its_name(tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(BadInput, match=r"notes.png: is no PNG, JPEG, BMP, GIF, TIFF image, whatever its name says"):
        read_image(tmp_path / "notes.png", 3)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_a_truncated_or_empty_file_is_refused(tmp_path, suffix):
    path = saved(tmp_path / f"image{suffix}", colour(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadInput, match="cannot be read"):
        read_image(path, 3)
    path.write_bytes(b"")
    with pytest.raises(BadInput, match=r"the file is empty \(0 bytes\)"):
        read_image(path, 3)


def png_that_claims(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 9)
        + b"IDAT"
    )


@pytest.mark.parametrize(("width", "height"), [(9000, 9000), (60000, 60000)])
def test_a_png_that_claims_to_be_huge_is_refused_before_it_is_decoded(tmp_path, width, height):
    (tmp_path / "bomb.png").write_bytes(png_that_claims(width, height))
    with pytest.raises(BadInput, match=r"9000x9000 pixels; at most 80 million|3600000000 pixels"):
        read_image(tmp_path / "bomb.png", 3)


def test_a_tiff_that_claims_to_be_huge_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8), rowsperstrip=8)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        places = [file.pages[0].tags[name].valueoffset for name in ("ImageWidth", "ImageLength")]
    for place in places:
        data[place : place + 2] = struct.pack("<H", 60000)
    path.write_bytes(data)
    with pytest.raises(BadInput, match="60000x60000 pixels; at most 80 million are read"):
        read_image(path, 1)


def test_the_orientation_of_the_camera_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows are columns
    Image.fromarray(square()).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    turned = read_image(tmp_path / "turned.jpg", 1)[..., 0]
    assert turned.shape == (30, 24)
    assert np.abs(turned.astype(int) - np.rot90(square(), 3)).mean() < 5
    assert np.array_equal(read_mask(tmp_path / "turned.jpg"), np.rot90(square(), 3) > 0)


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_every_orientation_is_that_of_pillow(tmp_path, number, suffix):
    exif = Image.Exif()
    exif[0x0112] = number
    Image.fromarray(colour()).save(tmp_path / f"turned{suffix}", exif=exif)
    with Image.open(tmp_path / f"turned{suffix}") as image:
        assert np.array_equal(read_image(tmp_path / f"turned{suffix}", 3), ImageOps.exif_transpose(image))


# --- masks of several classes, and with soft edges --------------------------------------------------------------------


def two_areas(first, second):
    mask = np.zeros((24, 30, *np.shape(first)), np.uint8)
    mask[2:8, 2:8], mask[12:20, 12:20] = first, second
    return mask


def lines(first, second):
    """Two thin lines, far from each other."""
    pixels = np.zeros((40, 40, *np.shape(first)), np.uint8)
    pixels[8:10], pixels[30:33] = first, second
    return pixels


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (two_areas(100, 255), r"areas of several values \(100, 255\); foreground is one class here"),
        (two_areas(128, 200), r"areas of several values \(128, 200\)"),
        (two_areas((255, 0, 0), (0, 255, 0)), r"areas of several colours \(red, green\)"),
        (two_areas((255, 0, 0), (255, 255, 255)), r"areas of several colours \(red, white\)"),
        (two_areas(100, 255).astype(np.uint16) * 257, r"areas of several values \(25700, 65535\)"),
        (two_areas(np.uint16(3), 0).astype(np.uint16) + two_areas(0, 255) * np.uint16(257), r"values \(3, 65535\)"),
        (lines(1, 255), r"areas of several values \(1, 255\)"),
        (lines(2, 255), r"areas of several values \(2, 255\)"),
        (lines((255, 0, 0), (0, 0, 255)), r"areas of several colours \(red, blue\)"),
        (two_areas(1, 2), "labels 1, 2; foreground is one class here"),
        (two_areas(0, 2), "the brightest value is 2, but foreground must be 1 or more than 127"),
    ],
)
def test_a_mask_of_several_classes_is_refused(tmp_path, pixels, message):
    with pytest.raises(BadInput, match=message):
        read_mask(saved(tmp_path / "mask.png", pixels))


@pytest.mark.parametrize("value", [1, 128, 255, (255, 0, 0), (255, 255, 255)])
def test_a_mask_of_one_value_or_colour_is_read(tmp_path, value):
    mask = read_mask(saved(tmp_path / "mask.png", two_areas(value, value)))
    assert mask.sum() == 36 + 64


VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]


def palette_image(path, numbers, colours):
    image = Image.fromarray(numbers)
    image.putpalette(np.array(colours, np.uint8).ravel().tolist())
    image.save(path)
    return path


def test_a_palette_is_read_in_its_colours_whatever_their_numbers(tmp_path):
    assert read_mask(palette_image(tmp_path / "one.png", two_areas(1, 1), VOC)).sum() == 100
    inverted = palette_image(tmp_path / "inverted.png", two_areas(1, 1), [(255, 255, 255), (0, 0, 0)])
    assert read_mask(inverted).sum() == 24 * 30 - 100
    image = read_image(palette_image(tmp_path / "image.png", two_areas(1, 2), VOC), 3)
    assert image[3, 3].tolist() == [128, 0, 0]


def test_a_coloured_mask_stays_what_it_is_through_gif_and_quantising(tmp_path):
    red = Image.fromarray(two_areas((255, 0, 0), (255, 0, 0)))
    red.save(tmp_path / "m.gif")
    red.quantize(4).save(tmp_path / "quantised.png")
    red.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "adaptive.png")
    for name in ("m.gif", "quantised.png", "adaptive.png"):
        assert read_mask(tmp_path / name).sum() == 100


def test_a_palette_of_several_classes_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"areas of several colours \(red, green\)"):
        read_mask(palette_image(tmp_path / "two.png", two_areas(1, 2), VOC))


def test_a_label_beside_an_ignore_label_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"areas of several values \(1, 255\)"):
        read_mask(saved(tmp_path / "void.png", two_areas(1, 255)))


def test_thin_structures_with_soft_edges_are_one_class(tmp_path):
    mask = lines(255, 255)
    for smaller in (20, 13, 29):  # by whole numbers of pixels, and not
        soft = cv2.resize(mask, (smaller, smaller), interpolation=cv2.INTER_AREA)
        assert read_mask(saved(tmp_path / "soft.png", soft)).any()
        assert read_mask(saved(tmp_path / "soft.png", np.repeat(soft[..., None], 3, axis=2))).any()
    faint = lines(255, 255)
    faint[9, ::2] = 3  # an edge, however small its value
    assert read_mask(saved(tmp_path / "faint.png", faint)).sum() == 4 * 40 + 20
    slip, coloured = lines(255, 255), lines((255, 255, 255), (255, 255, 255))
    slip[20, 20], coloured[20, 20] = 1, (255, 0, 0)
    assert read_mask(saved(tmp_path / "slip.png", slip)).sum() == 5 * 40
    assert read_mask(saved(tmp_path / "coloured.png", coloured)).sum() == 5 * 40 + 1


@pytest.mark.parametrize("quality", [90, 97, 98, 99, 100])
def test_a_mask_that_was_a_jpeg_of_high_quality_is_read(tmp_path, quality):
    for number in range(20):
        place = np.random.default_rng(number)
        mask = np.zeros((120, 160), np.uint8)
        centre, axes = place.integers(30, 90, 2), place.integers(5, 30, 2)
        cv2.ellipse(mask, centre.tolist(), axes.tolist(), float(place.integers(180)), 0, 360, 255, -1)
        coded = cv2.imencode(".jpg", mask, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        decoded = cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE)
        assert (read_mask(saved(tmp_path / "was.png", decoded)) != (mask > 0)).sum() < 20


def test_what_compression_left_of_black_is_background(tmp_path):
    mask = two_areas(255, 11)  # as in CVC-ClinicDB
    assert read_mask(saved(tmp_path / "mask.png", mask)).sum() == 36
    assert read_mask(saved(tmp_path / "mask.jpg", two_areas(255, 3))).sum() == pytest.approx(36, abs=8)


def test_a_mask_in_the_alpha_channel_alone_is_refused(tmp_path):
    object_in_alpha = np.dstack([np.full((24, 30, 3), 255, np.uint8), square()])
    with pytest.raises(BadInput, match="only its alpha channel varies"):
        read_mask(saved(tmp_path / "alpha.png", object_in_alpha))
    with pytest.raises(BadInput, match="only its alpha channel varies"):
        read_mask(saved(tmp_path / "gray.png", object_in_alpha[..., 2:]))


def test_one_bit_is_black_or_white(tmp_path):
    Image.fromarray(square() > 0).save(tmp_path / "bits.png")
    assert np.unique(read_image(tmp_path / "bits.png", 1)).tolist() == [0, 255]
    assert read_mask(tmp_path / "bits.png").sum() == 80


def test_tiffs_are_read_as_they_are_meant(tmp_path):
    tifffile.imwrite(tmp_path / "white.tif", 255 - square(), photometric="miniswhite")
    assert read_mask(tmp_path / "white.tif").sum() == 80
    tifffile.imwrite(tmp_path / "planes.tif", colour().transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_image(tmp_path / "planes.tif", 3), colour())
    colours = np.zeros((3, 256), np.uint16)
    colours[:, 1] = 65535, 0, 0
    tifffile.imwrite(tmp_path / "palette.tif", square(value=1), photometric="palette", colormap=colours)
    assert read_image(tmp_path / "palette.tif", 3)[5, 6].tolist() == [255, 0, 0]
    assert read_mask(tmp_path / "palette.tif").sum() == 80


def test_a_tiff_of_other_colours_or_of_several_pictures_is_refused(tmp_path):
    Image.fromarray(colour()).convert("CMYK").save(tmp_path / "print.tif")
    with pytest.raises(BadInput, match=r"print.tif: its colours are SEPARATED; save it as gray or RGB"):
        read_image(tmp_path / "print.tif", 3)
    with tifffile.TiffWriter(tmp_path / "stack.tif") as file:
        for _ in range(3):
            file.write(square())
    with pytest.raises(BadInput, match=r"stack.tif: holds 3 pictures; save each as a file of its own"):
        read_image(tmp_path / "stack.tif", 1)
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([square()] * 7), photometric="minisblack")
    with pytest.raises(BadInput, match=r"pages.tif: holds 7 pictures; save each as a file of its own"):
        read_image(tmp_path / "pages.tif", 1)
    Image.fromarray(colour()).save(tmp_path / "small.tif", compression="jpeg", quality=95)  # which is YCbCr inside
    assert np.abs(read_image(tmp_path / "small.tif", 3).astype(int) - colour()).mean() < 20


@pytest.mark.parametrize("bits", [12, 16])
def test_white_is_nothing_within_the_bits_that_are_in_use(tmp_path, bits):
    values = np.array([[0, 2 ** (bits - 1), 2**bits - 1]], np.uint16)
    tifffile.imwrite(tmp_path / "white.tif", values, photometric="miniswhite")
    assert read_image(tmp_path / "white.tif", 1, bits)[..., 0].tolist() == [[255, 127, 0]]


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bits_of_colour_are_read_whole(tmp_path, channels):
    pixels = np.full((24, 30, channels), 4095, np.uint16)
    pixels[0] = 16
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(pixels))
    peaks = []
    image = read_image(tmp_path / "deep.png", 3, bits=12, peaks=peaks)
    assert peaks == [4095]
    assert np.unique(image[0]).tolist() == [1]
    assert np.unique(image[1:]).tolist() == [255]


def test_labels_of_sixteen_bits_of_colour_are_labels_too(tmp_path):
    mask = np.repeat((square() > 0).astype(np.uint16)[..., None], 3, axis=2)
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(mask))
    assert read_mask(tmp_path / "deep.png").sum() == 80


def deep(root, highest):
    for index in range(5):
        saved(root / "images" / f"{index}.tif", (square() // 255).astype(np.uint16) * highest)
        saved(root / "masks" / f"{index}.png", square())
    return {"images": str(root / "images"), "masks": str(root / "masks")} | {
        "size": (32, 32),
        "channels": 1,
        "batch_size": 2,
    }


def test_twelve_bits_in_sixteen_are_said_and_can_be_read(tmp_path):
    data = Folder(**deep(tmp_path, 4095))
    with pytest.warns(UserWarning, match="no 16-bit image has a value above 4095.* set dataset.bits=12"):
        data.setup()
    data = Folder(**deep(tmp_path, 4095), bits=12)
    data.setup()
    assert data.splits["train"].pictures[0].image.max() == 255
    Folder(**deep(tmp_path, 60000)).setup()
    assert read_image(tmp_path / "images" / "0.tif", 1, bits=12).max() == 255  # what is more becomes white
    with pytest.raises(ValueError, match=r"dataset.bits must be from 8 to 16; got 17"):
        Folder(**deep(tmp_path, 1), bits=17)


def blurred(sigma):
    return cv2.GaussianBlur(square(), (0, 0), sigma)


def test_soft_edges_are_read_and_remarked_where_they_matter(tmp_path):
    remarks = []
    assert read_mask(saved(tmp_path / "hard.png", blurred(0.3)), remarks).sum() == 80
    assert remarks == []
    assert 60 < read_mask(saved(tmp_path / "soft.png", blurred(2)), remarks).sum() < 100
    assert remarks[0].startswith(f"{tmp_path / 'soft.png'}: ")
    assert "pixels above 63," in remarks[0]
    deep = blurred(2).astype(np.uint16) * 257
    read_mask(saved(tmp_path / "deep.tif", deep), remarks)
    assert "pixels above 16383," in remarks[1]


def test_a_photograph_is_no_mask_and_half_of_white_has_no_soft_edges(tmp_path):
    photograph = np.random.default_rng(0).integers(60, 200, (40, 50, 3)).astype(np.uint8)
    with pytest.raises(BadInput, match=r"most of it is gray, as in a photograph. Are images and masks mixed up"):
        read_mask(saved(tmp_path / "photograph.png", photograph))
    remarks = []
    half = (square() > 0).astype(np.uint8) * 128
    assert read_mask(saved(tmp_path / "half.png", half), remarks).sum() == 80
    assert remarks == []


def folder(root, masks):
    for index, mask in enumerate(masks):
        saved(root / "images" / f"{index}.png", colour())
        saved(root / "masks" / f"{index}.png", mask)
    where = {"images": str(root / "images"), "masks": str(root / "masks")}
    return Folder(**where, size=(32, 32), channels=3, batch_size=2)


def test_a_dataset_remarks_soft_masks_in_one_warning(tmp_path):
    data = folder(tmp_path, [blurred(2), blurred(2), square(), square(), square()])
    with pytest.warns(UserWarning, match="soft edges") as caught:
        data.setup()
    message = str(caught[0].message)
    assert message.startswith("2 of 5 masks have soft edges; foreground is the brighter half:\n")
    assert "0.png" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder(tmp_path / "hard", [square()] * 5).setup()


def test_a_name_that_is_not_utf_8_is_listed_among_what_is_wrong(tmp_path):
    data = folder(tmp_path, [square()] * 5)
    for place in ("images", "masks"):
        try:
            (tmp_path / place / "0.png").rename(tmp_path / place / "caf\udce9.png")
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(BadInput, match=r"'caf\\udce9': the name is not UTF-8, so no table can hold it"):
        data.setup()


def test_everything_that_is_wrong_with_files_stands_in_one_list(tmp_path):
    data = folder(tmp_path, [square(), two_areas(100, 255), square(10, 10), square(), square()])
    (tmp_path / "images" / "3.png").write_text("no image")
    (tmp_path / "images" / "4.png").write_bytes(png_that_claims(9000, 9000))
    with pytest.raises(BadInput) as error:
        data.setup()
    lines = str(error.value).splitlines()
    assert lines[0] == "4 of 5 images cannot be used:"
    assert [line.split(": ", 1)[1].split(" ")[0] for line in lines[1:]] == ["areas", "10x10", "is", "9000x9000"]


@pytest.mark.parametrize("seed", range(4))
def test_a_jpeg_mask_that_was_made_smaller_and_saved_as_png_is_read(tmp_path, seed):
    random, mask = np.random.default_rng(seed), np.zeros((531, 622), np.uint8)
    for _ in range(5):
        center = tuple(int(place) for place in random.integers(100, 450, 2))
        cv2.ellipse(mask, center, (60, 35), int(random.integers(180)), 0, 360, 255, -1)
    Image.fromarray(mask).save(tmp_path / "mask.jpg", quality=95)
    decoded = np.asarray(Image.open(tmp_path / "mask.jpg"))
    for size, how in ((256, cv2.INTER_AREA), (512, cv2.INTER_LINEAR), (1024, cv2.INTER_LINEAR)):
        path = saved(tmp_path / "mask.png", cv2.resize(decoded, (size, size), interpolation=how))
        expected = cv2.resize(mask, (size, size), interpolation=how) > 127
        assert (read_mask(path) != expected).mean() < 0.002


def test_a_boolean_mask_of_tifffile_is_what_was_written(tmp_path):
    mask = square() > 0
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    assert (read_mask(tmp_path / "mask.tif") == mask).all()


def packed(codes, old: bool) -> bytes:
    """Codes of LZW as bytes, in the form of TIFF 6.0 or the one before it."""
    bits, table = [], 257
    for code in codes:
        width = 9 + sum(table >= size - (not old) for size in (512, 1024, 2048))
        number = [code >> place & 1 for place in range(width)]
        bits += number if old else number[::-1]
        table = 257 if code == 256 else max(258, table + 1)
    return np.packbits(np.array(bits, np.uint8), bitorder="little" if old else "big").tobytes()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("between", [1, 5, 253, 254, 255, 256, 1500, 3000])
def test_a_code_that_is_no_byte_after_a_clear_is_found(old, between):
    plain = [256, *([7] * between), 256, 256, *range(10), 256, 9, 257]
    whole = packed(plain, old)
    assert imagecodecs.lzw_decode(whole, out=between + 11) == bytes([7] * between + [*range(10), 9])
    assert lzw_is_sound(np.frombuffer(whole, np.uint8))
    for place in (1, between + 3, between + 14):
        wrong = packed([*plain[:place], 300, *plain[place + 1 :]], old)
        assert not lzw_is_sound(np.frombuffer(wrong, np.uint8))
    assert lzw_is_sound(np.frombuffer(packed([*plain[:2], 400, *plain[3:]], old), np.uint8))  # refused by the decoder


@pytest.mark.parametrize("more", [{}, {"tile": (16, 16)}, {"predictor": True}, {"photometric": "rgb"}])
def test_lzw_is_read_unless_it_would_crash_the_decoder(tmp_path, more):
    shape = (200, 300, 3) if "photometric" in more else (200, 300)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    file = tmp_path / "image.tif"
    tifffile.imwrite(file, pixels, compression="lzw", **more)
    assert np.array_equal(read_image(file, 3), pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2))
    with tifffile.TiffFile(file) as tiff:
        place = tiff.pages.first.dataoffsets[-1]
    content = bytearray(file.read_bytes())
    content[place : place + 6] = packed([256, 300, 258, 66, 257], old=False)
    file.write_bytes(content)
    with pytest.raises(BadInput, match="its LZW compression is damaged"):
        read_image(file, 3)


def test_lzw_is_read_with_the_bits_of_each_byte_reversed(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    file = tmp_path / "image.tif"
    tifffile.imwrite(file, pixels, compression="lzw", extratags=[(65000, 3, 1, 2, True)])
    with tifffile.TiffFile(file) as tiff:
        (start,), (length,) = tiff.pages.first.dataoffsets, tiff.pages.first.databytecounts
    content = np.frombuffer(file.read_bytes(), np.uint8).copy()
    strip = content[start : start + length]
    strip[:] = np.packbits(np.unpackbits(strip, bitorder="little"))
    tag, order = (struct.pack("<HHIH", number, 3, 1, 2) for number in (65000, 266))  # which tifffile doesn't write
    assert content.tobytes().count(tag) == 1
    file.write_bytes(content.tobytes().replace(tag, order))
    assert np.array_equal(read_image(file, 1)[..., 0], pixels)
