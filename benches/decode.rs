//! Decoding on the CPU, for each encoding: one thread and all, tiles that stay in the second cache and streams that do
//! not, each checked against the definition before it is timed.
//!
//! ```text
//! cargo bench --bench decode -- [--json FILE] [--only Q4_K,Q6_K] [--ggml LIBRARY]
//! ```
//!
//! Floors of the same run stand beside the times: `copy` is `memcpy` of as many bytes in and out, `fill` is `memset` of
//! the bytes that arrive. `--ggml` names a `libggml-base` to compare with, on the same bytes and in turns:
//! `benches/ggml.sh` installs one from PyPI and passes it. Results and what came of them are in `DECODE.md`.

#![expect(unsafe_code, reason = "calling ggml, if it is asked for")]

use std::fs::File;
use std::hint::black_box;
use std::io::{BufWriter, Write};
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use libloading::{Library, Symbol};
use offload_core::decode::{Float, decode, decode_by_definition, is_supported};
use offload_core::encoding::Encoding;
use serde_json::json;

/// Numbers of a tile: half a MiB as f32, which with its encoded bytes fits a second cache of a MiB and more.
const TILE: u64 = 128 << 10;

/// Numbers of a stream: 256 MiB as f32.
const STREAM: u64 = 64 << 20;

/// Timings of which the best counts: what disturbs a run only makes it slower.
const ROUNDS: usize = 9;

/// A tile is decoded so often for one timing.
const TILE_REPEATS: u32 = 20;

#[derive(Parser)]
struct Options {
    /// Writes a JSON document for each row, one a line.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The encodings to measure; all by default.
    #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = encoding)]
    only: Vec<Encoding>,
    /// A libggml-base to compare with.
    #[arg(long, value_name = "LIBRARY")]
    ggml: Option<PathBuf>,
    /// Only checks, on few numbers.
    #[arg(long)]
    test: bool,
    /// What cargo passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn encoding(name: &str) -> Result<Encoding, String> {
    Encoding::from_name(name)
        .filter(|&encoding| is_supported(encoding))
        .ok_or_else(|| format!("{name} is no encoding that decodes"))
}

/// `dequantize_row_*`: encoded bytes, numbers, how many.
type Dequantize = unsafe extern "C" fn(*const u8, *mut f32, i64);

/// ggml's decoder of an encoding, if this version has one.
fn dequantizer(library: &Library, encoding: Encoding) -> Option<Symbol<'_, Dequantize>> {
    let name = match encoding {
        Encoding::F16 => "ggml_fp16_to_fp32_row".to_owned(),
        Encoding::BF16 => "ggml_bf16_to_fp32_row".to_owned(),
        _ => {
            // Lower case, save for the K of K-quants.
            let name = encoding.name();
            let stem = name.strip_suffix("_K");
            stem.map_or_else(
                || format!("dequantize_row_{}", name.to_lowercase()),
                |stem| format!("dequantize_row_{}_K", stem.to_lowercase()),
            )
        }
    };
    // SAFETY: functions of these names have this type in every version of ggml (ggml-quants.h, ggml.h).
    unsafe { library.get(name.as_bytes()) }.ok()
}

/// Runs `work` on each pair of pieces, on as many threads as there are pieces, and returns the seconds until all are
/// done.
fn timed(
    pieces: &mut [(&[u8], &mut [u8])],
    repeats: u32,
    work: &(dyn Fn(&[u8], &mut [u8]) + Sync),
) -> f64 {
    let run = |from: &[u8], to: &mut [u8]| {
        for _ in 0..repeats {
            work(black_box(from), black_box(to));
        }
    };
    let start = Instant::now();
    if let [(from, to)] = pieces {
        run(from, to);
    } else {
        std::thread::scope(|scope| {
            for (from, to) in pieces {
                scope.spawn(|| run(from, to));
            }
        });
    }
    start.elapsed().as_secs_f64() / f64::from(repeats)
}

fn to_usize(count: u64) -> usize {
    usize::try_from(count).expect("fits this machine's memory")
}

/// Bytes that look random, and are a valid tensor of any encoding.
fn noise(len: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(to_usize(len) + 8);
    while (bytes.len() as u64) < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(to_usize(len));
    bytes
}

