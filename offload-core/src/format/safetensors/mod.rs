//! Safetensors: single files, and models in shards with an index.
//!
//! ```text
//! u64 header length | header, JSON, padded with spaces | data
//!
//! header:  {"__metadata__": {KEY: TEXT, ...}, NAME: {"dtype": "BF16", "shape": [64, 32], "data_offsets": [0, 4096]}, ...}
//! index:   {"metadata": {...}, "weight_map": {NAME: FILE, ...}}
//! ```
//!
//! Offsets count from the start of the data, shapes have their slowest axis first. The tensors' bytes cover the data
//! whole, each byte once, up to the end of the file.
//!
//! [`Safetensors`] trusts nothing that a file says. It reads the header, at most 100,000,000 bytes as the format has it,
//! and hands out tensors only if shape, encoding and offsets agree and the data is covered. Where JSON leaves open what a
//! header means it refuses: a key that stands twice in an object, whichever object it is and however the key is escaped.
//! An index must name every tensor of its shards and no other, and shards in its own folder. It does not read encodings
//! of less than a byte, does not look at data, and does not compare the index's `total_size`, which converters get wrong.
//!
//! Data may begin at any byte: the format pads the header or not, so a tensor's address promises no alignment.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod entry;
mod error;
mod header;
mod index;
mod json;
mod reader;
mod rules;
mod shards;

pub use error::{Flaw, SafetensorsError};
pub use reader::Safetensors;

/// The key of a header's metadata, among the names of its tensors.
const METADATA_KEY: &str = "__metadata__";

/// Bytes of the header's length, at the start of a file.
const LENGTH_BYTES: u64 = 8;
