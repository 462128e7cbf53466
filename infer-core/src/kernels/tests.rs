//! Every table that this machine can run, against the scalar one, bit for bit. Chips run the image
//! `kernels` of firmware-example.

use std::format;
use std::vec;
use std::vec::Vec;

use super::scalar::SCALAR;

use super::*;
use crate::config::WeightType;
use crate::math::LANES;
use crate::matrix::Q8Matrix;
use crate::panel::Panel;
use crate::plan::{XQ_BYTES, block_len};
use crate::scratch::{att_len, packed_len};

/// Numbers from -1 to 1, the same in every run.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn f32s(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.uniform()).collect()
    }

    /// Also subnormal numbers and zeros of both signs, and what a kernel makes of damage: one NaN,
    /// and an infinity.
    fn odd_f32s(&mut self, n: usize, damage: bool) -> Vec<f32> {
        let mut x = self.f32s(n);
        for (i, x) in x.iter_mut().enumerate() {
            *x *= [1.0, 1e-20, 1e-39, 0.0, -0.0, 1e10][i % 7 % 6];
        }
        if damage {
            x[n / 2] = f32::NAN;
            x[n / 3] = f32::INFINITY;
        }
        x
    }

    fn i8s(&mut self, n: usize) -> Vec<i8> {
        (0..n).map(|_| (self.uniform() * 128.0) as i8).collect()
    }
}

/// NaNs are all alike: their payload is nobody's.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect()
}

/// Whether all tables compute what the scalar one does.
fn check(what: &str, run: impl Fn(&Kernels) -> Vec<f32>) {
    let want = run(&SCALAR);
    for kernels in Kernels::all() {
        assert_eq!(bits(&run(&kernels)), bits(&want), "{}: {what}", kernels.name);
    }
}

