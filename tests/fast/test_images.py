"""Images: a test for each rule of docs/images.md, the configuration file, and damaged files.

The resampling is compared with a filter written out here; tests/interop compares all of it with
transformers.
"""

import io
import json
import os
import pickle
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.fresh import fresh_rng
from vitfast.images import MAX_PIXELS, ImageProcessor, InvalidImage
from vitfast.images.quiet import FILTER, without_warnings
from vitfast.images.reading import read_picture
from vitspec.errors import NotWellFormed
from vitspec.testing.photograph import PHOTOGRAPH

AS_IS = ImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)


def levels(source, **how):
    """The picture's grey levels, (H, W, 3)."""
    return AS_IS.pixels(source, **how)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(picture, kind="PNG", **how):
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def refusal(source, *words, processor=AS_IS, **how):
    with pytest.raises(InvalidImage) as found:
        processor(source, **how)
    for word in words:
        assert word in str(found.value)
    return str(found.value)


# What comes out


@pytest.mark.parametrize("size", [{"height": 5, "width": 9}, (5, 9), [5, 9]])
def test_a_batch_of_floats_with_the_channels_last(size):
    processor = ImageProcessor(size=size)
    batch = processor([noise(7, 11, 3), PHOTOGRAPH])
    assert batch.shape == (2, 5, 9, 3)
    assert batch.dtype == np.float32
    first = processor([noise(7, 11, 3), PHOTOGRAPH], data_format="channels_first")
    np.testing.assert_array_equal(first, batch.transpose(0, 3, 1, 2))
    assert first.flags.c_contiguous


def test_a_picture_alone_is_a_batch_of_one_and_four_axes_are_a_batch():
    pictures = noise(3, 6, 5, 3)
    assert AS_IS(pictures[0]).shape == (1, 6, 5, 3)
    np.testing.assert_array_equal(AS_IS(pictures), pictures.astype(np.float32))
    np.testing.assert_array_equal(AS_IS(iter(pictures)), AS_IS(list(pictures)))


def test_levels_are_rescaled_then_normalised_by_channel():
    mean, std = (0.1, 0.4, 0.7), (0.5, 2.0, 0.3)
    picture = noise(5, 6, 3)
    x = ImageProcessor(do_resize=False, rescale_factor=1 / 128, image_mean=mean, image_std=std)
    # Absolute too: a level near the mean cancels, in float32.
    np.testing.assert_allclose(
        x(picture)[0], (picture / 128.0 - np.array(mean)) / np.array(std), rtol=2e-6, atol=1e-6
    )
    plain = ImageProcessor(do_resize=False, do_normalize=False)
    np.testing.assert_array_equal(plain(picture)[0], (picture / 255).astype(np.float32))
    unscaled = ImageProcessor(do_resize=False, do_rescale=False, image_mean=0.5, image_std=2)
    np.testing.assert_array_equal(unscaled(picture)[0], (picture.astype(np.float32) - 0.5) / 2)


def triangle(pixels, length):
    """Axis 0 resized by a triangle filter, widened where it shrinks, to the nearest level."""
    scale = max(len(pixels) / length, 1)
    centres = (np.arange(length) + 0.5) * len(pixels) / length
    distance = np.abs(np.arange(len(pixels)) + 0.5 - centres[:, None]) / scale
    weights = np.maximum(1 - distance, 0)
    weights /= weights.sum(1, keepdims=True)
    return np.rint(np.einsum("ij,jkc->ikc", weights, pixels))


@pytest.mark.parametrize("size", [(5, 31), (31, 5), (40, 12), (13, 17)])
def test_resizing_is_bilinear_with_antialiasing_to_height_and_width(size):
    picture = noise(13, 17, 3)
    ours = ImageProcessor(size=size).pixels(picture).astype(int)
    wide = triangle(picture.transpose(1, 0, 2), size[1]).transpose(1, 0, 2)
    assert np.abs(ours - triangle(wide, size[0])).max() <= 1


@pytest.mark.parametrize("number", range(6))
def test_the_number_chooses_pillows_filter(number):
    picture = Image.fromarray(noise(13, 17, 3))
    ours = ImageProcessor(size=(6, 9), resample=number).pixels(picture)
    np.testing.assert_array_equal(ours, picture.resize((9, 6), Image.Resampling(number)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((10, 20), (6, 12)),
        ((20, 10), (12, 6)),
        ((7, 7), (6, 6)),
        ((3, 4), (6, 8)),
        ((4, 9), (6, 13)),
    ],
)
def test_the_shortest_edge_keeps_the_shape(before, after):
    assert ImageProcessor(size={"shortest_edge": 6}).pixels(Image.new("L", before[::-1])).shape == (
        *after,
        3,
    )


