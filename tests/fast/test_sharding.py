"""A sharded model is the unsharded one: values, gradients, where they lie, what is refused."""

import re
from dataclasses import replace
from itertools import combinations, product
from typing import NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx

from support.adapters import truth_of
from support.compare import assert_flat_close
from support.meshes import (
    CONFIG,
    LAYOUTS,
    SIZE,
    attention,
    evaluate,
    images_of,
    model_of,
    point,
    unsharded,
)
from vitfast import ViT, from_flat, to_flat
from vitfast.sharding import (
    MeshDoesNotDivide,
    NoSharding,
    TensorParallelSharding,
    ViTSharding,
    ViTTensorParallelSharding,
    make_mesh,
    shard_images,
)
from vitspec.testing.families import Case

TOLERANCE = 1e-12


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


class Variant(NamedTuple):
    """A way to lay the model out and to compute it."""

    layout: str
    attention: str
    pool: str
    scan_layers: bool
    use_gradient_checkpointing: bool
    custom_vjp: bool


ROWS = """
FSDP_1x8            plain        cls   scan  remat  by_hand
FSDP_1x8            xla          cls   scan  remat  autodiff
FSDP_1x8            xla_chunked  mean  loop  keep   by_hand
FSDP_2x4            plain        mean  loop  keep   autodiff
FSDP_2x4            xla          cls   scan  keep   by_hand
FSDP_2x4            xla_chunked  mean  loop  remat  autodiff
tensor_parallel_1x8 plain        mean  loop  remat  by_hand
tensor_parallel_1x8 xla          mean  scan  keep   autodiff
tensor_parallel_1x8 xla_chunked  cls   scan  remat  by_hand
tensor_parallel_2x4 plain        cls   scan  keep   autodiff
tensor_parallel_2x4 xla          mean  scan  remat  by_hand
tensor_parallel_2x4 xla_chunked  mean  loop  keep   autodiff
both_2x2x2          plain        cls   loop  remat  autodiff
both_2x2x2          xla          cls   loop  keep   by_hand
both_2x2x2          xla_chunked  mean  scan  remat  autodiff
"""
"""Every value of every column beside every value of every other: see the test."""


def variants():
    for row in ROWS.split("\n")[1:-1]:
        layout, attention_name, pool, layers, kept, backward = row.split()
        yield Variant(
            layout.replace("_", " "),
            attention_name,
            pool,
            layers == "scan",
            kept == "remat",
            backward == "by_hand",
        )


def test_the_variants_cover_every_pair_of_choices():
    rows = list(variants())
    assert {row.layout for row in rows} == LAYOUTS.keys()
    for a, b in combinations(range(len(Variant._fields)), 2):
        values = product({row[a] for row in rows}, {row[b] for row in rows})
        assert {(row[a], row[b]) for row in rows} == set(values)


@pytest.mark.parametrize("variant", list(variants()), ids=lambda v: "-".join(map(str, v)))
def test_sharded_equals_unsharded(variant):
    """Logits, the gradient of every parameter and of the images; and each gradient lies where its
    parameter does, so that an optimiser can update each shard where it is."""
    layout, expected = LAYOUTS[variant.layout], unsharded(variant.pool)  # while no mesh is set
    with layout.set():
        model = model_of(
            variant.pool,
            layout.sharding,
            attention_fn=attention(variant.attention, variant.custom_vjp),
            **{name: getattr(variant, name) for name in Variant._fields[3:]},
        )
        values = evaluate(model, variant.pool, layout.sharding)
        assert_flat_close(values.flat(), expected, TOLERANCE)
        assert shardings(values.d_model) == shardings(model)
        images = images_of(variant.pool, layout.sharding)
        assert values.d_images.sharding.is_equivalent_to(images.sharding, images.ndim)


def shardings(model):
    """Where each parameter, or gradient, lies."""
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf.sharding
        for path, leaf in jax.tree_util.tree_leaves_with_path(model)
    }


