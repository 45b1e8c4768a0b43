//! What is counted of every call, what tests may do to it, and the one way through which all calls go.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_char, c_int};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::{Code, breach, calls, code, lock, memory, stream};

/// What is to become of a call.
struct Failure {
    name: String,
    /// Calls until then.
    after: u64,
    code: Code,
    /// The call succeeds; the device fails when the stream comes to it.
    later: bool,
}

struct Control {
    calls: BTreeMap<&'static str, u64>,
    failures: Vec<Failure>,
    hanging: BTreeSet<String>,
}

static CONTROL: Mutex<Control> = Mutex::new(Control {
    calls: BTreeMap::new(),
    failures: Vec::new(),
    hanging: BTreeSet::new(),
});

static RELEASED: Condvar = Condvar::new();

/// The error that ended the context, or 0.
static LOST: AtomicI32 = AtomicI32::new(code::SUCCESS);

thread_local! {
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
    /// What the operation fails with that this thread is about to submit.
    static FAIL_LATER: Cell<Option<Code>> = const { Cell::new(None) };
}

/// Calls that give something back: told to fail, they do so after they had their effect.
const ENDINGS: [&str; 6] = [
    "cuDevicePrimaryCtxRelease",
    "cuEventDestroy",
    "cuMemFree",
    "cuMemHostUnregister",
    "cuModuleUnload",
    "cuStreamDestroy",
];

/// Calls that a lost context does not concern.
const WITHOUT_CONTEXT: [&str; 9] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceTotalMem",
    "cuDevicePrimaryCtxRelease",
    "cuCtxSetCurrent",
];

/// One call of the driver, whatever it is.
pub(crate) fn call(name: &'static str, work: impl FnOnce() -> Result<(), Code>) -> Code {
    if IN_HOST_FUNCTION.get() {
        breach(&format!("{name} is called within a host function"));
    }
    let failure = begin(name);
    if let Some(code) = lost().filter(|_| !WITHOUT_CONTEXT.contains(&name)) {
        return code;
    }
    let work = || work().err().unwrap_or(code::SUCCESS);
    match failure {
        Some(Failure {
            code, later: true, ..
        }) => {
            FAIL_LATER.set(Some(code));
            let result = work();
            FAIL_LATER.set(None);
            result
        }
        Some(Failure { code, .. }) => {
            if ENDINGS.contains(&name) {
                work();
            }
            fail(code);
            code
        }
        None => work(),
    }
}

/// Counts a call, holds it if it hangs, and says whether it fails.
fn begin(name: &'static str) -> Option<Failure> {
    let mut control = lock(&CONTROL);
    *control.calls.entry(name).or_default() += 1;
    let mut failing = None;
    for (index, failure) in control.failures.iter_mut().enumerate() {
        if failure.name == name {
            failure.after -= 1;
            if failure.after == 0 {
                failing = Some(index);
            }
        }
    }
    let failing = failing.map(|index| control.failures.remove(index));
    while control.hanging.contains(name) {
        control = RELEASED
            .wait(control)
            .unwrap_or_else(PoisonError::into_inner);
    }
    failing
}

/// An error has happened: some are the context's last.
pub(crate) fn fail(code: Code) {
    if matches!(code, code::ILLEGAL_ADDRESS | code::LAUNCH_FAILED) {
        let _ = LOST.compare_exchange(code::SUCCESS, code, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// The error that ended the context.
pub(crate) fn lost() -> Option<Code> {
    Some(LOST.load(Ordering::Acquire)).filter(|&code| code != code::SUCCESS)
}

/// What the operation that is being submitted has to fail with.
pub(crate) fn fails_later() -> Option<Code> {
    FAIL_LATER.take()
}

/// Runs a host function, from which nothing may be called.
pub(crate) fn in_host_function(work: impl FnOnce()) {
    IN_HOST_FUNCTION.set(true);
    work();
    IN_HOST_FUNCTION.set(false);
}

/// # Safety
/// `name` ends in a zero byte.
unsafe fn text(name: *const c_char) -> String {
    // SAFETY: what this function asks for.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_string_lossy().into_owned()
}

/// How often the call was made.
///
/// # Safety
/// `name` ends in a zero byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn stand_in_calls(name: *const c_char) -> u64 {
    // SAFETY: what this function asks for.
    let name = unsafe { text(name) };
    let calls = &lock(&CONTROL).calls;
    calls.get(name.as_str()).copied().unwrap_or(0)
}

/// Has the `nth` call from now return `code`, or, if `later` is not 0, has the device fail with it when a stream comes
/// to what that call submitted.
///
/// # Safety
/// `name` ends in a zero byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn stand_in_fail(name: *const c_char, nth: u64, code: c_int, later: c_int) {
    // SAFETY: what this function asks for.
    let name = unsafe { text(name) };
    if nth == 0 {
        breach("calls are counted from 1");
    }
    lock(&CONTROL).failures.push(Failure {
        name,
        after: nth,
        code,
        later: later != 0,
    });
}

/// Forgets the failures that have not happened, and says how many those are.
#[unsafe(no_mangle)]
extern "C" fn stand_in_forgive() -> u64 {
    std::mem::take(&mut lock(&CONTROL).failures).len() as u64
}

/// Has calls of this name hang from now on, until [`stand_in_release`].
///
/// # Safety
/// `name` ends in a zero byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn stand_in_hang(name: *const c_char) {
    // SAFETY: what this function asks for.
    let name = unsafe { text(name) };
    lock(&CONTROL).hanging.insert(name);
}

/// Lets the calls go on that hang.
#[unsafe(no_mangle)]
extern "C" fn stand_in_release() {
    lock(&CONTROL).hanging.clear();
    RELEASED.notify_all();
}

/// What is there and was not given back: allocations, registrations, streams, events, modules, and references to the
/// context.
#[unsafe(no_mangle)]
extern "C" fn stand_in_live() -> u64 {
    memory::live() + stream::live() + calls::live()
}

/// How much of it went with its context instead of being given back.
#[unsafe(no_mangle)]
extern "C" fn stand_in_left_behind() -> u64 {
    calls::left_behind()
}

/// Gives the device so much memory.
#[unsafe(no_mangle)]
extern "C" fn stand_in_set_memory(bytes: u64) {
    memory::set_total(bytes);
}

/// Whether memory that may only be read can be page-locked.
#[unsafe(no_mangle)]
extern "C" fn stand_in_set_locks_read_only(locks: c_int) {
    memory::set_locks_read_only(locks != 0);
}
