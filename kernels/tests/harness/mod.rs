//! Launches kernels of `cuda/emulate/selftest*.cu`.
use libloading::Library;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

type Thread = unsafe extern "C" fn(*const c_void);
/// `anyfleet_launch` of `run.cpp`.
type Run = unsafe extern "C" fn(
    *const c_char,
    Thread,
    *const c_void,
    *const u32,
    *const u32,
    u32,
    u32,
    u32,
    u64,
    *mut c_char,
    u64,
) -> c_int;

/// `TestParams` of `selftest.h`.
#[repr(C)]
struct Params {
    x: *const u32,
    w: *const u32,
    y: *mut u32,
    n: u32,
    mode: u32,
    map: Map,
}

/// `TileMap` of `warpgroup.h`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
struct Map([u64; 16]);

/// Words of which the first lies at a multiple of 16 bytes.
#[derive(Clone)]
struct Words {
    all: Vec<u32>,
    first: usize,
}

impl Words {
    fn new(words: &[u32]) -> Words {
        let mut all = vec![0; words.len() + 3];
        let first = all.as_ptr().align_offset(16);
        all[first..first + words.len()].copy_from_slice(words);
        Words { all, first }
    }
}

/// A launch with what most of them have.
#[derive(Clone)]
pub struct Launch<'a> {
    pub kernel: &'a str,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub seed: u64,
    pub n: u32,
    pub mode: u32,
    /// What tiles are of: rows and columns of `x` as numbers of sixteen bits, and rows of a tile, whose columns are 64.
    pub tiles: Option<[u32; 3]>,
}

impl Launch<'_> {
    pub fn of(kernel: &str, threads: u32) -> Launch<'_> {
        Launch { kernel, grid: [1; 3], block: [threads, 1, 1], shared: 0, seed: 0, n: 0, mode: 0, tiles: None }
    }

    /// Runs it with copies of `x` and `w`, and gives what it made of `y`.
    pub fn run(&self, x: &[u32], w: &[u32], y: &[u32]) -> Result<Vec<u32>, String> {
        let blocks = self.grid.iter().product();
        self.run_blocks(x, w, y, 0, blocks)
    }

    pub fn run_blocks(&self, x: &[u32], w: &[u32], y: &[u32], first: u32, count: u32) -> Result<Vec<u32>, String> {
        let Some(library) = library() else { return Err("no library".into()) };
        let (x, w, mut y) = (Words::new(x), Words::new(w), y.to_vec());
        let params = Params {
            x: x.all[x.first..].as_ptr(),
            w: w.all[w.first..].as_ptr(),
            y: y.as_mut_ptr(),
            n: self.n,
            mode: self.mode,
            map: self.map(&x),
        };
        let word = |suffix: &str| {
            let symbol = format!("anyfleet_{}_{suffix}", self.kernel);
            // SAFETY: the macro KERNEL defines such a constant for each kernel.
            unsafe { **library.get::<*const u32>(symbol.as_bytes()).expect("a kernel of selftest.cu") }
        };
        assert_eq!(word("params") as usize, size_of::<Params>());
        assert!(self.block.iter().product::<u32>() <= word("threads"));
        let mut error = [0u8; 400];
        let name = CString::new(self.kernel).expect("a name");
        // SAFETY: both symbols have these types; the kernels stay within x, w and y as the tests size them.
        let code = unsafe {
            let thread = library.get::<Thread>(format!("anyfleet_{}", self.kernel).as_bytes()).expect("a kernel");
            let run = library.get::<Run>(b"anyfleet_launch").expect("the runner");
            run(
                name.as_ptr(),
                *thread,
                (&raw const params).cast(),
                self.grid.as_ptr(),
                self.block.as_ptr(),
                self.shared,
                first,
                count,
                self.seed,
                error.as_mut_ptr().cast(),
                error.len() as u64,
            )
        };
        let text = error.split(|&c| c == 0).next().unwrap_or_default();
        if code == 0 { Ok(y) } else { Err(String::from_utf8_lossy(text).into_owned()) }
    }

    fn map(&self, x: &Words) -> Map {
        let mut map = Map::default();
        if let Some([rows, columns, lines]) = self.tiles {
            let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
            let address = x.all[x.first..].as_ptr() as u64;
            map.0[..4].copy_from_slice(&[address, u64::from(columns) * 2, pair(columns * 2, rows), pair(128, lines)]);
        }
        map
    }
}

/// The runner and the kernels of `selftest.cu`, compiled once; nothing where there is no compiler.
pub fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    LIBRARY.get_or_init(compile).as_ref()
}

fn compile() -> Option<Library> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(concat!(env!("CARGO_CRATE_NAME"), ".so"));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut command = Command::new(&compiler);
    command.args(["-x", "c++", "-std=c++17", "-O2", "-ffp-contract=off", "-DANYFLEET_EMULATE", "-fPIC", "-shared"]);
    command.arg("-I").arg(&sources).arg("-o").arg(&target);
    command.args(
        ["emulate/run.cpp", "emulate/selftest.cu", "emulate/selftest_warpgroup.cu"].map(|name| sources.join(name)),
    );
    let output = match command.output() {
        Ok(output) => output,
        Err(reason) => {
            let required = std::env::var("ANYFLEET_REQUIRE").unwrap_or_default();
            let missing = format!("{compiler} does not run: {reason}");
            assert!(!required.split(',').any(|name| name.trim() == "cuda"), "ANYFLEET_REQUIRE={required}: {missing}");
            eprintln!("SKIPPED on cuda: {missing} (ANYFLEET_REQUIRE=cuda makes this a failure)");
            return None;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // SAFETY: the library was just compiled from the sources of this package; nothing runs when it is loaded.
    Some(unsafe { Library::new(&target) }.expect("the library that was just compiled"))
}

/// Ends a test where kernels cannot be compiled.
macro_rules! compiled_or_return {
    () => {
        if $crate::harness::library().is_none() {
            return;
        }
    };
}
pub(crate) use compiled_or_return;

pub const SEEDS: std::ops::Range<u64> = 0..8;

/// The same words each time.
pub fn random(count: usize, seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32 ^ (state >> 13) as u32
    };
    (0..count).map(next).collect()
}

/// bf16 values of magnitudes around one, two in a word.
pub fn random_bf16(words: usize, seed: u64) -> Vec<u32> {
    random(words, seed).iter().map(|x| (x & 0x83ff_83ff) | 0x3c00_3c00).collect()
}

pub fn halves(words: &[u32]) -> Vec<u16> {
    words.iter().flat_map(|&x| [x as u16, (x >> 16) as u16]).collect()
}

pub fn bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}
