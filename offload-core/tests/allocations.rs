//! What decoding and reading headers allocate, counted by the allocator.

#![expect(unsafe_code, reason = "an allocator that counts is an unsafe trait")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod raw_gguf;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;

use offload_core::decode::{Float, decode, is_supported};
use offload_core::encoding::Encoding;
use offload_core::format::gguf::Gguf;
use offload_core::format::safetensors::Safetensors;
use raw_gguf::{Raw, STRING, entry, string, tensor};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it came; the counters are plain thread-local cells, which neither
// allocate nor run code when the thread ends.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        LIVE.set(LIVE.get() + layout.size() as i64);
        PEAK.set(PEAK.get().max(LIVE.get()));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get() - layout.size() as i64);
        // SAFETY: `pointer` came from `alloc` above with this layout, by the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Allocations of `work` and the most bytes that were live at once.
fn measured<T>(work: impl FnOnce() -> T) -> (T, u64, i64) {
    let (count, live) = (COUNT.get(), LIVE.get());
    PEAK.set(live);
    let result = work();
    (result, COUNT.get() - count, PEAK.get() - live)
}

#[test]
fn decoding_allocates_nothing() {
    for &encoding in Encoding::ALL.iter().filter(|&&e| is_supported(e)) {
        let encoded = vec![0x35; 40 * usize::try_from(encoding.quant_block_bytes()).unwrap()];
        for target in [Float::F32, Float::F16, Float::BF16] {
            let bytes = 40 * encoding.quant_block_len() * target.bytes();
            let mut arrived = vec![0; usize::try_from(bytes).unwrap()];
            let (result, count, _) = measured(|| decode(encoding, &encoded, target, &mut arrived));
            result.unwrap();
            assert_eq!(count, 0, "{encoding} to {target}");
        }
    }
}

/// A window, and a small multiple of the file for what is kept of it.
fn assert_bounded(name: &str, path: &Path) {
    let file_bytes = fs::metadata(path).unwrap().len() as i64;
    let (result, _, peak) = measured(|| Gguf::open(path));
    let limit = 64 * 1024 + 4096 + 16 * file_bytes;
    assert!(
        peak <= limit,
        "{name}: {peak} bytes for {file_bytes}: {result:?}"
    );
}

#[test]
fn no_header_makes_the_reader_allocate_more_than_a_small_multiple_of_the_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gguf_hostile");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        assert_bounded(&path.display().to_string(), &path);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.gguf");
    // As many entries as a file can hold: scalars, empty strings, tensors of the shortest names.
    let entries = 20_000u32;
    let keys = Raw {
        metadata: (0..entries)
            .map(|i| entry(format!("{i:x}"), STRING, string("")))
            .collect(),
        ..Raw::default()
    };
    fs::write(&path, keys.bytes()).unwrap();
    assert_bounded("keys", &path);
    let tensors = Raw {
        tensors: (0..entries)
            .map(|i| tensor(format!("{i:x}"), &[], 24, 0))
            .collect(),
        ..Raw::default()
    };
    fs::write(&path, tensors.bytes()).unwrap();
    assert_bounded("tensors", &path);
    let empty = Raw {
        tensors: (0..entries)
            .map(|i| tensor(format!("{i:x}"), &[0], 24, 0))
            .collect(),
        ..Raw::default()
    };
    fs::write(&path, empty.bytes()).unwrap();
    assert!(Gguf::open(&path).is_ok());
    assert_bounded("empty tensors", &path);
}

/// As many entries as a file can hold of each kind, sound or not.
#[test]
fn no_safetensors_header_allocates_more_than_a_small_multiple_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let entries = 20_000u32;
    let members = |member: &dyn Fn(u32) -> String| {
        let members: Vec<_> = (0..entries).map(member).collect();
        members.join(",")
    };
    let empty = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    let tensor = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]"#;
    for (name, header) in [
        ("tensors", members(&|i| format!(r#""{i:x}":{empty}"#))),
        ("escaped", members(&|i| format!(r#""\u0061{i:x}":{empty}"#))),
        (
            "metadata",
            format!(
                r#""__metadata__":{{{}}}"#,
                members(&|i| format!(r#""{i:x}":"""#))
            ),
        ),
        (
            "fields",
            format!(
                r#""a":{tensor},{}}}"#,
                members(&|i| format!(r#""{i:x}":0"#))
            ),
        ),
        (
            "unknown",
            format!(
                r#""a":{tensor},"x":{{{}}}}}"#,
                members(&|i| format!(r#""{i:x}":0"#))
            ),
        ),
        (
            "shape",
            format!(r#""a":{{"shape":[{}]}}"#, members(&|_| "1".to_owned())),
        ),
        ("deep", format!(r#""a":{{"x":{}"#, "[".repeat(100_000))),
        ("long", format!(r#""{}""#, "\\n".repeat(100_000))),
    ] {
        let header = format!("{{{header}}}");
        let length = (header.len() as u64).to_le_bytes();
        let path = folder.path().join(name);
        fs::write(&path, [&length, header.as_bytes()].concat()).unwrap();
        assert_bounded_safetensors(name, &path);
    }
    for (name, shard) in [("one shard", 0), ("many shards", 1)] {
        let map = members(&|i| format!(r#""{i:x}":"{:x}""#, i * shard));
        let path = folder.path().join(name);
        fs::write(&path, format!(r#"{{"weight_map":{{{map}}}}}"#)).unwrap();
        assert_bounded_safetensors(name, &path);
    }
}

fn assert_bounded_safetensors(name: &str, path: &Path) {
    let (result, _, peak) = measured(|| Safetensors::open(path));
    let file_bytes = fs::metadata(path).unwrap().len() as i64;
    let limit = 4096 + 16 * file_bytes;
    assert!(
        peak <= limit,
        "{name}: {peak} bytes for {file_bytes}: {:?}",
        result.map_err(|error| error.to_string())
    );
}
