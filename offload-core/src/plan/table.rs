//! A plan as a table for people. Machines read JSON.

use std::fmt;

use super::{Decoding, Form, KindPlan, Plan, Verdict};

/// Bytes in the largest binary unit that leaves at least 1.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let text = units
            .iter()
            .find(|(_, shift)| self.0 >> shift > 0)
            .map_or_else(
                || format!("{} B", self.0),
                |(unit, shift)| format!("{:.2} {unit}", self.0 as f64 / (1_u64 << shift) as f64),
            );
        f.pad(&text)
    }
}

/// Seconds with a unit that suits them.
struct Seconds(f64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            0.0 => "0 s".to_owned(),
            s if s >= 1.0 => format!("{s:.3} s"),
            s if s >= 1e-3 => format!("{:.3} ms", s * 1e3),
            s => format!("{:.3} us", s * 1e6),
        };
        f.pad(&text)
    }
}

/// A part as a percentage.
struct Percent(f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.2} %", self.0 * 100.0))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ComputeBound => "compute-bound",
            Self::WireBound => "wire-bound",
            Self::DecodeBound => "decode-bound",
            Self::Resident => "resident",
        })
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Resident => "resident",
            Self::Packed => "packed",
            Self::Streamed => "streamed",
        })
    }
}

/// Runs of indices written out; what lies beyond is counted.
const MAX_RUNS: usize = 48;

/// Sorted indices as `0-3, 7, 9-12`.
fn ranges(indices: impl Iterator<Item = usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for index in indices {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => runs.push((index, index)),
        }
    }
    let more: usize = runs
        .iter()
        .skip(MAX_RUNS)
        .map(|(first, last)| last - first + 1)
        .sum();
    let mut texts: Vec<String> = runs
        .iter()
        .take(MAX_RUNS)
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    if more > 0 {
        texts.push(format!("and {more} more"));
    }
    texts.join(", ")
}

impl Plan {
    /// What a reader should conclude, if there is anything to conclude.
    fn advice(&self) -> Option<String> {
        let free = self.budget_bytes.saturating_sub(self.arena_bytes);
        let all = |verdict| self.kinds.iter().all(|kind| kind.verdict == verdict);
        if all(Verdict::Resident) {
            return Some(format!(
                "everything is resident: nothing moves, {} of the budget stay free",
                Bytes(free)
            ));
        }
        let hidden =
            |kind: &KindPlan| matches!(kind.verdict, Verdict::ComputeBound | Verdict::Resident);
        if self.kinds.iter().all(hidden) {
            return Some(format!(
                "compute hides every copy: more residency buys nothing, {} of the budget are left to activations",
                Bytes(free)
            ));
        }
        None
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "arena {} of {} budget: {} resident, {} window, {} staging; at most {} live",
            Bytes(self.arena_bytes),
            Bytes(self.budget_bytes),
            Bytes(self.arena.resident.bytes),
            Bytes(self.arena.window.bytes),
            Bytes(self.arena.staging.bytes),
            Bytes(self.high_water_bytes),
        )?;
        for form in [Form::Resident, Form::Packed, Form::Streamed] {
            let of_form =
                || (0..self.blocks.len()).filter(|&block| self.blocks[block].form == form);
            let count = of_form().count();
            if count > 0 {
                writeln!(f, "{count:>5} {form}: blocks {}", ranges(of_form()))?;
            }
        }
        if self.blocks.iter().any(|block| block.form == Form::Packed)
            || self.arena.staging.bytes > 0 && self.arena.window.bytes > 0
        {
            writeln!(
                f,
                "      decoded {}",
                match self.decoding {
                    Decoding::Ahead => "ahead of the visit",
                    Decoding::AtUse => "at the visit",
                }
            )?;
        }
        let width = self
            .kinds
            .iter()
            .map(|kind| kind.name.chars().count())
            .max()
            .unwrap_or(0)
            .max("kind".len());
        writeln!(
            f,
            "{:width$}  {:>11} {:>11} {:>11} {:>11} {:>11} {:>12} {:>13}  verdict",
            "kind", "pass", "stall", "cold pass", "wire", "bound", "schedule gap", "placement gap"
        )?;
        for kind in &self.kinds {
            writeln!(
                f,
                "{:width$}  {:>11} {:>11} {:>11} {:>11} {:>11} {:>12} {:>13}  {}",
                kind.name,
                Seconds(kind.predicted_pass_s),
                Seconds(kind.predicted_stall_s),
                Seconds(kind.predicted_cold_pass_s),
                Bytes(kind.wire_bytes_per_pass),
                Seconds(kind.certificate.schedule_bound_s),
                Percent(kind.certificate.schedule_gap),
                Percent(kind.certificate.placement_gap),
                kind.verdict,
            )?;
        }
        if let Some(advice) = self.advice() {
            writeln!(f, "{advice}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_indices_are_written_as_ranges() {
        assert_eq!(ranges([0, 1, 2, 5, 7, 8].into_iter()), "0-2, 5, 7-8");
        assert_eq!(ranges([].into_iter()), "");
    }

    #[test]
    fn bytes_and_seconds_carry_fitting_units() {
        assert_eq!(Bytes(1023).to_string(), "1023 B");
        assert_eq!(Bytes(3 << 29).to_string(), "1.50 GiB");
        assert_eq!(Seconds(0.0015).to_string(), "1.500 ms");
    }
}
