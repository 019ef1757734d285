"""Bad input gets one clear error, before any work: what was given, what was expected."""

import dataclasses
import itertools
import math
import pickle
import random

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from vitspec import (
    InvalidArray,
    InvalidParameters,
    NotWellFormed,
    TransformerStackConfig,
    ViTClsSpec,
    ViTConfig,
    ViTSpec,
    complex_step_derivative,
    distance_bound,
    encloses,
    from_reals,
    to_reals,
)
from vitspec.layers.activation import (
    hard_masked_softmax,
    relu,
    relu_backward,
    softmax,
    softmax_backward,
)
from vitspec.layers.attention import (
    attention_weights,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)
from vitspec.layers.conv2d import (
    Conv2DGrads,
    Conv2DSpec,
    conv2d,
    conv2d_backward,
    conv2d_input_deriv,
    conv2d_jvp,
)
from vitspec.layers.feed_forward import FeedForward, feed_forward, feed_forward_backward
from vitspec.layers.linear import LinearSpec, linear, linear_backward, linear_jvp
from vitspec.layers.multi_head_attention import (
    MultiHeadAttention,
    multi_head_attention,
    multi_head_attention_backward,
    multi_head_attention_trace,
    split_heads,
)
from vitspec.layers.normalization import layer_norm, layer_norm_backward, layer_norm_jvp
from vitspec.layers.positional_encoding import (
    PositionalEncodingSpec,
    add_positional_encoding,
    add_positional_encoding_backward,
)
from vitspec.models import model as building
from vitspec.models import vit
from vitspec.models.tokens import (
    cls_pool_backward,
    mean_pool,
    mean_pool_backward,
    prepend_cls,
    prepend_cls_backward,
    tokens_to_grid,
)
from vitspec.models.transformer import TransformerEncoder, encoder_jvp

SIZE = {"in_channels": 2, "height": 5, "width": 7}
CONFIG = ViTConfig(
    patch_h=2, patch_w=3, stride=2, padding=1, embed_dim=6, hidden_dim=5, head_count=2,
    num_layers=2, num_classes=4,
)  # fmt: skip
FIELDS = [field.name for field in dataclasses.fields(ViTConfig)]
MAX = 2**31 - 1
CLEAR = (InvalidArray, InvalidParameters, NotWellFormed, TypeCheckError)
"""The errors that are ours; a bare ValueError of NumPy's is not a clear one."""


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


@pytest.fixture(params=[ViTSpec, ViTClsSpec])
def model(request):
    return request.param.init(CONFIG, **SIZE, rng=np.random.default_rng(1))


@pytest.fixture
def image():
    return normal(2, 5, 7)


def _work(*args, **kwargs):
    raise AssertionError("work was done before the input was checked")


@pytest.fixture
def no_forward(monkeypatch):
    """Poison the first steps of the forward: whoever starts to work, fails."""
    for name in ("conv2d", "encoder_trace"):
        monkeypatch.setattr(vit, name, _work)


@pytest.fixture
def no_draw(monkeypatch):
    """Poison the drawing of parameters and the building of records."""
    for name in ("random_parameters", "build_encoder"):
        monkeypatch.setattr(building, name, _work)


def test_the_poisons_work(model, image, no_forward, no_draw):
    with pytest.raises(AssertionError, match="work was done"):
        model.forward(image)
    with pytest.raises(AssertionError, match="work was done"):
        type(model).init(CONFIG, **SIZE, rng=np.random.default_rng(1))
    with pytest.raises(AssertionError, match="work was done"):
        type(model).from_flat(CONFIG, model.to_flat(), **SIZE)


# ---- configurations ----------------------------------------------------------------------------

NOT_NATURAL = {
    "NaN": (math.nan, "nan (float)"),
    "float": (3.0, "3.0 (float)"),
    "NumPy float": (np.float64(3), "np.float64(3.0) (float64)"),
    "str": ("3", "'3' (str)"),
    "None": (None, "None (NoneType)"),
    "negative": (-1, "-1"),
    "bool": (True, "True (bool)"),
    "NumPy bool": (np.True_, "np.True_ (bool)"),
    "huge": (10**30, str(10**30)),
    "one too many": (2**31, "2147483648"),
    "list": ([3], "[3] (list)"),
    "array": (np.array([3, 4]), "array([3, 4]) (ndarray)"),
    "complex": (3 + 0j, "(3+0j) (complex)"),
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(("value", "shown"), NOT_NATURAL.values(), ids=NOT_NATURAL.keys())
def test_config_field_that_is_no_natural_number_is_refused_by_name(field, value, shown):
    with pytest.raises(NotWellFormed) as error:
        ViTConfig(**{field: value})
    expected = f"nat: {field} must be an integer from 0 to {MAX}, got {shown}"
    assert error.value.violations == (expected,)
    assert str(error.value) == f"ViTConfig is not well-formed:\n  - {expected}"


@pytest.mark.parametrize("config", [ViTConfig, TransformerStackConfig])
def test_config_lists_every_field_that_is_no_natural_number(config):
    names = [field.name for field in dataclasses.fields(config)]
    with pytest.raises(NotWellFormed) as error:
        config(**dict.fromkeys(names, -7))
    assert [v.split()[1] for v in error.value.violations] == names


def test_config_field_of_thousands_of_digits_is_refused():
    with pytest.raises(NotWellFormed, match="embed_dim must be an integer from 0 to"):
        ViTConfig(embed_dim=10**5000)


def test_long_values_are_cut_short_in_the_error():
    with pytest.raises(NotWellFormed) as error:
        ViTConfig(stride="x" * 10_000)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.int64, np.uint64, np.array])
