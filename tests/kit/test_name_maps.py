"""Name maps: every layout that ships against a plain NumPy formula, and as a linear map.

A name map that loses, repeats or misplaces one entry would blame a correct implementation, or
worse, acquit a wrong one. So every map must be a bijection of entries (round trips in both
directions) and carry gradients by its adjoint: <to_theirs(p), g> = <p, to_our_gradients(g)>,
exactly, since the numbers here are small integers.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitspec import InvalidParameters, ViTConfig, ViTSpec, parameter_shapes
from vitspec.testing.adapters import LAYOUTS, NAME_MAPS, Constant, NameMap, Rule, from_jax
from vitspec.testing.adapters.adapter import split_output
from vitspec.testing.adapters.frameworks import framework, installed_version
from vitspec.testing.adapters.layouts import arrangement
from vitspec.testing.adapters.maps import LAYER, SAME_NAMES, TORCH_ENCODER

# ---- layouts -------------------------------------------------------------------------------------


def heads(x, h, axis=-1):
    """Split one axis into heads."""
    return np.stack(np.split(x, h, axis), axis % x.ndim)


def by_head(q, k, v, h):
    """q, k and v of head 0, then of head 1, ...: along the last axis."""
    parts = [np.split(x, h, axis=-1) for x in (q, k, v)]
    return np.concatenate([part[i] for i in range(h) for part in parts], axis=-1)


def window(kernel, last):
    """A kernel (D, C, ph, pw) as rows of D, in which the axis `last` varies fastest."""
    order = {"pw": "dcij", "C": "dijc"}[last]
    return np.einsum(f"dcij->{order}", kernel).reshape(len(kernel), -1)


FORMULAS = {
    "same": lambda x: x,
    "transpose": lambda x: x.T,
    "kernel-hwio": lambda x: np.moveaxis(x, (0, 1), (3, 2)),
    "kernel-chw-in-out": lambda x: window(x, "pw").T,
    "kernel-hwc-in-out": lambda x: window(x, "C").T,
    "kernel-chw-out-in": lambda x: window(x, "pw"),
    "kernel-hwc-out-in": lambda x: window(x, "C"),
    "row-1": lambda x: x[None],
    "row-1-1": lambda x: x[None, None],
    "rows-1": lambda x: x[None],
    "heads-in": lambda x, h: heads(x, h),
    "heads-in-first": lambda x, h: np.array(np.split(x, h, axis=1)),
    "heads-out": lambda x, h: np.array(np.split(x, h, axis=0)),
    "heads-bias": lambda x, h: np.array(np.split(x, h)),
    "qkv-in-out": lambda q, k, v, h: np.concatenate([q, k, v], axis=1),
    "qkv-out-in": lambda q, k, v, h: np.concatenate([q.T, k.T, v.T]),
    "qkv-by-head-in-out": by_head,
    "qkv-by-head-out-in": lambda q, k, v, h: by_head(q, k, v, h).T,
    "qkv-d3hd": lambda q, k, v, h: np.stack([heads(x, h) for x in (q, k, v)], axis=1),
    "qkv-dh3d": lambda q, k, v, h: np.stack([heads(x, h) for x in (q, k, v)], axis=2),
    "qkv-3dhd": lambda q, k, v, h: np.stack([heads(x, h) for x in (q, k, v)]),
    "qkv-bias": lambda q, k, v, h: np.concatenate([q, k, v]),
    "qkv-by-head-bias": by_head,
    "qkv-bias-3hd": lambda q, k, v, h: np.stack([heads(x, h) for x in (q, k, v)]),
    "qkv-bias-h3d": lambda q, k, v, h: np.stack([heads(x, h) for x in (q, k, v)], axis=1),
}
"""What each layout makes of one array, or of q, k and v; written without patterns."""


def source_shape(name, size):
    """The shape of one array of ours for this layout."""
    D, I, window = size["D"], size["H"] * size["d"], (size["C"], size["ph"], size["pw"])  # noqa: E741
    if name.startswith("kernel"):
        return (D, *window)
    if name.endswith(("bias", "3hd", "h3d")) and "bias" in name:
        return (I,)
    if name.startswith(("heads-in", "qkv")):
        return (D, I)
    by_name = {"heads-out": (I, D), "row-1": (D,), "row-1-1": (D,), "rows-1": (size["n"], D)}
    return by_name.get(name, (size["i"], size["o"]))


@st.composite
def distinct_sizes(draw):
    """A size for every axis, no two alike, so that no two axes can be mistaken for each other."""
    letters = ["D", "H", "d", "C", "ph", "pw", "n", "i", "o"]
    return dict(zip(letters, draw(st.permutations(range(1, 10))), strict=True))


def integers(rng, shape):
    """Small integers as floats: their products and sums are exact."""
    return rng.integers(-9, 10, shape).astype(np.float64)


def arrange(name, arrays, sizes):
    """What the layout makes of the arrays, and the arrangement."""
    arrays = arrays[0] if len(arrays) == 1 else np.stack(arrays)
    known = {axis: size for axis, size in sizes.items() if axis not in "io"}
    arranged = arrangement(name, arrays.shape, known)
    return arranged.there(arrays), arranged, arrays


@pytest.mark.parametrize("name", LAYOUTS)
@given(sizes=distinct_sizes(), seed=st.integers(0, 2**32 - 1))
def test_a_layout_is_its_formula_its_own_inverse_backwards_and_its_adjoint(name, sizes, seed):
    rng = np.random.default_rng(seed)
    count = 3 if name.startswith("qkv") else 1
    arrays = [integers(rng, source_shape(name, sizes)) for _ in range(count)]
    theirs, arranged, ours = arrange(name, arrays, sizes)
    takes_heads = name.startswith(("heads", "qkv"))
    expected = FORMULAS[name](*arrays, *([sizes["H"]] if takes_heads else []))
    np.testing.assert_array_equal(theirs, expected)
    assert arranged.shape == theirs.shape
    np.testing.assert_array_equal(arranged.back(theirs), ours)
    other = integers(rng, theirs.shape)
    np.testing.assert_array_equal(arranged.there(arranged.back(other)), other)
    assert np.vdot(theirs, other) == np.vdot(ours, arranged.back(other))


def test_every_layout_has_a_formula():
    assert FORMULAS.keys() == LAYOUTS.keys()


def test_layouts_differ_from_each_other():
    """The formulas, and these sizes, tell any two layouts of one input apart."""
    sizes = {"D": 5, "H": 2, "d": 3, "C": 4, "ph": 6, "pw": 7, "n": 8, "i": 9, "o": 10}
    found = {}
    for name in LAYOUTS:
        count = 3 if name.startswith("qkv") else 1
        shape = source_shape(name, sizes)
        arrays = [np.arange(np.prod(shape)).reshape(shape) + 1000 * i for i in range(count)]
        theirs, _, _ = arrange(name, arrays, sizes)
        found[name] = (theirs.shape, theirs.tobytes(), shape, count)
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize(
    ("layout", "shape", "message"),
    [
        ("flipped", (2, 3), "unknown layout 'flipped'"),
        ("a b -> b c", (2, 3), "both sides must have the same axes"),
        ("a a -> a a", (2, 2), "each once"),
        ("a b -> b a", (2, 3, 4), "for 2 axes"),
        ("a (H d) -> a H d", (2, 7), "H=3 x d=? does not make 7"),
        ("a (b c) -> a b c", (2, 6), "b=? x c=? does not make 6"),
        ("H a -> a H", (2, 6), "H=3 does not make 2"),
        ("1 a -> a", (2, 6), "1 does not make 2"),
        ("a (b c -> a b c", (2, 6), "unmatched parenthesis"),
        ("a b -> (b a", (2, 6), "unmatched parenthesis"),
    ],
)
def test_a_layout_that_does_not_fit_says_why(layout, shape, message):
    with pytest.raises(ValueError, match=r".*") as caught:
        arrangement(layout, shape, {"H": 3})
    assert message in str(caught.value)


# ---- whole maps ----------------------------------------------------------------------------------

CONFIG = ViTConfig(
    patch_h=2, patch_w=3, stride=2, embed_dim=10, hidden_dim=7, head_count=2, num_layers=2,
    num_classes=4,
)  # fmt: skip
SIZE = (3, 8, 9)
IMAGE = dict(zip(("in_channels", "height", "width"), SIZE, strict=True))


@st.composite
def models(draw):
    """(config, image size, cls): all sizes distinct where heads allow it; also no layers at all."""
    sizes = draw(st.permutations([2, 3, 4, 5, 7, 11]))
    patch_h, patch_w, head_count, hidden_dim, num_classes, channels = sizes
    embed_dim = draw(st.sampled_from([13, 17, head_count * 6, 1]))
    config = ViTConfig(
        patch_h=patch_h, patch_w=patch_w, stride=2, embed_dim=embed_dim, hidden_dim=hidden_dim,
        head_count=head_count, num_layers=draw(st.integers(0, 3)), num_classes=num_classes,
    )  # fmt: skip
    return config, (channels, 12, 15), draw(st.booleans())


def values(rng, shapes):
    return {name: integers(rng, shape) for name, shape in shapes.items()}


def inner(a, b):
    assert a.keys() == b.keys()
    return sum(np.vdot(a[name], b[name]) for name in a)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("key", NAME_MAPS)
@given(model=models(), seed=st.integers(0, 2**32 - 1))
def test_a_map_that_ships_goes_both_ways_and_its_adjoint_carries_gradients(key, model, seed):
    (config, size, cls), rng = model, np.random.default_rng(seed)
    shapes = parameter_shapes(config, *size, cls=cls)
    bound = NAME_MAPS[key].bind(config, *size, cls=cls)
    ours = values(rng, shapes)
    theirs = bound.to_theirs(ours)
    bound.check(theirs, "theirs")
    assert_same(bound.to_ours(theirs), ours)
    assert [*bound.to_ours(theirs)] == [*shapes]

    other = values(rng, bound.their_shapes)
    gradients = bound.to_our_gradients(other)
    assert inner(theirs, other) == inner(ours, gradients)  # the constants are zero
    for name, (shape, value) in bound.constants.items():
        other[name] = np.full(shape, value)
    assert_same(bound.to_theirs(bound.to_ours(other)), other)


@pytest.mark.parametrize("key", NAME_MAPS)
def test_a_map_that_ships_moves_float32_without_rounding_it(key):
    rng = np.random.default_rng(0)
    ours = ViTSpec.init(CONFIG, **IMAGE, rng=rng).astype(np.float32).to_flat()
    bound = NAME_MAPS[key].bind(CONFIG, *SIZE, cls=False)
    theirs = bound.to_theirs(ours)
    assert {array.dtype for array in theirs.values()} == {np.dtype(np.float32)}
    assert_same(bound.to_ours(theirs), ours)


def test_torch_map_is_what_the_interop_test_wrote_by_hand():
    rng = np.random.default_rng(1)
    ours = ViTSpec.init(CONFIG, **IMAGE, rng=rng).to_flat()
    theirs = TORCH_ENCODER.bind(CONFIG, *SIZE, cls=False).to_theirs(ours)
    layer, theirs_layer = "encoder.layers.1.", "encoder.layers.1.self_attn."
    stacked = np.concatenate([ours[f"{layer}mha.w{x}"].T for x in "qkv"])
    np.testing.assert_array_equal(theirs[theirs_layer + "in_proj_weight"], stacked)
    np.testing.assert_array_equal(theirs[theirs_layer + "in_proj_bias"], np.zeros(30))
    np.testing.assert_array_equal(theirs["pos_embed"], ours["pos_enc.pos"][None])
    swapped = TORCH_ENCODER.replacing(
        Rule(LAYER + "self_attn.in_proj_weight", tuple(LAYER + f"mha.w{x}" for x in "kqv"),
             "qkv-out-in")
    )  # fmt: skip
    swapped = swapped.bind(CONFIG, *SIZE, cls=False).to_theirs(ours)
    assert (swapped[theirs_layer + "in_proj_weight"] != stacked).any()


def test_stacked_layers_have_a_leading_axis_also_without_layers():
    rng = np.random.default_rng(2)
    ours = ViTSpec.init(CONFIG, **IMAGE, rng=rng).to_flat()
    theirs = NAME_MAPS["vitfast"].bind(CONFIG, *SIZE, cls=False).to_theirs(ours)
    expected = np.stack([ours[f"encoder.layers.{i}.ffn.w1"] for i in range(2)])
    np.testing.assert_array_equal(theirs["encoder.layers.ffn.w1"], expected)
    none = ViTConfig(**{**vars(CONFIG), "num_layers": 0})
    bound = NAME_MAPS["vitfast"].bind(none, *SIZE, cls=False)
    assert bound.their_shapes["encoder.layers.ffn.w1"] == (0, 10, 7)


def test_q_k_and_v_of_all_layers_can_lie_in_one_array():
    rng = np.random.default_rng(3)
    ours = ViTSpec.init(CONFIG, **IMAGE, rng=rng).to_flat()
    names = tuple(f"encoder.layers.*.mha.w{x}" for x in "qkv")
    rule = Rule("qkv", names, "L s D (H d) -> L D (s H d)")
    bound = SAME_NAMES.replacing(rule).bind(CONFIG, *SIZE, cls=False)
    theirs = bound.to_theirs(ours)
    second = np.concatenate([ours[f"encoder.layers.1.mha.w{x}"] for x in "qkv"], axis=1)
    np.testing.assert_array_equal(theirs["qkv"][1], second)
    assert_same(bound.to_ours(theirs), ours)


# ---- what does not match -------------------------------------------------------------------------


def test_names_that_are_missing_unexpected_or_misshapen_are_listed_at_once():
    bound = TORCH_ENCODER.bind(CONFIG, *SIZE, cls=False)
    theirs = {name: np.zeros(shape) for name, shape in bound.their_shapes.items()}
    del theirs["head.bias"]
    theirs["head.scale"] = np.zeros(3)
    theirs["encoder.layers.1.linear1.weight"] = np.zeros((10, 7))
    theirs["pos_embed"] = np.zeros((1, 2, 10))
    for go in (bound.to_ours, bound.to_our_gradients, lambda x: bound.check(x, "mine")):
        with pytest.raises(InvalidParameters) as caught:
            go(theirs)
        assert caught.value.problems == (
            "encoder.layers.1.linear1.weight: expected shape (7, 10), got (10, 7); transposed?",
            "head.bias: missing, expected shape (4,)",
            "head.scale: unexpected name, of shape (3,)",
            "pos_embed: expected shape (1, 16, 10), got (1, 2, 10)",
        )
    assert "mine (name map 'torch.nn.TransformerEncoder')" in str(caught.value)


def test_our_parameters_are_checked_too():
    bound = TORCH_ENCODER.bind(CONFIG, *SIZE, cls=False)
    with pytest.raises(InvalidParameters, match=r"our parameters .*\n.*cls_token: unexpected"):
        bound.to_theirs(values(np.random.default_rng(0), bound.shapes | {"cls_token": (10,)}))


def test_a_constant_with_another_value_is_refused_and_its_gradient_is_dropped():
    bound = TORCH_ENCODER.bind(CONFIG, *SIZE, cls=False)
    theirs = values(np.random.default_rng(4), bound.their_shapes)
    for name in bound.dropped:
        theirs[name] = np.zeros(bound.their_shapes[name])
    bias = "encoder.layers.1.self_attn.out_proj.bias"
    theirs[bias] = np.eye(1, 10)[0]
    with pytest.raises(InvalidParameters, match=f"{bias}: must be 0 everywhere"):
        bound.to_ours(theirs)
    assert bias in bound.dropped
    assert "= 0, and its gradient is dropped" in bound.describe()
    assert bound.to_our_gradients(theirs).keys() == bound.shapes.keys()


def test_a_constant_may_have_a_value_and_a_layout():
    scale = Constant("scale.{i}", "1 (3 H d)", 1.0)
    bound = NameMap("scaled", SAME_NAMES.rules, (scale,)).bind(CONFIG, *SIZE, cls=False)
    theirs = bound.to_theirs(values(np.random.default_rng(5), bound.shapes))
    np.testing.assert_array_equal(theirs["scale.1"], np.ones((1, 30)))
    theirs["scale.0"] = np.zeros((1, 30))
    with pytest.raises(InvalidParameters, match=r"scale\.0: must be 1 everywhere"):
        bound.to_ours(theirs)


@pytest.mark.parametrize(
    ("rules", "constants", "problem"),
    [
        ([Rule("a", "head.weight")], [], "a: ours has no parameter head.weight"),
        ([Rule("a", "head.bias", "flip")], [], "a: unknown layout 'flip'"),
        ([Rule("a", "head.bias", "transpose")], [], "a: 'i o -> o i' is for 2 axes"),
        ([Rule("a", "head.bias", "D -> 1 D")], [], "D=10 does not make 4"),
        ([Rule("a", ("head.bias", "head.weights"), "s a -> s a")], [], "only arrays of one shape"),
        ([], [], "head.bias: taken by no rule"),
        ([Rule("a", "head.bias"), Rule("b", "head.bias")], [], "head.bias: taken 2 times"),
        ([Rule("head.weights", "head.bias")], [], "head.weights (theirs): made 2 times"),
        ([Rule("a", "head.bias")], [Constant("b", "e 3")], "b: axes of unknown size: e"),
        ([Rule("a", "head.bias")], [Constant("a", "3")], "a (theirs): made 2 times"),
    ],
)
def test_a_map_that_cannot_be_is_refused(rules, constants, problem):
    kept = tuple(rule for rule in SAME_NAMES.rules if rule.ours != "head.bias")
    with pytest.raises(InvalidParameters) as caught:
        NameMap("mine", (*kept, *rules), tuple(constants)).bind(CONFIG, *SIZE, cls=False)
    assert problem in str(caught.value)
    assert "The rules of the name map 'mine'" in str(caught.value)


def test_replacing_takes_out_every_rule_that_shares_a_name_of_ours():
    fused = Rule("qkv.{i}", tuple(LAYER + f"mha.w{x}" for x in "qkv"), "qkv-d3hd")
    changed = SAME_NAMES.replacing(fused, name="fused")
    assert len(changed.rules) == len(SAME_NAMES.rules) - 2
    assert changed.name == "fused"
    assert changed.bind(CONFIG, *SIZE, cls=True).their_shapes["qkv.1"] == (10, 3, 2, 5)


def test_all_of_a_map_is_strings_and_numbers():
    """It can be written down in any format, and compared."""
    for name_map in NAME_MAPS.values():
        assert eval(repr(name_map)) == name_map


# ---- without frameworks --------------------------------------------------------------------------

FRAMEWORKS = ["torch", "jax", "jaxlib", "flax", "vitfast", "hypothesis", "pytest"]


def frameworks_after(program):
    report = f"\nimport sys; print(*[name for name in {FRAMEWORKS} if name in sys.modules])"
    command = [sys.executable, "-c", program + report]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("module", ["adapters", "adapters.peers"])
def test_importing_the_adapters_imports_no_framework(module):
    assert frameworks_after(f"import vitspec.testing.{module}") == []


def test_the_check_of_imported_frameworks_can_fail():
    assert frameworks_after("import hypothesis, vitspec.testing.adapters") == ["hypothesis"]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("torch", "this needs torch: python -m pip install torch, or 'vitspec[interop]'"),
        ("jax.numpy", "this needs jax: python -m pip install jax, or 'vitspec[fast]'"),
        ("flax.nnx", "this needs flax: python -m pip install flax, or 'vitspec[fast]'"),
    ],
)
def test_a_missing_framework_is_named_in_one_line(module, message, monkeypatch):
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, module.partition(".")[0], None)
    with pytest.raises(ImportError) as caught:
        framework(module)
    assert str(caught.value) == message


def test_a_framework_that_is_there_but_broken_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import no_such_module_of_torch")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_of_torch"):
        framework("torch")


def test_the_version_of_a_framework_is_known_without_it():
    assert installed_version("numpy") == np.__version__
    assert installed_version("no-such-framework") == "not installed"


# ---- what all adapters share ---------------------------------------------------------------------


def an_adapter(**settings):
    identity = {"name": "mine", "version": "1", "spec": "vit"}
    return from_jax(lambda config, params, images: images, **identity | settings)


@pytest.mark.parametrize("dtype", [("float32", "bfloat16"), ("bfloat16", "float64"), ()])
def test_precisions_that_arrays_do_not_tell_apart_are_refused(dtype):
    with pytest.raises(ValueError, match="make one implementation for each"):
        an_adapter(dtype=dtype)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=r"got \['float8'\]"):
        an_adapter(dtype=("float64", "float8"))


def test_a_function_that_is_not_specified_is_refused():
    with pytest.raises(ValueError, match="one of vit, vit-cls, vision-transformer, got 'other'"):
        an_adapter(spec="other")


def test_arrays_of_a_type_that_it_does_not_compute_in_are_refused():
    with pytest.raises(TypeError, match="mine computes in float32, not in float64"):
        an_adapter(dtype="float32").precision(np.zeros(2))
    assert an_adapter(dtype="bfloat16").precision(np.zeros(2, np.float32)) == "bfloat16"
    both = an_adapter(dtype=("float64", "float32"))
    assert both.precision(np.zeros(2, np.float32)) == "float32"


def test_supports_is_what_its_maker_says():
    assert an_adapter().supports(CONFIG) is None
    assert an_adapter(supports=lambda c: f"D {c.embed_dim}").supports(CONFIG) == "D 10"


def test_a_model_may_return_its_logits_or_a_mapping_with_taps():
    assert split_output(1) == (1, {})
    assert split_output({"logits": 1, "pooled": 2}) == (1, {"pooled": 2})
    with pytest.raises(TypeError, match="without 'logits': pooled"):
        split_output({"pooled": 2})


def test_the_page_has_the_layouts_as_they_are():
    page = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()
    rows = [f"| `{name}` | " + (f"`{p}` |" if p else "|") for name, p in LAYOUTS.items()]
    assert "\n".join(rows) in page
