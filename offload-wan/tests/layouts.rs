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

#[test]
fn encodings_give_the_sizes_of_the_table() {
    let mib = |variant: &str, recipe| {
        let variant = Variant::from_name(variant).expect("is published");
        let spec = SynthesizeSpec::of_variant(variant, recipe, 1, 0).expect("has a size");
        let tensors = spec.describe().expect("widths fit");
        let checkpoint = Checkpoint::from_tensors(tensors).expect("names are unique");
        let bytes = checkpoint.blocks()[9].bytes;
        (bytes as f64 / f64::from(1 << 20) * 10.0).round() / 10.0
    };
    for (variant, f32, q8_0, q4_k_m) in [
        ("wan2.1-t2v-1.3b", 177.2, 47.2, 29.6),
        ("wan2.1-fun-inp-1.3b", 195.2, 52.0, 32.1),
        ("wan2.2-ti2v-5b", 624.3, 166.1, 103.5),
        ("wan2.1-t2v-14b", 1340.5, 356.4, 219.2),
        ("wan2.1-i2v-14b", 1540.5, 409.6, 247.4),
    ] {
        assert_eq!(mib(variant, Recipe::F32), f32, "{variant}");
        // The table leaves biases and norms in bf16; converters write them as F32.
        for (recipe, expected) in [(Recipe::Q8_0, q8_0), (Recipe::Q4KM, q4_k_m)] {
            let found = mib(variant, recipe);
            assert!(
                (found - expected).abs() < 0.5,
                "{variant}: {found} for {expected}"
            );
        }
    }
}
