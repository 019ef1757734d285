"""A plan from shapes says what JAX and XLA make of a model of the same structure."""

import functools
import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from typer.testing import CliRunner

from vitfast import VisionTransformer
from vitfast import plan as planning
from vitfast.cli import app
from vitfast.implementation import quick_options
from vitfast.memory import AXES, OPTIMIZERS, bytes_per_device, kept_for_backward
from vitfast.plan import devices, network, program
from vitfast.plan.job import SHARDING, Job
from vitfast.sharding import MeshDoesNotDivide
from vitfast.training import cross_entropy, logits_of
from vitspec import VisionTransformerConfig, ViTConfig
from vitspec.shapes import forward_flops

CONFIG = VisionTransformerConfig(
    image_h=15,
    image_w=12,
    in_channels=2,
    patch_h=5,
    patch_w=3,
    embed_dim=64,
    hidden_dim=192,
    head_count=16,
    num_layers=3,
    num_classes=5,
)
"""No two sizes alike: 12 patches of 30 numbers, 13 rows, D 64, F 192, 16 heads, L 3, K 5."""

JOBS = {
    "fsdp": Job(CONFIG, 16, fsdp=8, dtype="float32"),
    "fsdp, model": Job(
        replace(CONFIG, layer_scale=True), 16, fsdp=4, model=2, dtype="float32", remat=True
    ),
    "all, mixed precision": Job(
        replace(CONFIG, pool="mean", cls_token=False), 24, data=2, fsdp=2, model=2, remat=True
    ),
}
JOBS = {name: replace(job, fused_attention=False) for name, job in JOBS.items()}


@functools.cache
def compiled(name):
    """The compiled step."""
    return program.compile_step(JOBS[name], quick_options())


# ---- collectives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JOBS)
def test_the_program_sends_what_is_planned(name):
    """Each collective: how many, among how many devices, of how many numbers."""
    job = JOBS[name]
    found = program.counted(program.read(compiled(name).as_text(), 8))
    planned = program.expected(planning.collectives(job))
    apart = (found - planned) + (planned - found)
    arranged = program.shared_by_model(job)
    assert {key: n for key, n in apart.items() if key[2] not in arranged} == {}
    assert bool(apart) == name.startswith("all")
    assert sum(planned.values()) > 100


def test_the_planned_bytes_are_those_of_the_program():
    """All results of a step together, with the types that the program has them in."""
    job = JOBS["fsdp, model"]
    found = program.read(compiled("fsdp, model").as_text(), 8)
    in_program = sum(4 * one.times * math.prod(one.shape) for one in found)
    assert sum(one.size for one in planning.collectives(job)) == in_program


@pytest.mark.parametrize("wrong", ["_gathered_again", "_summed_again"])
def test_a_plan_that_forgets_what_is_done_again_is_seen(wrong, monkeypatch):
    monkeypatch.setattr(network, wrong, lambda *_: 0)
    found = program.counted(program.read(compiled("fsdp, model").as_text(), 8))
    assert found - program.expected(planning.collectives(JOBS["fsdp, model"]))


def test_a_ring_sends_all_but_its_own_part():
    one = network.Collective("all-gather", "w", "forward", ("fsdp",), 4, 3, 100, 2)
    assert (one.size, one.sent) == (600, 450)
    assert one._replace(kind="all-reduce").sent == 900


def test_mixed_precision_gathers_what_is_computed_and_sums_what_is_kept():
    """Weights travel rounded, their gradients do not; statistics do not either."""
    job = replace(JOBS["fsdp"], dtype="bfloat16")
    sizes = Counter(
        (one.kind, "norm" in one.what, one.itemsize) for one in network.collectives(job)
    )
    assert sizes.keys() == {
        ("all-gather", False, 2),
        ("all-gather", True, 4),
        ("reduce-scatter", False, 4),
        ("reduce-scatter", True, 4),
        ("all-reduce", False, 4),
    }


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}, use_global_device_ids=true", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}", 4),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}, dim", 2),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}, dimensions={0}", 4),
        ("replica_groups={}, dimensions={0}", 8),
    ],
)
def test_groups_are_read_in_each_notation(line, size):
    assert program._group_size(f"%x = f32[8]{{0}} all-gather(%y), {line}", 8) == size


