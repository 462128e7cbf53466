# shellcheck shell=bash
# The step `fmt` of ci.sh: how files are written.

fmt() {
    cargo fmt --all --check
    cargo fmt --manifest-path firmware-example/Cargo.toml --check
    rustfmt --check --edition 2024 firmware-example/boards/*/board.rs # included, so cargo does not see them
    cargo fmt --manifest-path infer-core/fuzz/Cargo.toml --check
    cargo fmt --manifest-path trainer/fuzz/Cargo.toml --check
    scripts
    comments
    lengths
}

# files PATTERN...: prints the files of the repository that match, new ones included.
files() {
    git ls-files --cached --others --exclude-standard -- "$@" | xargs -d '\n' ls -d 2>/dev/null || true
}

scripts() {
    need shellcheck shellcheck
    files '*.sh' .ci/run | xargs -d '\n' shellcheck --external-sources
    echo "scripts: shellcheck has nothing to say"
}

# A line that is all comment ends at column 100 at the latest. Rows of tables cannot be wrapped.
comments() {
    local long
    long=$(files '*.rs' '*.[chSx]' '*.cu' '*.ld' '*.sh' '*.toml' |
        LC_ALL=C.UTF-8 xargs -d '\n' grep -nE '^.{101}' | grep -E '^[^:]+:[0-9]+: *(//|/\*|#([^[!]|$))' |
        grep -vE '^[^:]+:[0-9]+: *//[/!] \|' || true)
    [ -z "$long" ] || { echo "comments beyond column 100:"; echo "$long"; return 1; } >&2
    echo "comments: none goes beyond column 100"
}

# A source file has at most 450 lines; tests, and the header that cbindgen writes, may have more.
lengths() {
    local long
    long=$(files '*.rs' '*.[chS]' '*.sh' ':!*/tests/*' ':!infer-core/include' |
        xargs -d '\n' wc -l | awk '$1 > 450 && $2 != "total"')
    [ -z "$long" ] || { echo "files of more than 450 lines:"; echo "$long"; return 1; } >&2
    echo "files: none has more than 450 lines"
}
