//! What is read past the page cache, where that does not hold a model's files.
//!
//! A pass reads its blocks in a circle. A cache that gives up what was used least recently has then just given up what
//! comes next: the whole model is read from the drive again, and everything else in the cache is lost. So a fixed part
//! is read through the cache, and fits; the rest is read past it.

use std::error::Error;
use std::sync::Arc;

use crate::device::Device;
use crate::executor::layout::BlockLayout;
use crate::executor::program::KindProgram;
use crate::executor::readers::StagingBuffers;
use crate::model::Model;
use crate::plan::{Form, Plan, Tier, Workload};
use crate::source::{DIRECT_ALIGN, Source, SourceFile};
use crate::swappable::{Swappable, TensorSpec};

/// Smaller buffers are not used for reading past the cache: what is read to no purpose at both ends would weigh.
const LEAST_BUFFER_BYTES: usize = 16 * DIRECT_ALIGN;

/// The blocks that are read past the cache.
pub(super) struct PastCache {
    blocks: Vec<bool>,
    /// Why some that should be are not.
    pub(super) notes: Vec<String>,
}

impl PastCache {
    /// As few blocks as the cache demands, spread evenly; none if it holds what a plan that knows nothing of it streams.
    ///
    /// `cache_bytes` is `None` where nothing is known of the cache: it is left to the system.
    pub(super) fn decide<E>(
        model: &Model,
        layouts: &[BlockLayout],
        cache_bytes: Option<u64>,
        plan: impl FnOnce() -> Result<Plan, E>,
    ) -> Result<Self, E> {
        let mut past = Self {
            blocks: vec![false; layouts.len()],
            notes: Vec::new(),
        };
        let Some(cache_bytes) = cache_bytes else {
            return Ok(past);
        };
        let in_files = |(block, layout): (&Arc<dyn Swappable>, &BlockLayout)| -> u64 {
            let sources = layout.streamable().iter();
            let sources = sources.map(|&tensor| block.tensors()[tensor].source());
            let in_files = sources.filter(|source| matches!(source, Source::File { .. }));
            in_files.map(Source::len).sum()
        };
        let bytes: Vec<u64> = model.blocks().iter().zip(layouts).map(in_files).collect();
        if total(bytes.iter()) <= u128::from(cache_bytes) {
            return Ok(past);
        }
        let planned = plan()?;
        let streamed = planned.blocks.iter().zip(&bytes);
        let streamed = streamed.filter(|(block, _)| block.form == Form::Streamed);
        if total(streamed.map(|(_, bytes)| bytes)) > u128::from(cache_bytes) {
            past.blocks = spread(&bytes, cache_bytes);
        }
        Ok(past)
    }

    /// Leaves to the cache what cannot be read past it.
    pub(super) fn check(
        &mut self,
        model: &Model,
        files: &[Arc<SourceFile>],
        buffers: StagingBuffers,
    ) {
        if !self.blocks.contains(&true) {
            return;
        }
        if buffers.bytes < LEAST_BUFFER_BYTES {
            self.notes.push(format!(
                "nothing is read past the page cache: staging buffers of {} bytes are too small, {LEAST_BUFFER_BYTES} are needed",
                buffers.bytes
            ));
            self.blocks.fill(false);
            return;
        }
        let mut refused = Vec::new();
        for file in files {
            if let Err(error) = file.check_direct() {
                let reason = error.source().map(ToString::to_string);
                let reason = reason.unwrap_or_default();
                self.notes.push(format!("{error}: {reason}"));
                refused.push(file);
            }
        }
        for (block, past) in model.blocks().iter().zip(&mut self.blocks) {
            let is_refused = |tensor: &TensorSpec| match tensor.source() {
                Source::File { file, .. } => refused.iter().any(|known| Arc::ptr_eq(known, file)),
                Source::Memory { .. } | Source::Described { .. } => false,
            };
            *past &= !block.tensors().iter().any(is_refused);
        }
    }

    /// Lets the planner know: it keeps these blocks on the device before others.
    pub(super) fn tell(&self, workload: &mut Workload) {
        let blocks = workload.blocks.iter_mut().zip(&self.blocks);
        for (block, _) in blocks.filter(|(_, past)| **past) {
            block.tier = block.tier.max(Tier::Disk);
        }
    }

    /// Whether a block is one of them.
    pub(super) fn has(&self, block: usize) -> bool {
        self.blocks[block]
    }

    /// Marks their uploads.
    pub(super) fn mark<D: Device>(&self, kinds: &mut [KindProgram<D>]) {
        for kind in kinds {
            let visits = kind.visits.iter_mut().zip(&kind.blocks);
            for (visit, _) in visits.filter(|(_, block)| self.has(**block)) {
                for upload in visit.iter_mut().flat_map(|visit| &mut visit.uploads) {
                    upload.past_cache = matches!(upload.source, Source::File { .. });
                }
            }
        }
    }
}

fn total<'a>(bytes: impl Iterator<Item = &'a u64>) -> u128 {
    bytes.map(|&bytes| u128::from(bytes)).sum()
}

/// Those that go past a cache for `cache_bytes` of all: at no block are more kept than its share of the bytes so far.
fn spread(bytes: &[u64], cache_bytes: u64) -> Vec<bool> {
    let total = total(bytes.iter());
    let (mut seen, mut kept) = (0, 0);
    let past = bytes.iter().map(|&bytes| {
        let bytes = u128::from(bytes);
        seen += bytes;
        let fits =
            total.saturating_mul(kept + bytes) <= seen.saturating_mul(u128::from(cache_bytes));
        if fits {
            kept += bytes;
        }
        !fits
    });
    past.collect()
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn what_is_kept_fits_and_is_spread() {
        for (cache_bytes, kept) in [(0, 0), (99, 0), (100, 1), (500, 5), (950, 9), (1000, 10)] {
            let past = spread(&[100; 10], cache_bytes);
            assert_eq!(past.iter().filter(|past| !**past).count(), kept);
            // As evenly as whole blocks allow.
            for first in 1..=10 {
                let so_far = past[..first].iter().filter(|past| !**past).count();
                assert_eq!(
                    so_far as u64,
                    cache_bytes * first as u64 / 1000,
                    "{cache_bytes}"
                );
            }
        }
        assert_eq!(spread(&[700, 0, 700], 700), [true, false, false]);
        let huge = [u64::MAX; 3];
        assert_eq!(spread(&huge, u64::MAX).len(), huge.len());
    }
}
