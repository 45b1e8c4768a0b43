//! Models that the page cache does not hold: a fixed part is kept there, the rest is read past it.

use std::sync::Arc;

use offload_core::cpu::CpuDevice;
use offload_core::device::Device;
use offload_core::encoding::Encoding;
use offload_core::executor::{
    ArrivalPolicy, DeviceBudget, HostBudget, HostReport, Offload, OffloadError, StagingBuffers,
};
use offload_core::model::{Model, PassKind};
use offload_core::source::{Source, SourceError, SourceFile};
use offload_core::swappable::{Swappable, TensorSpec};
use offload_core::testing::toy::{self, ToyBlock};

use crate::support;

const BLOCKS: usize = 8;
const PASSES: u64 = 5;
const BUFFERS: StagingBuffers = StagingBuffers {
    count: 3,
    bytes: 64 << 10,
};

/// A toy model in a file, on a drive where the build folder is, at offsets of all kinds.
fn model() -> (tempfile::NamedTempFile, Model) {
    let memory = toy::model(&[[48, 1024]; BLOCKS], &support::MIXED, 7);
    let mut kept = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let model = support::in_file(&memory, &mut kept);
    kept.as_file().sync_all().unwrap();
    (kept, model)
}

/// Streams at the least budget and checks all bytes. The report, and the bytes of a pass.
fn stream(cache: HostBudget, buffers: StagingBuffers) -> (HostReport, u64) {
    let device = CpuDevice::builder().poison(true).build();
    let (_kept, model) = model();
    let expected = support::expected(&model, &ArrivalPolicy::default());
    let visits: Vec<usize> = (0..BLOCKS).collect();
    let compute = device.create_stream("compute").unwrap();
    let event = device.create_event().unwrap();
    let mut offload = support::least(&device, model)
        .staging_buffers(buffers)
        .page_cache(cache)
        .build()
        .unwrap();
    let seen = support::Seen::default();
    for _ in 0..PASSES {
        support::pass(&mut offload, PassKind::FULL, &compute, &seen).unwrap();
        let generation = device.record(&compute, &event).unwrap();
        device.synchronize(&event, generation).unwrap();
        support::check(&seen, &expected, &visits);
    }
    let bytes = offload.plan().kinds[0].wire_bytes_per_pass;
    (offload.report().unwrap().host, bytes)
}

/// Bytes that this process has had read from drives.
#[cfg(target_os = "linux")]
fn bytes_from_drives() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("read_bytes: "));
    line.unwrap().parse().unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn what_the_cache_does_not_hold_is_read_past_it_with_the_right_bytes() {
    let before = bytes_from_drives();
    let (all, bytes) = stream(HostBudget::Bytes(0), BUFFERS);
    let read = bytes_from_drives() - before;
    if all
        .notes
        .iter()
        .any(|note| note.contains("past the page cache"))
    {
        println!("SKIPPED: {:?}", all.notes);
        return;
    }
    assert_eq!((all.uncached_bytes, all.staged_bytes), (bytes, bytes));
    assert!(read >= PASSES * bytes, "{read} of {PASSES} x {bytes}");
    let (half, _) = stream(HostBudget::Bytes(bytes / 2), BUFFERS);
    assert_eq!(half.staged_bytes, bytes);
    let share = half.uncached_bytes as f64 / bytes as f64;
    assert!((0.5..0.8).contains(&share), "{share}");
}

#[test]
fn a_cache_that_holds_the_model_is_used_for_all_of_it() {
    for cache in [HostBudget::Bytes(u64::MAX), HostBudget::Available] {
        let (host, _) = stream(cache, BUFFERS);
        assert_eq!(host.uncached_bytes, 0, "{host:?}");
    }
}

#[test]
fn a_cache_that_holds_what_streams_is_used_for_all_of_it() {
    let device = CpuDevice::new();
    let (_kept, model) = model();
    let budget = support::resident_bytes(&device, &model) * 6 / 10;
    let build = |cache| {
        Offload::builder(&device)
            .model(model.clone())
            .remainder_below(64)
            .device_budget(DeviceBudget::Bytes(budget))
            .staging_buffers(BUFFERS)
            .page_cache(HostBudget::Bytes(cache))
            .build()
            .unwrap()
    };
    let streamed = build(u64::MAX).plan().kinds[0].wire_bytes_per_pass;
    let tensors = model.blocks().iter().flat_map(|block| block.tensors());
    let total: u64 = tensors.map(|tensor| tensor.source().len()).sum();
    assert!(streamed < total);
    assert_eq!(build(streamed).report().unwrap().host.uncached_bytes, 0);
}

