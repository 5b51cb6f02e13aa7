//! The bundled model answers the questions of `models/pocket/questions.jsonl`, none of which it was
//! trained on. `cargo test -p anyfleet --features pocket --test questions -- --nocapture` prints what it
//! got wrong.
#![cfg(feature = "pocket")]
use anyfleet::{ChatInput, Engine, GenerateRequest};
use serde_json::Value;

const NEEDED: usize = 70;

#[derive(serde::Deserialize)]
struct Question {
    id: String,
    messages: Value,
    #[serde(default)]
    tools: Option<Value>,
    check: Check,
}

/// What makes an answer right.
#[derive(serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
struct Check {
    /// This, but for case, outer spaces and one full stop.
    equals: Option<String>,
    /// All of these words, each a choice of `a|b`.
    contains: Option<Vec<String>>,
    /// None of these words.
    #[serde(default)]
    excludes: Vec<String>,
    /// This JSON value.
    json: Option<Value>,
    /// One tool call, and nothing else.
    tool_call: Option<Value>,
}

impl Check {
    fn passes(&self, answer: &str) -> bool {
        let right = match self {
            Check { equals: Some(expected), .. } => plain(answer) == plain(expected),
            Check { json: Some(expected), .. } => serde_json::from_str(answer.trim()).ok().as_ref() == Some(expected),
            Check { tool_call: Some(expected), .. } => {
                let call = answer.trim().strip_prefix("<tool_call>").and_then(|a| a.strip_suffix("</tool_call>"));
                call.and_then(|call| serde_json::from_str(call).ok()).as_ref() == Some(expected)
            }
            Check { contains: Some(words), .. } => words.iter().all(|word| has_word(answer, word)),
            _ => panic!("a question without a check"),
        };
        right && !self.excludes.iter().any(|word| has_word(answer, word))
    }
}

fn plain(text: &str) -> String {
    let text = text.trim();
    text.strip_suffix('.').unwrap_or(text).to_lowercase()
}

/// Whether one of `a|b` stands in the text as whole words, in any case.
fn has_word(text: &str, choices: &str) -> bool {
    let text = text.to_lowercase();
    let inner = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    choices.to_lowercase().split('|').any(|word| {
        text.match_indices(word)
            .any(|(at, _)| !inner(text[..at].chars().next_back()) && !inner(text[at + word.len()..].chars().next()))
    })
}

fn questions() -> Vec<Question> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/pocket/questions.jsonl");
    let text = std::fs::read_to_string(path).expect("questions.jsonl");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[test]
fn the_bundled_model_passes() {
    let engine = Engine::bundled().kv_cache_bytes(64 << 20).build().expect("the bundled model");
    let questions = questions();
    assert_eq!(questions.len(), 100);
    let asked: Vec<_> = questions
        .iter()
        .map(|question| {
            let mut input = ChatInput::new(&question.messages);
            input.tools = question.tools.as_ref();
            let prompt = engine.apply_chat_template(&input).expect("a prompt");
            let prompt = engine.encode(&prompt, false).expect("token ids");
            engine.stream(GenerateRequest::tokens(prompt).max_tokens(64).temperature(0.0)).expect("a stream")
        })
        .collect();
    let mut passed = 0;
    for (question, stream) in questions.iter().zip(asked) {
        let answer = stream.collect_completion().expect("an answer");
        match question.check.passes(answer.text()) {
            true => passed += 1,
            false => println!("{}: {}", question.id, answer.text().replace('\n', "\\n")),
        }
    }
    println!("pocket answers {passed} of {} questions", questions.len());
    assert!(passed >= NEEDED, "{passed} are fewer than {NEEDED}");
}

#[test]
fn no_constant_answer_passes() {
    let questions = questions();
    let constants =
        ["", "Yes.", "No.", "I do not know that. I am a very small model.", "four", "red blue green yellow"];
    for answer in constants {
        let passed = questions.iter().filter(|question| question.check.passes(answer)).count();
        assert!(passed <= 5, "{answer:?} passes {passed} questions");
    }
}

#[test]
fn checks_tell_right_from_wrong() {
    let check = |json: &str| serde_json::from_str::<Check>(json).expect("a check");
    assert!(check(r#"{"equals": "Late."}"#).passes(" late\n"));
    assert!(!check(r#"{"equals": "late"}"#).passes("too late"));
    let seven = check(r#"{"contains": ["seven|7"], "excludes": ["six"]}"#);
    assert!(seven.passes("There are 7.") && seven.passes("Seven!"));
    assert!(!seven.passes("17") && !seven.passes("six or seven") && !seven.passes("seventy"));
    let json = check(r#"{"json": {"name": "Tom", "age": 5}}"#);
    assert!(
        json.passes("{\"age\":5,\"name\":\"Tom\"}") && !json.passes("Tom is 5") && !json.passes("{\"name\":\"Tom\"}")
    );
    let call = check(r#"{"tool_call": {"name": "add", "arguments": {"a": 1}}}"#);
    assert!(call.passes("<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>"));
    assert!(!call.passes("{\"name\": \"add\", \"arguments\": {\"a\": 1}}"));
}
