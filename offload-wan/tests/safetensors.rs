//! Checkpoints in safetensors files: single ones, shards, and beside GGUF.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use offload_core::encoding::Encoding;
use offload_core::format::gguf::Writer;
use offload_wan::{Checkpoint, CheckpointError, ContainerError, Naming, Variant};
use support::{Recorded, Shaped, write_safetensors, write_sparse};
use tempfile::TempDir;

#[test]
fn published_checkpoints_are_recognised_by_their_headers() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.safetensors");
    for (file, dtype, variant, naming) in [
        (
            "diffusers.wan2.1-t2v-14b",
            "BF16",
            "wan2.1-t2v-14b",
            Naming::Diffusers,
        ),
        (
            "diffusers.wan2.1-i2v-14b",
            "BF16",
            "wan2.1-i2v-14b",
            Naming::Diffusers,
        ),
        (
            "diffusers.wan2.2-ti2v-5b",
            "F32",
            "wan2.2-ti2v-5b",
            Naming::Diffusers,
        ),
        (
            "native.wan2.1-t2v-1.3b",
            "F16",
            "wan2.1-t2v-1.3b",
            Naming::Native,
        ),
    ] {
        let recorded = Recorded::read(file);
        write_safetensors(&path, dtype, &recorded.tensors());
        let checkpoint = Checkpoint::open(&path).unwrap();
        let detection = checkpoint.detection();
        assert_eq!(detection.variant, Variant::from_name(variant), "{file}");
        assert_eq!(detection.naming, Some(naming), "{file}");
        assert!(detection.exact_size, "{file}");
        assert_eq!(checkpoint.tensors().len(), recorded.tensor_count);
        assert!(checkpoint.unknown().is_empty(), "{file}");
        let model = checkpoint.model().unwrap();
        assert!(model.blocks().len() > 30, "{file}");
    }
}

#[test]
fn a_file_that_torch_wrote_is_a_checkpoint() {
    // Its data, and with it 2 MB, is left out: 15 KB of header tell.
    let header =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/wan_t2v_d128.safetensors.header");
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.safetensors");
    write_sparse(&path, &fs::read(header).unwrap(), 2_232_708);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let detection = checkpoint.detection();
    assert_eq!(detection.naming, Some(Naming::Diffusers));
    assert_eq!(detection.prefix, "weights.");
    assert_eq!((detection.dim, detection.ffn_dim), (128, 384));
    assert_eq!(detection.variant.unwrap().name(), "wan2.1-t2v");
    assert_eq!(checkpoint.blocks().len(), 4);
    // What went into the model that wrote it and what came out.
    assert_eq!(
        checkpoint.unknown(),
        [
            "input.encoder_hidden_states",
            "input.hidden_states",
            "input.timestep",
            "output"
        ]
    );
    // Text 64 wide where published models have 4096.
    assert_eq!(checkpoint.model().unwrap().blocks().len(), 4 + 4 + 1);
}

fn small() -> Vec<Shaped> {
    let mut tensors = Recorded::read("diffusers.wan2.1-t2v-1.3b").tensors();
    tensors.retain(|(name, _)| {
        !name.starts_with("blocks.")
            || name.starts_with("blocks.0.")
            || name.starts_with("blocks.1.")
    });
    tensors
}

/// Three shards of the small model and their index.
fn sharded(dir: &Path) -> (PathBuf, Vec<PathBuf>) {
    let tensors = small();
    let mut map = Vec::new();
    let mut shards = Vec::new();
    for (number, part) in tensors.chunks(tensors.len().div_ceil(3)).enumerate() {
        let name = format!("model-{:05}-of-00003.safetensors", number + 1);
        let path = dir.join(&name);
        write_safetensors(&path, "BF16", part);
        shards.push(path);
        map.extend(
            part.iter()
                .map(|(tensor, _)| format!(r#""{tensor}":"{name}""#)),
        );
    }
    let index = dir.join("model.safetensors.index.json");
    let text = format!(r#"{{"metadata":{{}},"weight_map":{{{}}}}}"#, map.join(","));
    fs::write(&index, text).expect("can be written");
    (index, shards)
}

#[test]
fn an_index_and_its_shards_are_the_same_model() {
    let dir = TempDir::new().unwrap();
    let (index, shards) = sharded(dir.path());
    let of_index = Checkpoint::open(&index).unwrap();
    let of_shards = Checkpoint::open_all(&shards).unwrap();
    assert_eq!(of_index.files().len(), 3);
    assert_eq!(of_index.detection(), of_shards.detection());
    assert_eq!(of_index.tensors().len(), small().len());
    for (one, other) in of_index.tensors().iter().zip(of_shards.tensors()) {
        assert_eq!(one.name(), other.name());
        assert_eq!(one.shape(), other.shape());
    }
    assert!(of_index.model().is_ok());
    // The index beside one of its shards is that shard twice.
    let error = Checkpoint::open_all([&index, &shards[1]]).unwrap_err();
    assert!(
        matches!(error, CheckpointError::DuplicateTensor { .. }),
        "{error}"
    );
    fs::remove_file(&shards[1]).unwrap();
    let error = Checkpoint::open(&index).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("model-00002-of-00003.safetensors"),
        "{error}"
    );
}

#[test]
fn safetensors_and_gguf_mix() {
    let dir = TempDir::new().unwrap();
    let (gguf, rest) = (dir.path().join("a"), dir.path().join("b"));
    let (heads, others): (Vec<_>, Vec<_>) = small()
        .into_iter()
        .partition(|(name, _)| name.starts_with("proj_out."));
    let mut writer = Writer::new();
    for (name, shape) in heads {
        let bytes = Encoding::F32.bytes_of(&shape).unwrap();
        writer.tensor(name, shape, Encoding::F32, vec![0; bytes as usize]);
    }
    writer.write_to(fs::File::create(&gguf).unwrap()).unwrap();
    write_safetensors(&rest, "BF16", &others);
    let checkpoint = Checkpoint::open_all([&gguf, &rest]).unwrap();
    assert_eq!(checkpoint.files().len(), 2);
    assert!(checkpoint.model().is_ok());
}

#[test]
fn what_is_not_sound_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.safetensors");
    for (bytes, wanted) in [
        (&b"\x02\0\0\0\0\0\0\0{}x"[..], "goes on to byte 11"),
        (b"\xff\xff\xff\x7f\0\0\0\0{", "a header of 2147483647 bytes"),
        (b"{\"a\":1}", "no weight_map"),
        (b"{", "found the end"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = Checkpoint::open(&path).unwrap_err();
        assert!(
            matches!(
                error,
                CheckpointError::Container(ContainerError::Safetensors(_))
            ),
            "{error:?}"
        );
        let line = error.to_string();
        assert!(
            line.contains("model.safetensors") && line.contains(wanted),
            "{line}"
        );
    }
    assert!(Checkpoint::open_all::<&Path>([]).is_err());
}
