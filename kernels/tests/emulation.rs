//! The emulation that runs CUDA kernels on the host (`cuda/emulate`): what it computes, and that it shows the defects a
//! device may hide.
mod harness;

use harness::{Launch, SEEDS, bf16, compiled_or_return, halves, random, random_bf16};

#[test]
fn blocks_reduce_over_shuffles_and_shared_memory() {
    compiled_or_return!();
    let x: Vec<f32> = (0..3000).map(|i| (i % 17) as f32).collect();
    let bits: Vec<u32> = x.iter().map(|x| x.to_bits()).collect();
    for (block, seed) in [([1024, 1, 1], 0), ([32, 8, 4], 1), ([8, 4, 8], 2), ([32, 1, 1], 3)] {
        let launch = Launch { grid: [2, 3, 1], block, seed, n: 3000, ..Launch::of("test_sum", 0) };
        let sum = x.iter().sum::<f32>().to_bits();
        assert_eq!(launch.run(&bits, &[], &[0; 6]), Ok(vec![sum; 6]), "{block:?}");
    }
}

#[test]
fn indices_are_of_three_dimensions() {
    compiled_or_return!();
    let (grid, block) = ([3, 2, 2], [4, 3, 5]);
    let launch = Launch { grid, block, seed: 7, ..Launch::of("test_indices", 0) };
    let word =
        |i: u32, size: [u32; 3]| (i % size[0]) | ((i / size[0] % size[1]) << 8) | ((i / size[0] / size[1]) << 16);
    let packed = |size: [u32; 3]| size[0] | size[1] << 8 | size[2] << 16;
    let expected: Vec<u32> =
        (0..12 * 60).flat_map(|i| [word(i % 60, block), word(i / 60, grid), packed(block), packed(grid)]).collect();
    assert_eq!(launch.run(&[], &[], &vec![0; 12 * 60 * 4]), Ok(expected.clone()));

    // Blocks of one launch may be spread over threads.
    let parts: Vec<Vec<u32>> = std::thread::scope(|scope| {
        let part = |first, count| launch.run_blocks(&[], &[], &vec![0; 12 * 60 * 4], first, count);
        let started = [(0, 5), (5, 7)].map(|(first, count)| scope.spawn(move || part(first, count)));
        started.into_iter().map(|thread| thread.join().expect("no panic").expect("no error")).collect()
    });
    let merged: Vec<u32> = parts[0].iter().zip(&parts[1]).map(|(a, b)| a | b).collect();
    assert_eq!(merged, expected);
}

#[test]
fn missing_barriers_show() {
    compiled_or_return!();
    for threads in [64, 160, 1024] {
        let x = random(threads as usize, 5);
        // Five reversals, and one added in each.
        let expected: Vec<u32> = x.iter().rev().map(|x| x.wrapping_add(5)).collect();
        let run = |mode, seed| {
            let launch = Launch { shared: threads * 4, n: 5, mode, seed, ..Launch::of("test_reverse", threads) };
            launch.run(&x, &[], &x).expect("no error")
        };
        for seed in SEEDS {
            assert_eq!(run(0, seed), expected);
            assert_ne!(run(1, seed), expected, "without the barrier before reads, seed {seed}");
            assert_ne!(run(2, seed), expected, "without the barrier behind reads, seed {seed}");
        }
    }
    let expected: Vec<u32> = (0..32).rev().collect();
    for seed in SEEDS {
        let run = |mode| Launch { mode, seed, ..Launch::of("test_warp_reverse", 32) }.run(&[], &[], &[0; 32]);
        assert_eq!(run(0), Ok(expected.clone()));
        assert_ne!(run(1), Ok(expected.clone()), "without __syncwarp, seed {seed}");
    }
}

