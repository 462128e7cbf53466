"""Writes reference.safetensors: losses and gradients of tiny models, and a loss curve of AdamW, by PyTorch in float64.

    pip install torch safetensors numpy && python trainer/tests/reference/reference.py

The model is Llama-2 as llama2.c trains it. Weights and batches come from a hash that model/tests.rs computes as well.
"""

import math
import pathlib

import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.set_default_dtype(torch.float64)
IGNORED = -1


def uniform(stream, n):
    """n numbers in 0..1: MurmurHash3's finaliser of the index, exact in f32."""
    h = (numpy.arange(n, dtype=numpy.uint64) + 0x9E3779B9 * (stream + 1)) & 0xFFFFFFFF
    for shift, factor in (16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1):
        h = ((h ^ (h >> numpy.uint64(shift))) * factor) & 0xFFFFFFFF
    return (h >> numpy.uint64(8)).astype(numpy.float64) / 2**24


class Config:
    def __init__(self, dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, shared):
        self.dim, self.hidden_dim, self.n_layers = dim, hidden_dim, n_layers
        self.n_heads, self.n_kv_heads, self.vocab_size, self.shared = n_heads, n_kv_heads, vocab_size, shared

    def shapes(self):
        """In the order of trainer::io::tensors::shapes."""
        d, h, kv = self.dim, self.hidden_dim, self.dim // self.n_heads * self.n_kv_heads
        yield "tok_emb.0", (self.vocab_size, d)
        stacks = dict(rms_att=(d,), wq=(d, d), wk=(kv, d), wv=(kv, d), wo=(d, d), rms_ffn=(d,), w1=(h, d), w2=(d, h), w3=(h, d))
        for name, shape in stacks.items():
            for layer in range(self.n_layers):
                yield f"{name}.{layer}", shape
        yield "rms_final.0", (d,)
        if not self.shared:
            yield "wcls.0", (self.vocab_size, d)

    def weights(self):
        weights = {}
        for stream, (name, shape) in enumerate(self.shapes()):
            w = 0.6 * uniform(stream, math.prod(shape)) - 0.3 + (1.0 if len(shape) == 1 else 0.0)
            w = torch.from_numpy(w.astype(numpy.float32).astype(numpy.float64)).reshape(shape)
            weights[name] = w.requires_grad_()
        return weights

    def batch(self, stream, sequences, length):
        n = sequences * length
        tokens = torch.from_numpy((uniform(1000 + 2 * stream, n) * self.vocab_size).astype(numpy.int64))
        targets = torch.from_numpy((uniform(1001 + 2 * stream, n) * self.vocab_size).astype(numpy.int64))
        targets[n // 3] = IGNORED
        return tokens.reshape(sequences, length), targets


def rmsnorm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight


def rope(x):
    """Rotates interleaved pairs of the last of (sequence, position, head, head_size)."""
    length, head_size = x.shape[1], x.shape[-1]
    frequency = 10000.0 ** (-torch.arange(0, head_size, 2) / head_size)
    angle = torch.outer(torch.arange(length), frequency)[None, :, None, :]
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def logits(config, w, tokens):
    """(sequences, length, vocab_size)"""
    sequences, length = tokens.shape
    head_size = config.dim // config.n_heads
    x = w["tok_emb.0"][tokens]
    for l in range(config.n_layers):
        xb = rmsnorm(x, w[f"rms_att.{l}"])
        q, k, v = ((xb @ w[f"{name}.{l}"].T).view(sequences, length, -1, head_size) for name in ("wq", "wk", "wv"))
        q, k = rope(q), rope(k)
        k, v = (y.repeat_interleave(config.n_heads // config.n_kv_heads, 2) for y in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(head_size)
        scores = scores + torch.full((length, length), -math.inf).triu(1)
        att = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(-2)
        x = x + att @ w[f"wo.{l}"].T
        xb = rmsnorm(x, w[f"rms_ffn.{l}"])
        x = x + (F.silu(xb @ w[f"w1.{l}"].T) * (xb @ w[f"w3.{l}"].T)) @ w[f"w2.{l}"].T
    return rmsnorm(x, w["rms_final.0"]) @ w["tok_emb.0" if config.shared else "wcls.0"].T


def loss(config, w, tokens, targets):
    return F.cross_entropy(logits(config, w, tokens).view(-1, config.vocab_size), targets, ignore_index=IGNORED)


def main():
    grouped = Config(16, 12, 2, 4, 2, 11, shared=True)
    untied = Config(12, 20, 1, 2, 2, 13, shared=False)
    out = {}
    for name, config in ("grouped", grouped), ("untied", untied):
        w = config.weights()
        value = loss(config, w, *config.batch(0, 2, 9))
        value.backward()
        out[f"{name}.loss"] = value.detach().reshape(1)
        out.update({f"{name}.{key}": x.grad.flatten() for key, x in w.items()})

    w = grouped.weights()
    groups = [dict(params=[x for x in w.values() if x.dim() > 1], weight_decay=0.1)]
    groups.append(dict(params=[x for x in w.values() if x.dim() == 1], weight_decay=0.0))
    optimiser = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    curve, norms = [], []
    for step in range(10):
        value = loss(grouped, w, *grouped.batch(step, 2, 9))
        optimiser.zero_grad()
        value.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(w.values(), 1.0).item())
        optimiser.step()
        curve.append(value.item())
    out["adamw.losses"], out["adamw.norms"] = torch.tensor(curve), torch.tensor(norms)
    out = {key: x.to(torch.float32).contiguous() for key, x in out.items()}
    save_file(out, pathlib.Path(__file__).with_name("reference.safetensors"))
    print(f"losses {out['grouped.loss'].item()} {out['untied.loss'].item()}, curve {curve}, norms {norms}")


if __name__ == "__main__":
    main()
