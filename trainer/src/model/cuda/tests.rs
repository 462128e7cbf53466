//! A whole step by the kernels, against the CPU, without a GPU: the kernels are compiled as C++ and
//! run by shim.h.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_uint, c_void};
use std::process::Command;
use std::sync::Mutex;

use super::gpu::{Arg, Gpu, Matrix, Memory, Product};
use super::kernels::{NAMES, source};
use super::layout::{Layout, Parameters, Sizes};
use super::step::{Step, split};
use crate::io::tensors::shapes;
use crate::model::tests::{Case, TINY};
use crate::model::{Batch, IGNORED, Options};
use infer_core::Config;

/// The kernels in a shared library, and the seed of the order of the threads.
struct Shim {
    library: *mut c_void,
    seed: u32,
}

type Emulate = unsafe extern "C" fn(*const c_uint, *mut *mut c_void, c_uint, c_uint) -> *const c_char;

/// The shim has one set of threads.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

impl Shim {
    /// Without a compiler the tests say that they are skipped.
    fn new(head_size: usize, seed: u32, edit: impl Fn(String) -> String) -> Option<Shim> {
        let folder = tempfile::tempdir().unwrap();
        let (cpp, so) = (folder.path().join("kernels.cpp"), folder.path().join("kernels.so"));
        let kernels: String = NAMES.iter().map(|name| format!("EMULATE({name})\n")).collect();
        std::fs::write(&cpp, format!("#include \"shim.h\"\n{}{kernels}", edit(source(head_size)))).unwrap();
        std::fs::write(folder.path().join("shim.h"), include_str!("shim/shim.h")).unwrap();
        let compiler = Command::new("g++")
            .args(["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused", "-o"])
            .args([&so, &cpp])
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
        Some(Shim { library, seed })
    }
}

/// Words on the heap.
struct Heap(Vec<u32>);

impl Memory for Heap {
    fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    fn words(&self) -> usize {
        self.0.len()
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

    fn alloc(&self, words: usize) -> Result<Heap, String> {
        Ok(Heap(vec![f32::NAN.to_bits(); words])) // reading what nobody wrote shows
    }

    fn clear(&self, address: u64, n: usize) -> Result<(), String> {
        // SAFETY: the caller names memory of `alloc`.
        unsafe { words::<u32>(address, n) }.fill(0);
        Ok(())
    }

    fn upload<T: bytemuck::Pod>(&self, address: u64, values: &[T]) -> Result<(), String> {
        // SAFETY: as in `clear`.
        unsafe { words::<T>(address, values.len()) }.copy_from_slice(values);
        Ok(())
    }

    fn download(&self, address: u64, values: &mut [f32]) -> Result<(), String> {
        // SAFETY: as in `clear`.
        values.copy_from_slice(unsafe { words::<f32>(address, values.len()) });
        Ok(())
    }

    fn launch(&self, kernel: &'static str, grid: [usize; 3], args: &[Arg]) -> Result<(), String> {
        let name = CString::new(format!("emulate_{kernel}")).unwrap();
        let grid = grid.map(|n| n as c_uint);
        let mut pointers: Vec<_> = args.iter().map(Arg::pointer).collect();
        let _one = ONE_AT_A_TIME.lock();
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
        let at = |x: &Matrix, row: usize, col: usize| {
            let i = if x.transposed { col * x.stride + row } else { row * x.stride + col };
            x.address + 4 * i as u64
        };
        for i in 0..*m {
            for j in 0..*n {
                // SAFETY: the step names matrices of these sizes.
                let get = |x, row, col| unsafe { words::<f32>(at(x, row, col), 1)[0] };
                let sum: f64 = (0..*k).map(|l| f64::from(get(a, i, l)) * f64::from(get(b, l, j))).sum();
                // SAFETY: as above.
                let out = unsafe { &mut words::<f32>(at(out, i, j), 1)[0] };
                *out = sum as f32 + if *add { *out } else { 0.0 };
            }
        }
        Ok(())
    }
}

/// Loss, gradients and logits of a case.
type Results = (f32, Vec<Vec<f32>>, Vec<f32>);

fn emulated(shim: &Shim, case: &Case, batch: &Batch, options: &Options) -> Result<Results, String> {
    let config = case.model.config;
    let shapes = shapes(&config).unwrap();
    let weights: Vec<Heap> = case.model.to_vecs().into_iter().map(to_heap).collect();
    let zeros = |w: &Heap| {
        let zeros = shim.alloc(w.words())?;
        shim.clear(zeros.address(), zeros.words()).map(|()| zeros)
    };
    let gradients = weights.iter().map(zeros).collect::<Result<Vec<Heap>, String>>()?;
    let parameters =
        |heaps: &[Heap]| Parameters::new(&config, &shapes, &heaps.iter().map(Heap::address).collect::<Vec<_>>());
    let run = |keep, options| {
        let Options { teacher, .. } = options;
        let sizes = Sizes {
            config,
            sequences: batch.sequences,
            length: batch.length,
            keep,
            teacher: teacher.is_some(),
            texts: keep && batch.starts.is_some(),
        };
        let memory = shim.alloc(Layout::new(&sizes, 0).words).unwrap();
        let layout = Layout::new(&sizes, memory.address());
        (memory, Step { gpu: shim, sizes, layout, weights: parameters(&weights), options })
    };
    let (_memory, step) = run(true, *options);
    let counted = batch.targets.iter().filter(|t| **t != IGNORED).count();
    let loss = step.loss(batch, Some(&parameters(&gradients)))? / counted as f64;
    let (_memory, step) = run(false, Options::default());
    let logits = step.logits(batch.tokens)?;
    let gradients = gradients.into_iter().map(|g| g.0.into_iter().map(f32::from_bits).collect()).collect();
    Ok((loss as f32, gradients, logits))
}

fn to_heap(values: Vec<f32>) -> Heap {
    Heap(values.into_iter().map(f32::to_bits).collect())
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |max, (a, b)| if (a - b).abs() <= max { max } else { (a - b).abs() })
}

