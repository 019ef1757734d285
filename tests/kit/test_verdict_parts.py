"""A verdict in its parts: what is computed, what is refused, and whether enough was compared."""

from dataclasses import replace

import numpy as np
import pytest

from support.trials import results_of
from vitspec.testing import AdapterError, SpecImplementation, check
from vitspec.testing.implementations import Subject
from vitspec.testing.parametrize import named_check
from vitspec.testing.report import summary, to_json, to_junit
from vitspec.testing.report.report import Report, advice, statements
from vitspec.testing.report.text import first_lines
from vitspec.testing.results import Place, Result
from vitspec.testing.settings import Settings
from vitspec.testing.suites import SUITES
from vitspec.testing.suites.laws import LAWS

ORDINARY = {
    "cls_token": True, "pool": "cls", "activation": "gelu", "qkv_bias": True, "output_bias": True,
    "layer_scale": False, "layer_norm_eps": 1e-6,
}  # fmt: skip
"""The one set of options of an ordinary ViT; none of the one-block models has this epsilon."""


def only_ordinary(config):
    if violations := config.violations():
        return violations[0]
    wrong = [name for name, value in ORDINARY.items() if getattr(config, name) != value]
    if config.image_h % config.patch_h or config.image_w % config.patch_w:
        wrong.append("whole patches")
    return f"only its own {wrong[0]}" if wrong else None


class Sevens:
    """7 for every logit."""

    name, version, spec, dtype = "sevens", "1", "vision-transformer", "float32"

    def __init__(self, supports=only_ordinary):
        self.supports = supports

    def forward(self, config, params, images):
        return np.full((len(images), config.num_classes), 7, np.float32)


class Wrapped:
    """The specification, of which tests change a part."""

    name, version, dtype = "wrapped", "1", "float32"

    def __init__(self, spec="vit"):
        self.spec, self.good = spec, SpecImplementation(spec)

    def forward(self, *args):
        return self.good.forward(*args)["logits"]

    def vjp(self, *args):
        return self.good.vjp(*args)


class VjpRaises(Wrapped):
    def vjp(self, *args):
        raise NotImplementedError("no backward yet, " + "in any of our kernels " * 30 + "THE END")


class AcceptsAll(Wrapped):
    """As PyTorch does: what is ill-formed gives logits of some shape."""

    def forward(self, config, params, images):
        if config.violations():
            return np.zeros((len(images), 1), np.float32)
        return super().forward(config, params, images)


# ---- evidence ----------------------------------------------------------------------------------


def test_sevens_do_not_conform_whatever_they_support():
    report = check(Sevens(), cases=2, laws=1)
    assert (report.exit_code, report.verdict) == (1, "does not conform")
    assert report.compared["forward"] == 2


def test_a_right_model_with_fixed_options_gets_its_full_count():
    right = SpecImplementation("vision-transformer")
    right.supports = only_ordinary
    report = check(right, cases=3, laws=2, interpolations=0)
    assert report.verdict == "conforms, as tested", summary(report)
    assert report.compared == report.asked == {"forward": 3, "gradients": 3, "laws": 2}
    assert not [r for r in report.results if r.check == "supports"]


def drawn(supports, count=30, suite="case", **more):
    right = SpecImplementation("vision-transformer")
    right.supports = supports
    for name, value in more.items():
        setattr(right, name, value)
    subject = Subject(right)
    return [SUITES[suite].trial(subject, Settings(seed=5), i).point for i in range(count)]


def test_every_case_of_every_kind_is_within_what_is_supported():
    square = [*drawn(only_ordinary), *drawn(only_ordinary, suite="law")]
    assert not any(only_ordinary(point.config) for point in square)
    assert len({point.config for point in square}) > 50  # it is not one small model again and again

    def even_rows(config, height, width):
        return None if config.grid[0] == config.grid[1] else "a square grid only"

    for point in drawn(only_ordinary, 8, "interpolation", supports_size=even_rows):
        assert point.config.grid[0] == point.config.grid[1]


def test_what_is_supported_as_drawn_stays_as_it_was_drawn():
    """Or all printed commands of all implementations would be of other cases."""
    anything = drawn(lambda config: None, 20)
    family = Subject(SpecImplementation("vision-transformer")).family
    for i, point in enumerate(anything):
        assert point.config == family.random_case(np.random.default_rng([5, i])).config


def test_a_moved_case_keeps_the_options_that_are_supported():
    """Where only the pooling is fixed, activations and biases still vary."""
    points = drawn(lambda c: None if c.pool == "cls" else "cls only")
    assert {p.config.pool for p in points} == {"cls"}
    assert len({p.config.activation for p in points}) == 4
    assert {p.config.qkv_bias for p in points} == {True, False}
    family = Subject(SpecImplementation("vision-transformer")).family
    for i, point in enumerate(points):  # and sizes stay as they were drawn
        own = family.random_case(np.random.default_rng([5, i])).config
        assert replace(point.config, pool=own.pool, cls_token=own.cls_token) == own


