//! Kernels for Cortex-M with a single-precision FPU, and int8 products for its DSP extension.
//!
//! Two rows share each load of x, and whole vectors are loaded by one instruction. A product and its sum are two
//! instructions (VMUL, VADD) of one cycle each: VMLA would be one, but of three cycles.
#![allow(unsafe_code)]

mod attention;
mod exp2;
mod matmul;

use core::arch::asm;

use super::{HeadsQ8, Kernels, Q8_POSITIONS, scalar};
use crate::config::block_len;
use crate::math::{LANES, ROUND, max, sum_lanes};
use crate::matrix::{Q8Matrix, rows_of, rows_of_mut};
use crate::panel::Panel;

// For the assembler: thumbv8m has the DSP extension as an option only.
#[cfg(thumb_dsp)]
macro_rules! with_dsp {
    () => {
        ""
    };
}
#[cfg(not(thumb_dsp))]
macro_rules! with_dsp {
    () => {
        ".cpu cortex-m33"
    };
}

/// The kernels of a Cortex-M with FPU.
pub(crate) const FPU: Kernels = Kernels {
    name: "cortex-m",
    matmul_f32: matmul::matmul_f32,
    attend: attention::attend,
    swiglu: exp2::swiglu,
    ..Kernels::scalar()
};

/// The kernels of a Cortex-M with FPU and DSP extension.
pub(crate) const DSP: Kernels = Kernels { name: "cortex-m-dsp", matmul_q8, quantize, attend_q8, ..FPU };

/// [`scalar::quantize`], widened for SMLAD: of each four values, the first and the third share a word, then the second and
/// the fourth, as SXTB16 unpacks weights.
fn quantize(x: &[f32], group_size: usize, q: &mut [i8], s: &mut [f32]) {
    let Ok(q) = bytemuck::try_cast_slice_mut::<i8, [i16; 4]>(q) else { return };
    let quads = group_size / 4;
    for ((x, q), s) in rows_of(x, group_size).zip(rows_of_mut(q, quads)).zip(s) {
        let scale = scalar::group_scale(x, s);
        for (q, x) in q.iter_mut().zip(x.as_chunks::<4>().0) {
            let [a, b, c, d] = x.map(|x| i16::from(scalar::round(x * scale)));
            *q = [a, c, b, d];
        }
    }
}

fn matmul_q8(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>) {
    let Ok(x) = bytemuck::try_cast_slice::<i8, [i16; 4]>(x) else { return };
    let (cols, group_size) = (w.cols, w.group_size);
    let groups = cols.checked_div(group_size).unwrap_or(0);
    for (b, (x, xs)) in rows_of(x, cols / 4).zip(rows_of(xs, groups)).enumerate() {
        let out = out.row(b);
        let whole = group_size.is_multiple_of(16) && w.q.len() >= out.len() * cols && w.s.len() >= out.len() * groups;
        let (pairs, rest) = if whole { out.as_chunks_mut::<2>() } else { (&mut [][..], out) };
        // SAFETY: there are two rows of weights and scales for each pair, and groups of a multiple of 16.
        unsafe { dot_q8_pairs(w.q.as_ptr(), w.s.as_ptr(), x, xs, group_size, pairs) }
        let done = 2 * pairs.len();
        let rows = rows_of(w.q, cols).zip(rows_of(w.s, groups)).skip(done);
        for (out, (q, s)) in rest.iter_mut().zip(rows) {
            *out = dot_q8(q, s, x, xs, group_size);
        }
    }
}

