//! Decides which rows of which sequences run in the next step.
use crate::cache::{Cache, Opened, Want};
use crate::sequence::{SeqKey, Sequence};
use crate::{RequestId, Stats};
use std::collections::{BTreeMap, BTreeSet};

/// Bounds of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepLimits {
    /// Token rows per step.
    pub(crate) rows: usize,
    /// Rows of one sequence per step.
    pub(crate) chunk: usize,
    /// Sequences that run at once.
    pub(crate) sequences: usize,
}

/// Rows of a sequence in a step.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) key: SeqKey,
    pub(crate) epoch: u32,
    /// Position of the first.
    pub(crate) start: usize,
    /// How many.
    pub(crate) rows: usize,
}

/// What is remembered of a request besides its choices.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Choices that are not complete.
    pub(crate) choices_left: u32,
    /// A choice has run.
    pub(crate) started: bool,
    /// The first choice's prompt has been computed and registered: others can share it.
    pub(crate) prefilled: bool,
    /// Prompt tokens found in the cache at the start.
    pub(crate) cached_tokens: usize,
}

/// All sequences and the cache they compete for.
///
/// Older requests win: sequences start in order of arrival, and when pages run out it is the latest
/// arrival among those running that gives its pages up and starts over. So the oldest always
/// progresses, and everything that fits alone ends.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: StepLimits,
    pub(crate) cache: Cache,
    pub(crate) sequences: BTreeMap<SeqKey, Sequence>,
    pub(crate) requests: BTreeMap<RequestId, Progress>,
    waiting: BTreeSet<SeqKey>,
    running: BTreeSet<SeqKey>,
    /// The step being planned.
    pub(crate) plan: Vec<Planned>,
    /// Rows that still fit into it.
    budget: usize,
    scratch: Vec<SeqKey>,
    pub(crate) counters: Stats,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Decode,
    Prefill,
}

impl Scheduler {
    pub(crate) fn new(limits: StepLimits, cache: Cache) -> Self {
        Scheduler {
            limits,
            cache,
            sequences: BTreeMap::new(),
            requests: BTreeMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            plan: Vec::new(),
            budget: 0,
            scratch: Vec::new(),
            counters: Stats::default(),
        }
    }

    /// Requests that have not started.
    pub(crate) fn queued(&self) -> usize {
        self.requests.values().filter(|progress| !progress.started).count()
    }

    /// Adds a request's choices to those waiting.
    pub(crate) fn insert(&mut self, request: RequestId, choices: impl Iterator<Item = Sequence>) {
        let mut progress = Progress::default();
        for (choice, sequence) in (0..).zip(choices) {
            let key = SeqKey { request, choice };
            self.waiting.insert(key);
            self.sequences.insert(key, sequence);
            progress.choices_left += 1;
        }
        self.requests.insert(request, progress);
    }

    /// Removes a choice and frees its pages.
    pub(crate) fn remove(&mut self, key: SeqKey) -> Option<Sequence> {
        let mut sequence = self.sequences.remove(&key)?;
        self.cache.close(std::mem::take(&mut sequence.lease));
        self.running.remove(&key);
        self.waiting.remove(&key);
        if let Some(progress) = self.requests.get_mut(&key.request) {
            progress.choices_left -= 1;
            progress.prefilled |= key.choice == 0;
            if progress.choices_left == 0 {
                self.requests.remove(&key.request);
            }
        }
        Some(sequence)
    }

    /// Removes all choices of a request; whether there were any.
    pub(crate) fn remove_request(&mut self, request: RequestId) -> bool {
        let choices = SeqKey { request, choice: 0 }..=SeqKey { request, choice: u32::MAX };
        let keys: Vec<SeqKey> = self.sequences.range(choices).map(|(&key, _)| key).collect();
        keys.iter().for_each(|&key| drop(self.remove(key)));
        !keys.is_empty()
    }

    /// Fills [`Scheduler::plan`]: decodes first, then prefills in order of arrival, then new arrivals.
    pub(crate) fn plan(&mut self) {
        self.plan.clear();
        self.budget = self.limits.rows;
        self.place_running(Phase::Decode);
        self.place_running(Phase::Prefill);
        while self.budget > 0 && self.running.len() < self.limits.sequences {
            match self.next_waiting() {
                Some(key) if self.admit(key) => {}
                _ => break,
            }
        }
    }

    fn place_running(&mut self, phase: Phase) {
        let mut keys = std::mem::take(&mut self.scratch);
        keys.clear();
        keys.extend(&self.running);
        for &key in &keys {
            if self.budget == 0 {
                break;
            }
            // An earlier one may have preempted it meanwhile.
            if self.running.contains(&key) {
                let remaining = self.sequences[&key].remaining();
                if remaining > 0 && (remaining == 1) == (phase == Phase::Decode) {
                    self.place(key);
                }
            }
        }
        self.scratch = keys;
    }

    /// Places a running sequence's next rows, preempting later arrivals until there are pages for
    /// at least one. The latest arrival of all waits instead, keeping what it has.
    fn place(&mut self, key: SeqKey) {
        while !self.try_place(key) {
            match self.running.last() {
                Some(&latest) if latest != key => self.preempt(latest),
                _ => return,
            }
        }
    }

