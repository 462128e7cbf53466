"""Tokens per second of the same training steps in PyTorch, for ci/gpu.sh.

usage: gpu_peer.py SHAPE[:SEQUENCES]... [--device cuda|cpu] [--seconds S]

Llama models of the shapes of trainer/benches/training.rs, with scaled_dot_product_attention, clipping and
fused AdamW; f32 without and with TF32, and bf16 by autocast; eager and compiled. Random tokens. The layers
of 7B are computed again in backward (torch.utils.checkpoint).
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

# dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, sequences
SHAPES = {
    "260K": (64, 172, 5, 8, 4, 512, 512, 16),
    "15M": (288, 768, 6, 6, 6, 32000, 256, 4),
    "110M": (768, 2048, 12, 12, 12, 32000, 1024, 4),
    "7B": (4096, 11008, 32, 32, 8, 32000, 4096, 1),
}


def norm(dim):
    return nn.RMSNorm(dim, eps=1e-5)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


class Layer(nn.Module):
    def __init__(self, dim, hidden_dim, n_heads, n_kv_heads):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_size = n_heads, n_kv_heads, dim // n_heads
        kv_dim = n_kv_heads * self.head_size
        self.rms_att, self.rms_ffn = norm(dim), norm(dim)
        self.wqkv, self.wo = linear(dim, dim + 2 * kv_dim), linear(dim, dim)
        self.w13, self.w2 = linear(dim, 2 * hidden_dim), linear(hidden_dim, dim)

    def rotate(self, x, cos, sin):  # (sequences, heads, length, head_size), pairs side by side
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

    def forward(self, x, cos, sin):
        b, t, dim = x.shape
        heads = (self.n_heads, self.n_kv_heads, self.n_kv_heads)
        qkv = self.wqkv(self.rms_att(x)).view(b, t, sum(heads), self.head_size).transpose(1, 2)
        q, k, v = qkv.split(heads, dim=1)
        q, k = self.rotate(q, cos, sin).to(v.dtype), self.rotate(k, cos, sin).to(v.dtype)
        grouped = self.n_heads != self.n_kv_heads
        att = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        x = x + self.wo(att.transpose(1, 2).reshape(b, t, dim))
        h1, h3 = self.w13(self.rms_ffn(x)).chunk(2, dim=-1)
        return x + self.w2(F.silu(h1) * h3)


class Llama(nn.Module):
    def __init__(self, dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, recompute):
        super().__init__()
        self.recompute = recompute
        self.embed = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(dim, hidden_dim, n_heads, n_kv_heads) for _ in range(n_layers))
        self.rms_final = norm(dim)
        self.classifier = nn.Linear(dim, vocab_size, bias=False)
        if not recompute:  # the large model has a classifier of its own
            self.classifier.weight = self.embed.weight
        head_size = dim // n_heads
        frequencies = 10000.0 ** (-torch.arange(0, head_size, 2) / head_size)
        angles = torch.outer(torch.arange(seq_len), frequencies)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens, targets):
        x = self.embed(tokens)
        for layer in self.layers:
            if self.recompute:
                x = checkpoint(layer, x, self.cos, self.sin, use_reentrant=False)
            else:
                x = layer(x, self.cos, self.sin)
        logits = self.classifier(self.rms_final(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def measure(name, device, seconds, precision, compiled):
    name, _, sequences = name.partition(":")
    *shape, seq_len, usual = SHAPES[name]
    sequences = int(sequences or usual)
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    with torch.device(device):
        model = Llama(*shape, seq_len, recompute=name == "7B")
    run = torch.compile(model) if compiled else model
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens, targets = torch.randint(0, shape[5], (2, sequences, seq_len), device=device)

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = run(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return loss.item()  # the trainer also reads the loss of every step

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first = [step() for _ in range(3)][0]
    steps, start = 0, time.perf_counter()
    while steps < 3 or time.perf_counter() - start < seconds:
        last = step()
        steps += 1
    rate = steps * sequences * seq_len / (time.perf_counter() - start)
    memory = torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else 0
    way = "compiled" if compiled else "eager"
    print(f"| PyTorch {way} {precision} | {name}, {sequences} x {seq_len} | {rate:,.0f} | {memory:,.0f} MB |"
          f" {first:.4f} to {last:.4f} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("shapes", nargs="+")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--ways", default="eager:f32")
    args = parser.parse_args()
    for name in args.shapes:
        for way in args.ways.split(","):
            way, precision = way.split(":")
            try:
                measure(name, args.device, args.seconds, precision, way == "compiled")
            except Exception as e:  # one that fails takes the others not with it
                said = f"failed: {type(e).__name__}: {str(e)[:80]}"
                print(f"| PyTorch {way} {precision} | {name} | {said} | | |", flush=True)
            torch._dynamo.reset()
            if args.device == "cuda":
                torch.cuda.empty_cache()


main()
