"""vitfast against the specification: logits and every gradient, in float64.

The specification's gradients are written by hand, vitfast's come from automatic differentiation of
other code: they agree to rounding, or one of them is wrong.
"""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from support.compare import assert_close, assert_flat_close
from vitfast import from_flat, make_tokamax_attention, to_flat
from vitfast.implementation import vit, vit_cls
from vitspec import ViTConfig
from vitspec.geometry import patch_count
from vitspec.testing import strategies
from vitspec.testing.families import MODELS, Case

TOLERANCE = 1e-11
BATCH = 2

seeds = st.integers(0, 2**32 - 1)


def draw(case, seed, batch=BATCH):
    """(model of the specification, images, cotangent of the logits); all normal numbers."""
    rng = np.random.default_rng(seed)
    model = MODELS[case.spec].init(case.config, **case.size, rng=rng)
    images = rng.standard_normal((batch, *case.image_shape))
    return model, images, rng.standard_normal((batch, case.config.num_classes))


def truth(model, images, cotangent):
    """The specification's logits, parameter gradients summed over the batch, image gradients."""
    logits = np.stack([model.forward(image) for image in images])
    backward = [model.backward(*point) for point in zip(images, cotangent, strict=True)]
    flats = [grads.to_flat() for grads, _ in backward]
    grads = {name: np.sum([flat[name] for flat in flats], axis=0) for name in flats[0]}
    return logits, grads, np.stack([d_image for _, d_image in backward])


def assert_conforms(case, model, images, cotangent):
    implementation = {"vit": vit, "vit-cls": vit_cls}[case.spec]
    params = model.to_flat()
    logits, grads, d_images = truth(model, images, cotangent)
    d_params, d_images_fast = implementation.vjp(case.config, params, images, cotangent)
    assert_close(implementation.forward(case.config, params, images), logits, TOLERANCE, "logits")
    assert_flat_close(d_params, grads, TOLERANCE)
    assert_close(d_images_fast, d_images, TOLERANCE, "d_images")


@given(seed=seeds)
@settings(max_examples=8)
def test_logits_and_every_gradient_are_the_specification_s(any_case, seed):
    assert_conforms(any_case, *draw(any_case, seed))


@given(case=strategies.cases(min_embed_dim=3, max_layers=2, max_extent=6))
@settings(max_examples=15)
def test_jax_s_gradients_are_the_hand_written_ones_on_drawn_shapes(case):
    """The third road, on shapes that nobody chose; each is compiled anew."""
    rows = patch_count(case.config, case.height, case.width) + (case.spec == "vit-cls")
    assume(rows >= 2)  # with one row the gradients of Wq and Wk are 0, and rounding is all there is
    assert_conforms(case, case.model(), case.image()[None], case.d_logits()[None])


@given(seed=seeds)
@settings(max_examples=2)
def test_an_image_on_whose_convolution_xla_aborts_conforms(cases, seed):
    """Of a batch of one and one channel, jaxlib 0.10.2 and 0.12.0 cannot compile the gradient."""
    case = cases["one channel, overlap and padding"]
    assert_conforms(case, *draw(case, seed, batch=1))


@given(seed=seeds)
@settings(max_examples=3)
def test_relu_has_derivative_0_at_0(cases, seed):
    """Lean's `reluDerivSpec`. Automatic differentiation of a maximum would give 1/2."""
    case = cases["no token but CLS: stride 0"]
    model, images, cotangent = draw(case, seed)
    flat = {name: array.copy() for name, array in model.to_flat().items()}
    flat["encoder.layers.0.ffn.w1"][:, 1] = 0  # the second hidden unit is 0 on every row
    flat["encoder.layers.0.ffn.b1"][1] = 0
    model = MODELS[case.spec].from_flat(case.config, flat, **case.size)
    assert_conforms(case, model, images, cotangent)


@given(seed=seeds)
@settings(max_examples=3)
def test_the_module_itself_conforms_under_jit_and_grad_with_any_attention(cases, seed):
    case = cases["several heads, layers and channels"]
    spec_model, images, cotangent = draw(case, seed)
    logits, grads, d_images = truth(spec_model, images, cotangent)
    attention = make_tokamax_attention(["triton", "xla_chunked"])
    with jax.enable_x64(True):
        model = from_flat(case.config, spec_model.to_flat(), **case.size, attention_fn=attention)
        channels_last = jnp.asarray(images.transpose(0, 2, 3, 1))
        (_, fast_logits), (d_model, d_channels_last) = weighted_sum_and_grad(
            model, channels_last, cotangent
        )
        assert_close(fast_logits, logits, TOLERANCE, "logits")
        assert_flat_close(to_flat(d_model), grads, TOLERANCE)
        assert_close(d_channels_last, d_images.transpose(0, 2, 3, 1), TOLERANCE, "d_images")


@jax.jit
def weighted_sum_and_grad(model, images, cotangent):
    def weighted_sum(model, images):
        logits = model(images)
        return (logits * cotangent).sum(), logits

    return jax.value_and_grad(weighted_sum, argnums=(0, 1), has_aux=True)(model, images)


def test_heads_of_width_one_over_many_tokens_conform():
    """Without the second feature in `vitfast.attention`, XLA's compiler aborts the process here."""
    config = ViTConfig(3, 1, 1, 2, embed_dim=5, hidden_dim=2, head_count=3, num_layers=1)
    case = Case("vit", config, in_channels=1, height=4, width=3, seed=73946)
    assert config.head_dim == 1
    assert patch_count(config, case.height, case.width) >= 40
    assert_conforms(case, case.model(), case.image()[None], case.d_logits()[None])
