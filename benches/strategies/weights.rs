//! The weights of the work: blocks of a WAN 14B transformer's matrices, seeded, in page-locked memory.

use std::sync::Arc;

use bytes::Bytes;
use offload_core::device::DeviceError;
use offload_core::encoding::Encoding;
use offload_core::model::Model;
use offload_core::source::Source;
use offload_core::swappable::{Swappable, TensorSpec};
use offload_core::testing::toy::ToyBlock;
use offload_cuda::CudaDevice;

const WIDTH: u64 = 5120;
const INNER: u64 = 13824;

/// Outputs by inputs of a block's matrices, and how Q4_K_M stores them: values and the second half of the
/// feed-forward net with more bits.
pub(crate) const MATRICES: [(u64, u64, Encoding); 10] = [
    (WIDTH, WIDTH, Encoding::Q4K),
    (WIDTH, WIDTH, Encoding::Q4K),
    (WIDTH, WIDTH, Encoding::Q6K),
    (WIDTH, WIDTH, Encoding::Q4K),
    (WIDTH, WIDTH, Encoding::Q4K),
    (WIDTH, WIDTH, Encoding::Q4K),
    (WIDTH, WIDTH, Encoding::Q6K),
    (WIDTH, WIDTH, Encoding::Q4K),
    (INNER, WIDTH, Encoding::Q4K),
    (WIDTH, INNER, Encoding::Q6K),
];

/// How the weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Storage {
    /// As they are computed with.
    Bf16,
    /// Mixed 4 and 6 bit K-quants.
    #[value(name = "q4_k_m")]
    Q4KM,
}

impl Storage {
    pub(crate) fn encoding(self, matrix: usize) -> Encoding {
        match self {
            Self::Bf16 => Encoding::BF16,
            Self::Q4KM => MATRICES[matrix].2,
        }
    }

    fn bytes(self, matrix: usize) -> usize {
        let (outputs, inputs, _) = MATRICES[matrix];
        let bytes = self.encoding(matrix).bytes_of(&[outputs, inputs]);
        usize::try_from(bytes.expect("whole quant blocks")).expect("fits")
    }

    pub(crate) fn block_bytes(self) -> u64 {
        (0..MATRICES.len())
            .map(|matrix| self.bytes(matrix) as u64)
            .sum()
    }
}

/// One page-locked buffer a block.
pub(crate) fn blocks(
    device: &CudaDevice,
    storage: Storage,
    count: usize,
) -> Result<Vec<Bytes>, DeviceError> {
    let bytes = usize::try_from(storage.block_bytes()).expect("fits");
    (0..count)
        .map(|block| device.allocate_pinned(bytes, |memory| fill(memory, storage, block as u64)))
        .collect()
}

/// The model over them.
pub(crate) fn model(storage: Storage, blocks: &[Bytes]) -> Model {
    let blocks = blocks.iter().enumerate().map(|(index, bytes)| {
        let mut start = 0;
        let memory = Arc::new(bytes.clone());
        let tensors = (0..MATRICES.len()).map(|matrix| {
            let (outputs, inputs, _) = MATRICES[matrix];
            let end = start + storage.bytes(matrix) as u64;
            let range = std::mem::replace(&mut start, end)..end;
            let source = Source::Memory {
                memory: Arc::clone(&memory),
                range,
            };
            let name = format!("matrix.{matrix}");
            TensorSpec::new(name, [outputs, inputs], storage.encoding(matrix), source)
                .expect("as many bytes as the shape needs")
        });
        Arc::new(ToyBlock::new(format!("blocks.{index}"), tensors.collect())) as Arc<dyn Swappable>
    });
    Model::new(blocks.collect()).expect("names differ")
}

/// Fills a block with numbers of about 0.01 and random digits.
fn fill(memory: &mut [u8], storage: Storage, seed: u64) {
    let mut rest = memory;
    let parts = std::thread::available_parallelism().map_or(1, usize::from);
    for matrix in 0..MATRICES.len() {
        let (part, behind) = rest.split_at_mut(storage.bytes(matrix));
        rest = behind;
        let encoding = storage.encoding(matrix);
        let quant_block = usize::try_from(encoding.quant_block_bytes()).expect("small");
        let chunk = (part.len() / quant_block).div_ceil(parts) * quant_block;
        std::thread::scope(|scope| {
            for (index, chunk) in part.chunks_mut(chunk).enumerate() {
                let seed = (seed * 16 + matrix as u64) * 1024 + index as u64;
                scope.spawn(move || {
                    digits(chunk, seed);
                    chunk
                        .chunks_exact_mut(quant_block)
                        .for_each(|block| scale(block, encoding));
                });
            }
        });
    }
}

/// Random bytes (xorshift64).
pub(crate) fn digits(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}

/// Makes random digits small numbers: sets the exponent, or the scales of a quant block.
pub(crate) fn scale(block: &mut [u8], encoding: Encoding) {
    /// 2^-12 as f16.
    const SMALL: [u8; 2] = 0x0C00u16.to_le_bytes();
    match encoding {
        // The exponent of 2^-7; sign and digits stay.
        Encoding::BF16 => {
            let number = u16::from_le_bytes([block[0], block[1]]) & 0x807F | 0x3C00;
            block.copy_from_slice(&number.to_le_bytes());
        }
        // Scale and minimum stand first.
        Encoding::Q4K => {
            block[..2].copy_from_slice(&SMALL);
            block[2..4].copy_from_slice(&SMALL);
        }
        // The scale stands last.
        Encoding::Q6K => block[208..].copy_from_slice(&SMALL),
        other => unreachable!("{other} is not among the matrices"),
    }
}
