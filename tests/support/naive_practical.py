"""An independent forward of the practical family: plain loops over plain floats.

It shares no code with the specification, and takes the formulas from the papers and from PyTorch's
documentation of `interpolate` and `PixelShuffle`.
"""

import math

from support.naive import matvec, softmax_row


def forward(example):
    """The outputs by name, as nested lists."""
    c, grid = example.config, example.grid
    p = {name: array.tolist() for name, array in example.model().to_flat().items()}
    conditions = example.conditions()
    h = embed(c, p, example.image().tolist(), conditions, grid)
    for i in range(c.num_layers):
        prefix = f"encoder.layers.{i}."
        layer = {n.removeprefix(prefix): v for n, v in p.items() if n.startswith(prefix)}
        factors = conditions.block_factors[i] if conditions.block_factors else None
        h = block(c, layer, h, conditions.attention_mask, factors)
    last = [layer_norm(r, p["final_norm_gamma"], p["final_norm_beta"], c.layer_norm_eps) for r in h]
    return heads(c, p, last, grid)


def heads(c, p, last, grid):
    patches = last[1:] if c.cls_token else last
    outputs = {"last_hidden_state": last}
    if c.num_classes:
        mean = [sum(column) / len(patches) for column in zip(*patches, strict=True)]
        rows = {"cls": last[0], "mean": mean, "cls_mean": last[0] + mean}
        outputs["logits"] = dense(p["head.weights"], p["head.bias"], rows[c.pool])
    if c.pooler_dim:
        pre = dense(p["pooler.weights"], p["pooler.bias"], last[0])
        outputs["pooler_output"] = [math.tanh(v) for v in pre]
    if c.decoder_stride:
        outputs["reconstruction"] = shuffled(c, p, patches, grid)
    return outputs


