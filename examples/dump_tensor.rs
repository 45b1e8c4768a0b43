//! Writes one tensor as it arrives through the executor: raw numbers, little-endian, row by row.
//!
//! ```text
//! cargo run --example dump_tensor -- model.gguf --tensor blocks.1.ffn.2.weight --dtype bf16 --out tensor.bin
//! ```
//!
//! Any sound container does, whatever its model. The tensor is streamed like a block of its own within the least
//! budget, so what is written went through upload, staging and decoding.

#[path = "support/inputs.rs"]
mod inputs;
#[path = "support/program.rs"]
mod program;

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, ValueEnum};
use offload_core::cpu::CpuDevice;
use offload_core::decode::Float;
use offload_core::device::{Device, DeviceError};
use offload_core::executor::{Arrival, ArrivalPolicy, ArrivedTensor, DeviceBudget, Offload};
use offload_core::model::{Model, PassKind, Residency};
use offload_core::swappable::TensorSpec;
use offload_core::testing::toy::ToyBlock;
use offload_cuda::CudaDevice;
use offload_wan::Checkpoint;

/// Writes one tensor as it arrives through the executor: raw numbers, little-endian, row by row.
#[derive(Debug, Parser)]
#[command(name = "dump_tensor")]
struct Arguments {
    /// The container; several files are the shards of one model.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The tensor, by its name in the file.
    #[arg(long, value_name = "NAME")]
    tensor: String,
    /// The numbers to write.
    #[arg(long, value_enum)]
    dtype: Dtype,
    /// The file to write; one that exists is replaced once all of the tensor is there.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where to decode.
    #[arg(long, value_enum, default_value_t = DeviceName::Cpu)]
    device: DeviceName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DeviceName {
    Cpu,
    Cuda,
}

impl Dtype {
    fn policy(self) -> ArrivalPolicy {
        let arrival = Arrival::Decoded(match self {
            Self::F32 => Float::F32,
            Self::F16 => Float::F16,
            Self::Bf16 => Float::BF16,
        });
        ArrivalPolicy {
            matrices: arrival,
            vectors: arrival,
        }
    }
}

fn main() -> ExitCode {
    program::run(dump)
}

fn dump(arguments: Arguments, _out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let cuda = match arguments.device {
        DeviceName::Cpu => None,
        DeviceName::Cuda => Some(CudaDevice::new(0)?),
    };
    let checkpoint = Checkpoint::open_all(&arguments.files)?;
    let tensor = &find(&checkpoint, &arguments.tensor)?;
    let policy = arguments.dtype.policy();
    if policy.arrived(tensor) == tensor.encoding()
        && Float::from_encoding(tensor.encoding()).is_none()
    {
        let (name, encoding) = (tensor.name(), tensor.encoding());
        return Err(format!("tensor {name} is {encoding}, which is not decoded").into());
    }
    inputs::refuse_inputs(&arguments.out, [&checkpoint])?;
    let bytes = match cuda {
        None => {
            let device = CpuDevice::new();
            let stream = device.inline_stream();
            stream_tensor(&device, &stream, tensor, policy, |arrived| {
                let bytes = arrived.host_bytes();
                Ok(bytes.expect("inline streams give bytes").to_vec())
            })
        }
        Some(device) => {
            let stream = device.create_stream("compute")?;
            stream_tensor(&device, &stream, tensor, policy, |arrived| {
                device.read(&stream, &arrived.view())
            })
        }
    }?;
    write(&arguments.out, &bytes)
}

/// Streams a tensor like a block of its own, and has `read` take the bytes that arrived on `stream`.
fn stream_tensor<D: Device>(
    device: &D,
    stream: &D::Stream,
    tensor: &TensorSpec,
    policy: ArrivalPolicy,
    read: impl FnOnce(&ArrivedTensor<'_, D>) -> Result<Vec<u8>, DeviceError>,
) -> Result<Vec<u8>, Box<dyn Error>> {
    let block = Arc::new(ToyBlock::new("tensor", vec![tensor.clone()]));
    let model = Model::new(vec![block])?.with_residency(0, Residency::Never)?;
    let mut offload = Offload::builder(device)
        .model(model)
        .arrival(policy)
        .remainder_below(0)
        .device_budget(DeviceBudget::Least)
        .build()?;
    let mut pass = offload.pass(PassKind::FULL, stream)?;
    pass.last();
    let lease = pass.acquire()?.expect("the model has one block");
    let arrived = lease.tensor(tensor.name())?;
    Ok(read(&arrived)?)
}

/// The tensor, with the scale that lies beside it.
fn find(checkpoint: &Checkpoint, name: &str) -> Result<TensorSpec, Box<dyn Error>> {
    let tensors = checkpoint.tensors();
    if let Some(tensor) = checkpoint.tensor(name)? {
        return Ok(tensor);
    }
    let last = name.rsplit('.').take(2).collect::<Vec<_>>();
    let is_like = |tensor: &&TensorSpec| tensor.name().rsplit('.').take(2).eq(last.iter().copied());
    let like = tensors.iter().find(is_like);
    let hint = like.map_or(String::new(), |tensor| {
        format!(", one of them {}", tensor.name())
    });
    Err(format!("there is no tensor {name} among {}{hint}", tensors.len()).into())
}

/// Writes beside the target and renames, so that a failure leaves the target as it was. What a link leads to is written,
/// not the link; pipes and devices are written to.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        let mut there = OpenOptions::new().write(true).open(path).map_err(failed)?;
        return Ok(there.write_all(bytes).map_err(failed)?);
    }
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    // As any other program would make it; temporary files are private by default.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}
