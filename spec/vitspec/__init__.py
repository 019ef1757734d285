"""vitspec: the Vision Transformer as an executable specification.

>>> import numpy as np
>>> from vitspec import ViTConfig, ViTSpec
>>> config = ViTConfig(patch_h=4, patch_w=4, stride=4, embed_dim=8, hidden_dim=16, head_count=2,
...                    num_layers=1, num_classes=3)
>>> rng = np.random.default_rng(0)
>>> model = ViTSpec.init(config, in_channels=3, height=8, width=12, rng=rng)
>>> image = rng.standard_normal((3, 8, 12))
>>> logits = model.forward(image)
>>> grads, d_image = model.backward(image, d_logits=np.array([1.0, -1.0, 0.5]))
>>> logits.shape, grads.d_pos.shape, d_image.shape
((3,), (6, 8), (3, 8, 12))
"""

__version__ = "0.5.0"

from vitspec.config import (
    TransformerStackConfig,
    ViTConfig,
    transformer_base_config,
    transformer_big_config,
    vit_base_patch16_config,
    vit_large_patch16_config,
)
from vitspec.errors import InvalidArray, InvalidParameters, NotWellFormed
from vitspec.models.block import BlockFactors
from vitspec.models.conditions import Conditions
from vitspec.models.heads import Outputs
from vitspec.models.parameters import parameter_shapes
from vitspec.models.vision_transformer import (
    VisionTransformer,
    VisionTransformerGrads,
    VisionTransformerTrace,
)
from vitspec.models.vit import ViTClsGrads, ViTClsSpec, ViTGrads, ViTSpec, ViTTrace
from vitspec.reals import (
    complex_step_derivative,
    distance_bound,
    encloses,
    from_reals,
    radius,
    to_reals,
)
from vitspec.scalars import EPSILON
from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig

__all__ = [
    "EPSILON",
    "BlockFactors",
    "Conditions",
    "DropoutRates",
    "InvalidArray",
    "InvalidParameters",
    "NotWellFormed",
    "Outputs",
    "TransformerStackConfig",
    "ViTClsGrads",
    "ViTClsSpec",
    "ViTConfig",
    "ViTGrads",
    "ViTSpec",
    "ViTTrace",
    "VisionTransformer",
    "VisionTransformerConfig",
    "VisionTransformerGrads",
    "VisionTransformerTrace",
    "complex_step_derivative",
    "distance_bound",
    "encloses",
    "from_reals",
    "parameter_shapes",
    "radius",
    "to_reals",
    "transformer_base_config",
    "transformer_big_config",
    "vit_base_patch16_config",
    "vit_large_patch16_config",
]
