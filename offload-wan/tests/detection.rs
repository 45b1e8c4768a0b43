//! Which variant a checkpoint is said to be.

mod support;

use offload_wan::{Checkpoint, Finding, LayoutError, Naming, PatchEmbedding, Variant};
use support::{Recorded, Shaped, specs};

fn open(tensors: &[Shaped]) -> Checkpoint {
    Checkpoint::from_tensors(specs(tensors)).expect("names are unique")
}

fn names(variants: &[Variant]) -> Vec<&'static str> {
    variants.iter().map(|variant| variant.name()).collect()
}

/// The variant, then the alternatives.
fn detected(tensors: &[Shaped]) -> Vec<&'static str> {
    let checkpoint = open(tensors);
    let detection = checkpoint.detection();
    let variant = detection.variant.expect("is of the family").name();
    let mut all = vec![variant];
    all.extend(names(&detection.alternatives));
    all
}

const T2V: &[&str] = &["wan2.1-t2v-14b", "wan2.2-t2v-a14b"];
const I2V22: &[&str] = &["wan2.2-i2v-a14b", "wan2.2-fun-inp-a14b"];
const I2V21: &[&str] = &["wan2.1-i2v-14b", "wan2.1-fun-inp-14b"];
const VACE: &[&str] = &["wan2.1-vace-14b", "wan2.2-vace-fun-a14b"];

#[test]
fn recorded_checkpoints_are_recognised() {
    let cases: &[(&str, &[&str])] = &[
        ("native.wan2.1-t2v-1.3b", &["wan2.1-t2v-1.3b"]),
        ("native.wan2.1-t2v-14b", T2V),
        ("native.wan2.2-t2v-a14b", T2V),
        ("native.wan2.1-i2v-14b", I2V21),
        ("native.wan2.1-flf2v-14b", &["wan2.1-flf2v-14b"]),
        ("native.wan2.2-i2v-a14b", I2V22),
        ("native.wan2.2-ti2v-5b", &["wan2.2-ti2v-5b"]),
        ("native.wan2.2-s2v-14b", &["wan2.2-s2v-14b"]),
        ("native.wan2.2-animate-14b", &["wan2.2-animate-14b"]),
        ("native.wan2.1-vace-1.3b", &["wan2.1-vace-1.3b"]),
        ("native.wan2.1-vace-14b", VACE),
        ("native.longcat-video", &["longcat-video"]),
        ("diffusers.wan2.1-t2v-1.3b", &["wan2.1-t2v-1.3b"]),
        ("diffusers.wan2.1-t2v-14b", T2V),
        ("diffusers.wan2.1-i2v-14b", I2V21),
        ("diffusers.wan2.1-flf2v-14b", &["wan2.1-flf2v-14b"]),
        ("diffusers.wan2.2-i2v-a14b", I2V22),
        ("diffusers.wan2.2-ti2v-5b", &["wan2.2-ti2v-5b"]),
        ("diffusers.wan2.2-animate-14b", &["wan2.2-animate-14b"]),
        ("diffusers.wan2.1-vace-1.3b", &["wan2.1-vace-1.3b"]),
        ("diffusers.wan2.1-vace-14b", VACE),
    ];
    for (file, expected) in cases {
        let recorded = Recorded::read(file);
        let tensors = recorded.tensors();
        assert_eq!(tensors.len(), recorded.tensor_count, "{file}");
        let checkpoint = open(&tensors);
        let detection = checkpoint.detection();
        assert_eq!(&detected(&tensors), expected, "{file}");
        assert!(detection.exact_size, "{file}");
        let naming = if file.starts_with("native") {
            Naming::Native
        } else {
            Naming::Diffusers
        };
        assert_eq!(detection.naming, Some(naming), "{file}");
        assert_eq!(detection.patch_embedding, PatchEmbedding::Whole, "{file}");
    }
}

#[test]
fn a_prefix_changes_nothing_but_the_prefix() {
    let tensors = Recorded::read("native.wan2.1-t2v-1.3b").tensors();
    for prefix in [
        "model.diffusion_model.",
        "model.model.",
        "net.",
        "diffusion_model.",
    ] {
        let mut prefixed: Vec<Shaped> = tensors
            .iter()
            .map(|(name, shape)| (format!("{prefix}{name}"), shape.clone()))
            .collect();
        prefixed.push(("first_stage_model.conv1.bias".to_owned(), vec![16]));
        let checkpoint = open(&prefixed);
        assert_eq!(checkpoint.detection().prefix, prefix);
        assert_eq!(detected(&prefixed), ["wan2.1-t2v-1.3b"]);
        assert_eq!(checkpoint.unknown(), ["first_stage_model.conv1.bias"]);
        let model = checkpoint.model().expect("is whole");
        assert_eq!(model.blocks().len(), 5 + 30);
    }
}

