//! Host memory that uploads read, and decoding inside the arena.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::arena::{Holder, Memory};
use super::shared::{Counted, Shared};
use crate::decode::{self, Float, Scale};
use crate::device::{DecodeTable, DeviceError};

/// Host memory that the CPU device reads in place.
#[derive(Debug, Clone)]
pub struct CpuPinned {
    pub(super) bytes: Bytes,
    _count: Arc<Counted>,
}

impl CpuPinned {
    pub(super) fn new(shared: &Arc<Shared>, bytes: Bytes) -> Self {
        let count = Arc::new(Counted::new(shared, |counts| &counts.pinned));
        Self {
            bytes,
            _count: count,
        }
    }
}

/// Where a buffer comes back to when its upload is done.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) buffer: Mutex<Option<Box<[u8]>>>,
}

/// So many zeros.
///
/// # Errors
/// When the system does not give the memory.
pub(super) fn zeroed(bytes: usize) -> Result<Box<[u8]>, DeviceError> {
    bytemuck::try_zeroed_slice_box(bytes).map_err(|()| DeviceError::OutOfMemory {
        requested_bytes: bytes as u64,
        free_bytes: crate::host::available_bytes().unwrap_or(0),
    })
}

/// A staging buffer. While an upload from it is under way the buffer belongs to the operation.
pub struct CpuStaging {
    pub(super) slot: Arc<Slot>,
    held: Option<Box<[u8]>>,
    bytes: usize,
    _count: Counted,
}

impl CpuStaging {
    pub(super) fn new(shared: &Arc<Shared>, bytes: usize) -> Result<Self, DeviceError> {
        let held = zeroed(bytes)?;
        Ok(Self {
            slot: Arc::new(Slot {
                buffer: Mutex::new(None),
            }),
            held: Some(held),
            bytes,
            _count: Counted::new(shared, |counts| &counts.staging),
        })
    }

    /// Takes the buffer back once the upload is done.
    pub(super) fn reclaim(&mut self, shared: &Shared) -> Result<&mut Box<[u8]>, DeviceError> {
        if self.held.is_none() {
            shared.wait_until(|| {
                self.held = self.slot.buffer.lock().take();
                self.held.is_some()
            })?;
        }
        Ok(self.held.as_mut().expect("just reclaimed"))
    }

    pub(super) fn take(&mut self, source: &Range<usize>) -> Box<[u8]> {
        assert!(
            source.end <= self.bytes,
            "contract: upload of {source:?} from staging of {} bytes",
            self.bytes
        );
        self.held
            .take()
            .expect("contract: staging is uploaded from once it was filled")
    }
}

impl fmt::Debug for CpuStaging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuStaging")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// Checks that every conversion of the tables can be done and every entry is consistent.
pub(super) fn check_tables(tables: &[DecodeTable], arena_bytes: u64) -> Result<(), DeviceError> {
    for entry in tables.iter().flat_map(|table| &table.entries) {
        let quant_blocks = entry.encoded.bytes / entry.encoding.quant_block_bytes();
        let elements = quant_blocks * entry.encoding.quant_block_len();
        assert!(
            quant_blocks * entry.encoding.quant_block_bytes() == entry.encoded.bytes
                && entry.arrived.bytes_of(&[elements]).ok() == Some(entry.place.bytes),
            "contract: {} bytes of {} do not become {} bytes of {}",
            entry.encoded.bytes,
            entry.encoding,
            entry.place.bytes,
            entry.arrived
        );
        assert!(
            entry.encoded.end() <= arena_bytes && entry.place.end() <= arena_bytes,
            "contract: a decode entry lies outside an arena of {arena_bytes} bytes"
        );
        assert!(
            entry
                .scale
                .as_ref()
                .and_then(Scale::numbers)
                .is_none_or(|most| elements <= most),
            "contract: {elements} numbers of {} have factors for fewer",
            entry.encoding
        );
        let known = match (Float::from_encoding(entry.arrived), &entry.scale) {
            (_, None) if entry.arrived == entry.encoding => true,
            (Some(_), None) => decode::is_supported(entry.encoding),
            (Some(_), Some(_)) => decode::is_scalable(entry.encoding),
            (None, _) => false,
        };
        if !known {
            let reason = format!("decoding {} to {}", entry.encoding, entry.arrived);
            return Err(DeviceError::Unsupported { reason });
        }
    }
    Ok(())
}

pub(super) fn decode_table(memory: &Memory, table: &DecodeTable) {
    for entry in &table.entries {
        memory.read(&entry.encoded.range(), Holder::Decode, |encoded| {
            memory.write(&entry.place.range(), Holder::Decode, |arrived| {
                match (Float::from_encoding(entry.arrived), &entry.scale) {
                    (Some(float), Some(scale)) => {
                        decode::decode_scaled(entry.encoding, encoded, scale, float, arrived)
                            .expect("checked by `prepare`");
                    }
                    (Some(float), None) if entry.arrived != entry.encoding => {
                        decode::decode(entry.encoding, encoded, float, arrived)
                            .expect("checked by `prepare`");
                    }
                    _ => arrived.copy_from_slice(encoded),
                }
            });
        });
    }
}
