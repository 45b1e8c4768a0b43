//! The work and its floors, and the same work through the executor.

#![expect(unsafe_code, reason = "multiplies at addresses")]

use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use offload_core::device::{DecodeEntry, DecodeTable, Device, DeviceError};
use offload_core::encoding::Encoding;
use offload_core::executor::{Costs, DeviceBudget, Offload, OffloadError, Settings};
use offload_core::model::{Model, PassKind, Residency};
use offload_core::plan::{Decoding, Form, Place, VisitPlan};
use offload_core::source::Source;
use offload_cuda::{CudaArena, CudaDevice, CudaPinned, CudaProgram, CudaStream};

use crate::cublas::CuBlas;
use crate::weights::{self, MATRICES, Storage};
use crate::{Decoded, Placement};

/// Places for streamed blocks besides what is resident.
const PLACES: u64 = 3;

/// Staging through which residents are loaded.
const LOADING_BYTES: u64 = 4 << 20;

/// How long the device multiplies before something is measured.
const WARM_UP: Duration = Duration::from_secs(1);

/// Two tokens counts between which the time of the products is taken as linear.
const CROSSING: [u64; 2] = [8192, 16384];

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The weights, on the host and where the floors put them.
pub(crate) struct Work {
    pub(crate) device: CudaDevice,
    pub(crate) storage: Storage,
    pub(crate) blocks: Vec<Bytes>,
    pinned: Vec<CudaPinned>,
    pub(crate) stream: CudaStream,
    upload: CudaStream,
    decode: CudaStream,
    /// Where floors bring a block: its image, then its arrived form.
    landing: CudaArena,
    program: CudaProgram,
    pub(crate) wire_rate: f64,
    pub(crate) decode_rate: f64,
}

fn offsets(bytes: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
    let mut start = 0u64;
    bytes
        .map(|bytes| {
            let range = start..start + bytes;
            start = range.end.next_multiple_of(256);
            range
        })
        .collect()
}

fn arrived_bytes(matrix: usize) -> u64 {
    let (outputs, inputs, _) = MATRICES[matrix];
    outputs * inputs * 2
}

impl Work {
    pub(crate) fn new(device: &CudaDevice, storage: Storage, count: usize) -> Result<Self, String> {
        let begin = Instant::now();
        let blocks = weights::blocks(device, storage, count).map_err(text)?;
        let bytes = storage.block_bytes() * count as u64;
        eprintln!(
            "{count} blocks of {storage:?}, {:.2} GB, page-locked in {:.1} s",
            bytes as f64 * 1e-9,
            begin.elapsed().as_secs_f64()
        );
        let pin = |bytes: &Bytes| device.pin(&Source::from(bytes.clone()));
        let pinned = blocks
            .iter()
            .map(|bytes| {
                let pinned = pin(bytes).map_err(text)?.pinned();
                pinned.ok_or_else(|| "memory of the device is pinned".to_owned())
            })
            .collect::<Result<Vec<_>, String>>()?;
        let image_bytes = storage.block_bytes().next_multiple_of(256);
        let arrived = offsets((0..MATRICES.len()).map(arrived_bytes));
        let arrived_len = arrived.last().expect("there are matrices").end;
        let landing = device
            .allocate_arena(image_bytes + arrived_len)
            .map_err(text)?;
        let mut entries = Vec::new();
        if storage != Storage::Bf16 {
            let mut at = 0;
            for (matrix, place) in arrived.iter().enumerate() {
                let (outputs, inputs, _) = MATRICES[matrix];
                let encoding = storage.encoding(matrix);
                let bytes = encoding.bytes_of(&[outputs, inputs]).map_err(text)?;
                entries.push(DecodeEntry {
                    encoding,
                    arrived: Encoding::BF16,
                    scale: None,
                    encoded: Place { offset: at, bytes },
                    place: Place {
                        offset: image_bytes + place.start,
                        bytes: place.end - place.start,
                    },
                });
                at += bytes;
            }
        }
        let table = DecodeTable {
            entries,
            staging: None,
        };
        let program = device.prepare(&landing, &[table]).map_err(text)?;
        let stream = |name| device.create_stream(name).map_err(text);
        let mut work = Self {
            device: device.clone(),
            storage,
            blocks,
            pinned,
            stream: stream("compute")?,
            upload: stream("upload")?,
            decode: stream("decode")?,
            landing,
            program,
            wire_rate: 1.0,
            decode_rate: 1.0,
        };
        let all: Vec<usize> = (0..count).collect();
        work.wire_s(&all, 1)?;
        work.wire_rate = bytes as f64 / work.wire_s(&all, 3)?;
        if storage == Storage::Bf16 {
            work.decode_rate = Costs::default().decode_bytes_per_s;
        } else {
            let decode_s = work.decode_s(&all)?;
            work.decode_rate = (bytes + arrived_len * count as u64) as f64 / decode_s;
        }
        eprintln!(
            "wire {:.2} GB/s, decode {:.0} GB/s",
            work.wire_rate * 1e-9,
            work.decode_rate * 1e-9
        );
        Ok(work)
    }

