//! Every file of a model directory replaced by what is no such file.
use crate::checkpoint::Checkpoint;
use crate::http::post;
use crate::process::{Refusals, Server};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

/// What can be where a file should be, and what the refusal says of it. `WHOLE` is the sound file.
type Kind = (&'static str, fn(&Path, &[u8]), &'static [&'static str]);

const NOT_A_FILE: &[Kind] = &[
    (
        "a FIFO",
        |path, _| assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo").success()),
        &["regular file"],
    ),
    ("a socket", |path, _| drop(UnixListener::bind(path).expect("bind")), &["regular file"]),
    ("a directory", |path, _| fs::create_dir(path).expect("mkdir"), &["regular file"]),
    ("an endless device", |path, _| symlink("/dev/zero", path).expect("link"), &["regular file"]),
    ("a link to itself", |path, _| symlink(path, path).expect("link"), &[]),
    ("a dangling link", |path, _| symlink("nothing-there", path).expect("link"), &[]),
    ("a link to its directory", |path, _| symlink(".", path).expect("link"), &["regular file"]),
];

const DAMAGED: &[Kind] = &[
    ("empty", |path, _| fs::write(path, "").expect("write"), &[]),
    ("one byte long", |path, whole| fs::write(path, &whole[..1]).expect("write"), &[]),
    ("cut in half", |path, whole| fs::write(path, &whole[..whole.len() / 2]).expect("write"), &[]),
    (
        "short of its end",
        |path, whole| fs::write(path, &whole.trim_ascii_end()[..whole.trim_ascii_end().len() - 1]).expect("write"),
        &[],
    ),
    ("zeros", |path, _| fs::write(path, [0; 5000]).expect("write"), &[]),
    ("noise", |path, _| fs::write(path, noise(5000)).expect("write"), &[]),
    ("a page of HTML", |path, _| fs::write(path, "<!DOCTYPE html>\n<html>Not found</html>\n").expect("write"), &[]),
    (
        "an LFS pointer",
        |path, _| {
            fs::write(path, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n").expect("write")
        },
        &[],
    ),
    ("huge", |path, _| fs::File::create(path).and_then(|file| file.set_len(5 << 40)).expect("sparse file"), &[]),
];

/// Bytes that look random.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..count).map(next).collect()
}

fn spoil(refusals: &mut Refusals, base: fn() -> Checkpoint, file: &str, kinds: &[Kind]) {
    for (kind, make, says) in kinds {
        let checkpoint = base();
        let whole = fs::read(checkpoint.join(file)).unwrap_or_default();
        let _ = fs::remove_file(checkpoint.join(file));
        make(&checkpoint.join(file), &whole);
        let says: Vec<&str> = says.iter().copied().chain([file]).collect();
        refusals.model(&format!("{file} is {kind}"), checkpoint.path(), &says);
    }
}

#[test]
fn damaged_configs() {
    let mut refusals = Refusals::default();
    for file in ["config.json", "generation_config.json", "tokenizer_config.json"] {
        spoil(&mut refusals, Checkpoint::chat, file, DAMAGED);
    }
    refusals.done();
}

#[test]
fn damaged_weights_and_tokenizer() {
    let mut refusals = Refusals::default();
    for file in ["model.safetensors", "tokenizer.json"] {
        spoil(&mut refusals, Checkpoint::chat, file, DAMAGED);
    }
    for file in ["model.safetensors.index.json", "model-00003-of-00004.safetensors"] {
        spoil(&mut refusals, Checkpoint::sharded, file, DAMAGED);
    }
    refusals.done();
}

#[test]
fn no_files_at_all() {
    let mut refusals = Refusals::default();
    for file in
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    {
        spoil(&mut refusals, Checkpoint::chat, file, NOT_A_FILE);
    }
    // Files that a model may have.
    for file in ["chat_template.jinja", "chat_template.json", "special_tokens_map.json"] {
        spoil(&mut refusals, Checkpoint::chat, file, NOT_A_FILE);
    }
    for file in ["model.safetensors.index.json", "model-00001-of-00004.safetensors"] {
        spoil(&mut refusals, Checkpoint::sharded, file, NOT_A_FILE);
    }
    refusals.done();
}

#[test]
fn absent_and_unreadable() {
    let mut refusals = Refusals::default();
    let without = |file: &str| Checkpoint::chat().remove(file);
    refusals.model("no config.json", without("config.json").path(), &["has no config.json; pass"]);
    let says = ["has no weights", "model.safetensors", "download"];
    refusals.model("no weights", without("model.safetensors").path(), &says);
    let pickled = without("model.safetensors").write("pytorch_model.bin", "x");
    refusals.model("weights as pickles", pickled.path(), &["pytorch_model.bin", "safetensors", "convert"]);
    let shards = Checkpoint::sharded().remove("model.safetensors.index.json");
    refusals.model("no index", shards.path(), &["model.safetensors.index.json", "download"]);
    let shards = Checkpoint::sharded().remove("model-00002-of-00004.safetensors");
    refusals.model("no shard", shards.path(), &["1 are missing (model-00002-of-00004.safetensors)", "download"]);
    for file in
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    {
        let checkpoint = Checkpoint::chat();
        fs::set_permissions(checkpoint.join(file), fs::Permissions::from_mode(0o000)).expect("chmod");
        if fs::File::open(checkpoint.join(file)).is_ok() {
            println!("SKIPPED: unreadable files; this user reads everything");
            break;
        }
        refusals.model(&format!("{file} is unreadable"), checkpoint.path(), &[file, "ermission denied"]);
    }
    refusals.done();
}

#[test]
fn models_do_without_optional_files() {
    let ids = |server: &Server, model: &str| {
        let body = format!(r#"{{"model": "{model}", "prompt": [5, 6, 7], "max_tokens": 4, "return_token_ids": true}}"#);
        let reply = post(&server.address, "/v1/completions", body.as_bytes());
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()["choices"][0]["token_ids"].clone()
    };
    let sound = Checkpoint::chat();
    let server = Server::of(sound.path(), &[]);
    let expected = ids(&server, &sound.name());
    server.stop();
    for files in
        [&["generation_config.json"][..], &["tokenizer_config.json"], &["tokenizer.json", "tokenizer_config.json"]]
    {
        let checkpoint = files.iter().fold(Checkpoint::chat(), |checkpoint, file| checkpoint.remove(file));
        // Greedy with the file and without it.
        let server = Server::of(checkpoint.path(), &[]);
        if files != ["generation_config.json"] {
            assert_eq!(ids(&server, &checkpoint.name()), expected, "without {files:?}");
        }
        let chat = format!(
            r#"{{"model": "{}", "messages": [{{"role": "user", "content": "Hi"}}], "max_tokens": 1}}"#,
            checkpoint.name()
        );
        let reply = post(&server.address, "/v1/chat/completions", chat.as_bytes());
        let template = !files.contains(&"tokenizer_config.json");
        assert_eq!(reply.status, if template { 200 } else { 400 }, "{reply:?}");
        server.stop();
    }
}
