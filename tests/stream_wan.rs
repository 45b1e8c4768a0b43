//! The program `stream_wan`, run as a user runs it.

mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use offload_core::encoding::Encoding;
use offload_core::format::gguf::{Gguf, Writer};
use offload_wan::{Family, Naming, Recipe, SynthesizeSpec, Variant, synthesize};
use serde_json::Value;
use tempfile::TempDir;

static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| support::build("stream_wan"));

fn json(arguments: &[&str]) -> Value {
    let fixture = support::fixture();
    let fixture = fixture.to_str().expect("paths here are text");
    let mut all = vec![fixture, "--device", "cpu", "--json"];
    all.extend(arguments);
    support::json(&PROGRAM, &all)
}

fn number(report: &Value, key: &str) -> u64 {
    report[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} of {report}"))
}

/// Encoded bytes of transformer block `index` of the fixture.
fn encoded_bytes(index: usize) -> u64 {
    let gguf = Gguf::open(support::fixture()).expect("the fixture opens");
    let prefix = format!("blocks.{index}.");
    let tensors = gguf
        .tensors()
        .iter()
        .filter(|tensor| tensor.name().starts_with(&prefix));
    tensors.map(|tensor| tensor.source().len()).sum()
}

/// What must hold whatever the budget.
#[track_caller]
fn check(report: &Value, passes: u64) {
    assert_eq!(report["identical"], true);
    assert_eq!(report["device"], "cpu");
    assert!(number(report, "peak_bytes") <= number(report, "budget_bytes"));
    let streamed = number(report, "streamed_blocks");
    let (first, wire) = (encoded_bytes(0), number(report, "wire_bytes_per_pass"));
    // The fixture's blocks are alike.
    assert_eq!(
        wire,
        streamed * first,
        "encoded bytes of the streamed blocks"
    );
    let moved =
        number(report, "load_bytes") + passes * wire + number(report, "prefetched_past_end_bytes");
    assert_eq!(
        moved,
        number(report, "uploaded_bytes"),
        "what the recording device counted"
    );
    for key in ["pass_seconds", "stall_seconds"] {
        let list = report[key]
            .as_array()
            .unwrap_or_else(|| panic!("{key} of {report}"));
        assert_eq!(list.len() as u64, passes, "{key}");
        assert!(
            list.iter()
                .all(|seconds| seconds.as_f64().is_some_and(|s| s >= 0.0)),
            "{key}"
        );
    }
    for key in ["predicted_pass_seconds", "bound_seconds"] {
        assert!(
            report[key].as_f64().is_some_and(|seconds| seconds >= 0.0),
            "{key}"
        );
    }
}

#[test]
fn the_least_budget_streams_every_block_and_changes_no_bit() {
    for arrive in ["bf16", "f16", "f32", "stored"] {
        let report = json(&["--budget", "least", "--arrive", arrive, "--passes", "3"]);
        check(&report, 3);
        assert_eq!(number(&report, "streamed_blocks"), 3, "{arrive}");
        assert_eq!(
            number(&report, "peak_bytes"),
            number(&report, "budget_bytes"),
            "{arrive}"
        );
    }
}

#[test]
fn three_quarters_of_the_resident_peak_stream_some_blocks_and_change_no_bit() {
    let resident = json(&["--blocks-to-swap", "0"]);
    check(&resident, 4);
    assert_eq!(number(&resident, "streamed_blocks"), 0);
    assert_eq!(resident["verdict"], "resident");
    let peak = number(&resident, "peak_bytes");
    assert_eq!(peak, number(&resident, "resident_peak_bytes"));
    let budget = (peak * 3 / 4).to_string();
    let report = json(&["--budget", &budget, "--arrive", "bf16"]);
    check(&report, 4);
    assert!(number(&report, "streamed_blocks") >= 1);
    assert_eq!(report["budget_bytes"].to_string(), budget);
}

#[test]
fn a_count_of_blocks_is_swapped_as_asked() {
    for count in 0..=3 {
        let report = json(&["--blocks-to-swap", &count.to_string(), "--passes", "2"]);
        check(&report, 2);
        assert_eq!(number(&report, "streamed_blocks"), count);
    }
}