#[test]
fn a_merged_patch_embedding_tells_the_channels_too() {
    for (file, merged, expected) in [
        ("native.wan2.2-i2v-a14b", 184_320, I2V22),
        ("native.wan2.2-ti2v-5b", 147_456, &["wan2.2-ti2v-5b"]),
    ] {
        let mut tensors = Recorded::read(file).tensors();
        let weight = tensors
            .iter_mut()
            .find(|(name, _)| name == "patch_embedding.weight")
            .expect("is recorded");
        weight.1 = vec![merged, 1, 2, 2];
        let checkpoint = open(&tensors);
        assert_eq!(
            checkpoint.detection().patch_embedding,
            PatchEmbedding::Merged
        );
        assert_eq!(&detected(&tensors), expected);
        assert!(checkpoint.model().is_ok());
    }
}

#[test]
fn without_a_patch_embedding_every_variant_that_fits_is_named() {
    let mut tensors = Recorded::read("native.wan2.1-t2v-14b").tensors();
    tensors.retain(|(name, _)| name != "patch_embedding.weight");
    let checkpoint = open(&tensors);
    let detection = checkpoint.detection();
    assert_eq!(detection.patch_embedding, PatchEmbedding::Missing);
    assert_eq!(detection.in_channels, None);
    let all = detected(&tensors);
    assert_eq!(all[0], "wan2.1-t2v-14b");
    for other in ["wan2.2-t2v-a14b", "wan2.2-i2v-a14b"] {
        assert!(all.contains(&other), "{other} is not in {all:?}");
    }
    let error = checkpoint.model().expect_err("lacks a tensor").to_string();
    assert!(
        error.contains("patch_embedding.weight is missing"),
        "{error}"
    );
    assert!(error.contains("fix_5d_tensors_wan.safetensors"), "{error}");
}

/// A WAN transformer with the counts of `file` and its widths divided.
fn scaled(file: &str, divide: impl Fn(u64) -> u64) -> Vec<Shaped> {
    let mut tensors = Recorded::read(file).tensors();
    for (_, shape) in &mut tensors {
        for len in shape
            .iter_mut()
            .filter(|len| **len >= 1000 && **len != 4096)
        {
            *len = divide(*len);
        }
    }
    tensors
}

#[test]
fn scaled_widths_are_recognised_by_the_counts() {
    let tensors = scaled("native.wan2.1-t2v-14b", |len| len / 8);
    assert_eq!(detected(&tensors), T2V);
    let checkpoint = open(&tensors);
    assert!(!checkpoint.detection().exact_size);
    assert!(checkpoint.model().is_ok());
    let tensors = scaled("native.wan2.2-ti2v-5b", |len| len / 4);
    assert_eq!(detected(&tensors), ["wan2.2-ti2v-5b"]);
}

#[test]
fn a_block_count_of_no_published_size_gives_the_family() {
    let few = |file: &str| {
        let mut tensors = scaled(file, |len| len / 16);
        tensors.retain(|(name, _)| {
            !name.starts_with("blocks.") || ["0.", "1.", "2."].contains(&&name[7..9])
        });
        tensors
    };
    assert_eq!(
        detected(&few("native.wan2.1-t2v-14b")),
        ["wan2.1-t2v", "wan2.2-t2v"]
    );
    assert_eq!(
        detected(&few("native.wan2.2-i2v-a14b")),
        ["wan2.2-i2v", "wan2.2-fun-inp"]
    );
    assert_eq!(detected(&few("native.wan2.2-ti2v-5b")), ["wan2.2-ti2v"]);
}

#[test]
fn fun_variants_are_told_by_channels_and_modules() {
    let with_channels = |file: &str, channels: u64, extra: &[&str]| -> Vec<Shaped> {
        let mut tensors = Recorded::read(file).tensors();
        for (name, shape) in &mut tensors {
            if name == "patch_embedding.weight" {
                shape[1] = channels;
            }
        }
        for name in extra {
            tensors.push(((*name).to_owned(), vec![5120, 16, 2, 2]));
        }
        tensors
    };
    assert_eq!(
        detected(&with_channels("native.wan2.1-i2v-14b", 48, &[])),
        ["wan2.1-fun-control-14b"]
    );
    assert_eq!(
        detected(&with_channels(
            "native.wan2.2-i2v-a14b",
            52,
            &["ref_conv.weight"]
        )),
        ["wan2.2-fun-control-a14b"]
    );
    assert_eq!(
        detected(&with_channels(
            "native.wan2.2-i2v-a14b",
            36,
            &["control_adapter.conv.weight"]
        )),
        ["wan2.2-fun-camera-a14b"]
    );
    assert_eq!(
        detected(&with_channels(
            "native.wan2.1-i2v-14b",
            32,
            &["control_adapter.conv.weight"]
        )),
        ["wan2.1-fun-camera-14b"]
    );
}

