//! What the emulation has of warpgroups: products from shared memory, copies of tiles, and barriers that count bytes.
mod harness;

use harness::{Launch, SEEDS, bf16, compiled_or_return, halves, random_bf16};

const SHARED: u32 = 3 * 8192 + 1024;

#[test]
fn products_of_all_layouts_multiply() {
    compiled_or_return!();
    let (x, w) = (random_bf16(64 * 8, 1), random_bf16(64 * 8, 2));
    let (a, b) = (halves(&x), halves(&w));
    let times = 3;
    let want: Vec<f32> = (0..64 * 64)
        .map(|i| {
            let (row, column) = (i / 64, i % 64);
            let one = |sum: f32| (0..16).fold(sum, |sum, k| sum + bf16(a[row * 16 + k]) * bf16(b[column * 16 + k]));
            (0..times).fold(0.0, |sum, _| one(sum))
        })
        .collect();
    for seed in SEEDS {
        let launch = Launch { shared: SHARED, n: times, seed, ..Launch::of("test_products", 128) };
        for mode in 0..3 {
            let got = Launch { mode, ..launch.clone() }.run(&x, &w, &[0; 64 * 64]).unwrap();
            let got: Vec<f32> = got.into_iter().map(f32::from_bits).collect();
            assert_eq!(got, want, "mode {mode}");
        }
        // Sums that were read too early, and columns that were overwritten too early.
        let early = Launch { mode: 4, ..launch.clone() }.run(&x, &w, &[0; 64 * 64]).unwrap();
        assert!((0..64).all(|row| f32::from_bits(early[row * 64]).is_nan() || row % 16 >= 8));
        let late = Launch { mode: 8, ..launch }.run(&x, &w, &[0; 64 * 64]).unwrap();
        assert!((0..64).any(|row| f32::from_bits(late[row * 64]).is_nan()), "what others wrote before the end shows");
    }
}

#[test]
fn tiles_arrive_when_they_are_waited_for() {
    compiled_or_return!();
    // Two tiles side by side, the second and the last row cut short: zeros are beyond.
    let (rows, columns, n) = (36u32, 104u32, 10);
    let x: Vec<u32> = (0..rows * columns / 2).map(|i| (2 * i % 9973) | (((2 * i + 1) % 9973) << 16)).collect();
    let numbers = halves(&x);
    let at = |row: u32, column: u32| match row < rows && column < columns {
        true => u32::from(numbers[(row * columns + column) as usize]),
        false => 0,
    };
    let line = |line: u32, tile: u32| -> u32 {
        (0..64).map(|i| at(8 * (tile / 2) + line, 64 * (tile % 2) + i) * (i + 1)).sum()
    };
    let want: Vec<u32> = (0..128).map(|t| (0..n).map(|tile| line(t % 8, tile)).sum()).collect();
    let mut wrong = [0; 3];
    for seed in SEEDS {
        for mode in 0..3 {
            let launch = Launch {
                shared: 4096,
                n,
                mode,
                seed,
                tiles: Some([rows, columns, 8]),
                ..Launch::of("test_tiles", 160)
            };
            let got = launch.run(&x, &[], &[0; 128]);
            if mode == 0 {
                assert_eq!(got.as_ref(), Ok(&want), "seed {seed}");
            }
            wrong[mode as usize] += u32::from(got.as_ref() != Ok(&want));
        }
    }
    assert!(wrong[1] > 0 && wrong[2] > 0, "waits that are missing show: {wrong:?}");
}

#[test]
fn what_a_device_would_not_say_is_an_error() {
    compiled_or_return!();
    let cases: [(u32, &[&str]); 9] = [
        (0, &["uses a barrier before barrier_init"]),
        (1, &["no thread can go on", "threads 0-127 at barrier_wait"]),
        (2, &["asks for a product before products_begin"]),
        (3, &["ended with products under way"]),
        (4, &["a product reads byte"]),
        (5, &["no thread can go on", "at sync_some"]),
        (6, &["a tile of 1024 bytes to byte"]),
        (7, &["the block ended with copies of tiles under way"]),
        (8, &["lanes of a warp ask for different products"]),
    ];
    for seed in SEEDS {
        for (mode, texts) in &cases {
            let launch = Launch {
                shared: SHARED,
                mode: *mode,
                seed,
                tiles: Some([8, 64, 8]),
                ..Launch::of("test_wrong_warpgroup", 128)
            };
            let text = launch.run(&[0; 8 * 32], &[], &[0; 128]).unwrap_err();
            assert!(texts.iter().all(|part| text.contains(part)), "mode {mode}: {text}");
        }
    }
}
