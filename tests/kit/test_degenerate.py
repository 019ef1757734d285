"""Degenerate points: correct code conforms there, and each kind shows what nothing else does."""

import math
from dataclasses import replace

import numpy as np
import pytest

from vitspec import VisionTransformerConfig
from vitspec.testing import Settings, SpecImplementation, check
from vitspec.testing.adapters import from_torch_function
from vitspec.testing.degenerate import KINDS
from vitspec.testing.families import FAMILIES
from vitspec.testing.implementations import Subject
from vitspec.testing.layouts import OTHER_ORDER, laid_out
from vitspec.testing.run import plan
from vitspec.testing.settings import QUICK
from vitspec.testing.suites import SUITES

torch = pytest.importorskip("torch")
F = torch.nn.functional


# ---- a ViT of PyTorch's functions, one of which a test replaces ----------------------------------


def layer_norm(x, gamma, beta, eps):
    return F.layer_norm(x, x.shape[-1:], gamma, beta, eps)


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x):
    return F.gelu(x, approximate="tanh")


def softmax(scores):
    return torch.softmax(scores, -1)


def attention(q, k, v, weights):
    return weights(q @ k.mT / math.sqrt(q.shape[-1])) @ v


RIGHT = {
    "norm": layer_norm, "last_norm": None, "softmax": softmax, "attention": attention,
    "relu": torch.relu, "gelu": F.gelu, "gelu_tanh": tanh_gelu, "quick_gelu": quick_gelu,
    "images": lambda images: images,
}  # fmt: skip


def vit_of(**replaced):
    """A function (config, parameters, images) -> logits."""
    part = RIGHT | replaced
    last_norm = part["last_norm"] or part["norm"]

    def vit(c, p, images):
        x = part["images"](images)
        rows, columns = c.grid
        x = x[:, :, : rows * c.patch_h, : columns * c.patch_w]
        x = F.conv2d(x, p["patch_embed.kernel"], p["patch_embed.bias"], (c.patch_h, c.patch_w))
        x, cls = x.flatten(2).transpose(1, 2), int(c.cls_token)
        if cls:
            x = torch.cat([p["cls_token"].expand(len(x), 1, -1), x], 1)
        x = x + p["pos_enc.pos"]
        for i in range(c.num_layers):
            own = f"encoder.layers.{i}."
            x = block(c, lambda name, other=None, own=own: p.get(own + name, other), x)
        x = last_norm(x, p["final_norm_gamma"], p["final_norm_beta"], c.layer_norm_eps)
        pooled = [x[:, 0]] if "cls" in c.pool else []
        pooled += [x[:, cls:].mean(1)] if "mean" in c.pool else []
        return torch.cat(pooled, -1) @ p["head.weights"].T + p["head.bias"]

    def block(c, g, x):
        y = part["norm"](x, g("norm1_gamma"), g("norm1_beta"), c.layer_norm_eps)
        heads = [y @ g(f"mha.w{n}") + g(f"mha.b{n}", 0) for n in "qkv"]
        q, k, v = (h.unflatten(-1, (c.head_count, -1)).transpose(1, 2) for h in heads)
        o = part["attention"](q, k, v, part["softmax"]).transpose(1, 2).flatten(2)
        x = x + (o @ g("mha.wo") + g("mha.bo", 0)) * g("layer_scale1", 1)
        y = part["norm"](x, g("norm2_gamma"), g("norm2_beta"), c.layer_norm_eps)
        hidden = part[c.activation](y @ g("ffn.w1") + g("ffn.b1"))
        return x + (hidden @ g("ffn.w2") + g("ffn.b2")) * g("layer_scale2", 1)

    return vit


def implementation(vit):
    return from_torch_function(
        vit, name="mine", version="1", spec="vision-transformer",
        supports=lambda c: (c.violations() or [None])[0],
    )  # fmt: skip


def departing(mine, *kinds, **settings):
    """The places where it does not conform, of these degenerate points and an ordinary case."""
    report = check(mine, Settings(point=kinds, case=0), **settings)
    ran = {str(r.place) for r in report.results if r.status != "skipped"}
    assert ran == {"case 0", *(f"degenerate {kind}" for kind in kinds)}, report
    bad = {r.place for r in report.results if r.status in ("failed", "errored")}
    return {place.index for place in bad}


# ---- mistakes ------------------------------------------------------------------------------------


def norm_by_square_root(x, gamma, beta, eps):
    """Its derivative where the variance is 0 is 0 * infinity."""
    centred = x - x.mean(-1, keepdim=True)
    deviation = centred.square().mean(-1, keepdim=True).sqrt()
    return centred / (deviation**2 + eps).sqrt() * gamma + beta


