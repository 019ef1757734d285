//! The configuration, its rules, and the shapes that follow from it.

use crate::json::Json;

const MAX_FIELD: i64 = 2_147_483_647;

/// The architecture and the image's size. A model is `ViTClsSpec` if `cls`, else `ViTSpec`.
#[derive(Debug)]
pub struct Config {
    pub cls: bool,
    pub patch_h: usize,
    pub patch_w: usize,
    pub stride: usize,
    pub padding: usize,
    pub embed_dim: usize,
    pub hidden_dim: usize,
    pub head_count: usize,
    pub num_layers: usize,
    pub num_classes: usize,
    pub in_channels: usize,
    pub height: usize,
    pub width: usize,
}

impl Config {
    /// Read the fields, which must be natural numbers (rule `nat`), and check every other rule.
    ///
    /// The error lists all broken rules, each with its label, separated by "; ".
    pub fn new(cls: bool, fields: &Json, image: &Json) -> Result<Config, String> {
        let mut broken = Vec::new();
        let mut natural = |from: &Json, name: &str| {
            let value = from.get(name);
            match value.as_integer() {
                Some(number @ 0..=MAX_FIELD) => number as usize,
                _ => {
                    broken.push(format!(
                        "nat: {name} must be an integer from 0 to {MAX_FIELD}, got {value}"
                    ));
                    1 // breaks no other rule
                }
            }
        };
        let config = Config {
            cls,
            patch_h: natural(fields, "patch_h"),
            patch_w: natural(fields, "patch_w"),
            stride: natural(fields, "stride"),
            padding: natural(fields, "padding"),
            embed_dim: natural(fields, "embed_dim"),
            hidden_dim: natural(fields, "hidden_dim"),
            head_count: natural(fields, "head_count"),
            num_layers: natural(fields, "num_layers"),
            num_classes: natural(fields, "num_classes"),
            in_channels: natural(image, "in_channels"),
            height: natural(image, "height"),
            width: natural(image, "width"),
        };
        for (holds, rule) in [
            (config.patch_h != 0, "patchH_ne0: patch_h must not be 0"),
            (config.patch_w != 0, "patchW_ne0: patch_w must not be 0"),
            (config.embed_dim > 0, "embedDim_pos: embed_dim must be positive"),
            (config.hidden_dim > 0, "hiddenDim_pos: hidden_dim must be positive"),
            (config.head_count > 0, "headCount_pos: head_count must be positive"),
            (config.num_classes != 0, "numClasses_ne0: num_classes must not be 0"),
            (config.in_channels != 0, "h_inC: in_channels must not be 0"),
        ] {
            if !holds {
                broken.push(rule.to_string());
            }
        }
        if broken.is_empty() && !cls && config.patch_count() == 0 {
            broken.push("h_tok: mean pooling needs at least one token".to_string());
        }
        if broken.is_empty() {
            Ok(config)
        } else {
            Err(broken.join("; "))
        }
    }

    /// d: floor(D / H), so the heads need not divide the width.
    pub fn head_dim(&self) -> usize {
        self.embed_dim / self.head_count
    }

    /// Rows and columns of the grid of patches.
    pub fn patch_grid(&self) -> (usize, usize) {
        let positions = |extent: usize, kernel: usize| {
            let padded = extent + 2 * self.padding;
            if kernel == 0 || self.stride == 0 || padded < kernel {
                0
            } else {
                (padded - kernel) / self.stride + 1
            }
        };
        (positions(self.height, self.patch_h), positions(self.width, self.patch_w))
    }

    /// T.
    pub fn patch_count(&self) -> usize {
        let (out_h, out_w) = self.patch_grid();
        out_h.saturating_mul(out_w)
    }

    /// The shape of every parameter by flat name.
    pub fn parameter_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (d, f, k) = (self.embed_dim, self.hidden_dim, self.num_classes);
        let inner = self.head_count * self.head_dim();
        let mut shapes = vec![
            (
                "patch_embed.kernel".to_string(),
                vec![d, self.in_channels, self.patch_h, self.patch_w],
            ),
            ("patch_embed.bias".to_string(), vec![d]),
            (
                "pos_enc.pos".to_string(),
                vec![self.patch_count().saturating_add(self.cls.into()), d],
            ),
            ("head.weights".to_string(), vec![k, d]),
            ("head.bias".to_string(), vec![k]),
        ];
        if self.cls {
            shapes.push(("cls_token".to_string(), vec![d]));
        }
        for i in 0..self.num_layers {
            for (name, shape) in [
                ("mha.wq", vec![d, inner]),
                ("mha.wk", vec![d, inner]),
                ("mha.wv", vec![d, inner]),
                ("mha.wo", vec![inner, d]),
                ("ffn.w1", vec![d, f]),
                ("ffn.w2", vec![f, d]),
                ("ffn.b1", vec![f]),
                ("ffn.b2", vec![d]),
                ("norm1_gamma", vec![d]),
                ("norm1_beta", vec![d]),
                ("norm2_gamma", vec![d]),
                ("norm2_beta", vec![d]),
            ] {
                shapes.push((format!("encoder.layers.{i}.{name}"), shape));
            }
        }
        shapes
    }
}
