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
    let other = make(
        &folder,
        "d.gguf",
        &[&base("wan2.1-t2v-1.3b", "Q8_0")[..], &["--blocks", "2"]].concat(),
    );
    assert!(first != fs::read(other).expect("was written"));
}

#[test]
fn widths_are_divided_and_blocks_are_counted() {
    let folder = TempDir::new().expect("a folder can be made");
    let of = |name, scale, blocks| {
        let arguments = [
            "--variant",
            "wan2.1-t2v-1.3b",
            "--encoding",
            "F16",
            "--scale",
            scale,
            "--blocks",
            blocks,
        ];
        let checkpoint = open(&make(&folder, name, &arguments));
        let detection = checkpoint.detection();
        (detection.dim, detection.block_count)
    };
    assert_eq!(of("a.gguf", "12", "3"), (128, 3));
    assert_eq!(of("b.gguf", "6", "3"), (256, 3));
    assert_eq!(of("c.gguf", "12", "1"), (128, 1));
}

/// What is written is put in place by renaming, which would replace a pipe or a device by a file.
#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_replaced_by_one() {
    use std::os::unix::fs::FileTypeExt;
    let folder = TempDir::new().expect("a folder can be made");
    for name in ["socket.gguf", "socket.safetensors"] {
        let socket = folder.path().join(name);
        let _open = std::os::unix::net::UnixListener::bind(&socket).expect("can be made");
        let text = socket.to_str().expect("is text");
        let arguments = [&base("wan2.1-t2v-1.3b", "F16")[..], &["--out", text]].concat();
        let line = support::refused(&PROGRAM, &arguments);
        assert!(line.contains("not a regular file"), "{line}");
        let kind = fs::metadata(&socket).expect("is there").file_type();
        assert!(kind.is_socket());
    }
    let left = fs::read_dir(folder.path()).expect("is a folder").count();
    assert_eq!(left, 2, "no partial files");
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
