"""A step's gradient is held against the specification: mistakes are caught, correct ones pass."""

import json
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support.fresh import fresh_rng
from support.meshes import LAYOUTS
from vitfast import BlockFactors, Factors, from_flat, ops, shard_images, to_flat
from vitfast.dropout_factors import dropout_factors
from vitfast.implementation import compiled
from vitfast.training import steps
from vitfast.training.gradient_check import GradientCheck, GradientDeparts, checking, naming
from vitfast.training.gradient_check.examples import Example, exact_factors
from vitfast.training.gradient_check.reference import RUNS, Erring, Exact, Reference, masked_pixels
from vitfast.training.loop import NotFinite
from vitfast.training.objectives import Classification, MaskedImageModelling
from vitspec.models.conditions import Conditions
from vitspec.models.vision_transformer import VisionTransformer as Spec
from vitspec.testing.catalogue import deviation, deviations_of
from vitspec.testing.diagnosis.candidates import Candidate, mistaken
from vitspec.testing.families.practical import TELLING_CASES
from vitspec.testing.precision import PRECISIONS
from vitspec.testing.reference import Point
from vitspec.testing.trial import kink_margin
from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig

CONFIG = VisionTransformerConfig(
    image_h=4, image_w=6, in_channels=2, patch_h=2, patch_w=2, embed_dim=16, hidden_dim=24,
    head_count=8, num_layers=2, num_classes=5, mask_token=True, decoder_stride=2,
    dropout=DropoutRates(0.1, 0.2, 0.1, 0.2, 0.3, 0.4),
)  # fmt: skip
STILL = replace(CONFIG, dropout=DropoutRates())
"""The same without dropout, whose random numbers take most of the time to compile."""
BATCH = 8


def key_of(seed):
    """A key whose generator compiles in a tenth of the time of JAX's own."""
    return jax.random.key(seed, impl="unsafe_rbg")


@pytest.fixture(autouse=True)
def _compile_quickly(monkeypatch):
    """What counts here is the time to compile; the programs are tiny."""

    def program(model, *given):
        return compiled(_looked_up, True)(model, *given)

    def _looked_up(*given):
        return steps.loss_and_gradients(*given, **options)

    options = {}

    class Quick(GradientCheck):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            options.update(objective=self.objective, accumulation=self.accumulation)
            self._program = program

    monkeypatch.setattr(checking, "GradientCheck", Quick)


def model_of(seed, config=CONFIG, **options):
    """A model in which nothing is zero or alike."""
    flat = Spec.init(config, rng=np.random.default_rng(seed), dtype=np.float32).to_flat()
    return from_flat(config, flat, **options)


def exactly(model):
    """The specification of a model, in float64."""
    flat = {name: leaf.astype(np.float64) for name, leaf in to_flat(model).items()}
    return Spec.from_flat(model.config, flat)


def batch_of(seed, config=CONFIG):
    """Images and labels."""
    rng = np.random.default_rng([seed, 1])
    images = rng.standard_normal((BATCH, config.image_h, config.image_w, config.in_channels))
    return images.astype(np.float32), rng.integers(0, config.num_classes, BATCH, np.int32)


# ---- what dropout draws ------------------------------------------------------------------------


def with_key_and_with_factors(model, images, key, factors, rows):
    """The logits of some images by both ways."""
    return model(images, rngs=key).logits[rows], model(images[rows], factors=factors).logits


def test_factors_taken_out_are_those_that_the_model_draws():
    """A specification that draws nothing needs exactly them; below, blocks are scanned."""
    model = model_of(0, scan_layers=False)
    images, rows = jnp.asarray(batch_of(0)[0]), jnp.array([5, 2])
    program = compiled(with_key_and_with_factors, True)
    for seed in range(4):
        factors = dropout_factors(model, key_of(seed), BATCH, rows=rows)
        drawn, given = program(model, images, key_of(seed), factors, rows)
        assert np.abs(drawn - given).max() <= 2e-6 * np.abs(given).max()
        assert len(np.unique(factors.blocks.mlp)) > 2  # some and not all are left out
    assert dropout_factors(model, None, BATCH).embedding is None


