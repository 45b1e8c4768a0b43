//! `MXFP4` and `NVFP4`: 4-bit floats (E2M1) that share an 8-bit float scale.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};

use super::{QuantBlock, bits, fp, legacy};
use crate::encoding::Encoding;

/// Twice what the 16 codes of E2M1 stand for. Code 8, which is minus zero, counts as plus zero, as in ggml.
const DOUBLED: [f32; 16] = [
    0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0,
];

/// 32 numbers share the scale `2^(e - 127)`. Code 255, NaN in the OCP standard, is an exponent like any other in ggml.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Mxfp4 {
    e: u8,
    qs: [u8; 16],
}

impl QuantBlock<32> for Mxfp4 {
    const ENCODING: Encoding = Encoding::Mxfp4;

    fn numbers(&self) -> [f32; 32] {
        // Half the scale, because the numbers are doubled: the two smallest are denormal.
        let half_scale = f32::from_bits(match self.e {
            0 | 1 => 0x0020_0000 << self.e,
            e => u32::from(e - 1) << 23,
        });
        from_fn(|i| DOUBLED[usize::from(legacy::nibble(&self.qs, i))] * half_scale)
    }
}

/// 64 numbers, each 16 of them with an E4M3 scale, whose sign is ignored and whose NaN, 127, is zero.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Nvfp4 {
    d: [u8; 4],
    qs: [u8; 32],
}

impl QuantBlock<64> for Nvfp4 {
    const ENCODING: Encoding = Encoding::Nvfp4;

    fn numbers(&self) -> [f32; 64] {
        let half_scales = self.d.map(|d| match d {
            0x7f => 0.0,
            d => fp::e4m3(d) * 0.5,
        });
        from_fn(|i| {
            let q = bits(self.qs[8 * (i / 16) + i % 8], 4 * (i / 8 % 2), 15);
            DOUBLED[usize::from(q)] * half_scales[i / 16]
        })
    }
}
