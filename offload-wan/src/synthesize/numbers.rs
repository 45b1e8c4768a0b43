//! Seeded numbers in the bytes of an encoding, made directly: nothing is quantised.
//!
//! Decoded, they are finite and centred on zero, with about the standard deviation asked for. They are the same on
//! every machine and in every version: checkpoints are compared by their bytes.

use half::{bf16, f16};
use offload_core::encoding::Encoding;

/// A generator of 64-bit numbers: SplitMix64, <https://prng.di.unimi.it/splitmix64.c>.
#[derive(Debug, Clone)]
pub(crate) struct Numbers(u64);

/// What the generator counts by.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Standard deviation of the sum of four uniform 16-bit numbers.
const FOUR_U16: f32 = 37_837.227;

/// Standard deviation of the numbers 0 to 15, and their mean.
const NIBBLE: (f32, f32) = (4.609_772, 7.5);

/// Standard deviation of the numbers 0 to 31, and their mean.
const FIVE_BITS: (f32, f32) = (9.233_093, 15.5);

/// Standard deviation of the numbers 0 to 63.
const SIX_BITS: f32 = 18.472_953;

/// Standard deviation of the product of a scale of -32 to 31 and a number of -4 to 3.
const Q3_K: f32 = 43.3;

/// Standard deviation of the product of a scale of 0 to 15 and a number of 0 to 3, less one and a half times a minimum
/// of 0 to 15.
const Q2_K: f32 = 13.87;

