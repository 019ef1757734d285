"""What a failure prints to run it again does so: the same check at the same place fails again."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from vitspec import VisionTransformerConfig, ViTConfig
from vitspec.cli import app
from vitspec.testing import Settings, check, parametrize_with_checks
from vitspec.testing.catalogue import deviation
from vitspec.testing.reference import SpecImplementation
from vitspec.testing.run import plan
from vitspec.testing.suites import SUITES, photograph

pytestmark = pytest.mark.slow

LEAN = "embed_dim=6,hidden_dim=8,head_count=2,num_layers=2,num_classes=3"
LEAN += ",patch_h=2,patch_w=2,stride=2"
PRACTICAL = "d2l,num_layers=1,image_h=8,image_w=8,patch_h=4,patch_w=4,embed_dim=8,head_count=2"
PRACTICAL += ",hidden_dim=6,num_classes=3"
FEW = "--laws 1 --interpolations 0 --no-degenerate"
"""For a test that is not about these places."""

ADAPTERS = """
from vitspec.testing.finding import find
from vitspec.testing.reference import SpecImplementation


class Base:
    name, version, spec, dtype = "base", "1", "vit", ("float32", "float64")

    def __init__(self):
        self.right = SpecImplementation(self.spec)

    def forward(self, config, params, images):
        return self.right.forward(config, params, images)["logits"]

    def vjp(self, *arguments):
        return self.right.vjp(*arguments)


class Raises(Base):
    def forward(self, config, params, images):
        if config.num_layers == 3:
            raise RuntimeError("three layers")
        return super().forward(config, params, images)


class Crashes(Base):
    def forward(self, config, params, images):
        if config.num_layers == 3:
            __import__("os")._exit(7)
        return super().forward(config, params, images)


class Accepts(Base):
    def forward(self, config, params, images):
        if not (config.embed_dim and config.num_classes):
            return images.sum((1, 2, 3))[:, None] * params["head.bias"]
        return super().forward(config, params, images)


class Unsteady(Base):
    calls = 0

    def vjp(self, *arguments):
        self.calls += 1
        grads, d_images = super().vjp(*arguments)
        return {n: g * (1 + 2**-20 * (self.calls % 2)) for n, g in grads.items()}, d_images


class Names(Base):
    def supports(self, config):
        return 7 if config.num_layers == 2 else None
"""


@pytest.fixture
def adapters(tmp_path, monkeypatch):
    (tmp_path / "my adapters.py").write_text(ADAPTERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return "my adapters.py"


def run(command, file, codes=(1, 3)):
    """What `vitspec` with these words ends with, and what it found."""
    done = CliRunner().invoke(app, [*command, "--json", str(file)])
    assert done.exit_code in codes, done.output
    (report,) = json.loads(file.read_text())["implementations"]
    return done.exit_code, report


def shown(result):
    """All of a result but what runs it again."""
    return {name: value for name, value in result.items() if name != "reproduce"}


def failures_by_suite(report):
    """The first failure of each suite, by the first word of its place."""
    bad = [r for r in report["results"] if r["status"] in ("failed", "errored")]
    return {r["place"].split(" ")[0]: r for r in reversed(bad)}


def assert_reproduced(report, tmp_path, suites):
    """Each suite's first failure fails again, number for number, when its command is typed."""
    failures = failures_by_suite(report)
    assert failures.keys() >= suites, failures.keys()
    for suite in sorted(suites):
        failure = failures[suite]
        program, *words = shlex.split(failure["reproduce"])
        assert program == "vitspec"
        code, again = run(words, tmp_path / "again.json")
        assert code == 1 or failure["status"] != "failed", failure["reproduce"]
        assert shown(failure) in [shown(result) for result in again["results"]]
        assert {r["place"].split(" ")[0] for r in again["results"]} == {suite}


@pytest.mark.parametrize("more", ["", "--seed 3", "--dtype float64 --seed 1", "--only vjp"])
def test_a_case_a_law_and_a_vector(inline, adapters, tmp_path, more):
    command = f"check planted:attention-gradient-scale-twice --no-photograph {more} {FEW}"
    _, report = run([*shlex.split(command), "--cases", "3"], tmp_path / "first.json")
    suites = {"case", "law"} | ({"vector"} if "only" not in more else set())
    assert_reproduced(report, tmp_path, suites)


@pytest.mark.parametrize("more", ["", "--dtype float64 --seed 2", "--only vjp"])
@pytest.mark.parametrize(
    ("mistake", "config"),
    [("attention-gradient-scale-twice", LEAN), ("layer-scale-gradient-stopped", PRACTICAL)],
)
def test_a_configuration_of_the_users_own(inline, adapters, tmp_path, mistake, config, more):
    config += ",layer_scale=true" if config is PRACTICAL else ""
    command = f"check planted:{mistake} --config {config} --cases 2 {more} {FEW}"
    _, report = run(shlex.split(command), tmp_path / "first.json")
    assert_reproduced(report, tmp_path, {"case", "law"})
    points = {result["point"] for result in report["results"] if result["place"] == "case 0"}
    assert all("num_classes=3" in point for point in points)


