//! The program `inspect`, run as a user runs it.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use offload_core::encoding::Encoding;
use offload_core::format::gguf::{Gguf, Writer};
use offload_wan::{Recipe, SynthesizeSpec, synthesize};
use serde_json::Value;
use tempfile::TempDir;

static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| support::build("inspect"));

fn inspect(arguments: &[&Path]) -> Output {
    support::run(&PROGRAM, arguments)
}

fn json(files: &[&Path]) -> Value {
    let mut arguments = files.to_vec();
    arguments.push(Path::new("--json"));
    support::json(&PROGRAM, &arguments)
}

#[track_caller]
fn refused(arguments: &[&Path]) -> String {
    support::refused(&PROGRAM, arguments)
}

fn small() -> SynthesizeSpec {
    SynthesizeSpec {
        block_count: 3,
        dim: 256,
        ffn_dim: 512,
        ..SynthesizeSpec::default()
    }
}

fn checkpoint(dir: &TempDir, spec: &SynthesizeSpec) -> PathBuf {
    let path = dir.path().join("model.gguf");
    synthesize(spec, &path).expect("can be written");
    path
}

#[test]
fn what_could_steer_a_terminal_is_escaped_and_quotes_are_not() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("small_high.gguf");
    let extra = dir.path().join("extra.gguf");
    synthesize(&small(), &path).unwrap();
    let mut writer = Writer::new();
    writer.tensor("head.\u{202e}gguf", vec![1], Encoding::F32, vec![0; 4]);
    writer.write_to(fs::File::create(&extra).unwrap()).unwrap();
    let output = inspect(&[&path, &extra]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("`high` in the file's name"), "{text}");
    assert!(text.contains("head.\\u{202e}gguf is unknown"), "{text}");
    assert!(!text.contains('\u{202e}'), "{text}");
}

#[test]
fn a_checkpoint_is_described() {
    let dir = TempDir::new().unwrap();
    let path = checkpoint(&dir, &small());
    let report = json(&[&path]);
    assert_eq!(report["variant"], "wan2.1-t2v");
    assert_eq!(report["alternatives"], serde_json::json!(["wan2.2-t2v"]));
    assert_eq!(report["naming"], "native");
    assert_eq!(report["tensor_count"], 3 * 27 + 15);
    assert_eq!(report["problem"], Value::Null);
    // Per block: q, k, o of two attentions and the first feed-forward matrix; v of both and the second one.
    assert_eq!(report["encodings"]["Q4_K"], 3 * 7);
    assert_eq!(report["encodings"]["Q6_K"], 3 * 3);
    assert_eq!(report["encodings"]["F16"], 6);
    assert_eq!(report["encodings"]["F32"], 3 * 17 + 9);
    let blocks = report["blocks"].as_array().unwrap();
    assert_eq!(blocks.len(), 3);
    let quants = (6 * 256 * 256 + 256 * 512) / 256 * 144 + (2 * 256 * 256 + 256 * 512) / 256 * 210;
    let floats = 4 * (8 * 256 + 4 * 256 + 2 * 256 + 512 + 256 + 6 * 256);
    for (index, block) in blocks.iter().enumerate() {
        assert_eq!(block["name"], format!("blocks.{index}"));
        assert_eq!(block["tensor_count"], 27);
        assert_eq!(block["bytes"], quants + floats);
    }
    let total = report["total_bytes"].as_u64().unwrap();
    let others = report["other_bytes"].as_u64().unwrap();
    assert_eq!(total, others + 3 * (quants + floats) as u64);
}

