//! Random models, budgets and sequences of actions: whatever an engine does, every block it leases has the right bytes,
//! nothing is left over, and the totals are those that the device counted.
//!
//! Each case follows from its seed. `OFFLOAD_STRESS_SEEDS=100..5000` (or one number: that seed alone) chooses others,
//! `OFFLOAD_LONG_PASSES=n` runs n of them.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::num::NonZeroU64;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use offload_core::cpu::{CpuDevice, CpuStream, CpuView, LiveCounts};
use offload_core::device::{Device, DeviceError, Rung};
use offload_core::encoding::Encoding;
use offload_core::executor::{
    ArrivalPolicy, DeviceBudget, HostBudget, Lease, Offload, OffloadError, Settings, StagingBuffers,
};
use offload_core::model::{Model, PassKind, Residency};
use offload_core::plan::Decoding;
use offload_core::source::{Source, SourceFile};
use offload_core::swappable::{Swappable, TensorSpec};
use offload_core::testing::toy::{self, ToyBlock};
use offload_core::testing::{Call, Faults, Observed, Observer, PinAs, Recorder};
use parking_lot::Mutex;

use crate::support;

/// A case that takes longer than this hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Counts every call and may fail one.
#[derive(Debug, Clone)]
struct Watch {
    recorder: Recorder,
    faults: Faults,
    /// How ranges of files are pinned; none is at 0.
    pins: Arc<AtomicU64>,
}

impl Observer for Watch {
    fn before(&self, call: Call) -> Result<(), DeviceError> {
        self.faults.before(call)?;
        self.recorder.before(call)
    }

    fn pin_as(&self) -> PinAs {
        let pins = self.pins.load(Ordering::SeqCst);
        if pins == 0 {
            return PinAs::Itself;
        }
        // Odd numbers are never 0.
        let next = self.pins.fetch_add(0x1234_5678_9ABC_DEF0, Ordering::SeqCst);
        let mut random = Random(next);
        if random.one_in(3) {
            std::thread::sleep(Duration::from_micros(random.next() % 3000));
        }
        match random.below(12) {
            0..3 => PinAs::Later,
            3 => PinAs::Staged,
            4..8 => PinAs::Rung(Rung::Mapping),
            _ => PinAs::Itself,
        }
    }
}

type WatchedDevice = Observed<CpuDevice, Watch>;

const ENCODINGS: [Encoding; 8] = [
    Encoding::Q8_0,
    Encoding::BF16,
    Encoding::Q4K,
    Encoding::Q6K,
    Encoding::F32,
    Encoding::F16,
    Encoding::I8,
    Encoding::BF16,
];

fn random_tensor(random: &mut Random, index: usize) -> TensorSpec {
    let encoding = random.pick(&ENCODINGS);
    let shape = match random.below(8) {
        0 => vec![0, 256],
        1 => vec![256],
        _ => vec![1 + random.below(12) as u64, 256],
    };
    toy::tensor(&format!("t{index}"), &shape, encoding, random.next())
}

/// Writes some of the blocks to a file and has them read from there.
fn some_in_file(
    random: &mut Random,
    blocks: Vec<Vec<TensorSpec>>,
    file: &mut tempfile::NamedTempFile,
) -> Vec<Vec<TensorSpec>> {
    let in_file: Vec<bool> = blocks.iter().map(|_| !random.one_in(4)).collect();
    let mut offset = 0;
    let mut ranges = Vec::new();
    for tensor in blocks.iter().flatten() {
        let gap = random.pick(&[0, 0, 32, 100, 700]);
        file.write_all(&vec![0xEE; gap]).unwrap();
        let mut bytes = vec![0; usize::try_from(tensor.source().len()).unwrap()];
        tensor.source().read(0, &mut bytes).unwrap();
        file.write_all(&bytes).unwrap();
        let start = offset + gap as u64;
        offset = start + bytes.len() as u64;
        ranges.push(start..offset);
    }
    file.flush().unwrap();
    let source = SourceFile::open(file.path()).unwrap();
    let mut ranges = ranges.into_iter();
    let mut moved = Vec::new();
    for (tensors, in_file) in blocks.into_iter().zip(in_file) {
        let tensors = tensors.into_iter().map(|tensor| {
            let range = ranges.next().unwrap();
            if !in_file {
                return tensor;
            }
            let file = Arc::clone(&source);
            let source = Source::File { file, range };
            TensorSpec::new(tensor.name(), tensor.shape(), tensor.encoding(), source).unwrap()
        });
        moved.push(tensors.collect());
    }
    moved
}

