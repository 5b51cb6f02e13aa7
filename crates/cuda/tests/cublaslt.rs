//! Products by cuBLASLt, where there is no GPU: on libraries that do what CUDA's do (`fake_driver`).
#![cfg(all(target_os = "linux", not(feature = "prebuilt")))]
#[macro_use]
mod fake_driver;
#[path = "fake_driver/values.rs"]
mod values;

use anyfleet_cuda::{CudaBackend, CudaOptions, CudaWeight};
use anyfleet_tensor::ops::Linear;
use anyfleet_tensor::{Backend, DType, Encoder, Gemm, HostPart, HostWeight, Live, Result, Tensor, WeightFormat};
use fake_driver::{Fake, on_fake};
use libloading::Library;
use values::{filled, header, numbers, read, set_tokens};

/// `out = x * weight^T + out`, of `rows` rows of capacity, in bf16.
struct Multiplied {
    out: Tensor<CudaBackend>,
    x: Tensor<CudaBackend>,
    weight: CudaWeight,
}

impl Multiplied {
    const N: usize = 40;
    const K: usize = 70;

    fn new(device: &CudaBackend, rows: usize) -> Result<Multiplied> {
        let (n, k) = (Self::N, Self::K);
        let values = numbers(4, n * k);
        let parts = vec![HostPart { dtype: DType::F32, rows: n, bytes: bytemuck::cast_slice(&values), scales: None }];
        let store = WeightFormat::Float(DType::BF16);
        Ok(Multiplied {
            out: filled(device, &[rows, n], &numbers(6, rows * n))?,
            x: filled(device, &[rows, k], &numbers(5, rows * k))?,
            weight: device.load(HostWeight { name: "w".into(), stack: 1, cols: k, parts, store, gated: false })?,
        })
    }

    fn encode(&self, encoder: &mut Encoder<'_, CudaBackend>, live: Live) {
        let Multiplied { out, x, weight } = self;
        encoder.linear(Linear { out, x, weight, bias: None, residual: Some(out), live });
    }

    /// What the device computes, as bits.
    fn bits(&self, device: &CudaBackend) -> Result<Vec<u32>> {
        device.run(|encoder| self.encode(encoder, Live::All))?;
        Ok(read(device, &self.out)?.into_iter().map(f32::to_bits).collect())
    }
}

fn fast() -> CudaOptions {
    CudaOptions { gemm: Gemm::Fast, ..Default::default() }
}

/// What is said where there is no library that products may be left to.
fn refused(expected: &str) {
    let missing = CudaBackend::missing_for_fast(&fast()).unwrap().expect("something is missing");
    assert!(missing.contains(expected) && missing.lines().count() == 1, "{missing}");
    let error = CudaBackend::new(&fast()).err().unwrap().to_string();
    assert_eq!(error, format!("cuda:0 Fake H200 (CUDA 12.8): there is no fast gemm: {missing}"));
    // Nothing else needs it.
    let device = CudaBackend::new(&CudaOptions::default()).unwrap();
    assert!(device.caps().invariant && !device.caps().numerics.contains("fast"));
    Multiplied::new(&device, 70).unwrap().bits(&device).unwrap();
}

/// Objects of cuBLASLt that were not destroyed.
fn library_objects() -> i32 {
    let file = std::env::var("ANYFLEET_CUBLASLT").unwrap();
    // SAFETY: libcublasLt.cpp defines it so.
    unsafe { Library::new(file).unwrap().get::<unsafe extern "C" fn() -> i32>(b"anyfleet_fake_objects").unwrap()() }
}

