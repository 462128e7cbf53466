//! The GPU as its driver gives it: dfdx's device and stream, own kernels, cuBLAS.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_uint};
use std::sync::Arc;

use anyhow::{anyhow, ensure};
use cudarc::cublas::{CudaBlas, result as cublas, sys as blas};
use cudarc::driver::{CudaDevice, CudaSlice, DevicePtr, result, sys};
use cudarc::nvrtc::sys as nvrtc;
use dfdx::prelude::{Cache, Cuda, CudaError, HasErr, Rank0, Storage, Tensor, TryAdd, ZerosTensor};

use super::gpu::{Arg, Gpu, Memory, Product};
use super::kernels::{Kind, NAMES, THREADS, source};
#[cfg(target_os = "linux")]
use super::libraries;
use super::ptx::ptx;
use crate::model::device::device_error;
use crate::model::precision::{Dtype, MatmulPrecision};

/// Opens the GPU of this number.
///
/// # Errors
/// There is no driver, no such GPU, no cuBLAS or no NVRTC, or this program's kernels do not run on
/// the GPU.
pub fn open_gpu(number: usize) -> anyhow::Result<Cuda> {
    #[cfg(target_os = "linux")]
    libraries::DRIVER.load().map_err(|e| anyhow!("device is cuda: {e}"))?;
    // dfdx panics without a driver or a GPU, so it is asked only after the driver. An error has its
    // text from the driver, which may have none to give; its name (`e.0`) is always there.
    result::init().map_err(|e| anyhow!("device is cuda: there is no NVIDIA GPU to compute on ({:?})", e.0))?;
    #[cfg(target_os = "linux")]
    for library in [&libraries::CUBLAS, &libraries::NVRTC] {
        library.load().map_err(|e| anyhow!("device is cuda: {e}"))?;
    }
    check_version()?;
    let count = result::device::get_count().map_err(|e| anyhow!("device is cuda: {:?}", e.0))?;
    ensure!(
        number < count as usize,
        "device is cuda:{number}: this machine has {count} GPU(s), counted from 0, and each rank takes one of its own"
    );
    let device = Cuda::try_build(number, 0).map_err(device_error::<Cuda>)?;
    device.enable_cache(); // each step reuses the memory of the last
    let zero: Tensor<Rank0, f32, Cuda> = device.try_zeros().map_err(device_error::<Cuda>)?;
    let one = zero
        .try_add(1.0)
        .map_err(|e| anyhow!("this program was built for another GPU, or for a newer driver ({e})"))?;
    ensure!(one.as_vec() == [1.0], "the GPU computes 0 + 1 = {:?}", one.as_vec());
    Ok(device)
}

/// Checks that the driver is not too old for the CUDA libraries of this program: cuBLAS would only
/// say that it is not initialised.
fn check_version() -> anyhow::Result<()> {
    let (mut driver, mut major, mut minor) = (0, 0, 0);
    // SAFETY: both functions write numbers to the places they are given.
    unsafe {
        sys::cuDriverGetVersion(&mut driver).result().map_err(|e| anyhow!("device is cuda: {:?}", e.0))?;
        nvrtc::nvrtcVersion(&mut major, &mut minor);
    }
    let (knows, point) = (driver / 1000, driver % 1000 / 10);
    ensure!(
        knows >= major,
        "device is cuda: the driver is too old: it knows CUDA {knows}.{point}, and this program needs {major}: install \
         a newer driver"
    );
    Ok(())
}

/// The device as cudarc has it, which dfdx hands out with memory only.
///
/// # Errors
/// The device has no memory.
pub fn device_of(device: &Cuda) -> anyhow::Result<Arc<CudaDevice>> {
    Ok(Storage::<f32>::try_alloc_len(device, 1).map_err(device_error::<Cuda>)?.device())
}

/// Kernels for models of a head size in a number format, on a device.
pub struct Driver {
    device: Arc<CudaDevice>,
    blas: CudaBlas,
    functions: HashMap<&'static str, sys::CUfunction>,
    pub precision: MatmulPrecision,
    pub kind: Kind,
}

// SAFETY: handles of functions, which the driver lets every thread use. The module that they belong
// to is never unloaded.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

