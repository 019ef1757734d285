"""A sharded model of the practical family is the unsharded one, also in what dropout draws."""

from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from support.compare import assert_flat_close
from support.meshes import LAYOUTS
from support.vision_transformers import (
    assert_gradients_close,
    config_of,
    model_of,
    outputs_of,
    point_of,
    program,
)
from vitfast import Factors, VisionTransformer, shard_images, to_flat
from vitfast.implementation import compiled
from vitfast.sharding import MeshDoesNotDivide, ViTTensorParallelSharding
from vitspec.models.vision_transformer_parameters import parameter_shapes
from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig

TOLERANCE = 1e-12

CONFIG = config_of(
    in_channels=3,
    embed_dim=16,
    hidden_dim=24,
    head_count=8,
    pool="cls_mean",
    layer_scale=True,
    mask_token=True,
    pooler_dim=7,
    decoder_stride=3,
    dropout=DropoutRates(0.2, 0.2, 0.2, 0.2, 0.2, 0.2),
)
"""Everything that a model can have; four devices divide what they are to divide."""

BATCH = 8

VARIANTS = {
    "FSDP 2x4": {"scan_layers": True},
    "tensor parallel 2x4": {"scan_layers": False, "use_gradient_checkpointing": True},
    "both 2x2x2": {"scan_layers": True, "custom_vjp": False},
}
"""By layout, how the model is built."""


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@cache
def point():
    """Images of another size, masks, factors at every place."""
    return point_of(
        CONFIG,
        3,
        BATCH,
        size=(10, 7),
        masked_patches=True,
        attention_mask=True,
        head_mask=True,
        factors=True,
    )


def with_dropout(model, images, conditions, cotangents, key):
    """All outputs, and the cotangents of model and images."""

    def run(model, images):
        return model(images, interpolate_positions=True, rngs=key, **conditions)

    outputs, pullback = jax.vjp(run, model, images)
    return outputs, pullback(cotangents)


def evaluate(sharding=None, **options):
    """The model, the gradients as it holds them, and everything by name."""
    p = point()
    model = model_of(p, sharding=sharding, **options)
    images, cotangents = p.images, p.cotangents
    if sharding is not None:
        images = shard_images(images, sharding)
        cotangents = jax.tree.map(lambda leaf: shard_images(leaf, sharding), cotangents)
    outputs, (d_model, d_images) = compiled(with_dropout, True)(
        model, images, p.conditions, cotangents, jax.random.key(5)
    )
    named = {name: np.asarray(value) for name, value in outputs._asdict().items()}
    return model, d_model, named | {"images": np.asarray(d_images)}, to_flat(d_model)


@cache
def unsharded():
    return evaluate()[2:]


@pytest.mark.parametrize("layout", VARIANTS)
def test_sharded_equals_unsharded(layout):
    expected_values, expected_gradients = unsharded()  # while no mesh is set
    with LAYOUTS[layout].set():
        model, d_model, values, gradients = evaluate(LAYOUTS[layout].sharding, **VARIANTS[layout])
        assert_flat_close(values, expected_values, TOLERANCE)
        assert_gradients_close(gradients, expected_gradients, TOLERANCE)
        for leaf, d_leaf in zip(jax.tree.leaves(model), jax.tree.leaves(d_model), strict=True):
            assert leaf.sharding == d_leaf.sharding


@pytest.mark.parametrize("layout", VARIANTS)
@pytest.mark.parametrize("scan_layers", [True, False], ids=["scan", "loop"])
def test_conversion_on_a_mesh_loses_no_bit(layout, scan_layers):
    with LAYOUTS[layout].set():
        model = model_of(point(), sharding=LAYOUTS[layout].sharding, scan_layers=scan_layers)
        flat = to_flat(model)
    assert list(flat) == list(point().flat)
    for name, array in point().flat.items():
        assert flat[name].tobytes() == array.tobytes(), name


def whole(layout):
    """The parameters that no device cuts."""
    with LAYOUTS[layout].set():
        model = model_of(point(), sharding=LAYOUTS[layout].sharding, scan_layers=False)
        return {
            jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
            for path, leaf in jax.tree_util.tree_leaves_with_path(model)
            if leaf.sharding.is_fully_replicated
        }


def test_every_parameter_but_some_biases_is_divided():
    """Those of heads, whose size is any, and those that only `model` cuts."""
    projections = {f"encoder.layers.{i}.mha.b{letter}" for i in range(2) for letter in "qkv"}
    assert whole("FSDP 2x4") == {"head.bias", "pooler.bias", "decoder.bias"} | projections


def test_vit_g_lies_on_256_devices_with_both_kinds_of_parallelism():
    """Though 256 does not divide its embed_dim of 1408, which 64 and 4 do not both cut."""
    shapes = parameter_shapes(
        VisionTransformerConfig(embed_dim=1408, hidden_dim=6144, head_count=16)
    )
    axes = (AxisType.Explicit,) * 3
    with jax.sharding.use_abstract_mesh(AbstractMesh((1, 64, 4), ("data", "fsdp", "model"), axes)):
        ViTTensorParallelSharding().check(VisionTransformerConfig(head_count=16), shapes)


def test_tensor_parallelism_divides_heads_and_hidden_units_with_their_biases():
    layer = {name.removeprefix("encoder.layers.0.") for name in point().flat}
    cut = {"mha.wq", "mha.wk", "mha.wv", "mha.bq", "mha.bk", "mha.bv", "mha.wo"}
    cut |= {"ffn.w1", "ffn.b1", "ffn.w2"}
    assert {
        name.removeprefix("encoder.layers.0.") for name in whole("tensor parallel 2x4")
    } >= layer - cut - {name for name in layer if "layers.1" in name}
    assert not whole("tensor parallel 2x4") & {f"encoder.layers.1.{name}" for name in cut}


def test_a_mesh_that_does_not_divide_is_refused_before_any_work():
    config = config_of(embed_dim=18, head_count=3)
    with LAYOUTS["both 2x2x2"].set(), pytest.raises(MeshDoesNotDivide, match=r"3 heads.*over 2"):
        VisionTransformer(config, sharding=LAYOUTS["both 2x2x2"].sharding, rngs=nnx.Rngs(0))


def test_factors_alike_for_all_images_are_on_every_device():
    given = {"factors": Factors(embedding=np.full((1, 1, 1), 2.0))}
    run = program(outputs_of, True)
    expected = run(model_of(point()), point().images, given).logits
    layout = LAYOUTS["FSDP 2x4"]
    with layout.set():
        model = model_of(point(), sharding=layout.sharding)
        images = shard_images(point().images, layout.sharding)
        found = run(model, images, given).logits
    np.testing.assert_allclose(found, expected, rtol=1e-11)
