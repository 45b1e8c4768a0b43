//! Which blocks to stream, if so many are to be streamed. It knows bytes and seconds saved, no budget.
//!
//! Copies hide behind computation, so streamed visits should lie evenly among resident ones: a contiguous run of them
//! exhausts the window's head start while the wire idles over the rest of the pass. Against that stands that blocks
//! differ: a resident byte saves more wire seconds in one block than in another.
//!
//! An order of streaming is a list of *classes*: classes are streamed one after another, whole, and the last one that
//! is touched is streamed in part, evenly: the `k`-th of `s` out of `n` is `floor(k n / s)`. The gaps are equal, also
//! across the seam of passes. Of the rotations of this pattern, this one has a resident at the very end of the pass:
//! there the window's places may repeat early (0, 1, 2, 0, 1, 2, 1), and the resident hides part of what that costs.
//! Measured over 40 equal blocks in three places, a copy taking 1.1 or 1.25 computes: at most 0.7 % above the bound,
//! where the pattern centred in the pass, `floor((2k + 1) n / 2s)`, is up to 1.3 % above. With unlike blocks either
//! may be the better one, so both are offered.

use super::Form;
use super::problem::Problem;

/// Where in the pass an even pattern begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// With a streamed block; a gap ends it.
    First,
    /// With half a gap, and so it ends.
    Centred,
}

impl Phase {
    const ALL: [Self; 2] = [Self::First, Self::Centred];
}

/// Classes of blocks in the order in which they are streamed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Order {
    /// Blocks by class; within a class in the order of their first visits.
    classes: Vec<Vec<usize>>,
    phase: Phase,
}

impl Order {
    pub(super) fn new(classes: Vec<Vec<usize>>, phase: Phase) -> Self {
        Self {
            classes: classes
                .into_iter()
                .filter(|class| !class.is_empty())
                .collect(),
            phase,
        }
    }

    /// Makes the first `count` blocks streamed.
    pub(super) fn stream(&self, mut count: usize, forms: &mut [Form]) {
        for class in &self.classes {
            let taken = count.min(class.len());
            let half = match self.phase {
                Phase::First => 0,
                Phase::Centred => 1,
            };
            for index in 0..taken {
                forms[class[(2 * index + half) * class.len() / (2 * taken)]] = Form::Streamed;
            }
            count -= taken;
        }
    }
}

/// Splits `blocks` into classes of like `key`, ascending: a class ends where the key exceeds its smallest by 1 %.
pub(super) fn classes_by(blocks: &[usize], key: impl Fn(usize) -> f64) -> Vec<Vec<usize>> {
    let mut sorted: Vec<(usize, usize)> = blocks.iter().copied().enumerate().collect();
    sorted.sort_by(|a, b| key(a.1).total_cmp(&key(b.1)).then(a.0.cmp(&b.0)));
    let mut classes: Vec<Vec<(usize, usize)>> = Vec::new();
    for one in sorted {
        match classes.last_mut() {
            Some(class) if key(one.1) <= key(class[0].1) * 1.01 => class.push(one),
            _ => classes.push(vec![one]),
        }
    }
    classes
        .into_iter()
        .map(|mut class| {
            class.sort_unstable();
            class.into_iter().map(|(_, block)| block).collect()
        })
        .collect()
}

/// Sizes above which all blocks stay resident in some order, at most.
const SIZE_LIMITS: usize = 6;

/// The orders of streaming that are tried, without repetition.
pub(super) fn orders(problem: &Problem) -> Vec<Order> {
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
pub(super) fn by_worth(problem: &Problem) -> Vec<usize> {
    let worth = worth(problem);
    let mut blocks = problem.free();
    blocks.sort_by(|&a, &b| worth[a].total_cmp(&worth[b]));
    blocks
}

/// Blocks that may be packed, by descending seconds that a byte saves which makes them resident.
pub(super) fn unpacking(problem: &Problem) -> Vec<usize> {
    let mut decode_s = vec![0.0; problem.sizes.len()];
    for (kind, costs) in problem.workload.kinds.iter().zip(&problem.costs) {
        for (visit, seconds) in kind.visits.iter().zip(&costs.decode) {
            decode_s[visit.block] += costs.weight * seconds;
        }
    }
    let per_byte = |block: usize| {
        let sizes = &problem.sizes[block];
        decode_s[block] / (sizes.place - sizes.staging) as f64
    };
    let mut blocks: Vec<usize> = (problem.free().into_iter())
        .filter(|&block| problem.sizes[block].can_pack)
        .collect();
    blocks.sort_by(|&a, &b| per_byte(b).total_cmp(&per_byte(a)));
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streamed_blocks_are_spread_evenly_over_a_class() {
        let streamed = |count, phase| {
            let order = Order::new(vec![(0..8).collect()], phase);
            let mut forms = [Form::Resident; 8];
            order.stream(count, &mut forms);
            (0..8)
                .filter(|&block| forms[block] == Form::Streamed)
                .collect::<Vec<_>>()
        };
        assert_eq!(streamed(0, Phase::First), [0; 0]);
        assert_eq!(streamed(1, Phase::First), [0]);
        assert_eq!(streamed(2, Phase::First), [0, 4]);
        assert_eq!(streamed(3, Phase::First), [0, 2, 5]);
        assert_eq!(streamed(6, Phase::First), [0, 1, 2, 4, 5, 6]);
        assert_eq!(streamed(1, Phase::Centred), [4]);
        assert_eq!(streamed(4, Phase::Centred), [1, 3, 5, 7]);
        assert_eq!(streamed(8, Phase::First), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn classes_follow_the_key_and_keep_the_order_within() {
        let keys = [2.0, 1.0, 2.01, 1.0];
        assert_eq!(
            classes_by(&[0, 1, 2, 3], |block| keys[block]),
            [vec![1, 3], vec![0, 2]]
        );
    }
}
