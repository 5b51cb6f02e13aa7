//! Tokens that the device chose and the host has not seen: steps submitted ahead compute what they compute when each is
//! waited for.
use anyfleet_conformance::require::skipped;
use anyfleet_conformance::rng::{Rng, seed_from_env};
use anyfleet_cpu::{CpuBackend, CpuOptions};
use anyfleet_cuda::CudaBackend;
use anyfleet_executor::{ExecutorOptions, ModelExecutor, plan};
use anyfleet_models::{Decoder, LoadOptions, open_model};
use anyfleet_runtime::{
    Batch, Executor, GroupBatch, LogitRow, SampleMode, SeqRows, StepOutput, TableRange, TokenSource,
};
use anyfleet_tensor::{Backend, DType, WeightFormat};
use anyfleet_wgpu::{WgpuBackend, WgpuOptions};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// More than one run of the head.
const SEQUENCES: usize = 70;
const PROMPT: usize = 3;
const STEPS: usize = 6;
const PAGE: usize = 16;

fn executor<B: Backend>(device: &Arc<B>, name: &str) -> ModelExecutor<B> {
    let options = ExecutorOptions {
        weights: WeightFormat::Float(DType::BF16),
        kv: DType::BF16,
        activation: DType::F32,
        max_model_len: Some(PAGE),
        kv_bytes: Some(4 << 20),
        max_sequences: SEQUENCES,
        max_tokens: SEQUENCES * PROMPT,
        page_size: Some(PAGE),
    };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/parity/fixtures");
    let model = open_model(fixtures.join(name)).expect("a model");
    let plan = plan(&**device, &model.spec, &options).expect("plan");
    let load = LoadOptions { store: options.weights, positions: plan.limits.max_model_len, packs: None };
    let decoder = Decoder::load(&**device, &model, load, &mut |_, _| ControlFlow::Continue(())).expect("load");
    ModelExecutor::new(device.clone(), decoder, &options, &plan).expect("executor")
}

/// The step after `context` tokens of these sequences, whose next rows are given. Sequence `s` has page `s`.
fn step(sequences: &[usize], context: usize, tokens: Vec<TokenSource>, groups: usize) -> Batch {
    let rows = tokens.len() / sequences.len();
    let positions = || context..context + rows;
    let group = GroupBatch::Pages {
        slots: sequences.iter().flat_map(|s| positions().map(move |p| (s * PAGE + p) as u32)).collect(),
        table: sequences.iter().map(|&s| s as u32).collect(),
        ranges: (0..sequences.len() as u32).map(|start| TableRange { start, first_page: 0 }).collect(),
    };
    let logit_row = |(i, &s): (usize, &usize)| LogitRow {
        row: ((i + 1) * rows - 1) as u32,
        mode: if s % 3 == 0 { SampleMode::Greedy } else { SampleMode::Random },
        temperature: 1.5,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: s as u64,
        choice: 0,
        position: (context + rows) as u32,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        adjust: 0..0,
        mask: None,
        want_logits: s == 5,
    };
    let seq =
        |i: usize| SeqRows { row_start: (i * rows) as u32, rows: rows as u32, context_len: (context + rows) as u32 };
    Batch {
        positions: sequences.iter().flat_map(|_| positions().map(|p| p as u32)).collect(),
        adapters: vec![0; tokens.len()],
        tokens,
        sequences: (0..sequences.len()).map(seq).collect(),
        groups: vec![group; groups],
        logit_rows: sequences.iter().enumerate().map(logit_row).collect(),
        adjust: Vec::new(),
        masks: Vec::new(),
    }
}

/// The sequences of each step: another order each time, and fewer.
fn orders(rng: &mut Rng) -> Vec<Vec<usize>> {
    let mut left: Vec<usize> = (0..SEQUENCES).collect();
    let shuffled = |_| {
        for i in (1..left.len()).rev() {
            left.swap(i, rng.below(i + 1));
        }
        let order = left.clone();
        left.pop();
        order
    };
    (0..STEPS).map(shuffled).collect()
}

/// What each step gives; `known` says whether the host waits for a step's tokens before it names them in the next.
fn run(executor: &mut dyn Executor, orders: &[Vec<usize>], prompts: &[u32], known: bool) -> Vec<StepOutput> {
    let depth = if known { 1 } else { executor.limits().steps_in_flight };
    let groups = executor.limits().cache.groups.len();
    let (mut outputs, mut submitted) = (Vec::<StepOutput>::new(), VecDeque::new());
    for (n, order) in orders.iter().enumerate() {
        if submitted.len() == depth {
            submitted.pop_front();
            outputs.push(executor.wait().expect("wait").clone());
        }
        let (context, tokens) = match n {
            0 => (
                0,
                order.iter().flat_map(|s| &prompts[s * PROMPT..][..PROMPT]).map(|&id| TokenSource::Id(id)).collect(),
            ),
            _ => {
                let row = |s: &usize| orders[n - 1].iter().position(|before| before == s).expect("it was there");
                let source = |row: usize| match known {
                    true => TokenSource::Id(outputs[n - 1].ids[row]),
                    false => TokenSource::SampledBy(row as u32),
                };
                (PROMPT + n - 1, order.iter().map(row).map(source).collect())
            }
        };
        executor.submit(&step(order, context, tokens, groups)).expect("submit");
        submitted.push_back(n);
    }
    submitted.iter().for_each(|_| outputs.push(executor.wait().expect("wait").clone()));
    outputs
}

fn same_ahead<B: Backend>(device: Arc<B>, depth: usize) {
    let seed = seed_from_env().expect("a seed");
    for name in ["llama3", "qwen3-mixed"] {
        let mut rng = Rng::new(seed);
        let orders = orders(&mut rng);
        let mut executor = executor(&device, name);
        assert_eq!(executor.limits().steps_in_flight, depth, "{name}");
        let vocab = executor.limits().vocab_size;
        let prompts: Vec<u32> = (0..SEQUENCES * PROMPT).map(|_| rng.below(vocab) as u32).collect();
        let waited = run(&mut executor, &orders, &prompts, true);
        let ahead = run(&mut executor, &orders, &prompts, false);
        let chosen: std::collections::BTreeSet<_> = waited.iter().flat_map(|output| &output.ids).collect();
        assert!(chosen.len() > 20, "{name}: only {} different tokens were chosen", chosen.len());
        for (n, (waited, ahead)) in waited.iter().zip(&ahead).enumerate() {
            assert!(
                waited == ahead,
                "{name}, step {n} with ANYFLEET_SEED={seed}: {:?}, waited {:?}",
                ahead.ids,
                waited.ids
            );
        }
        assert_eq!((waited.len(), ahead.len()), (STEPS, STEPS));
    }
}

#[test]
fn steps_ahead_on_the_cpu() {
    same_ahead(Arc::new(CpuBackend::new(CpuOptions { threads: Some(2), isa: None }).expect("the CPU")), 1);
}

#[test]
fn steps_ahead_on_software_vulkan() {
    let options = WgpuOptions { adapter: Some("llvmpipe".into()), ..Default::default() };
    if let Ok(device) = WgpuBackend::new(&options).map_err(|e| skipped("wgpu", e)) {
        same_ahead(Arc::new(device), 2);
    }
}

#[test]
fn steps_ahead_on_emulated_cuda() {
    if let Ok(device) = CudaBackend::emulated().map_err(|e| skipped("cuda", e)) {
        same_ahead(Arc::new(device), 2);
    }
}
