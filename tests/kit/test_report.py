"""Reports: readable, complete, valid in every format, and harmless whatever the text in them."""

import html
import io
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree as ET

import jsonschema
import numpy as np
import pytest
from rich.console import Console

import vitspec
from vitspec.testing import check
from vitspec.testing.catalogue import CATALOGUE, deviation
from vitspec.testing.declared import Declaration, Deviation, apply
from vitspec.testing.precision import PRECISIONS, NoisyArithmetic
from vitspec.testing.reference import Point, SpecImplementation, _evaluate
from vitspec.testing.report import (
    explain,
    looks_like,
    print_reports,
    schema,
    summary,
    to_html,
    to_json,
    to_junit,
    to_markdown,
    write_atomically,
    write_json,
)
from vitspec.testing.report.picture import DARK, LIGHT, bin_of, picture, worst_cells
from vitspec.testing.report.report import Report
from vitspec.testing.results import Place, Result, graded
from vitspec.testing.run import again
from vitspec.testing.settings import Settings
from vitspec.testing.tolerance import Grade

MISTAKE = "attention-scale-missing"


@pytest.fixture(scope="module")
def good():
    return check(SpecImplementation("vit"), cases=2, laws=1, degenerate=False)


@pytest.fixture(scope="module")
def bad():
    wrong = SpecImplementation("vit-cls", mistakes=[deviation(MISTAKE)])
    return check(wrong, cases=3, laws=1, degenerate=False)


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in ("FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")


def new(*results, **fields):
    known = {"target": "my-vit", "name": "my-vit", "version": "1.4", "spec": "vit"}
    known |= {"dtype": "float32", "settings": SETTINGS, "results": list(results)}
    return Report(**known | fields)


def found(result):
    """A result as a suite gives it: with what runs it again."""
    return replace(result, again=again(SETTINGS, result))


def grade(tensor, ratio, cancelled=False):
    return Grade(tensor, "norm", ratio * 1e-6, 2.5e-7, 1e-6, cancelled)


def printed(*reports, width=80):
    stream = io.StringIO()
    print_reports(reports, Console(file=stream, width=width))
    return stream.getvalue()


SETTINGS = Settings(dtype="float32", seed=3)
PHOTOGRAPH = [
    graded("forward", Place("photograph"), [grade("logits", 0.25)]),
    graded(
        "vjp",
        Place("photograph"),
        [
            grade("image", 0.5),
            grade("encoder.layers.0.mha.wq", 0.125),
            grade("encoder.layers.1.mha.wq", 0.75),
            grade("encoder.layers.0.ffn.b1", 0.02, cancelled=True),
            grade("encoder.layers.1.ffn.b1", 4e5),
        ],
        "the photograph, ViTConfig()",
    ),
]
SKIPPED = Result("vjp", Place("case", 1), "skipped", reason="it has no vjp")
ERRORED = Result("run", Place("case", 2), "errored", reason="it raised ValueError: [bold]no[/bold]")
ACCEPTED = Result("ill-formed.patchH_ne0", Place("ill-formed"), "failed", reason="accepted it")
XFAILED = Result("forward", Place("case", 3), "xfailed", reason="declared as bug: known")
XPASSED = Result("scale", Place("law", 0), "xpassed", reason="it passes: remove it")
MIXED = [found(r) for r in (*PHOTOGRAPH, SKIPPED, ERRORED, ACCEPTED, XFAILED, XPASSED)]


# ---- the terminal ------------------------------------------------------------------------------

