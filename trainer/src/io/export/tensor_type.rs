//! The types of numbers in the files of other programs.

use std::io::{self, Write};

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use clap::ValueEnum;

/// Type of the matrices in a GGUF file or a Hugging Face folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TensorType {
    /// 4 bytes per weight, exact
    F32,
    /// 2 bytes per weight, of 11 significant bits
    F16,
    /// 2 bytes per weight, of 8 significant bits
    Bf16,
    /// A byte per weight and an f16 scale per 32 weights; GGUF only
    #[value(name = "q8_0")]
    Q8_0,
}

impl TensorType {
    /// The type in candle's and GGUF's tables.
    pub fn ggml(self) -> GgmlDType {
        match self {
            TensorType::F32 => GgmlDType::F32,
            TensorType::F16 => GgmlDType::F16,
            TensorType::Bf16 => GgmlDType::BF16,
            TensorType::Q8_0 => GgmlDType::Q8_0,
        }
    }

    /// Bytes of this many values, a multiple of the type's block.
    pub fn bytes(self, values: usize) -> usize {
        values / self.ggml().block_size() * self.ggml().type_size()
    }

    /// Writes values in this type, in pieces: a second matrix would take as much memory again.
    ///
    /// # Errors
    /// The writer failed, or a value is no number or too large for the type.
    pub fn write(self, out: &mut dyn Write, values: &[f32]) -> io::Result<()> {
        const PIECE: usize = 1 << 20; // values: a multiple of each block
        let limit = match self {
            TensorType::F16 => 65_520.0,                     // rounds to infinity
            TensorType::Bf16 => f32::from_bits(0x7f7f_8000), // likewise
            TensorType::F32 | TensorType::Q8_0 => f32::INFINITY,
        };
        if let Some((i, w)) = values.iter().enumerate().find(|(_, w)| !w.is_finite()) {
            return Err(io::Error::other(format!(
                "weight {i} is {w}, which is not a finite number: the model is damaged"
            )));
        }
        if let Some((i, w)) = values.iter().enumerate().find(|(_, w)| w.abs() >= limit) {
            let name = self.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
            return Err(io::Error::other(format!("weight {i} is {w}, too large for {name}: take --type f32")));
        }
        if self == TensorType::F32 {
            return out.write_all(bytemuck::cast_slice(values));
        }
        for piece in values.chunks(PIECE) {
            let stored = Tensor::from_slice(piece, piece.len(), &Device::Cpu)
                .and_then(|tensor| QTensor::quantize(&tensor, self.ggml()))
                .map_err(io::Error::other)?;
            out.write_all(&stored.data().map_err(io::Error::other)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::QStorage;

    use super::*;

    #[test]
    fn values_are_rounded_to_the_type() {
        let values: Vec<f32> = (0..64).map(|i| i as f32 / 63.0 - 0.25).collect();
        let write = |kind: TensorType, values: &[f32]| {
            let mut out = Vec::new();
            kind.write(&mut out, values).map(|()| out)
        };
        for (kind, error) in
            [(TensorType::F32, 0.0), (TensorType::F16, 2.5e-4), (TensorType::Bf16, 2e-3), (TensorType::Q8_0, 3.5e-3)]
        {
            let bytes = write(kind, &values).unwrap();
            assert_eq!(bytes.len(), kind.bytes(64));
            let stored = QStorage::from_data(bytes.into(), &Device::Cpu, kind.ggml()).unwrap();
            let back = QTensor::new(stored, 64).unwrap().dequantize(&Device::Cpu).unwrap();
            let back: Vec<f32> = back.to_vec1().unwrap();
            let worst = values.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= error && (worst > 0.0) == (kind != TensorType::F32), "{kind:?}: {worst}");
        }
    }

    #[test]
    fn weights_that_do_not_fit_are_refused() {
        let error = |kind: TensorType, w: f32| kind.write(&mut Vec::new(), &[0.0, w]).unwrap_err().to_string();
        assert!(error(TensorType::F16, -70_000.0).contains("weight 1 is -70000, too large for f16"));
        assert!(error(TensorType::F32, f32::NAN).contains("weight 1 is NaN"));
    }
}
