"""The fast path is the function of the specification, graded like anybody's implementation.

Through the public adapter and by the kit's own grades: every attention that runs on a CPU, layers
scanned and in a loop, recomputed and not, backward written by hand and derived, in four precisions.
A program is compiled once for each; values, of which Hypothesis draws many, cost milliseconds.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from support.adapters import small_case
from support.compare import assert_close, assert_flat_close
from vitfast import from_flat, to_flat
from vitfast.implementation import compiled, variant
from vitspec.models.parameters import parameter_shapes, random_parameters
from vitspec.testing import check, strategies
from vitspec.testing.families import MODELS
from vitspec.testing.implementations import Subject
from vitspec.testing.precision import PRECISIONS
from vitspec.testing.reference import Point, SpecImplementation, evaluate_spec, trace_taps
from vitspec.testing.trial import Trial, kink_margin

CASES = {"vit": small_case(), "vit-cls": small_case("vit-cls", embed_dim=10)}
"""Sixteen tokens in three heads, which for "vit-cls" do not divide the width."""

VARIANTS = (
    "",
    "_loop_remat_autodiff",
    "_xla_loop",
    "_xla_remat_autodiff",
    "_xla_chunked_autodiff",
    "_xla_chunked_loop_remat",
)
"""Every attention with either value of every option, and every two options in every combination."""


def implementations(spec, precision):
    """The variants of a model in a precision; float64 and float32 are the arrays' own."""
    stem = spec.replace("-", "_") + ("" if PRECISIONS[precision].own_type else f"_{precision}")
    return [variant(stem + options) for options in VARIANTS]


@dataclass(frozen=True)
class Drawn(Point):
    """A point that prints as what it is of, not as all its numbers."""

    values: str = ""

    def _repr_pretty_(self, printer, cycle):
        printer.text(f"<{self.values} numbers, {self}>")


@st.composite
def points(draw, case, precision):
    """Points of a case's shape: normal, offset, tiny, large and tied numbers, near-constant rows.

    Away from the kinks of the ReLUs, where derivatives jump, unless the precision resolves them.
    """
    size, spec = case.image_shape, case.spec
    values = draw(st.sampled_from([*strategies.VALUES, "near-constant rows"]))
    if values == "near-constant rows":
        params = near_constant_rows(case, draw(strategies.seeds))
    else:
        params = draw(strategies.parameters(case.config, size, spec, values))
    images = draw(strategies.images(size, case.batch, None))
    if precision.name == "float16":  # whose largest number is 65504: no gradient may be larger
        kind, exponents = "normal", [-4, -8]
    else:
        kind, exponents = None, [0, -8, 8]
    cotangent = draw(strategies.cotangents(case.config, case.batch, kind))
    cotangent = cotangent * 2.0 ** draw(st.sampled_from(exponents))
    point = Point(spec, case.config, params, images, cotangent)
    if precision.name != "float64":
        point = point.away_from_kinks(kink_margin(precision))
    return Drawn(**vars(point.rounded(precision)), values=values)


def near_constant_rows(case, seed):
    """Parameters with which every layer norm has rows of nearly equal numbers to normalise."""
    shapes = parameter_shapes(case.config, *case.image_shape, cls=case.spec == "vit-cls")
    flat = random_parameters(shapes, np.random.default_rng(seed), np.dtype(np.float64))
    for name, leaf in flat.items():
        if name.startswith(("patch_embed", "cls_token")) or name.endswith((".wo", ".w2")):
            leaf *= 1e-3
    flat["pos_enc.pos"] *= 1e-2
    flat["pos_enc.pos"] += 1
    return flat


CHUNKED_UP_TO = 100
"""The largest score up to which the chunked attention is graded.

Its backward computes the scores once more, and XLA (jaxlib 0.12) may round them otherwise than in
the forward: the weights are then off by the scores times u. No other attention has such a limit.
"""


