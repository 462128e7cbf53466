// infer-core: Llama-2 inference in memory that the caller lends. No call allocates, prints or ends
// the program.
//
// Written by cbindgen from infer-core/src/capi.rs: do not edit.
//
//   infer_plan ──> infer_init ──> infer_encode      sizes, then the context, then a text's tokens
//
//   infer_forward ──> infer_classify ──> infer_sample ──> infer_decode      tokens to text
//   └────── again, with the token that was sampled ─────┘
//
// Every function that can be refused returns an infer_error. Its code is INFER_OK, which is 0, when
// all is well. Besides the errors that a function names, a null pointer gives INFER_ERROR_NULL, an
// address that does not suit its type INFER_ERROR_MISALIGNED, memory that overlaps the memory of
// another argument or of the context INFER_ERROR_OVERLAP, and a context that is not initialised
// INFER_ERROR_NOT_INITIALISED. Sizes are in elements unless they are said to be in bytes.
//
// The library relies on four conditions that it cannot check, or checks in infer_init only. The
// calling thread or task rounds to nearest. Its floating point registers belong to it, for which an
// RTOS has a setting. Unaligned words may be read: CCR.UNALIGN_TRP is 0 on a Cortex-M. Its stack
// has 8 KB. docs/FIRMWARE.md in the repository says more.


#ifndef INFER_CORE_H
#define INFER_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Token that begins a sequence; sampled, it ends a story.
#define INFER_BOS 1

// Token that ends a sequence.
#define INFER_EOS 2

// Start value of infer_hash_logits.
#define INFER_HASH_START 14695981039346656037ull

// Size of infer_context in machine words, beside 8 bytes that align it.
#define INFER_CONTEXT_WORDS 240

// Every part of the memory, and the model, start at a multiple of this many bytes.
#define INFER_ALIGN 4

// Parts of an infer_memory.
#define INFER_PARTS 7

// The codes of infer_error. Beside each code: the infer_error's fields that it uses.
typedef enum infer_code {
  // No error.
  INFER_OK = 0,
  // The model file is cut short: values are bytes needed, bytes there.
  INFER_ERROR_TRUNCATED,
  // An address is not a multiple of what it must be: subject, `values[0]` the multiple in bytes.
  INFER_ERROR_MISALIGNED,
  // The model file is of another version: `values[0]`.
  INFER_ERROR_UNKNOWN_VERSION,
  // A header field breaks a rule: subject, `values[0]`, rule.
  INFER_ERROR_HEADER,
  // An int8 model's groups cannot be used: values are group_size, dim, hidden_dim.
  INFER_ERROR_GROUP_SIZE,
  // Sizes do not fit this machine's address space.
  INFER_ERROR_TOO_LARGE,
  // This build does not support it: subject.
  INFER_ERROR_UNSUPPORTED,
  // A buffer is too small: subject, values are elements needed, elements there.
  INFER_ERROR_BUFFER_TOO_SMALL,
  // The model is not the one that was planned for.
  INFER_ERROR_MODEL_MISMATCH,
  // No such token: values are the token, the size of the vocabulary.
  INFER_ERROR_TOKEN,
  // Tokens do not fit at a position: values are position, number of tokens, positions filled,
  // max_seq.
  INFER_ERROR_POSITION,
  // No token, or more than a pass takes: values are tokens given, tokens at most.
  INFER_ERROR_BATCH,
  // A call out of order: step before begin, classify before the last step, sample without a new
  // classify.
  INFER_ERROR_NOT_READY,
  // A logit is NaN or infinite, so the weights are damaged: `values[0]` is its token.
  INFER_ERROR_NOT_FINITE,
  // A setting is out of range: subject, number, rule.
  INFER_ERROR_SETTING,
  // The tokenizer file is cut short: values are the token, the size of the vocabulary, bytes
  // there.
  INFER_ERROR_TOKENIZER_TRUNCATED,
  // The tokenizer file is damaged: `values[0]` is the token, rule.
  INFER_ERROR_TOKENIZER_ENTRY,
  // A pointer is null: subject.
  INFER_ERROR_NULL,
  // The context was not initialised, or is a copy.
  INFER_ERROR_NOT_INITIALISED,
  // A part of the memory is too small: subject, values are bytes needed, bytes there.
  INFER_ERROR_MEMORY_TOO_SMALL,
  // Two areas of memory overlap: subject and rule are their names.
  INFER_ERROR_OVERLAP,
  // A text is not UTF-8: `values[0]` is the first wrong byte.
  INFER_ERROR_TEXT,
  // Every logit is minus infinity: no token is left to pick.
  INFER_ERROR_ALL_MASKED,
  // The thread or task does not round to the nearest number (FPSCR.RMode on a Cortex-M,
  // fesetround on a desktop).
  INFER_ERROR_ROUNDING,
} infer_code;

