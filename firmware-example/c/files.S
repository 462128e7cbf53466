/* Puts model and tokenizer into flash, byte for byte. */
    .syntax unified
    .section .rodata.model, "a"
    .balign 16
    .global model_start, model_end
model_start:
    .incbin MODEL
model_end:

    .section .rodata.tokenizer, "a"
    .global tokenizer_start, tokenizer_end
tokenizer_start:
    .incbin TOKENIZER
tokenizer_end:
