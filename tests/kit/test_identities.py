"""Identities that need no oracle: right models pass, wrong ones fail, and doubt is called doubt."""

import functools
import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import identities_table as measure
from identities_table import broken_by, evaluation, laws_and_structure
from vitspec import testing as kit
from vitspec.testing.catalogue import CATALOGUE, deviation
from vitspec.testing.families import FAMILIES, Case
from vitspec.testing.identities import NAMINGS, example_point, identities
from vitspec.testing.identities.differences import slope
from vitspec.testing.identities.differentiable import directional_derivatives, laws
from vitspec.testing.identities.evaluation import Evaluation
from vitspec.testing.identities.naming import recognise
from vitspec.testing.identities.results import FACTOR, Comparison, check_name, judged
from vitspec.testing.identities.structural import structural
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.precision import PRECISIONS
from vitspec.testing.reference import Point, SpecImplementation

POINTS = measure.small_points()
CONFIG = measure.CONFIG
ROOT = Path(__file__).parents[2]


def failed(results):
    return [r for r in results if r.status == "failed"]


def grade_of(result):
    """What was compared, whether it decides or not."""
    return result.worst or result.undecided


def tensors(result):
    """What an identity ties together."""
    return tuple(grade_of(result).tensor.split(", "))


# ---- no false alarm ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_laws_and_structure_hold_of_the_specification_at_twenty_points(dtype):
    worst = 0.0
    for point in measure.points(20, seed=20):
        results = list(
            laws_and_structure(evaluation(point, SpecImplementation(point.spec, dtype), dtype))
        )
        assert not failed(results), (point.config, failed(results))
        worst = max(worst, *(grade_of(r).ratio for r in results if grade_of(r)))
    assert worst < 0.5  # a bound that correct models use up by half has no room to spare


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_difference_quotients_agree_with_the_specification(dtype):
    for point in measure.points(2, seed=21):
        e = evaluation(point, SpecImplementation(point.spec, dtype), dtype)
        results = list(directional_derivatives(e, np.random.default_rng(0)))
        assert not failed(results), (point.config, failed(results))
        if dtype == "float64":
            assert max(grade_of(r).bound for r in results[:3]) < 1e-6


def test_long_sums_of_like_numbers_are_no_alarm():
    """Sums over many tokens round in one direction; only the neighbours' other scale shows it."""
    config = replace(CONFIG, patch_h=1, patch_w=1, stride=1, padding=0, num_layers=1)
    point = Point.of(Case("vit", config, 1, 24, 24, 3))
    e = evaluation(point, SpecImplementation("vit", "float32"), "float32")
    assert not failed(laws_and_structure(e))


@pytest.mark.parametrize("power", [-60, 60])
def test_nothing_is_absolute(power):
    """A cotangent times 2^k changes no residual, no bound and no verdict."""
    point = POINTS["vit"]
    scaled = replace(point, cotangent=point.cotangent * 2.0**power)
    a, b = (
        list(laws_and_structure(evaluation(p, SpecImplementation("vit")))) for p in (point, scaled)
    )
    assert [(r.status, r.undecided is None) for r in a] == [
        (r.status, r.undecided is None) for r in b
    ]
    first, second = ([g for r in results if (g := grade_of(r))] for results in (a, b))
    assert [g.error for g in first] == [g.error for g in second]
    assert [g.bound for g in first] == pytest.approx([g.bound for g in second], rel=1e-12)


# ---- the catalogue -----------------------------------------------------------------------------

ONLY_BY_DIFFERENCES = {
    "attention-gradient-scale-missing",
    "attention-gradient-scale-twice",
    "attention-weights-constant",
    "layer-norm-gradient-without-projection",
    "layer-norm-gradient-without-gamma",
}
"""Backward deviations that no law and no structure sees: they respect every symmetry."""


def backward_mistakes():
    return [d for d in CATALOGUE if d.kind == "backward"]


PARTS = 12
"""What each mistake breaks takes a minute to find out: in parts, which cores share."""

PAGE = (ROOT / "docs" / "identities.md").read_text(encoding="utf-8").splitlines()
"""Its tables are what `python tools/identities_table.py --catalogue` prints."""


