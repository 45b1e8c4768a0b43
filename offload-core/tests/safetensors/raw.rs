//! Builds safetensors files byte by byte, sound or not.

use std::io::Write;

use offload_core::format::safetensors::{Safetensors, SafetensorsError};

/// A file of this header and as many bytes of data, which count up.
pub(crate) fn file(header: impl AsRef<[u8]>, data_bytes: usize) -> Vec<u8> {
    let header = header.as_ref();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend((0..data_bytes).map(|i| i as u8));
    bytes
}

/// A member of a header: a tensor as JSON has it.
pub(crate) fn tensor(name: &str, dtype: &str, shape: &[u64], begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
}

/// A sound file of `a`, two f32, and `b`, three bytes.
pub(crate) fn two_tensors() -> Vec<u8> {
    let a = tensor("a", "F32", &[2], 0, 8);
    let b = tensor("b", "U8", &[3, 1], 8, 11);
    file(
        format!(r#"{{"__metadata__":{{"format":"pt"}},{a},{b}}}  "#),
        11,
    )
}

/// Opens a file of these bytes.
pub(crate) fn open(bytes: &[u8]) -> Result<Safetensors, SafetensorsError> {
    let mut file = tempfile::NamedTempFile::new().expect("a place for temporary files");
    file.write_all(bytes).expect("a file can be written");
    Safetensors::open(file.path())
}

/// What went wrong, in words; panics if nothing did.
#[track_caller]
pub(crate) fn refusal(bytes: &[u8]) -> String {
    match open(bytes) {
        Ok(opened) => panic!("opened: {:?}", opened.tensors()),
        Err(error) => error.to_string(),
    }
}

/// What is wrong with a file of this header and as much data.
#[track_caller]
pub(crate) fn header_refusal(header: impl AsRef<[u8]>, data_bytes: usize) -> String {
    refusal(&file(header, data_bytes))
}
