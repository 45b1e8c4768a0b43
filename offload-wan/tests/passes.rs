//! Which blocks a pass visits, and which passes a step takes.

mod support;

use std::collections::BTreeSet;

use offload_core::executor::Settings;
use offload_core::model::{PassKind, Residency};
use offload_core::plan::{Budget, Form, Plan};
use offload_wan::{
    Checkpoint, Evaluates, Expert, Group, Guidance, LayoutError, Part, PassOptions, Recipe,
    SynthesizeSpec, Tokens, VaceOrder, Variant, WanModel,
};

fn checkpoint(name: &str, scale: u64) -> Checkpoint {
    let variant = Variant::from_name(name).expect("is published");
    let spec = SynthesizeSpec::of_variant(variant, Recipe::BF16, scale, 0).expect("has a size");
    let tensors = spec.describe().expect("widths fit");
    Checkpoint::from_tensors(tensors).expect("names are unique")
}

fn wan(name: &str, options: &PassOptions) -> WanModel {
    WanModel::new(&checkpoint(name, 16), options).expect("is whole")
}

/// `M0 V0 M1` and so on; groups are left out.
fn visits(wan: &WanModel, kind: PassKind) -> String {
    let visits = wan.model().kinds()[kind.index()].visits().iter();
    let words = visits.filter_map(|index| match wan.part(*index).0 {
        Part::Main(number) => Some(format!("M{number}")),
        Part::Vace(number) => Some(format!("V{number}")),
        Part::Injector(number) => Some(format!("I{number}")),
        Part::Fuser(number) => Some(format!("F{number}")),
        _ => None,
    });
    words.collect::<Vec<_>>().join(" ")
}

fn vace(order: VaceOrder) -> PassOptions {
    PassOptions {
        vace: order,
        ..PassOptions::default()
    }
}

#[test]
fn vace_runs_after_its_main_blocks_or_before_all_of_them() {
    for (name, start, count) in [
        (
            "wan2.1-vace-14b",
            "M0 V0 M1 M2 M3 M4 M5 V1 M6 M7 M8 M9 M10 V2",
            8,
        ),
        ("wan2.1-vace-1.3b", "M0 V0 M1 M2 V1 M3 M4 V2 M5 M6 V3", 15),
    ] {
        let interleaved = visits(&wan(name, &vace(VaceOrder::Interleaved)), PassKind::FULL);
        let first = visits(&wan(name, &vace(VaceOrder::AllFirst)), PassKind::FULL);
        let off = visits(&wan(name, &vace(VaceOrder::Off)), PassKind::FULL);
        assert!(interleaved.starts_with(start), "{interleaved}");
        let all: Vec<String> = (0..count).map(|number| format!("V{number}")).collect();
        assert!(
            first.starts_with(&format!("{} M0 M1", all.join(" "))),
            "{first}"
        );
        // Whatever the order, main blocks are visited alike, and so are those of VACE.
        let only = |visits: &str, what: char| -> Vec<String> {
            let words = visits.split(' ').filter(|word| word.starts_with(what));
            words.map(str::to_owned).collect()
        };
        assert_eq!(only(&interleaved, 'M'), only(&first, 'M'));
        assert_eq!(only(&interleaved, 'V'), only(&first, 'V'));
        assert_eq!(only(&interleaved, 'M').join(" "), off);
    }
}

#[test]
fn hints_are_kept_only_if_all_vace_blocks_run_first() {
    let whole = checkpoint("wan2.1-vace-14b", 1);
    let hints = |order, tokens| {
        let wan = WanModel::new(&whole, &vace(order)).expect("is whole");
        wan.hint_bytes(tokens)
    };
    // 81 frames of 832x480 and of 1280x720.
    assert_eq!(hints(VaceOrder::AllFirst, 32_760), 8 * 335_462_400);
    assert_eq!(hints(VaceOrder::AllFirst, 75_600), 8 * 774_144_000);
    assert_eq!(hints(VaceOrder::Interleaved, 75_600), 0);
    assert_eq!(hints(VaceOrder::Off, 75_600), 0);
}

#[test]
fn without_vace_its_blocks_take_no_memory() {
    let arena = |order| {
        let wan = wan("wan2.1-vace-1.3b", &vace(order));
        plan(&wan, Budget::Bytes(u64::MAX)).arena_bytes
    };
    assert!(arena(VaceOrder::Off) < arena(VaceOrder::Interleaved));
    let plain = plan(
        &wan("wan2.1-t2v-1.3b", &PassOptions::default()),
        Budget::Bytes(u64::MAX),
    );
    assert_eq!(arena(VaceOrder::Off), plain.arena_bytes);
}

