//! Files are pinned while passes already stream them, and whatever becomes of that, bytes are right.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use offload_core::cpu::CpuDevice;
use offload_core::device::{Device, DeviceError, Rung};
use offload_core::encoding::Encoding;
use offload_core::executor::{ArrivalPolicy, HostBudget, Report};
use offload_core::model::{Model, PassKind};
use offload_core::source::Source;
use offload_core::swappable::{Swappable, TensorSpec};
use offload_core::testing::toy::{self, ToyBlock};
use offload_core::testing::{Call, Faults, Observed, Observer, PinAs, Recorder};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support;

const BLOCKS: usize = 8;

/// A toy model whose tensors lie in a file.
fn model() -> (tempfile::NamedTempFile, Model) {
    let memory = toy::model(&[[16, 256]; BLOCKS], &support::MIXED, 7);
    let mut kept = tempfile::NamedTempFile::new().unwrap();
    let model = support::in_file(&memory, &mut kept);
    (kept, model)
}

fn copying() -> CpuDevice {
    CpuDevice::builder().poison(true).copies_files(true).build()
}

/// Streams passes until `enough` is content with the report, 2,000 at most.
fn stream<D>(device: &D, pin: bool, mut enough: impl FnMut(&Report) -> bool) -> Report
where
    D: Device<Stream = offload_core::cpu::CpuStream, View = offload_core::cpu::CpuView>,
{
    let (_kept, model) = model();
    let expected = support::expected(&model, &ArrivalPolicy::default());
    let visits: Vec<usize> = (0..BLOCKS).collect();
    let compute = device.create_stream("compute").unwrap();
    let event = device.create_event().unwrap();
    let mut offload = support::least(device, model)
        .pin_files(pin)
        .build()
        .unwrap();
    let seen = support::Seen::default();
    for _ in 0..2000 {
        support::pass(&mut offload, PassKind::FULL, &compute, &seen).unwrap();
        let generation = device.record(&compute, &event).unwrap();
        device.synchronize(&event, generation).unwrap();
        support::check(&seen, &expected, &visits);
        let report = offload.report().unwrap();
        if enough(&report) {
            return report;
        }
    }
    let host = offload.report().unwrap().host;
    panic!("2,000 passes were not enough: {host:?}");
}

#[test]
fn what_is_pinned_needs_no_staging_and_no_worker() {
    let report = stream(&copying(), true, |report| {
        report.host.staged_bytes == 0 && report.visits >= 10 * BLOCKS as u64
    });
    assert!(report.host.copied_bytes > 0);
    assert_eq!(report.host.notes, Vec::<String>::new());
}

#[test]
fn once_all_is_pinned_the_caller_submits() {
    let device = copying();
    let (_kept, model) = model();
    let compute = device.create_stream("compute").unwrap();
    let mut offload = support::least(&device, model).build().unwrap();
    let seen = support::Seen::default();
    while offload.report().unwrap().host.staged_bytes > 0 {
        support::pass(&mut offload, PassKind::FULL, &compute, &seen).unwrap();
    }
    // The pass that changes over, and the one that it prefetched for.
    for _ in 0..2 {
        support::pass(&mut offload, PassKind::FULL, &compute, &seen).unwrap();
    }
    let before = offload.report().unwrap().submission_waits;
    for _ in 0..50 {
        support::pass(&mut offload, PassKind::FULL, &compute, &seen).unwrap();
    }
    assert_eq!(offload.report().unwrap().submission_waits, before);
}

#[test]
fn switched_off_nothing_is_pinned_and_the_report_says_so() {
    let report = stream(&copying(), false, |report| report.visits >= 80);
    assert_eq!(report.host.copied_bytes, 0);
    assert!(report.host.staged_bytes > 0);
    assert!(report.host.notes[0].contains("switched off"));
}

#[test]
fn a_device_that_pins_no_files_says_why() {
    let report = stream(&CpuDevice::new(), true, |report| {
        !report.host.notes.is_empty()
    });
    assert!(report.host.staged_bytes > 0);
}

#[test]
fn a_failed_pin_is_noted_and_the_rest_is_staged() {
    // At the least budget at least half of the blocks are streamed.
    for n in 0..BLOCKS as u64 / 2 {
        let faults = Faults::new(|call| matches!(call, Call::Pin { .. }));
        faults.arm(n);
        let device = Observed::new(copying(), faults);
        let report = stream(&device, true, |report| !report.host.notes.is_empty());
        assert!(report.host.staged_bytes > 0, "the {n}th failed");
        assert!(report.host.notes[0].contains("injected"));
    }
}

