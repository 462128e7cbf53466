//! The cache of keys and values of past positions: its layout, and storing into it.
//!
//! Both are stored per layer and key/value head, in blocks of eight positions where attention then
//! reads in order:
//! - f32: keys (block, head_size, 8), so that scores vectorise over positions; values (max_seq,
//!   head_size).
//! - int8: keys (block, head_size / 4, 8, 4) and values (block, head_size, 8): four neighbours are
//!   the factors of one integer product. Keys and values have a scale per position and layer,
//!   shared by all heads.

use crate::error::Error;
use crate::math::{LANES, native};
use crate::matrix::{rows_of, rows_of_mut};
use crate::plan::{KvType, Plan, block_len};
use crate::quant::{factor_for, round};

/// The caller's memory for cached keys and values.
#[derive(Debug)]
pub enum KvBuffers<'s> {
    /// [`Plan::kv_values`] elements.
    F32(&'s mut [f32]),
    /// [`Plan::kv_values`] and [`Plan::kv_scales`] elements.
    Q8 {
        /// Quantised keys and values, at any address: on a chip, unaligned words must be allowed,
        /// as they are after a reset.
        values: &'s mut [i8],
        /// Their scales.
        scales: &'s mut [f32],
    },
}

/// The KV cache of all layers.
#[derive(Debug)]
pub(crate) struct Cache<'s> {
    n_kv_heads: usize,
    head_size: usize,
    max_seq: usize,
    data: Data<'s>,
}

#[derive(Debug)]
enum Data<'s> {
    F32 { keys: &'s mut [f32], values: &'s mut [f32] },
    Q8 { keys: &'s mut [i8], values: &'s mut [i8], key_scales: &'s mut [f32], value_scales: &'s mut [f32] },
}

/// The keys and values of one layer and head, for attention to read.
#[derive(Clone, Copy)]
pub(crate) enum Head<'a> {
    F32 { keys: &'a [[f32; LANES]], values: &'a [f32] },
    Q8 { keys: &'a [i8], values: &'a [i8], key_scales: &'a [f32], value_scales: &'a [f32] },
}

