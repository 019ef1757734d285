"""Mistakes in the practical family's forward: the ViTs that people load."""

from __future__ import annotations

from vitspec.testing.catalogue import functions as at
from vitspec.testing.catalogue.deviation import Patch, of_practical

_NORM1 = "layer_norm(x, block.norm1_gamma, block.norm1_beta, block.epsilon)"
_NORM2 = "layer_norm(residual, block.norm2_gamma, block.norm2_beta, block.epsilon)"
_BRANCH1 = "times(times(mha.output, block.layer_scale1), f.attention)"
_BRANCH2 = "times(times(ffn.output, block.layer_scale2), f.mlp)"
_BLOCK_EPS = "block.epsilon"
LAST = "last = layer_norm(encoded, self.norm_gamma, self.norm_beta, self._epsilon)"
LAST_BACKWARD = (
    "layer_norm_backward(\n            encoded, self.norm_gamma, d_last, self._epsilon\n        )"
)
LAST_JVP = (
    "d_last = layer_norm_jvp(\n"
    "            t.hidden_states[-1],\n"
    "            self.norm_gamma,\n"
    "            d_encoded,\n"
    "            tangent.norm_gamma,\n"
    "            tangent.norm_beta,\n"
    "            self._epsilon,\n"
    "        )"
)
_POOLED = "pooled = pool(last, c.pool, cls_rows)"
_WHOLE = "x[:, : g_h * ph, : g_w * pw]"
_WHOLE_LAST = "x[:, H - g_h * ph :, W - g_w * pw :]"
_TABLE = "table = self.pos[cls_rows:]"
_WITH_CLS = "prepend_cls(self.cls_token + self.pos[0], sequence)"


def _gelu_deriv(name: str) -> tuple[Patch, ...]:
    """Another function in the place of the exact GELU's derivative."""
    density = "density = np.exp(x * x / -2) / np.sqrt(2 * scalars.pi(x.dtype))"
    return (
        Patch(at.GELU_DERIV, density, f"return {name}(x)"),
        Patch(at.GELU_DERIV, "return normal_distribution(x) + x * density", ""),
    )


def without_biases(letters: str) -> tuple[Patch, ...]:
    """The projections without their biases."""
    return tuple(Patch(at.ATTENTION, f"mha.w{c}, mha.b{c})", f"mha.w{c}, None)") for c in letters)


def no_bias_gradient(letters: str) -> tuple[Patch, ...]:
    """What automatic differentiation gives biases that are not used."""
    backward = (
        Patch(at.ATTENTION_BACKWARD, f"d_b{c}=bias_backward(mha.b{c}, {d})",
              f"d_b{c}=None if mha.b{c} is None else 0 * mha.b{c}")
        for c, d in zip("qkvo", ("d_q", "d_k", "d_v", "d_out"), strict=True) if c in letters
    )  # fmt: skip
    jvp = {c: f"tangent.w{c}, tangent.b{c})" for c in "qkv"}
    jvp["o"] = "combine_heads(d_heads), tangent.wo, tangent.bo)"
    tangents = (
        Patch(at.ATTENTION_JVP, jvp[c], jvp[c].replace(f"tangent.b{c}", "None")) for c in letters
    )
    return (*backward, *tangents)


