//! Verdicts on devices, kept between starts.
use crate::{Error, Result};
use anyfleet_conformance::case::{Outcome, Verdict};
use anyfleet_conformance::suite;
use anyfleet_tensor::{Backend, Caps};
use anyfleet_weights::pack;
use serde_json::{Value, json};
use sha2::Digest;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// What a check before the first start may take, where one case of each operation and its types takes no longer.
const BUDGET: Duration = Duration::from_secs(5);
/// Every start of a device asks the same questions, so that a verdict can be repeated.
const SEED: u64 = 1;
/// Changes when what is kept means something else.
const FORM: &str = "2";

/// Whether an adapter whose driver this program has not met yet is checked before it is used, and where the verdict is
/// kept.
///
/// The CPU is not checked: its kernels are tested with the program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SelfCheck {
    /// Adapters are taken as they are.
    Off,
    /// Checked once; verdicts are in the user's cache folder, `$XDG_CACHE_HOME/anyfleet/checks` or
    /// `~/.cache/anyfleet/checks`. Where there is none, each start checks.
    #[default]
    Default,
    /// Checked once; verdicts are in this folder.
    Dir(PathBuf),
}

impl SelfCheck {
    fn folder(&self) -> Option<PathBuf> {
        match self {
            SelfCheck::Off => None,
            SelfCheck::Default => Some(pack::default_folder()?.parent()?.join("checks")),
            SelfCheck::Dir(folder) => Some(folder.clone()),
        }
    }
}

impl FromStr for SelfCheck {
    type Err = String;

    /// `off`, `default`, or a folder.
    fn from_str(text: &str) -> Result<SelfCheck, String> {
        Ok(match text {
            "" => return Err("expected a folder, default or off".into()),
            "off" => SelfCheck::Off,
            "default" => SelfCheck::Default,
            folder => SelfCheck::Dir(folder.into()),
        })
    }
}

/// The first of some variants of a device, fastest first, that computes what it should.
///
/// `open` opens a variant. A warning is added for each that was passed over. One that gives errors is passed over, too, but
/// only this time: other programs may have the device's memory, and what is missing may be installed.
pub(crate) fn checked<B: Backend, V: std::fmt::Display>(
    choice: &SelfCheck,
    variants: impl IntoIterator<Item = V>,
    mut open: impl FnMut(&V) -> anyfleet_tensor::Result<B>,
    warnings: &mut Vec<String>,
) -> Result<B> {
    let (mut refused, mut wrong) = (Vec::new(), false);
    for variant in variants {
        let device = open(&variant).map_err(|e| Error::Device(e.to_string()))?;
        match verdict(choice, &device) {
            Ok(()) => {
                if let Some(reason) = refused.last() {
                    warnings.push(format!("{} runs on slower kernels ({variant}): {reason}", device.caps().device));
                }
                return Ok(device);
            }
            Err(Refusal::Wrong(reason)) => {
                wrong = true;
                refused.push(format!("those for \"{variant}\" compute wrong results: {reason}"));
            }
            Err(Refusal::Error(error)) => {
                wrong = false;
                refused.push(format!("{error} (when \"{variant}\" was checked before its first use)"));
            }
        }
    }
    if let (false, Some(error)) = (wrong, refused.last()) {
        return Err(Error::Device(error.clone()));
    }
    let reason = refused.pop().unwrap_or_else(|| "there is none".into());
    Err(Error::Device(format!(
        "no kernels can be trusted on this device: {reason}; update its driver, use another --device, or see all of it \
         with serve --check"
    )))
}

/// Why a device is passed over.
enum Refusal {
    /// It computes what it should not.
    Wrong(String),
    /// It gave an error, so that nothing is known of what it computes.
    Error(String),
}

/// What is known of a device, or found out now.
fn verdict<B: Backend>(choice: &SelfCheck, device: &B) -> Result<(), Refusal> {
    if *choice == SelfCheck::Off {
        return Ok(());
    }
    let caps = device.caps();
    let file = choice.folder().map(|folder| folder.join(format!("{}.json", key(caps))));
    if let Some(known) = file.as_deref().and_then(read) {
        return known.map_err(Refusal::Wrong);
    }
    tracing::info!("{} is checked before its first use", caps.device);
    let report = suite::quick(device, SEED, |_| true, BUDGET);
    let first = |verdict| report.outcomes.iter().find(move |o| o.verdict == verdict);
    let failure = first(Verdict::Fail).map(|Outcome { op, types, detail, .. }| format!("{op} {types} ({detail})"));
    // What was computed wrong stays wrong, whatever failed besides.
    if let (None, Some(error)) = (&failure, first(Verdict::Error)) {
        return Err(Refusal::Error(error.detail.clone()));
    }
    if let Some(file) = file
        && let Err(e) = keep(&file, caps, failure.as_deref())
    {
        tracing::warn!("the verdict on {} is not kept: {}: {e}", caps.device, file.display());
    }
    failure.map_or(Ok(()), |failure| Err(Refusal::Wrong(failure)))
}

