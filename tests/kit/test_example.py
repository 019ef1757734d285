"""The worked example in another language: it is right, and a mistake in it is caught."""

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vitspec import ViTConfig
from vitspec.testing.families import FAMILIES
from vitspec.testing.precision import PRECISIONS
from vitspec.testing.reference import Point, evaluate_spec, price_spec
from vitspec.testing.tolerance import grade
from vitspec.testing.vectors import export, grade_report, load

EXAMPLE = Path(__file__).parents[2] / "examples" / "rust"

pytestmark = pytest.mark.skipif(
    not (shutil.which("cargo") and shutil.which("rustc")), reason="needs a Rust toolchain"
)


def run(*command, cwd=None):
    return subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Compiles a copy of the example, with one passage replaced if asked for."""

    def compiled(old="", new=""):
        source = tmp_path_factory.mktemp("example") / "rust"
        shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("target", "vectors"))
        vit = source / "src" / "vit.rs"
        text = vit.read_text()
        if old:
            assert text.count(old) == 1, f"the passage to replace is not there once: {old}"
            vit.write_text(text.replace(old, new))
        # A target folder of its own: in a shared one cargo may take another copy's build for this.
        target = source / "target"
        built = run("cargo", "build", "--offline", "--target-dir", target, cwd=source)
        assert built.returncode == 0, built.stderr
        return target / "debug" / "vit-vectors"

    return compiled


@pytest.fixture(scope="module")
def program(build):
    return build()


PRECISION_FLAGS = [("float32", []), ("float64", ["--f64"])]


def answered(program, folder, *flags):
    """The vectors, exported and answered by the program; what it printed."""
    export(folder)
    ran = run(program, folder, *flags)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize(("dtype", "flags"), PRECISION_FLAGS)
def test_every_model_is_answered_and_conforms(program, tmp_path, dtype, flags):
    printed = answered(program, tmp_path, *flags)
    report = grade_report(tmp_path, dtype)
    assert [r for r in report.results if r.status not in ("passed", "skipped")] == []
    assert report.exit_code == 0
    # What is skipped: layers that the program says it has not.
    without = {line.split(": ")[0] for line in printed.splitlines() if "has no" in line}
    assert {str(r.place) for r in report.results if r.status == "skipped"} == {
        f"vector {case_id}" for case_id in without
    }
    assert all(load(case_id).kind == "layer" for case_id in without)
    page = (EXAMPLE / "README.md").read_text()
    assert printed.splitlines()[-1] in page
    assert f"vectors {report.verdict} (" in page


MISTAKES = {
    "the scale is missing": (
        "R::from_count(1) / R::from_count(d.max(1)).sqrt()",
        "R::from_count(1)",
    ),
    "the scale is missing in the backward": (
        "weights, &d_weights).map(|score| score * scale)",
        "weights, &d_weights).map(|score| score * (scale / scale))",
    ),
    "the second residual's gradient is dropped": ("&d_residual2 + &d_from_ffn", "d_from_ffn"),
    "the first residual's gradient is dropped": ("&d_residual1 + &d_from_mha", "d_from_mha"),
    "the layers' gradients come last first": ("layers.reverse();", ""),
    "the pooled gradient is not divided": (
        "None => d_pooled[(0, j)] / token_count",
        "None => d_pooled[(0, j)]",
    ),
    "padding is skipped on one side": (
        "(j * config.stride + dj).checked_sub(config.padding)?",
        "j * config.stride + dj",
    ),
    "patches are column-major": (
        "let (i, j) = (t / out_w, t % out_w);",
        "let out_h = config.patch_count() / out_w; let (j, i) = (t / out_h, t % out_h);",
    ),
    "the variance divides by D - 1": (
        "dot(&centred, &centred) / R::from_count(row.len())",
        "dot(&centred, &centred) / R::from_count(row.len() - 1)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_caught(build, tmp_path, mistake):
    answered(build(*MISTAKES[mistake]), tmp_path)
    report = grade_report(tmp_path, "float32")
    assert report.exit_code == 1
    assert any(result.failures for result in report.results)


def test_the_mistake_on_the_page_shows_as_it_says(build, tmp_path):
    page = " ".join((EXAMPLE / "README.md").read_text().split())
    old, new = MISTAKES["the scale is missing"]
    assert f"replace `{old}` by `{new}`" in page
    printed = answered(build(old, new), tmp_path)
    report = grade_report(tmp_path, "float32")
    assert printed.splitlines()[-1] in page
    assert f"`vectors {report.verdict}`" in page
    furthest = max((r.worst for r in report.results if r.failures), key=lambda grade: grade.ratio)
    assert furthest.tensor.rsplit(".", 1)[-1] in ("wq", "wk")


def write_case(folder, case_id, spec, config, size, inputs=None):
    """A case as `vitspec vectors export` writes it."""
    case = {"schema": "vitspec-vector/1", "id": case_id, "kind": "model", "spec": spec}
    case |= {
        "config": config,
        "image": dict(zip(("in_channels", "height", "width"), size, strict=True)),
    }
    (folder / case_id).mkdir(parents=True)
    (folder / case_id / "case.json").write_text(json.dumps(case))
    if inputs:
        save_file(inputs, folder / case_id / "inputs.safetensors")


def write_point(folder, case_id, point):
    inputs = point.params | {"images": point.images, "cotangent": point.cotangent}
    inputs = {name: np.ascontiguousarray(x, np.float32) for name, x in inputs.items()}
    write_case(folder, case_id, point.spec, asdict(point.config), point.images.shape[1:], inputs)


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    cases = [FAMILIES[spec].random_case(rng) for spec in ("vit", "vit-cls") for _ in range(10)]
    margin = 1e-3  # far from the kinks of the ReLU, so that rounding crosses none
    return {
        f"random-{i}": Point.of(case).away_from_kinks(margin).rounded(PRECISIONS["float32"])
        for i, case in enumerate(cases)
    }


@pytest.mark.parametrize(("dtype", "flags"), PRECISION_FLAGS)
def test_every_tensor_of_random_models_conforms(program, points, tmp_path, dtype, flags):
    for case_id, point in points.items():
        write_point(tmp_path, case_id, point)
    ran = run(program, tmp_path, *flags)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for case_id, point in points.items():
        truth = evaluate_spec(point)
        prices = price_spec(point, truth, PRECISIONS[dtype], 6, np.random.default_rng(0))
        found = load_file(tmp_path / case_id / "result.safetensors")
        assert {value.dtype for value in found.values()} == {np.dtype(dtype)}
        assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in truth.items()}
        grades = [grade(name, found[name], truth[name], prices[name]) for name in truth]
        assert [g for g in grades if not g.conforms] == [], (case_id, point.config)


ILL_FORMED = {
    "patch_h-zero": ({"patch_h": 0}, "patchH_ne0"),
    "patch_w-zero": ({"patch_w": 0}, "patchW_ne0"),
    "embed_dim-zero": ({"embed_dim": 0}, "embedDim_pos"),
    "hidden_dim-zero": ({"hidden_dim": 0}, "hiddenDim_pos"),
    "head_count-zero": ({"head_count": 0}, "headCount_pos"),
    "num_classes-zero": ({"num_classes": 0}, "numClasses_ne0"),
    "in_channels-zero": ({"in_channels": 0}, "h_inC"),
    "patch-too-large": ({"height": 15}, "h_tok"),
    "stride-zero": ({"stride": 0}, "h_tok"),
    "stride-negative": ({"stride": -1}, "nat"),
    "padding-text": ({"padding": "1"}, "nat"),
    "padding-fraction": ({"padding": 1.0}, "nat"),
    "padding-truth": ({"padding": True}, "nat"),
    "padding-null": ({"padding": None}, "nat"),
    "layers-huge": ({"num_layers": 2**31}, "nat"),
    "layers-astronomic": ({"num_layers": 10**40}, "nat"),
}


def test_an_ill_formed_configuration_is_rejected_by_its_label(program, tmp_path):
    for case_id, (changed, _) in ILL_FORMED.items():
        config = asdict(ViTConfig())
        size = {"in_channels": 3, "height": 16, "width": 16}
        size |= {name: value for name, value in changed.items() if name in size}
        config |= {name: value for name, value in changed.items() if name in config}
        write_case(tmp_path, case_id, "vit", config, size.values())
    ran = run(program, tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for case_id, (_, label) in ILL_FORMED.items():
        reason = (tmp_path / case_id / "rejected.txt").read_text()
        assert reason.startswith(f"{label}: "), (case_id, reason)
        assert "; " not in reason
        assert not (tmp_path / case_id / "result.safetensors").exists()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def absurd_header(path):
    path.write_bytes((2**64 - 1).to_bytes(8, "little") + path.read_bytes()[8:])


def another_shape(path):
    tensors = load_file(path)
    save_file(tensors | {"head.bias": np.zeros(99, np.float32)}, path)


def a_missing_tensor(path):
    tensors = load_file(path)
    del tensors["head.bias"]
    save_file(tensors, path)


def an_extra_tensor(path):
    save_file(load_file(path) | {"scale": np.zeros(1, np.float32)}, path)


def another_dtype(path):
    save_file(load_file(path) | {"head.bias": np.zeros(1)}, path)


def change_config(**fields):
    def change(path):
        path = path.with_name("case.json")
        case = json.loads(path.read_text())
        case["config"] |= fields
        path.write_text(json.dumps(case))

    return change


def not_json(path):
    path.with_name("case.json").write_text("[" * 10**6)


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        truncate,
        absurd_header,
        another_shape,
        a_missing_tensor,
        an_extra_tensor,
        another_dtype,
        not_json,
        pytest.param(change_config(num_layers=2**31 - 1), id="huge num_layers"),
        pytest.param(change_config(padding=2**31 - 1, stride=1), id="huge padding"),
        pytest.param(change_config(patch_h=2**31 - 1, patch_w=2**31 - 1), id="huge patch"),
        pytest.param(change_config(embed_dim=2**31 - 1, hidden_dim=2**31 - 1), id="huge width"),
    ],
)
def test_a_damaged_case_fails_alone_and_clearly(program, points, tmp_path, damage):
    bad, good = list(points.items())[-2:]  # of the CLS model, which no patch size makes ill-formed
    write_point(tmp_path, "bad", bad[1])
    write_point(tmp_path, "good", good[1])
    damage(tmp_path / "bad" / "inputs.safetensors")
    ran = run(program, tmp_path)
    assert ran.returncode == 1
    assert "bad: FAILED, " in ran.stdout
    assert "panicked" not in ran.stderr
    assert not (tmp_path / "bad" / "result.safetensors").exists()
    assert (tmp_path / "good" / "result.safetensors").exists()


def test_the_programs_own_tests_pass(tmp_path):
    source = shutil.copytree(
        EXAMPLE, tmp_path / "rust", ignore=shutil.ignore_patterns("target", "vectors")
    )
    ran = run("cargo", "test", "--offline", "--target-dir", tmp_path / "target", cwd=source)
    assert ran.returncode == 0, ran.stdout + ran.stderr
