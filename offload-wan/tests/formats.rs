//! What files have beside plain tensors: scales, folders, names that tell, encoders.

mod support;

use std::fs;

use offload_core::cpu::CpuDevice;
use offload_core::encoding::Encoding;
use offload_core::executor::{DeviceBudget, Offload};
use offload_core::format::gguf::Writer;
use offload_core::model::{PassKind, Residency};
use offload_core::source::Source;
use offload_core::swappable::{Swappable, TensorSpec};
use offload_wan::{
    Checkpoint, Expert, Family, Finding, LayoutError, Naming, Recipe, Scaling, SynthesizeSpec,
    Variant, synthesize,
};
use support::{Recorded, Shaped, described};
use tempfile::TempDir;

fn open(tensors: &[Shaped]) -> Checkpoint {
    Checkpoint::from_tensors(described(tensors)).expect("names are unique")
}

#[test]
fn scales_are_found_attached_and_no_unknown_tensors() {
    let dir = TempDir::new().expect("can be made");
    for (family, recipe, scaling, per_block) in [
        (Family::T2v21, Recipe::F8, Scaling::PlainFp8, 0),
        (Family::I2v21, Recipe::F8Scaled, Scaling::ScaledFp8, 12),
        (Family::T2v21, Recipe::F8Mixed, Scaling::Mixed, 20),
        // Of seven weights: q, k and v are one, and so are k and v.
        (Family::LongCat, Recipe::Int8, Scaling::Int8, 8),
    ] {
        let spec = SynthesizeSpec {
            family,
            recipe,
            block_count: 2,
            dim: 128,
            ffn_dim: 256,
            ..SynthesizeSpec::default()
        };
        let path = dir.path().join("made.safetensors");
        synthesize(&spec, &path).expect("can be written");
        let checkpoint = Checkpoint::open(&path).expect("is sound");
        assert_eq!(checkpoint.detection().scaling, Some(scaling));
        assert_eq!(checkpoint.findings(), [], "{recipe:?}");
        assert_eq!(checkpoint.attached().len(), 2 * per_block, "{recipe:?}");
        for (tensor, weight) in checkpoint.attached() {
            let owner = weight.rsplit_once('.').expect("is in a module").0;
            assert!(tensor.starts_with(owner), "{tensor} of {weight}");
        }
        // Each weight that has a scale carries it.
        let model = checkpoint.model().expect("is whole");
        let tensors = || model.blocks().iter().flat_map(|block| block.tensors());
        let named = tensors()
            .filter(|tensor| tensor.name().ends_with("weight_scale"))
            .count();
        let scaled = tensors().filter(|tensor| tensor.scale().is_some()).count();
        assert_eq!(scaled, named, "{recipe:?}");
        assert_eq!(scaled > 0, recipe != Recipe::F8);
        for (_, weight) in checkpoint.attached() {
            let tensor = checkpoint
                .tensor(&weight)
                .expect("can be read")
                .expect("is there");
            assert!(tensor.scale().is_some(), "{weight}");
        }
        if recipe == Recipe::Int8 {
            // A factor for each of the rows that were stacked with others.
            let mut keys = tensors().filter(|tensor| tensor.name() == "cross_attn.k.weight");
            let scale = keys.next().and_then(|tensor| tensor.scale());
            assert_eq!(scale.and_then(|scale| scale.numbers()), Some(128 * 128));
        }
    }
}

/// A checkpoint of `recipe` at small square widths, without its bytes.
fn scaled(family: Family, recipe: Recipe, naming: Naming) -> Vec<TensorSpec> {
    let spec = SynthesizeSpec {
        family,
        naming,
        recipe,
        block_count: 4,
        dim: 256,
        ffn_dim: 512,
        ..SynthesizeSpec::default()
    };
    spec.describe().expect("widths fit")
}

/// Findings that a model is refused for, with what it says.
#[track_caller]
fn refused(tensors: Vec<TensorSpec>) -> Vec<Finding> {
    let checkpoint = Checkpoint::from_tensors(tensors).expect("names are unique");
    let findings = checkpoint.findings();
    match checkpoint.model() {
        Err(LayoutError::Incomplete { findings: told }) => assert_eq!(told.0, findings),
        other => panic!("{other:?} with {findings:?}"),
    }
    findings
}

#[test]
fn a_scale_that_is_missing_is_a_finding() {
    for (family, recipe, naming, scale) in [
        (
            Family::T2v21,
            Recipe::F8Scaled,
            Naming::Native,
            "blocks.3.self_attn.k.scale_weight",
        ),
        (
            Family::T2v21,
            Recipe::F8Scaled,
            Naming::Diffusers,
            "blocks.3.attn1.to_k.scale_weight",
        ),
        (
            Family::Vace21,
            Recipe::F8Mixed,
            Naming::Native,
            "vace_blocks.0.before_proj.weight_scale",
        ),
        (
            Family::LongCat,
            Recipe::Int8,
            Naming::Native,
            "blocks.3.attn.qkv.weight_scale",
        ),
        (
            Family::LongCat,
            Recipe::Int8,
            Naming::Repacked,
            "blocks.3.self_attn.v.weight_scale",
        ),
    ] {
        let mut tensors = scaled(family, recipe, naming);
        let leaf = scale.rsplit('.').next().expect("has one");
        let all: Vec<String> = tensors
            .iter()
            .map(|tensor| tensor.name().to_owned())
            .filter(|name| name.ends_with(leaf))
            .collect();
        tensors.retain(|tensor| tensor.name() != scale);
        let missing = |name: &str| Finding::Missing {
            tensor: name.to_owned(),
        };
        assert_eq!(refused(tensors.clone()), [missing(scale)], "{recipe:?}");
        // Without all of them something else says that there should be some: a flag, or what the weights are called.
        if recipe == Recipe::F8Mixed {
            continue;
        }
        tensors.retain(|tensor| !tensor.name().ends_with(leaf));
        let findings = refused(tensors);
        assert_eq!(findings.len(), all.len(), "{recipe:?}");
        for name in &all {
            assert!(findings.contains(&missing(name)), "{name} of {recipe:?}");
        }
    }
    // Where nothing says so, fp8 is what it is.
    let plain = scaled(Family::T2v21, Recipe::F8, Naming::Native);
    let checkpoint = Checkpoint::from_tensors(plain).expect("names are unique");
    assert_eq!(checkpoint.findings(), []);
}