# ---- memory --------------------------------------------------------------------------------------


def shapes_of(job):
    """The model and the images as shapes, on the job's mesh, which must be set."""
    model = jax.eval_shape(lambda: program.new_model(job))
    shape = (job.batch, *model.image_shape)
    rows = NamedSharding(jax.sharding.get_abstract_mesh(), SHARDING.images)
    return model, jax.ShapeDtypeStruct(shape, jnp.dtype(job.dtype), sharding=rows)


@pytest.mark.parametrize(
    "job",
    [
        *JOBS.values(),
        replace(JOBS["all, mixed precision"], optimizer="lion", batch=12),
        replace(JOBS["fsdp"], config=replace(CONFIG, activation="relu", pool="cls_mean")),
        Job(replace(CONFIG, layer_scale=True), 32, model=8, fused_attention=False),
    ],
)
def test_what_lasts_is_what_jax_derives(job):
    """Parameters, gradients, moments and activations, on meshes of any size."""
    planned = planning.footprint(job)
    mesh = AbstractMesh(tuple(job.mesh.values()), AXES, axis_types=(AxisType.Explicit,) * 3)
    with jax.sharding.use_abstract_mesh(mesh):
        model, images = shapes_of(job)
        state = jax.eval_shape(OPTIMIZERS[job.optimizer](1e-3).init, model)
        gradients = jax.eval_shape(jax.grad(lambda m, x: m(x).logits.sum()), model, images)
        kept = jax.eval_shape(kept_for_backward, model, images)
    assert planned.parameters == bytes_per_device(model)
    assert planned.gradients == bytes_per_device(gradients)
    assert planned.moments == bytes_per_device(state)
    assert planned.activations == bytes_per_device(kept)


@pytest.mark.parametrize("name", ["fsdp", "fsdp, model"])
def test_the_program_takes_about_the_memory_that_is_planned(name):
    """What passes is an estimate; the rest, above, is exact."""
    job = JOBS[name]
    planned, found = planning.footprint(job), compiled(name).memory_analysis()
    besides = planned.total - planned.parameters - planned.moments
    assert 0.8 < found.temp_size_in_bytes / besides < 1.25


def test_fused_attention_keeps_no_weights():
    job = JOBS["fsdp"]
    kept, fused = (
        planning.footprint(replace(job, fused_attention=fused)).activations
        for fused in (False, True)
    )
    assert kept - fused == 3 * 2 * 16 * 13 * 13 * 4  # layers, images, heads, n x n, bytes


# ---- work ----------------------------------------------------------------------------------------


def products_in(jaxpr):
    """The FLOPs of all products of a program, loops included."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            inner = math.prod(shape[dim] for dim in contracted)
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * inner
        runs = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for given in eqn.params.values():
            inner = getattr(given, "jaxpr", given)  # closed, or not
            total += runs * products_in(inner) if hasattr(inner, "eqns") else 0
    return total


def step_of(job):
    """Loss and gradients of the model alone, and what they are of."""
    model = jax.eval_shape(
        lambda: VisionTransformer(
            job.config, use_gradient_checkpointing=job.remat, rngs=nnx.Rngs(0)
        )
    )
    images = jax.ShapeDtypeStruct((job.batch, *model.image_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((job.batch,), jnp.int32)
    run = jax.value_and_grad(lambda m, x, y: cross_entropy(logits_of(m, x), y))
    return run, (model, images, labels)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("layer_scale", [False, True])
def test_the_products_are_those_of_the_program(remat, layer_scale):
    """To the last FLOP, as JAX hands them to XLA."""
    config = replace(CONFIG, layer_scale=layer_scale)
    job = Job(config, 6, dtype="float32", remat=remat, fused_attention=False)
    run, given = step_of(job)
    program = jax.make_jaxpr(run)(*given).jaxpr
    alive, _ = dce_jaxpr(program, [True] * len(program.outvars))  # pixels need no gradient
    counted = products_in(alive)
    assert sum(one.flops for one in planning.operations(job)) == counted
    again = sum(one.flops for one in planning.operations(job) if one.phase == "recomputed")
    assert planning.model_flops(job) == counted - again


def test_the_products_are_most_of_what_xla_counts():
    """Of one layer, since XLA counts a loop's body once; it also counts what is not a product."""
    config = replace(CONFIG, embed_dim=256, hidden_dim=1024, head_count=4, num_layers=1)
    job = Job(config, 4, dtype="float32", fused_attention=False)
    run, given = step_of(job)
    counted = jax.jit(run).lower(*given).cost_analysis()["flops"]
    assert 0.93 < planning.model_flops(job) / counted < 1


