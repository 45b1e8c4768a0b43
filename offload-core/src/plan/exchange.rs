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

use super::Form;
use super::placement::{EVALUATION, Search, depth, is_better};
use super::problem::{Evaluation, Placement, Problem};

/// Placements to begin with.
const STARTS: usize = 4;

/// A change of a placement, at any depths.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Move {
    /// Nothing changes but the depths; room that is left takes more residents.
    Stay,
    /// A block takes this form and stays; what is worth least makes room.
    Keep(usize, Form),
    /// A block that stays is streamed; streamed blocks that are worth most take its room.
    Stream(usize),
    /// A streamed block and one that stays change roles.
    Swap(usize, usize),
}

impl Move {
    /// All moves, the most promising ones first. Swaps are many, so none is made before it is asked for.
    fn all(
        from: &Placement,
        problem: &Problem,
        free: &[usize],
        worth: &[usize],
    ) -> impl Iterator<Item = Self> + use<> {
        let is_streamed = |block: &&usize| from.forms[**block] == Form::Streamed;
        let (out, kept): (Vec<usize>, Vec<usize>) = free.iter().partition(is_streamed);
        let (mut keep, stream): (Vec<usize>, Vec<usize>) = worth.iter().partition(is_streamed);
        keep.reverse();
        let packed: Vec<usize> = (worth.iter().rev().copied())
            .filter(|&block| problem.sizes[block].can_pack && from.forms[block] != Form::Packed)
            .collect();
        let unpacked = (worth.iter().rev().copied())
            .filter(|&block| from.forms[block] == Form::Packed)
            .collect::<Vec<_>>();
        let swaps = out.into_iter().flat_map(move |one| {
            let kept = kept.clone();
            kept.into_iter().map(move |other| Self::Swap(one, other))
        });
        [Self::Stay]
            .into_iter()
            .chain(
                packed
                    .into_iter()
                    .map(|block| Self::Keep(block, Form::Packed)),
            )
            .chain(
                keep.into_iter()
                    .chain(unpacked)
                    .map(|block| Self::Keep(block, Form::Resident)),
            )
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
        let mut passages: Vec<_> = problem.passages().collect();
        passages.reverse();
        for made in Move::all(from, problem, &self.free, &self.worth) {
            for &(decoding, window_depth) in &passages {
                for &(in_parts, staging_depth) in problem.stagings(decoding).iter().rev() {
                    if self.is_done() || *work == 0 {
                        return None;
                    }
                    let mut placement = Placement {
                        forms: from.forms.clone(),
                        window_depth,
                        in_parts,
                        staging_depth,
                        decoding,
                    };
                    if !self.make(made, &mut placement, work)
                        || self.known.contains_key(&placement)
                        || self.problem.schedule_bound_s(&placement.forms) >= than.seconds
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
                // A form that the other may take as well.
                let stays = match placement.forms[other] {
                    Form::Packed if !self.problem.sizes[one].can_pack => Form::Resident,
                    form => form,
                };
                placement.forms[one] = stays;
                placement.forms[other] = Form::Streamed;
                return fits(placement);
            }
            Move::Keep(block, form) => {
                placement.forms[block] = form;
                for &other in self.worth.iter().filter(|&&other| other != block) {
                    if placement.forms[other] == Form::Streamed {
                        continue;
                    }
                    if fits(placement) {
                        break;
                    }
                    placement.forms[other] = Form::Streamed;
                }
            }
            Move::Stream(block) => placement.forms[block] = Form::Streamed,
        }
        if !fits(placement) {
            return false;
        }
        for &other in self.worth.iter().rev() {
            if placement.forms[other] == Form::Streamed && made != Move::Stream(other) {
                placement.forms[other] = Form::Resident;
                if !fits(placement) && self.problem.sizes[other].can_pack {
                    placement.forms[other] = Form::Packed;
                }
                if !fits(placement) {
                    placement.forms[other] = Form::Streamed;
                }
            }
        }
        true
    }
}
