//! Runs the conformance suite on a device and says which ops hold.
use anyfleet_conformance::case::Verdict;
use anyfleet_conformance::report::Report;
use anyfleet_conformance::rng::seed_from_env;
use anyfleet_conformance::suite::{Options, Tier, suite_with};
use anyfleet_conformance::support;
use anyfleet_cpu::{CpuBackend, CpuOptions, Isa};
use anyfleet_cuda::{CudaBackend, CudaOptions};
use anyfleet_tensor::{Backend, Gemm};
use anyfleet_wgpu::{Variant, WgpuBackend, WgpuOptions};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

const HELP: &str = "\
Holds a backend to the naive reference, op by op.

Usage: conformance [--device cpu|cuda[:DEVICE]|wgpu[:ADAPTER]] [--tier small|large] [--op NAME] [--case TEXT] [--threads N] [--variant NAME] [--gemm KIND] [--json FILE] [--verbose]
       conformance --table [README]

  --device DEVICE     the device to test: cpu (ANYFLEET_CPU chooses its kernel set), cuda
                      (ANYFLEET_CUDA=wgmma has warpgroups compute what they can), wgpu, or
                      one of these with a number or a part of a name, as in wgpu:ADAPTER;
                      cuda:emulated runs CUDA's kernels on the CPU and needs a C++ compiler
  --tier small|large  odd small shapes in seconds, or 8B shapes, 152k vocabularies,
                      32k contexts and buffers past 4 GiB in minutes (12 GiB of memory)
  --op NAME           only this op, e.g. linear
  --case TEXT         only cases whose description contains TEXT
  --threads N         worker threads of the device
    --variant NAME      kernels of a wgpu adapter: portable (the default), subgroups or packed
    --gemm KIND         products of many rows: invariant (the default), or fast, on the matrix
                        units of a wgpu adapter, which must have some, or by cuBLASLt
  --json FILE         write every outcome there
  --verbose           a line for each case
  --table [README]    run the small tier on every device and kernel set here and write the
                      support matrix between the markers of README (kernels/README.md)

ANYFLEET_SEED=N repeats a run. Exits with 1 when a case fails, 2 when the arguments are wrong.";

struct Arguments {
    options: Options,
    device: String,
    threads: Option<usize>,
    json: Option<PathBuf>,
    table: Option<PathBuf>,
    verbose: bool,
    variant: Variant,
    gemm: Gemm,
}

impl Arguments {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut parsed = Arguments {
            options: Options::new(Tier::Small, seed_from_env()?),
            device: "cpu".into(),
            threads: None,
            json: None,
            table: None,
            verbose: false,
            variant: Variant::default(),
            gemm: Gemm::default(),
        };
        let mut arguments = arguments.peekable();
        while let Some(flag) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{flag} needs a value; see --help"));
            match flag.as_str() {
                "--help" | "-h" => return Ok(None),
                "--verbose" => parsed.verbose = true,
                "--device" => parsed.device = value()?,
                "--tier" => parsed.options.tier = tier(&value()?)?,
                "--op" => parsed.options.op = Some(value()?),
                "--case" => parsed.options.case = Some(value()?),
                "--threads" => parsed.threads = Some(number(&value()?)?),
                "--variant" => parsed.variant = value()?.parse()?,
                "--gemm" => parsed.gemm = value()?.parse()?,
                "--json" => parsed.json = Some(value()?.into()),
                "--table" => {
                    let path = arguments.next_if(|next| !next.starts_with("--"));
                    parsed.table = Some(path.unwrap_or("kernels/README.md".into()).into());
                }
                _ => return Err(format!("{flag} is not an argument; see --help")),
            }
        }
        Ok(Some(parsed))
    }
}

fn tier(name: &str) -> Result<Tier, String> {
    match name {
        "small" => Ok(Tier::Small),
        "large" => Ok(Tier::Large),
        _ => Err(format!("--tier {name} does not exist; use small or large")),
    }
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or(format!("--threads {text} is not a number above 0"))
}

