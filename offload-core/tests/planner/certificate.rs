//! What a plan says of its own quality.

use offload_core::plan::{Budget, Plan, Rates, Stage, Verdict, Workload};
use proptest::prelude::*;

use crate::fences::{decodings, plan_at};
use crate::replay;
use crate::workloads::{self, uniform, uniform_rates};

/// Seconds of an operation, by stage, visit and part, of a visit in so many parts, as the documentation of the types has
/// them.
fn costs<'a>(
    workload: &'a Workload,
    rates: &'a Rates,
    kind: usize,
) -> impl Fn((Stage, u32, u32), usize) -> f64 + 'a {
    use offload_core::plan::Tier;
    move |(stage, visit, part), parts| {
        let visit = &workload.kinds[kind].visits[visit as usize];
        let block = &workload.blocks[visit.block];
        let rate = match block.tier {
            Tier::Pinned => rates.wire_bytes_per_s,
            Tier::Host => rates.host_bytes_per_s.min(rates.wire_bytes_per_s),
            Tier::Disk => rates.disk_bytes_per_s.min(rates.wire_bytes_per_s),
        };
        let (wire_bytes, uploads, decode_s) = match visit.parts.get(part as usize) {
            Some(part) if parts > 1 => (part.wire_bytes, part.uploads, part.decode_s),
            _ => (visit.wire_bytes, visit.uploads, visit.decode_s),
        };
        match stage {
            Stage::Upload => f64::from(uploads) * rates.upload_latency_s + wire_bytes as f64 / rate,
            Stage::Decode => decode_s,
            Stage::Compute => visit.compute_s,
        }
    }
}

/// Seconds of computes and decodes in a pass.
fn device_s(workload: &Workload, plan: &Plan, kind: usize) -> f64 {
    let visits = workload.kinds[kind].visits.iter();
    let visits = visits.zip(&plan.kinds[kind].visits);
    visits
        .map(|(load, visit)| match visit.is_decoded() {
            true => load.compute_s + load.decode_s,
            false => load.compute_s,
        })
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn predicted_times_are_those_of_a_replay(
        workload in workloads::any(7, 12),
        part in 0.0..1.1,
        decoding in decodings(),
    ) {
        let plan = plan_at(&workload, part, decoding);
        let rates = workloads::rates(1000.0);
        for (index, kind) in plan.kinds.iter().enumerate() {
            let costs = costs(&workload, &rates, index);
            let ends = replay::pass_ends(&plan, index, 241, costs);
            prop_assert!((ends[0] - kind.predicted_cold_pass_s).abs() <= 1e-9 * (1.0 + ends[0]));
            // Exact once passes repeat; 240 passes bound what the transient adds.
            let mean = (ends[240] - ends[120]) / 120.0;
            // The replay's streams share nothing; a device's share its execution units.
            let mean = mean.max(device_s(&workload, &plan, index));
            prop_assert!(
                (mean - kind.predicted_pass_s).abs() <= 0.01 * mean + 1e-9,
                "replayed {mean}, predicted {}", kind.predicted_pass_s
            );
        }
    }

    #[test]
    fn no_plan_is_faster_than_its_bounds(
        workload in workloads::any(8, 10),
        part in 0.0..1.1,
        decoding in decodings(),
    ) {
        let plan = plan_at(&workload, part, decoding);
        for (index, (load, kind)) in workload.kinds.iter().zip(&plan.kinds).enumerate() {
            let certificate = &kind.certificate;
            prop_assert!(certificate.placement_bound_s <= certificate.schedule_bound_s);
            prop_assert!(certificate.schedule_bound_s <= kind.predicted_pass_s);
            let compute_s: f64 = load.visits.iter().map(|visit| visit.compute_s).sum();
            prop_assert!(certificate.placement_bound_s >= compute_s * (1.0 - 1e-9));
            let device_s = device_s(&workload, &plan, index);
            let tolerance = 1e-6 * kind.predicted_pass_s;
            prop_assert!(certificate.schedule_bound_s >= device_s - tolerance);
            // What a compute stream decodes itself is no stall; what is decoded beside it may be, or make it slower.
            let most = kind.predicted_pass_s - compute_s + tolerance;
            let least = kind.predicted_pass_s - device_s - tolerance;
            prop_assert!((least..=most).contains(&kind.predicted_stall_s));
            for (gap, bound) in [
                (certificate.schedule_gap, certificate.schedule_bound_s),
                (certificate.placement_gap, certificate.placement_bound_s),
            ] {
                let expected = if bound > 0.0 { kind.predicted_pass_s / bound - 1.0 } else { 0.0 };
                prop_assert!((gap - expected).abs() <= 1e-9 * (1.0 + expected));
            }
        }
    }

    #[test]
    fn more_budget_never_makes_the_placement_bound_worse(
        workload in workloads::any(8, 10),
        more in 0..4000_u64,
    ) {
        let rates = workloads::rates(1000.0);
        let least = Plan::make(&workload, &rates, Budget::Least).unwrap();
        let larger = Budget::Bytes(least.budget_bytes + more);
        let larger = Plan::make(&workload, &rates, larger).unwrap();
        for (one, other) in least.kinds.iter().zip(&larger.kinds) {
            prop_assert!(
                other.certificate.placement_bound_s
                    <= one.certificate.placement_bound_s * (1.0 + 1e-9)
            );
        }
    }
}

