"""The command: exit codes that a script can trust, tables, JSON."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from vitspec import ViTConfig, __version__
from vitspec.cli import app
from vitspec.testing import bench, check, implementations

TINY = ViTConfig(
    patch_h=56, patch_w=56, stride=56, padding=0,
    embed_dim=8, hidden_dim=8, head_count=2, num_layers=2, num_classes=3,
)  # fmt: skip


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *args: CliRunner().invoke(app, [str(a) for a in args])


@pytest.fixture
def installed(monkeypatch, implementation):
    """Install implementations for this process, and check small cases in it."""

    def install(**by_name):
        monkeypatch.setattr(implementations, "names", lambda: sorted(by_name))
        monkeypatch.setattr(implementations, "load", by_name.__getitem__)
        monkeypatch.setattr(check, "check_installed", here)

    def here(names, seed, cases, photograph, workers):
        for name in names:
            if photograph:
                grades = check.check_photograph(implementations.load(name), seed, config=TINY)
                yield check.PhotographResult(name, grades)
            yield check.check_seeds(name, range(seed, seed + cases))

    return install


def test_exit_0_tables_and_json_where_everything_conforms(run, installed, implementation, tmp_path):
    installed(mean=implementation("vit"), cls=implementation("vit-cls"))
    file = tmp_path / "report.json"
    result = run("check", "--cases", 3, "--json", file)
    assert result.exit_code == 0, result.output
    assert f"vitspec {__version__}: conforms, as tested" in result.output
    assert "d layers.*.mha.wq" in result.output
    report = json.loads(file.read_text())
    assert report["conforms"] is True
    assert report["schema"] == "vitspec-check/1"
    assert set(report["photograph"]) == {"mean", "cls"}
    assert len(report["cases"]) == 6
    assert {g["tensor"] for g in report["photograph"]["cls"]} >= {"logits", "image", "cls_token"}
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_exit_1_and_the_case_where_something_departs(run, installed, implementation, tmp_path):
    installed(wrong=implementation("vit", "attention-scale-missing"))
    file = tmp_path / "report.json"
    result = run("check", "--cases", 2, "--json", file)
    assert result.exit_code == 1, result.output
    assert "does not conform" in result.output
    assert "departs on Case(" in result.output.replace("\n", " ")
    assert json.loads(file.read_text())["conforms"] is False


def test_exit_2_for_wrong_usage_before_any_work(run, tmp_path):
    assert run("check", "--json", tmp_path / "missing" / "report.json").exit_code == 2
    assert run("check", "--json", tmp_path).exit_code == 2
    assert run("check", "--cases", 0, "--no-photograph").exit_code == 2
    assert run("check", "--cases", -1).exit_code == 2
    assert run("bench", "--repetitions", 0).exit_code == 2


def test_exit_3_where_the_implementation_cannot_run(run, installed):
    result = run("check", "nope")
    assert result.exit_code == 3

    class Raises:
        name, version, spec, dtype = "raises", "0", "vit", "float32"

        def forward(self, *args):
            raise RuntimeError("no device")

    installed(raises=Raises())
    assert run("check", "--cases", 1, "--no-photograph").exit_code == 3


def test_small_cases_run_in_processes_with_the_installed_fast_path(run, tmp_path):
    pytest.importorskip("jax")
    file = tmp_path / "report.json"
    result = run("check", "vitfast", "--cases", 2, "--no-photograph", "--json", file)
    assert result.exit_code == 0, result.output
    assert [c["implementation"] for c in json.loads(file.read_text())["cases"]] == ["vitfast"] * 2


def test_deviations_prints_the_ledger(run, monkeypatch):
    monkeypatch.setattr(
        "vitspec.testing.upstream_figures.deviation_report", lambda: "DEV-1 [x] table"
    )
    result = run("deviations")
    assert (result.exit_code, result.output) == (0, "DEV-1 [x] table\n")


def test_version(run):
    assert run("--version").output == f"vitspec {__version__}\n"


def test_a_missing_extra_is_one_line():
    program = "import sys; sys.modules['typer'] = None\nfrom vitspec.cli import main\n"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stderr.strip() == (
        "the command needs typer: python -m pip install 'vitspec[testing]'"
    )


# ---- bench -------------------------------------------------------------------------------------


def test_the_products_are_those_that_the_specification_multiplies(monkeypatch):
    """Forward and backward of the small model, with every matmul of the specification counted."""
    import numpy as np

    from vitspec import ViTSpec, scalars
    from vitspec.testing.catalogue import Deviation, planted

    seen = []
    spy = Deviation(
        "spy", "both", "scalars:matmul", "return np.matmul(a, b)",
        "_seen.append(2 * a.size * (b.shape[-1] if b.ndim > 1 else 1)); return np.matmul(a, b)", "",
    )  # fmt: skip
    monkeypatch.setattr(scalars, "_seen", seen, raising=False)
    size = {"in_channels": 3, "height": 224, "width": 224}
    model = ViTSpec.init(TINY, **size, rng=np.random.default_rng(0))
    image = np.random.default_rng(1).standard_normal((3, 224, 224))
    with planted(spy):
        model.forward(image)
        forward = sum(seen)
        model.backward(image, np.array([1.0, -2.0, 0.5]))
        backward = sum(seen) - forward
    shapes = bench.products(TINY, 3, 224, 224)
    assert forward == bench.flops(shapes)
    # The backward runs the forward once, then two products for each; the head's outer product is
    # no matmul here, but counts as one.
    outer = 2 * TINY.num_classes * TINY.embed_dim
    assert backward == bench.flops(shapes) + bench.flops(bench.adjoint_products(shapes)) - outer
