//! The operation against the definition of [`anyfleet_tensor::sampling`], step by step.
use crate::CpuBackend;
use crate::ops::testing::*;
use anyfleet_tensor::ops::Sample;
use anyfleet_tensor::sampling::{self, clean};
use anyfleet_tensor::{Adjust, DType, Live, SampleMode, SampleParams, Tensor};
use std::cmp::Reverse;

#[derive(Debug, PartialEq, Clone)]
struct Row {
    id: u32,
    logprob: f32,
    top: Vec<(u32, f32)>,
}

fn run(device: &CpuBackend, logits: &[f32], params: &[SampleParams], adjust: &[Adjust], live: usize) -> Vec<Row> {
    let (rows, vocabulary) = (params.len(), logits.len() / params.len());
    let new = |dtype, shape: &[usize]| Tensor::new(device, dtype, shape).unwrap();
    let (ids, top_ids) = (new(DType::U32, &[rows]), new(DType::U32, &[rows, 20]));
    let logprobs = tensor(device, &vec![POISON; rows], &[rows]);
    let top_logprobs = new(DType::F32, &[rows, 20]);
    bind(device, live as u32, |enc| {
        enc.sample(Sample {
            ids: &ids,
            logprobs: &logprobs,
            top_ids: &top_ids,
            top_logprobs: &top_logprobs,
            logits: &columns_of(device, logits, rows, vocabulary),
            params: &tensor_u32(device, bytemuck::cast_slice(params), &[rows, 16]),
            adjust: &tensor_u32(device, bytemuck::cast_slice(adjust), &[adjust.len(), 4]),
            masks: None,
            live: Live::LogitRows,
        })
    });
    let (ids, logprobs) = (read_u32(device, &ids), read(device, &logprobs));
    assert!(logprobs[live..].iter().all(|&v| v == POISON));
    let (top_ids, top) = (read_u32(device, &top_ids), read(device, &top_logprobs));
    (0..live)
        .map(|r| Row {
            id: ids[r],
            logprob: logprobs[r],
            top: (r * 20..r * 20 + 20).map(|i| (top_ids[i], top[i])).collect(),
        })
        .collect()
}

/// The definition of `anyfleet_tensor::sampling`, step by step.
fn naive(logits: &[f32], params: &SampleParams, adjust: &[Adjust]) -> u32 {
    let mut adjusted: Vec<f32> = logits.iter().map(|&l| clean(l)).collect();
    for entry in &adjust[params.adjust_start as usize..][..params.adjust_len as usize] {
        adjusted[entry.token as usize] = sampling::adjusted(adjusted[entry.token as usize], entry, params);
    }
    let by_rank = |values: &[f32]| {
        let mut ids: Vec<usize> = (0..values.len()).collect();
        ids.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
        ids
    };
    let ranked = by_rank(&adjusted);
    let max = adjusted[ranked[0]];
    if max == f32::NEG_INFINITY {
        return by_rank(&logits.iter().map(|&l| clean(l)).collect::<Vec<_>>())[0] as u32;
    }
    if params.mode == SampleMode::Greedy as u32 {
        return ranked[0] as u32;
    }
    let weight = |id: usize| sampling::weight(adjusted[id], max, 1.0 / params.temperature);
    let k = if params.top_k == 0 { ranked.len() } else { ranked.len().min(params.top_k as usize) };
    let mut kept = ranked[..k].to_vec();
    if params.top_p < 1.0 {
        let mass = sampling::top_p_mass(kept.iter().map(|&id| weight(id)).sum(), params.top_p);
        let mut reached = 0;
        let enough = kept.iter().position(|&id| {
            reached += weight(id);
            reached >= mass
        });
        kept.truncate(enough.map_or(k, |i| i + 1));
    }
    kept.retain(|&id| weight(id) >= sampling::min_p_weight(params.min_p));
    kept.sort_unstable();
    let mut left = sampling::draw(sampling::random_bits(params), kept.iter().map(|&id| weight(id)).sum());
    for id in kept {
        if left < weight(id) {
            return id as u32;
        }
        left -= weight(id);
    }
    unreachable!("a draw lies below the sum of weights")
}

