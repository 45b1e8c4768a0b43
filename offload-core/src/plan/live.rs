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

use super::{Decoding, Dependency, Operation, PassRef, Stage, VisitPlan};

/// Counts live window bytes from submissions: the executor's measure and the planner's are both this.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LiveWindow {
    now: u64,
    peak: u64,
}

impl LiveWindow {
    /// Notes that an operation of a visit is submitted. A compute that is skipped counts as submitted.
    pub fn submit(&mut self, stage: Stage, part: u32, visit: &VisitPlan) {
        let Some(place) = &visit.place else { return };
        let first_write = match visit.is_decoded() {
            true => Stage::Decode,
            false => Stage::Upload,
        };
        if (stage, part) == (first_write, 0) {
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
pub(super) fn most_live_bytes(
    visits: &[Vec<VisitPlan>],
    operations: &[Vec<Operation>],
    decoding: Decoding,
) -> u64 {
    let kinds = 0..visits.len();
    kinds
        .clone()
        .flat_map(|first| kinds.clone().map(move |second| [first, second]))
        .map(|[first, second]| {
            let passes = [first, first, second, second];
            Submission::new(&passes, visits, operations, decoding).run()
        })
        .max()
        .unwrap_or(0)
}

/// The most eager submission of a few passes.
struct Submission<'a> {
    passes: &'a [usize],
    visits: &'a [Vec<VisitPlan>],
    decoding: Decoding,
    /// Per stream, in order: pass and operation.
    streams: [Vec<(usize, &'a Operation)>; 3],
    /// Per stream: how many operations are submitted.
    submitted: [usize; 3],
    live: LiveWindow,
}

impl<'a> Submission<'a> {
    fn new(
        passes: &'a [usize],
        visits: &'a [Vec<VisitPlan>],
        operations: &'a [Vec<Operation>],
        decoding: Decoding,
    ) -> Self {
        let mut streams = [const { Vec::new() }; 3];
        for (pass, &kind) in passes.iter().enumerate() {
            for operation in &operations[kind] {
                streams[decoding.stream(operation.stage)].push((pass, operation));
            }
        }
        Self {
            passes,
            visits,
            decoding,
            streams,
            submitted: [0; 3],
            live: LiveWindow::default(),
        }
    }

    /// Whether the operation of a stage for a visit of a pass is submitted: streams are in order, so it is if the next
    /// one of its stream lies behind it.
    fn is_submitted(&self, pass: usize, one: &Dependency) -> bool {
        let stream = self.decoding.stream(one.stage);
        self.streams[stream]
            .get(self.submitted[stream])
            .is_none_or(|(next_pass, next)| {
                (*next_pass, next.visit, next.stage, next.part)
                    > (pass, one.visit, one.stage, one.part)
            })
    }

    /// Whether the next operation of a stream can be submitted while pass `under_way` computes.
    fn ready(&self, stream: usize, under_way: usize) -> bool {
        let Some(&(pass, operation)) = self.streams[stream].get(self.submitted[stream]) else {
            return false;
        };
        let met = operation.after.iter().all(|one| match one.pass {
            PassRef::This => self.is_submitted(pass, one),
            PassRef::Previous(kind) => pass
                .checked_sub(1)
                .is_none_or(|before| self.passes[before] != kind || self.is_submitted(before, one)),
        });
        met && pass <= under_way + 1
    }

    fn submit(&mut self, stream: usize) {
        let (pass, operation) = self.streams[stream][self.submitted[stream]];
        self.submitted[stream] += 1;
        let visit = &self.visits[self.passes[pass]][operation.visit as usize];
        self.live.submit(operation.stage, operation.part, visit);
    }

    fn run(mut self) -> u64 {
        let [ahead @ .., computes] = [Stage::Upload, Stage::Decode, Stage::Compute];
        let computes = computes as usize;
        for next in 0..self.streams[computes].len() {
            let under_way = self.streams[computes][next].0;
            loop {
                let before = self.submitted;
                for stream in ahead.map(|stage| stage as usize) {
                    while self.ready(stream, under_way) {
                        self.submit(stream);
                    }
                }
                if self.submitted == before {
                    break;
                }
            }
            self.submit(computes);
        }
        self.live.peak()
    }
}
