"""The verdict: rounding is never a departure, and what stays at new points always is."""

import re
from dataclasses import replace

import numpy as np
import pytest

from support.trials import trial_at
from vitspec import ViTConfig
from vitspec.testing import SpecImplementation, confirmation
from vitspec.testing.catalogue import Patch, planted
from vitspec.testing.confirmation import FLUCTUATION, LOOKS, PERSISTENT
from vitspec.testing.families import Case
from vitspec.testing.noise import SUSPICION, Noise, first_look
from vitspec.testing.precision import PRECISIONS
from vitspec.testing.reference import ALGORITHMS, noise_of_spec
from vitspec.testing.run import check
from vitspec.testing.variants import VARIANTS, Variant

FLOAT32 = PRECISIONS["float32"]
CONFIG = ViTConfig(
    patch_h=4, patch_w=4, stride=4, padding=0,
    embed_dim=24, hidden_dim=48, head_count=3, num_layers=1, num_classes=10,
)  # fmt: skip
CASE = Case("vit", CONFIG, in_channels=3, height=8, width=12, seed=0, batch=2)
ONE_TOKEN = replace(CASE, height=4, width=4)
BENT = "encoder.layers.0.ffn.w1"


class Bent(SpecImplementation):
    """The specification with one gradient changed, by a function of it and the call's number."""

    def __init__(self, bend, dtype="float32"):
        super().__init__("vit", (dtype,) if PRECISIONS[dtype].own_type else dtype)
        self.bend, self.calls = bend, 0

    def vjp(self, *arguments):
        d_params, d_images = super().vjp(*arguments)
        self.calls += 1
        return d_params | {BENT: self.bend(d_params[BENT], self.calls)}, d_images


