"""The check accepts the specification and rejects it with any mistake of the catalogue."""

from types import SimpleNamespace

import numpy as np
import pytest

from vitspec import ViTConfig, scalars
from vitspec.testing import implementations
from vitspec.testing.cases import KINK_MARGIN, Case, away_from_kinks, nearest_gap
from vitspec.testing.catalogue import CATALOGUE, planted
from vitspec.testing.check import SEQUENTIAL_SUMS, check_case, check_photograph, load_photograph
from vitspec.testing.implementations import AdapterError

CONFIG = ViTConfig(
    patch_h=2, patch_w=3, stride=2, padding=1,
    embed_dim=6, hidden_dim=5, head_count=2, num_layers=2, num_classes=4,
)  # fmt: skip
SMALL = ViTConfig(
    patch_h=32, patch_w=32, stride=32, padding=0,
    embed_dim=16, hidden_dim=24, head_count=4, num_layers=2, num_classes=5,
)  # fmt: skip
ONLY_ONE_MODEL = {
    "cls-token-last": "vit-cls",
    "cls-pools-last-row": "vit-cls",
    "cls-pool-gradient-to-all-rows": "vit-cls",
    "mean-pool-sums": "vit",
    "mean-pool-gradient-not-divided": "vit",
}
NOT_IN_A_MODEL = {"mask-sense-inverted", "blocked-row-uniform"}  # the models use no mask
SEEN = [d.name for d in CATALOGUE if d.kind != "jvp" and d.name not in NOT_IN_A_MODEL]


ONLY_AT_SMALL_VARIANCE = {"layer-norm-eps-1e-12", "layer-norm-eps-outside-root"}


def case(spec, scale=1.0):
    return Case(spec, CONFIG, in_channels=2, height=5, width=8, seed=5, scale=scale)


def test_the_specification_conforms_to_itself(implementation, spec_name):
    result = check_case(implementation(spec_name), case(spec_name))
    assert result.failures == ()
    # logits, image, kernel, bias, positions, 12 for each layer, 2 of the head, and the CLS token
    assert result.tensors == 2 + 2 + 1 + 24 + 2 + (spec_name == "vit-cls")


@pytest.mark.parametrize("mistake", SEEN)
def test_every_mistake_is_seen_in_float32(implementation, mistake):
    spec = ONLY_ONE_MODEL.get(mistake, "vit-cls" if len(mistake) % 2 else "vit")
    scale = 0.01 if mistake in ONLY_AT_SMALL_VARIANCE else 1.0
    result = check_case(implementation(spec, mistake), case(spec, scale))
    assert result.failures
    assert result.worst.ratio > 10


def test_the_photograph_is_a_picture():
    image = load_photograph()
    assert image.shape == (3, 224, 224)
    assert image.min() >= -1
    assert image.max() <= 1
    assert image.std() > 0.3
    # Its red, green and blue differ, and it is not symmetric: channels and axes cannot hide.
    assert np.abs(image[0] - image[2]).mean() > 0.05
    assert np.abs(image - image.transpose(0, 2, 1)).mean() > 0.1


def test_the_photograph_check_at_small_size(implementation, spec_name):
    grades = check_photograph(implementation(spec_name), 0, config=SMALL)
    assert all(g.conforms for g in grades)
    wrong = check_photograph(implementation(spec_name, "layer-norm-eps-1e-5"), 0, config=SMALL)
    assert not all(g.conforms for g in wrong)


def test_away_from_kinks_keeps_every_relu_input_off_zero(spec_name):
    model = case(spec_name).model()
    moved = away_from_kinks(model, case(spec_name).image())
    hidden = [layer.ffn.hidden for layer in moved.trace(case(spec_name).image()).layers]
    assert all(np.abs(h).min() >= KINK_MARGIN * 0.999 for h in hidden)
    changed = [
        name
        for name, leaf in model.to_flat().items()
        if not np.array_equal(leaf, moved.to_flat()[name])
    ]
    assert all(name.endswith("ffn.b1") for name in changed)


def test_the_nearest_gap_is_the_nearest_free_number():
    values = np.array([[-0.0005, 5.0], [0.0012, 6.0], [0.01, -4.0]])
    gap = nearest_gap(values)
    assert gap[0] == pytest.approx(-0.0015)  # 0.0022 is free too, but farther
    assert gap[1] == 0


