//! How much host memory there is to take: what the system has, within the limits of the control groups.
//!
//! Knows Linux; elsewhere nothing is known. It reserves nothing: another process may take it a moment later.

use std::fs;
use std::path::{Component, Path};

/// Bytes of host memory that can be taken without swapping, or `None` if the system does not say.
///
/// The least of `MemAvailable` and, for every control group that this process is in (version 1 or 2, and the groups
/// around it), the limit less what is used. File pages count as free: they are given up when memory is short.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    available_bytes_under(Path::new("/"))
}

/// [`available_bytes`] by the files under another root, such as a container's or a test's.
#[must_use]
pub fn available_bytes_under(root: &Path) -> Option<u64> {
    let system = system_bytes(root);
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| {
        // number:controllers:path
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        match controllers {
            "" => ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
                .iter()
                .filter_map(|mount| group_bytes(&root.join(mount), path, &VERSION_2))
                .min(),
            list if list.split(',').any(|name| name == "memory") => {
                group_bytes(&root.join("sys/fs/cgroup/memory"), path, &VERSION_1)
            }
            _ => None,
        }
    });
    limits.chain(system).min()
}

fn system_bytes(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kib = field(&text, "MemAvailable:")?;
    kib.checked_mul(1024)
}

/// How a version of control groups names its files.
struct Names {
    /// The least of these; past the second, memory is taken back by force and the group slowed down.
    limits: [&'static str; 2],
    usage: &'static str,
    /// File pages in `memory.stat`, of the group and those in it.
    file_pages: [&'static str; 2],
}

const VERSION_1: Names = Names {
    limits: ["memory.limit_in_bytes", "memory.soft_limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    file_pages: ["total_active_file", "total_inactive_file"],
};

const VERSION_2: Names = Names {
    limits: ["memory.max", "memory.high"],
    usage: "memory.current",
    file_pages: ["active_file", "inactive_file"],
};

/// What the group at `path` and those around it leave, up to the mount.
///
/// In a container the path may be that of the host, where nothing is; the mount then is the container's own group.
fn group_bytes(mount: &Path, path: &str, names: &Names) -> Option<u64> {
    let path = Path::new(path.trim_start_matches('/'));
    if path.components().any(|part| part == Component::ParentDir) {
        return left_bytes(mount, names);
    }
    path.ancestors()
        .filter_map(|group| left_bytes(&mount.join(group), names))
        .min()
}

/// The limit less the usage, or `None` where there is no limit.
fn left_bytes(group: &Path, names: &Names) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    // "max" where there is no limit; version 1 has a limit past all memory then.
    let limits = names.limits.iter().filter_map(|name| read(name));
    let limit: u64 = limits.filter_map(|text| text.trim().parse().ok()).min()?;
    let used: u64 = read(names.usage)?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let file_pages: u64 = (names.file_pages.iter())
        .filter_map(|name| field(&stat, name))
        .fold(0, u64::saturating_add);
    Some(limit.saturating_sub(used.saturating_sub(file_pages)))
}

/// The number behind `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}
