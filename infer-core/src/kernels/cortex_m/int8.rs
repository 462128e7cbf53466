//! The int8 matrix product and its input, for the DSP extension.

use core::arch::asm;
use core::mem::MaybeUninit;
use core::ops::Range;

use super::asm::{eight, with_dsp};
use super::scale::{add_groups, scale};
use crate::math::{LANES, ROUND, sum_lanes, thumb};
use crate::matrix::{Q8Matrix, rows_of, rows_of_mut};
use crate::panel::Panel;
use crate::quant::factor_for;

/// [`quantize`](crate::quant::quantize), widened for SMLAD: of each four values, the first and the
/// third share a word, then the second and the fourth, as SXTB16 unpacks weights.
pub(super) fn quantize(x: &[f32], group_size: usize, q: &mut [i8], s: &mut [f32]) {
    let Ok(q) = bytemuck::try_cast_slice_mut::<i8, [u32; 2]>(q) else { return };
    for ((x, q), s) in rows_of(x, group_size).zip(rows_of_mut(q, group_size / 4)).zip(s) {
        let factor = factor_for(thumb::largest_magnitude(x), s);
        let ((eights, last), (pairs, q_last)) = (x.as_chunks::<8>(), q.as_chunks_mut::<2>());
        if !eights.is_empty() && eights.len() == pairs.len() {
            // SAFETY: both have the same length, which is not 0.
            unsafe { round_and_widen(eights, factor, pairs) }
        }
        for (q, x) in q_last.iter_mut().zip(last.as_chunks::<4>().0) {
            let [a, b, c, d] = x.map(|x| (x * factor + ROUND).to_bits());
            *q = [a & 0xffff | c << 16, b & 0xffff | d << 16];
        }
    }
}

/// Rounds `x · factor`, and writes words as [`quantize`] says.
///
/// # Safety
/// `x` and `q` have the same length, which is not 0.
unsafe fn round_and_widen(x: &[[f32; 8]], factor: f32, q: &mut [[[u32; 2]; 2]]) {
    // SAFETY: `x` is not empty; the loop reads its `x.len()` elements of eight numbers from its
    // start, and writes as many elements of four words from the start of `q`.
    unsafe {
        asm!(
            with_dsp!(),
            "vmov s8, s9, {factor}, {round}",
            "2:",
            "vldmia {x}!, {{s0-s7}}",
            eight!("vmul.f32", s0, "s8"),
            eight!("vadd.f32", s0, "s9"), // the integer stands in the low bits
            "vmov r0, r1, s0, s1",
            "vmov r2, r3, s2, s3",
            "pkhbt r0, r0, r2, lsl #16",
            "pkhbt r1, r1, r3, lsl #16",
            "vmov r2, r3, s4, s5",
            "vmov r4, r5, s6, s7",
            "pkhbt r2, r2, r4, lsl #16",
            "pkhbt r3, r3, r5, lsl #16",
            "stmia {q}!, {{r0-r3}}",
            "subs {n}, {n}, #1",
            "bne.w 2b",
            x = inout(reg) x.as_ptr() => _,
            q = inout(reg) q.as_mut_ptr() => _,
            n = inout(reg) x.len() => _,
            factor = in(reg) factor,
            round = in(reg) ROUND,
            out("r0") _, out("r1") _, out("r2") _, out("r3") _, out("r4") _, out("r5") _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _, out("s6") _, out("s7") _,
            out("s8") _, out("s9") _,
            options(nostack),
        );
    }
}

/// Room for sums of groups before they are scaled: those of as many pairs of rows as fit.
const SUMS: usize = 64;

pub(super) fn matmul_q8(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>) {
    let Ok(x) = bytemuck::try_cast_slice::<i8, [i16; 4]>(x) else { return };
    let (cols, group_size) = (w.cols, w.group_size);
    let groups = cols.checked_div(group_size).unwrap_or(0);
    for (b, (x, xs)) in rows_of(x, cols / 4).zip(rows_of(xs, groups)).enumerate() {
        let out = out.row(b);
        let whole = w.q.len() >= out.len() * cols && w.s.len() >= out.len() * groups && groups <= SUMS;
        let aligned = w.q.as_ptr().cast::<u32>().is_aligned() && x.as_ptr().cast::<u32>().is_aligned();
        let (pairs, rest) = match group_sums_of(group_size) {
            Some(kernel) if whole && aligned && out.len() >= 2 => {
                let (pairs, rest) = out.as_chunks_mut::<2>();
                // SAFETY: `w` has two rows of weights and of scales for each pair, since it has as
                // many rows as outputs (`whole`), and there is a pair at least. There are at most
                // SUMS groups, of the kernel's size. Weights and x are aligned to four.
                unsafe { dot_pairs(w, x, xs, kernel, pairs) }
                (pairs.len(), rest)
            }
            _ => (0, out),
        };
        let rows = rows_of(w.q, cols).zip(rows_of(w.s, groups)).skip(2 * pairs);
        for (out, (q, s)) in rest.iter_mut().zip(rows) {
            *out = dot_q8(q, s, x, xs, group_size);
        }
    }
}

