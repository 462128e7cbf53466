// Tells a story on a Cortex-M, with a model in flash: no operating system, no heap, no C library.
#include "board.h"
#include "story.h"

// 4. What the firmware is to do.
#define PROMPT "Once upon a time"
#define STEPS 64               // positions: more take more RAM for keys and values
#define HASH_TOKENS 16         // tokens of the check against infer-cli, at most STEPS
#ifndef KV
#define KV INFER_KV_F32        // or INFER_KV_I8, a quarter of the bytes
#endif

// From files.S.
extern const char model_start[], model_end[], tokenizer_start[], tokenizer_end[];
// From the linker script: what static variables and the stack leave over.
extern char arena_start[], arena_end[];

static char *arena = arena_start;

static void *take(size_t bytes) {
  char *data = arena;
  bytes = (bytes + INFER_ALIGN - 1) / INFER_ALIGN * INFER_ALIGN;
  if (bytes > (size_t)(arena_end - arena))
    return NULL;
  arena += bytes;
  return data;
}

static void print(const char *text) {
  while (*text != '\0')
    board_write(*text++);
}

static void print_number(uint64_t number, unsigned base) {
  if (number >= base)
    print_number(number / base, base);
  board_write("0123456789abcdef"[number % base]);
}

// A model can give any byte; those that could drive a terminal become dots.
static void write(const char *text, size_t bytes) {
  for (size_t i = 0; i < bytes; i++)
    board_write((text[i] >= ' ' && text[i] <= '~') || text[i] == '\n' ? text[i] : '.');
}

static void between(void) {
  // 5. Feed your watchdog here, or yield to other tasks.
}

static infer_error run(void) {
  static infer_context context;
  file model = {model_start, (size_t)(model_end - model_start)};
  file tokenizer = {tokenizer_start, (size_t)(tokenizer_end - tokenizer_start)};
  infer_config config;
  infer_error error = infer_read_config(model.data, model.bytes, &config);
  if (error.code != INFER_OK)
    return error;
  size_t steps = config.seq_len < STEPS ? config.seq_len : STEPS;
  infer_memory memory;
  error = story_open(&context, model, tokenizer, steps, KV, take, &memory);
  if (error.code != INFER_OK)
    return error;
  print("memory: ");
  print_number((size_t)(arena - arena_start), 10);
  print(" bytes and a context of ");
  print_number(sizeof context, 10);
  print("\n");
  error = story_tell(&context, PROMPT, sizeof PROMPT - 1, steps, write, between);
  if (error.code != INFER_OK)
    return error;
  uint64_t hash;
  error = story_hash(&context, config.vocab_size, HASH_TOKENS, &hash);
  if (error.code != INFER_OK)
    return error;
  print("\nlogits hash ");
  for (int shift = 60; shift >= 0; shift -= 4)
    print_number(hash >> shift & 15, 16);
  print("\n");
  return error;
}

int main(void) {
  board_start();
  print("infer-core ");
  print(infer_version());
  print("\n");
  infer_error error = run();
  if (error.code != INFER_OK) {
    char text[256];
    infer_error_write(&error, text, sizeof text);
    print("\nerror: ");
    print(text);
    print("\n");
  }
  board_exit(error.code == INFER_OK);
}
