"""The float64 results against the real numbers, as rigorous balls.

The bound, from embed_dim 3 on, for forward, backward and JVP: the error of any entry of a tensor is
at most

    4 * (what moving every input by one unit in the last place changes, in exact arithmetic)
    + 16 u * (the largest entry),            u = 2^-53,

where the largest entry is that of the logits, of the JVP, or of all cotangents together. That is:
the result is the exact one of inputs that are a few roundings away, up to a few roundings of the
gradient. The change is the largest of six random ones, computed in balls. The largest cotangent
counts because one tensor may be what a subtraction inside the backward left of the others: a
softmax that is nearly saturated multiplies its cotangents by differences of nearly equal numbers.

At embed_dim 2 a layer normalisation is nearly a sign function, and its derivative is what a
subtraction of nearly equal numbers leaves: (var + eps) / eps, some six digits, are lost. That is a
property of Lean's formula, not of this code, and has a test of its own. At embed_dim 1 the
derivative is exactly 0.
"""

import numpy as np
import pytest
from hypothesis import given, settings

from vitspec import ViTConfig, distance_bound, encloses, from_reals, radius, to_reals
from vitspec.layers.normalization import layer_norm_backward
from vitspec.testing.catalogue import deviation, planted
from vitspec.testing.families import Case
from vitspec.testing.strategies import cases, seeds

pytest.importorskip("flint", reason="real balls need the extra 'reals'")

EPS = float(np.finfo(np.float64).eps)
FIXED = Case(
    "vit",
    ViTConfig(2, 3, 2, 1, embed_dim=6, hidden_dim=5, head_count=2, num_layers=2, num_classes=3),
    in_channels=2,
    height=5,
    width=7,
    seed=3,
)


def everything(model, image, d_logits, tangent, d_image):
    """Logits, all cotangents and the JVP, by name."""
    grads, image_cotangent = model.backward(image, d_logits)
    return {
        "logits": model.forward(image),
        "image": image_cotangent,
        "jvp": model.jvp(image, tangent, d_image),
        **grads.to_flat(),
    }


def inputs(case):
    return case.model(), case.image(), case.d_logits(), case.tangent(), case.d_image()


def in_reals(arguments):
    return everything(*(to_reals(a) for a in arguments))


def moved(arguments, rng):
    """Every number moved by one unit in the last place, up or down."""

    def move(array):
        return array * (1 + EPS * rng.choice([-1.0, 1.0], array.shape))

    return [a.map(move) if hasattr(a, "map") else move(a) for a in arguments]


def excess(values, balls, sensitivity):
    """The largest error over its bound, and the tensor; structural zeros must lie in the ball."""
    ratios = {}
    cotangents = [v for name, v in values.items() if name not in ("logits", "jvp")]
    largest = max(np.abs(v).max(initial=0.0) for v in cotangents)
    for name, value in values.items():
        if value.size == 0:
            continue
        if not value.any():
            assert encloses(balls[name], value).all(), name
            continue
        size = np.abs(value).max() if name in ("logits", "jvp") else largest
        bound = 4 * sensitivity[name] + 8 * EPS * size
        ratios[name] = distance_bound(balls[name], value).max() / bound
    worst = max(ratios, key=ratios.get)
    return ratios[worst], worst


def sensitivities(arguments, balls, rng, draws=6):
    changes = [in_reals(moved(arguments, rng)) for _ in range(draws)]
    return {
        name: max(np.abs(from_reals(c[name] - ball)).max(initial=0.0) for c in changes)
        for name, ball in balls.items()
    }


@given(cases(min_embed_dim=3, max_layers=2, max_extent=6))
@settings(max_examples=40)
def test_float64_is_within_a_few_roundings_of_the_reals(case):
    arguments = inputs(case)
    balls = in_reals(arguments)
    sensitivity = sensitivities(arguments, balls, np.random.default_rng(case.seed))
    ratio, worst = excess(everything(*arguments), balls, sensitivity)
    assert ratio <= 1, worst


@given(seeds)
@settings(max_examples=30)
def test_a_layer_norm_of_two_features_loses_var_over_eps(seed):
    rng = np.random.default_rng(seed)
    x, d_out = rng.standard_normal((2, 5, 2))
    gamma = rng.standard_normal(2)
    value, _, _ = layer_norm_backward(x, gamma, d_out)
    balls, _, _ = layer_norm_backward(*(to_reals(a) for a in (x, gamma, d_out)))
    # Its size is that of what cancels, not of what is left.
    std = np.sqrt(x.var(axis=1, keepdims=True) + 1e-6)
    cancelled = np.abs(d_out * gamma).max(axis=1, keepdims=True) / std
    conditioning = 1 + np.abs(x).max(axis=1, keepdims=True) / std  # of the centring
    assert (distance_bound(balls, value) <= 4 * EPS * cancelled * conditioning).all()


@given(cases(min_embed_dim=1, max_layers=2, max_extent=6))
@settings(max_examples=25)
def test_the_balls_are_negligible_at_128_bits(case):
    balls = in_reals(inputs(case))
    sizes = {name: np.abs(from_reals(b)).max(initial=0.0) for name, b in balls.items()}
    largest = max(sizes.values())
    assert all(radius(ball).max(initial=0.0) <= 1e-20 * largest for ball in balls.values())


@pytest.mark.parametrize(
    "name",
    ["layer-norm-eps-1e-5", "attention-scale-by-head-dim", "layer-norm-gradient-without-mean"],
)
def test_a_wrong_formula_is_excluded(name):
    arguments = inputs(FIXED)
    balls = in_reals(arguments)
    sensitivity = sensitivities(arguments, balls, np.random.default_rng(0))
    assert excess(everything(*arguments), balls, sensitivity)[0] <= 1
    with planted(deviation(name)):
        wrong = everything(*arguments)
    ratio, worst = excess(wrong, balls, sensitivity)
    assert ratio > 1e6, f"{name}: only {ratio:.1e} times the bound, at {worst}"


def test_a_wrong_formula_in_balls_excludes_the_true_value():
    """Both enclosures are proofs: of different functions, so they are disjoint."""
    model, image = to_reals(FIXED.model()), to_reals(FIXED.image())
    truth = model.forward(image)
    with planted(deviation("layer-norm-eps-1e-5")):
        wrong = model.forward(image)
    assert not any(a.overlaps(b) for a, b in zip(truth, wrong, strict=True))
