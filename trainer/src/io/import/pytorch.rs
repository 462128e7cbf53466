//! A file of torch.save: its pickle tells names, shapes and places of tensors, whose values lie in
//! the archive as they are.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use crate::io::import::file::Input;
use crate::io::import::pickle::{Id, MAX_PICKLE, Value, Values, read};
use crate::io::import::tensors::{Stored, Table, Type, shown};
use crate::io::import::zip::{Entry, entries, is_zip};

/// What a file holds.
pub struct Checkpoint {
    /// The tensors of the model.
    pub table: Table,
    /// The numbers of `model_args`, where llama2.c's train.py wrote the file.
    pub model_args: Option<HashMap<String, f64>>,
}

/// Reads the directory of a file; the values of tensors are left where they are.
///
/// # Errors
/// The file is damaged, is of another kind, or asks for code to be run.
pub fn open(path: &Path) -> anyhow::Result<Checkpoint> {
    let file = Input::open(path)?;
    read_checkpoint(file).with_context(|| path.display().to_string())
}

fn read_checkpoint(file: Input) -> anyhow::Result<Checkpoint> {
    let start = file.bytes(0, file.len.min(4))?;
    if start.starts_with(&[0x80]) {
        bail!(
            "it is of the format before PyTorch 1.6: load it there and save it again with torch.save, or import the \
             model's safetensors"
        );
    }
    ensure!(is_zip(&start), "it is no archive of torch.save");
    let entries = entries(&file)?;
    let mut pickles = entries.iter().filter_map(|(name, entry)| Some((name.strip_suffix("data.pkl")?, *entry)));
    let (folder, pickle) = pickles.next().context("it has no data.pkl: it is no file of torch.save")?;
    ensure!(pickles.next().is_none(), "it has two entries data.pkl");
    ensure!(pickle.len <= MAX_PICKLE, "its data.pkl has {} bytes: at most {MAX_PICKLE} are read", pickle.len);
    if let Some(order) = entries.get(&format!("{folder}byteorder")) {
        let order = file.bytes(order.offset, order.len.min(16))?;
        ensure!(order == b"little", "its byteorder is {}, not little", String::from_utf8_lossy(&order));
    }
    let bytes = file.bytes(pickle.offset, pickle.len)?;
    let values = read(&bytes)?;
    let root = values.root;
    ensure!(values.dict(root).is_some(), "it holds no dictionary of tensors");
    let model_args = values.field(root, "model_args").map(|args| numbers(&values, args));
    let state = values.field(root, "model").unwrap_or(root);
    let state = values.dict(state).context("its model is no dictionary of tensors")?;
    let mut table = Table::new(vec![file]);
    for (name, id) in state {
        let tensor = stored(&values, id, |key| entries.get(&format!("{folder}data/{key}")).copied());
        let tensor = tensor.with_context(|| format!("tensor {}", shown(name)))?;
        if let Some(tensor) = tensor {
            // torch.compile puts this in front.
            table.insert(name.strip_prefix("_orig_mod.").unwrap_or(name), tensor)?;
        }
    }
    Ok(Checkpoint { table, model_args })
}

fn numbers(values: &Values<'_>, dict: Id) -> HashMap<String, f64> {
    let fields = values.dict(dict).into_iter().flatten();
    let number = |id| match values.get(id) {
        Value::Int(n) => Some(*n as f64),
        Value::Float(x) => Some(*x),
        _ => None,
    };
    fields.filter_map(|(name, id)| Some((name.to_string(), number(id)?))).collect()
}

/// The tensor that a value stands for; `None` for tensors of other types than weights have, such as
/// masks.
fn stored(values: &Values<'_>, id: Id, entry: impl Fn(&str) -> Option<Entry>) -> anyhow::Result<Option<Stored>> {
    let damaged = "it is no tensor, or damaged";
    let mut arguments = call(values, id, "_rebuild_tensor_v2");
    if let Some([tensor, ..]) = call(values, id, "_rebuild_parameter") {
        arguments = call(values, *tensor, "_rebuild_tensor_v2");
    }
    let [storage, offset, shape, strides, ..] = arguments.context(damaged)? else { bail!(damaged) };
    let Value::Storage(storage) = values.get(*storage) else { bail!(damaged) };
    let [_, class, key, ..] = values.list(*storage).context(damaged)? else { bail!(damaged) };
    let stored_as = match values.get(*class) {
        Value::Global("FloatStorage") => Type::F32,
        Value::Global("HalfStorage") => Type::F16,
        Value::Global("BFloat16Storage") => Type::Bf16,
        _ => return Ok(None),
    };
    let sizes = |id| values.list(id)?.iter().map(|n| values.size(*n)).collect::<Option<Vec<u64>>>();
    let (shape, strides) = (sizes(*shape).context(damaged)?, sizes(*strides).context(damaged)?);
    let key = values.text(*key).context(damaged)?;
    let entry = entry(key).with_context(|| format!("its values data/{} are not in the archive", shown(key)))?;
    let offset = values.size(*offset).context(damaged)?;
    let start = stored_as.bytes(offset).and_then(|bytes| bytes.checked_add(entry.offset));
    let tensor = Stored { file: 0, offset: start.context(damaged)?, shape, stored_as };
    let Some(size) = tensor.values().and_then(|n| stored_as.bytes(n)) else {
        bail!("its shape {:?} is too large", tensor.shape);
    };
    ensure!(is_contiguous(&tensor.shape, &strides), "its values are not stored in order (strides {strides:?})");
    ensure!(
        tensor.offset.checked_add(size).is_some_and(|end| end <= entry.offset + entry.len),
        "its shape {:?} takes {size} bytes at value {offset}, and its storage has {}",
        tensor.shape,
        entry.len
    );
    Ok(Some(tensor))
}

/// The arguments of a call of this function.
fn call<'v>(values: &'v Values<'_>, id: Id, name: &str) -> Option<&'v [Id]> {
    match values.get(id) {
        Value::Call(function, arguments) => match values.get(*function) {
            Value::Global(called) if *called == name => values.list(*arguments),
            _ => None,
        },
        _ => None,
    }
}

/// Whether rows follow each other without gaps.
fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    let mut expected = 1u64;
    shape.len() == strides.len()
        && shape.iter().zip(strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected = expected.saturating_mul(size);
            fits
        })
}