def softmax_without_maximum(scores):
    powers = scores.exp()
    return powers / powers.sum(-1, keepdim=True)


def softmax_by_one_maximum(scores):
    """The largest score of all queries: those far below it have only zeros left."""
    powers = (scores - scores.amax((-1, -2), keepdim=True).detach()).exp()
    return powers / powers.sum(-1, keepdim=True)


def attention_if_any(q, k, v, weights):
    """Without a query (all zero) nothing is attended to, it thinks."""
    return attention(q, k, v, weights) * (q != 0).any() * (k != 0).any()


def blank_to_zero(images):
    """Takes images of one colour for padding."""
    blank = images.amax((1, 2, 3), keepdim=True) == images.amin((1, 2, 3), keepdim=True)
    return torch.where(blank & (images != 0), 0.0, images)


def skipped_if_zero(images):
    return images if images.any() else images + 1


def tanh_by_exponentials(x):
    z = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + ((2 * z).exp() - 1) / ((2 * z).exp() + 1))


def sigmoid_by_exponential(x):
    return x * (1.702 * x).exp() / (1 + (1.702 * x).exp())


def clipped_gelu(x):
    """Nothing is ever over 8, it thinks."""
    return F.gelu(x.clamp(max=8))


MISTAKES = {
    "norm by a square root": ({"norm": norm_by_square_root}, {"constant-rows", "zero-branches"}),
    "last norm by a square root": ({"last_norm": norm_by_square_root}, {"zero-branches"}),
    "softmax without maximum": ({"softmax": softmax_without_maximum}, {"extreme-scores"}),
    "softmax by one maximum": ({"softmax": softmax_by_one_maximum}, {"extreme-scores"}),
    "attention if any": ({"attention": attention_if_any}, {"equal-scores"}),
    "blank images to zero": ({"images": blank_to_zero}, {"blank-images"}),
    "zero images skipped": ({"images": skipped_if_zero}, {"zero-images"}),
    "ReLU6": ({"relu": F.relu6}, {"large-relu"}),
    "clipped GELU": ({"gelu": clipped_gelu}, {"large-gelu"}),
    "tanh by exponentials": ({"gelu_tanh": tanh_by_exponentials}, {"large-gelu-tanh"}),
    "sigmoid by an exponential": ({"quick_gelu": sigmoid_by_exponential}, {"large-quick-gelu"}),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_shows_at_its_points_and_nowhere_else(name):
    """Nothing but these points shows any: that was tried with all kinds and the usual cases."""
    replaced, kinds = MISTAKES[name]
    mine = implementation(vit_of(**replaced))
    assert departing(mine, *kinds, "small-gradients") == kinds


class Filtered:
    """Gradients under 1e-6 are set to zero, as if they were rounding."""

    name, version, spec, dtype = "filtered", "1", "vision-transformer", "float64"
    forward = staticmethod(SpecImplementation(spec).forward)

    def vjp(self, *arguments):
        grads, d_images = SpecImplementation(self.spec).vjp(*arguments)
        return {n: np.where(np.abs(g) < 1e-6, 0, g) for n, g in grads.items()}, d_images


def test_gradients_that_are_taken_for_rounding():
    report = check(Filtered(), Settings(point=("small-gradients", "zero-images")))
    failed = {r.place.index for r in report.results if r.status == "failed"}
    assert failed == {"small-gradients"}, report


class ReadsMemory:
    """Reads arrays as they lie in memory, as C code does that does not look at strides."""

    name, version, spec, dtype = "memory", "1", "vit-cls", "float32"

    def forward(self, config, params, images):
        memory = {n: np.ravel(p, order="K").reshape(p.shape) for n, p in params.items()}
        return SpecImplementation(self.spec).forward(config, memory, images)["logits"]


def test_strides_that_are_not_read():
    report = check(ReadsMemory(), Settings(point=("other-order", "zero-images"), only="*.forward"))
    failed = {r.place.index for r in report.results if r.status == "failed"}
    assert failed == {"other-order"}, report


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4, 5), (0, 3), ()])
def test_another_order_has_the_same_numbers_and_nothing_that_pytorch_refuses(shape):
    given = np.random.default_rng(0).standard_normal(shape)
    found = laid_out(np.asarray(given), OTHER_ORDER)
    assert np.array_equal(found, given)
    assert all(stride >= 0 for stride in found.strides)
    assert found.size <= 1 or not found.flags.c_contiguous
    assert found.ndim == 0 or not found.flags.writeable


