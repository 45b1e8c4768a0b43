//! The NVIDIA device of offload.
