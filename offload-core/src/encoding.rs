//! How numbers are stored: element types and GGML quant formats, with the elements and bytes of one quant block.
//!
//! This module only counts; turning bytes into numbers is [`decode`](crate::decode)'s work.

use serde::{Deserialize, Serialize};

/// Why a shape cannot be stored in an encoding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodingError {
    /// The fastest axis does not hold a whole number of quant blocks.
    #[error(
        "rows of {row_len} elements are not a whole number of {encoding} quant blocks of {quant_block_len}"
    )]
    RaggedRow {
        /// The encoding asked for.
        encoding: Encoding,
        /// Elements of the fastest axis.
        row_len: u64,
        /// Elements of one quant block.
        quant_block_len: u64,
    },
    /// The product of the dimensions, or its bytes, does not fit 64 bits.
    #[error("shape {shape:?} in {encoding} overflows 64 bits")]
    Overflow {
        /// The encoding asked for.
        encoding: Encoding,
        /// The shape asked for, slowest axis first.
        shape: Vec<u64>,
    },
}

macro_rules! encodings {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $len:literal, $bytes:literal, $ggml:expr;)*) => {
        /// How a tensor's numbers are stored.
        ///
        /// Names are GGML's (`ggml/include/ggml.h`) and safetensors' for what GGML lacks. Sizes are those of
        /// `ggml_blck_size` and `ggml_type_size`; element types are quant blocks of one element.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Encoding {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl Encoding {
            /// Every encoding there is.
            pub const ALL: &'static [Encoding] = &[$(Encoding::$variant),*];

            /// The name that files and tools use, such as `Q4_K`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Encoding::$variant => $name),* }
            }

            /// Elements of one quant block; 1 for element types.
            #[must_use]
            pub const fn quant_block_len(self) -> u64 {
                match self { $(Encoding::$variant => $len),* }
            }

            /// Bytes of one quant block.
            #[must_use]
            pub const fn quant_block_bytes(self) -> u64 {
                match self { $(Encoding::$variant => $bytes),* }
            }

            /// GGML's type id, for those that GGML has.
            #[must_use]
            pub const fn ggml_id(self) -> Option<u32> {
                match self { $(Encoding::$variant => $ggml),* }
            }
        }
    };
}

encodings! {
    /// IEEE binary32.
    F32 = "F32", 1, 4, Some(0);
    /// IEEE binary16.
    F16 = "F16", 1, 2, Some(1);
    /// 4-bit, one f16 scale for 32.
    Q4_0 = "Q4_0", 32, 18, Some(2);
    /// 4-bit, f16 scale and minimum for 32.
    Q4_1 = "Q4_1", 32, 20, Some(3);
    /// 5-bit, one f16 scale for 32.
    Q5_0 = "Q5_0", 32, 22, Some(6);
    /// 5-bit, f16 scale and minimum for 32.
    Q5_1 = "Q5_1", 32, 24, Some(7);
    /// 8-bit, one f16 scale for 32.
    Q8_0 = "Q8_0", 32, 34, Some(8);
    /// 2-bit super-block of 256.
    Q2K = "Q2_K", 256, 84, Some(10);
    /// 3-bit super-block of 256.
    Q3K = "Q3_K", 256, 110, Some(11);
    /// 4-bit super-block of 256.
    Q4K = "Q4_K", 256, 144, Some(12);
    /// 5-bit super-block of 256.
    Q5K = "Q5_K", 256, 176, Some(13);
    /// 6-bit super-block of 256.
    Q6K = "Q6_K", 256, 210, Some(14);
    /// 2.06-bit codebook.
    Iq2Xxs = "IQ2_XXS", 256, 66, Some(16);
    /// 2.31-bit codebook.
    Iq2Xs = "IQ2_XS", 256, 74, Some(17);
    /// 3.06-bit codebook.
    Iq3Xxs = "IQ3_XXS", 256, 98, Some(18);
    /// 1.56-bit codebook.
    Iq1S = "IQ1_S", 256, 50, Some(19);
    /// 4-bit codebook, one f16 scale for 32.
    Iq4Nl = "IQ4_NL", 32, 18, Some(20);
    /// 3.44-bit codebook.
    Iq3S = "IQ3_S", 256, 110, Some(21);
    /// 2.56-bit codebook.
    Iq2S = "IQ2_S", 256, 82, Some(22);
    /// 4.25-bit codebook.
    Iq4Xs = "IQ4_XS", 256, 136, Some(23);
    /// Signed 8-bit integer.
    I8 = "I8", 1, 1, Some(24);
    /// Signed 16-bit integer.
    I16 = "I16", 1, 2, Some(25);
    /// Signed 32-bit integer.
    I32 = "I32", 1, 4, Some(26);
    /// Signed 64-bit integer.
    I64 = "I64", 1, 8, Some(27);
    /// IEEE binary64.
    F64 = "F64", 1, 8, Some(28);
    /// 1.75-bit codebook.
    Iq1M = "IQ1_M", 256, 56, Some(29);
    /// bfloat16.
    BF16 = "BF16", 1, 2, Some(30);
    /// Ternary, base 3.
    Tq1_0 = "TQ1_0", 256, 54, Some(34);
    /// Ternary, 2 bits.
    Tq2_0 = "TQ2_0", 256, 66, Some(35);
    /// OCP microscaling 4-bit float, E8M0 scale for 32.
    Mxfp4 = "MXFP4", 32, 17, Some(39);
    /// NVIDIA 4-bit float, UE4M3 scale for 16.
    Nvfp4 = "NVFP4", 64, 36, Some(40);
    /// 1-bit, one f16 scale for 128.
    Q1_0 = "Q1_0", 128, 18, Some(41);
    /// 2-bit, one f16 scale for 64.
    Q2_0 = "Q2_0", 64, 18, Some(42);
    /// 8-bit float, 4 exponent bits, no infinity (OCP E4M3FN).
    F8E4M3 = "F8_E4M3", 1, 1, None;
    /// 8-bit float, 5 exponent bits (OCP E5M2).
    F8E5M2 = "F8_E5M2", 1, 1, None;
    /// Unsigned 8-bit integer.
    U8 = "U8", 1, 1, None;
    /// 8-bit float, 4 exponent bits, no infinity, no negative zero, bias 8.
    F8E4M3Fnuz = "F8_E4M3FNUZ", 1, 1, None;
    /// 8-bit float, 5 exponent bits, no infinity, no negative zero, bias 16.
    F8E5M2Fnuz = "F8_E5M2FNUZ", 1, 1, None;
    /// A power of two, 8 exponent bits (OCP E8M0): the scale of microscaling formats.
    F8E8M0 = "F8_E8M0", 1, 1, None;
    /// Truth value, 0 or 1, in a byte.
    Bool = "BOOL", 1, 1, None;
    /// Unsigned 16-bit integer.
    U16 = "U16", 1, 2, None;
    /// Unsigned 32-bit integer.
    U32 = "U32", 1, 4, None;
    /// Unsigned 64-bit integer.
    U64 = "U64", 1, 8, None;
    /// Complex number of two IEEE binary32.
    C64 = "C64", 1, 8, None;
}