/// `kernel` multiplies matrices of eight warps, `x` and `w`, elements of which are `value` of their bits.
fn matrices_multiply(kernel: &str, x: &[u32], w: &[u32], value: impl Fn(u16) -> f32) {
    let rounds = 3;
    let y: Vec<f32> = random(8 * 128, 3).iter().map(|&x| x as f32 / 1e9).collect();
    let (a, b, mut expected) = (halves(x), halves(w), y.clone());
    for (i, sum) in expected.iter_mut().enumerate() {
        let (warp, row, column) = (i / 128, i / 8 % 16, i % 8);
        for k in (0..rounds).flat_map(|_| 0..16) {
            *sum += value(a[warp * 256 + row * 16 + k]) * value(b[warp * 128 + k * 8 + column]);
        }
    }
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    for seed in SEEDS {
        let launch = Launch { n: rounds, seed, ..Launch::of(kernel, 256) };
        assert_eq!(launch.run(x, w, &bits(&y)), Ok(bits(&expected)));
    }
}

#[test]
fn matrices_of_bf16_multiply() {
    compiled_or_return!();
    matrices_multiply("test_mma_bf16", &random_bf16(8 * 128, 1), &random_bf16(8 * 64, 2), bf16);
}

#[test]
fn matrices_of_f16_multiply() {
    compiled_or_return!();
    // Finite ones of all magnitudes and signs: those with all bits of the exponent set lose one of them.
    let finite = |half: u32| if half & 0x7c00 == 0x7c00 { half & !0x4000 } else { half };
    let random_f16 = |words, seed| -> Vec<u32> {
        random(words, seed).iter().map(|&x| finite(x & 0xffff) | finite(x >> 16) << 16).collect()
    };
    let (mut x, mut w) = (random_f16(8 * 128, 1), random_f16(8 * 64, 2));
    // A warp's of subnormal numbers, and those of another of the largest.
    x[..128].iter_mut().chain(&mut w[..64]).for_each(|x| *x &= 0x83ff_83ff);
    x[128..256].iter_mut().chain(&mut w[64..128]).for_each(|x| *x = (*x & 0x8000_8000) | 0x7bff_7bff);
    matrices_multiply("test_mma_f16", &x, &w, |x| half(x) as f32);
}

#[test]
fn matrices_of_bytes_multiply() {
    compiled_or_return!();
    let (warps, rounds) = (8, 2);
    let (mut x, mut w, y) = (random(warps * 128, 4), random(warps * 64, 5), random(warps * 128, 6));
    // The largest sums there are.
    x[..8].fill(0x8080_8080);
    w[..64].fill(0x8080_8080);
    let bytes = |words: &[u32]| words.iter().flat_map(|x| x.to_le_bytes()).map(|x| x as i8).collect::<Vec<i8>>();
    let (a, b) = (bytes(&x), bytes(&w));
    let expected = |(i, &sum): (usize, &u32)| {
        let (warp, row, column) = (i / 128, i / 8 % 16, i % 8);
        let product = |k| i32::from(a[warp * 512 + row * 32 + k]) * i32::from(b[warp * 256 + k * 8 + column]);
        let products: i32 = (0..32).map(product).sum();
        sum.wrapping_add_signed(products.wrapping_mul(rounds as i32))
    };
    let expected: Vec<u32> = y.iter().enumerate().map(expected).collect();
    for seed in SEEDS {
        let launch = Launch { n: rounds, seed, ..Launch::of("test_mma_s8", 256) };
        assert_eq!(launch.run(&x, &w, &y), Ok(expected.clone()));
    }
}

#[test]
fn matrices_are_loaded() {
    compiled_or_return!();
    let x = random(128, 8);
    let element = halves(&x);
    let at = |matrix: usize, row: usize, column: usize| u32::from(element[matrix * 64 + row * 8 + column]);
    let lanes = || (0..32).flat_map(|lane| (0..4).map(move |i| (i, lane / 4, lane % 4 * 2)));
    let rows: Vec<u32> = lanes().map(|(i, a, b)| at(i, a, b) | at(i, a, b + 1) << 16).collect();
    let columns: Vec<u32> = lanes().map(|(i, a, b)| at(i, b, a) | at(i, b + 1, a) << 16).collect();
    for seed in SEEDS {
        let run = |mode| Launch { shared: 512, mode, seed, ..Launch::of("test_ldmatrix", 32) }.run(&x, &[], &[0; 128]);
        assert_eq!(run(0), Ok(rows.clone()));
        assert_eq!(run(1), Ok(columns.clone()));
    }
}

