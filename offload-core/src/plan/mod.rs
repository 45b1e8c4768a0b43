//! The planner: what is resident, packed or streamed, where it lies, in which order it moves, and how far that is from
//! the best there can be.
//!
//! Pure: no I/O, thread, clock or device. The same inputs give the same plan. It moves nothing and measures nothing:
//! the executor does the first, whoever fills in [`Workload`] and [`Rates`] the second.
//!
//! # How a plan comes about
//!
//! 1. `workload`: inputs are checked once, here; later arithmetic cannot overflow.
//! 2. `cost`: bytes become seconds for each operation of each visit.
//! 3. `least`: the smallest arena for which any plan exists.
//! 4. `placement`: the form of each block, and how deep window and staging are. Every candidate passes through one
//!    function, `Problem::evaluate`, which does what the finished plan does:
//!    `window` gives each streamed visit a place, `schedule` the operations and their fences, `simulate` the seconds.
//! 5. `certificate`: lower bounds with their proofs, so that the distance of the plan from the best possible is known.
//!
//! # Streams
//!
//! Uploads run in visit order on one queue, decodes on a second, computes on the third; decodes at use run on the third
//! as well. What one queue orders needs no fence; everything else is a [`Dependency`]. Passes follow one another without a
//! gap: the head of the next pass is fetched while the tail of this one computes, into the same offsets, so a fence may
//! point into the pass before. Fences never reach further back than that. The executor sees to the rest: before the first
//! upload of pass `p` the upload and decode streams wait for the end of pass `p - 2`, and before the first decode at use of
//! a packed block the compute stream waits for uploads of skipped visits and given up passes.
//!
//! A skipped visit computes nothing, but its compute event is still recorded in order and what was uploaded for it is
//! still decoded. So the latest reader stands for all readers before it, and the writers need a fence of their own.

#![deny(unsafe_code)]

mod certificate;
mod cost;
mod exchange;
mod json;
mod last_use;
mod least;
mod live;
mod placement;
mod problem;
mod schedule;
mod simulate;
mod spread;
mod table;
mod window;
mod workload;

#[cfg(test)]
mod exhaustive;

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use live::LiveWindow;
pub use workload::{BlockLoad, Budget, KindLoad, PartLoad, Rates, Tier, VisitLoad, Workload};

/// Every planned range begins at a multiple of this many bytes.
pub const PLACE_ALIGN: u64 = 256;

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The budget is below the least that would do.
    #[error(
        "budget of {budget_bytes} bytes is too small: the least that would do is {least_bytes}"
    )]
    BudgetTooSmall {
        /// The budget asked for.
        budget_bytes: u64,
        /// The smallest budget for which a plan exists.
        least_bytes: u64,
    },
    /// The workload contradicts itself or is out of range.
    #[error("workload: {reason}")]
    BadWorkload {
        /// What is wrong, with the numbers.
        reason: String,
    },
    /// What the planner is not to choose contradicts itself.
    #[error("wishes: {reason}")]
    BadWishes {
        /// What does, with the numbers.
        reason: String,
    },
    /// A serialised plan is not one that the planner could have made.
    #[error("plan: {reason}")]
    BadPlan {
        /// What is wrong.
        reason: String,
    },
}

/// How a block is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Form {
    /// Its arrived form stays on the device.
    Resident,
    /// Its encoded form stays on the device and is decoded at each visit: no wire, less memory than resident.
    Packed,
    /// It is fetched over the wire at each visit.
    Streamed,
}

/// Where blocks that do not arrive as stored are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decoding {
    /// On a stream of its own, into places of the window, before the compute stream comes to the visit.
    Ahead,
    /// On the compute stream, when it comes to the visit: one place serves all visits.
    AtUse,
}

impl Decoding {
    /// The stream on which an operation of `stage` runs, counted from 0: uploads, decodes, computes.
    fn stream(self, stage: Stage) -> usize {
        match (self, stage) {
            (Self::AtUse, Stage::Decode) => Stage::Compute as usize,
            _ => stage as usize,
        }
    }
}

/// What the planner is not to choose by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wishes {
    /// So many streamed blocks can arrive while one more computes. More take more memory and hide more of the copies.
    /// What is decoded is then decoded ahead: at use one place is enough, and to ask for both is refused.
    pub blocks_ahead: Option<u32>,
    /// Where blocks are decoded.
    pub decoding: Option<Decoding>,
    /// Whether no block may be packed.
    pub unpacked: bool,
}

/// A planned range of the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// From the start of the arena; a multiple of [`PLACE_ALIGN`].
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Place {
    /// One past the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.bytes
    }

    /// Whether the two share a byte.
    #[must_use]
    pub fn overlaps(&self, other: &Place) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    /// As a range of arena offsets.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.offset..self.end()
    }
}