@pytest.mark.parametrize("part", range(PARTS))
def test_each_deviation_breaks_what_the_page_says(part):
    mistakes = [d for d in CATALOGUE if d.kind in measure.SEEN_KINDS][part::PARTS]
    assert [d.name for d in mistakes if measure.catalogue_row(d) not in PAGE] == []


def test_the_page_has_every_deviation_and_counts_them():
    rows = dict(line[3:-2].split("` | ") for line in PAGE if line.startswith("| `"))
    assert rows.keys() == {d.name for d in CATALOGUE if d.kind in measure.SEEN_KINDS}
    for kind in measure.SEEN_KINDS:
        broken = [rows[d.name] for d in CATALOGUE if d.kind == kind]
        seen = [names for names in broken if names != "nothing"]
        alone = sum(names != measure.QUOTIENT for names in seen)
        assert f"| {kind} | {len(broken)} | {alone} | {len(seen)} |" in PAGE
        assert len(seen) == len(broken) or kind == "both"
    unseen = {d.name for d in backward_mistakes() if rows[d.name] == measure.QUOTIENT}
    assert unseen == ONLY_BY_DIFFERENCES
    assert len(unseen) < 0.2 * len(backward_mistakes())


@pytest.mark.parametrize("part", range(3))
def test_in_float32_backward_deviations_are_seen_too(part):
    for mistake in backward_mistakes()[::3][part::3]:
        broken = broken_by(mistake, "float32")
        assert broken, mistake.name
        assert (broken == (measure.QUOTIENT,)) == (mistake.name in ONLY_BY_DIFFERENCES)


CONSISTENT = {
    "attention-scale-missing",
    "attention-scale-by-head-dim",
    "attention-causal",
    "layer-norm-eps-1e-5",
    "layer-norm-eps-1e-12",
}
"""Other functions than the specification's, but with the right gradients: no identity objects."""


@pytest.mark.parametrize("name", sorted(CONSISTENT))
def test_a_consistent_model_is_no_alarm_whatever_it_computes(name):
    assert broken_by(deviation(name)) == ()


class Spoilt(SpecImplementation):
    """The specification, with one gradient spoilt."""

    def __init__(self, tensor, spoil, **kwargs):
        super().__init__("vit", **kwargs)
        self.tensor, self.spoil = tensor, spoil

    def vjp(self, config, params, images, cotangent):
        d_params, d_images = super().vjp(config, params, images, cotangent)
        flat = d_params | {"image": d_images}
        flat[self.tensor] = self.spoil(flat[self.tensor])
        return {name: flat[name] for name in params}, flat["image"]


@pytest.mark.parametrize(
    "tensor",
    ["patch_embed.bias", "encoder.layers.0.mha.wk", "encoder.layers.1.norm1_gamma", "image"],
)
def test_the_difference_quotient_names_the_wrong_tensor(tensor):
    e = evaluation(POINTS["vit"], Spoilt(tensor, lambda d: d * (1 + 1e-6)))
    results = list(directional_derivatives(e, np.random.default_rng(0)))
    assert [tensors(r) for r in failed(results[3:])] == [(tensor,)]


@pytest.mark.parametrize(
    ("tensor", "identity"),
    [
        ("encoder.layers.1.mha.wq", "queries and keys"),
        ("encoder.layers.1.mha.wo", "values and outputs"),
        ("encoder.layers.0.norm1_beta", "norm's shift into fc1"),
        ("encoder.layers.0.norm2_beta", "norm's shift into attention without biases"),
        ("encoder.layers.0.ffn.w1", "hidden units"),
        ("patch_embed.kernel", "kernel from positions"),
        ("image", "image from positions"),
        ("head.bias", "head bias"),
    ],
)
def test_structure_sees_a_relative_error_of_1e_10_and_ties_it_to_the_tensor(tensor, identity):
    found = failed(
        laws_and_structure(evaluation(POINTS["vit"], Spoilt(tensor, lambda d: d * (1 + 1e-10))))
    )
    assert check_name(identity) in {r.check for r in found}
    assert all(tensor in tensors(r) for r in found)


# ---- kinks -------------------------------------------------------------------------------------


def test_the_slope_of_a_smooth_function_is_exact_to_rounding():
    value, error = slope(lambda t: np.exp(3 * t) - 1, noise=2.0**-53)
    assert abs(value - 3) <= error < 1e-12


