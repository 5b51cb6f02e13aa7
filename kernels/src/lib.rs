//! Sources of GPU kernels, by name.
//!
//! One file for each op and shading language, under the op's one name; what several ops share has files of
//! its own. The text is not complete by itself: a backend puts together the parts an op needs, states the
//! constants, and keeps or drops the lines between `#if NAME`, `#else` and `#endif` ([`assemble`]).

pub mod cuda;

/// SHA-256 of texts, as hexadecimal digits.
fn digest(texts: impl Iterator<Item = &'static str>) -> String {
    use sha2::Digest;
    let mut hasher = sha2::Sha256::new();
    texts.for_each(|text| hasher.update(text));
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// WGSL sources.
pub mod wgsl {
    /// What all kernels share.
    pub const COMMON: &str = include_str!("../wgsl/common.wgsl");
    /// Packed weights.
    pub const WEIGHT: &str = include_str!("../wgsl/weight.wgsl");
    /// Keys and values.
    pub const KV: &str = include_str!("../wgsl/kv.wgsl");
    /// Activations of gated MLPs.
    pub const ACTIVATION: &str = include_str!("../wgsl/activation.wgsl");
    /// The hyperbolic tangent.
    pub const TANH: &str = include_str!("../wgsl/tanh.wgsl");
    /// Arithmetic with prescribed bits.
    pub const EXACT: &str = include_str!("../wgsl/exact.wgsl");
    /// 64-bit integers.
    pub const WIDE: &str = include_str!("../wgsl/wide.wgsl");
    /// `embed`.
    pub const EMBED: &str = include_str!("../wgsl/embed.wgsl");
    /// `norm`.
    pub const NORM: &str = include_str!("../wgsl/norm.wgsl");
    /// What the kernels of `linear` and `linear_act_mul` share.
    pub const LINEAR_COMMON: &str = include_str!("../wgsl/linear_common.wgsl");
    /// `linear` and `linear_act_mul`.
    pub const LINEAR: &str = include_str!("../wgsl/linear.wgsl");
    /// Activations of [`LINEAR`] and [`LINEAR_PACKED`], which read them as floats.
    pub const LINEAR_X: &str = include_str!("../wgsl/linear_x.wgsl");
    /// Both on bytes, for q8 and q4 weights.
    pub const LINEAR_PACKED: &str = include_str!("../wgsl/linear_packed.wgsl");
    /// Both on matrix units.
    pub const LINEAR_MATRIX: &str = include_str!("../wgsl/linear_matrix.wgsl");
    /// Activations as [`LINEAR_MATRIX`] takes them.
    pub const LINEAR_HALVES: &str = include_str!("../wgsl/linear_halves.wgsl");
    /// `act_mul`.
    pub const ACT_MUL: &str = include_str!("../wgsl/act_mul.wgsl");
    /// `rope_kv`.
    pub const ROPE_KV: &str = include_str!("../wgsl/rope_kv.wgsl");
    /// `attention`.
    pub const ATTENTION: &str = include_str!("../wgsl/attention.wgsl");
    /// The second half of `attention` where segments are computed apart.
    pub const ATTENTION_MERGE: &str = include_str!("../wgsl/attention_merge.wgsl");
    /// `route`, up to the choice of experts.
    pub const ROUTE: &str = include_str!("../wgsl/route.wgsl");
    /// The second half of `route`: the order of pairs.
    pub const ROUTE_SORT: &str = include_str!("../wgsl/route_sort.wgsl");
    /// What makes [`LINEAR`] a product for each expert.
    pub const EXPERTS: &str = include_str!("../wgsl/experts.wgsl");
    /// What makes [`LINEAR`] a product for each head.
    pub const HEADS: &str = include_str!("../wgsl/heads.wgsl");
    /// `latent_kv`.
    pub const LATENT_KV: &str = include_str!("../wgsl/latent_kv.wgsl");
    /// `combine`.
    pub const COMBINE: &str = include_str!("../wgsl/combine.wgsl");
    /// `gather`.
    pub const GATHER: &str = include_str!("../wgsl/gather.wgsl");
    /// `softcap`.
    pub const SOFTCAP: &str = include_str!("../wgsl/softcap.wgsl");
    /// `sample`.
    pub const SAMPLE: &str = include_str!("../wgsl/sample.wgsl");

    /// All of them.
    pub const ALL: [&str; 28] = [
        COMMON,
        WEIGHT,
        KV,
        ACTIVATION,
        TANH,
        EXACT,
        WIDE,
        EMBED,
        NORM,
        LINEAR_COMMON,
        LINEAR,
        LINEAR_X,
        LINEAR_PACKED,
        LINEAR_MATRIX,
        LINEAR_HALVES,
        ACT_MUL,
        ROPE_KV,
        ATTENTION,
        ATTENTION_MERGE,
        ROUTE,
        ROUTE_SORT,
        EXPERTS,
        HEADS,
        LATENT_KV,
        COMBINE,
        GATHER,
        SOFTCAP,
        SAMPLE,
    ];

    /// SHA-256 of all sources, as hexadecimal digits.
    pub fn hash() -> String {
        crate::digest(ALL.into_iter())
    }
}

/// Puts parts together: what they `enable` and `constants` first, as WGSL states them, then the lines of all parts for
/// which the conditions hold. `#if NAME` holds where `flags` has the name, `#if !NAME` where it has not; conditions nest.
///
/// # Panics
/// When a condition is not closed, or closed twice: a bug of the sources.
pub fn assemble(parts: &[&str], flags: &[&str], constants: &[(&str, u32)]) -> String {
    let (mut enabled, mut text) = (String::new(), String::new());
    for (name, value) in constants {
        text += &format!("const {name}: u32 = {value}u;\n");
    }
    for part in parts {
        // Whether the lines of each open condition are kept.
        let mut open: Vec<bool> = Vec::new();
        for line in part.lines() {
            let directive = line.trim_start();
            if let Some(name) = directive.strip_prefix("#if ") {
                let (name, wanted) = name.trim().strip_prefix('!').map_or((name.trim(), true), |name| (name, false));
                open.push(flags.contains(&name) == wanted);
            } else if directive == "#else" {
                let last = open.last_mut().expect("kernels: #else without #if");
                *last = !*last;
            } else if directive == "#endif" {
                open.pop().expect("kernels: #endif without #if");
            } else if open.iter().all(|&kept| kept) {
                let text = if line.starts_with("enable ") { &mut enabled } else { &mut text };
                text.push_str(line);
                text.push('\n');
            }
        }
        assert!(open.is_empty(), "kernels: #if without #endif");
    }
    enabled + &text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_enabled_comes_first() {
        let parts = ["a\n", "enable f16;\nb\n#if X\nenable x;\n#endif"];
        assert_eq!(assemble(&parts, &[], &[("N", 3)]), "enable f16;\nconst N: u32 = 3u;\na\nb\n");
    }

    #[test]
    fn conditions_nest() {
        let text = "a\n#if X\nb\n#if !Y\nc\n#else\nd\n#endif\n#endif\ne";
        assert_eq!(assemble(&[text], &["X"], &[("N", 3)]), "const N: u32 = 3u;\na\nb\nc\ne\n");
        assert_eq!(assemble(&[text], &["X", "Y"], &[]), "a\nb\nd\ne\n");
        assert_eq!(assemble(&[text], &[], &[]), "a\ne\n");
    }
}
