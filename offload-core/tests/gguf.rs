//! Reading GGUF files: a real one, the corpus of sound and hostile ones, and what the API promises.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use offload_core::decode::{Float, decode};
use offload_core::encoding::Encoding;
use offload_core::format::gguf::{Flaw, Gguf, GgufError, Value};
use offload_core::source::{Source, SourceFile};
use offload_core::swappable::{Role, SpecError, TensorSpec};
use sha2::{Digest, Sha256};

fn data(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(path)
}

fn corpus() -> Vec<(String, Result<Gguf, GgufError>)> {
    let mut files: Vec<_> = fs::read_dir(data("gguf_hostile"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, Gguf::open(path))
        })
        .collect()
}

fn arrived(tensor: &TensorSpec, target: Float) -> Vec<u8> {
    let mut encoded = vec![0; usize::try_from(tensor.source().len()).unwrap()];
    tensor.source().read(0, &mut encoded).unwrap();
    let len = usize::try_from(tensor.element_count() * target.bytes()).unwrap();
    let mut arrived = vec![0; len];
    decode(tensor.encoding(), &encoded, target, &mut arrived).unwrap();
    arrived
}

#[test]
fn every_sound_file_of_the_corpus_opens() {
    let mut opened = 0;
    for (name, result) in corpus() {
        if name.starts_with("bad_") {
            continue;
        }
        let gguf = result.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(gguf.version(), 3, "{name}");
        for tensor in gguf.tensors() {
            arrived(tensor, Float::F32);
        }
        opened += 1;
    }
    assert_eq!(opened, 9);
}

/// A bad file, and what must be found to be wrong with it.
const BAD: &[(&str, &str)] = &[
    (
        "align_0",
        "general.alignment is 0, not a power of two up to 1048576",
    ),
    ("align_2e31", "general.alignment is 2147483648, not a power"),
    (
        "arr_len_wrap",
        "metadata x has an array of 4611686018427387904 elements",
    ),
    ("arr_type_unknown", "metadata x is of type 99"),
    ("bool_2", "metadata x has the truth value 2"),
    ("dim_neg", "more than 1099511627776 elements"),
    (
        "dims_prod_wrap0",
        "tensor a of shape [4294967296, 4294967296] has more than",
    ),
    ("dup_key", "metadata key general.architecture stands twice"),
    ("dup_tensor", "tensor a.weight stands twice"),
    ("key_64k_plus", "metadata key of 70000 bytes, at most 65535"),
    ("key_empty", "an empty metadata key"),
    ("key_len_2e64", "metadata key of 18446744073709551615 bytes"),
    ("key_len_huge", "metadata key of 4611686018427387904 bytes"),
    ("key_not_utf8", "metadata key that is not utf-8"),
    (
        "magic_be",
        "is no gguf file: its first bytes are [46, 55, 47, 47]",
    ),
    ("name_nul", "tensor name with the control character '\\0'"),
    ("name_traversal", "reads as a path"),
    ("nbytes_wrap", "more than 1099511627776 elements"),
    (
        "ndims_2e31",
        "tensor a has 2147483648 dimensions, at most 8",
    ),
    ("ndims_9", "tensor a has 9 dimensions, at most 8"),
    ("nkv_huge", "metadata entries cannot lie in the"),
    ("nt_fits_infos_not_overhead", "tensors cannot lie in the"),
    ("nt_neg", "18446744073709551615 tensors cannot lie in the"),
    ("offset_past_eof", "tensor a has 256 bytes at"),
    ("offset_unaligned", "no multiple of 32"),
    (
        "orig_shape_mismatch",
        "is [7, 9], but 64 elements are stored",
    ),
    ("overlap", "tensor b begins at byte"),
    ("pad_wrap", "more than 1099511627776 elements"),
    ("row_not_block_multiple", "not a whole number of"),
    ("size_past_eof", "tensor a has"),
    ("str_len_huge", "a metadata string of"),
    (
        "str_len_wrap",
        "a metadata string of 18446744073709551615 bytes",
    ),
    (
        "total_ok_row_not_multiple",
        "rows of 128 elements are not a whole number of Q4_K quant blocks",
    ),
    (
        "truncated_data",
        "ends at byte 228: tensor a.weight has 256 bytes",
    ),
    (
        "truncated_info",
        "1 tensors cannot lie in the 20 bytes that follow",
    ),
    (
        "truncated_magic",
        "ends at byte 2: magic needs 4 bytes at 0",
    ),
    ("type_43", "tensor a is of type 43, which does not exist"),
    (
        "type_neg",
        "tensor a is of type 4294967295, which does not exist",
    ),
    ("type_unknown", "metadata x is of type 77"),
    ("version4", "is a gguf file of version 4: only 2 and 3"),
    ("version_be3", "is a big-endian gguf file of version 3"),
];

