//! Names and shapes of every layout against the lists that the authors' and diffusers' own classes give.

mod support;

use std::collections::BTreeMap;

use offload_wan::{Checkpoint, Naming, Recipe, SynthesizeSpec, Variant};
use support::{RECORDED, Recorded, Shaped, specs};

/// What a synthesised checkpoint of `variant` holds, sorted.
fn laid_out(variant: &str, naming: Naming) -> Vec<Shaped> {
    let variant = Variant::from_name(variant).expect("is published");
    let spec = SynthesizeSpec {
        naming,
        ..SynthesizeSpec::of_variant(variant, Recipe::BF16, 1, 0).expect("has a size")
    };
    let tensors = spec.describe().expect("widths fit");
    let mut all: Vec<Shaped> = tensors
        .iter()
        .map(|tensor| (tensor.name().to_owned(), tensor.shape().to_vec()))
        .collect();
    all.sort();
    all
}

#[test]
fn names_and_shapes_are_those_of_the_classes() {
    assert_eq!(RECORDED.len(), 21);
    for file in RECORDED {
        let (naming, variant) = file.split_once('.').expect("NAMING.VARIANT");
        let naming = Naming::from_name(naming).expect("is a convention");
        let recorded = Recorded::read(file);
        let mut expected = recorded.tensors();
        expected.sort();
        let found = laid_out(variant, naming);
        assert_eq!(found.len(), recorded.tensor_count, "{file}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected, "{file}");
        }
    }
}

/// Blocks of a model with the tensors of each: canonical names and shapes.
fn blocks(tensors: &[Shaped]) -> BTreeMap<String, Vec<Shaped>> {
    let checkpoint = Checkpoint::from_tensors(specs(tensors)).expect("names are unique");
    let model = checkpoint.model().expect("is whole");
    let blocks = model.blocks().iter().map(|block| {
        let tensors = block.tensors().iter();
        let mut tensors: Vec<Shaped> = tensors
            // Only the authors' checkpoints have the blur kernels, which are constants.
            .filter(|tensor| !tensor.name().ends_with(".kernel"))
            .map(|tensor| {
                let ones = |shape: &[u64]| shape.iter().copied().filter(|len| *len != 1).collect();
                (tensor.name().to_owned(), ones(tensor.shape()))
            })
            .collect();
        tensors.sort();
        (block.name().to_owned(), tensors)
    });
    blocks.collect()
}

#[test]
fn whatever_the_convention_the_blocks_are_the_same() {
    for variant in [
        "wan2.1-t2v-1.3b",
        "wan2.1-t2v-14b",
        "wan2.1-i2v-14b",
        "wan2.1-flf2v-14b",
        "wan2.2-i2v-a14b",
        "wan2.2-ti2v-5b",
        "wan2.1-vace-1.3b",
        "wan2.1-vace-14b",
        "wan2.2-animate-14b",
    ] {
        let [native, diffusers] = ["native", "diffusers"]
            .map(|naming| blocks(&Recorded::read(&format!("{naming}.{variant}")).tensors()));
        assert_eq!(native, diffusers, "{variant}");
    }
    let native = blocks(&Recorded::read("native.longcat-video").tensors());
    let repacked = blocks(&laid_out("longcat-video", Naming::Repacked));
    assert_eq!(native, repacked);
    let block = &native["blocks.47"];
    assert!(block.contains(&("self_attn.v.weight".to_owned(), vec![4096, 4096])));
    assert!(block.contains(&("cross_attn.k.bias".to_owned(), vec![4096])));
}

#[test]
fn every_prefix_gives_the_same_blocks() {
    let tensors = Recorded::read("native.wan2.2-animate-14b").tensors();
    let plain = blocks(&tensors);
    for prefix in [
        "model.diffusion_model.",
        "model.model.",
        "net.",
        "diffusion_model.",
    ] {
        let prefixed: Vec<Shaped> = tensors
            .iter()
            .map(|(name, shape)| (format!("{prefix}{name}"), shape.clone()))
            .collect();
        assert_eq!(blocks(&prefixed), plain, "{prefix}");
    }
}

