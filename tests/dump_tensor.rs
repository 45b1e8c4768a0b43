//! The program `dump_tensor`, run as a user runs it, against what the reference reader and decoder gave.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use offload_wan::{Checkpoint, Recipe, SynthesizeSpec, synthesize};

static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| support::build("dump_tensor"));

fn arguments<'a>(file: &'a Path, tensor: &'a str, dtype: &'a str, out: &'a Path) -> [&'a str; 7] {
    let text = |path: &'a Path| path.to_str().expect("paths here are text");
    [
        text(file),
        "--tensor",
        tensor,
        "--dtype",
        dtype,
        "--out",
        text(out),
    ]
}

/// Of a file that keeps scales beside its weights, the scaled weights arrive.
#[test]
fn weights_arrive_with_the_scales_beside_them() {
    use offload_core::decode::{Float, decode};
    let folder = tempfile::tempdir().expect("a folder can be made");
    let (file, out) = (
        folder.path().join("made.safetensors"),
        folder.path().join("tensor.bin"),
    );
    let spec = SynthesizeSpec {
        recipe: Recipe::F8Scaled,
        block_count: 1,
        dim: 128,
        ffn_dim: 128,
        ..SynthesizeSpec::default()
    };
    synthesize(&spec, &file).expect("can be written");
    let checkpoint = Checkpoint::open(&file).expect("is sound");
    let numbers = |name: &str| -> Vec<f32> {
        let tensor = checkpoint
            .tensors()
            .iter()
            .find(|tensor| tensor.name() == name);
        let tensor = tensor.expect("is there");
        let mut encoded = vec![0; usize::try_from(tensor.source().len()).expect("is small")];
        tensor.source().read(0, &mut encoded).expect("can be read");
        let count = usize::try_from(tensor.element_count()).expect("is small");
        let mut decoded = vec![0; 4 * count];
        decode(tensor.encoding(), &encoded, Float::F32, &mut decoded).expect("is decoded");
        let quads = decoded.chunks_exact(4);
        quads
            .map(|quad| f32::from_le_bytes(quad.try_into().expect("four")))
            .collect()
    };
    let name = "blocks.0.self_attn.q.weight";
    let output = support::run(&PROGRAM, &arguments(&file, name, "f32", &out));
    assert!(output.status.success(), "{output:?}");
    let scale = numbers("blocks.0.self_attn.q.scale_weight")[0];
    let expected: Vec<u8> = numbers(name)
        .iter()
        .flat_map(|number| (number * scale).to_le_bytes())
        .collect();
    assert!(scale != 1.0 && fs::read(&out).expect("was written") == expected);
}

#[test]
fn every_tensor_of_the_fixture_is_what_the_reference_gives() {
    let golden = support::golden();
    assert_eq!(golden.len(), 96);
    let folder = tempfile::tempdir().expect("a folder can be made");
    let (fixture, out) = (support::fixture(), folder.path().join("tensor.bin"));
    for (index, (tensor, hashes)) in golden.iter().enumerate() {
        // Every tensor in one dtype, in turn; all of block 1 and of what has five dimensions in all of them.
        let all = tensor.starts_with("blocks.1.") || tensor == "patch_embedding.weight";
        let dtypes = ["f32", "f16", "bf16"];
        for dtype in if all {
            &dtypes[..]
        } else {
            &dtypes[index % 3..][..1]
        } {
            let output = support::run(&PROGRAM, &arguments(&fixture, tensor, dtype, &out));
            assert!(
                output.status.success() && output.stdout.is_empty(),
                "{output:?}"
            );
            let bytes = fs::read(&out).expect("was written");
            let hash = support::sha256(&bytes);
            assert_eq!(hashes[dtype], hash.as_str(), "{tensor} as {dtype}");
        }
    }
}

