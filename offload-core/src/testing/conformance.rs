//! The [`Device`] contract as checks. A backend implements [`Harness`] and calls [`check_all`].
//!
//! Nothing here sleeps: a *gate* holds a stream until it is opened, so each order that the contract allows or forbids
//! is brought about on purpose. While a gate is closed nothing is allocated, and nothing is dropped on the thread that
//! opens it: a backend may wait there for what was submitted.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;

use crate::decode::{self, Float};
use crate::device::{DecodeEntry, DecodeTable, Device, DeviceError, Generation, PinnedUpload};
use crate::encoding::Encoding;
use crate::plan::{PLACE_ALIGN, Place};
use crate::source::Source;
use crate::testing::toy::random_bytes;

/// What the checks need besides the device itself.
pub trait Harness {
    /// The backend.
    type Device: Device;

    /// The device under test.
    fn device(&self) -> &Self::Device;

    /// Holds `stream` at this point until the returned function is called.
    fn gate(&self, stream: &<Self::Device as Device>::Stream) -> Box<dyn FnOnce() + Send>;

    /// The bytes of `range`, read by work on `stream`. Waits for that work.
    fn read(
        &self,
        stream: &<Self::Device as Device>::Stream,
        arena: &<Self::Device as Device>::Arena,
        range: Range<u64>,
    ) -> Vec<u8>;

    /// Handles of the device that are alive, of whatever kind.
    fn live_handles(&self) -> u64;
}

/// Runs every check.
///
/// # Panics
/// At the first check that fails.
pub fn check_all<H: Harness>(harness: &H) {
    let before = harness.live_handles();
    streams_are_ordered(harness);
    events_order_streams(harness);
    a_wait_takes_the_last_recording(harness);
    waiting_for_what_was_not_recorded_is_a_breach(harness);
    uploads_write_their_destination_only(harness);
    a_staging_buffer_cannot_be_refilled_under_a_copy(harness);
    sources_may_be_dropped_under_a_copy(harness);
    an_arena_may_be_dropped_under_a_copy(harness);
    a_program_may_be_dropped_under_its_decode(harness);
    arenas_are_aligned(harness);
    an_allocation_that_does_not_fit_is_an_error(harness);
    submission_does_not_wait(harness);
    decoding_equals_the_reference(harness);
    an_unknown_conversion_is_refused(harness);
    assert_eq!(
        harness.live_handles(),
        before,
        "every handle was given back"
    );
}

type Stream<H> = <<H as Harness>::Device as Device>::Stream;
type Arena<H> = <<H as Harness>::Device as Device>::Arena;
type Staging<H> = <<H as Harness>::Device as Device>::Staging;
type Event<H> = <<H as Harness>::Device as Device>::Event;

fn stream<H: Harness>(harness: &H, name: &str) -> Stream<H> {
    harness
        .device()
        .create_stream(name)
        .expect("a stream can be made")
}

fn event<H: Harness>(harness: &H) -> Event<H> {
    harness
        .device()
        .create_event()
        .expect("an event can be made")
}

fn arena<H: Harness>(harness: &H, bytes: u64) -> Arena<H> {
    harness
        .device()
        .allocate_arena(bytes)
        .expect("a small arena fits")
}

fn fill<H: Harness>(harness: &H, staging: &mut Staging<H>, bytes: &[u8]) {
    let buffer = harness.device().staging_bytes(staging).expect("copies end");
    buffer[..bytes.len()].copy_from_slice(bytes);
}

fn staging<H: Harness>(harness: &H, bytes: &[u8]) -> Staging<H> {
    let mut staging = harness
        .device()
        .allocate_staging(bytes.len())
        .expect("a small buffer fits");
    fill(harness, &mut staging, bytes);
    staging
}

/// Uploads through a buffer of its own, which is dropped at once: no gate may hold the stream.
fn upload<H: Harness>(
    harness: &H,
    stream: &Stream<H>,
    arena: &Arena<H>,
    offset: u64,
    bytes: &[u8],
) {
    let mut staging = staging(harness, bytes);
    upload_from(harness, stream, arena, offset, &mut staging, 0..bytes.len());
}

fn pin<H: Harness>(harness: &H, bytes: Vec<u8>) -> Option<<H::Device as Device>::Pinned> {
    let source = Source::from(Bytes::from(bytes));
    harness.device().pin(&source).expect("answered").pinned()
}

