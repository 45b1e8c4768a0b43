//! Sound files: what the reader makes of them.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use offload_core::encoding::Encoding;
use offload_core::format::safetensors::Safetensors;
use offload_core::source::{Source, SourceFile};
use offload_core::swappable::{Role, TensorSpec};

use crate::raw::{file, open, tensor, two_tensors};

pub(crate) fn bytes_of(tensor: &TensorSpec) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(tensor.source().len()).unwrap()];
    tensor.source().read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_file_is_its_tensors_and_its_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, two_tensors()).unwrap();
    let source = SourceFile::open(&path).unwrap();
    let opened = Safetensors::read(Arc::clone(&source)).unwrap();
    assert_eq!(opened.metadata("format"), Some("pt"));
    assert_eq!(opened.metadata("a"), None);
    assert_eq!(opened.files().len(), 1);
    assert!(Arc::ptr_eq(&opened.files()[0], &source));
    let [a, b] = opened.tensors() else {
        panic!("{opened:?}");
    };
    assert_eq!(
        (a.name(), a.shape(), a.encoding()),
        ("a", &[2][..], Encoding::F32)
    );
    assert_eq!(
        (b.name(), b.shape(), b.encoding()),
        ("b", &[3, 1][..], Encoding::U8)
    );
    assert_eq!(b.role(), Role::Vector);
    assert_eq!(bytes_of(a), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(bytes_of(b), [8, 9, 10]);
    assert_eq!(opened.tensor("b").unwrap().source().len(), 3);
    assert!(opened.tensor("c").is_none());
    for tensor in opened.tensors() {
        assert!(matches!(tensor.source(), Source::File { file, .. } if Arc::ptr_eq(file, &source)));
    }
}

#[test]
fn data_may_begin_at_any_address_and_tensors_stand_in_any_order() {
    for padding in 0..9 {
        let header = format!(
            "{{{},{},{}}}{}",
            tensor("late", "F32", &[1], 5, 9),
            tensor("early", "U8", &[1], 0, 1),
            tensor("odd", "BF16", &[2, 1], 1, 5),
            " ".repeat(padding)
        );
        let opened = open(&file(header, 9)).unwrap();
        let names: Vec<_> = opened.tensors().iter().map(TensorSpec::name).collect();
        assert_eq!(names, ["late", "early", "odd"]);
        assert_eq!(bytes_of(&opened.tensors()[0]), [5, 6, 7, 8]);
        assert_eq!(bytes_of(&opened.tensors()[2]), [1, 2, 3, 4]);
    }
}

/// Every dtype that the format has, its bytes, and what it is read as.
const DTYPES: &[(&str, u64, Option<Encoding>)] = &[
    ("BOOL", 1, Some(Encoding::Bool)),
    ("F4", 1, None),
    ("F6_E2M3", 1, None),
    ("F6_E3M2", 1, None),
    ("U8", 1, Some(Encoding::U8)),
    ("I8", 1, Some(Encoding::I8)),
    ("F8_E5M2", 1, Some(Encoding::F8E5M2)),
    ("F8_E4M3", 1, Some(Encoding::F8E4M3)),
    ("F8_E8M0", 1, Some(Encoding::F8E8M0)),
    ("F8_E4M3FNUZ", 1, Some(Encoding::F8E4M3Fnuz)),
    ("F8_E5M2FNUZ", 1, Some(Encoding::F8E5M2Fnuz)),
    ("I16", 2, Some(Encoding::I16)),
    ("U16", 2, Some(Encoding::U16)),
    ("F16", 2, Some(Encoding::F16)),
    ("BF16", 2, Some(Encoding::BF16)),
    ("I32", 4, Some(Encoding::I32)),
    ("U32", 4, Some(Encoding::U32)),
    ("F32", 4, Some(Encoding::F32)),
    ("C64", 8, Some(Encoding::C64)),
    ("F64", 8, Some(Encoding::F64)),
    ("I64", 8, Some(Encoding::I64)),
    ("U64", 8, Some(Encoding::U64)),
];

