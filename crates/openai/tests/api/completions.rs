use crate::client::post;
use crate::server::{expected, shared};
use serde_json::{Value, json};

const PATH: &str = "/v1/completions";
/// Its continuation is mostly bytes that are no characters.
const PROMPT: &str = "The lighthouse keeper counted 3 ships";

fn complete(body: Value) -> Value {
    post(shared(), PATH, &body).ok()
}

#[test]
fn text_is_what_transformers_generates() {
    for case in expected()["completions"].as_array().expect("cases") {
        let max_tokens = &case["max_tokens"];
        let body = complete(
            json!({"model": "tiny", "prompt": case["prompt"], "max_tokens": max_tokens, "return_token_ids": true}),
        );
        assert_eq!(body["object"], "text_completion");
        assert_eq!(body["model"], "tiny");
        assert!(body["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")));
        assert!(body["system_fingerprint"].as_str().is_some_and(|id| id.starts_with("anyfleet-")));
        let choice = &body["choices"][0];
        assert_eq!(choice["text"], case["text"]);
        assert_eq!(choice["finish_reason"], case["finish_reason"]);
        assert_eq!(choice["token_ids"], case["ids"]);
        assert_eq!(choice["prompt_token_ids"], case["prompt_ids"], "the post-processor's tokens are there");
        let (prompt, output) = (case["prompt_ids"].as_array().unwrap().len(), case["ids"].as_array().unwrap().len());
        assert_eq!(body["usage"]["prompt_tokens"], prompt);
        assert_eq!(body["usage"]["completion_tokens"], output);
        assert_eq!(body["usage"]["total_tokens"], prompt + output);
        // As ids the prompt is taken as it is.
        let by_ids = complete(json!({"model": "tiny", "prompt": case["prompt_ids"], "max_tokens": max_tokens}));
        assert_eq!(by_ids["choices"][0]["text"], case["text"]);
        let without = complete(
            json!({"model": "tiny", "prompt": case["prompt"], "add_special_tokens": false, "return_token_ids": true}),
        );
        assert_eq!(
            without["choices"][0]["prompt_token_ids"].as_array().unwrap()[..],
            case["prompt_ids"].as_array().unwrap()[1..]
        );
    }
}

#[test]
fn sixteen_tokens_unless_told() {
    let body = complete(json!({"model": "tiny", "prompt": PROMPT, "ignore_eos": true}));
    assert_eq!(body["usage"]["completion_tokens"], 16);
    assert_eq!(body["choices"][0]["finish_reason"], "length");
}

#[test]
fn several_prompts_and_choices_are_numbered_in_order() {
    let case = &expected()["completions"];
    let prompts = json!([case[0]["prompt"], case[1]["prompt"], case[2]["prompt"]]);
    let ids = json!([case[0]["prompt_ids"], case[1]["prompt_ids"], case[2]["prompt_ids"]]);
    for prompts in [prompts, ids] {
        let body = complete(json!({"model": "tiny", "prompt": prompts, "max_tokens": 32, "n": 2, "best_of": 2}));
        let choices = body["choices"].as_array().expect("choices");
        assert_eq!(choices.len(), 6);
        for (i, choice) in choices.iter().enumerate() {
            assert_eq!(choice["index"], i);
            assert_eq!(choice["text"], case[i / 2]["text"]);
        }
        let tokens: usize = (0..3).map(|i| case[i]["prompt_ids"].as_array().unwrap().len()).sum();
        assert_eq!(body["usage"]["prompt_tokens"], tokens, "a prompt counts once, whatever n");
        assert_eq!(body["usage"]["completion_tokens"], 6 * 32);
    }
}

/// More prompts than the server hands to the engine at once.
#[test]
fn a_long_list_of_prompts_is_answered() {
    let prompts: Vec<[u32; 2]> = (0..150).map(|i| [0, i + 4]).collect();
    let body = complete(json!({"model": "tiny", "prompt": prompts, "max_tokens": 2, "ignore_eos": true}));
    let choices = body["choices"].as_array().expect("choices");
    assert!(choices.iter().enumerate().all(|(i, choice)| choice["index"] == i && choice["finish_reason"] == "length"));
    assert_eq!(choices.len(), 150);
    assert_eq!(body["usage"]["completion_tokens"], 300);
}

