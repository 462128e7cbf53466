#!/usr/bin/env bash
# Tries the trainer on an NVIDIA GPU and prints one table. This is no step of CI.
#
# ci/gpu.sh build FOLDER    builds trainer, its tests and its benchmark with the feature `cuda`, and
#                           puts them into FOLDER
# ci/gpu.sh run FOLDER      runs what build left there, on a machine with a GPU and PyTorch, in less
#                           than 8 minutes; nothing is fetched
#
# DEVICE=cpu runs everything on the processor instead, to try this script; PYTHON names a Python
# with PyTorch, WAYS what it measures. A part that takes too long is ended, and the others run.
set -euo pipefail
export RUST_BACKTRACE=0
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda}
seconds=${SECONDS_EACH:-2}
python=${PYTHON:-python3}
ways=${WAYS:-eager:f32,eager:tf32,eager:bf16,compiled:f32,compiled:bf16}

build() {
    local folder=$1 features=() built
    [ "$device" = cpu ] || features=(--features cuda)
    mkdir -p "$folder"
    # Fat LTO takes minutes and gives a GPU nothing.
    built=(--release --config profile.release.lto=false --config profile.release.codegen-units=8)
    cargo build "${built[@]}" -p trainer "${features[@]}" --bin trainer
    cargo test "${built[@]}" -p trainer "${features[@]}" --lib --bench training --no-run \
        --message-format=json | python3 -c '
import json, shutil, sys
names = {"lib": "tests", "bench": "training"}
for line in sys.stdin:
    message = json.loads(line)
    name = names.get(message.get("target", {}).get("kind", [""])[0])
    if name and message.get("executable"):
        shutil.copy(message["executable"], sys.argv[1] + "/" + name)
' "$folder"
    cp "${CARGO_TARGET_DIR:-target}/release/trainer" "$folder"
    strip "$folder"/{trainer,tests,training}
    if readelf -d "$folder"/{trainer,tests,training} | grep -E 'NEEDED.*lib(cuda|cublas|cublasLt|nvrtc|nccl)\.'; then
        echo "it does not start without these: a function that cudarc calls is missing in model/cuda/libraries" >&2
        return 1
    fi
    ls -l "$folder"
}

# part SECONDS COMMAND...: a part of the run. Its failure is a line, and does not end the run.
part() {
    local limit=$1 status=0 start=$SECONDS
    shift
    timeout -k 5 "$limit" "$@" || status=$?
    [ $status -eq 0 ] || echo "FAILED with status $status after $((SECONDS - start)) s: $*"
}

run() {
    folder=$(cd "$1" && pwd)
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"; kill "${watch:-}" 2>/dev/null || true' EXIT
    # PyTorch brings the libraries that the trainer loads.
    LD_LIBRARY_PATH=$("$python" -c 'import glob, nvidia; print(*(f for p in nvidia.__path__ for f in glob.glob(p + "/*/lib")), sep=":")' 2>/dev/null || true):${LD_LIBRARY_PATH:-}
    export LD_LIBRARY_PATH
    machine
    echo && echo "## Tests: losses, gradients, ten steps of AdamW"
    part 90 "$folder/tests" tests::cuda --test-threads 1 2>&1 | tail -n 30
    echo && echo "## A run of the trainer"
    local dtype=float32
    trained tiny --dim 32 --n-layers 2 --n-heads 4 --max-seq-len 64 --batch-size 4
    for dtype in float32 bfloat16 float16; do
        trained 260K --dim 64 --hidden-dim 172 --n-layers 5 --n-heads 8 --n-kv-heads 4 --max-seq-len 512
    done
    echo && echo "## Tokens per second of whole steps"
    echo "| | shape | tok/s | memory | loss |"
    echo "|---|---|---|---|---|"
    speed 260K 15M:16 110M:4
    WAYS_HERE="--bfloat16 --recompute" speed 110M:4 7B
    peer 220 260K 15M:16 110M:4 --ways "$ways"
    peer 60 7B --ways eager:bf16
    echo && echo "## compute-sanitizer"
    if [ "$device" = cuda ] && command -v compute-sanitizer >/dev/null; then
        part 90 compute-sanitizer --error-exitcode 9 "$folder/tests" cuda_follows --test-threads 1 2>&1 | tail -n 8
    else
        echo "not run"
    fi
    echo && echo "$SECONDS s in all"
}
machine() {
    date -u +%F
    if [ "$device" = cuda ]; then
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    fi
    uname -m && nproc
}

