//! What host memory is available, by files as Linux writes them.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::path::Path;

use offload_core::host::{available_bytes, available_bytes_under};
use tempfile::TempDir;

const GIB: u64 = 1 << 30;

/// A root with these files.
fn root(files: &[(&str, String)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    root
}

fn meminfo(available_bytes: u64) -> (&'static str, String) {
    let kib = available_bytes / 1024;
    let text = format!(
        "MemTotal:       65784952 kB\nMemFree:          123456 kB\nMemAvailable:   {kib:8} kB\n"
    );
    ("proc/meminfo", text)
}

fn groups(text: &str) -> (&'static str, String) {
    ("proc/self/cgroup", text.to_owned())
}

fn number(path: &'static str, number: u64) -> (&'static str, String) {
    (path, format!("{number}\n"))
}

fn available(files: &[(&str, String)]) -> Option<u64> {
    available_bytes_under(root(files).path())
}

#[test]
fn without_groups_it_is_what_the_system_has() {
    assert_eq!(available(&[meminfo(20 * GIB)]), Some(20 * GIB));
    assert_eq!(
        available(&[meminfo(20 * GIB), groups("0::/\n")]),
        Some(20 * GIB)
    );
}

#[test]
fn a_group_of_version_2_limits_it() {
    let files = |limit: &str| {
        [
            meminfo(20 * GIB),
            groups("0::/user.slice/job.scope\n"),
            (
                "sys/fs/cgroup/user.slice/job.scope/memory.max",
                format!("{limit}\n"),
            ),
            number("sys/fs/cgroup/user.slice/job.scope/memory.current", 3 * GIB),
            (
                "sys/fs/cgroup/user.slice/job.scope/memory.stat",
                format!(
                    "anon {}\nfile {}\ninactive_file {}\nactive_file {}\n",
                    GIB,
                    2 * GIB,
                    GIB,
                    GIB / 2
                ),
            ),
        ]
    };
    // 8 less 3, of which 1.5 are file pages.
    let limit = (8 * GIB).to_string();
    assert_eq!(available(&files(&limit)), Some(6 * GIB + GIB / 2));
    assert_eq!(available(&files("max")), Some(20 * GIB));
    // More is used than the limit, which may be lowered at any time.
    let limit = GIB.to_string();
    assert_eq!(available(&files(&limit)), Some(0));
}

#[test]
fn a_group_that_is_slowed_down_past_a_mark_stays_below_it() {
    let files = [
        meminfo(20 * GIB),
        groups("0::/job\n"),
        ("sys/fs/cgroup/job/memory.max", "max\n".to_owned()),
        number("sys/fs/cgroup/job/memory.high", 4 * GIB),
        number("sys/fs/cgroup/job/memory.current", GIB),
    ];
    assert_eq!(available(&files), Some(3 * GIB));
}

#[test]
fn the_tightest_of_the_groups_around_counts() {
    let files = [
        meminfo(20 * GIB),
        groups("0::/a/b\n"),
        ("sys/fs/cgroup/a/b/memory.max", "max\n".to_owned()),
        number("sys/fs/cgroup/a/b/memory.current", GIB),
        number("sys/fs/cgroup/a/memory.max", 4 * GIB),
        number("sys/fs/cgroup/a/memory.current", 3 * GIB),
    ];
    assert_eq!(available(&files), Some(GIB));
}

#[test]
fn a_group_of_version_1_limits_it() {
    let files = |group: &str| {
        let place = |name: &str| format!("sys/fs/cgroup/memory{group}/{name}");
        let files = [
            (place("memory.limit_in_bytes"), (6 * GIB).to_string()),
            (place("memory.usage_in_bytes"), (5 * GIB).to_string()),
            (
                place("memory.stat"),
                format!("cache 1\ntotal_inactive_file {}\n", 2 * GIB),
            ),
        ];
        let groups = groups("5:cpu,cpuacct:/job\n4:memory:/docker/1234\n1:name=systemd:/x\n");
        let own = files.iter().map(|(path, text)| (&**path, text.clone()));
        available(&own.chain([meminfo(20 * GIB), groups]).collect::<Vec<_>>())
    };
    assert_eq!(files("/docker/1234"), Some(3 * GIB));
    assert_eq!(
        files(""),
        Some(3 * GIB),
        "the mount is the container's group"
    );
    let unlimited = [
        meminfo(20 * GIB),
        groups("4:memory:/\n"),
        number(
            "sys/fs/cgroup/memory/memory.limit_in_bytes",
            0x7FFF_FFFF_FFFF_F000,
        ),
        number("sys/fs/cgroup/memory/memory.usage_in_bytes", GIB),
    ];
    assert_eq!(available(&unlimited), Some(20 * GIB));
}

#[test]
fn what_cannot_be_read_limits_nothing() {
    assert_eq!(available(&[]), None);
    assert_eq!(
        available(&[("proc/meminfo", "nonsense\n".to_owned())]),
        None
    );
    let files = [
        meminfo(GIB),
        groups("0::/../..\nnonsense\n::\n"),
        ("sys/fs/cgroup/memory.max", "lots\n".to_owned()),
    ];
    assert_eq!(available(&files), Some(GIB));
}

#[cfg(target_os = "linux")]
#[test]
fn this_machine_has_some() {
    let available = available_bytes().unwrap();
    let total = std::fs::read_to_string(Path::new("/proc/meminfo")).unwrap();
    let total = total.split_whitespace().nth(1).unwrap();
    let total: u64 = total.parse().unwrap();
    assert!(available > 0 && available < total * 1024, "{available}");
}
