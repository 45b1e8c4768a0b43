//! Limits of the format and of this reader, and what names must be.

use crate::encoding::Encoding;
use crate::format::names::reads_as_path;

use super::Flaw;

/// Bytes of the longest header, by the format; an index may have as many.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes of the longest tensor name. The format has no limit.
pub(super) const MAX_NAME_BYTES: u64 = 65_535;

/// Bytes of the longest name of a shard: no file system has longer ones.
pub(super) const MAX_SHARD_NAME_BYTES: u64 = 255;

/// The most dimensions of a tensor: torch has no more.
pub(super) const MAX_DIMENSIONS: usize = 64;

/// How deep values may lie in values. Headers go 3 deep.
pub(super) const MAX_DEPTH: usize = 16;

/// Refuses a tensor's name that is empty, too long, has control characters or reads as a path.
pub(super) fn check_name(name: &str) -> Result<(), Flaw> {
    check_identifier("tensor name", name, MAX_NAME_BYTES)?;
    if reads_as_path(name) {
        return Err(Flaw::PathName {
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// Refuses what is not plainly the name of a file in the index's own folder, on any system.
pub(super) fn check_shard_name(name: &str) -> Result<(), Flaw> {
    check_identifier("shard name", name, MAX_SHARD_NAME_BYTES)?;
    // A colon stands after a drive, or before an alternate stream.
    if name == "." || name == ".." || name.contains(['/', '\\', ':']) {
        return Err(Flaw::ShardPath {
            shard: name.to_owned(),
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

/// What a header's `dtype` stands for.
pub(super) enum Dtype {
    Known(Encoding),
    /// Numbers of less than a byte.
    SubByte,
    Unknown,
}

/// Looks up a `dtype`.
pub(super) fn dtype(name: &str) -> Dtype {
    Dtype::Known(match name {
        "BOOL" => Encoding::Bool,
        "U8" => Encoding::U8,
        "I8" => Encoding::I8,
        "F8_E5M2" => Encoding::F8E5M2,
        "F8_E4M3" => Encoding::F8E4M3,
        "F8_E8M0" => Encoding::F8E8M0,
        "F8_E4M3FNUZ" => Encoding::F8E4M3Fnuz,
        "F8_E5M2FNUZ" => Encoding::F8E5M2Fnuz,
        "I16" => Encoding::I16,
        "U16" => Encoding::U16,
        "F16" => Encoding::F16,
        "BF16" => Encoding::BF16,
        "I32" => Encoding::I32,
        "U32" => Encoding::U32,
        "F32" => Encoding::F32,
        "C64" => Encoding::C64,
        "F64" => Encoding::F64,
        "I64" => Encoding::I64,
        "U64" => Encoding::U64,
        "F4" | "F6_E2M3" | "F6_E3M2" => return Dtype::SubByte,
        _ => return Dtype::Unknown,
    })
}