#[test]
fn unknown_channels_give_no_name_but_a_finding_and_a_model() {
    let mut tensors = Recorded::read("native.wan2.1-t2v-1.3b").tensors();
    tensors[0].1[1] = 17;
    let checkpoint = open(&tensors);
    let detection = checkpoint.detection();
    assert_eq!(detection.variant, None);
    assert_eq!(detection.in_channels, Some(17));
    assert_eq!(
        checkpoint.findings(),
        [Finding::Unfamiliar {
            tensor: "patch_embedding.weight".to_owned(),
            in_channels: 17,
            known: vec![16, 36, 48, 52],
        }]
    );
    assert!(checkpoint.model().is_ok());
}

#[test]
fn another_model_is_no_wan_model() {
    let checkpoint = open(&[
        ("blk.0.attn_q.weight".to_owned(), vec![64, 64]),
        ("output.weight".to_owned(), vec![64, 64]),
    ]);
    assert_eq!(checkpoint.detection().variant, None);
    assert_eq!(checkpoint.detection().naming, None);
    assert!(checkpoint.unknown().is_empty());
    assert_eq!(
        checkpoint.model().expect_err("is another model"),
        LayoutError::NotWan { tensor_count: 2 }
    );
    assert_eq!(open(&[]).detection().variant, None);
    let flux = open(&[
        ("double_blocks.1.img_attn.qkv.weight".to_owned(), vec![8]),
        ("double_blocks.0.img_attn.qkv.weight".to_owned(), vec![8]),
        ("single_blocks.0.linear1.weight".to_owned(), vec![8]),
        ("x.single_blocks.0.linear1.weight".to_owned(), vec![8]),
    ]);
    let blocks: Vec<String> = flux.blocks().into_iter().map(|block| block.name).collect();
    assert_eq!(
        blocks,
        ["double_blocks.0", "double_blocks.1", "single_blocks.0"]
    );
    // Image models that share names with LongCat-Video.
    for names in [
        &[
            "x_embedder.proj.weight",
            "final_layer.linear.weight",
            "joint_blocks.0.x_block.attn.qkv.weight",
        ][..],
        &[
            "double_blocks.0.img_attn.qkv.weight",
            "final_layer.adaLN_modulation.1.weight",
        ],
        &[
            "blocks.0.attn.qkv.weight",
            "blocks.0.adaLN_modulation.1.weight",
            "blocks.0.mlp.fc1.weight",
        ],
    ] {
        let tensors: Vec<Shaped> = names
            .iter()
            .map(|name| ((*name).to_owned(), vec![64, 64]))
            .collect();
        assert_eq!(open(&tensors).detection().naming, None, "{names:?}");
    }
}

#[test]
fn what_engines_need_is_told_as_far_as_names_and_shapes_tell() {
    for (file, heads, text_dim, vae_stride) in [
        ("native.wan2.1-t2v-1.3b", 12, 4096, [4, 8, 8]),
        ("diffusers.wan2.1-t2v-14b", 40, 4096, [4, 8, 8]),
        ("native.wan2.2-ti2v-5b", 24, 4096, [4, 16, 16]),
        ("diffusers.wan2.2-ti2v-5b", 24, 4096, [4, 16, 16]),
        ("native.longcat-video", 32, 4096, [4, 8, 8]),
    ] {
        let checkpoint = open(&Recorded::read(file).tensors());
        let detection = checkpoint.detection();
        assert_eq!(detection.heads, Some(heads), "{file}");
        assert_eq!(detection.text_dim, Some(text_dim), "{file}");
        assert_eq!(detection.vae_stride, Some(vae_stride), "{file}");
    }
    // Widths that are no multiple of a head's tell nothing.
    let mut tensors = scaled("native.wan2.1-t2v-1.3b", |len| len / 16);
    let odd = open(&tensors);
    assert_eq!((odd.detection().dim, odd.detection().heads), (96, None));
    tensors.retain(|(name, _)| !name.starts_with("text_embedding.0"));
    assert_eq!(open(&tensors).detection().text_dim, None);
    let other = open(&[("output.weight".to_owned(), vec![64, 64])]);
    assert_eq!(other.detection().vae_stride, None);
    // A configuration does, as far as it fits.
    let dir = tempfile::tempdir().expect("can be made");
    let path = dir.path().join("model.safetensors");
    let tensors = scaled("native.wan2.1-t2v-1.3b", |len| len / 16);
    let heads = |said: u64| {
        let config = format!(r#"{{"config":"{{\"num_attention_heads\": {said}}}"}}"#);
        support::write_with_metadata(&path, "BF16", &tensors, &config);
        let checkpoint = Checkpoint::open(&path).expect("is sound");
        let detection = checkpoint.detection();
        let mut decisions = detection.decided_by.iter();
        let by = decisions.find(|decision| decision.what == "heads");
        (detection.heads, by.expect("is told").by.clone())
    };
    let by = "config in the file's metadata".to_owned();
    assert_eq!(heads(3), (Some(3), by));
    for wrong in [0, 5, 97] {
        let (heads, by) = heads(wrong);
        assert_eq!(heads, None);
        assert!(by.ends_with("do not fit"), "{by}");
    }
}