/// What is planned for a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockPlan {
    /// The block.
    pub block: String,
    /// How it is held.
    pub form: Form,
    /// Where its encoded bytes come from.
    pub tier: Tier,
    /// Where its remainder lies: tensors too small to stream, resident whatever the form.
    pub remainder: Option<Place>,
    /// Where its arrived bytes lie, if it is resident.
    pub resident: Option<Place>,
    /// Where its encoded bytes lie, if it is packed.
    pub packed: Option<Place>,
}

/// What is planned for a visit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisitPlan {
    /// Index of the block.
    pub block: usize,
    /// Where it arrives in the window, if it is not resident.
    pub place: Option<Place>,
    /// Where its encoded bytes wait for decoding, if it is streamed and arrives decoded: in one place, or part by part, so
    /// that one is decoded while the next one comes.
    pub staging: Vec<Place>,
    /// Where its encoded bytes stay, if it is packed.
    pub packed: Option<Place>,
}

impl VisitPlan {
    /// Whether bytes come over the wire.
    #[must_use]
    pub fn is_uploaded(&self) -> bool {
        self.place.is_some() && self.packed.is_none()
    }

    /// Whether something is decoded into the place.
    #[must_use]
    pub fn is_decoded(&self) -> bool {
        !self.staging.is_empty() || self.packed.is_some()
    }

    /// Uploads, and decodes, that it takes.
    #[must_use]
    pub fn parts(&self) -> u32 {
        u32::try_from(self.staging.len().max(1)).expect("parts are fewer than tensors")
    }
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Copies encoded bytes to the device: into staging, or straight into the place of a block that needs no decoding.
    Upload,
    /// Turns encoded bytes, staged or packed, into arrived bytes in the place.
    Decode,
    /// The engine computes with the block.
    Compute,
}

/// Why an operation waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fence {
    /// Decode after its own upload.
    Uploaded,
    /// Upload into staging after the decode that last read it.
    StagingRead,
    /// Compute after its own decode, or after its upload if that needs no decoding.
    Arrived,
    /// A write into a window range after the range's last reader.
    LastReader,
    /// A write into a window range after the range's last writer (a skipped visit has no reader).
    LastWriter,
}

/// Which pass an operation waited for belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PassRef {
    /// The pass of the waiting operation.
    This,
    /// The pass before, if it was of this kind.
    Previous(usize),
}

/// An operation waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Dependency {
    /// Why.
    pub fence: Fence,
    /// In which pass.
    pub pass: PassRef,
    /// Visit index in that pass.
    pub visit: u32,
    /// Which of the visit's operations.
    pub stage: Stage,
    /// Of which part; 0 for computes.
    pub part: u32,
}

/// One operation of a pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// What it does.
    pub stage: Stage,
    /// For which visit.
    pub visit: u32,
    /// For which part of its block; 0 for computes.
    pub part: u32,
    /// Operations that must be done before. All of them stand earlier in the list or belong to the pass before.
    pub after: Vec<Dependency>,
}

/// What limits a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Compute hides every copy; more residency buys nothing.
    ComputeBound,
    /// The wire is the limit.
    WireBound,
    /// Decoding is the limit.
    DecodeBound,
    /// Everything is resident: nothing moves.
    Resident,
}

/// Lower bounds, and the plan's distance from them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// No schedule of this placement is faster, in seconds a pass.
    pub schedule_bound_s: f64,
    /// No placement within the budget is faster, in seconds a pass.
    pub placement_bound_s: f64,
    /// Predicted pass over the schedule bound, minus 1.
    pub schedule_gap: f64,
    /// Predicted pass over the placement bound, minus 1.
    pub placement_gap: f64,
}

/// What is planned for a pass kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindPlan {
    /// The kind.
    pub name: String,
    /// Visits in order.
    pub visits: Vec<VisitPlan>,
    /// Operations in an order in which they can be submitted.
    pub operations: Vec<Operation>,
    /// Bytes over the wire in each pass.
    pub wire_bytes_per_pass: u64,
    /// Seconds a pass takes when passes of this kind follow one another.
    pub predicted_pass_s: f64,
    /// Seconds of those in which compute waits.
    pub predicted_stall_s: f64,
    /// Seconds of the first pass, with nothing prefetched.
    pub predicted_cold_pass_s: f64,
    /// How good that is.
    pub certificate: Certificate,
    /// What limits it.
    pub verdict: Verdict,
}

/// Where the parts of the arena lie: what stays, then the window, then staging.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArenaMap {
    /// Residents, packed blocks and remainders.
    pub resident: Place,
    /// Places of streamed and packed visits.
    pub window: Place,
    /// Encoded bytes on their way to decoding; also used to load residents.
    pub staging: Place,
}

