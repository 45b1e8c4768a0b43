//! The program `block_swap_performance`, run as a user runs it.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use offload_core::encoding::Encoding;
use offload_core::format::gguf::Writer;
use offload_wan::{Family, SynthesizeSpec, synthesize};
use serde_json::{Value, json};
use tempfile::TempDir;

static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| support::build("block_swap_performance"));

/// A small checkpoint called `model.gguf` in a folder of its own.
fn folder(family: Family, block_count: u64) -> TempDir {
    let folder = TempDir::new().expect("a folder can be made");
    let spec = SynthesizeSpec {
        family,
        block_count,
        dim: 256,
        ffn_dim: 512,
        ..SynthesizeSpec::default()
    };
    synthesize(&spec, folder.path().join("model.gguf")).expect("can be written");
    folder
}

/// Runs the program in `folder`, on the CPU.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(&*PROGRAM);
    command.args(["--model-path", "model.gguf", "--device", "cpu"]);
    command.args(arguments).current_dir(folder);
    support::output(&mut command)
}

/// The list that a run which succeeds writes to `file`.
#[track_caller]
fn results(folder: &Path, file: &str, arguments: &[&str]) -> Vec<Value> {
    let output = run(folder, arguments);
    assert!(output.status.success(), "{output:?}");
    let text = fs::read(folder.join(file)).expect("was written");
    serde_json::from_slice(&text).expect("is a list")
}

const RESULTS: &str = "block_swap_performance_results.json";

#[track_caller]
fn number(value: &Value, pointer: &str) -> f64 {
    let number = value.pointer(pointer).and_then(Value::as_f64);
    number.unwrap_or_else(|| panic!("{pointer} of {value}"))
}

/// What holds of every result.
#[track_caller]
fn check(result: &Value) {
    assert_eq!(result["identical"], true);
    assert_eq!(result["model_path"], "model.gguf");
    for run in ["memory_no_swap", "memory_with_swap"] {
        let of = |pointer: &str| number(result, &format!("/{run}{pointer}"));
        for when in ["/initial_gpu", "/peak_gpu"] {
            let [allocated, reserved, total] = ["allocated_mb", "reserved_mb", "total_mb"]
                .map(|part| of(&format!("{when}/{part}")));
            // Each holds the one before; they are not added up.
            assert!(allocated <= reserved && reserved <= total, "{run}{when}");
            // On the CPU device nobody else takes memory.
            assert_eq!(reserved, total, "{run}{when}");
        }
        assert!(of("/peak_gpu/allocated_mb") > 0.0);
        assert_eq!(
            of("/gpu_increase_mb"),
            of("/peak_gpu/total_mb") - of("/initial_gpu/total_mb")
        );
        assert!(of("/load_time_seconds") > 0.0);
        if cfg!(target_os = "linux") {
            assert!(of("/peak_cpu/rss_mb") > 0.0);
            assert!(of("/peak_cpu/vms_mb") >= of("/peak_cpu/rss_mb"));
            assert_eq!(
                of("/cpu_increase_mb"),
                of("/peak_cpu/rss_mb") - of("/initial_cpu/rss_mb")
            );
        }
    }
    let differs = |of: &str, key: &str, sign: f64| {
        let with = number(result, &format!("/memory_with_swap/{key}"));
        let without = number(result, &format!("/memory_no_swap/{key}"));
        assert_eq!(number(result, of), sign * (with - without), "{of}");
    };
    differs("/gpu_savings_mb", "gpu_increase_mb", -1.0);
    differs("/time_difference_s", "load_time_seconds", 1.0);
    if cfg!(target_os = "linux") {
        differs("/cpu_increase_mb", "cpu_increase_mb", 1.0);
    }
    let share =
        number(result, "/gpu_savings_mb") / number(result, "/memory_no_swap/gpu_increase_mb");
    let percent = number(result, "/gpu_savings_percent");
    assert!((percent - 100.0 * share).abs() < 1e-9, "{percent}");
    for key in [
        "cpu_increase_percent",
        "time_difference_percent",
        "pass_time_difference_percent",
    ] {
        assert!(result.get(key).is_some(), "{key}");
    }
}

