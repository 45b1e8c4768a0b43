//! Faults injected through the device trait and through files: an error at the visit concerned, nothing leaked, and the
//! next pass works.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use offload_core::cpu::{CpuDevice, CpuStream, LiveCounts};
use offload_core::device::{Device, DeviceError};
use offload_core::encoding::Encoding;
use offload_core::executor::{ArrivalPolicy, DeviceBudget, Offload, OffloadError};
use offload_core::model::{Model, PassKind, Residency};
use offload_core::source::{Source, SourceError, SourceFile};
use offload_core::swappable::{Swappable, TensorSpec};
use offload_core::testing::toy::{self, ToyBlock};
use offload_core::testing::{Call, Faults, Observed, Observer};

use crate::support;

type FaultyDevice = Observed<CpuDevice, Faults>;

fn build(device: &FaultyDevice) -> Result<Offload<FaultyDevice>, OffloadError> {
    support::least(device, support::mixed_model()).build()
}

fn device(pins: bool, faults: &Faults) -> FaultyDevice {
    Observed::new(
        CpuDevice::builder().pins(pins).poison(true).build(),
        faults.clone(),
    )
}

fn checked_pass(
    offload: &mut Offload<FaultyDevice>,
    stream: &CpuStream,
    expected: &[support::BlockHash],
) -> Result<(), OffloadError> {
    let seen = support::Seen::default();
    let done = support::pass(offload, PassKind::FULL, stream, &seen);
    for (block, hashes) in std::mem::take(&mut *seen.lock()) {
        assert_eq!(
            hashes, expected[block],
            "what was leased is right, whatever came later"
        );
    }
    done
}

/// Fails the n-th chosen call of a run, for every n, until a run meets no fault.
fn fail_every_call(pins: bool, chosen: fn(&Call) -> bool) -> (usize, usize) {
    let expected = support::expected(&support::mixed_model(), &ArrivalPolicy::default());
    let (mut in_build, mut in_pass) = (0, 0);
    for n in 0.. {
        let faults = Faults::new(chosen);
        let device = device(pins, &faults);
        let stream = device.inner().inline_stream();
        faults.arm(n);
        match build(&device) {
            Err(_) => in_build += 1,
            Ok(mut offload) => {
                let mut outcomes: Vec<_> = (0..3)
                    .map(|_| checked_pass(&mut offload, &stream, &expected))
                    .collect();
                let met = faults.seen() > n;
                faults.disarm();
                // A fault met while the head of a fourth pass was brought surfaces at its visit in that pass.
                outcomes.push(checked_pass(&mut offload, &stream, &expected));
                let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
                assert!(
                    failed <= 1,
                    "call {n}: one fault fails one pass: {outcomes:?}"
                );
                for _ in 0..2 {
                    let again = checked_pass(&mut offload, &stream, &expected);
                    assert!(again.is_ok(), "call {n}: the next pass works: {again:?}");
                }
                if !met {
                    return (in_build, in_pass);
                }
                in_pass += failed;
            }
        }
        drop(stream);
        assert_eq!(
            device.inner().live(),
            LiveCounts::default(),
            "call {n}: nothing leaks"
        );
    }
    unreachable!("runs are finite")
}

#[test]
fn failing_any_allocation_is_an_error_of_build() {
    for pins in [true, false] {
        let (in_build, in_pass) = fail_every_call(pins, |call| {
            matches!(
                call,
                Call::AllocateArena { .. } | Call::AllocateStaging { .. }
            )
        });
        assert!(in_build >= 1 && in_pass == 0, "{in_build} {in_pass}");
    }
}

#[test]
fn failing_any_creation_is_an_error_of_build() {
    for pins in [true, false] {
        let (in_build, in_pass) = fail_every_call(pins, |call| {
            matches!(
                call,
                Call::CreateEvent
                    | Call::CreateStream
                    | Call::Pin { .. }
                    | Call::Prepare { .. }
                    | Call::Memory
            )
        });
        assert!(in_build > 10 && in_pass == 0, "{in_build} {in_pass}");
    }
}

