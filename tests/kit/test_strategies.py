"""The strategies make what they say, all of it within reach, and shrink to the smallest."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from vitspec import NotWellFormed, ViTConfig, parameter_shapes
from vitspec.geometry import patch_count, patch_grid
from vitspec.layers.multi_head_attention import multi_head_attention_trace
from vitspec.layers.normalization import layer_norm
from vitspec.models.parameters import check_model
from vitspec.models.transformer import encoder_layer_trace
from vitspec.testing.families import MODELS
from vitspec.testing.strategies import (
    EDGE_CASES,
    EDGES,
    NOT_NATURAL,
    RULES,
    VALUES,
    arrays,
    cases,
    configs,
    cotangents,
    edge_cases,
    edges_of,
    ill_formed_configs,
    image_sizes,
    images,
    parameters,
    points,
    seeds,
)

SPECS = sorted(MODELS)
SPECIFICATION = Path(__file__).parents[2] / "docs" / "specification.md"

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=1000)
"""The same examples every time, on every machine."""


def smallest(strategy, condition=lambda _: True):
    """What Hypothesis shrinks to."""
    # Without the phase that explains: it goes on drawing.
    phases = (Phase.generate, Phase.shrink)
    quiet = settings(fixed, suppress_health_check=list(HealthCheck), phases=phases)
    return find(strategy, condition, settings=quiet)


def drawn(strategy, examples):
    """What a strategy makes, the same each time."""
    values = []

    @given(strategy)
    @settings(fixed, max_examples=examples)
    def collect(value):
        values.append(value)

    collect()
    return values


def sized_configs(spec, **arguments):
    """Pairs of a configuration and an image's size."""
    return configs(**arguments).flatmap(lambda c: st.tuples(st.just(c), image_sizes(c, spec)))


# ---- they make what they say -------------------------------------------------------------------


@given(config=configs(degenerate=True))
def test_configs_are_well_formed(config):
    assert config.violations() == ()


@given(config=configs(3, 1, 6, padding=0, head_count=st.sampled_from([5, 6])))
def test_configs_keep_to_their_arguments(config):
    assert config.embed_dim in range(3, 7)
    assert config.num_layers <= 1
    assert max(config.patch_h, config.patch_w, config.stride) <= 3
    assert config.padding == 0
    assert config.head_count in (5, 6)


def test_configs_refuse_a_field_that_does_not_exist():
    with pytest.raises(TypeError, match="embed_dimm"):
        smallest(configs(embed_dimm=3))


@pytest.mark.parametrize("spec", SPECS)
@given(data=st.data(), degenerate=st.booleans())
def test_of_every_image_size_there_is_a_model(spec, data, degenerate):
    strategy = configs(degenerate=degenerate and spec == "vit-cls")
    config = data.draw(strategy)
    size = data.draw(image_sizes(config, spec, degenerate=degenerate))
    assert check_model(config, *size, cls=spec == "vit-cls") == size
    assert degenerate or min(size) > 0


@pytest.mark.parametrize("spec", SPECS)
def test_image_sizes_refuse_a_configuration_without_a_model(spec):
    with pytest.raises(NotWellFormed, match="patchH_ne0"):
        smallest(image_sizes(ViTConfig(patch_h=0), spec))
    with pytest.raises(NotWellFormed, match="h_tok"):
        smallest(image_sizes(ViTConfig(stride=0), "vit"))


def test_image_sizes_leave_room_for_two_patches_however_large():
    config = ViTConfig(patch_h=32, patch_w=48, stride=64)
    found = drawn(image_sizes(config), 200)
    assert {patch_grid(config, H, W) for _, H, W in found} == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert len({(H - 32) % 64 for _, H, _ in found}) > 10


@given(data=st.data(), max_extent=st.integers(1, 12), degenerate=st.booleans())
def test_image_sizes_are_bounded(data, max_extent, degenerate):
    spec = data.draw(st.sampled_from(SPECS))
    config = data.draw(configs(max_extent=max_extent, degenerate=degenerate and spec == "vit-cls"))
    sizes = image_sizes(config, spec, max_extent=max_extent, max_channels=2, degenerate=degenerate)
    channels, *extents = data.draw(sizes)
    assert channels in (1, 2)
    for extent, patch in zip(extents, (config.patch_h, config.patch_w), strict=True):
        assert extent <= max(max_extent, patch - 2 * config.padding + 2 * config.stride - 1)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    ("patch", "stride", "padding"),
    [(1, 1, 0), (3, 2, 0), (2, 4, 0), (4, 1, 1), (2, 3, 2), (1, 1, 4)],
)
def test_every_extent_of_an_image_is_drawn(spec, patch, stride, padding):
    """Of those from 1 to the bound for which there is a model."""
    config = ViTConfig(patch_h=patch, patch_w=patch, stride=stride, padding=padding)
    limit = max(6, patch - 2 * padding + 2 * stride - 1)
    low = max(1, patch - 2 * padding) if spec == "vit" else 1
    widths = {size[2] for size in drawn(image_sizes(config, spec, max_extent=6), 120)}
    assert widths == set(range(low, limit + 1))