#[test]
fn without_a_file_a_small_checkpoint_is_streamed_at_sixty_percent() {
    let report = support::json(&PROGRAM, &["--json"]);
    assert_eq!(report["identical"], true);
    let (peak, resident) = (
        number(&report, "peak_bytes"),
        number(&report, "resident_peak_bytes"),
    );
    assert!(peak <= number(&report, "budget_bytes") && peak * 10 <= resident * 6);
    assert!(number(&report, "streamed_blocks") >= 1);
}

#[test]
fn for_people_the_plan_and_a_table_are_printed() {
    let fixture = support::fixture();
    let output = support::run(&PROGRAM, &[fixture.as_os_str()]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("is text");
    for word in [
        "arena",
        "streamed",
        "variant",
        "peak",
        "moved",
        "stalled",
        "verdict",
        "identical",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[test]
fn a_trace_is_written_over_no_model_and_only_when_there_is_one() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let model = folder.path().join("model.gguf");
    synthesize(&SynthesizeSpec::default(), &model).expect("can be written");
    let before = fs::read(&model).expect("can be read");
    let line = support::refused(
        &PROGRAM,
        &[model.as_os_str(), "--trace".as_ref(), model.as_os_str()],
    );
    assert!(line.contains("is to be read and written"), "{line}");
    assert_eq!(fs::read(&model).expect("can be read"), before);
    let old = folder.path().join("old.json");
    fs::write(&old, "kept").expect("can be written");
    let missing = folder.path().join("missing.gguf");
    support::refused(
        &PROGRAM,
        &[missing.as_os_str(), "--trace".as_ref(), old.as_os_str()],
    );
    assert_eq!(fs::read_to_string(&old).expect("can be read"), "kept");
}

#[test]
fn a_trace_has_every_visit() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("trace.json");
    let report = json(&[
        "--budget",
        "least",
        "--passes",
        "2",
        "--trace",
        path.to_str().expect("is text"),
    ]);
    check(&report, 2);
    let trace: Value =
        serde_json::from_slice(&fs::read(&path).expect("was written")).expect("is JSON");
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

/// A small checkpoint of a family in `folder`.
fn made(folder: &TempDir, name: &str, spec: &SynthesizeSpec) -> String {
    let path = folder.path().join(name);
    synthesize(spec, &path).expect("can be written");
    path.to_str().expect("paths here are text").to_owned()
}

fn small(family: Family) -> SynthesizeSpec {
    SynthesizeSpec {
        family,
        block_count: 6,
        dim: 256,
        ffn_dim: 512,
        ..SynthesizeSpec::default()
    }
}

#[test]
fn every_family_naming_and_encoding_is_streamed() {
    let folder = TempDir::new().expect("a folder can be made");
    let with = |family, naming, recipe| SynthesizeSpec {
        naming,
        recipe,
        ..small(family)
    };
    use Naming::{Diffusers, Native, Repacked};
    for (name, spec) in [
        ("vace.gguf", with(Family::Vace21, Native, Recipe::Q4KM)),
        ("sound.gguf", with(Family::S2v22, Native, Recipe::Q5KM)),
        ("long.gguf", with(Family::LongCat, Native, Recipe::Q8_0)),
        (
            "repacked.gguf",
            with(Family::LongCat, Repacked, Recipe::Q6K),
        ),
        (
            "vace.safetensors",
            with(Family::Vace21, Diffusers, Recipe::BF16),
        ),
        ("plain.safetensors", with(Family::I2v21, Native, Recipe::F8)),
        (
            "scaled.safetensors",
            with(Family::T2v21, Native, Recipe::F8Scaled),
        ),
        (
            "mixed.safetensors",
            with(Family::T2v21, Native, Recipe::F8Mixed),
        ),
        (
            "int8.safetensors",
            with(Family::LongCat, Native, Recipe::Int8),
        ),
        ("mixture.gguf", with(Family::T2v21, Native, Recipe::Q4KS)),
    ] {
        let path = made(&folder, name, &spec);
        let report = support::json(
            &PROGRAM,
            &[
                path.as_str(),
                "--budget",
                "least",
                "--passes",
                "2",
                "--json",
            ],
        );
        assert_eq!(report["identical"], true, "{name}");
        assert_eq!(report["compared_with"], "resident", "{name}");
        assert!(number(&report, "streamed_blocks") >= 6, "{name}");
        assert!(
            number(&report, "peak_bytes") <= number(&report, "budget_bytes"),
            "{name}"
        );
    }
}

/// What is told of the change of expert, before pass `pass`; `later`: there are passes of the second to compare with.
#[track_caller]
fn check_change(report: &Value, pass: usize, later: bool) {
    let change = &report["expert_change"];
    let low = &report["kinds"][1];
    assert_eq!(change["wire_bytes"], low["wire_bytes_per_pass"]);
    assert!(number(change, "wire_bytes") > 0);
    assert_eq!(change["hinted_pass_s"], low["predicted_pass_seconds"]);
    assert!(
        change["unhinted_s"]
            .as_f64()
            .is_some_and(|seconds| seconds >= 0.0)
    );
    let measured = &change["measured"];
    assert_eq!(measured["pass"], pass);
    assert_eq!(measured["pass_seconds"], report["pass_seconds"][pass]);
    assert_eq!(measured["stall_seconds"], report["stall_seconds"][pass]);
    // The CPU device page-locks no files, and the plan says so.
    assert!(number(measured, "staged_bytes") > 0);
    assert_eq!(change["planned_tier"], "disk");
    // It was told before: every byte that moved is one of a pass, or was loaded.
    assert_eq!(number(measured, "extra_bytes"), 0);
    let [first, median, extra] =
        ["pass_seconds", "later_pass_seconds", "extra_seconds"].map(|key| measured[key].as_f64());
    assert_eq!(median.is_some(), later);
    assert_eq!(
        extra,
        first.zip(median).map(|(first, median)| first - median)
    );
}

#[test]
fn layers_of_an_encoder_are_streamed_but_not_swapped_by_number() {
    let folder = TempDir::new().expect("a folder can be made");
    let path = folder.path().join("umt5.gguf");
    let mut writer = Writer::new();
    let mut tensor = |name: String| {
        // Small numbers, and others in each tensor.
        let numbers = (0..256 * 256).map(|index| ((index + name.len() * 31) % 97) as f32 / 97.0);
        let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
        writer.tensor(name, vec![256, 256], Encoding::F32, bytes);
    };
    tensor("token_embd.weight".to_owned());
    for layer in 0..4 {
        for name in ["attn_q", "attn_k", "ffn_gate", "ffn_down"] {
            tensor(format!("enc.blk.{layer}.{name}.weight"));
        }
    }
    let file = fs::File::create(&path).expect("can be made");
    writer.write_to(file).expect("can be written");
    let path = path.to_str().expect("paths here are text");
    let report = support::json(&PROGRAM, &[path, "--budget", "least", "--json"]);
    assert_eq!(report["identical"], true);
    assert_eq!(report["variant"], Value::Null);
    assert_eq!(number(&report, "streamed_blocks"), 4);
    assert_eq!(
        number(&report, "wire_bytes_per_pass"),
        4 * 4 * 256 * 256 * 4
    );
    assert_eq!(report["pass_evaluates"], Value::Null);
    assert_eq!(report["steps"], serde_json::json!([]));
    let line = support::refused(&PROGRAM, &[path, "--blocks-to-swap", "2"]);
    assert!(
        line.contains("only the blocks of a WAN transformer"),
        "{line}"
    );
    for option in [
        &["--vace-order", "off"][..],
        &["--guidance", "lockstep"],
        &["--skip-layers", "1"],
        &["--cache-cross-attention"],
        &["--boundary", "0.5"],
        &["--low", path],
    ] {
        let line = support::refused(&PROGRAM, &[&[path], option].concat());
        assert!(line.contains(&format!("{}: ", option[0])), "{line}");
    }
    let line = support::refused(&PROGRAM, &[path, "--variant", "wan2.1-t2v-14b"]);
    assert!(
        line.contains("taken for wan2.1-t2v-14b: it is the encoder"),
        "{line}"
    );
}

#[test]
fn both_experts_stay_within_one_budget() {
    let folder = TempDir::new().expect("a folder can be made");
    let expert = |name, seed| {
        let spec = SynthesizeSpec {
            seed,
            ..small(Family::T2v22)
        };
        made(&folder, name, &spec)
    };
    let (high, low) = (expert("high_noise.gguf", 1), expert("low_noise.gguf", 2));
    let report = support::json(
        &PROGRAM,
        &[high.as_str(), "--low", &low, "--passes", "6", "--json"],
    );
    assert_eq!(report["identical"], true);
    assert_eq!(report["pass_kinds"], serde_json::json!([0, 0, 0, 1, 1, 1]));
    assert!(number(&report, "peak_bytes") <= number(&report, "budget_bytes"));
    assert!(number(&report["expert_change"], "low_resident_bytes") > 0);
    assert_eq!(report["expert_change"]["arena_bytes"], report["peak_bytes"]);
    assert_eq!(report["kinds"].as_array().expect("a list").len(), 2);
    check_change(&report, 3, true);
    let one = support::json(
        &PROGRAM,
        &[high.as_str(), "--low", &low, "--passes", "1", "--json"],
    );
    assert_eq!(one["pass_kinds"], serde_json::json!([0]));
    assert_eq!(one["expert_change"]["measured"], Value::Null);
    let arguments = [
        &high, "--low", &low, "--budget", "least", "--passes", "2", "--json",
    ];
    let two = support::json(&PROGRAM, &arguments);
    check_change(&two, 1, false);
    let line = support::refused(&PROGRAM, &[high.as_str(), "--low", &high]);
    assert!(line.contains("cannot be both experts"), "{line}");
    let line = support::refused(&PROGRAM, &[&high, &low]);
    assert!(line.contains("is there twice"), "{line}");
    let line = support::refused(&PROGRAM, &["--low", &low]);
    assert!(line.contains("<FILE>"), "{line}");
}

#[test]
fn the_boundary_says_which_passes_are_whose() {
    let folder = TempDir::new().expect("a folder can be made");
    let expert = |name, seed| {
        let spec = SynthesizeSpec {
            seed,
            block_count: 2,
            ..small(Family::T2v22)
        };
        made(&folder, name, &spec)
    };
    let (high, low) = (expert("high_noise.gguf", 1), expert("low_noise.gguf", 2));
    let kinds = |passes: &str, more: &[&str]| {
        let base = [&high, "--low", &low, "--passes", passes, "--json"];
        let report = support::json(&PROGRAM, &[&base[..], more].concat());
        assert_eq!(report["identical"], true, "{more:?}");
        assert_eq!(
            report["pass_kinds"].as_array().map(Vec::len),
            report["pass_evaluates"].as_array().map(Vec::len)
        );
        report["pass_kinds"].clone()
    };
    // Levels of six steps: 1, 0.96, 0.91, 0.83, 0.71, 0.5.
    for (boundary, expected) in [
        ("0.95", [0, 0, 1, 1, 1, 1]),
        ("0.875", [0, 0, 0, 1, 1, 1]),
        ("0.6", [0, 0, 0, 0, 0, 1]),
        // Each makes one at least.
        ("0.999", [0, 1, 1, 1, 1, 1]),
        ("0.001", [0, 0, 0, 0, 0, 1]),
    ] {
        let given = kinds("6", &["--boundary", boundary]);
        assert_eq!(given, serde_json::json!(expected), "{boundary}");
    }
    // That of the variant is 0.875.
    assert_eq!(kinds("6", &[]), kinds("6", &["--boundary", "0.875"]));
    // Two passes are a step.
    let arguments = ["--guidance", "separate", "--boundary", "0.95"];
    assert_eq!(
        kinds("6", &arguments),
        serde_json::json!([0, 0, 1, 1, 1, 1])
    );
    let lockstep = ["--guidance", "lockstep", "--boundary", "0.95"];
    assert_eq!(kinds("3", &lockstep), serde_json::json!([0, 1, 1]));
    for wrong in ["0", "1", "-1", "nan", "inf", "2.5"] {
        let boundary = format!("--boundary={wrong}");
        let line = support::refused(&PROGRAM, &[high.as_str(), "--low", &low, &boundary]);
        assert!(line.contains("between 0 and 1"), "{line}");
    }
    let line = support::refused(&PROGRAM, &[high.as_str(), "--boundary", "0.5"]);
    assert!(line.contains("--boundary: one expert alone"), "{line}");
}

#[test]
fn options_without_an_effect_are_refused_by_name() {
    let folder = TempDir::new().expect("a folder can be made");
    let plain = made(&folder, "t2v.gguf", &small(Family::T2v21));
    let refuse = |arguments: &[&str], reason: &str| {
        let line = support::refused(&PROGRAM, &[&[plain.as_str()], arguments].concat());
        assert!(line.contains(arguments[0]), "{line}");
        assert!(line.contains(reason), "{line}");
    };
    for order in ["interleaved", "all-first", "off"] {
        refuse(&["--vace-order", order], "the model has no VACE blocks");
    }
    refuse(&["--skip-layers", "1"], "without guidance");
    refuse(
        &["--skip-layers", "1", "--guidance", "lockstep"],
        "in lockstep",
    );
    for option in [
        &["--which", "last"][..],
        &["--offload-txt-emb"],
        &["--offload-img-emb"],
        &["--use-non-blocking"],
        &["--vace-blocks-to-swap", "1"],
        &["--prefetch-blocks", "1"],
        &["--block-swap-debug"],
    ] {
        refuse(option, "goes with --blocks-to-swap or --preset");
    }
    // Nothing is said of the checkpoint that is made.
    support::refused(&PROGRAM, &["--variant", "wan2.1-t2v-14b"]);
}

#[test]
fn a_variant_that_is_said_is_what_it_is_taken_for() {
    let folder = TempDir::new().expect("a folder can be made");
    // As many blocks as the variants have.
    let spec = SynthesizeSpec {
        block_count: 40,
        ..small(Family::T2v21)
    };
    let path = made(&folder, "model.gguf", &spec);
    let arguments = [&path, "--passes", "1", "--json"];
    let of = |more: &[&str]| support::json(&PROGRAM, &[&arguments[..], more].concat());
    assert_eq!(of(&[])["variant"], "wan2.1-t2v-14b");
    // Both files of a pair are taken for it.
    let other = made(&folder, "other.gguf", &SynthesizeSpec { seed: 1, ..spec });
    let pair = of(&["--low", &other, "--variant", "wan2.2-t2v-a14b"]);
    assert_eq!(pair["variant"], "wan2.2-t2v-a14b");
    let mut writer = Writer::new();
    writer.tensor("t", vec![4], Encoding::F32, vec![0; 16]);
    writer
        .write_to(fs::File::create(&other).expect("can be made"))
        .expect("can be written");
    let arguments = [&path, "--low", &other, "--variant", "wan2.2-t2v-a14b"];
    let line = support::refused(&PROGRAM, &arguments);
    assert!(line.contains("it is no WAN transformer"), "{line}");
    let said = support::refused(&PROGRAM, &[&path, "--variant", "wan2.1-vace-14b"]);
    assert!(said.contains("vace_blocks.0 is missing"), "{said}");
    assert_eq!(
        of(&["--variant", "wan2.2-t2v-a14b"])["variant"],
        "wan2.2-t2v-a14b"
    );
}

#[test]
fn a_step_with_guidance_moves_twice_as_much_unless_in_lockstep() {
    let folder = TempDir::new().expect("a folder can be made");
    let path = made(&folder, "t2v.gguf", &small(Family::T2v21));
    let of = |more: &[&str]| {
        let base = [&path, "--budget", "least", "--passes", "2", "--json"];
        let report = support::json(&PROGRAM, &[&base[..], more].concat());
        assert_eq!(report["identical"], true, "{more:?}");
        report
    };
    let step = |report: &Value| number(&report["steps"][0], "wire_bytes");
    let off = of(&[]);
    let separate = of(&["--guidance", "separate"]);
    let lockstep = of(&["--guidance", "lockstep"]);
    assert_eq!(step(&off), number(&off, "wire_bytes_per_pass"));
    assert_eq!(step(&separate), 2 * step(&off));
    assert_eq!(step(&lockstep), step(&off));
    let evaluates = |report: &Value| report["pass_evaluates"].clone();
    use serde_json::json;
    assert_eq!(evaluates(&off), json!(["prompt", "prompt"]));
    assert_eq!(evaluates(&separate), json!(["prompt", "no-prompt"]));
    assert_eq!(evaluates(&lockstep), json!(["both", "both"]));
    // Two of six blocks are left out in every second pass.
    let skipping = of(&["--guidance", "separate", "--skip-layers", "1,2"]);
    assert_eq!(step(&skipping) * 12, step(&separate) * 10);
    assert_eq!(skipping["pass_kinds"], json!([0, 1]));
}

#[test]
fn cached_keys_and_values_are_not_brought_again() {
    let folder = TempDir::new().expect("a folder can be made");
    let path = made(&folder, "t2v.gguf", &small(Family::T2v21));
    let arguments = [&path, "--budget", "least", "--passes", "3", "--json"];
    let plain = support::json(&PROGRAM, &arguments);
    let cached = support::json(
        &PROGRAM,
        &[&arguments[..], &["--cache-cross-attention"]].concat(),
    );
    assert_eq!(cached["identical"], true);
    assert_eq!(cached["pass_kinds"], serde_json::json!([0, 1, 1]));
    assert!(number(&cached, "uploaded_bytes") < number(&plain, "uploaded_bytes"));
    assert_eq!(number(&cached, "cached_bytes"), 2 * 6 * 512 * 256 * 2);
    assert_eq!(number(&plain, "cached_bytes"), 0);
}

#[test]
fn options_of_the_block_swap_are_taken_together() {
    let folder = TempDir::new().expect("a folder can be made");
    let path = made(&folder, "vace.gguf", &small(Family::Vace21));
    let json = |more: &[&str]| {
        let base = [&path, "--blocks-to-swap", "3", "--passes", "2", "--json"];
        let report = support::json(&PROGRAM, &[&base[..], more].concat());
        assert_eq!(report["identical"], true, "{more:?}");
        report
    };
    let plain = json(&[]);
    // Half of six, and as large a share of two.
    assert_eq!(number(&plain, "streamed_blocks"), 4);
    assert_eq!(
        number(&json(&["--vace-blocks-to-swap", "2"]), "streamed_blocks"),
        5
    );
    assert_eq!(number(&json(&["--offload-txt-emb"]), "streamed_blocks"), 5);
    let ahead = json(&["--prefetch-blocks", "2"]);
    assert!(number(&ahead, "peak_bytes") > number(&plain, "peak_bytes"));
    json(&[
        "--which",
        "last",
        "--use-non-blocking",
        "--vace-order",
        "all-first",
    ]);
    let arguments = [&path, "--blocks-to-swap", "3", "--block-swap-debug"];
    let output = support::run(&PROGRAM, &arguments);
    let told = String::from_utf8(output.stderr).expect("is text");
    for line in [
        "[BlockSwap] Total blocks: 6",
        "[BlockSwap] Offloading to CPU: blocks 0, 2, 4",
        "[BlockSwap] Block blocks.0 pass 0: transfer_time=",
    ] {
        assert!(told.contains(line), "{line} in {told}");
    }
    assert!(!told.contains("Block blocks.1 pass"), "it stays: {told}");
    // Told of visits that did not wait, too.
    assert!(told.contains("stall_time=0.0000s"), "{told}");
    // What the device cannot lock is told.
    let notes = |more: &[&str]| json(more)["host"]["notes"].to_string();
    assert!(notes(&[]).contains("switched off"));
    assert!(!notes(&["--use-non-blocking"]).contains("switched off"));
    let line = support::refused(&PROGRAM, &[path.as_str(), "--preset", "24gb"]);
    assert!(line.contains("8gb, 12gb and 16gb"), "{line}");
    let report = support::json(
        &PROGRAM,
        &[path.as_str(), "--preset", "8gb", "--passes", "1", "--json"],
    );
    assert_eq!(number(&report, "streamed_blocks"), 6 + 2 + 1);
}

/// What a run with `arguments` took on the device and moved there for its passes, and which blocks it moved in the first.
fn taken(path: &str, arguments: &[&str]) -> (u64, u64, Vec<String>) {
    let folder = TempDir::new().expect("a folder can be made");
    let trace = folder.path().join("trace.json");
    let trace = trace.to_str().expect("is text");
    let base = [
        path, "--device", "cpu", "--json", "--passes", "2", "--trace", trace,
    ];
    let report = support::json(&PROGRAM, &[&base[..], arguments].concat());
    assert_eq!(report["identical"], true, "{arguments:?}");
    let text = fs::read(trace).expect("was written");
    let events: Value = serde_json::from_slice(&text).expect("is JSON");
    let events = events["traceEvents"].as_array().expect("a list").iter();
    let moved = events.filter(|event| event["cat"] == "upload" && event["args"]["pass"] == 0);
    let mut moved: Vec<String> = moved
        .filter_map(|event| event["name"].as_str().map(str::to_owned))
        .collect();
    moved.sort();
    let uploaded = number(&report, "uploaded_bytes");
    let for_passes = uploaded - number(&report, "prefetched_past_end_bytes");
    (number(&report, "peak_bytes"), for_passes, moved)
}

#[test]
fn each_option_moves_what_was_measured_as_it_promises() {
    let folder = TempDir::new().expect("a folder can be made");
    // As in published models, a block is larger than the embeddings.
    let wider = SynthesizeSpec {
        block_count: 4,
        dim: 512,
        ffn_dim: 2048,
        ..small(Family::I2v21)
    };
    let image = made(&folder, "i2v.gguf", &wider);
    let vace = made(&folder, "vace.gguf", &small(Family::Vace21));
    let base = ["--blocks-to-swap", "2"];
    let (peak, uploaded, moved) = taken(&image, &base);
    assert_eq!(moved, ["blocks.0", "blocks.2"]);
    // Less on the device, more on the wire.
    for (more, name) in [
        (&["--blocks-to-swap", "3"][..], "blocks.1"),
        (
            &["--blocks-to-swap", "2", "--offload-txt-emb"],
            "text_embedding",
        ),
        (&["--blocks-to-swap", "2", "--offload-img-emb"], "img_emb"),
    ] {
        let with = taken(&image, more);
        assert!(with.0 < peak && with.1 > uploaded, "{more:?}");
        assert!(
            with.2.iter().any(|moved| moved == name),
            "{more:?}: {:?}",
            with.2
        );
    }
    // Others of as many bytes.
    let last = taken(&image, &[&base[..], &["--which", "last"]].concat());
    assert_eq!((last.0, last.1), (peak, uploaded));
    assert_eq!(last.2, ["blocks.2", "blocks.3"]);
    // Places for more take memory and move nothing more.
    let ahead = taken(&image, &[&base[..], &["--prefetch-blocks", "1"]].concat());
    assert!(ahead.0 > peak);
    assert_eq!(ahead.1, uploaded);
    // A share of VACE's blocks, or a number of them.
    let of_vace = |arguments: &[&str]| {
        let taken = taken(&vace, &[&base[..], arguments].concat());
        let count = taken
            .2
            .iter()
            .filter(|name| name.starts_with("vace_blocks."));
        (taken.0, taken.1, count.count())
    };
    let (share, two) = (of_vace(&[]), of_vace(&["--vace-blocks-to-swap", "2"]));
    assert_eq!((share.2, two.2), (1, 2));
    assert!(two.0 < share.0 && two.1 > share.1);
    // Passes: what is not visited does not move, and what two evaluations share moves once.
    let streamed = |arguments: &[&str]| taken(&vace, &[&["--budget", "least"], arguments].concat());
    let all = streamed(&[]);
    let off = streamed(&["--vace-order", "off"]);
    assert!(off.1 < all.1 && off.2.iter().all(|name| !name.starts_with("vace")));
    let first = streamed(&["--vace-order", "all-first"]);
    assert_eq!((first.1, &first.2), (all.1, &all.2));
    // In another order, which the computation notices.
    let digests = |order: &str| {
        let arguments = [&vace, "--vace-order", order, "--passes", "1", "--json"];
        support::json(&PROGRAM, &arguments)["digests"].clone()
    };
    assert_ne!(digests("all-first"), digests("interleaved"));
    // Two passes are a step of guidance apart and two steps in lockstep.
    assert_eq!(streamed(&["--guidance", "separate"]).1, all.1);
    assert_eq!(streamed(&["--guidance", "lockstep"]).1, all.1);
    let skipping = streamed(&["--guidance", "separate", "--skip-layers", "1,2"]);
    assert!(skipping.1 < all.1);
}

#[test]
#[ignore = "writes and streams files of 1.5 GB"]
fn full_widths_are_streamed_within_the_budget() {
    let folder = TempDir::new().expect("a folder can be made");
    for (name, recipe, block_count, budget) in [
        ("wan2.1-t2v-1.3b", Recipe::Q8_0, 30, "1GiB"),
        ("wan2.1-t2v-14b", Recipe::Q4KM, 2, "1400MiB"),
    ] {
        let variant = Variant::from_name(name).expect("is published");
        let spec = SynthesizeSpec {
            block_count,
            ..SynthesizeSpec::of_variant(variant, recipe, 1, 0).expect("has a size")
        };
        let path = made(&folder, "model.gguf", &spec);
        let arguments = [
            &path, "--device", "cpu", "--budget", budget, "--passes", "2", "--json",
        ];
        let report = support::json(&PROGRAM, &arguments);
        assert_eq!(report["identical"], true, "{name}");
        assert_eq!(report["compared_with"], "resident", "{name}");
        assert!(number(&report, "streamed_blocks") > 0, "{name}");
        assert!(number(&report, "peak_bytes") <= number(&report, "budget_bytes"));
        assert!(number(&report, "peak_bytes") < number(&report, "resident_peak_bytes"));
    }
}

#[test]
fn bad_usage_and_bad_input_end_with_one_line() {
    let fixture = support::fixture();
    let fixture = fixture.to_str().expect("paths here are text");
    let refuse = |arguments: &[&str]| support::refused(&PROGRAM, arguments);
    let line = refuse(&[fixture, "--budget", "100KiB"]);
    assert!(
        line.contains("budget of 102400 bytes is too small: the least"),
        "{line}"
    );
    let line = refuse(&[fixture, "--blocks-to-swap", "4"]);
    assert!(
        line.contains("cannot take blocks_to_swap 4: this model takes blocks_to_swap from 0 to 3"),
        "{line}"
    );
    assert!(refuse(&[fixture, "--passes", "0"]).contains("--passes"));
    assert!(refuse(&[fixture, "--budget", "lots"]).contains("no size"));
    refuse(&[fixture, "--budget", "least", "--blocks-to-swap", "1"]);
    refuse(&["/nonexistent.gguf"]);
    refuse(&[fixture, fixture]);
    refuse(&[fixture, "--trace", "/nonexistent/trace.json"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_that_names_the_file() {
    let fixture = support::fixture();
    let fixture = fixture.to_str().expect("paths here are text");
    let arguments = [fixture, "--json", "--trace", "/dev/full"];
    let line = support::refused(&PROGRAM, &arguments);
    assert!(line.contains("/dev/full: No space left"), "{line}");
}

#[test]
fn where_cuda_cannot_be_used_the_reason_is_told() {
    if offload_cuda::probe().is_ok() {
        println!("SKIPPED: CUDA can be used here");
        return;
    }
    let fixture = support::fixture();
    let fixture = fixture.to_str().expect("paths here are text");
    let line = support::refused(&PROGRAM, &[fixture, "--device", "cuda"]);
    assert!(line.to_lowercase().contains("cuda"), "{line}");
    let output = support::run(&PROGRAM, &[fixture, "--device", "auto", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("nothing but JSON");
    assert_eq!(report["device"], "cpu");
    let told = String::from_utf8(output.stderr).expect("is text");
    let reason = line.trim_end().trim_start_matches("error: ");
    assert_eq!(told, format!("note: computed on the CPU: {reason}\n"));
}

#[test]
fn other_weights_and_other_forms_give_other_digests() {
    let folder = TempDir::new().expect("a folder can be made");
    let digests = |seed, arrive: &str| {
        let spec = SynthesizeSpec {
            seed,
            ..small(Family::T2v21)
        };
        let path = made(&folder, "t2v.gguf", &spec);
        let arguments = [&path, "--arrive", arrive, "--passes", "2", "--json"];
        let report = support::json(&PROGRAM, &arguments);
        let digests = report["digests"].as_array().expect("a list").clone();
        assert_eq!(digests.len(), 2);
        assert_eq!(digests[0], digests[1], "passes are alike");
        digests[0].clone()
    };
    let mut forms = Vec::new();
    for arrive in ["bf16", "f16", "f32", "stored"] {
        let first = digests(1, arrive);
        assert_eq!(first, digests(1, arrive));
        assert_ne!(first, digests(2, arrive));
        assert!(!forms.contains(&first), "{arrive}");
        forms.push(first);
    }
}

#[test]
fn two_streamed_runs_can_be_compared() {
    for (with, budget) in [("least", "900MiB"), ("most", "least")] {
        let report = json(&["--compare-with", with, "--budget", budget]);
        check(&report, 4);
        assert_eq!(report["compared_with"], with);
    }
    let report = json(&["--budget", "least"]);
    assert_eq!(report["compared_with"], "resident");
    assert!(number(&report["host"], "staged_bytes") > 0);
}
