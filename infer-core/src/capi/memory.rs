//! Pointers from C, checked and turned into slices.

use core::ffi::c_void;

use bytemuck::Zeroable;

use super::error::infer_code::*;
use super::error::infer_error;
use crate::cache::KvBuffers;
use crate::error::Error;
use crate::format;
use crate::plan::{KvType, Plan};
use crate::sampler::ProbIndex;
use crate::state::HotBuffers;
use crate::tokenizer::{IndexEntry, MergeSlot, Tokenizer};

/// Every part of the memory, and the model, start at a multiple of this many bytes.
pub const INFER_ALIGN: usize = 4;
/// Parts of an infer_memory.
pub const INFER_PARTS: usize = 7;

/// The parts of an infer_memory. Each may lie in another kind of memory.
#[repr(C)]
pub enum infer_part {
    /// Activations and logits. Touched all the time: the fastest memory.
    INFER_HOT_F32 = 0,
    /// Quantised activations, as fast; 0 bytes for f32 models.
    INFER_HOT_I8 = 1,
    /// Cached keys and values. Read once per token: may be slower.
    INFER_KV_VALUES = 2,
    /// Scales of an int8 KV cache; 0 bytes for f32.
    INFER_KV_SCALES = 3,
    /// Scratch of infer_sample.
    INFER_SAMPLER = 4,
    /// Index of the tokenizer, written once by infer_init.
    INFER_TOKENIZER = 5,
    /// Scratch of infer_encode.
    INFER_MERGE = 6,
}

/// A piece of the caller's memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct infer_buffer {
    /// The first byte; may be NULL where no bytes are needed.
    pub data: *mut c_void,
    /// Bytes.
    pub bytes: usize,
}

/// The memory of a context, by infer_part: `memory.part[INFER_KV_VALUES].data = sdram`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct infer_memory {
    /// The parts.
    pub part: [infer_buffer; INFER_PARTS],
}

const NAMES: [&str; INFER_PARTS] = [
    "INFER_HOT_F32",
    "INFER_HOT_I8",
    "INFER_KV_VALUES",
    "INFER_KV_SCALES",
    "INFER_SAMPLER",
    "INFER_TOKENIZER",
    "INFER_MERGE",
];

// SAFETY: a struct of numbers, for which all bits zero is a value.
unsafe impl Zeroable for ProbIndex {}
// SAFETY: as above.
unsafe impl Zeroable for IndexEntry {}
// SAFETY: as above.
unsafe impl Zeroable for MergeSlot {}

const _: () = assert!(align_of::<f32>() <= INFER_ALIGN && format::ALIGN <= INFER_ALIGN);
const _: () = assert!(align_of::<ProbIndex>() <= INFER_ALIGN);
const _: () = assert!(align_of::<IndexEntry>() <= INFER_ALIGN && align_of::<MergeSlot>() <= INFER_ALIGN);

/// The parts as slices.
pub(super) struct Parts {
    /// Where the parts lie.
    pub areas: [Area; INFER_PARTS],
    pub hot: HotBuffers<'static>,
    pub kv: KvBuffers<'static>,
    pub sampler: &'static mut [ProbIndex],
    pub tokenizer: &'static mut [IndexEntry],
    pub merge: &'static mut [MergeSlot],
}

impl infer_memory {
    /// The bytes that each part needs, without memory.
    pub(super) fn needed(plan: &Plan, prompt_bytes: usize) -> Result<infer_memory, Error> {
        let kv_value = match plan.limits.kv {
            KvType::F32 => size_of::<f32>(),
            KvType::Q8 => size_of::<i8>(),
        };
        let sizes = [
            (plan.hot_f32, size_of::<f32>()),
            (plan.hot_i8, size_of::<i8>()),
            (plan.kv_values, kv_value),
            (plan.kv_scales, size_of::<f32>()),
            (plan.sampler, size_of::<ProbIndex>()),
            (plan.tokenizer, size_of::<IndexEntry>()),
            (Tokenizer::max_tokens(prompt_bytes), size_of::<MergeSlot>()),
        ];
        let mut part = [infer_buffer { data: core::ptr::null_mut(), bytes: 0 }; INFER_PARTS];
        for (part, (n, size)) in part.iter_mut().zip(sizes) {
            part.bytes = n.checked_mul(size).filter(|bytes| isize::try_from(*bytes).is_ok()).ok_or(Error::TooLarge)?;
        }
        Ok(infer_memory { part })
    }