#[test]
fn buffers_too_small_for_reading_past_the_cache_are_noted() {
    let small = StagingBuffers {
        count: 3,
        bytes: 4096,
    };
    let (host, _) = stream(HostBudget::Bytes(0), small);
    assert_eq!(host.uncached_bytes, 0);
    let notes = &host.notes;
    assert!(notes[0].contains("4096 bytes are too small"), "{notes:?}");
}

/// The system's own files have no drive under them.
#[test]
#[cfg(target_os = "linux")]
fn a_file_that_cannot_be_read_past_the_cache_is_noted_and_read_through_it() {
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    let Ok(file) = SourceFile::open(path) else {
        println!("SKIPPED: there is no {path}");
        return;
    };
    let source = Source::File { file, range: 0..16 };
    let block = |index: usize| {
        let tensor = TensorSpec::new("t", [2, 4], Encoding::BF16, source.clone()).unwrap();
        Arc::new(ToyBlock::new(format!("{index}"), vec![tensor])) as Arc<dyn Swappable>
    };
    let model = Model::new((0..BLOCKS).map(block).collect()).unwrap();
    let expected = support::expected(&model, &ArrivalPolicy::default());
    let device = CpuDevice::new();
    let compute = device.inline_stream();
    let mut offload = Offload::builder(&device)
        .model(model)
        .remainder_below(1)
        .device_budget(DeviceBudget::Least)
        .page_cache(HostBudget::Bytes(0))
        .build()
        .unwrap();
    let seen = support::Seen::default();
    support::pass(&mut offload, PassKind::FULL, &compute, &seen).unwrap();
    support::check(&seen, &expected, &(0..BLOCKS).collect::<Vec<_>>());
    let notes = offload.report().unwrap().host.notes;
    let expected = format!("cannot read {path} past the page cache: ");
    assert!(
        notes.iter().any(|note| note.starts_with(&expected)),
        "{notes:?}"
    );
}

#[test]
#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "the promise is kept: the file is the test's own"
)]
fn from_mappings_the_bytes_are_the_same() {
    let device = CpuDevice::builder().poison(true).build();
    let (kept, model) = model();
    let expected = support::expected(&model, &ArrivalPolicy::default());
    let compute = device.inline_stream();
    let builder = support::least(&device, model).staging_buffers(BUFFERS);
    // SAFETY: nobody else knows the file.
    let mut offload = unsafe { builder.copy_from_mappings() }.build().unwrap();
    let seen = support::Seen::default();
    for _ in 0..PASSES {
        support::pass(&mut offload, PassKind::FULL, &compute, &seen).unwrap();
        support::check(&seen, &expected, &(0..BLOCKS).collect::<Vec<_>>());
    }
    // Of the mapping, pages were touched.
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = smaps.lines();
    let name = kept.path().to_str().unwrap();
    assert!(lines.any(|line| line.ends_with(name)), "{name} is mapped");
    let resident = lines.find_map(|line| line.strip_prefix("Rss:"));
    assert!(!resident.unwrap().trim().starts_with("0 "), "{resident:?}");
    drop(offload);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(name), "{name} is mapped no more");
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_truncated_while_it_is_read_past_the_cache_is_an_error_that_names_it() {
    let device = CpuDevice::new();
    let (kept, model) = model();
    let compute = device.create_stream("compute").unwrap();
    let mut offload = support::least(&device, model)
        .staging_buffers(BUFFERS)
        .page_cache(HostBudget::Bytes(0))
        .build()
        .unwrap();
    let mut pass = offload.pass(PassKind::FULL, &compute).unwrap();
    drop(pass.acquire().unwrap());
    kept.as_file().set_len(4096 + 17).unwrap();
    let error = loop {
        match pass.acquire() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the end of the file is gone"),
            Err(error) => break error,
        }
    };
    let OffloadError::Source { source, .. } = &error else {
        panic!("{error:?}");
    };
    let is_expected = matches!(
        source,
        SourceError::Truncated { .. } | SourceError::Changed { .. }
    );
    assert!(is_expected, "{error:?}");
    assert!(source.to_string().contains(kept.path().to_str().unwrap()));
}
