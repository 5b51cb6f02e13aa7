//! The binary on a tiny model: the report has its fields, and what is wrong is one line. No time is asserted.
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bench")).args(args).output().expect("the binary runs")
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/parity/fixtures").join(name)
}

/// Runs with `--json` and returns the report.
fn report(args: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.json");
    let output = bench(&[args, &["--json", file.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!output.stdout.is_empty(), "a table for people");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn assert_positive(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value[key].as_f64().is_some_and(|v| v > 0.0 && v.is_finite()), "{key}: {}", value[key]);
    }
}

#[test]
fn a_report_has_every_figure() {
    let config = fixture("qwen3-tied").join("config.json");
    let run = ["run", "--random-weights", config.to_str().unwrap(), "--prompt", "8", "--gen", "4", "--batch", "1,2"];
    let report = report(&[&run[..], &["--depth", "0,12", "--repeat", "1"]].concat());
    let device = &report["device"];
    assert!(device["name"].as_str().is_some_and(|name| !name.is_empty()));
    assert_positive(device, &["read_gb_s", "read_gb_s_1_thread", "threads", "fork_join_us_p99"]);
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 4);
    for run in runs {
        assert_eq!((run["prompt"].as_u64(), run["gen"].as_u64()), (Some(8), Some(4)));
        assert_eq!(run["quantize"], "none");
        assert_positive(
            run,
            &[
                "prefill_tok_s",
                "decode_tok_s",
                "ttft_ms",
                "itl_ms_p50",
                "itl_ms_p99",
                "bytes_per_decode_step",
                "kv_bytes_per_decode_step",
                "weights_bytes",
                "share_of_bandwidth",
                "load_s",
                "start_to_first_token_s",
                "planned_bytes",
            ],
        );
        if cfg!(target_os = "linux") {
            assert_positive(run, &["peak_resident_bytes", "peak_anonymous_bytes", "resident_file_bytes"]);
        }
    }
    // Eight in the cache, then one more a step: 9 to 12. In a batch the first may be ahead.
    assert_eq!(runs[0]["mean_context"], 10.5);
    assert_eq!(runs[2]["mean_context"], 14.5);
    assert!(runs[1]["mean_context"].as_f64().unwrap() >= 10.5);
}

#[test]
fn the_bundled_model_reads_a_text() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "The opposite of hot is cold. The opposite of big is small.\n".repeat(8)).unwrap();
    let report = report(&["perplexity", "--pocket", "--text", text.to_str().unwrap(), "--window", "32"]);
    let run = &report["runs"][0];
    assert_positive(run, &["tokens", "bytes", "perplexity", "byte_perplexity", "bits_per_byte"]);
    assert_eq!(run["ratio_to_first"], 1.0);
    assert_eq!(run["bytes"], 59 * 8 - 3, "all but the first token");
}

#[test]
fn what_is_wrong_is_one_line() {
    let fixture = fixture("llama2");
    let model = fixture.to_str().unwrap();
    for (args, part) in [
        (&[][..], "device, run, perplexity or divergence"),
        (&["run"], "--model"),
        (&["run", "--model", "no/such/model/here"], "no/such/model/here"),
        (&["run", "--random-weights", "no/such.json"], "no/such.json"),
        (&["run", "--model", model, "--prompt", "100000"], "lower --prompt"),
        (&["run", "--model", model, "--quantize", "q3"], "--quantize"),
        (&["run", "--model", model, "--json", "/nowhere/at/all.json"], "/nowhere/at/all.json"),
        (&["run", "--model", model, "--device", "abacus"], "abacus"),
        (&["device", "--threads", "0"], "--threads"),
        (&["perplexity", "--pocket", "--text", "no/such.txt"], "no/such.txt"),
        (&["perplexity", "--model", model, "--text", "Cargo.toml"], "tokenizer"),
    ] {
        let output = bench(args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        let lines: Vec<&str> = error.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(lines.len() == 1 && error.ends_with(&format!("{}\n", lines[0])), "{args:?}: {error}");
        assert!(lines[0].contains(part), "{args:?}: {error}");
    }
}
