"""The fast path's cases: few shapes, each compiled once, at which many values are drawn."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping
import pytest

from vitspec import ViTConfig
from vitspec.testing.families import Case

# Must come before the first use of a device. One device is as before; the others are for meshes.
jax.config.update("jax_num_cpu_devices", 8)


def case(spec, channels, height, width, **fields):
    """A case whose config has nothing square and nothing equal unless `fields` says so."""
    defaults = {
        "patch_h": 3,
        "patch_w": 2,
        "stride": 2,
        "padding": 0,
        "embed_dim": 6,
        "hidden_dim": 7,
        "head_count": 2,
        "num_layers": 2,
        "num_classes": 5,
    }
    return Case(spec, ViTConfig(**defaults | fields), channels, height, width, seed=0)


CASES = {
    "several heads, layers and channels": case(
        "vit", 3, 7, 6, embed_dim=12, head_count=3, num_layers=3
    ),
    "the same with CLS": case("vit-cls", 3, 7, 6, embed_dim=12, head_count=3, num_layers=3),
    "patches tile the image": case("vit-cls", 2, 4, 6, patch_h=2, patch_w=2),
    "padding": case("vit", 2, 4, 5, padding=2),
    "windows wholly in the padding": case("vit-cls", 1, 3, 4, patch_h=1, patch_w=2, padding=2),
    "one channel, overlap and padding": case("vit", 1, 6, 4, patch_h=4, padding=1, embed_dim=12),
    "stride larger than the patch": case("vit", 2, 9, 8, stride=4),
    "stride smaller than the patch": case("vit-cls", 2, 5, 4, stride=1),
    "heads do not divide embed_dim": case("vit", 1, 5, 6, embed_dim=8, head_count=3),
    "more heads than embed_dim": case("vit-cls", 2, 5, 6, embed_dim=4, head_count=5),
    "no layers": case("vit", 2, 5, 6, num_layers=0),
    "no layers with CLS": case("vit-cls", 2, 5, 6, num_layers=0),
    "no token but CLS: the patch does not fit": case("vit-cls", 2, 2, 6),
    "no token but CLS: stride 0": case("vit-cls", 2, 5, 6, stride=0, num_layers=1),
    "one token": case("vit", 2, 3, 2, stride=3),
}
"""Between them, every row of the edge-case table that a whole model can reach."""


@pytest.fixture(params=CASES.values(), ids=CASES.keys(), scope="session")
def any_case(request):
    """Each of `CASES` in turn."""
    return request.param


@pytest.fixture(scope="session")
def cases():
    """All of `CASES`, by name."""
    return CASES


@pytest.fixture
def without_type_checks(monkeypatch):
    """As in production, where nothing but vitfast's own checks stands between a user and JAX."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
