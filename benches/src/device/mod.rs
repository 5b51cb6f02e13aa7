//! Measured ceilings of this machine.
//!
//! Each probe does one thing as fast as the machine can: reads memory, or computes from registers. A share of
//! such a ceiling says how much is left to gain, on this machine as it is now, neighbours included.
mod adapter;
mod pool;
mod stream;
mod tiles;
mod together;
mod vector;

use crate::Result;
use crate::stats::median;
pub use adapter::CopyRate;
use anyfleet::DeviceSpec;
pub use pool::ForkJoin;
use serde_json::{Value, json};
pub use stream::{BYTES, ReadRate};
use tiles::Kind;

/// Runs of which the median counts.
const REPEATS: usize = 7;

/// Operations per second of one instruction set, with one thread and with all of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Rate {
    /// Instruction set.
    pub name: &'static str,
    /// One thread.
    pub one: f64,
    /// All threads at once.
    pub all: f64,
}

/// What the machine can do at best; rates are per second, medians of several runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceilings {
    /// The processor's name.
    pub name: String,
    /// Threads that "all threads" means.
    pub threads: usize,
    /// Bytes read, one thread.
    pub read_one: ReadRate,
    /// Bytes read, all threads.
    pub read: ReadRate,
    /// f32 operations; a fused multiply-add is two. `None` where the processor fuses none.
    pub fma: Option<Rate>,
    /// bf16 operations on tiles, or why there are none.
    pub amx_bf16: std::result::Result<Rate, &'static str>,
    /// int8 operations on tiles, or why there are none.
    pub amx_int8: std::result::Result<Rate, &'static str>,
    /// bf16 operations of dot-product instructions, or why there are none.
    pub dot_bf16: std::result::Result<Rate, &'static str>,
    /// int8 operations of dot-product instructions, or why there are none.
    pub vnni: std::result::Result<Rate, &'static str>,
    /// Cost of a parallel loop.
    pub fork_join: ForkJoin,
    /// Memory of the GPU that the model runs on, where it does.
    pub copy: Option<CopyRate>,
}

impl Ceilings {
    /// Measures everything with this many threads; some seconds, and a gibibyte of memory meanwhile.
    ///
    /// # Errors
    /// Threads cannot be started, or the device cannot be opened.
    pub fn measure(threads: usize, device: &DeviceSpec) -> Result<Ceilings> {
        // First: it starts threads with an error where they cannot be had.
        let fork_join = pool::fork_join(threads)?;
        let mut reads = stream::measure(&[1, threads], REPEATS).into_iter();
        let mut read = || reads.next().ok_or("the read bandwidth was not measured".to_owned());
        let vector = |kernel: vector::Kernel| {
            rate(kernel.name, threads, kernel.operations * vector::TURNS, || (kernel.run)(vector::TURNS))
        };
        let tiles = |kind: Kind| {
            kind.check()?;
            Ok(rate("AMX", threads, kind.operations() * tiles::TURNS, || kind.run(tiles::TURNS)))
        };
        Ok(Ceilings {
            name: processor(),
            threads,
            read_one: read()?,
            read: read()?,
            fma: vector::multiply_add().map(vector),
            amx_bf16: tiles(Kind::Bf16),
            amx_int8: tiles(Kind::Int8),
            dot_bf16: vector::bf16_dot_product().map(vector),
            vnni: vector::dot_product().map(vector),
            fork_join,
            copy: adapter::measure(device)?,
        })
    }

    /// Bytes per second of the memory that weights are read from.
    pub fn bandwidth(&self) -> f64 {
        self.copy.as_ref().map_or(self.read.bytes_per_s, |copy| copy.bytes_per_s)
    }

