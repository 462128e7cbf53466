//! Named tensors in a file, of any of the types that weights are stored in.

use std::collections::HashMap;
use std::io;

use anyhow::{Context, anyhow, bail, ensure};

use crate::io::import::blocks::Blocks;
use crate::io::import::file::Input;

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// How the values of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Type {
    F32,
    F16,
    Bf16,
    /// Whole numbers, which llama2.c's version 2 has scales for.
    I8,
    /// Blocks of GGUF, quantised.
    Blocks(Blocks),
}

impl Type {
    /// Values of a block, and its bytes.
    fn block(self) -> (usize, usize) {
        match self {
            Type::F32 => (1, 4),
            Type::F16 | Type::Bf16 => (1, 2),
            Type::I8 => (1, 1),
            Type::Blocks(blocks) => (blocks.values(), blocks.bytes()),
        }
    }

    /// Bytes of a tensor of this many values; `None` if they are no whole blocks, or too many.
    pub fn bytes(self, values: u64) -> Option<u64> {
        let (block_values, block_bytes) = self.block();
        let whole = values.is_multiple_of(block_values as u64);
        if whole { (values / block_values as u64).checked_mul(block_bytes as u64) } else { None }
    }

    /// Appends the values of whole blocks. The bytes are aligned to 4.
    fn decode(self, bytes: &[u8], values: &mut Vec<f32>) -> io::Result<()> {
        match self {
            Type::F32 => values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
            Type::F16 => values.extend(bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32())),
            Type::Bf16 => values.extend(bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32())),
            Type::I8 => values.extend(bytes.iter().map(|b| f32::from(*b as i8))),
            Type::Blocks(blocks) => values.extend(blocks.decode(bytes)?),
        }
        Ok(())
    }
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Which file of the table.
    pub file: usize,
    /// Offset of the first value in the file.
    pub offset: u64,
    /// Outputs first, as PyTorch has it.
    pub shape: Vec<u64>,
    /// How values are stored.
    pub stored_as: Type,
}

impl Stored {
    /// Number of values; `None` if there are more than 2^64.
    pub fn values(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |n, size| n.checked_mul(*size))
    }

    /// Bytes that the values take in the file.
    fn bytes(&self) -> Option<u64> {
        self.stored_as.bytes(self.values()?)
    }
}

/// The tensors of a model, by the names of their format.
pub struct Table {
    files: Vec<Input>,
    tensors: HashMap<String, Stored>,
}

impl Table {
    /// An empty table over files.
    pub fn new(files: Vec<Input>) -> Table {
        Table { files, tensors: HashMap::new() }
    }

    /// Adds a tensor.
    ///
    /// # Errors
    /// It is there already, or its bytes are not all in the file.
    pub fn insert(&mut self, name: &str, tensor: Stored) -> anyhow::Result<()> {
        let file = self.files.get(tensor.file).context("no such file")?;
        let shown = shown(name);
        let in_tensor = || format!("{}: tensor {shown}", file.path.display());
        let size = tensor.bytes().ok_or_else(|| {
            let Stored { shape, stored_as, .. } = &tensor;
            anyhow!("{}: its shape {shape:?} is too large, or no whole blocks of {stored_as:?}", in_tensor())
        })?;
        let end = tensor.offset.checked_add(size);
        ensure!(
            end.is_some_and(|end| end <= file.len),
            "{}: its {size} bytes at offset {} run past the end of the file ({} bytes): it is cut short or damaged",
            in_tensor(),
            tensor.offset,
            file.len
        );
        ensure!(!self.tensors.contains_key(name), "{} is there twice", in_tensor());
        self.tensors.insert(name.to_string(), tensor);
        Ok(())
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, name: &str) -> anyhow::Result<&Stored> {
        let file = || self.files.iter().map(|file| file.path.display().to_string()).collect::<Vec<_>>().join(", ");
        self.tensors.get(name).with_context(|| format!("{}: tensor {name} is missing", file()))
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The file of a tensor.
    pub fn file(&self, tensor: &Stored) -> &Input {
        &self.files[tensor.file]
    }

    /// Reads the values of a tensor.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, tensor: &Stored) -> io::Result<Vec<f32>> {
        let n = tensor.values().and_then(|n| usize::try_from(n).ok()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut values = Vec::new();
        values.try_reserve_exact(n).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.read_pieces(tensor, |bytes| tensor.stored_as.decode(bytes, &mut values))?;
        Ok(values)
    }

    /// Gives the bytes of a tensor, in pieces of whole blocks that are aligned to 4.
    fn read_pieces(&self, tensor: &Stored, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let file = &self.files[tensor.file];
        let (_, block) = tensor.stored_as.block();
        let piece = PIECE / block * block;
        let size = tensor.bytes().ok_or(io::ErrorKind::InvalidData)?;
        let mut buffer = vec![0u32; PIECE / 4];
        let buffer: &mut [u8] = bytemuck::cast_slice_mut(&mut buffer);
        let mut done = 0;
        while done < size {
            let bytes = &mut buffer[..piece.min((size - done) as usize)];
            file.read_exact(tensor.offset + done, bytes)?;
            each(bytes)?;
            done += bytes.len() as u64;
        }
        Ok(())
    }

    /// Whether two tensors have the same values, stored in the same way.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn are_equal(&self, a: &Stored, b: &Stored) -> io::Result<bool> {
        if (&a.shape, a.stored_as) != (&b.shape, b.stored_as) {
            return Ok(false);
        }
        if (a.file, a.offset) == (b.file, b.offset) {
            return Ok(true);
        }
        let mut other = vec![0; PIECE];
        let (mut at, mut equal) = (b.offset, true);
        let compared = self.read_pieces(a, |bytes| {
            let other = &mut other[..bytes.len()];
            self.files[b.file].read_exact(at, other)?;
            at += other.len() as u64;
            equal = bytes == other;
            // An error ends the reading at the first difference.
            if equal { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
        });
        if equal { compared.map(|()| true) } else { Ok(false) }
    }
}

/// A name for a message: hostile files have names of any length.
pub fn shown(name: &str) -> String {
    let start: String = name.chars().take(80).collect();
    if start.len() == name.len() { start } else { format!("{start}…") }
}

/// The type of GGUF's number.
///
/// # Errors
/// The reader of blocks does not know it.
pub fn ggml_type(number: u32) -> anyhow::Result<Type> {
    Ok(match number {
        0 => Type::F32,
        1 => Type::F16,
        30 => Type::Bf16,
        number => match Blocks::of(number) {
            Some(blocks) => Type::Blocks(blocks),
            None => bail!("type {number}: F32, F16, BF16, Q4_0 to Q8_0 and Q2_K to Q6_K can be read"),
        },
    })
}
