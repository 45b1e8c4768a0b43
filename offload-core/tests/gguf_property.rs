//! Random models survive writing and reading; random damage never panics and never yields a tensor that lies wrong.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod raw_gguf;

use offload_core::encoding::Encoding;
use offload_core::format::gguf::{Gguf, Value, Writer};
use offload_core::source::Source;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use raw_gguf::open;

#[derive(Debug, Clone)]
struct Model {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, Vec<u64>, Encoding, Vec<u8>)>,
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e30f32..1e30).prop_map(Value::F32),
        (-1e300f64..1e300).prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        "[^\0]{0,40}".prop_map(Value::String),
    ]
}

fn tensor() -> impl Strategy<Value = (Vec<u64>, Encoding, Vec<u8>)> {
    let storable: Vec<_> = Encoding::ALL
        .iter()
        .copied()
        .filter(|encoding| encoding.ggml_id().is_some())
        .collect();
    (
        proptest::sample::select(storable),
        vec(0u64..4, 0..5),
        0u64..3,
        any::<u8>(),
    )
        .prop_map(|(encoding, mut shape, quant_blocks, byte)| {
            if encoding.quant_block_len() > 1 || byte.is_multiple_of(2) {
                shape.push(quant_blocks * encoding.quant_block_len());
            }
            let bytes = usize::try_from(encoding.bytes_of(&shape).unwrap()).unwrap();
            let data = (0..bytes)
                .map(|i| (i as u8).wrapping_mul(31) ^ byte)
                .collect();
            (shape, encoding, data)
        })
}

fn model() -> impl Strategy<Value = Model> {
    (
        btree_map("[a-z_.]{1,12}", value(), 0..6),
        btree_map("[a-zA-Z0-9_.]{3,40}", tensor(), 0..8),
    )
        .prop_map(|(metadata, tensors)| Model {
            metadata: metadata.into_iter().collect(),
            tensors: tensors
                .into_iter()
                .map(|(name, (shape, encoding, data))| (name, shape, encoding, data))
                .collect(),
        })
}

fn written(model: &Model) -> Vec<u8> {
    let mut writer = Writer::new();
    for (key, value) in &model.metadata {
        writer.metadata(key.clone(), value.clone());
    }
    for (name, shape, encoding, data) in &model.tensors {
        writer.tensor(name.clone(), shape.clone(), *encoding, data.clone());
    }
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).unwrap();
    bytes
}

/// What holds of every file that opens, however it came about.
fn assert_sound(gguf: &Gguf, file_len: u64) {
    let mut ranges = Vec::new();
    for tensor in gguf.tensors() {
        let Source::File { range, .. } = tensor.source() else {
            panic!("{} is in memory", tensor.name());
        };
        assert!(range.start <= range.end && range.end <= file_len);
        let len = tensor.encoding().quant_block_len();
        assert_eq!(
            u128::from(range.end - range.start) * u128::from(len),
            u128::from(tensor.element_count()) * u128::from(tensor.encoding().quant_block_bytes())
        );
        assert_eq!(gguf.tensor(tensor.name()).unwrap().shape(), tensor.shape());
        assert!(!tensor.name().is_empty() && tensor.name().len() <= 255);
        assert!(tensor.shape().len() <= 8);
        if !range.is_empty() {
            ranges.push(range.clone());
        }
    }
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn models_read_back_as_they_were_written(model in model()) {
        let bytes = written(&model);
        let gguf = open(&bytes).unwrap();
        assert_sound(&gguf, bytes.len() as u64);
        for (key, value) in &model.metadata {
            prop_assert_eq!(gguf.metadata(key), Some(value));
        }
        prop_assert_eq!(gguf.tensors().len(), model.tensors.len());
        for (tensor, (name, shape, encoding, data)) in gguf.tensors().iter().zip(&model.tensors) {
            prop_assert_eq!(tensor.name(), name);
            prop_assert_eq!(tensor.shape(), shape);
            prop_assert_eq!(tensor.encoding(), *encoding);
            let mut read = vec![0; data.len()];
            tensor.source().read(0, &mut read).unwrap();
            prop_assert_eq!(&read, data);
        }
    }

    #[test]
    fn flipped_bytes_never_panic_and_never_yield_a_tensor_that_lies_wrong(
        model in model(),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = written(&model);
        for (index, byte) in flips {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(gguf) = open(&bytes) {
            assert_sound(&gguf, bytes.len() as u64);
        }
    }

    #[test]
    fn words_of_extreme_value_never_panic(
        model in model(),
        at in any::<prop::sample::Index>(),
        word in prop_oneof![
            any::<u64>(),
            (0u32..64, -2i64..3).prop_map(|(power, by)| (1u64 << power).wrapping_add_signed(by)),
        ],
    ) {
        let mut bytes = written(&model);
        let at = at.index(bytes.len() - 7);
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        if let Ok(gguf) = open(&bytes) {
            assert_sound(&gguf, bytes.len() as u64);
        }
    }

    #[test]
    fn files_cut_short_never_yield_a_tensor_past_their_end(
        model in model(),
        at in any::<prop::sample::Index>(),
    ) {
        let mut bytes = written(&model);
        bytes.truncate(at.index(bytes.len()));
        if let Ok(gguf) = open(&bytes) {
            assert_sound(&gguf, bytes.len() as u64);
        }
    }

    #[test]
    fn bytes_after_the_magic_that_are_random_never_panic(tail in vec(any::<u8>(), 0..400)) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tail);
        if let Ok(gguf) = open(&bytes) {
            assert_sound(&gguf, bytes.len() as u64);
        }
    }

    #[test]
    fn damage_to_every_corpus_file_never_panics(
        file in 0usize..64,
        flips in vec((0usize..160, any::<u8>()), 1..4),
    ) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/gguf_hostile");
        let mut paths: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        let mut bytes = std::fs::read(&paths[file % paths.len()]).unwrap();
        for (at, byte) in flips {
            if let Some(old) = bytes.get_mut(at) {
                *old = byte;
            }
        }
        if let Ok(gguf) = open(&bytes) {
            assert_sound(&gguf, bytes.len() as u64);
        }
    }
}
