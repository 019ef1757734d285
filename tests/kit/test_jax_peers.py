"""The peers that are written after other projects' sources, in Flax: the specification's function.

Each at a configuration that it has, with nothing square unless it must be. What departs in the
originals departs here, and by nothing else: so the adapters are right.
"""

import numpy as np
import pytest

pytest.importorskip("flax")

from support.fresh import fresh_rng
from support.trials import check_forward, check_vjp, trial_at
from vitspec import VisionTransformerConfig
from vitspec.testing.adapters.peers import big_vision, bonsai, jimm, textbooks
from vitspec.testing.adapters.peers.jax_table import JAX_PEERS
from vitspec.testing.adapters.peers.registry import PEERS
from vitspec.testing.adapters.peers.reports import expected
from vitspec.testing.declared import Deviation
from vitspec.testing.families import VisionTransformerCase
from vitspec.testing.report.report import Report
from vitspec.testing.results import Place, Result
from vitspec.testing.tolerance import grade

CONFIG = VisionTransformerConfig(
    image_h=9, image_w=4, in_channels=2, patch_h=3, patch_w=2, embed_dim=12, hidden_dim=10,
    head_count=3, num_layers=1, num_classes=5,
)  # fmt: skip

AT = Place("case", 0)

MENDED = {
    "jimm": jimm.implementation(epsilon_in_blocks=jimm.EPSILON),
    "bonsai": bonsai.implementation(exact=True),
}
"""As they would be without what departs."""

CONFORMING = MENDED | {
    "nnx-tutorial": textbooks.nnx_tutorial(),
    "d2l": textbooks.d2l(),
    "big-vision": big_vision.implementation(),
}


def trial_of(implementation, values="normal"):
    """A fresh case at the nearest configuration that the implementation has."""
    config = implementation.closest(CONFIG)
    assert implementation.supports(config) is None
    seed = int(fresh_rng().integers(2**31))
    case = VisionTransformerCase(config, seed, values, batch=2)
    return trial_at(implementation, case, "float32")


@pytest.mark.parametrize("name", CONFORMING)
def test_logits_and_every_gradient_are_the_specifications(name):
    trial = trial_of(CONFORMING[name])
    for result in (check_forward(trial), check_vjp(trial)):
        assert result.status == "passed", result


@pytest.mark.parametrize(
    ("published", "name", "values"),
    [(jimm.implementation(), "jimm", "tiny"), (bonsai.implementation(), "bonsai", "normal")],
    ids=["jimm", "bonsai"],
)
def test_what_is_published_departs(published, name, values):
    """By the epsilon of jimm's blocks, and by the form of bonsai's GELU."""
    trial = trial_of(published, values)
    point, truth = trial.point, trial.truth["logits"]
    params = {key: array.astype(np.float32) for key, array in point.params.items()}
    arguments = point.config, params, point.images.astype(np.float32)
    grades = [
        grade("logits", one.forward(*arguments)["logits"], truth, trial.prices["logits"])
        for one in (published, MENDED[name])
    ]
    assert [one.conforms for one in grades] == [False, True]


def test_what_fails_in_one_precision_only_is_not_taken_for_mended_in_another():
    declared = (Deviation(("forward", "vjp"), "precision", "digits"),)
    reports = [
        Report("d2l", "d2l", "1", "vision-transformer", "", results=[Result("vjp", AT, status)])
        for status in ("failed", "passed")
    ]
    assert [expected(declared, one, reports) for one in reports] == [declared, ()]
    assert expected(declared, reports[1], reports[1:]) == declared  # mended, as far as it is run


@pytest.mark.parametrize("peer", JAX_PEERS, ids=[peer.name for peer in JAX_PEERS])
def test_a_peer_says_what_it_is(peer):
    assert PEERS[peer.name] is peer
    assert peer.what
    assert all(deviation.link for deviation in peer.deviations if deviation.kind == "bug")
