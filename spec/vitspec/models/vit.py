"""The two Vision Transformers of TorchLean: `ViTSpec` (mean pooling) and `ViTClsSpec` (CLS token).

    patches  = conv2d(patch_embed, image)            (D, out_h, out_w)
    tokens   = the grid's positions as rows          (T, D), T = out_h * out_w, row-major
    sequence = tokens                    | cls_token above tokens        (n, D), n = T | T + 1
    encoded  = encoder(sequence + pos)
    pooled   = mean of the rows          | row 0                         (D,)
    logits   = W pooled + b              (K,)

Cotangents and tangents have the names of what they belong to: `d_image` is the image's cotangent in
`backward` and its tangent in `jvp`. There is no batch axis, no mask, no dropout, and no final
normalisation. The mean needs at least one token (rule `h_tok`); the CLS model works without any.
Both need at least one channel (rule `h_inC`).

Lean: `ViTSpec`, `ViTGrads`, `ViTClsSpec`, `ViTClsGrads` and `.forward`, `.backward`
(`Models/Vit.lean`). The JVPs have no counterpart in Lean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from vitspec import geometry
from vitspec.config import ViTConfig
from vitspec.layers.conv2d import Conv2DSpec, conv2d, conv2d_backward, conv2d_jvp
from vitspec.layers.linear import LinearSpec, linear, linear_backward, linear_jvp
from vitspec.layers.positional_encoding import (
    PositionalEncodingSpec,
    add_positional_encoding,
    add_positional_encoding_backward,
    add_positional_encoding_jvp,
)
from vitspec.models.model import Model
from vitspec.models.tokens import (
    cls_pool,
    cls_pool_backward,
    grid_to_tokens,
    mean_pool,
    mean_pool_backward,
    prepend_cls,
    prepend_cls_backward,
    tokens_to_grid,
)
from vitspec.models.transformer import (
    EncoderLayerTrace,
    TransformerEncoder,
    TransformerEncoderLayerGrads,
    encoder,
    encoder_backward,
    encoder_jvp,
    encoder_trace,
)
from vitspec.records import Record, check_array, named, record
from vitspec.typing import Array, Scalar, TupleOf


@dataclass(frozen=True)
class ViTTrace:
    """What a model computed: encoder input (n, D), layers, encoder output, pooled, logits."""

    embedded: Array
    layers: tuple[EncoderLayerTrace, ...]
    encoded: Array
    pooled: Array
    logits: Array


class _VisionTransformer(Model, ABC):
    """Forward, backward and JVP of both models, which differ in four linear maps.

    `_sequence` makes the encoder's sequence from the tokens and `_pool` one row from its output;
    `_sequence_backward` and `_pool_backward` are their adjoints.
    """

    grads_type: ClassVar[type[Any]]

    def forward(self, image: Scalar[Array, "C H W"]) -> Scalar[Array, "K"]:
        """The logits of one image.

        Args:
            image: channels first, of the model's size and scalar type, finite.

        Raises:
            InvalidArray: the image is not.
        """
        encoded = encoder(self.encoder, self.embed(image))
        return linear(self.head, self._pool(encoded))

    def trace(self, image: Scalar[Array, "C H W"]) -> ViTTrace:
        """The forward, with every intermediate value."""
        embedded = self.embed(image)
        layers = encoder_trace(self.encoder, embedded)
        encoded = layers[-1].output if layers else embedded
        pooled = self._pool(encoded)
        return ViTTrace(embedded, layers, encoded, pooled, logits=linear(self.head, pooled))

    def embed(self, image: Scalar[Array, "C H W"]) -> Scalar[Array, "n D"]:
        """The encoder's input: the sequence of tokens with their positions."""
        self._check_image("image", image)
        tokens = grid_to_tokens(conv2d(self.patch_embed, image))
        return add_positional_encoding(self.pos_enc, self._sequence(tokens))

    def backward(
        self,
        image: Scalar[Array, "C H W"],
        d_logits: Scalar[Array, "K"],
        trace: ViTTrace | None = None,
    ) -> tuple[Any, Scalar[Array, "C H W"]]:
        """The cotangents of all parameters (`ViTGrads`, `ViTClsGrads`) and of the image.

        Args:
            image: as in `forward`.
            d_logits: the cotangent of the logits.
            trace: saves work where the caller has just run `trace` on this image.

        Raises:
            InvalidArray: an array is not of the model's size and scalar type, or not finite.
        """
        self._check_image("image", image)
        K = self.config.num_classes
        check_array("d_logits", d_logits, (K,), "classes", self.dtype)
        t = trace or self.trace(image)
        head_grads, d_pooled = linear_backward(self.head, t.pooled, d_logits)
        d_encoded = self._pool_backward(d_pooled, n=t.encoded.shape[0])
        d_encoder, d_embedded = encoder_backward(self.encoder, t.embedded, d_encoded, t.layers)
        d_pos, d_sequence = add_positional_encoding_backward(self.pos_enc, d_embedded)
        own, d_tokens = self._sequence_backward(d_sequence)
        d_patches = tokens_to_grid(
            d_tokens, *geometry.patch_grid(self.config, self.height, self.width)
        )
        patch_grads, d_image = conv2d_backward(self.patch_embed, image, d_patches)
        grads = self.grads_type(
            d_patch_kernel=patch_grads.d_kernel,
            d_patch_bias=patch_grads.d_bias,
            d_pos=d_pos,
            d_encoder=d_encoder,
            d_head_w=head_grads.d_weights,
            d_head_b=head_grads.d_bias,
            **own,
        )
        return grads, d_image

    def jvp(
        self, image: Scalar[Array, "C H W"], tangent: Any, d_image: Scalar[Array, "C H W"]
    ) -> Scalar[Array, "K"]:
        """The tangent of the logits along the parameters' `tangent` and d_image.

        Args:
            image: as in `forward`.
            tangent: a model of the same configuration, whose arrays are the direction.
            d_image: the direction of the image.

        Raises:
            InvalidArray: an array is not of the model's size and scalar type, or not finite.
            InvalidParameters: the tangent is of another model.
        """
        self._check_image("d_image", d_image)
        self._check_tangent(tangent)
        t = self.trace(image)
        d_patches = conv2d_jvp(self.patch_embed, image, tangent.patch_embed, d_image)
        # Making the sequence is linear in the tokens and its own parameters together.
        d_sequence = tangent._sequence(grid_to_tokens(d_patches))
        d_embedded = add_positional_encoding_jvp(self.pos_enc, tangent.pos_enc, d_sequence)
        d_encoded = encoder_jvp(self.encoder, t.embedded, tangent.encoder, d_embedded, t.layers)
        return linear_jvp(self.head, t.pooled, tangent.head, self._pool(d_encoded))

    @abstractmethod
    def _sequence(self, tokens: Array) -> Array: ...

    @abstractmethod
    def _sequence_backward(self, d_sequence: Array) -> tuple[dict[str, Array], Array]: ...

    @abstractmethod
    def _pool(self, encoded: Array) -> Array: ...

    @abstractmethod
    def _pool_backward(self, d_pooled: Array, n: int) -> Array: ...


