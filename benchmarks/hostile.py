"""Whether an implementation can cheat, break or outlive `vitspec check`: hostile ones, one by one.

    python benchmarks/hostile.py                              # all; some 20 minutes on two cores
    python benchmarks/hostile.py --only 'forward: *'          # those of these names
    python benchmarks/hostile.py --out results/hostile.json   # and keep what happened to each
    python benchmarks/hostile.py --only NAME --folder x       # leave the file in x, to run by hand

Each is a file of its own, checked by the command in a subprocess: what a user would run, and what a
test with an object in its own process cannot see (crashes, what is left behind, exit codes). Each
computes the *right* function, a *wrong* one, or cannot be judged. What must hold:

- none conforms (exit code 0) that computes another function, and none departs (1) that is right;
- one that cannot be judged has exit code 3;
- none has exit code 0 or 1 without a verdict that says the same as the last line of its output;
- the command ends, within the time for one answer and `GRACE` seconds;
- when it has ended, so have all processes that came of it.

Exit code 1 if one of these fails, or an exit code is not among those expected. Linux only: the
processes are counted in /proc. An implementation here kills its own processes, writes files in its
own temporary folder and takes a gigabyte; none does harm to anything else.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import dedent, indent

from vitspec.testing.report import write_atomically

FEW = (
    "--cases 2 --laws 1 --interpolations 0 --no-degenerate --no-photograph --no-vectors "
    "--no-ill-formed"
)
FILES = "--json r.json --junit r.xml --markdown r.md --html r.html"
IDENTITIES = "--identities --laws 1"
MORE = FEW.replace("--cases 2", "--cases 12")
"""Enough for several processes of the implementation, which start one after the other."""
AT_ONCE = 2
SHORT, LONG = 10.0, 60.0
"""Seconds for one answer: of an implementation that hangs, and of the others."""
GRACE = 25.0
"""Seconds that a command may take beyond those for one answer."""
ENDING = 5.0
"""Seconds after the command's end in which a process that was just killed may still be seen."""
MEMORY = 8 << 30
"""Bytes of addresses for each process: a hog ends itself, and not this machine."""
MARK = "VITSPEC_HOSTILE"
VERDICT = re.compile(r"vitspec \S+: .*(conforms, as tested|does not conform)")
SAID = {0: "conforms, as tested", 1: "does not conform"}
KINDS = {True: "right", False: "wrong", None: "none"}


@dataclass(frozen=True)
class Hostile:
    """An implementation that misbehaves.

    Attributes:
        name: what the table calls it.
        code: its file, after `PRELUDE`; `impl` is the implementation.
        right: whether it computes the function that it says; None if it cannot be judged.
        expected: the exit codes that are right; by default 0, 1, or 3, as `right` says.
        timeout: seconds for one answer.
        options: what the command is given besides.
        target: what follows the file's name.
        whole: whether the code is the whole file.
        runs: how often the command is run in the same folder; the last counts.
    """

    name: str
    code: str
    right: bool | None
    expected: tuple[int, ...] = ()
    timeout: float = LONG
    options: str = FEW
    target: str = ":impl"
    whole: bool = False
    runs: int = 1

    @property
    def codes(self) -> tuple[int, ...]:
        """The exit codes that are expected."""
        return self.expected or ({True: 0, False: 1, None: 3}[self.right],)

    @property
    def text(self) -> str:
        """The text of its file."""
        return self.code if self.whole else f"{PRELUDE}\n{self.code}\n"


@dataclass(frozen=True)
class Outcome:
    """What happened to one of them.

    Attributes:
        name, right: the implementation's.
        exit_code: of the command; None if it was ended because it took too long.
        verdict: the last line that the command wrote, or else its last line of errors.
        seconds: how long it took.
        survivors: the processes that were left, by what /proc says of them.
        problems: the rules that it broke.
    """

    name: str
    right: bool | None
    exit_code: int | None
    verdict: str
    seconds: float
    survivors: tuple[str, ...]
    problems: tuple[str, ...]


# ---- the implementations ------------------------------------------------------------------------

PRELUDE = '''
import atexit, ctypes, gc, json, multiprocessing, os, pickle, random, resource, shutil, signal
import subprocess, sys, tempfile, threading, time
from dataclasses import replace
import numpy as np
from vitspec.testing.reference import SpecImplementation

SPEC = SpecImplementation("vit-cls")


class Right:
    name, version, spec, dtype = "mine", "1", "vit-cls", "float32"
    factor = np.float32(1)

    def forward(self, config, params, images):
        return SPEC.forward(config, params, images)["logits"] * self.factor

    def vjp(self, config, params, images, cotangent):
        return SPEC.vjp(config, params, images, cotangent)


class Wrong(Right):
    factor = np.float32(1.01)


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no")

    __repr__ = __str__


class Unpicklable(Exception):
    def __init__(self, *args):
        super().__init__("with a", lambda: None)

    def __reduce__(self):
        raise TypeError("no")


class Slow(Exception):
    def __str__(self):
        time.sleep(600)


class NoException(BaseException):
    pass


def own(folder):
    """The folder, if it is this implementation's own to destroy."""
    assert "vitspec-hostile" in str(folder)
    return folder


def first(name):
    """Whether this is the first process that asks."""
    try:
        return bool(os.close(os.open(__file__ + name, os.O_CREAT | os.O_EXCL)) or True)
    except FileExistsError:
        return False


def grandparent():
    return int(open(f"/proc/{os.getppid()}/stat").read().rpartition(")")[2].split()[1])


def writable(array):
    """The array without NumPy's flag, which binds neither PyTorch nor native code."""
    address = array.__array_interface__ | {"data": (array.ctypes.data, False)}
    return np.asarray(type("Memory", (), {"__array_interface__": address, "owner": array})())


def connections():
    from multiprocessing.connection import Connection
    return [c for c in gc.get_objects() if isinstance(c, Connection) and not c.closed]
'''

