//! Compiles the CUDA kernels ahead of time.
//!
//! Prints what each kernel takes of each architecture, and fails where one spills registers to memory or the compiler
//! warns. NVRTC of CUDA 12.8 is the one to use: it is the oldest that knows all targets, and drivers of CUDA 12 and 13 load
//! its code; code of CUDA 13 asks for a driver of CUDA 13.
use anyfleet_kernels::cuda::{Nvrtc, TARGETS, modules, pack, source};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

const USAGE: &str = "usage: cubins --nvrtc LIBNVRTC.SO (--out ARCHIVE | MODULE...)
    Compiles the CUDA kernels for all targets, and writes an archive of them; or only compiles the modules that are named.";

/// Kernels that may spill, and why.
const SPILLS: [(&str, &str); 0] = [];

/// What a kernel takes of a multiprocessor, in bytes where not in registers.
#[derive(Clone, Copy, Default)]
struct Use {
    registers: u32,
    shared: u32,
    stack: u32,
    spills: u32,
}

struct Job {
    module: &'static str,
    target: &'static str,
    code: Vec<u8>,
    uses: Vec<(String, Use)>,
    complaints: Vec<String>,
}

impl Job {
    fn run(nvrtc: Nvrtc, module: &'static str, target: &'static str) -> Job {
        let mut job = Job { module, target, code: Vec::new(), uses: Vec::new(), complaints: Vec::new() };
        match nvrtc.compile(module, &source(module), target) {
            Ok(compiled) => {
                let (uses, rest) = read(&compiled.log);
                let said = rest.iter().map(|line| format!("{module} {target}: {line}"));
                let spilling = uses
                    .iter()
                    .filter(|(kernel, taken)| taken.spills > 0 && !SPILLS.iter().any(|(name, _reason)| name == kernel));
                let spilling =
                    spilling.map(|(kernel, taken)| format!("{kernel} {target}: spills {} bytes", taken.spills));
                job.complaints = said.chain(spilling).collect();
                (job.code, job.uses) = (compiled.code, uses);
            }
            Err(error) => job.complaints.push(error),
        }
        job
    }
}

/// What kernels take, and the lines that say something else.
fn read(log: &str) -> (Vec<(String, Use)>, Vec<&str>) {
    let (mut kernels, mut rest) = (Vec::<(String, Use)>::new(), Vec::new());
    // The function that lines are about; what is not inlined has a stack and spills, too, which are its kernel's.
    for line in log.lines().filter(|line| !line.trim().is_empty()) {
        let number = |what: &str| number_before(line, what);
        if let Some((_, name)) = line.split_once("Compiling entry function '") {
            let name = name.split('\'').next().unwrap_or_default();
            kernels.push((name.trim_start_matches("anyfleet_").to_owned(), Use::default()));
        } else if let (Some(stack), Some((_, taken))) = (number(" bytes stack frame"), kernels.last_mut()) {
            taken.stack = taken.stack.max(stack);
            taken.spills += number(" bytes spill stores").unwrap_or(0) + number(" bytes spill loads").unwrap_or(0);
        } else if let (Some(registers), Some((_, taken))) = (number(" registers"), kernels.last_mut()) {
            (taken.registers, taken.shared) = (registers, number(" bytes smem").unwrap_or(0));
        } else if !line.starts_with("ptxas info") || line.contains("wgmma") || line.contains("warpgroup.arrive") {
            // Products of warpgroups that wait for each other, or for registers, are slow: no more than information to the
            // assembler.
            rest.push(line);
        }
    }
    (kernels, rest)
}

fn number_before(line: &str, what: &str) -> Option<u32> {
    let (before, _) = line.split_once(what)?;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

struct Arguments {
    nvrtc: String,
    out: Option<String>,
    modules: Vec<&'static str>,
}

fn arguments() -> Option<Arguments> {
    let (mut nvrtc, mut out, mut named) = (None, None, Vec::new());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--nvrtc" => nvrtc = Some(words.next()?),
            "--out" => out = Some(words.next()?),
            name => named.push(modules().find(|module| *module == name)?),
        }
    }
    // An archive has all modules.
    if out.is_some() != named.is_empty() {
        return None;
    }
    Some(Arguments { nvrtc: nvrtc?, out, modules: if named.is_empty() { modules().collect() } else { named } })
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}\n    Modules: {}", modules().collect::<Vec<_>>().join(", "));
        return ExitCode::from(2);
    };
    match make(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cubins: {error}");
            ExitCode::FAILURE
        }
    }
}