@record
class ViTGrads(Record):
    """Cotangents of the parameters of `ViTSpec`; `d_encoder` is in the order of the layers."""

    d_patch_kernel: Scalar[Array, "D C ph pw"] = named("patch_embed.kernel")
    d_patch_bias: Scalar[Array, "D"] = named("patch_embed.bias")
    d_pos: Scalar[Array, "T D"] = named("pos_enc.pos")
    d_encoder: TupleOf[TransformerEncoderLayerGrads] = named("encoder.layers")
    d_head_w: Scalar[Array, "K D"] = named("head.weights")
    d_head_b: Scalar[Array, "K"] = named("head.bias")


@record
class ViTSpec(_VisionTransformer):
    """The ViT whose logits come from the mean of the encoded tokens.

    >>> import numpy as np
    >>> config = ViTConfig(patch_h=2, patch_w=3, stride=2, embed_dim=8, hidden_dim=12, head_count=2,
    ...                    num_layers=2, num_classes=5)
    >>> rng = np.random.default_rng(0)
    >>> model = ViTSpec.init(config, in_channels=3, height=6, width=7, rng=rng)
    >>> image, d_logits = rng.standard_normal((3, 6, 7)), rng.standard_normal(5)
    >>> model.forward(image).shape
    (5,)
    >>> grads, d_image = model.backward(image, d_logits)
    >>> grads.to_flat().keys() == model.to_flat().keys(), d_image.shape
    (True, (3, 6, 7))
    """

    has_cls_token = False
    grads_type = ViTGrads

    config: ViTConfig
    in_channels: int
    height: int
    width: int
    patch_embed: Conv2DSpec
    pos_enc: PositionalEncodingSpec
    encoder: TransformerEncoder
    head: LinearSpec

    def _sequence(self, tokens: Array) -> Array:
        return tokens

    def _sequence_backward(self, d_sequence: Array) -> tuple[dict[str, Array], Array]:
        return {}, d_sequence

    def _pool(self, encoded: Array) -> Array:
        return mean_pool(encoded)

    def _pool_backward(self, d_pooled: Array, n: int) -> Array:
        return mean_pool_backward(d_pooled, n)


@record
class ViTClsGrads(Record):
    """Cotangents of the parameters of `ViTClsSpec`; `d_encoder` is in the order of the layers."""

    d_patch_kernel: Scalar[Array, "D C ph pw"] = named("patch_embed.kernel")
    d_patch_bias: Scalar[Array, "D"] = named("patch_embed.bias")
    d_cls_token: Scalar[Array, "D"] = named("cls_token")
    d_pos: Scalar[Array, "n D"] = named("pos_enc.pos")
    d_encoder: TupleOf[TransformerEncoderLayerGrads] = named("encoder.layers")
    d_head_w: Scalar[Array, "K D"] = named("head.weights")
    d_head_b: Scalar[Array, "K"] = named("head.bias")


@record
class ViTClsSpec(_VisionTransformer):
    """The ViT whose logits come from a learned CLS token, prepended to the tokens as row 0."""

    has_cls_token = True
    grads_type = ViTClsGrads

    config: ViTConfig
    in_channels: int
    height: int
    width: int
    patch_embed: Conv2DSpec
    cls_token: Scalar[Array, "D"]
    pos_enc: PositionalEncodingSpec
    encoder: TransformerEncoder
    head: LinearSpec

    def _sequence(self, tokens: Array) -> Array:
        return prepend_cls(self.cls_token, tokens)

    def _sequence_backward(self, d_sequence: Array) -> tuple[dict[str, Array], Array]:
        d_cls_token, d_tokens = prepend_cls_backward(d_sequence)
        return {"d_cls_token": d_cls_token}, d_tokens

    def _pool(self, encoded: Array) -> Array:
        return cls_pool(encoded)

    def _pool_backward(self, d_pooled: Array, n: int) -> Array:
        return cls_pool_backward(d_pooled, n)
