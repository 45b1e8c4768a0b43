//! What is done where memory is short: a smaller arena, smaller staging buffers, more that stays on the device.
//!
//! Each step is taken when the one before was refused, is logged, and stands in the report. The last refusal is the error.

use std::fmt;

use serde::Serialize;

use crate::device::DeviceError;
use crate::executor::error::OffloadError;
use crate::executor::readers::StagingBuffers;
use crate::plan::{Budget, PlanError};

/// Smaller buffers than this are not tried: copies of so few bytes do not reach the rate of the wire, and blocks are
/// better kept on the device.
const LEAST_BUFFER_BYTES: usize = 64 << 10;

/// Streaming through fewer buffers than this is not tried: one is read into while the other is copied.
const LEAST_BUFFERS: usize = 2;

/// Memory that was short when an [`Offload`](super::Offload) was built, and what was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Shortage {
    /// The device refused an arena, and a smaller one was planned.
    Arena {
        /// Bytes of the arena refused.
        refused_bytes: u64,
        /// Bytes that the device said were free.
        free_bytes: u64,
        /// The budget that was planned for instead.
        budget_bytes: u64,
    },
    /// Staging buffers took more host memory than there was, and smaller or fewer were tried.
    Staging {
        /// Bytes of all buffers that were too many.
        refused_bytes: u64,
        /// Bytes of all buffers that were tried instead.
        tried_bytes: u64,
        /// Bytes of host memory that might be taken, if that was known.
        host_bytes: Option<u64>,
    },
    /// Not even the least staging buffers were to be had, and what would stream through them stays on the device.
    Resident {
        /// Bytes of the least buffers.
        refused_bytes: u64,
        /// Bytes of host memory that might be taken, if that was known.
        host_bytes: Option<u64>,
    },
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arena {
                refused_bytes,
                free_bytes,
                budget_bytes,
            } => write!(
                f,
                "arena of {refused_bytes} bytes refused, {free_bytes} free: planned for {budget_bytes}"
            ),
            Self::Staging {
                refused_bytes,
                tried_bytes,
                ..
            } => write!(
                f,
                "no host memory for staging of {refused_bytes} bytes: {tried_bytes} tried"
            ),
            Self::Resident { refused_bytes, .. } => write!(
                f,
                "no host memory for staging of {refused_bytes} bytes: what needs it stays on the device"
            ),
        }
    }
}

/// Why an attempt to build failed.
#[derive(Debug)]
pub(super) enum Refused {
    /// The device refused the arena, or the little that is needed beside it.
    Arena {
        arena_bytes: u64,
        /// Of the least arena for which there is a plan.
        least_bytes: u64,
        /// Bytes asked for, the arena's included.
        requested_bytes: u64,
        /// Bytes that were free before.
        free_bytes: u64,
    },
    /// The staging buffers do not fit the host budget, or were refused.
    Staging {
        /// Whether blocks stream through them; else what stays is loaded, no more.
        streams: bool,
        error: OffloadError,
    },
    /// No plan fits.
    Plan(PlanError),
    /// Not a matter of memory.
    Other(OffloadError),
}

impl<E: Into<OffloadError>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

impl Refused {
    /// What it means that something failed which allocates staging buffers.
    pub(super) fn of_staging(error: OffloadError, buffers: StagingBuffers, streams: bool) -> Self {
        match error {
            OffloadError::Device(DeviceError::OutOfMemory {
                requested_bytes, ..
            }) if requested_bytes == buffers.bytes as u64 => Self::Staging { streams, error },
            error => Self::Other(error),
        }
    }
}

/// What is asked for: what the builder was told, less what was refused.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) budget: Budget,
    pub(super) buffers: StagingBuffers,
    /// Host memory that may be taken, if that is known.
    host_bytes: Option<u64>,
    /// Why what would stream through staging buffers has to stay on the device, if it has.
    keep: Option<OffloadError>,
    pub(super) shortages: Vec<Shortage>,
}

impl Ask {
    pub(super) fn new(budget: Budget, buffers: StagingBuffers, host_bytes: Option<u64>) -> Self {
        let buffers = StagingBuffers {
            count: buffers.count.max(1),
            bytes: buffers.bytes.max(1),
        };
        Self {
            budget,
            buffers,
            host_bytes,
            keep: None,
            shortages: Vec::new(),
        }
    }

