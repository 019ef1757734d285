"""Training by hand: what an update does, what is drawn, what is best, with what a run begins.

The model has no blocks: what is looked at here does not depend on them, and it compiles at once.
"""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from support.compare import assert_close, assert_flat_close
from support.fresh import fresh_rng
from vitfast import TrainConfig, VisionTransformer, to_flat
from vitfast.convert import fill
from vitfast.data import Augmentation, ImageDataset
from vitfast.sharding import NoSharding, ViTSharding, make_mesh
from vitfast.training import (
    Classification,
    MaskedImageModelling,
    TrainState,
    feeding,
    make_update,
    new_state,
    recipes,
    starting,
)
from vitfast.training.best import Best
from vitfast.training.evaluation import make_evaluate
from vitfast.training.export import export_config
from vitfast.training.optimizers import make_optimizer, make_schedule
from vitfast.training.preparation import require_trainable
from vitspec.errors import NotWellFormed
from vitspec.layers import losses
from vitspec.presets import PRESETS
from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig

CONFIG = VisionTransformerConfig(
    image_h=4, image_w=6, in_channels=2, patch_h=2, patch_w=2, embed_dim=6, hidden_dim=8,
    head_count=2, num_layers=0, num_classes=3, mask_token=True, decoder_stride=2,
    dropout=DropoutRates(embedding=0.5),
)  # fmt: skip

MATRICES = ("patch_embed.kernel", "head.weights", "decoder.weights")
"""What decays."""


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """A generator that compiles in a tenth of the time of JAX's own."""
    with jax.default_prng_impl("unsafe_rbg"):
        yield


@pytest.fixture(scope="module")
def model():
    return VisionTransformer(CONFIG, rngs=nnx.Rngs(0))


def norm(flat):
    return np.sqrt(sum(np.sum(one**2) for one in flat.values()))


# ---- updates -------------------------------------------------------------------------------------


def test_three_updates_by_hand():
    """The parts' gradients averaged, each with its own key; clipped; decay, momentum, rate."""
    c = TrainConfig(
        steps=5, optimizer="sgd", learning_rate=0.3, schedule="linear", warmup_steps=1,
        momentum=0.9, weight_decay=0.2, clip_norm=0.1, accumulation=2, label_smoothing=0.1,
    )  # fmt: skip
    rng, objective = fresh_rng(), c.to_objective()

    def loss(model, rows, key):
        return objective.losses(model, rows, key).mean()

    with jax.enable_x64(True):
        config = replace(CONFIG, pool="mean")
        model = VisionTransformer(config, param_dtype="float64", rngs=nnx.Rngs(0))
        of_part, schedule = jax.jit(jax.value_and_grad(loss)), make_schedule(c, 5)
        optimizer = make_optimizer(c, schedule)
        update = make_update(optimizer, objective, accumulation=2, schedule=schedule)
        state, p = new_state(model, optimizer, seed=7), to_flat(model)
        b = {name: 0 * leaf for name, leaf in p.items()}
        for step, rate in enumerate((0.15, 0.3, 0.225)):
            images, labels = rng.standard_normal((6, 4, 6, 2)), rng.integers(0, 3, 6)
            key = jax.random.fold_in(jax.random.key(7), step)
            parts = [
                of_part(state.model, (images[i::2], labels[i::2]), jax.random.fold_in(key, i))
                for i in range(2)
            ]
            before = jax.tree.leaves((state.model, state.opt_state))
            state, figures = update(state, (images, labels))
            assert all(leaf.is_deleted() for leaf in before if leaf.ndim)  # donated
            g = {name: sum(to_flat(grad)[name] for _, grad in parts) / 2 for name in p}
            length = norm(g)
            assert length > 0.1
            for name in p:
                decay = 0.2 if name in MATRICES else 0
                b[name] = 0.9 * b[name] + g[name] * 0.1 / length + decay * p[name]
                p[name] = p[name] - rate * b[name]
            assert_flat_close(to_flat(state.model), p, 1e-12)
            assert_close(np.asarray(figures["loss"]), sum(float(v) for v, _ in parts) / 2, 1e-12)
            assert_close(np.asarray(figures["grad_norm"]), length, 1e-12)
            assert float(figures["learning_rate"]) == pytest.approx(rate, rel=1e-6)
        assert int(state.step) == 3


