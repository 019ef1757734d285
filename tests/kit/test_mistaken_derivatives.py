"""The derivatives of every mistaken forward can be had by the complex step.

So they need not be written down by hand: the complex step of a planted forward is what an
implementation has that is differentiated by its framework.
"""

from dataclasses import replace

import numpy as np
import pytest

from vitspec.testing.catalogue import Deviation, deviations_of, planted
from vitspec.testing.catalogue.functions import MLP
from vitspec.testing.families import FAMILIES
from vitspec.testing.families.practical import NAME, TELLING_CASES
from vitspec.testing.reference import Point, evaluate_spec

STEP = 1e-100
"""Of the complex step."""
NEARBY = 1e-7
"""Of the central differences, of the fourth order: rows of small variance bend within 1e-4."""
AGREE = 1e-6

FORWARD = [
    pytest.param(FAMILIES[spec], d, id=f"{spec}-{d.name}")
    for spec in FAMILIES
    for d in deviations_of(spec, other_sizes=True)
    if d.kind in ("forward", "both") and d.visible_in_model
]


def places(family):
    """Where a diagnosis looks, and the activation that is not there."""
    yield from family.telling_cases
    if family.name == NAME:
        yield family.telling_interpolated_case()
        config = replace(TELLING_CASES[-1].config, activation="quick_gelu")
        yield replace(TELLING_CASES[-1], config=config)


def logits(case, t=0.0):
    """The logits, t along the case's tangent of parameters and image."""
    model, image = case.model(), case.image()
    call = FAMILIES[case.spec].call(case.config, image.shape)
    if t:
        model = model.map(lambda leaf, d: leaf + t * d, case.tangent())
        image = image + t * case.d_image()
    return model.trace(image, **call).logits


def check_complex_step(mistake, case):
    with planted(mistake):
        value, bent = logits(case), logits(case, STEP * 1j)
        steps = {t: logits(case, t * NEARBY) for t in (-2, -1, 1, 2)}
    near = (8 * (steps[1] - steps[-1]) - (steps[2] - steps[-2])) / (12 * NEARBY)
    assert bent.dtype == np.complex128
    assert np.abs(bent.real - value).max() <= 1e-13 * np.abs(value).max(), "the real part has moved"
    assert np.abs(bent.imag / STEP - near).max() <= AGREE * np.abs(near).max()


@pytest.mark.parametrize(("family", "mistake"), FORWARD)
def test_the_complex_step_differentiates_a_mistaken_forward(family, mistake):
    shown = 0
    for case in places(family):
        right = logits(case)
        with planted(mistake):
            moved = not np.array_equal(logits(case), right)
        if moved:
            check_complex_step(mistake, case)
            shown += 1
    assert shown, "at no place are the logits others"


def test_a_mistake_that_the_complex_step_cannot_differentiate_is_noticed():
    unsafe = Deviation(
        "unsafe", "forward", MLP, "ACTIVATIONS[mlp.activation].function(hidden)",
        "abs(hidden).astype(hidden.dtype)", "the activation is |x|, which has no imaginary part",
    )  # fmt: skip
    with pytest.raises(AssertionError):
        check_complex_step(unsafe, TELLING_CASES[0])


@pytest.mark.parametrize("spec", FAMILIES)
def test_every_mistake_keeps_the_scalar_type(spec):
    point = Point.of(FAMILIES[spec].telling_cases[0])
    for mistake in deviations_of(spec):
        if mistake.visible_in_model:
            with planted(mistake):
                found = evaluate_spec(point, np.float32)
            assert {a.dtype.name for a in found.values()} == {"float32"}, mistake.name
