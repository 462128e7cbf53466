//! A whole step by the kernels, against the CPU, without a GPU: the kernels are compiled as C++ and
//! run by shim.h.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_uint, c_void};
use std::process::Command;
use std::sync::Mutex;

use super::gpu::{Arg, Gpu, Matrix, Memory, Product, THREADS};
use super::kernels::{NAMES, source};
use super::layout::{Layout, Parameters, Sizes};
use super::step::{Step, split};
use crate::io::loss_scale::LossScale;
use crate::io::tensors::shapes;
use crate::model::tests::{Case, TINY};
use crate::model::{AdamW, Batch, Dtype, IGNORED, Llama, Options, clip_gradients};
use dfdx::prelude::Cpu;
use half::{bf16, f16};
use infer_core::Config;

/// The kernels in a shared library, and the seed of the order of the threads.
struct Shim {
    library: *mut c_void,
    seed: u32,
    /// The library's folder, for the address sanitizer to read names in it.
    _folder: tempfile::TempDir,
}

type Emulate = unsafe extern "C" fn(*const c_uint, *mut *mut c_void, c_uint, c_uint) -> *const c_char;

/// The shim has one set of threads.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

impl Shim {
    /// Without a compiler the tests say that they are skipped.
    fn new(head_size: usize, dtype: Dtype, seed: u32, edit: impl Fn(String) -> String) -> Option<Shim> {
        let folder = tempfile::tempdir().unwrap();
        let (cpp, so) = (folder.path().join("kernels.cpp"), folder.path().join("kernels.so"));
        let kernels: String = NAMES.iter().map(|name| format!("EMULATE({name})\n")).collect();
        std::fs::write(&cpp, format!("#include \"shim.h\"\n{}{kernels}", edit(source(head_size, dtype)))).unwrap();
        std::fs::write(folder.path().join("shim.h"), include_str!("shim/shim.h")).unwrap();
        let compiler = Command::new("g++")
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
        Some(Shim { library, seed, _folder: folder })
    }
}

/// Words on the heap.
struct Heap(Vec<u32>);

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

