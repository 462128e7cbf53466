//! A story from C is the story from Rust; masks, limits and penalties work.

use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};

use infer_core::capi::infer_code::*;
use infer_core::capi::*;
use infer_core::format::Version;
use infer_core::{BOS, HASH_START, Sampler, classify, forward, hash_logits};
use tests::Run;
use tests::random::{RandomModel, config};

use crate::{C, MAX_SEQ, assert_ok, assert_refused};

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
    // SAFETY: `context` points to the context of `c`, here and below, and every other pointer to a
    // local variable of its type.
    assert_ok(unsafe { infer_set_sampler(context, 0.9, 0.5, 3) });
    let (mut token, mut hash, mut c_hash) = (BOS, HASH_START, INFER_HASH_START);
    for pos in 0..MAX_SEQ {
        let (mut logits, mut more, mut next, mut piece, mut layers) = (null_mut(), true, 0, MaybeUninit::uninit(), 0);
        // Passes take turns: in one call or layer by layer, with native or scalar kernels.
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
        // SAFETY: infer_decode has succeeded, so it has written the piece.
        let piece = unsafe { piece.assume_init() };
        // SAFETY: the piece points to so many bytes of the tokenizer, which outlives it.
        let piece = unsafe { std::slice::from_raw_parts(piece.data.cast::<u8>(), piece.bytes) };
        assert_eq!(piece, format!("piece {next}").as_bytes());
        token = next;
    }
}

#[test]
fn masks_limits_and_penalties() {
    let mut c = C::open();
    let context = c.context();
    let mut logits: *mut f32 = null_mut();
    let mut token = 0;
    // SAFETY: `context` points to an initialised context, its 300 logits are used before the next
    // call, and tokens point to as many as the calls say.
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
