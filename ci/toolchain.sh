# shellcheck shell=bash disable=SC2154 # variables of ci.sh, which sources this
# Compilers and packages for all steps. Missing ones are installed.

# cargo_bare TARGET COMMAND ARGUMENTS...: runs cargo for a bare-metal target. Where rustup has not
# installed the target, Debian's compiler builds core from Debian's sources.
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
        CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER="$linker" \
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
    # An installed qemu-utils of backports conflicts with the stable release's qemu-system-arm.
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends "$@" ||
        "${as_root[@]}" apt-get install -y -qq --no-install-recommends "$@" qemu-utils-
}

host() {
    rustc -vV | sed -n 's/^host: //p'
}
