"""Declared deviations: what they excuse, what they cannot hide, and files with something wrong."""

import datetime
from dataclasses import replace

import pytest

from vitspec.testing.declared import DeclarationError, apply, load
from vitspec.testing.report.report import Report
from vitspec.testing.results import Place, Result, graded
from vitspec.testing.tolerance import Grade

TODAY = datetime.date(2026, 7, 15)


def grade(tensor, ratio):
    return Grade(tensor, "norm", ratio * 1e-6, 2e-7, 1e-6)


def result(check, index=0, **ratios):
    """A graded check; underscores stand for dots."""
    grades = [grade(name.replace("__", "."), ratio) for name, ratio in ratios.items()]
    return graded(check, Place("case", index), grades)


def report(*results):
    return Report("my-vit", "my-vit", "1.4", "vit", "float32", results=list(results))


FORWARD = result("forward", logits=0.1)
VJP = result("vjp", image=0.2, patch_embed__bias=50.0, head__bias=0.1)
WRONG_TWICE = result("vjp", 1, image=9.0, patch_embed__bias=50.0)
RIGHT = result("vjp", 2, image=0.1, patch_embed__bias=0.1, head__bias=0.1)


@pytest.fixture
def write(tmp_path):
    def write_file(text):
        path = tmp_path / "deviations.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write_file


@pytest.fixture
def declared(write):
    """The declaration of deviations of kind choice, with these checks and further keys."""

    def declare(*checks, **keys):
        keys = {"kind": "choice", "reason": "so it is"} | keys
        lines = [f"{key} = {value!r}" for key, value in keys.items()]
        entry = "\n".join(["[[deviation]]", f"checks = {list(checks)!r}", *lines])
        return load(write(f"schema = 1\n{entry}"), TODAY)

    return declare


def statuses(found):
    return [r.status for r in found.results]


# ---- what it excuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "glob", ["vjp.patch_embed.bias", "vjp.patch_embed.*", "*.bias", "vjp", "v*"]
)
def test_a_failure_whose_every_tensor_is_declared_is_expected(declared, glob):
    found = apply(declared(glob), report(FORWARD, VJP))
    assert statuses(found) == ["passed", "xfailed"]
    assert found.results[1].reason == "declared as choice: so it is"
    assert found.results[1].grades == VJP.grades
    assert (found.exit_code, found.verdict) == (0, "conforms, as tested (1 declared deviation)")


def test_the_report_given_is_not_changed(declared):
    before = report(FORWARD, VJP)
    apply(declared("vjp", "nothing"), before)
    assert statuses(before) == ["passed", "failed"]
    assert before.unmatched == []


def test_two_entries_together_cover_a_result(write):
    entry = '[[deviation]]\nchecks = ["vjp.{}"]\nkind = "choice"\nreason = "{}"\n'
    text = "schema = 1\n" + entry.format("image", "one") + entry.format("patch*", "two")
    found = apply(load(write(text)), report(FORWARD, WRONG_TWICE))
    assert found.results[1].status == "xfailed"
    assert found.results[1].reason == "declared as choice: one; as choice: two"


def test_a_check_without_tensors_is_declared_by_its_name(declared):
    refused = Result("ill-formed.patchH_ne0", "ill-formed", "failed", reason="accepted")
    found = apply(declared("ill-formed.patch?_ne0"), report(FORWARD, refused))
    assert found.results[1].status == "xfailed"
    assert found.results[1].reason == "accepted; declared as choice: so it is"


def test_an_implementation_that_does_not_run_is_not_excused(declared):
    broken = Result("vjp", "case 0", "errored", reason="it raised")
    found = apply(declared("vjp"), report(FORWARD, broken))
    assert (statuses(found), found.exit_code) == (["passed", "errored"], 3)


def test_the_link_is_part_of_the_reason(declared):
    link = "https://example.org/7"
    found = apply(declared("vjp", kind="bug", link=link), report(FORWARD, VJP))
    assert found.results[1].reason == f"declared as bug: so it is ({link})"


# ---- what it cannot hide -----------------------------------------------------------------------