GOLDEN = """\
my-vit 1.4 as vit, float32 (my adapter.py:vit)
photograph, ViT-Base/16
tensor            worst layer  error  price ratio verdict
──────────────────────────────────────────────────────────
logits                        2.5e-7 2.5e-7  0.25 conforms
d image                       5.0e-7 2.5e-7  0.50 conforms
d layers.*.mha.wq      1 of 2 7.5e-7 2.5e-7  0.75 conforms
d layers.*.ffn.b1      1 of 2    0.4 2.5e-7 4.0e5 departs

checks
check        pass fail skip worst tensor     error  bound ratio
───────────────────────────────────────────────────────────────
forward        2*    0    0 logits          2.5e-7 1.0e-6  0.25
vjp             0    1    1 layers.1.ffn.b1    0.4 1.0e-6 4.0e5
run             0    1    0
ill-formed.*    0    1    0
scale           0    1    0
It wrote to its standard output:
  | loading
  | [red]done[/red]
* forward (1 x): declared as bug: known

run could not be run at case 2
  it raised ValueError: [bold]no[/bold]
  reproduce: vitspec check 'my adapter.py:vit' --dtype float32 --seed 3 --case 2

vjp departs at the photograph
  the photograph, ViTConfig()
  tensor          metric error  price  bound ratio
  layers.1.ffn.b1   norm   0.4 2.5e-7 1.0e-6 4.0e5
  reproduce: vitspec check 'my adapter.py:vit' --dtype float32 --seed 3 --photograph --only vjp
  diagnose: vitspec diagnose 'my adapter.py:vit' --dtype float32 --seed 3 --photograph

scale passes, though declared to fail at law 0
  it passes: remove it
  reproduce: vitspec check 'my adapter.py:vit' --dtype float32 --seed 3 --only scale --law 0
Declared, but nothing is named so: vjp.nothing
Computes the function: forward 1 compared, all conform; laws 1 compared, 1
departs
Refuses what is ill-formed: 1 of 1 accepted: patchH_ne0 (reported only; --strict
makes it a failure)

"""


def test_a_report_at_80_columns():
    report = new(
        *MIXED,
        target="my adapter.py:vit",
        unmatched=["vjp.nothing"],
        output="loading\n[red]done[/red]\n",
    )
    lines = [line.rstrip() for line in printed(report).splitlines()]
    assert "\n".join(lines).startswith(GOLDEN)
    assert "\x1b" not in printed(report)
    legend, verdict = lines[-8:-1], lines[-1]
    assert [line.partition(":")[0] for line in legend] == [
        "error", "price", "bound", "ratio", "d x", "~0", "*",
    ]  # fmt: skip
    start = f"vitspec {vitspec.__version__}: my-vit does not conform"
    assert verdict == f"{start} (float32, seed 3, 0 s; compared: forward 1, laws 1)"


def test_nothing_but_commands_is_wider_than_80_columns(good, bad):
    lines = printed(good, bad, new(*MIXED)).splitlines()
    wide = [line for line in lines if len(line.rstrip()) > 80]
    assert all(
        "reproduce: " in line or "diagnose: " in line or line.startswith("vitspec ")
        for line in wide
    )


def test_a_table_of_long_names_keeps_its_figures_whole():
    long = "encoder.layers.11.norm1_gamma"
    text = printed(new(graded("permute-head-columns", Place("law", 0), [grade(long, 4e5)])))
    assert "4.0e5" in text
    assert "1.0e-6" in text


def test_colours_where_they_are_wanted(monkeypatch):
    monkeypatch.delenv("NO_COLOR")
    stream = io.StringIO()
    print_reports([new(*MIXED)], Console(file=stream, width=80, force_terminal=True))
    assert "\x1b[" in stream.getvalue()


def test_each_failing_check_is_shown_where_it_is_worst_with_its_command(bad):
    text = printed(bad)
    for name in ("forward", "vjp"):
        results = [r for r in bad.results if r.check == name and r.status == "failed"]
        worst = max(results, key=lambda r: r.worst.ratio)
        assert f"{name} departs at {worst.place}" in text
        assert f"reproduce: {bad.reproduce(worst)}\n" in text
    count = bad.count()["failed"]
    assert f"and {count - 2} more: forward, vjp" in text


def test_the_worst_tensors_come_first():
    names = [f"t{i}" for i in range(9)]
    report = new(graded("vjp", Place("case", 0), [grade(n, 10.0 + i) for i, n in enumerate(names)]))
    formats = printed(report), explain(report), to_markdown([report]), to_junit([report])
    for text in (*formats, "".join(parsed(to_html([report])).itertext())):
        part = text[text.index("departs at") :]
        assert list(dict.fromkeys(re.findall(r"\bt\d", part)))[:5] == names[:3:-1]
        assert "and 4 more tensors" in text or text is formats[1]