def test_unsharded_equals_the_specification():
    """So that what everything here is compared with is itself right."""
    for pool in ("mean", "cls"):
        truth = truth_of(point(pool))
        found = unsharded(pool)
        found = found | {"image": found["images"].transpose(0, 3, 1, 2)}
        del found["images"]
        assert_flat_close(found, {name: truth[name] for name in found}, TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("scan_layers", [True, False], ids=["scan", "loop"])
def test_conversion_on_a_mesh_loses_no_bit(layout, scan_layers):
    with layout.set():
        flat = to_flat(model_of("cls", layout.sharding, scan_layers=scan_layers))
    assert flat.keys() == point("cls").params.keys()
    for name, array in point("cls").params.items():
        assert flat[name].dtype == array.dtype
        np.testing.assert_array_equal(flat[name], array, err_msg=name)


def test_initial_parameters_do_not_depend_on_the_mesh():
    """Else a run could not be repeated on another machine."""
    layout = LAYOUTS["both 2x2x2"]
    config = replace(CONFIG, hidden_dim=CONFIG.embed_dim)  # each new shape is compiled anew
    alone = to_flat(new(config))
    with layout.set():
        sharded = to_flat(new(config, sharding=layout.sharding))
    for name, array in alone.items():
        np.testing.assert_array_equal(sharded[name], array, err_msg=name)


def new(config=CONFIG, rngs=None, **options):
    """A freshly drawn model."""
    rngs = nnx.Rngs(0) if rngs is None else rngs
    return ViT(config, pool="cls", **SIZE, rngs=rngs, **options)


def test_every_parameter_but_the_last_bias_is_divided():
    """Over fsdp; num_classes need not be divisible by anything, and is the one that stays whole."""
    for layout in (LAYOUTS["FSDP 1x8"], LAYOUTS["both 2x2x2"]):
        with layout.set():
            model = model_of("cls", layout.sharding)
        whole = {
            name
            for name, sharding in shardings(model).items()
            if layout.sharding.fsdp_axis not in jax.tree.leaves(tuple(sharding.spec))
        }
        assert whole == {"head.bias"}


def test_tensor_parallelism_divides_heads_and_hidden_units():
    """And nothing else: the residual stream is whole on every device."""
    layout = LAYOUTS["tensor parallel 1x8"]
    with layout.set():
        model = model_of("cls", layout.sharding)
    cut = {
        name.removeprefix("encoder.layers.")
        for name, sharding in shardings(model).items()
        if not sharding.is_fully_replicated
    }
    assert cut == {"mha.wq", "mha.wk", "mha.wv", "mha.wo", "ffn.w1", "ffn.b1", "ffn.w2"}


@pytest.mark.parametrize("sharding", [None, ViTTensorParallelSharding()], ids=["none", "all"])
def test_a_mesh_of_one_device_changes_nothing(sharding):
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        values = evaluate(model_of("cls", sharding), "cls", sharding)
    assert_flat_close(values.flat(), unsharded("cls"), TOLERANCE)


def test_without_sharding_every_device_of_a_mesh_holds_all():
    with LAYOUTS["both 2x2x2"].set():
        model = model_of("cls", NoSharding())
        values = evaluate(model, "cls", NoSharding())
        assert {leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(model)} == {True}
    assert_flat_close(values.flat(), unsharded("cls"), TOLERANCE)


@pytest.mark.parametrize(
    ("axes", "sharding", "field", "value", "names"),
    [
        ({"fsdp": 8}, ViTSharding(), "embed_dim", 20, ["patch_embed.kernel", "20", "8"]),
        ({"fsdp": 8}, ViTSharding(), "hidden_dim", 60, ["ffn.b1", "60", "8"]),
        ({"model": 8}, TensorParallelSharding(), "hidden_dim", 60, ["ffn", "60", "8"]),
        ({"model": 8}, TensorParallelSharding(), "head_count", 4, ["head", "4", "8"]),
        (
            {"data": 2, "fsdp": 2, "model": 2},
            ViTTensorParallelSharding(),
            "head_count",
            5,
            ["head", "5", "2"],
        ),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused_before_any_work(
    axes, sharding, field, value, names
):
    """By the name of the parameter and the two numbers."""

    class NoWork(nnx.Rngs):
        def params(self):
            raise AssertionError("a parameter was drawn")

    config = replace(CONFIG, **{field: value})
    with jax.set_mesh(make_mesh(**axes)):
        with pytest.raises(MeshDoesNotDivide) as caught:
            new(config, NoWork(0), sharding=sharding)
        with pytest.raises(MeshDoesNotDivide) as again:
            from_flat(config, flat_of(config), pool="cls", sharding=sharding, **SIZE)
    for error in (caught, again):
        for name in names:
            assert re.search(rf"(?<!\d){re.escape(name)}(?!\d)", str(error.value)), str(error.value)


def flat_of(config):
    """Parameters for any config."""
    return Case("vit-cls", config, **SIZE, seed=0).model().to_flat()


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
    layout = LAYOUTS["FSDP 2x4"]
    with layout.set(), pytest.raises(MeshDoesNotDivide, match=r"images.*\b21\b.*\b8\b"):
        shard_images(np.ones((21, 7, 6, 3)), layout.sharding)
