//! What can go wrong while offloading.

use crate::device::DeviceError;
use crate::plan::PlanError;
use crate::source::SourceError;

/// Why the executor could not go on.
///
/// Errors surface at the visit concerned and stick for the pass; the next pass tries again. Only a lost device is
/// final.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OffloadError {
    /// No plan fits.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The device refused something that concerns no block.
    #[error("device")]
    Device(#[from] DeviceError),
    /// The device refused something for a block.
    #[error("block {block}")]
    Block {
        /// The block.
        block: String,
        /// Why.
        #[source]
        source: DeviceError,
    },
    /// A block's bytes could not be read.
    #[error("block {block}")]
    Source {
        /// The block.
        block: String,
        /// Why.
        #[source]
        source: SourceError,
    },
    /// The model has no such pass kind.
    #[error("pass kind {kind} does not exist: the model has {kind_count}")]
    NoSuchKind {
        /// The index asked for.
        kind: u32,
        /// Kinds of the model.
        kind_count: usize,
    },
    /// The block has no such tensor.
    #[error("block {block} has no tensor {tensor}")]
    NoSuchTensor {
        /// The block.
        block: String,
        /// The name asked for.
        tensor: String,
    },
    /// The pass kind does not demand the tensor, so it was not brought.
    #[error("tensor {tensor} of block {block} is not demanded by pass kind {kind}")]
    NotDemanded {
        /// The block.
        block: String,
        /// The tensor.
        tensor: String,
        /// The kind.
        kind: String,
    },
    /// [`suspend`](super::Offload::suspend) was called and [`resume`](super::Offload::resume) was not.
    #[error("offloading is suspended")]
    Suspended,
    /// Host memory does not hold the least staging buffers, and device memory not what would stream through them.
    #[error(
        "host memory of {host_bytes} bytes is too small for staging buffers of {needed_bytes} bytes"
    )]
    HostMemory {
        /// Bytes of the buffers.
        needed_bytes: u64,
        /// Bytes that may be taken.
        host_bytes: u64,
        /// Why what would stream cannot stay on the device, if that would do.
        #[source]
        plan: Option<PlanError>,
    },
    /// A worker thread panicked.
    #[error("worker thread panicked: {message}")]
    WorkerPanicked {
        /// What it said.
        message: String,
    },
}

impl OffloadError {
    pub(super) fn of_block(block: &str, source: DeviceError) -> Self {
        Self::Block {
            block: block.to_owned(),
            source,
        }
    }

    /// Whether the device is gone for good.
    #[must_use]
    pub fn is_device_lost(&self) -> bool {
        matches!(
            self,
            Self::Device(DeviceError::Lost { .. })
                | Self::Block {
                    source: DeviceError::Lost { .. },
                    ..
                }
        )
    }
}
