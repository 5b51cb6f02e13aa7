//! What it costs to hand work to the threads of a rayon pool and to wait for all of it.
use crate::stats::{median, percentile};
use rayon::prelude::*;
use std::hint::spin_loop;
use std::time::{Duration, Instant};

/// Work of one thread in one round: enough that the others have woken up and taken theirs.
const WORK: Duration = Duration::from_micros(20);
const ROUNDS: usize = 4000;

/// Microseconds that a parallel loop takes beyond its work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ForkJoin {
    /// The middle one.
    pub median_us: f64,
    /// What one in a hundred exceeds.
    pub p99_us: f64,
}

/// Loops of one item a thread, one after the other inside one `install`, as a step of a model is.
///
/// # Errors
/// The pool's threads cannot be started.
pub(super) fn fork_join(threads: usize) -> crate::Result<ForkJoin> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| format!("{threads} threads cannot be started: {e}; lower --threads"))?;
    let round = || {
        let start = Instant::now();
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
            let start = Instant::now();
            while start.elapsed() < WORK {
                spin_loop();
            }
        });
        start.elapsed().saturating_sub(WORK).as_secs_f64() * 1e6
    };
    let samples: Vec<f64> = pool.install(|| (0..ROUNDS + ROUNDS / 10).map(|_| round()).skip(ROUNDS / 10).collect());
    Ok(ForkJoin {
        median_us: median(&samples).unwrap_or_default(),
        p99_us: percentile(&samples, 0.99).unwrap_or_default(),
    })
}
