//! CUDA sources: a module for each op, or each type of its weights or caches, and what they include; how they are compiled,
//! and where the result is kept.

#[cfg(feature = "archive")]
mod archive;
#[cfg(feature = "nvrtc")]
mod nvrtc;

#[cfg(feature = "archive")]
pub use archive::{Archive, pack};
#[cfg(feature = "nvrtc")]
pub use nvrtc::{Compiled, Nvrtc};

/// How sources are compiled, here and at run time: other flags may give other bits.
pub const FLAGS: [&str; 4] = [
    "--std=c++17",
    // Products and sums are rounded apart.
    "--fmad=false",
    // What a module includes has constants that it does not use.
    "--diag-suppress=177",
    // Registers and memory of each kernel, in the compiler's log.
    "--ptxas-options=-v",
];

/// What an archive has code for: the devices of today, and text that drivers compile for those of tomorrow. NVRTC 12.8
/// knows them all.
pub const TARGETS: [&str; 7] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120", "compute_80"];

/// What a device's driver loads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Code {
    /// Instructions of one architecture.
    Cubin(Vec<u8>),
    /// PTX, with the NUL at its end that drivers ask for.
    Ptx(Vec<u8>),
}

/// What the compiler is told for a device of this compute capability, e.g. 90.
pub fn target(capability: u32) -> String {
    // With the instructions that only this architecture has.
    let suffix = if capability == 90 { "a" } else { "" };
    format!("sm_{capability}{suffix}")
}

/// Devices whose instructions no other takes, and which take no other's: what NVIDIA promises within a generation leaves out
/// its systems on a chip. Orin, and Thor, which is 10.1 for CUDA 12 and 11.0 for CUDA 13.
const ALONE: [u32; 3] = [87, 101, 110];

/// How near code for `target` is to a device: nothing where it does not run there. Instructions run on devices of the same
/// generation that are not older, those of `sm_90a` on 9.0 alone; PTX, last of all, on all that are not older.
pub fn nearness(target: &str, capability: u32) -> Option<u32> {
    if let Some(oldest) = target.strip_prefix("compute_") {
        return (oldest.parse::<u32>().ok()? <= capability).then_some(0);
    }
    let name = target.strip_prefix("sm_")?;
    let number: u32 = name.trim_end_matches('a').parse().ok()?;
    let alone = name.ends_with('a') || ALONE.contains(&number) || ALONE.contains(&capability);
    let runs = if alone { number == capability } else { number / 10 == capability / 10 && number <= capability };
    runs.then_some(number)
}

/// What a compiler that knows these compute capabilities is told for a device of `capability`: a device may be newer than the
/// compiler. Nothing where none of its code runs there.
pub fn nearest_target(capability: u32, known: &[u32]) -> Option<String> {
    let targets = known.iter().map(|&known| target(known));
    targets.filter_map(|target| Some((nearness(&target, capability)?, target))).max().map(|(_, target)| target)
}

/// A file of `kernels/cuda`.
type File = (&'static str, &'static str);

macro_rules! files {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../cuda/", $name)))),*] };
}

/// What modules include.
const HEADERS: &[File] = files![
    "common.cuh",
    "machine.cuh",
    "activation.cuh",
    "attention.cuh",
    "attention_float.cuh",
    "attention_matrix.cuh",
    "block.cuh",
    "weight.cuh",
    "linear.cuh",
    "linear_16bit.cuh",
    "linear_bytes.cuh",
    "linear_f16.cuh",
    "linear_f8.cuh",
    "linear_few.cuh",
    "linear_flat.cuh",
    "linear_float.cuh",
    "linear_tile.cuh",
    "grouped_linear.cuh",
    "head_linear.cuh",
    "kv.cuh",
    "sampling.cuh",
    "vector.cuh",
    "attention_warpgroup.cuh",
    "linear_warpgroup.cuh",
    "warpgroup.cuh",
    "warpgroup_machine.cuh",
    "emulate/simt.h",
    "emulate/fiber.h",
    "emulate/intrinsics.h",
    "emulate/tiles.h",
    "emulate/async.h",
    "emulate/warpgroup.h"
];