def test_a_report_that_conforms_shows_no_failure(good):
    text = printed(good)
    assert "conforms, as tested" in text
    assert "reproduce" not in text
    assert "departs" not in text


def test_long_output_is_cut():
    text = printed(new(*PHOTOGRAPH, output="x" * 900 + "\n" + "line\n" * 1000))
    shown = text[text.index("standard output") :].split("\n\n")[0]
    assert "more characters" in shown
    assert len(shown) < 600


# ---- one line, and what pytest shows -----------------------------------------------------------


def test_the_summary_is_one_line(good, bad):
    assert summary(good) == "vit 1 as vit, float32: conforms, as tested"
    expected = (
        rf"vit-cls\+{MISTAKE} 1 as vit-cls, float32: does not conform: \d+ of \d+ failed, "
        r"forward logits \d\.\de\d x its bound at (case|law) \d"
    )
    assert re.fullmatch(expected, summary(bad))
    assert "1 of 7 could not be run, 1 of 7 failed, 1 of 7 unexpectedly pass" in summary(
        new(*MIXED)
    )
    assert "1 declared globs" in summary(new(*PHOTOGRAPH, unmatched=["x"]))
    assert summary(new()).endswith("could not be checked: nothing was checked")


def test_an_assertion_about_a_report_shows_what_departs(bad):
    assert repr(bad) == f"<Report: {summary(bad)}>"
    assert str(bad) == explain(bad)
    lines = explain(bad).splitlines()
    assert lines[0] == summary(bad)
    assert sum("check(implementation, Settings(" in line for line in lines) == 2


# ---- a hint on precision -----------------------------------------------------------------------


class Coarse:
    """The specification in a precision coarser than it says."""

    name, version, spec = "coarse", "1", "vit"

    def __init__(self, precision, dtype):
        self.precision, self.dtype = PRECISIONS[precision], dtype

    def _run(self, config, params, images, cotangent):
        arithmetic = NoisyArithmetic(self.precision, np.random.default_rng(1))
        point = Point(self.spec, config, dict(params), images, cotangent)
        found = _evaluate(point, lambda x: arithmetic.array(x.astype("float64")), False)
        return {name: np.asarray(x).astype(self.dtype) for name, x in found.items()}

    def forward(self, config, params, images):
        zeros = np.zeros((len(images), config.num_classes), images.dtype)
        return self._run(config, params, images, zeros)["logits"]

    def vjp(self, config, params, images, cotangent):
        found = self._run(config, params, images, cotangent)
        return {name: found[name] for name in params}, found["image"]


@pytest.mark.parametrize(
    ("precision", "dtype", "hint"),
    [
        ("tf32", "float32", "looks like TF32 or float16 arithmetic, not float32: set the highest"),
        ("float16", "float32", "looks like TF32 or float16 arithmetic"),
        ("bfloat16", "float32", "looks like bfloat16 arithmetic"),
        ("float32", "float64", "looks like float32 arithmetic, not float64: enable float64"),
        ("tf32", "float64", "looks like TF32 or float16 arithmetic, not float64"),
    ],
)
def test_lost_precision_is_recognised(precision, dtype, hint):
    report = check(Coarse(precision, dtype), cases=2, laws=0, degenerate=False, ill_formed=False)
    assert hint in looks_like(report)
    assert hint in " ".join(printed(report).split())
    assert hint in html.unescape(to_html([report]))
    assert hint in to_markdown([report])
    assert hint in to_json([report])["implementations"][0]["hint"]


def test_structural_zeros_have_no_say():
    alike = [Grade(f"t{i}", "norm", 2.0**-12, 2.0**-23.5, 2.0**-21) for i in range(12)]
    zeros = [Grade(f"z{i}", "norm", 0.5, 2.0**-23.5, 2.0**-21, True) for i in range(12)]
    exact = Grade("exact", "norm", 0.0, 2.0**-23.5, 2.0**-21)
    assert looks_like(new(graded("vjp", Place("case", 0), [*alike, *zeros, exact])))
    assert not looks_like(new(graded("vjp", Place("case", 0), alike[:9] + zeros)))


SAMPLE = [d for d in CATALOGUE if d.visible_in_model][::9]
SAMPLE.append(deviation("layer-norm-eps-outside-root"))  # the nearest to it


