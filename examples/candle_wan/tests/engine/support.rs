//! Small checkpoints, and runs of them.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use candle_wan::Request;
use offload_wan::{Recipe, SynthesizeSpec, Variant, synthesize};

/// A checkpoint with widths of `variant` divided by `scale`.
pub(crate) fn spec(variant: &str, recipe: Recipe, scale: u64, block_count: u64) -> SynthesizeSpec {
    let variant = Variant::from_name(variant).expect("a variant");
    let spec = SynthesizeSpec::of_variant(variant, recipe, scale, 0).expect("a size");
    SynthesizeSpec {
        block_count,
        ..spec
    }
}

/// Writes `spec` to `name` in `folder`.
pub(crate) fn write(spec: &SynthesizeSpec, folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    synthesize(spec, &path).expect("the folder can be written");
    path
}

/// A video of few tokens.
pub(crate) fn request() -> Request {
    Request {
        width: 96,
        height: 64,
        frames: 5,
        steps: 3,
        shift: 5.0,
        boundary: None,
        guidance: 1.0,
        text_tokens: 20,
        seed: 3,
    }
}

/// The bits of a tensor's numbers.
pub(crate) fn bits(tensor: &Tensor) -> Vec<u32> {
    let numbers = tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>());
    numbers
        .expect("f32")
        .into_iter()
        .map(f32::to_bits)
        .collect()
}