def test_a_factors_size_follows_from_the_configuration_not_from_the_model():
    """A model that forgets 1 / (1 - p) must not hand its mistake on to the specification."""
    kept = np.random.default_rng(0).random((1, 7, 16)) < 0.9
    branches = np.random.default_rng(1).random((2, 1, 7, 16)) < 0.9
    drawn = Factors(kept.astype(np.float32), BlockFactors(attention=branches.astype(np.float32)))
    embedding, blocks = exact_factors(CONFIG, drawn)
    assert np.array_equal(embedding, kept[0] / (1 - 0.1))
    assert np.array_equal(blocks[0].attention, branches[0, 0] / (1 - 0.1))
    assert np.allclose(blocks[1].attention, branches[1, 0] / (1 - 0.1) / (1 - 0.4), rtol=1e-15)


# ---- every entry of the catalogue --------------------------------------------------------------

NOT_IN_TRAINING = {
    "jvp-without-gamma": "training has no forward mode",
    "jvp-without-image-tangent": "training has no forward mode",
    "jvp-without-key-tangent": "training has no forward mode",
    "jvp-without-query-weight-tangent": "training has no forward mode",
    "weight-decay-in-the-gradient": "planted in the kit's sum over a batch",
    "image-gradient-of-the-remainder": "training takes no gradient of the images",
    "batch-images-gradient-summed": "training takes no gradient of the images",
    "image-gradient-stopped": "training takes no gradient of the images",
    "image-gradient-kernel-flipped": "training takes no gradient of the images",
    "layer-norm-fast-variance": "the same function, less accurate where a row's mean is large",
    "softmax-not-shifted": "the same function until exp overflows",
}
"""What shows elsewhere, and not in gradients of the parameters at ordinary numbers."""


class Plain(Exact):
    """NumPy's own arithmetic in a scalar type."""

    def __init__(self, dtype):
        self.dtype = dtype

    def given(self, x):
        return x.astype(self.dtype)


def reference_of(case, dtype, objective=None):
    """The specification where the kit's diagnosis looks, with two images and labels."""
    precision = PRECISIONS[dtype]
    point = Point.of(case).away_from_kinks(kink_margin(precision)).rounded(precision)
    rng = np.random.default_rng(case.seed)
    labels = rng.integers(0, case.config.num_classes, len(point.images))
    examples = [
        Example(i, image.astype(np.float64), int(label), Conditions(), 1 / len(labels))
        for i, (image, label) in enumerate(zip(point.images, labels, strict=True))
    ]
    with mistaken(Candidate(())):
        return Reference(
            case.config, point.params, examples, objective or Classification(0.1), precision, rng
        )


@cache
def references(dtype):
    """One for each of the kit's points, between which every mistake shows."""
    return [reference_of(case, dtype) for case in TELLING_CASES]


def departs(reference, one, dtype):
    """Whether a gradient with a mistake in it is told from the right one."""
    _, found = reference.gradients(Plain(dtype), lambda: mistaken(Candidate((one,))))
    with mistaken(Candidate(())):
        return not reference.grades(found)[0].conforms


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", [one.name for one in deviations_of("vision-transformer")])
def test_every_mistake_of_the_catalogue_is_caught(name, dtype):
    """By the first check at one of five points, with derivatives by hand and with its own."""
    (one,) = (d for d in deviations_of("vision-transformer") if d.name == name)
    own = one.differentiated()
    for kind in (one,) if own is None or dtype == "float32" else (one, own):
        seen = any(departs(reference, kind, dtype) for reference in references(dtype))
        assert seen == (name not in NOT_IN_TRAINING)


def test_the_reasons_are_of_entries_that_there_are():
    """An entry that is renamed or seen must not stay excused."""
    assert NOT_IN_TRAINING.keys() <= {d.name for d in deviations_of("vision-transformer")}


def test_a_mistaken_decoder_is_caught_in_masked_image_modelling():
    """What only a decoder shows, its loss shows."""
    rng = np.random.default_rng(0)
    flat = Spec.init(CONFIG, rng=rng).to_flat()
    conditions = Conditions(masked_patches=np.array([True, False, True, True, False, False]))
    example = Example(0, rng.standard_normal((2, 4, 6)), 0, conditions, 1.0)
    reference = Reference(
        CONFIG, flat, [example], MaskedImageModelling(), PRECISIONS["float64"], rng
    )
    mistake = deviation("pixel-shuffle-channels-last").differentiated()
    assert departs(reference, mistake, "float64")
    _, right = reference.gradients(Plain("float64"))
    assert reference.grades(right)[0].conforms


