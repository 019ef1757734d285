"""What makes a sequence of an image in the practical family: patches, and learned positions.

As `vitspec.layers.patch_embedding` and `vitspec.layers.position_interpolation`, with the same
parameters, on batches with channels last.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from vitfast.layers import Build, NewParameter, PositionalEncoding
from vitfast.sharding import gather, reshape
from vitspec.layers.position_interpolation import interpolation_weights
from vitspec.vision_transformer_config import VisionTransformerConfig

Grid = tuple[int, int]
"""Rows and columns of patches."""


class PatchEmbedding(nnx.Module):
    """`vitspec.layers.patch_embedding`: patches without overlap; pixels left over are not read."""

    def __init__(self, config: VisionTransformerConfig, build: Build, *, new: NewParameter) -> None:
        c, self.build = config, build
        window = (c.in_channels, c.patch_h, c.patch_w)
        scale = 1 / math.sqrt(math.prod(window))
        self.kernel = new("patch_embed.kernel", c.embed_dim, *window, scale=scale)
        self.bias = new("patch_embed.bias", c.embed_dim)

    def __call__(self, x: Float[jax.Array, "B H W C"]) -> Float[jax.Array, "B T D"]:
        """Each patch's pixels times the kernel, plus the bias.

        Pixels of a patch are taken in the images' order, (row, column, channel), and it is the
        kernel that is transposed: it is the smaller.
        """
        D, C, ph, pw = self.kernel.shape
        B, H, W, _ = x.shape
        g_h, g_w = H // ph, W // pw
        whole = reshape(x[:, : g_h * ph, : g_w * pw], B, g_h, ph, g_w, pw, C)
        patches = reshape(whole.transpose(0, 1, 3, 2, 4, 5), B, g_h * g_w, ph * pw * C)
        weight = self.kernel[...].transpose(0, 2, 3, 1).reshape(D, ph * pw * C).T
        return self.build.ops.linear(patches, weight, self.bias[...])


class LearnedPositions(PositionalEncoding):
    """One learned row for each row of the sequence, interpolated for another grid of patches."""

    def __init__(self, config: VisionTransformerConfig, *, new: NewParameter) -> None:
        super().__init__(config.token_count, config.embed_dim, new=new)
        self.cls_rows, self.grid = int(config.cls_token), config.grid

    def on_grid(self, x: Float[jax.Array, "B n D"], grid: Grid) -> Float[jax.Array, "B n D"]:
        """x plus the positions of this grid; the CLS token's is never interpolated.

        The interpolation is in the parameters' type, or in float32 if that is lower.
        """
        if grid == self.grid:
            return self(x)
        pos = gather(self.pos[...], None)
        cls_row, table = pos[: self.cls_rows], pos[self.cls_rows :]
        dtype = jnp.promote_types(pos.dtype, jnp.float32)
        rows, columns = (
            jnp.asarray(weights(old, new), dtype) for old, new in zip(self.grid, grid, strict=True)
        )
        on_old_grid = table.astype(dtype).reshape(*self.grid, -1)
        on_new_grid = jnp.einsum("ik,jl,kld->ijd", rows, columns, on_old_grid, precision="highest")
        interpolated = on_new_grid.reshape(math.prod(grid), -1)
        whole = jnp.concatenate([cls_row.astype(x.dtype), interpolated.astype(x.dtype)])
        return x + whole


@functools.lru_cache(maxsize=64)
def weights(old: int, new: int) -> np.ndarray:
    """The specification's matrix that reads `new` positions from `old` ones, in float64."""
    return interpolation_weights(old, new, np.dtype(np.float64))
