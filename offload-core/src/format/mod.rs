//! Container formats: which tensors a file holds, and where their encoded bytes are.
//!
//! Readers describe and check; they never load a tensor and never decode one.

pub mod gguf;
mod names;
pub mod safetensors;
