"""An independent forward pass: plain loops over plain floats, straight from the Lean text.

It shares no code with the specification, so a formula that is wrong in the same way in forward and
backward does not pass for right.
"""

import math

EPS = 1e-6


def matvec(x, w):
    """Row vector times matrix stored (in, out)."""
    return [sum(x[i] * w[i][j] for i in range(len(x))) for j in range(len(w[0]) if len(w) else 0)]


def layer_norm(row, gamma, beta):
    """One row: centre, centre again for the variance, divide by D, epsilon inside the root."""
    D = len(row)
    mean = sum(row) / D
    c = [v - mean for v in row]
    m2 = sum(c) / D
    var = sum((v - m2) ** 2 for v in c) / D
    std = math.sqrt(max(max(var, 0.0) + EPS, 0.0))
    return [c[j] / std * gamma[j] + beta[j] for j in range(D)]


def softmax_row(scores, allowed):
    """Over the allowed entries; all zeros if there is none."""
    if not any(allowed):
        return [0.0] * len(scores)
    top = max(s for s, ok in zip(scores, allowed, strict=True) if ok)
    e = [math.exp(s - top) if ok else 0.0 for s, ok in zip(scores, allowed, strict=True)]
    return [v / sum(e) for v in e]


def attention(q, k, v, mask=None):
    """One head: q, k (n, d), v (n, e) as lists of rows."""
    d = len(q[0])
    out = []
    for i in range(len(q)):
        scores = [sum(q[i][c] * k[j][c] for c in range(d)) / math.sqrt(d) for j in range(len(k))]
        weights = softmax_row(scores, [True] * len(k) if mask is None else list(mask[i]))
        out.append([sum(weights[j] * v[j][c] for j in range(len(k))) for c in range(len(v[0]))])
    return out


def multi_head_attention(x, wq, wk, wv, wo, heads, mask=None):
    """x (n, D) as rows; column h * d + c belongs to head h."""
    D, n = len(x[0]), len(x)
    d = D // heads
    if d == 0:
        return [[0.0] * D for _ in range(n)]
    q, k, v = ([matvec(row, w) for row in x] for w in (wq, wk, wv))
    concat = [[0.0] * (heads * d) for _ in range(n)]
    for h in range(heads):
        cols = slice(h * d, (h + 1) * d)
        head = attention([r[cols] for r in q], [r[cols] for r in k], [r[cols] for r in v], mask)
        for i in range(n):
            concat[i][cols] = head[i]
    return [matvec(row, wo) for row in concat]


def encoder_layer(x, p, heads):
    """Post-norm: LN2(n1 + FFN(n1)), n1 = LN1(x + MHA(x)); p holds the layer's lists by name."""
    mha = multi_head_attention(x, p["mha.wq"], p["mha.wk"], p["mha.wv"], p["mha.wo"], heads)
    out = []
    for row, attended in zip(x, mha, strict=True):
        r1 = [a + b for a, b in zip(row, attended, strict=True)]
        n1 = layer_norm(r1, p["norm1_gamma"], p["norm1_beta"])
        hidden = [
            max(s + b, 0.0) for s, b in zip(matvec(n1, p["ffn.w1"]), p["ffn.b1"], strict=True)
        ]
        ffn = [s + b for s, b in zip(matvec(hidden, p["ffn.w2"]), p["ffn.b2"], strict=True)]
        r2 = [a + b for a, b in zip(n1, ffn, strict=True)]
        out.append(layer_norm(r2, p["norm2_gamma"], p["norm2_beta"]))
    return out


def conv_tokens(image, kernel, bias, stride, padding):
    """Rows of tokens, row-major over the output grid; a tap outside the image reads 0."""
    C, H, W = len(image), len(image[0]), len(image[0][0]) if len(image[0]) else 0
    ph, pw = len(kernel[0][0]), len(kernel[0][0][0])
    fits = stride > 0 and H + 2 * padding >= ph and W + 2 * padding >= pw
    out_h = (H + 2 * padding - ph) // stride + 1 if fits else 0
    out_w = (W + 2 * padding - pw) // stride + 1 if fits else 0

    def read(c, r, s):
        return image[c][r][s] if 0 <= r < H and 0 <= s < W else 0.0

    return [
        [
            sum(
                read(c, i * stride + di - padding, j * stride + dj - padding) * kernel[o][c][di][dj]
                for c in range(C)
                for di in range(ph)
                for dj in range(pw)
            )
            + bias[o]
            for o in range(len(kernel))
        ]
        for i in range(out_h)
        for j in range(out_w)
    ]


def forward(case, flat, image):
    """The logits of either model, from flat parameters (NumPy arrays) and an image (C, H, W)."""
    p = {name: array.tolist() for name, array in flat.items()}
    config = case.config
    kernel, bias = p["patch_embed.kernel"], p["patch_embed.bias"]
    z = conv_tokens(image.tolist(), kernel, bias, config.stride, config.padding)
    if case.spec == "vit-cls":
        z = [p["cls_token"], *z]
    z = [
        [a + b for a, b in zip(r, q, strict=True)] for r, q in zip(z, p["pos_enc.pos"], strict=True)
    ]
    for i in range(config.num_layers):
        prefix = f"encoder.layers.{i}."
        layer = {n.removeprefix(prefix): v for n, v in p.items() if n.startswith(prefix)}
        z = encoder_layer(z, layer, config.head_count)
    pooled = z[0] if case.spec == "vit-cls" else [sum(col) / len(z) for col in zip(*z, strict=True)]
    rows = zip(p["head.weights"], p["head.bias"], strict=True)
    return [sum(w * v for w, v in zip(row, pooled, strict=True)) + b for row, b in rows]