#[test]
fn every_hostile_file_of_the_corpus_is_refused_for_its_flaw() {
    let mut results: BTreeMap<_, _> = corpus().into_iter().collect();
    for (name, wanted) in BAD {
        let error = results
            .remove(&format!("bad_{name}"))
            .expect("the file is there")
            .expect_err(name)
            .to_string();
        assert!(error.contains(&format!("bad_{name}.gguf")), "{error}");
        assert!(error.contains(wanted), "{name}: {error}");
        assert!(!error.ends_with('.'), "{error}");
    }
    results.retain(|name, _| name.starts_with("bad_"));
    assert!(results.is_empty(), "{results:?} stand not in the table");
}

#[test]
fn the_versions_and_byte_orders_that_are_not_read_have_errors_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let open = |magic: &[u8], version: u32| {
        let path = folder.path().join("file.gguf");
        let bytes = [magic, &version.to_le_bytes(), &[0; 16]].concat();
        fs::write(&path, bytes).unwrap();
        Gguf::open(path)
    };
    assert!(open(b"GGUF", 2).is_ok());
    assert!(open(b"GGUF", 3).is_ok());
    assert!(matches!(
        open(b"GGUF", 1),
        Err(GgufError::VersionOne { .. })
    ));
    for swapped in 1..=3u32 {
        let result = open(b"GGUF", swapped.swap_bytes());
        assert!(matches!(result, Err(GgufError::BigEndian { version, .. }) if version == swapped));
    }
    for unknown in [0, 4, 5, 255, 256, 0xffff, 0x0001_0001, u32::MAX] {
        let result = open(b"GGUF", unknown);
        assert!(
            matches!(result, Err(GgufError::UnknownVersion { version, .. }) if version == unknown)
        );
    }
    for magic in [
        b"FUGG",
        b"GGML",
        b"ggjt",
        b"gguf",
        b"\0\0\0\0",
        b"PK\x03\x04",
    ] {
        let result = open(magic, 3);
        assert!(matches!(result, Err(GgufError::NotGguf { magic: found, .. }) if found == *magic));
    }
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error_that_names_it() {
    let error = Gguf::open("/nowhere/at/all.gguf").unwrap_err();
    assert!(matches!(error, GgufError::Source(_)));
    assert!(error.to_string().contains("/nowhere/at/all.gguf"));
    assert!(Gguf::open(data("gguf_hostile")).is_err(), "a folder");
}

#[test]
fn five_dimensions_come_out_in_torch_order() {
    let gguf = Gguf::open(data("gguf_hostile/good_5d_wan.gguf")).unwrap();
    let tensor = gguf.tensor("patch_embedding.weight").unwrap();
    assert_eq!(tensor.shape(), [4, 16, 1, 2, 2]);
    assert_eq!(tensor.encoding(), Encoding::F32);
    assert_eq!(tensor.role(), Role::Matrix);
}

#[test]
fn nan_scales_are_no_flaw_and_decode_to_nan() {
    let gguf = Gguf::open(data("gguf_hostile/nan_scales_q4k.gguf")).unwrap();
    let numbers = arrived(&gguf.tensors()[0], Float::F32);
    assert!(
        numbers
            .chunks_exact(4)
            .any(|b| f32::from_le_bytes(b.try_into().unwrap()).is_nan())
    );
}

#[test]
fn metadata_is_kept_by_type_and_arrays_are_not() {
    let gguf = Gguf::open(data("gguf_hostile/good_nested_array.gguf")).unwrap();
    assert_eq!(
        gguf.metadata("general.architecture"),
        Some(&Value::String("wan".into()))
    );
    assert_eq!(gguf.metadata("x"), None);
    assert_eq!(gguf.metadata("absent"), None);
    let gguf = Gguf::open(data("gguf_hostile/good_key_order_align_last.gguf")).unwrap();
    assert_eq!(gguf.alignment(), 128);
    assert_eq!(gguf.metadata("general.alignment"), Some(&Value::U32(128)));
}

