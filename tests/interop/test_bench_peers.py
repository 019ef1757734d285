"""`vitfast bench`: the peers in PyTorch compute the functions that vitfast computes."""

import functools
from importlib import import_module

import jax
import numpy as np
import pytest

from support.compare import assert_close, assert_flat_close, relative_error
from vitfast.bench.cases import FAMILIES, FORWARD, GRADIENT, TRAIN_STEP, Case
from vitfast.bench.rows import ROWS, choose

torch = pytest.importorskip("torch")

PEERS = [
    pytest.param(family, row, id=f"{family}-{row.name}")
    for family in FAMILIES
    for row in choose(family, (FORWARD,), "gpu")
    if "torch" in row.packages and not row.options  # torch.compile wants a C++ compiler here
]


def toy(family, **fields):
    return Case(family, "toy", 2, **{"dtype": "float64"} | fields)


def model(row, case):
    if row.missing():
        pytest.skip(f"{row.name}: {', '.join(row.missing())} is not installed")
    module, function = row.build.split(":")
    return getattr(import_module(module), function)(case, "cpu", **row.options)


@functools.cache
def of_vitfast(family):
    row = next(row for row in ROWS if row.name == "vitfast-loop")
    with jax.enable_x64(True):
        return model(row, toy(family)).results()


@pytest.mark.parametrize(("family", "row"), PEERS)
def test_logits_and_all_gradients_agree_with_vitfast(family, row):
    ours, theirs = dict(of_vitfast(family)), model(row, toy(family)).results()
    assert {"logits", "loss", "images", *toy(family).shapes()} == theirs.keys()
    assert theirs["logits"].dtype == np.float64
    # The gradient of a key's bias is 0, for softmax does not see it; what is found is rounding.
    for name in [name for name in ours if name.endswith("mha.bk")]:
        scale = np.abs(theirs[name.replace("bk", "bq")]).max()
        assert max(np.abs(each.pop(name)).max() for each in (ours, theirs)) < 1e-11 * scale
    assert_flat_close(ours, theirs, 1e-11)


def test_which_peers_these_are():
    assert {(p.values[0], p.values[1].name) for p in PEERS} == {
        ("post-norm", "torch-sdpa"), ("post-norm", "torch-encoder"),
        ("pre-norm", "torch-sdpa"), ("pre-norm", "transformers"), ("pre-norm", "timm"),
    }  # fmt: skip


def test_peers_do_not_share_a_mistake_with_the_weights():
    """One entry of one parameter more, and every gradient is another: the comparison sees it."""
    row = next(row for row in ROWS if row.name == "torch-sdpa")
    theirs = model(row, toy("pre-norm"))
    before = theirs.results()
    with torch.no_grad():
        dict(theirs._module.named_parameters())["layers.0.qkv.weight"][0, 0] += 1e-6
    after = theirs.results()
    for name in before:
        if not name.endswith("mha.bk"):
            assert relative_error(after[name], before[name]) > 1e-11, name


def test_a_training_step_has_the_loss_of_the_model_and_lowers_it():
    row = next(row for row in ROWS if row.name == "torch-sdpa")
    training = model(row, toy("post-norm", dtype="bfloat16", passes=(TRAIN_STEP,)))
    losses = [float(training.results()["loss"]) for _ in range(4)]
    assert_close(losses[0], float(of_vitfast("post-norm")["loss"]), 2**-6)
    assert losses == sorted(losses, reverse=True)
    assert {p.dtype for p in training._params} == {torch.float32}


def test_the_ceiling_runs_the_products_of_each_pass():
    products = import_module("vitfast.bench.peers.torch_products")
    case, multiplied = toy("pre-norm", dtype="float32"), []
    ceiling = products.ceiling(case, "cpu", side=64)
    real = torch.matmul

    def matmul(a, b, out):
        multiplied.append((tuple(a.shape), tuple(b.shape)))
        return real(a, b, out=out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "matmul", matmul)
        ceiling.passes[GRADIENT]()
    assert multiplied == case.products(GRADIENT)