/// Where the log-probabilities' tokens lie in the text, checked from their names.
fn check_logprobs(choice: &Value, top: usize) {
    let (text, logprobs) = (choice["text"].as_str().unwrap(), &choice["logprobs"]);
    let tokens = logprobs["tokens"].as_array().expect("tokens");
    for list in ["token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[list].as_array().expect(list).len(), tokens.len());
    }
    let characters: Vec<char> = text.chars().collect();
    for (i, token) in tokens.iter().enumerate() {
        let token = token.as_str().unwrap();
        let offset = logprobs["text_offset"][i].as_u64().unwrap() as usize;
        let rest: String = characters[offset..].iter().collect();
        match token {
            // Special tokens have no text.
            "<|bos|>" => assert_eq!(offset, 0),
            token if token.starts_with("bytes:\\x") => assert!(!rest.is_empty()),
            token => assert!(rest.starts_with(token), "token {i}, {token:?}, is not at {offset} of {text:?}"),
        }
        if i == 0 && logprobs["token_logprobs"][0].is_null() {
            assert!(logprobs["top_logprobs"][0].is_null());
            continue;
        }
        let logprob = &logprobs["token_logprobs"][i];
        assert!(logprob.as_f64().is_some_and(|p| p <= 0.0));
        let alternatives = logprobs["top_logprobs"][i].as_object().expect("an object");
        assert_eq!(alternatives.get(token), Some(logprob), "the chosen token is always among them");
        assert!((top.max(1)..=top + 1).contains(&alternatives.len()), "{alternatives:?}");
        let values: Vec<f64> = alternatives.values().take(top).map(|p| p.as_f64().unwrap()).collect();
        assert!(values.is_sorted_by(|a, b| a >= b), "most likely first");
    }
}

#[test]
fn logprobs_are_transformers_and_offsets_are_right() {
    for case in expected()["completions"].as_array().expect("cases") {
        for top in [0, 1, 5] {
            let body =
                json!({"model": "tiny", "prompt": case["prompt"], "max_tokens": case["max_tokens"], "logprobs": top});
            let choice = &complete(body)["choices"][0];
            check_logprobs(choice, top);
            let got = choice["logprobs"]["token_logprobs"].as_array().unwrap();
            let want = case["logprobs"].as_array().unwrap();
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(want) {
                assert!((got.as_f64().unwrap() - want.as_f64().unwrap()).abs() < 1e-3);
            }
        }
    }
}

#[test]
fn echo_gives_the_prompt_and_its_logprobs() {
    let case = &expected()["completions"][0];
    let (prompt, text) = (case["prompt"].as_str().unwrap(), case["text"].as_str().unwrap());
    let whole = format!("{prompt}{text}");
    let ask = |more: Value| {
        let mut body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 32, "echo": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        complete(body)["choices"][0].clone()
    };
    assert_eq!(ask(json!({}))["text"], whole);
    assert_eq!(ask(json!({}))["logprobs"], Value::Null);

    let scored = ask(json!({"logprobs": 2}));
    assert_eq!(scored["text"], whole);
    check_logprobs(&scored, 2);
    assert_eq!(scored["logprobs"]["tokens"][0], "<|bos|>");
    assert_eq!(scored["logprobs"]["token_logprobs"][0], Value::Null);
    let prompt_tokens = case["prompt_ids"].as_array().unwrap().len();
    assert_eq!(scored["logprobs"]["tokens"].as_array().unwrap().len(), prompt_tokens + 32);

    // Scoring alone, which is what evaluation harnesses ask for.
    let only = ask(json!({"logprobs": 2, "max_tokens": 0}));
    assert_eq!(only["text"], prompt);
    assert_eq!(only["finish_reason"], "length");
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let both = scored["logprobs"][list].as_array().unwrap();
        assert_eq!(only["logprobs"][list].as_array().unwrap()[..], both[..prompt_tokens], "{list}");
    }
    // What was generated scores the same when it is given as the prompt.
    let ids: Vec<Value> =
        case["prompt_ids"].as_array().unwrap().iter().chain(case["ids"].as_array().unwrap()).cloned().collect();
    let again = complete(json!({"model": "tiny", "prompt": ids, "max_tokens": 0, "echo": true, "logprobs": 2}));
    assert_eq!(again["choices"][0]["logprobs"]["token_logprobs"], scored["logprobs"]["token_logprobs"], "bit for bit");
    assert_eq!(again["usage"]["completion_tokens"], 0);
}

#[test]
fn tokens_can_be_named_by_their_ids() {
    let case = &expected()["completions"][1];
    let body = json!({"model": "tiny", "prompt": case["prompt"], "max_tokens": 32, "logprobs": 1, "return_tokens_as_token_ids": true});
    let names: Vec<String> = case["ids"].as_array().unwrap().iter().map(|id| format!("token_id:{id}")).collect();
    assert_eq!(complete(body)["choices"][0]["logprobs"]["tokens"], json!(names));
}

#[test]
fn stop_strings_and_ids_end_the_text() {
    let case = &expected()["completions"][0];
    let text = case["text"].as_str().unwrap();
    let ask = |more: Value| {
        let mut body = json!({"model": "tiny", "prompt": case["prompt"], "max_tokens": 32, "logprobs": 0});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        complete(body)["choices"][0].clone()
    };
    // It begins in one token and ends in another.
    let stop = "rning S";
    let before = &text[..text.find(stop).expect("in the text")];
    let stopped = ask(json!({"stop": ["never", stop]}));
    assert_eq!(stopped["text"], before);
    assert_eq!((&stopped["finish_reason"], &stopped["stop_reason"]), (&json!("stop"), &json!(stop)));
    assert_eq!(ask(json!({"stop": stop, "include_stop_str_in_output": true}))["text"], format!("{before}{stop}"));
    let id = &case["ids"][4];
    let by_id = ask(json!({"stop_token_ids": [id]}));
    assert_eq!((&by_id["finish_reason"], &by_id["stop_reason"]), (&json!("stop"), id));
    assert_eq!(by_id["text"], "ue3ionher");
    assert_eq!(by_id["logprobs"]["tokens"].as_array().unwrap().len(), 4);
}

