//! The fake driver itself: it refuses what CUDA's does, and shows what CUDA's may hide.
#![cfg(all(target_os = "linux", not(feature = "prebuilt")))]
mod fake_driver;

use cudarc::driver::{DriverError, result, sys};
use fake_driver::on_fake;
use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};
use sys::CUresult::{self, *};

type Outcome<T = ()> = Result<T, DriverError>;

/// A context and a stream of it.
struct Cuda {
    stream: sys::CUstream,
}

// SAFETY of what follows: the driver is the fake one, which checks every handle and address; memory that it reads or writes
// when a copy is done is never freed, but where that is the test.
impl Cuda {
    fn start() -> Cuda {
        result::init().unwrap();
        // SAFETY: see above.
        unsafe { result::ctx::set_current(result::primary_ctx::retain(0).unwrap()).unwrap() };
        Cuda { stream: result::stream::create(result::stream::StreamKind::NonBlocking).unwrap() }
    }

    fn alloc(&self, bytes: usize) -> Outcome<u64> {
        // SAFETY: see above.
        unsafe { result::malloc_sync(bytes) }
    }

    fn free(&self, address: u64) -> Outcome {
        // SAFETY: see above.
        unsafe { result::free_sync(address) }
    }

    /// Page-locked words.
    fn pinned(&self, count: usize) -> &'static mut [u32] {
        // SAFETY: there are as many bytes, and they are set before they are read.
        unsafe {
            let words = result::malloc_host(4 * count, 0).unwrap().cast::<u32>();
            words.write_bytes(0, count);
            std::slice::from_raw_parts_mut(words, count)
        }
    }

    fn free_pinned(&self, words: &'static mut [u32]) -> Outcome {
        // SAFETY: see above.
        unsafe { result::free_host(words.as_mut_ptr().cast()) }
    }

    fn write(&self, to: u64, from: &[u32]) -> Outcome {
        // SAFETY: see above.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), size_of_val(from), self.stream) }.result()
    }

    fn read(&self, to: *mut u32, from: u64, bytes: usize) -> Outcome {
        // SAFETY: see above.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.stream) }.result()
    }

    fn synchronize(&self) -> Outcome {
        // SAFETY: see above.
        unsafe { result::stream::synchronize(self.stream) }
    }

    fn module(&self, image: &str) -> Outcome<sys::CUmodule> {
        let image = CString::new(image).unwrap();
        // SAFETY: an image ends in a NUL.
        unsafe { result::module::load_data(image.as_ptr().cast()) }
    }

    fn function(&self, module: sys::CUmodule, name: &str) -> Outcome<sys::CUfunction> {
        // SAFETY: see above.
        unsafe { result::module::get_function(module, CString::new(name).unwrap()) }
    }

    fn norm(&self) -> (sys::CUmodule, sys::CUfunction) {
        let module = self.module(NORM).unwrap();
        (module, self.function(module, "anyfleet_norm").unwrap())
    }

    fn grant(&self, function: sys::CUfunction, shared: i32) -> Outcome {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: see above.
        unsafe { result::function::set_function_attribute(function, attribute, shared) }
    }

    fn launch(
        &self,
        function: sys::CUfunction,
        grid: (u32, u32, u32),
        threads: u32,
        shared: u32,
        p: &Params,
    ) -> Outcome {
        let mut params = [std::ptr::from_ref(p).cast_mut().cast::<c_void>()];
        // SAFETY: see above.
        unsafe { result::launch_kernel(function, grid, (threads, 1, 1), shared, self.stream, &mut params) }
    }

    fn node(
        &self,
        graph: sys::CUgraph,
        func: sys::CUfunction,
        after: &[sys::CUgraphNode],
        p: &Params,
    ) -> Outcome<sys::CUgraphNode> {
        let mut params = [std::ptr::from_ref(p).cast_mut().cast::<c_void>()];
        let params = sys::CUDA_KERNEL_NODE_PARAMS {
            func,
            gridDimX: 1,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: threads(),
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            kernelParams: params.as_mut_ptr(),
            extra: null_mut(),
            kern: null_mut(),
            ctx: null_mut(),
        };
        let mut node = null_mut();
        // SAFETY: see above.
        unsafe { sys::cuGraphAddKernelNode_v2(&mut node, graph, after.as_ptr(), after.len(), &params) }.result()?;
        Ok(node)
    }
}

