"""The tables of docs/deviations.md: upstream's literal forms against the specification, in figures.

    vitspec deviations

prints them all (so does `python -m vitspec.upstream.figures`): NumPy only, fixed seeds, a
few seconds. The forms themselves are in `vitspec.upstream.forms`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitspec.config import ViTConfig
from vitspec.geometry import sliding_window_out_dim
from vitspec.layers.activation import hard_masked_softmax
from vitspec.layers.attention import attention_scale_denom, causal_mask
from vitspec.layers.feed_forward import FeedForward, feed_forward
from vitspec.layers.multi_head_attention import (
    MultiHeadAttention,
    MultiHeadAttentionGrads,
    multi_head_attention,
    multi_head_attention_backward,
)
from vitspec.models.transformer import encoder_backward, encoder_layer
from vitspec.models.vit import ViTClsSpec, ViTSpec
from vitspec.reals import complex_step_derivative
from vitspec.records import Record
from vitspec.typing import Array
from vitspec.upstream.forms import (
    first_release_attention_scale_denom,
    first_release_hard_masked_softmax,
    first_release_heads,
    first_release_multi_head_attention,
    first_release_multi_head_attention_backward,
    first_release_multi_head_attention_jvp,
    first_release_multi_head_attention_true_backward,
    first_release_sliding_window_out_dim,
    first_release_variance,
    literal_encoder_backward,
    literal_import,
    proved_feed_forward,
    proved_multi_head_attention,
    pytorch_state,
)


@dataclass(frozen=True)
class Table:
    """One table of the page: which entry it belongs to, what it shows, and its cells."""

    entry: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def render(self) -> str:
        """The table as aligned plain text."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            padded = [cell.ljust(w) for cell, w in zip(cells, widths, strict=True)]
            return "  ".join(padded).rstrip()

        rule = "  ".join("-" * w for w in widths)
        body = [line(self.columns), rule, *map(line, self.rows)]
        return "\n".join([f"{self.entry}. {self.title}", "", *body])


def deviation_tables() -> tuple[Table, ...]:
    """Every table of `docs/deviations.md`, computed afresh from fixed seeds."""
    return (
        _order_table(),
        _training_table(),
        _gradient_table(),
        _gradient_seeds_table(),
        _leaves_table(),
        _upstream_test_table(),
        _mixing_table(),
        _proved_table(),
        _interop_table(),
        _grid_table(),
        _softmax_table(),
        _smaller_table(),
    )


def deviation_report() -> str:
    """All tables as plain text: what `vitspec deviations` prints."""
    return "\n\n".join(table.render() for table in deviation_tables())


def difference(value: Array, truth: Array) -> float:
    """Largest difference over the largest entry of either; 0 where all is zero or empty."""
    scale = max((np.abs(a).max() for a in (value, truth) if a.size), default=0.0)
    return float(np.abs(value - truth).max() / scale) if scale else 0.0


def show(error: float) -> str:
    """An error to two digits; what is only rounding is shown as a bound, the same everywhere."""
    return "< 1e-12" if error < 1e-12 else f"{error:.2g}"


def show_exact(error: float) -> str:
    """As `show`, where the same operations make the error exactly 0."""
    return "0" if error == 0 else show(error)


def random_attention(
    head_count: int, head_dim: int, embed_dim: int, rng: np.random.Generator
) -> MultiHeadAttention:
    """Attention with normal weights."""
    inner = head_count * head_dim
    wq, wk, wv = (rng.standard_normal((embed_dim, inner)) for _ in range(3))
    return MultiHeadAttention(head_count, wq, wk, wv, rng.standard_normal((inner, embed_dim)))


def complex_step_gradients(f: Callable[[Any], Any], x: Any) -> dict[str, Array]:
    """The gradient of a scalar function, entry by entry, by the complex step.

    Args:
        f: from a record, or an array, to a number.
        x: where: a record, or an array.

    Returns:
        The gradient of each leaf by flat name; that of an array by the empty name.
    """
    leaves = x.to_flat() if isinstance(x, Record) else {"": x}
    return {name: _leaf_gradient(f, x, leaf) for name, leaf in leaves.items()}


def _leaf_gradient(f: Callable[[Any], Any], x: Any, leaf: Array) -> Array:
    gradient = np.zeros(leaf.shape)
    for index in np.ndindex(leaf.shape):
        unit = np.zeros(leaf.shape)
        unit[index] = 1.0
        direction: Any = unit
        if isinstance(x, Record):
            direction = x.map(lambda a, unit=unit: unit if a is leaf else np.zeros(a.shape))
        gradient[index] = complex_step_derivative(f, x, direction)
    return gradient


