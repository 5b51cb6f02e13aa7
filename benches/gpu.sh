#!/usr/bin/env bash
# Everything that needs a GPU, in one call of some minutes: what it computes, then how fast.
#
#     benches/gpu.sh [DEVICE] [FOLDER]        # DEVICE: wgpu (the first that is no software), wgpu:0, wgpu:radv ...
#
# Leaves the certificate and the reports (JSON) in FOLDER and prints their tables. DRY_RUN=1 takes small shapes, to try
# the script on a machine without a GPU: DRY_RUN=1 benches/gpu.sh wgpu:llvmpipe
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:-wgpu}
folder=${2:-target/gpu}
mkdir -p "$folder"
cargo build --release --workspace --bins

target/release/serve --list-devices | tee "$folder/devices.txt"
target/release/serve --check --device "$device" | tee "$folder/check.txt"

model=benches/configs/llama-1b.json
cases=(--prompt 128,2048 --gen 64 --batch 1,16)
if [ -n "${DRY_RUN:-}" ]; then
    model=benches/configs/dry.json
    cases=(--prompt 16 --gen 4 --batch 1,2 --repeat 1)
fi
target/release/bench device --device "$device" --json "$folder/device.json"
for quantize in none q8 q4; do
    target/release/bench run --random-weights "$model" --device "$device" --dtype bf16 --quantize "$quantize" "${cases[@]}" \
        --json "$folder/run-$quantize.json"
done
# The mode that is not invariant; reports name the kernels they were measured with.
target/release/serve --check --device "$device" --gemm fast | tee "$folder/check-fast.txt"
if grep -q '"numerics": "[^"]* fast ' "$folder/check-fast.txt"; then
    target/release/bench run --random-weights "$model" --device "$device" --dtype bf16 --gemm fast "${cases[@]}" \
        --json "$folder/run-fast.json"
fi