fn run(arguments: &Arguments) -> Result<Report, String> {
    let text = |e: anyfleet_tensor::Error| e.to_string();
    match arguments.device.split_once(':').unwrap_or((&arguments.device, "")) {
        ("cpu", "") if arguments.gemm == Gemm::Fast => Err("--gemm fast: the CPU has no other products".into()),
        ("cpu", "") => {
            let options = CpuOptions { threads: arguments.threads, isa: None };
            Ok(run_on(&CpuBackend::new(options).map_err(text)?, arguments))
        }
        ("cuda", "emulated") => {
            let options = CudaOptions { gemm: arguments.gemm, ..Default::default() };
            Ok(run_on(&CudaBackend::emulated_with(&options).map_err(text)?, arguments))
        }
        ("cuda", device) => {
            let device = Some(device.to_owned()).filter(|device| !device.is_empty());
            let options = CudaOptions { device, gemm: arguments.gemm, ..Default::default() };
            Ok(run_on(&CudaBackend::new(&options).map_err(text)?, arguments))
        }
        ("wgpu", adapter) => {
            let adapter = Some(adapter.to_owned()).filter(|adapter| !adapter.is_empty());
            let (variant, gemm) = (arguments.variant, arguments.gemm);
            let options = WgpuOptions { adapter, variant, gemm, ..Default::default() };
            Ok(run_on(&WgpuBackend::new(&options).map_err(text)?, arguments))
        }
        _ => Err(format!("--device {} does not exist; use cpu, cuda, wgpu or wgpu:ADAPTER", arguments.device)),
    }
}

fn run_on<B: Backend>(device: &B, arguments: &Arguments) -> Report {
    let mut last = Instant::now();
    suite_with(device, &arguments.options, |outcome| {
        let seconds = last.elapsed().as_secs_f64();
        if arguments.verbose || matches!(outcome.verdict, Verdict::Fail | Verdict::Error) {
            println!("{:<12} {seconds:>6.2} s  {}", outcome.verdict, outcome.label);
        }
        last = Instant::now();
    })
}

fn write_table(path: &std::path::Path, seed: u64) -> Result<(), String> {
    let mut reports = Vec::new();
    for isa in Isa::supported() {
        let device = CpuBackend::new(CpuOptions { threads: None, isa: Some(isa) }).map_err(|e| e.to_string())?;
        reports.push(suite_with(&device, &Options::new(Tier::Small, seed), |_| {}));
    }
    let options = |variant| WgpuOptions { adapter: Some("llvmpipe".into()), variant, ..Default::default() };
    let mut vulkan = Vec::new();
    for variant in WgpuBackend::variants(&options(Variant::Portable)).map_err(|e| e.to_string())? {
        let device = WgpuBackend::new(&options(variant)).map_err(|e| e.to_string())?;
        vulkan.push(suite_with(&device, &Options::new(Tier::Small, seed), |_| {}));
    }
    let cuda = CudaBackend::emulated().map_err(|e| e.to_string())?;
    let cuda = suite_with(&cuda, &Options::new(Tier::Small, seed), |_| {});
    let named = |e: std::io::Error| format!("{}: {e}", path.display());
    let text = std::fs::read_to_string(path).map_err(named)?;
    let backends = [("cpu", reports.iter().collect()), ("cuda", vec![&cuda]), ("wgpu", vulkan.iter().collect())];
    let table = support::table(&backends);
    let text = support::replace(&text, &table).map_err(|e| format!("{}: {e}", path.display()))?;
    std::fs::write(path, text).map_err(named)?;
    print!("{table}");
    Ok(())
}

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(wrong) => return complain(&wrong),
    };
    if let Some(path) = &arguments.table {
        return write_table(path, arguments.options.seed).map_or_else(|e| complain(&e), |()| ExitCode::SUCCESS);
    }
    let report = match run(&arguments) {
        Ok(report) => report,
        Err(wrong) => return complain(&wrong),
    };
    println!("{} ({}), ANYFLEET_SEED={}", report.device, report.numerics, report.seed);
    print!("{}{}", report.table(), report.failure_text());
    if let Some(path) = &arguments.json
        && let Err(e) = std::fs::write(path, format!("{:#}\n", report.json()))
    {
        return complain(&format!("--json {}: {e}", path.display()));
    }
    match (report.outcomes.is_empty(), report.passed()) {
        (true, _) => complain("no case matches --op and --case"),
        (_, true) => ExitCode::SUCCESS,
        (_, false) => ExitCode::FAILURE,
    }
}

fn complain(wrong: &str) -> ExitCode {
    eprintln!("conformance: {wrong}");
    ExitCode::from(2)
}
