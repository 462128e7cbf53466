//! GGUF's quantised blocks of values.

use std::io;

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;

/// How the values of a tensor lie in blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Blocks(GgmlDType);

impl Blocks {
    /// The kind of GGUF's number; `None` if candle cannot read it.
    pub fn of(number: u32) -> Option<Blocks> {
        use GgmlDType::*;
        let kinds = [
            (2, Q4_0),
            (3, Q4_1),
            (6, Q5_0),
            (7, Q5_1),
            (8, Q8_0),
            (10, Q2K),
            (11, Q3K),
            (12, Q4K),
            (13, Q5K),
            (14, Q6K),
        ];
        kinds.into_iter().find(|(known, _)| *known == number).map(|(_, kind)| Blocks(kind))
    }

    /// Values of a block.
    pub fn values(self) -> usize {
        self.0.block_size()
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        self.0.type_size()
    }

    /// The values of whole blocks. The bytes are aligned to 4.
    ///
    /// # Errors
    /// None is known.
    pub fn decode(self, bytes: &[u8]) -> io::Result<Vec<f32>> {
        let n = bytes.len() / self.bytes() * self.values();
        match self.0.from_data(bytes.into()).dequantize(n).map_err(io::Error::other)? {
            CpuStorage::F32(values) => Ok(values),
            _ => Err(io::Error::other("blocks are no f32 values")),
        }
    }
}
