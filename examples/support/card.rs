//! How fast cards are, for planning without one.

use offload_core::executor::Costs;
use offload_core::plan::Rates;
use serde::Deserialize;

/// A card's limits.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Card {
    /// Host to device from pinned memory, bytes a second.
    pub(crate) wire_bytes_per_s: f64,
    /// Seconds each upload takes on top of its bytes.
    pub(crate) upload_latency_s: f64,
    /// Pageable memory through staging buffers, bytes a second.
    pub(crate) host_bytes_per_s: f64,
    /// Files through staging buffers, bytes a second.
    pub(crate) disk_bytes_per_s: f64,
    /// Decoding, encoded bytes read plus arrived bytes written a second.
    pub(crate) decode_bytes_per_s: f64,
    /// Matrix products, operations a second.
    pub(crate) flops_per_s: f64,
}

/// Share of the published matrix rate that large products reach. 700 of 989 TFLOP/s measured on an H200.
const MATRIX_SHARE: f64 = 0.7;

/// Share of the published memory rate that decoding reaches: 0.88 for a copy, measured on an H200, and 0.9 of that.
const DECODE_SHARE: f64 = 0.79;

/// Name, dense bf16 TFLOP/s with f32 sums, memory GB/s, GB/s over the wire. The first two are NVIDIA's data sheets and
/// architecture papers; the wire is what pinned uploads reach on the card's PCIe generation and width: 25 GB/s for
/// 4.0 x16, half of that for x8, and 55.4 GB/s for 5.0 x16 as measured on an H200.
const CARDS: &[(&str, f64, f64, f64)] = &[
    ("h200", 989.0, 4800.0, 55.4),
    ("h100", 989.0, 3350.0, 55.4),
    ("a100-80g", 312.0, 2039.0, 25.0),
    ("a100-40g", 312.0, 1555.0, 25.0),
    ("l40s", 362.0, 864.0, 25.0),
    ("rtx5090", 209.5, 1792.0, 55.4),
    ("rtx4090", 165.2, 1008.0, 25.0),
    ("rtx4060ti", 44.1, 288.0, 12.5),
    ("rtx3090", 71.0, 936.0, 25.0),
];

impl Card {
    /// The card of that name.
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        let known = CARDS
            .iter()
            .find(|(card, ..)| card.eq_ignore_ascii_case(name));
        let Some(&(_, tflops, memory, wire)) = known else {
            let names: Vec<_> = CARDS.iter().map(|(card, ..)| *card).collect();
            return Err(format!(
                "`{name}` is no card that is known: try {}",
                names.join(", ")
            ));
        };
        let wire_bytes_per_s = wire * 1e9;
        Ok(Self {
            wire_bytes_per_s,
            upload_latency_s: 10e-6,
            // Files in page cache can be page-locked where they are, and then go over the wire at its own rate.
            host_bytes_per_s: wire_bytes_per_s,
            disk_bytes_per_s: wire_bytes_per_s,
            decode_bytes_per_s: memory * 1e9 * DECODE_SHARE,
            flops_per_s: tflops * 1e12 * MATRIX_SHARE,
        })
    }

    /// Refuses what is no rate.
    pub(crate) fn check(self) -> Result<Self, String> {
        let rates = [
            ("wire_bytes_per_s", self.wire_bytes_per_s),
            ("host_bytes_per_s", self.host_bytes_per_s),
            ("disk_bytes_per_s", self.disk_bytes_per_s),
            ("decode_bytes_per_s", self.decode_bytes_per_s),
            ("flops_per_s", self.flops_per_s),
        ];
        if let Some((name, rate)) = rates
            .iter()
            .find(|(_, rate)| !(*rate > 0.0 && rate.is_finite()))
        {
            return Err(format!("{name} is {rate}: a rate is above 0"));
        }
        if !(self.upload_latency_s >= 0.0 && self.upload_latency_s.is_finite()) {
            return Err(format!(
                "upload_latency_s is {}: no time",
                self.upload_latency_s
            ));
        }
        Ok(self)
    }

    /// What the planner is told, with seconds of compute by kind of pass and visit.
    pub(crate) fn costs(&self, compute_s: Vec<Vec<f64>>) -> Costs {
        Costs {
            rates: Rates {
                wire_bytes_per_s: self.wire_bytes_per_s,
                upload_latency_s: self.upload_latency_s,
                host_bytes_per_s: self.host_bytes_per_s,
                disk_bytes_per_s: self.disk_bytes_per_s,
            },
            decode_bytes_per_s: self.decode_bytes_per_s,
            compute_s,
        }
    }
}
