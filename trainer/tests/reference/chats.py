"""Writes chats.safetensors: losses and gradients of windows with several texts, of which only the answers count, with and
without adapters (LoRA), by PyTorch in float64.

    pip install torch safetensors numpy && python trainer/tests/reference/chats.py

PyTorch reads each text alone, from position 0 on; the trainer reads the whole windows.
"""

import math
import pathlib

import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from reference import IGNORED, Config, logits, uniform

LENGTH = 9
# The texts of both windows, as (begin, end), and the first target of each that counts.
TEXTS = [[(0, 4, 2), (4, 9, 6)], [(0, 6, 1), (6, 8, 7), (8, 9, 9)]]
RANK, ALPHA = 2, 3.0


def batch(config):
    tokens, targets = config.batch(0, 2, LENGTH)
    targets = targets.reshape(2, LENGTH)
    for window, texts in enumerate(TEXTS):
        for begin, end, first in texts:
            targets[window, begin:first] = IGNORED
    return tokens, targets


def loss(config, w):
    """The mean over all targets that count, text by text."""
    tokens, targets = batch(config)
    total = 0.0
    for window, texts in enumerate(TEXTS):
        for begin, end, _ in texts:
            x = logits(config, w, tokens[window : window + 1, begin:end])[0]
            total = total + F.cross_entropy(x, targets[window, begin:end], ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum()


def adapters(config, w):
    """A and B of each matrix of a layer, from streams 2000 on."""
    pairs, stream = {}, 2000
    for name in w:
        if name.split(".")[0] not in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
            continue
        rows, cols = w[name].shape
        for part, shape in ("a", (RANK, cols)), ("b", (rows, RANK)):
            x = (0.6 * uniform(stream, math.prod(shape)) - 0.3).astype(numpy.float32).astype(numpy.float64)
            pairs[f"{part}.{name}"] = torch.from_numpy(x).reshape(shape).requires_grad_()
            stream += 1
    return pairs


def main():
    out = {}
    grouped = Config(16, 12, 2, 4, 2, 11, shared=True)
    w = grouped.weights()
    value = loss(grouped, w)
    value.backward()
    out["packed.loss"] = value.detach().reshape(1)
    out.update({f"packed.{key}": x.grad.flatten() for key, x in w.items()})

    w = {key: x.detach() for key, x in w.items()}
    pairs = adapters(grouped, w)
    adapted = {key: x + ALPHA / RANK * pairs[f"b.{key}"] @ pairs[f"a.{key}"] if f"a.{key}" in pairs else x for key, x in w.items()}
    value = loss(grouped, adapted)
    value.backward()
    out["lora.loss"] = value.detach().reshape(1)
    out.update({f"lora.{key}": x.grad.flatten() for key, x in pairs.items()})
    out = {key: x.to(torch.float32).contiguous() for key, x in out.items()}
    save_file(out, pathlib.Path(__file__).with_name("chats.safetensors"))
    print(f"losses {out['packed.loss'].item()} {out['lora.loss'].item()}")


if __name__ == "__main__":
    main()
