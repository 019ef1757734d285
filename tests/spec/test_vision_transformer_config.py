"""The practical family's configuration: its rules, its presets, and what it refuses."""

import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from vitspec import NotWellFormed
from vitspec.models.vision_transformer import VisionTransformer
from vitspec.models.vision_transformer_parameters import parameter_shapes
from vitspec.presets import PRESETS, REFUSED, preset
from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig

BROKEN = {
    "imageH_pos": {"image_h": 0},
    "imageW_pos": {"image_w": 0},
    "inChannels_pos": {"in_channels": 0},
    "patchH_pos": {"patch_h": 0},
    "patchW_pos": {"patch_w": 0},
    "embedDim_pos": {"embed_dim": 0},
    "hiddenDim_pos": {"hidden_dim": 0},
    "headCount_pos": {"head_count": 0},
    "headCount_dvd_embedDim": {"head_count": 7},
    "patch_le_image": {"patch_w": 225},
    "activation_known": {"activation": "gelu_new"},
    "pool_known": {"pool": "max"},
    "layerNormEps_pos": {"layer_norm_eps": 0.0},
    "cls_needed": {"cls_token": False},
    "pool_needed": {"pool": "none"},
    "dropout_rate": {"dropout": DropoutRates(activation=1.0)},
}
"""What breaks each rule, and no other."""
IMPLIED = {"imageH_pos": {"patch_le_image"}, "imageW_pos": {"patch_le_image"}}
"""No patch fits into an image without pixels."""


def labels(config):
    return [violation.split(":")[0] for violation in config.violations()]


@pytest.mark.parametrize("label", BROKEN)
def test_each_rule_is_broken_by_itself(label):
    found = labels(VisionTransformerConfig(**BROKEN[label]))
    assert found.count(label) == 1
    assert set(found) == {label} | IMPLIED.get(label, set())


def test_all_broken_rules_are_listed_at_once_and_building_refuses_them():
    everything = {name: value for changes in BROKEN.values() for name, value in changes.items()}
    everything |= {"head_count": 0, "patch_w": 0, "pool": "max", "pooler_dim": 3, "patch_h": 9}
    config = VisionTransformerConfig(**everything)
    # The heads divide the width if there are none of them, and a classifier has some pool.
    assert labels(config) == [
        label
        for label in BROKEN
        if label not in ("patchH_pos", "headCount_dvd_embedDim", "pool_needed")
    ]
    for build in (
        lambda: VisionTransformer.init(config, rng=np.random.default_rng(0)),
        lambda: VisionTransformer.from_flat(config, {}),
        config.check_well_formed,
    ):
        with pytest.raises(NotWellFormed) as raised:
            build()
        assert raised.value.violations == config.violations()


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"layer_norm_eps": value}, "layerNormEps_pos")
        for value in (-1e-6, math.nan, math.inf, "1e-6", None, True)
    ]
    + [({"activation": value}, "activation_known") for value in (None, "GELU", ["gelu"])]
    + [({"pool": value, "num_classes": 0}, "pool_known") for value in (None, "clsx", 3, ["cls"])]
    + [
        ({"dropout": DropoutRates(attention=value)}, "dropout_rate")
        for value in (-0.1, 1, math.nan, "0.1", None, False)
    ]
    + [
        ({"cls_token": False, "pool": "mean", "pooler_dim": 2}, "cls_needed"),
        ({"cls_token": False, "pool": "cls_mean"}, "cls_needed"),
        ({"patch_h": 225}, "patch_le_image"),
        ({"head_count": 5, "embed_dim": 4}, "headCount_dvd_embedDim"),
    ],
)
def test_no_other_value_slips_through(changes, label):
    assert labels(VisionTransformerConfig(**changes)) == [label]


def test_every_bad_rate_is_named():
    config = VisionTransformerConfig(dropout=DropoutRates(embedding=2, output=-1))
    assert [v.split()[1] for v in config.violations()] == ["dropout.embedding", "dropout.output"]


@pytest.mark.parametrize("name", ["image_h", "embed_dim", "num_classes", "decoder_stride"])
@pytest.mark.parametrize("value", [-1, 1.0, "3", None, True, 2**31])
def test_sizes_are_natural_numbers(name, value):
    with pytest.raises(NotWellFormed, match=f"nat: {name} must be an integer from 0"):
        VisionTransformerConfig(**{name: value})


@pytest.mark.parametrize(
    "name", ["qkv_bias", "output_bias", "layer_scale", "cls_token", "mask_token"]
)
@pytest.mark.parametrize("value", [1, None, "no"])
def test_switches_are_booleans(name, value):
    with pytest.raises(NotWellFormed, match=f"bool: {name} must be True or False"):
        VisionTransformerConfig(**{name: value})


def test_dropout_is_a_record_of_rates():
    with pytest.raises(NotWellFormed, match="dropout: must be DropoutRates, got float"):
        VisionTransformerConfig(dropout=0.1)


def test_all_that_is_no_value_is_listed_at_once():
    with pytest.raises(NotWellFormed) as raised:
        VisionTransformerConfig(image_h=-1, embed_dim=1.5, qkv_bias=1, dropout=None)
    assert [v.split(":")[0] for v in raised.value.violations] == ["nat", "nat", "bool", "dropout"]


