//! Plans keep to their budget, and there is one whenever there can be.

use offload_core::model::Residency;
use offload_core::plan::{Budget, Form, Plan, PlanError, Verdict, Wishes};
use proptest::prelude::*;

use crate::fences::plan_at;
use crate::workloads::{self, uniform, uniform_rates};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn below_the_least_there_is_no_plan_and_from_it_on_there_always_is(
        workload in workloads::any(8, 10),
        more in 0..20_000_u64,
    ) {
        let rates = workloads::rates(1000.0);
        let least = Plan::make(&workload, &rates, Budget::Least).unwrap();
        prop_assert_eq!(least.arena_bytes, least.budget_bytes);
        let least_bytes = least.arena_bytes;
        if let Some(budget_bytes) = least_bytes.checked_sub(1) {
            prop_assert_eq!(
                Plan::make(&workload, &rates, Budget::Bytes(budget_bytes)),
                Err(PlanError::BudgetTooSmall { budget_bytes, least_bytes })
            );
        }
        let plan = Plan::make(&workload, &rates, Budget::Bytes(least_bytes + more)).unwrap();
        prop_assert!(plan.arena_bytes <= least_bytes + more);
    }

    #[test]
    fn forced_blocks_are_as_they_are_told(workload in workloads::any(8, 10), part in 0.0..1.2) {
        let plan = plan_at(&workload, part, None);
        for (load, block) in workload.blocks.iter().zip(&plan.blocks) {
            match load.residency {
                _ if load.place_bytes == 0 => prop_assert_eq!(block.form, Form::Resident),
                Residency::Always => prop_assert_eq!(block.form, Form::Resident),
                Residency::Never => prop_assert_eq!(block.form, Form::Streamed),
                Residency::Planned => {}
            }
            prop_assert_eq!(block.remainder.map_or(0, |place| place.bytes), load.remainder_bytes);
        }
    }

    #[test]
    fn where_everything_fits_everything_is_resident(workload in workloads::any(8, 10)) {
        let mut workload = workload;
        for block in &mut workload.blocks {
            block.residency = Residency::Planned;
        }
        let plan = Plan::make(&workload, &workloads::rates(1.0), Budget::Bytes(1 << 30)).unwrap();
        prop_assert!(plan.blocks.iter().all(|block| block.form == Form::Resident));
        for kind in &plan.kinds {
            prop_assert_eq!(kind.verdict, Verdict::Resident);
            prop_assert_eq!(kind.wire_bytes_per_pass, 0);
            prop_assert_eq!(kind.certificate.placement_gap, 0.0);
        }
    }

    #[test]
    fn the_same_inputs_give_the_same_plan(workload in workloads::any(8, 10), part in 0.0..1.1) {
        prop_assert_eq!(plan_at(&workload, part, None), plan_at(&workload.clone(), part, None));
    }

    #[test]
    fn without_known_compute_times_more_budget_never_means_more_wire(
        count in 2..40_usize,
        budget in 2..40_u64,
    ) {
        let mut workload = uniform(count, 1024);
        for visit in &mut workload.kinds[0].visits {
            visit.compute_s = 0.0;
        }
        let wire = |places: u64| {
            let budget = Budget::Bytes(places * 1024);
            let plan = Plan::make(&workload, &uniform_rates(1024, 1.0), budget).unwrap();
            plan.kinds[0].wire_bytes_per_pass
        };
        prop_assert!(wire(budget + 1) <= wire(budget));
    }
}

#[test]
fn loading_needs_staging_even_if_nothing_is_streamed() {
    let mut workload = uniform(3, 1000);
    workload.load_staging_bytes = 700;
    let plan = Plan::make(&workload, &uniform_rates(1000, 1.0), Budget::Bytes(1 << 20)).unwrap();
    assert_eq!(plan.arena.resident.bytes, 3 * 1024);
    assert_eq!(plan.arena.window.bytes, 0);
    assert_eq!(plan.arena.staging.bytes, 768);
}

#[test]
fn the_least_keeps_a_large_block_resident_rather_than_widening_the_window() {
    let mut workload = uniform(3, 1024);
    workload.blocks[1].place_bytes = 10 * 1024;
    let plan = Plan::make(&workload, &uniform_rates(1024, 1.0), Budget::Least).unwrap();
    // Streaming all takes 10 places; keeping the large one takes 10 and 1.
    assert_eq!(plan.arena_bytes, 10 * 1024);
    assert_eq!(plan.blocks[1].form, Form::Streamed);
    workload.blocks[1].residency = Residency::Always;
    let plan = Plan::make(&workload, &uniform_rates(1024, 1.0), Budget::Least).unwrap();
    assert_eq!(plan.arena_bytes, 11 * 1024);
}

#[test]
fn where_compute_hides_every_copy_memory_is_left_to_activations() {
    let workload = uniform(40, 1024);
    let budget = Budget::Bytes(39 * 1024);
    let plan = Plan::make(&workload, &uniform_rates(1024, 0.5), budget).unwrap();
    assert_eq!(plan.kinds[0].verdict, Verdict::ComputeBound);
    assert_eq!(plan.arena_bytes, 2 * 1024);
    assert!(plan.to_string().contains("left to activations"));
}

#[test]
fn a_block_that_is_never_visited_waits_on_the_host() {
    let mut workload = uniform(4, 1024);
    workload.kinds[0].visits.pop();
    let plan = Plan::make(
        &workload,
        &uniform_rates(1024, 4.0),
        Budget::Bytes(3 * 1024),
    )
    .unwrap();
    assert_eq!(plan.blocks[3].form, Form::Streamed);
    assert_eq!(plan.kinds[0].verdict, Verdict::Resident);
}

fn ahead(blocks: u32) -> Wishes {
    Wishes {
        blocks_ahead: Some(blocks),
        ..Wishes::default()
    }
}

/// The window is as deep as asked, and the plan keeps to its budget all the same.
#[test]
fn a_window_that_is_asked_for_has_so_many_places_and_one() {
    let bytes = 1 << 20;
    let (workload, rates) = (uniform(12, bytes), uniform_rates(bytes, 1.0));
    let mut last = 0;
    for blocks in [0, 1, 2, 5] {
        let plan = Plan::make_as(&workload, &rates, Budget::Least, ahead(blocks)).unwrap();
        assert_eq!(plan.arena.window.bytes, (u64::from(blocks) + 1) * bytes);
        assert!(plan.arena_bytes <= plan.budget_bytes && plan.arena_bytes > last);
        last = plan.arena_bytes;
        let more = Budget::Bytes(plan.arena_bytes + 3 * bytes);
        let plan = Plan::make_as(&workload, &rates, more, ahead(blocks)).unwrap();
        assert_eq!(plan.arena.window.bytes, (u64::from(blocks) + 1) * bytes);
        assert!(plan.arena_bytes <= plan.budget_bytes);
    }
    // No deeper than all visits, however many are asked for: then all can stay.
    let all = Plan::make_as(&workload, &rates, Budget::Least, ahead(u32::MAX)).unwrap();
    assert_eq!(all.arena_bytes, 12 * bytes);
}
