"""Where an implementation is looked at, and what it and the specification say there.

Four small models of each kind, chosen so that every mistake of the catalogue shows in one of them
and no two look alike in all: several heads, layers, channels and images, nothing square, padding,
overlap, a remainder, heads that do not divide the width, and small variances, where an epsilon
counts. What an implementation does not support is replaced by the nearest thing that it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from vitspec.config import ViTConfig
from vitspec.testing import checks, implementations
from vitspec.testing.cases import Case
from vitspec.testing.checks import CASE_RUNS
from vitspec.testing.kinds import KINDS, SMOKE_CONFIGS, AnyCase, Config
from vitspec.testing.practical_cases import VisionTransformerCase
from vitspec.testing.precision import PRECISIONS, Precision
from vitspec.testing.reference import Flat, Point, evaluate_spec, price_spec
from vitspec.testing.tolerance import Grade, Price, grade
from vitspec.typing import Array
from vitspec.vision_transformer_config import VisionTransformerConfig

CASES = (
    Case(
        "", ViTConfig(patch_h=3, patch_w=2, stride=2, padding=1, embed_dim=10, hidden_dim=7,
                      head_count=3, num_layers=2, num_classes=4),
        in_channels=2, height=6, width=6, seed=0, batch=2,
    ),
    Case(
        "", ViTConfig(patch_h=2, patch_w=3, stride=1, padding=0, embed_dim=7, hidden_dim=9,
                      head_count=2, num_layers=1, num_classes=3),
        in_channels=3, height=3, width=6, seed=0, scale=0.01,
    ),
    Case(
        "", ViTConfig(patch_h=2, patch_w=4, stride=3, padding=2, embed_dim=8, hidden_dim=5,
                      head_count=4, num_layers=3, num_classes=5),
        in_channels=2, height=7, width=4, seed=0, scale=0.1, batch=3,
    ),
    Case(
        "", ViTConfig(patch_h=2, patch_w=2, stride=2, padding=0, embed_dim=6, hidden_dim=12,
                      head_count=2, num_layers=2, num_classes=4),
        in_channels=3, height=4, width=6, seed=0, batch=2,
    ),
)  # fmt: skip
"""The last is what everybody supports. The scale is that of the encoder's input."""


PRACTICAL_CASES = (
    VisionTransformerCase(
        VisionTransformerConfig(image_h=5, image_w=6, in_channels=2, patch_h=2, patch_w=3,
                                embed_dim=6, hidden_dim=7, head_count=3, num_layers=2,
                                num_classes=4, layer_scale=True),
        seed=0, batch=2,
    ),
    VisionTransformerCase(
        VisionTransformerConfig(image_h=6, image_w=5, in_channels=3, patch_h=2, patch_w=2,
                                embed_dim=8, hidden_dim=9, head_count=2, num_layers=1,
                                num_classes=3, layer_norm_eps=1e-6, pool="cls_mean",
                                activation="relu"),
        seed=0, values="tiny",
    ),
    VisionTransformerCase(
        VisionTransformerConfig(image_h=6, image_w=7, in_channels=2, patch_h=3, patch_w=2,
                                embed_dim=8, hidden_dim=5, head_count=4, num_layers=3,
                                num_classes=5, pool="mean", activation="gelu_tanh"),
        seed=0, values="tiny", batch=3,
    ),
    VisionTransformerCase(
        VisionTransformerConfig(image_h=4, image_w=6, in_channels=3, patch_h=2, patch_w=2,
                                embed_dim=6, hidden_dim=12, head_count=2, num_layers=2,
                                num_classes=4),
        seed=0, batch=2,
    ),
)  # fmt: skip
"""The last is what everybody supports."""

INTERPOLATED = VisionTransformerCase(
    VisionTransformerConfig(image_h=6, image_w=6, in_channels=2, patch_h=2, patch_w=2, embed_dim=6,
                            hidden_dim=12, head_count=2, num_layers=1, num_classes=4),
    seed=0, batch=2, image_size=(10, 4),
)  # fmt: skip
"""For what interpolates positions: more rows of patches, fewer columns."""