/// The log-probability of a token, summed in the order every kernel set has.
fn exact_logprob(logits: &[f32]) -> impl Fn(u32) -> f32 {
    let logits: Vec<f32> = logits.iter().map(|&l| clean(l)).collect();
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &l| m.max(l));
    let mut sum = 0.0;
    for block in logits.chunks(1024) {
        let mut lanes = [0.0f32; 16];
        for (i, &logit) in block.iter().enumerate() {
            lanes[i % 16] += sampling::exp(logit - max);
        }
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        sum += f64::from(lanes[0]);
    }
    move |id| (f64::from(logits[id as usize] - max) - sampling::ln(sum)) as f32
}

fn logprobs(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().fold(f64::NEG_INFINITY, |m, &l| m.max(f64::from(l)));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    logits.iter().map(|&l| f64::from(l) - max - sum.ln()).collect()
}

/// Sharp, flat, tied and tiny temperatures with all truncations.
fn variety() -> Vec<SampleParams> {
    let random = SampleParams { mode: SampleMode::Random as u32, seed_lo: 9, seed_hi: 7, ..SampleParams::default() };
    let mut all = vec![SampleParams::default(), random];
    for (i, (temperature, top_k, top_p, min_p)) in [
        (1.0, 5, 1.0, 0.0),
        (1.0, 1, 1.0, 0.0),
        (3.0, 0, 0.9, 0.0),
        (0.7, 0, 0.3, 0.0),
        (50.0, 0, 0.99, 0.0),
        (1.0, 0, 0.0, 0.0),
        (1.5, 40, 0.8, 0.05),
        (1.0, 0, 1.0, 0.2),
        (1e-30, 0, 1.0, 0.0),
        (1.0, u32::MAX, 1.0, 1.0),
        (0.7, 200, 1.0, 0.0),
        (2.0, 3000, 0.95, 0.0),
    ]
    .into_iter()
    .enumerate()
    {
        for position in 0..4 {
            all.push(SampleParams { temperature, top_k, top_p, min_p, position, choice: i as u32, ..random });
        }
    }
    all
}

#[test]
fn agrees_with_the_naive_twin() {
    for vocabulary in [1, 3, 20, 64, 333, 5000, 40_001] {
        let entries: Vec<Adjust> = (0..vocabulary as u32)
            .step_by(3)
            .map(|token| Adjust { token, output_count: token % 4, flags: token % 3, bias: (token % 5) as f32 * 0.3 })
            .collect();
        let mut all = variety();
        for (i, params) in all.iter_mut().enumerate() {
            if i % 2 == 1 {
                (params.adjust_start, params.adjust_len) = (0, entries.len() as u32);
                (params.repetition_penalty, params.frequency_penalty) = (1.3, 0.2);
                params.presence_penalty = -0.1;
            }
        }
        let source = random(11, all.len() * vocabulary);
        // A third of the logits are rounded so that there are ties.
        let logits: Vec<f32> =
            source.iter().enumerate().map(|(i, v)| if i % 3 == 0 { (v * 4.0).round() } else { v * 5.0 }).collect();
        let exact: Vec<_> = logits.chunks(vocabulary).map(exact_logprob).collect();
        let mut first = None;
        for device in devices() {
            let rows = run(&device, &logits, &all, &entries, all.len());
            for (((row, params), logits), exact) in rows.iter().zip(&all).zip(logits.chunks(vocabulary)).zip(&exact) {
                assert_eq!(row.logprob, exact(row.id));
                let want = logprobs(logits);
                assert_eq!(row.id, naive(logits, params, &entries), "{params:?} of {vocabulary}");
                assert!((f64::from(row.logprob) - want[row.id as usize]).abs() < 1e-5);
                let mut ids: Vec<u32> = (0..vocabulary as u32).collect();
                ids.sort_by_key(|&id| Reverse(sampling::rank_key(clean(logits[id as usize]), id)));
                for (i, &(id, logprob)) in row.top.iter().enumerate() {
                    match ids.get(i) {
                        Some(&want_id) => {
                            assert_eq!(id, want_id);
                            assert!((f64::from(logprob) - want[id as usize]).abs() < 1e-5);
                        }
                        None => assert_eq!((id, logprob), (u32::MAX, f32::NEG_INFINITY)),
                    }
                }
            }
            assert_eq!(first.get_or_insert(rows.clone()), &rows);
            // One row alone is shared by the threads.
            for i in (0..all.len()).step_by(5) {
                let logits = &logits[i * vocabulary..][..vocabulary];
                assert_eq!(run(&device, logits, &all[i..][..1], &entries, 1), rows[i..][..1]);
            }
        }
    }
}

