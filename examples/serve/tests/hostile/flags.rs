//! Flags that ask for what there is not.
use crate::checkpoint::Checkpoint;
use crate::process::{Refusals, Server};
use std::net::TcpListener;

#[test]
fn impossible_flags() {
    let checkpoint = Checkpoint::chat();
    let model = checkpoint.path().to_str().expect("UTF-8");
    let mut refusals = Refusals::default();
    let most = usize::MAX.to_string();
    for (flags, says) in [
        (&["--dtype", "f64"][..], &["f64", "use auto, bf16, f16 or f32"][..]),
        (&["--dtype", ""], &["dtype", "use auto"]),
        (&["--kv-dtype", "int4"], &["KV dtype \"int4\" is unknown", "use auto, int8, fp8, bf16, f16 or f32"]),
        (&["--dtype", "f32\nerror: x"], &["dtype", "use auto"]),
        (&["--device", "tpu"], &["tpu", "use auto, cpu, cuda"]),
        (&["--device", "cuda:no\nsuch"], &["cuda:no\\nsuch"]),
        (&["--device", "cuda:99999999999999999999"], &["cuda:99999999999999999999"]),
        (&["--device", "wgpu:no\nsuch"], &["wgpu"]),
        (&["--device", "wgpu:99999999999999999999"], &["wgpu"]),
        (&["--gemm", "slow"], &["gemm \"slow\" is unknown", "use invariant or fast"]),
        (&["--device-memory", "lots"], &["--device-memory", "64MiB"]),
        (&["--self-check", ""], &["--self-check", "off"]),
        (&["--kv-cache-memory", "1"], &["holds no page", "--kv-cache-memory"]),
        (&["--kv-cache-memory", "1000TiB"], &["--kv-cache-memory", "does not fit", "at most"]),
        (&["--kv-cache-memory", &most], &["--kv-cache-memory", "does not fit", "at most"]),
        (&["--max-model-len", "4096"], &["--max-model-len", "use at most 2048"]),
        (&["--max-model-len", &most], &["--max-model-len", "use at most 2048"]),
        (&["--max-model-len", "1"], &["max-model-len"]),
        (&["--max-num-seqs", &most], &["--max-num-seqs", "use at most"]),
        (&["--max-batch-tokens", &most], &["--max-batch-tokens", "use at most"]),
        (&["--page-size", &most], &["--page-size", "use at most"]),
        (&["--page-size", "1000000000000"], &["--page-size", "use at most"]),
        (&["--threads", "100000"], &["100000 threads", "--threads"]),
        (&["--threads", &most], &["threads", "--threads"]),
        (&["--host", "256.1.1.1"], &["256.1.1.1", "--host"]),
        (&["--host", "no such host"], &["no such host", "--host"]),
        (&["--host", "192.0.2.1"], &["192.0.2.1", "--host"]),
        (&["--host", ""], &["--host"]),
        (&["--served-model-name", ""], &["--served-model-name"]),
        (&["--api-key", " "], &["API key"]),
        (&["--fleet-key", " "], &["fleet's key"]),
        (&["--kv-cache-memory", "0"], &["--kv-cache-memory", "64MiB"]),
        (&["--kv-cache-memory", "-1"], &["-1", "--help"]),
        (&["--kv-cache-memory", "lots"], &["--kv-cache-memory", "64MiB"]),
        (&["--max-model-len", "0"], &["--max-model-len", "above 0"]),
        (&["--max-num-seqs", "0"], &["--max-num-seqs", "above 0"]),
        (&["--max-batch-tokens", "0"], &["--max-batch-tokens", "above 0"]),
        (&["--page-size", "0"], &["--page-size", "above 0"]),
        (&["--max-queue", "0"], &["--max-queue", "above 0"]),
        (&["--threads", "0"], &["--threads", "above 0"]),
        (&["--threads", "-1"], &["-1", "--help"]),
        (&["--port", "99999"], &["--port", "65535"]),
        (&["--port", "http"], &["--port", "invalid"]),
        (&["--shutdown-timeout", "soon"], &["--shutdown-timeout"]),
        (&["--frobnicate"], &["--frobnicate", "--help"]),
        (&["--modle", "x"], &["--modle", "--model"]),
        (&["stray"], &["stray", "--help"]),
        (&["--model", "twice"], &["--model", "--help"]),
        (&["--model"], &["--model", "--help"]),
    ] {
        let mut args = vec!["--model", model];
        if flags[0] != "--port" {
            args.extend(["--port", "0"]);
        }
        args.extend_from_slice(flags);
        refusals.args(&format!("{flags:?}"), &args, says);
    }
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    refusals.args("a taken port", &["--model", model, "--port", &port], &[&port, "--port"]);
    refusals.done();
}

#[test]
fn models_that_are_none() {
    let empty = tempfile::tempdir().expect("temporary directory");
    let file = Checkpoint::chat();
    let weights = file.join("model.safetensors");
    let endless = empty.path().join("loop");
    std::os::unix::fs::symlink(&endless, &endless).expect("link");
    let dangling = empty.path().join("dangling");
    std::os::unix::fs::symlink("nowhere", &dangling).expect("link");
    let mut refusals = Refusals::default();
    for (model, says) in [
        ("/nonexistent/model", &["/nonexistent/model", "pass a directory"][..]),
        ("nonexistent", &["nonexistent", "pass a directory"]),
        ("", &["model", "pass a directory"]),
        ("../../..", &["config.json", "pass a model directory"]),
        ("Org/Name", &["Org/Name", "HF_HUB_OFFLINE", "unset it to download"]),
        ("Org/Name@v1", &["Org/Name@v1", "HF_HUB_OFFLINE"]),
        ("Org/../Name", &["pass a directory"]),
        ("a/b/c", &["pass a directory"]),
        ("Org/Na\nme", &["pass a directory"]),
        ("/dev/zero", &["/dev/zero", "not a directory"]),
        ("/dev/stdin", &["/dev/stdin"]),
        (weights.to_str().expect("UTF-8"), &["is not a directory", "pass the directory"]),
        (empty.path().to_str().expect("UTF-8"), &["config.json", "pass a model directory"]),
        (endless.to_str().expect("UTF-8"), &["loop", "check the path"]),
        (dangling.to_str().expect("UTF-8"), &["dangling", "check the path"]),
        (&"x".repeat(5000), &["pass a directory"]),
        (&format!("{}/y", "x".repeat(50_000)), &["pass a directory"]),
    ] {
        refusals.args(&format!("{model:.60?}"), &["--port", "0", "--model", model], says);
    }
    #[cfg(not(feature = "pocket"))]
    refusals.args("no model", &["--port", "0"], &["--model DIR", "--help"]);
    refusals.done();
}

#[test]
fn extreme_flags_that_serve() {
    let checkpoint = Checkpoint::chat();
    let most = usize::MAX.to_string();
    for flags in [
        &["--max-queue", &most][..],
        &["--max-num-seqs", "1", "--max-batch-tokens", "1"],
        &["--max-model-len", "2"],
        &["--page-size", "1"],
        &["--page-size", "4096"],
        &["--kv-cache-memory", "64KiB"],
        &["--threads", "64"],
        &["--shutdown-timeout", &u64::MAX.to_string()],
        &["--served-model-name", "a\"b\n\u{1b}[31m,{{x}}"],
    ] {
        let server = Server::of(checkpoint.path(), flags);
        let reply = crate::http::get(&server.address, "/v1/models");
        assert_eq!(reply.status, 200, "{flags:?}: {reply:?}");
        assert!(reply.json().is_object(), "{flags:?}: {reply:?}");
        server.stop();
    }
}
