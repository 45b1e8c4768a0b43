//! Each option of the original block swap moves a figure in the direction that it promises.

mod support;

use std::fmt;
use std::sync::{Arc, Mutex};

use offload_core::cpu::CpuDevice;
use offload_core::executor::{Costs, DeviceBudget, Offload, Settings, Span};

use offload_core::model::{PassKind, Residency};
use offload_core::plan::{Budget, Form, Plan, Rates, Tier};
use offload_core::swappable::Swappable;
use offload_wan::{
    BlockSwap, Checkpoint, Guidance, PassOptions, Recipe, SwapError, SynthesizeSpec, Tokens,
    VaceOrder, Variant, WanModel, Which, synthesize,
};

fn described(name: &str, recipe: Recipe, scale: u64) -> WanModel {
    let variant = Variant::from_name(name).expect("is published");
    let spec = SynthesizeSpec::of_variant(variant, recipe, scale, 0).expect("has a size");
    let tensors = spec.describe().expect("widths fit");
    let checkpoint = Checkpoint::from_tensors(tensors).expect("names are unique");
    WanModel::new(&checkpoint, &PassOptions::default()).expect("is whole")
}

fn t2v() -> WanModel {
    described("wan2.1-t2v-14b", Recipe::BF16, 8)
}

/// Nothing is swapped but what a test says.
fn none() -> BlockSwap {
    BlockSwap {
        blocks_to_swap: 0,
        ..BlockSwap::default()
    }
}

/// A second for each visit of a block, and `copy_s` for the copy of the largest block; files are as fast as memory.
fn settings(wan: &WanModel, copy_s: f64) -> Settings {
    let bytes = |block: &Arc<dyn Swappable>| -> u64 {
        block
            .tensors()
            .iter()
            .map(|tensor| tensor.source().len())
            .sum()
    };
    let largest = wan
        .model()
        .blocks()
        .iter()
        .map(bytes)
        .max()
        .expect("has blocks") as f64;
    let rate = largest / copy_s;
    let visits = wan.model().kinds()[0].visits().iter();
    let compute_s = visits.map(|index| f64::from(u8::from(wan.part(*index).0.is_block())));
    Settings {
        costs: Costs {
            rates: Rates {
                wire_bytes_per_s: rate,
                upload_latency_s: 0.0,
                host_bytes_per_s: rate,
                disk_bytes_per_s: rate,
            },
            decode_bytes_per_s: 1e15,
            compute_s: vec![compute_s.collect()],
        },
        ..Settings::default()
    }
}

fn plan(wan: &WanModel, swap: &BlockSwap, copy_s: f64) -> Plan {
    let wan = swap.apply(wan.clone()).expect("is in range");
    let settings = swap.settings(settings(&wan, copy_s));
    let workload = settings.workload(wan.model(), true);
    settings
        .plan(&workload, Budget::Least)
        .expect("a plan exists")
}

fn streamed(plan: &Plan) -> Vec<&str> {
    let blocks = plan.blocks.iter();
    let streamed = blocks.filter(|block| block.form == Form::Streamed);
    streamed.map(|block| block.block.as_str()).collect()
}

#[test]
fn more_blocks_to_swap_take_less_memory_and_move_more() {
    let wan = t2v();
    let mut last: Option<(u64, u64)> = None;
    for count in [1, 10, 20, 30, 40] {
        let swap = BlockSwap {
            blocks_to_swap: count,
            ..none()
        };
        let plan = plan(&wan, &swap, 0.5);
        assert_eq!(streamed(&plan).len() as u64, count);
        let now = (plan.arena_bytes, plan.kinds[0].wire_bytes_per_pass);
        if let Some(last) = last {
            assert!(now.0 < last.0 && now.1 > last.1, "{now:?} after {last:?}");
        }
        last = Some(now);
    }
    assert_eq!(plan(&wan, &none(), 0.5).kinds[0].wire_bytes_per_pass, 0);
}

