//! What stands in the tensors of a synthesised checkpoint, made a piece at a time by several threads.

use std::io::{self, Write};
use std::num::NonZero;
use std::thread;

use offload_core::encoding::Encoding;

use super::numbers::Numbers;

/// What a tensor holds.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// Numbers of a mean and a standard deviation, from the sequence of this name.
    Random {
        sequence: String,
        mean: f32,
        deviation: f32,
    },
    /// One number again and again.
    Constant(f32),
    /// Bytes.
    Text(&'static str),
    /// Nothing: its encoding tells.
    Flag,
}

/// A tensor to write.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) shape: Vec<u64>,
    pub(super) encoding: Encoding,
    /// Encoded bytes.
    pub(super) bytes: u64,
    pub(super) content: Content,
}

/// Encoded bytes that a thread makes at once.
const PIECE_BYTES: u64 = 4 << 20;

impl Planned {
    /// The encoded numbers, the same whatever the number of threads.
    pub(super) fn write(&self, seed: u64, to: &mut dyn Write) -> io::Result<()> {
        let (sequence, mean, deviation) = match &self.content {
            Content::Random {
                sequence,
                mean,
                deviation,
            } => (sequence, *mean, *deviation),
            Content::Constant(number) => {
                let count = usize::try_from(self.bytes / 4).expect("scales are few");
                return to.write_all(&number.to_le_bytes().repeat(count));
            }
            Content::Text(text) => return to.write_all(text.as_bytes()),
            Content::Flag => return to.write_all(&vec![0; self.bytes as usize]),
        };
        let numbers = Numbers::new(seed, sequence);
        let unit_bytes = self.encoding.quant_block_bytes();
        let units = self.bytes / unit_bytes;
        let piece_units = (PIECE_BYTES / unit_bytes).max(1);
        let piece = |first: u64| {
            let count = piece_units.min(units - first);
            let mut numbers = numbers.after(self.encoding, first);
            let mut bytes = Vec::with_capacity((count * unit_bytes) as usize);
            match self.encoding.quant_block_len() {
                1 => numbers.elements(self.encoding, count, (mean, deviation), &mut bytes),
                _ => numbers.quant_blocks(self.encoding, count, deviation, &mut bytes),
            }
            bytes
        };
        let firsts: Vec<u64> = (0..units).step_by(piece_units as usize).collect();
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        for batch in firsts.chunks(threads) {
            if let [first] = batch {
                to.write_all(&piece(*first))?;
                continue;
            }
            thread::scope(|scope| {
                let made: Vec<_> = batch
                    .iter()
                    .map(|&first| scope.spawn(move || piece(first)))
                    .collect();
                made.into_iter().try_for_each(|made| {
                    to.write_all(&made.join().expect("making numbers does not panic"))
                })
            })?;
        }
        Ok(())
    }
}
