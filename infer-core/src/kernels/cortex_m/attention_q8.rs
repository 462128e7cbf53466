//! Attention with an int8 KV cache, for the DSP extension.

use core::arch::asm;

use super::asm::{eight, with_dsp};
use super::exp2::numerators;
use crate::kernels::scalar;
use crate::kernels::table::{HeadsQ8, Q8_POSITIONS};
use crate::math::{LANES, ROUND, thumb};
use crate::matrix::{rows_of, rows_of_mut};
use crate::plan::block_len;

/// [`scalar::attend_q8`] with two products per instruction.
pub(crate) fn attend_q8(heads: &HeadsQ8<'_>, att: &mut [f32], out: &mut [f32]) {
    let (head_size, slots) = (heads.head_size, block_len(heads.positions));
    let q = rows_of(heads.q, head_size).zip(heads.q_scales);
    let att = rows_of_mut(att, slots);
    let (Some(keys), Some(values)) = (heads.keys.get(..slots * head_size), heads.values.get(..slots * head_size))
    else {
        return;
    };
    let (Some(key_scales), Some(value_scales)) = (heads.key_scales.get(..slots), heads.value_scales.get(..slots))
    else {
        return;
    };
    let largest_scale = thumb::largest_magnitude(value_scales.get(..heads.positions).unwrap_or(&[]));
    let (unit, factor) = scalar::weight_unit(largest_scale);
    for (((q, q_scale), att), out) in q.zip(att).zip(rows_of_mut(out, head_size)) {
        let scale = q_scale * heads.scale;
        match q.try_into() {
            // SAFETY: `att` has `slots` scores, a multiple of eight that is not 0; `keys` and
            // `key_scales` were cut to as many positions of eight dimensions.
            Ok(q) if slots > 0 => unsafe { scores_of_eight_dimensions(q, scale, keys, key_scales, att) },
            _ => scores(q, scale, keys, key_scales, att),
        }
        let sum = att.get_mut(..heads.positions).map_or(0.0, numerators);
        let weights = quantize_weights(att, factor, value_scales, heads.positions);
        weigh(weights, values, head_size, unit / sum, out);
    }
}

/// [`scores`] for heads of eight dimensions.
///
/// # Safety
/// The length of `att` is a multiple of eight and not 0. There are keys of eight dimensions and
/// scales for as many positions.
unsafe fn scores_of_eight_dimensions(q: &[i8; 8], scale: f32, keys: &[i8], key_scales: &[f32], att: &mut [f32]) {
    let [q0, q1, q2, q3, q4, q5, q6, q7] = *q;
    let (low, high) = (word(&[q0, q1, q2, q3]), word(&[q4, q5, q6, q7]));
    #[rustfmt::skip] // an instruction per line
    macro_rules! two_positions {
        ($sum0:literal, $sum1:literal) => {
            concat!(
                "ldr {k0}, [{keys}], #4\n", // not LDRD, as the caller's memory for keys may be unaligned
                "ldr {k1}, [{keys}], #4\n",
                "sxtb16 {t}, {k0}\n",
                "sxtb16 {k0}, {k0}, ror #8\n",
                "smuad {sum0}, {t}, {q02}\n",
                "smlad {sum0}, {k0}, {q13}, {sum0}\n",
                "sxtb16 {t}, {k1}\n",
                "sxtb16 {k1}, {k1}, ror #8\n",
                "smuad {sum1}, {t}, {q02}\n",
                "smlad {sum1}, {k1}, {q13}, {sum1}\n",
                "ldr {k0}, [{keys}, #24]\n",
                "ldr {k1}, [{keys}, #28]\n",
                "sxtb16 {t}, {k0}\n",
                "sxtb16 {k0}, {k0}, ror #8\n",
                "smlad {sum0}, {t}, {q46}, {sum0}\n",
                "smlad {sum0}, {k0}, {q57}, {sum0}\n",
                "sxtb16 {t}, {k1}\n",
                "sxtb16 {k1}, {k1}, ror #8\n",
                "smlad {sum1}, {t}, {q46}, {sum1}\n",
                "smlad {sum1}, {k1}, {q57}, {sum1}\n",
                "vmov ", $sum0, ", ", $sum1, ", {sum0}, {sum1}\n",
            )
        };
    }
    // SAFETY: the loop runs once for each eight scores of `att`, which is not empty. It reads 64
    // bytes of keys, by LDR at any address, and eight scales, for which the caller vouches, and
    // writes the scores.
    unsafe {
        asm!(
            with_dsp!(),
            "vmov s16, {sum0}",
            "2:",
            two_positions!("s0", "s1"),
            two_positions!("s2", "s3"),
            two_positions!("s4", "s5"),
            two_positions!("s6", "s7"),
            "add {keys}, {keys}, #32",
            "vldmia {scales}!, {{s8-s15}}",
            eight!("vcvt.f32.s32", s0),
            eight!("vmul.f32", s0, s8),
            eight!("vmul.f32", s0, "s16"),
            "vstmia {att}!, {{s0-s7}}",
            "cmp {att}, {end}",
            "bne.w 2b",
            keys = inout(reg) keys.as_ptr() => _,
            scales = inout(reg) key_scales.as_ptr() => _,
            att = inout(reg) att.as_mut_ptr() => _,
            end = in(reg) att.as_ptr_range().end,
            q02 = in(reg) sxtb16(low),
            q13 = in(reg) sxtb16_high(low),
            q46 = in(reg) sxtb16(high),
            q57 = in(reg) sxtb16_high(high),
            k0 = out(reg) _,
            k1 = out(reg) _,
            t = out(reg) _,
            sum0 = inout(reg) scale => _,
            sum1 = out(reg) _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _, out("s6") _, out("s7") _,
            out("s8") _, out("s9") _, out("s10") _, out("s11") _, out("s12") _, out("s13") _, out("s14") _,
            out("s15") _, out("s16") _,
            options(nostack),
        );
    }
}