def test_the_forward_is_what_the_specification_s_bench_counts():
    config = ViTConfig()
    job = Job(planning.SIZES["vit-b"], 3, fused_attention=False)
    forward = sum(one.flops for one in planning.operations(job) if one.phase == "forward")
    assert forward == forward_flops(config, "vit-cls", 3, 224, 224, 3)


def test_devices_share_the_work_but_for_the_ends():
    """Each of 8 along fsdp an eighth; along model, patches and head are every device's."""
    whole, fsdp, model = (
        sum(one.flops for one in planning.operations(replace(JOBS["fsdp"], fsdp=f, model=m)))
        for f, m in ((1, 1), (8, 1), (1, 8))
    )
    assert whole == 8 * fsdp
    ends = 2 * 16 * (2 * 12 * 30 + 3 * 5) * 64  # images; patches twice, head three times; D
    assert whole - ends == 8 * (model - ends)


# ---- time ----------------------------------------------------------------------------------------

DEVICE = planning.Device("toy", "nowhere", 1e9, {"float32": 1e12}, 1e11, 8e9, 4, 1e9)


@pytest.mark.parametrize(
    ("stride", "extent", "rate"),
    [
        (1, 4, 8e9),  # within a domain of four
        (2, 2, 8e9),
        (1, 8, 4e9),  # four of a ring in each domain, with four adapters
        (2, 4, 2e9),
        (4, 2, 1e9),
        (16, 2, 1e9),
    ],
)
def test_a_ring_is_as_fast_as_what_its_domains_have_outward(stride, extent, rate):
    assert DEVICE.bandwidth(stride, extent) == rate


def test_a_step_takes_as_long_as_the_slower_of_two_operation_by_operation():
    """Twice the ceilings, half the time; one ceiling far away, and the other decides alone."""
    job = JOBS["fsdp, model"]
    p = planning.predict(job, DEVICE)
    assert p.least < p.expected < p.most
    doubled = replace(
        DEVICE, flops={"float32": 2e12}, memory_bandwidth=2e11, link=16e9, network=2e9
    )
    assert planning.predict(job, doubled).most == pytest.approx(p.most / 2, rel=1e-12)
    fast = replace(DEVICE, memory_bandwidth=1e30, link=1e30, network=1e30)
    computing = planning.predict(job, fast)
    assert computing.expected == pytest.approx(computing.flops / 1e12, rel=1e-12)
    useful = planning.model_flops(job) / (8 * 1e12 * computing.expected)
    assert computing.utilisation(computing.expected) == pytest.approx(useful)
    slow = planning.predict(job, replace(fast, memory_bandwidth=1.0))
    assert slow.expected == pytest.approx(slow.bytes, rel=1e-12)


def test_one_device_sends_nothing():
    p = planning.predict(Job(CONFIG, 2, dtype="float32"), replace(DEVICE, link=math.inf))
    assert (p.sent, p.least, p.most) == (0, p.expected, p.expected)


# ---- the best mesh -------------------------------------------------------------------------------


