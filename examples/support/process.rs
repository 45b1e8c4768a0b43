//! Memory of this process, as the system counts it.

use std::fs;

/// Bytes of host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessMemory {
    /// Those that lie in RAM.
    pub(crate) resident_bytes: u64,
    /// Those that addresses were given for.
    pub(crate) virtual_bytes: u64,
}

impl ProcessMemory {
    /// What is taken now; `None` on systems other than Linux.
    pub(crate) fn now() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let bytes = |key: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(kib << 10)
        };
        Some(Self {
            resident_bytes: bytes("VmRSS:")?,
            virtual_bytes: bytes("VmSize:")?,
        })
    }

    /// What is left without `bytes` of memory that are counted elsewhere.
    pub(crate) fn without(self, bytes: u64) -> Self {
        Self {
            resident_bytes: self.resident_bytes.saturating_sub(bytes),
            virtual_bytes: self.virtual_bytes.saturating_sub(bytes),
        }
    }

    /// The larger of each.
    pub(crate) fn or_more(self, other: Self) -> Self {
        Self {
            resident_bytes: self.resident_bytes.max(other.resident_bytes),
            virtual_bytes: self.virtual_bytes.max(other.virtual_bytes),
        }
    }
}
