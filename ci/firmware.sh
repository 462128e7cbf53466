# shellcheck shell=bash disable=SC2154 # variables of ci.sh, which sources this
# The step `firmware` of ci.sh: firmware in QEMU, its host link, and images for every board.

firmware() {
    need qemu-system-arm qemu-system-arm
    need arm-none-eabi-size binutils-arm-none-eabi
    local board out
    for board in mps2-an386 mps3-an547; do
        echo "$board, default model:"
        out=$(build_image $board firmware-example)
        run_image $board "$out/firmware-example"
        check_plan "$out/firmware-example"
        layouts $board
        MODEL=random-int8 link $board
    done
    echo "with a watchdog of a million instructions:"
    out=$(WATCHDOG_CYCLES=25000 build_image mps2-an386 firmware-example)
    run_image mps2-an386 "$out/firmware-example" -icount shift=0
    echo "for Armv6-M, without FPU (64 tokens, as it is slow):"
    out=$(BARE_TARGET=thumbv6m-none-eabi build_image mps2-an386 firmware-example bench link)
    run_qemu mps2-an386 "$out/bench" </dev/null # fails unless the logits are the host's
    link netduinoplus2 # an STM32F405 with its own UART and 128 KB of RAM
    for board in firmware-example/boards/*/; do
        readme_builds "$(basename "$board")"
    done
    rustc --edition 2024 --test -o "$target_dir/memory-map" firmware-example/memory.rs
    "$target_dir/memory-map"
    too_small
}

# layouts BOARD: stories and kernels give the same bits in firmware built for speed and for size,
# and with the kernels moved by two bytes.
layouts() {
    local level displaced model out
    for level in 3 s z; do
        for displaced in "" 1; do
            for model in random-f32 random-int8; do
                echo "$1, opt-level $level, $model${displaced:+, displaced}:"
                out=$(CARGO_PROFILE_RELEASE_OPT_LEVEL=$level DISPLACED=$displaced MODEL=$model \
                    build_image "$1" firmware-example kernels)
                [ -z "$displaced" ] || check_displaced "$out/firmware-example"
                run_image "$1" "$out/firmware-example"
            done
            [ -z "$displaced" ] || check_displaced "$out/kernels"
            run_qemu "$1" "$out/kernels" </dev/null # it has models of its own
        done
    done
}

# check_displaced IMAGE: all kernels lie in the section of displaced.x. Those without literals are
# then at 2 mod 4; those with literals the compiler aligns to 4, which may be all of an image.
check_displaced() {
    local functions
    functions=$(arm-none-eabi-objdump --syms "$1" | grep -E ' F .*infer_core7kernels') ||
        { echo "$1: there are no kernels" >&2; return 1; }
    if grep -v ' F \.displaced' <<<"$functions" >&2; then
        echo "$1: these kernels are not displaced" >&2
        return 1
    fi
    echo "$(grep -c '^[0-9a-f]*[26ae] ' <<<"$functions") of $(wc -l <<<"$functions") kernels lie at 2 mod 4"
}

# readme_builds BOARD: builds for this board, word for word, what firmware-example/README.md says to
# build for a board of one's own.
readme_builds() {
    local commands command
    commands=$(grep -oE '^ +BOARD=mine cargo build .*' firmware-example/README.md)
    while read -r command; do
        echo "BOARD=$1 ${command#BOARD=mine }"
        (cd firmware-example && eval "BOARD=$1 cargo_bare $(target_of "$1") ${command#BOARD=mine cargo }")
    done <<<"$commands"
    print_sizes "$target_dir/bare/$(target_of "$1")/release/link"
}

# The build script refuses a model that the board has no room for, in words that help.
too_small() {
    local output
    if output=$(MODEL=random-f32 build_image netduinoplus2 firmware-example 2>&1); then
        echo "netduinoplus2 takes a model of 1 MB" >&2
        return 1
    fi
    grep -F 'netduinoplus2 is too small: FLASH has 1048576 bytes' <<<"$output" || { echo "$output" >&2; return 1; }
}

# link BOARD: the host link tells stories, over damaged lines too.
link() {
    local out
    out=$(build_image "$1" link)
    echo "$1 with the host link:"
    FIRMWARE=$(realpath "$out/link") FIRMWARE_MACHINE=$1 FIRMWARE_MODEL=$(model_of "$out/link") \
        cargo test -p infer-cli --test firmware
}

# run_image MACHINE IMAGE OPTIONS...: the image tells its story, then another one, and its logits
# are the host's.
run_image() {
    local output
    output=$(printf 'One day\n\n' | run_qemu "$@") ||
        { local status=$?; echo "$output"; echo "QEMU: exit status $status" >&2; return 1; }
    grep -aE '^(logits|stack)' <<<"$output"
    grep -aq ', as on the host$' <<<"$output" && grep -aq '^One day' <<<"$output"
}

# run_qemu MACHINE IMAGE OPTIONS...: runs the image with its serial line on stdin and stdout.
run_qemu() {
    timeout 300 qemu-system-arm -M "$1" -nographic -monitor none -serial stdio -semihosting -kernel "${@:2}"
}

# check_plan IMAGE: the image links the bytes that infer-cli plans for the settings of settings.rs.
check_plan() {
    local linked planned
    linked=$(arm-none-eabi-size -A "$1" | awk '$1 ~ /^\.(model|hot|cold)$/ { print $1, $2 }' | sort)
    planned=$(cargo run -q -p infer-cli -- inspect "$(model_of "$1")" --plan max_seq=256,kv=int8 |
        awk '$1 ~ /^\.(model|hot|cold)$/ { sum[$1] += $NF } END { for (s in sum) print s, sum[s] }' | sort)
    diff <(echo "$linked") <(echo "$planned") || { echo "not what infer-cli inspect plans" >&2; return 1; }
    echo "as planned: $(paste -sd, <<<"$linked") bytes"
}

# model_of IMAGE: prints the model file that its build script wrote, beside the tokenizer.
model_of() {
    echo "$(sed -n 's|.*"out_dir":"\([^"]*/firmware-example-[^"]*\)".*|\1|p' "${1%/*}/images.json")/model.bin"
}

# target_of BOARD: prints the compiler's name of the board's core.
target_of() {
    case $1 in
    mps3-an547 | rp2350) echo thumbv8m.main-none-eabihf ;;
    *) echo "$chip" ;;
    esac
}

# build_image BOARD BINARIES...: builds images of firmware-example and prints their folder, which
# also has cargo's messages. BARE_TARGET names another target than the board's.
build_image() {
    local board=$1 target out
    shift
    target=${BARE_TARGET:-$(target_of "$board")}
    out=$target_dir/bare/$target/release
    mkdir -p "$out"
    (cd firmware-example && BOARD=$board cargo_bare "$target" build --release "${@/#/--bin=}" --features link,kernels \
        --message-format=json-render-diagnostics) >"$out/images.json" || return # a failed build leaves older images
    echo "$out"
}