#[test]
fn sampling_parameters_reach_the_sampler() {
    let ask = |more: Value| {
        let mut body =
            json!({"model": "tiny", "prompt": PROMPT, "max_tokens": 24, "return_token_ids": true, "ignore_eos": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        complete(body)["choices"][0]["token_ids"].clone()
    };
    let greedy = ask(json!({}));
    assert_eq!(greedy, ask(json!({"temperature": 0})), "the fixture's generation_config.json says do_sample: false");
    assert_eq!(greedy, ask(json!({"temperature": 1, "top_k": 1})));
    assert_eq!(greedy, ask(json!({"temperature": 1, "top_p": 0})));
    assert_eq!(greedy, ask(json!({"temperature": 1, "min_p": 1})));
    let seeded = ask(json!({"temperature": 1.5, "seed": -3}));
    assert_eq!(seeded, ask(json!({"temperature": 1.5, "seed": -3})));
    assert_ne!(seeded, ask(json!({"temperature": 1.5, "seed": 4})));
    assert_ne!(seeded, greedy);
    let bias = ask(json!({"logit_bias": {"77": 100}}));
    assert!(bias.as_array().unwrap().iter().all(|id| id == 77), "{bias}");
    let repeated = ask(json!({"logit_bias": {"77": 8}, "frequency_penalty": 2}));
    assert_ne!(repeated, ask(json!({"logit_bias": {"77": 8}})));
    assert_ne!(greedy, ask(json!({"repetition_penalty": 3})));
    let choices = complete(json!({"model": "tiny", "prompt": PROMPT, "n": 3, "temperature": 2, "seed": 5}));
    let texts: Vec<&Value> = choices["choices"].as_array().unwrap().iter().map(|c| &c["text"]).collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "choices of one seed differ");
}

/// Puts a stream's chunks together again, by choice.
fn assemble(chunks: &[Value], choices: usize) -> Vec<Value> {
    let empty = json!({"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []});
    let mut whole = vec![json!({"text": "", "logprobs": empty, "finish_reason": null, "token_ids": []}); choices];
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        let whole = &mut whole[choice["index"].as_u64().unwrap() as usize];
        assert!(whole["finish_reason"].is_null(), "nothing after the finish");
        let text = format!("{}{}", whole["text"].as_str().unwrap(), choice["text"].as_str().unwrap());
        whole["text"] = text.into();
        whole["finish_reason"] = choice["finish_reason"].clone();
        whole["token_ids"]
            .as_array_mut()
            .unwrap()
            .extend(choice["token_ids"].as_array().into_iter().flatten().cloned());
        for (list, values) in choice["logprobs"].as_object().into_iter().flatten() {
            whole["logprobs"][list].as_array_mut().unwrap().extend(values.as_array().unwrap().clone());
        }
    }
    whole
}

#[test]
fn a_stream_is_the_same_answer_in_pieces() {
    let cases = expected();
    let prompts = [&cases["completions"][0]["prompt"], &cases["completions"][2]["prompt"]];
    for more in [
        json!({}),
        json!({"echo": true}),
        json!({"stop": ["in", "5"]}),
        json!({"temperature": 1, "seed": 9}),
        json!({"echo": true, "max_tokens": 0}),
    ] {
        let mut body = json!({"model": "tiny", "prompt": prompts, "max_tokens": 32, "n": 2, "logprobs": 3, "return_token_ids": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let whole = complete(body.clone());
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let mut chunks = post(shared(), PATH, &body).chunks();
        let last = chunks.pop().expect("chunks");
        assert_eq!(last["choices"], json!([]));
        for part in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            assert_eq!(last["usage"][part], whole["usage"][part]);
        }
        assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
        assert!(chunks.iter().all(|chunk| chunk["id"] == last["id"] && chunk["object"] == "text_completion"));
        let streamed = assemble(&chunks, 4);
        for (streamed, choice) in streamed.iter().zip(whole["choices"].as_array().unwrap()) {
            for field in ["text", "finish_reason", "logprobs", "token_ids"] {
                assert_eq!(streamed[field], choice[field], "{field} with {more}");
            }
        }
    }
    let body = json!({"model": "tiny", "prompt": PROMPT, "stream": true});
    let chunks = post(shared(), PATH, &body).chunks();
    assert!(chunks.len() > 3 && chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}
