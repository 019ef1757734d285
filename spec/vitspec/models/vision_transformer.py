"""The ViTs that people load: patch embedding, positions, pre-norm blocks, final norm, heads.

    tokens   = patch_embedding(image)                                  (T, D)
    tokens   = mask_token in the rows of masked patches
    sequence = cls_token above tokens, + positions                     (n, D), n = T + 1 | T
    h_0      = f * sequence,   h_{i+1} = block_i(h_i)
    last_hidden_state = LN(h_L)                                        (n, D)
    pooled   = CLS row | mean of the patches' rows | both side by side
    logits   = W pooled + b                                            (K,)
    pooler_output  = tanh(W' last_hidden_state[0] + b')                (P,)
    reconstruction = pixels decoded from the patches' rows             (C, g_h S, g_w S)

Which of these there are, the configuration says (`VisionTransformerConfig`); which images, masks
and factors, the `Conditions` of a call, which have no derivative. As in `vitspec.models.vit` there
is no batch axis, backward and JVP are written by hand, and `d_` names what belongs to something:
its cotangent in `backward`, its tangent in `jvp`.

Source: Dosovitskiy et al., 2010.11929; Hugging Face's `ViTModel`, `ViTForImageClassification`,
`ViTForMaskedImageModeling`, `Dinov2Model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from vitspec import scalars
from vitspec.errors import InvalidParameters
from vitspec.layers.linear import LinearSpec, linear
from vitspec.layers.normalization import layer_norm, layer_norm_backward, layer_norm_jvp
from vitspec.layers.patch_embedding import (
    PatchEmbedding,
    patch_embedding,
    patch_embedding_backward,
    patch_embedding_jvp,
)
from vitspec.layers.position_interpolation import (
    interpolate_positions,
    interpolate_positions_backward,
)
from vitspec.models.block import (
    BlockEncoder,
    BlockFactors,
    BlockGrads,
    BlockTrace,
    Setting,
    block_trace,
    blocks_backward,
    blocks_jvp,
    blocks_trace,
)
from vitspec.models.conditions import (
    PLAIN,
    Conditions,
    check_conditions,
    check_cotangents,
    check_image,
)
from vitspec.models.heads import Heads, Outputs, decode, heads_backward, heads_jvp, pool
from vitspec.models.tokens import prepend_cls
from vitspec.models.vision_transformer_parameters import (
    build_parts,
    parameter_shapes,
    random_parameters,
)
from vitspec.records import Record, check_array, check_flat, named, record
from vitspec.typing import Array, Scalar, TupleOf
from vitspec.vision_transformer_config import VisionTransformerConfig


@dataclass(frozen=True)
class VisionTransformerTrace:
    """Every intermediate value of a forward.

    Attributes:
        embedded: (n, D), what enters the first block.
        layers: the blocks'.
        last_hidden_state: (n, D), after the final norm.
        pooled: what is classified, (D,) or (2 D,); None without a classifier.
        outputs: what the model computes.
    """

    embedded: Array
    layers: tuple[BlockTrace, ...]
    last_hidden_state: Array
    pooled: Array | None
    outputs: Outputs

    @property
    def logits(self) -> Array | None:
        """(K,), if there is a classifier."""
        return self.outputs.logits

    @property
    def hidden_states(self) -> tuple[Array, ...]:
        """h_0, ..., h_L: before the final norm."""
        return (self.embedded, *(layer.output for layer in self.layers))

    @property
    def attentions(self) -> tuple[Array, ...]:
        """The attention weights (H, n, n) of each block, after the softmax, before any factor."""
        return tuple(layer.mha.weights for layer in self.layers)


@record
class VisionTransformerGrads(Record):
    """Cotangents of the parameters of `VisionTransformer`, None where it has none."""

    d_patch_kernel: Scalar[Array, "D C ph pw"] = named("patch_embed.kernel")
    d_patch_bias: Scalar[Array, "D"] = named("patch_embed.bias")
    d_cls_token: Scalar[Array, "D"] | None = named("cls_token")
    d_mask_token: Scalar[Array, "D"] | None = named("mask_token")
    d_pos: Scalar[Array, "N D"] = named("pos_enc.pos")
    d_encoder: TupleOf[BlockGrads] = named("encoder.layers")
    d_norm_gamma: Scalar[Array, "D"] = named("final_norm_gamma")
    d_norm_beta: Scalar[Array, "D"] = named("final_norm_beta")
    d_head_w: Scalar[Array, "K P"] | None = named("head.weights")
    d_head_b: Scalar[Array, "K"] | None = named("head.bias")
    d_pooler_w: Scalar[Array, "Q D"] | None = named("pooler.weights")
    d_pooler_b: Scalar[Array, "Q"] | None = named("pooler.bias")
    d_decoder_w: Scalar[Array, "S D"] | None = named("decoder.weights")
    d_decoder_b: Scalar[Array, "S"] | None = named("decoder.bias")


@record
class VisionTransformer(Record):
    """The parameters of a pretrained ViT, with its configuration.

    >>> config = VisionTransformerConfig(image_h=6, image_w=9, patch_h=2, patch_w=3, embed_dim=8,
    ...     hidden_dim=12, head_count=2, num_layers=2, num_classes=5)
    >>> rng = np.random.default_rng(0)
    >>> model = VisionTransformer.init(config, rng=rng)
    >>> image = rng.standard_normal((3, 6, 9))
    >>> model.forward(image).logits.shape
    (5,)
    >>> grads, d_image = model.backward(image, d_logits=rng.standard_normal(5))
    >>> grads.to_flat().keys() == model.to_flat().keys(), d_image.shape
    (True, (3, 6, 9))
    """

    config: VisionTransformerConfig
    patch_embed: PatchEmbedding
    cls_token: Scalar[Array, "D"] | None
    mask_token: Scalar[Array, "D"] | None
    pos: Scalar[Array, "N D"] = named("pos_enc.pos")
    encoder: BlockEncoder
    norm_gamma: Scalar[Array, "D"] = named("final_norm_gamma")
    norm_beta: Scalar[Array, "D"] = named("final_norm_beta")
    head: LinearSpec | None
    pooler: LinearSpec | None
    decoder: LinearSpec | None

    @classmethod
    def init(
        cls, config: VisionTransformerConfig, *, rng: np.random.Generator, dtype: Any = np.float64
    ) -> Self:
        """A model with fresh random parameters, in which nothing is zero or alike.

        Raises:
            NotWellFormed: the configuration breaks a rule.
        """
        config.check_well_formed()
        return cls.from_flat(config, random_parameters(config, rng, np.dtype(dtype)))

    @classmethod
    def from_flat(cls, config: VisionTransformerConfig, flat: Mapping[str, Array]) -> Self:
        """The model with these parameters, by flat name; the arrays are not copied.

        Raises:
            NotWellFormed: the configuration breaks a rule.
            InvalidParameters: names are missing or unexpected, shapes are wrong or scalar types are
                mixed; all of it is listed.
        """
        config.check_well_formed()
        check_flat(flat, parameter_shapes(config), f"The parameters of {cls.__name__}")
        return cls(config=config, **build_parts(config, flat))

    # ---- forward ---------------------------------------------------------------------------------

    def forward(self, image: Scalar[Array, "C H W"], conditions: Conditions = PLAIN) -> Outputs:
        """What the model computes of one image.

        Args:
            image: channels first, of the configuration's size (unless positions are interpolated)
                and the model's scalar type, finite.
            conditions: masks, factors, and whether positions are interpolated.

        Raises:
            InvalidArray: the image or a condition does not fit the model.
        """
        h = self.embed(image, conditions)
        settings = self._settings(conditions, h)
        for block, setting in zip(self.encoder.layers, settings, strict=True):
            h = block_trace(block, h, setting).output
        return self._outputs(h, self._grid(image))[1]

    def trace(
        self, image: Scalar[Array, "C H W"], conditions: Conditions = PLAIN
    ) -> VisionTransformerTrace:
        """The forward, with every intermediate value."""
        embedded = self.embed(image, conditions)
        layers = blocks_trace(self.encoder.layers, embedded, self._settings(conditions, embedded))
        encoded = layers[-1].output if layers else embedded
        pooled, outputs = self._outputs(encoded, self._grid(image))
        return VisionTransformerTrace(embedded, layers, outputs.last_hidden_state, pooled, outputs)

    def _outputs(self, encoded: Array, grid: tuple[int, int]) -> tuple[Array | None, Outputs]:
        """What is classified, and all outputs, from the last block's output."""
        last = layer_norm(encoded, self.norm_gamma, self.norm_beta, self._epsilon)
        c, cls_rows = self.config, int(self.config.cls_token)
        pooled = logits = pooler_output = reconstruction = None
        if self.head is not None:
            pooled = pool(last, c.pool, cls_rows)
            logits = linear(self.head, pooled)
        if self.pooler is not None:
            pooler_output = np.tanh(linear(self.pooler, last[0]))
        if self.decoder is not None:
            reconstruction = decode(self.decoder, last[cls_rows:], grid, c.decoder_stride)
        return pooled, Outputs(last, logits, pooler_output, reconstruction)

    def embed(
        self, image: Scalar[Array, "C H W"], conditions: Conditions = PLAIN
    ) -> Scalar[Array, "n D"]:
        """h_0: the sequence that enters the first block."""
        self._check(image, conditions)
        tokens = patch_embedding(self.patch_embed, image)
        sequence = self._sequence(tokens, conditions, self._grid(image))
        factors = conditions.embedding_factors
        return sequence if factors is None else sequence * factors

    def _sequence(self, tokens: Array, conditions: Conditions, grid: tuple[int, int]) -> Array:
        """Mask token, CLS token, positions: linear in the tokens and these parameters together."""
        masked, cls_rows = conditions.masked_patches, int(self.config.cls_token)
        if masked is not None and self.mask_token is not None:
            tokens = np.where(masked[:, None], self.mask_token, tokens)
        table = self.pos[cls_rows:]
        if grid != self.config.grid:
            table = interpolate_positions(table, self.config.grid, grid)
        sequence = tokens + table
        if self.cls_token is None:
            return sequence
        return prepend_cls(self.cls_token + self.pos[0], sequence)

    # ---- backward --------------------------------------------------------------------------------

    def backward(
        self,
        image: Scalar[Array, "C H W"],
        d_logits: Scalar[Array, "K"] | None = None,
        *,
        d_last_hidden_state: Scalar[Array, "n D"] | None = None,
        d_pooler_output: Scalar[Array, "Q"] | None = None,
        d_reconstruction: Scalar[Array, "C h w"] | None = None,
        conditions: Conditions = PLAIN,
        trace: VisionTransformerTrace | None = None,
    ) -> tuple[VisionTransformerGrads, Scalar[Array, "C H W"]]:
        """The cotangents of all parameters and of the image.

        Args:
            image: as in `forward`.
            d_logits: the cotangent of the logits; None, here and below, is 0.
            d_last_hidden_state: that of the last hidden state itself, beside what reaches it
                through the heads.
            d_pooler_output: that of the pooler's output.
            d_reconstruction: that of the reconstruction.
            conditions: as in `forward`.
            trace: saves work where the caller has just run `trace` on this image.

        Raises:
            InvalidArray: an array does not fit the model, or is the cotangent of nothing that the
                model has.
        """
        given = {
            "logits": d_logits,
            "last_hidden_state": d_last_hidden_state,
            "pooler_output": d_pooler_output,
            "reconstruction": d_reconstruction,
        }
        self._check(image, conditions)
        check_cotangents(self.config, given, self._grid(image), self.dtype)
        t = trace or self.trace(image, conditions)
        heads, d_last = heads_backward(self._heads, given, t.pooled, t.outputs)
        encoded = t.hidden_states[-1]
        d_encoded, d_gamma, d_beta = layer_norm_backward(
            encoded, self.norm_gamma, d_last, self._epsilon
        )
        settings = self._settings(conditions, t.embedded)
        d_encoder, d_embedded = blocks_backward(self.encoder.layers, d_encoded, t.layers, settings)
        factors = conditions.embedding_factors
        d_sequence = d_embedded if factors is None else d_embedded * factors
        own, d_tokens = self._sequence_backward(d_sequence, conditions, self._grid(image))
        patch, d_image = patch_embedding_backward(self.patch_embed, image, d_tokens)
        grads = VisionTransformerGrads(
            d_patch_kernel=patch.d_kernel,
            d_patch_bias=patch.d_bias,
            d_encoder=d_encoder,
            d_norm_gamma=d_gamma,
            d_norm_beta=d_beta,
            **own,
            **heads,
        )
        return grads, d_image

    def _sequence_backward(
        self, d_sequence: Array, conditions: Conditions, grid: tuple[int, int]
    ) -> tuple[dict[str, Any], Array]:
        """The adjoint of `_sequence`: the cotangents of its parameters, and of the tokens."""
        cls_rows = int(self.config.cls_token)
        d_tokens = d_sequence[cls_rows:]
        d_table = d_tokens
        if grid != self.config.grid:
            d_table = interpolate_positions_backward(d_tokens, self.config.grid, grid)
        d_cls = d_sequence[0] if cls_rows else None
        grads: dict[str, Any] = {
            "d_pos": np.concatenate([d_sequence[:cls_rows], d_table]),
            "d_cls_token": d_cls,
            "d_mask_token": None,
        }
        if self.mask_token is not None:
            masked, zero = conditions.masked_patches, scalars.zeros((), d_tokens.dtype)
            masked = np.zeros(len(d_tokens), bool) if masked is None else masked
            grads["d_mask_token"] = scalars.total(np.where(masked[:, None], d_tokens, zero), axis=0)
            d_tokens = np.where(masked[:, None], zero, d_tokens)
        return grads, d_tokens

    # ---- forward mode ----------------------------------------------------------------------------

    def jvp(
        self,
        image: Scalar[Array, "C H W"],
        tangent: Self,
        d_image: Scalar[Array, "C H W"],
        conditions: Conditions = PLAIN,
    ) -> Outputs:
        """The tangents of all outputs along the parameters' `tangent` and d_image.

        Args:
            image: as in `forward`.
            tangent: a model of the same configuration, whose arrays are the direction.
            d_image: the direction of the image.
            conditions: as in `forward`.

        Raises:
            InvalidArray: an array does not fit the model.
            InvalidParameters: the tangent is of another model.
        """
        self._check(image, conditions)
        self._check_tangent(tangent)
        check_array("d_image", d_image, image.shape, "as the image", self.dtype)
        t = self.trace(image, conditions)
        d_tokens = patch_embedding_jvp(self.patch_embed, image, tangent.patch_embed, d_image)
        d_embedded = tangent._sequence(d_tokens, conditions, self._grid(image))
        if conditions.embedding_factors is not None:
            d_embedded = d_embedded * conditions.embedding_factors
        d_encoded = blocks_jvp(
            self.encoder.layers,
            tangent.encoder.layers,
            d_embedded,
            t.layers,
            self._settings(conditions, t.embedded),
        )
        d_last = layer_norm_jvp(
            t.hidden_states[-1],
            self.norm_gamma,
            d_encoded,
            tangent.norm_gamma,
            tangent.norm_beta,
            self._epsilon,
        )
        return heads_jvp(
            self._heads, tangent._heads, d_last, t.pooled, t.outputs, self._grid(image)
        )

    # ---- what a call must fit --------------------------------------------------------------------

    @property
    def _heads(self) -> Heads:
        c = self.config
        return Heads(
            self.head, self.pooler, self.decoder, c.pool, int(c.cls_token), c.decoder_stride
        )

    @property
    def _epsilon(self) -> str:
        return repr(float(self.config.layer_norm_eps))

    def _grid(self, image: Array) -> tuple[int, int]:
        return self.config.grid_of(*image.shape[1:])

    def _settings(self, conditions: Conditions, embedded: Array) -> list[Setting]:
        factors = conditions.block_factors or (BlockFactors(),) * len(self.encoder.layers)
        return [Setting(conditions.attention_mask, one) for one in factors]

    def _check(self, image: Any, conditions: Conditions) -> None:
        check_image(self.config, image, conditions, self.dtype)
        check_conditions(self.config, conditions, self._grid(image), self.dtype)

    def _check_tangent(self, tangent: Any) -> None:
        if type(tangent) is not type(self) or tangent.config != self.config:
            problem = f"expected a {type(self).__name__} of the same configuration"
            raise InvalidParameters("The tangent's parameters", [problem])
        if tangent.dtype != self.dtype:
            problem = f"expected scalar type {self.dtype}, got {tangent.dtype}"
            raise InvalidParameters("The tangent's parameters", [problem])