#[test]
fn a_scale_is_one_number_or_one_for_each_row() {
    let misshapen = |family, recipe, wrong: &[(&str, &[u64])]| -> Vec<Finding> {
        let tensors = scaled(family, recipe, Naming::Native).into_iter();
        let tensors = tensors.map(|tensor| {
            let Some((_, shape)) = wrong.iter().find(|(name, _)| *name == tensor.name()) else {
                return tensor;
            };
            let bytes = Encoding::F32.bytes_of(shape).expect("is small");
            let source = Source::Described { range: 0..bytes };
            TensorSpec::new(tensor.name(), shape.to_vec(), Encoding::F32, source)
                .expect("lengths fit")
        });
        let tensors: Vec<TensorSpec> = tensors.collect();
        let checkpoint = Checkpoint::from_tensors(tensors.clone()).expect("names are unique");
        match checkpoint.findings() {
            findings if findings.is_empty() => {
                checkpoint.model().expect("is whole");
                findings
            }
            _ => refused(tensors),
        }
    };
    let square = "blocks.1.self_attn.q.scale_weight";
    let stacked = "blocks.2.attn.qkv.weight_scale";
    for (family, recipe, scale, sound, wrong) in [
        (
            Family::T2v21,
            Recipe::F8Scaled,
            square,
            &[&[][..], &[1], &[256], &[256, 1]][..],
            &[
                &[1, 256][..],
                &[3],
                &[256, 8],
                &[1, 1],
                &[128, 2],
                &[256, 1, 1],
                &[0],
            ][..],
        ),
        (
            Family::LongCat,
            Recipe::Int8,
            stacked,
            &[&[], &[1], &[768], &[768, 1]],
            &[&[256], &[3], &[1, 768], &[256, 1], &[3, 1], &[3, 256]],
        ),
    ] {
        for shape in sound {
            assert_eq!(
                misshapen(family, recipe, &[(scale, shape)]),
                [],
                "{shape:?}"
            );
        }
        for shape in wrong {
            let findings = misshapen(family, recipe, &[(scale, shape)]);
            let [
                Finding::Misshapen {
                    tensor,
                    shape: found,
                    ..
                },
            ] = &findings[..]
            else {
                panic!("{shape:?}: {findings:?}");
            };
            assert_eq!((tensor.as_str(), &found[..]), (scale, *shape));
        }
    }
    // All at once.
    let other = "blocks.3.ffn.2.scale_weight";
    let both = [(square, &[1, 256][..]), (other, &[512][..])];
    let findings = misshapen(Family::T2v21, Recipe::F8Scaled, &both);
    let names: Vec<&str> = findings.iter().map(Finding::name).collect();
    assert_eq!(names, [square, other]);
    let text = findings[1].to_string();
    assert!(
        text.ends_with(
            "expected [], [1], [256] or [256, 1], as blocks.3.ffn.2.weight has 256 rows"
        ),
        "{text}"
    );
}

/// A described tensor with no tensors before it: where its bytes are does not matter.
fn alone(name: &str, encoding: Encoding, shape: &[u64]) -> TensorSpec {
    let bytes = encoding.bytes_of(shape).expect("is small");
    let source = Source::Described { range: 0..bytes };
    TensorSpec::new(name, shape.to_vec(), encoding, source).expect("lengths fit")
}

#[test]
fn a_scale_is_of_floats() {
    let scale = "blocks.1.self_attn.q.scale_weight";
    let stored_as = |encoding| {
        let tensors = scaled(Family::T2v21, Recipe::F8Scaled, Naming::Native).into_iter();
        let tensors = tensors.map(|tensor| match tensor.name() == scale {
            true => alone(scale, encoding, &[]),
            false => tensor,
        });
        let tensors: Vec<TensorSpec> = tensors.collect();
        let checkpoint = Checkpoint::from_tensors(tensors.clone()).expect("names are unique");
        (checkpoint.findings(), tensors)
    };
    assert_eq!(stored_as(Encoding::BF16).0, []);
    let (findings, tensors) = stored_as(Encoding::I32);
    let expected = Finding::Misencoded {
        tensor: scale.to_owned(),
        encoding: Encoding::I32,
        expected: "floats".to_owned(),
    };
    assert_eq!(findings, [expected]);
    assert_eq!(refused(tensors), findings);
}

#[test]
fn what_is_stored_in_two_ways_is_a_finding() {
    let scale = ("scale_weight", "weight_scale");
    let weight = ("weight_int8", "weight");
    for (family, recipe, owner, (own, other)) in [
        (Family::T2v21, Recipe::F8Scaled, "blocks.1.ffn.0", scale),
        (Family::LongCat, Recipe::Int8, "blocks.1.attn.qkv", weight),
    ] {
        let mut tensors = scaled(family, recipe, Naming::Native);
        let first = format!("{owner}.{own}");
        let found = tensors.iter().find(|tensor| tensor.name() == first);
        let shape = found.expect("is there").shape().to_vec();
        let tensor = format!("{owner}.{other}");
        tensors.push(alone(&tensor, Encoding::F32, &shape));
        // Once, also of a tensor that is three in the model.
        assert_eq!(refused(tensors), [Finding::Repeated { tensor, first }]);
    }
}