def bent_entry(by):
    def bend(gradient, _):
        gradient = gradient.copy()
        index = np.argsort(np.abs(gradient), axis=None)[gradient.size // 2]
        gradient.reshape(-1)[index] *= 1 + by
        return gradient

    return bend


def noise(runs, truth, precision=FLOAT32):
    return Noise.of(truth, [truth + run for run in runs], ALGORITHMS, precision)


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


# ---- the first look ----------------------------------------------------------------------------


def test_z_is_the_error_against_the_algorithm_where_the_noise_is_largest():
    truth = drawn(3, 5)
    runs = [0 * truth + (1e-6 if i % ALGORITHMS == 2 else 1e-7) for i in range(8)]
    error = np.zeros((3, 5))
    error[1, 2] = 3e-6
    look, suspicions = first_look("x", truth + error, noise(runs, truth))
    assert SUSPICION * look.ratio == pytest.approx(3, rel=1e-6)
    assert look.metric == "entry"
    assert not suspicions


def test_where_nothing_errs_nothing_may_differ_but_by_half_a_rounding():
    truth = drawn(4, 4)
    exact = noise([0 * truth] * 8, truth)
    signs = np.where(np.arange(16) % 2, 1, -1).reshape(4, 4)
    assert first_look("x", truth * (1 + signs * FLOAT32.u), exact)[0].conforms
    assert not first_look("x", truth * (1 + 5 * signs * FLOAT32.u), exact)[0].conforms
    assert first_look("x", 0 * truth, noise([0 * truth] * 8, 0 * truth))[0].conforms
    assert not first_look("x", 0 * truth + 1e-30, noise([0 * truth] * 8, 0 * truth))[0].conforms


def test_what_hardware_flushes_to_zero_is_no_departure():
    truth = np.full((2, 3), 1e-42)
    assert first_look("x", 0 * truth, noise([0 * truth] * 8, truth))[0].conforms


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stands_out_without_a_direction(value):
    truth = drawn(3, 4)
    found = truth.copy()
    found[2, 1] = value
    look, (suspicion,) = first_look("x", found, noise([1e-3 * truth] * 8, truth))
    assert look.ratio == np.inf
    assert suspicion.direction is None


def test_a_scale_shows_where_no_entry_does():
    truth, u = drawn(40, 50), FLOAT32.u
    runs = [3 * u * truth * drawn(40, 50, seed=i + 1) for i in range(8)]
    look, suspicions = first_look("x", truth * (1 + 1.5 * u), noise(runs, truth))
    assert look.metric == "scale"
    assert [one.grade.metric for one in suspicions] == ["scale"]


def test_verdicts_do_not_depend_on_the_scale():
    truth = drawn(4, 5)
    runs = [1e-7 * drawn(4, 5, seed=i) for i in range(8)]
    value = truth + 3e-7 * drawn(4, 5, seed=99)
    ratios = [
        first_look("x", k * value, noise([k * run for run in runs], k * truth))[0].ratio
        for k in (1e-25, 1.0, 1e25)
    ]
    assert ratios == pytest.approx([ratios[0]] * 3, rel=1e-6)


# ---- confirmation --------------------------------------------------------------------------------


def test_an_error_that_stays_is_confirmed():
    """2.2e-6 / 3 of a whole tensor and 2.4e-5 / 3 of an entry: three times what 0.5 saw."""
    for bend in (lambda g, _: g * np.float32(1 + 7.3e-7), bent_entry(8e-6)):
        grade = trial_at(Bent(bend), CASE).grades[BENT]
        assert grade.confirmation.outcome == "confirmed"
        assert grade.confirmation.points in LOOKS
        assert abs(grade.confirmation.mean) > PERSISTENT
        assert not grade.conforms


def test_an_error_that_does_not_stay_is_cleared():
    """At one point in a great many, correct code errs by more than 4 standard deviations."""
    grade = trial_at(Bent(lambda g, call: g * np.float32(1 + (call == 1) * 1e-6)), CASE).grades[
        BENT
    ]
    assert grade.ratio > 1
    assert grade.confirmation.outcome == "cleared"
    assert grade.confirmation.points == LOOKS[1]
    assert grade.conforms


def test_rounding_that_is_drawn_anew_is_cleared():
    """An error of a random sign averages out, one of half its size with one sign does not."""
    rng = np.random.default_rng(5)
    either_way = Bent(lambda g, _: g * np.float32(1 + rng.choice([-1, 1]) * 8e-7))
    grade = trial_at(either_way, CASE).grades[BENT]
    assert grade.confirmation.outcome == "cleared"


def test_a_gross_error_needs_no_new_point():
    trial = trial_at(Bent(lambda g, _: 2 * g), CASE)
    assert trial.grades[BENT].confirmation.points == 0
    assert not trial.grades[BENT].conforms
    assert trial.subject._implementation.calls == 1
    assert trial.grades["image"].conforms


def test_what_is_not_finite_departs_at_once():
    def bend(gradient, _):
        gradient = gradient.copy()
        gradient[0, 0] = np.nan
        return gradient

    trial = trial_at(Bent(bend), CASE)
    assert not trial.grades[BENT].conforms
    assert trial.subject._implementation.calls == 1


def test_the_first_point_is_not_among_those_that_confirm():
    seen = []

    class Watched(Bent):
        def vjp(self, config, params, images, cotangent):
            seen.append(images.copy())
            return super().vjp(config, params, images, cotangent)

    assert not trial_at(Watched(lambda g, _: g * np.float32(1 + 2e-6)), CASE).grades[BENT].conforms
    first, *new = seen
    assert new
    for images in new:
        moved = np.abs(images / first - 1)
        assert 2.0**7 * FLOAT32.u < moved[first != 0].min()
        assert moved[first != 0].max() < 2.0**10 * FLOAT32.u


def test_new_points_keep_a_structure():
    trial = trial_at(SpecImplementation("vit"), CASE)
    trial.structured = True
    point = trial.neighbour(2.0**-15)
    for name, array in trial.point.params.items():
        if name.endswith("b1"):  # it may move away from kinks
            continue
        factors = point.params[name][array != 0] / array[array != 0]
        assert np.ptp(factors) < 4 * FLOAT32.u, name
        assert (point.params[name] == 0).tolist() == (array == 0).tolist()
    factors = point.cotangent / trial.point.cotangent
    assert np.ptp(factors) > 2.0**-16


# ---- correct code ------------------------------------------------------------------------------


def test_one_token_costs_a_fused_backward_what_it_costs_it():
    """The textbook's backward cancels its own rounding there, the fused one's does not."""
    fused = next(one for one in VARIANTS if one.name == "fused-attention")

    class Fused(SpecImplementation):
        def vjp(self, *arguments):
            with planted(fused):
                return super().vjp(*arguments)

    trial = trial_at(Fused("vit"), ONE_TOKEN, "float32")
    name = "encoder.layers.0.mha.wq"
    assert trial.truth[name].any() == np.False_
    textbooks, of_fused = trial.reference.more_noises[name].runs.reshape(2, 2, -1).swapaxes(0, 1)
    assert 3 < np.std(of_fused) / np.std(textbooks) < 6
    assert all(grade.conforms for grade in trial.grades.values())


def test_where_noise_says_too_little_the_specification_itself_widens_what_is_allowed(monkeypatch):
    """At an ill-posed point correct code errs alike, and by far more than its noise says."""

    def less(noises):
        return {n: replace(one, runs=0.03 * one.runs) for n, one in noises.items()}

    monkeypatch.setattr(confirmation, "noise_of_spec", lambda *a: less(noise_of_spec(*a)))
    for shrunk, conforms in ((Bent(lambda g, _: g), True), (Bent(bent_entry(1e-3)), False)):
        trial = trial_at(shrunk, CASE)
        there = trial.reference
        there.noises = there.more_noises = less(there.noises)
        grades = trial.grades
        assert any(grade.confirmation for grade in grades.values())
        assert grades[BENT].conforms == conforms
        assert all(grade.conforms for name, grade in grades.items() if name != BENT)


def test_one_look_rejects_correct_code_with_less_than_a_ten_billionth():
    assert 2 * np.exp(-(FLUCTUATION**2) / 6) < 1e-10


# ---- what would explain it -----------------------------------------------------------------------


def patched(function, old, new):
    """The practical family with a line of its source changed."""
    changed = Variant("changed", "a line of its source", (Patch(function, old, new),))
    return SpecImplementation("vision-transformer", mistakes=[changed])


def explanations(implementation, *cases):
    report = check(implementation, case=cases, dtype="float32")
    grades = [g for result in report.results for g in result.failures]
    assert grades
    return {g.confirmation.explanation for g in grades}


def test_a_function_that_is_inaccurate_in_float32_is_named():
    """Its tanh is off by 50 u, one way or the other; in float64 it is not."""
    off = "(1 + (x.dtype == np.float32) * 50 * 2.0**-24 * np.sign(np.sin(1e4 * x))).astype(x.dtype)"
    inaccurate = patched(
        "layers.gelu:_tanh_and_slope", "return np.tanh(", f"return {off} * np.tanh("
    )
    words = explanations(inaccurate, 0)
    sizes = [re.search(r"^as if tanh erred by some (\S+) u, ", w) for w in words]
    # It is off by 50 u of tanh; the model errs by up to so much, evenly, and by u of 1.
    assert any(found and 50 <= float(found[1]) <= 120 for found in sizes), words
    assert any(w.endswith("; in float64 it is right there") for w in words), words


def test_a_small_mistake_is_told_from_rounding_by_float64():
    epsilon = "scalars.scalar(epsilon, x.dtype)"
    larger = patched("layers.normalization:normalize", epsilon, f"{epsilon} + x.dtype.type(2e-7)")
    words = explanations(larger, 0, 2) - {""}
    assert words == {"a mistake, not rounding: in float64 it is wrong there too"}


def test_without_float64_nothing_is_said_of_it():
    larger = patched(
        "layers.normalization:normalize",
        "return centred / std",
        "return centred / std * x.dtype.type(1 + 2e-6)",
    )
    larger.dtype = ("float32",)
    assert not any("float64" in w for w in explanations(larger, 0))