    /// Checks that every part is there, aligned and large enough, and overlaps neither another nor
    /// one of `others`.
    fn check(&self, needed: &infer_memory, others: &[Area]) -> Result<(), infer_error> {
        for (name, (part, needed)) in NAMES.into_iter().zip(self.part.iter().zip(&needed.part)) {
            if part.bytes < needed.bytes {
                let values = [needed.bytes as i64, part.bytes as i64, 0, 0];
                return Err(infer_error::new(INFER_ERROR_MEMORY_TOO_SMALL, name, "", values));
            }
            if needed.bytes > 0 {
                check_pointer(name, part.data, INFER_ALIGN)?;
            }
        }
        apart(&self.areas(needed), others)
    }

    /// Where the parts lie, as far as they are needed.
    fn areas(&self, needed: &infer_memory) -> [Area; INFER_PARTS] {
        let mut areas = [Area::EMPTY; INFER_PARTS];
        for ((area, name), (part, needed)) in areas.iter_mut().zip(NAMES).zip(self.part.iter().zip(&needed.part)) {
            *area = Area { name, start: part.data.addr(), bytes: needed.bytes };
        }
        areas
    }

    /// Checks and cuts the parts. `others` are areas that no part may overlap.
    ///
    /// # Safety
    /// Every part points to so many writable bytes that nothing else uses as long as the result
    /// lives.
    pub(super) unsafe fn lend(&self, plan: &Plan, prompt_bytes: usize, others: &[Area]) -> Result<Parts, infer_error> {
        let needed = infer_memory::needed(plan, prompt_bytes)?;
        self.check(&needed, others)?;
        let [hot_f32, hot_i8, kv_values, kv_scales, sampler, tokenizer, merge] = self.part.map(|part| part.data);
        // SAFETY: `check` has found each part as large as planned and apart from all others, and
        // the caller promises that nothing else uses the parts as long as the result lives.
        unsafe {
            Ok(Parts {
                areas: self.areas(&needed),
                hot: HotBuffers {
                    f32: lend("hot_f32", hot_f32.cast(), plan.hot_f32)?,
                    i8: lend("hot_i8", hot_i8.cast(), plan.hot_i8)?,
                },
                kv: match plan.limits.kv {
                    KvType::F32 => KvBuffers::F32(lend("kv_values", kv_values.cast(), plan.kv_values)?),
                    KvType::Q8 => KvBuffers::Q8 {
                        values: lend("kv_values", kv_values.cast(), plan.kv_values)?,
                        scales: lend("kv_scales", kv_scales.cast(), plan.kv_scales)?,
                    },
                },
                sampler: lend("sampler", sampler.cast(), plan.sampler)?,
                tokenizer: lend("tokenizer", tokenizer.cast(), plan.tokenizer)?,
                merge: lend("merge", merge.cast(), Tokenizer::max_tokens(prompt_bytes))?,
            })
        }
    }
}

/// An area of memory with its name in messages.
#[derive(Clone, Copy)]
pub(super) struct Area {
    name: &'static str,
    start: usize,
    bytes: usize,
}

impl Area {
    const EMPTY: Area = Area { name: "", start: 0, bytes: 0 };

    /// The area of `n` values. It is empty where the size overflows, which [`fits`] refuses.
    pub(super) fn new<T>(name: &'static str, pointer: *const T, n: usize) -> Area {
        let bytes = n.checked_mul(size_of::<T>()).filter(|bytes| isize::try_from(*bytes).is_ok());
        Area { name, start: pointer.addr(), bytes: bytes.unwrap_or(0) }
    }

    fn overlaps(&self, other: &Area) -> bool {
        let ends_after = |a: &Area, start: usize| start < a.start.saturating_add(a.bytes);
        self.bytes > 0 && other.bytes > 0 && ends_after(self, other.start) && ends_after(other, self.start)
    }
}

