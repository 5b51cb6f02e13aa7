//! Kernels compiled for a device when it is opened, by CUDA's own compiler as a library, and kept on disk.
use anyfleet_kernels::cuda::{FLAGS, Nvrtc, source, target};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Larger files are none of ours.
const LARGEST: u64 = 64 << 20;

/// Compiles a module for a device of this compute capability, e.g. 90, into what its driver loads; or takes it from
/// `folder`, where it was kept.
///
/// # Errors
/// One line that says what is missing, or what the compiler found.
pub(crate) fn compile(module: &str, capability: u32, folder: Option<&Path>) -> Result<Vec<u8>, String> {
    let nvrtc = library(capability)?;
    let (source, target) = (source(module), target(capability));
    let make = || match nvrtc.compile(module, &source, &target) {
        Ok(compiled) => Ok(compiled.code),
        Err(error) => Err(error.lines().take(2).collect::<Vec<_>>().join(" ")),
    };
    let Some(folder) = folder else { return make() };
    let parts = [&source, &FLAGS.join(" "), &nvrtc.version(), &target];
    Kept::new(folder.join(format!("{module}-{target}.cubin")), parts.map(String::as_bytes)).get_or_make(make)
}

/// NVRTC that compiles for the device: what the operator named, else the system's.
fn library(capability: u32) -> Result<Nvrtc, String> {
    let named = std::env::var_os("ANYFLEET_NVRTC").map(PathBuf::from);
    let candidates = named.map_or_else(installed, |file| vec![file]);
    let mut reasons = Vec::new();
    for file in &candidates {
        match Nvrtc::open(file) {
            Ok(nvrtc) if nvrtc.capabilities().contains(&capability) => return Ok(nvrtc),
            Ok(nvrtc) => reasons.push(format!("{} is not for devices of sm_{capability}", nvrtc.version())),
            Err(error) => reasons.push(error),
        }
    }
    Err(format!(
        "kernels must be compiled, and there is no NVRTC for it ({}): install CUDA's (or `pip install \
         nvidia-cuda-nvrtc-cu12`, and let ANYFLEET_NVRTC be the path of its libnvrtc.so.12), or use a build with \
         prebuilt kernels",
        reasons.last().map_or("", |reason| reason.as_str())
    ))
}

/// Where CUDA's installers put it. Drivers of CUDA 12 and of 13 load what CUDA 12 compiles; only those of 13 what 13 does.
fn installed() -> Vec<PathBuf> {
    let folders = ["", "/usr/local/cuda/lib64"];
    let names = ["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"];
    names.into_iter().flat_map(|name| folders.map(|folder| Path::new(folder).join(name))).collect()
}

/// Code in a file: 32 bytes of a digest of what it was made from and of itself, then itself. A file that does not agree is
/// damaged or was made from something else, and is written again.
struct Kept {
    file: PathBuf,
    /// Of what the code is made from.
    hasher: Sha256,
}

