#!/usr/bin/env bash
# Runs on a machine with a GPU and the CUDA toolkit: the tests on the GPU, the sanitizer over the contract's checks,
# and the decode kernel's own bench. Binaries are built elsewhere:
#
#   cargo test --release -p offload-cuda --test gpu --no-run     (GPU_TESTS)
#
# usage: GPU_TESTS=path OUT=folder offload-cuda/checks/gpu.sh [tests] [sanitizer] [kernels]
#
# Each step has a time limit, so that one that hangs does not take the others with it. Ends with 1 if any failed.
set -uo pipefail
out=${OUT:?a folder for logs}
export OFFLOAD_REQUIRE_CUDA=1
failed=0

step() {
    local name=$1 limit=$2
    shift 2
    local begin=$SECONDS
    if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
        echo "ok      $name $((SECONDS - begin)) s"
    else
        echo "FAILED  $name with $? after $((SECONDS - begin)) s; the end of its log:"
        tail -25 "$out/$name.log"
        failed=1
    fi
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader

for part in "${@:-tests}"; do
    case $part in
    tests) step tests 240 "${GPU_TESTS:?}" --test-threads 1 ;;
    sanitizer)
        step memcheck 150 compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 1 "${GPU_TESTS:?}" --test-threads 1 conformance
        ;;
    kernels)
        step kernels_build 120 nvcc -std=c++17 -O2 -arch=sm_80 -cudart=static -o "$out/bench_kernels" "$(dirname "$0")/../kernels/bench.cu"
        step kernels 200 "$out/bench_kernels"
        for tool in memcheck racecheck initcheck; do
            step "kernels_$tool" 120 compute-sanitizer --tool "$tool" --error-exitcode 1 "$out/bench_kernels" --verify-only
        done
        rm -f "$out/bench_kernels"
        ;;
    *) echo "no such part: $part" >&2; exit 2 ;;
    esac
done
exit $failed
