#![expect(unsafe_code, reason = "one of the ways asks for a promise")]
//! How long it takes from a file to the end of the first pass, by each rung of the ladder of host memory.
//!
//! ```text
//! cargo bench --bench first_pass -- [--json FILE] [--file PATH] [--gib N] [--passes N] [--rounds N] [--row NAME]... [--cold]
//! ```
//!
//! The file is written first, unless it is there: blocks of a WAN 14B transformer in bf16, seeded. Everything is
//! streamed; nothing is computed, so the wire is the limit. Times are from before `build()`, with the device's context
//! up, and the floor is moving the same bytes once from page-locked memory in the same run. With `--cold` the page cache
//! is dropped before each rung (that needs root), and the floor is the drive's own rate, read past the page cache: the
//! mean of the times before and after the rung. Rungs take turns, and of several rounds the medians are printed.
//!
//! Beside the times: the most anonymous memory that the process had, and the 99th percentile of a short upload and the
//! recording of an event by which another thread asks for the driver all the while. Where there is no GPU it says so and
//! ends with status 0.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use offload_core::device::Device;
use offload_core::encoding::Encoding;
use offload_core::executor::{DeviceBudget, HostBudget, Offload};
use offload_core::model::{Model, PassKind, Residency};
use offload_core::source::{Source, SourceFile};
use offload_core::swappable::{Swappable, TensorSpec};
use offload_core::testing::toy::{ToyBlock, random_bytes};
use offload_cuda::{CudaDevice, CudaDeviceBuilder};
use serde::Serialize;

/// The matrices of a WAN 14B block, one under the other.
const SHAPE: [u64; 2] = [68_608, 5120];
const BLOCK_BYTES: u64 = SHAPE[0] * SHAPE[1] * 2;

/// Places of the window.
const PLACES: u64 = 3;

/// What another thread uploads meanwhile.
const PROBE_BYTES: usize = 128 << 10;

#[derive(Debug, Parser)]
struct Arguments {
    /// Writes the rows to a file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The model; written if it is not there.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Its size, rounded down to whole blocks.
    #[arg(long, default_value_t = 14)]
    gib: u64,
    /// Passes of each rung.
    #[arg(long, default_value_t = 4)]
    passes: usize,
    /// Measurements of each rung.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Rungs to measure; all if none is named.
    #[arg(long)]
    row: Vec<String>,
    /// Drops the page cache before each rung.
    #[arg(long)]
    cold: bool,
    /// What `cargo bench` passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
    /// Runs on two blocks.
    #[arg(long)]
    test: bool,
}

/// How the staging ring is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ring {
    /// For what is not page-locked yet.
    UntilPinned,
    /// For everything, read through the page cache.
    Read,
    /// Copied from the mapped file.
    Mapped,
    /// Read past the page cache.
    PastCache,
}

