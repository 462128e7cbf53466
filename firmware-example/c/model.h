// Limits and memory of model models/firmware/model.bin, from infer-cli inspect --c.
// infer_init refuses them for a larger model.
#define MODEL_MAX_SEQ 64
#define MODEL_PROMPT_BYTES 128
#define MODEL_KV INFER_KV_F32
#define MODEL_HOT_F32_BYTES 4924
#define MODEL_HOT_I8_BYTES 387
#define MODEL_KV_VALUES_BYTES 81920
#define MODEL_KV_SCALES_BYTES 0
#define MODEL_SAMPLER_BYTES 4096
#define MODEL_TOKENIZER_BYTES 6144
#define MODEL_MERGE_BYTES 2600