/// Holds calls of `pin` until it is told to let go.
#[derive(Debug, Clone, Default)]
struct Stuck {
    entered: Arc<AtomicBool>,
    let_go: Arc<AtomicBool>,
}

impl Observer for Stuck {
    fn before(&self, call: Call) -> Result<(), DeviceError> {
        if matches!(call, Call::Pin { .. }) {
            self.entered.store(true, Ordering::SeqCst);
            while !self.let_go.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }
}

#[test]
fn a_pin_that_never_returns_stops_nothing() {
    let stuck = Stuck::default();
    let device = Observed::new(copying(), stuck.clone());
    let begin = Instant::now();
    stream(&device, true, |report| {
        report.visits >= 80 && stuck.entered.load(Ordering::SeqCst)
    });
    // The executor is dropped by now: its thread was left behind.
    assert!(begin.elapsed() < Duration::from_secs(60));
    stuck.let_go.store(true, Ordering::SeqCst);
}

#[test]
fn a_pin_that_returns_late_is_made_use_of_and_others_follow() {
    let stuck = Stuck::default();
    let device = Observed::new(copying(), stuck.clone());
    let report = stream(&device, true, |report| {
        // The first pass is through: the answer is overdue.
        stuck.let_go.store(true, Ordering::SeqCst);
        report.host.staged_bytes == 0
    });
    assert!(report.host.copied_bytes > 0);
    let notes = &report.host.notes;
    assert!(
        notes.len() == 1 && notes[0].contains("within 5s"),
        "{notes:?}"
    );
}

/// Answers pins by a script, and then as the device does.
#[derive(Debug, Clone)]
struct Scripted(Arc<Mutex<VecDeque<PinAs>>>, Duration);

impl Scripted {
    fn new(script: &[PinAs]) -> Self {
        let script = script.iter().copied().collect();
        Self(Arc::new(Mutex::new(script)), Duration::ZERO)
    }
}

impl Observer for Scripted {
    fn before(&self, call: Call) -> Result<(), DeviceError> {
        if matches!(call, Call::Pin { .. }) {
            std::thread::sleep(self.1);
        }
        Ok(())
    }

