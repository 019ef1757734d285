"""Images against transformers' processors on Pillow: the same pixels, bit for bit, and one file."""

import json

import numpy as np
import pytest
from PIL import Image

from support.fresh import fresh_rng
from vitfast.images import ImageProcessor
from vitspec.testing.photograph import PHOTOGRAPH

pytest.importorskip("transformers")
pil_bit = pytest.importorskip("transformers.models.bit.image_processing_pil_bit")
pil_deit = pytest.importorskip("transformers.models.deit.image_processing_pil_deit")
pil_vit = pytest.importorskip("transformers.models.vit.image_processing_pil_vit")

THEIRS = {
    "ViT": pil_vit.ViTImageProcessorPil,
    "DeiT": pil_deit.DeiTImageProcessorPil,
    "Bit": pil_bit.BitImageProcessorPil,
}
DINOV2 = {
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
"""What DINOv2's checkpoints say where BiT's default is another."""


def ours(kind, **changes):
    return ImageProcessor.from_dict({"image_processor_type": f"{kind}ImageProcessor"} | changes)


def assert_same(kind, pictures, **changes):
    """Both processors give the same bits for every picture."""
    processor, peer = ours(kind, **changes), THEIRS[kind](**changes)
    for picture in pictures:
        theirs = peer(picture, return_tensors="np")["pixel_values"]
        found = processor(picture, data_format="channels_first")
        assert found.dtype == theirs.dtype == np.float32
        np.testing.assert_array_equal(found, theirs)


@pytest.fixture(scope="module")
def photograph():
    with Image.open(PHOTOGRAPH) as picture:
        return picture.convert("RGB")


@pytest.fixture(scope="module")
def pictures(photograph):
    """The photograph, whole, small, large, and cut to odd shapes; and noise."""
    rng = fresh_rng()
    sizes = [(225, 223), (31, 300), (300, 31), (256, 256), (1, 9), (700, 150), (5, 3)]
    found = [photograph, photograph.resize((640, 427)), photograph.crop((3, 50, 120, 220))]
    return found + [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]


@pytest.mark.parametrize("kind", THEIRS)
def test_with_the_defaults(kind, pictures):
    assert_same(kind, pictures)


def test_as_dinov2_has_it(pictures):
    assert_same("Bit", pictures, **DINOV2)


@pytest.mark.parametrize("resample", range(6))
def test_every_filter(resample, pictures):
    assert_same("ViT", pictures[:5], resample=resample, size={"height": 77, "width": 130})
    assert_same("Bit", pictures[:5], **DINOV2 | {"resample": resample})


@pytest.mark.parametrize("crop", [(224, 224), (97, 301), (301, 97), (400, 400), (33, 34)])
def test_every_crop(crop, pictures):
    crop = {"height": crop[0], "width": crop[1]}
    assert_same("Bit", pictures, crop_size=crop)
    for picture in pictures:
        assert_same("DeiT", [picture], crop_size=crop, do_resize=False)


@pytest.mark.parametrize("off", ["do_resize", "do_rescale", "do_normalize", "do_center_crop"])
def test_each_step_left_out(off, pictures):
    for kind in ("ViT", "Bit"):
        for picture in pictures:
            assert_same(kind, [picture], **{off: False})


def test_numbers_of_one_s_own(pictures):
    rng = fresh_rng()
    for _ in range(5):
        assert_same(
            "ViT", pictures[:4], rescale_factor=float(rng.uniform(1e-3, 2)),
            image_mean=rng.uniform(-1, 2, 3).tolist(), image_std=rng.uniform(0.1, 3, 3).tolist(),
            size={"height": int(rng.integers(1, 300)), "width": int(rng.integers(1, 300))},
        )  # fmt: skip


def test_arrays(pictures):
    arrays = [np.asarray(picture) for picture in pictures if min(picture.size) > 4]
    for kind in THEIRS:
        assert_same(kind, arrays)
        assert_same(kind, [array.transpose(2, 0, 1) for array in arrays])


def test_arrays_of_floats(pictures):
    """They rescale these a second time unless told not to; we know 0 to 1 by the scalar type."""
    for picture in pictures[:5]:
        array = np.asarray(picture) / 255
        for kind in THEIRS:
            theirs = THEIRS[kind](do_rescale=False)(array, return_tensors="np")["pixel_values"]
            np.testing.assert_array_equal(
                ours(kind)(array, data_format="channels_first"), theirs.astype(np.float32)
            )


def modes(photograph):
    """The photograph in other modes, with and without transparency."""
    small = photograph.crop((0, 60, 150, 200))
    alpha = Image.linear_gradient("L").resize(small.size)
    transparent = small.copy()
    transparent.putalpha(alpha)
    palette = small.quantize(40)
    keyed = palette.copy()
    keyed.info["transparency"] = 7
    table = palette.copy()
    table.info["transparency"] = bytes(range(0, 240, 6))
    grey = small.convert("L")
    key = grey.copy()
    key.info["transparency"] = grey.getpixel((5, 5))
    colour = small.copy()
    colour.info["transparency"] = small.getpixel((5, 5))
    return [small.convert(mode) for mode in ("L", "1", "CMYK", "YCbCr", "HSV", "RGBX")] + [
        transparent, transparent.convert("LA"), transparent.convert("PA"), palette, keyed, table,
        key, colour,
    ]  # fmt: skip


def test_every_mode_that_they_convert(photograph):
    pictures = modes(photograph)
    assert_same("Bit", pictures, **DINOV2)
    assert_same("Bit", [np.asarray(pictures[6]), np.asarray(pictures[0])[..., None]], **DINOV2)
    assert_same("ViT", pictures, do_convert_rgb=True)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("ViT", {}), ("DeiT", {}), ("Bit", {}), ("Bit", DINOV2), ("Bit", {"do_center_crop": False}),
     ("ViT", {"do_normalize": False, "size": {"height": 9, "width": 7}})],
)  # fmt: skip
def test_one_file_for_both(kind, changes, tmp_path):
    processor, peer = ours(kind, **changes), THEIRS[kind](**changes)
    peer.save_pretrained(tmp_path / "theirs")
    assert ImageProcessor.from_pretrained(tmp_path / "theirs") == processor
    processor.save_pretrained(tmp_path / "ours")
    assert THEIRS[kind].from_pretrained(tmp_path / "ours").to_dict() == peer.to_dict()
    name = "preprocessor_config.json"
    both = [json.loads((tmp_path / one / name).read_text()) for one in ("ours", "theirs")]
    assert both[0] == both[1]
