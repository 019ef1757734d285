"""What an implementation does to its process happens to nobody else; nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vitspec.testing.adapter_errors import AdapterError, ProcessEndedError
from vitspec.testing.families import FAMILIES
from vitspec.testing.implementations import Subject
from vitspec.testing.isolation import RemoteSubject
from vitspec.testing.reference import Point, SpecImplementation, evaluate_spec

GOOD = """
import os, signal, subprocess, sys, threading, time, multiprocessing, ctypes, atexit
import numpy as np
from vitspec.testing.reference import SpecImplementation

class Good(SpecImplementation):
    def __init__(self):
        super().__init__("vit")

def forever():
    time.sleep(600)

impl = Good()
"""
COMMAND = "import sys; from vitspec.cli import main; sys.argv[0] = 'vitspec'; main()"
FEW = ["--cases", "1", "--laws", "0", "--no-ill-formed", "--no-photograph", "--no-vectors"]


@pytest.fixture
def target(tmp_path):
    """A file with these lines after, or before, a correct implementation."""

    def make(after="", before=""):
        file = tmp_path / "mine.py"
        file.write_text(f"{before}\n{GOOD}\n{after}\n")
        return f"{file}:impl"

    return make


def point():
    family = FAMILIES["vit"]
    case = family.smoke_case(family.smoke_configs[0])
    return Point.of(case).rounded(Subject(SpecImplementation("vit")).precision)


# ---- one call and its answer ---------------------------------------------------------------------


def test_what_comes_from_the_process_is_what_the_implementation_computes(target):
    """Bit for bit, taps and gradients, in arrays that nobody else has."""
    remote = RemoteSubject(target("print('hello')"), None, 60)
    here = Subject(SpecImplementation("vit"))
    try:
        assert (remote.name, remote.precision, remote.description) == (
            here.name, here.precision, here.description,
        )  # fmt: skip
        ours, theirs = here.evaluate(point()), remote.evaluate(point())
        assert list(ours) == list(theirs)
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
        assert remote.taken_output() == "hello\n"
        assert remote.taken_output() == ""
    finally:
        remote.end()


def test_a_patched_numpy_changes_no_truth(target):
    """The truth was computed beside the implementation, with its NumPy."""
    patch = "np.einsum = np.matmul = np.exp = lambda *a, **k: np.zeros(1)"
    remote, before = RemoteSubject(target(patch), None, 60), evaluate_spec(point())
    try:
        with pytest.raises(AdapterError):
            remote.forward(point())
        after = evaluate_spec(point())
        assert all(np.array_equal(before[name], after[name]) for name in before)
    finally:
        remote.end()


ENDS = {
    "it leaves": ("os._exit(0)", "exit code 0"),
    "it crashes": ("ctypes.string_at(0)", "SIGSEGV"),
    "it leaves a child with the pipe": ("os.fork() and os._exit(3)\nforever()", "exit code 3"),
    "it hangs": ("forever()", "gave no result for 6 s"),
    "it closes all files": ("os.closerange(0, 256); forever()", "closed its connection"),
    "it is interrupted": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
}


@pytest.mark.parametrize("what", ENDS)
def test_an_import_that_does_not_end_well_is_one_line(what, target):
    code, said = ENDS[what]
    start = time.monotonic()
    with pytest.raises(AdapterError, match=said) as error:
        RemoteSubject(target(code), None, 6.0 if "hangs" in what else 60.0)
    assert "\n" not in str(error.value)
    assert "mine.py" in str(error.value)
    assert time.monotonic() - start < 50


CALLS = """
class Bent(Good):
    def forward(self, config, params, images):
        {}
    def supports(self, config):
        if config == "read": return open(__file__ + ".pid").read()
