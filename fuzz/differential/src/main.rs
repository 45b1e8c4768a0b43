//! GGUF files at random beside candle's reader.
//!
//! Counts, for each file that only one of the two takes, why the other refuses it; fails if this reader takes one that
//! candle refuses for a reason that is not expected, or if the two read different tensors from a file that both take.

mod files;

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

use candle_core::Device;
use candle_core::quantized::gguf_file::Content;
use offload_core::format::gguf::GgufError;

/// Why candle refuses what is sound: limits of its own.
const EXPECTED: &[&str] = &[
    "dimensions, max is 4",
    "unknown dtype for tensor",
    // It quantises no scalars and reads tensors of no elements as torn ones.
    "is not divisible by the block size",
];

/// What candle says when it panics.
const PANIC: &str = "panic";

/// A tensor: name, shape, absolute offset.
type Tensors = BTreeMap<String, (Vec<u64>, u64)>;

fn ours(path: &Path) -> Result<(Tensors, bool), GgufError> {
    let opened = files::open(path)?;
    let mut reshaped = false;
    let tensors = opened
        .tensors()
        .iter()
        .map(|tensor| {
            let begin = files::range(tensor).start;
            let encoding = tensor.encoding();
            reshaped |= encoding.bytes_of(tensor.shape()) != Ok(tensor.source().len());
            (tensor.name().to_owned(), (tensor.shape().to_vec(), begin))
        })
        .collect();
    Ok((tensors, reshaped))
}

fn candle(bytes: &[u8]) -> Result<Tensors, String> {
    let read = || -> candle_core::Result<Tensors> {
        let mut reader = Cursor::new(bytes);
        let content = Content::read(&mut reader)?;
        let mut tensors = Tensors::new();
        for (name, info) in &content.tensor_infos {
            content.tensor(&mut reader, name, &Device::Cpu)?;
            let shape = info.shape.dims().iter().map(|&dim| dim as u64).collect();
            tensors.insert(
                name.clone(),
                (shape, content.tensor_data_offset + info.offset),
            );
        }
        Ok(tensors)
    };
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(PANIC.to_owned()),
    }
}

/// The error without what differs from file to file.
fn kind(error: &str) -> String {
    let words: Vec<_> = error
        .split_whitespace()
        .filter(|word| !word.chars().any(|c| c.is_ascii_digit()) && !word.starts_with('\''))
        .take(8)
        .collect();
    words.join(" ")
}

fn main() -> ExitCode {
    let count = std::env::args()
        .nth(1)
        .map_or(2_000, |text| text.parse().expect("a number of files"));
    std::panic::set_hook(Box::new(|_| {}));
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("file.gguf");
    let (mut both, mut neither, mut panics, mut wrong) = (0, 0, 0, 0);
    let mut only_ours: BTreeMap<String, u32> = BTreeMap::new();
    let mut only_candle: BTreeMap<String, u32> = BTreeMap::new();
    for (number, bytes) in files::damaged(0x6667).take(count).enumerate() {
        fs::write(&path, &bytes).expect("can be written");
        match (ours(&path), candle(&bytes)) {
            (Ok((ours, reshaped)), Ok(candle)) => {
                both += 1;
                let same = ours.len() == candle.len()
                    && ours.iter().all(|(name, (shape, begin))| {
                        candle.get(name).is_some_and(|other| {
                            (reshaped || *shape == other.0)
                                && (*begin == other.1 || shape.contains(&0))
                        })
                    });
                if !same {
                    wrong += 1;
                    println!("file {number} differs:\n  {ours:?}\n  {candle:?}");
                }
            }
            (Ok(_), Err(error)) => {
                if !EXPECTED.iter().any(|expected| error.contains(expected)) {
                    wrong += 1;
                    println!("file {number} opens here only, candle: {error}");
                }
                *only_ours.entry(kind(&error)).or_default() += 1;
            }
            (Err(error), Ok(_)) => {
                *only_candle.entry(files::rule(&error)).or_default() += 1;
            }
            (Err(_), Err(said)) => {
                neither += 1;
                panics += u32::from(said == PANIC);
            }
        }
    }
    println!("{count} files: {both} open in both, {neither} in neither; candle panics on {panics}");
    println!("only here, and what candle says:");
    for (error, count) in &only_ours {
        println!("  {count:>5}  {error}");
    }
    println!("only in candle, and the rule that is broken:");
    for (rule, count) in &only_candle {
        println!("  {count:>5}  {rule}");
    }
    if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        println!("{wrong} unexpected");
        ExitCode::FAILURE
    }
}
