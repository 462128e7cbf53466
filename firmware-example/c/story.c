#include "story.h"

// Returns an error to the caller of the function it stands in.
#define TRY(call)                  \
  do {                             \
    infer_error try_error = call;  \
    if (try_error.code != INFER_OK) \
      return try_error;            \
  } while (0)

static const infer_error ok = {.code = INFER_OK};

// Runs one token through all layers, up to its logits.
static infer_error pass(infer_context *context, uint32_t token, size_t pos, between_layers *between, float **logits) {
  TRY(infer_begin(context, &token, 1, pos));
  bool more = true;
  while (more) {
    TRY(infer_step(context, &more));
    between();
  }
  return infer_classify(context, 0, logits);
}

infer_error story_tell(infer_context *context, const char *prompt, size_t prompt_bytes, size_t steps, write_text *write,
                       between_layers *between) {
  static uint32_t tokens[PROMPT_BYTES + 2];
  size_t n_tokens;
  TRY(infer_encode(context, prompt, prompt_bytes, true, tokens, PROMPT_BYTES + 2, &n_tokens));
  TRY(infer_set_sampler(context, 0.0f, 0.0f, 1)); // temperature, top-p, seed
  uint32_t token = tokens[0];
  for (size_t pos = 0; pos < steps; pos++) {
    TRY(pass(context, token, pos, between, NULL));
    uint32_t next;
    if (pos + 1 < n_tokens)
      next = tokens[pos + 1];
    else
      TRY(infer_sample(context, &next));
    if (infer_ends(context, next))
      break;
    infer_text piece;
    TRY(infer_decode(context, token, next, &piece));
    write(piece.data, piece.bytes);
    token = next;
  }
  return ok;
}

infer_error story_hash(infer_context *context, size_t vocab_size, uint32_t n, uint64_t *hash) {
  float *logits;
  for (uint32_t i = 0; i < n; i++) {
    uint32_t token = (uint32_t)((i * 7919u + 1) % vocab_size);
    TRY(infer_forward(context, &token, 1, i));
  }
  TRY(infer_classify(context, 0, &logits));
  *hash = infer_hash_logits(INFER_HASH_START, logits, vocab_size);
  uint32_t token = INFER_BOS;
  for (uint32_t pos = 0; pos < n; pos++) {
    TRY(infer_forward(context, &token, 1, pos));
    TRY(infer_classify(context, 0, &logits));
    *hash = infer_hash_logits(*hash, logits, vocab_size);
    TRY(infer_sample(context, &token));
  }
  return ok;
}
