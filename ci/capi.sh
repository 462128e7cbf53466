# shellcheck shell=bash disable=SC2154 # variables of ci.sh, which sources this
# The step `capi` of ci.sh: the C library, its header and the C examples.

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
            cargo_bare "$chip" rustc -p infer-core --release --crate-type staticlib --features capi
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
    cd "$target_dir/capi" || return
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
            make_c OUT=$weights MODEL="$PWD/$weights.bin" MODEL_H="$PWD/model.h" DEFINES="$kernels"
            check_symbols $weights/story.elf
            print_sizes $weights/story.elf
            output=$(qemu_c $weights/story.elf)
            echo "$output"
            same "$weights with $kv KV cache in QEMU" "$text"$'\n'"$hash" "$(sed 1,2d <<<"$output")"
            output=$(valgrind_c $weights.bin tokenizer.bin "Once upon a time" 64 "$c_kv")
            same "$weights with $kv KV cache on the host" "$text"$'\n'"$hash" "$output"
        done
    done

    # Files that cannot be used are refused in words, and nothing leaks.
    make_c OUT=cut MODEL="$PWD/cut.bin" MODEL_H="$PWD/model.h"
    refused qemu_c cut/story.elf
    refused valgrind_c cut.bin tokenizer.bin
    refused valgrind_c f32.bin cut.bin
    refused valgrind_c tokenizer.bin tokenizer.bin
    refused valgrind_c /dev/null tokenizer.bin
}

# plan_c PLAN [MODEL]: prints the plan as a C header.
plan_c() {
    "$target_dir/debug/infer-cli" inspect --plan "$1" --c "${@:2}"
}

# make_c ARGUMENTS...: builds the C examples in the current folder.
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

# refused COMMAND...: the command says what is wrong and exits with 1.
refused() {
    local output status=0
    output=$("$@") || status=$?
    echo "$output"
    [ $status = 1 ] || { echo "$*: exit status $status instead of 1" >&2; return 1; }
    grep -qE 'cut short|damaged' <<<"$output"
}

# same WHAT EXPECTED ACTUAL: fails, and shows the difference, unless both texts are equal.
same() {
    if ! diff <(echo "$2") <(echo "$3"); then
        echo "$1: not what infer-cli computes" >&2
        return 1
    fi
    echo "$1: as infer-cli"
}
