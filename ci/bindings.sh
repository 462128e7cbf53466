# shellcheck shell=bash disable=SC2154 # variables of ci.sh, which sources this
# The step `bindings` of ci.sh: the library used from other languages, and the program written from
# docs/FORMAT.md. It leaves out a language that is not installed.

bindings() {
    cargo build -p infer-cli --target-dir "$target_dir"
    local status=$skipped
    if command -v node >/dev/null; then
        status=0
        wasm_example
    else
        echo "WebAssembly: skipped, node is not installed"
    fi
    if command -v python3 >/dev/null; then
        status=0
        python_example
        reference
    else
        echo "Python: skipped, python3 is not installed"
    fi
    return "$status"
}

wasm_example() {
    local target=wasm32-unknown-unknown module
    cargo_bare $target rustc -p infer-core --release --crate-type cdylib --features capi
    module=$target_dir/bare/$target/release/infer_core.wasm
    echo "WebAssembly: $(stat -c %s "$module") bytes"
    same_story WebAssembly node infer-core/examples/wasm/story.mjs "$module"
}

python_example() {
    cargo rustc -p infer-core --release --crate-type cdylib --features capi,std --target-dir "$target_dir"
    same_story Python python3 infer-core/examples/python/story.py "$target_dir/release/libinfer_core.so"
}

# same_story LANGUAGE COMMAND...: the command tells infer-cli's story with two models.
same_story() {
    local model text
    for model in models/model.bin models/firmware/model-f32.bin; do
        text=$("$target_dir/debug/infer-cli" $model -t 0.9 -s 3 -n 200 -i "Lily saw" --quiet)
        same "$1, $model" "$text" "$("${@:2}" $model "$(dirname $model)/tokenizer.bin" "Lily saw" 200 0.9 3)"
    done
}

# docs/reference.py computes infer-cli's logits, for f32 and int8 models with either KV cache.
reference() {
    python3 -c 'import numpy' 2>/dev/null || { echo "docs/reference.py: skipped, numpy is not installed"; return; }
    local model kv hash
    # The default model with an extension: theta, eps, Llama 3's scaling.
    python3 - "$target_dir/extended.bin" <<'END'
import struct, sys
file = bytearray(open("models/model.bin", "rb").read())
file[48:52] = b"llmx"
struct.pack_into("<iffifffIii4I8I", file, 52, 1, 5e5, 1e-6, 2, 8, 1, 4, 64, 1, 1, *[1, 0, 0, 0], *[2] + [0] * 7)
open(sys.argv[1], "wb").write(file)
END
    for model in models/model.bin models/firmware/model-f32.bin "$target_dir/extended.bin"; do
        for kv in f32 int8; do
            hash=$("$target_dir/debug/infer-cli" bench "$model" --tokens 16 --batch 1 --repeat 1 --kv $kv --json |
                sed 's/.*"logits_hash":"\([0-9a-f]*\)".*/\1/')
            same "docs/reference.py, $(basename "$model") with $kv KV cache" "$hash" "$(python3 docs/reference.py "$model" 16 $kv)"
        done
    done
}
