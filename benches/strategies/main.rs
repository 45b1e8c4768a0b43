//! Ways to run a model that does not fit, on the same work: the matrices of 20 blocks of a WAN 14B transformer,
//! products through cuBLAS, seeded random data.
//!
//! ```text
//! cargo bench --bench strategies -- [--json FILE] [--blocks N] [--tokens N]... [--passes N] [--rounds N]
//!     [--storage bf16|q4_k_m] [--row NAME]...
//! ```
//!
//! Each row is timed over `--passes` passes back to back, drained at both ends, so that exactly as many passes' bytes
//! are inside the clock. Rows and floors alternate for `--rounds` rounds, each round in the other order, and before each
//! the device multiplies for a second: a card that was idle is cool and faster. Medians are printed, over the overlap floor
//! that of the ratios of each round, and a row says `inconclusive` where these scatter by more than 0.2 %: a floor that drifts
//! while the card warms up takes its row along. Floors, each measured in the same rounds:
//!
//! - *wire*: the pass's bytes in bare uploads of one block each;
//! - *compute*: the same pass with everything resident;
//! - *overlap* (contended): the same products, uploads and decodes on their streams with no event between them.
//!
//! Where there is no GPU it says so and ends with status 0.

mod cublas;
mod others;
mod weights;
mod work;

use std::fs::File;
use std::path::PathBuf;

use clap::Parser;
use offload_core::executor::Costs;
use offload_core::plan::{Decoding, Form, Rates};
use offload_cuda::CudaDevice;
use serde::Serialize;

use weights::Storage;
use work::{Streamed, Work};

/// Passes over which the work of the host is counted.
const HOST_PASSES: usize = 10;

/// Passes over which the products alone are timed, at most.
const COMPUTE_PASSES: usize = 10;

/// Scatter of the rounds above which a row proves nothing.
const SCATTER: f64 = 0.002;

#[derive(Debug, Parser)]
struct Arguments {
    /// Writes the rows to a file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Blocks of the model.
    #[arg(long, default_value_t = 20)]
    blocks: usize,
    /// Tokens that are multiplied by each matrix; 0 is where the wire takes as long as the products.
    #[arg(long, default_values_t = [256, 2048, 8192, 0, 16384])]
    tokens: Vec<u64>,
    /// Passes in a measurement.
    #[arg(long, default_value_t = 10)]
    passes: usize,
    /// Measurements of each row.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How the weights are stored on the host.
    #[arg(long, value_enum, default_value = "bf16")]
    storage: Storage,
    /// Rows to measure; all if none is named.
    #[arg(long)]
    row: Vec<String>,
    /// What `cargo bench` passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
    /// Runs each row once on two blocks.
    #[arg(long)]
    test: bool,
}

/// A measured row.
#[derive(Debug, Serialize)]
struct Row {
    mode: String,
    device: String,
    storage: String,
    blocks: usize,
    tokens: u64,
    pass_s: f64,
    wire_floor_s: f64,
    compute_floor_s: f64,
    overlap_floor_s: f64,
    /// Pass over the overlap floor of the same round, the median.
    over_floor: f64,
    /// That of each round.
    over_floors: Vec<f64>,
    /// Pass over the larger of wire and compute, for the bytes that this row streams.
    over_bound: f64,
    predicted_pass_s: Option<f64>,
    host_us_per_visit: Option<f64>,
    stall_s: Option<f64>,
    peak_device_bytes: u64,
    pinned_bytes: u64,
    /// Where blocks are decoded.
    decoding: Option<Decoding>,
    streamed_blocks: usize,
    packed_blocks: usize,
    inconclusive: bool,
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    } else {
        sorted[middle]
    }
}

fn scatter(samples: &[f64]) -> f64 {
    let (least, most) = samples
        .iter()
        .fold((f64::MAX, f64::MIN), |(least, most), &sample| {
            (least.min(sample), most.max(sample))
        });
    (most - least) / median(samples)
}

/// Which part of the model stays, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Placement {
    /// None.
    Streamed,
    /// What the planner makes of memory for so many hundredths of the blocks as residents.
    Planned(u64),
    /// The same, nothing packed.
    Unpacked(u64),
    /// What the planner makes of memory for so many hundredths of the blocks in encoded form.
    Packed(u64),
    /// So many hundredths, the first ones; the tail is streamed.
    Tail(u64),
}

