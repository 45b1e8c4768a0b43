//! Something to do: models in files, and passes whose bytes are compared.

use std::io::Write;
use std::sync::Arc;

use offload_core::encoding::Encoding;
use offload_core::executor::{ArrivalPolicy, Offload, OffloadError, StagingBuffers};
use offload_core::model::{Model, PassKind};
use offload_core::source::{Source, SourceFile};
use offload_core::swappable::{Swappable, TensorSpec};
use offload_core::testing::conformance::same_numbers;
use offload_core::testing::toy::{self, ToyBlock};
use offload_cuda::{CudaDevice, CudaStream};

use crate::engine::expected;

/// Buffers that are made in no time.
pub(crate) const LITTLE_STAGING: StagingBuffers = StagingBuffers {
    count: 4,
    bytes: 128 << 10,
};

/// Six blocks of two sizes with long uploads, some decoded and some as stored.
pub(crate) fn model() -> Model {
    let shapes: Vec<[u64; 2]> = (0..6)
        .map(|index| [128 + 128 * (index % 2), 1024])
        .collect();
    toy::model(&shapes, &[Encoding::Q8_0, Encoding::BF16, Encoding::Q6K], 9)
}

fn bytes(model: &Model) -> Vec<u8> {
    let mut bytes = Vec::new();
    for tensor in model.blocks().iter().flat_map(|block| block.tensors()) {
        let begin = bytes.len();
        bytes.resize(begin + usize::try_from(tensor.source().len()).unwrap(), 0);
        tensor.source().read(0, &mut bytes[begin..]).unwrap();
    }
    bytes
}

/// The same model, its tensors one after another in `all`.
fn within(all: &Source, model: &Model) -> Model {
    let mut begin = 0;
    let mut next = |tensor: &TensorSpec| {
        let range = begin..begin + tensor.source().len();
        begin = range.end;
        let source = all.slice(range);
        TensorSpec::new(tensor.name(), tensor.shape(), tensor.encoding(), source).unwrap()
    };
    let blocks = model.blocks().iter().map(|block| {
        let tensors = block.tensors().iter().map(&mut next).collect();
        Arc::new(ToyBlock::new(block.name(), tensors)) as Arc<dyn Swappable>
    });
    Model::new(blocks.collect()).unwrap()
}

/// The same model in a file, which is in the page cache.
pub(crate) fn in_file(model: &Model) -> (tempfile::NamedTempFile, Model) {
    let (mut file, bytes) = (tempfile::NamedTempFile::new().unwrap(), bytes(model));
    file.write_all(&bytes).unwrap();
    file.as_file().sync_all().unwrap();
    let source = Source::File {
        file: SourceFile::open(file.path()).unwrap(),
        range: 0..bytes.len() as u64,
    };
    let model = within(&source, model);
    (file, model)
}

/// The same model in one piece of page-locked memory.
pub(crate) fn in_pinned(device: &CudaDevice, model: &Model) -> Model {
    let bytes = bytes(model);
    let pinned = device.allocate_pinned(bytes.len(), |memory| memory.copy_from_slice(&bytes));
    within(&Source::from(pinned.unwrap()), model)
}

/// An error and what caused it.
pub(crate) fn text(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", text(source)),
        None => error.to_string(),
    }
}

/// One pass, each tensor read and compared where it is leased.
pub(crate) fn pass(
    device: &CudaDevice,
    model: &Model,
    offload: &mut Offload<CudaDevice>,
    stream: &CudaStream,
) -> Result<(), OffloadError> {
    let expected = expected(model, &ArrivalPolicy::default());
    let mut pass = offload.pass(PassKind::FULL, stream)?;
    let mut visits = 0;
    while let Some(lease) = pass.acquire()? {
        let names: Vec<String> = lease.tensor_names().map(str::to_owned).collect();
        for (name, (float, expected)) in names.iter().zip(&expected[lease.block_index()]) {
            let read = device.read(stream, &lease.tensor(name)?.view())?;
            let same = match float {
                Some(float) => same_numbers(*float, &read, expected),
                None => read == *expected,
            };
            assert!(same, "{name} of block {}", lease.block_index());
        }
        visits += 1;
    }
    assert_eq!(visits, model.blocks().len());
    Ok(())
}
