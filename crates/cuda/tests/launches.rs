//! What operations ask of a device: which kernels, how many blocks, and what each is given. Nothing is computed.
mod common;

use anyfleet_cuda::{CudaBackend, Recorded, RecordedLaunch};
use anyfleet_tensor::ops::{ActMul, Activation, Gather, Norm, Sample, Softcap};
use anyfleet_tensor::{Backend, DType, Encoder, Error, Live, StepSizes, TOP_LOGPROBS, Tensor};
use common::{names, sizes};

/// A device that writes down launches, and a step's header on it.
struct Device {
    backend: CudaBackend,
    recorded: Recorded,
    header: Tensor<CudaBackend>,
}

impl Device {
    fn new() -> Device {
        let (backend, recorded) = CudaBackend::recording();
        let header = Tensor::new(&backend, DType::U32, &[4]).unwrap();
        Device { backend, recorded, header }
    }

    fn floats(&self, shape: &[usize]) -> Tensor<CudaBackend> {
        Tensor::new(&self.backend, DType::F32, shape).unwrap()
    }

    fn words(&self, shape: &[usize]) -> Tensor<CudaBackend> {
        Tensor::new(&self.backend, DType::U32, shape).unwrap()
    }

    /// What is launched with the header bound.
    fn launches(&self, record: impl FnOnce(&mut Encoder<'_, CudaBackend>)) -> Vec<RecordedLaunch> {
        let with_header = |enc: &mut Encoder<'_, CudaBackend>| {
            enc.header(&self.header);
            record(enc);
        };
        self.backend.run(with_header).unwrap();
        self.recorded.take()
    }

