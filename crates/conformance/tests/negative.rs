//! The suite passes a plain correct backend and catches every way of being wrong we know.
mod naive;

use anyfleet_conformance::case::Verdict;
use anyfleet_conformance::rng::seed_from_env;
use anyfleet_conformance::suite::{Options, Tier, cases, suite};
use anyfleet_tensor::Backend;
use anyfleet_tensor::null::NullBackend;
use naive::{Mutation, Naive};
use std::collections::BTreeSet;

fn options(op: Option<&str>) -> Options {
    Options { op: op.map(str::to_string), ..Options::new(Tier::Small, seed_from_env().unwrap()) }
}

#[test]
fn a_plain_backend_passes() {
    let report = suite(&Naive::new(Mutation::None), &options(None));
    assert!(report.passed(), "{}", report.failure_text());
}

#[test]
fn a_backend_that_computes_nothing_fails_every_op() {
    let report = suite(&NullBackend::default(), &options(None));
    let all: BTreeSet<_> = report.outcomes.iter().map(|o| (o.op, o.types)).collect();
    let failed: BTreeSet<_> = report.failures().map(|o| (o.op, o.types)).collect();
    assert_eq!(all, failed);
    let ops: BTreeSet<_> = all.iter().map(|o| o.0).collect();
    assert_eq!(
        ops.into_iter().collect::<Vec<_>>(),
        [
            "act_mul",
            "attention",
            "combine",
            "embed",
            "gather",
            "grouped_linear",
            "grouped_linear_act_mul",
            "head_linear",
            "latent_attention",
            "latent_kv",
            "linear",
            "linear_act_mul",
            "norm",
            "rope_kv",
            "route",
            "sample",
            "softcap"
        ]
    );
}

