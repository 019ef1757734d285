"""Implementations made by adapters, against the specification in float64."""

from dataclasses import replace

import numpy as np

from support.compare import assert_flat_close
from vitspec import ViTConfig
from vitspec.testing.families import Case
from vitspec.testing.precision import PRECISIONS
from vitspec.testing.reference import Point, evaluate_spec, price_spec
from vitspec.testing.tolerance import grade


def small_case(spec="vit", channels=3, height=7, width=6, seed=0, batch=2, **fields):
    """A case of two images whose config has nothing square and nothing equal."""
    defaults = {
        "patch_h": 3, "patch_w": 2, "stride": 2, "padding": 1, "embed_dim": 12, "hidden_dim": 7,
        "head_count": 3, "num_layers": 2, "num_classes": 5,
    }  # fmt: skip
    return Case(spec, ViTConfig(**defaults | fields), channels, height, width, seed, batch=batch)


EDGES = {
    "several of everything": small_case(),
    "the same with CLS": small_case("vit-cls"),
    "one image, no padding": small_case(batch=1, padding=0, num_layers=1),
    "stride larger than the patch": small_case("vit-cls", 2, 9, 8, stride=4, num_layers=1),
    "windows wholly in the padding": small_case("vit-cls", 1, 3, 4, patch_h=1, padding=2),
    "no layers": small_case(num_layers=0),
    "no layers with CLS": small_case("vit-cls", num_layers=0),
    "no token but CLS: the patch does not fit": small_case("vit-cls", 2, 2, 3, padding=0),
    "no token but CLS: stride 0": small_case("vit-cls", 2, 5, 6, stride=0, num_layers=1),
    "one token": small_case(channels=2, height=3, width=2, stride=4, padding=0),
}
"""Rows of the edge-case table that PyTorch can compute too."""

UNEVEN_HEADS = {
    "heads do not divide embed_dim": small_case(embed_dim=8, num_layers=1),
    "heads of width 0": small_case("vit-cls", embed_dim=4, head_count=5, num_layers=1),
}


def point_of(case, precision="float64"):
    """The case in a precision, in read-only arrays, its ReLUs away from their kinks."""
    return Point.of(case).away_from_kinks(1e-3).rounded(PRECISIONS[precision])


def evaluate(implementation, point):
    """Logits and gradients by the implementation, and apart from them its taps."""
    found = dict(implementation.forward(point.config, point.params, point.images))
    taps = {name: found.pop(name) for name in found.keys() - {"logits"}}
    before = {name: array.copy() for name, array in point.params.items()}
    d_params, found["image"] = implementation.vjp(
        point.config, point.params, point.images, point.cotangent
    )
    for name, array in before.items():
        np.testing.assert_array_equal(point.params[name], array)
    return found | d_params, taps


def truth_of(point):
    """The specification in float64, with its intermediate values."""
    wide = {name: array.astype(np.float64) for name, array in point.params.items()}
    images, cotangent = point.images.astype(np.float64), point.cotangent.astype(np.float64)
    point = replace(point, params=wide, images=images, cotangent=cotangent)
    return evaluate_spec(point, taps=True)


def assert_agrees(implementation, case, precision="float64", tolerance=1e-11):
    """Logits, gradients and taps agree with the specification; the results are returned."""
    point = point_of(case, precision)
    truth = truth_of(point)
    found, taps = evaluate(implementation, point)
    assert found.keys() == {"logits", "image", *point.params}
    assert {array.dtype for array in found.values()} == {point.images.dtype}
    # Where everything cancels (the scores' gradients of a softmax over one token), a fused kernel
    # that adds in another order leaves rounding: the kit prices it by what cancelled.
    cancelled = [name for name in found if truth[name].size and not truth[name].any()]
    rng = np.random.default_rng(0)
    prices = price_spec(point, truth, PRECISIONS[precision], 12, rng, taps=True)
    for name in cancelled:
        one = grade(name, found[name], truth[name], prices[name])
        assert one.conforms, one
    compared = {n: value for n, value in (found | taps).items() if n not in cancelled}
    assert_flat_close(compared, {name: truth[name] for name in compared}, tolerance)
    return found, taps
