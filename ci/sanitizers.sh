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
    local crate target corpora targets=(infer-core/{model,tokenizer,forward,session})
    # The parsers of import, when FUZZ_IMPORT is set.
    [ -z "${FUZZ_IMPORT:-}" ] || targets+=(trainer/{zip,pickle,gguf,config,sentencepiece})
    for target in "${targets[@]}"; do
        crate=${target%/*} target=${target#*/}
        # What a search finds goes to the first folder; trainer's has files to begin with.
        corpora=("fuzz/corpus/$target")
        mkdir -p "$crate/${corpora[0]}"
        [ ! -d "$crate/fuzz/seeds/$target" ] || corpora+=("fuzz/seeds/$target")
        # cargo-fuzz asks for options of a nightly compiler; stable has them as well. Import takes
        # no memory for what a file claims: 200 MB are above the sanitizer's own.
        (cd "$crate" && RUSTC_BOOTSTRAP=1 cargo fuzz run "$target" "${corpora[@]}" -- \
            -max_total_time="${FUZZ_SECONDS:-20}" -timeout=10 -malloc_limit_mb=200 -print_final_stats=1 -print_funcs=0 \
            -verbosity=0)
        echo "fuzz target $crate/$target: ${FUZZ_SECONDS:-20} seconds, nothing found"
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
