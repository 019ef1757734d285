"""vitfast: the Vision Transformer of `vitspec`, fast: JAX, Flax NNX and Tokamax."""

from vitfast.attention import AttentionFn, make_tokamax_attention
from vitfast.convert import from_flat, to_flat
from vitfast.model import VisionTransformer

__all__ = ["AttentionFn", "VisionTransformer", "from_flat", "make_tokamax_attention", "to_flat"]
