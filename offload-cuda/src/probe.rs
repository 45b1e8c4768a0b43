//! Whether CUDA can be used here, and on which devices.
//!
//! No context is made and no device memory is touched.

use std::fmt;

use crate::driver_library;

/// A version of the CUDA driver interface, as `nvidia-smi` shows it: 12.8, not the number of the driver package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DriverVersion {
    /// The part before the point.
    pub major: u32,
    /// The part behind it.
    pub minor: u32,
}

impl DriverVersion {
    /// Reads CUDA's own form, 1000 times the major part and 10 times the minor one.
    #[must_use]
    pub const fn from_cuda(number: u32) -> Self {
        Self {
            major: number / 1000,
            minor: number % 1000 / 10,
        }
    }
}

impl fmt::Display for DriverVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The oldest driver that is accepted: the one whose interface this build was made for.
///
/// With an older one some symbol that a later call needs may be missing. 12.8 is driver package 570.
pub const MINIMUM_VERSION: DriverVersion =
    DriverVersion::from_cuda(if cfg!(feature = "cuda-13000") {
        13000
    } else if cfg!(feature = "cuda-12090") {
        12090
    } else {
        12080
    });

/// A working driver and its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Driver {
    /// The newest version of CUDA that it serves.
    pub version: DriverVersion,
    /// At least one; the position is the ordinal that CUDA uses.
    pub devices: Vec<DeviceInfo>,
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its name, such as `NVIDIA H200`.
    pub name: String,
    /// Its memory, free or not.
    pub total_bytes: u64,
    /// Major and minor number of its compute capability.
    pub compute_capability: (u32, u32),
}

/// Why CUDA cannot be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The driver library is not there or cannot be loaded: no driver is installed, or not for this process.
    #[error("cannot load {library}: {reason}")]
    Library {
        /// The library asked for.
        library: String,
        /// What the system said.
        reason: String,
    },
    /// The library was loaded but is none of a CUDA driver, or one that is far too old.
    #[error("{library} has no symbol {symbol}")]
    Symbol {
        /// The library.
        library: String,
        /// The function that it lacks.
        symbol: &'static str,
    },
    /// The driver does not start; 803 says that the library and the kernel module are of different versions.
    #[error("cuInit failed with {code} ({name})")]
    Init {
        /// CUDA's result.
        code: i32,
        /// Its name.
        name: &'static str,
    },
    /// The driver works and has no device, or none that this process may see.
    #[error("the CUDA driver has no device")]
    NoDevice,
    /// The driver is older than [`MINIMUM_VERSION`].
    #[error("the driver serves CUDA {version}, this build needs {minimum}")]
    DriverTooOld {
        /// What the driver serves.
        version: DriverVersion,
        /// What is needed.
        minimum: DriverVersion,
    },
    /// The driver started but a question about it failed.
    #[error("{function} failed with {code} ({name})")]
    Call {
        /// The function.
        function: &'static str,
        /// CUDA's result.
        code: i32,
        /// Its name.
        name: &'static str,
    },
}

/// Loads the CUDA driver and asks for its version and devices.
///
/// Loading runs the initialisers of the library that the system finds as `libcuda.so.1` (`nvcuda.dll` on Windows).
///
/// # Errors
/// When CUDA cannot be used: [`Unavailable`] says why.
pub fn probe() -> Result<Driver, Unavailable> {
    driver_library::probe_system()
}

/// CUDA's name for `code`, for those that a probe meets.
pub(crate) fn code_name(code: i32) -> &'static str {
    match code {
        1 => "CUDA_ERROR_INVALID_VALUE",
        2 => "CUDA_ERROR_OUT_OF_MEMORY",
        3 => "CUDA_ERROR_NOT_INITIALIZED",
        4 => "CUDA_ERROR_DEINITIALIZED",
        34 => "CUDA_ERROR_STUB_LIBRARY",
        46 => "CUDA_ERROR_DEVICE_UNAVAILABLE",
        NO_DEVICE => "CUDA_ERROR_NO_DEVICE",
        101 => "CUDA_ERROR_INVALID_DEVICE",
        304 => "CUDA_ERROR_OPERATING_SYSTEM",
        802 => "CUDA_ERROR_SYSTEM_NOT_READY",
        803 => "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        804 => "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        999 => "CUDA_ERROR_UNKNOWN",
        _ => "an error without a name here",
    }
}

/// `CUDA_ERROR_NO_DEVICE`.
pub(crate) const NO_DEVICE: i32 = 100;
