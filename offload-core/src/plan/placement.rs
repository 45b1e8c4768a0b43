//! The choice of a placement: which blocks are streamed, and how deep window and staging are. What a choice comes to is
//! `Problem::evaluate`'s business.
//!
//! # The plain version
//!
//! Evaluate every set of streamed blocks with every depth, keep what fits, take the fastest, and of equally fast ones the
//! smallest. Exponential. What is known of the structure makes it short:
//!
//! 1. *All resident if that fits.* Nothing moves; no copy can be faster than none.
//! 2. *Few sets.* More residents mean fewer bytes on the wire, so for a given order of streaming and given depths the
//!    fewest streamed blocks that fit are best, but for the seam of the window, which a few more may avoid (40 visits
//!    in 3 places end in 0, 1, 2, 1; 39 close evenly). Orders: all blocks evenly; blocks that save least per resident
//!    byte first, evenly within a class; both again with the largest blocks kept resident, because one of them would
//!    widen the window.
//! 3. *Bounds first.* Candidates are evaluated by ascending schedule bound, which costs a sum; once the bound of the next one
//!    exceeds the best time found, no later one can win.
//! 4. *Exchange.* For unlike blocks greedy orders leave gaps in the budget. Single moves (one block to resident, two blocks
//!    changing roles, another depth) are tried while they gain, unless the placement bound says that nothing is to be gained.
//! 5. *Thrift.* Where compute hides every copy, residents buy nothing. For each order and depths, the largest number
//!    of streamed blocks that is as fast (within [`TIE`] of the compute time) is found by bisection, and the smallest arena wins.
//!
//! Evaluations are counted, not timed, so the result is the same on every machine.
//!
//! # Known weakness
//!
//! Steps 2 and 4 are heuristics. The placement gap of the certificate is what they may have missed at most.

use std::collections::BTreeMap;

use super::certificate;
use super::problem::{Evaluation, Placement, Problem};
use super::spread::{Order, Phase, classes_by};

/// Passes that differ by less than this part of the compute time count as equally fast.
const TIE: f64 = 1e-3;

/// Depths of the window and of staging that are tried.
const WINDOW_DEPTHS: [usize; 4] = [1, 2, 3, 4];
const STAGING_DEPTHS: [usize; 3] = [1, 2, 3];

/// Numbers of streamed blocks tried beyond the fewest that fit.
const MORE_STREAMED: usize = 2;

/// Numbers of streamed blocks tried one by one from where residents fit.
const SCANNED: usize = 16;

/// Sizes above which all blocks stay resident in some order, at most.
const SIZE_LIMITS: usize = 6;

/// Starting points of the exchange.
const STARTS: usize = 4;

/// Work of each step, in sums over one visit: an evaluation takes about [`EVALUATION`] sums over all visits, and every
/// step may take [`FEWEST`] evaluations, however many the visits.
const WORK: usize = 350_000;
const EVALUATION: usize = 32;
const FEWEST: usize = 24;

/// The placement to plan with. `least` is one that fits in any case.
pub(super) fn choose(problem: &Problem, budget_bytes: u64, least: Placement) -> Placement {
    let resident = Placement {
        streamed: problem.forced_streamed(),
        window_depth: 1,
        staging_depth: 1,
    };
    let nothing_moves = !resident.streamed.contains(&true);
    if nothing_moves && problem.arena_bytes(&resident) <= budget_bytes {
        return resident;
    }
    let mut search = Search::new(problem, budget_bytes, least);
    search.shortlist();
    search.exchange();
    search.thrift();
    search.best.0
}

/// A way to generate placements: an order of streaming and two depths; the number of streamed blocks is left open.
struct Family {
    order: usize,
    window_depth: usize,
    staging_depth: usize,
    /// The fewest streamed blocks that fit.
    fewest: usize,
}

