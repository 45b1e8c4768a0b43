//! Decode tables on the device.

#![expect(unsafe_code, reason = "launches a kernel over addresses")]

use std::sync::Arc;

use offload_core::device::{DecodeTable, DeviceError};

use crate::arena::CudaArena;
use crate::driver::{Context, DeviceBuffer, Kernel, Stream};
use crate::host::CudaStaging;
use crate::kernels::{self, THREADS};

/// Tables begin at multiples of this.
const TABLE_ALIGN: usize = 16;

#[derive(Debug)]
struct Table {
    address: u64,
    entry_count: u32,
    tiles: u32,
}

/// Decode tables made ready for one arena.
///
/// Dropping it waits for everything that was submitted to the context.
#[derive(Debug)]
pub struct CudaProgram {
    /// Holds the tables; the arena that they name.
    _tables: DeviceBuffer,
    arena: DeviceBuffer,
    tables: Vec<Table>,
    /// Dropped last: the buffers wait for the launches.
    kernel: Arc<Kernel>,
}

impl CudaProgram {
    pub(crate) fn new(
        context: &Arc<Context>,
        kernel: &Arc<Kernel>,
        arena: &CudaArena,
        tables: &[DecodeTable],
    ) -> Result<Self, DeviceError> {
        let (mut image, mut launches) = (Vec::new(), Vec::new());
        for table in tables {
            for entry in &table.entries {
                assert!(
                    entry.encoded.end() <= arena.bytes() && entry.place.end() <= arena.bytes(),
                    "contract: a decode entry lies outside an arena of {} bytes: {entry:?}",
                    arena.bytes()
                );
            }
            let launch = kernels::launch_table(table, arena.address(0))?;
            launches.push((image.len() as u64, launch.entry_count, launch.tiles));
            image.extend_from_slice(&launch.bytes);
            image.resize(image.len().next_multiple_of(TABLE_ALIGN), 0);
        }
        let buffer = DeviceBuffer::new(context, image.len() as u64)?;
        if !image.is_empty() {
            let mut staging = CudaStaging::new(context, image.len())?;
            staging.bytes_mut()?.copy_from_slice(&image);
            let stream = Stream::new(context)?;
            // SAFETY: the buffer is as long as the image, and lives until the stream was waited for.
            unsafe { staging.upload(&stream, buffer.address(), &(0..image.len())) }?;
            stream.synchronize()?;
        }
        let tables = launches
            .into_iter()
            .map(|(offset, entry_count, tiles)| Table {
                address: buffer.address() + offset,
                entry_count,
                tiles,
            })
            .collect();
        Ok(Self {
            kernel: Arc::clone(kernel),
            _tables: buffer,
            arena: arena.buffer.clone(),
            tables,
        })
    }

    pub(crate) fn run(
        &self,
        stream: &Stream,
        arena: &CudaArena,
        table: usize,
    ) -> Result<(), DeviceError> {
        assert!(
            table < self.tables.len(),
            "contract: table {table} of a program of {}",
            self.tables.len()
        );
        assert!(
            arena.address(0) == self.arena.address(),
            "contract: a program is run on the arena that it was prepared for"
        );
        let Table {
            address,
            entry_count,
            tiles,
        } = self.tables[table];
        if tiles == 0 {
            return Ok(());
        }
        // SAFETY: the table was made from counts that `launch_table` checked and from places that lie within the arena;
        // both buffers are freed only after everything that was submitted is done.
        unsafe {
            self.kernel
                .launch(stream, tiles, THREADS, address, entry_count)
        }
    }
}