def attention_truth(
    forward: Callable[..., Array],
    mha: MultiHeadAttention,
    x: Array,
    d_out: Array,
    mask: Array | None = None,
) -> dict[str, Array]:
    """The gradients of sum(forward(mha, x) * d_out) by the complex step; that of x under "x"."""

    def of_parameters(m: MultiHeadAttention) -> Any:
        return np.sum(forward(m, x.astype(m.wq.dtype), mask) * d_out)

    def of_input(z: Array) -> Any:
        return np.sum(forward(mha.astype(z.dtype), z, mask) * d_out)

    x_gradient = complex_step_gradients(of_input, x)[""]
    return {"x": x_gradient, **complex_step_gradients(of_parameters, mha)}


def _attention_flat(result: tuple[MultiHeadAttentionGrads, Array]) -> dict[str, Array]:
    grads, d_x = result
    return {"x": d_x, **grads.to_flat()}


_ENCODER_CONFIG = ViTConfig(
    patch_h=2, patch_w=2, stride=2, embed_dim=6, hidden_dim=8, head_count=2, num_classes=3
)
_IMAGE = {"in_channels": 3, "height": 4, "width": 6}


def _vit(num_layers: int, seed: int) -> tuple[ViTSpec, Array, Array]:
    """A small model of several layers, an image and a cotangent."""
    rng = np.random.default_rng(seed)
    model = ViTSpec.init(replace(_ENCODER_CONFIG, num_layers=num_layers), **_IMAGE, rng=rng)
    return model, rng.standard_normal((3, 4, 6)), rng.standard_normal(3)


def _order_table() -> Table:
    rows = []
    for num_layers in range(5):
        model, _, _ = _vit(num_layers, seed=num_layers)
        rng = np.random.default_rng(10 + num_layers)
        x, d_out = rng.standard_normal((2, 6, 6))
        right, d_x = encoder_backward(model.encoder, x, d_out)
        literal, literal_d_x = literal_encoder_backward(model.encoder, x, d_out)
        order = [next(i for i, r in enumerate(right) if _same(g, r)) for g in literal]
        rows.append((str(num_layers), str(order), show_exact(difference(literal_d_x, d_x))))
    columns = ("layers", "layer whose gradient stands at 0, 1, ...", "d_x differs by")
    return Table("DEV-1", "The list of layer gradients as published", columns, tuple(rows))


def _same(a: Record, b: Record) -> bool:
    pairs = zip(a.to_flat().values(), b.to_flat().values(), strict=True)
    return all(np.array_equal(p, q) for p, q in pairs)


def descend(
    model: ViTSpec, images: Sequence[Array], targets: Sequence[Array], steps: int, literal: bool
) -> tuple[float, float]:
    """The loss before and after plain gradient descent (rate 0.05) on squared error.

    Args:
        model: where to start.
        images: the inputs.
        targets: the wanted logits.
        steps: the number of steps.
        literal: whether layer i is updated with entry i of upstream's list, or of ours.
    """
    start = _loss(model, images, targets)
    for _ in range(steps):
        total = model.map(np.zeros_like).to_flat()
        for image, target in zip(images, targets, strict=True):
            grads, _ = model.backward(image, (model.forward(image) - target) / len(images))
            if literal:
                grads = replace(grads, d_encoder=grads.d_encoder[::-1])
            total = {name: total[name] + g for name, g in grads.to_flat().items()}
        flat = {name: leaf - 0.05 * total[name] for name, leaf in model.to_flat().items()}
        model = ViTSpec.from_flat(model.config, flat, **_IMAGE)
    return start, _loss(model, images, targets)


def _loss(model: ViTSpec, images: Sequence[Array], targets: Sequence[Array]) -> float:
    errors = [model.forward(x) - t for x, t in zip(images, targets, strict=True)]
    return float(np.mean([np.sum(e * e) / 2 for e in errors]))


def _training_table() -> Table:
    rows = []
    for num_layers in (1, 2, 3):
        model, _, _ = _vit(num_layers, seed=20 + num_layers)
        rng = np.random.default_rng(30 + num_layers)
        images = [*rng.standard_normal((2, 3, 4, 6))]
        targets = [*rng.standard_normal((2, 3))]
        start, right = descend(model, images, targets, 20, literal=False)
        _, wrong = descend(model, images, targets, 20, literal=True)
        rows.append((str(num_layers), *(f"{loss:.2g}" for loss in (start, right, wrong))))
    columns = ("layers", "loss at the start", "after 20 steps", "with the published order")
    return Table("DEV-1", "Gradient descent with either order", columns, tuple(rows))


