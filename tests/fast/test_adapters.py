"""Implementations made of JAX functions, pytrees and NNX modules, and the peers made of them.

Peers are other people's layers, or layers written a second time, behind the same door as everybody
else. In float64 they and the specification agree to 1e-11 in logits and every gradient.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from support.adapters import (
    EDGES,
    UNEVEN_HEADS,
    assert_agrees,
    evaluate,
    point_of,
    small_case,
    truth_of,
)
from support.compare import relative_error
from vitfast.vit import ViT
from vitspec import InvalidParameters, NotWellFormed
from vitspec.testing import check
from vitspec.testing.adapters import NAME_MAPS, Rule, from_jax, from_nnx, peers
from vitspec.testing.adapters.jax_flax import dotted, quick_options
from vitspec.testing.adapters.maps import LAYER, SAME_NAMES
from vitspec.testing.adapters.peers.flax_modules import flax_vit
from vitspec.testing.adapters.peers.plain_jax import attention, normalize, patches, plain_jax_vit

IDENTITY = {"name": "mine", "version": "1", "spec": "vit"}


def mean_pooling(config, params, images):
    return plain_jax_vit(config, params, images, cls=False)


def plain(**settings):
    return from_jax(mean_pooling, **IDENTITY | settings)


def peer(kind, spec):
    return getattr(peers, f"{kind}_{spec.replace('-', '_')}")


# ---- peers ---------------------------------------------------------------------------------------

ALL = EDGES | UNEVEN_HEADS


@pytest.mark.parametrize("case", ALL.values(), ids=ALL.keys())
def test_plain_jax_agrees_in_logits_gradients_and_taps(case):
    _, taps = assert_agrees(peer("jax", case.spec), case)
    layers = case.config.num_layers
    assert len(taps) == 2 + 2 * layers
    assert {"embedded", "pooled"} <= taps.keys()


@pytest.mark.parametrize("name", ["jax_vit_cls", "nnx_vit"])
def test_peers_conform_as_tested(name):
    report = check(getattr(peers, name), cases=2, laws=0)
    assert report.conforms, report


FEW = ("several of everything", "the same with CLS", "no token but CLS: stride 0", "no layers")


@pytest.mark.parametrize("name", [*FEW, "heads do not divide embed_dim"])
def test_flax_modules_agree_to_the_precision_of_their_softmax(name):
    case = ALL[name]
    assert_agrees(peer("nnx", case.spec), case, "float32", 3e-6)


def test_flax_attention_takes_its_softmax_in_float32_also_among_float64():
    """So NNX peers claim float32 only; here is what a claim of float64 would miss by."""
    case = small_case(num_layers=1)
    implementation = from_nnx(
        lambda *args: flax_vit(*args, cls=False),
        NAME_MAPS["flax-patches"],
        dtype="float64",
        channels_last=True,
        **IDENTITY,
    )
    point = point_of(case)
    found, _ = evaluate(implementation, point)
    name = "encoder.layers.0.mha.wq"
    assert 1e-9 < relative_error(found[name], truth_of(point)[name]) < 1e-5


def test_flax_modules_say_that_heads_have_no_width():
    case = ALL["heads of width 0"]
    assert "heads of width 0" in peers.nnx_vit_cls.supports(case.config)
    assert peers.nnx_vit_cls.supports(small_case().config) is None


@pytest.mark.parametrize("kind", ["jax", "nnx"])
def test_peers_refuse_an_ill_formed_configuration(kind):
    """The module when it is built; the function at the latest when its parameters do not fit."""
    point = point_of(small_case(), "float32")
    config = replace(point.config, num_classes=0)
    with pytest.raises((NotWellFormed, InvalidParameters), match=r"numClasses_ne0|head\.bias"):
        peer(kind, "vit").forward(config, point.params, point.images)


def test_vitfast_agrees_also_when_it_is_made_by_the_adapter():
    def build(config, in_channels, height, width):
        size = {"in_channels": in_channels, "height": height, "width": width}
        return ViT(config, **size, pool="cls", rngs=nnx.Rngs(0))

    implementation = from_nnx(
        build, NAME_MAPS["vitfast"], name="vitfast", version="1", spec="vit-cls", channels_last=True
    )
    assert_agrees(implementation, small_case("vit-cls", num_layers=1))


# ---- JAX functions -------------------------------------------------------------------------------


def test_a_function_agrees_also_without_compiling_and_without_shortcuts():
    case = small_case(num_layers=0)
    assert_agrees(plain(jit=False), case)
    assert_agrees(plain(quick=False), case)


def test_the_shortcuts_of_the_compiler_are_known():
    """Else small models are compiled at full length, and a check takes five times as long."""
    assert len(quick_options()) >= 2


@pytest.mark.parametrize(("precision", "u"), [("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
def test_short_precisions_compute_in_themselves_and_come_back_in_float32(precision, u):
    point = point_of(small_case(num_layers=1), precision)
    found, taps = evaluate(plain(dtype=precision), point)
    expected = truth_of(point)
    assert {array.dtype for array in (found | taps).values()} == {np.dtype(np.float32)}
    error = relative_error(found["logits"], expected["logits"])
    assert u / 100 < error < 100 * u
    as_it_is = np.asarray(jnp.asarray(found["logits"], precision), np.float32)
    np.testing.assert_array_equal(found["logits"], as_it_is)


def test_float64_and_the_precision_of_products_are_switched_on_for_the_call_alone():
    seen = []

    def function(config, params, images):
        seen.append((images.dtype.name, jax.config.jax_default_matmul_precision))
        return mean_pooling(config, params, images)

    before = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision
    for dtype in ("float64", "float32", "tf32"):
        implementation = from_jax(function, dtype=dtype, **IDENTITY)
        evaluate(implementation, point_of(small_case(num_layers=0), dtype))
        assert (jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision) == before
    assert set(seen) == {
        ("float64", None), ("float32", "highest"), ("float32", "tensorfloat32"),
    }  # fmt: skip


def test_channels_last_is_for_the_function_alone():
    case = small_case(num_layers=0)

    def function(config, params, images):
        assert images.shape == (2, 7, 6, 3)
        return mean_pooling(config, params, images.transpose(0, 3, 1, 2))

    assert_agrees(from_jax(function, channels_last=True, **IDENTITY), case)


def test_forward_is_the_function_and_not_the_primal_of_its_derivative():
    """A rule of `jax.custom_vjp` may compute another value than the function; both are graded."""

    @jax.custom_vjp
    def head(x):
        return 2 * x

    head.defvjp(lambda x: (x, None), lambda _, g: (g,))

    def function(config, params, images):
        return head(mean_pooling(config, params, images)["logits"])

    point = point_of(small_case(num_layers=0))
    found, _ = evaluate(from_jax(function, **IDENTITY), point)
    expected = truth_of(point)
    np.testing.assert_allclose(found["logits"], 2 * expected["logits"], rtol=1e-13)
    np.testing.assert_allclose(found["image"], expected["image"], rtol=1e-10)


def test_a_wrong_name_map_departs():
    """Query and key swapped: the same shapes, the same names, another function."""
    swapped = SAME_NAMES.replacing(
        Rule(LAYER + "mha.wq", LAYER + "mha.wk"), Rule(LAYER + "mha.wk", LAYER + "mha.wq")
    )
    with pytest.raises(AssertionError, match="relative error"):
        assert_agrees(plain(name_map=swapped), small_case())


# ---- pytrees -------------------------------------------------------------------------------------


class LinenLayer(linen.Module):
    heads: int
    inner: int
    hidden: int

    @linen.compact
    def __call__(self, x):
        norm = {"epsilon": 1e-6, "use_fast_variance": False}
        attention = linen.MultiHeadDotProductAttention(
            self.heads, qkv_features=self.inner, use_bias=False, name="attention"
        )
        x = linen.LayerNorm(**norm, name="norm1")(x + attention(x, x))
        hidden = linen.relu(linen.Dense(self.hidden, name="linear1")(x))
        return linen.LayerNorm(**norm, name="norm2")(
            x + linen.Dense(x.shape[-1], name="linear2")(hidden)
        )


class LinenViT(linen.Module):
    config: object

    @linen.compact
    def __call__(self, images):
        c = self.config
        cut = patches(c, images).transpose(0, 1, 3, 4, 2)
        x = linen.Dense(c.embed_dim, name="patch_embed")(cut.reshape(*cut.shape[:2], -1))
        x = x + self.param("pos_embed", linen.initializers.zeros, (1, *x.shape[1:]))
        for i in range(c.num_layers):
            x = LinenLayer(c.head_count, c.inner_dim, c.hidden_dim, name=f"layers_{i}")(x)
        return linen.Dense(c.num_classes, name="head")(x.mean(axis=1))


def linen_tree(config, *size):
    images = jax.ShapeDtypeStruct((1, *size), jnp.float32)
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    return jax.eval_shape(LinenViT(config).init, key, images)


def linen_map():
    """The Flax map with Linen's prefixes."""
    rules = tuple(
        replace(rule, theirs="params." + rule.theirs.replace("layers.{i}", "layers_{i}"))
        for rule in NAME_MAPS["flax-patches"].rules
    )
    return replace(NAME_MAPS["flax-patches"], rules=rules, name="Linen")


