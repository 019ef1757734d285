"""Implementations made of JAX functions and Flax NNX modules; `jax.vjp` takes the derivatives.

Programs are compiled once for each configuration and shape, unless `jit` is false. float64 is
switched on for the call alone, and in float32 every product is asked for in full precision, since
accelerators would round the factors to fewer bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Unpack

import numpy as np

from vitspec.testing.adapters.adapter import Adapter, Identity, Model, Result, split_output
from vitspec.testing.adapters.bound_map import BoundMap
from vitspec.testing.adapters.frameworks import framework
from vitspec.testing.adapters.name_maps import NameMap
from vitspec.typing import Array

QUICK: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""XLA's options that shorten compilation on the CPU fivefold, at the price of slower programs."""

QUICK_UP_TO = 1_000_000
"""The number of parameters and pixels up to which compiling costs more than running."""

PRODUCTS = {"float32": "highest", "tf32": "tensorfloat32"}
"""JAX's name for the precision of matrix products, where the scalar type does not say it."""


class JaxOptions(Identity, total=False):
    """The keywords of `from_jax` and `from_nnx`: those of `Identity`, and these.

    Attributes:
        jit: whether to compile it, which it is unless this is False.
        quick: whether XLA may spare itself optimisations for small models on the CPU; it may,
            unless this is False. A check runs hundreds of them, and most of its time would go into
            compiling.
        channels_last: whether it takes images (B, H, W, C) rather than (B, C, H, W).
    """

    jit: bool
    quick: bool
    channels_last: bool


def from_jax(
    function: Callable[[Any, Any, Any], Any],
    name_map: NameMap | None = None,
    *,
    tree: Callable[[Any, int, int, int], Any] | None = None,
    **options: Unpack[JaxOptions],
) -> JaxAdapter:
    """An implementation made of a JAX function.

    Args:
        function: (config, parameters, images) -> logits (B, K), or a mapping with `logits` and
            taps; traceable by JAX in the parameters and images.
        name_map: the names of the parameters; None if they are the specification's.
        tree: called with (config, in_channels, height, width); returns a pytree like the one that
            the function takes, of arrays or `jax.ShapeDtypeStruct`, such as `jax.eval_shape` makes
            of a Linen module's `init`. A leaf's name is its path, joined by dots. If None, the
            function takes a flat dictionary by the names of the name map.
        **options: `name`, `version`, `spec`; and, where they differ from what is usual, `dtype`,
            `supports`, `closest`, `supports_size` (see `Identity`), `jit`, `quick`,
            `channels_last` (see `JaxOptions`).
    """

    def model(config: Any, *size: int) -> Model:
        if tree is None:
            return Model(None, partial(function, config))
        jax = framework("jax")
        leaves, structure = jax.tree_util.tree_flatten_with_path(tree(config, *size))
        names = [dotted(path) for path, _ in leaves]

        def call(params: Mapping[str, Any], images: Any) -> Any:
            filled = jax.tree_util.tree_unflatten(structure, [params[name] for name in names])
            return function(config, filled, images)

        return Model({n: leaf for n, (_, leaf) in zip(names, leaves, strict=True)}, call)

    return JaxAdapter(model, name_map, **options)


def from_nnx(
    build: Callable[[Any, int, int, int], Any],
    name_map: NameMap | None = None,
    *,
    training: bool = False,
    **options: Unpack[JaxOptions],
) -> JaxAdapter:
    """An implementation made of a Flax NNX module.

    Args:
        build: called with (config, in_channels, height, width), once for each combination; returns
            an `nnx.Module` that maps images to logits, as `function` in `from_jax`. Its parameters
            are its `nnx.Param`s, and are replaced; a name is a path, joined by dots.
        name_map: the names of the parameters; None if they are the specification's.
        training: whether in training mode. Dropout must then have the rate 0.
        **options: as in `from_jax`. What the module's own `dtype` says still holds: leave it None.
    """

    def model(config: Any, *size: int) -> Model:
        nnx = framework("flax.nnx")
        module = build(config, *size)
        if training:
            module.train()
        else:
            module.eval()
        graph, state, rest = nnx.split(module, nnx.Param, ...)
        flat = {".".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(state)}

        def call(params: Mapping[str, Any], images: Any) -> Any:
            filled = [(path, leaf.replace(params[n])) for n, (path, leaf) in flat.items()]
            # Copied, for the module may count its dropouts, or note its statistics.
            return nnx.merge(graph, nnx.from_flat_state(filled), rest, copy=True)(images)

        return Model({n: leaf.get_value() for n, (_, leaf) in flat.items()}, call)

    return JaxAdapter(model, name_map, **options)


