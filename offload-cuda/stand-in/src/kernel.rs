//! What the kernel `decode_block` does, by the reference decoder. Its table is described in `decode.cu`.

use std::ptr;

use offload_core::decode::{self, Float, Scale};
use offload_core::encoding::{Encoding, GgmlType};

use crate::memory::{self, Use};
use crate::{Code, breach, code};

/// Threads of a block.
pub(crate) const THREADS: u32 = 256;

/// Bytes of an entry of the table.
const ENTRY_BYTES: usize = 56;

/// The kernel reads so many bytes at a time.
const GRANULE: u64 = 16;

/// The conversion that copies.
const COPY: u32 = 255;

struct Entry {
    source: u64,
    destination: u64,
    bytes: u64,
    first_tile: u32,
    tile_bytes: u32,
    conversion: u32,
    factors: u64,
    factor_run: u32,
    factor_before: u32,
}

impl Entry {
    fn read(bytes: &[u8]) -> Self {
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let short = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        Self {
            source: long(0),
            destination: long(8),
            bytes: long(16),
            first_tile: short(24),
            tile_bytes: short(28),
            conversion: short(36),
            factors: long(40),
            factor_run: short(48),
            factor_before: short(52),
        }
    }

    /// How it is stored, whether a scale belongs to it, and what it becomes.
    fn conversion(&self) -> Option<(Encoding, bool, Float)> {
        let (encoding, scaled) = match self.conversion & 0xFF {
            64 => (Encoding::F8E4M3, false),
            65 => (Encoding::F8E5M2, false),
            66 => (Encoding::F8E4M3, true),
            67 => (Encoding::F8E5M2, true),
            68 => (Encoding::I8, true),
            id => match Encoding::from_ggml_id(id) {
                GgmlType::Known(encoding) => (encoding, false),
                _ => return None,
            },
        };
        let target = match self.conversion >> 8 {
            0 => Float::F32,
            1 => Float::F16,
            2 => Float::BF16,
            _ => return None,
        };
        Some((encoding, scaled, target))
    }
}

fn bytes(address: u64, bytes: u64) -> Result<(Use, usize), Code> {
    let bytes = usize::try_from(bytes).map_err(|_| code::ILLEGAL_ADDRESS)?;
    let used = memory::device(address, bytes).ok_or(code::ILLEGAL_ADDRESS)?;
    Ok((used, bytes))
}

/// A copy of device memory: others may write there, which is theirs to answer for.
fn read(address: u64, len: u64) -> Result<Vec<u8>, Code> {
    let (used, len) = bytes(address, len)?;
    let mut read = vec![0; len];
    // SAFETY: both have so many bytes.
    unsafe { ptr::copy_nonoverlapping(used.pointer(), read.as_mut_ptr(), len) };
    Ok(read)
}

fn write(address: u64, written: &[u8]) -> Result<(), Code> {
    let (_used, len) = bytes(address, written.len() as u64)?;
    // SAFETY: both have so many bytes.
    unsafe { ptr::copy_nonoverlapping(written.as_ptr(), address as *mut u8, len) };
    Ok(())
}

/// Decodes a table of `entry_count` entries, launched with so many thread blocks.
pub(crate) fn decode_block(table: u64, entry_count: u32, blocks: u32) -> Result<(), Code> {
    let image = read(table, u64::from(entry_count) * ENTRY_BYTES as u64)?;
    let mut tiles = 0;
    for entry in image.chunks_exact(ENTRY_BYTES).map(Entry::read) {
        if u64::from(entry.first_tile) != tiles || entry.tile_bytes == 0 {
            breach(&format!(
                "an entry's first tile is {}, {tiles} come before",
                entry.first_tile
            ));
        }
        tiles += entry.bytes.div_ceil(u64::from(entry.tile_bytes));
        decode(table, &entry)?;
    }
    if tiles != u64::from(blocks) {
        breach(&format!("{tiles} tiles are launched as {blocks} blocks"));
    }
    Ok(())
}

fn decode(table: u64, entry: &Entry) -> Result<(), Code> {
    // Whole granules are read, so they have to be there.
    let first = entry.source / GRANULE * GRANULE;
    let end = (entry.source + entry.bytes).next_multiple_of(GRANULE);
    bytes(first, end - first)?;
    let encoded = read(entry.source, entry.bytes)?;
    if entry.conversion == COPY {
        return write(entry.destination, &encoded);
    }
    let Some((encoding, scaled, target)) = entry.conversion() else {
        breach(&format!("conversion {:#x} is unknown", entry.conversion));
    };
    let numbers = entry.bytes / encoding.quant_block_bytes() * encoding.quant_block_len();
    let len = usize::try_from(numbers * target.bytes()).map_err(|_| code::ILLEGAL_ADDRESS)?;
    let mut arrived = vec![0; len];
    let decoded = if scaled {
        let scale = scale(table, entry, numbers)?;
        decode::decode_scaled(encoding, &encoded, &scale, target, &mut arrived)
    } else {
        decode::decode(encoding, &encoded, target, &mut arrived)
    };
    if let Err(error) = decoded {
        breach(&error.to_string());
    }
    write(entry.destination, &arrived)
}

fn scale(table: u64, entry: &Entry, numbers: u64) -> Result<Scale, Code> {
    let (run, before) = (u64::from(entry.factor_run), u64::from(entry.factor_before));
    let count = if run == 0 {
        1
    } else {
        (before + numbers).div_ceil(run)
    };
    let factors = read(table + entry.factors, count * size_of::<f32>() as u64)?;
    let factors = factors.chunks_exact(size_of::<f32>());
    let factors =
        factors.map(|bytes| f32::from_le_bytes(bytes.try_into().expect("4 bytes of a factor")));
    let factors: Vec<f32> = factors.collect();
    Ok(match run {
        0 => Scale::tensor(factors[0]),
        _ => Scale::rows(factors, run).after(before),
    })
}
