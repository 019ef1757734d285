//! The mathematics: forward and backward of `ViTSpec` and `ViTClsSpec` on one image.
//!
//! Names and formulas are those of docs/specification.md, in its order. An `f_backward` takes the
//! cotangent `d_out` of f's output to the cotangents of f's parameters and of its input; what it
//! needs of the forward is handed to it, as a trace or as the input to compute it from again.

use crate::config::Config;
use crate::matrix::{dot, matmul, mean, Matrix, Real};
use crate::parameters::*;

// Patch embedding ---------------------------------------------------------------------------------

/// Which pixel of the image (C, H, W), stored flat, a tap of a window reads; None in the padding.
///
/// Windows are numbered t = i * out_w + j, their taps (c * ph + di) * pw + dj.
fn pixel_read(config: &Config, t: usize, tap: usize) -> Option<usize> {
    let (_, out_w) = config.patch_grid();
    let (i, j) = (t / out_w, t % out_w);
    let dj = tap % config.patch_w;
    let di = tap / config.patch_w % config.patch_h;
    let c = tap / config.patch_w / config.patch_h;
    let row = (i * config.stride + di).checked_sub(config.padding)?;
    let col = (j * config.stride + dj).checked_sub(config.padding)?;
    let inside = row < config.height && col < config.width;
    inside.then_some((c * config.height + row) * config.width + col)
}

/// The windows of the padded image, one row each: (T, C ph pw).
pub fn window_rows<R: Real>(config: &Config, image: &[R]) -> Matrix<R> {
    let taps = config.in_channels * config.patch_h * config.patch_w;
    Matrix::from_fn(config.patch_count(), taps, |t, tap| {
        pixel_read(config, t, tap).map_or(R::default(), |pixel| image[pixel])
    })
}

/// What arrives at each window (T, C ph pw) added to the pixels that it read: `window_rows`' adjoint.
pub fn window_rows_backward<R: Real>(config: &Config, d_rows: &Matrix<R>) -> Vec<R> {
    let mut d_image = vec![R::default(); config.in_channels * config.height * config.width];
    for t in 0..d_rows.rows {
        for tap in 0..d_rows.cols {
            if let Some(pixel) = pixel_read(config, t, tap) {
                d_image[pixel] += d_rows[(t, tap)];
            }
        }
    }
    d_image
}

// ReLU and softmax --------------------------------------------------------------------------------

pub fn relu<R: Real>(x: &Matrix<R>) -> Matrix<R> {
    x.map(|z| if z > R::default() { z } else { R::default() })
}

/// The derivative is 1 where x > 0, else 0: at 0 it is 0.
pub fn relu_backward<R: Real>(x: &Matrix<R>, d_out: &Matrix<R>) -> Matrix<R> {
    let zero = R::default();
    Matrix::from_fn(x.rows, x.cols, |i, j| if x[(i, j)] > zero { d_out[(i, j)] } else { zero })
}

/// Along each row, shifted by its maximum.
pub fn softmax<R: Real>(x: &Matrix<R>) -> Matrix<R> {
    let mut y = x.clone();
    for i in 0..x.rows {
        let max = x.row(i).iter().fold(x[(i, 0)], |max, &z| if z > max { z } else { max });
        let mut sum = R::default();
        for j in 0..x.cols {
            y[(i, j)] = (x[(i, j)] - max).exp();
            sum += y[(i, j)];
        }
        for j in 0..x.cols {
            y[(i, j)] = y[(i, j)] / sum;
        }
    }
    y
}

/// y * (d_out - sum(d_out * y)) along each row, with y the softmax.
pub fn softmax_backward_from_weights<R: Real>(y: &Matrix<R>, d_out: &Matrix<R>) -> Matrix<R> {
    let sums: Vec<R> = (0..y.rows).map(|i| dot(d_out.row(i), y.row(i))).collect();
    Matrix::from_fn(y.rows, y.cols, |i, j| y[(i, j)] * (d_out[(i, j)] - sums[i]))
}

// Attention ---------------------------------------------------------------------------------------

/// c = 1 / sqrt(d); 1 for d = 0.
fn attention_scale<R: Real>(d: usize) -> R {
    R::from_count(1) / R::from_count(d.max(1)).sqrt()
}

