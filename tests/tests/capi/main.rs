//! The C interface, called as C calls it: it tells what the Rust interface tells, and refuses what
//! C can get wrong.
#![allow(unsafe_code)] // every call here is one that C could make

mod arguments;
mod errors;
mod memory;
mod story;

use std::ffi::CStr;
use std::mem::{MaybeUninit, zeroed};

use infer_core::BOS;
use infer_core::capi::infer_code::*;
use infer_core::capi::*;
use infer_core::format::Version;
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
        // SAFETY: the model has `bytes.len()` readable bytes, LIMITS is an infer_limits, and
        // `memory` has room for an infer_memory.
        assert_ok(unsafe { infer_plan(bytes.as_ptr().cast(), bytes.len(), &LIMITS, memory.as_mut_ptr()) });
        // SAFETY: infer_plan has succeeded, so it has written it.
        let mut memory = unsafe { memory.assume_init() };
        let mut buffers: Vec<_> = memory.part.iter().map(|part| vec![u64::MAX; part.bytes.div_ceil(8)]).collect();
        for (part, buffer) in memory.part.iter_mut().zip(&mut buffers) {
            assert!(part.data.is_null());
            part.data = buffer.as_mut_ptr().cast();
        }
        // SAFETY: an infer_context is plain data, and zeros are its documented beginning.
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
        // SAFETY: model and tokenizer point to so many readable bytes, and live as long as the
        // context; `limits` and `memory` are null or point to values of their types. Every other
        // fault is infer_init's to find.
        unsafe { infer_init(context, model.cast(), bytes, tokenizer.as_ptr().cast(), tokenizer.len(), limits, memory) }
    }

    /// The code of the error that a use of the context gives.
    fn state(&mut self) -> u32 {
        // SAFETY: the context is one, and BOS is one token.
        unsafe { infer_forward(self.context(), &BOS, 1, 0) }.code
    }
}

fn text(error: &infer_error) -> String {
    let mut text = [0; 256];
    // SAFETY: the error comes from the library, and the text has `text.len()` writable bytes.
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
