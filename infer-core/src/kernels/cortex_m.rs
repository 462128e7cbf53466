//! Kernels for Cortex-M with a single-precision FPU, and int8 products for its DSP extension.
//!
//! Two rows share each load of x, and whole vectors are loaded by one instruction. A product and its sum are two
//! instructions (VMUL, VADD) of one cycle each: VMLA would be one, but of three cycles.
#![allow(unsafe_code)]

use core::arch::asm;

use super::{Heads, HeadsQ8, Kernels, Q8_POSITIONS, scalar};
use crate::config::block_len;
use crate::math::{LANES, ROUND, exp2_score, sum, sum_lanes};
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
pub(crate) const FPU: Kernels = Kernels { name: "cortex-m", matmul_f32, attend, ..Kernels::scalar() };

/// The kernels of a Cortex-M with FPU and DSP extension.
pub(crate) const DSP: Kernels = Kernels { name: "cortex-m-dsp", matmul_q8, quantize, attend_q8, ..FPU };

fn attend(heads: &Heads<'_>, att: &mut [f32], out: &mut [f32]) {
    let head_size = heads.head_size;
    let mut q = rows_of(heads.q, head_size);
    let mut att = rows_of_mut(att, block_len(heads.positions));
    let mut out = rows_of_mut(out, head_size);
    // Two heads share each load of the values.
    while let (Some(q0), Some(att0), Some(out0)) = (q.next(), att.next(), out.next()) {
        let sum0 = attention_weights(q0, heads, att0);
        if let (Some(q1), Some(att1), Some(out1)) = (q.next(), att.next(), out.next()) {
            let sum1 = attention_weights(q1, heads, att1);
            weigh([att0, att1], [sum0, sum1], heads, [out0, out1]);
        } else {
            weigh([att0], [sum0], heads, [out0]);
        }
    }
}

/// Not inlined, to be there once.
#[inline(never)]
fn attention_weights(q: &[f32], heads: &Heads<'_>, att: &mut [f32]) -> f32 {
    for (keys, att) in rows_of(heads.keys, heads.head_size).zip(att.as_chunks_mut::<LANES>().0) {
        let ([low, high], _) = att.as_chunks_mut::<POSITIONS>() else { continue };
        *low = scores::<0>(q, keys).map(|score| score * heads.scale);
        *high = scores::<1>(q, keys).map(|score| score * heads.scale);
    }
    numerators(att, heads.positions)
}

/// Positions scored at a time: their sums stay in registers.
const POSITIONS: usize = 4;

/// Scores of half a block. Lane by lane, in an order that needs three sums at a time for the tree of
/// [`sum_lanes`]: (l0 + l4) + (l2 + l6), then the odd ones.
#[inline(always)]
fn scores<const HALF: usize>(q: &[f32], keys: &[[f32; LANES]]) -> [f32; POSITIONS] {
    let products = |d: usize| {
        let (q, keys) = (q.get(d)?, keys.get(d)?.as_chunks::<POSITIONS>().0.get(HALF)?);
        Some(keys.map(|key| q * key))
    };
    let add = |mut a: [f32; POSITIONS], b: [f32; POSITIONS]| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    // Adding the first product to 0 would change nothing but the sign of a zero, which exp2 does not see.
    let lane = |l: usize| {
        let mut sum = products(l).unwrap_or([0.0; POSITIONS]);
        let mut d = l + LANES;
        while let Some(products) = products(d) {
            sum = add(sum, products);
            d += LANES;
        }
        sum
    };
    let even = add(add(lane(0), lane(4)), add(lane(2), lane(6)));
    add(even, add(add(lane(1), lane(5)), add(lane(3), lane(7))))
}

