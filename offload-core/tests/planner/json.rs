//! A plan survives JSON, and nothing else passes for a plan.

use offload_core::plan::{Budget, Decoding, Fence, Plan, PlanError};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fences::plan_at;
use crate::replay::{self, Pass};
use crate::workloads;

/// Replaces the value at the `at`-th node, in depth-first order, by what `change` makes of it.
fn mutate(value: &mut Value, at: &mut usize, change: &dyn Fn(&Value) -> Value) {
    if *at == 0 {
        *value = change(value);
        *at = usize::MAX;
        return;
    }
    if *at == usize::MAX {
        return;
    }
    *at -= 1;
    match value {
        Value::Array(items) => {
            for item in items {
                mutate(item, at, change);
            }
        }
        Value::Object(fields) => {
            for (_, field) in fields.iter_mut() {
                mutate(field, at, change);
            }
        }
        _ => {}
    }
}

fn nodes(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(nodes).sum(),
        Value::Object(fields) => fields.values().map(nodes).sum(),
        _ => 0,
    }
}

/// One of many ways to spoil a value.
fn spoilt(value: &Value, how: u8) -> Value {
    match how % 14 {
        0 => Value::Null,
        1 => json!(u64::MAX),
        2 => json!(-1),
        3 => json!(1e308),
        4 => json!("text"),
        5 => json!([]),
        6 => json!({}),
        7 => json!(0),
        8 => json!(255),
        9 => json!(256),
        10 => json!(u64::MAX - 255),
        11 => match value {
            Value::Array(items) => Value::Array(items.iter().skip(1).cloned().collect()),
            other => other.clone(),
        },
        12 => match value {
            Value::Array(items) => Value::Array(items.iter().chain(items).cloned().collect()),
            other => other.clone(),
        },
        _ => match value.as_u64() {
            Some(number) => json!(number ^ 1 << (how / 14)),
            None => value.clone(),
        },
    }
}

/// What was read runs, whoever wrote it.
fn is_sound(plan: &Plan) -> Result<(), String> {
    replay::lies_well(plan)?;
    (0..plan.kinds.len()).try_for_each(|kind| replay::run(plan, &vec![Pass::full(plan, kind); 3]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_plan_read_back_is_the_plan_that_was_written(
        workload in workloads::any(7, 12),
        part in 0.0..1.1,
    ) {
        let plan = plan_at(&workload, part, None);
        prop_assert_eq!(Plan::from_json(&plan.to_json()), Ok(plan));
    }

    #[test]
    fn a_spoilt_plan_is_refused_or_still_sound(
        workload in workloads::any(4, 5),
        part in 0.0..1.1,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 24),
    ) {
        let plan = plan_at(&workload, part, None);
        let written: Value = serde_json::from_str(&plan.to_json()).unwrap();
        for (at, how) in changes {
            let mut value = written.clone();
            mutate(&mut value, &mut at.index(nodes(&written)), &|value| spoilt(value, how));
            match Plan::from_json(&value.to_string()) {
                Ok(plan) => prop_assert_eq!(is_sound(&plan), Ok(())),
                Err(error) => prop_assert!(matches!(error, PlanError::BadPlan { .. }), "{error}"),
            }
        }
    }

    #[test]
    fn spoilt_text_never_panics(
        workload in workloads::any(4, 5),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 24),
    ) {
        let text = plan_at(&workload, 0.4, None).to_json().into_bytes();
        for (at, byte) in changes {
            let mut text = text.clone();
            let index = at.index(text.len());
            text[index] = byte;
            if let Ok(plan) = Plan::from_json(&String::from_utf8_lossy(&text)) {
                prop_assert_eq!(is_sound(&plan), Ok(()));
            }
        }
    }
}