fn random_model(random: &mut Random, file: &mut tempfile::NamedTempFile) -> Model {
    let count = 1 + random.below(9);
    let mut blocks: Vec<Vec<TensorSpec>> = (0..count)
        .map(|_| {
            let tensors = random.below(4) + usize::from(!random.one_in(6));
            (0..tensors)
                .map(|index| random_tensor(random, index))
                .collect()
        })
        .collect();
    if random.one_in(3) {
        blocks = some_in_file(random, blocks, file);
    }
    let blocks = blocks.into_iter().enumerate().map(|(index, tensors)| {
        Arc::new(ToyBlock::new(format!("blocks.{index}"), tensors)) as Arc<dyn Swappable>
    });
    let mut model = Model::new(blocks.collect()).unwrap();
    for index in 0..count {
        let residency = match random.below(8) {
            0 => Residency::Always,
            1 | 2 => Residency::Never,
            _ => Residency::Planned,
        };
        model = model.with_residency(index, residency).unwrap();
    }
    for kind in 0..random.below(4) {
        let visits: Vec<usize> = match random.below(5) {
            0 => Vec::new(),
            1 => vec![random.below(count); 1 + random.below(3)],
            _ => (0..random.below(12)).map(|_| random.below(count)).collect(),
        };
        let undemanded = random.below(6);
        let demands = |_: &dyn Swappable, tensor: &TensorSpec| {
            tensor.name() != format!("t{undemanded}").as_str()
        };
        (model, _) = model
            .with_kind(format!("kind {kind}"), visits, demands)
            .unwrap();
    }
    model
}

/// What one case is: enough to understand a failure without running it again.
struct Case {
    random: Random,
    device: WatchedDevice,
    watch: Watch,
    streams: Vec<CpuStream>,
    side: CpuStream,
    offload: Offload<WatchedDevice>,
    /// Bytes that come from files, by whatever way.
    from_files: u64,
    expected: Arc<Vec<HashMap<String, u64>>>,
    wrong: Arc<Mutex<Vec<String>>>,
    log: Arc<Mutex<String>>,
}

macro_rules! note {
    ($case:expr, $($text:tt)*) => {
        writeln!($case.log.lock(), $($text)*).unwrap()
    };
}

fn any_call(call: &Call) -> bool {
    // Refused creations and allocations are errors of `build` and `resume`; tests/faults.rs has them.
    matches!(
        call,
        Call::UploadPinned { .. }
            | Call::UploadStaged { .. }
            | Call::Decode
            | Call::Record
            | Call::Wait
            | Call::BeginRead
            | Call::EndRead
            | Call::Synchronize
            | Call::Elapsed
            | Call::StagingBytes
    )
}

