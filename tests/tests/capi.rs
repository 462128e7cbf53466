//! The C interface, called as C calls it: it tells what the Rust interface tells, and refuses what
//! C can get wrong.
#![allow(unsafe_code)] // every call here is one that C could make

use std::ffi::{CStr, c_void};
use std::mem::{MaybeUninit, zeroed};
use std::ptr::{null, null_mut};

use infer_core::capi::infer_code::*;
use infer_core::capi::*;
use infer_core::format::Version;
use infer_core::{BOS, Error, HASH_START, Sampler, classify, forward, hash_logits};
use tests::Run;
use tests::random::{File, RandomModel, config};

const MAX_SEQ: usize = 24;
const LIMITS: infer_limits = infer_limits { max_seq: MAX_SEQ, batch: 1, prompt_bytes: 16, kv: 0 };

/// Files, memory and a context as a C program has them.
struct C {
    model: File,
    tokenizer: Vec<u8>,
    memory: infer_memory,
    context: Box<infer_context>,
    _buffers: Vec<Vec<u64>>,
}

impl C {
    fn new() -> C {
        let model = RandomModel::new(config(48, 31, 2, 6, 2), 7).to_file(Version::V0);
        let tokenizer = tests::tokenizer::file(0, (0..300).map(|id| format!("piece {id}")));
        let mut memory = MaybeUninit::uninit();
        let bytes = model.bytes();
        // SAFETY: the model has so many bytes, and the other pointers are to what they should be.
        assert_ok(unsafe { infer_plan(bytes.as_ptr().cast(), bytes.len(), &LIMITS, memory.as_mut_ptr()) });
        // SAFETY: infer_plan has succeeded, so it has written it.
        let mut memory = unsafe { memory.assume_init() };
        let mut buffers: Vec<_> = memory.part.iter().map(|part| vec![u64::MAX; part.bytes.div_ceil(8)]).collect();
        for (part, buffer) in memory.part.iter_mut().zip(&mut buffers) {
            assert!(part.data.is_null());
            part.data = buffer.as_mut_ptr().cast();
        }
        // SAFETY: a context begins as zeros.
        C { model, tokenizer, memory, context: Box::new(unsafe { zeroed() }), _buffers: buffers }
    }

    fn open() -> C {
        let mut c = C::new();
        assert_ok(c.init(&LIMITS, &c.memory.clone()));
        c
    }

    fn context(&mut self) -> *mut infer_context {
        &mut *self.context
    }

    fn init(&mut self, limits: *const infer_limits, memory: *const infer_memory) -> infer_error {
        let model = self.model.bytes();
        let (model, n) = (model.as_ptr(), model.len());
        self.init_model(model, n, limits, memory)
    }

    fn init_model(
        &mut self,
        model: *const u8,
        bytes: usize,
        limits: *const infer_limits,
        memory: *const infer_memory,
    ) -> infer_error {
        let context = self.context();
        let tokenizer = &self.tokenizer;
        // SAFETY: the pointers and sizes are those of the files, which live as long as the context;
        // what is wrong with the others is for infer_init to find out.
        unsafe { infer_init(context, model.cast(), bytes, tokenizer.as_ptr().cast(), tokenizer.len(), limits, memory) }
    }

    /// What the context says when it is used.
    fn state(&mut self) -> u32 {
        // SAFETY: a context and one token.
        unsafe { infer_forward(self.context(), &BOS, 1, 0) }.code
    }
}

fn text(error: &infer_error) -> String {
    let mut text = [0; 256];
    // SAFETY: the error is the library's, and the text has so many bytes.
    let n = unsafe { infer_error_write(error, text.as_mut_ptr(), text.len()) };
    // SAFETY: infer_error_write ends the text with a zero.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_str().unwrap();
    assert_eq!(n, text.len());
    text.to_owned()
}

#[track_caller]
fn assert_ok(error: infer_error) {
    assert_eq!(error.code, INFER_OK as u32, "{}", text(&error));
}

#[track_caller]
fn assert_refused(error: infer_error, code: infer_code, words: &str) {
    assert_eq!(error.code, code as u32, "{}", text(&error));
    assert_eq!(text(&error), words);
}

