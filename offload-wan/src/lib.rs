//! WAN checkpoints.
#![forbid(unsafe_code)]
