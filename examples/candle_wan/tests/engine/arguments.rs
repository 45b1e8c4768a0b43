//! The program as it is called: bad input ends it with status 2 and one line that says what is wrong.

use std::path::Path;
use std::process::{Command, Output};

use offload_wan::Recipe;

use crate::support;

fn program(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candle_wan"));
    command.args(arguments).output().expect("it was built")
}

fn refused(arguments: &[&str]) -> String {
    let output = program(arguments);
    let line = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert!(
        line.starts_with("error: ") && line.ends_with('\n'),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn bad_input_ends_with_status_2_and_a_line_that_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let write = |variant: &str, scale, name: &str| {
        support::write(
            &support::spec(variant, Recipe::F16, scale, 2),
            folder.path(),
            name,
        )
    };
    let t2v = write("wan2.1-t2v-1.3b", 6, "t2v.gguf");
    let [one, two] = ["one.gguf", "two.gguf"].map(|name| write("wan2.2-ti2v-5b", 12, name));
    let vace = write("wan2.1-vace-1.3b", 6, "vace.gguf");
    let other = folder.path().join("other.gguf");
    std::fs::write(&other, "no model").unwrap();
    let (t2v, vace, other) = (text(&t2v), text(&vace), text(&other));
    let (one, two) = (text(&one), text(&two));

    for (arguments, part) in [
        (&[][..], "<FILE>"),
        (&["missing.gguf"], "missing.gguf"),
        (&[other], "other.gguf"),
        (&[vace], "wan2.1-vace"),
        (&[t2v, "--budget", "4KiB"], "4096"),
        (&[t2v, "--budget", "much"], "`much` is no size"),
        (
            &[t2v, "--size", "100x64"],
            "the width is 100: it can be a multiple of 16",
        ),
        (&[t2v, "--size", "64x0"], "the height is 0"),
        (&[t2v, "--size", "64"], "`64` is no size of a video"),
        (
            &[t2v, "--size", "18446744073709551600x64"],
            "there can be 1048576 latents",
        ),
        (&[t2v, "--frames", "6"], "6 frames"),
        (&[t2v, "--steps", "0"], "0"),
        (&[t2v, "--shift", "-1"], "-1"),
        (&[t2v, "--low", t2v], "cannot be both experts"),
        (&[one, "--low", two], "give the boundary"),
        (
            &[one, "--low", two, "--boundary", "2"],
            "the boundary of two experts is 2",
        ),
        (&[t2v, "--boundary", "0.9"], "--low"),
        (&[t2v, "--out", "no/such/folder"], "no/such/folder"),
    ] {
        let line = refused(arguments);
        assert!(line.contains(part), "{arguments:?}: {line}");
    }
}

#[test]
fn latents_are_written_and_do_not_depend_on_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let spec = support::spec("wan2.1-i2v-14b", Recipe::Q8_0, 20, 3);
    let model = support::write(&spec, folder.path(), "i2v.gguf");
    let written = |budget: &str| {
        let path = folder.path().join(budget);
        let arguments = [
            text(&model),
            "--budget",
            budget,
            "--steps",
            "2",
            "--out",
            text(&path),
        ];
        let output = program(&arguments);
        assert!(output.status.success(), "{output:?}");
        std::fs::read(path).unwrap()
    };
    let least = written("least");
    assert!(least == written("1GiB"));
    let tensors = candle_core::safetensors::load_buffer(&least, &candle_core::Device::Cpu).unwrap();
    assert_eq!(tensors["latents"].dims(), [1, 16, 2, 8, 16]);
}
