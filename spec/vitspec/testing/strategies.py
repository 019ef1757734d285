"""Hypothesis strategies: well-formed and ill-formed configurations, image sizes, arrays, points.

Every size is drawn by itself and shrinks to the smallest that still fails. The numbers in an array
are never drawn: they are normal, from one drawn seed that shrinks to 0. So an example is small to
print, it is the same on every machine, and nothing hides in entries that happen to be 0 or alike.

Where numbers matter, `values` chooses them (see `VALUES`); None draws the kind as well:

| values | arrays (`images`, `cotangents`, `arrays`) | parameters |
| --- | --- | --- |
| `normal` | normal | as `ViTSpec.init` draws them |
| `offset` | normal about 100 | the tokens are about 100: a layer norm has to subtract first |
| `tiny` | normal times 1e-4 | the tokens are about 1e-4: a layer norm's epsilon counts |
| `large` | normal times 30 | queries and keys are times 30: the softmax saturates |
| `ties` | -1, 0 or 1 | patch tokens alike; feature 0 of each hidden layer is at the ReLU's kink |

`degenerate=True` adds what Lean's definitions allow and few programs do: stride 0, images without
rows or columns, and (in `cases`) an encoder whose input is exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from vitspec.config import ViTConfig
from vitspec.errors import NotWellFormed
from vitspec.geometry import patch_count, patch_grid
from vitspec.models.parameters import check_model, parameter_shapes, random_parameters
from vitspec.testing.cases import MODELS, Case
from vitspec.typing import Array

if TYPE_CHECKING:
    from vitspec.testing.reference import Point

Size = tuple[int, int, int]
"""An image's channels, height and width."""

seeds = st.integers(0, 2**32 - 1)
specs = st.sampled_from(sorted(MODELS))

VALUES = ("normal", "offset", "tiny", "large", "ties")
"""The kinds of numbers that an array may hold."""


# ---- configurations and sizes ------------------------------------------------------------------


