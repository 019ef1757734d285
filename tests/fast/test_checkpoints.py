"""Checkpoints: every bit survives, nothing is half-written, and no file is believed.

PyTorch and transformers have their say in tests/interop/test_hugging_face_checkpoints.py.
"""

import errno
import itertools
import json
import os
import pickle
import sys
import tracemalloc
import types
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from support.checkpoints import (
    CONFIGS,
    DTYPES,
    assert_same_bits,
    edit_json,
    join_safetensors,
    parameters,
    snapshot,
    split_safetensors,
    write_tensors,
)
from vitfast.checkpoints import (
    ARCHITECTURES,
    CheckpointError,
    InvalidTensors,
    Labels,
    load_checkpoint,
    save_checkpoint,
)
from vitfast.checkpoints.config import ACTIVATIONS, REFUSED_TYPES, read_config
from vitfast.checkpoints.config_writing import write_config
from vitfast.checkpoints.names import Layout
from vitspec.errors import InvalidParameters, NotWellFormed
from vitspec.models.vision_transformer import VisionTransformer
from vitspec.models.vision_transformer_parameters import parameter_shapes
from vitspec.presets import PRESETS
from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig

EVERY = pytest.mark.parametrize("kind", CONFIGS)
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


@pytest.fixture
def classifier(tmp_path):
    """A folder with a small classification model, and its parameters."""
    config = CONFIGS["ViTForImageClassification"]
    flat = parameters(config)
    save_checkpoint(tmp_path / "model", config, flat, labels=["cat", "dog", "crane"])
    return tmp_path / "model", flat


