//! The executor on the CPU device: passes, faults, short memory, accounting.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod accounting;
mod faults;
mod page_cache;
mod passes;
mod pinning;
mod shortage;
mod streaming;
mod stress;
#[path = "../support/mod.rs"]
mod support;
