// Tells a story on a Cortex-M, with a model in flash: no operating system, no heap, no C library.
#include "board.h"
#include "story.h"
#include MODEL_H // 4. Limits and sizes for the model: model.h, unless the Makefile says otherwise

// 5. The task of the firmware.
#define PROMPT "Once upon a time"
#define HASH_TOKENS 16 // tokens of the check against infer-cli, at most MODEL_MAX_SEQ
// #define KERNELS INFER_KERNELS_HELIUM // see README.md

// Symbols of files.S.
extern const char model_start[], model_end[], tokenizer_start[], tokenizer_end[];

// The library's memory, sized by the compiler: too little RAM is an error of the linker. An
// attribute (section(".fast")) places a part in a memory of its own.
#define WORDS(bytes) (((bytes) + 3) / 4 + ((bytes) == 0)) // C has no empty arrays
static uint32_t hot_f32[WORDS(MODEL_HOT_F32_BYTES)];
static uint32_t hot_i8[WORDS(MODEL_HOT_I8_BYTES)];
static uint32_t kv_values[WORDS(MODEL_KV_VALUES_BYTES)];
static uint32_t kv_scales[WORDS(MODEL_KV_SCALES_BYTES)];
static uint32_t sampler[WORDS(MODEL_SAMPLER_BYTES)];
static uint32_t tokenizer_index[WORDS(MODEL_TOKENIZER_BYTES)];
static uint32_t merge[WORDS(MODEL_MERGE_BYTES)];
static const infer_memory memory = {{
    [INFER_HOT_F32] = {hot_f32, sizeof hot_f32},
    [INFER_HOT_I8] = {hot_i8, sizeof hot_i8},
    [INFER_KV_VALUES] = {kv_values, sizeof kv_values},
    [INFER_KV_SCALES] = {kv_scales, sizeof kv_scales},
    [INFER_SAMPLER] = {sampler, sizeof sampler},
    [INFER_TOKENIZER] = {tokenizer_index, sizeof tokenizer_index},
    [INFER_MERGE] = {merge, sizeof merge},
}};
_Static_assert(sizeof PROMPT - 1 <= MODEL_PROMPT_BYTES, "plan for a longer prompt in model.h");
static const infer_limits limits = {
    .max_seq = MODEL_MAX_SEQ, .batch = 1, .prompt_bytes = MODEL_PROMPT_BYTES, .kv = MODEL_KV};

static void print(const char *text) {
  while (*text != '\0')
    board_write(*text++);
}

static void print_number(uint64_t number, unsigned base) {
  if (number >= base)
    print_number(number / base, base);
  board_write("0123456789abcdef"[number % base]);
}

// Writes text of the model. Bytes that could drive a terminal become dots.
static void write(const char *text, size_t bytes) {
  for (size_t i = 0; i < bytes; i++)
    board_write((text[i] >= ' ' && text[i] <= '~') || text[i] == '\n' ? text[i] : '.');
}

static void between(void) {
  // 6. Feed your watchdog here, or yield to other tasks.
}

static infer_error run(void) {
  static infer_context context;
  file model = {model_start, (size_t)(model_end - model_start)};
  file tokenizer = {tokenizer_start, (size_t)(tokenizer_end - tokenizer_start)};
  infer_config config;
  infer_error error = infer_read_config(model.data, model.bytes, &config);
  if (error.code != INFER_OK)
    return error;
  error = infer_init(&context, model.data, model.bytes, tokenizer.data, tokenizer.bytes, &limits, &memory);
#ifdef KERNELS
  if (error.code == INFER_OK)
    error = infer_set_kernels(&context, KERNELS);
#endif
  if (error.code != INFER_OK)
    return error;
  size_t bytes = 0;
  for (int i = 0; i < INFER_PARTS; i++)
    bytes += memory.part[i].bytes;
  print("memory: ");
  print_number(bytes, 10);
  print(" bytes and a context of ");
  print_number(sizeof context, 10);
  print("\n");
  error = story_tell(&context, PROMPT, sizeof PROMPT - 1, MODEL_MAX_SEQ, write, between);
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
