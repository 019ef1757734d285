"""The Vision Transformer in Flax NNX: TorchLean's `ViTSpec` and `ViTClsSpec`, on batches.

    tokens   = conv2d(patch_embed, images)           (B, T, D), the grid's positions row by row
    sequence = tokens                    | cls_token above tokens        (B, n, D), n = T | T + 1
    encoded  = encoder(sequence + pos)
    pooled   = mean of the rows          | row 0                         (B, D)
    logits   = W pooled + b              (B, K)

Images are (batch, height, width, channels). The specification is `vitspec.models.vit`;
`vitfast.convert` moves parameters between the two.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Float

from vitfast import ops
from vitfast.attention import AttentionFn, PlainAttention
from vitfast.layers import (
    Build,
    Conv2D,
    LayerTaps,
    Linear,
    NewParameter,
    PositionalEncoding,
    TransformerEncoder,
    prepend,
)
from vitfast.sharding import NoSharding, ShardingSpec, check_batch, on_mesh, place
from vitfast.tokamax_attention import make_tokamax_attention
from vitspec.config import ViTConfig
from vitspec.errors import InvalidArray
from vitspec.geometry import patch_count
from vitspec.models.parameters import check_model, parameter_shapes

Pool = Literal["mean", "cls"]


class Taps(NamedTuple):
    """What a model computed on the way.

    Attributes:
        hidden_states: (num_layers + 1, B, n, D): what enters the first layer, then each layer's
            output, the last of which is the encoder's.
        attention_weights: (num_layers, B, heads, n, n); None if they were not asked for.
    """

    hidden_states: jax.Array
    attention_weights: jax.Array | None


class ViT(nnx.Module):
    """`ViTSpec` (pool "mean") or `ViTClsSpec` (pool "cls").

    Its parameters are an NNX state with the specification's names. A module is a pytree: pass it to
    `jax.jit`, `jax.grad` and the like as it is.

    Args:
        config: the architecture.
        in_channels: channels of the images.
        height: height of the images, in pixels.
        width: width of the images, in pixels.
        pool: "mean" pools the mean of all tokens; "cls" prepends a learned token and pools that.
        attention_fn: the attention; None is the fastest that the platform has: `PlainAttention` on
            a CPU, `make_tokamax_attention()` on others.
        dtype: type of the activations; None is that of the parameters. Products of float32 are in
            full precision on every platform.
        param_dtype: type of the parameters, and of their gradients.
        sharding: where parameters and activations lie on the mesh that is set, if one is.
        scan_layers: whether the layers' parameters are stacked on a leading axis along which the
            program loops. If not, the layers are a list and the program a straight line, which on
            a CPU is faster, but takes longer to compile, the deeper the longer.
        use_gradient_checkpointing: whether to keep only each layer's input for the backward, and
            compute the layer once more there.
        custom_vjp: whether derivatives are those written by hand (`vitfast.ops`), or JAX's own,
            slower, which have a forward mode.
        rngs: the source of the initial parameters; None leaves each parameter as a
            `jax.ShapeDtypeStruct`, to be filled in later.

    Raises:
        NotWellFormed: config, in_channels or the number of tokens breaks a rule; all are listed.
        MeshDoesNotDivide: a parameter does not divide over the mesh; all are listed.
        ValueError: `pool` is unknown.

    >>> config = ViTConfig(embed_dim=12, hidden_dim=8, head_count=3, num_layers=2, num_classes=5)
    >>> model = ViT(config, in_channels=3, height=32, width=48, rngs=nnx.Rngs(0))
    >>> model(jnp.ones((2, 32, 48, 3))).shape
    (2, 5)
    """

    def __init__(
        self,
        config: ViTConfig,
        *,
        in_channels: int,
        height: int,
        width: int,
        pool: Pool = "mean",
        attention_fn: AttentionFn | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        sharding: ShardingSpec | None = None,
        scan_layers: bool = True,
        use_gradient_checkpointing: bool = False,
        custom_vjp: bool = True,
        rngs: nnx.Rngs | None,
    ) -> None:
        if pool not in ("mean", "cls"):
            raise ValueError(f"pool: expected 'mean' or 'cls', got {pool!r}")
        check_model(config, in_channels, height, width, cls=pool == "cls")
        self.config, self.pool = config, pool
        self.image_shape = (height, width, in_channels)
        self.token_count = patch_count(config, height, width)
        self.given_dtype = None if dtype is None else jnp.dtype(dtype)
        self.scan_layers = scan_layers
        self.sharding = NoSharding() if sharding is None else sharding
        self.sharding.check(config, self.parameter_shapes())
        build = Build(
            attention_fn or default_attention(custom_vjp),
            ops.BY_HAND if custom_vjp else ops.AUTOMATIC,
            self.sharding,
            use_gradient_checkpointing,
        )
        new = new_parameter(jnp.dtype(param_dtype), self.sharding, rngs)
        D, cls_rows = config.embed_dim, int(pool == "cls")
        self.patch_embed = Conv2D(config, in_channels, build, new=new)
        if pool == "cls":
            self.cls_token = new("cls_token", D, scale=0.02)
        self.pos_enc = PositionalEncoding(self.token_count + cls_rows, D, new=new)
        self.encoder = TransformerEncoder(config, build, stacked=scan_layers, new=new)
        self.head = Linear(D, config.num_classes, build, new=new)

    @property
    def param_dtype(self) -> Any:
        """The type of the parameters, also of ones that have been put in the place of the first."""
        return jnp.dtype(self.head.bias.dtype)

    @property
    def dtype(self) -> Any:
        """The type of the activations."""
        return self.param_dtype if self.given_dtype is None else self.given_dtype

    def __call__(
        self, images: Float[jax.Array | np.ndarray, "batch height width channels"]
    ) -> Float[jax.Array, "batch {self.config.num_classes}"]:
        """The logits of each image, in `dtype`.

        Raises:
            InvalidArray: the images have another size or type than the model.
            MeshDoesNotDivide: the mesh does not divide the batch.
        """
        encoded, _ = self.encoder(self._sequence(images))
        return self._classify(encoded)

    def forward_with_taps(
        self,
        images: Float[jax.Array | np.ndarray, "batch height width channels"],
        *,
        attention_weights: bool = False,
    ) -> tuple[Float[jax.Array, "batch {self.config.num_classes}"], Taps]:
        """The logits, and every layer's output.

        Args:
            images: as for `__call__`.
            attention_weights: whether also every layer's attention weights are wanted. They are
                computed beside the attention, which need not have them.

        Raises:
            InvalidArray, MeshDoesNotDivide: as `__call__`.
        """
        x = self._sequence(images)
        encoded, layers = self.encoder(x, taps=True, attention_weights=attention_weights)
        return self._classify(encoded), taps_of(x, layers)

    def _sequence(self, images: Any) -> jax.Array:
        """What the encoder reads: (B, n, D)."""
        check_images(images, self.image_shape, self)
        x = place(jnp.asarray(images, self.dtype), *self.sharding.images)
        if self.token_count:
            tokens = self.patch_embed(x)
        else:
            tokens = jnp.zeros((len(x), 0, self.config.embed_dim), x.dtype)
            tokens = place(tokens, *self.sharding.images)
        return self.pos_enc(prepend(self.cls_token[...], tokens) if self.pool == "cls" else tokens)

    def _classify(self, encoded: jax.Array) -> jax.Array:
        return self.head(encoded.mean(axis=1) if self.pool == "mean" else encoded[:, 0])

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, by the specification's flat name and in its order."""
        height, width, in_channels = self.image_shape
        return parameter_shapes(self.config, in_channels, height, width, cls=self.pool == "cls")