#[test]
fn a_story_from_c_has_the_logits_and_tokens_of_one_from_rust() {
    let mut c = C::open();
    let file = RandomModel::new(config(48, 31, 2, 6, 2), 7).to_file(Version::V0);
    let mut run = Run::new(file.bytes(), 1);
    let (model, engine) = (run.model, run.engine);
    let mut state = run.state();
    let mut sampler = Sampler::new(0.9, 0.5, 3).unwrap();
    let mut scratch = vec![Default::default(); 300];
    let context = c.context();
    // SAFETY: `context` is that of `c`, here and below, and everything else a local variable.
    assert_ok(unsafe { infer_set_sampler(context, 0.9, 0.5, 3) });
    let (mut token, mut hash, mut c_hash) = (BOS, HASH_START, INFER_HASH_START);
    for pos in 0..MAX_SEQ {
        let (mut logits, mut more, mut next, mut piece, mut layers) = (null_mut(), true, 0, MaybeUninit::uninit(), 0);
        // By turns in one call and layer by layer, with either kernels.
        // SAFETY: as above.
        assert_ok(unsafe { infer_set_kernels(context, (pos / 2 % 2) as u32) });
        if pos % 2 == 0 {
            // SAFETY: as above.
            assert_ok(unsafe { infer_forward(context, &token, 1, pos) });
        } else {
            // SAFETY: as above.
            assert_ok(unsafe { infer_begin(context, &token, 1, pos) });
            while more {
                // SAFETY: as above.
                assert_ok(unsafe { infer_step(context, &mut more) });
                layers += 1;
            }
            assert_eq!(layers, 2);
        }
        // SAFETY: as above.
        assert_eq!(unsafe { infer_filled(context) }, pos + 1);
        // SAFETY: as above.
        assert_ok(unsafe { infer_classify(context, 0, &mut logits) });
        // SAFETY: as above.
        c_hash = unsafe { infer_hash_logits(c_hash, logits, 300) };
        // SAFETY: as above.
        assert_ok(unsafe { infer_sample(context, &mut next) });

        forward(&model, &mut state, &engine, &[token]).unwrap();
        let logits = classify(&model, &mut state, &engine, 0).unwrap();
        hash = hash_logits(hash, logits);
        assert_eq!(next, sampler.sample(logits, &mut scratch).unwrap());
        assert_eq!(c_hash, hash);

        // SAFETY: as above.
        assert_ok(unsafe { infer_decode(context, token, next, piece.as_mut_ptr()) });
        // SAFETY: infer_decode has succeeded, so it has written the piece,
        let piece = unsafe { piece.assume_init() };
        // SAFETY: which lies in the tokenizer.
        let piece = unsafe { std::slice::from_raw_parts(piece.data.cast::<u8>(), piece.bytes) };
        assert_eq!(piece, format!("piece {next}").as_bytes());
        token = next;
    }
}