def test_a_failure_in_an_undeclared_tensor_stays_one_and_says_which(declared):
    found = apply(declared("vjp.patch_embed.bias"), report(VJP, WRONG_TWICE))
    assert statuses(found) == ["xfailed", "failed"]
    assert found.results[1].reason == "not declared: image; declared: patch_embed.bias"
    assert found.exit_code == 1


def test_what_is_declared_and_passes_everywhere_is_an_unexpected_pass(declared):
    found = apply(declared("vjp.patch_embed.bias"), report(FORWARD, RIGHT))
    assert statuses(found) == ["passed", "xpassed"]
    assert found.results[1].reason == "it passes: remove what declares it as choice: so it is"
    assert found.exit_code == 1


def test_what_is_declared_and_fails_somewhere_may_pass_elsewhere(declared):
    found = apply(declared("vjp.patch_embed.bias"), report(FORWARD, VJP, RIGHT))
    assert statuses(found) == ["passed", "xfailed", "passed"]


def test_a_failure_in_other_tensors_alone_does_not_keep_an_entry_alive(declared):
    found = apply(declared("vjp.head.bias"), report(VJP, RIGHT))
    assert statuses(found) == ["failed", "xpassed"]
    assert found.results[0].reason == ""


@pytest.mark.parametrize("glob", ["vpj", "vjp.cls_token", "vjp.image.*", "VJP", "forward.image"])
def test_a_glob_that_matches_nothing_is_an_error(declared, glob):
    found = apply(declared("vjp.patch_embed.bias", glob), report(FORWARD, VJP))
    assert found.unmatched == [glob]
    assert found.exit_code == 1


def test_tensors_of_a_skipped_check_are_not_missed(declared):
    skipped = Result("vjp", "case 0", "skipped", reason="it has no vjp")
    found = apply(declared("vjp.patch_embed.bias"), report(FORWARD, skipped))
    assert (found.unmatched, statuses(found)) == ([], ["passed", "skipped"])


def test_part_of_the_checks_tells_neither_of_passes_nor_of_names(declared):
    found = apply(declared("vjp", "linearity"), report(FORWARD, RIGHT), complete=False)
    assert (found.unmatched, statuses(found)) == ([], ["passed", "passed"])


# ---- it must fail this way ---------------------------------------------------------------------

MISTAKE = "patch-bias-gradient-averaged"


@pytest.mark.parametrize(
    ("looks", "status", "words"),
    [
        (MISTAKE, "xfailed", "declared as choice: so it is"),
        ("kernel-flipped", "failed", f"expects {MISTAKE}; but it looks like kernel-flipped"),
        (None, "failed", f"expects {MISTAKE}; but it looks like nothing that is known"),
    ],
)
def test_it_must_fail_in_the_way_that_is_expected(declared, looks, status, words):
    asked = []

    def diagnose(of, result):
        asked.append((of, result))
        return looks

    checked = report(FORWARD, VJP)
    found = apply(declared("vjp", expect=MISTAKE), checked, diagnose)
    assert found.results[1].status == status
    assert words in found.results[1].reason
    assert asked == [(checked, VJP)]


def test_an_older_name_is_expected_under_the_name_of_today(declared):
    """A file that was written before names were merged goes on excusing what it excused."""
    declaration = declared("vjp", expect="block-mlp-residual-gradient-dropped")
    found = apply(declaration, report(VJP), lambda *_: "feed-forward-residual-gradient-dropped")
    assert statuses(found) == ["xfailed"]


def test_what_to_expect_needs_a_diagnosis(declared):
    with pytest.raises(DeclarationError, match="needs a diagnosis"):
        apply(declared("vjp", expect=MISTAKE), report(VJP))


# ---- files -------------------------------------------------------------------------------------

GOOD = """\
schema = 1
[[deviation]]
checks = ["vjp"]
kind = "choice"
reason = "so it is"
"""


