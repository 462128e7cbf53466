//! Settings that are one of a few words.
//!
//! Parsing takes any text, and `Settings::check` refuses unknown words: so a wrong word gives the
//! same message whether it stands in a file or on the command line.

use serde::{Deserialize, Serialize};

use crate::model;

/// The weights that a run starts from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum InitFrom {
    /// A random initialisation.
    Scratch,
    /// The last checkpoint in out_dir.
    Resume,
    /// The model file at this path.
    Model(String),
}

impl From<String> for InitFrom {
    fn from(text: String) -> InitFrom {
        match text.as_str() {
            "scratch" => InitFrom::Scratch,
            "resume" => InitFrom::Resume,
            _ => InitFrom::Model(text),
        }
    }
}

impl From<InitFrom> for String {
    fn from(init_from: InitFrom) -> String {
        match init_from {
            InitFrom::Scratch => "scratch".into(),
            InitFrom::Resume => "resume".into(),
            InitFrom::Model(path) => path,
        }
    }
}

/// The device that a run computes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Device {
    /// The processor.
    Cpu,
    /// The NVIDIA GPU of this number, in a build with the feature `cuda`.
    Cuda(usize),
    /// No device of this program.
    Unknown(String),
}

impl From<String> for Device {
    fn from(text: String) -> Device {
        match text.as_str() {
            "cpu" => Device::Cpu,
            "cuda" => Device::Cuda(0),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(number)) => Device::Cuda(number),
                _ => Device::Unknown(text),
            },
        }
    }
}

impl From<Device> for String {
    fn from(device: Device) -> String {
        match device {
            Device::Cpu => "cpu".into(),
            Device::Cuda(0) => "cuda".into(),
            Device::Cuda(number) => format!("cuda:{number}"),
            Device::Unknown(text) => text,
        }
    }
}

/// Number format of the computation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Dtype {
    /// A format of this program.
    Known(model::Dtype),
    /// None.
    Unknown(String),
}

const DTYPES: [(&str, model::Dtype); 3] =
    [("float32", model::Dtype::Float32), ("bfloat16", model::Dtype::Bfloat16), ("float16", model::Dtype::Float16)];

impl Dtype {
    /// The format; f32 in place of an unknown one, which `Settings::check` refuses.
    pub fn format(&self) -> model::Dtype {
        match self {
            Dtype::Known(dtype) => *dtype,
            Dtype::Unknown(_) => model::Dtype::Float32,
        }
    }
}

impl From<String> for Dtype {
    fn from(text: String) -> Dtype {
        let known = DTYPES.iter().find(|(name, _)| *name == text);
        known.map_or(Dtype::Unknown(text), |(_, dtype)| Dtype::Known(*dtype))
    }
}

impl From<Dtype> for String {
    fn from(dtype: Dtype) -> String {
        match dtype {
            Dtype::Known(dtype) => {
                DTYPES.iter().find(|(_, known)| *known == dtype).map(|(name, _)| (*name).into()).unwrap_or_default()
            }
            Dtype::Unknown(text) => text,
        }
    }
}

/// The origin of the vocabulary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum VocabSource {
    /// A vocabulary that is trained on the stories, or given.
    Custom,
    /// The 32,000 tokens of Llama 2.
    Llama2,
    /// No source of this program.
    Unknown(String),
}

impl From<String> for VocabSource {
    fn from(text: String) -> VocabSource {
        match text.as_str() {
            "custom" => VocabSource::Custom,
            "llama2" => VocabSource::Llama2,
            _ => VocabSource::Unknown(text),
        }
    }
}

impl From<VocabSource> for String {
    fn from(source: VocabSource) -> String {
        match source {
            VocabSource::Custom => "custom".into(),
            VocabSource::Llama2 => "llama2".into(),
            VocabSource::Unknown(text) => text,
        }
    }
}
