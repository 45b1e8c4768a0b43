//! The programs on a GPU, run as a user runs them, against what they give on the CPU.
//!
//! Without a GPU these are skipped aloud; with `OFFLOAD_REQUIRE_CUDA=1` that is a failure. To run them where nothing can
//! be built, bring this test's binary and the examples, go to the repository's root, and set `OFFLOAD_EXAMPLES_DIR` to
//! the examples' folder and `CARGO_MANIFEST_DIR` to the root.

mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use offload_cuda::CudaDevice;
use offload_wan::{Family, Naming, Recipe, SynthesizeSpec, synthesize};
use serde_json::Value;
use tempfile::TempDir;

static STREAM: LazyLock<PathBuf> = LazyLock::new(|| support::build("stream_wan"));
static DUMP: LazyLock<PathBuf> = LazyLock::new(|| support::build("dump_tensor"));

/// Whether there is a GPU to test on.
fn has_gpu() -> bool {
    match CudaDevice::new(0) {
        Ok(_) => true,
        Err(reason) => {
            let required = std::env::var("OFFLOAD_REQUIRE_CUDA").is_ok_and(|value| value == "1");
            assert!(!required, "OFFLOAD_REQUIRE_CUDA is set: {reason}");
            println!("SKIPPED: {reason}");
            false
        }
    }
}

fn stream(device: &str, arguments: &[&str]) -> Value {
    let mut all = vec!["--json", "--device", device];
    all.extend(arguments);
    support::json(&STREAM, &all)
}

fn number(report: &Value, key: &str) -> u64 {
    report[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} of {report}"))
}

/// Streams on the GPU, and on the CPU with everything resident: the results are to be the same bits.
#[track_caller]
fn check(arguments: &[&str], budget: &[&str]) -> Value {
    let report = stream("cuda", &[arguments, budget].concat());
    assert_eq!(report["identical"], true, "{arguments:?}");
    assert_ne!(report["device"], "cpu");
    let cpu = stream("cpu", arguments);
    assert_eq!(cpu["device"], "cpu");
    assert_eq!(report["digests"], cpu["digests"], "{arguments:?}");
    let passes = report["pass_seconds"].as_array().expect("a list");
    let kinds = report["pass_kinds"].as_array().expect("a list");
    let wire_bytes = kinds.iter().map(|kind| {
        let kind = kind.as_u64().expect("an index") as usize;
        number(&report["kinds"][kind], "wire_bytes_per_pass")
    });
    let moved = number(&report, "load_bytes")
        + wire_bytes.sum::<u64>()
        + number(&report, "prefetched_past_end_bytes");
    assert_eq!(moved, number(&report, "uploaded_bytes"), "{arguments:?}");
    assert_eq!(passes.len(), kinds.len());
    assert!(
        passes
            .iter()
            .all(|seconds| seconds.as_f64().is_some_and(|s| s > 0.0))
    );
    assert!(number(&report, "peak_bytes") <= number(&report, "budget_bytes"));
    report
}

fn made(folder: &TempDir, name: &str, family: Family, naming: Naming, recipe: Recipe) -> String {
    let spec = SynthesizeSpec {
        family,
        naming,
        recipe,
        block_count: 6,
        dim: 256,
        ffn_dim: 512,
        ..SynthesizeSpec::default()
    };
    let path = folder.path().join(name);
    synthesize(&spec, &path).expect("can be written");
    path.to_str().expect("paths here are text").to_owned()
}

#[test]
fn the_fixture_gives_the_same_bits_as_on_the_cpu() {
    if !has_gpu() {
        return;
    }
    let fixture = support::fixture();
    let fixture = fixture.to_str().expect("paths here are text");
    for arrive in ["bf16", "f16", "f32", "stored"] {
        let arguments = [fixture, "--arrive", arrive, "--passes", "3"];
        let report = check(&arguments, &["--budget", "least"]);
        assert_eq!(report["compared_with"], "resident", "{arrive}");
        assert_eq!(number(&report, "streamed_blocks"), 3, "{arrive}");
        let host = &report["host"];
        let bytes = ["mapped_bytes", "copied_bytes", "staged_bytes"];
        assert!(bytes.iter().map(|key| number(host, key)).sum::<u64>() > 0);
    }
    let swapped = check(&[fixture], &["--blocks-to-swap", "2"]);
    assert_eq!(number(&swapped, "streamed_blocks"), 2);
    // What was measured, not what is assumed.
    assert_ne!(swapped["wire_bytes_per_second"], 25e9);
    for (with, budget) in [("least", "900MiB"), ("most", "least")] {
        let report = check(&[fixture], &["--compare-with", with, "--budget", budget]);
        assert_eq!(report["compared_with"], with);
    }
}

