//! Every option of every program has a test that shows its effect, or that it is refused where it would have none.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Program, option, and the test in `tests/PROGRAM.rs` that shows what it does.
#[rustfmt::skip]
const SHOWN: &[(&str, &str, &str)] = &[
    ("inspect", "--variant", "a_variant_that_is_said_is_what_it_is_taken_for"),
    ("inspect", "--json", "a_checkpoint_is_described"),
    ("plan", "--variant", "every_variant_is_planned_by_its_name"),
    ("plan", "--encoding", "encoded_bytes_travel"),
    ("plan", "--pair", "both_experts_are_planned_under_one_budget"),
    ("plan", "--low", "two_files_are_planned_as_a_pair"),
    ("plan", "--vace-order", "what_an_engine_keeps_is_reported"),
    ("plan", "--guidance", "a_step_says_what_guidance_costs"),
    ("plan", "--skip-layers", "a_step_says_what_guidance_costs"),
    ("plan", "--cache-cross-attention", "what_an_engine_keeps_is_reported"),
    ("plan", "--boundary", "a_variant_that_is_a_pair_takes_a_boundary_and_steps"),
    ("plan", "--steps", "a_variant_that_is_a_pair_takes_a_boundary_and_steps"),
    ("plan", "--budget", "a_file_is_planned_without_a_device"),
    ("plan", "--tokens", "tokens_and_cards_change_what_is_worth_keeping"),
    ("plan", "--card", "tokens_and_cards_change_what_is_worth_keeping"),
    ("plan", "--profile", "a_profile_gives_measured_rates"),
    ("plan", "--sweep", "more_memory_is_never_slower"),
    ("plan", "--recommend", "cards_get_recommendations_that_fit"),
    ("plan", "--json", "a_file_is_planned_without_a_device"),
    ("stream_wan", "--device", "where_cuda_cannot_be_used_the_reason_is_told"),
    ("stream_wan", "--budget", "the_least_budget_streams_every_block_and_changes_no_bit"),
    ("stream_wan", "--variant", "a_variant_that_is_said_is_what_it_is_taken_for"),
    ("stream_wan", "--low", "both_experts_stay_within_one_budget"),
    ("stream_wan", "--vace-order", "each_option_moves_what_was_measured_as_it_promises"),
    ("stream_wan", "--guidance", "a_step_with_guidance_moves_twice_as_much_unless_in_lockstep"),
    ("stream_wan", "--skip-layers", "a_step_with_guidance_moves_twice_as_much_unless_in_lockstep"),
    ("stream_wan", "--cache-cross-attention", "cached_keys_and_values_are_not_brought_again"),
    ("stream_wan", "--boundary", "the_boundary_says_which_passes_are_whose"),
    ("stream_wan", "--blocks-to-swap", "a_count_of_blocks_is_swapped_as_asked"),
    ("stream_wan", "--preset", "options_of_the_block_swap_are_taken_together"),
    ("stream_wan", "--which", "each_option_moves_what_was_measured_as_it_promises"),
    ("stream_wan", "--offload-txt-emb", "each_option_moves_what_was_measured_as_it_promises"),
    ("stream_wan", "--offload-img-emb", "each_option_moves_what_was_measured_as_it_promises"),
    ("stream_wan", "--use-non-blocking", "options_of_the_block_swap_are_taken_together"),
    ("stream_wan", "--vace-blocks-to-swap", "each_option_moves_what_was_measured_as_it_promises"),
    ("stream_wan", "--prefetch-blocks", "each_option_moves_what_was_measured_as_it_promises"),
    ("stream_wan", "--block-swap-debug", "options_of_the_block_swap_are_taken_together"),
    ("stream_wan", "--passes", "a_trace_has_every_visit"),
    ("stream_wan", "--compare-with", "two_streamed_runs_can_be_compared"),
    ("stream_wan", "--arrive", "other_weights_and_other_forms_give_other_digests"),
    ("stream_wan", "--json", "without_a_file_a_small_checkpoint_is_streamed_at_sixty_percent"),
    ("stream_wan", "--trace", "a_trace_has_every_visit"),
    ("dump_tensor", "--tensor", "every_tensor_of_the_fixture_is_what_the_reference_gives"),
    ("dump_tensor", "--dtype", "every_tensor_of_the_fixture_is_what_the_reference_gives"),
    ("dump_tensor", "--out", "every_tensor_of_the_fixture_is_what_the_reference_gives"),
    ("dump_tensor", "--device", "bad_usage_and_bad_input_end_with_one_line_and_leave_the_target_alone"),
    ("synthesize", "--variant", "a_name_tells_the_container"),
    ("synthesize", "--encoding", "the_same_arguments_give_the_same_bytes"),
    ("synthesize", "--naming", "a_name_tells_the_container"),
    ("synthesize", "--scale", "widths_are_divided_and_blocks_are_counted"),
    ("synthesize", "--seed", "the_same_arguments_give_the_same_bytes"),
    ("synthesize", "--blocks", "widths_are_divided_and_blocks_are_counted"),
    ("synthesize", "--out", "a_name_tells_the_container"),
    ("block_swap_performance", "--model-path", "bad_usage_and_bad_input_end_with_one_line_and_no_results"),
    ("block_swap_performance", "--blocks-to-swap", "swapped_blocks_leave_the_device_and_move_in_each_pass"),
    ("block_swap_performance", "--test-all", "all_counts_are_measured_as_far_as_the_model_goes"),
    ("block_swap_performance", "--prefetch-blocks", "swapped_blocks_leave_the_device_and_move_in_each_pass"),
    ("block_swap_performance", "--device", "bad_usage_and_bad_input_end_with_one_line_and_no_results"),
    ("block_swap_performance", "--passes", "swapped_blocks_leave_the_device_and_move_in_each_pass"),
    ("block_swap_performance", "--out", "all_counts_are_measured_as_far_as_the_model_goes"),
    ("block_swap_performance", "--html", "all_counts_are_measured_as_far_as_the_model_goes"),
];

