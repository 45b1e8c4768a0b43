//! Matrix products through cuBLAS, loaded while the program runs.

#![expect(
    unsafe_code,
    reason = "loads a foreign library and calls functions of it by address"
)]

use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;

use libloading::Library;
use offload_core::device::Device;
use offload_cuda::{CudaArena, CudaDevice, CudaStream};

/// Names of the library, newest first; the last is what a toolkit's `lib` folder has.
const LIBRARIES: [&str; 3] = ["libcublas.so.13", "libcublas.so.12", "libcublas.so"];

/// `CUDA_R_16BF`, `CUBLAS_COMPUTE_32F`, `CUBLAS_GEMM_DEFAULT`, `CUBLAS_OP_N`, `CUBLAS_OP_T`.
const BF16: c_int = 14;
const COMPUTE_F32: c_int = 68;
const ALGORITHM: c_int = -1;
const AS_IT_IS: c_int = 0;
const TRANSPOSED: c_int = 1;

/// What NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: u64 = 32 << 20;

type Handle = *mut c_void;
type Create = unsafe extern "C" fn(*mut Handle) -> c_int;
type Destroy = unsafe extern "C" fn(Handle) -> c_int;
type SetStream = unsafe extern "C" fn(Handle, *mut c_void) -> c_int;
type SetWorkspace = unsafe extern "C" fn(Handle, *mut c_void, usize) -> c_int;
type Gemm = unsafe extern "C" fn(
    Handle,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const c_void,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
) -> c_int;

/// cuBLAS on one stream.
pub(crate) struct CuBlas {
    gemm: Gemm,
    destroy: Destroy,
    handle: Handle,
    _workspace: CudaArena,
    /// Never closed: the library keeps exit handlers.
    _library: ManuallyDrop<Library>,
}

impl CuBlas {
    /// Loads the library and makes a handle for `stream`.
    pub(crate) fn new(device: &CudaDevice, stream: &CudaStream) -> Result<Self, String> {
        let load = |name: &&str| {
            // SAFETY: the library of this name is NVIDIA's; its initialisers are trusted as those of the driver are.
            unsafe { Library::new(*name) }.ok()
        };
        let library = LIBRARIES
            .iter()
            .find_map(load)
            .ok_or_else(|| format!("none of {LIBRARIES:?} can be loaded"))?;
        let library = ManuallyDrop::new(library);
        let missing = |error: libloading::Error| error.to_string();
        // SAFETY: the prototypes are those of `cublas_api.h`; the library is never closed.
        let create = *unsafe { library.get::<Create>(b"cublasCreate_v2\0") }.map_err(missing)?;
        // SAFETY: as above.
        let destroy = *unsafe { library.get::<Destroy>(b"cublasDestroy_v2\0") }.map_err(missing)?;
        // SAFETY: as above.
        let set_stream =
            *unsafe { library.get::<SetStream>(b"cublasSetStream_v2\0") }.map_err(missing)?;
        // SAFETY: as above.
        let set_workspace =
            *unsafe { library.get::<SetWorkspace>(b"cublasSetWorkspace_v2\0") }.map_err(missing)?;
        // SAFETY: as above.
        let gemm = *unsafe { library.get::<Gemm>(b"cublasGemmEx\0") }.map_err(missing)?;
        let workspace = device
            .allocate_arena(WORKSPACE_BYTES)
            .map_err(|error| error.to_string())?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes a live local; the device's context is current since the allocation.
        check("cublasCreate", unsafe { create(&raw mut handle) })?;
        // SAFETY: the caller keeps the stream.
        check("cublasSetStream", unsafe {
            set_stream(handle, stream.raw())
        })?;
        let address = device.address(&workspace, 0) as *mut c_void;
        let bytes = usize::try_from(WORKSPACE_BYTES).expect("fits");
        // The stream first: setting it resets the workspace.
        // SAFETY: the workspace lives as long as the handle.
        check("cublasSetWorkspace", unsafe {
            set_workspace(handle, address, bytes)
        })?;
        Ok(Self {
            gemm,
            destroy,
            handle,
            _workspace: workspace,
            _library: library,
        })
    }

    /// `y = x * w^T`: `x` is `tokens` by `inputs`, `w` is `outputs` by `inputs`, `y` is `tokens` by `outputs`, all bf16
    /// and row-major.
    ///
    /// # Safety
    /// The addresses are device memory of these sizes until the stream is past this point.
    pub(crate) unsafe fn multiply(
        &self,
        tokens: u64,
        (outputs, inputs): (u64, u64),
        w: u64,
        x: u64,
        y: u64,
    ) {
        let int = |number: u64| c_int::try_from(number).expect("dimensions are small");
        let (one, zero) = (1.0f32, 0.0f32);
        // cuBLAS counts columns first: y^T = w * x^T.
        // SAFETY: what this function asks for; the scalars are read before the call returns.
        let result = unsafe {
            (self.gemm)(
                self.handle,
                TRANSPOSED,
                AS_IT_IS,
                int(outputs),
                int(tokens),
                int(inputs),
                (&raw const one).cast(),
                w as *const c_void,
                BF16,
                int(inputs),
                x as *const c_void,
                BF16,
                int(inputs),
                (&raw const zero).cast(),
                y as *mut c_void,
                BF16,
                int(outputs),
                COMPUTE_F32,
                ALGORITHM,
            )
        };
        check("cublasGemmEx", result).expect("the product is submitted");
    }
}

impl Drop for CuBlas {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { (self.destroy)(self.handle) };
    }
}

fn check(call: &str, status: c_int) -> Result<(), String> {
    match status {
        0 => Ok(()),
        status => Err(format!("{call} failed with {status}")),
    }
}