#[test]
fn failing_any_upload_is_an_error_at_its_visit() {
    for pins in [true, false] {
        let (in_build, in_pass) = fail_every_call(pins, |call| {
            matches!(call, Call::UploadPinned { .. } | Call::UploadStaged { .. })
        });
        assert!(in_pass >= 20, "{in_build} {in_pass}");
    }
}

#[test]
fn failing_any_decode_is_an_error_at_its_visit() {
    for pins in [true, false] {
        let (in_build, in_pass) = fail_every_call(pins, |call| matches!(call, Call::Decode));
        assert!(in_pass >= 10, "{in_build} {in_pass}");
    }
}

#[test]
fn failing_any_event_or_hold_is_an_error_of_its_pass() {
    for pins in [true, false] {
        let (in_build, in_pass) = fail_every_call(pins, |call| {
            matches!(
                call,
                Call::Record | Call::Wait | Call::BeginRead | Call::EndRead
            )
        });
        assert!(in_pass >= 50, "{in_build} {in_pass}");
    }
}

#[test]
fn failing_any_host_wait_is_an_error_of_its_pass() {
    for pins in [true, false] {
        let (in_build, in_pass) = fail_every_call(pins, |call| {
            matches!(call, Call::Synchronize | Call::Elapsed | Call::StagingBytes)
        });
        assert!(in_build + in_pass >= 1, "{in_build} {in_pass}");
    }
}

