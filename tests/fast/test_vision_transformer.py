"""The practical family against its specification, in float64: every output and every gradient."""

from dataclasses import replace
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from support.compare import assert_close, assert_flat_close
from support.fresh import fresh_rng
from support.vision_transformers import (
    OTHER_SIZE,
    OWN_SIZE,
    Point,
    assert_gradients_close,
    assert_outputs_close,
    attention,
    config_of,
    model_of,
    outputs_and_vjp,
    outputs_of,
    point_of,
    program,
    spec_conditions,
    spec_gradients,
    spec_outputs,
    stack_outputs,
)
from vitfast import (
    BlockFactors,
    Factors,
    Outputs,
    PlainAttention,
    VisionTransformer,
    implementation,
    make_tokamax_attention,
    to_flat,
)
from vitfast.conditions import draw, key_of
from vitfast.implementation import compiled
from vitfast.random_bits import kept, random_bits
from vitfast.training import logits_of, make_train_step
from vitspec import InvalidArray, NotWellFormed
from vitspec.models.vision_transformer import VisionTransformer as Spec
from vitspec.vision_transformer_config import DropoutRates

TOLERANCE = 1e-12

seeds = st.integers(0, 2**32 - 1)

ROWS = """
tokens   activation qkv_bias output_bias layer_scale masked pooler decoder mask heads factors size  attention layers kept  backward
cls      gelu       no       no          no          no     no     no      no   no    no      own   plain     scan   keep  hand
cls      gelu       yes      yes         yes         yes    yes    yes     yes  yes   yes     other xla       loop   remat auto
mean     gelu_tanh  no       no          no          no     yes    no      no   no    no      other xla       loop   remat auto
mean     gelu_tanh  yes      yes         yes         yes    no     yes     yes  yes   yes     own   plain     scan   keep  hand
cls_mean quick_gelu no       no          no          no     no     yes     yes  yes   yes     own   plain     loop   remat auto
cls_mean quick_gelu yes      yes         yes         yes    yes    no      no   no    no      other xla       scan   keep  hand
none     relu       no       no          yes         yes    yes    no      no   yes   yes     own   plain     scan   keep  auto
none     relu       yes      yes         no          no     no     yes     yes  no    no      other xla       loop   remat hand
patches  gelu       no       yes         no          yes    no     no      yes  no    yes     own   xla       scan   remat hand
patches  gelu       yes      no          yes         no     no     yes     no   yes   no      other plain     loop   keep  auto
"""  # noqa: E501 - a table
"""Every value of every column beside every value of every other, but for activations and tokens,
of which each has rows of its own: see the test. The tokens "patches" have no CLS token."""


def rows():
    names, *values = (line.split() for line in ROWS.strip().splitlines())
    return [dict(zip(names, row, strict=True)) for row in values]


def test_the_rows_cover_every_pair_of_choices():
    for a, b in combinations(rows()[0], 2):
        if {a, b} == {"tokens", "activation"}:
            continue
        there = {(row[a], row[b]) for row in rows()}
        every = {(x[a], y[b]) for x in rows() for y in rows()}
        assert every - there <= {("patches", "yes")}  # a pooler needs a CLS token
        assert every == there or (a, b) == ("tokens", "pooler")


def point_of_row(row, seed):
    """The row's configuration and conditions, with numbers that the seed determines."""
    patches_only, pool = row["tokens"] == "patches", row["tokens"].replace("patches", "mean")
    config = config_of(
        activation=row["activation"],
        pool=pool,
        cls_token=not patches_only,
        num_classes=0 if pool == "none" else 5,
        qkv_bias=row["qkv_bias"] == "yes",
        output_bias=row["output_bias"] == "yes",
        layer_scale=row["layer_scale"] == "yes",
        mask_token=row["masked"] == "yes",
        pooler_dim=7 if row["pooler"] == "yes" else 0,
        decoder_stride=3 if row["decoder"] == "yes" else 0,
    )
    return point_of(
        config,
        seed,
        size=OTHER_SIZE if row["size"] == "other" else OWN_SIZE,
        weights=row["attention"] == "plain",
        masked_patches=row["masked"] == "yes",
        attention_mask=row["mask"] == "yes",
        head_mask=row["heads"] == "yes",
        factors=row["factors"] == "yes",
    )


