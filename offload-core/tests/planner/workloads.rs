//! Workloads for tests: plain ones, and random ones of every shape.

use offload_core::model::Residency;
use offload_core::plan::{BlockLoad, KindLoad, PartLoad, Rates, Tier, VisitLoad, Workload};
use proptest::prelude::*;

/// A block that arrives as stored.
pub(crate) fn direct(name: impl Into<String>, place_bytes: u64) -> BlockLoad {
    BlockLoad {
        name: name.into(),
        residency: Residency::Planned,
        tier: Tier::Pinned,
        remainder_bytes: 0,
        place_bytes,
        staging_bytes: 0,
        parts: Vec::new(),
    }
}

/// `bytes` in `count` parts, or in none.
pub(crate) fn split(bytes: u64, count: u64) -> Vec<u64> {
    (0..count)
        .map(|part| bytes * (part + 1) / count - bytes * part / count)
        .filter(|&part| part > 0)
        .collect()
}

/// What a visit that brings so many bytes brings of each part.
fn parts_of(block: &BlockLoad, wire_bytes: u64, decode_s: f64) -> Vec<PartLoad> {
    let mut left = wire_bytes;
    let count = block.parts.len() as f64;
    let of_part = |&bytes: &u64| {
        let wire_bytes = left.min(bytes);
        left -= wire_bytes;
        PartLoad {
            wire_bytes,
            uploads: 1,
            decode_s: decode_s / count,
        }
    };
    block.parts.iter().map(of_part).collect()
}

/// A block that is decoded on arrival.
pub(crate) fn decoded(name: impl Into<String>, place_bytes: u64, staging_bytes: u64) -> BlockLoad {
    BlockLoad {
        staging_bytes,
        ..direct(name, place_bytes)
    }
}

/// A visit that moves all of its block.
pub(crate) fn visit(
    blocks: &[BlockLoad],
    block: usize,
    compute_s: f64,
    decode_s: f64,
) -> VisitLoad {
    let wire_bytes = match blocks[block].staging_bytes {
        0 => blocks[block].place_bytes,
        staging => staging,
    };
    VisitLoad {
        block,
        wire_bytes,
        uploads: 1,
        compute_s,
        decode_s,
        parts: parts_of(&blocks[block], wire_bytes, decode_s),
    }
}

/// One pass kind of several.
pub(crate) fn kind(name: &str, share: f64, visits: Vec<VisitLoad>) -> KindLoad {
    KindLoad {
        name: name.to_owned(),
        share,
        visits,
    }
}

/// Pinned memory at `bytes_per_s`, without latency; the other tiers slower.
pub(crate) fn rates(bytes_per_s: f64) -> Rates {
    Rates {
        wire_bytes_per_s: bytes_per_s,
        upload_latency_s: 0.0,
        host_bytes_per_s: bytes_per_s / 2.0,
        disk_bytes_per_s: bytes_per_s / 8.0,
    }
}

/// `count` equal blocks of `bytes`, one kind; each copy takes `ratio` computes of 1 s, with [`uniform_rates`].
pub(crate) fn uniform(count: usize, bytes: u64) -> Workload {
    let blocks: Vec<BlockLoad> = (0..count)
        .map(|index| direct(format!("block {index}"), bytes))
        .collect();
    let visits = (0..count)
        .map(|block| visit(&blocks, block, 1.0, 0.0))
        .collect();
    Workload {
        blocks,
        kinds: vec![kind("full", 1.0, visits)],
        load_staging_bytes: 0,
    }
}

/// Rates at which a block of `bytes` takes `ratio` seconds.
pub(crate) fn uniform_rates(bytes: u64, ratio: f64) -> Rates {
    rates(bytes as f64 / ratio)
}

fn block() -> impl Strategy<Value = BlockLoad> {
    let residency = prop_oneof![
        6 => Just(Residency::Planned),
        1 => Just(Residency::Always),
        1 => Just(Residency::Never),
    ];
    let tier = prop_oneof![
        4 => Just(Tier::Pinned),
        1 => Just(Tier::Host),
        1 => Just(Tier::Disk),
    ];
    let place_bytes = prop_oneof![
        1 => Just(0_u64),
        4 => Just(1024),
        4 => 1..4000_u64,
    ];
    let staging_bytes = prop_oneof![2 => Just(0_u64), 1 => Just(300), 2 => 1..1500_u64];
    let block = (
        residency,
        tier,
        0..600_u64,
        place_bytes,
        staging_bytes,
        0..4_u64,
    );
    block.prop_map(
        |(residency, tier, remainder_bytes, place_bytes, staging_bytes, parts)| BlockLoad {
            name: String::new(),
            residency,
            tier,
            remainder_bytes: remainder_bytes.saturating_sub(300),
            place_bytes,
            staging_bytes,
            parts: split(staging_bytes, parts),
        },
    )
}

/// Any workload of up to `blocks` blocks and `visits` visits in each of up to three kinds.
pub(crate) fn any(blocks: usize, visits: usize) -> impl Strategy<Value = Workload> {
    let seconds = prop_oneof![1 => Just(0.0), 3 => 0.0..4.0];
    prop::collection::vec(block(), 1..=blocks)
        .prop_flat_map(move |loads| {
            let count = loads.len();
            let visit = (
                0..count,
                0.2..1.0,
                1..4_u32,
                seconds.clone(),
                seconds.clone(),
            );
            let visits = prop::collection::vec(visit, 0..=visits);
            let kinds = prop::collection::vec((0.1..3.0, visits), 1..=3);
            (Just(loads), kinds, prop_oneof![Just(0), 1..2000_u64])
        })
        .prop_map(|(mut blocks, kinds, load_staging_bytes)| {
            for (index, block) in blocks.iter_mut().enumerate() {
                block.name = format!("block {index}");
            }
            let kinds = kinds
                .into_iter()
                .enumerate()
                .map(|(index, (share, visits))| KindLoad {
                    name: format!("kind {index}"),
                    share,
                    visits: visits
                        .into_iter()
                        .map(|(block, part, uploads, compute_s, decode_s)| {
                            let full = visit(&blocks, block, compute_s, decode_s / 4.0);
                            let wire_bytes = (full.wire_bytes as f64 * part) as u64;
                            VisitLoad {
                                wire_bytes,
                                uploads,
                                parts: parts_of(&blocks[block], wire_bytes, full.decode_s),
                                ..full
                            }
                        })
                        .collect(),
                })
                .collect();
            Workload {
                blocks,
                kinds,
                load_staging_bytes,
            }
        })
}