#[derive(Debug, Serialize)]
struct Row {
    mode: String,
    device: String,
    cold: bool,
    bytes: u64,
    /// The bytes once over the wire, or from the drive.
    wire_floor_s: f64,
    drive_floor_s: Option<f64>,
    build_s: f64,
    /// From before `build()`.
    first_pass_s: f64,
    /// Of all rounds; the rest is of the one in the middle.
    first_passes_s: Vec<f64>,
    over_floor: f64,
    /// Passes after the first, one by one, drained.
    later_passes_s: Vec<f64>,
    /// Time of the calling thread in the last pass, its beginning and end included; waiting for readers, too, as long as
    /// not all is locked.
    host_us_per_visit: f64,
    peak_anonymous_bytes: u64,
    /// Of an upload and a recording on another thread, during the first pass.
    driver_call_p99_us: f64,
    driver_call_max_us: f64,
    mapped_bytes: u64,
    copied_bytes: u64,
    staged_bytes: u64,
    notes: Vec<String>,
    pinned_bytes: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = Arguments::parse();
    let device = match CudaDevice::new(0) {
        Ok(device) => device,
        Err(reason) => {
            println!("first_pass: nothing is measured: {reason}");
            return Ok(());
        }
    };
    if arguments.test {
        (arguments.gib, arguments.passes, arguments.rounds) = (2, 2, 1);
    }
    let folder = tempfile::tempdir()?;
    let path = arguments
        .file
        .clone()
        .unwrap_or_else(|| folder.path().join("blocks"));
    let blocks = (arguments.gib << 30) / BLOCK_BYTES;
    if !path.exists() {
        let begin = Instant::now();
        write(&path, blocks)?;
        eprintln!("written in {:.1} s", begin.elapsed().as_secs_f64());
    }
    let bytes = blocks * BLOCK_BYTES;
    let wire_floor_s = bytes as f64 / wire_rate(&device)?;
    drop(device);
    let drive = || arguments.cold.then(|| drive_s(&path)).transpose();
    type Settings = fn(CudaDeviceBuilder) -> CudaDeviceBuilder;
    let mut rungs: Vec<(&str, Ring, Settings)> = vec![
        ("mapping locked in place", Ring::UntilPinned, |builder| {
            builder.copy_files(false)
        }),
        ("copy in locked memory", Ring::UntilPinned, |builder| {
            builder.lock_mappings(false)
        }),
        ("ring, pread", Ring::Read, |builder| builder),
        ("ring, copy of mapping", Ring::Mapped, |builder| builder),
    ];
    if arguments.cold {
        rungs.push(("ring, past page cache", Ring::PastCache, |builder| builder));
    }
    let wanted =
        |name: &str| arguments.row.is_empty() || arguments.row.iter().any(|row| row == name);
    rungs.retain(|&(name, ..)| wanted(name));
    let share = bytes as f64 / fs::metadata(&path)?.len() as f64;
    let mut measured: Vec<Vec<Row>> = rungs.iter().map(|_| Vec::new()).collect();
    let mut before = drive()?;
    for _ in 0..arguments.rounds {
        for (&(mode, ring, settings), measured) in rungs.iter().zip(&mut measured) {
            if arguments.cold {
                drop_page_cache(&path)?;
            } else {
                warm(&path)?;
            }
            let device = settings(CudaDevice::builder(0)).build()?;
            let mut row = measure(&device, &path, blocks, arguments.passes, ring)?;
            let after = drive()?;
            let around = before.zip(after);
            row.mode = mode.to_owned();
            row.cold = arguments.cold;
            row.wire_floor_s = wire_floor_s;
            row.drive_floor_s = around.map(|(before, after)| (before + after) / 2.0 * share);
            row.over_floor = row.first_pass_s / row.drive_floor_s.unwrap_or(wire_floor_s);
            before = after;
            measured.push(row);
        }
    }
    let rows: Vec<Row> = measured.into_iter().filter_map(middle).collect();
    for row in &rows {
        println!(
            "{:24} build {:.4} s, first pass done {:.4} s of {:.4?}, {:.3} of the floor {:.4} s, later {:.4?} s, host {:.1} us a visit, anonymous {} MiB, driver call p99 {:.0} us, max {:.0} us; mapped {} MiB, copied {} MiB, staged {} MiB {:?}",
            row.mode,
            row.build_s,
            row.first_pass_s,
            row.first_passes_s,
            row.over_floor,
            row.drive_floor_s.unwrap_or(wire_floor_s),
            row.later_passes_s,
            row.host_us_per_visit,
            row.peak_anonymous_bytes >> 20,
            row.driver_call_p99_us,
            row.driver_call_max_us,
            row.mapped_bytes >> 20,
            row.copied_bytes >> 20,
            row.staged_bytes >> 20,
            row.notes,
        );
    }
    if let Some(path) = &arguments.json {
        serde_json::to_writer_pretty(File::create(path)?, &rows)?;
    }
    Ok(())
}

/// The measurement that is in the middle by what it took over its floor, with the times of all.
fn middle(mut rounds: Vec<Row>) -> Option<Row> {
    let first_passes_s = rounds.iter().map(|row| row.first_pass_s).collect();
    rounds.sort_by(|a, b| a.over_floor.total_cmp(&b.over_floor));
    let middle = rounds.len() / 2;
    let row = rounds.into_iter().nth(middle)?;
    Some(Row {
        first_passes_s,
        ..row
    })
}