_SHAPES = ((1, 2, 2, 4), (3, 1, 4, 4), (2, 2, 1, 2), (2, 2, 2, 4), (3, 2, 2, 4), (4, 4, 1, 4),
           (5, 2, 3, 7))  # fmt: skip
_SHAPE_COLUMNS = ("tokens, heads, head_dim, D",)
_GRADIENTS = ("x", "wq", "wk", "wv", "wo")


def _attention_case(
    shape: tuple[int, int, int, int], seed: int
) -> tuple[MultiHeadAttention, Array, Array]:
    n, head_count, head_dim, embed_dim = shape
    rng = np.random.default_rng([seed, *shape])
    mha = random_attention(head_count, head_dim, embed_dim, rng)
    x, d_out = rng.standard_normal((2, n, embed_dim))
    return mha, x, d_out


def _gradient_table() -> Table:
    rows = []
    for shape in _SHAPES:
        mha, x, d_out = _attention_case(shape, seed=0)
        truth = attention_truth(first_release_multi_head_attention, mha, x, d_out)
        published = _attention_flat(first_release_multi_head_attention_backward(mha, x, d_out))
        true = _attention_flat(first_release_multi_head_attention_true_backward(mha, x, d_out))
        ours = _attention_flat(multi_head_attention_backward(mha, x, d_out))
        our_truth = attention_truth(multi_head_attention, mha, x, d_out)
        cells = [show(difference(published[name], truth[name])) for name in _GRADIENTS]
        cells.append(show(max(difference(true[name], truth[name]) for name in _GRADIENTS)))
        cells.append(show(max(difference(ours[name], our_truth[name]) for name in _GRADIENTS)))
        rows.append((", ".join(map(str, shape)), *cells))
    columns = (*_SHAPE_COLUMNS, *(f"d_{name}" for name in _GRADIENTS), "true adjoints", "ours")
    title = "First release: the published backward against the complex step of its own forward"
    return Table("DEV-2", title, columns, tuple(rows))


def _gradient_seeds_table() -> Table:
    shape, rows = (3, 2, 2, 4), []
    errors: dict[str, list[float]] = {name: [] for name in _GRADIENTS}
    jvp_errors, dot_errors = [], []
    for seed in range(30):
        mha, x, d_out = _attention_case(shape, seed=100 + seed)
        published = _attention_flat(first_release_multi_head_attention_backward(mha, x, d_out))
        true = _attention_flat(first_release_multi_head_attention_true_backward(mha, x, d_out))
        for name in _GRADIENTS:
            errors[name].append(difference(published[name], true[name]))
        tangent, dx, _ = _attention_case(shape, seed=200 + seed)
        jvp = np.sum(first_release_multi_head_attention_jvp(mha, x, tangent, dx) * d_out)
        v = {"x": dx, **tangent.to_flat()}
        by_true, by_published = (sum(np.sum(v[k] * g[k]) for k in v) for g in (true, published))
        jvp_errors.append(difference(np.array(jvp), np.array(by_true)))
        dot_errors.append(difference(np.array(jvp), np.array(by_published)))
    named = {f"d_{name}, published": errors[name] for name in _GRADIENTS}
    named["published JVP against the true adjoints"] = jvp_errors
    named["published JVP against the published backward"] = dot_errors
    for name, found in named.items():
        rows.append((name, show(min(found)), show(float(np.median(found))), show(max(found))))
    title = "First release: 30 seeds at 3 tokens, 2 heads, head_dim 2, D 4"
    return Table("DEV-2", title, ("what", "least", "median", "greatest"), tuple(rows))


def leaf_errors(
    spec: type[ViTSpec] | type[ViTClsSpec], head_count: int, num_layers: int = 1
) -> dict[str, float]:
    """The error of each cotangent of a whole first-release model against the complex step.

    Args:
        spec: `ViTSpec` or `ViTClsSpec`, of width 4 with a 2 x 2 grid of patches.
        head_count: the number of heads.
        num_layers: the number of layers.
    """
    config = ViTConfig(
        patch_h=2, patch_w=2, stride=2, embed_dim=4, hidden_dim=5, head_count=head_count,
        num_layers=num_layers, num_classes=3,
    )  # fmt: skip
    rng = np.random.default_rng(40)
    model = spec.init(config, in_channels=2, height=4, width=4, rng=rng)
    image, d_logits = rng.standard_normal((2, 4, 4)), rng.standard_normal(3)
    with first_release_heads():
        grads, d_image = model.backward(image, d_logits)
        truth = complex_step_gradients(
            lambda m: np.sum(m.forward(image.astype(m.dtype)) * d_logits), model
        )
        of_image = complex_step_gradients(
            lambda z: np.sum(model.astype(z.dtype).forward(z) * d_logits), image
        )
    found = {name: difference(g, truth[name]) for name, g in grads.to_flat().items()}
    return {**found, "image": difference(d_image, of_image[""])}


