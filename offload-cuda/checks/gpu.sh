#!/usr/bin/env bash
# Runs on a machine with a GPU and the CUDA toolkit: the tests on the GPU, the sanitizer over the contract's checks,
# the decode kernel's own bench, and the benches that benches/RESULTS.md quotes, which leave JSON. Binaries are built
# elsewhere:
#
#   cargo test --release -p offload-cuda --test gpu --no-run     (GPU_TESTS)
#   cargo bench --bench strategies --no-run                      (STRATEGIES)
#   cargo bench --bench first_pass --no-run                      (FIRST_PASS)
#
# usage: GPU_TESTS=path STRATEGIES=path FIRST_PASS=path OUT=folder offload-cuda/checks/gpu.sh [PART]...
#   parts: tests (the default), sanitizer, kernels, streamed, partly_resident, first_pass, cold
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
        return 1
    fi
}

bench() {
    step "$@" && cat "$out/$1.log"
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
    streamed)
        bench streamed 400 "${STRATEGIES:?}" --row streamed --tokens 256 --tokens 2048 --tokens 0 --tokens 16384 \
            --passes 20 --rounds 3 --json "$out/streamed.json"
        ;;
    partly_resident)
        bench partly_resident 400 "${STRATEGIES:?}" --row "resident 25 %" --row "resident 50 %" --row "resident 75 %" \
            --tokens 3200 --tokens 8192 --rounds 3 --json "$out/partly_resident.json"
        ;;
    first_pass)
        bench first_pass 200 "${FIRST_PASS:?}" --passes 6 --rounds 5 --json "$out/first_pass.json"
        ;;
    cold)
        bench cold 300 "${FIRST_PASS:?}" --cold --gib 4 --passes 2 --rounds 5 --json "$out/cold.json"
        ;;
    *) echo "no such part: $part" >&2; exit 2 ;;
    esac
done
exit $failed
