#!/usr/bin/env bash
# Every check of this repository, for a developer and for CI alike: ./ci.sh STEP...
#
#   fmt       formatting of all crates
#   clippy    lints, warnings are errors
#   test      unit, integration and documentation tests
#   docs      documentation, warnings are errors
#   nostd     the library for bare-metal targets, NEON among them
#   panics    the firmware image has no symbol of panics, allocation or formatting
#   firmware  the firmware image runs in QEMU and computes the host's logits
#   asan      the library's tests under the address sanitizer
#   fuzz      each fuzz target for FUZZ_SECONDS (20)
#   miri      the library's tests under Miri, where the toolchain has it
#   all       everything above, in this order
#
# Everything runs on stable Rust. What is missing is installed: with apt-get, and cargo-fuzz with cargo.
set -euo pipefail
cd "$(dirname "$0")"

steps=(fmt clippy test docs nostd panics firmware asan fuzz miri)
skipped=77 # exit status of a step that cannot run here
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")
chip=thumbv7em-none-eabihf
image=$target_dir/bare/$chip/release/firmware-example

fmt() {
    cargo fmt --all --check
    cargo fmt --manifest-path firmware-example/Cargo.toml --check
    cargo fmt --manifest-path infer-core/fuzz/Cargo.toml --check
}

clippy() {
    cargo clippy --workspace --all-targets -- -D warnings
    cargo clippy -p infer-core -- -D warnings # without the features that the workspace turns on
    cargo clippy -p trainer --features cuda-check -- -D warnings # the CUDA path, type-checked without CUDA
    cargo clippy --manifest-path infer-core/fuzz/Cargo.toml --target-dir "$target_dir/fuzz-clippy" -- -D warnings
    if has_target $chip; then
        (cd firmware-example && cargo clippy --target-dir "$target_dir/bare" -- -D warnings)
    else
        echo "firmware-example not linted: clippy needs rustup's target $chip"
    fi
}

test() {
    cargo test --workspace
}

docs() {
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
}

nostd() {
    local target
    for target in $chip thumbv8m.main-none-eabihf riscv32imac-unknown-none-elf aarch64-unknown-none; do
        echo "infer-core for $target"
        cargo_bare "$target" build --release -p infer-core
    done
}

panics() {
    need arm-none-eabi-nm binutils-arm-none-eabi
    local level
    for level in s 3; do # as firmware is built for size, and for speed; 3 last, for the step firmware
        CARGO_PROFILE_RELEASE_OPT_LEVEL=$level build_image
        echo "opt-level $level:"
        check_symbols
    done
}

check_symbols() {
    local symbols offenders
    symbols=$(arm-none-eabi-nm --demangle "$image")
    # A stripped image, or one with the library optimised away, would pass for the wrong reason.
    if ! grep -q 'infer_core::kernels::scalar::matmul_q8' <<<"$symbols"; then
        echo "the image's symbol table has no trace of infer-core: nothing can be checked" >&2
        return 1
    fi
    offenders=$(grep -E 'core::(panicking|fmt)|panic_|rust_begin_unwind|rust_panic|(unwrap|expect)_failed|slice_.*fail|_Unwind|__rust_.*alloc|\b(malloc|calloc|realloc|free)$' <<<"$symbols" || true)
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
    echo "no symbol of panics, allocation or formatting among $(wc -l <<<"$symbols")"
    arm-none-eabi-size -A "$image" | awk '
        $1 == ".text" { print $2 " bytes of code" }
        $1 == ".rodata" { print $2 " bytes of constants, the models among them" }
        $1 == ".data" || $1 == ".bss" { ram += $2 }
        END { print ram " bytes of static RAM" }'
}

firmware() {
    need qemu-system-arm qemu-system-arm
    build_image
    local output
    output=$(timeout 60 qemu-system-arm -M mps2-an386 -nographic -monitor none -serial stdio -semihosting \
        -kernel "$image" </dev/null) || { local status=$?; echo "$output"; echo "QEMU: exit status $status" >&2; return 1; }
    echo "$output"
    [ "$(tail -n 1 <<<"$output")" = "firmware-example: passed" ]
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

build_image() {
    cd firmware-example
    cargo_bare $chip build --release
    cd ..
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
