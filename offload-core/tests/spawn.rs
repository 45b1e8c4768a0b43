//! A thread that cannot be spawned is an error of `build`, not a hang.
//!
//! Address space is limited so far, in a process of its own, that the stacks of all threads do not fit. The limit goes
//! up until they do.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use offload_core::cpu::{CpuDevice, LiveCounts};

const STACK_BYTES: u64 = 1 << 30;

/// What runs in the limited process.
#[test]
#[ignore = "run by the other test"]
fn child() {
    let device = CpuDevice::builder().pins(false).build();
    let built = support::least(&device, support::mixed_model())
        .staging_buffers(offload_core::executor::StagingBuffers {
            count: 4,
            bytes: 4096,
        })
        .build();
    match built {
        Ok(_) => println!("built"),
        Err(error) => {
            println!("refused: {error:?}");
            assert_eq!(device.live(), LiveCounts::default(), "nothing leaks");
        }
    }
}

fn run(limit_kib: u64) -> String {
    let program = std::env::current_exe().unwrap();
    let script =
        format!("ulimit -v {limit_kib} && exec \"$0\" child --exact --ignored --nocapture");
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .arg(program)
        .env("RUST_MIN_STACK", STACK_BYTES.to_string())
        // One arena for all threads: the allocator takes address space for each.
        .env("MALLOC_ARENA_MAX", "1")
        .env("RUST_TEST_THREADS", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("hangs with {limit_kib} KiB of address space");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    if said.contains("built") || said.contains("refused: ") {
        assert!(output.status.success(), "{}: {said}", output.status);
    }
    said
}

#[test]
fn no_failure_to_spawn_a_thread_hangs() {
    let mut refused = 0;
    for stacks in 0..16 {
        let said = run((stacks * STACK_BYTES + (STACK_BYTES / 2)) >> 10);
        if said.contains("built") {
            // Two streams, and two workers at least.
            assert!(refused >= 4, "{refused} limits met");
            return;
        }
        let thread = said.contains("\"spawn\"") || said.contains("\"create_stream\"");
        refused += u64::from(said.contains("refused: ") && thread);
    }
    panic!("16 stacks of room are enough: {refused}");
}
