"""The edges of the definitions: who is at which, and a case of the Lean mirror at each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from hypothesis import strategies as st

from vitspec.config import ViTConfig
from vitspec.geometry import patch_count, patch_grid
from vitspec.testing.families import Case
from vitspec.testing.strategies.sizes import seeds

_ORDINARY = Case(
    "vit",
    ViTConfig(
        patch_h=2, patch_w=3, stride=2, padding=1, embed_dim=6, hidden_dim=5, head_count=2,
        num_layers=2, num_classes=4,
    ),
    in_channels=2, height=6, width=7, seed=0,
)  # fmt: skip
"""An ordinary model, in which nothing is square and no edge is near."""


@dataclass(frozen=True)
class Edge:
    """A situation at the edge of the definitions.

    Attributes:
        name: what it is.
        holds: whether a case is in this situation.
        changes: to an ordinary case and its configuration, which put it there.
        specs: the models that can be in it.
    """

    name: str
    holds: Callable[[Case], bool]
    changes: Mapping[str, Any] = field(repr=False)
    specs: Collection[str] = ("vit", "vit-cls")

    def case(self, spec: str, seed: int = 0) -> Case:
        """The case that exemplifies it."""
        own = {n: v for n, v in self.changes.items() if hasattr(_ORDINARY.config, n)}
        others = {n: v for n, v in self.changes.items() if n not in own}
        config = replace(_ORDINARY.config, **own)
        return replace(_ORDINARY, spec=spec, config=config, seed=seed, **others)


class _Axis(NamedTuple):
    """An image's axis and the windows on it."""

    extent: int
    patch: int
    stride: int
    padding: int
    windows: int


def _tokens(case: Case) -> int:
    return patch_count(case.config, case.height, case.width)


def _an_axis(holds: Callable[[_Axis], bool]) -> Callable[[Case], bool]:
    """Whether it holds of the height or of the width, and there are tokens."""

    def either(case: Case) -> bool:
        c, grid = case.config, patch_grid(case.config, case.height, case.width)
        axes = zip((case.height, case.width), (c.patch_h, c.patch_w), grid, strict=True)
        return min(grid) > 0 and any(
            holds(_Axis(extent, patch, c.stride, c.padding, windows))
            for extent, patch, windows in axes
        )

    return either


def _one_pixel_short(case: Case) -> bool:
    c = case.config
    axes = ((case.height, c.patch_h), (case.width, c.patch_w))
    return any(extent + 2 * c.padding == patch - 1 for extent, patch in axes)


_CLS = ("vit-cls",)

EDGES = {edge.name: edge for edge in (
    Edge("no token, patch larger than the padded image",
         lambda c: c.config.stride > 0 and min(c.height, c.width) > 0 and _tokens(c) == 0,
         {"patch_h": 11, "patch_w": 12}, _CLS),
    Edge("no token, one pixel too few", _one_pixel_short, {"patch_h": 9}, _CLS),
    Edge("no token, stride 0", lambda c: c.config.stride == 0, {"stride": 0}, _CLS),
    Edge("no token, image without rows", lambda c: c.height == 0 and _tokens(c) == 0,
         {"height": 0, "patch_h": 3}, _CLS),
    Edge("no token, image without columns", lambda c: c.width == 0 and _tokens(c) == 0,
         {"width": 0, "patch_w": 3}, _CLS),
    Edge("image without rows, padding holds a patch",
         lambda c: c.height == 0 and _tokens(c) > 0, {"height": 0}),
    Edge("image without columns, padding holds a patch",
         lambda c: c.width == 0 and _tokens(c) > 0, {"width": 0, "patch_w": 2}),
    Edge("image smaller than the patch, padding makes up for it",
         _an_axis(lambda a: a.extent < a.patch), {"height": 1, "patch_h": 3}),
    Edge("window exactly as large as the padded axis",
         _an_axis(lambda a: a.extent + 2 * a.padding == a.patch), {"patch_h": 8}),
    Edge("padding at least the patch", _an_axis(lambda a: a.padding >= a.patch), {"padding": 3}),
    Edge("pixels beyond the last window",
         _an_axis(lambda a: (a.windows - 1) * a.stride + a.patch < a.padding + a.extent),
         {"padding": 0, "height": 7}),
    Edge("stride larger than the patch",
         _an_axis(lambda a: a.stride > a.patch and a.windows > 1), {"stride": 4}),
    Edge("overlapping windows",
         _an_axis(lambda a: a.stride < a.patch and a.windows > 1), {"stride": 1}),
    Edge("heads do not divide the width",
         lambda c: 0 < c.config.inner_dim < c.config.embed_dim, {"embed_dim": 7}),
    Edge("more heads than width", lambda c: c.config.head_dim == 0, {"head_count": 7}),
    Edge("no layers", lambda c: c.config.num_layers == 0, {"num_layers": 0}),
    Edge("one row", lambda c: _tokens(c) + (c.spec == "vit-cls") == 1,
         {"patch_h": 8, "patch_w": 9}, ("vit",)),
    Edge("embed_dim 1", lambda c: c.config.embed_dim == 1, {"embed_dim": 1, "head_count": 1}),
    Edge("constant rows in the layer norms", lambda c: c.scale == 0, {"scale": 0.0}),
)}  # fmt: skip
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
