//! Models streamed on the CPU device: the bytes that arrive, again and again, and what both experts of a pair take.

mod support;

use std::collections::BTreeMap;

use bytes::Bytes;
use offload_core::cpu::CpuDevice;
use offload_core::encoding::Encoding;
use offload_core::executor::{ArrivalPolicy, DeviceBudget, Offload, OffloadBuilder};
use offload_core::model::PassKind;
use offload_core::plan::Form;
use offload_core::swappable::TensorSpec;
use offload_core::testing::{Observed, Recorder};
use offload_wan::{
    BlockSwap, Checkpoint, Expert, Family, LayoutError, Naming, PassOptions, Recipe,
    SynthesizeSpec, VaceOrder, Variant, WanModel, synthesize,
};
use tempfile::TempDir;

fn small(family: Family) -> SynthesizeSpec {
    SynthesizeSpec {
        family,
        block_count: 6,
        dim: 128,
        ffn_dim: 256,
        recipe: Recipe::Q8_0,
        ..SynthesizeSpec::default()
    }
}

fn made(dir: &TempDir, name: &str, spec: &SynthesizeSpec) -> Checkpoint {
    let path = dir.path().join(name);
    synthesize(spec, &path).expect("can be written");
    Checkpoint::open(path).expect("is sound")
}

type Device = Observed<CpuDevice, Recorder>;
type Builder = OffloadBuilder<Device>;

struct Rig {
    device: Device,
    offload: Offload<Device>,
}

impl Rig {
    fn new(wan: &WanModel, budget: DeviceBudget) -> Self {
        Self::built(wan, |builder| builder.device_budget(budget))
    }

    fn built(wan: &WanModel, with: impl FnOnce(Builder) -> Builder) -> Self {
        let device = Observed::new(CpuDevice::builder().poison(true).build(), Recorder::new());
        let builder = Offload::builder(&device)
            .model(wan.model().clone())
            .arrival(ArrivalPolicy::STORED)
            .remainder_below(512);
        let offload = with(builder).build().expect("can be built");
        Self { device, offload }
    }

    /// What arrives in a pass: a hash of each tensor's bytes, by block and name.
    fn pass(&mut self, kind: PassKind) -> BTreeMap<String, u64> {
        let stream = self.device.inner().inline_stream();
        let mut pass = self.offload.pass(kind, &stream).expect("begins");
        let mut seen = BTreeMap::new();
        while let Some(lease) = pass.acquire().expect("arrives") {
            for name in lease.tensor_names() {
                let tensor = lease.tensor(name).expect("is demanded");
                let bytes = tensor.host_bytes().expect("inline streams give bytes");
                seen.insert(format!("{}.{name}", lease.name()), hash(bytes));
            }
        }
        seen
    }
}

/// Eight bytes at a time: some blocks have many.
fn hash(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    words.fold(bytes.len() as u64, |hash, word| {
        (hash ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    })
}

/// The same from the files.
fn stored(wan: &WanModel) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for block in wan.model().blocks() {
        for tensor in block.tensors() {
            let mut bytes = vec![0; usize::try_from(tensor.source().len()).expect("is small")];
            tensor.source().read(0, &mut bytes).expect("can be read");
            all.insert(format!("{}.{}", block.name(), tensor.name()), hash(&bytes));
        }
    }
    all
}

fn wan(checkpoint: &Checkpoint, vace: VaceOrder) -> WanModel {
    let options = PassOptions {
        vace,
        ..PassOptions::default()
    };
    WanModel::new(checkpoint, &options).expect("is whole")
}

#[test]
fn every_family_arrives_whole_and_a_second_run_is_the_first() {
    let dir = TempDir::new().expect("can be made");
    for family in [
        Family::T2v21,
        Family::I2v21,
        Family::Flf2v21,
        Family::Vace21,
        Family::S2v22,
        Family::Animate22,
        Family::FunControl22,
        Family::FunCamera21,
        Family::Humo,
        Family::Scail2,
        Family::LongCat,
    ] {
        let checkpoint = made(&dir, "model.gguf", &small(family));
        let wan = wan(&checkpoint, VaceOrder::Interleaved);
        let expected = stored(&wan);
        let mut rig = Rig::new(&wan, DeviceBudget::Least);
        let streamed = |form: &Form| *form == Form::Streamed;
        assert!(
            rig.offload
                .plan()
                .blocks
                .iter()
                .any(|block| streamed(&block.form))
        );
        // A run, its loop, and a run after the device was given away and taken back twice.
        for _ in 0..3 {
            assert_eq!(rig.pass(PassKind::FULL), expected, "{}", family.name());
        }
        for _ in 0..2 {
            rig.offload.suspend().expect("waits");
            rig.offload.suspend().expect("is suspended already");
            rig.offload.resume().expect("loads");
            rig.offload.resume().expect("is back already");
            assert_eq!(rig.pass(PassKind::FULL), expected, "{}", family.name());
        }
        drop(rig);
        // A second one of the same model.
        let mut again = Rig::new(&wan, DeviceBudget::Least);
        assert_eq!(again.pass(PassKind::FULL), expected, "{}", family.name());
    }
}