def check_images(images: Any, shape: tuple[int, int, int], model: Any, advice: str = "") -> None:
    """Refuse images that a model does not take.

    Args:
        images: anything with a shape and a type.
        shape: the expected (height, width, channels).
        model: has `dtype`, `param_dtype` and `sharding`.
        advice: how to have images of another size accepted.

    Raises:
        InvalidArray: the images have another size or type.
        MeshDoesNotDivide: the mesh does not divide the batch.
    """
    expected = f"images: expected shape (batch, {', '.join(map(str, shape))})"
    if images.ndim != 4 or images.shape[1:] != shape:
        raise InvalidArray(
            f"{expected}, that is (batch, height, width, channels), got {images.shape}{advice}"
        )
    types = dict.fromkeys((model.dtype.name, model.param_dtype.name))
    if images.dtype.name not in types:
        raise InvalidArray(
            f"{expected} of {' or '.join(types)}, the model's types, got {images.dtype}; "
            "convert the images with .astype"
        )
    if np.float64 in (model.dtype, model.param_dtype) and not jax.config.jax_enable_x64:
        raise InvalidArray(
            "images: JAX would round float64 to float32; call inside `jax.enable_x64(True)`"
        )
    if on_mesh():
        check_batch(len(images), model.sharding)


def default_attention(custom_vjp: bool) -> AttentionFn:
    """The fastest attention that the platform has, or the plain one if forward mode is wanted."""
    if custom_vjp and jax.default_backend() != "cpu":
        return make_tokamax_attention()
    return PlainAttention(custom_vjp)


def new_parameter(param_dtype: Any, sharding: ShardingSpec, rngs: nnx.Rngs | None) -> NewParameter:
    """Draws parameters from a normal distribution; without `rngs`, only notes their shapes.

    On a mesh, each device draws its own part: no device ever holds the whole.
    """

    def new(name: str, *shape: int, scale: float = 0.0, center: float = 0.0) -> nnx.Param:
        if rngs is None:
            return nnx.Param(jax.ShapeDtypeStruct(shape, param_dtype))
        stacked = len(shape) > len(sharding.parameter(name))
        where: dict[str, PartitionSpec] = {}
        if on_mesh():
            where = {"out_sharding": sharding.parameter(name, stacked=stacked)}
        if scale == 0.0:
            return nnx.Param(jnp.full(shape, center, param_dtype, **where))
        drawn = jax.random.normal(rngs.params(), shape, param_dtype, **where)
        return nnx.Param(center + scale * drawn)

    return new


def taps_of(x: jax.Array, layers: LayerTaps | None) -> Taps:
    """What enters the first layer x, and the layers' outputs."""
    if layers is None:  # there are none
        return Taps(x[None], None)
    return Taps(jnp.concatenate([x[None], layers.output]), layers.attention_weights)
