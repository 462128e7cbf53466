# shellcheck shell=bash disable=SC2154 # variables of ci.sh, which sources this
# The steps `asan`, `fuzz` and `miri` of ci.sh: searches for undefined behaviour.

asan() {
    # With --target, build scripts and macros are not instrumented. A test asks for more memory than
    # there is, and takes no for an answer.
    RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address ASAN_OPTIONS=allocator_may_return_null=1 \
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
    return "$skipped"
}
