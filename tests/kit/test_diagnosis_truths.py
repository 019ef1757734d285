"""What diagnosis says is true: places, causes, rules, derivatives that nobody wrote down."""

import json
import subprocess
import sys

import numpy as np
import pytest

from vitspec.testing import Settings, SpecImplementation
from vitspec.testing.catalogue import deviation, planted
from vitspec.testing.degenerate import KINDS
from vitspec.testing.diagnosis import derivatives, diagnose, naming
from vitspec.testing.diagnosis.candidates import Candidate, candidates
from vitspec.testing.diagnosis.causes import Causes
from vitspec.testing.diagnosis.findings import departures, rules
from vitspec.testing.diagnosis.patterns import digits
from vitspec.testing.diagnosis.points import Sample
from vitspec.testing.diagnosis.properties import PLAIN, others, properties, with_property
from vitspec.testing.diagnosis.search import Search
from vitspec.testing.families import FAMILIES
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.reference import Point
from vitspec.testing.suites import SUITES
from vitspec.vision_transformer_config import VisionTransformerConfig

PRACTICAL = "vision-transformer"


class Changed(SpecImplementation):
    """The specification, whose results are changed where a condition on the call holds."""

    def __init__(self, where, change=lambda name, value: 2 * value, spec=PRACTICAL):
        super().__init__(spec, "float64")
        self.where, self.change = where, change

    def forward(self, config, params, images):
        logits = super().forward(config, params, images)["logits"]
        return self.change("logits", logits) if self.where(config, images) else logits

    def vjp(self, config, params, images, cotangent):
        grads, d_images = super().vjp(config, params, images, cotangent)
        if self.where(config, images):
            grads = {name: self.change(name, value) for name, value in grads.items()}
            d_images = self.change("image", d_images)
        return grads, d_images


def telling(implementation, index=0):
    return Sample.of(Subject(implementation), FAMILIES[implementation.spec].telling_cases[index])


# ---- places ------------------------------------------------------------------------------------


def test_the_place_that_a_check_printed_is_looked_at_first():
    wide = Changed(lambda config, images: images.shape[0] == 3 and config.num_layers == 2)
    numbers = range(40)
    subject = Subject(wide)
    trials = {n: SUITES["case"].trial_at(subject, Settings(), n) for n in numbers}
    case = next(n for n, t in trials.items() if len(t.point.images) == 3
                and t.point.config.num_layers == 2)  # fmt: skip
    assert diagnose(wide).conforms
    found = diagnose(wide, Settings(case=case))
    assert not found.conforms
    assert found.place == f"case {case}"
    assert found.points[0] == trials[case].description


@pytest.mark.parametrize(
    "place",
    [
        Settings(law=(1,)), Settings(interpolation=(2,)), Settings(point=(next(iter(KINDS)),)),
        Settings(identities=True, laws=1),
    ],
)  # fmt: skip
def test_every_kind_of_place_can_be_looked_at(place):
    mistaken_spec = SpecImplementation(PRACTICAL, mistakes=[deviation("gelu-tanh")])
    found = diagnose(mistaken_spec, place)
    assert found.place
    assert found.name == "gelu-tanh"


def test_correct_code_is_not_accused_at_a_place_of_large_numbers():
    """The telling points of large numbers have large cotangents, a check's cases have not."""
    subject = Subject(SpecImplementation(PRACTICAL))
    trials = (SUITES["case"].trial_at(subject, Settings(), n) for n in range(60))
    number = next(n for n, trial in enumerate(trials) if trial.case.values == "large")
    assert diagnose(SpecImplementation(PRACTICAL), Settings(case=number)).conforms


def test_a_test_vector_is_a_place():
    from vitspec.testing.vectors import folder

    vector = next(v for v in map(folder.load, folder.ids())
                  if v.kind == "model" and v.case["spec"] == "vit")  # fmt: skip
    mistake = SpecImplementation("vit", mistakes=[deviation("positions-missing")])
    found = diagnose(mistake, Settings(vector=vector.case["id"]))
    assert found.name == "positions-missing"
    assert found.place.startswith("vector ")


