// Everything that uses the library, for the firmware and for the program on the desktop.
#ifndef STORY_H
#define STORY_H

#include <stddef.h>
#include <stdint.h>

#include "infer_core.h"

// Longest prompt in bytes.
#define PROMPT_BYTES 128

typedef struct {
  const void *data;
  size_t bytes;
} file;

// Receives the text of a story. A piece of text need not be whole characters.
typedef void write_text(const char *text, size_t bytes);
// Called between layers, to feed a watchdog for example.
typedef void between_layers(void);

// Continues `prompt` for `steps` positions at most, always with the likeliest token: the story of
// `infer-cli -t 0`.
infer_error story_tell(infer_context *context, const char *prompt, size_t prompt_bytes, size_t steps, write_text *write,
                       between_layers *between);

// Computes the hash that `infer-cli bench MODEL --tokens n --batch 1` reports. It covers the logits
// of the last of n arbitrary tokens, then those of n tokens generated from INFER_BOS on.
infer_error story_hash(infer_context *context, size_t vocab_size, uint32_t n, uint64_t *hash);

#endif