impl Case {
    fn new(seed: u64, log: Arc<Mutex<String>>) -> Self {
        let mut random = Random(seed);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let model = random_model(&mut random, &mut file);
        let policy = random.pick(&[ArrivalPolicy::default(), ArrivalPolicy::STORED]);
        let expected = support::expected(&model, &policy)
            .into_iter()
            .zip(model.blocks())
            .map(|(hashes, block)| {
                let names = block
                    .tensors()
                    .iter()
                    .map(|tensor| tensor.name().to_owned());
                names.zip(hashes).collect()
            })
            .collect();
        let pins_files = random.one_in(3);
        let mut builder = (CpuDevice::builder().poison(true))
            .pins(random.one_in(2))
            .copies_files(pins_files)
            .pin_bytes(NonZeroU64::new(random.pick(&[u64::MAX, 3000, 700])).unwrap());
        if !random.one_in(4) {
            builder = builder.jitter(random.next());
        }
        let watch = Watch {
            recorder: Recorder::new(),
            faults: Faults::new(any_call),
            pins: Arc::new(AtomicU64::new(if pins_files {
                random.next() | 1
            } else {
                0
            })),
        };
        let patience = random.pick(&[Duration::from_millis(1), Duration::from_secs(5)]);
        let cache = random.pick(&[0, 10_000, u64::MAX]);
        let device = Observed::new(builder.build(), watch.clone());
        let remainder_below = random.pick(&[0, 64, 1024]);
        let staging = StagingBuffers {
            count: 1 + random.below(3),
            bytes: random.pick(&[201, 1000, 4096, 64 << 10, 1 << 20]),
        };
        let settings = Settings {
            arrival: policy,
            remainder_below_bytes: remainder_below,
            decoding: random.pick(&[None, Some(Decoding::Ahead), Some(Decoding::AtUse)]),
            pack: !random.one_in(4),
            part_bytes: random.pick(&[0, 1000, 4000, 64 << 20]),
            ..Settings::default()
        };
        let build = |device: &WatchedDevice, budget| {
            Offload::builder(device)
                .model(model.clone())
                .settings(settings.clone())
                .device_budget(budget)
                .staging_buffers(staging)
                .page_cache(HostBudget::Bytes(cache))
                .pin_patience(patience)
                .build()
        };
        let probe = Observed::new(CpuDevice::new(), watch.clone());
        let least = build(&probe, DeviceBudget::Least)
            .unwrap()
            .plan()
            .arena_bytes;
        let all = build(&probe, DeviceBudget::Bytes(1 << 40))
            .unwrap()
            .plan()
            .arena_bytes;
        let part = random.pick(&[0, 0, 1, 2, 4]);
        let budget = least + (all.saturating_sub(least)) * part / 4;
        let before = watch.recorder.counts().upload_bytes;
        let offload = build(&device, DeviceBudget::Bytes(budget)).unwrap();
        let mut text = String::new();
        for (index, block) in model.blocks().iter().enumerate() {
            writeln!(text, "block {index} {:?}", model.residency(index)).unwrap();
            for tensor in block.tensors() {
                writeln!(
                    text,
                    "  {} {:?} {} {:?}",
                    tensor.name(),
                    tensor.shape(),
                    tensor.encoding(),
                    tensor.source()
                )
                .unwrap();
            }
        }
        for (kind, plan) in model.kinds().iter().zip(&offload.plan().kinds) {
            writeln!(text, "{} {:?}", kind.name(), kind.visits()).unwrap();
            for visit in &plan.visits {
                writeln!(
                    text,
                    "    block {} place {:?} staging {:?} packed {:?}",
                    visit.block, visit.place, visit.staging, visit.packed
                )
                .unwrap();
            }
        }
        writeln!(
            text,
            "{device:?}, {:?}, {staging:?}, cache {cache}, {budget} of {least}..{all} bytes, uploads before {before}",
            offload.plan().decoding
        )
        .unwrap();
        *log.lock() = text;
        let streams = vec![
            device.create_stream("compute").unwrap(),
            device.create_stream("compute2").unwrap(),
            device.inner().inline_stream(),
        ];
        let side = device.create_stream("side").unwrap();
        Self {
            random,
            watch,
            streams,
            side,
            from_files: offload.host().staged_bytes,
            offload,
            expected: Arc::new(expected),
            wrong: Arc::default(),
            device,
            log,
        }
    }

    /// Submits the hashing of what was leased.
    fn compute<D: Device<View = CpuView>>(
        lease: &Lease<'_, D>,
        stream: &CpuStream,
        expected: &Arc<Vec<HashMap<String, u64>>>,
        wrong: &Arc<Mutex<Vec<String>>>,
        delay: Option<Duration>,
    ) {
        let views: Vec<(String, CpuView)> = lease
            .tensor_names()
            .filter_map(|name| Some((name.to_owned(), lease.tensor(name).ok()?.view())))
            .collect();
        let (expected, wrong) = (Arc::clone(expected), Arc::clone(wrong));
        let (block, visit) = (lease.block_index(), lease.visit());
        stream.launch(move || {
            if let Some(delay) = delay {
                std::thread::sleep(delay);
            }
            for (name, view) in views {
                if view.read(support::hash) != expected[block][&name] {
                    wrong
                        .lock()
                        .push(format!("visit {visit}, block {block}, tensor {name}"));
                }
            }
        });
    }

