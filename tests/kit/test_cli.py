"""The command: exit codes that a script can trust, tables, files."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from typer.testing import CliRunner

from vitspec import ViTConfig, __version__, bench
from vitspec.cli import app
from vitspec.testing import calibration

TINY = ViTConfig(
    patch_h=56, patch_w=56, stride=56, padding=0,
    embed_dim=8, hidden_dim=8, head_count=2, num_layers=2, num_classes=3,
)  # fmt: skip
FAST = ("--cases", 2, "--no-photograph", "--no-vectors")
FEW = (*FAST, "--laws", 1, "--no-degenerate")
WRONG = "planted:attention-scale-missing"


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *args: CliRunner().invoke(app, [str(a) for a in args])


# ---- check ---------------------------------------------------------------------------------------


def test_the_installed_fast_path_conforms(run, tmp_path):
    pytest.importorskip("jax")
    file = tmp_path / "report.json"
    only = ("--only", "[fv]*")  # forward and vjp: the laws compile more programs
    result = run("check", "vitfast", "vitfast-cls", *FAST, *only, "--json", file)
    assert result.exit_code == 0, result.output
    assert f"vitspec {__version__}: vitfast conforms, as tested" in " ".join(result.output.split())
    report = json.loads(file.read_text())
    assert [one["target"] for one in report["implementations"]] == ["vitfast", "vitfast-cls"]
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_exit_1_and_every_kind_of_report_where_something_departs(run, tmp_path):
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "junit", "markdown", "html")}
    options = [part for kind, file in files.items() for part in (f"--{kind}", file)]
    result = run("check", WRONG, *FAST, *options)
    assert result.exit_code == 1, result.output
    assert "does not conform" in result.output
    long = [line for line in result.output.splitlines() if len(line) > 80]
    assert all(line.startswith(("  reproduce", "  diagnose", "vitspec")) for line in long), long
    assert json.loads(files["json"].read_text())["conforms"] is False
    assert ElementTree.parse(files["junit"]).getroot().iter("failure")
    assert "does not conform" in files["markdown"].read_text()
    assert "<svg" in files["html"].read_text()


def test_the_command_that_a_failure_ends_with_reproduces_it(run, inline):
    result = run("check", WRONG, *FEW)
    words = " ".join(result.output.split())
    command = re.search(r"reproduce: vitspec (check .*?--(?:case|law) \d+)", words)[1].split()
    again = run(*command)
    assert again.exit_code == 1, again.output
    assert "reproduce: vitspec " + " ".join(command) in " ".join(again.output.split())


def test_only_the_named_checks_run(run, inline, tmp_path):
    file = tmp_path / "report.json"
    run("check", WRONG, "--only", "permute-*", "--law", 0, "--json", file)
    (report,) = json.loads(file.read_text())["implementations"]
    assert {r["check"].split("-")[0] for r in report["results"]} == {"permute"}


def test_a_configuration_of_the_users_own(run, inline, tmp_path):
    file = tmp_path / "report.json"
    config = "embed_dim=8,hidden_dim=6,head_count=2,num_layers=1,num_classes=3,patch_h=4,patch_w=4"
    result = run("check", WRONG, *FEW, "--config", f"{config},stride=4", "--json", file)
    assert result.exit_code == 1, result.output
    (report,) = json.loads(file.read_text())["implementations"]
    points = [r["point"] for r in report["results"] if r["check"] == "vjp"]
    assert points
    assert all("embed_dim=8" in point for point in points)


def test_a_declared_deviation_is_an_expected_failure(run, inline, tmp_path):
    """`expect` names the mistake that a diagnosis must find."""
    declaration = tmp_path / "deviations.toml"

    def declare(*lines):
        head = ["schema = 1", "[[deviation]]", "checks = ['*']", "kind = 'choice'"]
        declaration.write_text("\n".join([*head, *lines]))
        return run("check", WRONG, *FEW, "--declared", declaration)

    result = declare("reason = 'our scores are not scaled'")
    assert result.exit_code == 0, result.output
    assert "our scores are not scaled" in " ".join(result.output.split())
    expected = ["reason = 'so it is'", "expect = 'attention-scale-missing'"]
    assert declare(*expected).exit_code == 0
    expected[1] = "expect = 'kernel-flipped'"
    assert declare(*expected).exit_code == 1
    result = declare()
    assert result.exit_code == 2
    assert "reason" in result.output


def test_exit_2_for_wrong_usage_before_any_work(run, tmp_path):
    assert run("check", "--json", tmp_path / "missing" / "report.json").exit_code == 2
    assert run("check", "--html", tmp_path).exit_code == 2
    assert run("check", WRONG, "--only", "no-such-check").exit_code == 2
    assert run("check", "--cases", -1).exit_code == 2
    assert run("check", WRONG, "--config", "embed_dim=0").exit_code == 2
    assert run("check", WRONG, "--config", "no_such_field=1").exit_code == 2
    assert run("bench", "--repetitions", 0).exit_code == 2
    assert run("vectors", "grade", tmp_path / "missing").exit_code == 2
    assert run("shapes", "no_such_config").exit_code == 2


def test_exit_3_where_the_implementation_cannot_run(run):
    for target in ("nope", "no_module:x", "nowhere.py", "planted:nope"):
        assert run("check", target, *FAST).exit_code == 3
        assert run("diagnose", target).exit_code == 3
    assert run("check", WRONG, *FAST, "--dtype", "float16").exit_code == 3


# ---- the others ----------------------------------------------------------------------------------


def test_shapes_prints_every_shape(run, tmp_path):
    file = tmp_path / "shapes.json"
    result = run("shapes", "base", "--json", file)
    assert result.exit_code == 0, result.output
    assert "768" in result.output
    assert max(len(line) for line in result.output.splitlines()) <= 80
    assert json.loads(file.read_text())["schema"].startswith("vitspec-shapes/")


def test_diagnose_names_a_planted_mistake(run, tmp_path):
    file = tmp_path / "diagnosis.json"
    result = run("diagnose", WRONG, "--json", file)
    assert result.exit_code == 1, result.output
    assert "attention-scale-missing" in result.output
    assert json.loads(file.read_text())


def test_the_catalogue_lists_and_shows_a_mistake(run):
    assert "attention-scale-missing" in run("catalogue").output
    one = run("catalogue", "attention-scale-missing").output
    assert "vitspec check planted:attention-scale-missing" in " ".join(one.split())
    assert run("catalogue", "nope").exit_code == 2
    merged, now = (run("catalogue", name) for name in ("block-norms-shared", "layer-norm-shared"))
    assert merged.output == now.output
    assert "also read as: block-norms-shared" in now.output
    assert "models.block:block_trace" in now.output
    assert "models.transformer:encoder_layer_trace" in now.output
    from vitspec.testing.catalogue import catalogue_markdown

    assert run("catalogue", "--markdown").output == catalogue_markdown()


def test_tolerances_prints_and_renews_the_table(run, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "CASES_PER_MISTAKE", 0)
    page = tmp_path / "tolerances.md"
    page.write_text("# A page\n")
    result = run("tolerances", "--seeds", 1, "--dtype", "float32", "--markdown", page)
    assert result.exit_code == 0, result.output
    first = page.read_text()
    assert first.startswith("# A page")
    assert "chunked-softmax" in first
    run("tolerances", "--seeds", 1, "--dtype", "float32", "--markdown", page)
    assert page.read_text() == first


def test_deviations_prints_the_ledger(run, monkeypatch):
    monkeypatch.setattr("vitspec.upstream.figures.deviation_report", lambda: "DEV-1 [x] table")
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