PRACTICAL_FORWARD = (
    # ---- activations
    of_practical(
        "gelu-tanh", "forward", at.GELU, "return x * normal_distribution(x)", "return gelu_tanh(x)",
        "the approximation by tanh stands for the exact GELU",
        "Up to 4.7e-4 in each activation, so about 1e-3 of the logits: far above float32's"
        " rounding, and within the tolerance of most tests. Other activations are right.",
        ("`jax.nn.gelu`, `nnx.gelu` and `flax.linen.gelu` have it as their default",
         "jimm's snapshot of July 2025 and bonsai's ViT, for checkpoints of the exact form",
         "tinygrad/tinygrad#16162"),
        derivatives=_gelu_deriv("gelu_tanh_deriv"),
    ),
    of_practical(
        "gelu-quick", "forward", at.GELU,
        "return x * normal_distribution(x)", "return quick_gelu(x)",
        "x s(1.702 x) stands for the exact GELU",
        "Up to 2.0e-2 in each activation; all logits are wrong by some per cent. Other activations"
        " are right.",
        ("jimm and Hugging Face have both, by name: one is easily taken for the other",),
        derivatives=_gelu_deriv("quick_gelu_deriv"),
    ),
    of_practical(
        "gelu-exact-for-tanh", "forward", at.GELU_TANH,
        "t, _ = _tanh_and_slope(x)", "return gelu(x)",
        "the exact GELU stands for the approximation by tanh",
        "The same difference as `gelu-tanh`, the other way round: for checkpoints that were trained"
        " with the approximation. Other activations are right.",
        ("big_vision trains with the approximation; PyTorch's `nn.GELU()` is the exact one",),
        also=(Patch(at.GELU_TANH, "return x * (1 + t) / 2", ""),),
        derivatives=(
            Patch(at.GELU_TANH_DERIV, "t, slope = _tanh_and_slope(x)", "return gelu_deriv(x)"),
            Patch(at.GELU_TANH_DERIV, "return (1 + t) / 2 + x * (1 - t * t) * slope / 2", ""),
        ),
    ),
    # ---- normalisation
    of_practical(
        "layer-norm-eps-1e-6", "both", at.NORMALIZE,
        "scalars.scalar(epsilon, x.dtype)", 'scalars.scalar("1e-6", x.dtype)',
        "epsilon is 1e-6, whatever the configuration says",
        "A normalised row is too small by 5e-7 / variance if the configuration says 1e-12: at"
        " variance 1 hardly above float32's rounding. Rows of small variance show it.",
        ("timm, torchvision and Flax have 1e-6, Hugging Face's ViT 1e-12",),
        derivatives=(),
    ),
    of_practical(
        "block-norm-eps-1e-6", "forward", at.BLOCK, _NORM1, _NORM1.replace(_BLOCK_EPS, '"1e-6"'),
        "the blocks' epsilon is 1e-6; the final normalisation has the configuration's",
        "As `layer-norm-eps-1e-6`, in the blocks alone.",
        ("jimm's `common/vit.py`: the epsilon is not handed on to the blocks",),
        also=(Patch(at.BLOCK, _NORM2, _NORM2.replace(_BLOCK_EPS, '"1e-6"')),),
        derivatives=(
            Patch(at.BLOCK_BACKWARD, "setting.factors, block.epsilon", 'setting.factors, "1e-6"'),
            Patch(at.BLOCK_JVP, "setting.factors, block.epsilon", 'setting.factors, "1e-6"'),
        ),
    ),
    of_practical(
        "final-norm-eps-1e-6", "forward", at.OUTPUTS,
        LAST, LAST.replace("self._epsilon", '"1e-6"'),
        "the final normalisation's epsilon is 1e-6; the blocks have the configuration's",
        "As `layer-norm-eps-1e-6`, in the last normalisation alone.",
        ("not seen in public; included as the counterpart of `block-norm-eps-1e-6`",),
        derivatives=(Patch(at.MODEL_BACKWARD, LAST_BACKWARD,
                           LAST_BACKWARD.replace("self._epsilon", '"1e-6"')),
                     Patch(at.MODEL_JVP, LAST_JVP, LAST_JVP.replace("self._epsilon", '"1e-6"'))),
    ),
    of_practical(
        "final-norm-missing", "forward", at.OUTPUTS, LAST, "last = encoded",
        "what the last block computes is pooled as it is",
        "Logits are wrong at their own size, and the gradients of the final gamma and beta, if"
        " automatic, are 0.",
        ("TorchLean's ViT has none, being post-norm",),
        derivatives=(Patch(at.MODEL_BACKWARD, LAST_BACKWARD,
                           "d_last, 0 * self.norm_gamma, 0 * self.norm_beta"),
                     Patch(at.MODEL_JVP, LAST_JVP, "d_last = d_encoded")),
    ),
    of_practical(
        "final-norm-after-pooling", "forward", at.OUTPUTS, _POOLED,
        "pooled = layer_norm(\n"
        "                pool(encoded, c.pool, cls_rows).reshape(-1, c.embed_dim),\n"
        "                self.norm_gamma, self.norm_beta, self._epsilon,\n"
        "            ).reshape(-1)",
        "the rows are pooled first, and the pooled row is normalised",
        "Wrong by tens of per cent where several rows are pooled. Invisible where the CLS token's"
        " row alone is.",
        ("timm has either, by name: `fc_norm`",),
    ),
    of_practical(
        "post-norm", "forward", at.BLOCK, f"normed1 = {_NORM1}", "normed1 = x",
        "the normalisations stand after the residuals' additions, as in the Lean mirror",
        "Logits are wrong at their own size.",
        ("TorchLean's ViT and the Transformer of Vaswani et al. are post-norm, by design",),
        also=(
            Patch(at.BLOCK, f"residual = x + {_BRANCH1}",
                  f"residual = {_NORM1.replace('(x,', f'(x + {_BRANCH1},')}"),
            Patch(at.BLOCK, f"normed2 = {_NORM2}", "normed2 = residual"),
            Patch(at.BLOCK, f"output = residual + {_BRANCH2}",
                  f"output = {_NORM2.replace('(residual,', f'(residual + {_BRANCH2},')}"),
        ),
    ),
    of_practical(
        "residual-of-the-normalised", "forward", at.BLOCK,
        f"residual = x + {_BRANCH1}", f"residual = normed1 + {_BRANCH1}",
        "the attention's output is added to its normalised input",
        "Logits are wrong at their own size.",
        ("not seen in public; included because pre-norm is often made out of post-norm",),
    ),
    # ---- attention and layer scale
    of_practical(
        "qkv-biases-missing", "forward", at.ATTENTION, "mha.wq, mha.bq)", "mha.wq, None)",
        "queries, keys and values are projected without their biases",
        "Logits are wrong by the size of the biases, and their gradients, if automatic, are 0."
        " Invisible at initialisation, where they are 0, and in models without them.",
        ("D2L's ViT has none by default (`use_bias=False`), Hugging Face's has (`qkv_bias`)",),
        also=without_biases("kv"),
        derivatives=no_bias_gradient("qkv"),
    ),
    of_practical(
        "output-bias-missing", "forward", at.ATTENTION, "mha.wo, mha.bo)", "mha.wo, None)",
        "the attention's output projection has no bias",
        "Logits are wrong by the size of the bias, and its gradient, if automatic, is 0. Invisible"
        " at initialisation, where it is 0, and in models without it.",
        ("D2L's ViT has none by default; in Hugging Face's it stays where `qkv_bias` is off",),
        derivatives=no_bias_gradient("o"),
    ),
    of_practical(
        "layer-scales-missing", "forward", at.BLOCK,
        "times(mha.output, block.layer_scale1)", "times(mha.output, None)",
        "the branches' outputs are not scaled",
        "Logits are wrong by the distance of the scales from 1. Invisible in models without them.",
        ("jimm added them for DINOv2; Hugging Face's ViT has none",),
        also=(Patch(at.BLOCK, "times(ffn.output, block.layer_scale2)", "times(ffn.output, None)"),),
        derivatives=(
            Patch(at.SCALE_BACKWARD, "return d_out * scale, scalars.total(d_out * branch, axis=0)",
                  "return d_out, 0 * scale"),
            Patch(at.SCALE_JVP, "return d_branch * scale + branch * d_scale", "return d_branch"),
        ),
    ),
    of_practical(
        "layer-scales-swapped", "forward", at.BLOCK,
        "times(mha.output, block.layer_scale1)", "times(mha.output, block.layer_scale2)",
        "attention has the feed-forward's scale, and the feed-forward attention's",
        "Logits are wrong by the difference of the scales. Invisible at initialisation, where both"
        " are alike, and in models without them.",
        ("not seen in public; included because two names that differ in a digit are easily mixed",),
        also=(Patch(at.BLOCK, "times(ffn.output, block.layer_scale2)",
                    "times(ffn.output, block.layer_scale1)"),),
    ),
    of_practical(
        "layer-scales-before-the-bias", "forward", at.BLOCK,
        "times(mha.output, block.layer_scale1)",
        "times(mha.output - (0 if block.mha.bo is None else block.mha.bo), block.layer_scale1)"
        " + (0 if block.mha.bo is None else block.mha.bo)",
        "the branches' products are scaled, and their biases are not",
        "Logits are wrong by the biases times the scales' distance from 1. Invisible in models"
        " without layer scale.",
        ("not seen in public; included because a scale is folded into a weight, and its bias"
         " forgotten",),
        also=(Patch(at.BLOCK, "times(ffn.output, block.layer_scale2)",
                    "times(ffn.output - block.ffn.b2, block.layer_scale2) + block.ffn.b2"),),
    ),
    of_practical(
        "layer-scales-on-the-sum", "forward", at.BLOCK,
        f"residual = x + {_BRANCH1}",
        "residual = times(x + mha.output, block.layer_scale1)",
        "the first scale multiplies the residual's sum instead of the branch",
        "Logits are wrong by the scales' distance from 1. Invisible in models without them.",
        ("not seen in public; included because a scale after the addition looks alike",),
    ),
    # ---- patches, tokens, positions, pooling
    of_practical(
        "patch-remainder-first", "both", at.PATCHES, _WHOLE, _WHOLE_LAST,
        "pixels that fill no patch are left out above and on the left",
        "All logits are wrong. Invisible where the patches fill the image.",
        ("not seen in public; included because padding and cropping differ between libraries: timm"
         " pads (`dynamic_img_pad`)",),
        derivatives=(Patch(at.PIXELS, _WHOLE, _WHOLE_LAST),),
    ),
    of_practical(
        "cls-position-missing", "forward", at.SEQUENCE,
        _WITH_CLS, "prepend_cls(self.cls_token, sequence)",
        "the CLS token's position is not added to it",
        "Logits are wrong by the size of that position, whose gradient, if automatic, is 0."
        " Invisible without a CLS token.",
        ("timm has either, by name: `no_embed_class`",),
        derivatives=(Patch(at.SEQUENCE_BACKWARD, "np.concatenate([d_sequence[:cls_rows], d_table])",
                           "np.concatenate([0 * d_sequence[:cls_rows], d_table])"),),
    ),
    of_practical(
        "positions-from-the-cls-row", "forward", at.SEQUENCE,
        _TABLE, "table = self.pos[: len(self.pos) - cls_rows]",
        "the first patch has the CLS token's position, and each other the one before its own",
        "All logits are wrong. Invisible without a CLS token.",
        ("google-research/l2p#21: slices that start at the wrong token",),
    ),
    of_practical(
        "mean-pool-with-cls", "forward", at.POOL, "mean_pool(h[cls_rows:])", "mean_pool(h)",
        "the mean is over all rows, the CLS token's among them",
        "Logits are wrong by about 1 / T of their size. Invisible without a CLS token, or where its"
        " row alone is pooled.",
        ("lucidrains/vit-pytorch#226: the mean includes the CLS token",),
        derivatives=(
            Patch(at.POOL_BACKWARD, "mean_pool_backward(d_pooled[-D:], T)",
                  "mean_pool_backward(d_pooled[-D:], n)[cls_rows:]"),
            Patch(at.POOL_BACKWARD, "return np.concatenate([above, patches])",
                  'if "mean" in kind:\n'
                  "        above = above + mean_pool_backward(d_pooled[-D:], n)[:cls_rows]\n"
                  "    return np.concatenate([above, patches])"),
        ),
    ),
    of_practical(
        "pooled-parts-swapped", "forward", at.POOL,
        "return np.concatenate(parts)", "return np.concatenate(parts[::-1])",
        "the mean stands before the CLS token's row",
        "Logits are wrong at their own size. Invisible where one row is pooled.",
        ("not seen in public; included because the order of two parts is a convention",),
        derivatives=(
            Patch(at.POOL_BACKWARD, 'np.tile(d_pooled[:D], (cls_rows, 1)) if "cls" in kind',
                  'np.tile(d_pooled[-D:], (cls_rows, 1)) if "cls" in kind'),
            Patch(at.POOL_BACKWARD, "mean_pool_backward(d_pooled[-D:], T)",
                  "mean_pool_backward(d_pooled[:D], T)"),
        ),
    ),
)  # fmt: skip
"""In the order of the configuration's options."""
