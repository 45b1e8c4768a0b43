//! Long runs keep memory, threads and open files where they were after the first tenth.
//!
//! `OFFLOAD_SOAK_ROUNDS=n` runs n times as many rounds, with the same tolerance.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use offload_core::cpu::{CpuDevice, LiveCounts};
use offload_core::device::Device;
use offload_core::executor::StagingBuffers;
use offload_core::format::gguf::{Gguf, Writer};
use offload_core::model::{Model, PassKind};
use offload_core::swappable::Swappable;
use offload_core::testing::toy::ToyBlock;
use parking_lot::Mutex;

/// What the process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Usage {
    rss_bytes: u64,
    threads: u64,
    files: usize,
}

impl Usage {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let number = |field: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let number = line.unwrap().split_whitespace().next().unwrap();
            number.parse().unwrap()
        };
        Self {
            rss_bytes: number("VmRSS:") * 1024,
            threads: number("Threads:"),
            files: std::fs::read_dir("/proc/self/fd").unwrap().count(),
        }
    }
}

/// The allocator keeps what was freed, and how much of it changes by some tens of pages as threads take turns.
const TOLERANCE_BYTES: u64 = 512 << 10;

/// The process is measured as a whole, so one test runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs `round` so often, and a tenth of that before measuring.
fn soak(rounds: u64, mut round: impl FnMut()) -> Result<(), String> {
    let factor = std::env::var("OFFLOAD_SOAK_ROUNDS").map_or(1, |text| text.parse().unwrap());
    let rounds = rounds * factor;
    (0..rounds / 10).for_each(|_| round());
    let before = Usage::now();
    (0..rounds).for_each(|_| round());
    // The system counts a thread for a moment longer than it takes to join it.
    let mut after = Usage::now();
    for _ in 0..100 {
        if after.threads <= before.threads {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        after = Usage::now();
    }
    println!("{rounds} rounds: {before:?}, then {after:?}");
    if after.threads > before.threads || after.files != before.files {
        return Err(format!("left over: {before:?}, then {after:?}"));
    }
    if after.rss_bytes > before.rss_bytes + TOLERANCE_BYTES {
        return Err(format!("memory grew from {before:?} to {after:?}"));
    }
    Ok(())
}

#[test]
fn small_leaks_are_seen() {
    let _alone = ALONE.lock();
    let memory = soak(10_000, || {
        std::mem::forget(std::hint::black_box(vec![1u8; 64]))
    });
    assert!(memory.unwrap_err().starts_with("memory grew"));
    let file = soak(10, || {
        std::mem::forget(std::fs::File::open("/proc/self/stat"))
    });
    assert!(file.unwrap_err().starts_with("left over"));
    let (close, closed) = std::sync::mpsc::channel::<()>();
    let closed = Arc::new(Mutex::new(closed));
    let thread = soak(10, || {
        let closed = Arc::clone(&closed);
        std::thread::spawn(move || closed.lock().recv());
    });
    drop(close);
    assert!(thread.unwrap_err().starts_with("left over"));
}

#[test]
fn ten_thousand_passes_leave_nothing_behind() {
    let _alone = ALONE.lock();
    for pins in [true, false] {
        let device = CpuDevice::builder().pins(pins).build();
        let stream = device.create_stream("compute").unwrap();
        let mut offload = support::least(&device, support::mixed_model())
            .staging_buffers(StagingBuffers {
                count: 3,
                bytes: 4096,
            })
            .build()
            .unwrap();
        let mut number = 0u32;
        let outcome = soak(10_000, || {
            let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
            number += 1;
            // Some are abandoned, some skip, some announce the end.
            for visit in 0.. {
                if number.is_multiple_of(7) && visit == 4 {
                    break;
                }
                let more = if number.is_multiple_of(5) && visit % 2 == 0 {
                    pass.last();
                    pass.skip().unwrap()
                } else {
                    pass.acquire().unwrap().is_some()
                };
                if !more {
                    break;
                }
            }
        });
        outcome.unwrap();
    }
}

/// Blocks of two tensors each in a GGUF file.
fn write_model(path: &Path) {
    let model = support::mixed_model();
    let mut writer = Writer::new();
    let names: Vec<_> = (model.blocks().iter())
        .flat_map(|block| block.tensors().iter().map(move |t| (block.name(), t)))
        .collect();
    for (block, tensor) in names {
        let name = format!("{block}.{}", tensor.name());
        let mut bytes = vec![0; usize::try_from(tensor.source().len()).unwrap()];
        tensor.source().read(0, &mut bytes).unwrap();
        writer.tensor(name, tensor.shape(), tensor.encoding(), bytes);
    }
    writer
        .write_to(std::fs::File::create(path).unwrap())
        .unwrap();
}

fn open_model(path: &Path) -> Model {
    let opened = Gguf::open(path).unwrap();
    let blocks = opened
        .tensors()
        .chunks(2)
        .enumerate()
        .map(|(index, tensors)| {
            let block = ToyBlock::new(format!("blocks.{index}"), tensors.to_vec());
            Arc::new(block) as Arc<dyn Swappable>
        });
    Model::new(blocks.collect()).unwrap()
}

#[test]
fn two_hundred_openings_leave_nothing_behind() {
    let _alone = ALONE.lock();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write_model(&path);
    let round = || {
        let device = CpuDevice::new();
        let stream = device.create_stream("compute").unwrap();
        let mut offload = support::least(&device, open_model(&path))
            .staging_buffers(StagingBuffers {
                count: 3,
                bytes: 4096,
            })
            .build()
            .unwrap();
        for _ in 0..2 {
            let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
            while pass.acquire().unwrap().is_some() {}
        }
        drop(offload);
        drop(stream);
        assert_eq!(device.live(), LiveCounts::default());
    };
    soak(200, round).unwrap();
}