PLACES = {
    "import": "{deed}\nimpl = {base}()",
    "dtype": """
class Bent({base}):
    @property
    def dtype(self):
{inner}
        return "float32"
impl = Bent()
""",
    "supports": """
class Bent({base}):
    def supports(self, config):
{inner}
        return None
impl = Bent()
""",
    "closest": """
class Bent({base}):
    def supports(self, config):
        return None if config.head_count == 1 else "several heads"
    def closest(self, config):
{inner}
        return replace(config, head_count=1)
impl = Bent()
""",
    "forward": """
class Bent({base}):
    def forward(self, config, params, images):
{inner}
        return super().forward(config, params, images)
impl = Bent()
""",
    "vjp": """
class Bent({base}):
    def vjp(self, config, params, images, cotangent):
{inner}
        return super().vjp(config, params, images, cotangent)
impl = Bent()
""",
    "later": """
class Bent({base}):
    calls = 0
    def forward(self, config, params, images):
        self.calls += 1
        if self.calls > 3:
{more}
        return super().forward(config, params, images)
impl = Bent()
""",
}
"""Where a deed is done; later: in `forward`, when the first calls went well."""
EVERYWHERE = "import dtype supports closest forward vjp later"


def placed(deed: str, place: str, base: str) -> str:
    """The code that does a deed there."""
    deed = dedent(deed).strip()
    inner, more = indent(deed, " " * 8), indent(deed, " " * 12)
    return PLACES[place].format(deed=deed, base=base, inner=inner, more=more)


ENDS = {
    "raises": ("raise RuntimeError('two\\nlines [/bold]')", EVERYWHERE),
    "raises no Exception": ("raise NoException('x')", "import supports forward"),
    "raises SystemExit": ("sys.exit(0)", "import supports forward vjp"),
    "raises KeyboardInterrupt": ("raise KeyboardInterrupt", "import dtype forward vjp"),
    "raises what cannot be printed": ("raise Unprintable", "import closest forward"),
    "raises what cannot be pickled": ("raise Unpicklable", "dtype forward vjp"),
    "raises an enormous text": ("raise RuntimeError('x' * 50_000_000)", "import forward"),
    "raises surrogates": ("raise RuntimeError('\\ud800 \\x00 \\x1b[2J')", "import forward later"),
    "raises what prints for ever": ("raise Slow", "import forward"),
    "leaves with 0": ("os._exit(0)", EVERYWHERE),
    "leaves with 1": ("os._exit(1)", "import forward later"),
    "segfaults": ("ctypes.string_at(0)", "import forward vjp later"),
    "aborts": ("os.abort()", "import forward"),
    "kills itself": ("os.kill(0, signal.SIGKILL)", "supports forward"),
    "stops itself": ("os.kill(os.getpid(), signal.SIGSTOP)", "import forward"),
    "loops": ("while True: pass", EVERYWHERE),
    "sleeps with Python's lock": ("ctypes.PyDLL(None).sleep(600)", "import vjp"),
    "recurses": ("f = lambda g: g(g); f(f)", "import forward"),
    "closes all files and sleeps": ("os.closerange(0, 256); time.sleep(600)", "import forward"),
    "is out of memory": (
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30,) * 2); np.ones(1 << 28)",
        "import forward",
    ),
    "leaves, a child holds the pipe": (
        "if os.fork(): os._exit(0)\ntime.sleep(600)",
        "import forward",
    ),
    "leaves, a child elsewhere holds the pipe": (
        "if os.fork(): os._exit(0)\nos.setsid(); time.sleep(600)",
        "import supports forward later",
    ),
    "hangs, a child elsewhere holds the pipe": (
        "if os.fork() == 0: os.setsid()\ntime.sleep(600)",
        "import forward",
    ),
    "sends half an answer": (
        "[os.write(c.fileno(), b'\\0\\0\\1\\0half') for c in connections()]; time.sleep(600)",
        "forward",
    ),
    "sends an endless answer": (
        "[os.write(c.fileno(), b'\\xff' * 4 + (1 << 45).to_bytes(8)) for c in connections()]\n"
        "time.sleep(600)",
        "import forward",
    ),
    "sends no JSON": (
        "[c.send_bytes(b'[' * 100_000) for c in connections()]; time.sleep(600)",
        "import forward",
    ),
    "kills its judge": ("os.kill(os.getppid(), signal.SIGKILL); time.sleep(600)", "import forward"),
    "ends its judge": ("os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)", "import forward"),
    "stops its judge": ("os.kill(os.getppid(), signal.SIGSTOP); time.sleep(600)", "import forward"),
    "stops its judge, and goes on": ("os.kill(os.getppid(), signal.SIGSTOP)", "vjp"),
    "stops the command": (
        "os.kill(grandparent(), signal.SIGSTOP); time.sleep(600)",
        "import later",
    ),
    "stops all judges": (
        "[os.kill(int(p), signal.SIGSTOP) for p in\n"
        " open(f'/proc/{grandparent()}/task/{grandparent()}/children').read().split()]\n"
        "time.sleep(600)",
        "forward",
    ),
    "kills its judge, and leaves a child": (
        "if os.fork() == 0: os.setsid(); time.sleep(600)\nos.kill(os.getppid(), signal.SIGKILL)\n"
        "time.sleep(600)",
        "forward",
    ),
}
"""What ends a call without an answer, and where it is done."""
HANGS = ("for ever", "loops", "sleeps", "stops", "holds the pipe", "half", "endless", "no JSON")


def ending() -> Iterator[Hostile]:
    """Those that cannot be judged, and those that depart before they cannot."""
    for what, (deed, places) in ENDS.items():
        timeout = SHORT if any(one in what for one in HANGS) else LONG
        for place in places.split():
            code = placed(deed, place, "Right")
            yield Hostile(f"{place}: {what}", code, None, timeout=timeout)
        if "vjp" in places.split():  # its forward departs all the same
            code = placed(deed, "vjp", "Wrong")
            yield Hostile(f"vjp, wrong: {what}", code, False, (1, 3), timeout)