impl<'s> Cache<'s> {
    /// Cuts the caller's buffers into keys, values and scales.
    pub fn new(plan: &Plan, buffers: KvBuffers<'s>) -> Result<Cache<'s>, Error> {
        let config = &plan.config;
        let (n_kv_heads, head_size, max_seq) = (config.n_kv_heads, config.head_size(), plan.limits.max_seq);
        let key_len = config.n_layers.saturating_mul(config.kv_dim()).saturating_mul(block_len(max_seq));
        let scale_len = config.n_layers.saturating_mul(block_len(max_seq));
        let data = match (plan.limits.kv, buffers) {
            (KvType::F32, KvBuffers::F32(values)) => {
                let (keys, values) = cut("kv.values", values, plan.kv_values, key_len)?;
                Data::F32 { keys, values }
            }
            (KvType::Q8, KvBuffers::Q8 { values, scales }) => {
                let (keys, values) = cut("kv.values", values, plan.kv_values, key_len)?;
                let (key_scales, value_scales) = cut("kv.scales", scales, plan.kv_scales, scale_len)?;
                Data::Q8 { keys, values, key_scales, value_scales }
            }
            _ => return Err(Error::Unsupported { what: "a KV cache of another type than planned" }),
        };
        Ok(Cache { n_kv_heads, head_size, max_seq, data })
    }

    /// Stores `k` and `v` (rows, n_kv_heads, head_size) from position `pos` on.
    pub fn store(&mut self, layer: usize, k: &[f32], v: &[f32], pos: usize) {
        let (head_size, kv_dim) = (self.head_size, self.head_size * self.n_kv_heads);
        let slots = block_len(self.max_seq);
        let rows = (pos..).zip(rows_of(k, kv_dim).zip(rows_of(v, kv_dim)));
        match &mut self.data {
            Data::F32 { keys, values } => {
                let (Some(keys), Some(values)) =
                    (part_mut(keys, kv_dim * slots, layer), part_mut(values, kv_dim * self.max_seq, layer))
                else {
                    return;
                };
                for (pos, (k, v)) in rows {
                    for (keys, k) in rows_of_mut(keys, head_size * slots).zip(rows_of(k, head_size)) {
                        store_by_dimension(keys, k.iter().copied(), pos);
                    }
                    for (values, v) in rows_of_mut(values, head_size * self.max_seq).zip(rows_of(v, head_size)) {
                        if let Some(slot) = part_mut(values, head_size, pos) {
                            slot.iter_mut().zip(v).for_each(|(slot, v)| *slot = *v);
                        }
                    }
                }
            }
            Data::Q8 { keys, values, key_scales, value_scales } => {
                let (Some(keys), Some(values), Some(key_scales), Some(value_scales)) = (
                    part_mut(keys, kv_dim * slots, layer),
                    part_mut(values, kv_dim * slots, layer),
                    part_mut(key_scales, slots, layer),
                    part_mut(value_scales, slots, layer),
                ) else {
                    return;
                };
                for (pos, (k, v)) in rows {
                    let (Some(key_scale), Some(value_scale)) = (key_scales.get_mut(pos), value_scales.get_mut(pos))
                    else {
                        return;
                    };
                    let k_factor = factor_for(native::largest_magnitude(k), key_scale);
                    let v_factor = factor_for(native::largest_magnitude(v), value_scale);
                    for (keys, k) in rows_of_mut(keys, head_size * slots).zip(rows_of(k, head_size)) {
                        store_by_quads(keys, k, k_factor, pos, head_size);
                    }
                    for (values, v) in rows_of_mut(values, head_size * slots).zip(rows_of(v, head_size)) {
                        store_by_dimension(values, v.iter().map(|v| round(v * v_factor)), pos);
                    }
                }
            }
        }
    }

    /// Visits the bytes of all stretches that the first `positions` positions are in. Their order
    /// and lengths depend on the model and on `positions` alone, not on the size of the cache.
    #[cfg(feature = "std")]
    pub fn visit<E>(&mut self, positions: usize, mut visit: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        let (head_size, max_seq) = (self.head_size, self.max_seq);
        let (slots, used) = (block_len(max_seq), block_len(positions));
        let mut each = |buffer: &mut [u8], stride: usize, used: usize| {
            buffer.chunks_exact_mut(stride).try_for_each(|part| visit(part.get_mut(..used).unwrap_or_default()))
        };
        match &mut self.data {
            Data::F32 { keys, values } => {
                each(bytemuck::cast_slice_mut(keys), 4 * head_size * slots, 4 * head_size * used)?;
                each(bytemuck::cast_slice_mut(values), 4 * head_size * max_seq, 4 * head_size * positions)
            }
            Data::Q8 { keys, values, key_scales, value_scales } => {
                each(bytemuck::cast_slice_mut(keys), head_size * slots, head_size * used)?;
                each(bytemuck::cast_slice_mut(values), head_size * slots, head_size * used)?;
                each(bytemuck::cast_slice_mut(key_scales), 4 * slots, 4 * used)?;
                each(bytemuck::cast_slice_mut(value_scales), 4 * slots, 4 * used)
            }
        }
    }

    /// The keys and values of one head.
    pub fn head(&self, layer: usize, kv_head: usize) -> Option<Head<'_>> {
        let index = layer * self.n_kv_heads + kv_head;
        let (slots, max_seq) = (self.head_size * block_len(self.max_seq), self.head_size * self.max_seq);
        Some(match &self.data {
            Data::F32 { keys, values } => {
                Head::F32 { keys: part(keys, slots, index)?.as_chunks().0, values: part(values, max_seq, index)? }
            }
            Data::Q8 { keys, values, key_scales, value_scales } => Head::Q8 {
                keys: part(keys, slots, index)?,
                values: part(values, slots, index)?,
                key_scales: part(key_scales, block_len(self.max_seq), layer)?,
                value_scales: part(value_scales, block_len(self.max_seq), layer)?,
            },
        })
    }
}

/// Stores one position into blocks (dimension, 8).
fn store_by_dimension<T>(blocks: &mut [T], x: impl ExactSizeIterator<Item = T>, pos: usize) {
    let slots = blocks.as_chunks_mut::<LANES>().0.iter_mut().skip(pos / LANES * x.len());
    for (slot, x) in slots.zip(x) {
        if let Some(slot) = slot.get_mut(pos % LANES) {
            *slot = x;
        }
    }
}

/// Stores one position into blocks (dimension / 4, 8, 4).
fn store_by_quads(blocks: &mut [i8], x: &[f32], factor: f32, pos: usize, head_size: usize) {
    let quads = blocks.as_chunks_mut::<4>().0.iter_mut().skip(pos / LANES * LANES * head_size / 4 + pos % LANES);
    for (slot, x) in quads.step_by(LANES).zip(x.as_chunks::<4>().0) {
        *slot = x.map(|x| round(x * factor));
    }
}

/// Cuts `buffer` in two after `first` elements, if it has `need` of them.
fn cut<'a, T>(
    name: &'static str,
    buffer: &'a mut [T],
    need: usize,
    first: usize,
) -> Result<(&'a mut [T], &'a mut [T]), Error> {
    let have = buffer.len();
    let error = Error::BufferTooSmall { buffer: name, need, have };
    if have < need { Err(error) } else { buffer.split_at_mut_checked(first).ok_or(error) }
}

fn part<T>(parts: &[T], len: usize, index: usize) -> Option<&[T]> {
    parts.get(index.checked_mul(len)?..)?.get(..len)
}

fn part_mut<T>(parts: &mut [T], len: usize, index: usize) -> Option<&mut [T]> {
    parts.get_mut(index.checked_mul(len)?..)?.get_mut(..len)
}
