//! Checkpoints made here are whole, and the same wherever they are made.

use std::error::Error;
use std::fs;

use offload_core::decode::{Float, decode};
use offload_core::encoding::Encoding;
use offload_wan::{Checkpoint, Recipe, SynthesizeError, SynthesizeSpec, Variant, synthesize};

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

#[test]
fn every_recipe_makes_a_whole_model_of_finite_weights() {
    for &recipe in Recipe::ALL {
        for image in [false, true] {
            let (in_channels, family) = if image {
                (36, "wan2.1-i2v")
            } else {
                (16, "wan2.1-t2v")
            };
            let spec = SynthesizeSpec {
                image,
                in_channels,
                ..small(recipe)
            };
            let (_dir, checkpoint) = made(&spec);
            let variant = checkpoint.detection().variant.expect("is known");
            assert_eq!(variant.name(), family);
            let model = checkpoint.model().expect("is whole");
            for block in model.blocks() {
                for tensor in block.tensors() {
                    let len = usize::try_from(tensor.source().len()).unwrap();
                    let mut encoded = vec![0; len];
                    tensor.source().read(0, &mut encoded).unwrap();
                    let count = usize::try_from(tensor.element_count()).unwrap();
                    let mut arrived = vec![0; 4 * count];
                    decode(tensor.encoding(), &encoded, Float::F32, &mut arrived).unwrap();
                    let finite = arrived
                        .chunks_exact(4)
                        .all(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()).abs() < 16.0);
                    assert!(finite, "{recipe:?} {} {}", block.name(), tensor.name());
                }
            }
        }
    }
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
fn a_variant_keeps_its_counts_when_its_widths_are_divided() {
    for name in [
        "wan2.1-t2v-1.3b",
        "wan2.1-t2v-14b",
        "wan2.1-i2v-14b",
        "wan2.2-i2v-a14b",
        "wan2.2-ti2v-5b",
        "wan2.1-fun-control-14b",
    ] {
        let variant = Variant::from_name(name).unwrap();
        let spec = SynthesizeSpec::of_variant(variant, Recipe::Q8_0, 64, 0).unwrap();
        assert_eq!(spec.dim % 128, 0);
        let (_dir, checkpoint) = made(&spec);
        let detection = checkpoint.detection();
        let named = detection.variant.into_iter();
        let mut named = named.chain(detection.alternatives.iter().copied());
        assert!(named.any(|found| found == variant), "{name}: {detection:?}");
        assert!(checkpoint.model().is_ok());
    }
    let whole = SynthesizeSpec::of_variant(
        Variant::from_name("wan2.1-t2v-14b").unwrap(),
        Recipe::Q4KM,
        1,
        0,
    )
    .unwrap();
    assert_eq!((whole.dim, whole.ffn_dim), (5120, 13824));
    assert!(matches!(
        SynthesizeSpec::of_variant(
            Variant::from_name("wan2.1-vace-14b").unwrap(),
            Recipe::F16,
            1,
            0
        ),
        Err(SynthesizeError::UnsupportedVariant { .. })
    ));
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
    let SynthesizeError::Write { source, .. } = &error else {
        panic!("{error}");
    };
    assert!(
        source.to_string().contains("self_attn.q.weight"),
        "{source}"
    );
    assert!(error.source().is_some());
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
