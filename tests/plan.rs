//! The program `plan`, run as a user runs it.

mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use offload_core::encoding::Encoding;
use offload_core::format::gguf::Writer;
use offload_wan::{Family, SynthesizeSpec, synthesize};
use serde_json::Value;

static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| support::build("plan"));

fn json(arguments: &[&str]) -> Value {
    support::json(&PROGRAM, &[arguments, &["--json"]].concat())
}

fn number(report: &Value, key: &str) -> f64 {
    report[key]
        .as_f64()
        .unwrap_or_else(|| panic!("{key} of {report}"))
}

#[track_caller]
fn check(report: &Value) {
    assert!(number(report, "peak_bytes") <= number(report, "budget_bytes"));
    assert!(
        number(report, "predicted_pass_seconds") >= number(report, "bound_seconds") * (1.0 - 1e-9)
    );
    assert!(number(report, "schedule_gap") >= -1e-9 && number(report, "placement_gap") >= -1e-9);
    assert!(report["verdict"].is_string());
    let placements = report["placements"].as_array().expect("a list");
    for placement in placements {
        assert!(placement["block"].is_string());
        assert!(
            ["resident", "packed", "streamed"]
                .contains(&placement["form"].as_str().expect("a form"))
        );
        assert!(["pinned", "host", "disk"].contains(&placement["tier"].as_str().expect("a tier")));
    }
    let streams = placements
        .iter()
        .any(|placement| placement["form"] == "streamed");
    assert_eq!(number(report, "wire_bytes_per_pass") > 0.0, streams);
}

#[test]
fn a_file_is_planned_without_a_device() {
    let fixture = support::fixture();
    let fixture = fixture.to_str().expect("paths here are text");
    let least = json(&[fixture, "--budget", "least"]);
    check(&least);
    assert_eq!(least["placements"].as_array().expect("a list").len(), 8);
    let all = json(&[fixture, "--budget", "1GiB"]);
    check(&all);
    assert_eq!(all["verdict"], "resident");
    let text = support::run(&PROGRAM, &[fixture, "--budget", "1GiB", "--sweep"]);
    let text = String::from_utf8(text.stdout).expect("is text");
    assert!(text.contains("arena") && text.contains("verdict"), "{text}");
}

#[test]
fn every_plain_variant_is_planned_in_every_encoding() {
    let blocks = [
        ("wan2.1-t2v-1.3b", 30),
        ("wan2.1-t2v-14b", 40),
        ("wan2.1-i2v-14b", 40),
        ("wan2.2-t2v-a14b", 40),
        ("wan2.2-i2v-a14b", 40),
        ("wan2.2-ti2v-5b", 30),
    ];
    for (variant, count) in blocks {
        for encoding in ["F32", "F16", "BF16", "Q8_0", "Q4_K_M"] {
            let report = json(&[
                "--variant",
                variant,
                "--encoding",
                encoding,
                "--budget",
                "6GiB",
            ]);
            check(&report);
            let placements = report["placements"].as_array().expect("a list");
            let blocks = placements
                .iter()
                .filter(|placement| {
                    placement["block"]
                        .as_str()
                        .is_some_and(|name| name.starts_with("blocks."))
                })
                .count();
            assert_eq!(blocks, count, "{variant} in {encoding}");
        }
    }
}

#[test]
fn more_memory_is_never_slower() {
    let report = json(&[
        "--variant",
        "wan2.1-t2v-14b",
        "--encoding",
        "Q8_0",
        "--budget",
        "8GiB",
        "--sweep",
    ]);
    let sweep = report["sweep"].as_array().expect("a list");
    assert_eq!(sweep.len(), 9);
    let mut last = f64::INFINITY;
    for plan in sweep {
        check(plan);
        let seconds = number(plan, "predicted_pass_seconds");
        assert!(seconds <= last * 1.001, "{seconds} after {last}");
        last = seconds;
    }
    assert_eq!(sweep[8]["verdict"], "resident");
}

