//! Attention with an int8 KV cache, for the DSP extension.

use core::arch::asm;

use super::{exp2, with_dsp};
use crate::config::block_len;
use crate::kernels::{HeadsQ8, Q8_POSITIONS, scalar};
use crate::math::{LANES, ROUND, max};
use crate::matrix::{rows_of, rows_of_mut};

/// [`scalar::attend_q8`] with two products per instruction.
pub(crate) fn attend_q8(heads: &HeadsQ8<'_>, att: &mut [f32], out: &mut [f32]) {
    let head_size = heads.head_size;
    let (unit, factor) = scalar::weight_unit(heads);
    let q = rows_of(heads.q, head_size).skip(heads.first).zip(heads.q_scales);
    let att = rows_of_mut(att, block_len(heads.positions));
    for (((q, q_scale), att), out) in q.zip(att).zip(rows_of_mut(out, head_size)) {
        scores_q8(q, q_scale * heads.scale, heads, att);
        let sum = att.get_mut(..heads.positions).map_or(0.0, |att| exp2::numerators(att, max(att)));
        let weights = quantize_weights(att, factor, heads);
        weigh_q8(weights, heads, unit / sum, out);
    }
}

#[inline(always)]
fn scores_q8(q: &[i8], scale: f32, heads: &HeadsQ8<'_>, att: &mut [f32]) {
    let blocks = rows_of(heads.keys, LANES * heads.head_size);
    let scales = heads.key_scales.as_chunks::<LANES>().0;
    for ((keys, scales), att) in blocks.zip(scales).zip(att.as_chunks_mut::<LANES>().0) {
        // Four positions at a time: their sums stay in registers.
        let halves = scales.as_chunks::<4>().0.iter().zip(att.as_chunks_mut::<4>().0);
        for (half, (scales, att)) in halves.enumerate() {
            let mut sums = [0; 4];
            for (keys, q) in keys.as_chunks::<16>().0.iter().skip(half).step_by(2).zip(q.as_chunks::<4>().0) {
                let (q02, q13) = (sxtb16(word(q)), sxtb16_high(word(q)));
                for (sum, key) in sums.iter_mut().zip(keys.as_chunks::<4>().0) {
                    let key = word(key);
                    *sum = smlad(sxtb16(key), q02, smlad(sxtb16_high(key), q13, *sum));
                }
            }
            for ((att, sum), key_scale) in att.iter_mut().zip(sums).zip(scales) {
                *att = (sum as f32 * key_scale) * scale;
            }
        }
    }
}

/// Puts 16-bit integers in the place of the weights: of each four, the first and the third share a word, then the second
/// and the fourth.
#[inline(always)]
fn quantize_weights<'a>(att: &'a mut [f32], factor: f32, heads: &HeadsQ8<'_>) -> &'a [[u32; 4]] {
    let words = bytemuck::cast_slice_mut::<f32, u32>(att);
    let mut i = 0;
    let scales = heads.value_scales.as_chunks::<4>().0;
    for scales in scales.iter().take(words.len() / 4) {
        let Some(weights) = words.get(4 * i..).and_then(|words| words.first_chunk::<4>()) else { break };
        let mut quantized = [0; 4];
        for p in 0..4 {
            quantized[p] = (f32::from_bits(weights[p]) * (scales[p] * factor) + ROUND).to_bits();
        }
        let [a, b, c, d] = quantized;
        // Behind the values that are still to be read.
        if let Some(pair) = words.get_mut(2 * i..).and_then(|words| words.first_chunk_mut::<2>()) {
            *pair = [a & 0xffff | c << 16, b & 0xffff | d << 16];
        }
        i += 1;
    }
    // Scales behind the last position may be anything, and so may what came of them.
    for t in heads.positions..block_len(heads.positions) {
        if let Some(pair) = words.get_mut(t / 4 * 2 + t % 2) {
            *pair &= if t % 4 < 2 { 0xffff_0000 } else { 0x0000_ffff };
        }
    }
    words.get(..2 * i).unwrap_or(&[]).as_chunks().0
}

#[inline(always)]
fn weigh_q8(weights: &[[u32; 4]], heads: &HeadsQ8<'_>, scale: f32, out: &mut [f32]) {
    const BLOCKS: usize = Q8_POSITIONS / LANES;
    let step = heads.head_size.max(1);
    for (d, out) in out.iter_mut().enumerate() {
        let mut values = heads.values.as_chunks::<LANES>().0.iter().skip(d).step_by(step);
        let mut total = 0.0;
        for weights in weights.chunks(BLOCKS) {
            let mut sum = 0;
            for (&[w02, w13, w46, w57], values) in weights.iter().zip(&mut values) {
                let [low, high] = [
                    word(&[values[0], values[1], values[2], values[3]]),
                    word(&[values[4], values[5], values[6], values[7]]),
                ];
                sum = smlad(sxtb16(low), w02, smlad(sxtb16_high(low), w13, sum));
                sum = smlad(sxtb16(high), w46, smlad(sxtb16_high(high), w57, sum));
            }
            total += sum as f32;
        }
        *out = total * scale;
    }
}

#[inline(always)]
fn word(bytes: &[i8; 4]) -> u32 {
    u32::from_le_bytes(bytes.map(|byte| byte as u8))
}

/// Bytes 0 and 2 as 16-bit integers.
#[inline(always)]
fn sxtb16(bytes: u32) -> u32 {
    let halves;
    // SAFETY: computes on registers.
    unsafe {
        asm!(with_dsp!(), "sxtb16 {}, {}", lateout(reg) halves, in(reg) bytes, options(pure, nomem, nostack, preserves_flags))
    }
    halves
}

/// Bytes 1 and 3 as 16-bit integers.
#[inline(always)]
fn sxtb16_high(bytes: u32) -> u32 {
    let halves;
    // SAFETY: computes on registers.
    unsafe {
        asm!(with_dsp!(), "sxtb16 {}, {}, ror #8", lateout(reg) halves, in(reg) bytes, options(pure, nomem, nostack, preserves_flags))
    }
    halves
}

/// The sum of both products of 16-bit integers, and of `sum`.
#[inline(always)]
fn smlad(a: u32, b: u32, sum: i32) -> i32 {
    let result;
    // SAFETY: computes on registers.
    unsafe {
        asm!(with_dsp!(), "smlad {}, {}, {}, {}", lateout(reg) result, in(reg) a, in(reg) b, in(reg) sum, options(pure, nomem, nostack));
    }
    result
}
