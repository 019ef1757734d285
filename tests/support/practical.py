"""Examples of the practical family for tests, and their roads: everything that an option touches.

An `Example` is a configuration, the size of an image, and what of `Conditions` it has; its numbers
come from its seed. `examples()` draws them by Hypothesis; `OPTIONS` has each option once.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from hypothesis import strategies as st

from support.compare import assert_close
from vitspec import complex_step_derivative, to_reals
from vitspec.models.block import BlockFactors
from vitspec.models.vision_transformer import Conditions, VisionTransformer
from vitspec.testing.strategies import seeds
from vitspec.vision_transformer_config import VisionTransformerConfig

FACTORS = ("embedding", "attention_weights", "head_mask", "attention", "hidden", "mlp", "branches")
MASKS = ("patches", "attention", "blocked rows")


@dataclass(frozen=True)
class Example:
    """One model at one point: `masks` of `MASKS`, `factors` of `FACTORS`, the image's own size."""

    config: VisionTransformerConfig
    seed: int = 0
    size: tuple[int, int] | None = None
    masks: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()

    def rng(self, stream):
        return np.random.default_rng([self.seed, stream])

    @property
    def shape(self):
        c = self.config
        return (c.in_channels, *(self.size or (c.image_h, c.image_w)))

    @property
    def grid(self):
        return self.config.grid_of(*self.shape[1:])

    @property
    def rows(self):
        return int(np.prod(self.grid)) + self.config.cls_token

    def model(self):
        return VisionTransformer.init(self.config, rng=self.rng(0))

    def tangent(self):
        model, rng = self.model(), self.rng(1)
        return model.map(lambda leaf: rng.standard_normal(leaf.shape))

    def image(self):
        return self.rng(2).standard_normal(self.shape)

    def d_image(self):
        return self.rng(3).standard_normal(self.shape)

    def conditions(self):
        c, n, rng = self.config, self.rows, self.rng(4)
        T, H, L = n - c.cls_token, c.head_count, c.num_layers
        attention = None
        if "attention" in self.masks or "blocked rows" in self.masks:
            attention = rng.random((n, n)) < 0.6
            attention[np.arange(n), rng.integers(n, size=n)] = True
        if "blocked rows" in self.masks:
            attention[rng.integers(n, size=2)] = False
        return Conditions(
            masked_patches=rng.random(T) < 0.5 if "patches" in self.masks else None,
            attention_mask=attention,
            embedding_factors=self._factors(rng, "embedding", (n, c.embed_dim)),
            block_factors=tuple(self._block_factors(rng, n, H) for _ in range(L))
            if set(self.factors) - {"embedding"}
            else None,
            interpolate_positions=self.size is not None,
        )

    def _block_factors(self, rng, n, H):
        D, F = self.config.embed_dim, self.config.hidden_dim
        weights = self._factors(rng, "attention_weights", (H, n, n))
        heads = self._factors(rng, "head_mask", (H, 1, 1))
        return BlockFactors(
            attention_weights=heads if weights is None else weights,
            attention=self._factors(rng, "attention", (n, D)),
            hidden=self._factors(rng, "hidden", (n, F)),
            mlp=self._factors(rng, "branches", (1, 1))
            if "branches" in self.factors
            else self._factors(rng, "mlp", (n, D)),
        )

    def _factors(self, rng, name, shape):
        """Zeros among numbers that are all different, so that a factor for another one shows."""
        if name not in self.factors:
            return None
        return (rng.random(shape) < 0.75) * rng.uniform(0.5, 2, shape)

    def cotangents(self):
        outputs, rng = self.model().forward(self.image(), self.conditions()), self.rng(5)
        return {n: rng.standard_normal(o.shape) for n, o in named(outputs).items()}


# ---- drawing -------------------------------------------------------------------------------------


def small(**changes):
    """A small configuration in which no two sizes are alike, with changes."""
    sizes = {
        "image_h": 7, "image_w": 14, "in_channels": 2, "patch_h": 3, "patch_w": 4,
        "embed_dim": 6, "hidden_dim": 5, "head_count": 2, "num_layers": 2, "num_classes": 4,
        "layer_norm_eps": 1e-6,
    }  # fmt: skip
    return VisionTransformerConfig(**sizes | changes)


EVERYTHING = Example(
    small(
        layer_scale=True, mask_token=True, pool="cls_mean", pooler_dim=3, decoder_stride=2
    ),
    size=(11, 10),
    masks=("patches", "blocked rows"),
    factors=("embedding", "attention_weights", "attention", "hidden", "mlp"),
)  # fmt: skip
"""Every parameter and every condition at once."""