class Broken:
    name, version, spec, dtype = "broken", "0", "vit", "float32"

    def __init__(self, forward, vjp):
        self.forward, self.vjp = forward, vjp


@pytest.mark.parametrize("fault", ["raises", "missing", "extra", "shape", "dtype"])
def test_a_broken_adapter_is_reported_as_such(implementation, fault):
    good = implementation("vit")

    def vjp(config, params, images, cotangent):
        d_params, d_images = good.vjp(config, params, images, cotangent)
        d_params = dict(d_params)
        if fault == "raises":
            raise RuntimeError("out of registers")
        if fault == "missing":
            del d_params["head.bias"]
        if fault == "extra":
            d_params["head.wieghts"] = d_params["head.weights"]
        if fault == "shape":
            d_params["head.weights"] = d_params["head.weights"].T
        if fault == "dtype":
            d_images = d_images.astype(np.float64)
        return d_params, d_images

    named = {
        "raises": "RuntimeError.*out of registers",
        "missing": "head.bias: missing",
        "extra": "head.wieghts: unexpected",
        "shape": r"head.weights: expected float32 \(4, 6\), got float32 \(6, 4\)",
        "dtype": "image: expected float32",
    }[fault]
    with pytest.raises(AdapterError, match=named):
        check_case(Broken(good.forward, vjp), case("vit"))


def test_an_unknown_implementation_lists_the_installed_ones():
    with pytest.raises(
        AdapterError, match=r"no implementation is named 'nope'; installed: .*vitfast"
    ):
        implementations.load("nope")


@pytest.mark.parametrize("what", ["params", "images", "cotangent"])
def test_an_implementation_that_writes_into_its_inputs_is_refused(implementation, what):
    good = implementation("vit")

    def vjp(config, params, images, cotangent):
        given = {"params": params["head.bias"], "images": images, "cotangent": cotangent}[what]
        given *= 3
        return good.vjp(config, params, images, cotangent)

    with pytest.raises(AdapterError, match="read-only"):
        check_case(Broken(good.forward, vjp), case("vit"))


def test_an_implementation_that_exits_is_not_believed(implementation):
    def forward(*args):
        raise SystemExit(0)

    with pytest.raises(AdapterError, match="raised SystemExit"):
        check_case(Broken(forward, implementation("vit").vjp), case("vit"))


def test_arrays_of_another_framework_are_graded_in_float64(implementation):
    class Foreign:
        """Like an array of a framework that computes in float32 with whatever it meets."""

        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

        def __sub__(self, other):
            raise AssertionError("the kit computed with a foreign array")

        __getitem__ = __rsub__ = __sub__

    good = implementation("vit")

    def vjp(*args):
        d_params, d_images = good.vjp(*args)
        return {name: Foreign(array) for name, array in d_params.items()}, Foreign(d_images)

    foreign = Broken(lambda *args: Foreign(good.forward(*args)), vjp)
    assert check_case(foreign, case("vit")).failures == ()


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("spec", "resnet", "spec: expected one of vit, vit-cls, got 'resnet'"),
        ("dtype", "float16", "dtype: expected one of float32, float64, got 'float16'"),
        ("version", None, "version: expected a string, got None"),
        ("vjp", None, "vjp: expected a method"),
    ],
)
def test_an_object_that_is_no_implementation_is_refused(
    implementation, monkeypatch, attribute, value, message
):
    broken = implementation("vit")
    setattr(broken, attribute, value)
    point = SimpleNamespace(name="broken", load=lambda: broken)
    monkeypatch.setattr(implementations, "entry_points", lambda **_: [point])
    with pytest.raises(AdapterError, match=message):
        implementations.load("broken")


def test_the_price_includes_sums_of_one_term_after_another():
    """XLA sums matrix-vector products so; BLAS does not, and is more exact."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4, 20_000)).astype(np.float32)
    x = rng.standard_normal(20_000).astype(np.float32)
    truth = w.astype(np.float64) @ x.astype(np.float64)
    with planted(SEQUENTIAL_SUMS):
        sequential = scalars.matmul(w, x)
    assert sequential.dtype == np.float32
    expected = [np.add.accumulate(row * x, dtype=np.float32)[-1] for row in w]
    assert np.array_equal(sequential, expected)
    assert np.abs(sequential - truth).max() > 2 * np.abs(scalars.matmul(w, x) - truth).max()
