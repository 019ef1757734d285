"""The operations of a Vision Transformer, with the specification's derivatives written by hand.

Each is a function of JAX arrays and, under the same name, a member of two sets:

    AUTOMATIC   the formula alone; JAX differentiates it, in forward mode too
    BY_HAND     the same formula, with the backward of `vitspec.layers` as its derivative (under
                `jax.custom_vjp`, which excludes forward mode)

The second is not only the specification's but the faster one: what automatic differentiation makes
of a normalisation or of a product over three dimensions is more, and worse fused, than what one
writes; `docs/performance.md` has the programs and the measurements.

Parameters may have another type than activations: they are rounded to it before a product, and
their gradients are accumulated, and left, in the parameters' own type. Statistics of a row are
taken in float32 at least.

Shapes: rows are all dimensions but the last; D in, F out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vitfast.sharding import axes_of, gather, on_mesh, place
from vitspec.scalars import EPSILON


@dataclass(frozen=True)
class Operations:
    """One way to differentiate.

    Attributes:
        linear: rows times a weight, `(x, w, b=None, model_axis=None)`.
        products: the same rows times each of several weights, `(x, ws, model_axis)`.
        layer_norm: each row normalised, `(x, gamma, beta, epsilon=1e-6)`.
        relu: `(x)`, with derivative 0 at 0.
        gelu: `(x)`, the exact one, x times the normal distribution function.
        gelu_tanh: `(x)`, its approximation by tanh.
        quick_gelu: `(x)`, its approximation by the logistic function.
    """

    linear: Callable[..., jax.Array]
    products: Callable[..., tuple[jax.Array, ...]]
    layer_norm: Callable[..., jax.Array]
    relu: Callable[[jax.Array], jax.Array]
    gelu: Callable[[jax.Array], jax.Array]
    gelu_tanh: Callable[[jax.Array], jax.Array]
    quick_gelu: Callable[[jax.Array], jax.Array]

    def activation(self, name: str) -> Callable[[jax.Array], jax.Array]:
        """The activation that `VisionTransformerConfig` calls so."""
        activations = {
            "relu": self.relu,
            "gelu": self.gelu,
            "gelu_tanh": self.gelu_tanh,
            "quick_gelu": self.quick_gelu,
        }
        return activations[name]


# ---- linear --------------------------------------------------------------------------------------


def product(x: jax.Array, w: jax.Array, model_axis: str | None) -> jax.Array:
    """y = x w, of rows (..., D) and a weight (D, F).

    On a mesh, the weight is gathered but for the model axis: if that cuts F, it cuts y's columns;
    if it cuts D, each device has a part of the sum, and y is their sum.
    """
    whole = gather(w.astype(x.dtype), model_axis)
    rows, (_, columns) = axes_of(x)[:-1], axes_of(whole)
    return _contract(x, whole, (x.ndim - 1,), (0,), PartitionSpec(*rows, columns))


def products(
    x: jax.Array, ws: tuple[jax.Array, ...], model_axis: str | None
) -> tuple[jax.Array, ...]:
    """The product of the same rows with each of several weights."""
    return tuple(product(x, w, model_axis) for w in ws)


_products = partial(jax.custom_vjp, nondiff_argnums=(2,))(products)


def _products_forward(x: jax.Array, ws: tuple[jax.Array, ...], model_axis: str | None) -> Any:
    return products(x, ws, model_axis), (x, ws)


def _products_backward(model_axis: str | None, saved: Any, d_ys: tuple[jax.Array, ...]) -> Any:
    """d_x = sum of the d_y w^T,  d_w = x^T d_y summed over all rows.

    What is saved is the device's own part of w: it is gathered once more, not kept. d_w has the
    sharding of w from the start: the sum over the batch scatters it. Where the model axis cuts the
    columns, each device has a part of d_x, and these are summed over the devices once, not once for
    each weight.
    """
    x, ws = saved
    parts = (_d_rows(x, w, d_y, model_axis) for w, d_y in zip(ws, d_ys, strict=True))
    d_x = place(reduce(jax.lax.add, parts), *axes_of(x))
    rows = tuple(range(x.ndim - 1))
    d_ws = (
        _contract(x, d_y, rows, rows, PartitionSpec(*axes_of(w)), w.dtype)
        for w, d_y in zip(ws, d_ys, strict=True)
    )
    return d_x, tuple(d_ws)


def _d_rows(x: jax.Array, w: jax.Array, d_y: jax.Array, model_axis: str | None) -> jax.Array:
    """d_y w^T; where the model axis cuts the columns, each device's part of that ("unreduced")."""
    whole = gather(w.astype(x.dtype), model_axis)
    columns = axes_of(d_y)[-1]
    spec = PartitionSpec(*axes_of(x), unreduced=set() if columns is None else {columns})
    return _contract(d_y, whole, (d_y.ndim - 1,), (1,), spec)


