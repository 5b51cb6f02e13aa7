//! The operation against its naive twin, and what caches keep of odd heads.
use crate::ops::testing::*;
use anyfleet_tensor::ops::{KvScales, QkNorm, Rope, RopeKv};
use anyfleet_tensor::{Backend, DType, Live, Tensor, quant};

struct Shape {
    heads: usize,
    groups: usize,
    size: usize,
    rotary: usize,
    page_size: usize,
    interleaved: bool,
    norm: bool,
}

fn naive_head(x: &[f32], weight: Option<&[f32]>, table: &[f32], interleaved: bool) -> Vec<f32> {
    let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
    let normed: Vec<f64> = x
        .iter()
        .enumerate()
        .map(|(i, &v)| f64::from(v) * weight.map_or(1.0, |w| f64::from(w[i]) / (mean + 1e-6).sqrt()))
        .collect();
    let mut out = normed.clone();
    let half = table.len() / 2;
    for i in 0..half {
        let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
        let (cos, sin) = (f64::from(table[i]), f64::from(table[half + i]));
        out[a] = normed[a] * cos - normed[b] * sin;
        out[b] = normed[b] * cos + normed[a] * sin;
    }
    out.into_iter().map(|v| v as f32).collect()
}

/// The same in f32, every operation in the order all kernel sets have.
fn exact_head(x: &[f32], norm: Option<&[f32]>, table: &[f32], interleaved: bool) -> Vec<f32> {
    let mut lanes = [0.0f32; 16];
    x.iter().enumerate().for_each(|(i, v)| lanes[i % 16] = v.mul_add(*v, lanes[i % 16]));
    for width in [8, 4, 2, 1] {
        (0..width).for_each(|i| lanes[i] += lanes[i + width]);
    }
    let scale = 1.0 / (lanes[0] / x.len() as f32 + 1e-6).sqrt();
    let normed: Vec<f32> = (0..x.len()).map(|i| norm.map_or(x[i], |w| x[i] * scale * w[i])).collect();
    let mut out = normed.clone();
    let half = table.len() / 2;
    for i in 0..half {
        let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
        let (cos, sin) = (table[i], table[half + i]);
        out[a] = normed[a] * cos - normed[b] * sin;
        out[b] = normed[b] * cos + normed[a] * sin;
    }
    out
}

#[test]
fn agrees_with_the_naive_twin() {
    let shapes = [
        Shape { heads: 4, groups: 2, size: 8, rotary: 8, page_size: 4, interleaved: false, norm: true },
        Shape { heads: 3, groups: 3, size: 80, rotary: 32, page_size: 1, interleaved: true, norm: false },
        Shape { heads: 6, groups: 1, size: 18, rotary: 18, page_size: 5, interleaved: false, norm: false },
        Shape { heads: 2, groups: 1, size: 7, rotary: 0, page_size: 3, interleaved: false, norm: true },
        Shape { heads: 2, groups: 2, size: 128, rotary: 128, page_size: 4, interleaved: false, norm: true },
        Shape { heads: 1, groups: 1, size: 99, rotary: 54, page_size: 2, interleaved: true, norm: true },
        Shape { heads: 2, groups: 1, size: 20, rotary: 12, page_size: 2, interleaved: true, norm: true },
    ];
    for shape in &shapes {
        for kv in CACHES {
            same_bits(|device| check(device, shape, kv));
        }
    }
}

fn check(device: &crate::CpuBackend, shape: &Shape, kv: DType) -> Vec<f32> {
    let &Shape { heads, groups, size, rotary, page_size, interleaved, norm } = shape;
    let (rows, pages, width) = (4, 6, (heads + 2 * groups) * size);
    let (source, table) = (random(1, rows * width), random(2, 9 * rotary));
    let (q_weight, k_weight) = (random(3, size), random(4, size));
    let positions = [3u32, 0, 8, 7];
    let slots = [(4 * page_size) as u32, u32::MAX, (2 * page_size - 1) as u32, 0];
    let q = columns_of(device, &vec![POISON; rows * heads * size], rows, heads * size);
    let cache = || {
        let cache = Tensor::new(device, kv, &[pages, groups, page_size, size]).unwrap();
        device.write(&cache, &vec![0x42; cache.bytes()]).unwrap();
        cache
    };
    let (k_cache, v_cache) = (cache(), cache());
    let scales = [POISON; 2].map(|x| tensor(device, &vec![x; pages * groups * page_size], &[pages, groups, page_size]));
    let untouched = read_as_f32(device, &k_cache)[0];
    let tensors = (
        columns_of(device, &source, rows, width),
        tensor(device, &table, &[9, rotary]),
        tensor(device, &q_weight, &[size]),
        tensor(device, &k_weight, &[size]),
    );
    bind(device, 3, |enc| {
        enc.rope_kv(RopeKv {
            q: &q,
            k_cache: &k_cache,
            v_cache: &v_cache,
            scales: kv.is_scaled().then_some(KvScales { k: &scales[0], v: &scales[1] }),
            qkv: &tensors.0,
            positions: &tensor_u32(device, &positions, &[rows]),
            slots: &tensor_u32(device, &slots, &[rows]),
            rope: Some(Rope { table: &tensors.1, interleaved }),
            qk_norm: norm.then_some(QkNorm { q: &tensors.2, k: &tensors.3, eps: 1e-6 }),
            live: Live::Tokens,
        })
    });
    let (q, k, v) = (read_rows(device, &q, rows), read_as_f32(device, &k_cache), read_as_f32(device, &v_cache));
    let [k_scale, v_scale] = scales.map(|scale| read(device, &scale));
    // What a cache keeps of a head: its elements as they are read back, without their scale, and that.
    let kept = |x: &[f32]| {
        let mut bytes = vec![0; size];
        match kv.is_scaled() {
            true => {
                let scale = quant::kv_head(x, &mut bytes);
                (bytes.into_iter().map(f32::from).collect(), scale)
            }
            false => (x.iter().map(|&x| round(x, kv)).collect::<Vec<f32>>(), POISON),
        }
    };
    let mut written = 0;
    for row in 0..3 {
        let angles = &table[positions[row] as usize * rotary..][..rotary];
        let heads_of_row: Vec<&[f32]> = source[row * width..][..width].chunks(size).collect();
        for h in 0..heads {
            let want = naive_head(heads_of_row[h], norm.then_some(&q_weight), angles, interleaved);
            close(&q[(row * heads + h) * size..][..size], &want, 1e-6);
            let exact = exact_head(heads_of_row[h], norm.then_some(&q_weight), angles, interleaved);
            assert_eq!(q[(row * heads + h) * size..][..size], exact);
        }
        for g in 0..groups {
            let (page, offset) = (slots[row] as usize / page_size, slots[row] as usize % page_size);
            if slots[row] == u32::MAX {
                continue;
            }
            let at = ((page * groups + g) * page_size + offset) * size;
            let want = naive_head(heads_of_row[heads + g], norm.then_some(&k_weight), angles, interleaved);
            if !kv.is_scaled() {
                let step = match kv {
                    DType::F32 => 1e-6,
                    DType::F8 => 1.0 / 16.0,
                    _ => 4e-3,
                };
                close(&k[at..][..size], &want, step);
            }
            let exact = exact_head(heads_of_row[heads + g], norm.then_some(&k_weight), angles, interleaved);
            assert_eq!((k[at..][..size].to_vec(), k_scale[at / size]), kept(&exact));
            assert_eq!((v[at..][..size].to_vec(), v_scale[at / size]), kept(heads_of_row[heads + groups + g]));
            written += v[at..][..size].iter().filter(|&&x| x != untouched).count();
        }
    }
    assert!(q[3 * heads * size..].iter().all(|&x| x == POISON));
    assert_eq!(v.iter().filter(|&&x| x != untouched).count(), written);
    [q, k, v, k_scale, v_scale].concat()
}