impl Numbers {
    /// The numbers of tensor `name`: its own sequence, whatever else the checkpoint holds.
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        // FNV-1a.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let mut mixed = Self(seed);
        Self(mixed.next() ^ hash)
    }

    /// The same sequence without what `units` quant blocks or elements of `encoding` take.
    pub(crate) fn after(&self, encoding: Encoding, units: u64) -> Self {
        let draws = units.wrapping_mul(draws(encoding));
        Self(self.0.wrapping_add(draws.wrapping_mul(STEP)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// About normal, with standard deviation 1 and nothing beyond 3.5.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: i32 = (0..4)
            .map(|part| i32::from((bits >> (16 * part)) as u16))
            .sum();
        (sum - 2 * 65_535) as f32 / FOUR_U16
    }

    /// Uniform in `low..=high`.
    fn between(&mut self, low: u8, high: u8) -> u8 {
        let span = u64::from(high - low) + 1;
        low + (self.next() % span) as u8
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let random = self.next().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
    }

    /// Appends `len` numbers of mean `mean` and standard deviation `deviation` in element type `encoding`.
    pub(crate) fn elements(
        &mut self,
        encoding: Encoding,
        len: u64,
        (mean, deviation): (f32, f32),
        out: &mut Vec<u8>,
    ) {
        for _ in 0..len {
            let number = mean + deviation * self.normal();
            match encoding {
                Encoding::F32 => out.extend(number.to_le_bytes()),
                Encoding::F16 => out.extend(f16::from_f32(number).to_le_bytes()),
                Encoding::BF16 => out.extend(bf16::from_f32(number).to_le_bytes()),
                Encoding::F8E4M3 => out.push(e4m3(number)),
                // The cast saturates.
                Encoding::I8 => out.push((number.round() as i8).cast_unsigned()),
                other => unreachable!("recipes have no elements in {other}"),
            }
        }
    }

    /// Appends `count` quant blocks of mean 0 and standard deviation `deviation`.
    pub(crate) fn quant_blocks(
        &mut self,
        encoding: Encoding,
        count: u64,
        deviation: f32,
        out: &mut Vec<u8>,
    ) {
        for _ in 0..count {
            match encoding {
                Encoding::Q8_0 => self.q8_0(deviation, out),
                Encoding::Q4K => self.q4_k(deviation, out),
                Encoding::Q6K => self.q6_k(deviation, out),
                Encoding::Q5K => self.q5_k(deviation, out),
                Encoding::Q3K => self.q3_k(deviation, out),
                Encoding::Q2K => self.q2_k(deviation, out),
                Encoding::Q4_0 => self.signed::<16>(deviation / NIBBLE.0, out),
                Encoding::Q5_0 => self.signed::<20>(deviation / FIVE_BITS.0, out),
                Encoding::Q4_1 => self.shifted::<16>(deviation, NIBBLE, out),
                Encoding::Q5_1 => self.shifted::<20>(deviation, FIVE_BITS, out),
                other => unreachable!("recipes have no quant blocks in {other}"),
            }
        }
    }

    /// `f16 d; i8 q[32]`.
    fn q8_0(&mut self, deviation: f32, out: &mut Vec<u8>) {
        let spread = f32::from(self.between(24, 40));
        out.extend(f16::from_f32(deviation / spread).to_le_bytes());
        for _ in 0..32 {
            // At most 3.5 times 40: the cast saturates for few.
            let q = (self.normal() * spread).round() as i8;
            out.extend(q.to_le_bytes());
        }
    }

    /// `f16 d; f16 dmin; u8 scales[12]; u8 qs[128]`: each 32 numbers are `d * scale * q - dmin * min`.
    ///
    /// With `min` equal to `scale` and `dmin` the mean of `q` times `d`, the mean is 0.
    fn q4_k(&mut self, deviation: f32, out: &mut Vec<u8>) {
        self.scales_and_minimums(deviation, NIBBLE, out);
        self.random::<128>(out);
    }

    /// As `Q4_K`, with `u8 qh[32]` before the rest.
    fn q5_k(&mut self, deviation: f32, out: &mut Vec<u8>) {
        self.scales_and_minimums(deviation, FIVE_BITS, out);
        self.random::<160>(out);
    }

    fn scales_and_minimums(
        &mut self,
        deviation: f32,
        (spread, mean): (f32, f32),
        out: &mut Vec<u8>,
    ) {
        let d = deviation / (spread * 40.0);
        out.extend(f16::from_f32(d).to_le_bytes());
        out.extend(f16::from_f32(d * mean).to_le_bytes());
        let mut scale = [0u8; 8];
        let mut min = [0u8; 8];
        for (scale, min) in scale.iter_mut().zip(&mut min) {
            *scale = self.between(24, 56);
            *min = *scale - 1 + self.between(0, 2);
        }
        // Six bits each: the low half whole, the high half in its nibbles and in the others' top bits.
        for j in 0..4 {
            out.push(scale[j] | (scale[j + 4] >> 4) << 6);
        }
        for j in 0..4 {
            out.push(min[j] | (min[j + 4] >> 4) << 6);
        }
        for j in 4..8 {
            out.push((scale[j] & 15) | (min[j] & 15) << 4);
        }
    }

    /// `u8 hmask[32]; u8 qs[64]; u8 scales[12]; f16 d`: each 16 numbers are `d * (scale - 32) * (q - 4)`.
    fn q3_k(&mut self, deviation: f32, out: &mut Vec<u8>) {
        self.random::<108>(out);
        out.extend(f16::from_f32(deviation / Q3_K).to_le_bytes());
    }

    /// `u8 scales[16]; u8 qs[64]; f16 d; f16 dmin`: each 16 numbers are `d * scale * q - dmin * min`.
    fn q2_k(&mut self, deviation: f32, out: &mut Vec<u8>) {
        self.random::<80>(out);
        let d = deviation / Q2_K;
        out.extend(f16::from_f32(d).to_le_bytes());
        out.extend(f16::from_f32(1.5 * d).to_le_bytes());
    }

    /// `f16 d`, then bits: each number is `d * (q - half)`. Half of the blocks have a negative `d`, for a mean of 0.
    fn signed<const BYTES: usize>(&mut self, d: f32, out: &mut Vec<u8>) {
        let d = if self.next() & 1 == 1 { -d } else { d };
        out.extend(f16::from_f32(d).to_le_bytes());
        self.random::<BYTES>(out);
    }

    /// `f16 d; f16 m`, then bits: each number is `d * q + m`.
    fn shifted<const BYTES: usize>(
        &mut self,
        deviation: f32,
        (spread, mean): (f32, f32),
        out: &mut Vec<u8>,
    ) {
        let d = deviation / spread;
        out.extend(f16::from_f32(d).to_le_bytes());
        out.extend(f16::from_f32(-d * mean).to_le_bytes());
        self.random::<BYTES>(out);
    }

    fn random<const BYTES: usize>(&mut self, out: &mut Vec<u8>) {
        let mut bytes = [0; BYTES];
        self.fill(&mut bytes);
        out.extend(bytes);
    }

    /// `u8 ql[128]; u8 qh[64]; i8 scales[16]; f16 d`: each 16 numbers are `d * scale * (q - 32)`.
    fn q6_k(&mut self, deviation: f32, out: &mut Vec<u8>) {
        self.random::<192>(out);
        for _ in 0..16 {
            let scale = self.between(64, 96).cast_signed();
            let negative = self.next() & 1 == 1;
            out.extend((if negative { -scale } else { scale }).to_le_bytes());
        }
        out.extend(f16::from_f32(deviation / (SIX_BITS * 80.0)).to_le_bytes());
    }
}

/// Numbers of the generator that a quant block takes, or an element.
const fn draws(encoding: Encoding) -> u64 {
    match encoding {
        Encoding::Q8_0 => 1 + 32,
        Encoding::Q4K => 16 + 16,
        Encoding::Q5K => 16 + 20,
        Encoding::Q6K => 24 + 2 * 16,
        Encoding::Q3K => 14,
        Encoding::Q2K => 10,
        Encoding::Q4_0 => 1 + 2,
        Encoding::Q4_1 => 2,
        Encoding::Q5_0 => 1 + 3,
        Encoding::Q5_1 => 3,
        _ => 1,
    }
}

/// The nearest 8-bit float of 4 exponent bits; the largest is 448.
fn e4m3(number: f32) -> u8 {
    let sign = if number.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = number.abs().min(448.0);
    // Below 2^-6 steps are 2^-9, as those just above it are.
    if magnitude < 1.0 / 64.0 {
        return sign | (magnitude * 512.0).round_ties_even() as u8;
    }
    // Three bits of the fraction are kept of 23; a carry goes on into the exponent.
    let bits = magnitude.to_bits();
    let rounded = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
    sign | (rounded - (120 << 3)) as u8
}

#[cfg(test)]
mod tests {
    use offload_core::decode::{Float, decode};

    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        let mut numbers = Numbers(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| numbers.next()).collect();
        assert_eq!(
            first,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    /// Mean and standard deviation of what `bytes` decode to.
    fn moments(encoding: Encoding, bytes: &[u8]) -> (f64, f64) {
        let len = bytes.len() as u64 / encoding.quant_block_bytes() * encoding.quant_block_len();
        let mut arrived = vec![0; usize::try_from(len * 4).unwrap()];
        decode(encoding, bytes, Float::F32, &mut arrived).unwrap();
        let numbers: Vec<f64> = arrived
            .chunks_exact(4)
            .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap())))
            .collect();
        assert!(numbers.iter().all(|number| number.is_finite()));
        let count = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / count;
        let square = numbers.iter().map(|n| (n - mean).powi(2)).sum::<f64>();
        (mean, (square / count).sqrt())
    }

    #[test]
    fn decoded_numbers_have_the_moments_asked_for() {
        let count = 65_536;
        // From the largest to the smallest width of a published model.
        for deviation in [0.5, 1.0 / 16.0, (13824f32).sqrt().recip()] {
            for encoding in [
                Encoding::F32,
                Encoding::F16,
                Encoding::BF16,
                Encoding::Q8_0,
                Encoding::Q4K,
                Encoding::Q6K,
                Encoding::Q5K,
                Encoding::Q3K,
                Encoding::Q2K,
                Encoding::Q4_0,
                Encoding::Q4_1,
                Encoding::Q5_0,
                Encoding::Q5_1,
            ] {
                let mut numbers = Numbers::new(7, encoding.name());
                let mut bytes = Vec::new();
                match encoding.quant_block_len() {
                    1 => numbers.elements(encoding, count, (0.0, deviation), &mut bytes),
                    len => numbers.quant_blocks(encoding, count / len, deviation, &mut bytes),
                }
                let (mean, found) = moments(encoding, &bytes);
                let deviation = f64::from(deviation);
                // Of 65,536 numbers the mean scatters by 0.4 % of the deviation; scales of quant blocks add to it.
                assert!(mean.abs() < 0.05 * deviation, "{encoding}: mean {mean}");
                assert!(
                    (found / deviation - 1.0).abs() < 0.05,
                    "{encoding}: {found} for {deviation}"
                );
            }
        }
    }

    #[test]
    fn a_sequence_can_be_entered_anywhere() {
        for encoding in [
            Encoding::F32,
            Encoding::F8E4M3,
            Encoding::Q8_0,
            Encoding::Q2K,
            Encoding::Q3K,
            Encoding::Q4K,
            Encoding::Q5K,
            Encoding::Q6K,
            Encoding::Q4_0,
            Encoding::Q4_1,
            Encoding::Q5_0,
            Encoding::Q5_1,
        ] {
            let numbers = Numbers::new(3, "t");
            let make = |mut numbers: Numbers, count| {
                let mut bytes = Vec::new();
                match encoding.quant_block_len() {
                    1 => numbers.elements(encoding, count, (0.0, 1.0), &mut bytes),
                    _ => numbers.quant_blocks(encoding, count, 1.0, &mut bytes),
                }
                bytes
            };
            let whole = make(numbers.clone(), 9);
            let mut parts = make(numbers.clone(), 4);
            parts.extend(make(numbers.after(encoding, 4), 5));
            assert_eq!(whole, parts, "{encoding}");
        }
    }

    #[test]
    fn every_eight_bit_float_is_its_own_nearest() {
        for bits in (0u8..=255).filter(|bits| bits & 0x7f != 0x7f) {
            let mut number = [0; 4];
            decode(Encoding::F8E4M3, &[bits], Float::F32, &mut number).unwrap();
            assert_eq!(e4m3(f32::from_le_bytes(number)), bits);
        }
        assert_eq!(e4m3(1e9), 0x7e);
        // 17 lies between 16 and 18, 2^-10 between 0 and 2^-9.
        assert_eq!(e4m3(17.0), e4m3(16.0));
        assert_eq!(e4m3(1.0 / 1024.0), 0);
    }
}