/// `out[h] = Σ_t att[h][t] · values[t] / sums[h]`, sequential over positions.
#[inline(always)]
fn weigh<const H: usize>(att: [&mut [f32]; H], sums: [f32; H], heads: &Heads<'_>, mut out: [&mut [f32]; H]) {
    let att = att.map(|att| &*att);
    let inverse = sums.map(|sum| 1.0 / sum);
    let mut first = 0;
    while first + 8 <= heads.head_size {
        weigh_part::<H, 8>(att, inverse, heads, first, &mut out);
        first += 8;
    }
    while first + 2 <= heads.head_size {
        weigh_part::<H, 2>(att, inverse, heads, first, &mut out); // head sizes are even
        first += 2;
    }
}

/// [`weigh`] for dimensions `first` to `first + W`.
#[inline(always)]
fn weigh_part<const H: usize, const W: usize>(
    att: [&[f32]; H],
    inverse: [f32; H],
    heads: &Heads<'_>,
    first: usize,
    out: &mut [&mut [f32]; H],
) {
    let mut sums = [[0.0; W]; H];
    let values = heads.values.chunks_exact(heads.head_size.max(1)); // faster than rows_of
    for (t, value) in values.take(heads.positions).enumerate() {
        let Some(value) = value.get(first..).and_then(|value| value.first_chunk::<W>()) else { return };
        for h in 0..H {
            let Some(att) = att[h].get(t) else { return };
            for i in 0..W {
                sums[h][i] += att * value[i];
            }
        }
    }
    for h in 0..H {
        if let Some(out) = out[h].get_mut(first..).and_then(|out| out.first_chunk_mut::<W>()) {
            *out = sums[h].map(|sum| sum * inverse[h]);
        }
    }
}

/// Turns scores into the numerators of softmax, and returns their sum. What lies behind the last position is left alone.
#[inline(always)]
fn numerators(att: &mut [f32], positions: usize) -> f32 {
    let Some(att) = att.get_mut(..positions) else { return 0.0 };
    let max = att.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    for x in att.iter_mut() {
        *x = exp2_score(*x - max);
    }
    sum(att)
}

fn matmul_f32(w: &[f32], cols: usize, x: &[f32], out: &mut Panel<'_>) {
    if cols < LANES || !cols.is_multiple_of(4) {
        return scalar::matmul_f32(w, cols, x, out);
    }
    for (b, x) in x.chunks_exact(cols).enumerate() {
        let out = out.row(b);
        let (pairs, last) = out.as_chunks_mut::<2>();
        let Some((w, w_last)) = w.split_at_checked(2 * pairs.len() * cols) else { return };
        if !pairs.is_empty() {
            // SAFETY: two rows of cols weights for each pair of outputs, and one row of x; cols is as required.
            unsafe { dot_rows(w.as_ptr(), x, pairs) }
        }
        for (out, w) in last.iter_mut().zip(w_last.chunks_exact(cols)) {
            *out = crate::math::dot(w, x);
        }
    }
}

