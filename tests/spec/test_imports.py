"""The arrows between modules run one way, and importing the specification costs little.

Two checkers, one that runs a program and one that reads source, and for each a test that it can
find something.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vitspec

SPEC = Path(vitspec.__file__).parent
ROOT = Path(__file__).parents[2]
HEAVY = ["jax", "flax", "tokamax", "torch", "hypothesis", "flint", "rich", "typer", "vitfast"]
HEAVY += ["pytest", "PIL", "safetensors"]


def heavy_modules_after(program):
    """Those of `HEAVY` that a fresh interpreter has loaded after running `program`."""
    report = f"\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    command = [sys.executable, "-c", program + report]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()


WORK = """
import numpy as np
from vitspec import ViTConfig, ViTClsSpec
config = ViTConfig(patch_h=2, patch_w=2, stride=2, embed_dim=6, hidden_dim=5, head_count=2,
                   num_layers=1, num_classes=3)
model = ViTClsSpec.init(config, in_channels=1, height=4, width=6, rng=np.random.default_rng(0))
image = np.random.default_rng(1).standard_normal((1, 4, 6))
model.backward(image, model.forward(image))
model.jvp(image, model, image)
"""


@pytest.mark.parametrize("program", ["import vitspec", WORK], ids=["import", "import and compute"])
def test_vitspec_brings_in_no_framework_and_no_test_tool(program):
    assert heavy_modules_after(program) == []


@pytest.mark.parametrize("heavy", ["hypothesis", "flint"])
def test_the_check_of_what_is_brought_in_can_fail(heavy):
    assert heavy in heavy_modules_after(f"import vitspec, {heavy}")


def test_the_real_numbers_bring_in_flint_only_when_asked_for():
    program = "import numpy as np, vitspec; vitspec.to_reals(np.array([0.1]))"
    assert heavy_modules_after(program) == ["flint"]


# ---- arrows ------------------------------------------------------------------------------------


def imported_modules(source, package):
    """The full names of all modules that `source`, a module of `package`, imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: -(node.level - 1) or None] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            names |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
    return names


def _called(call):
    return getattr(call.func, "attr", None) or getattr(call.func, "id", None)


def forbidden_imports(source, package, forbidden):
    """Those imports of `source` that are one of `forbidden` or lie below it."""
    return sorted(
        name
        for name in imported_modules(source, package)
        if any(name == root or name.startswith(f"{root}.") for root in forbidden)
    )


def package_of(path):
    return ".".join(path.relative_to(SPEC.parent).parent.parts)


FRAMEWORKS = ["vitfast", "jax", "jaxlib", "flax", "tokamax", "torch", "optax", "orbax", "grain"]
HIGHER = {
    "layers": ["vitspec.models", "vitspec.testing", "vitspec.cli"],
    "models": ["vitspec.testing", "vitspec.cli"],
    "testing": ["vitspec.cli"],
    "": ["vitspec.testing"],  # the modules beside the packages; the command line is an exception
}
LOWEST = ["typing.py", "scalars.py", "reals.py", "errors.py", "records.py", "geometry.py"]
LOWEST += ["config.py", "special.py", "vision_transformer_config.py", "presets.py"]


def arrows():
    """Each file of the specification with what it must not import."""
    for path in sorted(SPEC.rglob("*.py")):
        folder = path.relative_to(SPEC).parts[0] if path.parent != SPEC else ""
        forbidden = [*FRAMEWORKS, *HIGHER.get(folder, [])]
        if path.name == "cli.py":
            forbidden = FRAMEWORKS
        if folder == "" and path.name in LOWEST:
            forbidden = [*forbidden, "vitspec.layers", "vitspec.models", "vitspec.cli"]
        yield path, forbidden


@pytest.mark.parametrize(
    ("path", "forbidden"),
    [pytest.param(p, f, id=p.relative_to(SPEC).as_posix()) for p, f in arrows()],
)
def test_arrows_run_one_way(path, forbidden):
    assert forbidden_imports(path.read_text(), package_of(path), forbidden) == []


def test_the_arrows_cover_every_layer_and_model():
    names = {path.relative_to(SPEC).as_posix() for path, _ in arrows()}
    assert {"layers/conv2d.py", "models/vit.py", *LOWEST} <= names


@pytest.mark.parametrize(
    "source",
    [
        "import vitspec.models.vit",
        "from vitspec.models import vit",
        "from vitspec import models",
        "from vitspec.models.vit import ViTSpec as V",
        "from .. import models",
        "from ..models.vit import ViTSpec",
        "def f():\n    import vitspec.models as m",
        "import importlib\nimportlib.import_module('vitspec.models.vit')",
        "if True:\n    __import__('vitspec.models')",
    ],
)
def test_the_check_of_arrows_can_fail(source):
    assert forbidden_imports(source, "vitspec.layers", ["vitspec.models"])
    assert not forbidden_imports(source, "vitspec.layers", ["vitspec.model", "jax"])


def test_scalars_and_typing_import_no_layers_and_only_the_lowest_modules():
    allowed = {
        "errors.py": set(),
        "typing.py": {"errors"},
        "special.py": {"typing"},
        "scalars.py": {"special", "typing", "errors"},
        "reals.py": {"scalars", "typing", "errors"},
        "config.py": {"errors"},
        "vision_transformer_config.py": {"config", "errors"},
        "presets.py": {"vision_transformer_config"},
        "geometry.py": {"scalars", "config", "typing", "errors"},
        "records.py": {"scalars", "errors", "typing"},
    }
    for file, names in allowed.items():
        own = [m for m in imported_modules((SPEC / file).read_text(), "vitspec") if "." in m]
        used = {name.split(".")[1] for name in own if name.startswith("vitspec.")}
        assert used <= names, file


# ---- shapes are strings that jaxtyping sees ----------------------------------------------------


def unquoted_shapes(source):
    """The lines of array annotations whose shape is not a string, so that nothing checks it.

    `Scalar[Array, D]` is as good Python as `Scalar[Array, " D"]` where annotations are not
    evaluated, but then jaxtyping sees no shape. Linters like to remove the quotes of one letter.
    """
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Subscript)
        and getattr(node.value, "id", None) in ("Scalar", "Bool")
        and not (
            isinstance(node.slice, ast.Tuple)
            and len(node.slice.elts) == 2
            and isinstance(node.slice.elts[1], ast.Constant)
            and isinstance(node.slice.elts[1].value, str)
        )
    ]


@pytest.mark.parametrize("file", sorted(p.relative_to(SPEC).as_posix() for p in SPEC.rglob("*.py")))
def test_every_shape_annotation_is_a_string(file):
    assert unquoted_shapes((SPEC / file).read_text()) == []


def test_the_check_of_shape_annotations_can_fail():
    assert unquoted_shapes("def f(x: Scalar[Array, D]) -> Scalar[Array, ' D']: ...") == [1]


# ---- what accompanies the code -----------------------------------------------------------------


def test_citation_has_this_version_and_cites_torchlean():
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "CITATION.cff").read_text()
    citation = yaml.safe_load(text)
    assert citation["version"] == vitspec.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert "2602.22631" in yaml.safe_dump(citation.get("references", []))


def test_changelog_mentions_this_version():
    headings = [
        line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("##")
    ]
    assert any(vitspec.__version__ in heading for heading in headings)