    fn pin_as(&self) -> PinAs {
        self.0.lock().pop_front().unwrap_or(PinAs::Itself)
    }
}

/// How many passes it takes until all is pinned, and the report.
fn passes_until_pinned(observer: Scripted) -> (u64, Report) {
    let device = Observed::new(copying(), observer);
    let report = stream(&device, true, |report| report.host.staged_bytes == 0);
    (report.visits / BLOCKS as u64, report)
}

#[test]
fn what_can_be_read_in_place_is_pinned_within_a_few_passes() {
    let mapping = [PinAs::Rung(Rung::Mapping); 2 * BLOCKS];
    let (passes, report) = passes_until_pinned(Scripted::new(&mapping));
    // All of it is read before it could be pinned, in the first pass, and pinned when there is nothing else to do.
    assert!(passes <= 20, "{passes}");
    assert_eq!(report.host.copied_bytes, 0);
    assert!(report.host.mapped_bytes > 0);
}

/// At first nothing of the file is in the page cache; after the first copy the others are not yet.
#[test]
fn what_is_not_there_yet_is_asked_for_again() {
    for copies in [0, 1, 2] {
        let mut script = vec![PinAs::Itself; copies];
        script.extend([PinAs::Later; 3 * BLOCKS]);
        script.extend([PinAs::Rung(Rung::Mapping); 2 * BLOCKS]);
        let (passes, report) = passes_until_pinned(Scripted::new(&script));
        assert!(passes > 1, "{passes}");
        assert!(report.host.mapped_bytes > 0, "{report:?}");
        assert_eq!(report.host.copied_bytes > 0, copies > 0, "{report:?}");
    }
}

#[test]
fn what_is_refused_once_is_not_asked_for_again() {
    let observer = Scripted::new(&[PinAs::Staged; 2 * BLOCKS]);
    let device = Observed::new(copying(), observer.clone());
    stream(&device, true, |report| report.visits >= 20 * BLOCKS as u64);
    // One each.
    assert!(observer.0.lock().len() >= BLOCKS);
}

/// Also when there is nothing else to do.
#[test]
fn what_is_not_there_yet_is_asked_for_once_in_each_pass() {
    const PASSES: usize = 3;
    const ANSWERS: usize = 100_000;
    let builder = CpuDevice::builder().copies_files(true);
    let cpu = builder.pin_bytes(NonZeroU64::new(1000).unwrap()).build();
    let asked = |observer: &Scripted| ANSWERS - observer.0.lock().len();
    let in_place = Scripted::new(&[PinAs::Rung(Rung::Mapping); ANSWERS]);
    stream(
        &Observed::new(cpu.clone(), in_place.clone()),
        true,
        |report| report.host.staged_bytes == 0,
    );
    let pieces = asked(&in_place);
    let later = Scripted::new(&[PinAs::Later; ANSWERS]);
    stream(&Observed::new(cpu, later.clone()), true, |report| {
        let is_last = report.visits as usize >= PASSES * BLOCKS;
        if is_last {
            std::thread::sleep(Duration::from_millis(300));
        }
        is_last
    });
    // The next pass is begun ahead.
    let most = (PASSES + 1) * pieces;
    let asked = asked(&later);
    assert!((1..=most).contains(&asked), "{asked} of {most}");
}

/// The feeder waits for answers, in every pass.
#[test]
fn asking_in_vain_takes_little_of_the_time() {
    const ANSWERS: usize = 1000;
    const TAKES: Duration = Duration::from_millis(10);
    let mut later = Scripted::new(&[PinAs::Later; ANSWERS]);
    later.1 = TAKES;
    let begin = Instant::now();
    stream(&Observed::new(copying(), later.clone()), true, |_| {
        std::thread::sleep(Duration::from_millis(1));
        begin.elapsed() > Duration::from_secs(1)
    });
    let total = begin.elapsed();
    let asked = ANSWERS - later.0.lock().len();
    let asking = TAKES * u32::try_from(asked).unwrap();
    // And the first.
    assert!(asking <= total / 10 + TAKES, "{asking:?} of {total:?}");
}

/// Of each upload some pieces are read where they lie and others never.
#[test]
fn an_upload_is_pinned_piece_by_piece() {
    const PIECE: u64 = 1000;
    let answers = [PinAs::Rung(Rung::Mapping), PinAs::Staged, PinAs::Later];
    let script: Vec<PinAs> = answers.into_iter().cycle().take(300).collect();
    let observer = Scripted::new(&script);
    let builder = CpuDevice::builder().poison(true).copies_files(true);
    let pieces = builder.pin_bytes(NonZeroU64::new(PIECE).unwrap());
    let device = Observed::new(pieces.build(), observer.clone());
    let mut shares = Vec::new();
    stream(&device, true, |report| {
        let (mapped, staged) = (report.host.mapped_bytes, report.host.staged_bytes);
        shares.push((mapped, staged));
        let asked = script.len() - observer.0.lock().len();
        let pieces = usize::try_from((mapped + staged) / PIECE).unwrap();
        asked >= pieces && report.visits >= 20 * BLOCKS as u64
    });
    let (mapped, staged) = shares[shares.len() - 1];
    assert!(mapped > 0 && staged > 0, "{mapped} mapped, {staged} staged");
    assert!(
        shares
            .iter()
            .all(|share| share.0 + share.1 == mapped + staged)
    );
}

/// Readers and the thread that pins go on beside one another, each held up now and then, so that pieces are pinned while
/// they are read. Those go through their buffers, once.
#[derive(Debug, Clone)]
struct HeldUp(Arc<Mutex<StdRng>>);

impl Observer for HeldUp {
    fn before(&self, call: Call) -> Result<(), DeviceError> {
        if matches!(call, Call::Pin { .. } | Call::StagingBytes) {
            let micros = self.0.lock().random_range(0..1000);
            std::thread::sleep(Duration::from_micros(micros));
        }
        Ok(())
    }

    fn pin_as(&self) -> PinAs {
        match self.0.lock().random_range(0..4) {
            0 => PinAs::Staged,
            1 => PinAs::Later,
            _ => PinAs::Rung(Rung::Copy),
        }
    }
}

#[test]
fn what_is_pinned_while_it_is_read_arrives_once() {
    for seed in 0..8 {
        let builder = CpuDevice::builder().poison(true).copies_files(true);
        let pieces = builder.pin_bytes(NonZeroU64::new(1000).unwrap());
        let held_up = HeldUp(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))));
        let device = Observed::new(pieces.build(), held_up);
        let report = stream(&device, true, |report| report.visits >= 6 * BLOCKS as u64);
        assert!(report.host.copied_bytes > 0, "{seed}");
    }
}