/// Checks that memory which is `written` overlaps neither itself nor what is `read`.
pub(super) fn apart(written: &[Area], read: &[Area]) -> Result<(), infer_error> {
    for (i, a) in written.iter().enumerate() {
        if let Some(b) = written.iter().take(i).chain(read).find(|b| a.overlaps(b)) {
            return Err(infer_error::new(INFER_ERROR_OVERLAP, a.name, b.name, [0; 4]));
        }
    }
    Ok(())
}

/// The memory that belongs to a context, which no argument of a call may overlap.
pub(super) struct Owned {
    /// The context itself, and the parts of its memory.
    pub written: [Area; INFER_PARTS + 1],
    /// Model and tokenizer.
    pub read: [Area; 2],
}

impl Owned {
    /// Checks that what a call writes overlaps neither itself, nor what it reads, nor anything of
    /// the context, and that what it reads overlaps nothing that the context writes.
    pub fn check(&self, written: &[Area], read: &[Area]) -> Result<(), infer_error> {
        apart(written, read)?;
        apart(written, &self.read)?;
        for area in written.iter().chain(read) {
            apart(core::slice::from_ref(area), &self.written)?;
        }
        Ok(())
    }
}

/// Checks that a pointer is neither null nor misaligned, and returns it.
pub(super) fn out<T>(name: &'static str, pointer: *mut T) -> Result<*mut T, infer_error> {
    check_pointer(name, pointer, align_of::<T>())?;
    Ok(pointer)
}

fn check_pointer<T>(name: &'static str, pointer: *mut T, align: usize) -> Result<(), infer_error> {
    if pointer.is_null() {
        return Err(infer_error::new(INFER_ERROR_NULL, name, "", [0; 4]));
    }
    if !pointer.addr().is_multiple_of(align) {
        return Err(infer_error::new(INFER_ERROR_MISALIGNED, name, "", [align as i64, 0, 0, 0]));
    }
    Ok(())
}

/// Borrows a value to read.
///
/// # Safety
/// `pointer` points to a T that stays unchanged for the lifetime, if it is not null.
pub(super) unsafe fn one<'a, T>(name: &'static str, pointer: *const T) -> Result<&'a T, infer_error> {
    let pointer = out(name, pointer.cast_mut())?;
    // SAFETY: `out` has found it neither null nor misaligned, so the caller promises a T that stays
    // unchanged for the lifetime.
    Ok(unsafe { &*pointer })
}

/// Borrows `n` values to read. `pointer` does not matter when `n` is 0.
///
/// # Safety
/// `pointer` points to `n` values that stay unchanged for the lifetime, if it is not null.
pub(super) unsafe fn slice<'a, T>(name: &'static str, pointer: *const T, n: usize) -> Result<&'a [T], infer_error> {
    if n == 0 {
        return Ok(&[]);
    }
    let pointer = out(name, pointer.cast_mut())?;
    fits::<T>(n)?;
    // SAFETY: `out` has found it neither null nor misaligned, and `fits` the size below isize::MAX,
    // so the caller promises `n` values that stay unchanged for the lifetime.
    Ok(unsafe { core::slice::from_raw_parts(pointer, n) })
}

/// Borrows `n` values to write, and sets them to zero, as memory from C need not be initialised.
/// `pointer` does not matter when `n` is 0.
///
/// # Safety
/// `pointer` points to `n` writable values that nothing else uses for the lifetime, if it is not
/// null.
pub(super) unsafe fn lend<'a, T: Zeroable>(
    name: &'static str,
    pointer: *mut T,
    n: usize,
) -> Result<&'a mut [T], infer_error> {
    if n == 0 {
        return Ok(&mut []);
    }
    let pointer = out(name, pointer)?;
    fits::<T>(n)?;
    // SAFETY: `out` has found it neither null nor misaligned, and `fits` the size below isize::MAX,
    // so the caller promises room for `n` values that nothing else uses for the lifetime. Zeros are
    // a value of T.
    unsafe {
        pointer.write_bytes(0, n);
        Ok(core::slice::from_raw_parts_mut(pointer, n))
    }
}

/// Checks that `n` values have at most isize::MAX bytes, as a slice must.
fn fits<T>(n: usize) -> Result<(), Error> {
    match n.checked_mul(size_of::<T>()) {
        Some(bytes) if bytes <= isize::MAX as usize => Ok(()),
        _ => Err(Error::TooLarge),
    }
}
