//! Seconds of every operation, from bytes and rates. It knows nothing of placements.

use super::workload::MAX_SECONDS;
use super::{PlanError, Rates, Stage, Workload};

/// Seconds of the operations of one pass kind, per visit, and the kind's weight.
#[derive(Debug)]
pub(super) struct KindCosts {
    /// Part of all passes that are of this kind; the kinds' weights sum to 1.
    pub(super) weight: f64,
    /// Upload, if the visit is streamed.
    pub(super) upload: Vec<f64>,
    /// Decode, if the visit is streamed or packed; 0 for what arrives as stored.
    pub(super) decode: Vec<f64>,
    /// Compute.
    pub(super) compute: Vec<f64>,
    /// Sum of `compute`.
    pub(super) compute_s: f64,
}

impl KindCosts {
    /// Seconds of one operation.
    pub(super) fn of(&self, stage: Stage, visit: usize) -> f64 {
        match stage {
            Stage::Upload => self.upload[visit],
            Stage::Decode => self.decode[visit],
            Stage::Compute => self.compute[visit],
        }
    }
}

/// Costs of all kinds of a checked workload.
///
/// # Errors
/// When a pass would take longer than can be planned.
pub(super) fn costs(workload: &Workload, rates: &Rates) -> Result<Vec<KindCosts>, PlanError> {
    let shares = workload.kinds.iter().map(|kind| kind.share).sum::<f64>();
    workload
        .kinds
        .iter()
        .map(|kind| {
            let block = |index: usize| &workload.blocks[index];
            let upload: Vec<f64> = kind
                .visits
                .iter()
                .map(|visit| {
                    rates.upload_s(block(visit.block).tier, visit.wire_bytes, visit.uploads)
                })
                .collect();
            let decode: Vec<f64> = kind
                .visits
                .iter()
                .map(|visit| match block(visit.block).staging_bytes {
                    0 => 0.0,
                    _ => visit.decode_s,
                })
                .collect();
            let compute: Vec<f64> = kind.visits.iter().map(|visit| visit.compute_s).collect();
            let compute_s = compute.iter().sum::<f64>();
            let pass_s = compute_s + upload.iter().sum::<f64>() + decode.iter().sum::<f64>();
            if !(0.0..=MAX_SECONDS).contains(&pass_s) {
                return Err(PlanError::BadWorkload {
                    reason: format!(
                        "a pass of kind {} moves and computes for {pass_s} seconds",
                        kind.name
                    ),
                });
            }
            Ok(KindCosts {
                weight: kind.share / shares,
                upload,
                decode,
                compute,
                compute_s,
            })
        })
        .collect()
}