#[test]
fn a_scale_that_does_not_fit_is_refused_for_a_tensor_alone_too() {
    let dir = TempDir::new().expect("can be made");
    let path = dir.path().join("model.safetensors");
    let open = |shape: &[u64]| {
        let tensors = [
            ("text.ffn.weight".to_owned(), vec![64, 64]),
            ("text.ffn.scale_weight".to_owned(), shape.to_vec()),
        ];
        // All of it fp8: only the encoding matters.
        support::write_safetensors(&path, "F8_E4M3", &tensors);
        let checkpoint = Checkpoint::open(&path).expect("is sound");
        checkpoint.tensor("text.ffn.weight")
    };
    for shape in [&[][..], &[1], &[64], &[64, 1]] {
        let tensor = open(shape).expect("fits").expect("is there");
        assert!(tensor.scale().is_some(), "{shape:?}");
    }
    // MXFP8 has one for 32 numbers of a row.
    for shape in [&[3][..], &[1, 64], &[64, 2]] {
        let error = open(shape).expect_err("does not fit").to_string();
        let told = format!("text.ffn.scale_weight has shape {shape:?}");
        assert!(error.contains(&told), "{error}");
    }
}

#[test]
fn scales_of_blocks_of_a_tensor_are_refused_by_name() {
    let tensors = Recorded::read("native.wan2.1-t2v-1.3b").tensors();
    let name = "blocks.7.ffn.2.weight";
    let made = |weight: (Encoding, &[u64]), beside: &[(&str, Encoding, &[u64])]| {
        let mut all = described(&tensors);
        let mut end = 1 << 40;
        let mut described = |name: &str, encoding: Encoding, shape: &[u64]| {
            let range = end..end + encoding.bytes_of(shape).expect("is small");
            end = range.end;
            let source = Source::Described { range };
            TensorSpec::new(name, shape.to_vec(), encoding, source).expect("lengths fit")
        };
        let at = all.iter().position(|tensor| tensor.name() == name);
        all[at.expect("is recorded")] = described(name, weight.0, weight.1);
        all.extend(beside.iter().map(|(leaf, encoding, shape)| {
            described(&format!("blocks.7.ffn.2.{leaf}"), *encoding, shape)
        }));
        let checkpoint = Checkpoint::from_tensors(all).expect("names are unique");
        let detection = checkpoint.detection();
        assert_eq!(detection.variant, Variant::from_name("wan2.1-t2v-1.3b"));
        (checkpoint.findings(), checkpoint.model().map(drop))
    };
    // nvfp4: two numbers to a byte, a scale for 16 of them and one for all.
    let (findings, model) = made(
        (Encoding::U8, &[1536, 4480]),
        &[
            ("weight_scale", Encoding::F8E4M3, &[1536, 560]),
            ("weight_scale_2", Encoding::F32, &[]),
        ],
    );
    let packed = Finding::Packed {
        tensor: name.to_owned(),
        shape: vec![1536, 4480],
    };
    assert_eq!(findings, [packed]);
    let error = model.expect_err("is not read").to_string();
    assert!(error.contains(name) && error.contains("nvfp4"), "{error}");
}

#[test]
fn every_style_of_scale_has_one_name_in_the_block() {
    let mut tensors = Recorded::read("native.wan2.1-t2v-1.3b").tensors();
    for (name, shape) in [
        ("blocks.0.ffn.0.scale_weight", vec![1]),
        ("blocks.0.ffn.0.scale_input", vec![1]),
        ("blocks.1.ffn.0.weight_scale", vec![]),
        ("blocks.1.ffn.0.weight_scale_2", vec![]),
        ("blocks.1.ffn.0.input_scale", vec![]),
        ("blocks.1.ffn.0.comfy_quant", vec![20]),
        ("text_embedding.0.scale_weight", vec![1]),
        ("scaled_fp8", vec![0]),
    ] {
        tensors.push((name.to_owned(), shape));
    }
    let checkpoint = open(&tensors);
    assert_eq!(checkpoint.findings(), []);
    assert_eq!(checkpoint.attached().len(), 7);
    // A scale of no weight is one nobody knows.
    tensors.push(("blocks.2.ffn.7.scale_weight".to_owned(), vec![1]));
    assert_eq!(open(&tensors).unknown(), ["blocks.2.ffn.7.scale_weight"]);
}