#[test]
fn encoded_bytes_travel() {
    let wire = |encoding| {
        let arguments = [
            "--variant",
            "wan2.1-t2v-14b",
            "--encoding",
            encoding,
            "--budget",
            "least",
        ];
        number(&json(&arguments), "wire_bytes_per_pass")
    };
    let ratio = wire("BF16") / wire("Q4_K_M");
    assert!((3.05..3.07).contains(&ratio), "{ratio}");
}

#[test]
fn tokens_and_cards_change_what_is_worth_keeping() {
    let plan = |more: &[&str]| {
        let base = [
            "--variant",
            "wan2.1-t2v-14b",
            "--encoding",
            "BF16",
            "--budget",
            "16GiB",
        ];
        json(&[&base, more].concat())
    };
    let video = plan(&["--tokens", "32760", "--card", "rtx4090"]);
    assert_eq!(video["verdict"], "compute-bound");
    assert!(number(&video, "peak_bytes") < number(&video, "budget_bytes") / 2.0);
    let still = plan(&["--tokens", "256", "--card", "rtx4090"]);
    assert_eq!(still["verdict"], "wire-bound");
    let slow = plan(&["--tokens", "32760", "--card", "rtx4060ti"]);
    assert!(number(&slow, "predicted_pass_seconds") > number(&video, "predicted_pass_seconds"));
}

#[test]
fn a_profile_gives_measured_rates() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("profile.json");
    let profile = r#"{"wire_bytes_per_s": 1e9, "upload_latency_s": 0, "host_bytes_per_s": 1e9,
        "disk_bytes_per_s": 1e9, "decode_bytes_per_s": 1e12, "flops_per_s": 1e14}"#;
    fs::write(&path, profile).expect("can be written");
    let path = path.to_str().expect("paths here are text");
    let base = [
        "--variant",
        "wan2.1-t2v-14b",
        "--encoding",
        "BF16",
        "--budget",
        "least",
    ];
    let report = json(&[&base[..], &["--profile", path]].concat());
    let wire_s = number(&report, "wire_bytes_per_pass") / 1e9;
    assert!((number(&report, "bound_seconds") / wire_s - 1.0).abs() < 1e-6);
    for bad in [
        "{}",
        "{",
        "[]",
        &profile.replace("1e14", "0"),
        &profile.replace("1e9", "-1"),
    ] {
        fs::write(path, bad).expect("can be written");
        let line = support::refused(&PROGRAM, &[&base[..], &["--profile", path]].concat());
        assert!(line.contains("profile.json"), "{line}");
    }
}

#[test]
fn every_variant_is_planned_by_its_name() {
    for variant in offload_wan::Variant::ALL {
        let arguments = [
            "--variant",
            variant.name(),
            "--encoding",
            "Q8_0",
            "--budget",
            "12GiB",
        ];
        let report = json(&arguments);
        check(&report);
    }
}

#[test]
fn both_experts_are_planned_under_one_budget() {
    let base = [
        "--variant",
        "wan2.2-t2v-a14b",
        "--encoding",
        "Q4_K_M",
        "--budget",
        "8GiB",
    ];
    let report = json(&[&base[..], &["--pair"]].concat());
    check(&report);
    let kinds = report["kinds"].as_array().expect("a list");
    assert_eq!(kinds.len(), 2);
    assert_eq!(
        (&kinds[0]["name"], &kinds[1]["name"]),
        (&"high full".into(), &"low full".into())
    );
    let placements = report["placements"].as_array().expect("a list");
    let of = |start: &str| {
        let names = placements
            .iter()
            .filter_map(|placement| placement["block"].as_str());
        names.filter(|name| name.starts_with(start)).count()
    };
    assert_eq!((of("high.blocks."), of("low.blocks.")), (40, 40));
    assert_eq!(
        number(&report["expert_change"], "arena_bytes"),
        number(&report, "peak_bytes")
    );
}

