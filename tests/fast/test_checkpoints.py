"""Checkpoints: every bit survives, under the names that transformers has, or a refusal says why.

PyTorch and transformers have their say in tests/interop/test_hugging_face_checkpoints.py.
"""

import pickle
import tracemalloc
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from support.checkpoints import (
    CONFIG,
    CONFIGS,
    DTYPES,
    INDEX,
    WEIGHTS,
    assert_same_bits,
    edit_json,
    parameters,
    refusal,
    saved_classifier,
    snapshot,
    split_safetensors,
    write_tensors,
)
from vitfast.checkpoints import (
    ARCHITECTURES,
    InvalidTensors,
    load_checkpoint,
    save_checkpoint,
)
from vitfast.checkpoints.names import Layout
from vitspec.errors import InvalidParameters, NotWellFormed
from vitspec.models.vision_transformer import VisionTransformer
from vitspec.models.vision_transformer_parameters import parameter_shapes

EVERY = pytest.mark.parametrize("kind", CONFIGS)


@pytest.fixture
def classifier(tmp_path):
    """A folder with a small classification model, and its parameters."""
    return saved_classifier(tmp_path / "model")


# ---- names ---------------------------------------------------------------------------------------

BODY_ON_DISK = {
    "patch_embed.kernel": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.bias": "embeddings.patch_embeddings.projection.bias",
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_enc.pos": "embeddings.position_embeddings",
    "final_norm_gamma": "layernorm.weight",
    "final_norm_beta": "layernorm.bias",
}
ATTENTION_ON_DISK = {
    "mha.wq": "attention.attention.query.weight", "mha.bq": "attention.attention.query.bias",
    "mha.wk": "attention.attention.key.weight", "mha.bk": "attention.attention.key.bias",
    "mha.wv": "attention.attention.value.weight", "mha.bv": "attention.attention.value.bias",
    "mha.wo": "attention.output.dense.weight", "mha.bo": "attention.output.dense.bias",
}  # fmt: skip
LAYER_ON_DISK = {
    "vit": ATTENTION_ON_DISK | {
        "norm1_gamma": "layernorm_before.weight", "norm1_beta": "layernorm_before.bias",
        "norm2_gamma": "layernorm_after.weight", "norm2_beta": "layernorm_after.bias",
        "ffn.w1": "intermediate.dense.weight", "ffn.b1": "intermediate.dense.bias",
        "ffn.w2": "output.dense.weight", "ffn.b2": "output.dense.bias",
    },
    "dinov2": ATTENTION_ON_DISK | {
        "norm1_gamma": "norm1.weight", "norm1_beta": "norm1.bias",
        "norm2_gamma": "norm2.weight", "norm2_beta": "norm2.bias",
        "ffn.w1": "mlp.fc1.weight", "ffn.b1": "mlp.fc1.bias",
        "ffn.w2": "mlp.fc2.weight", "ffn.b2": "mlp.fc2.bias",
        "layer_scale1": "layer_scale1.lambda1", "layer_scale2": "layer_scale2.lambda1",
    },
}  # fmt: skip
HEADS_ON_DISK = {
    "head.weights": "classifier.weight", "head.bias": "classifier.bias",
    "pooler.weights": "pooler.dense.weight", "pooler.bias": "pooler.dense.bias",
    "decoder.weights": "decoder.0.weight", "decoder.bias": "decoder.0.bias",
}  # fmt: skip


@EVERY
def test_stored_names_are_those_of_the_reference(kind):
    """Written down here a second time, from the files of transformers, not from our tables."""
    family = "dinov2" if kind.startswith("Dino") else "vit"
    prefix = f"{family}." if "For" in kind else ""
    expected = {name: prefix + stored for name, stored in BODY_ON_DISK.items()} | HEADS_ON_DISK
    for i in (0, 11):
        expected |= {
            f"encoder.layers.{i}.{name}": f"{prefix}encoder.layer.{i}.{stored}"
            for name, stored in LAYER_ON_DISK[family].items()
        }
    names = parameter_shapes(replace(CONFIGS[kind], num_layers=12, qkv_bias=True))
    for name in names:
        if not name.startswith("encoder.layers.") or name.split(".")[2] in ("0", "11"):
            assert ARCHITECTURES[kind].stored_name(name) == expected[name]
    assert len({ARCHITECTURES[kind].stored_name(name) for name in names}) == len(names)


@EVERY
def test_no_stored_name_may_mean_two_parameters(kind):
    family = ARCHITECTURES[kind].family
    shapes = parameter_shapes(replace(CONFIGS[kind], qkv_bias=True, num_layers=12))
    forms = [form for name in shapes for form in family.forms(name)]
    assert len(forms) == len({*forms})


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=2), st.integers(0, 2), st.integers(0, 2),
    st.booleans(),
)  # fmt: skip
def test_a_layout_is_undone_exactly(shape, leading, trailing, transposed):
    layout = Layout(leading, trailing, transposed)
    ours = np.arange(np.prod(shape)).reshape(shape)
    stored = layout.to_stored(ours)
    assert stored.shape == layout.stored_shape(ours.shape)
    assert np.array_equal(layout.to_ours(stored), ours)
    assert layout.to_ours(stored).base is not None  # a view: nothing is copied


