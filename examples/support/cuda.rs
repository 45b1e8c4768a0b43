//! The computation of `matrix.rs` on an NVIDIA GPU, with the kernels of `matrix.cu`.
//!
//! Everything is queued on one stream; the host waits once for each pass, to read its digest.

#![expect(
    unsafe_code,
    reason = "launches kernels through the driver, whose functions are all unsafe"
)]

use std::error::Error;
use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::time::Instant;

use cudarc::driver::sys::{self, CUfunction, CUmodule, CUresult};
use offload_core::decode::Float;
use offload_core::device::{DecodeEntry, DecodeTable, Device};
use offload_core::encoding::Encoding;
use offload_core::executor::{ArrivedTensor, Costs};
use offload_core::model::Model;
use offload_core::plan::{Place, Rates};
use offload_core::source::Source;
use offload_core::swappable::Role;
use offload_cuda::{CudaArena, CudaDevice, CudaStream};

use crate::engine::{Engine, Recorded, as_matrix};
use crate::matrix::{START_VALUES, seed};

/// The kernels, for every device since compute capability 7.5.
const PTX: &str = include_str!("matrix_75.ptx");

/// Threads of a block, for every kernel (`THREADS` in `matrix.cu`).
const THREADS: u32 = 256;

/// Products that a block makes: one for each of its warps.
const ROWS: u32 = THREADS / 32;

/// Blocks that read the bytes of one tensor, at most: what fills the largest devices.
const READERS: u64 = 1024;

/// Bytes of `State` in `matrix.cu`.
const STATE_BYTES: u64 = 16;

/// Where buffers begin.
const ALIGN: u64 = 256;

/// Bytes of an upload that measures the wire, and how many of them are timed.
const PROBE: (usize, u32) = (64 << 20, 4);

/// Decodes that are timed.
const DECODES: u32 = 20;

fn check(call: &str, result: CUresult) -> Result<(), Box<dyn Error>> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        result => Err(format!("{call}: {result:?}").into()),
    }
}

/// The kernels, loaded. What they do is told in `matrix.cu`.
#[derive(Debug)]
struct Kernels {
    module: CUmodule,
    begin_pass: CUfunction,
    make_input: CUfunction,
    multiply_f32: CUfunction,
    multiply_f16: CUfunction,
    multiply_bf16: CUfunction,
    read_bytes: CUfunction,
}

impl Kernels {
    /// Loads them into the context that is current on this thread.
    fn load() -> Result<Self, Box<dyn Error>> {
        let ptx = CString::new(PTX)?;
        let mut module = ptr::null_mut();
        // SAFETY: `ptx` ends in a zero byte and lives until the call returns; writes a live local.
        check("cuModuleLoadData", unsafe {
            sys::cuModuleLoadData(&raw mut module, ptx.as_ptr().cast())
        })?;
        // From here on it is unloaded when dropped.
        let none = ptr::null_mut();
        let mut kernels = Self {
            module,
            begin_pass: none,
            make_input: none,
            multiply_f32: none,
            multiply_f16: none,
            multiply_bf16: none,
            read_bytes: none,
        };
        let find = |name: &CStr| {
            let mut function = ptr::null_mut();
            // SAFETY: the module was just loaded; `name` ends in a zero byte; writes a live local.
            check("cuModuleGetFunction", unsafe {
                sys::cuModuleGetFunction(&raw mut function, module, name.as_ptr())
            })?;
            Ok::<_, Box<dyn Error>>(function)
        };
        kernels.begin_pass = find(c"begin_pass")?;
        kernels.make_input = find(c"make_input")?;
        kernels.multiply_f32 = find(c"multiply_f32")?;
        kernels.multiply_f16 = find(c"multiply_f16")?;
        kernels.multiply_bf16 = find(c"multiply_bf16")?;
        kernels.read_bytes = find(c"read_bytes")?;
        Ok(kernels)
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        // SAFETY: loaded in `load`, unloaded once, on the same thread: the engine's pointers keep it there.
        let _ = unsafe { sys::cuModuleUnload(self.module) };
    }
}

/// Computes on a GPU.
///
/// Its pointers keep it on the thread that made it, on which the device's context is current from then on: nothing in
/// the programs here makes another current.
#[derive(Debug)]
pub(crate) struct CudaEngine {
    /// Dropped first, while the rest keeps the context.
    kernels: Kernels,
    device: CudaDevice,
    stream: CudaStream,
    /// State, input and products, one after another.
    buffers: CudaArena,
    state: u64,
    input: u64,
    products: u64,
    /// What input and products have room for.
    most_columns: u64,
    most_rows: u64,
    /// Of the pass: tensors and matrices so far, and how many products the last of them had.
    tensors: u64,
    matrices: u64,
    length: u32,
}

