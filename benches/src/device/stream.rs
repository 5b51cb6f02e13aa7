//! Read bandwidth: sums memory larger than any cache.
//!
//! What a core asks for ahead of time decides how much it gets, so several shapes of the same loop are
//! tried, the processor's own prefetcher and software prefetches at several distances, one stream a
//! thread and several, and the fastest is measured. Kernels are chosen at run time, so the build needs no
//! flags.
use super::together;
use crate::stats::median;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::hint::black_box;

/// Bytes read: larger than any cache.
pub const BYTES: usize = 1 << 30;
/// Bytes read to choose a loop.
const TRIAL: usize = 256 << 20;
/// Bytes a loop turn reads of a stream: eight lines, so eight independent sums.
const TURN: usize = 512;
const HUGE_PAGE: usize = 2 << 20;

/// A loop over one thread's share of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    /// Streams a thread reads side by side.
    streams: usize,
    /// Bytes ahead of their use that lines are asked for; 0 leaves it to the processor.
    ahead: usize,
}

/// A core follows only so many lines of one stream at a time, so that several streams get more.
const SHAPES: [Shape; 8] = [
    Shape { streams: 1, ahead: 0 },
    Shape { streams: 1, ahead: 4 << 10 },
    Shape { streams: 2, ahead: 4 << 10 },
    Shape { streams: 4, ahead: 1 << 10 },
    Shape { streams: 4, ahead: 4 << 10 },
    Shape { streams: 6, ahead: 4 << 10 },
    Shape { streams: 8, ahead: 1 << 10 },
    Shape { streams: 8, ahead: 4 << 10 },
];

/// Read bandwidth of some number of threads.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadRate {
    /// Bytes per second, the median of the repeats.
    pub bytes_per_s: f64,
    /// `huge` or `plain` pages, whichever were faster.
    pub pages: &'static str,
    /// The loop that was fastest, for people.
    pub shape: String,
}

/// Measures with each of `threads`, in that order.
pub(super) fn measure(threads: &[usize], repeats: usize) -> Vec<ReadRate> {
    let mut best: Vec<Option<ReadRate>> = vec![None; threads.len()];
    // One buffer at a time: a small machine has no room for two.
    for (pages, huge) in [("huge", true), ("plain", false)] {
        let memory = Memory::new(BYTES, huge);
        memory.touch(threads.iter().copied().max().unwrap_or(1));
        for (best, &threads) in best.iter_mut().zip(threads) {
            let rate = measure_memory(&memory, threads, repeats, pages);
            if best.as_ref().is_none_or(|b| rate.bytes_per_s > b.bytes_per_s) {
                *best = Some(rate);
            }
        }
    }
    best.into_iter().flatten().collect()
}

fn measure_memory(memory: &Memory, threads: usize, repeats: usize, pages: &'static str) -> ReadRate {
    let seconds = |bytes: usize, shape: Shape, repeats: usize| {
        let share = bytes / threads / 4096 * 4096;
        let seconds = together::seconds(threads, repeats, |thread| {
            black_box(sum(&memory.slice()[thread * share..(thread + 1) * share], shape));
        });
        seconds.into_iter().map(|s| s / (share * threads) as f64).collect::<Vec<f64>>()
    };
    let quick = |shape: Shape| seconds(TRIAL, shape, 2).into_iter().fold(f64::INFINITY, f64::min);
    let shape = SHAPES.into_iter().map(|s| (quick(s), s)).min_by(|a, b| a.0.total_cmp(&b.0)).map_or(SHAPES[0], |b| b.1);
    let ahead = match shape.ahead {
        0 => "no software prefetch".to_owned(),
        bytes => format!("prefetch {bytes} bytes ahead"),
    };
    let shape_name = format!("{}, {} a thread, {ahead}", kernel(), streams(shape.streams));
    let bytes_per_s = median(&seconds(memory.bytes, shape, repeats)).map_or(0.0, f64::recip);
    ReadRate { bytes_per_s, pages, shape: shape_name }
}

fn streams(n: usize) -> String {
    if n == 1 { "1 stream".into() } else { format!("{n} streams") }
}

/// Memory that is read, aligned to a huge page.
struct Memory {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the memory is owned and only written through `touch`, which lends disjoint parts.
unsafe impl Sync for Memory {}

impl Memory {
    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, HUGE_PAGE).expect("a power of two")
    }

    fn new(bytes: usize, huge: bool) -> Memory {
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(Self::layout(bytes)) };
        if start.is_null() {
            handle_alloc_error(Self::layout(bytes));
        }
        #[cfg(target_os = "linux")]
        {
            let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
            // SAFETY: advice about whole pages of memory that is ours; what it holds stays.
            unsafe { libc::madvise(start.cast(), bytes, advice) };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = huge;
        Memory { start, bytes }
    }

    /// Writes every word, so that every page has memory of its own, near the thread that reads it.
    fn touch(&self, threads: usize) {
        let share = self.bytes / threads / 8;
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let first = thread * share;
                let last = if thread + 1 == threads { self.bytes / 8 } else { first + share };
                scope.spawn(move || {
                    for word in first..last {
                        // SAFETY: an aligned word of the memory that no other thread touches; nobody reads yet.
                        unsafe { self.start.cast::<u64>().add(word).write(word as u64) };
                    }
                });
            }
        });
    }

    fn slice(&self) -> &[u8] {
        // SAFETY: zeroed when allocated, and not written while it is read.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start, Self::layout(self.bytes)) };
    }
}

