#![expect(
    unsafe_code,
    reason = "hands device memory to another crate under its own types"
)]
//! Streams and tensors as [cudarc]'s own types, for engines built on it.
//!
//! ```no_run
//! # use offload_core::executor::Offload;
//! # use offload_core::model::PassKind;
//! use offload_cuda::{CudaDevice, LeasedSlice, cudarc};
//!
//! # fn example(offload: &mut Offload<CudaDevice>) -> Result<(), Box<dyn std::error::Error>> {
//! let context = cudarc::driver::CudaContext::new(0)?;
//! let stream = context.new_stream()?;
//! let compute = offload.device().compute_on(&stream)?;
//! let mut pass = offload.pass(PassKind::FULL, &compute)?;
//! while let Some(lease) = pass.acquire()? {
//!     let bias = lease.tensor("bias")?;
//!     let bias = LeasedSlice::<f32>::new(&bias, &stream).ok_or("not f32")?;
//!     // Launch on `stream` with `&*bias`, a `CudaSlice<f32>`.
//! }
//! # Ok(())
//! # }
//! ```

use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::Arc;

use cudarc::driver::CudaSlice;
use offload_core::device::DeviceError;
use offload_core::encoding::Number;
use offload_core::executor::ArrivedTensor;

use crate::driver::Stream;
use crate::{CudaDevice, CudaStream};

impl CudaDevice {
    /// A stream of cudarc's, to compute on. It is kept alive.
    ///
    /// # Errors
    /// When it is of another device.
    pub fn compute_on(
        &self,
        stream: &Arc<cudarc::driver::CudaStream>,
    ) -> Result<CudaStream, DeviceError> {
        let (theirs, ours) = (stream.context().cu_device(), self.context().device());
        if theirs != ours {
            return Err(DeviceError::Failed {
                call: "compute_on",
                reason: format!("the stream is of device {theirs}, not of {ours}"),
            });
        }
        // SAFETY: cudarc's contexts are the devices' primary ones, as ours, and the stream lives as long as its handle
        // is kept; a stream that is destroyed still does what was submitted to it.
        let stream =
            unsafe { Stream::borrowed(self.context(), stream.cu_stream(), Some(stream.clone())) };
        Ok(CudaStream::new(stream))
    }
}

/// A leased tensor as a slice of cudarc's, which ends with the lease and frees nothing.
///
/// The pass's compute stream has the tensor; any other has to be told to wait by
/// [`Lease::wait_on`](offload_core::executor::Lease::wait_on). cudarc makes two events for each slice unless its context
/// was told not to track them (`CudaContext::disable_event_tracking`): this crate's fences do not need them.
#[derive(Debug)]
pub struct LeasedSlice<'l, T> {
    slice: ManuallyDrop<CudaSlice<T>>,
    lease: PhantomData<&'l T>,
}

impl<'l, T: Number> LeasedSlice<'l, T> {
    /// The numbers of `tensor`, if they arrived as `T`, for use on `stream`.
    #[must_use]
    pub fn new(
        tensor: &ArrivedTensor<'l, CudaDevice>,
        stream: &Arc<cudarc::driver::CudaStream>,
    ) -> Option<Self> {
        if tensor.encoding() != T::ENCODING {
            return None;
        }
        let len = usize::try_from(tensor.byte_len()).ok()? / size_of::<T>();
        // SAFETY: so many numbers lie there, in an arena that outlives the lease, and nobody writes to them before what
        // the pass's stream was given by then is done. The slice is leaked, never dropped: it frees nothing.
        let slice = unsafe { stream.upgrade_device_ptr(tensor.address(), len) };
        Some(Self {
            slice: ManuallyDrop::new(slice),
            lease: PhantomData,
        })
    }
}

impl<T> Deref for LeasedSlice<'_, T> {
    type Target = CudaSlice<T>;

    fn deref(&self) -> &CudaSlice<T> {
        &self.slice
    }
}

impl<T> Drop for LeasedSlice<'_, T> {
    fn drop(&mut self) {
        // SAFETY: taken once, here.
        let slice = unsafe { ManuallyDrop::take(&mut self.slice) };
        let _ = slice.leak();
    }
}
