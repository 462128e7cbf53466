#!/usr/bin/env python3
"""Imports the models of tests/fixtures, exports them, and reads what came out with other programs:

    check_export.py TRAINER FIXTURES SCRATCH

TRAINER is the program, SCRATCH an empty folder. transformers must compute the logits of expected.json from
the exported folder, and give its token ids; the gguf package must find the weights in the exported GGUF,
and llama.cpp tell the same greedy text with it: its llama-simple is the program that LLAMA_SIMPLE names.
"""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["One day, a girl", "She was", "Her shirt", "Mom, can you", "it"]
STEPS = 24
# The fewest tokens that are a comparison.
FEWEST = 5
# Below this distance of the two best logits, llama.cpp's f16 KV cache may decide otherwise.
NEAR = 0.02


class Failure(Exception):
    pass


def check(what, is_right):
    if not is_right:
        raise Failure(what)


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    check(f"{' '.join(map(str, command))}: {done.stderr.decode(errors='replace')}", done.returncode == 0)
    return done.stdout


def nearest(logits):
    """Distance of the two best."""
    best = torch.topk(logits, 2).values
    return float(best[0] - best[1])


def greedy(model, tokens, ends):
    """The ids that follow while the best one is clearly the best, up to an end."""
    told = []
    with torch.no_grad():
        while len(told) < STEPS:
            logits = model(torch.tensor([tokens + told])).logits[0, -1]
            best = int(logits.argmax())
            if nearest(logits) < NEAR or best in ends:
                break
            told.append(best)
    return told


