"""The kit's rooms: what is public, what is declared once, where imports go, how large it is."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vitspec
from vitspec.testing.settings import Settings, settings_table

SPEC = Path(vitspec.__file__).parent
KIT = SPEC / "testing"
PAGE = Path(__file__).parents[2] / "docs" / "how-the-kit-decides.md"


# ---- the public face -------------------------------------------------------------------------


def test_what_is_public_is_a_function_or_a_class_whatever_was_imported_before():
    """A package of the same name would hide it once something below was imported."""
    program = (
        "import pkgutil, vitspec.testing as kit\n"
        "for module in pkgutil.walk_packages(kit.__path__, 'vitspec.testing.'):\n"
        "    parts = module.name.split('.')\n"
        "    if not {'peers', 'data'} & set(parts): __import__(module.name)\n"
        "from types import ModuleType\n"
        "print(*[n for n in kit.__all__ if isinstance(getattr(kit, n), ModuleType)])\n"
        "print(kit.diagnose.__name__, kit.check.__name__, kit.from_torch.__name__)"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["strategies", "diagnose check from_torch"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'chekc'"):
        vitspec.testing.chekc  # noqa: B018


@pytest.mark.parametrize("program", ["vitspec", "vitfast"])
def test_a_program_runs_as_a_module(program):
    done = subprocess.run(
        [sys.executable, "-m", program, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{program} {vitspec.__version__}\n"


# ---- settings, declared once -----------------------------------------------------------------


def test_the_page_lists_the_settings_as_they_are_declared():
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition("settings_table -->\n")[2].partition("<!-- end")[0].strip() == (
        settings_table()
    )


def test_each_setting_is_a_parameter_with_its_words_in_the_docstring_and_the_command():
    from vitspec.commands.check import check

    options = inspect.signature(check).parameters
    for name in inspect.signature(Settings).parameters:
        assert f"    {name}: " in Settings.__doc__
        assert name in options


def test_one_number_or_name_stands_for_itself():
    assert Settings(case=3, vector="basic-vit") == Settings(case=(3,), vector=("basic-vit",))
    assert Settings(case=[3, 4, 3]).case == (3, 4)
    one = Settings(case=np.int64(3), vector=None)
    assert (one, repr(one)) == (Settings(case=3), "Settings(case=(3,))")


@pytest.mark.parametrize(
    ("changed", "whole"),
    [
        ({}, True),
        ({"cases": 5, "laws": 1, "seed": 3, "dtype": "float32"}, True),
        ({"laws": 0}, False),
        ({"vectors": False}, False),
        ({"case": 0}, False),
        ({"only": "vjp"}, False),
    ],
)
def test_what_was_left_out_cannot_be_said_to_be_mended(changed, whole):
    assert Settings(**changed).whole == whole


# ---- arrows ----------------------------------------------------------------------------------


def modules():
    """Every module of vitspec, by its name."""
    for path in sorted(SPEC.rglob("*.py")):
        parts = path.relative_to(SPEC.parent).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


def imported(source, known):
    """The modules of `known` that a source imports, in functions too, but not for types alone."""
    found = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else node.module)
    return found & known.keys()


def circles(arrows):
    """What is left when modules that import nothing any more are taken away, again and again."""
    left = {name: set(targets) for name, targets in arrows.items()}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    return left


def test_no_module_imports_itself_by_way_of_others():
    known = dict(modules())
    arrows = {name: imported(path.read_text(), known) - {name} for name, path in known.items()}
    assert circles(arrows) == {}


def test_the_search_for_circles_finds_one():
    known = {"a": 1, "b": 1, "c": 1}
    sources = {"a": "import b", "b": "def f():\n    from c import x", "c": "import a"}
    arrows = {name: imported(source, known) for name, source in sources.items()}
    assert circles(arrows).keys() == {"a", "b", "c"}
    assert circles(arrows | {"c": set()}) == {}


# ---- size ------------------------------------------------------------------------------------


def kit_files():
    """The kit without peers and vectors, which are data for the most part."""
    return [
        path
        for path in sorted(KIT.rglob("*.py"))
        if not {"peers", "vectors"} & set(path.relative_to(KIT).parts)
    ]


def test_the_kit_is_no_larger_than_one_can_read():
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in kit_files()}
    assert [path for path, size in sizes.items() if size > 350] == []
    assert sum(sizes.values()) <= 18_600


def test_no_function_of_the_kit_is_longer_than_60_lines():
    long = [
        f"{path.name}: {node.name}"
        for path in kit_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert long == []