def largest_score(point):
    model, scores = point.model({n: np.float64(p) for n, p in point.params.items()}), [0.0]
    for image in point.images.astype(np.float64):
        for layer in model.trace(image).layers:
            q, k = layer.mha.q, layer.mha.k
            scores.append(np.abs(q @ k.swapaxes(-1, -2)).max() / np.sqrt(q.shape[-1]))
    return max(scores)


@pytest.mark.parametrize(
    ("precision", "spec"),
    [("float64", "vit"), ("float32", "vit-cls"), ("bfloat16", "vit"), ("float16", "vit-cls")],
)
@given(data=st.data())
@settings(max_examples=5, phases=[Phase.generate])  # shrinking shows nothing more
def test_logits_and_every_gradient_are_within_the_kit_s_bounds(precision, spec, data):
    precision = PRECISIONS[precision]
    point = data.draw(points(CASES[spec], precision))
    right = Subject(SpecImplementation(spec, precision.name))
    spec_itself = Trial(right, point, np.random.default_rng(0))
    for implementation in implementations(spec, precision.name):
        if "chunked" in implementation.name and largest_score(point) > CHUNKED_UP_TO:
            continue
        subject = Subject(implementation, precision.name)
        trial = Trial(subject, point, np.random.default_rng(0))
        # What is true, and what it costs, does not depend on who is graded.
        trial.reference = spec_itself.reference
        departures = [g for g in map(trial.grade, trial.truth) if not g.conforms]
        assert not departures, (implementation.name, departures)


@pytest.mark.parametrize("spec", MODELS)
@given(seed=strategies.seeds)
@settings(max_examples=5)
def test_in_float64_logits_and_every_gradient_are_within_1e_12(spec, seed):
    """At ordinary points, where no tensor is the small difference of large numbers."""
    precision = PRECISIONS["float64"]
    point = Point.of(replace(CASES[spec], seed=seed)).rounded(precision)
    for implementation in implementations(spec, "float64"):
        trial = Trial(Subject(implementation, "float64"), point, np.random.default_rng(0))
        assert_flat_close(trial.found, trial.truth, 1e-12)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit", {"dtype": "float64", "cases": 3, "laws": 1}),
        ("vit_cls_xla_chunked_remat", {"dtype": "float32"}),
        ("vit_bfloat16_xla_loop", {}),
        ("vit_cls_float16", {}),
    ],
)
def test_the_check_that_everybody_runs_says_that_it_conforms(name, changes):
    report = check(variant(name), **{"cases": 1, "laws": 0} | changes)
    assert report.conforms, report


@pytest.mark.parametrize("how", ["un-jitted", "with jit disabled"])
def test_uncompiled_it_is_the_same_function(how):
    """With jit disabled a scan is a Python loop, and every operation runs by itself."""
    case = small_case("vit-cls", num_layers=1, embed_dim=6)
    point = Point.of(case).rounded(PRECISIONS["float64"])
    truth = evaluate_spec(point)
    with jax.enable_x64(True), jax.disable_jit(how == "with jit disabled"):
        model = from_flat(case.config, point.params, **case.size, pool="cls")
        images = jnp.asarray(point.images.transpose(0, 2, 3, 1))
        logits, pullback = jax.vjp(lambda model, images: model(images), model, images)
        d_model, d_images = pullback(jnp.asarray(point.cotangent))
        found = to_flat(d_model) | {
            "logits": np.asarray(logits),
            "image": np.asarray(d_images).transpose(0, 3, 1, 2),
        }
    assert_flat_close(found, {name: truth[name] for name in found}, 1e-12)


# ---- forward mode ------------------------------------------------------------------------------

FORWARD_MODE = [{"scan_layers": True}, {"scan_layers": False, "use_gradient_checkpointing": True}]


def differentiable(case, flat, **options):
    """The model whose derivatives are all JAX's, from flat parameters."""
    pool = "cls" if case.spec == "vit-cls" else "mean"
    return from_flat(case.config, flat, **case.size, pool=pool, custom_vjp=False, **options)


