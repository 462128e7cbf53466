//! The sum of gradients over the GPUs of all ranks, by NCCL: in place, and not through the host.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cudarc::driver::{CudaDevice, DevicePtr, DriverError, sys};
use cudarc::nccl::sys as nccl;
use dfdx::prelude::Cuda;

use super::backend::Sums;
use super::driver::device_of;
use crate::model::llama::AllReduce;

/// Time for all ranks to connect their GPUs. NCCL itself waits for ever where, say, a firewall
/// keeps two machines apart.
const PATIENCE: Duration = Duration::from_secs(120);
/// Numbers of the long sum that the connection is tried with.
const TRIAL: usize = 1 << 23;
/// Time for which a rank that waits looks at the GPU without a pause.
const SPIN: Duration = Duration::from_millis(2);
/// The pause after that.
const PAUSE: Duration = Duration::from_micros(100);

/// The GPUs of all ranks, seen from one of them.
///
/// It is never freed. To free it may wait for the other ranks, and a rank that has failed is on its
/// way to end them; when training is over, the process ends as well.
pub struct Nccl {
    communicator: nccl::ncclComm_t,
    device: Arc<CudaDevice>,
}

// SAFETY: NCCL lets any thread use a communicator, one at a time.
unsafe impl Send for Nccl {}

impl Nccl {
    /// Loads NCCL.
    ///
    /// # Errors
    /// It is missing: in words, with what to do.
    pub fn load() -> Result<(), String> {
        #[cfg(target_os = "linux")]
        super::libraries::NCCL.load()?;
        Ok(())
    }

    /// Makes the text by which ranks find each other: one rank does, and hands it to the others.
    ///
    /// # Errors
    /// NCCL finds no network to listen on.
    pub fn id() -> anyhow::Result<String> {
        let mut id = nccl::ncclUniqueId::default();
        // SAFETY: the place of an id, which outlives the call.
        check(unsafe { nccl::ncclGetUniqueId(&mut id) })?;
        Ok(STANDARD.encode(id.internal.map(|byte| byte as u8)))
    }

    /// Connects the GPU of this rank with those of the others, and tries the connection.
    ///
    /// # Errors
    /// NCCL fails, or has not come to an end after `PATIENCE`. The other ranks may wait for this
    /// one then: it must end them.
    pub fn connect(gpu: &Cuda, id: &str, rank: usize, size: usize) -> anyhow::Result<Nccl> {
        let id = STANDARD.decode(id).ok().and_then(|id| <[u8; 128]>::try_from(id).ok()).context("no id of NCCL")?;
        let (result, connected) = mpsc::channel();
        let device = device_of(gpu)?;
        thread::Builder::new().name("nccl".into()).spawn(move || {
            let _ = result.send(Nccl::start(device, id, rank, size)); // fails if nobody waits any more
        })?;
        let failed = |_| {
            anyhow!(
                "NCCL has not connected the GPUs of all ranks in {} s: NCCL_DEBUG=INFO shows what it waits for; \
                 NCCL_SOCKET_IFNAME names the network to take",
                PATIENCE.as_secs()
            )
        };
        connected.recv_timeout(PATIENCE).map_err(failed)?
    }

    fn start(device: Arc<CudaDevice>, id: [u8; 128], rank: usize, size: usize) -> anyhow::Result<Nccl> {
        device.bind_to_thread().map_err(failed)?;
        let id = nccl::ncclUniqueId { internal: id.map(|byte| byte as _) };
        std::mem::forget(device.clone()); // NCCL's threads keep to the context to the end
        let mut communicator = std::ptr::null_mut();
        // SAFETY: a place that outlives the call, in a thread that has the GPU's context.
        check(unsafe { nccl::ncclCommInitRank(&mut communicator, size as _, id, rank as _) })?;
        let all = Nccl { communicator, device };
        // NCCL makes some of its connections, and takes some of its memory, with the first sums; a
        // long one goes other ways than a short one.
        for numbers in [1, TRIAL] {
            let ones = all.device.htod_sync_copy(&vec![1f32; numbers]).map_err(failed)?;
            all.sum_at(*ones.device_ptr(), numbers)?;
            let sums = all.device.dtoh_sync_copy(&ones).map_err(failed)?;
            let wrong = sums.iter().find(|sum| **sum != size as f32);
            ensure!(wrong.is_none(), "NCCL fails: a sum of 1 over {size} ranks is {wrong:?}");
        }
        Ok(all)
    }

    /// Replaces numbers by their sum over all ranks.
    fn sum_at(&self, address: u64, numbers: usize) -> anyhow::Result<()> {
        self.device.bind_to_thread().map_err(failed)?;
        let (kind, add) = (nccl::ncclDataType_t::ncclFloat32, nccl::ncclRedOp_t::ncclSum);
        let stream = self.device.cu_stream().cast();
        // SAFETY: the caller names numbers of the device, which stay until `wait` returns. A sum
        // may take the place of what is summed.
        check(unsafe {
            nccl::ncclAllReduce(address as *const _, address as *mut _, numbers, kind, add, self.communicator, stream)
        })?;
        self.wait()
    }

    /// Waits for the device's stream. When another rank or the network is gone, the sum has no end
    /// and NCCL has an error.
    fn wait(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            // SAFETY: the stream of a device that is alive.
            match unsafe { sys::cuStreamQuery(*self.device.cu_stream()) } {
                sys::CUresult::CUDA_SUCCESS => return Ok(()),
                sys::CUresult::CUDA_ERROR_NOT_READY => {}
                error => bail!("the device failed: {error:?}"),
            }
            let mut error = nccl::ncclResult_t::ncclSuccess;
            // SAFETY: a communicator, and a place that outlives the call.
            check(unsafe { nccl::ncclCommGetAsyncError(self.communicator, &mut error) })?;
            check(error)?;
            if start.elapsed() < SPIN { thread::yield_now() } else { thread::sleep(PAUSE) }
        }
    }
}

impl AllReduce<Cuda> for Nccl {
    fn sum(&self, gradients: &mut Sums) -> anyhow::Result<()> {
        // All ranks have the same unit, so what is in memory can be added up.
        self.sum_at(gradients.address(), gradients.len())
    }
}

/// The GPU's number among all that NVIDIA has made.
///
/// # Errors
/// The device fails.
pub fn gpu_number(gpu: &Cuda) -> anyhow::Result<[u32; 4]> {
    let device = device_of(gpu)?;
    let mut number = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: a place that outlives the call, and a device that is alive.
    unsafe { sys::cuDeviceGetUuid(&mut number, *device.cu_device()) }.result().map_err(failed)?;
    let part = |i| u32::from_be_bytes(std::array::from_fn(|byte| number.bytes[4 * i + byte] as u8));
    Ok(std::array::from_fn(part))
}

fn failed(error: DriverError) -> anyhow::Error {
    anyhow!("the device failed: {:?}", error.0)
}

/// Passes on what NCCL says of an error.
fn check(result: nccl::ncclResult_t) -> anyhow::Result<()> {
    use nccl::ncclResult_t::{ncclInProgress, ncclSuccess};
    if matches!(result, ncclSuccess | ncclInProgress) {
        return Ok(());
    }
    // SAFETY: NCCL takes no handle here yet. Its text ends in 0 and stays.
    let text = unsafe {
        let text = nccl::ncclGetLastError(std::ptr::null_mut());
        if text.is_null() { "".into() } else { CStr::from_ptr(text).to_string_lossy() }
    };
    let text = if text.trim().is_empty() { "it says no more".into() } else { text };
    bail!("NCCL fails: {result:?} ({}): NCCL_DEBUG=INFO shows more", text.trim())
}
