"""`from_pretrained`, `save_pretrained`, and the commands on checkpoints."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from typer.testing import CliRunner

from vitfast import VisionTransformer, ViTSharding, make_mesh, to_flat
from vitfast.checkpoints import CheckpointError, load_checkpoint
from vitfast.cli import app
from vitspec import VisionTransformerConfig
from vitspec.models.vision_transformer_parameters import random_parameters

CONFIG = VisionTransformerConfig(
    image_h=16, image_w=16, patch_h=8, patch_w=8, embed_dim=16, hidden_dim=24, head_count=2,
    num_layers=2, num_classes=3,
)  # fmt: skip
LABELS = ["cat", "dog", "teapot"]


def parameters(config=CONFIG, seed=0):
    return random_parameters(config, np.random.default_rng(seed), np.dtype(np.float32))


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        assert ours[name].dtype == leaf.dtype, name
        np.testing.assert_array_equal(ours[name], leaf, err_msg=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from vitfast import from_flat

    target = tmp_path_factory.mktemp("checkpoint")
    from_flat(CONFIG, parameters()).save_pretrained(target, labels=LABELS)
    return target


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    levels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(levels).save(path)
    return path


# ---- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scan_layers", [True, False])
def test_what_is_saved_is_what_is_loaded_to_the_bit(folder, scan_layers):
    model = VisionTransformer.from_pretrained(folder, scan_layers=scan_layers)
    assert model.config == CONFIG
    assert_same(to_flat(model), parameters())


def test_parameters_are_rounded_to_the_type_that_is_asked_for(folder):
    model = VisionTransformer.from_pretrained(folder, param_dtype="bfloat16", dtype="float32")
    rounded = {name: jnp.asarray(leaf, jnp.bfloat16) for name, leaf in parameters().items()}
    assert model.dtype == np.float32
    assert_same(to_flat(model), {name: np.asarray(leaf) for name, leaf in rounded.items()})


def test_on_a_mesh_each_device_holds_its_part(folder):
    with jax.set_mesh(make_mesh(fsdp=8)):
        model = VisionTransformer.from_pretrained(folder, sharding=ViTSharding())
        assert {
            shard.data.shape for shard in model.encoder.layers.mha.wq[...].addressable_shards
        } == {(2, 2, 16)}
        assert_same(to_flat(model), parameters())


def test_a_new_head_is_drawn_and_the_rest_is_the_checkpoint_s(folder):
    wanted = replace(CONFIG, num_classes=5, pooler_dim=16)
    with pytest.raises(ValueError, match="no head and no pooler of the size"):
        VisionTransformer.from_pretrained(folder, config=wanted)
    model = VisionTransformer.from_pretrained(folder, config=wanted, rngs=nnx.Rngs(0))
    flat, stored = to_flat(model), parameters()
    assert flat["head.weights"].shape == (5, 16)
    assert np.std(flat["pooler.weights"]) > 0
    old = [name for name in stored if not name.startswith("head")]
    assert_same({name: flat[name] for name in old}, {name: stored[name] for name in old})


def test_a_head_that_is_not_wanted_is_left_out(folder):
    model = VisionTransformer.from_pretrained(folder, config=replace(CONFIG, num_classes=0))
    assert model.head is None


def test_nothing_is_loaded_of_a_damaged_file(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        VisionTransformer.from_pretrained(tmp_path)


# ---- commands ------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_classify_names_the_most_probable_classes(folder, picture, tmp_path):
    report = tmp_path / "found.json"
    result = run("classify", picture, picture, "--model", folder, "--top", 2, "--json", report)
    assert result.exit_code == 0, result.output
    found = json.loads(report.read_text())["results"]
    model = VisionTransformer.from_pretrained(folder)
    from vitfast.images import ImageProcessor

    pixels = ImageProcessor(size=(16, 16))(picture)
    expected = np.asarray(jax.nn.softmax(model(pixels).logits[0]))
    order = [int(k) for k in np.argsort(expected)[::-1][:2]]
    for one in found:
        assert [c["class"] for c in one["classes"]] == order
        assert [c["label"] for c in one["classes"]] == [LABELS[k] for k in order]
        assert np.allclose([c["probability"] for c in one["classes"]], expected[order], rtol=1e-5)
    assert LABELS[order[0]] in result.output


def test_inspect_says_what_a_checkpoint_is(folder, tmp_path):
    report = tmp_path / "about.json"
    result = run("inspect", folder, "--json", report)
    assert result.exit_code == 0, result.output
    about = json.loads(report.read_text())
    assert about["architecture"] == "ViTForImageClassification"
    assert about["labels"] == LABELS
    assert about["parameters"] == sum(leaf.size for leaf in parameters().values())
    assert about["parameters"] == sum(about["parameters_by_part"].values())
    assert about["config"]["embed_dim"] == 16


@pytest.mark.parametrize("layer", [(), ("--layer", "0")])
def test_attention_draws_what_the_model_sees_large_enough_to_be_seen(
    folder, picture, tmp_path, layer
):
    out = tmp_path / "map.png"
    result = run("attention", picture, "--model", folder, "--out", out, *layer)
    assert result.exit_code == 0, result.output
    with Image.open(out) as drawn:
        assert drawn.size == (224, 224)  # enlarged from (16, 16)


def test_convert_rounds_and_cuts(folder, tmp_path):
    target = tmp_path / "copy"
    result = run("convert", folder, target, "--dtype", "float16", "--max-shard-size", 4000)
    assert result.exit_code == 0, result.output
    copy = load_checkpoint(target)
    assert copy.labels.names == tuple(LABELS)
    assert len([*target.glob("model-*.safetensors")]) > 1
    expected = {name: leaf.astype(np.float16) for name, leaf in parameters().items()}
    assert_same(dict(copy.flat), expected)


def test_mistakes_are_one_line_and_an_exit_code(folder, picture, tmp_path):
    bare = tmp_path / "bare"
    VisionTransformer(replace(CONFIG, num_classes=0), rngs=nnx.Rngs(0)).save_pretrained(bare)
    look = ("attention", picture, "--model", folder, "--out")
    cases = [
        (("classify", picture, "--model", bare), 2, "has no classifier"),
        (("classify", tmp_path / "none.png", "--model", folder), 3, "none.png"),
        (("inspect", tmp_path / "none"), 3, "none"),
        ((*look, tmp_path / "a" / "b.png"), 2, "--out"),
        ((*look, bare / "x.png", "--layer", 2), 2, "-2 to 1"),
        (("convert", folder, folder), 2, "write it elsewhere"),
        (("convert", folder, tmp_path / "c", "--dtype", "int8"), 2, "--dtype int8"),
    ]  # fmt: skip
    for words, code, says in cases:
        result = run(*words)
        assert result.exit_code == code, (words, result.output)
        assert says in result.output
        assert "Traceback" not in result.output
