//! Runs the programs as a user runs them.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// The repository: where the test is run, which may be another place than where it was built.
pub(crate) fn root() -> PathBuf {
    let root = std::env::var_os("CARGO_MANIFEST_DIR");
    root.map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// A file or folder of the core's test data.
pub(crate) fn data(name: &str) -> PathBuf {
    root().join("offload-core/tests/data").join(name)
}

/// Builds an example and gives its path: running one test alone does not build the examples. If `OFFLOAD_EXAMPLES_DIR`
/// is set it was built already, and lies there.
pub(crate) fn build(example: &str) -> PathBuf {
    let file = format!("{example}{}", std::env::consts::EXE_SUFFIX);
    if let Some(folder) = std::env::var_os("OFFLOAD_EXAMPLES_DIR") {
        let program = Path::new(&folder).join(file);
        assert!(program.is_file(), "{} is not there", program.display());
        return program;
    }
    let test = std::env::current_exe().expect("a running test has a path");
    let profile = test
        .parent()
        .and_then(Path::parent)
        .expect("tests lie in target/PROFILE/deps");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--example", example]);
    build.current_dir(root());
    build.arg("--target-dir");
    build.arg(profile.parent().expect("a profile lies in target"));
    if profile.ends_with("release") {
        build.arg("--release");
    }
    let status = build.status().expect("cargo starts");
    assert!(status.success(), "{example} does not build");
    profile.join("examples").join(file)
}

#[track_caller]
pub(crate) fn run(program: &Path, arguments: &[impl AsRef<OsStr>]) -> Output {
    output(Command::new(program).args(arguments))
}

/// What a program tells, in which no zero has a sign. Sums of nothing, and small numbers that are rounded, gave some.
#[track_caller]
pub(crate) fn output(command: &mut Command) -> Output {
    let output = command.output().expect("the program starts");
    for told in [&output.stdout, &output.stderr] {
        let told = String::from_utf8_lossy(told);
        for (at, _) in told.match_indices("-0") {
            let is_sign = !told[..at].ends_with(|before: char| before.is_alphanumeric());
            let digits = &told[at + 1..];
            let number = digits
                .split(|c: char| !(c.is_ascii_digit() || c == '.'))
                .next();
            let is_zero = number.and_then(|number| number.parse::<f64>().ok()) == Some(0.0);
            assert!(!(is_sign && is_zero), "a zero with a sign: {told}");
        }
    }
    output
}

/// The one JSON document on standard output of a run that succeeds.
#[track_caller]
pub(crate) fn json(program: &Path, arguments: &[impl AsRef<OsStr>]) -> Value {
    let output = run(program, arguments);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("one JSON document and nothing else")
}

/// The one line on standard error of a run that ends with status 2 and prints nothing else.
#[track_caller]
pub(crate) fn refused(program: &Path, arguments: &[impl AsRef<OsStr>]) -> String {
    let output = run(program, arguments);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let line = String::from_utf8(output.stderr).expect("is text");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.ends_with('\n'), "{line}");
    line
}

/// SHA-256 in hexadecimal digits, as the golden hashes are written.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A small WAN T2V checkpoint made by the reference writer and encoders: 3 blocks, dim 256, `Q4_K_M`.
pub(crate) fn fixture() -> PathBuf {
    data("wan_t2v_d256_q4_k_m.gguf")
}

/// Hashes of the fixture's tensors by tensor and dtype, made by `make_golden.py` with the reference reader and decoder.
pub(crate) fn golden() -> Map<String, Value> {
    let text = std::fs::read(data("wan_t2v_d256_q4_k_m.sha256.json")).expect("is committed");
    serde_json::from_slice(&text).expect("is JSON, tensors by name")
}
