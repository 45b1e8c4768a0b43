//! In the steady state from pinned sources no memory is allocated, on any thread; and what is abandoned piles up nothing.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
#![expect(unsafe_code, reason = "a counting global allocator")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use offload_core::cpu::CpuDevice;
use offload_core::device::Device;
use offload_core::encoding::Encoding;
use offload_core::executor::StagingBuffers;
use offload_core::model::PassKind;
use offload_core::testing::toy;
use parking_lot::Mutex;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LIVE_BYTES: AtomicI64 = AtomicI64::new(0);

/// The counts are the process's: one test at a time.
static TURN: Mutex<()> = Mutex::new(());

fn live(bytes: usize, sign: i64) {
    LIVE_BYTES.fetch_add(sign * bytes as i64, Ordering::Relaxed);
}

// SAFETY: every method hands its arguments on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        live(layout.size(), 1);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        live(layout.size(), -1);
        // SAFETY: the caller keeps `dealloc`'s contract, and `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        live(layout.size(), -1);
        live(bytes, 1);
        // SAFETY: the caller keeps `realloc`'s contract, and `pointer` came from `System`.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn passes_from_pinned_sources_allocate_nothing() {
    let _turn = TURN.lock();
    let device = CpuDevice::new();
    for inline in [true, false] {
        let stream = match inline {
            true => device.inline_stream(),
            false => device.create_stream("compute").unwrap(),
        };
        let mut offload = support::least(&device, support::mixed_model())
            .build()
            .unwrap();
        assert!(
            offload.plan().kinds[0].wire_bytes_per_pass > 0,
            "something is streamed"
        );
        let mut run = |passes| {
            for _ in 0..passes {
                let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
                while let Some(lease) = pass.acquire().unwrap() {
                    assert!(lease.tensor("weight").unwrap().address() > 0);
                }
            }
        };
        run(20); // queues and tables reach their size
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        run(100);
        assert_eq!(
            ALLOCATIONS.load(Ordering::Relaxed) - before,
            0,
            "inline: {inline}"
        );
    }
}

/// Far more quickly than the reads of one pass could be worked off.
#[test]
fn passes_that_are_abandoned_at_once_pile_nothing_up() {
    let _turn = TURN.lock();
    let device = CpuDevice::new();
    let memory = toy::model(&[[64, 256]; 16], &[Encoding::BF16], 7);
    let mut kept = tempfile::NamedTempFile::new().unwrap();
    let mut offload = support::least(&device, support::in_file(&memory, &mut kept))
        .pin_files(false)
        .staging_buffers(StagingBuffers {
            count: 4,
            bytes: 16,
        })
        .build()
        .unwrap();
    let stream = device.create_stream("compute").unwrap();
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    let mut most = 0;
    for _ in 0..20_000 {
        drop(offload.pass(PassKind::FULL, &stream).unwrap());
        most = most.max(LIVE_BYTES.load(Ordering::Relaxed) - before);
    }
    // 20,000 passes would be hundreds of MiB; how many queue up while a machine is busy varies.
    assert!(most < 8 << 20, "{most} bytes more at the most");
}