# ---- round trips ---------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [None, 700], ids=["one file", "shards"])
def test_every_bit_survives(kind, dtype, limit, tmp_path):
    config = CONFIGS[kind]
    flat = parameters(config, dtype)
    save_checkpoint(tmp_path, config, flat, max_shard_size=limit)
    found = load_checkpoint(tmp_path)
    assert (found.config, found.architecture, found.left_out) == (config, kind, ())
    assert_same_bits(found.flat, flat)
    assert {name: found.flat.shape(name) for name in flat} == parameter_shapes(config)
    assert all(found.flat.dtype(name) == DTYPES[dtype] for name in flat)
    files = {p.name for p in tmp_path.glob("*.safetensors")}
    assert (files == {WEIGHTS}) == (limit is None) == (not (tmp_path / INDEX).exists())


@EVERY
def test_saving_what_was_loaded_writes_the_same_bytes(kind, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    save_checkpoint(first, CONFIGS[kind], parameters(CONFIGS[kind]), max_shard_size=900)
    found = load_checkpoint(first)
    save_checkpoint(second, found.config, found.flat, found.labels, max_shard_size=900)
    assert snapshot(first) == snapshot(second)
    save_checkpoint(first, found.config, found.flat, found.labels, max_shard_size=900)  # itself
    assert snapshot(first) == snapshot(second)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_payloads_and_signs_of_zero_survive(dtype, tmp_path):
    config, rng = CONFIGS["ViTModel"], np.random.default_rng(1)
    flat = {
        name: np.frombuffer(rng.bytes(leaf.nbytes), DTYPES[dtype]).reshape(leaf.shape)
        for name, leaf in parameters(config, dtype).items()
    }
    flat["cls_token"] = np.array([np.nan, -0.0, 0.0, np.inf, -np.inf, 1, 2, 3], DTYPES[dtype])
    save_checkpoint(tmp_path, config, flat)
    assert_same_bits(load_checkpoint(tmp_path, allow_nonfinite=True).flat, flat)


IN_MEMORY = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
IN_MEMORY_OF_VIT = {
    **IN_MEMORY,
    "encoder.layer.": "layers.",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


@EVERY
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("in_memory", [True, False])
def test_other_forms_of_the_names_are_read(kind, prefix, in_memory, tmp_path):
    family, renames = ARCHITECTURES[kind].family, {}
    if in_memory:
        renames = IN_MEMORY_OF_VIT if family.model_type == "vit" else IN_MEMORY
    flat = parameters(CONFIGS[kind])
    save_checkpoint(tmp_path, CONFIGS[kind], flat)
    tensors = {}
    for name, leaf in flat.items():
        stored = ARCHITECTURES[kind].stored_name(name).removeprefix(family.prefix)
        for old, new in renames.items():
            stored = stored.replace(old, new)
        if prefix and not stored.startswith(("classifier", "decoder")):
            stored = family.prefix + stored
        tensors[stored] = family.place(name).layout.to_stored(leaf)
    write_tensors(tmp_path / WEIGHTS, tensors)
    assert_same_bits(load_checkpoint(tmp_path).flat, flat)


def test_the_safetensors_library_reads_and_writes_the_same_file(classifier):
    from safetensors import safe_open
    from safetensors.numpy import save

    content = (classifier[0] / WEIGHTS).read_bytes()
    with safe_open(classifier[0] / WEIGHTS, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}
    assert int.from_bytes(content[:8], "little") % 8 == 0  # so that the data is aligned
    theirs = save(tensors, metadata={"format": "pt"})
    assert split_safetensors(theirs) == split_safetensors(content)


def test_arrays_of_another_byte_order_are_written_as_what_they_are(tmp_path):
    config = CONFIGS["ViTModel"]
    flat = parameters(config)
    save_checkpoint(tmp_path, config, {name: leaf.astype(">f4") for name, leaf in flat.items()})
    assert_same_bits(load_checkpoint(tmp_path).flat, flat)


def test_jax_arrays_are_written_too(tmp_path):
    import jax.numpy as jnp

    config = CONFIGS["Dinov2Model"]
    for dtype in ("float32", "bfloat16"):
        flat = parameters(config, dtype)
        save_checkpoint(tmp_path, config, {name: jnp.asarray(leaf) for name, leaf in flat.items()})
        assert_same_bits(load_checkpoint(tmp_path).flat, flat)


def test_what_is_loaded_is_a_model_of_the_specification(classifier):
    folder, flat = classifier
    found = load_checkpoint(folder)
    model = VisionTransformer.from_flat(found.config, found.flat)
    assert_same_bits(model.to_flat(), flat)


def test_loading_keeps_no_second_copy(tmp_path):
    config = replace(CONFIGS["ViTModel"], embed_dim=256, hidden_dim=384, num_layers=12)
    flat = parameters(config)
    largest, whole = max(a.nbytes for a in flat.values()), sum(a.nbytes for a in flat.values())
    names = 1000 * len(flat)  # the descriptions of the tensors
    assert 4 * largest + names < whole / 8
    for act in (
        lambda: save_checkpoint(tmp_path, config, flat, max_shard_size=2_000_000),
        lambda: load_checkpoint(tmp_path).flat["cls_token"],
    ):
        act()  # what is imported or remembered at the first time does not count
        tracemalloc.start()
        act()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * largest + names, (peak, largest, names, whole)


# ---- tensors that do not fit ---------------------------------------------------------------------


def test_every_fault_of_the_tensors_is_listed_at_once(classifier):
    folder, flat = classifier
    kind = ARCHITECTURES["ViTForImageClassification"]
    tensors = {
        kind.stored_name(n): kind.family.place(n).layout.to_stored(a) for n, a in flat.items()
    }
    del tensors["vit.embeddings.cls_token"]
    tensors["vit.encoder.layer.0.output.dense.bias"] = np.ones(9, np.float32)
    tensors["vit.encoder.layer.1.output.dense.bias"] = np.ones(8, np.int32)
    tensors["vit.layernorm.bias"] = np.array([1, np.nan, np.inf, *range(5)], np.float32)
    tensors["layernorm.weight"] = tensors["vit.layernorm.weight"]
    tensors["vit.encoder.layer.2.output.dense.bias"] = np.ones(8, np.float32)
    tensors["pooler.dense.bias"] = np.ones(8, np.float32)
    write_tensors(folder / WEIGHTS, tensors)
    with pytest.raises(InvalidTensors) as caught:
        load_checkpoint(folder)
    assert isinstance(caught.value, InvalidParameters)
    assert len(caught.value.problems) == 7
    for said in (
        "'vit.embeddings.cls_token': missing, expected shape (1, 1, 8) (cls_token)",
        "'vit.encoder.layer.0.output.dense.bias': expected shape (8,), found (9,)",
        "'vit.encoder.layer.1.output.dense.bias': expected one of float64, float32, float16,"
        " bfloat16, found 'I32'",
        "'vit.layernorm.bias': 2 of 8 numbers are NaN or infinite; allow_nonfinite=True",
        "final_norm_gamma: stored twice, as 'layernorm.weight' and 'vit.layernorm.weight'",
        "'vit.encoder.layer.2.output.dense.bias': superfluous",
        "'pooler.dense.bias': superfluous, of shape (8,)",
    ):
        assert said in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_configuration_of_a_billion_layers_is_refused_at_once(classifier):
    edit_json(classifier[0] / CONFIG, lambda c: c.update(num_hidden_layers=10**9))
    assert "has 1000000000 layers, the tensors are of 2" in refusal(classifier[0])


def test_a_given_configuration_may_leave_heads_out(classifier):
    folder, flat = classifier
    bare = replace(CONFIGS["ViTForImageClassification"], num_classes=0)
    found = load_checkpoint(folder, config=bare)
    assert {*found.left_out} == {"classifier.weight", "classifier.bias"}
    assert (found.architecture, found.config) == ("ViTModel", bare)
    assert_same_bits(found.flat, {n: a for n, a in flat.items() if not n.startswith("head")})
    save_checkpoint(folder.parent / "bare", found.config, found.flat, found.labels)
    again = load_checkpoint(folder.parent / "bare")
    assert (again.config, again.labels) == (bare, found.labels)


def test_a_given_configuration_with_a_head_that_is_not_there_is_refused(classifier):
    config = CONFIGS["ViTForImageClassification"]
    said = refusal(classifier[0], config=replace(config, pooler_dim=4))
    assert (
        "'vit.pooler.dense.weight': missing, expected shape (4, 8) (pooler.weights); load" in said
    )
    assert "configuration without the pooler, and add fresh parameters" in said
    said = refusal(classifier[0], config=replace(config, num_classes=5))
    assert "id2label: 3 classes, and config has 5" in said
    said = refusal(classifier[0], config=replace(config, num_layers=1))  # no head, so not left out
    assert "'vit.encoder.layer.1.layernorm_before.bias': superfluous" in said
    with pytest.raises(NotWellFormed, match="headCount_dvd_embedDim"):
        load_checkpoint(classifier[0], config=replace(config, head_count=3))


@EVERY
def test_with_a_given_configuration_no_config_json_is_needed(kind, tmp_path):
    flat = parameters(CONFIGS[kind])
    save_checkpoint(tmp_path, CONFIGS[kind], flat)
    (tmp_path / CONFIG).unlink()
    assert "config.json: there is no such file" in refusal(tmp_path)
    found = load_checkpoint(tmp_path, config=CONFIGS[kind])
    assert found.architecture == kind
    assert_same_bits(found.flat, flat)


def test_a_given_configuration_overrides_what_is_refused_in_the_file(tmp_path):
    save_checkpoint(tmp_path, CONFIGS["Dinov2Model"], parameters(CONFIGS["Dinov2Model"]))
    edit_json(tmp_path / CONFIG, lambda c: c.update(drop_path_rate=0.1))
    assert "pass config=" in refusal(tmp_path)
    assert load_checkpoint(tmp_path, config=CONFIGS["Dinov2Model"]).config.layer_scale