def refusal(folder, **options):
    """What loading this folder says."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, **options)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


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
    config = replace(CONFIGS["ViTModel"], embed_dim=64, hidden_dim=96, num_layers=12)
    flat = parameters(config)
    largest, whole = max(a.nbytes for a in flat.values()), sum(a.nbytes for a in flat.values())
    names = 1000 * len(flat)  # the descriptions of the tensors
    assert 4 * largest + names < 2 * whole / 3
    for act in (
        lambda: save_checkpoint(tmp_path, config, flat, max_shard_size=150_000),
        lambda: load_checkpoint(tmp_path).flat["cls_token"],
    ):
        tracemalloc.start()
        act()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * largest + names


# ---- writing -------------------------------------------------------------------------------------


class Failing(dict):
    """Arrays of which one cannot be had."""

    def __getitem__(self, name):
        if name == "encoder.layers.1.ffn.w1" and sys._getframe(1).f_code.co_name == "make":
            raise ZeroDivisionError("the seventh tensor")
        return super().__getitem__(name)


def other_model():
    """A configuration with the same names and shapes, but for the labels, and other parameters."""
    config = CONFIGS["ViTForImageClassification"]
    return config, parameters(config, seed=9)


def test_a_failure_while_tensors_are_written_changes_nothing(classifier):
    folder, _ = classifier
    before = snapshot(folder)
    config, flat = other_model()
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(folder, config, Failing(flat), max_shard_size=900)
    assert snapshot(folder) == before


def test_a_failure_leaves_no_new_folder(tmp_path):
    config, flat = other_model()
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(tmp_path / "a" / "b", config, Failing(flat))
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_at_any_moment_changes_nothing(call, classifier, monkeypatch):
    folder, _ = classifier
    before = snapshot(folder)
    config, flat = other_model()
    true, calls, limit = getattr(os, call), itertools.count(), 0

    def fail(*arguments):
        if next(calls) == limit:
            raise OSError(errno.ENOSPC, "No space left on device")
        return true(*arguments)

    monkeypatch.setattr(os, call, fail)
    for limit in range(100):  # noqa: B007 - read by `fail`
        calls = itertools.count()
        try:
            save_checkpoint(folder, config, flat, max_shard_size=900)
        except CheckpointError as error:
            said = str(error)
        else:
            break
        assert "No space left on device; nothing was changed" in said
        assert snapshot(folder) == before
    assert limit > 4
    assert_same_bits(load_checkpoint(folder).flat, flat)


def test_a_machine_that_stops_between_two_files_leaves_nothing_mixed(classifier, monkeypatch):
    folder, old = classifier
    config, new = other_model()
    true, calls = os.replace, itertools.count()
    outcomes = set()
    for limit in range(100):
        calls = itertools.count()

        def stop(*arguments, limit=limit, calls=calls):
            if next(calls) >= limit:  # and so does every call that would put things back
                raise KeyboardInterrupt
            return true(*arguments)

        target = folder.parent / f"stopped-{limit}"
        save_checkpoint(target, config, old, max_shard_size=900)
        monkeypatch.setattr(os, "replace", stop)
        try:
            save_checkpoint(target, config, new, max_shard_size=900)
        except KeyboardInterrupt:
            monkeypatch.setattr(os, "replace", true)
        else:
            monkeypatch.undo()
            break
        if (target / CONFIG).exists():
            assert_same_bits(load_checkpoint(target).flat, old)
            outcomes.add("as before")
        else:
            refusal(target)
            outcomes.add("refused")
    assert outcomes == {"as before", "refused"}
    assert_same_bits(load_checkpoint(target).flat, new)


def test_an_earlier_checkpoint_is_replaced_and_other_files_stay(classifier):
    folder, _ = classifier
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "README.md").write_text("# mine")
    config, flat = other_model()
    for limit, count in ((900, 0), (5000, 0), (None, 1), (700, 0)):
        save_checkpoint(folder, config, flat, max_shard_size=limit)
        names = {p.name for p in folder.iterdir()}
        shards = {n for n in names if n.startswith("model-")}
        assert (WEIGHTS in names) == bool(count)
        assert {*names} - shards - {WEIGHTS, INDEX} == {
            CONFIG, "preprocessor_config.json", "README.md",
        }  # fmt: skip
        if shards:
            assert {*json.loads((folder / INDEX).read_text())["weight_map"].values()} == shards
            for name in shards:
                size = len(split_safetensors((folder / name).read_bytes())[1])
                tensors = len(split_safetensors((folder / name).read_bytes())[0]) - 1
                assert size <= limit or tensors == 1
        assert_same_bits(load_checkpoint(folder).flat, flat)


def test_a_link_in_the_folder_is_replaced_and_not_followed(classifier, tmp_path):
    folder, _ = classifier
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(elsewhere)
    save_checkpoint(folder, *other_model())
    assert elsewhere.read_text() == "precious"
    assert not (folder / WEIGHTS).is_symlink()


def test_weights_of_another_format_are_not_left_beside_ours(classifier):
    (classifier[0] / "pytorch_model.bin").write_bytes(b"")
    before = snapshot(classifier[0])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin holds other weights"):
        save_checkpoint(classifier[0], *other_model())
    assert snapshot(classifier[0]) == before


def test_new_files_have_the_permissions_of_any_new_file(classifier):
    plain = classifier[0] / "plain"
    plain.write_text("")
    for name in (WEIGHTS, CONFIG):
        assert (classifier[0] / name).stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pool": "mean"}, "pool must be 'cls', got 'mean'"),
        ({"output_bias": False}, "output_bias must be True"),
        ({"cls_token": False, "pool": "mean"}, "cls_token must be True"),
        ({"pooler_dim": 4}, "ViTForImageClassification has no pooler"),
        ({"mask_token": True}, "ViTForImageClassification has no mask token"),
        ({"head_count": 3}, "headCount_dvd_embedDim"),
        ({"dropout": DropoutRates(embedding=0.1)}, "the dropout rates must be"),
        ({"dropout": DropoutRates(stochastic_depth=0.1)}, "the dropout rates must be"),
        ({"layer_scale": True}, "hidden_dim must be a multiple of embed_dim"),
        ({"decoder_stride": 4}, "ViTForMaskedImageModeling has no classifier"),
    ],
)
def test_what_transformers_cannot_compute_is_not_written(fields, said, tmp_path):
    config = replace(CONFIGS["ViTForImageClassification"], **fields)
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path / "new", config, {})
    assert said in str(caught.value)
    assert snapshot(tmp_path) == {}


def test_every_fault_of_the_arrays_is_listed_before_anything_is_written(tmp_path):
    config, flat = other_model()
    flat["cls_token"] = flat["cls_token"][:3]
    flat["final_norm_beta"] = flat["final_norm_beta"].astype(int)
    flat["extra"] = flat.pop("head.bias")
    with pytest.raises(InvalidTensors) as caught:
        save_checkpoint(tmp_path / "new", config, flat)
    assert len(caught.value.problems) == 5
    for said in ("cls_token: expected shape (8,)", "final_norm_beta: expected one of float64",
                 "'extra': unexpected", "head.bias: missing", "mix the scalar types"):  # fmt: skip
        assert said in str(caught.value)
    assert snapshot(tmp_path) == {}


# ---- labels --------------------------------------------------------------------------------------


def test_labels_are_kept_even_if_two_classes_share_a_name(tmp_path):
    config, flat = other_model()
    labels = Labels(("crane", "cat", "crane"), {"crane": 0, "cat": 1})
    save_checkpoint(tmp_path, config, flat, labels)
    assert load_checkpoint(tmp_path).labels == labels
    assert Labels.of(["crane", "cat", "crane"]).ids == {"crane": 2, "cat": 1}
    with pytest.raises(CheckpointError, match="expected 3 names, got 2"):
        save_checkpoint(tmp_path, config, flat, ["cat", "dog"])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("id2label", {"0": "a", "2": "b", "1": 3}, "id2label: expected an object of names"),
        ("id2label", {"0": "a", "2": "b", "3": "c"}, "id2label: expected the 3 classes 0 to 2"),
        ("id2label", ["a", "b", "c"], "id2label: expected an object of names"),
        ("label2id", {"a": 3}, "label2id: expected classes from 0 to 2; not so: 'a'"),
        ("label2id", {"a": "x"}, "label2id: expected classes"),
        ("label2id", [0, 1, 2], "label2id: expected an object"),
        ("num_labels", 4, "num_labels: 4, but id2label has 3 classes"),
    ],
)
def test_damaged_labels_are_refused(key, value, said, classifier):
    edit_json(classifier[0] / CONFIG, lambda c: c.update({key: value}))
    assert said in refusal(classifier[0])


def test_classes_as_texts_are_read_as_early_files_have_them(classifier):
    edit_json(classifier[0] / CONFIG, lambda c: c.update(label2id={"cat": "0", "dog": "1"}))
    assert load_checkpoint(classifier[0]).labels.ids == {"cat": 0, "dog": 1}


# ---- configuration -------------------------------------------------------------------------------


def described(given, *stored):
    """The configuration that this config.json describes beside tensors of these names."""
    return read_config(given, dict.fromkeys(stored), "config.json")


def test_missing_keys_have_the_defaults_of_transformers():
    bare = described({"model_type": "vit", "architectures": ["ViTModel"]}, "pooler.dense.weight")
    assert bare.config == VisionTransformerConfig(num_classes=0, pooler_dim=768)
    classes = described({"model_type": "vit", "architectures": ["ViTForImageClassification"]})
    assert classes.config == VisionTransformerConfig(num_classes=2)
    dino = described({"model_type": "dinov2", "image_size": 518}).config
    assert dino == PRESETS["dinov2-base"]


def test_the_tensors_decide_what_the_file_does_not_say():
    bare = {"model_type": "vit", "architectures": ["ViTModel"]}
    assert described(bare).config.pooler_dim == 0
    assert described(bare, "vit.pooler.dense.bias").config.pooler_dim == 768
    assert not described(bare).config.mask_token
    assert described(bare, "embeddings.mask_token").config.mask_token
    for stored, kind in {
        "classifier.weight": "ViTForImageClassification",
        "decoder.0.bias": "ViTForMaskedImageModeling",
        "layernorm.weight": "ViTModel",
    }.items():
        for missing in ({}, {"architectures": None}, {"architectures": []}):
            assert described({"model_type": "vit"} | missing, stored).architecture.name == kind


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "image_h": st.integers(8, 40), "image_w": st.integers(8, 40),
        "in_channels": st.integers(1, 4), "patch_h": st.integers(1, 8),
        "patch_w": st.integers(1, 8), "num_layers": st.integers(0, 3),
        "head_count": st.sampled_from([1, 2, 4, 8]), "qkv_bias": st.booleans(),
        "activation": st.sampled_from(["gelu", "gelu_tanh", "quick_gelu", "relu"]),
        "layer_norm_eps": st.floats(1e-300, 1e300),
        "rate": st.floats(0, 1, exclude_max=True), "attention": st.floats(0, 1, exclude_max=True),
    },
)  # fmt: skip


@EVERY
@given(changes=CHANGES)
@settings(max_examples=25)
def test_a_configuration_survives_the_file(kind, changes):
    rate, attention = changes.pop("rate", 0.0), changes.pop("attention", 0.0)
    rates = DropoutRates(embedding=rate, attention=attention)
    if kind.startswith("ViT"):
        rates = replace(rates, projection=rate, output=rate)
    config = replace(CONFIGS[kind], dropout=rates, **changes)
    written = write_config(config, ARCHITECTURES[kind], None, "float32")
    stored = [ARCHITECTURES[kind].stored_name(name) for name in parameter_shapes(config)]
    found = described(json.loads(json.dumps(written)), *stored)
    assert (found.config, found.architecture.name) == (config, kind)


@pytest.mark.parametrize(("theirs", "ours"), ACTIVATIONS.items())
def test_activations_by_their_names(theirs, ours):
    assert described({"model_type": "vit", "hidden_act": theirs}).config.activation == ours


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden_act": "silu"}, "hidden_act: expected one of gelu, gelu_python"),
        ({"pooler_act": "relu"}, "pooler_act: expected 'tanh', got 'relu'; save the model"),
        ({"head_dim": 5}, "head_dim: expected hidden_size / num_attention_heads, got 5"),
        ({"num_register_tokens": 4}, "num_register_tokens: register tokens are not"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quantised weights"),
        ({"pruned_heads": {"1": [0]}}, "pruned_heads: pruned heads change"),
        ({"architectures": ["ViTBackbone"]}, "architectures: expected one of ViTModel"),
        ({"architectures": ["Dinov2Model"]}, "got 'Dinov2Model'"),
        ({"architectures": "ViTModel"}, "architectures: expected one of"),
        ({"architectures": ["ViTModel", "ViTModel"]}, "got a list of 2"),
        ({"model_type": None}, "model_type: expected vit or dinov2, got None"),
        ({"model_type": ["vit"]}, "got a list of 1"),
        ({"num_attention_heads": 7}, "headCount_dvd_embedDim"),
        ({"hidden_size": 0}, "embedDim_pos"),
        ({"layer_norm_eps": 0}, "layerNormEps_pos"),
        ({"hidden_dropout_prob": 1.5}, "dropout_rate"),
        *(({"model_type": name}, why) for name, why in REFUSED_TYPES.items()),
    ],
)
def test_what_is_not_specified_here_is_refused_by_name(fields, said):
    given = {"model_type": "vit", "architectures": ["ViTModel"]} | fields
    with pytest.raises(CheckpointError) as caught:
        described(given, "pooler.dense.weight")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn: true is a gated feed-forward (DINOv2 giant)"),
        ({"drop_path_rate": 0.1}, "drop_path_rate: DINOv2 drops every block alike"),
        ({"mlp_ratio": -1}, "mlp_ratio: expected a positive number"),
        ({"mlp_ratio": "4"}, "mlp_ratio: expected a number, got '4'"),
    ],
)
def test_what_of_dinov2_is_refused(fields, said):
    with pytest.raises(CheckpointError) as caught:
        described({"model_type": "dinov2"} | fields)
    assert said in str(caught.value)


def test_every_field_of_a_wrong_type_is_listed():
    given = {
        "hidden_size": 768.0, "num_hidden_layers": "12", "num_attention_heads": True,
        "intermediate_size": None, "hidden_act": 1, "hidden_dropout_prob": "0",
        "attention_probs_dropout_prob": None, "initializer_range": [], "layer_norm_eps": False,
        "image_size": [224], "patch_size": [16, "16"], "num_channels": -3, "qkv_bias": 1,
        "encoder_stride": 2**40, "pooler_output_size": 1.5, "pooler_act": {},
    }  # fmt: skip
    with pytest.raises(CheckpointError) as caught:
        described({"model_type": "vit", "architectures": ["ViTModel"]} | given)
    assert {problem.partition(":")[0] for problem in caught.value.problems} == {*given}


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


# ---- files that are not what they seem -----------------------------------------------------------


def sharded(folder):
    """A small classification model in several files; its parameters."""
    config, flat = other_model()
    save_checkpoint(folder, config, flat, max_shard_size=900)
    return flat


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".", "", "a\\b", "C:x",
     "nul\0byte", "new\nline", "missing.safetensors", "folder", "x" * 300],
)  # fmt: skip
def test_an_index_names_files_of_its_folder_only(name, tmp_path):
    folder = tmp_path / "model"
    sharded(folder)
    save_checkpoint(tmp_path / "other", *other_model())
    (tmp_path / "other" / WEIGHTS).rename(tmp_path / "secret.safetensors")
    (folder / "folder").mkdir()
    edit_json(folder / INDEX, lambda i: i["weight_map"].update({"classifier.bias": name}))
    said = refusal(folder)
    assert "\n" not in said
    assert any(
        text in said
        for text in ("expected the name of a file", "no such file", "regular file", "too long")
    )


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_links_that_leave_the_folder_are_not_followed(name, classifier, tmp_path):
    folder, flat = classifier
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    assert "links to a file outside of the folder" in refusal(folder)
    (folder / name).unlink()
    outside.rename(folder / "inside")
    (folder / name).symlink_to("inside")
    assert_same_bits(load_checkpoint(folder).flat, flat)
    link = tmp_path / "link"
    link.symlink_to(folder)  # the folder itself is the caller's choice
    assert_same_bits(load_checkpoint(link).flat, flat)


def test_the_cache_of_the_hub_has_links_to_its_blobs(classifier, tmp_path):
    folder, flat = classifier
    cache = tmp_path / "models--owner--name"
    snapshot_ = cache / "snapshots" / "0123"
    snapshot_.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for name in (WEIGHTS, CONFIG):
        (folder / name).rename(cache / "blobs" / name[:5])
        (snapshot_ / name).symlink_to(f"../../blobs/{name[:5]}")
    assert_same_bits(load_checkpoint(snapshot_).flat, flat)
    (tmp_path / "secret").write_bytes((cache / "blobs" / WEIGHTS[:5]).read_bytes())
    (snapshot_ / WEIGHTS).unlink()
    (snapshot_ / WEIGHTS).symlink_to("../../../secret")
    assert "links to a file outside" in refusal(snapshot_)


def test_pipes_loops_and_folders_are_not_opened(classifier):
    folder, _ = classifier
    for name in (CONFIG, WEIGHTS):
        (folder / name).rename(folder / "kept")
        os.mkfifo(folder / name)
        assert "expected a regular file; it was not opened" in refusal(folder)
        (folder / name).unlink()
        (folder / name).symlink_to(name)
        assert f"{name}: cannot be read" in refusal(folder)
        (folder / name).unlink()
        (folder / name).mkdir()
        assert "expected a regular file" in refusal(folder)
        (folder / name).rmdir()
        (folder / "kept").rename(folder / name)


def test_tensors_of_shards_are_where_the_index_says(tmp_path):
    flat = sharded(tmp_path)
    assert_same_bits(load_checkpoint(tmp_path).flat, flat)
    index = json.loads((tmp_path / INDEX).read_text())
    where = index["weight_map"]
    first, last = min(where.values()), max(where.values())
    name = next(name for name, file in where.items() if file == first)
    for change, said in (
        ({name: last}, f"tensor '{name}' is in '{first}', and the index says '{last}'"),
        ({"more": last}, f"tensor 'more' is not in '{last}', where the index says it is"),
        (None, f"tensor '{name}' is in '{first}', and the index does not have it"),
        ({name: 3}, "weight_map: expected an object of file names"),
    ):
        new = {n: f for n, f in where.items() if n != name or change} | (change or {})
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": new}))
        assert said in refusal(tmp_path)
    for text in ("{}", '{"weight_map": []}', "[]", "3", ""):
        (tmp_path / INDEX).write_text(text)
        assert INDEX in refusal(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps(index))
    header, data = split_safetensors((tmp_path / last).read_bytes())
    twice, more = split_safetensors((tmp_path / first).read_bytes())
    begin, end = twice[name]["data_offsets"]
    offsets = [len(data), len(data) + end - begin]
    header[name] = twice[name] | {"data_offsets": offsets}
    (tmp_path / last).write_bytes(join_safetensors(header, data + more[begin:end]))
    assert f"tensor '{name}' is in '{last}', and the index says '{first}'" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "expected JSON in UTF-8"),
        (b"\xff\xfe{}", "expected JSON in UTF-8"),
        (b"{", "expected JSON in UTF-8"),
        (b"[]", "expected a JSON object, found a list"),
        (b"null", "expected a JSON object, found None"),
        (b"9" * 5000, "expected JSON"),
        (b'{"a": ' * 100_000, "nests too deeply"),
        (b'{"model_type": "vit", "model_type": "vit"}', "the name 'model_type' stands twice"),
        (b'{"id2label": {"0": "a", "0": "b"}}', "the name '0' stands twice"),
        (b'{"layer_norm_eps": NaN}', "NaN is no JSON"),
        (b'{"layer_norm_eps": -Infinity}', "-Infinity is no JSON"),
        (b'{"layer_norm_eps": 1e999}', "the number 1e999 is too large"),
        (b'{"model_type": "\\ud800\\n"}', "got '\\ud800\\n'"),
        (b'{"model_type": "' + b"x" * 5000 + b'"}', "xxx...'"),
        (b'{"model_type": "vit", "hidden_size": 1' + b"0" * 4000 + b"}", "more than 20 digits"),
    ],
)  # fmt: skip
def test_hostile_json_is_one_line(text, said, classifier):
    (classifier[0] / CONFIG).write_bytes(text)
    message = refusal(classifier[0])
    assert said in message
    assert "\n" not in message
    assert len(message) < 1000


def test_huge_files_are_not_read(classifier):
    folder, _ = classifier
    with open(folder / CONFIG, "ab") as file:
        file.truncate(2**40)
    assert "expected at most 33554432 bytes, found 1099511627776" in refusal(folder)


def headers():
    """Hostile headers, as a change of a good one (or a text), and what is said."""
    name = "classifier.bias"

    def set_(**fields):
        return lambda h: h[name].update(fields)

    yield "cut off", lambda content: content[:-1], "it is cut off"
    yield "no file", lambda content: content[:7], "no safetensors file: it has 7 bytes"
    yield "empty", lambda content: b"", "no safetensors file"
    yield "more data", lambda content: content + b"\0", "there is something behind the tensors"
    huge = (2**60).to_bytes(8, "little")
    yield "huge header", lambda content: huge + content[8:], "a header of 1152921504606846976 bytes"
    big = (2**24 + 1).to_bytes(8, "little") + b" " * (2**24 + 1)
    yield "big header", lambda content: big, "expected at most 16777216"
    for label, change, said in (
        ("no object", lambda h: h.update({name: []}), "expected an object of dtype"),
        ("more keys", set_(more=1), "expected an object of dtype"),
        ("unknown dtype", set_(dtype="F4"), "dtype: expected one of F64"),
        ("dtype is no text", set_(dtype=["F32"]), "dtype: expected one of F64"),
        ("negative shape", set_(shape=[-3]), "natural numbers"),
        ("Boolean shape", set_(shape=[True, 3]), "natural numbers"),
        ("float shape", set_(shape=[3.0]), "natural numbers"),
        ("endless shape", set_(shape=[1] * 1000), "at most 8 natural numbers"),
        ("huge shape", set_(shape=[2**52] * 8), "its shape needs"),
        ("number beyond all", set_(shape=[2**70]), "natural numbers"),
        ("offsets in disorder", set_(data_offsets=[12, 0]), "two natural numbers in order"),
        ("three offsets", set_(data_offsets=[0, 12, 12]), "two natural numbers in order"),
        ("offsets beyond", set_(data_offsets=[2**40, 2**40 + 12]), "leaves a gap"),
        ("too few bytes", set_(shape=[4]), "its shape needs 16 bytes, its offsets give 12"),
        ("overlap", lambda h: h.update(again=h[name]), "overlaps with another"),
        ("gap", lambda h: h.pop(name), "leaves a gap"),
        ("metadata", lambda h: h.update(__metadata__={"a": 1}), "__metadata__: expected"),
        ("metadata list", lambda h: h.update(__metadata__=[]), "__metadata__: expected"),
    ):

        def rewrite(content, change=change):
            header, data = split_safetensors(content)
            change(header)
            return join_safetensors(header, data)

        yield label, rewrite, said
    for text, said in ((b"[]", "expected a JSON object"), (b"{", "the header: expected JSON"),
                       (b'{"a":1,"a":1}', "stands twice"), (b"", "expected JSON"),
                       (b'{"a":' * 10_000, "nests too deeply")):  # fmt: skip
        yield (
            f"header {text[:9]!r}",
            lambda content, text=text: join_safetensors(text, split_safetensors(content)[1]),
            said,
        )


@pytest.mark.parametrize(
    ("change", "said"), [pytest.param(*rest, id=label) for label, *rest in headers()]
)
def test_hostile_headers_are_one_line(change, said, classifier):
    path = classifier[0] / WEIGHTS
    path.write_bytes(change(path.read_bytes()))
    message = refusal(classifier[0])
    assert said in message
    assert "\n" not in message


def test_a_file_that_changes_after_loading_is_noticed(classifier):
    folder, _ = classifier
    found = load_checkpoint(folder)
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        found.flat["cls_token"]
    (folder / WEIGHTS).write_bytes(content + b"\0")
    with pytest.raises(CheckpointError, match="has changed since it was opened"):
        found.flat["cls_token"]


# ---- fuzzing -------------------------------------------------------------------------------------


def mutate(content, rng):
    """A damaged copy: cut off, a bit flipped, bytes removed, inserted, exchanged or overwritten."""
    data = bytearray(content)
    begin = int(rng.integers(len(data)))
    # Most of a file is data, most of what can go wrong is in front of it.
    begin = begin if rng.random() < 0.5 else begin % min(len(data), 3000)
    length = int(rng.integers(1, 9))
    match rng.integers(6):
        case 0:
            del data[begin:]
        case 1:
            data[begin] ^= 1 << int(rng.integers(8))
        case 2:
            del data[begin : begin + length]
        case 3:
            data[begin:begin] = rng.bytes(length)
        case 4:
            data[begin : begin + length] = rng.bytes(length)
        case _:
            data[begin : begin + length] = data[:length]
    return bytes(data)


@pytest.mark.parametrize(
    ("which", "limit"), [("weights", None), ("weights", 2000), ("index", 2000), ("config", None)]
)
def test_damaged_files_load_rightly_or_are_refused(which, limit, tmp_path):
    config = replace(CONFIGS["ViTForImageClassification"], num_layers=1)
    flat = parameters(config)
    save_checkpoint(tmp_path, config, flat, ["cat", "dog", "crane"], max_shard_size=limit)
    target = {"weights": min(tmp_path.glob("*.safetensors")), "index": tmp_path / INDEX,
              "config": tmp_path / CONFIG}[which]  # fmt: skip
    content, rng = target.read_bytes(), np.random.default_rng(5)
    data_at = 8 + int.from_bytes(content[:8], "little")
    loaded = refused = 0
    for _ in range(150):
        damaged = mutate(content, rng)
        target.write_bytes(damaged)
        try:
            found = load_checkpoint(tmp_path)
        except CheckpointError as error:
            refused += 1
            assert all("\n" not in problem for problem in error.problems)  # noqa: PT017
            continue
        loaded += 1
        assert {n: a.shape for n, a in found.flat.items()} == parameter_shapes(found.config)
        assert all(np.isfinite(a).all() for a in found.flat.values())
        if which == "config":
            continue  # another number may be as good
        assert found.config == config
        same = which == "index" or damaged[data_at:] == content[data_at:]
        assert same or (which == "weights" and len(damaged) == len(content))
        if same:
            assert_same_bits(found.flat, flat)
    assert refused > 25
    assert loaded > (0 if which == "index" else 5)


TEXT = st.text(max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
KEYS = sorted(
    {k for one in CONFIGS for k in write_config(CONFIGS[one], ARCHITECTURES[one], None, "float32")}
)


@given(st.sampled_from([*CONFIGS]), st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
@settings(max_examples=150)
def test_any_json_in_any_field_is_read_or_refused(kind, changes):
    given_ = write_config(CONFIGS[kind], ARCHITECTURES[kind], None, "float32") | changes
    try:
        found = described(given_, *parameter_shapes(CONFIGS[kind]))
    except CheckpointError as error:
        assert all("\n" not in problem for problem in error.problems)  # noqa: PT017
    else:
        assert found.config.violations() == ()


# ---- names on the hub, and PyTorch that is not there ---------------------------------------------


def fake_hub(monkeypatch, answer):
    """A huggingface_hub whose snapshot_download does this; what it is asked is returned."""
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        return answer()

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


def test_a_name_is_asked_of_the_hub_for_the_needed_files_only(classifier, monkeypatch):
    folder, flat = classifier
    asked = fake_hub(monkeypatch, lambda: str(folder))
    assert_same_bits(load_checkpoint("owner/name", revision="v1").flat, flat)
    refusal("owner/name", use_pytorch=True)
    (name, first), (_, second) = asked
    assert (name, first["revision"], second["revision"]) == ("owner/name", "v1", None)
    configurations = ["config.json", "preprocessor_config.json"]
    assert first["allow_patterns"] == [*configurations, WEIGHTS, INDEX, "model-*-of-*.safetensors"]
    assert second["allow_patterns"] == [
        *configurations, "pytorch_model.bin", "pytorch_model.bin.index.json",
        "pytorch_model-*-of-*.bin",
    ]  # fmt: skip


def test_what_the_hub_refuses_is_one_line(monkeypatch):
    def answer():
        raise RuntimeError("404 Client Error.\n\nRepository Not Found for url: ...\nmore")

    fake_hub(monkeypatch, answer)
    said = refusal("owner/name")
    assert said == (
        "'owner/name': there is no such folder, and the Hugging Face hub did not give it; "
        "RuntimeError: 404 Client Error."
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "python -m pip install 'vitspec[fast]'" in refusal("owner/name")


@pytest.mark.parametrize("path", ["/no/such/folder", "./model", "a/b/c", "-x", "a b"])
def test_paths_are_not_asked_of_the_hub(path, monkeypatch):
    asked = fake_hub(monkeypatch, lambda: "nowhere")
    assert "there is nothing of that name" in refusal(path)
    assert asked == []


def test_a_folder_has_no_revisions_and_a_file_is_no_folder(classifier):
    assert "leave out revision=" in refusal(classifier[0], revision="main")
    assert "it is a file" in refusal(classifier[0] / CONFIG)


def test_without_pytorch_its_files_name_the_extra(classifier, monkeypatch):
    folder, _ = classifier
    assert "found neither; there is model.safetensors: pass use_pytorch=False" in refusal(
        folder, use_pytorch=True
    )
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    assert "there is pytorch_model.bin: pass use_pytorch=True" in refusal(folder)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "python -m pip install 'vitspec[interop]'" in refusal(folder, use_pytorch=True)
