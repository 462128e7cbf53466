//! Attention with an f32 KV cache.

use core::arch::asm;

use super::asm::eight;
use super::exp2::numerators;
use crate::kernels::blocks::{Head, in_pairs};
use crate::kernels::table::Heads;
use crate::math::LANES;
use crate::matrix::rows_of;

pub(crate) fn attend(heads: &Heads<'_>, att: &mut [f32], out: &mut [f32]) {
    if heads.values.len() < heads.positions * heads.head_size || heads.positions == 0 {
        return; // cannot happen: the cache has values for all positions, and there is at least one
    }
    in_pairs(
        heads,
        att,
        out,
        |mut pair| {
            let sums = pair.each_mut().map(|head| attention_weights(heads, head));
            weigh_pair(heads, pair, sums);
        },
        |[mut last]| {
            let sum = attention_weights(heads, &mut last);
            weigh(heads, &mut last, sum, 0);
        },
    );
}

/// Turns the scores of a head into softmax's numerators, and returns their sum; what lies behind
/// the last position may be anything. Not inlined: one copy saves flash.
#[inline(never)]
fn attention_weights(heads: &Heads<'_>, head: &mut Head<'_>) -> f32 {
    let (blocks, _) = head.att.as_chunks_mut();
    let (keys, _) = heads.keys.as_chunks();
    match head.q.try_into() {
        // SAFETY: `q` has eight dimensions, `blocks` is not empty, and there are keys for each
        // block.
        Ok(q) if !blocks.is_empty() && blocks.len() <= keys.len() => unsafe {
            scores_of_eight_dimensions(q, keys, heads.scale, blocks);
        },
        _ => scores(head.q, heads, blocks),
    }
    head.att.get_mut(..heads.positions).map_or(0.0, numerators)
}

/// Computes the scores of blocks of eight positions. Lanes are formed one by one, in an order that
/// needs three registers of eight for the tree of [`sum_lanes`](crate::math::sum_lanes):
/// (l0 + l4) + (l2 + l6), then the odd ones. Adding the first product to 0 would change nothing but
/// the sign of a zero, which exp2 does not see.
///
/// # Safety
/// `att` is not empty, and `keys` is at least as long.
unsafe fn scores_of_eight_dimensions(
    q: &[f32; LANES],
    keys: &[[[f32; LANES]; LANES]],
    scale: f32,
    att: &mut [[f32; LANES]],
) {
    let keys = keys.as_ptr().cast::<[f32; LANES]>();
    // SAFETY: `att` is not empty; the loop writes its `att.len()` elements from its start, reads as
    // many blocks of keys, and the eight numbers of `q`.
    unsafe {
        asm!(
            "2:",
            "vldmia {q}, {{s24-s31}}",
            "vldmia {k0}!, {{s0-s7}}",
            eight!("vmul.f32", s0, "s24"),
            "vldmia {k4}!, {{s8-s15}}",
            eight!("vmul.f32", s8, "s28"),
            eight!("vadd.f32", s0, s8),
            "vldmia {k2}!, {{s8-s15}}",
            eight!("vmul.f32", s8, "s26"),
            "vldmia {k6}!, {{s16-s23}}",
            eight!("vmul.f32", s16, "s30"),
            eight!("vadd.f32", s8, s16),
            eight!("vadd.f32", s0, s8),
            "vldmia {k0}!, {{s8-s15}}",
            eight!("vmul.f32", s8, "s25"),
            "vldmia {k4}!, {{s16-s23}}",
            eight!("vmul.f32", s16, "s29"),
            eight!("vadd.f32", s8, s16),
            "vldmia {k2}!, {{s16-s23}}",
            eight!("vmul.f32", s16, "s27"),
            "vldmia {k6}!, {{s24-s27}}",
            "vmul.f32 s24, s24, s31",
            "vmul.f32 s25, s25, s31",
            "vmul.f32 s26, s26, s31",
            "vmul.f32 s27, s27, s31",
            "vadd.f32 s16, s16, s24",
            "vadd.f32 s17, s17, s25",
            "vadd.f32 s18, s18, s26",
            "vadd.f32 s19, s19, s27",
            "vldmia {k6}!, {{s24-s27}}",
            "vmul.f32 s24, s24, s31",
            "vmul.f32 s25, s25, s31",
            "vmul.f32 s26, s26, s31",
            "vmul.f32 s27, s27, s31",
            "vadd.f32 s20, s20, s24",
            "vadd.f32 s21, s21, s25",
            "vadd.f32 s22, s22, s26",
            "vadd.f32 s23, s23, s27",
            eight!("vadd.f32", s8, s16),
            eight!("vadd.f32", s0, s8),
            "vmov s8, {scale}",
            eight!("vmul.f32", s0, "s8"),
            "vstmia {att}!, {{s0-s7}}",
            "add {k0}, {k0}, #192", // two of eight dimensions were read
            "add {k2}, {k2}, #192",
            "add {k4}, {k4}, #192",
            "add {k6}, {k6}, #192",
            "subs {n}, {n}, #1",
            "bne.w 2b",
            q = in(reg) q.as_ptr(),
            k0 = inout(reg) keys.wrapping_add(0) => _, // then k1, and so on
            k2 = inout(reg) keys.wrapping_add(2) => _,
            k4 = inout(reg) keys.wrapping_add(4) => _,
            k6 = inout(reg) keys.wrapping_add(6) => _,
            scale = in(reg) scale,
            att = inout(reg) att.as_mut_ptr() => _,
            n = inout(reg) att.len() => _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _, out("s6") _, out("s7") _,
            out("s8") _, out("s9") _, out("s10") _, out("s11") _, out("s12") _, out("s13") _, out("s14") _,
            out("s15") _, out("s16") _, out("s17") _, out("s18") _, out("s19") _, out("s20") _, out("s21") _,
            out("s22") _, out("s23") _, out("s24") _, out("s25") _, out("s26") _, out("s27") _, out("s28") _,
            out("s29") _, out("s30") _, out("s31") _,
            options(nostack),
        );
    }
}

