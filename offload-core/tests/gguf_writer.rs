//! Writing GGUF files that the reader, and gguf-py, take as they were meant.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod raw_gguf;

use std::io::{self, Write};

use offload_core::encoding::Encoding;
use offload_core::format::gguf::{Flaw, Value, WriteError, Writer};
use raw_gguf::open;

fn written(writer: Writer) -> Vec<u8> {
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).unwrap();
    bytes
}

fn refused(writer: Writer) -> WriteError {
    let mut bytes = Vec::new();
    let error = writer.write_to(&mut bytes).unwrap_err();
    assert!(bytes.is_empty(), "{} bytes were written", bytes.len());
    error
}

#[test]
fn what_is_written_is_read() {
    let mut writer = Writer::new();
    writer
        .metadata("general.architecture", "wan")
        .metadata("u8", 8u8)
        .metadata("i8", -8i8)
        .metadata("u16", 16u16)
        .metadata("i16", -16i16)
        .metadata("u32", 32u32)
        .metadata("i32", -32i32)
        .metadata("f32", 0.5f32)
        .metadata("bool", true)
        .metadata("u64", u64::MAX)
        .metadata("i64", i64::MIN)
        .metadata("f64", 0.1f64)
        .metadata_i32_array("comfy.gguf.orig_shape.reshaped", [4, 8, 2])
        .tensor("patch.weight", [2, 3, 1, 2, 2], Encoding::F32, vec![1; 96])
        .tensor("matrix", [3, 256], Encoding::Q4K, vec![2; 432])
        .tensor("reshaped", [2, 32], Encoding::Q8_0, vec![3; 68])
        .tensor_with("produced", [33], Encoding::BF16, |to| {
            to.write_all(&[4; 66])
        })
        .tensor("scalar", [], Encoding::F32, vec![5; 4])
        .tensor("empty", [0, 7], Encoding::F16, vec![]);
    let gguf = open(&written(writer)).unwrap();
    assert_eq!(gguf.version(), 3);
    assert_eq!(gguf.alignment(), 32);
    for (key, value) in [
        ("general.architecture", Value::from("wan")),
        ("u8", Value::U8(8)),
        ("i8", Value::I8(-8)),
        ("u16", Value::U16(16)),
        ("i16", Value::I16(-16)),
        ("u32", Value::U32(32)),
        ("i32", Value::I32(-32)),
        ("f32", Value::F32(0.5)),
        ("bool", Value::Bool(true)),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(i64::MIN)),
        ("f64", Value::F64(0.1)),
    ] {
        assert_eq!(gguf.metadata(key), Some(&value), "{key}");
    }
    let wanted: [(&str, &[u64], Encoding, u8); 6] = [
        ("patch.weight", &[2, 3, 1, 2, 2], Encoding::F32, 1),
        ("matrix", &[3, 256], Encoding::Q4K, 2),
        ("reshaped", &[4, 8, 2], Encoding::Q8_0, 3),
        ("produced", &[33], Encoding::BF16, 4),
        ("scalar", &[], Encoding::F32, 5),
        ("empty", &[0, 7], Encoding::F16, 6),
    ];
    assert_eq!(gguf.tensors().len(), wanted.len());
    for (tensor, (name, shape, encoding, byte)) in gguf.tensors().iter().zip(wanted) {
        assert_eq!(tensor.name(), name);
        assert_eq!(tensor.shape(), shape);
        assert_eq!(tensor.encoding(), encoding);
        let mut bytes = vec![0; usize::try_from(tensor.source().len()).unwrap()];
        tensor.source().read(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&b| b == byte), "{name}");
    }
}

/// The file that gguf-py 0.19.0 makes of the same calls:
///
/// ```python
/// w = GGUFWriter("x.gguf", "wan")
/// w.add_uint32("general.file_type", 15)
/// w.add_tensor("a", np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2, 1))
/// w.add_tensor("b", np.array([1], dtype=np.float16))
/// w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
/// ```
#[test]
fn gguf_py_writes_the_same_bytes() {
    let mut writer = Writer::new();
    let numbers: Vec<u8> = (0..8u8).flat_map(|n| f32::from(n).to_le_bytes()).collect();
    writer
        .metadata("general.architecture", "wan")
        .metadata("general.file_type", 15u32)
        .tensor("a", [2, 1, 2, 2, 1], Encoding::F32, numbers)
        .tensor("b", [1], Encoding::F16, vec![0x00, 0x3c]);
    assert_eq!(hex(&written(writer)), GGUF_PY);
}

