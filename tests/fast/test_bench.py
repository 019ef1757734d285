"""`vitfast bench`: everybody computes the same function, takes turns, and is reported.

Nothing here depends on how long anything takes.
"""

import functools
import itertools
import json
import math
import os
import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from support.compare import assert_close, assert_flat_close
from vitfast.bench import measure, report, results, sequences
from vitfast.bench.cases import FAMILIES, FORWARD, GRADIENT, SIZES, SQUARE, TRAIN_STEP, Case
from vitfast.bench.measure import Outcome
from vitfast.bench.rows import CEILINGS, PEERS, ROWS, Row, choose
from vitfast.bench.worker import visit
from vitfast.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "bench.md"
JAX_ROWS = [row for row in ROWS if "torch" not in row.packages]
FAKES = "support.bench_models"
COMMAND = import_module("vitfast.commands.bench")


def toy(family="post-norm", dtype="float64", **fields):
    return Case(family, "toy", 2, dtype, **fields)


@functools.cache
def built(family, name, dtype="float64"):
    """A row's model, in this process."""
    row = next(row for row in ROWS if row.name == name)
    module, function = row.build.split(":")
    with jax.enable_x64(dtype == "float64"):
        return getattr(import_module(module), function)(toy(family, dtype), "cpu", **row.options)


def results_of(family, name, dtype="float64"):
    with jax.enable_x64(dtype == "float64"):
        return built(family, name, dtype).results()