/// Four blocks by turns decoded and as stored, half of them resident.
fn sample() -> Plan {
    let blocks: Vec<_> = (0..4)
        .map(|index| match index % 2 {
            0 => workloads::direct(format!("stored {index}"), 1000),
            _ => workloads::decoded(format!("decoded {index}"), 1000, 500),
        })
        .collect();
    let visits = (0..4)
        .map(|block| workloads::visit(&blocks, block, 0.1, 0.1))
        .collect();
    let workload = offload_core::plan::Workload {
        blocks,
        kinds: vec![workloads::kind("full", 1.0, visits)],
        load_staging_bytes: 512,
    };
    let plan = Plan::make(&workload, &workloads::rates(1000.0), Budget::Bytes(4096)).unwrap();
    assert!(plan.blocks.iter().any(|block| block.resident.is_some()));
    assert!(
        plan.kinds[0]
            .visits
            .iter()
            .any(|visit| visit.place.is_some())
    );
    plan
}

#[test]
fn each_inconsistency_is_refused_by_name() {
    type Spoil = fn(&mut Plan);
    let cases: &[(&str, Spoil)] = &[
        ("exceeds the budget", |plan| {
            plan.budget_bytes = plan.arena_bytes - 1
        }),
        ("its parts come to", |plan| plan.arena_bytes += 256),
        ("high-water mark", |plan| plan.high_water_bytes -= 1),
        ("region of", |plan| plan.arena.window.offset += 256),
        ("region of", |plan| plan.arena.resident.bytes += 1),
        ("do not lie in the region", |plan| {
            for block in &mut plan.blocks {
                if let Some(place) = &mut block.resident {
                    place.offset = u64::MAX - 255;
                }
            }
        }),
        ("do not lie in the region", |plan| {
            for block in &mut plan.blocks {
                if let Some(place) = &mut block.resident {
                    place.bytes = u64::MAX;
                }
            }
        }),
        ("do not lie in the region", |plan| {
            for visit in &mut plan.kinds[0].visits {
                if let Some(place) = &mut visit.place {
                    place.offset += 1;
                }
            }
        }),
        ("overlap", |plan| {
            let place = plan.blocks.iter().find_map(|block| block.resident);
            for block in &mut plan.blocks {
                block.remainder = place;
            }
        }),
        ("has a place in the window or lacks one", |plan| {
            for visit in &mut plan.kinds[0].visits {
                visit.place = None;
            }
        }),
        ("is packed or lacks it", |plan| {
            for block in &mut plan.blocks {
                block.packed = None;
            }
        }),
        ("is packed elsewhere than its block", |plan| {
            for visit in &mut plan.kinds[0].visits {
                visit.packed = None;
            }
        }),
        ("do not follow from its places", |plan| {
            plan.decoding = match plan.decoding {
                Decoding::Ahead => Decoding::AtUse,
                Decoding::AtUse => Decoding::Ahead,
            }
        }),
        ("is to block 9 of 4", |plan| {
            plan.kinds[0].visits[1].block = 9
        }),
        ("no pass kind", |plan| plan.kinds.clear()),
        ("do not follow from its places", |plan| {
            plan.kinds[0].operations.reverse()
        }),
        ("do not follow from its places", |plan| {
            plan.kinds[0].operations.pop();
        }),
        ("do not follow from its places", |plan| {
            plan.kinds[0].operations[0].visit = u32::MAX;
        }),
        ("do not follow from its places", |plan| {
            *plan = plan.without_fence(Fence::StagingRead);
        }),
        ("predicted pass", |plan| {
            plan.kinds[0].predicted_pass_s = -1.0
        }),
    ];
    for (expected, spoil) in cases {
        let mut plan = sample();
        spoil(&mut plan);
        let error = Plan::from_json(&plan.to_json()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}: not {expected}");
    }
    for text in ["", "null", "[]", "{}", "\u{0}", "{\"blocks\":[]}"] {
        assert!(Plan::from_json(text).is_err());
    }
    let infinite = sample()
        .to_json()
        .replace("\"schedule_gap\":", "\"schedule_gap\":1e999,\"x\":");
    assert!(Plan::from_json(&infinite).is_err());
}