#[test]
fn the_text_names_the_variant_and_every_block() {
    let dir = TempDir::new().unwrap();
    let path = checkpoint(&dir, &small());
    let output = inspect(&[&path]);
    assert!(output.status.success() && output.stderr.is_empty());
    let text = String::from_utf8(output.stdout).unwrap();
    for word in [
        "wan2.1-t2v or wan2.2-t2v",
        "blocks.0",
        "blocks.2",
        "Q4_K: 21",
    ] {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
}

#[test]
fn a_variant_that_is_said_is_what_it_is_taken_for() {
    let dir = TempDir::new().unwrap();
    let path = checkpoint(&dir, &small());
    let said = |name: &str| {
        let arguments = [
            path.as_path(),
            "--variant".as_ref(),
            name.as_ref(),
            "--json".as_ref(),
        ];
        support::json(&PROGRAM, &arguments)
    };
    assert_eq!(json(&[&path])["findings"], serde_json::json!([]));
    assert_eq!(said("wan2.2-t2v-a14b")["variant"], "wan2.2-t2v-a14b");
    let vace = said("wan2.1-vace-14b");
    assert_eq!(vace["variant"], "wan2.1-vace-14b");
    assert_ne!(vace["findings"], serde_json::json!([]));
    let other = dir.path().join("other.gguf");
    let mut writer = Writer::new();
    writer.tensor("t", vec![4], Encoding::F32, vec![0; 16]);
    writer.write_to(fs::File::create(&other).unwrap()).unwrap();
    let line = refused(&[&other, "--variant".as_ref(), "wan2.1-t2v-14b".as_ref()]);
    assert!(line.contains("it is no WAN transformer"), "{line}");
}

#[test]
fn a_variant_of_scaled_width_is_named() {
    let dir = TempDir::new().unwrap();
    for name in ["wan2.1-t2v-1.3b", "wan2.1-i2v-14b", "wan2.2-ti2v-5b"] {
        let variant = offload_wan::Variant::from_name(name).unwrap();
        let spec = SynthesizeSpec::of_variant(variant, Recipe::Q8_0, 40, 1).unwrap();
        let report = json(&[&checkpoint(&dir, &spec)]);
        assert_eq!(report["variant"], name);
        assert_eq!(report["exact_size"], false);
        assert_eq!(report["problem"], Value::Null);
    }
}

#[test]
fn a_file_that_is_no_checkpoint_is_refused_in_one_line() {
    let dir = TempDir::new().unwrap();
    let good = fs::read(checkpoint(&dir, &small())).unwrap();
    let bad = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let line = refused(&[&path]);
        assert!(line.contains(name), "{line}");
        line
    };
    bad("empty.gguf", b"");
    bad("short.gguf", b"GG");
    bad("text.gguf", b"this is not a checkpoint at all");
    bad("magic.gguf", &good[..4]);
    bad("header.gguf", &good[..20]);
    bad("infos.gguf", &good[..4000]);
    bad("data.gguf", &good[..good.len() - 4096]);
    let mut version = good.clone();
    version[4] = 9;
    bad("version.gguf", &version);
    let mut counts = good.clone();
    counts[8..24].fill(0xff);
    bad("counts.gguf", &counts);
    let line = bad(
        "weights.safetensors",
        b"\x10\x00\x00\x00\x00\x00\x00\x00{\"a\":1}          ",
    );
    assert!(line.contains("safetensors"), "{line}");

    let line = refused(&[&dir.path().join("absent.gguf")]);
    assert!(line.contains("absent.gguf"), "{line}");
    let line = refused(&[dir.path()]);
    assert!(line.contains("not a regular file"), "{line}");
    refused(&[]);
    refused(&[Path::new("--no-such-option")]);
}

#[test]
fn no_broken_header_makes_it_panic() {
    let dir = TempDir::new().unwrap();
    let good = fs::read(checkpoint(&dir, &small())).unwrap();
    let path = dir.path().join("broken.gguf");
    // Every byte of the fixed header and of what follows it, a step apart.
    for at in (0..24).chain((24..6000).step_by(97)) {
        let mut broken = good.clone();
        broken[at] ^= 0xff;
        fs::write(&path, &broken).unwrap();
        let output = inspect(&[&path]);
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 2)), "byte {at}: {output:?}");
        assert_eq!(code == Some(2), output.stdout.is_empty(), "byte {at}");
    }
}

#[test]
fn hostile_files_are_refused_and_odd_ones_shown() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("offload-core/tests/data/gguf_hostile");
    let mut seen = (0, 0);
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("bad_") {
            let line = refused(&[&path]);
            assert!(line.contains(&name), "{line}");
            seen.0 += 1;
        } else if path
            .extension()
            .is_some_and(|extension| extension == "gguf")
        {
            let report = json(&[&path]);
            assert_eq!(report["variant"], Value::Null, "{name}");
            assert_eq!(report["naming"], Value::Null, "{name}");
            assert!(inspect(&[&path]).status.success(), "{name}");
            seen.1 += 1;
        }
    }
    assert!(seen.0 > 30 && seen.1 > 5, "{seen:?}");
}

#[test]
fn a_file_of_the_reference_writer_is_described() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("offload-core/tests/data/wan_t2v_d256_q4_k_m.gguf");
    let report = json(&[&path]);
    assert_eq!(report["variant"], "wan2.1-t2v");
    assert_eq!(report["tensor_count"], 96);
    assert_eq!(report["patch_embedding"], "whole");
    assert_eq!(report["in_channels"], 16);
    assert_eq!(report["problem"], Value::Null);
    assert_eq!(report["blocks"].as_array().unwrap().len(), 3);
}

