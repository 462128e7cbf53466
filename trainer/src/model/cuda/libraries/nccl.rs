//! The functions of NCCL that cudarc and this program call.

use std::ffi::{c_char, c_int, c_void};

use cudarc::nccl::sys::{self, *};

use super::NCCL;

functions! {
    NCCL, ncclResult_t, ncclResult_t::ncclSystemError;

    ncclAllGather(
        sendbuff: *const c_void, recvbuff: *mut c_void, sendcount: usize, datatype: ncclDataType_t,
        comm: ncclComm_t, stream: cudaStream_t
    );
    ncclAllReduce(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        op: ncclRedOp_t, comm: ncclComm_t, stream: cudaStream_t
    );
    ncclBroadcast(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        root: c_int, comm: ncclComm_t, stream: cudaStream_t
    );
    ncclCommAbort(comm: ncclComm_t);
    ncclCommCount(comm: ncclComm_t, count: *mut c_int);
    ncclCommCuDevice(comm: ncclComm_t, device: *mut c_int);
    ncclCommDestroy(comm: ncclComm_t);
    ncclCommFinalize(comm: ncclComm_t);
    ncclCommGetAsyncError(comm: ncclComm_t, async_error: *mut ncclResult_t);
    ncclCommInitAll(comm: *mut ncclComm_t, ndev: c_int, devlist: *const c_int);
    ncclCommInitRank(comm: *mut ncclComm_t, nranks: c_int, comm_id: ncclUniqueId, rank: c_int);
    ncclCommInitRankConfig(
        comm: *mut ncclComm_t, nranks: c_int, comm_id: ncclUniqueId, rank: c_int,
        config: *mut ncclConfig_t
    );
    ncclCommSplit(
        comm: ncclComm_t, color: c_int, key: c_int, newcomm: *mut ncclComm_t,
        config: *mut ncclConfig_t
    );
    ncclCommUserRank(comm: ncclComm_t, rank: *mut c_int);
    ncclGetUniqueId(unique_id: *mut ncclUniqueId);
    ncclGetVersion(version: *mut c_int);
    ncclGroupEnd();
    ncclGroupStart();
    ncclRecv(
        recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t, peer: c_int,
        comm: ncclComm_t, stream: cudaStream_t
    );
    ncclRedOpCreatePreMulSum(
        op: *mut ncclRedOp_t, scalar: *mut c_void, datatype: ncclDataType_t,
        residence: ncclScalarResidence_t, comm: ncclComm_t
    );
    ncclRedOpDestroy(op: ncclRedOp_t, comm: ncclComm_t);
    ncclReduce(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        op: ncclRedOp_t, root: c_int, comm: ncclComm_t, stream: cudaStream_t
    );
    ncclReduceScatter(
        sendbuff: *const c_void, recvbuff: *mut c_void, recvcount: usize, datatype: ncclDataType_t,
        op: ncclRedOp_t, comm: ncclComm_t, stream: cudaStream_t
    );
    ncclSend(
        sendbuff: *const c_void, count: usize, datatype: ncclDataType_t, peer: c_int,
        comm: ncclComm_t, stream: cudaStream_t
    );
}

functions! {
    NCCL, *const c_char, std::ptr::null();

    ncclGetLastError(comm: ncclComm_t);
}
