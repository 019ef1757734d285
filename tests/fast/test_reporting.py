"""What a run leaves behind: whole after any end, never mixed with another's, readable."""

import csv
import errno
import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
import types
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vitfast.training.config import TrainConfig
from vitfast.training.reporting import (
    MetricsLog,
    ReportFailed,
    RunDirectory,
    RunRefused,
    TensorBoardScalars,
    TrainingDisplay,
    confusion_matrix,
    describe_run,
    draw_confusion,
    provenance,
    run_directory,
    specification_hash,
)
from vitfast.training.reporting.curves import running_mean
from vitspec.vision_transformer_config import VisionTransformerConfig


@dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-3
    batch_size: int = 32
    keep: int = 3
    seed: int = 0


def described(config=None, fingerprint="abc", **more):
    dataset = types.SimpleNamespace(
        name="digits",
        fingerprint=fingerprint,
        train=range(7),
        test=range(3),
        class_names=("a", "b"),
    )
    return describe_run(config or Config(), VisionTransformerConfig(), dataset, **more)


@pytest.fixture(autouse=True)
def _unlocked(monkeypatch):
    """Each test's directories are its own."""
    monkeypatch.setattr(run_directory, "_LOCKS", {})


# ---- metrics -------------------------------------------------------------------------------------

RECORDS = [
    {"step": step, "train_loss": 1 / step, "note": "é\u2028"}
    | ({"test_loss": 2.0} if step == 2 else {})
    for step in (1, 2, 3)
]


def test_metrics_survive_a_kill_at_any_byte(tmp_path, monkeypatch):
    """After it, what is whole and not later than the checkpoint is there, and lines can follow."""
    monkeypatch.setattr(os, "fsync", lambda file: None)  # for speed; a kill loses nothing by it
    whole = MetricsLog(tmp_path / "whole")
    for record in RECORDS:
        whole.append(record)
    content = (tmp_path / "whole").read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for size in range(len(content) + 1):
        (tmp_path / "torn").write_bytes(content[:size])
        log = MetricsLog(tmp_path / "torn")
        assert log.records() == RECORDS[: sum(end <= size for end in ends)]
        log.truncate_after(2)
        kept = RECORDS[: min(2, sum(end <= size for end in ends))]
        log.append({"step": 3, "train_loss": 0.0})
        assert log.records() == [*kept, {"step": 3, "train_loss": 0.0}]
    assert sorted(os.listdir(tmp_path)) == ["torn", "whole"]


