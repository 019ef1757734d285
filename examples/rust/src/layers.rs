//! Single layers: those of vit.rs that take a matrix, without a mask.

use std::collections::BTreeMap;

use crate::matrix::Real;
use crate::parameters::*;
use crate::safetensors::{Tensor, Tensors};
use crate::vit;

/// The tensors of each layer by name, with a letter for the size of each axis.
const LAYERS: [(&str, &str); 6] = [
    ("relu", "z n D, d_out n D"),
    ("softmax", "x n D, d_out n D"),
    ("layer_norm", "x n D, gamma D, beta D, d_out n D"),
    ("feed_forward", "x n D, w1 D F, w2 F D, b1 F, b2 D, d_out n D"),
    ("multi_head_attention", "x n D, wq D I, wk D I, wv D I, wo I D, d_out n D"),
    (
        "encoder_layer",
        "x n D, mha.wq D I, mha.wk D I, mha.wv D I, mha.wo I D, ffn.w1 D F, ffn.w2 F D, ffn.b1 F, \
         ffn.b2 D, norm1_gamma D, norm1_beta D, norm2_gamma D, norm2_beta D, d_out n D",
    ),
];

/// `out` and `d_<argument>` of a layer; None if the layer is not here.
pub fn evaluate<R: Real>(
    layer: &str,
    head_count: usize,
    inputs: Tensors<R>,
) -> Result<Option<Tensors<R>>, String> {
    let Some((_, expected)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
        return Ok(None);
    };
    if inputs.contains_key("mask") {
        return Ok(None);
    }
    let sizes = sizes(expected, &inputs)?;
    if sizes.get("I").is_some_and(|inner| head_count == 0 || inner % head_count != 0) {
        return Err(format!("{head_count} heads do not divide the attention's width"));
    }
    let shapes: Vec<_> = inputs.iter().map(|(name, t)| (name.clone(), t.shape.clone())).collect();
    let flat = inputs.into_iter().map(|(name, tensor)| (name, tensor.into_matrix())).collect();
    let mut found = by_layer(layer, head_count, flat);
    let results = shapes.into_iter().map(|(name, shape)| {
        let data = take(&mut found, &name).data;
        let name = if name == "d_out" { "out".to_string() } else { format!("d_{name}") };
        (name, Tensor { shape, data })
    });
    Ok(Some(results.collect()))
}

/// The size that each letter stands for.
fn sizes<R>(
    expected: &'static str,
    inputs: &Tensors<R>,
) -> Result<BTreeMap<&'static str, usize>, String> {
    let mut sizes = BTreeMap::new();
    let expected: Vec<Vec<&str>> = expected.split(", ").map(|t| t.split(' ').collect()).collect();
    for tensor in &expected {
        let (name, letters) = (tensor[0], &tensor[1..]);
        let shape = &inputs.get(name).ok_or(format!("inputs: no {name}"))?.shape;
        let fits = shape.len() == letters.len()
            && letters
                .iter()
                .zip(shape)
                .all(|(letter, size)| sizes.entry(*letter).or_insert(*size) == size);
        if !fits || shape.contains(&0) {
            return Err(format!("inputs: {name}: shape {shape:?} is not {}", letters.join(" x ")));
        }
    }
    match inputs.keys().find(|name| !expected.iter().any(|tensor| tensor[0] == *name)) {
        Some(name) => Err(format!("inputs: unexpected {name}")),
        None => Ok(sizes),
    }
}

/// The output, under the name of its cotangent `d_out`, and each argument's gradient under its name.
fn by_layer<R: Real>(layer: &str, head_count: usize, mut flat: Flat<R>) -> Flat<R> {
    let d_out = take(&mut flat, "d_out");
    let argument = if layer == "relu" { "z" } else { "x" };
    let x = take(&mut flat, argument);
    let (out, d_x, d_parameters) = match layer {
        "relu" => (vit::relu(&x), vit::relu_backward(&x, &d_out), Flat::new()),
        "softmax" => {
            let y = vit::softmax(&x);
            let d_x = vit::softmax_backward_from_weights(&y, &d_out);
            (y, d_x, Flat::new())
        }
        "layer_norm" => {
            let norm = LayerNorm::from_flat(&mut flat, "");
            let (grads, d_x) = vit::layer_norm_backward(&norm, &x, &d_out);
            (vit::layer_norm(&norm, &x), d_x, grads.into_flat(""))
        }
        "feed_forward" => {
            let ffn = FeedForward::from_flat(&mut flat, "");
            let trace = vit::feed_forward(&ffn, &x);
            let (grads, d_x) = vit::feed_forward_backward(&ffn, &x, &trace, &d_out);
            (trace.output, d_x, grads.into_flat(""))
        }
        "multi_head_attention" => {
            let mha = MultiHeadAttention::from_flat(&mut flat, "");
            let trace = vit::multi_head_attention(&mha, head_count, &x);
            let (grads, d_x) = vit::multi_head_attention_backward(&mha, &x, &trace, &d_out);
            (trace.output, d_x, grads.into_flat(""))
        }
        _ => {
            let layer = EncoderLayer::from_flat(&mut flat, "");
            let trace = vit::encoder_layer(&layer, head_count, x);
            let (grads, d_x) = vit::encoder_layer_backward(&layer, &trace, &d_out);
            (trace.output, d_x, grads.into_flat(""))
        }
    };
    flat = d_parameters;
    flat.insert(argument.to_string(), d_x);
    flat.insert("d_out".to_string(), out);
    flat
}