def test_numpy_integers_are_accepted_and_become_python_integers(kind):
    config = ViTConfig(embed_dim=kind(24), num_layers=kind(0))
    assert config == ViTConfig(embed_dim=24, num_layers=0)
    assert type(config.embed_dim) is type(config.num_layers) is int
    assert hash(config) == hash(ViTConfig(embed_dim=24, num_layers=0))


def test_largest_admitted_field_is_2_to_31_less_1():
    assert ViTConfig(hidden_dim=MAX).hidden_dim == MAX


def test_violations_lists_every_broken_rule_under_its_lean_name():
    config = ViTConfig(**dict.fromkeys(FIELDS, 0))
    assert config.violations() == (
        "patchH_ne0: patch_h must not be 0",
        "patchW_ne0: patch_w must not be 0",
        "embedDim_pos: embed_dim must be positive",
        "hiddenDim_pos: hidden_dim must be positive",
        "headCount_pos: head_count must be positive",
        "numClasses_ne0: num_classes must not be 0",
    )
    with pytest.raises(NotWellFormed) as error:
        config.check_well_formed()
    assert error.value.violations == config.violations()
    assert all(f"\n  - {violation}" in str(error.value) for violation in config.violations())


def test_stack_config_lists_its_stricter_rules():
    assert TransformerStackConfig(head_count=3, embed_dim=8).violations() == (
        "headCount_dvd_embedDim: head_count must divide embed_dim",
    )
    labels = [v.split(":")[0] for v in TransformerStackConfig(0, 0, 0, 0).violations()]
    assert labels == ["headCount_pos", "embedDim_pos", "hiddenDim_pos"]
    assert len(TransformerStackConfig(head_count=0, embed_dim=8).violations()) == 2


# ---- building a model --------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [ViTSpec, ViTClsSpec])
@pytest.mark.usefixtures("no_draw")
def test_ill_formed_config_and_channels_are_listed_together_before_any_draw(cls):
    config = dataclasses.replace(CONFIG, patch_w=0, head_count=0)
    with pytest.raises(NotWellFormed) as error:
        cls.init(config, in_channels=0, height=5, width=7, rng=np.random.default_rng(0))
    labels = [violation.split(":")[0] for violation in error.value.violations]
    assert labels == ["patchW_ne0", "headCount_pos", "h_inC"]
    assert "0 x 5 x 7" in str(error.value)
    with pytest.raises(NotWellFormed) as again:
        cls.from_flat(config, {}, in_channels=0, height=5, width=7)
    assert again.value.violations == error.value.violations


@pytest.mark.usefixtures("no_draw")
def test_image_without_a_token_is_refused_for_mean_pooling_with_the_geometry_in_the_error():
    with pytest.raises(NotWellFormed) as error:
        ViTSpec.init(CONFIG, in_channels=2, height=5, width=0, rng=np.random.default_rng(0))
    (violation,) = error.value.violations
    assert violation == (
        "h_tok: mean pooling needs at least one token, but no patch fits into 5 x 0 "
        "(stride 2, padding 1)"
    )


def test_h_inC_and_h_tok_are_listed_together():
    with pytest.raises(NotWellFormed) as error:
        ViTSpec.init(CONFIG, in_channels=0, height=0, width=0, rng=np.random.default_rng(0))
    assert [v.split(":")[0] for v in error.value.violations] == ["h_inC", "h_tok"]


@pytest.mark.parametrize("cls", [ViTSpec, ViTClsSpec])
@pytest.mark.parametrize("bad", [math.nan, 5.0, "5", None, -5, True, 2**31], ids=repr)
@pytest.mark.usefixtures("no_draw")
def test_image_size_that_is_no_natural_number_is_refused_by_name(cls, bad):
    for name in SIZE:
        with pytest.raises(NotWellFormed) as error:
            cls.init(CONFIG, **(SIZE | {name: bad}), rng=np.random.default_rng(0))
        assert f"nat: {name} must be an integer from 0 to {MAX}, got {bad!r}" in str(error.value)


@pytest.mark.usefixtures("no_draw")
def test_every_bad_image_size_is_listed():
    with pytest.raises(NotWellFormed) as error:
        ViTSpec.init(CONFIG, in_channels=-1, height="a", width=None, rng=np.random.default_rng(0))
    assert [v.split()[1] for v in error.value.violations] == list(SIZE)


@pytest.mark.usefixtures("no_draw")
def test_array_for_in_channels_is_refused():
    with pytest.raises(NotWellFormed, match="in_channels must be an integer"):
        ViTSpec.init(
            CONFIG, in_channels=np.array([1, 2]), height=5, width=7, rng=np.random.default_rng(0)
        )


