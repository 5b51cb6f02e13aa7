//! Packs of weights: sound, damaged, foreign and too old ones, and folders that cannot be written to.
use crate::common::{Dir, sound};
use anyfleet_tensor::{DType, WeightFormat};
use anyfleet_weights::ModelDir;
use anyfleet_weights::pack::{PackMatrix, PackPlace};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

const STORE: WeightFormat = WeightFormat::Float(DType::BF16);

/// A checkpoint, a folder for packs, and what is to be kept.
struct Case {
    dir: Dir,
    packs: Dir,
    matrices: Vec<(PackMatrix, Vec<u8>)>,
}

impl Case {
    fn new() -> Case {
        let dir = Dir::new();
        dir.write("model.safetensors", &sound(&[("a", &[2, 3], 1.0)]));
        let matrix =
            |name: &str, rows, store, gated| PackMatrix { name: name.into(), stack: 1, rows, cols: 3, store, gated };
        let matrices = vec![
            (matrix("a+b", 200, STORE, false), (0..1200).map(|i| (i % 251) as u8).collect()),
            (matrix("c", 2, WeightFormat::Q8, true), vec![7; 5000]),
            (matrix("d", 1, WeightFormat::Q4, false), vec![9; 64]),
        ];
        Case { dir, packs: Dir::empty(), matrices }
    }

    fn place_for(&self, layout: &str, store: WeightFormat) -> PackPlace {
        let model = ModelDir::open(self.dir.path()).unwrap();
        PackPlace::new(self.packs.path(), &model, layout, store).unwrap()
    }

    fn place(&self) -> PackPlace {
        self.place_for("test-1", STORE)
    }

    fn write(&self, place: &PackPlace) -> Result<(), String> {
        let matrices: Vec<_> = self.matrices.iter().map(|(m, b)| (m.clone(), b.as_slice())).collect();
        place.write(&matrices).map_err(|e| e.to_string())
    }

    /// Whether there is a pack with exactly these matrices, or why it cannot be used.
    fn read(&self, place: &PackPlace) -> Result<bool, String> {
        let expected: Vec<PackMatrix> = self.matrices.iter().map(|(m, _)| m.clone()).collect();
        let size = |m: &PackMatrix| self.matrices.iter().find(|(other, _)| other == m).unwrap().1.len();
        let pack = place.open(&expected, size).map_err(|e| e.to_string())?;
        let Some(pack) = pack else { return Ok(false) };
        pack.prefetch();
        for (matrix, bytes) in &self.matrices {
            let kept = pack.bytes(&matrix.name).unwrap();
            assert_eq!(*kept, **bytes, "{}", matrix.name);
            assert_eq!(kept.as_ptr().addr() % 64, 0);
        }
        assert!(pack.bytes("e").is_none());
        Ok(true)
    }
}

