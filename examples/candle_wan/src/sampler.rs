//! From noise to latents: the schedule of noise levels, and noise that is the same everywhere.

use candle_core::{Device, Shape, Tensor};

use crate::Result;

/// Noise levels from 1 to 0, `steps + 1` of them: even ones, shifted towards noise as WAN's are.
#[must_use]
pub fn noise_levels(steps: u32, shift: f64) -> Vec<f64> {
    let level = |step: u32| {
        let even = 1.0 - f64::from(step) / f64::from(steps);
        shift * even / (1.0 + (shift - 1.0) * even)
    };
    (0..=steps).map(level).collect()
}

/// A seeded sequence of numbers that are normally distributed, nearly: sums of four uniform ones. No function is in it
/// that machines round differently.
#[derive(Debug, Clone)]
pub struct Noise(u64);

/// A step of splitmix64.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
/// Of the sum of four uniform numbers of 16 bits.
const MEAN: f64 = 2.0 * 65535.0;
/// Of the same, nearly: 65536 / sqrt(3).
const DEVIATION: f64 = 37_837.227;

impl Noise {
    /// The sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(GAMMA);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xFFFF).sum();
        ((sum as f64 - MEAN) / DEVIATION) as f32
    }

    /// The next numbers as a tensor.
    ///
    /// # Errors
    /// When candle fails.
    pub fn tensor(&mut self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let numbers: Vec<f32> = (0..shape.elem_count()).map(|_| self.next()).collect();
        Ok(Tensor::from_vec(numbers, shape, &Device::Cpu)?)
    }
}