def test_a_place_that_is_none_is_refused():
    with pytest.raises(AdapterError, match="no test vector is named 'nothing'"):
        diagnose(SpecImplementation("vit"), Settings(vector="nothing"))


# ---- full size ---------------------------------------------------------------------------------

LARGE = VisionTransformerConfig(
    image_h=32, image_w=32, patch_h=16, patch_w=16, embed_dim=192, hidden_dim=768, head_count=3,
    num_layers=3, num_classes=10,
)  # fmt: skip


def test_a_mistake_has_its_name_at_full_size_too():
    found = diagnose(SpecImplementation(PRACTICAL, mistakes=[deviation("gelu-tanh")]), config=LARGE)
    assert found.name == "gelu-tanh"
    assert "the photograph" not in found.points[0]


def test_what_departs_at_full_size_alone_is_traced_to_a_size():
    many = Changed(lambda config, images: config.hidden_dim > 100)
    found = diagnose(many, config=LARGE)
    assert found.verdict == "It departs at full size, and at none of the small points."
    assert found.causes[1] == "it departs where hidden_dim is 101, and not where it is 100."


# ---- causes ------------------------------------------------------------------------------------


def causes_of(implementation, index=0):
    family = FAMILIES[implementation.spec]
    return Causes(Subject(implementation), 120.0).of(family.telling_cases[index])


def test_a_cause_is_what_alone_makes_it_depart():
    odd = Changed(lambda config, images: config.head_dim % 4 != 0)
    first, *said = causes_of(odd)
    assert "Changing one thing at a time" in first
    assert said == ["it departs where head_dim is 2, and not where it is 4."]


def test_two_properties_that_are_always_drawn_together_are_told_apart():
    images_alone = Changed(lambda config, images: len(images) > 1)
    assert causes_of(images_alone)[1:] == [
        "it departs where the number of images is 2, and not where it is 1."
    ]


def test_an_activation_that_is_taken_for_another():
    no_relu = Changed(lambda config, images: config.activation != "relu")
    assert causes_of(no_relu)[1:] == [
        "it departs where activation is gelu, and not where it is relu."
    ]


def test_where_everything_departs_no_cause_is_said():
    assert causes_of(Changed(lambda config, images: True)) == []


@pytest.mark.parametrize("spec", ["vit", PRACTICAL])
def test_each_property_can_be_changed_alone(spec):
    for case in FAMILIES[spec].telling_cases:
        own = properties(case)
        assert own.keys() <= PLAIN.keys()
        for name, value in own.items():
            for other in others(name, value):
                changed = with_property(case, name, other)
                if changed.config.violations():
                    continue
                differing = {n for n, v in properties(changed).items() if v != own[n]}
                # What is left over stays smaller than the patch, and than the heads.
                assert {name} <= differing | {n for n in own if "left over" in n or "beyond" in n}
                assert all("left over" in n or "beyond" in n for n in differing - {name})


# ---- derivatives that nobody wrote down --------------------------------------------------------


@pytest.mark.parametrize("spec", ["vit", "vit-cls", PRACTICAL])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_complex_step_agrees_with_right_gradients_alone(spec, dtype):
    sample = telling(SpecImplementation(spec, dtype))
    assert max(derivatives.ratios(sample).values()) <= 1
    name = next(n for n in sample.tensors if n.endswith("ffn.w1"))
    sample.found[name] = sample.found[name] * (1 + 1e-3)
    found = derivatives.ratios(sample)
    assert [n for n, ratio in found.items() if ratio > 1] == [name]


