//! A lease: a block on the device, and its tensors as they arrived.

use std::fmt;

use crate::device::Device;
use crate::encoding::{Encoding, Number};
use crate::executor::Offload;
use crate::executor::error::OffloadError;
use crate::executor::layout::Location;
use crate::executor::walk::OpenLease;
use crate::plan::{Stage, VisitPlan};
use crate::swappable::Role;

/// The right to compute with a block. Dropping it marks, on the compute stream, that the block was read.
#[must_use]
pub struct Lease<'p, D: Device> {
    offload: &'p mut Offload<D>,
}

impl<'p, D: Device> Lease<'p, D> {
    /// The lease of the visit that `offload` has open.
    pub(super) fn new(offload: &'p mut Offload<D>) -> Self {
        Self { offload }
    }

    fn open(&self) -> &OpenLease<D> {
        self.offload
            .progress
            .lease
            .as_ref()
            .expect("a lease is open while it lives")
    }

    /// Which visit of the pass this is.
    #[must_use]
    pub fn visit(&self) -> usize {
        self.open().visit
    }

    /// Index of the block in the model.
    #[must_use]
    pub fn block_index(&self) -> usize {
        self.visit_plan().block
    }

    /// The block's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.offload.model.blocks()[self.block_index()].name()
    }

    /// Whether the block was brought over the wire for this visit.
    #[must_use]
    pub fn is_streamed(&self) -> bool {
        self.visit_plan().is_uploaded()
    }

    fn visit_plan(&self) -> &VisitPlan {
        &self.offload.plan.kinds[self.offload.progress.kind].visits[self.visit()]
    }

    /// Names of the block's tensors, in their order.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.offload.model.blocks()[self.block_index()]
            .tensors()
            .iter()
            .map(|tensor| tensor.name())
    }

    /// Names and roles of the block's tensors, in their order.
    pub fn tensor_roles(&self) -> impl Iterator<Item = (&str, Role)> {
        let tensors = self.offload.model.blocks()[self.block_index()].tensors();
        tensors.iter().map(|tensor| (tensor.name(), tensor.role()))
    }

    /// A tensor as it arrived.
    ///
    /// # Errors
    /// When the block has no such tensor, or the pass kind does not demand it.
    pub fn tensor(&self, name: &str) -> Result<ArrivedTensor<'_, D>, OffloadError> {
        let block = self.block_index();
        let of_block = || self.name().to_owned();
        let Some(&position) = self.offload.tensors[block].get(name) else {
            return Err(OffloadError::NoSuchTensor {
                block: of_block(),
                tensor: name.to_owned(),
            });
        };
        let kind = &self.offload.model.kinds()[self.offload.progress.kind];
        if !kind.demands(block, position) {
            return Err(OffloadError::NotDemanded {
                block: of_block(),
                tensor: name.to_owned(),
                kind: kind.name().to_owned(),
            });
        }
        Ok(ArrivedTensor {
            lease: self,
            block,
            position,
        })
    }

    /// Has `stream` wait for the block, for engines that compute on several streams.
    ///
    /// # Errors
    /// When the device fails.
    pub fn wait_on(&self, stream: &D::Stream) -> Result<(), OffloadError> {
        let transfer = &self.offload.transfer;
        let progress = &self.offload.progress;
        let of_block = |error| OffloadError::of_block(self.name(), error);
        let visit = self.visit();
        if let Some(program) = transfer.program(progress.kind, visit) {
            let turn = progress.turn();
            transfer
                .fence(stream, program.after(Stage::Compute, 0), turn)
                .map_err(of_block)?;
            if program.at_use {
                let compute = progress.stream.as_ref().expect("a lease has a stream");
                transfer
                    .wait_for_decode(stream, compute, turn, visit)
                    .map_err(of_block)?;
            }
        }
        Ok(())
    }

    /// Counts the work that `stream` has when the lease drops as reading the block. The pass's own stream then waits
    /// for it too.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read_on(&mut self, stream: &D::Stream) -> Result<(), OffloadError> {
        let progress = &mut self.offload.progress;
        if progress.reader_events.len() == progress.readers.len() {
            progress
                .reader_events
                .push(self.offload.transfer.device.create_event()?);
        }
        progress.readers.push(stream.clone());
        Ok(())
    }
}

