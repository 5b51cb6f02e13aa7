//! Attention over latents: a token that is not a number is one to those alone who see it.
#![cfg(feature = "emulate")]
mod common;

use anyfleet_cuda::CudaBackend;
use anyfleet_tensor::ops::LatentAttention;
use anyfleet_tensor::{Backend, DType, Live, Readback, SeqMeta, Tensor, f8};
use common::devices;
use half::bf16;

const HEADS: usize = 3;
/// Of the last tokens of the sequence; all of a tile.
const ROWS: usize = 5;
/// More than a chunk.
const CONTEXT: usize = 70;
const PAGE: usize = 16;

/// Numbers that E4M3 holds, and look random.
fn numbers(seed: usize, count: usize) -> Vec<f32> {
    let byte = |i: usize| (((seed << 20) + i).wrapping_mul(2_654_435_761) >> 13) as u8;
    // Magnitudes up to 1.875.
    (0..count).map(|i| f8::decode(byte(i) & 0xbf)).collect()
}

/// Bits of every row's outputs with these tokens in the cache.
fn attend(device: &CudaBackend, kv: DType, tokens: &[f32], (size, rank): (usize, usize)) -> Vec<Vec<u32>> {
    let pages = CONTEXT.div_ceil(PAGE);
    let cells: Vec<u8> = match kv {
        DType::F8 => tokens.iter().map(|&v| f8::encode(v)).collect(),
        _ => tokens.iter().flat_map(|&v| bf16::from_f32(v).to_bits().to_le_bytes()).collect(),
    };
    let tensor = |dtype, shape: &[usize]| Tensor::new(device, dtype, shape).unwrap();
    let (cache, seqs, table) =
        (tensor(kv, &[pages, 1, PAGE, size]), tensor(DType::U32, &[1, 8]), tensor(DType::U32, &[pages]));
    let (q, out) = (tensor(DType::F32, &[ROWS, HEADS * size]), tensor(DType::F32, &[ROWS, HEADS * rank]));
    // Pages in order; what lies after the last token is zero.
    let held = [cells, vec![0; (pages * PAGE - CONTEXT) * size * kv.size()]].concat();
    device.write(&cache, &held).unwrap();
    let seq = SeqMeta { rows: ROWS as u32, context_len: CONTEXT as u32, ..SeqMeta::default() };
    device.write(&seqs, bytemuck::bytes_of(&seq)).unwrap();
    device.write(&table, bytemuck::cast_slice(&(0..pages as u32).collect::<Vec<_>>())).unwrap();
    device.write(&q, bytemuck::cast_slice(&numbers(1, ROWS * HEADS * size))).unwrap();
    let (scale, longest, live) = (0.05, CONTEXT, Live::All);
    let attention =
        LatentAttention { out: &out, q: &q, cache: &cache, seqs: &seqs, table: &table, scale, longest, live };
    device.run(|encoder| encoder.latent_attention(attention)).unwrap();
    let mut got = vec![0u32; ROWS * HEADS * rank];
    device.read(&out).unwrap().wait(bytemuck::cast_slice_mut(&mut got)).unwrap();
    got.chunks(HEADS * rank).map(<[u32]>::to_vec).collect()
}

#[test]
fn what_is_not_a_number_stays_with_those_who_see_it() {
    // Heads that are copied in whole steps, and that are not.
    for (device, sizes) in devices().iter().flat_map(|device| [(576, 512), (30, 20)].map(|sizes| (device, sizes))) {
        let tokens = numbers(2, CONTEXT * sizes.0);
        // A token that the last row sees, and one that the last three do.
        for (odd, untouched) in [(CONTEXT - 1, ROWS - 1), (CONTEXT - 3, ROWS - 3)] {
            let mut spoilt = tokens.clone();
            spoilt[odd * sizes.0 + 7] = f32::NAN;
            let [wide, narrow] = [DType::BF16, DType::F8].map(|kv| {
                let (whole, spoilt) = (attend(device, kv, &tokens, sizes), attend(device, kv, &spoilt, sizes));
                assert_eq!(spoilt[..untouched], whole[..untouched], "{kv}, {sizes:?}");
                let odd = |row: &Vec<u32>| row.iter().any(|&bits| f32::from_bits(bits).is_nan());
                assert!(spoilt[untouched..].iter().all(odd) && !whole.iter().any(odd), "{kv}, {sizes:?}");
                (whole, spoilt[..untouched].to_vec())
            });
            assert_eq!(wide, narrow, "{sizes:?}");
        }
    }
}
