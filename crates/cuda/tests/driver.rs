//! The backend on CUDA's driver, where there is no GPU: on libraries that do what CUDA's do (`fake_driver`).
#![cfg(all(target_os = "linux", not(feature = "prebuilt")))]
#[macro_use]
mod fake_driver;
#[path = "fake_driver/values.rs"]
mod values;

use anyfleet_cuda::{CudaBackend, CudaOptions, CudaPlan, devices};
use anyfleet_tensor::ops::{Linear, Norm};
use anyfleet_tensor::{
    Backend, DType, Encoder, Error, HostPart, HostWeight, Live, Readback, Result, Tensor, WeightFormat,
};
use fake_driver::{Fake, NVRTC, again, compile, fakes, functions, on_fake};
use values::{filled, header, numbers, read, set_tokens, tensor};

/// Launches that are made a graph.
const GRAPH: usize = 8;

/// Bytes that go through page-locked memory at once.
const PIECE: usize = 8 << 20;

fn open() -> Result<CudaBackend> {
    CudaBackend::new(&CudaOptions::default())
}

fn bytes(seed: u32, count: usize) -> Vec<u8> {
    numbers(seed, count).into_iter().map(|x| (x * 127.0) as i8 as u8).collect()
}

/// `out = norm(x)`, weighted.
struct Normed {
    out: Tensor<CudaBackend>,
    x: Tensor<CudaBackend>,
    weight: Tensor<CudaBackend>,
}

impl Normed {
    fn new(device: &CudaBackend, rows: usize, width: usize) -> Result<Normed> {
        Ok(Normed {
            out: tensor(device, &[rows, width])?,
            x: filled(device, &[rows, width], &numbers(1, rows * width))?,
            weight: filled(device, &[width], &numbers(2, width))?,
        })
    }

    fn encode(&self, encoder: &mut Encoder<'_, CudaBackend>, live: Live) {
        let Normed { out, x, weight } = self;
        encoder.norm(Norm { out, x, weight, eps: 1e-6, residual: None, live });
    }

    /// What the device computes of `x`.
    fn of(&self, device: &CudaBackend, x: &[f32]) -> Result<Vec<f32>> {
        device.write(&self.x, bytemuck::cast_slice(x))?;
        device.run(|encoder| self.encode(encoder, Live::All))?;
        read(device, &self.out)
    }
}

/// A product of as many rows as warpgroups compute where they are asked for.
fn product(device: &CudaBackend) -> Result<Vec<f32>> {
    let (rows, n, k) = (70, 40, 96);
    let values = numbers(4, n * k);
    let parts = vec![HostPart { dtype: DType::F32, rows: n, bytes: bytemuck::cast_slice(&values), scales: None }];
    let store = WeightFormat::Float(DType::BF16);
    let weight = &device.load(HostWeight { name: "w".into(), stack: 1, cols: k, parts, store, gated: false })?;
    let (x, out) = (&filled(device, &[rows, k], &numbers(5, rows * k))?, &tensor(device, &[rows, n])?);
    device.run(|enc| enc.linear(Linear { out, x, weight, bias: None, residual: None, live: Live::All }))?;
    read(device, out)
}

fn with_warpgroups() -> CudaOptions {
    CudaOptions { warpgroups: Some(true), ..Default::default() }
}

/// One of everything that the backend does.
fn everything() -> Result<Vec<f32>> {
    let device = CudaBackend::new(&with_warpgroups())?;
    device.copy_seconds(1 << 12, 1)?;
    let normed = Normed::new(&device, 6, 64)?;
    let header = header(&device)?;
    let plan = device.record(|encoder| {
        encoder.header(&header);
        (0..GRAPH).for_each(|_| normed.encode(encoder, Live::Tokens));
    })?;
    device.run(|encoder| normed.encode(encoder, Live::All))?;
    // A readback that nobody waits for.
    device.read(&normed.x)?;
    set_tokens(&device, &header, 3)?;
    device.write(&normed.x, bytemuck::cast_slice(&numbers(3, 6 * 64)))?;
    device.replay(&plan)?;
    Ok([read(&device, &normed.out)?, product(&device)?].concat())
}

