"""Compiles the trainer's CUDA kernels for several GPUs, as the trainer does but ahead of time, and
fails where one uses more registers than its budget, or spills many of them to memory.

    registers.py FOLDER

FOLDER has a file HEAD_SIZE-FORMAT.cu for each program. Needs PyPI's nvidia-cuda-nvrtc-cu12.
"""
import concurrent.futures
import ctypes
import os
import pathlib
import re
import sys

import nvidia.cuda_nvrtc

ARCHITECTURES = 70, 80, 90

# Registers of a thread: for heads of at most 64 numbers, and for larger ones. A block has 128
# threads and a multiprocessor 65,536 registers: with up to 40 it runs 12 blocks, with 128 it runs
# 4, with 168 it runs 3, with 255 it runs 2.
BUDGET = {
    "attention": (112, 136),
    "attention_backward_q": (144, 168),
    "attention_backward_kv": (144, 224),
}
OTHERS = 40, 40
# Bytes stored and loaded. ptxas puts a number or two of a whole kernel aside to run one more block.
SPILLED = 16


def compiled(file, architecture):
    """What the compiler says about a file: kernel, registers, spilled bytes, shared bytes."""
    library, = pathlib.Path(nvidia.cuda_nvrtc.__path__[0], "lib").glob("libnvrtc.so.*")
    nvrtc = ctypes.CDLL(str(library))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    name = file.name.encode()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), file.read_bytes(), name, 0, None, None):
        raise SystemExit(f"{file}: NVRTC does not take it")
    options = [f"--gpu-architecture=sm_{architecture}".encode(), b"--ptxas-options=-v"]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    text = log.value.decode()
    if status:
        raise SystemExit(f"{file} for sm_{architecture}: {text}")
    kernels = {}
    for part in text.split("Compiling entry function '")[1:]:
        registers, = re.findall(r"Used (\d+) registers", part)
        stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part).groups()
        shared = re.search(r"(\d+) bytes smem", part)
        kernels[part.split("'")[0]] = int(registers), int(stores) + int(loads), int(shared[1]) if shared else 0
    return kernels


def main(folder):
    files = sorted(pathlib.Path(folder).glob("*.cu"), key=lambda file: (int(file.stem.split("-")[0]), file.stem))
    pairs = [(file, architecture) for file in files for architecture in ARCHITECTURES]
    with concurrent.futures.ProcessPoolExecutor() as pool:
        found = dict(zip(pairs, pool.map(compiled, *zip(*pairs))))
    print("registers (+ spilled bytes) and bytes of shared memory per block")
    print(" ".join([f"{'kernel':26}", f"{'head':>9}", *(f"{f'sm_{a}':>20}" for a in ARCHITECTURES), "budget"]))
    failed, last = [], {}
    for file in files:
        for kernel in sorted(found[file, ARCHITECTURES[0]]):
            uses = [found[file, architecture][kernel] for architecture in ARCHITECTURES]
            budget = BUDGET.get(kernel, OTHERS)[int(file.stem.split("-")[0]) > 64]
            for architecture, (registers, spilled, _) in zip(ARCHITECTURES, uses):
                if spilled > SPILLED or registers > budget:
                    failed.append(f"{kernel}, {file.name}, sm_{architecture}: {registers} registers "
                                  f"(budget {budget}), {spilled} bytes spilled")
            if last.get(kernel) == uses:
                continue  # most kernels do not depend on the head size
            last[kernel] = uses
            cells = (f"{r}{f' +{s}' if s else ''} {m:>6}" for r, s, m in uses)
            print(" ".join([f"{kernel:26}", f"{file.stem:>9}", *(f"{cell:>20}" for cell in cells), f"{budget:>6}"]))
    print("\n".join(failed) or f"{len(found)} compilations, all within their budgets, {SPILLED} bytes spilled at most")
    return bool(failed)


if __name__ == "__main__":
    os.nice(5)
    sys.exit(main(sys.argv[1]))