@pytest.mark.parametrize("row", rows(), ids=lambda row: "-".join(row.values()))
@given(seed=seeds)
@settings(max_examples=4)
def test_outputs_and_gradients_are_the_specification_s(row, seed):
    """Of the parameters and the images, for random cotangents of all outputs together."""
    point, by_hand = point_of_row(row, seed), row["backward"] == "hand"
    with jax.enable_x64(True):
        model = model_of(
            point,
            attention_fn=attention(row["attention"], by_hand),
            scan_layers=row["layers"] == "scan",
            use_gradient_checkpointing=row["kept"] == "remat",
            custom_vjp=by_hand,
        )
        outputs, (d_model, d_images) = program(outputs_and_vjp, point.other_size)(
            model, point.images, point.conditions, point.cotangents
        )
        found = to_flat(d_model)
    assert_outputs_close(outputs, spec_outputs(point), TOLERANCE)
    truth, d_images_truth = spec_gradients(point)
    assert_gradients_close(found, truth, 10 * TOLERANCE)
    assert_close(d_images, d_images_truth, 10 * TOLERANCE, "d_images")


FULL = config_of(pool="cls_mean", layer_scale=True, mask_token=True, pooler_dim=7, decoder_stride=3)
"""Everything that a model can have."""

ALL = {"masked_patches": True, "attention_mask": True, "head_mask": True, "factors": True}


@given(seed=seeds)
@settings(max_examples=3)
def test_forward_mode_is_the_specification_s(seed):
    """The third derivative: no backward is run here, on either side."""
    point = point_of(FULL, seed, size=OTHER_SIZE, **ALL)
    direction = point_of(FULL, seed + 1, size=OTHER_SIZE)
    truth = stack_outputs(
        [
            Spec.from_flat(FULL, point.flat).jvp(
                image.transpose(2, 0, 1).copy(),
                Spec.from_flat(FULL, direction.flat),
                d_image.transpose(2, 0, 1).copy(),
                spec_conditions(point, b),
            )
            for b, (image, d_image) in enumerate(zip(point.images, direction.images, strict=True))
        ]
    )
    with jax.enable_x64(True):
        models = (model_of(one, custom_vjp=False, scan_layers=False) for one in (point, direction))
        tangents = compiled(forward_mode, True)(
            *models, point.images, direction.images, point.conditions
        )
    assert_outputs_close(tangents, truth, 10 * TOLERANCE)


def forward_mode(model, tangent, images, d_images, conditions):
    def run(model, images):
        return outputs_of(model, images, conditions, other_size=True)

    return jax.jvp(run, (model, images), (tangent, d_images))[1]


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scan", "loop"])
def test_taps_are_the_specification_s_hidden_states_and_attention_weights(scan_layers):
    point = point_of(FULL, 0, **ALL)
    model = Spec.from_flat(FULL, point.flat)
    traces = [
        model.trace(image.transpose(2, 0, 1).copy(), spec_conditions(point, b))
        for b, image in enumerate(point.images)
    ]
    with jax.enable_x64(True):
        outputs, taps = compiled(with_taps, True)(
            model_of(point, scan_layers=scan_layers), point.images, point.conditions
        )
    hidden_states = np.stack([t.hidden_states for t in traces], axis=1)
    assert_close(taps.hidden_states, hidden_states, TOLERANCE, "hidden states")
    weights = np.stack([t.attentions for t in traces], axis=1)
    assert_close(taps.attention_weights, weights, TOLERANCE, "attention weights")
    assert_outputs_close(outputs, stack_outputs([t.outputs for t in traces]), TOLERANCE)


def with_taps(model, images, conditions):
    return model.forward_with_taps(images, attention_weights=True, **conditions)


def test_without_blocks_there_is_the_embedding_and_the_heads():
    point = point_of(replace(FULL, num_layers=0), 0, masked_patches=True)
    for scan_layers in (True, False):
        with jax.enable_x64(True):
            model = model_of(point, scan_layers=scan_layers)
            given = point.conditions | {"rngs": jax.random.key(0)}
            outputs, taps = compiled(with_taps, True)(model, point.images, given)
        assert_outputs_close(outputs, spec_outputs(point), TOLERANCE)
        assert taps.hidden_states.shape[0] == 1
        assert (taps.attention_weights is None) == (not scan_layers)


