#!/usr/bin/env python3
"""Tells a story with infer-core's C library, over ctypes.

    cargo rustc -p infer-core --release --crate-type cdylib --features capi,std
    python3 story.py target/release/libinfer_core.so MODEL.bin TOKENIZER.bin \\
        [PROMPT [STEPS [TEMPERATURE [SEED]]]]

The library never allocates: this program lends it the buffers. Names and layout are those of
infer_core.h. On macOS the library ends in .dylib, on Windows it is infer_core.dll.
"""

import codecs
import ctypes
import sys
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_double, c_float, c_int64, c_size_t, c_uint32
from ctypes import c_uint64, c_void_p

BOS = 1
PROMPT_BYTES = 1024


class Text(Structure):
    _fields_ = [("data", c_void_p), ("bytes", c_size_t)]


class Error(Structure):
    _fields_ = [("code", c_uint32), ("subject", Text), ("rule", Text), ("values", c_int64 * 4), ("number", c_double)]


class Config(Structure):
    _fields_ = [(name, c_size_t) for name in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads",
                                              "vocab_size", "seq_len", "group_size")]


class Limits(Structure):
    _fields_ = [("max_seq", c_size_t), ("batch", c_size_t), ("prompt_bytes", c_size_t), ("kv", c_uint32)]


class Memory(Structure):
    _fields_ = [("part", Text * 7)]  # an infer_buffer is an infer_text: address and bytes


class Context(Structure):
    _fields_ = [("align", c_uint64), ("words", c_size_t * 240)]


ARGUMENTS = {
    "infer_read_config": [c_char_p, c_size_t, POINTER(Config)],
    "infer_plan": [c_char_p, c_size_t, POINTER(Limits), POINTER(Memory)],
    "infer_init": [POINTER(Context), c_void_p, c_size_t, c_char_p, c_size_t, POINTER(Limits), POINTER(Memory)],
    "infer_set_sampler": [POINTER(Context), c_float, c_float, c_uint64],
    "infer_encode": [POINTER(Context), c_char_p, c_size_t, c_bool, POINTER(c_uint32), c_size_t, POINTER(c_size_t)],
    "infer_forward": [POINTER(Context), POINTER(c_uint32), c_size_t, c_size_t],
    "infer_classify": [POINTER(Context), c_size_t, POINTER(POINTER(c_float))],
    "infer_sample": [POINTER(Context), POINTER(c_uint32)],
    "infer_decode": [POINTER(Context), c_uint32, c_uint32, POINTER(Text)],
}


class Llama:
    def __init__(self, library, model, tokenizer):
        """`library` is a path; `model` and `tokenizer` are the bytes of the files."""
        self.core = ctypes.CDLL(library)
        self.core.infer_error_write.argtypes = [POINTER(Error), c_char_p, c_size_t]
        for name, types in ARGUMENTS.items():
            getattr(self.core, name).argtypes = types
            getattr(self.core, name).restype = Error
        config, limits, memory = Config(), Limits(), Memory()
        self.call("infer_read_config", model, len(model), byref(config))
        self.seq_len = config.seq_len
        limits.max_seq, limits.batch, limits.prompt_bytes = config.seq_len, 1, PROMPT_BYTES
        self.call("infer_plan", model, len(model), byref(limits), byref(memory))
        # The context points to all of these, so they live as long as it does. The model is copied,
        # since the bytes of a Python object need not be aligned.
        self.lent = [tokenizer, aligned(len(model))]
        ctypes.memmove(self.lent[1], model, len(model))
        for part in memory.part:
            self.lent.append(aligned(part.bytes))
            part.data = ctypes.addressof(self.lent[-1])
        self.context = Context()  # zeros
        self.call("infer_init", byref(self.context), self.lent[1], len(model), tokenizer, len(tokenizer),
                  byref(limits), byref(memory))

    def story(self, prompt, steps, temperature, seed):
        """Yields the text piece by piece, the prompt first."""
        context, prompt = byref(self.context), prompt.encode()
        known, n = (c_uint32 * (PROMPT_BYTES + 2))(), c_size_t()
        self.call("infer_encode", context, prompt, len(prompt), True, known, len(known), byref(n))
        self.call("infer_set_sampler", context, temperature, 0.9, seed)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # one token need not be whole characters
        token, following, piece = BOS, c_uint32(), Text()
        for pos in range(min(steps, self.seq_len)):
            self.call("infer_forward", context, byref(c_uint32(token)), 1, pos)
            if pos + 1 < n.value:
                following.value = known[pos + 1]
            else:
                self.call("infer_classify", context, 0, None)
                self.call("infer_sample", context, byref(following))
            if following.value == BOS:
                break
            self.call("infer_decode", context, token, following, byref(piece))
            yield decoder.decode(ctypes.string_at(piece.data, piece.bytes))
            token = following.value

    def call(self, name, *values):
        error = getattr(self.core, name)(*values)
        if error.code != 0:
            text = ctypes.create_string_buffer(256)
            self.core.infer_error_write(byref(error), text, len(text))
            raise ValueError(text.value.decode())


def aligned(size):
    """Memory of `size` bytes at a multiple of 8."""
    return (c_uint64 * (-(-size // 8)))()


def main(library, model, tokenizer, prompt="", steps=256, temperature=1.0, seed=1):
    llama = Llama(library, open(model, "rb").read(), open(tokenizer, "rb").read())
    for text in llama.story(prompt, int(steps), float(temperature), int(seed)):
        print(text, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