impl CudaEngine {
    /// An engine with room for every matrix of `model`.
    pub(crate) fn new(device: CudaDevice, model: &Model) -> Result<Self, Box<dyn Error>> {
        let (mut most_rows, mut most_columns) = (u64::from(START_VALUES), 0);
        for tensor in model.blocks().iter().flat_map(|block| block.tensors()) {
            if let Some(rows) = tensor.shape().first().copied().filter(|&rows| rows > 0) {
                most_rows = most_rows.max(rows);
                most_columns = most_columns.max(tensor.element_count() / rows);
            }
        }
        // Kernels count both in 32 bits, and step beyond the last column.
        if most_rows.max(most_columns) > 1 << 31 {
            return Err(format!(
                "a matrix of {most_rows} rows or {most_columns} columns is too large"
            )
            .into());
        }
        let room = |bytes: u64| bytes.next_multiple_of(ALIGN);
        let input_at = room(STATE_BYTES);
        let products_at = input_at + room(4 * most_columns);
        let buffers = device.allocate_arena(products_at + 4 * most_rows)?;
        let stream = device.create_stream("compute")?;
        Ok(Self {
            // The context is current since the calls above.
            kernels: Kernels::load()?,
            state: device.address(&buffers, 0),
            input: device.address(&buffers, input_at),
            products: device.address(&buffers, products_at),
            stream,
            device,
            buffers,
            most_columns,
            most_rows,
            tensors: 0,
            matrices: 0,
            length: START_VALUES,
        })
    }

    /// # Safety
    /// `arguments` point to live values of the types that `kernel` takes. What these address is device memory of the
    /// sizes that they tell, until everything submitted to the device is done.
    unsafe fn launch(
        &self,
        kernel: CUfunction,
        blocks: u32,
        threads: u32,
        arguments: &mut [*mut c_void],
    ) -> Result<(), Box<dyn Error>> {
        // SAFETY: what this function asks for; the driver copies the arguments before it returns. The stream lives as
        // long as the engine, and the context is current on this thread.
        check("cuLaunchKernel", unsafe {
            sys::cuLaunchKernel(
                kernel,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                0,
                self.stream.raw().cast(),
                arguments.as_mut_ptr(),
                ptr::null_mut(),
            )
        })
    }

    /// Multiplies a matrix.
    ///
    /// # Safety
    /// At `address` lie `rows` rows of `columns` floats, neither 0, until everything submitted to the device is done.
    unsafe fn multiply(
        &mut self,
        address: u64,
        (float, rows, columns): (Float, u64, u64),
        seed: u64,
    ) -> Result<(), Box<dyn Error>> {
        assert!(
            rows <= self.most_rows && columns <= self.most_columns,
            "contract: a matrix of {rows} rows and {columns} columns that the model does not have"
        );
        let (mut address, mut seed) = (address, seed);
        let (mut rows, mut columns) = (u32::try_from(rows)?, u32::try_from(columns)?);
        let (mut state, mut input, mut products) = (self.state, self.input, self.products);
        let (mut length, mut turn) = (self.length, u32::from(self.matrices % 2 == 1));
        let mut arguments: [*mut c_void; 6] = [
            (&raw mut state).cast(),
            (&raw mut products).cast(),
            (&raw mut length).cast(),
            (&raw mut input).cast(),
            (&raw mut columns).cast(),
            (&raw mut turn).cast(),
        ];
        let blocks = columns.div_ceil(THREADS);
        // SAFETY: the arguments are those of `make_input`; the buffers have room for `length` products, which are those
        // of the matrix before, and `columns` columns. Freeing them waits for everything submitted.
        unsafe { self.launch(self.kernels.make_input, blocks, THREADS, &mut arguments) }?;
        let kernel = match float {
            Float::F32 => self.kernels.multiply_f32,
            Float::F16 => self.kernels.multiply_f16,
            Float::BF16 => self.kernels.multiply_bf16,
        };
        let mut arguments: [*mut c_void; 8] = [
            (&raw mut state).cast(),
            (&raw mut address).cast(),
            (&raw mut rows).cast(),
            (&raw mut columns).cast(),
            (&raw mut input).cast(),
            (&raw mut products).cast(),
            (&raw mut turn).cast(),
            (&raw mut seed).cast(),
        ];
        // SAFETY: the arguments are those of the `multiply_` kernels; the matrix is there, as asked for, and the buffers
        // are as above.
        unsafe { self.launch(kernel, rows.div_ceil(ROWS), THREADS, &mut arguments) }?;
        self.matrices += 1;
        self.length = rows;
        Ok(())
    }