#[test]
fn an_error_names_the_block_and_sticks_for_the_pass() {
    let faults = Faults::new(|call| matches!(call, Call::UploadPinned { .. }));
    let device = device(true, &faults);
    let stream = device.inner().inline_stream();
    let mut offload = build(&device).unwrap();
    faults.arm(7);
    let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
    let mut leased = 0;
    let error = loop {
        match pass.acquire() {
            Ok(Some(_)) => leased += 1,
            Ok(None) => panic!("the fault was not met"),
            Err(error) => break error,
        }
    };
    match &error {
        OffloadError::Block {
            block,
            source: DeviceError::Failed { .. },
        } => {
            assert_eq!(*block, format!("blocks.{leased}"), "the visit concerned");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        pass.acquire().unwrap_err().to_string(),
        error.to_string(),
        "it sticks"
    );
    assert_eq!(
        pass.skip().unwrap_err().to_string(),
        error.to_string(),
        "it sticks"
    );
}

#[test]
fn a_lost_device_is_final_and_drop_does_not_hang() {
    for pins in [true, false] {
        for n in (0..400).step_by(7) {
            let faults = Faults::new(|_| true).losing_the_device();
            let device = device(pins, &faults);
            let stream = device.inner().inline_stream();
            faults.arm(n);
            if let Ok(mut offload) = build(&device) {
                let expected =
                    support::expected(&support::mixed_model(), &ArrivalPolicy::default());
                let outcomes: Vec<_> = (0..8)
                    .map(|_| checked_pass(&mut offload, &stream, &expected))
                    .collect();
                let first = outcomes
                    .iter()
                    .position(Result::is_err)
                    .expect("400 calls are made");
                for outcome in &outcomes[first..] {
                    let error = outcome.as_ref().unwrap_err();
                    assert!(error.is_device_lost(), "call {n}: {error:?}");
                }
                assert!(offload.suspend().is_err());
            }
            drop(stream);
            assert_eq!(
                device.inner().live(),
                LiveCounts::default(),
                "call {n}: nothing leaks"
            );
        }
    }
}

/// An upload that nobody waited for had failed, and the visits after it, in later passes too, gave its error.
#[test]
fn skipping_over_a_failed_arrival_does_not_fail_later_passes() {
    let expected = support::expected(&support::mixed_model(), &ArrivalPolicy::default());
    for (pins, reports) in [(true, true), (true, false), (false, true), (false, false)] {
        for n in 0..40 {
            let faults = Faults::new(|call| {
                matches!(
                    call,
                    Call::UploadPinned { .. } | Call::UploadStaged { .. } | Call::Decode
                )
            });
            let device = device(pins, &faults);
            let stream = device.inner().inline_stream();
            let mut offload = build(&device).unwrap();
            faults.arm(n);
            let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
            pass.last();
            while let Ok(true) = pass.skip() {}
            drop(pass);
            if reports {
                offload.report().unwrap(); // waits for what the workers submit
            } else {
                // Until the workers met it, or have had the time to.
                let begin = Instant::now();
                while !pins && faults.seen() <= n && begin.elapsed() < Duration::from_millis(50) {
                    std::thread::yield_now();
                }
            }
            faults.disarm();
            for _ in 0..3 {
                checked_pass(&mut offload, &stream, &expected)
                    .unwrap_or_else(|error| panic!("upload {n}, pins {pins}: {error:?}"));
            }
        }
    }
}

/// The error of releasing the last lease was dropped with the pass.
#[test]
fn an_error_met_when_the_last_lease_drops_surfaces_at_the_next_call() {
    let expected = support::expected(&support::mixed_model(), &ArrivalPolicy::default());
    for pins in [true, false] {
        for next in ["pass", "report", "suspend"] {
            let faults = Faults::new(|call| matches!(call, Call::EndRead));
            let device = device(pins, &faults);
            let stream = device.inner().inline_stream();
            let mut offload = build(&device).unwrap();
            let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
            for _ in 0..9 {
                drop(pass.acquire().unwrap());
            }
            let lease = pass.acquire().unwrap();
            faults.arm(0);
            drop(lease);
            drop(pass);
            faults.disarm();
            let error = match next {
                "pass" => offload.pass(PassKind::FULL, &stream).map(drop),
                "report" => offload.report().map(drop),
                _ => offload.suspend(),
            };
            match error.expect_err(next) {
                OffloadError::Block { block, .. } => assert_eq!(block, "blocks.9"),
                other => panic!("{next}: {other:?}"),
            }
            offload.resume().unwrap();
            for _ in 0..2 {
                checked_pass(&mut offload, &stream, &expected).unwrap();
            }
        }
    }
}

/// Panics at one call instead of failing it.
#[derive(Debug, Clone)]
struct Panics {
    faults: Faults,
}

impl Observer for Panics {
    fn before(&self, call: Call) -> Result<(), DeviceError> {
        if self.faults.before(call).is_err() {
            panic!("a driver's callback panics");
        }
        Ok(())
    }
}

#[test]
fn a_panic_of_a_worker_is_an_error_at_the_visit_and_the_next_pass_works() {
    let expected = support::expected(&support::mixed_model(), &ArrivalPolicy::default());
    let visits: Vec<_> = (0..10).collect();
    let in_reader: fn(&Call) -> bool = |call| matches!(call, Call::StagingBytes);
    let in_feeder: fn(&Call) -> bool =
        |call| matches!(call, Call::UploadStaged { .. } | Call::Decode);
    for chosen in [in_reader, in_feeder] {
        for n in [0, 3, 8] {
            let observer = Panics {
                faults: Faults::new(chosen),
            };
            let faults = observer.faults.clone();
            let device = Observed::new(CpuDevice::builder().pins(false).build(), observer);
            let stream = device.inner().inline_stream();
            let mut offload = support::least(&device, support::mixed_model())
                .build()
                .unwrap();
            faults.arm(n);
            let seen = support::Seen::default();
            let mut outcomes = Vec::new();
            for _ in 0..3 {
                outcomes.push(support::pass(&mut offload, PassKind::FULL, &stream, &seen));
            }
            let failed: Vec<_> = outcomes.iter().filter_map(|o| o.as_ref().err()).collect();
            match failed[..] {
                [OffloadError::WorkerPanicked { message }] => {
                    assert_eq!(message, "a driver's callback panics");
                }
                ref other => panic!("{other:?}"),
            }
            for (block, hashes) in std::mem::take(&mut *seen.lock()) {
                assert_eq!(hashes, expected[block]);
            }
            support::pass(&mut offload, PassKind::FULL, &stream, &seen).unwrap();
            support::check(&seen, &expected, &visits);
        }
    }
}

/// Fails a call, and counts how often the host waits.
#[derive(Debug, Clone)]
struct Waits(Faults, Arc<AtomicU64>);

impl Observer for Waits {
    fn before(&self, call: Call) -> Result<(), DeviceError> {
        let waits = u64::from(call == Call::Synchronize);
        self.1.fetch_add(waits, Ordering::SeqCst);
        self.0.before(call)
    }
}

/// A program was dropped on the way out of a load that failed, while its decodes still ran.
#[test]
fn a_load_that_fails_waits_for_what_it_submitted() {
    for pins in [true, false] {
        for seed in 0..2 {
            let mut failed = 0;
            for n in 0.. {
                let faults = Faults::new(|call| {
                    matches!(
                        call,
                        Call::Wait | Call::Record | Call::Decode | Call::UploadPinned { .. }
                    )
                });
                let inner = CpuDevice::builder().pins(pins).jitter(seed).build();
                let waits = Arc::new(AtomicU64::new(0));
                let device = Observed::new(inner, Waits(faults.clone(), Arc::clone(&waits)));
                faults.arm(n);
                let built = Offload::builder(&device)
                    .model(support::mixed_model())
                    .remainder_below(64)
                    .device_budget(DeviceBudget::mib(64))
                    .build();
                // Uploads and decodes.
                assert!(waits.load(Ordering::SeqCst) >= 2, "the {n}th failed");
                device.inner().memory().expect("no breach of contract");
                let met = faults.seen() > n;
                failed += usize::from(built.is_err());
                drop(built);
                assert_eq!(device.inner().live(), LiveCounts::default());
                if !met {
                    break;
                }
            }
            assert!(failed > 20, "{failed}");
        }
    }
}

/// A model whose blocks lie in a file, one tensor each.
fn model_in(file: &std::path::Path, blocks: u64, block_bytes: u64) -> Model {
    let source = SourceFile::open(file).unwrap();
    let block = |index: u64| {
        let range = index * block_bytes..(index + 1) * block_bytes;
        let source = Source::File {
            file: Arc::clone(&source),
            range,
        };
        let shape = [block_bytes / 4];
        let tensor = TensorSpec::new("weight", shape, Encoding::F32, source).unwrap();
        Arc::new(ToyBlock::new(format!("blocks.{index}"), vec![tensor])) as Arc<dyn Swappable>
    };
    Model::new((0..blocks).map(block).collect()).unwrap()
}

#[test]
fn a_file_that_changes_is_an_error_that_names_it() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&toy::random_bytes(1, 8 * 4096)).unwrap();
    let device = CpuDevice::new();
    let stream = device.inline_stream();
    let mut offload = support::least(&device, model_in(file.path(), 8, 4096))
        .build()
        .unwrap();
    let seen = support::Seen::default();
    support::pass(&mut offload, PassKind::FULL, &stream, &seen).unwrap();
    file.as_file().set_len(5000).unwrap();
    let error = offload.pass(PassKind::FULL, &stream).unwrap_err();
    match error {
        OffloadError::Source {
            source:
                SourceError::Changed {
                    path,
                    opened_len,
                    len,
                },
            ..
        } => {
            assert_eq!(
                (path.as_path(), opened_len, len),
                (file.path(), 32768, 5000)
            );
        }
        other => panic!("{other:?}"),
    }
    // A file that is whole again, but written to since, is still not the one that was opened.
    file.as_file().set_len(8 * 4096).unwrap();
    assert!(offload.pass(PassKind::FULL, &stream).is_err());
}

