//! A model on its way between file formats: what an import makes and an export takes.

use std::borrow::Cow;
use std::io;

use infer_core::format::{Header, TensorName};

use crate::io::vocabulary::Vocabulary;

/// A model of any format, in infer-core's terms. Its weights stay in the file until they are read.
pub struct Foreign {
    /// The model's header, of version 1.
    pub header: Header,
    /// The vocabulary, if the format has brought one.
    pub vocabulary: Option<Vocabulary>,
    /// The source of the chat template in Jinja, if there is one.
    pub template: Option<String>,
    /// The weights.
    pub values: Box<dyn Values>,
}

impl Foreign {
    /// The model as writers take it.
    pub fn parts(&self) -> Parts<'_> {
        Parts {
            header: &self.header,
            vocabulary: self.vocabulary.as_ref(),
            template: self.template.as_deref(),
            values: &*self.values,
        }
    }
}

/// A model as writers take it.
#[derive(Clone, Copy)]
pub struct Parts<'a> {
    /// The model's header, of any version.
    pub header: &'a Header,
    /// The vocabulary.
    pub vocabulary: Option<&'a Vocabulary>,
    /// The source of the chat template in Jinja.
    pub template: Option<&'a str>,
    /// The weights.
    pub values: &'a dyn Values,
}

/// Weights that are read one tensor at a time.
pub trait Values {
    /// The weights of one matrix or norm in llama2.c's layout: the shape is that of
    /// [`Header::layout`], and neighbouring rows of wq and wk are rotated together.
    ///
    /// # Errors
    /// The file cannot be read. The message names the tensor.
    fn read(&self, name: TensorName, layer: usize) -> io::Result<Cow<'_, [f32]>>;

    /// A rotary table of version 0 as the model's file has it, if it has one. The file may have
    /// more positions than the model.
    ///
    /// # Errors
    /// The file cannot be read.
    fn table(&self, name: TensorName) -> io::Result<Option<Vec<f32>>> {
        _ = name;
        Ok(None)
    }
}