def updates(config, gradients, model):
    """What the update rule adds to a model whose gradients are these, one after another."""
    rule, added = make_optimizer(config), []
    step = jax.jit(rule.update)
    state = rule.init(model)
    for one in gradients:
        found, state = step(one, state, model)
        added.append(to_flat(found))
    return added


def test_adamw_by_hand(model):
    """Two updates; the decay is not in the moments."""
    c = TrainConfig(steps=2, learning_rate=0.1, weight_decay=0.3, beta1=0.7, beta2=0.8)
    rng = fresh_rng()
    gradients = [
        jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), model)
        for _ in range(2)
    ]
    p, found = to_flat(model), updates(c, gradients, model)
    for name in p:
        g, h = (to_flat(one)[name].astype(np.float64) for one in gradients)
        m = (0.7 * 0.3 * g + 0.3 * h) / (1 - 0.7**2)
        v = (0.8 * 0.2 * g**2 + 0.2 * h**2) / (1 - 0.8**2)
        decay = 0.3 if name in MATRICES else 0
        expected = -0.1 * (m / (np.sqrt(v) + 1e-8) + decay * p[name])
        assert_close(found[1][name], expected.astype(np.float32), 1e-5, name)


def test_only_the_heads_of_a_frozen_backbone_move_and_only_they_are_clipped(model):
    c = TrainConfig(
        steps=1, optimizer="sgd", learning_rate=1.0, clip_norm=0.5, freeze_backbone=True
    )
    (found,) = updates(c, [jax.tree.map(jnp.ones_like, model)], model)
    moved = {name for name in found if np.any(found[name])}
    assert moved == {"head.weights", "head.bias", "decoder.weights", "decoder.bias"}
    assert norm(found) == pytest.approx(0.5, rel=1e-6)


# ---- what is drawn, and what is not --------------------------------------------------------------


def test_masks_are_drawn_for_each_image_and_patch():
    objective = MaskedImageModelling(0.5)
    masked = np.asarray(objective.masked_patches(CONFIG, 400, jax.random.key(3)))
    assert np.abs(masked.mean(axis=0) - 0.5).max() < 0.15  # six standard deviations
    assert len(np.unique(masked, axis=0)) == 20  # all choices of 3 of 6
    of_masks, of_dropout = map(jax.random.key_data, objective.split(jax.random.key(0)))
    assert np.any(of_masks != of_dropout)


@pytest.mark.parametrize("objective", [Classification(), MaskedImageModelling()])
def test_training_has_dropout(model, objective):
    """By the same key, for it also draws the masks."""
    images = fresh_rng().standard_normal((4, 4, 6, 2)).astype(np.float32)
    batch = images, np.arange(4, dtype=np.int32) % 3
    free = replace(CONFIG, pool="mean", dropout=DropoutRates())
    losses_of = jax.jit(lambda one: objective.losses(one, batch, jax.random.key(1)))
    with_dropout, without = (
        np.asarray(losses_of(fill(VisionTransformer(config, rngs=nnx.Rngs(1)), to_flat(model))))
        for config in (replace(free, dropout=CONFIG.dropout), free)
    )
    assert (np.abs(with_dropout - without) > 1e-3 * without).all()


def test_evaluation_of_masked_image_modelling_has_no_dropout_and_no_padding(model):
    """With all patches masked, masks are known."""
    rng = fresh_rng()
    images = rng.standard_normal((4, 4, 6, 2)).astype(np.float32)
    weights = np.array([1, 1, 1, 0], np.float32)
    batches = [(images, np.zeros(4, np.int32), weights)] * 2
    found = make_evaluate(MaskedImageModelling(1.0))(model, batches)
    made = jax.jit(lambda model: model(images, masked_patches=jnp.ones((4, 6), bool)))(model)
    expected = [
        losses.masked_error(*(one.transpose(2, 0, 1).astype(np.float64) for one in pair),
                            np.ones((4, 6), bool))
        for pair in zip(images[:3], np.asarray(made.reconstruction)[:3], strict=True)
    ]  # fmt: skip
    assert found.loss == pytest.approx(np.mean(expected), rel=1e-5)
    assert (found.accuracy, found.confusion, found.score) == (None, None, -found.loss)


