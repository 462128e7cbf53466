//! The library refuses memory that is null, too small, misplaced or overlapping.

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use infer_core::BOS;
use infer_core::capi::infer_code::*;
use infer_core::capi::*;

use crate::{C, LIMITS, assert_ok, assert_refused};

#[test]
fn null_pointers_are_refused() {
    let mut c = C::new();
    let (model, bytes) = (c.model.bytes().as_ptr().cast::<c_void>(), c.model.bytes().len());
    let mut memory = c.memory;
    // SAFETY: every pointer is null, or to a value of its type.
    unsafe {
        assert_refused(infer_read_config(model, bytes, null_mut()), INFER_ERROR_NULL, "config is a null pointer");
        assert_refused(infer_plan(null(), bytes, &LIMITS, &mut memory), INFER_ERROR_NULL, "model is a null pointer");
        assert_refused(infer_plan(model, bytes, null(), &mut memory), INFER_ERROR_NULL, "limits is a null pointer");
        assert_refused(infer_plan(model, bytes, &LIMITS, null_mut()), INFER_ERROR_NULL, "memory is a null pointer");
        assert_eq!(infer_forward(null_mut(), &BOS, 1, 0).code, INFER_ERROR_NULL as u32);
    }
    assert_refused(c.init(null(), &memory), INFER_ERROR_NULL, "limits is a null pointer");
    assert_refused(c.init(&LIMITS, null()), INFER_ERROR_NULL, "memory is a null pointer");
    memory.part[2].data = null_mut();
    assert_refused(c.init(&LIMITS, &memory), INFER_ERROR_NULL, "INFER_KV_VALUES is a null pointer");
    let mut c = C::open();
    let context = c.context();
    let mut n = 0;
    // SAFETY: as above.
    unsafe {
        assert_refused(infer_forward(context, null(), 1, 0), INFER_ERROR_NULL, "tokens is a null pointer");
        assert_refused(infer_step(context, null_mut()), INFER_ERROR_NULL, "more is a null pointer");
        assert_refused(infer_sample(context, null_mut()), INFER_ERROR_NULL, "token is a null pointer");
        assert_refused(infer_decode(context, 1, 1, null_mut()), INFER_ERROR_NULL, "piece is a null pointer");
        let error = infer_encode(context, null(), 1, true, null_mut(), 0, &mut n);
        assert_refused(error, INFER_ERROR_NULL, "text is a null pointer");
        assert_ok(infer_forward(context, &BOS, 1, 0));
        assert_ok(infer_classify(context, 0, null_mut())); // logits are not always wanted
        assert_eq!(infer_hash_logits(5, null(), 3), 5);
        assert_eq!(infer_error_write(null(), null_mut(), 0), 0);
    }
}

#[test]
fn memory_that_is_too_small_or_misplaced_is_refused() {
    let mut c = C::new();
    for part in 0..INFER_PARTS {
        let mut memory = c.memory;
        let Some(less) = memory.part[part].bytes.checked_sub(1) else { continue };
        let need = memory.part[part].bytes;
        memory.part[part].bytes = less;
        let error = c.init(&LIMITS, &memory);
        assert_eq!(
            (error.code, error.values[..2].to_vec()),
            (INFER_ERROR_MEMORY_TOO_SMALL as u32, vec![need as i64, less as i64])
        );

        let mut memory = c.memory;
        memory.part[part].data = memory.part[part].data.wrapping_byte_add(2);
        assert_eq!(c.init(&LIMITS, &memory).code, INFER_ERROR_MISALIGNED as u32);
    }
    let mut memory = c.memory;
    memory.part[0].bytes = 0;
    let need = c.memory.part[0].bytes;
    let words = format!("INFER_HOT_F32 has 0 bytes and needs {need}: infer_plan says how much");
    assert_refused(c.init(&LIMITS, &memory), INFER_ERROR_MEMORY_TOO_SMALL, &words);

    let mut memory = c.memory;
    memory.part[6].data = memory.part[2].data.wrapping_byte_add(memory.part[2].bytes - 4);
    let words = "INFER_MERGE and INFER_KV_VALUES overlap: give each memory of its own";
    assert_refused(c.init(&LIMITS, &memory), INFER_ERROR_OVERLAP, words);
    memory.part[6].data = c.context().cast();
    let words = "INFER_MERGE and context overlap: give each memory of its own";
    assert_refused(c.init(&LIMITS, &memory), INFER_ERROR_OVERLAP, words);

    assert_eq!(c.state(), INFER_ERROR_NOT_INITIALISED as u32);
    assert_ok(c.init(&LIMITS, &c.memory.clone()));
    assert_eq!(c.state(), INFER_OK as u32);
}

