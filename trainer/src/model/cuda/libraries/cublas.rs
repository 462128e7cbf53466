//! The functions of cuBLAS that cudarc and this program call.

use std::ffi::{c_int, c_longlong, c_void};

use cudarc::cublas::sys::{self, *};

use super::CUBLAS;

functions! {
    CUBLAS, cublasStatus_t, cublasStatus_t::CUBLAS_STATUS_NOT_INITIALIZED;

    cublasCreate_v2(handle: *mut cublasHandle_t);
    cublasDestroy_v2(handle: cublasHandle_t);
    cublasDgemmStridedBatched(
        handle: cublasHandle_t, transa: cublasOperation_t, transb: cublasOperation_t, m: c_int,
        n: c_int, k: c_int, alpha: *const f64, a: *const f64, lda: c_int, stride_a: c_longlong,
        b: *const f64, ldb: c_int, stride_b: c_longlong, beta: *const f64, c: *mut f64, ldc: c_int,
        stride_c: c_longlong, batch_count: c_int
    );
    cublasDgemm_v2(
        handle: cublasHandle_t, transa: cublasOperation_t, transb: cublasOperation_t, m: c_int,
        n: c_int, k: c_int, alpha: *const f64, a: *const f64, lda: c_int, b: *const f64, ldb: c_int,
        beta: *const f64, c: *mut f64, ldc: c_int
    );
    cublasDgemv_v2(
        handle: cublasHandle_t, trans: cublasOperation_t, m: c_int, n: c_int, alpha: *const f64,
        a: *const f64, lda: c_int, x: *const f64, incx: c_int, beta: *const f64, y: *mut f64,
        incy: c_int
    );
    cublasGemmEx(
        handle: cublasHandle_t, transa: cublasOperation_t, transb: cublasOperation_t, m: c_int,
        n: c_int, k: c_int, alpha: *const c_void, a: *const c_void, atype: cudaDataType, lda: c_int,
        b: *const c_void, btype: cudaDataType, ldb: c_int, beta: *const c_void, c: *mut c_void,
        ctype: cudaDataType, ldc: c_int, compute_type: cublasComputeType_t, algo: cublasGemmAlgo_t
    );
    cublasGemmStridedBatchedEx(
        handle: cublasHandle_t, transa: cublasOperation_t, transb: cublasOperation_t, m: c_int,
        n: c_int, k: c_int, alpha: *const c_void, a: *const c_void, atype: cudaDataType, lda: c_int,
        stride_a: c_longlong, b: *const c_void, btype: cudaDataType, ldb: c_int,
        stride_b: c_longlong, beta: *const c_void, c: *mut c_void, ctype: cudaDataType, ldc: c_int,
        stride_c: c_longlong, batch_count: c_int, compute_type: cublasComputeType_t,
        algo: cublasGemmAlgo_t
    );
    cublasSetStream_v2(handle: cublasHandle_t, stream_id: cudaStream_t);
    cublasSgemmStridedBatched(
        handle: cublasHandle_t, transa: cublasOperation_t, transb: cublasOperation_t, m: c_int,
        n: c_int, k: c_int, alpha: *const f32, a: *const f32, lda: c_int, stride_a: c_longlong,
        b: *const f32, ldb: c_int, stride_b: c_longlong, beta: *const f32, c: *mut f32, ldc: c_int,
        stride_c: c_longlong, batch_count: c_int
    );
    cublasSgemm_v2(
        handle: cublasHandle_t, transa: cublasOperation_t, transb: cublasOperation_t, m: c_int,
        n: c_int, k: c_int, alpha: *const f32, a: *const f32, lda: c_int, b: *const f32, ldb: c_int,
        beta: *const f32, c: *mut f32, ldc: c_int
    );
    cublasSgemv_v2(
        handle: cublasHandle_t, trans: cublasOperation_t, m: c_int, n: c_int, alpha: *const f32,
        a: *const f32, lda: c_int, x: *const f32, incx: c_int, beta: *const f32, y: *mut f32,
        incy: c_int
    );
}
