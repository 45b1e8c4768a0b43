//! Seconds of every operation, from bytes and rates. It knows nothing of placements.

use super::workload::MAX_SECONDS;
use super::{PartLoad, PlanError, Rates, Stage, Workload};

/// Seconds of the operations of one pass kind, per visit, and the kind's weight.
#[derive(Debug)]
pub(super) struct KindCosts {
    /// Part of all passes that are of this kind; the kinds' weights sum to 1.
    pub(super) weight: f64,
    /// Upload, if the visit is streamed.
    pub(super) upload: Vec<f64>,
    /// The same, or that of its parts together where that is less: the padding between parts is not brought.
    pub(super) least_upload: Vec<f64>,
    /// Decode, if the visit is streamed or packed; 0 for what arrives as stored.
    pub(super) decode: Vec<f64>,
    /// Upload and decode of each part, if the visit is staged in parts.
    pub(super) parts: Vec<Vec<[f64; 2]>>,
    /// Compute.
    pub(super) compute: Vec<f64>,
    /// Sum of `compute`.
    pub(super) compute_s: f64,
}

impl KindCosts {
    /// Seconds of one operation, of a visit in so many `parts`.
    pub(super) fn of(&self, stage: Stage, visit: usize, part: usize, parts: usize) -> f64 {
        match stage {
            Stage::Compute => self.compute[visit],
            Stage::Upload if parts == 1 => self.upload[visit],
            Stage::Decode if parts == 1 => self.decode[visit],
            Stage::Upload => self.parts[visit][part][0],
            Stage::Decode => self.parts[visit][part][1],
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
            let parts = kind.visits.iter().map(|visit| {
                let of_part = |part: &PartLoad| {
                    let tier = block(visit.block).tier;
                    let upload_s = rates.upload_s(tier, part.wire_bytes, part.uploads);
                    [upload_s, part.decode_s]
                };
                visit.parts.iter().map(of_part).collect()
            });
            let parts: Vec<Vec<[f64; 2]>> = parts.collect();
            let compute: Vec<f64> = kind.visits.iter().map(|visit| visit.compute_s).collect();
            let compute_s = compute.iter().sum::<f64>();
            let least_upload = upload.iter().zip(&parts).map(|(&whole, parts)| {
                let in_parts = parts.iter().map(|part| part[0]).sum::<f64>();
                match parts.is_empty() {
                    true => whole,
                    false => whole.min(in_parts),
                }
            });
            let least_upload = least_upload.collect();
            let in_parts = parts.iter().flatten().flatten().sum::<f64>();
            let whole = upload.iter().sum::<f64>() + decode.iter().sum::<f64>();
            let pass_s = compute_s + whole.max(in_parts);
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
                least_upload,
                decode,
                parts,
                compute,
                compute_s,
            })
        })
        .collect()
}
