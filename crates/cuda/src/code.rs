//! Device code of modules: what was compiled before this program was built, else what NVRTC makes now.
use crate::nvrtc;
use anyfleet_kernels::cuda::Code;
use std::path::Path;

/// What the driver of a device of this compute capability, e.g. 90, loads: a cubin, or PTX with a zero at its end. What has
/// to be compiled is kept in `folder`.
///
/// # Errors
/// One line that says what is missing.
pub(crate) fn load(module: &str, capability: u32, folder: Option<&Path>) -> Result<Vec<u8>, String> {
    match prebuilt(module, capability) {
        Some(Code::Cubin(code) | Code::Ptx(code)) => Ok(code),
        None => nvrtc::compile(module, capability, folder),
    }
}

/// The code of a module that is inside this program.
#[cfg(feature = "prebuilt")]
fn prebuilt(module: &str, capability: u32) -> Option<Code> {
    use anyfleet_kernels::cuda::Archive;
    use std::sync::OnceLock;

    static ARCHIVE: OnceLock<Option<Archive<'static>>> = OnceLock::new();
    let opened = ARCHIVE.get_or_init(|| {
        let archive = Archive::open(include_bytes!(env!("ANYFLEET_CUBINS")));
        archive.inspect_err(|reason| tracing::warn!("the kernels of this build are not used: {reason}")).ok()
    });
    opened.as_ref()?.find(module, capability)
}

/// The code of a module that is inside this program: a build without the feature `prebuilt` has none.
#[cfg(not(feature = "prebuilt"))]
fn prebuilt(_module: &str, _capability: u32) -> Option<Code> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyfleet_kernels::cuda::modules;

    #[test]
    fn builds_with_kernels_have_all() {
        for module in modules() {
            let found =
                [75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121].map(|capability| prebuilt(module, capability));
            let kinds = found.iter().map(|code| match code {
                Some(Code::Cubin(code)) => {
                    assert!(code.starts_with(b"\x7fELF"), "{module}");
                    'c'
                }
                Some(Code::Ptx(code)) => {
                    assert!(code.ends_with(b"\0"), "{module}");
                    'p'
                }
                None => '-',
            });
            let expected = if cfg!(feature = "prebuilt") { "-cccccccpcc" } else { "-----------" };
            assert_eq!(kinds.collect::<String>(), expected, "{module}");
        }
    }
}
