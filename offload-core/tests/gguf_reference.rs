//! Damaged GGUF files beside the format's own reader, `gguf` of PyPI.
//!
//! `OFFLOAD_GGUF_PYTHON` names a Python that has it; without it the test says that it is skipped.
//! `OFFLOAD_REFERENCE_FILES=n` compares n files. candle's reader is compared on the same files in `fuzz/differential`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

#[path = "../../fuzz/differential/src/files.rs"]
mod files;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use offload_core::encoding::{Encoding, GgmlType};
use offload_core::format::gguf::{Gguf, GgufError};
use serde::Deserialize;

/// A tensor as the reference sees it.
#[derive(Debug, Deserialize)]
struct Tensor {
    name: String,
    shape: Vec<u64>,
    id: u32,
    begin: i128,
    bytes: i128,
    /// Its shape before the converter changed it, if the metadata tell.
    original: Option<Vec<i64>>,
}

impl Tensor {
    fn end(&self) -> i128 {
        self.begin + self.bytes
    }
}

/// The reference's answer: why it refuses, or what it read.
#[derive(Debug, Deserialize)]
struct Answer {
    refused: Option<String>,
    /// Keys of the metadata.
    #[serde(default)]
    keys: Vec<String>,
    /// Texts among its values, byte for character.
    #[serde(default)]
    texts: Vec<String>,
    /// Whether one of the texts claims to be longer.
    #[serde(default)]
    cut: bool,
    /// Truth values among them.
    #[serde(default)]
    bools: Vec<u8>,
    #[serde(default)]
    alignment: i128,
    #[serde(default)]
    data_offset: i128,
    #[serde(default)]
    tensors: Vec<Tensor>,
}

/// What both must agree on in a file that both open.
fn assert_same(ours: &Gguf, theirs: &[Tensor], file: usize) {
    assert_eq!(ours.tensors().len(), theirs.len(), "file {file}");
    for theirs in theirs {
        let ours = ours.tensor(&theirs.name).expect("both have it");
        let range = files::range(ours);
        let shapes_agree = match &theirs.original {
            Some(original) => ours
                .shape()
                .iter()
                .map(|&dim| dim as i64)
                .eq(original.iter().copied()),
            None => ours.shape() == theirs.shape,
        };
        assert!(shapes_agree, "file {file}: {ours:?}, {theirs:?}");
        let encoding = Encoding::from_ggml_id(theirs.id);
        assert_eq!(encoding, GgmlType::Known(ours.encoding()), "file {file}");
        let bytes = i128::from(range.end - range.start);
        assert_eq!(bytes, theirs.bytes, "file {file}: {ours:?}");
        assert!(
            bytes == 0 || i128::from(range.start) == theirs.begin,
            "file {file}: {ours:?}, {theirs:?}"
        );
    }
}

/// Whether what the reference read of a file bears out the rule by which offload-core refuses it. `None`: the rule is
/// none that this reader may refuse by.
fn bears_out(rule: &str, bytes: &[u8], answer: &Answer) -> Option<bool> {
    let Answer {
        alignment,
        data_offset,
        tensors,
        keys,
        texts,
        bools,
        cut,
        ..
    } = answer;
    let names = || {
        let tensors = tensors.iter().map(|tensor| &tensor.name);
        keys.iter().chain(tensors)
    };
    let originals = || {
        tensors
            .iter()
            .filter_map(|tensor| Some((tensor, tensor.original.as_ref()?)))
    };
    let len = bytes.len() as i128;
    let holding = || tensors.iter().filter(|tensor| tensor.bytes > 0);
    let shared = |a: &Tensor, b: &Tensor| a.begin < b.end() && b.begin < a.end();
    Some(match rule {
        // Data in the file, apart, aligned.
        "Overlap" => {
            let pairs = holding().enumerate();
            pairs
                .clone()
                .any(|(i, a)| pairs.clone().any(|(j, b)| i < j && shared(a, b)))
        }
        "UnalignedOffset" => {
            (tensors.iter()).any(|tensor| (tensor.begin - data_offset) % alignment != 0)
        }
        "DataTruncated" => {
            // The reference lets data begin past the end where there is none.
            tensors.iter().any(|tensor| tensor.end() > len)
        }
        // The offset wrapped in the reference's 64 bits: it lies before the data.
        "OffsetOverflow" => tensors.iter().any(|tensor| tensor.begin < *data_offset),
        // Dimensions that multiply past the limit and hide behind a 0 or a wrap of 64 bits.
        "Elements" => tensors.iter().any(|tensor| {
            let nonzero = tensor.shape.iter().filter(|&&dim| dim > 0);
            nonzero.map(|&dim| dim as f64).product::<f64>() > (1u64 << 40) as f64
        }),
        "DimensionCount" => tensors.iter().any(|tensor| tensor.shape.len() > 8),
        "Shape" => tensors
            .iter()
            .any(|tensor| match Encoding::from_ggml_id(tensor.id) {
                GgmlType::Known(encoding) => encoding.bytes_of(&tensor.shape).is_err(),
                _ => false,
            }),
        "RemovedType" | "InternalType" | "UnknownType" => tensors
            .iter()
            .any(|tensor| !matches!(Encoding::from_ggml_id(tensor.id), GgmlType::Known(_))),
        "PathName" => (tensors.iter())
            .any(|tensor| tensor.name.contains(['/', '\\', ':']) || tensor.name.contains("..")),
        "Empty" => names().any(|name| name.is_empty()),
        "Control" => {
            names().any(|name| name.contains(char::is_control))
                || texts.iter().any(|text| text.contains('\0'))
        }
        "Bool" => bools.iter().any(|&byte| byte > 1),
        "NotUtf8" => texts.iter().any(|text| {
            let bytes: Vec<u8> = text.chars().map(|c| u32::from(c) as u8).collect();
            String::from_utf8(bytes).is_err()
        }),
        // The reference takes what there is of a string.
        "Truncated" => *cut,
        "StringLength" => *cut || names().any(|name| name.len() > 255),
        "Alignment" => *alignment > 1 << 20,
        "OrigShape" => originals()
            .any(|(_, original)| original.is_empty() || original.iter().any(|&dim| dim <= 0)),
        "OrigShapeElements" => originals().any(|(tensor, original)| {
            let elements = original.iter().map(|&dim| dim as f64).product::<f64>();
            elements != tensor.shape.iter().map(|&dim| dim as f64).product::<f64>()
        }),
        // Byte order is told by the version, which the reference takes either way.
        "BigEndian" => bytes[4..6] == [0, 0],
        _ => return None,
    })
}