#[test]
fn a_variant_that_is_a_pair_takes_a_boundary_and_steps() {
    let base = [
        "--variant",
        "wan2.2-t2v-a14b",
        "--encoding",
        "Q4_K_M",
        "--budget",
        "8GiB",
        "--pair",
    ];
    let passes = |more: &[&str]| {
        let report = json(&[&base[..], more].concat());
        let kinds = report["kinds"].as_array().expect("a list").iter();
        let passes: Vec<f64> = kinds.map(|kind| number(kind, "passes_per_run")).collect();
        (passes, number(&report, "predicted_run_seconds"))
    };
    let (twenty, run_s) = passes(&[]);
    assert_eq!(twenty, [9.0, 11.0]);
    assert_eq!(passes(&["--boundary", "0.875"]).0, twenty);
    assert_eq!(passes(&["--boundary", "0.95"]).0, [5.0, 15.0]);
    let (forty, longer_s) = passes(&["--steps", "40"]);
    assert_eq!(forty, [17.0, 23.0]);
    assert!(longer_s > 1.9 * run_s, "{longer_s} and {run_s}");
    for wrong in ["0", "1", "nan"] {
        let boundary = format!("--boundary={wrong}");
        let line = support::refused(&PROGRAM, &[&base[..], &[&boundary]].concat());
        assert!(line.contains("between 0 and 1"), "{line}");
    }
    let line = support::refused(&PROGRAM, &[&base[..], &["--steps", "1"]].concat());
    assert!(line.contains("--steps 1: each expert"), "{line}");
}

#[test]
fn two_files_are_planned_as_a_pair() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let made = |name: &str, seed| {
        let spec = SynthesizeSpec {
            family: Family::T2v22,
            seed,
            ..SynthesizeSpec::default()
        };
        let path = folder.path().join(name);
        synthesize(&spec, &path).expect("can be written");
        path.to_str().expect("is text").to_owned()
    };
    let (high, low) = (made("high_noise.gguf", 1), made("low_noise.gguf", 2));
    let alone = json(&[&high, "--budget", "least"]);
    let pair = json(&[
        &high,
        "--low",
        &low,
        "--budget",
        "least",
        "--boundary",
        "0.5",
    ]);
    let placements = |report: &Value| report["placements"].as_array().map(Vec::len);
    assert_eq!(placements(&pair), placements(&alone).map(|count| 2 * count));
    assert_eq!(alone["expert_change"], Value::Null);
    assert!(number(&pair["expert_change"], "wire_bytes") > 0.0);
}

#[test]
fn a_step_says_what_guidance_costs() {
    let base = [
        "--variant",
        "wan2.1-t2v-14b",
        "--encoding",
        "Q8_0",
        "--budget",
        "8GiB",
        "--tokens",
        "32760",
    ];
    let of = |more: &[&str]| {
        let report = json(&[&base[..], more].concat());
        let step = &report["steps"][0];
        let figures = ["wire_bytes", "predicted_seconds"].map(|key| number(step, key));
        (
            figures[0],
            figures[1],
            number(&report, "predicted_run_seconds"),
        )
    };
    let (off, separate, lockstep) = (
        of(&[]),
        of(&["--guidance", "separate"]),
        of(&["--guidance", "lockstep"]),
    );
    assert_eq!(separate.0, 2.0 * off.0);
    assert_eq!(separate.1, 2.0 * off.1);
    assert_eq!(separate.2, 2.0 * off.2);
    // Twice the computing, each block brought once.
    assert!(lockstep.0 < separate.0 && lockstep.1 > off.1);
    let skipping = of(&["--guidance", "separate", "--skip-layers", "9,10"]);
    assert!(skipping.0 < separate.0 && skipping.1 < separate.1);
    assert_eq!(of(&["--steps", "40"]).2, 2.0 * off.2);
}