@given(case=cases(degenerate=True))
@settings(max_examples=50)
def test_cases_run(case):
    model, image = case.model(), case.image()
    grads, d_image = model.backward(image, case.d_logits())
    assert np.isfinite(model.forward(image)).all()
    assert np.isfinite(d_image).all()
    assert all(np.isfinite(leaf).all() for leaf in grads.to_flat().values())


@pytest.mark.parametrize("spec", SPECS)
@given(data=st.data())
@settings(max_examples=40)
def test_points_are_of_one_model(spec, data):
    point = data.draw(points(spec, max_batch=2, max_layers=1, values=None))
    B, *size = point.images.shape
    assert point.spec == spec
    assert B in (1, 2)
    model = MODELS[spec].from_flat(
        point.config,
        point.params,
        **dict(zip(("in_channels", "height", "width"), size, strict=True)),
    )
    assert model.forward(point.images[0]).shape == point.cotangent[0].shape
    assert point.cotangent.shape[0] == B


# ---- ill-formed --------------------------------------------------------------------------------


def labels_of(ill):
    """The labels of the rules that the specification finds broken."""
    with pytest.raises(NotWellFormed) as error:
        ill.check()
    return tuple(dict.fromkeys(violation.split(":")[0] for violation in error.value.violations))


@pytest.mark.parametrize("rule", RULES)
@given(data=st.data())
@settings(max_examples=30)
def test_ill_formed_configs_break_the_rule_asked_for_and_no_other(rule, data):
    ill = data.draw(ill_formed_configs(rule))
    assert ill.labels == (rule,) == labels_of(ill)


@pytest.mark.parametrize("spec", [None, *SPECS])
@given(data=st.data())
@settings(max_examples=50)
def test_ill_formed_configs_break_exactly_the_rules_that_they_name(spec, data):
    ill = data.draw(ill_formed_configs(spec=spec))
    assert ill.labels == labels_of(ill)
    assert spec in (None, ill.spec)


def test_ill_formed_configs_break_every_rule_alone_and_several_at_once():
    found = Counter(ill.labels for ill in drawn(ill_formed_configs(), 300))
    assert {(rule,) for rule in RULES} <= found.keys()
    assert any(len(labels) >= 3 for labels in found)


def not_natural(ill):
    """Names and values of what is no natural number."""
    values = {**ill.fields, **ill.size}.items()
    return [(n, repr(v)) for n, v in values if type(v) is not int or not 0 <= v < 2**31]


def test_not_a_natural_number_comes_in_every_form():
    found = [not_natural(ill) for ill in drawn(ill_formed_configs("nat"), 120)]
    assert {len(bad) for bad in found} == {1}
    assert {value for [(_, value)] in found} == set(map(repr, NOT_NATURAL))


@pytest.mark.parametrize("name", ["patch_h", "hidden_dim", "num_classes", "width"])
def test_not_a_natural_number_comes_in_any_place(name):
    """And shrinks to -1."""
    ill = smallest(ill_formed_configs("nat"), lambda ill: not_natural(ill)[0][0] == name)
    assert not_natural(ill) == [(name, "-1")]


def test_the_rules_are_those_of_the_specification():
    """Every label of the page's table, but for the one that no ViT can break."""
    section = SPECIFICATION.read_text("utf-8").partition("\n## Configuration")[2]
    table = section.partition("| label |")[2].partition("\n\n")[0]
    labels = [
        cell.strip(" `") for row in table.splitlines()[2:] for cell in row.split("|")[1].split(",")
    ]
    assert sorted(labels) == sorted([*RULES, "headCount_dvd_embedDim"])


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="expected one of nat, patchH_ne0"):
        smallest(ill_formed_configs("patch_h"))
    with pytest.raises(ValueError, match="h_tok"):
        smallest(ill_formed_configs("h_tok", "vit-cls"))