/// Computes the outputs of pairs of rows.
///
/// # Safety
/// `w` has two rows of weights and of scales for each pair, and there is a pair at least. There are
/// at most [`SUMS`] groups, of the kernel's size. Weights and x are aligned to four, as LDRD and
/// LDM ask for.
unsafe fn dot_pairs(w: &Q8Matrix<'_>, x: &[[i16; 4]], xs: &[f32], kernel: GroupSums, pairs: &mut [[f32; 2]]) {
    let (mut q, mut s) = (w.q.as_ptr(), w.s.as_ptr());
    if let [xs] = xs {
        // Sums stand in the place of outputs until they are scaled.
        let sums = pairs.as_mut_ptr_range();
        // SAFETY: the caller vouches for the rows; there is room for a sum per row.
        unsafe { (kernel.rows)(q, w.cols, x.as_ptr(), 1, sums.start.cast()..sums.end.cast()) }
        return scale(pairs.as_flattened_mut(), w.s, *xs);
    }
    let mut sums: [MaybeUninit<[i32; 2]>; SUMS] = [const { MaybeUninit::uninit() }; SUMS];
    for pairs in pairs.chunks_mut((SUMS / xs.len().max(1)).max(1)) {
        let Some(sums) = sums.get_mut(..pairs.len() * xs.len()) else { return };
        let sums = sums.as_mut_ptr_range();
        // SAFETY: the caller vouches for two rows of weights and scales for each of these pairs, as
        // `q` and `s` move on with them; `sums` has room for the sums of all their groups, which
        // the first call writes and the second reads.
        unsafe {
            (kernel.groups)(q, w.cols, x.as_ptr(), xs.len(), sums.start.cast()..sums.end.cast());
            add_groups(sums.start.cast(), s, xs, pairs);
        }
        q = q.wrapping_add(2 * pairs.len() * w.cols);
        s = s.wrapping_add(2 * pairs.len() * xs.len());
    }
}

/// Sums up the products of groups of x with those of pairs of rows, one pair after the other. The
/// arguments are the weights, their number in a row, x, the groups of a row, and the place for the
/// sums.
///
/// # Safety
/// The place for the sums holds a `[i32; 2]` for each group of a whole number of pairs, at least
/// one, and there are weights for as many pairs of rows. Weights and x are aligned to four, and
/// then so are all rows and groups, as their sizes are multiples of 16.
type SumsOfPairs = unsafe fn(*const i8, usize, *const [i16; 4], usize, Range<*mut [i32; 2]>);

/// [`SumsOfPairs`] for one size of groups.
#[derive(Clone, Copy)]
struct GroupSums {
    /// For rows of one group.
    rows: SumsOfPairs,
    /// For rows of several groups.
    groups: SumsOfPairs,
}

/// The kernels for the sizes of groups that llama2.c's exporter and ours choose.
fn group_sums_of(group_size: usize) -> Option<GroupSums> {
    match group_size {
        64 => Some(GroupSums { rows: rows_of_64, groups: groups_of_64 }),
        32 => Some(GroupSums { rows: rows_of_32, groups: groups_of_32 }),
        16 => Some(GroupSums { rows: rows_of_16, groups: groups_of_16 }),
        _ => None,
    }
}

macro_rules! eight_columns {
    ($first:ident, $w1:literal) => {
        concat!(
            "ldmia.w {x}!, {{r2-r5}}\n",
            eight_columns!(@row "[{w0}], #8", "{sum0}", $first),
            eight_columns!(@row $w1, "{sum1}", $first),
        )
    };
    (@row $w:literal, $sum:literal, $first:ident) => {
        concat!(
            "ldrd {a}, {b}, ", $w, "\n",
            "sxtb16 {t}, {a}\n",
            "sxtb16 {a}, {a}, ror #8\n",
            eight_columns!(@multiply $sum, $first),
            "smlad ", $sum, ", {a}, r3, ", $sum, "\n",
            "sxtb16 {t}, {b}\n",
            "sxtb16 {a}, {b}, ror #8\n",
            "smlad ", $sum, ", {t}, r4, ", $sum, "\n",
            "smlad ", $sum, ", {a}, r5, ", $sum, "\n",
        )
    };
    (@multiply $sum:literal, first) => {
        concat!("smuad ", $sum, ", {t}, r2\n")
    };
    (@multiply $sum:literal, next) => {
        concat!("smlad ", $sum, ", {t}, r2, ", $sum, "\n")
    };
}