/// Each mutation with the op it breaks and a word of the message that names the damage.
const MUTATIONS: &[(Mutation, &str, &str)] = &[
    (Mutation::EmbedNextRow, "embed", "expected Exact"),
    (Mutation::EmbedIgnoresSampled, "embed", "expected Exact"),
    (Mutation::EmbedForgetsScale, "embed", "expected Near"),
    (Mutation::NormForgetsEps, "norm", "expected Near"),
    (Mutation::NormWritesPastTheEnd, "norm", "memory outside output out was written"),
    (Mutation::NormWritesItsInput, "norm", "input x was written"),
    (Mutation::NormComputesPadding, "norm", "is not live but was written"),
    (Mutation::NormUsesBatchStatistics, "norm", "gave other bits than in a batch"),
    (Mutation::NormForgetsResidual, "norm", "expected Near"),
    (Mutation::NormScalesResidual, "norm", "expected Near"),
    (Mutation::LinearDropsLastK, "linear", "expected Near"),
    (Mutation::LinearIgnoresStride, "linear", "expected Near"),
    (Mutation::LinearRoundsToBf16, "linear", "expected Near"),
    (Mutation::LinearOrderDependsOnRows, "linear", "gave other bits than in a batch"),
    (Mutation::LinearForgetsResidual, "linear", "expected Near"),
    (Mutation::LinearSkipsLastRow, "linear", "never written"),
    (Mutation::F8TakesNextScale, "linear", "expected Near"),
    (Mutation::F8TakesScalesOfRowBefore, "linear_act_mul", "expected Near"),
    (Mutation::F8KeepsTheProduct, "linear", "the bf16 matrix that the one of f8 reads as"),
    (Mutation::F8TruncatesTheProduct, "embed", "expected Exact"),
    (Mutation::F8LosesTheSign, "grouped_linear", "expected Near"),
    (Mutation::F8FlushesSubnormals, "linear", "expected Near"),
    (Mutation::ActMulSwapsHalves, "act_mul", "expected Near"),
    (Mutation::ActMulDrifts, "act_mul", "second run"),
    (Mutation::RopeThetaOff, "rope_kv", "expected Near"),
    (Mutation::RopeStoresUnusedSlots, "rope_kv", "_cache"),
    (Mutation::RopeInterleavesWrong, "rope_kv", "expected Near"),
    (Mutation::RopeTruncatesStores, "rope_kv", "k_cache"),
    (Mutation::RopeScalesByPage, "rope_kv", "_scale"),
    (Mutation::RopeOverflowsEightBits, "rope_kv", "_cache"),
    (Mutation::RopeFlushesEightBits, "rope_kv", "_cache"),
    (Mutation::RopeTruncatesEightBits, "rope_kv", "_cache"),
    (Mutation::AttentionWindowOffByOne, "attention", "expected Near"),
    (Mutation::AttentionSeesTheFuture, "attention", "expected Near"),
    (Mutation::AttentionIgnoresFirstPage, "attention", "panicked"),
    (Mutation::AttentionSumsByPage, "attention", "gave other bits in chunks"),
    (Mutation::AttentionOneKvHead, "attention", "expected Near"),
    (Mutation::AttentionForgetsScales, "attention", "expected Near"),
    (Mutation::AttentionForgetsTheCap, "attention", "expected Near"),
    (Mutation::AttentionCapsWithoutScale, "attention", "expected Near"),
    (Mutation::AttentionCapIsOff, "attention", "expected Near"),
    (Mutation::AttentionForgetsSinks, "attention", "expected Near"),
    (Mutation::AttentionSinksByKvHead, "attention", "expected Near"),
    (Mutation::AttentionSinksBySegment, "attention", "expected Near"),
    (Mutation::GatherCopiesInOrder, "gather", "expected Exact"),
    (Mutation::SoftcapForgetsFactor, "softcap", "expected Near"),
    (Mutation::SoftcapClamps, "softcap", "expected Near"),
    (Mutation::SampleTiesToHighestId, "sample", "expected Exact"),
    (Mutation::SampleAdjustsLogprobs, "sample", "logprobs"),
    (Mutation::SampleIgnoresTopP, "sample", "ids"),
    (Mutation::SampleSeedsByRow, "sample", "ids"),
    (Mutation::SampleIgnoresMask, "sample", "ids"),
    (Mutation::SampleMasksHighBitFirst, "sample", "ids"),
    (Mutation::SampleMasksByRow, "sample", "ids"),
    (Mutation::SampleMasksAfterTopK, "sample", "ids"),
    (Mutation::SampleMasksLogprobs, "sample", "logprobs"),
    (Mutation::SampleLeavesMask, "sample", "ids"),
    (Mutation::RouteForgetsBias, "route", "weights"),
    (Mutation::RouteTiesToHighest, "route", "expected Exact"),
    (Mutation::RouteWeighsBiased, "route", "weights"),
    (Mutation::RouteSortsByToken, "route", "places"),
    (Mutation::RouteCountsPadding, "route", "is not live but was written"),
    (Mutation::GroupedTakesFirstExpert, "grouped_linear", "expected Near"),
    (Mutation::GroupedIgnoresRows, "grouped_linear", "expected Near"),
    (Mutation::GroupedComputesPadding, "grouped_linear", "is not live but was written"),
    (Mutation::GroupedOrderDependsOnRows, "grouped_linear", "gave other bits than in a batch"),
    (Mutation::GroupedSwapsHalves, "grouped_linear_act_mul", "expected Near"),
    (Mutation::CombineForgetsWeights, "combine", "expected Near"),
    (Mutation::CombineForgetsResidual, "combine", "expected Near"),
    (Mutation::CombineReadsInOrder, "combine", "expected Near"),
    (Mutation::RouteIgnoresGroups, "route", "weights"),
    (Mutation::RouteGroupsByHighest, "route", "weights"),
    (Mutation::RouteGroupsUnbiased, "route", "weights"),
    (Mutation::LatentForgetsNorm, "latent_kv", "expected Near"),
    (Mutation::LatentNormsTheKey, "latent_kv", "expected Near"),
    (Mutation::LatentTurnsFirstElements, "latent_kv", "expected Near"),
    (Mutation::LatentInterleavesWrong, "latent_kv", "expected Near"),
    (Mutation::LatentStoresUnusedSlots, "latent_kv", "cache"),
    (Mutation::LatentOverflowsEightBits, "latent_kv", "cache"),
    (Mutation::LatentFlushesEightBits, "latent_kv", "cache"),
    (Mutation::LatentTruncatesEightBits, "latent_kv", "cache"),
    (Mutation::LatentSumsByPage, "latent_attention", "gave other bits in chunks"),
    (Mutation::LatentSeesTheFuture, "latent_attention", "expected Near"),
    (Mutation::LatentForgetsTheKey, "latent_attention", "expected Near"),
    (Mutation::LatentTakesLastElements, "latent_attention", "expected Near"),
    (Mutation::HeadLinearTakesFirstHead, "head_linear", "expected Near"),
    (Mutation::HeadLinearIgnoresGaps, "head_linear", "expected Near"),
    (Mutation::HeadLinearWritesGaps, "head_linear", "expected Kept"),
    (Mutation::HeadLinearComputesPadding, "head_linear", "is not live but was written"),
    (Mutation::HeadLinearOrderDependsOnRows, "head_linear", "gave other bits than in a batch"),
    (Mutation::PlanKeepsOldCounts, "norm", "live rows gave other bits"),
    (Mutation::Panics, "gather", "the device fell over"),
];

#[test]
fn every_mutation_is_caught() {
    let options = options(None);
    for &(mutation, op, word) in MUTATIONS {
        let (device, options) = (Naive::new(mutation), Options { op: Some(op.into()), ..options.clone() });
        let mut failures = Vec::new();
        let found = cases(device.caps(), &options).iter().any(|case| {
            let outcome = case.run(&device, options.seed);
            let named = outcome.verdict == Verdict::Fail && outcome.detail.contains(word);
            failures.extend((outcome.verdict == Verdict::Fail).then_some(outcome.detail));
            named
        });
        let seed = options.seed;
        assert!(found, "no failure of {mutation:?} says \"{word}\" with ANYFLEET_SEED={seed}: {failures:#?}");
    }
}

/// Where a device does not promise a row's bits, its rows are still held to the reference in every batch.
#[test]
fn a_fast_backend_may_add_in_any_order_and_no_more() {
    let options = options(Some("linear"));
    let report = suite(&Naive::fast(Mutation::LinearOrderDependsOnRows), &options);
    assert!(report.passed(), "{}", report.failure_text());
    let report = suite(&Naive::fast(Mutation::LinearDropsLastK), &options);
    assert!(report.failures().any(|o| o.label.starts_with("RowIndependence")), "{}", report.failure_text());
}
