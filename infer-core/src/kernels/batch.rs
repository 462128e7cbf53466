//! Products of a matrix with many tokens: each load of weights serves several tokens, and each load
//! of x several rows.
//!
//! The walk takes a block of rows, two registers wide, packs its weights so that the numbers of a
//! register belong to different rows (sums over columns then add nothing across a register), and
//! takes all tokens through it in tiles whose sums have a register each. Packing costs a few
//! instructions per register of weights, and a tile saves more.
//!
//! `f32.rs` and `q8.rs` have the products, generic over [`Registers`]. They are inlined into
//! functions that are compiled for an instruction set, hold no closures with intrinsics, and are
//! unsafe for the reasons that `avx2/matmul_q8.rs` gives.
#![allow(unsafe_code)]

use core::mem::MaybeUninit;

use crate::math::LANES;
use crate::panel::Panel;
use crate::scratch::MAX_BLOCK_ROWS;

pub(super) mod f32;
pub(super) mod q8;

/// Registers of rows in a block.
const BLOCK: usize = 2;
/// The most rows of a register.
pub(super) const MAX_ROWS: usize = MAX_BLOCK_ROWS / BLOCK;

/// Registers of an instruction set, and what the products do with them.
///
/// # Safety
/// Of all functions: the machine has the instructions, and a pointer is valid for a register.
pub(super) trait Registers {
    /// [`ROWS`](Registers::ROWS) numbers.
    type F32: Copy;
    /// As many times 32 bits: integers, or several small ones each.
    type I32: Copy;
    /// Rows of a register, at most [`MAX_ROWS`].
    const ROWS: usize;

    unsafe fn load(from: *const f32) -> Self::F32;
    unsafe fn load_i32(from: *const f32) -> Self::I32;
    unsafe fn store(to: *mut f32, x: Self::F32);
    unsafe fn store_i32(to: *mut f32, x: Self::I32);
    unsafe fn splat(x: f32) -> Self::F32;
    unsafe fn splat_i32(x: i32) -> Self::I32;
    unsafe fn add(a: Self::F32, b: Self::F32) -> Self::F32;
    unsafe fn mul(a: Self::F32, b: Self::F32) -> Self::F32;
    unsafe fn negate(x: Self::I32) -> Self::I32;
    unsafe fn to_f32(x: Self::I32) -> Self::F32;
    /// Four times 32 bits of each row, transposed: those that `from` is `offsets` bytes before.
    unsafe fn transpose(from: *const u8, offsets: &Offsets) -> [Self::I32; 4];
}

/// The functions of [`Registers`] and of [`q8::Int8`] that are an instruction each.
macro_rules! instructions {
    ($($name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $instruction:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name($($arg: $type),*) $(-> $result)? {
            // SAFETY: the caller vouches for the instructions and for pointers.
            unsafe { $instruction }
        }
    )*};
}
pub(super) use instructions;

/// Where the rows of a register begin, in bytes behind the first one of the block.
pub(super) type Offsets = [usize; MAX_ROWS];

/// The sums of `T` tokens with the rows of a block.
type Sums<R, const T: usize> = [[<R as Registers>::F32; BLOCK]; T];

/// The first tokens of tiles. The last tile begins early enough to be whole: tokens that two tiles
/// share are computed twice.
#[inline(always)]
pub(super) fn tiles<const T: usize>(n_tokens: usize) -> impl Iterator<Item = usize> {
    (0..n_tokens).step_by(T).map(move |first| first.min(n_tokens.saturating_sub(T)))
}

/// The rows of a register of a block with this many rows. Rows that the block lacks are its last
/// one again, and their sums are not stored.
#[inline(always)]
fn rows_of_register<R: Registers>(register: usize, rows: usize) -> [usize; MAX_ROWS] {
    core::array::from_fn(|r| (register * R::ROWS + r % R::ROWS).min(rows.saturating_sub(1)))
}

/// The lanes of the sums of a tile: in the first-level cache, as registers do not suffice.
struct Lanes<R: Registers, const T: usize>([MaybeUninit<Sums<R, T>>; LANES]);

impl<R: Registers, const T: usize> Lanes<R, T> {
    #[inline(always)]
    fn new() -> Self {
        Lanes([const { MaybeUninit::uninit() }; LANES])
    }

    /// [`sum_lanes`](crate::math::sum_lanes) of the first `n` lanes, the others being 0.
    ///
    /// # Safety
    /// The first `n` lanes have been written, and the machine has the instructions.
    #[inline(always)]
    unsafe fn sum(&mut self, n: usize) -> Sums<R, T> {
        // SAFETY: the caller vouches for the instructions and the first n lanes; the others are
        // written here.
        unsafe {
            let zero = R::splat(0.0);
            for lane in self.0.iter_mut().skip(n) {
                lane.write([[zero; BLOCK]; T]);
            }
            let mut sums = [[zero; BLOCK]; T];
            for (t, sums) in sums.iter_mut().enumerate() {
                for (r, sum) in sums.iter_mut().enumerate() {
                    let mut l = [zero; LANES];
                    for (l, lane) in l.iter_mut().zip(&self.0) {
                        *l = lane.assume_init_ref()[t][r];
                    }
                    let even = R::add(R::add(l[0], l[4]), R::add(l[2], l[6]));
                    let odd = R::add(R::add(l[1], l[5]), R::add(l[3], l[7]));
                    // Lanes begin at 0 in the contract, and at a product here: adding 0 turns the
                    // -0 that products of -0 would leave into 0.
                    *sum = R::add(R::add(even, odd), zero);
                }
            }
            sums
        }
    }
}

/// Writes the sums of tokens from `first_token` on and of rows from `first_row` on, as far as the
/// output has them.
///
/// # Safety
/// The machine has the instructions.
#[inline(always)]
unsafe fn store<R: Registers, const T: usize>(
    sums: Sums<R, T>,
    out: &mut Panel<'_>,
    first_token: usize,
    first_row: usize,
) {
    for (t, sums) in sums.into_iter().enumerate() {
        let row = out.row(first_token + t).get_mut(first_row..).unwrap_or_default();
        let mut numbers = [0.0; MAX_BLOCK_ROWS];
        let whole = row.len() >= BLOCK * R::ROWS;
        let to = if whole { row.as_mut_ptr() } else { numbers.as_mut_ptr() };
        // SAFETY: both have room for the rows of a block.
        unsafe {
            R::store(to, sums[0]);
            R::store(to.add(R::ROWS), sums[1]);
        }
        if !whole {
            row.iter_mut().zip(numbers).for_each(|(out, x)| *out = x);
        }
    }
}
