#!/usr/bin/env bash
# Everything that needs a GPU, in one call of at most ten minutes: what it computes, then how fast.
#
#     benches/gpu.sh [DEVICE] [FOLDER]     # DEVICE: cuda (the first that can be used), cuda:1, wgpu, wgpu:radv ...
#
# Leaves the certificate and the reports (JSON) in FOLDER and prints their tables. BIN names a folder with the programs
# `serve` and `bench` where they are built elsewhere. DRY_RUN=1 takes small shapes, to try the script on a machine without
# a GPU: DRY_RUN=1 benches/gpu.sh wgpu:llvmpipe
#
# CUDA needs the driver, and NVRTC or a build with prebuilt kernels, and for fast products cuBLASLt (crates/cuda/README.md).
# With compute-sanitizer on the PATH the small conformance cases run under memcheck and racecheck too; with torch and transformers they are timed beside.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:-cuda}
folder=${2:-target/gpu}
mkdir -p "$folder"
if [ -z "${BIN:-}" ]; then
    cargo build --release --workspace --bins
    BIN=target/release
fi

step() {
    printf '\n=== %s (%ss)\n' "$1" "$SECONDS"
}

step "devices, and the whole suite"
"$BIN/serve" --list-devices | tee "$folder/devices.txt"
"$BIN/serve" --check --device "$device" | tee "$folder/check.txt"

small=benches/configs/llama-1b.json
large=benches/configs/llama-8b.json
experts=benches/configs/qwen3-moe-3b.json
latents=benches/configs/deepseek-v2-2b.json
cases=(--prompt 128,2048 --gen 64 --batch 1,16,32)
expert_cases=(--prompt 128,2048 --gen 64 --batch 1,16 --repeat 3)
large_cases=(--prompt 128,2048 --gen 64 --batch 1 --repeat 3)
throughput=(--prompt 1024 --gen 128 --batch 64 --repeat 1)
torch_cases=(2048,0 128,64 128,64,16)
if [ -n "${DRY_RUN:-}" ]; then
    small=benches/configs/dry.json large=
    experts=models/parity/fixtures/qwen3-moe/config.json latents=models/parity/fixtures/deepseek-v2/config.json
    expert_cases=(--prompt 16 --gen 4 --batch 1,2 --repeat 1)
    cases=(--prompt 16 --gen 4 --batch 1,2 --repeat 1)
    torch_cases=(16,4)
fi

step "ceilings"
"$BIN/bench" device --device "$device" --json "$folder/device.json"

run() { # report, config, flags
    local report=$1 config=$2
    shift 2
    step "$report: $config $*"
    "$BIN/bench" run --random-weights "$config" --device "$device" --dtype bf16 "$@" --json "$folder/$report.json"
}
for quantize in none q8 q4 f8; do
    run "run-$quantize" "$small" --quantize "$quantize" "${cases[@]}"
done
run experts "$experts" "${expert_cases[@]}"
run latents "$latents" "${expert_cases[@]}"
run latents-fp8 "$latents" --kv-dtype fp8 "${expert_cases[@]}"
if [ -n "$large" ]; then
    run large "$large" "${large_cases[@]}"
    run throughput "$large" "${throughput[@]}"
fi

# The mode that is not invariant; reports name the kernels they were measured with.
step "fast products"
"$BIN/serve" --check --device "$device" --gemm fast | tee "$folder/check-fast.txt"
if grep -q '"numerics": "[^"]* fast ' "$folder/check-fast.txt"; then
    run run-fast "$small" --gemm fast "${cases[@]}"
    # Prefill beside that of `large` above: the same shapes, and what the mode is for.
    if [ -n "$large" ]; then
        run large-fast "$large" --gemm fast "${large_cases[@]}"
    fi
else
    echo "SKIPPED: no fast products on $device: see the note above"
fi

# Products and attention by warpgroups (Hopper) are off until a device has proven them, which is this: the whole suite with
# warpgroups wherever they can be. A process of its own each time, which a kernel gone wrong may take with it.
if [[ $device == cuda* ]]; then
    step "warpgroups"
    export ANYFLEET_CUDA=wgmma
    if timeout 180 "$BIN/serve" --check --device "$device" >"$folder/check-warpgroups.txt" 2>"$folder/check-warpgroups.log"; then
        "$BIN/bench" device --device "$device" --json "$folder/device-warpgroups.json"
        run run-warpgroups "$small" "${cases[@]}"
        if [ -n "$large" ]; then
            run large-warpgroups "$large" "${large_cases[@]}"
        fi
        echo "PROVEN: add this line to crates/cuda/src/proven.txt"
        # What `serve --check` says of kernels: the hash of their sources, and what compiled them.
        echo "$(sed -n 's/^kernels //p' "$folder/check-warpgroups.txt") $(head -1 "$folder/check-warpgroups.txt")" |
            tee "$folder/proven.txt"
    else
        echo "SKIPPED: warpgroups do not pass on $device:"
        tail -5 "$folder/check-warpgroups.txt" "$folder/check-warpgroups.log"
    fi
    unset ANYFLEET_CUDA
fi

if [[ $device == cuda* ]]; then
    for config in $small $large; do
        if python3 -c "import torch, transformers" 2>/dev/null; then
            step "torch: $config"
            python3 benches/peers/torch_gpu.py "$config" "${torch_cases[@]}" | tee "$folder/torch-$(basename "$config")"
        else
            echo "SKIPPED: no torch and transformers here to time beside"
        fi
    done
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            for op in embed norm linear act_mul linear_act_mul rope_kv attention gather softcap sample route grouped_linear \
                grouped_linear_act_mul combine latent_kv latent_attention head_linear; do
                step "$tool: $op"
                # What takes longer is cut short, and says so.
                timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 3 "$BIN/conformance" --device "$device" \
                    --tier small --op "$op" 2>&1 | tail -3 | tee "$folder/$tool-$op.txt" || echo "$tool: $op: status $?"
            done
        done
    else
        echo "SKIPPED: no compute-sanitizer here for memcheck and racecheck"
    fi
fi
step "done: $folder"
