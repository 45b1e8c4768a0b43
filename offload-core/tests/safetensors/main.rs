//! Reading safetensors: sound files, hostile ones, models in shards, and what the format's own reader says.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod differential;
mod entries;
mod header;
mod raw;
mod reading;
mod shards;
