//! NVIDIA's libraries, each loaded when it is asked for, so that the program starts where one is
//! missing.
//!
//! cudarc declares their functions, and a program that is linked with such a library is ended by
//! the system's loader where that is missing. The functions in the files here have the same names,
//! so the linker takes them; each hands its call to the library's function, which is looked up on
//! the first call. A function that cudarc calls and no file lists brings the link back:
//! `ci/gpu.sh build` looks for it.
#![allow(unsafe_code, non_snake_case)]

use std::ffi::{CStr, c_void};
use std::sync::OnceLock;

/// Defines functions of a library by their signatures. They return `$failed` where the library is
/// missing, or is older than the function.
macro_rules! functions {
    ($library:ident, $result:ty, $failed:expr; $($name:ident($($arg:ident: $type:ty),* $(,)?);)*) => {$(
        // A linker that sees the library would export the function, and the library's own calls
        // would come here.
        std::arch::global_asm!(concat!(".hidden ", stringify!($name)));

        // SAFETY: no other function of this program has the name: the library is not linked.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $type),*) -> $result {
            type Function = unsafe extern "C" fn($($type),*) -> $result;
            const _: Function = sys::$name; // the list has the signatures that cudarc has
            static ADDRESS: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
            match *ADDRESS.get_or_init(|| $library.find(concat!(stringify!($name), "\0"))) {
                0 => $failed,
                // SAFETY: the address of the library's function of this name, which has this
                // signature. The caller keeps to the library's rules.
                address => unsafe { std::mem::transmute::<usize, Function>(address)($($arg),*) },
            }
        }
    )*};
}

mod cublas;
mod driver;
mod nccl;
mod nvrtc;

pub static DRIVER: Library = Library::new("NVIDIA's driver", &[c"libcuda.so.1"], "install it, or take --device cpu");
// Newer versions first: a driver knows the older ones too.
pub static CUBLAS: Library = Library::new(
    "cuBLAS",
    &[c"libcublas.so.13", c"libcublas.so.12", c"libcublas.so"],
    "install NVIDIA's CUDA toolkit or PyPI's nvidia-cublas, and name the folder of the library in LD_LIBRARY_PATH",
);
pub static NVRTC: Library = Library::new(
    "NVRTC",
    &[c"libnvrtc.so.13", c"libnvrtc.so.12", c"libnvrtc.so"],
    "install NVIDIA's CUDA toolkit or PyPI's nvidia-cuda-nvrtc, and name the folder of the library in LD_LIBRARY_PATH",
);
pub static NCCL: Library = Library::new(
    "NCCL",
    &[c"libnccl.so.2", c"libnccl.so"],
    "install it or PyPI's nvidia-nccl-cu13, and name the folder of the library in LD_LIBRARY_PATH",
);

/// A library of the system.
pub struct Library {
    name: &'static str,
    files: &'static [&'static CStr],
    advice: &'static str,
    /// The handle, which is never closed, or the loader's words.
    handle: OnceLock<Result<usize, String>>,
}

impl Library {
    const fn new(name: &'static str, files: &'static [&'static CStr], advice: &'static str) -> Library {
        Library { name, files, advice, handle: OnceLock::new() }
    }

    /// Loads the library, once.
    ///
    /// # Errors
    /// It is missing: in words, with what to do.
    pub fn load(&self) -> Result<(), String> {
        match self.handle() {
            Ok(_) => Ok(()),
            Err(e) => Err(format!("{} is missing ({e}): {}", self.name, self.advice)),
        }
    }

    /// The library's handle, from the first of the files that can be loaded.
    fn handle(&self) -> Result<usize, &str> {
        let first = || {
            let mut tries = self.files.iter().map(|file| open(file));
            let newest = tries.next().unwrap_or(Err(String::new()));
            newest.or_else(|e| tries.find_map(Result::ok).ok_or(e))
        };
        self.handle.get_or_init(first).as_ref().copied().map_err(String::as_str)
    }

    /// The address of a function, by its name with a 0 behind it. It is 0 if the library is
    /// missing, or older than the function.
    fn find(&self, name: &str) -> usize {
        let (Ok(handle), Ok(name)) = (self.handle(), CStr::from_bytes_with_nul(name.as_bytes())) else { return 0 };
        // SAFETY: the handle of a library that stays open, and a name that ends in 0.
        unsafe { libc::dlsym(handle as *mut c_void, name.as_ptr()) as usize }
    }
}

/// Loads a library by the name of its file.
fn open(file: &CStr) -> Result<usize, String> {
    // SAFETY: the name ends in 0. The library is one of NVIDIA's, and its initialisers run.
    match unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW) } as usize {
        // SAFETY: dlopen has failed in this thread, so dlerror gives its text, which ends in 0.
        0 => Err(unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned()),
        handle => Ok(handle),
    }
}
