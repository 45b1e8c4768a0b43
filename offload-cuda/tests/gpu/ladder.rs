//! The ladder of host memory: each rung brings the right bytes, says that it was taken, and why one was not.

use std::io::Write;
use std::sync::Arc;

use offload_core::device::{Device, DeviceError, Pinning, Rung};
use offload_core::encoding::Encoding;
use offload_core::executor::{DeviceBudget, Offload};
use offload_core::model::{Model, PassKind};
use offload_core::source::{Source, SourceFile};
use offload_core::swappable::{Swappable, TensorSpec};
use offload_core::testing::toy::{self, ToyBlock, random_bytes};
use offload_cuda::CudaDevice;

use crate::engine::Engine;

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

/// A model in a file, behind some bytes that are no weights, so that nothing begins at a page.
fn in_file(model: &Model) -> (tempfile::NamedTempFile, Model) {
    let mut bytes = vec![7; 1001];
    let mut at = Vec::new();
    for tensor in model.blocks().iter().flat_map(|block| block.tensors()) {
        let begin = bytes.len();
        bytes.resize(begin + usize::try_from(tensor.source().len()).unwrap(), 0);
        tensor.source().read(0, &mut bytes[begin..]).unwrap();
        at.push(begin as u64..bytes.len() as u64);
    }
    let (kept, file) = file(&bytes);
    let mut at = at.into_iter();
    let blocks = model.blocks().iter().map(|block| {
        let tensors = block.tensors().iter().map(|tensor| {
            let (file, range) = (Arc::clone(&file), at.next().unwrap());
            let source = Source::File { file, range };
            TensorSpec::new(tensor.name(), tensor.shape(), tensor.encoding(), source).unwrap()
        });
        Arc::new(ToyBlock::new(block.name(), tensors.collect())) as Arc<dyn Swappable>
    });
    let model = Model::new(blocks.collect()).unwrap();
    (kept, model)
}

/// Blocks longer than a piece, each over a cut: of the first pass some goes through staging buffers and some is read where
/// it was locked meanwhile, at last all.
#[test]
fn a_file_arrives_identical_while_it_is_locked_piece_by_piece() {
    for mappings in [true, false] {
        let Some(device) = crate::device(|builder| builder.lock_mappings(mappings).poison(true))
        else {
            return;
        };
        let (_kept, model) = in_file(&toy::model(&[[10_240, 2048]; 6], &[Encoding::BF16], 5));
        let compute = device.create_stream("compute").unwrap();
        let mut engine = Engine::new(&device, &model, compute);
        let mut offload = Offload::builder(&device)
            .model(model)
            .device_budget(DeviceBudget::Least)
            .build()
            .unwrap();
        let mut left = Vec::new();
        while left.last() != Some(&0) {
            engine.pass(&mut offload, PassKind::FULL).unwrap();
            engine.check(&[0, 1, 2, 3, 4, 5]);
            let host = offload.report().unwrap().host;
            left.push(host.staged_bytes);
            assert!(left.len() < 100, "{host:?}");
        }
        // The pass that changes over, and what the caller submits by itself.
        for _ in 0..3 {
            engine.pass(&mut offload, PassKind::FULL).unwrap();
            engine.check(&[0, 1, 2, 3, 4, 5]);
        }
        let host = offload.report().unwrap().host;
        println!("left to stage after each pass: {left:?}; {host:?}");
        assert!(mappings || host.mapped_bytes == 0, "{host:?}");
    }
}
