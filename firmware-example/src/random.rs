//! Random models, for the build script and for the image `kernels`.

use infer_core::format::{Header, Tensor, TensorName};
use infer_core::{Error, WeightType, math};

/// Fills a model file with random weights, of a size that keeps activations near 1, so that the
/// logits differ and every layer matters. Each number that is stored as f32 goes through `change`,
/// which may damage it. Returns the size of the file.
///
/// `infer_core::format::write` would want std, room for a matrix in f32, and sound weights.
pub fn fill_model(
    header: &Header,
    file: &mut [u8],
    mut change: impl FnMut(TensorName, f32) -> f32,
) -> Result<usize, Error> {
    let layout = header.layout()?;
    let need = layout.file_bytes as usize;
    let have = file.len();
    let error = Error::BufferTooSmall { buffer: "model file", need, have };
    let file = file.get_mut(..need).ok_or(error)?;
    let (start, mut rest) = file.split_at_mut_checked(header.size()).ok_or(error)?;
    start.iter_mut().zip(header.to_bytes()?).for_each(|(byte, value)| *byte = value);

    let mut random = Random::new();
    let mut put = |bytes: &[u8]| {
        if let Some(place) = rest.split_off_mut(..bytes.len()) {
            place.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
        }
    };
    for Tensor { name, count, rows, cols, weights, .. } in layout.iter() {
        let scale = 1.7 / math::sqrt(cols as f32);
        let mut f32s = |n: usize, weight: &mut dyn FnMut() -> f32, put: &mut dyn FnMut(&[u8])| {
            (0..n).for_each(|_| put(&change(name, weight()).to_le_bytes()));
        };
        for _ in 0..count {
            let n = rows * cols;
            match weights {
                WeightType::F32 if rows == 1 => f32s(n, &mut || 1.0 + 0.1 * random.uniform(), &mut put),
                WeightType::F32 => f32s(n, &mut || scale * random.uniform(), &mut put),
                WeightType::Q8 { group_size } => {
                    (0..n).for_each(|_| put(&[(127.0 * random.uniform()) as i8 as u8]));
                    f32s(n / group_size, &mut || scale / 127.0 * (1.0 + 0.1 * random.uniform()), &mut put);
                }
            }
        }
    }
    Ok(need)
}

/// xorshift64 (Marsaglia, 2003).
pub struct Random(u64);

impl Random {
    /// Always the same sequence.
    pub fn new() -> Random {
        Random(1)
    }

    /// A number from -1 to 1.
    pub fn uniform(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
