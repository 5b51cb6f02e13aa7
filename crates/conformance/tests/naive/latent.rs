//! Operations of latent attention, one number at a time.
use super::ops::{self, AttentionArgs, RopeArgs};
use super::{Mutation, Naive, Packed, View, view};
use anyfleet_tensor::DType;
use anyfleet_tensor::ops::{LatentAttention, LatentKv};

pub struct LatentKvArgs {
    q: View,
    cache: View,
    queries: View,
    kv: View,
    norm: View,
    eps: f32,
    turn: RopeArgs,
    positions: View,
    slots: View,
}

pub fn latent_kv_args(op: &LatentKv<'_, Naive>) -> LatentKvArgs {
    let cache = view(op.cache);
    // Only its rotation is used.
    let turn = RopeArgs {
        q: view(op.q),
        k_cache: cache.clone(),
        v_cache: cache.clone(),
        scales: None,
        qkv: view(op.kv),
        positions: view(op.positions),
        slots: view(op.slots),
        rope: Some((view(op.rope.table), op.rope.interleaved)),
        norm: None,
    };
    LatentKvArgs {
        q: view(op.q),
        cache,
        queries: view(op.queries),
        kv: view(op.kv),
        norm: view(op.norm),
        eps: op.eps,
        turn,
        positions: view(op.positions),
        slots: view(op.slots),
    }
}

pub fn latent_kv(m: Mutation, live: usize, args: &LatentKvArgs) {
    let [_, _, _, size] = args.cache.dims().try_into().unwrap();
    let rank = args.norm.dims()[0];
    let (rotated, heads) = (size - rank, args.q.cols() / size);
    let query = args.queries.cols() / heads;
    let turning = if m == Mutation::LatentInterleavesWrong { Mutation::RopeInterleavesWrong } else { Mutation::None };
    for row in 0..live {
        let (queries, kv) = (args.queries.row(row), args.kv.row(row));
        let position = args.positions.index(row, 0) as usize;
        for head in 0..heads {
            let first = if m == Mutation::LatentTurnsFirstElements { 0 } else { query - rotated };
            let x = queries[head * query + first..][..rotated].to_vec();
            for (i, v) in args.turn.head(turning, x, position, true).into_iter().enumerate() {
                args.q.set(row, head * size + rank + i, v);
            }
        }
        let slot = match args.slots.index(row, 0) {
            u32::MAX if m == Mutation::LatentStoresUnusedSlots => 0,
            u32::MAX => continue,
            slot => slot as usize,
        };
        let (latent, key) = kv.split_at(rank);
        let weight = args.norm.slice(0, rank);
        let mut stored = match m {
            Mutation::LatentForgetsNorm => latent.to_vec(),
            Mutation::LatentNormsTheKey => {
                let weight = [weight, vec![1.0; rotated]].concat();
                ops::normalised(&kv, &weight, args.eps)[..rank].to_vec()
            }
            _ => ops::normalised(latent, &weight, args.eps),
        };
        stored.extend(args.turn.head(turning, key.to_vec(), position, false));
        if args.cache.dtype() == DType::F8 {
            stored.iter_mut().for_each(|v| *v = ops::spoilt(m, *v));
        }
        args.cache.put(ops::cache_at(&args.cache, slot, 0), &stored);
    }
}

pub fn attention_args(op: &LatentAttention<'_, Naive>) -> AttentionArgs {
    AttentionArgs {
        out: view(op.out),
        q: view(op.q),
        k_cache: view(op.cache),
        v_cache: view(op.cache),
        scales: None,
        seqs: view(op.seqs),
        table: view(op.table),
        scale: op.scale,
        softcap: None,
        sinks: None,
        window: None,
        value_size: op.out.cols() / op.heads(),
    }
}

pub fn attention(m: Mutation, live: usize, args: &AttentionArgs) {
    let m = match m {
        Mutation::LatentSumsByPage => Mutation::AttentionSumsByPage,
        Mutation::LatentSeesTheFuture => Mutation::AttentionSeesTheFuture,
        m => m,
    };
    ops::attention(m, live, args);
}

pub fn head_linear(m: Mutation, live: usize, out: &View, x: &View, weight: &Packed) {
    let (heads, n, k) = (weight.stack, weight.rows, weight.cols);
    let rows = if m == Mutation::HeadLinearComputesPadding { out.rows() } else { live };
    let stride = if m == Mutation::HeadLinearIgnoresGaps { k } else { x.cols() / heads };
    for row in 0..rows {
        let from = x.row(row);
        for head in 0..heads {
            let matrix = if m == Mutation::HeadLinearTakesFirstHead { 0 } else { head };
            let x = &from[head * stride..][..k];
            for feature in 0..n {
                let w = &weight.values[(matrix * n + feature) * k..][..k];
                let products = x.iter().zip(w).map(|(x, w)| x * w);
                let sum: f32 = match m == Mutation::HeadLinearOrderDependsOnRows && live > 1 {
                    true => products.rev().sum(),
                    false => products.sum(),
                };
                out.set(row, head * (out.cols() / heads) + feature, sum);
            }
        }
    }
    if m == Mutation::HeadLinearWritesGaps && live > 0 && out.cols() / heads > n {
        out.set(0, n, 0.0);
    }
}