def test_the_best_mesh_is_the_fastest_that_fits():
    """Compared with all, tried one by one."""
    job, compared = planning.best_mesh(Job(CONFIG, 64, dtype="float32"), 8, DEVICE)
    times = {}
    for data, fsdp, model in [
        (d, f, 8 // d // f) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if d * f <= 8
    ]:
        for remat in (False, True):
            one = replace(job, data=data, fsdp=fsdp, model=model, remat=remat)
            if model <= DEVICE.domain:
                times[data, fsdp, model, remat] = planning.predict(one, DEVICE).expected
    assert compared == len(times)
    near = [key for key, taken in times.items() if taken <= 1.02 * min(times.values())]
    chosen = (job.data, job.fsdp, job.model, job.remat)
    assert chosen in near
    assert max(chosen[:3]) == min(max(key[:3]) for key in near)


def test_less_memory_makes_it_keep_less():
    job = Job(CONFIG, 64, dtype="float32")
    roomy, _ = planning.best_mesh(job, 8, DEVICE)
    needed = planning.footprint(roomy).total
    tight, _ = planning.best_mesh(job, 8, replace(DEVICE, memory=float(needed)))
    assert planning.footprint(tight).total <= 0.9 * needed
    with pytest.raises(planning.NoMesh, match="no mesh of 8 toy is there room"):
        planning.best_mesh(job, 8, replace(DEVICE, memory=1e5))
    with pytest.raises(planning.NoMesh, match="no mesh of 7 devices divides"):
        planning.best_mesh(job, 7, DEVICE)


def test_vit_22b_is_of_its_size_and_fits_256_and_4096_devices():
    c = planning.SIZES["vit-22b"]
    count = sum(p.arrays * math.prod(p.shape) for p in planning.job.parameters(Job(c, 1)))
    assert 21.7e9 < count < 21.9e9
    for axes in ({"fsdp": 64, "model": 4}, {"data": 2, "fsdp": 256, "model": 8}):
        job = Job(c, 4096, **axes, remat=True)
        job.check()
        assert planning.footprint(job).total < 0.9 * planning.DEVICES["h100"].memory
    with pytest.raises(MeshDoesNotDivide, match="48 heads"):
        Job(c, 4096, fsdp=8, model=32).check()


# ---- the command ---------------------------------------------------------------------------------


def invoke(*words):
    """The command's result."""
    return CliRunner().invoke(app, ["plan", *map(str, words)])


SMALL = ("--size", "vit-ti", "--set", "num_layers=1", "--dtype", "float32")


def test_the_command_writes_what_it_prints(tmp_path):
    table, figures = tmp_path / "plan.md", tmp_path / "plan.json"
    files = ("--markdown", table, "--json", figures)
    done = invoke(*SMALL, "--devices", 4, "--fsdp", 4, "--batch", 8, *files)
    assert done.exit_code == 0, done.output
    written = json.loads(figures.read_text())
    job = Job(replace(planning.SIZES["vit-ti"], num_layers=1), 8, fsdp=4, dtype="float32")
    assert written["memory"]["total"] == planning.footprint(job).total
    expected = planning.predict(job, planning.DEVICES["h100"]).expected
    assert written["time"]["expected"] == expected
    for text in (done.output, table.read_text()):
        assert f"{expected * 1e3:.4f} ms" in text
        assert "all-gather" in text
    assert max(map(len, done.output.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "no --preset and no --size: expected a size of vit-ti, "),
        (("--size", "vit-x"), 2, "--size vit-x: expected a size of vit-ti, "),
        (("--size", "vit-ti", "--preset", "d2l"), 2, "expected one of the two"),
        (("--preset", "hf-vit-huge"), 2, "add --set num_classes=1000"),
        ((*SMALL, "--set", "depth=3"), 2, "unknown field 'depth'"),
        ((*SMALL, "--devices", 8, "--fsdp", 4), 2, "--devices 8: the mesh has 4, data 1 x fsdp 4"),
        ((*SMALL, "--devices", 5, "--fsdp", 5, "--batch", 5), 2, "192 does not divide over 5"),
        ((*SMALL, "--devices", 2, "--fsdp", 2, "--batch", 5), 2, "a batch of 5 does not divide"),
        ((*SMALL, "--mesh", "best"), 2, "--mesh best: expected auto"),
        ((*SMALL, "--device", "h300"), 2, "--device h300: expected one of a100, "),
        ((*SMALL, "--dtype", "float64"), 2, "--dtype float64: no peak of h100 is known"),
        ((*SMALL, "--flops", -1), 2, "a ceiling must be positive"),
        ((*SMALL, "--optimizer", "adam"), 2, "--optimizer adam: expected one of adamw"),
        ((*SMALL, "--compiled"), 3, "--compiled: the mesh has 1 devices and here are 8"),
        (("--size", "vit-22b"), 1, "on no mesh of 1 h100 is there room"),
    ],
)
def test_what_cannot_be_planned_is_one_line(words, code, says):
    done = invoke(*words)
    assert done.exit_code == code, done.output
    assert says in " ".join(done.output.split())