#[test]
fn tensors_are_ranges_of_the_one_open_file() {
    let file = SourceFile::open(data("gguf_hostile/good_out_of_order.gguf")).unwrap();
    let gguf = Gguf::read(Arc::clone(&file)).unwrap();
    assert!(Arc::ptr_eq(gguf.file(), &file));
    let ranges: Vec<_> = gguf
        .tensors()
        .iter()
        .map(|tensor| match tensor.source() {
            Source::File { file: own, range } => {
                assert!(Arc::ptr_eq(own, &file));
                range.clone()
            }
            _ => panic!("{} is in memory", tensor.name()),
        })
        .collect();
    assert_eq!(ranges, [416..672, 160..416]);
    assert_eq!(gguf.tensors()[0].name(), "a");
    assert_eq!(gguf.tensor("b").unwrap().name(), "b");
    assert!(gguf.tensor("c").is_none());
}

#[test]
fn all_types_open_with_the_bytes_of_the_golden_vectors() {
    let gguf = Gguf::open(data("quant/all_types.gguf")).unwrap();
    assert_eq!(gguf.tensors().len(), 26);
    for tensor in gguf.tensors() {
        assert_eq!(tensor.name(), tensor.encoding().name());
        assert_eq!(tensor.shape(), [4, 1024]);
        let mut encoded = vec![0; usize::try_from(tensor.source().len()).unwrap()];
        tensor.source().read(0, &mut encoded).unwrap();
        let golden = fs::read(data(&format!("quant/{}.enc.q", tensor.name()))).unwrap();
        assert!(encoded == golden, "{}", tensor.name());
    }
}

#[test]
fn a_wan_checkpoint_decodes_to_what_gguf_py_makes_of_it() {
    #[derive(serde::Deserialize)]
    struct Golden {
        shape: Vec<u64>,
        f32: String,
        f16: String,
        bf16: String,
    }
    let golden: BTreeMap<String, Golden> =
        serde_json::from_slice(&fs::read(data("wan_t2v_d256_q4_k_m.sha256.json")).unwrap())
            .unwrap();
    let gguf = Gguf::open(data("wan_t2v_d256_q4_k_m.gguf")).unwrap();
    assert_eq!(
        gguf.metadata("general.architecture").unwrap().as_str(),
        Some("wan")
    );
    assert_eq!(gguf.tensors().len(), 96);
    assert_eq!(golden.len(), 96);
    for tensor in gguf.tensors() {
        let golden = &golden[tensor.name()];
        assert_eq!(tensor.shape(), golden.shape, "{}", tensor.name());
        for (target, wanted) in [
            (Float::F32, &golden.f32),
            (Float::F16, &golden.f16),
            (Float::BF16, &golden.bf16),
        ] {
            let digest = Sha256::digest(arrived(tensor, target));
            assert_eq!(
                format!("{digest:x}"),
                *wanted,
                "{} as {target}",
                tensor.name()
            );
        }
    }
}

#[test]
fn a_flaw_says_where_it_is() {
    let error = Gguf::open(data("gguf_hostile/bad_bool_2.gguf")).unwrap_err();
    let GgufError::Malformed { offset, flaw, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(offset, 0x25);
    assert_eq!(
        flaw,
        Flaw::Bool {
            key: "x".into(),
            byte: 2
        }
    );
}

#[test]
fn a_tensor_takes_only_shapes_of_as_many_elements() {
    let gguf = Gguf::open(data("gguf_hostile/good_minimal.gguf")).unwrap();
    let tensor = &gguf.tensors()[0];
    assert_eq!(tensor.shape(), [2, 32]);
    assert_eq!(tensor.role(), Role::Matrix);
    let flat = tensor.clone().with_shape([64]).unwrap();
    assert_eq!(flat.shape(), [64]);
    assert_eq!(flat.role(), Role::Vector);
    assert_eq!(flat.source().len(), tensor.source().len());
    for shape in [
        &[][..],
        &[63],
        &[64, 0],
        &[0, u64::MAX, 2],
        &[1 << 63, 1 << 63],
    ] {
        let error = tensor.clone().with_shape(shape).unwrap_err();
        assert!(matches!(error, SpecError::Elements { .. }), "{shape:?}");
    }
}