/// What a GGML type id stands for in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgmlType {
    /// An encoding that files use.
    Known(Encoding),
    /// A format that GGML removed; no reader can know its layout.
    Removed(&'static str),
    /// A format that GGML uses in memory and never stores.
    Internal(&'static str),
    /// No such id.
    Unknown,
}

impl Encoding {
    /// Looks up GGML's type id.
    #[must_use]
    pub fn from_ggml_id(id: u32) -> GgmlType {
        if let Some(&encoding) = Self::ALL.iter().find(|e| e.ggml_id() == Some(id)) {
            return GgmlType::Known(encoding);
        }
        match id {
            4 => GgmlType::Removed("Q4_2"),
            5 => GgmlType::Removed("Q4_3"),
            9 => GgmlType::Internal("Q8_1"),
            15 => GgmlType::Internal("Q8_K"),
            31 => GgmlType::Removed("Q4_0_4_4"),
            32 => GgmlType::Removed("Q4_0_4_8"),
            33 => GgmlType::Removed("Q4_0_8_8"),
            36 => GgmlType::Removed("IQ4_NL_4_4"),
            37 => GgmlType::Removed("IQ4_NL_4_8"),
            38 => GgmlType::Removed("IQ4_NL_8_8"),
            _ => GgmlType::Unknown,
        }
    }

    /// Looks up a name such as `Q4_K` or `q4_k`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|e| e.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a tensor of `shape` (slowest axis first).
    ///
    /// A zero dimension makes the tensor empty but hides no overflow of the others.
    ///
    /// # Errors
    /// When the rows are ragged or the size overflows.
    pub fn bytes_of(self, shape: &[u64]) -> Result<u64, EncodingError> {
        let overflow = || EncodingError::Overflow {
            encoding: self,
            shape: shape.to_vec(),
        };
        let row_len = shape.last().copied().unwrap_or(1);
        if !row_len.is_multiple_of(self.quant_block_len()) {
            return Err(EncodingError::RaggedRow {
                encoding: self,
                row_len,
                quant_block_len: self.quant_block_len(),
            });
        }
        let nonzero = shape
            .iter()
            .filter(|&&dim| dim != 0)
            .try_fold(1u64, |product, &dim| product.checked_mul(dim))
            .ok_or_else(overflow)?;
        // `nonzero` is a multiple of the quant block unless the row itself is empty.
        let bytes = nonzero
            .div_ceil(self.quant_block_len())
            .checked_mul(self.quant_block_bytes())
            .ok_or_else(overflow)?;
        Ok(if shape.contains(&0) { 0 } else { bytes })
    }
}

impl std::fmt::Display for Encoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A type of the host whose values are laid out as an encoding has them.
pub trait Number: bytemuck::AnyBitPattern {
    /// The encoding.
    const ENCODING: Encoding;
}

macro_rules! numbers {
    ($($number:ty: $encoding:ident),*) => {
        $(impl Number for $number {
            const ENCODING: Encoding = Encoding::$encoding;
        })*
    };
}

numbers!(f64: F64, f32: F32, half::f16: F16, half::bf16: BF16, i64: I64, i32: I32, i16: I16, i8: I8, u8: U8);