fn upload_from<H: Harness>(
    harness: &H,
    stream: &Stream<H>,
    arena: &Arena<H>,
    offset: u64,
    staging: &mut Staging<H>,
    source: Range<usize>,
) {
    let submitted = harness
        .device()
        .upload_staged(stream, arena, offset, staging, source);
    submitted.expect("the upload is submitted");
}

/// Drops `dropped` while a gate is closed, then opens it. A drop that waits for the gate is let through.
fn drop_and_open(dropped: impl Send, open: Box<dyn FnOnce() + Send>) {
    std::thread::scope(|scope| {
        let (done, is_done) = mpsc::channel();
        scope.spawn(move || {
            drop(dropped);
            let _ = done.send(());
        });
        let _ = is_done.recv_timeout(Duration::from_millis(100));
        open();
    });
}

fn streams_are_ordered<H: Harness>(harness: &H) {
    let (stream, arena) = (stream(harness, "order"), arena(harness, 4096));
    let mut buffers: Vec<_> = (1..=9)
        .map(|value| staging(harness, &[value; 4096]))
        .collect();
    let open = harness.gate(&stream);
    for buffer in &mut buffers {
        upload_from(harness, &stream, &arena, 0, buffer, 0..4096);
    }
    open();
    assert_eq!(
        harness.read(&stream, &arena, 0..4096),
        [9; 4096],
        "the last upload stands"
    );
}

fn events_order_streams<H: Harness>(harness: &H) {
    let device = harness.device();
    let (first, second) = (stream(harness, "first"), stream(harness, "second"));
    let (arena, event) = (arena(harness, 1024), event(harness));
    upload(harness, &first, &arena, 0, &[1; 1024]);
    let mut buffer = staging(harness, &[2; 1024]);
    let open = harness.gate(&first);
    upload_from(harness, &first, &arena, 0, &mut buffer, 0..1024);
    let generation = device.record(&first, &event).expect("recorded");
    device.wait(&second, &event, generation).expect("submitted");
    open();
    assert_eq!(
        harness.read(&second, &arena, 0..1024),
        [2; 1024],
        "the second stream waited for the first"
    );
    device.synchronize(&event, generation).expect("passed");
}

fn a_wait_takes_the_last_recording<H: Harness>(harness: &H) {
    let device = harness.device();
    let (first, second) = (stream(harness, "first"), stream(harness, "second"));
    let (arena, ready, read) = (arena(harness, 256), event(harness), event(harness));
    upload(harness, &first, &arena, 0, &[1; 256]);
    let generation = device.record(&first, &ready).expect("recorded");
    device.wait(&second, &ready, generation).expect("submitted");
    let done = device.record(&second, &read).expect("recorded");
    // The first stream goes on only behind the second: if the second waited for this later recording too, neither
    // would ever move.
    device.wait(&first, &read, done).expect("submitted");
    let later = device.record(&first, &ready).expect("recorded");
    assert!(later > generation, "recordings are counted");
    device.synchronize(&ready, later).expect("passed");
    // A wait for the earlier recording is met by the later one.
    device.wait(&second, &ready, generation).expect("submitted");
    assert_eq!(harness.read(&second, &arena, 0..256), [1; 256]);
}

fn waiting_for_what_was_not_recorded_is_a_breach<H: Harness>(harness: &H) {
    let device = harness.device();
    let (stream, event) = (stream(harness, "breach"), event(harness));
    let breaches = |generation| {
        let wait = || device.wait(&stream, &event, Generation(generation));
        catch_unwind(AssertUnwindSafe(wait)).is_err()
    };
    assert!(
        breaches(1),
        "waiting for an event that was never recorded panics"
    );
    device.record(&stream, &event).expect("recorded");
    assert!(
        breaches(2),
        "waiting for a generation that was never recorded panics"
    );
}

