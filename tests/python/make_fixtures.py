#!/usr/bin/env python3
"""Makes the models of tests/fixtures: make_fixtures.py FOLDER

Each is a tiny random Llama in the files of another program, made with that program's own package
where there is one, and expected.json with what transformers computes in float64 for it:

  tokens      token ids
  logits      position -> the logits there
  greedy      the ids that follow `tokens` when the best one is taken each time
  texts       text -> its ids without special tokens, where the model has a tokenizer
  chat        {"messages", "ids"}: the chat template, with the answer opened, where it has one

All weights are multiples of 1/256 up to 1: f16, bf16 and f32 hold them exactly, so that a reader
that is off in one bit of them is wrong.
"""
import json
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig, LlamaForCausalLM, LlamaTokenizerFast, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast,
)

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, SEQ = 32, 64, 2, 4, 2, 64
VOCAB = 300
TEXTS = [
    "", "One day, a girl went to the sea.", "  two  spaces ", "a\nb\t\u00e9\u4e16\U0001f600", "no <token> here",
    "1234567", "He'll say: \"don't!\"", "x\u2581y",
]
LLAMA3_SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# Meta writes use_scaled_rope for exactly these.
META_SCALING = {**LLAMA3_SCALING, "original_max_position_embeddings": 8192} # more than SEQ: transformers notes it
STORY = """One day, a little girl named Lily found a needle in her room. She knew it was difficult to play
with it because it was sharp. Lily wanted to share the needle with her mom, so she could sew a button on
her shirt. Lily went to her mom and said, "Mom, I found this needle. Can you share it with me and sew my
shirt?" Her mom smiled and said, "Yes, Lily, we can share the needle and fix your shirt." Together, they
shared the needle and sewed the button on Lily's shirt. It was not difficult for them because they were
sharing and helping each other. After they finished, Lily thanked her mom for sharing the needle."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def random_weights(seed, tied):
    """The tensors of transformers' Llama, by name, in float32."""
    rng = np.random.RandomState(seed)
    kv = DIM // HEADS * KV_HEADS

    def matrix(rows, cols):
        return torch.from_numpy(rng.randint(-90, 91, (rows, cols)).astype(np.float32) / 256)

    def norm():
        return torch.from_numpy(rng.randint(160, 257, DIM).astype(np.float32) / 256)

    weights = {"model.embed_tokens.weight": matrix(VOCAB, DIM), "model.norm.weight": norm()}
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        weights |= {
            layer + "input_layernorm.weight": norm(),
            layer + "post_attention_layernorm.weight": norm(),
            layer + "self_attn.q_proj.weight": matrix(DIM, DIM),
            layer + "self_attn.k_proj.weight": matrix(kv, DIM),
            layer + "self_attn.v_proj.weight": matrix(kv, DIM),
            layer + "self_attn.o_proj.weight": matrix(DIM, DIM),
            layer + "mlp.gate_proj.weight": matrix(HIDDEN, DIM),
            layer + "mlp.down_proj.weight": matrix(DIM, HIDDEN),
            layer + "mlp.up_proj.weight": matrix(HIDDEN, DIM),
        }
    if not tied:
        weights["lm_head.weight"] = matrix(VOCAB, DIM)
    return weights


def model(seed, *, tied, config=LlamaConfig, kind=LlamaForCausalLM, **settings):
    """A model of transformers with the random weights of a seed."""
    sizes = dict(
        vocab_size=VOCAB, hidden_size=DIM, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=SEQ,
    )
    made = kind(config(**sizes, tie_word_embeddings=tied, **settings)).eval()
    missing, unexpected = made.load_state_dict(random_weights(seed, tied), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    made.tie_weights()
    return made


def expected(made, folder, tokenizer=None, chat=False):
    """Writes expected.json."""
    exact = made.double()
    tokens = np.random.RandomState(len(folder.name)).randint(3, 259, 24).tolist()
    with torch.no_grad():
        logits = exact(torch.tensor([tokens])).logits[0]
        greedy = []
        for _ in range(16):
            greedy.append(int(exact(torch.tensor([tokens + greedy])).logits[0, -1].argmax()))
    says = {
        "tokens": tokens,
        "logits": {pos: [round(x, 6) for x in logits[pos].tolist()] for pos in (0, 11, 23)},
        "greedy": greedy,
    }
    if tokenizer:
        says["texts"] = {text: tokenizer.encode(text, add_special_tokens=False) for text in TEXTS}
    if chat:
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello, <|eot_id|>!"}]
        says["chat"] = {"messages": messages, "ids": tokenizer.apply_chat_template(messages, add_generation_prompt=True)}
    (folder / "expected.json").write_text(json.dumps(says, ensure_ascii=True) + "\n")


def sentencepiece_model(path):
    """Learns a vocabulary as Llama 2 has it: byte-pair encoding with byte tokens."""
    with path.open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(STORY.splitlines()), model_writer=out, model_type="bpe", vocab_size=VOCAB,
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
            allow_whitespace_only_pieces=True, num_threads=1, minloglevel=2, character_coverage=0.98,
        )


def llama2_tokenizer(folder):
    """Saves tokenizer.model in a folder, and what transformers makes of it."""
    sentencepiece_model(folder / "tokenizer.model")
    tokenizer = LlamaTokenizerFast(str(folder / "tokenizer.model"), legacy=True, add_prefix_space=True)
    tokenizer.save_pretrained(folder)
    (folder / "special_tokens_map.json").unlink()
    return tokenizer


