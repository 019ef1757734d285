"""What XLA makes of a sharded training step: which collectives, of what, and where state lies.

The text of the compiled program is what runs. A layout that JAX accepts but that moves activations
about, or keeps a weight whole for longer than its use, computes the right numbers, and is seen here
and nowhere else. XLA:CPU writes a reduce-scatter as an all-reduce and a slice.
"""

import functools
import math
from collections import Counter

import jax
import numpy as np
import optax
import pytest

from support.hlo import collectives
from support.meshes import BATCH, CONFIG, LAYOUTS, images_of, model_of
from vitfast.implementation import quick_options
from vitfast.memory import bytes_per_device, kept_for_backward, shard_shape
from vitfast.sharding import shard_images
from vitfast.training import make_train_step

OPTIMIZER = optax.adamw(1e-3)

D, F, TOKENS, PIXELS = CONFIG.embed_dim, CONFIG.hidden_dim, 9 + 1, 3 * 3 * 2
LAYERS, CLASSES = CONFIG.num_layers, CONFIG.num_classes

VARIANTS = {
    "scan": {},
    "scan, remat": {"use_gradient_checkpointing": True},
    "scan, autodiff": {"custom_vjp": False},
    "loop": {"scan_layers": False},
    "loop, remat, autodiff": {
        "scan_layers": False,
        "use_gradient_checkpointing": True,
        "custom_vjp": False,
    },
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):  # as the point that all tests of sharding share
        yield


def start(name, **options):
    """A model, its optimiser's state, images and labels, on the mesh that is set."""
    sharding = LAYOUTS[name].sharding
    model = model_of("cls", sharding, **options)
    labels = shard_images(np.arange(BATCH) % CLASSES, sharding)
    return model, OPTIMIZER.init(model), images_of("cls", sharding), labels


@functools.cache
def program(name, variant="scan"):
    """The collectives of a training step; those in the body of a loop stand there once."""
    with LAYOUTS[name].set():
        lowered = make_train_step(OPTIMIZER).lower(*start(name, **VARIANTS[variant]))
        return collectives(lowered.compile(quick_options()).as_text())


def shapes(found, kind, backward=None):
    """How often a kind of collective makes which shape."""
    return Counter(
        one.shape for one in found if one.kind == kind and backward in (None, one.backward)
    )