/// A row: its placement, and what the planner is not to choose of decoding.
type Mode = (&'static str, Placement, Decoded);

/// How blocks are decoded.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Decoded {
    /// Where, unless the planner chooses.
    decoding: Option<Decoding>,
    /// Staged as a whole, not in parts.
    whole: bool,
}

impl Decoded {
    const ANY: Self = Self {
        decoding: None,
        whole: false,
    };

    const fn only(decoding: Decoding) -> Self {
        Self {
            decoding: Some(decoding),
            whole: false,
        }
    }

    const fn whole(decoding: Decoding) -> Self {
        Self {
            decoding: Some(decoding),
            whole: true,
        }
    }
}

const ROWS: [Mode; 7] = [
    ("resident", Placement::Planned(100), Decoded::ANY),
    ("streamed", Placement::Streamed, Decoded::ANY),
    ("resident 25 %", Placement::Planned(25), Decoded::ANY),
    ("resident 50 %", Placement::Planned(50), Decoded::ANY),
    ("resident 75 %", Placement::Planned(75), Decoded::ANY),
    (
        "contiguous tail, resident 50 %",
        Placement::Tail(50),
        Decoded::ANY,
    ),
    (
        "contiguous tail, resident 75 %",
        Placement::Tail(75),
        Decoded::ANY,
    ),
];

/// Besides, where and how blocks are decoded.
const ENCODED_ROWS: [Mode; 9] = [
    (
        "streamed, ahead",
        Placement::Streamed,
        Decoded::only(Decoding::Ahead),
    ),
    (
        "streamed, at use",
        Placement::Streamed,
        Decoded::only(Decoding::AtUse),
    ),
    (
        "streamed, ahead, whole",
        Placement::Streamed,
        Decoded::whole(Decoding::Ahead),
    ),
    (
        "streamed, at use, whole",
        Placement::Streamed,
        Decoded::whole(Decoding::AtUse),
    ),
    (
        "packed, ahead",
        Placement::Packed(100),
        Decoded::only(Decoding::Ahead),
    ),
    (
        "packed, at use",
        Placement::Packed(100),
        Decoded::only(Decoding::AtUse),
    ),
    ("packed 50 %", Placement::Packed(50), Decoded::ANY),
    (
        "resident 25 %, unpacked",
        Placement::Unpacked(25),
        Decoded::ANY,
    ),
    (
        "resident 50 %, unpacked",
        Placement::Unpacked(50),
        Decoded::ANY,
    ),
];

fn main() {
    let mut arguments = Arguments::parse();
    let device = match CudaDevice::new(0) {
        Ok(device) => device,
        Err(reason) => {
            println!("strategies: nothing is measured: {reason}");
            return;
        }
    };
    if arguments.test {
        (arguments.blocks, arguments.passes, arguments.rounds) = (2, 2, 1);
        arguments.tokens = vec![256];
    }
    match measure(&arguments, &device) {
        Ok(rows) => {
            if let Some(path) = &arguments.json {
                let file = File::create(path).expect("the file can be made");
                serde_json::to_writer_pretty(file, &rows).expect("written");
            }
        }
        Err(reason) => {
            eprintln!("strategies: {reason}");
            std::process::exit(1);
        }
    }
}

