//! The rules of `attention`'s options.
use anyfleet_tensor::null::NullBackend;
use anyfleet_tensor::ops::Attention;
use anyfleet_tensor::{Backend, DType, Live, Tensor};

fn record(softcap: Option<f32>, sinks: Option<(DType, usize)>) -> Result<(), String> {
    let device = NullBackend::default();
    let tensor = |dtype, shape: &[usize]| Tensor::new(&device, dtype, shape).unwrap();
    let (out, q) = (tensor(DType::F32, &[3, 6 * 8]), tensor(DType::F32, &[3, 6 * 8]));
    let cache = [(); 2].map(|()| tensor(DType::BF16, &[4, 2, 16, 8]));
    let (seqs, table) = (tensor(DType::U32, &[1, 8]), tensor(DType::U32, &[4]));
    let sinks = sinks.map(|(dtype, heads)| tensor(dtype, &[heads]));
    let recorded = device.record(|enc| {
        enc.attention(Attention {
            out: &out,
            q: &q,
            k_cache: &cache[0],
            v_cache: &cache[1],
            scales: None,
            seqs: &seqs,
            table: &table,
            scale: 0.5,
            softcap,
            sinks: sinks.as_ref(),
            window: None,
            longest: 64,
            live: Live::All,
        });
    });
    recorded.map(|_| ()).map_err(|e| e.to_string())
}

#[test]
fn caps_are_finite_and_above_0() {
    assert_eq!(record(Some(50.0), None), Ok(()));
    for cap in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = record(Some(cap), None).unwrap_err();
        assert!(error.contains("softcap must be finite and above 0") && !error.contains('\n'), "{error}");
    }
}

#[test]
fn sinks_are_one_f32_for_each_query_head() {
    assert_eq!(record(None, Some((DType::F32, 6))), Ok(()));
    for heads in [1, 2, 5, 12] {
        let error = record(None, Some((DType::F32, heads))).unwrap_err();
        assert!(error.contains("sinks must be [H]") && !error.contains('\n'), "{error}");
    }
    let error = record(None, Some((DType::BF16, 6))).unwrap_err();
    assert!(error.contains("sinks") && error.contains("bf16"), "{error}");
}