def check_folder(folder, expected):
    """Hugging Face's files. Returns the model and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float64).eval()
    with torch.no_grad():
        logits = model(torch.tensor([expected["tokens"]])).logits[0]
    worst = 0.0
    for pos, values in expected["logits"].items():
        worst = max(worst, float((logits[int(pos)] - torch.tensor(values, dtype=torch.float64)).abs().max()))
    check(f"transformers' logits are off by {worst}", worst <= 1e-4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, ids in expected.get("texts", {}).items():
        found = tokenizer.encode(text, add_special_tokens=False)
        check(f"tokenizer.json: {text!r} is {found}, not {ids}", found == ids)
    if chat := expected.get("chat"):
        found = tokenizer.apply_chat_template(chat["messages"], add_generation_prompt=True)
        check(f"chat template: {found}, not {chat['ids']}", found == chat["ids"])
    print(f"  transformers: logits within {worst:.1e}, {len(expected.get('texts', {}))} texts")
    return model, tokenizer


def interleaved(weight, heads):
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


GGUF_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.down_proj": "ffn_down", "mlp.up_proj": "ffn_up",
}


def check_gguf(path, model, tolerance):
    """The weights in the file, read by the gguf package."""
    reader = GGUFReader(path)
    config = model.config
    field = lambda key: reader.get_field(key).contents()
    check("architecture", field("general.architecture") == "llama")
    check("eps", np.float32(field("llama.attention.layer_norm_rms_epsilon")) == np.float32(config.rms_norm_eps))
    check("freq_base", np.float32(field("llama.rope.freq_base")) == np.float32(config.rope_theta))
    check("heads", field("llama.attention.head_count_kv") == config.num_key_value_heads)
    tensors = {t.name: dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}
    weights = {name: w.float().numpy() for name, w in model.state_dict().items()}
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    wanted = {}
    for name, w in weights.items():
        parts = name.split(".")
        if name.startswith("model.layers."):
            part = ".".join(parts[3:-1])
            heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
            w = interleaved(w, heads[part]) if part in heads else w
            wanted[f"blk.{parts[2]}.{GGUF_NAMES[part]}.weight"] = w
        else:
            wanted[{"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[parts[-2]] + ".weight"] = w
    factors = tensors.pop("rope_freqs.weight", None)
    check(f"tensors {tensors.keys() ^ wanted.keys()}", tensors.keys() == wanted.keys())
    worst = max(float(np.abs(tensors[name] - w).max()) for name, w in wanted.items())
    check(f"weights are off by {worst}", worst <= tolerance)
    scaled = (config.rope_scaling or {}).get("rope_type") == "llama3"
    check("rope_freqs", (factors is not None) == scaled)
    if scaled:
        plain = 1.0 / config.rope_theta ** (np.arange(0, config.head_dim, 2) / config.head_dim)
        ours = plain / model.model.rotary_emb.inv_freq.double().numpy()
        check(f"rope_freqs: {factors}, not {ours}", np.allclose(factors, ours, rtol=1e-5))
    print(f"  gguf: {path.name}, {len(tensors)} tensors within {worst:.1e}")


def pieces(path):
    """The bytes of each token of a GGUF, as llama.cpp prints them."""
    reader = GGUFReader(path)
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    types = reader.get_field("tokenizer.ggml.token_type").contents()
    if reader.get_field("tokenizer.ggml.model").contents() == "gpt2":
        from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode
        byte = {c: b for b, c in bytes_to_unicode().items()}
        text = lambda token: bytes(byte[c] for c in token)
    else:
        text = lambda token: token.replace("\u2581", " ").encode()
    decode = {1: text, 6: lambda token: bytes([int(token[3:5], 16)])}
    return [decode.get(kind, str.encode)(token) for token, kind in zip(tokens, types)]


def check_llama_cpp(program, path, model, tokenizer):
    """llama.cpp tells what transformers tells."""
    ends = model.generation_config.eos_token_id
    for text in PROMPTS:
        prompt = tokenizer.encode(text)
        told = greedy(model, prompt, ends if isinstance(ends, list) else [ends])
        if len(told) >= FEWEST:
            break
    else:
        raise Failure("no prompt that is followed by clear tokens")
    output = run(program, "-m", path, "-n", len(told), text)
    piece = pieces(path)
    wanted = b"".join(piece[token] for token in told)
    prefix = b"".join(piece[token] for token in prompt)
    at = output.find(prefix)
    check(f"llama.cpp: the prompt is {prefix}, output {output}", at >= 0)
    found = output[at + len(prefix):].rstrip(b"\n")[:len(wanted)]
    check(f"llama.cpp tells {found}, transformers {wanted}", found == wanted)
    print(f"  llama.cpp: {path.name}, the same {len(told)} tokens")


def main(trainer, fixtures, scratch):
    llama_simple = os.environ.get("LLAMA_SIMPLE")
    run(trainer, "import", fixtures / "llama" / "tokenizer.model", scratch / "tokenizer.bin")
    sources = {path.name: path for path in sorted(fixtures.iterdir()) if (path / "expected.json").exists()}
    failed = 0
    for name, source in sources.items():
        print(f"{name}:")
        try:
            expected = json.loads((source / "expected.json").read_text())
            out = scratch / name
            checkpoint = source / "ckpt.pt"
            model_bin = out / "model.bin"
            out.mkdir(parents=True)
            run(trainer, "import", checkpoint if checkpoint.exists() else source, model_bin)
            if not any((out / file).exists() for file in ("tokenizer.bin", "tokenizer.json")):
                shutil.copy(scratch / "tokenizer.bin", out) # the fixture has none: any of the size will do
            run(trainer, "export", model_bin, out / "hf")
            model, tokenizer = check_folder(out / "hf", expected)
            for kind, tolerance in (("f32", 0), ("f16", 0), ("q8_0", 2e-3)):
                gguf = out / f"{kind}.gguf"
                run(trainer, "export", model_bin, gguf, "--type", kind)
                check_gguf(gguf, model, tolerance)
            if llama_simple:
                check_llama_cpp(llama_simple, out / "f32.gguf", model, tokenizer)
        except Exception as failure: # of any of the programs
            print(f"  FAILED: {type(failure).__name__}: {failure}")
            failed += 1
    if not llama_simple:
        print("llama.cpp: skipped, LLAMA_SIMPLE names no program")
    print(f"{len(sources) - failed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