fn plan(wan: &WanModel, budget: Budget) -> Plan {
    let settings = Settings::default();
    let workload = settings.workload(wan.model(), true);
    settings.plan(&workload, budget).expect("a plan exists")
}

#[test]
fn injectors_and_fuser_blocks_run_after_their_main_blocks() {
    let sound = visits(
        &wan("wan2.2-s2v-14b", &PassOptions::default()),
        PassKind::FULL,
    );
    for (index, after) in [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39]
        .iter()
        .enumerate()
    {
        assert!(sound.contains(&format!("M{after} I{index}")), "{sound}");
    }
    assert_eq!(sound.split(' ').count(), 40 + 12);
    let animate = visits(
        &wan("wan2.2-animate-14b", &PassOptions::default()),
        PassKind::FULL,
    );
    for index in 0..8 {
        assert!(
            animate.contains(&format!("M{} F{index}", 5 * index)),
            "{animate}"
        );
    }
    assert_eq!(animate.split(' ').count(), 40 + 8);
}

fn guidance(guidance: Guidance, skip_layers: &[u64]) -> PassOptions {
    PassOptions {
        guidance,
        skip_layers: skip_layers.to_vec(),
        ..PassOptions::default()
    }
}

#[test]
fn skipped_layers_are_a_kind_that_leaves_them_out() {
    let options = guidance(Guidance::Separate, &[5, 9]);
    let model = wan("wan2.2-animate-14b", &options);
    let step = model.step(None, true);
    assert_eq!(step.len(), 2);
    assert_eq!(
        (step[0].evaluates, step[1].evaluates),
        (Evaluates::Prompt, Evaluates::NoPrompt)
    );
    let skipping = visits(&model, step[1].kind);
    assert!(skipping.contains("M4 M6 M7 M8 M10 F2"), "{skipping}");
    assert!(!skipping.contains("F1 "), "{skipping}");
    assert!(visits(&model, step[0].kind).contains("M5 F1"));
    // What is skipped does not move.
    let plan = plan(&model, Budget::Least);
    let wire = |pass: usize| plan.kinds[step[pass].kind.index()].wire_bytes_per_pass;
    assert!(wire(1) < wire(0));
    // The state of VACE runs on.
    let vace = wan("wan2.1-vace-14b", &guidance(Guidance::Separate, &[5]));
    let skipping = visits(&vace, vace.step(None, true)[1].kind);
    assert!(skipping.contains("M4 V1 M6"), "{skipping}");
    let error = WanModel::new(
        &checkpoint("wan2.1-t2v-14b", 16),
        &guidance(Guidance::Separate, &[40]),
    );
    let error = error.expect_err("there are 40").to_string();
    assert!(error.contains("40: it can be 0 to 39"), "{error}");
}

#[test]
fn in_lockstep_each_block_is_brought_once_for_both() {
    let per_step = |options: &PassOptions| -> u64 {
        let model = wan("wan2.1-t2v-14b", options);
        let plan = plan(&model, Budget::Least);
        let passes = model.step(None, true);
        passes
            .iter()
            .map(|pass| plan.kinds[pass.kind.index()].wire_bytes_per_pass)
            .sum()
    };
    let off = per_step(&guidance(Guidance::Off, &[]));
    assert_eq!(per_step(&guidance(Guidance::Separate, &[])), 2 * off);
    assert_eq!(per_step(&guidance(Guidance::Lockstep, &[])), off);
    let lockstep = wan("wan2.1-t2v-14b", &guidance(Guidance::Lockstep, &[]));
    let [pass] = lockstep.step(None, false)[..] else {
        panic!("one pass");
    };
    assert_eq!(pass.evaluates, Evaluates::Both);
    assert_eq!(lockstep.evaluations(pass.kind), 2);
}

