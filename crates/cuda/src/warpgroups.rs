//! Whether products and attention of many rows are computed by warpgroups, which Hopper has: four warps multiply from shared
//! memory, where others bring tiles.
//!
//! They have the bits of the kernels in whose place they stand, if a device adds sixteen products in the same way in both:
//! only a device can tell. Until one has, for the very kernels of this build, they are used where they are asked for and
//! nowhere else.
use crate::driver::Description;

/// Environment variable that chooses: `mma`, or `wgmma`, the instruction of warpgroups.
const VARIABLE: &str = "ANYFLEET_CUDA";

/// What devices have proven: a line begins with [`anyfleet_kernels::cuda::hash`] of the kernels with which the whole suite passed
/// under `ANYFLEET_CUDA=wgmma` and the compiler that made their code, as [`crate::code::compiler`] has it: another makes other
/// code. The rest names the device. Lines that begin with `#` say what it is for.
const PROVEN: &str = include_str!("proven.txt");

/// The compute capability that has them.
const CAPABILITY: u32 = 90;

/// When warpgroups compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Warpgroups {
    /// Never.
    #[default]
    Never,
    /// Where their large tiles fill the device.
    Filling,
    /// Wherever they can: so that few and small cases prove them.
    Always,
}

/// What `wanted` (else the environment variable, else what is proven) gives on a device.
///
/// # Errors
/// One line: the variable has another value, or the device has no warpgroups.
pub(crate) fn choose(wanted: Option<bool>, device: &Description) -> Result<Warpgroups, String> {
    let named = std::env::var(VARIABLE).ok().filter(|name| !name.is_empty());
    let compiler = device.compiler.as_deref();
    let proven = compiler.is_some_and(|compiler| is_proven(PROVEN, &anyfleet_kernels::cuda::hash(), compiler));
    chosen(wanted, named.as_deref(), device, proven)
}

fn chosen(wanted: Option<bool>, named: Option<&str>, device: &Description, proven: bool) -> Result<Warpgroups, String> {
    let able = device.capability == CAPABILITY;
    let wanted = match (wanted, named) {
        (Some(wanted), _) => Some(wanted),
        (None, None) => None,
        (None, Some("mma")) => Some(false),
        (None, Some("wgmma")) => Some(true),
        (None, Some(other)) => {
            return Err(format!("{VARIABLE}={} is not known; use mma or wgmma", other.escape_debug()));
        }
    };
    match wanted {
        Some(true) if !able => {
            let (major, minor) = (device.capability / 10, device.capability % 10);
            Err(format!(
                "wgmma needs compute capability 9.0 (Hopper), and it has {major}.{minor}; use {VARIABLE}=mma, or nothing"
            ))
        }
        Some(true) => Ok(Warpgroups::Always),
        None if able && proven => Ok(Warpgroups::Filling),
        _ => Ok(Warpgroups::Never),
    }
}

/// Whether a device's record is of these kernels as this compiler makes them.
fn is_proven(records: &str, hash: &str, compiler: &str) -> bool {
    let lines = records.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.strip_prefix(&format!("{hash} {compiler}"))).any(|rest| rest.starts_with(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(capability: u32) -> Description {
        Description { capability, ..Description::default() }
    }

    #[test]
    fn warpgroups_are_used_where_they_are_proven_or_asked_for() {
        let pick = |wanted, named, capability, proven| chosen(wanted, named, &device(capability), proven);
        assert_eq!(pick(None, None, 90, false), Ok(Warpgroups::Never));
        assert_eq!(pick(None, None, 90, true), Ok(Warpgroups::Filling));
        assert_eq!(pick(None, Some("mma"), 90, true), Ok(Warpgroups::Never));
        assert_eq!(pick(None, Some("wgmma"), 90, false), Ok(Warpgroups::Always));
        assert_eq!(pick(Some(false), Some("wgmma"), 90, true), Ok(Warpgroups::Never));
        // Newer devices have other instructions.
        let newer = [80, 89, 100, 120].map(|capability| pick(None, None, capability, true));
        assert!(newer.iter().all(|choice| *choice == Ok(Warpgroups::Never)), "{newer:?}");
        let text = pick(None, Some("wgmma"), 100, true).unwrap_err();
        assert!(text.contains("9.0 (Hopper), and it has 10.0; use ANYFLEET_CUDA=mma"), "{text}");
        let text = pick(None, Some("wg\nmma"), 90, true).unwrap_err();
        assert_eq!(text, "ANYFLEET_CUDA=wg\\nmma is not known; use mma or wgmma");
    }

    #[test]
    fn a_record_is_of_the_kernels_that_ran() {
        let records =
            "# kernels, compiler, device\nabc NVRTC 12.8 NVIDIA H200\ndef NVRTC 12.81 NVIDIA H100\nold NVIDIA H100\n";
        let proven = |hash| is_proven(records, hash, "NVRTC 12.8");
        assert_eq!(
            ["abc", "def", "old", "NVIDIA", "#", "ab", ""].map(proven),
            [true, false, false, false, false, false, false]
        );
        assert!(is_proven(records, "def", "NVRTC 12.81") && !is_proven(records, "abc", "NVRTC 13.0"));
        // Records of kernels that are no more are taken out.
        let stale: Vec<_> = PROVEN.lines().filter(|line| !line.starts_with('#')).collect();
        let hash = anyfleet_kernels::cuda::hash();
        assert!(stale.iter().all(|line| line.starts_with(&hash)), "these are not of {hash}: {stale:?}");
    }
}
