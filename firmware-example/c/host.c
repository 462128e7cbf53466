// Tells a story on a desktop: story MODEL.bin TOKENIZER.bin [PROMPT [STEPS [f32|i8]]]
//
// The text goes to standard output, a hash of logits to standard error. Exit codes: 0 done, 1 a
// file cannot be used, 2 the command line is wrong.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "story.h"

// Tokens that the hash covers, as in main.c.
#define HASH_TOKENS 16

static void write_stdout(const char *text, size_t bytes) {
  fwrite(text, 1, bytes, stdout);
}

static void nothing(void) {}

// Reads a whole file into memory that the caller frees.
static file read_file(const char *path) {
  file result = {NULL, 0};
  FILE *stream = fopen(path, "rb");
  if (stream == NULL)
    return result;
  long bytes = fseek(stream, 0, SEEK_END) == 0 ? ftell(stream) : -1;
  rewind(stream);
  if (bytes >= 0) {
    char *data = malloc((size_t)bytes + 1); // never 0 bytes
    if (data != NULL && fread(data, 1, (size_t)bytes, stream) == (size_t)bytes) {
      result.data = data;
      result.bytes = (size_t)bytes;
    } else {
      free(data);
    }
  }
  fclose(stream);
  return result;
}

// Opens a model for `max_seq` positions, or for all that it was trained for if `max_seq` is 0, with
// keys and values of type `kv`, an infer_kv. The caller frees the parts of `memory`.
static infer_error open_model(infer_context *context, file model, file tokenizer, size_t max_seq, uint32_t kv,
                              infer_memory *memory) {
  infer_config config;
  infer_error error = infer_read_config(model.data, model.bytes, &config);
  if (error.code != INFER_OK)
    return error;
  if (max_seq == 0 || max_seq > config.seq_len)
    max_seq = config.seq_len;
  infer_limits limits = {.max_seq = max_seq, .batch = 1, .prompt_bytes = PROMPT_BYTES, .kv = kv};
  error = infer_plan(model.data, model.bytes, &limits, memory);
  if (error.code != INFER_OK)
    return error;
  for (int i = 0; i < INFER_PARTS; i++)
    memory->part[i].data = malloc(memory->part[i].bytes);
  return infer_init(context, model.data, model.bytes, tokenizer.data, tokenizer.bytes, &limits, memory);
}

static infer_error tell(file model, file tokenizer, const char *prompt, size_t steps, uint32_t kv,
                        infer_memory *memory) {
  static infer_context context; // static, so all zeros
  infer_error error = open_model(&context, model, tokenizer, steps, kv, memory);
  infer_config config = {0};
  if (error.code == INFER_OK)
    error = infer_read_config(model.data, model.bytes, &config);
  if (error.code != INFER_OK)
    return error;
  if (steps == 0 || steps > config.seq_len)
    steps = config.seq_len;
  error = story_tell(&context, prompt, strlen(prompt), steps, write_stdout, nothing);
  if (error.code != INFER_OK)
    return error;
  putchar('\n');
  fflush(stdout);
  uint64_t hash;
  error = story_hash(&context, config.vocab_size, steps < HASH_TOKENS ? (uint32_t)steps : HASH_TOKENS, &hash);
  if (error.code == INFER_OK)
    fprintf(stderr, "logits hash %016llx\n", (unsigned long long)hash);
  return error;
}

int main(int argc, char **argv) {
  if (argc < 3 || argc > 6) {
    fprintf(stderr, "usage: %s MODEL.bin TOKENIZER.bin [PROMPT [STEPS [f32|i8]]]\n", argv[0]);
    return 2;
  }
  const char *prompt = argc > 3 ? argv[3] : "Once upon a time";
  size_t steps = argc > 4 ? strtoul(argv[4], NULL, 10) : 256;
  uint32_t kv = argc > 5 && strcmp(argv[5], "i8") == 0 ? INFER_KV_I8 : INFER_KV_F32;
  file model = read_file(argv[1]);
  file tokenizer = read_file(argv[2]);
  infer_memory memory = {0};
  int status = 1;
  if (model.data == NULL || tokenizer.data == NULL) {
    perror(argv[model.data == NULL ? 1 : 2]);
  } else {
    infer_error error = tell(model, tokenizer, prompt, steps, kv, &memory);
    status = error.code != INFER_OK;
    char text[256];
    infer_error_write(&error, text, sizeof text);
    if (status != 0)
      fprintf(stderr, "%s, %s: %s\n", argv[1], argv[2], text);
  }
  for (int i = 0; i < INFER_PARTS; i++)
    free(memory.part[i].data);
  free((void *)model.data);
  free((void *)tokenizer.data);
  return status;
}