class Differentiated(SpecImplementation):
    """A mistaken forward, differentiated: entry by entry, by the complex step."""

    def __init__(self, mistake, spec=PRACTICAL):
        super().__init__(spec, "float64", [mistake])

    def vjp(self, config, params, images, cotangent):
        point = Point(self.spec, config, dict(params), images, cotangent)
        grads = {}
        with planted(*self.mistakes), np.errstate(all="ignore"):
            for name, value in [*params.items(), ("image", images)]:
                grads[name] = np.zeros(value.shape)
                for i in np.ndindex(value.shape):
                    direction = np.zeros(value.shape)
                    direction[i] = 1
                    grads[name][i] = derivatives.along(point, {name: direction})
        return {name: grads[name] for name in params}, grads["image"]


def test_a_mistake_whose_derivatives_nobody_wrote_down_is_named():
    family = FAMILIES[PRACTICAL]
    (mistake,) = [d for d in family.mistakes() if d.name == "final-norm-after-pooling"]
    assert mistake.derivatives is None
    case = family.telling_cases[1]  # which pools several rows
    search = Search([Sample.of(Subject(Differentiated(mistake)), case)])
    (match,) = search.matches(search.all)
    assert match.candidate.names == (mistake.name,)
    assert naming.near(match).derivatives == "automatic"


def test_every_mistaken_forward_is_a_candidate_with_its_own_derivatives():
    for spec in ("vit", "vit-cls", PRACTICAL):
        found = candidates(FAMILIES[spec], other_sizes=True)
        for d in FAMILIES[spec].mistakes(other_sizes=True):
            if d.kind == "forward" and d.visible_in_model:
                own = [c for c in found if c.names == (d.name,)]
                assert len(own) == 2 or d.derivatives == (), d.name


# ---- rules -------------------------------------------------------------------------------------


def test_a_parameter_that_is_not_used_is_said_to_be_that():
    class NoPositions(SpecImplementation):
        def forward(self, config, params, images):
            params = dict(params) | {"pos_enc.pos": 0 * params["pos_enc.pos"]}
            return super().forward(config, params, images)["logits"]

        def vjp(self, config, params, images, cotangent):
            params = dict(params) | {"pos_enc.pos": 0 * params["pos_enc.pos"]}
            grads, d_images = super().vjp(config, params, images, cotangent)
            return grads | {"pos_enc.pos": 0 * grads["pos_enc.pos"]}, d_images

    samples = [telling(NoPositions(PRACTICAL, "float64"), i) for i in range(3)]
    assert rules(departures(samples), samples) == [
        "pos_enc.pos is not used: its gradient is zero wherever the logits depart."
    ]


def test_one_factor_for_all_gradients_has_as_many_digits_as_it_has():
    def change(name, value):
        return value if name == "logits" else value * (1 + 1e-4)

    found = diagnose(Changed(lambda *_: True, change))
    assert "All gradients have one factor: each is 1.0001 x the truth." in found.notes
    assert digits(1.000100001, 1e-12) == "1.000100001"


def test_gradients_divided_by_all_tokens_of_the_batch():
    class Averaged(Changed):
        def vjp(self, config, params, images, cotangent):
            grads, d_images = SpecImplementation.vjp(self, config, params, images, cotangent)
            c = config
            tokens = c.grid[0] * c.grid[1] + c.cls_token
            n = len(images) * tokens
            return {name: value / n for name, value in grads.items()}, d_images / n

    samples = [telling(Averaged(lambda *_: False), i) for i in range(3)]
    (said,) = rules(departures(samples), samples)
    assert said.endswith("the truth / the number of tokens of the batch.")


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda w: w.transpose(0, 1, 3, 2).reshape(w.shape), "axes in the order (0, 1, 3, 2)"),
        (lambda w: w[[2, 0, 1, 3, 4, 5]], "rows in the order 2, 0, 1, 3, 4, 5"),
    ],
)
def test_axes_and_rows_in_another_order(change, pattern):
    one = Changed(lambda *_: True, lambda name, v: change(v) if "kernel" in name else v)
    (departure,) = departures([telling(one)])
    assert pattern in departure.pattern