class JaxAdapter(Adapter):
    """See `from_jax` and `from_nnx`, which make it."""

    def __init__(
        self,
        model: Callable[..., Model],
        name_map: NameMap | None,
        *,
        jit: bool = True,
        quick: bool = True,
        channels_last: bool = False,
        **identity: Unpack[Identity],
    ) -> None:
        super().__init__(model, name_map, **identity)
        self.jit, self.quick, self.channels_last = jit, quick, channels_last

    def forward(self, config: Any, params: Mapping[str, Array], images: Array) -> Result:
        """The logits, and any taps."""
        with self._loaded(config, params, images) as (_, programs, theirs):
            # Not the one that `jax.vjp` computes: rules of `jax.custom_vjp` may give another.
            logits, taps = programs["forward"](theirs, images)
            return {name: _array(value) for name, value in ({"logits": logits} | taps).items()}

    def vjp(
        self, config: Any, params: Mapping[str, Array], images: Array, cotangent: Array
    ) -> tuple[dict[str, Array], Array]:
        """The cotangents by `jax.vjp`."""
        with self._loaded(config, params, images) as (bound, programs, theirs):
            d_theirs, d_images = programs["vjp"](theirs, images, cotangent)
            gradients = {name: _array(gradient) for name, gradient in d_theirs.items()}
            return bound.to_our_gradients(gradients), _array(d_images)

    @contextmanager
    def _loaded(
        self, config: Any, params: Mapping[str, Array], images: Array
    ) -> Iterator[tuple[BoundMap, dict[str, Any], dict[str, Array]]]:
        """The name map, the programs and their parameters, in JAX's settings for the precision."""
        jax, precision = framework("jax"), self.precision(images)
        products = jax.default_matmul_precision(PRODUCTS.get(precision))
        with jax.enable_x64(precision == "float64"), products:
            bound, programs = self._built(config, images.shape[1:], precision)
            quick = self.quick and is_small(params, images) and jax.default_backend() == "cpu"
            yield bound, programs[quick], bound.to_theirs(params)

    def _build(
        self, config: Any, image_shape: tuple[int, int, int], precision: str
    ) -> tuple[BoundMap, dict[bool, dict[str, Any]]]:
        jax = framework("jax")
        model, bound = super()._build(config, image_shape, precision)
        if model.own is not None:
            bound.check(model.own, f"the parameters of {self.name}")
        programs = self._programs(jax, model, "float32" if precision == "tf32" else precision)
        if not self.jit:
            return bound, {False: programs, True: programs}
        quick = {n: jax.jit(p, compiler_options=quick_options()) for n, p in programs.items()}
        return bound, {False: {n: jax.jit(p) for n, p in programs.items()}, True: quick}

    def _programs(self, jax: Any, model: Model, dtype: str) -> dict[str, Any]:
        scalar_type = getattr(jax.numpy, dtype)

        def convert(tree: Any) -> Any:
            return jax.tree.map(lambda x: x.astype(scalar_type), tree)

        def run(params: Any, images: Any) -> Any:
            if self.channels_last:
                images = images.transpose(0, 2, 3, 1)
            return split_output(model.call(params, images))

        def forward(params: Any, images: Any) -> Any:
            return run(*convert((params, images)))

        def vjp(params: Any, images: Any, cotangent: Any) -> Any:
            logits, pullback, _ = jax.vjp(run, *convert((params, images)), has_aux=True)
            return pullback(cotangent.astype(logits.dtype))

        return {"forward": forward, "vjp": vjp}


def is_small(params: Mapping[str, Array], images: Array) -> bool:
    """Whether compiling the model costs more than running it."""
    return images.size + sum(array.size for array in params.values()) <= QUICK_UP_TO


@cache
def quick_options() -> dict[str, Any]:
    """Those of the options `QUICK` that the installed XLA knows; they come and go."""
    return {name: value for name, value in QUICK.items() if _is_known(name, value)}


def _is_known(name: str, value: Any) -> bool:
    jax = framework("jax")
    try:
        jax.jit(lambda x: x, compiler_options={name: value})(np.float32(0))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _array(value: Any) -> Array:
    """The same numbers, those of short types in float32, so that any NumPy can read them.

    Inside the program XLA would pass over the rounding to the short type, as excess precision.
    """
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def dotted(path: tuple[Any, ...]) -> str:
    """The name of a leaf of a pytree: the keys on the way to it, joined by dots."""
    steps = (getattr(key, attribute, None) for key in path for attribute in ("key", "name", "idx"))
    return ".".join(str(step) for step in steps if step is not None)
