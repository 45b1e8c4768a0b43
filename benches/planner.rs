//! How long planning takes: 40, 100 and 1000 blocks, where the wire is the limit, where compute is, and where blocks
//! differ.
//!
//! The result is checked once, then timed. `--test` runs each case once.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use offload_core::model::Residency;
use offload_core::plan::{
    BlockLoad, Budget, KindLoad, PartLoad, Plan, Rates, Tier, VisitLoad, Workload,
};

const MIB: u64 = 1 << 20;

/// Parts of each block.
const PARTS: u64 = 4;

/// Blocks of a transformer of which a copy takes `ratio` computes. `unlike` ones differ as mixed encodings do: every
/// fifth is larger, and every third weighs more on the wire.
fn workload(count: usize, ratio: f64, unlike: bool) -> (Workload, Rates) {
    let blocks: Vec<BlockLoad> = (0..count)
        .map(|index| {
            let staging_bytes = match unlike && index % 3 == 0 {
                true => 260 * MIB,
                false => 200 * MIB,
            };
            BlockLoad {
                name: format!("blocks.{index}"),
                residency: Residency::Planned,
                tier: Tier::Pinned,
                remainder_bytes: 96 << 10,
                place_bytes: match unlike && index % 5 == 0 {
                    true => 900 * MIB,
                    false => 700 * MIB,
                },
                staging_bytes,
                parts: vec![staging_bytes / PARTS; PARTS as usize],
            }
        })
        .collect();
    let rates = Rates {
        wire_bytes_per_s: 25e9,
        upload_latency_s: 10e-6,
        host_bytes_per_s: 10e9,
        disk_bytes_per_s: 3e9,
    };
    let copy_s = (200 * MIB) as f64 / rates.wire_bytes_per_s;
    let visits = (0..count)
        .map(|block| {
            let (wire_bytes, decode_s) = (blocks[block].staging_bytes, copy_s / 20.0);
            let part = PartLoad {
                wire_bytes: wire_bytes / PARTS,
                uploads: 1,
                decode_s: decode_s / PARTS as f64,
            };
            VisitLoad {
                block,
                wire_bytes,
                uploads: 4,
                compute_s: copy_s / ratio,
                decode_s,
                parts: vec![part; PARTS as usize],
            }
        })
        .collect();
    let workload = Workload {
        blocks,
        kinds: vec![KindLoad {
            name: "full".to_owned(),
            share: 1.0,
            visits,
        }],
        load_staging_bytes: 2 * MIB,
    };
    (workload, rates)
}

fn plan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    group.sample_size(10);
    for count in [40, 100, 1000] {
        for (name, ratio, unlike) in [
            ("wire-bound", 2.0, false),
            ("compute-bound", 0.5, false),
            ("unlike", 1.3, true),
        ] {
            let (workload, rates) = workload(count, ratio, unlike);
            let budget = Budget::Bytes(count as u64 * 150 * MIB);
            let made =
                Plan::make(&workload, &rates, budget).expect("half of the blocks fit, packed");
            eprintln!("plan/{count}/{name}\n{made}");
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(BenchmarkId::new(count.to_string(), name), |bencher| {
                bencher.iter(|| Plan::make(black_box(&workload), &rates, budget));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, plan);
criterion_main!(benches);
