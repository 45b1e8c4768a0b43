//! Which blocks to stream, if so many are to be streamed. It knows bytes and seconds saved, no budget.
//!
//! Copies hide behind computation, so streamed visits should lie evenly among resident ones: a contiguous run of them
//! exhausts the window's head start while the wire idles over the rest of the pass. Against that stands that blocks
//! differ: a resident byte saves more wire seconds in one block than in another.
//!
//! An order of streaming is a list of *classes*: classes are streamed one after another, whole, and the last one that
//! is touched is streamed in part, evenly: the `k`-th of `s` out of `n` is `floor((2k + 1) n / 2s)`, which puts equal
//! gaps, and half a gap at either end, so that it is also even across the seam of passes.

/// Classes of blocks in the order in which they are streamed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Order {
    /// Blocks by class; within a class in the order of their first visits.
    classes: Vec<Vec<usize>>,
}

impl Order {
    pub(super) fn new(classes: Vec<Vec<usize>>) -> Self {
        Self {
            classes: classes
                .into_iter()
                .filter(|class| !class.is_empty())
                .collect(),
        }
    }

    /// Adds to `streamed` the first `count` blocks.
    pub(super) fn stream(&self, mut count: usize, streamed: &mut [bool]) {
        for class in &self.classes {
            let taken = count.min(class.len());
            for index in 0..taken {
                streamed[class[(2 * index + 1) * class.len() / (2 * taken)]] = true;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streamed_blocks_are_spread_evenly_over_a_class() {
        let order = Order::new(vec![(0..8).collect()]);
        let streamed = |count| {
            let mut set = [false; 8];
            order.stream(count, &mut set);
            (0..8).filter(|&block| set[block]).collect::<Vec<_>>()
        };
        assert_eq!(streamed(0), [0; 0]);
        assert_eq!(streamed(1), [4]);
        assert_eq!(streamed(2), [2, 6]);
        assert_eq!(streamed(4), [1, 3, 5, 7]);
        assert_eq!(streamed(8), [0, 1, 2, 3, 4, 5, 6, 7]);
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
