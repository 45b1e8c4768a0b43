//! Which tensors a WAN transformer consists of, with their shapes relative to its widths.
//!
//! What a checkpoint may lack, and what it may have beside, is said where the table is used.

use offload_core::swappable::{Role, TensorSpec};

/// One dimension of an expected shape.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Extent {
    /// So many times the width of the residual stream.
    Dim(u64),
    /// The width of the feed-forward layer.
    Ffn,
    /// This number.
    Exactly(u64),
    /// Whatever the checkpoint says.
    Any,
}

use Extent::{Any, Dim, Exactly, Ffn};

/// A tensor that must be there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) name: &'static str,
    shape: &'static [Extent],
}

const D: Extent = Dim(1);

const fn of(name: &'static str, shape: &'static [Extent]) -> Expected {
    Expected { name, shape }
}

/// Every block.
pub(crate) const BLOCK: &[Expected] = &[
    of("self_attn.q.weight", &[D, D]),
    of("self_attn.q.bias", &[D]),
    of("self_attn.k.weight", &[D, D]),
    of("self_attn.k.bias", &[D]),
    of("self_attn.v.weight", &[D, D]),
    of("self_attn.v.bias", &[D]),
    of("self_attn.o.weight", &[D, D]),
    of("self_attn.o.bias", &[D]),
    of("self_attn.norm_q.weight", &[D]),
    of("self_attn.norm_k.weight", &[D]),
    of("cross_attn.q.weight", &[D, D]),
    of("cross_attn.q.bias", &[D]),
    of("cross_attn.k.weight", &[D, D]),
    of("cross_attn.k.bias", &[D]),
    of("cross_attn.v.weight", &[D, D]),
    of("cross_attn.v.bias", &[D]),
    of("cross_attn.o.weight", &[D, D]),
    of("cross_attn.o.bias", &[D]),
    of("cross_attn.norm_q.weight", &[D]),
    of("cross_attn.norm_k.weight", &[D]),
    of("norm3.weight", &[D]),
    of("norm3.bias", &[D]),
    of("ffn.0.weight", &[Ffn, D]),
    of("ffn.0.bias", &[Ffn]),
    of("ffn.2.weight", &[D, Ffn]),
    of("ffn.2.bias", &[D]),
    of("modulation", &[Exactly(1), Exactly(6), D]),
];

/// Every block that attends to an image embedding.
pub(crate) const BLOCK_IMAGE: &[Expected] = &[
    of("cross_attn.k_img.weight", &[D, D]),
    of("cross_attn.k_img.bias", &[D]),
    of("cross_attn.v_img.weight", &[D, D]),
    of("cross_attn.v_img.bias", &[D]),
    of("cross_attn.norm_k_img.weight", &[D]),
];

/// Outside the blocks, without the patch embedding's weight.
pub(crate) const ROOT: &[Expected] = &[
    of("patch_embedding.bias", &[D]),
    of("text_embedding.0.weight", &[D, Any]),
    of("text_embedding.0.bias", &[D]),
    of("text_embedding.2.weight", &[D, D]),
    of("text_embedding.2.bias", &[D]),
    of("time_embedding.0.weight", &[D, Any]),
    of("time_embedding.0.bias", &[D]),
    of("time_embedding.2.weight", &[D, D]),
    of("time_embedding.2.bias", &[D]),
    of("time_projection.1.weight", &[Dim(6), D]),
    of("time_projection.1.bias", &[Dim(6)]),
    of("head.head.weight", &[Any, D]),
    of("head.head.bias", &[Any]),
    of("head.modulation", &[Exactly(1), Exactly(2), D]),
];

/// Outside the blocks of a model with an image embedding.
pub(crate) const ROOT_IMAGE: &[Expected] = &[
    of("img_emb.proj.0.weight", &[Any]),
    of("img_emb.proj.0.bias", &[Any]),
    of("img_emb.proj.1.weight", &[Any, Any]),
    of("img_emb.proj.1.bias", &[Any]),
    of("img_emb.proj.3.weight", &[D, Any]),
    of("img_emb.proj.3.bias", &[D]),
    of("img_emb.proj.4.weight", &[D]),
    of("img_emb.proj.4.bias", &[D]),
];

/// Groups outside the blocks, in the order of use before the blocks.
pub(crate) const GROUPS_BEFORE: &[&str] = &[
    "patch_embedding",
    "ref_conv",
    "control_adapter",
    "text_embedding",
    "time_embedding",
    "time_projection",
    "img_emb",
];

