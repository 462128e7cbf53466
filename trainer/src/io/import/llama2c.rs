//! Model files of llama2.c, of any version. Groups of int8 weights may cross rows, as llama2.c
//! exports them when hidden_dim is no multiple of the group size.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use anyhow::ensure;
use infer_core::format::{HEADER_V1, Header, Layout, TensorName, Version};
use infer_core::{Error, WeightType};

use crate::io::foreign::Values;
use crate::io::import::file::Input;
use crate::io::import::tensors::{Stored, Table, Type};
use crate::io::rotary::TABLES;

/// Opens a file. The header is that of a version 1 file with the same weights.
///
/// # Errors
/// The file is damaged or no model.
pub fn open(path: &Path) -> anyhow::Result<(Header, Box<dyn Values>)> {
    let file = Input::open(path)?;
    let mut header = Header::parse_any_group(&file.bytes(0, file.len.min(HEADER_V1 as u64))?)?;
    let layout = header.layout_of(file.len)?;
    ensure!(layout.file_bytes <= file.len, Error::Truncated { need: layout.file_bytes, have: file.len });
    header.version = Version::V1;
    header.config.weights = WeightType::F32;
    Ok((header, Box::new(File { table: Table::new(vec![file]), layout })))
}

struct File {
    table: Table,
    layout: Layout,
}

impl Values for File {
    fn read(&self, name: TensorName, layer: usize) -> io::Result<Cow<'_, [f32]>> {
        let tensor = self.layout.get(name).ok_or(io::ErrorKind::NotFound)?;
        let offset = tensor.offset + tensor.stride * layer as u64;
        let n = (tensor.rows * tensor.cols) as u64;
        let f32s = |offset, n: u64| self.table.read(&Stored { file: 0, offset, shape: vec![n], stored_as: Type::F32 });
        let WeightType::Q8 { group_size } = tensor.weights else { return Ok(f32s(offset, n)?.into()) };
        let scales = f32s(offset + n, n / group_size as u64)?;
        let mut values = self.table.read(&Stored { file: 0, offset, shape: vec![n], stored_as: Type::I8 })?;
        for (group, scale) in values.chunks_mut(group_size).zip(scales) {
            group.iter_mut().for_each(|w| *w *= scale);
        }
        Ok(values.into())
    }

    fn table(&self, name: TensorName) -> io::Result<Option<Vec<f32>>> {
        let is_there = TABLES.contains(&name) && self.layout.get(name).is_some();
        if is_there { Ok(Some(self.read(name, 0)?.into_owned())) } else { Ok(None) }
    }
}