/// Defines [`SumsOfPairs`] for rows of a single group. The second row is reached from the first, as
/// their distance is known.
macro_rules! sums_of_rows {
    ($name:ident, $w1:literal, $group_size:literal, $($eight:ident)*) => {
        unsafe fn $name(w: *const i8, _: usize, x: *const [i16; 4], _: usize, sums: Range<*mut [i32; 2]>) {
            // SAFETY: the loop runs once for each sum, of which there is one at least. It reads a
            // group of two rows and of x, for which the caller vouches, and writes the sum.
            unsafe {
                asm!(
                    with_dsp!(),
                    "2:",
                    $(eight_columns!($eight, $w1),)*
                    "strd {sum0}, {sum1}, [{out}], #8",
                    concat!("add {w0}, {w0}, #", $group_size),
                    concat!("sub {x}, {x}, #2 * ", $group_size),
                    "cmp {out}, {end}",
                    "bne.w 2b",
                    w0 = inout(reg) w => _,
                    x = inout(reg) x => _,
                    out = inout(reg) sums.start => _,
                    end = in(reg) sums.end,
                    a = out(reg) _,
                    b = out(reg) _,
                    t = out(reg) _,
                    sum0 = out(reg) _,
                    sum1 = out(reg) _,
                    out("r2") _, out("r3") _, out("r4") _, out("r5") _,
                    options(nostack),
                );
            }
        }
    };
}

/// Defines [`SumsOfPairs`] for rows of several groups.
macro_rules! sums_of_groups {
    ($name:ident, $($eight:ident)*) => {
        unsafe fn $name(w: *const i8, cols: usize, x: *const [i16; 4], groups: usize, sums: Range<*mut [i32; 2]>) {
            // Goes to s0 to s4, as core registers are few: the end of the sums of this pair, the
            // end of all sums, and the distances.
            let pair_bytes = groups * size_of::<[i32; 2]>();
            let outer = [sums.start as usize + pair_bytes, sums.end as usize, 2 * cols, cols, pair_bytes];
            // SAFETY: the inner loop runs once for each sum of a pair, the outer one for each pair;
            // there is one at least of both. A pass reads a group of two rows and of x, for which
            // the caller vouches, and writes the sum. `outer` has the five words that are read.
            unsafe {
                asm!(
                    with_dsp!(),
                    "vldmia {a}, {{s0-s4}}",
                    "2:",
                    $(eight_columns!($eight, "[{w1}], #8"),)*
                    "strd {sum0}, {sum1}, [{out}], #8",
                    "vmov {t}, s0",
                    "cmp {out}, {t}",
                    "bne.w 2b",
                    "vmov {a}, {b}, s2, s3", // the next pair
                    "sub {x}, {x}, {a}",
                    "mov {w0}, {w1}",
                    "add {w1}, {w1}, {b}",
                    "vmov {a}, {b}, s0, s1",
                    "cmp {a}, {b}",
                    "vmov {b}, s4",
                    "add {a}, {a}, {b}",
                    "vmov s0, {a}",
                    "bne.w 2b",
                    w0 = inout(reg) w => _,
                    w1 = inout(reg) w.wrapping_add(cols) => _,
                    x = inout(reg) x => _,
                    out = inout(reg) sums.start => _,
                    a = inout(reg) outer.as_ptr() => _,
                    b = out(reg) _,
                    t = out(reg) _,
                    sum0 = out(reg) _,
                    sum1 = out(reg) _,
                    out("r2") _, out("r3") _, out("r4") _, out("r5") _,
                    out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _,
                    options(nostack),
                );
            }
        }
    };
}

sums_of_rows!(rows_of_64, "[{w0}, #56]", "64", first next next next next next next next);
sums_of_rows!(rows_of_32, "[{w0}, #24]", "32", first next next next);
sums_of_rows!(rows_of_16, "[{w0}, #8]", "16", first next);
sums_of_groups!(groups_of_64, first next next next next next next next);
sums_of_groups!(groups_of_32, first next next next);
sums_of_groups!(groups_of_16, first next);

/// [`dot_q8`](crate::math::dot_q8) with x as [`quantize`] widens it, for any group size.
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