def test_masks_are_broadcast():
    """One mask for all images and heads is that mask for each."""
    point = point_of(FULL, 0, attention_mask=True)
    mask = point.conditions["attention_mask"][:1]
    n = mask.shape[-1]
    with jax.enable_x64(True):
        model, run = model_of(point), program(outputs_of, False)
        each = run(model, point.images, {"attention_mask": np.broadcast_to(mask, (2, 3, n, n))})
        for shared in (mask[0, 0], mask[0], mask):
            outputs = run(model, point.images, {"attention_mask": shared})
            assert_outputs_close(outputs, each, 1e-14)


def test_a_head_mask_has_the_derivative_of_a_number_that_multiplies_a_head():
    """It is what heads are pruned by (Michel et al., 1905.10650)."""
    point = point_of(replace(FULL, num_layers=1), 0, head_mask=True)
    with jax.enable_x64(True):
        model, heads = model_of(point), jnp.asarray(point.conditions["head_mask"])
        step = 1e-6 * np.eye(3)[:1]

        def weighted(heads):
            return (model(point.images, head_mask=heads).logits * point.cotangents.logits).sum()

        run = compiled(jax.value_and_grad(weighted), True)
        slope = (run(heads + step)[0] - run(heads - step)[0]) / 2e-6
        assert_close(run(heads)[1][0, 0], slope, 1e-7, "the first head's")


def test_fresh_parameters_are_neutral_where_they_multiply_and_small_where_they_add():
    flat = to_flat(compiled(lambda: VisionTransformer(FULL, rngs=nnx.Rngs(0)), True)())
    for name, array in flat.items():
        if name.endswith("gamma") or "layer_scale" in name:
            assert (array == 1).all(), name
        elif array.ndim == 1 and name != "cls_token":
            assert (array == 0).all(), name
        else:
            stored_in_out = name.startswith("encoder")
            fan_in = array.shape[0] if stored_in_out else np.prod(array.shape[1:])
            scale = 0.02 if name in ("cls_token", "pos_enc.pos") else fan_in**-0.5
            assert 0.5 < array.std() / scale < 1.7, name


# ---- precision -----------------------------------------------------------------------------------


@given(seed=seeds)
@settings(max_examples=3)
def test_float32_is_the_specification_to_its_rounding(seed):
    point = point_of(FULL, seed, **ALL)
    single = jax.tree.map(
        lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, tuple(point)[1:5]
    )
    model = model_of(Point(FULL, single[0], *single[1:]))
    outputs, (d_model, _) = program(outputs_and_vjp, False)(model, *single[1:])
    assert {leaf.dtype for leaf in jax.tree.leaves((outputs, d_model))} == {np.dtype("float32")}
    assert_outputs_close(outputs, spec_outputs(point), 1e-5)
    assert_gradients_close(to_flat(d_model), spec_gradients(point)[0], 1e-4)


def test_activations_are_of_dtype_and_gradients_of_param_dtype():
    rates = DropoutRates(0.1, 0.1, 0.1, 0.1, 0.1, 0.1)
    model = VisionTransformer(replace(FULL, dropout=rates), dtype="bfloat16", rngs=None)
    images = jax.ShapeDtypeStruct((2, *OTHER_SIZE, 2), jnp.float32)

    def gradients(model, images, key):
        def run(model, images):
            outputs = model(images, interpolate_positions=True, rngs=key)
            return sum(o.astype(float).sum() for o in outputs), outputs

        return jax.grad(run, argnums=(0, 1), has_aux=True)(model, images)

    d, outputs = jax.eval_shape(gradients, model, images, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(d)} == {jnp.dtype("float32")}
    assert len(jax.tree.leaves(outputs)) == 4


# ---- dropout -------------------------------------------------------------------------------------

PLACES = ("embedding", "attention", "projection", "activation", "output", "stochastic_depth")


