//! Checkpoints made of recorded names and shapes over a sparse file.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::Path;

use offload_core::encoding::Encoding;
use offload_core::source::{Source, SourceFile};
use offload_core::swappable::TensorSpec;
use serde::Deserialize;

/// Names and shapes of one published checkpoint.
#[derive(Debug, Deserialize)]
pub(crate) struct Recorded {
    pub(crate) tensor_count: usize,
    tensors: Vec<RecordedTensor>,
}

#[derive(Debug, Deserialize)]
struct RecordedTensor {
    name: String,
    shape: Vec<u64>,
    index: Vec<u64>,
}

/// Every list there is: NAMING.VARIANT.
pub(crate) const RECORDED: &[&str] = &[
    "native.wan2.1-t2v-1.3b",
    "native.wan2.1-t2v-14b",
    "native.wan2.1-i2v-14b",
    "native.wan2.1-flf2v-14b",
    "native.wan2.1-vace-1.3b",
    "native.wan2.1-vace-14b",
    "native.wan2.2-t2v-a14b",
    "native.wan2.2-i2v-a14b",
    "native.wan2.2-ti2v-5b",
    "native.wan2.2-s2v-14b",
    "native.wan2.2-animate-14b",
    "native.longcat-video",
    "diffusers.wan2.1-t2v-1.3b",
    "diffusers.wan2.1-t2v-14b",
    "diffusers.wan2.1-i2v-14b",
    "diffusers.wan2.1-flf2v-14b",
    "diffusers.wan2.1-vace-1.3b",
    "diffusers.wan2.1-vace-14b",
    "diffusers.wan2.2-i2v-a14b",
    "diffusers.wan2.2-ti2v-5b",
    "diffusers.wan2.2-animate-14b",
];

/// A tensor yet without bytes.
pub(crate) type Shaped = (String, Vec<u64>);

impl Recorded {
    /// Reads `tests/data/NAME.json`.
    pub(crate) fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{name}.json"));
        let text = std::fs::read_to_string(&path).expect("the data is in the repository");
        serde_json::from_str(&text).expect("the data is sound")
    }

    /// Every tensor, blocks expanded.
    pub(crate) fn tensors(&self) -> Vec<Shaped> {
        let mut all = Vec::new();
        for tensor in &self.tensors {
            if tensor.index.is_empty() {
                all.push((tensor.name.clone(), tensor.shape.clone()));
            }
            for index in &tensor.index {
                let name = tensor.name.replacen("{}", &index.to_string(), 1);
                all.push((name, tensor.shape.clone()));
            }
        }
        all
    }
}

/// bf16 tensors of these shapes, one behind the other in a file that does not exist.
pub(crate) fn described(tensors: &[Shaped]) -> Vec<TensorSpec> {
    let mut offset = 0;
    let spec = |(name, shape): &Shaped| {
        let bytes = Encoding::BF16.bytes_of(shape).expect("shapes are sane");
        let range = offset..offset + bytes;
        offset = range.end;
        let source = Source::Described { range };
        TensorSpec::new(name, shape.clone(), Encoding::BF16, source).expect("lengths fit")
    };
    tensors.iter().map(spec).collect()
}

/// bf16 tensors of these shapes, one behind the other in a file that takes no room.
pub(crate) fn specs(tensors: &[Shaped]) -> Vec<TensorSpec> {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let path = dir.path().join("sparse");
    let bytes = |shape: &[u64]| Encoding::BF16.bytes_of(shape).expect("shapes are sane");
    let total: u64 = tensors.iter().map(|(_, shape)| bytes(shape)).sum();
    std::fs::File::create(&path)
        .and_then(|file| file.set_len(total))
        .expect("sparse files are supported");
    let file = SourceFile::open(&path).expect("it was just made");
    let mut offset = 0;
    tensors
        .iter()
        .map(|(name, shape)| {
            let range = offset..offset + bytes(shape);
            offset = range.end;
            let source = Source::File {
                file: file.clone(),
                range,
            };
            TensorSpec::new(name, shape.clone(), Encoding::BF16, source).expect("lengths fit")
        })
        .collect()
}

/// Writes a safetensors file of these tensors, all of `dtype`, whose data takes no room.
pub(crate) fn write_safetensors(path: &Path, dtype: &str, tensors: &[Shaped]) {
    write_with_metadata(path, dtype, tensors, r#"{"format":"pt"}"#);
}

/// The same with these metadata, an object in JSON.
pub(crate) fn write_with_metadata(path: &Path, dtype: &str, tensors: &[Shaped], metadata: &str) {
    let encoding = Encoding::from_name(dtype).expect("is an encoding");
    let mut offset = 0;
    let mut members = vec![format!(r#""__metadata__":{metadata}"#)];
    for (name, shape) in tensors {
        let end = offset + encoding.bytes_of(shape).expect("shapes are sane");
        members.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{offset},{end}]}}"#
        ));
        offset = end;
    }
    let mut header = format!("{{{}}}", members.join(","));
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    write_sparse(path, &bytes, offset);
}

/// Writes `bytes` and as many zeros, which take no room.
pub(crate) fn write_sparse(path: &Path, bytes: &[u8], zeros: u64) {
    std::fs::write(path, bytes).expect("can be written");
    std::fs::File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.set_len(bytes.len() as u64 + zeros))
        .expect("sparse files are supported");
}
