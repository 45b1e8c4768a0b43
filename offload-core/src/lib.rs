//! Memory offloading for inference engines.

pub mod cpu;
pub mod decode;
pub mod device;
pub mod encoding;
pub mod executor;
pub mod format;
pub mod model;
pub mod plan;
pub mod source;
pub mod swappable;
pub mod testing;
