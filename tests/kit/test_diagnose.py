"""`diagnose` names what is planted, alone or two at once, and says honestly what it cannot name."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from diagnosis_table import PAIRS, diagnosis_table, rows_table
from vitspec import ViTConfig
from vitspec.testing.catalogue import CATALOGUE, LATER, deviation
from vitspec.testing.diagnosis import (
    diagnose,
    diagnosis_tables,
    expected_by_name,
    points,
)
from vitspec.testing.diagnosis.candidates import candidates
from vitspec.testing.diagnosis.causes import Causes
from vitspec.testing.diagnosis.findings import departures, hints
from vitspec.testing.diagnosis.points import Sample
from vitspec.testing.families import FAMILIES, Case
from vitspec.testing.finding import find
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.reference import SpecImplementation

SINGLE = [
    # what differs least from the specification, or from another deviation
    ("layer-norm-eps-1e-12", "vit", "float32", False),
    ("layer-norm-eps-outside-root", "vit-cls", "float32", True),
    ("activation-gelu-tanh", "vit", "float32", True),
    ("padding-same", "vit-cls", "float32", False),
    # forwards with the derivatives of the right one, and with their own
    ("queries-and-keys-swapped", "vit", "float64", False),
    ("queries-and-keys-swapped", "vit", "float64", True),
    ("mean-pool-sums", "vit", "float32", True),
    ("cls-pools-mean", "vit-cls", "float32", True),
    # derivatives and batches, of which the logits tell nothing
    ("image-gradient-overwritten", "vit", "float32", False),
    ("encoder-gradients-reversed", "vit-cls", "float64", False),
    ("batch-gradients-averaged", "vit", "float32", False),
    # the same function with a larger error
    ("layer-norm-fast-variance", "vit-cls", "float32", False),
    ("softmax-not-shifted", "vit", "float64", False),
]


def planted(*names, spec="vit", dtype="float32", automatic=False):
    mistakes = [deviation(name) for name in names]
    if automatic:
        mistakes = [m.differentiated() or m for m in mistakes]
    return SpecImplementation(spec, dtype, mistakes)


TILES = ViTConfig(patch_h=2, patch_w=2, stride=2, padding=0, embed_dim=6, hidden_dim=5,
                  head_count=2, num_layers=1, num_classes=4)  # fmt: skip


def sample(implementation, config):
    case = Case(implementation.spec, config, in_channels=3, height=4, width=6, seed=1)
    return Sample.of(Subject(implementation), case)


def samples(implementation):
    subject = Subject(implementation)
    return [Sample.of(subject, case) for case in points.cases(subject)[0]]


class Altered(SpecImplementation):
    """The specification, with its results changed before they are returned."""

    def __init__(self, change, taps=True, **kwargs):
        super().__init__("vit", **kwargs)
        self.change, self.taps = change, taps

    def forward(self, config, params, images):
        found = super().forward(config, params, images)
        found = {**found, **self._changed(found)}
        return found if self.taps else found["logits"]

    def vjp(self, config, params, images, cotangent):
        grads, d_images = super().vjp(config, params, images, cotangent)
        found = self._changed({**grads, "image": d_images})
        return {name: found[name] for name in grads}, found["image"]

    def _changed(self, found):
        changed = {name: self.change(name, value, found) for name, value in found.items()}
        return {name: np.asarray(v, found[name].dtype) for name, v in changed.items()}


def text_of(diagnosis):
    console = Console(width=80, record=True, file=open("/dev/null", "w"), no_color=True)  # noqa: SIM115
    for table in diagnosis_tables(diagnosis):
        console.print(table)
    console.file.close()
    return console.export_text()


# ---- one deviation -----------------------------------------------------------------------------


ALIKE = {"layer-norm-eps-1e-12": "layer-norm-eps-as-floor"}
"""Told apart only where variances are below epsilon, as at none of the points."""


@pytest.mark.parametrize(("name", "spec", "dtype", "automatic"), SINGLE)
def test_a_planted_deviation_is_named_first(name, spec, dtype, automatic):
    found = diagnose(planted(name, spec=spec, dtype=dtype, automatic=automatic))
    first = found.nearest[0]
    if name in ALIKE:
        assert {name, ALIKE[name]} == {first.name, *first.same}
        return
    assert first.name == name
    assert first.matches
    assert first.same == ()
    assert f"`{name}`" in found.verdict
    assert not found.conforms


def test_the_derivatives_of_a_mistaken_forward_are_told_from_those_of_the_right_one():
    by_hand = diagnose(planted("mean-pool-sums"))
    automatic = diagnose(planted("mean-pool-sums", automatic=True))
    assert by_hand.nearest[0].derivatives == "by hand"
    assert automatic.nearest[0].derivatives == "automatic"


def test_every_deviation_that_shows_in_a_model_is_a_candidate():
    tried = {c.names[0] for spec in ("vit", "vit-cls") for c in candidates(FAMILIES[spec])}
    assert tried == {d.name for d in (*CATALOGUE, *LATER) if d.visible_in_model}
    assert len(tried) > 90


def test_the_table_counts_what_is_named():
    rows = diagnosis_table(["float32"], ["bias-gradient-averaged", "mean-pool-sums"])
    assert [(r.name, r.automatic, r.right) for r in rows] == [
        ("mean-pool-sums", False, True),
        ("mean-pool-sums", True, True),
        ("bias-gradient-averaged", False, True),
    ]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rows_table(rows))
    console.file.close()
    assert "3 (100.0%)" in console.export_text()


# ---- nothing wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", ["vit", "vit-cls"])
def test_the_specification_conforms_and_every_deviation_would_have_shown(spec, dtype):
    found = diagnose(SpecImplementation(spec, dtype))
    assert found.conforms
    assert found.name is None
    assert found.nearest == found.departures == []
    assert found.notes == []


def test_what_a_low_precision_cannot_show_is_listed():
    found = diagnose(SpecImplementation("vit", "bfloat16"))
    assert found.conforms
    (unseen,) = (note for note in found.notes if note.startswith("Not to be seen in bfloat16"))
    assert "layer-norm-eps-1e-12" in unseen
    assert "attention-causal" not in unseen


@pytest.mark.slow
def test_a_low_precision_is_not_pushed_to_a_decision():
    found = diagnose(SpecImplementation("vit", "bfloat16", [deviation("activation-gelu-tanh")]))
    assert {found.nearest[0].name, *found.nearest[0].same} >= {
        "activation-gelu",
        "activation-gelu-tanh",
    }
    assert found.nearest[0].equal == ()
    assert any("not distinguishable in bfloat16: rerun in float32" in n for n in found.notes)


# ---- two at once -------------------------------------------------------------------------------


@pytest.mark.parametrize("names", PAIRS[:4])
def test_two_deviations_at_once_are_both_named(names):
    found = diagnose(planted(*names))
    assert set(found.nearest[0].names) == set(names)
    assert found.nearest[0].matches
    assert found.pairs == [found.nearest[0]]
    assert found.verdict.startswith("It is two mistakes at once:")


# ---- what has no name --------------------------------------------------------------------------


def test_an_unknown_factor_is_measured_and_no_name_is_invented():
    def change(name, value, found):
        return 3 * value if name.endswith("ffn.w2") else value

    found = diagnose(Altered(change))
    assert found.name is None
    assert found.verdict == "It is no known deviation, nor two of them at once."
    assert not found.nearest  # none is nearer than the specification itself
    assert {(d.tensor.split(".")[-1], d.pattern) for d in found.departures} == {
        ("w2", "3 x the truth")
    }
    assert "It is ffn.w2 in every layer, and nothing else." in found.notes
    assert any("the fault is in the backward" in note for note in found.notes)


def test_what_is_only_near_a_deviation_is_not_it():
    def change(name, value, found):
        return value * (1 + 2e-5) if name == "logits" else value

    found = diagnose(Altered(change, mistakes=[deviation("encoder-gradients-reversed")]))
    assert found.nearest[0].name == "encoder-gradients-reversed"
    assert 1 < found.nearest[0].distance < 64
    assert not found.nearest[0].matches
    assert found.name is None


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda value: -value, "minus the truth"),
        (lambda value: 0 * value, "zero"),
        (lambda value: 2.5 * value, "2.5 x the truth"),
        (lambda value: 6 * value, "6 x the truth"),  # tokens or features? one point cannot tell
        (lambda value: value[::-1], "the truth reversed along axis 0"),
        (lambda value: np.roll(value, 1, axis=1), "the truth shifted by +1 along axis 1"),
        (lambda value: value.T.reshape(value.shape), "the truth transposed"),
        (lambda value: value**3, ""),
    ],
)
def test_what_a_wrong_tensor_looks_like(change, pattern):
    changed = Altered(lambda name, value, _: change(value) if name == "head.weights" else value)
    (departure,) = departures([sample(changed, TILES)])
    assert (departure.tensor, departure.kind) == ("head.weights", "gradient")
    assert departure.pattern == pattern


def test_a_factor_that_is_a_size_has_its_name():
    found = departures(samples(planted("bias-gradient-averaged")))
    assert {d.pattern for d in found} == {"the truth / the number of tokens"}


def test_gradients_that_changed_places_are_recognised():
    def change(name, value, found):
        return found.get(name.replace(".wq", ".w_").replace(".wk", ".wq").replace(".w_", ".wk"))

    found = diagnose(
        Altered(lambda *args: change(*args) if args[0].endswith(("wq", "wk")) else args[1])
    )
    patterns = {d.tensor.split(".")[-1]: d.pattern for d in found.departures}
    assert patterns == {"wq": "what mha.wk should be", "wk": "what mha.wq should be"}


def test_a_known_forward_with_gradients_of_its_own_is_said_to_be_that():
    class Mixed(SpecImplementation):
        def vjp(self, *args):
            grads, d_images = super().vjp(*args)
            return {name: 1.5 * d for name, d in grads.items()}, d_images

    found = diagnose(Mixed("vit", mistakes=[deviation("positions-missing")]))
    assert found.name is None
    assert "Its logits are those of `positions-missing`" in found.verdict


def test_a_batch_of_which_only_the_first_image_is_right():
    class First(SpecImplementation):
        def forward(self, config, params, images):
            return super().forward(config, params, np.repeat(images[:1], len(images), 0))["logits"]

    looked = samples(First("vit"))
    notes = hints(departures(looked), looked)
    assert any("first image is right and the others are wrong" in note for note in notes)


def test_errors_of_less_precision_are_said_to_be_that():
    class Halved(SpecImplementation):
        """Computes in float32 what it is given in float64."""

        def forward(self, config, params, images):
            params = {name: p.astype("float32") for name, p in params.items()}
            found = super().forward(config, params, images.astype("float32"))
            return found["logits"].astype("float64")

        def vjp(self, config, params, images, cotangent):
            params = {name: p.astype("float32") for name, p in params.items()}
            images, cotangent = images.astype("float32"), cotangent.astype("float32")
            grads, d_images = super().vjp(config, params, images, cotangent)
            return {n: d.astype("float64") for n, d in grads.items()}, d_images.astype("float64")

    found = diagnose(Halved("vit", "float64"))
    assert found.verdict == "It is no known deviation; its errors are those of less precision."
    assert any("float32 arithmetic" in note for note in found.notes)


# ---- where -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("positions-missing", "embedded"),
        ("attention-scale-missing", "encoder.layers.0.mha.weights"),
        ("activation-gelu", "encoder.layers.0.ffn.activated"),
        ("last-norm-missing", "encoder.layers.0.output"),
        ("mean-pool-sums", "pooled"),
        ("encoder-gradients-reversed", "encoder.layers.2.norm2_beta"),
    ],
)
def test_the_first_tensor_that_departs_is_where_the_mistake_is(name, first):
    assert departures(samples(planted(name)))[0].tensor == first


def test_without_taps_the_logits_are_the_first_to_depart():
    mistakes = [deviation("attention-scale-missing")]
    found = diagnose(Altered(lambda name, value, _: value, taps=False, mistakes=mistakes))
    assert found.first_departure.tensor == "logits"
    assert {d.kind for d in found.departures} == {"logits", "gradient"}


def test_a_tap_of_another_name_or_shape_is_left_aside():
    class Strange(SpecImplementation):
        def forward(self, *args):
            found = super().forward(*args)
            return {"logits": found["logits"], "queries": found["encoder.layers.0.mha.q"],
                    "embedded": found["embedded"][:, :1]}  # fmt: skip

    found = diagnose(Strange("vit"))
    assert found.conforms
    assert any("embedded, queries" in note for note in found.notes)


def test_a_tap_that_departs_alone_is_said_to_be_misnamed():
    found = diagnose(Altered(lambda name, value, _: 2 * value if name == "pooled" else value))
    assert found.conforms
    assert [d.tensor for d in found.departures] == ["pooled"]
    assert any("another value has that tap's name" in note for note in found.notes)


def test_what_only_shows_at_unusual_points_is_located():
    class WholeHeads(SpecImplementation):
        def forward(self, config, params, images):
            found = super().forward(config, params, images)["logits"]
            return found if config.embed_dim % config.head_count == 0 else 2 * found

    found = Causes(Subject(WholeHeads("vit")), 60.0).of(FAMILIES["vit"].telling_cases[0])
    assert found[1:] == [
        "it departs where the number of features beyond whole heads is 1, and not where it is 0."
    ]


# ---- implementations that cannot do everything -------------------------------------------------


class Friendly(SpecImplementation):
    """Only whole heads and patches that tile the image."""

    def supports(self, config):
        if config.embed_dim % config.head_count:
            return "heads must divide"
        if config.padding or not config.patch_h == config.patch_w == config.stride:
            return "patches must tile"
        return None


def test_what_is_not_supported_is_replaced_and_the_deviation_still_named():
    found = diagnose(Friendly("vit", mistakes=[deviation("heads-split-by-raw-reshape")]))
    assert found.name == "heads-split-by-raw-reshape"
    assert len(set(found.points)) == 5
    assert any("num_layers=3" in point for point in found.points)  # no more is given up than needed
    assert any("heads must divide" in note for note in found.notes)


def test_a_configuration_of_the_user():
    found = diagnose(planted("attention-causal"), config=TILES)
    assert found.name == "attention-causal"
    assert all(repr(TILES) in point for point in found.points)


def test_without_vjp_the_forward_is_diagnosed():
    class ForwardOnly:
        name, version, spec, dtype = "forward-only", "1", "vit", "float32"

        def forward(self, config, params, images):
            return planted("mean-pool-takes-first-row").forward(config, params, images)["logits"]

    found = diagnose(ForwardOnly())
    assert found.name == "mean-pool-takes-first-row"
    assert any("no vjp" in note for note in found.notes)


def test_other_specifications_are_refused():
    other = SpecImplementation("vit")
    other.spec = "other"
    with pytest.raises(AdapterError, match="have a specification"):
        diagnose(other)


def test_the_expected_deviation_by_name():
    assert expected_by_name(planted("activation-missing")) == "activation-missing"
    assert expected_by_name(SpecImplementation("vit"), "activation-missing") is None


# ---- what is said ------------------------------------------------------------------------------


def test_it_is_the_same_every_time_but_for_the_seconds():
    first, second = (diagnose(planted("activation-gelu")).to_json() for _ in range(2))
    for data in (first, second):
        data.pop("seconds")
    assert first == second


def test_json_holds_everything_and_no_infinity():
    found = diagnose(SpecImplementation("vit"))
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["schema"] == "vitspec-diagnosis/2"
    assert data["conforms"] is True


@pytest.mark.parametrize("names", [("activation-gelu",), PAIRS[0], ()])
def test_the_text_fits_80_columns_and_names_what_was_found(names):
    found = diagnose(planted(*names))
    tables = [part for part in diagnosis_tables(found) if isinstance(part, Table)]
    assert {table.width for table in tables} == ({80} if names else set())
    text = text_of(found)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "\x1b" not in text
    assert all(name in text for name in names)


def test_the_page_shows_what_is_printed():
    page = (Path(__file__).parents[2] / "docs" / "diagnose.md").read_text()
    command, *shown = re.search(r"```console\n(.*?)\n\.\.\.\n", page, re.DOTALL)[1].splitlines()
    target = command.removeprefix("$ vitspec diagnose ")
    text = text_of(diagnose(find(target)))
    printed = {" ".join(re.sub(r"\d[\d.e+-]*", "#", line).split()) for line in text.splitlines()}
    assert len(shown) > 15
    for line in shown:
        assert " ".join(re.sub(r"\d[\d.e+-]*", "#", line).split()) in printed