/// Names everything that a verdict holds for.
fn key(caps: &Caps) -> String {
    let mut hasher = sha2::Sha256::new();
    let id = &caps.identity;
    for part in [FORM, env!("CARGO_PKG_VERSION"), &id.adapter, &id.driver, &id.kernels, &caps.numerics] {
        hasher.update(part.len().to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A kept verdict; nothing for a file that is not there or not one.
fn read(file: &Path) -> Option<Result<(), String>> {
    let kept: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    match kept["passed"].as_bool()? {
        true => Some(Ok(())),
        false => {
            let reason = kept["failure"].as_str().unwrap_or("it failed");
            Some(Err(format!("{reason} (as found before; {} keeps the verdict)", file.display())))
        }
    }
}

fn keep(file: &Path, caps: &Caps, failure: Option<&str>) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let verdict = json!({
        "anyfleet": env!("CARGO_PKG_VERSION"),
        "adapter": caps.identity.adapter,
        "driver": caps.identity.driver,
        "kernels": caps.identity.kernels,
        "numerics": caps.numerics,
        "passed": failure.is_none(),
        "failure": failure,
    });
    // Whole or not at all: another process may start now.
    let draft = file.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&draft, format!("{verdict:#}\n"))?;
    std::fs::rename(&draft, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyfleet_tensor::null::NullBackend;

    fn open(variant: &&str) -> anyfleet_tensor::Result<NullBackend> {
        Ok(NullBackend::with_numerics(variant))
    }

    fn file(folder: &Path, variant: &str) -> PathBuf {
        folder.join(format!("{}.json", key(NullBackend::with_numerics(variant).caps())))
    }

    #[test]
    fn a_device_that_computes_nothing_is_refused_and_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let choice = SelfCheck::Dir(folder.path().to_owned());
        for again in [false, true] {
            let mut warnings = Vec::new();
            let error = checked(&choice, ["fast", "safe"], open, &mut warnings).err().expect("refused").to_string();
            assert!(error.contains("no kernels can be trusted") && error.contains("\"safe\""), "{error}");
            assert_eq!(error.contains("as found before"), again, "{error}");
            assert_eq!(warnings, [""; 0]);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "two verdicts, and no drafts");
    }

    #[test]
    fn a_slower_variant_takes_the_place_of_one_that_fails() {
        let folder = tempfile::tempdir().unwrap();
        let choice = SelfCheck::Dir(folder.path().to_owned());
        keep(&file(folder.path(), "safe"), NullBackend::with_numerics("safe").caps(), None).unwrap();
        let mut warnings = Vec::new();
        let device = checked(&choice, ["fast", "safe"], open, &mut warnings).unwrap();
        assert_eq!(device.caps().numerics, "safe");
        assert!(
            warnings.len() == 1 && warnings[0].contains("slower kernels (safe): those for \"fast\""),
            "{warnings:?}"
        );
        // A broken file is no verdict.
        std::fs::write(file(folder.path(), "safe"), "nothing").unwrap();
        assert!(checked(&choice, ["safe"], open, &mut warnings).is_err());
        assert_eq!(checked(&SelfCheck::Off, ["fast"], open, &mut warnings).unwrap().caps().numerics, "fast");
    }

    #[test]
    fn an_error_is_said_and_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let choice = SelfCheck::Dir(folder.path().to_owned());
        let broken = |variant: &&str| {
            let device = NullBackend::with_numerics(variant);
            device.break_down(*variant != "fast");
            Ok(device)
        };
        let mut warnings = Vec::new();
        let error = checked(&choice, ["safe"], broken, &mut warnings).err().expect("refused").to_string();
        assert!(error.contains("told to fail") && error.lines().count() == 1, "{error}");
        assert!(!error.contains("trusted") && !error.contains("wrong results"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is kept");
        // One that computes wrong results is remembered whatever comes after it.
        let error = checked(&choice, ["fast", "safe"], broken, &mut warnings).err().expect("refused").to_string();
        assert!(error.contains("told to fail"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        // The device is taken as soon as it computes.
        keep(&file(folder.path(), "safe"), NullBackend::with_numerics("safe").caps(), None).unwrap();
        assert_eq!(checked(&choice, ["safe"], broken, &mut warnings).unwrap().caps().numerics, "safe");
    }

    #[test]
    fn names() {
        assert_eq!("off".parse(), Ok(SelfCheck::Off));
        assert_eq!("default".parse(), Ok(SelfCheck::Default));
        assert_eq!("x".parse(), Ok(SelfCheck::Dir("x".into())));
        assert!("".parse::<SelfCheck>().is_err());
    }
}