#[test]
fn a_file_truncated_under_a_pass_is_an_error_at_the_block() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&toy::random_bytes(1, 8 * 4096)).unwrap();
    let device = CpuDevice::new();
    let stream = device.inline_stream();
    let mut offload = support::least(&device, model_in(file.path(), 8, 4096))
        .build()
        .unwrap();
    let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
    drop(pass.acquire().unwrap());
    file.as_file().set_len(5 * 4096 + 100).unwrap();
    let mut leased = 1;
    let error = loop {
        match pass.acquire() {
            Ok(Some(_)) => leased += 1,
            Ok(None) => panic!("the end of the file was not met"),
            Err(error) => break error,
        }
    };
    assert!(leased <= 5, "block 5 is cut: {leased}");
    let OffloadError::Source { block, source } = error else {
        panic!("{error:?}")
    };
    assert_eq!(block, format!("blocks.{leased}"));
    match source {
        SourceError::Changed { path, len, .. } => {
            assert_eq!((&*path, len), (file.path(), 5 * 4096 + 100));
        }
        SourceError::Truncated { path, end, .. } => {
            assert_eq!((&*path, end), (file.path(), 5 * 4096 + 100));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_rewritten_under_a_pass_is_an_error_or_gives_its_bytes() {
    let old = toy::random_bytes(1, 8 * 4096);
    for rewritten_at in 0..8 {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&old).unwrap();
        let model = model_in(file.path(), 8, 4096);
        let expected = support::expected(&model, &ArrivalPolicy::default());
        let device = CpuDevice::new();
        let stream = device.inline_stream();
        let mut offload = support::least(&device, model).build().unwrap();
        let seen = support::Seen::default();
        let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
        let mut error = None;
        for visit in 0..8 {
            if visit == rewritten_at {
                // The same length, other bytes: only the time of writing tells. File systems count it in ticks of up to
                // 10 ms, so the file is written until it differs from that of the opening.
                let opened = file.as_file().metadata().unwrap().modified().unwrap();
                while file.as_file().metadata().unwrap().modified().unwrap() == opened {
                    std::fs::write(file.path(), toy::random_bytes(2, 8 * 4096)).unwrap();
                }
            }
            match pass.acquire() {
                Ok(lease) => support::compute(&lease.unwrap(), &stream, &seen),
                Err(failed) => {
                    error = Some(failed);
                    break;
                }
            }
        }
        drop(pass);
        // A head start of reads: the last blocks may have been read before the file was written to.
        let right: Vec<_> = seen.lock().iter().map(|(block, _)| *block).collect();
        assert!(right.len() >= rewritten_at, "{rewritten_at}: {right:?}");
        support::check(&seen, &expected, &right);
        match error {
            Some(OffloadError::Source {
                source: SourceError::Changed { path, .. } | SourceError::Truncated { path, .. },
                ..
            }) => assert_eq!(path, file.path()),
            None => assert_eq!(right.len(), 8),
            other => panic!("{other:?}"),
        }
        let next = offload.pass(PassKind::FULL, &stream).unwrap_err();
        assert!(matches!(next, OffloadError::Source { .. }), "{next:?}");
    }
}

#[test]
fn a_file_replaced_by_another_of_its_name_keeps_giving_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    std::fs::write(&path, toy::random_bytes(1, 8 * 4096)).unwrap();
    let model = model_in(&path, 8, 4096);
    let expected = support::expected(&model, &ArrivalPolicy::default());
    let device = CpuDevice::new();
    let stream = device.inline_stream();
    let mut offload = support::least(&device, model).build().unwrap();
    let other = folder.path().join("other");
    std::fs::write(&other, toy::random_bytes(2, 8 * 4096)).unwrap();
    std::fs::rename(&other, &path).unwrap();
    let seen = support::Seen::default();
    support::pass(&mut offload, PassKind::FULL, &stream, &seen).unwrap();
    support::check(&seen, &expected, &[0, 1, 2, 3, 4, 5, 6, 7]);
}

