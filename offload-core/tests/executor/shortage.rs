//! Short memory: less is asked for, step by step, with a warning for each; then it is refused with the numbers.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::Once;

use offload_core::cpu::{CpuDevice, LiveCounts};
use offload_core::device::{Device, DeviceError};
use offload_core::executor::{
    ArrivalPolicy, DeviceBudget, HostBudget, Offload, OffloadBuilder, OffloadError, Shortage,
    StagingBuffers,
};
use offload_core::model::{PassKind, Residency};
use offload_core::plan::{Form, PlanError};
use offload_core::testing::{Call, Observed, Observer};
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};

use crate::support;

thread_local! {
    /// The text of each warning on this thread.
    static SAID: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Keeps warnings by thread. The one subscriber of the process: what one thread's own is interested in, others that come
/// by the same line first may have switched off.
#[derive(Debug)]
struct Warnings;

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        SAID.with_borrow_mut(|said| said.push(text.0));
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// What building says, and the warnings on the way.
fn build<D: Device>(builder: OffloadBuilder<D>) -> (Result<Offload<D>, OffloadError>, Vec<String>) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Warnings).unwrap());
    SAID.take();
    let built = builder.build();
    let said = SAID.take();
    (built, said)
}

fn builder<D: Device>(device: &D, budget: DeviceBudget) -> OffloadBuilder<D> {
    Offload::builder(device)
        .model(support::mixed_model())
        .remainder_below(64)
        .device_budget(budget)
}

fn arena_bytes(budget: DeviceBudget) -> u64 {
    let offload = builder(&CpuDevice::new(), budget).build().unwrap();
    offload.plan().arena_bytes
}