_products.defvjp(_products_forward, _products_backward)


def _product(x: jax.Array, w: jax.Array, model_axis: str | None) -> jax.Array:
    return _products(x, (w,), model_axis)[0]


def _contract(
    a: jax.Array,
    b: jax.Array,
    a_dims: tuple[int, ...],
    b_dims: tuple[int, ...],
    out_spec: PartitionSpec,
    dtype: Any = None,
) -> jax.Array:
    """The product over these dimensions, in full precision, its result on these mesh axes."""
    return accumulate(
        lambda a, b, dtype: jax.lax.dot_general(
            a,
            b,
            ((a_dims, b_dims), ((), ())),
            precision="highest",
            preferred_element_type=dtype,
            out_sharding=out_spec if on_mesh() else None,
        ),
        a,
        b,
        a.dtype if dtype is None else dtype,
    )


def accumulate(multiply: Callable[..., jax.Array], a: jax.Array, b: jax.Array, dtype: Any) -> Any:
    """A product of factors of one type with a result, and sums, of another.

    XLA for the CPU (jaxlib 0.10.2) fails on it when it runs: there the factors are converted, which
    changes no number.
    """
    if dtype == a.dtype:
        return multiply(a, b, dtype)
    return jax.lax.platform_dependent(
        a,
        b,
        cpu=lambda a, b: multiply(a.astype(dtype), b.astype(dtype), dtype),
        default=lambda a, b: multiply(a, b, dtype),
    )


