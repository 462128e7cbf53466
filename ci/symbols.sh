# shellcheck shell=bash disable=SC2154 # variables of ci.sh, which sources this
# The step `panics` of ci.sh: symbols and sizes of linked images.

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

# check_symbols FILE [PATTERN]: no symbol of the image or archive matches the pattern, and none
# unwinds or allocates. Without a pattern, it looks for panics and formatting.
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

# print_sizes IMAGE: prints flash and RAM, with the stack that the board's memory.x reserves.
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
