//! `MXFP4` and `NVFP4`: 4-bit floats (E2M1) that share an 8-bit float scale.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};

use super::{Machine, QuantBlock, bits, fp, legacy};
use crate::encoding::Encoding;

/// Twice what the 16 codes of E2M1 stand for. Code 8, which is minus zero, counts as plus zero, as in ggml.
const DOUBLED: [f32; 16] = [
    0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0,
];

/// The same.
const DOUBLED_INTEGERS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

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
        let half_scale = self.half_scale();
        from_fn(|i| DOUBLED[usize::from(legacy::nibble(&self.qs, i))] * half_scale)
    }

    #[inline(always)]
    fn write<M: Machine>(&self, machine: M, numbers: &mut [f32; 32]) {
        let half_scale = self.half_scale();
        let low = machine.look_up(&DOUBLED_INTEGERS, self.qs.map(|q| q & 15));
        let high = machine.look_up(&DOUBLED_INTEGERS, self.qs.map(|q| q >> 4));
        for (i, (low, high)) in low.into_iter().zip(high).enumerate() {
            numbers[i] = f32::from(low) * half_scale;
            numbers[i + 16] = f32::from(high) * half_scale;
        }
    }
}

impl Mxfp4 {
    /// Half the scale, because the numbers are doubled: the two smallest are denormal.
    fn half_scale(&self) -> f32 {
        f32::from_bits(match self.e {
            0 | 1 => 0x0020_0000 << self.e,
            e => u32::from(e - 1) << 23,
        })
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
        let half_scales = self.half_scales();
        from_fn(|i| {
            let q = bits(self.qs[8 * (i / 16) + i % 8], 4 * (i / 8 % 2), 15);
            DOUBLED[usize::from(q)] * half_scales[i / 16]
        })
    }

    #[inline(always)]
    fn write<M: Machine>(&self, machine: M, numbers: &mut [f32; 64]) {
        let half_scales = self.half_scales();
        let shares = numbers.as_chunks_mut::<16>().0.iter_mut().zip(half_scales);
        for ((numbers, half_scale), qs) in shares.zip(self.qs.as_chunks::<8>().0) {
            let codes = from_fn(|i| bits(qs[i % 8], 4 * (i / 8), 15));
            let integers = machine.look_up(&DOUBLED_INTEGERS, codes);
            for (number, integer) in numbers.iter_mut().zip(integers) {
                *number = f32::from(integer) * half_scale;
            }
        }
    }
}

impl Nvfp4 {
    fn half_scales(&self) -> [f32; 4] {
        self.d.map(|d| match d {
            0x7f => 0.0,
            d => fp::e4m3(d) * 0.5,
        })
    }
}