fn get(x: &Matrix, row: usize, col: usize) -> f32 {
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

/// Loss, gradients and logits of a case.
type Results = (f32, Vec<Vec<f32>>, Vec<f32>);

/// How a step is computed.
#[derive(Clone, Copy, Default)]
struct How {
    dtype: Dtype,
    loss_scale: f32,
    recompute: bool,
}

const F32: How = How { dtype: Dtype::Float32, loss_scale: 1.0, recompute: false };

fn emulated(shim: &Shim, how: How, model: &Llama<Cpu>, batch: &Batch, options: &Options) -> Result<Results, String> {
    let How { dtype, loss_scale, recompute } = how;
    let config = model.config;
    let shapes = shapes(&config).unwrap();
    let block = |dtype| {
        let words = Parameters::new(&config, 0, dtype).words;
        let heap = shim.alloc(words).unwrap();
        shim.clear(heap.address(), words).unwrap();
        let at = Parameters::new(&config, heap.address(), dtype);
        forbid(&at.gaps);
        (heap, at)
    };
    let (_weights, weights) = block(dtype);
    for (shape, values) in shapes.iter().zip(model.to_vecs()) {
        if shape.is_norm() {
            shim.upload(weights.address(shape), &values)?;
        } else {
            let args = [weights.address(shape), values.as_ptr() as u64, values.len() as u64].map(Arg::Address);
            shim.launch("cast", [values.len().div_ceil(THREADS), 1, 1], &args)?;
        }
    }
    let (heap, gradients) = block(Dtype::Float32);
    let Options { teacher, .. } = options;
    let (sequences, length) = (batch.sequences, batch.length);
    let (teacher, texts) = (teacher.is_some(), batch.starts.is_some());
    let sizes = Sizes { config, sequences, length, keep: true, teacher, texts, dtype, recompute };
    let memory = shim.alloc(Layout::new(&sizes, 0).words)?;
    let layout = Layout::new(&sizes, memory.address());
    forbid(&layout.gaps);
    let step = Step { gpu: shim, sizes, layout, weights, options: *options, loss_scale };
    let counted = batch.targets.iter().filter(|t| **t != IGNORED).count();
    let loss = step.loss(batch, Some(&gradients))? / counted as f64;
    let gradients = shapes.iter().map(|shape| {
        let at = (gradients.address(shape) - heap.address()) as usize / 4;
        heap.0[at..][..shape.size()].iter().map(|bits| f32::from_bits(*bits) / loss_scale).collect()
    });
    let gradients = gradients.collect();
    let sizes = Sizes { keep: false, teacher: true, texts: false, ..sizes };
    let memory = shim.alloc(Layout::new(&sizes, 0).words)?;
    let layout = Layout::new(&sizes, memory.address());
    forbid(&layout.gaps);
    let logits = Step { sizes, layout, options: Options::default(), ..step }.logits(batch.tokens)?;
    Ok((loss as f32, gradients, logits))
}

/// Where the address sanitizer is loaded, it ends the process when a kernel touches these bytes.
fn forbid(gaps: &[(u64, usize)]) {
    // SAFETY: a name that ends in 0.
    let poison = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__asan_poison_memory_region".as_ptr()) };
    if poison.is_null() {
        return;
    }
    // SAFETY: the sanitizer's function has this type.
    let poison: unsafe extern "C" fn(*const c_void, usize) = unsafe { std::mem::transmute(poison) };
    for (address, bytes) in gaps {
        // SAFETY: bytes of a `Heap`, which allows them again when it is freed.
        unsafe { poison(*address as *const c_void, *bytes) };
    }
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
        let Some(shim) = Shim::new(config.head_size(), Dtype::Float32, seed, |source| source) else { return };
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
                let (loss, gradients, logits) = emulated(&shim, F32, &case.model, &batch, &options).unwrap();
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

/// Activations of 16 bits: the loss and the direction of the gradients are those of f32.
#[test]
fn sixteen_bits_come_near() {
    for (dtype, loss_scale, tolerance) in [(Dtype::Bfloat16, 1.0, 5e-2), (Dtype::Float16, 1024.0, 1e-2)] {
        let Some(shim) = Shim::new(TINY.head_size(), dtype, 4, |source| source) else { return };
        let case = Case::new(TINY, 3, 37);
        for (dropout, teacher) in [(0.0, None), (0.3, case.teacher())] {
            let options = Options { dropout, seed: 5, teacher };
            let (expected_loss, expected) = case.cpu(&options);
            let how = How { dtype, loss_scale, recompute: false };
            let (loss, gradients, logits) = emulated(&shim, how, &case.model, &case.batch(), &options).unwrap();
            assert!((loss - expected_loss).abs() < tolerance / 5.0 * expected_loss, "{loss} {expected_loss}");
            case.assert_close(&gradients, &expected, tolerance);
            let expected = case.model.logits(&case.tokens, 3, 37).unwrap();
            let (worst, largest) =
                (largest_difference(&logits, &expected), largest_difference(&expected, &vec![0.0; expected.len()]));
            println!("{dtype:?}: {worst} of {largest}");
            assert!(worst > 0.0 && worst < tolerance * largest, "{worst} of {largest}");
        }
    }
}

/// Ten steps of AdamW with clipping, on new batches, by the gradients of the kernels and by those
/// of the CPU; in float16 the first step overflows.
#[test]
fn ten_steps_follow_the_cpu() {
    let formats = [(Dtype::Float32, 1.0, 1e-5), (Dtype::Bfloat16, 1.0, 1e-2), (Dtype::Float16, 2f32.powi(24), 1e-2)];
    for (dtype, scale, tolerance) in formats {
        let Some(shim) = Shim::new(TINY.head_size(), dtype, 6, |source| source) else { return };
        let mut case = Case::new(TINY, 2, 21);
        let mut model = Llama::from_slices(TINY, &case.model.device, &case.model.to_vecs()).unwrap();
        let new = |model: &Llama<Cpu>| AdamW::new(model, [0.9, 0.95], 0.1).unwrap();
        let (mut adam, mut emulated_adam) = (new(&case.model), new(&model));
        let mut loss_scale = LossScale { scale, ..LossScale::default() };
        let mut steps = 0;
        while steps < 10 {
            case.next_batch(steps);
            let how = How { dtype, loss_scale: loss_scale.scale, recompute: false };
            let options = Options { dropout: 0.1, seed: u64::from(steps), teacher: None };
            let (loss, values, _) = emulated(&shim, how, &model, &case.batch(), &options).unwrap();
            let mut gradients = model.zero_gradients().unwrap();
            for (parameter, values) in model.parameters.iter().zip(values) {
                gradients.get_or_alloc_mut(&parameter.tensor).unwrap().copy_from_slice(&values);
            }
            let norm = clip_gradients(&model, &mut gradients, 0.1).unwrap();
            if !loss_scale.update(norm.is_finite()) {
                continue;
            }
            emulated_adam.step(&mut model, 1e-2, &mut gradients).unwrap();
            let mut gradients = case.model.zero_gradients().unwrap();
            let expected = case.model.loss_and_gradients(&case.batch(), &options, 1.0, &mut gradients).unwrap();
            clip_gradients(&case.model, &mut gradients, 0.1).unwrap();
            adam.step(&mut case.model, 1e-2, &mut gradients).unwrap();
            assert!((loss - expected).abs() < tolerance * expected, "{dtype:?}, step {steps}: {loss} {expected}");
            steps += 1;
        }
        let is_half = dtype == Dtype::Float16;
        assert_eq!((loss_scale.skipped > 0, loss_scale.scale < scale), (is_half, is_half), "{loss_scale:?}");
    }
}

#[test]
fn activations_can_be_computed_again() {
    let config = Config::new(24, 40, 3, 2, 19, 40);
    for dtype in [Dtype::Float32, Dtype::Bfloat16] {
        let Some(shim) = Shim::new(config.head_size(), dtype, 1, |source| source) else { return };
        let case = Case::new(config, 2, 33);
        let options = Options { dropout: 0.2, seed: 7, teacher: None };
        let [kept, again] = [false, true].map(|recompute| {
            emulated(&shim, How { dtype, recompute, loss_scale: 1.0 }, &case.model, &case.batch(), &options).unwrap()
        });
        assert!(kept == again, "{dtype:?}");
    }
}

#[test]
fn memory_of_activations_that_are_computed_again_is_of_one_layer() {
    let config = Config::new(64, 172, 12, 8, 512, 256);
    let words = |recompute| {
        let (teacher, texts, dtype) = (false, false, Dtype::Bfloat16);
        Layout::new(&Sizes { config, sequences: 4, length: 256, keep: true, teacher, texts, dtype, recompute }, 0).words
    };
    let positions = 4 * 256;
    let (input, layer) = (positions * 64, positions * (2 * 64 + 2 + 8 + (64 + 192 + 64 + 64 + 2 * 172) / 2));
    assert_eq!(words(false) - words(true), 11 * layer - 11 * input);
}

#[test]
fn a_missing_barrier_shows() {
    const BARRIER: &str = "__syncthreads();";
    let config = Config::new(24, 24, 1, 1, 190, 70); // logits for every warp of a block
    let case = Case::new(config, 1, 70);
    let batch = case.batch();
    let options = [None, case.teacher()].map(|teacher| Options { teacher, ..Options::default() });
    let expected = options.map(|options| case.cpu(&options));
    let barriers = source(config.head_size(), Dtype::Float32).matches(BARRIER).count();
    for barrier in 0..barriers {
        let without = |source: String| {
            let parts: Vec<&str> = source.split(BARRIER).collect();
            let (before, after) = parts.split_at(barrier + 1);
            format!("{};{}", before.join(BARRIER), after.join(BARRIER))
        };
        let Some(mut shim) = Shim::new(config.head_size(), Dtype::Float32, 0, without) else { return };
        let mut agrees = |seed| {
            shim.seed = seed;
            options.iter().zip(&expected).all(|(options, (expected_loss, expected))| {
                let results = emulated(&shim, F32, &case.model, &batch, options);
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