#[test]
fn odd_logits_and_modes() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let ban = |token| Adjust { token, flags: Adjust::BANNED, ..Adjust::default() };
    let bans = [ban(0), ban(1), ban(2), ban(99)];
    let banned = SampleParams { adjust_len: 4, ..SampleParams::default() };
    let random = SampleParams { mode: SampleMode::Random as u32, ..SampleParams::default() };
    let score = SampleParams { mode: SampleMode::Score as u32, target: 2, ..SampleParams::default() };
    let cases = [
        ([1.0, nan, 2.0], SampleParams::default(), 2, logprobs(&[1.0, 2.0])[1]),
        ([nan, nan, nan], SampleParams::default(), 0, -(3f64.ln())),
        ([-inf, -inf, -inf], random, 0, -(3f64.ln())),
        ([0.0, inf, 5.0], random, 1, 0.0),
        ([3.0, 7.0, 7.0], SampleParams::default(), 1, logprobs(&[3.0, 7.0, 7.0])[1]),
        ([3.0, 7.0, 7.0], banned, 1, logprobs(&[3.0, 7.0, 7.0])[1]),
        ([3.0, 7.0, 1.0], SampleParams { mode: 1, ..banned }, 1, logprobs(&[3.0, 7.0, 1.0])[1]),
        ([3.0, -inf, 7.0], SampleParams { adjust_start: 2, adjust_len: 1, ..random }, 0, logprobs(&[3.0, 7.0])[0]),
        ([-0.0, 0.0, -1.0], SampleParams::default(), 0, logprobs(&[0.0, 0.0, -1.0])[0]),
        ([3.0, 7.0, 1.0], score, 2, logprobs(&[3.0, 7.0, 1.0])[2]),
    ];
    let logits: Vec<f32> = cases.iter().flat_map(|c| c.0).collect();
    let params: Vec<SampleParams> = cases.iter().map(|c| c.1).collect();
    for device in devices() {
        let rows = run(&device, &logits, &params, &bans, cases.len() - 1);
        for (row, (logits, params, id, logprob)) in rows.iter().zip(&cases) {
            assert_eq!(row.id, *id, "{logits:?} {params:?}");
            assert!((f64::from(row.logprob) - logprob).abs() < 1e-6, "{logits:?} {params:?}: {}", row.logprob);
        }
        assert_eq!(run(&device, &logits, &params, &bans, 0), []);
    }
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [1.0f32, 0.0, -1.0, 2.0];
    let want: Vec<f64> = logprobs(&logits).iter().map(|l| l.exp()).collect();
    let draws = 4000;
    let params: Vec<SampleParams> = (0..draws)
        .map(|position| SampleParams {
            mode: SampleMode::Random as u32,
            seed_lo: 5,
            position,
            ..SampleParams::default()
        })
        .collect();
    let rows = run(&devices()[0], &logits.repeat(draws as usize), &params, &[], draws as usize);
    for (id, p) in want.iter().enumerate() {
        let share = rows.iter().filter(|r| r.id == id as u32).count() as f64 / f64::from(draws);
        // Four standard deviations.
        assert!((share - p).abs() < 4.0 * (p * (1.0 - p) / f64::from(draws)).sqrt(), "{id}: {share}, expected {p}");
    }
}