    /// Takes notice of bytes.
    ///
    /// # Safety
    /// At `address` lie `bytes` bytes until everything submitted to the device is done.
    unsafe fn read(&self, address: u64, bytes: u64, seed: u64) -> Result<(), Box<dyn Error>> {
        if bytes == 0 {
            return Ok(());
        }
        let blocks = bytes.div_ceil(4 * u64::from(THREADS)).min(READERS);
        let blocks = u32::try_from(blocks)?;
        let (mut state, mut address, mut bytes, mut seed) = (self.state, address, bytes, seed);
        let mut arguments: [*mut c_void; 4] = [
            (&raw mut state).cast(),
            (&raw mut address).cast(),
            (&raw mut bytes).cast(),
            (&raw mut seed).cast(),
        ];
        // SAFETY: the arguments are those of `read_bytes`, and the bytes are there, as asked for.
        unsafe { self.launch(self.kernels.read_bytes, blocks, THREADS, &mut arguments) }
    }
}

impl Engine for CudaEngine {
    type Device = CudaDevice;

    fn device(&self) -> &CudaDevice {
        &self.device
    }

    fn stream(&self) -> &CudaStream {
        &self.stream
    }

    /// The rates of the wire, by short uploads from page-locked memory, and of decoding.
    fn measure(&self) -> Result<Option<Costs>, Box<dyn Error>> {
        let (bytes, uploads) = PROBE;
        let memory = self
            .device
            .allocate_pinned(bytes, |memory| memory.fill(0))?;
        let pinned = self.device.pin(&Source::from(memory))?.pinned();
        let pinned = pinned.ok_or("memory of the device is not pinned")?;
        // What is uploaded is decoded as blocks of Q8_0.
        let stored = Encoding::Q8_0;
        let quant_blocks = bytes as u64 / stored.quant_block_bytes();
        let encoded = Place {
            offset: 0,
            bytes: quant_blocks * stored.quant_block_bytes(),
        };
        let place = Place {
            offset: (bytes as u64).next_multiple_of(ALIGN),
            bytes: quant_blocks * stored.quant_block_len() * Encoding::BF16.quant_block_bytes(),
        };
        let landing = self.device.allocate_arena(place.end())?;
        let table = DecodeTable {
            entries: vec![DecodeEntry {
                encoding: stored,
                arrived: Encoding::BF16,
                scale: None,
                encoded,
                place,
            }],
            staging: None,
        };
        let program = self.device.prepare(&landing, &[table])?;
        let upload = || {
            self.device
                .upload_pinned(&self.stream, &landing, 0, &pinned, 0..bytes)
        };
        upload()?;
        self.stream.synchronize()?;
        let begin = Instant::now();
        (0..uploads).try_for_each(|_| upload())?;
        self.stream.synchronize()?;
        let wire_s = begin.elapsed().as_secs_f64() / f64::from(uploads);
        let decode = || self.device.decode(&self.stream, &landing, &program, 0);
        decode()?;
        self.stream.synchronize()?;
        let begin = Instant::now();
        (0..DECODES).try_for_each(|_| decode())?;
        self.stream.synchronize()?;
        let decode_s = begin.elapsed().as_secs_f64() / f64::from(DECODES);
        let costs = Costs::default();
        Ok(Some(Costs {
            rates: Rates {
                wire_bytes_per_s: bytes as f64 / wire_s,
                ..costs.rates
            },
            decode_bytes_per_s: (encoded.bytes + place.bytes) as f64 / decode_s,
            ..costs
        }))
    }

    fn begin(&mut self) -> Result<(), Box<dyn Error>> {
        (self.tensors, self.matrices, self.length) = (0, 0, START_VALUES);
        let mut state = self.state;
        let mut arguments: [*mut c_void; 1] = [(&raw mut state).cast()];
        // SAFETY: the argument is that of `begin_pass`; freeing the buffers waits for everything submitted.
        unsafe { self.launch(self.kernels.begin_pass, 1, 1, &mut arguments) }
    }

    fn take(
        &mut self,
        role: Role,
        tensor: &ArrivedTensor<'_, Recorded<CudaDevice>>,
    ) -> Result<(), Box<dyn Error>> {
        let (address, bytes) = (tensor.address(), tensor.byte_len());
        let seed = seed(self.tensors, bytes);
        self.tensors += 1;
        match as_matrix(role, tensor) {
            // SAFETY: a tensor lies in an arena of this device with the bytes that its shape and encoding take. Its lease
            // keeps the arena, and freeing that waits for everything submitted to the device.
            Some(matrix) => unsafe { self.multiply(address, matrix, seed) },
            // SAFETY: as above.
            None => unsafe { self.read(address, bytes, seed) },
        }
    }

    fn finish(&mut self) -> Result<u64, Box<dyn Error>> {
        let digest = self.device.view(&self.buffers, 0..8);
        let bytes = self.device.read(&self.stream, &digest)?;
        let bytes = <[u8; 8]>::try_from(bytes).map_err(|_| "a digest has 8 bytes")?;
        Ok(u64::from_le_bytes(bytes))
    }
}

impl Drop for CudaEngine {
    fn drop(&mut self) {
        // Kernels are not unloaded while they run. If the device is lost, nothing runs any more.
        let _ = self.device.synchronize();
    }
}