#[test]
fn blocks_in_another_module_are_the_same_blocks() {
    let tensors = Recorded::read("native.wan2.2-animate-14b").tensors();
    let wrapped = |name: &str| match name.strip_prefix("blocks.") {
        Some(rest) => {
            let (index, rest) = rest.split_once('.').expect("has a number");
            format!("blocks.{index}.block.{rest}")
        }
        None => name.to_owned(),
    };
    let mut all: Vec<Shaped> = tensors
        .iter()
        .map(|(name, shape)| (wrapped(name), shape.clone()))
        .collect();
    assert_eq!(blocks(&all), blocks(&tensors));
    // What is missing is named as the file would.
    all.retain(|(name, _)| name != "blocks.7.block.norm3.bias");
    let checkpoint = Checkpoint::from_tensors(specs(&all)).expect("names are unique");
    let findings = checkpoint.findings();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].name(), "blocks.7.block.norm3.bias");
}

/// Bytes of a block in bf16, and MiB as tables round them.
#[test]
fn blocks_have_the_published_sizes() {
    let block_bytes = |variant: &str, block: &str| {
        let mut tensors = laid_out(variant, Naming::Native);
        tensors.sort();
        let checkpoint = Checkpoint::from_tensors(specs(&tensors)).expect("names are unique");
        let blocks = checkpoint.blocks();
        let found = blocks.iter().find(|summary| summary.name == block);
        found
            .unwrap_or_else(|| panic!("{block} of {variant}"))
            .bytes
    };
    for (variant, block, bytes) in [
        ("wan2.1-t2v-1.3b", "blocks.0", 92_881_408),
        ("wan2.1-fun-inp-1.3b", "blocks.29", 102_327_808),
        ("wan2.2-ti2v-5b", "blocks.7", 327_313_408),
        ("wan2.1-t2v-14b", "blocks.39", 702_788_608),
        ("wan2.2-i2v-a14b", "blocks.0", 702_788_608),
        ("wan2.1-i2v-14b", "blocks.0", 807_676_928),
        ("wan2.2-animate-14b", "blocks.5", 807_676_928),
        ("longcat-video", "blocks.0", 564_265_984),
    ] {
        assert_eq!(block_bytes(variant, block), bytes, "{block} of {variant}");
    }
    let mib = |variant, block| {
        (block_bytes(variant, block) as f64 / f64::from(1 << 20) * 10.0).round() / 10.0
    };
    for (variant, block, expected) in [
        ("wan2.1-vace-1.3b", "vace_blocks.1", 93.1),
        ("wan2.1-vace-1.3b", "vace_blocks.0", 97.6),
        ("wan2.1-vace-14b", "vace_blocks.7", 720.2),
        ("wan2.1-vace-14b", "vace_blocks.0", 770.3),
        ("wan2.2-vace-fun-a14b", "vace_blocks.0", 770.3),
        ("wan2.2-s2v-14b", "audio_injector.11", 300.1),
        ("wan2.2-animate-14b", "fuser_blocks.7", 200.0),
        // Attention to sound: q and o of width 5120, k and v of 1536 to it.
        ("humo-17b", "blocks.39", 800.3),
    ] {
        assert_eq!(mib(variant, block), expected, "{block} of {variant}");
    }
}