// What there is.
on_fake! {
    fn devices_are_listed(FAKE_CUDA_DEVICES = "2", FAKE_CUDA_MEMORY = "123456789") {
        let all = devices().unwrap();
        assert_eq!(all.iter().map(|device| device.index).collect::<Vec<_>>(), [0, 1]);
        for device in &all {
            assert_eq!((&*device.name, &*device.driver), ("Fake H200", "CUDA 12.8"));
            assert_eq!((device.capability, device.processors, device.memory), (90, 132, 123_456_789));
            assert_eq!(device.unusable(), None);
        }
        let device = CudaBackend::new(&CudaOptions { device: Some("1".into()), ..Default::default() }).unwrap();
        let caps = device.caps();
        assert_eq!(caps.device, "cuda:1 Fake H200 (CUDA 12.8)");
        assert_eq!(caps.memory.total, Some(123_456_789));
        assert_eq!(caps.memory.available, Some(123_456_789));
        Normed::new(&device, 2, 64).unwrap().of(&device, &numbers(1, 128)).unwrap();
    }

    fn a_driver_that_is_too_old_is_named(FAKE_CUDA_VERSION = "11080") {
        let line = "NVIDIA's driver is for CUDA 11.8; install one for CUDA 12 or newer";
        assert_eq!(devices().unwrap_err(), line);
        assert_eq!(open().err().unwrap().to_string(), format!("cuda: {line}"));
    }

    fn no_device_is_a_line(FAKE_CUDA_DEVICES = "0") {
        assert_eq!(devices().unwrap_err(), "NVIDIA's driver lists no devices");
    }

    fn a_driver_that_does_not_start_says_why(FAKE_CUDA_FAIL = "cuInit:1:999") {
        assert_eq!(
            devices().unwrap_err(),
            "NVIDIA's driver does not start: unknown error (CUDA_ERROR_UNKNOWN)"
        );
    }

    fn hardware_that_is_too_old_is_named(FAKE_CUDA_CAPABILITY = "75") {
        assert!(devices().unwrap()[0].unusable().is_some());
        let line = "cuda: Fake H200 has compute capability 7.5, and kernels need 8.0 (Ampere) or newer; \
                    try --device wgpu";
        assert_eq!(open().err().unwrap().to_string(), line);
    }

    fn a_stub_of_the_toolkit_is_named(FAKE_CUDA_FAIL = "cuDriverGetVersion:1:34") {
        let error = devices().unwrap_err();
        assert!(error.starts_with("a stub of CUDA's toolkit (/") && error.contains("/libcuda.so) is found"), "{error}");
    }

    fn memory_of_the_system_counts_its_caches(FAKE_CUDA_INTEGRATED = "1", FAKE_CUDA_MEMORY = "50000000") {
        let device = open().unwrap();
        let _taken = device.alloc(30_000_000).unwrap();
        // Of the machine of this test, of which that much is always free; the driver says 20 MB.
        assert_eq!(open().unwrap().caps().memory.available, Some(50_000_000));
    }

    fn weights_take_the_memory_that_is_planned() {
        let device = open().unwrap();
        let free = || open().unwrap().caps().memory.available.unwrap() as usize;
        for (format, stack, n, k) in [(WeightFormat::Q8, 1, 700, 1024), (WeightFormat::Float(DType::BF16), 1, 1024, 1024 + 64),
            (WeightFormat::Q4, 3, 700, 1024), (WeightFormat::F8, 1, 1, 128), (WeightFormat::Float(DType::F32), 1, 256, 1024)]
        {
            let values = numbers(4, stack * n * k);
            let bytes = bytemuck::cast_slice(&values);
            let parts = vec![HostPart { dtype: DType::F32, rows: stack * n, bytes, scales: None }];
            let before = free();
            let weight = HostWeight { name: "w".into(), stack, cols: k, parts, store: format, gated: false };
            let _weight = device.load(weight).unwrap();
            let planned = device.buffer_bytes(stack * device.weight_bytes(n, k, format));
            assert_eq!(before - free(), planned.next_multiple_of(256), "{format} {stack} x {n} x {k}");
        }
        assert_eq!([1, (1 << 20) - 1, 1 << 20, 2 << 20, (2 << 20) + 1].map(|n| device.buffer_bytes(n)),
            [1, (1 << 20) - 1, 2 << 20, 2 << 20, 4 << 20]);
    }

    fn newer_devices_of_a_generation_take_older_code(FAKE_CUDA_CAPABILITY = "88") {
        let device = open().unwrap();
        assert_eq!(device.caps().numerics, "cuda-2 sm_88");
        Normed::new(&device, 2, 64).unwrap().of(&device, &numbers(1, 128)).unwrap();
    }

    fn kernels_say_what_compiled_them() {
        let hash = anyfleet_kernels::cuda::hash();
        assert_eq!(open().unwrap().caps().identity.kernels, format!("{hash} NVRTC 12.8"));
    }

    fn missing_kernels_are_compiled_when_a_device_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let options = CudaOptions { compiled: Some(folder.path().to_owned()), ..Default::default() };
        let files = || {
            let all = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap());
            let mut all: Vec<_> = all.map(|file| (file.file_name(), file.metadata().unwrap().modified().unwrap())).collect();
            all.sort();
            all
        };
        let device = CudaBackend::new(&options).unwrap();
        let first = files();
        assert_eq!(first.len(), anyfleet_kernels::cuda::modules().count(), "all, and nothing else");
        assert!(first.iter().all(|(name, _)| name.to_string_lossy().ends_with("-sm_90a.cubin")));
        Normed::new(&device, 2, 64).unwrap().of(&device, &numbers(1, 128)).unwrap();
        std::fs::write(folder.path().join("norm-sm_90a.cubin"), "damaged").unwrap();
        CudaBackend::new(&options).unwrap();
        let changed: Vec<_> = files().into_iter().zip(first).filter(|(now, before)| now != before).collect();
        assert!(changed.len() == 1 && changed[0].0.0 == "norm-sm_90a.cubin", "{changed:?}");
    }

    fn kernels_that_cannot_be_kept_are_compiled_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let device = CudaBackend::new(&CudaOptions { compiled: Some(file.join("no")), ..Default::default() }).unwrap();
        Normed::new(&device, 2, 64).unwrap().of(&device, &numbers(1, 128)).unwrap();
    }

    fn a_kernel_that_does_not_compile_is_a_line(FAKE_NVRTC_FAIL = "norm") {
        let folder = tempfile::tempdir().unwrap();
        let options = CudaOptions { compiled: Some(folder.path().to_owned()), ..Default::default() };
        let line = "cuda:0 Fake H200 (CUDA 12.8): NVRTC 12.8 does not compile norm for sm_90a (code 6): \
                    norm.cu(1): error: something a line of it";
        assert_eq!(CudaBackend::new(&options).err().unwrap().to_string(), line);
        let device = open().unwrap();
        let error = Normed::new(&device, 2, 64).unwrap().of(&device, &numbers(1, 128)).unwrap_err();
        assert_eq!(error.to_string(), line);
    }

    fn code_of_another_architecture_is_a_line(FAKE_CUDA_CAPABILITY = "87") {
        // The fake compiler knows no such device, and code of no other runs there.
        let device = open().unwrap();
        let normed = Normed::new(&device, 2, 64).unwrap();
        let error = normed.of(&device, &numbers(1, 128)).unwrap_err().to_string();
        assert!(error.contains("not for devices of sm_87") && error.lines().count() == 1, "{error}");
    }
}