/// `NormParams` of `norm.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    out: u64,
    x: u64,
    weight: u64,
    live: u64,
    residual: u64,
    rows: u32,
    width: u32,
    out_stride: u32,
    x_stride: u32,
    eps: f32,
    residual_stride: u32,
}

impl Params {
    /// Eight numbers of which each is 1 in the end.
    fn new(out: u64, x: u64, weight: u64) -> Params {
        let (live, residual, residual_stride) = (0, 0, 0);
        let (rows, width, out_stride, x_stride, eps) = (1, 8, 8, 8, 0.0);
        Params { out, x, weight, live, residual, rows, width, out_stride, x_stride, eps, residual_stride }
    }
}

const NORM: &str = "ANYFLEET FAKE CUBIN norm sm_90\nKERNEL(norm, 256, NormParams) {}";

/// Threads that the kernel is launched with, and no more.
fn threads() -> u32 {
    let source = anyfleet_kernels::cuda::source("norm");
    source.split_once("KERNEL(norm, ").unwrap().1.split_once(',').unwrap().0.parse().unwrap()
}

/// What a call gave, where it should have failed.
fn code<T>(outcome: Outcome<T>) -> CUresult {
    outcome.err().map_or(CUDA_SUCCESS, |e| e.0)
}

/// Runs a test, which breaks these rules.
fn breaks(test: &str, wrong: &[&str], body: impl FnOnce()) {
    breaks_and_leaves(test, wrong, None, body);
}

/// The same of a test for which it counts what it leaves.
fn breaks_and_leaves(test: &str, wrong: &[&str], leaks: Option<&[&str]>, body: impl FnOnce()) {
    if let Some(report) = on_fake(test, &[("FAKE_CUDA_MEMORY", "1000000")], body) {
        assert_eq!(report.wrong, wrong);
        assert!(leaks.is_none_or(|leaks| report.leaks == leaks), "{:?}", report.leaks);
    }
}

#[test]
fn a_process_may_keep_a_context_with_nothing_in_it() {
    const NAME: &str = "a_process_may_keep_a_context_with_nothing_in_it";
    breaks_and_leaves(NAME, &[], Some(&["1 uses of a context", "1 streams", "1 allocations of the device"]), || {
        Cuda::start().alloc(1).unwrap();
        let twice = Cuda::start();
        // SAFETY: see `Cuda`.
        unsafe { result::stream::destroy(twice.stream) }.unwrap();
    });
}

#[test]
fn calls_need_a_context() {
    let none = "cuMemGetInfo_v2: no context is current on this thread";
    let wrong = [
        "cuDeviceGet: called before cuInit",
        none,
        none,
        "cuMemGetInfo_v2: the context that is current on this thread was released",
    ];
    let leaks = ["1 streams", "1 events", "1 graphs", "1 modules", "1 allocations of the device"];
    let leaks = [&leaks[..], &["1 page-locked allocations of the host"]].concat();
    breaks_and_leaves("calls_need_a_context", &wrong, Some(&leaks), || {
        let call = || code(result::mem_get_info());
        assert_eq!(code(result::device::get(0)), CUDA_ERROR_NOT_INITIALIZED);
        result::init().unwrap();
        assert_eq!(call(), CUDA_ERROR_INVALID_CONTEXT);
        let cuda = Cuda::start();
        assert_eq!(call(), CUDA_SUCCESS);
        std::thread::spawn(move || assert_eq!(call(), CUDA_ERROR_INVALID_CONTEXT)).join().unwrap();
        cuda.pinned(1);
        cuda.alloc(1).unwrap();
        cuda.norm();
        let mut graph = null_mut();
        // SAFETY: see `Cuda`.
        unsafe { sys::cuGraphCreate(&mut graph, 0) }.result().unwrap();
        result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).unwrap();
        // SAFETY: see `Cuda`.
        unsafe { result::primary_ctx::release(0) }.unwrap();
        assert_eq!(call(), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    });
}

