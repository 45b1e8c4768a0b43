//! Starts this program again with the stand-in as its driver, and tells the stand-in what to do there.

#![allow(unsafe_code, reason = "calls functions of the stand-in by name")]

use std::ffi::{CString, c_char, c_int};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use libloading::Library;

/// Where a process that was started again finds the stand-in.
const PATH: &str = "OFFLOAD_STAND_IN";

/// Which breach a process was started for.
const BREACH: &str = "OFFLOAD_STAND_IN_BREACH";

/// A test that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(150);

/// Whether the stand-in is this process's driver.
pub(crate) fn is_there() -> bool {
    std::env::var_os(PATH).is_some()
}

/// Where cargo builds the stand-in: beside the tests.
fn library() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let library = tests.with_file_name("liboffload_cuda_stand_in.so");
    assert!(library.exists(), "cargo built no {}", library.display());
    library
}

/// Runs this program with `arguments` and the stand-in for its driver; how it ended, and what it wrote.
fn again(arguments: &[&str], breach: Option<&str>) -> (ExitStatus, String) {
    let (library, folder) = (library(), tempfile::tempdir().unwrap());
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::os::unix::fs::symlink(&library, folder.path().join(name)).unwrap();
    }
    let mut search = folder.path().as_os_str().to_owned();
    if let Some(before) = std::env::var_os("LD_LIBRARY_PATH") {
        search.push(":");
        search.push(before);
    }
    let log = folder.path().join("log");
    let output = File::create(&log).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .env("LD_LIBRARY_PATH", search)
        .env(PATH, &library)
        .envs(breach.map(|line| (BREACH, line)))
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let begin = Instant::now();
    let ended = loop {
        match child.try_wait().unwrap() {
            None if begin.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(10)),
            ended => break ended,
        }
    };
    if ended.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let log = String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
    let status = ended.unwrap_or_else(|| panic!("hangs with the stand-in:\n{log}"));
    (status, log)
}

/// Runs the tests whose names contain one of `names`, in one process.
#[track_caller]
pub(crate) fn all_of(names: &[&str]) {
    if is_there() {
        return;
    }
    let (status, log) = again(names, None);
    assert!(status.success(), "{status} with the stand-in:\n{log}");
    assert!(!log.contains(" 0 passed"), "no such tests:\n{log}");
    println!("{log}");
}

/// Runs the test that calls this in a process of its own, where it is the only one, and `test` there.
#[track_caller]
pub(crate) fn alone<F: Fn(&StandIn)>(test: F) {
    if is_there() {
        return test(&StandIn::load());
    }
    let (status, log) = again(&[name_of::<F>(), "--exact", "--nocapture"], None);
    assert!(status.success(), "{status} with the stand-in:\n{log}");
    assert!(log.contains(" 1 passed"), "no such test:\n{log}");
    println!("{log}");
}

/// As [`alone`], for what ends the process with `line`.
#[track_caller]
pub(crate) fn breaks<F: Fn(&StandIn)>(line: &str, test: F) {
    // A test may call this more than once.
    if let Some(wanted) = std::env::var_os(BREACH) {
        if wanted == line {
            test(&StandIn::load());
        }
        return;
    }
    let (status, log) = again(&[name_of::<F>(), "--exact", "--nocapture"], Some(line));
    let line = format!("stand-in of the CUDA driver: {line}");
    assert!(status.code().is_none(), "it does not abort:\n{log}");
    assert!(log.contains(&line), "no such line:\n{log}");
}

/// The test that a closure stands in, which is named after it: `program::module::test::{{closure}}`.
fn name_of<F>() -> &'static str {
    std::any::type_name::<F>()
        .split_once("::")
        .and_then(|(_program, name)| name.strip_suffix("::{{closure}}"))
        .expect("called with a closure of a test")
}

/// The stand-in's functions for tests.
pub(crate) struct StandIn(Library);

impl StandIn {
    fn load() -> Self {
        let path = std::env::var_os(PATH).unwrap();
        // SAFETY: the stand-in has no initialisers, and is this process's driver already.
        Self(unsafe { Library::new(path) }.unwrap())
    }

    /// A function of the stand-in.
    pub(crate) fn get<F: Copy>(&self, symbol: &str) -> F {
        // SAFETY: callers name functions of the stand-in with their own types.
        *unsafe { self.0.get::<F>(symbol) }.unwrap()
    }

    /// How often a call was made.
    pub(crate) fn calls(&self, name: &str) -> u64 {
        let (calls, name) = (
            self.get::<unsafe extern "C" fn(*const c_char) -> u64>("stand_in_calls"),
            CString::new(name).unwrap(),
        );
        // SAFETY: `name` ends in a zero byte.
        unsafe { calls(name.as_ptr()) }
    }

    /// Has the `nth` call from now fail, or the device, when it comes to what that call submitted.
    pub(crate) fn fail(&self, name: &str, nth: u64, code: i32, later: bool) {
        type Fail = unsafe extern "C" fn(*const c_char, u64, c_int, c_int);
        let (fail, name) = (
            self.get::<Fail>("stand_in_fail"),
            CString::new(name).unwrap(),
        );
        // SAFETY: `name` ends in a zero byte.
        unsafe { fail(name.as_ptr(), nth, code, c_int::from(later)) };
    }

    /// Forgets the failures that have not happened, and says how many those are.
    pub(crate) fn forgive(&self) -> u64 {
        self.get::<extern "C" fn() -> u64>("stand_in_forgive")()
    }

    /// Has calls of this name hang.
    pub(crate) fn hang(&self, name: &str) {
        let (hang, name) = (
            self.get::<unsafe extern "C" fn(*const c_char)>("stand_in_hang"),
            CString::new(name).unwrap(),
        );
        // SAFETY: `name` ends in a zero byte.
        unsafe { hang(name.as_ptr()) };
    }

    /// Lets the calls go on that hang.
    pub(crate) fn release(&self) {
        self.get::<extern "C" fn()>("stand_in_release")();
    }

    /// What the driver was asked for and did not get back.
    pub(crate) fn live(&self) -> u64 {
        self.get::<extern "C" fn() -> u64>("stand_in_live")()
    }

    /// How much went with its context instead of being given back.
    pub(crate) fn left_behind(&self) -> u64 {
        self.get::<extern "C" fn() -> u64>("stand_in_left_behind")()
    }

    /// Gives the device so much memory.
    pub(crate) fn set_memory(&self, bytes: u64) {
        self.get::<extern "C" fn(u64)>("stand_in_set_memory")(bytes);
    }

    /// Whether memory that may only be read can be page-locked.
    pub(crate) fn set_locks_read_only(&self, locks: bool) {
        self.get::<extern "C" fn(c_int)>("stand_in_set_locks_read_only")(c_int::from(locks));
    }
}

/// Every call that the device makes, but those that tell of errors.
pub(crate) const CALLS: [&str; 36] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceTotalMem",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuMemGetInfo",
    "cuMemAlloc",
    "cuMemFree",
    "cuMemHostRegister",
    "cuMemHostUnregister",
    "cuMemcpyHtoDAsync",
    "cuMemcpyBatchAsync",
    "cuMemcpyDtoHAsync",
    "cuMemcpyDtoDAsync",
    "cuMemsetD8Async",
    "cuStreamCreate",
    "cuStreamDestroy",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuEventDestroy",
    "cuLaunchHostFunc",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuModuleUnload",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
];
