//! Damaged GGUF files, the same for every reader that is compared, and what must hold of those that offload-core opens.
//!
//! Shared with a test of offload-core, which compares with the format's own reader.

use std::fs;
use std::ops::Range;
use std::path::Path;

use offload_core::format::gguf::{Gguf, GgufError};
use offload_core::source::Source;
use offload_core::swappable::TensorSpec;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// The files, without end: sound and hostile ones, each damaged in up to two places.
pub(crate) fn damaged(seed: u64) -> impl Iterator<Item = Vec<u8>> {
    let seeds = seeds();
    let mut random = StdRng::seed_from_u64(seed);
    std::iter::repeat_with(move || {
        let mut bytes = seeds.choose(&mut random).expect("there are seeds").clone();
        for _ in 0..random.random_range(0..3) {
            mutate(&mut bytes, &mut random);
        }
        bytes
    })
}

/// Where a tensor lies in its file.
pub(crate) fn range(tensor: &TensorSpec) -> Range<u64> {
    match tensor.source() {
        Source::File { range, .. } => range.clone(),
        other => panic!("{} is in no file: {other:?}", tensor.name()),
    }
}

/// Opens a file with offload-core.
///
/// # Panics
/// When a tensor lies outside the file or two share bytes.
pub(crate) fn open(path: &Path) -> Result<Gguf, GgufError> {
    let opened = Gguf::open(path)?;
    let file_bytes = fs::metadata(path).expect("was opened").len();
    let mut ranges: Vec<_> = opened.tensors().iter().map(range).collect();
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    let end = ranges.last().map_or(0, |last| last.end);
    assert!(end <= file_bytes, "{end} of {file_bytes} bytes");
    for pair in ranges.windows(2) {
        assert!(pair[0].end <= pair[1].start, "{pair:?} overlap");
    }
    Ok(opened)
}

fn mutate(bytes: &mut Vec<u8>, random: &mut StdRng) {
    // Most of what can be lied about is in the header.
    let near = bytes.len().min(600);
    let at = random.random_range(0..near.max(1));
    match random.random_range(0..8) {
        0 => bytes.truncate(random.random_range(0..=bytes.len())),
        1 => bytes.resize(bytes.len() + random.random_range(1..64), 0),
        2 if at + 8 <= bytes.len() => {
            let power = 1u64 << random.random_range(0..64);
            let word = power.wrapping_add_signed(random.random_range(-2..3));
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        3 if at + 4 <= bytes.len() => {
            let word: u32 = random.random_range(0..48);
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        4 => {
            let piece = bytes[at..(at + 8).min(bytes.len())].to_vec();
            bytes.splice(at..at, piece);
        }
        5 => {
            bytes.drain(at..(at + 8).min(bytes.len()));
        }
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.random();
            }
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = root
        .ancestors()
        .find(|folder| folder.join("fuzz/seeds").is_dir())
        .expect("the package is in the repository");
    let mut paths: Vec<_> = ["fuzz/seeds/gguf", "offload-core/tests/data/gguf_hostile"]
        .iter()
        .flat_map(|folder| fs::read_dir(root.join(folder)).expect("is in the repository"))
        .map(|entry| entry.expect("can be listed").path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).expect("can be read"))
        .filter(|bytes| bytes.len() < 8192)
        .collect()
}

/// The name of the rule.
pub(crate) fn rule(error: &GgufError) -> String {
    let debug = match error {
        GgufError::Malformed { flaw, .. } => format!("{flaw:?}"),
        other => format!("{other:?}"),
    };
    let end = debug.find(|c: char| !c.is_alphanumeric());
    debug[..end.unwrap_or(debug.len())].to_owned()
}