CHILD = "[sys.executable, '-c', 'import time; time.sleep(600)', __file__]"
FAKE = "vitspec 0.5.0: mine conforms, as tested (float32, seed 0, 1 s)\\n"
SHADOW = """
import os, sys
here = os.getcwd()
sys.path[:] = [p for p in sys.path if p not in ("", here)]
del sys.modules["pickle"]
import pickle
import vitspec.testing.noise
vitspec.testing.noise.SUSPICION = 1e9
import vitspec.testing.trial, vitspec.testing.confirmation
vitspec.testing.trial.SUSPICION = vitspec.testing.confirmation.SUSPICION = 1e9
"""
DEEDS = {
    # ---- processes, threads
    "forks": ("if os.fork() == 0: time.sleep(600)", "import forward"),
    "forks to another session": ("if os.fork() == 0: os.setsid(); time.sleep(600)", "forward"),
    "forks a chain": (
        """
        if os.fork() == 0:
            end = time.monotonic() + 45
            while time.monotonic() < end:
                if os.fork(): os._exit(0)
                os.setsid(); time.sleep(0.02)
            os._exit(0)
        """,
        "import",
    ),
    "forks a nest of sessions": (
        """
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(36, 1)
            for _ in range(5):
                os.setsid() if os.getpgrp() != os.getpid() else None
                if os.fork(): time.sleep(600)
            time.sleep(600)
        """,
        "import",
    ),
    "starts a program": (f"subprocess.Popen({CHILD})", "import"),
    "starts a program elsewhere": (
        f"subprocess.Popen({CHILD}, start_new_session=True, env={{}}, cwd='/')",
        "forward",
    ),
    "multiprocessing": (
        "multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,)).start()",
        "import",
    ),
    "multiprocessing, spawned": (
        "multiprocessing.get_context('spawn').Process(target=time.sleep, args=(600,)).start()",
        "import",
    ),
    "leaves a thread": ("threading.Thread(target=time.sleep, args=(600,)).start()", "forward"),
    "leaves at a slow exit": ("atexit.register(time.sleep, 600)", "import"),
    "leaves with 0 at exit": ("atexit.register(os._exit, 0)", "import"),
    "ignores signals": (
        "[signal.signal(s, signal.SIG_IGN) for s in (1, 2, 3, 10, 12, 13, 14, 15)]",
        "import",
    ),
    # ---- output
    "closes its output": ("os.closerange(1, 3)", "import"),
    "closes its input and output": ("os.closerange(0, 3)", "forward"),
    "prints bytes": ("os.write(1, bytes(range(256)) * 1000)", "forward"),
    "prints 50 MB": ("print('x' * 50_000_000)", "import"),
    "prints a verdict": (
        f"print('{FAKE}'); print('{FAKE}', file=sys.stderr); os.write(1, b'{FAKE}')",
        "forward",
    ),
    "prints a verdict for the command": (
        f"open(f'/proc/{{grandparent()}}/fd/1', 'a').write('{FAKE}')",
        "import forward",
    ),
    "has no output": ("sys.stdout = sys.stderr = None", "import"),
    "reads the input": ("sys.stdin and sys.stdin.read()", "forward"),
    # ---- its process
    "patches float64": ("np.float64 = np.longdouble = np.float32", "import"),
    "patches bounds": (
        "import vitspec.testing.noise as n, vitspec.testing.trial as t\n"
        "import vitspec.testing.confirmation as c, vitspec.testing.tolerance as b\n"
        "n.SUSPICION = t.SUSPICION = c.SUSPICION = c.GROSS = 1e9; t.LAW_FACTOR = 1e9\n"
        "b.grade = t.grade = t.first_look = lambda *a, **k: None",
        "import",
    ),
    "patches the report": (
        "from vitspec.testing.report.report import Report\n"
        "Report.exit_code = property(lambda self: 0)\n"
        "Report.verdict = property(lambda self: 'conforms, as tested')",
        "import",
    ),
    "patches the kit's subject": (
        "from vitspec.testing.implementations import Subject\n"
        "Subject._checked = lambda self, method, found, expected, point: found",
        "import",
    ),
    "patches time": (
        "time.monotonic = time.time = time.perf_counter = lambda: 0.0; time.sleep = print",
        "import",
    ),
    "patches random numbers": (
        "np.random.default_rng = lambda *a: None; np.random.seed(0); random.seed(0)",
        "forward",
    ),
    "raises at every float error": ("np.seterr(all='raise')", "import"),
    "moves": ("os.chdir('/')", "import forward"),
    "clears the environment": ("os.environ.clear(); os.unsetenv('PATH')", "import"),
    "sets the environment": (
        "os.environ.update(PYTHONPATH='/none', PYTHONSTARTUP='x', HOME='/none', COLUMNS='1')",
        "import",
    ),
    "takes a gigabyte": ("np.ones(1 << 27)", "forward"),
    "has no collector": ("gc.disable(); gc.freeze()", "import"),
    "empties its temporary folder": (
        "[os.remove(e) if e.is_file() else 0 for e in os.scandir(own(tempfile.gettempdir()))]",
        "forward",
    ),
    "removes its temporary folder": ("shutil.rmtree(own(tempfile.gettempdir()), True)", "import"),
}
"""What does no harm to what is computed, and where it is done: right is right, wrong is wrong."""
RISKY = {
    "patches comparisons of NumPy": (
        "np.allclose = np.array_equal = np.isfinite = lambda *a, **k: True\n"
        "np.linalg.norm = lambda *a, **k: np.float64(0)",
        "import forward",
    ),
    "clears the path": ("sys.path.clear(); sys.meta_path.clear()", "import"),
    "patches json": ("json.dumps = json.loads = lambda *a, **k: 1 / 0", "import forward"),
    "patches pickle": ("pickle.dumps = pickle.loads = lambda *a, **k: 1 / 0", "import"),
    "patches builtins": (
        "import builtins; builtins.isinstance = lambda *a: True; builtins.len = lambda x: 1",
        "forward",
    ),
    "empties sys.modules": ("sys.modules.clear()", "import forward"),
    "puts None into sys.modules": (
        "sys.modules.update(dict.fromkeys(['numpy', 'vitspec', 'json', 'pickle']))",
        "import",
    ),
    "allows little recursion": ("sys.setrecursionlimit(45)", "import"),
    "allows few files": ("resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))", "import"),
    "is interrupted by an alarm": ("signal.alarm(3)", "import"),
    "is interrupted all the time": (
        "signal.signal(signal.SIGALRM, lambda *a: 1 / 0)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.5, 0.05)",
        "import",
    ),
    "goes on as a child elsewhere": ("if os.fork(): os._exit(0)\nos.setsid()", "import forward"),
    "removes its own file": ("os.remove(__file__)", "import"),
    "removes the folder of the command": ("shutil.rmtree(own(os.getcwd()))", "import"),
    "shadows a module of the judges": (
        f"open(own(os.getcwd()) + '/pickle.py', 'w').write('''{SHADOW}''')",
        "import",
    ),
    "leaves broken modules": (
        "[open(f'{own(os.getcwd())}/{n}.py', 'w').write('1 / 0')"
        " for n in ('signal', 'json', 'numpy', 'multiprocessing', 'sitecustomize')]",
        "import",
    ),
    "answers twice": (
        "[c.send_bytes(json.dumps({'data': {'answer': None}, 'arrays': []}).encode())"
        " for c in connections()]",
        "import forward",
    ),
    "kills the command": ("os.kill(grandparent(), signal.SIGKILL); time.sleep(60)", "import"),
    "interrupts the command": (
        "os.killpg(os.getpgid(os.getppid()), signal.SIGINT); time.sleep(60)",
        "import forward",
    ),
}
"""What may cost it its verdict, but may not change it."""
KILLED = (2, 3, 130, -signal.SIGKILL, -signal.SIGINT)


