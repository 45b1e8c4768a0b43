//! The ladder of host memory: each rung brings the right bytes, says that it was taken, and why one was not.

use std::io::Write;
use std::sync::Arc;

use offload_core::device::{Device, DeviceError, Pinning, Rung};
use offload_core::source::{Source, SourceFile};
use offload_core::testing::toy::random_bytes;
use offload_cuda::CudaDevice;

/// Some pieces, and a few bytes of another.
const BYTES: usize = (512 << 20) + 4097;

/// A file in the page cache.
fn file(bytes: &[u8]) -> (tempfile::NamedTempFile, Arc<SourceFile>) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file.as_file().sync_all().unwrap();
    let source = SourceFile::open(file.path()).unwrap();
    (file, source)
}

fn pin(device: &CudaDevice, file: &Arc<SourceFile>) -> Pinning<offload_cuda::CudaPinned> {
    // Neither end at a page.
    let source = Source::File {
        file: Arc::clone(file),
        range: 1001..BYTES as u64 - 3,
    };
    device.pin(&source).unwrap()
}

fn uploads(device: &CudaDevice, pinned: &offload_cuda::CudaPinned, expected: &[u8]) {
    let stream = device.create_stream("upload").unwrap();
    let arena = device.allocate_arena(expected.len() as u64).unwrap();
    device
        .upload_pinned(&stream, &arena, 0, pinned, 0..expected.len())
        .unwrap();
    let view = device.view(&arena, 0..expected.len() as u64);
    assert!(device.read(&stream, &view).unwrap() == expected, "bytes");
    // A part across a cut.
    let cut = (256 << 20) - 1001;
    let part = cut - (1 << 20)..cut + (1 << 20);
    device
        .upload_pinned(&stream, &arena, 0, pinned, part.clone())
        .unwrap();
    let view = device.view(&arena, 0..part.len() as u64);
    assert!(
        device.read(&stream, &view).unwrap() == expected[part],
        "part"
    );
}

#[test]
fn a_mapping_is_locked_in_place_and_given_back() {
    let Some(device) = crate::device(|builder| builder.copy_files(false)) else {
        return;
    };
    let bytes = random_bytes(1, BYTES);
    let (_kept, file) = file(&bytes);
    let pinned = match pin(&device, &file) {
        Pinning::Pinned { pinned, rung, .. } => {
            assert_eq!(rung, Rung::Mapping);
            pinned
        }
        Pinning::Later { reason } | Pinning::Staged { reason } => {
            println!("SKIPPED: this machine does not lock mappings: {reason}");
            return;
        }
    };
    // Whole pieces but the last, whose few bytes are copied.
    let locked = device.pinned_bytes();
    assert!(locked.abs_diff(BYTES as u64) < 4096, "{locked}");
    // So short a copy the driver would make with the CPU.
    let arena = device.allocate_arena(64).unwrap();
    let stream = device.create_stream("short").unwrap();
    let short = device.upload_pinned(&stream, &arena, 0, &pinned, 500..550);
    assert!(
        matches!(short, Err(DeviceError::Unsupported { .. })),
        "{short:?}"
    );
    drop((arena, stream));
    uploads(&device, &pinned, &bytes[1001..BYTES - 3]);
    // A second handle shares the mapping.
    let again = pin(&device, &file).pinned().unwrap();
    drop(pinned);
    uploads(&device, &again, &bytes[1001..BYTES - 3]);
    // Truncated under us: what is locked stays what it was.
    _kept.as_file().set_len(0).unwrap();
    uploads(&device, &again, &bytes[1001..BYTES - 3]);
    drop(again);
    assert_eq!((device.pinned_bytes(), device.live_handles()), (0, 0));
}

#[test]
fn a_file_is_copied_where_its_mapping_is_not_locked() {
    let Some(device) = crate::device(|builder| builder.lock_mappings(false)) else {
        return;
    };
    let bytes = random_bytes(2, BYTES);
    let (_kept, file) = file(&bytes);
    let Pinning::Pinned { pinned, rung, note } = pin(&device, &file) else {
        panic!("copied");
    };
    assert_eq!(rung, Rung::Copy);
    assert_eq!(
        note.as_deref(),
        Some("locking mappings is switched off; it was copied")
    );
    uploads(&device, &pinned, &bytes[1001..BYTES - 3]);
    drop(pinned);
    assert_eq!((device.pinned_bytes(), device.live_handles()), (0, 0));
}

#[test]
fn the_budget_for_pinned_memory_is_kept() {
    let Some(device) = crate::device(|builder| builder.pinned_budget(400 << 20)) else {
        return;
    };
    let (_kept, file) = file(&random_bytes(3, BYTES));
    let Pinning::Later { reason } = pin(&device, &file) else {
        panic!("512 MiB do not fit 400 MiB");
    };
    assert!(reason.contains("budget for pinned memory"), "{reason}");
    assert!(device.pinned_bytes() <= 400 << 20);
}

#[test]
fn switched_off_rungs_say_so() {
    let off =
        |builder: offload_cuda::CudaDeviceBuilder| builder.lock_mappings(false).copy_files(false);
    let Some(device) = crate::device(off) else {
        return;
    };
    let (_kept, file) = file(&random_bytes(4, BYTES));
    let Pinning::Staged { reason } = pin(&device, &file) else {
        panic!("nothing is left but staging");
    };
    assert!(reason.contains("switched off"), "{reason}");
}
