//! Opens the model that an export takes: a model file of any version, a checkpoint, or a run.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use infer_core::format::{Header, Layout, Tensor, TensorName};
use infer_core::{Error, Mmap, WeightType};
use infer_text::Template;

use crate::io::checkpoint::{Checkpoint, RUN, TENSORS};
use crate::io::files::{TOKENIZER, TOKENIZER_JSON, folder_of, map};
use crate::io::foreign::{Foreign, Values};
use crate::io::inference::find_checkpoint;
use crate::io::vocabulary::Vocabulary;
use crate::io::weights::{FileVersion, Weights};

/// A model to export.
pub struct Source {
    /// The model.
    pub model: Foreign,
    /// Its name in messages.
    pub name: String,
    /// The files that it is read from.
    pub inputs: Vec<PathBuf>,
}

/// Opens a model file with what lies beside it, a checkpoint, or the best checkpoint of a run's
/// out_dir.
///
/// # Errors
/// A file that is missing or damaged.
pub fn open(path: &Path) -> anyhow::Result<Source> {
    match find_checkpoint(path)? {
        Some(checkpoint) => from_checkpoint(checkpoint),
        None => from_file(path).with_context(|| format!("model {}", path.display())),
    }
}

fn from_checkpoint(mut checkpoint: Checkpoint) -> anyhow::Result<Source> {
    let weights = Weights::from_checkpoint(&mut checkpoint)?;
    let header = FileVersion::V1.header(&weights.header)?;
    let template = match checkpoint.run.template.take() {
        Some(template) => Some(template),
        None => template(&header, &checkpoint.path)?,
    };
    let vocabulary = Some(checkpoint.run.vocabulary(checkpoint.tokenizer));
    Ok(Source {
        model: Foreign { header, vocabulary, template, values: Box::new(weights) },
        name: format!("{} (step {})", checkpoint.path.display(), checkpoint.run.iter),
        inputs: [TENSORS, RUN, TOKENIZER].map(|name| checkpoint.path.join(name)).into(),
    })
}

fn from_file(path: &Path) -> anyhow::Result<Source> {
    let (header, file) = ModelFile::open(path)?;
    let header = FileVersion::V1.header(&header)?;
    let beside = [TOKENIZER, TOKENIZER_JSON].map(|name| path.with_file_name(name));
    let vocabulary = match beside.each_ref().map(|path| path.exists()) {
        [true, _] => Some(Vocabulary::Bin(std::fs::read(&beside[0]).context(TOKENIZER)?)),
        [_, true] => Some(Vocabulary::Json(std::fs::read(&beside[1]).context(TOKENIZER_JSON)?)),
        _ => None,
    };
    let template = template(&header, folder_of(path))?;
    Ok(Source {
        model: Foreign { header, vocabulary, template, values: Box::new(file) },
        name: path.display().to_string(),
        inputs: [path.to_owned()].into_iter().chain(beside).collect(),
    })
}

/// The Jinja source of a model's chat template. A template of no name of ours lies in its folder.
fn template(header: &Header, folder: &Path) -> anyhow::Result<Option<String>> {
    Ok(Template::of(header, folder)?.map(|template| template.jinja_source().to_owned()))
}

/// The weights of a model file.
struct ModelFile {
    bytes: Mmap,
    layout: Layout,
}

impl ModelFile {
    /// Opens a file of any version. Groups of int8 files may cross rows, as llama2.c writes them.
    fn open(path: &Path) -> anyhow::Result<(Header, ModelFile)> {
        let bytes = map(path)?;
        let header = Header::parse_any_group(&bytes)?;
        let layout = header.layout_of(bytes.len() as u64)?;
        let (need, have) = (layout.file_bytes, bytes.len() as u64);
        ensure!(have >= need, Error::Truncated { need, have });
        Ok((header, ModelFile { bytes, layout }))
    }
}

impl Values for ModelFile {
    fn read(&self, name: TensorName, layer: usize) -> io::Result<Cow<'_, [f32]>> {
        let tensor = self.layout.get(name).filter(|tensor| layer < tensor.count);
        let tensor = tensor.ok_or_else(|| io::Error::other(format!("no {} of layer {layer}", name.as_str())))?;
        let Tensor { rows, cols, weights, offset, stride, .. } = tensor;
        let start = (offset + layer as u64 * stride) as usize;
        let bytes = &self.bytes[start..start + stride as usize]; // open() has checked the length
        let f32s =
            |bytes: &[u8]| bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect::<Vec<_>>();
        Ok(match weights {
            WeightType::F32 => bytemuck::try_cast_slice(bytes).map_or_else(|_| f32s(bytes).into(), Cow::Borrowed),
            WeightType::Q8 { group_size } => {
                let (q, scales) = bytes.split_at(rows * cols);
                let groups = q.chunks_exact(group_size).zip(f32s(scales));
                groups.flat_map(|(q, scale)| q.iter().map(move |&q| f32::from(q as i8) * scale)).collect()
            }
        })
    }
}