def deeds() -> Iterator[Hostile]:
    """The right and the wrong that do something to their process or to others."""
    for what, (deed, places) in (DEEDS | RISKY).items():
        more = (3,) if what in RISKY else ()
        if "the command" in what and what in RISKY and "removes" not in what:
            more = KILLED
        for place in places.split():
            for right in (True, False)[: 2 if place == places.split()[0] else 1]:
                code = placed(deed, place, "Right" if right else "Wrong")
                expected = (0 if right else 1, *more)
                name = f"{place}, {KINDS[right]}: {what}"
                yield Hostile(name, code, right, expected)
                if "a module" in what or "broken modules" in what:  # the next run finds them
                    yield Hostile(f"{name}, again", code, right, expected, runs=2)


WRONG_LOGITS = {
    "None": "None",
    "a text": "'logits'",
    "texts": "['a', 'b']",
    "a list of numbers": "x.tolist()",
    "an empty mapping": "{}",
    "a generator": "(row for row in x)",
    "ragged rows": "[[1.0], [1.0, 2.0]]",
    "objects": "x.astype(object)",
    "complex numbers": "x.astype(np.complex64)",
    "whole numbers": "x.astype(np.int64)",
    "records": "x.astype([('float', np.float32)])",
    "another shape": "x[None]",
    "no dimension": "np.float32(1)",
    "nothing": "x[:0]",
    "a masked array": "np.ma.masked_array(x, x > 0)",
    "an unprintable name": "{Unprintable(): x}",
    "an unreadable object": "type('Lazy', (), {'__array__': lambda *a, **k: 1 / 0})()",
    "NaN": "x * np.float32(np.nan)",
    "infinity": "x / np.float32(0)",
    "the class ndarray": "np.ndarray",
    "itself": "self",
}
RIGHT_LOGITS = {
    "a matrix": "np.asmatrix(x)",
    "a mapping that is none": "__import__('types').MappingProxyType({'logits': x})",
    "columns": "np.asfortranarray(x)",
    "a view from behind": "x[::-1].copy()[::-1]",
    "a lazy array": "type('Lazy', (), {'__array__': lambda *a, **k: x})()",
    "an array that lies": "x.view(Lies)",
    "taps without entries": "{'logits': x, 'a': x[:0], 'b': np.zeros((0, 3), np.float32)}",
    "taps with strange names": "{'logits': x, '': x, '[/red]': x, '\\ud800': x, 'a\\nb\\0': x}",
    "a tap of NaN": "{'logits': x, 'a': x * np.float32(np.nan)}",
    "a tap of another shape": "{'logits': x, 'encoder.layers.0.output': x, 'tokens': x[0, 0]}",
    "taps that are no taps": "{'logits': x, 'image': x, 'head.bias': x}",
    "a large tap": "{'logits': x, 'a': np.zeros(20_000_000, np.float32)}",
    "two thousand taps": "{'logits': x} | {f't{i}': x for i in range(2000)}",
    "a tap of whole numbers": "{'logits': x, 'a': np.arange(3), 'b': x > 0}",
    "a tap of complex numbers": "{'logits': x, 'a': x * 1j}",
}
"""Right logits in odd clothes; some of the taps may be refused."""
VARYING_LOGITS = {
    "taps of changing shapes": "{'logits': x, 'a': np.ones(random.randrange(9), np.float32)}",
    "taps of changing names": "{'logits': x, str(random.random()): x}",
}
"""Right logits, and taps that are something else on every run, which departs (determinism)."""
GRADIENTS = {
    "None": ("None", None),
    "three": ("d, x, x", None),
    "swapped": ("x, d", None),
    "a list": ("list(d.values()), x", None),
    "one missing": ("{n: v for n, v in d.items() if n != 'head.bias'}, x", None),
    "one more": ("d | {'head.wieghts': x}, x", None),
    "one None": ("d | {'head.bias': None}, x", None),
    "one of NaN": ("d | {'head.bias': d['head.bias'] * np.float32(np.nan)}, x", None),
    "one of objects": ("d | {'head.bias': d['head.bias'].astype(object)}, x", None),
    "one of float64": ("d | {'head.bias': d['head.bias'].astype(float)}, x", None),
    "the parameters": ("{n: p.copy() for n, p in params.items()}, x", False),
    "the very parameters": ("params, images", False),
    "one of zeros": ("d | {'head.bias': d['head.bias'] * 0}, x", False),
    "one times 1.01": ("d | {'head.bias': d['head.bias'] * np.float32(1.01)}, x", False),
    "one that lies, times 1.01": (
        "d | {'head.bias': (d['head.bias'] * np.float32(1.01)).view(Lies)}, x",
        False,
    ),
    "images' times 1.01": ("d, x * np.float32(1.01)", False),
    "of an endless mapping": ("Endless(d), x", None),
    "by names that lie": ("{Name(n): v for n, v in d.items()}, x", True),
}
CLOTHES = """
class Lies(np.ndarray):
    def __eq__(self, other): return True
    def __array_ufunc__(self, *args, **kwargs): return 0.0
    def __sub__(self, other): return 0.0
    __rsub__ = __sub__
    def __array_function__(self, *args, **kwargs): return 0.0
    def astype(self, *args, **kwargs): return self

class Name(str):
    def __hash__(self): return random.randrange(99)
    def __eq__(self, other): return True
    def __str__(self): raise Unprintable

class Endless(dict):
    def items(self):
        while True:
            time.sleep(0.01)
            yield str(random.random()), np.ones(1, np.float32)
    def __iter__(self): return iter(n for n, _ in self.items())
    keys = __iter__

class Bent({base}):
    def forward(self, config, params, images):
        x = super().forward(config, params, images)
        return {logits}
    def vjp(self, config, params, images, cotangent):
        d, x = super().vjp(config, params, images, cotangent)
        return {gradients}
impl = Bent()
"""


