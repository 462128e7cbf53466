#!/usr/bin/env bash
# Every check of this repository, for a developer and for CI alike: ./ci.sh STEP...
#
#   fmt       formatting of all crates
#   clippy    lints, warnings are errors
#   test      unit, integration and documentation tests
#   docs      documentation, warnings are errors
#   nostd     the library for bare-metal targets, NEON among them
#   panics    the firmware image has no symbol of panics, allocation or formatting
#   firmware  the firmware images run in QEMU and compute the host's logits, the host link over damaged lines too; the
#             kernels of each core give the bits of the scalar ones, for speed and for size and wherever they lie; what
#             firmware-example's README builds is built for each board (ci/firmware.sh)
#   capi      the C header is up to date; the C archive has no panics; the C examples, in QEMU and under valgrind, tell
#             what infer-cli tells
#   asan      the library's tests under the address sanitizer
#   fuzz      each fuzz target for FUZZ_SECONDS (20)
#   miri      the library's tests under Miri, where the toolchain has it
#   all       everything above, in this order
#
# Everything runs on stable Rust. What is missing is installed: with apt-get, and cargo-fuzz with cargo.
set -euo pipefail
shopt -s inherit_errexit # or a failure inside of $(…) would go unnoticed
cd "$(dirname "$0")"

root=$PWD
steps=(fmt clippy test docs nostd panics firmware capi asan fuzz miri)
skipped=77 # exit status of a step that cannot run here
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")
chip=thumbv7em-none-eabihf
source ci/firmware.sh

