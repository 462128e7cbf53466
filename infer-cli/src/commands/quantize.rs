//! Rewrites a model in int8, of any size: input pages are mapped and forgotten, output is streamed.
//! An int8 input takes the memory of its largest matrix in f32; that of an f32 input is mapped.

mod companion;

use std::borrow::Cow;
use std::io;
use std::path::Path;

use anyhow::{Context, anyhow};
use infer_core::format::{Header, Tensor, Version, WriteError, write};
use infer_core::{Error, WeightType};
use infer_text::{TOKENIZER_BIN, TOKENIZER_JSON};
use same_file::is_same_file;
use tempfile::NamedTempFile;

use crate::note::{note, progress};
use crate::session::Usage;
use crate::source::{Source, folder_of};
use crate::unfinished;
use companion::Companion;

pub fn run(input: &Path, output: &Path, tokenizer: Option<&Path>) -> anyhow::Result<()> {
    let in_file = || format!("model {}", input.display());
    let bytes = Source::model(Some(input))?;
    let source = Header::parse_any_group(&bytes).with_context(in_file)?;
    let layout = source.layout_of(bytes.len() as u64).with_context(in_file)?;
    let (need, have) = (layout.file_bytes, bytes.len() as u64);
    if have < need {
        return Err(Error::Truncated { need, have }).with_context(in_file);
    }
    let config = source.config.quantized().with_context(in_file)?;
    let target = Header::new(Version::V2, config).with_tokens(source.tokens).with_template(source.template);

    let out_file = || format!("output {}", output.display());
    check_output(input, output)?;
    let companions = Companion::all(input, output, tokenizer, &target)?;
    let mut temporary = temporary_beside(output).with_context(out_file)?;
    let unfinished = unfinished::remember(temporary.path());
    let targets = target.layout().with_context(in_file)?;
    let progress = progress(targets.file_bytes, "{bar:40} {bytes} of {total_bytes}, {eta} left")?;
    let mut doing = "the header".to_owned();
    let written = write(temporary.as_file_mut(), &target, |name, layer| {
        doing = format!("{} of layer {layer}", name.as_str());
        progress.set_position(targets.get(name).map_or(0, |t| t.offset + layer as u64 * t.stride));
        Ok(layout.get(name).map_or(Cow::Borrowed(&[]), |tensor| weights(&bytes, &tensor, layer)))
    });
    let WeightType::Q8 { group_size } = config.weights else { unreachable!("quantized() gives Q8") };
    let written = written.map_err(|e| match e {
        WriteError::NotFinite { name, index, .. } => match targets.get(name).map(|t| t.weights) {
            Some(WeightType::Q8 { group_size }) => {
                let group = index / group_size;
                anyhow!("a weight of group {group} is not a finite number: the model is damaged")
            }
            _ => anyhow!("weight {index} is not a finite number: the model is damaged"),
        },
        e => e.into(),
    });
    written.with_context(|| format!("writing {doing} to {}", output.display()))?;
    temporary.as_file().sync_all().with_context(out_file)?;
    for companion in &companions {
        companion.write()?; // first: a model without its tokenizer is of no use
    }
    temporary.persist(output).with_context(out_file)?;
    drop(unfinished);
    progress.finish_and_clear();
    note(format_args!("{}: {} bytes, int8 in groups of {group_size}", output.display(), targets.file_bytes))?;
    if ![TOKENIZER_BIN, TOKENIZER_JSON].iter().any(|name| output.with_file_name(name).exists()) {
        note(format_args!("there is no {TOKENIZER_BIN} beside {}: -z brings one along", input.display()))?;
    }
    Ok(())
}

/// Refuses outputs that would replace the input or what is no file.
fn check_output(input: &Path, output: &Path) -> anyhow::Result<()> {
    let out_file = format!("output {}", output.display());
    if output.metadata().is_ok_and(|there| !there.is_file()) {
        return Err(Usage(format!("{out_file} is there and not a regular file: name the file to be written")).into());
    }
    if is_same_file(input, output).unwrap_or(false) {
        return Err(Usage(format!("{out_file} is the input itself: give another name")).into());
    }
    if output.file_name().is_some_and(|name| companion::NAMES.iter().any(|taken| name == *taken)) {
        let what = "is the place of the model's tokenizer or chat template";
        return Err(Usage(format!("{out_file} {what}: give another name")).into());
    }
    Ok(())
}

/// A new file in the folder of this one. Under the final name there is then the whole file or
/// nothing: it is renamed at the end.
fn temporary_beside(path: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".quantize-");
    #[cfg(unix)] // as any new file, not only for its owner
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    builder.tempfile_in(folder_of(path))
}

/// The weights of one layer of a tensor. Groups of the input may cross rows, and scales need not be
/// aligned.
fn weights<'b>(bytes: &'b [u8], tensor: &Tensor, layer: usize) -> Cow<'b, [f32]> {
    let (start, stride) = ((tensor.offset + layer as u64 * tensor.stride) as usize, tensor.stride as usize);
    let bytes = &bytes[start..start + stride];
    let f32s = |bytes: &'b [u8]| bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk));
    match tensor.weights {
        WeightType::F32 => match bytemuck::try_cast_slice(bytes) {
            Ok(weights) => Cow::Borrowed(weights),
            Err(_) => f32s(bytes).collect(), // not aligned
        },
        WeightType::Q8 { group_size } => {
            let (q, scales) = bytes.split_at(tensor.rows * tensor.cols);
            let groups = q.chunks_exact(group_size).zip(f32s(scales));
            groups.flat_map(|(q, scale)| q.iter().map(move |&q| f32::from(q as i8) * scale)).collect()
        }
    }
}
