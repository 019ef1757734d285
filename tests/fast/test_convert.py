"""Conversion to and from flat form loses nothing and refuses what does not fit."""

import weakref

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from support.vision_transformers import config_of
from vitfast import VisionTransformer, ViT, from_flat, to_flat
from vitfast.convert import DTYPES, fill, load
from vitspec import InvalidArray, InvalidParameters, parameter_shapes
from vitspec.models import vision_transformer_parameters
from vitspec.models.vision_transformer import VisionTransformer as Spec

FULL = config_of(pool="cls_mean", layer_scale=True, mask_token=True, pooler_dim=7, decoder_stride=3)
BARE = config_of(
    pool="none", num_classes=0, cls_token=False, qkv_bias=False, output_bias=False, num_layers=0
)


def pool(case):
    return "cls" if case.spec == "vit-cls" else "mean"


def any_bits(case, dtype, seed):
    """Flat parameters of arbitrary bits: subnormal, huge, negative zero; only NaN is left out."""
    shapes = parameter_shapes(case.config, *case.image_shape, cls=case.spec == "vit-cls")
    return random_bits(shapes, dtype, seed)


def random_bits(shapes, dtype, seed):
    rng, flat = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        values = np.frombuffer(rng.bytes(count), dtype).reshape(shape)
        with np.errstate(invalid="ignore"):  # of bfloat16's, some set the flag
            flat[name] = np.where(np.isnan(values), np.array(-0.0, dtype), values)
    return flat


def assert_same_bits(flat, other):
    assert list(flat) == list(other)
    for name, array in flat.items():
        assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape), name
        assert array.tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scan", "loop"])
@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=2)
def test_flat_to_model_to_flat_keeps_every_bit_name_and_the_order(
    any_case, dtype, scan_layers, seed
):
    flat = any_bits(any_case, dtype, seed)
    model = from_flat(
        any_case.config, flat, **any_case.size, pool=pool(any_case), scan_layers=scan_layers
    )
    assert model.param_dtype == dtype
    assert_same_bits(to_flat(model), flat)


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scan", "loop"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [FULL, BARE], ids=["full", "bare"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=2)
def test_the_practical_family_keeps_every_bit_name_and_the_order(config, dtype, scan_layers, seed):
    shapes = vision_transformer_parameters.parameter_shapes(config)
    flat = random_bits(shapes, dtype, seed)
    model = from_flat(config, flat, scan_layers=scan_layers)
    assert model.param_dtype == dtype
    assert_same_bits(to_flat(model), flat)


def test_what_does_not_fit_the_practical_family_is_listed_at_once():
    shapes = vision_transformer_parameters.parameter_shapes(FULL)
    flat = random_bits(shapes, "bfloat16", 0)
    del flat["mask_token"]
    flat["encoder.layers.1.mha.bk"] = flat["encoder.layers.1.mha.bk"][:-1]
    flat["norm"] = flat["head.bias"].astype(np.float32)
    with pytest.raises(InvalidParameters) as raised:
        from_flat(FULL, flat)
    assert raised.value.problems == (
        "encoder.layers.1.mha.bk: expected shape (12,), got (11,)",
        "mask_token: missing, expected shape (12,)",
        "norm: unexpected name",
        "the arrays mix the scalar types bfloat16, float32; expected one",
    )


def test_parameters_of_another_type_are_rounded_only_if_that_is_what_is_asked_for():
    """A checkpoint of one type is loaded into a model of another; nothing else changes types."""
    flat = Spec.init(FULL, rng=np.random.default_rng(0)).to_flat()
    for scan_layers in (True, False):
        model = VisionTransformer(FULL, param_dtype="bfloat16", scan_layers=scan_layers, rngs=None)
        rounded = to_flat(load(model, flat))
        assert_same_bits(rounded, {n: a.astype(model.param_dtype) for n, a in flat.items()})
        with pytest.raises(InvalidParameters, match="float64: expected bfloat16, the model's"):
            fill(model, flat)


def test_parameters_are_read_one_after_the_other():
    """They may come from files: then there is never a second copy of all of them."""
    flat = Spec.init(FULL, rng=np.random.default_rng(0)).to_flat()
    alive = []

    class Files(dict):
        def __getitem__(self, name):
            assert sum(one() is not None for one in alive) <= 1
            array = flat[name].copy()
            alive.append(weakref.ref(array))
            return array

    model = VisionTransformer(FULL, scan_layers=True, rngs=None)
    assert to_flat(load(model, Files(flat))).keys() == flat.keys()
    assert len(alive) == len(flat)


def test_model_to_flat_to_model_keeps_every_bit_and_the_structure(cases):
    case = cases["the same with CLS"]
    model = ViT(case.config, **case.size, pool="cls", rngs=nnx.Rngs(0))
    again = from_flat(case.config, to_flat(model), **case.size, pool="cls")
    assert jax.tree.structure(again) == jax.tree.structure(model)
    for leaf, same in zip(jax.tree.leaves(model), jax.tree.leaves(again), strict=True):
        assert (leaf.dtype, leaf.shape) == (same.dtype, same.shape)
        assert np.asarray(leaf).tobytes() == np.asarray(same).tobytes()


def test_everything_that_does_not_fit_is_listed_at_once(cases):
    case = cases["several heads, layers and channels"]
    flat = any_bits(case, "float32", seed=1)
    del flat["encoder.layers.2.mha.wo"]
    flat["encoder.layers.3.mha.wo"] = np.ones((12, 12), np.float32)
    flat["head.weights"] = flat["head.weights"].T
    flat["pos_enc.pos"] = flat["pos_enc.pos"].astype(np.float64)
    with pytest.raises(InvalidParameters) as raised:
        from_flat(case.config, flat, **case.size)
    assert raised.value.problems == (
        "encoder.layers.2.mha.wo: missing, expected shape (12, 12)",
        "encoder.layers.3.mha.wo: unexpected name",
        "head.weights: expected shape (5, 12), got (12, 5)",
        "the arrays mix the scalar types float32, float64; expected one",
    )


def test_a_scalar_type_that_jax_would_change_is_refused(cases):
    case = cases["one token"]
    flat = {n: a.astype(np.longdouble) for n, a in any_bits(case, "float32", 1).items()}
    with pytest.raises(
        InvalidParameters, match="expected one of bfloat16, float16, float32, float64"
    ):
        from_flat(case.config, flat, **case.size)


def test_a_float64_model_is_not_quietly_computed_in_float32(cases):
    case = cases["one token"]
    model = from_flat(case.config, any_bits(case, "float64", 1), **case.size)
    images = np.ones((1, case.height, case.width, case.in_channels))
    with pytest.raises(InvalidArray, match=r"jax\.enable_x64"):
        model(images)
