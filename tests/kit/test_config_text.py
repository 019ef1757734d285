"""Configurations as the text of a command's argument, there and back."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitspec import NotWellFormed, ViTConfig, vit_large_patch16_config
from vitspec.config_text import (
    LEAN_PRESETS,
    config_argument,
    is_practical,
    parse_config,
    parse_practical_config,
    read_config,
)
from vitspec.presets import PRESETS, d2l_config
from vitspec.shapes import Model
from vitspec.testing.strategies import cases, configs, edge_cases, vision_transformer_configs
from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig

any_case = cases(degenerate=True) | edge_cases()


def model_of(case):
    return Model(case.config, case.spec, *case.image_shape)


# ---- of the Lean mirror --------------------------------------------------------------------

BASE, SIZE = ViTConfig(), (3, 224, 224)


def fields_of(text):
    """What a message calls known."""
    return text.partition("known are ")[2].split(", ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base", Model(BASE, "vit", *SIZE)),
        ("large", Model(vit_large_patch16_config, "vit", *SIZE)),
        ("embed_dim=5", Model(ViTConfig(embed_dim=5), "vit", *SIZE)),
        (
            " base , height = 32,in_channels=1 , spec=vit-cls",
            Model(BASE, "vit-cls", 1, 32, 224),
        ),
        (
            "large,num_layers=0",
            Model(dataclasses.replace(vit_large_patch16_config, num_layers=0), "vit", *SIZE),
        ),
    ],
)
def test_a_text_describes_a_model(text, expected):
    assert parse_config(text) == expected


@given(case=any_case)
@settings(max_examples=30)
def test_a_model_written_as_text_or_as_a_file_is_read_back(case, tmp_path_factory):
    values = dataclasses.asdict(case.config) | case.size | {"spec": case.spec}
    assert parse_config(",".join(f"{k}={v}" for k, v in values.items())) == model_of(case)
    path = tmp_path_factory.getbasetemp() / "model.json"
    path.write_text(json.dumps(values))
    assert parse_config(str(path)) == model_of(case)


def test_a_file_s_absent_fields_are_those_of_base(tmp_path):
    path = tmp_path / "model.json"
    path.write_text('{"height": 32, "num_classes": 7}')
    assert parse_config(str(path)) == Model(ViTConfig(num_classes=7), "vit", 3, 32, 224)


def test_a_directory_called_like_a_preset_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    assert parse_config("base").config == BASE


@pytest.mark.parametrize("text", ["embed_dimm=5", "base,embedDim=5,embed_dimm=3"])
def test_an_unknown_field_is_told_with_the_known_ones(text):
    with pytest.raises(ValueError, match=r"'embed_dimm' \(did you mean embed_dim\?\)") as error:
        parse_config(text)
    known = {field.name for field in dataclasses.fields(ViTConfig)}
    assert set(fields_of(str(error.value))) == known | {"in_channels", "height", "width", "spec"}


@pytest.mark.parametrize(
    "text",
    ["", ",", "huge", "base,base", "large,", "=3", "stride=", "stride", "a" * 5000, "\0", "b\na"],
)
def test_what_is_no_configuration_is_refused_with_what_would_be_one(text):
    with pytest.raises(ValueError, match="expected base or large, key=value,key=value or a JSON"):
        parse_config(text)


def test_a_key_given_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="stride is given twice"):
        parse_config("stride=3,stride=4")
    path = tmp_path / "model.json"
    path.write_text('{"stride": 3, "stride": 3}')
    with pytest.raises(ValueError, match="stride is given twice"):
        parse_config(str(path))


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("patch_h=0,num_classes=0,in_channels=0", {"patchH_ne0", "numClasses_ne0", "h_inC"}),
        ("patch_h=300", {"h_tok"}),
        ("patch_h=300,in_channels=0", {"h_tok", "h_inC"}),
        ("stride=-1,width=wide,embed_dim=1.5,head_count=" + "9" * 5000, {"nat"}),
    ],
)
def test_every_broken_rule_is_listed(text, labels):
    with pytest.raises(NotWellFormed) as error:
        parse_config(text)
    assert {violation.split(":")[0] for violation in error.value.violations} == labels
    if labels == {"nat"}:
        assert len(error.value.violations) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not a JSON file"),
        (b"\xff\xfe", "not a JSON file"),
        (b"[1]", "expected an object of fields, got list"),
        (b"[" * 200_000, "not a JSON file"),
        (b" " * 1_000_001, "more than 1,000,000 bytes"),
        (b'{"spec": ["vit"]}', "expected one of vit, vit-cls"),
        (b'{"config": {}}', "unknown field 'config'"),
        (b'{"stride": 1.0, "padding": null}', r"(?s)nat: stride.*nat: padding"),
    ],
)
def test_a_bad_file_is_refused(content, message, tmp_path):
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        parse_config(str(path))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        parse_config(str(tmp_path / "model.json"))
    with pytest.raises(ValueError, match="not a file"):
        parse_config(str(tmp_path))


# ---- of the practical family -------------------------------------------------------------------


def test_a_preset_with_changes_is_a_configuration():
    config = parse_practical_config("hf-vit-base, num_layers=2,layer_norm_eps=1e-6,qkv_bias=False")
    assert config == replace(
        PRESETS["hf-vit-base"], num_layers=2, layer_norm_eps=1e-6, qkv_bias=False
    )
    assert is_practical("d2l,num_layers=1")
    assert not is_practical("base")
    assert not is_practical("embed_dim=8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf-vit-base,layers=2", "did you mean num_layers"),
        ("hf-vit-base,num_layers", "key=value"),
        ("hf-vit-base,num_layers=1,num_layers=2", "twice"),
        ("hf-vit-base,num_layers=two", "num_layers"),
        ("hf-vit-base,qkv_bias=perhaps", "qkv_bias"),
        ("hf-vit-base,head_count=7", "headCount_dvd_embedDim"),
        ("hf-vit-base,dropout=0.1", "unknown field 'dropout'"),
        ("dinov2-small", "num_classes=10"),
        ("dinov2-giant", "SwiGLU"),
    ],
)
def test_what_is_no_practical_configuration_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_practical_config(text)


# ---- and back ----------------------------------------------------------------------------------


@st.composite
def any_practical(draw):
    """Every field free, and any of them that of a preset."""
    config = draw(
        vision_transformer_configs(
            layer_norm_eps=st.floats(0, exclude_min=True, allow_infinity=False),
            mask_token=st.booleans(),
            decoder_stride=st.integers(0, 3),
        )
    )
    if config.cls_token:
        config = replace(config, pooler_dim=draw(st.integers(0, 3)))
    one = draw(st.sampled_from(list(PRESETS.values())))
    config = replace(config, dropout=one.dropout)
    shared = draw(st.sets(st.sampled_from([field.name for field in dataclasses.fields(config)])))
    mixed = replace(config, **{name: getattr(one, name) for name in shared})
    return config if mixed.violations() or not mixed.num_classes else mixed


@st.composite
def any_lean(draw):
    """Every field free, and any of them that of a preset."""
    config, one = draw(configs(degenerate=True)), draw(st.sampled_from([*LEAN_PRESETS.values()]))
    config = replace(config, patch_h=draw(st.sampled_from([config.patch_h, 225, 2**31 - 1])))
    shared = draw(st.sets(st.sampled_from([field.name for field in dataclasses.fields(config)])))
    return replace(config, **{name: getattr(one, name) for name in shared})


def fewest_changes(config, presets):
    return min(
        sum(value != vars(one)[key] for key, value in vars(config).items()) for one in presets
    )


@given(config=any_lean() | any_practical())
@settings(max_examples=300)
def test_a_configuration_is_read_back_from_its_argument(config):
    text = config_argument(config)
    again = read_config(text)
    assert again == config
    assert type(again) is type(config)


@given(config=any_lean() | any_practical())
def test_an_argument_has_as_few_changes_as_any_preset_needs(config):
    lean = isinstance(config, ViTConfig)
    text = config_argument(config).removesuffix(",spec=vit-cls")
    presets = LEAN_PRESETS if lean else PRESETS
    usable = [one for one in presets.values() if lean or one.dropout == config.dropout]
    assert text.count("=") == fewest_changes(config, usable)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (ViTConfig(), "base"),
        (vit_large_patch16_config, "large"),
        (replace(vit_large_patch16_config, num_classes=10), "large,num_classes=10"),
        (ViTConfig(embed_dim=6, head_count=2), "embed_dim=6,head_count=2"),
        (ViTConfig(stride=0), "stride=0,spec=vit-cls"),
        (PRESETS["d2l"], "d2l"),
        (replace(PRESETS["dinov2-base"], num_classes=10), "dinov2-base,num_classes=10"),
        (
            replace(PRESETS["hf-vit-large"], layer_norm_eps=np.float64(0.1), layer_scale=True),
            "hf-vit-large,layer_norm_eps=0.1,layer_scale=true",
        ),
    ],
)
def test_an_argument_says_what_differs_from_the_nearest_preset(config, text):
    assert config_argument(config) == text
    assert read_config(text) == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            VisionTransformerConfig(dropout=DropoutRates(embedding=0.25)),
            "^dropout: it is no preset's",
        ),
        (d2l_config(96, 16, 512, 2048, 8, 2, 0.2, 0.1), "^dropout: it is no preset's"),
        (VisionTransformerConfig(layer_norm_eps=2**53 + 1), "^layer_norm_eps: it is no preset's"),
        (VisionTransformerConfig(head_count=7), "headCount_dvd_embedDim"),
        (PRESETS["dinov2-small"], "add num_classes=10"),
        (ViTConfig(num_classes=0), "numClasses_ne0"),
    ],
)
def test_what_no_text_describes_is_refused_with_the_field(config, message):
    with pytest.raises(ValueError, match=message):
        config_argument(config)