def shuffled(c, p, patches, grid):
    """One output pixel after the other: which patch, and which entry of its row."""
    S, (rows, columns) = c.decoder_stride, grid
    decoded = [dense(p["decoder.weights"], p["decoder.bias"], row) for row in patches]
    return [
        [
            [
                decoded[y // S * columns + x // S][k * S * S + y % S * S + x % S]
                for x in range(columns * S)
            ]
            for y in range(rows * S)
        ]
        for k in range(c.in_channels)
    ]


def embed(c, p, image, conditions, grid):
    rows, columns = grid
    masked = conditions.masked_patches
    positions = p["pos_enc.pos"][1:] if c.cls_token else p["pos_enc.pos"]
    positions = resized(positions, c.image_h // c.patch_h, c.image_w // c.patch_w, rows, columns)
    sequence = []
    if c.cls_token:
        sequence.append(plus(p["cls_token"], p["pos_enc.pos"][0]))
    for r in range(rows):
        for s in range(columns):
            token = patch(c, p, image, r * c.patch_h, s * c.patch_w)
            if masked is not None and masked[r * columns + s]:
                token = p["mask_token"]
            sequence.append(plus(token, positions[r * columns + s]))
    factors = conditions.embedding_factors
    return (
        sequence if factors is None else [scaled(row, factors[i]) for i, row in enumerate(sequence)]
    )


def patch(c, p, image, top, left):
    kernel, bias = p["patch_embed.kernel"], p["patch_embed.bias"]
    return [
        bias[o]
        + sum(
            image[k][top + i][left + j] * kernel[o][k][i][j]
            for k in range(c.in_channels)
            for i in range(c.patch_h)
            for j in range(c.patch_w)
        )
        for o in range(c.embed_dim)
    ]


def resized(table, old_rows, old_columns, rows, columns):
    """One position after the other, each the weighted sum of 4 x 4, as in image resizing."""
    result = []
    for i in range(rows):
        for j in range(columns):
            y = (i + 0.5) * old_rows / rows - 0.5
            x = (j + 0.5) * old_columns / columns - 0.5
            entry = [0.0] * len(table[0])
            for dy in range(-1, 3):
                for dx in range(-1, 3):
                    k = min(max(math.floor(y) + dy, 0), old_rows - 1)
                    m = min(max(math.floor(x) + dx, 0), old_columns - 1)
                    weight = keys(y - math.floor(y) - dy) * keys(x - math.floor(x) - dx)
                    for f, value in enumerate(table[k * old_columns + m]):
                        entry[f] += weight * value
            result.append(entry)
    return result


def keys(t, a=-0.75):
    """The cubic convolution kernel, in Horner's form."""
    t = abs(t)
    if t <= 1:
        return ((a + 2) * t - (a + 3)) * t * t + 1
    return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a if t < 2 else 0.0


def block(c, p, x, mask, factors):
    eps = c.layer_norm_eps
    normed = [layer_norm(row, p["norm1_gamma"], p["norm1_beta"], eps) for row in x]
    branch = attention(c, p, normed, mask, factor(factors, "attention_weights"))
    x = residual(x, branch, p.get("layer_scale1"), factor(factors, "attention"))
    branch = []
    for i, row in enumerate(x):
        normed = layer_norm(row, p["norm2_gamma"], p["norm2_beta"], eps)
        hidden = [activate(c.activation, v) for v in plus(matvec(normed, p["ffn.w1"]), p["ffn.b1"])]
        hidden = [v * at(factor(factors, "hidden"), i, f) for f, v in enumerate(hidden)]
        branch.append(plus(matvec(hidden, p["ffn.w2"]), p["ffn.b2"]))
    return residual(x, branch, p.get("layer_scale2"), factor(factors, "mlp"))


def attention(c, p, x, mask, factors):
    n, d = len(x), c.embed_dim // c.head_count
    q, k, v = (
        [plus(matvec(row, p[f"mha.w{one}"]), p.get(f"mha.b{one}")) for row in x] for one in "qkv"
    )
    out = [[0.0] * c.embed_dim for _ in range(n)]
    for h in range(c.head_count):
        mine = range(h * d, (h + 1) * d)
        for i in range(n):
            scores = [sum(q[i][e] * k[j][e] for e in mine) / math.sqrt(d) for j in range(n)]
            allowed = [True] * n if mask is None else [bool(one) for one in mask[i]]
            weights = softmax_row(scores, allowed)
            for j in range(n):
                for e in mine:
                    out[i][e] += weights[j] * at(factors, h, i, j) * v[j][e]
    return [plus(matvec(row, p["mha.wo"]), p.get("mha.bo")) for row in out]


def residual(x, branch, scale, factors):
    return [
        [
            value + at(factors, i, f) * (1.0 if scale is None else scale[f]) * branch[i][f]
            for f, value in enumerate(row)
        ]
        for i, row in enumerate(x)
    ]


def factor(factors, name):
    return None if factors is None else getattr(factors, name)


def at(array, *index):
    """The entry, where an axis of size 1 stands for all; 1 without an array."""
    if array is None:
        return 1.0
    sizes = array.shape
    return float(array[tuple(0 if s == 1 else i for i, s in zip(index, sizes, strict=True))])


def activate(name, x):
    if name == "relu":
        return x if x > 0 else 0.0
    if name == "quick_gelu":
        return x / (1 + math.exp(-1.702 * x))
    if name == "gelu_tanh":
        return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def layer_norm(row, gamma, beta, eps):
    mean = sum(row) / len(row)
    variance = sum((v - mean) ** 2 for v in row) / len(row)
    return [
        (v - mean) / math.sqrt(variance + eps) * g + b
        for v, g, b in zip(row, gamma, beta, strict=True)
    ]


def dense(weights, bias, row):
    """Weights stored (out, in)."""
    return [
        b + sum(w * v for w, v in zip(one, row, strict=True))
        for one, b in zip(weights, bias, strict=True)
    ]


def plus(a, b):
    return list(a) if b is None else [u + v for u, v in zip(a, b, strict=True)]


def scaled(row, factors):
    return [v * float(f) for v, f in zip(row, factors, strict=True)]
