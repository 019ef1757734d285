"""Checkpoints of a run: what is restored is what was saved, bit for bit, or it is said why not."""

import os
import resource
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from vitfast import VisionTransformer
from vitfast.sharding import ViTSharding, make_mesh
from vitfast.training.run_checkpoints import (
    CheckpointDamaged,
    CheckpointDiffers,
    CheckpointFailed,
    RunCheckpoints,
    manager,
    seal,
)
from vitfast.training.state import TrainState
from vitspec.vision_transformer_config import VisionTransformerConfig

CONFIG = VisionTransformerConfig(
    image_h=32,
    image_w=48,
    embed_dim=24,
    hidden_dim=16,
    head_count=3,
    num_layers=2,
    num_classes=5,
)

PROGRESS = {"data": {"next": 12, "seed": 3}, "best": [0.1, None], "name": "é"}


def shapes():
    """The shapes of a training state with Adam's moments, and shardings on the mesh that is set."""

    def begin():
        model = VisionTransformer(CONFIG, sharding=ViTSharding(), rngs=nnx.Rngs(0))
        optimizer = optax.adamw(1e-3, mu_dtype=jnp.bfloat16)
        key = jax.random.key_data(jax.random.key(0))
        return TrainState(jnp.int32(0), model, optimizer.init(model), key)

    return jax.eval_shape(begin)


def on(devices):
    """A mesh of the first so many devices, set."""
    return jax.set_mesh(make_mesh(fsdp=devices, devices=jax.devices()[:devices]))


def like(devices):
    """Shapes on a mesh of so many devices."""
    with on(devices):
        mesh = jax.sharding.get_mesh()

        def place(leaf):
            sharding = leaf.sharding and NamedSharding(mesh, leaf.sharding.spec)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(place, shapes())


def filled(abstract, seed):
    """Random numbers of every sign and size, in each array, even the integers."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        values = rng.normal(size=leaf.shape) * 10.0 ** rng.integers(-8, 8, size=leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            values = rng.integers(0, 2**31, size=leaf.shape)
        return jax.device_put(np.asarray(values, leaf.dtype), leaf.sharding)

    return jax.tree.map(fill, abstract)


def same(found, expected):
    """Whether two states have the same bits."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def small(seed):
    """A state of few arrays, for tests of what becomes of files."""
    rng = np.random.default_rng(seed)
    return {
        "step": jnp.int32(seed),
        "weights": jnp.asarray(rng.normal(size=(50, 70)), jnp.float32),
        "key": jax.random.key(seed),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Checkpoints of steps 10, 20 and 30, not to be changed."""
    folder = tmp_path_factory.mktemp("written")
    with RunCheckpoints(folder) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, small(step), {"step": step})
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy of them."""
    return Path(shutil.copytree(written, tmp_path / "checkpoints"))


def listing(folder):
    """Every file, and what is in it."""
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def from_eight(tmp_path_factory):
    """A state on eight devices, and the folder in which it was saved."""
    state = filled(like(8), seed=1)
    folder = tmp_path_factory.mktemp("eight")
    with RunCheckpoints(folder) as checkpoints:
        checkpoints.save(7, state, PROGRESS)
    return state, folder


@pytest.mark.parametrize("devices", [8, 4, 1])
def test_the_same_bits_on_another_mesh(from_eight, devices):
    """Eight devices' checkpoint on eight, four and one: what is read does not depend on where."""
    state, folder = from_eight
    abstract = like(devices)
    found, progress = RunCheckpoints(folder).restore(abstract)
    assert same(found, state)
    assert progress == PROGRESS
    whole = NamedSharding(found.model.cls_token.get_value().sharding.mesh, PartitionSpec())
    for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(abstract), strict=True):
        assert leaf.dtype == wanted.dtype
        assert leaf.sharding == (wanted.sharding or whole)
        assert len(leaf.sharding.device_set) == devices
    assert found.model.encoder.layers.mha.wq.get_value().addressable_shards[0].data.shape == (
        CONFIG.num_layers,
        CONFIG.embed_dim // devices,
        CONFIG.embed_dim,
    )


def test_without_a_mesh(tmp_path):
    """One device and a typed key; scalars and empty arrays too."""
    state = small(5) | {"empty": jnp.zeros((0, 3)), "bool": jnp.asarray([True, False])}
    with RunCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state) is None
        checkpoints.save(5, state, {})
    found, _ = RunCheckpoints(tmp_path).restore(jax.eval_shape(lambda: state))
    assert jax.random.key_impl(found["key"]) == jax.random.key_impl(state["key"])
    for one in (found, state):
        one["key"] = jax.random.key_data(one["key"])
    assert same(found, state)


def test_names_are_paths(from_eight):
    """The names of the specification, so that anybody can read the file."""
    names = seal.read_seal(from_eight[1] / "7")["arrays"]
    assert names["model.encoder.layers.mha.wq"] == ["float32", [2, 24, 24]]
    assert names["opt_state.0.mu.encoder.layers.mha.wq"] == ["bfloat16", [2, 24, 24]]
    assert {"step", "key", "model.pos_enc.pos", "opt_state.0.count"} <= names.keys()


