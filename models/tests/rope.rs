//! Rotary frequencies and tables against transformers.
use anyfleet_models::{RopeScaling, RopeSpec, rope_inv_freq, rope_table};

/// Values of `LlamaRotaryEmbedding(LlamaConfig(head_dim=.., rope_parameters=..))` in transformers 5.23
/// with torch 2.15 on the CPU.
struct Reference {
    rope: RopeSpec,
    /// `attention_scaling`.
    factor: f32,
    /// Index into `inv_freq` and its bits as f32.
    frequencies: &'static [(usize, u32)],
    /// Position, frequency index, and the cosine and sine that `forward` returns in f32.
    rows: &'static [(usize, usize, f32, f32)],
}

fn rope(rotary_dim: usize, theta: f64, scaling: RopeScaling) -> RopeSpec {
    RopeSpec { theta, rotary_dim, interleaved: false, scaling }
}

fn references() -> Vec<Reference> {
    vec![
        Reference {
            rope: rope(80, 1e4, RopeScaling::None),
            factor: 1.0,
            frequencies: &[(0, 0x3f80_0000), (1, 0x3f4b_5918), (10, 0x3dcc_cccd), (26, 0x3b24_9e78), (39, 0x3904_0204)],
            rows: &[
                (1, 20, 0.999_95, 0.009_999_833),
                (1000, 1, -0.880_084_93, 0.474_816_32),
                (100_003, 0, 0.984_314_86, -0.176_420_85),
                (100_003, 1, -0.999_459_56, -0.032_873_057),
                (100_003, 20, 0.537_350_1, 0.843_359_23),
            ],
        },
        Reference {
            rope: rope(64, 1e6, RopeScaling::None),
            factor: 1.0,
            frequencies: &[(1, 0x3f26_3de0), (8, 0x3d01_86e3), (21, 0x38f2_2ce2), (31, 0x35ce_af79)],
            rows: &[(1000, 16, 0.540_302_34, 0.841_470_96), (100_003, 31, 0.988_165_86, 0.153_389_32)],
        },
        Reference {
            rope: rope(64, 1e4, RopeScaling::Linear { factor: 4.0 }),
            factor: 1.0,
            frequencies: &[(0, 0x3e80_0000), (1, 0x3e3f_f911), (16, 0x3b23_d70a), (31, 0x380b_d472)],
            rows: &[(1000, 0, 0.240_988_3, -0.970_528), (100_003, 31, -0.981_565_1, -0.191_127_94)],
        },
        Reference {
            rope: rope(
                128,
                5e5,
                RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_position_embeddings: 8192,
                },
            ),
            factor: 1.0,
            frequencies: &[
                (1, 0x3f50_8ac1),
                (21, 0x3c5d_06ec),
                (32, 0x3a09_95d2),
                (42, 0x37be_d4f4),
                (48, 0x36df_10c4),
                (63, 0x34a4_c2ff),
            ],
            rows: &[(1000, 32, 0.865_401_1, 0.501_079_74), (100_003, 63, 0.999_529_06, 0.030_685_363)],
        },
        Reference {
            rope: rope(
                128,
                1e6,
                RopeScaling::Yarn {
                    factor: 4.0,
                    beta_fast: 32.0,
                    beta_slow: 1.0,
                    attention_factor: 1.138_629_436_111_989,
                    original_max_position_embeddings: 32_768,
                    truncate: true,
                },
            ),
            factor: 1.138_629_4,
            frequencies: &[
                (1, 0x3f4e_4bad),
                (21, 0x3c30_1052),
                (32, 0x3a1e_0eb2),
                (42, 0x37f2_2ce2),
                (63, 0x34a6_8e4c),
            ],
            rows: &[(1, 0, 0.615_204_16, 0.958_123_6), (1000, 32, 0.937_856_44, 0.645_679_7)],
        },
        Reference {
            rope: rope(
                64,
                150_000.0,
                RopeScaling::Yarn {
                    factor: 32.0,
                    beta_fast: 16.0,
                    beta_slow: 2.0,
                    attention_factor: 1.125_573_317_468_465_2,
                    original_max_position_embeddings: 4096,
                    truncate: false,
                },
            ),
            factor: 1.125_573_3,
            frequencies: &[(1, 0x3f30_6535), (8, 0x3d50_2194), (10, 0x3cc4_0cf0), (16, 0x38a9_3696), (31, 0x34a2_52d3)],
            rows: &[(1000, 1, -0.574_130_65, -0.968_137), (100_003, 16, -0.240_111_44, 1.099_664_3)],
        },
    ]
}

#[test]
fn frequencies_match() {
    for Reference { rope, factor, frequencies, .. } in references() {
        let (got, got_factor) = rope_inv_freq(&rope);
        assert_eq!((got.len(), got_factor), (rope.rotary_dim / 2, factor), "{rope:?}");
        for &(i, bits) in frequencies {
            // torch's powf is not correctly rounded: one unit in the last place is allowed.
            assert!(got[i].to_bits().abs_diff(bits) <= 1, "{rope:?}: {i}: {} {}", got[i], f32::from_bits(bits));
        }
    }
}

#[test]
fn tables_match() {
    for Reference { rope, rows, .. } in references() {
        let last = rows.iter().map(|r| r.0).max().unwrap();
        let (r, table) = (rope.rotary_dim, rope_table(&rope, last + 1));
        assert_eq!(table.len(), (last + 1) * r);
        for &(position, i, cos, sin) in rows {
            let row = &table[position * r..][..r];
            let error = (row[i] - cos).abs().max((row[r / 2 + i] - sin).abs());
            // Where the reference's frequency is one unit off, the angle is too, times the position.
            let tolerance = 2e-7 + position as f32 * f32::EPSILON * rope_inv_freq(&rope).0[i] * 0.5;
            assert!(error <= tolerance, "{rope:?}: row {position}, {i}: {error}");
        }
    }
}

#[test]
fn tables_of_no_positions() {
    assert!(rope_table(&rope(64, 1e4, RopeScaling::None), 0).is_empty());
}