fn uploads_write_their_destination_only<H: Harness>(harness: &H) {
    let device = harness.device();
    let (stream, arena) = (stream(harness, "bounds"), arena(harness, 8192));
    let cases = [
        (0, 1),
        (255, 1),
        (256, 257),
        (1, 4095),
        (4096, 4096),
        (8191, 1),
        (8192, 0),
        (77, 0),
    ];
    for (offset, len) in cases {
        let bytes = random_bytes(offset ^ 5, len);
        let start = usize::try_from(offset).expect("small");
        let mut expected = vec![0xEE; 8192];
        expected[start..start + len].copy_from_slice(&bytes);
        upload(harness, &stream, &arena, 0, &[0xEE; 8192]);
        upload(harness, &stream, &arena, offset, &bytes);
        assert_eq!(
            harness.read(&stream, &arena, 0..8192),
            expected,
            "{len} bytes at {offset}"
        );
        // Not from the buffer's beginning.
        let mut buffer = staging(harness, &[&[0xEE; 3], &bytes[..]].concat());
        upload(harness, &stream, &arena, 0, &[0xEE; 8192]);
        upload_from(harness, &stream, &arena, offset, &mut buffer, 3..3 + len);
        let read = harness.read(&stream, &arena, 0..8192);
        assert_eq!(read, expected, "{len} bytes from 3 at {offset}");
        if let Some(pinned) = pin(harness, bytes) {
            upload(harness, &stream, &arena, 0, &[0xEE; 8192]);
            device
                .upload_pinned(&stream, &arena, offset, &pinned, 0..len)
                .expect("submitted");
            let read = harness.read(&stream, &arena, 0..8192);
            assert_eq!(read, expected, "{len} pinned bytes at {offset}");
            // The same in three, some of which are empty where bytes are few.
            upload(harness, &stream, &arena, 0, &[0xEE; 8192]);
            let cuts = [0, len / 3, len - len / 2, len];
            let uploads = cuts.windows(2).map(|cut| PinnedUpload {
                offset: offset + cut[0] as u64,
                pinned: &pinned,
                source: cut[0]..cut[1],
            });
            device
                .upload_all_pinned(&stream, &arena, uploads)
                .expect("submitted");
            let read = harness.read(&stream, &arena, 0..8192);
            assert_eq!(read, expected, "{len} pinned bytes at {offset}, in three");
        }
    }
}

fn a_staging_buffer_cannot_be_refilled_under_a_copy<H: Harness>(harness: &H) {
    let (stream, arena) = (stream(harness, "refill"), arena(harness, 512));
    let mut buffer = staging(harness, &[1; 256]);
    let open = harness.gate(&stream);
    upload_from(harness, &stream, &arena, 0, &mut buffer, 0..256);
    std::thread::scope(|scope| {
        // Refilling waits for the copy, and the copy for the gate.
        scope.spawn(open);
        fill(harness, &mut buffer, &[2; 256]);
    });
    upload_from(harness, &stream, &arena, 256, &mut buffer, 0..256);
    assert_eq!(
        harness.read(&stream, &arena, 0..256),
        [1; 256],
        "the first copy is untouched"
    );
    assert_eq!(harness.read(&stream, &arena, 256..512), [2; 256]);
}

fn sources_may_be_dropped_under_a_copy<H: Harness>(harness: &H) {
    let device = harness.device();
    let (stream, arena) = (stream(harness, "drop"), arena(harness, 2048));
    let mut buffers = [staging(harness, &[7; 1024]), staging(harness, &[8; 1024])];
    let pinned = pin(harness, vec![8; 1024]);
    let open = harness.gate(&stream);
    upload_from(harness, &stream, &arena, 0, &mut buffers[0], 0..1024);
    match &pinned {
        Some(pinned) => {
            let submitted = device.upload_pinned(&stream, &arena, 1024, pinned, 0..1024);
            submitted.expect("submitted");
        }
        None => upload_from(harness, &stream, &arena, 1024, &mut buffers[1], 0..1024),
    }
    drop_and_open((buffers, pinned), open);
    // Whatever is freed too early is likely to be handed out again here.
    let reused: Vec<_> = (0..8).map(|_| vec![9u8; 1024]).collect();
    let bytes = harness.read(&stream, &arena, 0..2048);
    assert!(
        bytes[..1024].iter().all(|&byte| byte == 7),
        "a dropped staging buffer stays until its copy is done"
    );
    assert!(
        bytes[1024..].iter().all(|&byte| byte == 8),
        "dropped pinned memory stays until its copy is done"
    );
    drop(reused);
}