def test_the_one_small_model_is_a_last_resort():
    """Where only a few sizes are supported a case is drawn until it has one of them."""
    small = Subject(SpecImplementation("vision-transformer")).family.smoke_configs
    points = drawn(lambda c: None if c in small or c.head_count == 3 else "three heads", 12)
    assert {p.config.head_count for p in points} == {3}


def nothing_small(config):
    return None if config.num_layers == 12 or config == SMALL else "of one size only"


SMALL = Subject(SpecImplementation("vision-transformer")).family.smoke_configs[1]


def test_too_little_compared_is_exit_code_3_and_says_what_to_do():
    settings = Settings(cases=30, laws=4)
    skips = [Result("supports", Place("case", i), "skipped", reason="it") for i in range(11)]
    passed = [Result("forward", Place("case", i), "passed") for i in range(11, 30)]
    report = Report("", "mine", "1", "vit", "float32", settings, skips + passed)
    assert report.exit_code == 0  # nothing is said of what was asked for
    report.asked = {"forward": 30}
    assert report.exit_code == 3
    assert report.verdict == "could not be checked: not enough was compared"
    why = "forward: 19 of 30 cases compared, 20 needed (11 x: it)"
    assert advice(report)[0] == why
    assert "closest" in advice(report)[1]
    assert why in summary(report)
    assert why in to_junit([report])
    report.results.append(Result("forward", Place("case", 30), "passed"))
    assert (report.exit_code, report.verdict) == (0, "conforms, as tested (forward only)")
    report.asked = {"forward": 30, "gradients": 30}
    assert advice(report)[0].startswith("gradients: none of 30 cases compared, 20 needed")
    report.asked = {"forward": 30, "laws": 4}
    assert advice(report)[0] == "laws: none of 4 cases compared, 1 needed"


@pytest.mark.parametrize(
    "fewer",
    [{"case": (17,)}, {"law": (0,)}, {"only": "forward"}, {"only": "determinism"},
     {"only": "permute-patches"}, {"cases": 0}, {"only": "ill-formed.*"}],
    ids=str,
)  # fmt: skip
def test_who_asks_for_less_needs_less(fewer):
    settings = {"cases": 1, "laws": 1} | fewer
    report = check(SpecImplementation("vit"), **settings)
    assert report.exit_code == 0, summary(report)


def test_in_pytest_too_little_compared_fails_with_the_same_words():
    report = check(Sevens(nothing_small), cases=2, laws=1, ill_formed=False, config=None)
    assert report.compared == {"forward": 2, "laws": 1}  # the one small model that it supports
    one = Sevens(lambda c: None if c.num_layers == 12 else "of one size only")
    for name in ("forward", "determinism", "permute-heads"):
        skipped = pytest.skip.Exception  # that would be green
        with pytest.raises((AssertionError, AdapterError, skipped), match="of one size only") as e:
            check_without_smoke(one, name)
        assert not isinstance(e.value, skipped)
    some = SpecImplementation("vision-transformer")
    some.supports = lambda c: None if c.num_layers == 3 else "three layers only"
    with pytest.raises(AssertionError, match=r"forward: [1-7] of 8 cases compared, 8 needed"):
        check_without_smoke(some, "forward")