@pytest.mark.parametrize("mistake", SAMPLE, ids=lambda d: d.name)
def test_a_mistake_is_not_taken_for_lost_precision(mistake):
    wrong = SpecImplementation(mistake.specs[0], mistakes=[mistake])
    report = check(wrong, cases=2, laws=0, degenerate=False, ill_formed=False)
    assert looks_like(report) == ""


# ---- JSON --------------------------------------------------------------------------------------


def validated(reports):
    """Through a file's text and a strict parser, against the schema."""
    text = json.dumps(to_json(reports), allow_nan=False)
    text.encode("utf-8")
    data = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.Draft202012Validator(schema()).validate(data)
    return data


def test_json_has_everything_and_follows_its_schema(good, bad):
    data = validated([good, bad, new(*MIXED), new()])
    assert data["conforms"] is False
    assert data["environment"]["numpy"] == np.__version__
    one = data["implementations"][1]
    assert (one["seed"], one["exit_code"], one["verdict"]) == (0, 1, "does not conform")
    assert one["count"] == dict(Counter(r.status for r in bad.results))
    for shown, result in zip(one["results"], bad.results, strict=True):
        assert (shown["check"], shown["place"]) == (result.check, str(result.place))
        assert shown["reproduce"] == bad.reproduce(result)
        assert [g["ratio"] for g in shown["grades"]] == [g.ratio for g in result.grades]


def test_conforms_is_true_only_if_something_was_checked(good):
    assert to_json([good])["conforms"] is True
    assert to_json([])["conforms"] is False
    assert to_json([good, new()])["conforms"] is False


@pytest.mark.parametrize(("error", "text"), [(np.inf, "inf"), (np.nan, "nan")])
def test_what_is_not_finite_is_text(error, text):
    g = Grade("logits", "norm", error, 0.1, 0.2)
    data = validated([new(graded("forward", Place("case", 0), [g]))])
    assert data["implementations"][0]["results"][0]["grades"][0]["error"] == text
    assert data["implementations"][0]["exit_code"] == 1


@pytest.mark.parametrize("key", ["results", "verdict", "count", "seed"])
def test_the_schema_requires_what_it_describes(good, key):
    data = to_json([good])
    del data["implementations"][0][key]
    with pytest.raises(jsonschema.ValidationError, match=key):
        jsonschema.Draft202012Validator(schema()).validate(data)


def test_the_schema_knows_no_other_status(good):
    data = to_json([new(Result("vjp", Place(""), "fine"))])
    with pytest.raises(jsonschema.ValidationError, match="fine"):
        jsonschema.Draft202012Validator(schema()).validate(data)


# ---- JUnit -------------------------------------------------------------------------------------


def test_junit_has_a_case_for_each_result(good, bad):
    mixed = new(*MIXED, unmatched=["vjp.nothing"], output="hello")
    root = ET.fromstring(to_junit([good, bad, mixed]).encode())
    suites = root.findall("testsuite")
    assert [len(s.findall("testcase")) for s in suites] == [
        len(good.results), len(bad.results), len(mixed.results) + 1,
    ]  # fmt: skip
    last = suites[-1]
    assert {k: last.get(k) for k in ("tests", "failures", "errors", "skipped")} == {
        "tests": "8", "failures": "3", "errors": "1", "skipped": "3",
    }  # fmt: skip
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(root.get(key)) == len(root.findall(f".//{tag}"))
    assert last.findtext("system-out") == "hello"
    failure = suites[1].find(".//failure")
    assert "x its bound" in failure.get("message")
    failed = next(r for r in bad.results if r.status == "failed")
    assert failure.text.splitlines()[-1] == f"reproduce: {bad.reproduce(failed)}"


def test_junit_names_are_distinct(good):
    cases = ET.fromstring(to_junit([good]).encode()).iter("testcase")
    names = [(c.get("classname"), c.get("name")) for c in cases]
    assert len(set(names)) == len(names)


# ---- Markdown ----------------------------------------------------------------------------------


