//! `Q4_0` to `Q8_0`: 32 numbers share one scale, and in the `_1` formats a minimum.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};

use super::{QuantBlock, bits, scale};
use crate::encoding::Encoding;

/// 8-bit integers.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Q8_0 {
    d: [u8; 2],
    qs: [i8; 32],
}

impl QuantBlock<32> for Q8_0 {
    const ENCODING: Encoding = Encoding::Q8_0;

    fn numbers(&self) -> [f32; 32] {
        let d = scale(self.d);
        self.qs.map(|q| f32::from(q) * d)
    }
}

/// 4-bit integers less 8. A byte holds number `i` below and number `i + 16` above.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Q4_0 {
    d: [u8; 2],
    qs: [u8; 16],
}

impl QuantBlock<32> for Q4_0 {
    const ENCODING: Encoding = Encoding::Q4_0;

    fn numbers(&self) -> [f32; 32] {
        let d = scale(self.d);
        from_fn(|i| (f32::from(nibble(&self.qs, i)) - 8.0) * d)
    }
}

/// 4-bit integers over a minimum.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Q4_1 {
    d: [u8; 2],
    m: [u8; 2],
    qs: [u8; 16],
}

impl QuantBlock<32> for Q4_1 {
    const ENCODING: Encoding = Encoding::Q4_1;

    fn numbers(&self) -> [f32; 32] {
        let (d, m) = (scale(self.d), scale(self.m));
        from_fn(|i| f32::from(nibble(&self.qs, i)) * d + m)
    }
}

/// 5-bit integers less 16. The fifth bit of number `i` is bit `i` of `qh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Q5_0 {
    d: [u8; 2],
    qh: [u8; 4],
    qs: [u8; 16],
}

impl QuantBlock<32> for Q5_0 {
    const ENCODING: Encoding = Encoding::Q5_0;

    fn numbers(&self) -> [f32; 32] {
        let d = scale(self.d);
        from_fn(|i| (f32::from(five_bits(&self.qs, &self.qh, i)) - 16.0) * d)
    }
}

/// 5-bit integers over a minimum.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Q5_1 {
    d: [u8; 2],
    m: [u8; 2],
    qh: [u8; 4],
    qs: [u8; 16],
}

impl QuantBlock<32> for Q5_1 {
    const ENCODING: Encoding = Encoding::Q5_1;

    fn numbers(&self) -> [f32; 32] {
        let (d, m) = (scale(self.d), scale(self.m));
        from_fn(|i| f32::from(five_bits(&self.qs, &self.qh, i)) * d + m)
    }
}

/// The 4 bits of number `i` of 32: the first 16 lie in the lower halves of the bytes.
pub(super) fn nibble(qs: &[u8; 16], i: usize) -> u8 {
    bits(qs[i % 16], 4 * (i / 16), 15)
}

fn five_bits(qs: &[u8; 16], qh: &[u8; 4], i: usize) -> u8 {
    nibble(qs, i) | (bits(qh[i / 8], i % 8, 1) << 4)
}
