//! Limits of the format and of this reader, and what keys, names and shapes must be.

use crate::format::names::reads_as_path;

use super::Flaw;

/// Bytes of the longest header: the largest tokenizers take a tenth of it.
pub(super) const MAX_HEADER_BYTES: u64 = 256 << 20;

/// Bytes of the longest key, by the format.
pub(super) const MAX_KEY_BYTES: u64 = 65_535;

/// Bytes of the longest string among the values.
pub(super) const MAX_STRING_BYTES: u64 = 64 << 20;

/// Bytes of the longest tensor name. The format says 64, WAN's converters write up to 127.
pub(super) const MAX_NAME_BYTES: u64 = 255;

/// How deep arrays may lie in arrays.
pub(super) const MAX_ARRAY_DEPTH: usize = 4;

/// The largest alignment.
pub(super) const MAX_ALIGNMENT: u32 = 1 << 20;

/// The most dimensions of a tensor. GGML has 4, WAN's files 5.
pub(super) const MAX_DIMENSIONS: u32 = 8;

/// The most elements of a tensor, counting dimensions of 0 as 1.
pub(super) const MAX_ELEMENTS: u64 = 1 << 40;

/// Bytes of the shortest metadata entry: an empty key, its type, one byte.
pub(super) const MIN_METADATA_BYTES: u64 = 13;

/// Bytes of the shortest tensor entry: an empty name, no dimensions, type, offset.
pub(super) const MIN_TENSOR_BYTES: u64 = 24;

/// Refuses a key that is empty, too long or has control characters.
pub(super) fn check_key(key: &str) -> Result<(), Flaw> {
    check_identifier("metadata key", key, MAX_KEY_BYTES)
}

/// Refuses a tensor's name as [`check_key`] does, and one that could be taken for a path out of a folder.
pub(super) fn check_name(name: &str) -> Result<(), Flaw> {
    check_identifier("tensor name", name, MAX_NAME_BYTES)?;
    if reads_as_path(name) {
        return Err(Flaw::PathName {
            name: name.to_owned(),
        });
    }
    Ok(())
}

fn check_identifier(what: &'static str, text: &str, limit: u64) -> Result<(), Flaw> {
    let len = text.len() as u64;
    if len > limit {
        return Err(Flaw::StringLength { what, len, limit });
    }
    if text.is_empty() {
        return Err(Flaw::Empty { what });
    }
    match text.chars().find(|c| c.is_control()) {
        Some(character) => Err(Flaw::Control { what, character }),
        None => Ok(()),
    }
}

/// Refuses an alignment that is no power of two or too large.
pub(super) fn check_alignment(alignment: u32) -> Result<(), Flaw> {
    if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT {
        Ok(())
    } else {
        Err(Flaw::Alignment { alignment })
    }
}

/// Elements of a shape; `None` if those of its nonzero dimensions exceed [`MAX_ELEMENTS`].
pub(super) fn elements(shape: &[u64]) -> Option<u64> {
    let nonzero = shape
        .iter()
        .filter(|&&dim| dim != 0)
        .try_fold(1u64, |product, &dim| product.checked_mul(dim))
        .filter(|&product| product <= MAX_ELEMENTS)?;
    Some(if shape.contains(&0) { 0 } else { nonzero })
}