impl Kept {
    fn new<'a>(file: PathBuf, parts: impl IntoIterator<Item = &'a [u8]>) -> Kept {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Kept { file, hasher }
    }

    fn get_or_make(&self, make: impl FnOnce() -> Result<Vec<u8>, String>) -> Result<Vec<u8>, String> {
        if let Some(code) = self.get() {
            return Ok(code);
        }
        let code = make()?;
        // That it cannot be written costs the next start some time.
        if let Err(e) = self.put(&code) {
            tracing::debug!("compiled kernels are not kept: {}: {e}", self.file.display());
        }
        Ok(code)
    }

    fn digest(&self, code: &[u8]) -> [u8; 32] {
        self.hasher.clone().chain_update(code).finalize().into()
    }

    fn get(&self) -> Option<Vec<u8>> {
        let found = std::fs::metadata(&self.file).ok()?;
        if !found.is_file() || found.len() > LARGEST {
            return None;
        }
        let bytes = std::fs::read(&self.file).ok()?;
        let (digest, code) = bytes.split_at_checked(32)?;
        (digest == self.digest(code)).then(|| code.to_vec())
    }

    fn put(&self, code: &[u8]) -> std::io::Result<()> {
        // Two devices may be opened at once.
        static DRAFTS: AtomicU64 = AtomicU64::new(0);
        let draft = self.file.with_extension(format!("{}-{}.tmp", std::process::id(), DRAFTS.fetch_add(1, Relaxed)));
        std::fs::create_dir_all(self.file.parent().unwrap_or(Path::new(".")))?;
        let written = std::fs::write(&draft, [&self.digest(code)[..], code].concat())
            .and_then(|()| std::fs::rename(&draft, &self.file));
        if written.is_err() {
            // What is there of it is of no use.
            let _ = std::fs::remove_file(&draft);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept of these parts; whether it had to be made.
    fn ask(file: &Path, parts: &[&str]) -> (Vec<u8>, bool) {
        let mut made = false;
        let kept = Kept::new(file.to_owned(), parts.iter().map(|part| part.as_bytes()));
        let code = kept.get_or_make(|| {
            made = true;
            Ok(parts.concat().into_bytes())
        });
        (code.unwrap(), made)
    }

    #[test]
    fn code_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sub/norm-sm_90a.cubin");
        assert_eq!(ask(&file, &["source", "flags"]), (b"sourceflags".to_vec(), true));
        assert_eq!(ask(&file, &["source", "flags"]), (b"sourceflags".to_vec(), false));
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "no draft stays");
    }

    #[test]
    fn code_of_something_else_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("norm-sm_90a.cubin");
        ask(&file, &["source", "flags"]);
        assert_eq!(ask(&file, &["source2", "flags"]), (b"source2flags".to_vec(), true));
        assert_eq!(ask(&file, &["source", "2flags"]), (b"source2flags".to_vec(), true));
        assert_eq!(ask(&file, &["source", "2flags"]), (b"source2flags".to_vec(), false));
    }

    #[test]
    fn damaged_code_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("norm-sm_90a.cubin");
        ask(&file, &["source"]);
        let whole = std::fs::read(&file).unwrap();
        for end in 0..whole.len() {
            std::fs::write(&file, &whole[..end]).unwrap();
            assert_eq!(ask(&file, &["source"]), (b"source".to_vec(), true), "{end} bytes");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&file, bytes).unwrap();
            assert_eq!(ask(&file, &["source"]), (b"source".to_vec(), true), "byte {at}");
            assert_eq!(std::fs::read(&file).unwrap(), whole);
        }
    }

    #[test]
    fn what_cannot_be_kept_is_made() {
        let folder = tempfile::tempdir().unwrap();
        // A folder where the file should be, and a file where the folder should be.
        assert_eq!(ask(folder.path(), &["source"]), (b"source".to_vec(), true));
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(ask(&file.join("norm-sm_90a.cubin"), &["source"]), (b"source".to_vec(), true));
    }

    #[test]
    fn nothing_is_kept_of_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("norm-sm_90a.cubin");
        let kept = Kept::new(file.clone(), [&b"source"[..]]);
        assert_eq!(kept.get_or_make(|| Err("no".into())), Err("no".into()));
        assert!(!file.exists());
    }

    #[test]
    fn nvrtc_compiles() {
        let required =
            std::env::var("ANYFLEET_REQUIRE").unwrap_or_default().split(',').any(|name| name.trim() == "nvrtc");
        if std::env::var_os("ANYFLEET_NVRTC").is_none() {
            assert!(!required, "ANYFLEET_REQUIRE lists nvrtc, and ANYFLEET_NVRTC is not set");
            eprintln!("SKIPPED: NVRTC: ANYFLEET_NVRTC is not set (ANYFLEET_REQUIRE=nvrtc makes this a failure)");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let code = compile("norm", 90, Some(folder.path())).unwrap();
        assert!(code.starts_with(b"\x7fELF"));
        assert!(code.windows(13).any(|window| window == b"anyfleet_norm"));
        let file = folder.path().join("norm-sm_90a.cubin");
        let written = std::fs::metadata(&file).unwrap().modified().unwrap();
        assert_eq!(compile("norm", 90, Some(folder.path())).unwrap(), code, "kept");
        assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), written);
        assert_eq!(compile("norm", 90, None).unwrap(), code, "the compiler gives the same bytes");

        let error = compile("norm", 999, None).unwrap_err();
        assert!(error.contains("is not for devices of sm_999") && error.lines().count() == 1, "{error}");
    }
}
