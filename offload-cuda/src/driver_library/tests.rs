//! The probe against files that are no drivers, and against stubs compiled here.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::probe_library;
use crate::{Driver, DriverVersion, MINIMUM_VERSION, Unavailable};

fn probe(path: &Path) -> Result<Driver, Unavailable> {
    // SAFETY: the tests' files are no libraries, the system's mathematics without a CUDA name in it, or the stub below,
    // which has no initialisers and CUDA's prototypes.
    unsafe { probe_library(path.as_os_str()) }
}

#[test]
fn a_library_that_is_not_there_is_named() {
    let error = probe(Path::new("/nonexistent/libcuda.so.1")).unwrap_err();
    assert!(
        matches!(&error, Unavailable::Library { library, .. } if library == "/nonexistent/libcuda.so.1"),
        "{error}"
    );
    assert!(!error.to_string().contains('\n'));
}

#[test]
fn a_file_that_is_no_library_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [("empty.so", &b""[..]), ("text.so", b"this is no library")] {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let error = probe(&path).unwrap_err();
        assert!(matches!(error, Unavailable::Library { .. }), "{error}");
    }
    let error = probe(dir.path()).unwrap_err();
    assert!(matches!(error, Unavailable::Library { .. }), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_library_without_the_symbols_is_an_error() {
    // SAFETY: as in `probe`.
    let error = unsafe { probe_library(OsStr::new("libm.so.6")) }.unwrap_err();
    assert_eq!(
        error,
        Unavailable::Symbol {
            library: "libm.so.6".to_owned(),
            symbol: "cuInit"
        }
    );
}

const STUB: &str = r#"
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return flags == 0 ? INIT : 1; }
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return COUNT_CODE; }
int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return 0; }
int cuDeviceGetName(char *name, int len, int device) {
    memset(name, 'x', (size_t)len);
    if (device == 40) strcpy(name, "Stub 40");
    return 0;
}
#ifndef NO_TOTAL
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)device << 30; return 0; }
#endif
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : -1;
    return 0;
}
"#;

/// Compiles the stub with these definitions; `None`, said aloud, where there is no C compiler.
fn stub(dir: &Path, name: &str, definitions: &[(&str, i64)]) -> Option<PathBuf> {
    let source = dir.join("stub.c");
    std::fs::write(&source, STUB).unwrap();
    let library = dir.join(name);
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-o"]).arg(&library);
    let defaults = [
        ("INIT", 0),
        ("VERSION", 13000),
        ("COUNT", 2),
        ("COUNT_CODE", 0),
    ];
    let kept = defaults
        .iter()
        .filter(|(name, _)| definitions.iter().all(|(other, _)| other != name));
    for (name, value) in kept.chain(definitions) {
        command.arg(format!("-D{name}={value}"));
    }
    match command.arg(&source).status() {
        Ok(status) => {
            assert!(status.success(), "the stub does not compile");
            Some(library)
        }
        Err(error) => {
            eprintln!("SKIPPED: no C compiler to make a stub driver with: {error}");
            None
        }
    }
}

#[cfg(unix)]
#[test]
fn a_driver_says_its_version_and_devices() {
    let dir = tempfile::tempdir().unwrap();
    let Some(path) = stub(dir.path(), "good.so", &[]) else {
        return;
    };
    let driver = probe(&path).unwrap();
    assert_eq!((driver.version.major, driver.version.minor), (13, 0));
    let [first, second] = driver.devices.as_slice() else {
        panic!("two devices: {driver:?}");
    };
    assert_eq!(first.name, "Stub 40");
    assert_eq!(first.total_bytes, 40 << 30);
    assert_eq!(first.compute_capability, (9, 0));
    assert_eq!(second.name, "x".repeat(256));
}

#[cfg(unix)]
#[test]
fn every_failure_of_a_driver_is_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let init = |code, name| Unavailable::Init { code, name };
    let cases = [
        ("none.so", ("INIT", 100), Unavailable::NoDevice),
        (
            "mismatch.so",
            ("INIT", 803),
            init(803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        ),
        ("unknown.so", ("INIT", 999), init(999, "CUDA_ERROR_UNKNOWN")),
        (
            "odd.so",
            ("INIT", -7),
            init(-7, "an error without a name here"),
        ),
        ("zero.so", ("COUNT", 0), Unavailable::NoDevice),
        ("negative.so", ("COUNT", -1), Unavailable::NoDevice),
        (
            "count.so",
            ("COUNT_CODE", 3),
            Unavailable::Call {
                function: "cuDeviceGetCount",
                code: 3,
                name: "CUDA_ERROR_NOT_INITIALIZED",
            },
        ),
        (
            "old.so",
            ("VERSION", 11040),
            Unavailable::DriverTooOld {
                version: DriverVersion::from_cuda(11040),
                minimum: MINIMUM_VERSION,
            },
        ),
        (
            "broken.so",
            ("VERSION", -1),
            Unavailable::DriverTooOld {
                version: DriverVersion::from_cuda(0),
                minimum: MINIMUM_VERSION,
            },
        ),
    ];
    for (name, definition, expected) in cases {
        let Some(path) = stub(dir.path(), name, &[definition]) else {
            return;
        };
        assert_eq!(probe(&path), Err(expected), "{name}");
    }
    let Some(path) = stub(dir.path(), "lacking.so", &[("NO_TOTAL", 1)]) else {
        return;
    };
    assert!(matches!(
        probe(&path),
        Err(Unavailable::Symbol {
            symbol: "cuDeviceTotalMem_v2",
            ..
        })
    ));
}

#[test]
fn probing_this_machine_never_panics() {
    match crate::probe() {
        Ok(driver) => assert!(!driver.devices.is_empty()),
        Err(reason) => {
            let required = std::env::var_os("OFFLOAD_REQUIRE_CUDA").is_some_and(|set| set == "1");
            assert!(!required, "OFFLOAD_REQUIRE_CUDA=1 and {reason}");
            eprintln!("SKIPPED: {reason}");
        }
    }
}