fn is_nan(float: Float, number: &[u8]) -> bool {
    let (bits, infinity) = match (float, number) {
        (Float::F32, &[a, b, c, d]) => (u32::from_le_bytes([a, b, c, d]), 0x7f80_0000),
        (Float::F16, &[a, b]) => (u32::from_le_bytes([0, 0, a, b]), 0x7c00_0000),
        (_, number) => (
            u32::from_le_bytes([0, 0, number[0], number[1]]),
            0x7f80_0000,
        ),
    };
    bits & 0x7fff_ffff > infinity
}

/// Bit for bit, NaN as a class.
fn assert_same(what: &str, float: Float, got: &[u8], wanted: &[u8]) {
    let width = to_usize(float.bytes());
    let pairs = got.chunks_exact(width).zip(wanted.chunks_exact(width));
    for (number, (got, wanted)) in pairs.enumerate() {
        assert!(
            got == wanted || (is_nan(float, got) && is_nan(float, wanted)),
            "{what}: number {number} is {got:02x?}, not {wanted:02x?}"
        );
    }
}

/// The machine's memory that everything is decoded from and to.
struct Buffers {
    from: Vec<u8>,
    /// As f32, so that ggml may write here.
    to: Vec<f32>,
}

struct Row {
    encoding: Encoding,
    float: Float,
    set: &'static str,
    threads: u64,
    bytes_in: u64,
    bytes_out: u64,
    seconds: f64,
    copy_s: f64,
    fill_s: f64,
    ggml_s: Option<f64>,
}

impl Row {
    fn print(&self, json: &mut Option<BufWriter<File>>) -> std::io::Result<()> {
        let bytes = (self.bytes_in + self.bytes_out) as f64;
        let rate = |seconds: f64| bytes / seconds / 1e9;
        let ggml = self.ggml_s.map_or_else(String::new, |seconds| {
            format!("{:7.2}  x{:.2}", rate(seconds), seconds / self.seconds)
        });
        println!(
            "{:8} {:4} {:6} {:2} {:7.2} {:7.2} {:7.2} {ggml}",
            self.encoding.name(),
            self.float.encoding().name(),
            self.set,
            self.threads,
            rate(self.seconds),
            rate(self.copy_s),
            self.bytes_out as f64 / self.fill_s / 1e9,
        );
        if let Some(json) = json {
            let row = json!({
                "encoding": self.encoding.name(),
                "arrived": self.float.encoding().name(),
                "set": self.set,
                "threads": self.threads,
                "bytes_in": self.bytes_in,
                "bytes_out": self.bytes_out,
                "seconds": self.seconds,
                "copy_s": self.copy_s,
                "fill_s": self.fill_s,
                "ggml_s": self.ggml_s,
            });
            writeln!(json, "{row}")?;
        }
        Ok(())
    }
}

fn check(buffers: &mut Buffers, encoding: Encoding, float: Float, ggml: Option<Dequantize>) {
    let bytes_in = to_usize(TILE / encoding.quant_block_len() * encoding.quant_block_bytes());
    let bytes_out = to_usize(TILE * float.bytes());
    let from = &buffers.from[..bytes_in];
    let mut wanted = vec![0; bytes_out];
    decode_by_definition(encoding, from, float, &mut wanted).expect("supported");
    let to = &mut bytemuck::cast_slice_mut(&mut buffers.to)[..bytes_out];
    to.fill(0xaa);
    decode(encoding, from, float, to).expect("supported");
    assert_same(&format!("{encoding} to {float}"), float, to, &wanted);
    if let (Some(ggml), Float::F32) = (ggml, float) {
        to.fill(0xaa);
        // SAFETY: `from` holds the quant blocks of `TILE` numbers, and `to` has room for these.
        unsafe { ggml(from.as_ptr(), to.as_mut_ptr().cast(), TILE as i64) };
        assert_same(&format!("{encoding} by ggml"), float, to, &wanted);
    }
}

