//! Models that are part of the program: opened and refused as directories are.
use crate::common::{Dir, sound};
use anyfleet_weights::{Bundle, Config, ModelDir, ModelFiles, VectorSpec};

type File<'a> = (&'static str, &'a [u8]);

const CONFIG: File<'_> = ("config.json", br#"{"architectures": ["LlamaForCausalLM"], "eos_token_id": 2}"#);
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A model of these files; a test may keep its memory for good.
fn bundle(files: &[File<'_>]) -> Bundle {
    let files: Vec<_> = files.iter().map(|&(name, bytes)| (name, &*bytes.to_vec().leak())).collect();
    Bundle { name: "tiny", files: files.leak() }
}

/// A directory of these files.
fn dir(files: &[File<'_>]) -> Dir {
    let dir = Dir::empty();
    for (name, bytes) in files {
        dir.write(name, bytes);
    }
    dir
}

/// What the files are refused with, as part of the program and in a directory, which must agree but for
/// the place.
#[track_caller]
fn refused(files: &[File<'_>], parts: &[&str]) {
    let line = ModelDir::open(bundle(files)).expect_err("opened").to_string();
    assert!(line.starts_with("bundled model tiny"), "{line:?} does not name the model");
    for part in parts {
        assert!(line.contains(part), "{line:?} lacks {part:?}");
    }
    let dir = dir(files);
    let in_dir = ModelDir::open(dir.path()).expect_err("opened").to_string();
    assert_eq!(in_dir.replace(&dir.path().display().to_string(), "bundled model tiny"), line);
}

#[test]
fn a_sound_model_opens_as_its_directory_does() {
    let weights = sound(&[("a", &[2, 3], 1.5), ("b", &[3], 2.0)]);
    let generation: File<'_> = ("generation_config.json", br#"{"eos_token_id": 7, "temperature": 0.5}"#);
    let files = [CONFIG, generation, (SINGLE, &weights)];
    let bundle = bundle(&files);
    let model = ModelDir::open(bundle).unwrap();
    assert!(matches!(model.files(), ModelFiles::Bundle(_)) && model.files().dir().is_none());
    assert_eq!(model.generation().eos_token_ids, [7]);
    assert_eq!(model.vector(&VectorSpec::new(vec![("b".into(), 3)])).unwrap(), [2.0; 3]);
    // Borrowed where it lies, not copied.
    let place = bundle.file(SINGLE).unwrap().as_ptr_range();
    assert!(place.contains(&model.tensor("a").unwrap().bytes.as_ptr()));
    let dir = dir(&files);
    assert_eq!(model.identity(), ModelDir::open(dir.path()).unwrap().identity());
    let shown = format!("{model:?}");
    assert!(shown.contains("bundle") || shown.contains("Bundle"), "{shown}");
    assert!(shown.len() < 4000, "{} characters of a model of {} bytes", shown.len(), weights.len());
}

#[test]
fn shards_are_found_by_the_index() {
    let (one, two) = (sound(&[("a", &[2], 1.0)]), sound(&[("b", &[3], 2.0)]));
    let index: File<'_> = (INDEX, br#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#);
    let files = [CONFIG, index, ("one.safetensors", &one), ("two.safetensors", &two)];
    assert_eq!(ModelDir::open(bundle(&files)).unwrap().tensors().count(), 2);
    refused(&files[..3], &[INDEX, "1 are missing (two.safetensors)"]);
    let outside: File<'_> = (INDEX, br#"{"weight_map": {"a": "../one.safetensors"}}"#);
    refused(&[CONFIG, outside], &[INDEX, "not inside the model directory"]);
    refused(&[CONFIG, (INDEX, b"{}")], &[INDEX, "weight_map"]);
}

#[test]
fn what_is_missing_is_named() {
    let weights = sound(&[("a", &[2], 1.0)]);
    refused(&[], &["has no config.json"]);
    refused(&[(SINGLE, &weights)], &["has no config.json"]);
    refused(&[CONFIG], &["has no weights", SINGLE]);
    refused(&[CONFIG, ("pytorch_model.bin", b"x")], &["has pytorch_model.bin, but no safetensors"]);
}

#[test]
fn what_is_damaged_is_named() {
    let weights = sound(&[("a", &[2], 1.0)]);
    for len in 0..weights.len() {
        refused(&[CONFIG, (SINGLE, &weights[..len])], &[SINGLE]);
    }
    refused(&[CONFIG, (SINGLE, &[0xff; 64])], &[SINGLE, "claims a header"]);
    refused(&[CONFIG, (SINGLE, &[&weights[..], b"x"].concat())], &[SINGLE, "1 bytes after the last tensor"]);
    refused(&[("config.json", b"{"), (SINGLE, &weights)], &["config.json", "not valid JSON"]);
    refused(&[("config.json", b"[]"), (SINGLE, &weights)], &["config.json", "not an object"]);
    let large = vec![b' '; (16 << 20) + 1];
    refused(&[("config.json", &large), (SINGLE, &weights)], &["config.json", "16777217 bytes"]);
    let generation: File<'_> = ("generation_config.json", br#"{"temperature": -1}"#);
    refused(&[CONFIG, generation, (SINGLE, &weights)], &["generation_config.json", "temperature is -1"]);
    let config = Config::open(bundle(&[CONFIG])).unwrap();
    assert_eq!(config.file(), "bundled model tiny/config.json");
}