@pytest.mark.parametrize("more", ["", "--seed 4 --dtype float64", f"--config {PRACTICAL}"])
def test_images_of_another_size(inline, adapters, tmp_path, more):
    command = f"check planted:positions-antialiased --no-photograph --cases 0 --laws 0 {more}"
    _, report = run(shlex.split(command), tmp_path / "first.json")
    assert_reproduced(report, tmp_path, {"interpolation"})


@pytest.mark.parametrize("more", ["", "--seed 4 --dtype float64", f"--config {LEAN}"])
def test_a_degenerate_point(inline, adapters, tmp_path, more):
    command = f"check planted:attention-gradient-scale-twice --only 'degenerate.*' {more}"
    _, report = run(shlex.split(command), tmp_path / "first.json")
    assert_reproduced(report, tmp_path, {"degenerate"})


@pytest.mark.parametrize("more", ["", "--seed 4 --dtype float64", f"--config {LEAN}", "--laws 6"])
def test_an_identity(inline, adapters, tmp_path, more):
    command = f"check planted:attention-gradient-scale-twice --identities {more}"
    _, report = run(shlex.split(command), tmp_path / "first.json")
    assert_reproduced(report, tmp_path, {"identities"})


@pytest.mark.parametrize("more", ["", "--only ill-formed.numClasses_ne0", f"--config {LEAN}"])
def test_an_ill_formed_configuration(inline, adapters, tmp_path, more):
    command = f"check '{adapters}:Accepts' --no-photograph --cases 1 --laws 0 --strict {more}"
    code, report = run(shlex.split(command), tmp_path / "first.json")
    assert code == 1
    assert_reproduced(report, tmp_path, {"ill-formed"})


def test_an_ill_formed_configuration_that_is_only_reported(inline, adapters, tmp_path):
    """It makes no exit code 1; the command that shows it alone does, or it would show nothing."""
    command = f"check '{adapters}:Accepts' --no-photograph --no-vectors --cases 1 --laws 0"
    code, report = run(shlex.split(f"{command} --no-degenerate"), tmp_path / "first.json", (0,))
    assert code == 0
    assert_reproduced(report, tmp_path, {"ill-formed"})


@pytest.mark.parametrize("name", ["Raises", "Names"])
@pytest.mark.parametrize("more", ["", "--seed 5 --dtype float64"])
def test_an_implementation_that_does_not_run(inline, adapters, tmp_path, name, more):
    command = f"check '{adapters}:{name}' --no-photograph --no-vectors --cases 6 --laws 6 {more}"
    code, report = run(shlex.split(command), tmp_path / "first.json")
    assert code == 3
    assert_reproduced(report, tmp_path, {"case", "law"})


def test_what_differs_from_run_to_run(inline, adapters, tmp_path):
    command = f"check '{adapters}:Unsteady' --no-photograph --no-vectors --only determinism"
    _, report = run(shlex.split(command), tmp_path / "first.json")
    assert_reproduced(report, tmp_path, {"law"})


def test_a_crash_is_of_the_case_that_crashed_and_what_ran_before_it(adapters, tmp_path):
    """In real processes; the cases after it are said not to have run."""
    command = f"check '{adapters}:Crashes' --no-photograph --no-vectors --cases 5 --laws 0"
    code, report = run([*shlex.split(command), "--no-ill-formed"], tmp_path / "first.json")
    assert code == 3
    crash, left = [r for r in report["results"] if r["status"] == "errored"]
    assert (crash["place"], left["place"]) == ("case 1", "case 2 and 2 more")
    assert "exit code 7" in crash["reason"]
    assert left["reason"] == f"not run: {crash['reason']}"
    words = shlex.split(crash["reproduce"])[1:]
    assert words.count("--case") == 2
    code, again = run(words, tmp_path / "again.json")
    assert code == 3
    assert shown(crash) in map(shown, again["results"])


def test_the_photograph(inline, adapters, tmp_path, monkeypatch):
    """The logits of a model without scale; a small model, for at full size it takes minutes."""
    small = ViTConfig(patch_h=32, patch_w=32, stride=32, padding=0, embed_dim=16, hidden_dim=24,
                      head_count=4, num_layers=2, num_classes=5)  # fmt: skip
    trial = photograph.photograph_trial
    monkeypatch.setattr(photograph, "photograph_trial", lambda *given: trial(*given, config=small))
    command = "check planted:attention-scale-missing --cases 0 --laws 0 --no-vectors"
    _, report = run([*shlex.split(command), "--only", "forward"], tmp_path / "first.json")
    assert_reproduced(report, tmp_path, {"photograph"})


