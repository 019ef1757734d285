"""The textbooks' ViTs by their own hyperparameters: the specification's values and gradients."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from support.compare import assert_close, assert_flat_close
from support.fresh import fresh_rng
from vitfast import D2LViT, to_flat, vit_forward
from vitfast.convert import fill
from vitfast.implementation import compiled, logits_and_vjp
from vitfast.textbooks import nnx_tutorial_vit
from vitspec import InvalidArray, NotWellFormed
from vitspec.models.vision_transformer import VisionTransformer as Spec
from vitspec.presets import d2l_config, preset
from vitspec.testing.adapters.peers.textbooks import nnx_tutorial_module
from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig

TOLERANCE = 1e-12

TUTORIAL = {
    "patch_size": 3, "d_model": 12, "num_heads": 3, "d_ff": 10, "num_layers": 2, "num_classes": 5,
}  # fmt: skip
"""No two sizes are equal; images of 7 x 10 leave pixels over."""

D2L = ((8, 12), (4, 3), 12, 10, 3, 2, 0.25, 0.5)


def assert_it_is_the_specification(model, image, rng):
    """Logits, and every gradient, of one image."""
    cotangent = rng.standard_normal((1, model.config.num_classes))
    program = compiled(logits_and_vjp, quick=True)
    logits, (d_model, d_images) = program(model, image[None], cotangent)
    flat = {name: np.array(leaf) for name, leaf in to_flat(model).items()}
    spec, channels_first = Spec.from_flat(model.config, flat), image.transpose(2, 0, 1).copy()
    assert_close(logits[0], spec.forward(channels_first).logits, TOLERANCE, "logits")
    grads, d_image = spec.backward(channels_first, d_logits=cotangent[0])
    assert_close(d_images[0].transpose(2, 0, 1), d_image, TOLERANCE, "d_image")
    found, expected = to_flat(d_model), grads.to_flat()
    for name in [name for name in expected if name.endswith(".bk")]:
        scale = np.abs(expected[name[:-1] + "q"]).max()  # softmax ignores a key's bias
        assert np.abs(found.pop(name)).max() <= TOLERANCE * scale
        del expected[name]
    assert_flat_close(found, expected, TOLERANCE)
    return np.asarray(logits[0])


def test_vit_forward_is_the_specification_and_has_the_numbers_of_the_tutorials_modules():
    """The tutorial's are modules of Flax, made in its order from the same seed."""
    rng = fresh_rng()
    seed, image = int(rng.integers(2**31)), rng.standard_normal((7, 10, 2))
    with jax.enable_x64(True):
        model = nnx_tutorial_vit(seed, image.shape, **TUTORIAL, dtype="float64")
        logits = assert_it_is_the_specification(model, image, rng)
        one = vit_forward(seed, image, **TUTORIAL)
        assert one.shape == (5,)
        assert_close(one, logits, TOLERANCE)
        assert_close(vit_forward(seed, image[None], **TUTORIAL)[0], logits, TOLERANCE)
        assert np.abs(vit_forward(seed + 1, image, **TUTORIAL) - one).max() > 0.01
        module = nnx_tutorial_module(model.config, 2, 7, 10, seed=seed, param_dtype="float64")
        assert_close(logits, module(image[None])[0], TOLERANCE)


def test_vit_forward_is_a_pure_function_that_jax_can_transform():
    """Traced only: what it computes is compared above."""

    def loss(image):
        return vit_forward(3, image, **TUTORIAL)[0]

    images = jax.ShapeDtypeStruct((2, 7, 10, 2), np.float32)
    values, gradients = jax.eval_shape(jax.jit(jax.vmap(jax.value_and_grad(loss))), images)
    assert (values.shape, gradients.shape) == ((2,), images.shape)


def test_d2l_is_the_specification_with_the_books_hyperparameters():
    rng = fresh_rng()
    config = d2l_config(*D2L, num_classes=7, in_channels=2)
    model = D2LViT(*D2L, 0.3, num_classes=7, in_channels=2, param_dtype="float64", rngs=None)
    with jax.enable_x64(True):
        model = fill(model, Spec.init(config, rng=rng).to_flat())
        assert_it_is_the_specification(model, rng.standard_normal((8, 12, 2)), rng)
    assert model.lr == 0.3
    assert model.config == config
    assert not [name for name in model.parameter_shapes() if name.endswith(("bq", "bo"))]
    biased = D2LViT(*D2L, 0.3, True, 7, rngs=None)
    assert {
        "encoder.layers.1.mha.bq",
        "encoder.layers.1.mha.bo",
    } <= biased.parameter_shapes().keys()


def test_d2l_config_is_what_the_book_says():
    assert d2l_config(*D2L) == VisionTransformerConfig(
        image_h=8, image_w=12, in_channels=1, patch_h=4, patch_w=3, embed_dim=12, hidden_dim=10,
        head_count=3, num_layers=2, num_classes=10, activation="gelu_tanh", layer_norm_eps=1e-6,
        qkv_bias=False, output_bias=False, cls_token=True, pool="cls",
        dropout=DropoutRates(
            embedding=0.25, attention=0.5, projection=0, activation=0.5, output=0.5
        ),
    )  # fmt: skip
    assert preset("d2l") == d2l_config(96, 16, 512, 2048, 8, 2, 0.1, 0.1)
    assert preset("d2l-pytorch") == replace(preset("d2l"), activation="gelu", layer_norm_eps=1e-5)


def test_what_does_not_fit_is_refused():
    for image in (np.ones((7, 10), np.float32), np.ones((7, 10, 2), np.uint8)):
        with pytest.raises(InvalidArray, match=r"image: expected floating point of shape \(height"):
            vit_forward(0, image, **TUTORIAL)
    with pytest.raises(NotWellFormed, match="headCount_dvd_embedDim"):
        vit_forward(0, np.ones((7, 10, 2), np.float32), **TUTORIAL | {"num_heads": 5})
    with pytest.raises(NotWellFormed, match=r"dropout_rate: dropout\.embedding"):
        D2LViT(8, 4, 12, 10, 3, 2, 1.0, 0.1, rngs=None)