def _linear(multiply: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def linear(
        x: jax.Array, w: jax.Array, b: jax.Array | None = None, model_axis: str | None = None
    ) -> jax.Array:
        """x w + b."""
        y = multiply(x, w, model_axis)
        return y if b is None else y + gather(b.astype(x.dtype), model_axis)

    return linear


# ---- layer normalisation -------------------------------------------------------------------------


def _normalize(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Each row with mean 0 and variance 1 (but for epsilon), and 1 / its standard deviation."""
    x = x.astype(_at_least_float32(x))
    centred = x - x.mean(axis=-1, keepdims=True)
    # jnp.var centres once more, as Lean does: it matters when a row is all but constant.
    # One quotient for each row: entry by entry, divisions would take longer than the sums.
    inverse_std = 1 / jnp.sqrt(centred.var(axis=-1, keepdims=True) + epsilon)
    return centred * inverse_std, inverse_std


def layer_norm(
    x: jax.Array, gamma: jax.Array, beta: jax.Array, epsilon: float = float(EPSILON)
) -> jax.Array:
    """`vitspec.layers.normalization`: each row normalised, scaled by gamma, shifted by beta."""
    normed, _ = _normalize(x, epsilon)
    return (normed * gamma + beta).astype(x.dtype)


_layer_norm = partial(jax.custom_vjp, nondiff_argnums=(3,))(layer_norm)


def _layer_norm_forward(x: jax.Array, gamma: jax.Array, beta: jax.Array, epsilon: float) -> Any:
    return layer_norm(x, gamma, beta, epsilon), (x, gamma, beta)


def _layer_norm_backward(epsilon: float, saved: Any, d_y: jax.Array) -> Any:
    """`vitspec.layers.normalization.layer_norm_backward`."""
    x, gamma, beta = saved
    normed, inverse_std = _normalize(x, epsilon)
    d_y = d_y.astype(normed.dtype)
    d_normed = d_y * gamma
    centred = d_normed - d_normed.mean(axis=-1, keepdims=True)
    d_x = (centred - normed * (d_normed * normed).mean(axis=-1, keepdims=True)) * inverse_std
    rows = tuple(range(x.ndim - 1))
    d_gamma, d_beta = (d_y * normed).sum(axis=rows), d_y.sum(axis=rows)
    return d_x.astype(x.dtype), d_gamma.astype(gamma.dtype), d_beta.astype(beta.dtype)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _at_least_float32(x: jax.Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


# ---- activations ---------------------------------------------------------------------------------


def relu(x: jax.Array) -> jax.Array:
    """max(x, 0). Its derivative at 0 is 0, as in Lean; that of `jnp.maximum` would be 1/2."""
    return jax.nn.relu(x)


_relu = jax.custom_vjp(relu)
# The output tells as much as the input, and the next product keeps it anyway.
_relu.defvjp(lambda x: (relu(x),) * 2, lambda y, d_y: (jnp.where(y > 0, d_y, 0),))


def gelu(x: jax.Array) -> jax.Array:
    """x times the standard normal distribution function at x (Hendrycks, Gimpel, 1606.08415)."""
    return x * _normal_distribution(x)


_gelu = jax.custom_vjp(gelu)


def _gelu_backward(x: jax.Array, d_y: jax.Array) -> tuple[jax.Array]:
    """The derivative of x P(x) is P(x) + x p(x), with the normal density p = P'."""
    density = jnp.exp(-x * x / 2) * (2 * jnp.pi) ** -0.5
    return (d_y * (_normal_distribution(x) + x * density),)


_gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def _normal_distribution(x: jax.Array) -> jax.Array:
    """The share of the standard normal distribution below x, but for u in float32 and below.

    Far below 0 the difference 1 + erf loses digits that erfc has. In float64 they are kept; in
    float32 XLA's erfc takes several passes over memory for them, a seventh of a gradient's time.
    """
    if x.dtype == jnp.float64:
        return jax.lax.erfc(-x * 0.5**0.5) / 2
    return (1 + jax.lax.erf(x * 0.5**0.5)) / 2


def gelu_tanh(x: jax.Array) -> jax.Array:
    """x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return x * (1 + _tanh_and_slope(x)[0]) / 2


_gelu_tanh = jax.custom_vjp(gelu_tanh)


def _gelu_tanh_backward(x: jax.Array, d_y: jax.Array) -> tuple[jax.Array]:
    """The derivative is (1 + t) / 2 + x (1 - t^2) u' / 2, with t = tanh u."""
    t, slope = _tanh_and_slope(x)
    return (d_y * ((1 + t) + x * (1 - t * t) * slope) / 2,)


_gelu_tanh.defvjp(lambda x: (gelu_tanh(x), x), _gelu_tanh_backward)


def _tanh_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """tanh u, and u', the derivative of u by x."""
    scale = (2 / jnp.pi) ** 0.5
    return jnp.tanh(scale * (x + 0.044715 * x * x * x)), scale * (1 + 3 * 0.044715 * x * x)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x s(1.702 x), with the logistic function s."""
    return x * jax.nn.sigmoid(1.702 * x)


_quick_gelu = jax.custom_vjp(quick_gelu)


def _quick_gelu_backward(x: jax.Array, d_y: jax.Array) -> tuple[jax.Array]:
    """The derivative is s + 1.702 x s (1 - s), with s at 1.702 x."""
    s = jax.nn.sigmoid(1.702 * x)
    return (d_y * (s + 1.702 * x * s * (1 - s)),)


_quick_gelu.defvjp(lambda x: (quick_gelu(x), x), _quick_gelu_backward)


AUTOMATIC = Operations(_linear(product), products, layer_norm, relu, gelu, gelu_tanh, quick_gelu)
BY_HAND = Operations(
    _linear(_product), _products, _layer_norm, _relu, _gelu, _gelu_tanh, _quick_gelu
)