fn an_arena_may_be_dropped_under_a_copy<H: Harness>(harness: &H) {
    let device = harness.device();
    let (stream, event) = (stream(harness, "free"), event(harness));
    let arena = arena(harness, 1 << 20);
    let mut buffer = staging(harness, &vec![3; 1 << 20]);
    let open = harness.gate(&stream);
    upload_from(harness, &stream, &arena, 0, &mut buffer, 0..1 << 20);
    let generation = device.record(&stream, &event).expect("recorded");
    drop_and_open(arena, open);
    device
        .synchronize(&event, generation)
        .expect("the stream goes on");
}

fn a_program_may_be_dropped_under_its_decode<H: Harness>(harness: &H) {
    let device = harness.device();
    let (stream, arena) = (stream(harness, "program"), arena(harness, 1024));
    upload(harness, &stream, &arena, 0, &[6; 256]);
    let program = device
        .prepare(&arena, &[copy_table(0, 512, 256)])
        .expect("copies are supported");
    let open = harness.gate(&stream);
    device
        .decode(&stream, &arena, &program, 0)
        .expect("submitted");
    drop_and_open(program, open);
    assert_eq!(harness.read(&stream, &arena, 512..768), [6; 256]);
}

/// A table that copies `bytes` from one offset to another.
fn copy_table(from: u64, to: u64, bytes: u64) -> DecodeTable {
    let place = |offset| Place { offset, bytes };
    DecodeTable {
        entries: vec![DecodeEntry {
            encoding: Encoding::F32,
            arrived: Encoding::F32,
            scale: None,
            encoded: place(from),
            place: place(to),
        }],
        staging: None,
    }
}

fn arenas_are_aligned<H: Harness>(harness: &H) {
    for bytes in [1, 255, 4096, 100_000] {
        let arena = arena(harness, bytes);
        let address = harness.device().address(&arena, 0);
        assert!(
            address.is_multiple_of(PLACE_ALIGN),
            "arena of {bytes} bytes at {address:#x}"
        );
        assert_eq!(harness.device().address(&arena, 1), address + 1);
    }
    let (stream, empty) = (stream(harness, "empty"), arena(harness, 0));
    upload(harness, &stream, &empty, 0, &[]);
    assert!(harness.read(&stream, &empty, 0..0).is_empty());
}

fn an_allocation_that_does_not_fit_is_an_error<H: Harness>(harness: &H) {
    const EXBIBYTE: u64 = 1 << 60;
    let device = harness.device();
    let (stream, kept) = (stream(harness, "memory"), arena(harness, 256));
    match device.allocate_arena(EXBIBYTE) {
        Err(DeviceError::OutOfMemory {
            requested_bytes, ..
        }) => {
            assert_eq!(requested_bytes, EXBIBYTE);
        }
        other => panic!("an exbibyte is refused, not {other:?}"),
    }
    for bytes in [1 << 60, usize::MAX] {
        match device.allocate_staging(bytes) {
            Err(DeviceError::OutOfMemory {
                requested_bytes, ..
            }) => assert_eq!(requested_bytes, bytes as u64),
            Err(other) => panic!("{bytes} bytes do not fit: {other}"),
            Ok(_) => panic!("{bytes} bytes of host memory are refused"),
        }
    }
    upload(harness, &stream, &kept, 0, &[4; 256]);
    assert_eq!(
        harness.read(&stream, &kept, 0..256),
        [4; 256],
        "everything else stays usable"
    );
}

fn submission_does_not_wait<H: Harness>(harness: &H) {
    let device = harness.device();
    let (held, other) = (stream(harness, "held"), stream(harness, "other"));
    let (arena, event) = (arena(harness, 1024), event(harness));
    let program = device
        .prepare(&arena, &[copy_table(0, 512, 256)])
        .expect("copies are supported");
    let mut buffers: Vec<_> = (0..16).map(|_| staging(harness, &[5; 256])).collect();
    let open = harness.gate(&held);
    let mut generation = Generation(0);
    for buffer in &mut buffers {
        // If any of these waited for the gate, this check would never end.
        upload_from(harness, &held, &arena, 0, buffer, 0..256);
        device
            .decode(&held, &arena, &program, 0)
            .expect("submitted");
        generation = device.record(&held, &event).expect("recorded");
        device.wait(&other, &event, generation).expect("submitted");
    }
    open();
    device.synchronize(&event, generation).expect("passed");
    assert_eq!(harness.read(&other, &arena, 512..768), [5; 256]);
}