/// MiB of the blocks of every layout: F32, BF16, F8 matrices, Q8_0, Q4_K_M.
#[rustfmt::skip]
const MIB: &[(&[&str], &str, [f64; 5])] = &[
    (&["wan2.1-t2v-1.3b"], "blocks.9", [177.2, 88.6, 44.3, 47.2, 29.6]),
    (&["wan2.1-fun-inp-1.3b", "wan2.1-fun-control-1.3b", "wan2.1-fun-camera-1.3b"], "blocks.9", [195.2, 97.6, 48.8, 52.0, 32.1]),
    (&["wan2.1-vace-1.3b"], "blocks.9", [177.2, 88.6, 44.3, 47.2, 29.6]),
    (&["wan2.1-vace-1.3b"], "vace_blocks.14", [186.2, 93.1, 46.6, 49.6, 30.9]),
    (&["wan2.1-vace-1.3b"], "vace_blocks.0", [195.2, 97.6, 48.8, 52.0, 32.1]),
    (&["wan2.2-ti2v-5b"], "blocks.9", [624.3, 312.2, 156.2, 166.1, 103.5]),
    (&["wan2.1-t2v-14b", "wan2.2-t2v-a14b", "wan2.2-i2v-a14b", "wan2.2-fun-inp-a14b", "wan2.2-fun-control-a14b", "wan2.2-fun-camera-a14b",
       "wan2.2-s2v-14b", "wan2.1-vace-14b", "wan2.2-vace-fun-a14b"], "blocks.9", [1340.5, 670.2, 335.2, 356.4, 219.2]),
    (&["wan2.1-i2v-14b", "wan2.1-flf2v-14b", "wan2.1-fun-inp-14b", "wan2.1-fun-control-14b", "wan2.1-fun-camera-14b",
       "wan2.2-animate-14b", "scail-14b", "scail2-14b"], "blocks.9", [1540.5, 770.3, 385.3, 409.6, 247.4]),
    (&["wan2.1-vace-14b", "wan2.2-vace-fun-a14b"], "vace_blocks.7", [1440.5, 720.2, 360.2, 383.0, 233.3]),
    (&["wan2.1-vace-14b", "wan2.2-vace-fun-a14b"], "vace_blocks.0", [1540.5, 770.3, 385.3, 409.6, 247.4]),
];

#[test]
fn encodings_give_the_sizes_of_the_table() {
    let mib = |variant: &str, block: &str, recipe| {
        let variant = Variant::from_name(variant).expect("is published");
        let spec = SynthesizeSpec::of_variant(variant, recipe, 1, 0).expect("has a size");
        let tensors = spec.describe().expect("widths fit");
        let checkpoint = Checkpoint::from_tensors(tensors).expect("names are unique");
        let blocks = checkpoint.blocks();
        let block = blocks.iter().find(|summary| summary.name == block);
        block.expect("is there").bytes as f64 / f64::from(1 << 20)
    };
    let recipes = [
        Recipe::F32,
        Recipe::BF16,
        Recipe::F8,
        Recipe::Q8_0,
        Recipe::Q4KM,
    ];
    let mut seen = std::collections::BTreeSet::new();
    for (variants, block, row) in MIB {
        for variant in *variants {
            seen.insert(*variant);
            for (recipe, expected) in recipes.into_iter().zip(row) {
                // The table leaves biases and norms in bf16 and rounds to a tenth; converters write them as F32.
                let rest = if recipe == Recipe::F32 { 0.0 } else { 0.4 };
                let found = mib(variant, block, recipe);
                assert!(
                    (-0.051..rest + 0.051).contains(&(found - expected)),
                    "{block} of {variant} in {recipe:?}: {found} for {expected}"
                );
            }
        }
    }
    // Others have blocks of their own.
    for variant in ["humo-17b", "longcat-video"] {
        assert!(seen.insert(variant));
    }
    assert_eq!(seen.len(), Variant::ALL.len());
    // adaLN stays as it is outside blocks.
    for (recipe, expected) in [
        (Recipe::F32, 1076.3),
        (Recipe::BF16, 538.1),
        (Recipe::F8, 281.1),
    ] {
        let found = mib("longcat-video", "blocks.9", recipe);
        assert!((found - expected).abs() < 0.45, "{recipe:?}: {found}");
    }
}