/// A = softmax(c Q K^T).
pub fn attention_weights<R: Real>(q: &Matrix<R>, k: &Matrix<R>) -> Matrix<R> {
    let scale = attention_scale::<R>(q.cols);
    softmax(&matmul(q, &k.t()).map(|score| score * scale))
}

/// The cotangents (d_q, d_k, d_v) of A V.
pub fn attention_backward<R: Real>(
    q: &Matrix<R>,
    k: &Matrix<R>,
    v: &Matrix<R>,
    weights: &Matrix<R>,
    d_out: &Matrix<R>,
) -> (Matrix<R>, Matrix<R>, Matrix<R>) {
    let scale = attention_scale::<R>(q.cols);
    let d_weights = matmul(d_out, &v.t());
    let d_v = matmul(&weights.t(), d_out);
    let d_scores = softmax_backward_from_weights(weights, &d_weights).map(|score| score * scale);
    (matmul(&d_scores, k), matmul(&d_scores.t(), q), d_v)
}

// Heads -------------------------------------------------------------------------------------------

/// Column h d + e of row i becomes entry (i, e) of head h.
fn split_heads<R: Real>(x: &Matrix<R>, head_count: usize) -> Vec<Matrix<R>> {
    let d = x.cols / head_count;
    let head = |h: usize| Matrix::from_fn(x.rows, d, |i, e| x[(i, h * d + e)]);
    (0..head_count).map(head).collect()
}

/// The inverse of `split_heads`, and its adjoint.
fn combine_heads<R: Real>(heads: &[Matrix<R>]) -> Matrix<R> {
    let (n, d) = (heads[0].rows, heads[0].cols);
    Matrix::from_fn(n, heads.len() * d, |i, column| heads[column / d][(i, column % d)])
}

/// By head: Q, K, V, A; then the heads side by side.
pub struct MultiHeadAttentionTrace<R> {
    q: Vec<Matrix<R>>,
    k: Vec<Matrix<R>>,
    v: Vec<Matrix<R>>,
    weights: Vec<Matrix<R>>,
    concat: Matrix<R>,
    pub output: Matrix<R>,
}

pub fn multi_head_attention<R: Real>(
    mha: &MultiHeadAttention<R>,
    head_count: usize,
    x: &Matrix<R>,
) -> MultiHeadAttentionTrace<R> {
    let q = split_heads(&matmul(x, &mha.wq), head_count);
    let k = split_heads(&matmul(x, &mha.wk), head_count);
    let v = split_heads(&matmul(x, &mha.wv), head_count);
    let weights: Vec<_> = (0..head_count).map(|h| attention_weights(&q[h], &k[h])).collect();
    let heads: Vec<_> = (0..head_count).map(|h| matmul(&weights[h], &v[h])).collect();
    let concat = combine_heads(&heads);
    let output = matmul(&concat, &mha.wo);
    MultiHeadAttentionTrace { q, k, v, weights, concat, output }
}

pub fn multi_head_attention_backward<R: Real>(
    mha: &MultiHeadAttention<R>,
    x: &Matrix<R>,
    t: &MultiHeadAttentionTrace<R>,
    d_out: &Matrix<R>,
) -> (MultiHeadAttention<R>, Matrix<R>) {
    let d_heads = split_heads(&matmul(d_out, &mha.wo.t()), t.q.len());
    let (mut d_q, mut d_k, mut d_v) = (Vec::new(), Vec::new(), Vec::new());
    for (h, d_head) in d_heads.iter().enumerate() {
        let by_head = attention_backward(&t.q[h], &t.k[h], &t.v[h], &t.weights[h], d_head);
        d_q.push(by_head.0);
        d_k.push(by_head.1);
        d_v.push(by_head.2);
    }
    let (d_q, d_k, d_v) = (combine_heads(&d_q), combine_heads(&d_k), combine_heads(&d_v));
    let grads = MultiHeadAttention {
        wq: matmul(&x.t(), &d_q),
        wk: matmul(&x.t(), &d_k),
        wv: matmul(&x.t(), &d_v),
        wo: matmul(&t.concat.t(), d_out),
    };
    let d_from_q_and_k = &matmul(&d_q, &mha.wq.t()) + &matmul(&d_k, &mha.wk.t());
    (grads, &d_from_q_and_k + &matmul(&d_v, &mha.wv.t()))
}

