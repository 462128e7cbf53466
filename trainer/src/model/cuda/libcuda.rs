//! The functions of the driver that cudarc and this program call, so that the program starts where
//! there is no driver.
//!
//! cudarc declares them, and a program that is linked with libcuda.so.1 is ended by the system's
//! loader where that is missing. The functions here have the same names, so the linker takes them;
//! each hands its call to the driver's function, which is looked up on the first call. A function
//! of cudarc that is not in the list brings the link back: `ci/gpu.sh build` looks for it.
#![allow(unsafe_code, non_snake_case)]

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::*;

/// Loads the driver's library, once.
///
/// # Errors
/// The loader's words.
pub fn load() -> Result<(), &'static str> {
    library().map(|_| ())
}

/// The handle of the driver's library, which is never closed.
fn library() -> Result<usize, &'static str> {
    static LIBRARY: OnceLock<Result<usize, String>> = OnceLock::new();
    let open = || {
        // SAFETY: the name ends in 0. The library is the driver's, and its initialisers run.
        match unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) } as usize {
            // SAFETY: dlopen has failed in this thread, so dlerror gives its text, which ends in 0.
            0 => Err(unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned()),
            library => Ok(library),
        }
    };
    LIBRARY.get_or_init(open).as_ref().copied().map_err(String::as_str)
}

/// The address of a function of the driver, by its name with a 0 behind it. It is 0 if there is no
/// driver, or the driver is older than the function.
fn find(name: &str) -> usize {
    let (Ok(library), Ok(name)) = (library(), CStr::from_bytes_with_nul(name.as_bytes())) else { return 0 };
    // SAFETY: the handle of a library that stays open, and a name that ends in 0.
    unsafe { libc::dlsym(library as *mut c_void, name.as_ptr()) as usize }
}

macro_rules! functions {
    ($($name:ident($($arg:ident: $type:ty),* $(,)?);)*) => {$(
        // A linker that sees the driver's library would export the function, and the driver's own
        // calls would come here.
        std::arch::global_asm!(concat!(".hidden ", stringify!($name)));

        // SAFETY: no other function of this program has the name: the driver is not linked.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $type),*) -> CUresult {
            type Function = unsafe extern "C" fn($($type),*) -> CUresult;
            const _: Function = cudarc::driver::sys::$name; // the list has the signatures that cudarc has
            static ADDRESS: OnceLock<usize> = OnceLock::new();
            match *ADDRESS.get_or_init(|| find(concat!(stringify!($name), "\0"))) {
                0 => CUresult::CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND,
                // SAFETY: the address of the driver's function of this name, which has this
                // signature. The caller keeps to the driver's rules.
                address => unsafe { std::mem::transmute::<usize, Function>(address)($($arg),*) },
            }
        }
    )*};
}

