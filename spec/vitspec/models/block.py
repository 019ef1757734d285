"""The pre-norm block of pretrained ViTs, and a sequence of them.

One block, on x (n, D):

    y   = x + f1 * s1 * MHA(LN1(x))
    out = y + f2 * s2 * MLP(LN2(y))

The scales s1 and s2, if there are any, are learned, one number for each feature (LayerScale,
Touvron et al., 2103.17239). The factors f1 and f2, if there are any, are given: 0 or 1 / (1 - p)
for each entry under dropout, for the whole branch under stochastic depth (Huang et al.,
1603.09382).

Source: Dosovitskiy et al., 2010.11929, equations 2 and 3; Hugging Face's `ViTLayer`, `Dinov2Layer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitspec import scalars
from vitspec.layers.affine import times
from vitspec.layers.feed_forward import FeedForwardGrads, FeedForwardTrace
from vitspec.layers.mlp import Mlp, mlp_backward, mlp_jvp, mlp_trace
from vitspec.layers.normalization import layer_norm, layer_norm_backward, layer_norm_jvp
from vitspec.layers.self_attention import (
    SelfAttention,
    SelfAttentionGrads,
    SelfAttentionTrace,
    self_attention_backward,
    self_attention_jvp,
    self_attention_trace,
)
from vitspec.records import Record, named, record
from vitspec.typing import Array, Bool, Scalar, TupleOf, typed


@record
class Block(Record):
    """Attention, feed-forward, what comes before (norms) and after them (scales, if any)."""

    epsilon: str
    mha: SelfAttention
    ffn: Mlp
    norm1_gamma: Scalar[Array, "D"]
    norm1_beta: Scalar[Array, "D"]
    norm2_gamma: Scalar[Array, "D"]
    norm2_beta: Scalar[Array, "D"]
    layer_scale1: Scalar[Array, "D"] | None = None
    layer_scale2: Scalar[Array, "D"] | None = None


@record
class BlockEncoder(Record):
    """The blocks, first to last."""

    layers: TupleOf[Block]


@record
class BlockGrads(Record):
    """Cotangents of the parameters of `Block`."""

    mha: SelfAttentionGrads
    ffn: FeedForwardGrads
    d_norm1_gamma: Scalar[Array, "D"] = named("norm1_gamma")
    d_norm1_beta: Scalar[Array, "D"] = named("norm1_beta")
    d_norm2_gamma: Scalar[Array, "D"] = named("norm2_gamma")
    d_norm2_beta: Scalar[Array, "D"] = named("norm2_beta")
    d_layer_scale1: Scalar[Array, "D"] | None = named("layer_scale1")
    d_layer_scale2: Scalar[Array, "D"] | None = named("layer_scale2")


@record
class BlockFactors(Record):
    """What multiplies, in one block, and has no derivative; None is 1.

    Attributes:
        attention_weights: the weights, after the softmax.
        attention: the attention's branch (f1).
        hidden: the feed-forward's hidden layer.
        mlp: the feed-forward's branch (f2).
    """

    attention_weights: Scalar[Array, "#H #n #n"] | None = None
    attention: Scalar[Array, "#n #D"] | None = None
    hidden: Scalar[Array, "#n #F"] | None = None
    mlp: Scalar[Array, "#n #D"] | None = None


@dataclass(frozen=True)
class Setting:
    """What a block is given beside its input: the mask of its attention, and its factors."""

    mask: Bool[Array, "n n"] | None = None
    factors: BlockFactors = BlockFactors()  # noqa: RUF009 - frozen


@record
class BlockTrace(Record):
    """What one block computed from its input."""

    input: Scalar[Array, "n D"]
    normed1: Scalar[Array, "n D"]
    mha: SelfAttentionTrace
    residual: Scalar[Array, "n D"]
    normed2: Scalar[Array, "n D"]
    ffn: FeedForwardTrace
    output: Scalar[Array, "n D"]


@typed
def block_trace(block: Block, x: Scalar[Array, "n D"], setting: Setting) -> BlockTrace:
    """The forward, with its intermediate values."""
    f = setting.factors
    normed1 = layer_norm(x, block.norm1_gamma, block.norm1_beta, block.epsilon)
    mha = self_attention_trace(block.mha, normed1, setting.mask, f.attention_weights)
    residual = x + times(times(mha.output, block.layer_scale1), f.attention)
    normed2 = layer_norm(residual, block.norm2_gamma, block.norm2_beta, block.epsilon)
    ffn = mlp_trace(block.ffn, normed2, f.hidden)
    output = residual + times(times(ffn.output, block.layer_scale2), f.mlp)
    return BlockTrace(x, normed1, mha, residual, normed2, ffn, output)


@typed
def block_backward(
    block: Block, d_out: Scalar[Array, "n D"], trace: BlockTrace, setting: Setting
) -> tuple[BlockGrads, Scalar[Array, "n D"]]:
    """The cotangents of the parameters and of the block's input.

    Each branch's cotangent goes back through its factors, its scale, its network and its norm, and
    joins the one that came past it.
    """
    t, f, eps = trace, setting.factors, block.epsilon
    d_mlp, d_scale2 = _scale_backward(block.layer_scale2, t.ffn.output, times(d_out, f.mlp))
    ffn, d_normed2 = mlp_backward(block.ffn, t.normed2, d_mlp, t.ffn, f.hidden)
    d_x, d_gamma2, d_beta2 = layer_norm_backward(t.residual, block.norm2_gamma, d_normed2, eps)
    d_residual = d_out + d_x
    d_mha, d_scale1 = _scale_backward(
        block.layer_scale1, t.mha.output, times(d_residual, f.attention)
    )
    mha, d_normed1 = self_attention_backward(
        block.mha, t.normed1, d_mha, t.mha, f.attention_weights
    )
    d_x, d_gamma1, d_beta1 = layer_norm_backward(t.input, block.norm1_gamma, d_normed1, eps)
    grads = BlockGrads(
        mha=mha,
        ffn=ffn,
        d_norm1_gamma=d_gamma1,
        d_norm1_beta=d_beta1,
        d_norm2_gamma=d_gamma2,
        d_norm2_beta=d_beta2,
        d_layer_scale1=d_scale1,
        d_layer_scale2=d_scale2,
    )
    return grads, d_residual + d_x


def _scale_backward(scale: Array | None, branch: Array, d_out: Array) -> tuple[Array, Array | None]:
    """The cotangents of a branch and of its scale, if it has one."""
    if scale is None:
        return d_out, None
    return d_out * scale, scalars.total(d_out * branch, axis=0)


@typed
def block_jvp(
    block: Block, tangent: Block, dx: Scalar[Array, "n D"], trace: BlockTrace, setting: Setting
) -> Scalar[Array, "n D"]:
    """The tangent of the output along the parameters' `tangent` and dx."""
    t, f, eps = trace, setting.factors, block.epsilon
    d_normed1 = layer_norm_jvp(
        t.input, block.norm1_gamma, dx, tangent.norm1_gamma, tangent.norm1_beta, eps
    )
    d_mha = self_attention_jvp(
        block.mha, t.normed1, tangent.mha, d_normed1, t.mha, f.attention_weights
    )
    d_branch = _scale_jvp(block.layer_scale1, t.mha.output, tangent.layer_scale1, d_mha)
    d_residual = dx + times(d_branch, f.attention)
    d_normed2 = layer_norm_jvp(
        t.residual, block.norm2_gamma, d_residual, tangent.norm2_gamma, tangent.norm2_beta, eps
    )
    d_mlp = mlp_jvp(block.ffn, t.normed2, tangent.ffn, d_normed2, t.ffn, f.hidden)
    d_branch = _scale_jvp(block.layer_scale2, t.ffn.output, tangent.layer_scale2, d_mlp)
    return d_residual + times(d_branch, f.mlp)