/// `/proc/self/mem` is a regular file whose first page cannot be read: an input/output error without a broken disk.
#[cfg(target_os = "linux")]
#[test]
fn a_read_error_names_the_file_and_the_offset() {
    let path = std::path::Path::new("/proc/self/mem");
    for residency in [Residency::Always, Residency::Never] {
        let model = model_in(path, 2, 4096)
            .with_residency(0, residency)
            .unwrap();
        let device = CpuDevice::new();
        let stream = device.inline_stream();
        let error = Offload::builder(&device)
            .model(model.with_residency(1, Residency::Never).unwrap())
            .remainder_below(64)
            .device_budget(DeviceBudget::mib(1))
            .build()
            .and_then(|mut offload| -> Result<(), OffloadError> {
                let mut pass = offload.pass(PassKind::FULL, &stream)?;
                let first = pass.acquire()?.map(|lease| lease.visit());
                panic!("visit {first:?} was leased");
                #[expect(unreachable_code, reason = "says which result this is")]
                Ok(())
            });
        let OffloadError::Source { block, source } = error.unwrap_err() else {
            panic!("not an error of the source")
        };
        assert_eq!(block, "blocks.0");
        let SourceError::Read {
            path: named,
            offset: 0,
            source: system,
            ..
        } = source
        else {
            panic!("{source:?}")
        };
        assert_eq!((&*named, system.raw_os_error()), (path, Some(5)), "EIO");
    }
}

