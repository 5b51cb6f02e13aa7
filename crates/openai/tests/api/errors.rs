use crate::client::{Response, get, post, send};
use crate::server::shared;
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn with(base: &Value, more: Value) -> Value {
    let mut body = base.clone();
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn ask(path: &str, more: Value) -> Response {
    let base = match path {
        COMPLETIONS => json!({"model": "tiny", "prompt": "Hello", "max_tokens": 4}),
        _ => json!({"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}),
    };
    post(shared(), path, &with(&base, more))
}

/// A 400 that names the parameter.
fn refused(path: &str, more: Value, param: &str) -> Value {
    let error = ask(path, more.clone()).error(400);
    assert_eq!(error["param"], param, "{more}: {error}");
    assert_eq!(error["type"], "invalid_request_error");
    error
}

#[test]
fn ranges_are_openais() {
    for path in [COMPLETIONS, CHAT] {
        for (name, low, high, outside) in [
            ("temperature", 0.0, 2.0, [-0.1, 2.1]),
            ("top_p", 0.0, 1.0, [-0.1, 1.1]),
            ("presence_penalty", -2.0, 2.0, [-2.1, 2.1]),
            ("frequency_penalty", -2.0, 2.0, [-2.1, 2.1]),
            ("min_p", 0.0, 1.0, [-0.1, 1.1]),
            ("repetition_penalty", 0.5, 2.0, [0.0, 1000.0]),
        ] {
            for value in outside {
                let error = refused(path, json!({name: value}), name);
                let word = if value < low { "decimal_below_min_value" } else { "decimal_above_max_value" };
                assert_eq!(error["code"], word);
            }
            for value in [low, high] {
                ask(path, json!({name: value})).ok();
            }
            assert_eq!(refused(path, json!({name: "1"}), name)["code"], "invalid_type");
            ask(path, json!({name: null})).ok();
        }
        for (name, outside) in [("n", [0, 129]), ("min_tokens", [-1, 5]), ("top_k", [-2, i64::MAX])] {
            for value in outside {
                refused(path, json!({name: value}), name);
            }
        }
        refused(path, json!({"max_tokens": 0}), "max_tokens");
        refused(path, json!({"max_tokens": -1}), "max_tokens");
        refused(path, json!({"max_tokens": 1.5}), "max_tokens");
        ask(path, json!({"max_tokens": 2.0})).ok();
        refused(path, json!({"seed": 1.5}), "seed");
        refused(path, json!({"seed": u64::MAX}), "seed");
        refused(path, json!({"logit_bias": {"77": 101}}), "logit_bias.77");
        refused(path, json!({"logit_bias": {"seven": 1}}), "logit_bias.seven");
        refused(path, json!({"logit_bias": {"443": 1}}), "logit_bias");
        refused(path, json!({"logit_bias": [1]}), "logit_bias");
        refused(path, json!({"stop": ["a", "b", "c", "d", "e"]}), "stop");
        refused(path, json!({"stop": ""}), "stop");
        refused(path, json!({"stop": ["a", 1]}), "stop[1]");
        refused(path, json!({"stop_token_ids": [443]}), "stop_token_ids");
        refused(path, json!({"stream": "yes"}), "stream");
        refused(path, json!({"stream_options": {"include_usage": true}}), "stream_options");
        refused(path, json!({"stream": true, "stream_options": {"include_usage": 1}}), "stream_options.include_usage");
        ask(path, json!({"user": "me", "service_tier": "auto", "nobody_knows": {"this": [1]}})).ok();
    }
    ask(CHAT, json!({"max_completion_tokens": 0})).error(400);
    for top in [-1, 21] {
        refused(COMPLETIONS, json!({"logprobs": top}), "logprobs");
        refused(CHAT, json!({"logprobs": true, "top_logprobs": top}), "top_logprobs");
    }
    refused(COMPLETIONS, json!({"logprobs": true}), "logprobs");
    refused(CHAT, json!({"top_logprobs": 2}), "top_logprobs");
    refused(COMPLETIONS, json!({"best_of": 2}), "best_of");
}

#[test]
fn what_is_not_supported_is_refused() {
    refused(COMPLETIONS, json!({"suffix": "end"}), "suffix");
    refused(CHAT, json!({"response_format": {"type": "json_object"}}), "response_format");
    ask(CHAT, json!({"response_format": {"type": "text"}})).ok();
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    ask(CHAT, json!({"tools": [tool], "tool_choice": "auto"})).ok();
    ask(CHAT, json!({"tools": [tool], "tool_choice": "none"})).ok();
    refused(CHAT, json!({"tools": [tool], "tool_choice": "required"}), "tool_choice");
    let forced = json!({"type": "function", "function": {"name": "f"}});
    refused(CHAT, json!({"tools": [tool], "tool_choice": forced}), "tool_choice");
    refused(CHAT, json!({"tools": [{"type": "function"}]}), "tools[0].function.name");
    refused(CHAT, json!({"functions": [{"name": "f"}]}), "functions");
    refused(CHAT, json!({"modalities": ["text", "audio"]}), "modalities");
    refused(CHAT, json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs");
}

#[test]
fn prompts_and_messages_are_checked() {
    for (prompt, param) in [
        (json!([]), "prompt"),
        (json!(5), "prompt"),
        (json!({}), "prompt"),
        (json!([[]]), "prompt"),
        (json!([1, "a"]), "prompt[1]"),
        (json!([1, -1]), "prompt[1]"),
        (json!(["a", 1]), "prompt[1]"),
        (json!([[1], "a"]), "prompt[1]"),
        (json!([[1], [2, 0.5]]), "prompt[1][1]"),
        (json!([443]), "prompt"),
        (json!(vec!["a"; 2049]), "prompt"),
    ] {
        refused(COMPLETIONS, json!({"prompt": prompt}), param);
    }
    let error = refused(CHAT, json!({"messages": [{"role": "tool", "tool_call_id": "1", "content": "x"}]}), "messages");
    assert!(error["message"].as_str().unwrap().contains("Unknown role: tool"), "the template's own words: {error}");
    refused(CHAT, json!({"messages": []}), "messages");
    let image = json!([{"type": "image_url", "image_url": {"url": "data:"}}]);
    refused(CHAT, json!({"messages": [{"role": "user", "content": image}]}), "messages[0].content[0].type");
    for path in [COMPLETIONS, CHAT] {
        let missing = post(shared(), path, &json!({"model": "tiny"})).error(400);
        assert_eq!(missing["code"], "missing_required_parameter");
    }
}

#[test]
fn the_context_is_a_limit() {
    let long = vec![5; 2048];
    for (path, more, param) in [
        (COMPLETIONS, json!({"prompt": long}), "prompt"),
        (COMPLETIONS, json!({"prompt": [long, [1]]}), "prompt"),
        (COMPLETIONS, json!({"prompt": "word ".repeat(4000)}), "prompt"),
        (COMPLETIONS, json!({"prompt": "x".repeat(2_000_000)}), "prompt"),
        (COMPLETIONS, json!({"max_tokens": 2048}), "prompt"),
        (CHAT, json!({"max_tokens": 4_000_000_000u32}), "messages"),
        (CHAT, json!({"messages": [{"role": "user", "content": "word ".repeat(4000)}]}), "messages"),
    ] {
        let error = ask(path, more).error(400);
        assert_eq!((&error["code"], &error["param"]), (&json!("context_length_exceeded"), &json!(param)));
        assert!(error["message"].as_str().unwrap().contains("2048"), "{error}");
    }
    // The default number of tokens is no demand.
    let body = json!({"model": "tiny", "prompt": vec![5; 2045], "ignore_eos": true});
    assert_eq!(post(shared(), COMPLETIONS, &body).ok()["usage"]["completion_tokens"], 3);
}

#[test]
fn models_by_name() {
    let address = shared();
    let list = get(address, "/v1/models").ok();
    assert_eq!(list["object"], "list");
    let model = &list["data"][0];
    assert_eq!(
        (&model["id"], &model["object"], &model["max_model_len"]),
        (&json!("tiny"), &json!("model"), &json!(2048))
    );
    assert_eq!(get(address, "/v1/models/tiny").ok(), *model);
    for name in ["other", "org/other", "tiny%2Fother"] {
        assert_eq!(get(address, &format!("/v1/models/{name}")).error(404)["code"], "model_not_found");
    }
    for path in [COMPLETIONS, CHAT] {
        let error = ask(path, json!({"model": "gpt-4"})).error(404);
        assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
        refused(path, json!({"model": null}), "model");
        refused(path, json!({"model": 5}), "model");
    }
}

#[test]
fn what_is_no_request_gets_an_error_object() {
    let address = shared();
    for path in [COMPLETIONS, CHAT] {
        for body in
            ["", "{", "[]", "\"x\"", "{\"model\": NaN}", "{\"temperature\": 1e999}", "\u{0}", &"[".repeat(100_000)]
        {
            send(address, "POST", path, &[], body.as_bytes()).error(400);
        }
        send(address, "POST", path, &[], b"{\"model\": \"\xff\"}").error(400);
        assert_eq!(get(address, path).error(405)["type"], "invalid_request_error");
    }
    for path in ["/", "/v1", "/v1/embeddings", "/v1/models/", "/v1/completions/x", "/favicon.ico"] {
        get(address, path).error(404);
    }
    send(address, "DELETE", "/v1/models", &[], &[]).error(405);
    // Sent in full before it is refused, as clients do.
    let large = format!("{{\"model\": \"tiny\", \"prompt\": \"{}\"}}", "x".repeat(20 << 20));
    assert_eq!(send(address, "POST", COMPLETIONS, &[], large.as_bytes()).error(413)["code"], "request_too_large");
}