fn files(folder: &Path) -> Vec<String> {
    let list = fs::read_dir(folder).unwrap();
    list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn what_is_written_is_read() {
    let case = Case::new();
    let place = case.place();
    assert_eq!(case.read(&place), Ok(false));
    case.write(&place).unwrap();
    assert_eq!(case.read(&place), Ok(true));
    assert_eq!(files(case.packs.path()).len(), 1);
    // Another layout or format is another pack.
    for other in [case.place_for("test-2", STORE), case.place_for("test-1", WeightFormat::Q8)] {
        assert_eq!(case.read(&other), Ok(false));
        case.write(&other).unwrap();
    }
    assert_eq!((case.read(&place), files(case.packs.path()).len()), (Ok(true), 3));
}

#[test]
fn a_changed_checkpoint_has_another_pack_and_the_old_one_goes() {
    let case = Case::new();
    case.write(&case.place()).unwrap();
    let file = case.dir.join("model.safetensors");
    let later = SystemTime::now() + Duration::from_secs(5);
    fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
    assert_eq!(case.read(&case.place()), Ok(false), "touched");
    case.write(&case.place()).unwrap();
    assert_eq!((case.read(&case.place()), files(case.packs.path()).len()), (Ok(true), 1));
    // Another file with the same time.
    fs::write(&file, sound(&[("a", &[2, 2], 1.0), ("b", &[2], 1.0)])).unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
    assert_eq!(case.read(&case.place()), Ok(false), "another header");
}

#[test]
fn damaged_foreign_and_old_files_are_refused_and_replaced() {
    let case = Case::new();
    let place = case.place();
    case.write(&place).unwrap();
    let good = fs::read(place.path()).unwrap();
    let edit = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let other = {
        let other = case.place_for("test-2", STORE);
        case.write(&other).unwrap();
        fs::read(other.path()).unwrap()
    };
    let damaged = [
        ("is truncated", Vec::new()),
        ("is truncated", good[..40].to_vec()),
        ("is truncated", good[..300].to_vec()),
        ("does not have the size", good[..good.len() - 1].to_vec()),
        ("does not have the size", edit(&|b| b.push(0))),
        ("is not a pack", edit(&|b| b[0] ^= 1)),
        ("is not a pack", vec![b'x'; 10_000]),
        ("is of another version", edit(&|b| b[8] = 0)),
        ("is truncated", edit(&|b| b[12..20].fill(0xFF))),
        ("has a damaged table", edit(&|b| b[60] ^= 1)),
        ("does not hold this model's weights", edit(&|b| b[4096] ^= 1)),
        ("does not hold this model's weights", edit(&|b| *b.last_mut().unwrap() ^= 1)),
        ("does not hold this model's weights", edit(&|b| b[4096..].fill(0))),
        ("was made from something else", other),
    ];
    for (reason, bytes) in damaged {
        fs::write(place.path(), bytes).unwrap();
        let message = case.read(&place).unwrap_err();
        assert!(message.contains(reason) && message.contains("written anew"), "{reason}: {message}");
        case.write(&place).unwrap();
        assert_eq!(case.read(&place), Ok(true), "after {reason}");
    }
    // Other matrices than the model has.
    let mut renamed = Case { matrices: case.matrices.clone(), ..Case::new() };
    renamed.matrices[1].0.rows = 3;
    assert!(renamed.read(&place).unwrap_err().contains("does not hold"));
    renamed.matrices.pop();
    assert!(renamed.read(&place).is_err());
}

#[test]
fn folders_that_cannot_be_used_are_errors_and_leave_nothing() {
    let case = Case::new();
    case.packs.write("file", b"");
    let model = ModelDir::open(case.dir.path()).unwrap();
    let place = PackPlace::new(&case.packs.join("file"), &model, "test-1", STORE).unwrap();
    assert_eq!(case.read(&place), Ok(false));
    assert!(case.write(&place).unwrap_err().contains("cannot be written"));
    // A directory where the pack should be.
    let place = case.place();
    fs::create_dir(place.path()).unwrap();
    assert!(case.read(&place).is_err());
    assert!(case.write(&place).unwrap_err().contains("cannot be written"));
    assert!(!files(case.packs.path()).iter().any(|name| name.ends_with("unfinished")));
}

#[test]
fn what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not() {
    let case = Case::new();
    let place = case.place();
    let name = |what: &str| place.path().with_extension(format!("{what}.unfinished"));
    fs::write(name("dead"), b"half").unwrap();
    let living = fs::File::create(name("alive")).unwrap();
    living.try_lock().unwrap();
    let age = |what: &str| {
        let file = fs::File::options().append(true).open(name(what)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    };
    // One that was made just now may not be locked yet.
    case.write(&case.place_for("test-3", STORE)).unwrap();
    assert!(name("dead").exists() && name("alive").exists());
    age("dead");
    age("alive");
    // It will be there soon: nothing is to be done.
    case.write(&place).unwrap();
    assert!(!place.path().exists() && name("dead").exists());
    let other = case.place_for("test-2", STORE);
    case.write(&other).unwrap();
    assert!(!name("dead").exists() && name("alive").exists());
    drop(living);
    case.write(&place).unwrap();
    assert!(place.path().exists() && !name("alive").exists());
}

#[test]
fn many_writers_at_once_leave_one_sound_pack() {
    let case = Case::new();
    let place = case.place();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                case.write(&place).unwrap();
                assert!(case.read(&place).is_ok());
            });
        }
    });
    assert_eq!(case.read(&place), Ok(true));
    assert_eq!(files(case.packs.path()).len(), 1);
}
