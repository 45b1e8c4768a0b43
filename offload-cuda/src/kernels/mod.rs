//! The decode kernel as PTX, and the tables that it is launched with. Nothing here calls CUDA.
//!
//! One kernel, [`ENTRY_POINT`], decodes every tensor of a block in one launch, whatever their encodings and targets:
//! encodings differ between tensors, hardly ever within one, so each thread block takes one way through the code. How
//! it works is told in `decode.cu`.
//!
//! # Choices and their price
//!
//! - One kernel for all encodings needs the registers of the hungriest, 32 a thread, so that an SM is still full of
//!   threads. A kernel for each encoding would need a launch for each encoding of a block.
//! - Two PTX files serve all machines since Turing: `compute_80` has asynchronous copies to shared memory and rounds
//!   two numbers to bf16 in one instruction. `build.py` in `offload-cuda/kernels` makes them; drivers since 525 take
//!   them.
//! - The kernel reads whole granules of [`GRANULE`] bytes, also where a tensor begins or ends within one. Nothing
//!   outside a tensor's place is written.

use bytemuck::{Pod, Zeroable};
use offload_core::decode::{self, Float};
use offload_core::device::{DecodeEntry, DecodeTable, DeviceError};
use offload_core::encoding::Encoding;

/// The name of the kernel. Its arguments are the device address of [`LaunchTable::bytes`] (64 bits) and
/// [`LaunchTable::entry_count`] (32 bits).
pub const ENTRY_POINT: &str = "decode_block";

/// Threads of a block. The grid is one-dimensional and has [`LaunchTable::tiles`] blocks; there is no dynamic shared
/// memory.
///
/// Static shared memory is 11 KiB a block: prefer shared memory to L1 cache (the function attribute
/// `PREFERRED_SHARED_MEMORY_CARVEOUT`), so that it does not limit how many blocks an SM holds.
pub const THREADS: u32 = 256;

/// Bytes that the kernel reads at a time. An arena must begin and end at a multiple of this.
pub const GRANULE: u64 = 16;

/// Numbers that a tile holds at most.
const TILE_NUMBERS: u64 = 8192;

/// Encoded bytes that a tile holds at most: what the kernel has shared memory for.
const TILE_BYTES: u64 = 8704;

/// The kernel's PTX for devices of compute capability 7.5 and later.
const PTX_75: &str = include_str!("decode_75.ptx");

/// The kernel's PTX for devices of compute capability 8.0 and later.
const PTX_80: &str = include_str!("decode_80.ptx");

/// The module to load on a device of this compute capability; none before 7.5.
#[must_use]
pub const fn ptx(major: u32, minor: u32) -> Option<&'static str> {
    match (major, minor) {
        (8.., _) => Some(PTX_80),
        (7, 5..) => Some(PTX_75),
        _ => None,
    }
}

/// One tensor, as the kernel reads it (`Entry` in `decode.cu`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct LaunchEntry {
    source: u64,
    destination: u64,
    bytes: u64,
    first_tile: u32,
    tile_bytes: u32,
    tile_arrived: u32,
    conversion: u32,
    factors: u64,
    factor_run: u32,
    factor_before: u32,
}

/// What one launch decodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchTable {
    /// The table, to be brought to the device at a multiple of 8 bytes: the entries, and behind them the factors of
    /// tensors that have a scale.
    pub bytes: Vec<u8>,
    /// Tensors in it. Tensors without bytes are left out.
    pub entry_count: u32,
    /// Thread blocks to launch. If there are none, there is nothing to do and a launch would fail.
    pub tiles: u32,
}

/// Whether the kernel turns `encoding` into `arrived`.
#[must_use]
pub fn supports(encoding: Encoding, arrived: Encoding) -> bool {
    conversion(encoding, arrived, false).is_some()
}

/// Whether the kernel turns `encoding` with a scale into `arrived`.
#[must_use]
pub fn supports_scaled(encoding: Encoding, arrived: Encoding) -> bool {
    conversion(encoding, arrived, true).is_some()
}