functions! {
    cuCtxGetCurrent(pctx: *mut CUcontext);
    cuCtxSetCurrent(ctx: CUcontext);
    cuDestroyExternalMemory(ext_mem: CUexternalMemory);
    cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    cuDeviceGetAttribute(pi: *mut c_int, attrib: CUdevice_attribute, dev: CUdevice);
    cuDeviceGetCount(count: *mut c_int);
    cuDevicePrimaryCtxRelease_v2(dev: CUdevice);
    cuDevicePrimaryCtxRetain(pctx: *mut CUcontext, dev: CUdevice);
    cuDeviceTotalMem_v2(bytes: *mut usize, dev: CUdevice);
    cuDriverGetVersion(driver_version: *mut c_int);
    cuEventCreate(ph_event: *mut CUevent, flags: c_uint);
    cuEventDestroy_v2(h_event: CUevent);
    cuEventElapsedTime(p_milliseconds: *mut f32, h_start: CUevent, h_end: CUevent);
    cuEventRecord(h_event: CUevent, h_stream: CUstream);
    cuExternalMemoryGetMappedBuffer(
        dev_ptr: *mut CUdeviceptr, ext_mem: CUexternalMemory, buffer_desc: *const CUDA_EXTERNAL_MEMORY_BUFFER_DESC
    );
    cuGetErrorName(error: CUresult, p_str: *mut *const c_char);
    cuGetErrorString(error: CUresult, p_str: *mut *const c_char);
    cuImportExternalMemory(
        ext_mem_out: *mut CUexternalMemory, mem_handle_desc: *const CUDA_EXTERNAL_MEMORY_HANDLE_DESC
    );
    cuInit(flags: c_uint);
    cuLaunchKernel(
        f: CUfunction, grid_dim_x: c_uint, grid_dim_y: c_uint, grid_dim_z: c_uint, block_dim_x: c_uint,
        block_dim_y: c_uint, block_dim_z: c_uint, shared_mem_bytes: c_uint, h_stream: CUstream,
        kernel_params: *mut *mut c_void, extra: *mut *mut c_void
    );
    cuMemAllocAsync(dptr: *mut CUdeviceptr, bytesize: usize, h_stream: CUstream);
    cuMemAlloc_v2(dptr: *mut CUdeviceptr, bytesize: usize);
    cuMemFreeAsync(dptr: CUdeviceptr, h_stream: CUstream);
    cuMemFree_v2(dptr: CUdeviceptr);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemcpyDtoDAsync_v2(
        dst_device: CUdeviceptr, src_device: CUdeviceptr, byte_count: usize, h_stream: CUstream
    );
    cuMemcpyDtoD_v2(dst_device: CUdeviceptr, src_device: CUdeviceptr, byte_count: usize);
    cuMemcpyDtoHAsync_v2(
        dst_host: *mut c_void, src_device: CUdeviceptr, byte_count: usize, h_stream: CUstream
    );
    cuMemcpyDtoH_v2(dst_host: *mut c_void, src_device: CUdeviceptr, byte_count: usize);
    cuMemcpyHtoDAsync_v2(
        dst_device: CUdeviceptr, src_host: *const c_void, byte_count: usize, h_stream: CUstream
    );
    cuMemcpyHtoD_v2(dst_device: CUdeviceptr, src_host: *const c_void, byte_count: usize);
    cuMemsetD8Async(dst_device: CUdeviceptr, uc: c_uchar, n: usize, h_stream: CUstream);
    cuMemsetD8_v2(dst_device: CUdeviceptr, uc: c_uchar, n: usize);
    cuModuleGetFunction(hfunc: *mut CUfunction, hmod: CUmodule, name: *const c_char);
    cuModuleLoad(module: *mut CUmodule, fname: *const c_char);
    cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
    cuModuleUnload(hmod: CUmodule);
    cuOccupancyAvailableDynamicSMemPerBlock(
        dynamic_smem_size: *mut usize, func: CUfunction, num_blocks: c_int, block_size: c_int
    );
    cuOccupancyMaxActiveBlocksPerMultiprocessor(
        num_blocks: *mut c_int, func: CUfunction, block_size: c_int, dynamic_smem_size: usize
    );
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        num_blocks: *mut c_int, func: CUfunction, block_size: c_int, dynamic_smem_size: usize, flags: c_uint
    );
    cuOccupancyMaxActiveClusters(
        num_clusters: *mut c_int, func: CUfunction, config: *const CUlaunchConfig
    );
    cuOccupancyMaxPotentialBlockSize(
        min_grid_size: *mut c_int, block_size: *mut c_int, func: CUfunction,
        block_size_to_dynamic_smem_size: CUoccupancyB2DSize, dynamic_smem_size: usize, block_size_limit: c_int
    );
    cuOccupancyMaxPotentialBlockSizeWithFlags(
        min_grid_size: *mut c_int, block_size: *mut c_int, func: CUfunction,
        block_size_to_dynamic_smem_size: CUoccupancyB2DSize, dynamic_smem_size: usize, block_size_limit: c_int,
        flags: c_uint
    );
    cuOccupancyMaxPotentialClusterSize(
        cluster_size: *mut c_int, func: CUfunction, config: *const CUlaunchConfig
    );
    cuProfilerStart();
    cuProfilerStop();
    cuStreamCreate(ph_stream: *mut CUstream, flags: c_uint);
    cuStreamDestroy_v2(h_stream: CUstream);
    cuStreamSynchronize(h_stream: CUstream);
    cuStreamWaitEvent(h_stream: CUstream, h_event: CUevent, flags: c_uint);
}
