"""The five-minute page: every command on it is run, and prints what the page shows."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitspec.cli import app

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "check-your-model.md"


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def steps():
    """(command, lines expected, exit code) of every command, in order."""
    found = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = part.splitlines()
            code = 0
            if lines and (match := re.fullmatch(r"\[exit code (\d)\]", lines[-1])):
                code, lines = int(match[1]), lines[:-1]
            found.append((command, [line for line in lines if line != "..."], code))
    return found


def plain(text):
    """Words, without the lines of tables."""
    return " ".join(re.sub(r"[│┃━─┏┓┗┛┡┩└┘]", " ", text).split())


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A directory with the page's files, and an environment that finds `vitspec` and `python`."""
    pytest.importorskip("jax")
    directory = tmp_path_factory.mktemp("page")
    for block in blocks("python"):
        name = re.match(r"# (\S+\.py)\n", block)[1]
        (directory / name).write_text(block)
    (directory / "bin").mkdir()
    program = "import sys; from vitspec.cli import main; sys.argv[0] = 'vitspec'; main()"
    scripts = {"vitspec": f'exec {sys.executable} -c "{program}" "$@"',
               "python": f'exec {sys.executable} "$@"'}  # fmt: skip
    for name, line in scripts.items():
        script = directory / "bin" / name
        script.write_text(f"#!/bin/sh\n{line}\n")
        script.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{directory / 'bin'}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1",
        "COLUMNS": "80",
    }  # fmt: skip
    return directory, environment


PARTS = {"my_vit": "my_vit", "planted": "planted:", "rest": ""}
"""The commands on the user's file follow on each other; the others stand alone, and in parts."""


def chosen(part):
    """The steps of a part."""
    part_of = lambda command: next(name for name, word in PARTS.items() if word in command)  # noqa: E731
    found = [step for step in steps() if part_of(step[0]) == part]
    assert len(found) >= 3
    return found


def assert_printed(command, done, found_code, expected, code):
    """`done` has the output and the errors of a command that ended with `found_code`."""
    assert found_code == code, f"{command}\n{done.stdout}\n{done.stderr}"
    for line in expected:
        words = plain(line)
        assert words in plain(done.stdout), f"{command}\nexpected: {words}\ngot: {done.stdout}"


@pytest.mark.parametrize("part", ["my_vit", "rest"])
def test_every_command_prints_what_the_page_shows(session, part):
    """As users run them. What is typed twice, while the file is the same, is run once."""
    directory, environment = session
    seen = {}
    for command, expected, code in chosen(part):
        key = command, (directory / "my_vit.py").read_text()
        if key not in seen:
            seen[key] = subprocess.run(
                command, shell=True, cwd=directory, env=environment, capture_output=True, text=True,
                check=False, timeout=300,
            )  # fmt: skip
        assert_printed(command, seen[key], seen[key].returncode, expected, code)


def test_every_command_on_the_planted_prints_what_the_page_shows(inline, tmp_path, monkeypatch):
    """In this process: there is no user's file that it would have to be kept from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for command, expected, code in chosen("planted"):
        program, *words = shlex.split(command)
        assert program == "vitspec"
        done = CliRunner().invoke(app, words)
        assert_printed(command, done, done.exit_code, expected, code)
