# shellcheck shell=bash disable=SC2154 # variables of ci.sh, which sources this
# The steps `docs` and `package` of ci.sh: documentation and packages.

docs() {
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
    RUSTC_BOOTSTRAP=1 RUSTDOCFLAGS="-D warnings --cfg docsrs" \
        cargo doc -p infer-core --all-features --no-deps --target-dir "$target_dir/docsrs"
}

package() {
    local log=$target_dir/package.log
    cargo package -p infer-core --features std --allow-dirty 2>&1 | tee "$log"
    if grep -q '^warning' "$log"; then
        echo "cargo package warns" >&2
        return 1
    fi
    local oldest
    oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    if rustup run "$oldest" cargo --version 2>/dev/null; then
        rustup run "$oldest" cargo check -p infer-core --all-features -p trainer --target-dir "$target_dir/oldest"
    else
        echo "Rust $oldest is not installed: whether it builds the library and the trainer is not checked"
    fi
}
