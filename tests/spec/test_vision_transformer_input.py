"""Bad input to the practical model: one clear error, before any pixel is looked at."""

from dataclasses import replace

import numpy as np
import pytest

from support.practical import EVERYTHING, OPTIONS, Example, small
from vitspec import InvalidArray, InvalidParameters
from vitspec.models import vision_transformer as module
from vitspec.models.block import BlockFactors
from vitspec.models.heads import pixel_shuffle
from vitspec.models.vision_transformer import PLAIN, Conditions, VisionTransformer

EXAMPLE = Example(small(mask_token=True, pooler_dim=3, decoder_stride=2))
MODEL, IMAGE = EXAMPLE.model(), EXAMPLE.image()  # (2, 7, 14): 2 x 3 patches, 7 rows, width 6


@pytest.fixture(autouse=True)
def _no_work(monkeypatch):
    """Whoever looks at the patches has begun to work."""

    def refuse(*_):
        raise AssertionError("worked before checking")

    for name in ("patch_embedding", "patch_embedding_jvp", "patch_embedding_backward"):
        monkeypatch.setattr(module, name, refuse)


def every_call(image=IMAGE, conditions=PLAIN):
    return [
        lambda: MODEL.forward(image, conditions),
        lambda: MODEL.trace(image, conditions),
        lambda: MODEL.embed(image, conditions),
        lambda: MODEL.backward(image, np.ones(4), conditions=conditions),
        lambda: MODEL.jvp(image, MODEL, IMAGE, conditions),
    ]


def nan(image):
    image = image.copy()
    image[1, 2, 3] = np.nan
    return image


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE.tolist(), "image: .*got list; pass a NumPy array"),
        (IMAGE[0], r"image: expected shape \(2, 7, 14\) .*got shape \(7, 14\)"),
        (IMAGE[None], r"image: .*got shape \(1, 2, 7, 14\)"),
        (IMAGE[:1], r"image: .*got shape \(1, 7, 14\)"),
        (IMAGE.transpose(1, 2, 0), "image: .*channels last: transpose it"),
        (IMAGE[:, :-1], r"image: .*got \(2, 6, 14\); Conditions\(interpolate_positions=True\)"),
        (IMAGE.astype(np.float32), "image: .*got float32; convert image or the model"),
        ((IMAGE * 255).astype(np.uint8), "image: .*got uint8"),
        (nan(IMAGE), "image: expected finite numbers, got NaN"),
        (IMAGE * np.inf, "image: expected finite numbers, got NaN or infinity"),
    ],
)
def test_an_image_that_does_not_fit(image, message):
    for call in every_call(image):
        with pytest.raises(InvalidArray, match=message):
            call()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 2, 14), "room for a patch of 3 x 4, got an image of 2 x 14"),
        ((2, 7, 3), "room for a patch of 3 x 4, got an image of 7 x 3"),
        ((3, 7, 14), r"image: expected shape \(2, 7, 14\)"),
        ((7, 14), r"image: expected shape \(2, 7, 14\)"),
    ],
)
def test_an_image_that_does_not_fit_when_positions_are_interpolated(shape, message):
    for call in every_call(np.ones(shape), Conditions(interpolate_positions=True)):
        with pytest.raises(InvalidArray, match=message):
            call()


F, MASK = BlockFactors, np.ones(6, bool)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"masked_patches": MASK}, "conditions: expected Conditions, got dict"),
        (Conditions(masked_patches=np.ones(7, bool)), r"masked_patches: .* shape \(6,\), got bool"),
        (Conditions(masked_patches=np.ones(6)), "masked_patches: expected Booleans .*got float64"),
        (Conditions(masked_patches=[True] * 6), "masked_patches: expected Booleans .*got list"),
        (Conditions(attention_mask=np.ones((6, 6), bool)), r"attention_mask: .*shape \(7, 7\)"),
        (Conditions(attention_mask=np.ones((7, 7), int)), "attention_mask: .*got int64"),
        (Conditions(embedding_factors=np.ones((6, 6))), r"embedding_factors: .*shape \(7, 6\)"),
        (Conditions(embedding_factors=np.ones((7, 6), np.float32)), "embedding_factors: .*float32"),
        (Conditions(embedding_factors=np.full((7, 6), np.inf)), "embedding_factors: .*finite"),
        (
            Conditions(block_factors=(F(),)),
            "block_factors: expected one for each of 2 blocks, got 1",
        ),
        (Conditions(block_factors=(F(), None)), r"block_factors\[1\]: .*got NoneType"),
        *(
            (Conditions(block_factors=(F(), factors)), rf"block_factors\[1\].{name}: {problem}")
            for name, factors, problem in [
                ("attention_weights", F(attention_weights=np.ones((3, 1, 1))), r".*\(2, 7, 7\)"),
                ("attention_weights", F(attention_weights=np.ones((2, 6, 6))), r".*\(2, 7, 7\)"),
                ("attention", F(attention=np.ones((7, 5))), r".*\(7, 6\)"),
                ("hidden", F(hidden=np.ones((7, 6))), r".*\(7, 5\)"),
                ("hidden", F(hidden=np.ones((7, 5), np.float32)), ".*got float32"),
                ("mlp", F(mlp=np.ones((6, 1))), r".*\(7, 6\)"),
                ("mlp", F(mlp=np.full((1, 1), np.nan)), ".*finite"),
            ]
        ),
    ],
)
def test_conditions_that_do_not_fit(conditions, message):
    for call in every_call(conditions=conditions):
        with pytest.raises(InvalidArray, match=message):
            call()