// Implementations of the inner loops. They differ in speed only: all give the same bits.
typedef enum infer_kernels {
  // The default: the best ones for the machine that the archive was built for or, where it can
  // find out, runs on.
  INFER_KERNELS_NATIVE = 0,
  // The portable ones.
  INFER_KERNELS_SCALAR = 1,
  // For a Cortex-M with FPU and the DSP extension, an optional part of the M33 and M55. On
  // thumbv7em they are the native ones.
  INFER_KERNELS_CORTEX_M_DSP = 2,
  // For a Cortex-M with Helium, its vector extension: M55 and M85.
  INFER_KERNELS_HELIUM = 3,
} infer_kernels;

// Type of the cached keys and values.
typedef enum infer_kv {
  // 4 bytes per value.
  INFER_KV_F32 = 0,
  // 1 byte per value, with scales.
  INFER_KV_I8 = 1,
} infer_kv;

// The parts of an infer_memory. Each may lie in another kind of memory.
typedef enum infer_part {
  // Activations and logits. Touched all the time: the fastest memory.
  INFER_HOT_F32 = 0,
  // Quantised activations, as fast; 0 bytes for f32 models.
  INFER_HOT_I8 = 1,
  // Cached keys and values. Read once per token: may be slower.
  INFER_KV_VALUES = 2,
  // Scales of an int8 KV cache; 0 bytes for f32.
  INFER_KV_SCALES = 3,
  // Scratch of infer_sample.
  INFER_SAMPLER = 4,
  // Index of the tokenizer, written once by infer_init.
  INFER_TOKENIZER = 5,
  // Scratch of infer_encode.
  INFER_MERGE = 6,
} infer_part;

// Text that is not zero terminated: print it with `%.*s`.
typedef struct infer_text {
  // The first byte.
  const char *data;
  // Bytes.
  size_t bytes;
} infer_text;

// Why a call was refused. A refused call has changed nothing but its own progress.
typedef struct infer_error {
  // An infer_code; INFER_OK is 0.
  uint32_t code;
  // What it is about: a field, a buffer, a setting. Static.
  struct infer_text subject;
  // The rule that is broken. Static.
  struct infer_text rule;
  // Numbers, as listed at infer_code.
  int64_t values[4];
  // The value of a setting.
  double number;
} infer_error;

// Hyperparameters of a model.
typedef struct infer_config {
  // Width of the residual stream.
  size_t dim;
  // Width of the feed-forward network.
  size_t hidden_dim;
  // Transformer layers. A pass takes as many calls of infer_step.
  size_t n_layers;
  // Query heads.
  size_t n_heads;
  // Key/value heads.
  size_t n_kv_heads;
  // Number of tokens, and of logits.
  size_t vocab_size;
  // Positions the model was trained for.
  size_t seq_len;
  // Weights that share a scale in an int8 model; 0 for f32.
  size_t group_size;
} infer_config;