# ---- the same function -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["vitfast-scan", "vitfast-loop"])
def test_vitfast_and_the_textbook_compute_the_same_function(family, name):
    ours, theirs = results_of(family, name), results_of(family, "jax")
    assert {"logits", "loss", "images", *toy(family).shapes()} == ours.keys()
    # The gradient of a key's bias is 0: softmax does not see it. What is found is rounding.
    noise = [n for n in ours if n.endswith("mha.bk")]
    for key_bias in noise:
        scale = np.abs(theirs[key_bias.replace("bk", "bq")]).max()
        assert max(np.abs(each.pop(key_bias)).max() for each in (ours, theirs)) < 1e-11 * scale
    assert len(noise) == (2 if family == "pre-norm" else 0)
    assert_flat_close(ours, theirs, 1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_flax_modules_compute_the_same_function(family):
    """In float32, for `jax.nn.dot_product_attention` takes its softmax in no other type."""
    theirs, truth = results_of(family, "nnx", "float32"), results_of(family, "vitfast-loop")
    names = [name for name in truth if not name.endswith("mha.bk")]
    assert_flat_close({n: theirs[n] for n in names}, {n: truth[n] for n in names}, 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_all_rows_compute_in_bfloat16(family):
    truth = results_of(family, "jax")["logits"]
    for row in choose(family, (FORWARD,), "cpu"):
        if "torch" not in row.packages:
            logits = built(family, row.name, "bfloat16").passes[FORWARD]()
            assert logits.dtype == jnp.bfloat16
            error = np.abs(np.asarray(logits, np.float64) - truth).max() / np.abs(truth).max()
            assert 2**-12 < error < 2**-4


def test_parameters_are_random_and_the_same_in_every_type():
    for family in FAMILIES:
        parameters = toy(family).parameters()
        assert {name: array.shape for name, array in parameters.items()} == toy(family).shapes()
        narrow = toy(family, "float32").parameters()
        for name, array in parameters.items():
            assert np.abs(array).min() > 0, name
            assert array.std() > 0.005, name
            assert narrow[name].dtype == np.float32
            assert_close(narrow[name], array, 1e-6, name)


# ---- the work that counts ----------------------------------------------------------------------


def dot_work(text):
    """Operations of all products in a StableHLO program, through its functions."""
    bodies = dict(re.findall(r"func\.func \w+ @(\S+?)\((.*?)\n  }", text, re.DOTALL))

    @functools.cache
    def work(name):
        total = sum(work(called) for called in re.findall(r"call @([\w.]+)\(", bodies[name]))
        for line in bodies[name].splitlines():
            if "stablehlo.dot_general" in line:
                contracted = re.search(r"contracting_dims = \[([\d, ]*)\] x", line)[1]
                left, result = re.search(r": \(tensor<(.*?)>.*-> tensor<(.*?)>", line).groups()
                sizes = [int(n) for n in left.split("x")[:-1]]
                depth = math.prod(sizes[int(d)] for d in contracted.split(","))
                total += 2 * depth * math.prod(int(n) for n in result.split("x")[:-1])
        return total

    return work("main")


@pytest.mark.parametrize(
    ("family", "name"),
    [("post-norm", "vitfast-loop"), ("pre-norm", "vitfast-loop"), ("pre-norm", "jax")],
)
@pytest.mark.parametrize("which", [FORWARD, GRADIENT])
def test_the_work_of_a_pass_is_that_of_the_products_in_its_program(family, name, which):
    with jax.enable_x64(True):
        text = built(family, name).lowered(which).as_text()
    assert dot_work(text) == toy(family).work(which)


def test_the_work_of_vit_base_is_the_published_one():
    """35.1 G operations for an image with CLS token: 17.56 G multiply-adds."""
    assert Case("pre-norm", "base", 1).work(FORWARD) == pytest.approx(35.13e9, rel=1e-3)
    assert Case("pre-norm", "base", 8).work(GRADIENT) == 24 * Case("pre-norm", "base", 1).work(
        FORWARD
    )


def test_the_ceiling_runs_the_products_of_each_pass():
    case = toy(dtype="float32")
    for row in CEILINGS:
        if not row.missing():
            module, function = row.build.split(":")
            model = getattr(import_module(module), function)(case, "cpu", side=64)
            assert model.passes.keys() == {FORWARD, GRADIENT, SQUARE}
            for run in model.passes.values():
                run()


def test_the_jax_ceiling_leaves_out_no_product():
    module = import_module("vitfast.bench.peers.jax_products")
    model = module.ceiling(toy(dtype="float32"), "cpu", side=64)
    for name in (FORWARD, GRADIENT):
        flops = model.lowered(name).compile().cost_analysis()["flops"]
        assert toy().work(name) <= flops < 1.01 * toy().work(name)


# ---- turns -------------------------------------------------------------------------------------


def fake(name, folder, function="logged", **fields):
    options = {"name": name, "folder": str(folder)} if function == "logged" else {}
    return Row(name, "a fake", f"{FAKES}:{function}", options, packages=(), **fields)


def measured(rows, monkeypatch, repetitions=2, **options):
    """The outcomes by name, without ceilings."""
    monkeypatch.setattr(measure, "CEILINGS", ())
    monkeypatch.setattr(measure, "VISIT", 0.0)
    arguments = {"device": "cpu", "threads": 1, "seconds": 1e9, **options}
    outcomes, _ = measure.measure(toy(), rows, repetitions=repetitions, **arguments)
    return {outcome.row.name: outcome for outcome in outcomes}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_rows_take_turns_and_those_that_wait_are_stopped(tmp_path, monkeypatch):
    steps = []
    rows = [fake("a", tmp_path), fake("b", tmp_path)]
    found = measured(rows, monkeypatch, step=steps.append)
    log = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    # A visit runs a pass once or several times, by how long it takes.
    turns = [turn for turn, _ in itertools.groupby(f"{line[0]} {line[1]}" for line in log)]
    assert turns == [f"{name} {each}" for name in "ab" for each in (FORWARD, GRADIENT)] * 3
    states = {line[2] for line in log if len(line) == 3}
    assert states == {"T"}
    assert len([line for line in log if len(line) == 3]) == len(log) - 2  # a started alone
    assert len(steps) == measure.steps(rows, 2)
    for outcome in found.values():
        assert outcome.status == "measured"
        assert outcome.seconds.keys() == outcome.first_call.keys() == {FORWARD, GRADIENT}
        assert outcome.visits == 4
        assert outcome.memory["forward_temp"] == 7
    grown = found["a"].memory["rss_gradient"] - found["a"].memory["rss_forward"]
    assert 190e6 < grown < 300e6


def test_no_process_is_left_behind(tmp_path, monkeypatch):
    measured([fake("a", tmp_path)], monkeypatch, repetitions=1)
    pid = int((tmp_path / "a.pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_row_that_fails_is_a_line_and_the_others_go_on(tmp_path, monkeypatch):
    missing = replace(fake("missing", tmp_path), packages=("no_such_package", "json"))
    broken = [fake(name, tmp_path, name) for name in ("raises", "dies", "dies_when_visited")]
    found = measured([missing, *broken, fake("a", tmp_path)], monkeypatch)
    assert {name: one.status for name, one in found.items()} == {
        "missing": "not installed", "raises": "failed", "dies": "failed",
        "dies_when_visited": "failed", "a": "measured",
    }  # fmt: skip
    assert found["missing"].detail == "python -m pip install no_such_package"
    assert found["raises"].detail == "ValueError: no such model"
    assert found["dies"].detail == "its process ended with code 5"
    assert found["dies_when_visited"].detail == "its process ended with code 6"
    assert not any(found[row.name].seconds for row in broken)


def test_no_repetition_begins_when_the_time_is_up(tmp_path, monkeypatch):
    found = measured([fake("a", tmp_path)], monkeypatch, repetitions=3, seconds=0.0)
    assert found["a"].visits == 2


def test_the_smallest_time_counts():
    outcome = Outcome(ROWS[0], "measured")
    for seconds, disturbed in ((3.0, False), (2.0, True), (4.0, False)):
        outcome.count(FORWARD, measure.Visit(seconds, 1, disturbed))
    assert (outcome.seconds, outcome.visits, outcome.disturbed) == ({FORWARD: 2.0}, 3, 1)


def test_a_visit_runs_once_in_vain_unless_a_call_is_long(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("vitfast.bench.worker.time.perf_counter", lambda: next(clock) / 100)
    calls = []
    found = visit(lambda: calls.append(None), 0.0)
    assert (len(calls), found.calls) == (2, 1)
    monkeypatch.setattr("vitfast.bench.worker.time.perf_counter", lambda: next(clock) * 2.0)
    found = visit(lambda: calls.append(None), 1e6)
    assert (len(calls), found.calls) == (3, 1)


@pytest.mark.parametrize("call", [0.5, 2.0], ids=["short calls", "a long call"])
@pytest.mark.parametrize("others", [0.0, 0.5])
def test_a_visit_knows_whether_others_used_the_cores(call, others, monkeypatch):
    """Others take so many cores, and this process one, while a call lasts."""
    clock = [0.0]

    def run():
        clock[0] += call

    worker = import_module("vitfast.bench.worker")
    monkeypatch.setattr(
        worker,
        "time",
        SimpleNamespace(perf_counter=lambda: clock[0], process_time=lambda: clock[0]),
    )
    monkeypatch.setattr(worker, "_busy", lambda: clock[0] * (1 + others))
    assert visit(run, 1.0).disturbed == (others > 0)


# ---- figures -----------------------------------------------------------------------------------


def outcome_of(name, forward, gradient, **fields):
    row = next((row for row in (*ROWS, *CEILINGS) if row.name == name), None)
    memory = {"rss_imported": 10**8, "rss_built": 2 * 10**8, "rss_forward": 3 * 10**8,
              "rss_gradient": 4 * 10**8, **fields}  # fmt: skip
    seconds = {FORWARD: forward, GRADIENT: gradient}
    first = {FORWARD: 1.5, GRADIENT: 2.5}
    return Outcome(row, "measured", "", seconds, first, memory, 4, 1)


@pytest.fixture
def table():
    """vitfast at 2 and 6 ms, peers at 4 and 5, 3 and 9; products at 1 and 3, or 2 and 2."""
    timm = Outcome(next(r for r in ROWS if r.name == "timm"), "not installed", "python -m pip x")
    broken = Outcome(next(r for r in ROWS if r.name == "nnx"), "failed", "ValueError: no")
    outcomes = [
        outcome_of("vitfast-scan", 0.004, 0.008),
        outcome_of("vitfast-loop", 0.002, 0.006, forward_temp=5, gradient_temp=6),
        outcome_of("torch-sdpa", 0.004, 0.005),
        outcome_of("jax", 0.003, 0.009),
        timm,
        broken,
    ]
    ceilings = [outcome_of("ceiling-jax", 0.001, 0.003), outcome_of("ceiling-torch", 0.002, 0.002)]
    for one in ceilings:
        one.seconds[SQUARE] = 0.01 if "jax" in one.row.name else 0.02
    return results.CaseResult(toy("pre-norm", "float32"), outcomes, ceilings, side=100)


def test_ratios_and_fractions(table):
    work = table.case.work(FORWARD)
    assert table.ceiling(FORWARD) == results.Ceiling(work / 0.001, "jax")
    assert table.ceiling(GRADIENT) == results.Ceiling(3 * work / 0.002, "torch")
    assert table.ceiling(SQUARE) == results.Ceiling(2e6 / 0.01, "jax")
    ours = next(r for r in results.to_json([table], [], {})["cases"][0]["rows"]
                if r["name"] == "vitfast-loop")["passes"]  # fmt: skip
    assert ours[FORWARD]["times_fastest_peer"] == pytest.approx(2 / 3)
    assert ours[GRADIENT]["times_fastest_peer"] == pytest.approx(6 / 5)
    assert ours[FORWARD]["images_per_second"] == pytest.approx(1000)
    assert ours[FORWARD]["of_own_products"] == pytest.approx(1 / 2)
    assert ours[GRADIENT]["of_own_products"] == pytest.approx(1 / 3)
    assert ours[FORWARD]["of_square_product"] == pytest.approx(work / 0.002 / 2e8)
    assert ours[GRADIENT]["first_call_s"] == 2.5


def paths_of(data, prefix=""):
    """The keys on the way to each leaf; what depends on the case, or on the row, is a star."""
    if isinstance(data, list):
        return set().union(*(paths_of(one, prefix + "[]") for one in data))
    if not isinstance(data, dict):
        return {prefix}
    found = set()
    for key, value in data.items():
        if prefix.rpartition(".")[2] in ("gflop", "ceiling", "passes", "memory", "environment"):
            key = "*"
        found |= paths_of(value, f"{prefix}.{key}".removeprefix("."))
    return found


def test_the_json_has_the_keys_that_the_page_explains(table):
    attention = [
        {
            "implementation": "xla",
            "tokens": 4,
            "detail": "does not fit",
            "forward_temp": 1,
            "gradient_temp": 2,
            "forward_ms": 1.0,
            "gradient_ms": 2.0,
        }
    ]
    device = {"platform": "cpu", "kind": "cpu", "threads": 2, "keep_memory": False}
    data = results.to_json([table], attention, device)
    assert data["schema"] == "vitfast-bench/1"
    json.dumps(data, allow_nan=False)
    (section,) = re.findall(r"^## The JSON$(.*?)^## ", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert paths_of(data) == set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))


def test_the_page_names_every_row_and_every_option():
    page, usage = PAGE.read_text(), run("bench", "--help").output
    for row in ROWS:
        assert f"| `{row.name}` |" in page
    for option in set(re.findall(r"--[a-z-]+", usage)) - {"--help"}:
        assert f"`{option}" in page, option


def test_the_tables_say_who_was_fastest_and_who_was_not_there(table):
    sheets = [*report.case_sheets(table), report.summary_sheet([table])]
    page = report.markdown(
        sheets, {"platform": "cpu", "kind": "cpu", "threads": 2, "keep_memory": True}
    )
    assert "cpu, 2 threads, freed memory kept." in page

    lines = {tuple(cell.strip() for cell in line.split("|")[1:3]) for line in page.splitlines()
             if line.startswith("|")}  # fmt: skip
    assert ("vitfast-loop", "2") in lines
    assert ("vitfast-loop", "6") in lines
    assert "timm: not installed, python -m pip x" in page
    assert "nnx: failed, ValueError: no" in page
    assert "2 threads" in page
    assert "4 of 16 visits" in page
    (*_, gradient) = report.summary_sheet([table]).rows
    assert gradient[1:] == ["6 vitfast-loop", "5 torch-sdpa", "0.83", "9 jax", "1.50"]
    widths = {len(row) for sheet in sheets for row in [sheet.columns, *sheet.rows]}
    assert widths == {len(sheet.columns) for sheet in sheets}


# ---- the command -------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "100"})


@pytest.mark.parametrize(
    "arguments",
    [
        ("--size", "huge"),
        ("--dtype", "float16"),
        ("--family", "mid-norm"),
        ("--peers", "keras"),
        ("--batch", 0),
        ("--train-step", "--sequence", 8),
        ("--json", "/no/such/folder/x.json"),
        ("--markdown", "/"),
    ],
)
def test_wrong_usage_is_exit_2_before_any_work(arguments, monkeypatch):
    monkeypatch.setattr(COMMAND, "in_fresh_process", lambda *_: pytest.fail("work"))
    assert run("bench", *arguments).exit_code == 2


@pytest.fixture
def quick(monkeypatch):
    """No process: the device is a CPU and `measure` is what a test says; its calls."""
    calls = []

    def use(outcomes):
        def measure_(case, rows, **options):
            calls.append((case, rows, options))
            return outcomes(rows), []

        monkeypatch.setattr(COMMAND, "measure", measure_)
        device = {"platform": "cpu", "kind": "cpu"}
        monkeypatch.setattr(COMMAND, "in_fresh_process", lambda *_: dict(device))
        return calls

    return use


def all_measured(rows):
    return [outcome_of(row.name, 0.001 * (i + 1), 0.002) for i, row in enumerate(rows)]


def test_every_case_is_measured_with_the_same_options(quick, tmp_path):
    calls = quick(all_measured)
    found = run(
        "bench",
        "--size",
        "toy",
        "--size",
        "tiny",
        "--batch",
        4,
        "--threads",
        1,
        "--repetitions",
        3,
        "--json",
        tmp_path / "x.json",
        "--markdown",
        tmp_path / "x.md",
    )
    assert found.exit_code == 0, found.output
    cases = [(c.family, c.size, c.batch, c.dtype) for c, _, _ in calls]
    assert cases == [(f, s, 4, "float32") for f in FAMILIES for s in ("toy", "tiny")]
    for case, rows, options in calls:
        assert options["threads"] == 1
        assert options["repetitions"] == 3
        assert {row.name for row in rows} == {
            row.name for row in ROWS if case.family in row.families and "cpu" in row.devices
        }
    data = json.loads((tmp_path / "x.json").read_text())
    assert [one["size"] for one in data["cases"]] == ["toy", "tiny"] * 2
    assert "### vitfast beside its peers" in (tmp_path / "x.md").read_text()


def test_peers_can_be_chosen_and_vitfast_is_always_there(quick):
    calls = quick(all_measured)
    assert run("bench", "--size", "toy", "--batch", 1, "--peers", "jax").exit_code == 0
    for _, rows, _ in calls:
        assert [row.name for row in rows] == ["vitfast-scan", "vitfast-loop", "jax"]


@pytest.mark.parametrize(("name", "code"), [("vitfast-loop", 3), ("jax", 0)])
def test_exit_3_if_vitfast_fails_and_0_if_a_peer_does(quick, name, code):
    def outcomes(rows):
        return [Outcome(o.row, "failed", "no reason") if o.row.name == name else o
                for o in all_measured(rows)]  # fmt: skip

    quick(outcomes)
    found = run("bench", "--size", "toy", "--batch", 1)
    assert found.exit_code == code
    assert "no reason" in " ".join(found.output.split())


def test_training_is_in_bfloat16_of_the_specifications_function(quick):
    calls = quick(lambda rows: [Outcome(row, "failed", "x") for row in rows])
    run("bench", "--size", "toy", "--batch", 1, "--train-step")
    ((case, rows, _),) = calls
    assert (case.family, case.dtype, case.param_dtype) == ("post-norm", "bfloat16", "float32")
    assert [row.name for row in rows] == ["vitfast-scan", "vitfast-loop", "torch-sdpa"]
    on_gpu = choose("post-norm", (TRAIN_STEP,), "gpu")
    assert [row.name for row in on_gpu][-1] == "torch-compile"


def test_the_command_measures(tmp_path):
    """Once for real: processes, rows on JAX, ceilings, files."""
    found = run(
        "bench",
        "--size",
        "toy",
        "--batch",
        2,
        "--family",
        "post-norm",
        "--peers",
        "jax",
        "--repetitions",
        1,
        "--json",
        tmp_path / "x.json",
    )
    assert found.exit_code == 0, found.output
    (case,) = json.loads((tmp_path / "x.json").read_text())["cases"]
    assert case["ceiling"].keys() == {FORWARD, GRADIENT, SQUARE}
    rows = {row["name"]: row for row in case["rows"]}
    assert rows.keys() == {"vitfast-scan", "vitfast-loop", "jax"}
    for row in rows.values():
        assert row["status"] == "measured", row
        assert row["passes"].keys() == {FORWARD, GRADIENT}
        assert row["memory"]["rss_gradient"] > row["memory"]["rss_imported"] > 0
        assert row["memory"]["gradient_temp"] > 0
    assert min(rows["jax"]["passes"][FORWARD]["times_fastest_peer"], 1) == 1


# ---- training and long sequences ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["vitfast-scan", "vitfast-loop"])
def test_a_training_step_begins_with_the_models_loss_and_lowers_it(name):
    row = next(row for row in ROWS if row.name == name)
    module, function = row.build.split(":")
    case = toy(dtype="bfloat16", passes=(TRAIN_STEP,))
    model = getattr(import_module(module), function)(case, "cpu", **row.options)
    losses = [float(model.results()["loss"]) for _ in range(3)]
    assert_close(losses[0], float(results_of("post-norm", "jax")["loss"]), 2**-6)
    assert losses == sorted(losses, reverse=True)
    assert model.memory()["train_step_temp"] > 0


@pytest.mark.parametrize("name", ["plain", "xla", "xla_chunked"])
def test_attention_over_a_sequence_is_compiled_looked_at_and_run(name):
    row = sequences.measure("toy", 48, name, "float32")
    assert row.keys() == {"implementation", "tokens", "forward_temp", "gradient_temp",
                          "forward_ms", "gradient_ms"}  # fmt: skip
    assert (row["implementation"], row["tokens"]) == (name, 48)
    assert row["gradient_temp"] >= row["forward_temp"] > 0


def test_attention_that_does_not_fit_is_compiled_and_not_run(monkeypatch):
    monkeypatch.setattr(sequences, "free_bytes", lambda device: 1000)
    row = sequences.measure("toy", 48, "plain", "float32")
    assert row["detail"] == "does not fit"
    assert row["gradient_temp"] > 500
    assert "gradient_ms" not in row


def test_every_size_and_peer_is_known():
    assert {"tiny", "small", "base", "large"} <= SIZES.keys()
    assert set(PEERS) == {row.name for row in ROWS} - {"vitfast-scan", "vitfast-loop"}
    for row in ROWS:
        module, function = row.build.split(":")
        assert module.startswith("vitfast.bench.")
        if not row.missing():
            assert callable(getattr(import_module(module), function))
