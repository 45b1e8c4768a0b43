//! Memory offloading for inference engines.

pub mod decode;
pub mod encoding;
pub mod format;
pub mod model;
pub mod plan;
pub mod source;
pub mod swappable;