# ---- every suite, by construction ------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
def test_a_unit_alone_is_planned_alone(suite):
    """Whatever was asked for, a suite's units alone are those, with the same numbers."""
    config = ViTConfig(embed_dim=8, head_count=2)
    single = 2 if suite == "identities" or SUITES[suite].option else None
    singles = {"vectors": ("basic-vit", None), "degenerate": ("zero-images",)}
    for index in singles.get(suite, (single,)):
        only = None if index is None else "v*"
        given = Settings(seed=7, dtype="float64", cases=9, case=(1, 2), law=5, only=only)
        alone = SUITES[suite].alone(given, (index,))
        assert (alone.seed, alone.dtype) == (7, "float64")
        places = [p for p in plan(alone) if p.suite == suite]
        assert SUITES[suite].place(index) in places
        assert {p.suite for p in plan(alone)} <= {suite}
    if suite not in ("photograph", "vectors"):
        assert SUITES[suite].alone(Settings(config=config), (2,)).config == config


def test_each_field_of_the_settings_is_said_by_its_option(inline, adapters, monkeypatch):
    """Else a command would silently check something else."""
    from vitspec.commands import check as command

    read = []
    monkeypatch.setattr(command, "_run", lambda targets, settings, timeout: read.append(settings))
    values = {
        "config": ViTConfig(embed_dim=8, head_count=2), "only": "vjp*", "case": (3, 4),
        "interpolation": (1,), "law": (2,), "vector": ("a", "b"), "dtype": "float64", "seed": 9,
        "point": ("a",),
    }  # fmt: skip
    for one in fields(Settings):
        value = values.get(one.name, (not one.default) if isinstance(one.default, bool) else 77)
        given = Settings(**{one.name: value})
        words = shlex.split(given.as_options())
        CliRunner().invoke(app, ["check", "planted:pre-norm", *words])
        assert read.pop() == given, one.name


# ---- objects, which no command can name ----------------------------------------------------------

NAMES = {one.__name__: one for one in (Settings, check, ViTConfig, VisionTransformerConfig)}


@pytest.mark.parametrize(
    ("spec", "mistake", "settings"),
    [
        ("vit", "attention-gradient-scale-twice", {}),
        ("vit", "attention-gradient-scale-twice", {"dtype": "float64", "seed": 3, "only": "vjp"}),
        ("vit", "attention-gradient-scale-twice", {"identities": True, "laws": 1}),
        ("vit-cls", "pre-norm", {"config": ViTConfig(2, 2, 2, 0, 6, 8, 2, 2, 3)}),
        ("vit", "pre-norm", {"vectors": True, "cases": 0, "laws": 0}),
        ("vision-transformer", "positions-antialiased", {"cases": 0, "laws": 0}),
        ("vit", "attention-gradient-scale-twice", {"cases": 0, "laws": 0, "only": "degenerate.*"}),
    ],
)
def test_the_call_in_python_fails_again(spec, mistake, settings):
    one = SpecImplementation(spec, mistakes=[deviation(mistake)])
    report = check(one, **{"cases": 2, "laws": 1} | settings)
    failures = {r.place.suite: r for r in reversed(report.results) if r.status == "failed"}
    assert failures
    assert "check(implementation, Settings(" in str(report)
    for failure in failures.values():
        call = report.reproduce(failure)
        again = eval(call, NAMES | {"implementation": one})
        key = (failure.check, failure.place, failure.point, failure.grades)
        assert key in [(r.check, r.place, r.point, r.grades) for r in again.results]
        assert {r.place.suite for r in again.results} == {failure.place.suite}


TEST = """
from vitspec.testing import SpecImplementation, parametrize_with_checks
from vitspec.testing.catalogue import deviation

wrong = SpecImplementation("vit", mistakes=[deviation("attention-gradient-scale-twice")])

@parametrize_with_checks([wrong])
def test_it(implementation, check):
    check(implementation)
"""


def test_one_broken_implementation_does_not_keep_the_others_from_being_tested():
    broken = SimpleNamespace(name="broken", spec="vit", dtype="float31", supports_size=None)
    mark = parametrize_with_checks([broken, SpecImplementation("vit")])
    ids = [parameter.id for parameter in mark.args[1]]
    assert {"broken-vjp", f"{SpecImplementation('vit').name}-vjp"} <= set(ids)


FIXTURE = """
def test_vjp(vitspec_check):
    from vitspec.testing import SpecImplementation
    from vitspec.testing.catalogue import deviation

    mistakes = [deviation("attention-gradient-scale-twice")]
    vitspec_check(SpecImplementation("vit", mistakes=mistakes), only="vjp")
"""


@pytest.mark.parametrize("test", [TEST, FIXTURE], ids=["decorator", "fixture"])
def test_a_test_says_how_to_run_it_again(tmp_path, test):
    (tmp_path / "test_mine.py").write_text(test)
    options = ["--vitspec-seed", "3", "--vitspec-cases", "2"]

    def pytest_says(*words):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"CI": ""}
        )

    first = pytest_says("test_mine.py", "-k", "vjp and not (interpolation or degenerate)", *options)
    assert first.returncode == 1, first.stdout + first.stderr
    program, *words = shlex.split(re.search(r"reproduce: (pytest .*)", first.stdout)[1])
    assert program == "pytest"
    again = pytest_says(*words)
    assert again.returncode == 1, again.stdout
    said = re.compile(r"vjp at case \d+ .*")
    assert said.search(first.stdout)[0] == said.search(again.stdout)[0]
