"""Adapters that are partial or broken get the right status and exit code, and a plain sentence."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vitspec.testing import check, finding
from vitspec.testing.finding import find
from vitspec.testing.implementations import AdapterError

BAD = Path(__file__).with_name("bad_adapters.py")
FAST = ("--cases", "3", "--no-photograph", "--no-vectors")


def bad(name):
    return find(f"{BAD}:{name}")


def command(*arguments, cwd=None):
    program = "import sys; from vitspec.cli import main; sys.argv[0] = 'vitspec'; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=300, cwd=cwd,
    )  # fmt: skip


# ---- broken from the start: exit code 3, one line, nothing else runs -----------------------------

REFUSED = {
    "SupportsNothing": "supports none of the configurations.*not today",
    "Raises": "good.forward raised RuntimeError.*out of registers",
    "Exits": "good.forward raised SystemExit",
    "NaN": r"gave NaN or infinity.*: head\.bias",
    "WrongDtype": r"ffn.b1: expected float32 \(5,\), got float64 \(5,\)",
    "MissingName": r"head.bias: missing, expected shape \(4,\)",
    "ExtraName": "head.wieghts: unexpected name",
    "WrongShape": r"head.weights: expected float32 \(4, 6\), got float32 \(6, 4\)",
    "WritesIntoInputs": "read-only",
    "Dropout": "something else on every run; is dropout on.*logits by",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_adapter_is_refused_before_anything_is_graded(name):
    with pytest.raises(AdapterError, match=REFUSED[name]) as error:
        check(bad(name), cases=1)
    assert "\n" not in str(error.value)


NOT_ONE = {
    "NoVersion": "version: expected a string, got None",
    "Bfloat17": "dtype: expected one of float64, float32, tf32, bfloat16, float16, got 'bfloat17'",
}


@pytest.mark.parametrize("name", NOT_ONE)
def test_an_object_that_is_no_implementation_is_refused(name):
    with pytest.raises(AdapterError, match=re.escape(NOT_ONE[name])):
        bad(name)


# ---- broken now and then -------------------------------------------------------------------------


def statuses(report):
    return {(r.check, r.status) for r in report.results}


def test_without_a_vjp_only_the_forward_is_checked():
    report = check(bad("ForwardOnly"), cases=2, laws=1)
    assert report.exit_code == 0
    assert report.verdict == "conforms, as tested (forward only)"
    assert {("forward", "passed"), ("vjp", "skipped"), ("linearity", "skipped")} <= statuses(report)


def test_cases_are_moved_to_what_an_implementation_supports():
    report = check(bad("OnlyDivisibleHeads"), cases=12, laws=0)
    assert report.exit_code == 0
    assert report.compared == {"forward": 12, "gradients": 12}
    assert not [r for r in report.results if r.check == "supports"]


def test_an_adapter_that_breaks_later_is_an_error_and_the_rest_is_graded():
    report = check(bad("RaisesLater"), cases=12, laws=0)
    assert report.exit_code == 3
    assert report.verdict == "could not be checked"
    errors = [r for r in report.results if r.status == "errored"]
    assert all("only one layer" in r.reason for r in errors)
    assert errors
    assert ("vjp", "passed") in statuses(report)


def test_nan_later_is_a_failure():
    report = check(bad("NaNLater"), cases=12, laws=0)
    assert report.exit_code == 1
    assert any(g.error == np.inf for r in report.results for g in r.failures)


def test_the_last_bit_is_a_matter_of_determinism_alone():
    report = check(bad("LastBit"), cases=3, laws=4, seed=1)
    failed = {r.check for r in report.results if r.status == "failed"}
    assert failed == {"determinism"}


def test_another_function_is_checked_by_its_identities_alone():
    with pytest.raises(AdapterError, match="only its identities can be checked: --identities"):
        check(bad("Other"))
    report = check(bad("Other"), identities=True)
    assert report.exit_code == 1
    failed = {r.check for r in report.results if r.status == "failed"}
    assert "identity.directional-derivative-of-one-tensor" in failed
    assert "identity.batch-split-of-the-vjp" in failed


# ---- in processes: exit codes that a script can trust --------------------------------------------


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("Raises", 3, "out of registers"),
        ("Crashes", 3, "ended its process in forward on ViTConfig"),
        ("CrashesLater", 3, "ended its process in forward on ViTConfig"),
        ("WrongDtype", 3, "expected float32"),
        ("NaNLater", 1, "does not conform"),
        ("ForwardOnly", 0, "forward only"),
        ("NoSuchThing", 3, "there is no attribute 'NoSuchThing'"),
    ],
)
def test_exit_codes(name, code, message):
    done = command("check", f"{BAD}:{name}", *FAST)
    words = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == code, words
    assert message in words
    assert "Traceback" not in words


@pytest.mark.parametrize("name", ["Hangs", "HangsLater"])
def test_an_adapter_that_hangs_is_stopped(name):
    done = command("check", f"{BAD}:{name}", *FAST, "--timeout", "8")
    words = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 3, words
    assert "gave no result for 8 s" in words
    assert "Traceback" not in words


def test_what_an_adapter_prints_does_not_spoil_the_report(tmp_path):
    file = tmp_path / "report.json"
    done = command("check", f"{BAD}:Talks", *FAST, "--json", file)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert "hello from the adapter" in json.dumps(report)
    assert "hello from native code" in json.dumps(report)


# ---- finding -------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_installed_ones():
    with pytest.raises(
        AdapterError, match=r"no implementation is named 'nope'; installed: .*vitfast"
    ):
        find("nope")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module:thing", "ModuleNotFoundError"),
        ("nowhere/adapter.py", "there is no file nowhere/adapter.py"),
        ("planted:no-such-mistake", "no deviation is named 'no-such-mistake'"),
        ("planted:mask-sense-inverted", "no model shows"),
        (str(BAD), "holds .* implementations"),
        ("math:pi", "spec: expected one of"),
    ],
)
def test_what_cannot_be_found_is_said_plainly(target, message):
    with pytest.raises(AdapterError, match=message):
        find(target)


def test_a_file_with_one_implementation_needs_no_attribute(tmp_path):
    text = BAD.read_text().split("class ForwardOnly")[0]
    (tmp_path / "adapter.py").write_text(text)
    assert find(str(tmp_path / "adapter.py")).name == "good"


def test_a_module_beside_the_user_is_found(tmp_path):
    text = BAD.read_text().split("class ForwardOnly")[0]
    (tmp_path / "my_adapter.py").write_text(text)
    done = command("check", "my_adapter:Good", *FAST, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_planted_mistake_is_an_implementation():
    one = find("planted:cls-pools-last-row, layer-norm-eps-1e-5")
    assert (one.spec, len(one.mistakes)) == ("vit-cls", 2)
    assert check(one, cases=2, laws=0).exit_code == 1


def test_an_entry_point_that_does_not_load_names_the_extra(monkeypatch):
    def load():
        raise ImportError("no module named jax")

    point = SimpleNamespace(name="broken", load=load)
    monkeypatch.setattr(finding, "entry_points", lambda **_: [point])
    with pytest.raises(AdapterError, match=r"no module named jax.*vitspec\[fast\]"):
        find("broken")


def test_a_precision_that_it_does_not_have_is_refused():
    with pytest.raises(AdapterError, match="computes in float32, not in float64"):
        check(bad("Good"), dtype="float64")


# ---- arrays of other frameworks ------------------------------------------------------------------


def test_arrays_of_another_framework_are_graded_in_float64(implementation):
    class Foreign:
        """Like an array of a framework that computes in float32 with whatever it meets."""

        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

        def __sub__(self, other):
            raise AssertionError("the kit computed with a foreign array")

        __getitem__ = __rsub__ = __sub__

    good = implementation("vit")

    class Wraps:
        name, version, spec, dtype = "wraps", "1", "vit", "float32"

        def forward(self, *args):
            return Foreign(good.forward(*args)["logits"])

        def vjp(self, *args):
            d_params, d_images = good.vjp(*args)
            return {name: Foreign(array) for name, array in d_params.items()}, Foreign(d_images)

    assert check(Wraps(), cases=1, laws=1).exit_code == 0