/// Head sizes of 4 to 68, of which 1 to 4 threads share a row; more rows than a block has, and more
/// keys than a tile.
#[test]
fn emulated_kernels_agree_with_cpu() {
    let wide = Config::new(136, 40, 1, 2, 130, 70).with_kv_heads(1);
    let one_head = Config::new(24, 24, 2, 1, 19, 70).with_own_classifier();
    let odd = Config::new(36, 25, 2, 2, 19, 150);
    for (config, seed) in [(TINY, 0), (one_head, 1), (wide, 2), (odd, 3)] {
        let Some(shim) = Shim::new(config.head_size(), seed, |source| source) else { return };
        for (sequences, length) in [(2, 1), (2, 11), (3, 37), (1, config.seq_len)] {
            let case = Case::new(config, sequences, length);
            for (dropout, teacher) in [(0.0, None), (0.3, case.teacher())] {
                let options = Options { dropout, seed: 5, teacher };
                // The second half of a window is a text of its own where there is dropout.
                let halves: Vec<u32> =
                    (0..length).map(|i| if 2 * i < length { 0 } else { length.div_ceil(2) as u32 }).collect();
                let starts = halves.repeat(sequences);
                let batch = Batch { starts: (dropout > 0.0).then_some(&starts), ..case.batch() };
                let (expected_loss, expected) = case.cpu_of(&batch, &options);
                let (loss, gradients, logits) = emulated(&shim, &case, &batch, &options).unwrap();
                assert!((loss - expected_loss).abs() < 1e-5 * expected_loss, "{config:?}: {loss} {expected_loss}");
                // Sums of products in another order: 1e-5 is seen where the gradient is 0.
                case.assert_close(&gradients, &expected, 1e-4);
                let expected = case.model.logits(&case.tokens, sequences, length).unwrap();
                let worst = largest_difference(&logits, &expected);
                assert!(worst < 1e-4, "{config:?}: {worst}");
            }
        }
    }
}

#[test]
fn a_missing_barrier_shows() {
    const BARRIER: &str = "__syncthreads();";
    let config = Config::new(24, 24, 1, 1, 190, 70); // logits for every warp of a block
    let case = Case::new(config, 1, 70);
    let batch = case.batch();
    let options = [None, case.teacher()].map(|teacher| Options { teacher, ..Options::default() });
    let expected = options.map(|options| case.cpu(&options));
    let barriers = source(config.head_size()).matches(BARRIER).count();
    for barrier in 0..barriers {
        let without = |source: String| {
            let parts: Vec<&str> = source.split(BARRIER).collect();
            let (before, after) = parts.split_at(barrier + 1);
            format!("{};{}", before.join(BARRIER), after.join(BARRIER))
        };
        let Some(mut shim) = Shim::new(config.head_size(), 0, without) else { return };
        let mut agrees = |seed| {
            shim.seed = seed;
            options.iter().zip(&expected).all(|(options, (expected_loss, expected))| {
                let results = emulated(&shim, &case, &batch, options);
                results.is_ok_and(|(loss, gradients, _)| {
                    let mut pairs = gradients.iter().zip(expected);
                    (loss - expected_loss).abs() < 1e-5 * expected_loss
                        && pairs.all(|(a, b)| largest_difference(a, b) < 1e-4)
                })
            })
        };
        assert!(!(1..9).all(&mut agrees), "barrier {barrier} of {barriers} is not needed");
    }
}

#[test]
fn threads_of_a_row_divide_the_head() {
    let splits = [2, 8, 16, 24, 34, 48, 64, 96, 128, 250].map(|head_size| (head_size, split(head_size)));
    let expected = [(2, 1), (8, 1), (16, 1), (24, 2), (34, 2), (48, 4), (64, 4), (96, 8), (128, 8), (250, 2)];
    assert_eq!(splits, expected);
}