#[test]
fn vace_orders_bring_the_same_and_block_0_its_extra_tensors() {
    let dir = TempDir::new().expect("can be made");
    let checkpoint = made(&dir, "model.gguf", &small(Family::Vace21));
    let mut seen = [VaceOrder::Interleaved, VaceOrder::AllFirst]
        .map(|order| Rig::new(&wan(&checkpoint, order), DeviceBudget::Least).pass(PassKind::FULL));
    assert_eq!(seen[0], seen[1]);
    assert!(seen[0].remove("vace_blocks.0.before_proj.weight").is_some());
    assert!(seen[0].remove("vace_blocks.0.before_proj.bias").is_some());
    assert!(!seen[0].contains_key("vace_blocks.1.before_proj.weight"));
    assert!(seen[0].contains_key("vace_blocks.1.after_proj.weight"));
    let off = Rig::new(&wan(&checkpoint, VaceOrder::Off), DeviceBudget::Least).pass(PassKind::FULL);
    assert!(off.keys().all(|name| !name.contains("vace")));
}

#[test]
fn opening_and_building_take_what_the_plan_says_and_no_more() {
    let dir = TempDir::new().expect("can be made");
    let checkpoint = made(&dir, "model.gguf", &small(Family::I2v21));
    let wan = wan(&checkpoint, VaceOrder::Interleaved);
    let swap = BlockSwap {
        blocks_to_swap: 4,
        ..BlockSwap::default()
    };
    let swapped = swap.apply(wan.clone()).expect("is in range");
    for (wan, budget) in [(&wan, DeviceBudget::Least), (&swapped, DeviceBudget::Least)] {
        let rig = Rig::new(wan, budget);
        let (plan, counts) = (rig.offload.plan(), rig.device.observer().counts());
        assert_eq!(counts.arenas, 1);
        assert_eq!(counts.largest_arena_bytes, plan.arena_bytes);
        assert!(plan.arena_bytes <= plan.budget_bytes);
        let high_water = rig.offload.counters().high_water_bytes();
        assert!(high_water <= plan.high_water_bytes);
        // What is streamed was not loaded first: only what stays was uploaded.
        let streamed: u64 = plan
            .blocks
            .iter()
            .zip(wan.model().blocks())
            .filter(|(plan, _)| plan.form == Form::Streamed)
            .flat_map(|(_, block)| block.tensors())
            .filter(|tensor| tensor.source().len() >= 512)
            .map(|tensor| tensor.source().len())
            .sum();
        let all: u64 = wan
            .model()
            .blocks()
            .iter()
            .flat_map(|block| block.tensors())
            .map(|tensor| tensor.source().len())
            .sum();
        assert!(streamed > 0 && counts.upload_bytes <= all - streamed + 4096);
    }
}

fn pair(dir: &TempDir) -> (Checkpoint, Checkpoint) {
    let expert = |name: &str, seed| {
        let spec = SynthesizeSpec {
            seed,
            ..small(Family::T2v22)
        };
        made(dir, name, &spec)
    };
    (
        expert("t2v_high_noise.gguf", 1),
        expert("t2v_low_noise.gguf", 2),
    )
}

