# shellcheck shell=bash disable=SC2154 # variables of ci.sh, which sources this
# The step `cuda` of ci.sh: what can be said of the trainer's kernels without a GPU.

cuda() {
    cuda_asan
    cuda_registers
}

# The kernels as C++ under the address sanitizer. The tests forbid the memory between buffers.
cuda_asan() {
    need g++ g++
    local asan runner
    asan=$(g++ -print-file-name=libasan.so)
    [ -e "$asan" ] || install g++
    runner=CARGO_TARGET_$(host | tr 'a-z-' 'A-Z_')_RUNNER
    # The build is that of the step `test`: --workspace decides on features of dependencies. The
    # shared library alone is instrumented, so the sanitizer is loaded before the tests. The
    # test that takes out barriers does not look at addresses.
    env "$runner=env LD_PRELOAD=$asan ASAN_OPTIONS=detect_leaks=0:abort_on_error=0" SHIM_FLAGS="-fsanitize=address -g" \
        cargo test --workspace --lib --target-dir "$target_dir" -- model::cuda --skip a_missing_barrier_shows
}

# The kernels by NVIDIA's compiler, which PyPI has. The trainer compiles them in the same way, but
# for the GPU that it finds. CUDA 13 has no sm_70 any more.
cuda_registers() {
    local folder=$target_dir/cuda
    mkdir -p "$folder"
    "$folder/venv/bin/python" -c 'import nvidia.cuda_nvrtc' 2>/dev/null || cuda_venv "$folder/venv" ||
        { echo "cuda: registers not counted, PyPI's nvidia-cuda-nvrtc-cu12 does not install here"; return "$skipped"; }
    rm -f "$folder"/*.cu
    KERNELS=$folder cargo test -q --workspace --lib --target-dir "$target_dir" -- --ignored --exact \
        model::cuda::kernels::write_the_kernels
    "$folder/venv/bin/python" ci/registers.py "$folder"
}

cuda_venv() {
    /usr/bin/python3 -c 'import ensurepip' 2>/dev/null || install python3-venv || return
    /usr/bin/python3 -m venv --clear "$1" && "$1/bin/pip" install -q --no-cache-dir nvidia-cuda-nvrtc-cu12==12.9.86
}