def test_markdown_is_a_verdict_a_table_and_failures(good, bad):
    text = to_markdown([good, bad, new(*MIXED)])
    assert "### ✅ `vit 1` as vit, float32\n\n**conforms, as tested** (seed 0" in text
    assert f"### ❌ `vit-cls+{MISTAKE} 1` as vit-cls, float32" in text
    assert "| `ill-formed.*` | 6 | 0 | 0 | 0 |  |  |  |  |" in text
    assert "| `vjp` | 0 | **1** | 1 | 0 | `layers.1.ffn.b1` | 0.4 | 1.0e-6 | 4.0e5 |" in text
    command = "vitspec check my-vit --dtype float32 --seed 3 --photograph --only vjp"
    assert f"```sh\n{command}\n```" in text


# ---- HTML --------------------------------------------------------------------------------------


def parsed(page):
    """The page's elements; it must be well-formed XML too."""
    assert page.startswith("<!DOCTYPE html>\n")
    page.encode("utf-8")
    HTMLParser().feed(page)
    return ET.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def test_the_page_loads_and_runs_nothing(good, bad):
    page = to_html([good, bad, new(*MIXED)])
    root = parsed(page)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|javascript:", page)
    names = {element.tag for element in root.iter()}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    attributes = {name for element in root.iter() for name in element.attrib}
    assert not {name for name in attributes if name.startswith("on") or name in ("href", "src")}
    policy = root.find(".//meta[@http-equiv]").get("content")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_the_page_says_what_departs_and_how_to_see_it_again(good, bad):
    root = parsed(to_html([good, bad]))
    verdicts = [e.text for e in root.iter("span") if "verdict" in e.get("class", "")]
    assert verdicts == ["✓ conforms, as tested", "✗ does not conform"]
    commands = [e.text for e in root.iter("pre")]
    assert len(commands) == 2
    assert all(command.startswith("check(implementation, Settings(") for command in commands)
    listed = [e.text for e in root.iter("summary")]
    assert listed == [f"{bad.count()['failed'] - 2} more"]


def test_many_failures_do_not_make_a_huge_page():
    results = [graded("forward", Place("case", i), [grade("logits", 9.0)]) for i in range(5000)]
    page = to_html([new(*results)])
    assert len(page) < 200_000
    assert "<li>and 4799 more</li>" in page


# ---- the picture -------------------------------------------------------------------------------


def cells_of(svg):
    """Tensor -> (colour's number, tooltip)."""
    found = {}
    for group in ET.fromstring(svg).iter("g"):
        title = group.findtext("title")
        colour = int(group.find("rect").get("class").removeprefix("c"))
        found[title.split(" ~0")[0].split(":")[0]] = colour, title
    return found


def test_every_tensor_has_a_cell_of_its_worst_place(bad):
    cells = cells_of(picture(bad))
    graded_tensors = {g.tensor for r in bad.results for g in r.grades}
    assert set(cells) == graded_tensors
    for tensor, (colour, title) in cells.items():
        all_of_it = [g for r in bad.results for g in r.grades if g.tensor == tensor]
        assert (colour >= 4) == any(not g.conforms for g in all_of_it)
        assert colour == bin_of(max(g.ratio for g in all_of_it))
        assert ("departs" in title) == (colour >= 4)


def test_layers_are_columns_and_tensors_rows():
    tensors = [f"encoder.layers.{i}.{name}" for i in range(12) for name in ("mha.wq", "ffn.b1")]
    grades = [grade(t, 0.3) for t in ["image", *tensors, "head.bias", "logits"]]
    root = ET.fromstring(picture(new(graded("vjp", Place("photograph"), grades))))
    places = {}
    for group in root.iter("g"):
        box = group.find("rect")
        name = group.findtext("title").split(":")[0]
        places[name] = float(box.get("x")), float(box.get("y")), float(box.get("width"))
    for a, b in pairwise(range(12)):
        first, second = places[f"encoder.layers.{a}.mha.wq"], places[f"encoder.layers.{b}.mha.wq"]
        assert second[0] > first[0]
        assert second[1] == first[1]
    for i in range(12):
        assert places[f"encoder.layers.{i}.ffn.b1"][0] == places[f"encoder.layers.{i}.mha.wq"][0]
    assert places["image"][1] < places[tensors[0]][1] < places["head.bias"][1]
    assert places["head.bias"][1] < places["logits"][1]
    assert places["image"][2] > 12 * places[tensors[0]][2]


