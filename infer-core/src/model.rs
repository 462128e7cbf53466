//! A model: a checked view of the bytes of a model file.

use crate::config::{Config, WeightType};
use crate::error::Error;
use crate::format::{ALIGN, Header, Layout, Tensor, TensorName, Version};
use crate::matrix::{Matrix, f32_slice};

/// Bytes aligned to 16, for models embedded with `include_bytes!`, whose result has alignment 1.
///
/// ```
/// use infer_core::Aligned;
/// static MODEL: &Aligned<[u8]> = &Aligned(*b"in flash: include_bytes!(...)");
/// assert_eq!(MODEL.0.as_ptr() as usize % 16, 0);
/// ```
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug)]
pub struct Aligned<T: ?Sized>(pub T);

/// A model borrowed from the bytes of its file: nothing is copied, and after [`Model::from_bytes`]
/// its weights cannot fail.
#[derive(Clone, Copy, Debug)]
pub struct Model<'m> {
    config: Config,
    head: &'m [u8],       // the file's header: a chip has no RAM for what it says only now and then
    tok_emb: Matrix<'m>,  // (vocab_size, dim)
    rms_att: Stack<'m>,   // (n_layers, dim)
    wq: Stack<'m>,        // (n_layers, n_heads*head_size, dim), rows = outputs
    wk: Stack<'m>,        // (n_layers, kv_dim, dim)
    wv: Stack<'m>,        // (n_layers, kv_dim, dim)
    wo: Stack<'m>,        // (n_layers, dim, n_heads*head_size)
    rms_ffn: Stack<'m>,   // (n_layers, dim)
    w1: Stack<'m>,        // (n_layers, hidden_dim, dim)
    w2: Stack<'m>,        // (n_layers, dim, hidden_dim)
    w3: Stack<'m>,        // (n_layers, hidden_dim, dim)
    rms_final: &'m [f32], // (dim)
    wcls: Matrix<'m>,     // (vocab_size, dim)
}

/// The weights of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'m> {
    /// (dim)
    pub rms_att: &'m [f32],
    /// (n_heads*head_size, dim), rows = outputs
    pub wq: Matrix<'m>,
    /// (kv_dim, dim)
    pub wk: Matrix<'m>,
    /// (kv_dim, dim)
    pub wv: Matrix<'m>,
    /// (dim, n_heads*head_size)
    pub wo: Matrix<'m>,
    /// (dim)
    pub rms_ffn: &'m [f32],
    /// (hidden_dim, dim)
    pub w1: Matrix<'m>,
    /// (dim, hidden_dim)
    pub w2: Matrix<'m>,
    /// (hidden_dim, dim)
    pub w3: Matrix<'m>,
}

impl<'m> Model<'m> {
    /// Checks the file and borrows its tensors. Bytes after the last tensor are ignored.
    ///
    /// # Errors
    /// Any of the errors of [`Header::parse`]; [`Error::Misaligned`] unless the slice starts at a
    /// multiple of 4; [`Error::Truncated`]; [`Error::TooLarge`].
    pub fn from_bytes(bytes: &'m [u8]) -> Result<Model<'m>, Error> {
        let header = Header::parse(bytes)?;
        let have = bytes.len() as u64;
        let layout = header.layout_of(have)?;
        if have < layout.file_bytes {
            return Err(Error::Truncated { need: layout.file_bytes, have });
        }
        let (head, _) = bytes.split_at_checked(header.size()).unwrap_or_default();
        if !bytes.as_ptr().addr().is_multiple_of(ALIGN) {
            return Err(Error::Misaligned);
        }
        // This cannot fail, as the length is checked; TooLarge stands for the impossible.
        Model::borrow(bytes, head, header.config, &layout).ok_or(Error::TooLarge)
    }

    fn borrow(bytes: &'m [u8], head: &'m [u8], config: Config, layout: &Layout) -> Option<Model<'m>> {
        use TensorName::*;
        let stack = |name| Stack::new(bytes, layout.get(name)?);
        let tok_emb = stack(TokEmb)?.matrix(0)?;
        let wcls = if config.shared_classifier { tok_emb } else { stack(Wcls)?.matrix(0)? };
        Some(Model {
            config,
            head,
            tok_emb,
            rms_att: stack(RmsAtt)?,
            wq: stack(Wq)?,
            wk: stack(Wk)?,
            wv: stack(Wv)?,
            wo: stack(Wo)?,
            rms_ffn: stack(RmsFfn)?,
            w1: stack(W1)?,
            w2: stack(W2)?,
            w3: stack(W3)?,
            rms_final: stack(RmsFinal)?.vector(0)?,
            wcls,
        })
    }

    /// The header, read again from the file.
    pub fn header(&self) -> Header {
        // It was whole and checked, so that nothing but the first arm happens.
        Header::parse(self.head).unwrap_or(Header::new(Version::V0, self.config))
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The address of the weights. It tells two models in memory apart, but not two that occupy the
    /// same memory one after the other.
    pub(crate) fn address(&self) -> usize {
        self.rms_final.as_ptr().addr()
    }

    /// The weights of layer `l`, `None` from `n_layers` on.
    pub fn layer(&self, l: usize) -> Option<Layer<'m>> {
        Some(Layer {
            rms_att: self.rms_att.vector(l)?,
            wq: self.wq.matrix(l)?,
            wk: self.wk.matrix(l)?,
            wv: self.wv.matrix(l)?,
            wo: self.wo.matrix(l)?,
            rms_ffn: self.rms_ffn.vector(l)?,
            w1: self.w1.matrix(l)?,
            w2: self.w2.matrix(l)?,
            w3: self.w3.matrix(l)?,
        })
    }

    /// The embedding table (vocab_size, dim).
    pub fn tok_emb(&self) -> Matrix<'m> {
        self.tok_emb
    }

    /// The weights of the last norm (dim).
    pub fn rms_final(&self) -> &'m [f32] {
        self.rms_final
    }

    /// The classifier (vocab_size, dim).
    pub fn wcls(&self) -> Matrix<'m> {
        self.wcls
    }
}

/// The tensors of one name, one per layer at equal distances. A layer is cut out when it is used,
/// so a model takes the same few words whether it has one layer or a hundred.
#[derive(Clone, Copy, Debug)]
struct Stack<'m> {
    bytes: &'m [u8],
    stride: usize,
    rows: usize,
    cols: usize,
    weights: WeightType,
}

impl<'m> Stack<'m> {
    fn new(bytes: &'m [u8], tensor: Tensor) -> Option<Stack<'m>> {
        let start = usize::try_from(tensor.offset).ok()?;
        let len = usize::try_from(tensor.bytes()).ok()?;
        Some(Stack {
            bytes: bytes.get(start..)?.get(..len)?,
            stride: usize::try_from(tensor.stride).ok()?,
            rows: tensor.rows,
            cols: tensor.cols,
            weights: tensor.weights,
        })
    }

    fn layer_bytes(&self, l: usize) -> Option<&'m [u8]> {
        self.bytes.get(l.checked_mul(self.stride)?..)?.get(..self.stride)
    }

    fn matrix(&self, l: usize) -> Option<Matrix<'m>> {
        Matrix::from_bytes(self.layer_bytes(l)?, self.rows, self.cols, self.weights)
    }

    fn vector(&self, l: usize) -> Option<&'m [f32]> {
        f32_slice(self.layer_bytes(l)?)
    }
}