def _leaves_table() -> Table:
    mean, cls = leaf_errors(ViTSpec, 2), leaf_errors(ViTClsSpec, 2)
    rows = tuple((name, show(mean[name]) if name in mean else "", show(cls[name])) for name in cls)
    columns = ("cotangent of", "ViTSpec", "ViTClsSpec")
    title = "First release: whole models, one layer, 2 heads, against the complex step"
    return Table("DEV-2", title, columns, rows)


def upstream_attention_test() -> tuple[MultiHeadAttention, Array, Array, Array]:
    """The inputs of upstream's comparison of CPU and CUDA attention: weights, x, d_out, mask.

    Lean: `NN/Tests/Runtime/Cuda/Attention.lean`, fd2c196 (lines 33-84 and 103).
    """
    wq = np.arange(1, 17).reshape(4, 4) / 100
    wk = wq[:, [1, 0, 3, 2]]
    wv = np.array([[3, 0, 1, 2], [0, 3, 2, 1], [1, 2, 3, 0], [2, 1, 0, 3]]) / 100
    wo = np.array([[5, 0, 1, 2], [0, 5, 2, 1], [1, 2, 5, 0], [2, 1, 0, 5]]) / 100
    x = np.array([[10, -20, 5, 30], [-5, 25, -10, 15]]) / 100
    mask = np.array([[True, True], [False, True]])
    return MultiHeadAttention(2, wq, wk, wv, wo), x, np.ones((2, 4)), mask


def _upstream_test_table() -> Table:
    mha, x, d_out, mask = upstream_attention_test()
    cpu = {
        "forward": first_release_multi_head_attention(mha, x, mask),
        **_attention_flat(first_release_multi_head_attention_backward(mha, x, d_out, mask)),
    }
    cuda = {
        "forward": multi_head_attention(mha, x, mask),
        **_attention_flat(multi_head_attention_backward(mha, x, d_out, mask)),
    }
    rows = []
    for name, value in cpu.items():
        absolute = float(np.abs(value - cuda[name]).max())
        label = name if name == "forward" else f"d_{name}"
        size = float(np.abs(cuda[name]).max())
        relative = show(absolute / size) if size > 1e-12 else ""
        rows.append((label, show(absolute), "0.02", show(size), relative))
    columns = ("what", "largest difference", "tolerance", "largest entry", "relative")
    title = "First release: its CPU and CUDA definitions on the inputs of its own comparison"
    return Table("DEV-2", title, columns, tuple(rows))


def mixing(
    attention: Callable[..., Array], shape: tuple[int, int, int, int]
) -> tuple[float, float]:
    """How far `attention` is from commuting with a permutation, and how far it sees ahead.

    Returns:
        The difference between attention of permuted tokens and permuted attention; and the
        difference that exchanging all tokens but the first makes to row 0 under a causal mask.
    """
    mha, x, other = _attention_case(shape, seed=2)
    n = x.shape[0]
    order = np.roll(np.arange(n), 1)
    permuted = difference(attention(mha, x[order]), attention(mha, x)[order])
    later = np.concatenate([x[:1], other[1:]])
    rows = [attention(mha, tokens, causal_mask(n))[0] for tokens in (x, later)]
    return permuted, difference(*rows)


def _mixing_table() -> Table:
    rows = []
    for shape in ((4, 1, 4, 4), (4, 2, 2, 4), (4, 4, 1, 4), (5, 2, 3, 7), (9, 3, 4, 12)):
        early, ours = (
            mixing(f, shape) for f in (first_release_multi_head_attention, multi_head_attention)
        )
        cells = [show(early[0]), show(ours[0]), show_exact(early[1]), show_exact(ours[1])]
        rows.append((", ".join(map(str, shape)), *cells))
    columns = (*_SHAPE_COLUMNS, "permutation, first release", "ours",
               "causal leak, first release", "ours")  # fmt: skip
    return Table("DEV-3", "Permuted tokens, and tokens of the future", columns, tuple(rows))