    pub(crate) fn device_name(&self) -> String {
        self.device.name()
    }

    fn upload_block(&self, block: usize) -> Result<(), DeviceError> {
        let len = self.blocks[block].len();
        self.device
            .upload_pinned(&self.upload, &self.landing, 0, &self.pinned[block], 0..len)
    }

    /// Seconds of uploading these blocks, of `passes` passes.
    pub(crate) fn wire_s(&self, blocks: &[usize], passes: usize) -> Result<f64, String> {
        self.drain()?;
        let begin = Instant::now();
        for _ in 0..passes {
            for &block in blocks {
                self.upload_block(block).map_err(text)?;
            }
        }
        self.upload.synchronize().map_err(text)?;
        Ok(begin.elapsed().as_secs_f64() / passes as f64)
    }

    /// Seconds of decoding as many blocks.
    fn decode_s(&self, blocks: &[usize]) -> Result<f64, String> {
        let decode = || {
            let decode = |_: &usize| self.decode_block();
            blocks.iter().try_for_each(decode).map_err(text)?;
            self.decode.synchronize().map_err(text)
        };
        decode()?;
        let begin = Instant::now();
        decode()?;
        Ok(begin.elapsed().as_secs_f64())
    }

    fn decode_block(&self) -> Result<(), DeviceError> {
        self.device
            .decode(&self.decode, &self.landing, &self.program, 0)
    }

    /// Waits until nothing is under way.
    pub(crate) fn drain(&self) -> Result<(), String> {
        self.device.synchronize().map_err(text)
    }

    pub(crate) fn engine(&self, tokens: u64) -> Result<Engine, String> {
        Engine::new(self, tokens)
    }

    pub(crate) fn model(&self) -> Model {
        weights::model(self.storage, &self.blocks)
    }

    /// Everything resident.
    pub(crate) fn resident(&self, engine: &Engine) -> Result<Resident<'_>, String> {
        Resident::new(self, engine)
    }

    /// Tokens with which the products take as long as the uploads, to a multiple of 128.
    pub(crate) fn crossing(&self) -> Result<u64, String> {
        let time = |tokens| {
            let engine = self.engine(tokens)?;
            let resident = self.resident(&engine)?;
            resident.warm_up(&engine);
            Ok::<_, String>(resident.pass_s(&engine, 5))
        };
        let (few, many) = (time(CROSSING[0])?, time(CROSSING[1])?);
        let bytes = self.storage.block_bytes() * self.blocks.len() as u64;
        let wire_s = bytes as f64 / self.wire_rate;
        let slope = (many - few) / (CROSSING[1] - CROSSING[0]) as f64;
        let tokens = CROSSING[0] as f64 + (wire_s - few) / slope;
        Ok(((tokens / 128.0).round().max(1.0) as u64) * 128)
    }
}

/// Products with the matrices of a block.
pub(crate) struct Engine {
    blas: CuBlas,
    pub(crate) stream: CudaStream,
    tokens: u64,
    x: u64,
    y: u64,
    _activations: CudaArena,
}

impl Engine {
    fn new(work: &Work, tokens: u64) -> Result<Self, String> {
        let widest = MATRICES
            .iter()
            .map(|&(outputs, inputs, _)| outputs.max(inputs));
        let bytes = widest.max().expect("there are matrices") * tokens * 2;
        let activations = work.device.allocate_arena(2 * bytes).map_err(text)?;
        let len = usize::try_from(bytes).expect("fits");
        let random = work.device.allocate_pinned(len, |memory| {
            weights::digits(memory, tokens);
            memory
                .chunks_exact_mut(2)
                .for_each(|number| weights::scale(number, Encoding::BF16));
        });
        let source = Source::from(random.map_err(text)?);
        let pinned = work.device.pin(&source).map_err(text)?.pinned();
        let pinned = pinned.expect("memory of the device is pinned");
        work.device
            .upload_pinned(&work.stream, &activations, 0, &pinned, 0..len)
            .map_err(text)?;
        work.drain()?;
        Ok(Self {
            blas: CuBlas::new(&work.device, &work.stream)?,
            stream: work.stream.clone(),
            tokens,
            x: work.device.address(&activations, 0),
            y: work.device.address(&activations, bytes),
            _activations: activations,
        })
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Submits the products with matrices at these addresses.
    pub(crate) fn compute(&self, addresses: &[u64]) {
        for (&(outputs, inputs, _), &address) in MATRICES.iter().zip(addresses) {
            // SAFETY: the activations hold the widest input and output; the addresses are those of a lease, or of
            // memory that its owner keeps until the stream is drained.
            unsafe {
                self.blas
                    .multiply(self.tokens, (outputs, inputs), address, self.x, self.y);
            }
        }
    }
}

/// All blocks on the device, in arrived form.
pub(crate) struct Resident<'w> {
    work: &'w Work,
    _offload: Offload<CudaDevice>,
    pub(crate) addresses: Vec<Vec<u64>>,
}

