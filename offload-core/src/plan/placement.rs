//! The choice of a placement: the form of each block, where blocks are decoded, and how deep window and staging are. What
//! a choice comes to is `Problem::evaluate`'s business.
//!
//! # The plain version
//!
//! Evaluate every assignment of forms with every depth, keep what fits, take the fastest, and of equally fast ones
//! the smallest. Exponential, so only done for few blocks: six that arrive as stored, four of others. What is known of
//! the structure makes it short:
//!
//! 1. *All resident if that fits.* Nothing moves; no copy can be faster than none.
//! 2. *Few sets.* More that stays means fewer bytes on the wire. So for a given order of streaming (`spread`), given
//!    depths, and all that is not streamed resident, or all of it packed, the fewest streamed blocks that fit are best,
//!    but for the seam of the window, which one or two more may avoid: 40 visits in 3 places end in 0, 1, 2, 1, while 39
//!    close evenly. Room that packed blocks leave takes some of them as residents.
//! 3. *Bounds first.* Candidates are evaluated by ascending schedule bound, which costs a sum. Once the bound of the
//!    next one is no better than the best time found, no later one can win.
//! 4. *Exchange.* For unlike blocks, moves from the best placements are tried (`exchange`).
//! 5. *Thrift.* Where compute hides every copy, residents buy nothing. For each order and depths, the largest number of
//!    streamed blocks that is as fast, within [`TIE`] of the compute time, is found by bisection, and the smallest
//!    arena wins. If compute times are unknown, only equal times tie, so as much as fits becomes resident.
//!
//! # Known weakness
//!
//! Steps 2 and 4 are heuristics. The placement gap of the certificate is what they may have missed at most. Compared
//! with the plain version on 9,690 small problems, drawn at random, they missed more than 1 % in seven, and then 2 to
//! 28 %: the smaller a problem, the more a single block weighs.

use std::collections::BTreeMap;

use super::certificate;
use super::problem::{Evaluation, Placement, Problem};
use super::spread::{self, Order};
use super::{Decoding, Form};

/// Passes that differ by less than this part of the compute time count as equally fast.
const TIE: f64 = 1e-3;

/// Depths of the window and of staging that are tried.
pub(super) const WINDOW_DEPTHS: &[usize] = &[1, 2, 3, 4];

/// Numbers of streamed blocks tried beyond the fewest that fit.
const MORE_STREAMED: usize = 2;

/// Numbers of streamed blocks tried one by one from where residents fit.
const SCANNED: usize = 16;

/// Work of each step, in sums over one visit: an evaluation takes about [`EVALUATION`] sums over all visits, and every
/// step may take [`FEWEST`] evaluations, however many the visits.
const WORK: usize = 350_000;
pub(super) const EVALUATION: usize = 32;
const FEWEST: usize = 24;

/// The placement to plan with. `least` is one that fits in any case.
pub(super) fn choose(problem: &Problem, budget_bytes: u64, least: Placement) -> Placement {
    let resident = Placement {
        forms: problem.forced(),
        window_depth: 1,
        in_parts: false,
        staging_depth: 1,
        decoding: problem.decodings[0],
    };
    if !resident.has(Form::Streamed) && problem.arena_bytes(&resident) <= budget_bytes {
        return resident;
    }
    let mut search = Search::new(problem, budget_bytes, least);
    if !search.everything() {
        search.shortlist();
        search.exchange();
    }
    search.thrift();
    search.best.0
}

/// What [`choose`] would choose if there were too many blocks to try everything: for tests.
#[cfg(test)]
pub(super) fn choose_among_many(
    problem: &Problem,
    budget_bytes: u64,
    least: Placement,
) -> Placement {
    let mut search = Search::new(problem, budget_bytes, least);
    search.shortlist();
    search.exchange();
    search.thrift();
    search.best.0
}

/// A way to generate placements: an order of streaming, what becomes of the others, and two depths; the number of
/// streamed blocks is left open.
struct Family {
    order: usize,
    /// The form of what is not streamed, where there is a choice: resident or packed.
    rest: Form,
    decoding: Decoding,
    window_depth: usize,
    in_parts: bool,
    staging_depth: usize,
    /// The fewest streamed blocks that fit.
    fewest: usize,
}