def clothed(base: str = "Right", logits: str = "x", gradients: str = "d, x") -> str:
    """The code that returns these."""
    return CLOTHES.format(base=base, logits=logits, gradients=gradients)


def returned() -> Iterator[Hostile]:
    """Those that return something odd, or something wrong."""
    for what, logits in WRONG_LOGITS.items():
        yield Hostile(f"returns {what}", clothed(logits=logits), None)
    for what, logits in RIGHT_LOGITS.items():
        yield Hostile(f"returns, right: {what}", clothed(logits=logits), True, (0, 3))
        if "tap" not in what:
            yield Hostile(f"returns, wrong: {what}", clothed("Wrong", logits), False)
    for what, logits in VARYING_LOGITS.items():
        yield Hostile(f"returns, wrong: {what}", clothed(logits=logits), False, (1, 3))
    for what, (gradients, right) in GRADIENTS.items():
        expected = (0, 3) if right else ()
        timeout = SHORT if "endless" in what else LONG
        code = clothed(gradients=gradients)
        yield Hostile(f"gradients: {what}", code, right, expected, timeout)


FORWARD = "def forward(self, config, params, images):\n"
BODIES: dict[str, tuple[str, bool | None, tuple[int, ...]]] = {
    # ---- what it is given
    "clips images in place": ("np.clip(i := writable(images), 0, 1, out=i)", None, ()),
    "clips images by its flag": (
        "images.setflags(write=True); np.clip(images, 0, 1, out=images)",
        None,
        (),
    ),
    "clips images by PyTorch": (
        "import torch; torch.from_numpy(images).clamp_(0, 1)",
        None,
        (),
    ),
    "writes a parameter by ctypes": (
        "ctypes.memset(params['head.bias'].ctypes.data, 7, 4)",
        None,
        (),
    ),
    "writes, and writes back": (
        "i = writable(images); k = i.copy(); i[...] = 7; i[...] = k",
        True,
        (),
    ),
    "empties the parameters afterwards": (
        "x = super().forward(config, params, images); params.clear(); return x",
        True,
        (),
    ),
    "changes the configuration": (
        "x = super().forward(config, params, images)\n"
        "object.__setattr__(config, 'num_classes', 1); return x",
        True,
        (),
    ),
    # ---- what it returns, and when
    "returns one buffer": (
        "x = super().forward(config, params, images)\n"
        "b = vars(self).setdefault(str(x.shape), np.empty_like(x)); b[...] = x; return b",
        True,
        (),
    ),
    "returns one buffer, and noise": (
        "x = super().forward(config, params, images)\n"
        "x = x * (1 + 1e-5 * np.random.standard_normal(x.shape)).astype(np.float32)\n"
        "b = vars(self).setdefault(str(x.shape), np.empty_like(x)); b[...] = x; return b",
        False,
        (1, 3),
    ),
    "spoils its result afterwards": (
        "x = super().forward(config, params, images)\n"
        "threading.Timer(0.3, lambda: x.fill(7)).start(); return x",
        True,
        (),
    ),
    "returns the images as a tap": (
        "return {'logits': super().forward(config, params, images), 'x': images}",
        True,
        (0, 3),
    ),
    # ---- a wrong function, well hidden
    "is right for three calls": (
        "vars(self)['n'] = vars(self).get('n', 0) + 1\n"
        "return super().forward(config, params, images) * np.float32(1 + (self.n > 3))",
        False,
        (1, 3),
    ),
    "is right in its first process": (
        "if 'one' not in vars(self): self.one = first('.one')\n"
        "return super().forward(config, params, images) * np.float32(1 if self.one else 2)",
        False,
        (1, 3),
    ),
    "is wrong in its first process": (
        "if 'one' not in vars(self): self.one = first('.one')\n"
        "return super().forward(config, params, images) * np.float32(2 if self.one else 1)",
        False,
        (1, 3),
    ),
    "is wrong, then leaves": (
        "vars(self)['n'] = vars(self).get('n', 0) + 1\n"
        "if self.n > 4: os._exit(0)\n"
        "return super().forward(config, params, images) * np.float32(1.01)",
        False,
        (1, 3),
    ),
    "is wrong by 1e-4": (
        "return super().forward(config, params, images) * np.float32(1.0001)",
        False,
        (),
    ),
    "returns zeros": ("return np.zeros((len(images), config.num_classes), np.float32)", False, ()),
    "returns what was there before": (
        "x = super().forward(config, params, images); old = getattr(self, 'old', x)\n"
        "self.old = x; return old if old.shape == x.shape else x",
        False,
        (1, 3),
    ),
    "is slow": ("time.sleep(0.1)", True, ()),
}

