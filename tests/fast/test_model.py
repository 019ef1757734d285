"""What `ViT` promises beyond its values: errors, precision, size of the program."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from support.compare import assert_close
from vitfast import ViT, from_flat, implementation, make_tokamax_attention
from vitfast.implementation import is_quick, logits_and_vjp, quick_options, vit
from vitspec import InvalidArray, NotWellFormed


def new_model(case, **kwargs):
    pool = "cls" if case.spec == "vit-cls" else "mean"
    return ViT(case.config, **case.size | {"pool": pool} | kwargs, rngs=None)


def lowered(case, config):
    """The text of the program that computes logits and all gradients."""
    model = ViT(config, **case.size, rngs=None)
    images = jax.ShapeDtypeStruct((2, case.height, case.width, case.in_channels), jnp.float32)
    cotangent = jax.ShapeDtypeStruct((2, config.num_classes), jnp.float32)
    return jax.jit(logits_and_vjp).lower(model, images, cotangent).as_text()


def test_every_product_is_in_full_precision_forward_and_backward(cases):
    """Else accelerators round the factors of float32 products, on some to 8 bits.

    Tokamax asks for it by a precision or, in some versions, by an algorithm.
    """
    case = cases["several heads, layers and channels"]
    products = [
        line
        for line in lowered(case, case.config).splitlines()
        if re.search(r"stablehlo\.(dot_general|convolution)", line)
    ]
    assert len(products) > 20
    full = re.compile("HIGHEST.*HIGHEST|lhs_precision_type = f32, rhs_precision_type = f32")
    assert [line for line in products if not full.search(line)] == []


def test_the_program_does_not_grow_with_depth(cases):
    case = cases["several heads, layers and channels"]
    shallow, deep = (
        lowered(case, replace(case.config, num_layers=n)).count("stablehlo.") for n in (2, 50)
    )
    assert shallow == deep


def test_with_gradient_checkpointing_memory_grows_with_depth_by_one_activation(cases):
    """Twelve layers keep their inputs, but not their scores and hidden units."""
    case = cases["several heads, layers and channels"]
    config = replace(case.config, num_layers=12, hidden_dim=96)

    def temporary_bytes(**options):
        model = ViT(config, **case.size, rngs=None, **options)
        images = jax.ShapeDtypeStruct((8, case.height, case.width, case.in_channels), jnp.float32)
        cotangent = jax.ShapeDtypeStruct((8, config.num_classes), jnp.float32)
        program = jax.jit(logits_and_vjp).lower(model, images, cotangent)
        compiled = program.compile(compiler_options=quick_options())
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes() > 3 * temporary_bytes(use_gradient_checkpointing=True)


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scan", "loop"])
def test_taps_are_the_layers_outputs_and_cost_nothing_to_those_who_do_not_ask(cases, scan_layers):
    case = cases["the same with CLS"]
    flat, image = case.model().to_flat(), case.image()[None].transpose(0, 2, 3, 1)
    with jax.enable_x64(True):
        model = from_flat(case.config, flat, **case.size, pool="cls", scan_layers=scan_layers)
        logits, taps = jax.jit(lambda m, x: m.forward_with_taps(x, attention_weights=True))(
            model, image
        )
        np.testing.assert_array_equal(logits, jax.jit(lambda m, x: m(x))(model, image))
        # Two layers instead of three, whose output is tapped: it is the input of the third.
        shallow = {n: a for n, a in flat.items() if not n.startswith("encoder.layers.2")}
        shorter = replace(case.config, num_layers=2)
        model2 = from_flat(shorter, shallow, **case.size, pool="cls", scan_layers=scan_layers)
        _, taps2 = model2.forward_with_taps(image)
        assert_close(taps.hidden_states[:3], taps2.hidden_states, 1e-13, "hidden states")
        text = jax.jit(lambda m, x: m(x)).lower(model, image).as_text()
    rows = taps.hidden_states.shape[2]
    layers, heads = case.config.num_layers, case.config.head_count
    assert taps.hidden_states.shape == (layers + 1, 1, rows, case.config.embed_dim)
    assert taps.attention_weights.shape == (layers, 1, heads, rows, rows)
    np.testing.assert_allclose(np.asarray(taps.attention_weights).sum(axis=-1), 1, rtol=1e-14)
    assert f"tensor<{layers}x1x{rows}x{case.config.embed_dim}" not in text
    assert taps2.attention_weights is None


def test_taps_without_layers_are_the_encoder_s_input(cases):
    case = cases["no layers"]
    for scan_layers in (True, False):
        model = ViT(case.config, **case.size, scan_layers=scan_layers, rngs=nnx.Rngs(0))
        image = jnp.asarray(case.image()[None].transpose(0, 2, 3, 1), jnp.float32)
        _, taps = model.forward_with_taps(image)
        assert taps.hidden_states.shape[0] == 1


def test_activations_are_of_dtype_and_gradients_of_param_dtype(cases):
    case = cases["several heads, layers and channels"]
    model = new_model(case, dtype="bfloat16")
    images = jax.ShapeDtypeStruct((2, case.height, case.width, case.in_channels), jnp.float32)
    cotangent = jax.ShapeDtypeStruct((2, case.config.num_classes), jnp.bfloat16)
    logits, (d_model, d_images) = jax.eval_shape(logits_and_vjp, model, images, cotangent)
    assert logits.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((d_model, d_images))} == {np.dtype("float32")}
    products = [
        line
        for line in jax.jit(lambda m, x: m(x)).lower(model, images).as_text().splitlines()
        if "dot_general" in line and "batching_dims" not in line  # scores are in float32
    ]
    assert len(products) > 6
    assert [line for line in products if "xbf16>, tensor" not in line] == []


def test_variants_are_found_by_name_and_only_they():
    found = implementation.vit_cls_bfloat16_xla_chunked_loop_remat_autodiff
    assert (found.spec, found.dtype) == ("vit-cls", "bfloat16")
    assert found.options == {
        "scan_layers": False,
        "use_gradient_checkpointing": True,
        "custom_vjp": False,
        "attention_fn": make_tokamax_attention("xla_chunked"),
    }
    with pytest.raises(AttributeError, match="vit_bfloat16_cls"):
        implementation.vit_bfloat16_cls  # noqa: B018
    with pytest.raises(ValueError, match="'vat' is not a variant of vitfast"):
        implementation.variant("vat")


def test_the_adapter_computes_in_the_type_of_the_arrays(cases):
    case = cases["several heads, layers and channels"]
    flat = {name: array.astype(np.float32) for name, array in case.model().to_flat().items()}
    images, cotangent = (a[None].astype(np.float32) for a in (case.image(), case.d_logits()))
    d_params, d_images = vit.vjp(case.config, flat, images, cotangent)
    logits = vit.forward(case.config, flat, images)
    assert {a.dtype for a in (logits, d_images, *d_params.values())} == {np.dtype("float32")}


def test_small_models_are_compiled_quickly_and_only_they(cases):
    small = new_model(cases["one token"])
    assert is_quick(small, np.empty((1, 3, 3, 2)))
    assert not is_quick(small, np.empty((1_000, 1_000, 1, 1)))
    assert "xla_backend_optimization_level" in quick_options()


@pytest.mark.parametrize(
    ("broken", "labels"),
    [
        (
            {"patch_h": 0, "head_count": 0, "num_classes": 0},
            "patchH_ne0 headCount_pos numClasses_ne0",
        ),
        ({"stride": 0}, "h_tok"),
        ({"patch_w": 9}, "h_tok"),
    ],
)
def test_a_model_that_cannot_exist_is_refused_by_the_rules_that_it_breaks(cases, broken, labels):
    case = cases["several heads, layers and channels"]
    with pytest.raises(NotWellFormed) as raised:
        new_model(replace(case, config=replace(case.config, **broken)))
    assert [v.split(":")[0] for v in raised.value.violations] == labels.split()


def test_an_image_without_channels_is_refused(cases):
    with pytest.raises(NotWellFormed, match="h_inC"):
        new_model(replace(cases["one token"], in_channels=0))


@pytest.mark.usefixtures("without_type_checks")
def test_an_unknown_pool_is_refused(cases):
    with pytest.raises(ValueError, match="pool: expected 'mean' or 'cls', got 'max'"):
        new_model(cases["one token"], pool="max")


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("shape", [(7, 6, 3), (2, 3, 7, 6), (2, 6, 7, 3), (2, 7, 6, 4)])
def test_images_of_another_shape_are_refused(cases, shape):
    model = new_model(cases["several heads, layers and channels"])
    with pytest.raises(InvalidArray, match=r"expected shape \(batch, 7, 6, 3\)") as raised:
        model(jnp.ones(shape))
    assert f"got {shape}" in str(raised.value)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("dtype", ["uint8", "bfloat16"])
def test_images_of_another_type_are_refused(cases, dtype):
    model = new_model(cases["several heads, layers and channels"])
    with pytest.raises(InvalidArray, match=f"of float32, .* got {dtype}"):
        model(jnp.ones((2, 7, 6, 3), dtype))


@pytest.mark.usefixtures("without_type_checks")
def test_a_cotangent_unlike_the_logits_is_refused(cases):
    case = cases["one token"]
    flat, images = case.model().to_flat(), case.image()[None]
    for cotangent in (np.ones((2, 5)), np.ones((1, 5), np.float32)):
        with pytest.raises(InvalidArray, match=r"cotangent: expected shape \(1, 5\) of float64"):
            vit.vjp(case.config, flat, images, cotangent)