/// The table for one launch that does what `table` says in an arena at device address `arena_base`.
///
/// That each place lies within the arena is the caller's to check.
///
/// # Errors
/// [`DeviceError::Unsupported`] if an entry is no conversion that the kernel [supports], or if a launch cannot have as
/// many thread blocks as the table needs.
///
/// # Panics
/// When an entry's bytes contradict its encoding or its scale, or its place is not aligned to 16 bytes.
pub fn launch_table(table: &DecodeTable, arena_base: u64) -> Result<LaunchTable, DeviceError> {
    let mut entries = Vec::with_capacity(table.entries.len());
    let mut factors = Vec::new();
    let mut tiles = 0u32;
    for entry in &table.entries {
        let (launch, entry_tiles) = launch_entry(entry, arena_base, tiles, &mut factors)?;
        if entry_tiles > 0 {
            entries.push(launch);
        }
        tiles = u32::try_from(entry_tiles)
            .ok()
            .and_then(|entry_tiles| tiles.checked_add(entry_tiles))
            .filter(|&tiles| tiles <= i32::MAX as u32)
            .ok_or_else(|| DeviceError::Unsupported {
                reason: format!("{tiles} and {entry_tiles} tiles in one launch"),
            })?;
    }
    let entry_bytes = size_of_val(entries.as_slice()) as u64;
    for entry in &mut entries {
        entry.factors += entry_bytes;
    }
    let mut bytes = bytemuck::cast_slice(&entries).to_vec();
    bytes.extend_from_slice(bytemuck::cast_slice(&factors));
    Ok(LaunchTable {
        entry_count: u32::try_from(entries.len()).expect("each has a tile"),
        bytes,
        tiles,
    })
}

/// The entry, its tiles, and its factors at the end of `factors`.
fn launch_entry(
    entry: &DecodeEntry,
    arena_base: u64,
    first_tile: u32,
    factors: &mut Vec<f32>,
) -> Result<(LaunchEntry, u64), DeviceError> {
    let &DecodeEntry {
        encoding,
        arrived,
        ref scale,
        encoded,
        place,
    } = entry;
    let conversion = conversion(encoding, arrived, scale.is_some()).ok_or_else(|| {
        let scaled = if scale.is_some() { " with a scale" } else { "" };
        DeviceError::Unsupported {
            reason: format!("{encoding}{scaled} to {arrived}"),
        }
    })?;
    assert!(
        encoded.bytes.is_multiple_of(encoding.quant_block_bytes()),
        "contract: {} bytes are not a whole number of {encoding} quant blocks",
        encoded.bytes
    );
    // Of an element of the source and of the arrived form; a copy moves bytes.
    let (unit_bytes, unit_arrived, tile_units) = if encoding == arrived {
        (1, 1, tile_quant_blocks(Encoding::U8))
    } else {
        (
            encoding.quant_block_bytes(),
            encoding.quant_block_len() * arrived.quant_block_bytes(),
            tile_quant_blocks(encoding),
        )
    };
    let units = encoded.bytes / unit_bytes;
    assert!(
        units.checked_mul(unit_arrived) == Some(place.bytes),
        "contract: {} bytes of {encoding} do not become {} bytes of {arrived}",
        encoded.bytes,
        place.bytes
    );
    let address = |offset: u64, bytes: u64| {
        arena_base
            .checked_add(offset)
            .filter(|address| address.checked_add(bytes).is_some())
            .expect("contract: a place lies within the arena")
    };
    let destination = address(place.offset, place.bytes);
    assert!(
        destination.is_multiple_of(GRANULE),
        "contract: a tensor arrives at a multiple of {GRANULE} bytes, not at {destination:#x}"
    );
    let small = |bytes: u64| u32::try_from(bytes).expect("a tile is small");
    let (first_factor, mut factor_run, mut factor_before) = (factors.len(), 0, 0);
    if let Some(scale) = scale {
        let (own, run, before) = scale.factors(units * encoding.quant_block_len());
        factors.extend_from_slice(own);
        if let Some(run) = run.filter(|_| own.len() > 1) {
            let end = before + units * encoding.quant_block_len();
            let small = |count: u64| u32::try_from(count).ok();
            (factor_run, factor_before) = small(end)
                .and_then(|_| Some((small(run)?, small(before)?)))
                .ok_or_else(|| DeviceError::Unsupported {
                    reason: format!("{own} factors for {end} numbers", own = own.len()),
                })?;
        }
    }
    let launch = LaunchEntry {
        source: address(encoded.offset, encoded.bytes),
        destination,
        bytes: encoded.bytes,
        first_tile,
        tile_bytes: small(tile_units * unit_bytes),
        tile_arrived: small(tile_units * unit_arrived),
        conversion,
        factors: (first_factor * size_of::<f32>()) as u64,
        factor_run,
        factor_before,
    };
    Ok((launch, units.div_ceil(tile_units)))
}