def _scale_jvp(scale: Array | None, branch: Array, d_scale: Array | None, d_branch: Array) -> Array:
    """The tangent of a branch times its scale, if it has one."""
    if scale is None or d_scale is None:
        return d_branch
    return d_branch * scale + branch * d_scale


def blocks_trace(
    blocks: Sequence[Block], x: Array, settings: Sequence[Setting]
) -> tuple[BlockTrace, ...]:
    """What each block computed, first to last."""
    traces = []
    for block, setting in zip(blocks, settings, strict=True):
        traces.append(block_trace(block, x, setting))
        x = traces[-1].output
    return tuple(traces)


def blocks_backward(
    blocks: Sequence[Block],
    d_out: Array,
    traces: Sequence[BlockTrace],
    settings: Sequence[Setting],
) -> tuple[tuple[BlockGrads, ...], Array]:
    """The cotangents of the blocks' parameters, first block first, and of the first's input."""
    last_first = []
    for block, trace, setting in reversed([*zip(blocks, traces, settings, strict=True)]):
        grads, d_out = block_backward(block, d_out, trace, setting)
        last_first.append(grads)
    return tuple(reversed(last_first)), d_out


def blocks_jvp(
    blocks: Sequence[Block],
    tangents: Sequence[Block],
    dx: Array,
    traces: Sequence[BlockTrace],
    settings: Sequence[Setting],
) -> Array:
    """The tangent of the last block's output."""
    for block, tangent, trace, setting in zip(blocks, tangents, traces, settings, strict=True):
        dx = block_jvp(block, tangent, dx, trace, setting)
    return dx