#[test]
fn both_experts_stay_within_one_budget() {
    let dir = TempDir::new().expect("can be made");
    let (high, low) = pair(&dir);
    assert_eq!(high.detection().expert, Some(Expert::High));
    let options = PassOptions {
        steps: 6,
        high_steps: Some(2),
        ..PassOptions::default()
    };
    let wan = WanModel::pair(&high, &low, None, &options).expect("are a pair");
    assert_eq!(wan.boundary(), Some(0.875));
    let expert = |timestep| wan.expert_at(timestep);
    assert_eq!(expert(875.0), Some(Expert::High));
    assert_eq!(expert(874.9), Some(Expert::Low));
    let alone = |checkpoint: &Checkpoint| {
        let wan = self::wan(checkpoint, VaceOrder::Off);
        let rig = Rig::new(&wan, DeviceBudget::LeaveFree(0));
        rig.offload.plan().arena_bytes
    };
    // Less than the two take apart.
    let budget = (alone(&high) + alone(&low)) * 8 / 10;
    let mut rig = Rig::new(&wan, DeviceBudget::Bytes(budget));
    assert!(rig.offload.plan().arena_bytes <= budget);
    let expected = stored(&wan);
    let kind = |expert| wan.step(Some(expert), true)[0].kind;
    for _run in 0..2 {
        for (expert, steps) in [(Expert::High, 2), (Expert::Low, 4)] {
            for _ in 0..steps {
                let seen = rig.pass(kind(expert));
                let prefix = format!("{}.", expert.name());
                let own = expected
                    .iter()
                    .filter(|(name, _)| name.starts_with(&prefix));
                assert!(seen.iter().eq(own), "{expert:?}");
            }
        }
    }
    let counts = rig.device.observer().counts();
    assert_eq!(
        (counts.arenas, counts.largest_arena_bytes <= budget),
        (1, true)
    );
    let change = wan.expert_change(rig.offload.plan()).expect("is a pair");
    // Both keep what they have; beside it there is the window.
    let resident = change.high_resident_bytes + change.low_resident_bytes;
    assert!(change.high_resident_bytes > 0 && change.low_resident_bytes > 0);
    assert!(resident <= rig.offload.plan().arena.resident.bytes);
    assert_eq!(change.arena_bytes, rig.offload.plan().arena_bytes);
    assert!(change.unhinted_s >= 0.0);
    // How often each is used is what the planner weighs.
    let shares: Vec<f64> = wan
        .model()
        .kinds()
        .iter()
        .map(|kind| kind.share())
        .collect();
    assert_eq!(shares, [2.0, 4.0]);
}

#[test]
fn experts_of_a_pair_may_be_stored_in_different_ways() {
    let dir = TempDir::new().expect("can be made");
    let stored_as = |recipe: Recipe| {
        let name = format!("{}.safetensors", recipe.name());
        let spec = SynthesizeSpec {
            recipe,
            ..small(Family::T2v22)
        };
        made(&dir, &name, &spec)
    };
    let plain = stored_as(Recipe::BF16);
    for recipe in [Recipe::F8, Recipe::F8Scaled, Recipe::F8Mixed] {
        let other = stored_as(recipe);
        for (high, low) in [(&plain, &other), (&other, &plain)] {
            let wan = WanModel::pair(high, low, None, &PassOptions::default());
            let wan = wan.unwrap_or_else(|error| panic!("{}: {error}", recipe.name()));
            let expected = stored(&wan);
            let mut rig = Rig::new(&wan, DeviceBudget::Least);
            for expert in [Expert::High, Expert::Low] {
                let seen = rig.pass(wan.step(Some(expert), true)[0].kind);
                let prefix = format!("{}.", expert.name());
                let own = (expected.iter()).filter(|(name, _)| name.starts_with(&prefix));
                assert!(seen.iter().eq(own), "{} {expert:?}", recipe.name());
            }
        }
    }
}

#[test]
fn a_change_of_expert_that_is_told_before_moves_nothing_more() {
    let dir = TempDir::new().expect("can be made");
    let (high, low) = pair(&dir);
    let wan = WanModel::pair(&high, &low, None, &PassOptions::default()).expect("are a pair");
    let kind = |expert| wan.step(Some(expert), true)[0].kind;
    let (high, low) = (kind(Expert::High), kind(Expert::Low));
    assert_eq!(wan.expert_of(high), Some(Expert::High));
    assert_eq!(wan.expert_of(low), Some(Expert::Low));
    let passes = [high, high, low, low];
    // Bytes moved beyond loading and what passes of these kinds take.
    let extra_bytes = |hinted: bool| -> u64 {
        // A window for the head of the next pass beside the block that computes.
        let mut rig = Rig::built(&wan, |builder| {
            builder.device_budget(DeviceBudget::Least).blocks_ahead(2)
        });
        let change = wan.expert_change(rig.offload.plan()).expect("is a pair");
        let kinds = rig.offload.plan().kinds.iter();
        let wire: Vec<u64> = kinds.map(|kind| kind.wire_bytes_per_pass).collect();
        assert_eq!(change.wire_bytes, wire[low.index()]);
        assert!(change.wire_bytes > 0);
        let stream = rig.device.inner().inline_stream();
        for (number, &kind) in passes.iter().enumerate() {
            let mut pass = rig.offload.pass(kind, &stream).expect("begins");
            match passes.get(number + 1) {
                Some(&next) if hinted || next == kind => pass.then(next).expect("is a kind"),
                Some(_) => {}
                None => pass.last(),
            }
            while pass.acquire().expect("arrives").is_some() {}
            drop(pass);
            // Waits for what is on its way: a worker that is given up in time has moved nothing.
            rig.offload.report().expect("works");
        }
        let report = rig.offload.report().expect("works");
        let uploaded = rig.device.observer().counts().upload_bytes;
        let taken: u64 = passes.iter().map(|kind| wire[kind.index()]).sum();
        let extra = uploaded - report.load_bytes - taken;
        assert_eq!(extra, report.past_end_bytes);
        assert!(extra < wire[high.index()]);
        extra
    };
    assert_eq!(extra_bytes(true), 0);
    assert!(
        extra_bytes(false) > 0,
        "the head of another pass for high noise"
    );
}