def test_masked_patches_need_a_mask_token():
    example = OPTIONS["defaults"]
    with pytest.raises(InvalidArray, match="this model has no mask token"):
        example.model().forward(example.image(), Conditions(masked_patches=MASK))


@pytest.mark.parametrize(
    ("cotangent", "message"),
    [
        ({"d_logits": np.ones(5)}, r"d_logits: expected shape \(4,\)"),
        ({"d_logits": np.ones(4, np.float32)}, "d_logits: .*got float32"),
        ({"d_logits": [1, 2, 3, 4]}, "d_logits: .*got list"),
        ({"d_logits": np.full(4, np.nan)}, "d_logits: expected finite"),
        ({"d_last_hidden_state": np.ones((6, 6))}, r"d_last_hidden_state: expected shape \(7, 6\)"),
        ({"d_pooler_output": np.ones(6)}, r"d_pooler_output: expected shape \(3,\)"),
        ({"d_reconstruction": np.ones((2, 7, 14))}, r"d_reconstruction: .*\(2, 4, 6\)"),
    ],
)
def test_cotangents_that_do_not_fit(cotangent, message):
    with pytest.raises(InvalidArray, match=message):
        MODEL.backward(IMAGE, **cotangent)


@pytest.mark.parametrize("name", ["logits", "pooler_output", "reconstruction"])
def test_cotangents_of_what_the_model_does_not_have(name):
    example = OPTIONS["bare"]
    with pytest.raises(InvalidArray, match=f"d_{name}: this model has no {name}"):
        example.model().backward(example.image(), **{f"d_{name}": np.ones(4)})


@pytest.mark.parametrize(
    ("tangent", "message"),
    [
        (None, "expected a VisionTransformer of the same configuration"),
        (OPTIONS["defaults"].model(), "expected a VisionTransformer of the same configuration"),
        (MODEL.astype(np.float32), "expected scalar type float64, got float32"),
    ],
)
def test_tangents_that_do_not_fit(tangent, message):
    with pytest.raises(InvalidParameters, match=message):
        MODEL.jvp(IMAGE, tangent, IMAGE)


@pytest.mark.parametrize("d_image", [IMAGE[:, 1:], IMAGE.astype(np.float32), None, nan(IMAGE)])
def test_the_tangent_of_the_image_is_as_the_image(d_image):
    for conditions in (PLAIN, Conditions(interpolate_positions=True)):
        with pytest.raises(InvalidArray, match="d_image: expected"):
            MODEL.jvp(IMAGE, MODEL, d_image, conditions)


def test_parameters_that_do_not_fit_are_all_listed():
    flat = EVERYTHING.model().to_flat()
    del flat["cls_token"]
    flat["extra"] = np.ones(3)
    flat["mask_token"] = np.ones(7)
    flat["pos_enc.pos"] = flat["pos_enc.pos"].astype(np.float32)
    flat["head.bias"] = [0.0] * 4
    with pytest.raises(InvalidParameters) as raised:
        VisionTransformer.from_flat(EVERYTHING.config, flat)
    text = " ".join(raised.value.problems)
    for part in ("cls_token: missing", "extra: unexpected", "mask_token: expected shape (6,)",
                 "head.bias: expected a NumPy array", "mix the scalar types"):  # fmt: skip
        assert part in text
    options = replace(EVERYTHING.config, layer_scale=False, qkv_bias=False)
    with pytest.raises(InvalidParameters) as raised:
        VisionTransformer.from_flat(options, EVERYTHING.model().to_flat())
    assert (
        len(raised.value.problems) == 2 * 5
    )  # for each of two blocks, two scales and three biases


@pytest.mark.parametrize(("shape", "grid"), [((5, 8), (2, 3)), ((6, 7), (2, 3))])
def test_pixels_are_shuffled_from_whole_patches(shape, grid):
    with pytest.raises(InvalidArray, match="expected 6 rows of a multiple of 4 columns"):
        pixel_shuffle(np.ones(shape), grid, 2)