#[test]
fn null_pointers_are_refused() {
    let mut c = C::new();
    let (model, bytes) = (c.model.bytes().as_ptr().cast::<c_void>(), c.model.bytes().len());
    let mut memory = c.memory;
    // SAFETY: the pointers are to what they should be, or null.
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
    // SAFETY: all pointers are to writable memory; that it overlaps is for the library to find out.
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
    // SAFETY: the pointers are to what they should be; the copy and the odd address are for the
    // library to find out.
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
    // SAFETY: text and tokens have so many bytes and elements.
    let mut encode = |text: &[u8], capacity: usize| unsafe {
        infer_encode(context, text.as_ptr().cast(), text.len(), true, tokens.as_mut_ptr(), capacity, &mut n)
    };
    assert_refused(encode(b"ab\xff", 32), INFER_ERROR_TEXT, "the text is not UTF-8 from byte 2 on");
    assert_refused(encode(b"", 0), INFER_ERROR_BUFFER_TOO_SMALL, "buffer tokens has room for 0 elements and needs 2");
    assert_ok(encode(b"", 1));
    assert_eq!((n, tokens[0]), (1, BOS));
    // SAFETY: `context` is a context.
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

#[test]
fn masks_limits_and_penalties() {
    let mut c = C::open();
    let context = c.context();
    let mut logits: *mut f32 = null_mut();
    let mut token = 0;
    // SAFETY: a context, its logits as long as they hold, and tokens.
    unsafe {
        let mut sample = |change: &dyn Fn(&mut [f32])| {
            assert_ok(infer_classify(context, 0, &mut logits));
            change(std::slice::from_raw_parts_mut(logits, 300));
            let error = infer_sample(context, &mut token);
            (error.code, token)
        };
        assert_eq!(infer_penalize(context, [1].as_ptr(), 1, 1.5).code, INFER_ERROR_NOT_READY as u32);
        assert_ok(infer_forward(context, &BOS, 1, 0));
        let (_, likeliest) = sample(&|_| ());
        let mask_likeliest = |logits: &mut [f32]| logits[likeliest as usize] = f32::NEG_INFINITY;
        let (code, second) = sample(&mask_likeliest);
        assert!(code == INFER_OK as u32 && second != likeliest);
        assert_eq!(sample(&|logits| logits.fill(f32::NEG_INFINITY)).0, INFER_ERROR_ALL_MASKED as u32);
        assert_eq!(sample(&|logits| logits[7] = f32::INFINITY).0, INFER_ERROR_NOT_FINITE as u32);
        assert_ok(infer_set_sampler(context, 5.0, 1.0, 1));
        for (top_k, min_p) in [(1, 0.0), (0, 1.0)] {
            assert_ok(infer_set_limits(context, top_k, min_p));
            assert_eq!((0..9).map(|_| sample(&|_| ()).1).collect::<Vec<_>>(), [likeliest; 9]);
        }
        assert_ok(infer_classify(context, 0, null_mut()));
        assert_ok(infer_penalize(context, [likeliest; 2].as_ptr(), 2, 1e9));
        assert_ok(infer_sample(context, &mut token));
        assert_eq!(token, second);
        assert_ok(infer_classify(context, 0, null_mut()));
        let words = "token 300 is outside the vocabulary of 300";
        assert_refused(infer_penalize(context, [300].as_ptr(), 1, 1.5), INFER_ERROR_TOKEN, words);
        let words = "repetition penalty is 0, but it must be a number above 0 (1 turns it off)";
        assert_refused(infer_penalize(context, null(), 0, 0.0), INFER_ERROR_SETTING, words);
    }
}

/// One wording for Rust and C, except where the advice is about the language.
#[test]
fn errors_read_as_in_rust() {
    let (field, name, rule) = ("dim", "seed", "it must be small");
    let errors = [
        Error::Truncated { need: u64::MAX >> 1, have: 0 },
        Error::UnknownVersion { version: -3 },
        Error::Header { field, value: i64::MIN, rule },
        Error::GroupSize { group_size: 3, dim: 64, hidden_dim: 172 },
        Error::TooLarge,
        Error::Unsupported { what: "this" },
        Error::BufferTooSmall { buffer: "tokens", need: 10, have: 9 },
        Error::Token { token: u32::MAX, vocab_size: 512 },
        Error::Position { pos: 1, n_tokens: 2, filled: 3, max_seq: 4 },
        Error::Batch { n_tokens: 5, batch: 1 },
        Error::NotFinite { token: 7 },
        Error::AllMasked,
        Error::Rounding,
        Error::Setting { name, value: 0.0, rule },
        Error::Setting { name, value: -1.25, rule },
        Error::Setting { name, value: 1e6 + 0.062, rule },
        Error::Setting { name, value: f64::NAN, rule },
        Error::Setting { name, value: f64::NEG_INFINITY, rule },
        Error::TokenizerTruncated { token: 1, vocab_size: 2, have: 3 },
        Error::TokenizerEntry { token: 1, rule },
    ];
    for error in errors {
        assert_eq!(text(&error.into()), error.to_string());
    }
    for error in [Error::Misaligned, Error::ModelMismatch, Error::OtherModel, Error::NotReady] {
        assert!(!text(&error.into()).is_empty());
    }
}

#[test]
fn long_messages_are_cut_to_the_buffer() {
    let error = infer_error::from(Error::Token { token: 5, vocab_size: 3 });
    let mut text = [1; 12];
    // SAFETY: the error is the library's, and the text has more bytes.
    let n = unsafe { infer_error_write(&error, text.as_mut_ptr(), 9) };
    assert_eq!(n, "token 5 is outside the vocabulary of 3".len());
    assert_eq!(text[..9], b"token 5 \0".map(|byte| byte as std::ffi::c_char));
    assert_eq!(text[9..], [1; 3]);
}