def test_a_state_that_is_donated_at_once(tmp_path, monkeypatch):
    """What is saved is the state as it was, though its memory is used again while it is written."""
    released = threading.Event()
    monkeypatch.setattr(manager, "seal", waits_for(released, seal.seal))
    update = jax.jit(lambda state: jax.tree.map(lambda a: 3 * a + 1, state), donate_argnums=0)
    values = np.random.default_rng(0).normal(size=(400, 700)).astype(np.float32)
    with RunCheckpoints(tmp_path) as checkpoints:
        state = {"weights": jnp.array(values, copy=True)}
        checkpoints.save(1, state, {})
        for _ in range(5):
            state = update(state)
        jax.block_until_ready(state)
        assert checkpoints.steps() == ()  # it is being written
        checkpoints.check()
        released.set()
    found, _ = RunCheckpoints(tmp_path).restore(state)
    assert np.array_equal(found["weights"], values)


def waits_for(event, function):
    """The function, which waits for the event first."""

    def waiting(*arguments):
        assert event.wait(30)
        return function(*arguments)

    return waiting


def test_the_last_good_one_stays_until_the_next_is_whole(tmp_path, monkeypatch):
    """With one that is kept: two are there when the second is whole, and never none."""
    released = threading.Event()
    with RunCheckpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, small(1), {})
        checkpoints.wait()
        monkeypatch.setattr(manager, "seal", waits_for(released, seal.seal))
        checkpoints.save(2, small(2), {})
        assert RunCheckpoints(tmp_path).restore(small(0))[0]["step"] == 1
        released.set()
        checkpoints.wait()
        assert checkpoints.steps() == (2,)


def test_the_latest_are_kept(written, tmp_path):
    with RunCheckpoints(tmp_path, keep=2) as checkpoints:
        for step in (3, 9, 10, 11):
            checkpoints.save(step, small(step), {})
            checkpoints.save(step, small(step), {})  # again: as at the end of a run
    assert checkpoints.steps() == (10, 11)
    assert RunCheckpoints(written).steps() == (10, 20, 30)
    with pytest.raises(ValueError, match="keep: expected at least 1 checkpoint, got 0"):
        RunCheckpoints(tmp_path, keep=0)


def test_what_a_kill_leaves(folder):
    """A save and a removal, each half done: passed over, and cleared up by the next save."""
    shutil.copytree(folder / "30", folder / "40.orbax-checkpoint-tmp")
    (folder / "40.orbax-checkpoint-tmp" / seal.FILE).unlink()
    for path in sorted((folder / "10").rglob("*")):
        if path.is_file() and path.name != "progress":
            path.unlink()
    checkpoints = RunCheckpoints(folder)
    state, progress = checkpoints.restore(small(0))
    assert (int(state["step"]), progress) == (30, {"step": 30})
    with checkpoints:
        checkpoints.save(40, small(40), {})
    assert sorted(path.name for path in folder.iterdir()) == ["20", "30", "40"]


DAMAGES = {
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "missing": lambda path: path.unlink(),
    "a bit flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
}


def flipped(content):
    """The bytes with one bit flipped, at a place drawn from what they are."""
    rng = np.random.default_rng(len(content))
    changed = bytearray(content)
    changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
    return bytes(changed)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_noticed(folder, damage):
    """Each file that is read, one after another; and it is said which earlier one is intact."""
    checkpoints = RunCheckpoints(folder)
    files = [path for path in (folder / "30").rglob("*") if path.is_file()]
    files = [path for path in files if path.parent.name != "30" or path.name == seal.FILE]
    assert len(files) > 8
    for path in files:
        content = path.read_bytes()
        DAMAGES[damage](path)
        before = listing(folder)
        with pytest.raises(CheckpointDamaged) as caught:
            checkpoints.restore(small(0))
        text = str(caught.value)
        assert text.startswith(f"{folder / '30'} is damaged: ")
        assert path.relative_to(folder / "30").as_posix() in text
        assert "step 20 is intact: go on from it with --resume-from 20, or delete" in text
        assert "\n" not in text
        assert listing(folder) == before
        path.write_bytes(content)
    assert checkpoints.restore(small(0))[1] == {"step": 30}


def test_folders_that_are_damaged(folder):
    """Emptied, or under another's name; the one before is damaged too, or there is none."""
    (folder / "30").rename(folder / "35")
    with pytest.raises(CheckpointDamaged, match="35 is damaged: it is that of step 30, renamed"):
        RunCheckpoints(folder).restore(small(0))
    for step, then in (("35", "step 20 is"), ("20", "step 10 is"), ("10", "no earlier checkpoint")):
        shutil.rmtree(folder / step)
        (folder / step).mkdir()
        with pytest.raises(CheckpointDamaged, match=rf"35 is damaged: contents.json .*; .*{then}"):
            RunCheckpoints(folder).restore(small(0))


