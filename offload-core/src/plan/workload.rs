//! What the planner is told.

use serde::{Deserialize, Serialize};

use crate::model::Residency;

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
}

/// One visit of a pass kind.
#[derive(Debug, Clone, Copy, PartialEq)]
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