// Feed-forward ------------------------------------------------------------------------------------

/// z, a and y of the specification.
pub struct FeedForwardTrace<R> {
    hidden: Matrix<R>,
    activated: Matrix<R>,
    pub output: Matrix<R>,
}

pub fn feed_forward<R: Real>(ffn: &FeedForward<R>, x: &Matrix<R>) -> FeedForwardTrace<R> {
    let hidden = matmul(x, &ffn.w1).plus_row(&ffn.b1);
    let activated = relu(&hidden);
    let output = matmul(&activated, &ffn.w2).plus_row(&ffn.b2);
    FeedForwardTrace { hidden, activated, output }
}

pub fn feed_forward_backward<R: Real>(
    ffn: &FeedForward<R>,
    x: &Matrix<R>,
    t: &FeedForwardTrace<R>,
    d_out: &Matrix<R>,
) -> (FeedForward<R>, Matrix<R>) {
    let d_hidden = relu_backward(&t.hidden, &matmul(d_out, &ffn.w2.t()));
    let grads = FeedForward {
        w1: matmul(&x.t(), &d_hidden),
        w2: matmul(&t.activated.t(), d_out),
        b1: d_hidden.sum_of_rows(),
        b2: d_out.sum_of_rows(),
    };
    (grads, matmul(&d_hidden, &ffn.w1.t()))
}

// Layer normalisation -----------------------------------------------------------------------------

/// xhat = (x - mean) / std and std of one row; the variance divides by D, epsilon is in the root.
fn normalize<R: Real>(row: &[R]) -> (Vec<R>, R) {
    let mu = mean(row);
    let centred: Vec<R> = row.iter().map(|&x| x - mu).collect();
    let variance = dot(&centred, &centred) / R::from_count(row.len());
    let std = (variance + R::EPSILON).sqrt();
    (centred.iter().map(|&c| c / std).collect(), std)
}

pub fn layer_norm<R: Real>(norm: &LayerNorm<R>, x: &Matrix<R>) -> Matrix<R> {
    let mut y = x.clone();
    for i in 0..x.rows {
        let (xhat, _) = normalize(x.row(i));
        for j in 0..x.cols {
            y[(i, j)] = xhat[j] * norm.gamma[(0, j)] + norm.beta[(0, j)];
        }
    }
    y
}

/// d_x = ((w - mean(w)) - xhat * mean(w * xhat)) / std with w = d_out * gamma, row by row.
pub fn layer_norm_backward<R: Real>(
    norm: &LayerNorm<R>,
    x: &Matrix<R>,
    d_out: &Matrix<R>,
) -> (LayerNorm<R>, Matrix<R>) {
    let (mut d_gamma, mut d_x) = (Matrix::zeros(1, x.cols), x.clone());
    for i in 0..x.rows {
        let (xhat, std) = normalize(x.row(i));
        let w: Vec<R> = (0..x.cols).map(|j| d_out[(i, j)] * norm.gamma[(0, j)]).collect();
        let mean_w = mean(&w);
        let mean_w_xhat = dot(&w, &xhat) / R::from_count(x.cols);
        for j in 0..x.cols {
            d_x[(i, j)] = ((w[j] - mean_w) - xhat[j] * mean_w_xhat) / std;
            d_gamma[(0, j)] += d_out[(i, j)] * xhat[j];
        }
    }
    (LayerNorm { gamma: d_gamma, beta: d_out.sum_of_rows() }, d_x)
}

// Encoder -----------------------------------------------------------------------------------------

/// What one post-norm layer computed from its input.
pub struct EncoderLayerTrace<R> {
    input: Matrix<R>,
    mha: MultiHeadAttentionTrace<R>,
    residual1: Matrix<R>,
    normed1: Matrix<R>,
    ffn: FeedForwardTrace<R>,
    residual2: Matrix<R>,
    pub output: Matrix<R>,
}