@st.composite
def configs(
    draw: Any,
    /,
    min_embed_dim: int = 1,
    max_layers: int = 3,
    max_extent: int = 9,
    *,
    degenerate: bool = False,
    **fields: Any,
) -> ViTConfig:
    """Small well-formed configurations: every field free, so heads need not divide the width.

    Args:
        draw: given by Hypothesis.
        min_embed_dim: the smallest width of a token.
        max_layers: the largest number of layers; the smallest is 0.
        max_extent: the largest width; patches and strides go up to half of it.
        degenerate: whether the stride may be 0.
        **fields: fields of the configuration to draw otherwise: a strategy or a number each, such
            as `padding=0` or `head_count=st.sampled_from([1, 3])`.
    """
    half = max(max_extent // 2, 1)
    patch = st.integers(1, half)
    drawn = {
        "patch_h": patch,
        "patch_w": patch,
        "stride": st.sampled_from([*range(1, half + 1), 0]) if degenerate else patch,
        "padding": st.integers(0, 2),
        "embed_dim": st.integers(min_embed_dim, max_extent),
        "hidden_dim": st.integers(1, max_extent),
        "head_count": st.integers(1, 4),
        "num_layers": st.integers(0, max_layers),
        "num_classes": st.integers(1, 4),
    } | fields
    return ViTConfig(**{name: _draw(draw, how) for name, how in drawn.items()})


def _draw(draw: Any, how: Any) -> Any:
    return draw(how) if isinstance(how, st.SearchStrategy) else how


@st.composite
def image_sizes(
    draw: Any,
    /,
    config: ViTConfig,
    spec: str = "vit",
    *,
    max_extent: int = 9,
    max_channels: int = 3,
    degenerate: bool = False,
) -> Size:
    """Channels, height and width of images for which the model exists.

    Among them are exactly one patch, several patches with and without rows and columns left over,
    images smaller than the patch (where the padding makes up for it) and, for "vit-cls", images
    into which no patch fits.

    Args:
        draw: given by Hypothesis.
        config: a well-formed configuration.
        spec: "vit" (at least one patch fits) or "vit-cls".
        max_extent: the largest height and width, or as large as two patches with what is left over.
        max_channels: the largest number of channels.
        degenerate: whether there may be no row or no column.

    Raises:
        NotWellFormed: the configuration is not, or no image has a token that "vit" needs.
    """
    config.check_well_formed()
    if spec == "vit" and config.stride == 0:
        raise NotWellFormed(repr(config), ["h_tok: with stride 0 no image has a token"])

    def extent(patch: int) -> int:
        return draw(_extents(patch, config, spec, max_extent, degenerate))

    channels = draw(st.integers(1, max_channels))
    return channels, extent(config.patch_h), extent(config.patch_w)


@st.composite
def _extents(
    draw: Any, /, patch: int, config: ViTConfig, spec: str, max_extent: int, degenerate: bool
) -> int:
    """Heights, or widths: windows and pixels beyond the last are drawn apart, and shrink apart.

    Every extent drawn by itself would shrink to a large patch on a small image as readily as to
    the opposite: to make either smaller, the other would have to change at the same time.
    """
    s, slack = config.stride, patch - 2 * config.padding  # slack: the extent of one window
    low = 0 if degenerate else 1
    if s == 0:
        return draw(st.integers(low, max_extent))
    fewest = max(1, 1 - (slack + s - 1 - low) // s)  # windows on at least `low` pixels
    limit = max(max_extent, slack + 2 * s - 1)
    most = (limit - slack) // s + 1
    may_have_none = spec == "vit-cls" and slack > low
    # One more than the most stands for none, which is not the simplest.
    drawn = draw(st.integers(fewest, most + may_have_none))
    if drawn > most:
        return slack - draw(st.integers(1, slack - low))
    extent = slack + (drawn - 1) * s
    return extent + draw(st.integers(max(0, low - extent), min(s - 1, limit - extent)))


@st.composite
def cases(
    draw: Any,
    /,
    spec: str | None = None,
    min_embed_dim: int = 1,
    max_layers: int = 3,
    max_extent: int = 9,
    *,
    degenerate: bool = False,
    **fields: Any,
) -> Case:
    """Cases of either model (or of `spec`); the mean-pooling model always has a token.

    A case prints as one line and makes its model, image and cotangents from its seed. The arguments
    are those of `configs` and `image_sizes`.
    """
    spec = spec or draw(specs)
    may_have_no_token = degenerate and spec != "vit"
    config = draw(
        configs(min_embed_dim, max_layers, max_extent, degenerate=may_have_no_token, **fields)
    )
    C, H, W = draw(image_sizes(config, spec, max_extent=max_extent, degenerate=degenerate))
    scale = draw(st.sampled_from([1.0, 0.01, 0.0])) if degenerate else 1.0
    return Case(spec, config, C, H, W, draw(seeds), scale)


# ---- arrays ------------------------------------------------------------------------------------


@st.composite
def arrays(
    draw: Any,
    /,
    shape: tuple[int, ...],
    values: str | None = "normal",
    dtype: Any = np.float64,
) -> Array:
    """Fresh numbers of one shape; `values` is one of `VALUES`, or None for any of them."""
    kind = _kind(draw, values)
    rng = np.random.default_rng(draw(seeds))
    return _numbers(kind, shape, rng).astype(dtype)


def images(
    size: Size, batch: int | None = None, values: str | None = "normal", dtype: Any = np.float64
) -> st.SearchStrategy[Array]:
    """Images of one size: (C, H, W), or (batch, C, H, W)."""
    return arrays(_with_batch(size, batch), values, dtype)


def cotangents(
    config: ViTConfig,
    batch: int | None = None,
    values: str | None = "normal",
    dtype: Any = np.float64,
) -> st.SearchStrategy[Array]:
    """Cotangents of the logits: (K,), or (batch, K)."""
    return arrays(_with_batch((config.num_classes,), batch), values, dtype)


@st.composite
def parameters(
    draw: Any,
    /,
    config: ViTConfig,
    size: Size,
    spec: str = "vit",
    values: str | None = "normal",
    dtype: Any = np.float64,
) -> dict[str, Array]:
    """The parameters of a model by flat name; `values` is one of `VALUES`, or None for any."""
    size = check_model(config, *size, cls=spec == "vit-cls")
    shapes = parameter_shapes(config, *size, cls=spec == "vit-cls")
    kind = _kind(draw, values)
    flat = random_parameters(shapes, np.random.default_rng(draw(seeds)), np.dtype(np.float64))
    _change_parameters(kind, flat)
    return {name: leaf.astype(dtype) for name, leaf in flat.items()}


@st.composite
def points(
    draw: Any,
    /,
    spec: str | None = None,
    *,
    max_batch: int = 3,
    values: str | None = "normal",
    **sizes: Any,
) -> Point:
    """Models with parameters, a batch of images and a cotangent, as the checks evaluate them.

    Args:
        draw: given by Hypothesis.
        spec: "vit" or "vit-cls"; None for either.
        max_batch: the largest batch.
        values: of the parameters; images and cotangents are normal.
        **sizes: as in `cases`.
    """
    from vitspec.testing.reference import Point

    case = draw(cases(spec, **sizes))
    batch = draw(st.integers(1, max_batch))
    return Point(
        case.spec,
        case.config,
        draw(parameters(case.config, case.image_shape, case.spec, values)),
        draw(images(case.image_shape, batch)),
        draw(cotangents(case.config, batch)),
    )


def _with_batch(shape: tuple[int, ...], batch: int | None) -> tuple[int, ...]:
    return shape if batch is None else (batch, *shape)


def _kind(draw: Any, values: str | None) -> str:
    if values is None:
        return draw(st.sampled_from(VALUES))
    if values not in VALUES:
        raise ValueError(f"values: expected one of {', '.join(VALUES)} or None, got {values!r}")
    return values


def _numbers(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if kind == "ties":
        return rng.integers(-1, 1, shape, endpoint=True).astype(np.float64)
    offset, scale = {"offset": (100, 1), "tiny": (0, 1e-4), "large": (0, 30)}.get(kind, (0, 1))
    return offset + scale * rng.standard_normal(shape)


def _change_parameters(kind: str, flat: dict[str, Array]) -> None:
    """Make fresh parameters those of a kind, in place."""
    tokens = [flat[n] for n in ("patch_embed.kernel", "patch_embed.bias", "cls_token") if n in flat]
    positions = flat["pos_enc.pos"]
    if kind == "offset":
        positions += 100
    elif kind == "tiny":
        for leaf in (*tokens, positions):
            leaf *= 1e-4
    elif kind == "large":
        for name in flat:
            if name.endswith((".wq", ".wk")):
                flat[name] *= 30
    elif kind == "ties":
        flat["patch_embed.kernel"][...] = 0
        positions[...] = positions[-1]
        for name in flat:
            if name.endswith((".w1", ".b1")):
                flat[name][..., 0] = 0


# ---- ill-formed configurations -----------------------------------------------------------------

_ZERO_FIELD = {
    "patchH_ne0": "patch_h",
    "patchW_ne0": "patch_w",
    "embedDim_pos": "embed_dim",
    "hiddenDim_pos": "hidden_dim",
    "headCount_pos": "head_count",
    "numClasses_ne0": "num_classes",
    "h_inC": "in_channels",
}
"""The rules that one number breaks by being 0."""

RULES = ("nat", *_ZERO_FIELD, "h_tok")
"""The label of every rule that a ViT may break, in the order in which they are reported."""

NOT_NATURAL = (-1, 2**31, 1.5, "3", None, True)
"""What is refused where a natural number is expected."""


@dataclass(frozen=True)
class IllFormed:
    """A model that must be refused, as plain data: `ViTConfig` itself refuses some of it.

    Attributes:
        spec: "vit" or "vit-cls".
        fields: of `ViTConfig`, by name.
        size: `in_channels`, `height`, `width`.
        labels: of the rules that are broken, all of them.
    """

    spec: str
    fields: Mapping[str, Any]
    size: Mapping[str, Any]
    labels: tuple[str, ...]

    def check(self) -> None:
        """Raise the specification's `NotWellFormed`."""
        check_model(ViTConfig(**self.fields), **self.size, cls=self.spec == "vit-cls")


@st.composite
def ill_formed_configs(
    draw: Any, /, rule: str | None = None, spec: str | None = None, max_extent: int = 9
) -> IllFormed:
    """Models that break a rule and no other.

    Args:
        draw: given by Hypothesis.
        rule: one of `RULES`; None for any, and for several that may be broken at once.
        spec: "vit" or "vit-cls"; None for either. Only "vit" can break `h_tok`.
        max_extent: as in `configs`.
    """
    if rule is not None and rule not in RULES:
        raise ValueError(f"rule: expected one of {', '.join(RULES)}, got {rule!r}")
    if rule == "h_tok" and spec == "vit-cls":
        raise ValueError("rule h_tok: the model with a CLS token needs no other")
    if rule is None:
        rules = st.sampled_from([r for r in RULES if spec != "vit-cls" or r != "h_tok"])
        labels = {draw(rules)}
        if labels <= _ZERO_FIELD.keys():  # the others hide each other
            labels |= draw(st.just(set()) | st.sets(st.sampled_from(sorted(_ZERO_FIELD))))
    else:
        labels = {rule}
    case = draw(cases("vit" if "h_tok" in labels else spec, max_extent=max_extent))
    fields, size = asdict(case.config), case.size
    for label in labels & _ZERO_FIELD.keys():
        name = _ZERO_FIELD[label]
        (size if name in size else fields)[name] = 0
    if "h_tok" in labels:
        name = draw(st.sampled_from(["patch_h", "patch_w", "stride"]))
        excess = draw(st.integers(1, max_extent))  # always drawn, or stride 0 would be shorter
        extent = size["height" if name == "patch_h" else "width"] + 2 * fields["padding"]
        fields[name] = 0 if name == "stride" else extent + excess
    if "nat" in labels:
        name = draw(st.sampled_from([*fields, *size]))
        (size if name in size else fields)[name] = draw(st.sampled_from(NOT_NATURAL))
    return IllFormed(case.spec, fields, size, tuple(r for r in RULES if r in labels))


# ---- edge cases --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edge:
    """A situation at the edge of the definitions.

    Attributes:
        name: what it is.
        holds: whether a case is in this situation.
        changes: to the fields of an ordinary case, which put it there.
        specs: the models that can be in it.
    """

    name: str
    holds: Callable[[Case], bool]
    changes: Mapping[str, Any] = field(repr=False)
    specs: Collection[str] = ("vit", "vit-cls")

    def case(self, spec: str, seed: int = 0) -> Case:
        """The case that exemplifies it."""
        size = {n: self.changes.get(n, v) for n, v in _ORDINARY_SIZE.items()}
        fields = {n: self.changes.get(n, v) for n, v in _ORDINARY_FIELDS.items()}
        scale = self.changes.get("scale", 1.0)
        return Case(spec, ViTConfig(**fields), **size, seed=seed, scale=scale)


_ORDINARY_FIELDS = {
    "patch_h": 2, "patch_w": 3, "stride": 2, "padding": 1, "embed_dim": 6, "hidden_dim": 5,
    "head_count": 2, "num_layers": 2, "num_classes": 4,
}  # fmt: skip
_ORDINARY_SIZE = {"in_channels": 2, "height": 6, "width": 7}
"""An ordinary model, in which nothing is square and no edge is near."""


def _tokens(case: Case) -> int:
    return patch_count(case.config, case.height, case.width)


def _rows(case: Case) -> int:
    return _tokens(case) + (case.spec == "vit-cls")


def _axes(case: Case) -> list[tuple[int, int, int]]:
    """(extent, patch, number of positions) of each axis."""
    out_h, out_w = patch_grid(case.config, case.height, case.width)
    return [
        (case.height, case.config.patch_h, out_h),
        (case.width, case.config.patch_w, out_w),
    ]


def _fits_exactly(case: Case) -> bool:
    padding = case.config.padding
    return _tokens(case) > 0 and any(
        extent + 2 * padding == patch for extent, patch, _ in _axes(case)
    )


def _one_pixel_short(case: Case) -> bool:
    padding = case.config.padding
    return any(extent + 2 * padding == patch - 1 for extent, patch, _ in _axes(case))


def _remainder(case: Case) -> bool:
    """Whether pixels at the bottom or right are beyond the last window."""
    s, p = case.config.stride, case.config.padding
    return _tokens(case) > 0 and any(
        (out - 1) * s + patch < p + extent for extent, patch, out in _axes(case)
    )


def _gaps(case: Case) -> bool:
    s = case.config.stride
    return _tokens(case) > 0 and any(s > patch and out > 1 for _, patch, out in _axes(case))


def _overlaps(case: Case) -> bool:
    s = case.config.stride
    return _tokens(case) > 0 and any(s < patch and out > 1 for _, patch, out in _axes(case))


_CLS = ("vit-cls",)

EDGES = {
    edge.name: edge
    for edge in (
        Edge(
            "no token, patch larger than the padded image",
            lambda c: c.config.stride > 0 and min(c.height, c.width) > 0 and _tokens(c) == 0,
            {"patch_h": 11, "patch_w": 12},
            _CLS,
        ),
        Edge("no token, one pixel too few", _one_pixel_short, {"patch_h": 9}, _CLS),
        Edge("no token, stride 0", lambda c: c.config.stride == 0, {"stride": 0}, _CLS),
        Edge(
            "no token, image without rows",
            lambda c: c.height == 0 and _tokens(c) == 0,
            {"height": 0, "patch_h": 3},
            _CLS,
        ),
        Edge(
            "no token, image without columns",
            lambda c: c.width == 0 and _tokens(c) == 0,
            {"width": 0, "patch_w": 3},
            _CLS,
        ),
        Edge(
            "image without rows, padding holds a patch",
            lambda c: c.height == 0 and _tokens(c) > 0,
            {"height": 0},
        ),
        Edge(
            "image without columns, padding holds a patch",
            lambda c: c.width == 0 and _tokens(c) > 0,
            {"width": 0, "patch_w": 2},
        ),
        Edge(
            "image smaller than the patch, padding makes up for it",
            lambda c: _tokens(c) > 0 and any(extent < patch for extent, patch, _ in _axes(c)),
            {"height": 1, "patch_h": 3},
        ),
        Edge("window exactly as large as the padded axis", _fits_exactly, {"patch_h": 8}),
        Edge(
            "padding at least the patch",
            lambda c: (
                _tokens(c) > 0 and c.config.padding >= min(c.config.patch_h, c.config.patch_w)
            ),
            {"padding": 3},
        ),
        Edge("pixels beyond the last window", _remainder, {"padding": 0, "height": 7}),
        Edge("stride larger than the patch", _gaps, {"stride": 4}),
        Edge("overlapping windows", _overlaps, {"stride": 1}),
        Edge(
            "heads do not divide the width",
            lambda c: c.config.head_dim > 0 and c.config.inner_dim < c.config.embed_dim,
            {"embed_dim": 7},
        ),
        Edge("more heads than width", lambda c: c.config.head_dim == 0, {"head_count": 7}),
        Edge("no layers", lambda c: c.config.num_layers == 0, {"num_layers": 0}),
        Edge("one row", lambda c: _rows(c) == 1, {"patch_h": 8, "patch_w": 9}, ("vit",)),
        Edge("embed_dim 1", lambda c: c.config.embed_dim == 1, {"embed_dim": 1, "head_count": 1}),
        Edge("constant rows in the layer norms", lambda c: c.scale == 0, {"scale": 0.0}),
    )
}
"""The situations at the edge that a model can be in, by name. `docs/specification.md` says what
happens in each."""

EDGE_CASES = {
    f"{spec}, {edge.name}": edge.case(spec) for edge in EDGES.values() for spec in edge.specs
}
"""A case in each of these situations, for each model that can be in it:

    @pytest.mark.parametrize("case", EDGE_CASES.values(), ids=EDGE_CASES)
"""


@st.composite
def edge_cases(draw: Any, /, spec: str | None = None) -> Case:
    """The cases of `EDGE_CASES`, with fresh numbers."""
    names = [name for name, case in EDGE_CASES.items() if spec in (None, case.spec)]
    return replace(EDGE_CASES[draw(st.sampled_from(names))], seed=draw(seeds))


def edges_of(case: Case) -> tuple[str, ...]:
    """The names of the edges that a case is at; `hypothesis.event` counts them."""
    return tuple(edge.name for edge in EDGES.values() if edge.holds(case))
