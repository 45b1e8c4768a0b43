//! The CPU device is held to the `Device` contract.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::ops::Range;
use std::sync::mpsc;

use offload_core::cpu::{CpuArena, CpuDevice, CpuStream};
use offload_core::device::Device;
use offload_core::testing::conformance::{self, Harness};
use offload_core::testing::decoding;

struct Cpu(CpuDevice);

impl Harness for Cpu {
    type Device = CpuDevice;

    fn device(&self) -> &CpuDevice {
        &self.0
    }

    fn gate(&self, stream: &CpuStream) -> Box<dyn FnOnce() + Send> {
        let (open, opened) = mpsc::channel();
        stream.launch(move || opened.recv().expect("gates are opened"));
        Box::new(move || open.send(()).expect("the stream waits at the gate"))
    }

    fn read(&self, stream: &CpuStream, arena: &CpuArena, range: Range<u64>) -> Vec<u8> {
        let (answer, answered) = mpsc::channel();
        let view = self.0.view(arena, range);
        stream.launch(move || view.read(|bytes| answer.send(bytes.to_vec()).expect("awaited")));
        answered.recv().expect("the stream reads")
    }

    fn live_handles(&self) -> u64 {
        let live = self.0.live();
        let all = [
            live.arenas,
            live.staging,
            live.streams,
            live.events,
            live.pinned,
        ];
        all.iter()
            .sum::<i64>()
            .try_into()
            .expect("counts are not negative")
    }
}

#[test]
fn the_cpu_device_keeps_the_contract() {
    conformance::check_all(&Cpu(CpuDevice::new()));
}

#[test]
fn the_cpu_device_keeps_the_contract_with_poison_jitter_and_no_pinning() {
    let device = CpuDevice::builder()
        .poison(true)
        .jitter(7)
        .pins(false)
        .build();
    conformance::check_all(&Cpu(device));
}

#[test]
fn the_cpu_device_decodes_by_definition_at_random() {
    let device = Cpu(CpuDevice::new());
    let offered = decoding::offered_conversions(device.device());
    assert_eq!(offered, decoding::all_conversions());
    decoding::decode_at_random(&device, 1, 40);
}

#[test]
fn overlapping_accesses_break_the_device_and_name_both() {
    let device = CpuDevice::new();
    let stream = device.create_stream("breach").unwrap();
    let arena = device.allocate_arena(1024).unwrap();
    let inline = device.inline_stream();
    let hold = device.begin_read(&inline, &arena, 0..512).unwrap();
    let mut staging = device.allocate_staging(256).unwrap();
    device.staging_bytes(&mut staging).unwrap().fill(1);
    device
        .upload_staged(&stream, &arena, 500, &mut staging, 256)
        .unwrap();
    // The buffer never comes back: the stream met the breach.
    let error = device.staging_bytes(&mut staging).unwrap_err().to_string();
    assert!(
        error.contains("contract: Upload of bytes 500..756 overlaps Lease of bytes 0..512"),
        "{error}"
    );
    drop(hold);
}

#[test]
fn a_hold_gives_bytes_on_inline_streams_only() {
    let device = CpuDevice::new();
    let arena = device.allocate_arena(512).unwrap();
    let (inline, queued) = (
        device.inline_stream(),
        device.create_stream("queued").unwrap(),
    );
    let hold = device.begin_read(&inline, &arena, 0..512).unwrap();
    assert_eq!(hold.bytes(256..512).map(<[u8]>::len), Some(256));
    let other = device.begin_read(&queued, &arena, 0..512).unwrap();
    assert_eq!(other.bytes(0..1), None);
    device.end_read(&queued, other, true).unwrap();
    device.end_read(&inline, hold, true).unwrap();
}
