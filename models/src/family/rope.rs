//! Rotary parameters of a config, in the hub's spelling (`rope_theta`, `rope_scaling`) and in that of
//! newer transformers (`rope_parameters`).
use super::cap;
use crate::{RopeScaling, RopeSpec};
use anyfleet_weights::{Result, Section, quote};
use std::ops::RangeInclusive;

const THETA: RangeInclusive<f64> = 1.0..=1e12;
const FACTOR: RangeInclusive<f64> = 1e-3..=1e6;
const ORIGINAL: &str = "original_max_position_embeddings";

/// Rotary embeddings of layers with and without a window.
pub(crate) struct ByLayerType {
    pub full: RopeSpec,
    pub sliding: RopeSpec,
}

/// As [`read`], of a family whose layers with a window rotate differently: in the hub's spelling `rope_theta` and
/// `rope_scaling` are of the others, and theirs is `rope_local_base_freq`; `rope_parameters` has a section for each.
pub(crate) fn read_by_layer_type(root: &Section<'_>, head_dim: usize, max_positions: usize) -> Result<ByLayerType> {
    let by_type = root.section("rope_parameters")?;
    let read = |kind: &str, theta_key: &str, theta: f64, hub: Option<Section<'_>>| {
        let own = by_type.as_ref().map(|p| p.section(kind)).transpose()?.flatten();
        let theta = match &own {
            Some(p) if p.has("rope_theta") => p.float("rope_theta", THETA)?,
            _ => root.float(theta_key, THETA)?,
        }
        .unwrap_or(theta);
        let parameters = hub.or(own);
        let scaling = match &parameters {
            Some(p) => read_scaling(root, p, theta, max_positions)?,
            None => RopeScaling::None,
        };
        Ok(RopeSpec { theta, rotary_dim: head_dim, interleaved: false, scaling })
    };
    let hub = root.section("rope_scaling")?.filter(|s| !s.is_empty());
    Ok(ByLayerType {
        full: read("full_attention", "rope_theta", 1_000_000.0, hub)?,
        sliding: read("sliding_attention", "rope_local_base_freq", 10_000.0, None)?,
    })
}

/// Reads what `root` says about heads of `head_dim` elements and `max_positions` tokens.
pub(crate) fn read(root: &Section<'_>, head_dim: usize, max_positions: usize) -> Result<RopeSpec> {
    let scaling = root.section("rope_scaling")?.filter(|s| !s.is_empty());
    let parameters = match scaling {
        Some(section) => Some(section),
        None => root.section("rope_parameters")?.filter(|s| !s.is_empty()),
    };
    let theta = match &parameters {
        Some(p) if p.has("rope_theta") => p.float("rope_theta", THETA)?,
        _ => root.float("rope_theta", THETA)?,
    };
    let theta = theta.unwrap_or(10_000.0);
    for section in parameters.iter().chain([root]) {
        if section.float("partial_rotary_factor", 0.0..=1.0)?.is_some_and(|f| f != 1.0) {
            return Err(section.error("partial_rotary_factor", "1, since this family rotates whole heads"));
        }
    }
    let scaling = match &parameters {
        Some(p) => read_scaling(root, p, theta, max_positions)?,
        None => RopeScaling::None,
    };
    Ok(RopeSpec { theta, rotary_dim: head_dim, interleaved: false, scaling })
}