def test_evaluation_of_classification_has_no_dropout(model):
    images = fresh_rng().standard_normal((4, 4, 6, 2)).astype(np.float32)
    labels = np.arange(4, dtype=np.int32) % 3
    found = make_evaluate(Classification(0.3))(model, [(images, labels, np.ones(4, np.float32))])
    logits = np.asarray(jax.jit(lambda model: model(images))(model).logits, np.float64)
    expected = [losses.cross_entropy(z, int(k)) for z, k in zip(logits, labels, strict=True)]
    assert found.loss == pytest.approx(np.mean(expected), rel=1e-5)


# ---- what cannot be trained ----------------------------------------------------------------------


def problems(model, **changes):
    """What is said of a batch of 24 images."""
    images, labels = np.zeros((24, 4, 6), np.uint8), np.arange(24) % 3
    dataset = ImageDataset.from_arrays(images, labels, images, labels)
    with pytest.raises(NotWellFormed) as error:
        require_trainable(model, dataset, TrainConfig(steps=1, batch_size=24, **changes))
    return str(error.value)


def test_parts_that_the_devices_do_not_divide_are_refused():
    model = SimpleNamespace(config=CONFIG, param_dtype="float32", sharding=ViTSharding())
    with jax.set_mesh(make_mesh(data=2, fsdp=4)):
        assert "parts of 12 images do not divide over 8 devices" in problems(model, accumulation=2)
        found = problems(model, accumulation=3, evaluation_batch_size=20)
    assert "parts of" not in found
    assert "evaluation_batch_size: 20 images do not divide over 8 devices" in found


@pytest.mark.parametrize(
    ("own", "expected"),
    [((0, 1, 2, 3), (0, 2)), ((4, 5), (2, 4)), ((0, 2), None), ((1, 2), None), ((0, 1, 2), None)],
)
def test_a_process_reads_neighbouring_parts_or_none(monkeypatch, own, expected):
    """Of the eight parts of a batch, of which its devices hold these."""

    class Held:
        def __init__(self, mesh, spec):
            pass

        def addressable_devices_indices_map(self, shape):
            return {i: (slice(i, i + 1),) for i in own}

    monkeypatch.setattr(feeding, "NamedSharding", Held)
    with jax.set_mesh(make_mesh(data=2, fsdp=4)):
        if expected is not None:
            assert feeding.rows_of_process(ViTSharding()) == expected
        else:
            with pytest.raises(ValueError, match="order the devices of the mesh by process"):
                feeding.rows_of_process(ViTSharding())


def test_only_a_vision_transformer_s_gradients_are_checked():
    model = SimpleNamespace(config=CONFIG, param_dtype="float32", sharding=NoSharding())
    assert "check_gradients: is for a VisionTransformer" in problems(model, check_gradients=2)


# ---- the best ------------------------------------------------------------------------------------


class Kept:
    """A folder of checkpoints that keeps one, once it has been waited for."""

    def save(self, step, state, progress):
        self.saved = step, jax.tree.map(np.array, state), progress

    def wait(self):
        self.whole = self.saved

    def restore(self, state, step):
        assert self.whole[0] == step
        return self.whole[1:]


def state_at(step):
    return TrainState(jnp.int32(step), {"p": jnp.full(2, float(step))}, None, None)


