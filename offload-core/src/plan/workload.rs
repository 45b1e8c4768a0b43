//! What the planner is told.

use serde::{Deserialize, Serialize};

use super::PlanError;
use crate::model::Residency;

/// The most bytes that all blocks may have together, and the most over the wire in a pass of a kind. Far above any
/// machine, and so far below `u64::MAX` that sums of a few such numbers cannot overflow.
const MAX_BYTES: u128 = 1 << 60;

/// The most seconds that the operations of a pass may take together; sums over many passes stay exact enough.
pub(super) const MAX_SECONDS: f64 = 1e12;

/// Where encoded bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Page-locked host memory, or what the device reads as fast.
    Pinned,
    /// Pageable host memory: copied through staging buffers.
    Host,
    /// A file: read into staging buffers.
    Disk,
}

/// What a block weighs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockLoad {
    /// Its name.
    pub name: String,
    /// Whether it may leave the device.
    pub residency: Residency,
    /// Where its encoded bytes come from.
    pub tier: Tier,
    /// Arrived bytes of tensors too small to stream; resident whatever the form.
    pub remainder_bytes: u64,
    /// Arrived bytes of the rest: its resident size, and the size of its place in the window. 0: nothing to stream.
    pub place_bytes: u64,
    /// Encoded bytes that wait in staging when it is streamed; 0 if it is uploaded straight into its place.
    pub staging_bytes: u64,
    /// Encoded bytes of the parts in which it may be staged and decoded, one after another; none if only as a whole.
    pub parts: Vec<u64>,
}

/// One visit of a pass kind.
#[derive(Debug, Clone, PartialEq)]
pub struct VisitLoad {
    /// Index of the block.
    pub block: usize,
    /// Bytes over the wire if it is streamed.
    pub wire_bytes: u64,
    /// Uploads those bytes take.
    pub uploads: u32,
    /// Seconds the engine computes with it, measured or assumed; 0 if nothing is known.
    pub compute_s: f64,
    /// Seconds its decoding takes.
    pub decode_s: f64,
    /// The same by the block's parts, which bring no more than the whole; what lies between them is not brought.
    pub parts: Vec<PartLoad>,
}

/// One part of a block, at one visit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PartLoad {
    /// Bytes over the wire.
    pub wire_bytes: u64,
    /// Uploads those bytes take.
    pub uploads: u32,
    /// Seconds its decoding takes.
    pub decode_s: f64,
}

/// One pass kind.
#[derive(Debug, Clone, PartialEq)]
pub struct KindLoad {
    /// Its name.
    pub name: String,
    /// How many of the passes are of this kind, relative to the other kinds. Greater than 0.
    pub share: f64,
    /// Visits in order.
    pub visits: Vec<VisitLoad>,
}

/// A model as the planner sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Blocks.
    pub blocks: Vec<BlockLoad>,
    /// Pass kinds; at least one.
    pub kinds: Vec<KindLoad>,
    /// Least staging needed to load residents and remainders; 0 if none of them needs decoding.
    pub load_staging_bytes: u64,
}

/// How fast bytes move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Host to device from pinned memory, bytes a second.
    pub wire_bytes_per_s: f64,
    /// Seconds each upload takes on top of its bytes.
    pub upload_latency_s: f64,
    /// Pageable memory through staging buffers, bytes a second.
    pub host_bytes_per_s: f64,
    /// Files through staging buffers, bytes a second.
    pub disk_bytes_per_s: f64,
}

/// Device memory that a plan may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// So many bytes.
    Bytes(u64),
    /// As few as will do.
    Least,
}

impl Workload {
    /// Whether the planner can count on what it is told.
    pub(super) fn check(&self) -> Result<(), PlanError> {
        let bad = |reason: String| Err(PlanError::BadWorkload { reason });
        if self.blocks.is_empty() {
            return bad("there is no block".to_owned());
        }
        if self.kinds.is_empty() {
            return bad("there is no pass kind".to_owned());
        }
        let bytes = self
            .blocks
            .iter()
            .flat_map(|block| {
                let fixed = [
                    block.remainder_bytes,
                    block.place_bytes,
                    block.staging_bytes,
                ];
                fixed.into_iter().chain(block.parts.iter().copied())
            })
            .chain([self.load_staging_bytes])
            .map(u128::from)
            .sum::<u128>();
        for block in &self.blocks {
            let parts = block.parts.iter().copied().map(u128::from).sum::<u128>();
            if parts > u128::from(block.staging_bytes) {
                return bad(format!(
                    "parts of block {} come to {parts} bytes, it is staged in {}",
                    block.name, block.staging_bytes
                ));
            }
        }
        if bytes > MAX_BYTES {
            return bad(format!(
                "{bytes} bytes in all, more than the {MAX_BYTES} that can be planned"
            ));
        }
        self.kinds
            .iter()
            .try_for_each(|kind| self.check_kind(kind))?;
        let shares = self.kinds.iter().map(|kind| kind.share).sum::<f64>();
        if !shares.is_finite() {
            return bad(format!("shares of the pass kinds sum to {shares}"));
        }
        Ok(())
    }

