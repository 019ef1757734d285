"""The tests can fail: every named deviation of the catalogue is seen by a property of the suite.

The properties are the bodies of the tests in `test_three_roads.py` and of the masked-attention test
below, on cases in which nothing is square, nothing divides, and padding, overlap and several heads,
layers and channels are present.
"""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from support import naive, roads
from support.compare import assert_close
from vitspec import InvalidArray, ViTConfig
from vitspec.layers.attention import scaled_dot_product_attention
from vitspec.testing.cases import Case
from vitspec.testing.catalogue import CATALOGUE, Deviation, deviation, planted

CONFIG = ViTConfig(
    patch_h=2, patch_w=3, stride=2, padding=1,
    embed_dim=5, hidden_dim=4, head_count=2, num_layers=2, num_classes=3,
)  # fmt: skip
CASES = [Case(spec, CONFIG, 2, 4, 6, seed=7) for spec in ("vit", "vit-cls")]


def masked_attention_is_the_loops():
    rng = np.random.default_rng(11)
    q, k, v = (rng.standard_normal((n, d)) for n, d in ((4, 3), (5, 3), (5, 2)))
    mask = rng.random((4, 5)) < 0.5
    mask[2], mask[3, 0] = False, True
    truth = np.array(naive.attention(q.tolist(), k.tolist(), v.tolist(), mask))
    assert_close(scaled_dot_product_attention(q, k, v, mask), truth, 1e-14)


def every_property():
    """The properties, cheap ones first, each with the case it runs on."""
    properties = [
        roads.forward_is_the_loops,
        roads.dot_identity,
        roads.jvp_is_the_complex_step,
        roads.backward_along_a_direction_is_the_complex_step,
        roads.backward_is_the_complex_step,
    ]
    yield masked_attention_is_the_loops
    yield from (lambda p=p, c=c: p(c) for p in properties for c in CASES)


def some_property_fails():
    """Whether a property fails, or the specification refuses an array that the mistake made.

    Any other exception would be a mistake in the catalogue, and passes through.
    """
    for check in every_property():
        try:
            check()
        except (AssertionError, InvalidArray, TypeCheckError):
            return True
    return False


def test_the_specification_itself_passes():
    assert not some_property_fails()


@pytest.mark.parametrize("mistake", CATALOGUE, ids=lambda d: d.name)
def test_a_planted_mistake_is_seen(mistake):
    with planted(mistake):
        assert some_property_fails(), f"no property sees that {mistake.description}"


def test_a_planted_mistake_is_gone_afterwards():
    image = CASES[0].image()
    before = CASES[0].model().forward(image)
    with planted(deviation("layer-norm-eps-1e-5")):
        assert not np.array_equal(CASES[0].model().forward(image), before)
    assert np.array_equal(CASES[0].model().forward(image), before)


def test_names_are_unique_and_descriptions_are_there():
    assert len({d.name for d in CATALOGUE}) == len(CATALOGUE) >= 40
    assert all(d.description and d.old != d.new for d in CATALOGUE)


def test_a_stale_patch_is_refused():
    stale = Deviation("stale", "both", "layers.linear:linear", "not in the source", "", "")
    with pytest.raises(LookupError, match="out of date"), planted(stale):
        pass


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(KeyError, match="attention-scale-missing"):
        deviation("nope")