impl<D: Device> Drop for Lease<'_, D> {
    fn drop(&mut self) {
        self.offload.close_lease();
    }
}

impl<D: Device> fmt::Debug for Lease<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("block", &self.name())
            .field("visit", &self.visit())
            .finish()
    }
}

/// A tensor on the device, for as long as its lease lives.
#[derive(Debug)]
pub struct ArrivedTensor<'l, D: Device> {
    lease: &'l Lease<'l, D>,
    block: usize,
    position: usize,
}

impl<'l, D: Device> ArrivedTensor<'l, D> {
    /// Its dimensions, slowest axis first.
    #[must_use]
    pub fn shape(&self) -> &'l [u64] {
        let lease: &'l Lease<'l, D> = self.lease;
        lease.offload.model.blocks()[self.block].tensors()[self.position].shape()
    }

    /// How its numbers are encoded now.
    #[must_use]
    pub fn encoding(&self) -> Encoding {
        self.lease.offload.layouts[self.block].tensors[self.position].arrived
    }

    /// Bytes it takes.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.lease.offload.layouts[self.block].tensors[self.position].arrived_bytes
    }

    /// Its offset in the arena, and which of the lease's holds covers it.
    fn locate(&self) -> (u64, usize) {
        let offload = &self.lease.offload;
        let plan = &offload.plan.blocks[self.block];
        match offload.layouts[self.block].tensors[self.position].location {
            Location::Remainder(offset) => (
                plan.remainder
                    .expect("the plan places every remainder")
                    .offset
                    + offset,
                1,
            ),
            Location::Place(offset) => {
                let place = self.lease.visit_plan().place.or(plan.resident);
                (place.map_or(0, |place| place.offset) + offset, 0)
            }
        }
    }

    /// Its device address. It is the caller's to stop using when the lease ends.
    #[must_use]
    pub fn address(&self) -> u64 {
        let offload = &self.lease.offload;
        let arena = &offload
            .loaded
            .as_ref()
            .expect("leases live while loaded")
            .arena;
        offload.transfer.device.address(arena, self.locate().0)
    }

    /// Names it to code that runs on the device.
    #[must_use]
    pub fn view(&self) -> D::View {
        let offload = &self.lease.offload;
        let arena = &offload
            .loaded
            .as_ref()
            .expect("leases live while loaded")
            .arena;
        let (offset, _) = self.locate();
        offload
            .transfer
            .device
            .view(arena, offset..offset + self.byte_len())
    }

    /// Its bytes, where the host can look at them: on the CPU device, over a stream that runs on the caller's thread.
    #[must_use]
    pub fn host_bytes(&self) -> Option<&'l [u8]> {
        let lease: &'l Lease<'l, D> = self.lease;
        if self.byte_len() == 0 {
            return Some(&[]);
        }
        let (offset, hold) = self.locate();
        let hold = lease.open().holds[hold].as_ref()?;
        lease
            .offload
            .transfer
            .device
            .host_bytes(hold, offset..offset + self.byte_len())
    }

    /// Its numbers, where the host can look at [its bytes](Self::host_bytes) and they arrived as `T`.
    ///
    /// ```no_run
    /// # use offload_core::{cpu::CpuDevice, executor::Lease};
    /// # fn example(lease: &Lease<'_, CpuDevice>) -> Result<(), Box<dyn std::error::Error>> {
    /// let bias: &[f32] = lease.tensor("bias")?.host_numbers().ok_or("not f32")?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn host_numbers<T: Number>(&self) -> Option<&'l [T]> {
        if self.encoding() != T::ENCODING || cfg!(target_endian = "big") {
            return None;
        }
        bytemuck::try_cast_slice(self.host_bytes()?).ok()
    }
}