#[test]
fn names_of_files_tell_what_tensors_do_not() {
    let dir = TempDir::new().expect("can be made");
    let open = |family, path: &str| {
        let spec = SynthesizeSpec {
            family,
            block_count: 40,
            dim: 128,
            ffn_dim: 128,
            recipe: Recipe::Q8_0,
            ..SynthesizeSpec::default()
        };
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().expect("is in a folder")).expect("can be made");
        synthesize(&spec, &path).expect("can be written");
        Checkpoint::open(path).expect("is sound")
    };
    for (path, variant, alternative, expert) in [
        ("model.gguf", "wan2.1-t2v-14b", "wan2.2-t2v-a14b", None),
        (
            "wan2.2_t2v_high_noise_14B.gguf",
            "wan2.2-t2v-a14b",
            "wan2.1-t2v-14b",
            Some(Expert::High),
        ),
        (
            "low_noise_model/model.gguf",
            "wan2.2-t2v-a14b",
            "wan2.1-t2v-14b",
            Some(Expert::Low),
        ),
    ] {
        let checkpoint = open(Family::T2v21, path);
        let detection = checkpoint.detection();
        assert_eq!(detection.variant, Variant::from_name(variant), "{path}");
        assert_eq!(detection.alternatives[0].name(), alternative, "{path}");
        assert_eq!(detection.expert, expert, "{path}");
        let decision = detection
            .decided_by
            .iter()
            .find(|one| one.what == "variant");
        let by = &decision.expect("was decided").by;
        assert_eq!(by.contains("file's name"), expert.is_some(), "{by}");
    }
    let i2v = open(Family::I2v21, "wan2.1_i2v_480p_14B.gguf");
    assert_eq!(i2v.detection().resolution, Some("480p"));
    // A name cannot make of a checkpoint what its tensors are not.
    let vace = open(Family::Ti2v22, "wan2.1-t2v-14b.gguf");
    assert_eq!(
        vace.detection().variant.expect("is known").name(),
        "wan2.2-ti2v"
    );
}

