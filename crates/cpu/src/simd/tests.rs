//! Every set's vectors against plain arithmetic.
use super::{Cell, F8, Isa, Kernel, KernelSet, LANES, Simd, math};
use anyfleet_tensor::f8;
use half::{bf16, f16};

fn sets() -> impl Iterator<Item = KernelSet> {
    Isa::supported().filter_map(KernelSet::new)
}

/// Numbers around every f16 and bf16, those halfway between, and odd bits.
fn numbers() -> Vec<f32> {
    let near = |bits: u32| [-2, -1, 0, 1, 2].map(|i| f32::from_bits(bits.wrapping_add_signed(i)));
    let narrow = (0..=u16::MAX).step_by(7);
    let halves = narrow.clone().flat_map(|i| [0, 0x1000].map(|half| f16::from_bits(i).to_f32().to_bits() | half));
    let brains = narrow.flat_map(|i| [0, 0x8000].map(|half| u32::from(i) << 16 | half));
    let tiny = (0..64).map(|i| (i as f32 * f32::from_bits(0x3280_0000)).to_bits());
    let odd = (0..20_000u32).map(|i| i.wrapping_mul(0x9E37_79B9));
    let mut all: Vec<f32> = halves.chain(brains).chain(tiny).chain(odd).flat_map(near).collect();
    all.truncate(all.len() / LANES * LANES);
    all
}

struct Narrow<'a, C>(&'a [f32], &'a mut [C]);

impl<C: Cell> Kernel for Narrow<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.0.chunks_exact(LANES).zip(self.1.chunks_exact_mut(LANES)) {
            // SAFETY: both have sixteen elements.
            unsafe { C::store(s, out.as_mut_ptr(), s.load(x.as_ptr())) };
        }
    }
}

#[test]
fn stores_round_as_numbers_do() {
    let numbers = numbers();
    for set in sets() {
        let mut brains = vec![bf16::ZERO; numbers.len()];
        let mut halves = vec![f16::ZERO; numbers.len()];
        set.run(Narrow(&numbers, &mut brains));
        set.run(Narrow(&numbers, &mut halves));
        for ((x, brain), half) in numbers.iter().zip(&brains).zip(&halves) {
            assert_eq!(brain.to_bits(), bf16::from_f32(*x).to_bits(), "{x:e} {:x} on {:?}", x.to_bits(), set.isa());
            assert_eq!(half.to_bits(), f16::from_f32(*x).to_bits(), "{x:e} {:x} on {:?}", x.to_bits(), set.isa());
        }
    }
}

/// Comparison bits, floors, and 32 lanes apart and together again.
struct Odds<'a>(&'a [f32; 32], &'a [f32; 16]);

impl Kernel for Odds<'_> {
    type Output = (u32, [[f32; LANES]; 5]);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        // SAFETY: 32 and sixteen elements.
        let [low, high, other] =
            unsafe { [self.0.as_ptr(), self.0[LANES..].as_ptr(), self.1.as_ptr()].map(|p| s.load(p)) };
        let (even, odd) = s.unzip(low, high);
        let (again_low, again_high) = s.zip(even, odd);
        let mut lanes = [[0.0; LANES]; 5];
        for (lanes, v) in lanes.iter_mut().zip([even, odd, again_low, again_high, s.floor(other)]) {
            // SAFETY: sixteen elements.
            unsafe { s.store(lanes.as_mut_ptr(), v) };
        }
        (s.gt_mask(low, other), lanes)
    }
}

#[test]
fn lanes_compare_and_move() {
    let pairs: [f32; 32] = std::array::from_fn(|i| if i == 5 { f32::NAN } else { (i * i % 23) as f32 });
    let other: [f32; 16] = std::array::from_fn(|i| match i {
        3 => f32::NAN,
        14 => 4_194_303.5,
        15 => 4_194_304.0,
        i => (i * i % 23) as f32 + (i % 4) as f32 * 0.25,
    });
    for set in sets() {
        let (mask, [even, odd, low, high, floor]) = set.run(Odds(&pairs, &other));
        for i in 0..LANES {
            assert_eq!(mask >> i & 1 == 1, pairs[i] > other[i], "lane {i} on {:?}", set.isa());
            let bits = |v: [f32; 4]| v.map(f32::to_bits);
            let want = bits([pairs[2 * i], pairs[2 * i + 1], pairs[i], pairs[16 + i]]);
            assert_eq!(bits([even[i], odd[i], low[i], high[i]]), want, "lane {i} on {:?}", set.isa());
            assert!(floor[i] == other[i].floor() || other[i].is_nan(), "lane {i} on {:?}", set.isa());
        }
        assert_eq!(mask >> LANES, 0);
    }
}

struct Near<'a>(&'a [f32], &'a mut [f32]);

impl Kernel for Near<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.0.chunks_exact(LANES).zip(self.1.chunks_exact_mut(LANES)) {
            // SAFETY: both have sixteen elements.
            unsafe { s.store(out.as_mut_ptr(), s.round_near_bf16(s.load(x.as_ptr()))) };
        }
    }
}

#[test]
fn numbers_that_are_not_large_round_to_bf16_in_two_steps() {
    let (least, end) = (f32::MIN_POSITIVE, f32::from_bits((127 + 111) << 23));
    let mut numbers = numbers();
    numbers.retain(|x| *x == 0.0 || (least..end).contains(&x.abs()) || x.to_bits() == f32::NAN.to_bits());
    numbers.truncate(numbers.len() / LANES * LANES);
    for set in sets() {
        let mut rounded = vec![0.0; numbers.len()];
        set.run(Near(&numbers, &mut rounded));
        for (x, got) in numbers.iter().zip(&rounded) {
            let want = bf16::from_f32(*x).to_f32();
            let same = if want == 0.0 { *got == 0.0 } else { got.to_bits() == want.to_bits() };
            assert!(same, "{x:e} {:x}: {got:e} on {:?}", x.to_bits(), set.isa());
        }
    }
}