impl = Bent()
"""


@pytest.mark.parametrize("code", ["os._exit(0)", "ctypes.string_at(0)", "os.kill(0, 9)"])
def test_a_call_that_ends_the_process_is_said_and_so_is_every_call_after_it(code, target):
    remote = RemoteSubject(target(CALLS.format(code)), None, 60)
    with pytest.raises(ProcessEndedError, match="ended its process in forward on ViTConfig"):
        remote.forward(point())
    with pytest.raises(ProcessEndedError, match="in forward on"):
        remote.why_unsupported(point().config)
    assert remote.why_ended


NONSENSE = [
    "b'no JSON'", "b'[]'", "b'{}'", "b'{\"data\": 3, \"arrays\": []}'",
    "b'{\"data\": {}, \"arrays\": [[\"logits\", \"|O\", [1]]]}'",
    "b'{\"data\": {}, \"arrays\": [[\"logits\", \"<f4\", [-1]]]}'",
    "__import__('pickle').dumps(Bent)",
]  # fmt: skip


@pytest.mark.parametrize("answer", NONSENSE)
def test_an_answer_of_its_own_making_is_never_unpickled_and_is_one_line(answer, target):
    """It can find the pipe and write into it; what it writes is read as JSON and numbers alone."""
    code = (
        "import gc; from multiprocessing.connection import Connection;"
        f" [c.send_bytes({answer}) for c in gc.get_objects()"
        " if isinstance(c, Connection) and c.writable and not c.closed]; forever()"
    )
    remote = RemoteSubject(target(CALLS.format(code)), None, 8)
    with pytest.raises(AdapterError) as error:
        remote.forward(point())
    assert "\n" not in str(error.value)
    remote.end()


# ---- the command ---------------------------------------------------------------------------------

LEFT = """
threading.Thread(target=forever).start()
atexit.register(forever)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.chdir("/"); np.random.seed(0); os.environ.clear()
os.close(1); os.close(2)
if os.fork() == 0: forever()
if os.fork() == 0: os.setsid(); forever()
child = [sys.executable, "-c", "import time; time.sleep(600)", "MARK"]
subprocess.Popen(child, start_new_session=True)
multiprocessing.get_context("spawn").Process(target=forever).start()
"""


def alive(mark):
    """The processes of this user whose command line or environment has a mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if mark.encode() in text and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="counts processes in /proc")
