//! Scales that lie beside a tensor: files of 8-bit floats and integers keep one f32 for a tensor or for each row.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::{DecodeError, Decoder, Decoders, Float, Machine, QuantBlock, assert_lengths, fp};
use crate::encoding::Encoding;

/// The factors that a tensor's numbers are multiplied with, one for each run of consecutive numbers.
///
/// `X.scale_weight` and `X.weight_scale` of one number beside an 8-bit float or integer weight `X.weight` are
/// [`tensor`](Self::tensor); `X.weight_scale` with one number for each output row, beside `X.weight_int8`, is
/// [`rows`](Self::rows). Scales of activations (`scale_input`, `input_scale`) are none: they belong to the engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Scale {
    factors: Arc<[f32]>,
    /// Numbers that share a factor, at least 1; `None` if all do.
    run: Option<u64>,
    /// Numbers before those that are meant.
    skipped: u64,
}

impl Scale {
    /// One factor for all numbers.
    #[must_use]
    pub fn tensor(factor: f32) -> Self {
        Self {
            factors: Arc::new([factor]),
            run: None,
            skipped: 0,
        }
    }

    /// A factor for each row of `row_len` numbers.
    ///
    /// # Panics
    /// When rows have no numbers.
    #[must_use]
    pub fn rows(factors: impl Into<Arc<[f32]>>, row_len: u64) -> Self {
        assert!(row_len > 0, "contract: a row that is scaled has numbers");
        Self {
            factors: factors.into(),
            run: Some(row_len),
            skipped: 0,
        }
    }

    /// The scale of what is left when the first `numbers` are taken away.
    #[must_use]
    pub fn after(&self, numbers: u64) -> Self {
        Self {
            factors: Arc::clone(&self.factors),
            run: self.run,
            skipped: self.skipped.saturating_add(numbers),
        }
    }

    /// How many numbers it has a factor for; `None` for any number.
    #[must_use]
    pub fn numbers(&self) -> Option<u64> {
        let run = self.run?;
        Some(
            (self.factors.len() as u64)
                .saturating_mul(run)
                .saturating_sub(self.skipped),
        )
    }

    /// The factors of the first `numbers` numbers, how many share one (`None`: all), and how many that share the first
    /// one come before.
    ///
    /// # Panics
    /// When there are factors for fewer.
    #[must_use]
    pub fn factors(&self, numbers: u64) -> (&[f32], Option<u64>, u64) {
        self.assert_enough(numbers);
        let Some(run) = self.run else {
            return (&self.factors, None, 0);
        };
        let index = |number: u64| usize::try_from(number / run).expect("an index of a slice");
        let (first, end) = (self.skipped, self.skipped + numbers);
        let factors = match numbers {
            0 => &[],
            _ => &self.factors[index(first)..=index(end - 1)],
        };
        (factors, Some(run), first % run)
    }

    fn assert_enough(&self, numbers: u64) {
        if let Some(most) = self.numbers() {
            assert!(
                numbers <= most,
                "contract: {numbers} numbers with factors for {most}"
            );
        }
    }

    /// The runs that `numbers` consist of: how long each is and its factor.
    ///
    /// # Panics
    /// When there are factors for fewer.
    pub fn runs(&self, numbers: u64) -> impl Iterator<Item = (u64, f32)> {
        let (factors, run, mut before) = self.factors(numbers);
        let run = run.unwrap_or(u64::MAX);
        let mut left = numbers;
        factors.iter().map(move |&factor| {
            let len = (run - before).min(left);
            before = 0;
            left -= len;
            (len, factor)
        })
    }
}

/// Whether [`decode_scaled`] knows the encoding: `F8_E4M3`, `F8_E5M2` and `I8`, what files keep a scale beside.
#[must_use]
pub fn is_scalable(encoding: Encoding) -> bool {
    scaled_decoders(encoding).is_some()
}

/// As [`decode`](super::decode), each number multiplied with its factor.
///
/// A number is the f32 product, rounded to nearest even, of the stored number and the factor; it is rounded once more
/// if `target` is narrower. That is what `weight.to(torch.float32) * scale` followed by `.to(dtype)` gives.
///
/// # Errors
/// When the encoding is not [scalable](is_scalable).
///
/// # Panics
/// When `arrived` has not just the bytes of the numbers, or `scale` has factors for fewer.
pub fn decode_scaled(
    encoding: Encoding,
    encoded: &[u8],
    scale: &Scale,
    target: Float,
    arrived: &mut [u8],
) -> Result<(), DecodeError> {
    let decoders = scaled_decoders(encoding).ok_or(DecodeError::Unsupported { encoding })?;
    decode_runs(decoders.quick, encoding, encoded, scale, target, arrived);
    Ok(())
}

/// As [`decode_scaled`], number by number.
///
/// # Errors
/// As [`decode_scaled`].
///
/// # Panics
/// As [`decode_scaled`].
pub fn decode_scaled_by_definition(
    encoding: Encoding,
    encoded: &[u8],
    scale: &Scale,
    target: Float,
    arrived: &mut [u8],
) -> Result<(), DecodeError> {
    let decoders = scaled_decoders(encoding).ok_or(DecodeError::Unsupported { encoding })?;
    decode_runs(
        decoders.by_definition,
        encoding,
        encoded,
        scale,
        target,
        arrived,
    );
    Ok(())
}

fn decode_runs(
    decoder: Decoder,
    encoding: Encoding,
    mut encoded: &[u8],
    scale: &Scale,
    target: Float,
    mut arrived: &mut [u8],
) {
    let numbers = assert_lengths(encoding, encoded, target, arrived);
    for (len, factor) in scale.runs(numbers) {
        let len = usize::try_from(len).expect("part of a slice");
        let (from, encoded_rest) = encoded.split_at(len);
        let (to, arrived_rest) = arrived.split_at_mut(len * target.bytes() as usize);
        decoder(from, Some(factor), target, to);
        (encoded, arrived) = (encoded_rest, arrived_rest);
    }
}

fn scaled_decoders(encoding: Encoding) -> Option<Decoders> {
    match encoding {
        Encoding::F8E4M3 => Some(Decoders::of::<fp::F8E4M3, 1>()),
        Encoding::F8E5M2 => Some(Decoders::of::<fp::F8E5M2, 1>()),
        Encoding::I8 => Some(Decoders::of::<I8, 1>()),
        _ => None,
    }
}

/// A signed integer: a number only with a scale.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct I8(i8);

impl QuantBlock<1> for I8 {
    const ENCODING: Encoding = Encoding::I8;

    fn numbers(&self) -> [f32; 1] {
        [f32::from(self.0)]
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 1]) {
        *numbers = self.numbers();
    }
}
