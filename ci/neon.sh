# shellcheck shell=bash disable=SC2154 # variables of ci.sh, which sources this
# The step `neon` of ci.sh: the library's tests on 64-bit Arm, in QEMU's emulation of a process.

neon() {
    local target=aarch64-unknown-linux-gnu options=() variables=() core output
    if ! need_arm_linux; then
        [ -z "${CI:-}" ] || return 1
        echo "skipped: no compiler or no emulator of 64-bit Arm"
        return "$skipped"
    fi
    if ! has_target $target; then
        variables=(RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1)
        options=("-Zbuild-std=std,panic_unwind,test")
    fi
    # A core without dotprod, then one with it, whose tests must have run its kernels.
    for core in cortex-a72 max; do
        output=$(env "${variables[@]}" CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
            CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $core -L /usr/aarch64-linux-gnu" \
            cargo test --release -p infer-core --features std --lib "${options[@]}" --target $target \
            --target-dir "$target_dir/neon" -- --show-output) || { echo "$output"; return 1; }
        echo "$core: $(grep '^tables' <<<"$output"); $(grep '^test result' <<<"$output")"
    done
    grep -q '^tables:.* neon-dotprod' <<<"$output" || { echo "the core max showed no dotprod" >&2; return 1; }
}

# Installs what the step needs, unless it is there.
need_arm_linux() {
    has_target aarch64-unknown-linux-gnu || need_debian_rust || return
    need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross || return
    need qemu-aarch64 qemu-user
}