/// A plan: what moves when, and where it lies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[must_use]
pub struct Plan {
    /// One per block of the workload.
    pub blocks: Vec<BlockPlan>,
    /// One per pass kind.
    pub kinds: Vec<KindPlan>,
    /// Where everything lies.
    pub arena: ArenaMap,
    /// Where blocks are decoded.
    pub decoding: Decoding,
    /// The budget it was made for.
    pub budget_bytes: u64,
    /// Bytes of the arena: what the plan takes on the device.
    pub arena_bytes: u64,
    /// The most bytes that hold something live at once, when uploads are submitted as early as the fences allow.
    pub high_water_bytes: u64,
}

impl Plan {
    /// The plan with the shortest predicted passes that fits `budget`; of equally fast ones, the smallest.
    ///
    /// If everything fits, everything is resident. Kinds are weighted by their share.
    ///
    /// ```
    /// use offload_core::model::Residency;
    /// use offload_core::plan::{BlockLoad, Budget, KindLoad, Plan, Rates, Tier, VisitLoad, Workload};
    ///
    /// let block = |name: &str| BlockLoad {
    ///     name: name.to_owned(),
    ///     residency: Residency::Planned,
    ///     tier: Tier::Pinned,
    ///     remainder_bytes: 0,
    ///     place_bytes: 1 << 20,
    ///     staging_bytes: 0,
    ///     parts: vec![],
    /// };
    /// let visit = |block| VisitLoad {
    ///     block,
    ///     wire_bytes: 1 << 20,
    ///     uploads: 1,
    ///     compute_s: 1e-3,
    ///     decode_s: 0.0,
    ///     parts: vec![],
    /// };
    /// let workload = Workload {
    ///     blocks: ["a", "b", "c", "d"].map(block).to_vec(),
    ///     kinds: vec![KindLoad {
    ///         name: "full".to_owned(),
    ///         share: 1.0,
    ///         visits: (0..4).map(visit).collect(),
    ///     }],
    ///     load_staging_bytes: 0,
    /// };
    /// let rates = Rates {
    ///     wire_bytes_per_s: 10e9,
    ///     upload_latency_s: 10e-6,
    ///     host_bytes_per_s: 5e9,
    ///     disk_bytes_per_s: 2e9,
    /// };
    /// let plan = Plan::make(&workload, &rates, Budget::Bytes(3 << 20))?;
    /// // Compute hides every copy, so two places do and the third is left to activations.
    /// assert_eq!(plan.arena_bytes, 2 << 20);
    /// assert!(plan.kinds[0].certificate.schedule_gap < 0.01);
    /// println!("{plan}");
    /// # Ok::<(), offload_core::plan::PlanError>(())
    /// ```
    ///
    /// # Errors
    /// [`PlanError::BudgetTooSmall`] with the least budget that would do; [`PlanError::BadWorkload`] when the workload
    /// or the rates contradict themselves or are out of range.
    pub fn make(workload: &Workload, rates: &Rates, budget: Budget) -> Result<Self, PlanError> {
        Self::make_as(workload, rates, budget, Wishes::default())
    }

    /// As [`make`](Self::make), where the planner chooses only what `wishes` leaves open.
    ///
    /// # Errors
    /// As [`make`](Self::make), and [`PlanError::BadWishes`].
    pub fn make_as(
        workload: &Workload,
        rates: &Rates,
        budget: Budget,
        wishes: Wishes,
    ) -> Result<Self, PlanError> {
        workload.check()?;
        rates.check()?;
        if let (Some(blocks), Some(Decoding::AtUse)) = (wishes.blocks_ahead, wishes.decoding) {
            let reason = format!("{blocks} blocks ahead are asked for, and decoding at use");
            return Err(PlanError::BadWishes { reason });
        }
        let problem = problem::Problem::new(workload, rates, wishes)?;
        let least = least::least(&problem);
        let budget_bytes = match budget {
            Budget::Least => least.arena_bytes,
            Budget::Bytes(bytes) if bytes < least.arena_bytes => {
                return Err(PlanError::BudgetTooSmall {
                    budget_bytes: bytes,
                    least_bytes: least.arena_bytes,
                });
            }
            Budget::Bytes(bytes) => bytes,
        };
        let placement = placement::choose(&problem, budget_bytes, least.placement);
        Ok(problem.plan(&placement, budget_bytes))
    }

    /// The plan without the dependencies of one fence: for tests which show that the fence is needed.
    #[doc(hidden)]
    pub fn without_fence(&self, fence: Fence) -> Self {
        let mut plan = self.clone();
        for kind in &mut plan.kinds {
            for operation in &mut kind.operations {
                operation
                    .after
                    .retain(|dependency| dependency.fence != fence);
            }
        }
        plan
    }
}

/// `bytes` up to the next multiple of [`PLACE_ALIGN`].
///
/// Callers pass at most the sums that [`Workload`] was checked for.
fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(PLACE_ALIGN)
}