@pytest.fixture(scope="module")
def plain_point():
    """A classifier's point, without conditions, in float32."""
    point = point_of(config_of(), 7, batch=3)
    flat = {name: array.astype(np.float32) for name, array in point.flat.items()}
    return point._replace(flat=flat, images=point.images.astype(np.float32))


@pytest.mark.parametrize("place", PLACES)
def test_dropout_multiplies_by_fresh_factors_at_its_place(plain_point, place):
    """At a rate of all but 1 nothing is left there: the same as factors of 0."""
    point, L, B, H, n = plain_point, 2, 3, 3, 9
    rate = 1 - 1e-7
    blocks = {
        "attention": BlockFactors(attention_weights=np.zeros((L, B, H, n, n))),
        "projection": BlockFactors(attention=np.zeros((L, B, n, 12))),
        "activation": BlockFactors(hidden=np.zeros((L, B, n, 11))),
        "output": BlockFactors(mlp=np.zeros((L, B, n, 12))),
        # The first block's rate is 0, the last one's the configuration's.
        "stochastic_depth": BlockFactors(
            attention=np.array([1.0, 0]).reshape(2, 1, 1, 1),
            mlp=np.array([1.0, 0]).reshape(2, 1, 1, 1),
        ),
    }
    embedding = np.zeros((1, 1, 1)) if place == "embedding" else None
    factors = Factors(embedding, blocks.get(place, BlockFactors()))
    dropped = point._replace(config=replace(point.config, dropout=DropoutRates(**{place: rate})))
    model, run = model_of(dropped), program(outputs_of, False)
    found = run(model, point.images, {"rngs": jax.random.key(1)}).last_hidden_state
    expected = run(model, point.images, {"factors": factors}).last_hidden_state
    without = run(model, point.images, {}).last_hidden_state
    assert_close(found, expected, 1e-5, place)
    assert np.abs(found - without).max() > 0.01


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scan", "loop"])
def test_dropout_is_drawn_for_each_call_image_and_entry_and_not_at_all_without_rngs(
    plain_point, scan_layers
):
    rates = DropoutRates(0.2, 0.2, 0.2, 0.2, 0.2, 0.2)
    images = np.repeat(plain_point.images[:1], 3, axis=0)  # three times the same
    point = plain_point._replace(config=replace(plain_point.config, dropout=rates))
    model, run = model_of(point, scan_layers=scan_layers), program(outputs_of, False)
    plain = program(outputs_of, False)(model_of(plain_point), images, {}).logits
    assert_close(run(model, images, {}).logits, plain, 1e-6, "without rngs")
    first, again, other = (
        np.asarray(run(model, images, {"rngs": jax.random.key(k)}).logits) for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    for a, b in ((first[0], first[1]), (first[1], first[2]), (first, other), (first, plain)):
        assert np.abs(a - b).max() > 0.01


def test_rngs_may_be_a_key_or_streams_whose_every_use_is_another():
    rngs = nnx.Rngs(dropout=3)
    first, second = key_of(rngs), key_of(rngs)
    assert (jax.random.key_data(first) != jax.random.key_data(second)).any()
    for key in (first, jax.random.PRNGKey(0)):
        assert key_of(key) is key
    assert key_of(None) is None


def test_factors_are_0_or_keep_the_expectation():
    for rate in (0.1, 0.5, 0.9):
        factors = np.asarray(draw(jax.random.key(0), rate, (400, 500), (), np.float32))
        kept = factors != 0
        np.testing.assert_allclose(factors[kept], 1 / (1 - rate), rtol=1e-6)
        assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / kept.size)


def test_what_dropout_keeps_is_what_jax_s_bernoulli_keeps():
    """Bit for bit, though it is computed in another way on a CPU."""
    key, shape = jax.random.key(int(fresh_rng().integers(2**31))), (3, 37, 41)
    np.testing.assert_array_equal(random_bits(key, shape), jax.random.bits(key, shape))
    for p in (1e-7, 0.1, 0.5, 0.9, 1.0):
        expected = jax.random.bernoulli(key, np.float32(p), shape)
        np.testing.assert_array_equal(kept(key, p, shape, ()), expected)
        np.testing.assert_array_equal(kept(key, jnp.float32(p), shape, ()), expected)


