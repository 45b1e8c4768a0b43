#!/usr/bin/env bash
# Checks that offload-cuda compiles in one build with another user of cudarc
# that links CUDA and takes its version from the build system, as candle's
# `cuda` feature does. Only `cargo check`: linking would need CUDA.
set -euo pipefail
crate=$(cd "$(dirname "$0")/.." && pwd)
workspace=$(dirname "$crate")
version=$(sed -n '/^name = "cudarc"$/{n;s/^version = "\(.*\)"$/\1/p;}' "$workspace/Cargo.lock")
package=$(mktemp -d)
trap 'rm -rf "$package"' EXIT
mkdir "$package/src"
cat >"$package/src/lib.rs" <<'RUST'
pub use cudarc::driver::CudaContext;
pub use offload_cuda::probe;
RUST
cat >"$package/Cargo.toml" <<TOML
[package]
name = "coexists"
version = "0.0.0"
edition = "2024"

[dependencies]
offload-cuda = { path = "$crate" }
cudarc = { version = "=$version", default-features = false, features = ["std", "driver", "cublas", "curand", "nvrtc", "f16", "dynamic-linking", "cuda-version-from-build-system"] }

[workspace]
TOML
cargo check --manifest-path "$package/Cargo.toml" --target-dir "$workspace/target/coexists"