def logits_and_tangent(model, images, tangent, d_images):
    return jax.jvp(lambda model, images: model(images), (model, images), (tangent, d_images))


def hessian_vector_product(model, images, tangent, cotangent):
    """Of the logits weighted by the cotangent, in the parameters."""
    weighted = jax.grad(lambda model: (model(images) * cotangent).sum())
    return jax.jvp(weighted, (model,), (tangent,))[1]


def channels_last(images):
    return jnp.asarray(images.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("options", FORWARD_MODE, ids=["scan", "loop, remat"])
@pytest.mark.parametrize("spec", MODELS)
@given(seed=strategies.seeds)
@settings(max_examples=5)
def test_forward_mode_is_the_specification_s(spec, options, seed):
    case = replace(CASES[spec], seed=seed)
    spec_model, tangent, images = case.model(), case.tangent(), case.images()
    d_images = np.random.default_rng([seed, 1]).standard_normal(images.shape)
    truth = [spec_model.jvp(x, tangent, d_x) for x, d_x in zip(images, d_images, strict=True)]
    with jax.enable_x64(True):
        model = differentiable(case, spec_model.to_flat(), **options)
        d_model = differentiable(case, tangent.to_flat(), **options)
        program = compiled(logits_and_tangent, True)
        _, found = program(model, channels_last(images), d_model, channels_last(d_images))
        assert_close(found, np.stack(truth), 1e-12, "tangent of the logits")


@given(seed=strategies.seeds)
@settings(max_examples=3)
def test_a_hessian_vector_product_is_the_complex_step_of_the_specification_s_backward(seed):
    """Im backward(params + i h v) / h: second derivatives by one complex evaluation."""
    case = replace(CASES["vit"], seed=seed)
    spec_model, tangent, images, cotangent = (
        case.model(), case.tangent(), case.images(), case.cotangent()
    )  # fmt: skip
    h, flat = 1e-100, spec_model.to_flat()
    moved = {name: leaf + 1j * h * tangent.to_flat()[name] for name, leaf in flat.items()}
    moved = MODELS[case.spec].from_flat(case.config, moved, **case.size)
    grads = [
        moved.backward(image.astype(complex), d_logits.astype(complex))[0].to_flat()
        for image, d_logits in zip(images, cotangent, strict=True)
    ]
    truth = {name: sum(one[name].imag for one in grads) / h for name in flat}
    with jax.enable_x64(True):
        model, d_model = (differentiable(case, leaf) for leaf in (flat, tangent.to_flat()))
        program = compiled(hessian_vector_product, True)
        product = program(model, channels_last(images), d_model, cotangent)
        assert_flat_close(to_flat(product), truth, 1e-12)


# ---- taps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scan", "loop"])
@given(seed=strategies.seeds)
@settings(max_examples=5)
def test_taps_are_the_specification_s_intermediate_values(scan_layers, seed):
    case = replace(CASES["vit-cls"], seed=seed)
    spec_model, images = case.model(), case.images()
    traces = [trace_taps(spec_model.trace(image)) for image in images]
    outputs = [f"encoder.layers.{i}.output" for i in range(case.config.num_layers)]
    weights = [f"encoder.layers.{i}.mha.weights" for i in range(case.config.num_layers)]
    hidden = [[trace[name] for trace in traces] for name in ("embedded", *outputs)]
    attended = [[trace[name] for trace in traces] for name in weights]
    with jax.enable_x64(True):
        model = from_flat(
            case.config, spec_model.to_flat(), **case.size, pool="cls", scan_layers=scan_layers
        )
        logits, taps = compiled(with_taps, True)(model, channels_last(images))
        assert_close(logits, [spec_model.forward(image) for image in images], 1e-12, "logits")
        assert_close(taps.hidden_states, hidden, 1e-12, "hidden_states")
        assert_close(taps.attention_weights, attended, 1e-12, "attention_weights")


def with_taps(model, images):
    return model.forward_with_taps(images, attention_weights=True)
