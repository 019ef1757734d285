//! The parameters as records, from and to flat names. Gradients are records of the same types.

use std::collections::BTreeMap;

use crate::matrix::Matrix;

/// Matrices by flat name. Vectors are matrices of one row.
pub type Flat<R> = BTreeMap<String, Matrix<R>>;

/// A record of matrices whose names in a file are those of its fields, below a prefix.
macro_rules! record {
    ($(#[$doc:meta])* $record:ident: $($field:ident)*) => {
        $(#[$doc])*
        pub struct $record<R> {
            $(pub $field: Matrix<R>),*
        }

        impl<R> $record<R> {
            pub fn from_flat(flat: &mut Flat<R>, prefix: &str) -> Self {
                Self { $($field: take(flat, &format!("{prefix}{}", stringify!($field)))),* }
            }

            pub fn into_flat(self, prefix: &str) -> Flat<R> {
                Flat::from([$((format!("{prefix}{}", stringify!($field)), self.$field)),*])
            }
        }
    };
}

record! {
    /// The kernel (D, C, ph, pw) is a matrix (D, C ph pw).
    PatchEmbedding: kernel bias
}
record! { MultiHeadAttention: wq wk wv wo }
record! { FeedForward: w1 w2 b1 b2 }
record! { LayerNorm: gamma beta }
record! { Linear: weights bias }

/// The matrix of a name. Names are checked before, so one that is missing is this program's mistake.
pub fn take<R>(flat: &mut Flat<R>, name: &str) -> Matrix<R> {
    flat.remove(name).unwrap_or_else(|| panic!("no matrix {name}"))
}

pub struct EncoderLayer<R> {
    pub mha: MultiHeadAttention<R>,
    pub ffn: FeedForward<R>,
    pub norm1: LayerNorm<R>,
    pub norm2: LayerNorm<R>,
}

impl<R> EncoderLayer<R> {
    pub fn from_flat(flat: &mut Flat<R>, prefix: &str) -> Self {
        EncoderLayer {
            mha: MultiHeadAttention::from_flat(flat, &format!("{prefix}mha.")),
            ffn: FeedForward::from_flat(flat, &format!("{prefix}ffn.")),
            norm1: LayerNorm::from_flat(flat, &format!("{prefix}norm1_")),
            norm2: LayerNorm::from_flat(flat, &format!("{prefix}norm2_")),
        }
    }

    pub fn into_flat(self, prefix: &str) -> Flat<R> {
        let mut flat = self.mha.into_flat(&format!("{prefix}mha."));
        flat.extend(self.ffn.into_flat(&format!("{prefix}ffn.")));
        flat.extend(self.norm1.into_flat(&format!("{prefix}norm1_")));
        flat.extend(self.norm2.into_flat(&format!("{prefix}norm2_")));
        flat
    }
}

/// All parameters of a model.
pub struct Parameters<R> {
    pub patch_embed: PatchEmbedding<R>,
    /// Only for `ViTClsSpec`.
    pub cls_token: Option<Matrix<R>>,
    pub pos: Matrix<R>,
    pub layers: Vec<EncoderLayer<R>>,
    pub head: Linear<R>,
}

impl<R> Parameters<R> {
    pub fn from_flat(flat: &mut Flat<R>, num_layers: usize) -> Self {
        Parameters {
            layers: (0..num_layers)
                .map(|i| EncoderLayer::from_flat(flat, &format!("encoder.layers.{i}.")))
                .collect(),
            patch_embed: PatchEmbedding::from_flat(flat, "patch_embed."),
            cls_token: flat.remove("cls_token"),
            pos: take(flat, "pos_enc.pos"),
            head: Linear::from_flat(flat, "head."),
        }
    }

    pub fn into_flat(self) -> Flat<R> {
        let mut flat = self.patch_embed.into_flat("patch_embed.");
        flat.extend(self.cls_token.map(|token| ("cls_token".to_string(), token)));
        flat.insert("pos_enc.pos".to_string(), self.pos);
        for (i, layer) in self.layers.into_iter().enumerate() {
            flat.extend(layer.into_flat(&format!("encoder.layers.{i}.")));
        }
        flat.extend(self.head.into_flat("head."));
        flat
    }
}
