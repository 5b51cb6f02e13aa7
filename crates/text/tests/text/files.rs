//! Files in memory: read and refused as those of a directory are.
use crate::common;
use anyfleet_text::{ChatInput, ChatTemplate, Error, Files, SpecialTokens, Tokenizer};
use serde_json::json;

/// Both readings of the same files, which must agree but for the place in a message.
fn both<T>(files: &[(&str, &[u8])], read: impl Fn(Files<'_>) -> Result<T, Error>) -> [Result<T, String>; 2] {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let place = dir.path().display().to_string();
    let in_dir = read(Files::Dir(dir.path())).map_err(|e| e.to_string().replace(&place, "in memory"));
    let in_memory = read(Files::Memory { label: "in memory", files }).map_err(|e| e.to_string());
    [in_dir, in_memory]
}

#[test]
fn tokenizers() {
    let file = common::byte_fallback().to_string();
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "add_eos_token": true}).to_string();
    let files = [("tokenizer.json", file.as_bytes()), ("tokenizer_config.json", config.as_bytes())];
    let [in_dir, in_memory] = both(&files, Tokenizer::from_files).map(|t| t.unwrap().unwrap());
    assert_eq!(in_dir.content_hash(), in_memory.content_hash());
    assert_eq!(in_memory.special_tokens().eos(), Some("</s>"));
    assert_eq!(in_memory.encode("a", true).unwrap().last(), Some(&2));

    for files in [&files[1..], &[]] {
        assert!(both(files, Tokenizer::from_files).into_iter().all(|t| t.unwrap().is_none()));
    }
    for (name, bytes) in [("tokenizer.json", "{"), ("tokenizer_config.json", "{"), ("tokenizer_config.json", "[]")] {
        let mut damaged = files;
        damaged.iter_mut().filter(|(n, _)| *n == name).for_each(|file| file.1 = bytes.as_bytes());
        let [in_dir, in_memory] = both(&damaged, Tokenizer::from_files).map(|t| t.map(drop).unwrap_err());
        assert_eq!(in_dir, in_memory);
        assert!(in_memory.starts_with(&format!("in memory/{name}: ")), "{in_memory}");
    }
}

#[test]
fn templates() {
    let inputs = json!([]);
    let render = |template: Option<ChatTemplate>| {
        template.unwrap().render(&ChatInput::new(&inputs), &SpecialTokens::default()).unwrap()
    };
    let (config, jinja): (&[u8], &[u8]) = (br#"{"chat_template": "config"}"#, b"jinja");
    let files = [("tokenizer_config.json", config), ("chat_template.jinja", jinja)];
    for (files, text) in [(&files[..], "jinja"), (&files[..1], "config")] {
        both(files, ChatTemplate::from_files).into_iter().for_each(|t| assert_eq!(render(t.unwrap()), text));
    }
    assert!(both(&[], ChatTemplate::from_files).into_iter().all(|t| t.unwrap().is_none()));
    let large = vec![b' '; (1 << 20) + 1];
    for bytes in [&b"{% if %}"[..], b"\xff", &large] {
        let read = both(&[("chat_template.jinja", bytes)], ChatTemplate::from_files);
        let [in_dir, in_memory] = read.map(|t| t.map(drop).unwrap_err());
        assert_eq!(in_dir, in_memory);
        assert!(in_memory.starts_with("in memory/chat_template.jinja: "), "{in_memory}");
    }
}