/// Scores for any head size.
fn scores(q: &[i8], scale: f32, keys: &[i8], key_scales: &[f32], att: &mut [f32]) {
    let blocks = rows_of(keys, LANES * q.len());
    let scales = key_scales.as_chunks::<LANES>().0;
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

/// Puts 16-bit integers in the place of the weights, two in a word: of each four, the first and the
/// third, then the second and the fourth. `scales` is as long as `att`, so it goes on behind the
/// last position.
fn quantize_weights<'a>(att: &'a mut [f32], factor: f32, scales: &[f32], positions: usize) -> &'a [[u32; 4]] {
    let words = bytemuck::cast_slice_mut::<f32, u32>(att);
    if words.is_empty() || words.len() != scales.len() {
        return &[];
    }
    // SAFETY: `words` is not empty, its length is a multiple of eight, and `scales` is as long. The
    // loop reads four of both, and writes two words to the start of `words`, never behind those
    // read.
    unsafe {
        asm!(
            with_dsp!(),
            "vmov s8, s9, {factor}, {round}",
            "2:",
            "vldmia {weights}!, {{s0-s3}}",
            "vldmia {scales}!, {{s4-s7}}",
            "vmul.f32 s4, s4, s8",
            "vmul.f32 s5, s5, s8",
            "vmul.f32 s6, s6, s8",
            "vmul.f32 s7, s7, s8",
            "vmul.f32 s0, s0, s4",
            "vmul.f32 s1, s1, s5",
            "vmul.f32 s2, s2, s6",
            "vmul.f32 s3, s3, s7",
            "vadd.f32 s0, s0, s9",
            "vadd.f32 s1, s1, s9",
            "vadd.f32 s2, s2, s9",
            "vadd.f32 s3, s3, s9",
            "vmov {a}, {b}, s0, s1",
            "vmov {c}, {d}, s2, s3",
            "pkhbt {a}, {a}, {c}, lsl #16",
            "pkhbt {b}, {b}, {d}, lsl #16",
            "strd {a}, {b}, [{out}], #8", // behind the weights that are still to be read
            "cmp {weights}, {end}",
            "bne 2b",
            weights = inout(reg) words.as_ptr() => _,
            end = in(reg) words.as_ptr_range().end,
            scales = inout(reg) scales.as_ptr() => _,
            out = inout(reg) words.as_mut_ptr() => _,
            factor = in(reg) factor,
            round = in(reg) ROUND,
            a = out(reg) _,
            b = out(reg) _,
            c = out(reg) _,
            d = out(reg) _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _, out("s6") _, out("s7") _,
            out("s8") _, out("s9") _,
            options(nostack),
        );
    }
    // Scales and scores behind the last position may be anything, and so may the integers there.
    for t in positions..words.len() {
        if let Some(pair) = words.get_mut(t / 4 * 2 + t % 2) {
            *pair &= if t % 4 < 2 { 0xffff_0000 } else { 0x0000_ffff };
        }
    }
    words.get(..words.len() / 2).unwrap_or(&[]).as_chunks().0
}

/// Dimensions with integer sums at a time, before these become f32.
const DIMENSIONS: usize = 8;