#[test]
fn work_is_late() {
    breaks("work_is_late", &[], || {
        let cuda = Cuda::start();
        let (host, out) = (cuda.pinned(4), cuda.pinned(4));
        let (device, to) = (cuda.alloc(16).unwrap(), out.as_mut_ptr());
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).unwrap();
        host.fill(1);
        cuda.write(device, host).unwrap();
        // Too soon: the copy reads what is there when it is made.
        host.fill(2);
        cuda.read(to, device, 16).unwrap();
        // SAFETY: see `Cuda`.
        unsafe { result::event::record(event, cuda.stream) }.unwrap();
        host[3] = 3;
        assert_eq!(out, [0; 4], "too early");
        // SAFETY: see `Cuda`.
        let wait = || unsafe { result::event::synchronize(event) }.unwrap();
        wait();
        assert_eq!(out, [2, 2, 2, 3]);
        // What comes after the event is not done.
        host.fill(4);
        cuda.write(device, host).unwrap();
        cuda.read(to, device, 16).unwrap();
        wait();
        assert_eq!(out, [2, 2, 2, 3]);
        // Memory that is not page-locked is read at once, after all that came before.
        cuda.write(device, &[9; 4]).unwrap();
        assert_eq!(out, [4; 4]);
        let mut pageable = [0; 4];
        cuda.read(pageable.as_mut_ptr(), device, 16).unwrap();
        assert_eq!(pageable, [9; 4]);
    });
}

#[test]
fn memory_has_bounds() {
    let wrong = [
        "cuMemcpyHtoDAsync_v2: the 104 bytes it copies to are not all of one allocation",
        "cuMemcpyDtoHAsync_v2: the 4 bytes it copies from are not all of one allocation",
        "cuMemFree_v2: no allocation begins there",
        "cuMemFree_v2: no allocation begins there",
        "cuMemAlloc_v2: 0 bytes",
        "cuMemFreeHost: a copy that was not waited for uses the memory",
        "a copy's source was freed before it was made",
    ];
    breaks("memory_has_bounds", &wrong, || {
        let cuda = Cuda::start();
        let host = cuda.pinned(26);
        let device = cuda.alloc(100).unwrap();
        assert_eq!(device % 256, 0);
        assert_eq!(code(cuda.write(device, host)), CUDA_ERROR_INVALID_VALUE);
        assert_eq!(code(cuda.read(host.as_mut_ptr(), device + 100, 4)), CUDA_ERROR_INVALID_VALUE);
        assert_eq!(code(cuda.free(device + 8)), CUDA_ERROR_INVALID_VALUE);
        assert_eq!(result::mem_get_info().unwrap(), (1_000_000 - 256, 1_000_000));
        assert_eq!(code(cuda.alloc(1_000_000)), CUDA_ERROR_OUT_OF_MEMORY);
        cuda.free(device).unwrap();
        assert_eq!(code(cuda.free(device)), CUDA_ERROR_INVALID_VALUE);
        assert_eq!(code(cuda.alloc(0)), CUDA_ERROR_INVALID_VALUE);
        let device = cuda.alloc(104).unwrap();
        cuda.write(device, host).unwrap();
        cuda.free_pinned(host).unwrap();
        assert_eq!(code(cuda.synchronize()), CUDA_ERROR_ILLEGAL_ADDRESS);
        // It does not come back from that.
        assert_eq!(code(cuda.alloc(4)), CUDA_ERROR_ILLEGAL_ADDRESS);
    });
}

