//! Directories that are wrong: each must be refused in one line that names the file and the remedy.
use crate::common::{Dir, entry, file, sound};
use anyfleet_tensor::{DType, WeightFormat};
use anyfleet_weights::{Config, Error, MatrixSpec, ModelDir, VectorSpec};
use std::path::Path;

/// Opens the directory, which must fail with a line that has all of `parts`.
#[track_caller]
fn refused(dir: &Dir, parts: &[&str]) {
    check(&ModelDir::open(dir.path()).expect_err("opened"), dir.path(), parts);
}

#[track_caller]
fn check(error: &Error, dir: &Path, parts: &[&str]) {
    let line = error.to_string();
    assert!(!line.chars().any(char::is_control), "control characters in {line:?}");
    assert!(line.len() < 800, "{} bytes: {line}", line.len());
    assert!(line.starts_with(&dir.display().to_string()), "{line:?} does not name the file");
    for part in parts {
        assert!(line.contains(part), "{line:?} lacks {part:?}");
    }
}

/// A directory with this as its model.safetensors.
fn single(bytes: &[u8]) -> Dir {
    let dir = Dir::new();
    dir.write("model.safetensors", bytes);
    dir
}

fn f32_bytes(count: usize) -> Vec<u8> {
    vec![0; 4 * count]
}

#[test]
fn a_sound_file_opens() {
    let dir = single(&sound(&[("a", &[2, 3], 1.5), ("b", &[3], 2.0)]));
    let model = ModelDir::open(dir.path()).unwrap();
    let a = model.tensor("a").unwrap();
    assert_eq!((a.dtype, a.shape, a.bytes.len()), (DType::F32, &[2, 3][..], 24));
    assert_eq!(model.vector(&VectorSpec::new(vec![("b".into(), 3), ("b".into(), 3)])).unwrap(), [2.0; 6]);
    assert_eq!(model.main_dtype(), Some(DType::F32));
    assert_eq!(model.bytes_by_dtype().into_iter().collect::<Vec<_>>(), [("F32".to_owned(), 36)]);
    assert_eq!(model.generation().eos_token_ids, [2]);
    assert_eq!(model.unused(["a".to_owned()]), ["b"]);
}

#[test]
fn truncated() {
    let whole = sound(&[("a", &[64], 1.0)]);
    let lens = [(0, "is empty"), (7, "truncated"), (20, "truncated"), (whole.len() - 1, "truncated")];
    for (len, words) in lens {
        refused(&single(&whole[..len]), &["model.safetensors", words, "download it again"]);
    }
    let need = format!("need {} bytes, but the file has {}", whole.len(), whole.len() - 1);
    refused(&single(&whole[..whole.len() - 1]), &[&need]);
}

#[test]
fn every_truncation_is_refused() {
    let whole = sound(&[("a", &[2, 2], 1.0), ("b", &[3], 1.0)]);
    for len in 0..whole.len() {
        refused(&single(&whole[..len]), &["model.safetensors"]);
    }
}

