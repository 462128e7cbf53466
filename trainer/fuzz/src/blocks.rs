//! Blocks of the sizes that GGUF's have. Their values are 0: candle reads them in trainer.

use std::io;

/// As in trainer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Blocks {
    values: usize,
    bytes: usize,
}

impl Blocks {
    /// As in trainer, for two kinds.
    pub fn of(number: u32) -> Option<Blocks> {
        match number {
            2 => Some(Blocks { values: 32, bytes: 18 }),
            12 => Some(Blocks { values: 256, bytes: 144 }),
            _ => None,
        }
    }

    pub fn values(self) -> usize {
        self.values
    }

    pub fn bytes(self) -> usize {
        self.bytes
    }

    pub fn decode(self, bytes: &[u8]) -> io::Result<Vec<f32>> {
        Ok(vec![0.0; bytes.len() / self.bytes * self.values])
    }
}
