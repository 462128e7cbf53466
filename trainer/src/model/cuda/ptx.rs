//! The kernels in the GPU's assembly, compiled once and kept in the user's cache.
#![allow(unsafe_code)]

use std::path::PathBuf;

use anyhow::anyhow;
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts, sys};
use sha2::{Digest, Sha256};

use crate::data::shards::hex;
use crate::io::files::write_whole;

/// Compiles the source of kernels for an architecture such as `compute_90`, unless the cache has
/// them. A cache that cannot be read or written only costs the time to compile.
///
/// # Errors
/// NVRTC does not know the architecture.
pub fn ptx(source: String, architecture: String) -> anyhow::Result<String> {
    // A driver does not read what a newer compiler writes.
    let (mut major, mut minor) = (0, 0);
    // SAFETY: two places for numbers, which outlive the call.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    let hash = Sha256::digest(format!("{major}.{minor} {architecture}\n{source}"));
    let cached = cache().map(|folder| folder.join(format!("{}.ptx", hex(&hash))));
    if let Some(text) = cached.as_ref().and_then(|path| std::fs::read_to_string(path).ok()) {
        return Ok(text);
    }
    let arch: &str = architecture.leak(); // NVRTC's options take no other
    let options = CompileOptions { arch: Some(arch), ..Default::default() };
    let ptx = compile_ptx_with_opts(source, options)
        .map_err(|e| anyhow!("NVRTC does not compile the kernels for {arch}: {e}"))?
        .to_src();
    if let Some(path) = cached {
        let _ = write_whole(&path, |file| Ok(file.write_all(ptx.as_bytes())?));
    }
    Ok(ptx)
}

/// The folder of this program in the user's cache (XDG Base Directory Specification).
fn cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    folder.is_absolute().then(|| folder.join(env!("CARGO_PKG_NAME")))
}