#[test]
fn copies_are_done_when_waited_for() {
    compiled_or_return!();
    for n in [1, 2, 3, 100] {
        let x = random(n as usize * 512, 9);
        // `zeros`: the last chunk's copies of even threads are not wanted, where the kernel starts it in its loop.
        let expected = |zeros: bool| -> Vec<u32> {
            let chunks =
                |t: usize| (0..n as usize).filter(move |&c| !zeros || c + 1 < n as usize || c < 2 || t % 2 == 1);
            let words = |t: usize| chunks(t).flat_map(move |c| (0..4).map(move |i| (c * 128 + t) * 4 + i));
            (0..128).map(|t| words(127 - t).fold(0u32, |sum, i| sum.wrapping_add(x[i]))).collect()
        };
        for seed in SEEDS {
            let run = |kernel, mode| Launch { n, mode, seed, ..Launch::of(kernel, 128) }.run(&x, &[], &[0; 128]);
            assert_eq!(run("test_pipeline", 0), Ok(expected(true)));
            assert_ne!(run("test_pipeline", 1), Ok(expected(true)), "a group too few, seed {seed}");
            assert_ne!(run("test_pipeline", 2), Ok(expected(true)), "no wait, seed {seed}");
            assert_eq!(run("test_refill", 0), Ok(expected(false)));
            if n > 1 {
                assert_ne!(run("test_refill", 1), Ok(expected(false)), "started too early, seed {seed}");
            }
        }
    }
}

#[test]
fn atomics_count() {
    compiled_or_return!();
    for seed in SEEDS {
        let launch = Launch { grid: [4, 1, 1], seed, ..Launch::of("test_atomics", 256) };
        let y = launch.run(&[], &[], &vec![0; 8 + 1024 + 2]).expect("no error");
        let first = [1024, -2048i32 as u32, 512f32.to_bits(), 1023, -1023i32 as u32, u32::MAX, 3072];
        assert_eq!(y[..7], first);
        assert_eq!(y[1032..], [1024, 1024]);
        // Each was exchanged for another once: all but the last, which is there still, and the zero of the start.
        let mut exchanged = y[7..1032].to_vec();
        exchanged.sort_unstable();
        let mut expected: Vec<u32> = (0..1024).collect();
        expected.insert(0, 0);
        assert_eq!(exchanged, expected);
    }
}

#[test]
fn threads_may_leave_before_a_barrier() {
    compiled_or_return!();
    for seed in SEEDS {
        for (threads, n) in [(1024, 1024), (1024, 77), (100, 1), (64, 32)] {
            let y = Launch { n, seed, ..Launch::of("test_leave", threads) }.run(&[], &[], &vec![9; threads as usize]);
            let mut expected = vec![9; threads as usize];
            expected[..n as usize].fill(n | n << 16);
            assert_eq!(y, Ok(expected));
        }
        let y = Launch { mode: 1, seed, ..Launch::of("test_leave", 1024) }.run(&[], &[], &[9; 1024]);
        let word = |t| if t / 32 % 2 == 1 { 9 } else { 512 + (0xaaaa_aaaau32.wrapping_add(512) << 16) };
        assert_eq!(y, Ok((0..1024).map(word).collect::<Vec<u32>>()));
    }
}

#[test]
fn lanes_vote_and_shuffle() {
    compiled_or_return!();
    let expected = |t: u32| {
        let lane = t % 32;
        let ballot = (0..32).filter(|l| l % 3 == 0).fold(0, |bits, l| bits | 1u32 << l);
        let up = if lane % 16 < 2 { t } else { t - 2 };
        let down = if lane % 16 > 13 { t } else { t + 2 };
        let parted = if lane < 16 { 3 * (t ^ 1) } else { 0xaaaa_0000 };
        let max = (t / 32 * 32..t / 32 * 32 + 32).map(|t| t % 13).max().unwrap_or(0) as f32;
        let votes = u32::from(t >= 32) | u32::from(t < 32) << 1;
        [ballot, votes, 1, 1, 16, t / 8 * 8 + 3, up, down, t ^ 5, (t ^ 31) + 7, parted, max.to_bits(), 0, 0, 0, 0]
    };
    for seed in SEEDS {
        let y = Launch { seed, ..Launch::of("test_votes", 64) }.run(&[], &[], &[0; 1024]).expect("no error");
        for t in 0..64 {
            assert_eq!(y[t * 16..t * 16 + 16], expected(t as u32), "thread {t}");
        }
    }
}