# ---- arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("values", [*VALUES, None])
def test_arrays_have_the_shape_and_type_asked_for(values, dtype):
    config, size = ViTConfig(4, 4, 4, 0, 6, 5, 2, 2, 3), (2, 8, 12)
    image = smallest(images(size, 5, values, dtype))
    assert (image.shape, image.dtype) == ((5, *size), dtype)
    assert smallest(images(size, values=values, dtype=dtype)).shape == size
    d_logits = smallest(cotangents(config, 5, values, dtype))
    assert (d_logits.shape, d_logits.dtype) == ((5, 3), dtype)
    assert smallest(cotangents(config, values=values)).shape == (3,)
    for spec in SPECS:
        flat = smallest(parameters(config, size, spec, values, dtype))
        expected = parameter_shapes(config, *size, cls=spec == "vit-cls")
        assert {name: leaf.shape for name, leaf in flat.items()} == expected
        assert {str(leaf.dtype) for leaf in flat.values()} == {dtype}


def test_an_unknown_kind_of_values_is_refused():
    with pytest.raises(ValueError, match="expected one of normal, offset, tiny, large, ties"):
        smallest(arrays((2,), "huge"))


def test_arrays_depend_on_the_seed_alone_and_are_fresh():
    first, again = smallest(arrays((3, 4))), smallest(arrays((3, 4)))
    assert (first == again).all()
    assert first is not again
    assert first.flags.writeable
    assert (first == np.random.default_rng(0).standard_normal((3, 4))).all()  # the seed shrank to 0
    assert len({array.tobytes() for array in drawn(arrays((2,)), 100)}) > 50


def test_values_are_what_they_are_called():
    kinds = {kind: smallest(arrays((1000,), kind)) for kind in VALUES}
    assert abs(kinds["normal"].std() - 1) < 0.1
    assert abs(kinds["offset"].mean() - 100) < 1
    assert abs(kinds["tiny"].std() / 1e-4 - 1) < 0.1
    assert abs(kinds["large"].std() / 30 - 1) < 0.1
    assert set(kinds["ties"]) == {-1, 0, 1}
    seen = [array.tobytes() for array in drawn(arrays((1000,), None), 100)]
    assert {kinds[kind].tobytes() in seen for kind in VALUES} >= {True}


def model_with(values, spec):
    """A model with parameters of a kind, and its trace at a normal image."""
    config, size = ViTConfig(2, 2, 2, 0, 8, 5, 2, 2, 3), (2, 6, 8)
    flat = smallest(parameters(config, size, spec, values))
    model = MODELS[spec].from_flat(config, flat, in_channels=2, height=6, width=8)
    return model, model.trace(smallest(images(size)))


@pytest.mark.parametrize("spec", SPECS)
def test_parameters_put_the_model_where_their_name_says(spec):
    traces = {values: model_with(values, spec)[1] for values in VALUES}
    assert abs(traces["offset"].embedded.mean() - 100) < 2
    # The variance of a tiny token is below the layer norm's epsilon of 1e-6, and only its.
    assert traces["tiny"].embedded.var(axis=1).max() < 1e-6 < traces["normal"].embedded.var()
    weights = traces["large"].layers[0].mha.weights
    assert np.median(weights.max(axis=-1)) > 0.999 > traces["normal"].layers[0].mha.weights.max()
    ties = traces["ties"]
    patches = ties.embedded[spec == "vit-cls" :]
    assert (patches == patches[0]).all()
    for layer in ties.layers:
        assert (layer.ffn.hidden[:, 0] == 0).all()
        assert (layer.ffn.hidden[:, 1:] != 0).all()
    assert not (traces["normal"].layers[0].ffn.hidden == 0).any()


# ---- edges -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "case"), EDGE_CASES.items(), ids=EDGE_CASES)
def test_an_edge_case_is_where_its_name_says_and_runs(name, case):
    spec, _, edge = name.partition(", ")
    assert case.spec == spec
    assert edge in edges_of(case)
    grads, _ = case.model().backward(case.image(), case.d_logits())
    assert all(np.isfinite(leaf).all() for leaf in grads.to_flat().values())


def test_an_ordinary_case_is_at_no_edge_but_that_its_windows_overlap():
    case = replace(
        EDGES["overlapping windows"].case("vit"), config=EDGES["no layers"].case("vit").config
    )
    ordinary = replace(case, config=replace(case.config, num_layers=2))
    assert edges_of(ordinary) == ("overlapping windows",)


def test_a_model_without_tokens_is_not_the_mean_pooling_one():
    assert all(
        patch_count(case.config, case.height, case.width) > 0
        for case in EDGE_CASES.values()
        if case.spec == "vit"
    )