#[test]
fn options_without_an_effect_are_refused_by_name() {
    let refuse = |arguments: &[&str], reason: &str| {
        let base = ["--variant", "wan2.1-t2v-14b", "--encoding", "Q8_0"];
        let base = [&base[..], &["--budget", "8GiB"]].concat();
        let line = support::refused(&PROGRAM, &[&base[..], arguments].concat());
        assert!(line.contains(arguments[0]), "{line}");
        assert!(line.contains(reason), "{line}");
    };
    for order in ["interleaved", "all-first", "off"] {
        refuse(&["--vace-order", order], "the model has no VACE blocks");
    }
    refuse(&["--boundary", "0.5"], "one expert alone");
    refuse(&["--skip-layers", "1"], "without guidance");
    refuse(
        &["--skip-layers", "1", "--guidance", "lockstep"],
        "in lockstep",
    );
    refuse(&["--low", "low.gguf"], "cannot be used with");
    let fixture = support::fixture();
    let fixture = fixture.to_str().expect("paths here are text");
    for option in [&["--pair"][..], &["--encoding", "Q8_0"]] {
        let line = support::refused(&PROGRAM, &[&[fixture, "--budget", "1GiB"], option].concat());
        assert!(
            line.contains(option[0]) && line.contains("cannot be used with"),
            "{line}"
        );
    }
}

#[test]
fn an_encoder_makes_one_pass() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("umt5.gguf");
    let mut writer = Writer::new();
    let mut tensor = |name: String| {
        writer.tensor(name, vec![64, 64], Encoding::F32, vec![0; 64 * 64 * 4]);
    };
    tensor("token_embd.weight".to_owned());
    for layer in 0..4 {
        for name in ["attn_q", "attn_k", "ffn_gate", "ffn_down"] {
            tensor(format!("enc.blk.{layer}.{name}.weight"));
        }
    }
    let file = fs::File::create(&path).expect("can be made");
    writer.write_to(file).expect("can be written");
    let path = path.to_str().expect("is text");
    let report = json(&[path, "--budget", "least"]);
    check(&report);
    assert_eq!(report["steps"], serde_json::json!([]));
    assert_eq!(number(&report["kinds"][0], "passes_per_run"), 1.0);
    for option in [
        &["--steps", "2"][..],
        &["--guidance", "separate"],
        &["--cache-cross-attention"],
        &["--low", path],
    ] {
        let base = [path, "--budget", "least"];
        let line = support::refused(&PROGRAM, &[&base[..], option].concat());
        assert!(line.contains(&format!("{}: ", option[0])), "{line}");
    }
    let line = support::refused(&PROGRAM, &[path, "--budget", "least", "--recommend"]);
    assert!(line.contains("only a WAN transformer"), "{line}");
}

#[test]
fn any_number_of_tokens_is_planned_or_refused_with_numbers() {
    let base = [
        "--variant",
        "wan2.1-vace-14b",
        "--encoding",
        "Q8_0",
        "--budget",
        "least",
        "--recommend",
        "--vace-order",
        "all-first",
    ];
    let of = |tokens: &'static str| [&base[..], &["--tokens", tokens]].concat();
    let line = support::refused(&PROGRAM, &of("18446744073709551615"));
    assert!(line.contains("seconds"), "{line}");
    let report = json(&of("1000000000"));
    // Far more than any card has.
    assert_eq!(report["recommended"][3]["options"], Value::Null);
}

#[test]
fn what_an_engine_keeps_is_reported() {
    let base = [
        "--encoding",
        "Q8_0",
        "--budget",
        "12GiB",
        "--tokens",
        "32760",
    ];
    let vace = ["--variant", "wan2.1-vace-14b", "--vace-order", "all-first"];
    let report = json(&[&vace[..], &base[..]].concat());
    assert_eq!(number(&report, "hint_bytes"), 8.0 * 335_462_400.0);
    assert_eq!(number(&report, "hint_bytes_per_token"), 8.0 * 2.0 * 5120.0);
    let vace = ["--variant", "wan2.1-vace-14b"];
    let of = |more: &[&str]| json(&[&vace[..], &base[..], more].concat());
    let interleaved = of(&[]);
    assert_eq!(number(&interleaved, "hint_bytes_per_token"), 0.0);
    let off = of(&["--vace-order", "off"]);
    let wire = |report: &Value| number(report, "predicted_pass_seconds");
    assert!(wire(&off) < wire(&interleaved));
    let cache = ["--variant", "wan2.1-t2v-14b", "--cache-cross-attention"];
    let report = json(&[&cache[..], &base[..]].concat());
    assert_eq!(
        number(&report, "cached_bytes"),
        2.0 * 40.0 * 512.0 * 5120.0 * 2.0
    );
    let kinds = report["kinds"].as_array().expect("a list");
    let wire = |index: usize| number(&kinds[index], "wire_bytes_per_pass");
    assert!(wire(1) < wire(0));
}

