//! A GPU on the processor: the kernels are compiled as C++ and run by shim.h.

use std::ffi::{CStr, CString, c_char, c_uint, c_void};
use std::process::Command;

use half::{bf16, f16};

use crate::model::Dtype;
use crate::model::cuda::gpu::{Arg, Gpu, Matrix, Memory, Product};
use crate::model::cuda::kernels::{Kind, NAMES, source};

/// The kernels in a shared library of their own, with one set of threads, and the seed of the order
/// of these.
pub struct Shim {
    library: *mut c_void,
    kind: Kind,
    pub seed: u32,
    /// The library's folder, for the address sanitizer to read names in it.
    _folder: tempfile::TempDir,
}

type Emulate = unsafe extern "C" fn(*const c_uint, *mut *mut c_void, c_uint, c_uint) -> *const c_char;

impl Shim {
    /// Without a compiler the tests say that they are skipped.
    pub fn new(kind: Kind, seed: u32, edit: impl Fn(String) -> String) -> Option<Shim> {
        let folder = tempfile::tempdir().unwrap();
        let (cpp, so) = (folder.path().join("kernels.cpp"), folder.path().join("kernels.so"));
        let kernels: String = NAMES.iter().map(|name| format!("EMULATE({name})\n")).collect();
        std::fs::write(&cpp, format!("#include \"shim.h\"\n{}{kernels}", edit(source(kind)))).unwrap();
        std::fs::write(folder.path().join("shim.h"), include_str!("../shim/shim.h")).unwrap();
        let compiler = Command::new("g++")
            // A GPU reads and writes no 16 bytes at an address that is no multiple of 16.
            .args(["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"])
            .args(["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused", "-o"])
            .args([&so, &cpp])
            .args(std::env::var("SHIM_FLAGS").unwrap_or_default().split_whitespace())
            .env_remove("LD_PRELOAD")
            .output();
        let Ok(output) = compiler else {
            println!("skipped: no g++");
            return None;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
        let path = CString::new(so.to_str().unwrap()).unwrap();
        // SAFETY: a path that ends in 0, of a library that was made for this and does nothing when
        // it is loaded.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!library.is_null(), "the library does not load");
        Some(Shim { library, kind, seed, _folder: folder })
    }
}

/// Words on the heap.
pub struct Heap(pub Vec<u32>);

impl Memory for Heap {
    fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }
}

/// The words at an address.
///
/// # Safety
/// So many words are there, of a [`Heap`] that is alive.
unsafe fn words<'a, T>(address: u64, words: usize) -> &'a mut [T] {
    // SAFETY: as above; f32 and u32 have the size and alignment of a word.
    unsafe { std::slice::from_raw_parts_mut(address as *mut T, words) }
}

impl Gpu for Shim {
    type Memory = Heap;
    type Error = String;

    fn kind(&self) -> Kind {
        self.kind
    }

    fn alloc(&self, words: usize) -> Result<Heap, String> {
        Ok(Heap(vec![f32::NAN.to_bits(); words])) // reading what nobody wrote shows
    }

    fn upload<T: bytemuck::Pod>(&self, address: u64, values: &[T]) -> Result<(), String> {
        // SAFETY: the caller names memory of `alloc`.
        unsafe { words::<T>(address, values.len()) }.copy_from_slice(values);
        Ok(())
    }

    fn download(&self, address: u64, values: &mut [f32]) -> Result<(), String> {
        // SAFETY: as in `upload`.
        values.copy_from_slice(unsafe { words::<f32>(address, values.len()) });
        Ok(())
    }

    fn launch(&self, kernel: &'static str, grid: [usize; 3], args: &[Arg]) -> Result<(), String> {
        let name = CString::new(format!("emulate_{kernel}")).unwrap();
        let grid = grid.map(|n| n as c_uint);
        let mut pointers: Vec<_> = args.iter().map(Arg::pointer).collect();
        // SAFETY: the library has a function of type Emulate for each kernel, which reads the grid
        // and as many arguments as it counts; the step passes the types that the kernel has.
        let error = unsafe {
            let function = libc::dlsym(self.library, name.as_ptr());
            assert!(!function.is_null(), "no kernel {kernel}");
            let emulate: Emulate = std::mem::transmute(function);
            emulate(grid.as_ptr(), pointers.as_mut_ptr(), args.len() as c_uint, self.seed)
        };
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: a constant string of the library, which is never unloaded.
        Err(format!("{kernel}: {}", unsafe { CStr::from_ptr(error) }.to_string_lossy()))
    }

    fn multiply(&self, Product { size: [m, n, k], out, a, b, add }: &Product) -> Result<(), String> {
        for i in 0..*m {
            for j in 0..*n {
                let product = |l| f64::from(get(a, i, l)) * f64::from(get(b, l, j));
                let sum = (0..*k).map(product).sum::<f64>() as f32;
                set(out, i, j, sum + if *add { get(out, i, j) } else { 0.0 });
            }
        }
        Ok(())
    }
}

/// The address of an element of a matrix in memory.
fn at(x: &Matrix, row: usize, col: usize) -> u64 {
    let i = if x.transposed { col * x.stride + row } else { row * x.stride + col };
    x.address + (x.dtype.bytes() * i) as u64
}

pub fn get(x: &Matrix, row: usize, col: usize) -> f32 {
    let at = at(x, row, col);
    // SAFETY: the step names matrices of these sizes and formats.
    unsafe {
        match x.dtype {
            Dtype::Float32 => *(at as *const f32),
            Dtype::Bfloat16 => (*(at as *const bf16)).into(),
            Dtype::Float16 => (*(at as *const f16)).into(),
        }
    }
}

fn set(x: &Matrix, row: usize, col: usize, value: f32) {
    let at = at(x, row, col);
    // SAFETY: as in `get`.
    unsafe {
        match x.dtype {
            Dtype::Float32 => *(at as *mut f32) = value,
            Dtype::Bfloat16 => *(at as *mut bf16) = bf16::from_f32(value),
            Dtype::Float16 => *(at as *mut f16) = f16::from_f32(value),
        }
    }
}

/// Where the address sanitizer is loaded, it ends the process when a kernel touches these bytes, or
/// no longer.
pub fn forbid(gaps: &[(u64, usize)], forbidden: bool) {
    let name = if forbidden { c"__asan_poison_memory_region" } else { c"__asan_unpoison_memory_region" };
    // SAFETY: a name that ends in 0.
    let function = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if function.is_null() {
        return;
    }
    // SAFETY: both of the sanitizer's functions have this type.
    let function: unsafe extern "C" fn(*const c_void, usize) = unsafe { std::mem::transmute(function) };
    for (address, bytes) in gaps {
        // SAFETY: bytes of a `Heap`, which allows them again when it is freed.
        unsafe { function(*address as *const c_void, *bytes) };
    }
}