#[test]
fn one_place_leaves_nothing_to_overlap() {
    let plan = Plan::make(&uniform(5, 1024), &uniform_rates(1024, 2.0), Budget::Least).unwrap();
    let kind = &plan.kinds[0];
    assert!((kind.predicted_pass_s - 15.0).abs() < 1e-9);
    assert!((kind.predicted_stall_s - 10.0).abs() < 1e-9);
    assert!((kind.certificate.schedule_bound_s - 10.0).abs() < 1e-9);
    assert!((kind.certificate.schedule_gap - 0.5).abs() < 1e-9);
}

#[test]
fn the_verdict_names_what_limits_a_pass() {
    let verdict = |ratio: f64, decode_s: f64| {
        let mut workload = uniform(8, 1024);
        for block in &mut workload.blocks {
            block.staging_bytes = 1024;
        }
        for visit in &mut workload.kinds[0].visits {
            visit.decode_s = decode_s;
        }
        let plan = Plan::make(
            &workload,
            &uniform_rates(1024, ratio),
            Budget::Bytes(6 * 1024),
        );
        plan.unwrap().kinds[0].verdict
    };
    assert_eq!(verdict(0.5, 0.1), Verdict::ComputeBound);
    assert_eq!(verdict(3.0, 0.1), Verdict::WireBound);
    assert_eq!(verdict(0.5, 3.0), Verdict::DecodeBound);
}

#[test]
fn slow_tiers_are_kept_resident_first() {
    let mut workload = uniform(8, 1024);
    for block in [2, 5] {
        workload.blocks[block].tier = offload_core::plan::Tier::Disk;
    }
    let plan = Plan::make(
        &workload,
        &uniform_rates(1024, 2.0),
        Budget::Bytes(4 * 1024),
    );
    let plan = plan.unwrap();
    for block in [2, 5] {
        assert_eq!(plan.blocks[block].form, offload_core::plan::Form::Resident);
    }
}

#[test]
fn residents_go_where_most_passes_need_them() {
    // Two kinds over separate halves, one of them ten times as frequent; no compute to hide anything.
    let mut workload = uniform(8, 1024);
    let mut visits = std::mem::take(&mut workload.kinds[0].visits);
    for visit in &mut visits {
        visit.compute_s = 0.0;
    }
    let rare = visits.split_off(4);
    workload.kinds = vec![
        workloads::kind("frequent", 10.0, visits),
        workloads::kind("rare", 1.0, rare),
    ];
    let plan = Plan::make(
        &workload,
        &uniform_rates(1024, 1.0),
        Budget::Bytes(6 * 1024),
    );
    let plan = plan.unwrap();
    assert_eq!(plan.kinds[0].wire_bytes_per_pass, 0);
    assert_eq!(plan.kinds[1].wire_bytes_per_pass, 3 * 1024);
}