/// The search for the best placement.
pub(super) struct Search<'a> {
    pub(super) problem: &'a Problem<'a>,
    budget_bytes: u64,
    /// Blocks to choose a form for, in the order of visits.
    pub(super) free: Vec<usize>,
    /// The same by ascending seconds that a resident byte saves.
    pub(super) worth: Vec<usize>,
    /// Those that may be packed, by descending seconds that a byte saves which makes a packed block resident.
    unpacking: Vec<usize>,
    orders: Vec<Order>,
    families: Vec<Family>,
    /// No placement is faster.
    floor_s: f64,
    /// A difference in time that is none.
    tie_s: f64,
    /// What was evaluated.
    pub(super) known: BTreeMap<Placement, Evaluation>,
    best: (Placement, Evaluation),
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem<'a>, budget_bytes: u64, least: Placement) -> Self {
        let floor_s = (0..problem.costs.len())
            .map(|kind| {
                problem.costs[kind].weight
                    * certificate::placement_bound_s(problem, kind, budget_bytes)
            })
            .sum();
        let compute_s = problem
            .costs
            .iter()
            .map(|costs| costs.weight * costs.compute_s)
            .sum::<f64>();
        let evaluation = problem.evaluate(&least);
        let mut search = Self {
            problem,
            budget_bytes,
            free: problem.free(),
            worth: spread::by_worth(problem),
            unpacking: spread::unpacking(problem),
            orders: spread::orders(problem),
            families: Vec::new(),
            floor_s,
            tie_s: compute_s * TIE,
            known: BTreeMap::from([(least.clone(), evaluation)]),
            best: (least, evaluation),
        };
        search.families = search.families();
        search
    }

    /// Visits of all kinds; each counts as one and half of its parts beyond the first.
    pub(super) fn visits(&self) -> usize {
        let visits = self.problem.workload.kinds.iter();
        let visits = visits.flat_map(|kind| &kind.visits);
        visits
            .map(|visit| self.problem.parts[visit.block].len() + 1)
            .sum::<usize>()
            .div_ceil(2)
            .max(1)
    }

    /// Work of a step.
    pub(super) fn work(&self) -> usize {
        self.evaluations() * EVALUATION * self.visits()
    }

    /// Evaluations in a step.
    fn evaluations(&self) -> usize {
        (WORK / EVALUATION / self.visits()).max(FEWEST)
    }

    fn placement(&self, family: &Family, count: usize) -> Placement {
        let mut forms = self.problem.forced();
        if family.rest == Form::Packed {
            for &block in &self.unpacking {
                forms[block] = Form::Packed;
            }
        }
        self.orders[family.order].stream(count, &mut forms);
        Placement {
            forms,
            window_depth: family.window_depth,
            in_parts: family.in_parts,
            staging_depth: family.staging_depth,
            decoding: family.decoding,
        }
    }

    /// The same with the first `count` of its packed blocks resident, in the order of `unpacking`.
    fn unpacked(&self, placement: &Placement, count: usize) -> Placement {
        let mut placement = placement.clone();
        let packed = self.unpacking.iter().copied();
        let packed: Vec<usize> = packed
            .filter(|&block| placement.forms[block] == Form::Packed)
            .take(count)
            .collect();
        for block in packed {
            placement.forms[block] = Form::Resident;
        }
        placement
    }

    /// The same with as many of its packed blocks resident as fit.
    fn filled(&self, placement: &Placement) -> Placement {
        let all = self.unpacking.len();
        let too_many = first(0, all + 1, |count| {
            count > all || !self.fits(&self.unpacked(placement, count))
        });
        self.unpacked(placement, too_many.unwrap_or(0).saturating_sub(1))
    }

    pub(super) fn fits(&self, placement: &Placement) -> bool {
        self.problem.arena_bytes(placement) <= self.budget_bytes
    }

    /// Every order with every pair of depths for which some number of streamed blocks fits.
    fn families(&self) -> Vec<Family> {
        let mut families = Vec::new();
        let rests = match self.unpacking.is_empty() {
            true => &[Form::Resident][..],
            false => &[Form::Resident, Form::Packed],
        };
        for order in 0..self.orders.len() {
            for &rest in rests {
                for (decoding, window_depth) in self.problem.passages() {
                    for (in_parts, staging_depth) in self.problem.stagings(decoding) {
                        let mut family = Family {
                            order,
                            rest,
                            decoding,
                            window_depth,
                            in_parts,
                            staging_depth,
                            fewest: 0,
                        };
                        if let Some(fewest) = self.fewest(&family) {
                            family.fewest = fewest;
                            families.push(family);
                        }
                    }
                }
            }
        }
        families
    }

    /// The fewest streamed blocks of a family that fit.
    ///
    /// Streaming more frees residents, but may widen the window, so fitting is not monotonic. Residents alone are: from
    /// where they fit, a few counts are tried one by one, and bisection only has to help where that is not enough.
    fn fewest(&self, family: &Family) -> Option<usize> {
        let all = self.free.len();
        let from = first(0, all, |count| {
            let forms = self.placement(family, count).forms;
            self.problem.resident_bytes(&forms) <= self.budget_bytes
        })?;
        let fits = |count: usize| self.fits(&self.placement(family, count));
        (from..=all)
            .take(SCANNED)
            .find(|&count| fits(count))
            .or_else(|| first(from, all, fits))
    }

    pub(super) fn evaluate(&mut self, placement: &Placement) -> Evaluation {
        if let Some(evaluation) = self.known.get(placement) {
            return *evaluation;
        }
        let evaluation = self.problem.evaluate(placement);
        self.known.insert(placement.clone(), evaluation);
        evaluation
    }

    /// Keeps the placement if it is better than the best.
    pub(super) fn offer(&mut self, placement: Placement) {
        let offer = self.evaluate(&placement);
        if is_better(offer, self.best.1) {
            self.best = (placement, offer);
        }
    }

    /// Whether the best so far is so close to what any placement can be that looking on is vain.
    pub(super) fn is_done(&self) -> bool {
        self.best.1.seconds <= self.floor_s * (1.0 + 1e-6)
    }

    /// The plain version, if the work of a step is enough for it; whether it was.
    fn everything(&mut self) -> bool {
        let problem = self.problem;
        let depths = (problem.passages())
            .map(|(decoding, _)| problem.stagings(decoding).len())
            .sum::<usize>();
        let assignments = Assignments::new(problem);
        let affordable = assignments
            .how_many()
            .and_then(|assignments| assignments.checked_mul(depths))
            .is_some_and(|placements| placements <= self.evaluations());
        if !affordable {
            return false;
        }
        for forms in assignments {
            if self.problem.schedule_bound_s(&forms) > self.best.1.seconds {
                continue;
            }
            for (decoding, window_depth) in problem.passages() {
                for (in_parts, staging_depth) in problem.stagings(decoding) {
                    let placement = Placement {
                        forms: forms.clone(),
                        window_depth,
                        in_parts,
                        staging_depth,
                        decoding,
                    };
                    if self.fits(&placement) {
                        self.offer(placement);
                    }
                }
            }
        }
        true
    }

    /// Step 2 and 3: the fewest streamed blocks of each family, and a few more.
    fn shortlist(&mut self) {
        let mut list: Vec<(f64, Placement)> = Vec::new();
        for family in &self.families {
            let most = (family.fewest + MORE_STREAMED).min(self.free.len());
            for count in family.fewest..=most {
                let placement = self.placement(family, count);
                if self.fits(&placement) {
                    let filled = self.filled(&placement);
                    for placement in [filled, placement] {
                        list.push((self.problem.schedule_bound_s(&placement.forms), placement));
                    }
                }
            }
        }
        list.sort_by(|a, b| {
            a.0.total_cmp(&b.0)
                .then_with(|| depth(&b.1).cmp(&depth(&a.1)))
        });
        list.dedup_by(|a, b| a.1 == b.1);
        for (bound_s, placement) in list.into_iter().take(self.evaluations()) {
            if bound_s >= self.best.1.seconds || self.is_done() {
                break;
            }
            self.offer(placement);
        }
    }

    /// Step 5: the smallest arena that is as fast.
    ///
    /// The largest number of streamed blocks whose bound is good enough is tried first, in each family: where compute
    /// hides everything it is the answer, and what it takes rules out most of what bisection would look at.
    fn thrift(&mut self) {
        let limit_s = self.best.1.seconds + self.tie_s;
        let mut left = 2 * self.evaluations();
        let mut ends: Vec<(u64, usize, usize)> = self
            .families
            .iter()
            .enumerate()
            .filter_map(|(index, family)| {
                let too_many = first(family.fewest, self.free.len() + 1, |count| {
                    count > self.free.len()
                        || self
                            .problem
                            .schedule_bound_s(&self.placement(family, count).forms)
                            > limit_s
                })?;
                let most = too_many
                    .checked_sub(1)
                    .filter(|&most| most >= family.fewest)?;
                let arena_bytes = self.problem.arena_bytes(&self.placement(family, most));
                Some((arena_bytes, index, most))
            })
            .collect();
        ends.sort_unstable();
        let mut slow = Vec::new();
        for (arena_bytes, index, most) in ends {
            // Fewer streamed blocks of this family take still more, and so do all families after it.
            if left == 0 || arena_bytes >= self.best.1.arena_bytes {
                break;
            }
            if !self.is_as_good(index, most, limit_s, &mut left) {
                slow.push((index, most));
            }
        }
        for (index, most) in slow {
            let family = &self.families[index];
            // Fewer than this take no less memory than what is known.
            let Some(enough) = first(family.fewest, most, |count| {
                self.problem.arena_bytes(&self.placement(family, count)) < self.best.1.arena_bytes
            }) else {
                continue;
            };
            let (mut good, mut bad) = (enough, most);
            while good < bad && left > 0 {
                let middle = good + (bad - good) / 2;
                if self.is_as_good(index, middle, limit_s, &mut left) {
                    good = middle + 1;
                } else {
                    bad = middle;
                }
            }
        }
        self.repack(limit_s, &mut left);
    }

    /// The fewest residents, among blocks that might be packed, that are as fast.
    fn repack(&mut self, limit_s: f64, left: &mut usize) {
        let mut packed = self.best.0.clone();
        for &block in &self.unpacking {
            if packed.forms[block] == Form::Resident {
                packed.forms[block] = Form::Packed;
            }
        }
        let (mut slow, mut enough) = (0, self.unpacking.len());
        while slow < enough && *left > 0 {
            let middle = slow + (enough - slow) / 2;
            let placement = self.unpacked(&packed, middle);
            let no_smaller = self.problem.arena_bytes(&placement) >= self.best.1.arena_bytes;
            if no_smaller || self.is_fast(placement, limit_s, left) {
                enough = middle;
            } else {
                slow = middle + 1;
            }
        }
    }

    /// Whether so many streamed blocks of a family are fast enough; if also smaller than the best, they are the best.
    fn is_as_good(&mut self, family: usize, count: usize, limit_s: f64, left: &mut usize) -> bool {
        let placement = self.placement(&self.families[family], count);
        self.is_fast(placement, limit_s, left)
    }

    /// Whether a placement is fast enough; if also smaller than the best, it is the best.
    fn is_fast(&mut self, placement: Placement, limit_s: f64, left: &mut usize) -> bool {
        *left -= usize::from(!self.known.contains_key(&placement));
        let evaluation = self.evaluate(&placement);
        let is_fast = evaluation.seconds <= limit_s;
        if is_fast
            && evaluation.arena_bytes < self.best.1.arena_bytes
            && evaluation.arena_bytes <= self.budget_bytes
        {
            self.best = (placement, evaluation);
        }
        is_fast
    }
}

