//! The cases of each tier.
use crate::case::{Case, Outcome, Types};
use crate::cases::attention::AttentionCase;
use crate::cases::sample::{Logits, SampleCase};
use crate::large;
use crate::property::agrees_over;
use crate::report::Report;
use crate::rng::Rng;
use anyfleet_tensor::{Backend, Caps, DType, Live, SampleMode};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

mod attention;
mod experts;
mod small;

/// How much to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Odd and small shapes, every check, all properties: seconds.
    Small,
    /// Shapes of 8B models, 152k vocabularies, 32k contexts and buffers past 4 GiB, with sampled
    /// references: minutes, and up to 12 GiB of memory.
    Large,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which cases.
    pub tier: Tier,
    /// Inputs and random shapes follow from it; see [`seed_from_env`](crate::rng::seed_from_env).
    pub seed: u64,
    /// Only this op.
    pub op: Option<String>,
    /// Only cases whose label contains this.
    pub case: Option<String>,
    /// Of each op and its types only one of so many cases, and at least one; which ones follows from the seed. 1: all.
    pub share: usize,
}

impl Options {
    /// Everything in a tier.
    pub fn new(tier: Tier, seed: u64) -> Self {
        Options { tier, seed, op: None, case: None, share: 1 }
    }
}

/// Cases as a suite holds them.
pub type Cases<B> = Vec<Box<dyn Case<B>>>;

/// The cases that [`suite`] runs, in its order.
pub fn cases<B: Backend>(caps: &Caps, options: &Options) -> Cases<B> {
    let cases: Cases<B> = match options.tier {
        Tier::Small => small::small(caps, &mut Rng::for_case(options.seed, "shapes")),
        Tier::Large => large::cases(caps),
    };
    let wanted = |case: &dyn Case<B>| {
        options.op.as_ref().is_none_or(|op| op == case.op())
            && options.case.as_ref().is_none_or(|part| case.label().contains(part))
    };
    let cases: Cases<B> = cases.into_iter().filter(|case| wanted(case.as_ref())).collect();
    if options.share > 1 { drawn(cases, options) } else { cases }
}

/// The share of cases that the options ask for.
fn drawn<B: Backend>(cases: Cases<B>, options: &Options) -> Cases<B> {
    let kind = |case: &dyn Case<B>| (case.op(), case.types());
    let mut groups = BTreeMap::<_, Vec<usize>>::new();
    for (at, case) in cases.iter().enumerate() {
        groups.entry(kind(case.as_ref())).or_default().push(at);
    }
    let mut rng = Rng::for_case(options.seed, "share");
    let mut chosen = vec![false; cases.len()];
    for group in groups.values() {
        let first = rng.below(options.share.min(group.len()));
        group.iter().skip(first).step_by(options.share).for_each(|&at| chosen[at] = true);
    }
    cases.into_iter().zip(chosen).filter_map(|(case, chosen)| chosen.then_some(case)).collect()
}

/// Runs a backend through a tier.
pub fn suite<B: Backend>(backend: &B, options: &Options) -> Report {
    suite_with(backend, options, |_| {})
}

/// Like [`suite`], calling `done` after each case.
pub fn suite_with<B: Backend>(backend: &B, options: &Options, mut done: impl FnMut(&Outcome)) -> Report {
    let mut report = Report::new(backend.caps(), options.seed);
    for case in cases(backend.caps(), options) {
        let outcome = case.run(backend, options.seed);
        done(&outcome);
        report.outcomes.push(outcome);
    }
    report
}

/// Runs choices that the last unit of a token's weight decides: for devices whose `sampling::exp` has the bits of the
/// definition, as those have not whose fused multiply-add is two roundings.
pub fn edges<B: Backend>(backend: &B, seed: u64) -> Report {
    let mut report = Report::new(backend.caps(), seed);
    let (logits, mode, live) = (Logits::Edge, Some(SampleMode::Random), Live::All);
    for vocab in [2, 515, 4099] {
        let case = SampleCase { rows: 16, padding: 0, vocab, logits, mode, adjusted: false, masked: false, live };
        report.outcomes.push(Case::<B>::run(&case, backend, seed));
    }
    report
}

/// Runs attention, and attention over latents, with caches of each type of one byte without scales, and with bf16 caches that
/// hold the same numbers: both must leave the same bits. Returns how many cases were compared.
///
/// # Errors
/// A line that names the first case in which they differ.
pub fn narrow_caches_agree<B: Backend>(backend: &B, seed: u64) -> Result<usize, String> {
    let caps = backend.caps();
    let narrow = |types: &[DType], cases: fn(&mut Rng, DType, DType) -> Vec<AttentionCase>| -> Vec<AttentionCase> {
        let narrow = |kv: &&DType| kv.size() == 1 && !kv.is_scaled() && types.contains(&DType::BF16);
        types.iter().filter(narrow).flat_map(|&kv| cases(&mut Rng::new(seed), caps.activations[0], kv)).collect()
    };
    let mut cases = narrow(&caps.kv, attention::attention_cases);
    cases.extend(narrow(&caps.latent, attention::latent_attention_cases));
    cases.iter().try_for_each(|case| agrees_over(case, DType::BF16, backend, seed).map_err(|e| e.to_string()))?;
    Ok(cases.len())
}

/// A subset of the small tier for types that are `wanted`: one case of every op and its types and then, as long as
/// `budget` lasts, more.
pub fn quick<B: Backend>(backend: &B, seed: u64, wanted: impl Fn(&Types) -> bool, budget: Duration) -> Report {
    let mut left: BTreeMap<(&str, Types), Cases<B>> = BTreeMap::new();
    for case in cases::<B>(backend.caps(), &Options::new(Tier::Small, seed)) {
        if wanted(&case.types()) {
            left.entry((case.op(), case.types())).or_default().push(case);
        }
    }
    let mut report = Report::new(backend.caps(), seed);
    let end = Instant::now() + budget;
    while !left.is_empty() && (report.outcomes.is_empty() || Instant::now() < end) {
        // The last cases have random shapes.
        let round = left.values_mut().filter_map(Vec::pop);
        report.outcomes.extend(round.map(|case| case.run(backend, seed)));
        left.retain(|_, cases| !cases.is_empty());
    }
    report
}

/// Runs every case once on both backends, which must leave the same bits: what an equal
/// [`numerics`](anyfleet_tensor::Caps::numerics) promises. Returns how many cases were compared.
///
/// # Errors
/// A line that names the first case in which they differ.
pub fn agree<B: Backend>(one: &B, other: &B, options: &Options) -> Result<usize, String> {
    let (caps, others) = (one.caps(), other.caps());
    if caps.numerics != others.numerics {
        return Err(format!("{} and {} do not promise the same bits", caps.numerics, others.numerics));
    }
    let mut compared = 0;
    for case in cases(caps, options) {
        let [mine, theirs] = [one, other].map(|b| case.bits(b, &mut Rng::for_case(options.seed, &case.label())));
        let [mine, theirs] = [mine, theirs].map(|bits| bits.map_err(|e| e.to_string()));
        let (Some(mine), Some(theirs)) = (mine?, theirs?) else { continue };
        compared += 1;
        if mine != theirs {
            let (seed, label) = (options.seed, case.label());
            return Err(format!("{} and {} differ with ANYFLEET_SEED={seed} in {label}", caps.device, others.device));
        }
    }
    Ok(compared)
}