#[test]
fn modules_are_for_a_device() {
    let wrong = [
        "cuModuleLoadData: norm is for sm_80, and the device is sm_90",
        "cuModuleGetFunction: anyfleet_rate_bf16 is not in norm",
        "cuModuleGetFunction: norm is not in norm",
        "cuModuleUnload: a launch of anyfleet_norm that was not waited for is of the module",
        "cuModuleUnload: no such module: it was never made, or it was destroyed",
        "cuLaunchKernel: no such function, or its module was unloaded",
        "anyfleet_norm runs after its module was unloaded",
    ];
    breaks("modules_are_for_a_device", &wrong, || {
        let cuda = Cuda::start();
        assert_eq!(code(cuda.module("\x7fELF")), CUDA_ERROR_INVALID_IMAGE);
        assert_eq!(code(cuda.module("ANYFLEET FAKE CUBIN norm sm_80\n")), CUDA_ERROR_NO_BINARY_FOR_GPU);
        let (module, function) = cuda.norm();
        // It is in the library of all kernels, and not in this module.
        assert_eq!(code(cuda.function(module, "anyfleet_rate_bf16")), CUDA_ERROR_NOT_FOUND);
        assert_eq!(code(cuda.function(module, "norm")), CUDA_ERROR_NOT_FOUND);
        let params = Params::new(cuda.alloc(32).unwrap(), cuda.alloc(32).unwrap(), cuda.alloc(32).unwrap());
        cuda.launch(function, (1, 1, 1), threads(), 0, &params).unwrap();
        // SAFETY: see `Cuda`.
        let unload = || unsafe { result::module::unload(module) };
        unload().unwrap();
        assert_eq!(code(unload()), CUDA_ERROR_INVALID_HANDLE);
        assert_eq!(code(cuda.launch(function, (1, 1, 1), threads(), 0, &params)), CUDA_ERROR_INVALID_HANDLE);
        assert_eq!(code(cuda.synchronize()), CUDA_ERROR_ILLEGAL_ADDRESS);
    });
}

#[test]
fn launches_have_limits() {
    let wrong = [
        "cuLaunchKernel: anyfleet_norm: a grid of 0 x 1 x 1 blocks",
        "cuLaunchKernel: anyfleet_norm: a grid of 1 x 65536 x 1 blocks",
        "cuLaunchKernel: anyfleet_norm: a grid of 1 x 1 x 65536 blocks",
        "cuLaunchKernel: anyfleet_norm: a block of 0 x 1 x 1 threads",
        "cuLaunchKernel: anyfleet_norm: 1024 threads, and its bound is BOUND",
        "cuLaunchKernel: anyfleet_norm: 49153 bytes of shared memory, and it was granted 49152",
        "cuFuncSetAttribute: anyfleet_norm: 232449 bytes of shared memory, of 232448",
        "cuLaunchKernel: anyfleet_norm: 232449 bytes of shared memory, and it was granted 232448",
        "cuLaunchKernel: anyfleet_norm: 100000 bytes of shared memory, and it was granted 50000",
    ];
    let wrong = wrong.map(|rule| rule.replace("BOUND", &threads().to_string()));
    breaks("launches_have_limits", &wrong.each_ref().map(|rule| &**rule), || {
        let cuda = Cuda::start();
        let (_, function) = cuda.norm();
        let params = Params::new(cuda.alloc(32).unwrap(), cuda.alloc(32).unwrap(), cuda.alloc(32).unwrap());
        let launch = |grid, threads, shared| code(cuda.launch(function, grid, threads, shared, &params));
        for grid in [(0, 1, 1), (1, 65_536, 1), (1, 1, 65_536)] {
            assert_eq!(launch(grid, 32, 0), CUDA_ERROR_INVALID_VALUE);
        }
        for threads in [0, 1024] {
            assert_eq!(launch((1, 1, 1), threads, 0), CUDA_ERROR_INVALID_VALUE);
        }
        assert_eq!(launch((1, 1, 1), threads(), 49_152), CUDA_SUCCESS);
        assert_eq!(launch((1, 1, 1), threads(), 49_153), CUDA_ERROR_INVALID_VALUE);
        assert_eq!(code(cuda.grant(function, 232_449)), CUDA_ERROR_INVALID_VALUE);
        cuda.grant(function, 232_448).unwrap();
        assert_eq!(launch((1, 1, 1), threads(), 232_449), CUDA_ERROR_INVALID_VALUE);
        assert_eq!(launch((1, 1, 1), threads(), 100_000), CUDA_SUCCESS);
        // A grant is the last one, not the largest.
        cuda.grant(function, 50_000).unwrap();
        assert_eq!(launch((1, 1, 1), threads(), 100_000), CUDA_ERROR_INVALID_VALUE);
        cuda.synchronize().unwrap();
    });
}