def test_stochastic_depth_leaves_out_whole_branches_of_single_images(plain_point):
    config = replace(plain_point.config, dropout=DropoutRates(stochastic_depth=0.5))
    images = np.repeat(plain_point.images[:1], 64, axis=0)
    model = model_of(plain_point._replace(config=config))
    found = program(outputs_of, False)(model, images, {"rngs": jax.random.key(0)}).logits
    # Only the last of two blocks has a rate, and each of its branches may be left out, or doubled.
    choices = np.array([[0.0, 0], [0, 2], [2, 0], [2, 2]])
    first, last = np.ones((2, 4)), choices.T
    attention_factors, mlp_factors = np.stack([first, last])[:, :, :, None, None].swapaxes(0, 1)
    factors = Factors(blocks=BlockFactors(attention=attention_factors, mlp=mlp_factors))
    expected = program(outputs_of, False)(model, images[:4], {"factors": factors}).logits
    nearest = np.abs(found[:, None] - expected[None]).max(axis=-1)
    assert nearest.min(axis=1).max() < 1e-5
    assert set(nearest.argmin(axis=1)) == {0, 1, 2, 3}


# ---- errors --------------------------------------------------------------------------------------


def new_model(config=FULL, **options):
    return VisionTransformer(config, rngs=None, **options)


@pytest.fixture(scope="module")
def full_model():
    return new_model()


IMAGES = np.ones((2, *OWN_SIZE, 2), np.float32)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"masked_patches": np.ones((2, 8))}, "masked_patches: .* Booleans, got float64"),
        ({"masked_patches": np.ones((2, 9), bool)}, r"expected shape \(2, 8\), got \(2, 9\)"),
        ({"masked_patches": np.ones(8, bool)}, r"expected shape \(2, 8\), got \(8,\)"),
        ({"attention_mask": np.ones((9, 9))}, "attention_mask: .* Booleans, got float64"),
        ({"attention_mask": [[True]]}, "attention_mask: .* Booleans, got list"),
        ({"attention_mask": np.ones((8, 8), bool)}, r"\(2, 3, 9, 9\), got \(8, 8\)"),
        ({"head_mask": np.ones(3)}, r"head_mask: expected shape \(2, 3\), got \(3,\)"),
        (
            {"factors": Factors(embedding=np.ones((9, 12)))},
            r"factors.embedding: .* broadcasts to \(2, 9, 12\), got \(9, 12\)",
        ),
        (
            {"factors": Factors(blocks=BlockFactors(hidden=np.ones((1, 2, 9, 11))))},
            r"factors.blocks.hidden: .* \(2, 2, 9, 11\), got \(1, 2, 9, 11\)",
        ),
    ],
)
def test_conditions_that_do_not_fit_are_refused(full_model, given, message):
    with pytest.raises(InvalidArray, match=message):
        full_model(IMAGES, **given)


@pytest.mark.usefixtures("without_type_checks")
def test_images_that_do_not_fit_are_refused(full_model):
    with pytest.raises(InvalidArray, match=r"\(batch, 7, 9, 2\).*interpolate_positions=True"):
        full_model(np.ones((2, *OTHER_SIZE, 2), np.float32))
    for shape in ((2, 10, 7, 3), (10, 7, 2)):
        with pytest.raises(InvalidArray, match=r"got \("):
            full_model(np.ones(shape, np.float32), interpolate_positions=True)
    with pytest.raises(InvalidArray, match="room for a patch of 3 x 2, got images of 2 x 9"):
        full_model(np.ones((2, 2, 9, 2), np.float32), interpolate_positions=True)
    with pytest.raises(InvalidArray, match=r"of float32, .* got uint8"):
        full_model(IMAGES.astype(np.uint8))


def test_a_model_without_a_mask_token_masks_nothing():
    with pytest.raises(InvalidArray, match="no mask token"):
        new_model(config_of())(IMAGES, masked_patches=np.ones((2, 8), bool))


@pytest.mark.usefixtures("without_type_checks")
def test_what_is_no_key_is_refused(full_model):
    for rngs in (0, jnp.ones(2), jax.random.split(jax.random.key(0))):
        with pytest.raises(TypeError, match=r"rngs: expected nnx\.Rngs or one key"):
            full_model(IMAGES, rngs=rngs)