#[test]
fn a_deleted_file_keeps_giving_its_bytes() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&toy::random_bytes(1, 8 * 4096)).unwrap();
    let model = model_in(file.path(), 8, 4096);
    let expected = support::expected(&model, &ArrivalPolicy::default());
    let device = CpuDevice::new();
    let stream = device.inline_stream();
    let mut offload = support::least(&device, model).build().unwrap();
    file.close().unwrap();
    let seen = support::Seen::default();
    support::pass(&mut offload, PassKind::FULL, &stream, &seen).unwrap();
    support::check(&seen, &expected, &[0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_budget_that_is_too_small_is_refused_with_the_least_that_would_do() {
    let device = CpuDevice::new();
    let builder = |budget| {
        Offload::builder(&device)
            .model(support::mixed_model())
            .remainder_below(64)
            .device_budget(budget)
            .build()
    };
    let least = builder(DeviceBudget::Least).unwrap().plan().arena_bytes;
    let error = builder(DeviceBudget::Bytes(least - 1))
        .unwrap_err()
        .to_string();
    let expected = format!(
        "budget of {} bytes is too small: the least that would do is {least}",
        least - 1
    );
    assert_eq!(error, expected);
    builder(DeviceBudget::Bytes(least)).unwrap();
}

#[test]
fn a_device_with_too_little_memory_refuses_with_the_numbers() {
    let device = CpuDevice::builder().memory_bytes(10_000).build();
    let error = Offload::builder(&device)
        .model(support::mixed_model())
        .remainder_below(64)
        .device_budget(DeviceBudget::Bytes(1 << 30))
        .build()
        .unwrap_err();
    assert!(
        matches!(
            error,
            OffloadError::Device(DeviceError::OutOfMemory {
                free_bytes: 10_000,
                ..
            })
        ),
        "{error:?}"
    );
    assert_eq!(device.memory().unwrap().free_bytes, 10_000);
}

#[test]
fn a_model_without_data_is_an_error_and_not_a_panic() {
    let range = 0..4096;
    let tensor =
        TensorSpec::new("weight", [1024], Encoding::F32, Source::Described { range }).unwrap();
    let block = Arc::new(ToyBlock::new("b", vec![tensor])) as Arc<dyn Swappable>;
    let model = Model::new(vec![block]).unwrap();
    let device = CpuDevice::new();
    let stream = device.inline_stream();
    let build = |residency| {
        Offload::builder(&device)
            .model(model.clone().with_residency(0, residency).unwrap())
            .remainder_below(64)
            .device_budget(DeviceBudget::mib(1))
            .build()
    };
    let resident = build(Residency::Always).unwrap_err();
    let mut streamed = build(Residency::Never).unwrap();
    let streamed = streamed
        .pass(PassKind::FULL, &stream)
        .unwrap()
        .acquire()
        .unwrap_err();
    for error in [resident, streamed] {
        let OffloadError::Source { block, source } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(block, "b");
        assert!(
            matches!(source, SourceError::Described { .. }),
            "{source:?}"
        );
    }
}