#[test]
fn spread_blocks_hide_copies_that_the_last_ones_cannot() {
    let wan = t2v();
    let of = |which| {
        let swap = BlockSwap {
            blocks_to_swap: 20,
            which,
            prefetch_blocks: 2,
            ..none()
        };
        plan(&wan, &swap, 1.9)
    };
    let (spread, last) = (of(Which::Spread), of(Which::Last));
    assert_eq!(streamed(&last)[0], "blocks.20");
    assert_eq!(streamed(&spread)[..2], ["blocks.0", "blocks.2"]);
    assert_eq!(
        spread.kinds[0].wire_bytes_per_pass,
        last.kinds[0].wire_bytes_per_pass
    );
    let (spread_s, last_s) = (
        spread.kinds[0].predicted_pass_s,
        last.kinds[0].predicted_pass_s,
    );
    assert!(spread_s < 0.8 * last_s, "{spread_s} against {last_s}");
}

#[test]
fn offloaded_embeddings_leave_the_device_and_are_moved() {
    let wan = described("wan2.1-i2v-14b", Recipe::BF16, 1);
    let swap = BlockSwap {
        blocks_to_swap: 10,
        ..none()
    };
    let plain = plan(&wan, &swap, 0.5);
    for (swap, group, mib) in [
        (
            BlockSwap {
                offload_txt_emb: true,
                ..swap
            },
            "text_embedding",
            90.0,
        ),
        (
            BlockSwap {
                offload_img_emb: true,
                ..swap
            },
            "img_emb",
            15.6,
        ),
    ] {
        let plan = plan(&wan, &swap, 0.5);
        assert!(streamed(&plan).contains(&group));
        let saved = (plain.arena_bytes - plan.arena_bytes) as f64 / f64::from(1 << 20);
        let moved = plan.kinds[0].wire_bytes_per_pass - plain.kinds[0].wire_bytes_per_pass;
        let moved = moved as f64 / f64::from(1 << 20);
        assert!(
            (saved - mib).abs() < 0.5 && (moved - mib).abs() < 0.5,
            "{group}: {saved}, {moved}"
        );
    }
}

#[test]
fn what_does_not_block_is_page_locked() {
    let wan = wan_in_a_file();
    let of = |use_non_blocking| {
        let swap = BlockSwap {
            blocks_to_swap: 4,
            use_non_blocking,
            ..none()
        };
        let applied = swap.apply(wan.1.clone()).expect("is in range");
        let mut settings = swap.settings(settings(&applied, 2.0));
        settings.costs.rates.disk_bytes_per_s /= 4.0;
        let workload = settings.workload(applied.model(), true);
        let plan = settings.plan(&workload, Budget::Least);
        (plan.expect("a plan exists"), applied, settings.pin_files)
    };
    let tiers = |plan: &Plan| -> Vec<Tier> {
        let blocks = plan.blocks.iter();
        let streamed = blocks.filter(|block| block.form == Form::Streamed);
        streamed.map(|block| block.tier).collect()
    };
    let ((blocking, ..), (non_blocking, applied, _)) = (of(false), of(true));
    assert_eq!(tiers(&blocking), [Tier::Disk; 4]);
    assert_eq!(tiers(&non_blocking), [Tier::Pinned; 4]);
    assert!(non_blocking.kinds[0].predicted_pass_s < blocking.kinds[0].predicted_pass_s);
    // And so it is on a device that can.
    for (pin, staged) in [(of(false).2, true), (of(true).2, false)] {
        let device = CpuDevice::builder().copies_files(true).build();
        let stream = device.inline_stream();
        let mut offload = Offload::builder(&device)
            .model(applied.model().clone())
            .device_budget(DeviceBudget::Least)
            .pin_files(pin)
            .build()
            .expect("the least does");
        let mut passes = 0;
        while passes < 3 || (!staged && offload.report().expect("works").host.staged_bytes > 0) {
            let mut pass = offload.pass(PassKind::FULL, &stream).expect("works");
            while pass.acquire().expect("works").is_some() {}
            passes += 1;
        }
        let host = offload.report().expect("works").host;
        assert_eq!(host.staged_bytes > 0, staged, "{host:?}");
        assert_eq!(host.copied_bytes > 0, !staged, "{host:?}");
    }
}

