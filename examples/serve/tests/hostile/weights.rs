//! Checkpoints whose tensors are not what they should be.
use crate::checkpoint::{Checkpoint, safetensors};
use crate::process::{Refusals, Server};
use serde_json::{Value, json};

const FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const NORM: &str = "model.norm.weight";
const EMBED: &str = "model.embed_tokens.weight";

/// The sound weights with another length before the header.
fn claiming(length: u64) -> Checkpoint {
    let checkpoint = Checkpoint::chat();
    let mut bytes = checkpoint.read(FILE);
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    checkpoint.write(FILE, bytes)
}

/// The weights with this header text and their own data.
fn with_header(header: impl FnOnce(&Value) -> String) -> Checkpoint {
    let checkpoint = Checkpoint::chat();
    let (old, data) = checkpoint.tensors();
    checkpoint.write(FILE, safetensors(&header(&old), &data))
}

/// A sound header without its last brace, to go on.
fn open(header: &Value) -> String {
    header.to_string().strip_suffix('}').expect("an object").to_owned()
}

#[test]
fn truncated_and_oversized() {
    let mut refusals = Refusals::default();
    let mut check = |name: &str, checkpoint: Checkpoint, says: &[&str]| {
        refusals.model(name, checkpoint.path(), &says.iter().copied().chain([FILE]).collect::<Vec<_>>());
    };
    let whole = Checkpoint::chat().read(FILE);
    for length in [0, 1, 7, 8, 9, 500, whole.len() / 2, whole.len() - 1] {
        let checkpoint = Checkpoint::chat().write(FILE, &whole[..length]);
        check(&format!("{length} bytes of {}", whole.len()), checkpoint, &["download it again"]);
    }
    check(
        "bytes after the end",
        Checkpoint::chat().write(FILE, [&whole[..], b"xyz"].concat()),
        &["3 bytes after", "download"],
    );
    check("a gigabyte after the end", Checkpoint::chat().sparse(FILE, 1 << 30), &["bytes after", "download"]);
    for length in [100_000_001, 1 << 40, u64::MAX, u64::MAX - 7, 1 << 63] {
        check(&format!("a header of {length}"), claiming(length), &["header of", "at most 100000000", "damaged"]);
    }
    for length in [0, 1, 2, 99_999_999] {
        check(&format!("a header of {length}"), claiming(length), &["header", "download it again"]);
    }
    let spaces = with_header(|header| format!("{}{}}}", open(header), " ".repeat(99_000_000)));
    let (header, data) = spaces.tensors();
    drop(spaces);
    assert!(header.is_object() && !data.is_empty());
    let spaces = format!("{{{}", " ".repeat(99_999_999));
    check("a header of spaces", Checkpoint::chat().write(FILE, safetensors(&spaces, &[])), &["header", "download"]);
    let tensors: Vec<String> =
        (0..1_100_000).map(|i| format!(r#""{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#)).collect();
    let tensors = format!("{{{}}}", tensors.join(","));
    check("a million tensors", Checkpoint::chat().write(FILE, safetensors(&tensors, &[])), &["tensors", "download"]);
    refusals.done();
}

#[test]
fn damaged_headers() {
    let mut refusals = Refusals::default();
    let mut check = |name: &str, checkpoint: Checkpoint, says: &[&str]| {
        refusals.model(name, checkpoint.path(), &says.iter().copied().chain([FILE]).collect::<Vec<_>>());
    };
    check("overlap", Checkpoint::chat().edit_tensors(|h| shift(h, NORM, -4)), &["overlap", "download"]);
    check("hole", Checkpoint::chat().edit_tensors(|h| shift(h, NORM, 4)), &["download"]);
    let swapped = |h: &mut Value| h[NORM]["data_offsets"] = json!([256, 0]);
    check("offsets swapped", Checkpoint::chat().edit_tensors(swapped), &[NORM, "download"]);
    let wrapped = |h: &mut Value| h[NORM]["data_offsets"] = json!([u64::MAX - 255, u64::MAX]);
    check("offsets at the end of the world", Checkpoint::chat().edit_tensors(wrapped), &[NORM, "download"]);
    for offsets in [json!([-1, 255]), json!([0.5, 255]), json!([0]), json!([0, 1, 2]), json!("0-256"), Value::Null] {
        let name = format!("offsets {offsets}");
        check(&name, Checkpoint::chat().edit_tensors(|h| h[NORM]["data_offsets"] = offsets), &["header", "download"]);
    }
    for shape in [json!([1u64 << 62, 1 << 10]), json!([u64::MAX]), json!([u64::MAX, 0, u64::MAX]), json!([1u64 << 40])]
    {
        let name = format!("shape {shape}");
        check(&name, Checkpoint::chat().edit_tensors(|h| h[NORM]["shape"] = shape), &[NORM, "download"]);
    }
    let deep: Vec<u64> = vec![1; 100_000];
    for shape in [json!([-64]), json!([64.5]), json!("64"), json!(64), json!([[64]]), json!(deep), Value::Null] {
        let name: String = format!("shape {shape}").chars().take(40).collect();
        check(&name, Checkpoint::chat().edit_tensors(|h| h[NORM]["shape"] = shape), &["header", "download"]);
    }
    for dtype in [json!("F31"), json!("f32\n\u{1b}"), json!(32), json!(""), Value::Null, json!("x".repeat(1 << 20))] {
        let name: String = format!("dtype {dtype}").chars().take(40).collect();
        check(&name, Checkpoint::chat().edit_tensors(|h| h[NORM]["dtype"] = dtype), &["header", "download"]);
    }
    let nested = |close: bool| {
        with_header(|h| {
            let (open_list, end) = ("[".repeat(100_000), if close { "]".repeat(100_000) + "}" } else { String::new() });
            format!("{},\"x\":{open_list}{end}", open(h))
        })
    };
    check("deep nesting", nested(true), &["header", "download"]);
    check("deep nesting without an end", nested(false), &["header", "download"]);
    let metadata = |h: &Value| format!("{},\"__metadata__\":{}{}}}", open(h), "[".repeat(100_000), "]".repeat(100_000));
    check("deep metadata", with_header(metadata), &["header", "download"]);
    let twice = |h: &Value| format!("{},\"{NORM}\":{}}}", open(h), h[NORM]);
    check("a tensor twice", with_header(twice), &[NORM, "twice", "download"]);
    let forged = |h: &Value| format!("{},\"a\\nerror: b\\u001b[2J{}\":1}}", open(h), "c".repeat(1 << 20));
    check("a name that forges a line", with_header(forged), &["header", "download"]);
    check("a list", with_header(|_| "[1, 2]".into()), &["header", "download"]);
    check("no object", with_header(|_| "null".into()), &["header", "download"]);
    check("nothing in it", Checkpoint::chat().write(FILE, safetensors("{}", &[])), &["lacks", EMBED, "download"]);
    let checkpoint = Checkpoint::chat().write(FILE, [&3u64.to_le_bytes()[..], b"{\xff}"].concat());
    check("no UTF-8", checkpoint, &["UTF-8", "download"]);
    refusals.done();
}

/// Moves a tensor's bytes.
fn shift(header: &mut Value, name: &str, by: i64) {
    for end in 0..2 {
        let offset = &mut header[name]["data_offsets"][end];
        *offset = json!(offset.as_i64().expect("an offset") + by);
    }
}

#[test]
fn tensors_that_are_not_the_model() {
    let mut refusals = Refusals::default();
    let mut check = |name: &str, checkpoint: Checkpoint, says: &[&str]| {
        refusals.model(name, checkpoint.path(), &says.iter().copied().chain([FILE]).collect::<Vec<_>>());
    };
    // The same bytes under other types.
    for (dtype, shape) in [
        ("I8", json!([256])),
        ("F64", json!([32])),
        ("F8_E4M3", json!([256])),
        ("I64", json!([32])),
        ("BOOL", json!([256])),
        ("U32", json!([64])),
        ("C64", json!([32])),
    ] {
        let checkpoint = Checkpoint::chat().edit_tensors(|h| {
            h[NORM]["dtype"] = json!(dtype);
            h[NORM]["shape"] = shape;
        });
        check(dtype, checkpoint, &[NORM]);
    }
    let retyped = Checkpoint::chat().edit_tensors(|h| h[NORM]["dtype"] = json!("I32"));
    check("I32 of the right shape", retyped, &[NORM, "I32", "f32, bf16 and f16 are supported", "use a checkpoint"]);
    let halved =
        |h: &mut Value| h[NORM] = json!({"dtype": "F16", "shape": [128], "data_offsets": h[NORM]["data_offsets"]});
    check(
        "half the width, twice the values",
        Checkpoint::chat().edit_tensors(halved),
        &[NORM, "[128]", "[64]", "config.json"],
    );
    for shape in [json!([8, 8]), json!([64, 1]), json!([1, 64])] {
        let name = format!("{NORM} {shape}");
        let checkpoint = Checkpoint::chat().edit_tensors(|h| h[NORM]["shape"] = shape);
        check(&name, checkpoint, &[NORM, "shape", "[64]", "config.json"]);
    }
    let turned = Checkpoint::chat().edit_tensors(|h| h[EMBED]["shape"] = json!([64, 443]));
    check("a transposed matrix", turned, &[EMBED, "[64, 443]", "[443, 64]"]);
    let down = "model.layers.0.mlp.down_proj.weight";
    let up = "model.layers.0.mlp.up_proj.weight";
    let swapped = Checkpoint::chat().edit_tensors(|h| {
        let first = h[down].take();
        h[down] = h[up].take();
        h[up] = first;
    });
    check("two tensors swapped", swapped, &["_proj.weight", "shape", "config.json"]);
    for name in [NORM, EMBED, down, "model.layers.1.self_attn.k_proj.weight"] {
        // Under another name, so that the offsets stay whole.
        let checkpoint = Checkpoint::chat()
            .edit_tensors(|h| h["unrelated"] = h.as_object_mut().and_then(|h| h.remove(name)).expect(name));
        check(&format!("no {name}"), checkpoint, &["lacks 1 of the", name, "download", "config.json"]);
    }
    refusals.done();
}

#[test]
fn hostile_indexes() {
    let mut refusals = Refusals::default();
    let mut check = |name: &str, checkpoint: Checkpoint, says: &[&str]| refusals.model(name, checkpoint.path(), says);
    let first = "model-00001-of-00004.safetensors";
    let pointing = |to: &str| Checkpoint::sharded().edit(INDEX, |i| i["weight_map"][NORM] = json!(to));
    for to in [
        "../x.safetensors",
        "/etc/passwd",
        "",
        ".",
        "..",
        "a/../../x",
        "./model-00001-of-00004.safetensors/..",
        "\u{0}",
    ] {
        check(&format!("a shard {to:?}"), pointing(to), &[INDEX]);
    }
    check("a shard outside", pointing("../x.safetensors"), &["not inside the model directory", "do not use"]);
    check("a shard that is not there", pointing("model-00009-of-00004.safetensors"), &["00009", "missing", "download"]);
    check("the wrong shard", pointing(first), &[NORM, "is not there", INDEX, "download"]);
    check("the index itself", pointing(INDEX), &[INDEX]);
    check("a directory", pointing("d").write("keep", "").edit(INDEX, |_| {}), &["d"]);
    let all = |to: Value| Checkpoint::sharded().edit(INDEX, |i| i["weight_map"] = to);
    for (name, map, says) in [
        ("an empty map", json!({}), &["lists no tensors", "download"][..]),
        ("a list", json!([first]), &["not a safetensors index", "download"]),
        ("numbers", json!({"model.norm.weight": 1}), &["not a safetensors index", "download"]),
        ("null", Value::Null, &["not a safetensors index", "download"]),
    ] {
        check(name, all(map), says);
    }
    let many: Value = (0..9000)
        .map(|i| (format!("t{i}"), json!(format!("s{i}.safetensors"))))
        .collect::<serde_json::Map<_, _>>()
        .into();
    check("9000 shards", all(many), &[INDEX, "9000 shards", "at most"]);
    check("no map", Checkpoint::sharded().write(INDEX, "{\"metadata\": {}}"), &[INDEX, "weight_map", "download"]);
    let deep = format!("{{\"weight_map\": {}}}", "{\"a\":".repeat(100_000));
    check("deep nesting", Checkpoint::sharded().write(INDEX, deep), &[INDEX, "download"]);
    check("65 MiB", Checkpoint::sharded().sparse(INDEX, 65 << 20), &[INDEX, "at most"]);
    let listed_only = Checkpoint::sharded().edit(INDEX, |i| i["weight_map"]["model.layers.0.extra"] = json!(first));
    check("a tensor that no shard has", listed_only, &["model.layers.0.extra", "is not there", "download"]);
    // Links in a circle, one shard to the next.
    let circle = Checkpoint::sharded();
    for (from, to) in [(1, 2), (2, 1)] {
        let name = |n: u32| format!("model-0000{n}-of-00004.safetensors");
        std::fs::remove_file(circle.join(&name(from))).expect("remove");
        std::os::unix::fs::symlink(name(to), circle.join(&name(from))).expect("link");
    }
    check("shards that are each other", circle, &[first, "link", "download"]);
    refusals.done();
}

#[test]
fn odd_but_sound_checkpoints_serve() {
    // A tensor in two shards is the one that the index says.
    let twice = Checkpoint::sharded();
    let copy = twice.read("model-00001-of-00004.safetensors");
    let twice = twice.write("model-00000-of-00004.safetensors", copy);
    let extra = Checkpoint::chat().edit_tensors(|h| h["__metadata__"] = json!({"format": "pt", "x": "\u{0}\n"}));
    let empty = Checkpoint::chat()
        .edit_tensors(|h| h["rotary.empty"] = json!({"dtype": "F64", "shape": [0, 5], "data_offsets": [0, 0]}));
    let linked = Checkpoint::chat();
    std::fs::rename(linked.join(FILE), linked.join("blob")).expect("rename");
    std::os::unix::fs::symlink("blob", linked.join(FILE)).expect("link");
    for checkpoint in [twice, extra, empty, linked] {
        Server::of(checkpoint.path(), &["--dtype", "bf16"]).stop();
    }
    // NaN and infinity are numbers; what the model says is worth nothing, but it is said.
    let checkpoint = Checkpoint::chat();
    let (header, data) = checkpoint.tensors();
    let spoiled: Vec<u8> = data
        .chunks(4)
        .enumerate()
        .flat_map(|(i, old)| if i % 3 == 0 { f32::NAN.to_le_bytes() } else { [old[0], old[1], 0x80, 0x7f] })
        .collect();
    let checkpoint = checkpoint.write(FILE, safetensors(&header.to_string(), &spoiled));
    let server = Server::of(checkpoint.path(), &[]);
    for (temperature, logprobs) in [("0", "null"), ("1", "5")] {
        let body = format!(
            r#"{{"model": "{}", "prompt": [5], "max_tokens": 4, "temperature": {temperature}, "logprobs": {logprobs}, "seed": 1}}"#,
            checkpoint.name()
        );
        let reply = crate::http::post(&server.address, "/v1/completions", body.as_bytes());
        assert!(reply.status == 200 || reply.body.contains("NaN"), "{reply:?}");
    }
    server.stop();
}
