//! The library checks limits, files, texts and the order of calls.

use std::mem::MaybeUninit;
use std::ptr::null_mut;

use infer_core::BOS;
use infer_core::capi::infer_code::*;
use infer_core::capi::*;
use tests::random::File;

use crate::{C, LIMITS, assert_ok, assert_refused};

#[test]
fn limits_out_of_range_are_refused() {
    let mut c = C::new();
    let memory = c.memory;
    let words = "max_seq is 41, but it must be between 1 and the model's seq_len";
    assert_refused(c.init(&infer_limits { max_seq: 41, ..LIMITS }, &memory), INFER_ERROR_SETTING, words);
    let words = "kv is 7, but it must be an infer_kv";
    assert_refused(c.init(&infer_limits { kv: 7, ..LIMITS }, &memory), INFER_ERROR_SETTING, words);
    let error = c.init(&infer_limits { prompt_bytes: usize::MAX, ..LIMITS }, &memory);
    assert_eq!(error.code, INFER_ERROR_TOO_LARGE as u32);
}

#[test]
fn damaged_files_are_refused_and_end_a_context() {
    let mut c = C::open();
    let (model, bytes) = (c.model.bytes().as_ptr(), c.model.bytes().len());
    let memory = c.memory;
    let words = format!(
        "the file has {} bytes and its header promises {bytes}: it is cut short or not a llama2.c model",
        bytes - 1
    );
    assert_refused(c.init_model(model, bytes - 1, &LIMITS, &memory), INFER_ERROR_TRUNCATED, &words);
    assert_eq!(c.state(), INFER_ERROR_NOT_INITIALISED as u32);

    let shifted = File::new(&[&[0], c.model.bytes()].concat());
    let error = c.init_model(shifted.bytes()[1..].as_ptr(), bytes, &LIMITS, &memory);
    assert_refused(error, INFER_ERROR_MISALIGNED, "model does not start at a multiple of 4 bytes");

    c.tokenizer.truncate(100);
    assert_eq!(c.init(&LIMITS, &memory).code, INFER_ERROR_TOKENIZER_TRUNCATED as u32);
}

#[test]
fn calls_out_of_order_are_refused() {
    let mut c = C::new();
    assert_eq!(c.state(), INFER_ERROR_NOT_INITIALISED as u32);
    let mut c = C::open();
    let context = c.context();
    let (mut token, mut more) = (0, false);
    // SAFETY: every pointer is to a value of its type. The copy of the context and the odd address
    // are the library's to find, before it reads through them.
    unsafe {
        assert_eq!(infer_step(context, &mut more).code, INFER_ERROR_NOT_READY as u32);
        assert_eq!(infer_classify(context, 0, null_mut()).code, INFER_ERROR_NOT_READY as u32);
        assert_ok(infer_begin(context, &BOS, 1, 0));
        assert_eq!(infer_classify(context, 0, null_mut()).code, INFER_ERROR_NOT_READY as u32);
        assert_ok(infer_forward(context, &BOS, 1, 0));
        assert_eq!(infer_sample(context, &mut token).code, INFER_ERROR_NOT_READY as u32);
        assert_ok(infer_classify(context, 0, null_mut()));
        assert_ok(infer_sample(context, &mut token));
        assert_eq!(infer_sample(context, &mut token).code, INFER_ERROR_NOT_READY as u32); // one token per classify
        let words = "1 token(s) cannot be placed at position 2: 1 of 24 positions are filled";
        assert_refused(infer_forward(context, &BOS, 1, 2), INFER_ERROR_POSITION, words);
        let words = "token 300 is outside the vocabulary of 300";
        assert_refused(infer_forward(context, &300, 1, 1), INFER_ERROR_TOKEN, words);
        assert_refused(infer_decode(context, 1, 300, MaybeUninit::uninit().as_mut_ptr()), INFER_ERROR_TOKEN, words);

        // Position 0 would begin a new sequence: the error comes before anything is forgotten.
        for call in [infer_begin, infer_forward] {
            assert_refused(call(context, &300, 1, 0), INFER_ERROR_TOKEN, words);
            assert_eq!(infer_filled(context), 1);
            assert_ok(infer_classify(context, 0, null_mut()));
        }

        let mut copy = std::ptr::read(context);
        assert_eq!(infer_forward(&mut copy, &BOS, 1, 0).code, INFER_ERROR_NOT_INITIALISED as u32);
        let odd = context.wrapping_byte_add(1);
        assert_eq!(infer_forward(odd, &BOS, 1, 0).code, INFER_ERROR_MISALIGNED as u32);
    }
}

#[test]
fn texts_and_settings_are_checked() {
    let mut c = C::open();
    let context = c.context();
    let (mut tokens, mut n) = ([0; 32], 0);
    // SAFETY: the text has `text.len()` bytes, and tokens has 32 elements, the largest capacity.
    let mut encode = |text: &[u8], capacity: usize| unsafe {
        infer_encode(context, text.as_ptr().cast(), text.len(), true, tokens.as_mut_ptr(), capacity, &mut n)
    };
    assert_refused(encode(b"ab\xff", 32), INFER_ERROR_TEXT, "the text is not UTF-8 from byte 2 on");
    assert_refused(encode(b"", 0), INFER_ERROR_BUFFER_TOO_SMALL, "buffer tokens has room for 0 elements and needs 2");
    assert_ok(encode(b"", 1));
    assert_eq!((n, tokens[0]), (1, BOS));
    // SAFETY: `context` points to an initialised context.
    unsafe {
        let words = "temperature is -0.5, but it must be a number from 0 (always the most likely token) upwards";
        assert_refused(infer_set_sampler(context, -0.5, 0.9, 1), INFER_ERROR_SETTING, words);
        let words = "top-p is NaN, but it must be between 0 and 1 (0 and 1 turn it off)";
        assert_refused(infer_set_sampler(context, 1.0, f32::NAN, 1), INFER_ERROR_SETTING, words);
        let words = "min-p is 2, but it must be between 0 (off) and 1";
        assert_refused(infer_set_limits(context, 1, 2.0), INFER_ERROR_SETTING, words);
        let words = "kernels of a Cortex-M with FPU: not supported by this build";
        for kernels in [infer_kernels::INFER_KERNELS_CORTEX_M_DSP, infer_kernels::INFER_KERNELS_HELIUM] {
            assert_refused(infer_set_kernels(context, kernels as u32), INFER_ERROR_UNSUPPORTED, words);
        }
        assert_refused(
            infer_set_kernels(context, 9),
            INFER_ERROR_SETTING,
            "kernels is 9, but it must be an infer_kernels",
        );
    }
}