pub fn encoder_layer<R: Real>(
    layer: &EncoderLayer<R>,
    head_count: usize,
    input: Matrix<R>,
) -> EncoderLayerTrace<R> {
    let mha = multi_head_attention(&layer.mha, head_count, &input);
    let residual1 = &input + &mha.output;
    let normed1 = layer_norm(&layer.norm1, &residual1);
    let ffn = feed_forward(&layer.ffn, &normed1);
    let residual2 = &normed1 + &ffn.output;
    let output = layer_norm(&layer.norm2, &residual2);
    EncoderLayerTrace { input, mha, residual1, normed1, ffn, residual2, output }
}

pub fn encoder_layer_backward<R: Real>(
    layer: &EncoderLayer<R>,
    t: &EncoderLayerTrace<R>,
    d_out: &Matrix<R>,
) -> (EncoderLayer<R>, Matrix<R>) {
    let (norm2, d_residual2) = layer_norm_backward(&layer.norm2, &t.residual2, d_out);
    let (ffn, d_from_ffn) = feed_forward_backward(&layer.ffn, &t.normed1, &t.ffn, &d_residual2);
    let d_normed1 = &d_residual2 + &d_from_ffn;
    let (norm1, d_residual1) = layer_norm_backward(&layer.norm1, &t.residual1, &d_normed1);
    let (mha, d_from_mha) =
        multi_head_attention_backward(&layer.mha, &t.input, &t.mha, &d_residual1);
    (EncoderLayer { mha, ffn, norm1, norm2 }, &d_residual1 + &d_from_mha)
}

// The whole models --------------------------------------------------------------------------------

/// Logits (1, K), gradients of the parameters, gradient of the image, for the cotangent (1, K).
pub fn forward_and_backward<R: Real>(
    config: &Config,
    p: &Parameters<R>,
    image: &[R],
    d_logits: &Matrix<R>,
) -> (Matrix<R>, Parameters<R>, Vec<R>) {
    // Forward.
    let windows = window_rows(config, image);
    let tokens = matmul(&windows, &p.patch_embed.kernel.t()).plus_row(&p.patch_embed.bias); // (T, D)
    let cls_rows = usize::from(p.cls_token.is_some());
    let n = tokens.rows + cls_rows;
    let sequence = Matrix::from_fn(n, tokens.cols, |i, j| match &p.cls_token {
        Some(cls_token) if i == 0 => cls_token[(0, j)],
        _ => tokens[(i - cls_rows, j)],
    });
    let mut encoded = &sequence + &p.pos;
    let mut traces = Vec::new();
    for layer in &p.layers {
        traces.push(encoder_layer(layer, config.head_count, encoded));
        encoded = traces[traces.len() - 1].output.clone();
    }
    let token_count = R::from_count(n);
    let pooled = match &p.cls_token {
        Some(_) => encoded.rows_from(0, 1),
        None => encoded.sum_of_rows().map(|sum| sum / token_count),
    };
    let logits = matmul(&pooled, &p.head.weights.t()).plus_row(&p.head.bias);

    // Backward.
    let head = Linear { weights: matmul(&d_logits.t(), &pooled), bias: d_logits.clone() };
    let d_pooled = matmul(d_logits, &p.head.weights);
    let mut d_encoded = Matrix::from_fn(n, pooled.cols, |i, j| match &p.cls_token {
        Some(_) if i > 0 => R::default(),
        Some(_) => d_pooled[(0, j)],
        None => d_pooled[(0, j)] / token_count,
    });
    let mut layers = Vec::new();
    for (layer, trace) in p.layers.iter().zip(&traces).rev() {
        let (layer_grads, d_input) = encoder_layer_backward(layer, trace, &d_encoded);
        layers.push(layer_grads);
        d_encoded = d_input;
    }
    layers.reverse(); // the first layer's gradients come first
    let d_embedded = d_encoded;
    let d_tokens = d_embedded.rows_from(cls_rows, tokens.rows);
    let d_image = window_rows_backward(config, &matmul(&d_tokens, &p.patch_embed.kernel));
    let grads = Parameters {
        patch_embed: PatchEmbedding {
            kernel: matmul(&d_tokens.t(), &windows),
            bias: d_tokens.sum_of_rows(),
        },
        cls_token: p.cls_token.as_ref().map(|_| d_embedded.rows_from(0, 1)),
        pos: d_embedded,
        layers,
        head,
    };
    (logits, grads, d_image)
}