fn make(arguments: &Arguments) -> Result<(), String> {
    let start = Instant::now();
    let nvrtc = Nvrtc::open(&arguments.nvrtc)?;
    let jobs = arguments.modules.iter().flat_map(|module| TARGETS.map(|target| (*module, target)));
    let (queue, done) = (Mutex::new(jobs), Mutex::new(Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let next = || queue.lock().expect("no worker panics here").next();
                while let Some((module, target)) = next() {
                    let job = Job::run(nvrtc, module, target);
                    done.lock().expect("no worker panics here").push(job);
                }
            });
        }
    });
    let mut done = done.into_inner().expect("all workers have ended");
    // In the same order each time, whoever was first.
    done.sort_by_key(|job| (job.module, TARGETS.iter().position(|target| *target == job.target)));

    table(&done);
    let complaints: Vec<&String> = done.iter().flat_map(|job| &job.complaints).collect();
    complaints.iter().for_each(|complaint| eprintln!("{complaint}"));
    if !complaints.is_empty() {
        return Err(format!("{} complaints", complaints.len()));
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}: {} modules for {} targets in {seconds:.1} s",
        nvrtc.version(),
        arguments.modules.len(),
        TARGETS.len()
    );
    if let Some(out) = &arguments.out {
        let entries: Vec<_> = done.iter().map(|job| (job.module, job.target, &job.code[..])).collect();
        let archive = pack(&nvrtc.version(), &entries);
        let code: usize = done.iter().map(|job| job.code.len()).sum();
        std::fs::write(out, &archive).map_err(|e| format!("{out}: {e}"))?;
        println!("{out}: {} bytes, {code} before compression", archive.len());
    }
    Ok(())
}

fn table(done: &[Job]) {
    let mut rows = BTreeMap::<(&str, &str), [Option<Use>; TARGETS.len()]>::new();
    for job in done {
        let column = TARGETS.iter().position(|target| *target == job.target).expect("one of them");
        for (kernel, taken) in &job.uses {
            rows.entry((job.module, kernel)).or_default()[column] = Some(*taken);
        }
    }
    // PTX takes nothing yet.
    let shown = TARGETS.iter().filter(|target| target.starts_with("sm_")).count();
    let width = rows.keys().map(|(_, kernel)| kernel.len()).max().unwrap_or(0);
    println!("registers, then bytes of shared memory, stack and spills");
    println!("{:width$}{}", "", TARGETS[..shown].iter().map(|target| format!("  {target:>20}")).collect::<String>());
    for ((_, kernel), columns) in rows {
        let cell = |taken: &Option<Use>| match taken {
            Some(Use { registers, shared, stack, spills }) => {
                format!("  {registers:>3} {shared:>6} {stack:>4} {spills:>4}")
            }
            None => format!("  {:>20}", "-"),
        };
        println!("{kernel:width$}{}", columns[..shown].iter().map(cell).collect::<String>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_read() {
        let log = "\
norm.cu(7): warning #20: something
ptxas info    : 12 bytes gmem
ptxas info    : (C7512) Potential Performance Loss: wgmma.mma_async instructions are serialized due to something
ptxas info    : Compiling entry function 'anyfleet_norm' for 'sm_90'
ptxas info    : Function properties for anyfleet_norm
ptxas         .     16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 22 registers, used 1 barriers, 16 bytes cumulative stack size, 32 bytes smem
ptxas info    : Compile time = 59.819 ms
";
        let (uses, rest) = read(log);
        assert_eq!(rest.len(), 2);
        assert!(rest[0] == "norm.cu(7): warning #20: something" && rest[1].contains("serialized"), "{rest:?}");
        let [(name, Use { registers, shared, stack, spills })] = &uses[..] else { panic!("one kernel") };
        assert_eq!((name.as_str(), *registers, *shared, *stack, *spills), ("norm", 22, 32, 16, 12));
    }
}
