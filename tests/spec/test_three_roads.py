"""Hand-written backward, hand-written JVP, complex step: one derivative, by three roads.

And one forward by two: the specification and plain loops. From embed_dim 3 on, because a layer
normalisation of two entries is nearly a sign function: its derivative is what is left after a
cancellation of six digits. `test_rigour.py` grades those, against real balls.
"""

import pytest
from hypothesis import given, settings

from support import roads
from vitspec import ViTConfig
from vitspec.testing.families import Case
from vitspec.testing.strategies import cases

small = cases(min_embed_dim=3, max_layers=2, max_extent=4)


@given(cases(min_embed_dim=3))
@settings(max_examples=60)
def test_forward_equals_an_independent_forward_by_plain_loops(case):
    roads.forward_is_the_loops(case)


@given(small)
@settings(max_examples=12)
def test_every_entry_of_the_backward_is_the_complex_step(case):
    roads.backward_is_the_complex_step(case)


@given(cases(min_embed_dim=3))
@settings(max_examples=100)
def test_backward_along_a_random_direction_is_the_complex_step(case):
    roads.backward_along_a_direction_is_the_complex_step(case)


@given(cases(min_embed_dim=3))
@settings(max_examples=100)
def test_jvp_along_a_random_direction_is_the_complex_step(case):
    roads.jvp_is_the_complex_step(case)


@pytest.mark.parametrize("spec", ["vit", "vit-cls"])
def test_a_deep_and_wide_model_along_a_random_direction(spec):
    config = ViTConfig(8, 6, 5, 2, embed_dim=64, hidden_dim=96, head_count=5, num_layers=6)
    case = Case(spec, config, in_channels=3, height=40, width=52, seed=1)
    roads.backward_along_a_direction_is_the_complex_step(case)
    roads.jvp_is_the_complex_step(case)
    roads.dot_identity(case)


@given(cases(min_embed_dim=1))
@settings(max_examples=150)
def test_jvp_and_backward_are_adjoint(case):
    roads.dot_identity(case)