SAYS: dict[str, tuple[str, bool | None, tuple[int, ...]]] = {
    "name of a verdict": (f"name = 'x\\n{FAKE}'", False, ()),
    "name of surrogates": ("name = '\\ud800'", True, (0, 3)),
    "name of surrogates, wrong": ("name = '\\ud800'", False, (1, 3)),
    "name of markup": ("name = '[/bold] [link=x]'", True, ()),
    "name of control characters": ("name = 'a\\x00\\x1b[2J\\x1b[8m\\r'", True, (0, 3)),
    "name of control characters, wrong": ("name = 'a\\x00\\x1b[2J\\x1b[8m\\r'", False, (1, 3)),
    "name of a megabyte": ("name = 'x' * 1_000_000", True, (0, 3)),
    "no name": ("name = ''", True, (0, 3)),
    "name of HTML": ("name = '</title><script>x</script>]]>&'", True, ()),
    "version of ten megabytes": ("version = 'x' * 10_000_000", True, (0, 3)),
    "version of surrogates": ("version = '\\udc80'", True, (0, 3)),
    "another name each time": ("name = property(lambda s: str(random.random()))", True, (0, 3)),
    "another spec each time": (
        "spec = property(lambda s: random.choice(['vit', 'vit-cls', 'other']))",
        False,
        (1, 3),
    ),
    "another dtype in each process": (
        "dtype = property(lambda s: 'float32' if first('.one') else 'bfloat16')\n"
        "factor = np.float32(2)",
        False,
        (1, 3),
    ),
    "no vjp in later processes": (
        "vjp = property(lambda s: (lambda *a: SPEC.vjp(*a)) if first('.one') else None)",
        True,
        (0, 3),
    ),
    "dtype float64 of float32": (
        "dtype = 'float64'\n"
        "def forward(self, config, params, images):\n"
        "    few = {n: p.astype(np.float32) for n, p in params.items()}\n"
        "    return super().forward(config, few, images.astype(np.float32)).astype(float)",
        False,
        (),
    ),
    "dtype float16, zeros": (
        "dtype = 'float16'\nfactor = np.float32(0)",
        False,
        (),
    ),
    "dtype bfloat16, twice as large": ("dtype = 'bfloat16'\nfactor = np.float32(2)", False, ()),
    "dtype bfloat16, exact": ("dtype = 'bfloat16'", True, (0, 3)),
    "a str that lies for dtype": (
        "dtype = type('S', (str,), {'__eq__': lambda s, o: True, '__hash__': lambda s: 0})"
        "('float32')",
        True,
        (0, 3),
    ),
    "repeats to rounding, by 1e-4": (
        "repeats = 'to rounding'\n"
        "factor = property(lambda s: np.float32(1 + 1e-4 * random.random()))",
        False,
        (1, 3),
    ),
    "spec of another": ("spec = 'vit'", False, (1, 3)),
    "spec other": ("spec = 'other'", None, ()),
    "supports nothing": ("def supports(self, config): return 'no'", None, ()),
    "supports one configuration, then none": (
        "n = 0\ndef supports(self, config):\n    self.n += 1; return 'no' * (self.n > 9) or None",
        True,
        (0, 3),
    ),
    "supports one, then none, wrong": (
        "n = 0\ndef supports(self, config):\n    self.n += 1; return 'no' * (self.n > 9) or None",
        False,
        (1, 3),
    ),
    "supports by chance": (
        "def supports(self, config): return random.choice([None, 'no'])",
        False,
        (1, 3),
    ),
    "supports, with surrogates": (
        "def supports(self, config): return '\\ud800[/x]' if config.head_count > 1 else None",
        True,
        (0, 3),
    ),
    "supports, with a megabyte": (
        "def supports(self, config): return 'x' * 10**6 if config.head_count > 1 else None",
        True,
        (0, 3),
    ),
    "supports True": ("def supports(self, config): return True", None, ()),
    "supports leaves the second time": (
        "n = 0\ndef supports(self, config):\n    self.n += 1; self.n < 2 or os._exit(1)",
        None,
        (),
    ),
}
CLOSEST: dict[str, tuple[str, bool | None, tuple[int, ...]]] = {
    "a text": ("'x'", None, ()),
    "None": ("None", None, ()),
    "ill-formed": ("replace(config, num_layers=1, patch_h=0)", None, ()),
    "changed behind": ("changed(config, num_layers=-1)", None, ()),
    "of floats": ("changed(config, embed_dim=8.0, head_count=1)", None, ()),
    "of truth values": ("changed(config, head_count=True)", None, (0, 3)),
    "with another attribute": ("changed(config, head_count=1, more=object())", None, ()),
    "wide": ("replace(config, head_count=1, embed_dim=2**20, hidden_dim=2**20)", None, ()),
    "very wide": ("replace(config, head_count=1, embed_dim=2**31 - 1)", None, ()),
    "deep": ("replace(config, head_count=1, num_layers=2**31 - 1)", None, ()),
    "a large patch": ("replace(config, head_count=1, patch_h=2**20, patch_w=2**20)", None, ()),
    "one of a few thousand classes": (
        "replace(config, head_count=1, num_classes=3000)",
        True,
        (0, 3),
    ),
    "what is not supported": ("config", None, (0, 3)),
}
MOVED = """
def changed(config, **fields):
    for name, value in fields.items():
        object.__setattr__(config, name, value)
    return config

class Bent(Right):
    def supports(self, config): return None if config.head_count == 1 else "several heads"
    def closest(self, config): return {0}
impl = Bent()
"""