#[test]
fn swapped_blocks_leave_the_device_and_move_in_each_pass() {
    let folder = folder(Family::T2v21, 6);
    let of = |count: u64, passes: u64| {
        let [count, passes] = [count, passes].map(|number| number.to_string());
        let arguments = ["--blocks-to-swap", &count, "--passes", &passes];
        let [result] = &results(folder.path(), RESULTS, &arguments)[..] else {
            panic!("one result");
        };
        check(result);
        result.clone()
    };
    let none = of(0, 2);
    assert_eq!(number(&none, "/gpu_savings_mb"), 0.0);
    assert_eq!(none["wire_bytes_per_pass"], 0);
    let (two, five) = (of(2, 2), of(5, 2));
    assert!(number(&two, "/gpu_savings_mb") > 0.0);
    assert!(number(&five, "/gpu_savings_mb") > number(&two, "/gpu_savings_mb"));
    // Places for more leave less to save.
    let arguments = [
        "--blocks-to-swap",
        "5",
        "--passes",
        "2",
        "--prefetch-blocks",
        "2",
    ];
    let [ahead] = &results(folder.path(), RESULTS, &arguments)[..] else {
        panic!("one result");
    };
    check(ahead);
    assert_eq!(ahead["prefetch_blocks"], 2);
    assert!(number(ahead, "/gpu_savings_mb") < number(&five, "/gpu_savings_mb"));
    assert_eq!(ahead["wire_bytes_per_pass"], five["wire_bytes_per_pass"]);
    // Blocks are alike; what came to the device was counted, and each pass more is that much more.
    let wire = |result: &Value| number(result, "/wire_bytes_per_pass");
    assert_eq!(wire(&five) * 2.0, wire(&two) * 5.0);
    let three_passes = of(2, 3);
    let uploaded = |result: &Value| number(result, "/uploaded_bytes");
    assert_eq!(uploaded(&three_passes) - uploaded(&two), wire(&two));
    // The CPU device page-locks no files.
    let staged = &three_passes["staged_bytes_with_swap"][2];
    assert_eq!(*staged, three_passes["wire_bytes_per_pass"]);
    for key in [
        "pass_seconds_no_swap",
        "pass_seconds_with_swap",
        "stall_seconds_with_swap",
        "staged_bytes_with_swap",
    ] {
        assert_eq!(three_passes[key].as_array().map(Vec::len), Some(3), "{key}");
    }
}

#[test]
fn all_counts_are_measured_as_far_as_the_model_goes() {
    let folder = folder(Family::Vace21, 12);
    let arguments = [
        "--test-all",
        "--passes",
        "1",
        "--html",
        "page.html",
        "--out",
        "all.json",
    ];
    let list = results(folder.path(), "all.json", &arguments);
    assert!(!folder.path().join(RESULTS).exists());
    list.iter().for_each(check);
    let counts: Vec<&Value> = list
        .iter()
        .map(|result| &result["blocks_to_swap"])
        .collect();
    assert_eq!(json!(counts), json!([0, 5, 10, 12]));
    let saved: Vec<f64> = list
        .iter()
        .map(|result| number(result, "/gpu_savings_mb"))
        .collect();
    assert!(saved.is_sorted() && saved[3] > saved[0], "{saved:?}");
    assert_eq!(list[3]["block_count"], 12);
    // Those of VACE in the same share.
    assert!(number(&list[3], "/streamed_blocks") > 12.0);

    let page = fs::read_to_string(folder.path().join("page.html")).expect("was written");
    assert_eq!(page.matches("<svg ").count(), 3);
    // A row for the headings and each count, a bar in each plot.
    assert_eq!(page.matches("<tr>").count(), 1 + 4);
    assert_eq!(page.matches("<rect ").count(), 3 * 4);
    for result in &list {
        let saved = format!("<td>{:.1}</td>", number(result, "/gpu_savings_mb"));
        assert!(page.contains(&saved), "{saved}");
    }
    // Nothing is fetched.
    for fetched in ["http", "src=", "href=", "@import", "url("] {
        assert!(!page.contains(fetched), "{fetched}");
    }
}