def test_a_mesh_without_room_fails(monkeypatch):
    assert invoke("--size", "vit-22b", "--devices", 1, "--fsdp", 1).exit_code == 1


def test_compiled_and_planned_are_compared(monkeypatch):
    step = compiled("fsdp")  # before the name that it needs is another's
    monkeypatch.setattr(program, "compile_step", lambda job: step)
    given = "image_h=15 image_w=12 in_channels=2 patch_h=5 patch_w=3 embed_dim=64 hidden_dim=192"
    given += " head_count=16 num_layers=3 num_classes=5"
    changes = [word for change in given.split() for word in ("--set", change)]
    words = ("--size", "vit-ti", *changes, "--devices", 8, "--fsdp", 8, "--batch", 16)
    words += ("--dtype", "float32", "--compiled")
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    assert "127 collectives in a step, the plan 127." in " ".join(done.output.split()), done.output
    monkeypatch.setattr(network, "_gathered_again", lambda *_: 0)
    done = invoke(*words)
    assert done.exit_code == 1
    assert "all-gather of 4,096 numbers among 8: planned 12, found 24" in done.output


def test_ceilings_are_measured_here(monkeypatch):
    """Whether they are near is for docs/scaling.md; here, that they are of this machine."""
    monkeypatch.setattr(devices, "_gather_rate", lambda seconds: 3e9)
    device = devices.measured("float32", seconds=0.0)
    assert (device.domain, device.link) == (8, 3e9)
    assert 1e8 < device.flops["float32"] < 1e13
    assert 1e7 < device.memory_bandwidth < 1e12


def figures():
    """The commands in docs/scaling.md, and what stands below each."""
    text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    return re.findall(
        r"<!-- figures: vitfast plan (.*?) -->\n\n(.*?)\n<!-- end of figures -->", text, re.DOTALL
    )


@pytest.mark.parametrize("number", range(4))
def test_the_document_has_what_the_command_writes(number, tmp_path):
    words, shown = figures()[number]
    done = invoke(*words.split(), "--markdown", tmp_path / "plan.md")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "plan.md").read_text() == shown
    assert len(figures()) == 4


def test_the_document_has_the_ceilings_in_use():
    text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    for name, device in planning.DEVICES.items():
        flops = (device.flops[dtype] / 1e12 for dtype in ("bfloat16", "float32"))
        rates = (device.memory_bandwidth, device.link, device.network)
        numbers = [f"{number:.4g}" for number in (*flops, device.memory / 1e9)]
        bandwidth, link, network = (f"{rate / 1e9:.4g}" for rate in rates)
        row = [
            name,
            *numbers[:2],
            f"{numbers[2]} GB",
            bandwidth,
            f"{link}, {device.domain}",
            network,
        ]
        assert f"| {' | '.join(row)} |" in text