on_fake! {
    fn an_absent_library_of_products_is_a_line(ANYFLEET_CUBLASLT = "/nowhere/libcublasLt.so.12") {
        refused("there is no libcublasLt.so.12 (/nowhere/libcublasLt.so.12: ");
    }

    fn a_driver_of_cuda_13_takes_its_library(FAKE_CUDA_VERSION = "13000", ANYFLEET_CUBLASLT = "/nowhere/it") {
        let missing = CudaBackend::missing_for_fast(&fast()).unwrap().unwrap();
        assert!(missing.starts_with("there is no libcublasLt.so.13 or libcublasLt.so.12 ("), "{missing}");
    }

    fn an_old_library_of_products_is_a_line(FAKE_CUBLASLT_VERSION = "111103") {
        refused("is cuBLASLt 11.11.3, older than 12");
    }

    fn a_library_that_does_not_start_says_why(FAKE_CUDA_FAIL = "cublasLtCreate:1:1,cublasLtCreate:1:1") {
        refused("cuBLASLt 12.8.4 fails: the library was not initialized (status 1)");
    }

    fn products_of_the_library_have_the_bits_of_the_emulation() {
        assert_eq!(CudaBackend::missing_for_fast(&fast()).unwrap(), None);
        let (device, fake) = (CudaBackend::new(&fast()).unwrap(), Fake::new());
        assert_eq!(device.caps().numerics, "cuda-2 sm_90 fast cuBLASLt 12.8.4");
        let emulated = CudaBackend::emulated_with(&fast()).unwrap();
        for rows in [64, 65, 200] {
            let before = fake.calls("product");
            let [one, other] =
                [&device, &emulated].map(|device| Multiplied::new(device, rows).unwrap().bits(device).unwrap());
            assert_eq!(one, other, "{rows} rows");
            // One to begin with, which nobody sees.
            assert_eq!(fake.calls("product") - before, 2 * u64::from(rows > 64));
        }
        drop(device);
        assert_eq!(library_objects(), 0);
    }

    fn plans_with_products_of_the_library_follow_the_live_count() {
        let (device, fake) = (CudaBackend::new(&fast()).unwrap(), Fake::new());
        let (rows, n) = (80, Multiplied::N);
        let multiplied = Multiplied::new(&device, rows).unwrap();
        let header = header(&device).unwrap();
        let plan = device.record(|encoder| {
            encoder.header(&header);
            multiplied.encode(encoder, Live::Tokens);
        }).unwrap();
        let blank = numbers(9, rows * n);
        let full = {
            device.write(&multiplied.out, bytemuck::cast_slice(&blank)).unwrap();
            multiplied.bits(&device).unwrap()
        };
        let searches = fake.calls("cublasLtMatmulAlgoGetHeuristic");
        for live in [80, 3, 0, 66] {
            device.write(&multiplied.out, bytemuck::cast_slice(&blank)).unwrap();
            set_tokens(&device, &header, live).unwrap();
            device.replay(&plan).unwrap();
            let (out, end) = (read(&device, &multiplied.out).unwrap(), live as usize * n);
            assert!(out[..end].iter().map(|v| v.to_bits()).eq(full[..end].iter().copied()), "{live} rows");
            assert_eq!(out[end..], blank[end..], "{live} rows: the others stay");
        }
        assert_eq!(fake.calls("cublasLtMatmulAlgoGetHeuristic"), searches, "a plan has its way");
        // The plan holds what it needs, the library among it.
        drop(device);
        assert!(library_objects() > 0);
        drop((plan, multiplied, header));
        assert_eq!(library_objects(), 0);
    }

    fn products_of_one_shape_have_one_way() {
        let (device, fake) = (CudaBackend::new(&fast()).unwrap(), Fake::new());
        let calls = || ["cublasLtMatmulAlgoGetHeuristic", "cublasLtMatmul"].map(|name| fake.calls(name));
        // Each is computed once to begin with.
        for (rows, found) in [(70, [1, 3]), (70, [1, 5]), (90, [2, 8]), (70, [2, 10])] {
            let multiplied = Multiplied::new(&device, rows).unwrap();
            let plans = [0, 1].map(|_| device.record(|encoder| multiplied.encode(encoder, Live::All)).unwrap());
            plans.iter().for_each(|plan| device.replay(plan).unwrap());
            assert_eq!(calls(), found, "{rows} rows");
        }
    }

    fn a_product_that_cannot_be_had_is_a_line(FAKE_CUBLASLT_WAYS = "0") {
        let device = CudaBackend::new(&fast()).unwrap();
        let error = Multiplied::new(&device, 70).unwrap().bits(&device).unwrap_err().to_string();
        assert!(error.contains("(status 15)") && error.contains("--gemm invariant"), "{error}");
        assert_eq!(error.lines().count(), 1);
        Multiplied::new(&device, 60).unwrap().bits(&device).unwrap();
        drop(device);
        assert_eq!(library_objects(), 0);
    }

    fn each_call_of_the_library_may_fail() {
        let fake = Fake::new();
        let calls = [
            "cublasLtMatmulDescCreate",
            "cublasLtMatrixLayoutCreate",
            "cublasLtMatmulPreferenceCreate",
            "cublasLtMatmulDescSetAttribute",
            "cublasLtMatmulPreferenceSetAttribute",
            "cublasLtMatmulAlgoGetHeuristic",
            "cublasLtMatmul",
        ];
        for call in calls {
            let device = CudaBackend::new(&fast()).unwrap();
            let multiplied = Multiplied::new(&device, 70).unwrap();
            fake.fail(&format!("{call}:1:13"));
            let error = multiplied.bits(&device).unwrap_err().to_string();
            assert!(error.contains("the function failed to launch on the GPU (status 13)"), "{call}: {error}");
            multiplied.bits(&device).unwrap();
            drop((multiplied, device));
            assert_eq!(library_objects(), 0, "{call}");
        }
    }
}
