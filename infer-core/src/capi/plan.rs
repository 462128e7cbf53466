//! Sizes, before anything runs: what a model is, and the memory that it takes.

use core::ffi::c_void;

use super::error::{call, infer_error};
use super::memory::{Area, apart, infer_memory, one, out, slice};
use crate::config::{Config, WeightType};
use crate::error::Error;
use crate::plan::{KvType, Limits, Plan};

/// Type of the cached keys and values.
#[repr(C)]
pub enum infer_kv {
    /// 4 bytes per value.
    INFER_KV_F32 = 0,
    /// 1 byte per value, with scales.
    INFER_KV_I8 = 1,
}

/// The limits a context is sized for.
#[repr(C)]
pub struct infer_limits {
    /// Positions of a sequence, prompt included: 1 to the model's seq_len. The KV cache grows with
    /// it.
    pub max_seq: usize,
    /// The most tokens per infer_forward: 1 on a chip, about 32 to read prompts fast.
    pub batch: usize,
    /// Bytes of the longest text for infer_encode.
    pub prompt_bytes: usize,
    /// An infer_kv.
    pub kv: u32,
}

/// Hyperparameters of a model.
#[repr(C)]
pub struct infer_config {
    /// Width of the residual stream.
    pub dim: usize,
    /// Width of the feed-forward network.
    pub hidden_dim: usize,
    /// Transformer layers. A pass takes as many calls of infer_step.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Number of tokens, and of logits.
    pub vocab_size: usize,
    /// Positions the model was trained for.
    pub seq_len: usize,
    /// Weights that share a scale in an int8 model; 0 for f32.
    pub group_size: usize,
}

/// Reads the header of a model file of llama2.c, version 0, 1 or 2. The first 256 bytes of the file
/// are enough.
///
/// Errors: INFER_ERROR_TRUNCATED, INFER_ERROR_UNKNOWN_VERSION, INFER_ERROR_HEADER,
/// INFER_ERROR_GROUP_SIZE.
///
/// # Safety
/// `model` points to `model_bytes` readable bytes, and `config` to an infer_config, whose content
/// does not matter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_read_config(
    model: *const c_void,
    model_bytes: usize,
    config: *mut infer_config,
) -> infer_error {
    call(|| {
        let result = out("config", config)?;
        apart(&[Area::new("config", config, 1)], &[Area::new("model", model.cast::<u8>(), model_bytes)])?;
        // SAFETY: the caller passes `model_bytes` readable bytes, which nothing writes meanwhile.
        let c = Config::from_header(unsafe { slice("model", model.cast(), model_bytes) }?)?;
        let group_size = match c.weights {
            WeightType::F32 => 0,
            WeightType::Q8 { group_size } => group_size,
        };
        let Config { dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, .. } = c;
        let config = infer_config { dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, group_size };
        // SAFETY: `out` has found it neither null nor misaligned, and the caller passes room for
        // one value, which `apart` has found apart from what is read.
        unsafe { result.write(config) };
        Ok(())
    })
}

/// Says how much memory a model takes within `limits`: sets `bytes` of every part of `memory` to
/// the exact number, which may be 0, and `data` to NULL. The first 256 bytes of the model file are
/// enough.
///
/// Errors: as infer_read_config; INFER_ERROR_SETTING for a limit out of range,
/// INFER_ERROR_TOO_LARGE, INFER_ERROR_UNSUPPORTED.
///
/// # Safety
/// `model` points to `model_bytes` readable bytes, `limits` to an infer_limits, and `memory` to an
/// infer_memory, whose content does not matter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_plan(
    model: *const c_void,
    model_bytes: usize,
    limits: *const infer_limits,
    memory: *mut infer_memory,
) -> infer_error {
    call(|| {
        let result = out("memory", memory)?;
        let read = [Area::new("limits", limits, 1), Area::new("model", model.cast::<u8>(), model_bytes)];
        apart(&[Area::new("memory", memory, 1)], &read)?;
        // SAFETY: the caller passes an infer_limits and `model_bytes` readable bytes, which nothing
        // writes meanwhile.
        let (limits, model) = unsafe { (one("limits", limits)?, slice("model", model.cast(), model_bytes)?) };
        let plan = plan(&Config::from_header(model)?, limits)?;
        let memory = infer_memory::needed(&plan, limits.prompt_bytes)?;
        // SAFETY: `out` has found it neither null nor misaligned, and the caller passes room for
        // one value, which `apart` has found apart from what is read.
        unsafe { result.write(memory) };
        Ok(())
    })
}

pub(super) fn plan(config: &Config, limits: &infer_limits) -> Result<Plan, Error> {
    let kv = match limits.kv {
        0 => KvType::F32,
        1 => KvType::Q8,
        other => {
            let (value, rule) = (f64::from(other), "it must be an infer_kv");
            return Err(Error::Setting { name: "kv", value, rule });
        }
    };
    config.plan(Limits { max_seq: limits.max_seq, batch: limits.batch, threads: 1, kv })
}