/// Streams a pass and checks every hash.
fn check<D: Device<Stream = offload_core::cpu::CpuStream, View = offload_core::cpu::CpuView>>(
    offload: &mut Offload<D>,
    device: &CpuDevice,
) {
    let expected = support::expected(&support::mixed_model(), &ArrivalPolicy::default());
    let stream = device.inline_stream();
    let seen = support::Seen::default();
    support::pass(offload, PassKind::FULL, &stream, &seen).unwrap();
    support::check(&seen, &expected, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn an_arena_that_is_refused_is_planned_again_as_large_as_what_is_free() {
    let (least, all) = (
        arena_bytes(DeviceBudget::Least),
        arena_bytes(DeviceBudget::gib(1)),
    );
    let free_bytes = (least + all) / 2;
    let device = CpuDevice::builder().memory_bytes(free_bytes).build();
    let (built, warnings) = build(builder(&device, DeviceBudget::gib(1)));
    let mut offload = built.unwrap();
    assert_eq!(offload.plan().budget_bytes, free_bytes);
    let shortage = Shortage::Arena {
        refused_bytes: all,
        free_bytes,
        budget_bytes: free_bytes,
    };
    let report = offload.report().unwrap();
    assert_eq!(report.shortages, [shortage]);
    let line = format!("arena of {all} bytes refused, {free_bytes} free: planned for {free_bytes}");
    assert!(report.to_string().contains(&line), "{report}");
    assert_eq!(warnings.len(), 1);
    for number in [
        format!("refused_bytes={all} "),
        format!("free_bytes={free_bytes} "),
        format!("budget_bytes={free_bytes} "),
        format!("least_bytes={least} "),
    ] {
        assert!(warnings[0].contains(&number), "{number}: {warnings:?}");
    }
    check(&mut offload, &device);
}

/// Refuses every arena of more than some bytes, and says that all of the device is free: its memory is in pieces.
#[derive(Debug, Clone)]
struct Pieces {
    largest_bytes: u64,
}

impl Observer for Pieces {
    fn before(&self, call: Call) -> Result<(), DeviceError> {
        match call {
            Call::AllocateArena { bytes } if bytes > self.largest_bytes => {
                Err(DeviceError::OutOfMemory {
                    requested_bytes: bytes,
                    free_bytes: 1 << 40,
                })
            }
            _ => Ok(()),
        }
    }
}

#[test]
fn memory_in_pieces_is_asked_for_ever_less_until_the_least() {
    let (least, all) = (
        arena_bytes(DeviceBudget::Least),
        arena_bytes(DeviceBudget::gib(1)),
    );
    for largest_bytes in [least, least + 5000, (least + all) / 2, all - 1] {
        let inner = CpuDevice::new();
        let device = Observed::new(inner.clone(), Pieces { largest_bytes });
        let (built, warnings) = build(builder(&device, DeviceBudget::gib(1)));
        let mut offload = built.unwrap();
        let arena_bytes = offload.plan().arena_bytes;
        assert!(arena_bytes <= largest_bytes, "{arena_bytes}");
        let report = offload.report().unwrap();
        assert!(!warnings.is_empty() && warnings.len() == report.shortages.len());
        check(&mut offload, &inner);
    }
    let inner = CpuDevice::new();
    let largest_bytes = least - 1;
    let device = Observed::new(inner.clone(), Pieces { largest_bytes });
    let (built, warnings) = build(builder(&device, DeviceBudget::gib(1)));
    match built.unwrap_err() {
        OffloadError::Device(DeviceError::OutOfMemory {
            requested_bytes, ..
        }) => assert_eq!(requested_bytes, least, "the least was asked for last"),
        other => panic!("{other:?}"),
    }
    assert!(warnings.len() > 3 && warnings.len() < 100);
    assert_eq!(inner.live(), LiveCounts::default(), "nothing leaks");
}

fn staged(budget: DeviceBudget, host_bytes: u64) -> OffloadBuilder<CpuDevice> {
    builder(&CpuDevice::builder().pins(false).build(), budget)
        .host_budget(HostBudget::Bytes(host_bytes))
}

#[test]
fn staging_buffers_shrink_to_the_host_budget() {
    let StagingBuffers { count, bytes } = StagingBuffers::default();
    let all_bytes = (count * bytes) as u64;
    for (host_bytes, tried_bytes) in [
        (all_bytes, None),
        (all_bytes - 1, Some(all_bytes / 2)),
        (5 << 20, Some(4 << 20)),
        (256 << 10, Some(256 << 10)),
        (128 << 10, Some(128 << 10)),
    ] {
        let (built, warnings) = build(staged(DeviceBudget::Least, host_bytes));
        let mut offload = built.unwrap();
        let report = offload.report().unwrap();
        let last = report.shortages.last().map(|shortage| match shortage {
            Shortage::Staging { tried_bytes, .. } => *tried_bytes,
            other => panic!("{other:?}"),
        });
        assert_eq!(last, tried_bytes, "{host_bytes}");
        assert_eq!(warnings.len(), report.shortages.len());
        let device = offload.device().clone();
        check(&mut offload, &device);
    }
}

#[test]
fn without_room_for_staging_buffers_more_is_resident_where_the_device_allows() {
    let host_bytes = 100 << 10;
    let (built, warnings) = build(staged(DeviceBudget::mib(16), host_bytes));
    let everything_fits = built.unwrap();
    assert!(
        everything_fits
            .plan()
            .blocks
            .iter()
            .all(|block| block.form == Form::Resident),
        "nothing had to stream anyway"
    );
    assert!(!warnings.is_empty());

    // Blocks that may stream do not, and the others must fit.
    let all = arena_bytes(DeviceBudget::gib(1));
    let (built, _) = build(staged(DeviceBudget::Bytes(all), host_bytes));
    let mut offload = built.unwrap();
    let device = offload.device().clone();
    check(&mut offload, &device);

    let (built, warnings) = build(staged(DeviceBudget::Least, host_bytes));
    let mut offload = built.unwrap();
    let report = offload.report().unwrap();
    let kept = Shortage::Resident {
        refused_bytes: 128 << 10,
        host_bytes: Some(host_bytes),
    };
    assert!(report.shortages.contains(&kept), "{:?}", report.shortages);
    let said = |warning: &String| warning.contains("stays on the device");
    assert!(warnings.iter().any(said), "{warnings:?}");
    assert_eq!(offload.plan().kinds[0].wire_bytes_per_pass, 0);
    let device = offload.device().clone();
    check(&mut offload, &device);
}

#[test]
fn without_room_on_either_side_it_is_refused_with_both_numbers() {
    let least = arena_bytes(DeviceBudget::Least);
    let device = CpuDevice::builder().pins(false).build();
    let small = builder(&device, DeviceBudget::Bytes(least));
    let (built, _) = build(small.host_budget(HostBudget::Bytes(100 << 10)));
    match built.unwrap_err() {
        OffloadError::HostMemory {
            needed_bytes,
            host_bytes,
            plan:
                Some(PlanError::BudgetTooSmall {
                    budget_bytes,
                    least_bytes,
                }),
        } => {
            assert_eq!((needed_bytes, host_bytes), (128 << 10, 100 << 10));
            assert!(budget_bytes == least && least_bytes > least);
        }
        other => panic!("{other:?}"),
    }
    // Nothing can be loaded through less than a buffer.
    let (built, _) = build(staged(DeviceBudget::mib(16), 1000));
    let error = built.unwrap_err().to_string();
    assert_eq!(
        error,
        "host memory of 1000 bytes is too small for staging buffers of 65536 bytes"
    );
    assert_eq!(device.live(), LiveCounts::default(), "nothing leaks");
}

#[test]
fn blocks_that_must_stream_are_not_kept_for_want_of_buffers() {
    let device = CpuDevice::builder().pins(false).build();
    let model = support::mixed_model().with_residency(4, Residency::Never);
    let builder = Offload::builder(&device)
        .model(model.unwrap())
        .remainder_below(64)
        .device_budget(DeviceBudget::gib(1))
        .host_budget(HostBudget::Bytes(100 << 10));
    let (built, _) = build(builder);
    assert!(matches!(
        built.unwrap_err(),
        OffloadError::HostMemory { plan: None, .. }
    ));
}

#[test]
fn memory_that_is_read_in_place_needs_no_host_budget() {
    let device = CpuDevice::new();
    let (built, warnings) =
        build(builder(&device, DeviceBudget::Least).host_budget(HostBudget::Bytes(0)));
    let mut offload = built.unwrap();
    check(&mut offload, &device);
    assert!(warnings.is_empty());
}

/// Refuses staging buffers past some bytes in all, as a system does that locks few pages.
#[derive(Debug, Clone)]
struct LockedPages {
    device: CpuDevice,
    limit_bytes: u64,
}

impl Observer for LockedPages {
    fn before(&self, call: Call) -> Result<(), DeviceError> {
        if let Call::AllocateStaging { bytes } = call {
            // All that are alive at once are of one size.
            let held_bytes = u64::try_from(self.device.live().staging).unwrap() * bytes;
            if held_bytes + bytes > self.limit_bytes {
                return Err(DeviceError::OutOfMemory {
                    requested_bytes: bytes,
                    free_bytes: self.limit_bytes.saturating_sub(held_bytes),
                });
            }
        }
        Ok(())
    }
}

#[test]
fn staging_buffers_that_the_device_refuses_shrink_too() {
    for (limit_bytes, resident) in [(300 << 10, false), (100 << 10, true)] {
        let inner = CpuDevice::builder().pins(false).build();
        let observer = LockedPages {
            device: inner.clone(),
            limit_bytes,
        };
        let device = Observed::new(inner.clone(), observer);
        let (built, warnings) = build(builder(&device, DeviceBudget::Least).staging_buffers(
            StagingBuffers {
                count: 4,
                bytes: 256 << 10,
            },
        ));
        let mut offload = built.unwrap();
        let report = offload.report().unwrap();
        assert!(!warnings.is_empty() && warnings.len() == report.shortages.len());
        let kept = |shortage: &Shortage| matches!(shortage, Shortage::Resident { .. });
        assert_eq!(
            report.shortages.iter().any(kept),
            resident,
            "{:?}",
            report.shortages
        );
        check(&mut offload, &inner);
    }
}

/// A model is planned the same whether the budget was given or what the device had left.
#[test]
fn a_refusal_changes_nothing_but_the_budget() {
    fn plan(device: &CpuDevice, budget: DeviceBudget) -> String {
        let offload = builder(device, budget).build().unwrap();
        let plan = offload.plan();
        format!("{plan:?}")
    }
    let all = arena_bytes(DeviceBudget::gib(1));
    let device = CpuDevice::builder().memory_bytes(all - 4096).build();
    assert_eq!(
        plan(&device, DeviceBudget::gib(1)),
        plan(&CpuDevice::new(), DeviceBudget::Bytes(all - 4096))
    );
}