/// 32 bytes as pairs, and two vectors joined to pairs of bf16 and split again.
struct Pairs<'a>(&'a [i8; 32], &'a [f32; 32]);

impl Kernel for Pairs<'_> {
    type Output = [[f32; LANES]; 4];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        // SAFETY: 32 bytes, and twice sixteen numbers.
        let (bytes, first, second) =
            unsafe { (s.load_pairs_i8(self.0.as_ptr()), s.load(self.1.as_ptr()), s.load(self.1[LANES..].as_ptr())) };
        let joined = s.split_pairs(s.join_pairs(first, second));
        let mut lanes = [[0.0; LANES]; 4];
        for (lanes, v) in lanes.iter_mut().zip([bytes.0, bytes.1, joined.0, joined.1]) {
            // SAFETY: sixteen elements.
            unsafe { s.store(lanes.as_mut_ptr(), v) };
        }
        lanes
    }
}

#[test]
fn bytes_widen_and_numbers_become_pairs() {
    let bytes: [i8; 32] = std::array::from_fn(|i| (i as i32 * 37 % 256 - 128) as i8);
    let numbers: Vec<f32> = numbers().into_iter().map(|x| if x.is_nan() { f32::NAN } else { x }).collect();
    for set in sets() {
        for numbers in numbers.as_chunks::<32>().0 {
            let [even, odd, first, second] = set.run(Pairs(&bytes, numbers));
            for i in 0..LANES {
                assert_eq!([even[i], odd[i]], [bytes[2 * i], bytes[2 * i + 1]].map(f32::from), "{:?}", set.isa());
                let want = [numbers[i], numbers[LANES + i]].map(|x| bf16::from_f32(x).to_f32().to_bits());
                assert_eq!([first[i], second[i]].map(f32::to_bits), want, "{:?}", set.isa());
            }
        }
    }
}

/// 32 bytes as pairs of floats of eight bits.
struct Eights<'a>(&'a [u8; 32]);

impl Kernel for Eights<'_> {
    type Output = [[f32; LANES]; 2];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut lanes = [[0.0; LANES]; 2];
        // SAFETY: 32 bytes, and sixteen elements each.
        unsafe {
            let (first, second) = s.load_pairs_f8(self.0.as_ptr());
            s.store(lanes[0].as_mut_ptr(), first);
            s.store(lanes[1].as_mut_ptr(), second);
        }
        lanes
    }
}

struct Caches<'a>(&'a [F8; 32]);

impl Kernel for Caches<'_> {
    type Output = [bf16; 32];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut cells = [bf16::ZERO; 32];
        // SAFETY: 32 elements each.
        unsafe { s.store(cells.as_mut_ptr().cast(), s.load_f8(self.0.as_ptr())) };
        cells
    }
}

#[test]
fn floats_of_eight_bits_widen() {
    let all: Vec<u8> = (0..=255).filter(|byte| byte & 0x7f != f8::NAN).chain([0, 0x80]).collect();
    for set in sets() {
        for bytes in all.as_chunks::<32>().0 {
            let lanes = set.run(Eights(bytes));
            for (i, &byte) in bytes.iter().enumerate() {
                let (got, want) = (lanes[i % 2][i / 2], f8::decode(byte) / 256.0);
                assert_eq!(got.to_bits(), want.to_bits(), "{byte:#x} on {:?}", set.isa());
            }
        }
    }
}

#[test]
fn floats_of_eight_bits_are_exact_in_bf16() {
    for set in sets() {
        for first in (0..=255u8).step_by(32) {
            let bytes: [F8; 32] = std::array::from_fn(|i| F8(first + i as u8));
            for (byte, found) in bytes.iter().zip(set.run(Caches(&bytes))) {
                let want = anyfleet_tensor::f8::decode(byte.0);
                let same = if want.is_nan() { found.is_nan() } else { found.to_f32().to_bits() == want.to_bits() };
                assert!(same, "{byte:?} is {found}, not {want}, on {:?}", set.isa());
            }
        }
    }
}

struct Tanh<'a>(&'a [f32], &'a mut [f32]);

impl Kernel for Tanh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.0.chunks_exact(LANES).zip(self.1.chunks_exact_mut(LANES)) {
            // SAFETY: both have sixteen elements.
            unsafe { s.store(out.as_mut_ptr(), math::tanh(s, s.load(x.as_ptr()))) };
        }
    }
}

#[test]
fn tanh_is_near_and_the_same_everywhere() {
    let mut numbers = numbers();
    // Around where one formula takes over from the other, and where the result becomes 1.
    numbers.extend((-3200..3200).map(|i| i as f32 * 1e-4 + 0.625));
    numbers.extend((-3200..3200).map(|i| i as f32 * 0.004));
    let mut first: Option<Vec<f32>> = None;
    for set in sets() {
        let mut found = vec![0.0; numbers.len()];
        set.run(Tanh(&numbers, &mut found));
        for (&x, &got) in numbers.iter().zip(&found) {
            let want = f64::from(x).tanh();
            let unit = f64::from(f32::EPSILON) * want.abs() + f64::from(f32::MIN_POSITIVE);
            let near = (f64::from(got) - want).abs() <= 3.0 * unit;
            assert!(near || x.is_nan() && got.is_nan(), "tanh({x:e}) is {got:e}, not {want:e} on {:?}", set.isa());
        }
        let same = |all: &Vec<f32>| {
            all.iter().zip(&found).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
        };
        assert!(first.as_ref().is_none_or(same), "{:?} has other bits", set.isa());
        first.get_or_insert(found);
    }
}