fn read_scaling(root: &Section<'_>, p: &Section<'_>, theta: f64, max_positions: usize) -> Result<RopeScaling> {
    let key = if p.has("rope_type") { "rope_type" } else { "type" };
    match p.text(key)?.unwrap_or("default") {
        "default" => {
            if let Some(kind) = ["full_attention", "sliding_attention"].iter().find(|k| p.has(k)) {
                return Err(p.error(kind, "no entry: rotary parameters by layer type are not part of this family"));
            }
            Ok(RopeScaling::None)
        }
        "linear" => Ok(RopeScaling::Linear { factor: p.required_float("factor", FACTOR)? }),
        "llama3" => read_llama3(root, p, max_positions),
        "yarn" if theta == 1.0 => Err(p.error("rope_theta", "a number above 1, as yarn divides by its logarithm")),
        "yarn" => read_yarn(root, p, max_positions),
        "dynamic" => Err(p.error(
            key,
            "default, linear, llama3 or yarn; dynamic scaling rotates cached keys by the length they were \
             written at, so its answers depend on chunking: remove it for contexts up to \
             max_position_embeddings, or use yarn",
        )),
        other => Err(root.unsupported(format!(
            "rotary scaling {} is not supported; supported are default, linear, llama3 and yarn",
            quote(other)
        ))),
    }
}

/// Context length before scaling: a key beside `rope_scaling` wins over one in it, and the model's
/// own length stands in for both.
fn original(root: &Section<'_>, p: &Section<'_>, max_positions: usize) -> Result<usize> {
    let range = 1..=cap::POSITIONS;
    let own = match root.uint(ORIGINAL, range.clone())? {
        Some(positions) => Some(positions),
        None => p.uint(ORIGINAL, range)?,
    };
    Ok(own.unwrap_or(max_positions))
}

fn read_llama3(root: &Section<'_>, p: &Section<'_>, max_positions: usize) -> Result<RopeScaling> {
    let low_freq_factor = p.required_float("low_freq_factor", FACTOR)?;
    let high_freq_factor = p.required_float("high_freq_factor", FACTOR)?;
    if high_freq_factor <= low_freq_factor {
        return Err(p.error("high_freq_factor", format!("a number above low_freq_factor ({low_freq_factor})")));
    }
    Ok(RopeScaling::Llama3 {
        factor: p.required_float("factor", FACTOR)?,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: original(root, p, max_positions)?,
    })
}

fn read_yarn(root: &Section<'_>, p: &Section<'_>, max_positions: usize) -> Result<RopeScaling> {
    let original_max_position_embeddings = original(root, p, max_positions)?;
    let factor = match p.float("factor", FACTOR)? {
        Some(factor) => factor,
        None => max_positions as f64 / original_max_position_embeddings as f64,
    };
    // 0 means "not given" in the reference implementation.
    let given = |key: &str| Ok(p.float(key, 0.0..=1e6)?.filter(|&v| v != 0.0));
    let attention_factor = match p.float("attention_factor", 1e-3..=1e3)? {
        Some(value) => value,
        None => match (given("mscale")?, given("mscale_all_dim")?) {
            (Some(m), Some(all)) => mscale(factor, m) / mscale(factor, all),
            _ => mscale(factor, 1.0),
        },
    };
    let beta_fast = given("beta_fast")?.unwrap_or(32.0);
    let beta_slow = given("beta_slow")?.unwrap_or(1.0);
    if beta_fast < beta_slow {
        return Err(p.error("beta_fast", format!("at least beta_slow ({beta_slow})")));
    }
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast,
        beta_slow,
        attention_factor,
        original_max_position_embeddings,
        truncate: p.flag("truncate")?.unwrap_or(true),
    })
}

/// What DeepSeek multiplies the scores with where YaRN stretches positions: the square of the factor for all dimensions.
pub(crate) fn softmax_factor(root: &Section<'_>, rope: &RopeSpec) -> Result<f64> {
    let RopeScaling::Yarn { factor, .. } = rope.scaling else { return Ok(1.0) };
    let section = match root.section("rope_scaling")?.filter(|s| !s.is_empty()) {
        Some(section) => Some(section),
        None => root.section("rope_parameters")?,
    };
    let weight = section.map_or(Ok(None), |section| section.float("mscale_all_dim", 0.0..=1e6))?;
    Ok(weight.filter(|&weight| weight != 0.0).map_or(1.0, |weight| mscale(factor, weight).powi(2)))
}

/// The paper's recommended factor on cosines and sines, weighted as DeepSeek does.
fn mscale(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}
