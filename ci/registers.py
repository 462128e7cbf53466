"""Compiles the trainer's CUDA kernels for several GPUs, as the trainer does but ahead of time, and
fails where one uses more registers than its budget, or spills many of them to memory.

    registers.py FOLDER

FOLDER has a file HEAD_SIZE-FORMAT-from-CAPABILITY.cu for each program; attention is on tensor cores from capability 8
on. Needs PyPI's nvidia-cuda-nvrtc-cu12.
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
# threads and a multiprocessor 65,536 registers: with up to 48 it runs 10 blocks, with 128 it runs
# 4, with 168 it runs 3, with 255 it runs 2.
BUDGET = {
    "attention": (112, 136),
    "attention_backward_q": (144, 168),
    "attention_backward_kv": (168, 224),
}
ON_TENSOR_CORES = {
    "attention": (128, 168),
    "attention_backward_q": (128, 255),
    "attention_backward_kv": (168, 255),
}
OTHERS = 48, 48
# Bytes stored and loaded. ptxas puts a few numbers of a whole kernel aside to run one more block.
SPILLED = 48


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


def capability(file):
    return int(file.stem.split("-")[-1])


def budget(kernel, file):
    budgets = BUDGET if capability(file) < 8 else ON_TENSOR_CORES
    return budgets.get(kernel, OTHERS)[int(file.stem.split("-")[0]) > 64]


def cell(registers, spilled, shared):
    return f"{registers}{f' +{spilled}' * (spilled > 0)} {shared:>5}"


def main(folder):
    files = sorted(pathlib.Path(folder).glob("*.cu"))
    pairs = [(file, architecture) for file in files for architecture in ARCHITECTURES
             if architecture >= 10 * capability(file)]
    with concurrent.futures.ProcessPoolExecutor() as pool:
        found = dict(zip(pairs, pool.map(compiled, *zip(*pairs))))
    # Most kernels are the same in several programs.
    rows, failed = {}, []
    for file in files:
        for kernel in found[file, ARCHITECTURES[-1]]:
            uses = tuple(found[file, architecture][kernel] if (file, architecture) in found else None
                         for architecture in ARCHITECTURES)
            rows.setdefault((kernel, budget(kernel, file), uses), []).append(file.stem)
    print("registers (+ bytes spilled) of a thread and bytes of shared memory of a block")
    print(f"{'kernel':24}", *(f"{f'sm_{architecture}':>14}" for architecture in ARCHITECTURES), "budget  programs")
    for (kernel, most, uses), programs in sorted(rows.items(), key=lambda row: row[0][:2]):
        cells = [cell(*use) if use else "-" for use in uses]
        names = "all" if len(programs) == len(files) else " ".join(programs)
        print(f"{kernel:24}", *(f"{cell:>14}" for cell in cells), f"{most:>6}  {names}")
        for architecture, use in zip(ARCHITECTURES, uses):
            registers, spilled, _ = use or (0, 0, 0)
            if spilled > SPILLED or registers > most:
                failed.append(f"{kernel} for sm_{architecture} in {names}: {registers} registers (budget {most}), "
                              f"{spilled} bytes spilled")
    print("\n".join(failed) or f"{len(found)} compilations, all within their budgets, {SPILLED} bytes spilled at most")
    return bool(failed)


if __name__ == "__main__":
    os.nice(5)
    sys.exit(main(sys.argv[1]))