/// `out = Σ_t weights[t] · values[t] · scale`; values are (blocks of eight positions, head_size,
/// 8).
fn weigh(weights: &[[u32; 4]], values: &[i8], head_size: usize, scale: f32, out: &mut [f32]) {
    const BLOCKS: usize = Q8_POSITIONS / LANES;
    for (i, out) in out.chunks_mut(DIMENSIONS).enumerate() {
        let mut totals = [0.0; DIMENSIONS];
        let values = values.chunks((BLOCKS * LANES * head_size).max(1));
        for (weights, values) in weights.chunks(BLOCKS).zip(values) {
            let mut sums = [[0; 2]; DIMENSIONS / 2];
            let (Some(values), Some(sums)) = (values.get(i * DIMENSIONS * LANES..), sums.get_mut(..out.len() / 2))
            else {
                return;
            };
            if !sums.is_empty() {
                // SAFETY: neither is empty (`chunks` gives no empty one). `values` begins at
                // dimension i · DIMENSIONS of the first block; each block of weights has
                // `head_size` dimensions of eight values, at least as many from there on as `sums`
                // asks for.
                unsafe { weigh_dimensions(weights, values.as_ptr(), LANES * head_size, sums) }
            }
            totals.iter_mut().zip(sums.as_flattened()).for_each(|(total, sum)| *total += *sum as f32);
        }
        out.iter_mut().zip(totals).for_each(|(out, total)| *out = total * scale);
    }
}

/// Adds up integer products of weights and values, two dimensions at a time.
///
/// # Safety
/// Neither `weights` nor `sums` is empty. For each block of weights there are `2 · sums.len()`
/// dimensions of eight values: at `values` for the first block, `stride` bytes further for the next
/// one, and so on.
unsafe fn weigh_dimensions(weights: &[[u32; 4]], values: *const i8, stride: usize, sums: &mut [[i32; 2]]) {
    // Goes to s0 to s6, as core registers are few.
    let out = sums.as_mut_ptr_range();
    let outer = [0, 0, weights.as_ptr() as usize, weights.len(), values as usize, out.start as usize, out.end as usize];
    #[rustfmt::skip] // an instruction per line
    macro_rules! dimension {
        ($low:literal, $high:literal, $sum:literal) => {
            concat!(
                "ldr {a}, ", $low, "\n",
                "ldr {b}, ", $high, "\n",
                "sxtb16 {t}, {a}\n",
                "sxtb16 {a}, {a}, ror #8\n",
                "smlad ", $sum, ", {t}, r2, ", $sum, "\n",
                "smlad ", $sum, ", {a}, r3, ", $sum, "\n",
                "sxtb16 {t}, {b}\n",
                "sxtb16 {a}, {b}, ror #8\n",
                "smlad ", $sum, ", {t}, r4, ", $sum, "\n",
                "smlad ", $sum, ", {a}, r5, ", $sum, "\n",
            )
        };
    }
    // SAFETY: the inner loop runs once for each block of weights, the outer one for each element of
    // `sums`; neither is empty. A pass reads the weights of a block and sixteen values, by LDR at
    // any address, for which the caller vouches. `outer` has the seven words that are read.
    unsafe {
        asm!(
            with_dsp!(),
            "vldmia {a}, {{s0-s6}}",
            "2:",
            "vmov {sum0}, {sum1}, s0, s1",
            "vmov {weights}, {n}, s2, s3",
            "vmov {values}, s4",
            "add {a}, {values}, #16",
            "vmov s4, {a}",
            "3:",
            "ldmia.w {weights}!, {{r2-r5}}",
            dimension!("[{values}]", "[{values}, #4]", "{sum0}"),
            dimension!("[{values}, #8]", "[{values}, #12]", "{sum1}"),
            "add {values}, {values}, {stride}",
            "subs {n}, {n}, #1",
            "bne.w 3b",
            "vmov {a}, {b}, s5, s6",
            "strd {sum0}, {sum1}, [{a}], #8",
            "vmov s5, {a}",
            "cmp {a}, {b}",
            "bne.w 2b",
            weights = out(reg) _,
            n = out(reg) _,
            values = out(reg) _,
            stride = in(reg) stride,
            sum0 = out(reg) _,
            sum1 = out(reg) _,
            a = inout(reg) outer.as_ptr() => _,
            b = out(reg) _,
            t = out(reg) _,
            out("r2") _, out("r3") _, out("r4") _, out("r5") _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _, out("s6") _,
            options(nostack),
        );
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
    // SAFETY: the block reads and writes registers only.
    unsafe {
        asm!(
            with_dsp!(),
            "sxtb16 {}, {}",
            lateout(reg) halves,
            in(reg) bytes,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    halves
}

/// Bytes 1 and 3 as 16-bit integers.
#[inline(always)]
fn sxtb16_high(bytes: u32) -> u32 {
    let halves;
    // SAFETY: the block reads and writes registers only.
    unsafe {
        asm!(
            with_dsp!(),
            "sxtb16 {}, {}, ror #8",
            lateout(reg) halves,
            in(reg) bytes,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    halves
}

/// The sum of both products of 16-bit integers, and of `sum`.
#[inline(always)]
fn smlad(a: u32, b: u32, sum: i32) -> i32 {
    let result;
    // SAFETY: the block reads and writes registers only.
    unsafe {
        asm!(
            with_dsp!(),
            "smlad {}, {}, {}, {}",
            lateout(reg) result,
            in(reg) a,
            in(reg) b,
            in(reg) sum,
            options(pure, nomem, nostack),
        );
    }
    result
}