impl Driver {
    /// Loads the kernels.
    ///
    /// # Errors
    /// The device fails, or NVRTC does not know it.
    pub fn new(device: &Cuda, head_size: usize, precision: MatmulPrecision, dtype: Dtype) -> anyhow::Result<Driver> {
        let device = device_of(device)?;
        let failed = |e: result::DriverError| anyhow!("the device failed: {e}");
        let capability = |part| device.attribute(part).map_err(failed);
        let major = capability(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = capability(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        ensure!(
            dtype != Dtype::Bfloat16 || major >= 8,
            "dtype is bfloat16: this GPU multiplies none (compute capability {major}.{minor}, it takes 8.0); take float16"
        );
        let kind = Kind::new(head_size, dtype, major as usize);
        let image = CString::new(ptx(source(kind), format!("compute_{major}{minor}"))?)?;
        device.bind_to_thread().map_err(failed)?;
        // SAFETY: PTX that ends in 0, and names of kernels in it. The context is bound.
        let functions = unsafe {
            let module = result::module::load_data(image.as_ptr().cast()).map_err(failed)?;
            let function = |name| result::module::get_function(module, CString::new(name)?).map_err(failed);
            NAMES.iter().map(|name| Ok((*name, function(*name)?))).collect::<anyhow::Result<_>>()?
        };
        let blas = CudaBlas::new(device.clone()).map_err(|e| anyhow!("cuBLAS failed: {e}"))?;
        Ok(Driver { device, blas, functions, precision, kind })
    }
}

/// Memory of the device.
pub struct Block(CudaSlice<f32>);

impl Memory for Block {
    fn address(&self) -> u64 {
        *self.0.device_ptr()
    }
}

impl Block {
    pub fn words(&self) -> usize {
        cudarc::driver::DeviceSlice::len(&self.0)
    }
}

impl Gpu for Driver {
    type Memory = Block;
    type Error = <Cuda as HasErr>::Err;

    fn kind(&self) -> Kind {
        self.kind
    }

    fn alloc(&self, words: usize) -> Result<Block, CudaError> {
        // SAFETY: any bits are an f32.
        Ok(Block(unsafe { self.device.alloc(words) }?))
    }

    fn upload<T: bytemuck::Pod>(&self, address: u64, values: &[T]) -> Result<(), CudaError> {
        self.device.bind_to_thread()?;
        // SAFETY: the caller names memory of the device. The driver has copied values of pageable
        // memory when the call returns.
        Ok(unsafe { result::memcpy_htod_async(address, values, *self.device.cu_stream()) }?)
    }

    fn download(&self, address: u64, values: &mut [f32]) -> Result<(), CudaError> {
        self.device.bind_to_thread()?;
        // SAFETY: the caller names memory of the device. The stream is the default one, which this
        // copy waits for.
        Ok(unsafe { result::memcpy_dtoh_sync(values, address) }?)
    }

    fn launch(&self, kernel: &'static str, grid: [usize; 3], args: &[Arg]) -> Result<(), CudaError> {
        self.device.bind_to_thread()?;
        let [x, y, z] = grid.map(|n| n as c_uint);
        let mut pointers: Vec<_> = args.iter().map(Arg::pointer).collect();
        let (function, block) = (self.functions[kernel], (THREADS as c_uint, 1, 1));
        // SAFETY: the step passes a kernel what it takes, which the tests' shim has checked, and
        // the addresses of memory that is alive. The driver copies the arguments.
        Ok(unsafe { result::launch_kernel(function, (x, y, z), block, 0, *self.device.cu_stream(), &mut pointers) }?)
    }

    fn multiply(&self, Product { size: [m, n, k], out, a, b, add }: &Product) -> Result<(), CudaError> {
        self.device.bind_to_thread()?;
        let (one, beta) = (1f32, if *add { 1f32 } else { 0.0 });
        let transposed =
            |t| if t { blas::cublasOperation_t::CUBLAS_OP_T } else { blas::cublasOperation_t::CUBLAS_OP_N };
        let compute = match (a.dtype, self.precision) {
            (Dtype::Float32, MatmulPrecision::Medium) => blas::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let int = |n: usize| n as c_int;
        // cuBLAS has columns where this program has rows, so it is given the transposed product.
        // SAFETY: the step names matrices of these sizes in memory that is alive.
        Ok(unsafe {
            cublas::gemm_ex(
                *self.blas.handle(),
                transposed(b.transposed),
                transposed(a.transposed),
                int(*n),
                int(*m),
                int(*k),
                std::ptr::from_ref(&one).cast(),
                b.address as *const _,
                kind(b.dtype),
                int(b.stride),
                a.address as *const _,
                kind(a.dtype),
                int(a.stride),
                std::ptr::from_ref(&beta).cast(),
                out.address as *mut _,
                kind(out.dtype),
                int(out.stride),
                compute,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DFALT,
            )
        }?)
    }
}

/// A format by cuBLAS's name.
fn kind(dtype: Dtype) -> blas::cudaDataType_t {
    match dtype {
        Dtype::Float32 => blas::cudaDataType_t::CUDA_R_32F,
        Dtype::Bfloat16 => blas::cudaDataType_t::CUDA_R_16BF,
        Dtype::Float16 => blas::cudaDataType_t::CUDA_R_16F,
    }
}