@pytest.mark.parametrize("position", [0.06, -0.02, 1e-3, 1e-6])
def test_a_kink_beside_the_point_is_avoided_by_smaller_steps(position):
    value, error = slope(lambda t: max(np.sin(t) - position, 0) - max(-position, 0), noise=2.0**-53)
    assert abs(value - (position < 0)) <= error < 1e-7


@pytest.mark.parametrize("position", [0.0, 1e-15])
def test_a_kink_at_the_point_is_reported_as_doubt(position):
    value, error = slope(lambda t: max(t - position, 0), noise=2.0**-53)
    assert error >= max(abs(value - 0), abs(value - 1))


def test_kinks_that_agree_by_chance_at_large_steps_are_found_out():
    """In low precision several kinks within the steps can look like a smooth function."""
    for seed in range(500):
        rng = np.random.default_rng(seed)
        at, jump = 0.05 * rng.normal(size=6), rng.normal(size=6)

        def f(t, rng=rng, at=at, jump=jump):
            opened = np.maximum(t - at, 0) - np.maximum(-at, 0)
            return np.sin(t) + 0.3 * np.expm1(t) + jump @ opened + rng.uniform(-3e-6, 3e-6)

        value, error = slope(f, noise=3e-6)
        assert abs(value - 1.3 - jump @ (at < 0)) <= FACTOR * error


class Mlp:
    """relu(x W + b) V, by hand; W may be nudged so that a unit sits at its kink."""

    name, version, spec, dtype = "mlp", "1", "other", "float64"

    def __init__(self, bias=0.3, wrong=False):
        self.bias, self.wrong = bias, wrong

    def example(self, rng):
        params = {"w": np.ones((1, 1)), "b": np.array([self.bias]), "v": rng.normal(size=(1, 2))}
        return None, params, np.ones((2, 1))

    def forward(self, config, params, images):
        return np.maximum(images @ params["w"] + params["b"], 0) @ params["v"]

    def vjp(self, config, params, images, cotangent):
        hidden = images @ params["w"] + params["b"]
        d_hidden = (cotangent @ params["v"].T) * (hidden > 0)
        d_w = images.T @ d_hidden
        grads = {
            "w": d_w.T * 2 if self.wrong else d_w,
            "b": d_hidden.sum(0),
            "v": np.maximum(hidden, 0).T @ cotangent,
        }
        return grads, d_hidden @ params["w"].T


