//! The testing kit: what a backend or an engine needs to be held to the contracts. Always compiled.
//!
//! - [`conformance`]: the [`Device`](crate::device::Device) contract as checks that every backend runs;
//! - [`decoding`]: a device's decoding at random against the definition of the formats;
//! - [`Observed`]: a device around a device, that records calls ([`Recorder`]) or fails them ([`Faults`]);
//! - [`VirtualDevice`]: a device without data whose clock follows the planner's cost model;
//! - [`toy`]: small models with seeded weights.

pub mod conformance;
pub mod decoding;
mod observed;
pub mod toy;
mod virtual_clock;

pub use observed::{Call, CallCounts, Faults, Observed, Observer, PinAs, Recorder};
pub use virtual_clock::{VirtualDevice, VirtualEvent, VirtualStream};
