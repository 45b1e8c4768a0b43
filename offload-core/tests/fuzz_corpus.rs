//! The fuzz targets' bodies on their seeds, and on every input that once broke something: no fuzzer is needed.

#[path = "../../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;

/// Runs a target on every file of the folders, whole, and cut short at a few places.
fn replay(target: fn(&[u8]), folders: &[&str]) {
    let mut count = 0;
    for folder in folders {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        for entry in fs::read_dir(&folder).expect("the folder is in the repository") {
            let path = entry.expect("can be listed").path();
            println!("{}", path.display());
            let input = fs::read(&path).expect("can be read");
            target(&input);
            for part in 1..8 {
                target(&input[..input.len() * part / 8]);
            }
            count += 1;
        }
    }
    assert!(count > 4, "{count} seeds");
}

#[test]
fn gguf_seeds_are_refused_or_sound() {
    replay(
        targets::gguf,
        &["../fuzz/seeds/gguf", "tests/data/gguf_hostile"],
    );
}

#[test]
fn safetensors_seeds_are_refused_or_sound() {
    replay(targets::safetensors, &["../fuzz/seeds/safetensors"]);
}

#[test]
fn index_seeds_are_refused_or_sound() {
    replay(targets::index, &["../fuzz/seeds/index"]);
}

#[test]
fn plan_seeds_are_refused_or_sound() {
    replay(targets::plan, &["../fuzz/seeds/plan"]);
}
