//! Measures how fast this machine can read: the limit of a product of a large matrix with a vector.
#![allow(unsafe_code)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use infer_core::{Pool, Runner};

/// Passes over the bytes per loop.
const PASSES: usize = 5;
/// A pass over a small buffer is repeated for about this long, so that it can be timed.
const SHORTEST: Duration = Duration::from_millis(2);

/// Bytes per second at which all threads together read these bytes: the median pass of the fastest
/// of several loops. The best pass would be a moment that a machine shared with others rarely has.
pub fn measure(bytes: &[u8], pool: &Pool) -> f64 {
    let loops: [fn(&[u8]) -> u64; 4] = [read::<1, false>, read::<4, false>, read::<8, false>, read::<8, true>];
    loops.iter().map(|read| median_pass(bytes, pool, *read)).fold(0.0, f64::max)
}

fn median_pass(bytes: &[u8], pool: &Pool, read: fn(&[u8]) -> u64) -> f64 {
    let threads = pool.threads().get();
    let part = bytes.len().div_ceil(threads).max(1);
    let parts: Vec<&[u8]> = bytes.chunks(part).collect();
    let mut repeats = 1;
    let mut speeds = Vec::new();
    while speeds.len() < PASSES {
        let start = Instant::now();
        pool.run(parts.len(), &|i| {
            for _ in 0..repeats {
                black_box(read(black_box(parts[i])));
            }
        });
        let time = start.elapsed();
        if time < SHORTEST {
            repeats *= 2;
            continue;
        }
        speeds.push((bytes.len() * repeats) as f64 / time.as_secs_f64());
    }
    speeds.sort_by(f64::total_cmp);
    speeds[PASSES / 2]
}

/// Reads everything once, in `STREAMS` streams side by side, perhaps fetching ahead in each.
fn read<const STREAMS: usize, const FETCH: bool>(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn avx2<const STREAMS: usize, const FETCH: bool>(bytes: &[u8]) -> u64 {
            read_streams::<STREAMS, FETCH>(bytes)
        }
        // SAFETY: the function needs AVX2, which was detected.
        return unsafe { avx2::<STREAMS, FETCH>(bytes) };
    }
    read_streams::<STREAMS, FETCH>(bytes)
}

/// Has what lies ahead of this place brought near, as far ahead as the kernels do.
#[inline(always)]
fn fetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const AHEAD: usize = 512;
        let place = std::ptr::from_ref(place).cast::<i8>();
        for line in (0..size_of::<T>()).step_by(64) {
            // SAFETY: any address may be asked for.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(place.wrapping_add(AHEAD + line)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

#[inline(always)]
fn read_streams<const STREAMS: usize, const FETCH: bool>(bytes: &[u8]) -> u64 {
    const LANES: usize = 16;
    // SAFETY: every bit pattern is a valid u64, and align_to cuts the slice at whole elements.
    let (_, words, _) = unsafe { bytes.align_to::<[u64; LANES]>() };
    let len = words.len() / STREAMS;
    let mut sums = [[0u64; LANES]; STREAMS];
    for i in 0..len {
        for (stream, sums) in sums.iter_mut().enumerate() {
            let words = &words[stream * len + i];
            if FETCH {
                fetch(words);
            }
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = sum.wrapping_add(*word);
            }
        }
    }
    sums.iter().flatten().fold(0, |a, b| a.wrapping_add(*b))
}