/// Name of the kernel that [`sum`] takes.
fn kernel() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "AVX-512";
        }
        if is_x86_feature_detected!("avx2") {
            return "AVX2";
        }
    }
    if cfg!(target_arch = "aarch64") { "NEON" } else { "portable" }
}

/// The sum of all words, wrapping; what is past the last whole turn of a stream is left out.
fn sum(bytes: &[u8], shape: Shape) -> u64 {
    match shape.streams {
        1 => sum_streams::<1>(bytes, shape.ahead),
        2 => sum_streams::<2>(bytes, shape.ahead),
        4 => sum_streams::<4>(bytes, shape.ahead),
        6 => sum_streams::<6>(bytes, shape.ahead),
        _ => sum_streams::<8>(bytes, shape.ahead),
    }
}

fn sum_streams<const STREAMS: usize>(bytes: &[u8], ahead: usize) -> u64 {
    let stride = bytes.len() / STREAMS / TURN * TURN;
    let streams: [&[u8]; STREAMS] = std::array::from_fn(|s| &bytes[s * stride..(s + 1) * stride]);
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512, and all streams are equally long whole turns.
            return unsafe { x86::sum_avx512(streams, ahead) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, and all streams are equally long whole turns.
            return unsafe { x86::sum_avx2(streams, ahead) };
        }
    }
    let _ = ahead;
    sum_portable(streams)
}

/// Without software prefetches, which stable Rust has on x86 only.
fn sum_portable<const STREAMS: usize>(streams: [&[u8]; STREAMS]) -> u64 {
    let mut sums = [0u64; TURN / 8];
    for turn in 0..streams[0].len() / TURN {
        for stream in streams {
            for (sum, word) in sums.iter_mut().zip(stream[turn * TURN..][..TURN].chunks_exact(8)) {
                let word: [u8; 8] = word.try_into().expect("eight bytes");
                *sum = sum.wrapping_add(u64::from_le_bytes(word));
            }
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::TURN;
    use std::arch::x86_64::*;

    /// # Safety
    /// The streams have one length, a multiple of [`TURN`].
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn sum_avx512<const STREAMS: usize>(streams: [&[u8]; STREAMS], ahead: usize) -> u64 {
        let mut sums = [_mm512_setzero_si512(); TURN / 64];
        for offset in (0..streams[0].len()).step_by(TURN) {
            for stream in streams {
                let from = stream.as_ptr().wrapping_add(offset);
                if ahead > 0 {
                    for line in 0..TURN / 64 {
                        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(ahead + line * 64).cast());
                    }
                }
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: a line of the turn, which lies in the stream.
                    let line = unsafe { _mm512_loadu_si512(from.wrapping_add(i * 64).cast()) };
                    *sum = _mm512_add_epi64(*sum, line);
                }
            }
        }
        let total = sums.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_add_epi64(a, b));
        _mm512_reduce_add_epi64(total) as u64
    }

    /// # Safety
    /// As for [`sum_avx512`].
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn sum_avx2<const STREAMS: usize>(streams: [&[u8]; STREAMS], ahead: usize) -> u64 {
        let mut sums = [_mm256_setzero_si256(); 8];
        for offset in (0..streams[0].len()).step_by(TURN) {
            for stream in streams {
                let from = stream.as_ptr().wrapping_add(offset);
                if ahead > 0 {
                    for line in 0..TURN / 64 {
                        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(ahead + line * 64).cast());
                    }
                }
                for i in 0..TURN / 32 {
                    // SAFETY: half a line of the turn, which lies in the stream.
                    let half = unsafe { _mm256_loadu_si256(from.wrapping_add(i * 32).cast()) };
                    sums[i % 8] = _mm256_add_epi64(sums[i % 8], half);
                }
            }
        }
        let total = sums.into_iter().fold(_mm256_setzero_si256(), |a, b| _mm256_add_epi64(a, b));
        let mut lanes = [0u64; 4];
        // SAFETY: four words are writable.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), total) };
        lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_reads_every_byte() {
        let memory = Memory::new(HUGE_PAGE, true);
        memory.touch(3);
        // Whole turns of one to eight streams.
        let bytes = &memory.slice()[..TURN * 24 * 100];
        let words = (bytes.len() / 8) as u64;
        for shape in SHAPES {
            assert_eq!(sum(bytes, shape), words * (words - 1) / 2, "{shape:?}");
        }
        assert_eq!(sum_portable([bytes]), words * (words - 1) / 2);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: AVX2 was seen, and the bytes are whole turns.
            let sum = unsafe { x86::sum_avx2::<1>([bytes], 4096) };
            assert_eq!(sum, words * (words - 1) / 2);
        }
    }
}