@pytest.mark.parametrize("shape", [(8, 9), (9, 8), (5, 9), (9, 4), (3, 3), (7, 6), (4, 3)])
@pytest.mark.parametrize("crop", [(6, 6), (5, 7)])
def test_the_centre_is_cut_out_with_black_around_what_is_smaller(shape, crop):
    picture = noise(*shape, 3) | 1
    processor = ImageProcessor(do_resize=False, do_center_crop=True, crop_size=crop)
    ours = processor.pixels(Image.fromarray(picture))
    assert ours.shape == (*crop, 3)
    # By the index of each pixel: cut from floor((H - h) / 2), or put at ceil((h - H) / 2).
    for y in range(crop[0]):
        for x in range(crop[1]):
            source = (y + (shape[0] - crop[0]) // 2, x + (shape[1] - crop[1]) // 2)
            inside = 0 <= source[0] < shape[0] and 0 <= source[1] < shape[1]
            np.testing.assert_array_equal(ours[y, x], picture[source] if inside else 0)


def test_dinov2_resizes_the_shortest_edge_and_crops():
    processor = ImageProcessor.from_dict(
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 25},
         "crop_size": {"height": 14, "width": 28}}
    )  # fmt: skip
    assert processor(noise(50, 90, 3)).shape == (1, 14, 28, 3)
    whole = Image.fromarray(noise(50, 90, 3)).resize((45, 25), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(processor.pixels(noise(50, 90, 3)), np.asarray(whole)[5:19, 8:36])


# What goes in


def test_all_sources_of_one_picture_agree(tmp_path):
    picture = noise(6, 8, 3)
    data = encoded(Image.fromarray(picture))
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    sources = [str(path), path, data, bytearray(data), memoryview(data), io.BytesIO(data)]
    sources += [Image.fromarray(picture), picture, picture.transpose(2, 0, 1), picture[:, ::1]]
    sources += [(picture / 255).astype(kind) for kind in (np.float16, np.float32, np.float64)]
    for source in sources:
        np.testing.assert_array_equal(levels(source), picture)
    with path.open("rb") as file:
        np.testing.assert_array_equal(levels(file), picture)
        assert not file.closed
        np.testing.assert_array_equal(levels(file), picture)


def test_a_file_that_cannot_seek():
    class Pipe(io.RawIOBase):
        def __init__(self, data):
            self.data = io.BytesIO(data)

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.data.readinto(buffer)

    picture = noise(6, 8, 3)
    np.testing.assert_array_equal(levels(Pipe(encoded(Image.fromarray(picture)))), picture)


def test_channels_are_where_only_they_can_be():
    picture = noise(4, 5, 3)
    np.testing.assert_array_equal(levels(picture, input_data_format="channels_last"), picture)
    first = noise(3, 4, 5)
    np.testing.assert_array_equal(
        levels(first, input_data_format="channels_first"), first.transpose(1, 2, 0)
    )
    both = noise(3, 7, 3)
    refusal(both, "(3, 7, 3)", "input_data_format")
    np.testing.assert_array_equal(levels(both, input_data_format="channels_last"), both)
    np.testing.assert_array_equal(
        levels(both, input_data_format="channels_first"), both.transpose(1, 2, 0)
    )
    refusal(noise(7, 5, 6), "1, 3 or 4 channels")
    refusal(noise(7, 5, 3), "as the first axis", input_data_format="channels_first")
    refusal(noise(3, 7, 5), "as the last axis", input_data_format="channels_last")


def test_an_unknown_order_of_channels(without_type_checks):
    for option in ("data_format", "input_data_format"):
        with pytest.raises(ValueError, match=r"channels_first.*got 'NCHW'"):
            AS_IS(noise(4, 5, 3), **{option: "NCHW"})


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_in_any_order_of_memory(order):
    picture = np.array(noise(12, 10, 3)[::-2, 1::3], order=order)
    np.testing.assert_array_equal(levels(picture), noise(12, 10, 3)[::-2, 1::3])


def test_grey_is_repeated():
    grey = noise(5, 7)
    three = np.repeat(grey[..., None], 3, -1)
    for source in (grey, grey[..., None], grey[None], Image.fromarray(grey), grey / 255):
        np.testing.assert_array_equal(levels(source), three)


def test_a_model_of_grey_pictures():
    processor = ImageProcessor(do_resize=False, image_mean=[0.5], image_std=[0.25])
    grey, colour = noise(5, 7), noise(5, 7, 3)
    assert processor([grey, colour]).shape == (2, 5, 7, 1)
    np.testing.assert_array_equal(processor.pixels(grey)[..., 0], grey)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(processor.pixels(colour)[..., 0] - luma).max() < 0.51
    np.testing.assert_allclose(processor(grey)[0, ..., 0], (grey / 255 - 0.5) / 0.25, atol=1e-6)


def on_white(colour, alpha):
    alpha = alpha[..., None] / 255
    return np.rint(alpha * colour + (1 - alpha) * 255).astype(np.uint8)


def test_what_is_transparent_shows_white():
    rgba = noise(20, 30, 4)
    expected = on_white(rgba[..., :3], rgba[..., 3])
    for source in (rgba, rgba.transpose(2, 0, 1), Image.fromarray(rgba), rgba / 255):
        np.testing.assert_array_equal(levels(source), expected)
    for kind in ("PNG", "TIFF", "WEBP"):
        how = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        np.testing.assert_array_equal(levels(encoded(Image.fromarray(rgba), kind, **how)), expected)
    grey = Image.merge("LA", [Image.fromarray(rgba[..., 0]), Image.fromarray(rgba[..., 3])])
    expected = on_white(np.repeat(rgba[..., :1], 3, -1), rgba[..., 3])
    np.testing.assert_array_equal(levels(grey), expected)


def test_a_transparent_entry_of_a_palette_or_a_transparent_colour():
    index = noise(6, 7) % 4
    colours = noise(4, 3, seed=1)
    palette = Image.fromarray(index, "L").convert("P")
    palette.putdata(index.ravel())
    palette.putpalette(colours.tobytes())
    np.testing.assert_array_equal(levels(palette), colours[index])
    for alpha in (2, bytes([255, 255, 0, 255]), bytes([255, 99, 0, 255])):
        table = np.array([255, 255, 0, 255] if alpha == 2 else list(alpha))
        expected = on_white(colours[index], table[index])
        np.testing.assert_array_equal(levels(encoded(palette, transparency=alpha)), expected)
    table = np.array([255, 255, 0, 255])
    gif = encoded(palette, "GIF", transparency=2)
    np.testing.assert_array_equal(levels(gif), on_white(colours[index], table[index]))
    colour = Image.fromarray(colours[index])
    expected = on_white(colours[index], table[index])
    data = encoded(colour, transparency=tuple(map(int, colours[2])))
    np.testing.assert_array_equal(levels(data), expected)
    grey = encoded(Image.fromarray(index * 50), transparency=100)
    np.testing.assert_array_equal(levels(grey)[index == 2], 255)
    np.testing.assert_array_equal(levels(grey)[index == 3], 150)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    values = np.array([[0, 128, 129, 257], [385, 386, 32768, 65535]], np.uint16)
    expected = np.array([[0, 0, 1, 1], [1, 2, 128, 255]])
    picture = Image.fromarray(values)
    assert picture.mode == "I;16"
    data = b"P5 4 2 65535\n" + values.astype(">u2").tobytes()
    for source in (picture, data if kind == "PPM" else encoded(picture, kind)):
        for channel in range(3):
            np.testing.assert_array_equal(levels(source)[..., channel], expected)


def test_a_transparent_grey_of_sixteen_bits():
    picture = Image.fromarray(np.array([[0, 300, 40000]], np.uint16))
    data = encoded(picture)
    chunk = b"tRNS" + struct.pack(">H", 300)
    chunk = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    start = data.index(b"IDAT") - 4
    np.testing.assert_array_equal(
        levels(data[:start] + chunk + data[start:])[0, :, 0], [0, 255, 156]
    )


def test_floating_point_pictures_are_as_float_arrays():
    values = np.array([[0, 0.25, 0.5, 1]], np.float32)
    for source in (Image.fromarray(values), encoded(Image.fromarray(values), "TIFF")):
        np.testing.assert_array_equal(levels(source)[0, :, 0], [0, 64, 128, 255])
    refusal(Image.fromarray(values * 300), "from 0 to 300")


def test_one_bit_is_black_and_white():
    bits = noise(5, 9) > 100
    picture = Image.fromarray(bits)
    assert picture.mode == "1"
    for source in (picture, encoded(picture), encoded(picture, "TIFF", compression="group4")):
        np.testing.assert_array_equal(levels(source)[..., 1], bits * 255)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_colours_are_converted_as_pillow_does(mode):
    picture = Image.fromarray(noise(16, 8, 3)).convert(mode)
    np.testing.assert_array_equal(levels(picture), picture.convert("RGB"))
    if mode == "CMYK":
        data = encoded(picture, "JPEG")
        np.testing.assert_array_equal(levels(data), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("mode", ["LAB", "I", "RGBa", "La"])
def test_modes_without_a_rule_are_refused(mode):
    refusal(Image.new(mode, (3, 4)), f"mode {mode}", "convert it")


UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: x.transpose(1, 0, 2)[::-1],
    0: lambda x: x,
    9: lambda x: x,
}
"""By EXIF 2.3: where row 0 and column 0 of what is stored belong."""


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_are_turned_by_their_exif_orientation(kind, orientation):
    picture = noise(5, 7, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(picture), kind, exif=exif, **how)
    expected = UPRIGHT[orientation](picture)
    np.testing.assert_array_equal(levels(data), expected)
    with Image.open(io.BytesIO(data)) as opened:
        np.testing.assert_array_equal(levels(opened), expected)


def test_damaged_metadata_turn_nothing_and_warn_of_nothing():
    picture = Image.fromarray(noise(8, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = exif.tobytes()
    for end in range(7, len(whole)):
        assert levels(encoded(picture, exif=whole[:end])).shape == (8, 8, 3)
    for junk in (b"Exif\0\0", b"Exif\0\0MM", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\xff" * 40):
        np.testing.assert_array_equal(levels(encoded(picture, exif=junk)), picture)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several(kind):
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "lime", "blue")]
    how = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **how)
    np.testing.assert_array_equal(levels(data), frames[0])
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 3
        opened.seek(2)
        np.testing.assert_array_equal(levels(opened), frames[2])


# What is refused


def test_more_pixels_than_the_limit_are_an_error():
    processor = ImageProcessor(size=3, max_pixels=35)
    assert processor(encoded(Image.fromarray(noise(5, 7, 3)))).shape == (1, 3, 3, 3)
    data = encoded(Image.fromarray(noise(6, 6, 3)))
    refusal(data, "36 pixels", "max_pixels (35)", processor=processor)
    refusal(Image.new("L", (6, 6)), "36 pixels", processor=processor)


def header(width, height):
    """A PNG that says it is so large, and holds one row."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(b"\0" * 100),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


@pytest.mark.parametrize("size", [(9000, 9950), (12000, 12000), (60000, 60000), (2**31 - 1, 1)])
def test_decompression_bombs(size):
    refusal(header(*size), "limit" if size[0] > 12000 else "max_pixels")


def test_pillows_limit_does_not_warn_and_its_error_is_ours(monkeypatch):
    data = encoded(Image.fromarray(noise(6, 6, 3)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert levels(data).shape == (6, 6, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    refusal(data, "PIL.Image.MAX_IMAGE_PIXELS", "max_pixels")


def test_unusual_shapes():
    for shape in ((1, 5000), (5000, 1), (1, 1)):
        assert ImageProcessor(size=(4, 6))(noise(*shape)).shape == (1, 4, 6, 3)
    edge = ImageProcessor(size={"shortest_edge": 224})
    refusal(noise(1, 100_000), "100000 x 1", "22400000 x 224", processor=edge)


ARRAYS = {
    "zero rows": (np.zeros((0, 4, 3), np.uint8), "no pixels"),
    "zero columns": (np.zeros((4, 0, 3), np.uint8), "no pixels"),
    "zero channels": (np.zeros((4, 5, 0), np.uint8), "no pixels"),
    "a number": (np.array(3, np.uint8), "shape is ()"),
    "one axis": (np.zeros(4, np.uint8), "shape is (4,)"),
    "five axes": (np.zeros((1, 1, 4, 5, 3), np.uint8), "shape is (1, 1, 4, 5, 3)"),
    "two channels": (np.zeros((5, 6, 2), np.uint8), "1, 3 or 4 channels"),
    "NaN": (np.array([[0, np.nan, np.inf]]), "2 of its 3 values"),
    "above 1": (np.array([[0, 1.5]]), "from 0 to 1.5"),
    "below 0": (np.array([[-0.25, 1]], np.float32), "from -0.25 to 1"),
    "just above 1": (np.array([[np.nextafter(1, 2)]]), "numpy.clip"),
    "int64": (np.zeros((4, 5, 3), np.int64), "int64"),
    "uint16": (np.zeros((4, 5, 3), np.uint16), "uint16"),
    "bool": (np.zeros((4, 5, 3), bool), "bool"),
    "complex": (np.zeros((4, 5, 3), complex), "complex128"),
    "object": (np.zeros((4, 5, 3), object), "object"),
    "text": (np.full((4, 5, 3), "a"), "<U1"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_that_are_no_picture(case):
    array, words = ARRAYS[case]
    assert f"{array.dtype} array of shape {array.shape}" in refusal(array, words)


def test_files_that_are_no_picture(tmp_path):
    path = tmp_path / "there.png"
    refusal(path, str(path), "no such file")
    refusal(tmp_path, str(tmp_path), "is a directory")
    path.write_bytes(b"")
    refusal(path, "there.png: is empty")
    path.write_text("not a picture")
    refusal(path, "there.png: is damaged, or no picture", "BMP, GIF, JPEG")
    with path.open() as file:
        refusal(file, "there.png: is open as text", "rb")
    refusal(file, "cannot be read", "closed")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    refusal(pipe, "no ordinary file")
    refusal("a\0b", "cannot be opened")
    refusal("https://example.org/cat.png", "download the file")
    refusal(b"", "is empty")
    refusal(b"\x89PNG\r\n\x1a\n", "damaged")
    refusal(path / "under a file", "cannot be opened")
    refusal(Image.new("RGB", (0, 4)), "has no pixels")


def test_what_is_no_source():
    for source in (3, None, {"a": 1}, object(), lambda: 3):
        refusal(source, "is no picture; give a path")
    refusal([], "no image in the list")
    refusal(np.zeros((0, 4, 5, 3), np.uint8), "no image in the list")


def test_only_the_formats_named_are_decoded(tmp_path):
    for kind in ("EPS", "ICO", "PCX", "TGA", "PDF"):
        refusal(encoded(Image.new("RGB", (16, 16)), kind), "formats")


def test_a_file_whose_end_is_missing_is_refused():
    for kind in ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF"):
        data = encoded(Image.fromarray(noise(30, 40, 3)), kind)
        refusal(data[: len(data) // 2], "damaged")


def test_a_batch_lists_all_that_cannot_be_used(tmp_path):
    good = noise(5, 6, 3)
    text = refusal([tmp_path / "a.png", good, b"junk", np.zeros((2, 2), int)], "3 of 4 images")
    assert [line[:12] for line in text.splitlines()[1:]] == [
        "  - image 0,", "  - image 2,", "  - image 3,",
    ]  # fmt: skip
    assert "a.png: there is no such file" in text
    with pytest.raises(InvalidImage) as found:
        AS_IS([good, b"junk"])
    again = pickle.loads(pickle.dumps(found.value))
    assert (str(again), again.problems) == (str(found.value), found.value.problems)
    assert len(again.problems) == 1


def test_pictures_of_several_sizes_make_no_batch():
    text = refusal([noise(5, 6, 3), noise(5, 6, 3), noise(6, 5, 3)], "5 x 6 (image 0", "6 x 5")
    assert "image 1" not in text


# Damage


def files():
    """Small pictures of all formats and ways to write them."""
    colour, grey = Image.fromarray(noise(19, 23, 3)), Image.fromarray(noise(19, 23))
    alpha, deep = Image.fromarray(noise(19, 23, 4)), Image.fromarray(noise(19, 46).view(np.uint16))
    smooth = Image.linear_gradient("L").resize((23, 19)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    frames = {"save_all": True, "append_images": [colour, grey.convert("RGB")]}
    return (
        encoded(smooth), encoded(alpha), encoded(deep), encoded(grey.convert("1")),
        encoded(colour.quantize(9), transparency=3), encoded(smooth, exif=exif),
        encoded(smooth, **frames), encoded(smooth, "JPEG", exif=exif),
        encoded(smooth, "JPEG", progressive=True), encoded(grey, "JPEG"),
        encoded(smooth.convert("CMYK"), "JPEG"),
        encoded(smooth, "GIF"), encoded(smooth, "GIF", **frames), encoded(smooth, "BMP"),
        encoded(smooth, "PPM"), encoded(smooth, "WEBP", exif=exif),
        encoded(alpha, "WEBP", lossless=True), encoded(smooth, "WEBP", **frames),
        encoded(smooth, "TIFF", exif=exif), encoded(deep, "TIFF"),
        encoded(smooth, "TIFF", compression="tiff_lzw"),
        encoded(smooth, "TIFF", compression="tiff_deflate"),
        encoded(grey.convert("1"), "TIFF", compression="group4"),
        encoded(smooth, "TIFF", compression="jpeg"), encoded(smooth, "TIFF", **frames),
        # Of copies: it leaves its encoder's settings on the frames.
        encoded(smooth.copy(), "MPO", save_all=True, append_images=[colour.copy()]),
    )  # fmt: skip


def damaged(data, rng):
    """The file, shortened, or with bits, bytes or a whole stretch of it changed."""
    kind = rng.integers(5)
    if kind == 0:
        return data[: rng.integers(len(data))]
    changed = bytearray(data)
    # Headers are where most can go wrong.
    within = min(len(data), 200) if rng.random() < 0.6 else len(data)
    if kind == 4:
        start = rng.integers(within)
        del changed[start : start + rng.integers(1, 30)]
        return bytes(changed)
    for place in rng.integers(within, size=rng.integers(1, 4)):
        if kind == 3:
            changed[place] = rng.choice([0, 1, 127, 128, 255])
        else:
            changed[place] ^= 1 << rng.integers(8)
    return bytes(changed)


def test_a_damaged_file_is_a_picture_or_our_error():
    rng = fresh_rng()
    processor = ImageProcessor(size=(8, 9), max_pixels=10**6)
    read = refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in files():
            processor(data)
            for _ in range(60):
                changed = damaged(data, rng)
                try:
                    assert processor(changed).shape == (1, 8, 9, 3)
                    read += 1
                except InvalidImage:
                    refused += 1
                except BaseException as error:
                    error.add_note(f"for the file {bytes(changed)!r}")
                    raise
    assert min(read, refused) > 200


def test_threads_share_the_filter_and_the_last_puts_the_old_ones_back():
    picture = Image.fromarray(noise(40, 40, 3))
    data = encoded(
        picture, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\x12\x01\x02\0\xff\xff\0\0" * 4
    )
    before = list(warnings.filters)
    errors = []

    def read():
        try:
            for _ in range(40):
                read_picture(data)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(warnings.filters) == before


def test_filters_of_another_thread_are_not_put_back():
    before = list(warnings.filters)
    another, reading = warnings.catch_warnings(), without_warnings()
    another.__enter__()
    warnings.simplefilter("ignore")
    reading.__enter__()
    another.__exit__(None, None, None)
    reading.__exit__(None, None, None)
    assert list(warnings.filters) == before
    another, reading = warnings.catch_warnings(), without_warnings()
    reading.__enter__()
    another.__enter__()
    reading.__exit__(None, None, None)
    another.__exit__(None, None, None)
    assert set(warnings.filters) - set(before) <= {FILTER}
    warnings.filters[:] = before


# preprocessor_config.json

SIDES = st.integers(1, 400)
MOMENTS = st.floats(0.01, 2)


@st.composite
def fields(draw):
    """What makes an `ImageProcessor`."""
    pair = st.fixed_dictionaries({"height": SIDES, "width": SIDES})
    length = draw(st.sampled_from([1, 3]))
    return {
        "do_resize": draw(st.booleans()),
        "size": draw(st.one_of(pair, st.fixed_dictionaries({"shortest_edge": SIDES}))),
        "resample": draw(st.integers(0, 5)),
        "do_center_crop": draw(st.booleans()),
        "crop_size": draw(pair),
        "do_rescale": draw(st.booleans()),
        "rescale_factor": draw(st.floats(1e-3, 10) | st.integers(1, 2)),
        "do_normalize": draw(st.booleans()),
        "image_mean": draw(st.tuples(*[MOMENTS] * length)),
        "image_std": draw(st.tuples(*[MOMENTS] * length)),
        "do_convert_rgb": length == 3 and draw(st.booleans()),
        "image_processor_type": draw(st.sampled_from(["ViT", "DeiT", "Bit"])) + "ImageProcessor",
    }


@given(fields())
def test_what_is_written_is_read_again(fields):
    processor = ImageProcessor(**fields)
    assert {name: getattr(processor, name) for name in fields} == fields
    assert ImageProcessor.from_dict(json.loads(json.dumps(processor.to_dict()))) == processor


def test_the_file_is_written_and_read(tmp_path):
    processor = ImageProcessor(size=(28, 56), image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path / "new" / "model")
    path = tmp_path / "new" / "model" / "preprocessor_config.json"
    assert ImageProcessor.from_pretrained(path) == processor
    assert ImageProcessor.from_pretrained(str(path.parent)) == processor
    assert ImageProcessor.from_pretrained(path, max_pixels=9).max_pixels == 9
    assert json.loads(path.read_text()) == {
        "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.1, 0.2, 0.3], "image_processor_type": "ViTImageProcessor",
        "image_std": [0.5, 0.5, 0.5], "resample": 2, "rescale_factor": 0.00392156862745098,
        "size": {"height": 28, "width": 56},
    }  # fmt: skip


def test_the_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    ImageProcessor().save_pretrained(tmp_path)

    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no space left"):
        ImageProcessor(size=3).save_pretrained(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["preprocessor_config.json"]
    assert ImageProcessor.from_pretrained(tmp_path) == ImageProcessor()


OLD = {
    "google/vit of 2021": (
        {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
         "size": 224},
        ImageProcessor(),
    ),
    "a feature extractor": (
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 384, "resample": 3},
        ImageProcessor(size=384, resample=3),
    ),
    "a list": ({"size": [32, 48]}, ImageProcessor(size=(32, 48))),
    "a fast processor, with nulls": (
        {"image_processor_type": "ViTImageProcessorFast", "crop_size": None, "do_pad": None,
         "do_center_crop": None, "data_format": "channels_first", "default_to_square": True,
         "device": None, "return_tensors": None, "size": {"height": 9, "width": 8}},
        ImageProcessor(size=(9, 8)),
    ),
    "DeiT with numbers": (
        {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224,
         "do_center_crop": True, "resample": 3},
        ImageProcessor(image_processor_type="DeiTImageProcessor", size=256, crop_size=224,
                       do_center_crop=True, resample=3),
    ),
    "a number is BiT's shortest edge": (
        {"image_processor_type": "BitImageProcessor", "size": 256, "image_mean": 0.5,
         "image_std": 0.5},
        ImageProcessor(image_processor_type="BitImageProcessor", size={"shortest_edge": 256},
                       crop_size=224, do_center_crop=True, resample=3, do_convert_rgb=True),
    ),
    "unless it says otherwise": (
        {"image_processor_type": "BitImageProcessor", "size": 256, "default_to_square": True,
         "image_mean": 0.5, "image_std": 0.5, "do_center_crop": False, "do_convert_rgb": False},
        ImageProcessor(image_processor_type="BitImageProcessor", size=256, crop_size=224,
                       resample=3),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "size", "resample", "mean", "std"),
    [
        ("ViT", {"height": 224, "width": 224}, 2, (0.5,) * 3, (0.5,) * 3),
        ("DeiT", {"height": 256, "width": 256}, 3, (0.5,) * 3, (0.5,) * 3),
        ("Bit", {"shortest_edge": 224}, 3, (0.48145466, 0.4578275, 0.40821073),
         (0.26862954, 0.26130258, 0.27577711)),
    ],
)  # fmt: skip
def test_what_a_file_lacks_is_as_transformers_has_it(kind, size, resample, mean, std):
    crop = None if kind == "ViT" else {"height": 224, "width": 224}
    found = ImageProcessor.from_dict({"image_processor_type": f"{kind}ImageProcessor"})
    assert (found.size, found.resample, found.image_mean, found.image_std, found.crop_size) == (
        size, resample, mean, std, crop,
    )  # fmt: skip
    assert (found.do_resize, found.do_rescale, found.do_normalize) == (True, True, True)
    assert (found.do_center_crop, found.do_convert_rgb) == (kind != "ViT", kind == "Bit")
    assert found.rescale_factor == 1 / 255


@pytest.mark.parametrize("form", OLD)
def test_old_forms_are_read(form):
    data, expected = OLD[form]
    assert ImageProcessor.from_dict(data) == expected
    assert ImageProcessor.from_dict(expected.to_dict()) == expected


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("vit", "ViT"),
        ("dinov2", "Bit"),
        ("dinov2_with_registers", "Bit"),
        ("deit", "DeiT"),
        (3, "ViT"),
    ],
)
def test_a_file_without_a_type_takes_that_of_its_model(tmp_path, model, kind):
    (tmp_path / "preprocessor_config.json").write_text("{}")
    assert ImageProcessor.from_pretrained(tmp_path) == ImageProcessor()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))
    found = ImageProcessor.from_pretrained(tmp_path)
    assert found == ImageProcessor.from_dict({"image_processor_type": f"{kind}ImageProcessor"})
    (tmp_path / "preprocessor_config.json").write_text(
        '{"feature_extractor_type": "ViTFeatureExtractor"}'
    )
    assert ImageProcessor.from_pretrained(tmp_path) == ImageProcessor()


WRONG = {
    "image_processor_type": ["CLIPImageProcessor", "ViT", 3, ["ViTImageProcessor"], True],
    "size": [0, -3, 2.5, True, "224", [1], [1, 2, 3], {"height": 3}, {"longest_edge": 3}, 70000,
             {"height": 3, "width": 0}, {"height": 3, "width": 4, "shortest_edge": 5},
             {"shortest_edge": 5, "longest_edge": 9}, {"height": True, "width": 4}, [3, None]],
    "crop_size": [0, {"shortest_edge": 3}, "x", {"height": 3, "width": 2.0}],
    "resample": [-1, 6, 2.0, "bilinear", True, [2]],
    "rescale_factor": [0, -1, "1/255", float("nan"), float("inf"), True, 10**400, [1]],
    "image_mean": [[1, 2], [], ["a"] * 3, [float("nan")] * 3, "x", [1, 2, 3, 4], True, {"r": 1}],
    "image_std": [0, [1, 0, 1], [-1] * 3, [1e39] * 3, [1, None, 1]],
    "do_resize": [1, "true", 0.0, []],
    "do_center_crop": [1, "no"],
    "do_rescale": [1],
    "do_normalize": ["false"],
    "do_convert_rgb": [2],
    "do_pad": [True, 1, "x"],
    "do_flip_channel_order": [True],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
def test_wrong_values_are_refused_by_name(key, value):
    with pytest.raises(NotWellFormed) as found:
        ImageProcessor.from_dict({key: value})
    assert all(one.startswith(key) for one in found.value.violations)
    assert repr(value) in str(found.value)


def test_all_that_is_wrong_is_listed(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({key: values[0] for key, values in WRONG.items()}))
    with pytest.raises(NotWellFormed) as found:
        ImageProcessor.from_pretrained(tmp_path)
    named = {one.split(":")[0] for one in found.value.violations}
    assert named == set(WRONG)
    assert str(path) in str(found.value)


def test_moments_must_go_together():
    with pytest.raises(NotWellFormed, match="have 1 and 3 channels"):
        ImageProcessor(image_mean=[0.5])
    with pytest.raises(NotWellFormed, match="do_convert_rgb: image_mean has one channel"):
        ImageProcessor(image_mean=[0.5], image_std=[0.5], do_convert_rgb=True)
    with pytest.raises(NotWellFormed, match="overflow float32"):
        ImageProcessor(rescale_factor=1e37)
    with pytest.raises(NotWellFormed, match="overflow float32"):
        ImageProcessor(image_std=[1e-46] * 3)
    with pytest.raises(NotWellFormed, match="crop_size: do_center_crop needs it"):
        ImageProcessor(do_center_crop=True)
    with pytest.raises(NotWellFormed, match="max_pixels"):
        ImageProcessor(max_pixels=0)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', "[" * 100_000, "\udcff"])
def test_a_file_that_is_no_json_object(tmp_path, text):
    path = tmp_path / "preprocessor_config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(NotWellFormed, match=r"preprocessor_config\.json"):
        ImageProcessor.from_pretrained(tmp_path)


def test_no_file_at_all(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "x.json"):
        with pytest.raises(FileNotFoundError, match="name a directory"):
            ImageProcessor.from_pretrained(path)


def test_processors_do_not_share_their_sizes():
    one = ImageProcessor()
    one.size["height"] = 3
    one.to_dict()["size"]["width"] = 4
    assert ImageProcessor().size == {"height": 224, "width": 224} != one.size
    assert one.size["width"] == 224
    assert ImageProcessor.from_dict({}).size["height"] == 224
    assert ImageProcessor().max_pixels == MAX_PIXELS