/// [`dot`](crate::math::dot) of x with pairs of rows.
///
/// # Safety
/// `w` points to `2 · out.len()` rows of `x.len()` numbers, a multiple of four and at least eight. `out` is not empty.
unsafe fn dot_rows(w: *const f32, x: &[f32], out: &mut [[f32; 2]]) {
    static ZERO: [f32; 16] = [0.0; 16];
    // SAFETY: reads 2 · out.len() rows of weights, x and ZERO, writes out.
    unsafe {
        asm!(
            "2:",
            "vldmia {zero}, {{s16-s31}}", // lanes of both rows
            "add {w1}, {w}, {stride}",
            "mov {xp}, {x}",
            "mov {n}, {chunks}",
            "3:",
            "vldmia {xp}!, {{s0-s7}}",
            "vldmia {w}!, {{s8-s15}}",
            "vmul.f32 s8, s8, s0",
            "vmul.f32 s9, s9, s1",
            "vmul.f32 s10, s10, s2",
            "vmul.f32 s11, s11, s3",
            "vmul.f32 s12, s12, s4",
            "vmul.f32 s13, s13, s5",
            "vmul.f32 s14, s14, s6",
            "vmul.f32 s15, s15, s7",
            "vadd.f32 s16, s16, s8",
            "vadd.f32 s17, s17, s9",
            "vadd.f32 s18, s18, s10",
            "vadd.f32 s19, s19, s11",
            "vadd.f32 s20, s20, s12",
            "vadd.f32 s21, s21, s13",
            "vadd.f32 s22, s22, s14",
            "vadd.f32 s23, s23, s15",
            "vldmia {w1}!, {{s8-s15}}",
            "vmul.f32 s8, s8, s0",
            "vmul.f32 s9, s9, s1",
            "vmul.f32 s10, s10, s2",
            "vmul.f32 s11, s11, s3",
            "vmul.f32 s12, s12, s4",
            "vmul.f32 s13, s13, s5",
            "vmul.f32 s14, s14, s6",
            "vmul.f32 s15, s15, s7",
            "vadd.f32 s24, s24, s8",
            "vadd.f32 s25, s25, s9",
            "vadd.f32 s26, s26, s10",
            "vadd.f32 s27, s27, s11",
            "vadd.f32 s28, s28, s12",
            "vadd.f32 s29, s29, s13",
            "vadd.f32 s30, s30, s14",
            "vadd.f32 s31, s31, s15",
            "subs {n}, {n}, #1",
            "bne 3b",
            "cmp {tail}, #0",
            "beq 4f",
            "vldmia {xp}, {{s0-s3}}",
            "vldmia {w}!, {{s8-s11}}",
            "vldmia {w1}!, {{s12-s15}}",
            "vmul.f32 s8, s8, s0",
            "vmul.f32 s9, s9, s1",
            "vmul.f32 s10, s10, s2",
            "vmul.f32 s11, s11, s3",
            "vmul.f32 s12, s12, s0",
            "vmul.f32 s13, s13, s1",
            "vmul.f32 s14, s14, s2",
            "vmul.f32 s15, s15, s3",
            "vadd.f32 s16, s16, s8",
            "vadd.f32 s17, s17, s9",
            "vadd.f32 s18, s18, s10",
            "vadd.f32 s19, s19, s11",
            "vadd.f32 s24, s24, s12",
            "vadd.f32 s25, s25, s13",
            "vadd.f32 s26, s26, s14",
            "vadd.f32 s27, s27, s15",
            "4:", // sum_lanes
            "vadd.f32 s16, s16, s20",
            "vadd.f32 s17, s17, s21",
            "vadd.f32 s18, s18, s22",
            "vadd.f32 s19, s19, s23",
            "vadd.f32 s24, s24, s28",
            "vadd.f32 s25, s25, s29",
            "vadd.f32 s26, s26, s30",
            "vadd.f32 s27, s27, s31",
            "vadd.f32 s16, s16, s18",
            "vadd.f32 s17, s17, s19",
            "vadd.f32 s24, s24, s26",
            "vadd.f32 s25, s25, s27",
            "vadd.f32 s16, s16, s17",
            "vadd.f32 s17, s24, s25",
            "vstmia {out}!, {{s16-s17}}",
            "mov {w}, {w1}",
            "subs {pairs}, {pairs}, #1",
            "bne 2b",
            w = inout(reg) w => _,
            w1 = out(reg) _,
            stride = in(reg) size_of_val(x),
            x = in(reg) x.as_ptr(),
            xp = out(reg) _,
            n = out(reg) _,
            chunks = in(reg) x.len() / LANES,
            tail = in(reg) x.len() % LANES,
            zero = in(reg) ZERO.as_ptr(),
            out = inout(reg) out.as_mut_ptr() => _,
            pairs = inout(reg) out.len() => _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _, out("s6") _, out("s7") _,
            out("s8") _, out("s9") _, out("s10") _, out("s11") _, out("s12") _, out("s13") _, out("s14") _,
            out("s15") _, out("s16") _, out("s17") _, out("s18") _, out("s19") _, out("s20") _, out("s21") _,
            out("s22") _, out("s23") _, out("s24") _, out("s25") _, out("s26") _, out("s27") _, out("s28") _,
            out("s29") _, out("s30") _, out("s31") _,
            options(nostack),
        );
    }
}

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
        let sum = numerators(att, heads.positions);
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
