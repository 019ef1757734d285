"""Determinism: bits are told from rounding, and what is drawn at random from what is kept."""

import numpy as np
import pytest

from vitspec import ViTConfig
from vitspec.testing import AdapterError, Settings, SpecImplementation, check, diagnose
from vitspec.testing.adapters import from_torch_function
from vitspec.testing.diagnosis.search import Search
from vitspec.testing.families import FAMILIES
from vitspec.testing.laws import permutations
from vitspec.testing.reference import Point

SMALL = ViTConfig(2, 2, 2, 0, 4, 3, 2, 1, 2)
LAW = Settings(laws=1, only="determinism")


class Base:
    """Right, but for what a test adds to its gradients."""

    name, version, spec, dtype = "mine", "1", "vit", ("float32", "float64")

    def __init__(self, **said):
        self.right, self.calls, self.last = SpecImplementation(self.spec), 0, {}
        for name, value in said.items():
            setattr(self, name, value)

    def forward(self, config, params, images):
        return self.right.forward(config, params, images)["logits"]

    def vjp(self, config, params, images, cotangent):
        self.calls += 1
        grads, d_images = self.right.vjp(config, params, images, cotangent)
        return self.bend(dict(grads), images), d_images

    def bend(self, grads, images):
        return grads


class OtherOrder(Base):
    """Rounds otherwise each time."""

    def bend(self, grads, images):
        rng = np.random.default_rng(self.calls)
        u = np.finfo(images.dtype).eps / 2
        moved = {n: g * (1 + u * rng.choice([-2, 2], g.shape)) for n, g in grads.items()}
        return {n: g.astype(images.dtype) for n, g in moved.items()}


class Dropout(Base):
    """Random, but by less than the first trial looks at, in float64 by far more than rounding."""

    def bend(self, grads, images):
        noise = np.random.default_rng(self.calls).standard_normal(grads["head.bias"].shape)
        return grads | {
            "head.bias": (grads["head.bias"] * (1 + 1e-13 * noise)).astype(images.dtype)
        }


class Accumulates(Base):
    """Never sets its gradients to zero."""

    def bend(self, grads, images):
        shape = [g.shape for g in grads.values()]
        before = self.last.get(str(shape), {})
        self.last[str(shape)] = {n: g + before.get(n, 0) for n, g in grads.items()}
        return self.last[str(shape)]


class Keeps(Base):
    """Has the last call's mean in its gradients, a little."""

    kept = 0.0

    def bend(self, grads, images):
        found = grads["head.bias"] * (1 + 1e-13 * np.tanh(self.kept - images.mean()))
        self.kept = images.mean()
        return grads | {"head.bias": found.astype(images.dtype)}


class KeepsBySize(Base):
    """Likewise, in a buffer for each size of image: only a call at another point shows it."""

    def bend(self, grads, images):
        kept = self.last.get(images.shape, images.mean())
        self.last[images.shape] = images.mean()
        found = grads["head.bias"] * (1 + 1e-13 * np.tanh(kept - images.mean()))
        return grads | {"head.bias": found.astype(images.dtype)}


def law(mine, **changes):
    (result,) = check(mine, LAW, **changes).results
    return result.status, result.reason


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_is_told_with_its_size_and_what_to_do(dtype):
    status, reason = law(OtherOrder(), dtype=dtype)
    assert status == "failed"
    assert "by rounding alone" in reason
    assert 'repeats = "to rounding"' in reason
    assert "of what rounding explains" in reason
    status, reason = law(OtherOrder(repeats="to rounding"), dtype=dtype)
    assert (status, "as it says" in reason) == ("passed", True)


@pytest.mark.parametrize("said", [{}, {"repeats": "to rounding"}])
@pytest.mark.parametrize(
    ("kind", "words"),
    [(Dropout, "dropout"), (Keeps, "keep from the call"), (KeepsBySize, "keep from the call")],
)
def test_what_is_no_rounding_fails_whatever_is_said(kind, words, said):
    status, reason = law(kind(**said), dtype="float64")
    assert (status, words in reason) == ("failed", True), reason


@pytest.mark.parametrize("said", [{}, {"repeats": "to rounding"}])
def test_gradients_that_add_up_are_seen_at_once(said):
    with pytest.raises(AdapterError, match="adds the gradients of each call to those"):
        check(Accumulates(**said), LAW)


def test_the_right_one_repeats():
    assert law(Base()) == ("passed", "")


def test_what_it_says_must_be_known():
    with pytest.raises(AdapterError, match="repeats: expected 'exactly' or 'to rounding'"):
        check(Base(repeats="never"))


def test_check_and_diagnosis_agree(monkeypatch):
    """A diagnosis said "It conforms" of what the check refused."""
    monkeypatch.setattr(Search, "survivors", lambda *_: [])  # which mistakes would be invisible
    refused, allowed = (
        diagnose(OtherOrder(**said), config=SMALL) for said in ({}, {"repeats": "to rounding"})
    )
    assert not refused.conforms
    assert "by rounding alone" in refused.verdict
    assert allowed.conforms
    assert any("repeats to rounding" in note for note in allowed.notes)


def test_a_gradient_that_is_zero_but_for_rounding_may_move_by_all_of_its_size():
    """The first trial refused it: "moved by half of its size"."""

    class Cancels(Base):
        spec = "vision-transformer"

        def bend(self, grads, images):
            # A bias of the keys moves all scores of a query alike, which changes nothing.
            rng, size = np.random.default_rng(self.calls), np.finfo(images.dtype).eps / 16
            bk = "encoder.layers.0.mha.bk"
            if bk not in grads:
                return grads
            return grads | {bk: size * rng.standard_normal(grads[bk].shape).astype(images.dtype)}

    assert check(Cancels(repeats="to rounding"), LAW).conforms


def test_identities_take_its_word_too():
    report = check(OtherOrder(repeats="to rounding"), identities=True, laws=1, config=SMALL)
    (result,) = [r for r in report.results if r.check == "identity.determinism"]
    assert result.status == "passed"


def test_an_adapter_says_it():
    mine = from_torch_function(
        lambda c, p, images: images.mean() * p["head.bias"][None],
        name="mine", version="1", spec="vit", repeats="to rounding",
    )  # fmt: skip
    assert mine.repeats == "to rounding"


def test_a_batch_is_always_permuted():
    """With two images it was left as it is in every third case."""
    point = Point.of(FAMILIES["vit"].tiled_case(np.random.default_rng(0)))
    assert len(point.images) == 2
    for seed in range(12):
        moved = {p.name: p.point for p in permutations(point, np.random.default_rng(seed))}
        assert not np.array_equal(moved["permute-batch"].images, point.images)