struct Search<'a> {
    problem: &'a Problem<'a>,
    budget_bytes: u64,
    /// Blocks to choose a form for, in the order of visits.
    free: Vec<usize>,
    /// The same by ascending seconds that a resident byte saves.
    worth: Vec<usize>,
    /// Depths of staging that make a difference.
    staging_depths: &'static [usize],
    orders: Vec<Order>,
    families: Vec<Family>,
    /// No placement is faster.
    floor_s: f64,
    /// A difference in time that is none.
    tie_s: f64,
    /// What was evaluated.
    known: BTreeMap<Placement, Evaluation>,
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
            worth: by_worth(problem),
            staging_depths: match problem.sizes.iter().any(|sizes| sizes.staging > 0) {
                true => &STAGING_DEPTHS,
                false => &STAGING_DEPTHS[..1],
            },
            orders: orders(problem),
            families: Vec::new(),
            floor_s,
            tie_s: compute_s * TIE,
            known: BTreeMap::from([(least.clone(), evaluation)]),
            best: (least, evaluation),
        };
        search.families = search.families();
        search
    }

    /// Visits of all kinds.
    fn visits(&self) -> usize {
        self.problem
            .workload
            .kinds
            .iter()
            .map(|kind| kind.visits.len())
            .sum::<usize>()
            .max(1)
    }

    /// Evaluations in a step.
    fn evaluations(&self) -> usize {
        (WORK / EVALUATION / self.visits()).max(FEWEST)
    }

    fn placement(&self, family: &Family, count: usize) -> Placement {
        let mut streamed = self.problem.forced_streamed();
        self.orders[family.order].stream(count, &mut streamed);
        Placement {
            streamed,
            window_depth: family.window_depth,
            staging_depth: family.staging_depth,
        }
    }

    fn fits(&self, placement: &Placement) -> bool {
        self.problem.arena_bytes(placement) <= self.budget_bytes
    }

    /// Every order with every pair of depths for which some number of streamed blocks fits.
    fn families(&self) -> Vec<Family> {
        let mut families = Vec::new();
        for order in 0..self.orders.len() {
            for window_depth in WINDOW_DEPTHS {
                for &staging_depth in self.staging_depths {
                    let mut family = Family {
                        order,
                        window_depth,
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
        families
    }

    /// The fewest streamed blocks of a family that fit.
    ///
    /// Streaming more frees residents, but may widen the window, so fitting is not monotonic. Residents alone are: from
    /// where they fit, a few counts are tried one by one, and bisection only has to help where that is not enough.
    fn fewest(&self, family: &Family) -> Option<usize> {
        let all = self.free.len();
        let from = first(0, all, |count| {
            let streamed = self.placement(family, count).streamed;
            self.problem.resident_bytes(&streamed) <= self.budget_bytes
        })?;
        let fits = |count: usize| self.fits(&self.placement(family, count));
        (from..=all)
            .take(SCANNED)
            .find(|&count| fits(count))
            .or_else(|| first(from, all, fits))
    }

    fn evaluate(&mut self, placement: &Placement) -> Evaluation {
        if let Some(evaluation) = self.known.get(placement) {
            return *evaluation;
        }
        let evaluation = self.problem.evaluate(placement);
        self.known.insert(placement.clone(), evaluation);
        evaluation
    }

    /// Keeps the placement if it is better than the best.
    fn offer(&mut self, placement: Placement) {
        let offer = self.evaluate(&placement);
        if is_better(offer, self.best.1) {
            self.best = (placement, offer);
        }
    }

    /// Whether the best so far is so close to what any placement can be that looking on is vain.
    fn is_done(&self) -> bool {
        self.best.1.seconds <= self.floor_s * (1.0 + 1e-6)
    }

    /// Step 2 and 3: the fewest streamed blocks of each family, and a few more.
    fn shortlist(&mut self) {
        let mut list: Vec<(f64, Placement)> = Vec::new();
        for family in &self.families {
            let most = (family.fewest + MORE_STREAMED).min(self.free.len());
            for count in family.fewest..=most {
                let placement = self.placement(family, count);
                if self.fits(&placement) {
                    list.push((
                        self.problem.schedule_bound_s(&placement.streamed),
                        placement,
                    ));
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

    /// Step 4: moves from the best of several depths, while they gain.
    fn exchange(&mut self) {
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
        let mut work = self.evaluations() * EVALUATION * self.visits();
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
        for made in Move::all(from, &self.free, &self.worth) {
            for window_depth in WINDOW_DEPTHS.into_iter().rev() {
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

    /// Step 5: the smallest arena that is as fast.
    fn thrift(&mut self) {
        let limit_s = self.best.1.seconds + self.tie_s;
        let mut left = self.evaluations();
        for index in 0..self.families.len() {
            let family = &self.families[index];
            let all = self.free.len();
            // More streamed blocks than this are too slow whatever the schedule.
            let Some(too_many) = first(family.fewest, all + 1, |count| {
                count > all
                    || self
                        .problem
                        .schedule_bound_s(&self.placement(family, count).streamed)
                        > limit_s
            }) else {
                continue;
            };
            // Fewer than this take no less memory than what is known.
            let Some(enough) = first(family.fewest, all, |count| {
                self.problem.arena_bytes(&self.placement(family, count)) < self.best.1.arena_bytes
            }) else {
                continue;
            };
            let (mut good, mut bad) = (enough, too_many);
            let mut next = too_many.saturating_sub(1);
            while good < bad && left > 0 {
                let placement = self.placement(&self.families[index], next);
                left -= 1;
                let evaluation = self.evaluate(&placement);
                if evaluation.seconds <= limit_s {
                    if evaluation.arena_bytes < self.best.1.arena_bytes {
                        self.best = (placement, evaluation);
                    }
                    good = next + 1;
                } else {
                    bad = next;
                }
                next = good + bad.saturating_sub(good) / 2;
            }
        }
    }
}

/// Whether the first is faster, or as fast to the last digits that matter, and smaller.
fn is_better(one: Evaluation, than: Evaluation) -> bool {
    let digits = than.seconds * 1e-9;
    one.seconds < than.seconds - digits
        || (one.seconds <= than.seconds + digits && one.arena_bytes < than.arena_bytes)
}

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

/// Deep placements first: of those with one bound they are the likeliest to reach it.
fn depth(placement: &Placement) -> (usize, usize) {
    (placement.window_depth, placement.staging_depth)
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

/// The orders of streaming that are tried, without repetition.
fn orders(problem: &Problem) -> Vec<Order> {
    let (visited, idle): (Vec<usize>, Vec<usize>) = problem
        .free()
        .into_iter()
        .partition(|&block| problem.sizes[block].visited);
    let worth = worth(problem);
    let per_byte = |block: usize| worth[block];
    let footprint = |block: usize| problem.sizes[block].place + problem.sizes[block].staging;

    let mut limits: Vec<u64> = visited.iter().map(|&block| footprint(block)).collect();
    limits.sort_unstable();
    limits.dedup();
    let distinct = limits.len();
    let wanted = distinct.min(SIZE_LIMITS);
    let limits = (1..=wanted)
        .rev()
        .map(|nth| limits[nth * distinct / wanted - 1]);

    let mut orders: Vec<Order> = Vec::new();
    for limit in limits {
        let (small, large): (Vec<usize>, Vec<usize>) = visited
            .iter()
            .partition(|&&block| footprint(block) <= limit);
        let large = classes_by(&large, |block| footprint(block) as f64);
        for small in [vec![small.clone()], classes_by(&small, per_byte)] {
            for phase in Phase::ALL {
                let small = small.clone();
                let classes = [idle.clone()].into_iter().chain(small).chain(large.clone());
                let order = Order::new(classes.collect(), phase);
                if !orders.contains(&order) {
                    orders.push(order);
                }
            }
        }
    }
    if orders.is_empty() {
        orders.push(Order::new(vec![idle], Phase::First));
    }
    orders
}

/// Seconds of wire or decoding that a resident byte saves, mean over kinds by weight, per block.
fn worth(problem: &Problem) -> Vec<f64> {
    let mut worth = vec![0.0; problem.sizes.len()];
    for (kind, costs) in problem.workload.kinds.iter().zip(&problem.costs) {
        for (index, visit) in kind.visits.iter().enumerate() {
            // The dearer of the two streams is the one that residents relieve.
            worth[visit.block] += costs.weight * costs.upload[index].max(costs.decode[index])
                / problem.sizes[visit.block].place.max(1) as f64;
        }
    }
    worth
}

/// Blocks to choose a form for, by ascending worth.
fn by_worth(problem: &Problem) -> Vec<usize> {
    let worth = worth(problem);
    let mut blocks = problem.free();
    blocks.sort_by(|&a, &b| worth[a].total_cmp(&worth[b]));
    blocks
}