    fn check_kind(&self, kind: &KindLoad) -> Result<(), PlanError> {
        let name = &kind.name;
        let bad = |reason: String| Err(PlanError::BadWorkload { reason });
        if !(kind.share > 0.0 && kind.share.is_finite()) {
            return bad(format!("pass kind {name} has the share {}", kind.share));
        }
        if u32::try_from(kind.visits.len()).is_err() {
            return bad(format!("pass kind {name} has {} visits", kind.visits.len()));
        }
        let mut wire = 0_u128;
        for (index, visit) in kind.visits.iter().enumerate() {
            let Some(block) = self.blocks.get(visit.block) else {
                return bad(format!(
                    "visit {index} of pass kind {name} is to block {} of {}",
                    visit.block,
                    self.blocks.len()
                ));
            };
            let parts = visit.parts.iter();
            let parts = parts.map(|part| ("decodes a part", part.decode_s));
            let whole = [("computes", visit.compute_s), ("decodes", visit.decode_s)];
            for (what, seconds) in whole.into_iter().chain(parts) {
                if !(0.0..=MAX_SECONDS).contains(&seconds) {
                    return bad(format!(
                        "visit {index} of pass kind {name} {what} for {seconds} seconds"
                    ));
                }
            }
            let room = match block.staging_bytes {
                0 => block.place_bytes,
                staging => staging,
            };
            if block.place_bytes > 0 && visit.wire_bytes > room {
                return bad(format!(
                    "visit {index} of pass kind {name} brings {} bytes, block {} has room for {room}",
                    visit.wire_bytes, block.name
                ));
            }
            if visit.parts.len() != block.parts.len() {
                return bad(format!(
                    "visit {index} of pass kind {name} has {} parts, block {} has {}",
                    visit.parts.len(),
                    block.name,
                    block.parts.len()
                ));
            }
            for (part, &room) in visit.parts.iter().zip(&block.parts) {
                if room == 0 || part.wire_bytes > room {
                    return bad(format!(
                        "visit {index} of pass kind {name} brings {} bytes, a part of block {} has room for {room}",
                        part.wire_bytes, block.name
                    ));
                }
            }
            let in_parts = visit.parts.iter().map(|part| u128::from(part.wire_bytes));
            let in_parts = in_parts.sum::<u128>();
            if in_parts > u128::from(visit.wire_bytes) {
                return bad(format!(
                    "visit {index} of pass kind {name} brings {} bytes, but its parts {in_parts}",
                    visit.wire_bytes
                ));
            }
            wire += u128::from(visit.wire_bytes);
        }
        if wire > MAX_BYTES {
            return bad(format!(
                "pass kind {name} brings {wire} bytes, more than the {MAX_BYTES} that can be planned"
            ));
        }
        Ok(())
    }
}

impl Rates {
    /// Whether the planner can divide by what it is told.
    pub(super) fn check(&self) -> Result<(), PlanError> {
        let rates = [
            ("wire", self.wire_bytes_per_s),
            ("host", self.host_bytes_per_s),
            ("disk", self.disk_bytes_per_s),
        ];
        for (what, rate) in rates {
            if !(rate > 0.0 && rate.is_finite()) {
                return Err(PlanError::BadWorkload {
                    reason: format!("{what} rate of {rate} bytes a second"),
                });
            }
        }
        if !(0.0..=MAX_SECONDS).contains(&self.upload_latency_s) {
            return Err(PlanError::BadWorkload {
                reason: format!("upload latency of {} seconds", self.upload_latency_s),
            });
        }
        Ok(())
    }

    /// Seconds of one visit's uploads.
    pub(super) fn upload_s(&self, tier: Tier, wire_bytes: u64, uploads: u32) -> f64 {
        let rate = match tier {
            Tier::Pinned => self.wire_bytes_per_s,
            Tier::Host => self.wire_bytes_per_s.min(self.host_bytes_per_s),
            Tier::Disk => self.wire_bytes_per_s.min(self.disk_bytes_per_s),
        };
        f64::from(uploads) * self.upload_latency_s + wire_bytes as f64 / rate
    }
}