#[test]
fn keys_and_values_that_are_kept_are_brought_in_the_first_step_only() {
    for (name, fewer_matrices, of) in [
        ("wan2.1-t2v-14b", 2.0 * 5120.0 * 5120.0, 351.4e6),
        ("wan2.1-i2v-14b", 4.0 * 5120.0 * 5120.0, 403.8e6),
        ("longcat-video", 2.0 * 4096.0 * 4096.0, 282.1e6),
    ] {
        let options = PassOptions {
            cache_cross_attention: true,
            ..PassOptions::default()
        };
        let whole = checkpoint(name, 1);
        let model = WanModel::new(&whole, &options).expect("is whole");
        let (first, later) = (model.step(None, true), model.step(None, false));
        assert_eq!((first.len(), later.len()), (1, 1));
        let plan = plan(&model, Budget::Least);
        let wire = |kind: PassKind| plan.kinds[kind.index()].wire_bytes_per_pass as f64;
        let saved = 1.0 - wire(later[0].kind) / wire(first[0].kind);
        assert!(
            (saved - fewer_matrices / of).abs() < 0.01,
            "{name}: {saved}"
        );
        let blocks = whole.detection().block_count;
        let d = whole.detection().dim;
        let image = if name.contains("i2v") { 257 } else { 0 };
        assert_eq!(
            model.cached_bytes(512, 257),
            2 * blocks * (512 + image) * d * 2
        );
        // Steps after the first are what the planner plans for.
        let kinds = model.model().kinds();
        assert!(kinds[later[0].kind.index()].share() > kinds[first[0].kind.index()].share());
    }
    let without = wan("wan2.1-t2v-14b", &PassOptions::default());
    assert_eq!(without.cached_bytes(512, 0), 0);
    assert_eq!(without.step(None, true), without.step(None, false));
}

#[test]
fn groups_stay_and_blocks_are_the_planners() {
    let mut groups = BTreeSet::new();
    for &variant in Variant::ALL {
        let model = wan(variant.name(), &PassOptions::default());
        for index in 0..model.model().blocks().len() {
            let (part, expert) = model.part(index);
            let residency = model.model().residency(index);
            assert_eq!(
                residency == Residency::Planned,
                part.is_block(),
                "{variant} {part:?}"
            );
            assert_eq!(expert, None);
            match part {
                Part::Group(group) => {
                    assert_eq!(model.model().blocks()[index].name(), group.name());
                    groups.insert(group);
                }
                part => assert!(part.is_block(), "{variant} {part:?}"),
            }
        }
        let every_block: Vec<usize> = (0..model.model().blocks().len()).collect();
        assert_eq!(model.model().kinds()[0].visits(), every_block, "{variant}");
    }
    // Each group is one of some variant.
    assert!(groups.iter().eq(Group::ALL));
}

#[test]
fn a_run_has_steps() {
    let options = PassOptions {
        steps: 0,
        ..PassOptions::default()
    };
    let error = WanModel::new(&checkpoint("wan2.1-t2v-14b", 16), &options);
    assert!(
        matches!(error, Err(LayoutError::OutOfRange { .. })),
        "{error:?}"
    );
}

fn pair(name: &str, options: &PassOptions) -> WanModel {
    let experts = (checkpoint(name, 16), checkpoint(name, 16));
    WanModel::pair(&experts.0, &experts.1, None, options).expect("are a pair")
}

#[test]
fn what_an_engine_keeps_is_that_of_the_expert_that_computes() {
    let first = vace(VaceOrder::AllFirst);
    for (name, options, hints, blocks) in [
        ("wan2.2-vace-fun-a14b", &first, 8, 0),
        ("wan2.2-t2v-a14b", &cached(), 0, 40),
    ] {
        let d = checkpoint(name, 16).detection().dim;
        for wan in [wan(name, options), pair(name, options)] {
            assert_eq!(wan.hint_bytes(1000), hints * 1000 * d * 2, "{name}");
            // Keys and values.
            assert_eq!(wan.cached_bytes(512, 0), 2 * blocks * 512 * d * 2, "{name}");
            let tokens = Tokens {
                video: 1000,
                text: 512,
                image: 0,
            };
            let kept = wan.hint_bytes(1000) + wan.cached_bytes(512, 0);
            assert_eq!(wan.kept_bytes(tokens), kept, "{name}");
        }
    }
}

fn cached() -> PassOptions {
    PassOptions {
        cache_cross_attention: true,
        ..PassOptions::default()
    }
}

/// Tensors of block `name` that later steps do not demand.
fn undemanded<'w>(wan: &'w WanModel, name: &str) -> Vec<&'w str> {
    let kind = wan.step(None, false)[0].kind;
    let spec = &wan.model().kinds()[kind.index()];
    let blocks = wan.model().blocks().iter();
    let (index, block) = blocks
        .enumerate()
        .find(|(_, block)| block.name() == name)
        .expect("is there");
    let tensors = block.tensors().iter().enumerate();
    let left = tensors.filter(|(tensor, _)| !spec.demands(index, *tensor));
    let mut names: Vec<&str> = left.map(|(_, tensor)| tensor.name()).collect();
    names.sort_unstable();
    names
}

