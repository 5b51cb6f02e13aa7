//! Packed weights kept between starts: the same bits, without reading the checkpoint's matrices again.
mod common;

use anyfleet::{DTypeSpec, Engine, EngineBuilder, PackCache, QuantizeSpec};
use common::{Driver, fixtures_dir};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A copy of a fixture, and a folder for packs.
struct Case {
    temp: tempfile::TempDir,
}

impl Case {
    fn new(fixture: &str) -> Case {
        let case = Case { temp: tempfile::tempdir().expect("temporary directory") };
        fs::create_dir(case.model()).expect("directory");
        for entry in fs::read_dir(fixtures_dir().join(fixture)).expect("fixture") {
            let entry = entry.expect("file");
            fs::copy(entry.path(), case.model().join(entry.file_name())).expect("copy");
        }
        case
    }

    fn model(&self) -> PathBuf {
        self.temp.path().join("model")
    }
    fn packs(&self) -> PathBuf {
        self.temp.path().join("packs")
    }

    fn builder(&self, (dtype, quantize): (DTypeSpec, QuantizeSpec)) -> EngineBuilder {
        Engine::builder(self.model().to_string_lossy()).dtype(dtype).quantize(quantize).kv_cache_bytes(1 << 20)
    }

    /// Logits of a start that keeps packs.
    fn start(&self, kept: (DTypeSpec, QuantizeSpec)) -> Vec<u32> {
        logits(&self.builder(kept).pack_cache(PackCache::Dir(self.packs())))
    }

    /// The only pack, once it is there.
    fn pack(&self) -> PathBuf {
        self.wait_for(1).remove(0)
    }

    /// As many packs, once they are there.
    fn wait_for(&self, count: usize) -> Vec<PathBuf> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            let list = fs::read_dir(self.packs()).into_iter().flatten().flatten().map(|entry| entry.path());
            let found: Vec<PathBuf> = list.filter(|path| path.extension().is_some_and(|e| e == "pack")).collect();
            if found.len() == count {
                return found;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{count} packs were not written");
    }

    /// Overwrites all matrices of the checkpoint, and sets its files' times to what they were if `secretly`.
    fn spoil(&self, secretly: bool) {
        let files = fs::read_dir(self.model()).expect("model").map(|entry| entry.expect("file").path());
        for path in files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")) {
            spoil(&path, secretly);
        }
    }
}

fn spoil(path: &Path, secretly: bool) {
    let bytes = fs::read(path).expect("checkpoint");
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header: HashMap<String, serde_json::Value> = serde_json::from_slice(&bytes[8..end]).expect("header");
    let time = fs::metadata(path).and_then(|m| m.modified()).expect("time");
    let mut file = File::options().write(true).open(path).expect("checkpoint");
    for tensor in header.values().filter(|t| t["shape"].as_array().is_some_and(|shape| shape.len() == 2)) {
        let at = |i: usize| tensor["data_offsets"][i].as_u64().expect("offset");
        file.seek(SeekFrom::Start(end as u64 + at(0))).expect("seek");
        file.write_all(&vec![0x2F; (at(1) - at(0)) as usize]).expect("write");
    }
    file.set_modified(if secretly { time } else { time + Duration::from_secs(1) }).expect("time");
}

/// Bits of the logits at some positions of a prompt.
fn logits(builder: &EngineBuilder) -> Vec<u32> {
    let mut executor = builder.executor().expect("an executor");
    let ids: Vec<u32> = (3..30).collect();
    let (_, rows) = Driver { executor: &mut *executor, chunk: 16 }.score(&ids, &[0, 13, 26]);
    rows.concat().into_iter().map(f32::to_bits).collect()
}

const BF16: (DTypeSpec, QuantizeSpec) = (DTypeSpec::Bf16, QuantizeSpec::None);

#[test]
fn a_second_start_has_the_same_bits_and_reads_no_matrix() {
    let formats = [
        BF16,
        (DTypeSpec::F32, QuantizeSpec::None),
        (DTypeSpec::F16, QuantizeSpec::None),
        (DTypeSpec::Bf16, QuantizeSpec::Q8),
        (DTypeSpec::F32, QuantizeSpec::Q4),
        (DTypeSpec::Bf16, QuantizeSpec::F8),
    ];
    for fixture in ["qwen3-tied", "llama3", "mistral-window", "qwen3-moe", "qwen3-fp8"] {
        for kept in formats {
            let case = Case::new(fixture);
            let plain = logits(&case.builder(kept));
            assert!(!case.packs().exists(), "nothing is written unless it is asked for");
            assert_eq!(case.start(kept), plain, "{fixture} {kept:?}, first start");
            let pack = case.pack();
            case.spoil(true);
            assert_ne!(logits(&case.builder(kept)), plain, "{fixture} {kept:?}: the matrices are spoilt");
            assert_eq!(case.start(kept), plain, "{fixture} {kept:?}, second start");
            assert_eq!(case.pack(), pack);
        }
    }
}

#[test]
fn a_changed_checkpoint_is_not_served_from_its_old_pack() {
    let case = Case::new("qwen3-tied");
    let old = case.start(BF16);
    let pack = case.pack();
    case.spoil(false);
    let new = logits(&case.builder(BF16));
    assert_ne!(new, old);
    assert_eq!(case.start(BF16), new);
    let start = Instant::now();
    while case.pack() == pack {
        assert!(start.elapsed() < Duration::from_secs(60), "no new pack was written");
    }
    assert_eq!(case.start(BF16), new);
}

#[test]
fn a_damaged_pack_is_ignored_and_replaced() {
    let case = Case::new("qwen3-tied");
    let plain = case.start(BF16);
    let good = fs::read(case.pack()).expect("pack");
    for damaged in [b"not a pack".to_vec(), good[..good.len() / 2].to_vec()] {
        fs::write(case.pack(), &damaged).expect("write");
        assert_eq!(case.start(BF16), plain);
        let start = Instant::now();
        while fs::read(case.pack()).expect("pack") != good {
            assert!(start.elapsed() < Duration::from_secs(60), "the pack was not written anew");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_folder_that_cannot_be_written_to_is_no_reason_not_to_start() {
    let case = Case::new("qwen3-tied");
    let plain = logits(&case.builder(BF16));
    for folder in [&case.model().join("config.json").join("packs"), Path::new("/proc/packs")] {
        assert_eq!(logits(&case.builder(BF16).pack_cache(PackCache::Dir(folder.to_owned()))), plain);
    }
}

#[test]
fn starts_at_the_same_time_agree() {
    let case = Case::new("llama3");
    let plain = logits(&case.builder(BF16));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..3).for_each(|_| assert_eq!(case.start(BF16), plain)));
        }
    });
    let pack = case.pack();
    assert_eq!(case.start(BF16), plain);
    assert_eq!(case.pack(), pack);
}

#[test]
fn each_part_of_a_split_model_has_a_pack_of_its_own() {
    let case = Case::new("llama2");
    let kept = (DTypeSpec::Bf16, QuantizeSpec::Q8);
    let start = |device: &str| {
        let builder = case.builder(kept).device(device.parse().expect("a device"));
        logits(&builder.pack_cache(PackCache::Dir(case.packs())))
    };
    let (shared, divided) = (start("cpu+cpu"), start("cpu,cpu"));
    case.wait_for(4);
    case.spoil(true);
    assert_eq!(start("cpu+cpu"), shared);
    assert_eq!(start("cpu,cpu"), divided);
    assert_ne!(start("cpu"), divided, "a whole model was loaded from the packs of its parts");
}
