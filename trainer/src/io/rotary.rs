//! The rotary tables of version 0. No reader uses them, and cosines of one exporter differ from
//! another's in the last bit: a model keeps those of its file, so that this comes back byte for
//! byte.

use std::borrow::Cow;
use std::io;

use infer_core::Config;
use infer_core::format::{TensorName, rotary_table};

use crate::io::foreign::Values;

/// Both tables: cosines and sines.
pub const TABLES: [TensorName; 2] = [TensorName::FreqCisReal, TensorName::FreqCisImag];

/// The values of a tensor of a model file: weights, or a rotary table, which is computed if the
/// model has none of its own.
///
/// # Errors
/// The model's file cannot be read.
pub fn read<'v>(values: &'v dyn Values, config: &Config, name: TensorName, layer: usize) -> io::Result<Cow<'v, [f32]>> {
    let Some(computed) = rotary_table(config, name) else { return values.read(name, layer) };
    Ok(own(values, name, computed.len())?.unwrap_or(computed).into())
}

/// The model's own table, if it has one that differs from what is computed.
///
/// # Errors
/// The model's file cannot be read.
pub fn differing(values: &dyn Values, config: &Config, name: TensorName) -> io::Result<Option<Vec<f32>>> {
    let computed = rotary_table(config, name).unwrap_or_default();
    let bits = |table: &[f32]| table.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    Ok(own(values, name, computed.len())?.filter(|table| bits(table) != bits(&computed)))
}

/// The model's own table, cut to the positions that are kept. One with NaN or infinity counts as
/// none: writers refuse it, and the model is sound without it.
fn own(values: &dyn Values, name: TensorName, len: usize) -> io::Result<Option<Vec<f32>>> {
    let Some(mut table) = values.table(name)? else { return Ok(None) };
    table.truncate(len);
    Ok((table.len() == len && table.iter().all(|x| x.is_finite())).then_some(table))
}