OPTIONS = {
    "defaults": Example(small()),
    **{
        f"activation {a}": Example(small(activation=a)) for a in ("gelu_tanh", "quick_gelu", "relu")
    },
    "large epsilon": Example(small(layer_norm_eps=0.3)),
    "no q, k, v bias": Example(small(qkv_bias=False)),
    "no output bias": Example(small(output_bias=False)),
    "no bias in the attention": Example(small(qkv_bias=False, output_bias=False)),
    "layer scale": Example(small(layer_scale=True)),
    "no CLS token": Example(small(cls_token=False, pool="mean")),
    "mean beside a CLS token": Example(small(pool="mean")),
    "CLS and mean": Example(small(pool="cls_mean")),
    "bare": Example(small(pool="none", num_classes=0)),
    "bare without CLS token": Example(small(pool="none", num_classes=0, cls_token=False)),
    "pooler": Example(small(pooler_dim=3, num_classes=0)),
    "mask token, no mask": Example(small(mask_token=True)),
    "masked patches": Example(small(mask_token=True), masks=("patches",)),
    "decoder": Example(small(mask_token=True, decoder_stride=3), masks=("patches",)),
    "decoder without CLS token": Example(
        small(cls_token=False, pool="mean", mask_token=True, decoder_stride=2), masks=("patches",)
    ),
    "attention mask": Example(small(), masks=("attention",)),
    "blocked rows": Example(small(), masks=("blocked rows",)),
    **{f"factors {name}": Example(small(layer_scale=True), factors=(name,)) for name in FACTORS},
    "more positions": Example(small(), size=(15, 25)),
    "fewer positions, no CLS token": Example(small(cls_token=False, pool="mean"), size=(5, 9)),
    "other size, same grid": Example(small(), size=(6, 15)),
    "no blocks": Example(small(num_layers=0)),
    "one patch": Example(small(image_h=3, image_w=4)),
    "everything": EVERYTHING,
}