    /// One pass, with whatever an engine might do.
    fn pass(&mut self, calm: bool, same_stream: bool) -> Result<(), OffloadError> {
        let random = &mut self.random;
        let kinds = self.offload.model().kinds().len();
        let kind = PassKind(u32::try_from(random.below(kinds)).unwrap());
        let which = if same_stream {
            0
        } else {
            random.below(self.streams.len())
        };
        let stream = self.streams[which].clone();
        let skips = if calm {
            0
        } else {
            random.pick(&[0, 0, 0, 3, 2, 1])
        };
        let abandons = !calm && random.one_in(5);
        note!(
            self,
            "pass {kind:?} on {which}, skips 1 of {skips}, abandons {abandons}"
        );
        let mut pass = self.offload.pass(kind, &stream)?;
        let visits = pass.visit_count();
        let until = if abandons {
            random.below(visits + 1)
        } else {
            usize::MAX
        };
        for visit in 0.. {
            if random.one_in(6) {
                let hint = random.below(kinds + 1);
                note!(self, "  hint {hint} of {kinds}");
                match u32::try_from(hint).unwrap() {
                    hint if hint as usize == kinds => pass.last(),
                    hint => pass.then(PassKind(hint))?,
                }
            }
            if visit == until {
                break;
            }
            if skips > 0 && random.one_in(skips) {
                note!(self, "  skip {visit}");
                if !pass.skip()? {
                    break;
                }
                continue;
            }
            let Some(mut lease) = pass.acquire()? else {
                break;
            };
            let delay = random
                .one_in(10)
                .then(|| Duration::from_micros(random.next() % 500));
            if let Some(bytes) = stream.is_inline().then(|| {
                let names = lease.tensor_names().map(str::to_owned);
                names.collect::<Vec<_>>()
            }) {
                for name in bytes {
                    if let Ok(tensor) = lease.tensor(&name) {
                        let bytes = tensor.host_bytes().expect("inline leases give bytes");
                        if support::hash(bytes) != self.expected[lease.block_index()][&name] {
                            let at = format!("host bytes of visit {visit}, {name}");
                            self.wrong.lock().push(at);
                        }
                    }
                }
            }
            if random.one_in(5) {
                note!(self, "  lease {visit} on the side too");
                lease.wait_on(&self.side)?;
                Self::compute(&lease, &self.side, &self.expected, &self.wrong, delay);
                lease.read_on(&self.side)?;
            }
            Self::compute(&lease, &stream, &self.expected, &self.wrong, delay);
            if random.one_in(8) {
                note!(self, "  lease {visit} and forget it");
                std::mem::forget(lease);
            } else {
                note!(self, "  lease {visit}");
            }
        }
        if random.one_in(8) {
            note!(self, "  forget the pass");
            std::mem::forget(pass);
        }
        Ok(())
    }

    fn between(&mut self) -> Result<(), OffloadError> {
        if self.random.one_in(12) {
            note!(self, "suspend");
            self.offload.suspend()?;
            assert_eq!(self.device.inner().live().arenas, 0, "suspended");
            self.offload.resume()?;
        }
        if self.random.one_in(12) {
            note!(self, "report");
            self.offload.report()?;
        }
        Ok(())
    }

    fn check_wrong(&self) {
        let wrong = self.wrong.lock();
        assert!(wrong.is_empty(), "wrong bytes: {wrong:?}");
    }

    fn end(self, uploaded_before: u64, exact: bool) {
        let Self {
            device,
            streams,
            side,
            mut offload,
            wrong,
            watch,
            from_files,
            ..
        } = self;
        let host = offload.host();
        let by_way = host.mapped_bytes + host.copied_bytes + host.staged_bytes;
        assert_eq!(by_way, from_files, "{host:?}");
        if exact {
            offload.suspend().unwrap();
            let report = offload.report().unwrap();
            let plan = offload.plan();
            assert!(
                report.high_water_bytes <= plan.high_water_bytes,
                "high water: {} over {}",
                report.high_water_bytes,
                plan.high_water_bytes
            );
            assert_eq!(
                report.load_bytes + report.wire_bytes + report.past_end_bytes,
                watch.recorder.counts().upload_bytes - uploaded_before,
                "totals"
            );
            assert_eq!(
                offload.counters().visits() + report.skipped,
                report.visits + report.skipped
            );
        }
        drop(offload);
        drop(streams);
        drop(side);
        let wrong = wrong.lock();
        assert!(wrong.is_empty(), "wrong bytes: {wrong:?}");
        assert_eq!(
            device.inner().live(),
            LiveCounts::default(),
            "nothing leaks"
        );
        device.memory().expect("no breach of contract");
    }
}

