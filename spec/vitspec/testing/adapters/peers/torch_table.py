"""The peers that are made of PyTorch modules: data only."""

from __future__ import annotations

from vitspec.testing.adapters.peers.peer import Deviation, Peer

_HUGGING_FACE = "vitspec.testing.adapters.peers.hugging_face:"
_LIBRARIES = "vitspec.testing.adapters.peers.torch_libraries:"
_TRANSFORMERS = ("transformers", "torch")
_VIT_PYTORCH = ("vit-pytorch", "einops", "torch")

_OUTPUT_BIAS = "the attention's output always has a bias"
_ALL_BIASES = "attention always has all of its biases"
_CLS_ONLY = "only the CLS token's row is classified"
_NO_LAYER_SCALE = "no layer scale"
_EPSILON_FIXED = "an epsilon of 1e-5, which cannot be set"

NEGATIVE_EPSILON = Deviation(
    ("ill-formed.layerNormEps_pos",),
    "choice",
    "PyTorch's layer normalisation takes a negative epsilon",
)
NO_HIDDEN_LAYER = Deviation(
    ("ill-formed.hiddenDim_pos",), "choice", "PyTorch makes linear layers without features"
)
ORDINARY = (NEGATIVE_EPSILON, NO_HIDDEN_LAYER)

_NORMS_OF_PATCHES = Deviation(
    ("forward", "vjp", "degenerate.*"),
    "choice",
    "patches are normalised before and after their product with the kernel",
)

TORCH_PEERS: tuple[Peer, ...] = (
    Peer(
        "transformers",
        _HUGGING_FACE + "vit",
        _TRANSFORMERS,
        "ViTForImageClassification of transformers 5, PyTorch's fused attention",
        (_CLS_ONLY, _OUTPUT_BIAS, _NO_LAYER_SCALE),
        ORDINARY,
    ),
    Peer(
        "transformers-eager",
        _HUGGING_FACE + "vit_eager",
        _TRANSFORMERS,
        "the same with attn_implementation='eager'",
        (
            "float64 is not claimed: the softmax is in float32 always",
            _CLS_ONLY,
            _OUTPUT_BIAS,
            _NO_LAYER_SCALE,
        ),
        ORDINARY,
    ),
    Peer(
        "transformers-bare",
        _HUGGING_FACE + "vit_bare",
        _TRANSFORMERS,
        "ViTModel; a linear layer of the adapter's classifies the last hidden state",
        ("always has a CLS token", _OUTPUT_BIAS, _NO_LAYER_SCALE),
        ORDINARY,
    ),
    Peer(
        "transformers-mim",
        _HUGGING_FACE + "vit_mim",
        _TRANSFORMERS,
        "ViTForMaskedImageModeling without a mask, by the mean of what it makes of each patch",
        ("a grid with as many rows as columns", _OUTPUT_BIAS, _NO_LAYER_SCALE),
        ORDINARY,
    ),
    Peer(
        "transformers-dinov2",
        _HUGGING_FACE + "dinov2",
        _TRANSFORMERS,
        "Dinov2ForImageClassification",
        (
            "square images: the positions of others are resampled as if their grid were square",
            "classifies the CLS token's row beside the patches' mean",
            "hidden_dim is a multiple of embed_dim",
            "always has layer scale",
            _OUTPUT_BIAS,
        ),
        (
            *ORDINARY,
            Deviation(
                ("interpolation.forward", "interpolation.vjp"),
                "precision",
                "positions are interpolated in float32, also in a model in float64",
            ),
        ),
    ),
    Peer(
        "timm",
        _LIBRARIES + "timm",
        ("timm", "torch", "torchvision"),
        "timm.models.vision_transformer.VisionTransformer, fc_norm=False",
        (
            "with global_pool='avg' the final norm is after pooling, unless fc_norm=False",
            "proj_bias=False leaves out the feed-forward's biases too, so it stays True",
            "does not classify the CLS token beside the mean",
        ),
        (
            NEGATIVE_EPSILON,
            Deviation(
                ("interpolation.forward", "interpolation.vjp"),
                "choice",
                "positions are smoothed before there are fewer of them (antialias=True), with a of"
                " -1/2",
            ),
        ),
    ),
    Peer(
        "torchvision",
        _LIBRARIES + "torchvision",
        ("torchvision", "torch"),
        "torchvision.models.VisionTransformer",
        (
            "square images of three channels, filled by square patches",
            "exact GELU only",
            _CLS_ONLY,
            _ALL_BIASES,
            _NO_LAYER_SCALE,
        ),
        ORDINARY,
    ),
    Peer(
        "vit-pytorch",
        _LIBRARIES + "vit_pytorch",
        _VIT_PYTORCH,
        "vit_pytorch.ViT",
        (
            _EPSILON_FIXED,
            "exact GELU only",
            "queries, keys and values never have biases",
            "a single head as wide as the token has no output product, so heads are 2 or more",
            "a CLS token where it is classified, none with the mean",
            "patches fill the image",
            _NO_LAYER_SCALE,
        ),
        (_NORMS_OF_PATCHES, NO_HIDDEN_LAYER),
    ),
    Peer(
        "vit-pytorch-plain",
        _LIBRARIES + "vit_pytorch_plain",
        _VIT_PYTORCH,
        "the same with its two normalisations of patches replaced by the identity",
        ("as vit-pytorch",),
        (NO_HIDDEN_LAYER,),
    ),
    Peer(
        "torch-pre-norm",
        _LIBRARIES + "torch_pre_norm",
        ("torch",),
        "torch.nn.TransformerEncoder, norm_first=True, between Conv2d and Linear",
        ("all biases or none at all", "no quick GELU", _NO_LAYER_SCALE),
        ORDINARY,
    ),
)