def test_configurations_are_values():
    a, b = VisionTransformerConfig(image_h=np.int64(32)), VisionTransformerConfig(image_h=32)
    assert a == b
    assert hash(a) == hash(b)
    assert type(a.image_h) is int
    with pytest.raises(FrozenInstanceError):
        a.image_h = 3


def test_sizes_that_follow():
    config = VisionTransformerConfig(image_h=33, image_w=50, patch_h=8, patch_w=16, pool="cls_mean")
    assert config.grid == (4, 3)
    assert config.grid_of(17, 31) == (2, 1)
    assert config.token_count == 13
    assert config.head_dim == 64
    assert config.pooled_dim == 2 * 768
    assert replace(config, cls_token=False).token_count == 12


# ---- presets -------------------------------------------------------------------------------------


def block(D, F, biases=4, scales=0):
    """Weights of the attention and of the feed-forward, their biases, two norms, scales."""
    return 4 * D * D + biases * D + 2 * D * F + F + D + 4 * D + scales * D


def vit(D, F, layers, patch, tokens, channels=3, **options):
    """Patch embedding, blocks, final norm, CLS token, positions."""
    return (
        channels * patch**2 * D + D + layers * block(D, F, **options) + 2 * D + D + (tokens + 1) * D
    )


def head(D, K):
    return D * K + K


PUBLISHED = {
    # google/vit-base-patch16-224 and facebook/deit-base-patch16-224, torchvision's vit_b_16
    "hf-vit-base": 86_567_656,
    "deit-base": 86_567_656,
    "jimm-vit-base": 86_567_656,
    # torchvision's vit_l_16
    "hf-vit-large": 304_326_632,
    # timm's deit_tiny_patch16_224 and deit_small_patch16_224
    "deit-tiny": 5_717_416,
    "deit-small": 22_050_664,
    # facebook/dinov2-*, with their mask token
    "dinov2-small": 22_056_576,
    "dinov2-base": 86_580_480,
    "dinov2-large": 304_368_640,
    # torchvision's vit_h_14 without its head, and a pooler
    "hf-vit-huge": 632_045_800 - head(1280, 1000) + head(1280, 1280),
}
FORMULAS = {
    "hf-vit-base": vit(768, 3072, 12, 16, 196) + head(768, 1000),
    "hf-vit-large": vit(1024, 4096, 24, 16, 196) + head(1024, 1000),
    "hf-vit-huge": vit(1280, 5120, 32, 14, 256) + head(1280, 1280),
    "hf-vit-base-mim": vit(768, 3072, 12, 16, 196) + 768 + head(768, 3 * 16 * 16),
    "dinov2-small": vit(384, 1536, 12, 14, 37**2, scales=2) + 384,
    "dinov2-base": vit(768, 3072, 12, 14, 37**2, scales=2) + 768,
    "dinov2-large": vit(1024, 4096, 24, 14, 37**2, scales=2) + 1024,
    "deit-tiny": vit(192, 768, 12, 16, 196) + head(192, 1000),
    "deit-small": vit(384, 1536, 12, 16, 196) + head(384, 1000),
    "deit-base": vit(768, 3072, 12, 16, 196) + head(768, 1000),
    "jimm-vit-base": vit(768, 3072, 12, 16, 196) + head(768, 1000),
    "nnx-tutorial": vit(768, 3072, 12, 16, 195) - 768 + head(768, 1000),
    "d2l": vit(512, 2048, 2, 16, 36, channels=1, biases=0) + head(512, 10),
    "d2l-pytorch": vit(512, 2048, 2, 16, 36, channels=1, biases=0) + head(512, 10),
}


def count(config):
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_well_formed_and_has_the_parameters_that_its_formula_counts(name):
    assert preset(name).violations() == ()
    assert count(preset(name)) == FORMULAS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_as_many_parameters_as_are_published(name):
    assert count(preset(name)) == PUBLISHED[name]


def test_a_model_has_the_shapes_that_are_counted():
    config = VisionTransformerConfig(
        image_h=7, image_w=9, in_channels=2, patch_h=3, patch_w=2, embed_dim=6, hidden_dim=5,
        head_count=3, num_layers=2, num_classes=4, layer_scale=True, mask_token=True,
        pool="cls_mean", pooler_dim=3, decoder_stride=2,
    )  # fmt: skip
    flat = VisionTransformer.init(config, rng=np.random.default_rng(0)).to_flat()
    assert {n: a.shape for n, a in flat.items()} == parameter_shapes(config)
    assert list(flat) == list(parameter_shapes(config))
    everything = np.concatenate([a.ravel() for a in flat.values()])
    assert len(set(everything)) == everything.size  # in fresh parameters nothing is alike


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_specified_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=f"preset '{name}': .*SwiGLU.* not specified"):
        preset(name)
    assert name == "dinov2-giant"
    assert name not in PRESETS


def test_an_unknown_preset_is_told_the_known_ones():
    with pytest.raises(ValueError, match=r"expected one of hf-vit-base, .*d2l"):
        preset("vit-b")
