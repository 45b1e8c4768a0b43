//! Checkpoints made here are whole, and the same wherever they are made.

use std::error::Error;
use std::fs;

use offload_core::decode::{Float, decode, is_supported};
use offload_core::encoding::Encoding;
use offload_core::swappable::TensorSpec;
use offload_wan::{
    Checkpoint, Family, Naming, Recipe, SynthesizeError, SynthesizeSpec, Variant, synthesize,
};

fn small(recipe: Recipe) -> SynthesizeSpec {
    SynthesizeSpec {
        block_count: 2,
        dim: 256,
        ffn_dim: 512,
        recipe,
        ..SynthesizeSpec::default()
    }
}

fn made(spec: &SynthesizeSpec) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let path = dir.path().join("made.gguf");
    synthesize(spec, &path).expect("can be written");
    let checkpoint = Checkpoint::open(&path).expect("is sound");
    (dir, checkpoint)
}

/// The file that a recipe is for.
fn name_of(recipe: Recipe) -> &'static str {
    if recipe.is_for_gguf() {
        "made.gguf"
    } else {
        "made.safetensors"
    }
}

#[test]
fn every_recipe_makes_a_whole_model_of_finite_weights() {
    for &recipe in Recipe::ALL {
        for family in [Family::T2v21, Family::I2v21, Family::LongCat] {
            let spec = SynthesizeSpec {
                family,
                ..small(recipe)
            };
            if recipe == Recipe::Int8 && family != Family::LongCat {
                let error = spec.describe().unwrap_err();
                assert!(
                    matches!(error, SynthesizeError::OtherRecipe { .. }),
                    "{error}"
                );
                continue;
            }
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(name_of(recipe));
            synthesize(&spec, &path).unwrap();
            let checkpoint = Checkpoint::open(&path).unwrap();
            let variant = checkpoint.detection().variant.expect("is known");
            assert_eq!(variant.name(), family.name());
            assert_eq!(checkpoint.findings(), [], "{recipe:?}");
            let model = checkpoint.model().expect("is whole");
            for block in model.blocks() {
                for tensor in block.tensors() {
                    assert_finite(tensor, &format!("{recipe:?} {}", block.name()));
                }
            }
        }
    }
}

fn assert_finite(tensor: &TensorSpec, what: &str) {
    let len = usize::try_from(tensor.source().len()).expect("weights here are sound");
    let mut encoded = vec![0; len];
    tensor
        .source()
        .read(0, &mut encoded)
        .expect("weights here are sound");
    if !is_supported(tensor.encoding()) {
        return;
    }
    let count = usize::try_from(tensor.element_count()).expect("weights here are sound");
    let mut arrived = vec![0; 4 * count];
    decode(tensor.encoding(), &encoded, Float::F32, &mut arrived).expect("weights here are sound");
    // Weights that have a scale are a few dozen before it.
    let most = if tensor.encoding() == Encoding::F8E4M3 {
        128.0
    } else {
        16.0
    };
    let finite = arrived.chunks_exact(4).all(|bytes| {
        f32::from_le_bytes(bytes.try_into().expect("weights here are sound")).abs() < most
    });
    assert!(finite, "{what} {}", tensor.name());
}

#[test]
fn the_medium_mix_is_that_of_the_converters() {
    let (_dir, checkpoint) = made(&small(Recipe::Q4KM));
    let encoding = |name: &str| {
        let mut tensors = checkpoint.tensors().iter();
        tensors
            .find(|tensor| tensor.name() == name)
            .unwrap()
            .encoding()
    };
    assert_eq!(encoding("blocks.1.self_attn.q.weight"), Encoding::Q4K);
    assert_eq!(encoding("blocks.1.cross_attn.v.weight"), Encoding::Q6K);
    assert_eq!(encoding("blocks.1.ffn.0.weight"), Encoding::Q4K);
    assert_eq!(encoding("blocks.1.ffn.2.weight"), Encoding::Q6K);
    assert_eq!(encoding("blocks.1.modulation"), Encoding::F32);
    assert_eq!(encoding("head.head.weight"), Encoding::F16);
    let patch = checkpoint.tensors().last().unwrap();
    assert_eq!(patch.name(), "patch_embedding.weight");
    assert_eq!(patch.encoding(), Encoding::F32);
    assert_eq!(patch.shape(), [256, 16, 1, 2, 2]);
}