    /// The higher of two measurements, figure by figure: what disturbs one only ever lowers it.
    #[must_use]
    pub fn best_of(self, other: Ceilings) -> Ceilings {
        let read = |a: ReadRate, b: ReadRate| if b.bytes_per_s > a.bytes_per_s { b } else { a };
        let rate = |a: Rate, b: Rate| Rate { name: a.name, one: a.one.max(b.one), all: a.all.max(b.all) };
        let both = |a, b| match (a, b) {
            (Ok(a), Ok(b)) => Ok(rate(a, b)),
            (a, _) => a,
        };
        let fork_join = match other.fork_join.median_us < self.fork_join.median_us {
            true => other.fork_join,
            false => self.fork_join,
        };
        Ceilings {
            name: self.name,
            threads: self.threads,
            read_one: read(self.read_one, other.read_one),
            read: read(self.read, other.read),
            fma: self.fma.zip(other.fma).map(|(a, b)| rate(a, b)),
            amx_bf16: both(self.amx_bf16, other.amx_bf16),
            amx_int8: both(self.amx_int8, other.amx_int8),
            dot_bf16: both(self.dot_bf16, other.dot_bf16),
            vnni: both(self.vnni, other.vnni),
            fork_join,
            copy: match (self.copy, other.copy) {
                (Some(a), Some(b)) if b.bytes_per_s > a.bytes_per_s => Some(b),
                (a, _) => a,
            },
        }
    }

    /// As the JSON report has it: rates in units of 10^9 per second, `null` for what is not there.
    pub fn json(&self) -> Value {
        let rate = |rate: Option<&Rate>| rate.map(|r| giga(r.all));
        let one = |rate: Option<&Rate>| rate.map(|r| giga(r.one));
        let note = |rate: &std::result::Result<Rate, &'static str>| match rate {
            Ok(rate) => rate.name,
            Err(reason) => reason,
        };
        json!({
            "name": self.name,
            "threads": self.threads,
            "read_gb_s": giga(self.read.bytes_per_s),
            "read_gb_s_1_thread": giga(self.read_one.bytes_per_s),
            "read_pages": self.read.pages,
            "read_kernel": self.read.shape,
            "fma_f32_gflop_s": rate(self.fma.as_ref()),
            "fma_f32_gflop_s_1_thread": one(self.fma.as_ref()),
            "fma_f32_kernel": self.fma.as_ref().map_or("the processor fuses no multiply-adds", |r| r.name),
            "amx_bf16_gflop_s": rate(self.amx_bf16.as_ref().ok()),
            "amx_bf16_gflop_s_1_thread": one(self.amx_bf16.as_ref().ok()),
            "amx_bf16_kernel": note(&self.amx_bf16),
            "amx_int8_gop_s": rate(self.amx_int8.as_ref().ok()),
            "amx_int8_gop_s_1_thread": one(self.amx_int8.as_ref().ok()),
            "amx_int8_kernel": note(&self.amx_int8),
            "dot_bf16_gflop_s": rate(self.dot_bf16.as_ref().ok()),
            "dot_bf16_gflop_s_1_thread": one(self.dot_bf16.as_ref().ok()),
            "dot_bf16_kernel": note(&self.dot_bf16),
            "vnni_int8_gop_s": rate(self.vnni.as_ref().ok()),
            "vnni_int8_gop_s_1_thread": one(self.vnni.as_ref().ok()),
            "vnni_int8_kernel": note(&self.vnni),
            "copy_gb_s": self.copy.as_ref().map(|copy| giga(copy.bytes_per_s)),
            "matrix_bf16_gflop_s": self.copy.as_ref().and_then(|copy| copy.bf16_per_s).map(giga),
            "copy_device": self.copy.as_ref().map(|copy| &copy.name),
            "fork_join_us": self.fork_join.median_us,
            "fork_join_us_p99": self.fork_join.p99_us,
        })
    }

    /// For people.
    pub fn table(&self) -> String {
        let rate = |rate: std::result::Result<&Rate, &str>, unit: &str| match rate {
            Ok(r) => format!("{:>8.0}  {:>8.0} {unit}  {}", giga(r.one), giga(r.all), r.name),
            Err(reason) => format!("{:>8}  {:>8}        {reason}", "-", "-"),
        };
        let fma = self.fma.as_ref().ok_or("the processor fuses no multiply-adds");
        let ForkJoin { median_us, p99_us } = self.fork_join;
        format!(
            "{}\n{:<22} {:>8}  {:>8}\n{:<22} {:>8.1}  {:>8.1} GB/s    {} pages, {}\n{:<22} {}\n{:<22} {}\n{:<22} {}\n\
             {:<22} {}\n{:<22} {}\n{:<22} {:>8}  {:>8.1} us      p99 {p99_us:.1} us\n",
            self.name,
            "threads",
            1,
            self.threads,
            "read, 1 GiB",
            giga(self.read_one.bytes_per_s),
            giga(self.read.bytes_per_s),
            self.read.pages,
            self.read.shape,
            "f32 multiply-add",
            rate(fma, "GFLOP/s"),
            "bf16 tiles",
            rate(self.amx_bf16.as_ref().map_err(|e| *e), "GFLOP/s"),
            "int8 tiles",
            rate(self.amx_int8.as_ref().map_err(|e| *e), "GOP/s  "),
            "bf16 dot products",
            rate(self.dot_bf16.as_ref().map_err(|e| *e), "GFLOP/s"),
            "int8 dot products",
            rate(self.vnni.as_ref().map_err(|e| *e), "GOP/s  "),
            "fork-join",
            "",
            median_us,
        ) + &self.copy.as_ref().map_or(String::new(), |CopyRate { name, bytes_per_s, bf16_per_s }| {
            let copy = giga(*bytes_per_s);
            let copy = format!("{:<22} {:>8}  {copy:>8.1} GB/s    read and written, {name}\n", "device copy", "");
            let units =
                |rate: &f64| format!("{:<22} {:>8}  {:>8.0} GFLOP/s  mma.sync\n", "bf16 matrix units", "", giga(*rate));
            copy + &bf16_per_s.as_ref().map_or(String::new(), units)
        })
    }
}