fmt() {
    cargo fmt --all --check
    cargo fmt --manifest-path firmware-example/Cargo.toml --check
    rustfmt --check --edition 2024 firmware-example/boards/*/board.rs # included, so cargo does not see them
    cargo fmt --manifest-path infer-core/fuzz/Cargo.toml --check
}

clippy() {
    cargo clippy --workspace --all-targets -- -D warnings
    cargo clippy -p infer-core -- -D warnings # without the features that the workspace turns on
    cargo clippy -p infer-core --features defmt -- -D warnings
    cargo clippy -p trainer --features cuda-check -- -D warnings # the CUDA path, type-checked without CUDA
    cargo clippy --manifest-path infer-core/fuzz/Cargo.toml --target-dir "$target_dir/fuzz-clippy" -- -D warnings
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

docs() {
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
}

nostd() {
    local target
    for target in $chip thumbv8m.main-none-eabihf thumbv6m-none-eabi riscv32imac-unknown-none-elf aarch64-unknown-none; do
        echo "infer-core for $target"
        cargo_bare "$target" build --release -p infer-core
    done
}

panics() {
    need arm-none-eabi-nm binutils-arm-none-eabi
    local level image
    for level in s 3; do # as firmware is built for size, and for speed
        echo "opt-level $level:"
        image=$(CARGO_PROFILE_RELEASE_OPT_LEVEL=$level build_image mps2-an386 firmware-example)/firmware-example
        check_symbols "$image"
        print_sizes "$image"
    done
    echo "with the host link:"
    image=$(build_image mps2-an386 link)/link
    check_symbols "$image" 'core::fmt'
    print_sizes "$image"
    echo "its crates (postcard, cobs, heapless, serde) can panic, which resets the chip:"
    arm-none-eabi-nm --demangle "$image" | grep -oE 'core::panicking::.*' | sort -u
}

# check_symbols FILE [PATTERN]: no symbol of the image or archive matches the pattern (panics and formatting), unwinds or
# allocates.
check_symbols() {
    local image=$1 symbols offenders
    local pattern=${2:-'core::(panicking|fmt)|panic_|rust_begin_unwind|rust_panic|(unwrap|expect)_failed|slice_.*fail'}
    symbols=$(arm-none-eabi-nm --demangle "$image")
    # A stripped image, or one with the library optimised away, would pass for the wrong reason.
    if ! grep -q 'infer_core::.*matmul_q8' <<<"$symbols"; then
        echo "the image's symbol table has no trace of infer-core: nothing can be checked" >&2
        return 1
    fi
    offenders=$(grep -E "$pattern"'|_Unwind|__rust_.*alloc|\b(malloc|calloc|realloc|free)$' <<<"$symbols" || true)
    if [ -n "$offenders" ]; then
        echo "the image can panic, allocate or format:" >&2
        echo "$offenders" >&2
        echo "called from:" >&2
        arm-none-eabi-objdump -d --demangle "$image" |
            awk '/^[0-9a-f]+ </ { inside = /<core::panicking/ }
                !inside && /\tb.*<core::panicking/ { sub(":", "", $1); print "0x" $1 }' |
            xargs -r arm-none-eabi-addr2line -e "$image" --addresses --inlines --functions --demangle >&2
        return 1
    fi
    echo "no such symbol among $(wc -l <<<"$symbols")"
}

# Flash and RAM of an image, with the stack that its board's memory.x reserves.
print_sizes() {
    local stack
    stack=$(arm-none-eabi-nm "$1" | sed -n 's/^\([0-9a-f]*\) A STACK_SIZE$/\1/p')
    arm-none-eabi-size -A "$1" | awk -v stack=$((16#${stack:-0})) '
        $1 == ".vector_table" || $1 == ".text" || $1 == ".gnu.sgstubs" { code += $2 }
        $1 == ".rodata" { constants = $2 }
        $1 == ".model" { model = $2 }
        $1 == ".hot" { hot = $2 }
        $1 == ".cold" { cold = $2 }
        $1 == ".data" || $1 == ".bss" || $1 == ".uninit" { statics += $2 }
        END {
            print "  flash: " code " bytes of code, " constants " of constants, " model " of model and tokenizer"
            print "  RAM: " hot + cold + statics + stack " bytes: " hot " hot, " cold " cold, " statics " other statics, " \
                stack " reserved for the stack"
        }'
}

capi() {
    need arm-none-eabi-gcc gcc-arm-none-eabi
    need qemu-system-arm qemu-system-arm
    need valgrind valgrind
    need g++ g++
    local version=0.29.4 header=infer-core/include/infer_core.h # another version writes another header
    [ "$(cbindgen --version 2>/dev/null)" = "cbindgen $version" ] || cargo install --locked "cbindgen@$version"
    if ! (cd infer-core && cbindgen --quiet) | diff "$header" -; then
        echo "$header is out of date: cd infer-core && cbindgen -o include/infer_core.h" >&2
        return 1
    fi
    g++ -std=c++11 -Wall -Wextra -Werror -fsyntax-only -x c++ "$header"

    local archive=$target_dir/bare/$chip/release/libinfer_core.a level
    for level in s 3; do
        CARGO_PROFILE_RELEASE_OPT_LEVEL=$level \
            cargo_bare $chip rustc -p infer-core --release --crate-type staticlib --features capi
        echo "archive at opt-level $level:"
        check_symbols "$archive"
    done
    cargo rustc -p infer-core --release --crate-type staticlib --features capi,std --target-dir "$target_dir"
    cargo run -p tests --example random_model --target-dir "$target_dir" -- "$target_dir/capi"
    cargo build -p infer-cli --target-dir "$target_dir"
    if ! plan_c max_seq=64,kv=f32,prompt=128 models/firmware/model.bin | diff firmware-example/c/model.h -; then
        echo "model.h is out of date: infer-cli inspect models/firmware/model.bin --plan max_seq=64,kv=f32,prompt=128 --c" >&2
        return 1
    fi
    cd "$target_dir/capi"
    head -c 1000 f32.bin >cut.bin
    local weights kernels kv c_kv text hash output
    make_c host
    for weights in f32 int8; do
        kernels=$([ $weights = f32 ] || echo -DKERNELS=INFER_KERNELS_CORTEX_M_DSP)
        for kv in f32 int8; do
            c_kv=${kv/int8/i8} # in C
            text=$("$target_dir/debug/infer-cli" $weights.bin -t 0 -n 64 -i "Once upon a time" --kv $kv 2>/dev/null)
            hash=$("$target_dir/debug/infer-cli" bench $weights.bin --tokens 16 --batch 1 --repeat 1 --kv $kv --json |
                sed 's/.*"logits_hash":"\([0-9a-f]*\)".*/logits hash \1/')
            plan_c max_seq=64,kv=$kv $weights.bin >model.h
            make_c OUT=$weights MODEL=$PWD/$weights.bin MODEL_H=$PWD/model.h DEFINES="$kernels"
            check_symbols $weights/story.elf
            print_sizes $weights/story.elf
            output=$(qemu_c $weights/story.elf)
            echo "$output"
            same "$weights with $kv KV cache in QEMU" "$text"$'\n'"$hash" "$(sed 1,2d <<<"$output")"
            output=$(valgrind_c $weights.bin tokenizer.bin "Once upon a time" 64 $c_kv)
            same "$weights with $kv KV cache on the host" "$text"$'\n'"$hash" "$output"
        done
    done

    # What cannot be used is said, and nothing leaks.
    make_c OUT=cut MODEL=$PWD/cut.bin MODEL_H=$PWD/model.h
    refused qemu_c cut/story.elf
    refused valgrind_c cut.bin tokenizer.bin
    refused valgrind_c f32.bin cut.bin
    refused valgrind_c tokenizer.bin tokenizer.bin
    refused valgrind_c /dev/null tokenizer.bin
}

