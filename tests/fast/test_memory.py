"""The memory table counts what real arrays would take, without making any."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from support.meshes import CONFIG, LAYOUTS
from vitfast import sharding
from vitfast.cli import app
from vitfast.implementation import quick_options
from vitfast.memory import OPTIMIZERS, SIZES, Training, measure
from vitspec import ViTConfig
from vitspec.shapes import parameter_count

SMALL = Training(CONFIG, height=7, width=6)

LARGE = Training(SIZES["large"])


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("FSDP 2x4", ("float32", None)),
        ("tensor parallel 2x4", ("float32", "bfloat16")),
        ("both 2x2x2", ("bfloat16", None)),
    ],
)
def test_the_bytes_are_those_of_real_shards(name, types):
    """On every device: parameters that are there, gradients that were computed."""
    layout, (param_dtype, dtype) = LAYOUTS[name], types
    training = replace(SMALL, param_dtype=param_dtype, dtype=dtype)
    found = measure(training, layout.axes).per_device
    with layout.set():
        shapes = jax.eval_shape(lambda: training.model(layout.sharding))
        model = jax.tree.map(lambda leaf: jnp.ones_like(leaf, device=leaf.sharding), shapes)
        images = sharding.shard_images(np.ones((24, 7, 6, 3), np.float32), layout.sharding)
        images = images.astype(dtype or param_dtype)
        gradients = jax.jit(
            jax.grad(lambda model, images: model(images).sum()), compiler_options=quick_options()
        )(model, images)
        state = OPTIMIZERS["adamw"](1e-3).init(model)
    assert held(model) == {found.parameters}
    assert held(gradients) == {found.gradients}
    assert held(state) == {found.optimizer_state}


def held(tree):
    """The bytes that each device holds, as a set: one number if they hold equally much."""
    leaves = jax.tree.leaves(tree)
    return {sum(leaf.addressable_shards[i].data.nbytes for leaf in leaves) for i in range(8)}


def test_a_parameter_that_is_nowhere_cut_is_counted_whole(monkeypatch):
    """What counts is where arrays come to lie, not where they were meant to."""
    right = measure(SMALL, {"fsdp": 8}).per_device
    monkeypatch.setitem(sharding.PARAMETER_AXES, "mha.wo", ((), ()))
    wrong = measure(SMALL, {"fsdp": 8}).per_device
    more = CONFIG.num_layers * CONFIG.inner_dim * CONFIG.embed_dim * 4 * 7 // 8
    assert wrong.parameters - right.parameters == more
    assert wrong.gradients - right.gradients == more
    assert wrong.optimizer_state - right.optimizer_state == 2 * more


@pytest.mark.parametrize("size", ["large", "1b"])
def test_large_models_are_measured_without_allocating(size):
    """Nearly 12 GB of ViT-g in these; on a mesh of more devices than there are."""
    before = len(jax.live_arrays())
    memory = measure(Training(SIZES[size]), {"data": 4, "fsdp": 32, "model": 2})
    assert len(jax.live_arrays()) == before
    count = parameter_count(SIZES[size], "vit-cls", 3, 224, 224)
    assert memory.devices == 256
    assert memory.parameter_count == count
    whole, part = memory.unsharded, memory.per_device
    assert (whole.parameters, whole.gradients) == (4 * count, 4 * count)
    assert whole.optimizer_state == 2 * 4 * count + 4
    assert part.gradients == part.parameters
    assert whole.total / 64 < part.total < whole.total / 32


def test_the_largest_model_has_a_billion_parameters():
    assert 1.00e9 < parameter_count(SIZES["1b"], "vit-cls", 3, 224, 224) < 1.02e9


@pytest.mark.parametrize(("optimizer", "moments"), [("sgd", 0), ("momentum", 1), ("lion", 1)])
def test_the_optimiser_decides_how_much_state_there_is(optimizer, moments):
    whole = measure(replace(SMALL, optimizer=optimizer), {}).unsharded
    assert whole.optimizer_state // whole.parameters == moments


def test_activations_are_divided_with_the_batch_and_fewer_with_remat():
    keep, remat = (
        measure(replace(SMALL, batch=64, remat=remat), {"fsdp": 8}) for remat in (False, True)
    )
    assert keep.unsharded.activations > 2 * remat.unsharded.activations > 0
    parts = keep.per_device.activations / keep.unsharded.activations
    assert 1 / 8 <= parts < 1 / 7  # the scales of the normalisations are kept whole
    assert measure(SMALL, {"fsdp": 8}).per_device.activations is None


# ---- the command ---------------------------------------------------------------------------------

SMALL_SIZE = "embed_dim=64,hidden_dim=56,head_count=16,num_layers=2"


def invoke(*words):
    """The command's result."""
    return CliRunner().invoke(app, ["memory", *words])


def test_the_command_writes_what_it_prints(tmp_path):
    table, figures = tmp_path / "table.md", tmp_path / "table.json"
    files = ["--markdown", str(table), "--json", str(figures), "--batch", "8"]
    done = invoke("--size", SMALL_SIZE, "--mesh", "fsdp=8", "--mesh", "data=2", *files)
    assert done.exit_code == 0, done.output
    (model,) = json.loads(figures.read_text())["models"]
    meshes = [one["mesh"] for one in model["meshes"]]
    assert meshes == [{"data": 1, "fsdp": 8, "model": 1}, {"data": 2, "fsdp": 1, "model": 1}]
    training = Training(**{**model["training"], "config": ViTConfig(**model["training"]["config"])})
    expected = measure(training, {"fsdp": 8})
    assert model["meshes"][0]["per_device"]["parameters"] == expected.per_device.parameters
    shown = f"{expected.per_device.parameters / 1024:.1f} KiB"
    assert shown in done.output
    assert table.read_text().splitlines()[5].startswith(f"| fsdp=8 | {shown} | {shown} |")
    assert max(map(len, done.output.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--mesh", "fsdp=0"], "--mesh fsdp=0: got 'fsdp=0'; expected AXIS=SIZE"),
        (["--mesh", "rows=2"], "got 'rows=2'"),
        (["--mesh", "fsdp=2,fsdp=4"], "got 'fsdp=4'"),
        (["--mesh", "fsdp=7"], "dimension 1 of 1024 does not divide over 7 devices"),
        (["--size", "huge"], "--size huge: "),
        (["--optimizer", "adam"], "--optimizer adam: expected one of adamw, "),
        (["--dtype", "float8"], "--dtype float8: expected one of bfloat16, "),
        (["--json", "/nowhere/x.json"], "--json /nowhere/x.json: its directory does not exist"),
    ],
)
def test_wrong_usage_is_one_line(words, says):
    done = invoke("--size", "large", *words)
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())