#[test]
fn cards_get_recommendations_that_fit() {
    let base = [
        "--variant",
        "wan2.1-i2v-14b",
        "--encoding",
        "Q8_0",
        "--budget",
        "12GiB",
    ];
    let report = json(&[&base[..], &["--recommend"]].concat());
    let cards = report["recommended"].as_array().expect("a list");
    assert_eq!(cards.len(), 4);
    let mut last = f64::INFINITY;
    for card in cards {
        let free = number(card, "card_gib") * f64::from(1 << 30) - number(card, "reserve_bytes");
        assert!(number(card, "peak_bytes") <= free, "{card}");
        let count = number(&card["options"], "blocks_to_swap");
        assert!(count < last, "{card}");
        last = count;
    }
    let text = support::run(&PROGRAM, &[&base[..], &["--recommend"]].concat());
    let text = String::from_utf8(text.stdout).expect("is text");
    assert!(
        text.contains("24 GiB card") && text.contains("blocks_to_swap"),
        "{text}"
    );
}

#[test]
fn bad_usage_and_bad_input_end_with_one_line() {
    let refuse = |arguments: &[&str]| support::refused(&PROGRAM, arguments);
    let variant = ["--variant", "wan2.1-t2v-14b", "--encoding", "BF16"];
    let line = refuse(&[&variant[..], &["--budget", "100MiB"]].concat());
    assert!(
        line.contains("too small: the least that would do is"),
        "{line}"
    );
    refuse(&variant);
    refuse(&["--budget", "8GiB"]);
    refuse(&["--variant", "wan2.1-t2v-14b", "--budget", "8GiB"]);
    refuse(&[
        "--variant",
        "wan9",
        "--encoding",
        "BF16",
        "--budget",
        "8GiB",
    ]);
    refuse(&[
        "--variant",
        "wan2.1-t2v-14b",
        "--encoding",
        "Q9",
        "--budget",
        "8GiB",
    ]);
    refuse(&[
        "--variant",
        "wan2.1-vace-14b",
        "--encoding",
        "INT8",
        "--budget",
        "8GiB",
    ]);
    let small = [
        "--variant",
        "wan2.1-t2v-1.3b",
        "--encoding",
        "BF16",
        "--pair",
    ];
    let line = refuse(&[&small[..], &["--budget", "8GiB"]].concat());
    assert!(line.contains("no pair of experts"), "{line}");
    refuse(&[&variant[..], &["--budget", "8GiB", "--vace-order", "later"]].concat());
    let line = refuse(
        &[
            &variant[..],
            &[
                "--budget",
                "8GiB",
                "--guidance",
                "separate",
                "--skip-layers",
                "40",
            ],
        ]
        .concat(),
    );
    assert!(line.contains("0 to 39"), "{line}");
    refuse(&[&variant[..], &["--budget", "8GiB", "--card", "voodoo2"]].concat());
    refuse(&[&variant[..], &["--budget", "-1"]].concat());
    refuse(&["/nonexistent.gguf", "--budget", "8GiB"]);
}

#[cfg(target_os = "linux")]
#[test]
fn standard_output_on_a_full_disk_is_an_error_that_says_so() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let fixture = support::fixture();
    for form in [&["--json"][..], &[]] {
        let output = std::process::Command::new(&*PROGRAM)
            .arg(&fixture)
            .args(["--budget", "100MiB"])
            .args(form)
            .stdout(
                full.as_ref()
                    .expect("Linux has it")
                    .try_clone()
                    .expect("is open"),
            )
            .output()
            .expect("the program starts");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let line = String::from_utf8(output.stderr).expect("is text");
        assert!(line.contains("standard output: No space left"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}
