//! Kernels compiled for a device when it is opened, by CUDA's own compiler as a library, and kept on disk.
use crate::candidates;
use anyfleet_kernels::cuda::{FLAGS, Nvrtc, nearest_target, source};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Larger files are none of ours.
const LARGEST: u64 = 64 << 20;

/// NVRTC, and what it is told for a device.
#[derive(Clone)]
pub(crate) struct Compiler {
    nvrtc: Nvrtc,
    version: String,
    target: String,
}

impl Compiler {
    /// That of devices of this compute capability, e.g. 90: what the operator named, else the system's. The process keeps it.
    ///
    /// # Errors
    /// One line that says what is missing.
    pub(crate) fn find(capability: u32) -> Result<Compiler, String> {
        static FOUND: Mutex<BTreeMap<u32, Compiler>> = Mutex::new(BTreeMap::new());
        let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiler) = found.get(&capability) {
            return Ok(compiler.clone());
        }
        let named = std::env::var_os("ANYFLEET_NVRTC").filter(|file| !file.is_empty());
        let files = named.map_or_else(installed, |file| vec![file]);
        let compiler = candidates::first(&files, |file| Compiler::open(file, capability)).map_err(|reason| {
            format!(
                "kernels must be compiled, and there is no NVRTC for it ({reason}): install CUDA's (or `pip install \
                 nvidia-cuda-nvrtc-cu12`, and let ANYFLEET_NVRTC be the path of its libnvrtc.so.12), or use a build \
                 with prebuilt kernels"
            )
        })?;
        found.insert(capability, compiler.clone());
        Ok(compiler)
    }

    fn open(file: &OsStr, capability: u32) -> Result<Compiler, String> {
        let nvrtc = Nvrtc::open(file)?;
        let version = nvrtc.version();
        let target = nearest_target(capability, &nvrtc.capabilities())
            .ok_or_else(|| format!("{version} is not for devices of sm_{capability}"))?;
        nvrtc.starts(&target).map_err(|said| short(&said))?;
        Ok(Compiler { nvrtc, version, target })
    }

    /// Its name and version, e.g. "NVRTC 12.8".
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// What it compiles for, e.g. "sm_80".
    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    /// Compiles a module into what a device's driver loads.
    ///
    /// # Errors
    /// One line with what the compiler found.
    pub(crate) fn compile(&self, module: &str) -> Result<Vec<u8>, String> {
        let compiled = self.nvrtc.compile(module, &source(module), &self.target);
        compiled.map(|compiled| compiled.code).map_err(|said| short(&said))
    }

    /// Where the module's code is kept in a folder.
    pub(crate) fn kept(&self, module: &str, folder: &Path) -> Kept {
        let parts = [&source(module), &FLAGS.join(" "), &self.version, &self.target];
        Kept::new(folder.join(format!("{module}-{}.cubin", self.target)), parts.map(String::as_bytes))
    }
}

/// A line of what the compiler said.
fn short(said: &str) -> String {
    said.lines().take(2).map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Where CUDA's installers put it. Drivers of CUDA 12 and of 13 load what CUDA 12 compiles; only those of 13 what 13 does.
fn installed() -> Vec<OsString> {
    let folders = ["", "/usr/local/cuda/lib64"];
    let names = ["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"];
    names.into_iter().flat_map(|name| folders.map(|folder| Path::new(folder).join(name).into())).collect()
}

/// Code in a file: 32 bytes of a digest of what it was made from and of itself, then itself. A file that does not agree is
/// damaged or was made from something else, and is written again.
pub(crate) struct Kept {
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

    pub(crate) fn get_or_make(&self, make: impl FnOnce() -> Result<Vec<u8>, String>) -> Result<Vec<u8>, String> {
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

    pub(crate) fn get(&self) -> Option<Vec<u8>> {
        let found = std::fs::metadata(&self.file).ok()?;
        if !found.is_file() || found.len() > LARGEST {
            return None;
        }
        let bytes = std::fs::read(&self.file).ok()?;
        let (digest, code) = bytes.split_at_checked(32)?;
        (digest == self.digest(code)).then(|| code.to_vec())
    }

    pub(crate) fn put(&self, code: &[u8]) -> std::io::Result<()> {
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
        let compile = |module, capability, folder| crate::code::compiled(module, capability, folder);
        let code = compile("norm", 90, Some(folder.path())).unwrap();
        assert!(code.starts_with(b"\x7fELF"));
        assert!(code.windows(13).any(|window| window == b"anyfleet_norm"));
        let file = folder.path().join("norm-sm_90a.cubin");
        let written = std::fs::metadata(&file).unwrap().modified().unwrap();
        assert_eq!(compile("norm", 90, Some(folder.path())).unwrap(), code, "kept");
        assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), written);
        assert_eq!(compile("norm", 90, None).unwrap(), code, "the compiler gives the same bytes");

        // As NVRTC of CUDA 12.8 knows none of them, and newer ones know them by name.
        for capability in [103, 121] {
            assert!(compile("norm", capability, None).unwrap().starts_with(b"\x7fELF"));
        }
        let error = compile("norm", 999, None).unwrap_err();
        assert!(error.contains("is not for devices of sm_999") && error.lines().count() == 1, "{error}");
    }
}