// The limits a context is sized for.
typedef struct infer_limits {
  // Positions of a sequence, prompt included: 1 to the model's seq_len. The KV cache grows with
  // it.
  size_t max_seq;
  // The most tokens per infer_forward: 1 on a chip, about 32 to read prompts fast.
  size_t batch;
  // Bytes of the longest text for infer_encode.
  size_t prompt_bytes;
  // An infer_kv.
  uint32_t kv;
} infer_limits;

// A piece of the caller's memory.
typedef struct infer_buffer {
  // The first byte; may be NULL where no bytes are needed.
  void *data;
  // Bytes.
  size_t bytes;
} infer_buffer;

// The memory of a context, by infer_part: `memory.part[INFER_KV_VALUES].data = sdram`.
typedef struct infer_memory {
  // The parts.
  struct infer_buffer part[INFER_PARTS];
} infer_memory;

// A model, its memory and the progress of one sequence. It belongs to the caller, and must be all
// zeros before infer_init: a static one is, a local one is with `= {0}`. It points to the memory
// that infer_init was given and owns nothing, so it needs no release. Do not copy it; calls with a
// copy are refused. Two contexts are independent; one context is for one thread at a time.
typedef struct infer_context {
  uint64_t align;
  size_t words[INFER_CONTEXT_WORDS];
} infer_context;





#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Version of the archive, as text; static.
const char *infer_version(void);

// Reads the header of a model file of llama2.c, version 0, 1 or 2. The first 256 bytes of the file
// are enough.
//
// Errors: INFER_ERROR_TRUNCATED, INFER_ERROR_UNKNOWN_VERSION, INFER_ERROR_HEADER,
// INFER_ERROR_GROUP_SIZE.
//
// # Safety
// `model` points to `model_bytes` readable bytes, and `config` to an infer_config, whose content
// does not matter.
struct infer_error infer_read_config(const void *model,
                                     size_t model_bytes,
                                     struct infer_config *config);

// Says how much memory a model takes within `limits`: sets `bytes` of every part of `memory` to
// the exact number, which may be 0, and `data` to NULL. The first 256 bytes of the model file are
// enough.
//
// Errors: as infer_read_config; INFER_ERROR_SETTING for a limit out of range,
// INFER_ERROR_TOO_LARGE, INFER_ERROR_UNSUPPORTED.
//
// # Safety
// `model` points to `model_bytes` readable bytes, `limits` to an infer_limits, and `memory` to an
// infer_memory, whose content does not matter.
struct infer_error infer_plan(const void *model,
                              size_t model_bytes,
                              const struct infer_limits *limits,
                              struct infer_memory *memory);

// Makes a context from a model file, its tokenizer file and memory for all parts. Temperature 0 is
// set: infer_sample takes the most likely token until infer_set_sampler says otherwise. A context
// may be initialised again at any time.
//
// Ownership: everything stays the caller's. The files and the memory behind `memory` must stay
// where they are as long as the context is used: the files unchanged, the memory untouched by
// anybody else. `limits` and `memory` themselves are only read. Files are used in place, from
// flash or from a mapped file; the model starts at a multiple of INFER_ALIGN bytes, better 16. The
// memory of each part starts at a multiple of INFER_ALIGN bytes, too; it is cleared; more than
// infer_plan asks for is accepted.
//
// Errors: as infer_plan; INFER_ERROR_MEMORY_TOO_SMALL, INFER_ERROR_OVERLAP,
// INFER_ERROR_TOKENIZER_TRUNCATED, INFER_ERROR_TOKENIZER_ENTRY, INFER_ERROR_ROUNDING. The context
// then counts as not initialised.
//
// # Safety
// `context` points to an infer_context of zeros, or one initialised before; `model` and
// `tokenizer` point to so many readable bytes; every part of `memory` points to so many bytes that
// nothing else uses.
struct infer_error infer_init(struct infer_context *context,
                              const void *model,
                              size_t model_bytes,
                              const void *tokenizer,
                              size_t tokenizer_bytes,
                              const struct infer_limits *limits,
                              const struct infer_memory *memory);

