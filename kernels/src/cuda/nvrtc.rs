//! NVRTC, CUDA's compiler as a library, loaded at run time.
use super::FLAGS;
use libloading::Library;
use std::ffi::{CString, OsStr, c_char, c_int, c_void};
use std::path::Path;

type Program = *mut c_void;
type Status = c_int;
type SizeOf = unsafe extern "C" fn(Program, *mut usize) -> Status;
type BytesOf = unsafe extern "C" fn(Program, *mut c_char) -> Status;

/// The library's functions that are used here; nvrtc.h declares them so.
#[derive(Clone, Copy)]
pub struct Nvrtc {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    target_count: unsafe extern "C" fn(*mut c_int) -> Status,
    targets: unsafe extern "C" fn(*mut c_int) -> Status,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log: (SizeOf, BytesOf),
    cubin: (SizeOf, BytesOf),
    ptx: (SizeOf, BytesOf),
}

/// What came out of the compiler.
pub struct Compiled {
    /// A cubin, or PTX with the NUL at its end.
    pub code: Vec<u8>,
    /// What the compiler said: warnings, and what each kernel takes.
    pub log: String,
}

impl Nvrtc {
    /// Loads the library from a file, or by a name that the system's loader looks for. It stays loaded.
    ///
    /// # Errors
    /// One line that says why it cannot be used.
    pub fn open(library: impl AsRef<OsStr>) -> Result<Nvrtc, String> {
        let library = library.as_ref();
        // SAFETY: the operator's or the system's CUDA; nothing but its own initialisers runs.
        let loaded = unsafe { Library::new(library) }.map_err(|e| e.to_string())?;
        // Its functions are kept.
        let loaded: &'static Library = Box::leak(Box::new(loaded));
        // SAFETY: each field has the type that nvrtc.h declares the function with.
        let nvrtc = unsafe {
            Nvrtc {
                version: symbol(loaded, "nvrtcVersion")?,
                target_count: symbol(loaded, "nvrtcGetNumSupportedArchs")?,
                targets: symbol(loaded, "nvrtcGetSupportedArchs")?,
                create: symbol(loaded, "nvrtcCreateProgram")?,
                destroy: symbol(loaded, "nvrtcDestroyProgram")?,
                compile: symbol(loaded, "nvrtcCompileProgram")?,
                log: (symbol(loaded, "nvrtcGetProgramLogSize")?, symbol(loaded, "nvrtcGetProgramLog")?),
                cubin: (symbol(loaded, "nvrtcGetCUBINSize")?, symbol(loaded, "nvrtcGetCUBIN")?),
                ptx: (symbol(loaded, "nvrtcGetPTXSize")?, symbol(loaded, "nvrtcGetPTX")?),
            }
        };
        nvrtc.bring_builtins(Path::new(library));
        Ok(nvrtc)
    }

    /// Loads what the library opens by name when it compiles, and not all find beside themselves. One that is missing is
    /// said then.
    fn bring_builtins(&self, library: &Path) {
        let Some(folder) = library.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return };
        let (major, minor) = self.numbers();
        // SAFETY: it has tables and nothing that runs.
        let builtins = unsafe { Library::new(folder.join(format!("libnvrtc-builtins.so.{major}.{minor}"))) };
        // It stays, too.
        std::mem::forget(builtins);
    }

    fn numbers(&self) -> (c_int, c_int) {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: it writes two numbers.
        unsafe { (self.version)(&mut major, &mut minor) };
        (major, minor)
    }

    /// Its name and version, e.g. "NVRTC 12.8".
    pub fn version(&self) -> String {
        let (major, minor) = self.numbers();
        format!("NVRTC {major}.{minor}")
    }

    /// The compute capabilities that it compiles for, e.g. 90.
    pub fn capabilities(&self) -> Vec<u32> {
        let mut count = 0;
        // SAFETY: it writes a number.
        unsafe { (self.target_count)(&mut count) };
        let mut all = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: it writes as many numbers as it said.
        unsafe { (self.targets)(all.as_mut_ptr()) };
        all.into_iter().filter_map(|capability| u32::try_from(capability).ok()).collect()
    }

    /// Compiles next to nothing for a target: what the library has beside it is opened only then.
    ///
    /// # Errors
    /// What the compiler said.
    pub fn starts(&self, target: &str) -> Result<(), String> {
        // Text alone: the assembler is in the library itself.
        let target = target.replace("sm_", "compute_");
        self.compile("nothing", "extern \"C\" __global__ void nothing() {}", &target).map(drop)
    }

    /// Compiles a module's whole source for a target, e.g. `sm_80`, or `compute_80`, which gives PTX.
    ///
    /// # Errors
    /// What the compiler said.
    pub fn compile(&self, module: &str, source: &str, target: &str) -> Result<Compiled, String> {
        let text = |text: &str| CString::new(text).map_err(|e| format!("{module}: {e}"));
        let (source, name) = (text(source)?, text(&format!("{module}.cu"))?);
        let flags = FLAGS.into_iter().map(str::to_owned).chain([format!("--gpu-architecture={target}")]);
        let flags: Vec<CString> = flags.map(|flag| text(&flag)).collect::<Result<_, _>>()?;
        let flags: Vec<*const c_char> = flags.iter().map(|flag| flag.as_ptr()).collect();

        let mut program: Program = std::ptr::null_mut();
        let none = std::ptr::null;
        // SAFETY: both texts end in a NUL and are copied; there are no headers.
        let status = unsafe { (self.create)(&mut program, source.as_ptr(), name.as_ptr(), 0, none(), none()) };
        if status != 0 {
            return Err(format!("{}: no program for {module} (code {status})", self.version()));
        }
        let program = Owned { program, destroy: self.destroy };
        // SAFETY: the program is alive, and so are the flags, each of which ends in a NUL.
        let status = unsafe { (self.compile)(program.program, flags.len() as c_int, flags.as_ptr()) };
        let log = String::from_utf8_lossy(&program.bytes(self.log)).trim_end_matches('\0').to_owned();
        if status != 0 {
            return Err(format!("{} does not compile {module} for {target} (code {status}): {log}", self.version()));
        }
        let code = program.bytes(if target.starts_with("sm_") { self.cubin } else { self.ptx });
        if code.is_empty() {
            return Err(format!("{} gives no code of {module} for {target}", self.version()));
        }
        Ok(Compiled { code, log })
    }
}

/// # Safety
/// `T` must be the type of the function.
unsafe fn symbol<T: Copy>(library: &'static Library, name: &str) -> Result<T, String> {
    // SAFETY: the caller's.
    unsafe { library.get::<T>(name.as_bytes()) }.map(|symbol| *symbol).map_err(|e| e.to_string())
}

struct Owned {
    program: Program,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
}

impl Owned {
    fn bytes(&self, (size_of, bytes_of): (SizeOf, BytesOf)) -> Vec<u8> {
        let mut size = 0;
        // SAFETY: the program is alive; it writes a number.
        let status = unsafe { size_of(self.program, &mut size) };
        let mut bytes = vec![0u8; if status == 0 { size } else { 0 }];
        // SAFETY: it writes as many bytes as it said, which is none where there is no such result.
        if !bytes.is_empty() && unsafe { bytes_of(self.program, bytes.as_mut_ptr().cast()) } != 0 {
            bytes.clear();
        }
        bytes
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: it was created and is destroyed once.
        unsafe { (self.destroy)(&mut self.program) };
    }
}