/// Measures one row. Everything runs in turns, so that what disturbs one disturbs all.
fn measure(
    buffers: &mut Buffers,
    (encoding, float): (Encoding, Float),
    set: &'static str,
    threads: u64,
    ggml: Option<Dequantize>,
) -> Row {
    // Each thread has a tile of its own, or its part of the stream.
    let (numbers, repeats) = match set {
        "tile" => (TILE, TILE_REPEATS),
        _ => (STREAM / threads / TILE * TILE, 1),
    };
    let bytes_in = numbers / encoding.quant_block_len() * encoding.quant_block_bytes();
    let bytes_out = numbers * float.bytes();
    let (piece_in, piece_out) = (to_usize(bytes_in), to_usize(bytes_out));
    let count = to_usize(threads);
    let copied = (piece_in + piece_out) / 2;
    let mut best = [f64::INFINITY; 4];
    for _ in 0..ROUNDS {
        for (kind, best) in best.iter_mut().enumerate() {
            let mut pieces = Vec::new();
            // A copy moves as many bytes in all, half of them in and half of them out.
            let (piece_in, piece_out) = match kind {
                1 => (copied, copied),
                _ => (piece_in, piece_out),
            };
            let to: &mut [u8] = bytemuck::cast_slice_mut(&mut buffers.to);
            for (from, to) in (buffers.from.chunks_exact(piece_in))
                .zip(to.chunks_exact_mut(piece_out))
                .take(count)
            {
                pieces.push((from, to));
            }
            assert_eq!(pieces.len(), count, "buffers hold every piece");
            let seconds = match kind {
                0 => timed(&mut pieces, repeats, &|from, to| {
                    decode(encoding, from, float, to).expect("supported");
                }),
                1 => timed(&mut pieces, repeats, &|from, to| to.copy_from_slice(from)),
                2 => timed(&mut pieces, repeats, &|_, to| to.fill(0x55)),
                _ => match ggml {
                    // SAFETY: `from` holds the quant blocks of `numbers` numbers, and `to` has room for these.
                    Some(ggml) => timed(&mut pieces, repeats, &|from, to| unsafe {
                        ggml(from.as_ptr(), to.as_mut_ptr().cast(), numbers as i64);
                    }),
                    None => f64::INFINITY,
                },
            };
            *best = best.min(seconds);
        }
    }
    let [seconds, copy_s, fill_s, ggml_s] = best;
    Row {
        encoding,
        float,
        set,
        threads,
        bytes_in: bytes_in * threads,
        bytes_out: bytes_out * threads,
        seconds,
        copy_s,
        fill_s,
        ggml_s: ggml_s.is_finite().then_some(ggml_s),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let mut json = match &options.json {
        Some(path) => Some(BufWriter::new(File::create(path)?)),
        None => None,
    };
    let library = match &options.ggml {
        // SAFETY: the caller names a library to run; ggml's initialisers touch nothing of ours.
        Some(path) => Some(unsafe { Library::new(path) }?),
        None => None,
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let numbers = if options.test { TILE } else { STREAM };
    let mut buffers = Buffers {
        // A double has as many bytes as any number is encoded in.
        from: noise(numbers.max(TILE * threads) * 8),
        to: vec![1.0; to_usize(numbers.max(TILE * threads) * 2)],
    };
    if !options.test {
        println!("GB/s of bytes in and out, the best of {ROUNDS}; `fill` of bytes out");
        println!("encoding to   set threads decode    copy    fill    ggml");
    }
    for &encoding in Encoding::ALL {
        if !is_supported(encoding) || !(options.only.is_empty() || options.only.contains(&encoding))
        {
            continue;
        }
        let ggml = (library.as_ref()).and_then(|library| dequantizer(library, encoding));
        let ggml = ggml.map(|symbol| *symbol);
        for float in [Float::F32, Float::F16, Float::BF16] {
            check(&mut buffers, encoding, float, ggml);
            if options.test {
                continue;
            }
            let ggml = ggml.filter(|_| float == Float::F32);
            for set in ["tile", "stream"] {
                for threads in if threads > 1 {
                    vec![1, threads]
                } else {
                    vec![1]
                } {
                    measure(&mut buffers, (encoding, float), set, threads, ggml)
                        .print(&mut json)?;
                }
            }
        }
    }
    if let Some(json) = &mut json {
        json.flush()?;
    }
    if options.test {
        println!("every encoding that was asked for equals its definition");
    }
    Ok(())
}
