//! What computes with the blocks that arrive: the computation of `matrix.rs`, each device in its way.

use std::error::Error;

use offload_core::cpu::{CpuDevice, CpuStream};
use offload_core::decode::Float;
use offload_core::device::Device;
use offload_core::executor::{ArrivedTensor, Costs};
use offload_core::swappable::Role;
use offload_core::testing::{Observed, Recorder};

use crate::matrix::Activation;

/// A device whose calls are counted.
pub(crate) type Recorded<D> = Observed<D, Recorder>;

/// How a device computes.
pub(crate) trait Engine {
    /// The device.
    type Device: Device;

    /// The device.
    fn device(&self) -> &Self::Device;

    /// The stream on which everything is computed.
    fn stream(&self) -> &<Self::Device as Device>::Stream;

    /// What is measured for the planner; `None` where times say nothing about speed.
    fn measure(&self) -> Result<Option<Costs>, Box<dyn Error>>;

    /// Begins a pass.
    fn begin(&mut self) -> Result<(), Box<dyn Error>>;

    /// Computes with a tensor, which has arrived on the stream.
    fn take(
        &mut self,
        role: Role,
        tensor: &ArrivedTensor<'_, Recorded<Self::Device>>,
    ) -> Result<(), Box<dyn Error>>;

    /// The digest of the pass. Waits for the device.
    fn finish(&mut self) -> Result<u64, Box<dyn Error>>;
}

/// A tensor that the activation is multiplied with: its floats, rows and columns. Everything else is only read.
pub(crate) fn as_matrix<D: Device>(
    role: Role,
    tensor: &ArrivedTensor<'_, D>,
) -> Option<(Float, u64, u64)> {
    let float = Float::from_encoding(tensor.encoding())?;
    let rows = tensor.shape().first().copied().filter(|&rows| rows > 0)?;
    let columns = tensor.byte_len() / float.bytes() / rows;
    (role == Role::Matrix && columns > 0).then_some((float, rows, columns))
}

/// Computes on the CPU device, on the calling thread.
#[derive(Debug)]
pub(crate) struct CpuEngine {
    device: CpuDevice,
    stream: CpuStream,
    activation: Activation,
}

impl CpuEngine {
    pub(crate) fn new() -> Self {
        let device = CpuDevice::new();
        Self {
            stream: device.inline_stream(),
            device,
            activation: Activation::new(),
        }
    }
}

impl Engine for CpuEngine {
    type Device = CpuDevice;

    fn device(&self) -> &CpuDevice {
        &self.device
    }

    fn stream(&self) -> &CpuStream {
        &self.stream
    }

    fn measure(&self) -> Result<Option<Costs>, Box<dyn Error>> {
        Ok(None)
    }

    fn begin(&mut self) -> Result<(), Box<dyn Error>> {
        self.activation = Activation::new();
        Ok(())
    }

    fn take(
        &mut self,
        role: Role,
        tensor: &ArrivedTensor<'_, Recorded<CpuDevice>>,
    ) -> Result<(), Box<dyn Error>> {
        let bytes = tensor.host_bytes().expect("inline streams give bytes");
        match as_matrix(role, tensor) {
            Some((float, rows, _)) => {
                let rows = usize::try_from(rows)?;
                self.activation.multiply(bytes, float, rows);
            }
            None => self.activation.read(bytes),
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<u64, Box<dyn Error>> {
        Ok(self.activation.digest())
    }
}
