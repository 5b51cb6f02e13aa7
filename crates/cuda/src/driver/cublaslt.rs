//! cuBLASLt, NVIDIA's library of matrix products, loaded where the operator asks for products that need not be invariant.
use super::gpu::Stream;
use super::{Matmul, WORKSPACE, probe};
use crate::candidates;
use anyfleet_tensor::{Error, Result};
use libloading::Library;
use std::collections::HashMap;
use std::ffi::{CStr, OsStr, OsString, c_char, c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

type Status = c_int;
type Raw = *mut c_void;
type Destroy = unsafe extern "C" fn(Raw) -> Status;
type SetAttribute = unsafe extern "C" fn(Raw, c_int, *const c_void, usize) -> Status;

// As cublasLt.h, cublas_api.h and library_types.h number them.
const COMPUTE_F32: c_int = 68;
const F32: c_int = 0;
const F16: c_int = 2;
const BF16: c_int = 14;
const TRANSPOSE_A: c_int = 3;
const TRANSPOSED: c_int = 1;
const MOST_WORKSPACE: c_int = 1;

/// The least version: 12.0.
const VERSION: usize = 120_000;

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Found {
    algorithm: [u64; 8],
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

/// The library's functions that are used here; cublasLt.h declares them so.
struct Functions {
    name: String,
    text: unsafe extern "C" fn(Status) -> *const c_char,
    create: unsafe extern "C" fn(*mut Raw) -> Status,
    destroy: Destroy,
    create_product: unsafe extern "C" fn(*mut Raw, c_int, c_int) -> Status,
    set_product: SetAttribute,
    destroy_product: Destroy,
    create_layout: unsafe extern "C" fn(*mut Raw, c_int, u64, u64, i64) -> Status,
    destroy_layout: Destroy,
    create_preference: unsafe extern "C" fn(*mut Raw) -> Status,
    set_preference: SetAttribute,
    destroy_preference: Destroy,
    /// Of a product with the layouts of A, B, C and D: so many ways at most, best first, and how many there are.
    find: unsafe extern "C" fn(Raw, Raw, Raw, Raw, Raw, Raw, Raw, c_int, *mut Found, *mut c_int) -> Status,
    /// `D = alpha * A * B + beta * C`.
    multiply: unsafe extern "C" fn(
        Raw,
        Raw,
        *const c_void,
        *const c_void,
        Raw,
        *const c_void,
        Raw,
        *const c_void,
        *const c_void,
        Raw,
        *mut c_void,
        Raw,
        *const [u64; 8],
        *mut c_void,
        usize,
        Raw,
    ) -> Status,
}

impl Functions {
    /// Those of this process.
    fn get() -> std::result::Result<&'static Functions, String> {
        static FUNCTIONS: OnceLock<std::result::Result<Functions, String>> = OnceLock::new();
        FUNCTIONS.get_or_init(Functions::find_library).as_ref().map_err(Clone::clone)
    }

    /// The library that the operator named, else the system's, which must not be newer than the driver.
    fn find_library() -> std::result::Result<Functions, String> {
        let versions = if probe::version()? >= 13_000 { &["13", "12"][..] } else { &["12"] };
        let names: Vec<String> = versions.iter().map(|version| format!("libcublasLt.so.{version}")).collect();
        let folders = ["", "/usr/local/cuda/lib64/"];
        let installed =
            || names.iter().flat_map(|name| folders.map(|folder| OsString::from(format!("{folder}{name}"))));
        let named = std::env::var_os("ANYFLEET_CUBLASLT").filter(|file| !file.is_empty());
        let files: Vec<OsString> = named.map_or_else(|| installed().collect(), |file| vec![file]);
        candidates::first(&files, Functions::open).map_err(|reason| {
            format!(
                "there is no {} ({reason}): install CUDA's cuBLAS (or `pip install nvidia-cublas-cu12`, and let \
                 ANYFLEET_CUBLASLT be the path of its libcublasLt.so.12)",
                names.join(" or ")
            )
        })
    }

    fn open(file: &OsStr) -> std::result::Result<Functions, String> {
        // SAFETY: the operator's or the system's CUDA; nothing but its own initialisers runs.
        let library = unsafe { Library::new(file) }.map_err(|e| e.to_string())?;
        // Its functions are kept.
        let library: &'static Library = Box::leak(Box::new(library));
        // SAFETY: each has the type that cublasLt.h declares the function with.
        unsafe {
            let version = symbol::<unsafe extern "C" fn() -> usize>(library, "cublasLtGetVersion")?();
            if version < VERSION {
                return Err(format!("{} is cuBLASLt {}, older than 12", file.display(), dotted(version)));
            }
            Ok(Functions {
                name: format!("cuBLASLt {}", dotted(version)),
                text: symbol(library, "cublasLtGetStatusString")?,
                create: symbol(library, "cublasLtCreate")?,
                destroy: symbol(library, "cublasLtDestroy")?,
                create_product: symbol(library, "cublasLtMatmulDescCreate")?,
                set_product: symbol(library, "cublasLtMatmulDescSetAttribute")?,
                destroy_product: symbol(library, "cublasLtMatmulDescDestroy")?,
                create_layout: symbol(library, "cublasLtMatrixLayoutCreate")?,
                destroy_layout: symbol(library, "cublasLtMatrixLayoutDestroy")?,
                create_preference: symbol(library, "cublasLtMatmulPreferenceCreate")?,
                set_preference: symbol(library, "cublasLtMatmulPreferenceSetAttribute")?,
                destroy_preference: symbol(library, "cublasLtMatmulPreferenceDestroy")?,
                find: symbol(library, "cublasLtMatmulAlgoGetHeuristic")?,
                multiply: symbol(library, "cublasLtMatmul")?,
            })
        }
    }

    /// What a function gave back, where it is a failure.
    fn check(&self, status: Status) -> std::result::Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: it gives a constant text for every number.
        let text = unsafe { (self.text)(status) };
        // SAFETY: it ends in a NUL.
        let text = if text.is_null() { "unknown".into() } else { unsafe { CStr::from_ptr(text) }.to_string_lossy() };
        Err(format!("{} fails: {text} (status {status})", self.name))
    }
}