def test_a_linen_module_is_a_function_of_a_pytree():
    implementation = from_jax(
        lambda config, variables, images: LinenViT(config).apply(variables, images),
        linen_map(),
        tree=linen_tree,
        **IDENTITY,
    )
    assert_agrees(
        implementation, small_case(num_layers=1)
    )  # unlike NNX, Linen keeps its softmax in float64


def test_names_that_a_tree_has_and_the_map_has_not_are_all_listed():
    wrong = linen_map().replacing(
        Rule("params.head.kernel", "head.weights"), Rule("params.head.scale", "head.bias")
    )
    implementation = from_jax(lambda *_: None, wrong, tree=linen_tree, **IDENTITY)
    point = point_of(small_case(), "float32")
    with pytest.raises(InvalidParameters) as caught:
        implementation.forward(point.config, point.params, point.images)
    assert caught.value.problems == (
        "params.head.bias: unexpected name, of shape (5,)",
        "params.head.kernel: expected shape (5, 12), got (12, 5); transposed?",
        "params.head.scale: missing, expected shape (5,)",
    )
    assert "the parameters of mine" in str(caught.value)


def test_the_name_of_a_leaf_is_its_path():
    tree = {"a": [1, {"b": 2}], "c": nnx.Dict(d=nnx.Param(jnp.zeros(1)))}
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    assert [dotted(path) for path, _ in leaves][:2] == ["a.0", "a.1.b"]


