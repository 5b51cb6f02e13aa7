//! Work on several threads at once, timed from the first start to the last end.
use std::sync::Barrier;
use std::time::Instant;

/// Seconds of each of `repeats` runs of `work(thread)` on `threads` threads at once. Threads start each run
/// together; one run before them is not counted.
pub(super) fn seconds(threads: usize, repeats: usize, work: impl Fn(usize) + Sync) -> Vec<f64> {
    let (barrier, origin) = (Barrier::new(threads), Instant::now());
    let one = |thread: usize| -> Vec<(f64, f64)> {
        let run = |_| {
            barrier.wait();
            let start = origin.elapsed().as_secs_f64();
            work(thread);
            (start, origin.elapsed().as_secs_f64())
        };
        (0..=repeats).map(run).skip(1).collect()
    };
    let spans: Vec<Vec<(f64, f64)>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn({
                    let one = &one;
                    move || one(thread)
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("a probe does not panic")).collect()
    });
    let whole = |run: usize| {
        let start = spans.iter().map(|s| s[run].0).fold(f64::INFINITY, f64::min);
        let end = spans.iter().map(|s| s[run].1).fold(0.0, f64::max);
        end - start
    };
    (0..repeats).map(whole).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_thread_works_in_every_run() {
        let (calls, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let seconds = super::seconds(3, 4, |thread| {
            calls.fetch_add(1, Ordering::Relaxed);
            sum.fetch_add(thread, Ordering::Relaxed);
        });
        assert_eq!(seconds.len(), 4);
        assert!(seconds.iter().all(|s| *s >= 0.0));
        assert_eq!((calls.into_inner(), sum.into_inner()), (3 * 5, 3 * 5));
    }
}