def weights(model=1, layers=1):
    """How often each layer has a weight matrix of which shape, its part on a model axis.

    wq, wk, wv; wo; w1; w2.
    """
    counts = Counter({(D, D // model): 3})
    for shape in [(D // model, D), (D, F // model), (F // model, D)]:
        counts[shape] += 1
    return Counter({shape: layers * count for shape, count in counts.items()})


def vectors(model=1, layers=1):
    """The same for vectors: b1; b2 and the scales and shifts of two normalisations."""
    return Counter({(F // model,): layers, (D,): 5 * layers})


ENDS = Counter({(PIXELS, D): 1, (TOKENS, D): 1, (D,): 2, (D, CLASSES): 1})
"""Outside of the layers: the patches' kernel as a matrix, the positions, the kernel's bias and the
class token, the head. Its bias is the one parameter that is not cut."""


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *(("FSDP 1x8", variant) for variant in VARIANTS),
        ("both 2x2x2", "scan"),
        ("both 2x2x2", "loop"),
    ],
)
def test_a_weight_is_gathered_for_its_use_and_once_more_in_the_backward(name, variant):
    """So between its uses no device has more than its part; and nothing else is gathered.

    With rematerialisation too: the second forward and the backward share one gathering.
    """
    found = program(name, variant)
    counted = {
        "model": LAYOUTS[name].axes.get("model", 1),
        "layers": LAYERS if "loop" in variant else 1,
    }
    forward = shapes(found, "all-gather", backward=False)
    assert forward == weights(**counted) + vectors(**counted) + ENDS
    backward = shapes(found, "all-gather", backward=True)
    assert Counter({k: v for k, v in backward.items() if len(k) > 1}) == weights(**counted)
    assert backward - weights(**counted) <= vectors(**counted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_gathered_weight_is_kept_for_the_backward(variant):
    """What is kept is divided over all devices: the activations with the batch. Kept weights would
    be the whole model on every device, and only the memory would show it."""
    with LAYOUTS["FSDP 1x8"].set():
        model, _, images, _ = start("FSDP 1x8", **VARIANTS[variant])
        kept = jax.eval_shape(kept_for_backward, model, images)
    whole = [one for one in kept if 8 * math.prod(shard_shape(one)) > one.size]
    assert len(whole) < len(kept)
    ends = {(PIXELS, D), (D, CLASSES), (9, PIXELS, 1)}  # the last: which pixels a patch reads
    assert [
        one for one in whole if one.ndim > 1 and one.size > 2 * D and one.shape not in ends
    ] == []


@pytest.mark.parametrize("name", ["FSDP 1x8", "FSDP 2x4"])
def test_gradients_are_summed_over_the_batch_and_nothing_else_is(name):
    """One sum for each parameter. Over two axes, a matrix is first summed over fsdp and cut, and
    only the part that stays is summed over data."""
    found = program(name)
    sums = shapes(found, "all-reduce") + shapes(found, "reduce-scatter")
    matrices, rest = weights(), vectors() + Counter([(TOKENS, D), (D,), (D,), (CLASSES,), ()])
    matrices += Counter([(PIXELS, D), (D, CLASSES)])
    if name == "FSDP 2x4":
        parts = Counter({(D // 4, D): 3, (D, D // 4): 1, (D // 4, F): 1, (F, D // 4): 1})
        matrices += parts + Counter([(PIXELS, D // 4), (D // 4, CLASSES)])
    assert sums == matrices + rest


@pytest.mark.parametrize("variant", ["scan", "loop"])
@pytest.mark.parametrize("name", ["tensor parallel 1x8", "tensor parallel 2x4", "both 2x2x2"])
def test_tensor_parallelism_sums_activations_twice_forward_and_twice_backward(name, variant):
    """For each layer, after wo and w2, and the cotangents before wq, wk, wv and before w1: as few
    as in Megatron (Shoeybi et al., 2019, figure 4)."""
    axes = LAYOUTS[name].axes
    activations = (BATCH // (axes.get("data", 1) * axes.get("fsdp", 1)), TOKENS, D)
    layers = LAYERS if variant == "loop" else 1
    for backward in (False, True):
        sums = shapes(program(name, variant), "all-reduce", backward)
        assert sums[activations] == 2 * layers
        assert backward or sums.keys() == {activations}
        assert {shape for shape in sums if len(shape) > 2} == {activations}


def test_tensor_parallelism_alone_sends_nothing_else():
    for variant in ("scan", "loop"):
        kinds = {one.kind for one in program("tensor parallel 1x8", variant)}
        assert kinds == {"all-reduce"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_is_moved_from_device_to_device(name):
    """No all-to-all, no permutation: nothing lies where it is not used.

    But for one: where the model axis would idle, XLA has it share in the sums of two weights'
    gradients, and then puts the parts in order.
    """
    allowed = {"all-gather", "all-reduce", "reduce-scatter"}
    others = [one for one in program(name) if one.kind not in allowed]
    if name == "both 2x2x2":
        others = [one for one in others if one.shape not in {(PIXELS, D // 2), (D // 2, CLASSES)}]
    assert others == []


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_optimiser_s_state_lies_where_the_parameters_do_and_stays_there(name):
    """Each moment on the devices that hold its parameter's part, before and after a step."""
    with LAYOUTS[name].set():
        model, state, *batch = start(name)
        stepped, new_state, _ = jax.eval_shape(make_train_step(OPTIMIZER), model, state, *batch)
        moments = [getattr(one[0], m) for one in (state, new_state) for m in ("mu", "nu")]
        for tree in (stepped, *moments):
            for parameter, leaf in zip(jax.tree.leaves(model), jax.tree.leaves(tree), strict=True):
                assert leaf.sharding.spec == parameter.sharding.spec


def test_fully_sharded_every_device_holds_its_part_alone():
    """An eighth of the parameters and of the moments: all but the head's bias, and the counter."""
    with LAYOUTS["FSDP 1x8"].set():
        model, state, *_ = start("FSDP 1x8")
    bias, counter = 8 * CLASSES, 4
    for tree, on_each in ((model, bias), (state, 2 * bias + counter)):
        leaves = jax.tree.leaves(tree)
        part = (sum(leaf.nbytes for leaf in leaves) - on_each) / 8 + on_each
        for device in range(8):
            held = sum(leaf.addressable_shards[device].data.nbytes for leaf in leaves)
            assert held == bytes_per_device(tree) == part


def test_a_step_takes_over_the_memory_of_the_last_and_is_compiled_once():
    """Donation halves what a step needs; a second compilation would come of a changed sharding."""
    with LAYOUTS["both 2x2x2"].set():
        step = make_train_step(OPTIMIZER)
        model, state, *batch = start("both 2x2x2")
        lies = [leaf.sharding for leaf in jax.tree.leaves((model, state))]
        for _ in range(3):
            before = jax.tree.leaves((model, state))
            model, state, _ = step(model, state, *batch)
            assert all(leaf.is_deleted() for leaf in before)
        assert step._cache_size() == 1
        assert [leaf.sharding for leaf in jax.tree.leaves((model, state))] == lies