    /// Whether what would stream through staging buffers stays on the device.
    pub(super) fn keeps(&self) -> bool {
        self.keep.is_some()
    }

    /// Refuses buffers that host memory does not hold.
    pub(super) fn check_buffers(&self, streams: bool) -> Result<(), Refused> {
        let StagingBuffers { count, bytes } = self.buffers;
        let needed_bytes = total(count, bytes);
        match self.host_bytes {
            Some(host_bytes) if needed_bytes > host_bytes => {
                let error = OffloadError::HostMemory {
                    needed_bytes,
                    host_bytes,
                    plan: None,
                };
                Err(Refused::Staging { streams, error })
            }
            _ => Ok(()),
        }
    }

    /// Asks for less.
    ///
    /// # Errors
    /// The refusal, if less would not do.
    pub(super) fn lower(&mut self, refused: Refused) -> Result<(), OffloadError> {
        match refused {
            Refused::Arena {
                arena_bytes,
                least_bytes,
                requested_bytes,
                free_bytes,
            } => self.lower_arena(arena_bytes, least_bytes, requested_bytes, free_bytes),
            Refused::Staging { streams, error } => self.lower_buffers(streams, error),
            Refused::Plan(source) => Err(match self.keep.take() {
                Some(OffloadError::HostMemory {
                    needed_bytes,
                    host_bytes,
                    ..
                }) => OffloadError::HostMemory {
                    needed_bytes,
                    host_bytes,
                    plan: Some(source),
                },
                Some(refused) => refused,
                None => source.into(),
            }),
            Refused::Other(error) => Err(error),
        }
    }

    fn lower_arena(
        &mut self,
        refused_bytes: u64,
        least_bytes: u64,
        requested_bytes: u64,
        free_bytes: u64,
    ) -> Result<(), OffloadError> {
        if refused_bytes <= least_bytes {
            return Err(OffloadError::Device(DeviceError::OutOfMemory {
                requested_bytes,
                free_bytes,
            }));
        }
        let beside = requested_bytes.saturating_sub(refused_bytes);
        let smaller = if free_bytes < requested_bytes {
            free_bytes.saturating_sub(beside)
        } else {
            // It lies in pieces: what is free need not be had at once.
            refused_bytes - (refused_bytes / 16).max(1)
        };
        let budget_bytes = smaller.max(least_bytes);
        self.budget = Budget::Bytes(budget_bytes);
        self.shortages.push(Shortage::Arena {
            refused_bytes,
            free_bytes,
            budget_bytes,
        });
        tracing::warn!(
            refused_bytes,
            free_bytes,
            budget_bytes,
            least_bytes,
            "the device refused the arena: a smaller one is planned"
        );
        Ok(())
    }

    fn lower_buffers(&mut self, streams: bool, error: OffloadError) -> Result<(), OffloadError> {
        let StagingBuffers { count, bytes } = self.buffers;
        let (refused_bytes, host_bytes) = (total(count, bytes), self.host_bytes);
        let least_count = if streams { LEAST_BUFFERS } else { 1 };
        if bytes > LEAST_BUFFER_BYTES {
            self.buffers.bytes = (bytes / 2).max(LEAST_BUFFER_BYTES);
        } else if count > least_count {
            self.buffers.count = (count / 2).max(least_count);
        } else if streams && self.keep.is_none() {
            self.keep = Some(error);
            self.shortages.push(Shortage::Resident {
                refused_bytes,
                host_bytes,
            });
            tracing::warn!(
                refused_bytes,
                host_bytes,
                "no host memory for staging buffers: what would stream through them stays on the device"
            );
            return Ok(());
        } else {
            return Err(self.keep.take().unwrap_or(error));
        }
        let tried_bytes = total(self.buffers.count, self.buffers.bytes);
        self.shortages.push(Shortage::Staging {
            refused_bytes,
            tried_bytes,
            host_bytes,
        });
        tracing::warn!(
            refused_bytes,
            tried_bytes,
            host_bytes,
            "no host memory for the staging buffers: smaller or fewer are tried"
        );
        Ok(())
    }
}

fn total(count: usize, bytes: usize) -> u64 {
    (count as u64).saturating_mul(bytes as u64)
}
