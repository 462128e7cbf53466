//! Model files in memory without reading them: the system loads pages when they are used.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

pub use memmap2::Mmap;

use crate::error::Error;
use crate::model::Model;

/// A memory-mapped model file.
///
/// To replace a model that is in use, write a new file and rename it: a program that has mapped the
/// old file keeps it.
#[derive(Debug)]
pub struct MappedModel {
    map: Mmap,
}

/// Why a model file could not be opened.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be opened or mapped.
    Io(io::Error),
    /// The file is not a usable model.
    Format(Error),
}

impl MappedModel {
    /// Maps the file and checks it.
    ///
    /// # Errors
    /// [`OpenError::Io`] or [`OpenError::Format`].
    ///
    /// # Safety
    /// As [`map_file`].
    pub unsafe fn open(path: impl AsRef<Path>) -> Result<MappedModel, OpenError> {
        // SAFETY: the caller promises what `map_file` asks: nobody changes or cuts the file.
        let mapped = MappedModel { map: unsafe { map_file(path.as_ref()) }.map_err(OpenError::Io)? };
        mapped.model().map_err(OpenError::Format)?;
        Ok(mapped)
    }

    /// The model in the file.
    ///
    /// # Errors
    /// None: [`MappedModel::open`] has checked the file.
    pub fn model(&self) -> Result<Model<'_>, Error> {
        Model::from_bytes(&self.map)
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// Maps a file of any content for reading.
///
/// # Errors
/// The file cannot be opened or mapped.
///
/// # Safety
/// As long as the map is used, no process changes the file's bytes, which safe code takes for
/// constant, or cuts it: reading a page that is gone kills the process with SIGBUS (see
/// [`exit_when_a_map_is_cut`]). No program can enforce that: a program promises it on behalf of its
/// user, who should be told.
pub unsafe fn map_file(path: &Path) -> io::Result<Mmap> {
    // Checked before the file is opened: opening a pipe would wait for a writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let file = File::open(path)?;
    // SAFETY: the map is read only, and the caller promises that nobody changes or cuts the file.
    unsafe { Mmap::map(&file) }
}

/// Makes this process end with exit status 1 and one line on standard error when it reads a part of
/// a mapped file that is gone, instead of being killed by SIGBUS without a word. For the start of a
/// program; it replaces the process's handler of that signal. Does nothing but on Linux: elsewhere
/// SIGBUS may also mean a stack overflow.
pub fn exit_when_a_map_is_cut() {
    #[cfg(target_os = "linux")]
    bus_error::handle();
}

#[cfg(target_os = "linux")]
mod bus_error {
    use std::mem::MaybeUninit;
    use std::ptr::null_mut;

    use libc::{SA_ONSTACK, SA_SIGINFO, SIG_DFL, SIGBUS, STDERR_FILENO, c_int, c_void, siginfo_t};

    const MESSAGE: &[u8] =
        b"error: a file that is in use was cut, or cannot be read: to replace one, write another and rename it\n";
    /// The si_code of an access to a map behind the end of its file.
    const BUS_ADRERR: c_int = 2;

    pub fn handle() {
        // SAFETY: all zeros are a sigaction, without flags and with an empty mask. The handler has
        // the signature that SA_SIGINFO asks for, and calls only functions that are safe in a
        // signal handler.
        unsafe {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            action.sa_sigaction = on_bus_error as extern "C" fn(_, _, _) as usize;
            action.sa_flags = SA_SIGINFO | SA_ONSTACK;
            libc::sigaction(SIGBUS, &action, null_mut());
        }
    }

    extern "C" fn on_bus_error(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
        // SAFETY: the system passes a valid siginfo_t; write, _exit and signal are safe in a signal
        // handler.
        unsafe {
            if (*info).si_code == BUS_ADRERR {
                libc::write(STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len());
                libc::_exit(1);
            }
            libc::signal(SIGBUS, SIG_DFL); // something else: the instruction faults again and ends the process
        }
    }
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Io(e) => e.fmt(f),
            OpenError::Format(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {}
