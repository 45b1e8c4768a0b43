//! Changes of a placement that may make it better. It finds no placement to begin with; `placement` does.
//!
//! Greedy orders leave gaps in the budget when blocks are unlike. From the best placement at each of a few depths,
//! moves are tried, each at every depth, and the first one that gains is made. A move is completed before it is
//! judged: what makes a block resident makes room by streaming the residents that are worth least, and room that is
//! left over takes the streamed blocks that are worth most. A move whose schedule bound gains nothing is not
//! evaluated.
//!
//! It ends when no move gains, when the placement bound is reached, or when the work of a step is done. Work is counted
//! in sums over visits, not in time, so that every machine makes the same plan.

use super::placement::{EVALUATION, Search, depth, is_better};
use super::problem::{Evaluation, Placement};

/// Placements to begin with.
const STARTS: usize = 4;

/// A change of a placement, at any depths.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Move {
    /// Nothing changes but the depths; room that is left takes more residents.
    Stay,
    /// A streamed block becomes resident; residents that are worth least make room.
    Keep(usize),
    /// A resident is streamed; streamed blocks that are worth most take its room.
    Stream(usize),
    /// A streamed block and a resident change roles.
    Swap(usize, usize),
}

impl Move {
    /// All moves, the most promising ones first. Swaps are many, so none is made before it is asked for.
    fn all(
        from: &Placement,
        free: &[usize],
        worth: &[usize],
    ) -> impl Iterator<Item = Self> + use<> {
        let (out, kept): (Vec<usize>, Vec<usize>) =
            free.iter().partition(|&&block| from.streamed[block]);
        let (mut keep, stream): (Vec<usize>, Vec<usize>) =
            worth.iter().partition(|&&block| from.streamed[block]);
        keep.reverse();
        let swaps = out.into_iter().flat_map(move |one| {
            let kept = kept.clone();
            kept.into_iter().map(move |other| Self::Swap(one, other))
        });
        [Self::Stay]
            .into_iter()
            .chain(keep.into_iter().map(Self::Keep))
            .chain(stream.into_iter().map(Self::Stream))
            .chain(swaps)
    }
}

impl Search<'_> {
    /// Moves from the best placements of several depths, while they gain.
    pub(super) fn exchange(&mut self) {
        let mut starts: Vec<(Placement, Evaluation)> = Vec::new();
        let mut known: Vec<_> = self.known.iter().map(|(p, e)| (p.clone(), *e)).collect();
        known.sort_by(|a, b| {
            (a.1.seconds.total_cmp(&b.1.seconds)).then(a.1.arena_bytes.cmp(&b.1.arena_bytes))
        });
        for one in known {
            let is_new = starts
                .iter()
                .all(|(other, _)| depth(other) != depth(&one.0));
            if is_new && starts.len() < STARTS {
                starts.push(one);
            }
        }
        let mut work = self.work();
        for (mut placement, mut evaluation) in starts {
            while let Some(better) = self.improve(&placement, evaluation, &mut work) {
                (placement, evaluation) = better;
            }
        }
    }

    /// The first placement one move away that is better, if the work lasts so far.
    fn improve(
        &mut self,
        from: &Placement,
        than: Evaluation,
        work: &mut usize,
    ) -> Option<(Placement, Evaluation)> {
        let visits = self.visits();
        let problem = self.problem;
        for made in Move::all(from, &self.free, &self.worth) {
            for &window_depth in problem.window_depths.iter().rev() {
                for &staging_depth in self.staging_depths.iter().rev() {
                    if self.is_done() || *work == 0 {
                        return None;
                    }
                    let mut placement = Placement {
                        streamed: from.streamed.clone(),
                        window_depth,
                        staging_depth,
                    };
                    if !self.make(made, &mut placement, work)
                        || self.known.contains_key(&placement)
                        || self.problem.schedule_bound_s(&placement.streamed) >= than.seconds
                    {
                        continue;
                    }
                    *work = work.saturating_sub(EVALUATION * visits);
                    let evaluation = self.evaluate(&placement);
                    self.offer(placement.clone());
                    if is_better(evaluation, than) {
                        return Some((placement, evaluation));
                    }
                }
            }
        }
        None
    }

    /// Makes a move, and what else it takes to fit or to use what it frees; whether it then fits.
    fn make(&self, made: Move, placement: &mut Placement, work: &mut usize) -> bool {
        let mut fits = |placement: &Placement| {
            *work = work.saturating_sub(self.visits());
            self.fits(placement)
        };
        match made {
            Move::Stay => {}
            Move::Swap(one, other) => {
                placement.streamed[one] = !placement.streamed[one];
                placement.streamed[other] = !placement.streamed[other];
                return fits(placement);
            }
            Move::Keep(block) => {
                placement.streamed[block] = false;
                for &other in self.worth.iter().filter(|&&other| other != block) {
                    if placement.streamed[other] {
                        continue;
                    }
                    if fits(placement) {
                        break;
                    }
                    placement.streamed[other] = true;
                }
            }
            Move::Stream(block) => placement.streamed[block] = true,
        }
        if !fits(placement) {
            return false;
        }
        for &other in self.worth.iter().rev() {
            if placement.streamed[other] && made != Move::Stream(other) {
                placement.streamed[other] = false;
                if !fits(placement) {
                    placement.streamed[other] = true;
                }
            }
        }
        true
    }
}
