//! `Q4_0` to `Q8_0`: 32 numbers share one scale, and in the `_1` formats a minimum.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};

use super::{Machine, QuantBlock, bits, scale};
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

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 32]) {
        let d = scale(self.d);
        for (number, &q) in numbers.iter_mut().zip(&self.qs) {
            *number = f32::from(q) * d;
        }
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

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 32]) {
        let d = scale(self.d);
        for (i, &q) in self.qs.iter().enumerate() {
            numbers[i] = (f32::from(q & 15) - 8.0) * d;
            numbers[i + 16] = (f32::from(q >> 4) - 8.0) * d;
        }
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

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 32]) {
        let (d, m) = (scale(self.d), scale(self.m));
        for (i, &q) in self.qs.iter().enumerate() {
            numbers[i] = f32::from(q & 15) * d + m;
            numbers[i + 16] = f32::from(q >> 4) * d + m;
        }
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

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 32]) {
        let (d, qh) = (scale(self.d), u32::from_le_bytes(self.qh));
        for (i, &q) in self.qs.iter().enumerate() {
            let (low, high) = five_bit_halves(q, qh, i);
            numbers[i] = (low as f32 - 16.0) * d;
            numbers[i + 16] = (high as f32 - 16.0) * d;
        }
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

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 32]) {
        let (d, m, qh) = (scale(self.d), scale(self.m), u32::from_le_bytes(self.qh));
        for (i, &q) in self.qs.iter().enumerate() {
            let (low, high) = five_bit_halves(q, qh, i);
            numbers[i] = low as f32 * d + m;
            numbers[i + 16] = high as f32 * d + m;
        }
    }
}

/// The 4 bits of number `i` of 32: the first 16 lie in the lower halves of the bytes.
pub(super) fn nibble(qs: &[u8; 16], i: usize) -> u8 {
    bits(qs[i % 16], 4 * (i / 16), 15)
}

fn five_bits(qs: &[u8; 16], qh: &[u8; 4], i: usize) -> u8 {
    nibble(qs, i) | (bits(qh[i / 8], i % 8, 1) << 4)
}

/// The 5 bits of numbers `i` and `i + 16`, whose lower 4 lie in byte `q`.
#[inline(always)]
fn five_bit_halves(q: u8, qh: u32, i: usize) -> (i32, i32) {
    let low = u32::from(q & 15) | ((qh >> i & 1) << 4);
    let high = u32::from(q >> 4) | ((qh >> (i + 16) & 1) << 4);
    (low as i32, high as i32)
}
