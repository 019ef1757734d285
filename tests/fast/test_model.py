"""What `VisionTransformer` promises beyond its values: errors, precision, size of the program."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitfast import VisionTransformer
from vitfast.implementation import is_quick, logits_and_vjp, quick_options, vit
from vitspec import InvalidArray, NotWellFormed


def new_model(case, **kwargs):
    pool = "cls" if case.spec == "vit-cls" else "mean"
    return VisionTransformer(case.config, **case.size | {"pool": pool} | kwargs, rngs=None)


def lowered(case, config):
    """The text of the program that computes logits and all gradients."""
    model = VisionTransformer(config, **case.size, rngs=None)
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