def test_constant_rows_are_constant_where_a_layer_norm_sees_them():
    case = EDGE_CASES["vit, constant rows in the layer norms"]
    model = case.model()
    layer = model.encoder.layers[0]
    trace = encoder_layer_trace(layer, model.embed(case.image()))
    assert (trace.residual1 == 0).all()
    assert (trace.normed1 == layer.norm1_beta).all()
    expected = layer_norm(trace.residual1, layer.norm1_gamma, layer.norm1_beta)
    assert (trace.normed1 == expected).all()


def test_the_drawn_cases_reach_every_edge_of_both_models():
    found = Counter(
        f"{case.spec}, {edge}"
        for case in drawn(cases(degenerate=True), 600)
        for edge in edges_of(case)
    )
    missing = [name for name in EDGE_CASES if found[name] < 3]
    assert not missing


def test_edge_cases_draws_all_of_them_with_fresh_numbers():
    found = drawn(edge_cases(), 300)
    assert {replace(case, seed=0) for case in found} == set(EDGE_CASES.values())
    assert len({case.seed for case in found}) > 50
    assert {case.spec for case in drawn(edge_cases("vit-cls"), 50)} == {"vit-cls"}


ROWS = {
    r"$T = 0$ (patch larger than the padded image; stride 0), `ViTSpec`": "rule h_tok",
    "$T = 0$, `ViTClsSpec`": "no token",
    "window exactly as large as the padded axis": "window exactly as large as the padded axis",
    "`patch_h`, `patch_w`, `embed_dim`, `hidden_dim`, `head_count` or `num_classes` 0": (
        "rule patchH_ne0"
    ),
    "`in_channels` 0": "rule h_inC",
    r"padding $\ge$ patch": "padding at least the patch",
    "height or width 0": "image without rows, padding holds a patch",
    "pixels that no window covers (remainder; stride larger than the patch)": (
        "pixels beyond the last window"
    ),
    "heads do not divide the width": "heads do not divide the width",
    "more heads than width": "more heads than width",
    "`head_dim` of a configuration with 0 heads": "rule headCount_pos",
    "no layers": "no layers",
    "one token, $n = 1$": "one row",
    "`embed_dim` 1": "embed_dim 1",
    "constant row in a layer norm": "constant rows in the layer norms",
    # Of layers, not of models as an implementation is given them:
    "infinite weight on a padded tap": None,
    "list of layers not `num_layers` long": None,
    "mask row fully blocked": None,
    "everything blocked": None,
    "masked scores beyond 709": None,
    "blocked score above every allowed one": None,
    "no query or no key": None,
}
"""The specification's table of edge cases, and where the strategies have each row."""


def test_every_row_of_the_specification_s_edge_cases_is_an_edge_or_a_rule():
    section = SPECIFICATION.read_text("utf-8").partition("\n## Edge cases")[2]
    table = section.partition("| situation |")[2].partition("\n\n")[0]
    situations = [row.split("|")[1].strip() for row in table.splitlines()[2:]]
    assert sorted(situations) == sorted(ROWS)
    for where in filter(None, ROWS.values()):
        label = where.removeprefix("rule ")
        assert label in RULES or any(name.startswith(label) for name in EDGES)


# ---- they shrink -------------------------------------------------------------------------------

SMALLEST = ViTConfig(
    patch_h=1, patch_w=1, stride=1, padding=0, embed_dim=1, hidden_dim=1, head_count=1,
    num_layers=0, num_classes=1,
)  # fmt: skip


@pytest.mark.parametrize("degenerate", [False, True])
def test_a_configuration_shrinks_to_ones(degenerate):
    assert smallest(configs(degenerate=degenerate)) == SMALLEST


