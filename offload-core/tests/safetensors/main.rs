//! Reading safetensors: sound files, hostile ones, and models in shards.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod entries;
mod header;
mod raw;
mod reading;
mod shards;
