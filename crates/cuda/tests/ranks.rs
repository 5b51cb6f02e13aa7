//! Sums over ranks: their bits, what a rank that fails does to the others, and what devices are asked for.
mod common;

use anyfleet_cuda::{CudaBackend, RecordedLaunch};
use anyfleet_tensor::{Backend, Communicator, DType, Error, Readback, Tensor};
use common::emulated;

type Ends = Vec<Box<dyn Communicator<CudaBackend>>>;

/// Emulated devices, where there is a compiler for them.
fn devices(ranks: usize) -> Option<Vec<CudaBackend>> {
    emulated(|| (0..ranks).map(|_| CudaBackend::emulated()).collect())
}

fn ends(devices: &[CudaBackend], most: usize) -> Ends {
    CudaBackend::communicators(&devices.iter().collect::<Vec<_>>(), most).unwrap().expect("a group")
}

/// Numbers whose sums depend on their order.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 16) as f32 / 32_768.0 - 1.0) * 10f32.powi((state >> 8) as i32 % 9 - 4)
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Each rank's bits after `sums` sums of what it has, in a step of its own.
fn add(devices: &[CudaBackend], ends: &mut Ends, step: u64, parts: &[Vec<f32>], sums: usize) -> Vec<Vec<u32>> {
    std::thread::scope(|scope| {
        let ranks = devices.iter().zip(ends).zip(parts).map(|((device, end), part)| {
            scope.spawn(move || {
                end.begin(step);
                let x = Tensor::new(device, DType::F32, &[1, part.len()]).unwrap();
                device.write(&x, bytemuck::cast_slice(part)).unwrap();
                for _ in 0..sums {
                    end.all_reduce(device, &x).unwrap();
                }
                let mut out = vec![0u32; part.len()];
                device.read(&x).unwrap().wait(bytemuck::cast_slice_mut(&mut out)).unwrap();
                out
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// What a sum through the host gives: in the order of ranks.
fn expected(parts: &[Vec<f32>], sums: usize) -> Vec<u32> {
    let column = |i: usize| parts.iter().map(|part| part[i]).collect::<Vec<_>>();
    let one = |values: Vec<f32>| values[1..].iter().fold(values[0], |sum, value| sum + value);
    let all = |i| (1..sums).fold(one(column(i)), |sum, _| one(vec![sum; parts.len()]));
    (0..parts[0].len()).map(|i| all(i).to_bits()).collect()
}

#[test]
fn all_ranks_have_the_sum_in_the_order_of_ranks() {
    for ranks in [2, 3, 5] {
        let Some(devices) = devices(ranks) else { return };
        let mut ends = ends(&devices, 5000);
        let mut differ = false;
        for (step, count) in [(1, 1), (2, 3), (3, 1024), (4, 1027), (5, 5000)] {
            let parts: Vec<_> = (0..ranks).map(|rank| numbers((10 * step + rank) as u32, count)).collect();
            for sums in [1, 3] {
                let want = expected(&parts, sums);
                for got in add(&devices, &mut ends, (10 * step + sums) as u64, &parts, sums) {
                    assert_eq!(got, want, "{ranks} ranks, {count} elements, {sums} sums");
                }
            }
            let backwards: Vec<_> = parts.iter().rev().cloned().collect();
            differ |= expected(&parts, 1) != expected(&backwards, 1);
        }
        assert!(differ || ranks == 2, "the order decides: else the test does not test");
    }
}

#[test]
fn a_rank_that_fails_stops_those_that_wait_and_the_next_step_goes_on() {
    let Some(devices) = devices(2) else { return };
    let mut ends = ends(&devices, 8);
    let error = Error::Device { device: "second".into(), reason: "is gone".into() };
    for step in [1, 3] {
        let (first, second) = ends.split_at_mut(1);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let x = Tensor::new(&devices[0], DType::F32, &[1, 8]).unwrap();
                first[0].begin(step);
                first[0].all_reduce(&devices[0], &x)
            });
            second[0].begin(step);
            second[0].abort(&error);
            assert_eq!(waits.join().unwrap().unwrap_err().to_string(), "second: is gone");
        });
        // Nobody waits for it again in this step.
        let x = Tensor::new(&devices[0], DType::F32, &[1, 8]).unwrap();
        assert_eq!(ends[0].all_reduce(&devices[0], &x).unwrap_err().to_string(), "second: is gone");
        let parts = [numbers(1, 8), numbers(2, 8)];
        assert_eq!(add(&devices, &mut ends, step + 1, &parts, 2)[1], expected(&parts, 2));
    }
}

#[test]
fn what_was_not_planned_is_refused() {
    let Some(devices) = devices(2) else { return };
    let mut ends = ends(&devices, 8);
    let x = Tensor::new(&devices[0], DType::F32, &[1, 9]).unwrap();
    ends[0].begin(1);
    let refused = ends[0].all_reduce(&devices[0], &x).unwrap_err().to_string();
    assert!(refused.contains("all_reduce") && refused.contains("8 elements at most"), "{refused}");
}

#[test]
fn a_gather_and_an_addition() {
    let (devices, recorded): (Vec<_>, Vec<_>) = (0..3).map(|_| CudaBackend::recording()).unzip();
    let before: Vec<_> = recorded.iter().map(|recorded| recorded.bytes()).collect();
    let (most, count) = (4096, 2050);
    let mut ends = ends(&devices, most);
    for (recorded, before) in recorded.iter().zip(before) {
        let planned = devices[0].communicator_bytes(3, most);
        assert_eq!((planned, recorded.bytes() - before), (4 * 3 * most, planned as u64));
    }
    std::thread::scope(|scope| {
        for (rank, ((device, end), recorded)) in devices.iter().zip(&mut ends).zip(&recorded).enumerate() {
            scope.spawn(move || {
                let x = Tensor::new(device, DType::F32, &[1, count]).unwrap();
                end.begin(1);
                let allocations = recorded.allocations();
                end.all_reduce(device, &x).unwrap();
                assert_eq!(recorded.allocations(), allocations);
                let launches = recorded.take();
                let [gather, sum] = &launches[..] else { panic!("{launches:?}") };
                assert_eq!((gather.kernel, sum.kernel), (RecordedLaunch::GATHER, "sum_ranks"));
                let (at, parts) = (x.buffer().address(), gather.address(1));
                assert_eq!((gather.address(0), gather.word(4), gather.word(5)), (at, count as u32, rank as u32));
                assert_eq!((sum.address(0), sum.address(1)), (at, parts));
                assert_eq!((sum.word(4), sum.word(5), sum.params.len()), (count as u32, 3, 24));
                // Four elements a thread: three blocks for 2050.
                assert_eq!((sum.grid, sum.threads), ([3, 1, 1], 256));
            });
        }
    });
}
