#!/usr/bin/env bash
# Every check of this repository, for a developer and for CI alike: ./ci.sh STEP...
#
#   fmt       formatting of Rust, lints of scripts, length of comments and files
#   circles   no file imports one that, through others, imports it; trainer/src/io without dfdx
#   clippy    lints of all crates, warnings are errors
#   test      unit, integration and documentation tests
#   mpi       training on several processes, over Open MPI
#   examples  the library's examples run
#   docs      documentation of all crates, also as docs.rs builds it; warnings are errors
#   package   infer-core builds as a package, and with the oldest supported Rust where it is there
#   nostd     the library builds for bare-metal targets, NEON among them
#   neon      the library's tests on 64-bit Arm, emulated, with and without dotprod
#   panics    the firmware image has no symbol of panics, allocation or formatting
#   firmware  firmware in QEMU and its host link: the host's bits from each core, board and layout
#   capi      the C header is up to date; C programs tell infer-cli's story in QEMU and in valgrind
#   bindings  WebAssembly in node, Python, and FORMAT.md's program tell what infer-cli tells
#   models    transformers, gguf and llama.cpp (LLAMA_SIMPLE) read what trainer exports
#   cuda      the trainer's GPU kernels under the address sanitizer; how many registers they use
#   asan      the library's tests under the address sanitizer
#   fuzz      each fuzz target for FUZZ_SECONDS (20); FUZZ_IMPORT=1 adds those of import
#   miri      the library's tests under Miri, where the toolchain has it
#   all       everything above, in this order
#
# Everything runs on stable Rust. What is missing is installed: by apt-get, and cargo-fuzz and
# cbindgen by cargo.
set -euo pipefail
shopt -s inherit_errexit # or a failure inside of $(…) would go unnoticed
cd "$(dirname "$0")"

root=$PWD
steps=(fmt circles clippy test mpi examples docs package nostd neon panics firmware capi bindings models cuda asan
    fuzz miri)
skipped=77 # exit status of a step that cannot run here
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")
chip=thumbv7em-none-eabihf
source ci/toolchain.sh
source ci/text.sh
source ci/package.sh
source ci/neon.sh
source ci/symbols.sh
source ci/firmware.sh
source ci/capi.sh
source ci/bindings.sh
source ci/models.sh
source ci/cuda.sh
source ci/mpi.sh
source ci/sanitizers.sh

circles() {
    need python3 python3
    python3 ci/circles.py
}

clippy() {
    cargo clippy --workspace --all-targets -- -D warnings
    cargo clippy -p infer-core -- -D warnings # without the features that the workspace turns on
    cargo clippy -p infer-core --features defmt -- -D warnings
    cargo clippy -p trainer --features cuda-check -- -D warnings # the CUDA path, type-checked without CUDA
    local crate
    for crate in infer-core trainer; do
        cargo clippy --manifest-path $crate/fuzz/Cargo.toml --target-dir "$target_dir/fuzz-clippy" -- -D warnings
    done
    if has_target $chip; then
        (cd firmware-example && cargo clippy --features link,kernels --target-dir "$target_dir/bare" -- -D warnings)
    else
        echo "firmware-example not linted: clippy needs rustup's target $chip"
    fi
}

test() {
    local skipped=$target_dir/skipped-tests status=0
    mkdir -p "$target_dir"
    : >"$skipped"
    SKIPPED_TESTS=$skipped cargo test --workspace || status=$?
    echo
    sort -u "$skipped" | cut -f 1 | uniq -c | sed 's/^ *\([0-9]*\) \(.*\)/\1 tests skipped: \2/'
    [ -s "$skipped" ] || echo "no test skipped"
    return $status
}

examples() {
    local name
    for name in story no_heap perplexity; do
        echo "example $name:"
        cargo run -q -p infer-core --features std --example "$name"
    done
}

nostd() {
    local target
    for target in $chip thumbv8m.main-none-eabihf thumbv6m-none-eabi riscv32imac-unknown-none-elf aarch64-unknown-none; do
        echo "infer-core for $target"
        cargo_bare "$target" build --release -p infer-core
    done
}

# Each step in a process of its own, so that one failure neither hides nor ends the others.
all() {
    local step passed=0 failed=() missing=0 start status
    for step in "${steps[@]}"; do
        echo
        echo "=== $step ==="
        start=$SECONDS
        status=0
        bash ./ci.sh "$step" || status=$?
        case $status in
        0) passed=$((passed + 1)) ;;
        "$skipped") missing=$((missing + 1)) ;;
        *) failed+=("$step") ;;
        esac
        echo "=== $step: $((SECONDS - start)) s, exit status $status ==="
    done
    echo
    [ ${#failed[@]} = 0 ] || echo "failed: ${failed[*]}"
    echo "steps: $passed passed, ${#failed[@]} failed, $missing skipped"
    [ ${#failed[@]} = 0 ]
}

[ $# -gt 0 ] || { echo "usage: ./ci.sh <$(IFS='|'; echo "${steps[*]}")|all>" >&2; exit 2; }
for step in "$@"; do
    case " ${steps[*]} all " in
    *" $step "*) ("$step") ;; # a folder that it changes to is its own
    *) echo "no such step: $step" >&2; exit 2 ;;
    esac
done
