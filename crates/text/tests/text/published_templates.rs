//! Chat templates of published models against recorded renderings.

use crate::common;
use anyfleet_text::{ChatInput, ChatTemplate, SpecialTokens};
use serde_json::{Map, Value};

/// 2025-07-26T12:00:00Z, the clock of the recordings.
const NOW: i64 = 1_753_531_200;

fn input(context: &Value) -> (ChatInput<'_>, Map<String, Value>) {
    let known = ["messages", "tools", "documents", "add_generation_prompt"];
    let extra: Map<String, Value> = context
        .as_object()
        .unwrap()
        .iter()
        .filter(|(k, _)| !known.contains(&k.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let mut input = ChatInput::new(&context["messages"]);
    // The recordings left out what a conversation does not have.
    input.tools = context.get("tools");
    input.leave_undefined = true;
    input.add_generation_prompt = context["add_generation_prompt"] == true;
    (input, extra)
}

#[test]
fn published_templates() {
    let Some(dir) = common::shared("chat_templates") else { return };
    let recorded = std::fs::read_to_string(dir.join("expected_renderings.json")).unwrap();
    let recorded: Value = serde_json::from_str(&recorded).unwrap();
    let tokens = SpecialTokens::new([("bos_token", "<s>"), ("eos_token", "</s>")]);
    let (mut equal, mut total) = (0, 0);
    for (name, expected) in recorded["expected"].as_object().unwrap() {
        let source = std::fs::read_to_string(dir.join(name)).unwrap();
        let template = ChatTemplate::new(&source).map(|t| t.with_clock(|| NOW));
        for (conversation, context) in recorded["contexts"].as_object().unwrap() {
            let (mut input, extra) = input(context);
            input.extra = Some(&extra);
            let rendered = match &template {
                Ok(template) => template.render(&input, &tokens).map_err(|e| e.to_string()),
                Err(e) => Err(e.to_string()),
            };
            let expected = &expected[conversation];
            total += 1;
            let same = match (&rendered, expected["text"].as_str()) {
                (Ok(text), Some(expected)) => text == expected,
                (Err(message), None) => !message.contains('\n'),
                _ => false,
            };
            equal += usize::from(same);
            if !same {
                println!("{name} {conversation}:\n  expected {expected}\n  rendered {rendered:?}");
            }
        }
    }
    println!("chat templates: {equal} of {total} renderings equal");
    assert_eq!(total, 46 * 7);
    assert_eq!(equal, total);
}
