use crate::client::post;
use crate::server::{expected, shared};
use serde_json::{Value, json};

const PATH: &str = "/v1/chat/completions";

fn chat(body: Value) -> Value {
    post(shared(), PATH, &body).ok()
}

fn question() -> Value {
    json!([{"role": "user", "content": "How many ships are 10 and 11 ships?"}])
}

#[test]
fn answers_are_what_transformers_generates() {
    for case in expected()["chats"].as_array().expect("cases") {
        for limit in ["max_tokens", "max_completion_tokens"] {
            let body = chat(
                json!({"model": "tiny", "messages": case["messages"], limit: case["max_tokens"], "return_token_ids": true}),
            );
            assert_eq!(body["object"], "chat.completion");
            assert!(body["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")));
            let choice = &body["choices"][0];
            assert_eq!(choice["message"], json!({"role": "assistant", "content": case["text"], "refusal": null}));
            assert_eq!(choice["finish_reason"], case["finish_reason"]);
            assert_eq!(body["prompt_token_ids"], case["prompt_ids"], "a template writes its own special tokens");
            assert_eq!(body["usage"]["prompt_tokens"], case["prompt_ids"].as_array().unwrap().len());
            assert_eq!(body["usage"]["completion_tokens"], case["ids"].as_array().unwrap().len());
        }
    }
}

#[test]
fn content_parts_and_the_developer_role() {
    let ids = |messages: Value| {
        chat(json!({"model": "tiny", "messages": messages, "max_tokens": 1, "return_token_ids": true}))["prompt_token_ids"].clone()
    };
    let plain = ids(json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a\nb"}]));
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    assert_eq!(plain, ids(json!([{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}])));
}

#[test]
fn the_answer_fills_the_context_unless_told() {
    let body = chat(json!({"model": "tiny", "messages": question(), "ignore_eos": true}));
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(body["usage"]["total_tokens"], 2048);
}

#[test]
fn the_final_message_can_be_continued() {
    let case = expected()["chats"][0].clone();
    let text = case["text"].as_str().unwrap();
    let at = text.find("tDer").expect("in the text");
    let mut messages = case["messages"].clone();
    messages.as_array_mut().unwrap().push(json!({"role": "assistant", "content": "The answer"}));
    let ask = |more: Value| {
        let mut body = json!({"model": "tiny", "messages": messages, "max_tokens": 1, "return_token_ids": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(shared(), PATH, &body)
    };
    let open = ask(json!({"continue_final_message": true})).ok()["prompt_token_ids"].as_array().unwrap().clone();
    let closed = ask(json!({"add_generation_prompt": false})).ok()["prompt_token_ids"].as_array().unwrap().clone();
    assert_eq!(open[..], closed[..open.len()]);
    assert_eq!(closed[open.len()..], [json!(3), json!(202)], "all but the end of the message");
    assert!(at > 0);
    ask(json!({"continue_final_message": true, "add_generation_prompt": true})).error(400);
}

#[test]
fn logprobs_have_names_bytes_and_alternatives() {
    let case = &expected()["chats"][1];
    let body =
        json!({"model": "tiny", "messages": case["messages"], "max_tokens": 48, "logprobs": true, "top_logprobs": 20});
    let choice = &chat(body)["choices"][0];
    let content = choice["logprobs"]["content"].as_array().expect("content");
    assert_eq!(content.len(), 48);
    let mut bytes = Vec::new();
    for (entry, want) in content.iter().zip(case["logprobs"].as_array().unwrap()) {
        assert!((entry["logprob"].as_f64().unwrap() - want.as_f64().unwrap()).abs() < 1e-3);
        let own: Vec<u8> = serde_json::from_value(entry["bytes"].clone()).expect("bytes");
        match std::str::from_utf8(&own) {
            Ok(text) => assert_eq!(entry["token"], text),
            Err(_) => {
                let name: String = own.iter().map(|b| format!("\\x{b:02x}")).collect();
                assert_eq!(entry["token"], format!("bytes:{name}"));
            }
        }
        bytes.extend(own);
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 20);
        assert_eq!(
            (&top[0]["token"], &top[0]["logprob"], &top[0]["bytes"]),
            (&entry["token"], &entry["logprob"], &entry["bytes"])
        );
        assert!(top.is_sorted_by_key(|t| -t["logprob"].as_f64().unwrap()));
    }
    // The bytes are the text's, unless a special token is among them.
    assert_eq!(choice["message"]["content"], *String::from_utf8_lossy(&bytes));
    let without = chat(json!({"model": "tiny", "messages": case["messages"], "max_tokens": 4, "logprobs": true}));
    assert_eq!(without["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
    let none = chat(json!({"model": "tiny", "messages": case["messages"], "max_tokens": 4, "top_logprobs": 0}));
    assert_eq!(none["choices"][0]["logprobs"], Value::Null);
}

#[test]
fn a_stream_is_the_same_answer_in_pieces() {
    for more in [json!({}), json!({"stop": ["t"]}), json!({"temperature": 1, "seed": 3}), json!({"max_tokens": 1})] {
        let mut body = json!({"model": "tiny", "messages": question(), "max_tokens": 48, "n": 2, "logprobs": true, "top_logprobs": 2});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let whole = chat(body.clone());
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let mut chunks = post(shared(), PATH, &body).chunks();
        let usage = chunks.pop().expect("chunks");
        assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &whole["usage"]["total_tokens"]));
        assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == usage["id"]));
        for (i, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
            let own: Vec<&Value> =
                chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == i).collect();
            assert_eq!(own[0]["delta"], json!({"role": "assistant", "content": ""}));
            let (last, middle) = own[1..].split_last().expect("a last chunk");
            assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &choice["finish_reason"]));
            assert!(middle.iter().all(|choice| choice["finish_reason"].is_null()));
            let text: String = middle.iter().map(|choice| choice["delta"]["content"].as_str().unwrap()).collect();
            assert_eq!(choice["message"]["content"], text);
            let logprobs: Vec<Value> =
                middle.iter().flat_map(|choice| choice["logprobs"]["content"].as_array().unwrap().clone()).collect();
            assert_eq!(choice["logprobs"]["content"], json!(logprobs));
        }
    }
}