# peer SECONDS ARGUMENTS...: rows of PyTorch.
peer() {
    PYTHONWARNINGS=ignore part "$1" "$python" ci/gpu_peer.py "${@:2}" --device "$device" --seconds "$seconds"
}

# trained NAME SETTINGS...: compares the losses of twenty steps on the processor, in f32, and on the
# device, in $dtype.
trained() {
    local name=$1 run=0 on
    shift
    for on in cpu "$device"; do
        run=$((run + 1))
        timeout -k 5 60 "$folder/trainer" --data docs/TRAINING.md --separator '\n\n' --max-iters 20 --eval-interval 20 --eval-iters 2 \
            --log-interval 1 --warmup-iters 5 --learning-rate 1e-3 --matmul-precision highest --dropout 0.1 \
            --peak-gflops 67000 --device "$on" --dtype "$([ $run = 1 ] && echo float32 || echo "$dtype")" \
            --out-dir "$scratch/$name-$dtype-$run" "$@" >"$scratch/log" 2>&1 ||
            { echo "$name on $on: FAILED with status $?"; tail -n 5 "$scratch/log"; return; }
    done
    python3 - "$name in $dtype" "$device" "$scratch/$name-$dtype-"{1,2}/metrics.jsonl <<'END'
import json, sys
name, device, *paths = sys.argv[1:]
lines = [[json.loads(line) for line in open(path)] for path in paths]
worst = max(abs(a[key] - b[key]) for a, b in zip(*lines) for key in ("loss", "val_loss") if key in a)
steps = [line for line in lines[1] if "loss" in line]
print(f"{name}: {len(steps)} steps, loss {steps[0]['loss']:.4f} to {steps[-1]['loss']:.4f}, "
      f"largest difference between cpu and {device} {worst:.1e}")
END
}

# speed SHAPE...: rows of the table, each shape in a process of its own.
speed() {
    local shape way flags ways=(--highest --medium --bfloat16 --float16)
    local -A names=([--highest]=f32 [--medium]=TF32 [--bfloat16]=bf16 [--float16]=f16
        ["--bfloat16 --recompute"]="bf16, recompute")
    [ -z "${WAYS_HERE:-}" ] || ways=("$WAYS_HERE")
    for way in "${ways[@]}"; do
        for shape in "$@"; do
            read -ra flags <<<"$way"
            [ "$device" = cpu ] || flags+=(--cuda)
            memory >"$scratch/memory" &
            watch=$!
            part 90 "$folder/training" "$shape" "${flags[@]}" >"$scratch/speed" 2>&1 || true
            kill "$watch" 2>/dev/null || true
            wait "$watch" 2>/dev/null || true
            python3 - "$scratch"/{speed,memory} "trainer ${names[$way]}" "$shape" <<'END'
import re, sys
text, memory = open(sys.argv[1]).read(), open(sys.argv[2]).read().split()
found = re.search(r": (\d+) tok/s .*?(\d+) x (\d+), .*loss (.*)", text)
if not found:
    print(f"| {sys.argv[3]} | {sys.argv[4]} | {' '.join(text.split())[-200:]} | | |")
else:
    rate, sequences, length, loss = found.groups()
    most = max(map(int, memory), default=0)
    print(f"| {sys.argv[3]} | {sys.argv[4].split(':')[0]}, {sequences} x {length} | {int(rate):,} | {most} MiB | {loss} |")
END
        done
    done
}

# Prints the memory of the GPU that is in use, ten times per second.
memory() {
    [ "$device" = cuda ] || return 0
    exec nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits --loop-ms 100
}

case ${1:-} in
build | run) "$1" "${2:?FOLDER}" ;;
*) sed -n '2,10s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