/// The programs that there are: a file each.
fn programs() -> BTreeSet<String> {
    let examples = support::root().join("examples");
    let files = fs::read_dir(examples)
        .expect("is there")
        .filter_map(|entry| {
            let path = entry.expect("can be listed").path();
            let is_source = path.extension().is_some_and(|end| end == "rs");
            let name = path.file_stem()?.to_str()?.to_owned();
            is_source.then_some(name)
        });
    files.collect()
}

/// The options that `--help` tells, but for itself.
fn options(help: &str) -> BTreeSet<String> {
    let words = help
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let options = words.filter(|word| word.starts_with("--"));
    options.map(str::to_owned).collect()
}

#[test]
fn every_option_has_a_test_that_shows_what_it_does() {
    for program in programs() {
        let output = support::run(&support::build(&program), &["--help"]);
        assert_eq!(output.status.code(), Some(0), "{program}: {output:?}");
        assert!(output.stderr.is_empty(), "{program}: {output:?}");
        let help = String::from_utf8(output.stdout).expect("is text");
        assert!(help.contains(&format!("Usage: {program}")), "{help}");
        let of_program = SHOWN.iter().filter(|(of, ..)| *of == program);
        let shown: BTreeSet<String> = of_program
            .map(|(_, option, _)| (*option).to_owned())
            .collect();
        assert_eq!(options(&help), shown, "{program}");
    }
    for (program, option, test) in SHOWN {
        let file = support::root().join("tests").join(format!("{program}.rs"));
        let tests = fs::read_to_string(&file).expect("is there");
        let begin = tests.find(&format!("#[test]\nfn {test}() {{"));
        let begin = begin.unwrap_or_else(|| panic!("{test} of {program}"));
        let end = tests[begin..].find("\n}\n").expect("a test ends");
        let body = &tests[begin..begin + end];
        // Some tests leave an option to a function that they share.
        let helpers = tests.split("#[test]").next().expect("is something");
        let is_used = [body, helpers]
            .iter()
            .any(|text| text.contains(&format!("\"{option}\"")));
        assert!(is_used, "{test} of {program} does without {option}");
    }
}

#[test]
fn what_is_no_option_is_refused() {
    for program in programs() {
        let program = support::build(&program);
        for wrong in ["--nonsense", "--json=no", "-x"] {
            let line = support::refused(&program, &[wrong]);
            assert!(line.starts_with("error: "), "{line}");
        }
    }
}

/// A reader that closes standard output early is no error.
#[cfg(unix)]
#[test]
fn nobody_need_listen() {
    use std::process::{Command, Stdio};
    let fixture = support::fixture();
    let folder = tempfile::tempdir().expect("a folder can be made");
    let out = |name: &str| {
        folder
            .path()
            .join(name)
            .to_str()
            .expect("is text")
            .to_owned()
    };
    let (fixture, model, results) = (
        fixture.to_str().expect("is text"),
        out("model.gguf"),
        out("results.json"),
    );
    let runs: [&[&str]; 8] = [
        &["inspect", fixture],
        &["inspect", fixture, "--json"],
        &["plan", fixture, "--budget", "least", "--sweep"],
        &["plan", fixture, "--budget", "least", "--json"],
        &["stream_wan", fixture],
        &["stream_wan", fixture, "--json"],
        &["custom_model"],
        &[
            "block_swap_performance",
            "--model-path",
            fixture,
            "--out",
            &results,
        ],
    ];
    let made = [
        "--variant",
        "wan2.1-t2v-1.3b",
        "--encoding",
        "F16",
        "--scale",
        "40",
    ];
    let made = [
        &["synthesize"],
        &made[..],
        &["--blocks", "1", "--out", &model],
    ]
    .concat();
    for run in runs.into_iter().chain([&made[..]]) {
        let mut child = Command::new(support::build(run[0]));
        let child = child
            .args(&run[1..])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = child.spawn().expect("starts");
        drop((child.stdout.take(), child.stderr.take()));
        let status = child.wait().expect("ends");
        assert_eq!(status.code(), Some(0), "{run:?}");
    }
    assert!(Path::new(&model).is_file() && Path::new(&results).is_file());
}
