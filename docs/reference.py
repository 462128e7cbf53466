#!/usr/bin/env python3
"""Runs a model as FORMAT.md says and prints the hash of its logits.

    python3 docs/reference.py MODEL.bin [TOKENS] [f32|int8]

The hash is that of `infer-cli bench MODEL.bin --tokens TOKENS --batch 1 --kv f32`. This program
shares no code with the others: it checks that the page is enough. It needs numpy.
"""

import struct
import sys

import numpy as np

f32 = np.float32
ROUND = f32(12582912)
LOG2_E = f32(1.442695)
# FreeBSD's powf(10000, 2i / hs), in units in the last place above the correctly rounded one.
POWF = {16: {5: 1}, 24: {7: -1}, 32: {10: 1}, 48: {7: 1, 14: -1, 15: 1}, 64: {1: -1, 20: 1},
        80: {4: 1, 25: 1}, 96: {5: -1, 13: 1, 14: 1, 28: -1, 30: 1}, 128: {2: -1, 27: 1, 40: 1, 47: 1}}


def lanes(terms):
    """Sums over the last axis, in eight lanes."""
    n = terms.shape[-1]
    padded = np.zeros((*terms.shape[:-1], -(-n // 8) * 8), f32)
    padded[..., :n] = terms
    l = np.zeros((*terms.shape[:-1], 8), f32)
    for i in range(0, n, 8):
        l += padded[..., i:i + 8]
    t = l[..., :4] + l[..., 4:]
    return (t[..., 0] + t[..., 2]) + (t[..., 1] + t[..., 3])


def exp2(x):
    s = x + ROUND
    n = s - ROUND
    f = x - n
    p = f32(1.3264727e-3)
    for g in (9.671513e-3, 5.5507336e-2, 0.24022242, 0.693147, 1):
        p = p * f + f32(g)
    return p * np.ldexp(f32(1), n.astype(np.int32))


def exp(x):
    y = exp2(np.clip(x, -100, 100) * LOG2_E)
    return np.where(x < f32(-87.33), f32(0), np.where(x > f32(88.37), f32(np.inf), y))


def rmsnorm(x, weight, eps):
    mean = lanes(x * x) / f32(len(x))
    return weight * (f32(1) / np.sqrt(mean + eps) * x)


def swiglu(a, b):
    return a / (f32(1) + exp(-a)) * b


def rope_frequencies(hs, theta, scaling):
    powers = [f32(float(theta) ** float(f32(2 * i) / f32(hs))) for i in range(hs // 2)]
    for i, ulps in (POWF.get(hs, {}) if theta == 10000 else {}).items():
        powers[i] = (powers[i].view(np.int32) + np.int32(ulps)).view(f32)
    freq = f32(1) / np.array(powers, f32)
    kind, factor, low, high, positions = scaling
    if kind == 1:
        return freq / factor
    if kind == 2:
        wavelength = f32(6.2831855) / freq
        fast = (positions / wavelength - low) / (high - low)
        mixed = (f32(1) - fast) * freq / factor + fast * freq
        slow = np.where(wavelength > positions / low, freq / factor, mixed)
        return np.where(wavelength < positions / high, freq, slow)
    return freq


def sin_cos(x):
    s = x * f32(0.63661975) + ROUND
    n = s - ROUND
    r = ((x - n * f32(1.5703125)) - n * f32(4.837513e-4)) - n * f32(7.54979e-8)
    z = r * r
    sin = ((f32(-1.9515296e-4) * z + f32(8.332161e-3)) * z - f32(0.16666655)) * z * r + r
    cos = ((f32(2.4433157e-5) * z - f32(1.3887316e-3)) * z + f32(4.1666646e-2)) * z * z - f32(0.5) * z + f32(1)
    quadrant = s.view(np.uint32) & 3
    return np.choose(quadrant, (sin, cos, -sin, -cos)), np.choose(quadrant, (cos, -sin, -cos, sin))


def quantise(x, group):
    """Integers (…, groups, group) and scales (…, groups)."""
    x = x.reshape(-1, group)
    m = np.abs(x).max(axis=1)
    none = m < f32(2.0 ** -100)
    factor = np.where(none, f32(0), f32(127) / np.where(none, f32(1), m))
    return np.rint(x * factor[:, None]).astype(np.int64), np.where(none, f32(0), m / f32(127))


class Matrix:
    """A matrix (rows, cols), of f32 or of int8 in groups."""

    def __init__(self, take, rows, cols, group):
        self.group = group
        if group:
            self.q = take(np.int8, rows * cols).reshape(rows, cols // group, group).astype(np.int64)
            self.s = take(f32, rows * cols // group).reshape(rows, cols // group)
        else:
            self.w = take(f32, rows * cols).reshape(rows, cols)

    def row(self, r):
        return (self.q[r].astype(f32) * self.s[r][:, None]).ravel() if self.group else self.w[r]

    def __matmul__(self, x):
        if not self.group:
            return lanes(self.w * x)
        q, s = quantise(x, self.group)
        return lanes((self.q * q).sum(axis=-1).astype(f32) * self.s * s)


class Model:
    def __init__(self, path):
        file = open(path, "rb").read()
        version, group, header = 0, 0, 28
        if file[:4] == bytes.fromhex("32346b61"):
            version, header = struct.unpack_from("<i", file, 4)[0], 256
        fields = struct.unpack_from("<7i", file, 8 if version else 0)
        D, H, L, self.heads, self.kv_heads, V, self.S = fields
        shared = file[36] != 0 if version else V > 0
        if version == 2:
            group = struct.unpack_from("<i", file, 37)[0]
        V, self.V = abs(V), abs(V)
        self.hs = D // self.heads
        KV = self.hs * self.kv_heads
        at = header

        def take(dtype, n):
            nonlocal at
            array = np.frombuffer(file, dtype, n, at)
            at += array.nbytes
            return array

        shapes = {"tok_emb": (1, V, D), "wq": (L, D, D), "wk": (L, KV, D), "wv": (L, KV, D), "wo": (L, D, D),
                  "w1": (L, H, D), "w2": (L, D, H), "w3": (L, H, D), "wcls": (1, V, D)}
        norms = {"rms_att": L, "rms_ffn": L, "rms_final": 1}
        matrices = ["wq", "wk", "wv", "wo"], ["w1", "w2", "w3"]
        if version:
            order = [*norms, "tok_emb", *matrices[0], *matrices[1]]
        else:
            order = ["tok_emb", "rms_att", *matrices[0], "rms_ffn", *matrices[1], "rms_final", "tables"]
        for name in order + ([] if shared else ["wcls"]):
            if name == "tables":
                take(f32, self.S * self.hs)
            elif name in norms:
                setattr(self, name, take(f32, norms[name] * D).reshape(-1, D))
            else:
                layers, rows, cols = shapes[name]
                setattr(self, name, [Matrix(take, rows, cols, group) for _ in range(layers)])
        if shared:
            self.wcls = self.tok_emb
        theta, self.eps, scaling = f32(10000), f32(1e-5), (0, 1, 1, 1, 1)
        if version and file[48:52] == b"llmx":
            theta, self.eps = np.frombuffer(file, f32, 2, 56)
            kind, positions = struct.unpack_from("<i12xI", file, 64)
            scaling = (kind, *np.frombuffer(file, f32, 3, 68), f32(positions))
        self.layers, self.frequencies = L, rope_frequencies(self.hs, theta, scaling)


class Sequence:
    """A model with the keys and values of the positions so far."""

    def __init__(self, model, int8):
        self.model, self.int8 = model, int8
        self.cache = [([], []) for _ in range(model.layers)]

    def logits(self, token):
        m = self.model
        x = m.tok_emb[0].row(token)
        for l in range(m.layers):
            y = rmsnorm(x, m.rms_att[l], m.eps)
            pos = len(self.cache[l][0])
            q, k, v = self.rope(m.wq[l] @ y, pos), self.rope(m.wk[l] @ y, pos), m.wv[l] @ y
            for cache, vector in zip(self.cache[l], (k, v)):
                cache.append(quantise(vector, len(vector)) if self.int8 else (vector, None))
            x = x + m.wo[l] @ self.attention(q, *self.cache[l])
            y = rmsnorm(x, m.rms_ffn[l], m.eps)
            x = x + m.w2[l] @ swiglu(m.w1[l] @ y, m.w3[l] @ y)
        return m.wcls[0] @ rmsnorm(x, m.rms_final[0], m.eps)

    def rope(self, heads, pos):
        sin, cos = sin_cos(f32(pos) * self.model.frequencies)
        v = heads.reshape(-1, self.model.hs // 2, 2)
        v0, v1 = v[..., 0], v[..., 1]
        return np.stack([v0 * cos - v1 * sin, v0 * sin + v1 * cos], axis=-1).ravel()

    def attention(self, q, keys, values):
        m = self.model
        q = q.reshape(m.heads, m.hs)
        scale = LOG2_E / np.sqrt(f32(m.hs))
        # (positions, heads, hs)
        k = np.array([k for k, _ in keys]).reshape(-1, m.kv_heads, m.hs).repeat(m.heads // m.kv_heads, axis=1)
        v = np.array([v for v, _ in values]).reshape(-1, m.kv_heads, m.hs).repeat(m.heads // m.kv_heads, axis=1)
        if self.int8:
            ks, vs = np.array([s[0] for _, s in keys]), np.array([s[0] for _, s in values])
            q, qs = quantise(q, m.hs)
            scores = (q * k).sum(axis=-1).astype(f32) * ks[:, None] * (qs * scale)
        else:
            scores = lanes(q * k) * scale
        differences = scores - scores.max(axis=0)
        w = np.where(differences < f32(-60), f32(0), exp2(np.maximum(differences, f32(-100))))
        total = lanes(w.T)
        out = np.zeros((m.heads, m.hs), f32)
        if self.int8:
            largest = vs.max()
            if largest > 0:
                wq = np.rint(w * (vs * (f32(32767) / largest))[:, None]).astype(np.int64)
                for first in range(0, len(wq), 256):
                    out += (wq[first:first + 256, :, None] * v[first:first + 256]).sum(axis=0).astype(f32)
                out *= ((largest / f32(32767)) / total)[:, None]
        else:
            for t in range(len(w)):
                out += w[t][:, None] * v[t]
            out *= (f32(1) / total)[:, None]
        return out.ravel()


def fnv(hash, logits):
    for byte in logits.astype("<f4").tobytes():
        hash = (hash ^ byte) * 0x100000001B3 % 2 ** 64
    return hash


def main(path, tokens="16", kv="f32"):
    model = Model(path)
    n = min(int(tokens), model.S)
    sequence = Sequence(model, kv == "int8")
    for i in range(n):
        logits = sequence.logits((7919 * i + 1) % model.V)
    hash = fnv(0xCBF29CE484222325, logits)
    sequence, token = Sequence(model, kv == "int8"), 1
    for _ in range(n):
        logits = sequence.logits(token)
        hash = fnv(hash, logits)
        token = int(logits.argmax())
    print(f"{hash:016x}")


if __name__ == "__main__":
    main(*sys.argv[1:])