def check(implementation, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    subject = Subject(implementation)
    subject.precision = PRECISIONS[dtype]  # whatever it says of itself
    return identities(subject, example_point(subject, rng), rng)


def test_a_model_that_we_know_nothing_of_passes_and_its_structure_is_skipped():
    results = check(Mlp())
    assert not failed(results)
    (structure,) = [r for r in results if r.check == check_name("structure")]
    assert structure.status == "skipped"
    assert "huggingface" in structure.reason


def test_a_wrong_gradient_of_a_model_that_we_know_nothing_of_is_named():
    found = failed(check(Mlp(wrong=True)))
    assert ("w",) in {tensors(r) for r in found}
    assert all("w" in tensors(r) for r in found)


def test_at_a_kink_the_verdict_is_undecided():
    results = check(Mlp(bias=-1.0))  # every unit is exactly at 0
    assert not failed(results)
    verdicts = {
        tensors(r): r
        for r in results
        if r.check == check_name("directional derivative of one tensor")
    }
    assert verdicts[("b",)].undecided
    assert "ReLU" in verdicts[("b",)].reason


def test_unused_parameters_are_reported_but_never_fail():
    (result,) = [r for r in check(Mlp(bias=-5.0)) if r.check == check_name("unused parameters")]
    assert result.undecided
    assert set(tensors(result)) == {"w", "b", "v"}


# ---- implementations that misbehave ------------------------------------------------------------


def test_non_deterministic_results_are_named():
    rng = np.random.default_rng(0)
    noisy = Spoilt("head.bias", lambda d: d * (1 + 1e-13 * rng.standard_normal(d.shape)))
    (result,) = [
        r
        for r in laws(evaluation(POINTS["vit"], noisy), rng)
        if r.check == check_name("determinism")
    ]
    assert (result.status, tensors(result)) == ("failed", ("head.bias",))
    assert 0 < result.worst.error < 1e-12
    assert result.worst.ratio == np.inf


def test_a_gradient_that_does_not_scale_with_the_cotangent_is_named():
    spoilt = Spoilt("head.bias", lambda d: d + 1e-9)
    found = failed(laws(evaluation(POINTS["vit"], spoilt), np.random.default_rng(0)))
    assert {(check_name("scale of the cotangent"), ("head.bias",))} <= {
        (r.check, tensors(r)) for r in found
    }


def test_a_zero_that_changes_its_sign_has_a_finite_error():
    signs = itertools.cycle([0.0, -0.0])
    changing = Spoilt("head.bias", lambda d: np.full_like(d, next(signs)))
    (result,) = [
        r
        for r in laws(evaluation(POINTS["vit"], changing), np.random.default_rng(0))
        if r.check == check_name("determinism")
    ]
    assert (result.status, result.worst.error) == ("failed", 0.0)


def test_what_goes_wrong_with_the_users_configuration_is_reported():
    """The configuration is the user's own: a stride that is no number is no crash of the kit."""

    class Padded:
        name, version, spec, dtype = "padded", "1", "other", "float64"

        def example(self, rng):
            case = FAMILIES["vit"].tiled_case(rng)
            config = SimpleNamespace(stride="SAME", head_count=case.config.head_count)
            self.config = case.config
            return config, case.model().to_flat(), case.images()

        def forward(self, config, params, images):
            return SpecImplementation("vit").forward(self.config, params, images)

        def vjp(self, config, params, images, cotangent):
            return SpecImplementation("vit").vjp(self.config, params, images, cotangent)

    report = kit.check(Padded(), identities=True, laws=1)
    assert (report.exit_code, [r.status for r in report.results]) == (3, ["errored"])
    assert "vjp raised TypeError" in report.results[0].reason


def test_an_example_may_be_of_another_frameworks_arrays():
    class Tensor:
        """An array that NumPy can read and not compute with, as a tensor is."""

        def __init__(self, value):
            self.value = value

        def detach(self):
            return self.value

    class Foreign(Mlp):
        def example(self, rng):
            config, params, images = super().example(rng)
            return config, {name: Tensor(p) for name, p in params.items()}, Tensor(images)

    assert not failed(check(Foreign()))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_fails_and_ends_the_list(bad):
    spoilt = Spoilt("pos_enc.pos", lambda d: d * bad)
    with np.errstate(invalid="ignore"):
        results = identities(Subject(spoilt), POINTS["vit"], np.random.default_rng(0))
    assert [(r.check, r.status, tensors(r)) for r in results] == [
        ("identity.finite", "failed", ("pos_enc.pos",))
    ]


def test_an_example_that_makes_no_point_is_an_adapter_error():
    class NoPoint(Mlp):
        def example(self, rng):
            return None, {"w": np.ones((2, 2))}

    with pytest.raises(AdapterError, match="mlp: no point could be made with example"):
        check(NoPoint())


@pytest.mark.parametrize(("dtype", "carrier"), [("float64", "float64"), ("bfloat16", "float32")])
def test_an_implementation_gets_read_only_arrays_of_its_precision(dtype, carrier):
    class Strict(Mlp):
        def forward(self, config, params, images):
            for array in (*params.values(), images):
                assert array.dtype == carrier
                assert not array.flags.writeable
            return super().forward(config, params, images)

    assert not failed(check(Strict(), dtype))


class Broken(Mlp):
    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def vjp(self, config, params, images, cotangent):
        if self.fault == "raises":
            raise RuntimeError("out of memory")
        grads, d_images = super().vjp(config, params, images, cotangent)
        if self.fault == "missing":
            del grads["v"]
        if self.fault == "shape":
            grads["v"] = grads["v"].T
        return grads, d_images


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raises", "mlp.vjp raised RuntimeError on None with images.*: out of memory"),
        ("missing", r"v: missing, expected shape \(1, 2\)"),
        ("shape", r"v: expected float \(1, 2\), got float64 \(2, 1\)"),
    ],
)
def test_an_implementation_that_breaks_its_contract_is_an_adapter_error(fault, words):
    with pytest.raises(AdapterError, match=words):
        check(Broken(fault))


