//! The program `synthesize`, run as a user runs it.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use offload_wan::{Checkpoint, Naming};
use tempfile::TempDir;

static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| support::build("synthesize"));

fn make(folder: &TempDir, name: &str, arguments: &[&str]) -> PathBuf {
    let path = folder.path().join(name);
    let text = path.to_str().expect("paths here are text").to_owned();
    // Joining drops the mark of a folder.
    let text = if name.ends_with('/') {
        text + "/"
    } else {
        text
    };
    let output = support::run(&PROGRAM, &[arguments, &["--out", &text]].concat());
    assert!(output.status.success(), "{output:?}");
    path
}

fn base<'a>(variant: &'a str, encoding: &'a str) -> [&'a str; 6] {
    [
        "--variant",
        variant,
        "--encoding",
        encoding,
        "--scale",
        "40",
    ]
}

fn open(path: &Path) -> Checkpoint {
    let checkpoint = Checkpoint::open(path).expect("is sound");
    assert_eq!(checkpoint.findings(), []);
    checkpoint
}

#[test]
fn a_name_tells_the_container() {
    let folder = TempDir::new().expect("a folder can be made");
    let gguf = make(&folder, "t2v.gguf", &base("wan2.1-t2v-1.3b", "Q8_0"));
    assert_eq!(fs::read(&gguf).expect("was written")[..4], *b"GGUF");
    assert_eq!(open(&gguf).tensors().len(), 825);
    let arguments = [
        &base("wan2.1-vace-1.3b", "BF16")[..],
        &["--naming", "diffusers"],
    ]
    .concat();
    let shards = make(&folder, "vace/", &arguments);
    let checkpoint = open(&shards);
    assert_eq!(checkpoint.detection().naming, Some(Naming::Diffusers));
    assert!(checkpoint.files().len() >= 3 && shards.join("config.json").is_file());
    let int8 = make(&folder, "long.safetensors", &base("longcat-video", "INT8"));
    let checkpoint = open(&int8);
    assert!(checkpoint.attached().len() > 48 * 5);
}

#[test]
fn the_same_arguments_give_the_same_bytes() {
    let folder = TempDir::new().expect("a folder can be made");
    let arguments = base("wan2.1-t2v-1.3b", "F16");
    let read = |name, more: &[&str]| {
        let path = make(
            &folder,
            name,
            &[&arguments[..], &["--blocks", "2"], more].concat(),
        );
        fs::read(path).expect("was written")
    };
    let first = read("a.gguf", &[]);
    assert!(first == read("b.gguf", &[]));
    assert!(first != read("c.gguf", &["--seed", "1"]));
}

#[test]
fn bad_usage_ends_with_one_line() {
    let refuse = |arguments: &[&str]| support::refused(&PROGRAM, arguments);
    let line = refuse(&[
        "--variant",
        "wan9",
        "--encoding",
        "F16",
        "--out",
        "/tmp/x.gguf",
    ]);
    assert!(line.contains("wan9"), "{line}");
    let line = refuse(&[
        "--variant",
        "wan2.1-t2v-14b",
        "--encoding",
        "Q9",
        "--out",
        "/tmp/x.gguf",
    ]);
    assert!(line.contains("Q4_K_M"), "{line}");
    let arguments = base("wan2.2-s2v-14b", "F16");
    let line = refuse(
        &[
            &arguments[..],
            &["--naming", "diffusers", "--out", "x.gguf"],
        ]
        .concat(),
    );
    assert!(line.contains("wan2.2-s2v has no diffusers names"), "{line}");
    let line = refuse(&[&base("wan2.1-t2v-14b", "F8_E4M3")[..], &["--out", "x.gguf"]].concat());
    assert!(line.contains("GGUF does not hold F8_E4M3"), "{line}");
    refuse(&[&arguments[..], &["--out", "/nonexistent/x.gguf"]].concat());
}
