"""Other libraries' ViTs, without those libraries: registry, abilities, name maps, command, page."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vitspec import VisionTransformer, VisionTransformerConfig
from vitspec.cli import app
from vitspec.testing import check, finding
from vitspec.testing.adapters.peers import registry
from vitspec.testing.adapters.peers import reports as peer_reports
from vitspec.testing.adapters.peers.abilities import Abilities
from vitspec.testing.adapters.peers.maps_torch import PRACTICAL_MAPS
from vitspec.testing.adapters.peers.peer import Deviation, Peer
from vitspec.testing.adapters.peers.registry import PEERS
from vitspec.testing.declared import KINDS
from vitspec.testing.degenerate import KINDS as POINTS
from vitspec.testing.diagnosis import points
from vitspec.testing.families import FAMILIES
from vitspec.testing.families.practical import INTERPOLATED, TELLING_CASES
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.reference import SpecImplementation
from vitspec.testing.report.report import Report
from vitspec.testing.results import Place, Result

CONFIG = VisionTransformerConfig(
    image_h=9, image_w=8, in_channels=2, patch_h=3, patch_w=2, embed_dim=6, hidden_dim=10,
    head_count=3, num_layers=2, num_classes=5,
)  # fmt: skip
"""Nothing is square, and few axes have the same size."""

ONLY = Abilities(
    {"activation": ("gelu", "relu"), "qkv_bias": (True,), "pool": ("cls",), "cls_token": (True,)},
    square_patches=True,
)


class Limited(SpecImplementation):
    """The specification, as if it could do only `ONLY`."""

    def __init__(self):
        super().__init__("vision-transformer")
        self.supports, self.closest = ONLY.supports, ONLY.closest


def peer(name="mine", needs=("numpy",), deviations=(), target="test_peers:Limited"):
    return Peer(name, target, needs, "a test", ("a limit",), deviations)


@pytest.fixture
def peers(monkeypatch):
    """Put peers in the place of those there are."""

    def these(*every):
        table = {one.name: one for one in every}
        for module in (registry, peer_reports, finding):
            monkeypatch.setattr(module, "PEERS", table)
        monkeypatch.setitem(sys.modules, "test_peers", sys.modules[__name__])

    return these


def run(*args):
    return CliRunner().invoke(app, ["peers", *map(str, args)])


# ---- registry --------------------------------------------------------------------------------


@pytest.mark.parametrize("one", PEERS.values(), ids=PEERS)
def test_a_peer_says_what_it_is_and_where(one):
    module, _, attribute = one.target.partition(":")
    assert find_spec(module) is not None
    assert attribute.isidentifier()
    assert one.needs
    assert one.what
    for deviation in one.deviations:
        assert deviation.kind in KINDS
        assert deviation.reason
        assert deviation.checks
        assert deviation.link or deviation.kind != "bug"


def test_peers_are_no_part_of_the_ordinary_check():
    assert not PEERS.keys() & set(finding.names())


def test_the_registry_imports_no_framework():
    program = (
        "import sys, vitspec.testing.adapters.peers.registry as r\n"
        "assert r.PEERS and not {'jax', 'flax', 'torch', 'transformers', 'timm', 'keras'} "
        "& sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_find_says_in_one_line_what_to_install(monkeypatch):
    here = {"torch": "2.0"}
    monkeypatch.setattr("vitspec.testing.adapters.peers.peer.installed", here.get)
    with pytest.raises(AdapterError) as caught:
        finding.find("timm")
    assert str(caught.value) == (
        "the peer 'timm' needs timm, torchvision, not installed here: "
        "python -m pip install timm torchvision"
    )


def test_find_says_that_a_library_does_not_import(peers):
    peers(peer(target="vitspec.no_such_module:vit"))
    with pytest.raises(AdapterError, match="the peer 'mine' does not import: No module named"):
        finding.find("mine")


def test_find_loads_a_peer(peers):
    peers(peer())
    assert isinstance(finding.find("mine"), Limited)


def test_a_name_that_nobody_has_is_refused():
    with pytest.raises(AdapterError, match="no implementation is named 'transfomers'; installed"):
        finding.find("transfomers")


# ---- abilities, and the closest configuration ------------------------------------------------


GEOMETRIES = [
    {"square_patches": patches, "square_images": images, "whole_patches": whole}
    for patches in (False, True) for images in (False, True) for whole in (False, True)
]  # fmt: skip


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_closest_is_supported_well_formed_and_no_further_than_needed(geometry):
    abilities = Abilities({"pool": ("cls",), "cls_token": (True,), "in_channels": (3,)}, **geometry)
    for seed in range(150):
        rng = np.random.default_rng(seed)
        family = FAMILIES["vision-transformer"]
        for case in (family.random_case(rng), family.tiled_case(rng)):
            config, tiled = case.config, case.batch == 2 and divides(case.config)
            near = abilities.closest(config)
            assert near.violations() == ()
            assert abilities.supports(near) is None
            assert near.pool == "cls"
            assert near.cls_token
            assert near.in_channels == 3
            assert near.patch_h == near.patch_w or not geometry["square_patches"]
            assert near.image_h == near.image_w or not geometry["square_images"]
            assert divides(near) or not (geometry["whole_patches"] or tiled)
            kept = ("embed_dim", "hidden_dim", "num_layers", "activation", "layer_norm_eps")
            assert all(getattr(near, name) == getattr(config, name) for name in kept)


def divides(config):
    return not (config.image_h % config.patch_h or config.image_w % config.patch_w)


def test_what_is_not_supported_is_named_with_what_is():
    assert ONLY.supports(replace(CONFIG, patch_w=3, image_w=9)) is None
    config = replace(CONFIG, activation="quick_gelu", patch_w=3, qkv_bias=False)
    assert ONLY.supports(config) == (
        "activation: 'gelu' or 'relu' only, got 'quick_gelu'; qkv_bias: True only, got False"
    )


def test_the_kit_checks_at_the_closest_configuration():
    report = check(Limited(), cases=2, laws=1, photograph=False)
    assert report.conforms, report
    skipped = {str(result.place) for result in report.results if result.status == "skipped"}
    assert skipped == {"degenerate large-gelu-tanh", "degenerate large-quick-gelu"}  # not in `ONLY`
    for result in report.results:
        if result.place.suite in ("case", "law", "degenerate") and result.status != "skipped":
            assert "pool='cls'" in result.point
            assert "qkv_bias=True" in result.point


def test_without_a_closest_one_such_cases_are_moved_to_what_is_supported():
    limited = Limited()
    limited.closest = None
    limited.supports = lambda config: None if (config.image_h, config.image_w) == (4, 6) else "no"
    report = check(limited, cases=3, interpolations=1, laws=0, ill_formed=False)
    assert report.compared == {"forward": 3, "gradients": 3, "interpolation": 1}
    assert {r.place.index for r in report.results if r.place.suite == "degenerate"} == {*POINTS}
    assert not report.count()["skipped"]
    assert all("image_h=4, image_w=6" in result.point for result in report.results)


def test_a_diagnosis_is_at_the_closest_configurations_too():
    found, notes = points.cases(Subject(Limited()))
    first, *others = TELLING_CASES
    assert [case.config for case in found] == [
        ONLY.closest(case.config) for case in (first, INTERPOLATED, *others)
    ]
    assert len(notes) == sum(ONLY.supports(c.config) is not None for c in TELLING_CASES)


@pytest.mark.parametrize("broken", [lambda c: None, lambda c: 1 / 0], ids=["none", "raises"])
def test_a_closest_that_is_none_is_the_adapters_fault(broken):
    limited = Limited()
    limited.closest = broken
    with pytest.raises(AdapterError, match=r"\.closest (must return|raised ZeroDivision)"):
        check(limited, cases=1, laws=0)
    limited.closest = 3
    with pytest.raises(AdapterError, match="closest: expected a method"):
        check(limited, cases=1, laws=0)


# ---- name maps -------------------------------------------------------------------------------

CONFIGS = {
    "transformers": CONFIG,
    "transformers-mim": replace(CONFIG, pool="mean"),
    "transformers-dinov2": replace(CONFIG, pool="cls_mean", layer_scale=True),
    "timm": replace(CONFIG, layer_scale=True, qkv_bias=False),
    "torchvision": CONFIG,
    "vit-pytorch": replace(CONFIG, qkv_bias=False),
    "vit-pytorch-plain": replace(CONFIG, qkv_bias=False, pool="mean", cls_token=False),
    "torch-pre-norm": CONFIG,
}
SHAPES = {
    "transformers": {
        "vit.embeddings.patch_embeddings.projection.weight": (6, 2, 3, 2),
        "vit.embeddings.position_embeddings": (1, 13, 6),
        "vit.layers.1.mlp.fc1.weight": (10, 6),
        "vit.layers.0.attention.o_proj.bias": (6,),
        "classifier.weight": (5, 6),
    },
    "transformers-mim": {"decoder.0.weight": (5, 6, 1, 1), "vit.embeddings.mask_token": (1, 1, 6)},
    "transformers-dinov2": {
        "dinov2.encoder.layer.1.layer_scale2.lambda1": (6,), "classifier.weight": (5, 12),
    },
    "timm": {"blocks.1.attn.qkv.weight": (18, 6), "blocks.0.ls1.gamma": (6,)},
    "torchvision": {"encoder.layers.encoder_layer_1.self_attention.in_proj_bias": (18,)},
    "vit-pytorch": {
        "cls_token": (1, 6), "to_patch_embedding.1.weight": (12,),
        "to_patch_embedding.2.weight": (6, 12),
    },
    "vit-pytorch-plain": {
        "pos_embedding": (12, 6), "transformer.layers.1.0.to_qkv.weight": (18, 6),
    },
    "torch-pre-norm": {"encoder.layers.1.self_attn.in_proj_weight": (18, 6)},
}  # fmt: skip


@pytest.mark.parametrize("name", PRACTICAL_MAPS)
def test_a_name_map_has_their_shapes_and_loses_nothing(name):
    bound = PRACTICAL_MAPS[name].bind(CONFIGS[name])
    assert SHAPES[name].items() <= bound.their_shapes.items()
    rng = np.random.default_rng(3)
    ours = VisionTransformer.init(CONFIGS[name], rng=rng).to_flat()
    theirs = bound.to_theirs(ours)
    back = bound.to_ours(theirs)
    assert back.keys() == ours.keys()
    assert all(np.array_equal(back[n], ours[n]) for n in ours)
    gradients = {n: rng.standard_normal(a.shape) for n, a in theirs.items()}
    adjoint = bound.to_our_gradients(gradients)
    there = sum(np.vdot(theirs[n], gradients[n]) for n in theirs.keys() - bound.dropped)
    np.testing.assert_allclose(sum(np.vdot(ours[n], adjoint[n]) for n in ours), there, rtol=1e-12)


def test_vit_pytorch_has_its_patches_with_channels_last():
    bound = PRACTICAL_MAPS["vit-pytorch"].bind(CONFIGS["vit-pytorch"])
    ours = VisionTransformer.init(CONFIGS["vit-pytorch"], rng=np.random.default_rng(4)).to_flat()
    kernel = ours["patch_embed.kernel"]
    theirs = bound.to_theirs(ours)["to_patch_embedding.2.weight"]
    np.testing.assert_array_equal(theirs[:, 1], kernel[:, 1, 0, 0])
    np.testing.assert_array_equal(theirs[:, 2], kernel[:, 0, 0, 1])


def test_q_k_and_v_lie_one_above_the_other():
    bound = PRACTICAL_MAPS["torchvision"].bind(CONFIG)
    ours = VisionTransformer.init(CONFIG, rng=np.random.default_rng(5)).to_flat()
    theirs = bound.to_theirs(ours)
    layer = "encoder.layers.encoder_layer_1.self_attention.in_proj_"
    for i, letter in enumerate("qkv"):
        own = "encoder.layers.1.mha."
        rows = slice(6 * i, 6 * i + 6)
        np.testing.assert_array_equal(theirs[layer + "weight"][rows], ours[f"{own}w{letter}"].T)
        np.testing.assert_array_equal(theirs[layer + "bias"][rows], ours[f"{own}b{letter}"])


# ---- grading ---------------------------------------------------------------------------------

SMALL = replace(peer_reports.DEFAULT, cases=1, laws=0, ill_formed=False)


def wrong():
    """A peer that departs in the gradient of one parameter."""
    return finding.planted_implementation("patch-bias-gradient-averaged")


BIAS = Deviation(
    ("vjp.patch_embed.bias", "degenerate.vjp.patch_embed.bias"), "choice", "averaged over patches"
)


def aligned():
    """A peer that aligns the corners of interpolated positions, and is right at its own size."""
    return finding.planted_implementation("positions-corners-aligned")


def test_a_peer_may_depart_at_other_sizes_alone(peers):
    other_sizes = Deviation(("interpolation.forward", "interpolation.vjp"), "choice", "aligned")
    peers(peer(target="test_peers:aligned", deviations=(other_sizes,)))
    for report in peer_reports.grade_here("mine", replace(SMALL, interpolations=1)):
        assert report.conforms
        assert peer_reports.verdict(report) == "conforms; departs at other sizes, as declared"


@pytest.mark.parametrize("declared", [False, True])
def test_what_is_declared_with_a_peer_is_excused(peers, declared):
    peers(peer(target="test_peers:wrong", deviations=(BIAS,) * declared))
    reports = peer_reports.grade_here("mine", SMALL)
    assert [r.dtype for r in reports] == ["float32", "float64"]
    assert [r.conforms for r in reports] == [declared] * 2
    degenerate = {r.place for r in reports[0].results if r.place.suite == "degenerate"}
    assert degenerate
    graded = peer_reports.Graded(peer(), tuple(reports))
    row = peer_reports.rows(graded)[0]
    count = 1 + len(degenerate)  # the case and the points: the forward passes, the gradients depart
    assert (row.passed, row.failed + row.declared) == (count, count)
    assert bool(row.declared) is declared
    assert row.worst.endswith("(patch_embed.bias)")
    assert row.verdict == ("departs, as declared" if declared else "does not conform")
    assert graded.exit_code == (not declared)
    written = json.dumps(peer_reports.to_json([graded]), allow_nan=False)
    assert "patch_embed.bias" in written


def test_a_declaration_of_what_does_not_depart_any_more_fails(peers):
    peers(peer(deviations=(BIAS,)))
    report = peer_reports.grade_here("mine", SMALL)[0]
    assert report.verdict == "does not conform"
    mended = {result.check for result in report.results if result.status == "xpassed"}
    assert mended == {"vjp", "degenerate.vjp"}
    assert {result.check for result in report.results} - mended >= {"forward", "degenerate.forward"}


def test_a_peer_that_is_not_installed_is_not_checked(peers):
    peers(peer(needs=("no-such-distribution",)))
    graded = peer_reports.grade_peer("mine")
    assert graded.exit_code == 3
    assert peer_reports.rows(graded)[0].verdict == "not checked: needs no-such-distribution"


def outcome(name, *statuses):
    results = [Result("forward", Place("case", i), status) for i, status in enumerate(statuses)]
    return peer_reports.Graded(
        peer(name),
        (Report(name, name, "1", "vision-transformer", "float32", results=results),),
    )


def test_a_page_keeps_the_lines_of_peers_that_were_not_run(peers):
    peers(peer("a"), peer("b"), peer("c"))
    page = f"before\n{peer_reports.BEGIN}\nold\n{peer_reports.END}\nafter\n"
    page = peer_reports.renewed(page, [outcome("c", "passed"), outcome("a", "passed")])
    page = peer_reports.renewed(page, [outcome("b", "passed"), outcome("c", "passed", "failed")])
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "old" not in page
    assert page.count("- **b**: a test.\n  - a limit\n") == 1
    lines = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert [line[0] for line in lines] == ["| `a`", "| `b`", "| `c`"]
    assert [line[3] for line in lines] == ["1 / 0 / 0", "1 / 0 / 0", "1 / 1 / 0"]
    assert lines[2][-1] == "does not conform |"


def test_the_page_says_what_the_registry_says():
    page = (Path(__file__).parents[2] / "docs" / "peers.md").read_text(encoding="utf-8")
    assert peer_reports.renewed(page) == page, "run: vitspec peers --markdown docs/peers.md"


# ---- the command -----------------------------------------------------------------------------


def test_the_command_lists_every_peer_and_whether_it_is_here():
    done = run("timm", "torchvision")
    assert done.exit_code == 0
    assert "timm" in done.stdout
    assert "torchvision" in done.stdout
    assert "transformers" not in done.stdout


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["tim"], "no peer is named tim; known: transformers"),
        (["--json", "x.json"], "needs --check"),
        (["--check", "--json", "no/such/folder/x.json"], "its directory does not exist"),
    ],
)
def test_wrong_usage_is_one_line(args, text):
    done = run(*args)
    assert done.exit_code == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_grades_and_writes(peers, monkeypatch, tmp_path):
    peers(peer("a"), peer("b"), peer("absent", needs=("no-such-distribution",)))
    made = {"a": outcome("a", "passed"), "b": outcome("b", "passed", "failed")}
    grade = peer_reports.grade_peer
    monkeypatch.setattr(
        peer_reports, "grade_peer", lambda name, *args: made.get(name) or grade(name, *args)
    )
    files = tmp_path / "peers.json", tmp_path / "peers.md"
    done = run("--check", "--json", files[0], "--markdown", files[1])
    assert done.exit_code == 1, done.output
    found = json.loads(files[0].read_text())
    assert [one["name"] for one in found["peers"]] == ["a", "b", "absent"]
    assert "| `b` |" in files[1].read_text()
    assert "| `absent`" not in files[1].read_text()
    assert run("a", "--check").exit_code == 0
    assert run("absent", "--check").exit_code == 3
