"""What both models are made of: a configuration, an image size, parameters; and how they are built.

A model checks, when it is built, that its configuration is well-formed and that its parameters fit
it; what it is applied to is checked when it is applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from vitspec.config import ViTConfig
from vitspec.errors import InvalidArray, InvalidParameters
from vitspec.layers.conv2d import Conv2DSpec
from vitspec.layers.linear import LinearSpec
from vitspec.layers.positional_encoding import PositionalEncodingSpec
from vitspec.models.parameters import (
    build_encoder,
    check_model,
    check_parameter_count,
    parameter_shapes,
    random_parameters,
)
from vitspec.models.transformer import TransformerEncoder
from vitspec.records import Record, check_array, check_flat, is_scalar_type
from vitspec.typing import SCALAR_TYPES, Array


class Model(Record):
    """The parameters of a ViT with its static configuration and the size of its images."""

    has_cls_token: ClassVar[bool]

    config: ViTConfig
    in_channels: int
    height: int
    width: int
    patch_embed: Conv2DSpec
    pos_enc: PositionalEncodingSpec
    encoder: TransformerEncoder
    head: LinearSpec

    def __post_init__(self) -> None:
        """Check that the configuration is well-formed and that the parameters fit it."""
        super().__post_init__()
        c, size = self.config, (self.in_channels, self.height, self.width)
        check_model(c, *size, cls=self.has_cls_token)
        layers = self.encoder.layers  # as in Lean, only the list counts, not config.num_layers
        shapes = parameter_shapes(c, *size, cls=self.has_cls_token, num_layers=len(layers))
        check_flat(self.to_flat(), shapes, type(self).__name__)
        static = {
            "patch_embed.stride": (self.patch_embed.stride, c.stride),
            "patch_embed.padding": (self.patch_embed.padding, c.padding),
        } | {
            f"encoder.layers.{i}.mha.head_count": (layer.mha.head_count, c.head_count)
            for i, layer in enumerate(layers)
        }
        wrong = [
            f"{n}: expected {want}, got {got}" for n, (got, want) in static.items() if got != want
        ]
        if wrong:
            raise InvalidParameters(type(self).__name__, wrong)

    @classmethod
    def init(
        cls,
        config: ViTConfig,
        *,
        in_channels: int,
        height: int,
        width: int,
        rng: np.random.Generator,
        dtype: Any = np.float64,
    ) -> Self:
        """A model with fresh random parameters, in which nothing is zero or alike.

        Raises:
            NotWellFormed: the configuration breaks a rule, or the image has no channel or (for mean
                pooling) no patch.
            InvalidParameters: there would be more than `MAX_PARAMETERS` or `MAX_LAYERS`.
            InvalidArray: `rng` is no generator, or `dtype` no float or complex type.
        """
        C, H, W = check_model(config, in_channels, height, width, cls=cls.has_cls_token)
        if not isinstance(rng, np.random.Generator):
            raise InvalidArray(
                f"rng: expected a numpy.random.Generator, got {type(rng).__name__}; "
                "np.random.default_rng(0) makes one"
            )
        if not is_scalar_type(dtype) or np.dtype(dtype) == np.dtype(object):
            raise InvalidArray(
                f"dtype: expected one of {', '.join(SCALAR_TYPES[:-1])}, got {dtype!r}; "
                "to_reals makes real balls of floats"
            )
        check_parameter_count(config, C, H, W, cls=cls.has_cls_token)
        shapes = parameter_shapes(config, C, H, W, cls=cls.has_cls_token)
        flat = random_parameters(shapes, rng, np.dtype(dtype))
        return cls.from_flat(config, flat, in_channels=C, height=H, width=W)

    @classmethod
    def from_flat(
        cls,
        config: ViTConfig,
        flat: Mapping[str, Array],
        *,
        in_channels: int,
        height: int,
        width: int,
    ) -> Self:
        """The model with these parameters, by flat name; the arrays are not copied.

        Raises:
            NotWellFormed: as `init`.
            InvalidParameters: names are missing or unexpected, shapes are wrong or scalar types are
                mixed; all of it is listed.
        """
        C, H, W = check_model(config, in_channels, height, width, cls=cls.has_cls_token)
        check_parameter_count(config, C, H, W, cls=cls.has_cls_token)
        shapes = parameter_shapes(config, C, H, W, cls=cls.has_cls_token)
        check_flat(flat, shapes, f"The parameters of {cls.__name__}")
        parts: dict[str, Any] = {
            "config": config,
            "patch_embed": Conv2DSpec(
                stride=config.stride,
                padding=config.padding,
                kernel=flat["patch_embed.kernel"],
                bias=flat["patch_embed.bias"],
            ),
            "pos_enc": PositionalEncodingSpec(pos=flat["pos_enc.pos"]),
            "encoder": build_encoder(config, flat),
            "head": LinearSpec(weights=flat["head.weights"], bias=flat["head.bias"]),
            "in_channels": C,
            "height": H,
            "width": W,
        }
        if cls.has_cls_token:
            parts["cls_token"] = flat["cls_token"]
        return cls(**parts)

    def _check_image(self, name: str, image: Any) -> None:
        shape = (self.in_channels, self.height, self.width)
        check_array(name, image, shape, "channels, height, width", self.dtype)

    def _check_tangent(self, tangent: Any) -> None:
        if type(tangent) is not type(self):
            problem = f"expected a {type(self).__name__}, got {type(tangent).__name__}"
            raise InvalidParameters("The tangent's parameters", [problem])
        shapes = {name: leaf.shape for name, leaf in self.to_flat().items()}
        check_flat(tangent.to_flat(), shapes, "The tangent's parameters")
        if tangent.dtype != self.dtype:
            problem = f"expected scalar type {self.dtype}, got {tangent.dtype}"
            raise InvalidParameters("The tangent's parameters", [problem])
        for name, leaf in tangent.to_flat().items():
            check_array(f"tangent {name}", leaf, leaf.shape, "as in the model", self.dtype)