// Sets how infer_sample picks: temperature 0 takes the most likely token, 1 samples the model's
// distribution; `topp` keeps the most likely tokens up to that probability mass (0 and 1 turn it
// off); `seed` starts the random numbers. The same seed gives the same tokens on every machine.
//
// Errors: INFER_ERROR_SETTING for a temperature below 0, a topp outside 0 to 1, a NaN, or seed 0.
//
// # Safety
// `context` is NULL or points to an infer_context.
struct infer_error infer_set_sampler(struct infer_context *context,
                                     float temperature,
                                     float topp,
                                     uint64_t seed);

// Limits beside `topp`: `top_k` keeps that many of the most likely tokens, `min_p` those that are
// at least `min_p` times as likely as the most likely one. 0 turns either off; infer_set_sampler
// turns both off.
//
// Errors: INFER_ERROR_SETTING for a min_p outside 0 to 1, or a NaN.
//
// # Safety
// `context` is NULL or points to an infer_context.
struct infer_error infer_set_limits(struct infer_context *context, size_t top_k, float min_p);

// Chooses kernels: an infer_kernels. Without this call they are INFER_KERNELS_NATIVE. A program
// that calls it links all kernels of its target: 29 KB more on a Cortex-M4 at opt-level 3.
//
// Errors: INFER_ERROR_SETTING for another number, INFER_ERROR_UNSUPPORTED for kernels of another
// target than that of the archive.
//
// # Safety
// `context` is NULL or points to an infer_context. With INFER_KERNELS_CORTEX_M_DSP the core has
// the DSP extension. With INFER_KERNELS_HELIUM it has Helium, and the program has switched it on
// together with the FPU (CPACR, CP10 and CP11). Neither the target nor this call can tell; a core
// without them faults.
struct infer_error infer_set_kernels(struct infer_context *context, uint32_t kernels);

// Turns a text into tokens, with INFER_BOS in front if `bos`. Writes at most `capacity` of them to
// `tokens` and their number to `n_tokens`; text_bytes + 2 are always enough. `text` is UTF-8 and
// need not end with a zero.
//
// Errors: INFER_ERROR_TEXT, INFER_ERROR_BUFFER_TOO_SMALL for `tokens`, or for a text longer than
// prompt_bytes; null pointers.
//
// # Safety
// `context` is NULL or points to an infer_context; `text` points to `text_bytes` readable bytes,
// `tokens` to `capacity` writable tokens, `n_tokens` to a size_t.
struct infer_error infer_encode(struct infer_context *context,
                                const char *text,
                                size_t text_bytes,
                                bool bos,
                                uint32_t *tokens,
                                size_t capacity,
                                size_t *n_tokens);

// Feeds `n_tokens` tokens at positions `pos`, `pos` + 1, … through all layers; then infer_classify
// gives logits. `pos` is at most infer_filled; a smaller one forgets the positions from there on,
// 0 starts a new sequence.
//
// Errors: INFER_ERROR_BATCH, INFER_ERROR_POSITION, INFER_ERROR_TOKEN.
//
// # Safety
// `context` is NULL or points to an infer_context; `tokens` points to `n_tokens` tokens.
struct infer_error infer_forward(struct infer_context *context,
                                 const uint32_t *tokens,
                                 size_t n_tokens,
                                 size_t pos);

// infer_forward in parts: begins a pass. Call infer_step until there is no more, with time for a
// watchdog or other tasks in between.
//
// Errors: as infer_forward.
//
// # Safety
// As infer_forward.
struct infer_error infer_begin(struct infer_context *context,
                               const uint32_t *tokens,
                               size_t n_tokens,
                               size_t pos);

