//! A leased block's tensors as candle's. The only file that knows how bytes come from one to the other.
//!
//! candle's tensors on the CPU own their memory, so each is a copy of the lease's bytes: one tensor at a time, dropped
//! when its layer has computed. What a lease holds is never copied as a whole.

use candle_core::{D, Device, Tensor};
use offload_core::cpu::CpuDevice;
use offload_core::executor::Lease;

use crate::Result;

/// The weights of the block that a lease holds, and the layers that they make.
#[derive(Debug)]
pub struct Weights<'l> {
    lease: &'l Lease<'l, CpuDevice>,
}

impl<'l> Weights<'l> {
    /// Those of `lease`.
    #[must_use]
    pub fn new(lease: &'l Lease<'_, CpuDevice>) -> Self {
        Self { lease }
    }

    /// The tensor called `name` within the block.
    ///
    /// # Errors
    /// When the block has none, or it did not arrive as f32 where the host can look.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let arrived = self.lease.tensor(name)?;
        let floats: &[f32] = arrived.host_numbers().ok_or_else(|| {
            let (block, encoding) = (self.lease.name(), arrived.encoding());
            format!(
                "tensor {name} of {block} arrived as {encoding}, not as F32 on an inline stream"
            )
        })?;
        let shape: Vec<usize> = (arrived.shape().iter())
            .map(|&len| usize::try_from(len))
            .collect::<std::result::Result<_, _>>()?;
        Ok(Tensor::from_slice(floats, shape, &Device::Cpu)?)
    }

    /// `x W^T + b`, with weight and bias of the layer `name`, for each token of `x`, `[batch, tokens, width]`.
    ///
    /// A convolution whose stride is its kernel is such a layer too: its weight has more axes, for the same numbers.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), and when the widths do not fit.
    pub fn linear(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let weight = self.of_layer(name, "weight")?.reshape(((), width))?;
        let bias = self.of_layer(name, "bias")?;
        let x = x.reshape((batch * tokens, width))?;
        let y = x.matmul(&weight.t()?)?.broadcast_add(&bias)?;
        Ok(y.reshape((batch, tokens, ()))?)
    }

    /// A tensor of the layer `name`; of a group that is one layer, without a name.
    fn of_layer(&self, name: &str, leaf: &str) -> Result<Tensor> {
        match name {
            "" => self.tensor(leaf),
            _ => self.tensor(&format!("{name}.{leaf}")),
        }
    }

    /// Layer norm with weight and bias.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn layer_norm(&self, name: &str, x: &Tensor, eps: f64) -> Result<Tensor> {
        let weight = self.of_layer(name, "weight")?;
        let bias = self.of_layer(name, "bias")?;
        let x = normalised(x, eps)?;
        Ok(x.broadcast_mul(&weight)?.broadcast_add(&bias)?)
    }

    /// RMS norm with a weight, over the whole of the last axis.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn rms_norm(&self, name: &str, x: &Tensor, eps: f64) -> Result<Tensor> {
        let weight = self.of_layer(name, "weight")?;
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        let x = x.broadcast_div(&(mean + eps)?.sqrt()?)?;
        Ok(x.broadcast_mul(&weight)?)
    }
}

/// Layer norm without weight and bias.
///
/// # Errors
/// When candle fails.
pub fn normalised(x: &Tensor, eps: f64) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
    Ok(x.broadcast_div(&(variance + eps)?.sqrt()?)?)
}
