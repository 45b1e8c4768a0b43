//! Workloads that make no sense are refused with the numbers; none of them panics or overflows.

use offload_core::plan::{
    Budget, Decoding, PartLoad, Plan, PlanError, Rates, Tier, Wishes, Workload,
};
use proptest::prelude::*;

use crate::workloads::{self, uniform};

fn reason(workload: &Workload, rates: &Rates) -> String {
    match Plan::make(workload, rates, Budget::Bytes(u64::MAX)) {
        Err(PlanError::BadWorkload { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn blocks_ahead_of_what_is_decoded_at_use_are_refused() {
    let wishes = Wishes {
        blocks_ahead: Some(2),
        decoding: Some(Decoding::AtUse),
        unpacked: false,
    };
    let (workload, rates) = (uniform(4, 1024), workloads::rates(1.0));
    let error = Plan::make_as(&workload, &rates, Budget::Least, wishes).unwrap_err();
    assert!(error.to_string().contains("2 blocks ahead"), "{error}");
}

#[test]
fn each_contradiction_is_named() {
    type Spoil = fn(&mut Workload);
    let cases: &[(&str, Spoil)] = &[
        ("there is no block", |load| load.blocks.clear()),
        ("there is no pass kind", |load| load.kinds.clear()),
        ("is to block 4 of 4", |load| {
            load.kinds[0].visits[2].block = 4
        }),
        ("is to block 18446744073709551615 of 4", |load| {
            load.kinds[0].visits[2].block = usize::MAX;
        }),
        ("bytes in all", |load| load.blocks[1].place_bytes = u64::MAX),
        ("bytes in all", |load| {
            load.blocks[1].remainder_bytes = u64::MAX
        }),
        ("bytes in all", |load| {
            load.blocks[1].staging_bytes = u64::MAX
        }),
        ("bytes in all", |load| load.load_staging_bytes = u64::MAX),
        (
            "brings 1025 bytes, block block 1 has room for 1024",
            |load| {
                load.kinds[0].visits[1].wire_bytes = 1025;
            },
        ),
        (
            "brings 1024 bytes, block block 1 has room for 512",
            |load| {
                load.blocks[1].staging_bytes = 512;
            },
        ),
        ("come to 1025 bytes, it is staged in 1024", |load| {
            load.blocks[1].staging_bytes = 1024;
            load.blocks[1].parts = vec![1000, 25];
        }),
        ("has 0 parts, block block 1 has 2", |load| {
            load.blocks[1].staging_bytes = 1024;
            load.blocks[1].parts = vec![1000, 24];
        }),
        ("brings 1000 bytes, but its parts 1024", |load| {
            load.blocks[1].staging_bytes = 1024;
            load.blocks[1].parts = vec![1000, 24];
            load.kinds[0].visits[1].wire_bytes = 1000;
            load.kinds[0].visits[1].parts = [1000, 24]
                .map(|wire_bytes| PartLoad {
                    wire_bytes,
                    uploads: 1,
                    decode_s: 0.0,
                })
                .to_vec();
        }),
        ("computes for NaN", |load| {
            load.kinds[0].visits[0].compute_s = f64::NAN
        }),
        ("computes for -1", |load| {
            load.kinds[0].visits[0].compute_s = -1.0
        }),
        ("computes for inf", |load| {
            load.kinds[0].visits[0].compute_s = f64::INFINITY
        }),
        ("decodes for NaN", |load| {
            load.kinds[0].visits[0].decode_s = f64::NAN
        }),
        ("moves and computes for", |load| {
            for visit in &mut load.kinds[0].visits {
                visit.compute_s = 9e11;
            }
        }),
        ("has the share 0", |load| load.kinds[0].share = 0.0),
        ("has the share NaN", |load| load.kinds[0].share = f64::NAN),
        ("has the share -1", |load| load.kinds[0].share = -1.0),
        ("sum to inf", |load| {
            load.kinds[0].share = f64::MAX;
            load.kinds.push(load.kinds[0].clone());
        }),
    ];
    for (expected, spoil) in cases {
        let mut workload = uniform(4, 1024);
        spoil(&mut workload);
        let reason = reason(&workload, &workloads::rates(1.0));
        assert!(reason.contains(expected), "{reason}: not {expected}");
    }
}

#[test]
fn rates_that_are_no_rates_are_named() {
    type Spoil = fn(&mut Rates);
    let cases: &[(&str, Spoil)] = &[
        ("wire rate of 0", |rates| rates.wire_bytes_per_s = 0.0),
        ("wire rate of NaN", |rates| {
            rates.wire_bytes_per_s = f64::NAN
        }),
        ("host rate of -1", |rates| rates.host_bytes_per_s = -1.0),
        ("disk rate of inf", |rates| {
            rates.disk_bytes_per_s = f64::INFINITY
        }),
        ("upload latency of -1", |rates| {
            rates.upload_latency_s = -1.0
        }),
        ("upload latency of NaN", |rates| {
            rates.upload_latency_s = f64::NAN
        }),
        ("moves and computes for inf", |rates| {
            rates.wire_bytes_per_s = 1e-308
        }),
    ];
    for (expected, spoil) in cases {
        let mut rates = workloads::rates(1.0);
        spoil(&mut rates);
        let reason = reason(&uniform(4, 1024), &rates);
        assert!(reason.contains(expected), "{reason}: not {expected}");
    }
}

#[test]
fn a_kind_without_visits_takes_no_time() {
    let mut workload = uniform(2, 1024);
    workload.kinds[0].visits.clear();
    for budget in [Budget::Least, Budget::Bytes(1 << 20)] {
        let plan = Plan::make(&workload, &workloads::rates(1.0), budget).unwrap();
        assert_eq!(plan.kinds[0].predicted_pass_s, 0.0);
        assert_eq!(plan.kinds[0].certificate.placement_gap, 0.0);
    }
}

#[test]
fn the_largest_numbers_that_are_allowed_still_plan() {
    let mut workload = uniform(3, 1 << 58);
    workload.blocks[1].tier = Tier::Disk;
    for visit in &mut workload.kinds[0].visits {
        visit.uploads = u32::MAX;
        visit.compute_s = 1e9;
    }
    for budget in [
        Budget::Least,
        Budget::Bytes(1 << 59),
        Budget::Bytes(u64::MAX),
    ] {
        let plan = Plan::make(&workload, &workloads::rates(1e10), budget).unwrap();
        assert_eq!(Plan::from_json(&plan.to_json()), Ok(plan));
    }
}

fn wild() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(0.0),
        Just(-0.0),
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::MAX),
        Just(f64::MIN_POSITIVE),
        Just(5e-324),
        Just(1.0),
        any::<f64>(),
    ]
}

fn wild_bytes() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(1024),
        Just(u64::MAX),
        0..5000_u64,
        any::<u64>()
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_is_asked_there_is_an_answer(
        workload in workloads::any(5, 6),
        numbers in prop::collection::vec(wild(), 6),
        bytes in prop::collection::vec(wild_bytes(), 4),
        at in any::<prop::sample::Index>(),
        which in 0..14_u8,
        budget in wild_bytes(),
    ) {
        let mut workload = workload;
        let mut rates = workloads::rates(1000.0);
        let block = at.index(workload.blocks.len());
        match which {
            0 => workload.blocks[block].place_bytes = bytes[0],
            1 => workload.blocks[block].staging_bytes = bytes[0],
            2 => workload.blocks[block].remainder_bytes = bytes[0],
            3 => workload.load_staging_bytes = bytes[0],
            4 => workload.kinds[0].share = numbers[0],
            5 => rates.wire_bytes_per_s = numbers[0],
            6 => rates.host_bytes_per_s = numbers[0],
            12 => workload.blocks[block].parts = bytes[..2].to_vec(),
            13 => {
                for visit in &mut workload.kinds[0].visits {
                    for part in &mut visit.parts {
                        (part.wire_bytes, part.decode_s) = (bytes[0], numbers[0]);
                    }
                }
            }
            7 => rates.upload_latency_s = numbers[0],
            _ => for visit in &mut workload.kinds[0].visits {
                match which {
                    8 => visit.compute_s = numbers[visit.block],
                    9 => visit.decode_s = numbers[visit.block],
                    10 => visit.wire_bytes = bytes[0],
                    _ => visit.block = bytes[1] as usize,
                }
            }
        }
        for budget in [Budget::Least, Budget::Bytes(budget)] {
            if let Ok(plan) = Plan::make(&workload, &rates, budget) {
                prop_assert_eq!(Plan::from_json(&plan.to_json()), Ok(plan.clone()));
                prop_assert!(!plan.to_string().is_empty());
            }
        }
    }
}
