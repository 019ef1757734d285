"""The properties of a whole model, as functions of a case; tests and the meta-test share them."""

import numpy as np

from support import naive
from support.compare import assert_close, assert_flat_close
from vitspec import complex_step_derivative


def complex_gradient(f, record_or_array):
    """The gradient of a scalar function, entry by entry, by the complex step; same structure."""
    if hasattr(record_or_array, "map"):
        flat = record_or_array.to_flat()
        zero = record_or_array.map(np.zeros_like)
        return {
            name: _entries(leaf, lambda v, n=name: f(record_or_array, _with(zero, n, v)))
            for name, leaf in flat.items()
        }
    return _entries(record_or_array, lambda v: f(record_or_array, v))


def _entries(leaf, derivative):
    gradient = np.zeros(leaf.shape)
    for index in np.ndindex(leaf.shape):
        direction = np.zeros(leaf.shape)
        direction[index] = 1.0
        gradient[index] = derivative(direction)
    return gradient


def _with(zero_record, name, leaf):
    flat = zero_record.to_flat()
    target = flat[name]
    return zero_record.map(lambda a: leaf if a is target else a)


def forward_is_the_loops(case):
    """The forward equals plain loops over plain floats."""
    model, image = case.model(), case.image()
    truth = np.array(naive.forward(case, model.to_flat(), image))
    assert_close(model.forward(image), truth, 1e-12, "logits")


def backward_is_the_complex_step(case):
    """Every entry of every cotangent is the complex step's."""
    model, image, d_logits = case.model(), case.image(), case.d_logits()
    grads, d_image = model.backward(image, d_logits)

    def along_parameters(m, v):
        step = complex_step_derivative(lambda z: z.forward(image.astype(complex)), m, v)
        return d_logits @ step

    def along_image(x, v):
        return d_logits @ complex_step_derivative(model.astype(complex).forward, x, v)

    assert_flat_close(grads.to_flat(), complex_gradient(along_parameters, model), 1e-12)
    assert_close(d_image, complex_gradient(along_image, image), 1e-12, "d_image")


def directional_derivatives(case):
    """(complex step, JVP) of the logits along the case's random direction."""
    model, image, tangent, d_image = case.model(), case.image(), case.tangent(), case.d_image()
    step = complex_step_derivative(lambda m: m.forward(image.astype(complex)), model, tangent)
    step = step + complex_step_derivative(model.astype(complex).forward, image, d_image)
    return step, model.jvp(image, tangent, d_image)


def jvp_is_the_complex_step(case):
    """The JVP along a random direction of everything is the complex step's."""
    step, jvp = directional_derivatives(case)
    assert_close(jvp, step, 1e-12, "jvp")


def pairing(grads, d_image, tangent, tangent_image):
    """(dot of cotangents and tangents, sum of the products of their norms)."""
    pairs = [*zip(grads.to_flat().values(), tangent.to_flat().values(), strict=True)]
    pairs.append((d_image, tangent_image))
    dot = sum(float((a * b).sum()) for a, b in pairs)
    return dot, sum(float(np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs)


def dot_identity(case):
    """<d_logits, JVP(v)> = <VJP(d_logits), v>, relative to the sizes of the vectors."""
    model, image, d_logits = case.model(), case.image(), case.d_logits()
    tangent, tangent_image = case.tangent(), case.d_image()
    grads, d_image = model.backward(image, d_logits)
    forward_mode = float(d_logits @ model.jvp(image, tangent, tangent_image))
    reverse_mode, size = pairing(grads, d_image, tangent, tangent_image)
    assert abs(forward_mode - reverse_mode) <= 1e-13 * size


def backward_along_a_direction_is_the_complex_step(case):
    """<VJP(d_logits), v> is the complex step of the weighted logits along v."""
    grads, d_image = case.model().backward(case.image(), case.d_logits())
    step, _ = directional_derivatives(case)
    value, size = pairing(grads, d_image, case.tangent(), case.d_image())
    assert abs(value - case.d_logits() @ step) <= 1e-12 * size