    /// The one launch of an operation.
    fn launch(&self, record: impl FnOnce(&mut Encoder<'_, CudaBackend>)) -> RecordedLaunch {
        let mut launches = self.launches(record);
        assert_eq!(launches.len(), 1, "{launches:?}");
        launches.remove(0)
    }

    /// The line of an operation that is refused. Nothing is launched then.
    fn refusal(&self, record: impl FnOnce(&mut Encoder<'_, CudaBackend>)) -> String {
        let error = self.backend.run(record).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
        assert_eq!(self.recorded.take(), []);
        error.to_string()
    }

    fn live(&self, live: Live) -> u64 {
        match live {
            Live::All => 0,
            Live::Tokens => at(&self.header),
            Live::Sequences => at(&self.header) + 4,
            Live::LogitRows => at(&self.header) + 8,
        }
    }
}

/// Where a tensor begins.
fn at(tensor: &Tensor<CudaBackend>) -> u64 {
    tensor.buffer().address() + tensor.offset() as u64
}

/// A kernel's structure is these addresses, then these words, and nothing else but zeros up to eight bytes.
fn given(launch: &RecordedLaunch, addresses: &[u64], words: &[u32]) {
    let mut want: Vec<u8> = addresses.iter().flat_map(|a| a.to_le_bytes()).collect();
    want.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    want.resize(want.len().next_multiple_of(8), 0);
    let name = launch.kernel;
    for (i, address) in addresses.iter().enumerate() {
        assert_eq!(launch.address(i), *address, "{name}: address {i}");
    }
    for (i, word) in words.iter().enumerate() {
        assert_eq!(launch.word(2 * addresses.len() + i), *word, "{name}: word {i}");
    }
    assert_eq!(launch.params, want, "{name}: its structure");
}

/// Blocks of `columns` columns cover `width` exactly.
fn covers(blocks: u32, columns: usize, width: usize) {
    let blocks = blocks as usize;
    assert!(blocks * columns >= width && (blocks - 1) * columns < width, "{blocks} blocks of {columns} for {width}");
}

/// What [`Sample`] takes, for a number of rows and a vocabulary.
struct Sampled {
    ids: Tensor<CudaBackend>,
    logprobs: Tensor<CudaBackend>,
    top_ids: Tensor<CudaBackend>,
    top_logprobs: Tensor<CudaBackend>,
    logits: Tensor<CudaBackend>,
    params: Tensor<CudaBackend>,
    adjust: Tensor<CudaBackend>,
    masks: Option<Tensor<CudaBackend>>,
}

impl Sampled {
    fn new(device: &Device, rows: usize, vocab: usize) -> Sampled {
        Sampled {
            ids: device.words(&[rows]),
            logprobs: device.floats(&[rows]),
            top_ids: device.words(&[rows, TOP_LOGPROBS]),
            top_logprobs: device.floats(&[rows, TOP_LOGPROBS]),
            logits: device.floats(&[rows, vocab]),
            params: device.words(&[rows, 16]),
            adjust: device.words(&[7, 4]),
            masks: None,
        }
    }

    fn record(&self, enc: &mut Encoder<'_, CudaBackend>, live: Live) {
        let Sampled { ids, logprobs, top_ids, top_logprobs, logits, params, adjust, masks } = self;
        let masks = masks.as_ref();
        enc.sample(Sample { ids, logprobs, top_ids, top_logprobs, logits, params, adjust, masks, live });
    }
}

#[test]
fn norm_of_a_view() {
    let device = Device::new();
    let x = device.floats(&[8, 4160]).columns(32, 4096).narrow(3, 4);
    let out = device.floats(&[9, 4100]).columns(4, 4096).narrow(5, 4);
    let weight = device.floats(&[4096]);
    let added = device.floats(&[4, 4096]);
    for live in [Live::All, Live::Tokens, Live::Sequences, Live::LogitRows] {
        let residual = (live == Live::Tokens).then_some(&added);
        let launch =
            device.launch(|enc| enc.norm(Norm { out: &out, x: &x, weight: &weight, eps: 1e-5, residual, live }));
        assert_eq!((launch.kernel, launch.grid, launch.threads, launch.shared), ("norm", [4, 1, 1], 512, 0));
        let addresses = [at(&out), at(&x), at(&weight), device.live(live), residual.map_or(0, at)];
        let stride = if residual.is_some() { 4096 } else { 0 };
        given(&launch, &addresses, &[4, 4096, 4100, 4160, 1e-5f32.to_bits(), stride]);
        assert_eq!(launch.address(1), x.buffer().address() + 4 * (3 * 4160 + 32));
    }
}

#[test]
fn act_mul_covers_rows_and_columns() {
    let device = Device::new();
    for (rows, width) in [(1, 1), (3, 1023), (64, 1024), (2, 1025), (8192, 14_336)] {
        let gate_up = device.floats(&[rows + 1, 2 * width + 3]).columns(1, 2 * width).narrow(1, rows);
        let out = device.floats(&[rows, width]);
        let activation = if rows == 1 { Activation::GeluTanh } else { Activation::Silu };
        let op = ActMul { out: &out, gate_up: &gate_up, activation, live: Live::Tokens };
        let launch = device.launch(|enc| enc.act_mul(op));
        assert_eq!((launch.kernel, launch.grid[0], launch.grid[2], launch.threads), ("act_mul", rows as u32, 1, 256));
        covers(launch.grid[1], 1024, width);
        let words = [rows, width, width, 2 * width + 3, usize::from(rows == 1)].map(|n| n as u32);
        given(&launch, &[at(&out), at(&gate_up), device.live(Live::Tokens)], &words);
    }
}

#[test]
fn softcap_covers_rows_and_columns() {
    let device = Device::new();
    for (rows, width) in [(1, 1), (3, 1023), (64, 1025), (2, 256_000)] {
        let x = device.floats(&[rows, width + 3]).columns(1, width);
        let launch = device.launch(|enc| enc.softcap(Softcap { x: &x, cap: 30.0, live: Live::LogitRows }));
        assert_eq!((launch.kernel, launch.grid[0], launch.grid[2], launch.threads), ("softcap", rows as u32, 1, 256));
        covers(launch.grid[1], 1024, width);
        let words = [rows as u32, width as u32, width as u32 + 3, 30.0f32.to_bits()];
        given(&launch, &[at(&x), device.live(Live::LogitRows)], &words);
    }
}

#[test]
fn gather_covers_rows_and_columns() {
    let device = Device::new();
    for (tokens, rows, width) in [(1, 1, 1), (5, 3, 1024), (512, 64, 4097)] {
        let x = device.floats(&[tokens, width + 4]).columns(4, width);
        let index = device.words(&[rows + 2]).narrow(2, rows);
        let out = device.floats(&[rows, width]);
        let op = Gather { out: &out, x: &x, rows: &index, live: Live::LogitRows };
        let launch = device.launch(|enc| enc.gather(op));
        assert_eq!((launch.kernel, launch.grid[0], launch.grid[2], launch.threads), ("gather", rows as u32, 1, 256));
        covers(launch.grid[1], 1024, width);
        let words = [rows, width, width, width + 4, tokens].map(|n| n as u32);
        given(&launch, &[at(&out), at(&x), at(&index), device.live(Live::LogitRows)], &words);
    }
}

#[test]
fn gather_from_no_rows() {
    let device = Device::new();
    let (x, index, out) = (device.floats(&[0, 8]), device.words(&[2]), device.floats(&[2, 8]));
    assert_eq!(device.launches(|enc| enc.gather(Gather { out: &out, x: &x, rows: &index, live: Live::All })), []);
}

#[test]
fn sample_covers_rows_and_parts() {
    let device = Device::new();
    for (rows, vocab) in [(1, 1), (3, 2048), (2, 2049), (64, 152_064), (1, 1 << 20)] {
        let mut s = Sampled::new(&device, rows, vocab);
        let words = vocab.div_ceil(32);
        s.masks = (rows > 1).then(|| device.words(&[5, words + 3]).columns(2, words).narrow(1, 4));
        let masks = s.masks.as_ref().map_or([0, 0], |_| [4, words + 3]);
        let launches = device.launches(|enc| s.record(enc, Live::LogitRows));
        assert_eq!(names(&launches), ["sample_parts", "sample_weigh", "sample_draw"]);
        let parts = launches[0].grid[0];
        covers(parts, 2048, vocab);
        for (launch, more) in launches.iter().zip([0, 1, 0]) {
            assert_eq!((launch.grid, launch.threads), ([parts + more, rows as u32, 1], 512));
            let of = |i| launch.address(i);
            let mut addresses = [&s.logits, &s.params, &s.adjust].map(at).to_vec();
            addresses.push(s.masks.as_ref().map_or(0, at));
            addresses.extend([&s.ids, &s.logprobs, &s.top_ids, &s.top_logprobs].map(at));
            addresses.extend([device.live(Live::LogitRows), of(9), of(10), of(11)]);
            // What lies in scratch memory has room for as many rows, and adjusted rows start at 16 bytes.
            let stride = vocab.next_multiple_of(4);
            assert!(of(10) >= of(9) + 184 * u64::from(parts) * rows as u64 && of(10) % 8 == 0);
            assert!(of(11) >= of(10) + 6176 * rows as u64 && of(11) % 16 == 0);
            let strides = [vocab, 16, 7, 4, masks[0], masks[1], 20, 20, stride].map(|n| n as u32);
            given(launch, &addresses, &[&[rows as u32, vocab as u32, parts], strides.as_slice()].concat());
        }
    }
}

#[test]
fn scratch_memory_is_what_was_reserved() {
    let device = Device::new();
    let (rows, vocab) = (5, 32_001);
    let s = Sampled::new(&device, rows, vocab);
    let sizes = StepSizes { logit_rows: rows, vocab_size: vocab, ..sizes(1, 64) };
    let before = device.recorded.bytes();
    device.backend.reserve(&sizes).unwrap();
    let bytes = device.backend.scratch_bytes(&sizes) as u64;
    assert_eq!(device.recorded.bytes() - before, bytes);
    let launches = device.launches(|enc| s.record(enc, Live::All));
    assert_eq!(device.recorded.bytes() - before, bytes, "the operation fits");
    // The last of it is the last row of adjusted logits.
    let adjusted = launches[0].address(11) - launches[0].address(9);
    assert_eq!(adjusted + 4 * (rows * vocab.next_multiple_of(4)) as u64, bytes);
}

#[test]
fn no_rows_no_launch() {
    let device = Device::new();
    let (x, weight) = (device.floats(&[4, 64]), device.floats(&[64]));
    let (gate_up, index) = (device.floats(&[4, 128]), device.words(&[4]));
    let none = x.narrow(4, 0);
    let launches = device.launches(|enc| {
        enc.norm(Norm { out: &none, x: &none, weight: &weight, eps: 1e-5, residual: None, live: Live::Tokens });
        let activation = Activation::Silu;
        enc.act_mul(ActMul { out: &none, gate_up: &gate_up.narrow(0, 0), activation, live: Live::Tokens });
        enc.gather(Gather { out: &none, x: &x, rows: &index.narrow(1, 0), live: Live::Tokens });
    });
    assert_eq!(launches, []);
}

#[test]
fn live_rows_need_a_header() {
    let device = Device::new();
    let (x, weight) = (device.floats(&[4, 64]), device.floats(&[64]));
    let (gate_up, index) = (device.floats(&[4, 128]), device.words(&[4]));
    let sampled = Sampled::new(&device, 4, 64);
    let (out, live) = (&device.floats(&[4, 64]), Live::LogitRows);
    let refusals = [
        device.refusal(|enc| enc.norm(Norm { out, x: &x, weight: &weight, eps: 1e-5, residual: None, live })),
        device.refusal(|enc| enc.act_mul(ActMul { out, gate_up: &gate_up, activation: Activation::Silu, live })),
        device.refusal(|enc| enc.gather(Gather { out, x: &x, rows: &index, live })),
        device.refusal(|enc| sampled.record(enc, live)),
    ];
    for (refusal, op) in refusals.iter().zip(["norm", "act_mul", "gather", "sample"]) {
        assert!(refusal.contains(op) && refusal.contains("bind the step header"), "{refusal}");
    }
    // One that computes all rows needs none.
    device.backend.run(|enc| sampled.record(enc, Live::All)).unwrap();
    assert_eq!(device.recorded.take().len(), 3);
}

#[test]
fn grids_have_limits() {
    let device = Device::new();
    let width = 65_535 * 1024 + 1;
    let (wide, gate_up) = (device.floats(&[1, width]), device.floats(&[1, 2 * width]));
    let (live, activation) = (Live::All, Activation::Silu);
    let index = device.words(&[1]);
    let many = Sampled::new(&device, 65_536, 3);
    let (tall, weight) = (device.floats(&[1 << 31, 1]), device.floats(&[1]));
    let refusals = [
        device.refusal(|enc| enc.act_mul(ActMul { out: &wide, gate_up: &gate_up, activation, live })),
        device.refusal(|enc| enc.gather(Gather { out: &wide, x: &wide, rows: &index, live })),
        device.refusal(|enc| many.record(enc, live)),
        device.refusal(|enc| enc.norm(Norm { out: &tall, x: &tall, weight: &weight, eps: 1e-5, residual: None, live })),
    ];
    for refusal in refusals {
        assert!(refusal.contains("more blocks than the device has"), "{refusal}");
    }
    let vocabulary = Sampled::new(&device, 1, (1 << 20) + 1);
    let refusal = device.refusal(|enc| vocabulary.record(enc, live));
    assert!(refusal.contains("1048577 tokens"), "{refusal}");
}

/// What ends a step: the rows whose logits are wanted, their last norm and their tokens.
struct Tail {
    hidden: Tensor<CudaBackend>,
    index: Tensor<CudaBackend>,
    chosen: Tensor<CudaBackend>,
    weight: Tensor<CudaBackend>,
    sampled: Sampled,
}

impl Tail {
    fn new(device: &Device, tokens: usize) -> Tail {
        Tail {
            hidden: device.floats(&[tokens, 4096]),
            index: device.words(&[tokens]),
            chosen: device.floats(&[tokens, 4096]),
            weight: device.floats(&[4096]),
            sampled: Sampled::new(device, tokens, 128_256),
        }
    }

    fn record(&self, enc: &mut Encoder<'_, CudaBackend>) {
        let Tail { hidden, index, chosen, weight, sampled } = self;
        let live = Live::LogitRows;
        enc.gather(Gather { out: chosen, x: hidden, rows: index, live });
        enc.norm(Norm { out: chosen, x: chosen, weight, eps: 1e-5, residual: None, live });
        sampled.record(enc, live);
    }
}

#[test]
fn the_end_of_a_step() {
    let device = Device::new();
    let tail = Tail::new(&device, 1);
    let launches = device.launches(|enc| tail.record(enc));
    assert_eq!(names(&launches), ["gather", "norm", "sample_parts", "sample_weigh", "sample_draw"]);
    let counts = device.live(Live::LogitRows);
    let places = [3, 3, 8, 8, 8];
    assert!(launches.iter().zip(places).all(|(launch, place)| launch.address(place) == counts));
}

#[test]
fn a_replayed_plan_allocates_nothing() {
    let device = Device::new();
    let tail = Tail::new(&device, 8);
    let plan = device.backend.record(|enc| {
        enc.header(&device.header);
        tail.record(enc);
    });
    let plan = plan.unwrap();
    assert_eq!(device.recorded.take(), [], "recording launches nothing");
    let (allocations, bytes, writes) =
        (device.recorded.allocations(), device.recorded.bytes(), device.recorded.writes());
    device.backend.replay(&plan).unwrap();
    let first = device.recorded.take();
    assert_eq!(first.len(), 5);
    for _ in 0..3 {
        device.backend.replay(&plan).unwrap();
        assert_eq!(device.recorded.take(), first);
    }
    assert_eq!(device.recorded.allocations(), allocations);
    assert_eq!((device.recorded.bytes(), device.recorded.writes()), (bytes, writes));
    // A plan keeps what its launches point to.
    drop(tail);
    assert_eq!(device.recorded.bytes(), bytes);
    drop(plan);
    assert!(device.recorded.bytes() < bytes);
}

#[test]
fn a_larger_step_leaves_a_plan_its_scratch_memory() {
    let device = Device::new();
    let small = Sampled::new(&device, 1, 1000);
    let plan = device.backend.record(|enc| small.record(enc, Live::All)).unwrap();
    let before = device.recorded.bytes();
    let large = Sampled::new(&device, 64, 128_256);
    let tensors = device.recorded.bytes() - before;
    let launches = device.launches(|enc| large.record(enc, Live::All));
    assert!(device.recorded.bytes() > before + tensors, "the larger operation has its own");
    device.backend.replay(&plan).unwrap();
    assert_ne!(device.recorded.take()[0].address(9), launches[0].address(9));
}
