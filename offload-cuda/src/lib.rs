//! The NVIDIA device of offload.
//!
//! CUDA is loaded while the program runs: one build serves machines with and without it. [`probe`] says which this is,
//! and is the first thing to call; where there is no driver, or no device, it returns [`Unavailable`] and never
//! panics.
//!
//! ```
//! match offload_cuda::probe() {
//!     Ok(driver) => println!("{} devices, CUDA {}", driver.devices.len(), driver.version),
//!     Err(reason) => println!("no CUDA: {reason}"),
//! }
//! ```
//!
//! # Choices and their price
//!
//! - The driver library is opened by this crate's own code rather than through cudarc, which panics where the library
//!   or a symbol is missing. It is opened twice, which the system does not notice.
//! - Opening a library runs its initialisers, in this process and before any check of ours. What the search path of
//!   the system finds under the driver's name is trusted, as by every program that uses CUDA.
//! - Once opened the library stays open until the process ends: drivers keep threads and exit handlers that must not
//!   lose their code.
//! - A build has one version of the CUDA bindings, see the features in the manifest. A driver older than that is
//!   refused, although some calls would work with it.

mod arena;
mod device;
mod driver;
mod driver_library;
mod host;
#[cfg(feature = "interop")]
mod interop;
pub mod kernels;
mod live;
mod probe;
mod program;

pub use arena::{CudaArena, CudaView};
#[cfg(feature = "interop")]
pub use cudarc;
pub use device::{
    CudaDevice, CudaDeviceBuilder, CudaEvent, CudaHold, CudaPinned, CudaStream, OpenError,
};
pub use host::CudaStaging;
#[cfg(feature = "interop")]
pub use interop::LeasedSlice;
pub use probe::{DeviceInfo, Driver, DriverVersion, MINIMUM_VERSION, Unavailable, probe};
pub use program::CudaProgram;
