"""The constants of primitives: those of the results, and not exceeded by what is installed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vitspec.testing.primitives import ERROR

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results" / "primitives.json"

pytest.importorskip("scipy")


@pytest.fixture
def benchmarks(monkeypatch):
    """Its scripts import one another from their folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def results():
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def test_the_constants_and_the_page_are_those_of_the_committed_results(benchmarks, results):
    from primitives_table import PAGE, constants, page_text

    assert constants(results) == ERROR
    text = PAGE.read_text(encoding="utf-8")
    assert page_text(results, text) == text


def test_every_function_was_measured_with_every_instruction_set(results):
    """Or the largest over all is the largest over some."""
    everywhere = {f"torch {isa}" for isa in ("default", "avx2", "avx512")}
    everywhere |= {f"jax {isa}" for isa in ("sse4", "avx2", "avx512")}
    for name, environments in results["functions"]["float32"].items():
        assert everywhere <= environments.keys(), name
    onednn = {"torch, onednn", "torch, onednn avx2", "torch, onednn sse41"}
    assert onednn <= results["functions"]["float32"]["gelu_derivative"].keys()
    assert results["functions"].keys() == results["rows"].keys() == ERROR["gelu"].keys()


def test_the_command_measures_what_is_lacking_and_it_is_within_the_constants(tmp_path):
    path = tmp_path / "results.json"
    command = [sys.executable, BENCHMARKS / "primitives.py", "--sample", "--results", path]
    command += ["--dtype", "float32", "--only", "gelu,tanh,dot", "--environments", "numpy"]
    first, second = (
        subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(2)
    )
    assert [line.split()[1] for line in first.splitlines()] == ["gelu:", "tanh:"]
    assert second == ""  # nothing was left
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, environments in found["functions"]["float32"].items():
        assert 0.1 < environments["numpy"]["scale"][0] <= ERROR[name]["float32"]
    for n, kinds in found["rows"]["float32"]["dot"]["numpy"].items():
        assert 1 < kinds.pop("equal") <= ERROR["dot_of_equal"]["float32"] * int(n)
        assert 1 < max(kinds.values()) <= ERROR["dot"]["float32"] * int(n) ** 0.5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_specification_errs_within_the_constants(benchmarks, dtype):
    from primitives_libraries import functions
    from primitives_run import FLUSHED, truth, worst
    from primitives_truth import ONE_ARGUMENT

    pytest.importorskip("flint")
    x = np.random.default_rng(0).uniform(-9, 9, 300).astype(dtype).astype(np.float64)
    own = functions("numpy", dtype)
    for name, primitive in ONE_ARGUMENT.items():
        if (primitive.function or name) in own:
            rows = truth(primitive, dtype, x)
            found = worst(own[primitive.function or name], rows, FLUSHED[dtype])
            assert 0.1 < found["scale"][0] <= ERROR[name][dtype], name


def test_an_error_of_ten_units_is_measured_as_ten(benchmarks):
    from primitives_run import FLUSHED, truth, worst
    from primitives_truth import ONE_ARGUMENT

    gelu = ONE_ARGUMENT["gelu"]
    rows = truth(gelu, "float32", np.linspace(-3, 3, 301, dtype=np.float32).astype(np.float64))

    def bent(x):
        return gelu.value(x) + np.where(np.abs(x - 2) < 1e-6, 10 * 2.0**-24 * x, 0)

    found = worst(bent, rows, FLUSHED["float32"])
    assert found["scale"] == [pytest.approx(10), 2.0]
    assert found["not_finite"] is None

    def broken(x):
        return np.where(x > 2.5, np.nan, bent(x))

    found = worst(broken, rows, FLUSHED["float32"])
    assert found["not_finite"] == pytest.approx(2.52)
    assert found["scale"] == [pytest.approx(10), 2.0]  # NaN does not hide it
    # below the smallest normal number XLA returns 0, and no digit is asked for
    tiny = truth(ONE_ARGUMENT["exp"], "float32", np.array([-88.0, -90.0]))
    assert worst(np.zeros_like, tiny, FLUSHED["float32"])["scale"][0] == 0


def test_the_truth_in_float64_is_the_one_of_balls(benchmarks):
    """The float64 formulas, which 32 and 16 bits are measured by, against balls."""
    from primitives_run import U, truth
    from primitives_truth import ONE_ARGUMENT

    pytest.importorskip("flint")
    x = np.concatenate([np.linspace(-12, 12, 50), np.float64(2.0) ** np.arange(-20, 5)])
    for name, primitive in ONE_ARGUMENT.items():
        at, high, low, per_scale, _ = truth(primitive, "float64", x)
        with np.errstate(all="ignore"):
            error = np.abs(primitive.value(at) - high - low) * per_scale * U["float64"]
        assert np.max(error) < 1e-6 * U["float32"], name
