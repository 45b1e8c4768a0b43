//! The planner through its public face.
//!
//! `replay` holds an executor written from the contract alone, which trusts nothing that the planner says of itself.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod replay;
mod workloads;

mod budget;
mod certificate;
mod fences;
mod json;
mod malformed;
mod table;
mod uniform;