#[test]
fn an_absent_or_ancient_driver_is_a_line() {
    const NAME: &str = "an_absent_or_ancient_driver_is_a_line";
    const EXPECTED: &str = "ANYFLEET_TEST_EXPECTED";
    let inside = on_fake(NAME, &[(EXPECTED, "")], || {
        let expected = std::env::var(EXPECTED).unwrap();
        if !expected.is_empty() {
            assert_eq!(devices().unwrap_err(), expected);
            assert_eq!(open().err().unwrap().to_string(), format!("cuda: {expected}"));
        }
    });
    // Inside, or where there is no compiler.
    if inside.is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let ancient = "NVIDIA's driver is too old: it has no cuDriverGetVersion; install one for CUDA 12 or newer";
    // Symbols of a library are hidden here, as they are by the compiler's flags.
    let source = "extern \"C\" __attribute__((visibility(\"default\"))) int cuInit(unsigned) { return 0; }";
    compile(source, &folder.path().join("libcuda.so")).unwrap();
    again(NAME, folder.path(), &[(EXPECTED, ancient)]);
    let system = ["libcuda.so", "libcuda.so.1"].into_iter().any(|name| {
        // SAFETY: the system's driver, if any.
        unsafe { libloading::Library::new(name) }.is_ok()
    });
    if system {
        eprintln!("SKIPPED: the line of an absent driver: this machine has one");
        return;
    }
    let absent = "NVIDIA's driver is not installed: there is no libcuda";
    again(NAME, &folder.path().join("nowhere"), &[(EXPECTED, absent)]);
}