/// To nearest, ties to even, by trying: `value` of the 16-bit pattern below and of the one above.
fn nearest(x: f32, below: u16, value: impl Fn(u16) -> f64) -> u16 {
    let (low, high) = (value(below), value(below + 1));
    let middle = (low + high) / 2.0;
    let x = f64::from(x.abs());
    if x > middle || (x == middle && below % 2 == 1) { below + 1 } else { below }
}

/// The number of a finite half's bits, and 2^16 where infinity is.
fn half(x: u16) -> f64 {
    let (exponent, fraction) = (i32::from(x >> 10 & 31), f64::from(x & 0x3ff));
    let magnitude =
        if exponent == 0 { fraction * 2f64.powi(-24) } else { (1024.0 + fraction) * 2f64.powi(exponent - 25) };
    if x >> 15 == 1 { -magnitude } else { magnitude }
}

/// The number of a float of eight bits, by the formula of the OCP specification.
fn f8(x: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(x >> 3 & 15), f32::from(x & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if x >> 7 == 1 { -magnitude } else { magnitude }
}

#[test]
fn words_are_as_on_a_device() {
    compiled_or_return!();
    let mut x = random(40_000, 11);
    // All halves; and floats around each half that are hard to round.
    x.extend((0..0x7c00u16).flat_map(|h| {
        let middle = (half(h) + half(h + 1)) / 2.0;
        let bits = (middle as f32).to_bits();
        [u32::from(h) | (bits & 0xffff_0000), bits, bits.wrapping_add(1), bits.wrapping_sub(1)]
    }));
    x.extend([0, 0, 1, 0x8000_0000, 0x7f80_0000, 0xff80_0000, 0x7f7f_ffff, 0x7f7f_8000, 0xffff_ffff, 0x7f80_0001]);
    let n = x.len() / 2;
    let y = Launch { n: n as u32, ..Launch::of("test_words", 32) }.run(&x, &[], &vec![0; n * 19]).expect("no error");
    for (i, pair) in x.chunks_exact(2).enumerate() {
        let (x, w) = (pair[0], pair[1]);
        let both = u64::from(w) << 32 | u64::from(x);
        let bytes = both.to_le_bytes();
        let dot: i32 = (0..4).map(|i| i32::from(bytes[i] as i8) * i32::from(bytes[i + 4] as i8)).sum();
        let to_bf16 = |bits: u32| {
            let x = f32::from_bits(bits);
            let value = |b: u16| if b == 0x7f80 { 2f64.powi(128) } else { f64::from(bf16(b)) };
            let sign = (bits >> 16) as u16 & 0x8000;
            match x {
                x if x.is_nan() => 0x7fff,
                x if x.is_infinite() => sign | 0x7f80,
                x => sign | nearest(x, (bits >> 16) as u16 & 0x7fff, value),
            }
        };
        let to_half = |bits: u32| {
            let x = f32::from_bits(bits);
            let sign = (bits >> 16) as u16 & 0x8000;
            if x.is_nan() {
                return 0x7fff;
            }
            // The last half that is not above.
            let (mut low, mut high) = (0u16, 0x7c00);
            while high - low > 1 {
                let middle = (low + high) / 2;
                *(if half(middle) <= f64::from(x.abs()) { &mut low } else { &mut high }) = middle;
            }
            sign | nearest(x, low, half)
        };
        let word = &y[i * 19..][..19];
        assert_eq!(word[0], x.leading_zeros());
        assert_eq!(word[1], both.leading_zeros());
        assert_eq!(word[2], x.count_ones());
        assert_eq!(word[3], if x == 0 { 0 } else { x.trailing_zeros() + 1 });
        assert_eq!(word[4], x.reverse_bits());
        assert_eq!(word[5], ((u64::from(x) * u64::from(w)) >> 32) as u32);
        assert_eq!(word[6], ((u128::from(both) * u128::from(both)) >> 96) as u32);
        assert_eq!(word[7], u32::from_le_bytes([bytes[5], bytes[1], bytes[7], if bytes[3] > 127 { 255 } else { 0 }]));
        assert_eq!(word[8] as i32, dot + 5);
        assert_eq!(word[9], u32::from(to_bf16(x)) | u32::from(to_bf16(w)) << 16, "{x:#x} {w:#x}");
        assert_eq!(word[10], u32::from(to_half(x)), "{x:#x}");
        if x & 0x7c00 != 0x7c00 {
            assert_eq!(f64::from(f32::from_bits(word[11])), half(x as u16), "{x:#x}");
        }
        assert_eq!(word[12], x.min(5).wrapping_add(x.max(5)));
        let sum = f32::from_bits(x).mul_add(1.5, f32::from_bits(w));
        assert!(word[13] == sum.to_bits() || sum.is_nan(), "{x:#x} {w:#x}");
        assert_eq!(word[14], u32::from(to_half(x)) | u32::from(to_half(w)) << 16, "{x:#x} {w:#x}");
        for (&byte, &number) in bytes[..4].iter().zip(&word[15..]) {
            if byte & 0x7f != 0x7f {
                assert_eq!(number, f8(byte).to_bits(), "{byte:#x}");
            }
        }
    }
}

#[test]
fn what_a_device_would_hang_on_is_an_error() {
    compiled_or_return!();
    let cases: [(u32, &[&str]); 14] = [
        (0, &["no thread can go on", "threads 0-63 at __syncthreads", "thread 96 at __shfl_sync of lanes 0x00000003"]),
        (1, &["37,64-127 exited", "threads 32-36,38-63 at mma_bf16 of all lanes"]),
        (2, &["thread 9 calls __syncwarp for lanes 0x00000001, which lack its own"]),
        (3, &["__syncthreads", "__syncthreads_or", "while others wait"]),
        (4, &["copy_async of address", "not a multiple of 16"]),
        (5, &["copy_async of address", "not a multiple of 16"]),
        (6, &["load_once of address", "not a multiple of 16"]),
        (7, &["bytes behind SHARED_BYTES (528 bytes) were written"]),
        (8, &["bytes behind words (128 bytes) were written"]),
        (9, &["ldmatrix of address", "not of shared memory"]),
        (10, &["copy_async of address", "not of shared memory"]),
        (11, &["at __ballot_sync of lanes 0x0000ffff", "at __any_sync of lanes 0x0000ffff"]),
        (12, &["copy_async of address", "not a multiple of 16"]),
        (13, &["__trap"]),
    ];
    for seed in SEEDS {
        for (mode, texts) in &cases {
            let mut launch = Launch { shared: 528, n: 528, mode: *mode, seed, ..Launch::of("test_wrong", 128) };
            launch.grid = [2, 2, 1];
            // The last block alone.
            let result = launch.run_blocks(&[0; 8], &[], &[0; 128], 3, 1);
            let text = result.expect_err("a defect");
            assert!(text.starts_with("kernel test_wrong, block (1,1,0): "), "{text}");
            assert!(texts.iter().all(|part| text.contains(part)), "mode {mode}: {text}");
            // And what comes after it is not disturbed.
            let sum = Launch { n: 8, seed, ..Launch::of("test_sum", 256) };
            assert_eq!(sum.run(&[1f32.to_bits(); 8], &[], &[0]), Ok(vec![8f32.to_bits()]));
        }
    }
    let run = |block, shared| Launch { block, shared, ..Launch::of("test_indices", 0) }.run(&[], &[], &[0; 4]);
    assert!(run([1, 1, 1], 300_000).is_err_and(|text| text.contains("300000 bytes of shared memory")));
    assert!(run([0, 1, 1], 0).is_err_and(|text| text.contains("a block of 0 threads")));
}
