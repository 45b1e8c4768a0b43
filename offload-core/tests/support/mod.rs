//! Engines for tests: they "compute" by hashing every tensor of every block they lease.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::hash::{DefaultHasher, Hasher};
use std::io::Write;
use std::sync::Arc;

use offload_core::cpu::CpuStream;
use offload_core::cpu::CpuView;
use offload_core::decode::{self, Float};
use offload_core::device::Device;
use offload_core::encoding::Encoding;
use offload_core::executor::{
    ArrivalPolicy, DeviceBudget, Lease, Offload, OffloadBuilder, OffloadError, Pass,
};
use offload_core::model::{Model, PassKind};
use offload_core::source::{Source, SourceFile};
use offload_core::swappable::{Swappable, TensorSpec};
use offload_core::testing::toy::{self, ToyBlock};
use parking_lot::Mutex;

/// What a block's tensors hash to, in their order.
pub(crate) type BlockHash = Vec<u64>;

pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// The hashes of every block, from its source and the reference decoder, without any device.
pub(crate) fn expected(model: &Model, policy: &ArrivalPolicy) -> Vec<BlockHash> {
    let tensor_hash = |tensor: &offload_core::swappable::TensorSpec| {
        let mut encoded = vec![0; usize::try_from(tensor.source().len()).expect("small")];
        tensor.source().read(0, &mut encoded).expect("readable");
        let arrived = policy.arrived(tensor);
        match Float::from_encoding(arrived) {
            Some(float) if arrived != tensor.encoding() => {
                let bytes = arrived.bytes_of(tensor.shape()).expect("fits");
                let mut decoded = vec![0; usize::try_from(bytes).expect("small")];
                decode::decode(tensor.encoding(), &encoded, float, &mut decoded)
                    .expect("supported");
                hash(&decoded)
            }
            _ => hash(&encoded),
        }
    };
    let block_hash = |block: &Arc<dyn offload_core::swappable::Swappable>| {
        block.tensors().iter().map(tensor_hash).collect()
    };
    model.blocks().iter().map(block_hash).collect()
}

/// Hashes collected by work on a stream: visit and tensor hashes.
pub(crate) type Seen = Arc<Mutex<Vec<(usize, BlockHash)>>>;

/// Submits the hashing of a leased block to `stream`.
pub(crate) fn compute<D: Device<View = CpuView>>(
    lease: &Lease<'_, D>,
    stream: &CpuStream,
    seen: &Seen,
) {
    let views: Vec<CpuView> = lease
        .tensor_names()
        .filter_map(|name| lease.tensor(name).ok())
        .map(|tensor| tensor.view())
        .collect();
    let (seen, block) = (Arc::clone(seen), lease.block_index());
    stream.launch(move || {
        let hashes = views.iter().map(|view| view.read(hash)).collect();
        seen.lock().push((block, hashes));
    });
}

/// Walks the rest of a pass.
pub(crate) fn finish<D>(
    pass: &mut Pass<'_, D>,
    stream: &CpuStream,
    seen: &Seen,
) -> Result<(), OffloadError>
where
    D: Device<Stream = CpuStream, View = CpuView>,
{
    while let Some(lease) = pass.acquire()? {
        compute(&lease, stream, seen);
    }
    Ok(())
}

/// One whole pass; the hashes are complete once the stream was waited for.
pub(crate) fn pass<D>(
    offload: &mut Offload<D>,
    kind: PassKind,
    stream: &CpuStream,
    seen: &Seen,
) -> Result<(), OffloadError>
where
    D: Device<Stream = CpuStream, View = CpuView>,
{
    finish(&mut offload.pass(kind, stream)?, stream, seen)
}

/// Checks what was seen against what every visit should have been.
pub(crate) fn check(seen: &Seen, expected: &[BlockHash], visits: &[usize]) {
    let seen = std::mem::take(&mut *seen.lock());
    let blocks: Vec<_> = seen.iter().map(|(block, _)| *block).collect();
    assert_eq!(blocks, visits, "visits come in order");
    for (block, hashes) in seen {
        assert_eq!(hashes, expected[block], "block {block}");
    }
}

/// Encodings with a decoder and without one, so that some blocks are direct.
pub(crate) const MIXED: [Encoding; 4] =
    [Encoding::Q8_0, Encoding::BF16, Encoding::Q4K, Encoding::Q6K];

/// Ten blocks of three sizes.
pub(crate) fn mixed_model() -> Model {
    let shapes: Vec<[u64; 2]> = (0..10).map(|index| [8 + 8 * (index % 3), 256]).collect();
    toy::model(&shapes, &MIXED, 1)
}

/// Bytes that `model` takes with everything resident.
pub(crate) fn resident_bytes<D: Device>(device: &D, model: &Model) -> u64 {
    let offload = Offload::builder(device)
        .model(model.clone())
        .remainder_below(64)
        .device_budget(offload_core::executor::DeviceBudget::Bytes(1 << 40))
        .build()
        .expect("fits");
    offload.plan().arena_bytes
}

/// The model's tensors written to a file one after another, and the model that reads them from there.
pub(crate) fn in_file(model: &Model, file: &mut tempfile::NamedTempFile) -> Model {
    let mut offset = 0;
    let mut ranges = Vec::new();
    for tensor in model.blocks().iter().flat_map(|block| block.tensors()) {
        let mut bytes = vec![0; usize::try_from(tensor.source().len()).unwrap()];
        tensor.source().read(0, &mut bytes).unwrap();
        file.write_all(&bytes).unwrap();
        ranges.push(offset..offset + bytes.len() as u64);
        offset += bytes.len() as u64;
    }
    file.flush().unwrap();
    let source = SourceFile::open(file.path()).unwrap();
    let mut ranges = ranges.into_iter();
    let blocks = model.blocks().iter().map(|block| {
        let tensors = block.tensors().iter().map(|tensor| {
            let range = ranges.next().expect("one each");
            let source = Source::File {
                file: Arc::clone(&source),
                range,
            };
            TensorSpec::new(tensor.name(), tensor.shape(), tensor.encoding(), source).unwrap()
        });
        Arc::new(ToyBlock::new(block.name(), tensors.collect())) as Arc<dyn Swappable>
    });
    Model::new(blocks.collect()).unwrap()
}

/// Streams what may be streamed, all but the smallest tensors.
pub(crate) fn least<D: Device>(device: &D, model: Model) -> OffloadBuilder<D> {
    Offload::builder(device)
        .model(model)
        .remainder_below(64)
        .device_budget(DeviceBudget::Least)
}