def test_reserved_names_are_refused():
    point = Point("other", None, {"image": np.ones(1)}, np.ones((1, 1)), np.ones((1, 2)))
    with pytest.raises(AdapterError, match="must not be called image"):
        identities(Subject(Mlp()), point, np.random.default_rng(0))


# ---- naming schemes ----------------------------------------------------------------------------

D, F, K, HEADS, LAYERS, PATCH = 12, 10, 5, 3, 2, (2, 3)


def pre_norm_roles(rng):
    """Random parameters of a small pre-norm ViT, by role and layer, in the canonical layout."""
    matrices = {"q": (D, D), "k": (D, D), "v": (D, D), "o": (D, D), "fc1": (D, F), "fc2": (F, D)}
    shapes = {("patch.weight", None): (D, 2, *PATCH), ("patch.bias", None): (D,)}
    shapes |= {("cls", None): (D,), ("pos", None): (5, D)}
    for i in range(LAYERS):
        for part, shape in matrices.items():
            shapes |= {(f"{part}.weight", i): shape, (f"{part}.bias", i): shape[1:]}
        for n in (1, 2):
            shapes |= {(f"norm{n}.gamma", i): (D,), (f"norm{n}.beta", i): (D,)}
    shapes |= {("final_norm.gamma", None): (D,), ("final_norm.beta", None): (D,)}
    shapes |= {("head.weight", None): (D, K), ("head.bias", None): (K,)}
    return {
        (role, i): rng.normal(size=shape) / np.sqrt(D) + role.endswith("gamma")
        for (role, i), shape in shapes.items()
    }


def stored(naming, roles, prefix):
    """The roles' arrays under a scheme's names, in its layouts."""
    flat = {}
    for (role, i), array in sorted(roles.items(), key=lambda item: str(item[0])):
        place = naming.roles[role]
        name = place.name.replace("{prefix}", prefix).replace("{i}", str(i))
        if role.endswith("weight") and role != "patch.weight" and place.out_first:
            array = array.T
        if role == "cls" and naming.name != "vitspec":
            array = array[None, None]
        if role == "pos" and naming.name != "vitspec":
            array = array[None]
        flat.setdefault(name, {})[place.part[0]] = array
    return {name: np.concatenate([p[k] for k in sorted(p)]) for name, p in flat.items()}