#[test]
fn every_kind_of_checkpoint_gives_the_same_bits_as_on_the_cpu() {
    if !has_gpu() {
        return;
    }
    let folder = TempDir::new().expect("a folder can be made");
    use Naming::{Diffusers, Native, Repacked};
    for (name, family, naming, recipe) in [
        ("vace.gguf", Family::Vace21, Native, Recipe::Q4KM),
        ("sound.gguf", Family::S2v22, Native, Recipe::Q5KM),
        ("repacked.gguf", Family::LongCat, Repacked, Recipe::Q6K),
        ("bf16.safetensors", Family::Vace21, Diffusers, Recipe::BF16),
        ("f8.safetensors", Family::I2v21, Native, Recipe::F8),
        (
            "scaled.safetensors",
            Family::T2v21,
            Native,
            Recipe::F8Scaled,
        ),
        ("int8.safetensors", Family::LongCat, Native, Recipe::Int8),
    ] {
        let path = made(&folder, name, family, naming, recipe);
        for arrive in ["bf16", "stored"] {
            let arguments = [path.as_str(), "--arrive", arrive, "--passes", "2"];
            check(&arguments, &["--budget", "least"]);
        }
        check(&[&path, "--cache-cross-attention"], &[]);
    }
}

#[test]
fn both_experts_give_the_same_bits_as_on_the_cpu() {
    if !has_gpu() {
        return;
    }
    let folder = TempDir::new().expect("a folder can be made");
    let expert = |name, recipe| made(&folder, name, Family::T2v22, Naming::Native, recipe);
    let high = expert("high_noise.gguf", Recipe::Q4KM);
    let low = expert("low_noise.gguf", Recipe::Q8_0);
    let report = check(&[&high, "--low", &low, "--passes", "6"], &[]);
    assert_eq!(report["pass_kinds"], serde_json::json!([0, 0, 0, 1, 1, 1]));
}

#[test]
fn auto_takes_the_gpu_and_a_trace_has_every_visit() {
    if !has_gpu() {
        return;
    }
    let folder = TempDir::new().expect("a folder can be made");
    let trace = folder.path().join("trace.json");
    let trace_text = trace.to_str().expect("paths here are text");
    let fixture = support::fixture();
    let fixture = fixture.to_str().expect("paths here are text");
    let output = support::run(
        &STREAM,
        &[
            fixture, "--budget", "least", "--passes", "2", "--trace", trace_text,
        ],
    );
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("is text");
    assert!(!text.contains("device      cpu"), "{text}");
    assert!(
        text.contains("identical to the run with everything resident"),
        "{text}"
    );
    let trace: Value =
        serde_json::from_slice(&fs::read(&trace).expect("was written")).expect("the trace is JSON");
    let events = trace["traceEvents"].as_array().expect("a list");
    for (stage, visits) in [("upload", 3), ("decode", 3), ("compute", 8)] {
        let spans = events.iter().filter(|event| event["cat"] == stage).count();
        assert_eq!(
            spans,
            2 * visits,
            "{stage}: three blocks, five groups that stay, two passes"
        );
    }
}

#[test]
fn every_tensor_is_dumped_as_the_reference_gives_it() {
    if !has_gpu() {
        return;
    }
    let folder = TempDir::new().expect("a folder can be made");
    let out = folder.path().join("tensor.bin");
    let (fixture, golden) = (support::fixture(), support::golden());
    assert_eq!(golden.len(), 96);
    for (index, (tensor, hashes)) in golden.iter().enumerate() {
        // Each in one dtype, in turn: each run makes a context of its own.
        let dtype = ["f32", "f16", "bf16"][index % 3];
        let text = |path: &PathBuf| path.to_str().expect("paths here are text").to_owned();
        let (file, out_text) = (text(&fixture), text(&out));
        let arguments = [
            &file, "--tensor", tensor, "--dtype", dtype, "--out", &out_text, "--device", "cuda",
        ];
        let output = support::run(&DUMP, &arguments);
        assert!(
            output.status.success() && output.stdout.is_empty(),
            "{output:?}"
        );
        let hash = support::sha256(&fs::read(&out).expect("was written"));
        assert_eq!(hashes[dtype], hash.as_str(), "{tensor} as {dtype}");
    }
}