// Computes one layer, and says in `more` whether another one is to be done.
//
// Errors: INFER_ERROR_NOT_READY without infer_begin, or after the last layer.
//
// # Safety
// `context` is NULL or points to an infer_context, `more` to a bool.
struct infer_error infer_step(struct infer_context *context, bool *more);

// Computes the logits of one token of the last pass, `row` counted from its first: 0 when it had
// one. If `logits` is not NULL, it is set to the vocab_size logits. They lie in the part
// INFER_HOT_F32, may be changed, and hold until the next call with this context.
//
// Errors: INFER_ERROR_NOT_READY before the last infer_step or for a row that the pass did not
// have; INFER_ERROR_NOT_FINITE when damaged weights gave a NaN or an infinity.
//
// # Safety
// `context` is NULL or points to an infer_context; `logits` is NULL or points to a pointer.
struct infer_error infer_classify(struct infer_context *context, size_t row, float **logits);

// Makes `n` tokens that came up recently less likely, in the logits of the last infer_classify:
// positive ones are divided by `penalty`, negative ones multiplied, each once. 1 changes nothing.
//
// Errors: INFER_ERROR_NOT_READY without a new infer_classify, INFER_ERROR_SETTING for a penalty
// that is not a finite number above 0, INFER_ERROR_TOKEN.
//
// # Safety
// `context` is NULL or points to an infer_context; `recent` points to `n` tokens.
struct infer_error infer_penalize(struct infer_context *context,
                                  const uint32_t *recent,
                                  size_t n,
                                  float penalty);

// Picks a token from the logits of the last infer_classify, once; they are overwritten. A logit
// that was set to minus infinity is a mask: its token is never picked.
//
// Errors: INFER_ERROR_NOT_READY without a new infer_classify, INFER_ERROR_NOT_FINITE,
// INFER_ERROR_ALL_MASKED.
//
// # Safety
// `context` is NULL or points to an infer_context, `token` to a uint32_t.
struct infer_error infer_sample(struct infer_context *context, uint32_t *token);

// Gives the bytes of `token` when it follows `previous`: right after INFER_BOS one leading space
// is dropped. The bytes of one token need not be whole UTF-8 characters, and a model may give
// control characters. They lie in the tokenizer file or in the archive, and hold as long as the
// file.
//
// Errors: INFER_ERROR_TOKEN.
//
// # Safety
// `context` is NULL or points to an infer_context, `piece` to an infer_text.
struct infer_error infer_decode(struct infer_context *context,
                                uint32_t previous,
                                uint32_t token,
                                struct infer_text *piece);

// Whether a text ends where the model gives this token: INFER_BOS of the next one, or an EOS that
// the model's header names. False for a context that is not initialised.
//
// # Safety
// `context` is NULL or points to an infer_context.
bool infer_ends(struct infer_context *context, uint32_t token);

// Positions of the sequence so far: the next token goes here. 0 for a context that is not
// initialised.
//
// # Safety
// `context` is NULL or points to an infer_context.
size_t infer_filled(struct infer_context *context);

// Continues a hash (FNV-1a, 64 bits) over `n` logits; it starts with INFER_HASH_START. Equal
// hashes on a desktop and on a chip mean equal bits. A null pointer leaves the hash as it is.
//
// # Safety
// `logits` is NULL or points to `n` floats.
uint64_t infer_hash_logits(uint64_t hash, const float *logits, size_t n);

// Writes what an error says, in words and with its numbers, as zero-terminated text; cut where
// `capacity` ends. No message is longer than 255 bytes.
//
// Returns the bytes of the whole text, without the zero: it was cut if that is `capacity` or more.
// 0 if a pointer is null, or the text would overwrite the error.
//
// # Safety
// `error` points to an infer_error as a function of this library returned it; `text` to `capacity`
// writable bytes.
size_t infer_error_write(const struct infer_error *error, char *text, size_t capacity);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* INFER_CORE_H */