@st.composite
def examples(draw, max_layers=2):
    """Examples with every option drawn by itself; from width 3 on (see `test_three_roads.py`)."""

    def integer(low, high):
        return draw(st.integers(low, high))

    def some(names):
        return tuple(draw(st.lists(st.sampled_from(names), unique=True, max_size=len(names))))

    patch_h, patch_w = integer(1, 3), integer(1, 3)
    sizes = [p * integer(1, 3) + integer(0, p - 1) for p in (patch_h, patch_w)]
    other = [p * integer(1, 4) + integer(0, p - 1) for p in (patch_h, patch_w)]
    heads = integer(1, 3)
    cls_token, mask_token = draw(st.booleans()), draw(st.booleans())
    pool = draw(
        st.sampled_from(["cls", "mean", "cls_mean", "none"] if cls_token else ["mean", "none"])
    )
    config = VisionTransformerConfig(
        *sizes,
        in_channels=integer(1, 3),
        patch_h=patch_h,
        patch_w=patch_w,
        embed_dim=heads * integer(-(-3 // heads), 3),
        hidden_dim=integer(1, 5),
        head_count=heads,
        num_layers=integer(0, max_layers),
        num_classes=0 if pool == "none" else integer(0, 4),
        activation=draw(st.sampled_from(["gelu", "gelu_tanh", "quick_gelu", "relu"])),
        layer_norm_eps=draw(st.sampled_from([1e-12, 1e-6, 1e-5, 0.1])),
        qkv_bias=draw(st.booleans()),
        output_bias=draw(st.booleans()),
        layer_scale=draw(st.booleans()),
        cls_token=cls_token,
        mask_token=mask_token,
        pool=pool,
        pooler_dim=integer(0, 3) if cls_token else 0,
        decoder_stride=integer(0, 2),
    )
    return Example(
        config,
        seed=draw(seeds),
        size=tuple(other) if draw(st.booleans()) else None,
        masks=some(MASKS if mask_token else MASKS[1:]),
        factors=some(FACTORS),
    )


# ---- worlds --------------------------------------------------------------------------------------


def named(outputs):
    """The outputs that there are, by name."""
    return {name: value for name, value in vars(outputs).items() if value is not None}


def joined(outputs):
    """All outputs as one vector."""
    return np.concatenate([value.reshape(-1) for value in named(outputs).values()])


def in_world(conditions, convert):
    """Conditions whose factors are converted; masks stay."""
    embedding, blocks = conditions.embedding_factors, conditions.block_factors
    return replace(
        conditions,
        embedding_factors=None if embedding is None else convert(embedding),
        block_factors=None if blocks is None else tuple(b.map(convert) for b in blocks),
    )


def everything(model, image, conditions, cotangents, tangent, d_image):
    """Outputs, cotangents and tangents of the outputs, by name."""
    d = {f"d_{name}": value for name, value in cotangents.items()}
    grads, image_cotangent = model.backward(image, **d, conditions=conditions)
    tangents = named(model.jvp(image, tangent, d_image, conditions))
    return {
        **named(model.forward(image, conditions)),
        **{f"tangent of {name}": value for name, value in tangents.items()},
        **{f"cotangent of {name}": value for name, value in grads.to_flat().items()},
        "cotangent of the image": image_cotangent,
    }


def everything_in(example, convert):
    """`everything`, with all floats converted."""

    def move(x):
        return x.map(convert) if hasattr(x, "map") else convert(x)

    return everything(
        move(example.model()),
        move(example.image()),
        in_world(example.conditions(), convert),
        {name: move(value) for name, value in example.cotangents().items()},
        move(example.tangent()),
        move(example.d_image()),
    )


def floats(dtype):
    return lambda leaf: leaf.astype(dtype)


def balls(leaf):
    return to_reals(leaf)


# ---- roads ---------------------------------------------------------------------------------------


def _step_functions(example):
    """The outputs as functions of the parameters, and of the image, in the complex world."""
    conditions = in_world(example.conditions(), floats(complex))
    model, image = example.model().astype(complex), example.image().astype(complex)
    return (
        lambda m: joined(m.forward(image, conditions)),
        lambda x: joined(model.forward(x, conditions)),
    )


def complex_step(example):
    """The tangents of all outputs along the example's direction, as one vector."""
    of_model, of_image = _step_functions(example)
    return complex_step_derivative(
        of_model, example.model(), example.tangent()
    ) + complex_step_derivative(of_image, example.image(), example.d_image())


def backward(example):
    cotangents = {f"d_{name}": value for name, value in example.cotangents().items()}
    return example.model().backward(example.image(), **cotangents, conditions=example.conditions())


def jvp(example):
    return example.model().jvp(
        example.image(), example.tangent(), example.d_image(), example.conditions()
    )


def pairing(example):
    """(<VJP, direction>, the sum of the products of the norms)."""
    grads, d_image = backward(example)
    flat, tangent = grads.to_flat(), example.tangent().to_flat()
    assert flat.keys() == tangent.keys()
    pairs = [*((flat[n], tangent[n]) for n in flat), (d_image, example.d_image())]
    size = sum(float(np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs)
    return sum(float((a * b).sum()) for a, b in pairs), size


def roads_agree(example):
    """Complex step, backward and JVP along one direction of everything."""
    step = complex_step(example)
    tangents = jvp(example)
    cotangent = np.concatenate([v.reshape(-1) for v in example.cotangents().values()])
    value, size = pairing(example)
    assert abs(value - cotangent @ step) <= 1e-12 * size, "backward and complex step"
    dot = cotangent @ joined(tangents)
    size += float(np.linalg.norm(cotangent) * np.linalg.norm(joined(tangents)))
    assert abs(value - dot) <= 1e-13 * size, "backward and JVP"
    start = 0
    for name, tangent in named(tangents).items():
        expected = step[start : start + tangent.size].reshape(tangent.shape)
        assert_close(tangent, expected, 1e-12, f"tangent of {name}")
        start += tangent.size


def backward_is_the_complex_step(example, entries=5):
    """Some entries of every cotangent; those of a key's bias are 0, up to rounding."""
    of_model, of_image = _step_functions(example)
    model, image, rng = example.model(), example.image(), example.rng(6)
    cotangent = np.concatenate([v.reshape(-1) for v in example.cotangents().values()])
    grads, d_image = backward(example)
    found = {**grads.to_flat(), "the image": d_image}
    largest = max(np.abs(value).max(initial=0) for value in found.values())
    zero = model.map(np.zeros_like)
    for name, leaf in {**zero.to_flat(), "the image": np.zeros(image.shape)}.items():
        size = largest if name.endswith(".bk") else np.abs(found[name]).max()
        for at in rng.choice(leaf.size, min(entries, leaf.size), replace=False):
            leaf.flat[at] = 1.0  # the leaf of `zero` itself
            expected = cotangent @ (
                complex_step_derivative(of_image, image, leaf)
                if name == "the image"
                else complex_step_derivative(of_model, model, zero)
            )
            leaf.flat[at] = 0.0
            assert abs(found[name].flat[at] - expected) <= 1e-12 * size, f"{name}, entry {at}"


def option_fields():
    """Every field of a configuration that is an option, not a size."""
    sizes = ("image_h", "image_w", "in_channels", "patch_h", "patch_w", "embed_dim", "hidden_dim",
             "head_count", "num_classes", "dropout")  # fmt: skip
    return [field.name for field in fields(VisionTransformerConfig) if field.name not in sizes]