@pytest.mark.parametrize(
    ("changes", "condition"),
    [
        ({"num_layers": 2}, lambda c: c.num_layers > 1),
        ({"head_count": 2}, lambda c: c.embed_dim % c.head_count),
        ({"embed_dim": 3, "head_count": 2}, lambda c: c.head_dim and c.embed_dim % c.head_count),
        ({"embed_dim": 2, "head_count": 2}, lambda c: c.head_dim and c.head_count > 1),
        ({"padding": 1}, lambda c: c.padding >= c.patch_h),
        ({"patch_w": 2}, lambda c: c.patch_h != c.patch_w),
        ({"stride": 2}, lambda c: c.stride > c.patch_h),
        ({"patch_h": 2}, lambda c: c.stride < c.patch_h),
        ({"embed_dim": 7, "hidden_dim": 8}, lambda c: c.embed_dim + c.hidden_dim >= 15),
    ],
)
def test_a_configuration_shrinks_to_the_smallest_with_a_property(changes, condition):
    found = smallest(configs(), condition)
    expected = replace(SMALLEST, **changes)
    if "hidden_dim" in changes:  # several are equally small
        assert found.embed_dim + found.hidden_dim == 15
        found = replace(found, embed_dim=7, hidden_dim=8)
    assert found == expected


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    ("changes", "size", "condition"),
    [
        ({}, (1, 1, 1), lambda c, size: True),
        ({}, (1, 1, 2), lambda c, size: patch_count(c, *size[1:]) == 2),
        (
            {"stride": 2},
            (1, 1, 2),
            lambda c, size: (size[2] + 2 * c.padding - c.patch_w) % c.stride,
        ),
        (
            {"patch_h": 2, "padding": 1},
            (1, 1, 1),
            lambda c, size: 0 < size[1] < c.patch_h and c.padding == 1,
        ),
        ({}, (3, 1, 1), lambda c, size: size[0] == 3),
    ],
    ids=["anything", "two patches", "not a multiple", "smaller than the patch", "three channels"],
)
def test_an_image_shrinks_to_the_smallest_with_a_property(spec, changes, size, condition):
    found = smallest(sized_configs(spec), lambda pair: condition(*pair))
    assert found == (replace(SMALLEST, **changes), size)


def test_an_image_not_a_multiple_of_square_patches_shrinks_to_3_of_2():
    """As for a patch embedding by reshape: patches side by side, no padding."""
    square = configs(padding=0).map(lambda c: replace(c, patch_w=c.patch_h, stride=c.patch_h))
    pairs = square.flatmap(lambda c: st.tuples(st.just(c), image_sizes(c)))
    config, size = smallest(pairs, lambda pair: pair[1][1] % pair[0].patch_h)
    assert (config.patch_h, size) == (2, (1, 3, 2))


def test_a_case_shrinks_to_the_smallest_and_seed_0():
    two = lambda c: patch_count(c.config, c.height, c.width) >= 2  # noqa: E731
    case = smallest(cases("vit", num_layers=1), two)
    assert case.config == replace(SMALLEST, num_layers=1)
    assert sorted(case.image_shape) == [1, 1, 2]
    assert case.seed == 0
    assert case.scale == 1


def test_parameters_shrink_to_normal_ones_from_seed_0():
    config, size = SMALLEST, (1, 2, 2)
    fresh, again = (smallest(parameters(config, size, values=v)) for v in ("normal", None))
    assert all((fresh[name] == again[name]).all() for name in fresh)


def test_a_model_with_a_mistake_in_its_heads_shrinks_to_two_heads_two_rows():
    """The raw reshape of TorchLean's early revision: right for one head, and for one row."""

    def differs(case):
        model = case.model()
        mha = model.encoder.layers[0].mha
        x = model.embed(case.image())
        q = multi_head_attention_trace(mha, x).q
        return not (q == (x @ mha.wq).reshape(q.shape)).all()

    case = smallest(cases("vit", num_layers=1), differs)
    assert case.config == replace(SMALLEST, embed_dim=2, head_count=2, num_layers=1)
    assert patch_count(case.config, case.height, case.width) == 2
    assert case.seed == 0


@pytest.mark.parametrize("rule", RULES)
def test_an_ill_formed_configuration_shrinks_to_the_smallest_that_breaks_its_rule(rule):
    ill = smallest(ill_formed_configs(rule))
    ones = dict.fromkeys([*ill.fields, *ill.size], 1) | {"padding": 0, "num_layers": 0}
    changed = {n: v for n, v in {**ill.fields, **ill.size}.items() if v != ones[n]}
    changed = {n: v for n, v in changed.items() if v != ones[n]}
    expected = {"nat": {"patch_h": -1}, "h_tok": {"patch_h": 2}, "h_inC": {"in_channels": 0}}
    assert ill.labels == (rule,)
    assert len(changed) == 1
    assert changed == expected.get(rule, dict.fromkeys(changed, 0))


@pytest.mark.parametrize(("hidden_dim", "num_classes"), [(6, 2), (2, 4)])
def test_without_tokens_the_smallest_has_a_patch_too_large_and_not_stride_0(
    num_classes, hidden_dim
):
    """Whichever is found first."""
    wanted = {"num_classes": num_classes, "hidden_dim": hidden_dim}
    ill = smallest(ill_formed_configs("h_tok"), lambda ill: ill.fields | wanted == ill.fields)
    assert (ill.fields["patch_h"], ill.fields["stride"]) == (2, 1)


def test_the_smallest_of_all_ill_formed_ones_breaks_one_rule():
    assert len(smallest(ill_formed_configs()).labels) == 1


def test_seeds_shrink_to_0():
    assert smallest(seeds) == 0