#[test]
fn boundaries_are_the_variants_or_given() {
    let dir = TempDir::new().expect("can be made");
    let of = |family, given| {
        let make = |name: &str| made(&dir, name, &small(family));
        let (one, other) = (make("one.gguf"), make("other.gguf"));
        WanModel::pair(&one, &other, given, &PassOptions::default()).map(|wan| wan.boundary())
    };
    assert_eq!(of(Family::T2v22, None).expect("are a pair"), Some(0.875));
    assert_eq!(of(Family::I2v22, None).expect("are a pair"), Some(0.900));
    assert_eq!(of(Family::T2v22, Some(0.5)).expect("are a pair"), Some(0.5));
    let error = of(Family::T2v22, Some(875.0))
        .expect_err("is no part")
        .to_string();
    assert!(error.contains("between 0 and 1"), "{error}");
    let error = of(Family::Ti2v22, None)
        .expect_err("is one model")
        .to_string();
    assert!(error.contains("wan2.2-ti2v is no pair"), "{error}");
}

#[test]
fn a_variant_that_was_chosen_and_is_no_pair_is_refused_without_a_boundary() {
    let dir = TempDir::new().expect("can be made");
    let whole = SynthesizeSpec {
        block_count: 40,
        dim: 128,
        ffn_dim: 128,
        ..small(Family::T2v22)
    };
    let boundary = |high: &Checkpoint, low: &Checkpoint, given| {
        WanModel::boundary_of(high, low, given).map_err(|error| {
            assert!(matches!(error, LayoutError::NoPair { .. }), "{error}");
            error.to_string()
        })
    };
    // Nothing tells: one of the variants that fit is a pair.
    let open = ["one.gguf", "other.gguf"].map(|name| made(&dir, name, &whole));
    assert_eq!(
        open[0].detection().variant.map(|one| one.name()),
        Some("wan2.1-t2v-14b")
    );
    assert_eq!(boundary(&open[0], &open[1], None), Ok(0.875));
    // The names tell.
    let named = ["wan2.1_t2v_a.gguf", "wan2.1_t2v_b.gguf"].map(|name| made(&dir, name, &whole));
    assert_eq!(
        named[0].detection().alternatives[0].name(),
        "wan2.2-t2v-a14b"
    );
    let error = boundary(&named[0], &named[1], None).expect_err("is one model");
    assert!(error.contains("wan2.1-t2v-14b is no pair"), "{error}");
    assert_eq!(boundary(&named[0], &named[1], Some(0.5)), Ok(0.5));
    // Of either of the two, and of the caller.
    assert!(boundary(&open[0], &named[0], None).is_err());
    assert!(boundary(&named[0], &open[0], None).is_err());
    let taken = |name: &str| {
        let variant = Variant::from_name(name).expect("is published");
        open.clone()
            .map(|checkpoint| checkpoint.taken_for(variant).expect("may be"))
    };
    let [high, low] = taken("wan2.1-t2v-14b");
    assert!(boundary(&high, &low, None).is_err());
    let [high, low] = taken("wan2.2-t2v-a14b");
    assert_eq!(boundary(&high, &low, None), Ok(0.875));
    // Each is one of a pair, but not of the same.
    let [_, image] = taken("wan2.2-i2v-a14b");
    let error = boundary(&high, &image, None).expect_err("are of two");
    assert!(error.contains("at 0.875, the other at 0.9"), "{error}");
}

