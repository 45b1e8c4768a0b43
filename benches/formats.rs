//! Opening a GGUF file of a large model.

use std::fs::File;
use std::hint::black_box;
use std::io::BufWriter;

use criterion::{Criterion, criterion_group, criterion_main};
use offload_core::encoding::Encoding;
use offload_core::format::gguf::{Gguf, Writer};

/// Tensors of a 14B WAN checkpoint, rounded up.
const TENSORS: u64 = 1100;

fn open(c: &mut Criterion) {
    let mut writer = Writer::new();
    writer
        .metadata("general.architecture", "wan")
        .metadata("general.file_type", 15u32);
    for i in 0..TENSORS {
        let name = format!("blocks.{}.self_attn.{}.weight", i / 27, i % 27);
        writer.tensor_with(name, [4, 256], Encoding::Q4K, |to| to.write_all(&[7; 576]));
    }
    let file = tempfile::NamedTempFile::new().expect("a place for temporary files");
    let out = File::create(file.path()).expect("the file is ours");
    writer
        .write_to(BufWriter::new(out))
        .expect("the file can be written");
    let opened = Gguf::open(file.path()).expect("the file is sound");
    assert_eq!(opened.tensors().len() as u64, TENSORS);

    c.bench_function(&format!("gguf/open/{TENSORS}_tensors"), |b| {
        b.iter(|| Gguf::open(black_box(file.path())).expect("the file is sound"));
    });
}

criterion_group!(benches, open);
criterion_main!(benches);
