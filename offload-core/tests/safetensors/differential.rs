//! Files at random beside the reader of the format's authors: nothing opens here that it refuses, and what is refused
//! here alone has a reason on a short list.

use std::collections::{BTreeMap, BTreeSet};

use offload_core::format::safetensors::Safetensors;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use safetensors::SafeTensors;

use crate::raw::{file, open};
use crate::reading::bytes_of;

const TWICE: &str = "stands twice";

/// What this reader alone refuses, by what its error says.
const STRICTER: &[(&str, &str)] = &[
    (TWICE, "the last of several keys wins there"),
    (
        "without anything before it",
        "white space before the object",
    ),
    ("overflows 64 bits", "a dimension of 0 hides others"),
    (
        "numbers of less than a byte",
        "nothing here computes with them",
    ),
    ("tensor name", "empty, a control character, or a path"),
    ("more than 64 dimensions", "torch has no more"),
    ("deeper than 16", "128 there"),
    (
        "expected an object that describes a tensor",
        "an array of the fields in order",
    ),
    (
        "expected a dtype, a string",
        "an object of the dtype and null",
    ),
    ("expected metadata, an object", "null for no metadata"),
];

/// Sound headers and some that only the other reader takes, with the bytes of their data.
const SEEDS: &[(&str, usize)] = &[
    (
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
        8,
    ),
    (
        r#"{"__metadata__":{"format":"pt","k":"v"},"b":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},"c":{"dtype":"U8","shape":[],"data_offsets":[8,9]}}   "#,
        9,
    ),
    (
        r#"{"x":{"data_offsets":[0,0],"dtype":"F32","shape":[0,3]},"y":{"data_offsets":[0,2],"dtype":"F16","shape":[1,1]},"\u007a":{"shape":[4],"dtype":"F8_E4M3","data_offsets":[2,6],"more":[{"k":-1.5e3},null]}}"#,
        6,
    ),
    (r#"{"__metadata__":null,"a":["I64",[1],[0,8]]}"#, 8),
    (
        r#"{"a":{"dtype":{"F32":null},"shape":[1],"data_offsets":[0,4]}}"#,
        4,
    ),
    (
        r#"  {"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#,
        1,
    ),
    (
        r#"{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}"#,
        2,
    ),
    (
        r#"{"a":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
        1,
    ),
    (
        r#"{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#,
        1,
    ),
    (
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":[[[[[[[[[[[[[[[[[0]]]]]]]]]]]]]]]]]}}"#,
        1,
    ),
];

/// What is put into headers in place of something else.
const TOKENS: &[&str] = &[
    "",
    " ",
    "\n",
    ",",
    ":",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    "0",
    "1",
    "2",
    "4",
    "8",
    "-1",
    "-0",
    "1.0",
    "1e2",
    "1e999",
    "01",
    "18446744073709551615",
    "18446744073709551616",
    "4294967296",
    "null",
    "true",
    "\"a\"",
    "\"b\"",
    "\"\"",
    "\"..\"",
    "\"\\u0061\"",
    "\"\\ud800\"",
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "\"__metadata__\"",
    "\"F32\"",
    "\"U8\"",
    "\"I8\"",
    "\"F4\"",
    "\"F8_E8M0\"",
    "\"F99\"",
    "[]",
    "{}",
    "[0]",
    "[1]",
    "[0,8]",
    "[8,0]",
    "[0,1]",
    "\"k\":\"v\",",
    "\"x\":1,",
    "1,",
    "[[",
    "]]",
    "\u{feff}",
    "\u{fc}",
    "\u{0}",
    "\u{7f}",
];

/// Where tokens begin and end, roughly: at punctuation.
fn borders(text: &str) -> Vec<usize> {
    let mut borders = vec![0, text.len()];
    for (at, c) in text.char_indices() {
        if "{}[],:\"".contains(c) {
            borders.extend([at, at + 1]);
        }
    }
    borders.sort_unstable();
    borders.dedup();
    borders
}

/// Exchanges, repeats, removes or moves a piece of the header.
fn mutate(header: &str, random: &mut StdRng) -> String {
    let borders = borders(header);
    let from = random.random_range(0..borders.len());
    let span = random.random_range(0..4);
    let to = (from + span).min(borders.len() - 1);
    let (head, piece, tail) = (
        &header[..borders[from]],
        &header[borders[from]..borders[to]],
        &header[borders[to]..],
    );
    let token = TOKENS.choose(random).expect("there are tokens");
    match random.random_range(0..6) {
        0 => format!("{head}{piece}{piece}{tail}"),
        1 => format!("{head}{piece}{token}{tail}"),
        2 => format!("{piece}{head}{tail}"),
        3 => repeat_member(header, random).unwrap_or_else(|| format!("{head}{tail}")),
        _ => format!("{head}{token}{tail}"),
    }
}

/// The same with one member of the outermost object twice.
fn repeat_member(header: &str, random: &mut StdRng) -> Option<String> {
    let members: serde_json::Map<String, serde_json::Value> = serde_json::from_str(header).ok()?;
    let members: Vec<_> = members.iter().collect();
    let (key, value) = members.choose(random)?;
    let key = serde_json::to_string(key).ok()?;
    Some(header.replacen('{', &format!("{{{key}:{value},"), 1))
}

fn random_file(random: &mut StdRng) -> Vec<u8> {
    let &(seed, data_bytes) = SEEDS.choose(random).expect("there are seeds");
    let mut header = seed.to_owned();
    for _ in 0..random.random_range(0..3) {
        header = mutate(&header, random);
    }
    let data_bytes = match random.random_range(0..20) {
        0 => data_bytes + 1,
        1 => data_bytes.saturating_sub(1),
        _ => data_bytes,
    };
    let mut bytes = file(header, data_bytes);
    match random.random_range(0..20) {
        0 => bytes.truncate(random.random_range(0..=bytes.len())),
        1 => {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        2 => bytes[0] = bytes[0].wrapping_add(random.random_range(0..4)),
        _ => {}
    }
    bytes
}

fn assert_same(ours: &Safetensors, theirs: &SafeTensors<'_>) {
    let theirs: BTreeMap<_, _> = theirs.tensors().into_iter().collect();
    assert_eq!(ours.tensors().len(), theirs.len());
    for tensor in ours.tensors() {
        let other = &theirs[tensor.name()];
        let shape: Vec<_> = other.shape().iter().map(|&dim| dim as u64).collect();
        assert_eq!(tensor.shape(), shape);
        assert_eq!(tensor.encoding().name(), other.dtype().to_string());
        assert_eq!(bytes_of(tensor), other.data());
    }
}

fn reason(error: &str) -> Option<&'static str> {
    let (said, _) = STRICTER.iter().find(|(said, _)| error.contains(said))?;
    Some(said)
}

/// The file with a header in which keys stand once.
fn last_of_each_key(bytes: &[u8]) -> Vec<u8> {
    let len = u64::from_le_bytes(bytes[..8].try_into().expect("are eight"));
    let (header, data) = bytes[8..].split_at(usize::try_from(len).expect("it was read"));
    let header: serde_json::Value = serde_json::from_slice(header).expect("it was read");
    let mut replaced = file(header.to_string(), 0);
    replaced.extend(data);
    replaced
}

#[test]
fn random_files_open_here_only_if_the_authors_reader_takes_them() {
    let mut random = StdRng::seed_from_u64(0x5afe);
    let (mut both, mut neither) = (0, 0);
    let mut reasons = BTreeSet::new();
    for number in 0..4_000 {
        let bytes = random_file(&mut random);
        let shown = || String::from_utf8_lossy(&bytes).into_owned();
        match (open(&bytes), SafeTensors::deserialize(&bytes)) {
            (Ok(ours), Ok(theirs)) => {
                assert_same(&ours, &theirs);
                both += 1;
            }
            (Ok(_), Err(error)) => panic!("file {number} opens, though {error}: {}", shown()),
            (Err(_), Err(_)) => neither += 1,
            (Err(error), Ok(_)) => {
                let reason = reason(&error.to_string()).or_else(|| {
                    // A broken entry that a later one replaces there: what it leaves is sound.
                    let replaced = open(&last_of_each_key(&bytes));
                    replaced.map_or_else(|error| reason(&error.to_string()), |_| Some(TWICE))
                });
                let said = reason.unwrap_or_else(|| panic!("file {number}: {error}: {}", shown()));
                reasons.insert(said);
            }
        }
    }
    println!("both take {both}, neither {neither}; refused here alone: {reasons:?}");
    assert!(both > 400 && neither > 400, "{both} {neither}");
    // A reason that never applies does not belong on the list.
    assert_eq!(reasons.len(), STRICTER.len(), "{reasons:?}");
}
