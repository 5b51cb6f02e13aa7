//! Published tokenizers against recorded ids.

mod common;

/// The `.inp` files hold texts between separator lines, the `.out` files their ids, one line each.
fn check(fixture: &str, tokenizer: &str) {
    let (Some(inp), Some(out), Some(file)) = (
        common::shared(&format!("tokenizers/fixtures/ggml-vocab-{fixture}.gguf.inp")),
        common::shared(&format!("tokenizers/fixtures/ggml-vocab-{fixture}.gguf.out")),
        common::shared(tokenizer),
    ) else {
        return;
    };
    let inp = std::fs::read_to_string(inp).unwrap();
    // Every text ends in the separator, so what follows the last one is none.
    let mut texts: Vec<&str> = inp.split("\n__ggml_vocab_test__\n").collect();
    texts.pop();
    let out = std::fs::read_to_string(out).unwrap();
    let expected: Vec<Vec<u32>> =
        out.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
    let tokenizer = anyfleet_text::Tokenizer::from_file(file).unwrap();
    let mut equal = 0;
    for (text, expected) in texts.iter().zip(&expected) {
        let ids = tokenizer.encode(text, false).unwrap();
        if ids == *expected {
            equal += 1;
        } else {
            println!("{fixture}: {text:?}\n  expected {expected:?}\n  got      {ids:?}");
        }
    }
    println!("{fixture}: {equal} of {} texts equal", expected.len());
    assert_eq!(texts.len(), expected.len());
    assert_eq!(equal, texts.len());
}

#[test]
fn gpt2() {
    check("gpt-2", "tokenizers/built/gpt2.tokenizer.json");
}

#[test]
fn qwen2() {
    check("qwen2", "tokenizers/built/qwen2_qwen3.tokenizer.json");
}

#[test]
fn phi3() {
    check("phi-3", "tokenizers/phi3/tokenizer.json");
}