/// Two rows at once, as they share the loads of x.
///
/// # Safety
/// `w`, a multiple of 4, points to `2 · out.len()` rows as wide as x, `s` to as many rows of `xs.len()` scales. x has `xs.len()` groups, whose size
/// is a multiple of 16.
unsafe fn dot_q8_pairs(
    mut w: *const i8,
    mut s: *const f32,
    x: &[[i16; 4]],
    xs: &[f32],
    group_size: usize,
    out: &mut [[f32; 2]],
) {
    let (groups, steps) = (xs.len(), group_size / 16);
    if let [xs] = xs {
        for out in out {
            let (mut row1, mut x) = (w.wrapping_add(4 * x.len()), x.as_ptr());
            // SAFETY: both rows, and their scales.
            unsafe {
                let sums = group_sums(&mut w, &mut row1, &mut x, steps);
                // All other lanes are 0.
                *out = [(sums[0] as f32 * *s) * xs + 0.0, (sums[1] as f32 * *s.add(1)) * xs + 0.0];
            }
            (w, s) = (row1, s.wrapping_add(2));
        }
        return;
    }
    for out in out {
        let (mut row1, mut x) = (w.wrapping_add(4 * x.len()), x.as_ptr());
        let mut lanes = [[0.0; LANES]; 2];
        for (g, xs) in xs.iter().enumerate() {
            // SAFETY: a group of both rows and of x, and its scales.
            unsafe {
                let sums = group_sums(&mut w, &mut row1, &mut x, steps);
                lanes[0][g % LANES] += (sums[0] as f32 * *s.add(g)) * xs;
                lanes[1][g % LANES] += (sums[1] as f32 * *s.add(groups + g)) * xs;
            }
        }
        *out = lanes.map(sum_lanes);
        (w, s) = (row1, s.wrapping_add(2 * groups));
    }
}

/// One row, of any group size.
fn dot_q8(w: &[i8], ws: &[f32], x: &[[i16; 4]], xs: &[f32], group_size: usize) -> f32 {
    let mut lanes = [0.0; LANES];
    let groups = rows_of(w, group_size).zip(rows_of(x, group_size / 4)).zip(ws.iter().zip(xs));
    for (g, ((w, x), (ws, xs))) in groups.enumerate() {
        let mut sum = 0;
        for (w, x) in w.as_chunks::<4>().0.iter().zip(x) {
            let x = [x[0], x[2], x[1], x[3]];
            sum += w.iter().zip(x).map(|(&w, x)| i32::from(w) * i32::from(x)).sum::<i32>();
        }
        lanes[g % LANES] += (sum as f32 * ws) * xs;
    }
    sum_lanes(lanes)
}

/// Sums of the products of a group of x and of two rows; the pointers move on to the next group.
///
/// # Safety
/// All three point to `16 · n` values, n >= 1, and are multiples of 4; x is widened.
#[inline(always)]
unsafe fn group_sums(w0: &mut *const i8, w1: &mut *const i8, x: &mut *const [i16; 4], n: usize) -> [i32; 2] {
    let (sum0, sum1);
    macro_rules! eight_columns {
        () => {
            "ldmia {x}!, {{r2-r5}}
            ldrd {a}, {b}, [{w0}], #8
            sxtb16 {t}, {a}
            sxtb16 {a}, {a}, ror #8
            smlad {sum0}, {t}, r2, {sum0}
            smlad {sum0}, {a}, r3, {sum0}
            sxtb16 {t}, {b}
            sxtb16 {a}, {b}, ror #8
            smlad {sum0}, {t}, r4, {sum0}
            smlad {sum0}, {a}, r5, {sum0}
            ldrd {a}, {b}, [{w1}], #8
            sxtb16 {t}, {a}
            sxtb16 {a}, {a}, ror #8
            smlad {sum1}, {t}, r2, {sum1}
            smlad {sum1}, {a}, r3, {sum1}
            sxtb16 {t}, {b}
            sxtb16 {a}, {b}, ror #8
            smlad {sum1}, {t}, r4, {sum1}
            smlad {sum1}, {a}, r5, {sum1}"
        };
    }
    // SAFETY: reads what the caller vouches for.
    unsafe {
        asm!(
            with_dsp!(),
            "2:",
            eight_columns!(),
            eight_columns!(),
            "subs {n}, {n}, #1",
            "bne 2b",
            w0 = inout(reg) *w0,
            w1 = inout(reg) *w1,
            x = inout(reg) *x,
            n = inout(reg) n => _,
            a = out(reg) _,
            b = out(reg) _,
            t = out(reg) _,
            sum0 = inout(reg) 0 => sum0,
            sum1 = inout(reg) 0 => sum1,
            out("r2") _, out("r3") _, out("r4") _, out("r5") _,
            options(nostack, readonly),
        );
    }
    [sum0, sum1]
}

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
