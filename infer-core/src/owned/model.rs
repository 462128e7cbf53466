//! Model files in memory of their own.

use std::io;
use std::path::Path;
use std::vec::Vec;

use super::memory::vec_of;
use crate::error::Error;
use crate::model::Model;

/// The bytes of a model file, at an address that a [`Model`] may have. Later changes of
/// the file have no effect on it, unlike on a [`MappedModel`](crate::MappedModel).
#[derive(Clone, Debug)]
pub struct ModelBytes {
    words: Vec<u32>,
    len: usize,
}

impl ModelBytes {
    /// Reads a whole file. [`model`](ModelBytes::model) checks the content.
    ///
    /// # Errors
    /// The file cannot be read, or there is no memory for it.
    pub fn read(path: impl AsRef<Path>) -> io::Result<ModelBytes> {
        let bytes = std::fs::read(path)?;
        ModelBytes::copy(&bytes).map_err(|e| io::Error::new(io::ErrorKind::OutOfMemory, e))
    }

    /// Copies bytes that may lie anywhere.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn copy(bytes: &[u8]) -> Result<ModelBytes, Error> {
        let mut copy = ModelBytes::zeros(bytes.len())?;
        copy.bytes_mut().copy_from_slice(bytes);
        Ok(copy)
    }

    /// Room for a file of `len` bytes, to be filled by [`bytes_mut`](ModelBytes::bytes_mut).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeros(len: usize) -> Result<ModelBytes, Error> {
        Ok(ModelBytes { words: vec_of("model", 0, len.div_ceil(size_of::<u32>()))?, len })
    }

    /// The model.
    ///
    /// # Errors
    /// As [`Model::from_bytes`], but not [`Error::Misaligned`].
    pub fn model(&self) -> Result<Model<'_>, Error> {
        Model::from_bytes(self.bytes())
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    /// The bytes of the file, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}
