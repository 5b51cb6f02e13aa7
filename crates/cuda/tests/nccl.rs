//! Sums over devices by NCCL, where there is no GPU: on libraries that do what CUDA's do (`fake_driver`).
#![cfg(all(target_os = "linux", not(feature = "prebuilt")))]
#[macro_use]
mod fake_driver;
#[path = "fake_driver/values.rs"]
mod values;

use anyfleet_cuda::{CudaBackend, CudaOptions};
use anyfleet_tensor::{Backend, Communicator, Result};
use fake_driver::{Fake, on_fake};
use libloading::Library;
use std::time::{Duration, Instant};
use values::{filled, numbers, read};

const COUNT: usize = 1500;

fn open(device: usize) -> CudaBackend {
    CudaBackend::new(&CudaOptions { device: Some(device.to_string()), ..Default::default() }).unwrap()
}

fn group(devices: &[CudaBackend]) -> Option<Vec<Box<dyn Communicator<CudaBackend>>>> {
    CudaBackend::communicators(&devices.iter().collect::<Vec<_>>(), COUNT).unwrap()
}

/// Ends of groups that are still there.
fn comms() -> i32 {
    let file = std::env::var("ANYFLEET_NCCL").unwrap();
    // SAFETY: libnccl.cpp defines it so.
    unsafe { Library::new(file).unwrap().get::<unsafe extern "C" fn() -> i32>(b"anyfleet_fake_comms").unwrap()() }
}