def test_threads_and_processes_that_it_leaves_end_with_the_command(target, tmp_path):
    """Threads, forks, new sessions, exit handlers, ignored signals, closed output: all at once."""
    mark = f"left-by-{os.getpid()}-{tmp_path.name}"
    command = [sys.executable, "-c", COMMAND, "check", target(LEFT.replace("MARK", mark)), *FEW]
    done = subprocess.run(
        [*command, "--json", "report.json"], cwd=tmp_path, capture_output=True, text=True,
        timeout=240, env=os.environ | {"MARK": mark},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "conforms, as tested" in done.stdout
    assert (tmp_path / "report.json").is_file()
    deadline = time.monotonic() + 10
    while alive(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(mark) == []


@pytest.mark.parametrize("command", [["check", *FEW], ["diagnose"]], ids=["check", "diagnose"])
def test_a_file_that_leaves_at_import_has_exit_code_3_and_one_line(command, target):
    words = [sys.executable, "-c", COMMAND, command[0], target("os._exit(0)"), *command[1:]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "\n" not in done.stderr.strip()
    assert "mine.py:impl' ended its process while it was imported (exit code 0" in done.stderr


IN_FORWARD = """
class Bent(Good):
    def forward(self, config, params, images):
        if os.fork() == 0:
            os.setsid()
            forever()
        CODE

impl = Bent()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts processes in /proc")
@pytest.mark.parametrize(
    "code",
    ["os._exit(1)", "forever()", "os.kill(os.getppid(), signal.SIGKILL); forever()"],
    ids=["it leaves", "it hangs", "it kills its judge"],
)
def test_a_child_in_a_session_of_its_own_keeps_nobody_waiting_and_ends(code, target, tmp_path):
    """It has the pipe to the judge open, so the judge never sees its end."""
    mark = f"left-by-{os.getpid()}-{tmp_path.name}"
    bent = target(IN_FORWARD.replace("CODE", code))
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "check", bent, *FEW, "--timeout", "5"],
        capture_output=True, text=True, timeout=60, env=os.environ | {"MARK": mark},
    )  # fmt: skip
    assert done.returncode == 3, done.stdout + done.stderr
    deadline = time.monotonic() + 10
    while alive(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(mark) == []


STOPS = {
    "itself": ("forward", "os.kill(os.getpid(), signal.SIGSTOP)"),
    "its judge": ("import", "os.kill(os.getppid(), signal.SIGSTOP); forever()"),
    "its judge, and answers": ("forward", "os.kill(os.getppid(), signal.SIGSTOP)"),
    "the command": ("forward", "os.kill(command(), signal.SIGSTOP); forever()"),
    "the command, at once": ("import", "os.kill(command(), signal.SIGSTOP); forever()"),
    "all that its judge has started": (
        "forward",
        "[os.kill(p, signal.SIGSTOP) for p in children(os.getppid()) if p != os.getpid()]\n"
        "        os._exit(1)",
    ),
    "all judges": (
        "forward",
        "[os.kill(p, signal.SIGSTOP) for p in children(command())]; forever()",
    ),
}
FAMILY = """
def command():
    return int(open(f"/proc/{os.getppid()}/stat").read().rpartition(")")[2].split()[1])

def children(pid):
    return map(int, open(f"/proc/{pid}/task/{pid}/children").read().split())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("what", STOPS)
def test_who_stops_a_process_of_the_check_keeps_nobody_waiting(what, target, tmp_path):
    """A stopped process looks at no clock, and takes no signal but SIGKILL and SIGCONT."""
    mark, (place, code) = f"left-by-{os.getpid()}-{tmp_path.name}", STOPS[what]
    calls = CALLS.format(f"{code}\n        return super().forward(config, params, images)")
    after = FAMILY + (code if place == "import" else calls)
    words = [sys.executable, "-c", COMMAND, "check", target(after), *FEW, "--timeout", "60"]
    output = tmp_path / "output"  # no pipe, whose end would be that of every process that has it
    try:
        with output.open("w") as file:
            done = subprocess.run(
                words, stdout=file, stderr=file, timeout=240, env=os.environ | {"MARK": mark}
            )
        said = output.read_text()
        assert done.returncode == 3, said
        assert "Traceback" not in said
        assert place == "forward" or "\n" not in said.strip()
        assert "SIGSTOP" in said or what == "all that its judge has started"
        deadline = time.monotonic() + 10
        while alive(mark) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert alive(mark) == []
    finally:
        for pid in alive(mark):
            os.kill(pid, signal.SIGKILL)


TWO_TARGETS = """
import os, sys
from vitspec.testing.isolation.remote import RemoteSubject, adopt_orphans
if __name__ == "__main__":
    adopt_orphans()
    first, second = (RemoteSubject(target, None, 60) for target in sys.argv[1:])
    child = int(open(sys.argv[1].removesuffix(":impl") + ".pid").read())
    second.end()
    os.kill(child, 0)  # raises if it is gone
    first.end()
    try:
        os.kill(child, 0)
    except ProcessLookupError:
        print("gone with its own")
"""
SERVER = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open(__file__ + ".tmp", "w") as file: file.write(str(os.getpid()))
        os.rename(__file__ + ".tmp", __file__ + ".pid")
        forever()
    os._exit(0)
while not os.path.exists(__file__ + ".pid"): time.sleep(0.01)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has orphans adopted")
def test_the_end_of_one_implementation_ends_no_child_of_another(target, tmp_path):
    """One judge runs all targets of a command; a server that one started is an orphan there."""
    one = target(SERVER)
    other = tmp_path / "other.py"
    other.write_text(GOOD)
    done = subprocess.run(
        [sys.executable, "-c", TWO_TARGETS, one, f"{other}:impl"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout == "gone with its own\n", done.stderr


def test_a_module_in_the_current_folder_is_none_of_the_judges(target, tmp_path):
    """A wrong implementation may have left a `pickle.py` there that widens the bounds."""
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "pickle.py").write_text(
        "import os, sys\n"
        "sys.path[:] = [p for p in sys.path if p not in ('', os.getcwd())]\n"
        "del sys.modules['pickle']\n"
        "import pickle, vitspec.testing.noise as n, vitspec.testing.trial as t\n"
        "n.SUSPICION = t.SUSPICION = 1e9\n"
    )
    wrong = "class Bent(Good):\n    def forward(self, *a):\n        y = super().forward(*a)\n"
    wrong += "        return {'logits': y['logits'] * np.float32(1.01)}\nimpl = Bent()"
    program = f"import sys; sys.path.remove(''); {COMMAND}"  # as the installed script has it
    done = subprocess.run(
        [sys.executable, "-c", program, "check", target(wrong), *FEW, "--only", "forward"],
        cwd=shadow, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr


def test_the_closest_configuration_keeps_its_dropout_record(target):
    near = "from dataclasses import replace\nfrom vitspec.testing import SpecImplementation\n"
    near += "class Near(SpecImplementation):\n"
    near += "    def closest(self, config):\n        return replace(config, num_layers=1)\n"
    near += "impl = Near('vision-transformer')"
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "check", target(near), *FEW, "--only", "forward"],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_configuration_that_no_machine_holds_is_no_verdict(target):
    """Exit code 1 would say that the implementation departs."""
    huge = "from dataclasses import replace\nclass Bent(Good):\n"
    huge += "    def supports(self, config):\n"
    huge += "        return None if config.head_count == 1 else 'one head'\n"
    huge += "    def closest(self, config):\n"
    huge += "        return replace(config, head_count=1, num_layers=2**31 - 1)\nimpl = Bent()"
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "check", target(huge), *FEW],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 3, done.stdout + done.stderr
    assert "there is no verdict: InvalidParameters" in done.stderr
    assert "Traceback" not in done.stderr
