//! The few functions of the driver library that are looked up by name: those that a probe calls, and those that a driver
//! need not have.
//!
//! Prototypes are those of `cuda.h`, <https://docs.nvidia.com/cuda/cuda-driver-api/>. Nothing here calls cudarc, whose
//! look-ups panic.

#![expect(
    unsafe_code,
    reason = "loads a foreign library and calls functions of it by address"
)]

use std::ffi::{OsStr, c_char, c_int, c_uint};
use std::mem::ManuallyDrop;

use cudarc::driver::sys::{CUdeviceptr, CUmemcpyAttributes, CUresult, CUstream};
use libloading::Library;

use crate::probe::{
    DeviceInfo, Driver, DriverVersion, MINIMUM_VERSION, NO_DEVICE, Unavailable, code_name,
};

#[cfg(test)]
mod tests;

#[cfg(windows)]
const LIBRARY: &str = "nvcuda.dll";
#[cfg(not(windows))]
const LIBRARY: &str = "libcuda.so.1";

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `..._MINOR`.
const CAPABILITY: [c_int; 2] = [75, 76];

/// Bytes of the buffer for a device's name; longer names are cut by the driver.
const NAME_LEN: c_int = 256;

type Init = unsafe extern "system" fn(c_uint) -> c_int;
type GetInt = unsafe extern "system" fn(*mut c_int) -> c_int;
type GetDevice = unsafe extern "system" fn(*mut c_int, c_int) -> c_int;
type GetName = unsafe extern "system" fn(*mut c_char, c_int, c_int) -> c_int;
type GetTotal = unsafe extern "system" fn(*mut usize, c_int) -> c_int;
type GetAttribute = unsafe extern "system" fn(*mut c_int, c_int, c_int) -> c_int;

/// `cuMemcpyBatchAsync`, as CUDA 12.8 has it; later ones keep it under this name.
pub(crate) type CopyBatch = unsafe extern "system" fn(
    *mut CUdeviceptr,
    *mut CUdeviceptr,
    *mut usize,
    usize,
    *mut CUmemcpyAttributes,
    *mut usize,
    usize,
    *mut usize,
    CUstream,
) -> CUresult;

/// Addresses of functions in a library that is never closed.
struct Functions {
    init: Init,
    driver_version: GetInt,
    device_count: GetInt,
    device: GetDevice,
    name: GetName,
    total: GetTotal,
    attribute: GetAttribute,
}

/// Probes the driver of this system.
pub(crate) fn probe_system() -> Result<Driver, Unavailable> {
    // SAFETY: what the system finds under this name is its CUDA driver, whose functions have `cuda.h`'s prototypes. An
    // administrator who puts something else there has the same power over every other program.
    unsafe { probe_library(OsStr::new(LIBRARY)) }
}

/// The function of this system's driver that submits many copies at once, if it has it.
pub(crate) fn copy_batch() -> Option<CopyBatch> {
    // SAFETY: as in `probe_system`.
    let library = ManuallyDrop::new(unsafe { Library::new(LIBRARY) }.ok()?);
    // SAFETY: `CopyBatch` is its prototype, and the library is never closed.
    let found = unsafe { library.get::<CopyBatch>(b"cuMemcpyBatchAsync\0") }.ok()?;
    Some(*found)
}

/// Probes the driver library at `path`.
///
/// # Safety
/// - The initialisers of the library at `path`, if there is one, may run in this process at this time.
/// - Functions in it that bear the names of CUDA's have the prototypes of CUDA's.
unsafe fn probe_library(path: &OsStr) -> Result<Driver, Unavailable> {
    // SAFETY: both obligations are the caller's.
    let functions = unsafe { Functions::load(path) }?;
    functions.start()?;
    let version = functions.version()?;
    if version < MINIMUM_VERSION {
        return Err(Unavailable::DriverTooOld {
            version,
            minimum: MINIMUM_VERSION,
        });
    }
    let devices = functions.devices()?;
    if devices.is_empty() {
        return Err(Unavailable::NoDevice);
    }
    Ok(Driver { version, devices })
}