impl<'w> Resident<'w> {
    fn new(work: &'w Work, engine: &Engine) -> Result<Self, String> {
        let mut offload = Offload::builder(&work.device)
            .model(work.model())
            .device_budget(DeviceBudget::Bytes(1 << 40))
            .build()
            .map_err(text)?;
        let mut addresses = Vec::new();
        let mut pass = offload.pass(PassKind::FULL, &engine.stream).map_err(text)?;
        while let Some(lease) = pass.acquire().map_err(text)? {
            let tensors = lease.tensor_names();
            let address = |name: &str| lease.tensor(name).map(|tensor| tensor.address());
            addresses.push(
                tensors
                    .map(address)
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(text)?,
            );
        }
        drop(pass);
        Ok(Self {
            work,
            _offload: offload,
            addresses,
        })
    }

    /// Has the device multiply until it is as warm as it will be in what is measured next.
    pub(crate) fn warm_up(&self, engine: &Engine) {
        let begin = Instant::now();
        while begin.elapsed() < WARM_UP {
            self.pass_s(engine, 1);
        }
    }

    /// Seconds a pass of the products alone.
    pub(crate) fn pass_s(&self, engine: &Engine, passes: usize) -> f64 {
        self.work.drain().expect("the device works");
        let begin = Instant::now();
        for _ in 0..passes {
            self.addresses
                .iter()
                .for_each(|addresses| engine.compute(addresses));
        }
        engine.stream.synchronize().expect("the device works");
        begin.elapsed().as_secs_f64() / passes as f64
    }

    /// Seconds a pass of products, uploads and decodes side by side, nothing waiting for anything.
    pub(crate) fn overlap_s(
        &self,
        engine: &Engine,
        blocks: &[usize],
        packed: usize,
        passes: usize,
    ) -> Result<f64, String> {
        let work = self.work;
        work.drain()?;
        let decoded = match work.storage {
            Storage::Bf16 => 0,
            Storage::Q4KM => blocks.len() + packed,
        };
        let begin = Instant::now();
        // Uploads first: a full queue of products would hold the host.
        for _ in 0..passes {
            for &block in blocks {
                work.upload_block(block).map_err(text)?;
            }
            for _ in 0..decoded {
                work.decode_block().map_err(text)?;
            }
        }
        for _ in 0..passes {
            self.addresses
                .iter()
                .for_each(|addresses| engine.compute(addresses));
        }
        work.drain()?;
        Ok(begin.elapsed().as_secs_f64() / passes as f64)
    }
}

/// The work through the executor.
pub(crate) struct Streamed<'w> {
    work: &'w Work,
    offload: Offload<CudaDevice>,
}