#[test]
fn the_seed_decides_every_byte() {
    let bytes = |seed| {
        let spec = SynthesizeSpec {
            seed,
            ..small(Recipe::Q4KM)
        };
        let (dir, _) = made(&spec);
        fs::read(dir.path().join("made.gguf")).unwrap()
    };
    let first = bytes(1);
    assert_eq!(first, bytes(1));
    assert_ne!(first, bytes(2));
    // Also across machines and versions, or seeds would stand for nothing.
    let hash = first.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    assert_eq!(hash, 0x6943_269e_81cf_2797, "the bytes of seed 1 changed");
}

#[test]
fn every_variant_keeps_its_counts_when_its_widths_are_divided() {
    for &variant in Variant::ALL {
        for naming in [Naming::Native, Naming::Diffusers, Naming::Repacked] {
            let spec = SynthesizeSpec {
                naming,
                ..SynthesizeSpec::of_variant(variant, Recipe::Q8_0, 64, 0).unwrap()
            };
            assert_eq!(spec.dim % 128, 0);
            let tensors = match spec.describe() {
                Ok(tensors) => tensors,
                Err(SynthesizeError::NoNaming { .. }) if naming != Naming::Native => continue,
                Err(error) => panic!("{variant} {naming}: {error}"),
            };
            if naming == Naming::Native {
                assert_eq!(
                    tensors.len() as u64,
                    variant.counts().unwrap().tensors,
                    "{variant}"
                );
            }
            let checkpoint = Checkpoint::from_tensors(tensors).unwrap();
            let detection = checkpoint.detection();
            let named = detection.variant.into_iter();
            let mut named = named.chain(detection.alternatives.iter().copied());
            assert!(
                named.any(|found| found == variant),
                "{variant}: {detection:?}"
            );
            assert_eq!(detection.naming, Some(naming));
            assert_eq!(checkpoint.findings(), [], "{variant} {naming}");
            assert!(checkpoint.model().is_ok());
        }
    }
    let family = Variant::of_family(Family::T2v21);
    assert!(matches!(
        SynthesizeSpec::of_variant(family, Recipe::F16, 1, 0),
        Err(SynthesizeError::NoSize { .. })
    ));
}

#[test]
fn both_conventions_have_the_same_weights() {
    let read = |naming| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made.safetensors");
        let spec = SynthesizeSpec {
            naming,
            family: Family::Vace21,
            ..small(Recipe::BF16)
        };
        synthesize(&spec, &path).unwrap();
        let model = Checkpoint::open(&path).unwrap().model().unwrap();
        let mut all = Vec::new();
        for block in model.blocks() {
            for tensor in block.tensors() {
                let mut bytes = vec![0; usize::try_from(tensor.source().len()).unwrap()];
                tensor.source().read(0, &mut bytes).unwrap();
                all.push((format!("{}.{}", block.name(), tensor.name()), bytes));
            }
        }
        all.sort();
        all
    };
    assert_eq!(read(Naming::Native), read(Naming::Diffusers));
}

#[test]
fn a_folder_has_shards_an_index_and_a_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let spec = SynthesizeSpec {
        naming: Naming::Diffusers,
        family: Family::Vace21,
        block_count: 6,
        ..small(Recipe::BF16)
    };
    synthesize(&spec, dir.path()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(checkpoint.files().len() >= 3);
    assert_eq!(checkpoint.findings(), []);
    assert_eq!(checkpoint.detection().vace_layers, [0, 3]);
    let decided = &checkpoint.detection().decided_by;
    let by = |what| {
        decided
            .iter()
            .find(|decision| decision.what == what)
            .unwrap()
    };
    assert_eq!(by("vace_layers").by, "config.json");
    // What the configuration says beyond the tensors is missed.
    let config = dir.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("\"num_layers\": 6", "\"num_layers\": 7"),
    )
    .unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.findings()[0].name(), "blocks.6");
    fs::write(&config, "{").unwrap();
    assert!(Checkpoint::open(dir.path()).is_err());
    fs::remove_file(config).unwrap();
    assert!(Checkpoint::open(dir.path()).is_ok());
}