/// Quant blocks in a tile: as many as it holds, rounded down to a power of two so that tiles arrive aligned.
fn tile_quant_blocks(encoding: Encoding) -> u64 {
    let by_bytes = TILE_BYTES / encoding.quant_block_bytes();
    let by_numbers = TILE_NUMBERS / encoding.quant_block_len();
    1 << by_bytes.min(by_numbers).ilog2()
}

/// The kernel's code for a conversion.
fn conversion(encoding: Encoding, arrived: Encoding, scaled: bool) -> Option<u32> {
    const COPY: u32 = 255;
    if encoding == arrived && !scaled {
        return Some(COPY);
    }
    let target = match Float::from_encoding(arrived)? {
        Float::F32 => 0,
        Float::F16 => 1,
        Float::BF16 => 2,
    };
    let code = match (encoding, scaled) {
        (Encoding::F8E4M3, false) => 64,
        (Encoding::F8E5M2, false) => 65,
        (Encoding::F8E4M3, true) => 66,
        (Encoding::F8E5M2, true) => 67,
        (Encoding::I8, true) => 68,
        (_, true) => return None,
        (encoding, false) => encoding
            .ggml_id()
            .filter(|_| decode::is_supported(encoding))?,
    };
    Some(code | (target << 8))
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use offload_core::decode::Scale;
    use offload_core::plan::Place;

    use super::*;

    fn entry(encoding: Encoding, arrived: Encoding, quant_blocks: u64) -> DecodeEntry {
        DecodeEntry {
            encoding,
            arrived,
            scale: None,
            encoded: Place {
                offset: 1,
                bytes: quant_blocks * encoding.quant_block_bytes(),
            },
            place: Place {
                offset: 1 << 40,
                bytes: quant_blocks * encoding.quant_block_len() * arrived.quant_block_bytes(),
            },
        }
    }

    fn table(entries: &[DecodeEntry]) -> DecodeTable {
        DecodeTable {
            entries: entries.to_vec(),
            staging: None,
        }
    }

    fn entries_of(launch: &LaunchTable) -> Vec<LaunchEntry> {
        launch
            .bytes
            .chunks_exact(size_of::<LaunchEntry>())
            .take(launch.entry_count as usize)
            .map(bytemuck::pod_read_unaligned)
            .collect()
    }

    #[test]
    fn an_entry_lies_as_the_kernel_reads_it() {
        assert_eq!(size_of::<LaunchEntry>(), 56);
        assert_eq!(offset_of!(LaunchEntry, source), 0);
        assert_eq!(offset_of!(LaunchEntry, destination), 8);
        assert_eq!(offset_of!(LaunchEntry, bytes), 16);
        assert_eq!(offset_of!(LaunchEntry, first_tile), 24);
        assert_eq!(offset_of!(LaunchEntry, tile_bytes), 28);
        assert_eq!(offset_of!(LaunchEntry, tile_arrived), 32);
        assert_eq!(offset_of!(LaunchEntry, conversion), 36);
        assert_eq!(offset_of!(LaunchEntry, factors), 40);
        assert_eq!(offset_of!(LaunchEntry, factor_run), 48);
        assert_eq!(offset_of!(LaunchEntry, factor_before), 52);
    }

    #[test]
    fn tiles_fit_shared_memory_and_keep_alignment() {
        for &encoding in Encoding::ALL {
            let blocks = tile_quant_blocks(encoding);
            assert!(
                blocks * encoding.quant_block_bytes() <= TILE_BYTES,
                "{encoding}"
            );
            let numbers = blocks * encoding.quant_block_len();
            assert!(
                numbers.is_multiple_of(8) && numbers <= TILE_NUMBERS,
                "{encoding}"
            );
        }
        assert_eq!(tile_quant_blocks(Encoding::Q4K), 32);
        assert_eq!(tile_quant_blocks(Encoding::Q8_0), 256);
        assert_eq!(tile_quant_blocks(Encoding::F32), 2048);
    }

    #[test]
    fn tensors_follow_one_another_and_empty_ones_are_left_out() {
        let launch = launch_table(
            &table(&[
                entry(Encoding::Q4K, Encoding::BF16, 65),
                entry(Encoding::F32, Encoding::F16, 0),
                entry(Encoding::F32, Encoding::F32, 1),
            ]),
            1 << 20,
        )
        .expect("supported");
        assert_eq!((launch.entry_count, launch.tiles), (2, 4));
        let entries = entries_of(&launch);
        assert_eq!(
            entries[0],
            LaunchEntry {
                source: (1 << 20) + 1,
                destination: (1 << 20) + (1 << 40),
                bytes: 65 * 144,
                first_tile: 0,
                tile_bytes: 32 * 144,
                tile_arrived: 32 * 512,
                conversion: 12 | (2 << 8),
                factors: 2 * 56,
                factor_run: 0,
                factor_before: 0,
            }
        );
        assert_eq!(
            (
                entries[1].first_tile,
                entries[1].conversion,
                entries[1].tile_bytes
            ),
            (3, 255, 8192)
        );
        let empty = launch_table(&table(&[]), 0).expect("nothing to refuse");
        assert_eq!(
            (empty.bytes.len(), empty.entry_count, empty.tiles),
            (0, 0, 0)
        );
    }

    #[test]
    fn integers_arrive_as_they_are_or_not_at_all() {
        assert!(supports(Encoding::I64, Encoding::I64));
        assert!(!supports(Encoding::I64, Encoding::F32));
        assert!(!supports(Encoding::F32, Encoding::I64));
        assert!(!supports(Encoding::Q4K, Encoding::Q8_0));
        for &encoding in Encoding::ALL {
            let decodes = decode::is_supported(encoding);
            assert_eq!(supports(encoding, Encoding::BF16), decodes, "{encoding}");
        }
        let refused = launch_table(&table(&[entry(Encoding::I64, Encoding::F32, 1)]), 0);
        assert!(matches!(refused, Err(DeviceError::Unsupported { .. })));
    }

    #[test]
    fn factors_stand_behind_the_entries() {
        let mut first = entry(Encoding::F8E4M3, Encoding::BF16, 10);
        first.scale = Some(Scale::tensor(0.5));
        let mut second = entry(Encoding::I8, Encoding::BF16, 25);
        second.scale = Some(Scale::rows([1.0, 2.0, 3.0, 4.0, 5.0], 10).after(13));
        let launch = launch_table(&table(&[first, second.clone()]), 0).expect("supported");
        let entries = entries_of(&launch);
        let layout = |entry: &LaunchEntry| (entry.factors, entry.factor_run, entry.factor_before);
        assert_eq!(layout(&entries[0]), (2 * 56, 0, 0));
        assert_eq!(layout(&entries[1]), (2 * 56 + 4, 10, 3));
        let factors: &[f32] = &[0.5, 2.0, 3.0, 4.0];
        assert_eq!(
            launch.bytes[2 * 56..],
            *bytemuck::cast_slice::<_, u8>(factors)
        );

        second.scale = Some(Scale::rows([1.0], 1 << 40));
        let launch = launch_table(&table(&[second.clone()]), 0).expect("one factor for all");
        assert_eq!(layout(&entries_of(&launch)[0]), (56, 0, 0));
        second.scale = Some(Scale::rows([1.0, 2.0], 1 << 40).after((1 << 40) - 1));
        let refused = launch_table(&table(&[second.clone()]), 0);
        assert!(matches!(refused, Err(DeviceError::Unsupported { .. })));
        second.encoding = Encoding::BF16;
        second.encoded.bytes *= 2;
        let refused = launch_table(&table(&[second]), 0).expect_err("not scalable");
        assert_eq!(
            refused.to_string(),
            "unsupported: BF16 with a scale to BF16"
        );
    }

    #[test]
    fn scaled_conversions_are_those_of_the_reference() {
        for &encoding in Encoding::ALL {
            let scalable = decode::is_scalable(encoding);
            assert_eq!(
                supports_scaled(encoding, Encoding::F16),
                scalable,
                "{encoding}"
            );
            assert!(!supports_scaled(encoding, Encoding::I8), "{encoding}");
        }
    }

    #[test]
    #[should_panic(expected = "contract: 25 numbers with factors for 24")]
    fn too_few_factors_are_a_breach() {
        let mut entry = entry(Encoding::I8, Encoding::F32, 25);
        entry.scale = Some(Scale::rows([1.0; 3], 8));
        let _ = launch_table(&table(&[entry]), 0);
    }

    #[test]
    fn more_tiles_than_a_grid_has_are_refused() {
        let copy = entry(
            Encoding::U8,
            Encoding::U8,
            (TILE_NUMBERS << 31) - TILE_NUMBERS,
        );
        assert_eq!(
            launch_table(&table(std::slice::from_ref(&copy)), 0)
                .expect("fits")
                .tiles,
            i32::MAX as u32
        );
        let one = entry(Encoding::U8, Encoding::U8, 1);
        let refused = launch_table(&table(&[copy, one]), 0);
        assert!(matches!(refused, Err(DeviceError::Unsupported { .. })));
        let huge = entry(Encoding::U8, Encoding::U8, 1 << 62);
        let refused = launch_table(&table(&[huge]), 0);
        assert!(matches!(refused, Err(DeviceError::Unsupported { .. })));
    }

    #[test]
    #[should_panic(expected = "contract: 145 bytes are not a whole number of Q4_K quant blocks")]
    fn bytes_that_contradict_the_encoding_are_a_breach() {
        let mut entry = entry(Encoding::Q4K, Encoding::F32, 1);
        entry.encoded.bytes += 1;
        let _ = launch_table(&table(&[entry]), 0);
    }

    #[test]
    #[should_panic(expected = "contract: 144 bytes of Q4_K do not become 1025 bytes of F32")]
    fn a_place_of_another_size_is_a_breach() {
        let mut entry = entry(Encoding::Q4K, Encoding::F32, 1);
        entry.place.bytes += 1;
        let _ = launch_table(&table(&[entry]), 0);
    }

    #[test]
    #[should_panic(expected = "contract: a tensor arrives at a multiple of 16 bytes")]
    fn a_place_that_is_not_aligned_is_a_breach() {
        let mut entry = entry(Encoding::Q4K, Encoding::F32, 1);
        entry.place.offset += 8;
        let _ = launch_table(&table(&[entry]), 0);
    }

    #[test]
    #[should_panic(expected = "contract: a place lies within the arena")]
    fn an_address_past_64_bits_is_a_breach() {
        let _ = launch_table(
            &table(&[entry(Encoding::Q4K, Encoding::F32, 1)]),
            u64::MAX - 1024,
        );
    }

    #[test]
    fn every_module_holds_the_kernel_for_its_architecture() {
        for (ptx, target) in [(PTX_75, "sm_75"), (PTX_80, "sm_80")] {
            assert!(ptx.contains(&format!(".target {target}\n")));
            assert!(ptx.contains(".version 8.0\n"));
            assert!(ptx.contains(&format!(".entry {ENTRY_POINT}(")));
            assert!(ptx.contains(&format!(".maxntid {THREADS}, 1, 1")));
        }
        assert_eq!(ptx(7, 0), None);
        assert_eq!(ptx(7, 5), Some(PTX_75));
        assert_eq!(ptx(8, 0), Some(PTX_80));
        assert_eq!(ptx(12, 1), Some(PTX_80));
    }
}
