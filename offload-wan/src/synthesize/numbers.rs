//! Seeded numbers in the bytes of an encoding, made directly: nothing is quantised.
//!
//! Decoded, they are finite and centred on zero, with about the standard deviation asked for. They are the same on
//! every machine and in every version: checkpoints are compared by their bytes.

use half::{bf16, f16};
use offload_core::encoding::Encoding;

/// A generator of 64-bit numbers: SplitMix64, <https://prng.di.unimi.it/splitmix64.c>.
#[derive(Debug, Clone)]
pub(crate) struct Numbers(u64);

/// Standard deviation of the sum of four uniform 16-bit numbers.
const FOUR_U16: f32 = 37_837.227;

/// Standard deviation of the numbers 0 to 15, and their mean.
const NIBBLE: (f32, f32) = (4.609_772, 7.5);

/// Standard deviation of the numbers 0 to 63.
const SIX_BITS: f32 = 18.472_953;

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

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
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
        let (spread, mean) = NIBBLE;
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
        let mut qs = [0u8; 128];
        self.fill(&mut qs);
        out.extend(qs);
    }

    /// `u8 ql[128]; u8 qh[64]; i8 scales[16]; f16 d`: each 16 numbers are `d * scale * (q - 32)`.
    fn q6_k(&mut self, deviation: f32, out: &mut Vec<u8>) {
        let mut q = [0u8; 192];
        self.fill(&mut q);
        out.extend(q);
        for _ in 0..16 {
            let scale = self.between(64, 96).cast_signed();
            let negative = self.next() & 1 == 1;
            out.extend((if negative { -scale } else { scale }).to_le_bytes());
        }
        out.extend(f16::from_f32(deviation / (SIX_BITS * 80.0)).to_le_bytes());
    }
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
}
