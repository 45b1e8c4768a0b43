//! GGUF, versions 2 and 3, little-endian.
//!
//! ```text
//! "GGUF" | u32 version | u64 tensor count | u64 metadata count
//! metadata count times:  key | u32 type | value
//! tensor count times:    name | u32 dimension count | u64 dimensions, fastest first | u32 type | u64 offset
//! padding to the alignment, 32 unless general.alignment says otherwise
//! data; an offset counts from its start
//! ```
//!
//! A string (key, name, value) is a u64 length and as many bytes of UTF-8; an array is a u32 element type, a u64 length
//! and its elements.
//!
//! [`Gguf`] trusts nothing that a file says. It reads the header, at most 256 MiB, in windows of 64 KiB by positioned
//! reads, allocates only for what it has read or knows to be there, and hands out tensors only if all of them lie
//! inside the file, apart from each other, in whole rows of quant blocks. It takes what real files have although ggml's
//! reader does not: up to 8 dimensions (every WAN file has a 5-D patch embedding), names up to 255 bytes, data in any
//! order and with gaps, nested arrays, and no padding after the last tensor. It does not read version 1 or big-endian
//! files, does not keep arrays, and does not look at data: NaN scales are no flaw of the container.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod error;
mod header;
mod metadata;
mod reader;
mod rules;
mod value;
mod writer;

pub use error::{Flaw, GgufError};
pub use reader::Gguf;
pub use value::Value;
pub use writer::{WriteError, Writer};

/// The first four bytes of every file.
const MAGIC: [u8; 4] = *b"GGUF";

/// Where data starts and each tensor in it, unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u32 = 32;

/// The key of the alignment.
const ALIGNMENT_KEY: &str = "general.alignment";

/// Followed by a tensor's name: the key of the shape that it has in the model, if it was quantised in another.
const ORIG_SHAPE_PREFIX: &str = "comfy.gguf.orig_shape.";
