//! What the executor itself costs: passes over the CPU device whose blocks are so small that there is nothing to move.
//!
//! Printed beside the times: heap allocations per pass, which must be none, and device calls per visit. The CPU device
//! hands work to other threads, so most of the time here is theirs; the virtual device has none, and what is left is
//! the executor's own.

#![expect(unsafe_code, reason = "a counting global allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use offload_core::cpu::CpuDevice;
use offload_core::device::Device;
use offload_core::encoding::Encoding;
use offload_core::executor::{Costs, DeviceBudget, Offload};
use offload_core::model::{Model, PassKind};
use offload_core::testing::{Observed, Recorder, VirtualDevice, toy};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every method hands its arguments on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract, and `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps `realloc`'s contract, and `pointer` came from `System`.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BLOCKS: usize = 40;

fn model() -> Model {
    toy::model(&[[1, 32]; BLOCKS], &[Encoding::Q8_0], 1)
}

fn build<D: Device>(device: &D) -> Offload<D> {
    Offload::builder(device)
        .model(model())
        .remainder_below(0)
        .device_budget(DeviceBudget::Least)
        .build()
        .expect("the least budget does")
}

fn pass<D: Device>(offload: &mut Offload<D>, stream: &D::Stream) {
    let mut pass = offload
        .pass(PassKind::FULL, stream)
        .expect("the device works");
    while let Some(lease) = pass.acquire().expect("the device works") {
        black_box(&lease);
    }
}

fn bench<D: Device>(criterion: &mut Criterion, name: &str, device: &D, stream: &D::Stream) {
    let mut offload = build(device);
    for _ in 0..20 {
        pass(&mut offload, stream); // queues and tables reach their size
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..10 {
        pass(&mut offload, stream);
    }
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    println!("{name}: {allocations} allocations in 10 passes of {BLOCKS} visits");
    assert_eq!(
        allocations, 0,
        "passes from pinned sources allocate nothing"
    );
    let mut group = criterion.benchmark_group("executor");
    group.throughput(Throughput::Elements(BLOCKS as u64));
    group.bench_function(name, |bencher| bencher.iter(|| pass(&mut offload, stream)));
    group.finish();
}

fn count_calls() {
    let recorder = Recorder::new();
    let device = Observed::new(CpuDevice::new(), recorder.clone());
    let stream = device.inner().inline_stream();
    let mut offload = build(&device);
    for _ in 0..4 {
        pass(&mut offload, &stream);
    }
    let before = recorder.counts();
    pass(&mut offload, &stream);
    let after = recorder.counts();
    let per_visit = |before: u64, after: u64| (after - before) as f64 / BLOCKS as f64;
    println!(
        "device calls per streamed visit: {:.2} uploads, {:.2} decodes, {:.2} records, {:.2} waits; host waits per pass: {}",
        per_visit(before.uploads, after.uploads),
        per_visit(before.decodes, after.decodes),
        per_visit(before.records, after.records),
        per_visit(before.waits, after.waits),
        after.synchronizes - before.synchronizes,
    );
}

fn executor(criterion: &mut Criterion) {
    count_calls();
    let virtual_device = VirtualDevice::new(Costs::default());
    let virtual_stream = virtual_device.create_stream("compute").expect("arithmetic");
    bench(criterion, "virtual", &virtual_device, &virtual_stream);
    let cpu = CpuDevice::new();
    bench(criterion, "cpu/inline", &cpu, &cpu.inline_stream());
    let queued = cpu.create_stream("compute").expect("a thread can be made");
    bench(criterion, "cpu/queued", &cpu, &queued);
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(3)).sample_size(30);
    targets = executor
}
criterion_main!(benches);
