//! Which encodings the tensors of a synthesised checkpoint have.

use offload_core::encoding::Encoding;

use super::container::Container;

/// Which encodings the tensors of a synthesised checkpoint have: the mixes of the public converters.
///
/// Biases, norms, modulation and the patch embedding are F32. Matrices outside the blocks are never of few bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Recipe {
    /// Every matrix F32.
    F32,
    /// Every matrix F16.
    F16,
    /// Every matrix BF16.
    BF16,
    /// Matrices of the blocks `Q8_0`, the others F16.
    Q8_0,
    /// Matrices of the blocks `Q6_K`, the others F16.
    Q6K,
    /// Matrices of the blocks `Q5_K`, the values' and the second feed-forward one `Q6_K`, the others F16.
    Q5KM,
    /// Matrices of the blocks `Q5_0`, the second feed-forward one `Q5_1`, the others F16.
    Q5_0,
    /// Matrices of the blocks `Q4_K`, the values' and the second feed-forward one `Q6_K`, the others F16.
    Q4KM,
    /// Matrices of the blocks `Q4_K`, the second feed-forward one and the values' of the first four blocks `Q5_K`, the
    /// others F16.
    Q4KS,
    /// Matrices of the blocks `Q4_0`, the second feed-forward one `Q4_1`, the others F16.
    Q4_0,
    /// Matrices of the blocks `Q3_K`, the second feed-forward one and the values' `Q4_K` or, of the first two blocks,
    /// `Q5_K`, the others F16.
    Q3KM,
    /// Matrices of the blocks `Q2_K`, the others F16.
    Q2K,
    /// Matrices of the blocks 8-bit floats, the others F16. Safetensors alone.
    F8,
    /// 8-bit floats with `scale_weight` beside each.
    F8Scaled,
    /// 8-bit floats with `weight_scale` and `comfy_quant` beside each.
    F8Mixed,
    /// Matrices of the blocks 8-bit integers with a scale for each row, the others BF16: LongCat-Video alone.
    Int8,
}

/// How scales stand beside weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scales {
    Old,
    Mixed,
    Int8,
}

impl Recipe {
    /// Every recipe there is.
    pub const ALL: &'static [Recipe] = &[
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q6K,
        Self::Q5KM,
        Self::Q5_0,
        Self::Q4KM,
        Self::Q4KS,
        Self::Q4_0,
        Self::Q3KM,
        Self::Q2K,
        Self::F8,
        Self::F8Scaled,
        Self::F8Mixed,
        Self::Int8,
    ];

    /// Its name, such as `Q4_K_M`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q6K => "Q6_K",
            Self::Q5KM => "Q5_K_M",
            Self::Q5_0 => "Q5_0",
            Self::Q4KM => "Q4_K_M",
            Self::Q4KS => "Q4_K_S",
            Self::Q4_0 => "Q4_0",
            Self::Q3KM => "Q3_K_M",
            Self::Q2K => "Q2_K",
            Self::F8 => "F8_E4M3",
            Self::F8Scaled => "F8_E4M3_SCALED",
            Self::F8Mixed => "F8_E4M3_MIXED",
            Self::Int8 => "INT8",
        }
    }

    /// Looks up a name such as `Q4_K_M` or `q4_k_m`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|recipe| recipe.name().eq_ignore_ascii_case(name))
    }

    /// The number under which GGUF files name the mix: llama.cpp's `general.file_type`.
    pub(super) const fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 | Self::F8 | Self::F8Scaled | Self::F8Mixed => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q2K => 10,
            Self::Q3KM => 12,
            Self::Q4KS => 14,
            Self::Q4KM => 15,
            Self::Q5KM => 17,
            Self::Q6K => 18,
            Self::BF16 | Self::Int8 => 32,
        }
    }

    /// What the matrix of a block called `name`, such as `blocks.7.ffn.2.weight`, is stored in.
    pub(super) fn of_block(self, name: &str) -> Encoding {
        let is_value = name.ends_with(".v.weight");
        let is_second = name.ends_with(".ffn.2.weight");
        let number = name
            .split('.')
            .nth(1)
            .and_then(|number| number.parse::<u64>().ok());
        let is_early = |count: u64| number.is_some_and(|number| number < count);
        match self {
            Self::Q8_0 => Encoding::Q8_0,
            Self::Q6K => Encoding::Q6K,
            Self::Q5KM | Self::Q4KM if is_value || is_second => Encoding::Q6K,
            Self::Q5KM => Encoding::Q5K,
            Self::Q5_0 if is_second => Encoding::Q5_1,
            Self::Q5_0 => Encoding::Q5_0,
            Self::Q4KS if is_second || is_value && is_early(4) => Encoding::Q5K,
            Self::Q4KM | Self::Q4KS => Encoding::Q4K,
            Self::Q4_0 if is_second => Encoding::Q4_1,
            Self::Q4_0 => Encoding::Q4_0,
            Self::Q3KM if is_value && is_early(2) => Encoding::Q5K,
            Self::Q3KM if is_value || is_second => Encoding::Q4K,
            Self::Q3KM => Encoding::Q3K,
            Self::Q2K => Encoding::Q2K,
            Self::F8 | Self::F8Scaled | Self::F8Mixed => Encoding::F8E4M3,
            Self::Int8 => Encoding::I8,
            Self::F32 | Self::F16 | Self::BF16 => self.of_root(),
        }
    }

    /// What other matrices are stored in.
    pub(super) const fn of_root(self) -> Encoding {
        match self {
            Self::F32 => Encoding::F32,
            Self::BF16 | Self::Int8 => Encoding::BF16,
            _ => Encoding::F16,
        }
    }

    pub(super) const fn scales(self) -> Option<Scales> {
        match self {
            Self::F8Scaled => Some(Scales::Old),
            Self::F8Mixed => Some(Scales::Mixed),
            Self::Int8 => Some(Scales::Int8),
            _ => None,
        }
    }

    /// Whether such a container holds it.
    pub(super) fn fits(self, container: Container) -> bool {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => true,
            Self::F8 | Self::F8Scaled | Self::F8Mixed | Self::Int8 => container != Container::Gguf,
            _ => container == Container::Gguf,
        }
    }

    /// Whether GGUF files hold it; the others are for safetensors.
    #[must_use]
    pub fn is_for_gguf(self) -> bool {
        self.fits(Container::Gguf)
    }

    /// Widths must be multiples of this many elements.
    #[must_use]
    pub fn width_multiple(self) -> u64 {
        let largest = [self.of_block("blocks.9.self_attn.q.weight"), self.of_root()];
        let quant_blocks = largest.map(Encoding::quant_block_len);
        quant_blocks.into_iter().fold(128, u64::max)
    }
}
