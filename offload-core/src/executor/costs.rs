//! What the planner is told about time: measured, or assumed.

use crate::plan::Rates;

/// Times for the planner.
///
/// The defaults are assumptions, not measurements: a PCIe 4.0 x16 link, DDR4 memory, an NVMe drive, and compute that
/// takes no time, so that the planner keeps as much resident as the budget allows.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    /// How fast bytes move.
    pub rates: Rates,
    /// Decoding, encoded bytes read plus arrived bytes written a second.
    pub decode_bytes_per_s: f64,
    /// Seconds of compute by pass kind and visit. Missing entries count as 0: not known.
    pub compute_s: Vec<Vec<f64>>,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            rates: Rates {
                wire_bytes_per_s: 25e9,
                upload_latency_s: 10e-6,
                host_bytes_per_s: 8e9,
                disk_bytes_per_s: 2e9,
            },
            decode_bytes_per_s: 500e9,
            compute_s: Vec::new(),
        }
    }
}

impl Costs {
    pub(super) fn compute_s(&self, kind: usize, visit: usize) -> f64 {
        self.compute_s
            .get(kind)
            .and_then(|visits| visits.get(visit))
            .copied()
            .unwrap_or(0.0)
    }

    pub(super) fn decode_s(&self, bytes: u64) -> f64 {
        bytes as f64 / self.decode_bytes_per_s
    }
}
