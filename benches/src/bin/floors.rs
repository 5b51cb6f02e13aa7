//! What the processor can do at best: the floors that op figures are divided by.
//!
//! Build it for the machine it runs on, or the arithmetic is that of a 2003 processor:
//! `RUSTFLAGS="-C target-cpu=native -C target-feature=-prefer-256-bit" cargo run --release -p bench --bin floors`
use std::hint::black_box;
use std::time::Instant;

/// Larger than any cache.
const BYTES: usize = 1 << 30;
/// Independent sums: 12 vectors of 16 hide the latency of two multiply-add units.
const SUMS: usize = 12 * 16;
const ROUNDS: usize = 1 << 22;

fn read(words: &[u64]) -> u64 {
    let mut sums = [0u64; 64];
    for block in words.chunks_exact(64) {
        for (sum, word) in sums.iter_mut().zip(block) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

fn multiply_add(by: f32, plus: f32) -> f32 {
    let mut sums = [1.0f32; SUMS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = sum.mul_add(by, plus);
        }
    }
    sums.iter().sum()
}

/// Median seconds of seven runs of `work` on `threads` threads at once.
fn median(threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    let mut seconds: Vec<f64> = (0..7)
        .map(|_| {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let work = &work;
                    scope.spawn(move || work(thread));
                }
            });
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[3]
}

fn main() {
    let words: Vec<u64> = (0..BYTES as u64 / 8).collect();
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    for threads in (1..=most).filter(|t| *t == 1 || *t == 2 || *t == most) {
        let share = words.len() / threads;
        let seconds = median(threads, |t| {
            black_box(read(black_box(&words[t * share..(t + 1) * share])));
        });
        println!("read bandwidth, {threads} threads: {:6.1} GB/s", (share * threads * 8) as f64 / seconds / 1e9);
    }
    let operations = (2 * SUMS * ROUNDS) as f64;
    for threads in (1..=most).filter(|t| *t == 1 || *t == 2 || *t == most) {
        let seconds = median(threads, |_| {
            black_box(multiply_add(black_box(0.999), black_box(0.001)));
        });
        println!("f32 multiply-add, {threads} threads: {:6.1} GFLOP/s", operations * threads as f64 / seconds / 1e9);
    }
}
