//! How others do it, on the same weights: blocks from ordinary memory, with and without a copy back.

#![expect(unsafe_code, reason = "calls the driver by address")]

use std::ffi::c_void;
use std::time::Instant;

use cudarc::driver::sys::{self, CUresult};
use offload_core::device::Device;

use crate::Row;
use crate::work::{Engine, Resident, Work};

/// Blocks of a measurement: these ways are so slow that a whole pass says no more.
const BLOCKS: usize = 4;

fn check(result: CUresult) -> Result<(), String> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        result => Err(format!("the driver says {result:?}")),
    }
}

/// Rows of one pass over a few blocks.
pub(crate) fn rows(
    work: &Work,
    engine: &Engine,
    resident: &Resident<'_>,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<Row>, String> {
    const BACK: &str = "to the device, compute, back, pageable";
    const AHEAD: &str = "one block ahead, pageable";
    if !wanted(BACK) && !wanted(AHEAD) {
        return Ok(Vec::new());
    }
    let count = work.blocks.len().min(BLOCKS);
    let all: Vec<usize> = (0..count).collect();
    let mut pageable: Vec<Vec<u8>> = work.blocks[..count]
        .iter()
        .map(|block| block.to_vec())
        .collect();
    let bytes = pageable[0].len();
    let text = |error: offload_core::device::DeviceError| error.to_string();
    let landing = work.device.allocate_arena(2 * bytes as u64).map_err(text)?;
    let side = work.device.create_stream("ahead").map_err(text)?;
    let events = [
        work.device.create_event().map_err(text)?,
        work.device.create_event().map_err(text)?,
    ];
    let address = |half: u64| work.device.address(&landing, half * bytes as u64);
    let upload = |half: u64, from: &[u8], stream: *mut c_void| {
        // SAFETY: half of the landing arena holds a block; both live until the streams are drained below.
        check(unsafe {
            sys::cuMemcpyHtoDAsync_v2(address(half), from.as_ptr().cast(), bytes, stream.cast())
        })
    };
    let mut rows = Vec::new();
    let mut row = |mode: &str, pass_s: f64| -> Result<(), String> {
        let wire_floor_s = work.wire_s(&all, 3)?;
        let share = count as f64 / work.blocks.len() as f64;
        let compute_floor_s = resident.pass_s(engine, 3) * share;
        let overlap_floor_s = wire_floor_s.max(compute_floor_s);
        rows.push(Row {
            mode: mode.to_owned(),
            device: work.device_name(),
            storage: format!("{:?}", work.storage).to_lowercase(),
            blocks: count,
            tokens: engine.tokens(),
            pass_s,
            wire_floor_s,
            compute_floor_s,
            overlap_floor_s,
            over_floor: pass_s / overlap_floor_s,
            over_floors: Vec::new(),
            over_bound: pass_s / overlap_floor_s,
            predicted_pass_s: None,
            host_us_per_visit: None,
            stall_s: None,
            peak_device_bytes: 2 * bytes as u64,
            pinned_bytes: 0,
            decoding: None,
            streamed_blocks: count,
            packed_blocks: 0,
            inconclusive: false,
        });
        Ok(())
    };
    if wanted(BACK) {
        work.drain()?;
        let begin = Instant::now();
        for (block, memory) in pageable.iter_mut().enumerate() {
            upload(0, memory, engine.stream.raw())?;
            engine.compute(&resident.addresses[block]);
            // SAFETY: as above, the other way.
            check(unsafe {
                sys::cuMemcpyDtoHAsync_v2(
                    memory.as_mut_ptr().cast(),
                    address(0),
                    bytes,
                    engine.stream.raw().cast(),
                )
            })?;
            engine.stream.synchronize().map_err(text)?;
        }
        row(BACK, begin.elapsed().as_secs_f64())?;
    }
    if wanted(AHEAD) {
        work.drain()?;
        let begin = Instant::now();
        upload(0, &pageable[0], side.raw())?;
        for block in 0..count {
            let half = block as u64 % 2;
            let generation = work
                .device
                .record(&side, &events[block % 2])
                .map_err(text)?;
            work.device
                .wait(&engine.stream, &events[block % 2], generation)
                .map_err(text)?;
            engine.compute(&resident.addresses[block]);
            if let Some(next) = pageable.get(block + 1) {
                upload(1 - half, next, side.raw())?;
            }
        }
        work.drain()?;
        row(AHEAD, begin.elapsed().as_secs_f64())?;
    }
    Ok(rows)
}