def test_a_departing_gradient_is_named(monkeypatch):
    """One looks for the fault where the catalogue says."""
    backward = [
        Candidate((d,)) for d in deviations_of("vision-transformer") if d.kind == "backward"
    ]
    monkeypatch.setattr(naming, "candidates", lambda spec: backward)
    reference, name = references("float32")[-1], "key-bias-gets-query-gradient"
    assert departs(reference, deviation(name), "float32")
    _, found = reference.gradients(
        Plain("float32"), lambda: mistaken(Candidate((deviation(name),)))
    )
    assert naming.nearest(reference, found) == (name,)


def test_a_low_precision_s_loss_errs_as_float32_does_and_the_model_as_it_does():
    """What enters, the loss's own operations, and what goes back into the model."""
    rng, (low, high) = fresh_rng(), (PRECISIONS["bfloat16"].u, PRECISIONS["float32"].u)
    x, world = rng.uniform(1, 2, 1000), Erring(PRECISIONS["bfloat16"], rng, False, "float64")
    of_model = np.asarray(world.given(x.astype(np.float32)))
    of_loss = np.asarray(world.into_loss(x) * 1.5) / 1.5
    into_model = np.asarray(world.out_of_loss(x))
    for found, u in ((of_model, low), (of_loss, high), (into_model, low)):
        assert u / 4 < np.abs(found / x - 1).max() < 4 * u


# ---- the step's own program --------------------------------------------------------------------


@contextmanager
def wrong_layer_norm_backward():
    """The shift's gradient is the mean of the rows' instead of their sum."""

    def backward(epsilon, saved, d_y):
        d_x, d_gamma, d_beta = ops._layer_norm_backward(epsilon, saved, d_y)
        return d_x, d_gamma, d_beta / d_y.shape[1]

    ops._layer_norm.defvjp(ops._layer_norm_forward, backward)
    try:
        yield
    finally:
        ops._layer_norm.defvjp(ops._layer_norm_forward, ops._layer_norm_backward)


def test_an_operation_whose_backward_is_wrong_stops_training(tmp_path, monkeypatch):
    """The check calls the function that the update differentiates, so it sees what that sees."""
    monkeypatch.setattr(naming, "SECONDS", 0.0)
    model, batch, key = model_of(0, STILL), batch_of(0), key_of(0)
    check = checking.GradientCheck(STILL, Classification(), folder=tmp_path)
    with wrong_layer_norm_backward(), pytest.raises(GradientDeparts) as caught:
        check.check(0, model, batch, key)
    report = caught.value.report
    assert (report.precision, report.runs) == ("float32", RUNS)
    wrong = {grade.tensor for grade in report.departing}
    assert wrong == {name for name in model.parameter_shapes() if name.endswith("_beta")}
    assert "gradient check at step 0: 5 of" in str(caught.value)
    assert "final_norm_beta" in report.table()
    written = json.loads((tmp_path / "gradient_departs.json").read_text())
    assert written["step"] == 0
    assert not written["conforms"]
    assert written["gradients"][0]["tensor"] in wrong


def assert_conforms(
    seeds, objective, *, config=CONFIG, key=key_of, place=lambda x: x, accumulation=1, **options
):
    """The check passes at every seed."""
    check = checking.GradientCheck(config, objective, images=2, accumulation=accumulation)
    for seed in range(seeds):
        model = model_of(seed, config, **options)
        batch = tuple(place(part) for part in batch_of(seed))
        report = check.check(seed, model, batch, key(seed))
        assert report.conforms
        assert report.grades[0].ratio > 0
        # Spread over the batch, and other images at each step.
        assert (report.rows, report.precision) == ((seed, (seed + 4) % 8), model.dtype.name)
        assert report.loss == pytest.approx(report.expected_loss, rel=0.1)
    return report


def test_a_correct_step_is_never_rejected():
    """With every kind of dropout, smoothed labels and a batch in parts."""
    report = assert_conforms(5, Classification(0.1), accumulation=2)
    assert "conforms" in report.line()
    assert report.record().keys() == {"gradient_check_ratio", "gradient_check_seconds"}


def test_a_correct_step_in_bfloat16_is_never_rejected():
    """Activations alone have that precision; blocks are computed again in the backward."""
    options = {"dtype": "bfloat16", "use_gradient_checkpointing": True}
    assert_conforms(5, Classification(), config=STILL, **options)