/// # Safety
/// `T` must be the type of the function.
unsafe fn symbol<T: Copy>(library: &'static Library, name: &str) -> std::result::Result<T, String> {
    // SAFETY: the caller's.
    unsafe { library.get::<T>(name.as_bytes()) }.map(|symbol| *symbol).map_err(|e| e.to_string())
}

/// 120903 is 12.9.3, as 130000 is 13.0.0.
fn dotted(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// The library on a device.
pub(super) struct Handle {
    functions: &'static Functions,
    stream: Arc<Stream>,
    raw: Raw,
    /// The ways it advised, by rows, features, width and type: layers of a model ask for the same.
    ways: Mutex<HashMap<[u32; 4], [u64; 8]>>,
}

// SAFETY: cuBLASLt's handles hold no state that a call changes: any thread may use them, several at a time.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    /// # Errors
    /// One line that says what is missing.
    pub(super) fn open(stream: &Arc<Stream>) -> std::result::Result<Handle, String> {
        let functions = Functions::get()?;
        let mut raw = ptr::null_mut();
        // SAFETY: it writes a handle, for the context that is current.
        let status = stream.with(|| Ok(unsafe { (functions.create)(&mut raw) })).map_err(|e| e.to_string())?;
        functions.check(status)?;
        Ok(Handle { functions, stream: stream.clone(), raw, ways: Mutex::default() })
    }

    /// Its name and version.
    pub(super) fn name(&self) -> &str {
        &self.functions.name
    }

    fn ways(&self) -> MutexGuard<'_, HashMap<[u32; 4], [u64; 8]>> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the library with the device's context current on this thread.
    fn with(&self, call: impl FnOnce(&Functions) -> Status) -> Result<()> {
        let status = self.stream.with(|| Ok(call(self.functions)))?;
        self.functions.check(status).map_err(|reason| Error::Device {
            device: self.stream.name.clone(),
            reason: format!("{reason}; see that it is for the driver's version of CUDA, or use --gemm invariant"),
        })
    }

    fn object(&self, destroy: Destroy, create: impl FnOnce(&Functions, *mut Raw) -> Status) -> Result<Object> {
        let mut object = Object { raw: ptr::null_mut(), destroy };
        self.with(|functions| create(functions, &mut object.raw))?;
        Ok(object)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it was created and is destroyed once, after all that was made with it.
        let _ = self.with(|functions| unsafe { (functions.destroy)(self.raw) });
    }
}

/// A description that the library made: host memory.
struct Object {
    raw: Raw,
    destroy: Destroy,
}