@pytest.mark.parametrize("folder", [None, Kept], ids=["in memory", "in a folder"])
def test_the_best_is_the_first_of_the_best_and_patience_counts_from_it(folder):
    """Stopped and resumed after each evaluation; the state is donated to the next step."""
    kept = folder and folder()
    best, stops = Best(kept, 3), []
    for step, score in enumerate((0.5, 0.7, 0.7, 0.6, 0.8, 0.1, 0.8, 0.3), 1):
        state = state_at(step)
        stops.append(best.look(step, state, score))
        state.model["p"].delete()
        if folder:
            progress, best = best.progress(), Best(kept, 3)
            best.go_on(progress)
    assert stops == [False] * 7 + [True]  # 0.8 again is not better
    model, step = best.model(state_at(8), 8)
    assert (step, list(model["p"])) == (5, [5.0, 5.0])
    last = state_at(5)
    assert best.model(last, 5) == (last.model, 5)
    never = Best(None, None)
    assert not any(never.look(step, state_at(step), -float(step)) for step in range(9))
    assert never.model(state_at(9), 9)[1] == 0


# ---- configurations ------------------------------------------------------------------------------


def test_what_a_configuration_says_reaches_what_is_made_of_it():
    assert TrainConfig(steps=1, label_smoothing=0.3).to_objective() == Classification(0.3)
    masked = TrainConfig(steps=1, objective="masked-image-modelling", mask_ratio=0.6)
    assert masked.to_objective() == MaskedImageModelling(0.6)
    # Batches run on over epochs, the last has all of its images.
    assert TrainConfig(epochs=1.5, batch_size=12).total_steps(60) == 8
    assert TrainConfig(epochs=2.0, batch_size=12).total_steps(60) == 10
    assert TrainConfig(steps=3).total_steps(60) == 3
    (said,) = TrainConfig(steps=3, warmup_steps=4).problems()
    assert "at most steps=3, got 4" in said


def test_recipes_are_those_of_the_documentation():
    d2l = TrainConfig(epochs=10.0, batch_size=128, optimizer="sgd", learning_rate=0.1)
    assert TrainConfig(**recipes.RECIPES["d2l"].training) == d2l
    small = recipes.RECIPES["fashion-mnist-small"]
    assert Augmentation(**small.augmentation) == Augmentation(2, True)
    found = recipes.RECIPES["digits"], small
    assert [(one.position_scale, one.training["epochs"]) for one in found] == [(0.5, 20)] * 2
    names = [recipes.default_recipe(name) for name in ("digits", "fashion-mnist", "pictures")]
    assert names == ["digits", "fashion-mnist-small", "deit-tiny"]


def test_the_positions_of_a_fresh_model_have_the_scale_asked_for(model):
    wide, other = (
        to_flat(starting.fresh(CONFIG, seed=seed, position_scale=0.5))["pos_enc.pos"]
        for seed in (0, 1)
    )
    assert 0.35 < np.std(wide) < 0.65
    assert_close(wide, 25 * to_flat(model)["pos_enc.pos"], 1e-6)
    assert np.abs(wide - other).max() > 0.1


def test_configurations_are_adapted_to_the_data_and_the_objective():
    bare = replace(CONFIG, num_classes=0, pool="none", in_channels=3)
    fitted = starting.adapted(bare, classes=7, channels=2, image_size=(8, 10))
    plain = replace(CONFIG, mask_token=False, decoder_stride=0)
    assert fitted == replace(plain, num_classes=7, image_h=8, image_w=10)
    without = replace(bare, cls_token=False)
    assert starting.adapted(without, classes=7).pool == "mean"
    dinov2 = replace(PRESETS["dinov2-small"], num_classes=0)
    assert export_config(starting.adapted(dinov2, classes=7)).pool == "cls_mean"
    masked = starting.adapted(replace(plain, pooler_dim=4), classes=7, masked=True)
    assert masked == replace(CONFIG, num_classes=0)


def test_dropout_stays_in_an_export_where_hugging_face_has_it():
    alike = DropoutRates(embedding=0.1, projection=0.1, output=0.1)
    config = replace(CONFIG, mask_token=False, decoder_stride=0, num_layers=1, dropout=alike)
    assert export_config(config) == config
    assert export_config(replace(config, dropout=CONFIG.dropout)).dropout == DropoutRates()