/// A made checkpoint, and the folder that keeps it.
fn wan_in_a_file() -> (tempfile::TempDir, WanModel) {
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    let path = folder.path().join("made.gguf");
    synthesize(&SynthesizeSpec::default(), &path).expect("can be written");
    let checkpoint = Checkpoint::open(&path).expect("is sound");
    let wan = WanModel::new(&checkpoint, &PassOptions::default()).expect("is whole");
    (folder, wan)
}

#[test]
fn vace_blocks_are_swapped_by_number_or_in_the_main_blocks_share() {
    let wan = described("wan2.1-vace-1.3b", Recipe::BF16, 4);
    let vace = |blocks_to_swap, vace_blocks_to_swap| {
        let swap = BlockSwap {
            blocks_to_swap,
            vace_blocks_to_swap,
            ..none()
        };
        let plan = plan(&wan, &swap, 0.5);
        let count = streamed(&plan)
            .iter()
            .filter(|name| name.starts_with("vace"))
            .count();
        (count, plan.arena_bytes)
    };
    // 0 is automatic: half of 30 main blocks, half of 15 of VACE.
    assert_eq!(vace(0, 0).0, 0);
    assert_eq!(vace(15, 0).0, 8);
    assert_eq!(vace(30, 0).0, 15);
    let (three, ten) = (vace(15, 3), vace(15, 10));
    assert_eq!((three.0, ten.0), (3, 10));
    assert!(ten.1 < three.1);
}

