"""Vision Transformers in PyTorch and in JAX that are written to be wrong, on request.

Nothing here calls the specification, and no mistake is one of its patches: each is made where code
in that framework makes it, and the framework differentiates it. Without mistakes they are right:

    implementation("torch", "vit")
    implementation("jax", "vision-transformer", ["gelu-tanh"], taps=False)
"""

from mistaken.implementation import implementation
from mistaken.names import FAMILIES, FRAMEWORKS, NOT_MADE, made

__all__ = ["FAMILIES", "FRAMEWORKS", "NOT_MADE", "implementation", "made"]