@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_numpy_integers_are_accepted_as_image_size(kind):
    size = {name: kind(value) for name, value in SIZE.items()}
    model = ViTSpec.init(CONFIG, **size, rng=np.random.default_rng(1))
    assert model.forward(normal(2, 5, 7)).shape == (4,)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"config": None}, "config"),
        ({"config": TransformerStackConfig()}, "ViTConfig"),
        ({"rng": 0}, "rng"),
        ({"dtype": np.int64}, "dtype"),
        ({"dtype": np.float16}, "dtype"),
        ({"dtype": object}, "dtype"),
    ],
    ids=["no config", "another config", "a seed for rng", "int64", "float16", "object"],
)
@pytest.mark.parametrize("cls", [ViTSpec, ViTClsSpec])
def test_init_refuses_what_is_not_a_config_a_generator_or_a_float_type(cls, changes, named):
    arguments = {"config": CONFIG, "rng": np.random.default_rng(1)} | changes
    with pytest.raises((*CLEAR, TypeError)) as error:
        cls.init(**SIZE, **arguments)
    assert named in str(error.value)
    assert "Conv2DSpec" not in str(error.value)


@pytest.mark.usefixtures("no_draw")
def test_model_that_no_machine_holds_is_refused_before_any_draw():
    config = dataclasses.replace(CONFIG, embed_dim=2**31 - 1)
    with pytest.raises(InvalidParameters, match=r"at most 1,000,000,000,000 numbers, got \d"):
        ViTSpec.init(config, **SIZE, rng=np.random.default_rng(0))


def test_flat_parameters_list_everything_that_is_wrong_at_once(model, no_draw):
    flat = dict(model.to_flat())
    del flat["head.bias"]
    flat["head.wieghts"] = flat.pop("head.weights")
    flat["patch_embed.kernel"] = flat["patch_embed.kernel"].transpose(0, 1, 3, 2)
    flat["pos_enc.pos"] = flat["pos_enc.pos"].tolist()
    flat["encoder.layers.1.ffn.b1"] = flat["encoder.layers.1.ffn.b1"].astype(np.float32)
    flat["encoder.layers.2.ffn.b1"] = flat["encoder.layers.1.ffn.b2"]
    with pytest.raises(InvalidParameters) as error:
        type(model).from_flat(CONFIG, flat, **SIZE)
    assert list(error.value.problems) == sorted(
        [
            "head.bias: missing, expected shape (4,)",
            "head.weights: missing, expected shape (4, 6)",
            "head.wieghts: unexpected name",
            "encoder.layers.2.ffn.b1: unexpected name",
            "patch_embed.kernel: expected shape (6, 2, 2, 3), got (6, 2, 3, 2)",
            "pos_enc.pos: expected a NumPy array, got list",
            "the arrays mix the scalar types float32, float64; expected one",
        ]
    )
    assert all(f"\n  - {problem}" in str(error.value) for problem in error.value.problems)


def test_parameters_of_the_other_model_are_refused(model, no_draw):
    other = {ViTSpec: ViTClsSpec, ViTClsSpec: ViTSpec}[type(model)]
    with pytest.raises(InvalidParameters, match=r"cls_token: (missing|unexpected)"):
        other.from_flat(CONFIG, model.to_flat(), **SIZE)


def test_parameters_for_another_image_size_are_refused(model, no_draw):
    with pytest.raises(InvalidParameters, match=r"pos_enc\.pos: expected shape"):
        type(model).from_flat(CONFIG, model.to_flat(), in_channels=2, height=9, width=7)


@pytest.mark.parametrize(
    "dtype",
    ["int64", "float16", "complex64", "bool"],
)
def test_flat_parameters_of_no_scalar_world_are_refused(model, dtype):
    flat = {name: leaf.astype(dtype) for name, leaf in model.to_flat().items()}
    with pytest.raises(InvalidParameters, match=dtype):
        type(model).from_flat(CONFIG, flat, **SIZE)


def test_object_arrays_of_anything_but_balls_are_refused(model, image):
    with pytest.raises(CLEAR, match=r"arb|ball|to_reals"):
        to_reals(model).forward(image.astype(object))


@pytest.mark.parametrize("flat", [None, [1.0]], ids=["None", "list"])
def test_flat_parameters_that_are_no_mapping_are_refused(model, flat):
    with pytest.raises(InvalidParameters, match="mapping"):
        type(model).from_flat(CONFIG, flat, **SIZE)


def test_records_that_disagree_with_the_config_are_refused_by_name(model):
    strided = dataclasses.replace(model.patch_embed, stride=1, padding=0)
    with pytest.raises(InvalidParameters) as error:
        dataclasses.replace(model, patch_embed=strided)
    assert error.value.problems == (
        "patch_embed.stride: expected 2, got 1",
        "patch_embed.padding: expected 1, got 0",
    )
    first, second = model.encoder.layers
    second = dataclasses.replace(second, mha=dataclasses.replace(second.mha, head_count=3))
    with pytest.raises(InvalidParameters, match=r"layers\.1\.mha\.head_count: expected 2, got 3"):
        dataclasses.replace(model, encoder=TransformerEncoder((first, second)))


def test_layer_of_another_width_is_refused_by_name(model):
    narrow = type(model).init(
        dataclasses.replace(CONFIG, hidden_dim=4), **SIZE, rng=np.random.default_rng(0)
    )
    layers = TransformerEncoder((model.encoder.layers[0], narrow.encoder.layers[1]))
    with pytest.raises(InvalidParameters, match=r"layers\.1\.ffn\.w1: expected shape \(6, 5\)"):
        dataclasses.replace(model, encoder=layers)