#[test]
fn every_dtype_is_read_or_refused_by_name() {
    for &(dtype, bytes, encoding) in DTYPES {
        let header = format!("{{{}}}", tensor("w", dtype, &[3, 4], 0, 12 * bytes));
        let result = open(&file(header, 12 * bytes as usize));
        match encoding {
            Some(encoding) => {
                let opened = result.unwrap();
                assert_eq!(opened.tensors()[0].encoding(), encoding, "{dtype}");
                assert_eq!(encoding.name(), dtype);
            }
            None => {
                let error = result.unwrap_err().to_string();
                let wanted = format!("tensor w is of dtype {dtype}: numbers of less than a byte");
                assert!(error.contains(&wanted), "{error}");
            }
        }
    }
    // Every element type that there is can be read.
    for encoding in Encoding::ALL.iter().filter(|e| e.quant_block_len() == 1) {
        assert!(DTYPES.iter().any(|d| d.2 == Some(*encoding)), "{encoding}");
    }
}

#[test]
fn a_file_may_have_no_tensors_and_tensors_no_bytes() {
    for header in ["{}", "{}      ", "{ }\n", r#"{"__metadata__":{}}"#] {
        assert!(open(&file(header, 0)).unwrap().tensors().is_empty());
    }
    let header = format!(
        "{{{},{},{},{}}}",
        tensor("none", "F32", &[0], 4, 4),
        tensor("first", "F32", &[0, 7], 0, 0),
        tensor("scalar", "F32", &[], 0, 4),
        tensor("also", "F32", &[1 << 20, 0], 4, 4),
    );
    let opened = open(&file(header, 4)).unwrap();
    let lens: Vec<_> = opened.tensors().iter().map(|t| t.source().len()).collect();
    assert_eq!(lens, [0, 0, 4, 0]);
    assert_eq!(opened.tensor("scalar").unwrap().element_count(), 1);
}

#[test]
fn escapes_and_white_space_are_read_as_json_has_them() {
    let header = "{ \"__metadata__\" :\t{ \"k\\u00fc\\n\" : \"\\\"\\\\\\/\\b\\f\\r\\t\\ud83d\\ude00\" } ,\r\n \
                  \"\\u0061\\u002e\u{fc}\" : { \"shape\" : [ 2 , 1 ] , \"extra\" : [ { \"x\" : -1.5e+3 } , null , true ] , \
                  \"data_offsets\" : [ 0 , 2 ] , \"dtyp\\u0065\" : \"U8\" } } \t";
    let opened = open(&file(header, 2)).unwrap();
    assert_eq!(opened.tensors()[0].name(), "a.\u{fc}");
    assert_eq!(
        opened.metadata("k\u{fc}\n"),
        Some("\"\\/\u{8}\u{c}\r\t\u{1f600}")
    );
}

#[test]
fn names_have_as_many_bytes_as_checkpoints_need() {
    for name in ["n".repeat(65_535), "model/layer_0/kernel:0".to_owned()] {
        let header = format!("{{{}}}", tensor(&name, "U8", &[1], 0, 1));
        assert_eq!(open(&file(header, 1)).unwrap().tensors()[0].name(), name);
    }
}

#[test]
fn a_hundred_thousand_tensors_open_in_a_moment() {
    let count = 100_000;
    let members: Vec<_> = (0..count)
        .map(|i| {
            tensor(
                &format!("layers.{i}.weight"),
                "F16",
                &[2, 1],
                4 * i,
                4 * i + 4,
            )
        })
        .collect();
    let bytes = file(format!("{{{}}}", members.join(",")), 4 * count as usize);
    let begun = Instant::now();
    let opened = open(&bytes).unwrap();
    let passed = begun.elapsed();
    assert_eq!(opened.tensors().len() as u64, count);
    // Linear work takes a tenth of a second here; quadratic work minutes.
    assert!(passed < Duration::from_secs(10), "{passed:?}");
}

#[test]
fn a_missing_file_is_named() {
    let error = Safetensors::open(Path::new("absent.safetensors")).unwrap_err();
    assert!(error.to_string().contains("absent.safetensors"), "{error}");
}
