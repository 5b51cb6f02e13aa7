//! The threads that execute a plan: the caller and its workers.
//!
//! A step is some two hundred operations, each over in tens of microseconds, so what starting one on all
//! threads costs matters. Workers watch a counter for a while after each operation, then sleep: an idle
//! engine costs no processor time. Tasks are handed out one by one, so a thread that was held up is helped
//! out, and the caller never waits for a worker that has not begun.
use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker watches before it sleeps. Between the operations of a step there are a few
/// microseconds, between steps a few hundred.
const WATCH: Duration = Duration::from_micros(300);

/// Looks at the counter between looks at the clock.
const LOOKS: usize = 64;

/// Work in progress; valid while the round it was made for is open.
#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

struct Shared {
    /// Odd while a round is open to workers.
    round: AtomicUsize,
    /// Workers that may be using the job.
    inside: AtomicUsize,
    /// Tasks handed out.
    next: AtomicUsize,
    job: Mutex<Option<Job>>,
    /// What a task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    asleep: AtomicUsize,
    stop: AtomicBool,
}

// SAFETY: the job's pointer is used only inside the round it was made for, whose caller waits.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// The caller's end of a team.
pub(crate) struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// What is left of each thread's share.
    shares: Vec<Share>,
}

/// Items that are not handed out yet; alone in its cache lines.
#[derive(Default)]
#[repr(align(128))]
struct Share {
    next: AtomicUsize,
    end: AtomicUsize,
}

impl Share {
    /// The next items, and whether there are more.
    fn take(&self, width: impl Fn(usize) -> usize) -> Option<(Range<usize>, bool)> {
        let end = self.end.load(SeqCst);
        let take = |next: usize| (next < end).then(|| end.min(next + width(end - next)));
        let first = self.next.fetch_update(SeqCst, SeqCst, take).ok()?;
        let last = take(first)?;
        Some((first..last, last < end))
    }
}

/// Some items of a share.
pub(crate) struct Piece {
    pub(crate) items: Range<usize>,
    /// Whether the same share has more.
    pub(crate) more: bool,
    /// Whether the thread worked on the items before them just before.
    pub(crate) follows: bool,
    /// The thread that works on it.
    pub(crate) thread: usize,
}

/// The share of thread `thread` of `threads` in `0..items`.
pub(crate) fn share(items: usize, thread: usize, threads: usize) -> Range<usize> {
    items * thread / threads..items * (thread + 1) / threads
}

thread_local! {
    /// Which thread of its team this is; the caller is the first.
    static INDEX: Cell<usize> = const { Cell::new(0) };
}