    fn try_place(&mut self, key: SeqKey) -> bool {
        let Some(sequence) = self.sequences.get_mut(&key) else { return false };
        let rows = chunk(sequence, self.budget.min(self.limits.chunk), &self.cache);
        let settled = sequence.stored == sequence.computed;
        let want = Want { start: sequence.computed, rows, settled };
        let rows = self.cache.grant(&mut sequence.lease, want);
        if rows == 0 {
            return false;
        }
        self.plan.push(Planned { key, epoch: sequence.epoch, start: sequence.computed, rows });
        sequence.computed += rows;
        self.budget -= rows;
        true
    }

    /// Takes a running sequence's pages away; it starts over, with its output as part of its prompt.
    fn preempt(&mut self, key: SeqKey) {
        if let Some(at) = self.plan.iter().position(|planned| planned.key == key) {
            self.budget += self.plan.remove(at).rows;
        }
        self.counters.preemptions += 1;
        self.suspend(key);
    }

    fn suspend(&mut self, key: SeqKey) {
        if let Some(sequence) = self.sequences.get_mut(&key) {
            self.cache.close(std::mem::take(&mut sequence.lease));
            sequence.computed = 0;
            sequence.stored = 0;
            sequence.epoch += 1;
            self.running.remove(&key);
            self.waiting.insert(key);
        }
    }

    /// Suspends everything and forgets what is cached: a step failed, and nothing that it may have
    /// touched can be relied on. Steps in flight must have been waited for.
    pub(crate) fn start_over(&mut self) {
        while let Some(&key) = self.running.last() {
            self.suspend(key);
        }
        for sequence in self.sequences.values_mut() {
            sequence.steps_in_flight = 0;
            sequence.tokens_in_flight = 0;
        }
        self.cache.forget_unused();
    }

    /// The oldest sequence that may start. Later choices wait for the first one's prompt, to share it,
    /// and so that its scores come before any choice's text.
    fn next_waiting(&self) -> Option<SeqKey> {
        let follows = |key: &SeqKey| {
            let scored = || self.sequences[key].job.params.prompt_logprobs.is_some();
            key.choice > 0 && !self.requests[&key.request].prefilled && (self.cache.sharing() || scored())
        };
        let &key = self.waiting.iter().find(|&key| !follows(key))?;
        (self.sequences[&key].steps_in_flight == 0).then_some(key)
    }

    /// Starts a waiting sequence if all its tokens fit, or if it has the cache to itself.
    fn admit(&mut self, key: SeqKey) -> bool {
        let Some(sequence) = self.sequences.get_mut(&key) else { return false };
        sequence.start();
        let Opened { lease, restored, reach } =
            self.cache.open(&sequence.job.scope, &sequence.tokens, sequence.reusable());
        let fits = self.running.is_empty() || self.cache.fits(&lease, sequence.tokens.len());
        sequence.lease = lease;
        (sequence.computed, sequence.stored) = (restored, restored);
        sequence.checkpoint_at = reach;
        let tokens = sequence.tokens.len() as u64;
        if !fits || !self.try_place(key) {
            self.suspend(key);
            return false;
        }
        self.waiting.remove(&key);
        self.running.insert(key);
        if self.cache.sharing() {
            self.counters.prefix_queries += tokens;
            self.counters.prefix_hits += restored as u64;
        }
        let progress = self.requests.get_mut(&key.request).expect("a sequence's request is known");
        if !std::mem::replace(&mut progress.started, true) {
            progress.cached_tokens = restored.min(self.sequences[&key].job.prompt_len());
        }
        true
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut running: Vec<RequestId> = self.running.iter().map(|key| key.request).collect();
        running.dedup();
        Stats {
            requests_running: running.len(),
            requests_waiting: self.queued(),
            sequences_running: self.running.len(),
            sequences_waiting: self.waiting.len(),
            groups: self.cache.stats(),
            ..self.counters.clone()
        }
    }

    /// Whether every sequence is in one list and the cache agrees with what they hold.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (key, sequence) in &self.sequences {
            if self.running.contains(key) == self.waiting.contains(key) {
                return Err(format!("{key:?} is not in exactly one of running and waiting"));
            }
            if sequence.stored > sequence.computed || self.waiting.contains(key) && sequence.computed > 0 {
                return Err(format!("{key:?} has {} tokens stored of {}", sequence.stored, sequence.computed));
            }
        }
        if self.running.len() + self.waiting.len() != self.sequences.len() {
            return Err("a sequence that is gone is still listed".into());
        }
        let choices: u32 = self.requests.values().map(|progress| progress.choices_left).sum();
        if choices as usize != self.sequences.len() {
            return Err(format!("{choices} choices are left in {} sequences", self.sequences.len()));
        }
        self.cache.check(self.sequences.values().map(|sequence| (&sequence.lease, sequence.computed)))
    }
}

/// How many of a sequence's remaining rows to ask for.
///
/// Where a recurrent state can only be restored at the end of a step, steps end at page boundaries:
/// the one that another request is known to share, and the last one of the prompt, above all.
fn chunk(sequence: &Sequence, most: usize, cache: &Cache) -> usize {
    let remaining = sequence.remaining();
    let rows = remaining.min(most);
    if !cache.checkpoints() {
        return rows;
    }
    let (start, page) = (sequence.computed, cache.page_size());
    let target = start + remaining;
    let last = (target - 1) / page * page;
    let mut end = start + rows;
    for boundary in [last, sequence.checkpoint_at] {
        if start < boundary && boundary < end {
            end = boundary;
        }
    }
    if end < target && end / page * page > start {
        end = end / page * page;
    }
    end - start
}