/// The group that is used after the blocks.
pub(crate) const GROUP_AFTER: &str = "head";

impl Expected {
    /// The shape at these widths, with `free` where the table leaves it open.
    pub(crate) fn shape(&self, dim: u64, ffn_dim: u64, free: u64) -> Vec<u64> {
        let len = |extent: &Extent| match *extent {
            Dim(times) => dim.saturating_mul(times),
            Ffn => ffn_dim,
            Exactly(len) => len,
            Any => free,
        };
        self.shape.iter().map(len).collect()
    }

    /// Whether `spec` has the shape, and if not, the shape it should have.
    ///
    /// Leading dimensions of 1 do not count: GGML drops them.
    pub(crate) fn check(&self, spec: &TensorSpec, dim: u64, ffn_dim: u64) -> Result<(), String> {
        let wanted: Vec<Option<u64>> = self
            .shape
            .iter()
            .map(|extent| match *extent {
                Dim(times) => Some(dim.saturating_mul(times)),
                Ffn => Some(ffn_dim),
                Exactly(len) => Some(len),
                Any => None,
            })
            .collect();
        let leading = wanted.iter().take_while(|len| **len == Some(1)).count();
        let found_leading = spec.shape().iter().take_while(|len| **len == 1).count();
        let significant = &wanted[leading..];
        // A width of 1 must not be taken for a dropped dimension.
        let excess = spec.shape().len().saturating_sub(significant.len());
        let found = &spec.shape()[excess.min(found_leading)..];
        let fits = found.len() == significant.len()
            && significant
                .iter()
                .zip(found)
                .all(|(wanted, found)| wanted.is_none_or(|wanted| wanted == *found));
        if fits {
            return Ok(());
        }
        let text: Vec<String> = wanted
            .iter()
            .map(|len| len.map_or_else(|| "any".to_owned(), |len| len.to_string()))
            .collect();
        Err(format!("[{}]", text.join(", ")))
    }
}

/// What the tensor called `name` is to the computation, where the name tells: tables and norms stay exact.
pub(crate) fn role_by_name(name: &str) -> Option<Role> {
    let leaf = name.rsplit('.').next().unwrap_or(name);
    let owner = name.strip_suffix(leaf).unwrap_or("").trim_end_matches('.');
    let owner = owner.rsplit('.').next().unwrap_or(owner);
    let is_vector = matches!(leaf, "bias" | "modulation")
        || owner.starts_with("norm")
        || owner.ends_with("norm");
    is_vector.then_some(Role::Vector)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use offload_core::encoding::Encoding;

    use super::*;

    fn spec(shape: &[u64]) -> TensorSpec {
        let bytes = Encoding::F32.bytes_of(shape).unwrap();
        let memory = Bytes::from(vec![0; usize::try_from(bytes).unwrap()]);
        TensorSpec::new("t", shape, Encoding::F32, memory).unwrap()
    }

    #[test]
    fn leading_ones_do_not_count() {
        let modulation = of("modulation", &[Exactly(1), Exactly(6), D]);
        assert_eq!(modulation.check(&spec(&[1, 6, 8]), 8, 16), Ok(()));
        assert_eq!(modulation.check(&spec(&[6, 8]), 8, 16), Ok(()));
        assert_eq!(modulation.check(&spec(&[1, 1, 6, 8]), 8, 16), Ok(()));
        for wrong in [&[2, 6, 8][..], &[6, 9], &[8], &[48], &[]] {
            assert_eq!(
                modulation.check(&spec(wrong), 8, 16),
                Err("[1, 6, 8]".to_owned())
            );
        }
        let matrix = of("q.weight", &[D, D]);
        assert_eq!(matrix.check(&spec(&[1, 1]), 1, 1), Ok(()));
        assert_eq!(matrix.check(&spec(&[8]), 8, 16), Err("[8, 8]".to_owned()));
    }

    #[test]
    fn tables_norms_and_biases_are_vectors() {
        for name in [
            "modulation",
            "ffn.0.bias",
            "norm3.weight",
            "self_attn.norm_q.weight",
            "cross_attn.norm_k_img.weight",
            "attn.q_norm.weight",
        ] {
            assert_eq!(role_by_name(name), Some(Role::Vector), "{name}");
        }
        for name in ["ffn.0.weight", "self_attn.q.weight", "weight", "emb_pos"] {
            assert_eq!(role_by_name(name), None, "{name}");
        }
    }
}