/// Positions whose sums stay in registers.
const POSITIONS: usize = 4;

/// Scores for any head size.
fn scores(q: &[f32], heads: &Heads<'_>, att: &mut [[f32; LANES]]) {
    for (keys, att) in rows_of(heads.keys, heads.head_size).zip(att) {
        let ([low, high], _) = att.as_chunks_mut::<POSITIONS>() else { continue };
        *low = half_scores::<0>(q, keys).map(|score| score * heads.scale);
        *high = half_scores::<1>(q, keys).map(|score| score * heads.scale);
    }
}

/// Sums of half a block for any head size, in the same order.
#[inline(always)]
fn half_scores<const HALF: usize>(q: &[f32], keys: &[[f32; LANES]]) -> [f32; POSITIONS] {
    let products = |d: usize| {
        let (q, keys) = (q.get(d)?, keys.get(d)?.as_chunks::<POSITIONS>().0.get(HALF)?);
        Some(keys.map(|key| q * key))
    };
    let add = |mut a: [f32; POSITIONS], b: [f32; POSITIONS]| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
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

/// `out[h] = Σ_t att[h][t] · values[t] / sums[h]` for two heads, sequential over positions.
fn weigh_pair(heads: &Heads<'_>, [mut head0, mut head1]: [Head<'_>; 2], sums: [f32; 2]) {
    let inverse = sums.map(|sum| 1.0 / sum);
    let att = [head0.att.as_ptr(), head1.att.as_ptr()];
    let eights = head0.out.as_chunks_mut::<LANES>().0.iter_mut().zip(head1.out.as_chunks_mut::<LANES>().0);
    for (values, (out0, out1)) in heads.values.as_chunks::<LANES>().0.iter().zip(eights) {
        let out = [out0.as_mut_ptr(), out1.as_mut_ptr()];
        // SAFETY: `positions` is not 0, and there are as many weights of both heads and rows of
        // values, as attend made sure; `values` points to eight dimensions of the first row.
        unsafe { weigh_eight_dimensions(att, inverse, values.as_ptr(), heads, out) }
    }
    let done = heads.head_size / LANES * LANES;
    if done < heads.head_size {
        weigh(heads, &mut head0, sums[0], done);
        weigh(heads, &mut head1, sums[1], done);
    }
}