/// A compiler that is there and lacks something is passed over where there is another, and named where there is none.
#[test]
fn a_compiler_without_its_builtins_is_passed_over() {
    const NAME: &str = "a_compiler_without_its_builtins_is_passed_over";
    const EXPECTED: &str = "ANYFLEET_TEST_EXPECTED";
    let inside = on_fake(NAME, &[(EXPECTED, "NVRTC 12.8")], || {
        let device = open().unwrap();
        let outcome = Normed::new(&device, 2, 64).unwrap().of(&device, &numbers(1, 128));
        let said = match &outcome {
            Ok(_) => device.caps().identity.kernels.clone(),
            Err(error) => error.to_string(),
        };
        let expected = std::env::var(EXPECTED).unwrap();
        assert!(said.contains(&expected) && said.lines().count() == 1, "{said}");
    });
    let (Some(_), Some(fakes)) = (inside, fakes()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let paths = format!("{}:{}", folder.path().display(), fakes.join("cuda").display());
    let settings = |expected| [("LD_LIBRARY_PATH", &*paths), ("ANYFLEET_NVRTC", ""), (EXPECTED, expected)];
    compile(&format!("#define WITHOUT_BUILTINS\n{NVRTC}"), &folder.path().join("libnvrtc.so.12")).unwrap();
    // The last candidate, `libnvrtc.so`, is that of the other folder.
    let found = settings("NVRTC 12.8");
    again(NAME, &fakes.join("cuda"), &found).assert_clean();
    // One of CUDA 13 that is not NVRTC at all comes before it, and says less.
    let broken = "failed to open libnvrtc-builtins.so.12.8. Make sure that it is installed correctly";
    std::fs::copy(folder.path().join("libnvrtc.so.12"), folder.path().join("libnvrtc.so")).unwrap();
    again(NAME, &fakes.join("cuda"), &settings(broken)).assert_clean();
}

/// Everything is called, and all of it is known to be there before anything is: cudarc ends the process otherwise.
#[test]
fn all_that_is_listed_is_called() {
    let report = on_fake("all_that_is_listed_is_called", &[], || {
        everything().unwrap();
        // What has failed for good is given back.
        Fake::new().fail("cuLaunchKernel:1:sticky");
        everything().unwrap_err();
    });
    if let Some(report) = report {
        report.assert_clean();
        let never: Vec<_> = functions().filter(|name| report.calls.get(*name).is_none_or(|&n| n == 0)).collect();
        assert!(never.is_empty(), "never called: {never:?}");
        assert!(report.calls["kernel"] > 0 && report.calls["copy"] > 0);
    }
}

// What it computes, and in which order.
on_fake! {
    fn kernels_give_the_bits_of_the_emulation() {
        let (device, emulated) = (open().unwrap(), CudaBackend::emulated().unwrap());
        for (rows, width) in [(1, 8), (7, 64), (33, 1000), (300, 128)] {
            let x = numbers(rows as u32, rows * width);
            let bits = |device| {
                let values = Normed::new(device, rows, width).unwrap().of(device, &x).unwrap();
                values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert_eq!(bits(&device), bits(&emulated), "{rows} x {width}");
        }
        let warpgroups = CudaBackend::new(&with_warpgroups()).unwrap();
        let bits = |device| product(device).unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let [want, got, by_warpgroups] = [&emulated, &device, &warpgroups].map(bits);
        assert!(want == got && want == by_warpgroups);
    }

    fn warpgroups_are_chosen_by_name(ANYFLEET_CUDA = "wgmma", FAKE_CUDA_CAPABILITY = "89") {
        let line = "cuda:0 Fake H200 (CUDA 12.8): wgmma needs compute capability 9.0 (Hopper), and it has 8.9; \
                    use ANYFLEET_CUDA=mma, or nothing";
        assert_eq!(open().err().unwrap().to_string(), line);
    }

    fn large_writes_arrive() {
        let (device, fake) = (open().unwrap(), Fake::new());
        let pinned = fake.calls("cuMemHostAlloc");
        // Sizes around those of a piece, each after one that leaves the piece at another place.
        for (i, size) in [5 * PIECE + 12_345, PIECE, PIECE + 1, PIECE - 1, 3, 2 * PIECE, 1].into_iter().enumerate() {
            let mut data = bytes(i as u32, size);
            let expected = data.clone();
            let buffer = device.alloc(size).unwrap();
            let target = Tensor::from_buffer(buffer, DType::I8, &[size]);
            device.write(&target, &data).unwrap();
            // They may change when the call is over.
            data.fill(0x55);
            let mut out = vec![0; size];
            device.read(&target).unwrap().wait(&mut out).unwrap();
            assert!(out == expected, "{size} bytes");
        }
        let sizes = 4;
        assert!(fake.calls("cuMemHostAlloc") - pinned <= sizes, "memory for reads is used again");
    }

    fn thousands_of_small_writes_arrive() {
        let (device, fake) = (open().unwrap(), Fake::new());
        const COUNT: usize = 20_000;
        let target = Tensor::new(&device, DType::U32, &[COUNT, 7]).unwrap();
        let waits = fake.calls("cuEventSynchronize");
        for i in 0..COUNT {
            // From the last on, so that order and place differ; some are written twice.
            let row = target.narrow(COUNT - 1 - i, 1);
            if i % 3 == 0 {
                device.write(&row, bytemuck::cast_slice(&[u32::MAX; 7])).unwrap();
            }
            device.write(&row, bytemuck::cast_slice(&[i as u32; 7])).unwrap();
        }
        assert!(fake.waiting() > 1000, "writes do not wait for the device");
        // 64 bytes of page-locked memory for each.
        assert!(fake.calls("cuEventSynchronize") - waits <= (64 * COUNT * 4 / 3 / PIECE) as u64 + 1);
        let mut out = vec![0u32; 7 * COUNT];
        device.read(&target).unwrap().wait(bytemuck::cast_slice_mut(&mut out)).unwrap();
        assert!(out.chunks(7).enumerate().all(|(row, words)| *words == [(COUNT - 1 - row) as u32; 7]));
    }

    fn calls_are_done_in_order() {
        let (device, fake) = (open().unwrap(), Fake::new());
        let (rows, width) = (5, 96);
        let normed = Normed::new(&device, rows, width).unwrap();
        let xs: Vec<_> = (0..200).map(|step| numbers(step, rows * width)).collect();
        // One at a time, each waited for.
        let expected: Vec<_> = xs.iter().map(|x| normed.of(&device, x).unwrap()).collect();
        let mut reads = Vec::new();
        for x in &xs {
            device.write(&normed.x, bytemuck::cast_slice(x)).unwrap();
            device.run(|encoder| normed.encode(encoder, Live::All)).unwrap();
            reads.push(device.read(&normed.out).unwrap());
        }
        assert!(fake.waiting() > 200, "nothing of it waits for the device");
        // In another order than they were asked for: none sees what came later.
        let order = (0..200).step_by(2).rev().chain((1..200).step_by(2));
        let mut reads: Vec<_> = reads.into_iter().map(Some).collect();
        for i in order {
            let mut out = vec![0f32; rows * width];
            reads[i].take().unwrap().wait(bytemuck::cast_slice_mut(&mut out)).unwrap();
            assert_eq!(out, expected[i], "step {i}");
        }
    }

    fn plans_follow_the_live_count() {
        let device = open().unwrap();
        let (rows, width) = (9, 64);
        let normed = Normed::new(&device, rows, width).unwrap();
        let out = tensor(&device, &[rows, width]).unwrap();
        let twice = Normed { x: normed.out.clone(), out, weight: normed.weight.clone() };
        let header = header(&device).unwrap();
        // The second needs what the first makes: nodes run in order.
        let record = |times: usize| {
            let plan = device.record(|encoder| {
                encoder.header(&header);
                for _ in 0..times {
                    normed.encode(encoder, Live::Tokens);
                    twice.encode(encoder, Live::Tokens);
                }
            });
            plan.unwrap()
        };
        let (fake, graphs) = (Fake::new(), ["cuGraphInstantiateWithFlags", "cuGraphUpload", "cuGraphLaunch"]);
        let before = graphs.map(|name| fake.calls(name));
        let plans = [record(1), record(GRAPH / 2)];
        let blank = vec![-7f32; rows * width];
        for (step, live) in [9, 1, 0, 4, 9, 2].into_iter().enumerate() {
            let plan = &plans[step % 2];
            let x = numbers(step as u32, rows * width);
            let once = normed.of(&device, &x).unwrap();
            device.write(&twice.x, bytemuck::cast_slice(&once)).unwrap();
            device.run(|encoder| twice.encode(encoder, Live::All)).unwrap();
            let full = read(&device, &twice.out).unwrap();
            device.write(&normed.out, bytemuck::cast_slice(&blank)).unwrap();
            device.write(&twice.out, bytemuck::cast_slice(&blank)).unwrap();
            set_tokens(&device, &header, live).unwrap();
            device.replay(plan).unwrap();
            set_tokens(&device, &header, 9).unwrap();
            let (out, end) = (read(&device, &twice.out).unwrap(), live as usize * width);
            assert_eq!(out[..end], full[..end], "{live} rows");
            assert_eq!(out[end..], blank[end..], "{live} rows: the others stay");
        }
        // A few launches are not worth a graph; what is one is on the device before it is launched.
        let calls: Vec<_> = graphs.iter().zip(before).map(|(name, before)| fake.calls(name) - before).collect();
        assert_eq!(calls, [1, 1, 3]);
    }

    fn what_a_launch_uses_may_be_dropped_at_once() {
        let device = open().unwrap();
        let out = tensor(&device, &[4, 64]).unwrap();
        let x = numbers(5, 4 * 64);
        let expected = Normed::new(&device, 4, 64).unwrap().of(&device, &x).unwrap();
        {
            let normed = Normed { out: out.clone(), ..Normed::new(&device, 4, 64).unwrap() };
            device.write(&normed.x, bytemuck::cast_slice(&x)).unwrap();
            let plan: CudaPlan = device.record(|encoder| normed.encode(encoder, Live::All)).unwrap();
            device.replay(&plan).unwrap();
        }
        assert_eq!(read(&device, &out).unwrap(), expected);
        // Of a read, too.
        let pending = {
            let temporary = filled(&device, &[256], &x).unwrap();
            device.read(&temporary).unwrap()
        };
        drop((device, out));
        let mut values = vec![0f32; 256];
        pending.wait(bytemuck::cast_slice_mut(&mut values)).unwrap();
        assert_eq!(values, x);
    }
}

// Several of them.
on_fake! {
    fn two_backends_share_a_device() {
        let (first, second) = (open().unwrap(), open().unwrap());
        let x = numbers(4, 3 * 64);
        let normed = [&first, &second].map(|device| Normed::new(device, 3, 64).unwrap());
        let results = [normed[0].of(&first, &x).unwrap(), normed[1].of(&second, &x).unwrap()];
        assert_eq!(results[0], results[1]);
        let [gone, normed] = normed;
        drop((first, gone));
        assert_eq!(normed.of(&second, &x).unwrap(), results[1]);
        drop((second, normed));
        // The device is opened anew after everything was released.
        let third = open().unwrap();
        assert_eq!(Normed::new(&third, 3, 64).unwrap().of(&third, &x).unwrap(), results[1]);
    }

    fn a_context_stays_until_its_device_fails() {
        let fake = Fake::new();
        let calls = |name| fake.calls(&format!("cuDevicePrimaryCtx{name}"));
        for _ in 0..3 {
            let device = open().unwrap();
            Normed::new(&device, 2, 64).unwrap().of(&device, &numbers(1, 128)).unwrap();
            drop(device);
            assert_eq!(fake.faults(), 0, "nothing is left in it");
        }
        assert_eq!((calls("Retain"), calls("Release_v2")), (1, 0));
        for code in [700, 702, 714, 719, 214, 220] {
            let (device, retained) = (open().unwrap(), calls("Retain"));
            let other = open().unwrap();
            fake.fail(&format!("cuMemAlloc_v2:1:{code}:sticky"));
            let error = device.alloc(1).err().unwrap().to_string();
            assert!(error.contains("start the program again"), "{code}: {error}");
            drop(device);
            assert!(other.alloc(1).is_err(), "all of the process have it");
            drop(other);
            drop(open().unwrap());
            assert_eq!(calls("Retain"), retained + 1, "after {code}");
        }
        fake.fail("cuMemAlloc_v2:1:1");
        let (device, retained) = (open().unwrap(), calls("Retain"));
        assert!(device.alloc(1).err().unwrap().to_string().contains("build the engine again"));
        drop((device, open().unwrap()));
        assert_eq!(calls("Retain"), retained);
    }

    fn a_context_that_cannot_be_had_is_a_line(FAKE_CUDA_FAIL = "cuDevicePrimaryCtxRetain:1:2") {
        let error = open().err().unwrap().to_string();
        assert!(error.contains("the device cannot be opened: out of memory") && error.lines().count() == 1, "{error}");
        open().unwrap();
    }

    fn threads_share_a_backend() {
        let device = open().unwrap();
        let expected: Vec<_> =
            (0..8).map(|i| Normed::new(&device, 3, 64).unwrap().of(&device, &numbers(i, 3 * 64)).unwrap()).collect();
        std::thread::scope(|scope| {
            for (i, expected) in expected.iter().enumerate() {
                let device = &device;
                scope.spawn(move || {
                    let normed = Normed::new(device, 3, 64).unwrap();
                    for _ in 0..100 {
                        assert_eq!(normed.of(device, &numbers(i as u32, 3 * 64)).unwrap(), *expected);
                    }
                });
            }
        });
        // What was made here is dropped elsewhere.
        std::thread::spawn(move || drop(device)).join().unwrap();
    }

    fn what_is_run_stays_together() {
        // Threads go through the same tensor in between: one's operations are not among another's.
        let device = open().unwrap();
        let between = tensor(&device, &[2, 64]).unwrap();
        std::thread::scope(|scope| {
            for i in 0..4 {
                let (device, between) = (&device, &between);
                scope.spawn(move || {
                    let make = |rows| Normed::new(device, rows, 64).unwrap();
                    let first = Normed { out: between.clone(), ..make(2) };
                    let all = make(40);
                    let parts: Vec<_> = (0..20)
                        .map(|k| {
                            let (x, out, weight) = (between.clone(), all.out.narrow(2 * k, 2), all.weight.clone());
                            Normed { out, x, weight }
                        })
                        .collect();
                    device.write(&first.x, bytemuck::cast_slice(&numbers(10 + i, 128))).unwrap();
                    let encode = |encoder: &mut Encoder<'_, CudaBackend>| {
                        for part in &parts {
                            first.encode(encoder, Live::All);
                            part.encode(encoder, Live::All);
                        }
                    };
                    let plan = device.record(encode).unwrap();
                    for step in 0..60 {
                        if step % 3 == 0 { device.replay(&plan).unwrap() } else { device.run(encode).unwrap() }
                        let out = read(device, &all.out).unwrap();
                        assert!(out.chunks(128).all(|part| part == &out[..128]), "step {step}");
                    }
                });
            }
        });
    }

    fn tasks_of_a_thread_pool_write() {
        // A thread that waits for others to do their part of a write must not begin another write meanwhile.
        const LEN: usize = 5 << 20;
        let device = open().unwrap();
        let (data, all) = (vec![7; LEN], Tensor::new(&device, DType::I8, &[8, LEN]).unwrap());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(8).build().unwrap();
        pool.in_place_scope(|scope| {
            for i in 0..400 {
                let (device, data, target) = (&device, &data, all.narrow(i % 8, 1));
                scope.spawn(move |_| device.write(&target, data).unwrap());
            }
        });
        let mut out = vec![0; 8 * LEN];
        device.read(&all).unwrap().wait(&mut out).unwrap();
        assert!(out.iter().all(|&byte| byte == 7));
    }
}

// What fails.
on_fake! {
    fn memory_that_is_out_is_named(FAKE_CUDA_MEMORY = "100000000") {
        let device = open().unwrap();
        let first = device.alloc(90_000_000).unwrap();
        match device.alloc(20_000_000).err().unwrap() {
            Error::OutOfMemory { device, bytes: 20_000_000, what } => {
                assert_eq!((&*device, &*what), ("cuda:0 Fake H200 (CUDA 12.8)", "a tensor"));
            }
            other => panic!("{other}"),
        }
        drop(first);
        let again = device.alloc(20_000_000).unwrap();
        assert!(device.alloc(usize::MAX).is_err());
        assert!(device.alloc(0).is_ok());
        drop(again);
    }

    fn everything_that_is_made_may_be_out_of_memory() {
        let fake = Fake::new();
        let (expected, calls) = counted(&fake);
        let made = [
            "cuStreamCreate", "cuEventCreate", "cuMemHostAlloc", "cuMemAlloc_v2",
            "cuModuleLoadData", "cuModuleGetFunction", "cuGraphCreate", "cuGraphAddKernelNode_v2",
            "cuGraphInstantiateWithFlags", "cuGraphUpload",
        ];
        for function in made {
            for n in 1..=calls(function) {
                fake.fail(&format!("{function}:{n}:2"));
                let error = everything().err().unwrap_or_else(|| panic!("{function}:{n} does not fail")).to_string();
                assert!(error.contains("out of memory") && error.lines().count() == 1, "{function}:{n}: {error}");
                assert!(!error.contains("the device failed"), "{function}:{n}: {error}");
                assert_eq!(fake.faults(), 0, "{function}:{n}: {error}");
                fake.fail("");
                assert_eq!(everything().unwrap(), expected, "after {function}:{n}");
            }
        }
    }

    fn a_lost_device_is_a_line() {
        let fake = Fake::new();
        let works = functions().filter(|name| !name.starts_with("cuGetError") && *name != "cuCtxSetCurrent");
        assert!(lose(&fake, works.chain(["kernel", "copy"]), true) > 50);
    }

    fn a_device_that_is_lost_stays_so() {
        let (device, fake) = (open().unwrap(), Fake::new());
        let normed = Normed::new(&device, 2, 64).unwrap();
        let plan = device.record(|encoder| normed.encode(encoder, Live::All)).unwrap();
        let pending = device.read(&normed.x).unwrap();
        fake.fail("kernel:1");
        // Nothing has been done yet.
        device.replay(&plan).unwrap();
        let line = "cuda:0 Fake H200 (CUDA 12.8): the device failed: unspecified launch failure \
                    (CUDA_ERROR_LAUNCH_FAILED); start the program again, or use another --device";
        assert_eq!(read(&device, &normed.out).unwrap_err().to_string(), line);
        assert_eq!(device.replay(&plan).unwrap_err().to_string(), line);
        assert_eq!(device.alloc(1).err().unwrap().to_string(), line);
        assert_eq!(device.write(&normed.x, &[0; 4]).unwrap_err().to_string(), line);
        assert!(pending.wait(&mut [0; 512]).is_err());
        let x = numbers(1, 128);
        drop((device, normed, plan));
        let device = open().unwrap();
        Normed::new(&device, 2, 64).unwrap().of(&device, &x).unwrap();
    }
}

#[test]
fn a_lost_context_is_a_line() {
    let report = on_fake("a_lost_context_is_a_line", &[], || {
        assert!(lose(&Fake::new(), ["cuCtxSetCurrent"].into_iter(), false) > 10);
    });
    // What cannot be made current cannot be freed; it all goes when the context does.
    assert!(report.is_none_or(|report| report.wrong.is_empty()));
}

/// Loses the device in each call of these functions that [`everything`] makes: what is said of it is one line with what to
/// do, and the next use of the device finds it well. Gives the number of failures.
fn lose(fake: &Fake, functions: impl Iterator<Item = &'static str>, freed: bool) -> usize {
    let (expected, calls) = counted(fake);
    let mut errors = 0;
    for function in functions {
        for n in 1..=calls(function) {
            fake.fail(&format!("{function}:{n}:sticky"));
            match everything() {
                Ok(values) => assert_eq!(values, expected, "{function}:{n} changes nothing"),
                Err(Error::Device { device, reason }) => {
                    errors += 1;
                    let line = format!("{device}: {reason}");
                    assert!(line.starts_with("cuda") && line.lines().count() == 1, "{function}:{n}: {line}");
                    assert!(line.contains("CUDA_ERROR_LAUNCH_FAILED"), "{function}:{n}: {line}");
                    let opened = device == "cuda:0 Fake H200 (CUDA 12.8)";
                    assert!(!opened || line.contains("--device"), "{function}:{n}: {line}");
                }
                Err(other) => panic!("{function}:{n}: {other}"),
            }
            assert!(!freed || fake.faults() == 0, "{function}:{n}");
            fake.fail("");
            assert_eq!(everything().unwrap(), expected, "after {function}:{n}");
        }
    }
    errors
}

/// The result of [`everything`], and how often it calls a function.
fn counted(fake: &Fake) -> (Vec<f32>, impl Fn(&str) -> u64) {
    // The first has more to do.
    everything().unwrap();
    let all = || functions().chain(["kernel", "copy"]).map(|name| (name, fake.calls(name)));
    let before: Vec<_> = all().collect();
    let values = everything().unwrap();
    let calls: Vec<_> = all().zip(before).map(|((name, after), (_, before))| (name, after - before)).collect();
    (values, move |name: &str| calls.iter().find(|(other, _)| *other == name).expect("a function of the driver").1)
}
