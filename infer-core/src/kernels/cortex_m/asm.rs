//! Pieces of assembly that several kernels have in common. They are macros, as `asm!` takes text.

// Tells the assembler of the DSP extension, which thumbv8m has only as an option.
#[cfg(thumb_dsp)]
macro_rules! with_dsp {
    () => {
        ""
    };
}
#[cfg(not(thumb_dsp))]
macro_rules! with_dsp {
    () => {
        ".cpu cortex-m33"
    };
}

pub(crate) use with_dsp;

/// Expands to eight instructions, one for each register `d` of the eight from `$d` on: `op d, d, e`
/// with the eight registers from `$e` on, or with `$e` itself if it is a string, or `op d, d`.
macro_rules! eight {
    ($op:literal, $d:ident $(, $e:tt)?) => {
        eight!(@from $d $op [] $($e)?)
    };
    (@from s0 $($rest:tt)*) => {
        eight!(@list ["s0" "s1" "s2" "s3" "s4" "s5" "s6" "s7"] $($rest)*)
    };
    (@from s8 $($rest:tt)*) => {
        eight!(@list ["s8" "s9" "s10" "s11" "s12" "s13" "s14" "s15"] $($rest)*)
    };
    (@from s16 $($rest:tt)*) => {
        eight!(@list ["s16" "s17" "s18" "s19" "s20" "s21" "s22" "s23"] $($rest)*)
    };
    (@from s24 $($rest:tt)*) => {
        eight!(@list ["s24" "s25" "s26" "s27" "s28" "s29" "s30" "s31"] $($rest)*)
    };
    (@list [$($d:literal)*] $op:literal []) => {
        eight!(@lines $([$op, " ", $d, ", ", $d])*)
    };
    (@list [$($d:literal)*] $op:literal [] $e:literal) => {
        eight!(@lines $([$op, " ", $d, ", ", $d, ", ", $e])*)
    };
    (@list $d:tt $op:literal [] $e:ident) => {
        eight!(@from $e $op $d)
    };
    (@list [$($e:literal)*] $op:literal [$($d:literal)*]) => {
        eight!(@lines $([$op, " ", $d, ", ", $d, ", ", $e])*)
    };
    (@lines [$($first:literal),*] $([$($next:literal),*])*) => {
        concat!($($first,)* $("\n", $($next,)*)*)
    };
}
pub(crate) use eight;

/// Adds up the eight lanes of two rows, from s16 and from s24 on, into s16 and s17:
/// [`crate::math::sum_lanes`].
macro_rules! sum_lanes {
    () => {
        concat!(
            "vadd.f32 s16, s16, s20
            vadd.f32 s17, s17, s21
            vadd.f32 s18, s18, s22
            vadd.f32 s19, s19, s23
            vadd.f32 s24, s24, s28
            vadd.f32 s25, s25, s29
            vadd.f32 s26, s26, s30
            vadd.f32 s27, s27, s31\n",
            $crate::kernels::cortex_m::asm::sum_four_lanes!()
        )
    };
}
pub(crate) use sum_lanes;

/// The rest of [`sum_lanes`], when four lanes of each row are left.
macro_rules! sum_four_lanes {
    () => {
        "vadd.f32 s16, s16, s18
        vadd.f32 s17, s17, s19
        vadd.f32 s24, s24, s26
        vadd.f32 s25, s25, s27
        vadd.f32 s16, s16, s17
        vadd.f32 s17, s24, s25"
    };
}
pub(crate) use sum_four_lanes;