fn measure(arguments: &Arguments, device: &CudaDevice) -> Result<Vec<Row>, String> {
    let work = Work::new(device, arguments.storage, arguments.blocks)?;
    let wanted =
        |name: &str| arguments.row.is_empty() || arguments.row.iter().any(|row| row == name);
    let mut rows = Vec::new();
    println!(
        "{:32} {:>6} {:>9} {:>9} {:>9} {:>9} {:>7} {:>7} {:>9} {:>7} {:>8} {:>9}",
        "mode",
        "tokens",
        "pass s",
        "wire s",
        "compute s",
        "overlap s",
        "/floor",
        "/bound",
        "predicted",
        "host us",
        "stall s",
        "device GB"
    );
    for &tokens in &arguments.tokens {
        let tokens = if tokens == 0 {
            work.crossing()?
        } else {
            tokens
        };
        let engine = work.engine(tokens)?;
        let resident = work.resident(&engine)?;
        resident.warm_up(&engine);
        let encoded: &[Mode] = match arguments.storage {
            Storage::Bf16 => &[],
            Storage::Q4KM => &ENCODED_ROWS,
        };
        let rows_of_storage = ROWS.iter().chain(encoded);
        for &(name, placement, decoded) in rows_of_storage.filter(|row| wanted(row.0)) {
            let compute_s = resident.pass_s(&engine, arguments.passes);
            let costs = costs(&work, compute_s / arguments.blocks as f64);
            let mut streamed = Streamed::new(&work, placement, decoded, costs)?;
            let streamed_blocks = streamed.blocks_of(Form::Streamed);
            let packed_blocks = streamed.blocks_of(Form::Packed);
            streamed.pass_s(&engine, 3)?;
            let (mut wire, mut compute, mut overlap, mut pass) =
                (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for round in 0..arguments.rounds {
                let passes = arguments.passes;
                for turn in [round % 2, 1 - round % 2] {
                    resident.warm_up(&engine);
                    match turn {
                        0 => overlap.push(resident.overlap_s(
                            &engine,
                            &streamed_blocks,
                            packed_blocks.len(),
                            passes,
                        )?),
                        _ => pass.push(streamed.pass_s(&engine, passes)?),
                    }
                }
                resident.warm_up(&engine);
                compute.push(resident.pass_s(&engine, passes.min(COMPUTE_PASSES)));
                wire.push(work.wire_s(&streamed_blocks, 2)?);
            }
            let over_floor: Vec<f64> = (pass.iter().zip(&overlap))
                .map(|(pass, overlap)| pass / overlap)
                .collect();
            eprintln!("  {name}: passes {pass:.5?} overlap {overlap:.5?} compute {compute:.5?}");
            let (pass_s, wire_floor_s) = (median(&pass), median(&wire));
            let (compute_floor_s, overlap_floor_s) = (median(&compute), median(&overlap));
            rows.push(Row {
                mode: name.to_owned(),
                device: work.device_name(),
                storage: format!("{:?}", arguments.storage).to_lowercase(),
                blocks: arguments.blocks,
                tokens,
                pass_s,
                wire_floor_s,
                compute_floor_s,
                overlap_floor_s,
                over_floor: median(&over_floor),
                over_bound: pass_s / wire_floor_s.max(compute_floor_s),
                predicted_pass_s: Some(streamed.predicted_pass_s()),
                host_us_per_visit: Some(streamed.host_us_per_visit(&engine, HOST_PASSES)?),
                stall_s: Some(streamed.stall_s(arguments.passes)?),
                peak_device_bytes: streamed.arena_bytes(),
                pinned_bytes: device.pinned_bytes(),
                decoding: streamed.decoding(),
                streamed_blocks: streamed_blocks.len(),
                packed_blocks: packed_blocks.len(),
                inconclusive: scatter(&over_floor) > SCATTER,
                over_floors: over_floor,
            });
            print_row(rows.last().expect("just pushed"));
        }
        for row in others::rows(&work, &engine, &resident, &wanted)? {
            print_row(&row);
            rows.push(row);
        }
    }
    Ok(rows)
}

fn print_row(row: &Row) {
    let optional = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    println!(
        "{:32} {:>6} {:>9.5} {:>9.5} {:>9.5} {:>9.5} {:>7.4} {:>7.4} {:>9} {:>7} {:>8} {:>9.3}{}",
        row.mode,
        row.tokens,
        row.pass_s,
        row.wire_floor_s,
        row.compute_floor_s,
        row.overlap_floor_s,
        row.over_floor,
        row.over_bound,
        optional(row.predicted_pass_s, 5),
        optional(row.host_us_per_visit, 2),
        optional(row.stall_s, 5),
        row.peak_device_bytes as f64 * 1e-9,
        if row.inconclusive {
            " inconclusive"
        } else {
            ""
        },
    );
}

/// What the planner is told: what was measured just now.
fn costs(work: &Work, compute_s: f64) -> Costs {
    let rates = Rates {
        wire_bytes_per_s: work.wire_rate,
        ..Costs::default().rates
    };
    Costs {
        rates,
        decode_bytes_per_s: work.decode_rate,
        compute_s: vec![vec![compute_s; work.blocks.len()]],
    }
}