def test_a_full_disk_gives_one_line_and_leaves_no_part_of_a_record(tmp_path):
    """The system takes the first bytes of a line, and refuses the rest."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(RECORDS[0])
    size = log.path.stat().st_size
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, before[1]))
        with pytest.raises(ReportFailed, match=r"metrics.jsonl: could not be written") as caught:
            log.append(RECORDS[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (3, before[1]))
        with pytest.raises(ReportFailed, match=r"x.csv: could not be written"):
            log.write_csv(tmp_path / "x.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert log.path.stat().st_size == size
    assert log.records() == RECORDS[:1]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_numbers_of_arrays_and_ones_that_are_not_finite_come_back(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    values = {"a": np.float32(0.1), "b": math.nan, "c": -math.inf, "d": np.int64(7), "e": None}
    log.append({"step": 1} | values)
    (record,) = log.records()
    assert record["a"] == float(np.float32(0.1))
    assert math.isnan(record["b"])
    assert (record["c"], record["d"], record["e"]) == (-math.inf, 7, None)
    for line in log.path.read_text().splitlines():  # strict JSON has neither NaN nor Infinity
        json.loads(line, parse_constant=pytest.fail)
    with pytest.raises(TypeError, match="expected an int as its step, got None"):
        log.append({"loss": 1.0})


def test_the_table_has_a_row_for_each_step(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for record in ({"step": 2, "train_loss": 0.5}, {"step": 4, "train_loss": 0.25},
                   {"step": 2, "test_loss": 0.75}):  # fmt: skip
        log.append(record)
    log.write_csv(tmp_path / "metrics.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "metrics.csv").read_text())))
    assert rows == [
        {"step": "2", "train_loss": "0.5", "test_loss": "0.75"},
        {"step": "4", "train_loss": "0.25", "test_loss": ""},
    ]


# ---- the run's directory -------------------------------------------------------------------------


def test_run_json_says_what_made_the_run(tmp_path):
    directory = RunDirectory.create(tmp_path / "new" / "run", described(start="models/x"))
    run = json.loads((directory.path / "run.json").read_text())
    assert run["config"] == {"learning_rate": 1e-3, "batch_size": 32, "keep": 3, "seed": 0}
    assert run["model"]["embed_dim"] == 768
    assert run["dataset"] == {
        "name": "digits", "fingerprint": "abc", "train": 7, "test": 3, "classes": ["a", "b"]
    }  # fmt: skip
    assert run["start"] == "models/x"
    (session,) = run["sessions"]
    assert session["command"] == sys.argv
    assert {"python", "vitspec", "jax", "flax", "optax"} <= session["versions"].keys()
    assert session["devices"]["platform"] == "cpu"
    assert session["specification"] == specification_hash()


def test_a_run_goes_on_and_says_what_has_changed_around_it(tmp_path):
    RunDirectory.create_or_open(tmp_path, described())
    again = described(replace(Config(), keep=9))
    again["session"]["versions"]["jax"] = "99.0"
    directory = RunDirectory.create_or_open(tmp_path, again)
    (note,) = directory.notes
    assert note.startswith("versions.jax has changed from ")
    assert note.endswith(" to 99.0 since the run was last started")
    assert len(json.loads((tmp_path / "run.json").read_text())["sessions"]) == 2


def test_what_may_change_are_fields_of_the_configuration():
    names = {one.name for one in fields(TrainConfig)}
    assert {name.removeprefix("config.") for name in run_directory.MAY_CHANGE} <= names


def test_the_directory_of_another_run_is_refused(tmp_path):
    first = RunDirectory.create(tmp_path / "run", described())
    before = (first.path / "run.json").read_bytes()
    other = described(Config(learning_rate=0.5, batch_size=7), "xyz", start="models/y")
    expected = [
        "config.learning_rate is 0.001 there and 0.5 here",
        "config.batch_size is 32 there and 7 here",
        'dataset.fingerprint is "abc" there and "xyz" here',
        'start is nothing there and "models/y" here',
    ]
    for make in (RunDirectory.open, RunDirectory.create, RunDirectory.create_or_open):
        with pytest.raises(RunRefused) as caught:
            make(first.path, other)
        assert all(part in str(caught.value) for part in expected)
        assert "seed" not in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(RunRefused, match=r"holds a run already \(the same one\)"):
        RunDirectory.create(first.path, described())
    assert (first.path / "run.json").read_bytes() == before


def test_what_is_no_run_s_directory_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text('{"format": 1, "sess')
    with pytest.raises(
        RunRefused, match=r"full: is not empty \(thesis.tex is there\) and holds no"
    ):
        RunDirectory.create(tmp_path / "full", described())
    with pytest.raises(RunRefused, match="is a file, or below one; expected a directory"):
        RunDirectory.create(tmp_path / "full" / "thesis.tex", described())
    with pytest.raises(RunRefused, match=r"holds no run .run.json is missing."):
        RunDirectory.open(tmp_path / "full", described())
    with pytest.raises(ReportFailed, match=r"run.json: is damaged"):
        RunDirectory.create_or_open(tmp_path / "bad", described())
    assert os.listdir(tmp_path / "full") == ["thesis.tex"]


def test_a_process_that_is_killed_as_it_begins_leaves_a_directory_to_begin_in(tmp_path):
    (tmp_path / ".run.json.new").write_text('{"form')
    (tmp_path / ".lock").write_text("")
    assert RunDirectory.create_or_open(tmp_path, described()).run["format"] == 1


HOLDER = """
import fcntl, os, sys
fcntl.lockf(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_do_not_train_in_one_directory(tmp_path, monkeypatch):
    RunDirectory.create(tmp_path, described())
    run_directory._LOCKS.clear()
    assert (tmp_path / ".lock").exists()
    for file in os.listdir("/proc/self/fd"):  # as a new process, without the first one's lock
        if os.path.realpath(f"/proc/self/fd/{file}") == str((tmp_path / ".lock").resolve()):
            os.close(int(file))
    command = [sys.executable, "-S", "-c", HOLDER, str(tmp_path / ".lock")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunRefused, match="another process is training in it"):
            RunDirectory.open(tmp_path, described())
        other.kill()
    assert RunDirectory.open(tmp_path, described()).path == tmp_path
    assert RunDirectory.open(tmp_path, described()).path == tmp_path  # one process may go on


def test_other_processes_write_nothing(tmp_path):
    directory = RunDirectory.create_or_open(tmp_path / "run", described(), writes=False)
    log = directory.metrics()
    log.append({"step": 1, "train_loss": 1.0})
    log.truncate_after(0)
    log.write_csv(tmp_path / "metrics.csv")
    directory.finish(confusion=np.eye(2), class_names=["a", "b"])
    TensorBoardScalars(directory.tensorboard, writes=False).append({"step": 1, "x": 2.0})
    out = io.StringIO()
    with TrainingDisplay(10, 8, writes=False, console=Console(file=out)) as display:
        display.step(3, loss=1.0)
        display.line("hello")
    assert os.listdir(tmp_path) == []
    assert out.getvalue() == ""


def test_the_specification_s_hash_is_of_its_sources_alone(tmp_path, monkeypatch):
    """A change in a layer changes it; line ends, the kit and the command line do not."""
    package = tmp_path / "vitspec"
    (package / "layers").mkdir(parents=True)
    (package / "testing").mkdir()
    files = {"layers/linear.py": "y = x @ w\n", "scalars.py": "1\n", "testing/run.py": "2\n",
             "cli.py": "3\n", "py.typed": ""}  # fmt: skip
    for name, text in files.items():
        (package / name).write_text(text)
    monkeypatch.setattr(provenance.resources, "files", lambda name: package)
    first = specification_hash()

    def after(name, content):
        (package / name).write_bytes(content)
        return specification_hash()

    assert after("testing/run.py", b"4\n") == after("cli.py", b"5\n") == first
    assert after("layers/linear.py", b"y = x @ w\r\n") == first
    assert after("layers/linear.py", b"y = w @ x\n") != first
    assert after("layers/linear.py", b"y = x @ w\n") == first
    (package / "scalars.py").rename(package / "scalar.py")
    assert specification_hash() != first


# ---- pictures ------------------------------------------------------------------------------------


def test_finish_draws_curves_and_the_confusion_matrix(tmp_path):
    directory = RunDirectory.create(tmp_path / "run", described())
    log, rng = directory.metrics(), np.random.default_rng(0)
    for step in range(1, 90):
        loss = math.nan if step == 70 else rng.random()
        log.append({"step": step, "train_loss": loss, "learning_rate": 0.1})
    log.append({"step": 89, "test_loss": 0.5, "test_accuracy": 0.25})
    labels, predictions = rng.integers(0, 3, (2, 50))
    counts = confusion_matrix(labels, predictions, 4)
    directory.finish(
        confusion=counts, class_names=["0", "T-shirt/top", "Bag", "none"], steps_per_epoch=7.5
    )
    for name in ("curves.png", "confusion.png"):
        with Image.open(directory.path / name) as picture:
            assert min(picture.size) > 300
            colours = picture.convert("RGB").getcolors(1 << 16)
        assert (directory.path / name).stat().st_size < 60_000
        assert len(colours) > 20
    found = json.loads((directory.path / "confusion.json").read_text())
    assert found["matrix"] == counts.tolist()
    assert sum(map(sum, found["matrix"])) == 50
    assert found["accuracy"] == pytest.approx(np.mean(labels == predictions))
    assert found["recall"][1] == pytest.approx(np.mean(predictions[labels == 1] == 1), abs=1e-6)
    assert found["precision"][1] == pytest.approx(np.mean(labels[predictions == 1] == 1), abs=1e-6)
    assert found["recall"][3] is None
    with pytest.raises(ValueError, match="expected counts of 2 x 2 classes"):
        draw_confusion(counts, ["a", "b"], tmp_path / "x.png")
    assert "matplotlib.pyplot" not in sys.modules


def test_the_running_mean_leaves_out_what_is_not_finite():
    values = np.array([1.0, 3.0, math.nan, 5.0, 7.0])
    np.testing.assert_allclose(running_mean(values, 1), [2, 2, math.nan, 6, 6])
    np.testing.assert_allclose(running_mean(values, 0), values)
    np.testing.assert_allclose(running_mean(values, 9), [4, 4, math.nan, 4, 4])


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("matplotlib", lambda folder: draw_confusion([[1]], ["a"], folder / "x.png")),
        ("tensorboardX", TensorBoardScalars),
    ],
)
def test_a_missing_extra_is_named(package, use, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ReportFailed, match=rf"{package}: python -m pip install 'vitspec.train.'"):
        use(tmp_path)