#[test]
fn metadata_of_a_file_tell_what_tensors_do_not() {
    let dir = TempDir::new().expect("can be made");
    let path = dir.path().join("model.safetensors");
    let tensors = Recorded::read("native.wan2.1-vace-14b").tensors();
    let open = |config: &str| {
        let config = serde_json::to_string(config).expect("is text");
        let metadata = format!(r#"{{"config":{config}}}"#);
        support::write_with_metadata(&path, "BF16", &tensors, &metadata);
        Checkpoint::open(&path).expect("is sound")
    };
    let decision = |checkpoint: &Checkpoint, what: &str| {
        let mut decisions = checkpoint.detection().decided_by.iter();
        let found = decisions.find(|decision| decision.what == what);
        found.map(|decision| format!("{} by {}", decision.value, decision.by))
    };
    let spread = [0, 5, 10, 15, 20, 25, 30, 35];
    let told = [0, 1, 2, 3, 4, 5, 6, 7];
    // Of the model itself, or of its transformer among others.
    for config in [
        r#"{"vace_layers": [0, 1, 2, 3, 4, 5, 6, 7]}"#,
        r#"{"transformer": {"vace_layers": [0, 1, 2, 3, 4, 5, 6, 7]}, "vae": {}}"#,
    ] {
        let checkpoint = open(config);
        assert_eq!(checkpoint.detection().vace_layers, told);
        let by = decision(&checkpoint, "vace_layers").expect("was decided");
        assert!(by.ends_with("by config in the file's metadata"), "{by}");
    }
    // Fewer blocks than it says there are.
    let findings = open(r#"{"num_layers": 41}"#).findings();
    assert_eq!(findings[0].name(), "blocks.40");
    // What does not fit is told, and so is what cannot be read; neither decides.
    let checkpoint = open(r#"{"vace_layers": [0, 40]}"#);
    assert_eq!(checkpoint.detection().vace_layers, spread);
    let by = decision(&checkpoint, "vace_layers").expect("was decided");
    assert!(
        by.contains("[0, 40] of config in the file's metadata does not fit"),
        "{by}"
    );
    let checkpoint = open("wan.yaml");
    assert_eq!(checkpoint.detection().vace_layers, spread);
    let ignored = decision(&checkpoint, "config").expect("is told");
    assert!(
        ignored.starts_with("not used by config in the file's metadata"),
        "{ignored}"
    );
    assert_eq!(decision(&open("{}"), "config"), None);
}

#[test]
fn a_configuration_says_whether_blocks_are_missing_at_the_end() {
    let dir = TempDir::new().expect("can be made");
    let path = dir.path().join("model.safetensors");
    let mut tensors = Recorded::read("native.wan2.1-t2v-1.3b").tensors();
    for index in 20..30 {
        tensors.retain(|(name, _)| !name.starts_with(&format!("blocks.{index}.")));
    }
    let found = |metadata: &str| {
        support::write_with_metadata(&path, "BF16", &tensors, metadata);
        let checkpoint = Checkpoint::open(&path).expect("is sound");
        let variant = checkpoint.detection().variant.expect("is known").name();
        let findings = checkpoint.findings().into_iter();
        let missing = findings.map(|finding| match finding {
            Finding::MissingBlock {
                block, expected, ..
            } => (block, expected),
            other => panic!("{other}"),
        });
        (variant, missing.collect::<Vec<_>>())
    };
    let said = |count: u64| format!(r#"{{"config":"{{\"num_layers\": {count}}}"}}"#);
    let missing = |expected| vec![("blocks.20".to_owned(), expected)];
    // Nothing says so: two thirds of a published model.
    assert_eq!(found("{}"), ("wan2.1-t2v-1.3b", missing(30)));
    assert_eq!(found(&said(30)), ("wan2.1-t2v-1.3b", missing(30)));
    // It is whole, or of another size.
    assert_eq!(found(&said(20)), ("wan2.1-t2v", vec![]));
    assert_eq!(found(&said(24)), ("wan2.1-t2v", missing(24)));
    // Absurd numbers cost nothing.
    assert_eq!(found(&said(u64::MAX)), ("wan2.1-t2v", missing(u64::MAX)));
}

#[test]
fn another_architecture_in_a_gguf_file_is_told_and_decides_nothing() {
    let dir = TempDir::new().expect("can be made");
    let path = dir.path().join("model.gguf");
    let mut tensors = Recorded::read("native.wan2.1-t2v-1.3b").tensors();
    tensors.retain(|(name, _)| !name.starts_with("blocks.") || name.starts_with("blocks.0."));
    // Converters name it, or leave it out, or say something else.
    for (said, other) in [
        (Some("wan"), None),
        (None, None),
        (Some("pig"), Some("not pig")),
    ] {
        let mut writer = Writer::new();
        if let Some(said) = said {
            writer.metadata("general.architecture", said);
        }
        for (name, _) in &tensors {
            writer.tensor(name, vec![32], Encoding::F32, vec![0; 128]);
        }
        let file = fs::File::create(&path).expect("can be made");
        writer.write_to(file).expect("can be written");
        let checkpoint = Checkpoint::open(&path).expect("is sound");
        let detection = checkpoint.detection();
        assert_eq!(detection.naming, Some(Naming::Native));
        let mut decisions = detection.decided_by.iter();
        let told = decisions.find(|decision| decision.what == "architecture");
        let told = told.map(|decision| decision.value.as_str());
        assert_eq!(told, other, "{said:?}");
    }
}

#[test]
fn folders_hold_one_model() {
    let dir = TempDir::new().expect("can be made");
    let folder = dir.path().join("transformer");
    fs::create_dir(&folder).expect("can be made");
    let error = Checkpoint::open(&folder).expect_err("is empty").to_string();
    assert!(error.contains("holds 0 of the files"), "{error}");
    let spec = SynthesizeSpec {
        naming: Naming::Diffusers,
        recipe: Recipe::BF16,
        block_count: 2,
        dim: 128,
        ffn_dim: 128,
        ..SynthesizeSpec::default()
    };
    synthesize(&spec, &folder).expect("can be written");
    let checkpoint = Checkpoint::open(&folder).expect("is sound");
    assert_eq!(checkpoint.findings(), []);
    assert!(checkpoint.model().is_ok());
    let index = folder.join("diffusion_pytorch_model.safetensors.index.json");
    let of_index = Checkpoint::open(&index).expect("is sound");
    assert_eq!(of_index.detection(), checkpoint.detection());
    fs::copy(&index, folder.join("other.safetensors.index.json")).expect("can be copied");
    let error = Checkpoint::open(&folder).expect_err("has two").to_string();
    assert!(error.contains("holds 2 of the files"), "{error}");
}

/// Layers of an encoder whose names begin so, and what is outside them.
fn encoder(layers: &str, inner: &[&str], outside: &[&str]) -> Vec<Shaped> {
    let mut all: Vec<Shaped> = Vec::new();
    for index in 0..3 {
        for name in inner {
            all.push((format!("{layers}{index}.{name}"), vec![64, 64]));
        }
    }
    all.extend(
        outside
            .iter()
            .map(|name| ((*name).to_owned(), vec![64, 64])),
    );
    all
}

#[test]
fn layers_of_encoders_are_blocks() {
    for (name, tensors) in [
        (
            "umt5",
            encoder(
                "encoder.block.",
                &[
                    "layer.0.SelfAttention.q.weight",
                    "layer.1.DenseReluDense.wo.weight",
                ],
                &["shared.weight", "encoder.final_layer_norm.weight"],
            ),
        ),
        (
            "umt5",
            encoder(
                "blocks.",
                &["attn.q.weight", "ffn.gate.0.weight", "norm1.weight"],
                &["token_embedding.weight", "norm.weight"],
            ),
        ),
        (
            "umt5",
            encoder(
                "enc.blk.",
                &["attn_q.weight", "ffn_gate.weight"],
                &["token_embd.weight", "enc.output_norm.weight"],
            ),
        ),
        (
            "clip",
            encoder(
                "vision_model.encoder.layers.",
                &["self_attn.q_proj.weight", "mlp.fc1.weight"],
                &[
                    "vision_model.embeddings.patch_embedding.weight",
                    "visual_projection.weight",
                ],
            ),
        ),
        (
            "clip",
            encoder(
                "visual.transformer.",
                &["attn.to_qkv.weight", "mlp.0.weight"],
                &["visual.patch_embedding.weight", "visual.head"],
            ),
        ),
    ] {
        let checkpoint = open(&tensors);
        let detection = checkpoint.detection();
        assert_eq!((detection.encoder, detection.variant), (Some(name), None));
        assert_eq!(checkpoint.blocks().len(), 3);
        let model = checkpoint.model().expect("is whole");
        let names: Vec<&str> = model.blocks().iter().map(|block| block.name()).collect();
        assert_eq!(
            names,
            ["embedding", "layers.0", "layers.1", "layers.2", "head"]
        );
        assert_eq!(model.residency(1), Residency::Planned);
        assert_eq!(model.residency(0), Residency::Always);
        let mut lacking = tensors.clone();
        let (missing, _) = lacking.remove(3);
        let Err(LayoutError::Incomplete { findings }) = open(&lacking).model() else {
            panic!("{missing} is not missed");
        };
        assert_eq!(findings.0[0].name(), missing);
        // Each of the layers' tensors in another shape, all told at once.
        let mut wrong = tensors.clone();
        let (first, of_layers) = (wrong[0].0.clone(), wrong.len() - 2);
        let per_layer = of_layers / 3;
        for (_, shape) in &mut wrong[per_layer..of_layers] {
            *shape = vec![64, 65];
        }
        let Err(LayoutError::Incomplete { findings }) = open(&wrong).model() else {
            panic!("{name} of two shapes");
        };
        assert_eq!(findings.0.len(), 2 * per_layer);
        let expected = Finding::Misshapen {
            tensor: wrong[per_layer].0.clone(),
            shape: vec![64, 65],
            expected: format!("[64, 64], as {first} has it"),
        };
        assert_eq!(findings.0[0], expected);
    }
}

#[test]
fn only_the_first_layer_of_t5_has_relative_positions() {
    let kinds = [
        (
            encoder(
                "encoder.block.",
                &["layer.0.SelfAttention.q.weight"],
                &["shared.weight"],
            ),
            "encoder.block.",
            "layer.0.SelfAttention.relative_attention_bias.weight",
        ),
        (
            encoder(
                "blocks.",
                &["ffn.gate.0.weight"],
                &["token_embedding.weight"],
            ),
            "blocks.",
            "pos_embedding.embedding.weight",
        ),
        (
            encoder("enc.blk.", &["attn_q.weight"], &["token_embd.weight"]),
            "enc.blk.",
            "attn_rel_b.weight",
        ),
    ];
    for (tensors, layers, positions) in kinds {
        let with_positions = |of: &[u64]| {
            let mut tensors = tensors.clone();
            tensors.extend(
                of.iter()
                    .map(|index| (format!("{layers}{index}.{positions}"), vec![32, 64])),
            );
            open(&tensors)
        };
        for (name, of) in [("t5", &[0][..]), ("umt5", &[0, 1, 2]), ("umt5", &[])] {
            let checkpoint = with_positions(of);
            assert_eq!(checkpoint.detection().encoder, Some(name), "{of:?}");
            assert_eq!(checkpoint.findings(), []);
            let model = checkpoint.model().expect("is whole");
            let has_positions = |block: &dyn Swappable| {
                let mut tensors = block.tensors().iter();
                tensors.any(|tensor| tensor.name() == positions)
            };
            let blocks = model.blocks().iter().zip(0..);
            let found: Vec<u64> = blocks
                .filter(|(block, _)| has_positions(block.as_ref()))
                .map(|(_, index)| index - 1)
                .collect();
            assert_eq!(found, of, "{layers}");
        }
        // Of umT5 each has its own.
        let missing = Finding::Missing {
            tensor: format!("{layers}1.{positions}"),
        };
        assert_eq!(with_positions(&[0, 2]).findings(), [missing]);
        // What is there under two names.
        let (weight, encoding) = (tensors[0].0.clone(), Encoding::F8E4M3);
        let owner = weight.strip_suffix("weight").expect("is one");
        let mut specs: Vec<TensorSpec> = (tensors.iter())
            .map(|(name, shape)| alone(name, encoding, shape))
            .collect();
        for layer in 0..3 {
            let owner = owner.replacen('0', &layer.to_string(), 1);
            specs.push(alone(&format!("{owner}scale_weight"), Encoding::F32, &[]));
        }
        for root in &tensors[3..] {
            let owner = root.0.strip_suffix("weight").expect("is one");
            specs.push(alone(&format!("{owner}scale_weight"), Encoding::F32, &[]));
        }
        let again = format!("{owner}weight_scale");
        specs.push(alone(&again, Encoding::F32, &[]));
        let checkpoint = Checkpoint::from_tensors(specs).expect("names are unique");
        let repeated = Finding::Repeated {
            tensor: again,
            first: format!("{owner}scale_weight"),
        };
        assert!(
            checkpoint.findings().contains(&repeated),
            "{:?}",
            checkpoint.findings()
        );
    }
}

#[test]
fn scales_of_encoders_fit_their_weights_and_texts_are_of_any_length() {
    let made = |scale: &[u64], text: u64| {
        let mut tensors = Vec::new();
        let mut end = 0;
        let mut add = |name: String, encoding: Encoding, shape: &[u64]| {
            let range = end..end + encoding.bytes_of(shape).expect("is small");
            end = range.end;
            let source = Source::Described { range };
            let spec = TensorSpec::new(name, shape.to_vec(), encoding, source);
            tensors.push(spec.expect("lengths fit"));
        };
        for index in 0..3 {
            let owner = format!("encoder.block.{index}.layer.0.SelfAttention.q");
            let (scale, text) = if index == 2 {
                (scale, text)
            } else {
                (&[][..], 20)
            };
            add(format!("{owner}.weight"), Encoding::F8E4M3, &[64, 64]);
            add(format!("{owner}.scale_weight"), Encoding::F32, scale);
            add(format!("{owner}.comfy_quant"), Encoding::U8, &[text]);
        }
        let checkpoint = Checkpoint::from_tensors(tensors).expect("names are unique");
        checkpoint.model()
    };
    for scale in [&[][..], &[1], &[64], &[64, 1]] {
        made(scale, 31).unwrap_or_else(|error| panic!("{scale:?}: {error}"));
    }
    for scale in [&[1, 64][..], &[3], &[64, 2]] {
        let Err(LayoutError::Incomplete { findings }) = made(scale, 20) else {
            panic!("{scale:?} fits");
        };
        let [Finding::Misshapen { tensor, shape, .. }] = &findings.0[..] else {
            panic!("{findings}");
        };
        assert_eq!(
            tensor,
            "encoder.block.2.layer.0.SelfAttention.q.scale_weight"
        );
        assert_eq!(shape, scale);
    }
}

#[test]
fn the_configuration_of_a_folder_is_read_beside_a_single_file_too() {
    let dir = TempDir::new().expect("can be made");
    let folder = dir.path().join("transformer");
    fs::create_dir(&folder).expect("can be made");
    let path = folder.join("diffusion_pytorch_model.safetensors");
    let tensors = Recorded::read("diffusers.wan2.1-vace-14b").tensors();
    let told = serde_json::to_string(r#"{"vace_layers": [0, 1, 2, 3, 4, 5, 6, 8]}"#);
    let metadata = format!(r#"{{"config":{}}}"#, told.expect("is text"));
    support::write_with_metadata(&path, "BF16", &tensors, &metadata);
    let layers = |path: &std::path::Path| {
        let checkpoint = Checkpoint::open(path).expect("is sound");
        checkpoint.detection().vace_layers.clone()
    };
    // Without one, what the file says of itself.
    assert_eq!(layers(&folder), [0, 1, 2, 3, 4, 5, 6, 8]);
    let config = folder.join("config.json");
    let text = r#"{"num_layers": 41, "vace_layers": [0, 2, 4, 6, 8, 10, 12, 14]}"#;
    fs::write(&config, text).expect("can be written");
    assert_eq!(layers(&folder), [0, 2, 4, 6, 8, 10, 12, 14]);
    let checkpoint = Checkpoint::open(&folder).expect("is sound");
    let mut decisions = checkpoint.detection().decided_by.iter();
    let by = decisions.find(|decision| decision.what == "vace_layers");
    assert_eq!(by.expect("was decided").by, "config.json");
    assert_eq!(checkpoint.findings()[0].name(), "blocks.40");
    // Beside a file that is named itself there may be that of another model.
    assert_eq!(layers(&path), [0, 1, 2, 3, 4, 5, 6, 8]);
    // One that cannot be read is no reason to do without.
    for text in ["{", "[]", " [40, [0, 5]]", "null", "40"] {
        fs::write(&config, text).expect("can be written");
        let error = Checkpoint::open(&folder).expect_err("is no configuration");
        assert!(error.to_string().contains("config.json"), "{error}");
    }
    fs::remove_file(&path).expect("is there");
    fs::write(&config, text).expect("can be written");
    let spec = SynthesizeSpec {
        family: Family::Vace21,
        block_count: 40,
        dim: 128,
        ffn_dim: 128,
        recipe: Recipe::Q8_0,
        ..SynthesizeSpec::default()
    };
    synthesize(&spec, folder.join("model.gguf")).expect("can be written");
    assert_eq!(layers(&folder), [0, 2, 4, 6, 8, 10, 12, 14]);
}

/// An umT5 of three layers in scaled fp8, written with numbers: weights of 1, scales of `scale`.
fn fp8_encoder(
    dir: &TempDir,
    change: impl Fn(&mut Vec<(String, Encoding, Vec<u64>, Vec<u8>)>),
) -> Checkpoint {
    // 1.0 in E4M3.
    const ONE: u8 = 0x38;
    let mut tensors = Vec::new();
    let mut scaled = |owner: &str, scale: f32| {
        let weight = (format!("{owner}.weight"), Encoding::F8E4M3, vec![8, 16]);
        tensors.push((weight.0, weight.1, weight.2, vec![ONE; 128]));
        let bytes = scale.to_le_bytes().to_vec();
        tensors.push((
            format!("{owner}.scale_weight"),
            Encoding::F32,
            Vec::new(),
            bytes,
        ));
    };
    scaled("shared", 5.0);
    for index in 0..3 {
        scaled(
            &format!("encoder.block.{index}.layer.0.SelfAttention.q"),
            2.0,
        );
        scaled(
            &format!("encoder.block.{index}.layer.1.DenseReluDense.wo"),
            3.0,
        );
    }
    tensors.push((
        "encoder.final_layer_norm.weight".to_owned(),
        Encoding::F32,
        vec![16],
        vec![0; 64],
    ));
    tensors.push((
        "scaled_fp8".to_owned(),
        Encoding::F8E4M3,
        vec![0],
        Vec::new(),
    ));
    change(&mut tensors);
    let mut members = Vec::new();
    let mut data = Vec::new();
    for (name, encoding, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        members.push(format!(
            r#""{name}":{{"dtype":"{encoding}","shape":{shape:?},"data_offsets":[{start},{}]}}"#,
            data.len()
        ));
    }
    let header = format!("{{{}}}", members.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    let path = dir.path().join("umt5.safetensors");
    fs::write(&path, bytes).expect("can be written");
    Checkpoint::open(path).expect("is sound")
}

#[test]
fn scaled_encoders_arrive_multiplied_in_every_group() {
    let dir = TempDir::new().expect("can be made");
    let checkpoint = fp8_encoder(&dir, |_| {});
    assert_eq!(checkpoint.detection().scaling, Some(Scaling::ScaledFp8));
    assert_eq!(checkpoint.findings(), []);
    let model = checkpoint.model().expect("is whole");
    let device = CpuDevice::new();
    let stream = device.inline_stream();
    let mut offload = Offload::builder(&device)
        .model(model)
        .device_budget(DeviceBudget::Least)
        .build()
        .expect("the least does");
    let mut pass = offload.pass(PassKind::FULL, &stream).expect("begins");
    let mut seen = Vec::new();
    while let Some(lease) = pass.acquire().expect("arrives") {
        for name in lease.tensor_names() {
            if name.ends_with(".weight") && !name.contains("norm") {
                let tensor = lease.tensor(name).expect("is demanded");
                let bytes = tensor.host_bytes().expect("inline streams give bytes");
                let number = half::bf16::from_le_bytes([bytes[0], bytes[1]]);
                seen.push(format!("{}.{name} {number}", lease.name()));
            }
        }
    }
    let mut expected = vec!["embedding.shared.weight 5".to_owned()];
    for index in 0..3 {
        expected.push(format!("layers.{index}.layer.0.SelfAttention.q.weight 2"));
        expected.push(format!("layers.{index}.layer.1.DenseReluDense.wo.weight 3"));
    }
    assert_eq!(seen, expected);
}

#[test]
fn scales_that_an_encoder_lacks_are_missed_even_if_all_layers_lack_them() {
    let dir = TempDir::new().expect("can be made");
    let refused = |checkpoint: &Checkpoint| -> Vec<String> {
        let findings = checkpoint.findings();
        match checkpoint.model() {
            Err(LayoutError::Incomplete { findings: told }) => assert_eq!(told.0, findings),
            other => panic!("{other:?} with {findings:?}"),
        }
        findings.iter().map(Finding::to_string).collect()
    };
    let missing = |owner: &str| format!("tensor {owner}.scale_weight is missing");
    let of_layer = |index: u64| format!("encoder.block.{index}.layer.0.SelfAttention.q");
    // One in one layer, one kind in all, that of the embedding, and all.
    for (lost, expected) in [
        (
            "block.0.layer.0.SelfAttention.q",
            vec![missing(&of_layer(0))],
        ),
        (
            "block.2.layer.0.SelfAttention.q",
            vec![missing(&of_layer(2))],
        ),
        (
            "SelfAttention.q",
            (0..3).map(|index| missing(&of_layer(index))).collect(),
        ),
        ("shared", vec![missing("shared")]),
    ] {
        let lost = format!("{lost}.scale_weight");
        let checkpoint = fp8_encoder(&dir, |tensors| {
            tensors.retain(|(name, ..)| !name.ends_with(&lost));
        });
        assert_eq!(refused(&checkpoint), expected, "{lost}");
    }
    let bare = |flag: bool| {
        fp8_encoder(&dir, |tensors| {
            tensors.retain(|(name, ..)| {
                !name.ends_with("scale_weight") && (flag || name != "scaled_fp8")
            });
        })
    };
    assert_eq!(refused(&bare(true)).len(), 7);
    // Without the flag nothing says that there are any: fp8 is what it is.
    bare(false).model().expect("is plain");
    // Integers mean nothing without.
    let checkpoint = fp8_encoder(&dir, |tensors| {
        tensors.retain(|(name, ..)| !name.contains("scale"));
        tensors[0].1 = Encoding::I8;
    });
    assert_eq!(
        refused(&checkpoint),
        ["tensor shared.weight_scale is missing"]
    );
    let checkpoint = fp8_encoder(&dir, |tensors| tensors[0].1 = Encoding::Bool);
    assert_eq!(
        refused(&checkpoint),
        [
            "tensor shared.weight is stored as BOOL, expected floats, or a quantisation that is decoded"
        ]
    );
}

#[test]
fn what_a_matrix_is_not_stored_as_is_a_finding() {
    let dir = TempDir::new().expect("can be made");
    let path = dir.path().join("made.safetensors");
    // A whole checkpoint in a file, one tensor of it said to be something else.
    let made = |family, recipe, from: &str, to: &str| -> Vec<Finding> {
        let spec = SynthesizeSpec {
            family,
            recipe,
            block_count: 2,
            dim: 128,
            ffn_dim: 256,
            ..SynthesizeSpec::default()
        };
        synthesize(&spec, &path).expect("can be written");
        let mut bytes = fs::read(&path).expect("was written");
        assert_eq!(from.len(), to.len());
        let at = bytes
            .windows(from.len())
            .position(|window| window == from.as_bytes())
            .unwrap_or_else(|| panic!("{from} is not there"));
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        fs::write(&path, bytes).expect("can be written");
        let checkpoint = Checkpoint::open(&path).expect("is sound");
        let findings = checkpoint.findings();
        assert_eq!(checkpoint.model().is_err(), !findings.is_empty());
        findings
    };
    let text = |findings: Vec<Finding>| -> Vec<String> {
        findings.iter().map(Finding::to_string).collect()
    };
    // Of the same bytes for each number, and so of the same shape.
    let plain = made(Family::T2v21, Recipe::F8, "F8_E4M3", "F8_E5M2");
    assert_eq!(plain, [], "fp8 of either kind");
    let plain = text(made(Family::T2v21, Recipe::F16, "\"F16\"", "\"I16\""));
    assert_eq!(plain.len(), 1);
    assert!(
        plain[0].ends_with("is stored as I16, expected floats, or a quantisation that is decoded"),
        "{plain:?}"
    );
    // A name that says integers, with sign.
    let int8 = text(made(Family::LongCat, Recipe::Int8, "\"I8\"", "\"U8\""));
    assert_eq!(int8.len(), 1);
    assert!(
        int8[0].contains("weight_int8 is stored as U8, expected I8, as its name says"),
        "{int8:?}"
    );
    // A text that says something else than the weight is, and one that says what is not known.
    for (from, to, expected) in [
        (
            "float8_e4m3fn\"}",
            "float8_e5m2\"  }",
            "is stored as F8_E4M3, expected F8_E5M2, as ",
        ),
        (
            "float8_e4m3fn\"}",
            "int4_tensorwi\"}",
            "comfy_quant: format \"int4_tensorwi\" is not read",
        ),
        (
            "float8_e4m3fn\"}",
            "int8_tensorwi\"}",
            "is stored as F8_E4M3, expected I8, as ",
        ),
        (
            "float8_e4m3fn\"}",
            "float8_e4m3fnuz",
            "comfy_quant: it is no JSON of a format",
        ),
    ] {
        let found = text(made(Family::T2v21, Recipe::F8Mixed, from, to));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(expected), "{found:?}");
    }
    let broken = text(made(
        Family::T2v21,
        Recipe::F8Mixed,
        "{\"format\": \"fl",
        "[\"format\": \"fl",
    ));
    assert!(
        broken[0].contains("comfy_quant: it is no JSON"),
        "{broken:?}"
    );
}
