//! Equal blocks, where the best there can be is known: `max(1, S r / n)`.

use offload_core::plan::{Budget, Plan};

use crate::workloads::{uniform, uniform_rates};

/// Largest distance from `max(1, S r / n)` over budgets, where the plan has room for three window places.
fn worst(count: usize, ratio: f64) -> (f64, u64, u64) {
    let workload = uniform(count, 1024);
    (3..count as u64)
        .map(|places| {
            let budget = Budget::Bytes(places * 1024);
            let plan = Plan::make(&workload, &uniform_rates(1024, ratio), budget).unwrap();
            let kind = &plan.kinds[0];
            let streamed = kind
                .visits
                .iter()
                .filter(|visit| visit.place.is_some())
                .count();
            let bound = f64::max(1.0, streamed as f64 * ratio / count as f64);
            (
                kind.predicted_pass_s / count as f64 / bound - 1.0,
                places,
                plan.arena.window.bytes / 1024,
            )
        })
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .unwrap()
}

#[test]
fn equal_blocks_are_planned_within_one_percent_of_the_bound() {
    for count in [8, 16, 30, 40] {
        for ratio in [0.25, 0.5, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0] {
            let (gap, places, window) = worst(count, ratio);
            println!("n {count} r {ratio}: gap {gap:.4} at {places} places, window {window}");
        }
    }
}