#[test]
fn the_same_files_are_no_pair_however_they_are_called() {
    let dir = TempDir::new().expect("can be made");
    let folder = dir.path().join("shards");
    let spec = SynthesizeSpec {
        recipe: Recipe::BF16,
        naming: Naming::Diffusers,
        ..small(Family::T2v22)
    };
    std::fs::create_dir(&folder).expect("can be made");
    synthesize(&spec, &folder).expect("can be written");
    let mut shards: Vec<_> = std::fs::read_dir(&folder)
        .expect("is a folder")
        .map(|entry| entry.expect("can be listed").path())
        .filter(|path| path.extension().is_some_and(|end| end == "safetensors"))
        .collect();
    shards.sort();
    assert!(shards.len() > 1, "{shards:?}");
    let linked: Vec<_> = shards
        .iter()
        .rev()
        .enumerate()
        .map(|(nth, shard)| {
            let link = dir.path().join(format!("link-{nth}.safetensors"));
            std::fs::hard_link(shard, &link).expect("can be linked");
            link
        })
        .collect();
    let reversed: Vec<_> = shards.iter().rev().collect();
    let high = Checkpoint::open_all(&shards).expect("is sound");
    let mut others = vec![Checkpoint::open_all(reversed).expect("is sound")];
    if cfg!(unix) {
        others.push(Checkpoint::open_all(linked).expect("is sound"));
    }
    let given = Some(0.5);
    for other in others {
        let error = WanModel::pair(&high, &other, given, &PassOptions::default());
        let error = error.expect_err("are the same").to_string();
        assert!(error.contains("cannot be both experts"), "{error}");
    }
    // One of several is one too many.
    let copy = dir.path().join("copy.safetensors");
    std::fs::copy(&shards[0], &copy).expect("can be copied");
    let mut mixed = shards.clone();
    mixed[0] = copy;
    let mixed = Checkpoint::open_all(&mixed).expect("is sound");
    let error = WanModel::pair(&high, &mixed, given, &PassOptions::default());
    let error = error.expect_err("share shards").to_string();
    let (one, count) = (shards[1].display().to_string(), shards.len());
    assert!(error.contains(&one), "{error}");
    assert!(
        error.contains(&format!("{} of {count} files", count - 1)),
        "{error}"
    );
    assert!(!error.contains(&shards[0].display().to_string()), "{error}");
    // Others with the same contents are others.
    let copied: Vec<_> = (shards.iter().enumerate())
        .map(|(nth, shard)| {
            let copy = dir.path().join(format!("copy-{nth}.safetensors"));
            std::fs::copy(shard, &copy).expect("can be copied");
            copy
        })
        .collect();
    let copy = Checkpoint::open_all(copied).expect("is sound");
    WanModel::pair(&high, &copy, given, &PassOptions::default()).expect("are two");
}

#[test]
fn what_is_no_pair_is_refused() {
    let dir = TempDir::new().expect("can be made");
    let (high, low) = pair(&dir);
    let refused = |high: &Checkpoint, low: &Checkpoint| {
        let error = WanModel::pair(high, low, None, &PassOptions::default());
        let error = error.expect_err("are no pair");
        assert!(matches!(error, LayoutError::NoPair { .. }), "{error}");
        error.to_string()
    };
    assert!(refused(&high, &high).contains("cannot be both"));
    assert!(refused(&low, &high).contains("the other way round"));
    let wider = SynthesizeSpec {
        dim: 256,
        ..small(Family::T2v22)
    };
    let wider = made(&dir, "wider.gguf", &wider);
    let error = refused(&high, &wider);
    assert!(
        error.contains("patch_embedding.bias: shape [128] against [256]"),
        "{error}"
    );
    let longer = SynthesizeSpec {
        block_count: 7,
        ..small(Family::T2v22)
    };
    let longer = made(&dir, "longer.gguf", &longer);
    let error = refused(&high, &longer);
    assert!(
        error.ends_with("only that for high noise has nothing more, only the other blocks.6"),
        "{error}"
    );
    // A tensor more in one of them, and one of another name.
    let with = |checkpoint: &Checkpoint, name: &str| {
        let mut tensors = checkpoint.tensors().to_vec();
        let extra = TensorSpec::new(name, [2], Encoding::F32, Bytes::from(vec![0; 8]));
        tensors.push(extra.expect("lengths fit"));
        Checkpoint::from_tensors(tensors).expect("names are unique")
    };
    let more = with(&high, "blocks.0.lora");
    let error = refused(&more, &low);
    assert!(
        error.ends_with("in blocks.0: 28 tensors against 27"),
        "{error}"
    );
    let error = refused(&more, &with(&low, "blocks.0.adapter"));
    assert!(
        error.ends_with("in blocks.0.lora: shape [2] against none"),
        "{error}"
    );
}