#[test]
fn prefetching_takes_memory_and_saves_waiting() {
    let wan = t2v();
    let of = |prefetch_blocks| {
        let swap = BlockSwap {
            blocks_to_swap: 40,
            prefetch_blocks,
            ..none()
        };
        plan(&wan, &swap, 0.9)
    };
    let (none, one, three) = (of(0), of(1), of(3));
    // With a budget of the least, the planner leaves one place: nothing is prefetched.
    assert!(one.arena_bytes > none.arena_bytes && three.arena_bytes > one.arena_bytes);
    let waits = |plan: &Plan| plan.kinds[0].predicted_stall_s;
    assert!(
        waits(&one) < 0.2 * waits(&none),
        "{} of {}",
        waits(&one),
        waits(&none)
    );
    assert!(waits(&three) <= waits(&one));
    // Deeper than the model is as deep as the model.
    assert!(of(40).arena_bytes >= three.arena_bytes);
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Message(String);
        impl tracing::field::Visit for Message {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        self.0.lock().expect("no thread panicked").push(message.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// What `act` tells.
fn told(act: impl FnOnce()) -> Vec<String> {
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), act);
    let lines = lines.0.lock().expect("no thread panicked");
    lines.clone()
}

#[test]
fn debugging_tells_what_is_done_in_the_originals_words() {
    let of = |wan: &WanModel, swap: BlockSwap| {
        told(|| {
            swap.apply(wan.clone()).expect("is in range");
        })
    };
    let long_cat = described("longcat-video", Recipe::BF16, 8);
    let swap = BlockSwap {
        blocks_to_swap: 20,
        which: Which::Last,
        ..none()
    };
    assert_eq!(of(&long_cat, swap), [""; 0]);
    let swap = BlockSwap {
        block_swap_debug: true,
        ..swap
    };
    let lazy = "[BlockSwap] Using LAZY LOADING - blocks loaded directly to target device";
    assert_eq!(
        of(&long_cat, swap),
        [
            lazy,
            "[BlockSwap] Total blocks: 48",
            "[BlockSwap] Keeping on GPU: blocks 0-27",
            "[BlockSwap] Offloading to CPU: blocks 28-47",
            "[BlockSwap] GPU blocks: 28",
            "[BlockSwap] CPU blocks: 20",
        ]
    );
    // Embeddings and VACE blocks have lines of their own.
    let checkpoint = checkpoint_of("wan2.1-i2v-14b");
    let i2v = WanModel::new(&checkpoint, &PassOptions::default()).expect("is whole");
    let lines = of(
        &i2v,
        BlockSwap {
            offload_txt_emb: true,
            offload_img_emb: true,
            ..swap
        },
    );
    assert_eq!(
        lines[4..6],
        [
            "[BlockSwap] Offloaded text_embedding to CPU",
            "[BlockSwap] Offloaded img_emb to CPU"
        ]
    );
    let vace = described("wan2.1-vace-14b", Recipe::BF16, 8);
    assert_eq!(of(&vace, swap)[4], "[BlockSwap] VACE: 4/8 blocks offloaded");
    // A pair has lines for each expert, and sums.
    let name = "wan2.2-t2v-a14b";
    let experts = (checkpoint_of(name), checkpoint_of(name));
    let pair = WanModel::pair(&experts.0, &experts.1, None, &PassOptions::default());
    assert_eq!(
        of(&pair.expect("are a pair"), swap),
        [
            lazy,
            "[BlockSwap] Total blocks, high noise: 40",
            "[BlockSwap] Keeping on GPU, high noise: blocks 0-19",
            "[BlockSwap] Offloading to CPU, high noise: blocks 20-39",
            "[BlockSwap] Total blocks, low noise: 40",
            "[BlockSwap] Keeping on GPU, low noise: blocks 0-19",
            "[BlockSwap] Offloading to CPU, low noise: blocks 20-39",
            "[BlockSwap] GPU blocks: 40",
            "[BlockSwap] CPU blocks: 40",
        ]
    );
}

#[test]
fn debugging_tells_what_each_fetched_visit_took() {
    let span = |stage, block: &str, pass, begin_s, end_s| Span {
        block: block.to_owned(),
        stage,
        pass,
        begin_s,
        end_s,
    };
    let spans = [
        span("upload", "blocks.1", 0, 0.0, 0.5),
        span("decode", "blocks.1", 0, 0.5, 0.75),
        span("compute", "blocks.0", 0, 0.0, 1.0),
        span("compute", "blocks.1", 0, 1.0, 2.0),
        span("stall", "blocks.1", 0, 1.0, 1.0625),
        span("compute", "blocks.1", 1, 3.0, 7.0),
    ];
    let swap = BlockSwap {
        block_swap_debug: true,
        ..none()
    };
    assert_eq!(
        told(|| swap.log_spans(&spans)),
        [
            "[BlockSwap] Block blocks.1 pass 0: transfer_time=0.5000s, decode_time=0.2500s, stall_time=0.0625s, \
             compute_time=1.0000s"
        ]
    );
    assert_eq!(told(|| none().log_spans(&spans)), [""; 0]);
}

#[test]
fn numbers_out_of_range_are_refused_with_the_range() {
    let refused = |wan: &WanModel, swap: BlockSwap| -> String {
        swap.apply(wan.clone())
            .expect_err("is out of range")
            .to_string()
    };
    let (t2v, vace) = (t2v(), described("wan2.1-vace-14b", Recipe::BF16, 8));
    let swap = BlockSwap {
        blocks_to_swap: 41,
        ..none()
    };
    assert!(refused(&t2v, swap).contains("blocks_to_swap from 0 to 40"));
    let swap = BlockSwap {
        vace_blocks_to_swap: 9,
        ..none()
    };
    assert!(refused(&vace, swap).contains("vace_blocks_to_swap from 0 to 8"));
    let swap = BlockSwap {
        prefetch_blocks: 41,
        ..none()
    };
    assert!(refused(&t2v, swap).contains("prefetch_blocks from 0 to 40"));
    // An option without effect is refused, too.
    let swap = BlockSwap {
        vace_blocks_to_swap: 1,
        ..none()
    };
    assert!(refused(&t2v, swap).contains("no VACE blocks"));
    let swap = BlockSwap {
        offload_img_emb: true,
        ..none()
    };
    assert!(refused(&t2v, swap).contains("no img_emb"));
}

#[test]
fn applying_options_twice_is_applying_them_once() {
    let wan = described("wan2.1-vace-14b", Recipe::BF16, 8);
    let swap = BlockSwap {
        blocks_to_swap: 13,
        offload_txt_emb: true,
        ..BlockSwap::default()
    };
    let residency = |wan: &WanModel| -> Vec<Residency> {
        let blocks = 0..wan.model().blocks().len();
        blocks.map(|index| wan.model().residency(index)).collect()
    };
    let once = swap.apply(wan.clone()).expect("is in range");
    let twice = swap.apply(once.clone()).expect("is in range");
    assert_eq!(residency(&once), residency(&twice));
    // Others in between leave no trace.
    let other = none().apply(once.clone()).expect("is in range");
    assert_eq!(
        residency(&other),
        residency(&none().apply(wan).expect("is in range"))
    );
    assert_eq!(
        residency(&swap.apply(other).expect("is in range")),
        residency(&once)
    );
}

#[test]
fn presets_are_the_originals_as_far_as_the_model_goes() {
    let preset = |name: &str, wan: &WanModel| BlockSwap::preset(name, wan);
    let i2v = described("wan2.1-i2v-14b", Recipe::BF16, 8);
    let of = |name: &str, wan: &WanModel| {
        let swap = preset(name, wan).expect("is a preset");
        swap.apply(wan.clone()).expect("fits every model");
        (
            swap.blocks_to_swap,
            swap.offload_txt_emb,
            swap.offload_img_emb,
        )
    };
    assert_eq!(of("8gb", &i2v), (25, true, true));
    assert_eq!(of("12gb", &i2v), (15, true, false));
    assert_eq!(of("16gb", &i2v), (0, false, false));
    assert_eq!(of("8gb", &t2v()), (25, true, false));
    let error = preset("24gb", &i2v).expect_err("is none").to_string();
    assert!(error.contains("8gb, 12gb and 16gb"), "{error}");
}

/// Names of the blocks that are never kept.
fn fetched(wan: &WanModel) -> Vec<&str> {
    let blocks = wan.model().blocks().iter().enumerate();
    let fetched = blocks.filter(|(index, _)| wan.model().residency(*index) == Residency::Never);
    fetched.map(|(_, block)| block.name()).collect()
}

/// In bf16, at a sixteenth of its widths.
fn checkpoint_of(name: &str) -> Checkpoint {
    let variant = Variant::from_name(name).expect("is published");
    let spec = SynthesizeSpec::of_variant(variant, Recipe::BF16, 16, 0).expect("has a size");
    let tensors = spec.describe().expect("widths fit");
    Checkpoint::from_tensors(tensors).expect("names are unique")
}

#[test]
fn in_a_pair_both_experts_blocks_are_swapped() {
    for (name, boundary) in [
        ("wan2.2-i2v-a14b", None),
        ("wan2.2-vace-fun-a14b", None),
        ("wan2.2-animate-14b", Some(0.9)),
    ] {
        let one = checkpoint_of(name);
        let alone = WanModel::new(&one, &PassOptions::default()).expect("is whole");
        let pair = WanModel::pair(
            &one,
            &checkpoint_of(name),
            boundary,
            &PassOptions::default(),
        );
        let pair = pair.expect("are a pair");
        for which in [Which::Spread, Which::Last] {
            let swap = BlockSwap {
                blocks_to_swap: 13,
                which,
                offload_txt_emb: true,
                ..none()
            };
            let alone = swap.apply(alone.clone()).expect("is in range");
            let pair = swap.apply(pair.clone()).expect("is in range");
            let of_one = fetched(&alone);
            let of_each = |expert: &str| -> Vec<String> {
                of_one
                    .iter()
                    .map(|name| format!("{expert}.{name}"))
                    .collect()
            };
            let of_both = [of_each("high"), of_each("low")].concat();
            assert_eq!(fetched(&pair), of_both, "{name} {which:?}");
            let main = of_one.iter().filter(|name| name.starts_with("blocks."));
            assert_eq!(main.count(), 13, "{name} {which:?}");
            assert!(of_one.contains(&"text_embedding"));
        }
    }
}

#[test]
fn injectors_and_fuser_blocks_are_swapped_with_the_main_blocks_they_follow() {
    let injected = [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39];
    let fused = [0, 5, 10, 15, 20, 25, 30, 35];
    for (name, side, after) in [
        ("wan2.2-s2v-14b", "audio_injector", &injected[..]),
        ("wan2.2-animate-14b", "fuser_blocks", &fused[..]),
    ] {
        let wan = described(name, Recipe::BF16, 16);
        for which in [Which::Spread, Which::Last] {
            let mut counts = Vec::new();
            for blocks_to_swap in 0..=40 {
                let swap = BlockSwap {
                    blocks_to_swap,
                    which,
                    ..none()
                };
                let swapped = swap.apply(wan.clone()).expect("is in range");
                let fetched = fetched(&swapped);
                for (index, main) in after.iter().enumerate() {
                    assert_eq!(
                        fetched.contains(&format!("{side}.{index}").as_str()),
                        fetched.contains(&format!("blocks.{main}").as_str()),
                        "{side}.{index} and blocks.{main} of {blocks_to_swap} {which:?}"
                    );
                }
                counts.push(fetched.iter().filter(|name| name.starts_with(side)).count());
            }
            assert_eq!((counts[0], counts[40]), (0, after.len()));
            assert!(counts[20] > 0 && counts[20] < after.len(), "{counts:?}");
        }
    }
}

#[test]
fn recommendations_are_the_fewest_blocks_that_fit() {
    let settings = Settings::default();
    // Blocks of several sizes: with one more fetched, an arena may be larger.
    for name in ["wan2.2-s2v-14b", "wan2.2-animate-14b"] {
        let wan = described(name, Recipe::Q4KS, 4);
        let arenas: Vec<u64> = (0..=40)
            .map(|blocks_to_swap| {
                let swap = BlockSwap {
                    blocks_to_swap,
                    prefetch_blocks: u32::from(blocks_to_swap > 0),
                    ..none()
                };
                let applied = swap.apply(wan.clone()).expect("is in range");
                let settings = swap.settings(settings.clone());
                let workload = settings.workload(applied.model(), true);
                let plan = settings.plan(&workload, Budget::Least);
                plan.expect("a plan exists").arena_bytes
            })
            .collect();
        assert!(
            arenas[1..].windows(2).any(|pair| pair[1] > pair[0]),
            "{name}: {arenas:?}"
        );
        for bytes in &arenas {
            let fewest = arenas.iter().position(|arena| arena <= bytes);
            let recommended = BlockSwap::recommended(&wan, &settings, *bytes, 0, Tokens::default());
            let recommended = recommended.expect("can be planned").expect("fits");
            let count = usize::try_from(recommended.options.blocks_to_swap).expect("is small");
            assert_eq!(Some(count), fewest, "{name} in {bytes}");
            assert!(!recommended.options.offload_txt_emb);
        }
    }
}

#[test]
fn recommendations_fit_their_cards_with_as_few_blocks_as_will_do() {
    for (name, recipe) in [
        ("wan2.1-t2v-14b", Recipe::Q4KM),
        ("wan2.1-i2v-14b", Recipe::F8),
        ("wan2.1-t2v-1.3b", Recipe::BF16),
    ] {
        let wan = described(name, recipe, 1);
        let settings = Settings::default();
        let mut last = u64::MAX;
        for gib in [8u64, 12, 16, 24] {
            let (card, reserve) = (gib << 30, 3 << 30);
            let recommended =
                BlockSwap::recommended(&wan, &settings, card, reserve, Tokens::default())
                    .expect("can be planned")
                    .expect("fits");
            assert!(
                recommended.plan.arena_bytes <= card - reserve,
                "{name} on {gib} GiB"
            );
            let count = recommended.options.blocks_to_swap;
            assert!(count <= last, "{name}: {count} after {last}");
            last = count;
            if count > 1 {
                let fewer = BlockSwap {
                    blocks_to_swap: count - 1,
                    ..recommended.options
                };
                let applied = fewer.apply(wan.clone()).expect("is in range");
                let settings = fewer.settings(settings.clone());
                let workload = settings.workload(applied.model(), true);
                let plan = settings
                    .plan(&workload, Budget::Least)
                    .expect("a plan exists");
                assert!(plan.arena_bytes > card - reserve, "{name} on {gib} GiB");
            }
        }
    }
    let wan = described("wan2.1-t2v-14b", Recipe::F32, 1);
    let none = BlockSwap::recommended(
        &wan,
        &Settings::default(),
        2 << 30,
        1 << 30,
        Tokens::default(),
    );
    assert!(none.expect("can be planned").is_none());
}

#[test]
fn an_embedding_is_fetched_only_where_that_saves_memory() {
    let of = |recipe, swap: BlockSwap| {
        let wan = described("wan2.1-t2v-1.3b", recipe, 1);
        match swap.apply(wan.clone()) {
            Ok(_) => Ok(plan(&wan, &swap, 0.5).arena_bytes),
            Err(error) => Err(error),
        }
    };
    let text = BlockSwap {
        offload_txt_emb: true,
        ..none()
    };
    for recipe in [Recipe::Q4KM, Recipe::BF16, Recipe::F32] {
        // Alone it would need a window of its own size, and often staging.
        let Err(SwapError::NoSaving {
            option,
            with_bytes,
            without_bytes,
        }) = of(recipe, text)
        else {
            panic!("{recipe:?} saves");
        };
        assert_eq!(option, "offload_txt_emb");
        assert!(with_bytes >= without_bytes, "{recipe:?}");
        assert_eq!(of(recipe, none()).expect("is nothing"), without_bytes);
        // Beside fetched blocks it leaves what it takes: 4096 by 1536 and 1536 by 1536 in bf16.
        let blocks = BlockSwap {
            blocks_to_swap: 10,
            ..none()
        };
        let with = BlockSwap {
            offload_txt_emb: true,
            ..blocks
        };
        let saved = of(recipe, blocks).expect("fits") - of(recipe, with).expect("saves");
        let matrices = 2 * 1536 * (4096 + 1536);
        assert!(
            (matrices..matrices + (64 << 10)).contains(&saved),
            "{saved}"
        );
    }
    let error = of(Recipe::Q4KM, text).expect_err("costs").to_string();
    assert!(error.contains("offload_txt_emb saves nothing"), "{error}");
    assert!(error.contains(" bytes, without it "), "{error}");
    // A preset is the original's as far as it helps, and what is recommended can be applied.
    let small = described("wan2.1-t2v-14b", Recipe::Q4KM, 64);
    let preset = BlockSwap::preset("8gb", &small).expect("is a preset");
    let applied = preset.apply(small.clone());
    applied.expect("is what there is to do");
    let full = BlockSwap::preset("8gb", &described("wan2.1-t2v-1.3b", Recipe::Q4KM, 1));
    assert!(full.expect("is a preset").offload_txt_emb);
}

#[test]
fn recommendations_leave_room_for_what_the_engine_keeps() {
    let variant = Variant::from_name("wan2.1-vace-14b").expect("is published");
    let spec = SynthesizeSpec::of_variant(variant, Recipe::Q4KM, 1, 0).expect("has a size");
    let tensors = spec.describe().expect("widths fit");
    let checkpoint = Checkpoint::from_tensors(tensors).expect("names are unique");
    let tokens = Tokens {
        video: 32_760,
        text: 512,
        image: 0,
    };
    let settings = Settings::default();
    let (card, reserve) = (12 << 30, 2 << 30);
    let recommended = |options: &PassOptions| {
        let wan = WanModel::new(&checkpoint, options).expect("is whole");
        let found = BlockSwap::recommended(&wan, &settings, card, reserve, tokens);
        let found = found.expect("can be planned").expect("fits");
        assert_eq!(found.kept_bytes, wan.kept_bytes(tokens));
        assert!(found.plan.arena_bytes + found.kept_bytes <= card - reserve);
        found
    };
    let plain = recommended(&PassOptions::default());
    assert_eq!(plain.kept_bytes, 0);
    let hints = recommended(&PassOptions {
        vace: VaceOrder::AllFirst,
        ..PassOptions::default()
    });
    assert_eq!(hints.kept_bytes, 8 * 32_760 * 5120 * 2);
    assert!(hints.options.blocks_to_swap > plain.options.blocks_to_swap);
    let lockstep = recommended(&PassOptions {
        vace: VaceOrder::AllFirst,
        guidance: Guidance::Lockstep,
        ..PassOptions::default()
    });
    assert_eq!(lockstep.kept_bytes, 2 * hints.kept_bytes);
    let cached = |guidance| {
        recommended(&PassOptions {
            cache_cross_attention: true,
            guidance,
            ..PassOptions::default()
        })
        .kept_bytes
    };
    // Main blocks and those of VACE attend to the text.
    let one = (40 + 8) * 512 * 5120 * 2 * 2;
    assert_eq!(cached(Guidance::Off), one);
    assert_eq!(cached(Guidance::Separate), 2 * one);
    assert_eq!(cached(Guidance::Lockstep), 2 * one);
}