def _proved_table() -> Table:
    rows = []
    for shape in _SHAPES:
        mha, x, _ = _attention_case(shape, seed=3)
        embed_dim = shape[-1]
        rng = np.random.default_rng([4, *shape])
        ffn = FeedForward(
            w1=rng.standard_normal((embed_dim, 6)), w2=rng.standard_normal((6, embed_dim)),
            b1=rng.standard_normal(6), b2=rng.standard_normal(embed_dim),
        )  # fmt: skip
        attention = difference(proved_multi_head_attention(mha, x), multi_head_attention(mha, x))
        hidden = difference(proved_feed_forward(ffn, x), feed_forward(ffn, x))
        rows.append((", ".join(map(str, shape)), show(attention), show(hidden)))
    columns = (*_SHAPE_COLUMNS, "attention", "feed-forward")
    title = "Latest: the proved maps against the specification's"
    return Table("DEV-4", title, columns, tuple(rows))


def round_trip(embed_dim: int, hidden_dim: int, seed: int) -> float | None:
    """The change of a layer's output after export and upstream's import; None if refused."""
    config = replace(_ENCODER_CONFIG, embed_dim=embed_dim, hidden_dim=hidden_dim, num_layers=1)
    rng = np.random.default_rng([seed, embed_dim, hidden_dim])
    layer = ViTSpec.init(config, **_IMAGE, rng=rng).encoder.layers[0]
    imported = literal_import(pytorch_state(layer), like=layer)
    x = rng.standard_normal((5, embed_dim))
    if imported is None:
        return None
    return difference(encoder_layer(imported, x), encoder_layer(layer, x))


def _interop_table() -> Table:
    rows = []
    for embed_dim, hidden_dim in ((4, 8), (4, 4), (8, 8), (16, 16)):
        change = round_trip(embed_dim, hidden_dim, seed=50)
        cells = ("refused", "") if change is None else ("accepted", show(change))
        rows.append((f"{embed_dim}, {hidden_dim}", *cells))
    columns = ("D, F", "import", "output differs by")
    title = "Latest: a layer exported to PyTorch names and imported again"
    return Table("DEV-5", title, columns, tuple(rows))


def _grid_table() -> Table:
    rows = []
    for image, patch, stride, padding in (
        (224, 16, 16, 0), (7, 2, 3, 1), (3, 5, 1, 0), (3, 5, 1, 1), (15, 16, 16, 0), (8, 2, 0, 0),
        (0, 3, 1, 0), (0, 3, 1, 2),
    ):  # fmt: skip
        early = first_release_sliding_window_out_dim(image, patch, stride, padding)
        ours = sliding_window_out_dim(image, patch, stride, padding)
        rows.append(tuple(map(str, (image, patch, stride, padding, early, ours))))
    columns = ("extent", "patch", "stride", "padding", "first release", "latest and ours")
    return Table("DEV-6", "Positions along one axis", columns, tuple(rows))


def _softmax_table() -> Table:
    rows = []
    for name, scores, allowed in (
        ("moderate scores", [1.0, -2.0, 3.0], [True, True, False]),
        ("a blocked score of 1000", [1.0, -2.0, 1000.0], [True, True, False]),
        ("an allowed score of 1000", [1000.0, 999.0, 3.0], [True, True, False]),
        ("allowed scores of -1000", [-1000.0, -1001.0, 3.0], [True, True, False]),
        ("nothing allowed", [1.0, -2.0, 3.0], [False, False, False]),
    ):
        row, mask = np.array([scores]), np.array([allowed])
        early = first_release_hard_masked_softmax(row, mask)[0]
        cells = [
            " ".join(f"{w:.4g}" for w in a) for a in (early, hard_masked_softmax(row, mask)[0])
        ]
        rows.append((name, *cells))
    columns = ("row", "first release", "latest and ours")
    return Table("DEV-7", "Hard-masked softmax in float64", columns, tuple(rows))


def _smaller_table() -> Table:
    x = 1e6 + np.random.default_rng(60).standard_normal((50, 16))
    centred = x - x.mean(axis=-1, keepdims=True)
    denominators = first_release_attention_scale_denom(0), attention_scale_denom(0, x.dtype)
    rows = [("DEV-8", "denominator at head_dim 0", *(f"{d:g}" for d in denominators))]
    for name, values in (("centred, as layerNorm's are", centred), ("about 1e6", x)):
        truth = values.astype(np.longdouble).var(axis=-1, keepdims=True).astype(np.float64)
        found = first_release_variance(values), values.var(axis=-1, keepdims=True)
        errors = [difference(v, truth) for v in found]
        # How badly it cancels depends on the order of summation; that it does, does not.
        cells = ["> 1e-6" if error > 1e-6 else show(error) for error in errors]
        rows.append(("DEV-9", f"error of the variance of rows {name}", *cells))
    columns = ("entry", "what", "first release", "latest and ours")
    return Table("DEV-8, DEV-9", "The smaller ones", columns, tuple(rows))


if __name__ == "__main__":
    print(deviation_report())