/// Without faults: no error, whatever is done.
fn run(seed: u64, log: Arc<Mutex<String>>) {
    let mut case = Case::new(seed, log);
    let loaded = case.offload.counters().load_bytes();
    let before = case.watch.recorder.counts().upload_bytes - loaded;
    let passes = 3 + case.random.below(12);
    let same_stream = case.random.one_in(2);
    for _ in 0..passes {
        case.pass(false, same_stream).unwrap();
        case.between().unwrap();
        case.check_wrong();
    }
    case.end(before, true);
}

/// One call fails somewhere: errors are allowed until two passes later, wrong bytes, panics and leaks never.
fn run_with_fault(seed: u64, log: Arc<Mutex<String>>) {
    let mut case = Case::new(seed, log);
    case.pass(false, false).unwrap();
    case.pass(false, false).unwrap();
    let at = case.random.next() % 120;
    note!(case, "call {at} from here fails");
    case.watch.faults.arm(at);
    for _ in 0..4 {
        if let Err(error) = case.pass(false, false) {
            note!(case, "  {error:?}");
        }
        if let Err(error) = case.between() {
            note!(case, "{error:?}");
            case.offload.resume().unwrap();
        }
        case.check_wrong();
    }
    case.watch.faults.disarm();
    // What failed while the head of the next pass was brought surfaces there.
    if let Err(error) = case.pass(true, false) {
        note!(case, "  {error:?}");
        if error.is_device_lost() {
            panic!("{error:?}");
        }
    }
    for _ in 0..3 {
        case.pass(true, false).expect("the next pass tries again");
    }
    case.check_wrong();
    case.end(0, false);
}

fn seeds(default: Range<u64>) -> Range<u64> {
    if let Ok(text) = std::env::var("OFFLOAD_STRESS_SEEDS") {
        return match text.split_once("..") {
            Some((start, end)) => start.parse().unwrap()..end.parse().unwrap(),
            None => {
                let seed = text.parse().unwrap();
                seed..seed + 1
            }
        };
    }
    let count = std::env::var("OFFLOAD_LONG_PASSES").ok();
    let count = count.and_then(|text| text.parse().ok());
    default.start..count.map_or(default.end, |count: u64| default.start + count)
}

/// Runs a case for every seed; prints what happened in the first few that fail.
fn run_all(seeds: Range<u64>, case: fn(u64, Arc<Mutex<String>>)) {
    let mut failed = Vec::new();
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let log = Arc::new(Mutex::new(String::new()));
        let (done, outcome) = mpsc::channel();
        let thread = std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                let result = catch_unwind(AssertUnwindSafe(|| case(seed, log)));
                done.send(result.is_ok()).unwrap();
            }
        });
        match outcome.recv_timeout(LIMIT) {
            Ok(true) => {}
            Ok(false) => {
                if failed.len() < 3 {
                    eprintln!("seed {seed} failed:\n{}", log.lock());
                }
                failed.push(seed);
            }
            Err(_) => {
                eprintln!("seed {seed} hangs:\n{}", log.lock());
                std::process::exit(1);
            }
        }
        thread.join().unwrap();
    }
    assert!(
        failed.is_empty(),
        "{} of {count} seeds failed: {failed:?}",
        failed.len()
    );
}

#[test]
fn whatever_an_engine_does_blocks_have_their_bytes() {
    run_all(seeds(0..150), run);
}

#[test]
fn whatever_fails_no_wrong_bytes_no_panic_and_no_leak() {
    run_all(seeds(1_000_000..1_000_150), run_with_fault);
}