fn giga(rate: f64) -> f64 {
    rate / 1e9
}

/// The median rate of `operations` a thread, for one thread and for `threads`.
fn rate(name: &'static str, threads: usize, operations: usize, run: impl Fn() + Sync) -> Rate {
    let with = |threads: usize| {
        let seconds = together::seconds(threads, REPEATS, |_| run());
        (operations * threads) as f64 / median(&seconds).unwrap_or(f64::INFINITY)
    };
    Rate { name, one: with(1), all: with(threads) }
}

/// The processor's name, as the system gives it.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned()
}

/// A machine of round figures, for tests of what is computed from them.
#[cfg(test)]
pub(crate) fn example() -> Ceilings {
    let read = |bytes_per_s| ReadRate { bytes_per_s, pages: "huge", shape: "AVX-512".into() };
    let rate = |all: f64| Rate { name: "x", one: all / 2.0, all };
    Ceilings {
        name: "a processor".into(),
        threads: 2,
        read_one: read(1e10),
        read: read(2e10),
        fma: Some(rate(2e11)),
        amx_bf16: Ok(rate(4e12)),
        amx_int8: Err("none"),
        dot_bf16: Ok(rate(4e11)),
        vnni: Ok(rate(8e11)),
        fork_join: ForkJoin { median_us: 2.0, p99_us: 9.0 },
        copy: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_null_with_a_reason() {
        let json = example().json();
        assert_eq!(json["read_gb_s"], 20.0);
        assert_eq!(json["read_gb_s_1_thread"], 10.0);
        assert_eq!(json["amx_bf16_gflop_s"], 4000.0);
        assert!(json["amx_int8_gop_s"].is_null());
        assert_eq!(json["amx_int8_kernel"], "none");
        let table = example().table();
        assert!(table.contains("20.0 GB/s") && table.contains("4000 GFLOP/s"), "{table}");
        assert!(table.lines().any(|l| l.starts_with("int8 tiles") && l.ends_with("none")), "{table}");
    }

    #[test]
    fn the_better_figure_counts() {
        let mut slow = example();
        slow.read.bytes_per_s = 1.0;
        slow.fma = Some(Rate { name: "x", one: 9e11, all: 1.0 });
        let best = slow.best_of(example());
        assert_eq!(best.read, example().read);
        assert_eq!(best.fma, Some(Rate { name: "x", one: 9e11, all: 2e11 }));
        assert_eq!(best.amx_int8, Err("none"));
    }
}