/// Each rank's values after two sums, the second of what was read of the first. A rank that fails says so to the others, as
/// the executor's do.
fn two_sums(
    devices: &[CudaBackend],
    ends: &mut [Box<dyn Communicator<CudaBackend>>],
    step: u64,
) -> Vec<Result<Vec<f32>>> {
    fn run(rank: usize, device: &CudaBackend, end: &mut dyn Communicator<CudaBackend>, step: u64) -> Result<Vec<f32>> {
        end.begin(step);
        let x = filled(device, &[1, COUNT], &numbers(rank as u32, COUNT))?;
        // Room for it on the host is made before a sum is under way.
        read(device, &x)?;
        end.all_reduce(device, &x)?;
        end.all_reduce(device, &x)?;
        read(device, &x)
    }
    std::thread::scope(|scope| {
        let ranks = devices.iter().zip(ends).enumerate().map(|(rank, (device, end))| {
            scope.spawn(move || run(rank, device, &mut **end, step).inspect_err(|error| end.abort(error)))
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn expected(ranks: usize) -> Vec<f32> {
    let parts: Vec<_> = (0..ranks).map(|rank| numbers(rank as u32, COUNT)).collect();
    let sum = |values: &[f32]| values[1..].iter().fold(values[0], |sum, value| sum + value);
    let once = (0..COUNT).map(|i| sum(&parts.iter().map(|part| part[i]).collect::<Vec<_>>()));
    once.map(|value| sum(&vec![value; ranks])).collect()
}

on_fake! {
    fn sums_are_those_of_the_host(FAKE_CUDA_DEVICES = "3") {
        let devices = [2, 0, 1].map(open);
        let mut ends = group(&devices).expect("a group");
        let fake = Fake::new();
        let gathers = fake.calls("gather");
        for step in 1..4 {
            for found in two_sums(&devices, &mut ends, step) {
                assert_eq!(found.unwrap(), expected(3), "step {step}");
            }
        }
        assert_eq!((fake.calls("gather") - gathers, fake.calls("ncclCommInitAll")), (6, 1));
        assert_eq!(comms(), 3);
        drop(ends);
        assert_eq!(comms(), 0);
    }

    fn without_a_library_there_is_no_group(FAKE_CUDA_DEVICES = "2", ANYFLEET_NCCL = "/nowhere/libnccl.so.2") {
        let devices = [0, 1].map(open);
        assert!(group(&devices).is_none());
        assert_eq!(devices[0].communicator_bytes(2, COUNT), 0);
    }

    fn what_the_library_refuses_is_no_group(FAKE_CUDA_DEVICES = "2") {
        // Two ranks on one device.
        assert!(group(&[open(0), open(0)]).is_none());
        // Ways are looked for when a group is made, not in its first step.
        for rule in ["ncclCommInitAll:1:1", "ncclGroupStart:1:1", "ncclAllGather:2:1", "ncclGroupEnd:1:1"] {
            Fake::new().fail(rule);
            let found = group(&[open(0), open(1)]);
            Fake::new().fail("");
            assert!(found.is_none(), "{rule}");
            assert_eq!(comms(), 0, "{rule}");
        }
    }

    /// One that had something to do before, which fails.
    fn a_device_that_fails_makes_no_group(FAKE_CUDA_DEVICES = "2") {
        let devices = [0, 1].map(open);
        let x = filled(&devices[1], &[1, COUNT], &numbers(0, COUNT)).unwrap();
        Fake::new().fail("copy:1");
        let start = Instant::now();
        assert!(group(&devices).is_none());
        // The fake driver gives up after ten.
        assert!(start.elapsed() < Duration::from_secs(8));
        assert_eq!(comms(), 0);
        drop((x, devices));
    }

    fn an_old_library_makes_no_group(FAKE_CUDA_DEVICES = "2", FAKE_NCCL_VERSION = "21805") {
        let devices = [0, 1].map(open);
        assert!(group(&devices).is_none());
        assert_eq!(devices[0].communicator_bytes(2, COUNT), 0);
        assert_eq!(comms(), 0);
    }

    /// None of the group's sizes is new to a step.
    fn a_step_connects_nothing(FAKE_CUDA_DEVICES = "2") {
        let devices = [0, 1].map(open);
        let mut ends = group(&devices).expect("a group");
        let (fake, made) = (Fake::new(), ["ncclGroupEnd", "cuModuleGetFunction", "cuMemAlloc_v2"]);
        let before = made.map(|name| fake.calls(name));
        assert!(before[0] > 0);
        assert!(two_sums(&devices, &mut ends, 1).into_iter().all(|found| found.is_ok()));
        // Those of the test.
        assert_eq!(made.map(|name| fake.calls(name)), [before[0], before[1], before[2] + 2]);
    }

    fn a_rank_that_fails_leaves_no_device_waiting(FAKE_CUDA_DEVICES = "2") {
        let devices = [0, 1].map(open);
        let mut ends = group(&devices).expect("a group");
        let fake = Fake::new();
        // The first gather of a rank that the other has already asked for, the second, and a rank that never comes.
        for (step, rule) in [(1, "ncclAllGather:2:1"), (3, "ncclAllGather:4:1"), (5, "cuMemcpyHtoDAsync_v2:1:1")] {
            let made = fake.calls("ncclCommInitAll");
            fake.fail(rule);
            let failures: Vec<_> =
                two_sums(&devices, &mut ends, step).into_iter().filter_map(|found| found.err()).collect();
            assert!(!failures.is_empty(), "{rule}");
            for error in failures {
                let error = error.to_string();
                assert!(error.contains("unhandled cuda error (status 1)") || step == 5, "{rule}: {error}");
                assert!(!error.contains("stopped"), "{rule}: {error}");
            }
            assert_eq!(comms(), 0, "the group is gone");
            for found in two_sums(&devices, &mut ends, step + 1) {
                assert_eq!(found.unwrap(), expected(2), "after {rule}");
            }
            assert_eq!((fake.calls("ncclCommInitAll") - made, comms()), (1, 2), "it was made anew");
        }
        // Where it cannot be made anew, the step ends so, and the next tries again.
        ends[0].abort(&anyfleet_tensor::Error::Device { device: "test".into(), reason: "stops".into() });
        fake.fail("ncclCommInitAll:1:5");
        for found in two_sums(&devices, &mut ends, 7) {
            let error = found.unwrap_err().to_string();
            assert!(error.contains("cannot join again") && error.contains("invalid usage"), "{error}");
        }
        assert!(two_sums(&devices, &mut ends, 8).into_iter().all(|found| found.is_ok()));
    }
}