# plan_c PLAN [MODEL]: sizes for C.
plan_c() {
    "$target_dir/debug/infer-cli" inspect --plan "$1" --c "${@:2}"
}

# make_c ARGUMENTS...: the C examples, in the current folder.
make_c() {
    make -B --no-print-directory -C "$root/firmware-example/c" OUT="$PWD" TOKENIZER="$PWD/tokenizer.bin" \
        ARCHIVE="$archive" HOST_ARCHIVE="$target_dir/release/libinfer_core.a" "${@/#OUT=/OUT=$PWD/}"
}

qemu_c() {
    run_qemu mps2-an386 "$1" </dev/null
}

valgrind_c() {
    valgrind --quiet --error-exitcode=9 --leak-check=full --show-leak-kinds=all --errors-for-leak-kinds=all \
        ./story "$@" 2>&1
}

# refused COMMAND...: it says what is wrong and exits with 1.
refused() {
    local output status=0
    output=$("$@") || status=$?
    echo "$output"
    [ $status = 1 ] || { echo "$*: exit status $status instead of 1" >&2; return 1; }
    grep -qE 'cut short|damaged' <<<"$output"
}

# same WHAT EXPECTED ACTUAL
same() {
    if ! diff <(echo "$2") <(echo "$3"); then
        echo "$1: not what infer-cli computes" >&2
        return 1
    fi
    echo "$1: as infer-cli"
}

asan() {
    # A target is named so that build scripts and macros are not instrumented.
    RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address \
        cargo test -p infer-core -p tests --tests --target "$(host)" --target-dir "$target_dir/asan"
}

fuzz() {
    cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
    local target
    for target in model tokenizer forward; do
        # cargo-fuzz asks for options of a nightly compiler; stable has them as well.
        (cd infer-core && RUSTC_BOOTSTRAP=1 cargo fuzz run "$target" -- \
            -max_total_time="${FUZZ_SECONDS:-20}" -timeout=10 -print_final_stats=1 -print_funcs=0 -verbosity=0)
        echo "fuzz target $target: ${FUZZ_SECONDS:-20} seconds, nothing found"
    done
}

miri() {
    local cargo
    for cargo in cargo "rustup run nightly cargo"; do
        # shellcheck disable=SC2086 # several words
        if $cargo miri --version >/dev/null 2>&1; then
            MIRIFLAGS=-Zmiri-disable-isolation $cargo miri test -p infer-core --target-dir "$target_dir/miri"
            return
        fi
    done
    echo "skipped: neither the default toolchain nor nightly has Miri"
    return $skipped
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

# cargo_bare TARGET COMMAND ARGUMENTS...: cargo for a bare-metal target. Where rustup has not installed the target,
# Debian's compiler builds core from Debian's sources.
cargo_bare() {
    local target=$1
    shift
    if has_target "$target"; then
        cargo "$@" --target "$target" --target-dir "$target_dir/bare"
        return
    fi
    need_debian_rust
    # Debian's compiler has no linker for these targets; the one beside rustup's does.
    local linker
    linker=$(rustc --print sysroot)/lib/rustlib/$(host)/bin/rust-lld
    env RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 CARGO_TARGET_THUMBV7EM_NONE_EABIHF_LINKER="$linker" \
        CARGO_TARGET_THUMBV8M_MAIN_NONE_EABIHF_LINKER="$linker" CARGO_TARGET_THUMBV6M_NONE_EABI_LINKER="$linker" \
        cargo "$@" -Zbuild-std=core --target "$target" --target-dir "$target_dir/bare"
}

has_target() {
    grep -qx "$1" <<<"$(rustup target list --installed 2>/dev/null)"
}

need_debian_rust() {
    if [ -x /usr/bin/rustc ] && [ -e "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock" ]; then
        return
    fi
    echo "no bare-metal target is installed (rustup target add $chip): trying Debian's compiler"
    install rustc-web rust-web-src
}

# need COMMAND PACKAGES...: installs Debian packages unless the command is there.
need() {
    local command=$1
    shift
    command -v "$command" >/dev/null || install "$@"
}

install() {
    local as_root=()
    command -v apt-get >/dev/null || { echo "please install: $*" >&2; return 1; }
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    # A qemu-utils from backports stands in the way of the stable release's qemu-system-arm.
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends "$@" ||
        "${as_root[@]}" apt-get install -y -qq --no-install-recommends "$@" qemu-utils-
}

host() {
    rustc -vV | sed -n 's/^host: //p'
}

[ $# -gt 0 ] || { echo "usage: ./ci.sh <$(IFS='|'; echo "${steps[*]}")|all>" >&2; exit 2; }
for step in "$@"; do
    case " ${steps[*]} all " in
    *" $step "*) "$step" ;;
    *) echo "no such step: $step" >&2; exit 2 ;;
    esac
done