/// A source file is compiled by itself into a module of kernels.
const SOURCES: &[File] = files![
    "act_mul.cu",
    "attention_bf16.cu",
    "attention_f16.cu",
    "attention_f32.cu",
    "attention_f8.cu",
    "attention_i8.cu",
    "attention_merge.cu",
    "attention_warpgroup.cu",
    "combine.cu",
    "embed.cu",
    "gather.cu",
    "grouped_linear_bf16.cu",
    "grouped_linear_bytes.cu",
    "grouped_linear_f16.cu",
    "grouped_linear_f8.cu",
    "grouped_linear_float.cu",
    "head_linear_bf16.cu",
    "head_linear_bytes.cu",
    "head_linear_f16.cu",
    "head_linear_f8.cu",
    "head_linear_float.cu",
    "latent_attention_bf16.cu",
    "latent_attention_f16.cu",
    "latent_attention_f32.cu",
    "latent_attention_f8.cu",
    "latent_kv.cu",
    "linear_bf16.cu",
    "linear_bytes.cu",
    "linear_f16.cu",
    "linear_f8.cu",
    "linear_finish.cu",
    "linear_float.cu",
    "linear_warpgroup.cu",
    "norm.cu",
    "rate.cu",
    "rope_kv.cu",
    "route.cu",
    "sample.cu",
    "softcap.cu",
    "sum_ranks.cu",
];

/// What launches kernels on the host; compiled beside the modules there.
const RUNNER: File = ("emulate/run.cpp", include_str!("../cuda/emulate/run.cpp"));

/// Names of all modules.
pub fn modules() -> impl Iterator<Item = &'static str> {
    SOURCES.iter().map(|(name, _)| name.trim_end_matches(".cu"))
}

/// The text of a module with everything it includes: a compiler needs no other file.
///
/// # Panics
/// When there is no such module: a bug of the caller.
pub fn source(module: &str) -> String {
    let name = format!("{module}.cu");
    let &(_, text) = SOURCES.iter().find(|(file, _)| *file == name).unwrap_or_else(|| panic!("kernels: no {name}"));
    expand(text)
}

/// The text of what runs kernels on the host.
pub fn runner() -> String {
    expand(RUNNER.1)
}

/// SHA-256 of all sources that a device runs and of [`FLAGS`], as hexadecimal digits.
pub fn hash() -> String {
    let device = HEADERS.iter().filter(|(name, _)| !name.starts_with("emulate/"));
    crate::digest(device.chain(SOURCES).map(|(_, text)| *text).chain(FLAGS))
}

/// Puts included files in the place of the lines that include them, each once.
fn expand(text: &'static str) -> String {
    fn add(text: &'static str, seen: &mut Vec<&'static str>, out: &mut String) {
        for line in text.lines() {
            let included = line.trim().strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
            // Files of the emulation name each other as they lie side by side.
            let is = |file: &str, name| file == name || file.strip_prefix("emulate/") == Some(name);
            match included.and_then(|name| HEADERS.iter().find(|(file, _)| is(file, name))) {
                Some(&(file, text)) => {
                    if !seen.contains(&file) {
                        seen.push(file);
                        add(text, seen, out);
                    }
                }
                None => {
                    out.push_str(line);
                    out.push('\n');
                }
            }
        }
    }
    let mut out = String::new();
    add(text, &mut Vec::new(), &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_need_no_other_file() {
        for module in modules() {
            let text = source(module);
            assert!(!text.contains("#include \""), "{module} includes a file that is not there");
            assert_eq!(text.matches("const u32 WARP = ").count(), 1, "{module} includes common.cuh once");
        }
    }
    #[test]
    fn code_runs_on_its_generation() {
        let best =
            |capability| TARGETS.into_iter().max_by_key(|target| nearness(target, capability).map(|near| near + 1));
        let chosen = [80, 86, 87, 89, 90, 100, 103, 110, 120, 121].map(|capability| best(capability).unwrap());
        let expected =
            ["sm_80", "sm_86", "compute_80", "sm_89", "sm_90a", "sm_100", "sm_100", "compute_80", "sm_120", "sm_120"];
        assert_eq!(chosen, expected);
        assert_eq!(best(101), Some("compute_80"));
        assert!(TARGETS.into_iter().all(|target| nearness(target, 75).is_none()));
        assert!(["", "sm_", "sm_a", "80", "compute_x"].into_iter().all(|target| nearness(target, 90).is_none()));
    }

    #[test]
    fn devices_may_be_newer_than_the_compiler() {
        let known = [75, 80, 86, 87, 89, 90, 100, 101, 120];
        let told = |capability| nearest_target(capability, &known);
        let chosen = [80, 87, 88, 89, 90, 100, 101, 103, 120, 121].map(|capability| told(capability).unwrap());
        let expected = ["sm_80", "sm_87", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_101", "sm_100", "sm_120", "sm_120"];
        assert_eq!(chosen, expected);
        // Code for sm_90a runs on 9.0 alone, and another generation takes none.
        assert_eq!([91, 110, 130, 70].map(told), [None, None, None, None]);
        assert_eq!(nearest_target(87, &[80, 86]), None);
    }
}