/// A pipe would be waited for, and a device read without end.
#[test]
#[cfg(unix)]
fn a_configuration_that_is_no_regular_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let spec = SynthesizeSpec {
        naming: Naming::Diffusers,
        ..small(Recipe::BF16)
    };
    synthesize(&spec, dir.path()).unwrap();
    let config = dir.path().join("config.json");
    let refused = || {
        let error = Checkpoint::open(dir.path()).unwrap_err();
        let mut chain = format!("{error}");
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            chain += &format!(": {error}");
            source = error.source();
        }
        assert!(chain.contains("config.json"), "{chain}");
    };
    for target in ["/dev/zero", "config.json", "."] {
        fs::remove_file(&config).unwrap();
        std::os::unix::fs::symlink(target, &config).unwrap();
        refused();
    }
    fs::remove_file(&config).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&config).status();
    if made.is_ok_and(|status| status.success()) {
        refused();
    } else {
        println!("SKIPPED: there is no mkfifo");
    }
}

#[test]
fn containers_hold_what_they_can() {
    let dir = tempfile::tempdir().unwrap();
    for (name, recipe) in [
        ("made.safetensors", Recipe::Q4KM),
        ("made.gguf", Recipe::F8Scaled),
        ("made.gguf", Recipe::F8),
    ] {
        let error = synthesize(&small(recipe), dir.path().join(name)).unwrap_err();
        assert!(
            matches!(error, SynthesizeError::Container { .. }),
            "{error}"
        );
        assert!(error.to_string().contains(recipe.name()), "{error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn widths_that_the_encoding_does_not_allow_leave_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made.gguf");
    let spec = SynthesizeSpec {
        dim: 128,
        ..small(Recipe::Q4KM)
    };
    let error = synthesize(&spec, &path).unwrap_err();
    assert!(matches!(error, SynthesizeError::Widths(_)), "{error}");
    let source = error.source().unwrap().to_string();
    assert!(source.contains("self_attn.q.weight"), "{source}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let absent = dir.path().join("absent").join("made.gguf");
    assert!(matches!(
        synthesize(&small(Recipe::F16), &absent),
        Err(SynthesizeError::File { .. })
    ));
}

#[test]
fn the_default_is_worth_streaming() {
    let (dir, checkpoint) = made(&SynthesizeSpec::default());
    let len = fs::metadata(dir.path().join("made.gguf")).unwrap().len();
    assert!((20 << 20..80 << 20).contains(&len), "{len} bytes");
    let model = checkpoint.model().unwrap();
    let block = model
        .blocks()
        .iter()
        .find(|b| b.name() == "blocks.0")
        .unwrap();
    let bytes: u64 = block.tensors().iter().map(|t| t.source().len()).sum();
    assert!((2_000_000..3_000_000).contains(&bytes), "{bytes} bytes");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let path = dir.path().join("made.gguf");
    // What is written to the partial file meets a device without room.
    std::os::unix::fs::symlink("/dev/full", dir.path().join("made.gguf.partial"))
        .expect("a link can be made");
    let error = synthesize(&small(Recipe::F32), &path).expect_err("nothing can be written");
    assert!(error.to_string().contains("made.gguf"), "{error}");
    let mut cause: &dyn Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    assert!(cause.to_string().contains("No space left"), "{cause}");
    let left = fs::read_dir(dir.path()).expect("is a folder").count();
    assert_eq!(left, 0, "neither a part nor a whole");
}
