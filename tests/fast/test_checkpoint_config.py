"""config.json and our configurations: what is read, written, and refused by name."""

import json
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from support.checkpoints import (
    CONFIG,
    CONFIGS,
    edit_json,
    other_model,
    refusal,
    saved_classifier,
)
from vitfast.checkpoints import (
    ARCHITECTURES,
    CheckpointError,
    Labels,
    load_checkpoint,
    save_checkpoint,
)
from vitfast.checkpoints.config import ACTIVATIONS, REFUSED_TYPES, read_config
from vitfast.checkpoints.config_writing import write_config
from vitspec.models.vision_transformer_parameters import parameter_shapes
from vitspec.presets import PRESETS
from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig

EVERY = pytest.mark.parametrize("kind", CONFIGS)


@pytest.fixture
def classifier(tmp_path):
    """A folder with a small classification model, and its parameters."""
    return saved_classifier(tmp_path / "model")


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


def test_an_early_file_is_read():
    """As transformers 4.0 wrote it: without what came later, with keys that decide nothing."""
    given = {
        "_name_or_path": "somewhere", "architectures": ["ViTModel"], "torch_dtype": "float32",
        "attention_probs_dropout_prob": 0.0, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
        "hidden_size": 1024, "image_size": 224, "initializer_range": 0.02,
        "intermediate_size": 4096, "layer_norm_eps": 1e-12, "model_type": "vit",
        "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 24, "patch_size": 32,
        "qkv_bias": True, "transformers_version": "4.0.0", "output_attentions": False,
    }  # fmt: skip
    found = described(given, "embeddings.cls_token", "pooler.dense.bias")
    assert found.config == VisionTransformerConfig(
        patch_h=32, patch_w=32, embed_dim=1024, hidden_dim=4096, head_count=16, num_layers=24,
        num_classes=0, pooler_dim=1024,
    )  # fmt: skip
    assert found.labels is None


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
        "layer_norm_eps": st.floats(1e-300, 1e300), "mask_token": st.booleans(),
        "pooler_dim": st.sampled_from([0, 5, 8]),
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
    if kind != "ViTModel":  # whose tensors say whether it has these
        changes.pop("pooler_dim", None)
    if kind.startswith("ViTFor"):
        changes.pop("mask_token", None)
    config = replace(CONFIGS[kind], dropout=rates, **changes)
    written = write_config(config, ARCHITECTURES[kind], None, "float32")
    stored = [ARCHITECTURES[kind].stored_name(name) for name in parameter_shapes(config)]
    found = described(json.loads(json.dumps(written)), *stored)
    assert (found.config, found.architecture.name) == (config, kind)


@pytest.mark.parametrize("theirs", ACTIVATIONS)
def test_activations_by_their_names(theirs):
    """What each computes is compared with transformers in tests/interop."""
    same = {"quick_gelu": "quick_gelu", "relu": "relu", "gelu": "gelu", "gelu_python": "gelu"}
    ours = same.get(theirs, "gelu_tanh")
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