#[test]
fn a_name_is_no_markup() {
    let folder = folder(Family::T2v21, 2);
    let odd = "a<b>&.gguf";
    fs::rename(folder.path().join("model.gguf"), folder.path().join(odd)).expect("is renamed");
    let mut command = Command::new(&*PROGRAM);
    command.args([
        "--model-path",
        odd,
        "--device",
        "cpu",
        "--html",
        "page.html",
    ]);
    let output = command.current_dir(folder.path()).output().expect("starts");
    assert!(output.status.success(), "{output:?}");
    let page = fs::read_to_string(folder.path().join("page.html")).expect("was written");
    assert!(page.contains("a&lt;b&gt;&amp;.gguf") && !page.contains("a<b>"));
    // Twenty is more than there are: all of them are swapped.
    let text = fs::read(folder.path().join(RESULTS)).expect("was written");
    let list: Value = serde_json::from_slice(&text).expect("is JSON");
    assert_eq!(list[0]["blocks_to_swap"], 2);
}

#[test]
fn bad_usage_and_bad_input_end_with_one_line_and_no_results() {
    let folder = folder(Family::T2v21, 3);
    let model = folder.path().join("model.gguf");
    let model = model.to_str().expect("is text");
    let out = folder.path().join("results.json");
    let out = out.to_str().expect("is text");
    let refuse = |arguments: &[&str]| {
        let line = support::refused(&PROGRAM, &[&["--out", out], arguments].concat());
        assert!(!Path::new(out).exists());
        line
    };
    assert!(refuse(&[]).contains("--model-path"));
    let line = refuse(&["--model-path", "/nonexistent.gguf"]);
    assert!(line.contains("/nonexistent.gguf"), "{line}");
    let line = refuse(&["--model-path", model, "--blocks-to-swap", "4"]);
    assert!(
        line.contains("cannot take blocks_to_swap 4: this model takes blocks_to_swap from 0 to 3"),
        "{line}"
    );
    refuse(&["--model-path", model, "--blocks-to-swap", "2", "--test-all"]);
    let line = refuse(&["--model-path", model, "--prefetch-blocks", "41"]);
    assert!(line.contains("prefetch_blocks from 0 to 40"), "{line}");
    refuse(&["--model-path", model, "--passes", "0"]);
    let line = refuse(&["--model-path", model, "--html", "/nonexistent/page.html"]);
    assert!(line.contains("/nonexistent/page.html"), "{line}");
    let line = support::refused(&PROGRAM, &["--model-path", model, "--out", "/"]);
    assert!(line.contains("/: Is a directory"), "{line}");
    if offload_cuda::probe().is_err() {
        let line = refuse(&["--model-path", model, "--device", "cuda"]);
        assert!(line.to_lowercase().contains("cuda"), "{line}");
    }
    let other = folder.path().join("other.gguf");
    let mut writer = Writer::new();
    writer.tensor("output.weight", vec![32], Encoding::F32, vec![0; 128]);
    let file = fs::File::create(&other).expect("can be made");
    writer.write_to(file).expect("can be written");
    let line = refuse(&["--model-path", other.to_str().expect("is text")]);
    assert!(line.contains("WAN"), "{line}");
}

/// Names of the model, and one name for both outputs.
#[test]
fn what_is_read_is_never_written_over() {
    let folder = folder(Family::T2v21, 2);
    let model = folder.path().join("model.gguf");
    let before = fs::read(&model).expect("can be read");
    let link = folder.path().join("link.json");
    fs::hard_link(&model, &link).expect("can be linked");
    for arguments in [
        ["--out", "model.gguf"].as_slice(),
        &["--out", "./link.json"],
        &["--html", "model.gguf"],
        &["--out", "a.json", "--html", "a.json"],
    ] {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        let line = String::from_utf8(output.stderr).expect("is text");
        let expected = ["is to be read and written", "is to be written twice"];
        assert!(expected.iter().any(|text| line.contains(text)), "{line}");
        assert_eq!(fs::read(&model).expect("can be read"), before);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_that_names_the_file() {
    let folder = folder(Family::T2v21, 2);
    let model = folder.path().join("model.gguf");
    let model = model.to_str().expect("is text");
    let arguments = [
        "--model-path",
        model,
        "--device",
        "cpu",
        "--out",
        "/dev/full",
    ];
    let output = support::run(&PROGRAM, &arguments);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let line = String::from_utf8(output.stderr).expect("is text");
    assert!(line.contains("/dev/full: No space left"), "{line}");
}