# ---- correct code --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pytorchs_own_functions_conform(dtype):
    report = check(implementation(vit_of()), Settings(point=tuple(KINDS)), dtype=dtype, seed=1)
    assert report.conforms, report
    assert {r.place.index for r in report.results if r.status == "passed"} == {*KINDS}


def test_the_lean_models_have_every_kind_but_other_activations():
    nothing_else = Settings().nothing_but(degenerate=True)
    report = check(SpecImplementation("vit-cls"), nothing_else, only="degenerate.forward")
    others = {"large-gelu", "large-gelu-tanh", "large-quick-gelu"}
    assert {r.place.index for r in report.results} == KINDS.keys() - others
    assert report.conforms, report


# ---- the points are what they say ----------------------------------------------------------------


def trace_of(spec, kind):
    """The point of a kind, as the suite makes it, and what its first layer computes there."""
    subject, settings = Subject(SpecImplementation(spec), "float32"), Settings(seed=3)
    point = SUITES["degenerate"].trial(subject, settings, kind).point
    family, model = FAMILIES[spec], point.model(point.params)
    tokens = family.embed(model, point.images[0])
    return point, family.layer_trace(model.encoder.layers[0], tokens)


@pytest.mark.parametrize("spec", FAMILIES)
def test_scores_are_beyond_the_exponential_for_whole_rows(spec):
    point, trace = trace_of(spec, "extreme-scores")
    scores = trace.mha.q @ trace.mha.k.swapaxes(-1, -2) / math.sqrt(point.config.head_dim)
    assert (scores.min(-1).max(-1) > 88.8).all()
    assert (scores.max(-1).min(-1) < -104).all()


@pytest.mark.parametrize("spec", FAMILIES)
def test_a_row_is_zero_where_the_normalisations_read(spec):
    _, trace = trace_of(spec, "zero-branches")
    lean = spec != "vision-transformer"
    rows = [trace.residual1, trace.residual2] if lean else [trace.input, trace.residual]
    assert all((row[0] == 0).all() for row in rows)


def test_a_kind_that_cannot_be_says_why():
    (result,) = check(SpecImplementation("vit"), Settings(point="large-gelu")).results
    assert (result.status, "its activation is 'relu'" in result.reason) == ("skipped", True)
    (result,) = check(SpecImplementation("vit"), Settings(point="nonsense")).results
    assert (result.status, "no such kind" in result.reason) == ("skipped", True)


def test_a_configuration_of_the_users_own():
    config = VisionTransformerConfig(
        image_h=4, image_w=6, patch_h=2, patch_w=2, embed_dim=8, hidden_dim=5, head_count=2,
        num_layers=1, num_classes=3,
    )  # fmt: skip
    settings = Settings(point=("constant-rows", "large-relu"), config=config)
    report = check(SpecImplementation("vision-transformer"), settings)
    status = {r.place.index: r.status for r in report.results}
    assert status == {"constant-rows": "passed", "large-relu": "skipped"}
    assert repr(config) in report.results[0].point


# ---- positions: grids of every orientation -------------------------------------------------------


class SquareRoot(SpecImplementation):
    """Takes every grid of positions, or one of an orientation, for a square of as many."""

    def __init__(self, orientation):
        super().__init__("vision-transformer")
        self.orientation = orientation

    def as_it_thinks(self, config):
        rows, columns = config.grid
        side = math.isqrt(rows * columns)
        if (rows > columns) == (self.orientation == "tall") and rows != columns:
            return replace(config, image_h=side * config.patch_h, image_w=side * config.patch_w)
        return config

    def forward(self, config, *arguments):
        return super().forward(self.as_it_thinks(config), *arguments)

    def vjp(self, config, *arguments):
        return super().vjp(self.as_it_thinks(config), *arguments)


@pytest.mark.parametrize(("orientation", "failing"), [("tall", {0}), ("wide", {1})])
def test_a_grid_that_is_taken_for_a_square(orientation, failing):
    settings = Settings(interpolation=(0, 1, 2), only="*.forward")
    results = check(SquareRoot(orientation), settings).results
    assert {r.place.index for r in results if r.status == "failed"} == failing, results
    assert len(results) == 3


@pytest.mark.parametrize("settings", [QUICK, Settings()])
def test_every_check_has_each_kind_of_point_and_each_orientation(settings):
    places = plan(settings)
    assert {p.index for p in places if p.suite == "degenerate"} == {*KINDS}
    assert {p.index for p in places if p.suite == "interpolation"} >= {0, 1, 2}