/// Every conversion that the device offers, on several tensors in one table, at odd and even offsets.
fn decoding_equals_the_reference<H: Harness>(harness: &H) {
    let mut conversions = 0;
    for &encoding in Encoding::ALL {
        for float in [Float::F32, Float::F16, Float::BF16] {
            conversions += u32::from(conversion_equals_the_reference(harness, encoding, float));
        }
    }
    assert!(conversions >= 3, "a device at least copies floats");
}

fn conversion_equals_the_reference<H: Harness>(
    harness: &H,
    encoding: Encoding,
    float: Float,
) -> bool {
    const ARENA_BYTES: u64 = 1 << 20;
    let device = harness.device();
    let (stream, arena) = (stream(harness, "decode"), arena(harness, ARENA_BYTES));
    let (mut entries, mut expected, mut image) = (Vec::new(), Vec::new(), Vec::new());
    let mut place_offset = ARENA_BYTES / 4;
    for quant_blocks in [1, 2, 3, 37] {
        let len = quant_blocks * encoding.quant_block_bytes();
        let bytes = random_bytes(quant_blocks, usize::try_from(len).expect("small"));
        let elements = quant_blocks * encoding.quant_block_len();
        let place = Place {
            offset: place_offset,
            bytes: elements * float.bytes(),
        };
        place_offset = place.end().next_multiple_of(PLACE_ALIGN);
        let encoded = Place {
            offset: image.len() as u64,
            bytes: len,
        };
        entries.push(DecodeEntry {
            encoding,
            arrived: float.encoding(),
            scale: None,
            encoded,
            place,
        });
        let mut arrived = vec![0; usize::try_from(place.bytes).expect("small")];
        if encoding == float.encoding() {
            arrived.copy_from_slice(&bytes);
        } else if decode::is_supported(encoding) {
            decode::decode_by_definition(encoding, &bytes, float, &mut arrived).expect("supported");
        }
        expected.push((place, arrived));
        image.extend_from_slice(&bytes);
        image.push(0xAA); // the next tensor begins at another parity
    }
    let program = match device.prepare(
        &arena,
        &[DecodeTable {
            entries,
            staging: None,
        }],
    ) {
        Ok(program) => program,
        Err(DeviceError::Unsupported { .. }) => return false,
        Err(error) => panic!("prepare {encoding} to {float}: {error}"),
    };
    upload(harness, &stream, &arena, 0, &image);
    device
        .decode(&stream, &arena, &program, 0)
        .expect("submitted");
    for (place, expected) in expected {
        let arrived = harness.read(&stream, &arena, place.range());
        let same = if encoding == float.encoding() {
            arrived == expected
        } else {
            same_numbers(float, &arrived, &expected)
        };
        assert!(same, "{encoding} to {float} at {place:?}");
    }
    true
}

/// Equal bit for bit, NaN as a class.
#[must_use]
pub fn same_numbers(float: Float, left: &[u8], right: &[u8]) -> bool {
    let width = usize::try_from(float.bytes()).expect("small");
    left.len() == right.len()
        && left
            .chunks_exact(width)
            .zip(right.chunks_exact(width))
            .all(|(left, right)| left == right || (is_nan(float, left) && is_nan(float, right)))
}

fn is_nan(float: Float, bytes: &[u8]) -> bool {
    match (float, bytes) {
        (Float::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).is_nan(),
        (Float::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).is_nan(),
        (Float::BF16, &[a, b]) => half::bf16::from_le_bytes([a, b]).is_nan(),
        _ => false,
    }
}

fn an_unknown_conversion_is_refused<H: Harness>(harness: &H) {
    let arena = arena(harness, 4096);
    let entry = DecodeEntry {
        encoding: Encoding::I64,
        arrived: Encoding::F32,
        scale: None,
        encoded: Place {
            offset: 0,
            bytes: 8,
        },
        place: Place {
            offset: 256,
            bytes: 4,
        },
    };
    let table = DecodeTable {
        entries: vec![entry],
        staging: None,
    };
    let refused = harness.device().prepare(&arena, &[table]);
    assert!(
        matches!(refused, Err(DeviceError::Unsupported { .. })),
        "{refused:?}"
    );
}
