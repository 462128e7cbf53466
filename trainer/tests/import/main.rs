//! Imports models of every format, from files that the programs of those formats wrote: the
//! fixtures of `tests/fixtures` and, where they are there, the models of `shared/`.

mod fixtures;
mod hostile;
mod published;
mod smollm2;

use std::path::Path;

use infer_core::format::{Header, write};
use trainer::io::foreign::Foreign;
use trainer::io::import::model::Hints;
use trainer::io::import::open;
use trainer::io::rotary;
use trainer::io::weights::FileVersion;

/// The model of a folder or file.
fn import(path: &Path) -> Foreign {
    open(path, &Hints::default()).unwrap_or_else(|e| panic!("{e:#}"))
}

/// The model file of a model.
fn model_file(model: &Foreign, version: FileVersion) -> Vec<u8> {
    let header: Header = version.header(&model.header).unwrap();
    let mut file = Vec::new();
    write(&mut file, &header, |name, layer| rotary::read(&*model.values, &header.config, name, layer)).unwrap();
    file
}

/// The error of an import, on one line.
fn error(path: &Path, hints: &Hints) -> String {
    match open(path, hints) {
        Ok(_) => panic!("{} was imported", path.display()),
        Err(e) => format!("{e:#}"),
    }
}
