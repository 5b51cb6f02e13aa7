//! Device code of modules: what was compiled before this program was built, else what NVRTC makes now.
use crate::nvrtc::Compiler;
use anyfleet_kernels::cuda::{Code, modules};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What the driver of a device of this compute capability, e.g. 90, loads: a cubin, or PTX with a zero at its end. What has
/// to be compiled is kept in `folder`.
///
/// # Errors
/// One line that says what is missing.
pub(crate) fn load(module: &str, capability: u32, folder: Option<&Path>) -> Result<Vec<u8>, String> {
    if let Some(Code::Cubin(code) | Code::Ptx(code)) = prebuilt(module, capability) {
        return Ok(code);
    }
    compiled(module, capability, folder)
}

/// What NVRTC makes of a module; see [`load`].
pub(crate) fn compiled(module: &str, capability: u32, folder: Option<&Path>) -> Result<Vec<u8>, String> {
    let compiler = Compiler::find(capability)?;
    match folder {
        Some(folder) => compiler.kept(module, folder).get_or_make(|| compiler.compile(module)),
        None => compiler.compile(module),
    }
}

/// Name and version of the compiler that makes a device's instructions, e.g. "NVRTC 12.8". Nothing where there is none, and
/// where it is the driver's, which compiles PTX.
pub(crate) fn compiler(capability: u32) -> Option<String> {
    // What one module has, all have.
    match prebuilt(modules().next()?, capability) {
        Some(Code::Cubin(_)) => prebuilt_by(),
        Some(Code::Ptx(_)) => None,
        None => Some(Compiler::find(capability).ok()?.version().to_owned()),
    }
}

/// Compiles all modules that [`load`] would have to compile for a device and that are not in `folder`, by as many threads as
/// there are processors: one by one, as operations ask for them, they would take a minute. Gives those that could not be kept.
///
/// # Errors
/// One line: what is missing, or what the compiler found in the first of the modules in which it found something.
pub(crate) fn prepare(capability: u32, folder: &Path) -> Result<HashMap<&'static str, Vec<u8>>, String> {
    if modules().all(|module| prebuilt(module, capability).is_some()) {
        return Ok(HashMap::new());
    }
    let compiler = Compiler::find(capability)?;
    let mut missing: Vec<_> = modules().filter(|module| compiler.kept(module, folder).get().is_none()).collect();
    if missing.is_empty() {
        return Ok(HashMap::new());
    }
    let (count, start) = (missing.len(), Instant::now());
    tracing::info!(
        "{} compiles {count} modules of kernels for {}, which may take a minute; they are kept in {}",
        compiler.version(),
        compiler.target(),
        folder.display()
    );
    // Those that take longest are not begun last.
    missing.sort_by_key(|module| std::cmp::Reverse(anyfleet_kernels::cuda::source(module).len()));
    let left = together(&missing, |module| {
        let code = compiler.compile(module)?;
        let kept = compiler.kept(module, folder).put(&code);
        Ok(kept.err().map(|error| (module, code, error)))
    })?;
    tracing::info!("{count} modules of kernels were compiled in {:.1} s", start.elapsed().as_secs_f64());
    let left: Vec<_> = left.into_iter().flatten().collect();
    if let Some((_, _, error)) = left.first() {
        tracing::warn!(
            "compiled kernels are not kept, and the next start compiles again: {}: {error}",
            folder.display()
        );
    }
    Ok(left.into_iter().map(|(module, code, _)| (module, code)).collect())
}

/// What `make` makes of each of `all`, by several threads; the first error in the order of `all` of those that were found
/// before they stopped.
fn together<T: Copy + Sync, R: Send>(
    all: &[T],
    make: impl Fn(T) -> Result<R, String> + Sync,
) -> Result<Vec<R>, String> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let done = Mutex::new(Vec::new());
    let work = || {
        while !failed.load(Relaxed) {
            let at = next.fetch_add(1, Relaxed);
            let Some(&item) = all.get(at) else { return };
            let made = make(item);
            failed.fetch_or(made.is_err(), Relaxed);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((at, made));
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 1..processors.min(all.len()) {
            // Where the system gives no thread, the others do its part.
            if std::thread::Builder::new().name("compile".into()).spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, made)| made).collect()
}

/// The code of a module that is inside this program.
#[cfg(feature = "prebuilt")]
fn prebuilt(module: &str, capability: u32) -> Option<Code> {
    archive()?.find(module, capability)
}

/// What compiled the code that is inside this program.
#[cfg(feature = "prebuilt")]
fn prebuilt_by() -> Option<String> {
    archive().map(|archive| archive.compiler().to_owned())
}

#[cfg(feature = "prebuilt")]
fn archive() -> Option<&'static anyfleet_kernels::cuda::Archive<'static>> {
    use anyfleet_kernels::cuda::Archive;
    use std::sync::OnceLock;

    static ARCHIVE: OnceLock<Option<Archive<'static>>> = OnceLock::new();
    let opened = ARCHIVE.get_or_init(|| {
        let archive = Archive::open(include_bytes!(env!("ANYFLEET_CUBINS")));
        archive.inspect_err(|reason| tracing::warn!("the kernels of this build are not used: {reason}")).ok()
    });
    opened.as_ref()
}

/// The code of a module that is inside this program: a build without the feature `prebuilt` has none.
#[cfg(not(feature = "prebuilt"))]
fn prebuilt(_module: &str, _capability: u32) -> Option<Code> {
    None
}

#[cfg(not(feature = "prebuilt"))]
fn prebuilt_by() -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_made_together_and_the_first_error_is_told() {
        let all: Vec<usize> = (0..100).collect();
        assert_eq!(together(&all, |n| Ok(2 * n)), Ok((0..200).step_by(2).collect()));
        assert_eq!(together(&[], |n: usize| Ok(n)), Ok(Vec::new()));
        let begun = AtomicUsize::new(0);
        let failed = together(&all, |n| {
            begun.fetch_add(1, Relaxed);
            if n >= 3 { Err(format!("{n} fails")) } else { Ok(n) }
        });
        // Whoever was at work, the third was begun before those behind it.
        assert_eq!(failed, Err("3 fails".into()));
        assert!(begun.into_inner() < 100, "the others are not begun after an error");
    }

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
            let expected = if cfg!(feature = "prebuilt") { "-ccpccccpcc" } else { "-----------" };
            assert_eq!(kinds.collect::<String>(), expected, "{module}");
        }
    }
}