@pytest.mark.parametrize("layers", [0, 1, 3, 12, 48])
def test_nothing_is_cut_off(layers):
    names = ["logits", *(f"encoder.layers.{i}.mha.wq" for i in range(layers))]
    grades = [grade(name, 0.3, cancelled=True) for name in names]
    root = ET.fromstring(picture(new(graded("vjp", Place("photograph"), grades))))
    height, width = (float(x) for x in root.get("viewBox").split()[:1:-1])
    boxes = [{k: float(box.get(k)) for k in ("x", "y", "width", "height")}
             for box in root.iter("rect")]  # fmt: skip
    assert max(box["x"] + box["width"] for box in boxes) <= width
    assert max(box["y"] + box["height"] for box in boxes) <= height
    assert max(float(text.get("y")) for text in root.iter("text")) <= height
    cells = boxes[: len(names)]
    assert all(a["y"] != b["y"] or a["x"] + a["width"] <= b["x"] for a, b in pairwise(cells))


@pytest.mark.parametrize(
    ("ratio", "colour"),
    [(0, 0), (0.01, 0), (0.1, 1), (0.5, 2), (1, 3), (1.001, 4), (10, 4), (1e3, 5), (1e6, 6),
     (1e9, 7), (np.inf, 7), (np.nan, 7)],
)  # fmt: skip
def test_a_colour_for_every_ratio(ratio, colour):
    g = Grade("logits", "norm", ratio, 0, 1.0)
    assert cells_of(picture(new(graded("forward", "", [g]))))["logits"][0] == colour


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_figures_are_readable_on_their_colours(colours):
    for background, text in colours:
        low, high = sorted([luminance(background), luminance(text)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, (background, text)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_what_departs_is_never_as_blue_as_what_conforms(colours):
    # The blue-yellow axis is the one that red-green blindness leaves.
    blue = [int(c[5:7], 16) - int(c[1:3], 16) for c, _ in colours]
    assert min(blue[:4]) > 0 > max(blue[4:])


def test_no_picture_of_nothing():
    assert picture(new(SKIPPED)) == ""
    assert "<svg" not in to_html([new(SKIPPED), new()])


def test_tensors_of_single_layers_are_not_the_models():
    layer = graded("vector.layer", Place("vectors", "basic-norm"), [grade("out", 9.0)])
    assert worst_cells(new(layer)) == {}


def test_a_model_of_very_many_layers_and_tensors_is_cut():
    names = [f"encoder.layers.{i}.t{j}" for i in range(0, 999_999, 9999) for j in range(200)]
    names += [f"other{i}" for i in range(500)]
    svg = picture(new(graded("vjp", "", [grade(n, 0.5) for n in names])))
    assert len(svg) < 2_000_000
    ET.fromstring(svg)


# ---- whatever the text -------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    "</title></style></pre><img src=x onerror=alert(1)>",
    "]]><x/>",
    "<!-- -->&amp;&#0;",
    "a\nb\r\n\x0b\x0c\x85\u2028c",
    "\x1b[31mred\x1b]8;;file:///\x07link",
    "\x00\x01\x7f\x9b\ufffe\uffff",
    "lone \ud800 and \udcff",
    "\u202etxet desrever\u202c",
    "[bold red]x[/bold red][link=file:///x]y[/link] [/]",
    "| a | `b` ``` ``c`` \\| \n| --- |\n\n# heading\n* [x](javascript:alert(1))",
    "~~~\n```\n</code>\n```",
    "' \" $(touch x) `touch x`",
    "🦆 très 漢字",
    "x" * 3000,
    "",
]


def hostile(text):
    """A report with the text wherever an implementation or an adopter can put it."""
    grades = [
        Grade(text, "norm", 2e-6, 1e-7, 1e-6),
        Grade(f"encoder.layers.0.{text}", "max", 0, 0, 1),
    ]
    results = [
        graded(f"vjp{text}", Place("case", text), grades, text),
        Result(text, Place(text), "failed", reason=text, point=text),
        Result(text, Place(text), "errored", reason=text),
        Result(text, Place(text), "skipped", reason=text),
        Result(text, Place(text), "xpassed", reason=text),
        Result(text, Place(text), "xfailed", reason=text),
        graded("forward", Place("photograph"), grades, text),
    ]
    return Report(text, text, text, "vit", "float32", Settings(), results, [text], text * 3)


def harmless(text, keep="\n"):
    """Nothing in it moves a terminal's cursor or breaks a file's encoding."""
    return all(c.isprintable() or c in keep for c in text)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_in_the_terminal(text):
    shown = printed(hostile(text))
    assert harmless(shown)
    if "[bold red]" in text:
        assert text in shown


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_in_a_line(text):
    report = hostile(text)
    assert harmless(summary(report), keep="")
    assert harmless(repr(report), keep="")
    assert harmless(str(report))


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_in_json(text):
    data = validated([hostile(text)])
    if harmless(text):
        assert data["implementations"][0]["name"] == text


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_in_xml(text):
    xml = to_junit([hostile(text)])
    root = ET.fromstring(xml.encode())
    assert {e.tag for e in root.iter()} == {
        "testsuites", "testsuite", "properties", "property", "testcase", "failure", "error",
        "skipped", "system-err",
    } | ({"system-out"} if text else set())  # fmt: skip
    assert harmless(xml)
    if harmless(text, keep=""):
        assert root.find(".//property[@name='target']").get("value") == text


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_in_html(text):
    page = to_html([hostile(text)])
    calm = to_html([hostile("calm")])
    assert harmless(page)
    tags = Counter(e.tag for e in parsed(page).iter())
    expected = Counter(e.tag for e in parsed(calm).iter())
    for name in ("pre", "p"):  # which are left out where there is no text
        del tags[name], expected[name]
    if text:
        assert tags == expected
    attributes = {name for e in parsed(page).iter() for name in e.attrib}
    assert attributes <= {name for e in parsed(calm).iter() for name in e.attrib}


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_in_markdown(text):
    markdown = to_markdown([hostile(text)])
    assert harmless(markdown)
    outside = without_code(markdown)
    assert "alert" not in outside
    assert "heading" not in outside
    assert "javascript" not in outside
    assert set(re.findall(r"</?(\w+)", outside)) <= {"sub"}
    tables = [line for line in outside.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {10}


def without_code(markdown):
    """What is left for Markdown to interpret: no fenced blocks, code spans or `<code>` elements."""
    lines, fence = [], ""
    for line in markdown.splitlines():
        ticks = re.match(r"`{3,}", line)
        if not fence and ticks:
            fence = ticks[0]
        elif fence and line.strip() == fence:
            fence = ""
        elif not fence:
            lines.append(line)
    assert not fence
    text = "\n".join(lines)
    for inside in re.findall(r"<code>(.*?)</code>", text):
        assert re.fullmatch(r"(?:[0-9A-Za-z ]|&#\d+;)*", inside)
    text = re.sub(r"<code>.*?</code>", "", text)
    return re.sub(r"`[^`\n]+`", "", text)


# ---- files -------------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half\ud800")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"x": np.inf})
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def fail(*_):
    raise OSError("full")


def test_a_file_is_as_readable_as_any(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, "é"]})
    (tmp_path / "plain").write_text("")
    modes = {p.stat().st_mode for p in tmp_path.iterdir()}
    assert len(modes) == 1
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, "é"]}


def test_declared_deviations_in_all_formats(bad):
    known = Deviation(("forward", "vjp"), "bug", "so it is", "https://example.org/7")
    report = apply(Declaration((known,)), bad)
    assert report.conforms
    declared = report.count()["xfailed"]
    assert f"conforms, as tested ({declared} declared deviations)" in printed(report)
    assert "*: some fail as declared" in printed(report)
    words = "declared as bug: so it is (https://example.org/7)"
    pages = printed(report), to_markdown([report]), html.unescape(to_html([report]))
    assert all(words in page for page in pages)
    data = validated([report])["implementations"][0]
    assert (data["exit_code"], data["count"]["xfailed"]) == (0, declared)
    skipped = ET.fromstring(to_junit([report]).encode()).findall(".//skipped")
    assert len(skipped) == declared
    assert all("so it is" in s.get("message") for s in skipped)
    assert sum(map(int, re.findall(r"\((\d+) as declared\)", to_html([report])))) == declared