def methods() -> Iterator[Hostile]:
    """Those whose methods or attributes are odd."""
    for what, (body, right, expected) in BODIES.items():
        lines = f"{body}\nreturn super().forward(config, params, images)"
        code = f"class Bent(Right):\n    {FORWARD}{indent(lines, ' ' * 8)}\nimpl = Bent()"
        options = MORE if "process" in what else FEW
        yield Hostile(what, code, right, expected, options=options)
    for what, (body, right, expected) in SAYS.items():
        base = "Wrong" if right is False and "factor" not in body else "Right"
        code = f"class Bent({base}):\n{indent(body, ' ' * 4)}\nimpl = Bent()"
        options = f"{MORE if 'process' in what else FEW} {FILES}"
        yield Hostile(f"says {what}", code, right, expected, options=options)
    for what, (closest, right, expected) in CLOSEST.items():
        code = MOVED.replace("{0}", closest)
        yield Hostile(f"closest, {what}", code, right, expected, SHORT)


SWAP = """
impl = {0}()
text = open(__file__).read()
part = __file__ + ".part"
open(part, "w").write(text.replace("impl = {0}()", "impl = {1}()"))
os.replace(part, __file__)
"""
OTHER = """
class Other:
    name, version, spec, dtype = "other", "1", "other", "float64"
    def example(self, rng):
        config = None
        params = {"w": rng.standard_normal((5, 3))}
        images = rng.standard_normal((4, 5))
        {example}
        return config, params, images
    def forward(self, config, params, images):
        return images @ params["w"]
    def vjp(self, config, params, images, cotangent):
        return {"w": images.T @ cotangent * {factor}}, cotangent @ params["w"].T
    {more}
impl = Other()
"""
EXAMPLES: dict[str, tuple[str, str, str, bool | None]] = {
    "right": ("pass", "1", "", True),
    "wrong": ("pass", "1.01", "", False),
    "wrong, spoils the random numbers": ("rng.bit_generator.state = {}", "1.01", "", None),
    "wrong, resets the random numbers": (
        "rng.bit_generator.state = np.random.default_rng(0).bit_generator.state",
        "1.01",
        "",
        False,
    ),
    "leaves": ("os._exit(0)", "1", "", None),
    "parameters of texts": ("params = {'w': 'x'}", "1", "", None),
    "no parameters": ("params = {}", "1", "", None),
    "parameters of NaN": ("params['w'] *= np.nan", "1", "", False),
    "an unprintable configuration": ("config = Unprintable()", "1", "", True),
    "another shape each time": ("images = np.ones((random.randrange(1, 9), 5))", "1", "", True),
    "a naming of nonsense": ("pass", "1", "naming = 7", None),
}


def files() -> Iterator[Hostile]:
    """Those whose file is odd, and those of a function of their own."""
    for first, second in (("Right", "Wrong"), ("Wrong", "Right")):
        code = SWAP.replace("{0}", first).replace("{1}", second)
        yield Hostile(f"rewrites its file: {first}, {second}", code, False, (1, 3), options=MORE)
    whole = {
        "no Python": "def (",
        "an empty file": "",
        "zero bytes": "\0\0\0",
        "imports what is not there": "import no_such_module_at_all",
        "a mock": "from unittest.mock import MagicMock\nimpl = MagicMock()",
        "has every attribute": (
            "class All:\n    def __getattr__(self, name): return lambda *a: self\nimpl = All()"
        ),
        "has no attribute": (
            "class No:\n    def __getattribute__(self, name): raise KeyError(name)\nimpl = No()"
        ),
        "is a module": "import numpy as impl",
        "is a function that leaves": "import sys\ndef impl(): sys.exit(0)",
        "is a class whose making fails": "class impl:\n    def __init__(self): raise SystemExit",
    }
    for what, code in whole.items():
        yield Hostile(f"file: {what}", code, None, whole=True)
    yield Hostile("file: several", "a, b = Right(), Wrong()", None, target="")
    yield Hostile("file: no such attribute", "", None, target=":nobody")
    yield Hostile("file: an attribute that leaves", "", None, target=":os._exit")
    for what, (example, factor, more, right) in EXAMPLES.items():
        code = OTHER.replace("{example}", example).replace("{more}", more)
        code = code.replace("{factor}", factor)
        expected = (0, 3) if right else (1, 3) if right is False else (3,)
        yield Hostile(f"example: {what}", code, right, expected, options=IDENTITIES)


def all_hostile() -> list[Hostile]:
    """All of them, in the order of the table."""
    plain = [
        Hostile("plain, right", "impl = Right()", True),
        Hostile("plain, wrong", "impl = Wrong()", False),
    ]
    found = [*plain, *ending(), *deeds(), *returned(), *methods(), *files()]
    doubled = [name for name, n in Counter(one.name for one in found).items() if n > 1]
    assert not doubled, doubled
    return found


# ---- running them -------------------------------------------------------------------------------