/// A safetensors file of the tensors of `whole` that `takes` names, all bf16.
fn safetensors(path: &Path, whole: &Gguf, takes: impl Fn(&str) -> bool) -> Vec<String> {
    let (mut members, mut names, mut offset) = (Vec::new(), Vec::new(), 0);
    for tensor in whole.tensors().iter().filter(|tensor| takes(tensor.name())) {
        let end = offset + 2 * tensor.element_count();
        let (name, shape) = (tensor.name(), tensor.shape());
        names.push(name.to_owned());
        members.push(format!(
            r#""{name}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{offset},{end}]}}"#
        ));
        offset = end;
    }
    let header = format!("{{{}}}", members.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + usize::try_from(offset).expect("is small"), 0);
    fs::write(path, bytes).expect("can be written");
    names
}

#[test]
fn safetensors_and_their_index_are_described() {
    let dir = TempDir::new().unwrap();
    let whole = Gguf::open(checkpoint(&dir, &small())).unwrap();
    let path = dir.path().join("model.safetensors");
    safetensors(&path, &whole, |_| true);
    let report = json(&[&path]);
    assert_eq!(report["variant"], "wan2.1-t2v");
    assert_eq!(report["encodings"], serde_json::json!({"BF16": 96}));
    assert_eq!(report["problem"], Value::Null);

    let shards = ["a.safetensors", "b.safetensors"].map(|name| dir.path().join(name));
    let mut map = Vec::new();
    for (index, shard) in shards.iter().enumerate() {
        let names = safetensors(shard, &whole, |name| name.contains("1.") == (index == 1));
        let file = shard.file_name().unwrap().to_string_lossy();
        map.extend(names.iter().map(|name| format!(r#""{name}":"{file}""#)));
    }
    let index = dir.path().join("model.safetensors.index.json");
    fs::write(&index, format!(r#"{{"weight_map":{{{}}}}}"#, map.join(","))).unwrap();
    assert_eq!(json(&[&index]), report);
    assert_eq!(json(&[&shards[0], &shards[1]]), report);
    fs::remove_file(&shards[1]).unwrap();
    let line = refused(&[&index]);
    assert!(line.contains("b.safetensors"), "{line}");
}

/// The checkpoint at `path` without the tensors that `lacks` names, and those alone, as two files.
fn split(dir: &TempDir, path: &Path, lacks: &str) -> [PathBuf; 2] {
    let whole = Gguf::open(path).expect("is sound");
    [false, true].map(|wanted| {
        let mut writer = Writer::new();
        let tensors = whole.tensors().iter();
        for tensor in tensors.filter(|tensor| tensor.name().starts_with(lacks) == wanted) {
            let len = usize::try_from(tensor.source().len()).expect("is small");
            let mut bytes = vec![0; len];
            tensor.source().read(0, &mut bytes).expect("can be read");
            writer.tensor(tensor.name(), tensor.shape(), tensor.encoding(), bytes);
        }
        let part = dir.path().join(format!("part-{wanted}.gguf"));
        let file = fs::File::create(&part).expect("can be made");
        writer.write_to(file).expect("can be written");
        part
    })
}

#[test]
fn several_files_are_one_model_and_a_part_says_what_it_lacks() {
    let dir = TempDir::new().unwrap();
    let path = checkpoint(&dir, &small());
    let [rest, block] = split(&dir, &path, "blocks.1.ffn.");
    let mut whole = json(&[&path]);
    let mut both = json(&[&rest, &block]);
    assert_eq!(whole["problem"].take(), both["problem"].take());
    assert_eq!(whole, both);
    let report = json(&[&rest]);
    let problem = report["problem"].as_str().unwrap();
    assert!(problem.contains("blocks.1.ffn.0.weight"), "{problem}");
    assert_eq!(report["variant"], "wan2.1-t2v");
    assert_eq!(json(&[&block])["variant"], Value::Null);
}

#[test]
fn one_file_twice_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = checkpoint(&dir, &small());
    let line = refused(&[&path, &path]);
    assert!(line.contains("twice"), "{line}");
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let dir = TempDir::new().unwrap();
    let path = checkpoint(&dir, &small());
    for format in [&[][..], &["--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(&*PROGRAM)
            .arg(&path)
            .args(format)
            .stdout(Stdio::from(writer))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}