def llama3_tokenizer(folder):
    """Saves a byte-level tokenizer.json with a split pattern and special tokens, as Llama 3 has it."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    made = Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(special), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )
    made.train_from_iterator([STORY], trainer)
    made.add_special_tokens(special)
    made.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[(special[0], made.token_to_id(special[0]))],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=special[0], eos_token=special[-1], clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "special_tokens_map.json").unlink()
    return tokenizer


def interleaved(weight, heads):
    """Rows of q or k as Meta and llama2.c order them, from transformers' order."""
    return weight.view(heads, 2, -1, DIM).transpose(1, 2).reshape(-1, DIM).contiguous()


def meta_names(made):
    """The weights of a model by their names at Meta and in llama2.c."""
    weights = {name: w.float() for name, w in made.state_dict().items()}
    names = {
        "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
    }
    out = {"tok_embeddings.weight": weights["model.embed_tokens.weight"]}
    for i in range(LAYERS):
        for theirs, metas in names.items():
            w = weights[f"model.layers.{i}.{theirs}.weight"]
            heads = {"attention.wq": HEADS, "attention.wk": KV_HEADS}.get(metas)
            out[f"layers.{i}.{metas}.weight"] = interleaved(w, heads) if heads else w
    out["norm.weight"] = weights["model.norm.weight"]
    out["output.weight"] = weights["lm_head.weight"]
    return out


def meta_parts(made, folder, params, embedding_dim):
    """Saves a model in two model-parallel parts. `embedding_dim` is the dimension in which the
    embeddings are cut: columns up to Llama 2, rows since Llama 3."""
    cut = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "wo": 1, "w2": 1, "tok_embeddings": embedding_dim}
    for part in range(2):
        shard = {}
        for name, w in meta_names(made).items():
            dim = cut.get(name.split(".")[-2])
            w = w if dim is None else w.chunk(2, dim)[part]
            shard[name] = w.to(torch.bfloat16).contiguous().clone()
        shard["rope.freqs"] = torch.zeros(4, dtype=torch.bfloat16) # Meta's files have it; nothing reads it
        torch.save(shard, folder / f"consolidated.{part:02}.pth")
    (folder / "params.json").write_text(json.dumps(params) + "\n")


def main(root):
    def new(name):
        (root / name).mkdir(parents=True)
        return root / name

    # Grouped-query attention, a classifier of its own, f32 in one file; SentencePiece.
    folder, made = new("llama"), model(1, tied=False, rms_norm_eps=1e-5)
    made.save_pretrained(folder)
    expected(made, folder, llama2_tokenizer(folder))

    # Llama 3's base and scaling, tied, bf16 in two files; byte-level BPE, a template, two ends.
    folder = new("llama3")
    tokenizer = llama3_tokenizer(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")}
    made = model(
        2, tied=True, rms_norm_eps=1e-5, rope_theta=500000.0, rope_scaling=LLAMA3_SCALING,
        bos_token_id=ids["<|begin_of_text|>"], eos_token_id=[ids["<|end_of_text|>"], ids["<|eot_id|>"]],
    )
    deepcopy(made).bfloat16().save_pretrained(folder, max_shard_size="40KB") # a copy: it rounds the angles, too
    expected(made, folder, tokenizer, chat=True)

    # Mistral's name for the same maths, eps 1e-6, f16.
    folder = new("mistral")
    made = model(
        3, tied=False, config=MistralConfig, kind=MistralForCausalLM, rms_norm_eps=1e-6, rope_theta=10000.0,
        sliding_window=None,
    )
    deepcopy(made).half().save_pretrained(folder)
    expected(made, folder)

    # Linear scaling, tied, each tensor in one of three types.
    folder = new("linear")
    made = model(4, tied=True, rms_norm_eps=1e-6, rope_scaling={"rope_type": "linear", "factor": 2.0})
    made.config.torch_dtype = None
    made.config.save_pretrained(folder)
    types = [torch.float32, torch.float16, torch.bfloat16]
    weights = [(name, w) for name, w in made.state_dict().items() if name != "lm_head.weight"]
    save_file(
        {name: w.to(types[i % 3]) for i, (name, w) in enumerate(weights)}, folder / "model.safetensors", {"format": "pt"}
    )
    expected(made, folder)

    # Meta's layout in two parts, with the embeddings in columns (Llama 2) and in rows (Llama 3).
    params = {
        "dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "vocab_size": VOCAB,
        "multiple_of": 32, "ffn_dim_multiplier": 0.75, "norm_eps": 1e-6,
    }
    folder, made = new("meta"), model(5, tied=False, rms_norm_eps=1e-6)
    meta_parts(made, folder, {**params, "vocab_size": -1}, 1)
    sentencepiece_model(folder / "tokenizer.model")
    expected(made, folder)
    folder = new("meta3")
    made = model(6, tied=False, rms_norm_eps=1e-5, rope_theta=500000.0, rope_scaling=META_SCALING)
    meta_parts(
        made, folder, {**params, "norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True}, 0,
    )
    expected(made, folder)

    # A checkpoint of llama2.c's train.py, from a compiled model: its names have a prefix.
    folder, made = new("llama2c"), model(7, tied=True, rms_norm_eps=1e-5)
    weights = {f"_orig_mod.{name}": w for name, w in meta_names(made).items()}
    weights["_orig_mod.output.weight"] = weights["_orig_mod.tok_embeddings.weight"]
    args = {
        "dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "vocab_size": VOCAB, "hidden_dim": HIDDEN,
        "multiple_of": 32, "max_seq_len": SEQ, "dropout": 0.0,
    }
    checkpoint = {
        "model": weights, "optimizer": {"state": {0: {"step": torch.tensor(500.0)}}, "param_groups": []}, "model_args": args,
        "iter_num": 500, "best_val_loss": torch.tensor(1.25), "config": {"batch_size": 128, "device": "cpu"},
    }
    torch.save(checkpoint, folder / "ckpt.pt")
    expected(made, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