def test_a_good_file(write):
    text = GOOD + 'link = "https://example.org"\nexpect = "kernel-flipped"\nuntil = "2026-07"\n'
    (deviation,) = load(write(text), TODAY).deviations
    assert deviation.checks == ("vjp",)
    assert str(deviation) == "choice: so it is (https://example.org)"
    assert deviation.expect == "kernel-flipped"
    assert deviation.until == datetime.date(2026, 7, 31)


def test_a_file_without_entries(write):
    assert load(write("schema = 1")).deviations == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema = 1\nchecks = = 2", "is no TOML: .*line 2, column 10"),
        ("schema = 1\nx = " + "9" * 5000, "is no TOML"),
        (b"schema = 1\n# \xff", "is not UTF-8"),
        ("x = " + "[" * 20000, "no TOML|nested too deeply"),
        ("", "expected `schema = 1`, there is none"),
        ("schema = 2", "expected `schema = 1`, got 2"),
        ("schema = true", "got True"),
        ("schema = 1\ndeviations = []", "'deviations': unknown; did you mean deviation"),
        ("schema = 1\n[deviation]\nkind = 'bug'", "two brackets"),
        ("schema = 1\ndeviation = [1]", "two brackets"),
        ("schema = 1\n[[deviation]]", "deviation 1: checks, kind, reason: missing"),
        (GOOD + "reson = 'x'", "deviation 1: 'reson': unknown; did you mean reason"),
        (GOOD + "colour = 'x'", "'colour': unknown; known: checks, kind"),
        (GOOD.replace('["vjp"]', '"vjp"'), "checks: expected a list of globs, got 'vjp'"),
        (GOOD.replace('["vjp"]', "[]"), "checks: expected a list"),
        (GOOD.replace('["vjp"]', "[1]"), "checks: expected a list"),
        (GOOD.replace('["vjp"]', "['']"), "checks: expected a list"),
        (GOOD.replace('"choice"', '"whim"'), "kind: expected one of bug, choice, .* got 'whim'"),
        (GOOD.replace('"so it is"', "3"), "reason: expected a text, got 3"),
        (GOOD.replace('"so it is"', '" "'), "reason: expected a text"),
        (GOOD.replace('"choice"', '"bug"'), "link: a bug needs one"),
        (GOOD + "link = 'javascript:alert(1)'", "link: expected https"),
        (GOOD + "link = ''", "link: expected a text"),
        (GOOD + "expect = 'kernel-fliped'", "'kernel-fliped'; did you mean kernel-flipped"),
        (GOOD + "expect = 'zzz'", "catalogue.md"),
        (GOOD + "until = '2026-06'", "until: 2026-06-30 is past"),
        (GOOD + "until = '2026-07-14'", "until: 2026-07-14 is past; mend .*so it is"),
        (GOOD + "until = 2026-07-14", "is past"),
        (GOOD + "until = '2027-13'", "until: 2027-13: month"),
        (GOOD + "until = '2027-02-30'", "until: 2027-02-30: day"),
        (GOOD + "until = '27-01'", "expected YYYY-MM or YYYY-MM-DD, got '27-01'"),
        (GOOD + "until = 2027", "expected YYYY-MM"),
        (GOOD + "until = 2027-01-01T00:00:00", "expected YYYY-MM"),
        (GOOD + GOOD[11:].replace('"choice"', '"x"'), "deviation 2: kind"),
    ],
)
def test_a_file_with_something_wrong_says_what(write, text, words):
    with pytest.raises(DeclarationError, match=words) as caught:
        load(write(text), TODAY)
    assert str(caught.value).startswith(str(write("")))


@pytest.mark.parametrize("until", ["'2026-07'", "'2026-07-15'", "2026-07-15"])
def test_the_last_day_counts(write, until):
    assert load(write(f"{GOOD}until = {until}"), TODAY).deviations[0].until >= TODAY


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DeclarationError, match="cannot be read: No such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(DeclarationError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_a_passing_result_with_a_reason_keeps_it(declared):
    passed = replace(RIGHT, reason="refused: ValueError")
    found = apply(declared("vjp"), report(passed))
    assert found.results[0].reason.startswith("refused: ValueError; it passes")