# ---- images, cotangents, tangents --------------------------------------------------------------


def corrupt(array, value):
    bad = array.copy()
    bad[tuple(n // 2 for n in array.shape)] = value
    return bad


WANT = r"expected shape (2, 5, 7) (channels, height, width) of float64, got "
BAD_IMAGES = {
    "rank 2": (lambda x: x[0], WANT + "shape (5, 7)"),
    "a batch": (lambda x: x[None], WANT + "shape (1, 2, 5, 7)"),
    "another height": (lambda x: x[:, 1:], WANT + "shape (2, 4, 7)"),
    "another width": (lambda x: x[:, :, 1:], WANT + "shape (2, 5, 6)"),
    "another channel count": (lambda x: x[:1], WANT + "shape (1, 5, 7)"),
    "height and width exchanged": (lambda x: x.swapaxes(1, 2), WANT + "shape (2, 7, 5)"),
    "channels last": (
        lambda x: x.transpose(1, 2, 0),
        WANT + "shape (5, 7, 2); it looks like channels last: transpose it",
    ),
    "uint8": (lambda x: np.abs(x * 9).astype(np.uint8), WANT + "uint8; convert"),
    "int64": (lambda x: (x * 9).astype(np.int64), WANT + "int64; convert"),
    "bool": (lambda x: x > 0, WANT + "bool; convert"),
    "complex into floats": (lambda x: x + 0j, WANT + "complex128; convert"),
    "float32": (lambda x: x.astype(np.float32), WANT + "float32; convert"),
    "longdouble": (lambda x: x.astype(np.longdouble), WANT + str(np.dtype(np.longdouble))),
    "balls": (to_reals, WANT + "object; convert"),
    "list": (lambda x: x.tolist(), WANT + "list; pass a NumPy array"),
    "number": (lambda x: 3.0, WANT + "float; pass a NumPy array"),
    "None": (lambda x: None, WANT + "NoneType; pass a NumPy array"),
    "NaN": (lambda x: corrupt(x, np.nan), "expected finite numbers, got NaN or infinity among"),
    "infinity": (lambda x: corrupt(x, np.inf), "expected finite numbers, got NaN or infinity"),
    "minus infinity": (lambda x: corrupt(x, -np.inf), "expected finite numbers, got NaN or inf"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
@pytest.mark.usefixtures("no_forward")
def test_bad_image_is_refused_by_forward_trace_backward_and_jvp(model, image, spoil, message):
    bad, d_logits = spoil(image), normal(4)
    calls = [
        lambda: model.forward(bad),
        lambda: model.trace(bad),
        lambda: model.backward(bad, d_logits),
        lambda: model.jvp(bad, model, image),
    ]
    for call in calls:
        with pytest.raises(InvalidArray) as error:
            call()
        assert str(error.value).startswith(f"image: {message}")
    with pytest.raises(InvalidArray) as error:
        model.jvp(image, model, bad)
    assert str(error.value).startswith(f"d_image: {message}")


@pytest.mark.parametrize("world", ["float32", "longdouble", "complex128", "arb"])
@pytest.mark.usefixtures("no_forward")
def test_float64_image_into_a_model_of_another_world_is_refused(model, image, world):
    other = to_reals(model) if world == "arb" else model.astype(world)
    for call in (
        lambda: other.forward(image),
        lambda: other.backward(image, normal(4)),
        lambda: other.jvp(image, other, image),
    ):
        with pytest.raises(InvalidArray, match=f"of {other.dtype}, got float64; convert"):
            call()


def test_infinite_ball_in_the_image_is_refused(model, image):
    with np.errstate(invalid="ignore"):
        balls = to_reals(corrupt(image, np.inf))
    with pytest.raises(InvalidArray, match="expected finite numbers"):
        to_reals(model).forward(balls)


WANT_LOGITS = "d_logits: expected shape (4,) (classes) of float64, got "
BAD_COTANGENTS = {
    "too many classes": (lambda g: np.append(g, 1.0), WANT_LOGITS + "shape (5,)"),
    "rank 2": (lambda g: g[None], WANT_LOGITS + "shape (1, 4)"),
    "rank 0": (lambda g: g[0:1].reshape(()), WANT_LOGITS + "shape ()"),
    "float32": (lambda g: g.astype(np.float32), WANT_LOGITS + "float32; convert d_logits"),
    "one-hot integers": (lambda g: (g > 0).astype(int), WANT_LOGITS + "int64; convert d_logits"),
    "a label": (lambda g: 3, WANT_LOGITS + "int; pass a NumPy array"),
    "list": (lambda g: g.tolist(), WANT_LOGITS + "list; pass a NumPy array"),
    "NaN": (lambda g: corrupt(g, np.nan), "d_logits: expected finite numbers, got NaN"),
    "infinity": (lambda g: corrupt(g, np.inf), "d_logits: expected finite numbers, got NaN"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_COTANGENTS.values(), ids=BAD_COTANGENTS.keys())
@pytest.mark.usefixtures("no_forward")
def test_bad_cotangent_is_refused(model, image, spoil, message):
    with pytest.raises(InvalidArray) as error:
        model.backward(image, spoil(normal(4)))
    assert str(error.value).startswith(message)


@pytest.mark.usefixtures("no_forward")
def test_tangent_of_another_kind_is_refused(model, image):
    other = {ViTSpec: ViTClsSpec, ViTClsSpec: ViTSpec}[type(model)]
    own, name = type(model).__name__, other.__name__
    for tangent, got in [(None, "NoneType"), (model.to_flat(), "dict"), (image, "ndarray")]:
        with pytest.raises(InvalidParameters, match=f"expected a {own}, got {got}"):
            model.jvp(image, tangent, image)
    with pytest.raises(InvalidParameters, match=f"expected a {own}, got {name}"):
        model.jvp(image, object.__new__(other), image)


def test_gradients_as_a_tangent_are_refused(model, image):
    grads, _ = model.backward(image, normal(4))
    with pytest.raises(InvalidParameters, match=r"expected a ViT\w*Spec, got ViT\w*Grads"):
        model.jvp(image, grads, image)


@pytest.mark.parametrize(
    ("changes", "size", "problem"),
    [
        ({"hidden_dim": 4}, {}, r"ffn\.w1: expected shape \(6, 5\), got \(6, 4\)"),
        ({"num_layers": 1}, {}, r"encoder\.layers\.1\.ffn\.b1: missing"),
        ({"num_layers": 3}, {}, r"encoder\.layers\.2\.ffn\.b1: unexpected name"),
        ({}, {"width": 11}, r"pos_enc\.pos: expected shape"),
        ({}, {"in_channels": 3}, r"patch_embed\.kernel: expected shape"),
    ],
    ids=["hidden_dim", "fewer layers", "more layers", "another image size", "channels"],
)
@pytest.mark.usefixtures("no_forward")
def test_tangent_of_another_shape_is_refused(model, image, changes, size, problem):
    config = dataclasses.replace(CONFIG, **changes)
    tangent = type(model).init(config, **(SIZE | size), rng=np.random.default_rng(2))
    with pytest.raises(InvalidParameters, match=problem):
        model.jvp(image, tangent, image)


@pytest.mark.usefixtures("no_forward")
def test_tangent_of_another_world_is_refused(model, image):
    tangent = model.astype(np.float32)
    with pytest.raises(InvalidParameters, match="expected scalar type float64, got float32"):
        model.jvp(image, tangent, image)


def test_tangent_with_nan_is_refused(model, image):
    tangent = model.map(lambda leaf: corrupt(leaf, np.nan))
    with pytest.raises((InvalidParameters, InvalidArray), match="finite"):
        model.jvp(image, tangent, image)


# ---- layers ------------------------------------------------------------------------------------

CONV = Conv2DSpec(stride=2, padding=1, kernel=normal(6, 2, 2, 3), bias=normal(6))
LINEAR = LinearSpec(weights=normal(3, 5), bias=normal(3))
MHA = MultiHeadAttention(2, normal(7, 6), normal(7, 6, seed=1), normal(7, 6, seed=2), normal(6, 7))
FFN = FeedForward(w1=normal(7, 5), w2=normal(5, 7), b1=normal(5), b2=normal(7))
POS = PositionalEncodingSpec(pos=normal(4, 7))

WRONG_CALLS = {
    # rank, kind of scalar, agreement of two arrays
    "relu of a list": lambda: relu([1.0, -2.0]),
    "relu of integers": lambda: relu(np.arange(3)),
    "relu of float16": lambda: relu(normal(3).astype(np.float16)),
    "relu backward, other shape": lambda: relu_backward(normal(3), normal(4)),
    "softmax of a number": lambda: softmax(np.float64(3)),
    "softmax backward, other shape": lambda: softmax_backward(normal(3, 4), normal(4, 3)),
    "softmax backward, broadcastable": lambda: softmax_backward(normal(3, 4), normal(1, 4)),
    "mask of numbers": lambda: hard_masked_softmax(normal(3, 4), np.ones((3, 4), np.uint8)),
    "mask exchanged": lambda: hard_masked_softmax(normal(3, 4), np.ones((4, 3), bool)),
    "mask broadcastable": lambda: hard_masked_softmax(normal(3, 4), np.ones((1, 4), bool)),
    "keys of another width": lambda: attention_weights(normal(3, 4), normal(5, 3)),
    "as many values as queries": lambda: scaled_dot_product_attention(
        normal(3, 4), normal(5, 4), normal(3, 4)
    ),
    "heads broadcastable": lambda: attention_weights(normal(2, 3, 4), normal(1, 5, 4)),
    "attention cotangent": lambda: scaled_dot_product_attention_backward(
        normal(3, 4), normal(5, 4), normal(5, 6), normal(3, 4)
    ),
    "attention mask of numbers": lambda: multi_head_attention(MHA, normal(4, 7), np.ones((4, 4))),
    "attention mask not square": lambda: multi_head_attention(
        MHA, normal(4, 7), np.ones((4, 5), bool)
    ),
    "image of rank 2": lambda: conv2d(CONV, normal(5, 7)),
    "record for an array": lambda: conv2d(CONV, CONV),
    "array for a record": lambda: conv2d(CONV.kernel, normal(2, 5, 7)),
    "another record": lambda: conv2d(LINEAR, normal(2, 5, 7)),
    "tokens of rank 3": lambda: feed_forward(FFN, normal(1, 4, 7)),
    "trace of another length": lambda: multi_head_attention_backward(
        MHA, normal(4, 7), normal(4, 7), None, multi_head_attention_trace(MHA, normal(3, 7))
    ),
    "trace of another kind": lambda: multi_head_attention_backward(
        MHA, normal(4, 7), normal(4, 7), None, normal(4, 7)
    ),
    "mha cotangent": lambda: multi_head_attention_backward(MHA, normal(4, 7), normal(7, 4)),
    "ffn cotangent": lambda: feed_forward_backward(FFN, normal(4, 7), normal(4, 5)),
    "layer_norm of a row": lambda: layer_norm(normal(5), normal(5), normal(5)),
    "layer_norm cotangent": lambda: layer_norm_backward(normal(4, 5), normal(5), normal(5, 4)),
    "records: wk narrower": lambda: MultiHeadAttention(
        2, normal(7, 6), normal(7, 4), normal(7, 6), normal(6, 7)
    ),
    "records: wo not transposed": lambda: MultiHeadAttention(
        2, normal(7, 6), normal(7, 6), normal(7, 6), normal(7, 6)
    ),
    "records: w2 not transposed": lambda: FeedForward(
        normal(7, 5), normal(7, 5), normal(5), normal(7)
    ),
    "records: kernel of rank 3": lambda: Conv2DSpec(1, 0, normal(6, 2, 3), normal(6)),
    "records: stride a float": lambda: Conv2DSpec(1.0, 0, normal(6, 2, 2, 3), normal(6)),
    "records: integer weights": lambda: LinearSpec(np.ones((3, 5), int), np.ones(3, int)),
    "records: layers a list": lambda: TransformerEncoder([]),
    "prepend_cls: tokens of rank 1": lambda: prepend_cls(normal(7), normal(7)),
}

UNQUOTED_CALLS = {
    "records: bias of another length": lambda: Conv2DSpec(1, 0, normal(6, 2, 2, 3), normal(5)),
    "records: bias of rank 2": lambda: LinearSpec(normal(3, 5), normal(3, 1)),
    "records: bias is text": lambda: LinearSpec(normal(3, 5), "bias"),
    "records: b1 and b2 exchanged": lambda: FeedForward(
        normal(7, 5), normal(5, 7), normal(7), normal(5)
    ),
    "gradient of the bias of another length": lambda: Conv2DGrads(normal(6, 2, 2, 3), normal(5)),
    "gamma of one entry": lambda: layer_norm(normal(4, 5), normal(1), normal(5)),
    "gamma of every entry": lambda: layer_norm(normal(4, 5), normal(4, 5), normal(5)),
    "beta of another length": lambda: layer_norm(normal(4, 5), normal(5), normal(4)),
    "d_beta of one entry": lambda: layer_norm_jvp(
        normal(4, 5), normal(5), normal(4, 5), normal(5), normal(1)
    ),
    "CLS token of another width": lambda: prepend_cls(normal(5), normal(4, 7)),
    "cotangent of the mean of rank 2": lambda: mean_pool_backward(normal(1, 5), 4),
    "linear of a matrix": lambda: linear(LINEAR, normal(5, 3)),
    "linear cotangent of integers": lambda: linear_backward(LINEAR, normal(5), np.arange(3)),
}


@pytest.mark.parametrize(
    "call",
    [pytest.param(call, id=name) for name, call in WRONG_CALLS.items()]
    + [pytest.param(call, id=name) for name, call in UNQUOTED_CALLS.items()],
)
def test_layer_refuses_wrong_rank_size_or_kind(call):
    with pytest.raises((TypeCheckError, InvalidArray)) as error:
        call()
    assert len(str(error.value)) > 40


def test_type_errors_name_function_argument_and_both_shapes():
    with pytest.raises(TypeCheckError) as error:
        conv2d(CONV, normal(5, 7))
    message = str(error.value)
    for part in ("conv2d", "'x'", "f64[5,7]", "C H W"):
        assert part in message


BETWEEN_RECORD_AND_ARRAY = {
    # A broadcast or a reshape that gives a wrong number in silence.
    "one position for every token": lambda: add_positional_encoding(
        PositionalEncodingSpec(normal(1, 7)), normal(4, 7)
    ),
    "positions of width one": lambda: add_positional_encoding(
        PositionalEncodingSpec(normal(4, 1)), normal(4, 7)
    ),
    "position cotangent of another length": lambda: add_positional_encoding_backward(
        POS, normal(5, 7)
    ),
    "grid exchanged": lambda: conv2d_backward(CONV, normal(2, 5, 7), normal(6, 4, 3)),
    "grid of one position": lambda: conv2d_input_deriv(CONV, normal(2, 5, 7), normal(6, 1, 1)),
    "tangent of one output channel": lambda: conv2d_jvp(
        CONV, normal(2, 5, 7), Conv2DSpec(2, 1, normal(1, 2, 2, 3), normal(1)), normal(2, 5, 7)
    ),
    "tangent with the patch exchanged": lambda: conv2d_jvp(
        CONV, normal(2, 5, 7), Conv2DSpec(2, 1, normal(6, 2, 3, 2), normal(6)), normal(2, 5, 7)
    ),
    "tangent of one class": lambda: linear_jvp(
        LINEAR, normal(5), LinearSpec(normal(1, 5), normal(1)), normal(5)
    ),
    # An error of NumPy's that names no argument.
    "image of three channels for two": lambda: conv2d(CONV, normal(3, 5, 7)),
    "cotangent of five channels for six": lambda: conv2d_backward(
        CONV, normal(2, 5, 7), normal(5, 3, 4)
    ),
    "positions of another length": lambda: add_positional_encoding(POS, normal(5, 7)),
    "tokens of another width into attention": lambda: multi_head_attention(MHA, normal(4, 5)),
    "tokens of another width into the feed-forward": lambda: feed_forward(FFN, normal(4, 5)),
    "row of another width into the head": lambda: linear(LINEAR, normal(4)),
    "cotangent of four classes for three": lambda: linear_backward(LINEAR, normal(5), normal(4)),
    "no heads": lambda: multi_head_attention(dataclasses.replace(MHA, head_count=0), normal(4, 7)),
    "heads that do not divide I": lambda: multi_head_attention(
        dataclasses.replace(MHA, head_count=4), normal(4, 7)
    ),
    "split into heads that do not divide I": lambda: split_heads(normal(4, 6), 4),
    "negative stride": lambda: conv2d(dataclasses.replace(CONV, stride=-1), normal(2, 5, 7)),
    "negative padding": lambda: conv2d(dataclasses.replace(CONV, padding=-1), normal(2, 5, 7)),
    "tokens that do not fill the grid": lambda: tokens_to_grid(normal(5, 7), 2, 3),
    "tangent of fewer layers": lambda: encoder_jvp(
        _encoder(2), normal(4, 6), TransformerEncoder(()), normal(4, 6)
    ),
    "mean of no token": lambda: mean_pool(normal(0, 5)),
    "layer_norm of width 0": lambda: layer_norm(normal(4, 0), normal(0), normal(0)),
}


def _encoder(layers):
    config = dataclasses.replace(CONFIG, num_layers=layers)
    return ViTSpec.init(config, **SIZE, rng=np.random.default_rng(0)).encoder


@pytest.mark.parametrize(
    "call", BETWEEN_RECORD_AND_ARRAY.values(), ids=BETWEEN_RECORD_AND_ARRAY.keys()
)
def test_layer_refuses_an_array_that_does_not_fit_its_record(call):
    with pytest.raises(CLEAR):
        call()


def test_axis_errors_name_the_function_the_axis_and_both_holders():
    with pytest.raises(InvalidArray) as error:
        multi_head_attention(MHA, normal(4, 5))
    message = str(error.value)
    for part in ("multi_head_attention", "axis D", "7 in mha.wq", "5 in x"):
        assert part in message


@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_layer_of_an_encoder_is_checked_not_one_at_random(place):
    layers = [*_encoder(3).layers]
    layers[place] = layers[place].mha
    for _ in range(5):
        with pytest.raises(TypeCheckError, match="layers"):
            TransformerEncoder(tuple(layers))


# ---- one call, one world -----------------------------------------------------------------------


def single(x):
    return x.astype(np.float32)


MIXTURES = {
    "record and array": lambda x: conv2d(x(CONV), normal(2, 5, 7)),
    "array and record": lambda x: conv2d(CONV, x(normal(2, 5, 7))),
    "two arrays": lambda x: softmax_backward(normal(3, 4), x(normal(3, 4))),
    "keyword argument": lambda x: softmax_backward(normal(3, 4), d_out=x(normal(3, 4))),
    "keys": lambda x: scaled_dot_product_attention(normal(3, 4), x(normal(5, 4)), normal(5, 4)),
    "cotangent": lambda x: multi_head_attention_backward(MHA, normal(4, 7), x(normal(4, 7))),
    "gamma": lambda x: layer_norm(normal(4, 5), x(normal(5)), normal(5)),
    "the fields of one record": lambda x: LinearSpec(normal(3, 5), x(normal(3))),
    "the layers of one encoder": lambda x: TransformerEncoder(
        (_encoder(1).layers[0], x(_encoder(1).layers[0]))
    ),
    "saved weights": lambda x: scaled_dot_product_attention_backward(
        normal(3, 4), normal(5, 4), normal(5, 4), normal(3, 4), None, x(normal(3, 5))
    ),
    "a trace": lambda x: multi_head_attention_backward(
        MHA, normal(4, 7), normal(4, 7), None, multi_head_attention_trace(x(MHA), x(normal(4, 7)))
    ),
}
WORLDS = {
    "float32": single,
    "longdouble": lambda x: x.astype(np.longdouble),
    "complex128": lambda x: x.astype(np.complex128),
    "arb": to_reals,
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("call", MIXTURES.values(), ids=MIXTURES.keys())
def test_float64_mixed_with_another_world_is_refused_naming_both(call, world):
    with pytest.raises(InvalidArray, match="one call works in one scalar type") as error:
        call(WORLDS[world])
    assert "float64" in str(error.value)
    other = "object" if world == "arb" else str(np.dtype(world))
    assert other in str(error.value)


@pytest.mark.parametrize("world", ["longdouble", "complex128", "arb"])
def test_float32_mixed_with_another_world_is_refused_naming_both(world):
    convert = WORLDS[world]
    with pytest.raises(InvalidArray, match=r"softmax_backward: one call works in .* float32 and"):
        softmax_backward(single(normal(3, 4)), convert(normal(3, 4)))
    with pytest.raises(InvalidArray, match="LinearSpec: one call works in one scalar type"):
        LinearSpec(single(normal(3, 5)), convert(normal(3)))


# ---- real balls --------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [63, 53, 0, -1])
def test_to_reals_with_fewer_bits_than_a_longdouble_has_is_refused(bits):
    with pytest.raises(ValueError, match=f"bits must be at least 64.*got {bits}"):
        to_reals(normal(3), bits=bits)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "complex128", "object"])
def test_to_reals_of_what_is_no_real_float_is_refused(dtype):
    with pytest.raises(ValueError, match=f"to_reals converts float arrays, got {dtype}"):
        to_reals(normal(3).astype(dtype))


@pytest.mark.parametrize("value", [[1.5], 1.5, None], ids=["list", "number", "None"])
def test_to_reals_of_what_is_no_array_is_refused(value):
    with pytest.raises(ValueError, match="to_reals"):
        to_reals(value)


def test_from_reals_of_floats_is_refused():
    with pytest.raises(ValueError, match="from_reals"):
        from_reals(normal(3))


# ---- side effects of checking ------------------------------------------------------------------


def test_checks_do_not_consume_the_global_random_stream(model, image):
    random.seed(0)
    before = random.getstate()
    model.backward(image, normal(4))
    assert random.getstate() == before


# ---- helpers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("helper", [encloses, distance_bound], ids=["encloses", "distance_bound"])
def test_balls_and_floats_of_another_shape_are_refused(helper):
    with pytest.raises(InvalidArray, match=r"one shape, got \(2, 3\), \(3, 2\)"):
        helper(to_reals(normal(2, 3)), normal(3, 2))


@pytest.mark.parametrize(
    ("x", "v"),
    [
        (normal(3), normal(1)),
        (np.arange(3), np.arange(3)),
        (normal(3), normal(3).astype(np.float32)),
    ],
    ids=["shapes", "integers", "types"],
)
def test_complex_step_of_what_does_not_fit_is_refused(x, v):
    with pytest.raises(InvalidArray, match="complex_step_derivative"):
        complex_step_derivative(np.exp, x, v)


def test_flat_parameters_of_python_floats_are_refused(model):
    flat = {name: leaf.astype(object) for name, leaf in model.to_flat().items()}
    with pytest.raises(InvalidParameters, match=r"head\.bias: objects must be real balls"):
        type(model).from_flat(CONFIG, flat, **SIZE)


def test_masked_image_is_refused(model, image):
    with pytest.raises(InvalidArray, match="got MaskedArray; pass a NumPy array"):
        model.forward(np.ma.masked_array(image, mask=image > 0))


def test_dtype_that_is_none_is_refused_by_name(model):
    with pytest.raises(InvalidArray, match=r"dtype: expected one of .* got 'nonsense'"):
        type(model).init(CONFIG, **SIZE, rng=np.random.default_rng(0), dtype="nonsense")


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_pool_backward(normal(5), 0),
        lambda: cls_pool_backward(normal(5), 0),
        lambda: prepend_cls_backward(normal(0, 5)),
        lambda: scaled_dot_product_attention_backward(
            normal(3, 2), normal(0, 2), normal(0, 2), normal(3, 2), None, normal(3, 0)
        ),
    ],
    ids=["mean", "cls", "prepend", "attention"],
)
def test_backward_of_nothing_is_refused(call):
    with pytest.raises(InvalidArray, match="at least one"):
        call()


def test_distance_to_a_number_below_every_float_is_not_zero():
    tiny = to_reals(np.array([1e-300])) * to_reals(np.array([1e-300]))
    assert (distance_bound(tiny, np.zeros(1)) > 0).all()


@pytest.mark.parametrize(
    "error",
    [NotWellFormed("a", ["b: c", "d: e"]), InvalidParameters("a", ["b"]), InvalidArray("a")],
    ids=lambda e: type(e).__name__,
)
def test_errors_travel_between_processes(error):
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


@pytest.mark.usefixtures("no_draw")
def test_model_of_two_billion_layers_is_refused_at_once():
    config = dataclasses.replace(CONFIG, num_layers=2**31 - 1)
    for make in (
        lambda: ViTSpec.init(config, **SIZE, rng=np.random.default_rng(0)),
        lambda: ViTSpec.from_flat(config, {}, **SIZE),
    ):
        with pytest.raises(InvalidParameters, match=r"at most 100,000 layers, got 2,147,483,647"):
            make()


def test_gradients_share_no_memory_with_each_other_or_the_inputs(model, image):
    d_logits = normal(4)
    grads, d_image = model.backward(image, d_logits)
    arrays = [*grads.to_flat().values(), d_image, d_logits, image]
    pairs = itertools.combinations(arrays, 2)
    assert not any(np.shares_memory(a, b) for a, b in pairs)