def check_without_smoke(implementation, name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitspec.testing.run.smoke", lambda *_: None)  # of ViT-Base: too long
        named_check(name)(implementation)


# ---- what is said ------------------------------------------------------------------------------


def test_the_verdict_is_in_two_parts_with_counts():
    report = check(SpecImplementation("vit"), cases=2, laws=1)
    said = dict(statements(report))
    assert said["Computes the function"].startswith("forward 2 compared, all conform; gradients")
    assert said["Refuses what is ill-formed"] == "all 6 refused"
    data = to_json([report])["implementations"][0]
    assert data["compared"] == data["asked"] == {"forward": 2, "gradients": 2, "laws": 1}
    assert data["statements"]["refuses"] == "all 6 refused"


@pytest.mark.parametrize(
    ("only", "limit"),
    [("linearity", ""), ("scale", ""), ("permute-classes", ""), ("forward", " (forward only)"),
     ("determinism", " (determinism only)"), ("ill-formed.*", " (ill-formed only)")],
)  # fmt: skip
def test_forward_only_stands_only_where_a_forward_alone_was_compared(only, limit):
    report = check(SpecImplementation("vit"), cases=1, laws=2, only=only)
    assert report.verdict == f"conforms, as tested{limit}"


# ---- ill-formed configurations -----------------------------------------------------------------


def test_accepting_what_is_ill_formed_is_reported_and_fails_only_if_asked_for():
    report = check(AcceptsAll(), cases=1, laws=0)
    assert (report.exit_code, report.verdict) == (0, "conforms, as tested")
    assert report.refuses.startswith("6 of 6 accepted: embedDim_pos, ")
    assert "patchH_ne0" in str(report)
    assert "<failure" not in to_junit([report])
    strict = check(AcceptsAll(), cases=1, laws=0, strict=True)
    assert (strict.exit_code, strict.verdict) == (1, "does not conform")
    (again, *_) = {r.again for r in report.results if r.is_refusal}
    assert "--strict" in again.as_options()
    assert check(AcceptsAll(), again).exit_code == 1


def test_only_a_reason_or_an_error_of_the_forward_is_a_refusal():
    class SupportsRaises(AcceptsAll):
        def supports(self, config):
            if config.violations():
                raise ZeroDivisionError
            return

    for accepts in (AcceptsAll(), SupportsRaises()):
        assert {r.status for r in results_of("ill-formed", accepts)} == {"failed"}
    (by_forward,) = {r.reason for r in results_of("ill-formed", Wrapped())}
    assert by_forward == "refused: forward raised NotWellFormed"
    says = Wrapped()
    says.supports = lambda config: "never" if config.violations() else None
    assert {r.reason for r in results_of("ill-formed", says)} == {"refused: supports says never"}


def test_in_pytest_an_accepted_configuration_is_skipped_with_its_words():
    with pytest.raises(pytest.skip.Exception, match="6 of 6 accepted"):
        named_check("ill-formed.*")(AcceptsAll())


# ---- what raises -------------------------------------------------------------------------------


def test_a_vjp_that_raises_leaves_the_forward_its_verdict():
    report = check(VjpRaises(), cases=2, laws=1)
    assert report.exit_code == 3
    assert report.verdict == "forward conforms; gradients could not be checked"
    assert report.compared["forward"] == 2
    errors = [r for r in report.results if r.check == "vjp"]
    assert {r.status for r in errors} == {"errored"}
    assert all(r.reason.endswith("THE END") for r in errors)  # the message is whole


def test_a_wrong_forward_departs_though_the_vjp_raises():
    """What departs departs, whatever else happened; the crash is told first."""

    class Both(VjpRaises):
        def forward(self, *args):
            return super().forward(*args) * np.float32(1.01)

    report = check(Both(), cases=2, laws=0)
    assert report.exit_code == 1
    assert "could not be run at case" in str(report).splitlines()[3]


def test_a_crash_stands_above_ill_formed_configurations():
    class Crashes(AcceptsAll):
        def forward(self, config, params, images):
            if config.num_layers > 1:
                raise RuntimeError("out of registers")
            return super().forward(config, params, images)

    report = check(Crashes(), cases=6, laws=0)
    assert (report.exit_code, report.verdict) == (3, "could not be checked")
    assert "out of registers" in str(report).splitlines()[3]
    strict = check(Crashes(), cases=6, laws=0, strict=True)
    assert "out of registers" in str(strict).splitlines()[3]


def test_an_ill_formed_closest_is_the_adapters_fault_in_one_line():
    wrong = Wrapped()
    wrong.closest = lambda config: replace(config, embed_dim=0)
    words = "wrapped.closest returned an ill-formed configuration: embedDim_pos"
    with pytest.raises(AdapterError, match=words) as error:
        check(wrong, cases=1)
    assert "\n" not in str(error.value)


# ---- undecided ---------------------------------------------------------------------------------


def test_what_cannot_be_told_is_exit_code_3_with_what_to_do():
    results = [
        Result("forward", Place("case", 0), "passed"),
        Result("vjp", Place("case", 0), "undecided", reason="too coarse"),
    ]
    report = Report("", "mine", "1", "vit", "float16", Settings(), results)
    assert (report.exit_code, report.verdict) == (3, "cannot be told in float16")
    assert "offer float32 too" in str(report)
    data = to_json([report])["implementations"][0]
    assert data["cannot_be_told"] == ["vjp"]
    assert 'type="undecided"' in to_junit([report])


def test_an_undecided_identity_is_no_verdict_and_hides_none():
    results = [
        Result("identity.x", Place("identities", 0), "passed"),
        Result("identity.x", Place("identities", 0), "undecided"),
    ]
    report = Report("", "mine", "1", "vit", "float32", Settings(identities=True), results)
    assert report.exit_code == 0
    report.results = results[1:]
    assert report.exit_code == 3


# ---- small things ------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["vit", "vision-transformer"])
def test_asking_for_an_interpolation_that_is_not_there_says_why(spec):
    (result,) = results_of("interpolation", Wrapped(spec), 3, interpolation=(3,))
    assert result.status == "skipped"
    assert "one size" in result.reason or "supports_size" in result.reason


def test_results_of_check_are_in_the_order_of_the_command():
    report = check(SpecImplementation("vit"), cases=2, laws=1)
    suites = list(dict.fromkeys(r.place.suite for r in report.results))
    assert suites == ["case", "degenerate", "law", "ill-formed"]


def test_what_is_cut_from_long_lines_is_counted():
    text = "x" * 500 + "\n" + "y" * 10
    assert first_lines(text) == ["x" * 200, "y" * 10, "... and 300 more characters"]
    assert first_lines("a\nb\n") == ["a", "b"]


def test_all_laws_that_always_apply_are_evidence():
    report = check(Wrapped(), cases=0, laws=1, ill_formed=False)
    assert report.asked == {"laws": 1}
    assert {r.check for r in report.results} >= set(LAWS)