# ---- NNX modules ---------------------------------------------------------------------------------


class Small(nnx.Module):
    """A model of no layers, with dropout and a batch statistic beside its parameters."""

    def __init__(self, config, in_channels, height, width):
        rngs = nnx.Rngs(0)
        self.config = config
        window = in_channels * config.patch_h * config.patch_w
        self.kernel = nnx.Param(jnp.zeros((config.embed_dim, window)))
        self.bias = nnx.Param(jnp.zeros(config.embed_dim))
        self.pos = nnx.Param(jnp.zeros((16, config.embed_dim)))
        self.head = nnx.Linear(config.embed_dim, config.num_classes, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.seen = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, images):
        cut = patches(self.config, images)
        x = cut.reshape(*cut.shape[:2], -1) @ self.kernel[...].T + self.bias[...] + self.pos[...]
        return self.head(self.dropout(x).mean(axis=1))


SMALL = SAME_NAMES.replacing(
    Rule("kernel", "patch_embed.kernel", "kernel-chw-out-in"),
    Rule("bias", "patch_embed.bias"),
    Rule("pos", "pos_enc.pos"),
    Rule("head.kernel", "head.weights", "transpose"),
    name="small",
)


def test_a_module_in_evaluation_mode_drops_nothing_and_is_built_once():
    built = []

    def build(*args):
        built.append(args)
        return Small(*args)

    implementation = from_nnx(build, SMALL, **IDENTITY)
    case = small_case(num_layers=0)
    assert_agrees(implementation, case)
    assert built == [(case.config, 3, 7, 6)]


def test_a_module_in_training_mode_is_what_it_says():
    implementation = from_nnx(Small, SMALL, training=True, **IDENTITY)
    with pytest.raises(AssertionError, match="relative error"):
        assert_agrees(implementation, small_case(num_layers=0))


def test_names_that_a_module_has_and_the_map_has_not_are_all_listed():
    implementation = from_nnx(Small, **IDENTITY)
    point = point_of(small_case(num_layers=0), "float32")
    with pytest.raises(InvalidParameters) as caught:
        implementation.vjp(point.config, point.params, point.images, point.cotangent)
    missing = [p.split(":")[0] for p in caught.value.problems if "missing" in p]
    unexpected = [p.split(":")[0] for p in caught.value.problems if "unexpected" in p]
    assert missing == ["head.weights", "patch_embed.bias", "patch_embed.kernel", "pos_enc.pos"]
    assert unexpected == ["bias", "head.kernel", "kernel", "pos"]


# ---- the plain JAX peer, piece by piece ----------------------------------------------------------


def test_plain_attention_and_normalisation_have_the_shapes_of_their_input():
    layer = {f"mha.w{x}": jnp.ones((4, 6)) for x in "qkv"} | {"mha.wo": jnp.ones((6, 4))}
    x = jnp.ones((2, 3, 4))
    assert attention(layer, x, 2).shape == x.shape
    np.testing.assert_array_equal(normalize(x, jnp.ones(4), jnp.full(4, 2.0)), 2 * x)