impl Team {
    /// A team of `threads`, the caller included.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(crate) fn new(threads: usize) -> std::io::Result<Team> {
        let shared = Arc::new(Shared {
            round: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            job: Mutex::new(None),
            panic: Mutex::new(None),
            asleep: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let shares = (0..threads.max(1)).map(|_| Share::default()).collect();
        let mut team = Team { shared, workers: Vec::new(), shares };
        for i in 1..threads {
            let shared = team.shared.clone();
            let builder = std::thread::Builder::new().name(format!("anyfleet-cpu-{i}"));
            team.workers.push(builder.spawn(move || {
                INDEX.set(i);
                shared.work();
            })?);
        }
        Ok(team)
    }

    /// Threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` with every number below `tasks`, on all threads that are free. Only one caller at a time.
    ///
    /// # Panics
    /// With what a task panicked with.
    pub(crate) fn each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || tasks <= 1 {
            return (0..tasks).for_each(task);
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; nobody uses the job once this call has closed the round and
        // seen everyone outside.
        let task = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync + 'static)>(task)
        };
        let job = Job { task, tasks };
        *lock(&shared.job) = Some(job);
        shared.next.store(0, SeqCst);
        shared.round.fetch_add(1, SeqCst);
        if shared.asleep.load(SeqCst) > 0 {
            self.workers.iter().for_each(|worker| worker.thread().unpark());
        }
        shared.take_tasks(job);
        shared.round.fetch_add(1, SeqCst);
        let mut looks = 0usize;
        while shared.inside.load(SeqCst) > 0 {
            looks += 1;
            // A worker that lost its processor in the middle of a task may need this one.
            if looks.is_multiple_of(4096) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        *lock(&shared.job) = None;
        let panic = lock(&shared.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Team {
    /// Calls `task` with pieces that cover `0..items`: every thread works on its own [`share`] from front to
    /// back, then helps the others with theirs. `width` says how many of the items left to take. Only one
    /// caller at a time.
    ///
    /// # Panics
    /// With what a task panicked with.
    pub(crate) fn each_share(&self, items: usize, width: impl Fn(usize) -> usize + Sync, task: impl Fn(Piece) + Sync) {
        let threads = self.threads();
        for (i, place) in self.shares.iter().enumerate() {
            let range = share(items, i, threads);
            place.end.store(range.end, SeqCst);
            place.next.store(range.start, SeqCst);
        }
        self.each(threads, &|_| {
            let thread = INDEX.get();
            let shares = self.shares[thread..].iter().chain(&self.shares[..thread]);
            for share in shares {
                let mut end = None;
                while let Some((items, more)) = share.take(&width) {
                    let follows = end.replace(items.end) == Some(items.start);
                    task(Piece { items, more, follows, thread });
                }
            }
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker's panics were caught and told to the caller.
            let _ = worker.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn work(&self) {
        let mut seen = 0;
        while let Some(round) = self.wait(seen) {
            seen = round;
            // In this order, and against the caller's closing of the round before it looks who is inside:
            // one of both sees the other.
            self.inside.fetch_add(1, SeqCst);
            if self.round.load(SeqCst) == round {
                let job = *lock(&self.job);
                if let Some(job) = job {
                    self.take_tasks(job);
                }
            }
            self.inside.fetch_sub(1, SeqCst);
        }
    }

    /// The next open round; nothing when the team stops.
    fn wait(&self, seen: usize) -> Option<usize> {
        let mut since = Instant::now();
        loop {
            for _ in 0..LOOKS {
                let round = self.round.load(SeqCst);
                if round % 2 == 1 && round != seen {
                    return Some(round);
                }
                std::hint::spin_loop();
            }
            if self.stop.load(SeqCst) {
                return None;
            }
            if since.elapsed() > WATCH {
                self.asleep.fetch_add(1, SeqCst);
                let round = self.round.load(SeqCst);
                let open = round % 2 == 1 && round != seen;
                if !open && !self.stop.load(SeqCst) {
                    std::thread::park();
                }
                self.asleep.fetch_sub(1, SeqCst);
                since = Instant::now();
            }
        }
    }

    fn take_tasks(&self, job: Job) {
        loop {
            let i = self.next.fetch_add(1, SeqCst);
            if i >= job.tasks {
                return;
            }
            // SAFETY: the round is open or its caller waits for this thread.
            let task = unsafe { &*job.task };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(i))) {
                lock(&self.panic).get_or_insert(panic);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            let team = Team::new(threads).unwrap();
            assert_eq!(team.threads(), threads);
            for tasks in [0, 1, 2, 7, 100, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for round in 1..30 {
                    team.each(tasks, &|i| {
                        counts[i].fetch_add(1, SeqCst);
                    });
                    assert!(counts.iter().all(|c| c.load(SeqCst) == round));
                }
            }
        }
    }

    #[test]
    fn shares_cover_every_item_once() {
        for threads in [1, 2, 3, 8] {
            let team = Team::new(threads).unwrap();
            for items in [0, 1, 2, 7, 100, 1000] {
                for most in [1, 3, 6] {
                    let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                    team.each_share(
                        items,
                        |left| left.min(most),
                        |piece| {
                            assert!(piece.thread < threads && piece.items.len() <= most);
                            let ends = (0..threads).any(|i| share(items, i, threads).end == piece.items.end);
                            assert_eq!(piece.more, !ends);
                            piece.items.for_each(|i| {
                                counts[i].fetch_add(1, SeqCst);
                            });
                        },
                    );
                    assert!(counts.iter().all(|c| c.load(SeqCst) == 1), "{items} items, {threads} threads");
                }
            }
        }
    }

    #[test]
    fn sleepers_wake() {
        let team = Team::new(3).unwrap();
        for _ in 0..5 {
            std::thread::sleep(WATCH * 20);
            let sum = AtomicUsize::new(0);
            team.each(50, &|i| {
                std::thread::sleep(Duration::from_micros(100));
                sum.fetch_add(i, SeqCst);
            });
            assert_eq!(sum.into_inner(), 49 * 50 / 2);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::new(4).unwrap();
        for _ in 0..20 {
            let caught = catch_unwind(AssertUnwindSafe(|| team.each(64, &|i| assert!(i != 40, "task {i}"))));
            let text = *caught.unwrap_err().downcast::<String>().unwrap();
            assert!(text.contains("task 40"));
            let sum = AtomicUsize::new(0);
            team.each(64, &|i| {
                sum.fetch_add(i, SeqCst);
            });
            assert_eq!(sum.into_inner(), 63 * 64 / 2);
        }
    }
}
