//! A pass: one walk over a visit list, as an engine sees it.

use std::fmt;

use crate::device::Device;
use crate::executor::Offload;
use crate::executor::error::OffloadError;
use crate::executor::lease::Lease;
use crate::executor::walk::Next;
use crate::model::PassKind;

/// One walk over the visits of a pass kind. Dropping it before the last visit abandons the rest.
///
/// It hands out one lease at a time; a second one does not compile:
///
/// ```compile_fail,E0499
/// # use offload_core::{cpu::CpuDevice, executor::{OffloadError, Pass}};
/// fn two(mut pass: Pass<'_, CpuDevice>) -> Result<(), OffloadError> {
///     let first = pass.acquire()?;
///     let second = pass.acquire()?;
///     drop((first, second));
///     Ok(())
/// }
/// ```
///
/// No lease outlives its pass:
///
/// ```compile_fail,E0505
/// # use offload_core::{cpu::CpuDevice, executor::{OffloadError, Pass}};
/// fn outlive(mut pass: Pass<'_, CpuDevice>) -> Result<(), OffloadError> {
///     let lease = pass.acquire()?;
///     drop(pass);
///     drop(lease);
///     Ok(())
/// }
/// ```
///
/// One after the other is what is meant:
///
/// ```
/// # use offload_core::{cpu::CpuDevice, executor::{OffloadError, Pass}};
/// fn walk(mut pass: Pass<'_, CpuDevice>) -> Result<(), OffloadError> {
///     let first = pass.acquire()?;
///     drop(first);
///     let second = pass.acquire()?;
///     drop(second);
///     drop(pass);
///     Ok(())
/// }
/// ```
#[must_use]
pub struct Pass<'a, D: Device> {
    offload: &'a mut Offload<D>,
}

impl<'a, D: Device> Pass<'a, D> {
    pub(super) fn new(offload: &'a mut Offload<D>) -> Self {
        Self { offload }
    }

    /// The lease of the next visit's block, or `None` after the last.
    ///
    /// The compute stream waits for the block; the host does not, except for a worker's submission. A lease that was
    /// forgotten is released first.
    ///
    /// # Errors
    /// When the block could not be brought. The error sticks for the pass; the next pass tries again.
    pub fn acquire(&mut self) -> Result<Option<Lease<'_, D>>, OffloadError> {
        Ok(if self.offload.acquire()? {
            Some(Lease::new(self.offload))
        } else {
            None
        })
    }

    /// Passes over the next visit; false after the last.
    ///
    /// Its bytes are moved all the same: a visit list without it (a pass kind) saves them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn skip(&mut self) -> Result<bool, OffloadError> {
        self.offload.skip()
    }

    /// Says that a pass of `kind` will follow, so that its first blocks are brought while this one ends. Without it,
    /// the same kind is expected. A wrong hint costs an exposed copy, never wrong bytes.
    ///
    /// # Errors
    /// When the model has no such kind; nothing changes then.
    pub fn then(&mut self, kind: PassKind) -> Result<(), OffloadError> {
        self.offload.progress.next = Next::Kind(self.offload.kind_index(kind)?);
        Ok(())
    }

    /// Says that no pass follows, so that nothing is brought for it.
    pub fn last(&mut self) {
        self.offload.progress.next = Next::Nothing;
    }

    /// Visits of this pass, closed ones included.
    #[must_use]
    pub fn visit_count(&self) -> usize {
        self.offload.transfer.kinds[self.offload.progress.kind]
            .blocks
            .len()
    }
}

impl<D: Device> Drop for Pass<'_, D> {
    fn drop(&mut self) {
        self.offload.close_pass();
    }
}

impl<D: Device> fmt::Debug for Pass<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = &self.offload.progress;
        f.debug_struct("Pass")
            .field("pass", &progress.pass)
            .field("kind", &progress.kind)
            .field("next_visit", &progress.next_visit)
            .finish_non_exhaustive()
    }
}
