//! Equal blocks, where the best there can be is known: `max(1, S r / n)`.

use offload_core::plan::{Budget, Plan};

use crate::workloads::{uniform, uniform_rates};

/// Largest distance, over budgets of 3 places and more, from what three window places allow at best.
fn worst(count: usize, ratio: f64) -> f64 {
    let workload = uniform(count, 1024);
    (3..count)
        .map(|places| {
            let budget = Budget::Bytes(places as u64 * 1024);
            let plan = Plan::make(&workload, &uniform_rates(1024, ratio), budget).unwrap();
            let streamed = count - (places - 3);
            let bound = f64::max(1.0, streamed as f64 * ratio / count as f64);
            plan.kinds[0].predicted_pass_s / count as f64 / bound - 1.0
        })
        .fold(f64::NEG_INFINITY, f64::max)
}

/// Ratios of copy to compute, densest where both take about as long, which is where it is hardest.
const RATIOS: [f64; 12] = [0.5, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 2.0, 2.5, 3.3, 4.0];

#[test]
fn sixteen_equal_blocks_and_more_are_planned_within_one_percent_of_what_three_places_allow() {
    for count in [16, 30, 40] {
        for ratio in RATIOS {
            let worst = worst(count, ratio);
            assert!(worst < 0.01, "{count} blocks, ratio {ratio}: {worst:.4}");
        }
    }
}

#[test]
fn with_few_blocks_the_seam_between_passes_weighs_more_but_at_most_two_percent() {
    // Three places cannot be dealt out evenly to a number of visits that three does not divide, so twice in a pass an
    // upload has a visit less of a head start: the fewer the visits, the larger a part of the pass this is.
    for count in [6, 8, 9, 12] {
        for ratio in RATIOS {
            let worst = worst(count, ratio);
            assert!(worst < 0.02, "{count} blocks, ratio {ratio}: {worst:.4}");
        }
    }
}
