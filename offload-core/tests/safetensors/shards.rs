//! Models in shards: the index and its files must agree.

use std::fs;
use std::path::{Path, PathBuf};

use offload_core::format::safetensors::{Safetensors, SafetensorsError};
use offload_core::swappable::TensorSpec;
use tempfile::TempDir;

use crate::raw::{file, tensor};
use crate::reading::bytes_of;

const INDEX: &str = "model.safetensors.index.json";

/// A folder of two shards, `a` and `b` in `one`, `c` in `two`, each byte a number of its own.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let one = format!(
        r#"{{"__metadata__":{{"format":"pt","part":"1"}},{},{}}}"#,
        tensor("a", "U8", &[2], 0, 2),
        tensor("b", "U8", &[1], 2, 3)
    );
    let two = format!(
        r#"{{"__metadata__":{{"part":"2","more":"x"}},{}}}"#,
        tensor("c", "U8", &[4], 0, 4)
    );
    fs::write(folder.path().join("one"), file(one, 3)).unwrap();
    fs::write(folder.path().join("two"), file(two, 4)).unwrap();
    folder
}

fn with_index(folder: &TempDir, index: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(INDEX);
    fs::write(&path, index).unwrap();
    path
}

fn map(entries: &[(&str, &str)]) -> String {
    let entries: Vec<_> = entries
        .iter()
        .map(|(name, shard)| format!(r#""{name}":"{shard}""#))
        .collect();
    format!(
        r#"{{"metadata":{{"total_size":7}},"weight_map":{{{}}}}}"#,
        entries.join(",")
    )
}

const WHOLE: &[(&str, &str)] = &[("c", "two"), ("a", "one"), ("b", "one")];

#[track_caller]
fn refusal(path: &Path) -> String {
    let error = Safetensors::open(path)
        .expect_err("is not sound")
        .to_string();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(error.contains(name), "{error}");
    error
}

#[test]
fn an_index_opens_all_its_shards() {
    let folder = folder();
    let path = with_index(&folder, map(WHOLE));
    let opened = Safetensors::open(&path).unwrap();
    let names: Vec<_> = opened.tensors().iter().map(TensorSpec::name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let files: Vec<_> = opened
        .files()
        .iter()
        .map(|file| file.path().file_name().unwrap().to_owned())
        .collect();
    assert_eq!(files, ["one", "two"]);
    assert_eq!(bytes_of(opened.tensor("b").unwrap()), [2]);
    assert_eq!(bytes_of(opened.tensor("c").unwrap()), [0, 1, 2, 3]);
    assert_eq!(opened.metadata("part"), Some("1"));
    assert_eq!(opened.metadata("more"), Some("x"));
    // A shard alone is a file like any other.
    assert_eq!(
        Safetensors::open(folder.path().join("one"))
            .unwrap()
            .tensors()
            .len(),
        2
    );
}

#[test]
fn an_index_of_nothing_is_an_empty_model() {
    let folder = folder();
    let path = with_index(&folder, r#"{"weight_map":{}}"#);
    let opened = Safetensors::open(&path).unwrap();
    assert!(opened.tensors().is_empty() && opened.files().is_empty());
}

#[test]
fn an_index_is_known_by_its_content() {
    let folder = folder();
    let path = folder.path().join("weights.safetensors");
    fs::write(&path, map(WHOLE)).unwrap();
    assert_eq!(Safetensors::open(&path).unwrap().tensors().len(), 3);
    // A header of 123 bytes begins with '{' as well.
    let padded = format!("{:123}", format!("{{{}}}", tensor("a", "U8", &[1], 0, 1)));
    let path = folder.path().join("model.json");
    fs::write(&path, file(padded, 1)).unwrap();
    assert_eq!(Safetensors::open(&path).unwrap().tensors().len(), 1);
}

#[test]
fn shards_lie_beside_the_index_and_nowhere_else() {
    let folder = folder();
    for bad in [
        "",
        ".",
        "..",
        "../one",
        "..\\\\one",
        "/etc/passwd",
        "sub/one",
        "./one",
        "one/",
        "C:one",
        "C:\\\\one",
        "\\\\\\\\server\\\\one",
        "one:stream",
        "one\\u0000",
        "one\\n",
        "\\u002e./one",
    ] {
        let path = with_index(&folder, map(&[("a", bad)]));
        let error = refusal(&path);
        assert!(error.contains("shard name"), "{bad}: {error}");
    }
    let long = "n".repeat(256);
    let path = with_index(&folder, map(&[("a", &long)]));
    assert!(refusal(&path).contains("a shard name of 256 bytes, at most 255"));
}

#[test]
fn shards_that_are_not_there_are_named() {
    let folder = folder();
    fs::remove_file(folder.path().join("one")).unwrap();
    let path = with_index(&folder, map(WHOLE));
    assert!(refusal(&path).contains("lacks 1 shard that it names: one"));
    let many: Vec<_> = (0..20)
        .map(|i| (format!("t{i}"), format!("s{i:02}")))
        .collect();
    let many: Vec<_> = many.iter().map(|(t, s)| (&**t, &**s)).collect();
    let path = with_index(&folder, map(&many));
    let error = Safetensors::open(&path).unwrap_err();
    let line = error.to_string();
    assert!(
        line.contains("lacks 20 shards") && line.ends_with("s06, s07, ..."),
        "{line}"
    );
    assert!(matches!(error, SafetensorsError::MissingShards { shards, .. } if shards.len() == 20));
}

#[test]
fn index_and_shards_hold_each_other_to_account() {
    let folder = folder();
    for (entries, wanted) in [
        (
            &[("a", "one"), ("b", "one"), ("c", "two"), ("d", "two")][..],
            "has tensor d in two, which lacks it",
        ),
        (
            &[("a", "one"), ("c", "two")],
            "lacks tensor b, which is in one",
        ),
        (
            &[("a", "one"), ("b", "two"), ("c", "two")],
            "has tensor b in two, which lacks it",
        ),
        (
            &[("a", "one"), ("b", "one"), ("c", "one")],
            "has tensor c in one, which lacks it",
        ),
        (
            &[("__metadata__", "one"), ("a", "one"), ("b", "one")],
            "has tensor __metadata__ in one",
        ),
    ] {
        let error = refusal(&with_index(&folder, map(entries)));
        assert!(error.contains(wanted), "{error}");
    }
    fs::copy(folder.path().join("one"), folder.path().join("three")).unwrap();
    let twice = &[("a", "one"), ("b", "three"), ("c", "two")];
    let error = refusal(&with_index(&folder, map(twice)));
    assert!(error.contains("tensor a is in one and in three"), "{error}");
}

#[test]
fn a_broken_shard_is_named() {
    let folder = folder();
    let path = with_index(&folder, map(WHOLE));
    fs::write(folder.path().join("two"), file("{}", 1)).unwrap();
    let error = Safetensors::open(&path).unwrap_err().to_string();
    assert!(error.contains("two goes on to byte 11"), "{error}");
    // An index among the shards is no shard.
    fs::write(folder.path().join("two"), map(WHOLE)).unwrap();
    let error = Safetensors::open(&path).unwrap_err().to_string();
    assert!(error.contains("two has a header of"), "{error}");
    fs::remove_file(folder.path().join("two")).unwrap();
    fs::create_dir(folder.path().join("two")).unwrap();
    assert!(Safetensors::open(&path).is_err());
}

/// Texts that are no index, and what is found.
const NOT_AN_INDEX: &[(&str, &str)] = &[
    ("{", "byte 1: expected a key, found the end"),
    ("{}", "the json has no weight_map"),
    (r#"{"a":1}"#, "the json has no weight_map"),
    (
        r#"{"metadata":{"weight_map":{}}}"#,
        "the json has no weight_map",
    ),
    (r#"{"weight_map":{}"#, "found the end"),
    (r#"{"weight_map":{}} x"#, "expected the end, found 'x'"),
    (r#"{"weight_map":[]}"#, "expected a weight_map, an object"),
    (r#"{"weight_map":null}"#, "expected a weight_map, an object"),
    (
        r#"{"weight_map":{"a":1}}"#,
        "expected a file's name, a string",
    ),
    (
        r#"{"weight_map":{"a":["one"]}}"#,
        "expected a file's name, a string",
    ),
    (
        r#"{"weight_map":{"a":"one","a":"one"}}"#,
        "tensor a stands twice",
    ),
    (
        r#"{"weight_map":{"a":"one","\u0061":"two"}}"#,
        "tensor a stands twice",
    ),
    (
        r#"{"weight_map":{},"weight_map":{}}"#,
        r#"key "weight_map" stands twice in the index"#,
    ),
    (
        r#"{"x":1,"x":2,"weight_map":{}}"#,
        r#"key "x" stands twice in the index"#,
    ),
    (
        r#"{"metadata":{"total_size":1,"total_size":2},"weight_map":{}}"#,
        r#"key "total_size" stands twice in an object"#,
    ),
    (
        r#"{"weight_map":{"../a":"one"}}"#,
        "tensor name \"../a\" reads as a path",
    ),
    (r#"{"weight_map":{"":"one"}}"#, "an empty tensor name"),
];

#[test]
fn json_that_is_no_index_is_refused() {
    let folder = folder();
    for (text, wanted) in NOT_AN_INDEX {
        let error = refusal(&with_index(&folder, text));
        assert!(error.contains(wanted), "{text}: {error}");
    }
    let deep = format!(r#"{{"metadata":{}"#, "[".repeat(1_000_000));
    assert!(refusal(&with_index(&folder, deep)).contains("deeper than 16"));
    assert!(
        refusal(&with_index(&folder, b"{\"weight_map\xff"))
            .contains("byte 12: the index is not utf-8")
    );
}

#[cfg(unix)]
#[test]
fn links_lead_to_shards_but_their_folder_is_the_link_s() {
    use std::os::unix::fs::symlink;
    // As download caches have it: blobs under hashes, links under the names.
    let blobs = folder();
    fs::write(blobs.path().join("index"), map(WHOLE)).unwrap();
    let snapshot = tempfile::tempdir().unwrap();
    symlink(blobs.path().join("index"), snapshot.path().join(INDEX)).unwrap();
    let error = Safetensors::open(snapshot.path().join(INDEX)).unwrap_err();
    assert!(
        error.to_string().contains("lacks 2 shards that it names"),
        "{error}"
    );
    for shard in ["one", "two"] {
        symlink(blobs.path().join(shard), snapshot.path().join(shard)).unwrap();
    }
    let opened = Safetensors::open(snapshot.path().join(INDEX)).unwrap();
    assert_eq!(opened.tensors().len(), 3);
}
