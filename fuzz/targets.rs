//! What is done to an input, and what must hold whatever it is: no panic, and what opens is sound.
//!
//! The fuzz targets run this on what they make up, an ordinary test of offload-core on the seeds.

#![allow(dead_code, reason = "each target uses its own")]

use std::fs;
use std::path::{Path, PathBuf};

use offload_core::format::gguf::Gguf;
use offload_core::format::safetensors::Safetensors;
use offload_core::plan::Plan;
use offload_core::source::Source;
use offload_core::swappable::TensorSpec;
use tempfile::TempDir;

#[path = "../offload-core/tests/planner/replay.rs"]
mod replay;

/// A folder that is kept from one input to the next.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        // In memory where the system has such a place: an input is written each time.
        let place = Path::new("/dev/shm");
        let folder = if place.is_dir() {
            TempDir::new_in(place)
        } else {
            TempDir::new()
        };
        Self(folder.expect("a folder can be made"))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).expect("an input can be written");
        path
    }
}

thread_local! {
    static FOLDER: Folder = Folder::new();
    static MODEL: Folder = shards();
}

/// A folder of two shards: `a` and `b` in `one`, `c` in `two`.
fn shards() -> Folder {
    let folder = Folder::new();
    let file = |header: &str, data_bytes| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data_bytes, 0);
        bytes
    };
    let one = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"F32","shape":[],"data_offsets":[2,6]}}"#;
    let two = r#"{"__metadata__":{"format":"pt"},"c":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}"#;
    folder.write("one", &file(one, 6));
    folder.write("two", &file(two, 4));
    folder
}

/// The bytes of a file are a GGUF file.
pub(crate) fn gguf(input: &[u8]) {
    let path = FOLDER.with(|folder| folder.write("input", input));
    match Gguf::open(path) {
        Ok(opened) => {
            let ranges = sound_ranges(opened.tensors(), input.len() as u64);
            assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            for tensor in opened.tensors() {
                let found = opened.tensor(tensor.name()).expect("is listed");
                assert_eq!(found.shape(), tensor.shape());
            }
        }
        Err(error) => assert_says(&error.to_string()),
    }
}

/// The bytes of a file are a safetensors file.
pub(crate) fn safetensors(input: &[u8]) {
    let path = FOLDER.with(|folder| folder.write("input", input));
    match Safetensors::open(path) {
        Ok(opened) => {
            assert_listed(&opened);
            // An index opens only with its shards, and there are none.
            let Some(file) = opened.files().first() else {
                assert!(opened.tensors().is_empty());
                return;
            };
            let ranges = sound_ranges(opened.tensors(), file.len());
            let mut end = file.len() - ranges.iter().map(|range| range.1 - range.0).sum::<u64>();
            for range in ranges {
                assert_eq!(range.0, end, "a hole or an overlap");
                end = range.1;
            }
            assert_eq!(end, file.len());
        }
        Err(error) => assert_says(&error.to_string()),
    }
}

/// The bytes of a file are the index of a model in two shards.
pub(crate) fn index(input: &[u8]) {
    // A file of another kind is the other target's.
    if input.first() != Some(&b'{') {
        return;
    }
    let path = MODEL.with(|folder| folder.write("model.safetensors.index.json", input));
    match Safetensors::open(&path) {
        Ok(opened) => {
            assert_listed(&opened);
            for file in opened.files() {
                assert_eq!(file.path().parent(), path.parent(), "a file elsewhere");
            }
        }
        Err(error) => assert_says(&error.to_string()),
    }
}

/// The bytes are a plan as JSON.
pub(crate) fn plan(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    match Plan::from_json(text) {
        Ok(plan) => {
            assert_eq!(Plan::from_json(&plan.to_json()).as_ref(), Ok(&plan));
            assert!(!plan.to_string().is_empty());
            replay::lies_well(&plan).expect("places lie well");
            for kind in 0..plan.kinds.len() {
                let passes = vec![replay::Pass::full(&plan, kind); 3];
                replay::run(&plan, &passes).expect("every order reads the right bytes");
            }
        }
        Err(error) => assert_says(&error.to_string()),
    }
}

/// Where tensors lie that have bytes, in order; all of it in the file and as long as shape and encoding need.
fn sound_ranges(tensors: &[TensorSpec], file_len: u64) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    for tensor in tensors {
        let Source::File { range, .. } = tensor.source() else {
            panic!("{} is in no file", tensor.name());
        };
        assert!(range.start <= range.end && range.end <= file_len);
        let bytes = u128::from(range.end - range.start);
        let encoding = tensor.encoding();
        assert_eq!(
            bytes * u128::from(encoding.quant_block_len()),
            u128::from(tensor.element_count()) * u128::from(encoding.quant_block_bytes())
        );
        assert!(!tensor.name().is_empty());
        if !range.is_empty() {
            ranges.push((range.start, range.end));
        }
    }
    ranges.sort_unstable();
    ranges
}

fn assert_listed(opened: &Safetensors) {
    for tensor in opened.tensors() {
        let found = opened.tensor(tensor.name()).expect("is listed");
        assert_eq!(found.shape(), tensor.shape());
        let mut bytes = vec![0; usize::try_from(tensor.source().len()).expect("is in a file")];
        tensor.source().read(0, &mut bytes).expect("is in a file");
    }
}

/// An error is one line of some length.
fn assert_says(error: &str) {
    assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
}