/// The output (batch, rows) of a product.
fn product(rows: usize, batch: usize, run: impl FnOnce(&mut Panel<'_>)) -> Vec<f32> {
    let mut out = vec![9.0; batch * rows];
    run(&mut Panel::new(&mut out, rows));
    out
}

#[test]
fn tables_by_name() {
    let names: Vec<_> = Kernels::all().map(|kernels| kernels.name).collect();
    std::println!("tables: {}", names.join(" "));
    assert_eq!(names.first(), Some(&"scalar"));
}

#[test]
fn f32_products() {
    let mut random = Random(1);
    for rows in [1, 3, 4, 8, 9, 17, 35, 250] {
        for cols in [1, 2, 7, 8, 12, 30, 64, 65, 172, 4100] {
            for batch in [1, 3] {
                let (w, x) = (random.f32s(rows * cols), random.odd_f32s(batch * cols, false));
                check(&format!("{rows} rows, {cols} columns, {batch} of x"), |kernels| {
                    product(rows, batch, |out| (kernels.matmul_f32)(&w, cols, &x, out))
                });
            }
        }
    }
}

#[test]
fn products_of_a_few_long_rows() {
    let mut random = Random(9);
    for (rows, cols) in [(3, 12_000), (8, 12_032), (11, 4_096)] {
        let (w, x) = (random.f32s(rows * cols), random.f32s(2 * cols));
        check(&format!("{rows} rows, {cols} columns"), |kernels| {
            product(rows, 2, |out| (kernels.matmul_f32)(&w, cols, &x, out))
        });
    }
}

#[test]
fn int8_products() {
    let mut random = Random(2);
    for group_size in [4, 12, 16, 32, 48, 64, 96, 128, 1024] {
        for groups in [1, 2, 7, 9, 33] {
            for (rows, batch) in [(1, 1), (8, 1), (13, 3), (35, 2)] {
                let cols = groups * group_size;
                let (q, s) = (random.i8s(rows * cols), random.f32s(rows * groups));
                let mut x = random.odd_f32s(batch * cols, groups == 7);
                if batch > 1 {
                    x[..cols].fill(0.0); // 0 times a negative scale is -0, to which lanes of 0 are added
                }
                let w = Q8Matrix { q: &q, s: &s, rows, cols, group_size };
                check(&format!("{rows} rows, {groups} groups of {group_size}, {batch} of x"), |kernels| {
                    let (mut xq, mut xs) = (vec![0; XQ_BYTES * x.len()], vec![0.0; batch * groups]);
                    (kernels.quantize)(&x, group_size, &mut xq, &mut xs);
                    product(rows, batch, |out| (kernels.matmul_q8)(&w, &xq, &xs, out))
                });
            }
        }
    }
}

/// The tables' kernels for many tokens.
fn batches() -> impl Iterator<Item = (&'static str, Batch)> {
    Kernels::all().filter_map(|kernels| Some((kernels.name, kernels.batch?)))
}

/// Scratch for a product, which begins anywhere and holds anything.
fn scratch(cols: usize, weights: WeightType) -> Vec<f32> {
    vec![f32::NAN; packed_len(cols, weights)]
}

#[test]
fn f32_products_of_many_tokens() {
    let mut random = Random(6);
    for rows in [1, 7, 16, 31, 32, 33, 100] {
        for cols in [1, 3, 4, 7, 8, 12, 30, 65, 172, 519, 1030] {
            for n_tokens in [8, 9, 16, 29] {
                let (w, x) = (random.f32s(rows * cols), random.odd_f32s(n_tokens * cols, cols == 30));
                let want = product(rows, n_tokens, |out| (SCALAR.matmul_f32)(&w, cols, &x, out));
                for (name, kernels) in batches() {
                    let mut packed = scratch(cols, WeightType::F32);
                    let out = product(rows, n_tokens, |out| (kernels.matmul_f32)(&w, cols, &x, &mut packed, out));
                    assert_eq!(bits(&out), bits(&want), "{name}: {rows} rows, {cols} columns, {n_tokens} tokens");
                }
            }
        }
    }
}

#[test]
fn int8_products_of_many_tokens() {
    let mut random = Random(7);
    for group_size in [4, 12, 20, 32, 64, 128, 1024] {
        for groups in [1, 2, 5, 8, 9, 19] {
            for (rows, n_tokens) in [(1, 8), (16, 9), (33, 16), (70, 21)] {
                let cols = groups * group_size;
                if cols < 16 {
                    continue;
                }
                let (mut q, s) = (random.i8s(rows * cols), random.f32s(rows * groups));
                q[cols / 2] = -128;
                let mut x = random.odd_f32s(n_tokens * cols, groups == 5);
                x[..cols].fill(0.0); // 0 times a negative scale is -0, to which lanes of 0 are added
                let w = Q8Matrix { q: &q, s: &s, rows, cols, group_size };
                let (mut xq, mut xs) = (vec![0; XQ_BYTES * x.len()], vec![0.0; n_tokens * groups]);
                (SCALAR.quantize)(&x, group_size, &mut xq, &mut xs);
                let want = product(rows, n_tokens, |out| (SCALAR.matmul_q8)(&w, &xq, &xs, out));
                for (name, kernels) in batches() {
                    let rows_of_x = x.chunks(cols).zip(xq.chunks_mut(XQ_BYTES * cols)).zip(xs.chunks_mut(groups));
                    rows_of_x.for_each(|((x, xq), xs)| (kernels.quantize)(x, group_size, xq, xs));
                    let mut packed = scratch(cols, WeightType::Q8 { group_size });
                    let out = product(rows, n_tokens, |out| (kernels.matmul_q8)(&w, &xq, &xs, &mut packed, out));
                    let what = format!("{name}: {rows} rows, {groups} groups of {group_size}, {n_tokens} tokens");
                    assert_eq!(bits(&out), bits(&want), "{what}");
                }
            }
        }
    }
}

#[test]
fn int8_products_of_many_tokens_at_their_limits() {
    // The largest activations, of both signs, with the largest weights: sums of 16 bits would
    // overflow.
    for (group_size, w, largest) in [(64, -128, 1.0), (64, -128, -1.0), (1024, 127, 1.0), (1024, -128, -1.0)] {
        let (rows, cols, n_tokens) = (33, 2048, 8);
        let groups = cols / group_size;
        let (q, s) = (vec![w; rows * cols], vec![0.5; rows * groups]);
        let w = Q8Matrix { q: &q, s: &s, rows, cols, group_size };
        let x = vec![largest; cols];
        for (name, kernels) in batches() {
            let (mut xq, mut xs) = (vec![0; XQ_BYTES * n_tokens * cols], vec![0.0; n_tokens * groups]);
            let rows_of_x = xq.chunks_mut(XQ_BYTES * cols).zip(xs.chunks_mut(groups));
            rows_of_x.for_each(|(xq, xs)| (kernels.quantize)(&x, group_size, xq, xs));
            xs.fill(0.25);
            let mut packed = scratch(cols, WeightType::Q8 { group_size });
            let out = product(rows, n_tokens, |out| (kernels.matmul_q8)(&w, &xq, &xs, &mut packed, out));
            let want = (i64::from(q[0]) * (127.0 * largest) as i64 * cols as i64) as f32 * 0.125;
            assert_eq!(out, vec![want; n_tokens * rows], "{name}: group size {group_size}");
        }
    }
}

#[test]
fn attention_of_many_tokens() {
    let mut random = Random(8);
    for (head_size, kv_mul) in [(8, 1), (16, 1), (24, 3), (40, 2), (48, 1), (64, 4), (72, 1), (128, 1), (136, 2)] {
        for (rows, before) in [(8, 0), (9, 5), (13, 16), (24, 300)] {
            for (damage, large) in [(false, 0.1), (false, 300.0), (true, 1.0)] {
                let last = before + rows;
                let (stride, slots) = (kv_mul * head_size + 8, block_len(last));
                let mut q = random.f32s(rows * stride);
                q.iter_mut().for_each(|q| *q *= large);
                let (keys, mut values) = (random.f32s(slots * head_size), random.f32s(last * head_size));
                if damage {
                    values[(last - 1) * head_size] = f32::NAN; // which the rows before the last do not see
                }
                let keys = keys.as_chunks::<LANES>().0;
                let scale = core::f32::consts::LOG2_E / (head_size as f32).sqrt();
                let (width, what) =
                    (kv_mul * head_size, format!("{kv_mul} heads of {head_size}, {rows} rows, {before} before"));
                let mut want = vec![9.0; rows * width];
                for (row, out) in want.chunks_mut(width).enumerate() {
                    let (q, positions) = (&q[row * stride..][..width], before + row + 1);
                    let heads = Heads { q, keys, values: &values, positions, head_size, scale };
                    (SCALAR.attend)(&heads, &mut vec![0.0; kv_mul * block_len(positions)], out);
                }
                let queries = Queries {
                    q: &q,
                    stride,
                    rows,
                    kv_mul,
                    keys,
                    values: &values,
                    positions: before + 1,
                    head_size,
                    scale,
                };
                for (name, kernels) in batches() {
                    let Some(attend) = kernels.attend else { continue };
                    let mut att = vec![f32::NAN; att_len(last)];
                    let out = product(width, rows, |out| attend(&queries, &mut att, out));
                    assert_eq!(bits(&out), bits(&want), "{name}: {what}");
                }
            }
        }
    }
}

#[test]
fn int8_products_at_their_limits() {
    // -128 is no product of the quantiser, and legal; two products of 127 · 128 stand in 16 bits at
    // most.
    for (group_size, w, x) in [(32, -128, 127), (32, -128, -127), (1024, -128, 127), (1024, 127, 127), (64, 127, -127)]
    {
        let (rows, cols) = (9, 2048);
        let (q, s) = (vec![w; rows * cols], vec![0.5; rows * cols / group_size]);
        let (x, xs) = (vec![x; cols], vec![0.25; cols / group_size]);
        let w = Q8Matrix { q: &q, s: &s, rows, cols, group_size };
        let want = (i64::from(q[0]) * i64::from(x[0]) * cols as i64) as f32 * 0.125;
        for kernels in Kernels::all() {
            let out = product(rows, 1, |out| (kernels.matmul_q8)(&w, &x, &xs, out));
            assert_eq!(out, vec![want; rows], "{}: group size {group_size}", kernels.name);
        }
    }
}

/// Head sizes, query heads that share keys, positions, and the size of queries: small ones make the
/// weights alike, large ones make most of them 0.
fn attention_shapes() -> impl Iterator<Item = (usize, usize, usize, f32)> {
    let sizes = [2, 4, 6, 8, 12, 16, 24, 40, 64].into_iter();
    sizes.flat_map(|head_size| {
        [(1, 1), (2, 7), (3, 8), (2, 9), (4, 20), (5, 300)]
            .into_iter()
            .flat_map(move |(heads, positions)| [0.1, 300.0].map(|large| (head_size, heads, positions, large)))
    })
}

#[test]
fn attention() {
    let mut random = Random(3);
    for (head_size, n_heads, positions, large) in attention_shapes() {
        for damage in [false, true] {
            let slots = block_len(positions);
            let mut q = random.f32s(n_heads * head_size);
            q.iter_mut().for_each(|q| *q *= large);
            let keys = random.odd_f32s(slots * head_size, damage);
            let values = random.odd_f32s(positions * head_size, damage);
            let keys = keys.as_chunks::<LANES>().0;
            let scale = core::f32::consts::LOG2_E / (head_size as f32).sqrt();
            let heads = Heads { q: &q, keys, values: &values, positions, head_size, scale };
            check(&format!("{n_heads} heads of {head_size}, {positions} positions, q {large}"), |kernels| {
                let (mut att, mut out) = (vec![f32::NAN; n_heads * slots], vec![9.0; n_heads * head_size]);
                (kernels.attend)(&heads, &mut att, &mut out);
                out
            });
        }
    }
}

#[test]
fn int8_attention() {
    let mut random = Random(4);
    for (head_size, n_heads, positions, large) in attention_shapes().filter(|(head_size, ..)| head_size % 4 == 0) {
        let slots = block_len(positions);
        let (q, q_scales) = (random.i8s(n_heads * head_size), random.f32s(n_heads));
        let (keys, values) = (random.i8s(slots * head_size), random.i8s(slots * head_size));
        let scales = |random: &mut Random| (0..slots).map(|_| random.uniform().abs() * 0.01).collect::<Vec<_>>();
        let (key_scales, value_scales) = (scales(&mut random), scales(&mut random));
        let heads = HeadsQ8 {
            q: &q,
            q_scales: &q_scales,
            keys: &keys,
            values: &values,
            key_scales: &key_scales,
            value_scales: &value_scales,
            positions,
            head_size,
            scale: large,
        };
        check(&format!("{n_heads} heads of {head_size}, {positions} positions, scale {large}"), |kernels| {
            let (mut att, mut out) = (vec![f32::NAN; n_heads * slots], vec![9.0; n_heads * head_size]);
            (kernels.attend_q8)(&heads, &mut att, &mut out);
            out
        });
    }
}

#[test]
fn norms_and_swiglu() {
    let mut random = Random(5);
    for n in (1..50).chain([172, 768]) {
        for damage in [false, true] {
            let (x, weight) = (random.odd_f32s(n, damage), random.f32s(n));
            let eps = if n.is_multiple_of(2) { 1e-5 } else { 1e-6 };
            check(&format!("norm of {n}"), |kernels| {
                let mut out = vec![9.0; n];
                (kernels.rmsnorm)(&mut out, &x, &weight, eps);
                out
            });
            check(&format!("SwiGLU of {n}"), |kernels| {
                let mut hb: Vec<f32> = x.iter().map(|x| x * 90.0).collect();
                (kernels.swiglu)(&mut hb, &weight);
                hb
            });
        }
    }
}
