//! Long runs leave device memory, pinned memory and the process as they found them.

use offload_core::device::Device;
use offload_core::encoding::Encoding;
use offload_core::executor::DeviceBudget;
use offload_core::model::PassKind;
use offload_core::testing::toy;

use crate::streaming::{offload, pinned};

/// Resident memory of this process, in bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next());
    kib.unwrap().parse::<u64>().unwrap() << 10
}

/// A model of 1 GB, Q8_0 and bf16, all streamed. `OFFLOAD_SOAK_PASSES` sets how often.
#[test]
fn passes_of_a_large_model_leave_nothing_behind() {
    let Some(device) = crate::device(|builder| builder) else {
        return;
    };
    let passes = crate::rounds("OFFLOAD_SOAK_PASSES", 100);
    let model = toy::model(&[[8192, 5120]; 16], &[Encoding::Q8_0, Encoding::BF16], 1);
    let model = pinned(&device, &model);
    let compute = device.create_stream("compute").unwrap();
    let mut offload = offload(&device, &model, DeviceBudget::Least, |plan| plan).unwrap();
    let state = |offload: &mut offload_core::executor::Offload<_>| {
        offload.report().unwrap();
        let memory = device.memory().unwrap();
        (
            memory.free_bytes,
            device.pinned_bytes(),
            device.live_handles(),
        )
    };
    let pass = |offload: &mut offload_core::executor::Offload<_>| {
        let mut pass = offload.pass(PassKind::FULL, &compute).unwrap();
        while pass.acquire().unwrap().is_some() {}
    };
    for _ in 0..20 {
        pass(&mut offload);
    }
    let (before, resident) = (state(&mut offload), resident_bytes());
    for _ in 0..passes {
        pass(&mut offload);
    }
    assert_eq!(state(&mut offload), before, "free, pinned, handles");
    let grown = resident_bytes().saturating_sub(resident);
    println!("{passes} passes: {before:?}, resident memory grew by {grown} bytes");
    // The list of the last passes fills up to its length.
    assert!(grown < 1 << 20, "{grown} bytes in {passes} passes");
}