class PreNorm:
    """A pre-norm ViT with biases and GELU, in plain JAX, differentiated by JAX."""

    name, version, spec, dtype = "pre-norm", "1", "other", "float64"

    def __init__(self, naming, prefix="", spoil=None):
        self.naming, self.prefix, self.spoil = naming, prefix, spoil or (lambda flat: flat)
        self.jax = pytest.importorskip("jax")

    def example(self, rng):
        params = stored(self.naming, pre_norm_roles(rng), self.prefix)
        return {"num_heads": HEADS}, params, rng.standard_normal((2, 2, 5, 7))

    def forward(self, config, params, images):
        with self.jax.enable_x64(True):
            return np.asarray(compiled(self.naming.name, self.prefix)[0](dict(params), images))

    def vjp(self, config, params, images, cotangent):
        with self.jax.enable_x64(True):
            vjp = compiled(self.naming.name, self.prefix)[1]
            d_params, d_images = vjp(dict(params), images, cotangent)
        return self.spoil({n: np.array(d) for n, d in d_params.items()}), np.asarray(d_images)

    def logits(self, params, images):
        jax, jnp = self.jax, self.jax.numpy

        def linear(x, name):
            return x @ params[name + ".weight"].T + params[name + ".bias"]

        def norm(x, name):
            c = x - x.mean(-1, keepdims=True)
            xhat = c / jnp.sqrt((c * c).mean(-1, keepdims=True) + 1e-12)
            return xhat * params[name + ".weight"] + params[name + ".bias"]

        def module(role, i=0):
            name = self.naming.roles[role].name.rpartition(".")[0]
            return name.replace("{prefix}", self.prefix).replace("{i}", str(i))

        def qkv(x, i):
            if self.naming.name == "timm":
                return jnp.split(linear(x, module("q.weight", i)), 3, -1)
            return [linear(x, module(f"{part}.weight", i)) for part in "qkv"]

        def heads(x):
            return x.reshape(*x.shape[:2], HEADS, D // HEADS).swapaxes(1, 2)

        kernel, bias = params[module("patch.weight") + ".weight"], module("patch.weight") + ".bias"
        grid = jax.lax.conv_general_dilated(images, kernel, PATCH, "VALID")
        tokens = grid.reshape(len(images), D, -1).swapaxes(1, 2) + params[bias]
        cls, pos = (
            params[self.naming.roles[role].name.replace("{prefix}", self.prefix)]
            for role in ("cls", "pos")
        )
        x = jnp.concatenate([jnp.broadcast_to(cls, (len(images), 1, D)), tokens], 1) + pos
        for i in range(LAYERS):
            q, k, v = (heads(a) for a in qkv(norm(x, module("norm1.gamma", i)), i))
            weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) / np.sqrt(D // HEADS))
            mixed = (weights @ v).swapaxes(1, 2).reshape(x.shape)
            x = x + linear(mixed, module("o.weight", i))
            hidden = linear(norm(x, module("norm2.gamma", i)), module("fc1.weight", i))
            x = x + linear(jax.nn.gelu(hidden, approximate=False), module("fc2.weight", i))
        return linear(norm(x, module("final_norm.gamma"))[:, 0], module("head.weight"))


@functools.cache
def compiled(name, prefix):
    """Forward and vjp of the pre-norm model under a scheme's names."""
    (naming,) = [n for n in NAMINGS if n.name == name]
    model = PreNorm(naming, prefix)
    vjp = lambda p, x, g: model.jax.vjp(model.logits, p, x)[1](g)  # noqa: E731
    return model.jax.jit(model.logits), model.jax.jit(vjp)


PRE_NORM = [n for n in NAMINGS if n.norm == "pre"]


def evaluation_of(model, rng):
    """A model at its own point."""
    subject = Subject(model)
    return Evaluation(subject, example_point(subject, rng), rng)


@pytest.mark.parametrize(
    ("naming", "prefix"),
    [(PRE_NORM[0], ""), (PRE_NORM[0], "vit."), (PRE_NORM[1], "vit."), (PRE_NORM[2], "")],
    ids=lambda value: getattr(value, "name", value),
)
def test_pre_norm_models_are_recognised_by_their_names_and_pass(naming, prefix):
    model = PreNorm(naming, prefix)
    rng = np.random.default_rng(0)
    e = evaluation_of(model, rng)
    roles = recognise(e.point.params, NAMINGS)
    assert (roles.naming.name, roles.num_layers) == (naming.name, LAYERS)
    results = list(structural(e, roles, HEADS))
    assert not any(r.undecided for r in results)
    assert {r.status for r in results} == {"passed", "skipped"}
    (skip,) = [r for r in results if r.status == "skipped"]
    assert skip.check == "identity.hidden-units"
    assert skip.reason.startswith("the activation is not ReLU; ")
    assert sum(r.check == check_name("residual writer") for r in results) == 4 + 4 * LAYERS


def _sign(d):
    return -d


SPOILT = {
    "encoder.layer.0.attention.attention.value.bias": ("value bias and output bias", _sign),
    "encoder.layer.0.attention.attention.query.bias": ("normalised rows into the queries", _sign),
    "encoder.layer.0.attention.attention.query.weight": ("queries and keys", _sign),
    "encoder.layer.1.layernorm_before.weight": ("norm's features into attention", _sign),
    "encoder.layer.1.layernorm_before.bias": ("norm's shift into attention", _sign),
    "encoder.layer.1.layernorm_after.weight": ("norm's features into fc1", _sign),
    "encoder.layer.1.layernorm_after.bias": ("norm's shift into fc1", _sign),
    "encoder.layer.0.output.dense.weight": ("residual writer", lambda d: d + d[:1]),
    "embeddings.cls_token": ("CLS token and its position", _sign),
    "embeddings.position_embeddings": ("kernel from positions", _sign),
    "layernorm.weight": ("norm's features into the head", _sign),
    "classifier.weight": ("head and logits", _sign),
}


@pytest.mark.parametrize("tensor", SPOILT)
def test_a_wrong_gradient_of_a_pre_norm_model_breaks_its_identity(tensor):
    identity, spoil = SPOILT[tensor]
    model = PreNorm(NAMINGS[1], spoil=lambda flat: flat | {tensor: spoil(flat[tensor])})
    rng = np.random.default_rng(0)
    e = evaluation_of(model, rng)
    found = failed(structural(e, recognise(e.point.params, NAMINGS), HEADS))
    assert check_name(identity) in {r.check for r in found}
    assert all(tensor in tensors(r) for r in found)


def test_a_key_bias_whose_gradient_is_not_zero_is_seen():
    key, query = (f"encoder.layer.1.attention.attention.{p}.bias" for p in ("key", "query"))
    model = PreNorm(NAMINGS[1], spoil=lambda flat: flat | {key: flat[key] + 1e-9 * flat[query]})
    rng = np.random.default_rng(0)
    e = evaluation_of(model, rng)
    found = failed(structural(e, recognise(e.point.params, NAMINGS), HEADS))
    assert ("identity.key-bias", (key,)) in {(r.check, tensors(r)) for r in found}


def test_a_parameter_without_a_role_makes_the_structure_unknown():
    """Such as a LayerScale, which breaks the residual writers of a right model."""
    params = stored(NAMINGS[1], pre_norm_roles(np.random.default_rng(0)), "")
    assert recognise(params | {"embeddings.mask_token": 0}, NAMINGS).num_layers == LAYERS
    reason = recognise(params | {"encoder.layer.0.layer_scale": 0}, NAMINGS)
    assert reason == "huggingface names, but no role is known for encoder.layer.0.layer_scale"


def test_an_implementation_may_bring_its_own_naming():
    point = POINTS["vit"]
    theirs = SpecImplementation("vit")
    theirs.naming = replace(NAMINGS[0], name="mine", relu=False)
    results = identities(Subject(theirs), point, np.random.default_rng(0))
    assert [r.status for r in results if r.check == check_name("hidden units")] == ["skipped"]


def test_identities_that_divide_by_gamma_are_skipped_where_one_is_zero():
    point = POINTS["vit"]
    gamma = point.params["encoder.layers.1.norm2_gamma"] * (np.arange(8) != 3)
    point = replace(point, params=point.params | {"encoder.layers.1.norm2_gamma": gamma})
    results = list(laws_and_structure(evaluation(point, SpecImplementation("vit"))))
    assert not failed(results)
    (into_head,) = [r for r in results if r.check == check_name("normalised rows into the head")]
    assert (into_head.status, into_head.reason[:12]) == ("skipped", "a gamma is 0")


def test_a_cotangent_of_zeros_decides_nothing_and_fails_nothing():
    point = replace(POINTS["vit"], cotangent=np.zeros((2, 4)))
    results = list(laws_and_structure(evaluation(point, SpecImplementation("vit"))))
    assert not failed(results)
    reasons = {
        r.reason.partition(";")[0] for r in results if r.check == check_name("queries and keys")
    }
    assert reasons == {"everything that it sums is zero"}


def test_a_residual_within_a_bound_that_hides_everything_is_undecided():
    size = np.full(3, 1.0)
    within = Comparison(0.1 * size, size, 0.1 * size)
    beyond = Comparison(2 * size, size, 0.1 * size)
    (one,) = judged("x", "a = b", {("t",): within})
    assert (one.status, one.undecided.tensor) == ("undecided", "t")
    (one,) = judged("x", "a = b", {("t",): beyond})
    assert one.status == "failed"


def test_each_tensor_of_an_identity_is_decided_by_itself():
    """A bound of 3.4 times a tensor's size hides any mistake, however well the others are known."""
    size = np.full(3, 1.0)
    sharp, coarse = Comparison(0 * size, size, 1e-9 * size), Comparison(size, size, 3.4 / 8 * size)
    passed, undecided = judged("x", "a = b", {("a",): sharp, ("b",): coarse})
    assert (passed.status, passed.worst.tensor) == ("passed", "a")
    assert (undecided.status, undecided.undecided.tensor) == ("undecided", "b")
    assert undecided.undecided.bound == pytest.approx(3.4)
    wrong = Comparison(size, size, 1e-9 * size)
    assert [r.status for r in judged("x", "", {("a",): wrong, ("b",): coarse})] == [
        "failed", "undecided",
    ]  # fmt: skip