impl Functions {
    /// Opens the library at `path` for the rest of the process and looks the functions up.
    ///
    /// # Safety
    /// As for [`probe_library`].
    unsafe fn load(path: &OsStr) -> Result<Self, Unavailable> {
        // SAFETY: the caller answers for the initialisers. Finalisers never run, see below.
        let library = unsafe { Library::new(path) }.map_err(|error| Unavailable::Library {
            library: path.to_string_lossy().into_owned(),
            reason: text(&error),
        })?;
        // Never closed, so the addresses below hold until the process ends.
        let library = ManuallyDrop::new(library);
        macro_rules! find {
            ($symbol:literal) => {
                // SAFETY: the caller answers for the prototype, which is the field's type, and the library is never
                // closed.
                *unsafe { library.get(concat!($symbol, "\0").as_bytes()) }.map_err(|_| {
                    Unavailable::Symbol {
                        library: path.to_string_lossy().into_owned(),
                        symbol: $symbol,
                    }
                })?
            };
        }
        Ok(Self {
            init: find!("cuInit"),
            driver_version: find!("cuDriverGetVersion"),
            device_count: find!("cuDeviceGetCount"),
            device: find!("cuDeviceGet"),
            name: find!("cuDeviceGetName"),
            total: find!("cuDeviceTotalMem_v2"),
            attribute: find!("cuDeviceGetAttribute"),
        })
    }

    fn start(&self) -> Result<(), Unavailable> {
        // SAFETY: takes flags, which must be 0, and no pointer; may be called at any time, from any thread, repeatedly.
        match unsafe { (self.init)(0) } {
            0 => Ok(()),
            NO_DEVICE => Err(Unavailable::NoDevice),
            code => Err(Unavailable::Init {
                code,
                name: code_name(code),
            }),
        }
    }

    fn version(&self) -> Result<DriverVersion, Unavailable> {
        let mut number = 0;
        // SAFETY: writes one int to a place that outlives the call.
        let code = unsafe { (self.driver_version)(&raw mut number) };
        check("cuDriverGetVersion", code)?;
        Ok(DriverVersion::from_cuda(u32::try_from(number).unwrap_or(0)))
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>, Unavailable> {
        let mut count = 0;
        // SAFETY: writes one int to a place that outlives the call.
        let code = unsafe { (self.device_count)(&raw mut count) };
        check("cuDeviceGetCount", code)?;
        (0..count).map(|ordinal| self.describe(ordinal)).collect()
    }

    fn describe(&self, ordinal: c_int) -> Result<DeviceInfo, Unavailable> {
        let mut device = 0;
        // SAFETY: writes one int to a place that outlives the call; a wrong ordinal is an error.
        let code = unsafe { (self.device)(&raw mut device, ordinal) };
        check("cuDeviceGet", code)?;

        let mut name = [0u8; NAME_LEN as usize];
        // SAFETY: writes at most `NAME_LEN` bytes, the length of the buffer, which outlives the call.
        let code = unsafe { (self.name)(name.as_mut_ptr().cast(), NAME_LEN, device) };
        check("cuDeviceGetName", code)?;
        let len = name.iter().position(|&byte| byte == 0);
        let name = &name[..len.unwrap_or(name.len())];

        let mut total = 0;
        // SAFETY: writes one size_t to a place that outlives the call.
        let code = unsafe { (self.total)(&raw mut total, device) };
        check("cuDeviceTotalMem", code)?;

        let mut capability = [0, 0];
        for (part, attribute) in capability.iter_mut().zip(CAPABILITY) {
            // SAFETY: writes one int to a place that outlives the call; a wrong attribute is an error.
            let code = unsafe { (self.attribute)(part, attribute, device) };
            check("cuDeviceGetAttribute", code)?;
        }
        let [major, minor] = capability.map(|part| u32::try_from(part).unwrap_or(0));
        Ok(DeviceInfo {
            name: String::from_utf8_lossy(name).into_owned(),
            total_bytes: total as u64,
            compute_capability: (major, minor),
        })
    }
}

fn check(function: &'static str, code: c_int) -> Result<(), Unavailable> {
    match code {
        0 => Ok(()),
        code => Err(Unavailable::Call {
            function,
            code,
            name: code_name(code),
        }),
    }
}

/// The error and what caused it, in one line.
fn text(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", text(source)),
        None => error.to_string(),
    }
}