#[test]
fn later_steps_leave_out_all_that_makes_keys_and_values_and_nothing_else() {
    let text = [
        "cross_attn.k.bias",
        "cross_attn.k.weight",
        "cross_attn.norm_k.weight",
        "cross_attn.v.bias",
        "cross_attn.v.weight",
    ];
    let image = [
        "cross_attn.k_img.bias",
        "cross_attn.k_img.weight",
        "cross_attn.norm_k_img.weight",
        "cross_attn.v_img.bias",
        "cross_attn.v_img.weight",
    ];
    let mut both = [text, image].concat();
    both.sort_unstable();
    for (name, block, expected) in [
        ("wan2.1-t2v-14b", "blocks.39", &text[..]),
        ("wan2.1-i2v-14b", "blocks.0", &both),
        ("wan2.1-vace-14b", "vace_blocks.7", &text),
        ("longcat-video", "blocks.47", &text),
        ("wan2.1-i2v-14b", "img_emb", &[]),
        // Their keys and values are of sound or of a face that changes.
        ("wan2.2-s2v-14b", "audio_injector.3", &[]),
        ("wan2.2-animate-14b", "fuser_blocks.3", &[]),
    ] {
        assert_eq!(undemanded(&wan(name, &cached()), block), expected, "{name}");
    }
    // What belongs to such a weight goes with it.
    let spec = SynthesizeSpec {
        recipe: Recipe::F8Mixed,
        dim: 128,
        ffn_dim: 256,
        ..SynthesizeSpec::default()
    };
    let tensors = spec.describe().expect("widths fit");
    let scaled = Checkpoint::from_tensors(tensors).expect("names are unique");
    let scaled = WanModel::new(&scaled, &cached()).expect("is whole");
    let left = undemanded(&scaled, "blocks.1");
    for leaf in ["comfy_quant", "weight_scale"] {
        for owner in ["cross_attn.k", "cross_attn.v"] {
            let name = format!("{owner}.{leaf}");
            assert!(left.contains(&name.as_str()), "{name} in {left:?}");
        }
    }
    assert_eq!(left.len(), text.len() + 4);
}

#[test]
fn a_change_of_expert_that_is_not_told_takes_as_much_longer_as_a_cold_pass() {
    let wan = pair("wan2.2-t2v-a14b", &PassOptions::default());
    let bytes = |index: &usize| -> u64 {
        let tensors = wan.model().blocks()[*index].tensors().iter();
        tensors.map(|tensor| tensor.source().len()).sum()
    };
    // A window for what comes next, so that a hint has something to bring. Each block computes for a second and is
    // brought in half of it.
    let block = wan.model().kinds()[1].visits()[10];
    let seconds = wan.model().kinds().iter().map(|kind| {
        let visits = kind.visits().iter();
        let seconds = visits.map(|index| f64::from(u8::from(wan.part(*index).0.is_block())));
        seconds.collect()
    });
    let mut settings = Settings {
        blocks_ahead: Some(2),
        ..Settings::default()
    };
    settings.costs.compute_s = seconds.collect();
    settings.costs.rates.wire_bytes_per_s = 2.0 * bytes(&block) as f64;
    settings.costs.rates.upload_latency_s = 0.0;
    let plan = settings.plan(&settings.workload(wan.model(), true), Budget::Least);
    let plan = plan.expect("a plan exists");
    let change = wan.expert_change(&plan).expect("is a pair");
    let low = &plan.kinds[wan.step(Some(Expert::Low), true)[0].kind.index()];
    assert_eq!(change.hinted_pass_s, low.predicted_pass_s);
    assert!(change.unhinted_s > 0.0);
    assert_eq!(
        change.unhinted_s,
        low.predicted_cold_pass_s - low.predicted_pass_s
    );
    // The first block of the other expert arrives while nothing computes; all others arrive behind it.
    let is_streamed = |block: &&offload_core::plan::BlockPlan| {
        block.form == Form::Streamed && block.block.starts_with("low.")
    };
    assert_eq!(plan.blocks.iter().filter(is_streamed).count(), 40);
    assert!((change.unhinted_s - 0.5).abs() < 0.05, "{change:?}");
    // Everything resident: nothing has to be brought.
    let whole = settings.plan(
        &settings.workload(wan.model(), true),
        Budget::Bytes(1 << 40),
    );
    let change = wan.expert_change(&whole.expect("a plan exists"));
    assert_eq!(change.expect("is a pair").unhinted_s, 0.0);
}