/// Buffers hold whole uploads here, so that each cut would be one more.
#[test]
fn what_is_not_to_be_pinned_is_not_cut() {
    let (_kept, model) = model();
    let uploads = |device: CpuDevice, pin: bool, cache: HostBudget| {
        let recorder = Recorder::new();
        let device = Observed::new(device, recorder.clone());
        let compute = device.create_stream("compute").unwrap();
        let mut offload = support::least(&device, model.clone())
            .pin_files(pin)
            .page_cache(cache)
            .build()
            .unwrap();
        let seen = support::Seen::default();
        let before = recorder.counts().uploads;
        for _ in 0..3 {
            support::pass(&mut offload, PassKind::FULL, &compute, &seen).unwrap();
        }
        let host = offload.report().unwrap().host;
        (recorder.counts().uploads - before, host)
    };
    let cutting = || {
        let builder = CpuDevice::builder().copies_files(true);
        builder.pin_bytes(NonZeroU64::new(1000).unwrap()).build()
    };
    let all = HostBudget::Bytes(u64::MAX);
    let (whole, _) = uploads(CpuDevice::new(), true, all);
    assert!(uploads(cutting(), true, all).0 > whole);
    assert_eq!(uploads(cutting(), false, all).0, whole);
    let (past_cache, host) = uploads(cutting(), true, HostBudget::Bytes(0));
    if host.uncached_bytes == 0 {
        println!("SKIPPED: {:?}", host.notes);
    } else {
        assert_eq!(past_cache, whole);
    }
}

/// Each answer comes a little late: only the first is waited for.
#[test]
fn pins_that_are_all_late_cost_the_patience_once() {
    let mut observer = Scripted::new(&[PinAs::Rung(Rung::Mapping); 2 * BLOCKS]);
    observer.1 = Duration::from_millis(600);
    let device = Observed::new(copying(), observer);
    let (_kept, model) = model();
    let compute = device.create_stream("compute").unwrap();
    let mut offload = support::least(&device, model)
        .pin_patience(Duration::from_millis(400))
        .build()
        .unwrap();
    let seen = support::Seen::default();
    let begin = Instant::now();
    for _ in 0..3 {
        support::pass(&mut offload, PassKind::FULL, &compute, &seen).unwrap();
    }
    // At least four blocks are streamed.
    assert!(begin.elapsed() < Duration::from_millis(1200), "{begin:?}");
}

#[test]
fn a_run_of_neighbours_in_memory_is_one_upload() {
    let bytes = toy::random_bytes(3, 64 << 10);
    let memory = Arc::new(bytes::Bytes::from(bytes));
    let tensor = |index: u64| {
        let source = Source::Memory {
            memory: Arc::clone(&memory),
            range: index * 4096..(index + 1) * 4096,
        };
        TensorSpec::new(format!("{index}"), [8, 256], Encoding::BF16, source).unwrap()
    };
    let block = |index: u64| {
        ToyBlock::new(
            format!("{index}"),
            (8 * index..8 * index + 8).map(tensor).collect(),
        )
    };
    let blocks = (0..2).map(|index| Arc::new(block(index)) as Arc<dyn Swappable>);
    let model = Model::new(blocks.collect()).unwrap();
    let recorder = Recorder::new();
    let device = Observed::new(CpuDevice::new(), recorder.clone());
    let expected = support::expected(&model, &ArrivalPolicy::default());
    let compute = device.create_stream("compute").unwrap();
    let mut offload = support::least(&device, model).build().unwrap();
    let seen = support::Seen::default();
    let before = recorder.counts().uploads;
    for _ in 0..3 {
        support::pass(&mut offload, PassKind::FULL, &compute, &seen).unwrap();
    }
    offload.report().unwrap();
    drop(offload);
    drop(compute);
    assert_eq!(seen.lock().len(), 6);
    for (block, hashes) in &*seen.lock() {
        assert_eq!(*hashes, expected[*block]);
    }
    // Six visits, and the two of the pass that never came at most.
    let uploads = recorder.counts().uploads - before;
    assert!((6..=8).contains(&uploads), "{uploads}");
}

#[test]
fn a_range_past_the_memory_is_refused_with_the_numbers() {
    let memory = Arc::new(bytes::Bytes::from(vec![0; 100]));
    let backwards = std::ops::Range { start: 80, end: 30 };
    for range in [60..110, 110..160, backwards] {
        let source = Source::Memory {
            memory: Arc::clone(&memory),
            range: range.clone(),
        };
        let error = TensorSpec::new("t", [25], Encoding::BF16, source).unwrap_err();
        let expected = format!("tensor t: bytes {range:?} lie outside of 100");
        assert_eq!(error.to_string(), expected);
    }
}