def cases(
    implementation: Any, seed: int = 0, config: Config | None = None
) -> tuple[list[AnyCase], list[str]]:
    """The cases that the implementation supports, and in words what had to be replaced."""
    chosen: list[AnyCase] = []
    notes = []
    kind = KINDS[implementation.spec]
    for i, case in enumerate(_cases_of(implementation.spec)):
        case = replace(case, seed=4 * seed + i)
        wishes = [kind.with_config(case, config)] if config else [*_friendlier(case)]
        near = implementations.closest(implementation, case.config)
        if not config and near != case.config:
            wishes.insert(1, kind.with_config(case, near))
        for wish in wishes:
            reason = implementations.why_unsupported(implementation, wish.config)
            if reason is None:
                chosen.append(wish)
                break
            if wish is wishes[0]:
                notes.append(f"{implementation.name} does not support {wish.config!r}: {reason}")
    if other := _interpolated(implementation, seed, config):
        chosen.insert(1, other)
    if not chosen:
        raise implementations.AdapterError(
            f"{implementation.name} supports none of the configurations that were tried; "
            "name one that it does: --config"
        )
    return chosen, notes


def _cases_of(spec: str) -> tuple[AnyCase, ...]:
    if spec == VisionTransformerCase.spec:
        return PRACTICAL_CASES
    return tuple(replace(case, spec=spec) for case in CASES)


def _interpolated(implementation: Any, seed: int, config: Config | None) -> AnyCase | None:
    """The case with images of another size, if the implementation takes it."""
    i, case = implementation, replace(INTERPOLATED, seed=seed)
    if not implementations.takes_other_sizes(i):
        return None
    wish = config or implementations.closest(i, case.config)
    near = case if wish == case.config else KINDS[case.spec].with_config(case, wish)
    reason = implementations.why_unsupported(i, near.config)
    reason = reason or implementations.why_size_unsupported(i, near.config, near.image_shape[1:])
    return None if reason else near