const GGUF_PY: &str = "\
     4747554603000000020000000000000002000000000000001400000000000000\
     67656e6572616c2e617263686974656374757265080000000300000000000000\
     77616e110000000000000067656e6572616c2e66696c655f7479706504000000\
     0f00000001000000000000006105000000010000000000000002000000000000\
     0002000000000000000100000000000000020000000000000000000000000000\
     0000000000010000000000000062010000000100000000000000010000002000\
     0000000000000000000000000000000000000000000000000000000000000000\
     000000000000803f0000004000004040000080400000a0400000c0400000e040\
     003c000000000000000000000000000000000000000000000000000000000000";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_file_without_tensors_ends_with_its_header() {
    let mut writer = Writer::new();
    writer.metadata("x", 1u8);
    let bytes = written(writer);
    assert_eq!(bytes.len(), 24 + 8 + 1 + 4 + 1);
    assert!(open(&bytes).unwrap().tensors().is_empty());
}

#[test]
fn what_the_reader_would_refuse_is_not_written() {
    let f32s = |name: &str| {
        let mut writer = Writer::new();
        writer.tensor(name, [2], Encoding::F32, vec![0; 8]);
        writer
    };
    for name in ["", "../a", "a\0", "/a"] {
        assert!(matches!(refused(f32s(name)), WriteError::Flaw(_)), "{name}");
    }
    let mut twice = f32s("a");
    twice.tensor("a", [2], Encoding::F32, vec![0; 8]);
    assert!(matches!(
        refused(twice),
        WriteError::Flaw(Flaw::DuplicateTensor { name }) if name == "a"
    ));
    let mut writer = Writer::new();
    writer.metadata("x", 1u8).metadata("x", 2u8);
    assert!(matches!(
        refused(writer),
        WriteError::Flaw(Flaw::DuplicateKey { key }) if key == "x"
    ));
    let mut writer = Writer::new();
    writer.metadata("general.alignment", 64u32);
    assert!(matches!(refused(writer), WriteError::ReservedKey { .. }));
    let mut writer = Writer::new();
    writer.metadata("x", "a\0b");
    assert!(matches!(
        refused(writer),
        WriteError::Flaw(Flaw::Control { .. })
    ));
    let mut writer = Writer::new();
    writer.tensor("a", [1; 9], Encoding::F32, vec![0; 4]);
    assert!(matches!(
        refused(writer),
        WriteError::Flaw(Flaw::DimensionCount { count: 9, .. })
    ));
    let mut writer = Writer::new();
    writer.tensor("a", [2, 31], Encoding::Q8_0, vec![0; 68]);
    assert!(matches!(
        refused(writer),
        WriteError::Flaw(Flaw::Shape { .. })
    ));
    let mut writer = Writer::new();
    writer.tensor("a", [1 << 32, 1 << 32], Encoding::F32, vec![]);
    assert!(matches!(
        refused(writer),
        WriteError::Flaw(Flaw::Elements { .. })
    ));
}

#[test]
fn encodings_that_gguf_lacks_are_refused() {
    for encoding in [Encoding::F8E4M3, Encoding::F8E5M2, Encoding::U8] {
        let mut writer = Writer::new();
        writer.tensor("a", [4], encoding, vec![0; 4]);
        assert!(matches!(refused(writer), WriteError::NoSuchType { .. }));
    }
}

#[test]
fn another_number_of_bytes_than_the_shape_needs_is_refused() {
    for given in [0, 7, 9] {
        let mut writer = Writer::new();
        writer.tensor("a", [2], Encoding::F32, vec![0; given]);
        let error = refused(writer);
        assert!(matches!(
            error,
            WriteError::Length { needed_bytes: 8, given_bytes, .. } if given_bytes == given as u64
        ));
        let mut writer = Writer::new();
        writer.tensor_with("a", [2], Encoding::F32, |to| to.write_all(&vec![0; given]));
        let error = writer.write_to(io::sink()).unwrap_err();
        assert!(matches!(
            error,
            WriteError::Length {
                needed_bytes: 8,
                ..
            }
        ));
    }
}

#[test]
fn what_fails_while_writing_comes_back() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let error = Writer::new().write_to(Full).unwrap_err();
    assert!(matches!(error, WriteError::Io(e) if e.kind() == io::ErrorKind::StorageFull));
    let mut writer = Writer::new();
    writer.tensor_with("a", [2], Encoding::F32, |_| {
        Err(io::Error::other("no seed"))
    });
    assert!(matches!(
        writer.write_to(io::sink()),
        Err(WriteError::Io(_))
    ));
}