def test_tensorboard_has_the_scalars(tmp_path):
    """Its file is TensorFlow's record of events, in which tags are readable."""
    scalars = TensorBoardScalars(tmp_path, first_step=4)
    scalars.append({"step": 5, "train_loss": np.float32(0.5), "epoch": 1, "note": "no number"})
    scalars.close()
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    assert b"loss/train" in content
    assert b"epoch" in content
    assert b"note" not in content


# ---- display -------------------------------------------------------------------------------------


def shown(terminal, steps=100, first_step=0):
    """What is printed of a run with steps of a second, the first of ten, and an evaluation."""
    out, time = io.StringIO(), [0.0]
    console = Console(file=out, force_terminal=terminal, width=80, color_system=None)
    with TrainingDisplay(
        steps, 8, first_step=first_step, console=console, clock=lambda: time[0]
    ) as display:
        for step in range(first_step + 1, first_step + 61):
            time[0] += 10 if step == first_step + 1 else 1
            display.step(step, loss=1 / step)
            if step == first_step + 40:
                with display.pause("evaluating"):
                    time[0] += 20
                display.step(step, test_accuracy=0.875)
                display.line("saved [a] checkpoint")
    return out.getvalue(), display


def test_without_a_terminal_there_is_a_line_now_and_then():
    text, display = shown(False)
    assert text.splitlines() == [
        "step 1 of 100, loss 1",
        "step 31 of 100, loss 0.03226, 8 images/s, about 1 min 9 s left",
        "saved [a] checkpoint",
        "step 41 of 100, loss 0.02439, test accuracy 87.50 %, 8 images/s, about 1 min 28 s left",
        "step 60 of 100, loss 0.01667, test accuracy 87.50 %, 8 images/s, about 54 s left",
    ]
    assert display.images_per_second == 8.0


def test_a_resumed_run_begins_where_it_was():
    assert TrainingDisplay(161, 8, first_step=100).text() == "step 100 of 161"


def test_in_a_terminal_there_is_a_bar():
    text, _ = shown(True, steps=161, first_step=100)
    last = text.split("saved [a] checkpoint")[-1]
    assert "160/161" in last
    assert "8 images/s" in last
    assert "1 s left" in last
    assert "loss 0.00625, test accuracy 87.50 %" in last