def _friendlier(case: AnyCase) -> Iterator[AnyCase]:
    """The case, then the same with one after the other of its oddities removed."""
    yield case
    if isinstance(case, VisionTransformerCase):
        for config in KINDS[case.spec].smoke_configs[:-1]:
            yield replace(case, config=config)
        return
    c = case.config
    c = replace(c, embed_dim=-(-c.embed_dim // c.head_count) * c.head_count)
    yield replace(case, config=c)
    c = replace(c, padding=0)
    yield replace(case, config=c, height=case.height + 2, width=case.width + 2)
    side = c.patch_h
    c = replace(c, patch_w=side, stride=side)
    yield replace(case, config=c, height=2 * side, width=3 * side)
    yield replace(case, config=c, height=3 * side, width=3 * side)
    for c in SMOKE_CONFIGS:
        yield replace(case, config=c, height=2 * c.patch_h, width=3 * c.patch_w)


@dataclass(frozen=True)
class Reference:
    """The specification at one point: its results in float64, and what a precision costs them."""

    point: Point
    truth: Flat
    prices: dict[str, Price]


@lru_cache(maxsize=16)
def _reference(case: AnyCase, precision: str, taps: bool) -> Reference:
    point = checks.case_trial(None, PRECISIONS[precision], case).point
    rng = np.random.default_rng([case.seed, 3])
    truth = evaluate_spec(point, taps=taps)
    prices = price_spec(point, truth, PRECISIONS[precision], CASE_RUNS, rng, taps=taps)
    return Reference(point, truth, prices)


class Sample:
    """An implementation and the specification at one point.

    Args:
        implementation: what is diagnosed.
        case: the point.
        precision: what it computes in.
    """

    def __init__(self, implementation: Any, case: AnyCase, precision: Precision) -> None:
        self.case, self.precision = case, precision
        point = checks.case_trial(implementation, precision, case).point
        found = implementations.forward(implementation, point, precision)
        taps = found.keys() - {"logits"}
        if implementations.has_vjp(implementation):
            found |= implementations.vjp(implementation, point, precision)
        reference = _reference(case, precision.name, bool(taps))
        self.point, self.truth, self.prices = reference.point, reference.truth, reference.prices
        fitting = {n for n in taps & self.truth.keys() if found[n].shape == self.truth[n].shape}
        self.strange_taps = sorted(taps - fitting)
        self.taps = [name for name in self.truth if name in fitting]
        self.found: dict[str, Array] = {
            name: np.asarray(value, np.float64)
            for name, value in found.items()
            if name not in self.strange_taps
        }
        self.tensors = [name for name in self.truth if name in found and name not in taps]

    @cached_property
    def grades(self) -> dict[str, Grade]:
        """The verdicts on all tensors and taps, against the specification."""
        return {
            name: grade(name, self.found[name], self.truth[name], self.prices[name])
            for name in (*self.taps, *self.tensors)
        }

    @cached_property
    def relative_prices(self) -> dict[str, float]:
        """What the precision costs each tensor, relative to its size.

        A tensor that only noise is left of has no size; it gets the largest of the others' prices.
        """
        sizes = {name: float(np.linalg.norm(self.truth[name])) for name in self.tensors}
        own = {
            name: self.prices[name].norm / sizes[name]
            for name in self.tensors
            if sizes[name] > 4 * self.prices[name].norm
        }
        general = max(own.values(), default=self.precision.u)
        return {name: own.get(name, general) for name in self.tensors}

    def rough_ratio(self, name: str, found: Array, deviating: Array) -> float:
        """About what the grade's ratio would be if `deviating` were the truth.

        Its price is taken from the truth's, which costs nothing. It may be wrong by some factor,
        so what comes near is graded by a price of its own.
        """
        difference = found - deviating
        if not np.isfinite(difference).all():
            return np.inf
        size, error = float(np.linalg.norm(deviating)), float(np.linalg.norm(difference))
        noise = max(self.prices[name].norm, self.relative_prices[name] * size)
        if error == 0:
            return 0.0
        bound = 4 * noise + 4 * self.precision.u * size
        return error / bound if bound else np.inf

    @property
    def is_interpolated(self) -> bool:
        """Whether the images have another size than the configuration's."""
        return getattr(self.case, "image_size", None) is not None

    @property
    def quantities(self) -> dict[str, float]:
        """What a stray factor may be, by name."""
        c, (B, _, H, W) = self.case.config, self.point.images.shape
        kind = KINDS[self.case.spec]
        rows, columns = kind.grid(c, H, W)
        patches, cls = rows * columns, kind.cls_rows(c)
        return {
            "the number of tokens": patches + cls,
            **({"the number of patches": patches} if cls else {}),
            "the batch size": B,
            "head_dim": c.head_dim,
            "sqrt(head_dim)": c.head_dim**0.5,
            "head_count": c.head_count,
            "sqrt(head_count)": c.head_count**0.5,
            "embed_dim": c.embed_dim,
            "sqrt(embed_dim)": c.embed_dim**0.5,
            "num_layers": c.num_layers,
            "num_classes": c.num_classes,
        }

    @property
    def oddities(self) -> dict[str, bool]:
        """What is unusual about this point, in words."""
        case = self.case
        if isinstance(case, VisionTransformerCase):
            return _practical_oddities(case)
        c = case.config
        left_over = [
            (size + 2 * c.padding - extent) % c.stride
            for size, extent in ((case.height, c.patch_h), (case.width, c.patch_w))
        ]
        return {
            "images are padded": c.padding > 0,
            "patches overlap": c.stride < max(c.patch_h, c.patch_w),
            "patches do not reach the image's edge": any(left_over),
            "patches are not square": c.patch_h != c.patch_w,
            "heads do not divide embed_dim": c.embed_dim % c.head_count > 0,
            "there are several layers": c.num_layers > 1,
            "there are several images": case.batch > 1,
            "variances are small": case.scale < 1,
        }


def _practical_oddities(case: VisionTransformerCase) -> dict[str, bool]:
    c = case.config
    return {
        "patches do not reach the image's edge": bool(
            c.image_h % c.patch_h or c.image_w % c.patch_w
        ),
        "patches are not square": c.patch_h != c.patch_w,
        "there are several layers": c.num_layers > 1,
        "there are several images": case.batch > 1,
        "the residual stream is small": case.values == "tiny",
        "the branches are scaled": c.layer_scale,
        "there is a CLS token": c.cls_token,
        "several rows are pooled": "mean" in c.pool,
        "positions are interpolated": case.image_size is not None,
    }
