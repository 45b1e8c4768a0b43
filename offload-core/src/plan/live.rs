//! How many window bytes hold something live. It counts; it reserves nothing.
//!
//! A place is *live* from the submission of its first write (the decode, or the upload of what arrives as stored) to
//! the submission of the compute of the same visit. A write is submitted only after the compute that last read its
//! range was, so live places never overlap, and their sum never exceeds the window.
//!
//! The high-water mark is what the most eager executor reaches: it submits every upload and decode, in the order of
//! their streams, as soon as what they wait for was submitted, also for the next pass, and computes one visit after
//! another. Uploads of a pass are submitted at the earliest while the pass before is under way. An executor that
//! submits later, or is not told what comes next, stays at or below it.

use super::{Operation, PassRef, Stage, VisitPlan};

/// Counts live window bytes from submissions: the executor's measure and the planner's are both this.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LiveWindow {
    now: u64,
    peak: u64,
}

impl LiveWindow {
    /// Notes that an operation of a visit is submitted. A compute that is skipped counts as submitted.
    pub fn submit(&mut self, stage: Stage, visit: &VisitPlan) {
        let Some(place) = &visit.place else { return };
        let first_write = match visit.staging {
            Some(_) => Stage::Decode,
            None => Stage::Upload,
        };
        if stage == first_write {
            self.now += place.bytes;
            self.peak = self.peak.max(self.now);
        } else if stage == Stage::Compute {
            self.now = self.now.saturating_sub(place.bytes);
        }
    }

    /// Bytes live now.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// The most that were live at once.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.peak
    }
}

/// The most live bytes over all pairs of kinds that may follow one another.
pub(super) fn most_live_bytes(visits: &[Vec<VisitPlan>], operations: &[Vec<Operation>]) -> u64 {
    let kinds = 0..visits.len();
    kinds
        .clone()
        .flat_map(|first| kinds.clone().map(move |second| [first, second]))
        .map(|[first, second]| {
            let passes = [first, first, second, second];
            Submission::new(&passes, visits, operations).run()
        })
        .max()
        .unwrap_or(0)
}

/// The most eager submission of a few passes.
struct Submission<'a> {
    passes: &'a [usize],
    visits: &'a [Vec<VisitPlan>],
    /// Per stage, pass and place in its stream: the operation.
    streams: [Vec<(usize, &'a Operation)>; 3],
    /// Per stage: how many operations of its stream are submitted.
    submitted: [usize; 3],
    live: LiveWindow,
}

impl<'a> Submission<'a> {
    fn new(
        passes: &'a [usize],
        visits: &'a [Vec<VisitPlan>],
        operations: &'a [Vec<Operation>],
    ) -> Self {
        let mut streams = [const { Vec::new() }; 3];
        for (pass, &kind) in passes.iter().enumerate() {
            for operation in &operations[kind] {
                streams[operation.stage as usize].push((pass, operation));
            }
        }
        Self {
            passes,
            visits,
            streams,
            submitted: [0; 3],
            live: LiveWindow::default(),
        }
    }

    /// Whether the operation of a stage for a visit of a pass is submitted: streams are in order, so it is if the next
    /// one of its stream lies behind it.
    fn is_submitted(&self, stage: Stage, pass: usize, visit: u32) -> bool {
        self.streams[stage as usize]
            .get(self.submitted[stage as usize])
            .is_none_or(|(next_pass, next)| (*next_pass, next.visit) > (pass, visit))
    }

    /// Whether the next operation of a stream can be submitted while pass `under_way` computes.
    fn ready(&self, stage: Stage, under_way: usize) -> bool {
        let Some(&(pass, operation)) =
            self.streams[stage as usize].get(self.submitted[stage as usize])
        else {
            return false;
        };
        let met = operation.after.iter().all(|one| match one.pass {
            PassRef::This => self.is_submitted(one.stage, pass, one.visit),
            PassRef::Previous(kind) => pass.checked_sub(1).is_none_or(|before| {
                self.passes[before] != kind || self.is_submitted(one.stage, before, one.visit)
            }),
        });
        met && pass <= under_way + 1
    }

    fn submit(&mut self, stage: Stage) {
        let (pass, operation) = self.streams[stage as usize][self.submitted[stage as usize]];
        self.submitted[stage as usize] += 1;
        let visit = &self.visits[self.passes[pass]][operation.visit as usize];
        self.live.submit(stage, visit);
    }

    fn run(mut self) -> u64 {
        for compute in 0..self.streams[Stage::Compute as usize].len() {
            let under_way = self.streams[Stage::Compute as usize][compute].0;
            loop {
                let before = self.submitted;
                for stage in [Stage::Upload, Stage::Decode] {
                    while self.ready(stage, under_way) {
                        self.submit(stage);
                    }
                }
                if self.submitted == before {
                    break;
                }
            }
            self.submit(Stage::Compute);
        }
        self.live.peak()
    }
}