/// A changed byte is either refused in one line or leaves a file whose tensors lie inside it.
#[test]
fn every_changed_byte() {
    let whole = sound(&[("a", &[2, 2], 1.0), ("b", &[3], 1.0)]);
    let dir = Dir::new();
    for at in 0..whole.len() - 28 {
        for byte in [0, b'0', b'9', b'"', b',', b'}', b'\n', 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            dir.write("model.safetensors", &bytes);
            match ModelDir::open(dir.path()) {
                Err(error) => check(&error, dir.path(), &["model.safetensors"]),
                Ok(model) => {
                    for (name, shape) in model.tensors() {
                        if let Ok(view) = model.tensor(name) {
                            assert_eq!(view.bytes.len(), shape.iter().product::<usize>() * view.dtype.size());
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn bytes_after_the_end() {
    let mut bytes = sound(&[("a", &[4], 1.0)]);
    bytes.extend([0; 5]);
    refused(&single(&bytes), &["5 bytes after the last tensor", "download it again"]);
}

#[test]
fn oversized_header() {
    for len in [100_000_001u64, u64::MAX, 1 << 63] {
        let mut bytes = len.to_le_bytes().to_vec();
        bytes.extend([b'{'; 64]);
        refused(&single(&bytes), &[&format!("claims a header of {len} bytes"), "damaged"]);
    }
    let mut bytes = 99_000_000u64.to_le_bytes().to_vec();
    bytes.extend([b'{'; 64]);
    refused(&single(&bytes), &["header needs 99000008 bytes, but the file has 72"]);
}

#[test]
fn overlap_and_hole() {
    let two = |second: String| format!("{{{},{second}}}", entry("a", "F32", "[4]", 0, 16));
    let overlap = file(&two(entry("b", "F32", "[4]", 12, 28)), &f32_bytes(7));
    refused(&single(&overlap), &["tensor b at bytes 12..28 overlapping", "download it again"]);
    let same = file(&two(entry("b", "F32", "[4]", 0, 16)), &f32_bytes(4));
    refused(&single(&same), &["overlapping"]);
    let hole = file(&two(entry("b", "F32", "[4]", 20, 36)), &f32_bytes(9));
    refused(&single(&hole), &["tensor b at bytes 20..36 after a hole of 4 bytes", "download it again"]);
    let late = file(&format!("{{{}}}", entry("a", "F32", "[1]", 4, 8)), &f32_bytes(2));
    refused(&single(&late), &["after a hole of 4 bytes"]);
}

#[test]
fn impossible_sizes() {
    for shape in ["[9223372036854775808]", "[9223372036854775807]", "[4294967296,4294967296]", "[4611686018427387904]"]
    {
        let header = format!("{{{}}}", entry("a", "F32", shape, 0, 16));
        refused(&single(&file(&header, &f32_bytes(4))), &["tensor a of impossible size", "download it again"]);
    }
    let four_bits = format!("{{{}}}", entry("a", "F4", "[3]", 0, 2));
    refused(&single(&file(&four_bits, &[0; 2])), &["tensor a of impossible size"]);
    for shape in ["[99999999999999999999]", "[-1]", "[1.5]", "\"x\"", "[1,1,1,1,1,1,1,1,1]", "null"] {
        let header = format!("{{{}}}", entry("a", "F32", shape, 0, 4));
        refused(&single(&file(&header, &f32_bytes(1))), &["damaged header", "download it again"]);
    }
    let backwards = format!("{{{}}}", entry("a", "F32", "[1]", 8, 4));
    refused(&single(&file(&backwards, &f32_bytes(2))), &["at bytes 8..4"]);
    let huge = format!("{{{}}}", entry("a", "F32", "[4]", u64::MAX - 15, u64::MAX));
    refused(&single(&file(&huge, &f32_bytes(4))), &["tensor a"]);
    let size = format!("{{{}}}", entry("a", "BF16", "[4]", 0, 16));
    refused(&single(&file(&size, &f32_bytes(4))), &["shape [4] BF16 takes 8 bytes"]);
}

#[test]
fn damaged_headers() {
    let a = entry("a", "F32", "[1]", 0, 4);
    for header in [
        format!("{{{a},{a}}}"),
        "{".into(),
        "[]".into(),
        "null".into(),
        " {}".into(),
        format!("{{{a}}} x"),
        r#"{"a":{"dtype":"F32","shape":[1]}}"#.into(),
        r#"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#.into(),
        r#"{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.into(),
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#.into(),
        format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000)),
    ] {
        refused(&single(&file(&header, &f32_bytes(1))), &["header", "download it again"]);
    }
    refused(&single(&file(&format!("{{{a},{a}}}"), &f32_bytes(1))), &["a appears twice"]);
    let mut bytes = file(&format!("{{{}}}", entry("aXa", "F32", "[1]", 0, 4)), &f32_bytes(1));
    let x = bytes.iter().position(|&b| b == b'X').unwrap();
    bytes[x] = 0xff;
    refused(&single(&bytes), &["not UTF-8", "download it again"]);
}

#[test]
fn names_cannot_forge_lines() {
    let name = format!(r"evil\n\u001b[31m{}", "x".repeat(5000));
    refused(&single(&file(&format!("{{{}}}", entry(&name, "F32", "[2]", 0, 4)), &f32_bytes(1))), &["evil"]);
    let dir = single(&file(&format!("{{{}}}", entry("a", "I64", "[1]", 0, 8)), &[0; 8]));
    let model = ModelDir::open(dir.path()).unwrap();
    check(&model.tensor("no\nsuch").unwrap_err(), dir.path(), &["no\\nsuch is missing"]);
}

#[test]
fn metadata_and_padding_are_fine() {
    let header = format!(r#"{{"__metadata__":{{"format":"pt"}},{}}}   "#, entry("a", "F16", "[2]", 0, 4));
    let dir = single(&file(&header, &[0, 0x3c, 0, 0xc0]));
    let model = ModelDir::open(dir.path()).unwrap();
    assert_eq!(model.vector(&VectorSpec::new(vec![("a".into(), 2)])).unwrap(), [1.0, -2.0]);
    assert_eq!(model.tensors().count(), 1);
}

#[test]
fn wrong_tensors() {
    let header =
        [entry("w", "BF16", "[2,3]", 0, 12), entry("ids", "I64", "[1]", 12, 20), entry("none", "F32", "[0,3]", 20, 20)];
    let dir = single(&file(&format!("{{{}}}", header.join(",")), &[0; 20]));
    let model = ModelDir::open(dir.path()).unwrap();
    let matrix = |name: &str, rows, cols| {
        let spec = MatrixSpec::new(vec![(name.into(), rows)], cols);
        let mut copy = Vec::new();
        let weight = model.matrix(&spec, WeightFormat::Float(DType::F32), &mut copy);
        weight.map(|weight| (weight.rows(), weight.cols, weight.parts[0].dtype))
    };
    assert_eq!(matrix("w", 2, 3).unwrap(), (2, 3, DType::BF16));
    for (error, words) in [
        (matrix("w", 3, 2).unwrap_err(), "tensor w has shape [2, 3], but config.json asks for [3, 2]"),
        (matrix("none", 1, 3).unwrap_err(), "has shape [0, 3]"),
        (matrix("ids", 1, 1).unwrap_err(), "dtype I64; f32, bf16 and f16 are supported"),
        (matrix("gone", 1, 1).unwrap_err(), "tensor gone is missing; download"),
    ] {
        check(&error, dir.path(), &[words]);
    }
    let expected = || ["w", "x", "y", "z", "q"].map(|n| (n.to_owned(), vec![2, 3]));
    check(&model.check(expected()).unwrap_err(), dir.path(), &["lacks 4 of the 5 tensors", "(x, y, z, ...)"]);
}

#[test]
fn merged_parts_keep_their_order() {
    let dir = single(&sound(&[("v", &[1, 2], 3.0), ("q", &[2, 2], 1.0), ("k", &[1, 2], 2.0)]));
    let model = ModelDir::open(dir.path()).unwrap();
    let parts = [("q", 2), ("k", 1), ("v", 1)].map(|(n, rows)| (n.to_owned(), rows)).to_vec();
    let mut copy = Vec::new();
    let weight = model.matrix(&MatrixSpec::new(parts, 2), WeightFormat::Float(DType::BF16), &mut copy).unwrap();
    assert_eq!((weight.name.as_str(), weight.rows()), ("q+k+v", 4));
    let values: Vec<u8> = weight.parts.iter().flat_map(|p| p.bytes.iter().copied()).collect();
    let expected = [1.0f32, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0].map(f32::to_le_bytes).concat();
    assert_eq!(values, expected);
}

#[test]
fn parts_of_tensors() {
    let header = [entry("a", "F32", "[4,3]", 0, 48), entry("b", "F32", "[2,3]", 48, 72)];
    let numbers: Vec<u8> = (0..18u8).flat_map(|n| f32::from(n).to_le_bytes()).collect();
    let dir = single(&file(&format!("{{{}}}", header.join(",")), &numbers));
    let model = ModelDir::open(dir.path()).unwrap();
    let whole = MatrixSpec::new(vec![("a".into(), 4), ("b".into(), 2)], 3);
    let mut copy = Vec::new();
    let mut values = |spec: &MatrixSpec| -> Vec<f32> {
        let weight = model.matrix(spec, WeightFormat::Float(DType::F32), &mut copy).unwrap();
        let bytes: Vec<u8> = weight.parts.iter().flat_map(|p| p.bytes.iter().copied()).collect();
        assert_eq!((weight.all_rows(), weight.cols), (spec.rows(), spec.cols));
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    assert_eq!(values(&whole.take_rows(&[1..3, 1..2])), [3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 15.0, 16.0, 17.0]);
    let columns = [1.0, 2.0, 4.0, 5.0, 7.0, 8.0, 10.0, 11.0, 13.0, 14.0, 16.0, 17.0];
    assert_eq!(values(&whole.take_cols(1..3)), columns);
    assert_eq!(values(&whole.take_cols(0..3)), (0..18u8).map(f32::from).collect::<Vec<_>>());
    assert_eq!(whole.take_cols(1..3).tensors().collect::<Vec<_>>(), whole.tensors().collect::<Vec<_>>());
    let heads = MatrixSpec::of_heads("a", 2, 2, 1..2, 3);
    assert_eq!((heads.stack, values(&heads)), (2, vec![3.0, 4.0, 5.0, 9.0, 10.0, 11.0]));
    let heads = MatrixSpec::of_heads("a", 2, 2, 0..2, 3).turned();
    assert_eq!((heads.stack, heads.matrix_rows(), heads.cols), (2, 3, 2));
    assert_eq!(values(&heads), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0]);
    assert_eq!(heads.tensors().collect::<Vec<_>>(), [("a", [4, 3]); 2]);
}

#[test]
fn parts_of_vectors() {
    let dir = single(&sound(&[("a", &[4], 1.0), ("b", &[2], 2.0)]));
    let model = ModelDir::open(dir.path()).unwrap();
    let whole = VectorSpec::new(vec![("a".into(), 4), ("b".into(), 2)]);
    let part = whole.take(&[1..3, 1..2]);
    assert_eq!((part.len(), model.vector(&part).unwrap()), (3, vec![1.0, 1.0, 2.0]));
    assert_eq!(part.tensors().collect::<Vec<_>>(), [("a", 4), ("b", 2)]);
}

fn sharded(index: &str) -> Dir {
    let dir = Dir::new();
    dir.write("one.safetensors", &sound(&[("a", &[2], 1.0), ("extra", &[1], 9.0)]));
    dir.write("two.safetensors", &sound(&[("b", &[3], 2.0)]));
    dir.write("model.safetensors.index.json", index.as_bytes());
    dir
}

#[test]
fn shards() {
    let dir = sharded(r#"{"metadata":{},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#);
    let model = ModelDir::open(dir.path()).unwrap();
    assert_eq!(model.tensors().map(|(n, _)| n).collect::<Vec<_>>(), ["a", "b", "extra"]);
    let index = "model.safetensors.index.json";
    for (map, parts) in [
        (r#"{"a":"../x.safetensors"}"#, &[index, "../x.safetensors", "not inside"][..]),
        (r#"{"a":"/etc/passwd"}"#, &[index, "/etc/passwd", "not inside"]),
        (r#"{"a":"sub/../../x"}"#, &[index, "not inside"]),
        (r#"{"a":""}"#, &[index, "not inside"]),
        (r#"{"a":"."}"#, &[index, "not inside"]),
        (
            r#"{"a":"three.safetensors","b":"four.safetensors"}"#,
            &[index, "2 are missing", "four.safetensors", "download"],
        ),
        (r#"{"a":"one.safetensors","c":"two.safetensors"}"#, &["two.safetensors: tensor c is not there"]),
        (r#"{}"#, &[index, "lists no tensors"]),
        (r#"{"a":3}"#, &[index, "not a safetensors index"]),
        (r#"[]"#, &[index, "not a safetensors index"]),
    ] {
        refused(&sharded(&format!(r#"{{"weight_map":{map}}}"#)), parts);
    }
    refused(&sharded("{}"), &[index, "missing field `weight_map`"]);
}

#[test]
fn identity_is_of_contents() {
    let id = |dir: &Dir| ModelDir::open(dir.path()).unwrap().identity();
    let tensors: [(&str, &[usize], f32); 2] = [("a", &[2], 1.0), ("b", &[3], 2.0)];
    let whole = id(&single(&sound(&tensors)));
    assert_eq!(whole.len(), 64);
    assert_eq!(whole, id(&single(&sound(&tensors))));
    let dir = Dir::new();
    dir.write("one.safetensors", &sound(&tensors[..1])).write("two.safetensors", &sound(&tensors[1..]));
    dir.write("model.safetensors.index.json", br#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#);
    assert_eq!(whole, id(&dir), "sharding is not part of the identity");
    let large = |middle: f32| single(&sound(&[("a", &[9999], 0.0), ("b", &[1], middle)]));
    assert_ne!(id(&large(1.0)), id(&large(2.0)));
    assert_ne!(whole, id(&single(&sound(&[("a", &[1, 2], 1.0), ("b", &[3], 2.0)]))), "shape");
}

#[test]
fn directories_without_a_model() {
    let dir = Dir::empty();
    refused(&dir, &["has no config.json"]);
    let dir = Dir::new();
    refused(&dir, &["has no weights", "download"]);
    dir.write("pytorch_model.bin", b"x");
    refused(&dir, &["has pytorch_model.bin, but no safetensors", "save_pretrained"]);
    dir.write("model-00001-of-00002.safetensors", b"x");
    refused(&dir, &["model-00001-of-00002.safetensors", "neither", "download"]);
    let file = dir.join("config.json");
    check(&ModelDir::open(&file).unwrap_err(), &file, &["not a directory", "pass the directory"]);
    let gone = dir.join("gone");
    check(&ModelDir::open(&gone).unwrap_err(), &gone, &["cannot be opened"]);
}

#[cfg(unix)]
mod special_files {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    const NAMES: [&str; 4] =
        ["config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"];

    /// A sound directory in which `name` is not there yet.
    fn without(name: &str) -> Dir {
        let dir = Dir::empty();
        if name != "config.json" {
            dir.write("config.json", b"{}");
        }
        if !name.starts_with("model") {
            dir.write("model.safetensors", &sound(&[("a", &[1], 1.0)]));
        }
        dir
    }

    fn fifo(path: &Path) {
        let status = std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo");
        assert!(status.success());
    }

    #[test]
    fn fifo_socket_device_directory() {
        for name in NAMES {
            let dir = without(name);
            fifo(&dir.join(name));
            refused(&dir, &[name, "is a FIFO; a regular file is expected"]);

            let dir = without(name);
            let _socket = UnixListener::bind(dir.join(name)).expect("socket");
            refused(&dir, &[name, "is a socket"]);

            let dir = without(name);
            symlink("/dev/zero", dir.join(name)).unwrap();
            refused(&dir, &[name, "is a device"]);

            let dir = without(name);
            std::fs::create_dir(dir.join(name)).unwrap();
            refused(&dir, &[name, "is a directory"]);
        }
    }

    #[test]
    fn links() {
        for name in NAMES {
            let dir = without(name);
            symlink(name, dir.join(name)).unwrap();
            refused(&dir, &[name, "is a symbolic link that leads nowhere", "download"]);

            let dir = without(name);
            symlink("gone", dir.join(name)).unwrap();
            refused(&dir, &[name, "is a symbolic link to a file that does not exist", "download"]);
        }
        let dir = Dir::empty();
        std::fs::create_dir(dir.join("blobs")).unwrap();
        std::fs::create_dir(dir.join("snapshot")).unwrap();
        dir.write("blobs/1", b"{}").write("blobs/2", &sound(&[("a", &[1], 1.0)]));
        symlink("../blobs/1", dir.join("snapshot/config.json")).unwrap();
        symlink("../blobs/2", dir.join("snapshot/model.safetensors")).unwrap();
        assert!(ModelDir::open(dir.join("snapshot")).unwrap().contains("a"), "the cache's own layout");
    }

    #[test]
    fn a_shard_that_is_a_fifo() {
        let dir = Dir::new();
        dir.write("model.safetensors.index.json", br#"{"weight_map":{"a":"one.safetensors"}}"#);
        fifo(&dir.join("one.safetensors"));
        refused(&dir, &["one.safetensors", "is a FIFO"]);
    }
}

#[test]
fn broken_json() {
    for (text, words) in [
        (&b""[..], "is empty"),
        (b"{", "not valid JSON"),
        (b"[1]", "not an object"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"{\"a\": 1e999}", "not valid JSON"),
        (b"{\n\"rms_norm_eps\": NaN}", "line 2 holds NaN or Infinity"),
        (b"{\"a\": Infinity}", "line 1 holds NaN or Infinity"),
        (b"{\"a\": -Infinity}", "line 1 holds NaN or Infinity"),
        (b"{\"a\": Nope}", "not valid JSON"),
    ] {
        let dir = Dir::new();
        dir.write("config.json", text);
        refused(&dir, &["config.json", words]);
    }
    let dir = Dir::new();
    dir.write("config.json", format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000)).as_bytes());
    refused(&dir, &["config.json", "recursion limit"]);
    let large = std::fs::File::create(dir.join("config.json")).unwrap();
    large.set_len(1 << 40).unwrap();
    refused(&dir, &["config.json", "at most 16777216"]);
}

#[test]
fn config_values() {
    let parse = |text: &str| Config::parse("config.json".as_ref(), text.as_bytes()).unwrap();
    let config = parse(r#"{"n": -3, "f": "x", "w": 4.0, "z": null, "o": {"k": []}, "ids": [1, -2], "t": ["a", 1]}"#);
    let root = config.root();
    assert_eq!(root.uint("w", 1..=9).unwrap(), Some(4));
    assert_eq!(root.uint("z", 1..=9).unwrap(), None);
    assert_eq!(root.uint("absent", 1..=9).unwrap(), None);
    let section = root.section("o").unwrap().unwrap();
    for (error, line) in [
        (root.uint("n", 1..=9).unwrap_err(), "config.json: n is -3; expected a whole number in 1..=9"),
        (root.uint("w", 5..=9).unwrap_err(), "config.json: w is 4.0; expected a whole number in 5..=9"),
        (
            root.required_uint("gone", 1..=9).unwrap_err(),
            "config.json: gone is missing; expected a whole number in 1..=9",
        ),
        (root.float("f", 0.0..=1.0).unwrap_err(), "config.json: f is \"x\"; expected a number in 0..=1"),
        (root.flag("w").unwrap_err(), "config.json: w is 4.0; expected true or false"),
        (root.text("w").unwrap_err(), "config.json: w is 4.0; expected a string"),
        (root.texts("t").unwrap_err(), "config.json: t is [\"a\",1]; expected a list of strings"),
        (root.token_ids("ids").unwrap_err(), "config.json: ids is [1,-2]; expected a token id or a list of token ids"),
        (root.section("w").unwrap_err(), "config.json: w is 4.0; expected an object"),
        (section.uint("k", 1..=2).unwrap_err(), "config.json: o.k is []; expected a whole number in 1..=2"),
    ] {
        assert_eq!(error.to_string(), line);
    }
    for (text, dtype) in [
        (r#"{"torch_dtype": "bfloat16"}"#, Some(DType::BF16)),
        (r#"{"dtype": "float16"}"#, Some(DType::F16)),
        (r#"{"dtype": "float32", "torch_dtype": "bfloat16"}"#, Some(DType::F32)),
        (r#"{"torch_dtype": "float8_e4m3fn"}"#, None),
        ("{}", None),
    ] {
        assert_eq!(parse(text).dtype().unwrap(), dtype);
    }
}

#[test]
fn generation_config() {
    let dir = single(&sound(&[("a", &[1], 1.0)]));
    dir.write(
        "generation_config.json",
        br#"{"eos_token_id": [1, 2], "bos_token_id": 1, "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95}"#,
    );
    let generation = ModelDir::open(dir.path()).unwrap().generation().clone();
    assert_eq!((generation.eos_token_ids.as_slice(), generation.bos_token_id), (&[1, 2][..], Some(1)));
    assert_eq!((generation.temperature, generation.top_k, generation.top_p), (Some(0.6), Some(20), Some(0.95)));
    for (text, words) in [
        (r#"{"temperature": -1}"#, "temperature is -1; expected a number in 0..=1000"),
        (r#"{"top_p": 7}"#, "top_p is 7"),
        (r#"{"eos_token_id": "</s>"}"#, "eos_token_id is \"</s>\""),
        (r#"{"eos_token_id": 99999999999}"#, "eos_token_id"),
    ] {
        dir.write("generation_config.json", text.as_bytes());
        refused(&dir, &["generation_config.json", words]);
    }
}