def test_going_on_from_an_earlier_one(folder):
    """What is later, damaged or not, is set aside by the next save, and not removed."""
    (folder / "20" / "progress" / "metadata").write_text("{}")
    before = listing(folder / "20")
    checkpoints = RunCheckpoints(folder)
    assert checkpoints.restore(small(0), step=10)[1] == {"step": 10}
    assert checkpoints.steps() == (10, 20, 30)
    with checkpoints:
        checkpoints.save(20, small(21), {"step": 21})
    assert sorted(path.name for path in folder.iterdir()) == [
        "10",
        "20",
        "set-aside-20",
        "set-aside-30",
    ]
    assert list(listing(folder / "set-aside-20").values()) == list(before.values())
    assert RunCheckpoints(folder).restore(small(0))[1] == {"step": 21}


def test_a_run_that_does_not_resume(folder):
    """Saves in its way are set aside; earlier ones count among those that are kept."""
    with RunCheckpoints(folder, keep=1) as checkpoints:
        checkpoints.save(30, small(3), {"new": True})
    assert sorted(path.name for path in folder.iterdir()) == ["30", "set-aside-30"]
    assert RunCheckpoints(folder).restore(small(0))[1] == {"new": True}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"weights": jnp.zeros((50, 71))}, "its weights is float32[50, 70], and the run's float32"),
        ({"weights": jnp.zeros((50, 70), jnp.bfloat16)}, "and the run's bfloat16[50, 70]"),
        ({"bias": jnp.zeros(3)}, "it has no bias"),
        ({"key": None}, "it has key, which the run has not"),
    ],
)
def test_a_state_of_another_kind(written, change, problem, capfd):
    with pytest.raises(CheckpointDiffers) as caught:
        RunCheckpoints(written).restore(small(0) | change)
    assert problem in str(caught.value)
    assert "is of another run" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_step_that_is_not_there(written, tmp_path):
    with pytest.raises(CheckpointDiffers, match="no checkpoint of step 25; found: 10, 20, 30"):
        RunCheckpoints(written).restore(small(0), step=25)
    with pytest.raises(CheckpointDiffers, match="no checkpoint of step 25; found: none"):
        RunCheckpoints(tmp_path).restore(small(0), step=25)


@contextmanager
def full_disk(room):
    """No file may be longer than `room` bytes: what a full disk is to whoever writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def train_on(checkpoints, step):
    """Save, and take further steps."""
    checkpoints.save(step, small(step), {"notes": "x" * 1000})
    while True:
        checkpoints.check()


@pytest.mark.parametrize("room", [4000, 700, 40])
def test_a_full_disk(folder, room, capfd):
    """At each of several moments of a save: one line, and the one before it is intact."""
    checkpoints = RunCheckpoints(folder)
    checkpoints.restore(small(0))
    with full_disk(room), pytest.raises(CheckpointFailed) as caught:
        train_on(checkpoints, 40)
    text = str(caught.value)
    assert "of step 40 could not be written: File too large; that of step 30 is intact" in text
    assert "\n" not in text
    assert checkpoints.steps() == (10, 20, 30)
    assert checkpoints.restore(small(0))[1] == {"step": 30}
    with checkpoints:
        checkpoints.save(50, small(50), {"room": True})
    assert checkpoints.steps() == (20, 30, 50)
    assert capfd.readouterr() == ("", "")


def test_other_failures_are_failures(folder, monkeypatch):
    """Of the digests, in the background: at the next call, whichever, and only once."""

    def fails(*_):
        raise OSError("out of order")

    monkeypatch.setattr(manager, "seal", fails)
    for call in ("wait", "close"):
        checkpoints = RunCheckpoints(folder)
        checkpoints.restore(small(0))
        checkpoints.save(40, small(40), {})
        with pytest.raises(CheckpointFailed, match=r"step 40 .*: OSError: out of order"):
            getattr(checkpoints, call)()
        checkpoints.close()
    checkpoints.save(40, small(40), {})
    with pytest.raises(CheckpointFailed, match=r"step 40 .* that of step 30 is intact"):
        checkpoints.save(50, small(50), {})
    assert checkpoints.steps() == (10, 20, 30)


def test_an_error_of_the_run_comes_first(folder, monkeypatch):
    """The save under way is completed; if that fails, it is a note beside the run's error."""

    def run(step):
        with RunCheckpoints(folder) as checkpoints:
            checkpoints.save(step, small(step), {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(40)
    assert RunCheckpoints(folder).steps() == (20, 30, 40)
    monkeypatch.setattr(manager, "seal", None)
    with pytest.raises(ZeroDivisionError) as caught:
        run(50)
    assert "step 50 could not be written" in caught.value.__notes__[0]


def test_progress_that_json_cannot_hold(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        RunCheckpoints(tmp_path / "new").save(1, small(1), {"array": np.zeros(3)})
    assert not (tmp_path / "new").exists()