/// Why the reference refuses what is sound: limits of its own.
const EXPECTED: &[&str] = &[
    // It knows no Q1_0 and Q2_0.
    "is not a valid GGMLQuantizationType",
    // It keeps three fields of its own among the metadata.
    "Duplicate GGUF.",
    "it takes too long",
];

fn ask(python: &str, paths: &[PathBuf]) -> Vec<Answer> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/differential/reference.py");
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("OFFLOAD_GGUF_PYTHON names a Python");
    let mut stdin = child.stdin.take().unwrap();
    let answers = std::thread::scope(|scope| {
        scope.spawn(move || {
            for path in paths {
                writeln!(stdin, "{}", path.display()).unwrap();
            }
        });
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let answer = |line: std::io::Result<String>| serde_json::from_str(&line.unwrap()).unwrap();
        lines.map(answer).collect::<Vec<_>>()
    });
    assert!(child.wait().unwrap().success());
    assert_eq!(answers.len(), paths.len(), "an answer a file");
    answers
}

#[test]
fn the_reader_agrees_with_the_formats_own_or_says_which_rule_is_broken() {
    let Ok(python) = std::env::var("OFFLOAD_GGUF_PYTHON") else {
        println!("SKIPPED: OFFLOAD_GGUF_PYTHON names no Python with gguf 0.19.0");
        return;
    };
    let count = std::env::var("OFFLOAD_REFERENCE_FILES");
    let count = count.map_or(2000, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let inputs: Vec<_> = files::damaged(0x6667).take(count).collect();
    let mut paths = Vec::new();
    for (number, bytes) in inputs.iter().enumerate() {
        let path = folder.path().join(format!("{number}.gguf"));
        std::fs::write(&path, bytes).unwrap();
        paths.push(path);
    }
    let answers = ask(&python, &paths);
    let (mut both, mut neither) = (0, 0);
    let mut only_ours: BTreeMap<&str, u32> = BTreeMap::new();
    let mut only_theirs: BTreeMap<String, u32> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (number, answer) in answers.iter().enumerate() {
        let ours: Result<Gguf, GgufError> = files::open(&paths[number]);
        match (ours, &answer.refused) {
            (Ok(ours), None) => {
                both += 1;
                assert_same(&ours, &answer.tensors, number);
            }
            (Ok(_), Some(refused)) => {
                match EXPECTED.iter().find(|expected| refused.contains(*expected)) {
                    Some(expected) => *only_ours.entry(expected).or_default() += 1,
                    None => wrong.push(format!("file {number} opens here only: {refused}")),
                }
            }
            (Err(error), None) => {
                let rule = files::rule(&error);
                if bears_out(&rule, &inputs[number], answer) != Some(true) {
                    wrong.push(format!(
                        "file {number}: {error}, but the reference: {answer:?}"
                    ));
                }
                *only_theirs.entry(rule).or_default() += 1;
            }
            (Err(_), Some(_)) => neither += 1,
        }
    }
    println!("{count} files: {both} open in both, {neither} in neither");
    println!("only here, and what the reference says: {only_ours:#?}");
    println!("only in the reference, and the rule that is broken: {only_theirs:#?}");
    assert!(
        wrong.is_empty(),
        "{} unexpected:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(both > 0 && neither > 0 && !only_theirs.is_empty());
}