#[test]
fn parameters_are_copied_by_the_call() {
    breaks("parameters_are_copied_by_the_call", &[], || {
        let cuda = Cuda::start();
        let (_, function) = cuda.norm();
        let numbers: [u64; 4] = std::array::from_fn(|_| cuda.alloc(32).unwrap());
        let [out, other, x, weight] = numbers;
        for of in numbers {
            cuda.write(of, &[1f32.to_bits(); 8]).unwrap();
        }
        cuda.write(x, &[2f32.to_bits(); 8]).unwrap();
        cuda.write(weight, &[5f32.to_bits(); 8]).unwrap();
        let mut params = Params::new(out, x, weight);
        cuda.launch(function, (1, 1, 1), threads(), 0, &params).unwrap();
        params.out = other;
        std::hint::black_box(&params);
        let result = |of| {
            let mut words = [0; 8];
            cuda.read(words.as_mut_ptr(), of, 32).unwrap();
            words.map(f32::from_bits)
        };
        assert_eq!((result(out), result(other)), ([5.0; 8], [1.0; 8]));
    });
}

#[test]
fn graphs_are_as_ordered_as_they_say() {
    let wrong = [
        "cuGraphAddKernelNode_v2: 1 dependencies, and they are nowhere",
        "cuGraphAddKernelNode_v2: dependency 0 is no node of the graph, or twice there",
        "cuGraphAddKernelNode_v2: dependency 1 is no node of the graph, or twice there",
        "cuGraphLaunch: no such instance of a graph: it was never made, or it was destroyed",
    ];
    breaks("graphs_are_as_ordered_as_they_say", &wrong, || {
        let cuda = Cuda::start();
        let (_, function) = cuda.norm();
        let [a, b, c, weight] = std::array::from_fn(|_| cuda.alloc(32).unwrap());
        let create = || {
            let mut graph = null_mut();
            // SAFETY: see `Cuda`.
            unsafe { sys::cuGraphCreate(&mut graph, 0) }.result().unwrap();
            graph
        };
        // Two nodes, the second of which needs the result of the first: c where it says so.
        let (first, second) = (Params::new(b, a, weight), Params::new(c, b, weight));
        let run = |ordered: bool| {
            let graph = create();
            let before = cuda.node(graph, function, &[], &first).unwrap();
            let after = if ordered { vec![before] } else { Vec::new() };
            cuda.node(graph, function, &after, &second).unwrap();
            for (of, value) in [(a, 1f32), (b, 0.0), (c, 0.0), (weight, 3.0)] {
                cuda.write(of, &[value.to_bits(); 8]).unwrap();
            }
            let flags = sys::CUgraphInstantiate_flags(0);
            // SAFETY: see `Cuda`.
            let exec = unsafe {
                let exec = result::graph::instantiate(graph, flags).unwrap();
                result::graph::destroy(graph).unwrap();
                result::graph::launch(exec, cuda.stream).unwrap();
                // One that runs is freed when it is done.
                result::graph::exec_destroy(exec).unwrap();
                exec
            };
            let mut words = [0; 8];
            cuda.read(words.as_mut_ptr(), c, 32).unwrap();
            (exec, f32::from_bits(words[0]))
        };
        assert_eq!(run(true).1, 3.0);
        let (exec, value) = run(false);
        assert!(value.is_nan(), "{value}: the second was first, and divided by the square root of 0");

        let (graph, other) = (create(), create());
        let node = cuda.node(graph, function, &[], &first).unwrap();
        let (mut out, params) = (null_mut(), null());
        // SAFETY: see `Cuda`.
        let nowhere = unsafe { sys::cuGraphAddKernelNode_v2(&mut out, graph, null(), 1, params) };
        assert_eq!(nowhere, CUDA_ERROR_INVALID_VALUE);
        assert_eq!(code(cuda.node(other, function, &[node], &first)), CUDA_ERROR_INVALID_VALUE);
        assert_eq!(code(cuda.node(graph, function, &[node, node], &first)), CUDA_ERROR_INVALID_VALUE);
        // SAFETY: see `Cuda`.
        assert_eq!(code(unsafe { result::graph::launch(exec, cuda.stream) }), CUDA_ERROR_INVALID_HANDLE);
    });
}
