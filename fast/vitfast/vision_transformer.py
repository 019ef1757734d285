"""The ViTs that people load, in Flax NNX: the practical family, on batches.

    tokens   = patches of images times a kernel                        (B, T, D)
    sequence = cls_token above tokens, + positions                     (B, n, D), n = T + 1 | T
    encoded  = pre-norm blocks(sequence)
    last_hidden_state = LN(encoded)                                    (B, n, D)
    logits   = W pooled + b                                            (B, K)
    pooler_output  = tanh(W' last_hidden_state[:, 0] + b')             (B, P)
    reconstruction = pixels decoded from the patches' rows             (B, g_h S, g_w S, C)

Images are (batch, height, width, channels). The specification is
`vitspec.models.vision_transformer`; `vitfast.convert` moves parameters between the two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from vitfast import ops
from vitfast.attention import AttentionFn, PlainAttention
from vitfast.blocks import BlockEncoder
from vitfast.conditions import (
    Conditions,
    Factors,
    check_conditions,
    drop,
    key_of,
    keys,
    needs_weights,
    placed,
    settings,
)
from vitfast.embeddings import Grid, LearnedPositions, PatchEmbedding
from vitfast.layers import Build, Linear, prepend
from vitfast.sharding import NoSharding, ShardingSpec, gather, place, reshape
from vitfast.vit import Taps, check_images, default_attention, new_parameter, taps_of
from vitspec.errors import InvalidArray, NotWellFormed
from vitspec.models.vision_transformer_parameters import head_shapes, parameter_shapes
from vitspec.vision_transformer_config import VisionTransformerConfig


class Outputs(NamedTuple):
    """What a model computes; None is what it does not have.

    Attributes:
        last_hidden_state: (B, n, D), after the final norm.
        logits: (B, K).
        pooler_output: (B, P).
        reconstruction: (B, g_h S, g_w S, C).
    """

    last_hidden_state: jax.Array
    logits: jax.Array | None
    pooler_output: jax.Array | None
    reconstruction: jax.Array | None


class VisionTransformer(nnx.Module):
    """A pretrained ViT: `vitspec.models.vision_transformer.VisionTransformer`.

    Its parameters are an NNX state with the specification's names. A module is a pytree: pass it to
    `jax.jit`, `jax.grad` and the like as it is.

    Args:
        config: the architecture.
        attention_fn: the attention; None is the fastest that the platform has, and where attention
            weights are to be multiplied, as by dropout, `PlainAttention`.
        dtype: type of the activations; None is that of the parameters. Products of float32 are in
            full precision on every platform.
        param_dtype: type of the parameters, and of their gradients.
        sharding: where parameters and activations lie on the mesh that is set, if one is.
        scan_layers: whether the blocks' parameters are stacked on a leading axis along which the
            program loops, or listed: see `vitfast.ViT`.
        use_gradient_checkpointing: whether to keep only each block's input for the backward, and
            compute the block once more there.
        custom_vjp: whether derivatives are those written by hand (`vitfast.ops`), or JAX's own,
            slower, which have a forward mode.
        rngs: the source of the initial parameters; None leaves each parameter as a
            `jax.ShapeDtypeStruct`, to be filled in later.

    Raises:
        NotWellFormed: config breaks a rule; all are listed.
        MeshDoesNotDivide: a parameter does not divide over the mesh; all are listed.

    >>> config = VisionTransformerConfig(image_h=32, image_w=48, embed_dim=12, hidden_dim=8,
    ...     head_count=3, num_layers=2, num_classes=5)
    >>> model = VisionTransformer(config, rngs=nnx.Rngs(0))
    >>> outputs = model(jnp.ones((2, 32, 48, 3)))
    >>> outputs.logits.shape, outputs.last_hidden_state.shape
    ((2, 5), (2, 7, 12))
    """

    def __init__(
        self,
        config: VisionTransformerConfig,
        *,
        attention_fn: AttentionFn | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        sharding: ShardingSpec | None = None,
        scan_layers: bool = True,
        use_gradient_checkpointing: bool = False,
        custom_vjp: bool = True,
        rngs: nnx.Rngs | None,
    ) -> None:
        if not isinstance(config, VisionTransformerConfig):
            problem = f"config: expected a VisionTransformerConfig, got {type(config).__name__}"
            raise NotWellFormed(f"config = {config!r}", [problem])
        config.check_well_formed()
        self.config = config
        self.image_shape = (config.image_h, config.image_w, config.in_channels)
        self.given_dtype = None if dtype is None else jnp.dtype(dtype)
        self.scan_layers = scan_layers
        self.sharding = NoSharding() if sharding is None else sharding
        self.sharding.check(config, self.parameter_shapes())
        plain = PlainAttention(custom_vjp) if attention_fn is None else attention_fn
        self.build = Build(
            attention_fn or default_attention(custom_vjp),
            ops.BY_HAND if custom_vjp else ops.AUTOMATIC,
            self.sharding,
            use_gradient_checkpointing,
            plain if getattr(plain, "takes_factors", False) else None,
        )
        new = new_parameter(jnp.dtype(param_dtype), self.sharding, rngs)
        D = config.embed_dim
        self.patch_embed = PatchEmbedding(config, self.build, new=new)
        self.cls_token = new("cls_token", D, scale=0.02) if config.cls_token else None
        self.mask_token = new("mask_token", D) if config.mask_token else None
        self.pos_enc = LearnedPositions(config, new=new)
        self.encoder = BlockEncoder(config, self.build, stacked=scan_layers, new=new)
        self.final_norm_gamma = new("final_norm_gamma", D, center=1.0)
        self.final_norm_beta = new("final_norm_beta", D)
        heads = {
            name: Linear(columns, rows, self.build, name=name, new=new)
            for name, (rows, columns) in head_shapes(config).items()
        }
        self.head, self.pooler, self.decoder = map(heads.get, ("head", "pooler", "decoder"))

    @classmethod
    def from_config(cls, config: VisionTransformerConfig, **options: Any) -> VisionTransformer:
        """A model with fresh parameters: `VisionTransformer(config, **options)`."""
        return cls(config, **options)

    @classmethod
    def from_pretrained(
        cls, path_or_name: Any, use_pytorch: bool = False, **options: Any
    ) -> VisionTransformer:
        """The model of a checkpoint: `vitfast.pretrained.from_pretrained`."""
        from vitfast.pretrained import from_pretrained

        return from_pretrained(path_or_name, use_pytorch, **options)

    def save_pretrained(self, folder: Any, **options: Any) -> None:
        """Write a checkpoint: `vitfast.pretrained.save_pretrained`."""
        from vitfast.pretrained import save_pretrained

        save_pretrained(self, folder, **options)

    @property
    def param_dtype(self) -> Any:
        """The type of the parameters, also of ones that have been put in the place of the first."""
        return jnp.dtype(self.final_norm_beta.dtype)

    @property
    def dtype(self) -> Any:
        """The type of the activations."""
        return self.param_dtype if self.given_dtype is None else self.given_dtype

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, by the specification's flat name and in its order."""
        return parameter_shapes(self.config)

    def __call__(
        self,
        images: Float[jax.Array | np.ndarray, "batch height width channels"],
        *,
        masked_patches: Any = None,
        attention_mask: Any = None,
        head_mask: Any = None,
        interpolate_positions: bool = False,
        factors: Factors | None = None,
        rngs: Any = None,
    ) -> Outputs:
        """What the model computes of each image, in `dtype`.

        Args:
            images: of the configuration's size, unless positions are interpolated.
            masked_patches: (batch, patches) Booleans: where the mask token stands in for a patch.
            attention_mask: Booleans that broadcast to (batch, heads, n, n): which rows (keys) each
                row (query) may attend to.
            head_mask: (num_layers, heads): what multiplies each head, 0 to leave it out.
            interpolate_positions: whether images of another size are taken.
            factors: what multiplies in the model, as dropout does; None is nothing.
            rngs: `nnx.Rngs` or a key: dropout at the rates of `config.dropout`. Without it, there
                is none, and the result is the same every time.

        Raises:
            InvalidArray: images, a mask or factors do not fit the model.
            MeshDoesNotDivide: the mesh does not divide the batch.
            ValueError: attention weights are to be multiplied, and `attention_fn` cannot.
        """
        given = Conditions(
            masked_patches, attention_mask, head_mask, interpolate_positions,
            Factors() if factors is None else factors, rngs,
        )  # fmt: skip
        return self._forward(images, given)[0]

    def forward_with_taps(
        self,
        images: Float[jax.Array | np.ndarray, "batch height width channels"],
        *,
        attention_weights: bool = False,
        **conditions: Any,
    ) -> tuple[Outputs, Taps]:
        """What the model computes, and every block's output, before the final norm.

        Args:
            images: as for `__call__`.
            attention_weights: whether also every block's attention weights are wanted, after the
                softmax and before any factor. They are computed beside the attention.
            conditions: masks, factors and so on, as for `__call__`.

        Raises:
            InvalidArray, MeshDoesNotDivide, ValueError: as `__call__`.
        """
        if conditions.get("factors", ()) is None:
            del conditions["factors"]
        return self._forward(
            images, Conditions(**conditions), taps=True, attention_weights=attention_weights
        )

    def _forward(
        self, images: Any, given: Conditions, *, taps: bool = False, attention_weights: bool = False
    ) -> Any:
        grid = self._check(images, given)
        of_embedding, of_blocks = keys(key_of(given.rngs), 2)
        x = place(jnp.asarray(images, self.dtype), *self.sharding.images)
        sequence = self._sequence(x, given.masked_patches, grid)
        factors = placed(given.factors.embedding, self.sharding, batch_axis=0)
        embedded = drop(sequence, factors, of_embedding, self.config.dropout.embedding)
        encoded, layers = self.encoder(
            embedded,
            _of_rank_4(given.attention_mask, self.sharding),
            settings(self.config, given, of_blocks, self.sharding),
            taps=taps,
            attention_weights=attention_weights,
        )
        return self._outputs(encoded, grid), taps_of(embedded, layers) if taps else None

    def _sequence(self, x: jax.Array, masked_patches: Any, grid: Grid) -> jax.Array:
        """Patches, or the mask token in their place, the CLS token above them, and positions."""
        tokens = self.patch_embed(x)
        if masked_patches is not None and self.mask_token is not None:
            masked = placed(masked_patches, self.sharding, batch_axis=0)[..., None]
            token = gather(self.mask_token[...].astype(x.dtype), None)
            tokens = jnp.where(masked, token, tokens)
        if self.cls_token is not None:
            tokens = prepend(self.cls_token[...], tokens)
        return self.pos_enc.on_grid(tokens, grid)

    def _outputs(self, encoded: jax.Array, grid: Grid) -> Outputs:
        c, cls_rows = self.config, int(self.config.cls_token)
        gamma, beta = (
            gather(self.final_norm_gamma[...], None),
            gather(self.final_norm_beta[...], None),
        )
        last = self.build.ops.layer_norm(encoded, gamma, beta, c.layer_norm_eps)
        logits = pooler_output = reconstruction = None
        if self.head is not None:
            parts = [last[:, 0]] if "cls" in c.pool else []
            parts += [last[:, cls_rows:].mean(axis=1)] if "mean" in c.pool else []
            logits = self.head(jnp.concatenate(parts, axis=-1))
        if self.pooler is not None:
            pooler_output = jnp.tanh(self.pooler(last[:, 0]))
        if self.decoder is not None:
            pixels = self.decoder(last[:, cls_rows:])
            reconstruction = pixel_shuffle(pixels, grid, c.decoder_stride)
        return Outputs(last, logits, pooler_output, reconstruction)

    def _check(self, images: Any, given: Conditions) -> Grid:
        """The grid of patches; refuse what does not fit."""
        c, shape = self.config, self.image_shape
        if given.interpolate_positions and images.ndim == 4:
            shape = (*images.shape[1:3], c.in_channels)
        advice = (
            ""
            if given.interpolate_positions
            else ("; interpolate_positions=True takes other sizes")
        )
        check_images(images, shape, self, advice)
        grid = c.grid_of(*shape[:2])
        if 0 in grid:
            raise InvalidArray(
                f"images: expected room for a patch of {c.patch_h} x {c.patch_w}, got images of "
                f"{shape[0]} x {shape[1]}"
            )
        check_conditions(c, given, len(images), grid[0] * grid[1])
        if self.build.attention_with_factors is None and needs_weights(c, given):
            raise ValueError(
                "attention weights are to be multiplied, by dropout or by given factors, but "
                f"attention_fn={self.build.attention_fn!r} cannot; expected one that "
                "`takes_factors`, such as PlainAttention(), or None; or set dropout.attention to 0"
            )
        return grid


def pixel_shuffle(
    y: Float[jax.Array, "B T K"], grid: Grid, stride: int
) -> Float[jax.Array, "B H W C"]:
    """Column (k, i, j) of row (r, s) becomes channel k of pixel (r stride + i, s stride + j)."""
    (g_h, g_w), S, B = grid, stride, len(y)
    C = y.shape[-1] // (S * S)
    squares = reshape(y, B, g_h, g_w, C, S, S).transpose(0, 1, 4, 2, 5, 3)
    return reshape(squares, B, g_h * S, g_w * S, C)


def _of_rank_4(mask: Any, sharding: ShardingSpec) -> Any:
    """A mask as attentions take it: (#B, #heads, #n, #n)."""
    if mask is None:
        return None
    return placed(mask.reshape((1,) * (4 - mask.ndim) + mask.shape), sharding, batch_axis=0)
