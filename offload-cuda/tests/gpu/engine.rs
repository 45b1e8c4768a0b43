//! An engine that "computes" by copying every tensor it leases to memory of its own, and compares.

use std::sync::Arc;
use std::time::Duration;

use offload_core::decode::{self, Float};
use offload_core::device::Device;
use offload_core::executor::{ArrivalPolicy, Lease, Offload, OffloadError};
use offload_core::model::{Model, PassKind};
use offload_core::swappable::{Swappable, TensorSpec};
use offload_core::testing::conformance::same_numbers;
use offload_cuda::{CudaArena, CudaDevice, CudaStream, CudaView};

/// What a block's tensors should be: decoded to floats, or as stored.
pub(crate) type BlockBytes = Vec<(Option<Float>, Vec<u8>)>;

/// The bytes of every block, from its source and the reference decoder.
pub(crate) fn expected(model: &Model, policy: &ArrivalPolicy) -> Vec<BlockBytes> {
    let arrived = |tensor: &TensorSpec| {
        let mut encoded = vec![0; usize::try_from(tensor.source().len()).unwrap()];
        tensor.source().read(0, &mut encoded).unwrap();
        let encoding = policy.arrived(tensor);
        match Float::from_encoding(encoding) {
            Some(float) if encoding != tensor.encoding() => {
                let bytes = encoding.bytes_of(tensor.shape()).unwrap();
                let mut decoded = vec![0; usize::try_from(bytes).unwrap()];
                decode::decode(tensor.encoding(), &encoded, float, &mut decoded).unwrap();
                (Some(float), decoded)
            }
            _ => (None, encoded),
        }
    };
    let block = |block: &Arc<dyn Swappable>| block.tensors().iter().map(arrived).collect();
    model.blocks().iter().map(block).collect()
}

/// Device memory that the tensors of a pass are copied to.
pub(crate) struct Engine {
    device: CudaDevice,
    pub(crate) stream: CudaStream,
    results: CudaArena,
    expected: Vec<BlockBytes>,
    used: u64,
    /// Block, tensor, and where it was copied to.
    seen: Vec<(usize, usize, CudaView)>,
    /// Microseconds that the stream sleeps before it reads a block.
    pub(crate) delay_us: u64,
}

impl Engine {
    pub(crate) fn new(device: &CudaDevice, model: &Model, stream: CudaStream) -> Self {
        let expected = expected(model, &ArrivalPolicy::default());
        let bytes = expected
            .iter()
            .flatten()
            .map(|(_, bytes)| room(bytes.len()));
        // Twice: a block may be visited more than once.
        let results = device.allocate_arena(2 * bytes.sum::<u64>()).unwrap();
        Self {
            device: device.clone(),
            stream,
            results,
            expected,
            used: 0,
            seen: Vec::new(),
            delay_us: 0,
        }
    }

    /// Copies a leased block on a stream, behind what that stream has.
    pub(crate) fn compute(
        &mut self,
        lease: &Lease<'_, CudaDevice>,
        stream: &CudaStream,
    ) -> Result<(), OffloadError> {
        if self.delay_us > 0 {
            let delay = Duration::from_micros(self.delay_us);
            stream.launch_host(move || std::thread::sleep(delay))?;
        }
        let names = lease.tensor_names().enumerate();
        for (index, tensor) in names.filter_map(|(i, name)| Some((i, lease.tensor(name).ok()?))) {
            let range = self.used..self.used + tensor.byte_len();
            self.used += room(usize::try_from(tensor.byte_len()).unwrap());
            let to = self.device.view(&self.results, range);
            self.device.copy(stream, &to, &tensor.view())?;
            self.seen.push((lease.block_index(), index, to));
        }
        Ok(())
    }

    /// One whole pass.
    pub(crate) fn pass(
        &mut self,
        offload: &mut Offload<CudaDevice>,
        kind: PassKind,
    ) -> Result<(), OffloadError> {
        let stream = self.stream.clone();
        let mut pass = offload.pass(kind, &stream)?;
        while let Some(lease) = pass.acquire()? {
            self.compute(&lease, &stream)?;
        }
        Ok(())
    }

    /// What differs from what it should be, since the last check. Waits for the stream.
    pub(crate) fn differences(&mut self) -> Result<Vec<String>, OffloadError> {
        let mut different = Vec::new();
        for (block, tensor, view) in std::mem::take(&mut self.seen) {
            let read = self.device.read(&self.stream, &view)?;
            let (float, expected) = &self.expected[block][tensor];
            let same = match float {
                Some(float) => same_numbers(*float, &read, expected),
                None => read == *expected,
            };
            if !same {
                let wrong = read.iter().zip(expected).filter(|(a, b)| a != b).count();
                let len = expected.len();
                different.push(format!(
                    "{wrong} of {len} bytes of tensor {tensor} of block {block}"
                ));
            }
        }
        self.used = 0;
        Ok(different)
    }

    /// Blocks seen since the last check, in their order.
    pub(crate) fn blocks(&self) -> Vec<usize> {
        let mut blocks: Vec<usize> = self.seen.iter().map(|&(block, ..)| block).collect();
        blocks.dedup();
        blocks
    }

    #[track_caller]
    pub(crate) fn check(&mut self, blocks: &[usize]) {
        assert_eq!(self.blocks(), blocks, "visits come in order");
        assert_eq!(self.differences().unwrap(), Vec::<String>::new());
    }
}

fn room(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(256)
}