def test_a_correct_step_of_masked_image_modelling_is_never_rejected():
    """Its masks are the step's, and no pixel is where the error has no derivative."""
    assert_conforms(5, MaskedImageModelling(0.5), config=STILL)


def test_a_correct_sharded_step_is_never_rejected():
    """Eight devices, which one or two images would not divide over."""
    layout, config = (
        LAYOUTS["FSDP 2x4"],
        replace(CONFIG, dropout=DropoutRates(stochastic_depth=0.4)),
    )
    with layout.set():
        place = lambda x: shard_images(x, layout.sharding)  # noqa: E731
        own = {"config": config, "key": jax.random.key, "sharding": layout.sharding}
        assert_conforms(2, Classification(), place=place, **own)


def test_relu_is_kept_away_from_zero_in_every_block():
    """By the biases, which the step's program gets as well; later blocks see earlier moves."""
    config, rows = replace(STILL, activation="relu"), tuple(range(BATCH))
    check = checking.GradientCheck(config, Classification(), images=BATCH)
    given = model_of(0, config, dtype="bfloat16")  # whose moves are large
    _, examples, (model, _) = check._point(0, given, batch_of(0), key_of(0), rows)
    margin = kink_margin(PRECISIONS["bfloat16"])

    def nearest_to_zero(model):
        traces = [exactly(model).trace(one.image) for one in examples]
        return [min(np.abs(trace.layers[i].ffn.hidden).min() for trace in traces) for i in range(2)]

    assert max(nearest_to_zero(given)) < 0.1 * margin
    assert min(nearest_to_zero(model)) > 0.99 * margin


def test_masked_pixels_are_kept_away_from_their_reconstruction():
    """In the images that the step's program gets; pixels that are seen stay as they are."""
    images, labels = batch_of(0)
    check = checking.GradientCheck(STILL, MaskedImageModelling(0.5))
    margin = kink_margin(PRECISIONS["float32"])

    def prepared(model, images):
        """The batch after it, the error in image 3, and which of its pixels are masked."""
        _, (example,), (_, batch) = check._point(3, model, (images, labels), key_of(0), (3,))
        made = exactly(model).forward(example.image, example.conditions).reconstruction
        masked = masked_pixels(STILL, example.conditions.masked_patches)
        return batch[0], batch[0][3] - made.transpose(1, 2, 0), masked

    model = model_of(0, STILL)
    _, error, masked = prepared(model, images)
    flat = to_flat(model)  # in which a pixel that is seen is reconstructed as well
    flat["decoder.bias"] = flat["decoder.bias"] + error[~masked][0, 0].astype(np.float32)
    model = from_flat(STILL, flat)
    _, error, _ = prepared(model, images)
    assert np.abs(error[~masked]).min() < 0.1 * margin
    near = images.copy()
    near[3][masked] -= error[masked].astype(np.float32)
    moved, error, _ = prepared(model, near)
    assert np.abs(error[masked]).min() > 0.99 * margin
    assert np.abs(moved[3] - near[3])[masked].max() < 5 * margin
    moved[3][masked] = near[3][masked]
    assert np.array_equal(moved, near)


def test_parameters_that_are_no_numbers_are_said_as_such():
    flat = to_flat(model_of(0, STILL))
    flat["head.bias"] = flat["head.bias"] * np.nan
    check = checking.GradientCheck(STILL, Classification())
    with pytest.raises(NotFinite, match=r"step 7: NaN or infinity in 1 .* head\.bias"):
        check.check(7, from_flat(STILL, flat), batch_of(0), key_of(0))


def test_what_cannot_be_checked_is_refused(without_type_checks):
    """Before any work, in one line."""
    with pytest.raises(ValueError, match="at most 8, the batch, got 9"):
        GradientCheck(STILL, Classification(), images=9).check(
            0, model_of(0, STILL), batch_of(0), key_of(0)
        )
    assert "vision_transformer_bfloat16," in naming.advice("bfloat16")
    with pytest.raises(TypeError, match="expected the configuration of a VisionTransformer"):
        GradientCheck("vit", Classification())
    with pytest.raises(ValueError, match="at least 1 image"):
        GradientCheck(CONFIG, Classification(), images=0)
