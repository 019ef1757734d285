//! The parameters as records. Gradients are records of the same types.

use std::collections::BTreeMap;

use crate::matrix::Matrix;

/// Matrices by flat name.
pub type Flat<R> = BTreeMap<String, Matrix<R>>;

/// Vectors are matrices of one row. The kernel (D, C, ph, pw) is a matrix (D, C ph pw).
pub struct Parameters<R> {
    pub kernel: Matrix<R>,
    pub bias: Matrix<R>,
    /// Only for `ViTClsSpec`.
    pub cls_token: Option<Matrix<R>>,
    pub pos: Matrix<R>,
    pub layers: Vec<EncoderLayer<R>>,
    pub head: Linear<R>,
}

pub struct EncoderLayer<R> {
    pub mha: MultiHeadAttention<R>,
    pub ffn: FeedForward<R>,
    pub norm1: LayerNorm<R>,
    pub norm2: LayerNorm<R>,
}

pub struct MultiHeadAttention<R> {
    pub wq: Matrix<R>,
    pub wk: Matrix<R>,
    pub wv: Matrix<R>,
    pub wo: Matrix<R>,
}

pub struct FeedForward<R> {
    pub w1: Matrix<R>,
    pub w2: Matrix<R>,
    pub b1: Matrix<R>,
    pub b2: Matrix<R>,
}

pub struct LayerNorm<R> {
    pub gamma: Matrix<R>,
    pub beta: Matrix<R>,
}

pub struct Linear<R> {
    pub weights: Matrix<R>,
    pub bias: Matrix<R>,
}

impl<R> Parameters<R> {
    /// The records made of the flat matrices, which are all there.
    pub fn from_flat(mut flat: Flat<R>, num_layers: usize) -> Self {
        let mut take =
            |name: &str| flat.remove(name).unwrap_or_else(|| panic!("no parameter {name}"));
        let mut layer = |i: usize| {
            let mut take = |name: &str| take(&format!("encoder.layers.{i}.{name}"));
            EncoderLayer {
                mha: MultiHeadAttention {
                    wq: take("mha.wq"),
                    wk: take("mha.wk"),
                    wv: take("mha.wv"),
                    wo: take("mha.wo"),
                },
                ffn: FeedForward {
                    w1: take("ffn.w1"),
                    w2: take("ffn.w2"),
                    b1: take("ffn.b1"),
                    b2: take("ffn.b2"),
                },
                norm1: LayerNorm { gamma: take("norm1_gamma"), beta: take("norm1_beta") },
                norm2: LayerNorm { gamma: take("norm2_gamma"), beta: take("norm2_beta") },
            }
        };
        Parameters {
            layers: (0..num_layers).map(&mut layer).collect(),
            kernel: take("patch_embed.kernel"),
            bias: take("patch_embed.bias"),
            pos: take("pos_enc.pos"),
            head: Linear { weights: take("head.weights"), bias: take("head.bias") },
            cls_token: flat.remove("cls_token"),
        }
    }

    /// The inverse of `from_flat`.
    pub fn into_flat(self) -> Flat<R> {
        let mut flat = Flat::from([
            ("patch_embed.kernel".to_string(), self.kernel),
            ("patch_embed.bias".to_string(), self.bias),
            ("pos_enc.pos".to_string(), self.pos),
            ("head.weights".to_string(), self.head.weights),
            ("head.bias".to_string(), self.head.bias),
        ]);
        flat.extend(self.cls_token.map(|token| ("cls_token".to_string(), token)));
        for (i, layer) in self.layers.into_iter().enumerate() {
            for (name, matrix) in [
                ("mha.wq", layer.mha.wq),
                ("mha.wk", layer.mha.wk),
                ("mha.wv", layer.mha.wv),
                ("mha.wo", layer.mha.wo),
                ("ffn.w1", layer.ffn.w1),
                ("ffn.w2", layer.ffn.w2),
                ("ffn.b1", layer.ffn.b1),
                ("ffn.b2", layer.ffn.b2),
                ("norm1_gamma", layer.norm1.gamma),
                ("norm1_beta", layer.norm1.beta),
                ("norm2_gamma", layer.norm2.gamma),
                ("norm2_beta", layer.norm2.beta),
            ] {
                flat.insert(format!("encoder.layers.{i}.{name}"), matrix);
            }
        }
        flat
    }
}
