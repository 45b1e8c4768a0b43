//! Opening a GGUF file of a large model, and reference decoding of the formats that WAN's files are made of.
//!
//! `decode/*` is one thread of the plain decoder that faster ones are compared with; its throughput counts encoded
//! bytes in and arrived bytes out. `decode/copy` copies as many bytes, for scale.

use std::fs::File;
use std::hint::black_box;
use std::io::BufWriter;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use offload_core::decode::{Float, decode};
use offload_core::encoding::Encoding;
use offload_core::format::gguf::{Gguf, Writer};

/// Tensors of a 14B WAN checkpoint, rounded up.
const TENSORS: u64 = 1100;

/// Encoded bytes of one decoding: more than a level 2 cache holds.
const ENCODED_BYTES: u64 = 4 << 20;

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

fn decode_to_bf16(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    for encoding in [Encoding::Q8_0, Encoding::Q4K, Encoding::Q6K] {
        let quant_blocks = ENCODED_BYTES / encoding.quant_block_bytes();
        let encoded = noise(quant_blocks * encoding.quant_block_bytes());
        let numbers = quant_blocks * encoding.quant_block_len();
        let mut arrived = noise(numbers * Float::BF16.bytes());
        group.throughput(Throughput::Bytes((encoded.len() + arrived.len()) as u64));
        group.bench_function(format!("{encoding}/BF16").to_lowercase(), |b| {
            b.iter(|| {
                decode(
                    encoding,
                    black_box(&encoded),
                    Float::BF16,
                    black_box(&mut arrived),
                )
                .expect("the encoding is supported");
            });
        });
    }
    let from = noise(ENCODED_BYTES);
    let mut to = noise(ENCODED_BYTES);
    group.throughput(Throughput::Bytes(2 * ENCODED_BYTES));
    group.bench_function("copy", |b| {
        b.iter(|| black_box(&mut to).copy_from_slice(black_box(&from)));
    });
}

/// Bytes of a fixed sequence that looks random.
fn noise(len: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

criterion_group!(benches, open, decode_to_bf16);
criterion_main!(benches);