/// Whether the first is faster, or as fast to the last digits that matter, and smaller.
pub(super) fn is_better(one: Evaluation, than: Evaluation) -> bool {
    let digits = than.seconds * 1e-9;
    one.seconds < than.seconds - digits
        || (one.seconds <= than.seconds + digits && one.arena_bytes < than.arena_bytes)
}

/// Deep placements first: of those with one bound they are the likeliest to reach it.
pub(super) fn depth(placement: &Placement) -> (usize, usize) {
    (placement.window_depth, placement.staging_depth)
}

/// Every assignment of forms to the free blocks.
pub(super) struct Assignments<'a> {
    problem: &'a Problem<'a>,
    free: Vec<usize>,
    next: Option<Vec<Form>>,
}

impl<'a> Assignments<'a> {
    pub(super) fn new(problem: &'a Problem<'a>) -> Self {
        Self {
            problem,
            free: problem.free(),
            next: Some(problem.forced()),
        }
    }

    /// How many there are, if that is a number.
    fn how_many(&self) -> Option<usize> {
        (self.free.iter()).try_fold(1_usize, |count, &block| {
            count.checked_mul(2 + usize::from(self.problem.sizes[block].can_pack))
        })
    }
}

impl Iterator for Assignments<'_> {
    type Item = Vec<Form>;

    fn next(&mut self) -> Option<Vec<Form>> {
        let current = self.next.take()?;
        let mut next = current.clone();
        for &block in &self.free {
            let form = match next[block] {
                Form::Resident if self.problem.sizes[block].can_pack => Form::Packed,
                Form::Resident | Form::Packed => Form::Streamed,
                Form::Streamed => {
                    next[block] = Form::Resident;
                    continue;
                }
            };
            next[block] = form;
            self.next = Some(next);
            break;
        }
        Some(current)
    }
}

/// The first number of `from..=to` for which `holds`, by bisection, if it holds for `to`. It is meant to go on holding.
fn first(from: usize, to: usize, holds: impl Fn(usize) -> bool) -> Option<usize> {
    if from > to || !holds(to) {
        return None;
    }
    let (mut low, mut high) = (from, to);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Some(high)
}