def survivors(mark: str) -> dict[int, str]:
    """The processes that have a mark in their environment, command line or folder."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
            text = line + (folder / "environ").read_bytes() + os.readlink(folder / "cwd").encode()
        except OSError:  # it is gone, or another user's
            continue
        if mark.encode() in text and int(folder.name) != os.getpid():
            found[int(folder.name)] = line.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def end_survivors(mark: str) -> None:
    """End what is left, until nothing is."""
    deadline = time.monotonic() + 60
    while (left := survivors(mark)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def run(one: Hostile, folder: Path) -> Outcome:
    """Check one by the command, and judge what happened."""
    mark = f"vitspec-hostile-{uuid.uuid4()}"
    here = folder / mark  # so the command lines of children that it starts have the mark too
    for name in ("cwd", "tmp"):
        (here / name).mkdir(parents=True)
    file = here / "mine.py"
    file.write_text(one.text)
    command = [str(Path(sys.executable).with_name("vitspec")), "check", f"{file}{one.target}"]
    command += [*one.options.split(), "--timeout", f"{one.timeout:g}"]
    own = {MARK: mark, "TMPDIR": str(here / "tmp"), "COLUMNS": "80"}
    for _ in range(one.runs - 1):
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, cwd=here / "cwd",
                env=os.environ | own, start_new_session=True, timeout=one.timeout,
            )  # fmt: skip
    start = time.monotonic()
    with (here / "out").open("ab") as out, (here / "err").open("ab") as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=here / "cwd",
            env=os.environ | own, start_new_session=True,
        )  # fmt: skip
        with suppress(OSError):
            resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY, MEMORY))
        try:
            code: int | None = process.wait(one.timeout + GRACE)
        except subprocess.TimeoutExpired:
            code = None
    seconds = time.monotonic() - start
    left: dict[int, str] = {}
    deadline = time.monotonic() + ENDING
    while code is not None and (left := survivors(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    end_survivors(mark)
    process.wait()
    texts = [(here / name).read_text(errors="replace") for name in ("out", "err")]
    said, errors = ([line for line in text.splitlines() if line.strip()] for text in texts)
    verdict = said[-1] if said and VERDICT.match(said[-1]) else (errors or said or [""])[-1]
    verdict = verdict.replace(f"{here}/", "")  # the same on every run
    problems = tuple(judged(one, code, said, left))
    return Outcome(
        one.name, one.right, code, verdict[:300], round(seconds, 1), tuple(left.values()), problems
    )


def judged(
    one: Hostile, code: int | None, said: Sequence[str], left: dict[int, str]
) -> Iterator[str]:
    """The rules that were broken."""
    if code is None:
        yield f"did not end within {one.timeout + GRACE:g} s"
    elif code == 0 and one.right is not True:
        yield "conforms, but computes another function"
    elif code == 1 and one.right is not False:
        yield "departs, but computes the right function, or cannot be judged"
    elif code not in one.codes:
        yield f"exit code {code}, expected {' or '.join(map(str, one.codes))}"
    if code in SAID and not (said and VERDICT.match(said[-1]) and SAID[code] in said[-1]):
        yield f"exit code {code} without a verdict that says so"
    if left:
        yield f"left {len(left)} processes behind"


def line(outcome: Outcome) -> str:
    """One line of the table, of 72 columns or less: 80 with its number."""
    code = "-" if outcome.exit_code is None else outcome.exit_code
    text = "; ".join(outcome.problems) or "fine"
    name = outcome.name if len(outcome.name) <= 40 else outcome.name[:37] + "..."
    row = f"{name:40} {KINDS[outcome.right]:5} {code:>4} {outcome.seconds:5.1f} {text}"
    return row if len(row) <= 72 else row[:69] + "..."


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many of each kind had which exit code, and whatever broke a rule."""
    codes = sorted({str(one.exit_code) for one in outcomes})
    lines = [
        f"{len(outcomes)} implementations",
        f"{'exit code':12}" + "".join(f"{c:>7}" for c in codes),
    ]
    for right, kind in KINDS.items():
        counts = Counter(str(one.exit_code) for one in outcomes if one.right is right)
        lines.append(f"{kind:12}" + "".join(f"{counts[c]:7}" for c in codes))
    bad = [one for one in outcomes if one.problems]
    lines.append(f"{len(bad)} broke a rule" + ":" * bool(bad))
    for one in bad:
        lines += [f"  {one.name}: {'; '.join(one.problems)}", f"    {one.verdict[:74]}"]
        lines += [f"    left: {text[:68]}" for text in one.survivors]
    return "\n".join(lines)


def main() -> int:
    """Run them, print the table, and keep what happened if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", help="those of this name; may have *; repeatable"
    )
    parser.add_argument("--list", action="store_true", help="print the names, and run nothing")
    parser.add_argument("--out", type=Path, help="a JSON file of what happened to each")
    parser.add_argument("--folder", type=Path, help="where to leave their files and outputs")
    arguments = parser.parse_args()
    chosen = [
        one
        for one in all_hostile()
        if any(fnmatch.fnmatchcase(one.name, pattern) for pattern in arguments.only or ["*"])
    ]
    if arguments.list or not chosen:
        print("\n".join(one.name for one in chosen))
        return 0 if chosen else 2
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="vitspec-hostile-"))
    folder = folder.resolve()
    outcomes: dict[str, Outcome] = {}
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for done in as_completed([pool.submit(run, one, folder) for one in chosen]):
                outcome = done.result()
                outcomes[outcome.name] = outcome
                print(f"{len(outcomes):3}/{len(chosen)} {line(outcome)}", flush=True)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    rows = [outcomes[one.name] for one in chosen]
    print(summary(rows))
    if arguments.out:
        text = ",\n".join(json.dumps(asdict(row)) for row in rows)
        write_atomically(arguments.out, f"[\n{text}\n]\n")
    return int(any(row.problems for row in rows))


if __name__ == "__main__":
    sys.exit(main())