/// [`weigh_pair`] for eight dimensions.
///
/// # Safety
/// `positions` is not 0. Both pointers of `att` point to as many weights. `values` points to eight
/// dimensions of the first of as many rows of `head_size` values, and both pointers of `out` to
/// eight numbers.
#[inline(always)]
unsafe fn weigh_eight_dimensions(
    att: [*const f32; 2],
    inverse: [f32; 2],
    values: *const f32,
    heads: &Heads<'_>,
    out: [*mut f32; 2],
) {
    static ZERO: [f32; 2 * LANES] = [0.0; 2 * LANES];
    macro_rules! position {
        () => {
            concat!(
                "vldmia {values}, {{s0-s7}}\n",
                "add {values}, {values}, {stride}\n",
                "vldmia {att0}!, {{s8}}\n",
                "vldmia {att1}!, {{s9}}\n",
                "vmul.f32 s10, s0, s8\n",
                "vmul.f32 s11, s1, s8\n",
                "vmul.f32 s12, s2, s8\n",
                "vmul.f32 s13, s3, s8\n",
                "vadd.f32 s16, s16, s10\n",
                "vadd.f32 s17, s17, s11\n",
                "vadd.f32 s18, s18, s12\n",
                "vadd.f32 s19, s19, s13\n",
                "vmul.f32 s10, s4, s8\n",
                "vmul.f32 s11, s5, s8\n",
                "vmul.f32 s12, s6, s8\n",
                "vmul.f32 s13, s7, s8\n",
                "vadd.f32 s20, s20, s10\n",
                "vadd.f32 s21, s21, s11\n",
                "vadd.f32 s22, s22, s12\n",
                "vadd.f32 s23, s23, s13\n",
                eight!("vmul.f32", s0, "s9"),
                "\n",
                eight!("vadd.f32", s24, s0),
            )
        };
    }
    // SAFETY: the code runs once for each position, of which there is one at least, reads a weight
    // of both heads and eight values, for which the caller vouches, and writes eight numbers of
    // both outputs. `ZERO` has the sixteen numbers that are read.
    unsafe {
        asm!(
            "vldmia {zero}, {{s16-s31}}", // sums of both heads
            "lsrs {n}, {n}, #1", // the passes of two positions, and whether one is left
            "itt cs",
            "addcs {n}, {n}, #1",
            "bcs.w 3f",
            "2:",
            position!(),
            "3:",
            position!(),
            "subs {n}, {n}, #1",
            "bne.w 2b",
            "vmov s8, s9, {inverse0}, {inverse1}",
            eight!("vmul.f32", s16, "s8"),
            eight!("vmul.f32", s24, "s9"),
            "vstmia {out0}, {{s16-s23}}",
            "vstmia {out1}, {{s24-s31}}",
            zero = in(reg) ZERO.as_ptr(),
            values = inout(reg) values => _,
            stride = in(reg) heads.head_size * size_of::<f32>(),
            n = inout(reg) heads.positions => _,
            att0 = inout(reg) att[0] => _,
            att1 = inout(reg) att[1] => _,
            inverse0 = in(reg) inverse[0],
            inverse1 = in(reg) inverse[1],
            out0 = in(reg) out[0],
            out1 = in(reg) out[1],
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _, out("s6") _, out("s7") _,
            out("s8") _, out("s9") _, out("s10") _, out("s11") _, out("s12") _, out("s13") _, out("s16") _,
            out("s17") _, out("s18") _, out("s19") _, out("s20") _, out("s21") _, out("s22") _, out("s23") _,
            out("s24") _, out("s25") _, out("s26") _, out("s27") _, out("s28") _, out("s29") _, out("s30") _,
            out("s31") _,
            options(nostack),
        );
    }
}

/// `out = Σ_t att[t] · values[t] / sum` for one head, from dimension `first` on.
fn weigh(heads: &Heads<'_>, head: &mut Head<'_>, sum: f32, first: usize) {
    let inverse = 1.0 / sum;
    for (i, out) in head.out.chunks_mut(LANES).enumerate().skip(first / LANES) {
        let mut sums = [0.0; LANES];
        for (att, value) in head.att.iter().take(heads.positions).zip(rows_of(heads.values, heads.head_size)) {
            for (sum, value) in sums.iter_mut().zip(value.iter().skip(i * LANES)) {
                *sum += att * value;
            }
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * inverse);
    }
}