/// A cache of eight-bit floats holds the largest for what is larger, and NaN for NaN alone.
#[test]
fn eight_bits_saturate() {
    let head = [500.0, -1e30, f32::INFINITY, f32::NAN, 0.001, -0.0, 448.0, 0.014];
    same_bits(|device| {
        let cache = || Tensor::new(device, DType::F8, &[1, 1, 1, head.len()]).unwrap();
        let (k_cache, v_cache) = (cache(), cache());
        bind(device, 1, |enc| {
            enc.rope_kv(RopeKv {
                q: &tensor(device, &head, &[1, head.len()]),
                k_cache: &k_cache,
                v_cache: &v_cache,
                scales: None,
                qkv: &tensor(device, &[head; 3].concat(), &[1, 3 * head.len()]),
                positions: &tensor_u32(device, &[0], &[1]),
                slots: &tensor_u32(device, &[0], &[1]),
                rope: None,
                qk_norm: None,
                live: Live::Tokens,
            })
        });
        let found = [read_as_f32(device, &k_cache), read_as_f32(device, &v_cache)].concat();
        for (x, found) in head.iter().cycle().zip(&found) {
            assert_eq!(found.to_bits(), round(*x, DType::F8).to_bits(), "{x}");
        }
        assert_eq!(
            found[..4].iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
            [448.0, -448.0, 448.0, f32::NAN].map(f32::to_bits)
        );
        found
    });
}

/// A cache of bytes has no number for a head that is not finite, zero or close to it.
#[test]
fn heads_without_a_scale() {
    let (size, width) = (37, 5 * 37);
    let mut source = random(1, 3 * width);
    source[2 * size + 36] = f32::INFINITY;
    source[4 * size + 3] = f32::NAN;
    source[width + 2 * size..width + 3 * size].fill(0.0);
    source[width + 4 * size..][..size].fill(-1e-44);
    same_bits(|device| {
        let cache = || Tensor::new(device, DType::I8, &[1, 2, 3, size]).unwrap();
        let (k_cache, v_cache) = (cache(), cache());
        let [k, v] = [POISON; 2].map(|x| tensor(device, &[x; 6], &[1, 2, 3]));
        bind(device, 3, |enc| {
            enc.rope_kv(RopeKv {
                q: &tensor(device, &vec![POISON; 3 * size], &[3, size]),
                k_cache: &k_cache,
                v_cache: &v_cache,
                scales: Some(KvScales { k: &k, v: &v }),
                qkv: &tensor(device, &source, &[3, width]),
                positions: &tensor_u32(device, &[0, 1, 2], &[3]),
                slots: &tensor_u32(device, &[0, 1, 2], &[3]),
                rope: None,
                qk_norm: None,
                live: Live::Tokens,
            })
        });
        let mut found = Vec::new();
        for (cells, scales, first) in [(&k_cache, &k, 1), (&v_cache, &v, 3)] {
            let (cells, scales) = (read_as_f32(device, cells), read(device, scales));
            for (token, group) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)] {
                let mut bytes = vec![0; size];
                let head = &source[token * width + (first + group) * size..][..size];
                let (want, at) = (quant::kv_head(head, &mut bytes), group * 3 + token);
                assert_eq!(scales[at].to_bits(), want.to_bits(), "token {token}, head {group}");
                assert!(cells[at * size..][..size].iter().zip(bytes).all(|(&cell, byte)| cell == f32::from(byte)));
            }
            found.extend([cells, scales].concat());
        }
        assert_eq!(found.iter().filter(|x| x.is_nan()).count(), 2);
        found
    });
}