fn write(path: &Path, blocks: u64) -> Result<(), Box<dyn Error>> {
    // One random piece, each time with another number in front of every page: no two are equal.
    const PIECE: usize = 16 << 20;
    let mut piece = random_bytes(1, PIECE);
    let mut file = BufWriter::with_capacity(PIECE, File::create(path)?);
    let (mut left, mut number) = (blocks * BLOCK_BYTES, 0u64);
    while left > 0 {
        for page in piece.chunks_mut(4096) {
            page[..8].copy_from_slice(&number.to_le_bytes());
            number += 1;
        }
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
        file.write_all(&piece[..len])?;
        left -= len as u64;
    }
    file.flush()?;
    // Clean pages only: dirty ones cannot be dropped.
    file.get_ref().sync_all()?;
    Ok(())
}

/// Bytes a second of bare uploads.
fn wire_rate(device: &CudaDevice) -> Result<f64, Box<dyn Error>> {
    const BYTES: usize = 512 << 20;
    const TIMES: usize = 20;
    let memory = device.allocate_pinned(BYTES, |memory| {
        memory.copy_from_slice(&random_bytes(2, BYTES));
    })?;
    let pinned = device.pin(&Source::from(memory))?.pinned();
    let pinned = pinned.ok_or("memory of the device is pinned")?;
    let arena = device.allocate_arena(BYTES as u64)?;
    let stream = device.create_stream("wire")?;
    let mut rate = 0.0;
    for times in [2, TIMES] {
        let begin = Instant::now();
        for _ in 0..times {
            device.upload_pinned(&stream, &arena, 0, &pinned, 0..BYTES)?;
        }
        stream.synchronize()?;
        rate = (times * BYTES) as f64 / begin.elapsed().as_secs_f64();
    }
    eprintln!("wire {:.2} GB/s", rate * 1e-9);
    Ok(rate)
}

fn warm(path: &Path) -> Result<(), Box<dyn Error>> {
    let file = SourceFile::open(path)?;
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut buffer = vec![0; 8 << 20];
                    loop {
                        let at = next.fetch_add(buffer.len() as u64, Ordering::Relaxed);
                        if at >= file.len() {
                            return Ok(());
                        }
                        let len = usize::try_from(file.len() - at)
                            .map_or(buffer.len(), |left| left.min(buffer.len()));
                        file.read_exact_at(&mut buffer[..len], at)?;
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("reading does not panic"))
            .map_err(|error: offload_core::source::SourceError| error.into())
    })
}

fn drop_page_cache(path: &Path) -> Result<(), Box<dyn Error>> {
    File::open(path)?.sync_all()?;
    fs::write("/proc/sys/vm/drop_caches", "1")
        .map_err(|error| format!("the page cache cannot be dropped: {error}").into())
}

/// Seconds that the drive takes for the file, by `dd` past the page cache.
fn drive_s(path: &Path) -> Result<f64, Box<dyn Error>> {
    let begin = Instant::now();
    let status = std::process::Command::new("dd")
        .arg(format!("if={}", path.display()))
        .args(["of=/dev/null", "bs=8M", "iflag=direct", "status=none"])
        .status()?;
    if !status.success() {
        return Err(format!("dd: {status}").into());
    }
    let seconds = begin.elapsed().as_secs_f64();
    eprintln!(
        "drive {:.2} GB/s",
        fs::metadata(path)?.len() as f64 / seconds * 1e-9
    );
    Ok(seconds)
}

fn model(file: &Arc<SourceFile>, blocks: u64) -> Result<Model, Box<dyn Error>> {
    let block = |index: u64| -> Result<Arc<dyn Swappable>, Box<dyn Error>> {
        let source = Source::File {
            file: Arc::clone(file),
            range: index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES,
        };
        let tensor = TensorSpec::new("matrices", SHAPE, Encoding::BF16, source)?;
        Ok(Arc::new(ToyBlock::new(
            format!("blocks.{index}"),
            vec![tensor],
        )))
    };
    let mut model = Model::new((0..blocks).map(block).collect::<Result<_, _>>()?)?;
    for index in 0..usize::try_from(blocks)? {
        model = model.with_residency(index, Residency::Never)?;
    }
    Ok(model)
}

/// A line of `/proc/self/status`, in bytes.
fn status_bytes(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.trim_matches([':', '\t', ' ']).split(' ').next());
    kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}