impl<'w> Streamed<'w> {
    pub(crate) fn new(
        work: &'w Work,
        placement: Placement,
        Decoded { decoding, whole }: Decoded,
        costs: Costs,
    ) -> Result<Self, String> {
        let count = work.blocks.len() as u64;
        let arrived: u64 = (0..MATRICES.len()).map(arrived_bytes).sum();
        let staging = match work.storage {
            Storage::Bf16 => 0,
            encoded => PLACES * encoded.block_bytes(),
        };
        let mut model = work.model();
        let percent = match placement {
            Placement::Planned(percent)
            | Placement::Unpacked(percent)
            | Placement::Packed(percent) => percent,
            Placement::Streamed => {
                for block in 0..work.blocks.len() {
                    model = model
                        .with_residency(block, Residency::Never)
                        .map_err(text)?;
                }
                0
            }
            Placement::Tail(percent) => {
                for block in 0..work.blocks.len() {
                    let resident = (block as u64) < count * percent / 100;
                    let residency = if resident {
                        Residency::Always
                    } else {
                        Residency::Never
                    };
                    model = model.with_residency(block, residency).map_err(text)?;
                }
                percent
            }
        };
        let stays = count * percent / 100;
        // A place more than there are streamed blocks is of no use, and would hold a block.
        let places = PLACES.min(count - stays);
        let budget = match placement {
            // What is decoded ahead needs a place beside the one that is computed with.
            Placement::Packed(_) => {
                let places = 1 + u64::from(decoding == Some(Decoding::Ahead));
                let staging = match stays == count {
                    true => LOADING_BYTES,
                    false => staging,
                };
                stays * work.storage.block_bytes().next_multiple_of(256)
                    + places * arrived.next_multiple_of(256)
                    + staging
            }
            _ => (stays + places) * arrived.next_multiple_of(256) + staging + (1 << 20),
        };
        let settings = Settings {
            costs,
            decoding,
            pack: !matches!(placement, Placement::Unpacked(_)),
            part_bytes: match whole {
                true => u64::MAX,
                false => Settings::default().part_bytes,
            },
            ..Settings::default()
        };
        let offload = Offload::builder(&work.device)
            .model(model)
            .settings(settings)
            .device_budget(DeviceBudget::Bytes(budget))
            .build()
            .map_err(text)?;
        Ok(Self { work, offload })
    }

    pub(crate) fn blocks_of(&self, form: Form) -> Vec<usize> {
        let blocks = self.offload.plan().blocks.iter().enumerate();
        let of_form = blocks.filter(|(_, block)| block.form == form);
        of_form.map(|(block, _)| block).collect()
    }

    /// Where blocks are decoded, if any is.
    pub(crate) fn decoding(&self) -> Option<Decoding> {
        let plan = self.offload.plan();
        let decodes = plan.kinds[0].visits.iter().any(VisitPlan::is_decoded);
        decodes.then_some(plan.decoding)
    }

    pub(crate) fn arena_bytes(&self) -> u64 {
        self.offload.plan().arena_bytes
    }

    pub(crate) fn predicted_pass_s(&self) -> f64 {
        self.offload.plan().kinds[0].predicted_pass_s
    }

    /// Microseconds of the calling thread in the library, per visit, of `passes` passes each of which is waited for: the
    /// driver holds back whoever submits more than its queues take, and that is no work.
    pub(crate) fn host_us_per_visit(
        &mut self,
        engine: &Engine,
        passes: usize,
    ) -> Result<f64, String> {
        let mut addresses = Vec::with_capacity(MATRICES.len());
        let mut host_s = 0.0;
        for _ in 0..passes {
            host_s += self.pass(engine, &mut addresses).map_err(text)?;
            self.work.drain()?;
        }
        Ok(host_s * 1e6 / (passes * self.work.blocks.len()) as f64)
    }

    /// Seconds of a pass in which the products waited, the mean of the last ones.
    pub(crate) fn stall_s(&mut self, passes: usize) -> Result<f64, String> {
        let report = self.offload.report().map_err(text)?;
        let last = report.passes.iter().rev().take(passes);
        Ok(last.map(|pass| pass.stall_s).sum::<f64>() / passes as f64)
    }

    /// Seconds a pass.
    pub(crate) fn pass_s(&mut self, engine: &Engine, passes: usize) -> Result<f64, String> {
        self.work.drain()?;
        let mut addresses = Vec::with_capacity(MATRICES.len());
        let begin = Instant::now();
        for _ in 0..passes {
            self.pass(engine, &mut addresses).map_err(text)?;
        }
        self.work.drain()?;
        Ok(begin.elapsed().as_secs_f64() / passes as f64)
    }

    /// A pass. Returns the seconds in the library.
    fn pass(&mut self, engine: &Engine, addresses: &mut Vec<u64>) -> Result<f64, OffloadError> {
        let begin = Instant::now();
        let mut pass = self.offload.pass(PassKind::FULL, &engine.stream)?;
        let mut host_s = begin.elapsed().as_secs_f64();
        loop {
            let begin = Instant::now();
            let Some(lease) = pass.acquire()? else {
                drop(pass);
                return Ok(host_s + begin.elapsed().as_secs_f64());
            };
            addresses.clear();
            for name in lease.tensor_names() {
                addresses.push(lease.tensor(name)?.address());
            }
            host_s += begin.elapsed().as_secs_f64();
            engine.compute(addresses);
            let begin = Instant::now();
            drop(lease);
            host_s += begin.elapsed().as_secs_f64();
        }
    }
}