#[test]
fn bad_usage_and_bad_input_end_with_one_line_and_leave_the_target_alone() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let (fixture, out) = (support::fixture(), folder.path().join("tensor.bin"));
    fs::write(&out, "kept").expect("can be written");
    let refuse = |file: &Path, tensor: &str, dtype: &str, out: &Path| {
        support::refused(&PROGRAM, &arguments(file, tensor, dtype, out))
    };
    let line = refuse(&fixture, "blocks.9.ffn.2.weight", "f32", &out);
    assert!(
        line.contains("no tensor blocks.9.ffn.2.weight among 96"),
        "{line}"
    );
    assert!(line.contains("ffn.2.weight"), "{line}");
    refuse(&fixture, "head.modulation", "i8", &out);
    refuse(Path::new("/nonexistent.gguf"), "x", "f32", &out);
    refuse(&fixture, "head.modulation", "f32", folder.path());
    refuse(
        &fixture,
        "head.modulation",
        "f32",
        Path::new("/nonexistent/out.bin"),
    );
    let copy = folder.path().join("model.gguf");
    fs::copy(&fixture, &copy).expect("can be copied");
    let line = refuse(&copy, "head.modulation", "f32", &copy);
    assert!(line.contains("to be read and written"), "{line}");
    // Through a link too.
    #[cfg(unix)]
    {
        let link = folder.path().join("link.gguf");
        std::os::unix::fs::symlink(&copy, &link).expect("can be made");
        let line = refuse(&copy, "head.modulation", "f32", &link);
        assert!(line.contains("to be read and written"), "{line}");
        fs::remove_file(&link).expect("can be removed");
    }
    if offload_cuda::probe().is_err() {
        let mut cuda = arguments(&fixture, "head.modulation", "f32", &out).to_vec();
        cuda.extend(["--device", "cuda"]);
        let line = support::refused(&PROGRAM, &cuda);
        assert!(line.to_lowercase().contains("cuda"), "{line}");
    }
    assert_eq!(fs::read(&out).expect("is there"), b"kept");
    assert_eq!(
        fs::read_dir(folder.path()).expect("is there").count(),
        2,
        "no partial files"
    );
}

/// What is written is put in place by renaming, which would replace a link, a pipe or a device by a file.
#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_replaced_by_one() {
    use std::os::unix::fs::FileTypeExt;
    let folder = tempfile::tempdir().expect("a folder can be made");
    let fixture = support::fixture();
    let socket = folder.path().join("socket");
    let _open = std::os::unix::net::UnixListener::bind(&socket).expect("can be made");
    let line = support::refused(
        &PROGRAM,
        &arguments(&fixture, "head.modulation", "f32", &socket),
    );
    assert!(line.contains("socket"), "{line}");
    let kind = fs::metadata(&socket).expect("is there").file_type();
    assert!(kind.is_socket());
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    fs::write(&file, "old").expect("can be written");
    std::os::unix::fs::symlink(&file, &link).expect("can be made");
    let output = support::run(
        &PROGRAM,
        &arguments(&fixture, "head.modulation", "f32", &link),
    );
    assert!(output.status.success(), "{output:?}");
    let kind = fs::symlink_metadata(&link).expect("is there").file_type();
    assert!(kind.is_symlink());
    let dumped = fs::read(&file).expect("is there");
    assert_eq!(
        support::golden()["head.modulation"]["f32"],
        support::sha256(&dumped).as_str()
    );
}

/// An index, or a file that it names, is read as well as the folder that stands for them.
#[test]
fn no_part_of_a_folder_is_written_over() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let model = folder.path().join("model/");
    let spec = SynthesizeSpec {
        recipe: Recipe::BF16,
        block_count: 2,
        dim: 128,
        ffn_dim: 128,
        ..SynthesizeSpec::default()
    };
    fs::create_dir(&model).expect("can be made");
    synthesize(&spec, &model).expect("can be written");
    let mut parts = 0;
    for entry in fs::read_dir(&model).expect("is there") {
        let part = entry.expect("can be listed").path();
        let before = fs::read(&part).expect("can be read");
        let arguments = arguments(&model, "head.modulation", "f32", &part);
        let line = support::refused(&PROGRAM, &arguments);
        assert!(line.contains("to be read and written"), "{line}");
        assert!(fs::read(&part).expect("can be read") == before);
        parts += 1;
    }
    // Shards, index and configuration.
    assert!(parts >= 5, "{parts}");
}

#[test]
fn every_hostile_container_is_refused() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let out = folder.path().join("tensor.bin");
    let mut refused = 0;
    for entry in fs::read_dir(support::data("gguf_hostile")).expect("is committed") {
        let path = entry.expect("can be listed").path();
        let name = path
            .file_name()
            .expect("has a name")
            .to_string_lossy()
            .into_owned();
        if name.starts_with("bad_") {
            support::refused(&PROGRAM, &arguments(&path, "t", "f32", &out));
            refused += 1;
        }
    }
    assert!(refused >= 41, "{refused}");
}