impl Drop for Object {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: it was created and is destroyed once.
            unsafe { (self.destroy)(self.raw) };
        }
    }
}

/// A product and the way to compute it that the library advised.
pub(super) struct Product {
    product: Matmul,
    description: Object,
    weight: Object,
    x: Object,
    out: Object,
    algorithm: [u64; 8],
    /// No product before it had its shape.
    pub(super) new: bool,
    /// After the descriptions, which it may know.
    library: Arc<Handle>,
}

// SAFETY: the descriptions are memory that nothing changes once it is made.
unsafe impl Send for Product {}

impl Product {
    /// The library counts columns first: what lies here as `out[rows, features]` is its matrix of `features` rows, the
    /// product of the weights, transposed, and of x as it lies.
    pub(super) fn new(library: &Arc<Handle>, product: &Matmul) -> Result<Product> {
        let [rows, features, width] = [product.rows, product.features, product.width].map(u64::from);
        let numbers = if product.f16 == 1 { F16 } else { BF16 };
        let functions = library.functions;
        let layout = |kind: c_int, rows: u64, columns: u64| {
            // SAFETY: it writes a handle.
            library.object(functions.destroy_layout, |f, raw| unsafe {
                (f.create_layout)(raw, kind, rows, columns, rows as i64)
            })
        };
        // SAFETY: as above.
        let description =
            library.object(functions.destroy_product, |f, raw| unsafe { (f.create_product)(raw, COMPUTE_F32, F32) })?;
        let (weight, x, out) =
            (layout(numbers, width, features)?, layout(numbers, width, rows)?, layout(F32, features, rows)?);
        // SAFETY: it is copied, and as large as is said.
        library.with(|f| unsafe {
            (f.set_product)(description.raw, TRANSPOSE_A, ptr::from_ref(&TRANSPOSED).cast(), size_of::<c_int>())
        })?;
        let (product, library) = (*product, library.clone());
        let mut this = Product { product, description, weight, x, out, algorithm: [0; 8], new: false, library };
        let key = [product.rows, product.features, product.width, product.f16];
        let known = this.library.ways().get(&key).copied();
        (this.algorithm, this.new) = match known {
            Some(way) => (way, false),
            None => (this.find()?, true),
        };
        this.library.ways().insert(key, this.algorithm);
        Ok(this)
    }

    /// The way that the library advises.
    fn find(&self) -> Result<[u64; 8]> {
        let Product { product, description, weight, x, out, library, .. } = self;
        let functions = library.functions;
        // SAFETY: it writes a handle.
        let preference =
            library.object(functions.destroy_preference, |f, raw| unsafe { (f.create_preference)(raw) })?;
        // SAFETY: it is copied, and as large as is said.
        library.with(|f| unsafe {
            (f.set_preference)(preference.raw, MOST_WORKSPACE, ptr::from_ref(&WORKSPACE).cast(), size_of::<usize>())
        })?;
        let (mut found, mut count) = (Found::default(), 0);
        // SAFETY: all descriptions live, and there is room for one result.
        let found_status = library.with(|f| unsafe {
            let (of, out) = (description.raw, out.raw);
            (f.find)(library.raw, of, weight.raw, x.raw, out, out, preference.raw, 1, &mut found, &mut count)
        });
        let none = |reason: String| Error::Device { device: library.stream.name.clone(), reason };
        found_status.and_then(|()| match count {
            0 => Err(none(format!("{} has no product of {product:?}; use --gemm invariant", library.name()))),
            _ => functions.check(found.state).map_err(none),
        })?;
        Ok(found.algorithm)
    }

    /// Gives it to the stream.
    pub(super) fn run(&self) -> Result<()> {
        let (alpha, beta) = (1f32, 0f32);
        let Matmul { out, x, weight, workspace, .. } = self.product;
        // SAFETY: the plan holds what the addresses point to; the numbers are read before the call is over.
        self.library.with(|f| unsafe {
            (f.multiply)(
                self.library.raw,
                self.description.raw,
                ptr::from_ref(&alpha).cast(),
                weight as *const c_void,
                self.weight.raw,
                x as *const c_void,
                self.x.raw,
                ptr::from_ref(&beta).cast(),
                out as *const c_void,
                self.out.raw,
                out as *mut c_void,
                self.out.raw,
                &self.algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                self.library.stream.raw.cast(),
            )
        })
    }
}
