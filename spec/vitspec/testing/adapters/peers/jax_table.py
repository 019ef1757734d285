"""The peers that are made of JAX functions and modules: data only."""

from __future__ import annotations

from vitspec.testing.adapters.peers.peer import Deviation, Peer

_HERE = "vitspec.testing.adapters.peers."

_FLOAT32_ONLY = "float64 is not claimed: attention takes its softmax in float32 always"
_REWRITTEN = "written here after the project's source, so ill-formed configurations say nothing"
_CLS_ONLY = "only the CLS token's row is classified"
_MEAN_ONLY = "no CLS token: the mean of the patches is classified"
_ALL_BIASES = "attention always has all of its biases"
_ONE_SWITCH = "one switch for all biases of attention"
_NO_LAYER_SCALE = "no layer scale"
_EPSILON_OF_FLAX = "an epsilon of 1e-6, Flax's, which cannot be set"
_SQUARE = "square images and square patches"
_FILLED = "patches fill the image"

NEGATIVE_EPSILON = Deviation(
    ("ill-formed.layerNormEps_pos",), "choice", "layer normalisation takes a negative epsilon"
)
FAST_VARIANCE = Deviation(
    ("forward", "vjp", "degenerate.*"),
    "precision",
    "Flax's layer normalisation takes the variance as the mean of squares less the square of the "
    "mean (use_fast_variance, its default), which loses digits where tokens have an offset",
)

JAX_PEERS: tuple[Peer, ...] = (
    Peer(
        "jimm",
        f"{_HERE}jimm:implementation",
        ("flax",),
        "jimm's VisionTransformer in Flax NNX",
        (_REWRITTEN, _FLOAT32_ONLY, _SQUARE, _CLS_ONLY, _ALL_BIASES, _NO_LAYER_SCALE,
         "exact and quick GELU only; the exact one was the tanh form until 2025",
         "asks for an epsilon of 1e-12"),
        (Deviation(
            ("forward", "vjp", "degenerate.*"), "bug",
            "the epsilon 1e-12 reaches the final norm only: the blocks have 1e-6",
            "https://github.com/pythoncrazy/jimm/blob/main/src/jimm/common/vit.py",
        ),),
    ),
    Peer(
        "bonsai",
        f"{_HERE}bonsai:implementation",
        ("flax",),
        "bonsai's ViTClassificationModel in Flax NNX",
        (_REWRITTEN, _FLOAT32_ONLY, _FILLED, _CLS_ONLY, _ALL_BIASES, _NO_LAYER_SCALE,
         "graded with the exact GELU of the one checkpoint that it loads"),
        (Deviation(
            ("forward", "vjp", "degenerate.*"), "bug",
            "GELU in its tanh form, for google/vit-base-patch16-224, which has the exact one",
            "https://github.com/jax-ml/bonsai/blob/main/bonsai/models/vit/modeling.py",
        ),),
    ),
    Peer(
        "big-vision",
        f"{_HERE}big_vision:implementation",
        ("flax",),
        "big_vision's ViT in Flax Linen, pool_type='gap', learned positions",
        (_REWRITTEN, _MEAN_ONLY, "GELU in its tanh form, on purpose", _EPSILON_OF_FLAX,
         _ALL_BIASES, _NO_LAYER_SCALE,
         "its CLS token ('tok') has no position, and its attention pool ('map') has parameters "
         "that the family lacks"),
        (FAST_VARIANCE,),
    ),
    Peer(
        "nnx-tutorial",
        f"{_HERE}textbooks:nnx_tutorial",
        ("flax",),
        "the NNX tutorial's mean-pool ViT in Flax NNX",
        (_REWRITTEN, _MEAN_ONLY, "ReLU", "square patches", _EPSILON_OF_FLAX, _ALL_BIASES,
         _NO_LAYER_SCALE),
        (FAST_VARIANCE,),
    ),
    Peer(
        "d2l",
        f"{_HERE}textbooks:d2l",
        ("flax",),
        "Dive into Deep Learning's ViT, its edition for JAX, in Flax Linen",
        (_REWRITTEN, _CLS_ONLY, "GELU in its tanh form", _FILLED, _EPSILON_OF_FLAX, _ONE_SWITCH,
         _NO_LAYER_SCALE),
        (FAST_VARIANCE,),
    ),
    Peer(
        "flax-vit",
        f"{_HERE}flax_vit:implementation",
        ("transformers", "flax"),
        "FlaxViTForImageClassification of transformers 4; version 5 has no such class",
        (_SQUARE, _CLS_ONLY, "the attention's output always has a bias", _NO_LAYER_SCALE),
        (FAST_VARIANCE, NEGATIVE_EPSILON),
    ),
    Peer(
        "equimo",
        f"{_HERE}equimo:implementation",
        ("equimo", "jax"),
        "equimo.models.VisionTransformer without registers",
        (_FLOAT32_ONLY, _SQUARE, _FILLED, "no quick GELU",
         "the activation that it calls 'gelu', its default, is the tanh form; the exact one is "
         "'exactgelu'",
         "an epsilon of 1e-5 unless another is given"),
        (NEGATIVE_EPSILON,
         Deviation(("ill-formed.cls_needed",), "choice",
                   "without a CLS token, pooling by 'token' classifies the first patch")),
    ),
    Peer(
        "keras-hub",
        f"{_HERE}keras_hub:implementation",
        ("keras-hub", "keras", "jax"),
        "keras_hub.models.ViTImageClassifier, Keras on JAX; it imports without TensorFlow",
        (_FLOAT32_ONLY, "exact GELU only", _FILLED, _ONE_SWITCH, _NO_LAYER_SCALE,
         "no CLS token with the mean: pooling='gap' would count its row too",
         "an epsilon of 1e-6 unless another is given"),
        (NEGATIVE_EPSILON,),
    ),
)  # fmt: skip
