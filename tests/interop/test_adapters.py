"""Implementations made of PyTorch modules and functions, and PyTorch's own modules as both models.

The fused kernel of `TransformerEncoder` (evaluation mode, no gradients) and the layers that
autograd differentiates are two programs: each is compared with the specification.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from support.adapters import EDGES, UNEVEN_HEADS, assert_agrees, evaluate, point_of, small_case
from support.compare import relative_error
from vitspec import InvalidParameters, NotWellFormed
from vitspec.testing import check
from vitspec.testing.adapters import NAME_MAPS, Rule, from_torch, from_torch_function, peers
from vitspec.testing.adapters.maps import LAYER, TORCH_ENCODER
from vitspec.testing.adapters.peers.torch_modules import torch_encoder_vit
from vitspec.testing.adapters.pytorch import tf32

torch = pytest.importorskip("torch")

IDENTITY = {"name": "mine", "version": "1", "spec": "vit"}
PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"


def encoder(*args):
    return torch_encoder_vit(*args, cls=False)


def peer(spec, training=False):
    return getattr(peers, f"torch_{spec.replace('-', '_')}" + "_training" * training)


# ---- peers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("case", EDGES.values(), ids=EDGES.keys())
def test_pytorch_agrees_in_logits_and_every_gradient(case, training):
    implementation = peer(case.spec, training)
    assert implementation.supports(case.config) is None
    _, taps = assert_agrees(implementation, case)
    assert len(taps) == (case.config.num_layers if training else 0)


@pytest.mark.parametrize("spec", ["vit", "vit-cls"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_pytorch_conforms_as_tested(spec, training, dtype):
    report = check(peer(spec, training), cases=6, laws=1, dtype=dtype)
    assert report.conforms, report


@pytest.mark.parametrize("case", UNEVEN_HEADS.values(), ids=UNEVEN_HEADS.keys())
def test_pytorch_says_that_heads_must_divide_the_width(case):
    assert "do not divide embed_dim" in peer(case.spec).supports(case.config)
    with pytest.raises(AssertionError, match="embed_dim must be divisible by num_heads"):
        assert_agrees(peer(case.spec), case)


def test_pytorch_refuses_an_ill_formed_configuration():
    point = point_of(small_case(), "float32")
    config = type(point.config)(**{**vars(point.config), "hidden_dim": 0})
    with pytest.raises(NotWellFormed, match="hiddenDim_pos"):
        peers.torch_vit.forward(config, point.params, point.images)


def test_evaluation_runs_the_fused_kernel_and_training_does_not(monkeypatch):
    calls = []
    fused = torch._transformer_encoder_layer_fwd

    def spy(*args):
        calls.append(args)
        return fused(*args)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", spy)
    case = small_case(embed_dim=12, head_count=2)  # an odd number of heads is never fused
    assert_agrees(from_torch(encoder, TORCH_ENCODER, **IDENTITY), case)
    assert len(calls) == case.config.num_layers
    assert_agrees(from_torch(encoder, TORCH_ENCODER, training=True, **IDENTITY), case)
    assert len(calls) == case.config.num_layers


@pytest.mark.parametrize(("old", "new"), [("wq", "wk"), ("wk", "wv")])
def test_a_wrong_order_of_q_k_v_departs(old, new):
    exchange = {old: new, new: old}
    names = tuple(LAYER + "mha." + exchange.get(w, w) for w in ("wq", "wk", "wv"))
    rule = Rule(LAYER + "self_attn.in_proj_weight", names, "qkv-out-in")
    implementation = from_torch(encoder, TORCH_ENCODER.replacing(rule), **IDENTITY)
    with pytest.raises(AssertionError, match="relative error"):
        assert_agrees(implementation, small_case())


# ---- precisions and devices ----------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "u"), [("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
def test_short_precisions_compute_in_themselves_and_come_back_in_float32(precision, u):
    point = point_of(small_case(num_layers=1), precision)
    short = from_torch(encoder, TORCH_ENCODER, dtype=precision, **IDENTITY)
    found, _ = evaluate(short, point)
    expected, _ = evaluate(peers.torch_vit, point)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    assert u / 100 < relative_error(found["logits"], expected["logits"]) < 100 * u
    for array in found.values():
        as_it_is = torch.tensor(array).to(getattr(torch, precision)).float().numpy()
        np.testing.assert_array_equal(array, as_it_is)


def test_one_object_computes_in_both_of_its_precisions():
    assert_agrees(peers.torch_vit, small_case(num_layers=1))
    assert_agrees(peers.torch_vit, small_case(num_layers=1), "float32", 3e-6)


def test_tf32_needs_a_gpu():
    with pytest.raises(ValueError, match="tf32 is computed on GPUs only, and the device is 'cpu'"):
        from_torch(encoder, TORCH_ENCODER, dtype="tf32", **IDENTITY)


@pytest.mark.parametrize("allowed", [False, True])
def test_the_permission_of_tf32_is_given_for_a_while(allowed):
    def settings():
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        return [part.fp32_precision for part in (matmul, cudnn.conv, cudnn.rnn)]

    before = settings()
    with tf32(torch, allowed):
        assert settings() == ["tf32" if allowed else "ieee"] * 3
    assert settings() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float64", "float32", "tf32"])
def test_a_gpu_agrees_to_its_precision(precision):
    implementation = from_torch(
        encoder, TORCH_ENCODER, dtype=precision, device="cuda", training=True, **IDENTITY
    )
    tolerance = {"float64": 1e-11, "float32": 3e-6, "tf32": 2e-2}[precision]
    assert_agrees(implementation, small_case(), precision, tolerance)


# ---- modules -------------------------------------------------------------------------------------


class Tail(torch.nn.Module):
    """Mean pooling and classifier of patches, with whatever a test wants in between."""

    def __init__(self, config, in_channels, height, width, between=lambda x: x):
        super().__init__()
        patch = (config.patch_h, config.patch_w)
        self.patch_embed = torch.nn.Conv2d(
            in_channels, config.embed_dim, patch, config.stride, config.padding
        )
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, 16, config.embed_dim))
        self.head = torch.nn.Linear(config.embed_dim, config.num_classes)
        self.register_buffer("steps", torch.zeros(3))
        self.between = between

    def forward(self, images):
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.pos_embed
        return self.head(self.between(x).mean(dim=1))


FLAT = small_case(num_layers=0)


def test_a_module_is_built_once_and_buffers_are_left_alone():
    built = []

    def build(*args):
        built.append(args)
        return Tail(*args)

    implementation = from_torch(build, TORCH_ENCODER, **IDENTITY)
    assert_agrees(implementation, FLAT)
    assert built == [(FLAT.config, 3, 7, 6)]
    assert_agrees(implementation, FLAT, "float32", 3e-6)
    assert len(built) == 2


def test_dropout_acts_in_training_mode_only():
    def build(*args):
        return Tail(*args, between=torch.nn.Dropout(0.5))

    assert_agrees(from_torch(build, TORCH_ENCODER, **IDENTITY), FLAT)
    with pytest.raises(AssertionError, match="relative error"):
        assert_agrees(from_torch(build, TORCH_ENCODER, training=True, **IDENTITY), FLAT)


def test_where_nothing_depends_on_a_parameter_its_gradient_is_zero():
    implementation = from_torch(
        lambda *args: Tail(*args, between=torch.detach), TORCH_ENCODER, **IDENTITY
    )
    found, _ = evaluate(implementation, point_of(FLAT))
    for name in ("image", "patch_embed.kernel", "pos_enc.pos"):
        assert not found[name].any()
    assert found["head.weights"].all()
    with pytest.raises(AssertionError, match="relative error"):
        assert_agrees(implementation, FLAT)


def test_where_nothing_is_recorded_every_gradient_is_zero():
    class Frozen(Tail):
        def forward(self, images):
            return super().forward(images).detach()

    found, _ = evaluate(from_torch(Frozen, TORCH_ENCODER, **IDENTITY), point_of(FLAT))
    assert found.pop("logits").all()
    assert not any(array.any() for array in found.values())


def test_a_module_may_return_its_own_taps_beside_those_of_its_submodules():
    class Tapped(Tail):
        def forward(self, images):
            pooled = super().forward(images)
            return {"logits": pooled, "pooled": 2 * pooled}

    taps = {"embedded": "patch_embed"}
    implementation = from_torch(Tapped, TORCH_ENCODER, taps=taps, **IDENTITY)
    found, taps = evaluate(implementation, point_of(FLAT))
    assert taps.keys() == {"embedded", "pooled"}
    assert taps["embedded"].shape == (2, 12, 4, 4)
    np.testing.assert_array_equal(taps["pooled"], 2 * found["logits"])


def test_names_that_a_module_has_and_the_map_has_not_are_all_listed():
    wrong = TORCH_ENCODER.replacing(Rule("head.weights", "head.weights"))
    point = point_of(small_case(num_layers=1), "float32")
    with pytest.raises(InvalidParameters) as caught:
        from_torch(encoder, wrong, **IDENTITY).forward(point.config, point.params, point.images)
    assert caught.value.problems == (
        "head.weight: unexpected name, of shape (5, 12)",
        "head.weights: missing, expected shape (5, 12)",
    )
    assert "the module of mine (name map 'torch.nn.TransformerEncoder')" in str(caught.value)


# ---- functions -----------------------------------------------------------------------------------


def flat_model(config, params, images):
    kernel, bias = params["patch_embed.kernel"], params["patch_embed.bias"]
    grid = torch.nn.functional.conv2d(images, kernel, bias, config.stride, config.padding)
    x = grid.flatten(2).transpose(1, 2) + params["pos_enc.pos"]
    return x.mean(dim=1) @ params["head.weights"].T + params["head.bias"]


def test_a_function_of_tensors_agrees_under_our_names_and_under_its_own():
    assert_agrees(from_torch_function(flat_model, **IDENTITY), FLAT)
    seen = []

    def theirs(config, params, images):
        seen.append(set(params))
        ours = {
            "patch_embed.kernel": params["patch_embed.weight"],
            "pos_enc.pos": params["pos_embed"][0],
            "head.weights": params["head.weight"],
        }
        return flat_model(config, params | ours, images)

    assert_agrees(from_torch_function(theirs, NAME_MAPS["torch"], **IDENTITY), FLAT)
    assert seen[0] == {
        "patch_embed.weight", "patch_embed.bias", "pos_embed", "head.weight", "head.bias",
    }  # fmt: skip


def test_autocast_is_the_functions_own_affair():
    """Mixed precision: float32 in and out, products in bfloat16 between."""

    def mixed(config, params, images):
        with torch.autocast("cpu", torch.bfloat16):
            return flat_model(config, params, images).float()

    point = point_of(FLAT, "float32")
    found, _ = evaluate(from_torch_function(mixed, **IDENTITY), point)
    expected, _ = evaluate(from_torch_function(flat_model, **IDENTITY), point)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    assert 1e-4 < relative_error(found["logits"], expected["logits"]) < 1e-1


# ---- the page ------------------------------------------------------------------------------------


def test_the_pages_pytorch_runs_as_it_stands(capsys):
    """Its fenced blocks without prompts, one after the other, in one namespace."""
    blocks = re.findall(r"```python\n((?!>>>).*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    namespace = {"__name__": "my_adapter"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert capsys.readouterr().out == "conforms, as tested\n"
    assert_agrees(namespace["my_vit"], small_case())
    assert_agrees(namespace["linear"], FLAT)
    assert namespace["linear"].supports(FLAT.config) is None
    assert namespace["linear"].supports(small_case().config) == "it has no layers"
