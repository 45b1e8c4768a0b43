//! Tutorial: a model of your own behind `Swappable`.
//!
//! ```text
//! cargo run --example custom_model
//! ```
//!
//! The model is a stack of layers `y = W x + b` whose weights lie in one flat file. Three things make it streamable:
//!
//! 1. *Where the bytes are.* [`Layer`] implements `Swappable`: a name, and for each tensor its shape, encoding and
//!    range of the file. Nothing is read here.
//! 2. *How it is walked.* The model has two pass kinds: every layer, and an early exit after half of them.
//! 3. *How it computes.* The engine asks a pass for one lease after another and reads the tensors by name.
//!
//! The program runs within the least budget there is and checks every result against the same computation on weights
//! that never left memory.

#[path = "support/program.rs"]
mod program;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use offload_core::cpu::CpuDevice;
use offload_core::decode::Float;
use offload_core::encoding::Encoding;
use offload_core::executor::{Arrival, ArrivalPolicy, DeviceBudget, Lease, Offload};
use offload_core::model::{Model, PassKind};
use offload_core::source::{Source, SourceFile};
use offload_core::swappable::{Swappable, TensorSpec};

const LAYERS: usize = 8;
const WIDTH: usize = 256;

/// One layer: the unit that is resident or streamed.
#[derive(Debug)]
struct Layer {
    name: String,
    tensors: Vec<TensorSpec>,
}

impl Swappable for Layer {
    fn name(&self) -> &str {
        &self.name
    }

    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }
}

/// Weights and biases of one layer, in memory.
struct Weights {
    matrix: Vec<f32>,
    bias: Vec<f32>,
}

/// A model of your own behind `Swappable`: builds one, streams it, and checks what it computes.
#[derive(Debug, Parser)]
#[command(name = "custom_model")]
struct Arguments {}

fn main() -> ExitCode {
    program::run(stream)
}

fn stream(_: Arguments, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let weights: Vec<Weights> = (0..LAYERS).map(make_weights).collect();
    let mut file = tempfile::NamedTempFile::new()?;
    for layer in &weights {
        for value in layer.matrix.iter().chain(&layer.bias) {
            file.write_all(&value.to_le_bytes())?;
        }
    }
    file.flush()?;

    // 1. Where the bytes are.
    let source = SourceFile::open(file.path())?;
    let layers = (0..LAYERS)
        .map(|index| describe(index, &source))
        .collect::<Result<_, _>>()?;

    // 2. How it is walked. `PassKind::FULL`, every block once, is always there.
    let model = Model::new(layers)?;
    let half: Vec<usize> = (0..LAYERS / 2).collect();
    let (model, early_exit) = model.with_kind("early exit", half, |_, _| true)?;

    let device = CpuDevice::new();
    let stream = device.inline_stream();
    let mut offload = Offload::builder(&device)
        .model(model)
        .device_budget(DeviceBudget::Least)
        // Stored as f32 and wanted as f32: uploaded straight into place, with nothing to decode.
        .arrival(ArrivalPolicy {
            matrices: Arrival::Decoded(Float::F32),
            vectors: Arrival::Decoded(Float::F32),
        })
        .build()?;
    writeln!(out, "{}", offload.plan())?;

    // 3. How it computes. Saying what follows lets its first layers arrive while this pass ends.
    let schedule = [PassKind::FULL, early_exit, early_exit, PassKind::FULL];
    for (number, &kind) in schedule.iter().enumerate() {
        let mut hidden = vec![1.0; WIDTH];
        let mut pass = offload.pass(kind, &stream)?;
        match schedule.get(number + 1) {
            Some(&next) => pass.then(next)?,
            None => pass.last(),
        }
        while let Some(layer) = pass.acquire()? {
            hidden = forward(
                &tensor(&layer, "weight")?,
                &tensor(&layer, "bias")?,
                &hidden,
            );
        } // the lease drops here: the layer's memory may be used for another
        drop(pass);

        let depth = if kind == early_exit {
            LAYERS / 2
        } else {
            LAYERS
        };
        let expected = (weights[..depth].iter()).fold(vec![1.0; WIDTH], |hidden, layer| {
            forward(&layer.matrix, &layer.bias, &hidden)
        });
        assert_eq!(hidden, expected, "streamed weights compute the same");
        writeln!(
            out,
            "pass {number}: {depth} layers, identical to weights in memory"
        )?;
    }
    writeln!(out, "\n{}", offload.report()?)?;
    Ok(())
}

fn make_weights(layer: usize) -> Weights {
    let value = |index: usize| ((index * 31 + layer * 17) % 255) as f32 / 255.0 - 0.5;
    Weights {
        matrix: (0..WIDTH * WIDTH).map(value).collect(),
        bias: (0..WIDTH).map(value).collect(),
    }
}

fn describe(index: usize, file: &Arc<SourceFile>) -> Result<Arc<dyn Swappable>, Box<dyn Error>> {
    let width = WIDTH as u64;
    let float = Encoding::F32.quant_block_bytes();
    let (matrix_bytes, bias_bytes) = (width * width * float, width * float);
    let start = index as u64 * (matrix_bytes + bias_bytes);
    let range = |start: u64, bytes: u64| Source::File {
        file: Arc::clone(file),
        range: start..start + bytes,
    };
    let tensors = vec![
        TensorSpec::new(
            "weight",
            [width, width],
            Encoding::F32,
            range(start, matrix_bytes),
        )?,
        TensorSpec::new(
            "bias",
            [width],
            Encoding::F32,
            range(start + matrix_bytes, bias_bytes),
        )?,
    ];
    Ok(Arc::new(Layer {
        name: format!("layers.{index}"),
        tensors,
    }))
}

/// A tensor of a leased layer. On this device, over this stream, the host may look at the bytes.
fn tensor(layer: &Lease<'_, CpuDevice>, name: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let bytes = layer
        .tensor(name)?
        .host_bytes()
        .ok_or("the stream is not inline")?;
    let quads = bytes.chunks_exact(4);
    Ok(quads
        .map(|quad| f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]))
        .collect())
}

fn forward(matrix: &[f32], bias: &[f32], input: &[f32]) -> Vec<f32> {
    let rows = matrix.chunks_exact(input.len()).zip(bias);
    let row = |(row, bias): (&[f32], &f32)| {
        let sum: f32 = row
            .iter()
            .zip(input)
            .map(|(weight, value)| weight * value)
            .sum();
        (sum / 8.0 + bias).tanh()
    };
    rows.map(row).collect()
}
