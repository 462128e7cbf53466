//! The functions of NVRTC that cudarc and this program call.

use std::ffi::{c_char, c_int};

use cudarc::nvrtc::sys::{self, *};

use super::NVRTC;

functions! {
    NVRTC, nvrtcResult, nvrtcResult::NVRTC_ERROR_INTERNAL_ERROR;

    nvrtcCompileProgram(prog: nvrtcProgram, num_options: c_int, options: *const *const c_char);
    nvrtcCreateProgram(
        prog: *mut nvrtcProgram, src: *const c_char, name: *const c_char, num_headers: c_int,
        headers: *const *const c_char, include_names: *const *const c_char
    );
    nvrtcDestroyProgram(prog: *mut nvrtcProgram);
    nvrtcGetPTX(prog: nvrtcProgram, ptx: *mut c_char);
    nvrtcGetPTXSize(prog: nvrtcProgram, ptx_size_ret: *mut usize);
    nvrtcGetProgramLog(prog: nvrtcProgram, log: *mut c_char);
    nvrtcGetProgramLogSize(prog: nvrtcProgram, log_size_ret: *mut usize);
    nvrtcVersion(major: *mut c_int, minor: *mut c_int);
}
