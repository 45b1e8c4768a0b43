//! The table that people read.

use offload_core::plan::{Budget, Plan};

use crate::workloads::{uniform, uniform_rates};

#[test]
fn a_plan_prints_its_forms_its_times_and_what_it_leaves() {
    let workload = uniform(8, 1 << 20);
    let plan = |ratio, mib: u64| {
        let rates = uniform_rates(1 << 20, ratio);
        Plan::make(&workload, &rates, Budget::Bytes(mib << 20))
            .unwrap()
            .to_string()
    };
    let wire_bound = plan(4.0, 6);
    for part in [
        "of 6.00 MiB budget",
        "resident: blocks",
        "streamed: blocks",
        "wire-bound",
        "placement gap",
    ] {
        assert!(wire_bound.contains(part), "{part} is not in\n{wire_bound}");
    }
    assert!(!wire_bound.contains("left to activations"), "{wire_bound}");

    let compute_bound = plan(0.5, 6);
    assert!(
        compute_bound.contains("8 streamed: blocks 0-7"),
        "{compute_bound}"
    );
    assert!(
        compute_bound.contains("4.00 MiB of the budget are left to activations"),
        "{compute_bound}"
    );

    let resident = plan(4.0, 9);
    assert!(resident.contains("nothing moves"), "{resident}");
}
