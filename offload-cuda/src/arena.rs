//! The arena, and ranges of it that are handed to code on the device.

use std::ops::Range;

use crate::driver::DeviceBuffer;

/// The one allocation of device memory.
///
/// Dropping it waits for everything that was submitted to the context.
#[derive(Debug)]
pub struct CudaArena {
    pub(crate) buffer: DeviceBuffer,
    bytes: u64,
}

impl CudaArena {
    /// The driver aligns allocations to 256 bytes at least; what is behind `bytes` up to a multiple of that is there as
    /// well, because the decode kernel reads whole granules.
    pub(crate) fn new(buffer: DeviceBuffer, bytes: u64) -> Self {
        Self { buffer, bytes }
    }

    /// Bytes of it.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn check(&self, offset: u64, bytes: usize) {
        assert!(
            offset
                .checked_add(bytes as u64)
                .is_some_and(|end| end <= self.bytes),
            "contract: {bytes} bytes at {offset} of an arena of {} bytes",
            self.bytes
        );
    }

    pub(crate) fn address(&self, offset: u64) -> u64 {
        self.buffer.address() + offset
    }
}

/// A range of the arena. It keeps the memory, not what is written there.
#[derive(Debug, Clone)]
pub struct CudaView {
    pub(crate) buffer: DeviceBuffer,
    pub(crate) range: Range<u64>,
}

impl CudaView {
    /// The address on the device.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.buffer.address() + self.range.start
    }

    /// Bytes in the range.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}