def test_an_attention_that_has_no_weights_is_not_asked_to_multiply_them():
    config = config_of(dropout=DropoutRates(attention=0.1))
    model = new_model(config, attention_fn=make_tokamax_attention("xla"))
    weights = BlockFactors(attention_weights=np.ones((2, 2, 3, 9, 9)))
    for wanted in ({"rngs": jax.random.key(0)}, {"factors": Factors(blocks=weights)}):
        with pytest.raises(ValueError, match=r"TokamaxAttention.*PlainAttention\(\)"):
            model(IMAGES, **wanted)
    jax.eval_shape(lambda m: m(IMAGES, head_mask=np.ones((2, 3))), model)  # this one can
    assert new_model(config).build.attention_with_factors == PlainAttention()


@pytest.mark.usefixtures("without_type_checks")
def test_a_configuration_that_breaks_rules_is_refused():
    with pytest.raises(NotWellFormed, match=r"headCount_dvd_embedDim.*|cls_needed") as raised:
        new_model(config_of(head_count=5, cls_token=False))
    assert len(raised.value.violations) == 2
    with pytest.raises(NotWellFormed, match="expected a VisionTransformerConfig, got int"):
        new_model(3)


# ---- the adapter and training --------------------------------------------------------------------


def of_logits(cotangent):
    """Cotangents of which only the logits' is not 0."""
    return Outputs(**dict.fromkeys(Outputs._fields) | {"logits": cotangent})


@given(seed=seeds)
@settings(max_examples=3)
def test_the_implementation_gives_logits_and_gradients_channels_first(seed):
    point = point_of(config_of(), seed)
    point = point._replace(cotangents=of_logits(point.cotangents.logits))
    images = np.ascontiguousarray(point.images.transpose(0, 3, 1, 2))
    mine = implementation.vision_transformer
    logits = mine.forward(point.config, point.flat, images)
    grads, d_images = mine.vjp(point.config, point.flat, images, point.cotangents.logits)
    truth, d_images_truth = spec_gradients(point)
    assert_close(logits, spec_outputs(point).logits, TOLERANCE, "logits")
    assert_gradients_close(grads, truth, 10 * TOLERANCE)
    assert_close(d_images.transpose(0, 2, 3, 1), d_images_truth, 10 * TOLERANCE, "d_images")


def test_variants_are_found_by_name():
    found = implementation.vision_transformer_bfloat16_xla_loop_remat_autodiff
    assert (found.spec, found.dtype) == ("vision-transformer", "bfloat16")
    assert found.name == "vitfast-vision-transformer-bfloat16-xla-loop-remat-autodiff"
    assert found.options["attention_fn"] == make_tokamax_attention("xla")
    assert implementation.vision_transformer.supports(config_of()) is None
    assert "num_classes is 0" in implementation.vision_transformer.supports(
        config_of(num_classes=0)
    )


def test_a_training_step_subtracts_the_specification_s_gradient():
    point = point_of(config_of(num_layers=1, dropout=DropoutRates(embedding=0.5)), 0)
    labels = np.array([3, 1])
    logits = spec_outputs(point).logits
    softmax = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    d_logits = (softmax - np.eye(5)[labels]) / 2
    point = point._replace(cotangents=of_logits(d_logits))
    gradients, _ = spec_gradients(point)
    expected = {name: point.flat[name] - 0.1 * g for name, g in gradients.items()}
    with jax.enable_x64(True):
        optimizer = optax.sgd(0.1)
        step = make_train_step(optimizer)

        def after(*key):
            model = model_of(point)
            return step(model, optimizer.init(model), point.images, labels, *key)

        model, _, loss = after()
        assert_flat_close(to_flat(model), expected, TOLERANCE)
        assert_close(loss, -np.log(softmax[[0, 1], labels]).mean(), TOLERANCE, "loss")
        assert abs(after(jax.random.key(0))[2] - loss) > 1e-3


def test_what_has_no_logits_cannot_be_trained_to_classify():
    with pytest.raises(ValueError, match="num_classes is 0"):
        jax.eval_shape(logits_of, new_model(config_of(num_classes=0)), IMAGES)