fn measure(
    device: &CudaDevice,
    path: &Path,
    blocks: u64,
    passes: usize,
    ring: Ring,
) -> Result<Row, Box<dyn Error>> {
    let file = SourceFile::open(path)?;
    let model = model(&file, blocks)?;
    let stream = device.create_stream("compute")?;
    device.synchronize()?;
    let base = status_bytes("RssAnon");
    let (stop, peak) = (AtomicBool::new(false), AtomicU64::new(base));
    let probe_stream = device.create_stream("probe")?;
    let probe_event = device.create_event()?;
    let probe_arena = device.allocate_arena(PROBE_BYTES as u64)?;
    let probe_memory = device.allocate_pinned(PROBE_BYTES, |memory| memory.fill(1))?;
    let probe_memory = device.pin(&Source::from(probe_memory))?.pinned();
    let probe_memory = probe_memory.ok_or("memory of the device is pinned")?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                peak.fetch_max(status_bytes("RssAnon"), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let calls = scope.spawn(|| {
            let mut times = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let begin = Instant::now();
                let (stream, memory) = (&probe_stream, &probe_memory);
                let called = device
                    .upload_pinned(stream, &probe_arena, 0, memory, 0..PROBE_BYTES)
                    .and_then(|()| device.record(stream, &probe_event));
                if called.is_err() {
                    break;
                }
                times.push(begin.elapsed().as_secs_f64() * 1e6);
                std::thread::sleep(Duration::from_micros(200));
            }
            times.sort_by(f64::total_cmp);
            times
        });
        let run = || -> Result<Row, Box<dyn Error>> {
            let begin = Instant::now();
            let builder = Offload::builder(device)
                .model(model)
                .device_budget(DeviceBudget::Bytes(PLACES * BLOCK_BYTES + (1 << 20)))
                .pin_files(ring == Ring::UntilPinned);
            let builder = match ring {
                Ring::UntilPinned | Ring::Read => builder,
                // SAFETY: the file is this bench's, which writes it no more.
                Ring::Mapped => unsafe { builder.copy_from_mappings() },
                Ring::PastCache => builder.page_cache(HostBudget::Bytes(0)),
            };
            let mut offload = builder.build()?;
            let build_s = begin.elapsed().as_secs_f64();
            let mut first_pass_s = 0.0;
            let mut later_passes_s = Vec::new();
            let mut host_s = 0.0;
            for number in 0..passes {
                let pass_begin = Instant::now();
                let mut pass = offload.pass(PassKind::FULL, &stream)?;
                if number == 0 {
                    // The bytes of one pass, no more.
                    pass.last();
                }
                while pass.acquire()?.is_some() {}
                drop(pass);
                host_s = pass_begin.elapsed().as_secs_f64();
                stream.synchronize()?;
                if number == 0 {
                    first_pass_s = begin.elapsed().as_secs_f64();
                    stop.store(true, Ordering::Relaxed);
                } else {
                    later_passes_s.push(pass_begin.elapsed().as_secs_f64());
                }
            }
            let host = offload.report()?.host;
            Ok(Row {
                mode: String::new(),
                device: device.name(),
                cold: false,
                bytes: blocks * BLOCK_BYTES,
                wire_floor_s: 0.0,
                drive_floor_s: None,
                build_s,
                first_pass_s,
                first_passes_s: Vec::new(),
                over_floor: 0.0,
                later_passes_s,
                host_us_per_visit: host_s * 1e6 / blocks as f64,
                peak_anonymous_bytes: peak.load(Ordering::Relaxed) - base,
                driver_call_p99_us: 0.0,
                driver_call_max_us: 0.0,
                mapped_bytes: host.mapped_bytes,
                copied_bytes: host.copied_bytes,
                staged_bytes: host.staged_bytes,
                notes: host.notes,
                pinned_bytes: device.pinned_bytes(),
            })
        };
        let row = run();
        stop.store(true, Ordering::Relaxed);
        let times = calls.join().expect("the probe does not panic");
        let mut row = row?;
        row.driver_call_p99_us = times.get(times.len() * 99 / 100).copied().unwrap_or(0.0);
        row.driver_call_max_us = times.last().copied().unwrap_or(0.0);
        Ok(row)
    })
}