def test_heads_whose_features_are_interleaved():
    def change(name, value):
        if not name.endswith("mha.wq"):
            return value
        return value.reshape(-1, 3, 2).swapaxes(1, 2).reshape(value.shape)

    found = departures([telling(Changed(lambda *_: True, change))])
    assert {d.pattern for d in found} == {
        "the truth with heads and their features exchanged, along axis 1"
    }


# ---- the same again ----------------------------------------------------------------------------


def test_parameters_that_are_kept_from_the_call_before_are_said_to_be_that():
    class Cached(SpecImplementation):
        kept = None

        def forward(self, config, params, images):
            before, self.kept = self.kept, params
            same = before is not None and before.keys() == params.keys()
            same = same and all(before[n].shape == params[n].shape for n in params)
            return super().forward(config, before if same else params, images)["logits"]

    found = diagnose(Cached(PRACTICAL, "float64"))
    assert not found.conforms
    assert "kept all parameters" in " ".join(found.notes)


def test_a_random_forward_is_said_to_be_that_and_nothing_else():
    class Random(SpecImplementation):
        rng = np.random.default_rng(0)

        def forward(self, config, params, images):
            logits = super().forward(config, params, images)["logits"]
            scale = 1e-6 if config.num_layers > 1 else 0  # the very first try has one layer
            return logits * (1 + scale * self.rng.standard_normal(logits.shape))

    found = diagnose(Random(PRACTICAL, "float64"))
    assert "on every run" in found.verdict
    assert not found.nearest


# ---- less precision ----------------------------------------------------------------------------


def test_less_precision_in_one_part_is_named_with_the_part():
    from vitspec.testing.catalogue import functions as at
    from vitspec.testing.catalogue.planting import replaced

    def halved(function):
        def coarse(x, *args, **kwargs):
            return function(x.astype(np.float32), *args, **kwargs).astype(x.dtype)

        return coarse

    class Softmax(SpecImplementation):
        def forward(self, *args):
            with replaced(at.SOFTMAX, halved):
                return super().forward(*args)["logits"]

        def vjp(self, *args):
            with replaced(at.SOFTMAX, halved):
                return super().vjp(*args)

    found = diagnose(Softmax(PRACTICAL, "float64"))
    assert "Its errors are like those of softmax in float32." in found.notes


# ---- files -------------------------------------------------------------------------------------


def test_the_departing_point_is_saved_with_a_script_that_runs(tmp_path):
    adapter = tmp_path / "adapter.py"
    adapter.write_text(
        "from vitspec.testing import SpecImplementation\n"
        "from vitspec.testing.catalogue import deviation\n"
        "mine = SpecImplementation('vit', mistakes=[deviation('positions-missing')])\n"
    )
    from vitspec.testing.finding import find

    target, folder = f"{adapter}:mine", tmp_path / "saved"
    found = diagnose(find(target), save_to=folder, target=target)
    assert sorted(path.name for path in folder.iterdir()) == [
        "diagnosis.json", "point.safetensors", "run.py",
    ]  # fmt: skip
    assert json.loads((folder / "diagnosis.json").read_text())["name"] == found.name
    done = subprocess.run(
        [sys.executable, "saved/run.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "logits:" in done.stdout
    assert "head.weights" in done.stdout


def test_what_fits_small_points_must_fit_a_large_one_too():
    case = FAMILIES[PRACTICAL].telling_cases[0]
    right = Sample.of(Subject(SpecImplementation(PRACTICAL, "float64")), case)
    by_tanh = Candidate((deviation("gelu-tanh").of(PRACTICAL),))
    assert not naming.fits(by_tanh, right)
    mistake = SpecImplementation(PRACTICAL, "float64", [deviation("gelu-tanh")])
    assert naming.fits(by_tanh, Sample.of(Subject(mistake), case))
