"""Mistakes in forward mode: logits and cotangents are right, tangents are not."""

from __future__ import annotations

from vitspec.testing.catalogue import functions as at
from vitspec.testing.catalogue.deviation import Deviation, Form

TANGENTS = (
    Deviation(
        "jvp-without-key-tangent", "jvp", at.SDPA_JVP, " + matmul(q, dk.swapaxes(-1, -2))", "",
        "the keys' tangent is left out",
        "Tangents of the logits are wrong; logits and cotangents are right.",
        ("not seen in public; included because forward mode is rarely tested",),
        practical=Form(at.ATTENTION_JVP, " + matmul(t.q, dk.swapaxes(-1, -2))", ""),
    ),
    Deviation(
        "jvp-without-query-weight-tangent", "jvp", at.MHA_JVP,
        "matmul(dx, mha.wq) + matmul(x, tangent.wq)", "matmul(dx, mha.wq)",
        "the query weight's tangent is left out",
        "Tangents of the logits along Wq are 0; logits and cotangents are right.",
        ("not seen in public; included because forward mode is rarely tested",),
        practical=Form(at.ATTENTION_JVP, "dx, tangent.wq,", "dx, 0 * tangent.wq,"),
    ),
    Deviation(
        "jvp-without-gamma", "jvp", at.LAYER_NORM_JVP,
        "normalize_derivative(xhat, std, dx) * gamma", "normalize_derivative(xhat, std, dx)",
        "the normalised tangent is not scaled by gamma",
        "Tangents of the logits are wrong by the spread of gamma; logits and cotangents are right.",
        ("not seen in public; included because forward mode is rarely tested",),
    ),
    Deviation(
        "jvp-without-image-tangent", "jvp", at.CONV2D_JVP,
        "y = y + matmul(kernel_as_matrix(spec.kernel), d_rows.T)", "del d_rows",
        "the patch embedding ignores the image's tangent",
        "Tangents of the logits along the image are 0; logits and cotangents are right.",
        ("not seen in public; included because forward mode is rarely tested",),
        practical=Form(at.EMBEDDING_JVP, "d_y = matmul(", "d_y = 0 * matmul("),
    ),
)  # fmt: skip
"""From the attention up to the patches."""