#[test]
fn memory_of_a_context_is_no_argument() {
    const OVERLAP: u32 = INFER_ERROR_OVERLAP as u32;
    let mut c = C::open();
    let (model, tokenizer) = (c.model.bytes().as_ptr().cast_mut(), c.tokenizer.as_mut_ptr());
    let model_bytes = c.model.bytes().len();
    let memory = c.memory;
    let context = c.context();
    let merge = memory.part[6].data;
    let mut room = [0u64; 32];
    let room = room.as_mut_ptr();
    // SAFETY: all pointers are to writable memory of the size in question. That it overlaps is the
    // library's to find.
    unsafe {
        let encode = |text: *mut c_void, tokens: *mut c_void, n: *mut c_void| {
            infer_encode(context, text.cast(), 8, true, tokens.cast(), 16, n.cast()).code
        };
        let [start, end] = [room, room.add(8)].map(|p| p.cast::<c_void>());
        room.write_bytes(b' ', 32);
        assert_eq!(encode(end, start, end.wrapping_byte_add(8)), INFER_OK as u32, "side by side");
        assert_eq!(encode(start, start, end), OVERLAP, "text and tokens");
        assert_eq!(encode(end, start, start.wrapping_byte_add(56)), OVERLAP, "tokens and n_tokens");
        assert_eq!(encode(end, start, end), OVERLAP, "text and n_tokens");
        for place in [context.cast(), merge, model.cast(), tokenizer.map_addr(|a| a & !3).cast::<c_void>()] {
            assert_eq!(encode(end, place, end.wrapping_byte_add(8)), OVERLAP, "tokens in the context's memory");
            assert_eq!(encode(end, start, place.map_addr(|a| a.next_multiple_of(8))), OVERLAP, "n_tokens there");
        }
        assert_eq!(encode(merge, start, end), OVERLAP, "text in the context's memory");
        assert_eq!(encode(model.cast(), start, end), INFER_OK as u32, "text in flash");
        let words = "tokens and INFER_MERGE overlap: give each memory of its own";
        assert_refused(infer_forward(context, merge.cast(), 1, 0), INFER_ERROR_OVERLAP, words);
        assert_eq!(infer_begin(context, merge.cast(), 1, 0).code, OVERLAP);
        assert_ok(infer_begin(context, &BOS, 1, 0));
        assert_eq!(infer_step(context, merge.cast()).code, OVERLAP);
        let mut more = true;
        while more {
            assert_ok(infer_step(context, &mut more));
        }
        assert_eq!(infer_classify(context, 0, merge.cast()).code, OVERLAP);
        assert_ok(infer_classify(context, 0, null_mut()));
        assert_eq!(infer_sample(context, merge.cast()).code, OVERLAP);
        assert_eq!(infer_decode(context, 1, 5, merge.cast()).code, OVERLAP);
        assert_ok(infer_sample(context, room.cast()));

        let file = model.cast_const().cast();
        assert_eq!(infer_read_config(file, model_bytes, model.cast()).code, OVERLAP);
        assert_eq!(infer_plan(file, model_bytes, &LIMITS, model.cast()).code, OVERLAP);
        assert_eq!(c.init(&LIMITS, context.cast()).code, OVERLAP);
        assert_eq!(c.init(context.cast(), &memory).code, OVERLAP);
        let mut over = memory;
        over.part[6].data = (&raw mut over).cast();
        assert_eq!(c.init(&LIMITS, &over).code, OVERLAP);
        assert_eq!(c.init_model(context.cast(), 1000, &LIMITS, &memory).code, OVERLAP);
        let mut error = c.init(&infer_limits { kv: 7, ..LIMITS }, &memory);
        assert_eq!(infer_error_write(&error, (&raw mut error).cast(), 9), 0);
    }
}
